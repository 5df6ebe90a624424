//! Some keys of an instant come back: into servers, clusters and folders.

use super::harness::{Capture, Kept, digest, endpoint, options_at, restore_and, start_on};
use crate::support::{RedisServer, eventually};
use pitr::clock::Timestamp;
use pitr::engine::{Destination, Expired, Expiry, Keys, Target, TargetOptions, Ttl, open_target};
use pitr::error::{Class, Error};
use pitr::position::Position;
use pitr::record::Cut;
use rstest::rstest;
use std::path::Path;
use std::time::Duration;

const FAST: [&str; 2] = ["--repl-diskless-sync-delay", "0"];
const LIBRARY: &str = "#!lua name=shop\nredis.register_function('f', function() return 1 end)";

fn keys(patterns: &[&str], databases: &[u32], without: &[&str]) -> Keys {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    Keys { patterns: words(patterns), databases: databases.to_vec(), without: words(without) }
}

fn to_server(server: &RedisServer, keys: &Keys, in_place: bool) -> Box<dyn Target> {
    let options = options_at(Destination::Running(endpoint(server)));
    open_target(TargetOptions { keys: keys.clone(), in_place, ..options })
}

fn to_folder(dir: &Path, keys: &Keys, expiry: Expiry) -> Box<dyn Target> {
    let options = options_at(Destination::Folder(dir.to_owned()));
    open_target(TargetOptions { keys: keys.clone(), expiry, ..options })
}

async fn restore(
    target: Box<dyn Target>,
    kept: &Kept,
    end: &Position,
) -> Result<(String, Option<Expired>), Error> {
    let cut = Cut::At(end.clone());
    let (_, check, expired) = restore_and(target, kept, &cut).await?;
    Ok((check, expired))
}

/// A source with carts and other things in several databases, what was captured, and its end.
async fn shop() -> (RedisServer, Kept, Position) {
    let source = RedisServer::start(&FAST).await;
    source.cmd::<()>(&["SET", "cart:old", "in the baseline"]).await;
    let capture = Capture::start(&source, None);
    capture.opened().await;
    for db in [0, 3] {
        let run = async |words: &[&str]| source.cmd_in::<redis::Value>(db, words).await;
        for n in 0..1500 {
            run(&["SET", &format!("filler:{n}"), "x"]).await;
        }
        run(&["HSET", "cart:1", "apple", "2", "pear", "1"]).await;
        run(&["PEXPIREAT", "cart:1", "33000000000123"]).await;
        run(&["RPUSH", "cart:2", "a", "b"]).await;
        run(&["ZADD", "cart:cache:3", "1", "a"]).await;
        run(&["XADD", "user:1", "5-1", "f", "v"]).await;
        run(&["SADD", "user:2", "a", "b"]).await;
    }
    source.cmd::<()>(&["FUNCTION", "LOAD", LIBRARY]).await;
    let end = capture.caught_up(&source).await;
    let kept = capture.stop().await;
    (source, kept, end)
}

/// Leaves in a server of one's own what a choice has.
async fn reduce(server: &RedisServer, has: impl Fn(u32, &str) -> bool) {
    server.cmd::<()>(&["FUNCTION", "FLUSH"]).await;
    for db in [0, 3] {
        let names: Vec<String> = server.cmd_in(db, &["KEYS", "*"]).await;
        for name in names.iter().filter(|name| !has(db, name)) {
            server.cmd_in::<()>(db, &["DEL", name]).await;
        }
    }
}

#[tokio::test]
async fn keys_come_back_by_pattern_database_and_prefix_as_they_were() {
    let (source, kept, end) = shop().await;
    let choice = keys(&["cart:*", "user:[1]"], &[], &["cart:cache:"]);
    let target = RedisServer::start(&[]).await;
    let (check, expired) = restore(to_server(&target, &choice, false), &kept, &end).await.unwrap();
    assert!(
        check.starts_with("7 keys (keys like cart:*, user:[1], without cart:cache:)"),
        "{check}"
    );
    assert_eq!(expired.unwrap().lapsed, Some(0));
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("carts");
    restore(to_folder(&data, &choice, Expiry::default()), &kept, &end).await.unwrap();
    let started = start_on("redis-server", &data).await;
    let third = RedisServer::start(&[]).await;
    restore(to_server(&third, &keys(&[], &[3], &["filler:"]), false), &kept, &end).await.unwrap();

    let has = |name: &str| {
        (name.starts_with("cart:") && !name.starts_with("cart:cache:")) || name == "user:1"
    };
    let only_third = RedisServer::start(&FAST).await;
    only_third.cmd::<()>(&["REPLICAOF", "127.0.0.1", &source.port().to_string()]).await;
    eventually("there is a copy", Duration::from_secs(20), async || {
        only_third.cmd_in::<bool>(3, &["EXISTS", "user:2"]).await.then_some(())
    })
    .await;
    only_third.cmd::<()>(&["REPLICAOF", "NO", "ONE"]).await;
    reduce(&only_third, |db, name| db == 3 && !name.starts_with("filler:")).await;
    reduce(&source, |_, name| has(name)).await;
    let expected = digest(&source).await;
    assert_eq!(expected.diff(&digest(&target).await), [""; 0]);
    assert_eq!(expected.diff(&digest(&started).await), [""; 0]);
    assert_eq!(digest(&only_third).await.diff(&digest(&third).await), [""; 0]);
}

