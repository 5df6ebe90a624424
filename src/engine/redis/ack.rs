//! Acknowledges to a source what is durable, in a task of its own.
//!
//! The source drops a replica that it does not hear for `repl-timeout`, so this task never waits
//! for anything but its own socket. `WAIT` on the source counts an acknowledgement, which makes
//! `WAIT 1` mean "in the archive".
//!
//! **Invariant:** the offset acknowledged is a durable one of this stream, or the one the stream
//! was resumed at. `FACK` is never sent: pitr has no append-only file.

use super::client::encode;
use crate::engine::tls::Stream;
use crate::error::{Context, Error, Result};
use crate::position::Position;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncWriteExt, WriteHalf};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// How often the source hears from us: as often as from any replica (`replicationCron`).
const EVERY: Duration = Duration::from_secs(1);

/// What the source asked to be acknowledged.
#[derive(Debug, Default)]
pub(super) struct Acks {
    wanted: AtomicU64,
    asked: Notify,
}

impl Acks {
    /// The source wants to hear at once, and again when everything before `offset` is durable.
    pub(super) fn want(&self, offset: u64) {
        self.wanted.fetch_max(offset, Ordering::Relaxed);
        self.asked.notify_one();
    }
}

/// Starts acknowledging. Positions count that are in one of `logs`, at `from` or later; before
/// there is one, `initial` is said.
pub(super) fn start(
    tasks: &mut JoinSet<Error>,
    mut writer: WriteHalf<Stream>,
    mut durable: watch::Receiver<Option<Position>>,
    logs: Vec<String>,
    from: u64,
    initial: u64,
) -> Arc<Acks> {
    let acks = Arc::new(Acks::default());
    let shared = Arc::clone(&acks);
    tasks.spawn(async move {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut said = initial;
        loop {
            let missing = shared.wanted.load(Ordering::Relaxed) > said;
            tokio::select! {
                _ = tick.tick() => {}
                () = shared.asked.notified() => {}
                changed = durable.changed(), if missing => {
                    if changed.is_err() {
                        // Nobody makes anything durable any more; go on saying what is.
                        tick.tick().await;
                    }
                }
            }
            said = match &*durable.borrow_and_update() {
                Some(p) if p.offset >= from && logs.contains(&p.log) => p.offset.max(said),
                _ => said,
            };
            if let Err(error) = acknowledge(&mut writer, said).await {
                return error;
            }
        }
    });
    acks
}

async fn acknowledge(writer: &mut WriteHalf<Stream>, offset: u64) -> Result<()> {
    let ack = encode(&[b"REPLCONF", b"ACK", offset.to_string().as_bytes()]);
    writer.write_all(&ack).await.unavailable(|| "acknowledge to the source".into())
}
