//! What a binlog says, transaction by transaction: rows by table, statements, their times.
//!
//! Events are followed as capture follows them ([`Track`]), so what is decoded is also proved: each
//! event's checksum, the length of each transaction, and that no GTID is missing between two files
//! or comes twice. Rows are counted as they stream by; only tables' descriptions and the beginning
//! of statements are held.
//!
//! **Invariant:** a row event that cannot be decoded is counted as such, and what follows it is
//! decoded all the same.

use super::event::{
    Checksum, FormatDescription, HEAD_BYTES, Head, MAGIC, Query, Reader, body, kind,
    uncompressed_length,
};
use super::events::Tokens;
use super::executed::Executed;
use super::landmark::shorten_to;
use super::payload::Payload;
use super::rows::{Change, Image, RowWalk, RowsHead, is_rows};
use super::stream::{End, Part, Splitter, Track};
use super::table::Table;
use super::values;
use crate::clock::Timestamp;
use crate::engine::decode::{
    Decode, Interest, Record, RowChange, Rows, STATEMENT_BYTES_MAX, Statement, StatementKind, Take,
};
use crate::error::{Error, Result};
use crate::position::Position;
use bytes::{Buf, Bytes};
use flate2::{Decompress, FlushDecompress, Status};
use std::collections::HashMap;
use std::sync::Arc;

/// Longest description of a table that is taken: 4,096 columns, with names of them and of the
/// members of their sets.
const TABLE_BYTES_MAX: usize = 16 << 20;

/// Most tables that are known at once within a transaction. A statement has its own.
const TABLES_MAX: usize = 65_536;

/// How much of compressed rows is uncompressed at once.
const PIECE_BYTES: usize = 64 << 10;

/// Decodes a binlog.
#[derive(Debug)]
pub struct Changes {
    interest: Interest,
    track: Option<Track>,
    splitter: Splitter,
    /// How many of the file's magic bytes are still to come.
    magic_left: usize,
    record: Record,
    tables: HashMap<u64, Arc<Table>>,
    /// The event that goes on, and the one within it, where it is a payload.
    outer: Event,
    inner: Event,
}

/// An event that goes on.
#[derive(Debug, Default)]
enum Event {
    #[default]
    Skipped,
    /// Something that is read whole.
    Table {
        bytes: Vec<u8>,
        left: usize,
    },
    Rows {
        walk: Box<RowWalk>,
        inflate: Option<Box<Inflate>>,
        left: usize,
    },
    Payload {
        payload: Box<PayloadBox>,
        left: usize,
    },
}

struct PayloadBox(Payload);

impl std::fmt::Debug for PayloadBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Payload")
    }
}

/// Rows that a MariaDB compressed.
#[derive(Debug)]
struct Inflate {
    zlib: Decompress,
    left: u64,
    ended: bool,
}

impl Changes {
    /// A decoder that stands nowhere yet.
    pub fn new(interest: Interest) -> Self {
        Self {
            interest,
            track: None,
            splitter: Splitter::default(),
            magic_left: 0,
            record: Record::default(),
            tables: HashMap::new(),
            outer: Event::default(),
            inner: Event::default(),
        }
    }

    fn track(&mut self) -> Result<&mut Track> {
        self.track.as_mut().ok_or_else(|| Error::bug("bytes of a log before its name"))
    }

    fn part(&mut self, part: &Part, to: &mut dyn Take) -> Result<()> {
        let track = self.track()?;
        let (start, checksum) = (track.offset, track.checksum);
        let was_open = track.is_open();
        let end = track.take(part)?;
        if let Some(head) = &part.head
            && head.is_gtid()
        {
            let event = super::event::GtidEvent::parse(head, body(&part.bytes, checksum)?)?;
            self.record = Record {
                start,
                name: event.gtid.map(|gtid| gtid.to_string()),
                at: event.immediate_commit_ts.or_else(|| provisional(head)),
                ..Record::default()
            };
            self.outer = Event::Skipped;
        } else if was_open {
            self.content(part, checksum, to)?;
        }
        if let Some(End::Record(event)) = end {
            self.tables.clear();
            let mut record = std::mem::take(&mut self.record);
            record.at = event.immediate_commit_ts.or(record.at);
            record.end = self.track()?.offset;
            to.record(record)?;
        }
        Ok(())
    }

    /// A part of an event of a transaction.
    fn content(&mut self, part: &Part, checksum: Checksum, to: &mut dyn Take) -> Result<()> {
        let mut event = std::mem::take(&mut self.outer);
        if let Some(head) = &part.head {
            self.finish(&mut event);
            event = self.begin(head, &part.bytes, checksum, to)?;
        } else {
            self.go_on_in(&mut event, &part.bytes, to)?;
        }
        if part.last {
            self.finish(&mut event);
        } else {
            self.outer = event;
        }
        Ok(())
    }

