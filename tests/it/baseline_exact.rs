//! Baselines are exact: what is restored has every bit of what was there, and where that cannot
//! be, there is no baseline.

use crate::mariadb_restore::harness::Series;
use crate::mysql_restore::harness::*;
use crate::support::{Mariadbd, Mysqld, program};
use mysql_async::prelude::Queryable;
use pitr::engine::Target;
use pitr::error::Class;
use rstest::rstest;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Statements that are sent one by one, in a session that lets odd values in.
const ODD: &str = r#"
    CREATE DATABASE odd DEFAULT CHARACTER SET latin1;
    CREATE DATABASE `s``q 'u"o;t😀e`;
    USE odd;
    CREATE TABLE floats (id INT PRIMARY KEY, f FLOAT, u FLOAT UNSIGNED, z FLOAT ZEROFILL,
        fd FLOAT(7,3), d DOUBLE, dd DOUBLE(12,3), n DECIMAL(40,20), f24 FLOAT(24),
        g FLOAT AS (f * 3) STORED, gv FLOAT AS (f / 3) VIRTUAL, s VARCHAR(40), KEY (f));
    INSERT INTO floats (id, f, u, z, fd, d, dd, n, f24, s) VALUES
        (1, '-0', '-0', '-0', '-0', '-0', '-0', '-0', '-0', 'it''s \\ "x" 😀'),
        (2, 3.4028234663852886e38, 3.4028234663852886e38, 1e30, 9999.999, 1.7976931348623157e308,
            999999999.999, 99999999999999999999.99999999999999999999, 16777217, NULL),
        (3, 1.401298464324817e-45, 1.1754942e-38, 1e-40, -9999.999, 4.9406564584124654e-324,
            -0.001, -0.00000000000000000001, -1e-45, ''),
        (4, 1.17549435e-38, 0.1, 0.2, 0.3, 0.1, 0.1, 0.1, 0.7, CONCAT('a', CHAR(0), 'b\n\r', CHAR(26))),
        (5, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
    CREATE TABLE float_key (f FLOAT NOT NULL, b INT, PRIMARY KEY (f, b));
    CREATE TABLE float_keyless (f FLOAT, x VARBINARY(20), b BIT(11), b64 BIT(64),
        e ENUM('', 'it''s', 'ä,b'), st SET('a', '', 'c''d'), y YEAR, j JSON, g GEOMETRY,
        l VARCHAR(20) CHARACTER SET latin1, u VARCHAR(20) CHARACTER SET utf16,
        t TIME(6), ts TIMESTAMP(6) NULL, dt DATETIME, da DATE);
    INSERT INTO float_keyless VALUES
        (1.1, x'00ff27220a5c', b'10000000001', 18446744073709551615, 0, 0, 0, '{"a": -0.0, "b": [1.5, "x\\"y"]}',
            ST_GeomFromText('POINT(1 2)'), 'é', 'é😀', '-838:59:59', '1970-01-01 00:00:01',
            '0000-00-00 00:00:00', '2024-00-00'),
        (1.1, '', 0, 0, 1, 2, 1901, 'null', NULL, '', '', '00:00:00.000001', '0000-00-00', '9999-12-31 23:59:59', '0000-00-00'),
        (NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
    CREATE TABLE doubles (d DOUBLE, x TEXT, dd DOUBLE(5,2));
    INSERT INTO doubles VALUES ('-0', ',-0,', '-0'), (-1e-308, '(-0,\',-0)', -0.5), (0, '-0', 0);
    CREATE TABLE enums (e ENUM('', 'a', 'NULL', ' x', '0'), s SET('', '1'));
    INSERT INTO enums VALUES (0, 0), (1, 1), (2, 2), (3, 3), (4, NULL), ('0', 3), (NULL, 0);
    CREATE TABLE dates (d DATE NOT NULL DEFAULT '0000-00-00', dt DATETIME DEFAULT '2000-00-01',
        ts TIMESTAMP NOT NULL DEFAULT '0000-00-00 00:00:00');
    SET sql_mode = 'ALLOW_INVALID_DATES';
    INSERT INTO dates VALUES (DEFAULT, DEFAULT, DEFAULT), ('2024-02-30', '0000-00-00', '2024-03-31 02:30:00');
    SET sql_mode = '';
    CREATE TABLE `it's ``😀`` -- /*x*/` (`co'l ``;` FLOAT, `😀` INT, KEY `k``😀` (`😀`));
    INSERT INTO `it's ``😀`` -- /*x*/` VALUES (0.1, 1);
    CREATE TABLE a (id INT PRIMARY KEY, b_id INT, f FLOAT);
    CREATE TABLE b (id INT PRIMARY KEY, a_id INT, CONSTRAINT `fk'b` FOREIGN KEY (a_id) REFERENCES a (id));
    INSERT INTO a VALUES (1, 1, 1.1);
    INSERT INTO b VALUES (1, 1);
    ALTER TABLE a ADD CONSTRAINT fka FOREIGN KEY (b_id) REFERENCES b (id);
    CREATE TRIGGER before_a BEFORE INSERT ON a FOR EACH ROW SET NEW.f = 7;
    CREATE TABLE keyless (s VARCHAR(10));
    INSERT INTO keyless VALUES ('x'), ('x'), (NULL);
    CREATE VIEW v1 AS SELECT id, f FROM a;
    CREATE VIEW v2 AS SELECT v1.id FROM v1 JOIN floats USING (id);
    CREATE ALGORITHM = MERGE DEFINER = ghost@nowhere SQL SECURITY INVOKER VIEW `v😀` AS SELECT * FROM v2;
    CREATE OR REPLACE VIEW v1 AS SELECT a.id, b.a_id, a.f FROM a JOIN b ON a.id = b.id;
    SET sql_mode = 'PIPES_AS_CONCAT,ANSI_QUOTES,NO_BACKSLASH_ESCAPES';
    CREATE FUNCTION fn(a INT) RETURNS VARCHAR(50) CHARACTER SET utf8mb4 DETERMINISTIC RETURN 'a\' || a || '"x"';
    CREATE TRIGGER tr AFTER INSERT ON keyless FOR EACH ROW SET @x = '\' || "NEW".s;
    SET sql_mode = '';
    CREATE DEFINER = ghost@'%' PROCEDURE pr() SQL SECURITY INVOKER COMMENT 'it''s' SELECT 1;
    CREATE EVENT e1 ON SCHEDULE EVERY 1 DAY STARTS '2031-01-01' ON COMPLETION PRESERVE DISABLE COMMENT 'c;' DO DELETE FROM keyless;
    CREATE EVENT e2 ON SCHEDULE AT '2037-01-01 00:00:00' ENABLE DO SET @y = 'a
b';
    CREATE TABLE `s``q 'u"o;t😀e`.f (f FLOAT);
    INSERT INTO `s``q 'u"o;t😀e`.f VALUES (0.30000001), (-1.17549435e-38)"#;

/// What only MySQL has.
const ODD_MYSQL: &str = r#"
    USE odd;
    SET sql_generate_invisible_primary_key = ON;
    CREATE TABLE gipk (f FLOAT, hidden FLOAT INVISIBLE DEFAULT 0.3, v VECTOR(3));
    INSERT INTO gipk (f, v) VALUES (0.1, STRING_TO_VECTOR('[1,2.5,-0]')), (0.1, NULL);
    CREATE TABLE gipk2 (x INT, i INT INVISIBLE DEFAULT (1 + 1), j INT AS (i * 2) STORED INVISIBLE);
    INSERT INTO gipk2 VALUES (1), (NULL);
    SET sql_generate_invisible_primary_key = OFF;
    CREATE TABLE charsets (f FLOAT, k CHAR(5) CHARACTER SET cp932, s TEXT CHARACTER SET gb18030,
        p POINT SRID 4326 NOT NULL, SPATIAL KEY (p));
    INSERT INTO charsets VALUES (1.3, _cp932 x'815f82a0', _gb18030 x'84318236', ST_GeomFromText('POINT(1 2)', 4326));
    CREATE ROLE r1, r2;
    GRANT SELECT ON odd.* TO r1 WITH GRANT OPTION;
    GRANT r1 TO r2 WITH ADMIN OPTION;
    CREATE USER `🙂`@`10.0.%` IDENTIFIED BY 'x' DEFAULT ROLE r2 REQUIRE SSL WITH MAX_QUERIES_PER_HOUR 5
        PASSWORD EXPIRE INTERVAL 90 DAY PASSWORD HISTORY 4 PASSWORD REUSE INTERVAL 100 DAY PASSWORD REQUIRE CURRENT
        FAILED_LOGIN_ATTEMPTS 3 PASSWORD_LOCK_TIME 2 ACCOUNT LOCK COMMENT 'it''s';
    CREATE USER expired@localhost IDENTIFIED BY 'y' PASSWORD EXPIRE;
    CREATE USER `o'dd``name`@'%' IDENTIFIED BY 'z' ATTRIBUTE '{"a": 1}';
    GRANT SELECT (f), UPDATE (f) ON odd.floats TO `o'dd``name`@'%';
    GRANT EXECUTE ON FUNCTION odd.fn TO expired@localhost;
    GRANT BACKUP_ADMIN, XA_RECOVER_ADMIN ON *.* TO expired@localhost WITH GRANT OPTION;
    GRANT PROXY ON expired@localhost TO `o'dd``name`@'%' WITH GRANT OPTION;
    SET GLOBAL partial_revokes = ON;
    CREATE USER part@'%' IDENTIFIED BY 'p';
    GRANT SELECT, INSERT ON *.* TO part@'%';
    REVOKE INSERT ON odd.* FROM part@'%'"#;

async fn fill(server: &Mysqld, statements: &str) {
    let mut conn = server.conn().await;
    conn.query_drop("SET NAMES utf8mb4, sql_mode = ''").await.unwrap();
    for statement in server.worded(statements).split(";\n") {
        conn.query_drop(statement).await.unwrap_or_else(|error| panic!("{error}\n{statement}"));
    }
}

/// The bits of every FLOAT and DOUBLE, as the server sends them without making texts of them.
async fn bits(server: &Mysqld, query: &str) -> Vec<Vec<String>> {
    let mut conn = server.conn().await;
    let rows: Vec<mysql_async::Row> = conn.exec(query, ()).await.unwrap();
    let mut bits: Vec<Vec<String>> = rows
        .into_iter()
        .map(|row| row.unwrap().iter().map(|value| format!("{value:?}")).collect())
        .collect();
    bits.sort();
    bits
}

/// Waits until nothing in the server was created in this very second.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(1100)).await;
}

#[tokio::test]
async fn an_odd_mysql_server_comes_back_bit_for_bit() {
    // A thousand partitions are a thousand files otherwise.
    let source = Mysqld::start(&["--innodb-file-per-table=OFF"]).await;
    fill(&source, ODD).await;
    fill(&source, ODD_MYSQL).await;
    let values: Vec<String> =
        (1..2000).map(|i| format!("({}e-3, {i})", f64::from(i * i) * 1.000_731)).collect();
    let values = values.join(",");
    source.sql(&format!("INSERT INTO odd.float_key VALUES {values}")).await;
    let partitions = "CREATE TABLE odd.parts (id INT, f FLOAT, PRIMARY KEY (id)) \
                      PARTITION BY HASH (id) PARTITIONS 1000";
    source.sql(partitions).await;
    source.sql("INSERT INTO odd.parts SELECT b, f FROM odd.float_key").await;
    settle().await;
    let taken = baseline(&source).await;
    let then = moment(&source).await;
    let target = Mysqld::start(&["--innodb-file-per-table=OFF"]).await;
    target.sql("SET GLOBAL partial_revokes = ON").await;
    let mut to = running(&target);
    to.preflight(&needs(&source).await).await.unwrap();
    to.load(&taken.meta, taken.pieces()).await.unwrap();
    assert_same(&moment(&target).await, &then);
    for query in [
        "SELECT id, f, u, z, fd, d, dd, f24, g, gv FROM odd.floats",
        "SELECT * FROM odd.float_key",
        "SELECT * FROM odd.doubles",
        "SELECT f, hidden FROM odd.gipk",
        "SELECT * FROM odd.`it's ``😀`` -- /*x*/`",
    ] {
        let (left, right) = (bits(&source, query).await, bits(&target, query).await);
        assert!(!left.is_empty());
        assert_eq!(left, right, "{query}");
    }
    let zeros = bits(&target, "SELECT f, d FROM odd.floats WHERE id = 1").await;
    assert_eq!(zeros, [["Float(-0.0)", "Double(-0.0)"]]);
}

/// What only MariaDB has.
const ODD_MARIADB: &str = r"
    USE odd;
    CREATE SEQUENCE seq START WITH 5 INCREMENT BY 3 CACHE 10;
    DO NEXTVAL(seq);
    CREATE TABLE versioned (id INT PRIMARY KEY, f FLOAT, e ENUM('', 'x')) WITH SYSTEM VERSIONING;
    INSERT INTO versioned VALUES (1, 0.1, 0), (2, 1.17549435e-38, 1);
    UPDATE versioned SET f = 0.3;
    DELETE FROM versioned WHERE id = 2;
    CREATE TABLE period (id INT PRIMARY KEY, f FLOAT, a TIMESTAMP(6) GENERATED ALWAYS AS ROW START,
        z TIMESTAMP(6) GENERATED ALWAYS AS ROW END INVISIBLE, PERIOD FOR SYSTEM_TIME (a, z)) WITH SYSTEM VERSIONING;
    INSERT INTO period (id, f) VALUES (1, 0.1);
    UPDATE period SET f = 0.2;
    CREATE TABLE whole (id INT PRIMARY KEY, s VARCHAR(9)) WITH SYSTEM VERSIONING;
    INSERT INTO whole VALUES (1, 'a');
    UPDATE whole SET s = 'b';
    CREATE TABLE types (f FLOAT, u UUID, i6 INET6, h INT INVISIBLE DEFAULT 4, c TEXT COMPRESSED);
    INSERT INTO types VALUES (1.3, '123e4567-e89b-12d3-a456-426655440000', '::ffff:1.2.3.4', 'text');
    SET sql_mode = 'ORACLE';
    CREATE PACKAGE pk AS FUNCTION one RETURN INT; END;
    CREATE PACKAGE BODY pk AS FUNCTION one RETURN INT AS BEGIN RETURN 1; END; END;
    SET sql_mode = '';
    CREATE ROLE r1;
    CREATE ROLE r2 WITH ADMIN r1;
    GRANT SELECT ON odd.* TO r1;
    CREATE USER `ö`@`10.0.%` IDENTIFIED VIA mysql_native_password USING PASSWORD('x') OR unix_socket
        REQUIRE SSL WITH MAX_QUERIES_PER_HOUR 5 ACCOUNT LOCK PASSWORD EXPIRE INTERVAL 90 DAY;
    CREATE USER expired@localhost IDENTIFIED BY 'y' PASSWORD EXPIRE;
    GRANT r1 TO `ö`@`10.0.%` WITH ADMIN OPTION;
    SET DEFAULT ROLE r1 FOR `ö`@`10.0.%`;
    GRANT SELECT (f), UPDATE (f) ON odd.floats TO expired@localhost;
    GRANT EXECUTE ON FUNCTION odd.fn TO expired@localhost WITH GRANT OPTION;
    GRANT SLAVE MONITOR, RELOAD ON *.* TO expired@localhost;
    GRANT PROXY ON expired@localhost TO `ö`@`10.0.%`;
    GRANT SELECT ON odd.keyless TO PUBLIC";

/// The same without what 10.5 has not: UUID came with 10.7, PUBLIC with 10.11, and so did dumps of
/// system-versioned tables with their history.
fn without_news() -> String {
    let is_old = |statement: &&str| {
        !["versioned", "period", "whole", "PUBLIC"].iter().any(|new| statement.contains(new))
    };
    let old: Vec<&str> = ODD_MARIADB.split(";\n").filter(is_old).collect();
    let old = old.join(";\n").replace("u UUID", "u CHAR(36)");
    assert!(
        !old.contains("VERSIONING")
            && old.contains("CREATE PACKAGE BODY")
            && old.contains("CHAR(36)")
    );
    old
}

/// Loads a baseline as a user would, with the stock client.
fn load_by_hand(target: &Mysqld, baseline: &[u8]) {
    let mut child = Command::new(program("mariadb"))
        .args(["--no-defaults", "--binary-mode", "--default-character-set=utf8mb4", "-uroot"])
        .arg(format!("--socket={}", target.socket().display()))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(baseline).unwrap();
    assert!(child.wait().unwrap().success());
}

#[rstest]
#[case::of_10_5(Series::Maria10_5)]
#[case::of_10_11(Series::Maria10)]
#[tokio::test]
async fn an_odd_mariadb_server_comes_back_bit_for_bit(#[case] series: Series) {
    let source = series.start(&[]).await;
    // Names of MariaDB are within the basic plane of Unicode.
    fill(&source, &ODD.replace('😀', "ü")).await;
    let odd = if series == Series::Maria10_5 { without_news() } else { ODD_MARIADB.to_owned() };
    fill(&source, &odd).await;
    settle().await;
    let options = source_options(&source.url());
    if series == Series::Maria10_5 {
        source.sql("CREATE TABLE odd.versioned (f FLOAT) WITH SYSTEM VERSIONING").await;
        let error = try_baseline(&options).await.unwrap_err();
        assert_eq!(error.class(), Class::Refused, "{error:?}");
        assert!(error.to_string().contains("1 tables are system-versioned"), "{error}");
        source.sql("DROP TABLE odd.versioned").await;
        settle().await;
    }
    let (taken, bytes) = try_baseline(&options).await.unwrap();
    let status: (String, u64, String, String) = source.row("SHOW MASTER STATUS").await;
    assert_eq!((taken.position.log, taken.position.offset), (status.0, status.1));
    let target = series.start(&[]).await;
    load_by_hand(&target, &bytes);
    let of = async |server: &Mysqld| {
        let mut conn = server.conn().await;
        let data = pitr::engine::mysql::digest::digest(&mut conn).await.unwrap();
        (data, pitr::engine::mysql::digest::digest_accounts(&mut conn).await.unwrap())
    };
    // Only then does every account show what everybody has.
    source.sql("FLUSH PRIVILEGES").await;
    let (left, right) = (of(&source).await, of(&target).await);
    assert_eq!(left.0.diff(&right.0), [""; 0]);
    assert_eq!(left.1.diff(&right.1), [""; 0]);
    for query in [
        "SELECT id, f, u, z, fd, d, dd, f24, g, gv FROM odd.floats",
        "SELECT * FROM odd.doubles",
        "SELECT *, row_start, row_end FROM odd.versioned FOR SYSTEM_TIME ALL",
    ] {
        if series == Series::Maria10_5 && query.contains("SYSTEM_TIME") {
            continue;
        }
        let (left, right) = (bits(&source, query).await, bits(&target, query).await);
        assert!(left.len() > 2);
        assert_eq!(left, right, "{query}");
    }
    let roles = "SELECT * FROM mysql.roles_mapping ORDER BY 1, 2, 3";
    let of = async |server: &Mysqld| server.rows::<(String, String, String, String)>(roles).await;
    assert_eq!(of(&source).await, of(&target).await);
}

#[tokio::test]
async fn the_dump_program_is_of_the_servers_family() {
    for (server, name) in
        [(Mysqld::start(&[]).await, "mariadb-dump"), (Mariadbd::start(&[]).await, "mysqldump")]
    {
        let mut options = source_options(&server.url());
        options.dump_command = Some(program(name).display().to_string());
        let error = try_baseline(&options).await.unwrap_err();
        assert_eq!(error.class(), Class::Unavailable);
        assert!(error.to_string().contains("of another family"), "{error}");
    }
}

#[tokio::test]
async fn a_prepared_xa_transaction_is_waited_for() {
    let source = Mysqld::start(&[]).await;
    source.sql("CREATE DATABASE shop; CREATE TABLE shop.t (id INT PRIMARY KEY)").await;
    settle().await;
    let mut conn = source.conn().await;
    let begin = "XA START 'a''b', 'c', 7; INSERT INTO shop.t VALUES (1); XA END 'a''b', 'c', 7; \
                 XA PREPARE 'a''b', 'c', 7";
    conn.query_drop(begin).await.unwrap();
    let options = source_options(&source.url());
    let error = try_baseline(&options).await.unwrap_err();
    let hint = error.hint_text().unwrap();
    assert!(error.to_string().contains("X'612762',X'63',7"), "{error}");
    // It is ended while the next one waits, and then its row is in.
    let commit = hint.split(": ").nth(1).unwrap().split(", or").next().unwrap().to_owned();
    let ending = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        conn.query_drop(&commit).await.unwrap();
    };
    let (taken, ()) = tokio::join!(try_baseline(&options), ending);
    let (_, bytes) = taken.unwrap();
    assert!(String::from_utf8_lossy(&bytes).contains("INSERT INTO `t` VALUES (1);"));
}
