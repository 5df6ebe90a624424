//! Decides what can be restored, and what a restore reads.
//!
//! Everything here is a function of its arguments: no clock, no file, no database. [`windows`]
//! says which instants can be reached, [`choose`] picks the baseline for one of them, and
//! [`line_up`] proves that the segments from there to the instant are complete.
//!
//! **Invariant:** a plan reaches exactly the instant asked for. What the stored segments cannot
//! show is a refusal that names the nearest instants, never a shorter plan.

use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::manifest::{BaselineMeta, EngineKind, Gap, SegmentMeta};
use crate::position::Position;
use serde::Serialize;

/// Instants that can be restored, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Window {
    /// First instant.
    pub from: Timestamp,
    /// Last instant.
    pub to: Timestamp,
    /// The timeline that it ends in.
    pub timeline: u32,
}

/// Instants that all sources can be restored to, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct JointWindow {
    /// First instant.
    pub from: Timestamp,
    /// Last instant.
    pub to: Timestamp,
}

/// What the archive knows of one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// Name of the source.
    pub source: String,
    /// Kind of the source.
    pub engine: EngineKind,
    /// Each timeline with the instant up to which nothing is missing in it.
    pub timelines: Vec<(u32, Option<Timestamp>)>,
    /// Timelines that go on from the end of another one without a hole, each with that one.
    pub joins: Vec<(u32, u32)>,
    /// Timelines that leave another one before its end.
    pub forks: Vec<Branch>,
    /// Baselines, oldest first.
    pub baselines: Vec<BaselineMeta>,
    /// Gaps, oldest first: breaks between timelines, and segments lost within one.
    pub gaps: Vec<Gap>,
}

/// A timeline that goes on from a segment of another one which is not its last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Branch {
    /// The timeline that goes on.
    pub timeline: u32,
    /// The one that it leaves.
    pub from: u32,
    /// The last segment that both have.
    pub number: u64,
    /// Nothing committed until then is missing in what both have.
    pub until: Option<Timestamp>,
}

impl History {
    /// What leads from the instant `from` of `timeline` on, each with the timeline and the instant
    /// that it ends with: the way on in this timeline, and those that leave it later.
    pub fn ways(&self, timeline: u32, from: Timestamp) -> Vec<(Timestamp, u32)> {
        let mut ways: Vec<_> = self.unbroken_until(timeline, from).into_iter().collect();
        // The timeline itself, and those that join it, may be left.
        let mut along = vec![timeline];
        while let Some(at) = along.pop() {
            let last = ways.iter().any(|(_, last)| *last == at);
            let next = self.joins.iter().find(|(next, before)| *before == at && *next > at);
            along.extend(next.filter(|_| !last).map(|(next, _)| *next));
            for branch in self.forks.iter().filter(|b| b.from == at && b.timeline > at) {
                let is_before = branch.until.is_some_and(|until| from <= until);
                let is_whole = |gap: &Gap| {
                    gap.before.is_some_and(|before| before <= from) || gap.after > branch.until
                };
                if is_before && self.holes(at).all(is_whole) {
                    ways.extend(self.ways(branch.timeline, from));
                }
            }
        }
        ways
    }

    /// The holes inside a timeline. The gap that begins a timeline is not one of them.
    fn holes(&self, timeline: u32) -> impl Iterator<Item = &Gap> {
        self.gaps.iter().filter(move |gap| gap.timeline == timeline && gap.segment > 1)
    }

    /// Where the unbroken stretch of `timeline` that begins with `from` ends, and in which
    /// timeline: it goes on into those that continue this one.
    fn unbroken_until(&self, timeline: u32, from: Timestamp) -> Option<(Timestamp, u32)> {
        let end = self.timelines.iter().find(|(t, _)| *t == timeline)?.1;
        let hole = self
            .holes(timeline)
            .filter(|gap| gap.before.is_none_or(|before| before > from))
            .filter_map(|gap| gap.after)
            .min();
        if let Some(hole) = hole {
            return Some((end.map_or(hole, |end| hole.min(end)), timeline));
        }
        let next = self.joins.iter().find(|(next, before)| *before == timeline && *next > timeline);
        let further = next.and_then(|(next, _)| self.unbroken_until(*next, from));
        // What goes on may not have got as far, by its own clock.
        further
            .map(|(until, last)| (end.map_or(until, |end| until.max(end)), last))
            .or_else(|| end.map(|end| (end, timeline)))
    }
}

