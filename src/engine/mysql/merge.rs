//! Consecutive small transactions as one: a restore owes the state at the cut, not each commit on
//! the way there, and a target applies few large transactions several times faster.
//!
//! A pure stage between the walk over the log and the wire: transactions go in, events come out.
//! Merged are transactions of row changes alone, in their order: the first one's GTID and BEGIN,
//! each TABLE_MAP once, all row events as one statement, the last one's XID. The server opens and
//! locks the tables of a statement once: that is where the time goes otherwise. Whatever is
//! anything else ends what was merged so far and goes through as it is.
//!
//! What is merged goes out as several transactions where its tables are of different groups
//! ([`super::groups`]), which the target may apply at the same time. They have the names of the first
//! ones that were merged. Their logical clocks let each of them wait for all that came before they
//! were merged, and everything later wait for them.
//!
//! **Invariant:** the row events of merged transactions are those of the log, byte for byte but
//! for the mark at the end of a statement, and those of a group are in the order of the log. What is
//! merged, and how, depends on the log and on what was known before it alone, so that it is the same
//! each time.

use super::event::{
    self, Checksum, HEAD_BYTES, Head, Query, Reader, body, kind, renew_crc, with_clock,
};
use super::executed::TxId;
use super::groups::Groups;
use super::payload::Payload;
use crate::error::{Error, Result};
use bytes::Bytes;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;

/// The longest transaction that is merged with others, in bytes as the log has it.
pub(super) const TRANSACTION_BYTES: u64 = 1 << 20;
/// The longest that one may become when it is decompressed, in bytes.
const OPENED_BYTES: usize = 4 << 20;
/// How much is merged at most, in bytes and in transactions: the target holds its changes in
/// memory until it commits.
const BATCH_BYTES: usize = 8 << 20;
const BATCH_TRANSACTIONS: u32 = 1000;

/// Where the flags of a row event stand in its body (`Rows_event` in the server's
/// `libs/mysql/binlog/event/rows_event.h`), behind the number of its table.
const ROW_FLAGS: Range<usize> = 6..8;
/// The last row event of a statement (`STMT_END_F`).
const STATEMENT_END: u16 = 1;

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offer {
    /// It is part of what is merged now.
    Taken,
    /// It can be merged, but not with what is merged now: that has to be handed out first.
    Later,
    /// It has to go through as it is, behind what is merged now.
    NotPlain,
}

/// How transactions are merged.
#[derive(Debug, Clone)]
pub(super) struct Merge {
    /// The groups of tables at the beginning of the log.
    pub(super) groups: Groups,
    /// How many transactions go out at once, at the most.
    pub(super) lanes: usize,
}

/// Merges transactions.
#[derive(Debug)]
pub(super) struct Merger {
    groups: Groups,
    lanes: usize,
    /// The last number of the logical clock.
    clock: i64,
    batch: Batch,
    /// A transaction that was compressed.
    opened: Vec<u8>,
}

/// A transaction that goes out: its name, and its events.
pub(super) type Merged = (TxId, Vec<u8>);

/// What is merged now. Its events lack their checksums, and room for those is there.
#[derive(Debug, Default)]
struct Batch {
    /// How the first transactions begin, of which as many are kept as may go out.
    starts: Vec<Start>,
    transactions: u32,
    checksum: Option<Checksum>,
    /// `log_pos` of the first GTID event. Replicas take the last one they got for their place, and
    /// it must not go back: all events have this one, but for the last XID, which has the end of the
    /// last transaction.
    log_pos: u32,
    /// Of each number of a table, what is known of it.
    tables: HashMap<u64, Table>,
    /// Of each table, its number.
    numbers: HashMap<Vec<u8>, u64>,
    /// The changes of each group, in the order in which groups appear.
    parts: Vec<Part>,
    /// How long the bodies of all row events are.
    bytes: usize,
    /// XID of the last transaction.
    end: Vec<u8>,
    /// The session of BEGIN, and the flags of its row events.
    session: Vec<u8>,
    flags: u16,
}

