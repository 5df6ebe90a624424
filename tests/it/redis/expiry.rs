//! What becomes of the times at which keys and fields expire.

use super::harness::{Capture, Kept, Restored, Way, digest, folder_with, patient, server_with};
use super::harness::{restore_and, start_on};
use crate::support::RedisServer;
use pitr::clock::Timestamp;
use pitr::engine::{Expired, Expiry, Ttl};
use pitr::error::{Class, Error};
use pitr::position::Position;
use pitr::record::Cut;
use redis::{Value, cmd};
use rstest::rstest;
use std::collections::BTreeMap;
use std::time::Duration;

const FAST: [&str; 4] = ["--repl-diskless-sync-delay", "0", "--hz", "100"];

/// Half a day, and some ms.
const BY_MS: i64 = 43_200_123;

/// Expiries by database, key and field; that of the key itself has no field.
type Expiries = BTreeMap<(u32, String, String), i64>;

async fn expiries(server: &RedisServer) -> Expiries {
    let mut found = BTreeMap::new();
    let mut conn = patient(server).await;
    for db in 0..12 {
        let () = cmd("SELECT").arg(db).query_async(&mut conn).await.unwrap();
        let keys: Vec<String> = cmd("KEYS").arg("*").query_async(&mut conn).await.unwrap();
        for key in keys {
            let at: i64 = cmd("PEXPIRETIME").arg(&key).query_async(&mut conn).await.unwrap();
            found.insert((db, key.clone(), String::new()), at);
            let kind: String = cmd("TYPE").arg(&key).query_async(&mut conn).await.unwrap();
            if kind != "hash" || !has_field_expiries(server).await {
                continue;
            }
            let fields: Vec<String> = cmd("HKEYS").arg(&key).query_async(&mut conn).await.unwrap();
            let mut ask = cmd("HPEXPIRETIME");
            ask.arg(&key).arg("FIELDS").arg(fields.len()).arg(&fields);
            let at: Vec<i64> = ask.query_async(&mut conn).await.unwrap();
            found.extend(fields.into_iter().map(|f| (db, key.clone(), f)).zip(at));
        }
    }
    found
}

/// Drops all expiries and digests what is left.
async fn content(server: &RedisServer) -> pitr::engine::digest::Digest {
    let mut conn = patient(server).await;
    for ((db, key, field), at) in expiries(server).await {
        if at >= 0 {
            let () = cmd("SELECT").arg(db).query_async(&mut conn).await.unwrap();
            let mut drop = cmd(if field.is_empty() { "PERSIST" } else { "HPERSIST" });
            drop.arg(&key);
            if !field.is_empty() {
                drop.arg("FIELDS").arg(1).arg(&field);
            }
            let _: Value = drop.query_async(&mut conn).await.unwrap();
        }
    }
    digest(server).await
}

async fn has_field_expiries(server: &RedisServer) -> bool {
    let known: Vec<Value> = server.cmd(&["COMMAND", "INFO", "HPEXPIRETIME"]).await;
    known != [Value::Nil]
}

/// Keys of every type, with and without expiries, some of them large enough to be kept in another
/// form; they are in the baseline, or come afterwards.
async fn fill(server: &RedisServer, prefix: &str, at: i64) {
    let mut conn = patient(server).await;
    let key = |name: &str| format!("{prefix}{name}");
    for db in [0, 3, 11] {
        let () = cmd("SELECT").arg(db).query_async(&mut conn).await.unwrap();
        let long = "abc".repeat(5000);
        let set = |name: &str, value: &str| cmd("SET").arg(key(name)).arg(value).to_owned();
        let mut all = vec![
            set("plain", "v"),
            set("number", "12345"),
            set("long", &long),
            set("expiring", &long).arg("PXAT").arg(at + 1).to_owned(),
            set("seconds", "v").arg("EXAT").arg(at / 1000).to_owned(),
            set("from-now", "v").arg("EX").arg(1_000_000).to_owned(),
            cmd("SETEX").arg(key("setex")).arg(2_000_000).arg("PXAT").to_owned(),
        ];
        for (add, name) in [("RPUSH", "list"), ("SADD", "set"), ("SADD", "ints"), ("PFADD", "hll")]
        {
            for count in [3, 3000] {
                let mut command = cmd(add);
                command.arg(key(&format!("{name}{count}")));
                for n in 0..count {
                    let word = if name == "ints" { n.to_string() } else { format!("element {n}") };
                    command.arg(word);
                }
                all.push(command);
            }
        }
        for count in [3, 3000] {
            let (mut zset, mut hash) = (cmd("ZADD"), cmd("HSET"));
            zset.arg(key(&format!("zset{count}")));
            hash.arg(key(&format!("hash{count}")));
            for n in 0..count {
                zset.arg(f64::from(n) / 3.0).arg(format!("member {n}"));
                hash.arg(format!("field {n}")).arg(n);
            }
            all.extend([zset, hash]);
        }
        for id in 1..300 {
            all.push(
                cmd("XADD").arg(key("stream")).arg(format!("{id}-1")).arg("f").arg(id).to_owned(),
            );
        }
        all.push(cmd("XGROUP").arg("CREATE").arg(key("stream")).arg("g").arg("0").to_owned());
        all.push(
            cmd("XCLAIM")
                .arg(key("stream"))
                .arg("g")
                .arg("c")
                .arg(0)
                .arg("1-1")
                .arg("TIME")
                .arg(1_700_000_000_000_i64)
                .arg("RETRYCOUNT")
                .arg(2)
                .arg("FORCE")
                .arg("JUSTID")
                .to_owned(),
        );
        for (n, name) in ["list3", "set3000", "zset3", "stream", "hash3000"].iter().enumerate() {
            all.push(cmd("PEXPIREAT").arg(key(name)).arg(at + 7 * n as i64).to_owned());
        }
        all.push(cmd("COPY").arg(key("list3")).arg(key("copied")).to_owned());
        if has_field_expiries(server).await {
            for name in ["hash3", "hash3000"] {
                for (n, word) in [(0, "HPEXPIREAT"), (2, "HPEXPIREAT"), (1, "HEXPIRE")] {
                    let when = if word == "HEXPIRE" { 3_000_000 } else { at + 1000 + n };
                    all.push(
                        cmd(word)
                            .arg(key(name))
                            .arg(when)
                            .arg("FIELDS")
                            .arg(1)
                            .arg(format!("field {n}"))
                            .to_owned(),
                    );
                }
            }
        }
        for command in all {
            let _: Value = command.query_async(&mut conn).await.unwrap();
        }
    }
}

