//! Capture of MySQL: what arrives is what the server's own files have, from every beginning and
//! over every interruption; and where that cannot be proved, it is said.

mod harness;
mod mariadb;

use crate::support::{Mysqld, eventually};
use bytes::Bytes;
use harness::{Capture, Kept, endpoint, recalled, source, source_at, status};
use mysql_async::prelude::Queryable;
use pitr::engine::mysql::MysqlSource;
use pitr::engine::{Secret, Source, TlsMode};
use pitr::position::Position;
use pitr::record::{Continuity, Piece};
use rstest::rstest;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

const TABLE: &str = "CREATE DATABASE shop; CREATE TABLE shop.t (id INT PRIMARY KEY, b LONGBLOB)";

#[tokio::test]
async fn captured_files_are_those_on_the_disk() {
    let mut server = Mysqld::start(&["--max-allowed-packet=64M"]).await;
    // The server's own history: the capture joins at the beginning of the current file.
    server.sql("CREATE DATABASE before_capture; FLUSH BINARY LOGS").await;
    server.sql(TABLE).await;
    let source = source(&server);
    let capture = Capture::start(&source);
    // A first capture begins with the file that is written when it looks.
    capture.caught_up(&server).await;
    server.sql("INSERT INTO shop.t VALUES (1, REPEAT('x', 20000000)), (2, 'y')").await;
    server.sql("FLUSH BINARY LOGS; ALTER TABLE shop.t ADD c INT; FLUSH BINARY LOGS").await;
    server.sql("FLUSH BINARY LOGS; INSERT INTO shop.t VALUES (3, 'z', 3)").await;
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
    assert_eq!(kept.assert_same_times(&server), 6);
    assert_eq!(kept.records(), 6);
    assert_eq!(kept.files.len(), 5);
    assert_eq!(kept.opened.len(), 2);
    assert_eq!(kept.opened[0].1, Continuity::Begins);
    assert_eq!((kept.opened[0].0.log.as_str(), kept.opened[0].0.offset), ("binlog.000002", 0));
    assert_eq!(kept.opened[1].1, Continuity::Continues);
    assert_eq!(kept.whole.as_ref().unwrap().gtids, server.gtid_executed().await);
    assert_eq!(kept.origins.first(), Some(&server.server_id()));
    assert_eq!(kept.whole.unwrap().offset, status(&server).await.1);
    assert_eq!(kept.server.version, server.row::<String>("SELECT VERSION()").await);
}

/// A server with one table, and a capture of it that has seen everything so far.
async fn captured(args: &[&str]) -> (Mysqld, Arc<MysqlSource>, Capture) {
    let server = Mysqld::start(args).await;
    server.sql(TABLE).await;
    let source = source(&server);
    let capture = Capture::start(&source);
    capture.caught_up(&server).await;
    (server, source, capture)
}

#[rstest]
#[case::the_same_process(false)]
#[case::another_process(true)]
#[tokio::test]
async fn a_capture_goes_on_at_the_exact_end_of_a_file(#[case] restarted: bool) {
    let (server, first, capture) = captured(&[]).await;
    let mut kept = capture.stop().await;
    for round in 0..2 {
        if round == 1 {
            server.sql("INSERT INTO shop.t VALUES (1, 'x')").await;
        }
        server.sql("FLUSH BINARY LOGS").await;
        // The archive ends with the ROTATE, before anything of the next file.
        let ended = kept.whole.clone().unwrap().log;
        let on_disk = std::fs::read(server.datadir().join(&ended)).unwrap();
        kept.files.insert(ended.clone(), on_disk.clone());
        let whole = kept.whole.as_mut().unwrap();
        whole.offset = on_disk.len() as u64;
        if round == 1 {
            whole.gtids = whole.gtids.replace("1-2", "1-3");
        }
        let source = if restarted { source(&server) } else { Arc::clone(&first) };
        let capture = Capture::go_on(&source, kept);
        capture.caught_up(&server).await;
        kept = capture.stop().await;
        assert_eq!(kept.opened.last().unwrap().1, Continuity::Continues);
        assert_eq!(kept.opened.last().unwrap().0.log, ended);
        kept.assert_same_files(&server);
    }
    assert_eq!(kept.files.len(), 3);
}

