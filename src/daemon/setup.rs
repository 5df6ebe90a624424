//! Has kept what the sources are besides their data: hourly, and with each baseline.

use super::{Station, blocking};
use crate::clock::Timestamp;
use crate::error::Result;
use crate::setup;
use std::time::{Duration, Instant};

/// How often it is read.
const EVERY: Duration = Duration::from_hours(1);

/// How soon after it could not be.
const RETRY: Duration = Duration::from_mins(1);

/// When it is read next.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    not_before: Option<Instant>,
}

impl Keeper {
    /// Reads it at the next turn.
    pub(super) fn ask(&mut self) {
        self.not_before = None;
    }

    /// Reads and stores it, if that is due. What goes wrong is said, and tried again soon: it
    /// holds up nothing else.
    pub(super) async fn turn(&mut self, station: &Station) {
        if self.not_before.is_some_and(|due| Instant::now() < due) {
            return;
        }
        let source = &station.options.name;
        let pause = match keep(station).await {
            Ok(stored) => {
                if let Some(name) = stored {
                    tracing::info!(source, "users, settings and modules are kept as {name}");
                }
                EVERY
            }
            Err(error) => {
                tracing::warn!(source, "users, settings and modules are not kept: {error}");
                RETRY
            }
        };
        self.not_before = Some(Instant::now() + pause);
    }
}

async fn keep(station: &Station) -> Result<Option<String>> {
    let Some(read) = station.engine.setup().await? else { return Ok(None) };
    let (root, source) = (station.root.clone(), station.options.name.clone());
    blocking(move || setup::keep(&root, &source, read, Timestamp::now())).await
}
