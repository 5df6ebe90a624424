//! A source that fails over, and a capture that stands still: nothing is missing afterwards, and what
//! the source lost stays apart.

use super::harness::{SOON, digest, patient};
use crate::instants::until_windows;
use crate::support::{Pitr, RedisServer, eventually};
use chrono::{DateTime, Utc};
use pitr::engine::digest::Digest;
use rstest::rstest;
use std::time::Duration;

const FAST: [&str; 2] = ["--repl-diskless-sync-delay", "0"];

/// Writes a key, and waits until the archive has it: pitr is the only replica that acknowledges.
async fn archived(server: &RedisServer, database: u32, key: &str) {
    let mut conn = patient(server).await;
    let mut pipe = ::redis::pipe();
    pipe.cmd("SELECT").arg(database).ignore().cmd("SET").arg(key).arg(1).ignore();
    pipe.cmd("WAIT").arg(1).arg(60_000);
    let (acknowledged,): (u32,) = pipe.query_async(&mut conn).await.unwrap();
    assert_eq!(acknowledged, 1, "{key} is in the archive");
}

async fn place(server: &RedisServer) -> String {
    let info: String = server.cmd(&["INFO", "replication"]).await;
    let field = |name: &str| {
        info.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
    };
    format!("{}:{}", field("master_replid:"), field("master_repl_offset:"))
}

fn now() -> DateTime<Utc> {
    #[expect(clippy::disallowed_methods, reason = "the test stands outside of the program")]
    Utc::now()
}

/// What a restore into an empty server of the program gives.
async fn restored(pitr: &Pitr, program: &str, goal: &[&str]) -> Digest {
    let server = RedisServer::start_program(program, &[]).await;
    let target = format!("shop-redis={}", server.url());
    let args = [&["restore", "--source", "shop-redis", "--target", &target], goal].concat();
    pitr.run(&args).await.ok();
    digest(&server).await
}

