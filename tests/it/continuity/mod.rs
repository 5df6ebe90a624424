//! Continuity, seen from outside: whatever happens to a source's history while the daemon runs or
//! does not, `windows` says it in words, a new baseline is there at once, and no instant inside
//! the hole can be restored to.

mod failover;
pub(crate) mod harness;

use crate::support::{Mysqld, copy_dir};
use harness::{Watched, digest, now};
use mysql_async::prelude::Queryable;
use std::time::Duration;

const TABLE: &str =
    "CREATE DATABASE shop; CREATE TABLE shop.t (id INT PRIMARY KEY AUTO_INCREMENT, b LONGBLOB)";

#[tokio::test]
async fn a_baseline_is_taken_where_its_segment_begins_in_the_middle_of_a_file() {
    let source = Mysqld::start(&[]).await;
    source.sql(TABLE).await;
    let mut watched = Watched::start(&source, "[segment]\nmax_bytes = 100000").await;
    let archive = watched.pitr.archive();
    let sealed =
        || crate::daemon::find(&archive, "zst").iter().filter(|name| name.contains("seg-")).count();
    // How many rows a segment gets is a matter of how busy the machine is: what has waited for the
    // daemon is taken at once.
    for _ in 0..20 {
        source.sql("INSERT INTO shop.t (b) VALUES (REPEAT('x', 150000))").await;
        watched.until_passed(now()).await;
        if sealed() > 1 {
            break;
        }
    }
    assert!(sealed() > 1, "{:?}", crate::daemon::find(&archive, ""));
    // The open segment gets bytes of its own before the copy's place.
    source.sql("INSERT INTO shop.t (b) VALUES ('short')").await;
    watched.pitr.run(&["baseline"]).await.ok();
    watched.restores_exactly(&source).await;
}

/// One source, to which one after the other happens what breaks a history.
#[tokio::test]
async fn each_break_of_the_history_is_a_gap_with_a_reason_a_baseline_and_a_refusal() {
    let source = Mysqld::start(&[]).await;
    source.sql(TABLE).await;
    let insert = "INSERT INTO shop.t (b) VALUES ('x')";
    let mut watched = Watched::start(&source, "").await;

    watched.daemon.kill();
    source.sql(&format!("{insert}; FLUSH BINARY LOGS; {insert}; FLUSH BINARY LOGS")).await;
    source.sql("PURGE BINARY LOGS TO 'binlog.000003'").await;
    watched.daemon = watched.pitr.spawn_run();
    watched.broke("has purged binlog.000001").await;
    watched.restores_exactly(&source).await;

    source.sql(&format!("{insert}; RESET BINARY LOGS AND GTIDS; {insert}")).await;
    watched.broke("was reset").await;

    watched.daemon.kill();
    source.sql(&format!("RESET BINARY LOGS AND GTIDS; {insert}; {insert}; {insert}")).await;
    watched.daemon = watched.pitr.spawn_run();
    watched.broke("reset").await;

    // Rows that came without the log, and GTIDs that say so, as a load of a dump does it.
    let told = "SET GLOBAL gtid_purged = '+4e11fa47-71ca-11e1-9e33-c80aa9429562:1-5'";
    source
        .sql(&format!(
            "SET SESSION sql_log_bin = 0; INSERT INTO shop.t (b) VALUES ('loaded'); {told}"
        ))
        .await;
    watched.broke("did not log it").await;
    watched.restores_exactly(&source).await;
    watched.daemon.kill();
    source.sql(&told.replace("1-5", "6-9").replace("+4e", "+5e")).await;
    watched.daemon = watched.pitr.spawn_run();
    watched.broke("has in no file").await;
}

/// The same server with an older copy of its data directory: what comes back after a crash that
/// took what was not on the disk, or after a snapshot was put back.
#[tokio::test]
async fn a_source_that_went_back_begins_a_new_timeline() {
    let insert = "INSERT INTO shop.t (b) VALUES ('x')";
    let mut source = Mysqld::start(&[]).await;
    source.sql(TABLE).await;
    source.sql(insert).await;
    source.stop().await;
    let older = tempfile::tempdir().unwrap();
    copy_dir(&source.datadir(), older.path());
    source.restart().await;
    let mut watched = Watched::start(&source, "").await;
    for (wait, reason) in [(false, "has lost transactions"), (true, "is not the one")] {
        source.sql(&format!("{insert}; {insert}; FLUSH BINARY LOGS; {insert}; {insert}")).await;
        let gtids = source.gtid_executed().await;
        let (content, at) = (digest(&source).await, now());
        // Before a later commit: what only the process knows of an idle source ends with it.
        source.sql(insert).await;
        watched.until_passed(now()).await;
        if wait {
            watched.daemon.kill();
        }
        source.kill();
        std::fs::remove_dir_all(source.datadir()).unwrap();
        copy_dir(older.path(), &source.datadir());
        source.restart().await;
        if wait {
            // Files of the same names, and the same GTIDs with other content, and more of them.
            for _ in 0..12 {
                source
                    .sql("INSERT INTO shop.t (b) VALUES (REPEAT('other', 1000)); FLUSH BINARY LOGS")
                    .await;
            }
            watched.daemon = watched.pitr.spawn_run();
        }
        watched.broke(reason).await;
        watched.restores(at, &content, &gtids).await;
        watched.restores_exactly(&source).await;
    }
}

/// Transactions of some MB, and whoever writes or reads them killed in the middle of one.
#[tokio::test]
async fn a_transaction_torn_by_a_kill_on_either_side_comes_back_once() {
    let mut source = Mysqld::start(&["--max-allowed-packet=64M"]).await;
    source.sql(TABLE).await;
    let mut watched = Watched::start(&source, "").await;
    for round in 0_u64..6 {
        let opts = source.opts();
        let writing = tokio::spawn(async move {
            let Ok(mut conn) = mysql_async::Conn::new(opts).await else { return };
            let rows = "INSERT INTO shop.t (b) SELECT REPEAT(RANDOM_BYTES(1000), 1000) FROM
                (VALUES ROW(1), ROW(2), ROW(3), ROW(4), ROW(5), ROW(6), ROW(7), ROW(8)) v";
            // Whether it was committed before the kill is for the server to say.
            drop(conn.query_drop(rows).await);
        });
        tokio::time::sleep(Duration::from_millis(100 + 60 * round)).await;
        if round % 2 == 0 {
            source.kill();
            source.restart().await;
        } else {
            watched.daemon.kill();
            watched.daemon = watched.pitr.spawn_run();
        }
        writing.await.unwrap();
    }
    watched.until_passed(now()).await;
    let report = watched.report().await;
    assert_eq!(report["gaps"].as_array().unwrap().len(), 0, "{report:#}");
    assert_eq!(report["timeline"], 1, "{report:#}");
    watched.restores_exactly(&source).await;
}
