//! Finds a place that somebody named in the archive: in which timeline and segment, and where
//! exactly the log is to be cut.
//!
//! Only rows of the catalog, heads of blocks and the bytes of about one block are read: the lists
//! of transactions that stand at the ends of segments and blocks lead to it.
//!
//! **Invariant:** what is found is the place named, at a boundary between records; anything else
//! is a refusal that names the nearest places.

use crate::archive::{Archive, Pieces, log_head};
use crate::clock::Timestamp;
use crate::engine::SourceOptions;
use crate::engine::mysql;
use crate::engine::place::{Found, Place, find as walk};
use crate::error::{Error, Result};
use crate::manifest::{BaselineMeta, EngineKind, NamedMark, PlacedLandmark, SegmentMeta};
use crate::plan::{self, History};
use crate::position::Position;
use crate::record::{Landing, Piece};

/// Where a log is cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spot {
    /// The timeline.
    pub(super) timeline: u32,
    /// The segment that the cut is in; `None` if the place is that of a baseline behind which
    /// nothing was captured.
    pub(super) segment: Option<u64>,
    /// The cut.
    pub(super) cut: Position,
    /// The commit time of the last record before it, as far as known.
    pub(super) at: Option<Timestamp>,
    /// The last record before it, if it was come across.
    pub(super) last_in: Option<Landing>,
    /// The first record behind it, if it was come across.
    pub(super) first_out: Option<Landing>,
}

/// A place to be found in what the archive has of one source.
pub(super) struct Search<'a> {
    pub(super) archive: &'a Archive,
    pub(super) source: &'a SourceOptions,
    pub(super) history: &'a History,
    /// As it was typed.
    pub(super) text: &'a str,
    /// Whether the record itself is to be left out.
    pub(super) before: bool,
    /// The mark that is meant, if one is.
    pub(super) mark: Option<&'a NamedMark>,
}

