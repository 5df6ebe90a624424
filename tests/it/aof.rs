//! Redis captured from its append-only files.

use crate::instants::until_windows;
use crate::support::{Daemon, Pitr, RedisServer, eventually};
use chrono::{DateTime, SecondsFormat, Utc};
use pitr::engine::digest::Digest;
use pitr::engine::redis;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const SOON: Duration = Duration::from_mins(1);

/// Each key takes 1 ms to be written into a base, so that a rewrite can be watched.
const OPTIONS: [&str; 8] = [
    "--appendonly",
    "yes",
    "--aof-timestamp-enabled",
    "yes",
    "--appendfsync",
    "always",
    "--rdb-key-save-delay",
    "1000",
];

/// A server, and pitr that captures it from its files.
async fn captured(options: &[&str]) -> (RedisServer, Pitr, Daemon) {
    let server = RedisServer::start(options).await;
    let (pitr, daemon) = capture(&server).await;
    (server, pitr, daemon)
}

async fn capture(server: &RedisServer) -> (Pitr, Daemon) {
    let pitr = Pitr::new(&[("shop-redis", server.url())]);
    let dir = server.datadir().join("appendonlydir");
    pitr.append_config(&format!("capture = \"aof\"\naof_dir = {:?}", dir.to_str().unwrap()));
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    (pitr, daemon)
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
async fn a_rewrite_that_fails_is_no_baseline_and_is_not_waited_for() {
    let (server, pitr, _daemon) = captured(&OPTIONS).await;
    // The next base cannot be put where it belongs.
    let taken = server.datadir().join("appendonlydir/appendonly.aof.2.base.rdb");
    std::fs::create_dir_all(taken.join("x")).unwrap();
    let failed = pitr.run(&["baseline"]).await.exits(3);
    assert!(failed.stderr.contains("BGREWRITEAOF failed"), "{}", failed.stderr);
    std::fs::remove_dir_all(&taken).unwrap();
    pitr.run(&["baseline"]).await.ok();
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
    until_windows_of_another_timeline(&pitr).await;
    let behind = note(&server, &pitr).await;
    let reasons = gaps(&pitr).await;
    assert!(reasons[0].contains("appendonly was off"), "{reasons:?}\n{}", daemon.log());
    comes_back(&pitr, &before, "before").await;
    comes_back(&pitr, &behind, "behind").await;
    let to = within.to_rfc3339_opts(SecondsFormat::Micros, true);
    pitr.run(&["restore", "--to", &to, "--plan"]).await.exits(4);
}

#[tokio::test]
async fn a_restart_hides_no_time_in_which_nothing_was_logged() {
    let (mut server, pitr, daemon) = captured(&OPTIONS).await;
    write(&server, 0).await;
    let before = note(&server, &pitr).await;
    server.cmd::<()>(&["CONFIG", "SET", "appendonly", "no"]).await;
    eventually("it is said", SOON, async || {
        let report = pitr.run(&["windows", "--json"]).await.ok().json();
        (report["sources"][0]["state"] != "streaming").then_some(())
    })
    .await;
    write(&server, 1).await;
    #[expect(clippy::disallowed_methods, reason = "the test stands outside of the program")]
    let within = Utc::now();
    // It starts with what it has logged, in the same files, which have no hole in them.
    server.kill();
    server.restart().await;
    eventually("the gap is known", SOON, async || (!gaps(&pitr).await.is_empty()).then_some(()))
        .await;
    write(&server, 2).await;
    until_windows_of_another_timeline(&pitr).await;
    let behind = note(&server, &pitr).await;
    let reasons = gaps(&pitr).await;
    assert!(reasons[0].contains("appendonly was off"), "{reasons:?}\n{}", daemon.log());
    comes_back(&pitr, &before, "before").await;
    comes_back(&pitr, &behind, "behind").await;
    let to = within.to_rfc3339_opts(SecondsFormat::Micros, true);
    pitr.run(&["restore", "--to", &to, "--plan"]).await.exits(4);
}

#[tokio::test]
async fn a_record_that_a_server_died_in_is_not_mixed_with_the_next_one() {
    let (mut server, pitr, daemon) = captured(&OPTIONS).await;
    write(&server, 0).await;
    let first = note(&server, &pitr).await;
    let dir = server.datadir().join("appendonlydir");
    let log = || {
        let names = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
        let mut logs: Vec<_> =
            names.filter(|p| p.extension().is_some_and(|e| e == "aof")).collect();
        logs.sort();
        logs.pop().unwrap()
    };
    server.kill();
    // What a write leaves that is broken off: the head of a record of the length that the next
    // one has.
    let torn = b"*3\r\n$3\r\nSET\r\n$4\r\ntorn\r\n$900\r\nxxxxxxx";
    let whole = std::fs::metadata(log()).unwrap().len();
    std::io::Write::write_all(
        &mut std::fs::OpenOptions::new().append(true).open(log()).unwrap(),
        torn,
    )
    .unwrap();
    // Long enough for a reader that looks every few ms.
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.restart().await;
    assert_eq!(std::fs::metadata(log()).unwrap().len(), whole, "the server takes it out");
    server.cmd::<()>(&["SET", "behind", &"y".repeat(2000)]).await;
    write(&server, 1).await;
    let second = note(&server, &pitr).await;
    assert_eq!(gaps(&pitr).await, [""; 0], "{}", daemon.log());
    comes_back(&pitr, &first, "first").await;
    comes_back(&pitr, &second, "second").await;
}

#[tokio::test]
async fn a_log_that_lost_what_was_captured_is_a_gap() {
    let (mut server, pitr, daemon) = captured(&OPTIONS).await;
    write(&server, 0).await;
    let first = note(&server, &pitr).await;
    server.cmd::<()>(&["SET", "lost", "1"]).await;
    until_known(&pitr).await;
    server.kill();
    let dir = server.datadir().join("appendonlydir");
    let log = dir.join("appendonly.aof.1.incr.aof");
    let file = std::fs::OpenOptions::new().write(true).open(&log).unwrap();
    // What a power cut takes: the last record, in its middle.
    file.set_len(file.metadata().unwrap().len() - 7).unwrap();
    server.restart().await;
    eventually("the gap is known", SOON, async || (!gaps(&pitr).await.is_empty()).then_some(()))
        .await;
    write(&server, 1).await;
    until_windows_of_another_timeline(&pitr).await;
    let second = note(&server, &pitr).await;
    let reasons = gaps(&pitr).await;
    assert!(reasons[0].contains("lost writes"), "{reasons:?}\n{}", daemon.log());
    comes_back(&pitr, &first, "first").await;
    comes_back(&pitr, &second, "second").await;
    pitr.run(&["verify"]).await.ok();
}

#[tokio::test]
async fn a_rewrite_under_load_loses_nothing_and_mixes_nothing() {
    let (server, pitr, daemon) = captured(&OPTIONS).await;
    let mut noted = vec![];
    for round in 0..2 {
        let (url, stop) = (server.url(), std::sync::Arc::new(AtomicBool::new(false)));
        let stopped = std::sync::Arc::clone(&stop);
        let writer = tokio::spawn(async move {
            let client = ::redis::Client::open(url).unwrap();
            let mut conn = client.get_multiplexed_async_connection().await.unwrap();
            let mut n = 0_u64;
            while !stopped.load(Ordering::Relaxed) {
                let mut pipe = ::redis::pipe();
                for _ in 0..100 {
                    pipe.cmd("SET").arg(format!("load:{}", n % 500)).arg(n).ignore();
                    pipe.cmd("INCR").arg("count").ignore();
                    n += 1;
                }
                let () = pipe.query_async(&mut conn).await.unwrap();
            }
            n
        });
        rewrite(&server).await;
        rewrite(&server).await;
        stop.store(true, Ordering::Relaxed);
        assert!(writer.await.unwrap() > 0, "round {round}");
        noted.push(note(&server, &pitr).await);
    }
    assert_eq!(gaps(&pitr).await, [""; 0], "{}", daemon.log());
    for (round, noted) in noted.iter().enumerate() {
        comes_back(&pitr, noted, &format!("round-{round}")).await;
    }
}

#[tokio::test]
async fn a_window_begins_where_records_are_timed_and_not_with_an_old_base() {
    let options: Vec<&str> =
        OPTIONS.into_iter().filter(|o| *o != "--aof-timestamp-enabled").collect();
    let options: Vec<&str> =
        options.iter().enumerate().filter(|(i, _)| *i != 2).map(|(_, o)| *o).collect();
    assert_eq!(options.len(), OPTIONS.len() - 2, "{options:?}");
    let server = RedisServer::start(&options).await;
    write(&server, 0).await;
    // The base is a second older than what follows it, and a second later pitr comes.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    #[expect(clippy::disallowed_methods, reason = "the test stands outside of the program")]
    let before = Utc::now();
    let (pitr, _daemon) = capture(&server).await;
    let report = pitr.run(&["windows", "--json"]).await.ok().json();
    let from: DateTime<Utc> =
        report["sources"][0]["windows"][0]["from"].as_str().unwrap().parse().unwrap();
    assert!(from > before, "nothing says what was written at {from}, before {before}");
    let noted = note(&server, &pitr).await;
    comes_back(&pitr, &noted, "now").await;
    let to = before.to_rfc3339_opts(SecondsFormat::Micros, true);
    pitr.run(&["restore", "--to", &to, "--plan"]).await.exits(4);
    let to = from.to_rfc3339_opts(SecondsFormat::Micros, true);
    comes_back(&pitr, &(to.parse().unwrap(), noted.1), "the first instant").await;
}

async fn until_windows_of_another_timeline(pitr: &Pitr) {
    eventually("the new base is a baseline", SOON, async || {
        let report = pitr.run(&["windows", "--json"]).await.ok().json();
        let windows = report["sources"][0]["windows"].as_array().unwrap().clone();
        windows.iter().any(|window| window["timeline"] != 1).then_some(())
    })
    .await;
}
