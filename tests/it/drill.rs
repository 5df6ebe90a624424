//! Digests of baselines, and `pitr drill`: what the source counted is what a restore gives, and where it
//! is not, the drill says so.

use crate::instants::until_windows;
use crate::mysql_restore::harness::source_options;
use crate::support::{Mariadbd, Mysqld, Output, Pitr, RedisServer, eventually};
use pitr::engine::{SPAN, open_source};
use pitr::error::Class;
use pitr::manifest::BaselineMeta;
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A schema with everything that a drill looks at.
async fn fill(source: &Mysqld) {
    source
        .sql(
            "CREATE DATABASE w; CREATE TABLE w.p (id INT PRIMARY KEY AUTO_INCREMENT, x FLOAT, \
             at DATETIME DEFAULT CURRENT_TIMESTAMP); \
             CREATE TABLE w.c (id INT PRIMARY KEY, p INT, FOREIGN KEY (p) REFERENCES w.p (id)); \
             INSERT INTO w.p (x) VALUES (1.1), (-0.0), (NULL); \
             INSERT INTO w.c VALUES (1, 1), (2, 3), (3, NULL); \
             CREATE VIEW w.v AS SELECT p.id, c.p FROM w.p JOIN w.c ON c.p = p.id",
        )
        .await;
    source.sql("CREATE PROCEDURE w.r() SELECT 1").await;
    source.sql("CREATE TRIGGER w.g BEFORE INSERT ON w.c FOR EACH ROW SET NEW.p = NEW.p").await;
    source.sql("CREATE EVENT w.e ON SCHEDULE EVERY 1 DAY DO SELECT 1").await;
}

fn scratch(pitr: &Pitr) -> PathBuf {
    let dir = pitr.dir().join("scratch");
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

async fn drill(pitr: &Pitr, args: &[&str]) -> (Output, Value) {
    let scratch = scratch(pitr).display().to_string();
    let all = [&["drill", "--json", "--scratch", &scratch], args].concat();
    let output = pitr.run(&all).await;
    let report = output.json();
    assert_eq!(report["schema"], "pitr.drill/1");
    assert_eq!(std::fs::read_dir(scratch).unwrap().count(), 0, "nothing is left behind");
    let filed = std::fs::read(pitr.archive().join(report["report"].as_str().unwrap())).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&filed).unwrap(), report);
    let page = pitr.archive().join(report["page"].as_str().unwrap());
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains(report["verdict"].as_str().unwrap()), "{page}");
    (output, report)
}

/// What a check of a source found, with its outcome.
fn found<'a>(report: &'a Value, source: usize, check: &str) -> Vec<(&'a str, &'a str)> {
    let all = report["restore"]["sources"][source]["inspection"].as_array().unwrap().iter();
    all.filter(|found| found["check"] == check)
        .map(|found| (found["outcome"].as_str().unwrap(), found["what"].as_str().unwrap()))
        .collect()
}

/// The path of the JSON beside the only baseline of a source.
fn baseline_json(pitr: &Pitr, source: &str) -> PathBuf {
    let dir = pitr.archive().join(source).join("t0001");
    let mut all: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.display().to_string().ends_with(".zst.json"))
        .collect();
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

fn baseline(pitr: &Pitr, source: &str) -> BaselineMeta {
    BaselineMeta::decode(&std::fs::read(baseline_json(pitr, source)).unwrap()).unwrap()
}

/// An instant now, once everything before it is archived, and known to be before it: where logs have
/// no commit times, somebody looked at the clock in between.
async fn archived(pitr: &Pitr) -> String {
    let mut to = String::new();
    for _ in 0..2 {
        tokio::time::sleep(2 * SPAN).await;
        #[expect(clippy::disallowed_methods, reason = "the test stands outside of the program")]
        let now = chrono::Utc::now().to_rfc3339();
        to = now;
        eventually("all of it is archived", Duration::from_mins(1), async || {
            let windows = pitr.run(&["windows", "--json"]).await.ok().json();
            let newest = windows["joint"]["newest"].as_str()?.to_owned();
            (newest.as_str() > to.as_str()).then_some(())
        })
        .await;
    }
    to
}

