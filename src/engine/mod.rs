//! The systems that pitr captures from and restores into, one folder each.
//!
//! An engine yields [`Captured`] values and takes [`Piece`]s. It knows no segment, store or
//! catalog: a new system is one new folder, and one new arm in [`open_source`] and
//! [`open_target`].
//!
//! **Invariant:** an engine never hands over a byte that it has not received, and never skips
//! one: what it cannot connect to the position asked for is [`Continuity::Broken`].
//!
//! [`Continuity::Broken`]: crate::record::Continuity::Broken

mod endpoint;
pub mod canary;
mod counter;
pub mod checkup;
mod expiry;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod guard;
#[cfg(test)]
mod mutate;
mod private;
pub mod inspect;
mod keys;
mod unfinished;
pub mod decode;
pub mod place;
pub mod digest;
mod sample;
mod timing;
mod tls;
pub mod mysql;
pub mod redis;

pub use counter::Counter;
pub use endpoint::{Endpoint, Secret, TlsMode, TlsOptions};
pub(in crate::engine) use expiry::OUT_OF_THE_WAY_MS;
pub use expiry::{Expired, Expiry, Ttl};
pub use keys::Keys;
pub use timing::SPAN;

use crate::clock::Timestamp;
use crate::error::Result;
use crate::manifest::{BaselineMeta, EngineKind, Setup};
use crate::position::Position;
use crate::record::{
    Applied, BaselineTaken, Captured, Contents, Cut, OpenBaseline, OpenLog, Parse, Piece, Recalled,
    Server, TimeSource,
};
use bytes::Bytes;
use inspect::Check;
use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Work that an engine does, to be awaited.
pub type Work<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// A system that is captured from.
pub trait Source: Send + Sync + fmt::Debug {
    /// Connects once and hands over what the source streams, beginning at `resume` (or where the
    /// engine's rules say that a first capture begins). Returns when the connection ends, always
    /// with the reason as an error; the caller reconnects. Ends quietly with `Ok` only when `out`
    /// was closed.
    ///
    /// `durable` is the place up to which everything is on disk; the engine acknowledges that,
    /// and nothing else, to the source. Back-pressure is `out` being full.
    fn tail(
        &self,
        resume: Option<Position>,
        out: mpsc::Sender<Captured>,
        durable: watch::Receiver<Option<Position>>,
    ) -> Work<'_, ()>;

    /// Takes a full copy beside the running tail and streams it into `out`.
    fn baseline(&self, out: mpsc::Sender<Bytes>) -> Work<'_, BaselineTaken>;

    /// Tells what the archive ends with: the server that it came from, and the bytes directly
    /// before the place where the next stream is to go on. With it, an engine can tell a log from
    /// another one that looks the same from outside.
    fn recall(&self, _server: &Server, _last: Option<Recalled>) {}

    /// Reads what the source is besides its data; `None` of one whose log or baselines have it.
    ///
    /// # Errors
    /// Unavailable, if it cannot be reached. What the account may not read is no error.
    fn setup(&self) -> Work<'_, Option<Setup>> {
        Box::pin(async { Ok(None) })
    }

    /// Reads where the log ends now. Leaves `name` there in the log itself, if the engine can do
    /// that without changing data, and the account may.
    ///
    /// # Errors
    /// Unavailable, if the source does not say it.
    fn place<'a>(&'a self, name: &'a str) -> Work<'a, Placed>;

    /// Writes the source's time into the source itself: see [`canary`].
    ///
    /// # Errors
    /// Unavailable, if it cannot be reached or does not allow it.
    fn canary(&self) -> Work<'_, ()>;

    /// Makes ready to hold the source's writes for a moment. Holds nothing yet.
    ///
    /// # Errors
    /// Unavailable, if the source cannot be reached; refused, if it takes its writes from another.
    fn hold(&self) -> Work<'_, Box<dyn Hold>>;

    /// Walks an archived stream, which begins at `from`, up to the byte at `offset` of the log
    /// `from.log`, and says what stands there.
    ///
    /// # Errors
    /// Corrupt, if the stream ends before `offset`, or `offset` lies within a record.
    fn locate(
        &self,
        from: Position,
        pieces: mpsc::Receiver<Result<Piece>>,
        offset: u64,
    ) -> Work<'_, Located>;
}

