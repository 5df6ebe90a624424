//! Deletes what nobody can need any more; [`retention`] decides what that is.
//!
//! Without [`Options::apply`] nothing is touched, and the report says what would become of what,
//! and why. Otherwise, source by source: a baseline that others are deleted on the strength of is
//! read whole and compared with its digest; a record of what goes is written; baselines go (the
//! catalog's row, the JSON, the bytes), and when none is left that needs them, segments (the rows,
//! then the files, the oldest first).
//!
//! **Invariant:** after each of these steps the archive is one that can be restored from, with and
//! without its catalog, and what an interruption leaves is deleted the next time. Nothing goes
//! while a restore, an export or a verification reads the archive.

use crate::archive::{Archive, Forgotten, baseline_name};
use crate::clock::{Timestamp, Tz, in_zone};
use crate::durable::Lock;
use crate::error::{Class, Context, Error, Result};
use crate::manifest::{BaselineMeta, EngineKind, Pruned, PrunedTimeline, SegmentMeta, names};
use crate::plan::History;
use crate::reindex;
use crate::retention::{self, Baseline, Decision, Evidence, Past, Policy, Segment, Timeline, Why};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How much of a baseline is read at once, in bytes.
const READ_BYTES: usize = 256 << 10;

/// What to delete, and from where.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of the archive.
    pub archive: PathBuf,
    /// Only these sources; all that the archive has, if none is named.
    pub sources: Vec<String>,
    /// What to keep.
    pub policy: Policy,
    /// Delete; otherwise only say what would be.
    pub apply: bool,
    /// Whatever speaks against it.
    pub force: bool,
    /// The instant from which the window is counted back.
    pub now: Timestamp,
    /// Set to end it between two steps.
    pub stop: Arc<AtomicBool>,
}

/// `pitr.prune/1`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Name and version of this document's form.
    pub schema: String,
    /// The instant from which the window is counted back.
    pub now: Timestamp,
    /// The first instant of the window.
    pub window_from: Timestamp,
    /// Whether it was done.
    pub applied: bool,
    /// Source by source.
    pub sources: Vec<SourceReport>,
}

/// One source of a [`Report`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SourceReport {
    /// Name of the source.
    pub name: String,
    /// What speaks against it; then it is not done without force.
    pub objection: Option<String>,
    /// What stays.
    pub kept: Sum,
    /// What goes.
    pub deleted: Sum,
    /// What becomes of what, and why.
    pub items: Vec<Item>,
}

/// How much something is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sum {
    /// Number of baselines.
    pub baselines: u64,
    /// Number of segments.
    pub segments: u64,
    /// Size of their files.
    pub bytes: u64,
}

/// What becomes of a piece of the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// `baseline`, `segments`, or `other` for small objects and what an interruption left.
    pub kind: String,
    /// Name within the archive; of several segments the first, and a number.
    pub name: String,
    /// How many objects it is.
    pub count: u64,
    /// Size of their files.
    pub bytes: u64,
    /// The earliest instant that a baseline serves.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub at: Option<Timestamp>,
    /// `keep` or `delete`.
    pub action: String,
    /// Why.
    pub reason: String,
}

/// What is known of one source, and what is to be done with it.
struct Look {
    source: String,
    past: Past,
    metas: Vec<BaselineMeta>,
    forgotten: Forgotten,
    decision: Decision,
    /// Objects that go besides baselines and their JSON, in order: sealed segments first.
    objects: Vec<String>,
    objection: Option<String>,
}

/// Decides, and deletes if it is told to. The caller holds the archive's lock then.
///
/// # Errors
/// Refused, if something speaks against it (the clock, the amount) and `force` is not set: nothing
/// was deleted; busy, if somebody reads the archive; corrupt, if a hold or record is damaged.
pub fn prune(options: &Options) -> Result<Report> {
    prune_step_by_step(options, &mut |_| options.go_on())
}

