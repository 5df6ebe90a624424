//! A restore that is killed at any moment can be run again, and brings everything back.

use crate::instants::until_windows;
use crate::support::{Mariadbd, Mysqld, Output, Pitr, RedisServer, eventually};
use ::redis::AsyncCommands;
use mysql_async::prelude::Queryable;
use pitr::engine::{mysql, redis};
use std::path::Path;
use std::process::Child;
use std::time::Duration;

/// How long a moment of a restore is waited for.
const MOMENT: Duration = Duration::from_secs(90);

const LATEST: [&str; 2] = ["--to", "latest"];

fn restore(pitr: &Pitr, goal: [&str; 2], args: &[&str]) -> Child {
    pitr.command().arg("restore").args(goal).args(args).spawn().unwrap()
}

/// Where the log ends: a set of GTIDs, or file and offset of a MariaDB.
async fn end_of_log(source: &Mysqld) -> String {
    if source.is_mariadb() {
        let row: (String, u64, String, String) = source.row("SHOW MASTER STATUS").await;
        return format!("{}:{}", row.0, row.1);
    }
    source.gtid_executed().await
}

/// GTIDs of what was executed, as far as they come back.
async fn executed(server: &Mysqld) -> String {
    if server.is_mariadb() {
        return server.row("SELECT @@GLOBAL.gtid_current_pos").await;
    }
    server.gtid_executed().await
}

/// SIGKILL, unless it has ended already.
fn kill(mut child: Child) {
    assert!(child.try_wait().unwrap().is_none(), "it ended before the moment came");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The processes that have this text among their arguments.
fn processes_with(text: &str) -> Vec<u32> {
    let mut found = vec![];
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&arguments).contains(text) {
            found.push(pid);
        }
    }
    found
}

/// Runs a restore as soon as the server has noticed that the one before it is gone.
async fn not_busy(pitr: &Pitr, args: &[&str]) -> Output {
    eventually("the server notices", Duration::from_mins(1), async || {
        let output = pitr.run(args).await;
        (output.code() != Some(7)).then_some(output)
    })
    .await
}

async fn nobody_works_in(dir: &Path) {
    let text = dir.display().to_string();
    eventually("the scratch server is gone", Duration::from_secs(20), async || {
        processes_with(&text).is_empty().then_some(())
    })
    .await;
}

/// An archive with a baseline and `rows` transactions behind it.
async fn archived(rows: u32) -> (Mysqld, Pitr) {
    let source = Mysqld::start(&FAST).await;
    let pitr = archive(&source, rows).await;
    (source, pitr)
}

/// Options of a source that is filled quickly.
const FAST: [&str; 2] = ["--sync-binlog=0", "--innodb-flush-log-at-trx-commit=0"];

/// The same of a server that runs.
async fn archive(source: &Mysqld, rows: u32) -> Pitr {
    source
        .sql(
            "CREATE DATABASE shop; CREATE TABLE shop.n (id INT PRIMARY KEY, s VARBINARY(2000));
             CREATE TABLE shop.idle (id INT PRIMARY KEY);
             CREATE USER app@'%' IDENTIFIED BY 'first'; GRANT SELECT ON shop.* TO app@'%'",
        )
        .await;
    let pitr = Pitr::new(&[("shop-mysql", source.url())]);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    let mut conn = source.conn().await;
    for id in 0..rows {
        conn.query_drop(format!("INSERT INTO shop.n VALUES ({id}, RANDOM_BYTES(1000))"))
            .await
            .unwrap();
    }
    conn.query_drop("CREATE USER later@'%' IDENTIFIED BY 'x'").await.unwrap();
    eventually("everything is in the archive", Duration::from_secs(30), async || {
        let plan = ["restore", "--plan", "--source", "shop-mysql", "--to-position"];
        let end = end_of_log(source).await;
        (pitr.run(&[&plan[..], &[&end]].concat()).await.code() == Some(0)).then_some(())
    })
    .await;
    daemon.terminate(Duration::from_secs(20)).await;
    pitr
}

async fn assert_same(source: &Mysqld, restored: &Mysqld) {
    let of = async |server: &Mysqld| {
        let mut conn = server.conn().await;
        let content = mysql::digest::digest(&mut conn).await.unwrap();
        (content, mysql::digest::digest_accounts(&mut conn).await.unwrap())
    };
    let (then, now) = (of(source).await, of(restored).await);
    assert_eq!(now.0.diff(&then.0), [""; 0]);
    assert_eq!(now.1.diff(&then.1), [""; 0]);
    assert_eq!(restored.gtid_executed().await, source.gtid_executed().await);
}

