//! The log of a MariaDB applied as statements over one connection: as exact as by a replica, by
//! accounts that may not make the server one, and with nothing behind an error.

use super::harness::*;
use crate::mysql_restore::harness::{Taken, open_log, options, restore};
use crate::support::Mysqld;
use mysql_async::prelude::Queryable;
use pitr::engine::mysql::MysqlTarget;
use pitr::engine::{Apply, Destination, Endpoint, Leftover, Target, TargetOptions};
use pitr::error::Class;
use pitr::manifest::EngineKind;
use pitr::record::Cut;

/// What the administrator of a managed server has: all but what makes a replica of it.
const MANAGED: &str = "CREATE USER m@'%' IDENTIFIED BY 'pw'; GRANT SELECT, INSERT, UPDATE, \
    DELETE, CREATE, DROP, ALTER, INDEX, REFERENCES, TRIGGER, EVENT, CREATE VIEW, SHOW VIEW, \
    CREATE ROUTINE, ALTER ROUTINE, EXECUTE, CREATE USER, RELOAD, PROCESS, LOCK TABLES, \
    CREATE TEMPORARY TABLES, DELETE HISTORY, BINLOG MONITOR, SLAVE MONITOR, BINLOG ADMIN, \
    BINLOG REPLAY, SET USER ON *.* TO m@'%' WITH GRANT OPTION";

/// What the account of a managed server cannot set, set right.
const FITTING: [&str; 4] = [
    "--event-scheduler=OFF",
    "--gtid-strict-mode=OFF",
    "--log-bin-trust-function-creators=ON",
    "--max-allowed-packet=64M",
];

fn target(url: &str, apply: Apply, clean: bool) -> MysqlTarget {
    let endpoint = Endpoint::parse(EngineKind::Mysql, url).unwrap();
    let leftover = if clean { Leftover::Clean } else { Leftover::GoOn };
    let options =
        TargetOptions { apply, leftover, ..options(Destination::Running(endpoint.clone())) };
    MysqlTarget::running(options, endpoint)
}

fn managed(server: &Mysqld) -> String {
    server.url().replace("root@", "m:pw@")
}

async fn comes_back(series: Series, places: &[usize]) {
    let source = shop(series).await;
    let taken = dumped(&source, series).await;
    let moments = work(&source).await;
    let pieces = log_of(&source, &taken.meta.position).await;
    let needs = needs(&source).await;
    for (nth, at) in places.iter().enumerate() {
        let then = &moments[*at];
        let logs = nth % 2 == 0;
        let binlog = if logs { "--binlog-format=ROW" } else { "--skip-log-bin" };
        let server = series.start(&[binlog, "--max-allowed-packet=64M"]).await;
        let mut to = target(&server.url(), Apply::Sql, false);
        // By time and by place.
        let cut = if logs { Cut::After(then.at) } else { Cut::At(then.place.clone()) };
        let log = open_log(pieces.clone(), None);
        let (applied, said) = restore(&mut to, &needs, &taken, log, &cut).await.unwrap();
        assert_eq!(to.way().unwrap().apply, "sql");
        assert!(said.starts_with("gtid_slave_pos is exactly that of the instant"), "{said}");
        let mut conn = server.conn().await;
        assert_same(&seen(&mut conn).await, then);
        assert_eq!(sorted(&applied.gtids), sorted(&then.place.gtids));
        let (position, state) = gtids(&mut conn).await;
        assert_eq!(position, sorted(&then.place.gtids));
        assert_eq!(state, if logs { position } else { String::new() });
    }
}

#[tokio::test]
async fn a_10_11_comes_back_as_statements_at_each_place_in_its_log() {
    comes_back(Series::Maria10, &[2, 3, 4, 8]).await;
}

#[tokio::test]
async fn an_11_8_comes_back_as_statements_at_each_place_in_its_log() {
    comes_back(Series::Maria11, &[2, 4, 6, 8]).await;
}