/// How a transaction begins.
#[derive(Debug)]
struct Start {
    name: TxId,
    gtid: (Head, Vec<u8>),
    begin: Vec<u8>,
}

/// A table, by its TABLE_MAP.
#[derive(Debug)]
struct Table {
    /// The event.
    map: Vec<u8>,
    name: Vec<u8>,
    /// Where its rows are, if it has some: the place of its group among the parts.
    part: Option<usize>,
}

/// The changes of a group of tables.
#[derive(Debug, Default)]
struct Part {
    group: String,
    maps: Vec<u8>,
    rows: Vec<u8>,
    /// Where the last row event begins.
    last_row: usize,
}

/// An event without its checksum.
#[derive(Debug, Clone, Copy)]
struct Event<'a> {
    head: Head,
    body: &'a [u8],
}

/// A transaction of row changes alone.
#[derive(Debug)]
struct Plain<'a> {
    gtid: Event<'a>,
    begin: Event<'a>,
    /// Its session, as BEGIN has it.
    session: &'a [u8],
    /// One of each table, with the number of the table and its name.
    maps: Vec<(u64, &'a [u8], Event<'a>)>,
    rows: Vec<Event<'a>>,
    /// Flags of the row events, without [`STATEMENT_END`].
    flags: u16,
    xid: Event<'a>,
    /// `log_pos` of its last event in the file.
    log_pos: u32,
}

impl Merger {
    /// One that merges nothing yet.
    pub(super) fn new(merge: &Merge) -> Self {
        Self {
            groups: merge.groups.clone(),
            lanes: merge.lanes,
            clock: 0,
            batch: Batch::default(),
            opened: vec![],
        }
    }

    /// Offers a whole transaction as the log has it. It is taken in, or nothing has changed.
    ///
    /// # Errors
    /// Corrupt, if it is not what a server writes.
    pub(super) fn offer(
        &mut self,
        gtid: TxId,
        transaction: &[u8],
        checksum: Checksum,
    ) -> Result<Offer> {
        let Some(plain) = Plain::read(transaction, checksum, &mut self.opened)? else {
            return Ok(Offer::NotPlain);
        };
        // It may be sent with its GTID event, of which the clock is rewritten then.
        with_clock(&plain.gtid.head, plain.gtid.body, 0, 1)?;
        if !self.batch.can_take(&plain, checksum) {
            return Ok(Offer::Later);
        }
        self.batch.add(gtid, &plain, checksum, self.lanes, &self.groups)?;
        Ok(Offer::Taken)
    }

    /// Hands out what is merged, in order, and begins anew.
    ///
    /// # Errors
    /// Corrupt, if a GTID event is not what a server writes.
    pub(super) fn flush(&mut self) -> Result<Vec<Merged>> {
        let batch = std::mem::take(&mut self.batch);
        let Some(checksum) = batch.checksum else { return Ok(vec![]) };
        let lanes = batch.lanes();
        let (last, before) = (lanes.len().saturating_sub(1), self.clock);
        let mut merged = vec![];
        for (n, (start, parts)) in batch.starts.iter().zip(&lanes).enumerate() {
            self.clock += 1;
            let mut events = vec![];
            let (head, gtid) = &start.gtid;
            let gtid = with_clock(head, gtid, before, self.clock)?;
            let gtid = Event { head: *head, body: &gtid };
            gtid.append(batch.log_pos, checksum, &mut events);
            events.extend_from_slice(&start.begin);
            for part in parts {
                events.extend_from_slice(&part.maps);
            }
            let mut last_row = 0;
            for part in parts {
                last_row = events.len() + part.last_row;
                events.extend_from_slice(&part.rows);
            }
            // All row events are one statement.
            let end = events.get_mut(last_row + HEAD_BYTES..).unwrap_or_default();
            set_flags(end, batch.flags | STATEMENT_END);
            let xid = Event { head: Head::parse(&batch.end)?, body: body(&batch.end, checksum)? };
            let log_pos = if n == last { xid.head.log_pos } else { batch.log_pos };
            xid.append(log_pos, checksum, &mut events);
            seal(&mut events, checksum)?;
            merged.push((start.name, events));
        }
        Ok(merged)
    }

