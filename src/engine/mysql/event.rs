//! Binlog events: their heads, and the bodies of the few that pitr has to understand.
//!
//! Layouts are those of MySQL's manual, "Binary Log Event" (dev.mysql.com/doc/dev/mysql-server),
//! and of `libs/mysql/binlog/event/*` in the server's source. Row images and statements are
//! never looked into.
//!
//! **Invariant:** every function here takes arbitrary bytes and gives a value or an error.

use super::executed::{Executed, TxId};
use super::gtid::{Gtid, GtidSet, Tag};
use super::maria::{BinlogState, MariaGtid};
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use std::io::Read;
use std::ops::Range;

mod clock;
mod reader;

pub(crate) use clock::with_clock;
pub(crate) use reader::Reader;

/// Length of an event's head.
pub(crate) const HEAD_BYTES: usize = 19;
/// Length of an event's checksum.
pub(crate) const CRC_BYTES: usize = 4;
/// The largest length of an event (`max_replica_max_allowed_packet` in the server).
pub(crate) const MAX_EVENT_BYTES: u32 = 1 << 30;
/// The first bytes of every binlog file; they travel in no event.
pub(crate) const MAGIC: [u8; 4] = *b"\xfebin";

/// Types of events (`Log_event_type` in the server's `binlog_event.h`; 160 and up are MariaDB's).
#[expect(dead_code, reason = "the table is kept whole, as a reference")]
pub(crate) mod kind {
    pub(crate) const QUERY: u8 = 2;
    pub(crate) const STOP: u8 = 3;
    pub(crate) const ROTATE: u8 = 4;
    pub(crate) const INTVAR: u8 = 5;
    pub(crate) const APPEND_BLOCK: u8 = 9;
    pub(crate) const DELETE_FILE: u8 = 11;
    pub(crate) const RAND: u8 = 13;
    pub(crate) const USER_VAR: u8 = 14;
    pub(crate) const FORMAT_DESCRIPTION: u8 = 15;
    pub(crate) const XID: u8 = 16;
    pub(crate) const BEGIN_LOAD_QUERY: u8 = 17;
    pub(crate) const EXECUTE_LOAD_QUERY: u8 = 18;
    pub(crate) const TABLE_MAP: u8 = 19;
    pub(crate) const WRITE_ROWS_V1: u8 = 23;
    pub(crate) const UPDATE_ROWS_V1: u8 = 24;
    pub(crate) const DELETE_ROWS_V1: u8 = 25;
    pub(crate) const INCIDENT: u8 = 26;
    pub(crate) const HEARTBEAT: u8 = 27;
    pub(crate) const IGNORABLE: u8 = 28;
    pub(crate) const ROWS_QUERY: u8 = 29;
    pub(crate) const WRITE_ROWS: u8 = 30;
    pub(crate) const UPDATE_ROWS: u8 = 31;
    pub(crate) const DELETE_ROWS: u8 = 32;
    pub(crate) const GTID: u8 = 33;
    pub(crate) const ANONYMOUS_GTID: u8 = 34;
    pub(crate) const PREVIOUS_GTIDS: u8 = 35;
    pub(crate) const TRANSACTION_CONTEXT: u8 = 36;
    pub(crate) const VIEW_CHANGE: u8 = 37;
    pub(crate) const XA_PREPARE: u8 = 38;
    pub(crate) const PARTIAL_UPDATE_ROWS: u8 = 39;
    pub(crate) const TRANSACTION_PAYLOAD: u8 = 40;
    pub(crate) const HEARTBEAT_V2: u8 = 41;
    pub(crate) const GTID_TAGGED: u8 = 42;
    pub(crate) const MARIA_ANNOTATE_ROWS: u8 = 160;
    pub(crate) const MARIA_BINLOG_CHECKPOINT: u8 = 161;
    pub(crate) const MARIA_GTID: u8 = 162;
    pub(crate) const MARIA_GTID_LIST: u8 = 163;
    pub(crate) const MARIA_START_ENCRYPTION: u8 = 164;
    pub(crate) const MARIA_QUERY_COMPRESSED: u8 = 165;
    pub(crate) const MARIA_WRITE_ROWS_COMPRESSED_V1: u8 = 166;
    pub(crate) const MARIA_UPDATE_ROWS_COMPRESSED_V1: u8 = 167;
    pub(crate) const MARIA_DELETE_ROWS_COMPRESSED_V1: u8 = 168;
    pub(crate) const MARIA_WRITE_ROWS_COMPRESSED: u8 = 169;
    pub(crate) const MARIA_UPDATE_ROWS_COMPRESSED: u8 = 170;
    pub(crate) const MARIA_DELETE_ROWS_COMPRESSED: u8 = 171;
    pub(crate) const MARIA_PARTIAL_ROW_DATA: u8 = 172;

