//! Rehearses a restore: into scratch servers, to an instant of the last day, and looks at what came
//! of it.
//!
//! It is the restore of [`restore`], in the same steps and with the same checks, into a folder that
//! is thrown away. On top of it, what a baseline gives is compared with what the source itself
//! counted when it was taken, and at the instant everything is read: rows, indexes, foreign keys,
//! definitions, keys and values. The report stays in the archive.
//!
//! **Invariant:** passed means that everything was restored and looked at, and nothing was wrong.
//! What could not be tried or told is inconclusive, never passed. Where a baseline has nothing to
//! compare with, or a server's check has only a note, that is named among the reasons.

mod page;

use crate::archive::Archive;
use crate::clock::{Timestamp, Tz, in_zone};
use crate::disk;
use crate::durable::Lock;
use crate::engine::inspect::Outcome;
use crate::engine::{Apply, Endpoint, Keys, SourceOptions, Ttl};
use crate::error::{Class, Context, Error, Result};
use crate::manifest::names;
use crate::plan::{self, JointWindow};
use crate::restore::{self, Goal, Progress};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How far back the instant lies at most, if none is named.
const DAY: Duration = Duration::from_hours(24);

/// Longest report that is read back, in bytes.
const REPORT_MAX: u64 = 32 << 20;

/// What to rehearse.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of the archive.
    pub archive: PathBuf,
    /// The sources, in the order in which they are restored.
    pub sources: Vec<SourceOptions>,
    /// All configured servers: none of them is written to.
    pub configured: Vec<Endpoint>,
    /// The instant; a random one of the last day, if none is named.
    pub to: Option<Timestamp>,
    /// Whether the sources are expected to have a [`canary`](crate::engine::canary).
    pub canary: bool,
    /// Where the scratch folder is made: it has to take all data. The system's temporary folder by
    /// default.
    pub scratch: Option<PathBuf>,
}

/// How a drill went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Everything was restored and looked at, and nothing was wrong.
    Passed,
    /// Something was wrong.
    Failed,
    /// It could not be tried, or not be told.
    Inconclusive,
}

impl Verdict {
    /// The word used in reports.
    pub fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Inconclusive => "inconclusive",
        }
    }
}

/// `pitr.drill/1`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Name and version of this document's form.
    pub schema: &'static str,
    /// How it went.
    pub verdict: Verdict,
    /// Why it is not passed, and what was not looked at if it is.
    pub reasons: Vec<String>,
    /// When it was begun, by this host's clock.
    pub begun_at: Timestamp,
    /// The instant that was restored to.
    pub to: Timestamp,
    /// The newest instant that all sources could be restored to when it was begun.
    pub newest: Timestamp,
    /// How far that was behind this host's clock, in ms: what would have been lost.
    pub rpo_ms: u64,
    /// How long it took from the decision to restore to data that was checked, in s: what an outage
    /// would have taken.
    pub rto_seconds: f64,
    /// How long it took with everything that was looked at afterwards, in s.
    pub seconds: f64,
    /// The restore itself; `None` if it did not come to its end.
    pub restore: Option<restore::Report>,
    /// Where the report is kept within the archive.
    pub report: String,
    /// The same as a page.
    pub page: String,
}

/// What is known of an earlier drill.
#[derive(Debug, Clone, Deserialize)]
pub struct Past {
    /// How it went.
    pub verdict: Verdict,
    /// When it was begun.
    pub begun_at: Timestamp,
}

/// How the names of scratch folders begin.
const SCRATCH: &str = "pitr-drill-";

/// How old a scratch folder is at least that nobody holds any more.
const STALE: Duration = Duration::from_mins(1);

/// A folder that is removed with everything in it, and held as long as it is used.
struct Scratch {
    dir: PathBuf,
    _lock: Lock,
}

impl Scratch {
    /// Makes one, after those were removed that drills left behind that were killed.
    fn create(below: Option<&Path>) -> Result<Self> {
        let below = below.map_or_else(std::env::temp_dir, Path::to_owned);
        let dir = below.join(format!("{SCRATCH}{}", uuid::Uuid::new_v4().simple()));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .unavailable(|| format!("create {}", dir.display()))?;
        let lock = match Lock::exclude(&dir) {
            Ok(lock) => lock,
            Err(error) => {
                drop(std::fs::remove_dir(&dir));
                return Err(error);
            }
        };
        let scratch = Self { dir, _lock: lock };
        if let Err(error) = scratch.remove_stale(&below) {
            tracing::warn!("remove old folders in {}: {error}", below.display());
        }
        Ok(scratch)
    }

