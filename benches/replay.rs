//! How fast a history is replayed, beside a native replica and beside `mysqlbinlog | mysql`.
//!
//! `cargo bench --bench replay` has histories written, one after the other: small transactions in
//! eight tables, the same in tables that cannot be changed at the same time, hot rows, and bulk
//! inserts (`PITR_BENCH_LOADS=small,joined,hot,bulk` chooses). They have 40,000 transactions
//! (`PITR_BENCH_TRANSACTIONS` sets another number), the last one a hundredth of that, of 500 rows each. Each goes into fresh servers, set up as
//! installed: as a native replica with four workers of the source itself, by `pitr restore` with
//! each of the ways of `--apply`, and, for a sample, by `mysqlbinlog | mysql`. It prints
//! transactions a second, the CPU time of the server and of its busiest threads, and ratios; it asserts
//! nothing but that all ways end with the same rows and GTIDs.

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
use workload::Load;

const TABLES: u64 = 8;
const ROWS: u64 = 10_000;
const SAMPLE: u64 = 2_000;
/// Of how many threads of a server the CPU time is told.
const BUSIEST: usize = 5;

/// A server as it is installed: every commit is synced, four workers apply.
const AS_INSTALLED: [&str; 3] =
    ["--innodb-flush-log-at-trx-commit=1", "--sync-binlog=1", "--replica-parallel-workers=4"];

/// The ways of `--apply`.
const WAYS: [&str; 3] = ["native", "merged", "sql"];

fn main() {
    let loads =
        std::env::var("PITR_BENCH_LOADS").unwrap_or_else(|_| "small,joined,hot,bulk".into());
    let transactions: u64 =
        std::env::var("PITR_BENCH_TRANSACTIONS").map_or(40_000, |text| text.parse().unwrap());
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        for load in loads.split(',') {
            match load {
                "small" | "joined" => compare(load, Load::Small, transactions).await,
                "hot" => compare(load, Load::Hot, transactions).await,
                "bulk" => compare(load, Load::Bulk, (transactions / 100).max(1)).await,
                _ => panic!("no load is called {load}"),
            }
        }
    });
}

