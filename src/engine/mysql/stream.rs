//! The log as a stream: bytes in pieces of any size become events, and events become records.
//!
//! [`Splitter`] finds the events and never holds more than the beginning of one. [`Track`] follows
//! them: where each transaction ends, which GTIDs were executed, whether the checksums are right.
//! Capture, the walk to a position and the serving side all read the log through these two.
//!
//! **Invariant:** offsets are summed from lengths; `log_pos`, which has 32 bits, is never believed.

use super::event::{
    CRC_BYTES, Checksum, FormatDescription, GtidEvent, HEAD_BYTES, Head, MAGIC, Query, body, kind,
    parse_executed_list,
};
use super::executed::Executed;
use super::packet::FIRST_FRAGMENT;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use bytes::{Buf, Bytes, BytesMut};

/// The largest event of those that are read whole. A set of a million intervals has 16 MB.
const WHOLE_LIMIT: usize = 64 << 20;

/// How much of an event is held together: all of those that pitr has to understand, and enough of
/// the others to see what they are.
fn held(head: &Head) -> Result<usize> {
    let length = head.length as usize;
    let is_read = head.is_gtid()
        || head.is_executed_list()
        || matches!(
            head.kind,
            kind::FORMAT_DESCRIPTION | kind::ROTATE | kind::HEARTBEAT | kind::HEARTBEAT_V2
        );
    if !is_read {
        return Ok(length.min(FIRST_FRAGMENT));
    }
    if length > WHOLE_LIMIT {
        return Err(Error::corrupt(format!("an event of type {} with {length} bytes", head.kind)));
    }
    Ok(length)
}

/// A part of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// The event's head, if this is its first part.
    pub(crate) head: Option<Head>,
    /// The bytes, from the head on. The first part has all of the event, or at least 64 KiB.
    pub(crate) bytes: Bytes,
    /// Whether the event ends with it.
    pub(crate) last: bool,
}

/// Splits consecutive bytes, which come in pieces of any size, into events.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    /// The beginning of an event whose first part is not complete yet.
    begun: BytesMut,
    /// What was pushed and is not handed out yet.
    piece: Bytes,
    /// How many bytes of the current event are still to be handed out.
    left: usize,
}

impl Splitter {
    /// Adds the next bytes. All parts of the bytes before must have been taken.
    pub(crate) fn push(&mut self, piece: Bytes) {
        debug_assert!(self.piece.is_empty(), "bytes are taken before more are pushed");
        self.piece = piece;
    }

    /// Whether the bytes so far end where an event ends.
    pub(crate) fn is_between_events(&self) -> bool {
        self.left == 0 && self.begun.is_empty() && self.piece.is_empty()
    }

    /// The next part, or `None` until more bytes are pushed.
    ///
    /// # Errors
    /// Corrupt, if the bytes are no events.
    pub(crate) fn next(&mut self) -> Result<Option<Part>> {
        if self.left > 0 {
            let len = self.left.min(self.piece.len());
            if len == 0 {
                return Ok(None);
            }
            self.left -= len;
            let bytes = self.piece.split_to(len);
            return Ok(Some(Part { head: None, bytes, last: self.left == 0 }));
        }
        // Nearly always the piece has the whole first part: then nothing is copied.
        let whole = if self.begun.is_empty() { first_part(&self.piece)? } else { None };
        let bytes = match whole {
            Some(len) => self.piece.split_to(len),
            None => match self.gather()? {
                Some(bytes) => bytes,
                None => return Ok(None),
            },
        };
        let head = Head::parse(&bytes)?;
        self.left = head.length as usize - bytes.len();
        Ok(Some(Part { head: Some(head), bytes, last: self.left == 0 }))
    }

    /// Collects a first part from several pieces.
    fn gather(&mut self) -> Result<Option<Bytes>> {
        self.take_up_to(HEAD_BYTES);
        if self.begun.len() < HEAD_BYTES {
            return Ok(None);
        }
        let wanted = held(&Head::parse(&self.begun)?)?;
        self.take_up_to(wanted);
        Ok((self.begun.len() >= wanted).then(|| self.begun.split().freeze()))
    }

