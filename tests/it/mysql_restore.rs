//! MySQL baselines, and the way back: into a running server and into a folder.
//!
//! The log comes straight from the source's binlog files, so nothing of the archive takes part.

pub(crate) mod harness;

use crate::apply_sql::far;
use crate::support::{Mariadbd, Mysqld, eventually};
use bytes::Bytes;
use harness::*;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, OptsBuilder};
use pitr::clock::Timestamp;
use pitr::engine::mysql::MysqlTarget;
use pitr::engine::{Destination, Endpoint, Needs, Target};
use pitr::error::{Class, Error};
use pitr::manifest::EngineKind;
use pitr::position::Position;
use pitr::record::{Cut, OpenLog, Piece};
use std::path::Path;
use std::time::Duration;

/// Loads the baseline into a fresh server and replays; gives the error that it ends with.
async fn failing(source: &Mysqld, taken: &Taken, log: OpenLog, spoil: &str) -> (Mysqld, Error) {
    let target = Mysqld::start(&[]).await;
    let mut to = running(&target);
    to.preflight(&needs(source).await).await.unwrap();
    to.load(&taken.meta, taken.pieces()).await.unwrap();
    if !spoil.is_empty() {
        target.sql(&format!("SET SESSION sql_log_bin = OFF; {spoil}")).await;
    }
    let cut = Cut::After(Timestamp::now().after(Duration::from_hours(1)));
    let begun = std::time::Instant::now();
    let error = to.replay(&taken.meta, log, &cut).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_mins(1));
    (target, error)
}

/// Preflight refuses `target` with `words` in error and hint, and changes nothing.
async fn refused(target: &Mysqld, needs: &Needs, words: &[&str]) {
    let state = async || {
        let schemas: Vec<String> = target.rows("SHOW SCHEMAS").await;
        (schemas, target.gtid_executed().await)
    };
    let before = state().await;
    let error = running(target).preflight(needs).await.unwrap_err();
    assert_eq!(error.class().exit_code(), 6, "{error:?}");
    let text = format!("{error} / {}", error.hint_text().unwrap());
    for word in words {
        assert!(text.contains(word), "{text}");
    }
    assert_eq!(state().await, before);
}

#[tokio::test]
async fn a_baseline_holds_schemas_and_accounts_and_loads_into_a_running_server() {
    let source = Mysqld::start(&[]).await;
    source
        .sql(
            "CREATE DATABASE shop; CREATE TABLE shop.t (id INT PRIMARY KEY, b BLOB, s TEXT);
             INSERT INTO shop.t VALUES (1, x'00ff27', 'it''s'), (2, NULL, '');
             CREATE PROCEDURE shop.p() BEGIN /* kept */ SELECT 'a;b'; END;
             CREATE USER app@'%' IDENTIFIED BY 'geheim' COMMENT 'it''s';
             CREATE ROLE reader; GRANT SELECT ON shop.* TO reader;
             GRANT reader TO app@'%' WITH ADMIN OPTION; ALTER USER app@'%' DEFAULT ROLE reader;
             GRANT INSERT(id) ON shop.t TO app@'%';
             ALTER USER app@'%' IDENTIFIED BY 'neu' RETAIN CURRENT PASSWORD",
        )
        .await;
    let before = Timestamp::now();
    let taken = baseline(&source).await;
    let skew = taken.meta.at.since(before).max(before.since(taken.meta.at));
    assert!(skew < Duration::from_secs(30), "{skew:?}");
    let status: (String, u64, String, String, String) = source.row("SHOW BINARY LOG STATUS").await;
    assert_eq!((taken.meta.position.log.clone(), taken.meta.position.offset), (status.0, status.1));
    assert!(taken.text().contains("\n-- Dump completed"));
    assert!(!taken.text().contains("geheim"));

    let target = Mysqld::start(&["--autocommit=OFF"]).await;
    target.sql("CREATE USER app@'%' IDENTIFIED BY 'other'").await;
    let mut to = running(&target);
    to.preflight(&needs(&source).await).await.unwrap();
    to.load(&taken.meta, taken.pieces()).await.unwrap();

    for query in [
        "CHECKSUM TABLE shop.t",
        "SELECT USER, HOST FROM mysql.user WHERE USER <> 'root' ORDER BY 1",
    ] {
        let of = async |server: &Mysqld| server.rows::<(String, String)>(query).await;
        assert_eq!(of(&source).await, of(&target).await, "{query}");
    }
    for statement in ["SHOW CREATE USER app@'%'", "SHOW GRANTS FOR app@'%'"] {
        let of = async |server: &Mysqld| {
            let mut conn = server.conn().await;
            conn.query_drop("SET print_identified_with_as_hex = ON").await.unwrap();
            conn.query::<String, _>(statement).await.unwrap()
        };
        assert_eq!(of(&source).await, of(&target).await);
    }
    let attributes = "SELECT CAST(User_attributes AS CHAR) FROM mysql.user WHERE User = 'app'";
    let of = async |server: &Mysqld| server.row::<String>(attributes).await;
    assert!(of(&source).await.contains("additional_password"));
    assert_eq!(of(&source).await, of(&target).await);
    let body: String = target
        .row("SELECT ROUTINE_DEFINITION FROM information_schema.ROUTINES WHERE ROUTINE_NAME = 'p'")
        .await;
    assert!(body.contains("/* kept */"));
    assert_eq!(target.gtid_executed().await, taken.meta.position.gtids);
}