    /// Removes the folders beside this one that are of the same user and held by nobody.
    fn remove_stale(&self, below: &Path) -> std::io::Result<()> {
        let mine = std::fs::symlink_metadata(&self.dir)?;
        for entry in std::fs::read_dir(below)? {
            let entry = entry?;
            let name = entry.file_name();
            let id = name.to_str().and_then(|name| name.strip_prefix(SCRATCH));
            let is_scratch = id.is_some_and(|id| uuid::Uuid::try_parse(id).is_ok());
            // Another drill may end in this moment.
            let Ok(found) = entry.metadata() else { continue };
            if !is_scratch || entry.path() == self.dir {
                continue;
            }
            let path = entry.path();
            let age = mine.modified()?.duration_since(found.modified()?).unwrap_or_default();
            let is_old = found.is_dir() && found.uid() == mine.uid() && age >= STALE;
            if is_old && let Ok(_lock) = Lock::exclude(&path) {
                tracing::info!("{} was left behind by a drill: it is removed", path.display());
                if let Err(error) = std::fs::remove_dir_all(&path) {
                    tracing::warn!("remove {}: {error}", path.display());
                }
            }
        }
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            tracing::warn!("remove {}: {error}", self.dir.display());
        }
    }
}

/// Looks whether `dir` has room for what is restored: a disk that is full of it would hold up
/// everything else that writes there.
fn check_room(dir: &Path, wanted: u64) -> Result<()> {
    let free = disk::free_bytes(dir)?;
    if free >= wanted {
        return Ok(());
    }
    let mib = |bytes: u64| bytes >> 20;
    let below = dir.parent().unwrap_or(dir).display();
    Err(Error::unavailable(format!(
        "{below} has {} MiB free, and the drill may need {} MiB",
        mib(free),
        mib(wanted)
    ))
    .hint("name a folder on a larger disk: --scratch, or [drill] dir"))
}

/// Rehearses, and files the report.
///
/// # Errors
/// Gap, if there is no such instant to restore to; unavailable, if the archive cannot be read or
/// the report not be written. That the restore goes wrong is a verdict.
pub async fn drill(options: &Options, progress: &Arc<Progress>) -> Result<Report> {
    let (begun_at, begun) = (Timestamp::now(), Instant::now());
    let archive = Archive::open_read_only(&options.archive)?;
    let mut windows = Vec::new();
    for source in &options.sources {
        windows.push(plan::windows(&archive.history(&source.name, source.engine)?));
    }
    let joint = plan::joint(&windows);
    let nothing = || {
        Error::gap("there is no instant yet that all sources can be restored to")
            .hint("`pitr windows` shows each source's")
    };
    let newest = joint.last().map(|window| window.to).ok_or_else(nothing)?;
    let to = match options.to {
        Some(to) => to,
        None => pick(&joint, begun_at, rand::random()).ok_or_else(nothing)?,
    };
    let (report, page) = free_names(&archive, begun_at)?;
    let mut drilled = Report {
        schema: "pitr.drill/1",
        verdict: Verdict::Inconclusive,
        reasons: vec![],
        begun_at,
        to,
        newest,
        rpo_ms: u64::try_from(begun_at.since(newest).as_millis()).unwrap_or(u64::MAX),
        rto_seconds: 0.0,
        seconds: 0.0,
        restore: None,
        report,
        page,
    };
    drilled.rehearse(options, progress).await?;
    drilled.seconds = begun.elapsed().as_secs_f64();
    let json = serde_json::to_vec_pretty(&drilled).class(Class::Bug, || "write JSON".into())?;
    archive.store().put_new(&drilled.report, &json)?;
    archive.store().put_new(&drilled.page, page::page(&drilled).as_bytes())?;
    Ok(drilled)
}

