//! Decides what of a source is old enough to go: values in, values out.
//!
//! The oldest segments of a timeline go, never some in its middle: what is left is one unbroken
//! chain, and a hole in it is damage, always. Baselines go one by one. The rules are those of
//! `docs/RETENTION.md`, in the order of [`Why`].
//!
//! **Invariant:** every instant of the window, and of every hold, that could be restored before
//! can be restored afterwards, from the newest baseline to the newest record included.

use crate::clock::Timestamp;
use crate::manifest::Hold;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// How far this host's clock may be ahead of the newest instant that is archived.
pub const AHEAD_MAX: Duration = Duration::from_hours(24);

/// How much longer than the window may have passed since the last time that something was deleted.
pub const UNPRUNED_MAX: Duration = Duration::from_hours(31 * 24);

/// What the operator wants to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The window: so many days back, every instant stays restorable.
    pub days: u32,
    /// The newest baselines that stay, whatever their age; at least one does.
    pub min_baselines: usize,
}

impl Policy {
    /// The first instant of the window.
    pub fn window_from(&self, now: Timestamp) -> Timestamp {
        now.before(Duration::from_hours(24 * u64::from(self.days)))
    }
}

/// What the archive has of one source.
#[derive(Debug, Clone, Default)]
pub struct Past {
    /// Its timelines, in order.
    pub timelines: Vec<Timeline>,
    /// Timelines that go on from another one without a hole, from its end or before, each with that
    /// one.
    pub joins: Vec<(u32, u32)>,
    /// Its baselines.
    pub baselines: Vec<Baseline>,
    /// What is held.
    pub holds: Vec<Hold>,
}

/// The sealed segments of a timeline.
#[derive(Debug, Clone)]
pub struct Timeline {
    /// Its number.
    pub number: u32,
    /// In order, without what is still being written.
    pub segments: Vec<Segment>,
}

/// A sealed segment.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    /// Its number.
    pub number: u64,
    /// Largest instant known in the timeline up to its end; it never steps back.
    pub reached: Option<Timestamp>,
    /// Size of its file.
    pub bytes: u64,
}

/// A baseline.
#[derive(Debug, Clone)]
pub struct Baseline {
    /// Name of its file.
    pub name: String,
    /// The timeline that its place is in.
    pub timeline: u32,
    /// The earliest instant that it can serve.
    pub at: Timestamp,
    /// Size of its file.
    pub bytes: u64,
    /// The first segment that a restore from it reads, the beginning of its log included; `None`
    /// if that is not known, and all may be needed.
    pub first: Option<u64>,
    /// What leads on from it: each way with the instant that it ends with, and its timeline.
    pub ways: Vec<(Timestamp, u32)>,
    /// Whether a restore can rely on it: it is known to be neither damaged nor incomplete.
    pub sound: bool,
}

impl Baseline {
    /// The last instant that it can serve.
    fn until(&self) -> Timestamp {
        self.ways.iter().map(|(until, _)| *until).fold(self.at, Timestamp::max)
    }
}

/// Why something stays, or goes; of several reasons the first one here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// There is no baseline that could be relied on, so nothing goes.
    NoBaseline,
    /// It is what the first instants of the window are restored from.
    Window,
    /// It is younger than the window.
    Young,
    /// It is among the newest baselines.
    Newest,
    /// It serves a hold, by name.
    Held(String),
    /// A baseline that stays is followed by it.
    Needed,
    /// The capture goes on from it.
    Current,
    /// Nothing in the window needs it.
    Old,
    /// It is old, and no restore can rely on it.
    Unsound,
}

impl Why {
    /// A sentence for the operator.
    pub fn text(&self) -> String {
        match self {
            Self::NoBaseline => "there is no baseline that could be relied on".into(),
            Self::Young => "not older than the window".into(),
            Self::Window => "the first instants of the window are restored from it".into(),
            Self::Newest => "one of the newest baselines".into(),
            Self::Held(name) => format!("held by {name}"),
            Self::Needed => "needed by a baseline that stays".into(),
            Self::Current => "the capture goes on from it".into(),
            Self::Old => "nothing in the window needs it".into(),
            Self::Unsound => "older than the window, and no restore can rely on it".into(),
        }
    }

