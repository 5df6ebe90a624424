//! Redis captured from its append-only files.

use crate::instants::until_windows;
use crate::support::{Daemon, Pitr, RedisServer, eventually};
use chrono::{DateTime, SecondsFormat, Utc};
use pitr::engine::digest::Digest;
use pitr::engine::redis;
use std::time::Duration;

const SOON: Duration = Duration::from_mins(1);

const OPTIONS: [&str; 6] =
    ["--appendonly", "yes", "--aof-timestamp-enabled", "yes", "--appendfsync", "always"];

/// A server, and pitr that captures it from its files.
async fn captured(options: &[&str]) -> (RedisServer, Pitr, Daemon) {
    let server = RedisServer::start(options).await;
    let pitr = Pitr::new(&[("shop-redis", server.url())]);
    let dir = server.datadir().join("appendonlydir");
    pitr.append_config(&format!("capture = \"aof\"\naof_dir = {:?}", dir.to_str().unwrap()));
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    (server, pitr, daemon)
}

/// What the server holds at an instant around which nothing is written.
async fn note(server: &RedisServer, pitr: &Pitr) -> (DateTime<Utc>, Digest) {
    until_known(pitr).await;
    #[expect(clippy::disallowed_methods, reason = "the test stands outside of the program")]
    let at = Utc::now();
    let digest = redis::digest::digest(&mut server.conn().await).await.unwrap();
    until_known(pitr).await;
    (at, digest)
}

/// Waits until it is known of this instant that nothing before it is missing.
async fn until_known(pitr: &Pitr) {
    #[expect(clippy::disallowed_methods, reason = "the test stands outside of the program")]
    let now = Utc::now();
    eventually("the instant is known", SOON, async || {
        let report = pitr.run(&["windows", "--json"]).await.ok().json();
        let at: DateTime<Utc> = report["sources"][0]["durable_at"].as_str()?.parse().unwrap();
        (at > now).then_some(())
    })
    .await;
}

async fn write(server: &RedisServer, round: u32) {
    for n in 0..40 {
        let key = format!("k:{round}:{n}");
        server.cmd_in::<()>(n % 4, &["SET", &key, "#TS:1\r\n*1\r\n"]).await;
        server.cmd_in::<()>(3, &["LPUSH", "list", &key]).await;
    }
    let mut conn = server.conn_to(2).await;
    let mut pipe = ::redis::pipe();
    pipe.atomic().cmd("INCR").arg("a").ignore().cmd("INCRBY").arg("b").arg(round).ignore();
    let () = pipe.query_async(&mut conn).await.unwrap();
}

/// Rewrites the base and waits until that is over.
async fn rewrite(server: &RedisServer) {
    let _: String = server.cmd(&["BGREWRITEAOF"]).await;
    eventually("the base is rewritten", SOON, async || {
        let info: String = server.cmd(&["INFO", "persistence"]).await;
        (info.contains("aof_rewrite_in_progress:0\r\n")
            && info.contains("aof_rewrite_scheduled:0\r\n"))
        .then_some(())
    })
    .await;
}

/// Restores to an instant, into a server and into a folder; both hold what was there.
async fn comes_back(pitr: &Pitr, (at, digest): &(DateTime<Utc>, Digest), name: &str) {
    let to = at.to_rfc3339_opts(SecondsFormat::Micros, true);
    let copy = RedisServer::start(&[]).await;
    let target = format!("shop-redis={}", copy.url());
    pitr.run(&["restore", "--to", &to, "--target", &target]).await.ok();
    let found = redis::digest::digest(&mut copy.conn().await).await.unwrap();
    assert_eq!(digest.diff(&found), [""; 0], "{name}, into a server");
    pitr.run(&["restore", "--to", &to, "--into", name]).await.ok();
    let copy = RedisServer::start_on(&pitr.dir().join(name).join("shop-redis")).await;
    // It answers INFO while it loads.
    eventually("the server has loaded the folder", SOON, async || {
        let info: String = copy.cmd(&["INFO", "persistence"]).await;
        info.contains("\r\nloading:0\r\n").then_some(())
    })
    .await;
    let found = redis::digest::digest(&mut copy.conn().await).await.unwrap();
    assert_eq!(digest.diff(&found), [""; 0], "{name}, into a folder");
}

async fn gaps(pitr: &Pitr) -> Vec<String> {
    let report = pitr.run(&["windows", "--json"]).await.ok().json();
    let gaps = report["sources"][0]["gaps"].as_array().unwrap().clone();
    gaps.iter().map(|gap| gap["reason"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn instants_before_between_and_behind_rewrites_come_back() {
    let (server, pitr, mut daemon) = captured(&OPTIONS).await;
    let mut noted = vec![];
    for round in 0..4 {
        write(&server, round).await;
        noted.push(note(&server, &pitr).await);
        rewrite(&server).await;
    }
    // pitr dies, and takes up where the archive ends.
    daemon.kill();
    write(&server, 4).await;
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    noted.push(note(&server, &pitr).await);
    assert_eq!(gaps(&pitr).await, [""; 0], "{}", daemon.log());
    for (round, noted) in noted.iter().enumerate() {
        comes_back(&pitr, noted, &format!("round-{round}")).await;
    }
}

#[tokio::test]
async fn a_server_that_dies_goes_on_without_a_gap() {
    let (mut server, pitr, daemon) = captured(&OPTIONS).await;
    write(&server, 0).await;
    let first = note(&server, &pitr).await;
    server.kill();
    server.restart().await;
    write(&server, 1).await;
    eventually("the capture goes on", SOON, async || {
        let report = pitr.run(&["windows", "--json"]).await.ok().json();
        (report["sources"][0]["state"] == "streaming").then_some(())
    })
    .await;
    let second = note(&server, &pitr).await;
    assert_eq!(gaps(&pitr).await, [""; 0], "{}", daemon.log());
    comes_back(&pitr, &first, "first").await;
    comes_back(&pitr, &second, "second").await;
}

#[tokio::test]
async fn what_was_written_while_appendonly_was_off_is_a_gap() {
    let (server, pitr, daemon) = captured(&OPTIONS).await;
    write(&server, 0).await;
    let before = note(&server, &pitr).await;
    server.cmd::<()>(&["CONFIG", "SET", "appendonly", "no"]).await;
    write(&server, 1).await;
    #[expect(clippy::disallowed_methods, reason = "the test stands outside of the program")]
    let within = Utc::now();
    write(&server, 1).await;
    server.cmd::<()>(&["CONFIG", "SET", "appendonly", "yes"]).await;
    eventually("the gap is known", SOON, async || (!gaps(&pitr).await.is_empty()).then_some(()))
        .await;
    write(&server, 2).await;
    eventually("the new base is a baseline", SOON, async || {
        let report = pitr.run(&["windows", "--json"]).await.ok().json();
        let windows = report["sources"][0]["windows"].as_array().unwrap().clone();
        windows.iter().any(|window| window["timeline"] == 2).then_some(())
    })
    .await;
    let behind = note(&server, &pitr).await;
    let reasons = gaps(&pitr).await;
    assert!(reasons[0].contains("appendonly was off"), "{reasons:?}\n{}", daemon.log());
    comes_back(&pitr, &before, "before").await;
    comes_back(&pitr, &behind, "behind").await;
    let to = within.to_rfc3339_opts(SecondsFormat::Micros, true);
    pitr.run(&["restore", "--to", &to, "--plan"]).await.exits(4);
}