impl Report {
    async fn rehearse(&mut self, options: &Options, progress: &Arc<Progress>) -> Result<()> {
        let scratch = Scratch::create(options.scratch.as_deref())?;
        let begun = Instant::now();
        // Everything: what a restore keeps by default is another question.
        let whole = |source: &SourceOptions| SourceOptions { databases: vec![], ..source.clone() };
        let planned = restore::prepare(&restore::Options {
            archive: options.archive.clone(),
            sources: options.sources.iter().map(whole).collect(),
            configured: options.configured.clone(),
            to: Goal::Instant(self.to),
            targets: BTreeMap::new(),
            into: Some(scratch.dir.clone()),
            listen: None,
            apply: Apply::Auto,
            databases: vec![],
            ttl: Ttl::Absolute,
            keys: Keys::default(),
            in_place: None,
            clean: vec![],
            inspect: Some(restore::Look { canary: options.canary }),
        });
        let planned = match planned {
            // Nothing was tried: whoever named the instant is told at once.
            Err(error) if matches!(error.class(), Class::Gap | Class::Usage | Class::Busy) => {
                return Err(error);
            }
            Err(error) => {
                self.is(Verdict::Failed, &error);
                return Ok(());
            }
            Ok(planned) => planned,
        };
        if let Err(error) = planned.fits().await {
            // No tool, or none that fits: nothing is known of the archive.
            self.is(Verdict::Inconclusive, &error);
            return Ok(());
        }
        if let Err(error) = check_room(&scratch.dir, planned.room()) {
            self.is(Verdict::Inconclusive, &error);
            return Ok(());
        }
        match planned.run(progress).await {
            Ok(restored) => {
                self.rto_seconds = begun.elapsed().as_secs_f64();
                self.judge(restored);
            }
            Err(error) => self.is(Verdict::Failed, &error),
        }
        Ok(())
    }

    fn is(&mut self, verdict: Verdict, error: &Error) {
        self.verdict = verdict;
        let hint = error.hint_text().map(|hint| format!(" (hint: {hint})")).unwrap_or_default();
        self.reasons.push(format!("{error}{hint}"));
    }

    fn judge(&mut self, mut restored: restore::Report) {
        // It is thrown away with the folder.
        restored.receipt = None;
        let mut worst = Outcome::Passed;
        for source in &restored.sources {
            self.rto_seconds -= source.seconds.inspection;
            for check in &source.inspection {
                if check.outcome > Outcome::Passed {
                    worst = worst.max(check.outcome);
                    self.reasons.push(format!("{}: {}: {}", source.name, check.check, check.what));
                }
            }
            if source.inspection.is_empty() {
                worst = worst.max(Outcome::Inconclusive);
                self.reasons.push(format!("{}: nothing was looked at", source.name));
            }
        }
        self.verdict = match worst {
            Outcome::Failed => Verdict::Failed,
            Outcome::Inconclusive => Verdict::Inconclusive,
            Outcome::Passed | Outcome::Skipped => Verdict::Passed,
        };
        self.restore = Some(restored);
    }

    /// The report for people.
    pub fn text(&self, zone: Tz) -> String {
        let mut out = format!("drill {}: to {}\n", self.verdict.word(), in_zone(self.to, zone));
        out.extend(self.reasons.iter().map(|reason| format!("    {reason}\n")));
        for source in self.restore.iter().flat_map(|restored| &restored.sources) {
            out += &format!("{} ({})\n", source.name, source.target_version);
            let seconds = &source.seconds;
            out += &format!(
                "    restored in {:.1} s (baseline {:.1} s, replay {:.1} s): {}\n",
                seconds.total - seconds.inspection,
                seconds.baseline,
                seconds.replay,
                source.checked
            );
            for check in &source.inspection {
                out += &format!("    {} {}: {}\n", check.outcome.word(), check.check, check.what);
            }
        }
        out += &format!(
            "newest instant {} ms behind, restored in {:.1} s, all in {:.1} s\nreport: {}\npage:   {}\n",
            self.rpo_ms, self.rto_seconds, self.seconds, self.report, self.page
        );
        out
    }

    /// # Errors
    /// Finding, unless it is passed.
    pub fn check(&self) -> Result<()> {
        if self.verdict == Verdict::Passed {
            return Ok(());
        }
        let why = self.reasons.first().map(String::as_str).unwrap_or_default();
        Err(Error::new(Class::Finding, format!("the drill is {}: {why}", self.verdict.word()))
            .hint(format!("the whole report is {} in the archive", self.report)))
    }
}