impl Search<'_> {
    /// Finds the place, the newest timeline first: names of files, and transactions, may come
    /// again after a failover.
    ///
    /// # Errors
    /// Usage, if it is no place of such a source. Gap, with the nearest places, if the archive
    /// does not have it or it lies within a record.
    pub(super) fn spot(&self) -> Result<Spot> {
        if let Some(mark) = self.mark {
            return self.marked(mark);
        }
        if self.text.starts_with("landmark:") {
            return self.landmark();
        }
        let place = Place::parse(self.source.engine, self.text)?;
        if self.before && matches!(place, Place::State(_)) {
            return Err(Error::usage("--before takes one record, not a set of transactions")
                .hint("name the one that is to be left out, or use --to-position"));
        }
        let mut timelines: Vec<u32> = self.history.timelines.iter().map(|(t, _)| *t).collect();
        timelines.sort_unstable_by(|a, b| b.cmp(a));
        for timeline in timelines {
            let segment = match &place {
                Place::Offset { log, offset } => {
                    let at = Position::new(log, *offset);
                    self.archive.segment_holding(&self.source.name, timeline, &at)?
                }
                _ => self.completing(timeline, &place)?,
            };
            if let Some(segment) = segment {
                if matches!(place, Place::State(_)) && is_nameless(&segment) {
                    return Err(self.nameless(&segment));
                }
                return self.in_segment(&segment, &place);
            }
        }
        if !matches!(place, Place::Offset { .. })
            && let Some(newest) = self.newest()?.filter(is_nameless)
        {
            return Err(self.nameless(&newest));
        }
        self.history
            .baselines
            .iter()
            .rev()
            .find_map(|baseline| at_baseline(baseline, &place).transpose())
            .unwrap_or_else(|| Err(self.not_there(&place)))
    }

    /// The place of this source in a mark: of one timeline, whatever has the same name elsewhere.
    fn marked(&self, mark: &NamedMark) -> Result<Spot> {
        let name = &self.source.name;
        let Some(marked) = mark.sources.iter().find(|marked| marked.name == *name) else {
            let has: Vec<_> = mark.sources.iter().map(|s| format!("--source {}", s.name)).collect();
            return Err(Error::gap(format!("{name} was not captured when the mark was made"))
                .hint(format!("the mark has {}", has.join(" "))));
        };
        let (timeline, at) = (marked.timeline, &marked.position);
        let place = Place::Offset { log: at.log.clone(), offset: at.offset };
        let mut spot = match self.archive.segment_holding(name, timeline, at)? {
            Some(segment) => self.in_segment(&segment, &place)?,
            None => return Err(self.not_there(&place)),
        };
        spot.at = Some(marked.at);
        Ok(spot)
    }

    /// A landmark is a record, and what is wanted is what was before it.
    fn landmark(&self) -> Result<Spot> {
        let list = format!("`pitr log --landmarks --source {}` lists them", self.source.name);
        if !self.before {
            return Err(Error::usage("a landmark is what one wants to go back before")
                .hint(format!("use --before {}", self.text)));
        }
        let Some((timeline, number, position)) = PlacedLandmark::parse_name(self.text) else {
            return Err(Error::usage(format!("not a landmark: {}", self.text)).hint(list));
        };
        let segments =
            self.archive.segments_between(&self.source.name, timeline, number..=number)?;
        for segment in &segments {
            let landmarks: Vec<_> = PlacedLandmark::of(segment).collect();
            if let Some(found) = landmarks.into_iter().find(|found| found.position == position) {
                let (log, offset) = (found.log, found.landmark.offset);
                return self.in_segment(segment, &Place::Offset { log, offset });
            }
        }
        Err(Error::gap(format!("the archive of {} has no {}", self.source.name, self.text))
            .hint(list))
    }

    /// The segment in which the last of what a place names was executed.
    fn completing(&self, timeline: u32, place: &Place) -> Result<Option<SegmentMeta>> {
        let (catalog, source) = (self.archive.catalog(), &self.source.name);
        let mut found = None;
        if let Some(last) = catalog.last_segment(source, timeline)?
            && place.is_executed_before(&last.totals.end)?
        {
            // The first number from which on every segment that there is ends behind it.
            let (mut low, mut high) = (1, last.header.number);
            let mut holding = last;
            while low < high {
                let middle = low + (high - low) / 2;
                let next = catalog.segments_from(source, timeline, middle, 1)?.pop();
                match next {
                    Some(next) if place.is_executed_before(&next.totals.end)? => {
                        high = middle;
                        holding = next;
                    }
                    _ => low = middle + 1,
                }
            }
            found = Some(holding);
        }
        if found.is_none() {
            for open in self.archive.open_segments(source)? {
                if open.header.timeline == timeline && place.is_executed_before(&open.totals.end)? {
                    found = Some(open);
                    break;
                }
            }
        }
        match found {
            // It was executed before anything that is there: before the archive, or in a hole.
            Some(segment) if place.is_executed_before(&segment.header.start)? => {
                let start = &segment.header.start;
                Ok((at_exactly(start, place)?).then_some(segment))
            }
            found => Ok(found),
        }
    }

    fn in_segment(&self, segment: &SegmentMeta, place: &Place) -> Result<Spot> {
        let header = &segment.header;
        let mut reader = self.archive.segment(&header.source, header.timeline, header.number)?;
        let mut from = header.start.clone();
        if !matches!(place, Place::Offset { .. }) && place.is_executed_before(&from)? {
            // See `completing`: exactly this was executed.
            let cut = from;
            let (timeline, segment) = (header.timeline, Some(header.number));
            return Ok(Spot { timeline, segment, cut, at: None, last_in: None, first_out: None });
        }
        for whole in reader.wholes()?.into_iter().flatten() {
            let is_past = match place {
                Place::Offset { offset, .. } => whole.offset >= *offset,
                _ => place.is_executed_before(&whole)?,
            };
            if is_past {
                break;
            }
            from = whole;
        }
        let head = log_head(self.archive.store(), &mut reader)?;
        let log = Piece::Log { at: from.clone(), head };
        let bytes = Pieces::new(&mut reader, from.offset, segment.totals.end.offset);
        let mut pieces = std::iter::once(Ok(log)).chain(bytes.map(|b| b.map(Piece::Bytes)));
        let found = walk(self.source.engine, &from, &mut pieces, place)?;
        let Some(found) = found else { return Err(not_whole(segment, place)) };
        self.check(&found, place, &from.log)?;
        let offset = if self.before { found.begin } else { found.end };
        let at = match found.time(!self.before) {
            Some(at) => Some(at),
            None => last_known(&mut reader, offset)?,
        };
        let (last_in, first_out) = if self.before {
            (found.before, found.record)
        } else {
            (found.record.or(found.before), None)
        };
        Ok(Spot {
            timeline: header.timeline,
            segment: Some(header.number),
            cut: Position::new(from.log, offset),
            at,
            last_in,
            first_out,
        })
    }

    /// Whether what was found is what was asked for.
    fn check(&self, found: &Found, place: &Place, log: &str) -> Result<()> {
        let (begin, end) = (format!("{log}:{}", found.begin), format!("{log}:{}", found.end));
        match place {
            // The record is left out whole, so it does not matter where in it the place is.
            Place::Offset { .. } if self.before || found.begin == found.end => Ok(()),
            // A MariaDB that does not number in order has no other proof that it was there.
            Place::Record(gtid) => match &found.record {
                Some(record) if record.position == *gtid => Ok(()),
                record => {
                    let other = record.as_ref().map_or("none", |record| &record.position);
                    Err(Error::gap(format!(
                        "{gtid} is not in the archive: {other} of the same server stands in its place"
                    ))
                    .hint(hint(&[begin.clone(), end.clone()]))
                    .nearest(vec![begin, end]))
                }
            },
            Place::Offset { .. } => {
                let what = found.record.as_ref().map_or_else(
                    || "an event".into(),
                    |record| format!("the record {}", record.position),
                );
                Err(Error::gap(format!(
                    "{place} lies within {what}, which begins at {begin} and \
                                        ends at {end}"
                ))
                .hint(format!(
                    "records are never cut: --to-position {begin} leaves it out, \
                         --to-position {end} takes it in"
                ))
                .nearest(vec![begin, end]))
            }
            Place::State(set) => {
                let (_, more) = mysql::difference(set, &found.executed)?;
                if more.is_empty() {
                    return Ok(());
                }
                let record = found.record.as_ref().map_or("", |record| &record.position);
                Err(Error::gap(format!(
                    "there was no state with exactly these transactions: when the last of them, \
                     {record}, was in (at {end}), {more} was in as well"
                ))
                .hint(format!(
                    "--to-position {record} goes to that state, --before {record} to the one \
                     before it; a set must name all that was ever executed"
                ))
                .nearest(vec![begin, end]))
            }
        }
    }

    /// The newest baseline that stands at or before the spot, with the segments from there on.
    /// A timeline that goes on from another one is reached from the baselines of that one, too.
    ///
    /// # Errors
    /// Gap, with the nearest places, if there is none or the way from it is not complete.
    pub(super) fn reach(&self, spot: &Spot) -> Result<(BaselineMeta, Vec<SegmentMeta>)> {
        let source = &self.source.name;
        let Some(last) = spot.segment else {
            let mut baselines = self.history.baselines.iter().rev();
            let found = baselines
                .find(|b| b.timeline == spot.timeline && b.position.is_same_place(&spot.cut));
            let found = found.ok_or_else(|| Error::bug("the place of no baseline"))?;
            return Ok((found.clone(), vec![]));
        };
        let (mut timeline, mut end) = (spot.timeline, last);
        let mut behind: Vec<SegmentMeta> = vec![];
        loop {
            if let Some((number, baseline)) = self.baseline_before(spot, timeline, end)? {
                let mut segments = self.archive.segments_between(source, timeline, number..=end)?;
                segments.append(&mut behind);
                let segments = plan::line_up_to_segment(baseline, segments, last);
                let segments = segments.map_err(|error| {
                    let nearest = vec![baseline.position.to_string()];
                    error.hint(hint(&nearest)).nearest(nearest)
                })?;
                check_names(&segments, spot.timeline, &spot.cut)?;
                return Ok((baseline.clone(), segments));
            }
            let whole = self.history.joins.iter().map(|(next, before)| (*next, *before, u64::MAX));
            let left = self.history.forks.iter().map(|b| (b.timeline, b.from, b.number));
            let before =
                whole.chain(left).find(|(next, before, _)| *next == timeline && *before < timeline);
            let Some((_, before, last_of_before)) = before else { break };
            let mut whole = self.archive.segments_between(source, timeline, 1..=end)?;
            whole.append(&mut behind);
            behind = whole;
            (timeline, end) = (before, last_of_before);
        }
        let mut later = self.history.baselines.iter().filter(|b| b.timeline == spot.timeline);
        let nearest: Vec<String> =
            later.next().map(|b| b.position.to_string()).into_iter().collect();
        let what = format!("{} lies before the first baseline that leads to it", self.text);
        Err(Error::gap(what).hint(hint(&nearest)).nearest(nearest))
    }

    /// The newest baseline of `timeline` at or before the spot, and the segment that it is in.
    fn baseline_before(
        &self,
        spot: &Spot,
        timeline: u32,
        end: u64,
    ) -> Result<Option<(u64, &BaselineMeta)>> {
        let mut best: Option<(u64, &BaselineMeta)> = None;
        for baseline in self.history.baselines.iter().filter(|b| b.timeline == timeline) {
            let place = &baseline.position;
            let holding = self.archive.segment_holding(&self.source.name, timeline, place)?;
            let Some(holding) = holding else { continue };
            let number = holding.header.number;
            let is_before = if timeline == spot.timeline && place.log == spot.cut.log {
                place.offset <= spot.cut.offset
            } else {
                number < end || (timeline != spot.timeline && number == end)
            };
            let order = |number: u64, b: &BaselineMeta| (number, b.position.offset);
            if is_before && best.is_none_or(|(n, b)| order(n, b) <= order(number, baseline)) {
                best = Some((number.min(end), baseline));
            }
        }
        Ok(best)
    }

    /// The archive has no such place: what is the nearest that it has?
    fn not_there(&self, place: &Place) -> Error {
        let first = self.history.baselines.first().map(|baseline| baseline.position.clone());
        let last = self.end().unwrap_or_default();
        let first_text = first.as_ref().map(ToString::to_string);
        let name = &self.source.name;
        let executed = |at: &Option<Position>| {
            at.as_ref().is_some_and(|at| place.is_executed_before(at).unwrap_or(false))
        };
        let (why, nearest) = if executed(&first) {
            (format!("{place} lies before the first baseline of {name}"), vec![first_text])
        } else if executed(&last) {
            let why = format!("{place} lies in a gap of the archive of {name}");
            (why, vec![first_text, last.map(|at| at.to_string())])
        } else {
            let last = last.map(|at| at.to_string());
            let reach = match (&first_text, &last) {
                (Some(first), Some(last)) => format!(", which reaches from {first} to {last}"),
                _ => String::new(),
            };
            (format!("{place} is not in the archive of {name}{reach}"), vec![first_text, last])
        };
        let nearest: Vec<String> = nearest.into_iter().flatten().collect();
        Error::gap(why).hint(hint(&nearest)).nearest(nearest)
    }

    /// The refusal of GTIDs where transactions have none.
    fn nameless(&self, segment: &SegmentMeta) -> Error {
        let end = segment.totals.end.to_string();
        Error::gap(format!(
            "{} names no place in the log of {}: transactions there have no GTIDs",
            self.text, self.source.name
        ))
        .hint(format!("name a binlog file and an offset, such as {end}, or an instant with --to"))
        .nearest(vec![end])
    }

    /// Where the newest timeline ends.
    fn end(&self) -> Result<Option<Position>> {
        Ok(self.newest()?.map(|segment| segment.totals.end))
    }

    /// The last segment of the newest timeline.
    fn newest(&self) -> Result<Option<SegmentMeta>> {
        let newest = self.history.timelines.iter().map(|(timeline, _)| *timeline).max();
        let Some(newest) = newest else { return Ok(None) };
        last_segment(self.archive, &self.source.name, newest)
    }
}