    /// An event begins. `bytes` has all of it, or at least 64 KiB.
    fn begin(
        &mut self,
        head: &Head,
        bytes: &[u8],
        checksum: Checksum,
        to: &mut dyn Take,
    ) -> Result<Event> {
        let length = (head.length as usize).saturating_sub(HEAD_BYTES + checksum.len());
        let all = bytes.get(HEAD_BYTES..).unwrap_or_default();
        let body = all.get(..length).unwrap_or(all);
        let is_whole = body.len() == length;
        match head.kind {
            kind::TABLE_MAP if length > TABLE_BYTES_MAX => {
                self.record.fail("a description of a table that is too long");
                Ok(Event::Skipped)
            }
            kind::TABLE_MAP => Ok(Event::Table { bytes: body.to_vec(), left: length - body.len() }),
            kind::QUERY | kind::MARIA_QUERY_COMPRESSED => {
                if let Err(error) = self.query(head.kind, body, is_whole) {
                    self.record.fail(error);
                }
                Ok(Event::Skipped)
            }
            kind::EXECUTE_LOAD_QUERY => {
                // Number of the file, where its name stands in the statement, what to do with
                // duplicates: behind the fixed part of a QUERY.
                self.statement(StatementKind::Change, "LOAD", &[], b"LOAD DATA");
                Ok(Event::Skipped)
            }
            // Its first byte is the length, as far as a byte has it.
            kind::ROWS_QUERY => {
                let text = body.get(1..).unwrap_or_default();
                self.statement(StatementKind::Origin, "", &[], text);
                Ok(Event::Skipped)
            }
            kind::MARIA_ANNOTATE_ROWS => {
                self.statement(StatementKind::Origin, "", &[], body);
                Ok(Event::Skipped)
            }
            kind::TRANSACTION_PAYLOAD => match Payload::open(body) {
                Ok((payload, at)) => {
                    let left = length.saturating_sub(body.len());
                    let payload = Box::new(PayloadBox(payload));
                    let mut event = Event::Payload { payload, left: left + body.len() - at };
                    self.go_on_in(&mut event, body.get(at..).unwrap_or_default(), to)?;
                    Ok(event)
                }
                Err(error) => {
                    self.record.fail(error);
                    Ok(Event::Skipped)
                }
            },
            kind::MARIA_PARTIAL_ROW_DATA => {
                self.record.fail("a row event in pieces, which this version cannot decode");
                Ok(Event::Skipped)
            }
            kind if is_rows(kind) => self.begin_rows(kind, body, length, to),
            kind if !kind::is_known(kind) => {
                self.record.fail(format!("an event of the unknown type {kind}"));
                Ok(Event::Skipped)
            }
            _ => Ok(Event::Skipped),
        }
    }

    fn begin_rows(
        &mut self,
        kind: u8,
        body: &[u8],
        length: usize,
        to: &mut dyn Take,
    ) -> Result<Event> {
        /// What stands for no table: such an event has no rows (`Rows_log_event::is_dummy`).
        const NO_TABLE: u64 = 0x00ff_ffff;
        let Some(head) = RowsHead::parse(kind, body) else {
            self.record.fail("a row event that is not in its form");
            return Ok(Event::Skipped);
        };
        if head.table == NO_TABLE && head.len == length {
            return Ok(Event::Skipped);
        }
        let Some(table) = self.tables.get(&head.table) else {
            self.record.fail(format!("rows of table number {}, which has no name", head.table));
            return Ok(Event::Skipped);
        };
        let is_wanted = |name: &str| {
            self.interest.tables.as_ref().is_none_or(|tables| tables.has_key(name.as_bytes()))
        };
        let keep = self.interest.rows && is_wanted(&table.name);
        let walk = match RowWalk::new(&head, Arc::clone(table), keep) {
            Ok(walk) => Box::new(walk),
            Err(why) => {
                self.record.fail(why);
                return Ok(Event::Skipped);
            }
        };
        let mut at = head.len;
        let inflate = if head.compressed {
            let mut rest = Reader(body.get(at..).unwrap_or_default());
            let before = rest.0.len();
            let Some(left) = uncompressed_length(&mut rest) else {
                self.record.fail("compressed rows that are not in their form");
                return Ok(Event::Skipped);
            };
            at += before - rest.0.len();
            Some(Box::new(Inflate { zlib: Decompress::new(true), left, ended: false }))
        } else {
            None
        };
        let mut event = Event::Rows { walk, inflate, left: length.saturating_sub(at) };
        self.go_on_in(&mut event, body.get(at..).unwrap_or_default(), to)?;
        Ok(event)
    }

