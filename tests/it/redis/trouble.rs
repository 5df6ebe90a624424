//! Connections that break, consumers that stall, accounts that may not.

use super::harness::{
    Capture, SOON, Way, baseline, digest, endpoint, options_at, patient, restore, source,
};
use crate::support::{RedisServer, eventually};
use pitr::engine::{Destination, Endpoint, Secret, Source, open_target};
use pitr::error::Class;
use pitr::record::{Captured, Continuity, Cut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

const FAST: [&str; 2] = ["--repl-diskless-sync-delay", "0"];

#[tokio::test]
async fn a_connection_cut_within_a_value_is_taken_up_before_its_record() {
    let backlog = ["--repl-backlog-size", "200mb"];
    let server = RedisServer::start(&[FAST, backlog].concat()).await;
    let capture = Capture::start_at(endpoint(&server), None, |captured| {
        // A slow consumer, so that the value is cut in its middle.
        let large = matches!(captured, Captured::Chunk(chunk) if chunk.bytes.len() > 1 << 19);
        Duration::from_millis(if large { 20 } else { 0 })
    });
    capture.opened().await;
    server.cmd_in::<()>(3, &["SET", "small", "1"]).await;
    let before = capture.caught_up(&server).await;
    let mut conn = patient(&server).await;
    let value: Vec<u8> = (0..60 << 20).map(|i: u32| (i % 251) as u8).collect();
    let () = redis::pipe()
        .cmd("SELECT")
        .arg(3)
        .ignore()
        .cmd("SET")
        .arg("big")
        .arg(&value)
        .ignore()
        .query_async(&mut conn)
        .await
        .unwrap();
    eventually("a part of the value is here", SOON, async || {
        (capture.kept().bytes.len() > 3 << 20).then_some(())
    })
    .await;
    let _: u32 = server.cmd(&["CLIENT", "KILL", "TYPE", "replica"]).await;
    let (mut first, error) = capture.ended().await;
    assert_eq!(error.class(), Class::Unavailable, "{error}");
    assert_eq!(first.whole.as_ref().map(|w| (w.offset, w.db)), Some((before.offset, 3)));
    assert!(first.bytes.len() < 60 << 20, "cut after {} bytes", first.bytes.len());
    let capture = Capture::start(&server, first.whole.clone());
    capture.opened().await;
    let end = capture.caught_up(&server).await;
    let second = capture.stop().await;
    assert_eq!(second.opened[0].1, Continuity::Continues);
    // Together they are the stream, and it can be restored.
    let kept_bytes = usize::try_from(before.offset - first.start().offset).unwrap();
    first.bytes.truncate(kept_bytes);
    first.bytes.extend_from_slice(&second.bytes);
    let restored = Way::Server.restore(&first, &Cut::At(end)).await.unwrap();
    assert_eq!(digest(&server).await.diff(&digest(&restored.server).await), [""; 0]);
}

#[tokio::test]
async fn a_stalled_consumer_does_not_cost_the_connection() {
    let timeouts = ["--repl-timeout", "3", "--repl-ping-replica-period", "1"];
    let server = RedisServer::start(&[&FAST[..], &timeouts].concat()).await;
    let stalled = AtomicBool::new(false);
    let capture = Capture::start_at(endpoint(&server), None, move |captured| {
        let first =
            matches!(captured, Captured::Chunk(_)) && !stalled.swap(true, Ordering::Relaxed);
        Duration::from_secs(if first { 8 } else { 0 })
    });
    capture.opened().await;
    let mut conn = patient(&server).await;
    for i in 0..40 {
        let key = format!("k{i}");
        let value = vec![b'x'; 1 << 20];
        let () = redis::cmd("SET").arg(key).arg(value).query_async(&mut conn).await.unwrap();
    }
    let info: String = server.cmd(&["INFO", "replication"]).await;
    assert!(info.contains("connected_slaves:1"), "{info}");
    capture.caught_up(&server).await;
    let kept = capture.stop().await;
    assert_eq!((kept.opened.len(), kept.baselines.len(), kept.records), (1, 1, 40));
}

#[tokio::test]
async fn an_account_needs_no_more_than_its_documented_rights() {
    let server = RedisServer::start(&FAST).await;
    let rights = "+ping +psync +replconf +role +time +info +multi +exec +config|get";
    let words = [vec!["ACL", "SETUSER", "pitr", "on", ">s3cret"], rights.split(' ').collect()];
    server.cmd::<()>(&words.concat()).await;
    let mut at = endpoint(&server);
    (at.user, at.password) = ("pitr".into(), Secret::new("s3cret"));
    let capture = Capture::start_at(at.clone(), None, |_| Duration::ZERO);
    capture.opened().await;
    server.cmd::<()>(&["SET", "a", "1"]).await;
    capture.caught_up(&server).await;
    eventually("clock samples arrive", SOON, async || {
        (!capture.kept().marks.is_empty()).then_some(())
    })
    .await;
    capture.stop().await;
    let (out, mut pieces) = mpsc::channel(64);
    source(at.clone()).baseline(out).await.unwrap();
    assert!(pieces.recv().await.is_some());
    // One right less, each time.
    for right in rights.split(' ').filter(|right| !matches!(*right, "+config|get" | "+ping")) {
        let without = right.replacen('+', "-", 1);
        server.cmd::<()>(&["ACL", "SETUSER", "pitr", &without]).await;
        let error = refusal(at.clone()).await;
        assert_eq!(error.class(), Class::Usage, "{right}: {error}");
        assert!(error.hint_text().is_some_and(|hint| hint.contains(right)), "{error:?}");
        server.cmd::<()>(&["ACL", "SETUSER", "pitr", right]).await;
    }
    at.password = Secret::new("wr0ng");
    let error = refusal(at).await;
    assert_eq!(error.class(), Class::Usage, "{error}");
    assert!(!format!("{error:?}").contains("wr0ng"), "{error:?}");
}

/// Why a capture ends before it begins.
async fn refusal(at: Endpoint) -> pitr::error::Error {
    let (out, _captured) = mpsc::channel(64);
    let (_durable, seen) = watch::channel(None);
    let at = source(at);
    tokio::time::timeout(SOON, at.tail(None, out, seen)).await.unwrap().unwrap_err()
}

#[tokio::test]
async fn a_replica_without_its_master_is_no_source() {
    let server = RedisServer::start(&FAST).await;
    server.cmd::<()>(&["REPLICAOF", "127.0.0.1", "1"]).await;
    let error = refusal(endpoint(&server)).await;
    assert_eq!(error.class(), Class::Unavailable, "{error}");
    assert!(error.to_string().contains("its master 127.0.0.1:1 does not tell its time"), "{error}");
    assert!(error.hint_text().is_some_and(|hint| hint.contains("capture the master")), "{error:?}");
}

#[tokio::test]
async fn a_replica_is_a_source_as_good_as_its_master() {
    let master = RedisServer::start(&FAST).await;
    master.cmd_in::<()>(6, &["SET", "before", "1"]).await;
    let replica = RedisServer::start(&FAST).await;
    replica.cmd::<()>(&["REPLICAOF", "127.0.0.1", &master.port().to_string()]).await;
    eventually("the replica has its copy", SOON, async || {
        let info: String = replica.cmd(&["INFO", "replication"]).await;
        info.contains("master_link_status:up").then_some(())
    })
    .await;
    master.cmd_in::<()>(6, &["SET", "a", "1"]).await;
    eventually("the replica is in step", SOON, async || {
        replica.cmd_in::<bool>(6, &["EXISTS", "a"]).await.then_some(())
    })
    .await;
    // Its stream is that of its master, which does not select the database anew.
    let capture = Capture::start(&replica, None);
    let at = capture.opened().await;
    assert_eq!(at.db, 6);
    let (taken, _) = baseline(&replica).await;
    assert_eq!((taken.position.db, &taken.position.log), (6, &at.log));
    master.cmd_in::<()>(6, &["SET", "b", "1"]).await;
    let offset: u64 = {
        let role: Vec<redis::Value> = master.cmd(&["ROLE"]).await;
        redis::from_redis_value_ref(&role[1]).unwrap()
    };
    let end = eventually("the capture has it", SOON, async || {
        capture.kept().whole.clone().filter(|whole| whole.offset >= offset)
    })
    .await;
    eventually("clock samples arrive", SOON, async || {
        capture.kept().marks.iter().any(|mark| mark.offset >= offset).then_some(())
    })
    .await;
    let kept = capture.stop().await;
    let restored = Way::Server.restore(&kept, &Cut::At(end)).await.unwrap();
    assert_eq!(digest(&master).await.diff(&digest(&restored.server).await), [""; 0]);
}

#[tokio::test]
async fn a_target_with_passwords_and_other_ways_to_load_is_restored() {
    let server = RedisServer::start(&FAST).await;
    let capture = Capture::start(&server, None);
    capture.opened().await;
    server.cmd_in::<()>(1, &["SET", "a", "1"]).await;
    let end = capture.caught_up(&server).await;
    let kept = capture.stop().await;
    let more = ["--repl-diskless-load", "swapdb", "--appendonly", "yes"];
    let target = RedisServer::start(&more).await;
    target.cmd::<()>(&["CONFIG", "SET", "masterauth", "s3cret"]).await;
    target.cmd::<()>(&["CONFIG", "SET", "requirepass", "s3cret"]).await;
    let mut at = endpoint(&target);
    at.password = Secret::new("s3cret");
    let mut options = options_at(Destination::Running(at));
    options.listen = Some("0.0.0.0:0".parse().unwrap());
    let (_, check) = restore(open_target(options), &kept, &Cut::At(end)).await.unwrap();
    assert!(check.contains("it held 1 keys in 1 databases"), "{check}");
    let client = redis::Client::open(format!("redis://:s3cret@127.0.0.1:{}/1", target.port()));
    let mut conn = client.unwrap().get_multiplexed_async_connection().await.unwrap();
    let value: String = redis::cmd("GET").arg("a").query_async(&mut conn).await.unwrap();
    assert_eq!(value, "1");
}
