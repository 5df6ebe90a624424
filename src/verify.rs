//! Reads what is stored, and says what is not as it was written.
//!
//! Of every segment header, footer and place in the chain are looked at, and compared with the
//! catalog. Of those that are chosen ([`Sample`]) every byte is read: against the digest of the
//! file, the checksum of each block, its length uncompressed, and as what the source's engine wrote,
//! to the last record. Baselines are decompressed whole. Findings are collected, not stopped at.
//!
//! It needs neither servers nor their tools. What reads the bytes as records is given to it, so
//! that it knows no engine. While a daemon writes, what has no final name yet counts as far as it
//! is whole.

mod hours;
mod report;

use crate::archive::{
    Archive, Forgotten, SegmentReader, baseline_name, log_head, open_segment, reading,
};
use crate::clock::Timestamp;
use crate::error::{Class, Context, Error, Result};
use crate::manifest::{
    BASELINE_JSON_MAX, BaselineMeta, BlockMeta, Continues, EngineKind, FORMAT, SegmentHeader,
    SegmentMeta, names,
};
use crate::position::Position;
use crate::record::Parse;
use crate::segment::Reader;
use bytes::Bytes;
pub use report::{Finding, Kind, Lost, Report};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::PathBuf;

/// Bytes that are read at once.
const READ_BYTES: usize = 256 << 10;

/// Longest small object that is read, in bytes.
const SMALL_MAX: u64 = 32 << 20;

/// Gives what reads a log from a place on, which lies between two records.
pub type Parser = fn(EngineKind, &Position) -> Box<dyn Parse>;

/// Which objects are read whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sample {
    /// All of them.
    All,
    /// Another part each day: after so many days in a row, each object was read once.
    Part {
        /// Number of parts.
        of: u64,
        /// Days since 1970.
        day: u64,
    },
}

impl Sample {
    /// So much of everything, on the day of `now`.
    ///
    /// # Errors
    /// Usage, if it is not a part of a whole.
    pub fn percent(percent: f64, now: Timestamp) -> Result<Self> {
        if !(percent > 0.0 && percent <= 100.0) {
            return Err(Error::usage(format!("not a part of a whole: {percent} %")));
        }
        let day = u64::try_from(now.as_micros()).unwrap_or(0) / 86_400_000_000;
        Ok(Self::Part { of: (100.0 / percent).ceil() as u64, day })
    }

    /// Whether the object of this name is read whole. A function of name and day alone, so that
    /// nothing has to be remembered.
    fn has(self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Part { of, day } => {
                let mut number = [0; 8];
                blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut number);
                u64::from_le_bytes(number) % of.max(1) == day % of.max(1)
            }
        }
    }
}

/// What to read.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of the archive.
    pub archive: PathBuf,
    /// Only these sources; all, if none is named.
    pub sources: Vec<String>,
    /// Which objects are read whole.
    pub sample: Sample,
    /// What reads bytes as records.
    pub parser: Parser,
}

/// Reads the archive. `step` is told how many bytes were read, and of how many.
///
/// # Errors
/// Unavailable, if a disk does not answer; busy, if something is being deleted. What is found is
/// no error of this function: see [`Report::check`].
pub fn verify(options: &Options, step: &dyn Fn(u64, u64)) -> Result<Report> {
    let _reading = reading(&options.archive)?;
    let archive = Archive::open_read_only(&options.archive)?;
    let report =
        Report { schema: "pitr.verify/1", objects: 0, read: 0, bytes: 0, findings: vec![] };
    let all = archive.store().list("")?;
    let mut work = Work { archive: &archive, options, step, total: 0, report };
    for name in &all {
        if work.reads(name) {
            work.total += archive.store().size(name)?.unwrap_or(0);
        }
    }
    let mut sources: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for name in all {
        match name.split_once('/') {
            Some((folder, _)) if folder == names::MARKS => work.small(&name)?,
            Some((folder, _)) if folder == names::DRILLS => {
                if name.strip_suffix(".html").is_none() {
                    work.small(&name)?;
                }
            }
            Some((source, _)) => sources.entry(source.to_owned()).or_default().push(name),
            None => work.top(name),
        }
    }
    let engines: BTreeMap<String, EngineKind> = archive.catalog().sources()?.into_iter().collect();
    for source in engines.keys().filter(|source| options.wants(source)) {
        // All of it is gone: the catalog tells what was there.
        sources.entry(source.clone()).or_default();
    }
    for (source, objects) in sources.iter().filter(|(source, _)| options.wants(source)) {
        work.source(source, objects).map_err(|error| error.context(source))?;
    }
    Ok(work.report)
}

