//! The log applied as statements over one connection, on real servers: as exact as by a replica.

use crate::mysql_restore::harness::*;
use crate::support::Mysqld;
use mysql_async::prelude::Queryable;
use pitr::clock::Timestamp;
use pitr::engine::mysql::MysqlTarget;
use pitr::engine::{Apply, Destination, Endpoint, Target, TargetOptions};
use pitr::error::Class;
use pitr::manifest::EngineKind;
use pitr::record::Cut;
use std::sync::Arc;
use std::time::Duration;

pub(crate) fn target(url: &str, apply: Apply) -> MysqlTarget {
    let endpoint = Endpoint::parse(EngineKind::Mysql, url).unwrap();
    let options = TargetOptions { apply, ..options(Destination::Running(endpoint.clone())) };
    MysqlTarget::running(options, endpoint)
}

pub(crate) fn far() -> Cut {
    Cut::After(Timestamp::now().after(Duration::from_hours(1)))
}

#[tokio::test]
async fn every_instant_comes_back_as_statements_too() {
    let source = shop(&[]).await;
    let taken = baseline(&source).await;
    let moments = work(&source).await;
    let log = open_log(log_of(&source, &taken.meta.position).await, None);
    let needs = needs(&source).await;
    for then in moments.iter().skip(1) {
        let server = Mysqld::start(&[]).await;
        let mut to = target(&server.url(), Apply::Sql);
        let cut = Cut::After(then.at);
        let (applied, said) =
            restore(&mut to, &needs, &taken, Arc::clone(&log), &cut).await.unwrap();
        assert_eq!(to.way().unwrap().apply, "sql");
        assert!(said.contains("gtid_executed is exactly"), "{said}");
        assert_eq!(applied.gtids, then.gtids);
        assert_same(&moment(&server).await, then);
    }
}

/// Statements that mean something else in another session, and events of every form.
const ODD: &str = "
    CREATE DATABASE d CHARACTER SET latin1;
    CREATE TABLE d.t (id INT PRIMARY KEY AUTO_INCREMENT, s VARCHAR(200) CHARACTER SET utf8mb4,
      n DECIMAL(20,6), f DOUBLE, ts TIMESTAMP(6) NULL, z VARCHAR(50));
    CREATE TABLE d.my (id INT PRIMARY KEY, s TEXT) ENGINE = MyISAM;
    CREATE TABLE d.parent (id INT PRIMARY KEY);
    CREATE TABLE d.child (id INT PRIMARY KEY, p INT, FOREIGN KEY (p) REFERENCES d.parent (id));
    USE d;
    SET SESSION binlog_format = STATEMENT;
    SET NAMES latin1; SET time_zone = '+05:30'; SET timestamp = 1700000000.123456;
    INSERT INTO t (s, ts, z) VALUES ('gr\u{fc}n', NOW(6), @@time_zone);
    SET NAMES utf8mb4; SET timestamp = DEFAULT; SET sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES';
    INSERT INTO t (s) VALUES ('a\\b');
    SET sql_mode = DEFAULT; SET @s = _latin1 x'e4', @d = 12345.678900, @f = 1e-3, @u = -7;
    INSERT INTO t (s, n, f, id) VALUES (@s, @d, @f, 1000 + @u);
    SET auto_increment_increment = 10, auto_increment_offset = 3;
    INSERT INTO t (s) VALUES ('step'), ('step');
    SET auto_increment_increment = 1; SET insert_id = 5000;
    INSERT INTO t (s, n) VALUES ('given', LAST_INSERT_ID());
    SET rand_seed1 = 7, rand_seed2 = 9;
    INSERT INTO t (f) VALUES (RAND());
    SET foreign_key_checks = 0; INSERT INTO child VALUES (1, 99); SET foreign_key_checks = 1;
    CREATE TEMPORARY TABLE tmp (a INT); INSERT INTO tmp VALUES (41), (42);
    FLUSH BINARY LOGS;
    INSERT INTO t (n) SELECT a FROM tmp; DROP TEMPORARY TABLE tmp;
    BEGIN; INSERT INTO t (s) VALUES ('kept'); SAVEPOINT a; INSERT INTO t (s) VALUES ('gone');
    ROLLBACK TO a; INSERT INTO t (s) VALUES ('kept too'); COMMIT;
    CREATE FUNCTION f() RETURNS INT DETERMINISTIC MODIFIES SQL DATA
      BEGIN INSERT INTO t (s) VALUES ('from f'); RETURN 1; END;
    SELECT f();
    ANALYZE TABLE t;
    SET SESSION binlog_format = ROW;
    BEGIN; INSERT INTO my VALUES (1, 'stays'); INSERT INTO t (s) VALUES ('goes'); ROLLBACK;
    CREATE TABLE copy AS SELECT * FROM t;
    XA START 'x', 'y', 3; INSERT INTO t (s) VALUES ('xa'); XA END 'x', 'y', 3;
    XA PREPARE 'x', 'y', 3; XA COMMIT 'x', 'y', 3;
    XA START 'one'; INSERT INTO t (s) VALUES ('phase'); XA END 'one'; XA COMMIT 'one' ONE PHASE;
    SET gtid_next = 'AUTOMATIC:tagged'; INSERT INTO t (s) VALUES ('tagged');
    SET gtid_next = 'AUTOMATIC';
    SET SESSION binlog_row_image = MINIMAL; UPDATE t SET n = 1 WHERE s = 'kept';
    SET SESSION binlog_row_image = FULL; SET SESSION binlog_rows_query_log_events = ON;
    DELETE FROM t WHERE s = 'tagged';
    CREATE TABLE j (id INT PRIMARY KEY, d JSON);
    SET SESSION binlog_row_value_options = PARTIAL_JSON;
    INSERT INTO j VALUES (1, '{\"a\": 1, \"b\": [1, 2, 3], \"pad\": \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"}');
    UPDATE j SET d = JSON_SET(d, '$.a', 2);
    SET SESSION binlog_transaction_compression = ON;
    CREATE TABLE big (id INT PRIMARY KEY, s VARBINARY(3000));
    SET SESSION cte_max_recursion_depth = 100000;
    INSERT INTO big WITH RECURSIVE r (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 4000)
      SELECT n, REPEAT(n, 400) FROM r;
    SET SESSION binlog_transaction_compression = OFF;
    UPDATE big SET s = CONCAT(s, 'y'), id = -id;
    INSERT INTO big VALUES (0, REPEAT('z', 3000))";