    /// The GTID event of a transaction that goes out as it is: everything before it has to be
    /// committed by then, and everything later waits for it.
    ///
    /// # Errors
    /// Corrupt, if it is not what a server writes.
    pub(super) fn alone(&mut self, gtid: &[u8], checksum: Checksum) -> Result<Vec<u8>> {
        let head = Head::parse(gtid)?;
        let written = with_clock(&head, body(gtid, checksum)?, self.clock, self.clock + 1)?;
        self.clock += 1;
        let mut event = event::build(head, &written, checksum);
        seal(&mut event, checksum)?;
        Ok(event)
    }

    /// Takes note of what a transaction that goes out as it is may do to the groups.
    ///
    /// # Errors
    /// Corrupt, if it is not what a server writes.
    pub(super) fn note(&mut self, transaction: &[u8], checksum: Checksum) -> Result<()> {
        for event in read(transaction, checksum)? {
            if event.head.kind != kind::TRANSACTION_PAYLOAD {
                self.groups.note_event(&event.head, event.body, true)?;
            } else if open(event.body, &mut self.opened)? {
                for event in read(&self.opened, Checksum::None)? {
                    self.groups.note_event(&event.head, event.body, true)?;
                }
            } else {
                self.groups.doubt();
            }
        }
        Ok(())
    }

    /// The same for the first part of an event, which may be `whole`.
    ///
    /// # Errors
    /// Corrupt, if it is not what a server writes.
    pub(super) fn note_part(&mut self, head: &Head, part: &[u8], whole: bool) -> Result<()> {
        self.groups.note_event(head, part.get(HEAD_BYTES..).unwrap_or_default(), whole)
    }
}

impl Batch {
    /// Whether a transaction can become part of it. An empty one takes any.
    fn can_take(&self, plain: &Plain<'_>, checksum: Checksum) -> bool {
        if self.transactions == 0 {
            return true;
        }
        let same_table = |(number, name, map): &(u64, &[u8], Event<'_>)| {
            // One number for two definitions, or two numbers for one table: it was changed.
            let known = self.tables.get(number);
            known
                .is_none_or(|table| body(&table.map, checksum).is_ok_and(|known| known == map.body))
                && self.numbers.get(*name).is_none_or(|known| known == number)
        };
        self.transactions < BATCH_TRANSACTIONS
            && self.bytes + plain.bytes() <= BATCH_BYTES
            && self.checksum == Some(checksum)
            && self.session == plain.session
            && self.flags == plain.flags
            && plain.maps.iter().all(same_table)
    }

    fn add(
        &mut self,
        name: TxId,
        plain: &Plain<'_>,
        checksum: Checksum,
        lanes: usize,
        groups: &Groups,
    ) -> Result<()> {
        if self.transactions == 0 {
            self.checksum = Some(checksum);
            self.session.extend_from_slice(plain.session);
            self.flags = plain.flags;
            self.log_pos = plain.gtid.head.log_pos;
        }
        if self.starts.len() < lanes {
            let gtid = (plain.gtid.head, plain.gtid.body.to_vec());
            let mut begin = vec![];
            plain.begin.append(self.log_pos, checksum, &mut begin);
            self.starts.push(Start { name, gtid, begin });
        }
        self.transactions += 1;
        self.bytes += plain.bytes();
        for (number, name, map) in &plain.maps {
            let Entry::Vacant(new) = self.tables.entry(*number) else { continue };
            let mut event = vec![];
            map.append(self.log_pos, checksum, &mut event);
            new.insert(Table { map: event, name: name.to_vec(), part: None });
            self.numbers.insert(name.to_vec(), *number);
        }
        let log_pos = self.log_pos;
        for event in &plain.rows {
            let (number, _) = row_head(event.body)?;
            let part = self.part_of(number, groups)?;
            part.last_row = part.rows.len();
            event.append(log_pos, checksum, &mut part.rows);
            let body = part.rows.get_mut(part.last_row + HEAD_BYTES..).unwrap_or_default();
            set_flags(body, plain.flags);
        }
        self.end.clear();
        plain.xid.append(plain.log_pos, checksum, &mut self.end);
        Ok(())
    }

