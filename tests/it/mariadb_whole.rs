//! The main job for MariaDB, through the whole program: what was in the server at an instant is
//! what a restore to it brings back, also after pitr was killed, and from either side of a cut.

use crate::instants::until_windows;
use crate::mariadb_restore::harness::Series;
use crate::support::{Mysqld, Pitr, eventually, program};
use chrono::{DateTime, SecondsFormat, Utc};
use mysql_async::prelude::Queryable;
use pitr::engine::SPAN;
use pitr::engine::digest::Digest;
use pitr::engine::mysql::digest::digest;
use rstest::rstest;
use std::process::Command;
use std::time::Duration;

/// Longer than the sampling of the source's clock.
const QUIET: Duration = Duration::from_millis(450);

const SCHEMA: &str = "CREATE DATABASE shop; USE shop;
    CREATE TABLE t (id INT PRIMARY KEY AUTO_INCREMENT, s TEXT, f FLOAT, d DATETIME(6));
    CREATE TABLE parent (id INT PRIMARY KEY);
    CREATE TABLE child (id INT PRIMARY KEY, p INT, FOREIGN KEY (p) REFERENCES parent (id));
    CREATE SEQUENCE seq; CREATE TABLE aria (a INT) ENGINE = Aria;
    CREATE EVENT e ON SCHEDULE EVERY 1 YEAR STARTS '2035-01-01' DO DELETE FROM t";

const PHASES: [&str; 4] = [
    "INSERT INTO t (s, f, d) VALUES ('a', 0.1, NOW(6)), ('b', 1e-40, NULL); SELECT NEXTVAL(seq)",
    "SET SESSION gtid_domain_id = 1; INSERT INTO parent VALUES (1), (2);
     INSERT INTO child VALUES (1, 1); SET SESSION gtid_domain_id = 0; INSERT INTO aria VALUES (1);
     ALTER TABLE t ADD COLUMN late INT DEFAULT 3; CREATE USER late@localhost IDENTIFIED BY 'x'",
    "SET GLOBAL log_bin_compress = ON; FLUSH BINARY LOGS; UPDATE t SET s = REPEAT(s, 1000);
     SET SESSION binlog_format = STATEMENT; INSERT INTO t (s, f) VALUES ('statement', RAND());
     SET SESSION binlog_format = ROW; INSERT INTO aria SELECT * FROM aria",
    "DELETE FROM child; TRUNCATE aria; DROP EVENT e; RENAME TABLE parent TO moved",
];

struct Noted {
    at: DateTime<Utc>,
    content: Digest,
    position: String,
}

#[expect(clippy::disallowed_methods, reason = "the test stands outside of the program")]
fn now() -> DateTime<Utc> {
    Utc::now()
}

async fn content(server: &Mysqld) -> Digest {
    let mut conn = server.conn().await;
    let content = digest(&mut conn).await.unwrap();
    conn.disconnect().await.unwrap();
    content
}

/// The last transaction of each domain.
async fn position(server: &Mysqld, of: &str) -> String {
    let text: String = server.row(&format!("SELECT @@GLOBAL.{of}")).await;
    let mut parts: Vec<&str> = text.split(',').collect();
    parts.sort_unstable();
    parts.join(",")
}

/// Waits until the source's clock was looked at after `at`.
async fn until_known(pitr: &Pitr, at: DateTime<Utc>) {
    eventually("the clock is looked at", Duration::from_mins(1), async || {
        let windows = pitr.run(&["windows", "--json"]).await.ok().json();
        let known = windows["sources"][0]["durable_at"].as_str()?.parse::<DateTime<Utc>>().ok()?;
        (known > at).then_some(())
    })
    .await;
}

#[rstest]
#[case::of_10_5(Series::Maria10_5)]
#[case::of_10_11(Series::Maria10)]
#[tokio::test]
async fn every_instant_of_a_mariadb_comes_back_through_the_whole_program(#[case] series: Series) {
    let source = series.start(&[]).await;
    let pitr = Pitr::new(&[("shop", source.url())]);
    source.sql(SCHEMA).await;
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    let mut noted = Vec::new();
    for (phase, changes) in PHASES.iter().enumerate() {
        let mut conn = source.conn().await;
        conn.query_drop("USE shop").await.unwrap();
        for statement in changes.split(';') {
            conn.query_drop(statement.trim()).await.unwrap();
        }
        conn.disconnect().await.unwrap();
        // However busy the machine is, the clock was looked at between the changes and the instant.
        until_known(&pitr, now()).await;
        // Of what lies before such a look, some may be that much later.
        tokio::time::sleep(SPAN).await;
        let at = now();
        let position = position(&source, "gtid_binlog_pos").await;
        noted.push(Noted { at, content: content(&source).await, position });
        tokio::time::sleep(QUIET).await;
        if phase == 1 {
            daemon.kill();
            source.sql("INSERT INTO shop.t (s) VALUES ('while it was down')").await;
            daemon = pitr.spawn_run();
        }
    }
    source.sql("DROP DATABASE shop").await;
    tokio::time::sleep(QUIET).await;

    for (phase, noted) in noted.iter().enumerate() {
        let to = noted.at.to_rfc3339_opts(SecondsFormat::Micros, true);
        let target = series.start(&[]).await;
        let into = format!("shop={}", target.url());
        let restored = pitr.run(&["restore", "--json", "--to", &to, "--target", &into]).await;
        let report = restored.ok().json();
        let differs = noted.content.diff(&content(&target).await);
        assert_eq!(differs, [""; 0], "phase {phase} at {to}: {report}");
        assert_eq!(position(&target, "gtid_slave_pos").await, noted.position, "phase {phase}");
        assert_eq!(report["sources"][0]["check"], "passed");
        assert!(report["sources"][0]["uncertainty_ms"].as_u64().unwrap() <= 2000, "{report}");
    }
    let windows = pitr.run(&["windows", "--json"]).await.ok().json();
    assert_eq!(windows["sources"][0]["gaps"], serde_json::json!([]), "{windows}");
    let to = noted[2].at.to_rfc3339_opts(SecondsFormat::Micros, true);
    pitr.run(&["restore", "--to", &to, "--into", "folder"]).await.ok();
    assert!(pitr.dir().join("folder/shop/data/shop/t.ibd").exists());
    files_are_the_servers_own(&pitr, &source).await;
    // Its log goes into no MySQL.
    let other = Mysqld::start(&[]).await;
    let into = format!("shop={}", other.url());
    let refused = pitr.run(&["restore", "--to", &to, "--target", &into]).await.exits(6);
    assert!(refused.stderr.contains("MariaDB"), "{}", refused.stderr);
}

