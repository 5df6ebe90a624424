//! How fast existing binlog gets into the archive, beside the way that stock tools offer.
//!
//! `cargo bench --bench capture` fills a MySQL server with about 500 MB of row changes and then
//! copies its binlog three times in turn by `mysqlbinlog --read-from-remote-server --raw` with
//! `zstd -1` behind it, and by pitr's capture with its checksums, compression, index and syncs.
//! Beside them the crate `mysql_cdc` reads the same from the server, decodes every row and writes
//! nothing. It prints the seconds of each run and the ratio of the medians; it asserts nothing.
//! `PITR_BENCH_MB` sets another size.

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

use mysql_cdc::binlog_client::BinlogClient;
use mysql_cdc::binlog_options::BinlogOptions;
use mysql_cdc::events::binlog_event::BinlogEvent;
use mysql_cdc::replica_options::ReplicaOptions;
use std::path::Path;
use std::process::Command;
use std::time::Instant;
use support::{Mysqld, program};

const RUNS: usize = 3;

fn main() {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let (source, file, size) = workload::large_binlog().await;
        let scratch = tempfile::tempdir().unwrap();
        let (mut stock, mut cdc, mut ours) = (Vec::new(), Vec::new(), Vec::new());
        for run in 0..RUNS {
            let dir = scratch.path().join(run.to_string());
            std::fs::create_dir(&dir).unwrap();
            stock.push(mysqlbinlog_and_zstd(&source, &file, &dir));
            cdc.push(mysql_cdc(source.port(), &file, size));
            ours.push(workload::capture(&source, size, &dir.join("archive")).await);
            let rate = |seconds: f64| size as f64 / 1e6 / seconds;
            println!(
                "run {run}: mysqlbinlog | zstd {:.2} s ({:.0} MB/s), mysql_cdc {:.2} s ({:.0} MB/s), \
                 pitr {:.2} s ({:.0} MB/s)",
                stock[run],
                rate(stock[run]),
                cdc[run],
                rate(cdc[run]),
                ours[run],
                rate(ours[run])
            );
            std::fs::remove_dir_all(&dir).unwrap();
        }
        let ratio = workload::median(&mut stock) / workload::median(&mut ours);
        println!("pitr is {ratio:.2} times as fast (medians of {RUNS} runs, {size} bytes)");
        let ratio = workload::median(&mut cdc) / workload::median(&mut ours);
        println!("pitr is {ratio:.2} times as fast as mysql_cdc");
    });
}

fn mysqlbinlog_and_zstd(source: &Mysqld, file: &str, dir: &Path) -> f64 {
    let begun = Instant::now();
    let status = Command::new(program("mysqlbinlog"))
        .args(["--read-from-remote-server", "--raw", "--host=127.0.0.1", "--user=root"])
        .arg(format!("--port={}", source.port()))
        .arg(format!("--result-file={}/", dir.display()))
        .arg(file)
        .status()
        .unwrap();
    assert!(status.success());
    let status =
        Command::new("zstd").args(["-1", "-q", "--rm"]).arg(dir.join(file)).status().unwrap();
    assert!(status.success());
    begun.elapsed().as_secs_f64()
}

/// Reads up to the place where the file ended.
fn mysql_cdc(port: u16, file: &str, size: u64) -> f64 {
    let begun = Instant::now();
    let options = ReplicaOptions {
        port,
        hostname: "127.0.0.1".into(),
        username: "root".into(),
        blocking: false,
        binlog: BinlogOptions::from_position(file.to_owned(), 4),
        ..ReplicaOptions::default()
    };
    let (mut at, mut rows) = (0, 0);
    for event in BinlogClient::new(options).replicate().unwrap() {
        let (head, event) = event.unwrap();
        at = at.max(u64::from(head.next_event_position));
        rows += match event {
            BinlogEvent::WriteRowsEvent(event) => event.rows.len(),
            BinlogEvent::UpdateRowsEvent(event) => event.rows.len(),
            BinlogEvent::DeleteRowsEvent(event) => event.rows.len(),
            _ => 0,
        };
        if at >= size {
            break;
        }
    }
    assert!(at >= size && rows > 0, "mysql_cdc ended at {at} of {size} with {rows} rows");
    begun.elapsed().as_secs_f64()
}