#[tokio::test]
async fn a_mysql_folder_whose_restore_was_killed_is_cleared_and_made_anew() {
    let (source, pitr) = archived(1500).await;
    let dir = pitr.dir().join("out/shop-mysql");
    let relayed = || {
        let files = std::fs::read_dir(dir.join("relay")).into_iter().flatten().flatten();
        files.filter_map(|file| file.metadata().ok()).map(|m| m.len()).sum::<u64>() > 50_000
    };
    let moments: [(&str, &dyn Fn() -> bool); 3] = [
        ("the data directory is made", &|| dir.join("data").exists()),
        ("the baseline is loaded", &|| dir.join("data/shop/n.ibd").exists()),
        ("the log is replayed", &relayed),
    ];
    for (what, has_come) in moments {
        let child = restore(&pitr, LATEST, &["--into", "out"]);
        eventually(what, MOMENT, async || has_come().then_some(())).await;
        kill(child);
        assert!(dir.join("UNFINISHED.txt").exists());
        nobody_works_in(&dir).await;
    }
    // What somebody else put there is never cleared.
    std::fs::write(dir.join("mine.txt"), "precious").unwrap();
    let into = ["restore", "--to", "latest", "--json", "--into", "out"];
    let error = pitr.run(&into).await.exits(6).error_json();
    assert!(error["message"].as_str().unwrap().contains("mine.txt"), "{error}");
    std::fs::remove_file(dir.join("mine.txt")).unwrap();

    pitr.run(&into).await.ok();
    assert!(!dir.join("UNFINISHED.txt").exists());
    let error = pitr.run(&into).await.exits(6).error_json();
    assert!(error["message"].as_str().unwrap().contains("is not empty"), "{error}");
    let restored = Mysqld::start_on(&dir.join("data"), &[]).await;
    assert_same(&source, &restored).await;
}

#[tokio::test]
async fn a_mysql_server_left_half_restored_is_known_and_cleaned_when_told_to() {
    let (source, pitr) = archived(1500).await;
    let target = Mysqld::start(&[]).await;
    target.sql("CREATE USER monitor@localhost IDENTIFIED BY 'm'").await;
    let to = format!("shop-mysql={}", target.url());
    let globals = "SELECT @@GLOBAL.sync_binlog, @@GLOBAL.innodb_flush_log_at_trx_commit,
                   @@GLOBAL.max_allowed_packet, CAST(@@GLOBAL.event_scheduler AS CHAR)";
    let before: (u64, u64, u64, String) = target.row(globals).await;

    let child = restore(&pitr, LATEST, &["--target", &to]);
    eventually("half of the log is replayed", MOMENT, async || {
        let mut conn = target.conn().await;
        let rows: Option<u64> =
            conn.query_first("SELECT COUNT(*) FROM shop.n").await.ok().flatten();
        rows.is_some_and(|rows| rows > 10).then_some(())
    })
    .await;
    // It is busy as long as somebody fills it.
    let args = ["restore", "--to", "latest", "--json", "--target", &to];
    pitr.run(&[&args[..], &["--clean-target", "shop-mysql"]].concat()).await.exits(7);
    kill(child);

    // To another instant than the one that was interrupted.
    let uuid: String = source.row("SELECT @@server_uuid").await;
    let elsewhere = format!("{uuid}:1000");
    let another = ["restore", "--to-position", &elsewhere, "--json", "--target", &to];
    let error = not_busy(&pitr, &another).await.exits(6).error_json();
    assert!(error["message"].as_str().unwrap().contains("half restored"), "{error}");
    assert!(error["hint"].as_str().unwrap().contains("--clean-target shop-mysql"), "{error}");
    pitr.run(&[&args[..], &["--clean-target", "shop-mysql"]].concat()).await.ok();
    assert_eq!(target.row::<(u64, u64, u64, String)>(globals).await, before);
    let monitors: u64 = target.row("SELECT COUNT(*) FROM mysql.user WHERE User = 'monitor'").await;
    assert_eq!(monitors, 1, "an account of the target itself was dropped");
    target.sql("SET SESSION sql_log_bin = 0; DROP USER monitor@localhost").await;
    assert_same(&source, &target).await;
    // A finished one is no half one: nothing is dropped.
    let error = pitr.run(&[&args[..], &["--clean-target", "shop-mysql"]].concat()).await;
    let error = error.exits(6).error_json();
    assert!(error["message"].as_str().unwrap().contains("is not empty"), "{error}");
}