impl Options {
    fn wants(&self, source: &str) -> bool {
        self.sources.is_empty() || self.sources.iter().any(|wanted| wanted == source)
    }
}

struct Work<'a> {
    archive: &'a Archive,
    options: &'a Options,
    step: &'a dyn Fn(u64, u64),
    total: u64,
    report: Report,
}

impl Work<'_> {
    fn reads(&self, name: &str) -> bool {
        let source = name.split_once('/').map_or("", |(source, _)| source);
        name.strip_suffix(".zst").is_some()
            && self.options.wants(source)
            && self.options.sample.has(name)
    }

    fn found(&mut self, object: impl Into<String>, kind: Kind, reason: impl Into<String>) {
        let (object, reason) = (object.into(), reason.into());
        let finding = Finding { object, kind, block: None, offsets: None, lost: None, reason };
        self.report.findings.push(finding);
    }

    /// What cannot be restored because of what was found last.
    fn loses(&mut self, lost: Lost) {
        if let Some(last) = self.report.findings.last_mut() {
            last.lost = Some(lost);
        }
    }

    /// Takes note of damage; a disk that does not answer is no finding.
    fn damaged(&mut self, object: &str, error: Error) -> Result<()> {
        match error.class() {
            Class::Corrupt | Class::Refused => {
                self.found(object, Kind::Damaged, error.to_string());
                Ok(())
            }
            Class::Gap => {
                self.found(object, Kind::Missing, error.to_string());
                Ok(())
            }
            _ => Err(error),
        }
    }

    fn progress(&mut self, bytes: u64) {
        self.report.bytes += bytes;
        (self.step)(self.report.bytes, self.total);
    }

    /// An object beside the sources.
    fn top(&mut self, name: String) {
        let is_known = name == names::ARCHIVE
            || name.starts_with(names::CATALOG)
            || name == names::LOCK
            || name == names::SOCKET
            || is_unfinished(&name);
        if !is_known && self.options.sources.is_empty() {
            self.found(name, Kind::Surplus, "it is no part of an archive");
        }
    }

    fn source(&mut self, source: &str, objects: &[String]) -> Result<()> {
        let forgotten = match self.archive.forgotten(source) {
            Ok(forgotten) => forgotten,
            Err(error) => {
                let folder = names::pruned_folder(source);
                self.damaged(folder.trim_end_matches('/'), error)?;
                Forgotten::default()
            }
        };
        let (baselines, bad) = self.baselines(source, objects, &forgotten)?;
        let mut segments: BTreeMap<u32, BTreeSet<u64>> = BTreeMap::new();
        self.hours(source, objects)?;
        for name in objects.iter().filter(|name| names::parse_hour(name).is_none()) {
            match names::parse_segment(name) {
                Some((timeline, number, _)) => {
                    segments.entry(timeline).or_default().insert(number);
                }
                None => self.other(source, name)?,
            }
        }
        for timeline in self.archive.catalog().timelines(source)? {
            segments.entry(timeline).or_default();
        }
        let (mut usable, mut useless) = (Vec::new(), Vec::new());
        for baseline in &baselines {
            let has_log = segments.get(&baseline.timeline).is_some_and(|all| !all.is_empty())
                || forgotten.before.contains_key(&baseline.timeline);
            match self.log_behind(baseline, has_log)? {
                None => usable.push(baseline),
                Some(reason) => useless.push((baseline, reason)),
            }
        }
        for bad in bad {
            self.loses_baseline(source, &bad, &usable)?;
        }
        for (timeline, numbers) in segments {
            let forgotten = &forgotten.before;
            let walk = Walk { source, timeline, numbers, forgotten, baselines: &usable };
            self.timeline(&walk)?;
            for (baseline, reason) in useless.iter().filter(|(b, _)| b.timeline == timeline) {
                let lost = walk.lost(Some(baseline.at), None);
                self.found(baseline_name(baseline), Kind::Missing, reason);
                self.loses(lost);
            }
        }
        Ok(())
    }

    /// Says which instants are lost with a baseline: none, if the log leads to them from an earlier
    /// one.
    fn loses_baseline(
        &mut self,
        source: &str,
        bad: &BadBaseline,
        usable: &[&BaselineMeta],
    ) -> Result<()> {
        let at = bad.meta.at;
        let mut on = Some(bad.meta.timeline);
        while let Some(timeline) = on {
            if usable.iter().any(|other| other.timeline == timeline && other.at < at) {
                return Ok(());
            }
            let continues = match open_segment(self.archive.store(), source, timeline, 1) {
                Ok(first) => first.meta().header.continues,
                Err(error) if matches!(error.class(), Class::Corrupt | Class::Gap) => None,
                Err(error) => return Err(error),
            };
            on = continues.map(|from| from.timeline).filter(|from| *from < timeline);
        }
        let later = |other: &&&BaselineMeta| other.at > at && other.timeline >= bad.meta.timeline;
        let until = usable.iter().find(later).map(|other| other.at);
        let after = usable.iter().any(|other| other.at < at).then_some(at);
        if let Some(finding) = self.report.findings.get_mut(bad.finding) {
            finding.lost = Some(Lost { after, until });
        }
        Ok(())
    }

    /// Small objects, and what is no object of an archive.
    fn other(&mut self, source: &str, name: &str) -> Result<()> {
        let rest = name.strip_prefix(source).unwrap_or(name);
        let is_small = names::is_strange_event(name)
            || names::is_pruned(name)
            || name.starts_with(&names::setups(source))
            || rest.starts_with("/semi-sync/")
            || rest.starts_with("/holds/");
        let file = name.rsplit_once('/').map_or(name, |(_, file)| file);
        if is_unfinished(name) || names::is_pin(source, name) || file.starts_with("base-") {
            return Ok(());
        }
        if names::is_kept(name) {
            let reason = "it was damaged while it was open; what stands behind the damage is only \
                          here, unless it was captured again: if `pitr windows` shows no gap, \
                          delete it";
            self.found(name, Kind::Damaged, reason);
            return Ok(());
        }
        if !is_small {
            self.found(name, Kind::Surplus, "it is no part of an archive");
            return Ok(());
        }
        self.small(name)
    }

    /// A small object, which is JSON.
    fn small(&mut self, name: &str) -> Result<()> {
        if is_unfinished(name) {
            return Ok(());
        }
        self.report.objects += 1;
        let json = self.archive.store().get(name, SMALL_MAX)?;
        if let Err(error) = serde_json::from_slice::<serde_json::Value>(&json) {
            self.found(name, Kind::Damaged, format!("it is no JSON: {error}"));
        }
        Ok(())
    }

    /// Looks at the baselines of a source, and gives those that can be relied on, and of the
    /// others those of which it is known what they were.
    fn baselines(
        &mut self,
        source: &str,
        objects: &[String],
        forgotten: &Forgotten,
    ) -> Result<(Vec<BaselineMeta>, Vec<BadBaseline>)> {
        let (mut sound, mut bad, mut described) = (Vec::new(), Vec::new(), BTreeSet::new());
        let rows = self.archive.catalog().baselines(source)?;
        let is_base = |name: &&String| {
            name.rsplit_once('/').is_some_and(|(_, file)| file.starts_with("base-"))
        };
        for name in objects.iter().filter(is_base) {
            let Some(bytes) = name.strip_suffix(".json") else { continue };
            self.report.objects += 1;
            described.insert(bytes.to_owned());
            match self.baseline(name, bytes, &rows) {
                Ok(meta) => sound.push(meta),
                Err(error) => {
                    let row = rows.iter().find(|row| baseline_name(row) == bytes).cloned();
                    let meta = row.or_else(|| self.baseline_json(name).ok());
                    let finding = self.report.findings.len();
                    self.damaged(name, error)?;
                    bad.extend(meta.map(|meta| BadBaseline { finding, meta }));
                }
            }
        }
        for name in
            objects.iter().filter(is_base).filter(|name| name.strip_suffix(".zst").is_some())
        {
            if !described.contains(name) && !forgotten.baselines.contains(name) {
                // It may have got its JSON since it was listed.
                if !self.archive.store().exists(&format!("{name}.json"))? {
                    self.found(name, Kind::Missing, "no JSON beside it says what it is");
                }
            }
        }
        for row in &rows {
            let name = baseline_name(row);
            if !described.contains(&name)
                && !self.archive.store().exists(&format!("{name}.json"))?
            {
                let finding = self.report.findings.len();
                bad.push(BadBaseline { finding, meta: row.clone() });
                self.found(format!("{name}.json"), Kind::Missing, "the catalog has it");
            }
        }
        sound.sort_by_key(|baseline| baseline.at);
        Ok((sound, bad))
    }

    fn baseline(&mut self, name: &str, bytes: &str, rows: &[BaselineMeta]) -> Result<BaselineMeta> {
        let meta = self.baseline_json(name)?;
        if meta.format != FORMAT {
            return Err(Error::refused(format!("its format {} is not known", meta.format)));
        }
        if meta.archive != self.archive.meta().archive || baseline_name(&meta) != bytes {
            return Err(Error::corrupt("by its content it belongs somewhere else"));
        }
        match rows.iter().find(|row| baseline_name(row) == bytes) {
            Some(row) if *row != meta => {
                self.found(name, Kind::Catalog, "the catalog says something else of it");
            }
            _ => {}
        }
        let size = self.archive.store().size(bytes)?;
        let size = size.ok_or_else(|| Error::gap(format!("{bytes} is missing")))?;
        if size != meta.bytes_stored {
            let wrong = format!("{bytes} has {size} bytes, not {}", meta.bytes_stored);
            return Err(Error::corrupt(wrong));
        }
        if self.reads(bytes) {
            self.report.read += 1;
            self.read_baseline(&meta)?;
        }
        Ok(meta)
    }

    fn baseline_json(&self, name: &str) -> Result<BaselineMeta> {
        BaselineMeta::decode(&self.archive.store().get(name, BASELINE_JSON_MAX)?)
    }

    fn read_baseline(&mut self, meta: &BaselineMeta) -> Result<()> {
        let name = baseline_name(meta);
        let file = self.archive.baseline(meta)?;
        let mut hashed = Hashed { file, hasher: blake3::Hasher::new(), len: 0 };
        let (mut buffer, mut counted) = (vec![0; READ_BYTES], 0);
        let decoded = (|| {
            let mut decoder = zstd::Decoder::new(&mut hashed)?;
            let mut raw = 0_u64;
            loop {
                let len = decoder.read(&mut buffer)?;
                if len == 0 {
                    return Ok::<u64, std::io::Error>(raw);
                }
                raw += len as u64;
                let read = decoder.get_ref().get_ref().len;
                self.progress(read - std::mem::replace(&mut counted, read));
                if raw > meta.bytes_raw {
                    return Ok(raw);
                }
            }
        })();
        // What the decoder left, so that the digest is of the whole.
        std::io::copy(&mut hashed, &mut std::io::sink()).unavailable(|| format!("read {name}"))?;
        self.progress(hashed.len - counted);
        if hashed.hasher.finalize().to_hex().as_str() != meta.digest {
            return Err(Error::corrupt(format!("{name} does not match its digest")));
        }
        match decoded {
            Ok(raw) if raw == meta.bytes_raw => Ok(()),
            Ok(raw) => {
                Err(Error::corrupt(format!("{name} holds {raw} bytes, not {}", meta.bytes_raw)))
            }
            Err(error) => Err(error).corrupt(|| format!("decompress {name}")),
        }
    }

    /// Looks at the segments of a timeline.
    fn timeline(&mut self, walk: &Walk<'_>) -> Result<()> {
        let (source, timeline) = (walk.source, walk.timeline);
        let rows: BTreeSet<u64> = self
            .archive
            .catalog()
            .outline(source, timeline)?
            .into_iter()
            .map(|(number, ..)| number)
            .collect();
        let expected: BTreeSet<u64> = walk.numbers.union(&rows).copied().collect();
        let last = expected.last().copied();
        let (mut before, mut reached): (Option<SegmentMeta>, _) = (None, None);
        let mut next = walk.forgotten.get(&timeline).copied().unwrap_or(0).max(1);
        for number in expected {
            let name = names::segment(source, timeline, number);
            if number > next {
                let finding = walk.missing(next, number - 1, reached);
                self.report.findings.push(finding);
                before = None;
            }
            next = number + 1;
            self.report.objects += 1;
            let mut reader = match open_segment(self.archive.store(), source, timeline, number) {
                Ok(reader) => reader,
                Err(error) if matches!(error.class(), Class::Corrupt | Class::Gap) => {
                    // An open one without a record is removed when it would be sealed.
                    if error.class() == Class::Gap && !rows.contains(&number) {
                        continue;
                    }
                    // One that was just being created when its writer died.
                    if error.class() == Class::Corrupt && self.is_torn_head(walk, number)? {
                        continue;
                    }
                    let kind = match error.class() {
                        Class::Gap => Kind::Missing,
                        _ => Kind::Damaged,
                    };
                    self.found(&name, kind, error.to_string());
                    self.loses(walk.lost(reached, None));
                    before = None;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if before.is_none() {
                before = self.shared(walk, &reader.meta().header)?;
                reached = reached.max(before.as_ref().and_then(|shared| shared.totals.known_until));
            }
            self.segment(walk, &name, &mut reader, before.as_ref(), reached)?;
            let meta = reader.meta().clone();
            // The last one may have got its name a moment ago, and gets its row now.
            if meta.sealed && (rows.contains(&number) || Some(number) != last) {
                self.compare_row(&name, &reader)?;
            }
            reached = reached.max(meta.totals.known_until);
            before = Some(meta);
        }
        Ok(())
    }

    /// The segment of another timeline that a first one goes on from: that one's last, or where
    /// it was left before its end, the last one that both have.
    fn shared(&mut self, walk: &Walk<'_>, header: &SegmentHeader) -> Result<Option<SegmentMeta>> {
        let Some(Continues { timeline, number }) = header.continues else { return Ok(None) };
        match open_segment(self.archive.store(), walk.source, timeline, number) {
            Ok(reader) => Ok(Some(reader.meta().clone())),
            // It was found where its own timeline was looked at.
            Err(error) if error.class() == Class::Corrupt => Ok(None),
            Err(error) if error.class() == Class::Gap => {
                let name = names::segment(walk.source, timeline, number);
                let is_forgotten =
                    walk.forgotten.get(&timeline).is_some_and(|before| number < *before);
                if !is_forgotten && !self.report.findings.iter().any(|f| f.object == name) {
                    let reason = format!("timeline {} goes on from it", header.timeline);
                    self.found(name, Kind::Missing, reason);
                    self.loses(walk.lost(None, None));
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn is_torn_head(&self, walk: &Walk<'_>, number: u64) -> Result<bool> {
        let name = names::open_segment(walk.source, walk.timeline, number);
        match File::open(self.archive.store().path(&name)?) {
            Ok(file) => Reader::header_is_torn(&mut BufReader::new(file)),
            Err(_) => Ok(false),
        }
    }

    fn segment(
        &mut self,
        walk: &Walk<'_>,
        name: &str,
        reader: &mut SegmentReader,
        before: Option<&SegmentMeta>,
        reached: Option<Timestamp>,
    ) -> Result<()> {
        let header = reader.meta().header.clone();
        let right = names::segment(&header.source, header.timeline, header.number);
        if header.archive != self.archive.meta().archive || right != *name {
            let reason = format!("by its header it is {right} of archive {}", header.archive);
            self.found(name, Kind::Damaged, reason);
            return Ok(());
        }
        for reason in breaks(&header, before) {
            self.found(name, Kind::Chain, reason);
            self.loses(walk.lost(reached, None));
        }
        // An open segment was read block by block to be opened at all, up to the first byte that is
        // none of a block.
        if !reader.meta().sealed && reader.goes_on_behind_damage()? {
            let block = reader.blocks().len();
            let known = reader.meta().totals.known_until.max(reached);
            let (object, kind) = (name.to_owned(), Kind::Damaged);
            let reason = "a block is not as it was written, and more stand behind it".to_owned();
            let lost = Some(walk.lost(known, None));
            let block = Some(block);
            self.report.findings.push(Finding { object, kind, block, offsets: None, lost, reason });
        }
        if !reader.meta().sealed || !self.options.sample.has(name) {
            return Ok(());
        }
        self.report.read += 1;
        let mut parse = Some((self.options.parser)(header.engine, &header.start));
        let mut bad: Vec<(Option<usize>, Option<BlockMeta>, String)> = Vec::new();
        let mut known = reached;
        let mut after = Vec::new();
        let read = reader.verify_blocks(|index, block, bytes| {
            match bytes {
                Ok(bytes) => {
                    let parsed = parse.as_mut().map(|p| p.push(Bytes::copy_from_slice(bytes)));
                    if let Some(Err(error)) = parsed {
                        bad.push((Some(index), Some(block.clone()), error.to_string()));
                        after.push(known);
                        parse = None;
                    }
                }
                Err(error) => {
                    bad.push((Some(index), Some(block.clone()), error.to_string()));
                    after.push(known);
                    parse = None;
                }
            }
            known = known.max(block.last_at).max(block.known_until);
        });
        match read {
            Ok(()) => {}
            Err(error) if error.class() == Class::Corrupt => {
                if bad.is_empty() {
                    bad.push((None, None, error.to_string()));
                    after.push(reached);
                }
            }
            Err(error) => return Err(error.context(name)),
        }
        if bad.is_empty() && parse.is_some_and(|parse| !parse.is_between_records()) {
            bad.push((None, None, "it ends within a record".into()));
            after.push(reached);
        }
        for ((block, meta, reason), known) in bad.into_iter().zip(after) {
            let offsets = meta.map(|meta| (meta.start, meta.end()));
            let end = header.start.offset + reader.meta().totals.bytes_raw;
            let end = (header.start.log.as_str(), offsets.map_or(end, |(_, end)| end));
            let lost = Some(walk.lost(known, Some(end)));
            let (object, kind) = (name.to_owned(), Kind::Damaged);
            self.report.findings.push(Finding { object, kind, block, offsets, lost, reason });
        }
        self.progress(reader.meta().bytes_stored);
        Ok(())
    }

    /// Compares a segment with what the catalog says of it.
    fn compare_row(&mut self, name: &str, reader: &SegmentReader) -> Result<()> {
        let meta = reader.meta();
        let (source, timeline, number) =
            (&meta.header.source, meta.header.timeline, meta.header.number);
        let catalog = self.archive.catalog();
        let Some(row) = catalog.segment(source, timeline, number)? else {
            self.found(name, Kind::Catalog, "the catalog does not have it");
            return Ok(());
        };
        let same = row == *meta && catalog.blocks(source, timeline, number)? == reader.blocks();
        if !same {
            self.found(name, Kind::Catalog, "the catalog says something else of it");
        }
        Ok(())
    }

    /// Why a baseline leads to no instant behind its own, if the log does not begin where it ends.
    fn log_behind(&self, baseline: &BaselineMeta, has_log: bool) -> Result<Option<String>> {
        let (source, timeline) = (baseline.source.as_str(), baseline.timeline);
        let place = &baseline.position;
        let segments = self.archive.segments_from(source, timeline, place, Some(baseline.at))?;
        let Some(first) = segments
            .first()
            .filter(|first| place.offset <= first.header.start.offset + first.totals.bytes_raw)
        else {
            let reason = format!("the segment that holds its place {place} is missing");
            return Ok(Some(reason).filter(|_| has_log));
        };
        // A binlog file is read from its beginning, wherever a replay in it begins.
        let begun = self
            .archive
            .segment(source, timeline, first.header.number)
            .and_then(|mut reader| log_head(self.archive.store(), &mut reader));
        match begun {
            Ok(_) => Ok(None),
            Err(error) if matches!(error.class(), Class::Corrupt | Class::Gap) => {
                Ok(Some(format!("the beginning of its log cannot be read: {error}")))
            }
            Err(error) => Err(error),
        }
    }
}

/// A baseline that cannot be relied on.
struct BadBaseline {
    /// Which of the findings says so.
    finding: usize,
    meta: BaselineMeta,
}

/// One timeline, and what is known of it beforehand.
struct Walk<'a> {
    source: &'a str,
    timeline: u32,
    numbers: BTreeSet<u64>,
    /// Of each timeline the number before which segments were deleted as too old.
    forgotten: &'a BTreeMap<u32, u64>,
    /// Those of the source behind which the log begins, in order.
    baselines: &'a [&'a BaselineMeta],
}

impl Walk<'_> {
    fn missing(&self, first: u64, last: u64, reached: Option<Timestamp>) -> Finding {
        let reason = match last - first {
            0 => format!("segment {first} is missing"),
            _ => format!("segments {first} to {last} are missing"),
        };
        Finding {
            object: names::segment(self.source, self.timeline, first),
            kind: Kind::Missing,
            block: None,
            offsets: None,
            lost: Some(self.lost(reached, None)),
            reason,
        }
    }

    /// What cannot be restored if the log is lost behind an instant: up to the next baseline,
    /// which is of this timeline or a later one, and lies behind what is damaged where that ends
    /// at a known place: a log and its offset.
    fn lost(&self, after: Option<Timestamp>, end: Option<(&str, u64)>) -> Lost {
        let is_behind = |baseline: &BaselineMeta| {
            let place = &baseline.position;
            baseline.timeline > self.timeline
                || end.is_none_or(|(log, end)| place.log != log || place.offset >= end)
        };
        let later = |baseline: &&&BaselineMeta| {
            baseline.timeline >= self.timeline
                && after.is_none_or(|after| baseline.at > after)
                && is_behind(baseline)
        };
        let until = self.baselines.iter().find(later).map(|baseline| baseline.at);
        Lost { after, until }
    }
}

/// In which ways a segment does not go on from the one before it.
fn breaks(header: &SegmentHeader, before: Option<&SegmentMeta>) -> Vec<String> {
    let (Some(before), None) = (before, &header.broken) else { return vec![] };
    let mut reasons = Vec::new();
    if before.sealed && header.previous.as_deref() != Some(before.digest.as_str()) {
        reasons.push(format!(
            "it does not name the digest of segment {} before it",
            before.header.number
        ));
    }
    let (end, start) = (&before.totals.end, &header.start);
    // Another server goes on at a place of its own; where a timeline was left, it is the same.
    let shares = header.fork.as_ref().map_or(header.timeline, |fork| fork.timeline);
    let is_joined = shares != before.header.timeline;
    if !is_joined && end.log == start.log && !end.is_same_place(start) {
        reasons.push(format!("it begins at {start}, and the one before it ends at {end}"));
    } else if (is_joined || end.log == start.log) && end.gtids != start.gtids {
        reasons.push(format!(
            "it begins with the GTIDs {}, and the one before it ends with {}",
            start.gtids, end.gtids
        ));
    }
    reasons
}

/// What is still being written, or was when its writer died.
fn is_unfinished(name: &str) -> bool {
    [".tmp", ".rewrite"].iter().any(|ending| name.strip_suffix(ending).is_some())
}

struct Hashed {
    file: File,
    hasher: blake3::Hasher,
    len: u64,
}

impl Read for Hashed {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let len = self.file.read(into)?;
        self.hasher.update(into.get(..len).unwrap_or_default());
        self.len += len as u64;
        Ok(len)
    }
}

#[cfg(test)]
mod tests;
