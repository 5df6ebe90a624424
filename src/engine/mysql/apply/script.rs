//! Events as statements, and statements as packets.
//!
//! Row events go into `BINLOG` statements as they are, each with the TABLE_MAP events of its
//! statement, because the server forgets those at the end of a `BINLOG`. BEGIN and COMMIT are
//! pitr's own words. Statements of the source run alone, each after a packet that makes the
//! session what it was at the source.
//!
//! **Invariant:** a packet is taken by the server only if it took the whole packet before. Each
//! ends with `SET @pitr=n`, its number, and begins with an expression that is an error unless
//! `@pitr` is the number before. So an error stops everything behind it, whatever is under way:
//! a COMMIT is never run after a `BINLOG` that failed.

use super::super::event::{
    self, CRC_BYTES, Checksum, HEAD_BYTES, Head, MAX_EVENT_BYTES, Query, Reader, body, flag, kind,
};
use super::super::executed::TxId;
use super::super::flavor::Family;
use super::super::stream::Part;
use super::maria::{self, CompressedRows};
use super::session::{Before, Collations, Context, Guarded, Ready};
use crate::engine::mysql::payload::Payload;
use crate::error::{Error, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use std::collections::VecDeque;

/// Length at which a packet within a transaction ends, in bytes.
const PACKET_BYTES: usize = 1 << 20;

/// What is to be sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A packet of so many statements.
    Packet(Vec<u8>, u32),
    /// The same, to be sent when nothing else is under way: it has no guard.
    Alone(Vec<u8>, u32),
    /// One statement of the source, and the error that it ended with there; 0 for none.
    Statement(Vec<u8>, u16),
}

/// The packet that is being written.
#[derive(Debug, Default)]
struct Packet {
    text: Vec<u8>,
    statements: u32,
    /// Its number; that of the last one while there is none.
    number: u64,
    /// Whether the server takes nothing of pitr's own now: between `CREATE TABLE … START
    /// TRANSACTION` and its COMMIT (error 3977).
    bare: bool,
}

impl Packet {
    /// Begins one, if none is begun. `name` is the assignment that names what follows.
    fn begin(&mut self, name: Option<&str>) {
        if self.statements > 0 || self.bare {
            return;
        }
        let before = self.number;
        self.number += 1;
        let mut guard = format!("SET @pitr_on=IF(@pitr<=>{before},1,COT(0*IFNULL(@pitr,0)))");
        if let Some(name) = name {
            guard.push(',');
            guard.push_str(name);
        }
        self.text.extend_from_slice(guard.as_bytes());
        self.statements = 1;
    }

    fn add(&mut self, statement: &str) {
        if self.statements > 0 {
            self.text.push(b';');
        }
        self.text.extend_from_slice(statement.as_bytes());
        self.statements += 1;
    }

    /// Ends it, if one is begun.
    fn end(&mut self) -> Option<Step> {
        if self.statements == 0 {
            return None;
        }
        if self.bare {
            let statements = std::mem::take(&mut self.statements);
            return Some(Step::Alone(std::mem::take(&mut self.text), statements));
        }
        self.add(&format!("SET @pitr={}", self.number));
        let statements = std::mem::take(&mut self.statements);
        Some(Step::Packet(std::mem::take(&mut self.text), statements))
    }
}

/// A `BINLOG` statement that is being written.
#[derive(Debug, Default)]
struct Literal {
    open: bool,
    /// Up to two bytes that wait for a third.
    rest: Vec<u8>,
}

impl Literal {
    fn put(&mut self, mut bytes: &[u8], to: &mut Vec<u8>) {
        while !self.rest.is_empty() && self.rest.len() < 3 {
            let Some((&first, more)) = bytes.split_first() else { return };
            self.rest.push(first);
            bytes = more;
        }
        if self.rest.len() == 3 {
            append(&self.rest, to);
            self.rest.clear();
        }
        let (whole, rest) = bytes.split_at(bytes.len() - bytes.len() % 3);
        append(whole, to);
        self.rest.extend_from_slice(rest);
    }

