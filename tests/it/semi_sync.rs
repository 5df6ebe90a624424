//! Semi-synchronous capture: what a client saw committed is in the archive, whoever dies.

use crate::instants::until_windows;
use crate::support::{Daemon, Mariadbd, Mysqld, Pitr, eventually};
use mysql_async::prelude::Queryable;
use std::time::Duration;
use tokio::task::JoinSet;

/// How long commits wait for an answer, in ms: longer than anything in these tests takes.
const TIMEOUT_MS: u32 = 120_000;

async fn source() -> Mysqld {
    let source = Mysqld::start(&["--plugin-load-add=semisync_source.so"]).await;
    source.sql("CREATE DATABASE shop; CREATE TABLE shop.t (k VARCHAR(40) PRIMARY KEY)").await;
    source
}

async fn switch_on(source: &Mysqld) {
    source.sql(&format!("SET PERSIST rpl_semi_sync_source_timeout = {TIMEOUT_MS}")).await;
    source.sql("SET PERSIST rpl_semi_sync_source_enabled = ON").await;
}

fn pitr(source: &Mysqld) -> Pitr {
    let pitr = Pitr::new(&[("shop", source.url())]);
    pitr.append_config("semi_sync = true");
    pitr
}

async fn status(source: &Mysqld, name: &str) -> String {
    let ask = format!("SHOW GLOBAL STATUS LIKE 'Rpl_semi_sync_source_{name}'");
    source.row::<(String, String)>(&ask).await.1
}

async fn lapses(pitr: &Pitr) -> Vec<serde_json::Value> {
    let report = pitr.run(&["windows", "--json"]).await.ok().json();
    report["sources"][0]["semi_sync"]["asynchronous"].as_array().unwrap().clone()
}

/// Waits until commits wait for the archive, as `windows` shows it.
async fn until_protected(pitr: &Pitr, daemon: &Daemon) {
    eventually("commits wait for the archive", Duration::from_mins(1), async || {
        let is_closed = |lapse: &serde_json::Value| !lapse["to"].is_null();
        let filed = std::fs::read_dir(pitr.archive().join("shop/semi-sync"));
        let lapses = lapses(pitr).await;
        (filed.is_ok() && lapses.iter().all(is_closed)).then_some(())
    })
    .await;
    drop(daemon.log());
}

/// Clients that commit until the server is gone. Each keeps what it saw committed.
fn clients(source: &Mysqld, run: u32, count: u32) -> JoinSet<Vec<String>> {
    let mut clients = JoinSet::new();
    for client in 0..count {
        let opts = source.opts();
        clients.spawn(async move {
            let mut seen = vec![];
            let Ok(mut conn) = mysql_async::Conn::new(opts).await else { return seen };
            for n in 0.. {
                let key = format!("{run}-{client}-{n}");
                let insert = format!("INSERT INTO shop.t VALUES ('{key}')");
                if conn.query_drop(insert).await.is_err() {
                    break;
                }
                seen.push(key);
            }
            seen
        });
    }
    clients
}

async fn all_seen(mut clients: JoinSet<Vec<String>>) -> Vec<String> {
    let mut seen = vec![];
    while let Some(of_one) = clients.join_next().await {
        seen.extend(of_one.unwrap());
    }
    seen
}

/// Restores the newest instant into a fresh server and looks for what clients saw committed.
async fn assert_restored(pitr: &Pitr, seen: &[String]) {
    let target = Mysqld::start(&[]).await;
    let to = format!("shop={}", target.url());
    pitr.run(&["restore", "--to", "latest", "--target", &to]).await.ok();
    let restored: Vec<String> = target.rows("SELECT k FROM shop.t").await;
    let restored: std::collections::HashSet<String> = restored.into_iter().collect();
    let lost: Vec<&String> = seen.iter().filter(|key| !restored.contains(*key)).collect();
    let few = lost.iter().take(5).collect::<Vec<_>>();
    assert!(lost.is_empty(), "{} of {} are lost: {few:?} …", lost.len(), seen.len());
}

/// Kills the source under load, with nobody there who could read its log again. Before that, pitr
/// is frozen in whatever it does, so that it has no time left to write what it has received.
async fn what_a_client_saw_survives_the_source(run: u32) {
    let mut source = source().await;
    switch_on(&source).await;
    let pitr = pitr(&source);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    until_protected(&pitr, &daemon).await;
    let clients = clients(&source, run, 6);
    tokio::time::sleep(Duration::from_millis(rand::random_range(500..1500))).await;
    daemon.signal("STOP");
    tokio::time::sleep(Duration::from_millis(200)).await;
    source.kill();
    let seen = all_seen(clients).await;
    println!("{} commits were seen", seen.len());
    assert!(seen.len() > 20, "{}", seen.len());
    daemon.kill();
    drop(source);
    assert_restored(&pitr, &seen).await;
}