#[tokio::test]
async fn rights_that_only_the_source_knows_are_left_out_and_named() {
    let source = Mysqld::start(&[]).await;
    // As another version does, a plugin brings a right of its own.
    source
        .sql(
            "INSTALL PLUGIN rewriter SONAME 'rewriter.so'; CREATE USER a; CREATE USER b;
             GRANT BACKUP_ADMIN, SKIP_QUERY_REWRITE, XA_RECOVER_ADMIN ON *.* TO a;
             GRANT SKIP_QUERY_REWRITE ON *.* TO b WITH GRANT OPTION; GRANT SELECT ON x.* TO b",
        )
        .await;
    let taken = baseline(&source).await;
    let log = open_log(log_of(&source, &taken.meta.position).await, None);
    let target = Mysqld::start(&[]).await;
    let needs = needs(&source).await;
    let (_, said) = restore(&mut running(&target), &needs, &taken, log, &far()).await.unwrap();
    let named = "`a`@`%` and `b`@`%` without SKIP_QUERY_REWRITE, which this server does not have";
    assert!(said.contains(named), "{said}");
    let grants = target.rows::<String>("SHOW GRANTS FOR a").await;
    let kept = "GRANT BACKUP_ADMIN,XA_RECOVER_ADMIN ON *.* TO `a`@`%`";
    assert_eq!(grants, ["GRANT USAGE ON *.* TO `a`@`%`", kept]);
    let grants = target.rows::<String>("SHOW GRANTS FOR b").await;
    assert_eq!(grants, ["GRANT USAGE ON *.* TO `b`@`%`", "GRANT SELECT ON `x`.* TO `b`@`%`"]);
}

#[tokio::test]
async fn odd_definitions_and_tables_come_through_exactly() {
    let source = Mysqld::start(&[]).await;
    source
        .sql(
            "CREATE DATABASE shop; CREATE TABLE shop.t (id INT PRIMARY KEY, s TEXT);
             CREATE EVENT shop.e1 ON SCHEDULE EVERY 1 DAY DO DELETE FROM shop.t;
             CREATE EVENT shop.e2 ON SCHEDULE EVERY 1 DAY DISABLE COMMENT 'c' DO
               BEGIN DELETE FROM shop.t; -- why
               DELETE FROM shop.t; END;
             CREATE TRIGGER shop.t1 BEFORE INSERT ON shop.t FOR EACH ROW SET NEW.s = 'a */ ;';
             CREATE TRIGGER shop.t2 BEFORE INSERT ON shop.t FOR EACH ROW
               BEGIN IF NEW.id = 1 THEN SET NEW.s = 'b'; END IF; END;
             CREATE TRIGGER shop.t3 BEFORE INSERT ON shop.t FOR EACH ROW PRECEDES t1
               SET NEW.s = 'c';
             CREATE FUNCTION shop.f() RETURNS INT DETERMINISTIC RETURN 2;
             CREATE PROCEDURE shop.p() SELECT 1;
             CREATE VIEW shop.v AS SELECT shop.f() AS f;
             SET sql_generate_invisible_primary_key = ON; CREATE TABLE shop.g (a INT);
             INSERT INTO shop.g VALUES (7), (7); SET sql_generate_invisible_primary_key = OFF;
             CREATE TABLE shop.i (a INT, b INT INVISIBLE, c INT AS (a + b) STORED,
               d INT AS (a * 2) VIRTUAL, KEY (d));
             INSERT INTO shop.i (a, b) VALUES (1, 2), (3, NULL);
             CREATE TABLE shop.m (id INT PRIMARY KEY, s TEXT, FULLTEXT (s)) ENGINE = MyISAM;
             INSERT INTO shop.m VALUES (0, 'not of InnoDB'); DO 0",
        )
        .await;
    source.sql("CREATE EVENT shop.e3 ON SCHEDULE EVERY 1 DAY DO CALL shop.p() -- last").await;
    source.sql("CREATE TRIGGER shop.t4 AFTER DELETE ON shop.t FOR EACH ROW SET @a = 1").await;
    let taken = baseline(&source).await;
    let then = moment(&source).await;
    let target = Mysqld::start(&[]).await;
    let mut to = running(&target);
    to.preflight(&needs(&source).await).await.unwrap();
    to.load(&taken.meta, taken.pieces()).await.unwrap();
    assert_same(&moment(&target).await, &then);
}