impl Options {
    /// An error, if it is to end.
    fn go_on(&self) -> Result<()> {
        if self.stop.load(Ordering::Acquire) {
            return Err(Error::new(Class::Interrupted, "the deletion was interrupted")
                .hint("what is left of it is deleted the next time"));
        }
        Ok(())
    }
}

/// The same; `step` is told what comes before each change, and may end it there.
fn prune_step_by_step(
    options: &Options,
    step: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<Report> {
    let root = &options.archive;
    let _alone = options.apply.then(|| Lock::exclude(&root.join(names::ARCHIVE))).transpose()?;
    let mut archive =
        if options.apply { Archive::open(root)? } else { Archive::open_read_only(root)? };
    let all = archive.catalog().sources()?;
    let mut histories = BTreeMap::new();
    for (source, engine) in &all {
        histories.insert(source.clone(), archive.history(source, *engine)?);
    }
    let reached = histories.values().flat_map(|h| h.timelines.iter().filter_map(|(_, at)| *at));
    let newest = reached.max();
    let mut looks = Vec::new();
    let wanted = |name: &String| options.sources.is_empty() || options.sources.contains(name);
    for (source, engine) in all.iter().filter(|(name, _)| wanted(name)) {
        let Some(history) = histories.get(source) else { continue };
        looks.push(look(&archive, *engine, history, newest, options)?);
    }
    if let Some((look, why)) = looks.iter().find_map(|l| Some((l, l.objection.as_ref()?)))
        && options.apply
        && !options.force
    {
        return Err(Error::refused(format!("prune {}: {why}", look.source)).hint(
            "`pitr prune` shows what would go; `pitr prune --apply --force` does it anyway",
        ));
    }
    let report = Report {
        schema: "pitr.prune/1".into(),
        now: options.now,
        window_from: options.policy.window_from(options.now),
        applied: options.apply,
        sources: looks.iter().map(Look::report).collect(),
    };
    if options.apply {
        for look in &looks {
            look.carry_out(&mut archive, options.now, step)
                .map_err(|error| error.context(format!("prune {}", look.source)))?;
        }
    }
    Ok(report)
}

/// Looks at a source and decides. When something would be deleted, the baselines that it is
/// deleted on the strength of are read first.
fn look(
    archive: &Archive,
    engine: EngineKind,
    history: &History,
    newest: Option<Timestamp>,
    options: &Options,
) -> Result<Look> {
    let source = &history.source;
    let mut past = past(archive, engine, history)?;
    let forgotten = archive.forgotten(source)?;
    let mut read = BTreeSet::new();
    let decision = loop {
        let decision = retention::decide(&past, &options.policy, options.now);
        if decision.is_empty() || !options.apply {
            break decision;
        }
        let relied: Vec<usize> = relied_on(&decision).filter(|i| !read.contains(i)).collect();
        if relied.is_empty() {
            break decision;
        }
        for index in relied {
            read.insert(index);
            let (Some(meta), Some(known)) =
                (history.baselines.get(index), past.baselines.get_mut(index))
            else {
                continue;
            };
            if !is_as_written(archive, meta, options)? {
                tracing::error!("{} does not match its digest", baseline_name(meta));
                known.sound = false;
            }
        }
    };
    let evidence =
        Evidence { newest, last_pruned: forgotten.last.as_ref().map(|record| record.at) };
    let (policy, now) = (&options.policy, options.now);
    let objection = retention::objection(&decision, &past, &evidence, policy, now);
    let mut look = Look {
        source: source.clone(),
        past,
        metas: history.baselines.clone(),
        forgotten,
        decision,
        objects: vec![],
        objection,
    };
    look.objects = look.others(archive, policy.window_from(now))?;
    Ok(look)
}

/// The baselines without which the others could not go.
fn relied_on(decision: &Decision) -> impl Iterator<Item = usize> {
    let relied = |why: &Why| matches!(why, Why::Window | Why::Newest | Why::Held(_));
    let all = decision.baselines.iter().enumerate();
    all.filter(move |(_, why)| relied(why)).map(|(index, _)| index)
}

/// Whether a baseline's bytes match its digest.
fn is_as_written(archive: &Archive, meta: &BaselineMeta, options: &Options) -> Result<bool> {
    let mut file = archive.baseline(meta)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        options.go_on()?;
        let len = file.read(&mut buffer).unavailable(|| format!("read {}", baseline_name(meta)))?;
        let Some(bytes) = buffer.get(..len).filter(|bytes| !bytes.is_empty()) else { break };
        hasher.update(bytes);
    }
    Ok(hasher.finalize().to_hex().as_str() == meta.digest)
}

