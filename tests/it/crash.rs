//! kill -9 at any moment: what was durable stays, and nothing is missing or doubled afterwards.

use crate::instants::until_windows;
use crate::support::{Mysqld, Pitr, RedisServer, eventually};
use ::redis::AsyncCommands;
use mysql_async::prelude::Queryable;
use pitr::engine::{mysql, redis};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[tokio::test]
async fn ten_kills_under_load_leave_no_gap_and_an_exact_restore() {
    let source = Mysqld::start(&[]).await;
    let cache = RedisServer::start(&["--repl-backlog-size", "64mb"]).await;
    source.sql("CREATE DATABASE w; CREATE TABLE w.t (n INT PRIMARY KEY, x BLOB)").await;
    let pitr = Pitr::new(&[("shop-mysql", source.url()), ("shop-redis", cache.url())]);
    pitr.append_config("[segment]\nmax_bytes = 1000000");
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;

    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (opts, stop) = (source.opts(), Arc::clone(&stop));
        let mut keys = cache.conn().await;
        tokio::spawn(async move {
            let mut conn = mysql_async::Conn::new(opts).await.unwrap();
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                let insert = format!("INSERT INTO w.t VALUES ({n}, RANDOM_BYTES(1000))");
                conn.query_drop(insert).await.unwrap();
                let () = keys.set(format!("k:{n}"), vec![n as u8; 2000]).await.unwrap();
                let () = keys.rpush("list", n).await.unwrap();
            }
            conn.disconnect().await.unwrap();
        })
    };
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(rand::random_range(100..1500))).await;
        daemon.kill();
        daemon = pitr.spawn_run();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;

    let mut sql = source.conn().await;
    let content = mysql::digest::digest(&mut sql).await.unwrap();
    let keys = redis::digest::digest(&mut cache.conn().await).await.unwrap();
    let gtids = source.gtid_executed().await;
    sql.disconnect().await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "the test stands outside of the program")]
    let at = chrono::Utc::now();
    let report = eventually("both have passed the instant", Duration::from_mins(1), async || {
        let report = pitr.run(&["windows", "--json"]).await.ok().json();
        let newest = report["joint"]["newest"].as_str()?;
        (chrono::DateTime::parse_from_rfc3339(newest).unwrap() >= at).then_some(report)
    })
    .await;
    for source in report["sources"].as_array().unwrap() {
        assert_eq!(source["gaps"].as_array().unwrap().len(), 0, "{report:#}\n{}", daemon.log());
        assert_eq!(source["timeline"], 1, "{report:#}");
    }

    let (target, copy) = (Mysqld::start(&[]).await, RedisServer::start(&[]).await);
    let (to_mysql, to_redis) =
        (format!("shop-mysql={}", target.url()), format!("shop-redis={}", copy.url()));
    let to = at.to_rfc3339();
    pitr.run(&["restore", "--to", &to, "--target", &to_mysql, "--target", &to_redis]).await.ok();
    let mut sql = target.conn().await;
    let restored = mysql::digest::digest(&mut sql).await.unwrap();
    assert_eq!(content.diff(&restored), [""; 0]);
    assert_eq!(target.gtid_executed().await, gtids);
    let restored = redis::digest::digest(&mut copy.conn().await).await.unwrap();
    assert_eq!(keys.diff(&restored), [""; 0]);
    sql.disconnect().await.unwrap();

    // The catalog is only an index: rebuilt from the archive, it is the same.
    daemon.terminate(Duration::from_secs(5)).await;
    let before = dump(&pitr);
    std::fs::remove_file(pitr.archive().join("catalog.sqlite")).unwrap();
    pitr.run(&["reindex"]).await.ok();
    assert_eq!(dump(&pitr), before);
}

#[tokio::test]
async fn several_sources_start_without_a_catalog() {
    let cache = RedisServer::start(&[]).await;
    let names = ["a", "b", "c", "d"];
    let pitr = Pitr::new(&names.map(|name| (name, cache.url())));
    pitr.append_config("[segment]\nmax_seconds = 1");
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    daemon.kill();
    for end in ["", "-wal", "-shm"] {
        // Only the first of them is always there.
        drop(std::fs::remove_file(pitr.archive().join(format!("catalog.sqlite{end}"))));
    }
    let mut daemon = pitr.spawn_run();
    eventually("every source streams", Duration::from_mins(1), async || {
        let report = pitr.run(&["windows", "--json"]).await.ok().json();
        let sources = report["sources"].as_array().unwrap().clone();
        sources.iter().all(|source| source["state"] == "streaming").then_some(())
    })
    .await;
    // Segments are sealed meanwhile, and get their rows.
    tokio::time::sleep(Duration::from_secs(3)).await;
    daemon.terminate(Duration::from_secs(5)).await;
    assert!(!daemon.log().contains("WARN"), "{}", daemon.log());
    let before = dump(&pitr);
    pitr.run(&["reindex"]).await.ok();
    assert_eq!(dump(&pitr), before);
}

fn dump(pitr: &Pitr) -> String {
    let path = pitr.archive().join("catalog.sqlite");
    pitr::catalog::Catalog::open(&path).unwrap().dump().unwrap()
}
