//! Capture of MariaDB: its own events, domains, clock and identity.

use super::harness::{Capture, Kept, SOON, recalled, source, status};
use crate::support::{Mariadbd, Mysqld, eventually};
use mysql_async::prelude::Queryable;
use pitr::engine::Source;
use pitr::engine::mysql::MysqlSource;
use pitr::record::Continuity;
use rstest::rstest;
use std::sync::Arc;
use std::time::Duration;

const TABLE: &str = "CREATE DATABASE shop; CREATE TABLE shop.t (id INT PRIMARY KEY, b LONGBLOB)";

/// What MariaDB's log has that MySQL's has not, or has in another form. On one connection.
const ODDITIES: &str = "
    USE shop; SET gtid_domain_id = 7; INSERT INTO t VALUES (1, 'another domain');
    SET gtid_domain_id = 0; CREATE TABLE m (id INT) ENGINE = Aria; INSERT INTO m VALUES (1), (2);
    BEGIN; INSERT INTO t VALUES (2, 'x'); INSERT INTO m VALUES (3); ROLLBACK;
    BEGIN; INSERT INTO t VALUES (2, 'x'); SAVEPOINT s; INSERT INTO t VALUES (3, 'x');
    ROLLBACK TO s; COMMIT;
    CREATE SEQUENCE s; SELECT NEXT VALUE FOR s; SELECT SETVAL(s, 100);
    CREATE TABLE v (id INT) WITH SYSTEM VERSIONING; INSERT INTO v VALUES (1); UPDATE v SET id = 2;
    DELETE HISTORY FROM v;
    XA START 'a'; INSERT INTO t VALUES (10, 'xa'); XA END 'a'; XA PREPARE 'a'; FLUSH LOGS;
    XA COMMIT 'a';
    XA START 'b'; INSERT INTO t VALUES (11, 'xa'); XA END 'b'; XA PREPARE 'b'; XA ROLLBACK 'b';
    XA START 'c'; INSERT INTO t VALUES (12, 'xa'); XA END 'c'; XA COMMIT 'c' ONE PHASE;
    CREATE TABLE c AS SELECT * FROM t; DROP TABLE c;
    SET GLOBAL log_bin_compress = ON;
    INSERT INTO t VALUES (20, REPEAT('compress', 1000));
    SET binlog_format = STATEMENT; SET @u = 'u';
    CREATE TEMPORARY TABLE tmp (id INT); INSERT INTO tmp VALUES (30);
    FLUSH LOGS;
    INSERT INTO t SELECT id, @u FROM tmp; DROP TEMPORARY TABLE tmp;
    INSERT INTO m SELECT 7 WHERE RAND() < 2; CREATE TABLE c AS SELECT id, @u AS u FROM t;
    CREATE TABLE i (id INT AUTO_INCREMENT PRIMARY KEY); INSERT INTO i VALUES (), ();
    SET GLOBAL log_bin_compress = OFF; SET binlog_format = ROW;
    ALTER TABLE t ADD n INT; ANALYZE TABLE t; TRUNCATE TABLE m;
    SET SESSION server_id = 77; INSERT INTO m VALUES (9);
    SET timestamp = 2147483000; INSERT INTO m VALUES (10)";

async fn oddities(server: &Mysqld) {
    let mut conn = server.conn().await;
    for statement in ODDITIES.split(';') {
        if statement.trim() == "FLUSH LOGS" {
            // Not with a prepared transaction in the same session.
            server.sql(statement).await;
            continue;
        }
        conn.query_drop(statement).await.unwrap_or_else(|error| panic!("{error} in {statement}"));
    }
    conn.query_drop("INSERT INTO shop.t (id, b) VALUES (99, REPEAT('x', 20000000))").await.unwrap();
    conn.disconnect().await.unwrap();
}

