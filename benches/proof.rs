//! How fast an archive is proved and told, beside the stock decoder, which only uncompresses it.
//!
//! `cargo bench --bench proof` captures about 500 MB of row changes and then reads the archive three
//! times in turn: `zstd -dc` of its segments into nothing, `pitr verify` (digests, chain, index,
//! every event parsed) and `pitr log` of all of it (every row decoded and counted, none printed). It prints
//! the seconds of each run and the ratios of the medians; it asserts nothing. `PITR_BENCH_MB` sets
//! another size.

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

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;
use support::Pitr;

const RUNS: usize = 3;

fn main() {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let (source, _, size) = workload::large_binlog().await;
        let pitr = Pitr::new(&[("bench", source.url())]);
        workload::capture(&source, size, &pitr.archive()).await;
        let mut segments: Vec<PathBuf> = std::fs::read_dir(pitr.archive().join("bench/t0001"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "zst"))
            .collect();
        segments.sort();
        let mut ways = [("zstd -dc", vec![]), ("pitr verify", vec![]), ("pitr log", vec![])];
        for run in 0..RUNS {
            ways[0].1.push(seconds(Command::new("zstd").arg("-dcq").args(&segments)));
            for (way, args) in
                [(1, &["verify"][..]), (2, &["log", "--larger-than", "1G", "--from", "1 day ago"])]
            {
                let begun = Instant::now();
                pitr.run(args).await.ok();
                ways[way].1.push(begun.elapsed().as_secs_f64());
            }
            for (name, seconds) in &ways {
                let rate = size as f64 / 1e6 / seconds[run];
                println!("run {run}: {name} {:.2} s ({rate:.0} MB/s)", seconds[run]);
            }
        }
        let [zstd, verify, log] = ways.map(|(_, mut seconds)| workload::median(&mut seconds));
        println!("pitr verify takes {:.2} times as long as zstd -dc", verify / zstd);
        println!("pitr log takes {:.2} times as long as zstd -dc", log / zstd);
    });
}

fn seconds(command: &mut Command) -> f64 {
    let begun = Instant::now();
    assert!(command.stdout(Stdio::null()).status().unwrap().success());
    begun.elapsed().as_secs_f64()
}
