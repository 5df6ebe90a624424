//! A load that is interrupted goes on with the tables that are whole, and nothing of it comes in
//! twice or gets lost: whether pitr is killed, its connections are, or the server.

use crate::instants::until_windows;
use crate::support::{Daemon, Mariadbd, Mysqld, Pitr, eventually};
use mysql_async::prelude::Queryable;
use pitr::engine::mysql::digest::digest;
use std::time::Duration;

/// How long a moment of a load is waited for.
const MOMENT: Duration = Duration::from_secs(90);
/// How long a restore may take that is not disturbed any more.
const END: Duration = Duration::from_mins(3);

/// Where an earlier place in the log is kept, beside the archive.
const EARLIER: &str = "earlier";

/// The mark's lock, and the part of the names of the other connections' locks.
const LOCK: &str = "pitr_unfinished_restore";

/// Run one by one. `a.big` and `b.big` are filled later; their keys wait. The trigger spoils rows
/// that come in behind it; the event spoils a table, if it ever runs while `b.zz` is not there.
const SCHEMA: [&str; 12] = [
    "CREATE DATABASE a",
    "CREATE DATABASE b",
    "CREATE TABLE a.aaa (id INT PRIMARY KEY AUTO_INCREMENT, s VARCHAR(200), KEY s (s))",
    "CREATE TABLE a.big (id INT PRIMARY KEY, n INT, s CHAR(250), KEY s (s), KEY n (n, s))",
    "CREATE TABLE a.no_key (n INT, s CHAR(250), KEY n (n))",
    "CREATE TABLE a.old (id INT PRIMARY KEY, s CHAR(250), KEY s (s)) ENGINE = MyISAM",
    "CREATE TRIGGER a.spoils BEFORE INSERT ON a.big FOR EACH ROW SET NEW.n = -1",
    "CREATE VIEW a.v AS SELECT id, n FROM a.big",
    "CREATE FUNCTION a.f () RETURNS INT DETERMINISTIC RETURN 7",
    "CREATE EVENT a.e ON SCHEDULE EVERY 1 SECOND DO INSERT INTO a.aaa (s) SELECT 'event' \
     FROM (SELECT COUNT(*) AS n FROM information_schema.TABLES \
     WHERE TABLE_SCHEMA = 'b' AND TABLE_NAME = 'zz') AS t WHERE n = 0",
    "CREATE TABLE b.big (id INT PRIMARY KEY, n INT, s CHAR(250), KEY s (s), KEY n (n, s), \
     CONSTRAINT to_a FOREIGN KEY (id) REFERENCES a.big (id))",
    "CREATE TABLE b.zz (id INT PRIMARY KEY)",
];

/// Tables, and how many rows they get.
const ROWS: [(&str, u32); 5] = [
    ("a.aaa (id, s)", 500),
    ("a.big (id, s)", 90_000),
    ("a.no_key (n, s)", 9_000),
    ("a.old (id, s)", 9_000),
    ("b.big (id, s)", 50_000),
];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Mysql,
    Mariadb,
}

impl Kind {
    async fn start(self, args: &[&str]) -> Mysqld {
        match self {
            Self::Mysql => Mysqld::start(args).await,
            Self::Mariadb => Mariadbd::start(args).await,
        }
    }
}

/// A source with an archive of it, and transactions behind the baseline.
async fn archived(kind: Kind) -> (Mysqld, Pitr) {
    let source = kind.start(&["--event-scheduler=OFF", "--max-allowed-packet=64M"]).await;
    let mut conn = source.conn().await;
    for statement in SCHEMA {
        conn.query_drop(statement).await.unwrap_or_else(|error| panic!("{error}: {statement}"));
    }
    for (table, rows) in ROWS {
        let filled = format!(
            "INSERT INTO {table} SELECT d1.i + 10 * d2.i + 100 * d3.i + 1000 * d4.i + 10000 * d5.i \
             + 1 AS id, RPAD(SHA2(d1.i + 10 * d2.i + 100 * d3.i + 1000 * d4.i + 10000 * d5.i, 512), \
             150, 'x') FROM d d1, d d2, d d3, d d4, d d5 HAVING id <= {rows} ORDER BY id"
        );
        conn.query_drop("CREATE DATABASE scratch; USE scratch; CREATE TABLE d (i INT)")
            .await
            .unwrap();
        let digits = "INSERT INTO d VALUES (0), (1), (2), (3), (4), (5), (6), (7), (8), (9)";
        conn.query_drop(digits).await.unwrap();
        conn.query_drop(&filled).await.unwrap_or_else(|error| panic!("{error}: {filled}"));
        conn.query_drop("DROP DATABASE scratch").await.unwrap();
    }
    conn.query_drop("UPDATE a.big SET n = id % 100; UPDATE b.big SET n = id % 100").await.unwrap();
    conn.query_drop("CREATE USER app@'%' IDENTIFIED BY 'x'").await.unwrap();
    let pitr = Pitr::new(&[("shop", source.url())]);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    conn.query_drop("UPDATE a.big SET n = 1000 WHERE id < 50").await.unwrap();
    let (file, offset) = place(&source).await;
    std::fs::write(pitr.dir().join(EARLIER), format!("{file}:{offset}")).unwrap();
    conn.query_drop("INSERT INTO b.zz VALUES (1)").await.unwrap();
    let place: (String, u64) = place(&source).await;
    eventually("everything is in the archive", MOMENT, async || {
        let place = format!("{}:{}", place.0, place.1);
        let plan = ["restore", "--plan", "--to-position", &place];
        (pitr.run(&plan).await.code() == Some(0)).then_some(())
    })
    .await;
    daemon.terminate(Duration::from_secs(20)).await;
    (source, pitr)
}

