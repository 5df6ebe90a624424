//! Captures a Redis source from its append-only files, where it may not be replicated from.
//!
//! The files are read on the server's own host, as the server writes them (`aof.c`): a base, which
//! is an RDB file and serves as the baseline, and behind it increments, one after the other. Their
//! bytes are kept exactly. A place is a file and an offset in it.
//!
//! `manifest` reads which files there are, `chain` proves that one follows the other and keeps the
//! server from removing them unread, `clock` samples the server's clock against their end, `tail`
//! puts it together.
//!
//! **Invariant:** that a file goes on where another one ends is proved by both having been live at
//! once; what was not seen to be so is a break.

mod baseline;
mod chain;
pub(super) mod clock;
pub(crate) mod manifest;
mod tail;

use super::control::Control;
use super::{canary, hold, locate, setup};
use crate::clock::Timestamp;
use crate::engine::{Aof, Hold, Located, Placed, Source, SourceOptions, Work};
use crate::error::{Error, Result};
use crate::manifest::Setup;
use crate::position::Position;
use crate::record::{BaselineTaken, Captured, Piece, Recalled, Server};
use bytes::Bytes;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::{mpsc, watch};

/// A Redis or Valkey server that is captured from its append-only files.
#[derive(Debug)]
pub struct AofSource {
    options: SourceOptions,
    aof: Aof,
    memory: Mutex<Memory>,
}

/// What one connection, or the archive, tells the next connection.
#[derive(Debug, Default)]
struct Memory {
    /// Why the files cannot be gone on with.
    broken: Option<String>,
    /// Where the archive ends, and the bytes before it.
    last: Option<(Position, Bytes)>,
    /// The run id of the server that wrote them.
    identity: String,
    /// The file that is read now, and the earliest instant for which its records are timed.
    marked: Option<(String, Timestamp)>,
    /// How often a connection was begun or ended.
    tails: u64,
    /// The name of the base that was last copied.
    copied: Option<String>,
}

/// Whether the folder is where the server writes its append-only files.
///
/// # Errors
/// Refused, if it writes none; usage, if it writes elsewhere.
pub(super) async fn check_folder(
    options: &SourceOptions,
    aof: &Aof,
    control: &mut Control,
) -> Result<()> {
    tail::check_folder(&AofSource::new(options.clone(), aof.clone()), control).await
}

impl AofSource {
    /// A source with these options. Looks at nothing yet.
    pub fn new(options: SourceOptions, aof: Aof) -> Self {
        Self { options, aof, memory: Mutex::default() }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for AofSource {
    fn tail(
        &self,
        resume: Option<Position>,
        out: mpsc::Sender<Captured>,
        durable: watch::Receiver<Option<Position>>,
    ) -> Work<'_, ()> {
        Box::pin(async {
            let ended = tail::tail(self, resume, out, durable).await;
            // A baseline that waits for it need not.
            self.memory().tails += 1;
            ended
        })
    }

    fn baseline(&self, out: mpsc::Sender<Bytes>) -> Work<'_, BaselineTaken> {
        Box::pin(baseline::take(self, out))
    }

    fn recall(&self, server: &Server, last: Option<Recalled>) {
        let mut memory = self.memory();
        memory.identity.clone_from(&server.identity);
        memory.last = last.map(|last| (last.place, last.before));
    }

    fn setup(&self) -> Work<'_, Option<Setup>> {
        Box::pin(async { setup::read(&self.options.endpoint).await.map(Some) })
    }

    fn place<'a>(&'a self, _name: &'a str) -> Work<'a, Placed> {
        Box::pin(async {
            let mut control = Control::connect(&self.options.endpoint).await?;
            clock::place(&mut control, &self.aof.dir).await
        })
    }

    fn canary(&self) -> Work<'_, ()> {
        Box::pin(canary::write(&self.options.endpoint))
    }

    fn hold(&self) -> Work<'_, Box<dyn Hold>> {
        let files = Some(self.aof.dir.clone());
        Box::pin(hold::Pause::prepare(&self.options.endpoint, files))
    }

    fn locate(
        &self,
        from: Position,
        pieces: mpsc::Receiver<Result<Piece>>,
        offset: u64,
    ) -> Work<'_, Located> {
        Box::pin(locate::locate(from, pieces, offset))
    }
}

/// Work on files, off the threads that serve connections.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::bug("read append-only files").source(error))?
}
