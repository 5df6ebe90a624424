//! Looks at everything that a capture and a restore depend on, and says what would mend it.
//!
//! Each source is looked at by itself, all at once, so that one that does not answer is a finding
//! and holds up nothing. What is wrong never ends the look.
//!
//! **Invariant:** nothing is changed: not at a source, not in the archive, not in the process that
//! captures.

mod host;

use crate::archive::{self, Archive};
use crate::clock::{Timestamp, in_zone};
use crate::config::Config;
use crate::daemon::{self, SourceStatus, State};
use crate::disk;
use crate::drill::{self, Verdict};
use crate::engine::SourceOptions;
use crate::engine::checkup::{self, Checkup, Finding, Level};
use crate::error::{Class, Error, Result};
use crate::manifest::{EngineKind, names};
use crate::plan;
use serde::Serialize;
use std::time::Duration;

/// How old the newest baseline may be: one is taken each day, and may take some hours.
pub const BASELINE_AGE_MAX: Duration = Duration::from_hours(36);

/// How long ago a drill may be until another one is due.
pub const DRILL_AGE_MAX: Duration = Duration::from_hours(31 * 24);

/// Over how much of the past the archive's growth is measured.
const GROWTH_OVER: Duration = Duration::from_hours(7 * 24);

/// `pitr.doctor/1`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Name and version of this document's form.
    pub schema: &'static str,
    /// When it was made.
    pub now: Timestamp,
    /// How many findings are of each level.
    pub problems: usize,
    /// See [`Level::Warning`].
    pub warnings: usize,
    /// See [`Level::Note`].
    pub notes: usize,
    /// Of the archive, the process that captures, and this host.
    pub archive: Vec<Finding>,
    /// Source by source, as configured.
    pub sources: Vec<SourceReport>,
}

/// One source of a [`Report`].
#[derive(Debug, Clone, Serialize)]
pub struct SourceReport {
    /// Name of the source.
    pub name: String,
    /// Kind of the source.
    pub engine: EngineKind,
    /// What the archive has of it.
    pub findings: Vec<Finding>,
    /// Its servers, the first one first.
    pub servers: Vec<Checkup>,
}

/// Looks at the archive and at these sources.
pub async fn doctor(config: &Config, sources: &[SourceOptions]) -> Report {
    let now = Timestamp::now();
    let status = daemon::status(&config.archive);
    let (mut findings, archive) = archive(config);
    let looks = sources.iter().map(|source| {
        let busiest = archive.as_ref().and_then(|archive| busiest(archive, &source.name, now));
        checkup::checkup(source, busiest)
    });
    let servers = futures_util::future::join_all(looks).await;
    let mut reports = Vec::new();
    let mut has_captured = false;
    for (source, servers) in sources.iter().zip(servers) {
        let live = status.iter().flatten().find(|live| live.name == source.name);
        let findings = match &archive {
            None => vec![],
            Some(archive) => {
                let (findings, captured) = captured(archive, config, source, live, now);
                has_captured |= captured;
                findings
            }
        };
        let (name, engine) = (source.name.clone(), source.engine);
        reports.push(SourceReport { name, engine, findings, servers });
    }
    if let Some(archive) = &archive {
        let holder = host::lock_holder(&config.archive.join(names::LOCK));
        findings.push(capturing(status.is_some(), holder, has_captured));
        findings.push(rehearsed(archive, now, has_captured));
        let growth = growth(archive, sources, now, config.retention.days);
        findings.push(match disk::free_bytes(&config.archive) {
            Ok(free) => host::judge_space(free, growth),
            Err(error) => {
                let why = "it is not known when the disk is full";
                Finding::failed(Level::Note, "space", &error, why)
            }
        });
    }
    findings.extend(host::files(config));
    Report::of(now, findings, reports)
}