#[tokio::test]
async fn a_canary_says_whether_what_is_restored_is_of_the_instant() {
    let (source, maria) = (Mysqld::start(&[]).await, Mariadbd::start(&[]).await);
    let cache = RedisServer::start(&[]).await;
    let pitr = Pitr::new(&[
        ("shop-mysql", source.url()),
        ("shop-maria", maria.url()),
        ("shop-redis", cache.url()),
    ]);
    let without = pitr.config();
    pitr.append_config("[drill]\ncanary = true");
    let with = pitr.config();
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    eventually("every source has its canary", Duration::from_mins(1), async || {
        let mut found = vec![cache.cmd::<u64>(&["EXISTS", "pitr:canary"]).await];
        for server in [&source, &maria] {
            let ask = "SELECT COUNT(*) FROM information_schema.TABLES \
                       WHERE TABLE_SCHEMA = 'pitr' AND TABLE_NAME = 'canary'";
            found.push(server.row(ask).await);
        }
        (found == [1, 1, 1]).then_some(())
    })
    .await;
    pitr.run(&["baseline"]).await.ok();
    let to = archived(&pitr).await;
    assert_eq!(daemon.terminate(Duration::from_secs(10)).await.code(), Some(0));
    let (output, report) = drill(&pitr, &["--to", &to]).await;
    output.ok();
    for source in 0..3 {
        let canary = found(&report, source, "canary");
        assert!(
            canary[0].0 == "passed" && canary[0].1.contains("before the instant"),
            "{canary:?}"
        );
    }

    // One of another time, one that is gone, and one that is older than it should be.
    pitr.write_config(&without);
    let mut daemon = pitr.spawn_run();
    source.sql("UPDATE pitr.canary SET at = at + INTERVAL 1 HOUR").await;
    maria.sql("DELETE FROM pitr.canary").await;
    let written: i64 = cache.cmd(&["GET", "pitr:canary"]).await;
    cache.cmd::<()>(&["SET", "pitr:canary", &(written - 600_000_000).to_string()]).await;
    let to = archived(&pitr).await;
    assert_eq!(daemon.terminate(Duration::from_secs(10)).await.code(), Some(0));
    pitr.write_config(&with);
    let (output, report) = drill(&pitr, &["--to", &to]).await;
    output.exits(1);
    assert_eq!(report["verdict"], "failed");
    let canary = [0, 1, 2].map(|source| found(&report, source, "canary")[0]);
    assert!(canary[0].0 == "failed" && canary[0].1.contains("is of later than"), "{canary:?}");
    assert_eq!(canary[1], ("failed", "the canary of the baseline is gone"));
    assert!(canary[2].0 == "inconclusive" && canary[2].1.contains("is missing, or"), "{canary:?}");
}

