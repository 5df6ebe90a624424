//! Proves of a Redis source that the log between two baselines is complete: the older baseline
//! with the log up to the newer one is the newer one.
//!
//! Checksums and the chain say that nothing was lost since it was captured. Whether the source gave
//! everything is seen only here: both sides are brought up in a scratch server, one after the other,
//! and compared key by key, with their expiries.
//!
//! **Invariant:** the two sides meet in nothing: the newer one is what the source sent as a copy.

use super::place::{Search, Spot};
use super::prepare::needs;
use super::{Job, Progress, feed};
use crate::archive::{Archive, reading};
use crate::clock::Timestamp;
use crate::engine::redis::{Content, content};
use crate::engine::{
    Apply, Destination, Expiry, Keys, Leftover, Needs, SourceOptions, TargetOptions,
};
use crate::error::{Class, Error, Result};
use crate::manifest::{BaselineMeta, EngineKind, SegmentMeta};
use crate::plan::History;
use crate::record::Cut;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Two baselines, and what the log between them leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Closed {
    /// Name of the source.
    pub source: String,
    /// The older baseline; `None` if none leads to the newer one without a gap.
    pub from: Option<String>,
    /// The newer baseline.
    pub to: String,
    /// Its instant.
    pub at: Timestamp,
    /// Records of the log between them.
    pub records: u64,
    /// Keys and libraries of functions of the newer one.
    pub elements: u64,
    /// Commands in the log whose expiries, if they have any, could not be compared.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unknown_commands: Vec<String>,
    /// What is not the same; empty if the log is complete, or nothing was compared.
    pub differences: Vec<String>,
}

/// Compares each baseline of the Redis sources among `sources` with what the one before it and the
/// log lead to.
///
/// # Errors
/// Usage, if there is no Redis source. Unavailable, if no server for the scratch is on PATH. Corrupt,
/// if stored bytes are damaged. What differs is no error: see [`check`].
pub async fn closure(
    archive: &Path,
    sources: &[SourceOptions],
    progress: &Arc<Progress>,
) -> Result<Vec<Closed>> {
    let _reading = reading(archive)?;
    let archive = Archive::open_read_only(archive)?;
    let of_redis = |source: &&SourceOptions| source.engine == EngineKind::Redis;
    let mut closed = vec![];
    if sources.iter().find(of_redis).is_none() {
        return Err(Error::usage("--closure is for Redis, and none of the sources is one"));
    }
    for source in sources.iter().filter(of_redis) {
        let history = archive.history(&source.name, source.engine)?;
        for newer in &history.baselines {
            let way = towards(&archive, source, &history, newer)?;
            let doing = || format!("closure of {} at {}", source.name, newer.name);
            let compared = compare(&archive, source, way, newer, progress).await;
            closed.push(compared.map_err(|error| error.context(doing()))?);
        }
    }
    Ok(closed)
}

/// What the comparisons amount to.
///
/// # Errors
/// Finding, with the first keys that differ, if a log is not complete, or if nothing was compared.
pub fn check(closed: &[Closed]) -> Result<()> {
    let sources: BTreeSet<&str> = closed.iter().map(|closed| closed.source.as_str()).collect();
    let compared = |source: &&str| {
        closed.iter().any(|closed| closed.source == **source && closed.from.is_some())
    };
    let untried = sources.iter().find(|source| !compared(source));
    if closed.is_empty() || untried.is_some() {
        let of = untried.map_or(String::new(), |source| format!(" of {source}"));
        let what = format!("no two baselines{of} could be compared");
        return Err(Error::new(Class::Finding, what)
            .hint("`pitr baseline` takes another one, which the log has to lead to"));
    }
    let Some(open) = closed.iter().find(|closed| !closed.differences.is_empty()) else {
        return Ok(());
    };
    let from = open.from.as_deref().unwrap_or_default();
    let what = open.differences.join("; ");
    Err(Error::new(
        Class::Finding,
        format!("{}: {from} with the log behind it is not {}: {what}", open.source, open.to),
    )
    .hint(
        "the source changed data without logging it, or the log lost something: instants between \
         the two may lack it; `pitr baseline` begins anew from what the source has",
    ))
}

