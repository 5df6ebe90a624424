//! Continuity, seen from outside: whatever happens to a source's history while the daemon runs or
//! does not, `windows` says it in words, a new baseline is there at once, and no instant inside
//! the hole can be restored to.

mod harness;

use crate::support::Mysqld;
use harness::{Watched, now};

const TABLE: &str =
    "CREATE DATABASE shop; CREATE TABLE shop.t (id INT PRIMARY KEY AUTO_INCREMENT, b LONGBLOB)";

#[tokio::test]
async fn a_baseline_is_taken_where_its_segment_begins_in_the_middle_of_a_file() {
    let source = Mysqld::start(&[]).await;
    source.sql(TABLE).await;
    let mut watched = Watched::start(&source, "[segment]\nmax_bytes = 100000").await;
    for _ in 0..12 {
        source.sql("INSERT INTO shop.t (b) VALUES (REPEAT('x', 50000))").await;
    }
    watched.until_passed(now()).await;
    // The open segment gets bytes of its own before the copy's place.
    source.sql("INSERT INTO shop.t (b) VALUES ('short')").await;
    let segments = crate::daemon::find(&watched.pitr.archive(), "zst");
    assert!(segments.iter().filter(|name| name.contains("seg-")).count() > 1, "{segments:?}");
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
    watched.restores_exactly(&source).await;
}