/// The instants that one source can be restored to, oldest first. Windows of one timeline do not
/// overlap; those of different timelines may, where a source went back in its history.
pub fn windows(history: &History) -> Vec<Window> {
    let mut windows: Vec<Window> = Vec::new();
    for baseline in &history.baselines {
        for (to, timeline) in history.ways(baseline.timeline, baseline.at) {
            // Nothing behind the baseline is known yet: its own instant can be restored.
            let to = to.max(baseline.at);
            let is_same =
                |w: &&mut Window| w.timeline == timeline && (w.to == to || w.contains(baseline.at));
            match windows.iter_mut().find(is_same) {
                Some(window) => window.from = window.from.min(baseline.at),
                None => windows.push(Window { from: baseline.at, to, timeline }),
            }
        }
    }
    windows.sort_by_key(|w| (w.from, w.timeline));
    windows
}

impl Window {
    /// Whether `at` lies in the window.
    pub fn contains(&self, at: Timestamp) -> bool {
        self.from <= at && at <= self.to
    }
}

/// The instants that every one of the sources can be restored to: the intersection of their
/// windows, whichever timelines they are in.
pub fn joint(sources: &[Vec<Window>]) -> Vec<JointWindow> {
    let Some((first, rest)) = sources.split_first() else { return vec![] };
    let spans = |windows: &[Window]| {
        merged(windows.iter().map(|w| JointWindow { from: w.from, to: w.to }).collect())
    };
    rest.iter().fold(spans(first), |joint, windows| {
        let mut both = Vec::new();
        for a in &joint {
            for b in spans(windows) {
                let (from, to) = (a.from.max(b.from), a.to.min(b.to));
                if from <= to {
                    both.push(JointWindow { from, to });
                }
            }
        }
        merged(both)
    })
}

fn merged(mut spans: Vec<JointWindow>) -> Vec<JointWindow> {
    spans.sort_by_key(|span| span.from);
    let mut merged: Vec<JointWindow> = Vec::new();
    for span in spans {
        match merged.last_mut() {
            Some(last) if span.from <= last.to => last.to = last.to.max(span.to),
            _ => merged.push(span),
        }
    }
    merged
}

/// Picks the baseline for a restore to `at`, and the timeline that the way from there ends in: the
/// newest baseline from which an unbroken stretch reaches `at`. Where timelines overlap, the newest
/// timeline wins.
///
/// # Errors
/// Gap, with the nearest instants that can be restored.
pub fn choose(history: &History, at: Timestamp) -> Result<(&BaselineMeta, u32)> {
    let mut reaching = Vec::new();
    for baseline in history.baselines.iter().filter(|baseline| baseline.at <= at) {
        let ways = history.ways(baseline.timeline, baseline.at);
        let there = ways.iter().filter(|(until, _)| at <= (*until).max(baseline.at));
        reaching.extend(there.map(|(_, timeline)| (baseline, *timeline)));
    }
    reaching
        .into_iter()
        .max_by_key(|(baseline, last)| (*last, baseline.timeline, baseline.at, baseline.begun_at))
        .ok_or_else(|| refusal(history, at))
}

fn refusal(history: &History, at: Timestamp) -> Error {
    let windows = windows(history);
    let spans: Vec<JointWindow> =
        windows.iter().map(|w| JointWindow { from: w.from, to: w.to }).collect();
    let why = why_not(history, &windows, at);
    refuse(format!("restore {} to {at}: {why}", history.source), &spans, at)
}

/// A refusal of `at` that names the nearest instants of `windows`.
pub fn refuse(message: String, windows: &[JointWindow], at: Timestamp) -> Error {
    let before = windows.iter().map(|w| w.to).filter(|to| *to < at).max();
    let after = windows.iter().map(|w| w.from).filter(|from| *from > at).min();
    let nearest: Vec<String> = before.into_iter().chain(after).map(|t| t.to_string()).collect();
    let hint = if nearest.is_empty() {
        "nothing can be restored yet: `pitr windows` shows what is there".to_owned()
    } else {
        format!("nearest instants: {}; `pitr windows` shows all", nearest.join(" and "))
    };
    Error::gap(message).hint(hint).nearest(nearest)
}

fn why_not(history: &History, windows: &[Window], at: Timestamp) -> String {
    let (Some(first), Some(last)) =
        (windows.iter().map(|w| w.from).min(), windows.iter().map(|w| w.to).max())
    else {
        return "there is no baseline with a log behind it yet".into();
    };
    if at < first {
        return format!("the first instant that can be restored is {first}");
    }
    if at > last {
        return format!("no record after {last}");
    }
    let gap = history.gaps.iter().find(|gap| {
        gap.after.is_none_or(|after| after < at) && gap.before.is_none_or(|before| at < before)
    });
    match gap {
        Some(gap) => format!("it lies in a gap: {}", gap.reason),
        None => "it lies between two windows, before the first baseline of the second".into(),
    }
}

