//! `gtid_mode` is changed step by step while the source is captured: transactions with GTIDs and
//! without come in one log.

use super::harness::{
    INSERT, Noted, OFF, exports_the_same, note, restores_into, source, until_kept,
};
use crate::continuity::harness::{Watched, digest, now, text};
use crate::support::Mysqld;

#[tokio::test]
async fn a_log_with_and_without_gtids_comes_back_exactly_or_is_refused() {
    let source = source(&["--enforce-gtid-consistency=ON"]).await;
    let mut watched = Watched::start(&source, "").await;
    let mut noted: Vec<Noted> = vec![];
    let modes = ["OFF_PERMISSIVE", "ON_PERMISSIVE", "ON", "ON_PERMISSIVE", "OFF_PERMISSIVE", "OFF"];
    for (step, mode) in modes.into_iter().enumerate() {
        source.sql(&format!("{INSERT}; SET GLOBAL gtid_mode = {mode}; {INSERT}")).await;
        if mode.ends_with("PERMISSIVE") {
            // One of either kind in the same file.
            let uuid = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
            source.sql(&format!("SET gtid_next = '{uuid}:{}'; {INSERT}", step + 1)).await;
            source.sql(&format!("SET gtid_next = 'ANONYMOUS'; {INSERT}")).await;
        }
        noted.push(note(&source).await);
        if step % 2 == 1 {
            watched.daemon.kill();
            source.sql(INSERT).await;
            watched.daemon = watched.pitr.spawn_run();
            // A source with ON hands out nothing any more that has no GTID, nor one with OFF what has.
            watched.until_passed(now()).await;
        }
    }
    let report = watched.until_passed(noted[5].at).await;
    assert_eq!((&report["timeline"], report["gaps"].as_array().unwrap().len()), (&1.into(), 0));
    let pitr = &watched.pitr;
    assert_eq!(exports_the_same(pitr, &source, "files").await, 7);
    for (number, noted) in noted.iter().enumerate() {
        let out = format!("out{number}");
        pitr.run(&["restore", "--to", &text(noted.at), "--into", &out]).await.ok();
        let restored = Mysqld::start_on(&pitr.dir().join(&out).join("shop/data"), &[]).await;
        assert_eq!(noted.content.diff(&digest(&restored).await), [""; 0]);
        assert_eq!(restored.gtid_executed().await, noted.gtids);
    }
    let last = &noted[5];
    for (mode, helps) in [("ON", "ON_PERMISSIVE"), ("OFF", "OFF_PERMISSIVE")] {
        let target = Mysqld::start(&[&format!("--gtid-mode={mode}")]).await;
        let to = format!("shop={}", target.url());
        let args = ["restore", "--json", "--to", &text(last.at), "--target", &to];
        let error = pitr.run(&args).await.exits(6).error_json();
        let hint = error["hint"].as_str().unwrap().to_owned();
        let (statement, _) = hint.split_once(',').unwrap();
        assert_eq!(statement, format!("SET GLOBAL gtid_mode = {helps}"));
        target.sql(statement).await;
        restores_into(pitr, &target, &["--to", &text(last.at)], last).await;
        assert_eq!(target.gtid_executed().await, last.gtids);
    }

    // A set of GTIDs says nothing of those that have none.
    let args = ["restore", "--json", "--plan", "--source", "shop", "--to-position", &last.gtids];
    let error = pitr.run(&args).await.exits(4).error_json();
    assert!(error["message"].as_str().unwrap().contains("have no GTIDs"), "{error}");

    // From a baseline behind which all have one, everything is as it is with GTIDs.
    source.sql("SET GLOBAL gtid_mode = OFF_PERMISSIVE; SET GLOBAL gtid_mode = ON_PERMISSIVE").await;
    source.sql("SET GLOBAL gtid_mode = ON").await;
    source.sql(INSERT).await;
    watched.pitr.run(&["baseline"]).await.ok();
    source.sql(INSERT).await;
    let named = note(&source).await;
    watched.until_passed(named.at).await;
    let target = Mysqld::start(&[]).await;
    restores_into(&watched.pitr, &target, &["--to", &text(named.at)], &named).await;
    assert_eq!(target.gtid_executed().await, named.gtids);
    let target = Mysqld::start(&OFF).await;
    let to = format!("shop={}", target.url());
    watched.pitr.run(&["restore", "--to", &text(named.at), "--target", &to]).await.exits(6);
}

/// A source with ON hands out nothing that has no GTID: what was not captured before is not to be had.
#[tokio::test]
async fn what_a_new_mode_keeps_from_being_captured_is_a_gap() {
    let source = source(&["--enforce-gtid-consistency=ON"]).await;
    let mut watched = Watched::start(&source, "").await;
    source.sql(INSERT).await;
    let before = note(&source).await;
    until_kept(&mut watched, &before).await;
    watched.daemon.kill();
    for mode in ["OFF_PERMISSIVE", "ON_PERMISSIVE", "ON"] {
        source.sql(&format!("{INSERT}; SET GLOBAL gtid_mode = {mode}")).await;
    }
    watched.daemon = watched.pitr.spawn_run();
    watched.broke("gtid_mode was changed before everything was captured").await;
    let after = note(&source).await;
    watched.until_passed(after.at).await;
    let target = Mysqld::start(&[]).await;
    restores_into(&watched.pitr, &target, &["--to", &text(after.at)], &after).await;
    super::harness::restores(&mut watched, &before).await;
}
