//! The walk over an archived log up to the cut, whichever way what is found goes into the target.
//!
//! It says where each file begins, which transaction begins with an event and which ends with it,
//! and where the cut is; it counts what a receipt tells, and takes note of scheduled events. What
//! is done with the events is the caller's.
//!
//! **Invariant:** the cut is decided before the first event of a record, and nothing behind it is
//! ever handed out.

use super::event::{self, Checksum, FormatDescription, GtidEvent, Head, MAGIC, Query, body, kind};
use super::events::States;
use super::executed::{Executed, TxId};
use super::merge::Merge;
use super::stream::{End, Part, Splitter, Track};
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::position::Position;
use crate::record::{Applied, Cut, Landing, OpenLog, Piece};
use bytes::{Buf, Bytes};
use std::fmt;
use tokio::sync::mpsc;

/// What is replayed.
#[derive(Clone)]
pub(super) struct Program {
    /// Reads the log from the beginning of the plan.
    pub(super) log: OpenLog,
    /// Where to stop.
    pub(super) cut: Cut,
    /// Everything executed before the beginning.
    pub(super) base: Executed,
    /// The scheduled events, as they are at the beginning.
    pub(super) events: States,
    /// Whether transactions are told apart by their places, as not all of them have GTIDs.
    pub(super) by_place: bool,
    /// How a replica gets small transactions merged into larger ones, if it does.
    pub(super) merge: Option<Merge>,
}