#[tokio::test]
async fn statements_mean_what_they_meant_at_the_source() {
    let source = Mysqld::start(&["--log-bin-trust-function-creators=ON"]).await;
    let taken = baseline(&source).await;
    let mut conn = source.conn().await;
    // Split where a statement ends: only the function has a `;` of its own.
    let text = source
        .worded(ODD)
        .replace("('from f');", "('from f')\u{1}")
        .replace("RETURN 1;", "RETURN 1\u{1}");
    for statement in text.split(';').map(str::trim).filter(|s| !s.is_empty()) {
        let statement = statement.replace('\u{1}', ";");
        conn.query_drop(&statement).await.unwrap_or_else(|e| panic!("{e}: {statement}"));
    }
    // Fails half-way at the source, as MyISAM cannot take its first row back.
    conn.query_drop("SET SESSION binlog_format = STATEMENT").await.unwrap();
    conn.query_drop("INSERT INTO my VALUES (7, 'in'), (1, 'double')").await.unwrap_err();
    drop(conn);
    let then = moment(&source).await;
    let log = open_log(log_of(&source, &taken.meta.position).await, None);
    let server = Mysqld::start(&["--log-bin-trust-function-creators=ON"]).await;
    let mut to = target(&server.url(), Apply::Sql);
    let needs = needs(&source).await;
    restore(&mut to, &needs, &taken, log, &far()).await.unwrap();
    assert_same(&moment(&server).await, &then);
    let rows: i64 = server.row("SELECT COUNT(*) FROM d.big WHERE s LIKE '%y'").await;
    assert_eq!(rows, 4000);
}

/// What its customers cannot set.
pub(crate) const TRUST: &str = "--log-bin-trust-function-creators=ON";

/// What a managed server leaves its customers.
pub(crate) const MANAGED: &str = "CREATE USER customer@'%' IDENTIFIED BY 'pw';
    GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, RELOAD, REFERENCES, INDEX, ALTER,
      CREATE TEMPORARY TABLES, LOCK TABLES, EXECUTE, CREATE VIEW, SHOW VIEW, CREATE ROUTINE,
      ALTER ROUTINE, CREATE USER, EVENT, TRIGGER, REPLICATION CLIENT, PROCESS, CREATE ROLE,
      DROP ROLE ON *.* TO customer@'%' WITH GRANT OPTION;
    GRANT REPLICATION_APPLIER, SESSION_VARIABLES_ADMIN, SET_ANY_DEFINER, ALLOW_NONEXISTENT_DEFINER,
      ROLE_ADMIN, XA_RECOVER_ADMIN, SYSTEM_USER ON *.* TO customer@'%' WITH GRANT OPTION";