/// The last segment of a timeline, open or sealed.
pub(super) fn last_segment(
    archive: &Archive,
    source: &str,
    timeline: u32,
) -> Result<Option<SegmentMeta>> {
    let open = archive.open_segments(source)?;
    match open.into_iter().rfind(|segment| segment.header.timeline == timeline) {
        Some(open) => Ok(Some(open)),
        None => archive.catalog().last_segment(source, timeline),
    }
}

/// Whether a segment's transactions, or some of them, have no GTIDs although their engine has them.
fn is_nameless(segment: &SegmentMeta) -> bool {
    let (header, totals) = (&segment.header, &segment.totals);
    let names = || mysql::names(&header.start, &totals.end, totals.records);
    header.engine == EngineKind::Mysql
        && (header.server.anonymous || names().is_none_or(|names| names.anonymous))
}

/// A cut is found by the name of its file when the log is replayed: the name must be the only one.
pub(super) fn check_names(segments: &[SegmentMeta], timeline: u32, cut: &Position) -> Result<()> {
    let another = segments
        .iter()
        .find(|segment| segment.header.timeline != timeline && segment.header.start.log == cut.log);
    let Some(another) = another else { return Ok(()) };
    Err(Error::refused(format!(
        "the way to {cut} leads through timeline {}, which has another {} than timeline {timeline}",
        another.header.timeline, cut.log
    ))
    .hint("take a baseline in the newer timeline, or restore to an instant with --to"))
}