/// How many transactions the server itself finds in its files.
async fn transactions(server: &Mysqld, kept: &Kept) -> u64 {
    let mut count = 0;
    for file in kept.files.keys() {
        let events: Vec<mysql_async::Row> =
            server.rows(&format!("SHOW BINLOG EVENTS IN '{file}'")).await;
        let is_gtid = |row: &&mysql_async::Row| row.get::<String, _>(2).unwrap() == "Gtid";
        count += events.iter().filter(is_gtid).count() as u64;
    }
    count
}

/// What the server says of its log, as a set: the variable has no order within a domain.
async fn state(server: &Mysqld) -> Vec<String> {
    sorted(&server.row::<(String,)>("SELECT @@gtid_binlog_state").await.0)
}

fn sorted(state: &str) -> Vec<String> {
    let mut state: Vec<String> = state.split(',').map(str::to_owned).collect();
    state.sort();
    state
}

async fn captured(args: &[&str]) -> (Mysqld, Arc<MysqlSource>, Capture) {
    let server = Mariadbd::start(args).await;
    server.sql(TABLE).await;
    let source = source(&server);
    let capture = Capture::start(&source);
    capture.caught_up(&server).await;
    (server, source, capture)
}

#[rstest]
#[case::the_one_from_apt("10.11", "CRC32")]
#[case::without_checksums("10.11", "NONE")]
#[case::with_zero_end_positions("11.8", "CRC32")]
#[case::the_oldest("10.5", "CRC32")]
#[tokio::test]
async fn captured_files_are_those_on_the_disk(#[case] version: &str, #[case] checksum: &str) {
    let checksum = format!("--binlog-checksum={checksum}");
    let args = ["--max-allowed-packet=64M", "--gtid-strict-mode=OFF", &checksum];
    let mut server = match version {
        "11.8" => Mariadbd::start_11_8(&args).await,
        "10.5" => Mariadbd::start_10_5(&args).await,
        _ => Mariadbd::start(&args).await,
    };
    // The server's own history: the capture joins at the beginning of the current file.
    server.sql("CREATE DATABASE before_capture; FLUSH LOGS").await;
    server.sql(TABLE).await;
    let source = source(&server);
    let capture = Capture::start(&source);
    // A first capture begins with the file that is written when it looks.
    capture.caught_up(&server).await;
    oddities(&server).await;
    // Numbers out of order, and one twice: the list of the next file has the last, not the largest.
    for n in [5000, 3000, 3000] {
        server.sql(&format!("SET gtid_seq_no = {n}; INSERT INTO shop.m VALUES ({n})")).await;
    }
    server.sql("FLUSH LOGS; FLUSH LOGS; INSERT INTO shop.m VALUES (11)").await;
    capture.caught_up(&server).await;
    server.stop().await;
    let (kept, error) = capture.failed().await;
    assert_eq!(error.class().exit_code(), 3, "{error}");
    server.restart().await;
    server.sql("DELETE FROM shop.t WHERE id = 2").await;
    let capture = Capture::go_on(&source, kept);
    capture.caught_up(&server).await;
    let kept = capture.stop().await;

    kept.assert_same_files(&server);
    assert_eq!(kept.records(), transactions(&server, &kept).await);
    assert!(kept.records() > 35, "{}", kept.records());
    assert_eq!(kept.files.len(), 6);
    let (at, continuity) = &kept.opened[0];
    assert_eq!((at.log.as_str(), at.offset, continuity), ("binlog.000002", 0, &Continuity::Begins));
    assert_eq!(kept.opened.len(), 2);
    assert_eq!(kept.opened[1].1, Continuity::Continues);
    let whole = kept.whole.as_ref().unwrap();
    assert_eq!(sorted(&whole.gtids), state(&server).await);
    assert!(sorted(&whole.gtids).iter().any(|gtid| gtid.starts_with("7-")), "{}", whole.gtids);
    assert_eq!(whole.offset, status(&server).await.1);
    assert!(kept.server.version.starts_with(version), "{:?}", kept.server);
    assert!(kept.origins.contains(&77) && kept.origins.contains(&server.server_id()));
    // One session gave its events a time in the year 2038.
    let now = pitr::clock::Timestamp::now();
    assert!(kept.chunks.iter().all(|chunk| chunk.last_at.is_none_or(|at| at <= now)));
}