/// The end of a source's log at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The place. `gtids` and `db` are left empty: they are derived from the archive's own stream.
    pub position: Position,
    /// The source's clock: everything committed until then lies before the place.
    pub at: Timestamp,
    /// The server that said it.
    pub server: Server,
    /// Whether the log carries a name directly behind the place.
    pub published: bool,
}

/// Holds the writes of a source, from [`take`](Self::take) until it is released or dropped. A
/// process that dies holds nothing any more.
pub trait Hold: Send + fmt::Debug {
    /// Holds writes, at most for `most`: the server itself then lets go.
    ///
    /// # Errors
    /// Unavailable, if that could not be done in this time; usage, if the account may not.
    fn take(&mut self, most: Duration) -> Work<'_, ()>;

    /// Where the log ends meanwhile.
    fn place(&mut self) -> Work<'_, Placed>;

    /// Lets writers go on, and says for how long they had to wait.
    ///
    /// # Errors
    /// Unavailable, if writes were not held all the time.
    fn release(self: Box<Self>) -> Work<'static, Duration>;
}

/// What [`Source::locate`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// The place, with everything that a reader has to know to begin there.
    pub position: Position,
    /// The largest commit time among the records walked over, as far as the stream itself has it.
    pub last_at: Option<Timestamp>,
}

/// A system that is restored into. The calls come in the order in which they stand here.
pub trait Target: Send + fmt::Debug {
    /// Looks at the target without changing anything, and says which server it is.
    ///
    /// # Errors
    /// Refused, if it is not empty, too old for what will be applied, or not fit otherwise.
    /// Unavailable, if it cannot be reached or a tool is missing.
    fn preflight<'a>(&'a mut self, needs: &'a Needs) -> Work<'a, Server>;

    /// After [`Target::preflight`]: the way the log will be applied, where there is a choice.
    fn way(&self) -> Option<Way> {
        None
    }

    /// After [`Target::preflight`]: whether [`examine`](Self::examine) reads what it is given.
    fn reads_ahead(&self) -> bool {
        false
    }

    /// Reads what is going to be loaded and replayed, and says whether the target can take it.
    /// Changes nothing.
    ///
    /// # Errors
    /// Refused, if it cannot.
    fn examine<'a>(
        &'a mut self,
        _baseline: &'a BaselineMeta,
        _open: OpenBaseline,
        _log: OpenLog,
        _cut: &'a Cut,
    ) -> Work<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    /// After [`Target::finish`]: what became of the times at which keys expire.
    fn expired(&self) -> Option<Expired> {
        None
    }

    /// What it tells while [`load`](Self::load) goes on, if anything.
    fn meter(&self) -> Option<Arc<Meter>> {
        None
    }

    /// Loads a baseline: the bytes as [`Source::baseline`] gave them. They may be read again where
    /// a connection was lost.
    fn load<'a>(&'a mut self, baseline: &'a BaselineMeta, open: OpenBaseline) -> Work<'a, ()>;

    /// Applies the log behind the baseline up to the cut, and waits until all of it is applied.
    fn replay<'a>(
        &'a mut self,
        baseline: &'a BaselineMeta,
        log: OpenLog,
        cut: &'a Cut,
    ) -> Work<'a, Applied>;

    /// Whether everything is there to look at what is restored, besides what restores it.
    ///
    /// # Errors
    /// Unavailable, if a tool is missing.
    fn can_inspect<'a>(&'a mut self, _needs: &'a Needs) -> Work<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    /// After [`Target::load`]: what the target holds, counted as the source was. `None` if it
    /// cannot be told.
    fn contents<'a>(&'a mut self, _baseline: &'a BaselineMeta) -> Work<'a, Option<Contents>> {
        Box::pin(async { Ok(None) })
    }

    /// Reads everything that is there. Asked for twice, before and after [`Target::finish`]: a
    /// target looks when it can. With an instant, the canary has to be of shortly before it.
    fn inspect<'a>(
        &'a mut self,
        _baseline: &'a BaselineMeta,
        _is_finished: bool,
        _canary: Option<Timestamp>,
    ) -> Work<'a, Vec<Check>> {
        Box::pin(async { Ok(vec![]) })
    }

    /// Makes the target a server of its own again, and checks that it holds what was applied.
    /// Says in a sentence what the check was.
    ///
    /// # Errors
    /// Finding, if the check failed.
    fn finish<'a>(&'a mut self, applied: &'a Applied) -> Work<'a, String>;
}

