//! What is larger than memory ought to hold: a row of 20 MB, a transaction of 300 MB.

use crate::instants::until_windows;
use crate::support::{Mysqld, Pitr, eventually};
use std::time::Duration;

#[tokio::test]
async fn a_row_of_20_mb_and_a_transaction_of_300_mb_pass_through_little_memory() {
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
    for n in 1..=150 {
        transaction += &format!("INSERT INTO w.t VALUES ({n}, REPEAT(RANDOM_BYTES(1000), 2000));");
    }
    source.sql(&format!("{transaction} COMMIT")).await;
    #[expect(clippy::disallowed_methods, reason = "the test stands outside of the program")]
    let at = chrono::Utc::now().to_rfc3339();
    eventually("all of it is durable", Duration::from_mins(2), async || {
        let report = pitr.run(&["windows", "--json"]).await.ok().json();
        (report["sources"][0]["durable_at"].as_str()? > at.as_str()).then_some(())
    })
    .await;
    let rss = daemon.rss_bytes_max();
    println!("the daemon's largest resident memory: {} MB", rss / 1_000_000);
    assert!(rss < 200_000_000, "{rss} bytes");

    let target = Mysqld::start(&["--max-allowed-packet=1G"]).await;
    let to = format!("shop-mysql={}", target.url());
    pitr.run(&["restore", "--to", &at, "--target", &to]).await.ok();
    let sum = "SELECT COUNT(*), SUM(LENGTH(x)), SUM(CRC32(x)) FROM w.t";
    let (here, there): ((u64, u64, u64), (u64, u64, u64)) =
        (source.row(sum).await, target.row(sum).await);
    assert_eq!(here, there);
    assert_eq!(here.0, 151);
}