    fn take_up_to(&mut self, len: usize) {
        let more = len.saturating_sub(self.begun.len()).min(self.piece.len());
        self.begun.extend_from_slice(self.piece.get(..more).unwrap_or_default());
        self.piece.advance(more);
    }
}

/// Length of the first part of the event that `bytes` begin with, if all of it is there.
fn first_part(bytes: &[u8]) -> Result<Option<usize>> {
    if bytes.len() < HEAD_BYTES {
        return Ok(None);
    }
    let wanted = held(&Head::parse(bytes)?)?;
    Ok((bytes.len() >= wanted).then_some(wanted))
}

/// What the end of an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// A transaction ends here.
    Record(GtidEvent),
    /// A transaction goes on.
    Within,
    /// The event belongs to no transaction.
    Outside,
}

/// A transaction that has begun and not ended.
#[derive(Debug, Clone, Copy)]
struct Open {
    event: GtidEvent,
    until: Until,
}

/// What ends an open transaction.
#[derive(Debug, Clone, Copy)]
enum Until {
    /// The event that ends at this offset, as the transaction itself says.
    Offset(u64),
    /// An event that commits it, or that stands by itself: MariaDB's do not say how long they are.
    Closing {
        /// Whether the current event is that one.
        now: bool,
    },
}

/// Follows the events of a file, and of the files after it.
#[derive(Debug)]
pub(crate) struct Track {
    /// Name of the file.
    pub(crate) log: String,
    /// Offset behind the last byte that was taken.
    pub(crate) offset: u64,
    /// Offset behind the last event at which no transaction was open.
    pub(crate) whole: u64,
    /// Everything executed before `whole`. `None` until the first PREVIOUS_GTIDS or GTID_LIST says
    /// it.
    pub(crate) gtids: Option<Executed>,
    /// How the events of the file are written.
    pub(crate) checksum: Checksum,
    /// Whether this file's PREVIOUS_GTIDS or GTID_LIST, the second of its events, is still to come.
    pub(crate) awaits_gtids: bool,
    /// What a server has executed and never logged (`gtid_purged` that was set by hand): no
    /// PREVIOUS_GTIDS has it. `None` if that is not known, and a list that lacks something passes.
    pub(crate) unlogged: Option<Executed>,
    /// Whether what comes is not the continuation of what came before.
    pub(crate) forked: bool,
    open: Option<Open>,
    /// Offset behind the current event.
    event_end: u64,
    /// Its checksum so far, and the one that stands at its end.
    crc: Option<crc32fast::Hasher>,
    crc_found: [u8; CRC_BYTES],
}

impl Track {
    /// Begins at a place in a file whose executed GTIDs are known, if they are.
    pub(crate) fn new(log: &str, offset: u64, gtids: Option<Executed>) -> Self {
        Self {
            log: log.to_owned(),
            offset,
            whole: offset,
            gtids,
            checksum: Checksum::None,
            awaits_gtids: offset == MAGIC.len() as u64,
            unlogged: None,
            forked: false,
            open: None,
            event_end: offset,
            crc: None,
            crc_found: [0; CRC_BYTES],
        }
    }

    /// Goes on at the beginning of another file, behind its magic bytes.
    ///
    /// # Errors
    /// Corrupt, if a transaction is open.
    pub(crate) fn begin_file(&mut self, log: &str) -> Result<()> {
        if self.is_open() {
            return Err(self.corrupt("the file ends within a transaction"));
        }
        let (gtids, unlogged) = (self.gtids.take(), self.unlogged.take());
        *self = Self { unlogged, ..Self::new(log, MAGIC.len() as u64, gtids) };
        Ok(())
    }

    /// Whether a transaction is open, or an event is.
    pub(crate) fn is_open(&self) -> bool {
        self.open.is_some() || self.offset != self.event_end
    }

