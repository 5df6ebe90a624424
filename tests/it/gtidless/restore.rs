//! What a source without GTIDs had comes back, whatever is asked for and wherever it goes.

use super::harness::{
    INSERT, Noted, OFF, end_of_log, exports_the_same, note, restores_into, source,
};
use crate::continuity::harness::{Watched, digest, text};
use crate::support::{Mysqld, Output};
use rstest::rstest;
use std::time::Duration;

/// Refused as not restorable; gives message and hint.
fn refusal(output: Output, exit: i32) -> (String, String) {
    let error = output.exits(exit).error_json();
    let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
    (text("message"), text("hint"))
}

async fn plan(watched: &Watched, option: &str, place: &str) -> Output {
    watched.pitr.run(&["restore", "--json", "--plan", "--source", "shop", option, place]).await
}

/// A source on which all kinds of things were done, and moments between them.
async fn worked_on(args: &[&str]) -> (Mysqld, Watched, Vec<Noted>) {
    let source = source(args).await;
    let mut watched = Watched::start(&source, "[segment]\nmax_bytes = 20000").await;
    let mut noted = vec![note(&source).await];
    for _ in 0..30 {
        source.sql(INSERT).await;
    }
    noted.push(note(&source).await);
    source.sql("FLUSH BINARY LOGS; UPDATE shop.t SET b = 'changed' WHERE id < 10").await;
    // One transaction over two engines, with a temporary table: what GTIDs would not allow.
    source.sql("CREATE TABLE shop.m (a INT) ENGINE=MyISAM").await;
    if args.is_empty() {
        source
            .sql(
                "BEGIN; INSERT INTO shop.t (b) VALUES ('mixed'); INSERT INTO shop.m VALUES (1); \
                 CREATE TEMPORARY TABLE shop.tmp (a INT); UPDATE shop.t JOIN shop.m SET b = 'both', \
                 a = 2 WHERE id = 3; DROP TEMPORARY TABLE shop.tmp; COMMIT",
            )
            .await;
    }
    source
        .sql("XA START 'x'; INSERT INTO shop.t (b) VALUES ('xa'); XA END 'x'; XA PREPARE 'x'")
        .await;
    source.sql("FLUSH BINARY LOGS; XA COMMIT 'x'").await;
    source
        .sql("SET binlog_transaction_compression = ON; INSERT INTO shop.t (b) SELECT b FROM shop.t")
        .await;
    noted.push(note(&source).await);
    source.sql("DROP TABLE shop.t").await;
    noted.push(note(&source).await);
    watched.until_passed(noted[3].at).await;
    (source, watched, noted)
}

#[rstest]
#[case::what_gtids_forbid_is_done(&[])]
#[case::consistency_is_enforced(&["--enforce-gtid-consistency=ON"])]
#[tokio::test]
async fn instants_and_places_come_back_exactly(#[case] args: &[&str]) {
    let (source, mut watched, noted) = worked_on(args).await;
    let pitr = &watched.pitr;
    // Into running servers, by instant and by place.
    for (index, noted) in noted.iter().enumerate() {
        let target = Mysqld::start(&OFF).await;
        let report = restores_into(pitr, &target, &["--to", &text(noted.at)], noted).await;
        let said = &report["sources"][0];
        if index > 0 {
            let last = said["last_applied"]["position"].as_str().unwrap();
            assert!(last.starts_with(&format!("{}:", noted.log)), "{report:#}");
            assert!(last < noted.place().as_str());
        }
        if index < 3 {
            let out = said["first_left_out"]["position"].as_str().unwrap().to_owned();
            // That place itself is one to go back before.
            let planned = plan(&watched, "--before", &out).await.ok().json();
            assert_eq!(planned["sources"][0]["cut"].as_str().unwrap(), out);
        }
        assert_eq!(target.gtid_executed().await, "");
    }
    let target = Mysqld::start(&OFF).await;
    restores_into(pitr, &target, &["--to-position", &noted[1].place()], &noted[1]).await;
    let target = Mysqld::start(&["--gtid-mode=OFF_PERMISSIVE"]).await;
    let inside = format!("{}:{}", noted[3].log, noted[3].offset - 1);
    let report = restores_into(pitr, &target, &["--before", &inside], &noted[2]).await;
    assert_eq!(report["sources"][0]["first_left_out"]["position"], noted[2].place());
    let landmarks = pitr.run(&["log", "--landmarks", "--json"]).await.ok().stdout;
    let name = landmarks.split('"').rfind(|word| word.starts_with("landmark:"));
    let target = Mysqld::start(&OFF).await;
    restores_into(pitr, &target, &["--before", name.unwrap()], &noted[2]).await;

    // Into a folder, which any server of the version starts on.
    pitr.run(&["restore", "--to", &text(noted[2].at), "--into", "out"]).await.ok();
    let data = pitr.dir().join("out/shop/data");
    for mode in [&OFF[..], &[]] {
        let restored = Mysqld::start_on(&data, mode).await;
        assert_eq!(noted[2].content.diff(&digest(&restored).await), [""; 0]);
    }

    // The archive as it is: exported, and found again without its catalog.
    assert_eq!(exports_the_same(pitr, &source, "files").await, 3);
    let mut before = watched.report().await;
    assert!(watched.daemon.terminate(Duration::from_secs(20)).await.success());
    before["state"] = "stopped".into();
    for file in std::fs::read_dir(pitr.archive()).unwrap().flatten() {
        if file.file_name().to_str().unwrap().starts_with("catalog.sqlite") {
            std::fs::remove_file(file.path()).unwrap();
        }
    }
    watched.pitr.run(&["reindex"]).await.ok();
    let after = watched.report().await;
    assert_eq!(after["windows"][0]["from"], before["windows"][0]["from"]);
    assert_eq!((&after["gaps"], &after["timeline"]), (&before["gaps"], &before["timeline"]));
    watched.daemon = watched.pitr.spawn_run();
    let last = note(&source).await;
    super::harness::restores(&mut watched, &last).await;
    assert_eq!(watched.report().await["timeline"], 1);
}