/// What the decision is made from.
fn past(archive: &Archive, engine: EngineKind, history: &History) -> Result<Past> {
    let source = &history.source;
    let open = archive.open_segments(source)?;
    let mut timelines = Vec::new();
    let mut numbers: BTreeSet<u32> = history.timelines.iter().map(|(number, _)| *number).collect();
    numbers.extend(open.iter().map(|segment| segment.header.timeline));
    for number in numbers {
        let rows = archive.catalog().outline(source, number)?;
        let segment = |(number, reached, bytes)| Segment { number, reached, bytes };
        let segments = rows.into_iter().map(segment).collect();
        timelines.push(Timeline { number, segments });
    }
    let mut baselines = Vec::new();
    for meta in &history.baselines {
        let json = format!("{}.json", baseline_name(meta));
        let stored = reindex::read_baseline(archive.store(), archive.meta(), &json);
        let ways = history.ways(meta.timeline, meta.at);
        baselines.push(Baseline {
            name: meta.name.clone(),
            timeline: meta.timeline,
            at: meta.at,
            bytes: meta.bytes_stored,
            first: first_needed(archive, engine, meta, &open)?,
            sound: !ways.is_empty() && stored.is_ok_and(|(stored, _)| stored == *meta),
            ways,
        });
    }
    let (mut joins, holds) = (history.joins.clone(), archive.holds(source)?);
    joins.extend(history.forks.iter().map(|branch| (branch.timeline, branch.from)));
    Ok(Past { timelines, joins, baselines, holds })
}

/// The first segment that a restore from a baseline reads; see [`Baseline::first`].
fn first_needed(
    archive: &Archive,
    engine: EngineKind,
    baseline: &BaselineMeta,
    open: &[SegmentMeta],
) -> Result<Option<u64>> {
    let (source, timeline, place) = (&baseline.source, baseline.timeline, &baseline.position);
    let catalog = archive.catalog();
    let sealed = catalog.segment_containing(source, timeline, &place.log, place.offset)?;
    let begins_before = |segment: &&SegmentMeta| {
        let header = &segment.header;
        header.timeline == timeline
            && header.start.log == place.log
            && header.start.offset <= place.offset
    };
    let of_log = match engine {
        // What describes the events of a binlog file stands at its beginning.
        EngineKind::Mysql => catalog.first_segment_of_log(source, timeline, &place.log)?,
        EngineKind::Redis => None,
    };
    let found = sealed.iter().chain(&of_log).chain(open.iter().find(begins_before));
    Ok(found.map(|segment| segment.header.number).min())
}

impl Look {
    fn baselines(&self) -> impl Iterator<Item = (&BaselineMeta, &Baseline, &Why)> {
        let judged = self.past.baselines.iter().zip(&self.decision.baselines);
        self.metas.iter().zip(judged).map(|(meta, (baseline, why))| (meta, baseline, why))
    }

    fn doomed(&self) -> impl Iterator<Item = &BaselineMeta> {
        self.baselines().filter(|(_, _, why)| !why.stays()).map(|(meta, ..)| meta)
    }