    /// Takes the next part of the stream; says what ends with it, if an event does.
    ///
    /// # Errors
    /// Corrupt, if it is not what a server writes there.
    pub(crate) fn take(&mut self, part: &Part) -> Result<Option<End>> {
        if let Some(head) = &part.head {
            self.begin(head, part)?;
        }
        self.add_to_crc(part);
        self.offset += part.bytes.len() as u64;
        if !part.last {
            return Ok(None);
        }
        if let Some(crc) = self.crc.take()
            && crc.finalize().to_le_bytes() != self.crc_found
        {
            return Err(self.corrupt("an event does not match its checksum"));
        }
        let Some(open) = self.open else {
            self.whole = self.offset;
            return Ok(Some(End::Outside));
        };
        match open.until {
            Until::Offset(end) if self.offset > end => {
                return Err(self.corrupt("an event goes beyond the end of its transaction"));
            }
            Until::Offset(end) if self.offset < end => return Ok(Some(End::Within)),
            Until::Closing { now: false } => return Ok(Some(End::Within)),
            Until::Offset(_) | Until::Closing { now: true } => {}
        }
        self.open = None;
        self.whole = self.offset;
        if let (Some(gtid), Some(gtids)) = (open.event.gtid, &mut self.gtids)
            && !gtids.add(gtid)
        {
            self.forked = true;
            let what = format!("the transaction {gtid} comes twice, or is another server's");
            return Err(self.corrupt(&what));
        }
        Ok(Some(End::Record(open.event)))
    }

    /// Looks at the first part of an event.
    fn begin(&mut self, head: &Head, part: &Part) -> Result<()> {
        self.event_end = self.offset + u64::from(head.length);
        if head.kind == kind::FORMAT_DESCRIPTION {
            self.checksum = FormatDescription::parse(&part.bytes)?.checksum;
        }
        self.crc = (self.checksum == Checksum::Crc32).then(crc32fast::Hasher::new);
        if self.awaits_gtids && !(head.kind == kind::FORMAT_DESCRIPTION || head.is_executed_list())
        {
            return Err(self.corrupt("the file does not begin with the transactions before it"));
        }
        if self.open.is_some() { self.go_on(head, part) } else { self.begin_outside(head, part) }
    }

    /// An event that comes while no transaction is open.
    fn begin_outside(&mut self, head: &Head, part: &Part) -> Result<()> {
        match head.kind {
            _ if head.is_gtid() => {
                let event = GtidEvent::parse(head, body(&part.bytes, self.checksum)?)?;
                let until = if head.kind == kind::MARIA_GTID {
                    Until::Closing { now: false }
                } else if event.transaction_length < u64::from(head.length) {
                    return Err(self.corrupt("a transaction that does not say how long it is"));
                } else {
                    Until::Offset(self.offset.saturating_add(event.transaction_length))
                };
                self.open = Some(Open { event, until });
                Ok(())
            }
            _ if head.is_executed_list() => {
                let said = parse_executed_list(head.kind, body(&part.bytes, self.checksum)?)?;
                self.executed_list(said)
            }
            kind::FORMAT_DESCRIPTION
            | kind::ROTATE
            | kind::STOP
            | kind::IGNORABLE
            | kind::INCIDENT
            | kind::MARIA_BINLOG_CHECKPOINT => Ok(()),
            // Of a newer server: what it means is for whoever applies it.
            other if !kind::is_known(other) => Ok(()),
            other => {
                let what = format!("an event of type {other} outside of a transaction");
                Err(self.corrupt(&what))
            }
        }
    }

