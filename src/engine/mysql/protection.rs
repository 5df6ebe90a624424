//! Whether commits of a semi-synchronous source wait for the archive: asked every second, beside
//! the stream.
//!
//! A source that gets no answer in time goes on without, silently for its clients; so it does when
//! its plugin is off, and another replica's answer can stand for that of pitr. Each of these is a
//! lapse, with a reason in words.
//!
//! **Invariant:** from one instant to a later one commits count as protected only if the source
//! said so at both, and counts no commit in between that went through without an answer.

use super::join;
use super::sql;
use crate::clock::Timestamp;
use crate::engine::Endpoint;
use crate::engine::checkup::{Finding, Level, span};
use crate::error::{Error, Result};
use crate::record::{Captured, Protection};
use mysql_async::Conn;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::mpsc;

/// How often the source is asked.
const EVERY: Duration = Duration::from_secs(1);

/// How long to wait for the stream's first packet before looking for it again.
const FIRST_PACKET: Duration = Duration::from_millis(20);

/// A source that waits for so long stands still when pitr does, more than it is slowed down.
const TIMEOUT_MAX: Duration = Duration::from_mins(5);

/// The statement that installs the plugin (MySQL 8.0.26 and newer; in MariaDB it is built in).
const INSTALL: &str = "INSTALL PLUGIN rpl_semi_sync_source SONAME 'semisync_source.so'; \
                       SET PERSIST rpl_semi_sync_source_enabled = ON";

/// Variables and status of a source that have to do with it, by the end of their names: MySQL
/// 8.0.26 and newer say `rpl_semi_sync_source_…`, older ones and MariaDB `rpl_semi_sync_master_…`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Sample {
    /// `source` or `master`, as its words are; `None` if there are none: no plugin.
    word: Option<&'static str>,
    enabled: bool,
    /// It waits at present; off, when an answer did not come in time.
    waits: bool,
    /// Commits that went through without an answer, since the server started.
    unanswered: u64,
    /// Semi-synchronous replicas that are connected.
    clients: u64,
    /// Answers that a commit waits for.
    answers: u64,
}

impl Sample {
    fn of(rows: Vec<(String, String)>) -> Self {
        let mut sample = Self { answers: 1, ..Self::default() };
        let mut by_end = BTreeMap::new();
        for (name, value) in rows {
            let name = name.to_ascii_lowercase();
            let Some(rest) = name.strip_prefix("rpl_semi_sync_") else { continue };
            let (end, word) = match (rest.strip_prefix("source_"), rest.strip_prefix("master_")) {
                (Some(end), _) => (end, "source"),
                (None, Some(end)) => (end, "master"),
                // Of the server as a replica.
                (None, None) => continue,
            };
            sample.word = Some(word);
            by_end.insert(end.to_owned(), value);
        }
        let on = |name: &str| by_end.get(name).is_some_and(|v| matches!(v.as_str(), "ON" | "1"));
        let number = |name: &str| by_end.get(name).and_then(|value| value.parse().ok());
        sample.enabled = on("enabled");
        sample.waits = on("status");
        sample.unanswered = number("no_tx").unwrap_or(0);
        sample.clients = number("clients").unwrap_or(0);
        let answers = number("wait_for_replica_count").or_else(|| number("wait_for_slave_count"));
        sample.answers = answers.unwrap_or(1);
        sample
    }

    /// Why commits do not wait for the archive; `None` if they do.
    fn lapse(&self) -> Option<String> {
        let Some(word) = self.word else {
            return Some(format!("the source has no semi-sync plugin: {INSTALL}"));
        };
        if !self.enabled {
            let on = format!("SET GLOBAL rpl_semi_sync_{word}_enabled = ON");
            return Some(format!("semi-sync is off at the source: {on}"));
        }
        if !self.waits {
            return Some("the source went on without an answer in time".into());
        }
        if self.clients > self.answers {
            return Some(format!(
                "the source has {} semi-sync replicas and waits for the answer of {} only",
                self.clients, self.answers
            ));
        }
        None
    }
}

