//! Puts sources back to one instant.
//!
//! A restore is planned whole before anything is touched ([`prepare()`]): the instant is resolved,
//! a baseline chosen and the segments behind it proved for every source, every target looked at.
//! Only then are baselines loaded and logs replayed, source by source, databases first.
//!
//! It needs the archive and nothing else: neither a daemon nor the sources.
//!
//! **Invariant:** bytes are checked against their digests before they are handed to a target,
//! and a target is called restored only after it was compared with what was sent.

mod closure;
mod cut;
mod feed;
mod place;
mod prepare;
mod report;

use crate::archive::Archive;
use crate::clock::Timestamp;
use crate::durable;
use crate::engine::inspect::compare;
use crate::engine::mysql;
use crate::engine::{
    Apply, Destination, Endpoint, Expiry, Keys, Leftover, Meter, Needs, SourceOptions, Target,
    TargetOptions, Ttl, open_target,
};
use crate::error::{Class, Context, Error, Result};
use crate::manifest::{BaselineMeta, EngineKind, SegmentMeta};
use crate::plan;
use crate::position::Position;
use crate::record::{Cut, Landing, OpenBaseline, Server};
use crate::store::Local;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub use closure::{Closed, check as check_closure, closure, text as closure_text};
pub use prepare::prepare;
pub use report::{BaselineReport, Report, Seconds, SetupReport, SourceReport};

/// What to restore, from where, to when and into what.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of the archive.
    pub archive: PathBuf,
    /// The sources to restore, in this order.
    pub sources: Vec<SourceOptions>,
    /// All configured sources: none of them may be a target.
    pub configured: Vec<Endpoint>,
    /// Where to.
    pub to: Goal,
    /// Running, empty servers by source name.
    pub targets: BTreeMap<String, Endpoint>,
    /// Folder for the sources that have no target; one named after the instant by default.
    pub into: Option<PathBuf>,
    /// The address on which the log is served; loopback by default.
    pub listen: Option<SocketAddr>,
    /// How logs are applied to running servers.
    pub apply: Apply,
    /// The only databases to be restored, of one MySQL source; if there are none here, each source's
    /// options say it.
    pub databases: Vec<String>,
    /// What becomes of the times at which keys of Redis expire.
    pub ttl: Ttl,
    /// The only keys to be restored, of one Redis source.
    pub keys: Keys,
    /// The source whose running target may hold keys; those that are chosen are replaced.
    pub in_place: Option<String>,
    /// Names of sources whose targets are cleaned first, if an interrupted restore left them half
    /// filled.
    pub clean: Vec<String>,
    /// What is looked at beyond the restore itself, for a rehearsal.
    pub inspect: Option<Look>,
}

/// How a rehearsal looks at everything that was restored.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// Whether the source is expected to have a [`canary`](crate::engine::canary).
    pub canary: bool,
}

/// What a restore goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// An instant; the last record committed at or before it is in.
    Instant(Timestamp),
    /// A place in the log of the only source, as its people write it.
    Place {
        /// The place: see [`Place::parse`](crate::engine::place::Place::parse).
        text: String,
        /// Whether the record itself is left out.
        before: bool,
    },
    /// An instant that somebody named: each source at exactly its place.
    Mark(String),
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instant(at) => write!(f, "to {at}"),
            Self::Place { text, before: false } => write!(f, "to {text}"),
            Self::Place { text, before: true } => write!(f, "to before {text}"),
            Self::Mark(name) => write!(f, "to mark:{name}"),
        }
    }
}

/// How far a restore has come, for whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
    step: std::sync::Mutex<Step>,
}

/// A step of a restore, of which the first one has number 1.
#[derive(Debug, Default)]
struct Step {
    number: u64,
    doing: String,
    meter: Option<Arc<Meter>>,
}

/// What [`Progress`] shows at one moment.
#[derive(Debug, Clone)]
pub struct Now {
    /// Number of the step, counted from 1; 0 before the first one.
    pub step: u64,
    /// What is being done.
    pub doing: String,
    /// Bytes handed over in this step.
    pub done: u64,
    /// Bytes to hand over in this step.
    pub total: u64,
}

impl Progress {
    /// How far it is now.
    pub fn now(&self) -> Now {
        let (step, doing) = match self.step.lock() {
            Ok(step) => {
                let more =
                    step.meter.as_ref().map(|meter| format!(", {meter}")).unwrap_or_default();
                (step.number, format!("{}{more}", step.doing))
            }
            Err(_) => (0, String::new()),
        };
        let (done, total) = (&self.done, &self.total);
        let (done, total) = (done.load(Ordering::Relaxed), total.load(Ordering::Relaxed));
        Now { step, doing, done, total }
    }

    fn begin(&self, doing: String, total: u64) {
        self.begin_with(doing, total, None);
    }

