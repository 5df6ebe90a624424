//! Samples a source's clock against its replication offset, beside the stream.
//!
//! The stream itself carries no time. A sample is read in one `MULTI; TIME; ROLE; EXEC`, so it is
//! exact whatever the replication lag. A sampler that fails is no reason to stop capturing: it
//! reconnects, and meanwhile the samples are missing.
//!
//! **Invariant:** a sample is of the server that the stream comes from: after a reconnect the
//! run id must still be the same.

use super::control::{Control, Sample};
use crate::engine::Endpoint;
use crate::error::{Error, Result};
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

/// The reading end of a sampler.
#[derive(Debug)]
pub(super) struct Samples {
    ready: mpsc::Receiver<Sample>,
    /// Whether a question is on its way to the server and its answer not here yet.
    asking: watch::Receiver<bool>,
}

impl Samples {
    /// The next sample, when there is one. Pends for ever once the sampler has ended.
    pub(super) async fn next(&mut self) -> Sample {
        match self.ready.recv().await {
            Some(sample) => sample,
            None => std::future::pending().await,
        }
    }

    /// Waits for the sample that is on its way, if one is, and gives all that have arrived.
    ///
    /// A sample taken after this returned lies behind everything received before.
    pub(super) async fn settle(&mut self) -> impl Iterator<Item = Sample> {
        let idle = self.asking.wait_for(|asking| !asking);
        // An answer that takes longer comes late; its sample is then left out.
        drop(tokio::time::timeout(PATIENCE, idle).await);
        std::iter::from_fn(|| self.ready.try_recv().ok())
    }
}

/// Starts sampling on `control`, a connection to the server whose run id is `identity`.
pub(super) fn start(
    tasks: &mut JoinSet<Error>,
    control: Control,
    endpoint: Endpoint,
    identity: String,
    every: Duration,
) -> Samples {
    let (ready_in, ready) = mpsc::channel(WAITING_MAX);
    let (asking_in, asking) = watch::channel(false);
    tasks.spawn(async move {
        let mut control = Some(control);
        let mut warned = false;
        let mut tick = tokio::time::interval(every.max(Duration::from_millis(1)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            asking_in.send_replace(true);
            let sample = sample(&mut control, &endpoint, &identity).await;
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
                    control = None;
                    if !warned {
                        tracing::warn!(%endpoint, %error, "clock samples are missing");
                        warned = true;
                    }
                }
            }
            asking_in.send_replace(false);
            if control.is_none() {
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    });
    Samples { ready, asking }
}

async fn sample(
    control: &mut Option<Control>,
    endpoint: &Endpoint,
    identity: &str,
) -> Result<Option<Sample>> {
    if control.is_none() {
        let mut fresh = Control::connect(endpoint).await?;
        if fresh.server().await?.identity != identity {
            return Err(Error::unavailable(format!("{endpoint} is another server now")));
        }
        *control = Some(fresh);
    }
    match control {
        Some(control) => control.sample().await,
        None => Ok(None),
    }
}