async fn restore(
    program: &str,
    way: Way,
    kept: &Kept,
    cut: &Cut,
    expiry: Expiry,
) -> Result<(Restored, Expired), Error> {
    match way {
        Way::Server => {
            let server = RedisServer::start_program(program, &FAST).await;
            let target = server_with(&server, expiry);
            let (applied, check, expired) = restore_and(target, kept, cut).await?;
            Ok((Restored::new(server, applied, check, None), expired.unwrap()))
        }
        Way::Folder => {
            let dir = tempfile::tempdir().unwrap();
            let data = dir.path().join("shop-redis");
            let target = folder_with(&data, expiry);
            let (applied, check, expired) = restore_and(target, kept, cut).await?;
            let server = start_on(program, &data).await;
            Ok((Restored::new(server, applied, check, Some(dir)), expired.unwrap()))
        }
    }
}

/// The clock of a server, in ms.
async fn now_ms(server: &RedisServer) -> i64 {
    let (secs, micros): (i64, i64) = server.cmd(&["TIME"]).await;
    secs * 1000 + micros / 1000
}

fn at(ms: i64) -> Timestamp {
    Timestamp::from_micros(ms * 1000)
}

#[rstest]
#[case::into_a_server(Way::Server)]
#[case::into_a_folder(Way::Folder)]
#[tokio::test]
async fn shift_moves_every_expiry_by_the_same_time_and_nothing_else(
    #[values("redis-server", "redis-server-8", "valkey-server")] program: &str,
    #[case] way: Way,
) {
    let source = RedisServer::start_program(program, &FAST).await;
    let far = 33_000_000_000_000;
    fill(&source, "before ", far).await;
    let capture = Capture::start(&source, None);
    capture.opened().await;
    fill(&source, "after ", far).await;
    let end = capture.caught_up(&source).await;
    let kept = capture.stop().await;
    let expected: Expiries = expiries(&source)
        .await
        .into_iter()
        .map(|(what, at)| (what, if at < 0 { at } else { at + BY_MS }))
        .collect();
    assert!(expected.values().filter(|at| **at >= 0).count() > 40, "{expected:?}");
    let then = now_ms(&source).await;
    let expiry = Expiry { ttl: Ttl::Shift, at: at(then), now: at(then + BY_MS) };
    let (restored, expired) = restore(program, way, &kept, &Cut::At(end), expiry).await.unwrap();
    assert_eq!(expiries(&restored.server).await, expected);
    assert_eq!(expired.shift_ms, Some(BY_MS));
    assert_eq!(expired.unknown_commands, [""; 0]);
    assert_eq!(content(&source).await.diff(&content(&restored.server).await), [""; 0]);
}