    /// Whether a type is one of those above, or one of servers before MySQL 8.0 that stands
    /// between them.
    pub(crate) fn is_known(kind: u8) -> bool {
        matches!(kind, QUERY..=INTVAR | APPEND_BLOCK | DELETE_FILE | RAND..=TABLE_MAP
            | WRITE_ROWS_V1..=GTID_TAGGED | MARIA_ANNOTATE_ROWS..=MARIA_PARTIAL_ROW_DATA)
    }
}

/// Flags in an event's head.
pub(crate) mod flag {
    /// The file was not closed yet (FORMAT_DESCRIPTION only). Never set on the wire.
    pub(crate) const IN_USE: u16 = 0x01;
    /// The statement is about temporary tables of its connection.
    pub(crate) const THREAD_SPECIFIC: u16 = 0x04;
    /// The statement needs no default schema.
    pub(crate) const SUPPRESS_USE: u16 = 0x08;
    /// Made up for the reader: stands in no file.
    pub(crate) const ARTIFICIAL: u16 = 0x20;
    /// Whoever does not know the type may pass over the event.
    pub(crate) const IGNORABLE: u16 = 0x80;
}

/// Whether events end in a CRC32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checksum {
    /// They do not.
    None,
    /// They do.
    Crc32,
}

impl Checksum {
    /// How many bytes it takes at the end of an event.
    pub(crate) fn len(self) -> usize {
        match self {
            Self::None => 0,
            Self::Crc32 => CRC_BYTES,
        }
    }
}

/// The head of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    /// When the statement began (not when it was committed), s since 1970.
    pub(crate) timestamp: u32,
    /// What it is: see [`kind`].
    pub(crate) kind: u8,
    /// `server_id` of the server that wrote it first.
    pub(crate) server_id: u32,
    /// Length in bytes, with head and checksum.
    pub(crate) length: u32,
    /// Low 32 bits of where the event ends in its file. Not to be relied on.
    pub(crate) log_pos: u32,
    /// See [`flag`].
    pub(crate) flags: u16,
}

