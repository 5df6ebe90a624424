//! Turns an archived stream into what a restored server is to execute.
//!
//! Everything from the baseline's place up to the cut passes through unchanged, except what
//! concerns only the replicas and subscribers of that moment (PING, REPLCONF, PUBLISH), and expiries
//! where they are to be moved. In front
//! comes the SELECT that the baseline's place needs.
//!
//! **Invariant:** a replay reaches the cut or fails: a stream that ends early, has a hole or does
//! not begin where the baseline stands is an error, never a shorter replay. Memory is bounded by
//! one piece of the archive.

use super::client::encode;
use super::examine::check_databases;
use super::resp::{Kind, Scanner, is_file};
use super::shift::Shift;
use crate::error::{Error, Result};
use crate::position::Position;
use crate::record::{Applied, Cut, Landing, Piece};
use bytes::Bytes;
use tokio::sync::mpsc;

/// How far behind the cut the first record that was left out is looked for.
const LEFT_OUT_SEARCH_BYTES: u64 = 16 << 20;

/// The next bytes to execute.
#[derive(Debug, Default)]
pub(super) struct Step {
    /// The bytes.
    pub(super) bytes: Vec<u8>,
    /// How many of them there are up to the end of the last record that ends in them; `None` if
    /// none does.
    pub(super) whole: Option<usize>,
}

/// What is to happen with the command that the scanner stands in.
#[derive(Debug, Default)]
enum Fate {
    /// Its name is not known yet; these are its bytes so far.
    #[default]
    Undecided,
    Pass,
    Drop,
}

/// How far the replay is with the baseline's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Met {
    No,
    /// Its log ended there, so the next one begins behind it: the next file, or the stream of a server
    /// that was promoted there.
    AtEndOfLog,
    /// The first SELECT was given out.
    Passed,
}

/// A replay under way.
#[derive(Debug)]
pub(super) struct Replay {
    pieces: mpsc::Receiver<Result<Piece>>,
    begin: Position,
    cut: Position,
    /// How many databases the target has, if that is known.
    databases: Option<u32>,
    /// Moves expiries, if they are to be moved.
    shift: Option<Shift>,
    scanner: Option<Scanner>,
    /// The log that the scanner stands in.
    log: String,
    /// Bytes of the archive not looked at yet.
    unread: Bytes,
    fate: Fate,
    held: Vec<u8>,
    begin_met: Met,
    /// Whether the cut's log was met.
    cut_log_met: bool,
    applied: Applied,
    /// Where the last record that was passed on begins, in the current log.
    last: Option<u64>,
    /// Offset behind the last whole record, in the current log.
    reached: u64,
    /// Bytes passed over up to there, and where the current log was entered.
    passed: u64,
    entered: u64,
    /// Whether a file was entered, which begins in database 0, with another one selected.
    select_anew: bool,
    /// The highest database selected.
    db_max: u32,
}

impl Replay {
    /// A replay from `begin`, the baseline's place, up to `cut`.
    pub(super) fn new(
        pieces: mpsc::Receiver<Result<Piece>>,
        begin: &Position,
        cut: &Cut,
        databases: Option<u32>,
    ) -> Result<Self> {
        let Cut::At(cut) = cut else {
            return Err(Error::bug("a Redis stream has no times: its cut must be a position"));
        };
        if cut.offset < begin.offset && (cut.log == begin.log || !is_file(&cut.log)) {
            return Err(Error::bug(format!("the cut {cut} lies before the baseline at {begin}")));
        }
        Ok(Self {
            pieces,
            begin: begin.clone(),
            cut: cut.clone(),
            databases,
            shift: None,
            scanner: None,
            log: String::new(),
            unread: Bytes::new(),
            fate: Fate::default(),
            held: vec![],
            begin_met: Met::No,
            cut_log_met: begin.log == cut.log,
            applied: Applied::default(),
            last: None,
            reached: begin.offset,
            passed: 0,
            entered: begin.offset,
            select_anew: false,
            db_max: begin.db,
        })
    }

    /// The same, with so many ms added to every expiry.
    pub(super) fn moved(self, by_ms: Option<i64>) -> Self {
        Self { shift: by_ms.map(Shift::new), ..self }
    }

    /// Commands met whose expiries, if they have any, could not be moved.
    pub(super) fn unknown_commands(&self) -> Vec<String> {
        self.shift.as_ref().map(Shift::unknown).unwrap_or_default()
    }