/// Proves that `segments` lead from the baseline to `at` without a hole, and leaves out those
/// that are not needed.
///
/// `segments` are consecutive rows of the baseline's timeline, beginning with the one that holds
/// the baseline's position. It may be empty when nothing was captured behind the baseline.
///
/// # Errors
/// Gap, if a segment is missing in between or `at` lies behind the end; corrupt, if the chain of
/// digests does not hold.
pub fn line_up(
    baseline: &BaselineMeta,
    mut segments: Vec<SegmentMeta>,
    at: Timestamp,
) -> Result<Vec<SegmentMeta>> {
    let Some(first) = segments.first() else {
        if at <= baseline.at {
            return Ok(segments);
        }
        return Err(Error::gap(format!("nothing was captured behind {}", baseline.name)));
    };
    check_chain(baseline, first, &segments)?;
    match segments.iter().position(|segment| is_past(segment, at)) {
        Some(last) => segments.truncate(last + 1),
        None => {
            let until = segments.iter().filter_map(|s| s.totals.known_until).max();
            if at > baseline.at && until.is_none_or(|until| until < at) {
                let end = until.map_or_else(|| "the baseline".into(), |t| t.to_string());
                return Err(Error::gap(format!("no record after {end}")));
            }
        }
    }
    Ok(segments)
}

/// Proves that `segments` lead from the baseline to the segment `last` without a hole.
///
/// # Errors
/// As [`line_up`].
pub fn line_up_to_segment(
    baseline: &BaselineMeta,
    segments: Vec<SegmentMeta>,
    last: u64,
) -> Result<Vec<SegmentMeta>> {
    let (Some(first), Some(end)) = (segments.first(), segments.last()) else {
        return Err(Error::gap(format!("nothing was captured behind {}", baseline.name)));
    };
    check_chain(baseline, first, &segments)?;
    if end.header.number != last {
        let at = end.header.number;
        return Err(Error::gap(format!("segments are missing between numbers {at} and {last}")));
    }
    Ok(segments)
}

fn check_chain(
    baseline: &BaselineMeta,
    first: &SegmentMeta,
    segments: &[SegmentMeta],
) -> Result<()> {
    if !holds(first, &baseline.position) {
        return Err(Error::gap(format!(
            "{}: the segment that holds {} is missing",
            baseline.name, baseline.position
        )));
    }
    for pair in segments.windows(2) {
        if let [before, behind] = pair {
            check_joint(before, behind)?;
        }
    }
    Ok(())
}

/// Whether a segment shows where a replay to `at` ends. A log with commit times ends it with the
/// first record left out; one that is timed by marks with a mark behind the instant.
pub fn is_past(segment: &SegmentMeta, at: Timestamp) -> bool {
    let shown = match segment.header.engine {
        EngineKind::Mysql => segment.totals.last_at,
        EngineKind::Redis => segment.totals.known_until,
    };
    shown.is_some_and(|shown| shown > at)
}

/// Whether `place` lies in the segment, its end included.
fn holds(segment: &SegmentMeta, place: &Position) -> bool {
    let start = &segment.header.start;
    start.log == place.log
        && start.offset <= place.offset
        && place.offset <= start.offset + segment.totals.bytes_raw
}

/// Proves that a segment goes on from the one before it.
///
/// # Errors
/// As [`line_up`].
pub fn check_joint(before: &SegmentMeta, behind: &SegmentMeta) -> Result<()> {
    let (number, next) = (before.header.number, behind.header.number);
    let (timeline, later) = (before.header.timeline, behind.header.timeline);
    if later != timeline {
        let from = behind.header.continues.map(|from| (from.timeline, from.number));
        let proved = before.totals.end.gtids == behind.header.start.gtids;
        if from != Some((timeline, number)) || next != 1 || !proved {
            return Err(Error::corrupt(format!(
                "timeline {later} does not go on from segment {number} of timeline {timeline}"
            )));
        }
    } else if next != number + 1 {
        let after = before.totals.known_until.map_or_else(|| "it".into(), |t| t.to_string());
        return Err(Error::gap(format!(
            "{} segments are missing between numbers {number} and {next}, after {after}",
            next.saturating_sub(number + 1)
        )));
    }
    if behind.header.previous.as_deref() != Some(before.digest.as_str()) {
        return Err(Error::corrupt(format!(
            "segment {next} does not continue segment {number}: its chain digest differs"
        ))
        .hint("run `pitr reindex`; if it persists, restore these segments from the other copy"));
    }
    let (end, start) = (&before.totals.end, &behind.header.start);
    let continues = end.is_same_place(start) || end.log != start.log || later != timeline;
    if !continues {
        return Err(Error::corrupt(format!(
            "segment {next} begins at {start}, but segment {number} ends at {end}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
