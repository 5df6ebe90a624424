//! Plans a restore: which baseline, which segments, where the log is cut, what the targets must be.
//!
//! **Invariant:** the archive is read and nothing is touched.

use super::{Job, Options, Plan};
use crate::archive::Archive;
use crate::clock::Timestamp;
use crate::engine::{Destination, Needs};
use crate::error::{Class, Context, Error, Result};
use crate::manifest::{BaselineMeta, EngineKind, SegmentMeta};
use crate::plan::{self, History};
use crate::position::Position;
use crate::record::{Cut, Mark};
use std::collections::BTreeMap;

/// Plans a restore: reads the archive, touches nothing.
///
/// # Errors
/// Gap, if an instant is not restorable; usage, if a target is a configured source.
pub fn prepare(options: &Options) -> Result<Plan> {
    let archive = Archive::open_read_only(&options.archive)?;
    for (name, target) in &options.targets {
        if options.configured.iter().any(|source| source.address() == target.address()) {
            return Err(Error::refused(format!(
                "the target of {name}, {target}, is a configured source"
            ))
            .hint("name an empty server that is not captured"));
        }
    }
    let mut histories = Vec::new();
    for source in &options.sources {
        histories.push(archive.history(&source.name, source.engine)?);
    }
    refuse_jointly(&histories, options.to)?;
    // Servers that are started on it change their working folder first.
    let into = std::path::absolute(&options.into)
        .class(Class::Usage, || format!("find the path of {}", options.into.display()))?;
    let mut plan = Plan {
        to: options.to,
        jobs: Vec::new(),
        needs: BTreeMap::new(),
        skew_ms: None,
        into: into.clone(),
        listen: options.listen,
        store: archive.store().clone(),
    };
    let mut skews = Vec::new();
    for (source, history) in options.sources.iter().zip(&histories) {
        let doing = || format!("restore {} to {}", source.name, options.to);
        let baseline = plan::choose(history, options.to)?.clone();
        let segments = archive.segments_from(
            &source.name,
            baseline.timeline,
            &baseline.position,
            Some(options.to),
        )?;
        let segments = plan::line_up(&baseline, segments, options.to)
            .map_err(|error| error.context(doing()))?;
        let (cut, uncertainty_ms) = find_cut(&archive, &baseline, &segments, options.to)
            .map_err(|error| error.context(doing()))?;
        skews.extend(segments.last().map(|segment| segment.header.skew_micros));
        plan.needs.insert(source.name.clone(), needs(&archive, &baseline, &segments)?);
        let destination = match options.targets.get(&source.name) {
            Some(endpoint) => Destination::Running(endpoint.clone()),
            None => Destination::Folder(into.join(&source.name)),
        };
        plan.jobs.push(Job {
            options: source.clone(),
            destination,
            baseline,
            segments,
            cut,
            uncertainty_ms,
        });
    }
    if let (Some(least), Some(most)) = (skews.iter().min(), skews.iter().max()) {
        plan.skew_ms = Some((most - least) / 1000);
    }
    Ok(plan)
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

fn needs(archive: &Archive, baseline: &BaselineMeta, segments: &[SegmentMeta]) -> Result<Needs> {
    let mut needs = Needs { version: baseline.server.version.clone(), ..Needs::default() };
    for segment in segments {
        needs.version.clone_from(&segment.header.server.version);
        needs.origins.extend(&segment.totals.origins);
    }
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

/// Where the log is cut, and how many ms the clock samples around the cut leave open. A log that
/// carries commit times is cut by the engine; one that is timed by marks is cut at the last mark
/// at or before the instant.
fn find_cut(
    archive: &Archive,
    baseline: &BaselineMeta,
    segments: &[SegmentMeta],
    to: Timestamp,
) -> Result<(Cut, Option<u64>)> {
    if baseline.engine == EngineKind::Mysql {
        return Ok((Cut::After(to), None));
    }
    let mut behind: Option<Mark> = None;
    let open_ms = |at: Timestamp, offset: u64, behind: Option<Mark>| match behind {
        Some(behind) if behind.offset != offset => behind.at.since(at).as_millis(),
        _ => 0,
    };
    let exactness = |at, offset, behind| u64::try_from(open_ms(at, offset, behind)).ok();
    let start = &baseline.position;
    for segment in segments.iter().rev() {
        let header = &segment.header;
        let mut reader = archive.segment(&header.source, header.timeline, header.number)?;
        for index in (0..reader.blocks().len()).rev() {
            for mark in reader.marks(index)?.into_iter().rev() {
                let is_before = header.start.log == start.log && mark.offset <= start.offset;
                if mark.at > to && !is_before {
                    behind = Some(mark);
                } else if is_before {
                    let exactness = exactness(baseline.at, start.offset, behind);
                    return Ok((Cut::At(start.clone()), exactness));
                } else {
                    let exactness = exactness(mark.at, mark.offset, behind);
                    let place = Position::new(header.start.log.clone(), mark.offset);
                    return Ok((Cut::At(place), exactness));
                }
            }
        }
    }
    Ok((Cut::At(start.clone()), exactness(baseline.at, start.offset, behind)))
}