#[tokio::test]
async fn a_killed_source_takes_nothing_with_it_that_a_client_saw_committed() {
    what_a_client_saw_survives_the_source(1).await;
}

/// `cargo nextest run --release --run-ignored only -E 'test(again_and_again)'`
#[tokio::test]
#[ignore = "takes minutes"]
async fn a_source_killed_again_and_again_takes_nothing_with_it() {
    for run in 0..20 {
        what_a_client_saw_survives_the_source(run).await;
    }
}

#[tokio::test]
async fn commits_wait_while_pitr_is_killed_and_are_in_the_archive_when_they_return() {
    let mut source = source().await;
    switch_on(&source).await;
    let pitr = pitr(&source);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    until_protected(&pitr, &daemon).await;
    let clients = clients(&source, 1, 6);
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(rand::random_range(100..1200))).await;
        daemon.kill();
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..300))).await;
        daemon = pitr.spawn_run();
    }
    until_protected(&pitr, &daemon).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(status(&source, "no_tx").await, "0", "a commit did not wait: {}", daemon.log());
    source.kill();
    let seen = all_seen(clients).await;
    println!("{} commits were seen", seen.len());
    daemon.kill();
    let report = pitr.run(&["windows", "--json"]).await.ok().json();
    assert_eq!(report["sources"][0]["gaps"].as_array().unwrap().len(), 0, "{}", daemon.log());
    assert_eq!(report["sources"][0]["timeline"], 1, "{report:#}");
    assert_restored(&pitr, &seen).await;
}

/// Commits in a second, of so many clients together.
async fn commits_a_second(source: &Mysqld, run: u32, count: u32) -> f64 {
    const LASTS: Duration = Duration::from_secs(5);
    let clients = clients(source, run, count);
    let begun: u64 = source.row("SELECT COUNT(*) FROM shop.t").await;
    tokio::time::sleep(LASTS).await;
    let done: u64 = source.row("SELECT COUNT(*) FROM shop.t").await;
    drop(clients);
    (done - begun) as f64 / LASTS.as_secs_f64()
}

/// `cargo test --release --locked --test it -- --ignored --nocapture semi_sync::what_waiting_costs`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures, and asserts nothing"]
async fn what_waiting_costs() {
    let synced = ["--sync-binlog=1", "--innodb-flush-log-at-trx-commit=1"];
    let args = [&synced[..], &["--plugin-load-add=semisync_source.so"]].concat();
    let source = Mysqld::start(&args).await;
    source.sql("CREATE DATABASE shop; CREATE TABLE shop.t (k VARCHAR(40) PRIMARY KEY)").await;
    let pitr = pitr(&source);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    println!("clients   without: commits/s, ms each   with semi_sync: commits/s, ms each   ratio");
    for (run, count) in [1, 2, 8, 32].into_iter().enumerate() {
        let run = run as u32 * 2;
        source.sql("SET GLOBAL rpl_semi_sync_source_enabled = OFF").await;
        let without = commits_a_second(&source, run, count).await;
        source.sql("SET GLOBAL rpl_semi_sync_source_enabled = ON").await;
        let with = commits_a_second(&source, run + 1, count).await;
        let each = |rate: f64| f64::from(count) * 1000.0 / rate;
        println!(
            "{count:7} {without:18.0} {:8.2} {with:26.0} {:8.2} {:12.2}",
            each(without),
            each(with),
            with / without
        );
    }
    println!("went through without an answer: {}", status(&source, "no_tx").await);
}