impl Head {
    /// Reads a head from the first bytes of an event.
    ///
    /// # Errors
    /// Corrupt, if there are too few bytes, or the length cannot be that of an event.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let mut at = Reader(bytes);
        let head = at.head().ok_or_else(|| {
            Error::corrupt(format!("an event of {} bytes has no whole head", bytes.len()))
        })?;
        if !(HEAD_BYTES as u32..=MAX_EVENT_BYTES).contains(&head.length) {
            return Err(Error::corrupt(format!(
                "an event of type {} gives its length as {}",
                head.kind, head.length
            )));
        }
        Ok(head)
    }

    /// Whether the event stands in no file: made up for the reader.
    pub(crate) fn is_artificial(&self) -> bool {
        self.flags & flag::ARTIFICIAL != 0
            || matches!(self.kind, kind::HEARTBEAT | kind::HEARTBEAT_V2)
    }

    /// Whether the event is of a type that this version does not know, and may not be passed over.
    pub(crate) fn is_strange(&self) -> bool {
        !kind::is_known(self.kind) && self.flags & flag::IGNORABLE == 0
    }

    /// Whether a transaction begins with this event.
    pub(crate) fn is_gtid(&self) -> bool {
        matches!(
            self.kind,
            kind::GTID | kind::ANONYMOUS_GTID | kind::GTID_TAGGED | kind::MARIA_GTID
        )
    }

    /// Whether it says what was executed before the file began.
    pub(crate) fn is_executed_list(&self) -> bool {
        matches!(self.kind, kind::PREVIOUS_GTIDS | kind::MARIA_GTID_LIST)
    }

    /// The head's bytes.
    pub(crate) fn to_bytes(self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        let fields = (self.timestamp.to_le_bytes().into_iter())
            .chain([self.kind])
            .chain(self.server_id.to_le_bytes())
            .chain(self.length.to_le_bytes())
            .chain(self.log_pos.to_le_bytes())
            .chain(self.flags.to_le_bytes());
        for (to, from) in bytes.iter_mut().zip(fields) {
            *to = from;
        }
        bytes
    }
}

/// The body of a whole event: what stands between its head and its checksum.
///
/// # Errors
/// Corrupt, if the event is too short.
pub(crate) fn body(event: &[u8], checksum: Checksum) -> Result<&[u8]> {
    let end = event.len().saturating_sub(checksum.len());
    event.get(HEAD_BYTES..end).ok_or_else(|| {
        Error::corrupt(format!("an event of {} bytes is too short to have a body", event.len()))
    })
}

/// Whether the CRC32 at the end of a whole event is right.
pub(crate) fn verify_crc(event: &[u8]) -> bool {
    event
        .split_last_chunk::<CRC_BYTES>()
        .is_some_and(|(rest, crc)| crc32fast::hash(rest) == u32::from_le_bytes(*crc))
}

/// Computes the CRC32 at the end of a whole event anew, in place.
pub(crate) fn renew_crc(event: &mut [u8]) {
    if let Some((rest, crc)) = event.split_last_chunk_mut::<CRC_BYTES>() {
        *crc = crc32fast::hash(rest).to_le_bytes();
    }
}

/// FORMAT_DESCRIPTION: how the rest of a file is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FormatDescription {
    /// Version of the server that wrote the file.
    pub(crate) server_version: String,
    /// s since 1970; zero unless the file is the first one after a start of the server.
    pub(crate) created: u32,
    /// Whether the events of the file end in a checksum. This event itself always has its four
    /// bytes.
    pub(crate) checksum: Checksum,
    /// Length of each type's fixed part, from type 1 on.
    pub(crate) post_header_lengths: Vec<u8>,
}

/// Where the four bytes of `created` stand in a FORMAT_DESCRIPTION event.
pub(crate) const FDE_CREATED_AT: usize = HEAD_BYTES + 2 + 50;

impl FormatDescription {
    /// Reads a whole FORMAT_DESCRIPTION event.
    ///
    /// # Errors
    /// Corrupt, if it is none of a server from 5.6.1 on.
    pub(crate) fn parse(event: &[u8]) -> Result<Self> {
        let bad = |why: &str| Error::corrupt(format!("FORMAT_DESCRIPTION event: {why}"));
        let short = || bad("too short");
        // The checksum's four bytes stand there whatever the algorithm is.
        let mut at = Reader(body(event, Checksum::Crc32).map_err(|_| short())?);
        if at.u16().ok_or_else(short)? != 4 {
            return Err(bad("not of binlog version 4"));
        }
        let version = at.bytes(50).ok_or_else(short)?;
        let version = version.split(|&b| b == 0).next().unwrap_or_default();
        let created = at.u32().ok_or_else(short)?;
        if usize::from(at.u8().ok_or_else(short)?) != HEAD_BYTES {
            return Err(bad("heads of another length"));
        }
        let (&checksum, lengths) = at.0.split_last().ok_or_else(short)?;
        let checksum = match checksum {
            0 => Checksum::None,
            1 => Checksum::Crc32,
            _ => return Err(bad("an unknown checksum algorithm")),
        };
        Ok(Self {
            server_version: String::from_utf8_lossy(version).into_owned(),
            created,
            checksum,
            post_header_lengths: lengths.to_vec(),
        })
    }
}

