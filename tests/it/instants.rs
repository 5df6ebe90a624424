//! The main job: whatever was in the servers at an instant is what a restore to it brings back.

use crate::support::{Daemon, Mysqld, Output, Pitr, RedisServer, eventually, program};
use ::redis::AsyncCommands;
use chrono::{DateTime, SecondsFormat, Utc};
use mysql_async::prelude::Queryable;
use pitr::engine::digest::Digest;
use pitr::engine::{mysql, redis};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Longer than the sampling of Redis' clock, so that an instant between two such pauses is one
/// at which nothing was going on.
const QUIET: Duration = Duration::from_millis(350);

const SCHEMA: &str = r"
    CREATE DATABASE shop DEFAULT CHARACTER SET utf8mb4;
    USE shop;
    CREATE TABLE kinds (
        id INT AUTO_INCREMENT PRIMARY KEY, d DOUBLE, n DECIMAL(30,10), j JSON,
        ts TIMESTAMP(6) NULL, dt DATETIME(6), t TIME(6), y YEAR, b BIT(11), e ENUM('', 'x', 'y'),
        s SET('a', 'b'), bl LONGBLOB, vb VARBINARY(20), u8 VARCHAR(20), g GEOMETRY, v VECTOR(3),
        gs INT GENERATED ALWAYS AS (hidden * 2) STORED, gv INT GENERATED ALWAYS AS (hidden * 3) VIRTUAL,
        hidden INT INVISIBLE);
    CREATE TABLE keyless (a INT, b VARCHAR(10));
    CREATE TABLE parent (id INT PRIMARY KEY, changes INT NOT NULL DEFAULT 0);
    CREATE TABLE child (id INT PRIMARY KEY, p INT,
        FOREIGN KEY (p) REFERENCES parent (id) ON DELETE CASCADE);
    CREATE TABLE seen (what VARCHAR(40));
    CREATE TRIGGER on_child AFTER INSERT ON child FOR EACH ROW
        UPDATE parent SET changes = changes + 1 WHERE id = NEW.p;
    CREATE VIEW totals AS SELECT p, COUNT(*) AS children FROM child GROUP BY p;
    CREATE PROCEDURE add_child(c INT, x INT) INSERT INTO child VALUES (c, x);
    CREATE FUNCTION twice(x INT) RETURNS INT DETERMINISTIC RETURN 2 * x;
    CREATE EVENT at_times ON SCHEDULE EVERY 1 YEAR STARTS '2040-01-01' DO DELETE FROM seen;
    CREATE USER app@'%' IDENTIFIED BY 'first';
    GRANT SELECT, INSERT ON shop.* TO app@'%'";

/// What happens in each of the five phases, beside rows and keys.
const CHANGES: [&str; 5] = [
    "INSERT INTO parent (id) VALUES (1), (2), (3); CALL add_child(1, 1); CALL add_child(2, 1)",
    "ALTER TABLE kinds ADD COLUMN late VARCHAR(20) DEFAULT 'later', ALGORITHM=COPY;
     CREATE EVENT twice_a_year ON SCHEDULE EVERY 6 MONTH STARTS '2040-01-01' DO DELETE FROM seen;
     ALTER USER app@'%' IDENTIFIED BY 'second'; CALL add_child(3, 2); CALL add_child(4, 3)",
    "DELETE FROM parent WHERE id = 1; ALTER EVENT at_times DISABLE;
     CREATE TABLE copied AS SELECT * FROM keyless; CREATE USER late@localhost",
    "DROP VIEW totals; DROP TRIGGER on_child; ALTER TABLE keyless ADD COLUMN c JSON;
     UPDATE keyless SET c = JSON_OBJECT('a', a), b = '😀'; RENAME TABLE copied TO moved",
    "TRUNCATE TABLE keyless; DROP EVENT twice_a_year; ALTER EVENT at_times ENABLE;
     DELETE FROM kinds WHERE id % 3 = 0; CREATE DATABASE another",
];