/// Statements that mean something else in another session, and events of every form.
const ODD: &str = "
    CREATE DATABASE d CHARACTER SET latin1; USE d;
    CREATE TABLE t (id INT PRIMARY KEY AUTO_INCREMENT, s MEDIUMTEXT CHARACTER SET utf8mb4, n INT,
      CHECK (n < 100));
    CREATE TABLE child (id INT PRIMARY KEY, p INT, FOREIGN KEY (p) REFERENCES t (id));
    CREATE TABLE x (a VARCHAR(9)) CHARACTER SET utf8mb4;
    CREATE TABLE h (id INT PRIMARY KEY) WITH SYSTEM VERSIONING;
    SET SESSION binlog_format = STATEMENT;
    SET time_zone = '+05:30'; SET timestamp = 1700000000.123456;
    INSERT INTO t (s) VALUES (CONCAT(NOW(6), @@time_zone)); SET timestamp = DEFAULT;
    SET check_constraint_checks = 0; INSERT INTO t (n) VALUES (500); SET check_constraint_checks = 1;
    SET foreign_key_checks = 0; INSERT INTO child VALUES (1, 999); SET foreign_key_checks = 1;
    SET sql_if_exists = 1; DROP TABLE nothing_like_that; SET sql_if_exists = 0;
    SET explicit_defaults_for_timestamp = 0; CREATE TABLE old (a TIMESTAMP);
    SET explicit_defaults_for_timestamp = 1; CREATE TABLE new (a TIMESTAMP);
    SET sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES'; INSERT INTO t (s) VALUES ('a\\b');
    SET sql_mode = DEFAULT; SET @s = _latin1 x'e4', @n = -7, @d = 1.50;
    INSERT INTO t (s, n) VALUES (CONCAT(@s, @d), @n);
    SET NAMES utf8mb4; CREATE VIEW w AS SELECT 'gr\u{fc}n' AS a, id FROM t;
    CREATE ROLE r; SET SESSION binlog_format = ROW;
    CREATE TABLE copy AS SELECT * FROM t;
    CREATE OR REPLACE TABLE copy (k INT AUTO_INCREMENT PRIMARY KEY) AS SELECT * FROM t;
    INSERT INTO copy (s) VALUES ('behind it');
    SET binlog_alter_two_phase = 1; ALTER TABLE t ADD COLUMN late INT DEFAULT 7;
    SET binlog_alter_two_phase = 0;
    BEGIN; INSERT INTO t (s) VALUES ('kept'); SAVEPOINT a; INSERT INTO t (s) VALUES ('gone');
    ROLLBACK TO a; INSERT INTO t (s) VALUES ('kept too'); COMMIT;
    XA START 'x', 'y', 3; INSERT INTO t (s) VALUES ('xa'); XA END 'x', 'y', 3;
    XA PREPARE 'x', 'y', 3; XA COMMIT 'x', 'y', 3;
    INSERT INTO h VALUES (1), (2), (3); DELETE FROM h WHERE id = 1;
    SET GLOBAL log_bin_compress = ON;
    INSERT INTO t (s) SELECT REPEAT('long ', 300) FROM seq_1_to_2000;
    UPDATE t SET s = REPEAT('longer ', 300) WHERE id > 1000; DELETE FROM t WHERE id > 1500;
    SET SESSION binlog_format = STATEMENT;";

async fn odd_comes_back(series: Series) {
    let source = series.start(&SOURCE).await;
    source.sql("CREATE DATABASE empty").await;
    let taken = dumped(&source, series).await;
    let mut conn = source.conn().await;
    for statement in ODD.split(';').map(str::trim).filter(|text| !text.is_empty()) {
        conn.query_drop(statement).await.unwrap_or_else(|error| panic!("{error}: {statement}"));
    }
    // A statement longer than a reader of heads would look at.
    let long = format!("INSERT INTO t (s) VALUES ('{}')", "l\u{e4}ng ".repeat(40_000));
    conn.query_drop(long).await.unwrap();
    let history = "SELECT id, CAST(row_start AS CHAR), CAST(row_end AS CHAR) \
                   FROM d.h FOR SYSTEM_TIME ALL ORDER BY 1, 2";
    let expected = seen(&mut conn).await;
    let versions: Vec<(u32, String, String)> = conn.query(history).await.unwrap();
    assert_eq!(versions.len(), 3, "{versions:?}");
    let end = end_of_log(&source).await;
    let log = open_log(log_of(&source, &taken.meta.position).await, None);
    let server = series.start(&["--max-allowed-packet=64M"]).await;
    let mut to = target(&server.url(), Apply::Sql, false);
    let cut = Cut::At(end.clone());
    restore(&mut to, &needs(&source).await, &taken, log, &cut).await.unwrap();
    let mut conn = server.conn().await;
    assert_eq!(seen(&mut conn).await.data.diff(&expected.data), Vec::<String>::new());
    let restored: Vec<(u32, String, String)> = conn.query(history).await.unwrap();
    assert_eq!(restored, versions);
    assert_eq!(gtids(&mut conn).await.1, sorted(&end.gtids));
}