#[tokio::test]
async fn what_names_no_place_is_refused_with_what_does() {
    let (_source, watched, noted) = worked_on(&[]).await;
    let gtid = "3e11fa47-71ca-11e1-9e33-c80aa9429562:1";
    for (option, place) in
        [("--to-position", gtid), ("--before", gtid), ("--to-position", &format!("{gtid}-7"))]
    {
        let (message, hint) = refusal(plan(&watched, option, place).await, 4);
        assert!(message.contains("have no GTIDs"), "{message}");
        assert!(hint.contains(&noted[3].place()), "{hint}");
    }
    let inside = format!("{}:{}", noted[3].log, noted[3].offset - 1);
    let (message, hint) = refusal(plan(&watched, "--to-position", &inside).await, 4);
    assert!(message.contains("lies within the record"), "{message}");
    assert!(hint.contains(&noted[2].place()) && hint.contains(&noted[3].place()), "{hint}");
}

#[tokio::test]
async fn a_target_with_gtids_is_refused_with_what_helps_and_takes_statements() {
    let (_source, watched, noted) = worked_on(&[]).await;
    let (pitr, at) = (&watched.pitr, text(noted[2].at));
    let target = Mysqld::start(&[]).await;
    let to = format!("shop={}", target.url());
    let restore = ["restore", "--json", "--source", "shop", "--to", &at, "--target", &to];
    let (message, hint) = refusal(pitr.run(&restore).await, 6);
    assert!(message.contains("gtid_mode = ON"), "{message}");
    assert!(hint.contains("--apply sql"), "{hint}");
    let (statement, _) = hint.split_once(',').unwrap();
    target.sql(statement).await;
    restores_into(pitr, &target, &["--to", &at], &noted[2]).await;
    target.sql("SET GLOBAL gtid_mode = ON").await;

    for mode in ["ON", "OFF"] {
        let mode = format!("--gtid-mode={mode}");
        let target = Mysqld::start(&[&mode]).await;
        restores_into(pitr, &target, &["--to", &at, "--apply", "sql"], &noted[2]).await;
        let named = target.gtid_executed().await;
        assert_eq!(named.is_empty(), mode.ends_with("OFF"), "{named}");
    }
}

#[tokio::test]
async fn nothing_behind_the_baseline_comes_back_as_well() {
    let source = source(&[]).await;
    source.sql(INSERT).await;
    let mut watched = Watched::start(&source, "").await;
    let noted = note(&source).await;
    let report = super::harness::restores(&mut watched, &noted).await;
    assert_eq!(report["sources"][0]["records"], 0, "{report:#}");
    assert_eq!(end_of_log(&source).await, (noted.log, noted.offset));
}
