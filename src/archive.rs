//! An archive as a whole: its id, its objects, its catalog, and what is still being written.
//!
//! The catalog knows sealed segments. What a running daemon writes, or a crash left, is an open
//! segment: it is read block by block. Both together are the history that a restore plans with.

mod hours;
mod keeping;
mod marks;
mod pieces;
mod protection;

pub use keeping::Forgotten;
pub use pieces::Pieces;
pub use protection::Lapse;

use crate::catalog::Catalog;
use crate::clock::Timestamp;
use crate::durable::{self, Lock};
use crate::error::{Class, Context, Error, Result};
use crate::manifest::{
    ArchiveMeta, BaselineMeta, EngineKind, FORMAT, Gap, PlacedLandmark, SegmentHeader, SegmentMeta,
    StrangeEvent, names,
};
use crate::plan::{self, Branch, History};
use crate::position::Position;
use crate::record::LOG_HEAD_BYTES;
use crate::reindex;
use crate::segment::Reader;
use crate::store::Local;
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};
use std::fs::{File, Permissions};
use std::io::{BufReader, ErrorKind};
use std::ops::RangeInclusive;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How many rows of segments are read at once.
const PAGE: usize = 1000;

/// How long a reader waits for a deletion to end.
const READING_PATIENCE: Duration = Duration::from_mins(1);

/// A segment's file, opened for reading.
pub type SegmentReader = Reader<BufReader<File>>;

/// An archive in a folder.
#[derive(Debug)]
pub struct Archive {
    root: PathBuf,
    meta: ArchiveMeta,
    store: Local,
    catalog: Catalog,
}

impl Archive {
    /// Makes `root` an archive.
    ///
    /// # Errors
    /// Refused, if it is one already, or holds something else.
    pub fn init(root: &Path) -> Result<Self> {
        if root.join(names::ARCHIVE).exists() {
            return Err(Error::refused(format!("{} is an archive already", root.display()))
                .hint("`pitr run` goes on with it"));
        }
        if !root.exists() {
            durable::create_dir_all(root)?;
            // It will hold all data of all sources. A folder that was there keeps its rights.
            std::fs::set_permissions(root, Permissions::from_mode(0o700))
                .unavailable(|| format!("protect {}", root.display()))?;
        }
        let mut entries =
            std::fs::read_dir(root).unavailable(|| format!("read folder {}", root.display()))?;
        if entries.next().is_some() {
            return Err(Error::refused(format!("{} is not empty", root.display()))
                .hint("name an empty or new folder as [archive] dir"));
        }
        let meta = ArchiveMeta {
            format: FORMAT,
            archive: uuid::Uuid::new_v4().to_string(),
            created: Timestamp::now(),
        };
        let json = serde_json::to_vec_pretty(&meta).class(Class::Bug, || "write JSON".into())?;
        durable::create(&root.join(names::ARCHIVE), &json)?;
        Self::open(root)
    }

    /// Opens the archive for writing; the caller holds its lock. A catalog that is missing is
    /// rebuilt, one that lags behind the objects (after a crash) is brought up to date.
    pub fn open(root: &Path) -> Result<Self> {
        let meta = read_meta(root)?;
        let (catalog, rebuilt) = reindex::open_catalog(root, &meta)?;
        if let Some(report) = rebuilt {
            tracing::info!("rebuilt the catalog: {} segments", report.segments);
            for damaged in &report.damaged {
                tracing::error!("{} is damaged: {}", damaged.name, damaged.reason);
            }
        }
        Ok(Self { root: root.to_owned(), meta, store: Local::new(root), catalog })
    }