    /// The number before which the segments of a timeline go: decided now, or for one that the
    /// catalog does not have any more, earlier.
    fn before(&self, timeline: u32) -> u64 {
        let cut = self.decision.cuts.iter().find(|cut| cut.timeline == timeline);
        let earlier = self.forgotten.before.get(&timeline).copied();
        match cut {
            Some(cut) if cut.count > 0 => cut.before,
            // A file without a row is not one that was deleted, unless that was written down.
            _ => earlier.unwrap_or(0),
        }
    }

    /// Names of all objects that go besides baselines, in the order in which they do.
    fn others(&self, archive: &Archive, window_from: Timestamp) -> Result<Vec<String>> {
        let source = &self.source;
        let all = archive.store().list(&format!("{source}/"))?;
        let is_left = |name: &String| {
            let doomed = |meta: &BaselineMeta| baseline_name(meta) == *name;
            self.forgotten.baselines.contains(name)
                && !self.metas.iter().any(doomed)
                && all.binary_search(&format!("{name}.json")).is_err()
        };
        let mut objects: Vec<String> = all.iter().filter(|name| is_left(name)).cloned().collect();
        // What a timeline that is left without a segment or baseline has beside them.
        let mut alive: BTreeSet<u32> =
            self.decision.cuts.iter().filter(|cut| cut.kept > 0).map(|cut| cut.timeline).collect();
        alive.extend(self.baselines().filter(|b| b.2.stays()).map(|b| b.0.timeline));
        let mut gone = BTreeSet::new();
        for (name, (timeline, number, is_sealed)) in
            all.iter().filter_map(|name| Some((name, names::parse_segment(name)?)))
        {
            if is_sealed && number < self.before(timeline) {
                objects.push(name.clone());
                gone.insert(timeline);
            } else {
                alive.insert(timeline);
            }
        }
        gone.extend(self.forgotten.before.keys());
        for timeline in gone.difference(&alive) {
            let folder = format!("{}/", names::timeline(source, *timeline));
            let beside =
                |name: &&String| name.starts_with(&folder) && names::is_strange_event(name);
            objects.extend(all.iter().filter(beside).cloned());
        }
        let kept = self.baselines().filter(|b| b.1.sound && b.2.stays()).map(|b| b.1.at);
        if let Some(oldest) = kept.min() {
            objects.extend(archive.protection_before(source, oldest.min(window_from))?);
        }
        Ok(objects)
    }

    fn report(&self) -> SourceReport {
        let (mut kept, mut deleted) = (Sum::default(), Sum::default());
        let mut items = Vec::new();
        for (meta, baseline, why) in self.baselines() {
            let sum = if why.stays() { &mut kept } else { &mut deleted };
            sum.baselines += 1;
            sum.bytes += baseline.bytes;
            let mut item = item("baseline", baseline_name(meta), 1, baseline.bytes, why);
            item.at = Some(baseline.at);
            items.push(item);
        }
        for cut in &self.decision.cuts {
            let name = |number| names::segment(&self.source, cut.timeline, number);
            deleted.segments += cut.count;
            deleted.bytes += cut.bytes;
            kept.segments += cut.kept;
            kept.bytes += cut.kept_bytes;
            let first = self.past.timelines.iter().find(|t| t.number == cut.timeline);
            let first = first.and_then(|timeline| timeline.segments.first());
            if let Some(first) = first.filter(|_| cut.count > 0) {
                let why = &Why::Old;
                items.push(item("segments", name(first.number), cut.count, cut.bytes, why));
            }
            if cut.kept > 0 {
                let name = name(cut.before);
                items.push(item("segments", name, cut.kept, cut.kept_bytes, &cut.why));
            }
        }
        let is_known = |name: &String| {
            let has = |timeline: u32| {
                self.decision.cuts.iter().any(|cut| cut.timeline == timeline && cut.count > 0)
            };
            names::parse_segment(name).is_some_and(|(timeline, ..)| has(timeline))
        };
        for name in self.objects.iter().filter(|name| !is_known(name)) {
            let is_left =
                names::parse_segment(name).is_some() || self.forgotten.baselines.contains(name);
            let reason = if is_left {
                "left by a deletion that was interrupted"
            } else {
                "it tells of what is not there any more"
            };
            let mut item = item("other", name.clone(), 1, 0, &Why::Old);
            item.reason = reason.into();
            items.push(item);
        }
        let (name, objection) = (self.source.clone(), self.objection.clone());
        SourceReport { name, objection, kept, deleted, items }
    }

