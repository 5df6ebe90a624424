//! The always-on process: one source's trouble is its own, and it stops in order.

use crate::instants::until_windows;
use crate::support::{Daemon, Mysqld, Pitr, RedisServer, eventually, random_literal};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

async fn state(pitr: &Pitr, source: usize) -> String {
    let report = pitr.run(&["windows", "--json"]).await.ok().json();
    report["sources"][source]["state"].as_str().unwrap().to_owned()
}

async fn until_state(pitr: &Pitr, daemon: &Daemon, source: usize, wanted: &str) {
    eventually(&format!("source {source} is {wanted}"), Duration::from_mins(1), async || {
        (state(pitr, source).await == wanted).then_some(())
    })
    .await;
    drop(daemon.log());
}

#[tokio::test]
async fn a_source_that_is_down_does_not_hold_up_the_other() {
    let (mut source, cache) = (Mysqld::start(&[]).await, RedisServer::start(&[]).await);
    let pitr = Pitr::new(&[("shop-mysql", source.url()), ("shop-redis", cache.url())]);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    source.kill();
    until_state(&pitr, &daemon, 0, "reconnecting").await;
    let before = pitr.run(&["windows", "--json"]).await.ok().json();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = pitr.run(&["windows", "--json"]).await.ok().json();
    assert_eq!(after["sources"][1]["state"], "streaming");
    let durable = |report: &serde_json::Value| {
        report["sources"][1]["durable_at"].as_str().unwrap().to_owned()
    };
    assert!(durable(&after) > durable(&before), "Redis goes on while MySQL is down");
    source.restart().await;
    source.sql("CREATE DATABASE after_the_restart").await;
    until_state(&pitr, &daemon, 0, "streaming").await;
    let report = pitr.run(&["windows", "--json"]).await.ok().json();
    assert_eq!(report["sources"][0]["gaps"].as_array().unwrap().len(), 0, "{report:#}");
}

#[tokio::test]
async fn sigterm_seals_and_stops_within_five_seconds() {
    let (source, cache) = (Mysqld::start(&[]).await, RedisServer::start(&[]).await);
    let pitr = Pitr::new(&[("shop-mysql", source.url()), ("shop-redis", cache.url())]);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    let busy = pitr.run(&["run"]).await.exits(7);
    assert!(busy.stderr.contains("another pitr holds"), "{}", busy.stderr);

    let taken = pitr.run(&["baseline", "--source", "shop-mysql", "--json"]).await.ok().json();
    assert_eq!(taken["schema"], "pitr.baseline/1");
    assert!(daemon.terminate(Duration::from_secs(5)).await.success(), "{}", daemon.log());
    let left = find(&pitr.archive(), "open");
    assert_eq!(left, [""; 0], "everything is sealed");
    let report = pitr.run(&["windows", "--json"]).await.ok().json();
    assert_eq!(report["sources"][0]["state"], "stopped");
    assert_eq!(report["sources"][0]["baselines"].as_array().unwrap().len(), 2);

    // Alone, a baseline takes the stream up where the daemon left it.
    let alone = pitr.run(&["baseline", "--json"]).await.ok().json();
    assert_eq!(alone["baselines"].as_array().unwrap().len(), 2);
    assert_eq!(find(&pitr.archive(), "open"), [""; 0], "everything is sealed again");
    let report = pitr.run(&["windows", "--json"]).await.ok().json();
    for (source, baselines) in [(0, 3), (1, 2)] {
        assert_eq!(report["sources"][source]["baselines"].as_array().unwrap().len(), baselines);
        assert_eq!(report["sources"][source]["gaps"].as_array().unwrap().len(), 0, "{report:#}");
    }

    // What `zstd` makes of the segments is what the server has on disk.
    let mut bytes = Vec::new();
    for segment in find(&pitr.archive().join("shop-mysql/t0001"), "zst") {
        if !segment.contains("seg-") {
            continue;
        }
        let output = Command::new("zstd").args(["-dc", &segment]).output().unwrap();
        assert!(output.status.success());
        bytes.extend(output.stdout);
    }
    let on_disk = std::fs::read(source.datadir().join("binlog.000001"));
    let on_disk = on_disk.or_else(|_| std::fs::read(source.datadir().join("binlog.000002")));
    let mut on_disk = on_disk.unwrap();
    // The mark of a file that is in use is not sent to replicas.
    on_disk[21] &= !1;
    assert!(on_disk.starts_with(&bytes), "{} bytes differ from the server's", bytes.len());
    assert_eq!(on_disk.len(), bytes.len());
}

