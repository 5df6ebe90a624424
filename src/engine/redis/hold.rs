//! Reads where the stream ends, and holds writes for a moment meanwhile.
//!
//! `PUBLISH` goes into the replication stream and into no key (`pubsub.c`, `publishCommand`), so
//! the stream itself shows a place by its name. `CLIENT PAUSE … WRITE` (6.2 and later) holds
//! everything that would change data, expiry and eviction included, and ends by itself.
//!
//! **Invariant:** time, offset, replication id and run id of a place are read in one `EXEC`.

use super::aof;
use super::control::Control;
use crate::engine::{Endpoint, Hold, Placed, Work};
use crate::error::{Class, Error, Result};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The channel on which the name of a place is published.
const CHANNEL: &str = "__pitr:mark";

/// The end of the stream now. Its name is published behind it, if the account may do that.
pub(super) async fn place(endpoint: &Endpoint, name: &str) -> Result<Placed> {
    let mut control = Control::connect(endpoint).await?;
    match control.place(Some((CHANNEL, name))).await {
        Err(error) if error.class() == Class::Usage => {
            tracing::debug!(%endpoint, %error, "the name of a place is not published");
            control.place(None).await
        }
        placed => placed,
    }
}

/// Holds the writes of one server.
#[derive(Debug)]
pub(super) struct Pause {
    control: Control,
    endpoint: Endpoint,
    /// The folder of the append-only files, if those are captured.
    files: Option<PathBuf>,
    since: Option<Instant>,
}

impl Pause {
    pub(super) async fn prepare(
        endpoint: &Endpoint,
        files: Option<PathBuf>,
    ) -> Result<Box<dyn Hold>> {
        let mut control = Control::connect(endpoint).await?;
        if control.info("replication").await?.get("role").is_some_and(|role| role == "slave") {
            return Err(Error::refused(format!(
                "{endpoint} is a replica: what is written to its master cannot be held there"
            ))
            .hint("capture the master, or make the mark without --barrier"));
        }
        Ok(Box::new(Self { control, endpoint: endpoint.clone(), files, since: None }))
    }
}

impl Hold for Pause {
    fn take(&mut self, most: Duration) -> Work<'_, ()> {
        Box::pin(async move {
            self.since = Some(Instant::now());
            let millis = most.as_millis().to_string();
            let may = "a barrier needs +client|pause +client|unpause";
            let held = self.control.ask::<()>(&["CLIENT", "PAUSE", &millis, "WRITE"]).await;
            held.map_err(|e| if e.class() == Class::Usage { e.hint(may) } else { e })
        })
    }

    fn place(&mut self) -> Work<'_, Placed> {
        Box::pin(async move {
            match &self.files {
                Some(dir) => aof::clock::place(&mut self.control, dir).await,
                None => self.control.place(None).await,
            }
        })
    }

    fn release(mut self: Box<Self>) -> Work<'static, Duration> {
        Box::pin(async move {
            self.control.ask::<()>(&["CLIENT", "UNPAUSE"]).await?;
            let since = self
                .since
                .ok_or_else(|| Error::bug(format!("writes of {} were not held", self.endpoint)))?;
            Ok(since.elapsed())
        })
    }
}
