//! What the benchmarks have written: row changes in the manner of sysbench's `oltp_write_only`, hot
//! rows, and bulk inserts; and their capture.

#![allow(dead_code, reason = "each benchmark uses the part that it needs")]

use crate::support::Mysqld;
use mysql_async::prelude::Queryable;
use pitr::archive::Archive;
use pitr::baseline::Label;
use pitr::capture::{CHUNKS_IN_FLIGHT, Capture, Sealing, Shared};
use pitr::config::{SEGMENT_LEVEL, SEGMENT_MAX_BYTES, SEGMENT_MAX_SECONDS};
use pitr::engine::{Endpoint, SourceOptions, open_source};
use pitr::manifest::EngineKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

const WRITERS: u64 = 8;
/// How many rows are hot.
const HOT: u64 = 100;
/// How many rows a bulk insert has.
pub(crate) const BULK_ROWS: u64 = 500;

/// What the transactions of a load do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    /// Four row changes in one of the tables, which is another one each time.
    Small,
    /// Four updates of a hundred rows of one table.
    Hot,
    /// One insert of many rows into one of the tables.
    Bulk,
}

impl Load {
    /// The statements of one transaction.
    fn statements(self, tables: u64, rows: u64) -> String {
        let table = rand::random_range(1..=tables);
        match self {
            Self::Small => {
                let id = || rand::random_range(1..=rows);
                let (a, b, c) = (id(), id(), id());
                let text = rand::random::<u64>();
                format!(
                    "BEGIN; UPDATE sbtest.sbtest{table} SET k = k + 1 WHERE id = {a}; \
                     UPDATE sbtest.sbtest{table} SET c = RPAD(SHA2({text}, 512), 119, '-') \
                     WHERE id = {b}; DELETE FROM sbtest.sbtest{table} WHERE id = {c}; \
                     INSERT INTO sbtest.sbtest{table} (id, k, c, pad) VALUES ({c}, {a}, \
                     RPAD(SHA2({text}, 384), 119, '-'), RPAD(SHA2({text}, 224), 59, '-')); COMMIT"
                )
            }
            Self::Hot => {
                let mut ids: [u64; 4] = std::array::from_fn(|_| rand::random_range(1..=HOT));
                // In one order, or most of them would be deadlocks.
                ids.sort_unstable();
                let updates =
                    ids.map(|id| format!("UPDATE sbtest.sbtest1 SET k = k + 1 WHERE id = {id}; "));
                format!("BEGIN; {}COMMIT", updates.concat())
            }
            Self::Bulk => format!(
                "INSERT INTO sbtest.bulk{table} (k, c, pad) \
                 SELECT k, c, pad FROM sbtest.sbtest{table} LIMIT {BULK_ROWS}"
            ),
        }
    }
}

/// Makes `tables` tables with `rows` rows each.
pub(crate) async fn prepare(source: &Mysqld, tables: u64, rows: u64) {
    source.sql("CREATE DATABASE sbtest").await;
    for table in 1..=tables {
        source
            .sql(&format!(
                "USE sbtest; CREATE TABLE sbtest{table} (id INT PRIMARY KEY, k INT NOT NULL, \
                 c CHAR(120) NOT NULL, pad CHAR(60) NOT NULL, KEY (k)); \
                 SET SESSION cte_max_recursion_depth = 10000000; \
                 INSERT INTO sbtest.sbtest{table} WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL \
                 SELECT i + 1 FROM n WHERE i < {rows}) SELECT i, i % 499, \
                 RPAD(SHA2(i, 512), 119, '-'), RPAD(SHA2(i, 224), 59, '-') FROM n; \
                 CREATE TABLE sbtest.bulk{table} (id INT AUTO_INCREMENT PRIMARY KEY, \
                 k INT NOT NULL, c CHAR(120) NOT NULL, pad CHAR(60) NOT NULL, KEY (k))"
            ))
            .await;
    }
}

