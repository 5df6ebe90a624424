//! The way back of a MariaDB: into a running server and into a folder, by its own applier.
//!
//! The log comes straight from the source's binlog files, so nothing of the archive takes part.

mod as_statements;
pub(crate) mod harness;

use crate::mysql_restore::harness::{folder, open_log, restore, running, slow_log};
use crate::support::Mysqld;
use harness::*;
use mysql_async::Conn;
use mysql_async::prelude::Queryable;
use pitr::clock::Timestamp;
use pitr::engine::{Needs, Target};
use pitr::record::Cut;
use rstest::rstest;
use std::cell::Cell;
use std::time::Duration;

#[rstest]
#[case::of_10_5(Series::Maria10_5)]
#[case::of_10_11(Series::Maria10)]
#[tokio::test]
async fn a_mariadb_comes_back_as_it_was_at_each_place_in_its_log(#[case] series: Series) {
    let source = shop(series).await;
    let taken = dumped(&source, series).await;
    let moments = work(&source).await;
    let pieces = log_of(&source, &taken.meta.position).await;
    // By place and by time, into servers that log what they replay and into ones that do not.
    for (at, by_time, args) in [
        (3, false, &["--log-slave-updates=ON", "--max-allowed-packet=64M"][..]),
        (4, true, &["--gtid-strict-mode=OFF", "--max-allowed-packet=64M"][..]),
        (8, false, &["--skip-log-bin", "--max-allowed-packet=64M"][..]),
    ] {
        let then = &moments[at];
        let target = series.start(args).await;
        let parallel = "SELECT @@slave_parallel_threads, @@gtid_strict_mode, @@sync_binlog";
        let before: (u32, u32, u32) = target.row(parallel).await;
        let cut = if by_time { Cut::After(then.at) } else { Cut::At(then.place.clone()) };
        let mut to = running(&target);
        let log = open_log(pieces.clone(), None);
        let (applied, said) =
            restore(&mut to, &needs(&source).await, &taken, log, &cut).await.unwrap();
        assert!(said.starts_with("gtid_slave_pos is exactly that of the instant"), "{said}");
        let mut conn = target.conn().await;
        assert_same(&seen(&mut conn).await, then);
        assert_eq!(sorted(&applied.gtids), sorted(&then.place.gtids));
        let (position, state) = gtids(&mut conn).await;
        // One server wrote it all: its last transactions are the position, too.
        assert_eq!(position, sorted(&then.place.gtids));
        let logs = !args.contains(&"--skip-log-bin");
        assert_eq!(state, if logs { position } else { String::new() });
        assert_eq!(target.row::<(u32, u32, u32)>(parallel).await, before);
        let channels: Vec<mysql_async::Row> = conn.query("SHOW ALL REPLICAS STATUS").await.unwrap();
        assert!(channels.is_empty());
        assert_eq!(applied.first_left_out.is_none(), at == 8, "{applied:?}");
    }
}

/// Into a folder by the programs of `by`, which must be on PATH by these names.
async fn into_a_folder(source: Series, by: Series, at: usize) {
    let server = shop(source).await;
    let taken = dumped(&server, source).await;
    let moments = work(&server).await;
    let pieces = log_of(&server, &taken.meta.position).await;
    let then = &moments[at];
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("shop");
    let mut to = folder(&dir);
    // The series of the archive decides which of the installed programs is taken.
    let mut needs = needs(&server).await;
    if by != source {
        needs.version = "11.8.1-MariaDB".into();
    }
    let log = open_log(pieces, None);
    let (applied, said) =
        restore(&mut to, &needs, &taken, log, &Cut::At(then.place.clone())).await.unwrap();
    assert!(said.contains(&by.named("mariadbd")), "{said}");
    let mut left: Vec<_> =
        std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.retain(|name| name != "data");
    assert!(left.is_empty(), "{left:?}");

    let restored = OnFolder::start(by, &dir).await;
    let mut conn = Conn::new(restored.opts()).await.unwrap();
    let accounts = "SELECT User, Host FROM mysql.global_priv WHERE User <> 'mariadb.sys'";
    let accounts: Vec<(String, String)> = conn.query(accounts).await.unwrap();
    assert_eq!(accounts, [("root".to_owned(), "localhost".to_owned())]);
    assert_eq!(gtids(&mut conn).await.0, sorted(&then.place.gtids));
    let channels: Vec<mysql_async::Row> = conn.query("SHOW ALL REPLICAS STATUS").await.unwrap();
    assert!(channels.is_empty());
    let now = seen(&mut conn).await;
    if source == by {
        assert_same(&now, then);
    } else {
        // Collations have other names and defaults there: rows are compared, definitions are not.
        // And from 11.5 on, the end of a row that has none is in another year.
        let mut differs = now.data.diff(&then.seen.data);
        differs.retain(|what| what.contains("rows of") && !what.contains("rows of shop.v:"));
        assert_eq!(differs, Vec::<String>::new());
        assert_eq!(now.history, then.seen.history);
        assert_eq!(now.prepared, then.seen.prepared);
    }
    // It goes on numbering behind what it has, as the only writer of a new log.
    conn.query_drop("CREATE DATABASE promoted").await.unwrap();
    let (_, state) = gtids(&mut conn).await;
    let last = applied.gtids.split(',').find(|gtid| gtid.starts_with("0-")).unwrap();
    let last: u64 = last.rsplit('-').next().unwrap().parse().unwrap();
    assert_eq!(state, format!("0-4711-{}", last + 1));
}

