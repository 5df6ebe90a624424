//! Replay with merged transactions, by random work on real servers: whatever was done, the target
//! ends with the content and the GTIDs that the source has, and several workers took part.

use crate::mysql_restore::harness::{
    Moment, OnFolder, Taken, assert_same, baseline, counted, log_of, moment, moment_of, needs,
    open_log, options, restore, slow_log,
};
use crate::support::Mysqld;
use mysql_async::Conn;
use mysql_async::prelude::Queryable;
use pitr::clock::Timestamp;
use pitr::engine::mysql::MysqlTarget;
use pitr::engine::{Apply, Destination, Endpoint, Target, TargetOptions};
use pitr::error::Class;
use pitr::manifest::EngineKind;
use pitr::record::{Cut, Piece};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;

/// How many transactions a seed makes, about.
const STEPS: usize = 250;

const SCHEMA: &str = "CREATE DATABASE w; USE w;
    CREATE TABLE parent (id INT PRIMARY KEY, u INT UNIQUE, s VARCHAR(60));
    CREATE TABLE child (id INT AUTO_INCREMENT PRIMARY KEY, p INT, s MEDIUMTEXT,
        FOREIGN KEY (p) REFERENCES parent (id) ON DELETE CASCADE ON UPDATE CASCADE);
    CREATE TABLE loose (id INT PRIMARY KEY, p INT,
        FOREIGN KEY (p) REFERENCES parent (id) ON DELETE SET NULL);
    CREATE TABLE keyless (a INT, b BIT(5));
    CREATE TABLE doc (id INT PRIMARY KEY, j JSON, g INT AS (j->'$.n') VIRTUAL, KEY (g));
    CREATE TABLE isam (id INT PRIMARY KEY, s TEXT) ENGINE = MyISAM;
    CREATE TABLE noted (id INT AUTO_INCREMENT PRIMARY KEY, p INT);
    CREATE TRIGGER note AFTER INSERT ON parent FOR EACH ROW INSERT INTO noted (p) VALUES (NEW.id)";

/// What connects two tables that were apart: where there is none, whatever is tried with it fails.
const LATE: &str = "CREATE TABLE late (id INT AUTO_INCREMENT PRIMARY KEY, d INT,
    FOREIGN KEY (d) REFERENCES doc (id) ON DELETE CASCADE)";

fn target(server: &Mysqld) -> MysqlTarget {
    let endpoint = Endpoint::parse(EngineKind::Mysql, &server.url()).unwrap();
    let options = options(Destination::Running(endpoint.clone()));
    MysqlTarget::running(TargetOptions { apply: Apply::Merged, ..options }, endpoint)
}

fn everything() -> Cut {
    Cut::After(Timestamp::from_micros(i64::MAX))
}