    fn close(&mut self, to: &mut Vec<u8>) {
        append(&self.rest, to);
        self.rest.clear();
        to.push(b'\'');
        self.open = false;
    }
}

fn append(bytes: &[u8], to: &mut Vec<u8>) {
    let begin = to.len();
    to.resize(begin + bytes.len().div_ceil(3) * 4, 0);
    let room = to.get_mut(begin..).unwrap_or_default();
    // The room is exactly what is needed, so this writes all of it.
    let written = STANDARD.encode_slice(bytes, room).unwrap_or_default();
    debug_assert_eq!(begin + written, to.len());
}

/// What is done with the rest of the current event.
enum Event {
    /// Nothing: it changes nothing.
    Skipped,
    /// It goes into the literal. Whether it ends its statement, and its checksum if that has to
    /// be made.
    Rows { ends_statement: bool, crc: Option<crc32fast::Hasher> },
    /// It is collected until it is whole.
    Collected { head: Head, bytes: Vec<u8> },
    /// It holds events.
    Payload(Box<Payload>),
}

/// Whether transactions keep their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Names {
    /// They do.
    Kept,
    /// The target gives them new ones, if any.
    New,
}

/// Writes what is to be sent.
pub(super) struct Script {
    family: Family,
    names: Names,
    context: Context,
    packet: Packet,
    literal: Literal,
    event: Event,
    /// The assignment that names the transaction, until a packet has taken it.
    name: Option<String>,
    /// The same, for as long as the transaction is open.
    of_transaction: Option<String>,
    /// Whether a statement that commits may come within the transaction: of a MariaDB, if it is
    /// not one statement that stands by itself.
    in_group: bool,
    /// TABLE_MAP events of the current statement, as they go into the literal.
    maps: Vec<u8>,
    before: Before,
    checksum: Checksum,
    steps: VecDeque<Step>,
}

impl Script {
    /// A script for a session in which `@pitr` is 0.
    pub(super) fn new(
        family: Family,
        names: Names,
        collations: Collations,
        guarded: Guarded,
    ) -> Self {
        Self {
            family,
            names,
            context: Context { family, collations, guarded },
            packet: Packet::default(),
            literal: Literal::default(),
            event: Event::Skipped,
            name: None,
            of_transaction: None,
            in_group: false,
            maps: vec![],
            before: Before::default(),
            checksum: Checksum::None,
            steps: VecDeque::new(),
        }
    }

