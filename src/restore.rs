//! Puts sources back to one instant.
//!
//! A restore is planned whole before anything is touched: the instant is resolved, a baseline
//! chosen and the segments behind it proved for every source, every target looked at. Only then
//! are baselines loaded and logs replayed, source by source, databases first.
//!
//! It needs the archive and nothing else: neither a daemon nor the sources.
//!
//! **Invariant:** bytes are checked against their digests before they are handed to a target,
//! and a target is called restored only after it was compared with what was sent.

use crate::archive::{Archive, SegmentReader, baseline_name, open_segment};
use crate::clock::Timestamp;
use crate::durable;
use crate::engine::{
    Destination, Endpoint, Needs, SourceOptions, Target, TargetOptions, open_target,
};
use crate::error::{Class, Context, Error, Result};
use crate::manifest::{BASELINE_JSON_MAX, BaselineMeta, EngineKind, SegmentMeta, names};
use crate::plan::{self, History};
use crate::position::Position;
use crate::record::{Applied, Cut, LOG_HEAD_BYTES, Landing, Mark, OpenLog, Piece};
use crate::store::Local;
use bytes::Bytes;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Pieces of a log or baseline between the archive and the engine.
const PIECES_IN_FLIGHT: usize = 8;

/// Length of a baseline's pieces.
const BASELINE_PIECE_BYTES: usize = 256 << 10;

/// What to restore, from where, to when and into what.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of the archive.
    pub archive: PathBuf,
    /// The sources to restore, in this order.
    pub sources: Vec<SourceOptions>,
    /// All configured sources: none of them may be a target.
    pub configured: Vec<Endpoint>,
    /// The instant; the last record committed at or before it is in.
    pub to: Timestamp,
    /// Running, empty servers by source name.
    pub targets: BTreeMap<String, Endpoint>,
    /// Folder for the sources that have no target.
    pub into: PathBuf,
    /// The address on which the log is served; loopback by default.
    pub listen: Option<SocketAddr>,
}

/// How far a restore has come, for whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
    step: std::sync::Mutex<String>,
}

impl Progress {
    /// Bytes handed over, and bytes to hand over, in the current step.
    pub fn bytes(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }

    /// What is being done.
    pub fn step(&self) -> String {
        self.step.lock().map(|step| step.clone()).unwrap_or_default()
    }

    fn begin(&self, step: String, total: u64) {
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
        if let Ok(mut current) = self.step.lock() {
            *current = step;
        }
    }