    fn begin_with(&self, doing: String, total: u64, meter: Option<Arc<Meter>>) {
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
        if let Ok(mut step) = self.step.lock() {
            *step = Step { number: step.number + 1, doing, meter };
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
    uncertainty: Option<Duration>,
    /// What is known beforehand of the records on both sides of the cut.
    last_in: Option<Landing>,
    first_out: Option<Landing>,
    strange_events: Vec<u8>,
    /// The only databases that are kept; all, if there are none here.
    databases: Vec<String>,
    /// Where the archive's log ends, if that is behind the newest instant that is known of it.
    goes_on_to: Option<Position>,
    /// What the source was besides its data.
    setup: Option<SetupReport>,
}

/// What will be done, and nothing done yet.
#[derive(Debug)]
pub struct Plan {
    to: Timestamp,
    goal: Goal,
    jobs: Vec<Job>,
    needs: BTreeMap<String, Needs>,
    skew_ms: Option<i64>,
    into: PathBuf,
    listen: Option<SocketAddr>,
    apply: Apply,
    /// The databases that were named for this restore.
    chosen: Vec<String>,
    expiry: Expiry,
    keys: Keys,
    in_place: bool,
    clean: Vec<String>,
    inspect: Option<Look>,
    store: Local,
    /// Nothing that was planned with is deleted meanwhile.
    _reading: Option<durable::Lock>,
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

impl Plan {
    /// What would be done, as a report.
    pub fn report(&self) -> Report {
        Report {
            schema: "pitr.restore/1",
            to: self.to,
            position: match &self.goal {
                Goal::Instant(_) => None,
                Goal::Place { text, .. } => Some(text.clone()),
                Goal::Mark(name) => Some(format!("mark:{name}")),
            },
            before: matches!(self.goal, Goal::Place { before: true, .. }),
            plan: true,
            databases: self.chosen.clone(),
            keys: (!self.keys.is_all()).then(|| self.keys.to_string()),
            skew_ms: self.skew_ms,
            receipt: None,
            sources: self.jobs.iter().map(|job| job.report(&self.chosen)).collect(),
        }
    }

    /// Looks at the target of a job, and changes nothing.
    async fn look_at(&self, job: &Job, leftover: Leftover) -> Result<(Box<dyn Target>, Server)> {
        let mut target = open_target(TargetOptions {
            name: job.options.name.clone(),
            engine: job.options.engine,
            destination: job.destination.clone(),
            listen: self.listen,
            apply: self.apply,
            databases: job.databases.clone(),
            expiry: self.expiry,
            keys: self.keys.clone(),
            in_place: self.in_place,
            leftover,
            purpose: purpose(job),
        });
        let doing = || format!("restore {} into {}", job.options.name, job.target());
        let needs = self.needs.get(&job.options.name).cloned().unwrap_or_default();
        let server = target.preflight(&needs).await.map_err(|error| error.context(doing()))?;
        Ok((target, server))
    }

    /// Looks at the running servers among the targets, and says what would be done with them.
    ///
    /// # Errors
    /// Refused or unavailable, as the restore itself would be.
    pub async fn look(&self) -> Result<Report> {
        let mut report = self.report();
        for (job, said) in self.jobs.iter().zip(&mut report.sources) {
            if matches!(job.destination, Destination::Running(_)) {
                let (target, server) = self.look_at(job, Leftover::Look).await?;
                said.target_version = server.version;
                said.goes(target.way());
            }
        }
        Ok(report)
    }

    /// How much room a folder needs, in bytes, at a guess: of Redis the baseline and the log, as they are;
    /// of MySQL the rows with their indexes, and a log that is deleted as it is applied.
    pub fn room(&self) -> u64 {
        let of = |job: &Job| {
            let log: u64 = job.segments.iter().map(|segment| segment.totals.bytes_raw).sum();
            match job.options.engine {
                EngineKind::Mysql => job.baseline.bytes_raw * 2 + log.min(mysql::RELAY_BYTES),
                EngineKind::Redis => job.baseline.bytes_raw + log,
            }
        };
        self.jobs.iter().map(of).sum()
    }

    /// Looks whether everything is there that the restore and the looks at it start.
    ///
    /// # Errors
    /// Refused or unavailable, if not. Nothing was changed.
    pub async fn fits(&self) -> Result<()> {
        for job in &self.jobs {
            let (mut target, _) = self.look_at(job, Leftover::Look).await?;
            let needs = self.needs.get(&job.options.name).cloned().unwrap_or_default();
            target.can_inspect(&needs).await?;
        }
        Ok(())
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
            feed::verify(&self.store, job, progress).await?;
            let clean = self.clean.contains(&job.options.name);
            let leftover = if clean { Leftover::Clean } else { Leftover::GoOn };
            let (target, server) = self.look_at(job, leftover).await?;
            versions.push(server.version);
            targets.push(target);
        }
        for (job, target) in self.jobs.iter().zip(&mut targets) {
            let doing = || format!("restore {} into {}", job.options.name, job.target());
            job.examine(target.as_mut(), &self.store, progress)
                .await
                .map_err(|error| error.context(doing()))?;
        }
        let mut report = self.report();
        report.plan = false;
        for ((job, target), (done, version)) in
            self.jobs.iter().zip(&mut targets).zip(report.sources.iter_mut().zip(versions))
        {
            let doing = || format!("restore {} into {}", job.options.name, job.target());
            job.run(target.as_mut(), &self.store, done, progress, (self.to, self.inspect))
                .await
                .map_err(|error| error.context(doing()))?;
            done.target_version = version;
            done.goes(target.way());
            done.ttl = target.expired();
        }
        let path = self.receipt_path()?;
        report.receipt = Some(path.display().to_string());
        let json = serde_json::to_vec_pretty(&report).class(Class::Bug, || "write JSON".into())?;
        durable::replace(&path, &json)?;
        Ok(report)
    }

    /// Beside the folder that was restored into, or in the current one. The name is the
    /// receipt's own: that of an earlier restore to the same instant stays.
    fn receipt_path(&self) -> Result<PathBuf> {
        let has_folder = self.jobs.iter().any(|j| matches!(j.destination, Destination::Folder(_)));
        let dir = if has_folder { self.into.as_path() } else { Path::new("") };
        let mut name = format!("pitr-receipt-{}.json", self.to.compact());
        for number in 2_u32.. {
            let path = dir.join(&name);
            if durable::reserve(&path)? {
                return Ok(path);
            }
            name = format!("pitr-receipt-{}-{number}.json", self.to.compact());
        }
        Err(Error::unavailable(format!("no name is left for a receipt in {}", dir.display())))
    }
}

impl Job {
    fn target(&self) -> String {
        match &self.destination {
            Destination::Running(endpoint) => endpoint.to_string(),
            Destination::Folder(dir) => dir.display().to_string(),
        }
    }

    fn open_baseline(&self, store: &Local, progress: &Arc<Progress>) -> OpenBaseline {
        let (store, baseline) = (store.clone(), self.baseline.clone());
        let progress = Arc::clone(progress);
        Arc::new(move || feed::read_baseline(&store, &baseline, Arc::clone(&progress)))
    }

    /// Lets the target look through what it is going to get, while it is still as it was.
    async fn examine(
        &self,
        target: &mut dyn Target,
        store: &Local,
        progress: &Arc<Progress>,
    ) -> Result<()> {
        if !target.reads_ahead() {
            return Ok(());
        }
        let name = &self.options.name;
        progress.begin(format!("look through {name}"), self.baseline.bytes_raw);
        let open = self.open_baseline(store, progress);
        let log = feed::read_log(store.clone(), self, Arc::clone(progress));
        target.examine(&self.baseline, open, log, &self.cut).await
    }

    async fn run(
        &self,
        target: &mut dyn Target,
        store: &Local,
        report: &mut SourceReport,
        progress: &Arc<Progress>,
        (to, look): (Timestamp, Option<Look>),
    ) -> Result<()> {
        let begun = Instant::now();
        let mut looked = Duration::ZERO;
        let doing = format!("load {}", self.baseline.name);
        progress.begin_with(doing, self.baseline.bytes_raw, target.meter());
        target.load(&self.baseline, self.open_baseline(store, progress)).await?;
        report.seconds.baseline = begun.elapsed().as_secs_f64();
        if look.is_some() {
            let looking = Instant::now();
            progress.begin(format!("look at the baseline of {}", self.options.name), 0);
            let held = target.contents(&self.baseline).await?;
            report.inspection = compare(self.baseline.contents.as_ref(), held.as_ref());
            looked += looking.elapsed();
        }

        let replaying = Instant::now();
        let total = self.segments.iter().map(|segment| segment.totals.bytes_raw).sum();
        progress.begin(format!("replay {}", self.options.name), total);
        let log = feed::read_log(store.clone(), self, Arc::clone(progress));
        let applied = target.replay(&self.baseline, log, &self.cut).await?;
        report.seconds.replay = replaying.elapsed().as_secs_f64();

        for is_finished in [false, true] {
            if is_finished {
                progress.begin(format!("check {}", self.options.name), 0);
                report.checked = target.finish(&applied).await?;
                report.check = "passed";
            }
            if let Some(look) = look {
                let looking = Instant::now();
                progress.begin(format!("look at all of {}", self.options.name), 0);
                let canary = look.canary.then_some(to);
                let found = target.inspect(&self.baseline, is_finished, canary).await?;
                report.inspection.extend(found);
                looked += looking.elapsed();
            }
        }
        report.seconds.inspection = looked.as_secs_f64();
        report.seconds.total = begun.elapsed().as_secs_f64();
        report.fill(applied);
        Ok(())
    }
}

/// Where `pitr restore` puts folders when it is not told: `./restored-20240501T030000Z`.
pub fn default_folder(to: Timestamp) -> PathBuf {
    Path::new(".").join(format!("restored-{}", to.compact()))
}

/// How long a restore waits for a running daemon to pass the instant.
pub const WAIT_FOR_DAEMON: Duration = Duration::from_secs(10);

/// What tells the restore of a job from every other one.
fn purpose(job: &Job) -> String {
    let (baseline, cut) = (&job.baseline, &job.cut);
    format!(
        "{} of archive {}: {} ({}) of timeline {}, {cut:?}, databases {:?}",
        baseline.source,
        baseline.archive,
        baseline.name,
        baseline.digest,
        baseline.timeline,
        job.databases
    )
}
