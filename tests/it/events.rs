//! The event matrix: whatever a server can write into its binlog is archived byte for byte, and
//! leads a restored server to the same content.

use crate::export::{events, until_durable};
use crate::instants::until_windows;
use crate::support::{Daemon, Mysqld, Pitr, Proxy, eventually, program};
use mysql_async::Conn;
use mysql_async::prelude::Queryable;
use pitr::engine::digest::Digest;
use pitr::engine::mysql;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

pub(crate) const SCHEMA: &str = "
    CREATE DATABASE e; USE e;
    CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, a VARCHAR(200), b LONGBLOB, j JSON,
        g INT AS (LENGTH(a)) STORED, h INT INVISIBLE DEFAULT 7, v VECTOR(3));
    CREATE TABLE m (id INT AUTO_INCREMENT PRIMARY KEY, a VARCHAR(40)) ENGINE = MyISAM;
    CREATE TABLE p (id INT PRIMARY KEY);
    CREATE TABLE c (id INT PRIMARY KEY, p INT, KEY (p),
        FOREIGN KEY (p) REFERENCES p (id) ON DELETE CASCADE ON UPDATE SET NULL)";

/// Row events in all their forms.
pub(crate) const ROWS: [&str; 8] = [
    "SET GTID_NEXT = 'AUTOMATIC:tag_a'; INSERT INTO e.t (a) VALUES ('tagged');
     SET GTID_NEXT = 'AUTOMATIC'",
    "SET binlog_transaction_compression = ON; BEGIN;
     INSERT INTO e.t (a, b) VALUES ('compressed', REPEAT('abc', 100000));
     UPDATE e.t SET a = CONCAT(a, '!') WHERE a = 'tagged'; COMMIT;
     SET GTID_NEXT = 'AUTOMATIC:tag_b'; DELETE FROM e.t WHERE a = 'none';
     INSERT INTO e.t (a) VALUES ('tagged and compressed')",
    "INSERT INTO e.t (a, j) VALUES ('json', JSON_OBJECT('k', REPEAT('x', 500), 'n', 1));
     SET binlog_row_value_options = PARTIAL_JSON;
     UPDATE e.t SET j = JSON_SET(j, '$.n', 2) WHERE a = 'json';
     UPDATE e.t SET j = JSON_REMOVE(j, '$.k') WHERE a = 'json'",
    "SET binlog_row_image = MINIMAL; UPDATE e.t SET a = 'minimal' WHERE a = 'json';
     INSERT INTO e.t (a) VALUES ('minimal too'); DELETE FROM e.t WHERE a = 'minimal too';
     SET binlog_row_image = NOBLOB; UPDATE e.t SET a = 'no blob' WHERE a = 'compressed'",
    "SET binlog_rows_query_log_events = ON;
     INSERT INTO e.t (a, v, h) VALUES ('vector', STRING_TO_VECTOR('[1,2,3]'), 9)",
    "INSERT INTO e.p VALUES (1), (2), (3); INSERT INTO e.c VALUES (1, 1), (2, 1), (3, 2), (4, 3);
     DELETE FROM e.p WHERE id = 1; UPDATE e.p SET id = 20 WHERE id = 2",
    "BEGIN; INSERT INTO e.t (a) VALUES ('kept'); SAVEPOINT s; INSERT INTO e.t (a) VALUES ('gone');
     ROLLBACK TO s; INSERT INTO e.t (a) VALUES ('kept too'); RELEASE SAVEPOINT s; COMMIT;
     BEGIN; INSERT INTO e.t (a) VALUES ('all gone'); ROLLBACK;
     INSERT INTO e.m (a) VALUES ('1'), ('2'); UPDATE e.m SET a = 'x';
     BEGIN; INSERT INTO e.m (a) VALUES ('stays'); INSERT INTO e.t (a) VALUES ('goes'); ROLLBACK",
    "CREATE TABLE e.s AS SELECT id, a, h FROM e.t; CREATE TABLE e.empty SELECT 1 AS x LIMIT 0;
     SET sql_generate_invisible_primary_key = ON; CREATE TABLE e.gipk (a INT);
     INSERT INTO e.gipk VALUES (1), (1); DELETE FROM e.gipk LIMIT 0; TRUNCATE e.empty;
     ALTER TABLE e.s ADD COLUMN late INT DEFAULT 3, ALGORITHM = INSTANT; DROP TABLE e.empty",
];