#[rstest]
#[case::of_10_5(Series::Maria10_5)]
#[case::of_11_8(Series::Maria11)]
#[tokio::test]
async fn a_mariadb_comes_back_in_a_folder_that_is_ready_to_start(#[case] series: Series) {
    into_a_folder(series, series, 8).await;
}

#[tokio::test]
async fn a_log_of_10_11_is_replayed_by_11_8_with_an_open_xa_transaction() {
    into_a_folder(Series::Maria10, Series::Maria11, 4).await;
}

#[tokio::test]
async fn a_replica_that_loses_its_connection_again_and_again_loses_nothing() {
    let series = Series::Maria11;
    let source = shop(series).await;
    let taken = dumped(&source, series).await;
    let moments = work(&source).await;
    let then = moments.last().unwrap();
    let pieces = log_of(&source, &taken.meta.position).await;
    // It cuts the connection in the middle of the row of 20 MB, too: that is most of the log.
    let log = slow_log(pieces, Duration::from_millis(40));
    let target = series.start(&["--log-slave-updates=ON", "--max-allowed-packet=64M"]).await;
    let cut = Cut::After(Timestamp::now());
    let mut to = running(&target);
    let cuts = Cell::new(0_u32);
    let needs = needs(&source).await;
    let restoring = restore(&mut to, &needs, &taken, log, &cut);
    // Beside the restore, which serves the log itself.
    let cutting = async {
        while cuts.get() < 6 {
            tokio::time::sleep(Duration::from_millis(700)).await;
            cuts.set(cuts.get() + u32::from(supersede(&target).await));
        }
        std::future::pending::<()>().await;
    };
    let (applied, _) = tokio::select! {
        restored = restoring => restored.unwrap(),
        () = cutting => panic!("it waits for ever"),
    };
    assert!(cuts.get() >= 3, "{}", cuts.get());
    let mut conn = target.conn().await;
    assert_same(&seen(&mut conn).await, then);
    let (position, state) = gtids(&mut conn).await;
    assert_eq!(position, sorted(&then.place.gtids));
    assert_eq!(state, position);
    assert_eq!(sorted(&applied.gtids), position);
}

#[tokio::test]
async fn an_error_of_the_applier_is_told_in_the_words_of_the_server() {
    let series = Series::Maria10;
    let source = shop(series).await;
    let taken = dumped(&source, series).await;
    source.sql("INSERT INTO shop.t (id, s) VALUES (77, 'x')").await;
    let pieces = log_of(&source, &taken.meta.position).await;
    let target = series.start(&[]).await;
    let mut to = running(&target);
    to.preflight(&needs(&source).await).await.unwrap();
    to.load(&taken.meta, taken.pieces()).await.unwrap();
    target.sql("SET SESSION sql_log_bin = OFF; INSERT INTO shop.t (id, s) VALUES (77, 'y')").await;
    let cut = Cut::At(end_of_log(&source).await);
    let error = to.replay(&taken.meta, open_log(pieces, None), &cut).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("error 1062") && text.contains("Duplicate entry '77'"), "{text}");
}

#[tokio::test]
async fn a_mariadb_target_that_does_not_fit_is_refused_and_left_as_it_is() {
    let (old, new) = (Series::Maria10.start(&[]).await, Series::Maria11.start(&[]).await);
    let mysql = Mysqld::start(&[]).await;
    let needs = |version: &str| Needs { version: version.into(), ..Needs::default() };
    let own = Needs { origins: vec![new.server_id()], ..needs("11.8.1-MariaDB") };
    new.sql("SET GLOBAL replicate_ignore_db = 'shop'").await;
    let refused = async |target: &Mysqld, needs: &Needs, words: &[&str]| {
        let error = running(target).preflight(needs).await.unwrap_err();
        assert_eq!(error.class().exit_code(), 6, "{error:?}");
        let text = format!("{error} / {}", error.hint_text().unwrap());
        for word in words {
            assert!(text.contains(word), "{text}");
        }
    };
    refused(&mysql, &needs("10.11.19-MariaDB-log"), &["MySQL 9", "MariaDB 10.11.19"]).await;
    refused(&old, &needs("9.7.4"), &["MariaDB 10.11", "the source was MySQL 9.7.4"]).await;
    refused(&old, &needs("11.8.1-MariaDB"), &["older than the source"]).await;
    refused(&new, &own, &["server_id", "SET GLOBAL server_id"]).await;
    refused(&new, &needs("10.11.19-MariaDB"), &["replicate_ignore_db = shop"]).await;
    new.sql("SET GLOBAL replicate_ignore_db = ''; CREATE DATABASE d").await;
    refused(&new, &needs("10.11.19-MariaDB"), &["not empty: it has d"]).await;
    let place = tempfile::tempdir().unwrap();
    let error = folder(&place.path().join("x")).preflight(&needs("12.3.1-MariaDB")).await;
    let error = error.unwrap_err();
    assert!(error.to_string().contains("older than the source (12.3.1-MariaDB)"), "{error}");
    assert!(!place.path().join("x").exists());
}