    fn advance(&self, bytes: usize) {
        self.done.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// What will be done for one source.
#[derive(Debug)]
pub struct Job {
    options: SourceOptions,
    destination: Destination,
    baseline: BaselineMeta,
    segments: Vec<SegmentMeta>,
    cut: Cut,
    uncertainty_ms: Option<u64>,
}

/// What will be done, and nothing done yet.
#[derive(Debug)]
pub struct Plan {
    to: Timestamp,
    jobs: Vec<Job>,
    needs: BTreeMap<String, Needs>,
    skew_ms: Option<i64>,
    into: PathBuf,
    listen: Option<SocketAddr>,
    store: Local,
}

/// `pitr.restore/1`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Name and version of this document's form.
    pub schema: &'static str,
    /// The instant.
    pub to: Timestamp,
    /// Whether this only says what would be done.
    pub plan: bool,
    /// The largest difference between the clocks of the sources when they were captured.
    pub skew_ms: Option<i64>,
    /// Where the receipt is.
    pub receipt: Option<String>,
    /// Source by source.
    pub sources: Vec<SourceReport>,
}

/// One source of a [`Report`].
#[derive(Debug, Clone, Serialize)]
pub struct SourceReport {
    /// Name of the source.
    pub name: String,
    /// Kind of the source.
    pub engine: EngineKind,
    /// The server or folder restored into.
    pub target: String,
    /// Version of the server restored into.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub target_version: String,
    /// Version of the server that the baseline was taken from.
    pub source_version: String,
    /// The timeline that the instant is in.
    pub timeline: u32,
    /// The baseline.
    pub baseline: BaselineReport,
    /// How many segments are replayed.
    pub segments: u64,
    /// Their digests, in order; none for one that is still open.
    pub digests: Vec<Option<String>>,
    /// Where the replay stops, as far as it is known beforehand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut: Option<String>,
    /// How exactly the instant is known, in ms, where it is known by samples of the clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uncertainty_ms: Option<u64>,
    /// Records applied.
    pub records: u64,
    /// Raw bytes of the log applied.
    pub bytes: u64,
    /// First record applied.
    pub first_applied: Option<Landing>,
    /// Last record applied.
    pub last_applied: Option<Landing>,
    /// First record left out.
    pub first_left_out: Option<Landing>,
    /// GTIDs executed at the end.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub gtids: String,
    /// How long it took.
    pub seconds: Seconds,
    /// `passed`, or `planned` if nothing was done.
    pub check: &'static str,
    /// What the check compared.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub checked: String,
}

/// The baseline of a [`SourceReport`].
#[derive(Debug, Clone, Serialize)]
pub struct BaselineReport {
    /// File name.
    pub name: String,
    /// The earliest instant that it can serve.
    pub at: Timestamp,
    /// BLAKE3 digest of its file.
    pub digest: String,
}

/// Durations of a [`SourceReport`].
#[derive(Debug, Clone, Default, Serialize)]
pub struct Seconds {
    /// Loading the baseline.
    pub baseline: f64,
    /// Replaying the log.
    pub replay: f64,
    /// Everything.
    pub total: f64,
}

/// The instant that `latest` means: the newest one that all sources can be restored to.
pub fn latest(archive: &Archive, sources: &[SourceOptions]) -> Result<Timestamp> {
    let mut windows = Vec::new();
    for source in sources {
        windows.push(plan::windows(&archive.history(&source.name, source.engine)?));
    }
    plan::joint(&windows).last().map(|window| window.to).ok_or_else(|| {
        Error::gap("there is no instant yet that all sources can be restored to")
            .hint("`pitr windows` shows each source's")
    })
}

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

impl Plan {
    /// What would be done, as a report.
    pub fn report(&self) -> Report {
        Report {
            schema: "pitr.restore/1",
            to: self.to,
            plan: true,
            skew_ms: self.skew_ms,
            receipt: None,
            sources: self.jobs.iter().map(Job::report).collect(),
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// Refused or unavailable before anything was changed; whatever went wrong afterwards, in
    /// which case the target is unfinished and says so.
    pub async fn run(self, progress: &Arc<Progress>) -> Result<Report> {
        let mut targets: Vec<Box<dyn Target>> = Vec::new();
        let mut versions = Vec::new();
        for job in &self.jobs {
            verify(&self.store, job, progress).await?;
            let mut target = open_target(TargetOptions {
                name: job.options.name.clone(),
                engine: job.options.engine,
                destination: job.destination.clone(),
                listen: self.listen,
            });
            let doing = || format!("restore {} into {}", job.options.name, job.target());
            let needs = self.needs.get(&job.options.name).cloned().unwrap_or_default();
            let server = target.preflight(&needs).await.map_err(|error| error.context(doing()))?;
            versions.push(server.version);
            targets.push(target);
        }
        let mut report = self.report();
        report.plan = false;
        for ((job, target), (done, version)) in
            self.jobs.iter().zip(&mut targets).zip(report.sources.iter_mut().zip(versions))
        {
            let doing = || format!("restore {} into {}", job.options.name, job.target());
            job.run(target.as_mut(), &self.store, done, progress)
                .await
                .map_err(|error| error.context(doing()))?;
            done.target_version = version;
        }
        let path = self.receipt_path();
        report.receipt = Some(path.display().to_string());
        let json = serde_json::to_vec_pretty(&report).class(Class::Bug, || "write JSON".into())?;
        durable::replace(&path, &json)?;
        Ok(report)
    }

    /// Beside the folder that was restored into, or in the current one.
    fn receipt_path(&self) -> PathBuf {
        let name = format!("pitr-receipt-{}.json", self.to.compact());
        let has_folder = self.jobs.iter().any(|j| matches!(j.destination, Destination::Folder(_)));
        if has_folder { self.into.join(name) } else { PathBuf::from(name) }
    }
}

impl Job {
    fn target(&self) -> String {
        match &self.destination {
            Destination::Running(endpoint) => endpoint.to_string(),
            Destination::Folder(dir) => dir.display().to_string(),
        }
    }

    fn report(&self) -> SourceReport {
        SourceReport {
            name: self.options.name.clone(),
            engine: self.options.engine,
            target: self.target(),
            target_version: String::new(),
            source_version: self.baseline.server.version.clone(),
            timeline: self.baseline.timeline,
            baseline: BaselineReport {
                name: self.baseline.name.clone(),
                at: self.baseline.at,
                digest: self.baseline.digest.clone(),
            },
            segments: self.segments.len() as u64,
            digests: self
                .segments
                .iter()
                .map(|segment| segment.sealed.then(|| segment.digest.clone()))
                .collect(),
            cut: match &self.cut {
                Cut::At(position) => Some(position.to_string()),
                Cut::After(_) => None,
            },
            uncertainty_ms: self.uncertainty_ms,
            records: 0,
            bytes: 0,
            first_applied: None,
            last_applied: None,
            first_left_out: None,
            gtids: String::new(),
            seconds: Seconds::default(),
            check: "planned",
            checked: String::new(),
        }
    }

    async fn run(
        &self,
        target: &mut dyn Target,
        store: &Local,
        report: &mut SourceReport,
        progress: &Arc<Progress>,
    ) -> Result<()> {
        let begun = Instant::now();
        progress.begin(format!("load {}", self.baseline.name), self.baseline.bytes_raw);
        let pieces = read_baseline(store, &self.baseline, Arc::clone(progress))?;
        target.load(&self.baseline, pieces).await?;
        report.seconds.baseline = begun.elapsed().as_secs_f64();

        let replaying = Instant::now();
        let total = self.segments.iter().map(|segment| segment.totals.bytes_raw).sum();
        progress.begin(format!("replay {}", self.options.name), total);
        let log = read_log(store.clone(), self, Arc::clone(progress));
        let applied = target.replay(&self.baseline, log, &self.cut).await?;
        report.seconds.replay = replaying.elapsed().as_secs_f64();

        progress.begin(format!("check {}", self.options.name), 0);
        report.checked = target.finish(&applied).await?;
        report.check = "passed";
        report.seconds.total = begun.elapsed().as_secs_f64();
        report.fill(applied);
        Ok(())
    }
}

impl SourceReport {
    fn fill(&mut self, applied: Applied) {
        self.records = applied.records;
        self.bytes = applied.bytes;
        self.first_applied = applied.first;
        self.last_applied = applied.last;
        self.first_left_out = applied.first_left_out;
        self.gtids = applied.gtids;
    }
}

fn baseline_path(store: &Local, baseline: &BaselineMeta) -> Result<PathBuf> {
    store.path(&baseline_name(baseline))
}

/// Reads everything that a job will read, before anything is touched: what is damaged is found
/// while the target is still as it was.
async fn verify(store: &Local, job: &Job, progress: &Arc<Progress>) -> Result<()> {
    let stored: u64 = job.segments.iter().map(|segment| segment.bytes_stored).sum();
    let total = job.baseline.bytes_stored + stored;
    progress.begin(format!("verify what {} needs", job.options.name), total);
    let (store, progress) = (store.clone(), Arc::clone(progress));
    let (baseline, segments) = (job.baseline.clone(), job.segments.clone());
    let verifying = tokio::task::spawn_blocking(move || {
        verify_baseline(&store, &baseline, &progress)?;
        for segment in &segments {
            let header = &segment.header;
            let name = names::segment(&header.source, header.timeline, header.number);
            let mut reader = open_segment(&store, &header.source, header.timeline, header.number)?;
            let found = reader.meta();
            // An open segment has no digest yet; its blocks were checked while it was scanned.
            let is_same = found.header == *header
                && (!segment.sealed || !found.sealed || found.digest == segment.digest);
            if !is_same {
                return Err(Error::corrupt(format!("{name} is not the one in the catalog"))
                    .hint("run `pitr reindex`"));
            }
            if found.sealed {
                reader.verify().map_err(|error| error.context(&name))?;
            }
            progress.advance(usize::try_from(segment.bytes_stored).unwrap_or(usize::MAX));
        }
        Ok(())
    });
    verifying.await.class(Class::Bug, || "verify the archive".into())?
}

/// Compares a baseline's file with its digest, and what the catalog says of it with its JSON.
fn verify_baseline(store: &Local, baseline: &BaselineMeta, progress: &Progress) -> Result<()> {
    let name = format!("{}.json", baseline_name(baseline));
    let json = store.get(&name, BASELINE_JSON_MAX)?;
    let stored = BaselineMeta::decode(&json).map_err(|error| error.context(&name))?;
    if stored != *baseline {
        return Err(Error::corrupt(format!("{name} is not what the catalog says"))
            .hint("run `pitr reindex`"));
    }
    let path = baseline_path(store, baseline)?;
    let mut file = File::open(&path).unavailable(|| format!("open {}", path.display()))?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BASELINE_PIECE_BYTES];
    loop {
        let read = file.read(&mut buffer).unavailable(|| format!("read {}", path.display()))?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        hasher.update(bytes);
        progress.advance(read);
    }
    if hasher.finalize().to_hex().as_str() != baseline.digest {
        return Err(Error::corrupt(format!("{} does not match its digest", path.display())).hint(
            "restore the file from the other copy, or choose an instant after a later baseline",
        ));
    }
    Ok(())
}

fn read_baseline(
    store: &Local,
    baseline: &BaselineMeta,
    progress: Arc<Progress>,
) -> Result<mpsc::Receiver<Result<Bytes>>> {
    let path = baseline_path(store, baseline)?;
    let file = File::open(&path).unavailable(|| format!("open {}", path.display()))?;
    let expected = baseline.bytes_raw;
    let (send, receive) = mpsc::channel(PIECES_IN_FLIGHT);
    std::thread::spawn(move || {
        let result = (|| {
            let mut decoder = zstd::Decoder::new(file).corrupt(|| path.display().to_string())?;
            let mut total = 0;
            loop {
                let mut buffer = vec![0; BASELINE_PIECE_BYTES];
                let read = fill(&mut decoder, &mut buffer)
                    .corrupt(|| format!("decompress {}", path.display()))?;
                if read == 0 {
                    break;
                }
                buffer.truncate(read);
                total += read as u64;
                progress.advance(read);
                if send.blocking_send(Ok(buffer.into())).is_err() {
                    return Ok(());
                }
            }
            if total == expected {
                return Ok(());
            }
            Err(Error::corrupt(format!("{} holds {total} bytes, not {expected}", path.display())))
        })();
        if let Err(error) = result {
            // The receiver may be gone; then nobody wants to know.
            drop(send.blocking_send(Err(error)));
        }
    });
    Ok(receive)
}

fn fill(from: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest)? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

/// The log from the baseline's place to the end of the last segment, readable again and again.
fn read_log(store: Local, job: &Job, progress: Arc<Progress>) -> OpenLog {
    let place = job.baseline.position.clone();
    let segments = Arc::new(job.segments.clone());
    Arc::new(move || {
        let (send, receive) = mpsc::channel(PIECES_IN_FLIGHT);
        let (store, segments) = (store.clone(), Arc::clone(&segments));
        let (place, progress) = (place.clone(), Arc::clone(&progress));
        std::thread::spawn(move || {
            progress.done.store(0, Ordering::Relaxed);
            if let Err(error) = feed(&store, &segments, &place, &progress, &send) {
                // The receiver may be gone; then nobody wants to know.
                drop(send.blocking_send(Err(error)));
            }
        });
        receive
    })
}

fn feed(
    store: &Local,
    segments: &[SegmentMeta],
    place: &Position,
    progress: &Progress,
    send: &mpsc::Sender<Result<Piece>>,
) -> Result<()> {
    let mut log: Option<String> = None;
    for (index, segment) in segments.iter().enumerate() {
        let header = &segment.header;
        let mut reader = open_segment(store, &header.source, header.timeline, header.number)?;
        if reader.meta().header != *header {
            return Err(Error::corrupt(format!(
                "segment {} is not the one that was planned with",
                header.number
            )));
        }
        let from = if index == 0 { place.clone() } else { header.start.clone() };
        if log.as_ref() != Some(&from.log) {
            log = Some(from.log.clone());
            let head = log_head(store, &mut reader)?;
            if send.blocking_send(Ok(Piece::Log { at: from.clone(), head })).is_err() {
                return Ok(());
            }
        }
        if !feed_segment(&mut reader, from.offset, segment, progress, send)? {
            return Ok(());
        }
    }
    Ok(())
}

/// Hands over the bytes of one segment from `from` to its last whole record. `false` if nobody
/// takes them any more.
fn feed_segment(
    reader: &mut SegmentReader,
    from: u64,
    segment: &SegmentMeta,
    progress: &Progress,
    send: &mpsc::Sender<Result<Piece>>,
) -> Result<bool> {
    let end = segment.totals.end.offset;
    let mut next = from;
    for index in 0..reader.blocks().len() {
        let Some(block) = reader.blocks().get(index).cloned() else { break };
        if block.end() <= from || block.raw_len == 0 || block.start >= end {
            continue;
        }
        let mut bytes = Vec::new();
        reader.read_block(index, &mut bytes)?;
        let mut bytes = Bytes::from(bytes);
        if block.end() > end {
            bytes.truncate(usize::try_from(end - block.start).unwrap_or(usize::MAX));
        }
        if block.start < from {
            let skip = usize::try_from(from - block.start).unwrap_or(usize::MAX);
            bytes = bytes.split_off(skip.min(bytes.len()));
        }
        progress.advance(bytes.len());
        next += bytes.len() as u64;
        if send.blocking_send(Ok(Piece::Bytes(bytes))).is_err() {
            return Ok(false);
        }
    }
    if next == end.max(from) {
        return Ok(true);
    }
    Err(Error::corrupt(format!(
        "segment {} gave the log up to {next}, not to {end}",
        segment.header.number
    )))
}

/// The first bytes of the log that a segment is of.
fn log_head(store: &Local, reader: &mut SegmentReader) -> Result<Bytes> {
    let mut header = reader.meta().header.clone();
    let mut first = None;
    // A log's segments follow one another: walk back to the one at its beginning.
    while header.start.offset > 0 && header.engine == EngineKind::Mysql && header.number > 1 {
        let before = open_segment(store, &header.source, header.timeline, header.number - 1)?;
        if before.meta().header.start.log != header.start.log {
            break;
        }
        header = before.meta().header.clone();
        first = Some(before);
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

/// Where `pitr restore` puts folders when it is not told: `./restored-20240501T030000Z`.
pub fn default_folder(to: Timestamp) -> PathBuf {
    Path::new(".").join(format!("restored-{}", to.compact()))
}

/// How long a restore waits for a running daemon to pass the instant.
pub const WAIT_FOR_DAEMON: Duration = Duration::from_secs(10);
