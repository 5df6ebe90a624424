//! Loading a baseline: the same tables as `mysql < dump` makes, errors that name the table, and
//! little memory whatever the length of a row.

use crate::instants::until_windows;
use crate::mysql_restore::harness::*;
use crate::support::{Mysqld, Pitr, program};
use mysql_async::prelude::Queryable;
use pitr::engine::Target;
use pitr::error::{Class, Error};
use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Schemas in which whatever keys and tables can be occurs, some of it in tables that are large
/// enough for their keys to wait.
const ODD: &str = "
    CREATE DATABASE odd; CREATE DATABASE `o``dd 2`;
    CREATE TABLE odd.big (id INT AUTO_INCREMENT, `ke``y` INT COMMENT 'a, KEY `x` (`y`)', c CHAR(200),
      d VARCHAR(40) NOT NULL DEFAULT '),(', z INT, g INT AS (z * 2) VIRTUAL, h INT AS (z % 7) STORED,
      CHECK (z <> 3), PRIMARY KEY (id), UNIQUE KEY u (`ke``y`, id), UNIQUE KEY nn (d, id),
      KEY k (c(10) DESC, d) COMMENT 'it''s (a)', KEY `inv``is` (c) INVISIBLE, KEY on_g (g),
      KEY on_h (h), KEY expr ((z + 1)), KEY after_expr (z), FULLTEXT KEY ft (d)) AUTO_INCREMENT=77;
    CREATE TABLE odd.child (id INT PRIMARY KEY, parent INT, u INT, c CHAR(250), KEY c (c), KEY p (parent),
      KEY plain (c, id), CONSTRAINT to_big FOREIGN KEY (parent) REFERENCES odd.big (id) ON DELETE CASCADE);
    CREATE TABLE odd.zz_parent (id INT PRIMARY KEY, code INT, x INT, c CHAR(250), UNIQUE KEY code (code),
      KEY x (x), KEY x2 (x, c));
    CREATE TABLE odd.a_child (id INT PRIMARY KEY, code INT, KEY code (code),
      CONSTRAINT to_later FOREIGN KEY (code) REFERENCES odd.zz_parent (code));
    CREATE TABLE `o``dd 2`.big (id INT PRIMARY KEY, x CHAR(250), KEY other (id, x), KEY x (x),
      CONSTRAINT across FOREIGN KEY (id) REFERENCES odd.big (id));
    CREATE TABLE odd.no_key (a INT, c CHAR(250), KEY a (a));
    CREATE TABLE odd.unique_only (a INT NOT NULL, c CHAR(250), UNIQUE KEY a (a), KEY c (c));
    CREATE TABLE odd.counted (a INT, n INT AUTO_INCREMENT, c CHAR(250), PRIMARY KEY (a), KEY n (n), KEY c (c));
    CREATE TABLE odd.parts (id INT, c CHAR(250), PRIMARY KEY (id), KEY c (c))
      PARTITION BY RANGE (id) (PARTITION p0 VALUES LESS THAN (100), PARTITION p1 VALUES LESS THAN MAXVALUE);
    CREATE TABLE odd.small (id INT PRIMARY KEY, s VARCHAR(20), g POINT NOT NULL SRID 0, KEY s (s),
      SPATIAL KEY sp (g));
    CREATE TABLE odd.empty (id INT PRIMARY KEY, s VARCHAR(20), KEY s (s));
    CREATE TABLE odd.my_isam (id INT PRIMARY KEY, s VARCHAR(200), KEY s (s)) ENGINE = MyISAM;
    CREATE VIEW odd.v AS SELECT id FROM odd.big;
    INSERT INTO odd.small VALUES (1, 'a;b\\'c', POINT(1, 2)), (2, '\n-- x', POINT(3, 4));
    DO 0";

/// How many rows make a table large.
const MANY: u32 = 40_000;

/// Tables, what goes into their columns, and how many rows.
const FILLED: [(&str, &str, u32); 9] = [
    (
        "odd.big (id, `ke``y`, c, d, z)",
        "i, 100000 - i, RPAD(SHA2(i, 512), 200, 'x'), LEFT(SHA2(i, 224), 40), i % 50 + 10",
        MANY,
    ),
    ("odd.child", "i, i, i, RPAD(SHA2(i, 512), 250, 'x')", MANY),
    ("odd.zz_parent", "i, i * 3, i % 100, RPAD(SHA2(i, 512), 250, 'x')", MANY),
    ("odd.a_child", "i, i * 3", 2_000),
    ("`o``dd 2`.big", "i, RPAD(SHA2(i, 512), 250, 'x')", MANY),
    ("odd.no_key", "i % 100, RPAD(SHA2(i, 512), 250, 'x')", 2_000),
    ("odd.counted (a, c)", "i, RPAD(SHA2(i, 512), 250, 'x')", 2_000),
    ("odd.parts", "i, RPAD(SHA2(i, 512), 250, 'x')", 2_000),
    ("odd.my_isam", "i, SHA2(i, 512)", 2_000),
];

async fn odd() -> Mysqld {
    let source = Mysqld::start(&[]).await;
    source.sql(&format!("SET foreign_key_checks = 0; {ODD}")).await;
    for (table, columns, rows) in FILLED {
        source
            .sql(&format!(
                "SET foreign_key_checks = 0, cte_max_recursion_depth = 1000000; INSERT INTO {table} \
                 WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) \
                 SELECT {columns} FROM n"
            ))
            .await;
    }
    source
        .sql("CREATE TRIGGER odd.spoils BEFORE INSERT ON odd.child FOR EACH ROW SET NEW.u = 0")
        .await;
    source
}

/// What `SHOW CREATE TABLE` says of each table, and its checksum.
async fn shown(server: &Mysqld) -> BTreeMap<String, (String, u64)> {
    let tables: Vec<(String, String)> = server
        .rows(
            "SELECT TABLE_SCHEMA, TABLE_NAME FROM information_schema.TABLES \
             WHERE TABLE_TYPE = 'BASE TABLE' AND TABLE_SCHEMA LIKE 'o%dd%'",
        )
        .await;
    let mut found = BTreeMap::new();
    for (schema, table) in tables {
        let name = format!("`{}`.`{table}`", schema.replace('`', "``"));
        let (_, text): (String, String) = server.row(&format!("SHOW CREATE TABLE {name}")).await;
        let (_, sum): (String, u64) = server.row(&format!("CHECKSUM TABLE {name}")).await;
        found.insert(name, (text, sum));
    }
    found
}

fn plainly(server: &Mysqld, dump: &[u8]) {
    let mut client = Command::new(program("mysql"))
        .args(["--no-defaults", "--host=127.0.0.1", "--user=root", "--binary-mode"])
        .arg(format!("--port={}", server.port()))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    client.stdin.take().unwrap().write_all(dump).unwrap();
    assert!(client.wait().unwrap().success());
}

#[tokio::test]
async fn tables_come_out_as_from_the_stock_client_and_keys_wait_for_the_rows() {
    let source = odd().await;
    let taken = baseline(&source).await;
    let then = moment(&source).await;
    let expected = shown(&source).await;
    assert_eq!(expected.len(), 12);

    let stock = Mysqld::start(&[]).await;
    plainly(&stock, &taken.bytes);
    let by_stock = shown(&stock).await;
    drop(stock);
    assert_eq!(expected, by_stock);

    let target = Mysqld::start(&["--general-log=ON", "--general-log-file=general.log"]).await;
    let mut to = running(&target);
    to.preflight(&needs(&source).await).await.unwrap();
    to.load(&taken.meta, taken.pieces()).await.unwrap();
    assert_eq!(shown(&target).await, expected);
    assert_same(&moment(&target).await, &then);
    // Rows of a table without a key have no other order than that in which they came.
    let order = "SELECT SHA2(GROUP_CONCAT(a, c SEPARATOR ''), 256) FROM odd.no_key";
    let of = async |server: &Mysqld| {
        let mut conn = server.conn().await;
        conn.query_drop("SET group_concat_max_len = 100000000").await.unwrap();
        conn.query_first::<String, _>(order).await.unwrap().unwrap()
    };
    assert_eq!(of(&source).await, of(&target).await);

    let log = std::fs::read(target.datadir().join("general.log")).unwrap();
    let log = String::from_utf8_lossy(&log).into_owned();
    let adds = |table: &str| log.matches(&format!("ALTER TABLE {table} ADD ")).count();
    for (table, times) in [
        ("`odd`.`big`", 2),
        ("`odd`.`child`", 2),
        ("`o``dd 2`.`big`", 2),
        ("`odd`.`counted`", 0),
        ("`odd`.`parts`", 0),
        // Its key is needed by a table that came before it: the server says so.
        ("`odd`.`zz_parent`", 0),
        ("`odd`.`no_key`", 0),
        ("`odd`.`small`", 0),
        ("`odd`.`my_isam`", 0),
    ] {
        assert_eq!(adds(table), times, "{table}");
    }
}

/// Loads a baseline in which one text is replaced, and gives the error.
async fn spoiled(from: &str, to: &str) -> (Mysqld, Error) {
    let source = Mysqld::start(&[]).await;
    source
        .sql(
            "CREATE DATABASE shop; CREATE TABLE shop.t (id INT PRIMARY KEY, s VARCHAR(20));
             CREATE TABLE shop.u (id INT PRIMARY KEY, s VARCHAR(20));
             INSERT INTO shop.t VALUES (1, 'a'), (2, 'b'); INSERT INTO shop.u VALUES (1, 'c');
             CREATE VIEW shop.v AS SELECT * FROM shop.t",
        )
        .await;
    let mut taken = baseline(&source).await;
    let text = taken.text();
    assert_eq!(text.matches(from).count(), 1);
    taken.bytes = text.replace(from, to).into_bytes();
    let target = Mysqld::start(&[]).await;
    let mut loading = running(&target);
    loading.preflight(&needs(&source).await).await.unwrap();
    let error = loading.load(&taken.meta, taken.pieces()).await.unwrap_err();
    (target, error)
}

#[tokio::test]
async fn rows_that_are_not_taken_are_reported_with_their_table_and_the_servers_words() {
    let (_, error) = spoiled("(2,'b')", "(1,'b')").await;
    assert_eq!(error.class(), Class::Unavailable);
    assert!(error.to_string().contains("`shop`.`t`"), "{error}");
    assert!(error.to_string().contains("Duplicate entry '1'"), "{error}");
}

#[tokio::test]
async fn a_definition_that_is_not_taken_ends_the_load() {
    let (target, error) = spoiled("CREATE TABLE `u` (", "CREATE TABLE `u` (x,").await;
    assert!(error.to_string().contains("CREATE TABLE `u`"), "{error}");
    assert!(error.to_string().contains("error 1064"), "{error}");
    // Nothing behind it was run.
    let views: u64 = target
        .row("SELECT COUNT(*) FROM information_schema.VIEWS WHERE TABLE_SCHEMA = 'shop'")
        .await;
    assert_eq!(views, 0);
}

#[tokio::test]
async fn a_row_of_200_mb_is_loaded_through_little_memory() {
    let source = Mysqld::start(&["--max-allowed-packet=1G", "--innodb-redo-log-capacity=2G"]).await;
    source
        .sql(
            "CREATE DATABASE w; CREATE TABLE w.t (n INT PRIMARY KEY, x LONGBLOB);
             SET SESSION sql_log_bin = 0; INSERT INTO w.t VALUES (1, REPEAT('x', 5));
             INSERT INTO w.t VALUES (2, REPEAT(RANDOM_BYTES(1000), 200000))",
        )
        .await;
    let pitr = Pitr::new(&[("shop-mysql", source.url())]);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    daemon.terminate(Duration::from_secs(30)).await;

    let target = Mysqld::start(&["--innodb-redo-log-capacity=2G"]).await;
    let to = format!("shop-mysql={}", target.url());
    let mut restoring = pitr.spawn(&["restore", "--to", "latest", "--target", &to]);
    let mut rss = 0;
    let status = loop {
        rss = restoring.rss_bytes_max_if_running().unwrap_or(0).max(rss);
        if let Some(status) = restoring.ended() {
            break status;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(status.success(), "{}", restoring.log());
    println!("the restore's largest resident memory: {} MB", rss / 1_000_000);
    assert!(rss > 10_000_000 && rss < 200_000_000, "{rss} bytes");
    let sum = "SELECT COUNT(*), SUM(LENGTH(x)), SUM(CRC32(x)) FROM w.t";
    let (here, there): ((u64, u64, u64), (u64, u64, u64)) =
        (source.row(sum).await, target.row(sum).await);
    assert_eq!(here, there);
    assert_eq!(here.1, 200_000_005);
}
