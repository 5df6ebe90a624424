//! What pitr costs a Redis server under load, how far it lags behind it, and how fast what it
//! captured comes back.
//!
//! `cargo bench --bench redis` drives three fresh servers in turn with `redis-benchmark -P 32`
//! (`PITR_BENCH_REQUESTS` of each of SET, LPUSH and HSET, 2,000,000 by default): one alone, one with
//! a native replica, one that pitr captures. Once a second it asks the server how much waits in the
//! output buffer of its replica and how far that has acknowledged, and pitr how far it lags. What
//! was captured is then restored into a folder and into a running server, beside the time in which
//! the server itself loads that folder, whose append-only files hold the same commands. Last, one
//! value of 512 MB goes through. It prints times, ratios and memory; it asserts nothing but that all
//! ways end with the same keyspace.

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

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use support::{Daemon, Pitr, RedisServer, Took, eventually, program};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use workload::median;

/// The commands that `redis-benchmark` gives, with values of 64 bytes over 100,000 keys and fields.
const COMMANDS: [&str; 3] = ["set", "lpush", "hset"];

const RUNS: usize = 3;

const PATIENCE: Duration = Duration::from_mins(10);

/// The largest value that a server takes from its clients (`proto-max-bulk-len`).
const LARGE_BYTES: usize = 512 << 20;

fn main() {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let requests: u64 =
            std::env::var("PITR_BENCH_REQUESTS").map_or(2_000_000, |text| text.parse().unwrap());
        let commands = requests * COMMANDS.len() as u64;
        let source = RedisServer::start(&[]).await;
        let (alone, _) = drive(&source, requests, None).await;
        drop(source);
        let (native, waiting) = with_native_replica(requests).await;
        let rate = |seconds: f64| commands as f64 / seconds;
        println!("alone:                 {alone:.1} s, {:.0} commands/s", rate(alone));
        println!("with a native replica: {native:.1} s, {:.0} commands/s", rate(native));
        println!("  {waiting}");

        let source = RedisServer::start(&[]).await;
        let pitr = Pitr::new(&[("bench", source.url())]);
        let mut daemon = capture(&pitr).await;
        let (ours, waiting) = drive(&source, requests, Some(&pitr)).await;
        let caught_up = until_durable(&pitr).await;
        println!("with pitr:             {ours:.1} s, {:.0} commands/s", rate(ours));
        println!("  {waiting}");
        println!("  all of it was durable {caught_up:.2} s after the end");
        println!(
            "  the daemon's largest resident memory: {} MB",
            daemon.rss_bytes_max() / 1_000_000
        );
        println!(
            "with pitr the server does {:.2} of what it does alone, {:.2} of what it does with a \
             native replica",
            alone / ours,
            native / ours
        );
        let expected = digest(&source).await;
        daemon.terminate(PATIENCE).await;
        drop(source);
        restores(&pitr, &expected, commands).await;
        drop(pitr);

        large_value().await;
    });
}

/// Starts to capture, and waits for the first baseline.
async fn capture(pitr: &Pitr) -> Daemon {
    pitr.run(&["init"]).await.ok();
    let daemon = pitr.spawn_run();
    eventually("the first baseline", PATIENCE, async || {
        let report = windows(pitr).await;
        (!report["windows"].as_array()?.is_empty()).then_some(())
    })
    .await;
    daemon
}

/// What `pitr windows` says of the source.
async fn windows(pitr: &Pitr) -> serde_json::Value {
    pitr.run(&["windows", "--json"]).await.ok().json()["sources"][0].clone()
}

/// Seconds until everything committed by now is durable.
async fn until_durable(pitr: &Pitr) -> f64 {
    let begun = Instant::now();
    #[expect(clippy::disallowed_methods, reason = "the benchmark stands outside of the program")]
    let at = chrono::Utc::now().to_rfc3339();
    eventually("all of it is durable", PATIENCE, async || {
        (windows(pitr).await["durable_at"].as_str()? > at.as_str()).then_some(())
    })
    .await;
    begun.elapsed().as_secs_f64()
}

/// The largest of what was seen once a second.
#[derive(Default)]
struct Waiting {
    samples: u32,
    /// What a replica holds of the server's memory, and all of what the server keeps for it.
    output: u64,
    total: u64,
    /// Bytes of the stream that were not acknowledged yet.
    behind: u64,
    lag_ms: Option<i64>,
}

