//! What is captured, from the first full copy to every way in which a stream can end.

use super::harness::{Capture, SOON, baseline, endpoint, patient};
use crate::support::{RedisServer, eventually};
use pitr::record::{Captured, Continuity};
use rstest::rstest;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The source of most tests, without the delay of a diskless full copy.
const FAST: [&str; 2] = ["--repl-diskless-sync-delay", "0"];

#[rstest]
#[case::diskless("yes")]
#[case::from_disk("no")]
#[tokio::test]
async fn a_first_capture_begins_with_a_full_copy(
    #[values("redis-server", "redis-server-8", "valkey-server")] program: &str,
    #[case] diskless: &str,
) {
    let args = [&FAST[..], &["--repl-diskless-sync", diskless]].concat();
    let server = RedisServer::start_program(program, &args).await;
    server.cmd_in::<()>(3, &["SET", "before", "1"]).await;
    let capture = Capture::start(&server, None);
    let at = capture.opened().await;
    server.cmd_in::<()>(5, &["SET", "behind", "2"]).await;
    let end = capture.caught_up(&server).await;
    let kept = capture.stop().await;
    assert_eq!(kept.opened, [(at.clone(), Continuity::Begins)]);
    let (taken, rdb) = &kept.baselines[0];
    assert_eq!(taken.position, at);
    assert_eq!(taken.server.version, kept.server.version);
    let rdb = rdb.as_ref().unwrap();
    let magic = if program == "valkey-server" { "VALKEY" } else { "REDIS00" };
    assert!(rdb.starts_with(magic.as_bytes()), "{rdb:?}");
    assert_eq!(rdb[rdb.len() - 9], 0xFF);
    let expected =
        b"*2\r\n$6\r\nSELECT\r\n$1\r\n5\r\n*3\r\n$3\r\nSET\r\n$6\r\nbehind\r\n$1\r\n2\r\n";
    let stream = String::from_utf8_lossy(&kept.bytes).replace("ping", "PING");
    let stream = stream.replace("*1\r\n$4\r\nPING\r\n", "");
    assert_eq!(stream, String::from_utf8_lossy(expected));
    assert_eq!((kept.records, end.db), (1, 5));
    assert_eq!(end.log, at.log);
}

#[rstest]
#[tokio::test]
async fn a_baseline_stands_in_the_stream_without_stopping_it(
    #[values("redis-server", "redis-server-8", "valkey-server")] program: &str,
) {
    let server = RedisServer::start_program(program, &FAST).await;
    let capture = Capture::start(&server, None);
    let begun = capture.opened().await;
    server.cmd_in::<()>(7, &["SET", "a", "1"]).await;
    let middle = capture.caught_up(&server).await;
    let (taken, rdb) = baseline(&server).await;
    assert_eq!(taken.position.log, begun.log);
    assert!(taken.position.offset >= middle.offset);
    assert!(rdb.starts_with(b"REDIS") || rdb.starts_with(b"VALKEY"));
    server.cmd::<()>(&["SET", "b", "1"]).await;
    capture.caught_up(&server).await;
    let kept = capture.stop().await;
    assert_eq!((kept.opened.len(), kept.records), (1, 2));
}

#[rstest]
#[tokio::test]
async fn a_capture_goes_on_where_the_archive_ends(
    #[values("redis-server", "redis-server-8", "valkey-server")] program: &str,
) {
    let server = RedisServer::start_program(program, &FAST).await;
    let capture = Capture::start(&server, None);
    capture.opened().await;
    server.cmd_in::<()>(9, &["SET", "a", "1"]).await;
    let end = capture.caught_up(&server).await;
    capture.stop().await;
    assert_eq!(end.db, 9);
    server.cmd_in::<()>(9, &["SET", "b", "2"]).await;
    let capture = Capture::start(&server, Some(end.clone()));
    assert_eq!(capture.opened().await, end);
    // No SELECT comes again; the database is known from the position.
    assert_eq!(capture.caught_up(&server).await.db, 9);
    let kept = capture.stop().await;
    assert_eq!(kept.opened, [(end, Continuity::Continues)]);
    assert!(kept.baselines.is_empty());
    assert!(kept.bytes.starts_with(b"*3\r\n$3\r\nSET\r\n$1\r\nb\r\n"));
}