#[rstest]
#[case::in_the_first_segment("redis-server", "")]
#[case::in_a_later_segment("redis-server", "[segment]\nmax_seconds = 1")]
#[case::of_redis_8("redis-server-8", "")]
#[case::of_valkey("valkey-server", "")]
#[tokio::test]
async fn what_a_promoted_server_lost_stays_in_a_timeline_of_its_own(
    #[case] program: &str,
    #[case] config: &str,
) {
    let mut first = RedisServer::start_program(program, &FAST).await;
    let second = RedisServer::start_program(program, &FAST).await;
    replicate(&second, &first).await;
    let pitr = Pitr::new(&[("shop-redis", first.url())]);
    pitr.append_config(config);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    for n in 0..4 {
        archived(&first, 1, &format!("shared-{n}")).await;
        // So long that segments end between the writes, where they are to.
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    eventually("the second server has it all", SOON, async || {
        second.cmd_in::<bool>(1, &["EXISTS", "shared-3"]).await.then_some(())
    })
    .await;
    // A partition: one side promotes the second server, clients of the other go on writing.
    second.cmd::<()>(&["REPLICAOF", "NO", "ONE"]).await;
    archived(&first, 5, "lost").await;
    archived(&first, 5, "lost, too").await;
    let (lost, lost_at) = (digest(&first).await, place(&first).await);
    first.kill();
    daemon.terminate(SOON).await;
    second.cmd_in::<()>(7, &["SET", "kept", "1"]).await;
    // The address leads to the second server now.
    pitr.write_config(&pitr.config().replace(&first.url(), &second.url()));
    let mut daemon = pitr.spawn_run();
    archived(&second, 3, "behind").await;
    // It is as good after a crash.
    daemon.kill();
    let mut daemon = pitr.spawn_run();
    archived(&second, 3, "behind the crash").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (kept, at) = (digest(&second).await, now().to_rfc3339());
    let goal = ["--to", &at];
    assert_eq!(kept.diff(&restored(&pitr, program, &goal).await), [""; 0], "{}", daemon.log());
    let goal = ["--to-position", &lost_at];
    assert_eq!(lost.diff(&restored(&pitr, program, &goal).await), [""; 0]);
    daemon.terminate(SOON).await;
    let report = pitr.run(&["windows", "--json"]).await.ok().json();
    let source = &report["sources"][0];
    assert_eq!(source["gaps"].as_array().unwrap().len(), 0, "{report:#}");
    let timelines: Vec<_> =
        source["windows"].as_array().unwrap().iter().map(|w| w["timeline"].clone()).collect();
    assert_eq!(timelines, [1, 2], "{report:#}");
    pitr.run(&["reindex"]).await.ok();
    let again = pitr.run(&["windows", "--json"]).await.ok().json();
    assert_eq!(again["sources"][0]["windows"], source["windows"]);
}

/// Stops the daemon's process for a while under writes, and sees what is there afterwards.
async fn stand_still(time: Duration) {
    let source = RedisServer::start(&FAST).await;
    let pitr = Pitr::new(&[("shop-redis", source.url())]);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    let mut conn = patient(&source).await;
    let value = "x".repeat(20_000);
    daemon.signal("STOP");
    let begun = std::time::Instant::now();
    let mut n = 0;
    while begun.elapsed() < time {
        // Many times the backlog, far below the limit of the output buffer.
        let set = ::redis::cmd("SET").arg(format!("k:{}", n % 100)).arg(&value).to_owned();
        let () = set.query_async(&mut conn).await.unwrap();
        n += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    daemon.signal("CONT");
    archived(&source, 2, "behind").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (expected, at) = (digest(&source).await, now().to_rfc3339());
    let report = pitr.run(&["windows", "--json"]).await.ok().json();
    let gaps = report["sources"][0]["gaps"].as_array().unwrap().clone();
    // A gap is allowed if the source gave up on a silent replica, and only with its reason.
    let may_be_lost = time >= Duration::from_mins(1);
    let backlog = |gap: &serde_json::Value| gap["reason"].as_str().unwrap().contains("backlog");
    assert!(gaps.is_empty() || (may_be_lost && gaps.iter().all(backlog)), "{report:#}");
    let goal = ["--to", &at];
    assert_eq!(expected.diff(&restored(&pitr, "redis-server", &goal).await), [""; 0]);
    daemon.terminate(SOON).await;
}

#[tokio::test]
async fn a_capture_that_stands_still_goes_on_without_a_gap() {
    stand_still(Duration::from_secs(5)).await;
}

#[tokio::test]
#[ignore = "takes more than two minutes: run it with --ignored"]
async fn a_capture_that_stood_still_for_two_minutes_ends_without_a_gap_or_with_one_that_is_shown() {
    stand_still(Duration::from_mins(2)).await;
}

#[tokio::test]
async fn of_several_servers_the_master_is_followed_and_one_that_comes_back_empty_is_not() {
    let mut first = RedisServer::start(&FAST).await;
    let second = RedisServer::start(&FAST).await;
    replicate(&second, &first).await;
    let pitr = Pitr::new(&[("shop-redis", first.url())]);
    let urls = format!("urls = [{:?}, {:?}]", first.url(), second.url());
    pitr.write_config(&pitr.config().replace(&format!("url = {:?}", first.url()), &urls));
    assert!(pitr.config().contains(&urls), "{}", pitr.config());
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    first.cmd_in::<()>(4, &["SET", "before", "1"]).await;
    eventually("the second server has it", SOON, async || {
        second.cmd_in::<bool>(4, &["EXISTS", "before"]).await.then_some(())
    })
    .await;
    // The first one comes back without anything, before anybody has promoted the second.
    first.kill();
    second.cmd::<()>(&["REPLICAOF", "127.0.0.1", "1"]).await;
    first.restart().await;
    eventually("it is waited for", SOON, async || {
        let report = pitr.run(&["windows", "--json"]).await.ok().json();
        let error = report["sources"][0]["error"].as_str()?.to_owned();
        error.contains("a replica, has").then_some(())
    })
    .await;
    second.cmd::<()>(&["REPLICAOF", "NO", "ONE"]).await;
    archived(&second, 6, "behind").await;
    let (kept, at) = (digest(&second).await, now().to_rfc3339());
    let goal = ["--to", &at];
    assert_eq!(kept.diff(&restored(&pitr, "redis-server", &goal).await), [""; 0]);
    let report = pitr.run(&["windows", "--json"]).await.ok().json();
    let gaps = report["sources"][0]["gaps"].as_array().unwrap().clone();
    assert_eq!(gaps.len(), 0, "{report:#}\n{}", daemon.log());
    daemon.terminate(SOON).await;
}

#[tokio::test]
async fn a_replica_is_timed_by_its_master_and_refused_where_that_does_not_tell() {
    let (master, replica) = (RedisServer::start(&FAST).await, RedisServer::start(&FAST).await);
    replicate(&replica, &master).await;
    let pitr = Pitr::new(&[("shop-redis", replica.url())]);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    let mut noted = vec![];
    for n in 0..4 {
        master.cmd::<()>(&["SET", &format!("k{n}"), "v"]).await;
        noted.push((now(), digest(&master).await));
        // Much longer than the time between two samples of the clock.
        tokio::time::sleep(Duration::from_millis(1500)).await;
    }
    master.cmd::<()>(&["SET", "last", "v"]).await;
    for (at, held) in noted.iter().skip(1) {
        let goal = ["--to", &(*at + Duration::from_millis(1400)).to_rfc3339()];
        assert_eq!(held.diff(&restored(&pitr, "redis-server", &goal).await), [""; 0]);
    }
    // Nobody may ask the master any more.
    master.cmd::<()>(&["CONFIG", "SET", "requirepass", "x"]).await;
    replica.cmd::<()>(&["CONFIG", "SET", "masterauth", "x"]).await;
    daemon.terminate(SOON).await;
    let output = pitr.run(&["baseline"]).await.exits(6);
    assert!(output.stderr.contains("does not tell its time"), "{}", output.stderr);
}

/// Makes a server the replica of another one, and waits until it has everything.
async fn replicate(replica: &RedisServer, master: &RedisServer) {
    replica.cmd::<()>(&["REPLICAOF", "127.0.0.1", &master.port().to_string()]).await;
    eventually("the server is a replica", SOON, async || {
        let info: String = replica.cmd(&["INFO", "replication"]).await;
        info.contains("master_link_status:up").then_some(())
    })
    .await;
}
