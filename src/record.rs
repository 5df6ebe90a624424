//! What an engine yields while it captures, and takes while it restores.
//!
//! A record (a transaction, a Redis command or MULTI…EXEC) may be larger than memory, so records
//! never travel as values of their own. Bytes travel in chunks that may begin and end anywhere;
//! each chunk says which records end in it and where its last whole record ends.
//!
//! **Invariant:** the chunks between two [`Captured::Log`] are consecutive: each begins at the
//! offset at which the one before ended.

use crate::clock::Timestamp;
use crate::error::Result;
use crate::position::Position;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// The raw length, in bytes, at which an engine hands a chunk over without waiting for more.
pub const CHUNK_BYTES: usize = 1 << 20;

/// "Everything committed at or before `at` lies before `offset`."
///
/// Within a log, marks grow in both values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Offset in the log.
    pub offset: u64,
    /// The source's own clock. Where it stepped back, its latest time is held until it has caught up.
    pub at: Timestamp,
    /// How exact `at` is, in µs: how long reading the clock and the offset took together, and for
    /// how long the time was held.
    #[serde(default)]
    pub span_micros: u32,
}

/// Reads the bytes of a log as its engine does, and makes nothing of them.
pub trait Parse {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// Corrupt, if they are not those of such a log.
    fn push(&mut self, bytes: Bytes) -> Result<()>;

    /// Whether the bytes so far end between two records, as far as their form tells.
    fn is_between_records(&self) -> bool;
}

impl Mark {
    /// A mark whose time is as exact as the clock of the source.
    pub fn new(offset: u64, at: Timestamp) -> Self {
        Self { offset, at, span_micros: 0 }
    }

    /// A mark that was read within `span`.
    pub fn within(offset: u64, at: Timestamp, span: Duration) -> Self {
        Self { offset, at, span_micros: u32::try_from(span.as_micros()).unwrap_or(u32::MAX) }
    }

    /// The same mark, not before `floor`: marks of a log grow in time although its source's clock
    /// may step back.
    #[must_use]
    pub fn held_to(self, floor: Timestamp) -> Self {
        if self.at >= floor {
            return self;
        }
        let span = self.span() + floor.since(self.at);
        Self::within(self.offset, floor, span)
    }

    /// How exact its time is.
    pub fn span(&self) -> Duration {
        Duration::from_micros(u64::from(self.span_micros))
    }
}

/// A record that somebody may want to go back before: a DROP, a FLUSHALL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Landmark {
    /// Offset at which the record begins.
    pub offset: u64,
    /// When it was committed, as far as known.
    pub at: Option<Timestamp>,
    /// What it says, shortened; without secrets.
    pub text: String,
    /// How many more followed that were not kept.
    #[serde(default, skip_serializing_if = "is_none")]
    pub more: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_none(more: &u32) -> bool {
    *more == 0
}

/// Most landmarks that are kept of a chunk, or of a block.
pub const LANDMARKS_MAX: usize = 64;

/// Adds a landmark; where there are `most` already, it is only counted.
pub fn add_landmark(to: &mut Vec<Landmark>, landmark: Landmark, most: usize) {
    if to.len() < most {
        to.push(landmark);
    } else if let Some(last) = to.last_mut() {
        last.more = last.more.saturating_add(landmark.more).saturating_add(1);
    }
}

/// How the commit times of a chunk came about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimeSource {
    /// The commit timestamp that the source wrote into the record (MySQL 8.0 and newer), in µs.
    #[default]
    Commit,
    /// The event header of the record's end, in seconds.
    Header,
    /// `(clock, offset)` samples taken from the source: see [`Mark`].
    Sampled,
}

/// Consecutive bytes of one log.
#[derive(Debug, Clone, Default)]
pub struct Chunk {
    /// Offset of the first byte in the log.
    pub start: u64,
    /// The bytes, exactly as the source has them. May be empty when only a mark is to be kept.
    pub bytes: Vec<u8>,
    /// How many records end in these bytes.
    pub records: u32,
    /// Where the last whole record in these bytes ends; `None` if they are all inside one record.
    /// Logs may be cut into segments here.
    pub whole: Option<Position>,
    /// Smallest commit time among the records that end here.
    pub first_at: Option<Timestamp>,
    /// Largest commit time among the records that end here.
    pub last_at: Option<Timestamp>,
    /// How the commit times came about.
    pub time: TimeSource,
    /// Clock samples that fall into these bytes, in order; offsets within `start..=end`.
    pub marks: Vec<Mark>,
    /// `server_id`s first seen in these bytes since the log was opened, as the events carry them.
    pub origins: Vec<u32>,
    /// Types of events first seen in these bytes since the log was opened that the engine does not
    /// know and may not pass over, each with the offset of the first such event.
    pub strange: Vec<(u8, u64)>,
    /// Commits of the source wait until this is durable: it is synced without waiting for more.
    pub urgent: bool,
    /// Landmarks among the records that end here, in order; at most [`LANDMARKS_MAX`].
    pub landmarks: Vec<Landmark>,
}

impl Chunk {
    /// Offset after the last byte.
    pub fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

/// Which server a stream comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// As the server announces it, such as `9.7.4` or `10.11.19-MariaDB-log`.
    pub version: String,
    /// What makes it this server: `server_uuid` of MySQL, run id of Redis.
    pub identity: String,
    /// Whether a MySQL did not give every transaction a GTID (`gtid_mode` was not ON).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub anonymous: bool,
}

/// What an archive ends with, for an engine that is to go on behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recalled {
    /// Where it ends.
    pub place: Position,
    /// Up to 64 KiB of the same log that it has directly before that place.
    pub before: Bytes,
    /// The last segment that has records: its first place, its last one, and how many they are.
    pub last_records: Option<(Position, Position, u64)>,
}