impl Program {
    /// Turns a cut by time into one by place, for a log whose transactions tell their time only
    /// at their end: that of a MariaDB. A cut that is not in the log stays as it is.
    ///
    /// # Errors
    /// Those of the log.
    pub(super) async fn find_place(&mut self) -> Result<()> {
        let Cut::After(until) = self.cut else { return Ok(()) };
        let never = Timestamp::from_micros(i64::MAX);
        let everything = Self { cut: Cut::After(never), ..self.clone() };
        let mut walk = Walk::new(&everything);
        let mut pieces = (self.log)();
        while let Some(piece) = pieces.recv().await.transpose()? {
            match piece {
                Piece::Log { at, head } => drop(walk.open(&at, &head)?),
                Piece::Bytes(bytes) => walk.push(bytes)?,
            }
            while let Some(next) = walk.next()? {
                let Next::Part(part, _) = next else { break };
                let (records, place) = (walk.records, walk.track()?.whole);
                walk.take(&part)?;
                let at = walk.last.as_ref().and_then(|last| last.at);
                if walk.records > records && at.is_some_and(|at| at > until) {
                    self.cut = Cut::At(Position::new(walk.track()?.log.clone(), place));
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program")
            .field("cut", &self.cut)
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

/// What stands before the cut.
#[derive(Debug, Clone)]
pub(super) struct Served {
    /// As the receipt has it.
    pub(super) applied: Applied,
    /// Everything executed at the cut.
    pub(super) gtids: Executed,
    /// The same as a target tells it that got this log: of transactions that were merged, only
    /// the first ones are known to it.
    pub(super) named: Executed,
    /// The scheduled events at the cut.
    pub(super) events: States,
    /// Where the last record before the cut ends; `None` if there is none.
    pub(super) end: Option<Position>,
}

/// Where in the log the walk is.
pub(super) struct Walk<'a> {
    program: &'a Program,
    /// `None` until the log's first piece.
    track: Option<Track>,
    splitter: Splitter,
    /// How many of the file's magic bytes are still to come.
    magic_left: usize,
    /// FORMAT_DESCRIPTION and PREVIOUS_GTIDS of the file.
    pub(super) format: Bytes,
    pub(super) previous: Bytes,
    /// Whether the last [`Self::open`] went on in the middle of another file: whoever follows has
    /// to be told how that one is written.
    pub(super) joined: bool,
    records: u64,
    bytes: u64,
    first: Option<Landing>,
    last: Option<Landing>,
    end: Option<Position>,
    events: States,
}

/// What comes next in the log.
pub(super) enum Next {
    /// A part of an event, to be given to [`Walk::take`] once it is dealt with; and the
    /// transaction, if one begins with it.
    Part(Part, Option<GtidEvent>),
    /// The cut, and the first record behind it.
    Cut(Option<Landing>),
}

impl<'a> Walk<'a> {
    /// At the beginning of the plan.
    pub(super) fn new(program: &'a Program) -> Self {
        Self {
            program,
            track: None,
            splitter: Splitter::default(),
            magic_left: 0,
            format: Bytes::new(),
            previous: Bytes::new(),
            joined: false,
            records: 0,
            bytes: 0,
            first: None,
            last: None,
            end: None,
            events: program.events.clone(),
        }
    }

    /// The file that the walk is in.
    pub(super) fn track(&self) -> Result<&Track> {
        self.track.as_ref().ok_or_else(|| Error::bug("bytes of a log before its name"))
    }

    /// Whether a transaction, or an event, is open.
    pub(super) fn is_open(&self) -> bool {
        self.track.as_ref().is_some_and(Track::is_open)
    }

    /// Whether nothing of the file but its magic bytes was walked over.
    pub(super) fn is_at_file_start(&self) -> bool {
        self.track.as_ref().is_some_and(|track| track.offset == MAGIC.len() as u64)
    }

    /// The place, for messages.
    pub(super) fn place(&self) -> String {
        self.track.as_ref().map_or_else(String::new, |t| format!("{}:{}", t.log, t.offset))
    }

    /// The log goes on at `at`. Says whether the cut is there.
    ///
    /// # Errors
    /// Corrupt, if that is not where the walk is.
    pub(super) fn open(&mut self, at: &Position, head: &Bytes) -> Result<bool> {
        let first = self.track.is_none();
        self.open_file(at, head)?;
        if first && self.format.is_empty() && at.offset > MAGIC.len() as u64 {
            return Err(Error::corrupt(format!("{at}: the head of the file is missing")));
        }
        self.is_at_cut()
    }

    fn open_file(&mut self, at: &Position, head: &Bytes) -> Result<()> {
        let magic = MAGIC.len() as u64;
        let start = at.offset.max(magic);
        if !self.splitter.is_between_events() || self.magic_left > 0 {
            return Err(Error::corrupt(format!(
                "{} ends within an event, and {at} follows",
                self.place()
            )));
        }
        let format = head.get(MAGIC.len()..).unwrap_or_default();
        let is_same = head.is_empty() || format.starts_with(&self.format);
        self.joined = false;
        match &mut self.track {
            // The same file goes on.
            Some(track) if track.log == at.log && track.offset == start && is_same => return Ok(()),
            Some(track) if start == magic => track.begin_file(&at.log)?,
            // The source failed over to a server that had the same transactions so far.
            Some(track) => {
                let gtids = at.gtids.parse().map_err(|error: Error| {
                    Error::corrupt(format!("archived position {at}")).source(error)
                })?;
                if track.is_open() || track.gtids.as_ref() != Some(&gtids) {
                    return Err(track.corrupt(&format!("the archive goes on at {at}, not here")));
                }
                self.track = Some(Track::new(&at.log, start, Some(gtids)));
                self.previous = Bytes::new();
                self.joined = true;
            }
            None => {
                let base = self.program.base.clone();
                self.track = Some(Track::new(&at.log, start, Some(base)));
            }
        }
        self.magic_left = usize::try_from(magic.saturating_sub(at.offset)).unwrap_or(0);
        if start > magic {
            self.read_head(at, head)?;
        }
        Ok(())
    }

    /// Takes FORMAT_DESCRIPTION and PREVIOUS_GTIDS from the head of a file whose middle follows.
    fn read_head(&mut self, at: &Position, head: &Bytes) -> Result<()> {
        let cut_short = || Error::corrupt(format!("{at}: the head of the file is cut short"));
        let mut rest = head.clone();
        if rest.len() < MAGIC.len() || rest.split_to(MAGIC.len()) != MAGIC[..] {
            return Err(cut_short());
        }
        let format = Head::parse(&rest)?;
        if format.kind != kind::FORMAT_DESCRIPTION || rest.len() < format.length as usize {
            return Err(cut_short());
        }
        self.format = rest.split_to(format.length as usize);
        let checksum = FormatDescription::parse(&self.format)?.checksum;
        if let Some(track) = &mut self.track {
            track.checksum = checksum;
        }
        // A list of GTIDs may be longer than the head; replicas can do without.
        if let Ok(previous) = Head::parse(&rest)
            && previous.is_executed_list()
            && rest.len() >= previous.length as usize
        {
            self.previous = rest.split_to(previous.length as usize);
        }
        Ok(())
    }

    /// Adds the next bytes. All parts of those before must have been taken.
    pub(super) fn push(&mut self, mut bytes: Bytes) -> Result<()> {
        let magic = self.magic_left.min(bytes.len());
        let expected = MAGIC.get(MAGIC.len() - self.magic_left..).unwrap_or_default();
        if !expected.starts_with(bytes.get(..magic).unwrap_or_default()) {
            return Err(self.track()?.corrupt("not a binlog"));
        }
        self.magic_left -= magic;
        bytes.advance(magic);
        self.track()?;
        self.splitter.push(bytes);
        Ok(())
    }

    /// What comes next, or `None` until more bytes are pushed.
    ///
    /// # Errors
    /// Corrupt, if it is no log, or one in which events were lost.
    pub(super) fn next(&mut self) -> Result<Option<Next>> {
        let Some(part) = self.splitter.next()? else { return Ok(None) };
        let Some(head) = &part.head else { return Ok(Some(Next::Part(part, None))) };
        let checksum = self.track()?.checksum;
        match head.kind {
            _ if head.is_executed_list() => self.previous = part.bytes.clone(),
            _ if head.is_gtid() => {
                let event = GtidEvent::parse(head, body(&part.bytes, checksum)?)?;
                if self.is_behind_cut(&event)? {
                    let here = self.track()?;
                    return Ok(Some(Next::Cut(Some(landing(&event, &here.log, here.offset)))));
                }
                return Ok(Some(Next::Part(part, Some(event))));
            }
            kind::INCIDENT => {
                return Err(self.track()?.corrupt("the source lost events here (INCIDENT)"));
            }
            kind::FORMAT_DESCRIPTION => {
                self.format = part.bytes.clone();
                self.previous = Bytes::new();
            }
            kind::QUERY | kind::MARIA_QUERY_COMPRESSED if self.is_open() => {
                self.note_statement(head.kind, &part, checksum)?;
            }
            _ => {}
        }
        Ok(Some(Next::Part(part, None)))
    }

    /// Goes over a part. Says whether the cut is behind it.
    ///
    /// # Errors
    /// Corrupt, if it is not what a server writes there.
    pub(super) fn take(&mut self, part: &Part) -> Result<bool> {
        let track =
            self.track.as_mut().ok_or_else(|| Error::bug("bytes of a log before its name"))?;
        let begin = track.whole;
        let end = track.take(part)?;
        self.bytes += part.bytes.len() as u64;
        match end {
            Some(End::Record(event)) => {
                self.records += 1;
                let landing = landing(&event, &track.log, begin);
                self.first.get_or_insert_with(|| landing.clone());
                self.last = Some(landing);
                if self.program.by_place {
                    self.end = Some(Position::new(&track.log, track.offset));
                }
                self.check_time(&event)?;
                self.is_at_cut()
            }
            Some(End::Outside) => self.is_at_cut(),
            Some(End::Within) | None => Ok(false),
        }
    }

    fn is_behind_cut(&self, event: &GtidEvent) -> Result<bool> {
        let Cut::After(until) = self.program.cut else { return Ok(false) };
        if let Some(TxId::Maria(_)) = event.gtid {
            // Its time is known only at its end: see `Program::find_place`.
            return Ok(false);
        }
        let at = event.immediate_commit_ts.ok_or_else(|| {
            let name = event.gtid.map_or_else(|| "a transaction".into(), |gtid| gtid.to_string());
            Error::refused(format!(
                "the source wrote no commit time for {name}: give a place, not a time"
            ))
            .hint("servers before MySQL 8.0.2 do not write commit times; upgrade the source")
        })?;
        Ok(at > until)
    }

    /// A transaction that told its time only at its end must not lie behind the cut.
    fn check_time(&self, event: &GtidEvent) -> Result<()> {
        match (&self.program.cut, event.immediate_commit_ts) {
            (Cut::After(until), Some(at)) if at > *until => {
                Err(Error::bug(format!("{} lies behind the cut and was walked over", self.place())))
            }
            _ => Ok(()),
        }
    }

    /// Whether the cut is at this place.
    fn is_at_cut(&self) -> Result<bool> {
        let (Cut::At(cut), Some(track)) = (&self.program.cut, &self.track) else {
            return Ok(false);
        };
        let at = cut.offset.max(MAGIC.len() as u64);
        if cut.log != track.log || track.offset < at {
            return Ok(false);
        }
        if track.offset > at || track.is_open() {
            return Err(Error::usage(format!("{cut} lies within a transaction, or an event"))
                .hint("restore to an instant instead: it is cut between transactions"));
        }
        Ok(true)
    }

    /// Scheduled events are made and changed by statements.
    fn note_statement(&mut self, kind: u8, part: &Part, checksum: Checksum) -> Result<()> {
        let bytes = if part.last {
            body(&part.bytes, checksum)?
        } else {
            part.bytes.get(event::HEAD_BYTES..).unwrap_or_default()
        };
        let mut query = Query::parse(bytes)?;
        let mut buffer = Vec::new();
        if kind == kind::MARIA_QUERY_COMPRESSED {
            query = query.uncompress(part.last, &mut buffer)?;
        }
        self.events.note(query.schema, query.statement);
        Ok(())
    }

    /// The archive is at its end: is that where the log may stop?
    ///
    /// # Errors
    /// Corrupt, if a transaction is open or the cut was not reached.
    pub(super) fn check_end(&self) -> Result<()> {
        let Some(track) = &self.track else {
            return match &self.program.cut {
                Cut::After(_) => Ok(()),
                Cut::At(at) => Err(Error::corrupt(format!("the archive has nothing before {at}"))),
            };
        };
        if track.is_open() || !self.splitter.is_between_events() {
            return Err(track.corrupt("the archive ends within a transaction"));
        }
        match &self.program.cut {
            Cut::After(_) => Ok(()),
            Cut::At(at) => Err(track.corrupt(&format!("the archive ends before {at}"))),
        }
    }

    /// What was walked over.
    pub(super) fn served(&self, first_left_out: Option<Landing>) -> Result<Served> {
        let gtids = match &self.track {
            Some(track) => track.gtids.clone().ok_or_else(|| Error::bug("no GTIDs are known"))?,
            None => self.program.base.clone(),
        };
        let applied = Applied {
            records: self.records,
            bytes: self.bytes,
            first: self.first.clone(),
            last: self.last.clone(),
            first_left_out,
            gtids: gtids.to_string(),
        };
        let named = gtids.clone();
        let (events, end) = (self.events.clone(), self.end.clone());
        Ok(Served { applied, gtids, named, events, end })
    }

    /// The first record behind a cut at a place. It is only named, so that trouble behind the cut
    /// is none.
    pub(super) async fn look_ahead(
        &mut self,
        pieces: &mut mpsc::Receiver<Result<Piece>>,
    ) -> Option<Landing> {
        let (executed, offset) = {
            let track = self.track.as_ref()?;
            (track.gtids.clone(), track.offset)
        };
        let found = self.find_next(pieces).await;
        // What was looked at was not walked over.
        if let Some(track) = &mut self.track {
            (track.gtids, track.offset) = (executed, offset);
        }
        found
    }

    async fn find_next(&mut self, pieces: &mut mpsc::Receiver<Result<Piece>>) -> Option<Landing> {
        let mut found = None;
        loop {
            while let Ok(Some(part)) = self.splitter.next() {
                let track = self.track.as_mut()?;
                if found.is_none()
                    && let Some(head) = &part.head
                    && head.is_gtid()
                {
                    let event = GtidEvent::parse(head, body(&part.bytes, track.checksum).ok()?);
                    found = Some(landing(&event.ok()?, &track.log, track.offset));
                    if found.as_ref()?.at.is_some() {
                        return found;
                    }
                }
                // A MariaDB says the time at the end.
                let begin = track.whole;
                match track.take(&part) {
                    Ok(Some(End::Record(event))) => {
                        return Some(landing(&event, &track.log, begin));
                    }
                    Ok(_) => {}
                    Err(_) => return found,
                }
            }
            match pieces.recv().await {
                Some(Ok(Piece::Bytes(bytes))) => {
                    if self.push(bytes).is_err() {
                        return found;
                    }
                }
                _ => return found,
            }
        }
    }
}

/// A record, by its name; one that has none, by the place where it begins.
pub(super) fn landing(event: &GtidEvent, log: &str, begin: u64) -> Landing {
    let place = || Position::new(log, begin).to_string();
    let position = event.gtid.map_or_else(place, |gtid| gtid.to_string());
    Landing { position, at: event.immediate_commit_ts }
}

#[cfg(test)]
mod tests;