    /// Opens the archive for reading, beside whoever writes it. Without a catalog (a copied
    /// archive, or a folder that cannot be written to) one is built in memory.
    pub fn open_read_only(root: &Path) -> Result<Self> {
        let meta = read_meta(root)?;
        let path = root.join(names::CATALOG);
        let catalog = if path.exists() {
            Catalog::open_read_only(&path)?
        } else {
            reindex::in_memory(root, &meta)?
        };
        Ok(Self { root: root.to_owned(), meta, store: Local::new(root), catalog })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `archive.json`.
    pub fn meta(&self) -> &ArchiveMeta {
        &self.meta
    }

    /// Names and bytes.
    pub fn store(&self) -> &Local {
        &self.store
    }

    /// The index.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The index, to add to.
    pub fn catalog_mut(&mut self) -> &mut Catalog {
        &mut self.catalog
    }

    /// Opens one segment, sealed or open, whichever it is by now.
    ///
    /// # Errors
    /// Corrupt, if its bytes are not what they must be; gap, if it is missing.
    pub fn segment(&self, source: &str, timeline: u32, number: u64) -> Result<SegmentReader> {
        open_segment(&self.store, source, timeline, number)
    }

    /// Opens the file of a baseline.
    pub fn baseline(&self, baseline: &BaselineMeta) -> Result<File> {
        let name = baseline_name(baseline);
        File::open(self.store.path(&name)?).unavailable(|| format!("open {name}"))
    }

    /// The segments of a source that the catalog does not have, in order: those without their
    /// final name, and those that got it but not their row yet, because they get it just now or
    /// a crash came between.
    pub fn open_segments(&self, source: &str) -> Result<Vec<SegmentMeta>> {
        let mut found = Vec::new();
        for (timeline, number, _) in self.uncatalogued(source)? {
            let name = names::open_segment(source, timeline, number);
            let file = match File::open(self.store.path(&name)?) {
                Ok(file) => file,
                // Sealed, now or since it was listed.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    match open_segment(&self.store, source, timeline, number) {
                        Ok(reader) => found.push(reader.meta().clone()),
                        // Sealed empty, which removes it; or damaged, which is a hole then.
                        Err(error) if matches!(error.class(), Class::Gap | Class::Corrupt) => {
                            tracing::warn!("{error}");
                        }
                        Err(error) => return Err(error),
                    }
                    continue;
                }
                Err(error) => return Err(error).unavailable(|| format!("open {name}")),
            };
            let mut file = BufReader::with_capacity(1 << 18, file);
            if Reader::header_is_torn(&mut file)? {
                // Just being created, or torn by a crash in its first write: it holds nothing.
                continue;
            }
            let reader = Reader::scan(file).map_err(|error| error.context(&name))?;
            found.push(reader.meta().clone());
        }
        Ok(found)
    }

    /// Timeline, number and whether it is sealed, of every segment that the catalog may lack.
    fn uncatalogued(&self, source: &str) -> Result<Vec<(u32, u64, bool)>> {
        // Listed first: a segment that gets its row meanwhile shows up twice, never not at all.
        let mut numbers: Vec<(u32, u64, bool)> = self
            .store
            .list(&format!("{source}/"))?
            .iter()
            .filter_map(|name| names::parse_segment(name))
            .collect();
        let mut last = BTreeMap::new();
        for timeline in self.catalog.timelines(source)? {
            let segment = self.catalog.last_segment(source, timeline)?;
            last.insert(timeline, segment.map_or(0, |segment| segment.header.number));
        }
        numbers.retain(|(timeline, number, is_sealed)| {
            !is_sealed || last.get(timeline).is_none_or(|last| number > last)
        });
        numbers.sort_unstable();
        // A crash may have left one under both names, with the same records in it.
        numbers.dedup_by_key(|(timeline, number, _)| (*timeline, *number));
        Ok(numbers)
    }

    /// The baselines of a source, those included that did not get their row in the catalog yet.
    fn baselines(&self, source: &str) -> Result<Vec<BaselineMeta>> {
        let mut baselines = self.catalog.baselines(source)?;
        let names = self.store.list(&format!("{source}/"))?;
        for name in names.iter().filter(|name| reindex::is_baseline(name)) {
            let file = name.rsplit('/').next().and_then(|file| file.strip_suffix(".json"));
            let is_known = |known: &BaselineMeta| {
                Some(known.name.as_str()) == file
                    && name.starts_with(&names::timeline(source, known.timeline))
            };
            if baselines.iter().any(is_known) {
                continue;
            }
            match reindex::read_baseline(&self.store, &self.meta, name) {
                Ok((meta, _)) => baselines.push(meta),
                Err(error) if matches!(error.class(), Class::Corrupt | Class::Refused) => {
                    tracing::warn!("{name} is damaged: {error}");
                }
                Err(error) => return Err(error.context(name)),
            }
        }
        baselines.sort_by_key(|baseline| baseline.at);
        Ok(baselines)
    }

    /// Types of events that the log of a source has and this version does not know.
    ///
    /// # Errors
    /// Corrupt, if an object that tells of them is damaged.
    pub fn strange_events(&self, source: &str) -> Result<Vec<StrangeEvent>> {
        const LONGEST: u64 = 1 << 20;
        let names = self.store.list(&format!("{source}/"))?;
        let read = |name: &String| {
            let json = self.store.get(name, LONGEST)?;
            serde_json::from_slice(&json).corrupt(|| format!("read {name}"))
        };
        names.iter().filter(|name| names::is_strange_event(name)).map(read).collect()
    }

    /// Timeline and number of every open segment of a source, in order.
    pub fn open_segment_numbers(&self, source: &str) -> Result<Vec<(u32, u64)>> {
        let mut numbers: Vec<(u32, u64)> = self
            .store
            .list(&format!("{source}/"))?
            .iter()
            .filter(|name| Path::new(name).extension().is_some_and(|extension| extension == "open"))
            .filter_map(|name| names::parse_segment(name))
            .map(|(timeline, number, _)| (timeline, number))
            .collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Everything that is known of a source, open segments included.
    pub fn history(&self, source: &str, engine: EngineKind) -> Result<History> {
        // Open segments first: one that is sealed meanwhile shows up in the catalog as well,
        // while the other order could miss it in both.
        let open = self.open_segments(source)?;
        let mut timelines = Vec::new();
        for timeline in self.catalog.timelines(source)? {
            timelines.push((timeline, self.catalog.reached(source, timeline)?));
        }
        let mut gaps = self.catalog.gaps(source)?;
        for segment in &open {
            let timeline = segment.header.timeline;
            let until = segment.totals.known_until;
            match timelines.iter_mut().find(|(known, _)| *known == timeline) {
                Some((_, end)) => *end = (*end).max(until),
                None => timelines.push((timeline, until)),
            }
            if let Some(broken) = &segment.header.broken
                && !gaps.iter().any(|gap| gap.timeline == timeline)
            {
                gaps.push(Gap {
                    timeline,
                    segment: segment.header.number,
                    after: broken.after,
                    before: segment.totals.first_at.or(until),
                    reason: broken.reason.clone(),
                });
            }
        }
        let baselines = self.baselines(source)?;
        let (mut joins, mut forks) = (Vec::new(), Vec::new());
        for (header, end) in self.joins(source, &open)? {
            let Some(continues) = header.continues else { continue };
            if header.fork.is_some() {
                let (from, number) = (continues.timeline, continues.number);
                let shared = self.catalog.segments_from(source, from, number, 1)?.pop();
                // The digest proves that this is the segment; one that is lost is a hole.
                if let Some(shared) = shared
                    && header.previous.as_ref() == Some(&shared.digest)
                {
                    let until = shared.totals.known_until;
                    forks.push(Branch { timeline: header.timeline, from, number, until });
                }
                continue;
            }
            if end.is_none() && !baselines.iter().any(|b| b.timeline == continues.timeline) {
                // Nothing is left of it: as with a first segment that others stood before, what
                // was deleted is no hole in what is there.
                continue;
            }
            let is_whole = end.is_some_and(|end| {
                end.header.number == continues.number
                    && (!end.sealed || header.previous.as_ref() == Some(&end.digest))
            });
            if is_whole {
                joins.push((header.timeline, continues.timeline));
                continue;
            }
            let until = |timeline| timelines.iter().find(|(t, _)| *t == timeline).and_then(|t| t.1);
            gaps.push(Gap {
                timeline: header.timeline,
                segment: header.number,
                after: until(continues.timeline),
                before: None,
                reason: format!(
                    "timeline {} goes on from segment {} of timeline {}, which is not its last one",
                    header.timeline, continues.number, continues.timeline
                ),
            });
        }
        for baseline in &baselines {
            match timelines.iter_mut().find(|(timeline, _)| *timeline == baseline.timeline) {
                // The segments that told it were older than everything that is needed.
                Some((_, until @ None)) => *until = Some(baseline.at),
                Some(_) => {}
                None => timelines.push((baseline.timeline, Some(baseline.at))),
            }
        }
        let source = source.to_owned();
        Ok(History { source, engine, timelines, joins, forks, baselines, gaps })
    }

    /// The head of each timeline that goes on from another one, and the last segment of that one.
    fn joins(
        &self,
        source: &str,
        open: &[SegmentMeta],
    ) -> Result<Vec<(SegmentHeader, Option<SegmentMeta>)>> {
        let mut firsts: Vec<SegmentHeader> = Vec::new();
        for timeline in self.catalog.timelines(source)? {
            let first = self.catalog.segments_from(source, timeline, 1, 1)?.into_iter().next();
            firsts.extend(first.map(|first| first.header));
        }
        let is_new = |header: &SegmentHeader| header.number == 1;
        firsts.extend(open.iter().map(|segment| segment.header.clone()).filter(is_new));
        firsts.sort_by_key(|header| header.timeline);
        firsts.dedup_by_key(|header| header.timeline);
        let mut joins = Vec::new();
        for header in firsts {
            let Some(continues) = header.continues else { continue };
            let behind = open.iter().rfind(|s| s.header.timeline == continues.timeline).cloned();
            let last = match behind {
                Some(behind) => Some(behind),
                None => self.catalog.last_segment(source, continues.timeline)?,
            };
            joins.push((header, last));
        }
        Ok(joins)
    }

    /// All landmarks of a source, those of open segments included, in order.
    pub fn landmarks(&self, source: &str) -> Result<Vec<PlacedLandmark>> {
        // Open segments first: one that is sealed meanwhile is in the catalog then, too.
        let open = self.open_segments(source)?;
        let mut landmarks = self.catalog.landmarks(source)?;
        landmarks.extend(open.iter().flat_map(PlacedLandmark::of));
        let place = |placed: &PlacedLandmark| (placed.timeline, placed.segment, placed.position);
        landmarks.sort_by_key(place);
        landmarks.dedup_by_key(|placed| place(placed));
        Ok(landmarks)
    }

    /// The segment of a timeline that holds `place`, its ends included, sealed or open; of two
    /// that meet there, the later one. `None` if the archive does not have the place.
    pub fn segment_holding(
        &self,
        source: &str,
        timeline: u32,
        place: &Position,
    ) -> Result<Option<SegmentMeta>> {
        let open = self.open_segments(source)?;
        let sealed = self.catalog.segment_containing(source, timeline, &place.log, place.offset)?;
        let holds = |segment: &SegmentMeta| {
            let start = &segment.header.start;
            segment.header.timeline == timeline
                && start.log == place.log
                && start.offset <= place.offset
                && place.offset <= start.offset + segment.totals.bytes_raw
        };
        let mut holding: Vec<_> = sealed.into_iter().chain(open).filter(holds).collect();
        holding.sort_by_key(|segment| segment.header.number);
        Ok(holding.pop())
    }

    /// The segments of a timeline from one number to another, both included, sealed and open, in
    /// order; those that are missing are left out.
    pub fn segments_between(
        &self,
        source: &str,
        timeline: u32,
        numbers: RangeInclusive<u64>,
    ) -> Result<Vec<SegmentMeta>> {
        let open = self.open_segments(source)?;
        let mut segments: Vec<SegmentMeta> = Vec::new();
        let mut next = *numbers.start();
        while next <= *numbers.end() {
            let page = self.catalog.segments_from(source, timeline, next, PAGE)?;
            let Some(last) = page.last() else { break };
            next = last.header.number + 1;
            segments.extend(page);
        }
        let known = segments.last().map(|last| last.header.number);
        segments.extend(open.into_iter().filter(|segment| {
            segment.header.timeline == timeline
                && known.is_none_or(|known| segment.header.number > known)
        }));
        segments.retain(|segment| numbers.contains(&segment.header.number));
        Ok(segments)
    }

    /// The segments of a history from the one that holds `place` in `timeline` on, sealed and
    /// open, at most as far as is needed to pass `until` (all, if `None`). Goes on into the
    /// timelines that continue this one.
    pub fn segments_from(
        &self,
        source: &str,
        timeline: u32,
        place: &Position,
        until: Option<Timestamp>,
    ) -> Result<Vec<SegmentMeta>> {
        self.segments_towards(None, source, timeline, place, until)
    }

    /// The same towards the timeline `into`: where it left another one, it is followed.
    pub fn segments_towards(
        &self,
        into: Option<u32>,
        source: &str,
        timeline: u32,
        place: &Position,
        until: Option<Timestamp>,
    ) -> Result<Vec<SegmentMeta>> {
        let open = self.open_segments(source)?;
        let sealed = self.catalog.segment_containing(source, timeline, &place.log, place.offset)?;
        // The place may lie behind what the catalog has of its log.
        let begins_before = |header: &SegmentHeader| {
            header.timeline == timeline
                && header.start.log == place.log
                && header.start.offset <= place.offset
        };
        let holding = sealed.iter().chain(&open).filter(|s| begins_before(&s.header));
        let Some(first) = holding.map(|segment| segment.header.number).max() else {
            return Ok(vec![]);
        };
        let joins = self.joins(source, &open)?;
        // Each timeline on the way, with its last segment that belongs to the way.
        let mut ends: HashMap<u32, u64> = HashMap::new();
        let mut on = into;
        while let Some(header) = joins.iter().map(|(h, _)| h).find(|h| Some(h.timeline) == on)
            && let Some(from) = header.continues.filter(|from| from.timeline < header.timeline)
        {
            ends.insert(from.timeline, from.number);
            on = Some(from.timeline);
        }
        let cut = |mut segments: Vec<SegmentMeta>| {
            segments
                .retain(|s| ends.get(&s.header.timeline).is_none_or(|end| s.header.number <= *end));
            segments
        };
        let mut segments = cut(self.segments_of(source, timeline, first, until, &open)?);
        while let Some(last) = segments.last()
            && until.is_none_or(|until| !segments.iter().any(|s| plan::is_past(s, until)))
        {
            let (timeline, number) = (last.header.timeline, last.header.number);
            let is_next = |header: &&SegmentHeader| {
                header.timeline > timeline
                    && header
                        .continues
                        .is_some_and(|from| (from.timeline, from.number) == (timeline, number))
            };
            let Some(next) = joins.iter().map(|(header, _)| header).find(is_next) else { break };
            let more = cut(self.segments_of(source, next.timeline, 1, until, &open)?);
            if more.is_empty() {
                break;
            }
            segments.extend(more);
        }
        Ok(segments)
    }

    /// The same, of one timeline only, from the segment `first` on.
    fn segments_of(
        &self,
        source: &str,
        timeline: u32,
        first: u64,
        until: Option<Timestamp>,
        open: &[SegmentMeta],
    ) -> Result<Vec<SegmentMeta>> {
        let mut segments: Vec<SegmentMeta> = Vec::new();
        let mut next = Some(first);
        while let Some(number) = next {
            let page = self.catalog.segments_from(source, timeline, number, PAGE)?;
            let is_end = page.len() < PAGE
                || until.is_some_and(|until| page.iter().any(|s| plan::is_past(s, until)));
            next = page.last().map(|last| last.header.number + 1).filter(|_| !is_end);
            segments.extend(page);
        }
        for segment in open {
            let header = &segment.header;
            let wanted =
                header.number >= segments.last().map_or(first, |last| last.header.number + 1);
            let passed =
                until.is_some_and(|until| segments.iter().any(|s| plan::is_past(s, until)));
            if header.timeline == timeline && wanted && !passed {
                segments.push(segment.clone());
            }
        }
        Ok(segments)
    }
}

