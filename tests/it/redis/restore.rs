//! A captured history comes back: into a running server, and into a folder that is started.

use super::harness::{
    Capture, Kept, Restored, SOON, Way, baseline, digest, folder, patient, restore, server_target,
    start_on,
};
use crate::support::{RedisServer, eventually};
use pitr::engine::digest::Digest;
use pitr::error::Class;
use pitr::position::Position;
use pitr::record::Cut;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Value};
use rstest::rstest;
use std::time::Duration;

const FAST: [&str; 2] = ["--repl-diskless-sync-delay", "0"];

const LIBRARY: &str = "#!lua name=shop\nredis.register_function('put', function(keys, args)
  redis.call('SET', keys[1], args[1]); return redis.call('INCR', 'puts') end)";

/// Runs commands, one a line, words split at blanks; `\xNN` stands for a byte.
async fn run(conn: &mut MultiplexedConnection, lines: &str) {
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let mut cmd = Cmd::new();
        for word in line.split(' ') {
            cmd.arg(unescape(word));
        }
        let _: Value = cmd.query_async(conn).await.unwrap_or_else(|e| panic!("{line}: {e}"));
    }
}

fn unescape(word: &str) -> Vec<u8> {
    let mut parts = word.split("\\x");
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (hex, rest) = part.split_at(2);
        bytes.push(u8::from_str_radix(hex, 16).unwrap());
        bytes.extend_from_slice(rest.as_bytes());
    }
    bytes
}

/// Every data type.
const TYPES: &str = "
    SELECT 0
    SET plain v
    SET \\x00\\xff\\x0d\\x0a*1\\x0d\\x0a$4\\x0d\\x0aPING \\x00binary\\x0d\\x0a
    SET counter 41
    INCRBYFLOAT counter 1.5
    APPEND plain more
    SETBIT bits 1000 1
    RPUSH list a b c d e
    LREM list 1 c
    SADD ints 1 2 3
    SADD words x y z \\xfe
    SPOP words
    HSET hash f 1 g 2 h \\x00
    HINCRBYFLOAT hash f 0.25
    ZADD zset 1.1 a -inf b 0.30000000000000004 c
    ZINCRBY zset 5 a
    PFADD hll a b c d
    GEOADD geo 13.361389 38.115556 Palermo 15.087269 37.502669 Catania
    XADD stream 1-1 f v
    XADD stream MAXLEN ~ 100 2-1 f w g x
    XGROUP CREATE stream group 0
    XCLAIM stream group worker 0 1-1 TIME 1700000000000 RETRYCOUNT 2 FORCE JUSTID
    XADD log * f v
    SELECT 3
    SET plain other
    SELECT 11
    HSET far a b";

/// Changes to them, in several databases, transactions and scripts.
const CHANGES: &str = "
    SELECT 3
    RENAME plain renamed
    COPY renamed copied DB 4
    SELECT 0
    PEXPIREAT plain 33000000000123
    SET expiring v PXAT 33000000000001
    EXPIRE list 100000
    GETEX counter EX 100000
    MULTI
    SET in-multi 1
    PUBLISH news hello
    SELECT 5
    LPUSH queue job1 job2
    EXEC
    SELECT 5
    RPOPLPUSH queue done
    EVAL redis.call('set','from-lua','1');redis.call('select','6');redis.call('set','x','1') 0
    FCALL put 1 by-function 7
    PUBLISH news world
    SELECT 6
    SET y 2
    SWAPDB 5 6
    MOVE y 7";

const DESTRUCTION: &str = "
    SELECT 0
    DEL zset
    UNLINK geo
    FLUSHDB
    SET after-flush 1
    FUNCTION FLUSH";

/// Does things to `server`, and notes what it held after each step, and where.
async fn history(server: &RedisServer, capture: &Capture) -> Vec<(Position, Digest)> {
    let mut conn = patient(server).await;
    let mut noted = vec![];
    for step in ["", TYPES, "load", CHANGES, DESTRUCTION] {
        match step {
            "load" => {
                let load = redis::cmd("FUNCTION").arg("LOAD").arg(LIBRARY).to_owned();
                let _: Value = load.query_async(&mut conn).await.unwrap();
            }
            lines => run(&mut conn, lines).await,
        }
        let end = capture.caught_up(server).await;
        noted.push((end, digest(server).await));
    }
    noted
}