impl std::fmt::Display for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kb = |bytes: u64| bytes / 1000;
        write!(
            f,
            "most in {} samples: {} kB in the output buffer ({} kB in all), {} kB not acknowledged",
            self.samples,
            kb(self.output),
            kb(self.total),
            kb(self.behind)
        )?;
        self.lag_ms.map_or(Ok(()), |ms| write!(f, ", {ms} ms behind"))
    }
}

impl Waiting {
    async fn sample(&mut self, source: &RedisServer, pitr: Option<&Pitr>) {
        let clients: String = source.cmd(&["CLIENT", "LIST", "TYPE", "replica"]).await;
        let replication: String = source.cmd(&["INFO", "replication"]).await;
        let Some(replica) = replication.lines().find(|line| line.starts_with("slave0:")) else {
            return;
        };
        let master = field(&replication, "master_repl_offset:");
        self.samples += 1;
        self.output = self.output.max(field(&clients, " omem="));
        self.total = self.total.max(field(&clients, " tot-mem="));
        self.behind = self.behind.max(master.saturating_sub(field(replica, ",offset=")));
        if let Some(pitr) = pitr {
            self.lag_ms = self.lag_ms.max(windows(pitr).await["lag_ms"].as_i64());
        }
    }
}

/// The number behind `key`.
fn field(text: &str, key: &str) -> u64 {
    let (_, rest) = text.split_once(key).unwrap_or_else(|| panic!("no {key} in {text}"));
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap();
    digits.parse().unwrap_or_else(|error| panic!("{key} in {text}: {error}"))
}

/// Runs `redis-benchmark` against a server. Its seconds, and what waited meanwhile.
async fn drive(source: &RedisServer, requests: u64, pitr: Option<&Pitr>) -> (f64, Waiting) {
    let mut waiting = Waiting::default();
    let begun = Instant::now();
    let mut benchmark = tokio::process::Command::new(program("redis-benchmark"))
        .args(["-p", &source.port().to_string(), "-n", &requests.to_string()])
        .args(["-t", &COMMANDS.join(","), "-P", "32", "-r", "100000", "-d", "64", "-q"])
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut every = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            status = benchmark.wait() => {
                assert!(status.unwrap().success());
                return (begun.elapsed().as_secs_f64(), waiting);
            }
            _ = every.tick() => waiting.sample(source, pitr).await,
        }
    }
}

async fn with_native_replica(requests: u64) -> (f64, Waiting) {
    let source = RedisServer::start(&["--repl-diskless-sync-delay", "0"]).await;
    let replica = RedisServer::start(&[]).await;
    let () = replica.cmd(&["REPLICAOF", "127.0.0.1", &source.port().to_string()]).await;
    eventually("the replica is in step", PATIENCE, async || {
        let info: String = replica.cmd(&["INFO", "replication"]).await;
        info.contains("master_link_status:up").then_some(())
    })
    .await;
    drive(&source, requests, None).await
}

async fn digest(server: &RedisServer) -> String {
    server.cmd(&["DEBUG", "DIGEST"]).await
}

/// Brings everything back in both ways, and lets the server load the folder, some times in turn.
async fn restores(pitr: &Pitr, expected: &str, commands: u64) {
    let (mut folder, mut loaded, mut server) = (vec![], vec![], vec![]);
    for _ in 0..RUNS {
        let dir = tempfile::tempdir().unwrap();
        let into = dir.path().join("into");
        let took = restore(pitr, &["--into", into.to_str().unwrap()]).await;
        println!("pitr restore --into:    {}", shown(&took));
        folder.push(took.time.as_secs_f64());

        let (seconds, cpu) = own_load(&into.join("bench"), expected).await;
        println!("the server's own load:  {seconds:.2} s, CPU of the server {cpu:.2} s");
        loaded.push(seconds);

        let target = RedisServer::start(&[]).await;
        let to = format!("bench={}", target.url());
        let took = restore(pitr, &["--target", &to]).await;
        let cpu = main_thread(&target).await;
        println!("pitr restore --target:  {}, of the server {cpu:.2} s", shown(&took));
        server.push(took.time.as_secs_f64());
        assert_eq!(digest(&target).await, expected);
    }
    let [folder, loaded, server] = [&mut folder, &mut loaded, &mut server].map(|s| median(s));
    let rate = |seconds: f64| format!("{:.0} commands/s", commands as f64 / seconds);
    println!("the medians are {}, {}, {}", rate(folder), rate(loaded), rate(server));
    println!("into a folder pitr takes {:.2} of the server's own load", folder / loaded);
    println!("into a running server pitr takes {:.2} of the server's own load", server / loaded);
}