#[tokio::test]
async fn a_server_without_schemas_has_a_baseline_too() {
    let source = Mysqld::start(&[]).await;
    source.sql("CREATE USER app IDENTIFIED BY 'x'").await;
    let taken = baseline(&source).await;
    assert!(taken.text().contains("`app`@`%`"));
    let status: (String, u64, String, String, String) = source.row("SHOW BINARY LOG STATUS").await;
    assert_eq!((taken.meta.position.log.clone(), taken.meta.position.offset), (status.0, status.1));
    let target = Mysqld::start(&[]).await;
    let mut to = running(&target);
    to.preflight(&needs(&source).await).await.unwrap();
    to.load(&taken.meta, taken.pieces()).await.unwrap();
    assert_eq!(target.rows::<String>("SHOW GRANTS FOR app").await.len(), 1);
    assert_eq!(target.gtid_executed().await, taken.meta.position.gtids);
}

#[tokio::test]
async fn a_dump_that_fails_is_no_baseline_and_says_why() {
    let source = Mysqld::start(&[]).await;
    source
        .sql(
            "CREATE DATABASE shop; CREATE TABLE shop.t (id INT PRIMARY KEY);
             CREATE VIEW shop.broken AS SELECT id FROM shop.t; DROP TABLE shop.t",
        )
        .await;
    let error = try_baseline(&source_options(&source.url())).await.unwrap_err();
    assert_eq!(error.class(), Class::Unavailable);
    assert!(error.to_string().contains("broken"), "{error}");

    let mut missing = source_options(&source.url());
    missing.dump_command = Some("no-such-mysqldump".into());
    let error = try_baseline(&missing).await.unwrap_err();
    assert_eq!(error.class(), Class::Unavailable);
    assert!(error.hint_text().unwrap().contains("dump_command"), "{error:?}");
}

#[tokio::test]
async fn an_account_that_cannot_see_everything_takes_no_baseline() {
    let source = Mysqld::start(&[]).await;
    source
        .sql(
            "CREATE DATABASE shop; CREATE USER lim IDENTIFIED BY 'a\"b\\\\c #d';
             GRANT SELECT, RELOAD, REPLICATION CLIENT ON *.* TO lim",
        )
        .await;
    let mut options = source_options(&source.url());
    options.endpoint.user = "lim".into();
    options.endpoint.password = pitr::engine::Secret::new("a\"b\\c #d");
    let error = try_baseline(&options).await.unwrap_err();
    assert_eq!(error.class(), Class::Usage);
    let hint = error.hint_text().unwrap();
    assert_eq!(hint, "GRANT SHOW VIEW, TRIGGER, EVENT, LOCK TABLES ON *.* TO `lim`@`%`");
    source.sql(&hint.replace("GRANT ", "GRANT SHOW_ROUTINE ON *.* TO lim; GRANT ")).await;
    let (_, bytes) = try_baseline(&options).await.unwrap();
    assert!(String::from_utf8_lossy(&bytes).contains("CREATE DATABASE"));
}