    /// The next bytes; `None` at the cut. Cancelling this loses nothing.
    pub(super) async fn next(&mut self) -> Result<Option<Step>> {
        loop {
            let Some(offset) = self.scanner.as_ref().map(Scanner::offset) else {
                let is_here = self.cut.log == self.begin.log || !is_file(&self.cut.log);
                if is_here && self.cut.offset == self.begin.offset {
                    return Ok(None);
                }
                self.read().await?;
                continue;
            };
            // Offsets of one file say nothing of another.
            let is_cut_log = self.log == self.cut.log || !is_file(&self.cut.log);
            if is_cut_log && offset >= self.cut.offset {
                return self.at_cut().map(|()| None);
            }
            if self.unread.is_empty() {
                self.read().await?;
                continue;
            }
            if self.begin_met == Met::No && offset < self.begin.offset {
                self.skip(self.begin.offset - offset)?;
                continue;
            }
            let left = if is_cut_log { self.cut.offset - offset } else { u64::MAX };
            let left = usize::try_from(left).unwrap_or(usize::MAX);
            let bytes = self.unread.split_to(left.min(self.unread.len()));
            let step = self.pass(&bytes)?;
            if !step.bytes.is_empty() || step.whole.is_some() {
                return Ok(Some(step));
            }
        }
    }

    /// What was passed on, once [`next`](Self::next) said `None`, and what comes behind the cut.
    pub(super) async fn finish(mut self) -> Applied {
        self.settle_last();
        self.applied.bytes = self.passed + self.reached - self.entered;
        let mut applied = std::mem::take(&mut self.applied);
        // A damage behind the cut is no matter of this restore.
        applied.first_left_out = self.left_out().await.unwrap_or(None);
        applied
    }

    /// The database selected behind the last whole record.
    pub(super) fn db(&self) -> u32 {
        self.scanner.as_ref().map_or(self.begin.db, Scanner::db)
    }

    /// The highest database selected in the baseline's place and behind it.
    pub(super) fn db_max(&self) -> u32 {
        self.db_max
    }

    /// Takes the next piece of the archive.
    async fn read(&mut self) -> Result<()> {
        let piece = self.pieces.recv().await.transpose()?;
        let here = self.scanner.as_ref().map_or(self.begin.offset, Scanner::offset);
        match piece {
            Some(Piece::Bytes(bytes)) if self.scanner.is_some() => self.unread = bytes,
            Some(Piece::Log { at, .. }) => self.enter(at)?,
            Some(Piece::Bytes(_)) => {
                return Err(Error::bug("an archived stream begins without its position"));
            }
            None => {
                return Err(Error::corrupt(format!(
                    "the archive ends at {here}, before {}",
                    self.cut
                )));
            }
        }
        Ok(())
    }

    /// The next bytes stand at `at`.
    fn enter(&mut self, at: Position) -> Result<()> {
        // How far the log was read that ends here, and whether it is the baseline's.
        let before = self.scanner.as_ref().map(|s| (s.offset(), self.log == self.begin.log));
        match &self.scanner {
            None if at.offset > self.begin.offset => {
                return Err(Error::corrupt(format!(
                    "the archive goes on at {at}, behind the baseline at {}",
                    self.begin
                )));
            }
            None => self.scanner = Some(Scanner::of(&at.log, at.offset, at.db)),
            Some(scanner) if is_file(&at.log) && at.log != self.log => {
                if at.offset != 0 || at.db != 0 || !scanner.at_record_start() {
                    return Err(Error::corrupt(format!(
                        "the archive goes on at {at} within a record, or not at its beginning"
                    )));
                }
                self.select_anew = scanner.db() != 0;
                self.passed += self.reached - self.entered;
                (self.entered, self.reached) = (0, 0);
                self.scanner = Some(Scanner::of(&at.log, 0, 0));
            }
            Some(scanner) => {
                let here = scanner.offset();
                let fits = at.offset == here
                    && (!scanner.at_record_start() || at.db == scanner.db())
                    && (scanner.at_record_start() || at.log == self.log);
                if !fits {
                    return Err(Error::corrupt(format!(
                        "the archive goes on at {at} (database {}) instead of {}:{here} \
                         (database {})",
                        at.db,
                        self.log,
                        scanner.db()
                    )));
                }
            }
        }
        self.cut_log_met |= at.log == self.cut.log;
        if at.log != self.log {
            if self.begin_met == Met::No && before == Some((self.begin.offset, true)) {
                self.begin_met = Met::AtEndOfLog;
            }
            self.settle_last();
            self.log = at.log;
        }
        Ok(())
    }

    /// Walks over bytes before the baseline's place.
    fn skip(&mut self, left: u64) -> Result<()> {
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        let bytes = self.unread.split_to(left.min(self.unread.len()));
        if let Some(scanner) = &mut self.scanner {
            let mut at = 0;
            while scanner.next(&bytes, &mut at)?.is_some() {}
        }
        Ok(())
    }