/// Opens one segment, sealed or open, whichever it is by now. See [`Archive::segment`].
pub fn open_segment(
    store: &Local,
    source: &str,
    timeline: u32,
    number: u64,
) -> Result<SegmentReader> {
    // It may be sealed between the two looks, never the other way round: look at the sealed
    // name again at the end.
    let sealed = names::segment(source, timeline, number);
    let open = names::open_segment(source, timeline, number);
    for (name, is_sealed) in [(&sealed, true), (&open, false), (&sealed, true)] {
        match File::open(store.path(name)?) {
            Ok(file) => {
                let file = BufReader::with_capacity(1 << 18, file);
                let reader = if is_sealed { Reader::open(file) } else { Reader::scan(file) };
                return reader.map_err(|error| error.context(name));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).unavailable(|| format!("open {name}")),
        }
    }
    Err(Error::gap(format!("{sealed} is missing"))
        .hint("`pitr reindex` brings the catalog up to what is there"))
}

/// The first bytes of the log that a segment is of, up to [`LOG_HEAD_BYTES`]; none for Redis, and
/// none if the archive does not have them.
pub fn log_head(store: &Local, reader: &mut SegmentReader) -> Result<Bytes> {
    let mut header = reader.meta().header.clone();
    let mut first = None;
    // A log's segments follow one another: walk back to the one at its beginning.
    let is_begun = |header: &SegmentHeader| header.start.offset == 0 || header.head.is_some();
    while !is_begun(&header) && header.engine == EngineKind::Mysql && header.number > 1 {
        let (timeline, number) = (header.timeline, header.number - 1);
        let before = open_segment(store, &header.source, timeline, number)?;
        // One under the name of another would lead around in a circle.
        if (before.meta().header.timeline, before.meta().header.number) != (timeline, number) {
            let name = names::segment(&header.source, timeline, number);
            return Err(Error::corrupt(format!("{name} has the header of another segment")));
        }
        if before.meta().header.start.log != header.start.log {
            break;
        }
        header = before.meta().header.clone();
        first = Some(before);
    }
    if header.head.is_some() {
        return Ok(header.head_bytes()?.into());
    }
    let reader = first.as_mut().unwrap_or(reader);
    let mut head = Vec::new();
    if header.start.offset == 0 {
        let mut block = Vec::new();
        for index in 0..reader.blocks().len() {
            if head.len() >= LOG_HEAD_BYTES {
                break;
            }
            reader.read_block(index, &mut block)?;
            head.extend_from_slice(&block);
        }
        head.truncate(LOG_HEAD_BYTES);
    }
    Ok(head.into())
}