#[tokio::test]
async fn latest_says_when_the_archive_has_more_than_the_newest_instant_known() {
    let source = Series::Maria10.start(&[]).await;
    source.sql("CREATE DATABASE shop; CREATE TABLE shop.t (id INT PRIMARY KEY)").await;
    let pitr = Pitr::new(&[("shop", source.url())]);
    let config = pitr.config();
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    daemon.terminate(Duration::from_secs(20)).await;
    // What is written between two looks at the clock has no instant before the second.
    pitr.append_config("sample_ms = 600000");
    let mut daemon = pitr.spawn_run();
    let mut end = String::new();
    // A first look may be under way when the first row is captured: not any more at the second.
    for id in 1..=2 {
        source.sql(&format!("INSERT INTO shop.t VALUES ({id})")).await;
        let row: (String, u64, String, String) = source.row("SHOW MASTER STATUS").await;
        end = format!("{}:{}", row.0, row.1);
        eventually("everything is in the archive", Duration::from_mins(1), async || {
            let plan = ["restore", "--source", "shop", "--to-position", &end, "--plan"];
            (pitr.run(&plan).await.code() == Some(0)).then_some(())
        })
        .await;
    }
    daemon.terminate(Duration::from_secs(20)).await;

    let captured = ["restore", "--source", "shop", "--to-position", &end];
    let latest = ["restore", "--to", "latest"];
    let report = pitr.run(&[&latest[..], &["--plan", "--json"]].concat()).await.ok().json();
    assert_eq!(report["sources"][0]["goes_on_to"], *end, "{report}");
    let said = pitr.run(&[&latest[..], &["--plan"]].concat()).await.ok().stdout;
    assert!(said.contains(&format!("the archive goes on to {end}")), "{said}");
    assert!(said.contains(&format!("--to-position {end}")), "{said}");
    let rows = "SELECT COUNT(*) FROM shop.t";
    let (cut, whole) = (Series::Maria10.start(&[]).await, Series::Maria10.start(&[]).await);
    let into = format!("shop={}", cut.url());
    let report = pitr.run(&[&latest[..], &["--json", "--target", &into]].concat()).await.ok();
    let report = report.json();
    assert!(cut.row::<u32>(rows).await < 2);
    assert_eq!(report["sources"][0]["goes_on_to"], *end, "{report}");
    let receipt = std::fs::read(pitr.dir().join(report["receipt"].as_str().unwrap())).unwrap();
    let receipt: serde_json::Value = serde_json::from_slice(&receipt).unwrap();
    assert_eq!(receipt["sources"][0]["goes_on_to"], *end, "{receipt}");
    let into = format!("shop={}", whole.url());
    let report = pitr.run(&[&captured[..], &["--json", "--target", &into]].concat()).await.ok();
    assert_eq!(whole.row::<u32>(rows).await, 2);
    assert!(report.json()["sources"][0]["goes_on_to"].is_null());

    // An earlier instant is one of many, and the log goes on behind it anyway.
    let windows = pitr.run(&["windows", "--json"]).await.ok().json();
    let first = windows["sources"][0]["windows"][0]["from"].as_str().unwrap().to_owned();
    if first != windows["sources"][0]["windows"][0]["to"].as_str().unwrap() {
        let to = ["restore", "--to", &first, "--plan", "--json"];
        let report = pitr.run(&to).await.ok().json();
        assert!(report["sources"][0]["goes_on_to"].is_null(), "{report}");
    }
    // Where the clock is looked at, the newest instant has everything.
    pitr.write_config(&config);
    let mut daemon = pitr.spawn_run();
    eventually("the newest instant has everything", Duration::from_secs(30), async || {
        let plan = pitr.run(&[&latest[..], &["--plan", "--json"]].concat()).await.ok().json();
        plan["sources"][0]["goes_on_to"].is_null().then_some(())
    })
    .await;
    daemon.terminate(Duration::from_secs(20)).await;
}

/// Every closed file comes out of the archive as the server has it, and its tool reads it.
async fn files_are_the_servers_own(pitr: &Pitr, source: &Mysqld) {
    pitr.run(&["export", "--source", "shop", "--out", "files"]).await.ok();
    let logs: Vec<(String, u64)> = source.rows("SHOW BINARY LOGS").await;
    let (_open, closed) = logs.split_last().unwrap();
    assert!(!closed.is_empty());
    for (name, _) in closed {
        let exported = pitr.dir().join("files").join(name);
        let same = std::fs::read(&exported).unwrap()
            == std::fs::read(source.datadir().join(name)).unwrap();
        assert!(same, "{name}");
        let mut read = Command::new(program("mariadb-binlog"));
        let read = read.args(["--no-defaults", "--verify-binlog-checksum"]).arg(&exported);
        let read = read.output().unwrap();
        assert!(read.status.success(), "{name}: {}", String::from_utf8_lossy(&read.stderr));
    }
}