#[tokio::test]
async fn a_frozen_daemon_holds_no_command_up() {
    let cache = RedisServer::start(&[]).await;
    let pitr = Pitr::new(&[("shop-redis", cache.url())]);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    daemon.signal("STOP");
    let command = tokio::time::timeout(Duration::from_mins(1), pitr.run(&["windows", "--json"]));
    let report = command.await.expect("windows waits for a frozen daemon").ok().json();
    assert_eq!(report["sources"][0]["windows"].as_array().unwrap().len(), 1);
    daemon.signal("CONT");
    until_state(&pitr, &daemon, 0, "streaming").await;
    assert!(daemon.ended().is_none(), "{}", daemon.log());
}

#[tokio::test]
async fn a_full_disk_holds_the_capture_up_and_loses_nothing() {
    let source = Mysqld::start(&[]).await;
    source.sql("CREATE DATABASE w; CREATE TABLE w.t (n INT PRIMARY KEY, x LONGBLOB)").await;
    let disk = SmallDisk::mount(24);
    let pitr = Pitr::new(&[("shop-mysql", source.url())]);
    let archive = disk.path().join("archive");
    pitr.write_config(
        &pitr.config().replace(pitr.archive().to_str().unwrap(), archive.to_str().unwrap()),
    );
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    let ballast = disk.path().join("ballast");
    std::fs::write(&ballast, vec![0; 12 << 20]).unwrap();
    for n in 0..16 {
        let insert = format!("INSERT INTO w.t VALUES ({n}, {})", random_literal(1_000_000));
        source.sql(&insert).await;
    }
    eventually("the alarm", Duration::from_secs(30), async || {
        let report = pitr.run(&["windows", "--json"]).await.json();
        let error = report["sources"][0]["error"].as_str()?.to_owned();
        error.contains("disk is full").then_some(())
    })
    .await;
    assert!(daemon.ended().is_none(), "{}", daemon.log());
    std::fs::remove_file(&ballast).unwrap();
    source.sql("INSERT INTO w.t VALUES (100, 'after')").await;
    #[expect(clippy::disallowed_methods, reason = "the test stands outside of the program")]
    let at = chrono::Utc::now().to_rfc3339();
    eventually("the capture goes on", Duration::from_mins(1), async || {
        let report = pitr.run(&["windows", "--json"]).await.json();
        (report["sources"][0]["durable_at"].as_str()? > at.as_str()).then_some(())
    })
    .await;
    let target = Mysqld::start(&[]).await;
    let to = format!("shop-mysql={}", target.url());
    pitr.run(&["restore", "--to", &at, "--target", &to]).await.ok();
    assert_eq!(target.gtid_executed().await, source.gtid_executed().await);
    let rows: u64 = target.row("SELECT COUNT(*) FROM w.t").await;
    assert_eq!(rows, 17);
}

/// A file system of a few MiB, unmounted when dropped. Needs root, as the test servers do.
pub(crate) struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    pub(crate) fn mount(mib: u32) -> Self {
        let dir = tempfile::Builder::new().prefix("pitr-disk-").tempdir().unwrap();
        let size = format!("size={mib}m");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(dir.path())
            .status()
            .unwrap();
        assert!(status.success(), "mount a small disk: the tests of a full disk need root");
        Self(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

/// The files below a folder with this extension, sorted.
pub(crate) fn find(dir: &Path, extension: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(find(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path.display().to_string());
        }
    }
    found.sort();
    found
}
