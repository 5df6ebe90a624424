//! The increments of a source, hour by hour, and the proof that nothing of them is missing.
//!
//! An hour is what was committed in it, as [`crate::changes`] cuts the log. Its record is written
//! once, when everything that was committed in it is sealed in the archive, and never changed;
//! an hour without a record is counted from the archive, and said to be so.
//!
//! **Invariant:** the verdict on an hour comes from the same arithmetic as the windows and a plan:
//! the archive's gaps, and the joints between its segments.

mod html;
mod record;
mod report;
mod tally;
mod verdict;

pub use record::{next_hour, record_hours};
pub use report::{Hour, Report, SourceHour};

use crate::archive::{Archive, reading};
use crate::changes::{self, Span};
use crate::clock::Timestamp;
use crate::engine::{self, decode::Interest};
use crate::error::{Error, Result};
use crate::manifest::{
    Continuity, EngineKind, Fallback, HourRecord, Increment, SegmentMeta, names,
};
use crate::record::TimeSource;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use tally::Tallies;
use verdict::{Known, verdict};

/// An hour.
pub const HOUR: Duration = Duration::from_hours(1);

/// How far a source's clock may be ahead of this host's before its times are called future ones.
const AHEAD_MAX: Duration = Duration::from_mins(10);

/// Most hours that one report has: ten years.
const HOURS_MAX: u128 = 10 * 366 * 24;

/// What to report on.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of the archive.
    pub archive: PathBuf,
    /// The sources, with their kinds.
    pub sources: Vec<(String, EngineKind)>,
    /// From the hour that this instant lies in; `None`: one day back, or where the archive begins;
    /// only the hour that runs, if it has nothing yet.
    pub from: Option<Timestamp>,
    /// Up to this instant, which is not in it; `None`: the hour that runs is the last one.
    pub to: Option<Timestamp>,
    /// The present.
    pub now: Timestamp,
}

/// Reports on the hours. What it finds is no error of this function: see [`Report::check`].
///
/// # Errors
/// Usage, if there is no hour between the instants; corrupt, if a record is not as it was written;
/// unavailable, if the archive cannot be read.
pub fn audit(options: &Options) -> Result<Report> {
    let _reading = reading(&options.archive)?;
    let archive = Archive::open_read_only(&options.archive)?;
    let to = match options.to {
        Some(to) if to.hour() == to => to,
        Some(to) => to.hour().after(HOUR),
        None => options.now.hour().after(HOUR),
    };
    let from = match options.from {
        Some(from) => from.hour(),
        None => {
            let day = to.before(24 * HOUR);
            let begins: Vec<Timestamp> = options
                .sources
                .iter()
                .filter_map(|(source, _)| begin(&archive, source).transpose())
                .collect::<Result<_>>()?;
            let running = to.before(HOUR);
            let first = begins.into_iter().min().map_or(running, Timestamp::hour);
            first.max(day).min(running)
        }
    };
    if from >= to {
        return Err(Error::usage("--from is not before --to"));
    }
    if from > options.now {
        return Err(Error::usage(format!("the hour of {from} is in the future")));
    }
    if to.since(from).as_secs() / HOUR.as_secs() > HOURS_MAX as u64 {
        return Err(Error::usage("more than ten years").hint("ask for one year after the other"));
    }
    let mut hours: BTreeMap<Timestamp, Vec<SourceHour>> = BTreeMap::new();
    for (source, engine) in &options.sources {
        for (hour, found) in source_hours(&archive, source, *engine, from, to, options.now)? {
            hours.entry(hour).or_default().push(found);
        }
    }
    let hours = hours.into_iter().map(|(hour, sources)| Hour { hour, sources }).collect();
    Ok(Report { schema: "pitr.audit/1", from, to, hours })
}

/// The hours of a source: those with a record from it, the others counted.
fn source_hours(
    archive: &Archive,
    source: &str,
    engine: EngineKind,
    from: Timestamp,
    to: Timestamp,
    now: Timestamp,
) -> Result<BTreeMap<Timestamp, SourceHour>> {
    let mut hours = BTreeMap::new();
    for (hour, digest) in archive.catalog().audits(source, from, to)? {
        let record = read_record(archive, source, hour, &digest)?;
        let mut found = SourceHour::recorded(record, digest);
        if let Some(missing) = missing(archive, source, &found.increment)? {
            found.increment.continuity = Continuity::Gap;
            found.increment.reason = Some(missing);
        }
        hours.insert(hour, found);
    }
    let mut hour = from;
    while hour < to {
        // As many in a row as have no record are counted together.
        let mut end = hour;
        while end < to && !hours.contains_key(&end) {
            end = end.after(HOUR);
        }
        if end > hour && hour <= now {
            for (hour, counted) in count(archive, source, engine, hour, end, now)? {
                hours.insert(hour, SourceHour::counted(source, counted.increment));
            }
        }
        hour = end.max(hour.after(HOUR));
    }
    hours.retain(|hour, _| *hour <= now);
    Ok(hours)
}

