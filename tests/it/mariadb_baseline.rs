//! Baselines of MariaDB that hold up no writer, and are of one instant nevertheless.

use crate::mariadb_restore::harness::{Series, end_of_log, log_of, needs};
use crate::mysql_restore::harness::{
    Taken, open_log, restore, running, source_options, try_baseline,
};
use crate::support::Mysqld;
use mysql_async::Conn;
use mysql_async::prelude::Queryable;
use pitr::engine::digest::Digest;
use pitr::engine::mysql::digest::digest;
use pitr::manifest::{BaselineMeta, EngineKind, FORMAT};
use pitr::record::Cut;
use rstest::rstest;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// What is written without end: rows of two tables that belong together.
struct Writers {
    stop: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Writers {
    /// Three writers that pause after each transaction.
    fn start(server: &Mysqld, pause: Duration) -> Self {
        let (stop, commits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let tasks = (0..3).map(|writer| {
            let (opts, stop, commits) = (server.opts(), Arc::clone(&stop), Arc::clone(&commits));
            tokio::spawn(async move {
                let mut conn = Conn::new(opts).await.unwrap();
                while !stop.load(Ordering::Relaxed) {
                    conn.query_drop(format!(
                        "BEGIN; INSERT INTO shop.t (s, f) VALUES (UUID(), RAND()); \
                         UPDATE shop.n SET n = n + 1 WHERE id = {writer}; COMMIT"
                    ))
                    .await
                    .unwrap();
                    commits.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(pause).await;
                }
                conn.disconnect().await.unwrap();
            })
        });
        let tasks = tasks.collect();
        Self { stop, commits, tasks }
    }

    fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}

async fn content(server: &Mysqld) -> Digest {
    let mut conn = server.conn().await;
    digest(&mut conn).await.unwrap()
}

/// A source whose rows need one snapshot (DOUBLE) or two (FLOAT), and its log of statements.
async fn source(series: Series, kind: &str) -> Mysqld {
    let args = ["--general-log=ON", "--log-output=FILE", "--general-log-file=general.log"];
    let source = series.start(&args).await;
    for statement in [
        "CREATE DATABASE shop",
        &format!("CREATE TABLE shop.t (id INT AUTO_INCREMENT PRIMARY KEY, s TEXT, f {kind})"),
        "CREATE TABLE shop.n (id INT PRIMARY KEY, n INT)",
        "INSERT INTO shop.n VALUES (0, 0), (1, 0), (2, 0)",
        "INSERT INTO shop.t (s, f) SELECT REPEAT('x', 500), RAND() FROM shop.seq_1_to_20000",
    ] {
        source.sql(statement).await;
    }
    // What was created in the second in which a baseline begins may change again unseen.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    source
}

/// Takes a baseline, and gives how often the general log has a lock and a backup's stage since.
async fn taken(source: &Mysqld, series: Series) -> (Taken, usize, usize) {
    let log = source.datadir().join("general.log");
    let before = std::fs::read_to_string(&log).unwrap().len();
    let mut options = source_options(&source.url());
    options.dump_command = Some(series.named("mariadb-dump"));
    let (taken, bytes) = try_baseline(&options).await.unwrap();
    let said = std::fs::read_to_string(&log).unwrap().split_off(before).to_uppercase();
    let mut position = taken.position;
    let gtids = format!("SELECT BINLOG_GTID_POS('{}', {})", position.log, position.offset);
    position.gtids = source.row(&gtids).await;
    let meta = BaselineMeta {
        format: FORMAT,
        archive: "a".into(),
        source: "shop".into(),
        engine: EngineKind::Mysql,
        server: taken.server,
        timeline: 1,
        name: "base.sql.zst".into(),
        position,
        at: taken.at,
        begun_at: taken.at,
        finished_at: taken.at,
        bytes_raw: bytes.len() as u64,
        bytes_stored: 0,
        digest: String::new(),
        contents: None,
    };
    let count = |what: &str| said.matches(what).count();
    (Taken { meta, bytes }, count("WITH READ LOCK"), count("BACKUP STAGE BLOCK_DDL"))
}

/// Brings a baseline and the log behind it back, and compares with the source.
async fn comes_back(source: &Mysqld, series: Series, taken: &Taken) {
    let pieces = log_of(source, &taken.meta.position).await;
    let target = series.start(&[]).await;
    let cut = Cut::At(end_of_log(source).await);
    let log = open_log(pieces, None);
    restore(&mut running(&target), &needs(source).await, taken, log, &cut).await.unwrap();
    assert_eq!(content(source).await.diff(&content(&target).await), [""; 0]);
}

#[rstest]
#[case::of_10_5(Series::Maria10_5)]
#[case::of_10_11(Series::Maria10)]
#[case::of_11_8(Series::Maria11)]
#[tokio::test]
async fn a_baseline_under_writers_takes_no_lock_and_is_of_one_instant(#[case] series: Series) {
    let source = source(series, "DOUBLE").await;
    let writers = Writers::start(&source, Duration::ZERO);
    let before = writers.commits();
    let (taken, locks, stages) = taken(&source, series).await;
    let during = writers.commits() - before;
    writers.end().await;
    assert!(during > 0);
    assert_eq!((locks, stages), (0, 1));
    assert!(taken.text().contains("-- CHANGE MASTER TO MASTER_LOG_FILE="));
    comes_back(&source, series, &taken).await;
}

#[rstest]
#[case::of_10_5(Series::Maria10_5)]
#[case::of_10_11(Series::Maria10)]
#[case::of_11_8(Series::Maria11)]
#[tokio::test]
async fn two_snapshots_are_at_one_place_or_under_one_lock(#[case] series: Series) {
    let source = source(series, "FLOAT").await;
    // Nobody writes: proved at the first try.
    let (_, locks, stages) = taken(&source, series).await;
    assert_eq!((locks, stages), (0, 1));
    // Somebody always does: the snapshots are hardly ever at one place.
    let writers = Writers::start(&source, Duration::ZERO);
    let (taken, locks, stages) = taken(&source, series).await;
    writers.end().await;
    assert!(locks <= 1 && stages == 1, "{locks} {stages}");
    comes_back(&source, series, &taken).await;
}

#[tokio::test]
async fn a_table_without_snapshots_or_a_prepared_transaction_takes_the_lock() {
    let series = Series::Maria10;
    let source = source(series, "DOUBLE").await;
    source.sql("CREATE TABLE shop.aria (a INT) ENGINE = Aria").await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let (_, locks, stages) = taken(&source, series).await;
    assert_eq!((locks, stages), (1, 0));
    source.sql("DROP TABLE shop.aria").await;
    source
        .sql("XA START 'q'; INSERT INTO shop.t (s) VALUES ('q'); XA END 'q'; XA PREPARE 'q'")
        .await;
    let mut options = source_options(&source.url());
    options.dump_command = Some(series.named("mariadb-dump"));
    let error = try_baseline(&options).await.unwrap_err();
    assert!(error.to_string().contains("XA transactions are prepared"), "{error}");
}