async fn restore(pitr: &Pitr, to: &[&str]) -> Took {
    pitr.run_measured(&[&["restore", "--to", "latest"], to].concat()).await
}

fn shown(took: &Took) -> String {
    let (time, cpu) = (took.time.as_secs_f64(), took.cpu.as_secs_f64());
    format!("{time:.2} s, CPU of pitr {cpu:.2} s")
}

/// The CPU time of the thread that executes a server's commands, in seconds.
async fn main_thread(server: &RedisServer) -> f64 {
    let info: String = server.cmd(&["INFO", "cpu"]).await;
    ["used_cpu_user_main_thread:", "used_cpu_sys_main_thread:"]
        .map(|key| info.lines().find_map(|line| line.strip_prefix(key)?.parse::<f64>().ok()))
        .map(|seconds| seconds.unwrap_or_else(|| panic!("no CPU time in {info}")))
        .iter()
        .sum()
}

/// Seconds in which a server loads the append-only files in a folder, by its own account, and its
/// CPU time.
async fn own_load(dir: &Path, expected: &str) -> (f64, f64) {
    const SAID: &str = "DB loaded from append only file: ";
    let server = RedisServer::start_on(dir).await;
    let log = eventually("the server has loaded everything", PATIENCE, async || {
        let log = server.log();
        log.contains(SAID).then_some(log)
    })
    .await;
    let cpu = main_thread(&server).await;
    assert_eq!(digest(&server).await, expected);
    let (_, seconds) = log.rsplit_once(SAID).unwrap();
    (seconds.split(' ').next().unwrap().parse().unwrap(), cpu)
}

/// One value as large as a server takes it, through the capture and a restore.
async fn large_value() {
    // Servers give up a replica for which more than 256 MB wait, whoever it is.
    let limit = ["--client-output-buffer-limit", "replica", "1gb", "1gb", "60"];
    let source = RedisServer::start(&limit).await;
    let pitr = Pitr::new(&[("bench", source.url())]);
    let mut daemon = capture(&pitr).await;
    let before = daemon.rss_bytes_max();
    let begun = Instant::now();
    set_large(&source).await;
    until_durable(&pitr).await;
    println!(
        "a value of {LARGE_BYTES} bytes was durable after {:.1} s; the daemon's largest resident \
         memory: {} MB ({} MB before)",
        begun.elapsed().as_secs_f64(),
        daemon.rss_bytes_max() / 1_000_000,
        before / 1_000_000
    );
    let expected = digest(&source).await;
    assert_eq!(windows(&pitr).await["gaps"].as_array().unwrap().len(), 0, "{}", daemon.log());
    daemon.terminate(PATIENCE).await;
    drop(source);

    let dir = tempfile::tempdir().unwrap();
    let into = dir.path().join("into");
    let most = restore(&pitr, &["--into", into.to_str().unwrap()]).await.rss_bytes_max;
    own_load(&into.join("bench"), &expected).await;
    let target = RedisServer::start(&[]).await;
    let to = format!("bench={}", target.url());
    let most_server = restore(&pitr, &["--target", &to]).await.rss_bytes_max;
    assert_eq!(digest(&target).await, expected);
    println!(
        "restored, with a largest resident memory of {} MB into a folder and {} MB into a server",
        most / 1_000_000,
        most_server / 1_000_000
    );
}

/// Sets one value of random bytes.
async fn set_large(source: &RedisServer) {
    const PIECE: usize = 1 << 20;
    let mut client = tokio::net::TcpStream::connect(("127.0.0.1", source.port())).await.unwrap();
    let head = format!("*3\r\n$3\r\nSET\r\n$5\r\nlarge\r\n${LARGE_BYTES}\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    let mut piece = vec![0; PIECE];
    for _ in 0..LARGE_BYTES / PIECE {
        rand::fill(&mut piece[..]);
        client.write_all(&piece).await.unwrap();
    }
    client.write_all(b"\r\n").await.unwrap();
    let mut answer = [0; 5];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"+OK\r\n");
}
