//! Consecutive small transactions as one: a restore owes the state at the cut, not each commit on
//! the way there, and a target applies few large transactions several times faster.
//!
//! A pure stage between the walk over the log and the wire: transactions go in, events come out.
//! Merged are transactions of row changes alone, in their order: the first one's GTID and BEGIN,
//! each TABLE_MAP once, all row events as one statement, the last one's XID. The server opens and
//! locks the tables of a statement once: that is where the time goes otherwise. Whatever is
//! anything else ends what was merged so far and goes through as it is.
//!
//! **Invariant:** the row events of merged transactions are those of the log, byte for byte but
//! for the mark at the end of a statement, and in the order of the log. What is merged depends on
//! the log alone, so that it is the same each time.

use super::event::{self, Checksum, HEAD_BYTES, Head, Query, Reader, body, kind, renew_crc};
use super::executed::TxId;
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

/// Merges transactions.
#[derive(Debug, Default)]
pub(super) struct Merger {
    batch: Batch,
    /// A transaction that was compressed.
    opened: Vec<u8>,
}

/// What is merged now. Its events lack their checksums, and room for those is there.
#[derive(Debug, Default)]
struct Batch {
    /// The first transaction, by whose name all are known; `None` while there is none.
    first: Option<TxId>,
    transactions: u32,
    checksum: Option<Checksum>,
    /// GTID event and BEGIN of the first transaction.
    start: Vec<u8>,
    /// `log_pos` of its GTID event. Replicas take the last one they got for their place, and it must
    /// not go back: all events have this one, but for the XID, which has the end of the last
    /// transaction.
    log_pos: u32,
    maps: Vec<u8>,
    /// Of each number of a table, where its TABLE_MAP stands in `maps`.
    tables: HashMap<u64, Range<usize>>,
    /// Of each table, its number.
    numbers: HashMap<Vec<u8>, u64>,
    rows: Vec<u8>,
    /// Where the last row event begins.
    last_row: usize,
    /// XID of the last transaction.
    end: Vec<u8>,
    /// The session of BEGIN, and the flags of its row events.
    session: Vec<u8>,
    flags: u16,
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
        if !self.batch.can_take(&plain, checksum) {
            return Ok(Offer::Later);
        }
        self.batch.add(gtid, &plain, checksum);
        Ok(Offer::Taken)
    }

    /// The name under which what is merged now is known to the target, if something is.
    pub(super) fn name(&self) -> Option<TxId> {
        self.batch.first
    }

    /// Hands out the events of what is merged, in order, and begins anew.
    ///
    /// # Errors
    /// Those of `put`.
    pub(super) fn flush(&mut self, mut put: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let batch = &mut self.batch;
        if batch.first.is_some() {
            batch.end_statement();
            for events in [&mut batch.start, &mut batch.maps, &mut batch.rows, &mut batch.end] {
                seal(events, batch.checksum, &mut put)?;
            }
        }
        batch.clear();
        Ok(())
    }
}

impl Batch {
    /// Whether a transaction can become part of it. An empty one takes any.
    fn can_take(&self, plain: &Plain<'_>, checksum: Checksum) -> bool {
        if self.first.is_none() {
            return true;
        }
        let bytes: usize = plain.rows.iter().map(|event| event.body.len()).sum();
        let same_table = |(number, name, map): &(u64, &[u8], Event<'_>)| {
            // One number for two definitions, or two numbers for one table: it was changed.
            let definition = self.tables.get(number).and_then(|at| self.maps.get(at.clone()));
            definition.is_none_or(|definition| definition == map.body)
                && self.numbers.get(*name).is_none_or(|known| known == number)
        };
        self.transactions < BATCH_TRANSACTIONS
            && self.rows.len() + bytes <= BATCH_BYTES
            && self.checksum == Some(checksum)
            && self.session == plain.session
            && self.flags == plain.flags
            && plain.maps.iter().all(same_table)
    }

    fn add(&mut self, gtid: TxId, plain: &Plain<'_>, checksum: Checksum) {
        if self.first.is_none() {
            self.first = Some(gtid);
            self.checksum = Some(checksum);
            self.session.extend_from_slice(plain.session);
            self.flags = plain.flags;
            self.log_pos = plain.gtid.head.log_pos;
            for event in [plain.gtid, plain.begin] {
                event.append(self.log_pos, checksum, &mut self.start);
            }
        }
        self.transactions += 1;
        for (number, name, map) in &plain.maps {
            let Entry::Vacant(new) = self.tables.entry(*number) else { continue };
            let at = self.maps.len() + HEAD_BYTES;
            map.append(self.log_pos, checksum, &mut self.maps);
            new.insert(at..at + map.body.len());
            self.numbers.insert(name.to_vec(), *number);
        }
        for event in &plain.rows {
            self.last_row = self.rows.len();
            event.append(self.log_pos, checksum, &mut self.rows);
            let body = self.rows.get_mut(self.last_row + HEAD_BYTES..).unwrap_or_default();
            set_flags(body, plain.flags);
        }
        self.end.clear();
        plain.xid.append(plain.log_pos, checksum, &mut self.end);
    }

    /// All row events are one statement.
    fn end_statement(&mut self) {
        let last = self.rows.get_mut(self.last_row + HEAD_BYTES..).unwrap_or_default();
        set_flags(last, self.flags | STATEMENT_END);
    }

    /// Empties it, and keeps its memory.
    fn clear(&mut self) {
        self.first = None;
        self.checksum = None;
        self.transactions = 0;
        for bytes in
            [&mut self.start, &mut self.maps, &mut self.rows, &mut self.end, &mut self.session]
        {
            bytes.clear();
        }
        self.tables.clear();
        self.numbers.clear();
        self.last_row = 0;
    }
}

impl Event<'_> {
    fn append(&self, log_pos: u32, checksum: Checksum, to: &mut Vec<u8>) {
        event::append(Head { log_pos, ..self.head }, self.body, checksum, to);
    }
}

impl<'a> Plain<'a> {
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

/// Gives consecutive events their checksums and hands them out.
fn seal(
    mut events: &mut [u8],
    checksum: Option<Checksum>,
    put: &mut impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    while !events.is_empty() {
        let length = Head::parse(events)?.length as usize;
        let (event, rest) = std::mem::take(&mut events)
            .split_at_mut_checked(length)
            .ok_or_else(|| Error::bug("merged events that do not fit"))?;
        if checksum == Some(Checksum::Crc32) {
            renew_crc(event);
        }
        put(event)?;
        events = rest;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
