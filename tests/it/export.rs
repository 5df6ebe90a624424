//! What `export` writes is what the server has on disk; what is not whole says so by its name.

use crate::daemon::find;
use crate::instants::until_windows;
use crate::support::{Daemon, Mysqld, Pitr, RedisServer, eventually, program, random_literal};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Waits until everything committed before this call is on disk.
pub(crate) async fn until_durable(pitr: &Pitr, daemon: &mut Daemon) {
    let now = pitr::clock::Timestamp::now().to_string();
    eventually("all of it is durable", Duration::from_mins(1), async || {
        assert!(daemon.ended().is_none(), "the daemon ended:\n{}", daemon.log());
        let report = pitr.run(&["windows", "--json"]).await.ok().json();
        (report["sources"][0]["durable_at"].as_str()? > now.as_str()).then_some(())
    })
    .await;
}

/// The files of a report as `(name, extent)`.
fn files(report: &Value) -> Vec<(&str, &str)> {
    let files = report["files"].as_array().unwrap();
    files.iter().map(|f| (f["file"].as_str().unwrap(), f["extent"].as_str().unwrap())).collect()
}

/// Events as `mysqlbinlog` (or MariaDB's) reads them from a file.
pub(crate) fn events(tool: &str, file: &Path) -> String {
    let output = Command::new(program(tool))
        .args(["--no-defaults", "--verify-binlog-checksum", "--base64-output=DECODE-ROWS", "-vv"])
        .arg(file)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", file.display());
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Takes out of an archive what a damaged disk would: flips a bit in the middle of a file.
fn damage(object: &Path) {
    let mut bytes = std::fs::read(object).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(object, bytes).unwrap();
}

#[tokio::test]
async fn exported_files_are_the_server_s_own_and_need_no_server() {
    let mut source = Mysqld::start(&["--max-allowed-packet=64M"]).await;
    let pitr = Pitr::new(&[("shop-mysql", source.url())]);
    pitr.run(&["init"]).await.ok();
    let nothing = pitr.run(&["export", "--source", "shop-mysql", "--out", "none"]).await.exits(4);
    assert!(nothing.stderr.contains("nothing of shop-mysql"), "{nothing:?}");
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    source.sql("CREATE DATABASE w; CREATE TABLE w.t (n INT PRIMARY KEY, x LONGBLOB)").await;
    source.sql("INSERT INTO w.t VALUES (1, REPEAT('x', 17000000)); FLUSH BINARY LOGS").await;
    source.sql("FLUSH BINARY LOGS; UPDATE w.t SET x = 'y'; FLUSH BINARY LOGS").await;
    until_durable(&pitr, &mut daemon).await;
    let noted = pitr::clock::Timestamp::now().to_string();
    source.sql("DELETE FROM w.t").await;
    until_durable(&pitr, &mut daemon).await;

    // While the daemon runs, and afterwards without server and daemon.
    let args = ["export", "--source", "shop-mysql", "--json", "--out"];
    let live = pitr.run(&[&args[..], &["live"]].concat()).await.ok().json();
    let growing = files(&live).last().unwrap().0.to_owned();
    assert!(growing.starts_with("binlog.000004.until-"), "{growing}");
    assert!(daemon.terminate(Duration::from_secs(5)).await.success());
    source.stop().await;
    let report = pitr.run(&[&args[..], &["all"]].concat()).await.ok().json();
    assert_eq!(report["schema"], "pitr.export/1");
    assert_eq!(report["gaps"].as_array().unwrap().len(), 0, "{report:#}");
    let expected = [
        ("binlog.000001", "whole"),
        ("binlog.000002", "whole"),
        ("binlog.000003", "whole"),
        (growing.as_str(), "growing"),
    ];
    assert_eq!(files(&report), expected);
    assert_eq!(files(&live), expected);
    for (name, extent) in expected {
        let ours = std::fs::read(pitr.dir().join("all").join(name)).unwrap();
        assert!(ours == std::fs::read(pitr.dir().join("live").join(name)).unwrap(), "{name}");
        let on_disk = source.datadir().join(name.split(".until").next().unwrap());
        let theirs = std::fs::read(&on_disk).unwrap();
        if extent == "whole" {
            assert!(ours == theirs, "{name} differs");
            let theirs = events("mysqlbinlog", &on_disk);
            assert_eq!(events("mysqlbinlog", &pitr.dir().join("all").join(name)), theirs);
            assert!(theirs.contains("### ") || name == "binlog.000002");
        } else {
            // The server has closed it since, with a STOP event.
            assert!(theirs.starts_with(&ours) && theirs.len() > ours.len());
            assert!(events("mysqlbinlog", &pitr.dir().join("all").join(name)).contains("DELETE"));
        }
    }
    assert_eq!(find(&pitr.dir().join("all"), "unfinished"), [""; 0]);

    // By time: whole files that hold what was committed then.
    let late = [&args[..], &["late", "--from", &noted]].concat();
    assert_eq!(files(&pitr.run(&late).await.ok().json()), [(growing.as_str(), "growing")]);
    let early = [&args[..], &["early", "--to", &noted]].concat();
    assert_eq!(files(&pitr.run(&early).await.ok().json()), expected[..3]);

    let refused = pitr.run(&[&args[..], &["all"]].concat()).await.exits(6);
    assert!(refused.stderr.contains("is not empty"), "{refused:?}");
    let none = [&args[..], &["none", "--timeline", "7"]].concat();
    let none = pitr.run(&none).await.exits(4);
    assert!(none.stderr.contains("timelines: 1"), "{none:?}");
    assert!(!pitr.dir().join("none").exists());
}

#[tokio::test]
async fn what_is_damaged_or_missing_leaves_no_file_that_looks_whole() {
    let source = Mysqld::start(&[]).await;
    let cache = RedisServer::start(&[]).await;
    let pitr = Pitr::new(&[("shop-mysql", source.url()), ("shop-redis", cache.url())]);
    pitr.append_config("[segment]\nmax_bytes = 30_000");
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    source.sql("CREATE DATABASE w; CREATE TABLE w.t (n INT PRIMARY KEY, x BLOB)").await;
    let folder = pitr.archive().join("shop-mysql/t0001");
    let stored = || {
        let names = [find(&folder, "zst"), find(&folder, "open")].concat();
        let size = |name: &String| std::fs::metadata(name).map_or(0, |file| file.len());
        names.iter().filter(|name| name.contains("seg-")).map(size).sum::<u64>()
    };
    for n in 0..8 {
        let before = stored();
        source.sql(&format!("INSERT INTO w.t VALUES ({n}, {})", random_literal(40_000))).await;
        if n == 5 {
            source.sql("FLUSH BINARY LOGS").await;
        }
        // Each row in a segment of its own: one that waits for a busy daemon would come along with
        // the next.
        eventually("the row is stored", Duration::from_mins(1), async || {
            (stored() >= before + 40_000).then_some(())
        })
        .await;
    }
    until_durable(&pitr, &mut daemon).await;
    assert!(daemon.terminate(Duration::from_secs(5)).await.success());
    let refused = pitr.run(&["export", "--source", "shop-redis", "--out", "redis"]).await.exits(6);
    assert!(refused.stderr.contains("hint: "), "{refused:?}");

    let mut segments = find(&folder, "zst");
    segments.retain(|name| name.contains("seg-"));
    segments.sort();
    assert!(segments.len() >= 7, "{segments:?}");
    // Not the second one: where an hour ended meanwhile, the first rows begin only there.
    let sound = std::fs::read(folder.join(&segments[2])).unwrap();
    damage(&folder.join(&segments[2]));
    let args = ["export", "--source", "shop-mysql", "--json", "--out"];
    let damaged = pitr.run(&[&args[..], &["damaged"]].concat()).await.exits(5);
    let report = damaged.json();
    assert_eq!(damaged.error_json()["class"], "corrupt");
    assert_eq!(report["damaged"].as_array().unwrap().len(), 1, "{report:#}");
    let names = files(&report);
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(names[0].0.starts_with("binlog.000001.until-"), "{names:?}");
    assert!(names[1].0.starts_with("binlog.000001.from-"), "{names:?}");
    assert_eq!((names[0].1, names[1].1), ("partial", "partial"));
    let dir = pitr.dir().join("damaged");
    assert!(events("mysqlbinlog", &dir.join(names[0].0)).contains("CREATE DATABASE w"));
    // What begins in the middle is readable behind the head of its own file.
    let tail = dir.join(names[1].0);
    assert!(events("mysqlbinlog", &tail).contains("### INSERT INTO `w`.`t`"));
    let theirs = std::fs::read(source.datadir().join("binlog.000001")).unwrap();
    let head = usize::try_from(report["files"][1]["head_bytes"].as_u64().unwrap()).unwrap();
    let from = usize::try_from(report["files"][1]["from"].as_u64().unwrap()).unwrap();
    let ours = std::fs::read(&tail).unwrap();
    assert!(ours[..head] == theirs[..head] && ours[head..] == theirs[from..]);

    // The same with a segment that is gone, also for a catalog that never saw it: its first one,
    // so that the head comes from the next file.
    std::fs::write(folder.join(&segments[2]), sound).unwrap();
    std::fs::remove_file(folder.join(&segments[0])).unwrap();
    let gone = pitr.run(&[&args[..], &["gone"]].concat()).await.exits(1);
    assert_eq!(gone.error_json()["class"], "finding");
    pitr.run(&["reindex"]).await.ok();
    let report = pitr.run(&[&args[..], &["first"]].concat()).await.exits(1).json();
    assert_eq!(files(&report), files(&gone.json()), "{report:#}");
    let (first, extent) = files(&report)[0];
    assert!(first.starts_with("binlog.000001.from-") && extent == "partial", "{report:#}");
    assert!(report["files"][0]["head_bytes"].as_u64().unwrap() > 0);
    assert!(events("mysqlbinlog", &pitr.dir().join("first").join(first)).contains("### INSERT"));
}

#[tokio::test]
async fn files_of_the_same_name_on_several_timelines_come_into_folders_of_their_own() {
    let source = Mysqld::start(&[]).await;
    let pitr = Pitr::new(&[("shop-mysql", source.url())]);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    source.sql("CREATE DATABASE w; FLUSH BINARY LOGS").await;
    until_durable(&pitr, &mut daemon).await;
    source.sql("RESET BINARY LOGS AND GTIDS; CREATE DATABASE x").await;
    source.sql("FLUSH BINARY LOGS; CREATE DATABASE y; FLUSH BINARY LOGS").await;
    eventually("the second timeline has its files", Duration::from_mins(1), async || {
        let report = pitr.run(&["windows", "--json"]).await.ok().json();
        let windows = report["sources"][0]["windows"].as_array()?.clone();
        windows.iter().any(|window| window["timeline"] == 2).then_some(())
    })
    .await;
    until_durable(&pitr, &mut daemon).await;
    let args = ["export", "--source", "shop-mysql", "--json", "--out"];
    let both = pitr.run(&[&args[..], &["both"]].concat()).await.exits(1);
    let report = both.json();
    assert_eq!(report["gaps"].as_array().unwrap().len(), 1, "{report:#}");
    let names = files(&report);
    assert_eq!(names[0], ("t0001/binlog.000001", "whole"));
    assert!(names.iter().any(|(name, _)| name.starts_with("t0002/binlog.00000")), "{names:?}");
    for (name, extent) in names.iter().filter(|(name, _)| name.starts_with("t0002/")) {
        let ours = std::fs::read(pitr.dir().join("both").join(name)).unwrap();
        let log = name.trim_start_matches("t0002/").split(".until").next().unwrap();
        let mut theirs = std::fs::read(source.datadir().join(log)).unwrap();
        // The flag of a file that is being written to is in no stream.
        theirs[4 + 17] = 0;
        assert!(theirs.starts_with(&ours), "{name}");
        assert!(*extent != "whole" || ours == theirs, "{name}");
    }
    // One timeline alone needs no folders.
    let second = [&args[..], &["second", "--timeline", "2"]].concat();
    let report = pitr.run(&second).await.json();
    assert!(files(&report).iter().all(|(name, _)| name.starts_with("binlog.")), "{report:#}");
}
