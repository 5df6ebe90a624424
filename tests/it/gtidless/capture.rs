//! Whatever happens to a source without GTIDs: nothing is lost or stored twice, and what cannot be
//! proved to go on does not.

use super::harness::{INSERT, end_of_log, exports_the_same, note, restores, source, until_kept};
use crate::continuity::harness::{Watched, digest, now};
use crate::support::{Mysqld, copy_dir};
use mysql_async::prelude::Queryable;
use std::time::Duration;

/// Transactions of some MB and rotations, and whoever writes or reads them killed in the middle.
#[tokio::test]
async fn a_kill_on_either_side_loses_nothing_and_doubles_nothing() {
    let mut source = source(&["--max-allowed-packet=64M", "--max-binlog-size=8M"]).await;
    let mut watched = Watched::start(&source, "[segment]\nmax_bytes = 3000000").await;
    for round in 0_u64..8 {
        let opts = source.opts();
        let writing = tokio::spawn(async move {
            let Ok(mut conn) = mysql_async::Conn::new(opts).await else { return };
            let rows = "INSERT INTO shop.t (b) SELECT REPEAT(RANDOM_BYTES(1000), 1000) FROM
                (VALUES ROW(1), ROW(2), ROW(3), ROW(4), ROW(5)) v";
            // Whether it was committed before the kill is for the server to say.
            drop(conn.query_drop(rows).await);
        });
        tokio::time::sleep(Duration::from_millis(80 + 50 * round)).await;
        if round % 2 == 0 {
            source.kill();
            source.restart().await;
        } else {
            watched.daemon.kill();
            watched.daemon = watched.pitr.spawn_run();
        }
        writing.await.unwrap();
        source.sql(INSERT).await;
    }
    let noted = note(&source).await;
    let report = watched.until_passed(noted.at).await;
    assert_eq!(report["gaps"].as_array().unwrap().len(), 0, "{report:#}");
    assert_eq!(report["timeline"], 1, "{report:#}");
    assert!(exports_the_same(&watched.pitr, &source, "files").await > 4);
    restores(&mut watched, &noted).await;
}

/// The daemon is gone, or only its connection, while files end: it goes on at the exact place.
#[tokio::test]
async fn files_that_end_while_nobody_reads_are_captured_behind() {
    let mut source = source(&[]).await;
    let mut watched = Watched::start(&source, "").await;
    for round in 0..4 {
        source.sql("FLUSH BINARY LOGS").await;
        watched.until_passed(now()).await;
        if round % 2 == 0 {
            watched.daemon.kill();
        } else {
            source.restart().await;
        }
        source.sql(&format!("{INSERT}; FLUSH BINARY LOGS; FLUSH BINARY LOGS; {INSERT}")).await;
        if round % 2 == 0 {
            watched.daemon = watched.pitr.spawn_run();
        }
    }
    let noted = note(&source).await;
    let report = watched.until_passed(noted.at).await;
    assert_eq!((&report["timeline"], report["gaps"].as_array().unwrap().len()), (&1.into(), 0));
    exports_the_same(&watched.pitr, &source, "files").await;
    restores(&mut watched, &noted).await;
}

#[tokio::test]
async fn purged_files_are_a_gap() {
    let source = source(&[]).await;
    let mut watched = Watched::start(&source, "").await;
    source.sql(INSERT).await;
    let before = note(&source).await;
    until_kept(&mut watched, &before).await;
    watched.daemon.kill();
    source.sql(&format!("{INSERT}; FLUSH BINARY LOGS; {INSERT}")).await;
    source.sql("PURGE BINARY LOGS TO 'binlog.000002'").await;
    watched.daemon = watched.pitr.spawn_run();
    watched.broke("has purged binlog.000001").await;
    let after = note(&source).await;
    restores(&mut watched, &before).await;
    restores(&mut watched, &after).await;
}

/// What makes a log of the same length, in files of the same names.
async fn same_again(source: &Mysqld) {
    source.sql("SET SESSION sql_log_bin = 0; TRUNCATE shop.t").await;
    source.sql("RESET BINARY LOGS AND GTIDS").await;
    source.sql("FLUSH BINARY LOGS").await;
    source.sql(INSERT).await;
}

/// Names, sizes and offsets are what they were: only the bytes, and the server's count of RESETs,
/// tell the one log from the other.
#[tokio::test]
async fn a_reset_that_looks_as_if_nothing_had_happened_is_a_gap() {
    let source = source(&[]).await;
    same_again(&source).await;
    let mut watched = Watched::start(&source, "").await;
    let end = end_of_log(&source).await;
    for live in [true, false, true] {
        let before = note(&source).await;
        until_kept(&mut watched, &before).await;
        if !live {
            watched.daemon.kill();
        }
        same_again(&source).await;
        assert_eq!(end_of_log(&source).await, end);
        if !live {
            watched.daemon = watched.pitr.spawn_run();
        }
        watched.broke("it was reset").await;
        let after = note(&source).await;
        restores(&mut watched, &after).await;
        restores(&mut watched, &before).await;
    }
}

/// A dump that waits at the end of a file finds the next one by its name, in a new log as well.
#[tokio::test]
async fn a_file_of_a_new_log_is_never_taken_for_the_next_one_of_the_old() {
    let source = source(&[]).await;
    let mut watched = Watched::start(&source, "").await;
    source.sql(INSERT).await;
    let before = note(&source).await;
    until_kept(&mut watched, &before).await;
    source.sql("RESET BINARY LOGS AND GTIDS").await;
    source.sql(&format!("{INSERT}; FLUSH BINARY LOGS; {INSERT}")).await;
    watched.broke("").await;
    let after = note(&source).await;
    restores(&mut watched, &after).await;
    restores(&mut watched, &before).await;
}