#[rstest]
#[case::the_same_process(false)]
#[case::another_process(true)]
#[tokio::test]
async fn a_capture_cut_off_within_a_transaction_has_it_once(#[case] restarted: bool) {
    let (server, first, capture) = captured(&["--max-allowed-packet=64M"]).await;
    let before = capture.kept().whole.unwrap();
    let rows = "INSERT INTO t SELECT 10 + seq, REPEAT('r', 1000000) FROM seq_1_to_30";
    server.sql(&format!("USE shop; {rows}")).await;
    capture.until("a part of it is here", |kept| kept.chunks.len() > 5).await;
    let kept = capture.stop().await;
    assert_eq!(kept.whole, Some(before.clone()), "the transaction is not whole yet");
    let source = if restarted { source(&server) } else { first };
    let capture = Capture::go_on(&source, kept);
    capture.caught_up(&server).await;
    let kept = capture.stop().await;
    assert_eq!(kept.opened[1], (before, Continuity::Continues));
    assert_eq!(kept.records(), 3);
    kept.assert_same_files(&server);
}

#[rstest]
#[case::the_same_process(false)]
#[case::another_process(true)]
#[tokio::test]
async fn a_capture_goes_on_in_the_next_file_after_a_crash_of_the_source(#[case] restarted: bool) {
    let (mut server, first, capture) = captured(&[]).await;
    server.sql("INSERT INTO shop.t VALUES (1, 'x')").await;
    capture.caught_up(&server).await;
    server.kill();
    let (kept, _) = capture.failed().await;
    server.restart().await;
    server.sql("SET gtid_domain_id = 3; INSERT INTO shop.t VALUES (2, 'x')").await;
    let source = if restarted { source(&server) } else { first };
    let capture = Capture::go_on(&source, kept);
    capture.caught_up(&server).await;
    let kept = capture.stop().await;
    assert_eq!(kept.opened[1].1, Continuity::Continues);
    assert_eq!((kept.files.len(), kept.records()), (2, 4));
    assert_eq!(sorted(&kept.whole.unwrap().gtids), state(&server).await);
}

fn assert_broken(kept: &Kept, server_file: &str, reason: &str) {
    let (at, continuity) = kept.opened.last().unwrap();
    assert_eq!((at.log.as_str(), at.offset), (server_file, 0));
    let Continuity::Broken(said) = continuity else { panic!("{continuity:?}") };
    assert!(said.contains(reason), "{said}");
}

/// Continues, and expects that the source has another history.
async fn breaks(server: &Mysqld, source: &Arc<MysqlSource>, kept: Kept, file: &str, reason: &str) {
    let capture = Capture::go_on(source, kept);
    capture.caught_up(server).await;
    let kept = capture.stop().await;
    assert_broken(&kept, file, reason);
    kept.assert_same_files(server);
    assert_eq!(sorted(&kept.whole.unwrap().gtids), state(server).await);
}

#[rstest]
#[case::the_same_process(false)]
#[case::another_process(true)]
#[tokio::test]
async fn a_purged_file_is_a_break(#[case] restarted: bool) {
    let (server, first, capture) = captured(&[]).await;
    let kept = capture.stop().await;
    server.sql("FLUSH LOGS; FLUSH LOGS; DO SLEEP(0.2)").await;
    server.sql("PURGE BINARY LOGS TO 'binlog.000003'").await;
    let source = if restarted { source(&server) } else { first };
    breaks(&server, &source, kept, "binlog.000003", "has purged binlog.000001").await;
}