/// ROTATE: the log goes on in another file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rotate {
    /// Offset in the next file: 4, but for an artificial one in the middle of a file.
    pub(crate) position: u64,
    /// Name of the next file.
    pub(crate) file: String,
}

impl Rotate {
    /// Reads the body of a ROTATE event.
    ///
    /// # Errors
    /// Corrupt, if it names no file.
    pub(crate) fn parse(body: &[u8]) -> Result<Self> {
        let mut at = Reader(body);
        let position = at.u64().ok_or_else(|| Error::corrupt("ROTATE event: too short"))?;
        Ok(Self { position, file: file_name(at.0, "ROTATE")? })
    }
}

/// Reads a file name as events carry it. It becomes part of positions, so it must be plain.
fn file_name(bytes: &[u8], what: &str) -> Result<String> {
    // The server's FN_REFLEN.
    const LONGEST: usize = 512;
    let plain = (1..=LONGEST).contains(&bytes.len())
        && bytes.iter().all(|b| b.is_ascii_graphic() && *b != b'/');
    match std::str::from_utf8(bytes) {
        Ok(name) if plain => Ok(name.to_owned()),
        _ => Err(Error::corrupt(format!(
            "{what} event: not a file name: {:?}",
            String::from_utf8_lossy(bytes.get(..LONGEST).unwrap_or(bytes))
        ))),
    }
}

/// PREVIOUS_GTIDS or GTID_LIST: everything that was executed before the file began.
///
/// # Errors
/// Corrupt, if the body is none.
pub(crate) fn parse_executed_list(kind: u8, body: &[u8]) -> Result<Executed> {
    if kind == kind::MARIA_GTID_LIST {
        let state = BinlogState::decode(body).map(Executed::from);
        state.map_err(|error| error.context("GTID_LIST event"))
    } else {
        let set = GtidSet::decode(body).map(Executed::from);
        set.map_err(|error| error.context("PREVIOUS_GTIDS event"))
    }
}

/// Flags of MariaDB's GTID events (`Gtid_log_event` in the server's `sql/log_event.h`).
pub(crate) mod maria_flag {
    /// No COMMIT follows: the transaction is the next event that can stand by itself.
    pub(crate) const STANDALONE: u8 = 0x01;
    /// The number of a group commit follows.
    pub(crate) const GROUP_COMMIT_ID: u8 = 0x02;
}

/// GTID, ANONYMOUS_GTID, GTID_TAGGED or MariaDB's GTID: a transaction begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GtidEvent {
    /// Its name; `None` if it is anonymous.
    pub(crate) gtid: Option<TxId>,
    /// Logical clock: the newest transaction of the file that this one has to wait for.
    pub(crate) last_committed: i64,
    /// Logical clock: the number of this transaction in its file. MariaDB: the number of the group
    /// that was committed together, if there was one.
    pub(crate) sequence_number: i64,
    /// When this server committed it; `None` before MySQL 8.0.1. MariaDB has no such time: there
    /// it is the whole second in the head of the transaction's last event, once that was seen.
    pub(crate) immediate_commit_ts: Option<Timestamp>,
    /// When the first server committed it.
    pub(crate) original_commit_ts: Option<Timestamp>,
    /// Length of the whole transaction with this event, in bytes; 0 before MySQL 8.0.2 and with
    /// MariaDB.
    pub(crate) transaction_length: u64,
    /// MariaDB's flags: see [`maria_flag`].
    pub(crate) flags: u8,
}

