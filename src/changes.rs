//! The records of an archived source, decoded, in the order of its log.
//!
//! Only what an interval needs is opened: the catalog leads to the first segment, its block index to
//! the first block. Sealed segments and open ones are read alike.
//!
//! *Which interval a record belongs to.* Commit times may step back a little along the log, and a
//! record is never taken out of its order. So a record counts as committed when it was, but not
//! before any that stands before it in the log. Cut by that time, intervals are consecutive pieces
//! of the log, as those are that a restore applies: each record is in exactly one of them, now and
//! whenever it is looked at again.
//!
//! **Invariant:** what cannot be read is told to the visitor as such, with the instants that it may
//! concern; the walk goes on behind it.

use crate::archive::{Archive, Pieces, SegmentReader, log_head};
use crate::clock::Timestamp;
use crate::engine::decode::{Decode, Interest, Record, RowChange, Take};
use crate::engine::decoder;
use crate::error::{Class, Error, Result};
use crate::manifest::{EngineKind, PlacedLandmark, SegmentMeta};
use crate::plan;
use crate::position::Position;
use crate::record::Mark;
use std::collections::BTreeSet;

/// How many rows of segments are read at once.
const PAGE: usize = 256;

/// From one instant to another, which is not in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    /// The first instant; `None` for everything from the beginning.
    pub from: Option<Timestamp>,
    /// The first one behind it; `None` for everything up to the end.
    pub to: Option<Timestamp>,
}

/// Where a record stands.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The segment that it ends in.
    pub segment: &'a SegmentMeta,
    /// When it was committed: as the log says, or else the first time of the source's clock that
    /// was read behind it. `None` if neither is known.
    pub at: Option<Timestamp>,
    /// The time that it counts with: see the head of this module.
    pub counts_at: Timestamp,
    /// Bytes of the log from the end of the record before to its own.
    pub bytes: u64,
    /// Whether it is the first record of its segment.
    pub is_first: bool,
}

impl Place<'_> {
    /// As the engine names a record.
    pub fn position(&self, record: &Record) -> String {
        let place = || Position::new(&self.segment.header.start.log, record.start).to_string();
        record.name.clone().unwrap_or_else(place)
    }

    /// The landmark that the record is, if it is one.
    pub fn landmark(&self, record: &Record) -> Option<PlacedLandmark> {
        // They are in order.
        let known = &self.segment.totals.landmarks;
        let index = known.binary_search_by_key(&record.start, |known| known.offset).ok()?;
        PlacedLandmark::of(self.segment).nth(index)
    }
}

/// Something that cannot be read.
#[derive(Debug, Clone)]
pub struct Broken {
    /// What was before was committed until then; `None` if nothing is known.
    pub after: Option<Timestamp>,
    /// Everything behind it was committed later than this; `None` if that is not known.
    pub before: Option<Timestamp>,
    /// A sentence for the operator.
    pub reason: String,
    /// What an error of it is.
    pub class: Class,
}

/// Who is told what the walk comes upon.
pub trait Visit {
    /// A record of the interval.
    ///
    /// # Errors
    /// Whatever keeps it from going on; ends the walk.
    fn record(&mut self, place: &Place<'_>, record: Record) -> Result<()>;

    /// A row of a record of the interval, where rows are asked for, and when it was committed.
    ///
    /// # Errors
    /// As [`Self::record`].
    fn row(
        &mut self,
        _at: Option<Timestamp>,
        _segment: &SegmentMeta,
        _begun: &Record,
        _row: RowChange,
    ) -> Result<()> {
        Ok(())
    }

    /// A segment ends: so many of its bytes belong to no record of it, and count with this time.
    ///
    /// # Errors
    /// As [`Self::record`].
    fn rest(&mut self, _segment: &SegmentMeta, _bytes: u64, _counts_at: Timestamp) -> Result<()> {
        Ok(())
    }

    /// Something cannot be read.
    ///
    /// # Errors
    /// As [`Self::record`].
    fn broken(&mut self, broken: Broken) -> Result<()>;
}

/// Walks over what was committed in an interval.
///
/// # Errors
/// Unavailable, if the archive cannot be read; those of the visitor.
pub fn walk(
    archive: &Archive,
    source: &str,
    engine: EngineKind,
    span: Span,
    interest: &Interest,
    visit: &mut dyn Visit,
) -> Result<()> {
    // Open segments first: one that is sealed meanwhile shows up twice, never not at all.
    let open = archive.open_segments(source)?;
    let mut timelines: BTreeSet<u32> = archive.catalog().timelines(source)?.into_iter().collect();
    timelines.extend(open.iter().map(|segment| segment.header.timeline));
    let mut walk =
        Walk { archive, source, engine, span, interest, visit, floor: None, done: false };
    for timeline in timelines {
        walk.timeline(timeline, &open)?;
        if walk.done {
            break;
        }
    }
    Ok(())
}

struct Walk<'a> {
    archive: &'a Archive,
    source: &'a str,
    engine: EngineKind,
    span: Span,
    interest: &'a Interest,
    visit: &'a mut dyn Visit,
    /// The latest time so far.
    floor: Option<Timestamp>,
    /// Everything that follows lies behind the interval.
    done: bool,
}

