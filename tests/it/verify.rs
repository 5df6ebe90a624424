//! Whether the archive is as it was written: beside its daemon, and where it is not, what is lost.

use crate::daemon::find;
use crate::instants::until_windows;
use crate::support::{Mysqld, Pitr, RedisServer, eventually, random_literal};
use std::time::Duration;

#[tokio::test]
async fn an_archive_is_sound_beside_its_daemon_and_damage_is_named_with_what_is_lost_by_it() {
    let (source, cache) = (Mysqld::start(&[]).await, RedisServer::start(&[]).await);
    let pitr = Pitr::new(&[("shop-mysql", source.url()), ("shop-redis", cache.url())]);
    pitr.append_config("[segment]\nmax_bytes = 100_000");
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    source.sql("CREATE DATABASE w; CREATE TABLE w.t (n INT PRIMARY KEY, x BLOB)").await;

    let writes = async {
        for n in 0..30 {
            source.sql(&format!("INSERT INTO w.t VALUES ({n}, {})", random_literal(20_000))).await;
            cache.cmd::<()>(&["SET", &format!("k{n}"), &"v".repeat(20_000)]).await;
        }
    };
    let checks = async {
        for _ in 0..3 {
            pitr.run(&["verify"]).await.ok();
        }
    };
    tokio::join!(writes, checks);
    let sealed = |name: &str| {
        let mut objects = find(&pitr.archive().join(name), "zst");
        objects.retain(|object| object.contains("/seg-"));
        objects
    };
    // However many of the rows above came at once, and so into one segment.
    let mut n = 30;
    eventually("both sources have three sealed segments", Duration::from_mins(1), async || {
        source.sql(&format!("INSERT INTO w.t VALUES ({n}, {})", random_literal(60_000))).await;
        cache.cmd::<()>(&["SET", &format!("k{n}"), &"v".repeat(60_000)]).await;
        n += 1;
        (sealed("shop-mysql").len() > 2 && sealed("shop-redis").len() > 2).then_some(())
    })
    .await;
    let log = sealed("shop-mysql");
    pitr.run(&["baseline"]).await.ok();
    let report = pitr.run(&["verify", "--json"]).await.ok().json();
    // Three segments and two baselines of each.
    assert!(report["read"].as_u64().unwrap() >= 10, "{report:#}");
    assert_eq!(report["findings"].as_array().unwrap().len(), 0, "{report:#}");
    assert!(daemon.terminate(Duration::from_secs(30)).await.success());

    let windows = pitr.run(&["windows", "--json"]).await.ok().json();
    let newest = |source: usize| {
        let baselines = windows["sources"][source]["baselines"].as_array().unwrap();
        baselines.iter().map(|b| b["at"].as_str().unwrap().to_owned()).max().unwrap()
    };
    let (segment, baseline) = (&log[1], &find(&pitr.archive().join("shop-redis"), "zst")[0]);
    assert!(baseline.contains("/base-"), "{baseline}");
    let mut bytes = std::fs::read(segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(segment, bytes).unwrap();
    std::fs::remove_file(baseline).unwrap();

    let output = pitr.run(&["verify", "--json"]).await.exits(5);
    assert_eq!(output.error_json()["class"], "corrupt");
    let report = output.json();
    let findings = report["findings"].as_array().unwrap();
    let (damaged, missing) = (&findings[0], &findings[1]);
    assert_eq!(findings.len(), 2, "{report:#}");
    assert!(segment.ends_with(damaged["object"].as_str().unwrap()), "{report:#}");
    assert_eq!(damaged["kind"], "damaged");
    assert!(damaged["block"].is_u64() && damaged["offsets"].is_array(), "{report:#}");
    assert!(damaged["lost"]["after"].is_string(), "{report:#}");
    assert_eq!(damaged["lost"]["until"], *newest(0), "{windows:#}\n{report:#}");
    let json = missing["object"].as_str().unwrap();
    assert!(baseline.ends_with(json.strip_suffix(".json").unwrap()), "{report:#}");
    assert_eq!(missing["kind"], "missing");
    assert!(missing["lost"]["after"].is_null(), "{report:#}");
    assert_eq!(missing["lost"]["until"], *newest(1), "{windows:#}\n{report:#}");
    let text = pitr.run(&["verify"]).await.exits(5).stdout;
    assert_eq!(text.matches("cannot be restored: after ").count(), 2, "{text}");
}