/// Where the source's log ends.
async fn place(source: &Mysqld) -> (String, u64) {
    let status = if source.is_mariadb() { "SHOW MASTER STATUS" } else { "SHOW BINARY LOG STATUS" };
    let row: mysql_async::Row = source.row(status).await;
    (row.get(0).unwrap(), row.get(1).unwrap())
}

/// The restore that is interrupted, and run again.
struct Restore<'a> {
    pitr: &'a Pitr,
    args: Vec<String>,
}

impl<'a> Restore<'a> {
    async fn new(pitr: &'a Pitr, source: &Mysqld, target: &Mysqld) -> Self {
        let (file, offset) = place(source).await;
        let (at, to) = (format!("{file}:{offset}"), format!("shop={}", target.url()));
        let args = ["restore", "--to-position", &at, "--target", &to, "--json"];
        Self { pitr, args: args.map(str::to_owned).to_vec() }
    }

    fn spawn(&self) -> Daemon {
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        self.pitr.spawn(&args)
    }

    async fn run(&self) -> crate::support::Output {
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        self.pitr.run(&args).await
    }
}

/// Waits for the end of a restore, which must have succeeded.
async fn ends_well(mut restore: Daemon) -> String {
    let status = eventually("the restore ends", END, async || restore.ended()).await;
    assert!(status.success(), "{status}:\n{}", restore.log());
    restore.log()
}

/// The first value of an answer, if there is one.
async fn ask<T: mysql_async::prelude::FromRow + Send + 'static>(
    target: &Mysqld,
    query: &str,
) -> Option<T> {
    let mut conn = mysql_async::Conn::new(target.opts()).await.ok()?;
    conn.query_first(query).await.ok().flatten()
}

/// Whether this is noted as whole.
async fn is_noted(target: &Mysqld, name: &str) -> bool {
    let query = format!("SELECT 1 FROM pitr_unfinished_restore.loaded WHERE name = '{name}'");
    ask::<u8>(target, &query).await.is_some()
}

/// Waits until rows of a table are coming in, and all before it are noted.
async fn is_filled(target: &Mysqld, restore: &mut Daemon, table: &str) {
    eventually(&format!("{table} is filled"), MOMENT, async || {
        assert!(restore.ended().is_none(), "ended early:\n{}", restore.log());
        ask::<u32>(target, &format!("SELECT id FROM {table} LIMIT 1")).await
    })
    .await;
}

/// Holds the load up among the rows of `a.big`. Gives the connection that does, until it unlocks
/// tables, and the number of one whose rows have to wait.
async fn held(target: &Mysqld, restore: &mut Daemon) -> (mysql_async::Conn, u64) {
    is_filled(target, restore, "a.big").await;
    let mut lock = target.conn().await;
    lock.query_drop("FLUSH TABLES WITH READ LOCK").await.unwrap();
    let waits = eventually("rows wait", MOMENT, async || {
        assert!(!is_noted(target, "`a`.`big`").await, "too late: more rows are needed");
        let waiting = "SELECT ID FROM information_schema.PROCESSLIST \
                       WHERE STATE LIKE 'Waiting for%' AND INFO LIKE 'INSERT INTO%'";
        ask::<u64>(target, waiting).await
    })
    .await;
    (lock, waits)
}

/// Which table this is: another number for each that is made.
async fn table_id(target: &Mysqld, name: &str) -> u64 {
    let of = if target.is_mariadb() { "INNODB_SYS_TABLES" } else { "INNODB_TABLES" };
    target.row(&format!("SELECT TABLE_ID FROM information_schema.{of} WHERE NAME = '{name}'")).await
}