/// Statements as events, with what stands in front of them.
pub(crate) const STATEMENTS: [&str; 4] = [
    "SET binlog_format = STATEMENT; SET @u = 'user variable', @d = 1.5, @n = NULL;
     INSERT INTO e.t (a) VALUES (@u), (@d), (@n); INSERT INTO e.t (a) VALUES (CONCAT(RAND()));
     INSERT INTO e.m (a) VALUES (LAST_INSERT_ID()), (NOW(6)); DELETE FROM e.m WHERE a = 'x'",
    "SET binlog_format = STATEMENT; BEGIN; INSERT INTO e.t (a) VALUES ('s1'); SAVEPOINT s;
     INSERT INTO e.t (a) VALUES ('s2'); ROLLBACK TO s; COMMIT;
     BEGIN; INSERT INTO e.m (a) VALUES ('stays'); INSERT INTO e.t (a) VALUES ('goes'); ROLLBACK;
     SET time_zone = '+05:30', sql_mode = 'ANSI_QUOTES', character_set_client = latin1;
     INSERT INTO e.t (a) VALUES (FROM_UNIXTIME(1700000000)), ('\u{e9}')",
    "SET binlog_format = MIXED; INSERT INTO e.t (a) VALUES ('mixed'); UPDATE e.t SET a = UUID()
     WHERE a = 'mixed'; INSERT INTO e.t (a) SELECT a FROM e.m LIMIT 1",
    "SET binlog_format = STATEMENT; ALTER TABLE e.p ADD COLUMN x INT; CREATE VIEW e.w AS SELECT 1",
];

/// Types of events (`Log_event_type` in the server's `binlog_event.h`) that the matrix has to have
/// in its files: all that MySQL 9 writes, but for those of group replication and INCIDENT.
const KINDS: [u8; 22] =
    [2, 3, 4, 5, 9, 13, 14, 15, 16, 17, 18, 19, 29, 30, 31, 32, 33, 35, 38, 39, 40, 42];

/// What stands in QUERY events, or in other words of `mysqlbinlog`.
const WORDS: [&str; 6] =
    ["XA COMMIT", "XA ROLLBACK", "ONE PHASE", "SAVEPOINT", "CREATE TEMPORARY", "START TRANSACTION"];

/// The types of the events of a file.
fn kinds(file: &[u8]) -> BTreeSet<u8> {
    let (mut kinds, mut rest) = (BTreeSet::new(), &file[4..]);
    while !rest.is_empty() {
        kinds.insert(rest[4]);
        rest = &rest[u32::from_le_bytes(rest[9..13].try_into().unwrap()) as usize..];
    }
    kinds
}

async fn run(conn: &mut Conn, statements: &str) {
    conn.query_drop(statements).await.unwrap_or_else(|error| panic!("{error}\nin: {statements}"));
}

async fn digest(server: &Mysqld) -> Digest {
    let mut conn = server.conn().await;
    let digest = mysql::digest::digest(&mut conn).await.unwrap();
    conn.disconnect().await.unwrap();
    digest
}