    /// What is to be sent next.
    pub(super) fn next_step(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    /// A file begins: its FORMAT_DESCRIPTION says how events are written.
    pub(super) fn format(&mut self, event: &[u8], checksum: Checksum) {
        self.checksum = checksum;
        // The name of the last transaction is used up, and BINLOG wants none. MariaDB's is gone.
        let unnamed = "@@SESSION.GTID_NEXT='AUTOMATIC'";
        self.packet.begin((self.family == Family::MySql).then_some(unnamed));
        self.packet.add("BINLOG '");
        self.literal.put(event, &mut self.packet.text);
        self.literal.close(&mut self.packet.text);
        if self.names == Names::New && self.family == Family::MySql {
            // The server takes a FORMAT_DESCRIPTION for the beginning of a log with names.
            self.packet.add("SET @@SESSION.GTID_NEXT='AUTOMATIC'");
        }
        self.steps.extend(self.packet.end());
    }

    /// A transaction begins.
    pub(super) fn begin(&mut self, gtid: Option<TxId>) {
        self.name = gtid.filter(|_| self.names == Names::Kept).map(|gtid| match gtid {
            TxId::MySql(gtid) => format!("@@SESSION.GTID_NEXT='{gtid}'"),
            TxId::Maria(gtid) => maria::name(gtid),
        });
        self.of_transaction.clone_from(&self.name);
        self.in_group = false;
    }

    /// A transaction has ended.
    pub(super) fn end(&mut self) {
        self.steps.extend(self.packet.end());
        self.maps.clear();
    }

    /// Takes the next part of an event of a transaction.
    ///
    /// # Errors
    /// Corrupt, if the event makes no sense; unavailable, if it cannot be applied this way.
    pub(super) fn take(&mut self, part: &Part) -> Result<()> {
        if let Some(head) = part.head
            && head.kind == kind::TRANSACTION_PAYLOAD
        {
            let end = if part.last { self.checksum.len() } else { 0 };
            let inner = part.bytes.get(HEAD_BYTES..part.bytes.len().saturating_sub(end));
            let (mut payload, at) = Payload::open(inner.unwrap_or_default())?;
            payload.push(part.bytes.slice(HEAD_BYTES + at..part.bytes.len() - end));
            self.event = Event::Payload(Box::new(payload));
        } else if let Event::Payload(payload) = &mut self.event
            && part.head.is_none()
        {
            payload.push(part.bytes.clone());
        } else {
            return self.part(part, self.checksum);
        }
        self.payload(part.last)
    }

    /// Takes what can be read of a payload.
    fn payload(&mut self, last: bool) -> Result<()> {
        let Event::Payload(mut payload) = std::mem::replace(&mut self.event, Event::Skipped) else {
            return Err(Error::bug("no payload is open"));
        };
        while let Some(part) = payload.next()? {
            self.part(&part, Checksum::None)?;
        }
        if last {
            return payload.finish();
        }
        self.event = Event::Payload(payload);
        Ok(())
    }

    /// A part of an event, whose events end in `checksum`; those of the file end in its own.
    fn part(&mut self, part: &Part, checksum: Checksum) -> Result<()> {
        let lacks_crc = self.checksum != checksum;
        if let Some(head) = part.head {
            self.event = match head.kind {
                kind::WRITE_ROWS
                | kind::UPDATE_ROWS
                | kind::DELETE_ROWS
                | kind::PARTIAL_UPDATE_ROWS
                | kind::WRITE_ROWS_V1
                | kind::UPDATE_ROWS_V1
                | kind::DELETE_ROWS_V1 => self.begin_rows(&head, &part.bytes, lacks_crc)?,
                kind::TABLE_MAP
                | kind::QUERY
                | kind::XID
                | kind::XA_PREPARE
                | kind::INTVAR
                | kind::RAND
                | kind::USER_VAR
                | kind::MARIA_GTID
                | kind::MARIA_QUERY_COMPRESSED
                | kind::MARIA_WRITE_ROWS_COMPRESSED_V1..=kind::MARIA_DELETE_ROWS_COMPRESSED => {
                    Event::Collected { head, bytes: vec![] }
                }
                kind::GTID
                | kind::ANONYMOUS_GTID
                | kind::GTID_TAGGED
                | kind::ROWS_QUERY
                | kind::IGNORABLE
                | kind::TRANSACTION_CONTEXT
                | kind::VIEW_CHANGE
                | kind::MARIA_ANNOTATE_ROWS
                | kind::MARIA_BINLOG_CHECKPOINT => Event::Skipped,
                _ if head.flags & flag::IGNORABLE != 0 => Event::Skipped,
                kind::APPEND_BLOCK
                | kind::DELETE_FILE
                | kind::BEGIN_LOAD_QUERY
                | kind::EXECUTE_LOAD_QUERY => {
                    return Err(cannot("LOAD DATA was logged as a statement, with its file"));
                }
                other => return Err(cannot(&format!("an event of type {other}"))),
            };
        }
        match &mut self.event {
            Event::Skipped | Event::Payload(_) => {}
            Event::Collected { bytes, .. } => bytes.extend_from_slice(&part.bytes),
            Event::Rows { crc, .. } => {
                let bytes = if crc.is_some() && part.head.is_some() {
                    longer_by_crc(&part.bytes)
                } else {
                    part.bytes.clone()
                };
                if let Some(crc) = crc {
                    crc.update(&bytes);
                }
                self.literal.put(&bytes, &mut self.packet.text);
            }
        }
        if part.last { self.event_ended(lacks_crc) } else { Ok(()) }
    }

    fn event_ended(&mut self, lacks_crc: bool) -> Result<()> {
        match std::mem::replace(&mut self.event, Event::Skipped) {
            Event::Rows { ends_statement, crc } => {
                if let Some(crc) = crc {
                    let crc = crc.finalize().to_le_bytes();
                    self.literal.put(&crc, &mut self.packet.text);
                }
                if ends_statement {
                    self.maps.clear();
                }
                let is_long = self.packet.text.len() >= PACKET_BYTES;
                if ends_statement || is_long {
                    self.literal.close(&mut self.packet.text);
                }
                if is_long {
                    self.steps.extend(self.packet.end());
                }
                Ok(())
            }
            Event::Collected { head, bytes } => {
                let checksum = if lacks_crc { Checksum::None } else { self.checksum };
                self.collected(&head, &bytes, checksum, lacks_crc)
            }
            Event::Skipped | Event::Payload(_) => Ok(()),
        }
    }

    /// Where the flags of a row event stand, and the one at the end of a statement
    /// (`Rows_event::STMT_END_F`).
    fn begin_rows(&mut self, head: &Head, bytes: &[u8], lacks_crc: bool) -> Result<Event> {
        const FLAGS_AT: usize = HEAD_BYTES + 6;
        const STATEMENT_END: u16 = 1;
        let flags = bytes.get(FLAGS_AT..).and_then(|rest| Reader(rest).u16());
        let flags = flags
            .ok_or_else(|| Error::corrupt(format!("row event of type {}: too short", head.kind)))?;
        if !self.literal.open {
            self.open_packet();
            self.packet.add("BINLOG '");
            self.literal.open = true;
            self.literal.put(&self.maps, &mut self.packet.text);
        }
        let crc = lacks_crc.then(crc32fast::Hasher::new);
        Ok(Event::Rows { ends_statement: flags & STATEMENT_END != 0, crc })
    }

    fn open_packet(&mut self) {
        if self.packet.statements == 0 {
            let name = self.name.take();
            self.packet.begin(name.as_deref());
        }
    }

    /// Deals with an event that is whole.
    fn collected(
        &mut self,
        head: &Head,
        event: &[u8],
        checksum: Checksum,
        lacks_crc: bool,
    ) -> Result<()> {
        let inner = body(event, checksum)?;
        match head.kind {
            kind::TABLE_MAP => {
                let map = if lacks_crc {
                    let mut map = longer_by_crc(event).to_vec();
                    let crc = crc32fast::hash(&map).to_le_bytes();
                    map.extend_from_slice(&crc);
                    map
                } else {
                    event.to_vec()
                };
                if self.literal.open {
                    self.literal.put(&map, &mut self.packet.text);
                }
                self.maps.extend_from_slice(&map);
                Ok(())
            }
            kind::XID => self.own("COMMIT"),
            kind::XA_PREPARE => {
                let statement = xa_prepare(inner)
                    .ok_or_else(|| Error::corrupt("XA_PREPARE event: not in its form"))?;
                self.statement(statement.into_bytes(), 0);
                Ok(())
            }
            kind::INTVAR => self.before.intvar(inner),
            kind::RAND => self.before.rand(inner),
            kind::USER_VAR => self.before.user_var(inner, &self.context.collations),
            kind::MARIA_GTID => {
                let Some(opening) = maria::opening(inner)? else { return Ok(()) };
                self.in_group = true;
                self.own(&opening)
            }
            kind::MARIA_QUERY_COMPRESSED => {
                let (limit, mut buffer) = (u64::from(MAX_EVENT_BYTES), vec![]);
                let query = Query::parse(inner)?.uncompress_up_to(limit, true, &mut buffer)?;
                self.query(head, &query)
            }
            kind::QUERY => self.query(head, &Query::parse(inner)?),
            _ => self.compressed_rows(head, inner),
        }
    }

    /// Adds a compressed row event as the plain one that it stands for: `BINLOG` takes no other.
    fn compressed_rows(&mut self, head: &Head, inner: &[u8]) -> Result<()> {
        let rows = CompressedRows::parse(head.kind, inner)?;
        let length = rows.event_length() + self.checksum.len() as u64;
        let length = u32::try_from(length).ok().filter(|length| *length <= MAX_EVENT_BYTES);
        let length =
            length.ok_or_else(|| Error::corrupt("compressed row event: longer than any"))?;
        let mut start =
            event::build(Head { kind: rows.kind, ..*head }, rows.prefix, Checksum::None);
        set_length(&mut start, length);
        let mut event = self.begin_rows(head, &start, self.checksum == Checksum::Crc32)?;
        {
            let Event::Rows { crc, .. } = &mut event else {
                return Err(Error::bug("rows that are none"));
            };
            let mut put = |bytes: &[u8]| {
                if let Some(crc) = crc {
                    crc.update(bytes);
                }
                self.literal.put(bytes, &mut self.packet.text);
            };
            put(&start);
            rows.rows(put)?;
        }
        self.event = event;
        self.event_ended(false)
    }

    /// Adds a statement of pitr's own.
    fn own(&mut self, statement: &str) -> Result<()> {
        if self.literal.open {
            return Err(Error::corrupt("a statement ends before its last row"));
        }
        self.open_packet();
        self.packet.add(statement);
        if self.packet.bare {
            self.steps.extend(self.packet.end());
            self.packet.bare = false;
        }
        Ok(())
    }

    fn query(&mut self, head: &Head, query: &Query<'_>) -> Result<()> {
        for own in ["BEGIN", "COMMIT", "ROLLBACK"] {
            if query.error == 0 && query.statement.eq_ignore_ascii_case(own.as_bytes()) {
                return self.own(own);
            }
        }
        let Some(Ready { session, statement }) =
            self.context.ready(head, query, &mut self.before)?
        else {
            return Ok(());
        };
        for statement in &session {
            self.own(statement)?;
        }
        self.statement(statement, query.error);
        if self.in_group && maria::commits(query.statement) {
            // A MariaDB has committed it and used up the name; the table's rows have the same.
            self.name.clone_from(&self.of_transaction);
            self.own("START TRANSACTION")?;
        }
        // The table's rows follow, in the same transaction.
        self.packet.bare = query.statement.ends_with(b"START TRANSACTION")
            && query.statement.get(..6).is_some_and(|verb| verb.eq_ignore_ascii_case(b"CREATE"));
        Ok(())
    }

    /// A statement of the source follows what was written so far.
    fn statement(&mut self, mut statement: Vec<u8>, error: u16) {
        if statement.trim_ascii_end().ends_with(b";") {
            // Of several statements in a packet, all but the last end so, and definitions keep
            // the `;`. At the end of a packet the server would strip it.
            statement.extend_from_slice(b" SET @pitr_on=1");
        }
        self.open_packet();
        self.steps.extend(self.packet.end());
        self.steps.push_back(Step::Statement(statement, error));
    }
}

fn cannot(what: &str) -> Error {
    Error::unavailable(format!("{what}: it cannot be applied over an ordinary connection"))
        .hint("restore with --apply native")
}

/// The beginning of an event whose length is to count a checksum, too.
fn longer_by_crc(event: &[u8]) -> Bytes {
    let mut event = event.to_vec();
    let length = event.get(LENGTH_AT..).and_then(|rest| Reader(rest).u32()).unwrap_or_default();
    set_length(&mut event, length.wrapping_add(CRC_BYTES as u32));
    event.into()
}

/// Where the length stands in an event's head.
const LENGTH_AT: usize = 9;

fn set_length(event: &mut [u8], length: u32) {
    if let Some(room) = event.get_mut(LENGTH_AT..).and_then(|rest| rest.first_chunk_mut::<4>()) {
        *room = length.to_le_bytes();
    }
}

/// The statement that an XA_PREPARE event stands for.
fn xa_prepare(body: &[u8]) -> Option<String> {
    let mut at = Reader(body);
    let one_phase = at.u8()? != 0;
    let format = at.u32()?.cast_signed();
    let (gtrid, bqual) = (usize::try_from(at.u32()?).ok()?, usize::try_from(at.u32()?).ok()?);
    let xid = maria::xid(&mut at, format, gtrid, bqual)?;
    Some(if one_phase { format!("XA COMMIT {xid} ONE PHASE") } else { format!("XA PREPARE {xid}") })
}