/// Keeps others from deleting anything of the archive for as long as the result lives. Whoever
/// reads for longer than a moment holds it; `None` where the file system knows no locks.
///
/// # Errors
/// Usage, if the folder is no archive; busy, if something is deleted from it for very long.
pub fn reading(root: &Path) -> Result<Option<Lock>> {
    read_meta(root)?;
    Lock::share(&root.join(names::ARCHIVE), READING_PATIENCE)
}

/// The name of a baseline's file within the archive.
pub fn baseline_name(baseline: &BaselineMeta) -> String {
    format!("{}/{}", names::timeline(&baseline.source, baseline.timeline), baseline.name)
}

/// Reads `archive.json`.
///
/// # Errors
/// Usage, if the folder is no archive; refused, if its format is another one.
pub fn read_meta(root: &Path) -> Result<ArchiveMeta> {
    let path = root.join(names::ARCHIVE);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(Error::usage(format!("{} is not an archive", root.display()))
                .hint("create it with `pitr init`"));
        }
        Err(error) => return Err(error).unavailable(|| format!("read {}", path.display())),
    };
    let meta: ArchiveMeta =
        serde_json::from_slice(&bytes).corrupt(|| format!("read {}", path.display()))?;
    if meta.format != FORMAT {
        return Err(Error::refused(format!(
            "{} has format {}, this program reads format {FORMAT}",
            root.display(),
            meta.format
        ))
        .hint("use the version of pitr that wrote it, or a newer one"));
    }
    Ok(meta)
}

#[cfg(test)]
mod tests;