#[tokio::test]
async fn a_target_that_is_not_empty_is_written_into_only_in_place() {
    let (_source, kept, end) = shop().await;
    let choice = keys(&["cart:*"], &[0], &[]);
    let target = RedisServer::start(&[]).await;
    target.cmd::<()>(&["SET", "cart:1", "changed by mistake"]).await;
    target.cmd::<()>(&["SET", "user:1", "newer"]).await;
    let error = restore(to_server(&target, &choice, false), &kept, &end).await.unwrap_err();
    assert_eq!(error.class(), Class::Refused, "{error}");
    assert!(error.to_string().contains("is not empty: it has 2 keys in db0"), "{error}");
    assert_eq!(target.cmd::<String>(&["GET", "cart:1"]).await, "changed by mistake");
    restore(to_server(&target, &choice, true), &kept, &end).await.unwrap();
    assert_eq!(target.cmd::<String>(&["GET", "user:1"]).await, "newer");
    assert_eq!(target.cmd::<String>(&["HGET", "cart:1", "apple"]).await, "2");
    assert_eq!(target.cmd::<u32>(&["DBSIZE"]).await, 5);
    assert_eq!(target.cmd_in::<u32>(3, &["DBSIZE"]).await, 0);
}

#[tokio::test]
async fn keys_come_back_into_a_cluster_of_two() {
    let (_source, kept, end) = shop().await;
    let nodes = [
        RedisServer::start(&["--cluster-enabled", "yes"]).await,
        RedisServer::start(&["--cluster-enabled", "yes"]).await,
    ];
    nodes[0].cmd::<()>(&["CLUSTER", "ADDSLOTSRANGE", "0", "8000"]).await;
    nodes[1].cmd::<()>(&["CLUSTER", "ADDSLOTSRANGE", "8001", "16383"]).await;
    let port = nodes[1].port().to_string();
    nodes[0].cmd::<()>(&["CLUSTER", "MEET", "127.0.0.1", &port]).await;
    for node in &nodes {
        eventually("the cluster is whole", Duration::from_secs(30), async || {
            let info: String = node.cmd(&["CLUSTER", "INFO"]).await;
            (info.contains("cluster_state:ok") && info.contains("cluster_size:2")).then_some(())
        })
        .await;
    }
    let all = keys(&["*"], &[], &[]);
    let error = restore(to_server(&nodes[0], &all, false), &kept, &end).await.unwrap_err();
    assert!(error.to_string().contains("database 0 only"), "{error}");
    let zero = keys(&["*"], &[0], &[]);
    restore(to_server(&nodes[0], &zero, false), &kept, &end).await.unwrap();
    let mut sizes = vec![];
    for node in &nodes {
        sizes.push(node.cmd::<u32>(&["DBSIZE"]).await);
    }
    assert_eq!(sizes.iter().sum::<u32>(), 1506, "{sizes:?}");
    assert!(sizes.iter().all(|size| *size > 100), "{sizes:?}");
}

#[rstest]
#[case::absolute(Ttl::Absolute, &["forever", "kept"])]
#[case::shift(Ttl::Shift, &["forever", "kept", "lapsed"])]
#[case::persist(Ttl::Persist, &["forever", "kept", "lapsed"])]
#[tokio::test]
async fn expiries_of_parts_follow_the_policy(#[case] ttl: Ttl, #[case] expected: &[&str]) {
    let source = RedisServer::start(&FAST).await;
    source.cmd::<()>(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]).await;
    let now_ms = async |server: &RedisServer| {
        let (secs, micros): (i64, i64) = server.cmd(&["TIME"]).await;
        secs * 1000 + micros / 1000
    };
    let capture = Capture::start(&source, None);
    capture.opened().await;
    let begun = now_ms(&source).await;
    let pxat = |ms: i64| (begun + ms).to_string();
    for (key, ms) in [("dead", 100), ("lapsed", 3000), ("kept", 9_000_000)] {
        source.cmd::<()>(&["SET", key, "v", "PXAT", &pxat(ms)]).await;
    }
    source.cmd::<()>(&["SET", "forever", "v"]).await;
    let end = capture.caught_up(&source).await;
    let kept = capture.stop().await;
    tokio::time::sleep(Duration::from_millis(3200)).await;
    let at = |ms: i64| Timestamp::from_micros((begun + ms) * 1000);
    // An instant between the two, and a "now" that leaves an hour to look.
    let expiry = Expiry { ttl, at: at(1000), now: at(3_601_000) };
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("part");
    let all = keys(&["*"], &[], &[]);
    let target = to_folder(&data, &all, expiry);
    let (_, expired) = restore(target, &kept, &end).await.unwrap();
    let expired = expired.unwrap();
    assert_eq!(expired.expired_before, Some(1), "{expired:?}");
    assert_eq!(expired.lapsed, (ttl == Ttl::Absolute).then_some(1));
    let server = start_on("redis-server", &data).await;
    let mut names: Vec<String> = server.cmd(&["KEYS", "*"]).await;
    names.sort();
    assert_eq!(names, expected);
    let found: i64 = server.cmd(&["PEXPIRETIME", "kept"]).await;
    let moved = match ttl {
        Ttl::Absolute => begun + 9_000_000,
        Ttl::Shift => begun + 9_000_000 + 3_600_000,
        Ttl::Persist => -1,
    };
    assert_eq!(found, moved);
}

#[tokio::test]
async fn everything_without_expiries_comes_back_into_a_folder() {
    let (source, kept, end) = shop().await;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("all");
    let expiry = Expiry { ttl: Ttl::Persist, ..Expiry::default() };
    restore(to_folder(&data, &Keys::default(), expiry), &kept, &end).await.unwrap();
    let server = start_on("redis-server", &data).await;
    for db in [0, 3] {
        source.cmd_in::<()>(db, &["PERSIST", "cart:1"]).await;
    }
    assert_eq!(digest(&source).await.diff(&digest(&server).await), [""; 0]);
}