#[tokio::test]
async fn a_running_server_is_restored_to_every_instant_between() {
    let source = shop(&[]).await;
    let taken = baseline(&source).await;
    let moments = work(&source).await;
    let needs = needs(&source).await;
    let log = log_of(&source, &taken.meta.position).await;
    for (n, then) in moments.iter().enumerate() {
        let target = Mysqld::start(&["--event-scheduler=ON"]).await;
        let mut to = running(&target);
        let log = open_log(log.clone(), None);
        let (applied, said) =
            restore(&mut to, &needs, &taken, log, &Cut::After(then.at)).await.unwrap();
        assert_same(&moment(&target).await, then);
        assert!(said.contains("scheduled events"), "{said}");
        assert_eq!(applied.gtids, then.gtids);
        assert_eq!(applied.first_left_out.is_none(), n + 1 == moments.len());
        assert_eq!(applied.records > 0, n > 0);
        let (scheduler, packet, sync): (String, u64, u64) = target
            .row("SELECT @@GLOBAL.event_scheduler, @@GLOBAL.max_allowed_packet, @@sync_binlog")
            .await;
        assert_eq!((scheduler.as_str(), packet, sync), ("ON", 64 << 20, 0));
        // It is a server of its own: what it commits now has its own GTID.
        target.sql("CREATE DATABASE mine").await;
        let uuid: String = target.row("SELECT @@server_uuid").await;
        assert!(target.gtid_executed().await.contains(&format!("{uuid}:1")));
    }
}

#[tokio::test]
async fn a_folder_is_restored_and_ready_to_start() {
    let source = shop(&["--partial-revokes=ON"]).await;
    source
        .sql(
            "INSTALL PLUGIN auth_socket SONAME 'auth_socket.so';
             CREATE USER local@localhost IDENTIFIED WITH auth_socket;
             CREATE USER part@'%'; GRANT SELECT ON *.* TO part@'%';
             REVOKE SELECT ON shop.* FROM part@'%'",
        )
        .await;
    let taken = baseline(&source).await;
    let moments = work(&source).await;
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("shop-mysql");
    let then = &moments[3];
    let log = open_log(log_of(&source, &taken.meta.position).await, None);
    let (_, said) =
        restore(&mut folder(&dir), &needs(&source).await, &taken, log, &Cut::After(then.at))
            .await
            .unwrap();
    assert!(said.contains("--datadir="), "{said}");
    let names: Vec<_> =
        std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["data"]);
    let left_behind = std::fs::read_dir(dir.join("data"))
        .unwrap()
        .any(|entry| entry.unwrap().file_name().to_string_lossy().starts_with("pitr"));
    assert!(!left_behind);
    let server = OnFolder::start(&dir).await;
    let mut conn = Conn::new(server.opts()).await.unwrap();
    assert_same(&moment_of(&mut conn).await, then);
    let redo: String = conn
        .query_first(
            "SELECT VARIABLE_VALUE FROM performance_schema.global_status \
                      WHERE VARIABLE_NAME = 'Innodb_redo_log_enabled'",
        )
        .await
        .unwrap()
        .unwrap();
    assert_eq!(redo, "ON");
    let channels: Vec<mysql_async::Row> = conn.query("SHOW REPLICA STATUS").await.unwrap();
    assert!(channels.is_empty());
}

#[tokio::test]
async fn the_cut_is_exact_to_the_microsecond_and_to_the_byte() {
    let (source, taken) = counted(20).await;
    let needs = needs(&source).await;
    let pieces = log_of(&source, &taken.meta.position).await;
    let file = taken.meta.position.log.clone();
    let all: Vec<_> = transactions(&source, &file)
        .into_iter()
        .filter(|(at, _)| *at >= taken.meta.position.offset)
        .collect();
    assert_eq!(all.len(), 20);
    let time = |n: usize| Timestamp::from_micros(all[n].1);
    let cuts = [
        (Cut::After(time(7)), 8),
        (Cut::After(time(7).shifted(-1)), 7),
        (Cut::At(Position::new(file.clone(), all[12].0)), 12),
        (Cut::At(taken.meta.position.clone()), 0),
    ];
    for (cut, rows) in cuts {
        let target = Mysqld::start(&[]).await;
        let log = open_log(pieces.clone(), None);
        let (applied, _) = restore(&mut running(&target), &needs, &taken, log, &cut).await.unwrap();
        assert_eq!(target.row::<u64>("SELECT COUNT(*) FROM shop.n").await, rows, "{cut:?}");
        assert_eq!(applied.records, rows);
        assert_eq!(applied.first_left_out.unwrap().at, Some(time(rows as usize)));
        assert_eq!(applied.last.is_some(), rows > 0);
        if let Some(last) = applied.last {
            assert_eq!(last.at, Some(time(rows as usize - 1)));
        }
    }
    // Within a transaction there is no place to stop.
    let target = Mysqld::start(&[]).await;
    let cut = Cut::At(Position::new(file, all[12].0 + 1));
    let log = open_log(pieces, None);
    let error = restore(&mut running(&target), &needs, &taken, log, &cut).await.unwrap_err();
    assert_eq!(error.class(), Class::Usage, "{error}");
}