#[tokio::test]
async fn a_good_archive_passes_and_a_wrong_count_fails() {
    let (source, cache) = (Mysqld::start(&[]).await, RedisServer::start(&[]).await);
    fill(&source).await;
    for command in [
        &["SET", "s", "x"][..],
        &["SET", "soon", "x", "PX", "100"],
        &["SET", "later", "x", "EX", "10000"],
        &["RPUSH", "l", "1", "2"],
        &["HSET", "h", "a", "1"],
        &["XADD", "x", "*", "a", "1"],
    ] {
        cache.cmd::<Value2>(command).await;
    }
    cache.cmd_in::<Value2>(3, &["ZADD", "z", "1", "a"]).await;
    let pitr = Pitr::new(&[("shop-mysql", source.url()), ("shop-redis", cache.url())]);
    pitr.run(&["init"]).await.ok();
    let nothing = pitr.run(&["drill"]).await.exits(4);
    assert!(nothing.stderr.contains("no instant yet"), "{}", nothing.stderr);
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;

    // What the source counted is what it has, by its own words.
    let contents = baseline(&pitr, "shop-mysql").contents.unwrap();
    let counted: Vec<(&str, u64)> =
        contents.tables.iter().map(|table| (table.name.as_str(), table.rows)).collect();
    assert_eq!(counted, [("w.c", 3), ("w.p", 3)]);
    let digest = pitr::engine::mysql::digest::digest(&mut source.conn().await).await.unwrap();
    for table in &contents.tables {
        assert_eq!(digest.parts()[&format!("rows of {}", table.name)], table.digest);
    }
    let contents = baseline(&pitr, "shop-redis").contents.unwrap();
    let counted: Vec<(u32, u64, u64)> =
        contents.databases.iter().map(|d| (d.number, d.keys, d.expiring)).collect();
    assert!(counted == [(0, 6, 2), (3, 1, 0)] || counted == [(0, 5, 1), (3, 1, 0)], "{counted:?}");

    source.sql("INSERT INTO w.p (x) VALUES (4); DELETE FROM w.c WHERE id = 1").await;
    cache.cmd::<Value2>(&["SET", "more", "x"]).await;
    let to = archived(&pitr).await;
    assert_eq!(daemon.terminate(Duration::from_secs(10)).await.code(), Some(0));

    let (output, report) = drill(&pitr, &["--to", &to]).await;
    output.ok();
    assert_eq!((&report["verdict"], &report["reasons"]), (&"passed".into(), &Value::Array(vec![])));
    assert_eq!(
        found(&report, 0, "baseline"),
        [("passed", "2 tables with 6 rows are what the source had")]
    );
    let rows = found(&report, 0, "rows");
    assert_eq!(
        rows,
        [("passed", "w.c: 2 rows, newest id 3"), ("passed", "w.p: 4 rows, newest id 4")]
    );
    for check in ["check_table", "views", "foreign_keys", "routines", "triggers", "events"] {
        let found = found(&report, 0, check);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].0 == "passed" && !found[0].1.starts_with('0'), "{found:?}");
    }
    assert_eq!(found(&report, 1, "baseline")[0].0, "passed");
    // Nobody asked for a canary.
    assert!(found(&report, 0, "canary").is_empty() && found(&report, 1, "canary").is_empty());
    let types = found(&report, 1, "types");
    // The last key may be on either side of an instant that is known by samples.
    assert!(types[0].0 == "passed" && types[0].1.contains("1 stream, "), "{types:?}");
    assert!(report["rto_seconds"].as_f64().unwrap() > 0.0);
    // A random instant of the last day, as text.
    let text = pitr.run(&["drill", "--scratch", scratch(&pitr).to_str().unwrap()]).await.ok();
    assert!(text.stdout.starts_with("drill passed: to "), "{}", text.stdout);
    pitr.run(&["verify"]).await.ok();
    let doctor = pitr.run(&["doctor"]).await;
    assert!(doctor.stdout.contains("ok       drill: the last one"), "{}", doctor.stdout);
    what_is_spoiled_or_missing_is_told(&pitr).await;
}

async fn what_is_spoiled_or_missing_is_told(pitr: &Pitr) {
    // One row more than the source had, and one key.
    for (name, wrong) in
        [("shop-mysql", "w.p has 3 rows, the source had 4"), ("shop-redis", "keys")]
    {
        let path = baseline_json(pitr, name);
        let good = std::fs::read(&path).unwrap();
        let mut meta = BaselineMeta::decode(&good).unwrap();
        let contents = meta.contents.as_mut().unwrap();
        if let Some(table) = contents.tables.iter_mut().find(|table| table.name == "w.p") {
            table.rows += 1;
        }
        if let Some(database) = contents.databases.last_mut() {
            database.keys += 1;
        }
        std::fs::write(&path, meta.encode().unwrap()).unwrap();
        pitr.run(&["reindex"]).await.ok();
        let (output, report) = drill(pitr, &["--source", name]).await;
        assert!(output.exits(1).stderr.contains("the drill is failed"));
        assert_eq!(report["verdict"], "failed");
        assert!(report["reasons"][0].as_str().unwrap().contains(wrong), "{report:#}");
        std::fs::write(&path, good).unwrap();
    }
    pitr.run(&["reindex"]).await.ok();
    let doctor = pitr.run(&["doctor"]).await.exits(1);
    assert!(doctor.stdout.contains("problem  drill: the last one"), "{}", doctor.stdout);

    // Without the server's program nothing is known.
    let mut command = tokio::process::Command::from(pitr.command());
    command.args(["drill", "--json"]).env("PATH", "/usr/bin/none:/bin/none");
    let output = command.output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["verdict"], "inconclusive", "{report:#}");
    assert!(report["reasons"][0].as_str().unwrap().contains("mysqld"), "{report:#}");

    // Bytes that are not those that were written.
    let dump = baseline_json(pitr, "shop-mysql").with_extension("");
    let mut bytes = std::fs::read(&dump).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&dump, bytes).unwrap();
    let (output, report) = drill(pitr, &["--source", "shop-mysql"]).await;
    output.exits(1);
    assert_eq!(report["verdict"], "failed");
    assert!(report["reasons"][0].as_str().unwrap().contains("digest"), "{report:#}");
}

