//! Samples a source's clock against the end of its log, beside the stream.
//!
//! For streams that carry no time, or too coarse a one. A sampler that fails is no reason to stop
//! capturing: it connects again, and meanwhile the samples are missing.
//!
//! **Invariant:** samples arrive in the order in which they were taken.

use crate::error::{Error, Result};
use std::fmt::Display;
use std::future::Future;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// How many samples may wait while the stream's consumer stalls: at 100 ms, nearly seven minutes.
const WAITING_MAX: usize = 4096;

/// How long to wait before a sampler that failed connects again.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// How long to wait for a sample that is on its way.
const PATIENCE: Duration = Duration::from_millis(200);

/// Takes one sample after the other.
pub(super) trait Sampler: Send + 'static {
    /// A place in the log, and an instant of the source's clock.
    type Sample: Send;

    /// Takes a sample; `None` if the source has none to give now.
    fn sample(&mut self) -> impl Future<Output = Result<Option<Self::Sample>>> + Send;

    /// Forgets the connection: the next sample needs a new one.
    fn disconnect(&mut self);
}

/// The reading end of a sampler.
#[derive(Debug)]
pub(super) struct Samples<S> {
    ready: mpsc::Receiver<S>,
    /// Whether a question is on its way to the server and its answer not here yet.
    asking: watch::Receiver<bool>,
}

impl<S> Samples<S> {
    /// The reading end of these.
    #[cfg(test)]
    pub(super) fn of(ready: mpsc::Receiver<S>, asking: watch::Receiver<bool>) -> Self {
        Self { ready, asking }
    }

    /// The next sample, when there is one. Pends for ever once the sampler has ended.
    pub(super) async fn next(&mut self) -> S {
        match self.ready.recv().await {
            Some(sample) => sample,
            None => std::future::pending().await,
        }
    }

    /// Waits for the sample that is on its way, if one is, and gives all that have arrived.
    ///
    /// A sample taken after this returned lies behind everything received before.
    pub(super) async fn settle(&mut self) -> impl Iterator<Item = S> {
        let idle = self.asking.wait_for(|asking| !asking);
        // An answer that takes longer comes late; its sample is then left out.
        drop(tokio::time::timeout(PATIENCE, idle).await);
        std::iter::from_fn(|| self.ready.try_recv().ok())
    }
}

/// Starts a sampler of `source`.
pub(super) fn start<T: Sampler>(
    tasks: &mut JoinSet<Error>,
    mut sampler: T,
    source: impl Display + Send + 'static,
    every: Duration,
) -> Samples<T::Sample> {
    let (ready_in, ready) = mpsc::channel(WAITING_MAX);
    let (asking_in, asking) = watch::channel(false);
    tasks.spawn(async move {
        let mut warned = false;
        let mut tick = tokio::time::interval(every.max(Duration::from_millis(1)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            asking_in.send_replace(true);
            let sample = sampler.sample().await;
            let failed = sample.is_err();
            match sample {
                Ok(Some(sample)) => {
                    warned = false;
                    // A full queue loses samples, not bytes: the time index gets coarser.
                    if ready_in.try_send(sample).is_err() && ready_in.is_closed() {
                        std::future::pending::<()>().await;
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    sampler.disconnect();
                    if !warned {
                        tracing::warn!(%source, %error, "clock samples are missing");
                        warned = true;
                    }
                }
            }
            asking_in.send_replace(false);
            if failed {
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    });
    Samples { ready, asking }
}