#[tokio::test]
async fn a_managed_server_is_restored_without_being_made_a_replica() {
    let source = shop(&[]).await;
    let taken = baseline(&source).await;
    let moments = work(&source).await;
    let then = &moments[2];
    let log = open_log(log_of(&source, &taken.meta.position).await, None);
    let needs = needs(&source).await;

    let server = Mysqld::start(&["--event-scheduler=OFF", TRUST]).await;
    server.sql(MANAGED).await;
    let own = server.gtid_executed().await;
    let url = server.url().replace("root@", "customer:pw@");
    let mut to = target(&url, Apply::Native);
    let error = to.preflight(&needs).await.unwrap_err();
    assert_eq!(error.class(), Class::Refused);
    assert!(error.to_string().contains("REPLICATION_SLAVE_ADMIN"), "{error}");

    let mut to = target(&url, Apply::Auto);
    let cut = Cut::After(then.at);
    let (applied, said) = restore(&mut to, &needs, &taken, log, &cut).await.unwrap();
    assert!(said.contains("not those of the baseline"), "{said}");
    let way = to.way().unwrap();
    assert_eq!(way.apply, "sql");
    assert!(way.why.contains("REPLICATION_SLAVE_ADMIN"), "{}", way.why);
    let restored = moment(&server).await;
    assert_eq!(restored.data.diff(&then.data), Vec::<String>::new());
    assert_eq!(restored.events, then.events);
    assert_eq!(restored.gtids, applied.gtids);
    for part in own.split(',') {
        assert!(restored.gtids.contains(part.trim()), "{own} in {}", restored.gtids);
    }
    let server = Mysqld::start(&["--event-scheduler=ON", TRUST]).await;
    server.sql(MANAGED).await;
    let url = server.url().replace("root@", "customer:pw@");
    let error = target(&url, Apply::Auto).preflight(&needs).await.unwrap_err();
    assert!(error.to_string().contains("scheduled events"), "{error}");
}

/// A source whose baseline has what only those who are trusted may create, and whose log has more.
async fn creative() -> (Mysqld, Taken) {
    let source = Mysqld::start(&[TRUST]).await;
    let statements = |n: u32| {
        [
            format!(
                "CREATE TRIGGER shop.tr{n} BEFORE INSERT ON shop.t FOR EACH ROW SET NEW.a = {n}"
            ),
            format!("CREATE FUNCTION shop.f{n}() RETURNS INT MODIFIES SQL DATA RETURN {n}"),
        ]
    };
    source.sql("CREATE DATABASE shop; CREATE TABLE shop.t (a INT PRIMARY KEY)").await;
    for statement in statements(1) {
        source.sql(&statement).await;
    }
    let taken = baseline(&source).await;
    for statement in statements(2) {
        source.sql(&statement).await;
    }
    (source, taken)
}

#[tokio::test]
async fn what_only_the_trusted_may_create_comes_back_where_nobody_is_trusted() {
    let (source, taken) = creative().await;
    let then = moment(&source).await;
    let log = open_log(log_of(&source, &taken.meta.position).await, None);
    let needs = needs(&source).await;
    for apply in [Apply::Native, Apply::Sql] {
        let server = Mysqld::start(&[]).await;
        let mut to = target(&server.url(), apply);
        restore(&mut to, &needs, &taken, Arc::clone(&log), &far()).await.unwrap();
        assert_same(&moment(&server).await, &then);
        let trust = "SELECT @@GLOBAL.log_bin_trust_function_creators";
        assert_eq!(server.row::<u32>(trust).await, 0, "{apply:?}");
    }
}

