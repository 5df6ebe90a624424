//! Finds where a log is cut for an instant, by what times its records.
//!
//! A log that carries commit times is cut by the engine, before the first record that is too late.
//! Others are cut at a mark: a place of which it is known when the log ended there. Where marks are
//! far from each other (nobody looked while the log grew), what lies between is told by the
//! seconds that the records carry, if they carry any.
//!
//! **Invariant:** nothing is in that was committed after the instant, as far as that is known; how
//! far it is, is said.

use super::place::check_names;
use crate::archive::{Archive, Pieces, log_head};
use crate::clock::Timestamp;
use crate::engine::{self, SPAN};
use crate::error::Result;
use crate::manifest::{BaselineMeta, SegmentMeta};
use crate::position::Position;
use crate::record::{Cut, Mark, Piece, TimeSource};
use std::time::Duration;

/// The resolution of the times that records carry: marks that are closer to each other tell more.
const SECOND: Duration = Duration::from_secs(1);

/// Where the log is cut for `to`, and how exactly the instant is known, where marks tell it: how
/// long before the instant somebody looked last, and how exact the clock was then. What was
/// committed within that may be on either side of the cut.
pub(super) fn find(
    archive: &Archive,
    baseline: &BaselineMeta,
    segments: &[SegmentMeta],
    to: Timestamp,
) -> Result<(Cut, Option<Duration>)> {
    let time = engine::times(baseline.engine, &baseline.server.version);
    if time == TimeSource::Commit {
        return Ok((Cut::After(to), None));
    }
    let slack = if time == TimeSource::Header { SPAN } else { Duration::ZERO };
    let (last, behind) = marks_around(archive, baseline, segments, to, slack)?;
    let open = to.since(last.until);
    let exact = last.span + behind.as_ref().map_or(Duration::ZERO, |behind| behind.span);
    let (cut, known) = if time == TimeSource::Header && (open > SECOND || behind.is_none()) {
        (by_seconds(archive, segments, &last, behind.as_ref(), to)?, SECOND)
    } else {
        (last.place, open + exact)
    };
    if let Some(segment) = segments.last() {
        check_names(segments, segment.header.timeline, &cut)?;
    }
    Ok((Cut::At(cut), Some(known)))
}

/// A mark, and which of the segments it is in.
struct Found {
    segment: usize,
    place: Position,
    /// Everything committed until then lies before the place: the latest mark there says so.
    until: Timestamp,
    span: Duration,
}

impl Found {
    /// A mark that comes before `behind`.
    fn new(segment: usize, place: Position, mark: Mark, behind: Option<&Self>) -> Self {
        let same = behind.filter(|behind| behind.place.is_same_place(&place));
        let until = same.map_or(mark.at, |behind| behind.until);
        Self { segment, place, until, span: mark.span() }
    }
}

/// The last mark whose bytes were surely committed at `to`, but not before the baseline, and the
/// first one that is later. Of a mark's bytes some may be later than it by up to `slack`.
fn marks_around(
    archive: &Archive,
    baseline: &BaselineMeta,
    segments: &[SegmentMeta],
    to: Timestamp,
    slack: Duration,
) -> Result<(Found, Option<Found>)> {
    let start = &baseline.position;
    let begin = Mark::new(start.offset, baseline.at);
    let mut behind = None;
    for (number, segment) in segments.iter().enumerate().rev() {
        let header = &segment.header;
        let mut reader = archive.segment(&header.source, header.timeline, header.number)?;
        for index in (0..reader.blocks().len()).rev() {
            for mark in reader.marks(index)?.into_iter().rev() {
                if header.start.log == start.log && mark.offset <= start.offset {
                    let first = Found::new(number, start.clone(), begin, behind.as_ref());
                    return Ok((first, behind));
                }
                let place = Position::new(header.start.log.clone(), mark.offset);
                let found = Found::new(number, place, mark, behind.as_ref());
                // The end of a file may have been taken that much later than the clock was read.
                let late = if engine::redis::is_file(&start.log) { mark.span() } else { slack };
                if mark.at <= to.before(late) {
                    return Ok((found, behind));
                }
                behind = Some(found);
            }
        }
    }
    let first = Found::new(0, start.clone(), begin, behind.as_ref());
    Ok((first, behind))
}

/// The beginning of the first record between two marks whose second is not over at `to`.
fn by_seconds(
    archive: &Archive,
    segments: &[SegmentMeta],
    last: &Found,
    behind: Option<&Found>,
    to: Timestamp,
) -> Result<Position> {
    let mut end = last.place.clone();
    let until = behind.map_or(segments.len(), |behind| behind.segment + 1);
    for (number, segment) in segments.iter().enumerate().take(until).skip(last.segment) {
        let header = &segment.header;
        let mut reader = archive.segment(&header.source, header.timeline, header.number)?;
        let from = &header.start;
        let head = log_head(archive.store(), &mut reader)?;
        let log = Piece::Log { at: from.clone(), head };
        let bytes = Pieces::new(&mut reader, from.offset, segment.totals.end.offset);
        let mut pieces = std::iter::once(Ok(log)).chain(bytes.map(|b| b.map(Piece::Bytes)));
        let first = if number == last.segment { last.place.offset } else { 0 };
        let late = engine::mysql::find_late(from, &mut pieces, first, to.before(SECOND))?;
        end = Position::new(&from.log, late.unwrap_or(segment.totals.end.offset));
        if let Some(behind) = behind.filter(|behind| behind.segment == number) {
            end.offset = end.offset.min(behind.place.offset);
        }
        if late.is_some() {
            break;
        }
    }
    Ok(end)
}

#[cfg(test)]
pub(super) mod tests;