    /// Where the rows of the table of this number go.
    fn part_of(&mut self, number: u64, groups: &Groups) -> Result<&mut Part> {
        let unknown = || Error::bug("a row of a table that is not known");
        let table = self.tables.get_mut(&number).ok_or_else(unknown)?;
        let at = match table.part {
            Some(at) => at,
            None => {
                let group = groups.of(&table.name);
                let at = self.parts.iter().position(|part| part.group == group);
                let at = at.unwrap_or(self.parts.len());
                if at == self.parts.len() {
                    self.parts.push(Part { group, ..Part::default() });
                }
                table.part = Some(at);
                let part = self.parts.get_mut(at).ok_or_else(unknown)?;
                part.maps.extend_from_slice(&table.map);
                at
            }
        };
        self.parts.get_mut(at).ok_or_else(unknown)
    }

    /// Which parts go out together: as many as there are names for, about equally much in each.
    fn lanes(&self) -> Vec<Vec<&Part>> {
        let mut parts: Vec<&Part> = self.parts.iter().collect();
        parts.sort_by_key(|part| std::cmp::Reverse(part.rows.len()));
        let count = self.starts.len().min(parts.len());
        let mut lanes: Vec<(usize, Vec<&Part>)> = vec![(0, vec![]); count];
        for part in parts {
            if let Some((bytes, lane)) = lanes.iter_mut().min_by_key(|(bytes, _)| *bytes) {
                *bytes += part.rows.len();
                lane.push(part);
            }
        }
        lanes.into_iter().map(|(_, lane)| lane).collect()
    }
}

impl Event<'_> {
    fn append(&self, log_pos: u32, checksum: Checksum, to: &mut Vec<u8>) {
        event::append(Head { log_pos, ..self.head }, self.body, checksum, to);
    }
}

impl<'a> Plain<'a> {
    /// How long the bodies of its row events are.
    fn bytes(&self) -> usize {
        self.rows.iter().map(|event| event.body.len()).sum()
    }

    /// Reads a transaction; `None` if it is anything but row changes of transactional tables.
    fn read(
        transaction: &'a [u8],
        checksum: Checksum,
        opened: &'a mut Vec<u8>,
    ) -> Result<Option<Self>> {
        let mut all = read(transaction, checksum)?.into_iter();
        let (Some(gtid), Some(mut begin)) = (all.next(), all.next()) else { return Ok(None) };
        let mut log_pos = None;
        if begin.head.kind == kind::TRANSACTION_PAYLOAD {
            log_pos = Some(begin.head.log_pos);
            if all.len() > 0 || !open(begin.body, opened)? {
                return Ok(None);
            }
            all = read(opened, Checksum::None)?.into_iter();
            let Some(first) = all.next() else { return Ok(None) };
            begin = first;
        }
        if begin.head.kind != kind::QUERY {
            return Ok(None);
        }
        let query = Query::parse(begin.body)?;
        if query.statement != b"BEGIN" || query.error != 0 {
            return Ok(None);
        }
        let (mut maps, mut rows) = (Vec::<(u64, &[u8], Event<'_>)>::new(), Vec::new());
        let mut flags = None;
        while let Some(event) = all.next() {
            match event.head.kind {
                kind::ROWS_QUERY => {}
                kind::TABLE_MAP => {
                    let (number, name) = table(event.body)?;
                    let known = maps.iter().find(|(of, other, _)| *of == number || *other == name);
                    match known {
                        None => maps.push((number, name, event)),
                        // Each statement has its own; they are the same, or a table was changed.
                        Some((of, _, known)) if *of == number && known.body == event.body => {}
                        Some(_) => return Ok(None),
                    }
                }
                kind::WRITE_ROWS
                | kind::UPDATE_ROWS
                | kind::DELETE_ROWS
                | kind::PARTIAL_UPDATE_ROWS
                | kind::WRITE_ROWS_V1
                | kind::UPDATE_ROWS_V1
                | kind::DELETE_ROWS_V1 => {
                    let (number, found) = row_head(event.body)?;
                    let known = maps.iter().any(|(of, _, _)| *of == number);
                    let others = found & !STATEMENT_END;
                    if !known || *flags.get_or_insert(others) != others {
                        return Ok(None);
                    }
                    rows.push(event);
                }
                kind::XID => {
                    let Some(flags) = flags.filter(|_| all.len() == 0) else {
                        return Ok(None);
                    };
                    let (session, xid) = (query.status, event);
                    let log_pos = log_pos.unwrap_or(xid.head.log_pos);
                    return Ok(Some(Self {
                        gtid,
                        begin,
                        session,
                        maps,
                        rows,
                        flags,
                        xid,
                        log_pos,
                    }));
                }
                _ => return Ok(None),
            }
        }
        Ok(None)
    }
}

/// Splits a transaction into events.
fn read(transaction: &[u8], checksum: Checksum) -> Result<Vec<Event<'_>>> {
    events(transaction)
        .map(|event| {
            let event = event?;
            Ok(Event { head: Head::parse(event)?, body: body(event, checksum)? })
        })
        .collect()
}

/// The events that bytes consist of, each as a whole.
pub(super) fn events(mut bytes: &[u8]) -> impl Iterator<Item = Result<&[u8]>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let event = Head::parse(bytes).and_then(|head| {
            let split = bytes.split_at_checked(head.length as usize);
            split.ok_or_else(|| Error::corrupt("a transaction ends within an event"))
        });
        Some(event.map(|(event, rest)| {
            bytes = rest;
            event
        }))
    })
}