    /// Whether it stays.
    pub fn stays(&self) -> bool {
        !matches!(self, Self::Old | Self::Unsound)
    }
}

/// What becomes of a timeline's segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The timeline.
    pub timeline: u32,
    /// Every segment with a smaller number goes.
    pub before: u64,
    /// How many go.
    pub count: u64,
    /// Size of their files.
    pub bytes: u64,
    /// How many stay.
    pub kept: u64,
    /// Size of the files that stay.
    pub kept_bytes: u64,
    /// Why the first that stays does; [`Why::Old`] if none does.
    pub why: Why,
}

/// What is to be done with one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// For each baseline, in the order given.
    pub baselines: Vec<Why>,
    /// For each timeline, in the order given.
    pub cuts: Vec<Cut>,
}

/// What stays and what goes.
pub fn decide(past: &Past, policy: &Policy, now: Timestamp) -> Decision {
    let from = policy.window_from(now);
    let baselines = judge(past, policy, from);
    let needs = needs(past, &baselines);
    let has_sound = past.baselines.iter().any(|baseline| baseline.sound);
    let newest = past.timelines.iter().map(|timeline| timeline.number).max();
    let cuts = past.timelines.iter().map(|timeline| {
        let need = needs.get(&timeline.number).copied();
        let (first, why) = match need {
            _ if !has_sound => (Some(0), Why::NoBaseline),
            // A history that goes on without a baseline of its own waits for one.
            None if newest == Some(timeline.number) => (Some(0), Why::NoBaseline),
            need => timeline.first_kept(need, from, newest == Some(timeline.number)),
        };
        timeline.cut(first, why)
    });
    Decision { cuts: cuts.collect(), baselines }
}

fn judge(past: &Past, policy: &Policy, from: Timestamp) -> Vec<Why> {
    let all = &past.baselines;
    let mut verdicts: Vec<Why> =
        all.iter().map(|baseline| if baseline.sound { Why::Old } else { Why::Unsound }).collect();
    let mut keep = |index: usize, why: Why| {
        if let Some(verdict) = verdicts.get_mut(index).filter(|verdict| !verdict.stays()) {
            *verdict = why;
        }
    };
    for index in serving(all, from) {
        keep(index, Why::Window);
    }
    for (index, _) in all.iter().enumerate().filter(|(_, baseline)| baseline.at >= from) {
        keep(index, Why::Young);
    }
    let mut newest: Vec<usize> = sound(all).map(|(index, _)| index).collect();
    newest.sort_by_key(|index| all.get(*index).map(|b| (b.timeline, b.at, b.until())));
    for index in newest.iter().rev().take(policy.min_baselines.max(1)) {
        keep(*index, Why::Newest);
    }
    for hold in &past.holds {
        for index in serving(all, hold.from) {
            keep(index, Why::Held(hold.name.clone()));
        }
        let within = |b: &Baseline| hold.from <= b.at && b.at <= hold.to;
        for (index, _) in sound(all).filter(|(_, baseline)| within(baseline)) {
            keep(index, Why::Held(hold.name.clone()));
        }
    }
    verdicts
}

fn sound(all: &[Baseline]) -> impl Iterator<Item = (usize, &Baseline)> {
    all.iter().enumerate().filter(|(_, baseline)| baseline.sound)
}

/// The baselines that serve `at` and what comes behind it: of each unbroken stretch of the history
/// that reaches so far, the newest one that is not later.
fn serving(all: &[Baseline], at: Timestamp) -> Vec<usize> {
    let mut newest: BTreeMap<_, (Timestamp, usize)> = BTreeMap::new();
    for (index, baseline) in sound(all).filter(|(_, baseline)| baseline.at <= at) {
        for way in baseline.ways.iter().filter(|(until, _)| (*until).max(baseline.at) >= at) {
            let known = newest.entry(*way).or_insert((baseline.at, index));
            *known = (*known).max((baseline.at, index));
        }
    }
    newest.into_values().map(|(_, index)| index).collect()
}