#[rstest]
#[tokio::test]
async fn a_source_that_restarts_without_its_history_is_broken_off(
    #[values("redis-server", "redis-server-8", "valkey-server")] program: &str,
) {
    let mut server = RedisServer::start_program(program, &FAST).await;
    let capture = Capture::start(&server, None);
    capture.opened().await;
    server.cmd::<()>(&["SET", "a", "1"]).await;
    let end = capture.caught_up(&server).await;
    server.kill();
    let (kept, error) = capture.ended().await;
    assert_eq!(kept.whole, Some(end.clone()));
    assert_eq!(error.class().exit_code(), 3, "{error}");
    server.restart().await;
    let capture = Capture::start(&server, Some(end));
    let at = capture.opened().await;
    let kept = capture.stop().await;
    let Continuity::Broken(reason) = &kept.opened[0].1 else { panic!("{:?}", kept.opened) };
    assert!(reason.contains("another history") && reason.contains(&at.log), "{reason}");
    assert_eq!(kept.baselines[0].0.position, at);
}

#[rstest]
#[tokio::test]
async fn a_backlog_that_was_overrun_is_named_with_its_offsets(
    #[values("redis-server", "redis-server-8", "valkey-server")] program: &str,
) {
    let server = RedisServer::start_program(
        program,
        &[&FAST[..], &["--repl-backlog-size", "16kb"]].concat(),
    )
    .await;
    let capture = Capture::start(&server, None);
    capture.opened().await;
    server.cmd::<()>(&["SET", "a", "1"]).await;
    let end = capture.caught_up(&server).await;
    capture.stop().await;
    for _ in 0..4 {
        server.cmd::<()>(&["SET", "a", &"x".repeat(30_000)]).await;
    }
    let capture = Capture::start(&server, Some(end.clone()));
    let at = capture.opened().await;
    let kept = capture.stop().await;
    assert_eq!(at.log, end.log);
    let Continuity::Broken(reason) = &kept.opened[0].1 else { panic!("{:?}", kept.opened) };
    assert!(reason.contains("backlog of 16384 bytes"), "{reason}");
    assert!(reason.contains(&format!("back to offset {}", end.offset)), "{reason}");
}

#[rstest]
#[tokio::test]
async fn a_promoted_replica_goes_on_under_its_new_id(
    #[values("redis-server", "redis-server-8", "valkey-server")] program: &str,
) {
    let master = RedisServer::start_program(program, &FAST).await;
    let replica = RedisServer::start_program(program, &FAST).await;
    master.cmd_in::<()>(2, &["SET", "a", "1"]).await;
    replica.cmd::<()>(&["REPLICAOF", "127.0.0.1", &master.port().to_string()]).await;
    eventually("the replica is in step", SOON, async || {
        let info: String = replica.cmd(&["INFO", "replication"]).await;
        info.contains("master_link_status:up").then_some(())
    })
    .await;
    let capture = Capture::start(&master, None);
    capture.opened().await;
    master.cmd_in::<()>(2, &["SET", "b", "1"]).await;
    let end = capture.caught_up(&master).await;
    capture.stop().await;
    eventually("the replica has it", SOON, async || {
        replica.cmd_in::<bool>(2, &["EXISTS", "b"]).await.then_some(())
    })
    .await;
    replica.cmd::<()>(&["REPLICAOF", "NO", "ONE"]).await;
    replica.cmd_in::<()>(4, &["SET", "c", "1"]).await;
    let capture = Capture::start(&replica, Some(end.clone()));
    assert_eq!(capture.opened().await, end);
    let last = capture.caught_up(&replica).await;
    let kept = capture.stop().await;
    assert_eq!(kept.opened[0].1, Continuity::Continues);
    assert_eq!(kept.logs.len(), 1);
    assert_ne!(kept.logs[0].log, end.log);
    assert_eq!((kept.logs[0].offset, kept.logs[0].db), (end.offset, end.db));
    assert_eq!((&last.log, last.db), (&kept.logs[0].log, 4));
}