/// Has a history written and brings it into servers in all ways.
async fn compare(name: &str, load: Load, transactions: u64) {
    let source = Mysqld::start(&["--max-binlog-size=1G"]).await;
    workload::prepare(&source, TABLES, ROWS).await;
    if name == "joined" {
        // A foreign key to each from the one before it.
        for table in 2..=TABLES {
            let before = table - 1;
            source
                .sql(&format!(
                    "ALTER TABLE sbtest.sbtest{table} ADD COLUMN r INT, \
                     ADD FOREIGN KEY (r) REFERENCES sbtest.sbtest{before} (id)"
                ))
                .await;
        }
    }
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
    let (file, from) = workload::current_binlog(&source).await;
    workload::transactions(&source, load, TABLES, ROWS, transactions).await;
    let (_, to) = workload::current_binlog(&source).await;
    println!("{name}: {transactions} transactions, {} MB", (to - from) / 1_000_000);
    let executed = source.gtid_executed().await;
    tokio::time::sleep(Duration::from_secs(3)).await;

    let native = native_replica(&source, dump.path(), &executed).await;
    let rate = |seconds: f64| transactions as f64 / seconds;
    let print = |way: &str, seconds: f64, cpu: &str| {
        let ratio = seconds / native.0;
        println!("{way:<16} {seconds:6.1} s {:8.0} /s, {ratio:.2} of native; {cpu}", rate(seconds));
    };
    print("native replica", native.0, &native.1);
    let mut ours = vec![];
    for way in WAYS {
        let (seconds, cpu) = restore(&pitr, &source, way).await;
        print(way, seconds, &cpu);
        ours.push((way, seconds));
    }
    drop(daemon);
    let sample = SAMPLE.min(transactions / 2);
    let stock = mysqlbinlog_and_mysql(&source, dump.path(), &file, from, sample).await;
    println!("mysqlbinlog | mysql: {stock:.0} /s ({sample} of them)");
    for (way, seconds) in ours {
        println!("{way} is {:.1} times as fast as mysqlbinlog | mysql", rate(seconds) / stock);
    }
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

async fn native_replica(source: &Mysqld, dump: &std::path::Path, executed: &str) -> (f64, String) {
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
    let (begun, before) = (Instant::now(), cpu_of(&replica));
    replica.sql("START REPLICA").await;
    let wait = format!("SELECT WAIT_FOR_EXECUTED_GTID_SET('{executed}', 3600)");
    let timed_out: u64 = replica.row(&wait).await;
    assert_eq!(timed_out, 0);
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = format!("server {:.1} s of CPU", cpu_of(&replica) - before);
    assert_eq!(checksums(source).await, checksums(&replica).await);
    (seconds, cpu)
}

async fn restore(pitr: &Pitr, source: &Mysqld, way: &str) -> (f64, String) {
    let target = Mysqld::start(&AS_INSTALLED).await;
    let before = cpu_of(&target);
    let to = format!("bench={}", target.url());
    let args = ["restore", "--to", "latest", "--target", &to, "--apply", way, "--json"];
    let restored = pitr.run(&args);
    tokio::pin!(restored);
    let mut threads = vec![];
    let report = loop {
        tokio::select! {
            report = &mut restored => break report.ok().json(),
            // Those that apply are gone at the end.
            () = tokio::time::sleep(Duration::from_millis(200)) => note_threads(&target, &mut threads),
        }
    };
    threads.sort_by(|(.., a), (.., b)| f64::total_cmp(b, a));
    threads.truncate(BUSIEST);
    let threads: Vec<String> =
        threads.into_iter().map(|(_, name, cpu)| format!("{name} {cpu:.1}")).collect();
    let cpu = cpu_of(&target) - before;
    let cpu = format!("server {cpu:.1} s of CPU, load included: {}", threads.join(", "));
    assert_eq!(target.gtid_executed().await, source.gtid_executed().await);
    assert_eq!(checksums(source).await, checksums(&target).await);
    (report["sources"][0]["seconds"]["replay"].as_f64().unwrap(), cpu)
}

/// CPU time that a server has had, in s.
fn cpu_of(server: &Mysqld) -> f64 {
    cpu(&std::fs::read_to_string(format!("/proc/{}/stat", server.pid())).unwrap()).1
}

/// Takes note of how much CPU time each thread of a server has had: its number, name and s.
fn note_threads(server: &Mysqld, noted: &mut Vec<(String, String, f64)>) {
    for thread in std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap() {
        let thread = thread.unwrap();
        // It may have ended meanwhile.
        let Ok(stat) = std::fs::read_to_string(thread.path().join("stat")) else { continue };
        let id = thread.file_name().into_string().unwrap();
        let (name, cpu) = cpu(&stat);
        match noted.iter_mut().find(|(other, ..)| *other == id) {
            Some(thread) => thread.2 = cpu,
            None => noted.push((id, name, cpu)),
        }
    }
}

/// Name and CPU time in s, as `/proc/PID/stat` has them: user and system time in ticks of 10 ms.
fn cpu(stat: &str) -> (String, f64) {
    let (name, rest) = stat.rsplit_once(')').unwrap();
    let ticks: Vec<f64> =
        rest.split_ascii_whitespace().skip(11).take(2).map(|n| n.parse().unwrap()).collect();
    (name.split_once('(').unwrap().1.to_owned(), ticks.iter().sum::<f64>() / 100.0)
}

/// Transactions a second.
async fn mysqlbinlog_and_mysql(
    source: &Mysqld,
    dump: &std::path::Path,
    file: &str,
    from: u64,
    sample: u64,
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
        if done >= sample || client.try_wait().unwrap().is_some() {
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
    let tables: Vec<String> = ["sbtest", "bulk"]
        .into_iter()
        .flat_map(|name| (1..=TABLES).map(move |table| format!("sbtest.{name}{table}")))
        .collect();
    server.rows(&format!("CHECKSUM TABLE {}", tables.join(", "))).await
}