/// Kills a restore while it checks at the end what it has restored, and runs it again.
async fn killed_at_the_end(source: &Mysqld, target: &Mysqld) {
    let pitr = archive(source, 1500).await;
    let to = format!("shop-mysql={}", target.url());
    // The exact end: of a MariaDB, the newest instant may be before it.
    let goal = ["--to-position", &end_of_log(source).await];
    let child = restore(&pitr, goal, &["--target", &to]);
    let mut lock = target.conn().await;
    eventually("the log is being replayed", MOMENT, async || {
        lock.query_first::<u64, _>("SELECT COUNT(*) FROM shop.n WHERE id > 0")
            .await
            .ok()
            .flatten()
            .filter(|rows| *rows > 0)
    })
    .await;
    // No transaction needs it, but the check of all tables does.
    lock.query_drop("LOCK TABLES shop.idle WRITE").await.unwrap();
    eventually("the tables are checked", MOMENT, async || {
        let checks = "SELECT COUNT(*) FROM information_schema.PROCESSLIST \
                      WHERE INFO LIKE 'CHECK TABLE%'";
        (target.row::<u64>(checks).await > 0).then_some(())
    })
    .await;
    kill(child);
    lock.query_drop("UNLOCK TABLES").await.unwrap();
    // The same restore goes on: with nothing, as the log has changed all tables.
    let args = [&["restore", "--json", "--target", &to], &goal[..]].concat();
    not_busy(&pitr, &args).await.ok();
    let of = async |server: &Mysqld| {
        let mut conn = server.conn().await;
        mysql::digest::digest(&mut conn).await.unwrap()
    };
    assert_eq!(of(target).await.diff(&of(source).await), [""; 0]);
    assert_eq!(executed(target).await, executed(source).await);
}

#[tokio::test]
async fn a_mariadb_restore_killed_while_it_checks_can_be_run_again() {
    killed_at_the_end(&Mariadbd::start(&FAST).await, &Mariadbd::start(&[]).await).await;
}

#[tokio::test]
async fn a_mysql_restore_killed_while_it_checks_can_be_run_again() {
    killed_at_the_end(&Mysqld::start(&FAST).await, &Mysqld::start(&[]).await).await;
}

#[tokio::test]
async fn redis_restores_that_were_killed_can_be_run_again() {
    let cache = RedisServer::start(&[]).await;
    let mut keys = cache.conn().await;
    let mut noise: Vec<u8> = vec![1; 12 << 20];
    for n in 0..6_u32 {
        let mut state = n + 1;
        for byte in &mut noise {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (state >> 24) as u8;
        }
        let () = keys.set(format!("large:{n}"), &noise).await.unwrap();
    }
    let pitr = Pitr::new(&[("shop-redis", cache.url())]);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    let () = keys.set("last", 1).await.unwrap();
    tokio::time::sleep(Duration::from_millis(800)).await;
    daemon.terminate(Duration::from_secs(20)).await;
    let then = redis::digest::digest(&mut keys).await.unwrap();

    let dir = pitr.dir().join("out/shop-redis");
    let child = restore(&pitr, LATEST, &["--into", "out"]);
    let base = dir.join("appendonlydir/appendonly.aof.1.base.rdb");
    eventually("the baseline is written", MOMENT, async || base.exists().then_some(())).await;
    kill(child);
    assert!(dir.join("UNFINISHED.txt").exists());
    pitr.run(&["restore", "--to", "latest", "--into", "out"]).await.ok();
    assert!(!dir.join("UNFINISHED.txt").exists());
    let restored = RedisServer::start_on(&dir).await;
    let now = eventually("the folder is loaded", MOMENT, async || {
        redis::digest::digest(&mut restored.conn().await).await.ok()
    })
    .await;
    assert_eq!(now.diff(&then), [""; 0]);

    // A running server: told what to do, and it is enough.
    let target = RedisServer::start(&[]).await;
    let to = format!("shop-redis={}", target.url());
    let child = restore(&pitr, LATEST, &["--target", &to]);
    eventually("the target is a replica", MOMENT, async || {
        let info: String = target.cmd(&["INFO", "replication"]).await;
        info.contains("role:slave").then_some(())
    })
    .await;
    kill(child);
    let args = ["restore", "--to", "latest", "--json", "--target", &to];
    let error = pitr.run(&args).await.exits(6).error_json();
    assert!(error.to_string().contains("REPLICAOF NO ONE"), "{error}");
    let _: String = target.cmd(&["REPLICAOF", "NO", "ONE"]).await;
    let _: String = target.cmd(&["FLUSHALL"]).await;
    let first = pitr.run(&args).await.ok().json();
    let now = redis::digest::digest(&mut target.conn().await).await.unwrap();
    assert_eq!(now.diff(&then), [""; 0]);

    // Once more, to the same instant: either has a receipt of its own.
    let _: String = target.cmd(&["FLUSHALL"]).await;
    let second = pitr.run(&args).await.ok().json();
    assert_eq!(first["to"], second["to"]);
    assert_ne!(first["receipt"], second["receipt"]);
    for report in [first, second] {
        let receipt = pitr.dir().join(report["receipt"].as_str().unwrap());
        let kept: serde_json::Value =
            serde_json::from_slice(&std::fs::read(receipt).unwrap()).unwrap();
        assert_eq!(kept, report);
    }
}