/// The first segment of each timeline that a baseline which stays needs.
fn needs(past: &Past, verdicts: &[Why]) -> BTreeMap<u32, u64> {
    let mut needs: BTreeMap<u32, u64> = BTreeMap::new();
    let kept = past.baselines.iter().zip(verdicts).filter(|(_, why)| why.stays());
    for (baseline, _) in kept.filter(|(baseline, _)| baseline.sound) {
        let first = baseline.first.unwrap_or(0);
        needs.entry(baseline.timeline).and_modify(|n| *n = (*n).min(first)).or_insert(first);
        // It is followed into the timelines that go on from this one, from their beginnings.
        let mut along = vec![baseline.timeline];
        while let Some(timeline) = along.pop() {
            for (next, from) in &past.joins {
                if *from == timeline && *next > timeline {
                    needs.insert(*next, 0);
                    along.push(*next);
                }
            }
        }
    }
    needs
}

impl Timeline {
    fn first_kept(
        &self,
        need: Option<u64>,
        from: Timestamp,
        is_newest: bool,
    ) -> (Option<u64>, Why) {
        let young = self.segments.iter().find(|s| s.reached.is_some_and(|until| until >= from));
        let last = self.segments.last().filter(|_| is_newest);
        let candidates = [
            (need, Why::Needed),
            (young.map(|segment| segment.number), Why::Young),
            // Its number and digest are what the next one is made from.
            (last.map(|segment| segment.number), Why::Current),
        ];
        let first = candidates.into_iter().filter(|(first, _)| first.is_some());
        first.min_by_key(|(first, _)| *first).unwrap_or((None, Why::Old))
    }

    fn cut(&self, first: Option<u64>, why: Why) -> Cut {
        let goes = |segment: &&Segment| first.is_none_or(|first| segment.number < first);
        let (mut count, mut bytes) = (0, 0);
        for segment in self.segments.iter().filter(goes) {
            count += 1;
            bytes += segment.bytes;
        }
        let all = self.segments.iter().map(|segment| segment.bytes).sum::<u64>();
        let behind = self.segments.last().map_or(0, |last| last.number + 1);
        let start = self.segments.first().map_or(0, |first| first.number);
        Cut {
            timeline: self.number,
            before: first.unwrap_or(behind).clamp(start.min(behind), behind.max(start)),
            count,
            bytes,
            kept: self.segments.len() as u64 - count,
            kept_bytes: all - bytes,
            why,
        }
    }
}

impl Decision {
    /// Whether nothing goes.
    pub fn is_empty(&self) -> bool {
        self.cuts.iter().all(|cut| cut.count == 0) && self.baselines.iter().all(Why::stays)
    }

    /// Size of what goes, and of all that there is.
    pub fn bytes(&self, past: &Past) -> (u64, u64) {
        let (mut gone, mut all) = (0, 0);
        for cut in &self.cuts {
            gone += cut.bytes;
            all += cut.bytes + cut.kept_bytes;
        }
        for (baseline, why) in past.baselines.iter().zip(&self.baselines) {
            all += baseline.bytes;
            gone += if why.stays() { 0 } else { baseline.bytes };
        }
        (gone, all)
    }
}

/// What a decision is compared with before it is carried out.
#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence {
    /// The newest instant that the archive has of any source.
    pub newest: Option<Timestamp>,
    /// When something of the source was deleted last.
    pub last_pruned: Option<Timestamp>,
}

/// Why a decision should not be carried out without somebody looking at it; `None` if nothing
/// speaks against it.
pub fn objection(
    decision: &Decision,
    past: &Past,
    evidence: &Evidence,
    policy: &Policy,
    now: Timestamp,
) -> Option<String> {
    if decision.is_empty() {
        return None;
    }
    let days = |d: Duration| d.as_secs() / 86_400;
    if let Some(newest) = evidence.newest.filter(|newest| now.since(*newest) > AHEAD_MAX) {
        return Some(format!(
            "this host's clock says {now}, and the newest instant archived is {newest}: either the \
             clock is ahead, or nothing was captured since"
        ));
    }
    let window = now.since(policy.window_from(now));
    let is_late = |last: &Timestamp| now.since(*last) > window + UNPRUNED_MAX;
    if let Some(last) = evidence.last_pruned.filter(is_late) {
        return Some(format!(
            "this host's clock says {now}, {} days after something was deleted last ({last}): it \
             may be ahead",
            days(now.since(last))
        ));
    }
    let (gone, all) = decision.bytes(past);
    (gone > all / 2).then(|| format!("{gone} of {all} bytes would go, which is more than half"))
}

#[cfg(test)]
mod tests;