#[tokio::test]
async fn a_replica_that_connects_again_gets_what_it_lacks() {
    let (source, taken) = counted(300).await;
    source.sql("FLUSH BINARY LOGS").await;
    source.sql("CREATE TABLE shop.big (id INT PRIMARY KEY, b LONGBLOB)").await;
    let mut conn = source.conn().await;
    conn.query_drop("INSERT INTO shop.big VALUES (1, REPEAT('y', 20000000))").await.unwrap();
    conn.query_drop("INSERT INTO shop.n VALUES (1000, '')").await.unwrap();
    let then = moment(&source).await;
    let mut pieces = vec![];
    for piece in log_of(&source, &taken.meta.position).await {
        match piece {
            Piece::Bytes(bytes) if bytes.len() < 50_000 => {
                pieces.extend(
                    (0..bytes.len())
                        .step_by(5_000)
                        .map(|at| Piece::Bytes(bytes.slice(at..bytes.len().min(at + 5_000)))),
                );
            }
            piece => pieces.push(piece),
        }
    }
    let target = Mysqld::start(&[]).await;
    let mut to = running(&target);
    to.preflight(&needs(&source).await).await.unwrap();
    to.load(&taken.meta, taken.pieces()).await.unwrap();
    let log = slow_log(pieces, Duration::from_millis(10));
    let cut = Cut::After(then.at);
    let (mut breaks, mut strangers) = (0, 0);
    let trouble = async {
        loop {
            tokio::time::sleep(Duration::from_millis(150)).await;
            let Some(status) = target.rows::<mysql_async::Row>("SHOW REPLICA STATUS").await.pop()
            else {
                continue;
            };
            let port: u16 = status.get("Source_Port").unwrap();
            let state: String = status.get("Replica_IO_Running").unwrap();
            // A stranger changes nothing.
            let stranger = OptsBuilder::default()
                .ip_or_hostname("127.0.0.1")
                .tcp_port(port)
                .user(Some("pitr"))
                .pass(Some("guess"))
                .prefer_socket(false);
            strangers += u32::from(Conn::new(stranger).await.is_err());
            // As a lost connection: the receiver's connection is killed at the source's side by
            // the receiver itself, in the middle of whatever it is at.
            if state == "Yes" && breaks < 5 && strangers > breaks {
                let mut conn = target.conn().await;
                conn.query_drop("STOP REPLICA IO_THREAD").await.unwrap();
                conn.query_drop("START REPLICA IO_THREAD").await.unwrap();
                breaks += 1;
            }
        }
    };
    let applied = tokio::select! {
        applied = to.replay(&taken.meta, log, &cut) => applied,
        never = trouble => never,
    };
    assert!(breaks >= 3 && strangers >= 3, "{breaks} breaks, {strangers} strangers");
    let applied = applied.unwrap();
    to.finish(&applied).await.unwrap();
    assert_same(&moment(&target).await, &then);
}

#[tokio::test]
async fn what_the_applier_says_is_what_the_restore_says() {
    let (source, taken) = counted(5).await;
    let log = open_log(log_of(&source, &taken.meta.position).await, None);
    let (target, error) =
        failing(&source, &taken, log, "INSERT INTO shop.n VALUES (3, 'not of the source')").await;
    assert_eq!(error.class(), Class::Unavailable);
    let text = error.to_string();
    assert!(text.contains("1062") && text.contains("Duplicate entry '3'"), "{text}");
    // It cannot be taken for a restored one.
    assert_eq!(target.rows::<mysql_async::Row>("SHOW REPLICA STATUS").await.len(), 1);
}