/// Decompresses a TRANSACTION_PAYLOAD. `false` if it is too long to be merged.
fn open(event: &[u8], to: &mut Vec<u8>) -> Result<bool> {
    to.clear();
    let (mut payload, at) = Payload::open(event)?;
    payload.push(Bytes::copy_from_slice(event.get(at..).unwrap_or_default()));
    while let Some(part) = payload.next()? {
        to.extend_from_slice(&part.bytes);
        if to.len() > OPENED_BYTES {
            return Ok(false);
        }
    }
    payload.finish()?;
    Ok(true)
}

/// The number of the table that a TABLE_MAP is about, and its name: schema and table, each with
/// its length.
fn table(body: &[u8]) -> Result<(u64, &[u8])> {
    let mut at = Reader(body);
    let mut parse = || {
        let number = number(&mut at)?;
        at.u16()?;
        let name = at.0;
        for _ in 0..2 {
            let len = usize::from(at.u8()?);
            at.bytes(len + 1)?;
        }
        Some((number, name.get(..name.len() - at.0.len())?))
    };
    parse().ok_or_else(|| Error::corrupt("TABLE_MAP event: too short"))
}

/// The number of the table that a row event is about, and the event's flags.
fn row_head(body: &[u8]) -> Result<(u64, u16)> {
    let mut at = Reader(body);
    let mut parse = || Some((number(&mut at)?, at.u16()?));
    parse().ok_or_else(|| Error::corrupt("row event: too short"))
}

fn number(at: &mut Reader<'_>) -> Option<u64> {
    at.array::<6>().map(|&[a, b, c, d, e, f]| u64::from_le_bytes([a, b, c, d, e, f, 0, 0]))
}

fn set_flags(body: &mut [u8], flags: u16) {
    if let Some(place) = body.get_mut(ROW_FLAGS) {
        place.copy_from_slice(&flags.to_le_bytes());
    }
}

/// Gives consecutive events their checksums.
fn seal(mut events: &mut [u8], checksum: Checksum) -> Result<()> {
    while checksum == Checksum::Crc32 && !events.is_empty() {
        let length = Head::parse(events)?.length as usize;
        let (event, rest) = std::mem::take(&mut events)
            .split_at_mut_checked(length)
            .ok_or_else(|| Error::bug("merged events that do not fit"))?;
        renew_crc(event);
        events = rest;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
