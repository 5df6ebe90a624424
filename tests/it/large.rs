//! What little the program takes, whatever goes through it: memory for a row of 20 MB and for
//! transactions of 300 MB and 1 GB, and CPU time when nothing goes on.

use crate::instants::until_windows;
use crate::support::{Mysqld, Pitr, RedisServer, eventually};
use std::time::Duration;

#[tokio::test]
async fn a_row_of_20_mb_and_a_transaction_of_300_mb_pass_through_little_memory() {
    pass_through_little_memory(150).await;
}

/// `cargo nextest run --run-ignored only -E 'test(a_transaction_of_1_gb)'`
#[tokio::test]
#[ignore = "needs 5 GB of disk, and minutes"]
async fn a_transaction_of_1_gb_passes_through_little_memory() {
    pass_through_little_memory(530).await;
}

#[tokio::test]
async fn an_idle_daemon_takes_next_to_no_cpu_time() {
    let (source, cache) = (Mysqld::start(&[]).await, RedisServer::start(&[]).await);
    let pitr = Pitr::new(&[("shop-mysql", source.url()), ("shop-redis", cache.url())]);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = daemon.cpu_time();
    tokio::time::sleep(Duration::from_secs(8)).await;
    let took = daemon.cpu_time().checked_sub(before).unwrap();
    println!("an idle daemon takes {} ms of CPU time in 8 s", took.as_millis());
    // Not optimised, and with two sources: 3 % of a core.
    assert!(took < Duration::from_millis(240), "{took:?}");
}

async fn pass_through_little_memory(rows: u64) {
    let source = Mysqld::start(&[
        "--max-allowed-packet=1G",
        "--binlog-cache-size=1M",
        "--max-binlog-size=1G",
    ])
    .await;
    source.sql("CREATE DATABASE w; CREATE TABLE w.t (n INT PRIMARY KEY, x LONGBLOB)").await;
    let pitr = Pitr::new(&[("shop-mysql", source.url())]);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;

    source.sql("INSERT INTO w.t VALUES (0, REPEAT(RANDOM_BYTES(1000), 20000))").await;
    let mut transaction = String::from("BEGIN;");
    for n in 1..=rows {
        transaction += &format!("INSERT INTO w.t VALUES ({n}, REPEAT(RANDOM_BYTES(1000), 2000));");
    }
    source.sql(&format!("{transaction} COMMIT")).await;
    #[expect(clippy::disallowed_methods, reason = "the test stands outside of the program")]
    let at = chrono::Utc::now().to_rfc3339();
    eventually("all of it is durable", Duration::from_mins(5), async || {
        let report = pitr.run(&["windows", "--json"]).await.ok().json();
        (report["sources"][0]["durable_at"].as_str()? > at.as_str()).then_some(())
    })
    .await;
    let rss = daemon.rss_bytes_max();
    println!("the daemon's largest resident memory: {} MB", rss / 1_000_000);
    assert!(rss < 200_000_000, "{rss} bytes");

    let target = Mysqld::start(&["--max-allowed-packet=1G"]).await;
    let to = format!("shop-mysql={}", target.url());
    let most = pitr.run_measured(&["restore", "--to", &at, "--target", &to]).await.rss_bytes_max;
    println!("the restore's largest resident memory: {} MB", most / 1_000_000);
    assert!(most < 200_000_000, "{most} bytes");
    let sum = "SELECT COUNT(*), SUM(LENGTH(x)), SUM(CRC32(x)) FROM w.t";
    let (here, there): ((u64, u64, u64), (u64, u64, u64)) =
        (source.row(sum).await, target.row(sum).await);
    assert_eq!(here, there);
    assert_eq!(here.0, rows + 1);
}