struct Noted {
    at: DateTime<Utc>,
    mysql: Digest,
    accounts: Digest,
    gtids: String,
    redis: Digest,
}

fn text(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

#[expect(clippy::disallowed_methods, reason = "the test stands outside of the program")]
fn now() -> DateTime<Utc> {
    Utc::now()
}

async fn digests(source: &Mysqld, cache: &RedisServer) -> (Digest, Digest, Digest) {
    let mut sql = source.conn().await;
    let content = mysql::digest::digest(&mut sql).await.unwrap();
    let accounts = mysql::digest::digest_accounts(&mut sql).await.unwrap();
    sql.disconnect().await.unwrap();
    let keys = redis::digest::digest(&mut cache.conn().await).await.unwrap();
    (content, accounts, keys)
}

/// Waits until the daemon has a window for every source.
pub(crate) async fn until_windows(pitr: &Pitr, daemon: &mut Daemon) {
    eventually("every source has a window", Duration::from_secs(90), async || {
        assert!(daemon.ended().is_none(), "the daemon ended:\n{}", daemon.log());
        let report = pitr.run(&["windows", "--json"]).await.ok().json();
        let sources = report["sources"].as_array().unwrap().clone();
        sources.iter().all(|s| !s["windows"].as_array().unwrap().is_empty()).then_some(())
    })
    .await;
}

async fn restore(pitr: &Pitr, to: DateTime<Utc>, more: &[&str]) -> Output {
    let to = text(to);
    let mut args = vec!["restore", "--json", "--to", &to];
    args.extend(more);
    pitr.run(&args).await
}

#[tokio::test]
async fn five_instants_come_back_with_everything_that_was_there() {
    let (source, cache) = (Mysqld::start(&[]).await, RedisServer::start(&[]).await);
    let pitr = Pitr::new(&[("shop-mysql", source.url()), ("shop-redis", cache.url())]);
    source.sql(SCHEMA).await;
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;

    let mut noted = Vec::new();
    let mut keys = cache.conn().await;
    for (phase, changes) in CHANGES.iter().enumerate() {
        source.sql(&format!("USE shop; {changes}")).await;
        for i in 0..30 {
            source
                .sql(&format!(
                    "INSERT INTO shop.kinds (d, n, j, ts, dt, t, y, b, e, s, bl, vb, u8, g, v, \
                     hidden) VALUES (RAND(), {i}.0000000001, JSON_ARRAY({i}, 1.5, NULL), NOW(6), \
                     NOW(6), '-10:00:00.5', 2024, b'101', 'x', 'a,b', RANDOM_BYTES(1000), x'0001', \
                     '😀{i}', ST_GeomFromText('POINT(1 {i})', 4326), STRING_TO_VECTOR('[1,2,{i}]'), \
                     {i}); INSERT INTO shop.keyless (a, b) VALUES ({phase}, 'x'), ({i}, NULL)"
                ))
                .await;
            let () = keys.set(format!("key:{phase}:{i}"), vec![i, 0, 255, 13, 10]).await.unwrap();
            let () = keys.lpush("list", i).await.unwrap();
        }
        tokio::time::sleep(QUIET).await;
        let at = now();
        let (mysql, accounts, redis) = digests(&source, &cache).await;
        noted.push(Noted { at, mysql, accounts, gtids: source.gtid_executed().await, redis });
        tokio::time::sleep(QUIET).await;
    }
    source.sql("DROP DATABASE shop").await;
    let () = ::redis::cmd("FLUSHALL").query_async(&mut keys).await.unwrap();

    for (phase, noted) in noted.iter().enumerate() {
        let target = Mysqld::start(&[]).await;
        let keys = RedisServer::start(&[]).await;
        let targets =
            [format!("shop-mysql={}", target.url()), format!("shop-redis={}", keys.url())];
        let report = restore(&pitr, noted.at, &["--target", &targets[0], "--target", &targets[1]])
            .await
            .ok()
            .json();
        let (content, accounts, redis) = digests(&target, &keys).await;
        assert_eq!(noted.mysql.diff(&content), [""; 0], "phase {phase}");
        assert_eq!(noted.redis.diff(&redis), [""; 0], "phase {phase}");
        assert_eq!(noted.accounts.diff(&accounts), [""; 0], "phase {phase}");
        assert_eq!(target.gtid_executed().await, noted.gtids, "phase {phase}");
        assert_eq!(report["sources"][0]["check"], "passed");
        if phase == 2 {
            is_a_server_of_its_own(&target).await;
        }
    }
    // A folder holds the same, ready to start.
    let report = restore(&pitr, noted[2].at, &["--into", "restored"]).await.ok().json();
    let said = report["sources"][0]["checked"].as_str().unwrap();
    let data = pitr.dir().join("restored/shop-mysql/data");
    assert!(said.contains(&format!("--datadir={}", data.display())), "{said}");
    let target = Mysqld::start_on(&pitr.dir().join("restored/shop-mysql/data"), &[]).await;
    let keys = RedisServer::start_on(&pitr.dir().join("restored/shop-redis")).await;
    let (content, accounts, redis) = digests(&target, &keys).await;
    assert_eq!(noted[2].mysql.diff(&content), [""; 0]);
    assert_eq!(noted[2].accounts.diff(&accounts), [""; 0]);
    assert_eq!(noted[2].redis.diff(&redis), [""; 0]);
    assert_eq!(target.gtid_executed().await, noted[2].gtids);
    is_a_server_of_its_own(&target).await;
}

/// No replica any more, and with a binary log that new transactions go into.
async fn is_a_server_of_its_own(server: &Mysqld) {
    let replicas: Vec<mysql_async::Row> = server.rows("SHOW REPLICA STATUS").await;
    assert!(replicas.is_empty(), "{replicas:?}");
    let states: Vec<(String, String)> = server
        .rows("SELECT event_name, status FROM information_schema.events ORDER BY event_name")
        .await;
    let states: Vec<(&str, &str)> = states.iter().map(|(n, s)| (&**n, &**s)).collect();
    assert_eq!(states, [("at_times", "DISABLED"), ("twice_a_year", "ENABLED")]);
    let before = server.gtid_executed().await;
    server.sql("CREATE DATABASE written_after_the_restore").await;
    let (log_bin, own): (bool, bool) = server
        .row("SELECT @@log_bin, @@gtid_executed LIKE CONCAT('%', @@server_uuid, ':1%')")
        .await;
    assert!(log_bin && own, "{before} and now {}", server.gtid_executed().await);
}

#[tokio::test]
async fn eight_writers_without_a_pause_are_cut_between_two_transactions() {
    const WRITERS: usize = 8;
    let source = Mysqld::start(&["--sync-binlog=0"]).await;
    source
        .sql(
            "CREATE DATABASE w; CREATE TABLE w.a (writer INT, n INT, PRIMARY KEY (writer, n));
             CREATE TABLE w.b LIKE w.a",
        )
        .await;
    let pitr = Pitr::new(&[("shop-mysql", source.url())]);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;

    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let (opts, stop) = (source.opts(), Arc::clone(&stop));
        writers.push(tokio::spawn(async move {
            let mut conn = mysql_async::Conn::new(opts).await.unwrap();
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                let pair = format!(
                    "BEGIN; INSERT INTO w.a VALUES ({writer}, {n}); \
                     INSERT INTO w.b VALUES ({writer}, {n}); COMMIT"
                );
                conn.query_drop(pair).await.unwrap();
            }
            conn.disconnect().await.unwrap();
            n
        }));
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let at = now();
    tokio::time::sleep(Duration::from_secs(2)).await;
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        assert!(writer.await.unwrap() > 10);
    }

    let target = Mysqld::start(&[]).await;
    let to = format!("shop-mysql={}", target.url());
    let report = restore(&pitr, at, &["--target", &to]).await.ok().json();
    for table in ["a", "b"] {
        let prefixes: Vec<(usize, u64, u64)> = target
            .rows(&format!("SELECT writer, COUNT(*), MAX(n) FROM w.{table} GROUP BY writer"))
            .await;
        assert_eq!(prefixes.len(), WRITERS);
        for (writer, count, last) in prefixes {
            assert_eq!(count, last, "the rows of writer {writer} in {table} are no prefix");
        }
    }
    let halves: u64 = target
        .row("SELECT COUNT(*) FROM w.a LEFT JOIN w.b USING (writer, n) WHERE w.b.n IS NULL")
        .await;
    assert_eq!(halves, 0, "a pair was cut");

    // The boundary, as the server's own tool sees it.
    let source_report = &report["sources"][0];
    let (last, first_out) = boundary(&source, at);
    assert_eq!(source_report["last_applied"]["position"].as_str().unwrap(), last);
    assert_eq!(source_report["first_left_out"]["position"].as_str().unwrap(), first_out);
}