#[rstest]
#[case::into_a_server(Way::Server)]
#[case::into_a_folder(Way::Folder)]
#[tokio::test]
async fn every_instant_of_a_history_comes_back(
    #[values("redis-server", "redis-server-8", "valkey-server")] program: &str,
    #[case] way: Way,
) {
    let source = RedisServer::start_program(program, &FAST).await;
    source.cmd_in::<()>(2, &["SET", "in-the-baseline", "\u{0}"]).await;
    source.cmd_in::<()>(2, &["PEXPIREAT", "in-the-baseline", "33000000000777"]).await;
    let capture = Capture::start(&source, None);
    capture.opened().await;
    let noted = history(&source, &capture).await;
    let kept = capture.stop().await;
    for (i, (end, expected)) in noted.iter().enumerate() {
        let cut = Cut::At(end.clone());
        let restored = way.restore_into(program, &kept, &cut).await.unwrap();
        assert_eq!(expected.diff(&digest(&restored.server).await), [""; 0], "step {i}");
        let last = i + 1 == noted.len();
        assert_eq!(restored.applied.first_left_out.is_none(), last, "step {i}");
        assert!(restored.check.contains("records"), "{}", restored.check);
        // It is a server of its own, which takes writes.
        restored.server.cmd::<()>(&["SET", "new", "1"]).await;
    }
}

#[rstest]
#[case::into_a_server(Way::Server)]
#[case::into_a_folder(Way::Folder)]
#[tokio::test]
async fn a_key_that_expired_meanwhile_is_replayed_as_it_was_alive(#[case] way: Way) {
    let source = RedisServer::start(&FAST).await;
    let capture = Capture::start(&source, None);
    capture.opened().await;
    let mut conn = source.conn().await;
    let (secs, micros): (i64, i64) = redis::cmd("TIME").query_async(&mut conn).await.unwrap();
    let soon = secs * 1000 + micros / 1000 + 1500;
    run(&mut conn, &format!("SET k 5 PXAT {soon}\nINCR k\nPERSIST k")).await;
    run(&mut conn, &format!("RPUSH l a\nPEXPIREAT l {soon}\nRPUSH l b\nPERSIST l")).await;
    run(&mut conn, &format!("SET gone 1 PXAT {soon}\nSET stays 1 PXAT 33000000000042")).await;
    let end = capture.caught_up(&source).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let kept = capture.stop().await;
    let restored = way.restore(&kept, &Cut::At(end)).await.unwrap();
    let server = &restored.server;
    assert_eq!(server.cmd::<String>(&["GET", "k"]).await, "6");
    assert_eq!(server.cmd::<Vec<String>>(&["LRANGE", "l", "0", "-1"]).await, ["a", "b"]);
    assert!(!server.cmd::<bool>(&["EXISTS", "gone"]).await);
    assert_eq!(server.cmd::<i64>(&["PEXPIRETIME", "stays"]).await, 33_000_000_000_042);
}

/// Redis 7.0 does not tell its replicas how many entries a group has read, so a restored server
/// knows as little of that as a replica does.
#[tokio::test]
async fn a_restored_server_holds_what_a_replica_of_the_source_holds() {
    let source = RedisServer::start(&FAST).await;
    let replica = RedisServer::start(&[]).await;
    replica.cmd::<()>(&["REPLICAOF", "127.0.0.1", &source.port().to_string()]).await;
    let capture = Capture::start(&source, None);
    capture.opened().await;
    let mut conn = patient(&source).await;
    run(&mut conn, TYPES).await;
    let reads = "SELECT 0
        XADD stream * f v
        XREADGROUP GROUP group worker COUNT 1 STREAMS stream >
        XREADGROUP GROUP group other NOACK STREAMS stream >
        XACK stream group 1-1
        BLMPOP 1 1 list LEFT COUNT 2
        SPOP ints 2
        SORT words ALPHA STORE sorted";
    run(&mut conn, reads).await;
    let end = capture.caught_up(&source).await;
    eventually("the replica is in step", SOON, async || {
        replica.cmd::<bool>(&["EXISTS", "sorted"]).await.then_some(())
    })
    .await;
    let kept = capture.stop().await;
    let expected = digest(&replica).await;
    for way in [Way::Server, Way::Folder] {
        let restored = way.restore(&kept, &Cut::At(end.clone())).await.unwrap();
        assert_eq!(expected.diff(&digest(&restored.server).await), [""; 0], "{way:?}");
    }
}