/// Whether the archive is there, and can be read and written.
fn archive(config: &Config) -> (Vec<Finding>, Option<Archive>) {
    let root = &config.archive;
    let why = "without an archive nothing is captured or restored";
    let meta = match archive::read_meta(root) {
        Ok(meta) => meta,
        Err(error) => return (vec![Finding::failed(Level::Problem, "archive", &error, why)], None),
    };
    let made = format!("{}, made {}", root.display(), meta.created);
    let mut findings = vec![Finding::ok("archive", made)];
    findings.push(host::writable(root));
    match Archive::open_read_only(root) {
        Ok(archive) => {
            findings.push(Finding::ok("catalog", "it can be read"));
            (findings, Some(archive))
        }
        Err(error) => {
            let why = "what the archive has cannot be found";
            findings.push(Finding::failed(Level::Problem, "catalog", &error, why));
            (findings, None)
        }
    }
}

/// Whether something captures.
fn capturing(answers: bool, holder: Option<u32>, has_captured: bool) -> Finding {
    const CHECK: &str = "daemon";
    match (answers, holder) {
        (true, Some(pid)) => Finding::ok(CHECK, format!("`pitr run` captures (process {pid})")),
        (true, None) => Finding::ok(CHECK, "`pitr run` captures"),
        (false, Some(pid)) => {
            let what = format!("process {pid} holds the archive and does not answer");
            let why = "nobody else can capture, and nothing tells whether it does";
            Finding::new(Level::Problem, CHECK, what, why)
                .fix(format!("look at process {pid}; when it has ended, `pitr run`"))
        }
        (false, None) if has_captured => {
            let what = "no daemon runs";
            let why = "nothing is captured: what the sources purge meanwhile is a gap";
            Finding::new(Level::Warning, CHECK, what, why).fix("pitr run")
        }
        (false, None) => {
            let what = "no daemon runs, and nothing was captured yet";
            let why = "what is committed before the first baseline cannot be restored";
            Finding::new(Level::Note, CHECK, what, why).fix("pitr run")
        }
    }
}

/// How the last drill went.
fn rehearsed(archive: &Archive, now: Timestamp, has_captured: bool) -> Finding {
    const CHECK: &str = "drill";
    let why = "an archive that was never restored is a hope";
    let past = match drill::last(archive) {
        Ok(Some(past)) => past,
        Ok(None) if !has_captured => return Finding::ok(CHECK, "there is nothing to rehearse yet"),
        Ok(None) => {
            let what = "no restore was ever rehearsed";
            return Finding::new(Level::Note, CHECK, what, why)
                .fix("pitr drill, or [drill] every = \"7d\" in the configuration");
        }
        Err(error) => return Finding::failed(Level::Warning, CHECK, &error, why),
    };
    let what = format!("the last one, begun {}, is {}", past.begun_at, past.verdict.word());
    let fix = "pitr drill; the report is in the archive, under drills/";
    match past.verdict {
        Verdict::Failed => Finding::new(Level::Problem, CHECK, what, why).fix(fix),
        Verdict::Inconclusive => Finding::new(Level::Warning, CHECK, what, why).fix(fix),
        Verdict::Passed if now.since(past.begun_at) > DRILL_AGE_MAX => {
            let why = "it says nothing of what was captured since";
            Finding::new(Level::Note, CHECK, what, why).fix("pitr drill")
        }
        Verdict::Passed => Finding::ok(CHECK, what),
    }
}