#[tokio::test]
async fn wait_on_the_source_means_durable_in_the_archive() {
    let server = RedisServer::start(&FAST).await;
    let capture = Capture::start(&server, None);
    capture.opened().await;
    let mut conn = patient(&server).await;
    let wait = |timeout: &str| {
        let mut pipe = redis::pipe();
        pipe.cmd("SET").arg("a").arg(1).ignore().cmd("WAIT").arg(1).arg(timeout);
        pipe
    };
    let (acknowledged,): (u32,) = wait("1500").query_async(&mut conn).await.unwrap();
    assert_eq!(acknowledged, 0, "received is not durable");
    let begun = std::time::Instant::now();
    let durable = capture.durable.clone();
    let making_durable = async {
        loop {
            let whole = capture.kept().whole.clone();
            durable.send_replace(whole);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let acknowledged: (u32,) = tokio::select! {
        result = async { wait("5000").query_async(&mut conn).await } => result.unwrap(),
        () = making_durable => unreachable!("an endless loop"),
    };
    assert_eq!(acknowledged, (1,));
    assert!(begun.elapsed().as_millis() < 900, "not only with the next second's: {begun:?}");
    // A position of another history is never acknowledged.
    let mut elsewhere = capture.kept().whole.clone().unwrap();
    elsewhere.log = "0".repeat(40);
    elsewhere.offset += 1 << 30;
    capture.durable.send_replace(Some(elsewhere));
    let (acknowledged,): (u32,) = wait("1500").query_async(&mut conn).await.unwrap();
    assert_eq!(acknowledged, 0);
    capture.stop().await;
}

#[tokio::test]
async fn the_time_index_says_what_had_happened_by_when() {
    let server = RedisServer::start(&FAST).await;
    // The consumer stalls once, so that samples run ahead of the bytes.
    let stalled = AtomicBool::new(false);
    let capture = Capture::start_at(endpoint(&server), None, move |captured| {
        let first =
            matches!(captured, Captured::Chunk(_)) && !stalled.swap(true, Ordering::Relaxed);
        Duration::from_secs(u64::from(first))
    });
    capture.opened().await;
    let mut conn = server.conn().await;
    // Every value is the server's clock a moment before it was written.
    for _ in 0..300 {
        let (secs, micros): (i64, i64) = redis::cmd("TIME").query_async(&mut conn).await.unwrap();
        let now = format!("{:020}", secs * 1_000_000 + micros);
        let () = redis::cmd("SET").arg("t").arg(now).query_async(&mut conn).await.unwrap();
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    capture.caught_up(&server).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let kept = capture.stop().await;
    let text = String::from_utf8_lossy(&kept.bytes).into_owned();
    let writes: Vec<(u64, i64)> = text
        .match_indices("$20\r\n")
        .map(|(i, _)| {
            let end = kept.start().offset + i as u64 + 27;
            (end, text[i + 5..i + 25].parse().unwrap())
        })
        .collect();
    assert_eq!(writes.len(), 300);
    assert!(kept.marks.len() >= 9, "{} marks", kept.marks.len());
    assert!(kept.alive >= 2, "an idle source is known to be idle");
    for mark in &kept.marks {
        let before = writes.partition_point(|(end, _)| *end <= mark.offset);
        let (inside, outside) = writes.split_at(before);
        // The clock of a write was read before it was written, and after the one before it was.
        if let Some((_, at)) = inside.last() {
            assert!(*at <= mark.at.as_micros(), "{mark:?} has a write of {at} before it");
        }
        if let Some((_, at)) = outside.get(1) {
            assert!(*at >= mark.at.as_micros(), "{mark:?} has a write before {at} behind it");
        }
    }
    assert!(kept.skew_micros.abs() < 50_000, "{} µs on one host", kept.skew_micros);
}

#[tokio::test]
async fn a_huge_value_streams_through_while_acknowledgements_go_on() {
    let server = RedisServer::start(&FAST).await;
    let capture = Capture::start(&server, None);
    capture.opened().await;
    let mut conn = patient(&server).await;
    let value = vec![b'v'; 100 << 20];
    let () = redis::cmd("SET").arg("big").arg(&value).query_async(&mut conn).await.unwrap();
    let end = capture.caught_up(&server).await;
    let kept = capture.stop().await;
    assert_eq!(kept.records, 1);
    assert!(kept.chunks >= 50, "{} chunks", kept.chunks);
    assert!(end.offset > kept.start().offset + (100 << 20));
    assert!(kept.bytes.len() > 100 << 20);
}