/// The same server with an older copy of its data directory, which then goes as far as before.
#[tokio::test]
async fn a_source_that_went_back_is_a_gap() {
    let mut source = source(&[]).await;
    source.stop().await;
    let older = tempfile::tempdir().unwrap();
    copy_dir(&source.datadir(), older.path());
    source.restart().await;
    let mut watched = Watched::start(&source, "").await;
    for (goes_on, reason) in [(false, "restored from a backup"), (true, "it was reset")] {
        source.sql(&format!("{INSERT}; FLUSH BINARY LOGS; FLUSH BINARY LOGS; {INSERT}")).await;
        let before = note(&source).await;
        source.sql(INSERT).await;
        watched.until_passed(now()).await;
        watched.daemon.kill();
        source.kill();
        std::fs::remove_dir_all(source.datadir()).unwrap();
        copy_dir(older.path(), &source.datadir());
        source.restart().await;
        if goes_on {
            let (file, offset) = (before.log.as_str(), before.offset + 1500);
            while end_of_log(&source).await < (file.to_owned(), offset) {
                let more =
                    if end_of_log(&source).await.0 == file { INSERT } else { "FLUSH BINARY LOGS" };
                source.sql(more).await;
            }
            let (name, _) = end_of_log(&source).await;
            assert_eq!(name, file);
        }
        watched.daemon = watched.pitr.spawn_run();
        watched.broke(reason).await;
        let after = note(&source).await;
        restores(&mut watched, &before).await;
        restores(&mut watched, &after).await;
    }
}

/// A copy of the server, with the same files and everything in them, behind the same address.
#[tokio::test]
async fn another_server_at_the_same_address_is_a_gap() {
    let mut source = source(&[]).await;
    let mut watched = Watched::start(&source, "").await;
    for live in [true, false] {
        source.sql(INSERT).await;
        let before = note(&source).await;
        until_kept(&mut watched, &before).await;
        if !live {
            watched.daemon.kill();
        }
        source.stop().await;
        std::fs::remove_file(source.datadir().join("auto.cnf")).unwrap();
        source.restart().await;
        source.sql(INSERT).await;
        if !live {
            watched.daemon = watched.pitr.spawn_run();
        }
        watched.broke("is another server now").await;
        let after = note(&source).await;
        restores(&mut watched, &before).await;
        restores(&mut watched, &after).await;
    }
}

/// Nothing shows which other server has what was captured: that is said, and waited for.
#[tokio::test]
async fn no_other_server_is_gone_on_from() {
    let mut first = source(&[]).await;
    first.stop().await;
    let copy = tempfile::tempdir().unwrap();
    copy_dir(&first.datadir(), copy.path());
    first.restart().await;
    std::fs::remove_file(copy.path().join("auto.cnf")).unwrap();
    let second = Mysqld::start_on(copy.path(), &["--gtid-mode=ON"]).await;
    let mut watched = Watched::start_over(&[&first, &second], "").await;
    first.sql(INSERT).await;
    let noted = note(&first).await;
    watched.until_passed(noted.at).await;
    for pitr_dies in [false, true] {
        first.kill();
        if pitr_dies {
            watched.daemon.kill();
            watched.daemon = watched.pitr.spawn_run();
        }
        second.sql(INSERT).await;
        let says = |report: &serde_json::Value| {
            let error = report["error"].as_str().unwrap_or_default();
            report["state"] != "streaming" && error.contains("only the server that they came from")
        };
        watched.until("it is said why nothing is done", says).await;
        first.restart().await;
        first.sql(INSERT).await;
        let report = watched.until_passed(now()).await;
        assert_eq!((&report["timeline"], report["gaps"].as_array().unwrap().len()), (&1.into(), 0));
    }
    let last = note(&first).await;
    restores(&mut watched, &last).await;
    restores(&mut watched, &noted).await;
}

/// What a client saw committed is in the archive, whoever dies.
#[tokio::test]
async fn commits_wait_for_the_archive_without_gtids_as_well() {
    let mut source = source(&["--plugin-load-add=semisync_source.so"]).await;
    source.sql("SET PERSIST rpl_semi_sync_source_timeout = 120000").await;
    source.sql("SET PERSIST rpl_semi_sync_source_enabled = ON").await;
    let mut watched = Watched::start(&source, "").await;
    watched.pitr.write_config(&format!("{}semi_sync = true\n", watched.pitr.config()));
    watched.daemon.kill();
    watched.daemon = watched.pitr.spawn_run();
    let mut seen = 0;
    for round in 0..3 {
        let mut conn = source.conn().await;
        let writing = tokio::spawn(async move {
            let mut seen = 0;
            while conn.query_drop(INSERT).await.is_ok() {
                seen += 1;
            }
            seen
        });
        tokio::time::sleep(Duration::from_millis(1500)).await;
        if round == 1 {
            watched.daemon.kill();
            watched.daemon = watched.pitr.spawn_run();
            tokio::time::sleep(Duration::from_millis(1500)).await;
        }
        source.kill();
        seen += writing.await.unwrap();
        source.restart().await;
    }
    assert!(seen > 0, "nothing was committed");
    let noted = note(&source).await;
    let report = watched.until_passed(noted.at).await;
    assert_eq!((&report["timeline"], report["gaps"].as_array().unwrap().len()), (&1.into(), 0));
    assert!(report["semi_sync"].is_object(), "{report:#}");
    let (rows,): (u64,) = source.row("SELECT COUNT(*) FROM shop.t").await;
    assert!(rows >= seen, "{rows} rows of {seen}");
    restores(&mut watched, &noted).await;
    assert_eq!(noted.content.diff(&digest(&source).await), [""; 0]);
}