#[rstest]
#[case::the_same_process(false)]
#[case::another_process(true)]
#[tokio::test]
async fn a_capture_cut_off_within_a_transaction_has_it_once(#[case] restarted: bool) {
    let (server, first, capture) = captured(&["--max-allowed-packet=64M"]).await;
    let before = capture.kept().whole.unwrap();
    let rows = "INSERT INTO shop.t SELECT 10 + n, REPEAT('r', 1000000) FROM (
        WITH RECURSIVE s AS (SELECT 0 n UNION ALL SELECT n + 1 FROM s WHERE n < 30) SELECT n FROM s) s";
    server.sql(rows).await;
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

#[tokio::test]
async fn a_busy_log_with_rotations_is_captured_whole() {
    let (server, _, capture) = captured(&["--max-binlog-size=100K", "--sync-binlog=1"]).await;
    let writers = (0..8).map(|writer| {
        let opts = server.opts();
        tokio::spawn(async move {
            let mut conn = mysql_async::Conn::new(opts).await.unwrap();
            for n in 0..150 {
                let id = writer * 1000 + n;
                let insert = format!("INSERT INTO shop.t VALUES ({id}, REPEAT('{writer}', 500))");
                conn.query_drop(insert).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    capture.caught_up(&server).await;
    let kept = capture.stop().await;
    assert!(kept.files.len() > 5, "{}", kept.files.len());
    kept.assert_same_files(&server);
    assert_eq!(kept.assert_same_times(&server), 1202);
    assert_eq!(kept.whole.unwrap().gtids, server.gtid_executed().await);
}

#[tokio::test]
async fn an_idle_source_moves_its_mark_forward() {
    let (server, _, capture) = captured(&[]).await;
    capture.until("there are three marks", |kept| kept.marks.len() >= 3).await;
    let kept = capture.stop().await;
    let now: i64 =
        server.row::<(i64,)>("SELECT CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED)").await.0;
    let last = kept.marks.last().unwrap();
    assert_eq!(last.offset, kept.whole.unwrap().offset);
    let behind = now - last.at.as_micros();
    assert!((1_000_000..10_000_000).contains(&behind), "{behind} µs");
    assert!(kept.skew_micros.abs() < 100_000, "{} µs", kept.skew_micros);
}

#[tokio::test]
async fn checksums_may_be_off_and_change_while_it_runs() {
    let (server, _, capture) = captured(&["--binlog-checksum=NONE"]).await;
    server.sql("SET GLOBAL binlog_checksum = CRC32; INSERT INTO shop.t VALUES (1, 'x')").await;
    capture.caught_up(&server).await;
    server.sql("SET GLOBAL binlog_checksum = NONE; INSERT INTO shop.t VALUES (2, 'x')").await;
    server.sql("INSERT INTO shop.t VALUES (3, REPEAT('x', 3000000))").await;
    capture.caught_up(&server).await;
    let kept = capture.stop().await;
    assert_eq!((kept.files.len(), kept.records()), (3, 5));
    kept.assert_same_files(&server);
    assert_eq!(kept.assert_same_times(&server), 5);
    let again = Capture::go_on(&source(&server), kept);
    server.sql("INSERT INTO shop.t VALUES (4, 'x')").await;
    again.caught_up(&server).await;
    let kept = again.stop().await;
    kept.assert_same_files(&server);
    assert_eq!(kept.opened[1].1, Continuity::Continues);
}

/// How a capture that cannot go on opens again: from the start of the current file, with a reason.
fn assert_broken(kept: &Kept, server_file: &str, reason: &str) {
    let (at, continuity) = kept.opened.last().unwrap();
    assert_eq!((at.log.as_str(), at.offset), (server_file, 0));
    let Continuity::Broken(said) = continuity else { panic!("{continuity:?}") };
    assert!(said.contains(reason), "{said}");
}

#[rstest]
#[case::the_same_process(false)]
#[case::another_process(true)]
#[tokio::test]
async fn a_purged_file_is_a_break(#[case] restarted: bool) {
    let (server, first, capture) = captured(&[]).await;
    let kept = capture.stop().await;
    server.sql("FLUSH BINARY LOGS").await;
    // A file stays for as long as the server has not noticed that its reader is gone.
    eventually("the file is gone", Duration::from_secs(30), async || {
        server.sql("PURGE BINARY LOGS TO 'binlog.000002'").await;
        let files: Vec<(String, u64, String)> = server.rows("SHOW BINARY LOGS").await;
        files.iter().all(|(name, ..)| name != "binlog.000001").then_some(())
    })
    .await;
    let source = if restarted { source(&server) } else { first };
    let capture = Capture::go_on(&source, kept);
    capture.caught_up(&server).await;
    let kept = capture.stop().await;
    assert_broken(&kept, "binlog.000002", "has purged binlog.000001");
    kept.assert_same_files(&server);
}

#[rstest]
#[case::short(0)]
#[case::longer_than_before(50)]
#[tokio::test]
async fn a_reset_source_is_a_break(#[case] more: u32) {
    let (server, _, capture) = captured(&[]).await;
    let kept = capture.stop().await;
    server.sql("RESET BINARY LOGS AND GTIDS").await;
    for id in 0..more {
        server.sql(&format!("INSERT INTO shop.t VALUES ({id}, 'x')")).await;
    }
    let capture = Capture::go_on(&source(&server), kept);
    capture.caught_up(&server).await;
    let kept = capture.stop().await;
    // With enough new transactions the numbers are all there again: then the bytes tell.
    let reason = if more == 0 { "has lost transactions" } else { "is not the one" };
    assert_broken(&kept, "binlog.000001", reason);
    kept.assert_same_files(&server);
    assert_eq!(kept.records(), u64::from(more));
}

#[rstest]
#[case::the_same_process(false)]
#[case::another_process(true)]
#[tokio::test]
async fn another_server_with_the_same_transactions_is_gone_on_from_by_its_gtids(
    #[case] restarted: bool,
) {
    let (mut server, first, capture) = captured(&[]).await;
    let kept = capture.stop().await;
    server.stop().await;
    // The same address and GTIDs, files of the same names, but not the same bytes.
    let uuid = kept.server.identity.clone();
    std::fs::remove_file(server.datadir().join("auto.cnf")).unwrap();
    server.restart().await;
    let more = format!(
        "RESET BINARY LOGS AND GTIDS; SET GLOBAL gtid_purged = '{uuid}:1-2';
         INSERT INTO shop.t VALUES (1, REPEAT('x', 5000))"
    );
    server.sql(&more).await;
    let source = if restarted { source(&server) } else { first };
    let capture = Capture::go_on(&source, kept);
    capture.caught_up(&server).await;
    let kept = capture.stop().await;
    if restarted {
        // Nothing told this process which server it was.
        assert_broken(&kept, "binlog.000001", "is not the one");
    } else {
        let (at, continuity) = kept.opened.last().unwrap();
        assert!(matches!(continuity, Continuity::Joins { .. }), "{continuity:?}");
        assert_eq!((at.log.as_str(), kept.records()), ("binlog.000001", 3));
    }
    assert_ne!(kept.server.identity, uuid);
    kept.assert_same_files(&server);
}

#[tokio::test]
async fn what_a_source_was_only_told_it_executed_is_known_too() {
    let server = Mysqld::start(&[]).await;
    let foreign = "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5";
    server.sql(&format!("SET GLOBAL gtid_purged = '+{foreign}'; {TABLE}")).await;
    let capture = Capture::start(&source(&server));
    // A first capture begins with the file that is written when it looks.
    capture.caught_up(&server).await;
    server.sql("FLUSH BINARY LOGS; INSERT INTO shop.t VALUES (1, 'x'); FLUSH BINARY LOGS").await;
    capture.caught_up(&server).await;
    let mut kept = capture.stop().await;
    for round in 0..2 {
        assert_eq!(kept.whole.as_ref().unwrap().gtids, server.gtid_executed().await);
        let capture = Capture::go_on(&source(&server), kept);
        server.sql(&format!("INSERT INTO shop.t VALUES (1{round}, 'x'); FLUSH BINARY LOGS")).await;
        capture.caught_up(&server).await;
        kept = capture.stop().await;
        assert_eq!(kept.opened.last().unwrap().1, Continuity::Continues);
    }
    assert!(kept.whole.as_ref().unwrap().gtids.contains(foreign));
    kept.assert_same_files(&server);
}

#[tokio::test]
async fn a_source_that_is_reset_under_a_running_capture_is_a_break() {
    let (server, source, capture) = captured(&[]).await;
    server.sql("RESET BINARY LOGS AND GTIDS; INSERT INTO shop.t VALUES (1, 'x')").await;
    let (kept, error) = capture.failed().await;
    assert!(error.to_string().contains("was reset"), "{error}");
    let capture = Capture::go_on(&source, kept);
    capture.caught_up(&server).await;
    let kept = capture.stop().await;
    assert_broken(&kept, "binlog.000001", "was reset");
    kept.assert_same_files(&server);
}

#[tokio::test]
async fn a_source_that_is_reset_and_does_the_same_again_is_a_break() {
    let (server, source, capture) = captured(&[]).await;
    let kept = capture.stop().await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    server.sql(&format!("DROP DATABASE shop; RESET BINARY LOGS AND GTIDS; {TABLE}")).await;
    assert_eq!(status(&server).await.1, kept.whole.as_ref().unwrap().offset);
    let capture = Capture::go_on(&source, kept);
    capture.caught_up(&server).await;
    let kept = capture.stop().await;
    assert_broken(&kept, "binlog.000001", "was reset");
    kept.assert_same_files(&server);
}

/// The same where nothing but the archive's own bytes tells the one log from the other.
#[tokio::test]
async fn a_source_that_is_reset_while_nobody_looks_is_a_break() {
    let (server, _, capture) = captured(&[]).await;
    let kept = capture.stop().await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    server.sql(&format!("DROP DATABASE shop; RESET BINARY LOGS AND GTIDS; {TABLE}")).await;
    let place = kept.whole.clone().unwrap();
    assert_eq!(status(&server).await.1, place.offset);
    let archived = Bytes::from(kept.files[&place.log].clone());
    let another_process = source(&server);
    let before = archived.slice(..usize::try_from(place.offset).unwrap());
    another_process.recall(&kept.server, Some(recalled(place, before)));
    let capture = Capture::go_on(&another_process, kept);
    capture.caught_up(&server).await;
    let kept = capture.stop().await;
    assert_broken(&kept, "binlog.000001", "was reset");
    kept.assert_same_files(&server);
}

#[tokio::test]
async fn the_walk_to_a_position_derives_its_transactions() {
    let (server, source, capture) = captured(&[]).await;
    let mut stops = vec![];
    for id in 0..5 {
        server.sql(&format!("INSERT INTO shop.t VALUES ({id}, 'x')")).await;
        stops.push((status(&server).await.1, server.gtid_executed().await));
    }
    capture.caught_up(&server).await;
    let kept = capture.stop().await;
    let file = Bytes::from(kept.files["binlog.000001"].clone());
    let from = kept.opened[0].0.clone();
    let walk = async |from: Position, offset: u64, piece: usize| {
        let start = usize::try_from(from.offset).unwrap();
        let (send, pieces) = mpsc::channel(1000);
        let head = file.clone();
        send.send(Ok(Piece::Log { at: from.clone(), head })).await.unwrap();
        for at in (start..file.len()).step_by(piece) {
            let bytes = file.slice(at..file.len().min(at + piece));
            send.send(Ok(Piece::Bytes(bytes))).await.unwrap();
        }
        drop(send);
        source.locate(from, pieces, offset).await
    };
    let mut middle = from.clone();
    for (offset, gtids) in &stops {
        for piece in [7, 100_000] {
            for from in [from.clone(), middle.clone()] {
                let found = walk(from, *offset, piece).await.unwrap();
                assert_eq!((found.position.offset, &found.position.gtids), (*offset, gtids));
                middle = found.position;
            }
        }
    }
    let newest = kept.chunks.iter().filter_map(|chunk| chunk.last_at).max();
    assert_eq!(walk(from.clone(), stops[4].0, 50).await.unwrap().last_at, newest);
    for wrong in [3, 100, stops[0].0 + 1, stops[4].0 - 40, stops[4].0 + 1] {
        let error = walk(from.clone(), wrong, 1000).await.unwrap_err();
        assert_eq!(error.class().exit_code(), 5, "{wrong}: {error}");
    }
}

#[tokio::test]
async fn every_way_to_log_in_works() {
    let server = Mysqld::start(&[]).await;
    let accounts = "CREATE USER 'full'@'%' IDENTIFIED BY 'p4ß word', 'empty'@'%' IDENTIFIED BY '';
        GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO 'full'@'%', 'empty'@'%'";
    server.sql(accounts).await;
    let log_in = async |user: &str, password: &str, mode: TlsMode| {
        let mut at = endpoint(&server);
        (at.user, at.password) = (user.into(), Secret::new(password));
        at.tls.mode = mode;
        at.tls.ca = Some(server.datadir().join("ca.pem"));
        let capture = Capture::start(&source_at(at));
        if mode == TlsMode::Verify || password == "wrong" {
            return Err(capture.failed().await.1);
        }
        capture.caught_up(&server).await;
        Ok(capture.stop().await)
    };
    for mode in [TlsMode::Off, TlsMode::Require] {
        // Empties the server's cache: the first login needs the whole password.
        server.sql("FLUSH PRIVILEGES").await;
        log_in("full", "p4ß word", mode).await.unwrap();
        log_in("full", "p4ß word", mode).await.unwrap();
        log_in("empty", "", mode).await.unwrap();
        let error = log_in("full", "wrong", mode).await.unwrap_err();
        assert_eq!(error.class().exit_code(), 2, "{error}");
        assert!(error.to_string().contains("full@127.0.0.1"), "{error}");
        assert!(!error.to_string().contains("wrong"), "{error}");
    }
    // The certificate that the server made for itself names no host.
    let error = log_in("full", "p4ß word", TlsMode::Verify).await.unwrap_err();
    assert_eq!(error.class().exit_code(), 2, "{error}");
}

#[tokio::test]
async fn an_account_without_privileges_is_told_what_to_grant() {
    let server = Mysqld::start(&[]).await;
    server.sql("CREATE USER weak@'%' IDENTIFIED BY 'w'").await;
    let mut at = endpoint(&server);
    (at.user, at.password) = ("weak".into(), Secret::new("w"));
    let (_, error) = Capture::start(&source_at(at)).failed().await;
    assert_eq!(error.class().exit_code(), 2, "{error}");
    assert!(error.hint_text().unwrap().contains("REPLICATION SLAVE"), "{error:?}");
}

#[tokio::test]
async fn a_source_that_leaves_databases_out_of_its_log_is_refused() {
    for filter in ["binlog-do-db", "binlog-ignore-db"] {
        let server = Mysqld::start(&[&format!("--{filter}=scratch")]).await;
        let (_, error) = Capture::start(&source(&server)).failed().await;
        assert_eq!(error.class().exit_code(), 6, "{error}");
        let named = format!("{}=scratch", filter.replace('-', "_"));
        assert!(error.to_string().contains(&named), "{error}");
    }
}