/// Statements of one session, most of them with small numbers, so that they meet again.
fn step(rng: &mut StdRng, n: usize) -> String {
    let (a, b) = (rng.random_range(1..25), rng.random_range(1..25));
    match rng.random_range(0..33) {
        0..=3 => format!("INSERT INTO parent VALUES ({a}, {b}, 'i{n}')"),
        // No REPLACE of a parent: MySQL 9.7.4 leaves its children alone, and logs what makes every
        // replica delete them.
        4 => format!("REPLACE INTO loose VALUES ({a}, {b})"),
        5 => format!("UPDATE parent SET id = id + 25, s = 'moved' WHERE id = {a}"),
        6 => format!("DELETE FROM parent WHERE id IN ({a}, {b}, {})", a + 25),
        7 => "UPDATE parent SET u = u + 1000; UPDATE parent SET u = 1025 - u".into(),
        8..=10 => format!(
            "INSERT INTO child (p, s) SELECT id, REPEAT('{n} ', {a}) FROM parent WHERE id >= {b}"
        ),
        11 => format!("UPDATE child SET s = CONCAT('{n}-', LEFT(s, 20)) WHERE id % 3 = {}", a % 3),
        12 => format!("DELETE FROM child WHERE p = {a} ORDER BY id LIMIT {b}"),
        13 => format!("INSERT INTO keyless VALUES ({a}, b'10101'), ({a}, b'10101'), (NULL, NULL)"),
        14 => format!("DELETE FROM keyless WHERE a = {a} LIMIT 1; UPDATE keyless SET a = {b}"),
        15 => format!("INSERT IGNORE INTO loose VALUES ({n}, {a}), ({}, NULL)", n + 10_000),
        16 => format!(
            "INSERT INTO doc (id, j) VALUES ({a}, JSON_OBJECT('n', {b}, 's', REPEAT('j', 500))) \
             ON DUPLICATE KEY UPDATE j = JSON_SET(j, '$.n', {n})"
        ),
        17 => format!("REPLACE INTO isam VALUES ({a}, 'm{n}')"),
        18 => format!(
            "BEGIN; UPDATE parent SET s = 'sp' WHERE id = {a}; SAVEPOINT x; \
             DELETE FROM child WHERE p = {b}; ROLLBACK TO x; \
             INSERT INTO keyless VALUES ({n}, b'1'); COMMIT"
        ),
        19 => format!("BEGIN; DELETE FROM parent; INSERT INTO keyless VALUES ({n}, 0); ROLLBACK"),
        20..=22 => format!(
            "BEGIN; INSERT INTO keyless VALUES ({n}, b'11'); UPDATE child SET p = {a} \
             WHERE id = {n}; INSERT INTO child (p, s) VALUES ({b}, 'tx'); \
             DELETE FROM keyless WHERE a = {n}; COMMIT"
        ),
        23 => format!(
            "SET foreign_key_checks = 0; DELETE FROM parent WHERE id = {a}; \
             SET foreign_key_checks = 1"
        ),
        24 => format!("INSERT INTO child (p, s) VALUES (NULL, REPEAT('long{n}', 50000))"),
        25 => match a % 4 {
            0 => format!("ALTER TABLE child ADD COLUMN c{n} INT DEFAULT {b}"),
            1 => format!(
                "ALTER TABLE keyless MODIFY a BIGINT, ADD COLUMN k{n} VARCHAR(9) DEFAULT 'd'"
            ),
            2 => format!("CREATE TABLE new{n} AS SELECT * FROM parent; TRUNCATE keyless"),
            _ => "FLUSH BINARY LOGS".into(),
        },
        26 => format!("SET binlog_transaction_compression = {}", a % 2),
        27 => format!("SET time_zone = '+0{}:00'", a % 3),
        28 => format!("SET binlog_row_image = {}", ["FULL", "MINIMAL", "NOBLOB"][a % 3]),
        29 => format!("DELETE FROM doc WHERE id IN ({a}, {b})"),
        30 => format!("INSERT INTO late (d) SELECT id FROM doc WHERE id >= {a}"),
        31 => format!(
            "BEGIN; INSERT INTO doc (id) VALUES ({a}); INSERT INTO late (d) VALUES ({a}); \
             UPDATE parent SET s = 'both' WHERE id = {b}; COMMIT"
        ),
        _ => format!(
            "SET binlog_row_value_options = '{}'; \
             UPDATE doc SET j = JSON_REPLACE(j, '$.s', 'p{n}') WHERE id >= {b}",
            ["", "PARTIAL_JSON"][a % 2]
        ),
    }
}

/// Does random work.
async fn work(source: &Mysqld, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut sessions: Vec<Conn> = vec![];
    for _ in 0..3 {
        let mut conn = source.conn().await;
        conn.query_drop("USE w").await.unwrap();
        sessions.push(conn);
    }
    let mut failed = 0;
    if seed.is_multiple_of(2) {
        for session in &mut sessions {
            session.query_drop("SET binlog_transaction_compression = 1").await.unwrap();
        }
    }
    for n in 0..STEPS {
        if n == STEPS / 2 && seed.is_multiple_of(3) {
            sessions[0].query_drop(LATE).await.unwrap();
        }
        let session = rng.random_range(0..sessions.len());
        for statement in step(&mut rng, n).split("; ") {
            // A key that is there already, or a parent that is not, is a part of the work.
            failed += usize::from(sessions[session].query_drop(statement).await.is_err());
        }
    }
    assert!(failed < STEPS, "{failed} statements failed");
    let xa = "XA START 'a'; INSERT INTO keyless (a) VALUES (-1); XA END 'a'; XA PREPARE 'a';
        XA COMMIT 'a'; XA START 'b'; INSERT INTO keyless (a) VALUES (-2); XA END 'b';
        XA PREPARE 'b'";
    for statement in xa.split(';') {
        sessions[0].query_drop(statement).await.unwrap();
    }
}