/// Reads the record of an hour, and compares it with what the catalog says.
///
/// # Errors
/// Corrupt, if it is not as it was written.
fn read_record(
    archive: &Archive,
    source: &str,
    hour: Timestamp,
    digest: &str,
) -> Result<HourRecord> {
    let record = archive.hour_record(source, hour)?;
    if record.digest != digest {
        let name = names::hour(source, hour);
        return Err(Error::corrupt(format!("{name} is not the one that the catalog has")));
    }
    Ok(record)
}

/// Whether a segment is gone that an hour was counted from, and was not deleted as too old.
fn missing(archive: &Archive, source: &str, increment: &Increment) -> Result<Option<String>> {
    let mut forgotten = None;
    for segment in &increment.segments {
        let name = names::segment(source, segment.timeline, segment.number);
        if archive.store().exists(&name)? {
            continue;
        }
        let before = match &forgotten {
            Some(before) => before,
            None => forgotten.insert(archive.forgotten(source)?.before),
        };
        if before.get(&segment.timeline).is_none_or(|before| segment.number >= *before) {
            return Ok(Some(format!("{name}, from which it was counted, is missing now")));
        }
    }
    Ok(None)
}

/// An hour as it was counted.
#[derive(Debug)]
struct Counted {
    increment: Increment,
    /// A segment that it was counted from is still open.
    is_open: bool,
}

/// Counts the hours from one to another, which is not in it.
fn count(
    archive: &Archive,
    source: &str,
    engine: EngineKind,
    from: Timestamp,
    to: Timestamp,
    now: Timestamp,
) -> Result<BTreeMap<Timestamp, Counted>> {
    // Looked at before the log: what comes meanwhile only makes the counts larger.
    let history = archive.history(source, engine)?;
    let reached = history.timelines.iter().filter_map(|(_, until)| *until).max();
    let mut tallies = Tallies::default();
    let span = Span { from: Some(from), to: Some(to) };
    changes::walk(archive, source, engine, span, &Interest::default(), &mut tallies)?;
    let known = Known {
        begin: begin(archive, source)?,
        is_pruned: archive.forgotten(source)?.last.is_some(),
        reached,
        gaps: &history.gaps,
        broken: &tallies.broken,
        now,
        ahead_since: ahead_since(archive, source, now)?,
    };
    let lapses = archive.protection(source)?.map(|_| archive.lapses(source)).transpose()?;
    let mut counted = BTreeMap::new();
    let mut hour = from;
    while hour < to {
        let end = hour.after(HOUR);
        let tally = tallies.hours.remove(&hour).unwrap_or_default();
        let is_open = tally.is_open();
        let mut increment = tally.increment();
        (increment.covered, increment.continuity, increment.reason) = verdict(hour, end, &known);
        increment.semi_sync = lapses.as_ref().map(|lapses| {
            let within = lapses
                .iter()
                .filter(|lapse| lapse.from < end && lapse.to.is_none_or(|to| to > hour));
            within
                .map(|lapse| Fallback {
                    from: lapse.from,
                    to: lapse.to,
                    reason: lapse.reason.clone(),
                })
                .collect()
        });
        counted.insert(hour, Counted { increment, is_open });
        hour = end;
    }
    Ok(counted)
}

/// When the first segment was begun that has times in the future.
fn ahead_since(archive: &Archive, source: &str, now: Timestamp) -> Result<Option<Timestamp>> {
    let future = now.after(AHEAD_MAX);
    let mut first = None;
    for timeline in archive.catalog().timelines(source)? {
        first = archive.catalog().first_segment_known_past(source, timeline, 1, future)?;
        if first.is_some() {
            break;
        }
    }
    let is_ahead = |segment: &SegmentMeta| {
        segment.totals.known_until.max(segment.totals.last_at).is_some_and(|at| at >= future)
    };
    let first = match first {
        Some(first) => Some(first),
        None => archive.open_segments(source)?.into_iter().find(is_ahead),
    };
    Ok(first.map(|first| first.header.opened_at.shifted(first.header.skew_micros)))
}

/// The first instant that the archive knows of a source: that of its oldest record, or else when
/// its oldest segment was begun, where the log itself does not time its records to the µs (there a
/// session may have set its clock to any year). `None` if it has nothing.
fn begin(archive: &Archive, source: &str) -> Result<Option<Timestamp>> {
    let mut first = None;
    for timeline in archive.catalog().timelines(source)? {
        first = archive.catalog().segments_from(source, timeline, 1, 1)?.into_iter().next();
        if first.is_some() {
            break;
        }
    }
    let first = match first {
        Some(first) => Some(first),
        None => archive.open_segments(source)?.into_iter().next(),
    };
    Ok(first.map(|first| {
        let header = &first.header;
        let opened_at = header.opened_at.shifted(header.skew_micros);
        let is_timed = engine::times(header.engine, &header.server.version) == TimeSource::Commit;
        first.totals.first_at.filter(|_| is_timed).map_or(opened_at, |at| at.min(opened_at))
    }))
}

#[cfg(test)]
mod tests;