    /// Passes bytes on that lie between the baseline's place and the cut.
    fn pass(&mut self, bytes: &[u8]) -> Result<Step> {
        let mut step = Step::default();
        let Some(scanner) = &mut self.scanner else { return Ok(step) };
        if self.begin_met != Met::Passed {
            let is_behind = self.log == self.begin.log || self.begin_met == Met::AtEndOfLog;
            if !scanner.at_record_start() || !is_behind {
                return Err(Error::corrupt(format!(
                    "the baseline at {} does not stand before a record of {}",
                    self.begin, self.log
                )));
            }
            self.begin_met = Met::Passed;
            self.db_max = self.db_max.max(scanner.db());
            check_databases(scanner.db(), self.databases)?;
            step.bytes = encode(&[b"SELECT", scanner.db().to_string().as_bytes()]);
            step.whole = Some(step.bytes.len());
        }
        if std::mem::take(&mut self.select_anew) {
            step.bytes.extend_from_slice(&encode(&[b"SELECT", b"0"]));
            step.whole = Some(step.bytes.len());
        }
        // Nearly all of it is passed on.
        step.bytes.reserve(self.held.len() + bytes.len());
        let mut at = 0;
        while at < bytes.len() {
            let from = at;
            let command = scanner.next(bytes, &mut at)?;
            let part = bytes.get(from..at).unwrap_or_default();
            let kind = command.map(|c| c.kind).or_else(|| scanner.kind_so_far());
            if let (Fate::Undecided, Some(kind)) = (&self.fate, kind) {
                self.fate = if kind.is_chatter() { Fate::Drop } else { Fate::Pass };
                if matches!(self.fate, Fate::Pass) {
                    emit(&mut self.shift, &self.held, &mut step.bytes)?;
                }
                self.held.clear();
            }
            match self.fate {
                Fate::Undecided => self.held.extend_from_slice(part),
                Fate::Pass => emit(&mut self.shift, part, &mut step.bytes)?,
                Fate::Drop => {}
            }
            if let Some(command) = command {
                self.fate = Fate::Undecided;
                if let Kind::Select(db) = command.kind {
                    check_databases(db, self.databases)?;
                    self.db_max = self.db_max.max(db);
                }
                if command.ends_record {
                    step.whole = Some(step.bytes.len());
                    self.reached = command.end;
                }
                if command.ends_record && command.record_has_data {
                    let start = command.record_start;
                    self.applied.first.get_or_insert_with(|| landing(&self.log, start));
                    self.applied.records += 1;
                    self.last = Some(start);
                }
            }
        }
        Ok(step)
    }

    /// Names the last record while its log is still the current one.
    fn settle_last(&mut self) {
        if let Some(start) = self.last.take() {
            self.applied.last = Some(landing(&self.log, start));
        }
    }

    /// Everything before the cut was read: is it the place meant?
    fn at_cut(&self) -> Result<()> {
        if self.cut_log_met {
            return Ok(());
        }
        Err(Error::corrupt(format!(
            "the archive reaches {}:{} without meeting {}",
            self.log, self.cut.offset, self.cut
        )))
    }

    /// The first record behind the last one that was passed on.
    async fn left_out(&mut self) -> Result<Option<Landing>> {
        if let Some(scanner) = self.scanner.as_ref().filter(|s| !s.at_record_start()) {
            return Ok(Some(landing(&self.log, scanner.record_start())));
        }
        let limit = self.cut.offset.saturating_add(LEFT_OUT_SEARCH_BYTES);
        loop {
            while let Some(scanner) = &mut self.scanner
                && !self.unread.is_empty()
            {
                let mut at = 0;
                let command = scanner.next(&self.unread, &mut at)?;
                let seen = command.map(|c| c.kind).or_else(|| scanner.kind_so_far());
                let start = command.map_or_else(|| scanner.record_start(), |c| c.record_start);
                if seen.is_some_and(Kind::is_data) || scanner.offset() > limit {
                    return Ok(Some(landing(&self.log, start)));
                }
                drop(self.unread.split_to(at));
            }
            match self.pieces.recv().await.transpose()? {
                Some(Piece::Bytes(bytes)) if self.scanner.is_some() => self.unread = bytes,
                Some(Piece::Log { at, .. }) => self.enter(at)?,
                Some(Piece::Bytes(_)) | None => return Ok(None),
            }
        }
    }
}

/// Passes bytes of commands on.
fn emit(shift: &mut Option<Shift>, bytes: &[u8], out: &mut Vec<u8>) -> Result<()> {
    match shift {
        Some(shift) => shift.feed(bytes, out),
        None => {
            out.extend_from_slice(bytes);
            Ok(())
        }
    }
}

fn landing(log: &str, offset: u64) -> Landing {
    Landing { position: format!("{log}:{offset}"), at: None }
}

#[cfg(test)]
mod tests;
