//! Plans a restore: which baseline, which segments, where the log is cut, what the targets must be.
//!
//! **Invariant:** the archive is read and nothing is touched.

use super::cut;
use super::place::{Search, last_segment};
use super::report::SetupReport;
use super::{Goal, Job, Options, Plan};
use crate::archive::{Archive, reading};
use crate::clock::Timestamp;
use crate::engine::{Destination, Expiry, Needs, SourceOptions, mysql};
use crate::error::{Class, Context, Error, Result};
use crate::manifest::{BaselineMeta, EngineKind, SegmentMeta, StoredSetup};
use crate::plan::{self, History};
use crate::position::Position;
use crate::record::{Cut, Landing};
use crate::setup;
use std::collections::BTreeMap;
use std::time::Duration;

/// Plans a restore: reads the archive, touches nothing.
///
/// # Errors
/// Gap, if an instant is not restorable; usage, if a target is a configured source.
pub fn prepare(options: &Options) -> Result<Plan> {
    let reading = reading(&options.archive)?;
    let archive = Archive::open_read_only(&options.archive)?;
    for (name, target) in &options.targets {
        if options.configured.iter().any(|source| source.address() == target.address()) {
            return Err(Error::refused(format!(
                "the target of {name}, {target}, is a configured source"
            ))
            .hint("name an empty server that is not captured"));
        }
    }
    check_databases(options)?;
    check_keys(options)?;
    let mut histories = Vec::new();
    for source in &options.sources {
        histories.push(archive.history(&source.name, source.engine)?);
    }
    let (to, ways) = ways(options, &archive, &histories)?;
    // Servers that are started on it change their working folder first.
    let into = options.into.clone().unwrap_or_else(|| super::default_folder(to));
    let into = std::path::absolute(&into)
        .class(Class::Usage, || format!("find the path of {}", into.display()))?;
    let mut plan = Plan {
        to,
        goal: options.to.clone(),
        jobs: Vec::new(),
        needs: BTreeMap::new(),
        skew_ms: None,
        into: into.clone(),
        listen: options.listen,
        apply: options.apply,
        chosen: options.databases.clone(),
        expiry: Expiry { ttl: options.ttl, at: to, now: Timestamp::now() },
        keys: options.keys.clone(),
        in_place: options.in_place.is_some(),
        clean: options.clean.clone(),
        inspect: options.inspect,
        store: archive.store().clone(),
        _reading: reading,
    };
    let mut skews = Vec::new();
    for ((source, history), way) in options.sources.iter().zip(&histories).zip(ways) {
        let goes_on_to = match &options.to {
            Goal::Instant(at) => untimed(&archive, history, &way, *at)?,
            _ => None,
        };
        let Way { baseline, segments, cut, uncertainty, last_in, first_out } = way;
        skews.extend(segments.last().map(|segment| segment.header.skew_micros));
        let mut needs = needs(&archive, &baseline, &segments)?;
        let setup = known_setup(&archive, source, to)?;
        needs.setup = setup.as_ref().map(|(_, stored)| stored.setup.clone());
        plan.needs.insert(source.name.clone(), needs);
        let destination = match options.targets.get(&source.name) {
            Some(endpoint) => Destination::Running(endpoint.clone()),
            None => Destination::Folder(into.join(&source.name)),
        };
        let strange_events = strange_events(&archive, &segments)?;
        let databases = match options.databases.as_slice() {
            [] => &source.databases,
            chosen => chosen,
        };
        plan.jobs.push(Job {
            strange_events,
            databases: databases.to_vec(),
            goes_on_to,
            setup: setup.map(|(object, stored)| SetupReport::new(object, &stored)),
            options: source.clone(),
            destination,
            baseline,
            segments,
            cut,
            uncertainty,
            last_in,
            first_out,
        });
    }
    if let (Some(least), Some(most)) = (skews.iter().min(), skews.iter().max()) {
        plan.skew_ms = Some((most - least) / 1000);
    }
    Ok(plan)
}