    /// An event that comes while a transaction is open.
    fn go_on(&mut self, head: &Head, part: &Part) -> Result<()> {
        let what = match head.kind {
            _ if head.is_gtid() => "a transaction begins within another".to_owned(),
            kind::FORMAT_DESCRIPTION
            | kind::ROTATE
            | kind::STOP
            | kind::PREVIOUS_GTIDS
            | kind::MARIA_GTID_LIST
            | kind::MARIA_BINLOG_CHECKPOINT => {
                format!("an event of type {} within a transaction", head.kind)
            }
            _ => {
                let checksum = self.checksum;
                if let Some(Open { event, until: Until::Closing { now } }) = &mut self.open {
                    *now = closes(event, head, part, checksum)?;
                    event.immediate_commit_ts = seconds(head.timestamp);
                }
                return Ok(());
            }
        };
        Err(self.corrupt(&what))
    }

    /// The proof of continuity at the beginning of each file.
    fn executed_list(&mut self, said: Executed) -> Result<()> {
        self.awaits_gtids = false;
        let Some(known) = &self.gtids else {
            let mut executed = said;
            if let Some(unlogged) = &self.unlogged {
                executed.union_with(unlogged);
            }
            self.gtids = Some(executed);
            return Ok(());
        };
        match known.contradicted_by(&said, self.unlogged.as_ref()) {
            None => {
                // It may have forgotten a domain that was deleted.
                if let Executed::Maria(_) = &said {
                    self.gtids = Some(said);
                }
                Ok(())
            }
            Some(why) => {
                self.forked = true;
                Err(self.corrupt(&format!("its list of executed transactions {why}")))
            }
        }
    }

    fn add_to_crc(&mut self, part: &Part) {
        let Some(crc) = &mut self.crc else { return };
        // The checksum itself may be split over parts.
        let crc_at = self.event_end - CRC_BYTES as u64;
        let summed = usize::try_from(crc_at.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        let (data, found) = part.bytes.split_at_checked(summed).unwrap_or((&part.bytes, &[]));
        crc.update(data);
        let skip = CRC_BYTES.saturating_sub(self.left_after(part) + found.len());
        for (to, from) in self.crc_found.iter_mut().skip(skip).zip(found) {
            *to = *from;
        }
    }

    /// How many bytes of the event follow behind this part.
    fn left_after(&self, part: &Part) -> usize {
        let end = self.offset + part.bytes.len() as u64;
        usize::try_from(self.event_end.saturating_sub(end)).unwrap_or(usize::MAX)
    }

    /// An error at the current place.
    pub(crate) fn corrupt(&self, what: &str) -> Error {
        Error::corrupt(format!("{}:{}: {what}", self.log, self.offset))
    }
}

/// Whether an event of MariaDB ends its transaction: by the rules by which the server itself finds
/// the end of an event group (`Log_event::is_part_of_group` and
/// `Query_log_event::peek_is_commit_rollback` in its `sql/log_event.h`).
fn closes(event: &GtidEvent, head: &Head, part: &Part, checksum: Checksum) -> Result<bool> {
    Ok(match head.kind {
        _ if event.is_standalone() => !matches!(
            head.kind,
            kind::INTVAR
                | kind::RAND
                | kind::USER_VAR
                | kind::TABLE_MAP
                | kind::MARIA_ANNOTATE_ROWS
                | kind::MARIA_PARTIAL_ROW_DATA
        ),
        kind::XID | kind::XA_PREPARE => true,
        // What does not come in one part is longer than COMMIT.
        kind::QUERY if part.last => Query::parse(body(&part.bytes, checksum)?)?.is_end(),
        kind::MARIA_QUERY_COMPRESSED if part.last => {
            let query = Query::parse(body(&part.bytes, checksum)?)?;
            // Nor is anything that is longer when it is compressed.
            query.statement.len() < COMPRESSED_END_MAX
                && query.uncompress(true, &mut Vec::new())?.is_end()
        }
        _ => false,
    })
}

/// The most bytes that `COMMIT` or `ROLLBACK` have when they are compressed, with their head.
const COMPRESSED_END_MAX: usize = 64;

fn seconds(seconds: u32) -> Option<Timestamp> {
    (seconds > 0).then(|| Timestamp::from_micros(i64::from(seconds) * 1_000_000))
}

#[cfg(test)]
pub(super) mod tests;
