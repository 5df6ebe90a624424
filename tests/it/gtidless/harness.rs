//! Sources and targets with `gtid_mode=OFF`, and moments to go back to.

use crate::continuity::harness::{Watched, digest, now, text};
use crate::support::{Mysqld, Pitr};
use chrono::{DateTime, Utc};
use pitr::engine::digest::Digest;
use serde_json::Value;
use std::time::Duration;

/// What a server without GTIDs is started with.
pub(super) const OFF: [&str; 2] = ["--gtid-mode=OFF", "--enforce-gtid-consistency=OFF"];

pub(super) const INSERT: &str = "INSERT INTO shop.t (b) VALUES (REPEAT('x', 1000))";

/// Long enough for an instant in between to be one at which nothing was going on.
const QUIET: Duration = Duration::from_millis(300);

/// A source with a table. Options win over those of [`OFF`].
pub(super) async fn source(args: &[&str]) -> Mysqld {
    let source = Mysqld::start(&[&OFF[..], args].concat()).await;
    source.sql("CREATE DATABASE shop").await;
    source.sql("CREATE TABLE shop.t (id INT PRIMARY KEY AUTO_INCREMENT, b LONGBLOB)").await;
    source
}

/// Where the source's log ends now.
pub(super) async fn end_of_log(source: &Mysqld) -> (String, u64) {
    let row: mysql_async::Row = source.row("SHOW BINARY LOG STATUS").await;
    (row.get(0).unwrap(), row.get(1).unwrap())
}

/// What a server held at an instant at which nothing was going on.
pub(super) struct Noted {
    pub(super) at: DateTime<Utc>,
    pub(super) log: String,
    pub(super) offset: u64,
    pub(super) gtids: String,
    pub(super) content: Digest,
}

impl Noted {
    pub(super) fn place(&self) -> String {
        format!("{}:{}", self.log, self.offset)
    }
}

pub(super) async fn note(server: &Mysqld) -> Noted {
    tokio::time::sleep(QUIET).await;
    let (log, offset) = end_of_log(server).await;
    let (content, gtids) = (digest(server).await, server.gtid_executed().await);
    let noted = Noted { at: now(), log, offset, gtids, content };
    tokio::time::sleep(QUIET).await;
    noted
}

/// Waits until the archive itself shows that nothing is missing up to the moment: what only the
/// daemon knows of an idle source ends with it.
pub(super) async fn until_kept(watched: &mut Watched, noted: &Noted) {
    watched.until_passed(noted.at).await;
    watched.pitr.run(&["restore", "--plan", "--to", &text(noted.at)]).await.ok();
}

/// Restores into a running server as the options say, and compares.
pub(super) async fn restores_into(
    pitr: &Pitr,
    target: &Mysqld,
    options: &[&str],
    noted: &Noted,
) -> Value {
    let to = format!("shop={}", target.url());
    let args = [&["restore", "--json", "--source", "shop", "--target", &to][..], options].concat();
    let report = pitr.run(&args).await.ok().json();
    assert_eq!(noted.content.diff(&digest(target).await), [""; 0]);
    report
}

/// Restores to the instant into a running server without GTIDs, and compares.
pub(super) async fn restores(watched: &mut Watched, noted: &Noted) -> Value {
    watched.until_passed(noted.at).await;
    let target = Mysqld::start(&OFF).await;
    let report = restores_into(&watched.pitr, &target, &["--to", &text(noted.at)], noted).await;
    assert_eq!(target.gtid_executed().await, noted.gtids);
    report
}

/// Exports everything and compares it with the files of the server, byte for byte. Gives how many
/// files there are.
pub(super) async fn exports_the_same(pitr: &Pitr, source: &Mysqld, out: &str) -> usize {
    let args = ["export", "--source", "shop", "--json", "--out", out];
    let report = pitr.run(&args).await.ok().json();
    let files = report["files"].as_array().unwrap();
    for file in files {
        let name = file["file"].as_str().unwrap();
        let ours = std::fs::read(pitr.dir().join(out).join(name)).unwrap();
        let on_disk = source.datadir().join(name.split(".until").next().unwrap());
        let theirs = std::fs::read(on_disk).unwrap();
        if file["extent"] == "whole" {
            assert!(ours == theirs, "{name} differs");
        } else {
            assert_eq!(file["extent"], "growing", "{report:#}");
            // On the disk it is marked as open.
            let flag = 4 + 17;
            assert!(ours[flag + 1..] == theirs[flag + 1..ours.len()], "{name} differs");
        }
    }
    files.len()
}