impl GtidEvent {
    /// Reads the body of an event for which [`Head::is_gtid`].
    ///
    /// # Errors
    /// Corrupt, if it is not what a server writes.
    pub(crate) fn parse(head: &Head, body: &[u8]) -> Result<Self> {
        let parsed = match head.kind {
            kind::GTID_TAGGED => tagged(body).map(|tagged| tagged.event),
            kind::MARIA_GTID => parse_maria(head.server_id, body),
            kind => parse_gtid(body, kind == kind::ANONYMOUS_GTID),
        };
        parsed.ok_or_else(|| {
            let (kind, len) = (head.kind, body.len());
            Error::corrupt(format!("GTID event (type {kind}): {len} bytes make no sense"))
        })
    }

    /// Of this transaction only its name is known.
    fn named(gtid: Option<TxId>) -> Self {
        Self {
            gtid,
            last_committed: 0,
            sequence_number: 0,
            immediate_commit_ts: None,
            original_commit_ts: None,
            transaction_length: 0,
            flags: 0,
        }
    }

    /// Whether no COMMIT ends this transaction of a MariaDB.
    pub(crate) fn is_standalone(&self) -> bool {
        self.flags & maria_flag::STANDALONE != 0
    }
}

/// The server is named in the event's head. What may follow behind the group's number (an XID, or
/// further flags) is of no use here.
fn parse_maria(server: u32, body: &[u8]) -> Option<GtidEvent> {
    let mut at = Reader(body);
    let sequence = at.u64()?;
    let domain = at.u32()?;
    let flags = at.u8()?;
    let group = if flags & maria_flag::GROUP_COMMIT_ID == 0 { 0 } else { at.u64()? };
    let gtid = TxId::Maria(MariaGtid { domain, server, sequence });
    Some(GtidEvent { flags, sequence_number: group.cast_signed(), ..GtidEvent::named(Some(gtid)) })
}

/// Commit times are µs in 55 bits; the bit above says that a second field follows. 0 is unknown.
fn commit_ts(micros: u64) -> Option<Timestamp> {
    i64::try_from(micros).ok().filter(|&micros| micros > 0).map(Timestamp::from_micros)
}

/// Where `last_committed` and `sequence_number` stand in the body of a GTID event: behind flags,
/// uuid, number and the type of the clock.
const LOGICAL_CLOCK_AT: usize = 1 + 16 + 8 + 1;

fn parse_gtid(body: &[u8], anonymous: bool) -> Option<GtidEvent> {
    const HAS_ORIGINAL: u64 = 1 << 55;
    const LOGICAL_CLOCK: u8 = 2;
    let mut at = Reader(body);
    let _flags = at.u8()?;
    let uuid = *at.array::<16>()?;
    let n = at.u64()?;
    let gtid = if anonymous { None } else { Some(Gtid::new(uuid, Tag::default(), n)?) };
    let mut event = GtidEvent::named(gtid.map(TxId::MySql));
    // Each of the following parts came with a later server; an event may end before any.
    if at.0.first() != Some(&LOGICAL_CLOCK) {
        return Some(event);
    }
    at.u8()?;
    event.last_committed = at.u64()?.cast_signed();
    event.sequence_number = at.u64()?.cast_signed();
    if at.0.is_empty() {
        return Some(event);
    }
    let immediate = at.u56()?;
    let original = if immediate & HAS_ORIGINAL == 0 { immediate } else { at.u56()? };
    event.immediate_commit_ts = commit_ts(immediate & !HAS_ORIGINAL);
    event.original_commit_ts = commit_ts(original & !HAS_ORIGINAL);
    if !at.0.is_empty() {
        event.transaction_length = at.lenenc()?;
    }
    Some(event)
}

/// A GTID_TAGGED event, and where in its body its clock stands, or would stand.
struct Tagged {
    event: GtidEvent,
    /// Where the fields begin.
    fields: usize,
    clock: Range<usize>,
}