/// How a stream that was just opened relates to what the archive has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Continuity {
    /// It goes on at exactly the position asked for, proved by the engine's own arithmetic.
    Continues,
    /// Nothing was asked for: this is the first stream of the source.
    Begins,
    /// It goes on where the archive ends, with nothing left out and nothing twice, but in the log
    /// of another server (or behind records of the same log that the archive has already): proved
    /// by GTIDs. What offsets count in is another log from here on, whatever its name.
    Joins {
        /// The first bytes of that log, as far as a reader needs them (a binlog's format
        /// description), since the stream may begin in its middle.
        head: Bytes,
    },
    /// It goes back to an earlier place of the log that the archive has, and on from there: the
    /// source does not have what the archive has behind that place. Nothing is left out.
    Forks,
    /// What was archived is not in this source's history, or what lies between is lost. The
    /// reason is a sentence for the operator.
    Broken(String),
}

/// Whether commits of a source wait until the archive has them, from an instant on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protection {
    /// The instant, by the source's clock.
    pub at: Timestamp,
    /// Why they do not, a sentence for the operator; `None` if they do.
    pub lapse: Option<String>,
}

/// What an engine yields while it captures.
#[derive(Debug)]
pub enum Captured {
    /// Connected: the next chunk begins at `at`. Comes first after every connect.
    Opened {
        /// The server on the other side.
        server: Server,
        /// Where the stream begins.
        at: Position,
        /// Whether this goes on from the position asked for.
        continuity: Continuity,
        /// How far the source's clock is ahead of this host's, in µs; negative if it is behind.
        skew_micros: i64,
    },
    /// The stream goes on in another log (a new binlog file, a new replication id), in
    /// unbroken order.
    Log(Position),
    /// Bytes of the current log.
    Chunk(Chunk),
    /// Nothing new up to this mark, which lies at the end of what was handed over before.
    Alive(Mark),
    /// Commits begin, or cease, to wait for the archive. Comes only from sources that were asked
    /// to have them wait.
    Protection(Protection),
    /// A full copy that the source sent by itself (a Redis full resync), at the position at
    /// which the next `Opened` begins.
    Baseline {
        /// What and where it is.
        taken: BaselineTaken,
        /// The bytes; ends with `Ok` pieces, or with the error that makes the copy unusable.
        pieces: mpsc::Receiver<Result<Bytes>>,
    },
}

/// What is known about a full copy besides its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaselineTaken {
    /// The copy holds exactly what was committed before this place. `gtids` is left empty: it is
    /// derived from the archive's own stream.
    pub position: Position,
    /// An instant of the source's clock at which the copy's state was current: not before the
    /// last record that is in it.
    pub at: Timestamp,
    /// The server it was taken from.
    pub server: Server,
    /// What the file is, as the end of its name: `sql`, `rdb`.
    pub kind: &'static str,
    /// What the source itself counted, in the snapshot that was copied.
    pub contents: Option<Contents>,
}

/// What a server held at one moment. A restore is compared with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// Tables of MySQL whose rows a snapshot holds: those of InnoDB.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<TableContents>,
    /// Databases of Redis that have keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub databases: Vec<DatabaseContents>,
}

/// The rows of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableContents {
    /// `schema.table`.
    pub name: String,
    /// Number of rows, those of the history of a system-versioned table included.
    pub rows: u64,
    /// Digest (hex) of the multiset of rows, each as the server stores it.
    pub digest: String,
}

/// The keys of a database of Redis.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseContents {
    /// Its number.
    pub number: u32,
    /// Number of keys; some may be past their expiry.
    pub keys: u64,
    /// Those that have an expiry.
    pub expiring: u64,
}

/// A piece of an archived stream on its way back into a server.
#[derive(Debug, Clone)]
pub enum Piece {
    /// The next bytes are of this log, from this position on.
    Log {
        /// Where the next bytes stand.
        at: Position,
        /// The first bytes of the log (up to [`LOG_HEAD_BYTES`]), for engines that need its head
        /// (a binlog's format description) although the replay begins further on.
        head: Bytes,
    },
    /// Consecutive bytes of the log.
    Bytes(Bytes),
}

/// How many first bytes of a log come with [`Piece::Log`], at most.
pub const LOG_HEAD_BYTES: usize = 1 << 20;

/// Reads an archived stream from the beginning of a plan; may be called again to read it again.
/// The pieces end when the archive does; an error among them ends the replay with it.
pub type OpenLog = Arc<dyn Fn() -> mpsc::Receiver<Result<Piece>> + Send + Sync>;

/// Reads a baseline from its beginning; may be called again to read it again.
pub type OpenBaseline = Arc<dyn Fn() -> Result<mpsc::Receiver<Result<Bytes>>> + Send + Sync>;

/// Where a replay stops. Records are never cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cut {
    /// Before the first record, in log order, that was committed later than this.
    After(Timestamp),
    /// At this place: everything before it is in.
    At(Position),
}

/// A place in the stream that a receipt names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Landing {
    /// As the engine names it: a GTID, `file:offset`, `replid:offset`.
    pub position: String,
    /// Its commit time, as far as known.
    pub at: Option<Timestamp>,
}

/// What a replay did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Records sent and applied.
    pub records: u64,
    /// Raw bytes of the stream sent.
    pub bytes: u64,
    /// First record applied.
    pub first: Option<Landing>,
    /// Last record applied.
    pub last: Option<Landing>,
    /// First record left out; `None` if the archive ends before it.
    pub first_left_out: Option<Landing>,
    /// Everything executed at the end, for engines with GTIDs.
    pub gtids: String,
}