async fn holder(target: &Mysqld, lock: &str) -> Option<u64> {
    ask::<Option<u64>>(target, &format!("SELECT IS_USED_LOCK('{lock}')")).await.flatten()
}

async fn end_session(target: &Mysqld, lock: &str) {
    let id =
        eventually("the connection is there", MOMENT, async || holder(target, lock).await).await;
    target.sql(&format!("KILL {id}")).await;
}

/// What has to be the same in the end.
async fn assert_same(source: &Mysqld, target: &Mysqld) {
    let of = async |server: &Mysqld| {
        let mut conn = server.conn().await;
        let data = digest(&mut conn).await.unwrap();
        let objects: Vec<(String, String)> = conn
            .query(
                "SELECT TABLE_NAME, COLUMN_NAME FROM information_schema.STATISTICS \
                 WHERE TABLE_SCHEMA IN ('a', 'b') UNION ALL SELECT 'trigger', TRIGGER_NAME FROM \
                 information_schema.TRIGGERS WHERE TRIGGER_SCHEMA IN ('a', 'b') UNION ALL \
                 SELECT 'routine', ROUTINE_NAME FROM information_schema.ROUTINES WHERE \
                 ROUTINE_SCHEMA IN ('a', 'b') UNION ALL SELECT 'event', EVENT_NAME FROM \
                 information_schema.EVENTS UNION ALL SELECT 'schema', SCHEMA_NAME FROM \
                 information_schema.SCHEMATA ORDER BY 1, 2",
            )
            .await
            .unwrap();
        let order: Option<String> = conn
            .query_first(
                "SELECT SHA2(GROUP_CONCAT(CRC32(CONCAT(n, s)) SEPARATOR ''), 256) FROM a.no_key",
            )
            .await
            .unwrap();
        (data, objects, order)
    };
    let (then, now) = (of(source).await, of(target).await);
    assert_eq!(now.0.diff(&then.0), [""; 0]);
    assert_eq!(now.1, then.1);
    assert_eq!(now.2, then.2);
}

async fn killed(kind: Kind) {
    let (source, pitr) = archived(kind).await;
    let target = kind.start(&["--max-allowed-packet=64M", "--event-scheduler=OFF"]).await;
    let restore = Restore::new(&pitr, &source, &target).await;

    // Among the rows of a table, with statements under way that the server cannot end by itself:
    // they wait for a lock, and would come in later.
    let mut first = restore.spawn();
    let (mut lock, _) = held(&target, &mut first).await;
    assert!(is_noted(&target, "`a`.`aaa`").await);
    first.kill();
    let small = table_id(&target, "a/aaa").await;
    let large = table_id(&target, "a/big").await;
    let mut second = restore.spawn();
    eventually("what still ran is ended", MOMENT, async || {
        for number in 0..9 {
            // The new attempt has no connections yet that load.
            if holder(&target, &format!("{LOCK}.{number}")).await.is_some() {
                return None;
            }
        }
        Some(())
    })
    .await;
    lock.query_drop("UNLOCK TABLES").await.unwrap();

    // Among those of the other schema: triggers, views, routines and events of the first are made.
    is_filled(&target, &mut second, "b.big").await;
    assert_ne!(table_id(&target, "a/big").await, large, "a table that was not whole has stayed");
    second.kill();
    let large = table_id(&target, "a/big").await;
    assert!(is_noted(&target, "`a`.`big`").await && is_noted(&target, "EVENTS").await);
    assert!(!is_noted(&target, "`a`.`old`").await, "MyISAM is not safe");

    // Another restore is refused, and so is one to another instant.
    let mut other = Restore::new(&pitr, &source, &target).await;
    other.args[2] = std::fs::read_to_string(pitr.dir().join(EARLIER)).unwrap();
    let free = async || {
        let output = other.run().await;
        // The server may still be about to notice that the connection is gone.
        (output.code() != Some(7)).then_some(output)
    };
    let error = eventually("the lock is free", MOMENT, free).await.exits(6).error_json();
    assert!(error["message"].as_str().unwrap().contains("half restored"), "{error}");
    assert!(error["hint"].as_str().unwrap().contains("goes on"), "{error}");
    let plan = ["restore", "--plan", "--json", "--to-position", &restore.args[2], "--target"];
    pitr.run(&[&plan[..], &[&restore.args[4]]].concat()).await.ok();
    assert!(is_noted(&target, "`a`.`big`").await, "a plan changes nothing");

    restore.run().await.ok();
    assert_eq!(table_id(&target, "a/aaa").await, small);
    assert_eq!(table_id(&target, "a/big").await, large);
    assert_same(&source, &target).await;
}

#[tokio::test]
async fn a_mysql_load_goes_on_wherever_pitr_was_killed() {
    killed(Kind::Mysql).await;
}