#[tokio::test]
async fn a_managed_server_that_logs_has_to_trust_those_who_create_functions() {
    let (source, taken) = creative().await;
    let then = moment(&source).await;
    let log = open_log(log_of(&source, &taken.meta.position).await, None);
    let needs = needs(&source).await;
    let managed = async |args: &[&str]| {
        let server = Mysqld::start(&[&["--event-scheduler=OFF"], args].concat()).await;
        server.sql(MANAGED).await;
        let url = server.url().replace("root@", "customer:pw@");
        (server, url)
    };
    let (server, url) = managed(&[]).await;
    let error = target(&url, Apply::Auto).preflight(&needs).await.unwrap_err();
    assert_eq!(error.class(), Class::Refused, "{error:?}");
    assert!(error.to_string().contains("log_bin_trust_function_creators = OFF"), "{error}");
    let hint = error.hint_text().unwrap().to_owned();
    assert_eq!(hint, "SET PERSIST log_bin_trust_function_creators = ON");
    let schemas: Vec<String> = server.rows("SHOW DATABASES").await;
    assert_eq!(schemas, ["information_schema", "mysql", "performance_schema", "sys"]);

    server.sql(&hint).await;
    let (unlogged, unlogged_url) = managed(&["--skip-log-bin"]).await;
    for (server, url) in [(server, url), (unlogged, unlogged_url)] {
        let mut to = target(&url, Apply::Auto);
        restore(&mut to, &needs, &taken, Arc::clone(&log), &far()).await.unwrap();
        assert_eq!(moment(&server).await.data.diff(&then.data), Vec::<String>::new());
    }
}

#[tokio::test]
async fn an_error_stops_everything_behind_it() {
    for gtid_mode in ["ON", "OFF_PERMISSIVE"] {
        let (source, taken) = counted(400).await;
        let log = open_log(log_of(&source, &taken.meta.position).await, None);
        let mode = format!("--gtid-mode={gtid_mode}");
        let server = Mysqld::start(&[&mode]).await;
        let mut to = target(&server.url(), Apply::Sql);
        to.preflight(&needs(&source).await).await.unwrap();
        to.load(&taken.meta, taken.pieces()).await.unwrap();
        // The row that the 151st transaction inserts is there already.
        server.sql("SET SESSION sql_log_bin = OFF; INSERT INTO shop.n VALUES (150, 'mine')").await;
        let error = to.replay(&taken.meta, log, &far()).await.unwrap_err();
        assert_eq!(error.class(), Class::Unavailable);
        let text = format!("{error:?}");
        assert!(text.contains("1062") || text.contains("Duplicate"), "{text}");
        let rows: Vec<(u32, u32)> =
            server.rows("SELECT COUNT(*), MAX(id) FROM shop.n WHERE s <> 'mine'").await;
        assert_eq!(rows, [(150, 149)], "gtid_mode={gtid_mode}");
    }
}

#[tokio::test]
async fn what_cannot_be_applied_as_statements_is_said() {
    let source = Mysqld::start(&["--binlog-format=STATEMENT", "--secure-file-priv="]).await;
    source.sql("CREATE DATABASE shop; CREATE TABLE shop.t (a INT)").await;
    let taken = baseline(&source).await;
    let file = source.datadir().join("rows.txt");
    std::fs::write(&file, "1\n2\n").unwrap();
    source.sql(&format!("LOAD DATA INFILE '{}' INTO TABLE shop.t", file.display())).await;
    let log = open_log(log_of(&source, &taken.meta.position).await, None);
    let server = Mysqld::start(&[]).await;
    let mut to = target(&server.url(), Apply::Sql);
    let needs = needs(&source).await;
    let error = restore(&mut to, &needs, &taken, log, &far()).await.unwrap_err();
    assert!(error.to_string().contains("LOAD DATA"), "{error}");
    assert!(error.hint_text().unwrap().contains("--apply native"));
}

#[tokio::test]
async fn a_connection_that_is_lost_ends_the_restore_with_that() {
    let (source, taken) = counted(2000).await;
    let pieces = log_of(&source, &taken.meta.position).await;
    let log = slow_log(pieces, Duration::from_millis(20));
    let server = Mysqld::start(&[]).await;
    let mut to = target(&server.url(), Apply::Sql);
    to.preflight(&needs(&source).await).await.unwrap();
    to.load(&taken.meta, taken.pieces()).await.unwrap();
    let killer = async {
        let mut conn = server.conn().await;
        loop {
            let rows: Option<u32> = conn.query_first("SELECT COUNT(*) FROM shop.n").await.unwrap();
            if rows.unwrap() > 100 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let ids: Vec<u64> = conn
            .query("SELECT ID FROM information_schema.PROCESSLIST WHERE ID <> CONNECTION_ID()")
            .await
            .unwrap();
        for id in ids {
            drop(conn.query_drop(format!("KILL {id}")).await);
        }
    };
    let cut = far();
    let (replayed, ()) = tokio::join!(to.replay(&taken.meta, log, &cut), killer);
    let error = replayed.unwrap_err();
    assert_eq!(error.class(), Class::Unavailable, "{error:?}");
}
