//! How fast a baseline is loaded, beside `mysql < dump`.
//!
//! `cargo bench --bench load` fills six tables with four secondary indexes each (of
//! `PITR_BENCH_ROWS` rows, 200,000 by default: 60 MB a table), takes a baseline, and brings it into
//! fresh servers, set up as installed: with the stock client from a file that is unpacked already,
//! by `pitr restore --target`, and by `pitr restore --into`, whose time has the making of the data
//! directory in it. It prints times and their ratios; it asserts nothing but that all tables and
//! definitions are the same. `PITR_BENCH_POOL` sets another buffer pool than that of 128 MB.

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

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use support::{Mysqld, Pitr, eventually, program};

const TABLES: u64 = 6;

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

fn main() {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let rows: u64 = setting("PITR_BENCH_ROWS", "200000").parse().unwrap();
        let pool = format!("--innodb-buffer-pool-size={}", setting("PITR_BENCH_POOL", "128M"));
        let as_installed = ["--innodb-flush-log-at-trx-commit=1", "--sync-binlog=1", pool.as_str()];

        let source = Mysqld::start(&["--innodb-buffer-pool-size=512M"]).await;
        prepare(&source, rows).await;
        let expected = shown(&source).await;
        let pitr = Pitr::new(&[("bench", source.url())]);
        pitr.run(&["init"]).await.ok();
        let mut daemon = pitr.spawn_run();
        eventually("the first baseline", Duration::from_mins(10), async || {
            let report = pitr.run(&["windows", "--json"]).await.ok().json();
            (!report["sources"][0]["windows"].as_array()?.is_empty()).then_some(())
        })
        .await;
        daemon.terminate(Duration::from_mins(1)).await;
        drop(source);
        let dump = unpack(&pitr);
        let megabytes = dump.metadata().unwrap().len() as f64 / 1e6;
        println!("a dump of {megabytes:.0} MB");

        let target = Mysqld::start(&as_installed).await;
        let begun = Instant::now();
        stock(&target, dump);
        let stock = begun.elapsed().as_secs_f64();
        assert_eq!(shown(&target).await, expected);
        drop(target);

        let target = Mysqld::start(&as_installed).await;
        let to = format!("bench={}", target.url());
        let ours = restore(&pitr, &["--target", &to]).await;
        assert_eq!(shown(&target).await, expected);
        drop(target);

        let dir = tempfile::tempdir().unwrap();
        let into = dir.path().join("into");
        let folder = restore(&pitr, &["--into", into.to_str().unwrap()]).await;
        let target = Mysqld::start_on(&into.join("bench/data"), &as_installed).await;
        assert_eq!(shown(&target).await, expected);

        let rate = |seconds: f64| format!("{seconds:.1} s, {:.0} MB/s", megabytes / seconds);
        println!("mysql < dump:           {}", rate(stock));
        println!("pitr restore --target:  {}", rate(ours));
        println!("pitr restore --into:    {}", rate(folder));
        println!("into a running server pitr is {:.2} times as fast", stock / ours);
        println!("into a folder pitr is {:.2} times as fast", stock / folder);
    });
}

async fn prepare(source: &Mysqld, rows: u64) {
    source.sql("CREATE DATABASE bench").await;
    for table in 1..=TABLES {
        source
            .sql(&format!(
                "USE bench; CREATE TABLE t{table} (id INT PRIMARY KEY AUTO_INCREMENT, \
                 k INT NOT NULL, at DATETIME NOT NULL, name CHAR(40) NOT NULL, \
                 c CHAR(120) NOT NULL, pad CHAR(60) NOT NULL, KEY (k), KEY (at, k), KEY (name), \
                 UNIQUE KEY (c)); SET SESSION cte_max_recursion_depth = 100000000, sql_log_bin = 0; \
                 INSERT INTO t{table} WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL \
                 SELECT i + 1 FROM n WHERE i < {rows}) SELECT i, i * 7919 % 499979, \
                 '2024-01-01' + INTERVAL i * 104729 % 31536000 SECOND, LEFT(SHA2(i, 256), 40), \
                 RPAD(SHA2(i, 384), 119, '-'), RPAD(SHA2(i, 224), 59, '-') FROM n"
            ))
            .await;
    }
}

/// The dump in the archive as a file that the stock client reads.
fn unpack(pitr: &Pitr) -> File {
    let stored = find(&pitr.dir().join("archive")).expect("a baseline");
    let mut dump = tempfile::tempfile_in(pitr.dir()).unwrap();
    let raw = zstd::Decoder::new(File::open(stored).unwrap()).unwrap();
    std::io::copy(&mut raw.take(1 << 40), &mut dump).unwrap();
    std::io::Seek::rewind(&mut dump).unwrap();
    dump
}

fn find(dir: &Path) -> Option<PathBuf> {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if let Some(found) = find(&path) {
                return Some(found);
            }
        } else if path.to_str().unwrap().ends_with(".sql.zst") {
            return Some(path);
        }
    }
    None
}

fn stock(server: &Mysqld, dump: File) {
    let status = Command::new(program("mysql"))
        .args(["--no-defaults", "--host=127.0.0.1", "--user=root", "--binary-mode"])
        .args([&format!("--port={}", server.port()), "--max-allowed-packet=1G"])
        .stdin(dump)
        .status()
        .unwrap();
    assert!(status.success());
}

/// Seconds for the baseline.
async fn restore(pitr: &Pitr, to: &[&str]) -> f64 {
    let args = [&["restore", "--to", "latest", "--json"], to].concat();
    let report = pitr.run(&args).await.ok().json();
    report["sources"][0]["seconds"]["baseline"].as_f64().unwrap()
}

/// Definition and checksum of every table.
async fn shown(server: &Mysqld) -> Vec<(String, u64)> {
    let mut found = vec![];
    for table in 1..=TABLES {
        let (_, text): (String, String) =
            server.row(&format!("SHOW CREATE TABLE bench.t{table}")).await;
        let (_, sum): (String, u64) = server.row(&format!("CHECKSUM TABLE bench.t{table}")).await;
        found.push((text, sum));
    }
    found
}