/// What a target has to be able to take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// The version of the server that the baseline and the log come from, the newest of them.
    pub version: String,
    /// `server_id`s in the archive, which the target must not have itself.
    pub origins: Vec<u32>,
    /// Identities of all servers that were ever captured: never a target.
    pub sources: Vec<String>,
    /// What the source was besides its data, if that is known.
    pub setup: Option<Setup>,
    /// Whether some of the transactions that are replayed have no GTIDs, although the engine may
    /// have them; and whether some have.
    pub anonymous: bool,
    /// See [`Self::anonymous`].
    pub named: bool,
}

/// What a target tells of a baseline while it loads it.
#[derive(Debug, Default)]
pub struct Meter {
    tables: AtomicU64,
    begun: AtomicU64,
}

impl Meter {
    /// Takes note that the load begins, perhaps once more.
    pub(crate) fn begin(&self) {
        self.tables.store(0, Ordering::Relaxed);
        self.begun.store(0, Ordering::Relaxed);
    }

    /// Takes note that a table is begun.
    pub(crate) fn begin_table(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes note that a table is in, with all of its keys.
    pub(crate) fn end_table(&self) {
        self.tables.fetch_add(1, Ordering::Relaxed);
    }
}

impl fmt::Display for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tables = self.tables.load(Ordering::Relaxed);
        let open = self.begun.load(Ordering::Relaxed).saturating_sub(tables);
        write!(f, "{tables} tables in, {open} under way")
    }
}

/// Everything that an engine has to know to capture.
#[derive(Debug, Clone)]
pub struct SourceOptions {
    /// Name of the source, for messages.
    pub name: String,
    /// Kind of system.
    pub engine: EngineKind,
    /// Where it is.
    pub endpoint: Endpoint,
    /// Further servers with the same history, in the order in which they are gone on from when
    /// the first one fails.
    pub standbys: Vec<Endpoint>,
    /// How often the clock of a Redis source is sampled.
    pub sample_every: Duration,
    /// Commits of a MySQL source wait until the archive has them, where the source is set up for
    /// that.
    pub semi_sync: bool,
    /// Baselines of a MySQL source carry row counts and digests, for which it reads all rows a
    /// second time.
    pub digests: bool,
    /// The program that dumps a MySQL source; found on PATH by default.
    pub dump_command: Option<String>,
    /// The only databases of a MySQL that a restore brings back, unless it is told otherwise; empty
    /// for all. Everything is captured.
    pub databases: Vec<String>,
    /// Captures a Redis source from its append-only files instead of its replication stream.
    pub aof: Option<Aof>,
}

/// Where the append-only files of a Redis source are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aof {
    /// The server's folder of them.
    pub dir: PathBuf,
    /// Where links to those that are not archived yet are kept, so that the server's removal of
    /// one does not lose it.
    pub pins: PathBuf,
}

impl SourceOptions {
    /// All servers, the first one first.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        std::iter::once(&self.endpoint).chain(&self.standbys)
    }
}

/// Where a restore goes.
#[derive(Debug, Clone)]
pub enum Destination {
    /// A running, empty server.
    Running(Endpoint),
    /// A fresh folder, made ready to start.
    Folder(PathBuf),
}

/// How a log is applied to a running server that has an applier of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Apply {
    /// By the server itself where it can be made a replica, else as statements.
    #[default]
    Auto,
    /// By the server itself, as a replica of pitr.
    Native,
    /// The same, with small transactions merged into larger ones.
    Merged,
    /// As statements over one ordinary connection.
    Sql,
}