/// The way that each source takes to what is asked for, and the instant that it is.
fn ways(
    options: &Options,
    archive: &Archive,
    histories: &[History],
) -> Result<(Timestamp, Vec<Way>)> {
    match &options.to {
        Goal::Instant(at) => {
            refuse_jointly(histories, *at)?;
            let mut ways = Vec::new();
            for (source, history) in options.sources.iter().zip(histories) {
                let way = to_instant(archive, source, history, *at);
                ways.push(way.map_err(|e| e.context(format!("restore {} to {at}", source.name)))?);
            }
            Ok((*at, ways))
        }
        Goal::Place { text, before } => {
            let ([source], [history]) = (options.sources.as_slice(), histories) else {
                return Err(Error::usage("a place is one in the log of one source")
                    .hint("name it with --source"));
            };
            let search = Search { archive, source, history, text, before: *before, mark: None };
            let doing = || format!("restore {} {}", source.name, options.to);
            let (to, way) = to_place(&search).map_err(|error| error.context(doing()))?;
            Ok((to, vec![way]))
        }
        Goal::Mark(name) => {
            let mark = archive.named_mark(name)?;
            let text = format!("mark:{name}");
            let way = |(source, history): (&SourceOptions, _)| {
                let (text, mark) = (text.as_str(), Some(&mark));
                let search = Search { archive, source, history, text, before: false, mark };
                let doing = || format!("restore {} {}", source.name, options.to);
                Ok::<_, Error>(to_place(&search).map_err(|error| error.context(doing()))?.1)
            };
            let ways = options.sources.iter().zip(histories).map(way).collect::<Result<_>>()?;
            Ok((mark.at, ways))
        }
    }
}

/// Whether the databases named can be those of the only source.
fn check_databases(options: &Options) -> Result<()> {
    let of_mysql =
        |source: &SourceOptions| source.engine == EngineKind::Mysql && options.sources.len() == 1;
    if !options.databases.is_empty() && !options.sources.first().is_some_and(of_mysql) {
        return Err(Error::usage("databases are those of one MySQL or MariaDB source")
            .hint("name it with --source"));
    }
    mysql::check_databases(&options.databases)
}

/// Whether the keys named can be those of the only source, and its target be written into.
fn check_keys(options: &Options) -> Result<()> {
    let of_redis =
        |source: &SourceOptions| source.engine == EngineKind::Redis && options.sources.len() == 1;
    if !options.keys.is_all() && !options.sources.first().is_some_and(of_redis) {
        return Err(
            Error::usage("keys are those of one Redis source").hint("name it with --source")
        );
    }
    match &options.in_place {
        Some(_) if options.keys.is_all() => Err(Error::usage("--in-place restores some keys only")
            .hint("choose them with --key, --db or --drop-prefix")),
        Some(name) if !options.targets.contains_key(name) => {
            Err(Error::usage(format!("--confirm {name}, which has no --target")))
        }
        _ => Ok(()),
    }
}

/// What leads one source to the goal.
struct Way {
    baseline: BaselineMeta,
    segments: Vec<SegmentMeta>,
    cut: Cut,
    uncertainty: Option<Duration>,
    last_in: Option<Landing>,
    first_out: Option<Landing>,
}

fn to_instant(
    archive: &Archive,
    source: &SourceOptions,
    history: &History,
    at: Timestamp,
) -> Result<Way> {
    let (baseline, into) = plan::choose(history, at)?;
    let baseline = baseline.clone();
    let (name, place) = (&source.name, &baseline.position);
    let segments =
        archive.segments_towards(Some(into), name, baseline.timeline, place, Some(at))?;
    let segments = plan::line_up(&baseline, segments, at)?;
    let (cut, uncertainty) = cut::find(archive, &baseline, &segments, at)?;
    Ok(Way { baseline, segments, cut, uncertainty, last_in: None, first_out: None })
}