fn hint(nearest: &[String]) -> String {
    if nearest.is_empty() {
        return "nothing can be restored yet: `pitr windows` shows what is there".into();
    }
    format!("nearest places: {}; `pitr windows` shows the instants", nearest.join(" and "))
}

fn not_whole(segment: &SegmentMeta, place: &Place) -> Error {
    let end = segment.totals.end.to_string();
    Error::gap(format!("{place} lies in a record of which the archive has no end (yet)"))
        .hint(hint(std::slice::from_ref(&end)))
        .nearest(vec![end])
}

/// A baseline is a place, too, even where nothing was captured behind it.
fn at_baseline(baseline: &BaselineMeta, place: &Place) -> Result<Option<Spot>> {
    let at = &baseline.position;
    let is_here = match place {
        Place::Offset { log, offset } => *log == at.log && *offset == at.offset,
        Place::Record(_) => false,
        Place::State(_) => at_exactly(at, place)?,
    };
    Ok(is_here.then(|| Spot {
        timeline: baseline.timeline,
        segment: None,
        cut: at.clone(),
        at: Some(baseline.at),
        last_in: None,
        first_out: None,
    }))
}

/// Whether exactly what `place` names was executed before `position`.
fn at_exactly(position: &Position, place: &Place) -> Result<bool> {
    let Place::State(set) = place else { return Ok(false) };
    let (missing, more) = mysql::difference(set, &position.gtids)?;
    Ok(missing.is_empty() && more.is_empty())
}

/// The latest commit time or mark of a segment's blocks up to `offset`.
fn last_known(
    reader: &mut crate::archive::SegmentReader,
    offset: u64,
) -> Result<Option<Timestamp>> {
    let mut known = None;
    for index in 0..reader.blocks().len() {
        let Some(block) = reader.blocks().get(index).cloned() else { break };
        if block.start >= offset && block.raw_len > 0 {
            break;
        }
        if block.end() <= offset {
            known = known.max(block.last_at).max(block.known_until);
        } else {
            let marks = reader.marks(index)?;
            let before = marks.iter().filter(|mark| mark.offset <= offset).map(|mark| mark.at);
            known = known.max(before.max());
        }
    }
    Ok(known)
}
