//! Samples a source's clock against the end of its log, beside the stream.
//!
//! For streams that carry no time, or too coarse a one. A sampler that fails is no reason to stop
//! capturing: it connects again, and meanwhile the samples are missing.
//!
//! **Invariant:** samples arrive in the order in which they were taken.

use crate::clock::Timestamp;
use crate::error::{Error, Result};
use std::fmt::Display;
use std::future::Future;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

/// How many samples may wait while the stream's consumer stalls: at 100 ms, nearly seven minutes.
const WAITING_MAX: usize = 4096;

/// How long to wait before a sampler that failed connects again.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// How long to wait for a sample that is on its way.
const PATIENCE: Duration = Duration::from_millis(200);

/// How far a clock may be from where it should be until it is said that it stepped.
const STEP_MIN: Duration = Duration::from_millis(500);

/// What was read from a source's clock.
pub(super) trait Timed {
    /// The source's clock.
    fn at(&self) -> Timestamp;
}

/// Takes one sample after the other.
pub(super) trait Sampler: Send + 'static {
    /// A place in the log, and an instant of the source's clock.
    type Sample: Timed + Send;

    /// Takes a sample; `None` if the source has none to give now.
    fn sample(&mut self) -> impl Future<Output = Result<Option<Self::Sample>>> + Send;

    /// Forgets the connection: the next sample needs a new one.
    fn disconnect(&mut self);
}

/// Notices that a clock was set, by one that only goes on.
#[derive(Debug, Default)]
struct Steps {
    last: Option<(Timestamp, Instant, Instant)>,
}

impl Steps {
    /// Takes a reading, which was asked for and answered at these moments; says by how much the
    /// clock was set since the one before, if it was.
    fn look(&mut self, at: Timestamp, asked: Instant, answered: Instant) -> Option<String> {
        let (last, last_asked, last_answered) = self.last.replace((at, asked, answered))?;
        let most = answered.duration_since(last_asked) + STEP_MIN;
        let least = asked.saturating_duration_since(last_answered).saturating_sub(STEP_MIN);
        if at > last.after(most) {
            return Some(format!(
                "forward by about {:.1} s",
                at.since(last.after(most)).as_secs_f64()
            ));
        }
        let behind = last.after(least).since(at);
        (at < last.after(least)).then(|| format!("back by about {:.1} s", behind.as_secs_f64()))
    }
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
        let mut steps = Steps::default();
        let mut tick = tokio::time::interval(every.max(Duration::from_millis(1)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            asking_in.send_replace(true);
            let asked = Instant::now();
            let sample = sampler.sample().await;
            if let Ok(Some(sample)) = &sample
                && let Some(step) = steps.look(sample.at(), asked, Instant::now())
            {
                tracing::warn!(
                    %source,
                    "the source's clock was set {step}; instants are counted in the order of the \
                     log, so they stand still until a clock that was set back has caught up"
                );
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_is_noticed_and_a_slow_answer_is_not() {
        let (mut steps, begun) = (Steps::default(), Instant::now());
        let mut look = |clock_ms: i64, asked_ms: u64, answered_ms: u64| {
            let at = Timestamp::from_micros(1_700_000_000_000_000 + clock_ms * 1000);
            let [asked, answered] =
                [asked_ms, answered_ms].map(|ms| begun + Duration::from_millis(ms));
            steps.look(at, asked, answered)
        };
        assert_eq!(look(0, 0, 1), None);
        assert_eq!(look(100, 100, 101), None);
        // The answer took 5 s; the clock was read at some moment of them.
        assert_eq!(look(4900, 200, 5200), None);
        assert_eq!(look(5300, 5300, 5301), None);
        assert_eq!(look(3_605_400, 5400, 5401).unwrap(), "forward by about 3599.5 s");
        assert_eq!(look(3_605_500, 5500, 5501), None);
        assert_eq!(look(5600, 5600, 5601).unwrap(), "back by about 3599.9 s");
        assert_eq!(look(5700, 5700, 5701), None);
    }
}
