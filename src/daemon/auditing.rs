//! Records the hours of each source as they pass, and those that passed while no daemon ran.
//!
//! Each source is on its own: an hour that one of them cannot complete holds up no other.

use super::{Station, blocking, until_set};
use crate::archive::Archive;
use crate::audit;
use crate::clock::Timestamp;
use crate::error::Result;
use crate::schedule;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How often it is looked whether an hour has passed.
const LOOK: Duration = Duration::from_millis(500);

/// How long is waited where an hour is over and cannot be recorded yet.
const RETRY: Duration = Duration::from_secs(10);

/// Records hours for as long as the daemon runs.
pub(super) async fn keep_hours(
    station: Arc<Station>,
    mut stopped: watch::Receiver<bool>,
) -> Result<()> {
    // The hour to be recorded next, once it is known.
    let mut next: Option<Timestamp> = None;
    let mut not_before = Instant::now();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = until_set(&mut stopped) => return Ok(()),
        }
        let reached = station.shared.written_until();
        let is_due = match next {
            None => reached.is_some(),
            Some(next) => schedule::is_hour_over(next, reached, Timestamp::now()),
        };
        if !station.automatic || !is_due || Instant::now() < not_before {
            continue;
        }
        match record(&station).await {
            Ok((recorded, following)) => {
                // More may be due at once: a day is recorded at a time.
                if recorded.is_empty() {
                    not_before = Instant::now() + RETRY;
                }
                for hour in recorded {
                    tracing::info!(source = %station.options.name, "recorded the hour {hour}");
                }
                next = following;
            }
            Err(error) => {
                tracing::error!(source = %station.options.name, "record an hour: {error}");
                not_before = Instant::now() + RETRY;
            }
        }
    }
}

/// Records what is due; gives that, and the hour that follows.
async fn record(station: &Station) -> Result<(Vec<Timestamp>, Option<Timestamp>)> {
    let (root, options) = (station.root.clone(), &station.options);
    let (source, engine) = (options.name.clone(), options.engine);
    blocking(move || {
        let mut archive = Archive::open(&root)?;
        let recorded = audit::record_hours(&mut archive, &source, engine, Timestamp::now())?;
        let next = audit::next_hour(&archive, &source)?;
        Ok((recorded, next))
    })
    .await
}