/// A source with some records, what was captured of it, and where each record ends.
async fn small_history(value: usize) -> (Kept, Vec<u64>) {
    let source = RedisServer::start(&FAST).await;
    let capture = Capture::start(&source, None);
    capture.opened().await;
    let mut conn = patient(&source).await;
    run(&mut conn, "SELECT 1\nSET a 1\nMULTI\nSET b 2\nSET c 3\nEXEC").await;
    let mut ends = vec![capture.caught_up(&source).await.offset];
    let big = "x".repeat(value);
    run(&mut conn, &format!("MULTI\nSET d {big}\nSET e 5\nEXEC")).await;
    ends.push(capture.caught_up(&source).await.offset);
    (capture.stop().await, ends)
}

#[rstest]
#[case::into_a_server(Way::Server, 10)]
#[case::into_a_folder(Way::Folder, 10)]
#[case::with_half_of_it_sent(Way::Server, 5 << 20)]
#[case::with_half_of_it_written(Way::Folder, 5 << 20)]
#[tokio::test]
async fn a_cut_within_a_record_leaves_that_record_out(#[case] way: Way, #[case] value: usize) {
    let (kept, ends) = small_history(value).await;
    for before_end in [1, 20] {
        let cut = Position::new(kept.start().log.clone(), ends[1] - before_end);
        let restored = way.restore(&kept, &Cut::At(cut)).await.unwrap();
        let mut conn = restored.server.conn_to(1).await;
        let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut conn).await.unwrap();
        assert_eq!(keys.len(), 3, "{keys:?}");
        let left_out = restored.applied.first_left_out.unwrap().position;
        assert_eq!(left_out, format!("{}:{}", kept.start().log, ends[0]));
        assert_eq!(restored.applied.records, 2);
    }
}

#[tokio::test]
async fn a_long_log_becomes_files_that_each_select_their_database() {
    let source = RedisServer::start(&FAST).await;
    let capture = Capture::start(&source, None);
    capture.opened().await;
    let mut conn = patient(&source).await;
    run(&mut conn, "SELECT 3").await;
    let value = vec![b'x'; 22 << 20];
    for n in 0..7 {
        let set = redis::cmd("SET").arg(n).arg(&value).to_owned();
        let () = set.query_async(&mut conn).await.unwrap();
    }
    let end = capture.caught_up(&source).await;
    let kept = capture.stop().await;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("new");
    let (applied, check) = restore(folder(&data), &kept, &Cut::At(end)).await.unwrap();
    assert_eq!(applied.records, 7);
    assert!(check.ends_with("redis-check-aof found it valid"), "{check}");
    let incr = |n: u32| data.join(format!("appendonlydir/appendonly.aof.{n}.incr.aof"));
    assert!(incr(2).is_file() && incr(3).is_file() && !incr(4).exists());
    let server = start_on("redis-server", &data).await;
    assert_eq!(server.cmd_in::<u32>(3, &["DBSIZE"]).await, 7);
    assert_eq!(digest(&source).await.diff(&digest(&server).await), [""; 0]);
}