/// What the archive has of a source, and whether it has anything.
fn captured(
    archive: &Archive,
    config: &Config,
    source: &SourceOptions,
    live: Option<&SourceStatus>,
    now: Timestamp,
) -> (Vec<Finding>, bool) {
    let mut findings = Vec::new();
    findings.extend(live.map(streaming));
    let history = match archive.history(&source.name, source.engine) {
        Ok(history) => history,
        Err(error) => {
            let why = "what can be restored of it cannot be told";
            findings.push(Finding::failed(Level::Problem, "history", &error, why));
            return (findings, true);
        }
    };
    if history.timelines.is_empty() && history.baselines.is_empty() {
        // The daemon says why; without one this is said once for all sources.
        return (findings, false);
    }
    let begun = history.baselines.iter().map(|baseline| baseline.begun_at).max();
    let fix = format!("pitr baseline --source {}", source.name);
    findings.push(match begun {
        None => {
            let why = "nothing of it can be restored";
            Finding::new(Level::Problem, "baseline", "there is no baseline", why).fix(fix)
        }
        Some(begun) => {
            let age = now.since(begun);
            let what = format!("the newest one is of {}", in_zone(begun, config.zone));
            if age <= BASELINE_AGE_MAX {
                Finding::ok("baseline", what)
            } else {
                let why = "a restore replays everything since then, and nothing behind it is \
                           deleted as too old";
                Finding::new(Level::Warning, "baseline", what, why).fix(fix)
            }
        }
    });
    let windows = plan::windows(&history);
    if begun.is_some() {
        findings.push(match windows.last() {
            Some(window) => {
                let (from, to) = (window.from, window.to);
                let span = |at| in_zone(at, config.zone);
                Finding::ok("window", format!("restorable from {} to {}", span(from), span(to)))
            }
            None => {
                let why = "every baseline is cut off from the log behind it";
                Finding::new(Level::Problem, "window", "nothing can be restored", why)
                    .fix("pitr verify says what is missing")
            }
        });
    }
    let since = now.before(Duration::from_hours(24) * config.retention.days);
    let gaps = history.gaps.iter().filter(|gap| gap.concerns(Some(since), None)).count();
    if gaps > 0 {
        let what = format!("{gaps} gaps in the last {} days", config.retention.days);
        let why = "instants within them cannot be restored";
        findings.push(Finding::new(Level::Note, "gaps", what, why).fix("pitr windows shows them"));
    }
    (findings, true)
}

/// What the daemon says of a source.
fn streaming(live: &SourceStatus) -> Finding {
    let error = live.error.as_deref().unwrap_or("no reason is known");
    let why = "what it commits is not in the archive";
    match live.state {
        State::Streaming if live.error.is_none() => Finding::ok("capture", "streaming"),
        State::Streaming => Finding::new(Level::Problem, "capture", error, why),
        State::Reconnecting => {
            Finding::new(Level::Warning, "capture", format!("reconnecting: {error}"), why)
        }
        State::Down => Finding::new(Level::Problem, "capture", format!("down: {error}"), why),
    }
}

/// Bytes a second in the busiest hour of the last days.
fn busiest(archive: &Archive, source: &str, now: Timestamp) -> Option<u64> {
    let hours = archive.catalog().hours(source, now.before(GROWTH_OVER), now);
    // A catalog that cannot be read is a finding already.
    hours.ok()?.iter().map(|hour| hour.bytes_raw / 3600).max()
}

/// How fast the archive grows, by its catalog. `None` if it is too young to say.
fn growth(
    archive: &Archive,
    sources: &[SourceOptions],
    now: Timestamp,
    days: u32,
) -> Option<host::Growth> {
    const YOUNG: Duration = Duration::from_hours(2);
    let mut bytes = 0_u64;
    let mut a_day = 0_u64;
    let mut first: Option<Timestamp> = None;
    let mut oldest: Option<Timestamp> = None;
    for source in sources {
        let catalog = archive.catalog();
        let hours = catalog.hours(&source.name, Timestamp::from_micros(0), now).ok()?;
        oldest = hours.iter().map(|hour| hour.hour).chain(oldest).min();
        let recent = hours.iter().filter(|hour| hour.hour >= now.before(GROWTH_OVER));
        for hour in recent {
            bytes = bytes.saturating_add(hour.bytes_stored);
            first = Some(first.map_or(hour.hour, |first| first.min(hour.hour)));
        }
        let baselines = catalog.baselines(&source.name).ok()?;
        a_day += baselines.last().map_or(0, |baseline| baseline.bytes_stored);
    }
    let over = now.since(first?);
    if over < YOUNG {
        return None;
    }
    let log = bytes as f64 / over.as_secs_f64() * 86_400.0;
    let bytes_a_day = a_day.saturating_add(log as u64);
    // Retention deletes once a day, what is older than its window.
    let kept = Duration::from_hours(24) * days.saturating_add(1);
    Some(host::Growth { bytes_a_day, held: now.since(oldest?), kept })
}