/// `mysql::serialization`, version 1: numbers whose first byte says by its trailing ones how
/// many bytes follow; a message is version, size, the last field that may not be ignored, and
/// fields with their ids in ascending order.
fn tagged(body: &[u8]) -> Option<Tagged> {
    let mut at = Reader(body);
    if at.varlen()? != 1 || at.varlen()? != body.len() as u64 {
        return None;
    }
    let fields = body.len() - at.0.len();
    let last_needed = at.varlen()?;
    let (mut start, mut end) = (None, None);
    let (mut uuid, mut tag, mut n) = (None, Tag::default(), None);
    let (mut last_committed, mut sequence_number) = (0, 0);
    let (mut immediate, mut original, mut transaction_length) = (None, None, 0);
    let mut last_id = None;
    while !at.0.is_empty() {
        let here = body.len() - at.0.len();
        let id = at.varlen()?;
        if id >= 4 {
            start.get_or_insert(here);
        }
        if id > 5 {
            end.get_or_insert(here);
        }
        if last_id.is_some_and(|last| id <= last) {
            return None;
        }
        last_id = Some(id);
        match id {
            0 | 9..=11 => drop(at.varlen()?),
            1 => {
                let mut bytes = [0; 16];
                for byte in &mut bytes {
                    *byte = u8::try_from(at.varlen()?).ok()?;
                }
                uuid = Some(bytes);
            }
            2 => n = Some(at.varlen_signed()?),
            3 => {
                let len = usize::try_from(at.varlen()?).ok()?;
                tag = Tag::parse(at.bytes(len)?)?;
            }
            4 => last_committed = at.varlen_signed()?,
            5 => sequence_number = at.varlen_signed()?,
            6 => immediate = Some(at.varlen()?),
            7 => original = Some(at.varlen()?),
            8 => transaction_length = at.varlen()?,
            // A field of a newer server: its length is not known, so nothing behind it is read.
            _ if id > last_needed => break,
            _ => return None,
        }
    }
    let gtid = Gtid::new(uuid?, tag, u64::try_from(n?).ok()?)?;
    let event = GtidEvent {
        last_committed,
        sequence_number,
        immediate_commit_ts: immediate.and_then(commit_ts),
        original_commit_ts: original.or(immediate).and_then(commit_ts),
        transaction_length,
        ..GtidEvent::named(Some(TxId::MySql(gtid)))
    };
    let start = start.unwrap_or(body.len());
    Some(Tagged { event, fields, clock: start..end.unwrap_or(body.len()) })
}

/// The beginning of a QUERY event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Query<'a> {
    /// The connection that ran it.
    pub(crate) thread_id: u32,
    /// The error that it ended with; 0 for none.
    pub(crate) error: u16,
    /// The session that it ran in (`Q_*` in the server's `statement_events.h`).
    pub(crate) status: &'a [u8],
    /// The default schema.
    pub(crate) schema: &'a [u8],
    /// The statement, as far as it is in the bytes given.
    pub(crate) statement: &'a [u8],
}

impl<'a> Query<'a> {
    /// Reads the body of a QUERY event, or at least its beginning.
    ///
    /// # Errors
    /// Corrupt, if the bytes end before the statement begins.
    pub(crate) fn parse(body: &'a [u8]) -> Result<Self> {
        let mut at = Reader(body);
        let mut parse = || {
            let thread_id = at.u32()?;
            let _seconds = at.u32()?;
            let schema_len = usize::from(at.u8()?);
            let error = at.u16()?;
            let status_len = usize::from(at.u16()?);
            let status = at.bytes(status_len)?;
            let schema = at.bytes(schema_len)?;
            at.u8()?;
            Some(Self { thread_id, error, status, schema, statement: at.0 })
        };
        parse().ok_or_else(|| Error::corrupt("QUERY event: too short"))
    }

