//! Writes the canary into a source every minute, where that is asked for.
//!
//! **Invariant:** a canary that cannot be written touches nothing else of the daemon.

use super::{Station, until_set};
use crate::engine::canary::EVERY;
use crate::error::Result;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

/// Writes it for as long as the daemon runs.
pub(super) async fn keep(station: Arc<Station>, mut stopped: watch::Receiver<bool>) -> Result<()> {
    let mut due = tokio::time::interval(EVERY);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // What went wrong is said once for as long as it stays the same.
    let mut trouble = None;
    loop {
        tokio::select! {
            _ = due.tick() => {}
            () = until_set(&mut stopped) => return Ok(()),
        }
        // Only the server that is captured gets it, once it is known which one that is.
        tokio::select! {
            streaming = station.until_streaming() => streaming?,
            () = until_set(&mut stopped) => return Ok(()),
        }
        let written = tokio::select! {
            written = station.engine.canary() => written,
            () = until_set(&mut stopped) => return Ok(()),
        };
        let said = written.err().map(|error| match error.hint_text() {
            Some(hint) => format!("{error} (hint: {hint})"),
            None => error.to_string(),
        });
        if let Some(said) = said.as_ref().filter(|said| trouble.as_ref() != Some(*said)) {
            tracing::warn!(source = %station.options.name, "no canary: {said}");
        }
        trouble = said;
    }
}