/// An instant of the last day within the windows; `random` is from 0 to 1.
fn pick(windows: &[JointWindow], now: Timestamp, random: f64) -> Option<Timestamp> {
    let newest = windows.last()?.to;
    let since = now.before(DAY).min(newest);
    let spans: Vec<(Timestamp, Duration)> = windows
        .iter()
        .filter(|window| window.to >= since)
        .map(|window| {
            let from = window.from.max(since);
            (from, window.to.since(from))
        })
        .collect();
    let total: Duration = spans.iter().map(|(_, span)| *span).sum();
    let mut at = total.mul_f64(random.clamp(0.0, 1.0));
    for (from, span) in spans {
        if at <= span {
            return Some(from.after(at));
        }
        at -= span;
    }
    Some(newest)
}

/// Names under which nothing stands yet.
fn free_names(archive: &Archive, begun_at: Timestamp) -> Result<(String, String)> {
    let mut at = begun_at;
    loop {
        let report = names::drill(at, "json");
        if !archive.store().exists(&report)? {
            return Ok((report, names::drill(at, "html")));
        }
        at = at.after(Duration::from_secs(1));
    }
}

/// The last drill of which there is a report.
///
/// # Errors
/// Corrupt, if the report cannot be read.
pub fn last(archive: &Archive) -> Result<Option<Past>> {
    let names = archive.store().list(&format!("{}/", names::DRILLS))?;
    let newest = names.iter().filter(|name| name.strip_suffix(".json").is_some()).max();
    let Some(name) = newest else { return Ok(None) };
    let json = archive.store().get(name, REPORT_MAX)?;
    serde_json::from_slice(&json).map(Some).corrupt(|| format!("read {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_secs(hours * 3600)
    }

    #[rstest]
    #[case::its_beginning(&[(0, 100)], 0.0, 76)]
    #[case::its_end(&[(0, 100)], 1.0, 100)]
    #[case::the_middle(&[(0, 100)], 0.5, 88)]
    #[case::a_gap_is_never_met(&[(0, 78), (98, 100)], 0.75, 99)]
    #[case::before_the_gap(&[(0, 78), (98, 100)], 0.25, 77)]
    #[case::old_windows_are_left_out(&[(0, 10), (90, 100)], 0.0, 90)]
    #[case::the_newest_of_an_old_archive(&[(0, 10)], 0.3, 10)]
    fn an_instant_is_one_of_the_last_day(
        #[case] windows: &[(i64, i64)],
        #[case] random: f64,
        #[case] hour: i64,
    ) {
        let window = |&(from, to): &(i64, i64)| JointWindow { from: at(from), to: at(to) };
        let windows: Vec<JointWindow> = windows.iter().map(window).collect();
        assert_eq!(pick(&windows, at(100), random), Some(at(hour)));
    }

    #[test]
    fn a_scratch_folder_goes_with_its_drill_and_what_a_killed_one_left_goes_with_the_next() {
        let below = tempfile::tempdir().unwrap();
        let stale = |id| format!("{SCRATCH}{}", uuid::Uuid::from_u128(id).simple());
        let make = |name: &str| {
            let dir = below.path().join(name);
            std::fs::create_dir_all(dir.join("data")).unwrap();
            dir
        };
        let age = |dir: &Path| {
            let long_ago = std::time::SystemTime::UNIX_EPOCH;
            std::fs::File::open(dir).unwrap().set_modified(long_ago).unwrap();
        };
        let (left, fresh) = (make(&stale(1)), make(&stale(2)));
        let (held, other) = (make(&stale(3)), make("pitr-drill-notes"));
        let _held = Lock::exclude(&held).unwrap();
        for dir in [&left, &held, &other] {
            age(dir);
        }
        let scratch = Scratch::create(Some(below.path())).unwrap();
        let dir = scratch.dir.clone();
        assert!(dir.exists() && !left.exists());
        assert!(fresh.exists() && held.exists() && other.exists());
        drop(scratch);
        assert!(!dir.exists());
    }

    #[test]
    fn a_disk_without_room_is_not_filled() {
        let dir = tempfile::tempdir().unwrap();
        check_room(dir.path(), 1).unwrap();
        let error = check_room(dir.path(), u64::MAX).unwrap_err();
        assert!(error.to_string().contains("MiB free"), "{error}");
    }

    #[test]
    fn without_windows_there_is_no_instant() {
        assert_eq!(pick(&[], at(1), 0.5), None);
    }
}