#[tokio::test]
async fn a_source_that_is_reset_under_a_running_capture_is_a_break() {
    let (server, source, capture) = captured(&[]).await;
    server.sql("RESET MASTER; INSERT INTO shop.t VALUES (1, 'x')").await;
    let (kept, error) = capture.failed().await;
    println!("{error}");
    breaks(&server, &source, kept, "binlog.000001", "reset").await;
}

#[rstest]
#[case::shorter(false, 0)]
#[case::longer_than_before(false, 30)]
#[case::longer_for_another_process(true, 30)]
#[tokio::test]
async fn a_source_that_was_reset_is_a_break(#[case] restarted: bool, #[case] more: u32) {
    let (server, first, capture) = captured(&[]).await;
    let kept = capture.stop().await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    server.sql("RESET MASTER").await;
    for id in 0..more {
        server.sql(&format!("INSERT INTO shop.t VALUES ({id}, REPEAT('x', 100))")).await;
    }
    let source = if restarted { source(&server) } else { first };
    let reason = if more == 0 { "has lost transactions" } else { "captured" };
    breaks(&server, &source, kept, "binlog.000001", reason).await;
}

/// The same transactions in files of the same names and lengths: only a part of the bytes tells.
#[tokio::test]
async fn a_source_that_is_reset_and_does_the_same_again_is_a_break() {
    let (server, _, capture) = captured(&[]).await;
    let kept = capture.stop().await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    server.sql(&format!("DROP DATABASE shop; RESET MASTER; {TABLE}")).await;
    let place = kept.whole.clone().unwrap();
    assert_eq!(status(&server).await.1, place.offset);
    let another_process = source(&server);
    let last = kept.files[&place.log].clone().into();
    another_process.recall(&kept.server, Some(recalled(place.clone(), last)));
    breaks(&server, &another_process, kept, "binlog.000001", "was reset").await;
}

#[tokio::test]
async fn numbers_that_went_back_and_a_deleted_domain_are_no_break() {
    let (server, _, capture) = captured(&["--gtid-strict-mode=OFF"]).await;
    server.sql("SET gtid_domain_id = 9; INSERT INTO shop.t VALUES (1, 'x')").await;
    server.sql("SET gtid_seq_no = 500; INSERT INTO shop.t VALUES (2, 'x')").await;
    capture.caught_up(&server).await;
    let kept = capture.stop().await;
    // The archive knows 0-…-500, the server ends with a smaller number.
    server.sql("SET gtid_seq_no = 100; INSERT INTO shop.t VALUES (3, 'x'); FLUSH LOGS").await;
    server.sql("FLUSH LOGS; FLUSH LOGS").await;
    let capture = Capture::go_on(&source(&server), kept);
    capture.caught_up(&server).await;
    eventually("no file has the domain any more", SOON, async || {
        // Files that are not flushed to the engines yet stay.
        let mut conn = server.conn().await;
        conn.query_drop("PURGE BINARY LOGS TO 'binlog.000004'").await.unwrap();
        conn.query_drop("FLUSH BINARY LOGS DELETE_DOMAIN_ID = (9)").await.ok()
    })
    .await;
    server.sql("INSERT INTO shop.t VALUES (4, 'x')").await;
    capture.caught_up(&server).await;
    let kept = capture.stop().await;
    assert_eq!(kept.opened[1].1, Continuity::Continues);
    let whole = kept.whole.unwrap();
    assert!(sorted(&whole.gtids).iter().all(|gtid| !gtid.starts_with("9-")), "{}", whole.gtids);
    assert_eq!(sorted(&whole.gtids), state(&server).await);
}