/// Has a log of random work, and what the source was like at its end.
async fn source_of(seed: u64) -> (Mysqld, Taken, Moment, u64) {
    // The rows that cascades change are logged, or not: as it is done by MySQL 9.6 and before.
    let native = format!("--loose-innodb-native-foreign-keys={}", (seed / 2) % 2);
    let source = Mysqld::start(&[&native]).await;
    source.sql(SCHEMA).await;
    let taken = baseline(&source).await;
    let before = written(&source).await;
    work(&source, seed).await;
    let made = written(&source).await - before;
    let then = moment(&source).await;
    (source, taken, then, made)
}

/// Transactions that a server wrote to its binlog since it started.
async fn written(server: &Mysqld) -> u64 {
    let (_, used): (String, String) =
        server.row("SHOW GLOBAL STATUS LIKE 'Binlog_cache_use'").await;
    used.parse().unwrap()
}

/// Keeps in `most` how many workers of a replica have applied something. Never ends.
async fn count_workers(server: &Mysqld, most: &mut u64) {
    let mut conn = server.conn().await;
    loop {
        let query = "SELECT COUNT(*) FROM performance_schema.replication_applier_status_by_worker \
            WHERE LAST_APPLIED_TRANSACTION <> ''";
        let busy: Option<u64> = conn.query_first(query).await.unwrap();
        *most = busy.unwrap().max(*most);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn comes_back(seed: u64) {
    let (source, taken, then, made) = source_of(seed).await;
    let log = open_log(log_of(&source, &taken.meta.position).await, None);
    let server = Mysqld::start(&[]).await;
    let mut to = target(&server);
    to.preflight(&needs(&source).await).await.unwrap();
    to.load(&taken.meta, taken.pieces()).await.unwrap();
    let loaded = written(&server).await;
    let mut busy = 0;
    let everything = everything();
    let applied = tokio::select! {
        applied = to.replay(&taken.meta, log, &everything) => applied,
        () = count_workers(&server, &mut busy) => unreachable!(),
    };
    let said = server.log();
    let applied = applied.unwrap_or_else(|error| panic!("seed {seed}: {error}\n{said}"));
    // Its receiver would stop, if only that were noticed before everything is executed.
    assert!(!said.contains("Unexpected source's heartbeat"), "seed {seed}: {said}");
    assert!(busy > 1, "seed {seed}: {busy} workers applied something");
    let got = written(&server).await - loaded;
    to.finish(&applied).await.unwrap();
    assert_same(&moment(&server).await, &then);
    assert!(got < made, "seed {seed}: {got} transactions of {made}");
    let prepared: Vec<(u32, u32, u32, String)> = server.rows("XA RECOVER").await;
    assert_eq!(prepared.iter().map(|row| row.3.as_str()).collect::<Vec<_>>(), ["b"]);
}

#[tokio::test]
async fn a_folder_gets_merged_transactions_too() {
    let (source, taken, then, _) = source_of(4).await;
    let log = open_log(log_of(&source, &taken.meta.position).await, None);
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("shop-mysql");
    let options = options(Destination::Folder(dir.clone()));
    let options = TargetOptions { apply: Apply::Merged, ..options };
    let mut to = MysqlTarget::folder(options, dir.clone());
    restore(&mut to, &needs(&source).await, &taken, log, &everything()).await.unwrap();
    let server = OnFolder::start(&dir).await;
    let mut conn = Conn::new(server.opts()).await.unwrap();
    assert_same(&moment_of(&mut conn).await, &then);
}

#[tokio::test]
async fn a_replica_that_loses_its_connection_again_and_again_gets_each_group_once() {
    let (source, taken, then, _) = source_of(6).await;
    let mut pieces = vec![];
    for piece in log_of(&source, &taken.meta.position).await {
        match piece {
            Piece::Bytes(bytes) => pieces.extend(
                (0..bytes.len())
                    .step_by(5_000)
                    .map(|at| Piece::Bytes(bytes.slice(at..bytes.len().min(at + 5_000)))),
            ),
            piece @ Piece::Log { .. } => pieces.push(piece),
        }
    }
    let server = Mysqld::start(&[]).await;
    let mut to = target(&server);
    to.preflight(&needs(&source).await).await.unwrap();
    to.load(&taken.meta, taken.pieces()).await.unwrap();
    let (log, everything) = (slow_log(pieces, Duration::from_millis(10)), everything());
    let mut breaks = 0;
    let trouble = async {
        let mut conn = server.conn().await;
        loop {
            tokio::time::sleep(Duration::from_millis(40)).await;
            let channels: Vec<mysql_async::Row> = conn.query("SHOW REPLICA STATUS").await.unwrap();
            let is_on = |row: &mysql_async::Row| {
                row.get::<String, _>("Replica_IO_Running").is_some_and(|state| state == "Yes")
            };
            if breaks < 8 && channels.iter().any(is_on) {
                conn.query_drop("STOP REPLICA IO_THREAD").await.unwrap();
                conn.query_drop("START REPLICA IO_THREAD").await.unwrap();
                breaks += 1;
            }
        }
    };
    let applied = tokio::select! {
        applied = to.replay(&taken.meta, log, &everything) => applied.unwrap(),
        never = trouble => never,
    };
    assert!(breaks >= 3, "{breaks} breaks");
    to.finish(&applied).await.unwrap();
    assert_same(&moment(&server).await, &then);
}

#[tokio::test]
async fn what_somebody_else_writes_into_the_target_is_found() {
    let (source, taken) = counted(50).await;
    let log = open_log(log_of(&source, &taken.meta.position).await, None);
    let server = Mysqld::start(&[]).await;
    let mut to = target(&server);
    to.preflight(&needs(&source).await).await.unwrap();
    to.load(&taken.meta, taken.pieces()).await.unwrap();
    server.sql("CREATE DATABASE stray").await;
    let error = to.replay(&taken.meta, log, &everything()).await.unwrap_err();
    assert_eq!(error.class(), Class::Finding, "{error}");
    assert!(error.to_string().contains("surplus"), "{error}");
}

#[tokio::test]
async fn random_work_comes_back_in_fewer_transactions() {
    for seed in [1, 2, 3] {
        comes_back(seed).await;
    }
}

/// `cargo nextest run --run-ignored only --no-capture two_hundred_seeds`.
#[tokio::test]
#[ignore = "takes an hour"]
async fn two_hundred_seeds_come_back() {
    for seed in 100..300 {
        comes_back(seed).await;
        println!("seed {seed} came back");
    }
}

#[tokio::test]
async fn a_log_that_is_not_merged_is_refused_before_anything_changes() {
    let source = Mysqld::start(&["--gtid-mode=OFF", "--enforce-gtid-consistency=OFF"]).await;
    let server = Mysqld::start(&[]).await;
    let mut needs = needs(&source).await;
    needs.anonymous = true;
    let error = target(&server).preflight(&needs).await.unwrap_err();
    assert_eq!(error.class(), Class::Refused);
    assert!(error.to_string().contains("without GTIDs are not merged"), "{error}");
    needs.anonymous = false;
    needs.version = "10.11.6-MariaDB".into();
    let error = target(&server).preflight(&needs).await.unwrap_err();
    assert_eq!(error.class(), Class::Refused);
    assert!(error.to_string().contains("MariaDB is not merged"), "{error}");
}