#[tokio::test]
async fn trouble_in_the_archive_ends_the_restore_with_that_trouble() {
    let (source, taken) = counted(50).await;
    let pieces = log_of(&source, &taken.meta.position).await;

    let log = open_log(pieces.clone(), Some(|| Error::corrupt("segment 7 is damaged")));
    let (_, error) = failing(&source, &taken, log, "").await;
    assert_eq!(error.class(), Class::Corrupt);
    assert!(error.to_string().contains("segment 7 is damaged"), "{error}");

    // A flipped bit, though the archive did not notice.
    let mut flipped = pieces.clone();
    let Piece::Bytes(bytes) = &flipped[1] else { panic!("no bytes") };
    let mut bytes = bytes.to_vec();
    bytes[20_000] ^= 1;
    flipped[1] = Piece::Bytes(bytes.into());
    let (target, error) = failing(&source, &taken, open_log(flipped, None), "").await;
    assert_eq!(error.class(), Class::Corrupt, "{error}");
    assert!(target.row::<u64>("SELECT COUNT(*) FROM shop.n").await < 50);

    // An end within a transaction.
    let mut cut_off = pieces.clone();
    let Some(Piece::Bytes(bytes)) = cut_off.last_mut() else { panic!("no bytes") };
    bytes.truncate(bytes.len() - 10);
    let (_, error) = failing(&source, &taken, open_log(cut_off, None), "").await;
    assert_eq!(error.class(), Class::Corrupt, "{error}");
    assert!(error.to_string().contains("within a transaction"), "{error}");

    // A place that is not where the log goes on.
    let mut hole = pieces;
    let far = Position::new(taken.meta.position.log.clone(), 99_999_999);
    hole.insert(2, Piece::Log { at: far, head: Bytes::new() });
    let (_, error) = failing(&source, &taken, open_log(hole, None), "").await;
    assert_eq!(error.class(), Class::Corrupt, "{error}");
}

#[tokio::test]
async fn events_with_the_targets_own_server_id_are_never_sent() {
    let (source, taken) = counted(5).await;
    let pieces = log_of(&source, &taken.meta.position).await;
    let target = Mysqld::start(&[&format!("--server-id={}", source.server_id())]).await;
    let mut to = running(&target);
    let mut blind = needs(&source).await;
    blind.origins.clear();
    to.preflight(&blind).await.unwrap();
    to.load(&taken.meta, taken.pieces()).await.unwrap();
    let cut = Cut::After(Timestamp::now());
    let error = to.replay(&taken.meta, open_log(pieces, None), &cut).await.unwrap_err();
    assert_eq!(error.class(), Class::Corrupt);
    assert!(error.to_string().contains("server_id"), "{error}");
}