#[tokio::test]
async fn a_mariadb_load_goes_on_wherever_pitr_was_killed() {
    killed(Kind::Mariadb).await;
}

async fn connections_lost(kind: Kind) {
    let (source, pitr) = archived(kind).await;
    let target = kind.start(&["--max-allowed-packet=64M", "--event-scheduler=OFF"]).await;
    let restore = Restore::new(&pitr, &source, &target).await;
    let mut running = restore.spawn();
    let (mut lock, waits) = held(&target, &mut running).await;
    let small = table_id(&target, "a/aaa").await;
    lock.query_drop(format!("KILL {waits}")).await.unwrap();
    lock.query_drop("UNLOCK TABLES").await.unwrap();
    eventually("it has noticed", MOMENT, async || {
        running.log().contains("the load goes on").then_some(())
    })
    .await;
    is_filled(&target, &mut running, "a.big").await;
    end_session(&target, &format!("{LOCK}.0")).await;
    is_filled(&target, &mut running, "b.big").await;
    // The one that waits until all is loaded.
    end_session(&target, LOCK).await;
    let log = ends_well(running).await;
    assert_eq!(log.matches("the load goes on").count(), 3, "{log}");
    assert_same(&source, &target).await;
    assert_eq!(table_id(&target, "a/aaa").await, small);
}

#[tokio::test]
async fn a_mysql_load_goes_on_when_its_connections_are_lost() {
    connections_lost(Kind::Mysql).await;
}

#[tokio::test]
async fn a_mariadb_load_goes_on_when_its_connections_are_lost() {
    connections_lost(Kind::Mariadb).await;
}

#[tokio::test]
async fn a_load_whose_connections_are_lost_again_and_again_is_given_up_and_can_be_run_again() {
    let (source, pitr) = archived(Kind::Mysql).await;
    let target = Mysqld::start(&["--max-allowed-packet=64M"]).await;
    let restore = Restore::new(&pitr, &source, &target).await;
    let mut running = restore.spawn();
    let status = eventually("it gives up", END, async || {
        let loads = ask::<u32>(&target, "SELECT id FROM a.big LIMIT 1").await.is_some();
        if loads && let Some(id) = holder(&target, &format!("{LOCK}.0")).await {
            let mut conn = target.conn().await;
            // It may have ended by itself.
            drop(conn.query_drop(format!("KILL {id}")).await);
        }
        running.ended()
    })
    .await;
    assert_eq!(status.code(), Some(3), "{}", running.log());
    let log = running.log();
    assert!(log.contains("given up after 5 attempts"), "{log}");
    assert!(log.contains("run the same restore again"), "{log}");
    restore.run().await.ok();
    assert_same(&source, &target).await;
}

/// Kills the server among the rows of `table`, and starts it again.
async fn server_lost(kind: Kind, table: &str) {
    let (source, pitr) = archived(kind).await;
    let mut target = kind.start(&["--max-allowed-packet=64M", "--event-scheduler=ON"]).await;
    let restore = Restore::new(&pitr, &source, &target).await;
    let mut running = restore.spawn();
    is_filled(&target, &mut running, table).await;
    running.signal("STOP");
    let small = table_id(&target, "a/aaa").await;
    let count = "SELECT COUNT(*) FROM a.aaa";
    let rows: u64 = target.row(count).await;
    let events = is_noted(&target, "EVENTS").await;
    assert_eq!(events, table.starts_with('b'));
    target.kill();
    target.restart().await;
    if events {
        // What the source's own event does as soon as it may.
        eventually("the event runs", MOMENT, async || {
            ask::<u64>(&target, count).await.filter(|now| *now > rows)
        })
        .await;
    }
    running.signal("CONT");
    let log = ends_well(running).await;
    assert!(log.contains("the load goes on"), "{log}");
    assert_eq!(log.contains("starts anew"), events, "{log}");
    assert_eq!(table_id(&target, "a/aaa").await == small, !events);
    assert_same(&source, &target).await;
}

#[tokio::test]
async fn a_mysql_load_goes_on_when_the_server_crashed_and_came_back() {
    server_lost(Kind::Mysql, "a.big").await;
}

#[tokio::test]
async fn a_mariadb_load_goes_on_when_the_server_crashed_and_came_back() {
    server_lost(Kind::Mariadb, "a.big").await;
}

#[tokio::test]
async fn a_mysql_load_starts_anew_when_an_event_may_have_run_meanwhile() {
    server_lost(Kind::Mysql, "b.big").await;
}

#[tokio::test]
async fn a_mariadb_load_starts_anew_when_an_event_may_have_run_meanwhile() {
    server_lost(Kind::Mariadb, "b.big").await;
}