    /// Whether this is what ends a transaction in place of an XID.
    pub(crate) fn is_end(&self) -> bool {
        matches!(self.statement, b"COMMIT" | b"ROLLBACK")
    }

    /// The same with the statement of a QUERY_COMPRESSED event uncompressed into `buffer`, up to
    /// [`STATEMENT_LIMIT`] bytes of it. `whole` says whether all of the event was given.
    ///
    /// # Errors
    /// Corrupt, if it is not what a server writes.
    pub(crate) fn uncompress(self, whole: bool, buffer: &'a mut Vec<u8>) -> Result<Self> {
        self.uncompress_up_to(STATEMENT_LIMIT, whole, buffer)
    }

    /// The same with another limit.
    ///
    /// # Errors
    /// As [`Query::uncompress`].
    pub(crate) fn uncompress_up_to(
        self,
        limit: u64,
        whole: bool,
        buffer: &'a mut Vec<u8>,
    ) -> Result<Self> {
        let bad = |why: &str| Error::corrupt(format!("QUERY_COMPRESSED event: {why}"));
        let mut at = Reader(self.statement);
        let length = uncompressed_length(&mut at).ok_or_else(|| bad("not in its form"))?;
        buffer.clear();
        let mut inflated = flate2::read::ZlibDecoder::new(at.0).take(limit);
        let wanted = length.min(limit);
        match inflated.read_to_end(buffer) {
            Err(error) if whole => return Err(bad("not compressed as it says").source(error)),
            Ok(len) if whole && len as u64 != wanted => return Err(bad("of another length")),
            _ => {}
        }
        Ok(Self { statement: buffer, ..self })
    }
}

/// How long something is that a MariaDB compressed, in bytes: 0x80, the algorithm (0 is zlib) in
/// three bits, the length of the length in three; then that.
pub(crate) fn uncompressed_length(at: &mut Reader<'_>) -> Option<u64> {
    let form = at.u8().filter(|form| form & 0xf8 == 0x80)?;
    let length = at.bytes(usize::from(form & 7))?;
    Some(length.iter().fold(0_u64, |length, byte| length << 8 | u64::from(*byte)))
}

/// How much of a compressed statement is uncompressed, in bytes.
pub(crate) const STATEMENT_LIMIT: u64 = 64 << 10;

/// HEARTBEAT: nothing new up to this place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Heartbeat {
    /// The file that the sender is in.
    pub(crate) file: String,
    /// Offset in it.
    pub(crate) position: u64,
    /// Whether that has only the low 32 bits.
    pub(crate) truncated: bool,
}

impl Heartbeat {
    /// Reads a heartbeat of either version.
    ///
    /// # Errors
    /// Corrupt, if it is none.
    pub(crate) fn parse(head: &Head, body: &[u8]) -> Result<Self> {
        if head.kind == kind::HEARTBEAT {
            // A MariaDB beyond 4 GiB puts the whole offset before the name. No name has the zero
            // bytes at the end of that.
            if let (0, Some((offset, name))) = (head.log_pos, body.split_first_chunk::<8>())
                && offset.ends_with(&[0])
            {
                let position = u64::from_le_bytes(*offset);
                let file = file_name(name, "HEARTBEAT")?;
                return Ok(Self { file, position, truncated: false });
            }
            let file = file_name(body, "HEARTBEAT")?;
            return Ok(Self { file, position: u64::from(head.log_pos), truncated: true });
        }
        let bad = || Error::corrupt("HEARTBEAT event of version 2: not in its form");
        let (mut file, mut position) = (None, None);
        let mut at = Reader(body);
        loop {
            let field = at.lenenc().ok_or_else(bad)?;
            if field == 0 {
                break;
            }
            let len = at.lenenc().ok_or_else(bad)?;
            let value = usize::try_from(len).ok().and_then(|len| at.bytes(len)).ok_or_else(bad)?;
            match field {
                1 => file = Some(file_name(value, "HEARTBEAT")?),
                2 => position = Some(Reader(value).lenenc().ok_or_else(bad)?),
                _ => {}
            }
        }
        let (file, position) = (file.ok_or_else(bad)?, position.ok_or_else(bad)?);
        Ok(Self { file, position, truncated: false })
    }
}