    fn carry_out(
        &self,
        archive: &mut Archive,
        now: Timestamp,
        step: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<()> {
        let source = &self.source;
        if !self.decision.is_empty() {
            let last = self.forgotten.last.as_ref().map(|record| record.at.shifted(1));
            let record = self.record(last.map_or(now, |last| last.max(now)));
            let name = names::pruned(source, record.at);
            step(&name)?;
            let json =
                serde_json::to_vec_pretty(&record).class(Class::Bug, || "write JSON".into())?;
            archive.store().put_new(&name, &json)?;
        }
        // While a baseline has its JSON, it is one, and what it needs has to be there.
        step("rows of baselines")?;
        archive.catalog_mut().batch(|rows| {
            let mut doomed = self.doomed();
            doomed.try_for_each(|meta| rows.remove_baseline(source, meta.timeline, &meta.name))
        })?;
        for meta in self.doomed() {
            let bytes = baseline_name(meta);
            for name in [format!("{bytes}.json"), bytes] {
                step(&name)?;
                archive.store().delete(&name)?;
            }
        }
        step("rows of segments")?;
        archive.catalog_mut().batch(|rows| {
            let mut cuts = self.decision.cuts.iter().filter(|cut| cut.count > 0);
            cuts.try_for_each(|cut| rows.remove_segments(source, cut.timeline, cut.before))
        })?;
        for name in &self.objects {
            step(name)?;
            archive.store().delete(name)?;
        }
        Ok(())
    }

    fn record(&self, at: Timestamp) -> Pruned {
        let cuts = self.decision.cuts.iter().filter(|cut| cut.count > 0);
        let timelines =
            cuts.map(|cut| PrunedTimeline { timeline: cut.timeline, before: cut.before });
        Pruned {
            at,
            timelines: timelines.collect(),
            baselines: self.doomed().map(baseline_name).collect(),
        }
    }
}

fn item(kind: &str, name: String, count: u64, bytes: u64, why: &Why) -> Item {
    let action = if why.stays() { "keep" } else { "delete" };
    let (kind, action, reason) = (kind.into(), action.into(), why.text());
    Item { kind, name, count, bytes, at: None, action, reason }
}

impl Report {
    /// The report for people, with times in `zone`.
    pub fn text(&self, zone: Tz) -> String {
        let mut out = format!("the window begins at {}\n", in_zone(self.window_from, zone));
        let mut goes = false;
        for source in &self.sources {
            let (kept, deleted) = (source.kept, source.deleted);
            out += &format!("{}: {} kept, ", source.name, sum(kept));
            out +=
                &format!("{} {}\n", sum(deleted), if self.applied { "deleted" } else { "to go" });
            for item in &source.items {
                goes |= item.action == "delete";
                let more = match item.count {
                    1 => String::new(),
                    count => format!(" and {} more", count - 1),
                };
                out += &format!("    {:6} {}{more}: {}\n", item.action, item.name, item.reason);
            }
            if let Some(objection) = &source.objection {
                out += &format!("    only with --force: {objection}\n");
            }
        }
        if !self.applied && goes {
            out += "nothing was deleted: `pitr prune --apply` does it\n";
        }
        out
    }
}

fn sum(sum: Sum) -> String {
    let s = |count| if count == 1 { "" } else { "s" };
    format!(
        "{} baseline{} and {} segment{} ({} bytes)",
        sum.baselines,
        s(sum.baselines),
        sum.segments,
        s(sum.segments),
        sum.bytes
    )
}

#[cfg(test)]
pub(crate) mod tests;