/// The last GTID in log order before the first one committed after `at`, and that one.
fn boundary(source: &Mysqld, at: DateTime<Utc>) -> (String, String) {
    let mut files: Vec<_> = std::fs::read_dir(source.datadir())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with("binlog.") && !name.ends_with("index")
        })
        .collect();
    files.sort();
    let output = Command::new(program("mysqlbinlog")).args(files).output().unwrap();
    let log = String::from_utf8_lossy(&output.stdout).into_owned();
    let (mut last, mut committed) = (String::new(), 0);
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("# immediate_commit_timestamp=") {
            committed = rest.split(' ').next().unwrap().parse::<i64>().unwrap();
        }
        if let Some(gtid) = line.strip_prefix("SET @@SESSION.GTID_NEXT= '") {
            let Some((gtid, _)) = gtid.split_once('\'') else { continue };
            if gtid == "AUTOMATIC" {
                continue;
            }
            if committed > at.timestamp_micros() {
                return (last, gtid.to_owned());
            }
            gtid.clone_into(&mut last);
        }
    }
    panic!("mysqlbinlog shows no transaction after {at}");
}

#[tokio::test]
async fn an_order_that_is_in_both_comes_back_in_both_or_in_none() {
    let (source, cache) = (Mysqld::start(&[]).await, RedisServer::start(&[]).await);
    source.sql("CREATE DATABASE shop; CREATE TABLE shop.orders (n INT PRIMARY KEY)").await;
    let pitr = Pitr::new(&[("shop-mysql", source.url()), ("shop-redis", cache.url())]);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;

    let mut sql = source.conn().await;
    let mut keys = cache.conn().await;
    let mut instants = Vec::new();
    for n in 1..=40 {
        sql.query_drop(format!("INSERT INTO shop.orders VALUES ({n})")).await.unwrap();
        let () = keys.set("last-order", n).await.unwrap();
        tokio::time::sleep(QUIET / 2).await;
        instants.push((n, now()));
        tokio::time::sleep(QUIET / 2).await;
    }
    for (n, at) in [instants[9], instants[25]] {
        let (target, copy) = (Mysqld::start(&[]).await, RedisServer::start(&[]).await);
        let (to_mysql, to_redis) =
            (format!("shop-mysql={}", target.url()), format!("shop-redis={}", copy.url()));
        restore(&pitr, at, &["--target", &to_mysql, "--target", &to_redis]).await.ok();
        let in_mysql: i32 = target.row("SELECT MAX(n) FROM shop.orders").await;
        let in_redis: i32 = copy.conn().await.get("last-order").await.unwrap();
        assert_eq!((in_mysql, in_redis), (n, n));
    }
}
