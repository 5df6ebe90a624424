//! Looks when the newest baseline of a source was begun.

use super::{Station, blocking};
use crate::archive::Archive;
use crate::clock::Timestamp;
use crate::config::Config;
use crate::error::Result;
use std::sync::Arc;

/// When the newest baseline of a timeline, or of one that continues it, was begun.
pub(super) async fn newest_baseline(
    station: &Arc<Station>,
    config: &Config,
    from: u32,
) -> Result<Option<Timestamp>> {
    let (root, source) = (config.archive.clone(), station.options.name.clone());
    let found = blocking(move || {
        let baselines = Archive::open_read_only(&root)?.catalog().baselines(&source)?;
        let of_timeline = baselines.iter().filter(|baseline| baseline.timeline >= from);
        Ok(of_timeline.map(|baseline| baseline.begun_at).max())
    })
    .await;
    found.or_else(|error| {
        // Taking one more baseline is the safe answer; a lasting fault shows up there.
        tracing::warn!(source = %station.options.name, "look for a baseline: {error}");
        Ok(None)
    })
}