/// Where the archive's log ends, if `at` is the newest instant that is known of it and it has more
/// than belongs to that: marks are read beside the log, and what was captured behind the last one
/// has no instant yet.
fn untimed(
    archive: &Archive,
    history: &History,
    way: &Way,
    at: Timestamp,
) -> Result<Option<Position>> {
    let last = way.segments.last().map(|segment| segment.header.timeline);
    let timeline = last.unwrap_or(way.baseline.timeline);
    let is_later = |window: &plan::Window| {
        (window.timeline == timeline || window.contains(at)) && window.to > at
    };
    let Cut::At(cut) = &way.cut else { return Ok(None) };
    if plan::windows(history).iter().any(is_later) {
        return Ok(None);
    }
    let end = last_segment(archive, &history.source, timeline)?.map(|last| last.totals.end);
    Ok(end.filter(|end| !end.is_same_place(cut)))
}

fn to_place(search: &Search<'_>) -> Result<(Timestamp, Way)> {
    let spot = search.spot()?;
    let (baseline, segments) = search.reach(&spot)?;
    let to = spot.at.unwrap_or(baseline.at);
    let cut = Cut::At(spot.cut);
    let (last_in, first_out) = (spot.last_in, spot.first_out);
    Ok((to, Way { baseline, segments, cut, uncertainty: None, last_in, first_out }))
}

/// Types of events that the segments may hold and this version does not know. Says so, because
/// the target's applier will decide what becomes of them.
fn strange_events(archive: &Archive, segments: &[SegmentMeta]) -> Result<Vec<u8>> {
    let Some(source) = segments.first().map(|segment| &segment.header.source) else {
        return Ok(vec![]);
    };
    let mut found = Vec::new();
    for strange in archive.strange_events(source)? {
        let is_there = segments.iter().any(|SegmentMeta { header, .. }| {
            header.timeline == strange.timeline && header.number >= strange.segment
        });
        if is_there && !found.contains(&strange.event) {
            tracing::warn!(
                "{source}: from {} on, the log has events of type {}, which this version does not \
                 know: the restore fails if the target does not, either",
                strange.first,
                strange.event
            );
            found.push(strange.event);
        }
    }
    Ok(found)
}

/// With several sources, an instant that one of them lacks is refused with the nearest instants
/// that all of them have.
fn refuse_jointly(histories: &[History], at: Timestamp) -> Result<()> {
    let windows: Vec<_> = histories.iter().map(plan::windows).collect();
    let joint = plan::joint(&windows);
    for history in histories {
        if let Err(error) = plan::choose(history, at) {
            return Err(plan::refuse(error.to_string(), &joint, at));
        }
    }
    Ok(())
}

/// What the source was besides its data. One that cannot be read is no reason to restore nothing.
fn known_setup(
    archive: &Archive,
    source: &SourceOptions,
    to: Timestamp,
) -> Result<Option<(String, StoredSetup)>> {
    match setup::at(archive, &source.name, to) {
        Err(error) if error.class() == Class::Corrupt => {
            tracing::warn!("{}: users and settings are not restored: {error}", source.name);
            Ok(None)
        }
        found => found,
    }
}

pub(super) fn needs(
    archive: &Archive,
    baseline: &BaselineMeta,
    segments: &[SegmentMeta],
) -> Result<Needs> {
    let mut needs = Needs { version: baseline.server.version.clone(), ..Needs::default() };
    for segment in segments {
        let (from, to) = (&segment.header.start, &segment.totals.end);
        if segment.header.engine == EngineKind::Mysql {
            let names = mysql::names(from, to, segment.totals.records);
            needs.anonymous |= names.is_none_or(|names| names.anonymous);
            needs.named |= names.is_none_or(|names| names.named);
        }
        needs.version.clone_from(&segment.header.server.version);
        needs.origins.extend(&segment.totals.origins);
    }
    // Nothing is replayed, or next to nothing: then what the source was decides.
    needs.anonymous |= baseline.server.anonymous && !needs.named;
    needs.origins.sort_unstable();
    needs.origins.dedup();
    for (source, _) in archive.catalog().sources()? {
        for timeline in archive.catalog().timelines(&source)? {
            let last = archive.catalog().last_segment(&source, timeline)?;
            needs.sources.extend(last.map(|last| last.header.server.identity));
        }
        for open in archive.open_segments(&source)? {
            needs.sources.push(open.header.server.identity);
        }
    }
    needs.sources.sort_unstable();
    needs.sources.dedup();
    Ok(needs)
}
