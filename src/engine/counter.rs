//! Counts what a full copy holds while it is written, where its bytes tell that.
//!
//! **Invariant:** what cannot be counted is no count, and never holds a baseline up or breaks it.

use super::redis;
use crate::error::Result;
use crate::manifest::EngineKind;
use crate::record::Contents;
use bytes::Bytes;
use std::thread::JoinHandle;
use tokio::sync::mpsc;

/// Pieces that may wait to be counted.
const WAITING: usize = 4;

/// Counts on a thread of its own. Not for a thread of the runtime.
#[derive(Debug)]
pub struct Counter {
    work: Option<Work>,
}

#[derive(Debug)]
struct Work {
    pieces: mpsc::Sender<Result<Bytes>>,
    counting: JoinHandle<Result<Contents>>,
}

impl Counter {
    /// For copies of this kind of system. Those of MySQL are counted by the server.
    pub fn new(engine: EngineKind) -> Self {
        let work = match engine {
            EngineKind::Mysql => None,
            EngineKind::Redis => {
                let (pieces, receive) = mpsc::channel(WAITING);
                let counting = std::thread::spawn(move || redis::count(receive));
                Some(Work { pieces, counting })
            }
        };
        Self { work }
    }

    /// Takes the next piece.
    pub fn feed(&mut self, piece: &Bytes) {
        if let Some(Work { pieces, .. }) = &self.work {
            // One that gave up says why at the end.
            drop(pieces.blocking_send(Ok(piece.clone())));
        }
    }

    /// What there was; `None` if that could not be told.
    pub fn finish(self) -> Option<Contents> {
        let Work { pieces, counting } = self.work?;
        drop(pieces);
        match counting.join() {
            Ok(Ok(contents)) => Some(contents),
            Ok(Err(error)) => {
                tracing::warn!("the keys of the baseline were not counted: {error}");
                None
            }
            Err(_) => {
                tracing::error!("the keys of the baseline were not counted: a panic");
                None
            }
        }
    }
}
