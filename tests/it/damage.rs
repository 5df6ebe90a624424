//! Stored bytes that change are noticed, and never restored.

use crate::daemon::find;
use crate::instants::until_windows;
use crate::support::{Mysqld, Pitr, RedisServer, clear_of_the_hour, random_literal};
use std::time::Duration;

#[tokio::test]
async fn a_flipped_bit_in_any_block_or_baseline_is_never_restored() {
    // Every segment has to be one that the restore needs.
    clear_of_the_hour().await;
    let (source, cache) = (Mysqld::start(&[]).await, RedisServer::start(&[]).await);
    let pitr = Pitr::new(&[("shop-mysql", source.url()), ("shop-redis", cache.url())]);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    source.sql("CREATE DATABASE w; CREATE TABLE w.t (n INT PRIMARY KEY, x BLOB)").await;
    for n in 0..20 {
        source.sql(&format!("INSERT INTO w.t VALUES ({n}, {})", random_literal(60_000))).await;
        cache.cmd::<()>(&["SET", &format!("k{n}"), &"v".repeat(5000)]).await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(daemon.terminate(Duration::from_secs(5)).await.success());
    let newest = pitr.run(&["windows", "--json"]).await.ok().json();
    let to = newest["joint"]["newest"].as_str().unwrap().to_owned();

    let objects = find(&pitr.archive(), "zst");
    assert!(objects.len() >= 4, "{objects:?}");
    for object in objects {
        let sound = std::fs::read(&object).unwrap();
        // The middle of every part: header, each block's head and bytes, footer, a baseline's
        // bytes. Frames begin with a magic number of their own.
        for place in places(&sound) {
            let mut damaged = sound.clone();
            damaged[place] ^= 0x10;
            std::fs::write(&object, &damaged).unwrap();
            let into = pitr.dir().join("damaged");
            let args = ["restore", "--to", &to, "--into", into.to_str().unwrap(), "--json"];
            let output = pitr.run(&args).await;
            assert_eq!(output.code(), Some(5), "{object} at {place}: {}", output.stderr);
            assert_eq!(output.error_json()["class"], "corrupt");
            if into.exists() {
                std::fs::remove_dir_all(&into).unwrap();
            }
        }
        std::fs::write(&object, &sound).unwrap();
    }
    let into = pitr.dir().join("sound");
    pitr.run(&["restore", "--to", &to, "--into", into.to_str().unwrap()]).await.ok();
}

/// One place in the middle of each zstd frame, skippable ones included.
fn places(file: &[u8]) -> Vec<usize> {
    let mut starts: Vec<usize> = (0..file.len().saturating_sub(4))
        .filter(|at| {
            let magic = u32::from_le_bytes(file[*at..at + 4].try_into().unwrap());
            magic == 0xFD2F_B528 || magic & 0xFFFF_FFF0 == 0x184D_2A50
        })
        .collect();
    starts.push(file.len());
    starts.windows(2).map(|pair| usize::midpoint(pair[0], pair[1])).collect()
}