#[tokio::test]
async fn odd_statements_of_a_10_11_come_back_as_they_were_meant() {
    odd_comes_back(Series::Maria10).await;
}

#[tokio::test]
async fn odd_statements_of_an_11_8_come_back_as_they_were_meant() {
    odd_comes_back(Series::Maria11).await;
}

#[tokio::test]
async fn a_managed_mariadb_is_restored_without_being_made_a_replica() {
    let series = Series::Maria11;
    let source = shop(series).await;
    let taken = dumped(&source, series).await;
    let moments = work(&source).await;
    let then = &moments[6];
    let log = open_log(log_of(&source, &taken.meta.position).await, None);
    let needs = needs(&source).await;
    let server = series.start(&FITTING).await;
    server.sql(MANAGED).await;
    let error = target(&managed(&server), Apply::Native, false).preflight(&needs).await;
    let error = error.unwrap_err();
    assert_eq!(error.class(), Class::Refused);
    assert!(error.to_string().contains("lacks REPLICATION SLAVE ADMIN"), "{error}");

    let mut to = target(&managed(&server), Apply::Auto, false);
    let cut = Cut::At(then.place.clone());
    let (_, said) = restore(&mut to, &needs, &taken, log, &cut).await.unwrap();
    assert!(said.contains("gtid_slave_pos, which the account may not set"), "{said}");
    let way = to.way().unwrap();
    assert_eq!(way.apply, "sql");
    assert!(way.why.contains("no REPLICATION SLAVE ADMIN"), "{}", way.why);
    let mut conn = server.conn().await;
    assert_same(&seen(&mut conn).await, then);
    let (_, state) = gtids(&mut conn).await;
    for last in then.place.gtids.split(',') {
        assert!(state.split(',').any(|gtid| gtid == last), "{last} in {state}");
    }
    let events = series.start(&["--event-scheduler=ON", "--gtid-strict-mode=OFF"]).await;
    let strict = series.start(&["--event-scheduler=OFF", "--gtid-strict-mode=ON"]).await;
    for (server, words) in [(events, "scheduled events"), (strict, "gtid_strict_mode = ON")] {
        server.sql(MANAGED).await;
        let error = target(&managed(&server), Apply::Auto, false).preflight(&needs).await;
        let error = error.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test]
async fn the_log_of_a_10_5_is_refused_as_statements_and_the_target_left_as_it_is() {
    let source = Series::Maria10_5.start(&[]).await;
    let needs = needs(&source).await;
    for (series, apply) in [
        (Series::Maria10_5, Apply::Sql),
        (Series::Maria10, Apply::Sql),
        (Series::Maria10, Apply::Auto),
    ] {
        let server = series.start(&FITTING).await;
        server.sql(MANAGED).await;
        // Nobody asked for it, but there is no other way for that account.
        let url = if apply == Apply::Auto { managed(&server) } else { server.url() };
        let before: Vec<(String,)> = server.rows("SHOW DATABASES").await;
        let error = target(&url, apply, false).preflight(&needs).await.unwrap_err();
        assert_eq!(error.class(), Class::Refused, "{error:?}");
        assert!(error.to_string().contains("a MariaDB before 10.11"), "{error}");
        assert!(error.hint_text().unwrap().contains("--apply native"), "{error:?}");
        assert_eq!(server.rows::<(String,)>("SHOW DATABASES").await, before);
    }
}

#[tokio::test]
async fn a_managed_mariadb_that_logs_has_to_trust_those_who_create_functions() {
    let needs = needs(&Series::Maria11.start(&[]).await).await;
    let without = |option: &str| {
        let option = option.to_owned();
        FITTING.into_iter().filter(move |fitting| *fitting != option).collect::<Vec<_>>()
    };
    let trust = "--log-bin-trust-function-creators=ON";
    let server = Series::Maria11.start(&without(trust)).await;
    server.sql(MANAGED).await;
    let error = target(&managed(&server), Apply::Auto, false).preflight(&needs).await.unwrap_err();
    assert_eq!(error.class(), Class::Refused, "{error:?}");
    let said = error.to_string();
    assert!(said.contains("log_bin_trust_function_creators = OFF"), "{said}");
    let hint = error.hint_text().unwrap();
    assert!(hint.contains("SET GLOBAL log_bin_trust_function_creators = 'ON'"), "{hint}");
    // It is what the server says itself (error 1419), where somebody creates a function.
    server.sql("CREATE DATABASE d").await;
    let endpoint = Endpoint::parse(EngineKind::Mysql, &managed(&server)).unwrap();
    let mut conn = pitr::engine::mysql::connect(&endpoint).await.unwrap();
    let create = "CREATE FUNCTION d.f() RETURNS INT DETERMINISTIC RETURN 1";
    let error = conn.query_drop(create).await.unwrap_err();
    assert!(error.to_string().contains("1419"), "{error}");
    server.sql("DROP DATABASE d").await;
    // An administrator needs no trust, nor does anybody where nothing is logged.
    target(&server.url(), Apply::Sql, false).preflight(&needs).await.unwrap();
    let server = Series::Maria11.start(&[&without(trust)[..], &["--skip-log-bin"]].concat()).await;
    server.sql(MANAGED).await;
    target(&managed(&server), Apply::Auto, false).preflight(&needs).await.unwrap();
}

/// A source with a table `shop.n` and a transaction for each of its rows.
async fn counted(series: Series, rows: u32) -> (Mysqld, Taken) {
    let source = series.start(&[]).await;
    source.sql("CREATE DATABASE shop; CREATE TABLE shop.n (id INT PRIMARY KEY, s TEXT)").await;
    let taken = dumped(&source, series).await;
    let mut conn = source.conn().await;
    for id in 0..rows {
        conn.query_drop(format!("INSERT INTO shop.n VALUES ({id}, 'x')")).await.unwrap();
    }
    (source, taken)
}

#[tokio::test]
async fn an_error_stops_everything_behind_it_and_the_server_says_that_it_is_half_restored() {
    for series in [Series::Maria10, Series::Maria11] {
        let (source, taken) = counted(series, 400).await;
        let cut = Cut::At(end_of_log(&source).await);
        let pieces = log_of(&source, &taken.meta.position).await;
        let needs = needs(&source).await;
        let server = series.start(&FITTING).await;
        server.sql(MANAGED).await;
        let mut to = target(&managed(&server), Apply::Auto, false);
        to.preflight(&needs).await.unwrap();
        to.load(&taken.meta, taken.pieces()).await.unwrap();
        // The row that the 151st transaction inserts is there already.
        server.sql("SET SESSION sql_log_bin = OFF; INSERT INTO shop.n VALUES (150, 'mine')").await;
        let log = open_log(pieces.clone(), None);
        let error = to.replay(&taken.meta, log, &cut).await.unwrap_err();
        assert_eq!(error.class(), Class::Unavailable);
        let text = format!("{error:?}");
        assert!(text.contains("1062") && text.contains("-153"), "{text}");
        let rows: Vec<(u32, u32)> =
            server.rows("SELECT COUNT(*), MAX(id) FROM shop.n WHERE s <> 'mine'").await;
        assert_eq!(rows, [(150, 149)]);
        drop(to);

        let clean =
            async |clean| target(&managed(&server), Apply::Auto, clean).preflight(&needs).await;
        crate::support::eventually(
            "the lock is free",
            std::time::Duration::from_mins(1),
            async || clean(false).await.err().filter(|error| error.class() == Class::Refused),
        )
        .await;
        let error = clean(false).await.unwrap_err();
        assert!(error.to_string().contains("half restored"), "{error}");
        let mut to = target(&managed(&server), Apply::Auto, true);
        let log = open_log(pieces, None);
        restore(&mut to, &needs, &taken, log, &cut).await.unwrap();
        let mut conn = server.conn().await;
        let restored = seen(&mut conn).await;
        let expected = seen(&mut source.conn().await).await;
        assert_eq!(restored.data.diff(&expected.data), Vec::<String>::new());
    }
}