/// What reads a log, and where it stands.
struct Reading {
    decoder: Box<dyn Decode>,
    at: Option<Position>,
}

impl Walk<'_> {
    fn timeline(&mut self, timeline: u32, open: &[SegmentMeta]) -> Result<()> {
        let catalog = self.archive.catalog();
        let last = catalog.last_segment(self.source, timeline)?.map(|last| last.header.number);
        let past = match self.span.from {
            None => Some(1),
            Some(from) => catalog
                .first_segment_known_past(self.source, timeline, 1, from)?
                .map(|segment| segment.header.number),
        };
        // What stands at the end of the one before may be timed by a mark in this one.
        let first = past.map_or(last.unwrap_or(1), |past| past.saturating_sub(1)).max(1);
        self.floor = self.floor.max(catalog.reached_before(self.source, timeline, first)?);
        let mut before = match first {
            1 => None,
            first => catalog.segment(self.source, timeline, first - 1)?,
        };
        let mut reading =
            Reading { decoder: decoder(self.engine, self.interest.clone()), at: None };
        let mut next = first;
        loop {
            let page = catalog.segments_from(self.source, timeline, next, PAGE)?;
            let is_end = page.len() < PAGE;
            for segment in page {
                next = segment.header.number + 1;
                self.segment(&segment, before.as_ref(), &mut reading)?;
                if self.done {
                    return Ok(());
                }
                before = Some(segment);
            }
            if is_end {
                break;
            }
        }
        let behind =
            open.iter().filter(|s| s.header.timeline == timeline && s.header.number >= next);
        for segment in behind {
            self.segment(segment, before.as_ref(), &mut reading)?;
            if self.done {
                return Ok(());
            }
            before = Some(segment.clone());
        }
        Ok(())
    }

    /// Walks over a segment; what cannot be read is told.
    fn segment(
        &mut self,
        segment: &SegmentMeta,
        before: Option<&SegmentMeta>,
        reading: &mut Reading,
    ) -> Result<()> {
        if self.is_behind(self.floor) {
            self.done = true;
            return Ok(());
        }
        let after = self.floor;
        if let Some(before) = before
            && let Err(error) = plan::check_joint(before, segment)
        {
            // Without times of its own, somewhere in this segment the log is known again.
            let before = segment.totals.first_at.or(segment.totals.known_until);
            self.broken(after, before, &error)?;
            reading.at = None;
        }
        match self.read(segment, reading) {
            Ok(()) => {}
            Err(Trouble::Stopped(error)) => return Err(error),
            Err(Trouble::Bad(error)) => {
                // What was read of it may be less than all, or wrong.
                let until = segment.totals.known_until.max(segment.totals.last_at);
                self.broken(after, until.max(self.floor), &error)?;
                self.floor = self.floor.max(until);
                *reading =
                    Reading { decoder: decoder(self.engine, self.interest.clone()), at: None };
            }
        }
        Ok(())
    }

    fn broken(
        &mut self,
        after: Option<Timestamp>,
        before: Option<Timestamp>,
        error: &Error,
    ) -> Result<()> {
        let (reason, class) = (error.to_string(), error.class());
        self.visit.broken(Broken { after, before, reason, class })
    }

    fn is_behind(&self, at: Option<Timestamp>) -> bool {
        at.zip(self.span.to).is_some_and(|(at, to)| at >= to)
    }

    fn read(
        &mut self,
        segment: &SegmentMeta,
        reading: &mut Reading,
    ) -> std::result::Result<(), Trouble> {
        let header = &segment.header;
        let mut reader = self.archive.segment(self.source, header.timeline, header.number)?;
        if reader.meta().header != *header {
            return Err(Trouble::Bad(Error::corrupt(format!(
                "segment {} is not the one in the catalog",
                header.number
            ))));
        }
        let segment = reader.meta().clone();
        let end = segment.totals.end.offset;
        let mut marks = Vec::new();
        for index in 0..reader.blocks().len() {
            marks.extend(reader.marks(index)?.into_iter().filter(|mark| mark.offset <= end));
        }
        let start = self.start(&mut reader)?;
        if reading.at.as_ref().is_none_or(|at| !at.is_same_place(&start)) {
            let head = log_head(self.archive.store(), &mut reader)?;
            reading.decoder.go_on(&start, &head)?;
        }
        let is_covered = marks.last().is_some_and(|mark| mark.offset >= end);
        let behind = if is_covered || self.engine != EngineKind::Redis {
            None
        } else {
            self.mark_behind(&segment)?
        };
        let opened_at = header.opened_at.shifted(header.skew_micros);
        let fork = header.fork.as_ref().filter(|_| header.number == 1).map(|fork| fork.at.offset);
        let mut sink = Sink {
            span: self.span,
            visit: self.visit,
            segment: &segment,
            marks,
            passed: 0,
            behind,
            is_timed_by_marks: self.engine == EngineKind::Redis,
            floor: self.floor,
            opened_at,
            own_from: fork.unwrap_or(0),
            counted_until: start.offset.max(fork.unwrap_or(0)),
            is_first: start.offset == header.start.offset && fork.is_none(),
            done: false,
            failed: None,
        };
        let mut trouble = None;
        for bytes in Pieces::new(&mut reader, start.offset, end) {
            let pushed = bytes.and_then(|bytes| reading.decoder.push(bytes, &mut sink));
            if let Err(error) = pushed {
                trouble = Some(error);
                break;
            }
            if sink.done {
                break;
            }
        }
        self.done |= sink.done;
        if let Some(error) = sink.failed.take() {
            return Err(Trouble::Stopped(error));
        }
        if trouble.is_none() && !sink.done {
            if !reading.decoder.is_between_records() {
                trouble = Some(Error::corrupt("it ends within a record"));
            }
            sink.end(end).map_err(Trouble::Stopped)?;
        }
        self.floor = sink.floor;
        reading.at = Some(segment.totals.end.clone());
        match trouble {
            None => Ok(()),
            Some(error) => Err(error.context(format!("segment {}", segment.header.number)).into()),
        }
    }

    /// Where to begin to read a segment: before the first record that may belong to the interval.
    /// What lies before it is passed over.
    fn start(&mut self, reader: &mut SegmentReader) -> Result<Position> {
        let begin = reader.meta().header.start.clone();
        let Some(from) = self.span.from else { return Ok(begin) };
        let blocks = reader.blocks().to_vec();
        let is_late = |at: Option<Timestamp>| at.is_some_and(|at| at >= from);
        // Seconds of a MariaDB are those of the last event, and may be those of a block before.
        let late = |block: &crate::manifest::BlockMeta| {
            is_late(block.last_at.map(|at| at.after(std::time::Duration::from_secs(2))))
                || is_late(block.known_until)
        };
        let mut index = blocks.iter().position(late).unwrap_or(blocks.len().saturating_sub(1));
        // A record may be timed by a mark behind it.
        while index > 0 {
            index -= 1;
            if blocks.get(index).is_some_and(|block| block.known_until.is_some()) {
                break;
            }
        }
        if index == 0 {
            return Ok(begin);
        }
        let wholes = reader.wholes()?;
        let before = wholes.iter().take(index).rev().flatten().next();
        let Some(place) = before else { return Ok(begin) };
        for block in blocks.iter().filter(|block| block.end() <= place.offset) {
            self.floor = self.floor.max(block.last_at).max(block.known_until);
        }
        Ok(place.clone())
    }

    /// The first mark behind a segment.
    fn mark_behind(&self, segment: &SegmentMeta) -> Result<Option<Timestamp>> {
        let (timeline, number) = (segment.header.timeline, segment.header.number + 1);
        let mut next = match self.archive.segment(self.source, timeline, number) {
            Ok(next) => next,
            // There is none, or it is found to be damaged when it is its turn.
            Err(error) if matches!(error.class(), Class::Gap | Class::Corrupt) => return Ok(None),
            Err(error) => return Err(error),
        };
        if next.meta().header.start.log != segment.header.start.log {
            return Ok(None);
        }
        for index in 0..next.blocks().len() {
            match next.marks(index) {
                Ok(marks) => {
                    if let Some(mark) = marks.first() {
                        return Ok(Some(mark.at));
                    }
                }
                Err(error) if error.class() == Class::Corrupt => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

/// Why a segment was not walked over to its end.
enum Trouble {
    /// It cannot be read.
    Bad(Error),
    /// The walk cannot go on.
    Stopped(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        match error.class() {
            Class::Corrupt | Class::Gap | Class::Refused | Class::Usage => Self::Bad(error),
            _ => Self::Stopped(error),
        }
    }
}

/// Takes the records of a segment, and tells the visitor of those in the interval.
struct Sink<'a> {
    span: Span,
    visit: &'a mut dyn Visit,
    segment: &'a SegmentMeta,
    /// Its marks, in order, and how many of them were passed.
    marks: Vec<Mark>,
    passed: usize,
    /// The first mark behind it.
    behind: Option<Timestamp>,
    is_timed_by_marks: bool,
    floor: Option<Timestamp>,
    opened_at: Timestamp,
    /// What lies before belongs to the timeline that was left here.
    own_from: u64,
    counted_until: u64,
    is_first: bool,
    done: bool,
    /// What the visitor failed with.
    failed: Option<Error>,
}

impl Sink<'_> {
    fn pass_marks(&mut self, until: u64) {
        while let Some(mark) = self.marks.get(self.passed).filter(|mark| mark.offset <= until) {
            self.floor = self.floor.max(Some(mark.at));
            self.passed += 1;
        }
    }

    /// The segment ends.
    fn end(&mut self, end: u64) -> Result<()> {
        let bytes = end.saturating_sub(self.counted_until);
        self.pass_marks(end);
        let totals = &self.segment.totals;
        self.floor = self.floor.max(totals.known_until).max(totals.last_at);
        let counts_at = self.floor.unwrap_or(self.opened_at);
        let is_in = self.span.from.is_none_or(|from| counts_at >= from)
            && self.span.to.is_none_or(|to| counts_at < to);
        if is_in { self.visit.rest(self.segment, bytes, counts_at) } else { Ok(()) }
    }

    fn told(&mut self, told: Result<()>) -> Result<()> {
        told.map_err(|error| {
            // The decoder passes it on; what it is has to be told from damage.
            let same = Error::new(error.class(), error.to_string());
            self.failed = Some(error);
            same
        })
    }
}

impl Take for Sink<'_> {
    fn record(&mut self, record: Record) -> Result<()> {
        let is_first = std::mem::take(&mut self.is_first);
        if self.done || record.start < self.own_from {
            return Ok(());
        }
        self.pass_marks(record.start);
        let at = record.at.or_else(|| {
            let marks = self.marks.get(self.passed..).unwrap_or_default();
            let mark = marks.iter().find(|mark| mark.offset >= record.end).map(|mark| mark.at);
            mark.or(self.behind).filter(|_| self.is_timed_by_marks)
        });
        let floor = self.floor.max(at);
        let counts_at = floor.unwrap_or(self.opened_at);
        if self.span.to.is_some_and(|to| counts_at >= to) {
            self.done = true;
            return Ok(());
        }
        self.floor = floor;
        let bytes = record.end.saturating_sub(self.counted_until);
        self.counted_until = record.end;
        if self.span.from.is_some_and(|from| counts_at < from) {
            return Ok(());
        }
        let place = Place { segment: self.segment, at, counts_at, bytes, is_first };
        let told = self.visit.record(&place, record);
        self.told(told)
    }

    fn row(&mut self, begun: &Record, row: RowChange) -> Result<()> {
        if self.done || begun.start < self.own_from {
            return Ok(());
        }
        self.pass_marks(begun.start);
        let counts_at = self.floor.max(begun.at).unwrap_or(self.opened_at);
        let is_in = self.span.from.is_none_or(|from| counts_at >= from)
            && self.span.to.is_none_or(|to| counts_at < to);
        if !is_in {
            return Ok(());
        }
        let told = self.visit.row(begun.at, self.segment, begun, row);
        self.told(told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::names;
    use crate::prune::tests::{Made, SOURCE, at};
    use crate::reindex::reindex;

    #[derive(Default)]
    struct Gaps(Vec<Broken>);

    impl Visit for Gaps {
        fn record(&mut self, _place: &Place<'_>, _record: Record) -> Result<()> {
            Ok(())
        }

        fn broken(&mut self, broken: Broken) -> Result<()> {
            self.0.push(broken);
            Ok(())
        }
    }

    #[test]
    fn a_segment_that_is_gone_is_missing_until_the_log_is_known_again() {
        for (engine, until) in [(EngineKind::Mysql, at(37)), (EngineKind::Redis, at(48))] {
            let mut made = Made::new(engine);
            made.days(3);
            let Made { dir, archive, .. } = made;
            let meta = archive.meta().clone();
            std::fs::remove_file(archive.store().path(&names::segment(SOURCE, 1, 3)).unwrap())
                .unwrap();
            drop(archive);
            reindex(dir.path(), &meta).unwrap();
            let (archive, mut gaps) =
                (Archive::open_read_only(dir.path()).unwrap(), Gaps::default());
            let interest = Interest::default();
            walk(&archive, SOURCE, engine, Span::default(), &interest, &mut gaps).unwrap();
            let missing: Vec<&Broken> =
                gaps.0.iter().filter(|gap| gap.reason.contains("missing between")).collect();
            assert_eq!(missing.len(), 1, "{:?}", gaps.0);
            assert_eq!((missing[0].after, missing[0].before), (Some(at(24)), Some(until)));
        }
    }
}
