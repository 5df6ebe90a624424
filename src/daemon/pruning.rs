//! Deletes what is older than it has to be: after each daily baseline, and when a command asks.
//!
//! Each source is on its own: what speaks against deleting from one holds up no other.

use super::{Reply, Request, ask, blocking};
use crate::clock::Timestamp;
use crate::config::Config;
use crate::error::{Class, Error, Result};
use crate::prune::{self, Options, Report, Sum};
use crate::retention::Policy;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long is waited where somebody reads the archive.
const BUSY_RETRY: Duration = Duration::from_mins(10);

/// Whether something is to be deleted from a source, and when.
#[derive(Debug, Default)]
pub(super) struct Pruning {
    due: Option<Instant>,
}

impl Pruning {
    /// It is to be done at the next turn.
    pub(super) fn ask(&mut self) {
        self.due = Some(Instant::now());
    }

    /// Does it, if it is due. What goes wrong is said, and tried again after the next baseline.
    pub(super) async fn turn(&mut self, config: &Config, source: &str) {
        if self.due.is_none_or(|due| Instant::now() < due) {
            return;
        }
        self.due = None;
        let options = Options {
            archive: config.archive.clone(),
            sources: vec![source.to_owned()],
            policy: config.retention,
            apply: true,
            force: false,
            now: Timestamp::now(),
            stop: Arc::default(),
        };
        match run(options).await {
            Ok(report) => {
                for done in report.sources.iter().filter(|done| done.deleted != Sum::default()) {
                    tracing::info!(
                        source,
                        "pruned {} baselines and {} segments, {} bytes",
                        done.deleted.baselines,
                        done.deleted.segments,
                        done.deleted.bytes
                    );
                }
            }
            Err(error) if error.class() == Class::Busy => {
                tracing::info!(source, "pruned later: {error}");
                self.due = Some(Instant::now() + BUSY_RETRY);
            }
            Err(error) => {
                tracing::error!(source, "{error}");
                if let Some(hint) = error.hint_text() {
                    tracing::error!(source, "hint: {hint}");
                }
            }
        }
    }
}

/// Ends a deletion when nobody waits for it any more: the daemon stops.
struct StopWhenDropped(Arc<AtomicBool>);

impl Drop for StopWhenDropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

async fn run(options: Options) -> Result<Report> {
    let _stop = StopWhenDropped(Arc::clone(&options.stop));
    blocking(move || prune::prune(&options)).await
}

/// What a command asked for.
pub(super) async fn carry_out(root: &Path, policy: Policy, force: bool) -> Result<Reply> {
    let options = Options {
        archive: root.to_owned(),
        sources: vec![],
        policy,
        apply: true,
        force,
        now: Timestamp::now(),
        stop: Arc::default(),
    };
    run(options).await.map(|report| Reply::Pruned(Box::new(report)))
}

/// Has the running daemon delete; returns when it is done. `None` if none runs.
pub fn ask_prune(root: &Path, policy: Policy, force: bool) -> Option<Result<Report>> {
    match ask(root, &Request::Prune { policy, force }, None) {
        Ok(Reply::Pruned(report)) => Some(Ok(*report)),
        Ok(_) => Some(Err(Error::bug("the daemon answered something else"))),
        Err(error) if error.class() == Class::Busy && super::status(root).is_none() => None,
        Err(error) => Some(Err(error)),
    }
}