/// A source whose keys expire around an instant: what was captured, the instant, and its place.
async fn expiring(program: &str) -> (Kept, i64, Position) {
    let source = RedisServer::start_program(program, &FAST).await;
    // What has expired stays until somebody looks at it.
    source.cmd::<()>(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]).await;
    let begun = now_ms(&source).await;
    let (past, soon) = ((begun + 1500).to_string(), (begun + 4000).to_string());
    source.cmd::<()>(&["SET", "dead-in-baseline", "v", "PXAT", &past]).await;
    source.cmd_in::<()>(4, &["SET", "lapsed-in-baseline", "v", "PXAT", &soon]).await;
    let capture = Capture::start(&source, None);
    capture.opened().await;
    source.cmd::<()>(&["SET", "dead", "v", "PXAT", &past]).await;
    for n in 0..3 {
        source.cmd::<()>(&["SET", &format!("lapsed{n}"), "v", "PXAT", &soon]).await;
    }
    source.cmd_in::<()>(4, &["RPUSH", "kept", "v"]).await;
    source.cmd_in::<()>(4, &["PEXPIREAT", "kept", "33000000000123"]).await;
    source.cmd::<()>(&["SET", "forever", "v"]).await;
    let end = capture.caught_up(&source).await;
    let mut instant = now_ms(&source).await;
    assert!(instant < begun + 1500, "the machine is too slow for this test");
    while instant <= begun + 1500 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        instant = now_ms(&source).await;
    }
    assert!(instant < begun + 4000, "the machine is too slow for this test");
    while now_ms(&source).await <= begun + 4000 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (capture.stop().await, instant, end)
}

async fn names(server: &RedisServer) -> Vec<String> {
    let mut names: Vec<String> = server.cmd(&["KEYS", "*"]).await;
    names.extend(server.cmd_in::<Vec<String>>(4, &["KEYS", "*"]).await);
    names.sort();
    names
}

#[rstest]
#[tokio::test]
async fn keys_around_their_expiry_are_what_they_were_under_every_policy(
    #[values("redis-server", "redis-server-8", "valkey-server")] program: &str,
) {
    let (kept, instant, end) = expiring(program).await;
    let cut = Cut::At(end);
    let alive = ["forever", "kept", "lapsed-in-baseline", "lapsed0", "lapsed1", "lapsed2"];
    let now = now_ms(&RedisServer::start(&[]).await).await;
    let expiry = |ttl| Expiry { ttl, at: at(instant), now: at(now) };

    let (restored, expired) =
        restore(program, Way::Server, &kept, &cut, expiry(Ttl::Absolute)).await.unwrap();
    assert_eq!((expired.lapsed, expired.expired_before), (Some(4), Some(2)), "{expired:?}");
    assert_eq!(names(&restored.server).await, ["forever", "kept"]);

    for way in [Way::Server, Way::Folder] {
        let (restored, expired) =
            restore(program, way, &kept, &cut, expiry(Ttl::Shift)).await.unwrap();
        let left: i64 = restored.server.cmd(&["PEXPIRETIME", "lapsed0"]).await;
        // As long to live as at the instant: it may be over by now, and is then seen to be.
        if now_ms(&restored.server).await < left {
            assert_eq!(expired.shift_ms, Some(now - instant));
            assert_eq!(names(&restored.server).await, alive);
        }
    }
    // A later "now" leaves time to look.
    let later = Expiry { now: at(now + 3_600_000), ..expiry(Ttl::Shift) };
    for way in [Way::Server, Way::Folder] {
        let (restored, _) = restore(program, way, &kept, &cut, later).await.unwrap();
        let found = names(&restored.server).await;
        // Those that were dead at the instant are dead an hour from now, at the same distance.
        let dead = restored.server.cmd::<i64>(&["PEXPIRETIME", "dead"]).await;
        assert!(dead < now + 3_600_000 && dead > now, "{dead}");
        assert!(alive.iter().all(|name| found.contains(&(*name).to_owned())), "{found:?}");
    }

    let (restored, expired) =
        restore(program, Way::Server, &kept, &cut, expiry(Ttl::Persist)).await.unwrap();
    assert_eq!(names(&restored.server).await, alive);
    assert_eq!((expired.persisted, expired.expired_before), (Some(5), Some(2)));
    assert!(expiries(&restored.server).await.values().all(|at| *at == -1));
}

#[rstest]
#[case::a_server(Way::Server)]
#[case::a_folder(Way::Folder)]
#[tokio::test]
async fn what_cannot_be_moved_is_refused_before_anything_changes(#[case] way: Way) {
    let (mut kept, instant, _) = expiring("redis-server").await;
    kept.bytes.extend_from_slice(b"*3\r\n$6\r\nEXPIRE\r\n$7\r\nforever\r\n$1\r\n9\r\n");
    let cut = Cut::At(Position::new(kept.start().log.clone(), kept.end()));
    let expiry = Expiry { ttl: Ttl::Shift, at: at(instant), now: at(instant + 1000) };
    let target = RedisServer::start(&[]).await;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("new");
    let target_of = match way {
        Way::Server => server_with(&target, expiry),
        Way::Folder => folder_with(&data, expiry),
    };
    let error = restore_and(target_of, &kept, &cut).await.unwrap_err();
    assert_eq!(error.class(), Class::Refused, "{error}");
    assert!(error.to_string().contains("EXPIRE with a time from now"), "{error}");
    assert!(!data.exists() && !target.log().contains("REPLICA OF"));
}