/// Looks after one source while it streams.
#[derive(Debug)]
pub(crate) struct Watch<'a> {
    name: &'a str,
    endpoint: &'a Endpoint,
    out: &'a mpsc::Sender<Captured>,
    /// Whether the source knows the stream's connection as semi-synchronous.
    active: Arc<OnceLock<bool>>,
    /// The last answer, and when it was given by the source's clock.
    last: Option<(Sample, Timestamp)>,
    /// What was said last.
    said: Option<Protection>,
}

impl<'a> Watch<'a> {
    /// Nothing is known of the source yet.
    pub(crate) fn new(
        name: &'a str,
        endpoint: &'a Endpoint,
        out: &'a mpsc::Sender<Captured>,
        active: Arc<OnceLock<bool>>,
    ) -> Self {
        Self { name, endpoint, out, active, last: None, said: None }
    }

    /// Asks for as long as it is polled, and yields what changes. Returns when the stream has to
    /// begin anew, so that the source comes to know it as semi-synchronous.
    pub(crate) async fn run(&mut self) -> Error {
        let mut conn = None;
        loop {
            let Some(active) = self.active.get().copied() else {
                tokio::time::sleep(FIRST_PACKET).await;
                continue;
            };
            match self.ask(&mut conn).await {
                Ok((sample, _)) if !active && sample.enabled => {
                    return Error::unavailable("semi-sync was switched on: the stream begins anew");
                }
                Ok((sample, at)) => self.tell(sample, at).await,
                Err(error) => {
                    conn = None;
                    tracing::warn!(source = self.name, "ask for semi-sync: {error}");
                    if let Some((_, at)) = self.last {
                        let why = "the source does not say whether commits wait".to_owned();
                        self.say(at, Some(why)).await;
                    }
                }
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    async fn ask(&self, conn: &mut Option<Conn>) -> Result<(Sample, Timestamp)> {
        let peer = self.endpoint.to_string();
        let conn = match conn {
            Some(conn) => conn,
            None => conn.insert(sql::connect(self.endpoint).await?),
        };
        let rows = variables_and_status(conn, &peer).await?;
        // After the answers: a lapse that began in between is in the next ones.
        let at = join::clock(conn, &peer).await?;
        Ok((Sample::of(rows), at))
    }

    async fn tell(&mut self, sample: Sample, at: Timestamp) {
        let lapse = sample.lapse();
        if let Some((last, since)) = self.last.take() {
            let missed = sample.unanswered.saturating_sub(last.unanswered);
            if missed > 0 && lapse.is_none() && last.lapse().is_none() {
                let why = format!("{missed} commits went through without an answer in time");
                self.say(since, Some(why)).await;
            } else if lapse.is_some() && last.lapse().is_none() {
                self.say(since, lapse.clone()).await;
            }
        }
        self.say(at, lapse).await;
        self.last = Some((sample, at));
    }

    async fn say(&mut self, at: Timestamp, lapse: Option<String>) {
        if self.said.as_ref().is_some_and(|said| said.lapse == lapse) {
            return;
        }
        match &lapse {
            Some(why) => tracing::warn!(source = self.name, "commits do not wait: {why}"),
            None => tracing::info!(
                source = self.name,
                "commits wait until they are in the archive; it may hold transactions that no \
                 other replica has yet, and one that is promoted then lacks them"
            ),
        }
        let said = Protection { at, lapse };
        self.said = Some(said.clone());
        // Nobody listens any more: then the stream ends by itself.
        drop(self.out.send(Captured::Protection(said)).await);
    }
}

/// Everything that a server says of semi-synchronous replication.
async fn variables_and_status(conn: &mut Conn, peer: &str) -> Result<Vec<(String, String)>> {
    let mut rows = vec![];
    for kind in ["VARIABLES", "STATUS"] {
        let ask = format!("SHOW GLOBAL {kind} LIKE 'rpl_semi_sync%'");
        rows.extend(sql::rows::<(String, String)>(conn, peer, &ask).await?);
    }
    Ok(rows)
}

/// Judges a server whose commits are to wait for the archive (`semi_sync`).
pub(super) async fn checkup(conn: &mut Conn, peer: &str) -> Result<Vec<Finding>> {
    let rows = variables_and_status(conn, peer).await?;
    let timeout = rows.iter().find_map(|(name, ms)| {
        let name = name.to_ascii_lowercase();
        let is_it = matches!(
            name.as_str(),
            "rpl_semi_sync_source_timeout" | "rpl_semi_sync_master_timeout"
        );
        if is_it { ms.parse().ok().map(Duration::from_millis) } else { None }
    });
    Ok(judge(&Sample::of(rows), timeout))
}

fn judge(sample: &Sample, timeout: Option<Duration>) -> Vec<Finding> {
    const CHECK: &str = "semi_sync";
    let why = "with semi_sync = true a commit is to return only when the archive has it";
    let Some(word) = sample.word else {
        let what = "the source has no semi-sync plugin";
        return vec![Finding::new(Level::Problem, CHECK, what, why).fix(INSTALL)];
    };
    if !sample.enabled {
        let what = "semi-sync is off at the source";
        let fix = format!("SET PERSIST rpl_semi_sync_{word}_enabled = ON");
        let fix = if word == "master" { fix.replace("PERSIST", "GLOBAL") } else { fix };
        return vec![Finding::new(Level::Problem, CHECK, what, why).fix(fix)];
    }
    let mut out = vec![match sample.lapse() {
        _ if sample.clients == 0 => {
            let what = "no semi-sync replica is connected: once a commit waits in vain, then none";
            Finding::new(Level::Note, CHECK, what, why).fix("pitr run")
        }
        None => Finding::ok(CHECK, "commits wait for an answer"),
        Some(lapse) => Finding::new(Level::Warning, CHECK, lapse, why),
    }];
    if let Some(timeout) = timeout {
        let what = format!(
            "when pitr or its host is gone, commits wait for {} once; then they go on without",
            span(timeout)
        );
        let fix = format!("SET GLOBAL rpl_semi_sync_{word}_timeout = 10000");
        let why = "so long the source stands still when pitr does";
        out.push(if timeout >= TIMEOUT_MAX {
            Finding::new(Level::Warning, "semi_sync_timeout", what, why).fix(fix)
        } else {
            Finding::ok("semi_sync_timeout", what)
        });
    }
    let (clients, answers) = (sample.clients, sample.answers);
    let what = format!(
        "each commit waits for {answers} of {clients} semi-sync replicas that are connected; \
         pitr's answer counts like that of any other"
    );
    let why = "the archive may have commits that no other replica has yet: one that is promoted \
               then lacks them, and they stay on the archive's old timeline";
    let replicas = Finding::new(Level::Note, "semi_sync_replicas", what, why);
    out.push(match word {
        "source" if clients > answers => replicas.fix(format!(
            "SET PERSIST rpl_semi_sync_source_wait_for_replica_count = {clients}, so that both \
             have everything (docs/SEMI_SYNC.md)"
        )),
        _ => replicas,
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn sample(rows: &[(&str, &str)]) -> Sample {
        Sample::of(rows.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect())
    }

    #[rstest]
    #[case::not_installed(&[("rpl_semi_sync_replica_enabled", "ON")], Some("no semi-sync plugin"))]
    #[case::off(&[("rpl_semi_sync_source_enabled", "OFF")], Some("rpl_semi_sync_source_enabled = ON"))]
    #[case::fell_back(
        &[("rpl_semi_sync_master_enabled", "ON"), ("Rpl_semi_sync_master_status", "OFF")],
        Some("without an answer")
    )]
    #[case::another_replica(
        &[("rpl_semi_sync_source_enabled", "ON"), ("Rpl_semi_sync_source_status", "ON"),
          ("Rpl_semi_sync_source_clients", "2"), ("rpl_semi_sync_source_wait_for_replica_count", "1")],
        Some("2 semi-sync replicas")
    )]
    #[case::all_of_two(
        &[("rpl_semi_sync_source_enabled", "ON"), ("Rpl_semi_sync_source_status", "ON"),
          ("Rpl_semi_sync_source_clients", "2"), ("rpl_semi_sync_source_wait_for_replica_count", "2")],
        None
    )]
    #[case::mariadb(
        &[("rpl_semi_sync_master_enabled", "ON"), ("Rpl_semi_sync_master_status", "ON"),
          ("Rpl_semi_sync_master_clients", "1")],
        None
    )]
    fn a_lapse_has_its_reason(#[case] rows: &[(&str, &str)], #[case] reason: Option<&str>) {
        let lapse = sample(rows).lapse();
        match reason {
            Some(reason) => assert!(lapse.as_deref().unwrap().contains(reason), "{lapse:?}"),
            None => assert_eq!(lapse, None),
        }
    }

    #[rstest]
    #[case::no_plugin(&[], Level::Problem, "INSTALL PLUGIN")]
    #[case::off(&[("rpl_semi_sync_source_enabled", "OFF")], Level::Problem, "_source_enabled = ON")]
    #[case::off_maria(
        &[("rpl_semi_sync_master_enabled", "OFF")],
        Level::Problem,
        "SET GLOBAL rpl_semi_sync_master_enabled = ON"
    )]
    #[case::nobody(&[("rpl_semi_sync_source_enabled", "ON")], Level::Note, "pitr run")]
    #[case::another_replica(
        &[("rpl_semi_sync_source_enabled", "ON"), ("Rpl_semi_sync_source_status", "ON"),
          ("Rpl_semi_sync_source_clients", "2"), ("rpl_semi_sync_source_wait_for_replica_count", "1")],
        Level::Warning,
        "wait_for_replica_count = 2"
    )]
    #[case::stands_still(
        &[("rpl_semi_sync_source_enabled", "ON"), ("Rpl_semi_sync_source_status", "ON"),
          ("Rpl_semi_sync_source_clients", "1")],
        Level::Warning,
        "_timeout = 10000"
    )]
    fn a_source_that_is_to_wait_is_judged(
        #[case] rows: &[(&str, &str)],
        #[case] worst: Level,
        #[case] fix: &str,
    ) {
        let found = judge(&sample(rows), Some(Duration::from_hours(1)));
        assert!(found.iter().any(|finding| finding.level == worst), "{found:?}");
        let fixes: Vec<&str> = found.iter().filter_map(|f| f.fix.as_deref()).collect();
        assert!(fixes.iter().any(|has| has.contains(fix)), "{fixes:?}");
    }

    #[tokio::test]
    async fn commits_that_nobody_answered_between_two_looks_are_a_lapse() {
        let endpoint = Endpoint::parse(crate::manifest::EngineKind::Mysql, "mysql://a@b").unwrap();
        let (out, mut told) = mpsc::channel(16);
        let mut watch = Watch::new("shop", &endpoint, &out, Arc::default());
        for (second, unanswered) in [(1, 5), (2, 5), (3, 7), (4, 7)] {
            let word = Some("source");
            let (enabled, waits, clients, answers) = (true, true, 1, 1);
            let sample = Sample { word, enabled, waits, unanswered, clients, answers };
            watch.tell(sample, Timestamp::from_secs(second)).await;
        }
        let mut said = vec![];
        while let Ok(Captured::Protection(Protection { at, lapse })) = told.try_recv() {
            said.push((at, lapse.is_some()));
        }
        let at = Timestamp::from_secs;
        // From the look before, since it may have been at once.
        assert_eq!(said, [(at(1), false), (at(2), true), (at(3), false)]);
    }
}