    /// Further bytes of an event; a checksum at their end is none of it.
    fn go_on_in(&mut self, event: &mut Event, bytes: &[u8], to: &mut dyn Take) -> Result<()> {
        let own = |left: &mut usize| {
            let len = bytes.len().min(*left);
            *left -= len;
            bytes.get(..len).unwrap_or_default()
        };
        match event {
            Event::Skipped => {}
            Event::Table { bytes: table, left } => table.extend_from_slice(own(left)),
            Event::Rows { walk, inflate, left } => {
                let bytes = own(left);
                let record = &self.record;
                let each = |walk: &RowWalk, images| to.row(record, row(walk, images));
                let walked = match inflate {
                    None => walk.push(bytes, each)?,
                    Some(inflate) => inflate.push(bytes, walk, each)?,
                };
                if let Err(why) = walked {
                    let (table, rows) = (walk.table().name.clone(), counted(walk));
                    self.record.add_rows(&table, &rows);
                    self.record.fail(why);
                    *event = Event::Skipped;
                }
            }
            Event::Payload { payload, left } => {
                payload.0.push(Bytes::copy_from_slice(own(left)));
                loop {
                    match payload.0.next() {
                        Ok(Some(part)) => self.inner_part(&part, to)?,
                        Ok(None) => break,
                        Err(error) => {
                            self.record.fail(error);
                            *event = Event::Skipped;
                            break;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// A part of an event that stands in a payload: it has no checksum.
    fn inner_part(&mut self, part: &Part, to: &mut dyn Take) -> Result<()> {
        let mut event = std::mem::take(&mut self.inner);
        if let Some(head) = &part.head {
            self.finish(&mut event);
            if head.kind == kind::TRANSACTION_PAYLOAD {
                self.record.fail("a payload within a payload");
                event = Event::Skipped;
            } else {
                event = self.begin(head, &part.bytes, Checksum::None, to)?;
            }
        } else {
            self.go_on_in(&mut event, &part.bytes, to)?;
        }
        if part.last {
            self.finish(&mut event);
        } else {
            self.inner = event;
        }
        Ok(())
    }

    /// The event has ended.
    fn finish(&mut self, event: &mut Event) {
        match std::mem::take(event) {
            Event::Skipped => {}
            Event::Table { bytes, .. } => match Table::parse(&bytes) {
                Ok((id, table)) => {
                    if self.tables.len() >= TABLES_MAX {
                        self.tables.clear();
                    }
                    self.tables.insert(id, Arc::new(table));
                }
                Err(error) => self.record.fail(error),
            },
            Event::Rows { mut walk, inflate, .. } => {
                let ended = match inflate {
                    Some(inflate) if inflate.left > 0 => Err("compressed rows end early".into()),
                    _ => walk.finish(),
                };
                let (table, rows) = (walk.table().name.clone(), counted(&walk));
                self.record.add_rows(&table, &rows);
                if let Err(why) = ended {
                    self.record.fail(why);
                }
            }
            Event::Payload { payload, .. } => {
                if let Err(error) = payload.0.finish() {
                    self.record.fail(error);
                }
            }
        }
    }

    fn query(&mut self, kind: u8, body: &[u8], is_whole: bool) -> Result<()> {
        let mut query = Query::parse(body)?;
        let mut buffer = Vec::new();
        if kind == kind::MARIA_QUERY_COMPRESSED {
            query = query.uncompress(is_whole, &mut buffer)?;
        }
        let verb = Tokens::new(query.statement).word().unwrap_or_default();
        let kind = match verb.as_str() {
            // They begin and end a transaction, or a part of it.
            "BEGIN" | "COMMIT" | "ROLLBACK" | "SAVEPOINT" | "RELEASE" | "XA" | "START" => {
                return Ok(());
            }
            "INSERT" | "UPDATE" | "DELETE" | "REPLACE" | "LOAD" | "WITH" | "SELECT" | "CALL"
            | "DO" | "SET" | "" => StatementKind::Change,
            _ => StatementKind::Ddl,
        };
        let (schema, statement) = (query.schema.to_vec(), query.statement.to_vec());
        self.statement(kind, &verb, &schema, &statement);
        Ok(())
    }

    fn statement(&mut self, kind: StatementKind, verb: &str, schema: &[u8], text: &[u8]) {
        let verb = match verb {
            "" => Tokens::new(text).word().unwrap_or_default(),
            verb => verb.to_owned(),
        };
        self.record.add_statement(Statement {
            kind,
            verb,
            schema: String::from_utf8_lossy(schema).into_owned(),
            text: shorten_to(text, STATEMENT_BYTES_MAX),
        });
    }
}

/// When a transaction is committed that does not say it at its beginning: a MariaDB writes all of
/// it at its commit, with the second of that in each head.
fn provisional(head: &Head) -> Option<Timestamp> {
    (head.kind == kind::MARIA_GTID && head.timestamp > 0)
        .then(|| Timestamp::from_secs(i64::from(head.timestamp)))
}

/// The rows that a walk has counted so far.
fn counted(walk: &RowWalk) -> Rows {
    let rows = walk.rows();
    match walk.change() {
        Change::Insert => Rows { inserts: rows, ..Rows::default() },
        Change::Update => Rows { updates: rows, ..Rows::default() },
        Change::Delete => Rows { deletes: rows, ..Rows::default() },
    }
}

/// A row as it is shown.
fn row(walk: &RowWalk, [before, after]: [Image; 2]) -> RowChange {
    let (table, change) = (walk.table(), walk.change());
    let image = |which: usize, image: &Image| values::image(table, walk.present(which), image);
    RowChange {
        table: table.name.clone(),
        change: match change {
            Change::Insert => "insert",
            Change::Update => "update",
            Change::Delete => "delete",
        },
        before: (change != Change::Insert).then(|| image(0, &before)),
        after: (change != Change::Delete).then(|| image(1, &after)),
    }
}

impl Inflate {
    fn push(
        &mut self,
        mut bytes: &[u8],
        walk: &mut RowWalk,
        mut each: impl FnMut(&RowWalk, [Image; 2]) -> Result<()>,
    ) -> Result<std::result::Result<(), String>> {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            if self.ended {
                let rest = if bytes.is_empty() { Ok(()) } else { Err("it goes on".into()) };
                return Ok(rest.map_err(|why: String| format!("compressed rows: {why}")));
            }
            let (read, written) = (self.zlib.total_in(), self.zlib.total_out());
            let status = match self.zlib.decompress(bytes, &mut piece, FlushDecompress::None) {
                Ok(status) => status,
                Err(error) => return Ok(Err(format!("compressed rows: {error}"))),
            };
            let read = self.zlib.total_in() - read;
            let written = self.zlib.total_out() - written;
            bytes.advance(usize::try_from(read).unwrap_or(0));
            let Some(left) = self.left.checked_sub(written) else {
                return Ok(Err("compressed rows: more than they say".into()));
            };
            self.left = left;
            let rows = piece.get(..usize::try_from(written).unwrap_or(0)).unwrap_or_default();
            if let Err(why) = walk.push(rows, &mut each)? {
                return Ok(Err(why));
            }
            self.ended = status == Status::StreamEnd;
            if !self.ended && read == 0 && written == 0 {
                return Ok(Ok(()));
            }
        }
    }
}

impl Decode for Changes {
    fn go_on(&mut self, at: &Position, head: &Bytes) -> Result<()> {
        let magic = MAGIC.len() as u64;
        let start = at.offset.max(magic);
        if !self.splitter.is_between_events() || self.magic_left > 0 {
            return Err(Error::corrupt(format!("the log ends within an event, and {at} follows")));
        }
        match &mut self.track {
            Some(track) if track.log == at.log && track.offset == at.offset => return Ok(()),
            Some(track) if start == magic => track.begin_file(&at.log)?,
            track => {
                let executed: Option<Executed> = match at.gtids.as_str() {
                    "" => None,
                    gtids => Some(gtids.parse()?),
                };
                *track = Some(Track::new(&at.log, start, executed));
            }
        }
        self.magic_left = usize::try_from(magic.saturating_sub(at.offset)).unwrap_or(0);
        if start > magic {
            let format = head.get(MAGIC.len()..).unwrap_or_default();
            let len = Head::parse(format).map(|head| head.length as usize);
            let format = len.ok().and_then(|len| format.get(..len));
            let format = format
                .ok_or_else(|| Error::corrupt(format!("{at}: the head of the file is missing")))?;
            let checksum = FormatDescription::parse(format)?.checksum;
            self.track()?.checksum = checksum;
        }
        Ok(())
    }

    fn push(&mut self, mut bytes: Bytes, to: &mut dyn Take) -> Result<()> {
        let magic = self.magic_left.min(bytes.len());
        let expected = MAGIC.get(MAGIC.len() - self.magic_left..).unwrap_or_default();
        if !expected.starts_with(bytes.get(..magic).unwrap_or_default()) {
            return Err(self.track()?.corrupt("not a binlog"));
        }
        self.magic_left -= magic;
        bytes.advance(magic);
        self.track()?;
        self.splitter.push(bytes);
        while let Some(part) = self.splitter.next()? {
            self.part(&part, to)?;
        }
        Ok(())
    }

    fn is_between_records(&self) -> bool {
        self.magic_left == 0
            && self.splitter.is_between_events()
            && self.track.as_ref().is_none_or(|track| !track.is_open())
    }
}
