//! How fast a history is replayed, beside a native replica and beside `mysqlbinlog | mysql`.
//!
//! `cargo bench --bench replay` records 40,000 transactions (`PITR_BENCH_TRANSACTIONS` sets
//! another number) and brings them into fresh servers, set up as installed, in four ways: as a native replica with
//! four workers of the source itself, by `pitr restore`, by `pitr restore --apply sql`, and, for a
//! sample of 2,000 of them, by `mysqlbinlog | mysql`. It prints transactions a second and their ratios; it asserts nothing
//! but that all ways end with the same rows.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::string_slice,
    reason = "a benchmark fails by panicking and reports by printing"
)]

#[path = "../tests/it/support/mod.rs"]
mod support;
mod workload;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::{Mysqld, Pitr, eventually, program};

const TABLES: u64 = 8;
const ROWS: u64 = 10_000;
const SAMPLE: u64 = 2_000;

/// A server as it is installed: every commit is synced, four workers apply.
const AS_INSTALLED: [&str; 3] =
    ["--innodb-flush-log-at-trx-commit=1", "--sync-binlog=1", "--replica-parallel-workers=4"];

fn main() {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let transactions: u64 =
            std::env::var("PITR_BENCH_TRANSACTIONS").map_or(40_000, |text| text.parse().unwrap());
        let source = Mysqld::start(&["--max-binlog-size=1G"]).await;
        workload::prepare(&source, TABLES, ROWS).await;
        let dump = tempfile::NamedTempFile::new().unwrap();
        dump_all(&source, dump.path());

        let pitr = Pitr::new(&[("bench", source.url())]);
        pitr.run(&["init"]).await.ok();
        let daemon = pitr.spawn_run();
        eventually("the first baseline", Duration::from_mins(2), async || {
            let report = pitr.run(&["windows", "--json"]).await.ok().json();
            (!report["sources"][0]["windows"].as_array()?.is_empty()).then_some(())
        })
        .await;
        println!("recording {transactions} transactions");
        let (file, from) = workload::current_binlog(&source).await;
        workload::transactions(&source, TABLES, ROWS, transactions).await;
        let executed = source.gtid_executed().await;
        let run: u64 = source.row("SELECT COUNT(*) FROM sbtest.sbtest1").await;
        assert_eq!(run, ROWS);
        tokio::time::sleep(Duration::from_secs(3)).await;

        let native = native_replica(&source, dump.path(), &executed).await;
        let mut ours = [0.0; 2];
        for (seconds, way) in ours.iter_mut().zip(["native", "sql"]) {
            let restored;
            (restored, *seconds) = restore(&pitr, &source, way).await;
            assert_eq!(checksums(&source).await, checksums(&restored).await);
        }
        let [ours, sql] = ours;
        drop(daemon);
        let stock = mysqlbinlog_and_mysql(&source, dump.path(), &file, from).await;

        let rate = |seconds: f64| transactions as f64 / seconds;
        println!("native replica, 4 workers: {native:.1} s, {:.0} transactions/s", rate(native));
        println!("pitr restore (replay):     {ours:.1} s, {:.0} transactions/s", rate(ours));
        println!("pitr restore --apply sql:  {sql:.1} s, {:.0} transactions/s", rate(sql));
        println!("mysqlbinlog | mysql:       {stock:.0} transactions/s ({SAMPLE} of them)");
        println!("pitr takes {:.2} of the native replica's time", ours / native);
        println!("pitr is {:.1} times as fast as mysqlbinlog | mysql", rate(ours) / stock);
        println!("with --apply sql {:.1} times", rate(sql) / stock);
    });
}

fn dump_all(source: &Mysqld, to: &std::path::Path) {
    let status = Command::new(program("mysqldump"))
        .args(["--no-defaults", "--host=127.0.0.1", "--user=root", "--single-transaction"])
        .args([&format!("--port={}", source.port()), "--set-gtid-purged=ON", "--databases"])
        .arg("sbtest")
        .stdout(std::fs::File::create(to).unwrap())
        .status()
        .unwrap();
    assert!(status.success());
}

fn load(server: &Mysqld, dump: &std::path::Path) {
    let status = Command::new(program("mysql"))
        .args(["--no-defaults", "--host=127.0.0.1", "--user=root"])
        .arg(format!("--port={}", server.port()))
        .stdin(std::fs::File::open(dump).unwrap())
        .status()
        .unwrap();
    assert!(status.success());
}

async fn native_replica(source: &Mysqld, dump: &std::path::Path, executed: &str) -> f64 {
    let replica = Mysqld::start(&AS_INSTALLED).await;
    replica.sql("RESET BINARY LOGS AND GTIDS").await;
    load(&replica, dump);
    replica
        .sql(&format!(
            "CHANGE REPLICATION SOURCE TO SOURCE_HOST='127.0.0.1', SOURCE_PORT={}, \
             SOURCE_USER='root', SOURCE_AUTO_POSITION=1, GET_SOURCE_PUBLIC_KEY=1",
            source.port()
        ))
        .await;
    let begun = Instant::now();
    replica.sql("START REPLICA").await;
    let wait = format!("SELECT WAIT_FOR_EXECUTED_GTID_SET('{executed}', 3600)");
    let timed_out: u64 = replica.row(&wait).await;
    assert_eq!(timed_out, 0);
    let seconds = begun.elapsed().as_secs_f64();
    assert_eq!(checksums(source).await, checksums(&replica).await);
    seconds
}

async fn restore(pitr: &Pitr, source: &Mysqld, way: &str) -> (Mysqld, f64) {
    let target = Mysqld::start(&AS_INSTALLED).await;
    let to = format!("bench={}", target.url());
    let args = ["restore", "--to", "latest", "--target", &to, "--apply", way, "--json"];
    let report = pitr.run(&args).await.ok().json();
    assert_eq!(target.gtid_executed().await, source.gtid_executed().await);
    (target, report["sources"][0]["seconds"]["replay"].as_f64().unwrap())
}

/// Transactions a second.
async fn mysqlbinlog_and_mysql(
    source: &Mysqld,
    dump: &std::path::Path,
    file: &str,
    from: u64,
) -> f64 {
    let target = Mysqld::start(&AS_INSTALLED).await;
    target.sql("RESET BINARY LOGS AND GTIDS").await;
    load(&target, dump);
    let before: u64 = transactions_of(&target.gtid_executed().await);
    let begun = Instant::now();
    let mut log = Command::new(program("mysqlbinlog"))
        .arg(format!("--start-position={from}"))
        .arg(source.datadir().join(file))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut client = Command::new(program("mysql"))
        .args(["--no-defaults", "--host=127.0.0.1", "--user=root"])
        .arg(format!("--port={}", target.port()))
        .stdin(log.stdout.take().unwrap())
        .spawn()
        .unwrap();
    let done = loop {
        let done = transactions_of(&target.gtid_executed().await) - before;
        if done >= SAMPLE || client.try_wait().unwrap().is_some() {
            break done;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let rate = done as f64 / begun.elapsed().as_secs_f64();
    client.kill().unwrap();
    client.wait().unwrap();
    log.kill().unwrap();
    log.wait().unwrap();
    rate
}

/// The last number of a GTID set of one server.
fn transactions_of(set: &str) -> u64 {
    set.rsplit(['-', ':']).next().unwrap().parse().unwrap()
}

async fn checksums(server: &Mysqld) -> Vec<(String, u64)> {
    let tables: Vec<String> = (1..=TABLES).map(|table| format!("sbtest.sbtest{table}")).collect();
    server.rows(&format!("CHECKSUM TABLE {}", tables.join(", "))).await
}
