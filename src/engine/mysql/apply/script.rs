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

use super::super::event::{CRC_BYTES, Checksum, HEAD_BYTES, Head, Query, Reader, body, flag, kind};
use super::super::executed::TxId;
use super::super::stream::Part;
use super::payload::Payload;
use super::session::{self, Before, Collations, Guarded};
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
    /// Begins one, if none is begun. `gtid` is taken by what follows.
    fn begin(&mut self, gtid: Option<&str>) {
        if self.statements > 0 || self.bare {
            return;
        }
        let before = self.number;
        self.number += 1;
        let mut guard = format!("SET @pitr_on=IF(@pitr<=>{before},1,COT(0*IFNULL(@pitr,0)))");
        if let Some(gtid) = gtid {
            guard.push_str(",@@SESSION.GTID_NEXT='");
            guard.push_str(gtid);
            guard.push('\'');
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
    names: Names,
    collations: Collations,
    guarded: Guarded,
    packet: Packet,
    literal: Literal,
    event: Event,
    /// The name of the transaction, until a packet has taken it.
    gtid: Option<String>,
    /// TABLE_MAP events of the current statement, as they go into the literal.
    maps: Vec<u8>,
    before: Before,
    checksum: Checksum,
    steps: VecDeque<Step>,
}

impl Script {
    /// A script for a session in which `@pitr` is 0.
    pub(super) fn new(names: Names, collations: Collations, guarded: Guarded) -> Self {
        Self {
            names,
            collations,
            guarded,
            packet: Packet::default(),
            literal: Literal::default(),
            event: Event::Skipped,
            gtid: None,
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
        // The name of the last transaction is used up, and BINLOG wants none.
        self.packet.begin(Some("AUTOMATIC"));
        self.packet.add("BINLOG '");
        self.literal.put(event, &mut self.packet.text);
        self.literal.close(&mut self.packet.text);
        if self.names == Names::New {
            // The server takes a FORMAT_DESCRIPTION for the beginning of a log with names.
            self.packet.add("SET @@SESSION.GTID_NEXT='AUTOMATIC'");
        }
        self.steps.extend(self.packet.end());
    }

    /// A transaction begins.
    pub(super) fn begin(&mut self, gtid: Option<TxId>) {
        let named = gtid.filter(|_| self.names == Names::Kept);
        self.gtid = named.map(|gtid| gtid.to_string());
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
                | kind::USER_VAR => Event::Collected { head, bytes: vec![] },
                kind::GTID
                | kind::ANONYMOUS_GTID
                | kind::GTID_TAGGED
                | kind::ROWS_QUERY
                | kind::IGNORABLE
                | kind::TRANSACTION_CONTEXT
                | kind::VIEW_CHANGE => Event::Skipped,
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
            let gtid = self.gtid.take();
            self.packet.begin(gtid.as_deref());
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
            kind::USER_VAR => self.before.user_var(inner, &self.collations),
            _ => self.query(head, &Query::parse(inner)?),
        }
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
        let ready = session::ready(head, query, &mut self.before, &mut self.guarded)?;
        for statement in &ready.session {
            self.own(statement)?;
        }
        self.statement(ready.statement, query.error);
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
    // Where the length stands in the head.
    if let Some(length) = event.get_mut(9..13).and_then(|length| length.first_chunk_mut::<4>()) {
        *length = u32::from_le_bytes(*length).wrapping_add(CRC_BYTES as u32).to_le_bytes();
    }
    event.into()
}

/// The statement that an XA_PREPARE event stands for.
fn xa_prepare(body: &[u8]) -> Option<String> {
    let mut at = Reader(body);
    let one_phase = at.u8()? != 0;
    let format = at.u32()?.cast_signed();
    let (gtrid, bqual) = (usize::try_from(at.u32()?).ok()?, usize::try_from(at.u32()?).ok()?);
    let (gtrid, bqual) = (session::hex(at.bytes(gtrid)?), session::hex(at.bytes(bqual)?));
    let xid = format!("X'{gtrid}',X'{bqual}',{format}");
    Some(if one_phase { format!("XA COMMIT {xid} ONE PHASE") } else { format!("XA PREPARE {xid}") })
}