/// The way from the newest baseline before `newer` to it; `None` if there is none.
fn towards(
    archive: &Archive,
    source: &SourceOptions,
    history: &History,
    newer: &BaselineMeta,
) -> Result<Option<(BaselineMeta, Vec<SegmentMeta>)>> {
    let mut before = history.clone();
    // One at the same place may be a copy of the same file, and proves nothing.
    before.baselines.retain(|other| {
        (other.at, other.begun_at) < (newer.at, newer.begun_at) && other.position != newer.position
    });
    if before.baselines.is_empty() {
        return Ok(None);
    }
    let (timeline, place) = (newer.timeline, &newer.position);
    let Some(holding) = archive.segment_holding(&source.name, timeline, place)? else {
        tracing::warn!("{}: no log holds the place of {}", source.name, newer.name);
        return Ok(None);
    };
    let spot = Spot {
        timeline,
        segment: Some(holding.header.number),
        cut: place.clone(),
        at: Some(newer.at),
        last_in: None,
        first_out: None,
    };
    let text = newer.name.as_str();
    let search = Search { archive, source, history: &before, text, before: false, mark: None };
    match search.reach(&spot) {
        Ok(way) => Ok(Some(way)),
        // It is the first behind a gap.
        Err(error) if error.class() == Class::Gap => {
            tracing::warn!("{}: nothing leads to {text}: {error}", source.name);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn compare(
    archive: &Archive,
    source: &SourceOptions,
    way: Option<(BaselineMeta, Vec<SegmentMeta>)>,
    newer: &BaselineMeta,
    progress: &Arc<Progress>,
) -> Result<Closed> {
    let mut closed = Closed {
        source: source.name.clone(),
        from: None,
        to: newer.name.clone(),
        at: newer.at,
        records: 0,
        elements: 0,
        unknown_commands: vec![],
        differences: vec![],
    };
    let Some((older, segments)) = way else { return Ok(closed) };
    closed.from = Some(older.name.clone());
    let needs = needs(archive, &older, &segments)?;
    let cut = Cut::At(newer.position.clone());
    let led_to = bring_up(archive, source, older, segments, &cut, &needs, progress).await?;
    let sent = bring_up(archive, source, newer.clone(), vec![], &cut, &needs, progress).await?;
    closed.records = led_to.applied.records;
    let digest = &sent.digest;
    closed.elements = digest.parts().keys().filter_map(|part| digest.elements(part)).sum();
    closed.unknown_commands = led_to.unknown_commands;
    closed.differences = led_to.digest.diff(digest);
    Ok(closed)
}

/// A baseline with its log up to the cut; without segments, the baseline alone, which stands there.
async fn bring_up(
    archive: &Archive,
    source: &SourceOptions,
    baseline: BaselineMeta,
    segments: Vec<SegmentMeta>,
    cut: &Cut,
    needs: &Needs,
    progress: &Arc<Progress>,
) -> Result<Content> {
    let store = archive.store().clone();
    let destination = Destination::Folder(PathBuf::new());
    let job = Job {
        options: source.clone(),
        destination: destination.clone(),
        baseline,
        segments,
        cut: cut.clone(),
        uncertainty: None,
        last_in: None,
        first_out: None,
        strange_events: vec![],
        databases: vec![],
        goes_on_to: None,
        setup: None,
    };
    feed::verify(&store, &job, progress).await?;
    progress.begin(format!("bring up {}", job.baseline.name), job.baseline.bytes_raw);
    let options = TargetOptions {
        name: source.name.clone(),
        engine: source.engine,
        destination,
        listen: None,
        apply: Apply::Auto,
        databases: vec![],
        expiry: Expiry::default(),
        keys: Keys::default(),
        in_place: false,
        leftover: Leftover::default(),
        purpose: String::new(),
    };
    let open = {
        let (store, baseline) = (store.clone(), job.baseline.clone());
        let progress = Arc::clone(progress);
        Arc::new(move || feed::read_baseline(&store, &baseline, Arc::clone(&progress)))
    };
    let log = if job.segments.is_empty() {
        Arc::new(|| mpsc::channel(1).1)
    } else {
        feed::read_log(store, &job, Arc::clone(progress))
    };
    content(&options, needs, &job.baseline, open, log, cut).await
}

/// The comparisons for people.
pub fn text(closed: &[Closed]) -> String {
    let mut out = String::new();
    if !closed.iter().any(|closed| closed.from.is_some()) {
        out += "there are no two baselines of Redis to compare yet: nothing is proved of the log\n";
    }
    for Closed { source, from, to, records, elements, unknown_commands, differences, .. } in closed
    {
        out += &match from {
            None => format!("{source}: {to}: no baseline leads to it without a gap\n"),
            Some(from) if differences.is_empty() => format!(
                "{source}: {from} and the {records} records behind it are {to}: {elements} keys, \
                 the same with their expiries\n"
            ),
            Some(from) => format!("{source}: {from} and the log behind it are not {to}\n"),
        };
        if from.is_some() && !unknown_commands.is_empty() {
            let names = unknown_commands.join(", ");
            out += &format!("    but for expiries that {names} may have set\n");
        }
        for difference in differences {
            out += &format!("    {difference}\n");
        }
    }
    out
}