#[tokio::test]
async fn targets_that_are_not_fit_are_refused_unchanged() {
    let source = shop(&[]).await;
    let needs = needs(&source).await;
    refused(&source, &needs, &["is a source of this archive"]).await;

    let target = Mysqld::start(&[]).await;
    running(&target).preflight(&needs).await.unwrap();
    let newer = Needs { version: "99.1.0".into(), ..needs.clone() };
    refused(&target, &newer, &["older than the source (99.1.0)"]).await;
    let other = Needs { version: "10.11.6-MariaDB".into(), ..needs.clone() };
    let error = running(&target).preflight(&other).await.unwrap_err();
    assert_eq!(error.class().exit_code(), 6, "{error}");
    let twin = Needs { origins: vec![1, target.server_id()], ..needs.clone() };
    refused(&target, &twin, &["SET PERSIST server_id = "]).await;

    target.sql("SET GLOBAL super_read_only = ON").await;
    refused(&target, &needs, &["read-only", "SET GLOBAL super_read_only = OFF"]).await;
    target.sql("SET GLOBAL super_read_only = OFF; SET GLOBAL read_only = OFF").await;
    target.sql("SET GLOBAL gtid_mode = ON_PERMISSIVE").await;
    refused(&target, &needs, &["gtid_mode = ON_PERMISSIVE", "SET PERSIST gtid_mode = ON"]).await;
    target.sql("SET GLOBAL gtid_mode = ON").await;
    target.sql("CHANGE REPLICATION SOURCE TO SOURCE_HOST = 'h', SOURCE_USER = 'u'").await;
    refused(&target, &needs, &["configured as a replica", "RESET REPLICA ALL"]).await;
    target.sql("RESET REPLICA ALL; CREATE DATABASE `mine`").await;
    refused(&target, &needs, &["not empty: it has mine"]).await;
    target.sql("DROP DATABASE mine; CREATE USER lim; GRANT SELECT, RELOAD ON *.* TO lim").await;
    let mut endpoint = Endpoint::parse(EngineKind::Mysql, &target.url()).unwrap();
    endpoint.user = "lim".into();
    let options = options(Destination::Running(endpoint.clone()));
    let error = MysqlTarget::running(options, endpoint).preflight(&needs).await.unwrap_err();
    assert_eq!(error.class().exit_code(), 6, "{error}");

    let names = Mysqld::start(&["--gtid-mode=OFF", "--enforce-gtid-consistency=OFF"]).await;
    refused(&names, &needs, &["SET PERSIST enforce_gtid_consistency = ON; SET PERSIST gtid_mode"])
        .await;
    let maria = Mariadbd::start(&[]).await;
    let error = running(&maria).preflight(&needs).await.unwrap_err();
    assert_eq!(error.class().exit_code(), 6, "{error}");

    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("precious"), "x").unwrap();
    let error = folder(dir.path()).preflight(&needs).await.unwrap_err();
    assert_eq!(error.class().exit_code(), 6, "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// Spoilt between replay and check: what GTIDs do not have, what they have too much, and a table
/// that the server itself takes for broken.
#[tokio::test]
async fn a_target_that_is_not_what_was_applied_fails_its_check() {
    let source = Mysqld::start(&[]).await;
    source
        .sql("CREATE DATABASE shop; CREATE TABLE shop.m (id INT PRIMARY KEY) ENGINE=MyISAM")
        .await;
    let taken = baseline(&source).await;
    source.sql("INSERT INTO shop.m VALUES (1), (2), (3)").await;
    let uuid: String = source.row("SELECT @@server_uuid").await;
    let cut = Cut::After(Timestamp::now().after(Duration::from_hours(1)));
    let missing = format!("missing {{{uuid}:");
    for words in [missing.as_str(), "missing {}, surplus {", "shop.m"] {
        let target = Mysqld::start(&[]).await;
        let mut to = running(&target);
        to.preflight(&needs(&source).await).await.unwrap();
        to.load(&taken.meta, taken.pieces()).await.unwrap();
        let log = open_log(log_of(&source, &taken.meta.position).await, None);
        let mut applied = to.replay(&taken.meta, log, &cut).await.unwrap();
        match words {
            "shop.m" => {
                target.sql("FLUSH LOCAL TABLES").await;
                let keys = target.datadir().join("shop/m.MYI");
                std::fs::File::options().write(true).open(keys).unwrap().set_len(100).unwrap();
            }
            _ if words == missing => applied.gtids = format!("{uuid}:1-9"),
            _ => target.sql("CREATE DATABASE stray").await,
        }
        let error = to.finish(&applied).await.unwrap_err();
        assert_eq!(error.class(), Class::Finding, "{words}: {error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test]
async fn a_folder_whose_restore_failed_says_so_and_is_filled_anew() {
    let (source, taken) = counted(5).await;
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("shop-mysql");
    let log = open_log(vec![], Some(|| Error::corrupt("segment 7 is damaged")));
    let mut to = folder(&dir);
    let cut = Cut::After(Timestamp::now());
    let error = restore(&mut to, &needs(&source).await, &taken, log, &cut).await.unwrap_err();
    assert_eq!(error.class(), Class::Corrupt, "{error}");
    drop(to);
    assert!(dir.join("UNFINISHED.txt").exists());
    // The next attempt starts anew.
    let log = open_log(log_of(&source, &taken.meta.position).await, None);
    let cut = Cut::After(Timestamp::now().after(Duration::from_hours(1)));
    let mut to = folder(&dir);
    let (applied, _) = restore(&mut to, &needs(&source).await, &taken, log, &cut).await.unwrap();
    assert_eq!(applied.records, 5);
    assert!(!dir.join("UNFINISHED.txt").exists());
}

/// A dump program that runs `before` and `after` around the real one, counting its runs.
fn wrapped_dump(dir: &Path, before: &str, after: &str) -> String {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join("dump");
    let text = format!(
        "#!/bin/sh\ncase \"$*\" in *--version*) exec mysqldump \"$@\";; esac\n\
         echo run >>{runs}\nn=$(wc -l <{runs})\n{before}\nmysqldump \"$@\" || exit\n{after}\n",
        runs = dir.join("runs").display()
    );
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

/// A table without versions is as it was at the baseline's place only as long as nobody writes.
#[tokio::test]
async fn rows_that_no_snapshot_holds_stay_locked_until_they_are_copied() {
    let source = Mysqld::start(&[]).await;
    source
        .sql("CREATE DATABASE shop; CREATE TABLE shop.m (id INT PRIMARY KEY) ENGINE=MyISAM")
        .await;
    source.sql("INSERT INTO shop.m VALUES (1)").await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let dir = tempfile::tempdir().unwrap();
    let mysql = format!("mysql --no-defaults -uroot -S{} -N -e", source.socket().display());
    let seen = dir.path().join("seen");
    let mut options = source_options(&source.url());
    options.dump_command = Some(wrapped_dump(
        dir.path(),
        &format!("({mysql} 'INSERT INTO shop.m VALUES (9)' >/dev/null 2>&1 &)"),
        &format!("sleep 2; {mysql} 'SELECT COUNT(*) FROM shop.m' >{}", seen.display()),
    ));
    let (_, bytes) = try_baseline(&options).await.unwrap();
    assert_eq!(std::fs::read_to_string(seen).unwrap().trim(), "1", "written beneath the copy");
    assert!(!String::from_utf8(bytes).unwrap().contains("(9)"));
    eventually("the write that had to wait", Duration::from_secs(30), async || {
        (source.row::<u64>("SELECT COUNT(*) FROM shop.m").await == 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_changes_beneath_a_dump_is_noticed() {
    let source = shop(&[]).await;
    let dir = tempfile::tempdir().unwrap();
    let runs = || std::fs::read_to_string(dir.path().join("runs")).unwrap().lines().count();
    let sql = |text: &str| {
        format!("mysql --no-defaults -uroot -S{} -e \"{text}\"", source.socket().display())
    };
    let mut options = source_options(&source.url());

    // At the snapshot: the baseline is begun anew, without a byte handed over twice.
    options.dump_command = Some(wrapped_dump(dir.path(), "", ""));
    // On a busy machine the second may be over before the baseline is begun.
    for n in 0..20 {
        drop(std::fs::remove_file(dir.path().join("runs")));
        source.sql(&format!("CREATE TABLE shop.early{n} (id INT PRIMARY KEY)")).await;
        let (_, bytes) = try_baseline(&options).await.unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text.matches("-- pitr: baseline 1 ").count(), 1);
        if runs() > 1 {
            break;
        }
    }
    assert!(runs() > 1, "a table of the same second was never noticed");

    // While it runs: what was handed over is no baseline.
    for change in [
        "ALTER EVENT shop.running DISABLE",
        "RENAME TABLE shop.t TO shop.u, shop.u TO shop.v",
        "CREATE PROCEDURE shop.p() SELECT 1",
    ] {
        // What was altered in this very second would begin it anew.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let after = format!("sleep 1\n{}", sql(change));
        options.dump_command = Some(wrapped_dump(dir.path(), "", &after));
        let error = try_baseline(&options).await.unwrap_err();
        assert_eq!(error.class(), Class::Unavailable);
        assert!(error.to_string().contains("while the dump ran"), "{error}");
    }

    // An end without its mark, an end with another status, and a lock that was lost.
    let holder = "SELECT PROCESSLIST_ID FROM performance_schema.metadata_locks JOIN \
         performance_schema.threads ON OWNER_THREAD_ID = THREAD_ID \
         WHERE OBJECT_TYPE = 'GLOBAL' AND LOCK_DURATION = 'EXPLICIT'";
    let kill = format!(
        "for i in $({}); do {}; done",
        sql(holder).replace(" -e ", " -N -e "),
        sql("KILL $i")
    );
    for (before, after, words) in [
        ("", "| head -c 3000", "closing mark"),
        ("", "exit 3", "exit status: 3"),
        (kill.as_str(), "", "lock against writes was lost"),
    ] {
        let path = wrapped_dump(dir.path(), before, after);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace(" || exit\n|", " |")).unwrap();
        options.dump_command = Some(path);
        let error = try_baseline(&options).await.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}