/// Marks under load: everything a client saw committed before one lies before it, and what lies
/// before it was written before it, but for the time that taking it took.
#[tokio::test]
async fn clock_samples_tell_when_the_log_was_where() {
    let (server, source, capture) = captured(&["--max-binlog-size=100K"]).await;
    let now = "SELECT CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000000 AS SIGNED)";
    let writers = (0..4).map(|writer| {
        let opts = server.opts();
        tokio::spawn(async move {
            let mut conn = mysql_async::Conn::new(opts).await.unwrap();
            let mut times = vec![];
            let begun = std::time::Instant::now();
            for n in (1..).take_while(|_| begun.elapsed() < Duration::from_secs(2)) {
                let id = 100_000 * (writer + 1) + n;
                let before: i64 = conn.query_first(now).await.unwrap().unwrap();
                let insert = format!("INSERT INTO shop.t VALUES ({id}, REPEAT('x', 300))");
                conn.query_drop(insert).await.unwrap();
                let after: i64 = conn.query_first(now).await.unwrap().unwrap();
                times.push((id, (before, after)));
            }
            times
        })
    });
    let mut times = std::collections::BTreeMap::new();
    for writer in writers.collect::<Vec<_>>() {
        times.extend(writer.await.unwrap());
    }
    capture.caught_up(&server).await;
    capture.until("the idle source has a mark", |kept| !kept.marks.is_empty()).await;
    let kept = capture.stop().await;
    // Where each row stands: file and offset of its statement's text.
    let mut rows = vec![];
    for (file, bytes) in &kept.files {
        let text = String::from_utf8_lossy(bytes);
        let statements = text.split("VALUES (").skip(1);
        let ids = statements.map(|rest| rest.split(',').next().unwrap().parse::<i64>().unwrap());
        let heads = bytes.windows(8).enumerate().filter(|(_, w)| w == b"VALUES (");
        for (id, (at, _)) in ids.zip(heads) {
            let (before, after) = times[&id];
            rows.push((file.clone(), at as u64, before, after));
        }
    }
    assert_eq!(rows.len(), times.len());
    let marks: Vec<_> = kept
        .chunks
        .iter()
        .flat_map(|chunk| chunk.marks.iter().map(|mark| (chunk.log.clone(), *mark)))
        .collect();
    assert!(marks.len() >= 5, "{} marks", marks.len());
    for (log, mark) in &marks {
        let (at, place) = (mark.at.as_micros(), (log, mark.offset));
        for (file, offset, before, after) in &rows {
            assert!(*after > at || (file, *offset) < place, "{place:?} {at}: {file}:{offset}");
            let span = 20_000;
            assert!(*before < at + span || (file, *offset) > place, "{place:?}: {file}:{offset}");
        }
    }
    // Each of them is a boundary between transactions.
    for (log, mark) in marks {
        let file = bytes::Bytes::from(kept.files[&log].clone());
        let from = kept.logs.iter().chain([&kept.opened[0].0]).find(|at| at.log == log).unwrap();
        let (send, pieces) = tokio::sync::mpsc::channel(10);
        let piece = pitr::record::Piece::Log { at: from.clone(), head: file.clone() };
        send.send(Ok(piece)).await.unwrap();
        send.send(Ok(pitr::record::Piece::Bytes(file))).await.unwrap();
        drop(send);
        source.locate(from.clone(), pieces, mark.offset).await.unwrap();
    }
}

#[tokio::test]
async fn a_mariadb_that_cannot_be_captured_is_refused_by_name() {
    let server = Mariadbd::start(&["--version=10.4.34-MariaDB-log"]).await;
    let (_, error) = Capture::start(&source(&server)).failed().await;
    assert_eq!(error.class().exit_code(), 6, "{error}");
    assert!(error.hint_text().unwrap().contains("10.5"), "{error:?}");
    let server = Mariadbd::start(&["--binlog-ignore-db=scratch"]).await;
    let (_, error) = Capture::start(&source(&server)).failed().await;
    assert_eq!(error.class().exit_code(), 6, "{error}");
    assert!(error.to_string().contains("binlog_ignore_db=scratch"), "{error}");
}