#[tokio::test]
async fn times_without_an_answer_are_kept_and_shown() {
    let source = Mysqld::start(&[]).await;
    source.sql("CREATE DATABASE shop; CREATE TABLE shop.t (k VARCHAR(40) PRIMARY KEY)").await;
    let pitr = pitr(&source);
    pitr.append_config("tls = { mode = \"require\" }");
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    let first = eventually("the lapse", Duration::from_secs(30), async || {
        lapses(&pitr).await.first().cloned()
    })
    .await;
    assert!(first["to"].is_null(), "{first}");
    assert!(first["reason"].as_str().unwrap().contains("INSTALL PLUGIN"), "{first}");
    assert!(daemon.log().contains("INSTALL PLUGIN"), "{}", daemon.log());

    // The statement of the reason, and a source that soon goes on without an answer.
    source.sql("INSTALL PLUGIN rpl_semi_sync_source SONAME 'semisync_source.so'").await;
    source.sql("SET GLOBAL rpl_semi_sync_source_timeout = 500").await;
    source.sql("SET GLOBAL rpl_semi_sync_source_enabled = ON").await;
    until_protected(&pitr, &daemon).await;
    source.sql("INSERT INTO shop.t VALUES ('waited')").await;
    assert_eq!(status(&source, "no_tx").await, "0", "{}", daemon.log());

    let before = lapses(&pitr).await.len();
    daemon.signal("STOP");
    source.sql("INSERT INTO shop.t VALUES ('went on')").await;
    daemon.signal("CONT");
    eventually("the source waits again", Duration::from_secs(30), async || {
        (status(&source, "status").await == "ON").then_some(())
    })
    .await;
    eventually("the lapse has an end", Duration::from_secs(30), async || {
        let lapses = lapses(&pitr).await;
        (lapses.len() > before && !lapses.last()?["to"].is_null()).then_some(())
    })
    .await;
    let all = lapses(&pitr).await;
    let last = all.last().unwrap();
    assert!(last["reason"].as_str().unwrap().contains("without an answer"), "{last}");
    let text = pitr.run(&["windows"]).await.ok().stdout;
    assert!(text.contains("    asynchronous ") && text.contains("without an answer"), "{text}");

    // A killed daemon leaves nothing that says so; what is shown begins where its archive ends.
    daemon.kill();
    let killed = lapses(&pitr).await;
    assert_eq!(killed.len(), all.len() + 1);
    assert!(killed.last().unwrap()["to"].is_null());
    std::fs::remove_file(pitr.archive().join("catalog.sqlite")).unwrap();
    pitr.run(&["reindex"]).await.ok();
    assert_eq!(lapses(&pitr).await, killed);
    let mut daemon = pitr.spawn_run();
    until_protected(&pitr, &daemon).await;
    daemon.terminate(Duration::from_secs(10)).await;
    let ended = lapses(&pitr).await;
    assert_eq!(ended[..all.len()], all[..], "what was kept does not change");
    assert!(ended.last().unwrap()["to"].is_null(), "{ended:?}");
}

#[tokio::test]
async fn a_killed_mariadb_takes_nothing_with_it_that_a_client_saw_committed() {
    let timeout = format!("--rpl-semi-sync-master-timeout={TIMEOUT_MS}");
    // The statements as they were sent: the keys stand in the log in plain text.
    let mut source = Mariadbd::start(&[&timeout, "--binlog-format=STATEMENT"]).await;
    source.sql("CREATE DATABASE shop; CREATE TABLE shop.t (k VARCHAR(40) PRIMARY KEY)").await;
    let pitr = pitr(&source);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    eventually("the lapse", Duration::from_secs(30), async || lapses(&pitr).await.first().cloned())
        .await;
    source.sql("SET GLOBAL rpl_semi_sync_master_enabled = ON").await;
    until_protected(&pitr, &daemon).await;
    let clients = clients(&source, 1, 6);
    tokio::time::sleep(Duration::from_millis(rand::random_range(500..1500))).await;
    daemon.signal("STOP");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let wait = "SHOW GLOBAL STATUS LIKE 'Rpl_semi_sync_master_no_tx'";
    assert_eq!(source.row::<(String, String)>(wait).await.1, "0", "{}", daemon.log());
    source.kill();
    let seen = all_seen(clients).await;
    println!("{} commits were seen", seen.len());
    assert!(seen.len() > 20, "{}", seen.len());
    daemon.kill();
    let out = pitr.dir().join("out");
    pitr.run(&["export", "--source", "shop", "--out", out.to_str().unwrap()]).await.ok();
    let cat = std::process::Command::new("grep").args(["-rha", ""]).arg(&out).output();
    let log = cat.unwrap().stdout;
    let log = String::from_utf8_lossy(&log);
    let stored: std::collections::HashSet<&str> =
        log.split("VALUES ('").filter_map(|rest| rest.split('\'').next()).collect();
    let lost = seen.iter().filter(|key| !stored.contains(key.as_str())).count();
    assert_eq!(lost, 0, "of {}", seen.len());
}
