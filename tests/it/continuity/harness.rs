//! A daemon over one MySQL source, and what its `windows` say.

use crate::instants::until_windows;
use crate::support::{Daemon, Mysqld, Pitr};
use chrono::{DateTime, SecondsFormat, Utc};
use pitr::engine::mysql;
use serde_json::Value;
use std::time::Duration;

/// How long a capture and its first baseline may take to get somewhere.
pub(crate) const SOON: Duration = Duration::from_mins(2);

pub(crate) fn text(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

#[expect(clippy::disallowed_methods, reason = "the test stands outside of the program")]
pub(crate) fn now() -> DateTime<Utc> {
    Utc::now()
}

/// An archive with the source `shop`, and its daemon.
pub(crate) struct Watched {
    pub(crate) pitr: Pitr,
    pub(crate) daemon: Daemon,
    /// The newest timeline that was seen.
    timeline: u64,
}

impl Watched {
    /// Starts a daemon over `source`, and waits for its first window. `config` is added to the
    /// configuration.
    pub(crate) async fn start(source: &Mysqld, config: &str) -> Self {
        Self::start_over(&[source], config).await
    }

    /// The same, with further servers to go on from.
    pub(crate) async fn start_over(servers: &[&Mysqld], config: &str) -> Self {
        let pitr = Pitr::new(&[("shop", servers[0].url())]);
        if let [first, _, ..] = servers {
            let urls: Vec<String> = servers.iter().map(|server| server.url()).collect();
            let one = format!("url = {:?}", first.url());
            pitr.write_config(&pitr.config().replace(&one, &format!("urls = {urls:?}")));
        }
        pitr.append_config(config);
        pitr.run(&["init"]).await.ok();
        let mut daemon = pitr.spawn_run();
        until_windows(&pitr, &mut daemon).await;
        Self { pitr, daemon, timeline: 1 }
    }

    /// What `windows` says of the source.
    pub(crate) async fn report(&self) -> Value {
        self.pitr.run(&["windows", "--json"]).await.ok().json()["sources"][0].clone()
    }

    /// Waits until `windows` says something.
    pub(crate) async fn until(&mut self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let begun = std::time::Instant::now();
        loop {
            assert!(self.daemon.ended().is_none(), "the daemon ended:\n{}", self.daemon.log());
            let report = self.report().await;
            if is(&report) {
                return report;
            }
            let log = self.daemon.log();
            assert!(begun.elapsed() < SOON, "never: {what}\n{report:#}\n{log}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until an instant can be restored to.
    pub(crate) async fn until_passed(&mut self, at: DateTime<Utc>) -> Value {
        let at = text(at);
        self.until(&format!("{at} has passed"), |report| {
            report["durable_at"].as_str().is_some_and(|durable| durable >= at.as_str())
        })
        .await
    }

    /// Waits until the next timeline has a window of its own, with a gap before it that gives
    /// this reason; and sees that every instant in the gap is refused with both of its edges.
    pub(crate) async fn broke(&mut self, reason: &str) -> Value {
        self.timeline += 1;
        let timeline = self.timeline;
        let is_new = |item: &&Value| item["timeline"] == timeline;
        let has_window =
            |report: &Value| report["windows"].as_array().unwrap().iter().any(|w| is_new(&w));
        let report = self.until(&format!("timeline {timeline} has a window"), has_window).await;
        let all = |key: &str| report[key].as_array().unwrap().clone();
        let gap = all("gaps")
            .iter()
            .find(is_new)
            .cloned()
            .unwrap_or_else(|| panic!("no gap: {report:#}"));
        let said = gap["reason"].as_str().unwrap();
        assert!(said.contains(reason), "{said}");

        let window = all("windows").iter().find(is_new).cloned().unwrap();
        let time = |value: &Value| value.as_str().unwrap().parse::<DateTime<Utc>>().unwrap();
        let before = all("windows")
            .iter()
            .map(|w| time(&w["to"]))
            .filter(|to| *to < time(&window["from"]))
            .max()
            .unwrap();
        let from = time(&window["from"]);
        let half = before + (from - before) / 2;
        let step = chrono::Duration::microseconds(1);
        for at in [before + step, half, from - step] {
            let refused = self.pitr.run(&["restore", "--json", "--to", &text(at)]).await.exits(4);
            let error = refused.error_json();
            let nearest: Vec<DateTime<Utc>> =
                error["nearest"].as_array().unwrap().iter().map(time).collect();
            assert_eq!(nearest, [before, from], "{error:#}");
        }
        report
    }

    /// Restores to now, and sees that content and GTIDs are the source's.
    pub(crate) async fn restores_exactly(&mut self, source: &Mysqld) {
        let content = digest(source).await;
        let at = now();
        self.restores(at, &content, &source.gtid_executed().await).await;
    }

    /// Restores to an instant, and compares.
    pub(crate) async fn restores(
        &mut self,
        at: DateTime<Utc>,
        content: &pitr::engine::digest::Digest,
        gtids: &str,
    ) {
        self.until_passed(at).await;
        let target = Mysqld::start(&[]).await;
        let to = format!("shop={}", target.url());
        self.pitr.run(&["restore", "--to", &text(at), "--target", &to]).await.ok();
        assert_eq!(content.diff(&digest(&target).await), [""; 0]);
        assert_eq!(target.gtid_executed().await, gtids);
    }
}

/// What a server holds.
pub(crate) async fn digest(server: &Mysqld) -> pitr::engine::digest::Digest {
    let mut sql = server.conn().await;
    let content = mysql::digest::digest(&mut sql).await.unwrap();
    sql.disconnect().await.unwrap();
    content
}