#[tokio::test]
async fn a_target_that_is_not_fit_is_refused_and_not_touched() {
    let (kept, _) = small_history(10).await;
    let refusal = async |server: &RedisServer| {
        let error = server_target(server).preflight(&kept.needs()).await.unwrap_err();
        assert_eq!(error.class(), Class::Refused, "{error}");
        error.to_string()
    };
    let full = RedisServer::start(&["--databases", "20"]).await;
    full.cmd_in::<()>(17, &["SET", "a", "1"]).await;
    assert!(refusal(&full).await.contains("is not empty: it has 1 keys in db17"));
    assert!(full.cmd_in::<bool>(17, &["EXISTS", "a"]).await);
    let functions = RedisServer::start(&[]).await;
    functions.cmd::<String>(&["FUNCTION", "LOAD", LIBRARY]).await;
    assert!(refusal(&functions).await.contains("1 function libraries"));
    let replica = RedisServer::start(&[]).await;
    replica.cmd::<()>(&["REPLICAOF", "127.0.0.1", "1"]).await;
    assert!(refusal(&replica).await.contains("is a replica"));
    let cluster = RedisServer::start(&["--cluster-enabled", "yes"]).await;
    assert!(refusal(&cluster).await.contains("cluster"));
    let fit = RedisServer::start(&[]).await;
    let server = server_target(&fit).preflight(&kept.needs()).await.unwrap();
    let mut needs = kept.needs();
    needs.sources.push(server.identity);
    let error = server_target(&fit).preflight(&needs).await.unwrap_err();
    assert!(error.to_string().contains("captures from"), "{error}");
    let mut needs = kept.needs();
    needs.version = "99.0.0".into();
    let error = server_target(&fit).preflight(&needs).await.unwrap_err();
    assert!(error.to_string().contains("cannot take the data of version 99.0.0"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("x"), "mine").unwrap();
    let error = folder(dir.path()).preflight(&kept.needs()).await.unwrap_err();
    assert_eq!(error.class(), Class::Refused);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// Keys of database 1 in the log, and of database 5 in the baseline.
#[tokio::test]
async fn too_few_databases_are_noticed_before_the_target_changes() {
    let (mut kept, ends) = small_history(10).await;
    let cut = Cut::At(Position::new(kept.start().log.clone(), ends[1]));
    let target = RedisServer::start(&["--databases", "1"]).await;
    // What is left of an empty server would be gone after a full copy.
    target.cmd::<()>(&["CONFIG", "RESETSTAT"]).await;
    let untouched = async |what: &str, kept: &Kept| {
        let error = restore(server_target(&target), kept, &cut).await.unwrap_err();
        assert_eq!(error.class(), Class::Refused, "{error}");
        assert!(error.to_string().contains(what), "{error}");
        assert!(!target.log().contains("REPLICA OF"), "{}", target.log());
    };
    untouched("uses database 1, and the target has only 1 databases", &kept).await;
    let full = RedisServer::start(&FAST).await;
    full.cmd_in::<()>(5, &["SET", "a", "1"]).await;
    let (mut taken, rdb) = baseline(&full).await;
    taken.position = kept.baselines[0].0.position.clone();
    kept.baselines[0] = (taken, Ok(rdb));
    untouched("uses database 5, and the target has only 1 databases", &kept).await;
}

#[tokio::test]
async fn a_baseline_of_a_newer_form_is_noticed_before_the_target_changes() {
    let (mut kept, ends) = small_history(10).await;
    let cut = Cut::At(Position::new(kept.start().log.clone(), ends[1]));
    let rdb = kept.baselines[0].1.as_mut().unwrap();
    rdb[..9].copy_from_slice(b"REDIS0099");
    let trailer = rdb.len() - 8;
    rdb[trailer..].fill(0);
    let target = RedisServer::start(&[]).await;
    let error = restore(server_target(&target), &kept, &cut).await.unwrap_err();
    assert_eq!(error.class(), Class::Refused, "{error}");
    assert!(error.to_string().contains("RDB version 99"), "{error}");
    assert!(!target.log().contains("REPLICA OF"), "{}", target.log());
    assert_eq!(target.cmd::<u32>(&["DBSIZE"]).await, 0);
}

/// Their forms of RDB are newer, or another family's.
#[rstest]
#[case("redis-server-8", "redis-server")]
#[case("redis-server-8", "valkey-server")]
#[case("valkey-server", "redis-server")]
#[case("valkey-server", "redis-server-8")]
#[tokio::test]
async fn an_archive_that_the_target_cannot_load_is_refused(#[case] from: &str, #[case] into: &str) {
    let source = RedisServer::start_program(from, &FAST).await;
    let capture = Capture::start(&source, None);
    capture.opened().await;
    source.cmd::<()>(&["SET", "a", "1"]).await;
    let cut = Cut::At(capture.caught_up(&source).await);
    let mut kept = capture.stop().await;
    let target = RedisServer::start_program(into, &[]).await;
    let error = restore(server_target(&target), &kept, &cut).await.unwrap_err();
    assert_eq!(error.class(), Class::Refused, "{error}");
    assert!(error.to_string().contains("cannot take the data of version"), "{error}");
    // The file itself is looked at, too, whatever the versions say.
    kept.server.version = "7.0.0".into();
    let error = restore(server_target(&target), &kept, &cut).await.unwrap_err();
    assert_eq!(error.class(), Class::Refused, "{error}");
    assert!(error.to_string().contains("cannot load the baseline"), "{error}");
    assert!(!target.log().contains("REPLICA OF"), "{}", target.log());
}

#[tokio::test]
async fn a_command_that_fails_on_the_target_fails_the_restore() {
    let (mut kept, _) = small_history(10).await;
    kept.bytes.extend_from_slice(b"*3\r\n$5\r\nLPUSH\r\n$1\r\na\r\n$1\r\nx\r\n");
    let cut = Cut::At(Position::new(kept.start().log.clone(), kept.end()));
    let target = RedisServer::start(&[]).await;
    let error = restore(server_target(&target), &kept, &cut).await.unwrap_err();
    assert_eq!(error.class(), Class::Finding);
    assert!(error.to_string().contains("1 of the commands sent failed"), "{error}");
}

#[tokio::test]
async fn a_slow_target_is_waited_for() {
    let (mut kept, _) = small_history(10).await;
    kept.bytes.extend_from_slice(b"*3\r\n$5\r\nDEBUG\r\n$5\r\nSLEEP\r\n$1\r\n3\r\n");
    for i in 0..100_000 {
        let key = format!("*3\r\n$3\r\nSET\r\n$9\r\nkey-{i:05}\r\n$1\r\nx\r\n");
        kept.bytes.extend_from_slice(key.as_bytes());
    }
    let cut = Cut::At(Position::new(kept.start().log.clone(), kept.end()));
    let restored = Way::Server.restore(&kept, &cut).await.unwrap();
    assert!(restored.server.cmd_in::<bool>(1, &["EXISTS", "key-99999"]).await);
}

#[rstest]
#[case::into_a_server(Way::Server)]
#[case::into_a_folder(Way::Folder)]
#[tokio::test]
async fn a_damaged_baseline_is_never_loaded(#[case] way: Way) {
    let (mut kept, ends) = small_history(10).await;
    let cut = Cut::At(Position::new(kept.start().log.clone(), ends[1]));
    let rdb = kept.baselines[0].1.as_mut().unwrap();
    let middle = rdb.len() / 2;
    rdb[middle] ^= 1;
    let error = way.restore(&kept, &cut).await.unwrap_err();
    assert_eq!(error.class(), Class::Corrupt, "{error}");
    assert!(error.to_string().contains("checksum"), "{error}");
}

#[tokio::test]
async fn a_target_that_dies_ends_the_restore() {
    let (kept, ends) = small_history(64 << 20).await;
    let cut = Cut::At(Position::new(kept.start().log.clone(), ends[1]));
    let mut target = RedisServer::start(&[]).await;
    let mut restoring = tokio::spawn({
        let target = server_target(&target);
        async move { restore(target, &kept, &cut).await.map(drop) }
    });
    eventually("the target is our replica", SOON, async || {
        let info: String = target.cmd(&["INFO", "replication"]).await;
        info.contains("master_link_status:up").then_some(())
    })
    .await;
    target.kill();
    let error = tokio::time::timeout(SOON, &mut restoring).await.unwrap().unwrap();
    // It may have been fast enough to be done with all but the end.
    let error = error.unwrap_err();
    assert_eq!(error.class(), Class::Unavailable, "{error}");
}

#[tokio::test]
async fn a_replay_goes_on_over_a_promotion() {
    let source = RedisServer::start(&FAST).await;
    let capture = Capture::start(&source, None);
    capture.opened().await;
    source.cmd_in::<()>(1, &["SET", "a", "1"]).await;
    capture.caught_up(&source).await;
    let mut kept = capture.stop().await;
    let switch = kept.end();
    let promoted = Position { db: 1, ..Position::new("f".repeat(40), switch) };
    kept.logs.push(promoted.clone());
    kept.bytes.extend_from_slice(b"*3\r\n$3\r\nSET\r\n$1\r\nb\r\n$1\r\n2\r\n");
    for (way, log, keys) in [
        (Way::Server, &promoted.log, 2),
        (Way::Folder, &promoted.log, 2),
        (Way::Server, &kept.start().log, 1),
    ] {
        let end = if keys == 2 { kept.end() } else { switch };
        let cut = Cut::At(Position::new(log.clone(), end));
        let Restored { server, applied, .. } = way.restore(&kept, &cut).await.unwrap();
        assert_eq!(server.cmd_in::<u32>(1, &["DBSIZE"]).await, keys);
        assert_eq!(applied.records, u64::from(keys));
        let last = applied.last.unwrap().position;
        assert!(last.starts_with(log.as_str()), "{last}");
    }
}