impl Report {
    fn of(now: Timestamp, archive: Vec<Finding>, sources: Vec<SourceReport>) -> Self {
        let mut report = Self {
            schema: "pitr.doctor/1",
            now,
            problems: 0,
            warnings: 0,
            notes: 0,
            archive,
            sources,
        };
        let levels: Vec<Level> = report.findings().map(|finding| finding.level).collect();
        let count = |level| levels.iter().filter(|has| **has == level).count();
        report.problems = count(Level::Problem);
        report.warnings = count(Level::Warning);
        report.notes = count(Level::Note);
        report
    }

    fn findings(&self) -> impl Iterator<Item = &Finding> {
        let of_sources = self.sources.iter().flat_map(|source| {
            let of_servers = source.servers.iter().flat_map(|server| &server.findings);
            source.findings.iter().chain(of_servers)
        });
        self.archive.iter().chain(of_sources)
    }

    /// The report for people.
    pub fn text(&self) -> String {
        let mut out = String::from("archive and host\n");
        out.extend(self.archive.iter().map(line));
        for source in &self.sources {
            out += &format!("\n{} ({})\n", source.name, source.engine.word());
            out.extend(source.findings.iter().map(line));
            for server in &source.servers {
                if source.servers.len() > 1 {
                    out += &format!("  {}\n", server.server);
                }
                out.extend(server.findings.iter().map(line));
            }
        }
        out += &format!("\n{}\n", self.summary());
        out
    }

    fn summary(&self) -> String {
        let count = |count: usize, word: &str| {
            format!("{count} {word}{}", if count == 1 { "" } else { "s" })
        };
        format!(
            "{}, {}, {}",
            count(self.problems, "problem"),
            count(self.warnings, "warning"),
            count(self.notes, "note")
        )
    }

    /// # Errors
    /// Finding, if there is a problem or a warning. Notes are none.
    pub fn check(&self) -> Result<()> {
        if self.problems + self.warnings == 0 {
            return Ok(());
        }
        Err(Error::new(Class::Finding, format!("doctor: {}", self.summary()))
            .hint("what mends each one stands below it"))
    }
}

fn line(finding: &Finding) -> String {
    let Finding { level, check, what, why, fix } = finding;
    let mut out = format!("  {:<8} {check}: {what}\n", level.word());
    for (name, text) in [("why", why), ("fix", fix)] {
        if let Some(text) = text {
            out += &format!("             {name}: {text}\n");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_is_shown_with_reason_and_remedy_and_decides_the_exit_code() {
        let found = Finding::new(Level::Warning, "sync_binlog", "sync_binlog = 0", "a power cut")
            .fix("SET PERSIST sync_binlog = 1");
        let note = Finding::new(Level::Note, "tls", "not encrypted", "it can be read");
        let server = |name: &str, findings| Checkup { server: name.into(), findings };
        let source = |servers| SourceReport {
            name: "shop".into(),
            engine: EngineKind::Mysql,
            findings: vec![Finding::ok("baseline", "the newest one is of today")],
            servers,
        };
        let now = Timestamp::from_secs(1);
        let calm = Report::of(now, vec![], vec![source(vec![server("a", vec![note.clone()])])]);
        assert!(calm.check().is_ok(), "a note is nothing that has to be mended");
        let servers = vec![server("a", vec![found]), server("b", vec![note])];
        let report = Report::of(now, vec![Finding::ok("archive", "/a")], vec![source(servers)]);
        assert_eq!((report.problems, report.warnings, report.notes), (0, 1, 1));
        assert_eq!(report.check().unwrap_err().class(), Class::Finding);
        assert_eq!(
            report.text(),
            "archive and host
  ok       archive: /a

shop (mysql)
  ok       baseline: the newest one is of today
  a
  warning  sync_binlog: sync_binlog = 0
             why: a power cut
             fix: SET PERSIST sync_binlog = 1
  b
  note     tls: not encrypted
             why: it can be read

0 problems, 1 warning, 1 note
"
        );
    }

    #[test]
    fn an_archive_that_nobody_writes_is_worth_a_warning_only_when_somebody_did() {
        assert_eq!(capturing(false, None, false).level, Level::Note);
        assert_eq!(capturing(false, None, true).level, Level::Warning);
        assert_eq!(capturing(false, Some(7), false).level, Level::Problem);
        assert_eq!(capturing(true, Some(7), true).level, Level::Ok);
    }
}