/// Any answer.
type Value2 = redis::Value;

#[tokio::test]
async fn digests_are_of_the_very_snapshot_while_others_write() {
    for source in [Mysqld::start(&[]).await, Mariadbd::start(&[]).await] {
        source
            .sql(
                "CREATE DATABASE w; CREATE TABLE w.t (id BIGINT PRIMARY KEY AUTO_INCREMENT, \
                 n INT); INSERT INTO w.t (n) VALUES (1), (2), (3)",
            )
            .await;
        let source = Arc::new(source);
        let stop = Arc::new(AtomicBool::new(false));
        let writing = {
            let (source, stop) = (Arc::clone(&source), Arc::clone(&stop));
            tokio::spawn(async move {
                while !stop.load(Ordering::Acquire) {
                    source
                        .sql("INSERT INTO w.t (n) VALUES (7), (8); DELETE FROM w.t WHERE n = 8 LIMIT 1")
                        .await;
                }
            })
        };
        let pitr = Pitr::new(&[("shop", source.url())]);
        pitr.run(&["init"]).await.ok();
        let mut daemon = pitr.spawn_run();
        until_windows(&pitr, &mut daemon).await;
        stop.store(true, Ordering::Release);
        writing.await.unwrap();
        assert_eq!(daemon.terminate(Duration::from_secs(10)).await.code(), Some(0));
        let counted = baseline(&pitr, "shop").contents;
        let (output, report) = drill(&pitr, &[]).await;
        output.ok();
        // A busy MariaDB is not locked for digests: then there are none, and that is said.
        let outcome = if counted.is_some() { "passed" } else { "skipped" };
        assert!(counted.is_some() || source.is_mariadb());
        assert_eq!(found(&report, 0, "baseline")[0].0, outcome, "{report:#}");
    }
}

#[tokio::test]
async fn the_daemon_rehearses_when_it_is_told_to() {
    let source = Mariadbd::start(&[]).await;
    fill(&source).await;
    let pitr = Pitr::new(&[("shop", source.url())]);
    let scratch = scratch(&pitr).display().to_string();
    pitr.append_config(&format!(
        "[baseline]\ndigests = false\n[drill]\nevery = \"30m\"\ndir = {scratch:?}"
    ));
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    eventually("a drill is made", Duration::from_mins(3), async || {
        assert!(daemon.ended().is_none(), "{}", daemon.log());
        daemon.log().contains("the drill is passed").then_some(())
    })
    .await;
    assert_eq!(baseline(&pitr, "shop").contents, None, "digests = false");
    let drills: Vec<PathBuf> = std::fs::read_dir(pitr.archive().join("drills"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    assert_eq!(drills.len(), 1, "one every half an hour");
    let report: Value = serde_json::from_slice(&std::fs::read(&drills[0]).unwrap()).unwrap();
    assert_eq!(found(&report, 0, "baseline")[0].0, "skipped");
    assert_eq!(daemon.terminate(Duration::from_secs(10)).await.code(), Some(0));
}

#[tokio::test]
async fn no_canary_is_written_into_a_replica() {
    let server = Mysqld::start(&["--read-only=ON"]).await;
    let source = open_source(source_options(&server.url()));
    let error = source.canary().await.unwrap_err();
    assert_eq!(error.class(), Class::Refused, "{error}");
    server.sql("SET GLOBAL read_only = OFF; CHANGE REPLICATION SOURCE TO SOURCE_HOST = 'x'").await;
    let error = source.canary().await.unwrap_err();
    assert!(error.to_string().contains("is a replica"), "{error}");
    assert_eq!(server.gtid_executed().await, "");
    server.sql("RESET REPLICA ALL").await;
    source.canary().await.unwrap();
    source.canary().await.unwrap();
    assert_eq!(server.row::<u32>("SELECT COUNT(*) FROM pitr.canary").await, 1);
}