/// Runs transactions until `done` says so, given how many were run.
async fn run(source: &Mysqld, load: Load, tables: u64, rows: u64, done: impl AsyncFn(u64) -> bool) {
    let stop = Arc::new(AtomicBool::new(false));
    let count = Arc::new(AtomicU64::new(0));
    let mut writers = Vec::new();
    for _ in 0..WRITERS {
        let (stop, count, opts) = (Arc::clone(&stop), Arc::clone(&count), source.opts());
        writers.push(tokio::spawn(async move {
            let mut conn = mysql_async::Conn::new(opts).await.unwrap();
            while !stop.load(Ordering::Relaxed) {
                let statements = load.statements(tables, rows);
                // Deadlocks and duplicate keys among the writers are part of the load.
                if conn.query_drop(statements).await.is_ok() {
                    count.fetch_add(1, Ordering::Relaxed);
                } else {
                    conn.query_drop("ROLLBACK").await.unwrap();
                }
            }
            conn.disconnect().await.unwrap();
        }));
    }
    while !done(count.load(Ordering::Relaxed)).await {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
}

/// Runs `transactions` transactions (a few more).
pub(crate) async fn transactions(
    source: &Mysqld,
    load: Load,
    tables: u64,
    rows: u64,
    transactions: u64,
) {
    run(source, load, tables, rows, async |count| count >= transactions).await;
}

/// A server with a binlog of `PITR_BENCH_MB` MB; with the name of the file and its size.
pub(crate) async fn large_binlog() -> (Mysqld, String, u64) {
    let megabytes: u64 = std::env::var("PITR_BENCH_MB").map_or(500, |text| text.parse().unwrap());
    let source = Mysqld::start(&["--max-binlog-size=1G"]).await;
    println!("writing {megabytes} MB of binlog");
    prepare(&source, 8, 1000).await;
    until_binlog(&source, megabytes << 20).await;
    let (file, size) = current_binlog(&source).await;
    (source, file, size)
}

/// Runs small transactions until the current binlog has `bytes` bytes.
async fn until_binlog(source: &Mysqld, bytes: u64) {
    run(source, Load::Small, 8, 1000, async |_| current_binlog(source).await.1 >= bytes).await;
}

/// Name and size of the server's current binlog.
pub(crate) async fn current_binlog(source: &Mysqld) -> (String, u64) {
    let (file, size, ..): (String, u64, String, String, String) =
        source.row("SHOW BINARY LOG STATUS").await;
    (file, size)
}

/// Captures the current binlog, up to `size`, into a new archive; gives the seconds that it took.
pub(crate) async fn capture(source: &Mysqld, size: u64, root: &Path) -> f64 {
    drop(Archive::init(root).unwrap());
    let engine = open_source(SourceOptions {
        name: "bench".into(),
        engine: EngineKind::Mysql,
        endpoint: Endpoint::parse(EngineKind::Mysql, &source.url()).unwrap(),
        standbys: vec![],
        sample_every: Duration::from_millis(100),
        dump_command: None,
        aof: None,
        databases: vec![],
        semi_sync: false,
        digests: true,
    });
    let label = Label { source: "bench".into(), engine: EngineKind::Mysql, level: SEGMENT_LEVEL };
    let sealing =
        Sealing { max_bytes: SEGMENT_MAX_BYTES, max_age: Duration::from_secs(SEGMENT_MAX_SECONDS) };
    let mut capture = Capture::recover(root, label, sealing, Arc::new(Shared::new())).unwrap();
    let (send, receive) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let (durable, mut watched) = (capture.durable(), capture.durable());
    let runtime = tokio::runtime::Handle::current();
    let begun = Instant::now();
    let writing = tokio::task::spawn_blocking(move || {
        capture.run(receive, &runtime).unwrap();
        capture.close().unwrap();
    });
    let arrived = watched.wait_for(|at| at.as_ref().is_some_and(|at| at.offset >= size));
    tokio::select! {
        ended = engine.tail(None, send, durable) => panic!("the stream ended: {ended:?}"),
        arrived = arrived => drop(arrived.unwrap()),
    }
    writing.await.unwrap();
    begun.elapsed().as_secs_f64()
}

/// The middle of some durations.
pub(crate) fn median(seconds: &mut [f64]) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