/// Builds a whole event; its length and checksum are filled in.
pub(crate) fn build(head: Head, body: &[u8], checksum: Checksum) -> Vec<u8> {
    let mut event = Vec::with_capacity(HEAD_BYTES + body.len() + checksum.len());
    append(head, body, checksum, &mut event);
    if checksum == Checksum::Crc32 {
        renew_crc(&mut event);
    }
    event
}

/// Appends an event; its length is filled in, and there is room for its checksum.
pub(crate) fn append(head: Head, body: &[u8], checksum: Checksum, to: &mut Vec<u8>) {
    let length = HEAD_BYTES + body.len() + checksum.len();
    to.extend_from_slice(&Head { length: length as u32, ..head }.to_bytes());
    to.extend_from_slice(body);
    to.resize(to.len() + checksum.len(), 0);
}

fn made_up(kind: u8, server_id: u32, log_pos: u32, flags: u16) -> Head {
    Head { timestamp: 0, kind, server_id, length: 0, log_pos, flags }
}

/// The ROTATE that tells a reader which file follows, and from where. `file` must not be empty.
pub(crate) fn artificial_rotate(
    server_id: u32,
    file: &str,
    position: u64,
    checksum: Checksum,
) -> Vec<u8> {
    let mut body = position.to_le_bytes().to_vec();
    body.extend_from_slice(file.as_bytes());
    build(made_up(kind::ROTATE, server_id, 0, flag::ARTIFICIAL), &body, checksum)
}

/// The list by which a MariaDB tells a replica where the next event stands. `offset` is that
/// place; one that takes more than 32 bits is left out, and the replica then keeps its own count.
pub(crate) fn artificial_gtid_list(
    server_id: u32,
    state: &BinlogState,
    offset: u64,
    checksum: Checksum,
) -> Vec<u8> {
    let log_pos = u32::try_from(offset).unwrap_or(0);
    let head = made_up(kind::MARIA_GTID_LIST, server_id, log_pos, flag::ARTIFICIAL);
    build(head, &state.encode_position(), checksum)
}

/// A heartbeat of version 1, for readers that did not ask for version 2.
pub(crate) fn heartbeat_v1(
    server_id: u32,
    file: &str,
    position: u64,
    checksum: Checksum,
) -> Vec<u8> {
    let head = made_up(kind::HEARTBEAT, server_id, position as u32, 0);
    build(head, file.as_bytes(), checksum)
}

/// A heartbeat of version 2, which knows files of more than 4 GiB.
pub(crate) fn heartbeat_v2(
    server_id: u32,
    file: &str,
    position: u64,
    checksum: Checksum,
) -> Vec<u8> {
    let mut body = vec![1];
    put_lenenc(&mut body, file.len() as u64);
    body.extend_from_slice(file.as_bytes());
    let mut number = vec![];
    put_lenenc(&mut number, position);
    body.push(2);
    put_lenenc(&mut body, number.len() as u64);
    body.extend_from_slice(&number);
    body.push(0);
    let head = made_up(kind::HEARTBEAT_V2, server_id, position as u32, 0);
    build(head, &body, checksum)
}

/// Appends a length-encoded integer.
pub(crate) fn put_lenenc(to: &mut Vec<u8>, n: u64) {
    let bytes = n.to_le_bytes();
    let (mark, len) = match n {
        0..=250 => (None, 1),
        251..=0xffff => (Some(0xfc), 2),
        0x1_0000..=0xff_ffff => (Some(0xfd), 3),
        _ => (Some(0xfe), 8),
    };
    to.extend(mark);
    to.extend(bytes.iter().take(len));
}

#[cfg(test)]
mod tests;