/// Loads a file through the client program, which alone can send one.
fn load(server: &Mysqld, local: bool, format: &str, file: &Path) {
    let local = if local { "LOCAL" } else { "" };
    let statement = format!(
        "SET binlog_format = {format}; LOAD DATA {local} INFILE '{}' INTO TABLE e.t
         FIELDS TERMINATED BY ',' (@x, b) SET a = CONCAT('{format}', @x)",
        file.display()
    );
    let output = Command::new(program("mysql"))
        .args(["--no-defaults", "--local-infile=1", "-uroot", "-h127.0.0.1"])
        .args([format!("-P{}", server.port()), format!("-e{statement}")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// LOAD DATA, of a file on the server and of one that the client sends, in every format.
fn load_files(server: &Mysqld) {
    let file = server.datadir().join("e/rows.csv");
    let rows: Vec<String> = (0..2000).map(|n| format!("{n},{}\n", "blob".repeat(n % 50))).collect();
    std::fs::write(&file, rows.concat()).unwrap();
    for (local, format) in
        [(false, "STATEMENT"), (true, "STATEMENT"), (false, "ROW"), (true, "MIXED")]
    {
        load(server, local, format, &file);
    }
}

/// What a ROLLBACK leaves of transactions on tables with and without transactions.
async fn mixed_engines(source: &Mysqld) {
    let counts: (u64, u64) = source
        .row(
            "SELECT (SELECT COUNT(*) FROM e.m WHERE a = 'stays'),
             (SELECT COUNT(*) FROM e.t WHERE a = 'goes')",
        )
        .await;
    assert_eq!(counts, (2, 0));
    // With GTIDs, the other order is in no log: the server refuses it (ER_GTID_UNSAFE_…, 1785).
    let mut conn = source.conn().await;
    run(&mut conn, "BEGIN; INSERT INTO e.t (a) VALUES ('first')").await;
    let refused = conn.query_drop("INSERT INTO e.m (a) VALUES ('second')").await.unwrap_err();
    assert!(refused.to_string().contains("1785"), "{refused}");
    run(&mut conn, "ROLLBACK").await;
}

async fn restored(pitr: &Pitr, to: &str) -> Mysqld {
    let target = Mysqld::start(&["--max-allowed-packet=1G"]).await;
    let name = format!("shop-mysql={}", target.url());
    pitr.run(&["restore", "--to", to, "--target", &name]).await.ok();
    target
}

#[tokio::test]
async fn every_event_of_a_server_is_archived_byte_for_byte_and_restored() {
    let mut source = Mysqld::start(&[
        "--max-allowed-packet=64M",
        "--secure-file-priv=",
        "--local-infile=ON",
        "--binlog-row-metadata=FULL",
    ])
    .await;
    source.sql(SCHEMA).await;
    let pitr = Pitr::new(&[("shop-mysql", source.url())]);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;

    for statements in ROWS {
        source.sql(statements).await;
    }
    // A dump that is cut off from the other side goes on where it was.
    let dumps: Vec<u64> = source
        .rows("SELECT id FROM performance_schema.processlist WHERE command LIKE 'Binlog Dump%'")
        .await;
    assert_eq!(dumps.len(), 1);
    source.sql(&format!("KILL {}", dumps[0])).await;
    // The checksums of events, switched off and on.
    source.sql("SET GLOBAL binlog_checksum = NONE; INSERT INTO e.t (a) VALUES ('no crc')").await;
    source.sql("SET GLOBAL binlog_checksum = CRC32; FLUSH BINARY LOGS").await;
    for statements in STATEMENTS {
        source.sql(statements).await;
    }
    load_files(&source);
    mixed_engines(&source).await;

    // XA over the end of a file, and a temporary table.
    let (mut one, mut two, mut temporary) =
        (source.conn().await, source.conn().await, source.conn().await);
    run(&mut one, "XA START 'a', 'b', 5; INSERT INTO e.t (a) VALUES ('xa'); XA END 'a', 'b', 5")
        .await;
    run(&mut one, "XA PREPARE 'a', 'b', 5").await;
    run(&mut two, "XA START 'r'; INSERT INTO e.t (a) VALUES ('never'); XA END 'r'; XA PREPARE 'r'")
        .await;
    run(&mut temporary, "SET binlog_format = STATEMENT").await;
    run(&mut temporary, "CREATE TEMPORARY TABLE e.tmp (a INT); INSERT INTO e.tmp VALUES (1), (2)")
        .await;
    source.sql("FLUSH BINARY LOGS; INSERT INTO e.t (a) VALUES ('between')").await;
    until_durable(&pitr, &mut daemon).await;
    let prepared_at = pitr::clock::Timestamp::now().to_string();
    until_durable(&pitr, &mut daemon).await;
    let prepared = digest(&source).await;
    daemon.kill();
    run(&mut temporary, "INSERT INTO e.t (a) SELECT CONCAT('tmp', a) FROM e.tmp; DROP TABLE e.tmp")
        .await;
    run(&mut one, "XA COMMIT 'a', 'b', 5").await;
    run(&mut two, "XA ROLLBACK 'r'").await;
    run(&mut two, "XA START 'o'; INSERT INTO e.t (a) VALUES ('one phase'); XA END 'o'").await;
    run(&mut two, "XA COMMIT 'o' ONE PHASE").await;
    let mut daemon = pitr.spawn_run();
    // A transaction without anything in it.
    source
        .sql(
            "SET GTID_NEXT = '3e11fa47-71ca-11e1-9e33-c80aa9429562:1'; BEGIN; COMMIT;
             SET GTID_NEXT = '3e11fa47-71ca-11e1-9e33-c80aa9429562:tag:5'; COMMIT",
        )
        .await;
    drop((one, two, temporary));
    // The end of a file without a ROTATE.
    source.restart().await;
    source.sql("INSERT INTO e.t (a) VALUES ('after the restart'); FLUSH BINARY LOGS").await;
    source.sql("DELETE FROM e.c").await;
    until_durable(&pitr, &mut daemon).await;
    let end = pitr::clock::Timestamp::now().to_string();
    until_durable(&pitr, &mut daemon).await;
    let (content, gtids) = (digest(&source).await, source.gtid_executed().await);
    assert!(daemon.terminate(Duration::from_secs(5)).await.success());

    same_files(&pitr, &source).await;
    for (to, expected) in [(&prepared_at, &prepared), (&end, &content)] {
        let target = restored(&pitr, to).await;
        assert_eq!(expected.diff(&digest(&target).await), [""; 0], "to {to}");
        let open: Vec<mysql_async::Row> = target.rows("XA RECOVER").await;
        assert_eq!(open.len(), if *to == end { 0 } else { 2 });
        if *to == end {
            assert_eq!(target.gtid_executed().await, gtids);
        } else {
            // What was prepared can still be committed.
            target.sql("XA COMMIT 'a', 'b', 5; XA ROLLBACK 'r'").await;
            let xa: u64 = target.row("SELECT COUNT(*) FROM e.t WHERE a IN ('xa', 'never')").await;
            assert_eq!(xa, 1);
        }
    }
}

/// Exports, and compares with the files of the server, which have every kind of event in them.
async fn same_files(pitr: &Pitr, source: &Mysqld) {
    let args = ["export", "--source", "shop-mysql", "--json", "--out", "exported"];
    let report = pitr.run(&args).await.ok().json();
    let files = report["files"].as_array().unwrap();
    assert!(files.len() >= 6, "{report:#}");
    let (mut text, mut seen) = (String::new(), BTreeSet::new());
    for file in files {
        let (name, log) = (file["file"].as_str().unwrap(), file["log"].as_str().unwrap());
        let exported = pitr.dir().join("exported").join(name);
        let ours = std::fs::read(&exported).unwrap();
        let mut theirs = std::fs::read(source.datadir().join(log)).unwrap();
        if file["extent"] != "whole" {
            theirs[4 + 17] = 0;
        }
        assert!(ours == theirs, "{name} differs");
        text += &events("mysqlbinlog", &exported);
        seen.extend(kinds(&ours));
    }
    for kind in KINDS {
        assert!(seen.contains(&kind), "no event of type {kind} among {seen:?}");
    }
    for word in WORDS {
        assert!(text.contains(word), "no {word}");
    }
}

/// A server behind a proxy, its archive, and a daemon that captures it.
async fn behind_a_proxy() -> (Mysqld, Proxy, Pitr, Daemon) {
    let source = Mysqld::start(&["--binlog-rows-query-log-events=ON"]).await;
    source.sql("CREATE DATABASE e; CREATE TABLE e.t (a INT PRIMARY KEY)").await;
    let proxy = Proxy::start(source.port()).await;
    let pitr = Pitr::new(&[("shop-mysql", proxy.url())]);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    (source, proxy, pitr, daemon)
}

#[tokio::test]
async fn an_incident_is_a_gap_with_a_reason_and_a_new_baseline_behind_it() {
    let (source, _proxy, pitr, mut daemon) = behind_a_proxy().await;
    source.sql("INSERT INTO e.t VALUES (1)").await;
    until_durable(&pitr, &mut daemon).await;
    let before = pitr::clock::Timestamp::now().to_string();
    until_durable(&pitr, &mut daemon).await;
    source.sql("INSERT INTO e.t VALUES (2) /* becomes type 26 */").await;
    let inside = pitr::clock::Timestamp::now().to_string();
    // A server goes on in another file after an incident.
    source.sql("FLUSH BINARY LOGS; INSERT INTO e.t VALUES (3)").await;
    let gap = eventually("a window behind the gap", Duration::from_mins(1), async || {
        let report = pitr.run(&["windows", "--json"]).await.ok().json();
        let source = &report["sources"][0];
        let windows = source["windows"].as_array()?;
        let is_behind = windows.iter().any(|window| window["timeline"] == 2);
        (is_behind && source["baselines"].as_array()?.len() == 2).then(|| source["gaps"].clone())
    })
    .await;
    assert_eq!(gap.as_array().unwrap().len(), 1, "{gap:#}");
    assert!(gap[0]["reason"].as_str().unwrap().contains("INCIDENT"), "{gap:#}");
    assert!(daemon.log().lines().any(|l| l.contains("ERROR") && l.contains("INCIDENT")));

    let refused = pitr.run(&["restore", "--to", &inside, "--into", "inside", "--json"]).await;
    let refused = refused.exits(4).error_json();
    assert!(refused["message"].as_str().unwrap().contains("INCIDENT"), "{refused:#}");
    assert_eq!(refused["nearest"].as_array().unwrap().len(), 2, "{refused:#}");
    until_durable(&pitr, &mut daemon).await;
    for (to, rows) in [(before.as_str(), 1), ("latest", 3)] {
        let target = restored(&pitr, to).await;
        assert_eq!(target.row::<u64>("SELECT COUNT(*) FROM e.t").await, rows);
    }
}

#[tokio::test]
async fn an_event_of_an_unknown_type_is_stored_reported_and_never_skipped() {
    let (source, _proxy, pitr, mut daemon) = behind_a_proxy().await;
    until_durable(&pitr, &mut daemon).await;
    let before = pitr::clock::Timestamp::now().to_string();
    until_durable(&pitr, &mut daemon).await;
    for n in 1..4 {
        source.sql(&format!("INSERT INTO e.t VALUES ({n}) /* becomes type 99 */")).await;
    }
    source.sql("FLUSH BINARY LOGS").await;
    until_durable(&pitr, &mut daemon).await;
    daemon.kill();
    let report = pitr.run(&["windows", "--json"]).await.ok().json();
    let strange = &report["sources"][0]["strange_events"];
    assert_eq!(strange.as_array().unwrap().len(), 1, "{report:#}");
    assert_eq!((&strange[0]["event"], &strange[0]["timeline"]), (&99.into(), &1.into()));
    assert_eq!(daemon.log().matches("an event of type 99").count(), 1, "{}", daemon.log());
    // The archive is sound without its catalog, and has the events.
    pitr.run(&["reindex"]).await.ok();
    pitr.run(&["export", "--source", "shop-mysql", "--out", "exported"]).await.ok();
    let exported = std::fs::read(pitr.dir().join("exported/binlog.000001")).unwrap();
    assert!(kinds(&exported).contains(&99));
    assert_eq!(
        exported.len() as u64,
        std::fs::metadata(source.datadir().join("binlog.000001")).unwrap().len()
    );

    // It is said before: MySQL 9.7 stops there with error 13122, after a minute of trying again.
    let plan = pitr.run(&["restore", "--to", "latest", "--plan", "--json"]).await.ok();
    assert_eq!(plan.json()["sources"][0]["strange_events"], serde_json::json!([99]));
    assert!(plan.stderr.contains("events of type 99"), "{plan:?}");
    // What stands before is as good as ever.
    let target = restored(&pitr, &before).await;
    assert_eq!(target.row::<u64>("SELECT COUNT(*) FROM e.t").await, 0);
}

/// The largest frame of the protocol, in bytes. A packet has one byte more than its event.
const FRAME: usize = 0xff_ffff;

/// The lengths of the events of a file.
fn lengths(file: &Path) -> BTreeSet<usize> {
    let bytes = std::fs::read(file).unwrap();
    let (mut lengths, mut rest) = (BTreeSet::new(), &bytes[4..]);
    while !rest.is_empty() {
        let length = u32::from_le_bytes(rest[9..13].try_into().unwrap()) as usize;
        lengths.insert(length);
        rest = &rest[length..];
    }
    lengths
}

#[tokio::test]
async fn events_that_fill_their_frames_exactly_pass_both_ways() {
    let source = Mysqld::start(&["--max-allowed-packet=1G"]).await;
    let pitr = Pitr::new(&[("shop-mysql", source.url())]);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    source.sql("CREATE DATABASE e; CREATE TABLE e.b (n INT PRIMARY KEY, x LONGBLOB)").await;
    source.sql("INSERT INTO e.b VALUES (0, REPEAT('x', 100000))").await;
    let file = source.datadir().join("binlog.000001");
    let overhead = lengths(&file).last().unwrap() - 100_000;
    for (n, length) in [(1, FRAME - 1), (2, FRAME), (3, 2 * FRAME - 1)] {
        let bytes = length - overhead;
        source.sql(&format!("INSERT INTO e.b VALUES ({n}, REPEAT('x', {bytes}))")).await;
        assert!(lengths(&file).contains(&length), "{:?}", lengths(&file));
    }
    until_durable(&pitr, &mut daemon).await;
    let target = restored(&pitr, "latest").await;
    let sums = "SELECT COUNT(*), SUM(LENGTH(x)), SUM(CRC32(x)) FROM e.b";
    let (here, there): ((u64, u64, u64), (u64, u64, u64)) =
        (source.row(sums).await, target.row(sums).await);
    assert_eq!((here.0, here), (4, there));
}