/// The way that a target's log will be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// `native`, `merged` or `sql`.
    pub apply: &'static str,
    /// Why this way.
    pub why: String,
}

/// Everything that an engine has to know to restore.
#[derive(Debug, Clone)]
pub struct TargetOptions {
    /// Name of the source that is restored, for messages.
    pub name: String,
    /// Kind of system.
    pub engine: EngineKind,
    /// Where to.
    pub destination: Destination,
    /// The address on which pitr serves the log; loopback by default.
    pub listen: Option<std::net::SocketAddr>,
    /// How the log is applied, where there is a choice.
    pub apply: Apply,
    /// The only databases to be restored; all, if there are none here.
    pub databases: Vec<String>,
    /// What becomes of the times at which keys expire.
    pub expiry: Expiry,
    /// Which keys of Redis are restored.
    pub keys: Keys,
    /// Whether a running server that is not empty is written into, where only some keys are restored.
    pub in_place: bool,
    /// What becomes of what an interrupted restore left in a running server.
    pub leftover: Leftover,
    /// What is restored, from which baseline and to where, in words that are the same for the same
    /// restore only. Without them, none goes on with what an interrupted one left.
    pub purpose: String,
}

/// What becomes of a running server that an interrupted restore left half filled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Leftover {
    /// Nothing: it is only looked at.
    #[default]
    Look,
    /// A restore for the same purpose goes on with it, another one is refused.
    GoOn,
    /// It is emptied.
    Clean,
}

/// What times the records of a source of this version.
pub fn times(engine: EngineKind, version: &str) -> TimeSource {
    match engine {
        EngineKind::Mysql => mysql::times(version),
        EngineKind::Redis => TimeSource::Sampled,
    }
}

/// A source, ready to be captured from. Does not connect yet.
pub fn open_source(options: SourceOptions) -> Box<dyn Source> {
    match options.engine {
        EngineKind::Mysql => Box::new(mysql::MysqlSource::new(options)),
        EngineKind::Redis => match options.aof.clone() {
            Some(aof) => Box::new(redis::AofSource::new(options, aof)),
            None => Box::new(redis::RedisSource::new(options)),
        },
    }
}

/// What reads an archived log from `start` on, which lies between two records. Needs no server.
pub fn parser(engine: EngineKind, start: &Position) -> Box<dyn Parse> {
    match engine {
        EngineKind::Mysql => Box::new(mysql::Shape::new(start.offset)),
        EngineKind::Redis => Box::new(redis::Commands::new(start)),
    }
}

/// What decodes an archived log into records. Needs no server. [`Decode::go_on`] comes first.
///
/// [`Decode::go_on`]: decode::Decode::go_on
pub fn decoder(engine: EngineKind, interest: decode::Interest) -> Box<dyn decode::Decode> {
    match engine {
        EngineKind::Mysql => Box::new(mysql::Changes::new(interest)),
        EngineKind::Redis => Box::new(redis::Changes::new(interest)),
    }
}

/// A target, ready for [`Target::preflight`]. Does not connect yet.
pub fn open_target(options: TargetOptions) -> Box<dyn Target> {
    let persists = options.expiry.ttl == Ttl::Persist;
    match (options.engine, options.destination.clone()) {
        (EngineKind::Redis, _) if !options.keys.is_all() => {
            Box::new(redis::RedisPart::new(options))
        }
        // What was alive is known only where a server has it.
        (EngineKind::Redis, Destination::Folder(_)) if persists => {
            Box::new(redis::RedisPart::new(options))
        }
        (EngineKind::Mysql, Destination::Running(at)) => {
            Box::new(mysql::MysqlTarget::running(options, at))
        }
        (EngineKind::Mysql, Destination::Folder(dir)) => {
            Box::new(mysql::MysqlTarget::folder(options, dir))
        }
        (EngineKind::Redis, Destination::Running(at)) => {
            Box::new(redis::RedisServer::new(options, at))
        }
        (EngineKind::Redis, Destination::Folder(dir)) => {
            Box::new(redis::RedisFolder::new(options, dir))
        }
    }
}
