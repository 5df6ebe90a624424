//! MySQL baselines, and the way back: into a running server and into a folder.
//!
//! The log comes straight from the source's binlog files, so nothing of the archive takes part.

use crate::support::{Mysqld, eventually, program};
use bytes::Bytes;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, OptsBuilder};
use pitr::clock::Timestamp;
use pitr::engine::digest::Digest;
use pitr::engine::mysql::digest::{digest, digest_accounts};
use pitr::engine::mysql::{MysqlSource, MysqlTarget};
use pitr::engine::{Destination, Endpoint, Needs, Source, SourceOptions, Target, TargetOptions};
use pitr::error::{Class, Error, Result};
use pitr::manifest::{BaselineMeta, EngineKind, FORMAT};
use pitr::position::Position;
use pitr::record::{Applied, BaselineTaken, Cut, LOG_HEAD_BYTES, OpenLog, Piece};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// A baseline as the archive would have it.
struct Taken {
    meta: BaselineMeta,
    bytes: Vec<u8>,
}

impl Taken {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    fn pieces(&self) -> mpsc::Receiver<Result<Bytes>> {
        pieces(&self.bytes)
    }
}

fn pieces(bytes: &[u8]) -> mpsc::Receiver<Result<Bytes>> {
    let (tx, rx) = mpsc::channel(bytes.len() / 100_000 + 2);
    for part in bytes.chunks(100_000) {
        tx.try_send(Ok(Bytes::copy_from_slice(part))).unwrap();
    }
    rx
}

fn source_options(url: &str) -> SourceOptions {
    SourceOptions {
        name: "shop-mysql".into(),
        engine: EngineKind::Mysql,
        endpoint: Endpoint::parse(EngineKind::Mysql, url).unwrap(),
        sample_every: Duration::from_millis(100),
        dump_command: None,
    }
}

async fn try_baseline(options: &SourceOptions) -> Result<(BaselineTaken, Vec<u8>)> {
    let (tx, mut rx) = mpsc::channel::<Bytes>(4);
    let collect = tokio::spawn(async move {
        let mut bytes = vec![];
        while let Some(piece) = rx.recv().await {
            assert!(piece.len() <= 256 << 10);
            bytes.extend_from_slice(&piece);
        }
        bytes
    });
    let taken = MysqlSource::new(options.clone()).baseline(tx).await;
    let bytes = collect.await.unwrap();
    Ok((taken?, bytes))
}

/// Takes a baseline of a server that nobody writes to meanwhile.
async fn baseline(source: &Mysqld) -> Taken {
    let (taken, bytes) = try_baseline(&source_options(&source.url())).await.unwrap();
    let mut position = taken.position;
    position.gtids = source.gtid_executed().await;
    let meta = BaselineMeta {
        format: FORMAT,
        archive: "a".into(),
        source: "shop-mysql".into(),
        engine: EngineKind::Mysql,
        server: taken.server,
        timeline: 1,
        name: "base.sql.zst".into(),
        position,
        at: taken.at,
        begun_at: taken.at,
        finished_at: taken.at,
        bytes_raw: bytes.len() as u64,
        bytes_stored: 0,
        digest: String::new(),
    };
    Taken { meta, bytes }
}

async fn needs(source: &Mysqld) -> Needs {
    let (version, uuid) = source.row("SELECT @@version, @@server_uuid").await;
    Needs { version, origins: vec![source.server_id()], sources: vec![uuid] }
}

fn running(target: &Mysqld) -> MysqlTarget {
    let endpoint = Endpoint::parse(EngineKind::Mysql, &target.url()).unwrap();
    MysqlTarget::running(options(Destination::Running(endpoint.clone())), endpoint)
}

fn folder(dir: &Path) -> MysqlTarget {
    MysqlTarget::folder(options(Destination::Folder(dir.to_owned())), dir.to_owned())
}

fn options(destination: Destination) -> TargetOptions {
    TargetOptions {
        name: "shop-mysql".into(),
        engine: EngineKind::Mysql,
        destination,
        listen: None,
    }
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
async fn definitions_made_by_several_statements_at_once_come_through_exactly() {
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
             CREATE VIEW shop.v AS SELECT shop.f() AS f; DO 0",
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

/// The source's binlog as it is now, from a place on.
async fn log_of(source: &Mysqld, from: &Position) -> Vec<Piece> {
    let logs: Vec<(String, u64, String)> = source.rows("SHOW BINARY LOGS").await;
    let mut pieces = vec![];
    for (name, ..) in logs.into_iter().skip_while(|(name, ..)| *name != from.log) {
        let mut bytes = std::fs::read(source.datadir().join(&name)).unwrap();
        // On the disk the open file is marked as such, which it never is on the wire.
        bytes[4 + 17] &= !1;
        let bytes = Bytes::from(bytes);
        let start = if name == from.log { from.offset } else { 0 };
        let head = bytes.slice(..bytes.len().min(LOG_HEAD_BYTES));
        pieces.push(Piece::Log { at: Position::new(name, start), head });
        let rest = bytes.slice(start as usize..);
        // Sizes that fit nothing.
        for at in (0..rest.len()).step_by(77_777) {
            pieces.push(Piece::Bytes(rest.slice(at..rest.len().min(at + 77_777))));
        }
    }
    pieces
}

/// Reads `pieces` as often as wanted, with an error behind them if there is one.
fn open_log(pieces: Vec<Piece>, error: Option<fn() -> Error>) -> OpenLog {
    let pieces = Arc::new(pieces);
    Arc::new(move || {
        let (tx, rx) = mpsc::channel(4);
        let pieces = Arc::clone(&pieces);
        tokio::spawn(async move {
            for piece in pieces.iter() {
                if tx.send(Ok(piece.clone())).await.is_err() {
                    return;
                }
            }
            if let Some(error) = error {
                drop(tx.send(Err(error())).await);
            }
        });
        rx
    })
}

/// What a server was like at an instant.
struct Moment {
    at: Timestamp,
    gtids: String,
    data: Digest,
    accounts: Digest,
    events: Vec<(String, String, String)>,
}

const EVENTS: &str =
    "SELECT EVENT_NAME, CAST(STATUS AS CHAR), DEFINER FROM information_schema.EVENTS ORDER BY 1";

async fn moment(server: &Mysqld) -> Moment {
    let mut conn = server.conn().await;
    moment_of(&mut conn).await
}

async fn moment_of(conn: &mut Conn) -> Moment {
    let at: i64 = conn
        .query_first("SELECT CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000000 AS SIGNED)")
        .await
        .unwrap()
        .unwrap();
    let gtids: String = conn.query_first("SELECT @@GLOBAL.gtid_executed").await.unwrap().unwrap();
    let events = conn.query(EVENTS).await.unwrap();
    let data = digest(conn).await.unwrap();
    let accounts = digest_accounts(conn).await.unwrap();
    Moment {
        at: Timestamp::from_micros(at),
        gtids: gtids.replace('\n', ""),
        data,
        accounts,
        events,
    }
}

fn assert_same(restored: &Moment, then: &Moment) {
    assert_eq!(restored.data.diff(&then.data), Vec::<String>::new());
    assert_eq!(restored.accounts.diff(&then.accounts), Vec::<String>::new());
    assert_eq!(restored.gtids, then.gtids);
    assert_eq!(restored.events, then.events);
}

/// The whole way into a target.
async fn restore(
    to: &mut MysqlTarget,
    needs: &Needs,
    taken: &Taken,
    log: OpenLog,
    cut: &Cut,
) -> Result<(Applied, String)> {
    to.preflight(needs).await?;
    to.load(&taken.meta, taken.pieces()).await?;
    let applied = to.replay(&taken.meta, log, cut).await?;
    let said = to.finish(&applied).await?;
    Ok((applied, said))
}

/// A server on a restored folder, ended when dropped.
struct OnFolder {
    child: Child,
    socket: std::path::PathBuf,
}

impl OnFolder {
    async fn start(dir: &Path) -> Self {
        let socket = dir.parent().unwrap().join("sock");
        let child = Command::new(program("mysqld"))
            .arg("--no-defaults")
            .args(["--user=root", "--skip-networking", "--mysqlx=OFF"])
            .arg(format!("--datadir={}", dir.join("data").display()))
            .arg(format!("--socket={}", socket.display()))
            .arg(format!("--log-error={}", dir.parent().unwrap().join("err").display()))
            .args(["--gtid-mode=ON", "--enforce-gtid-consistency=ON"])
            .args(["--innodb-buffer-pool-size=64M", "--event-scheduler=OFF"])
            .spawn()
            .unwrap();
        let server = Self { child, socket };
        eventually("the restored folder's server answers", Duration::from_mins(1), async || {
            Conn::new(server.opts()).await.ok()
        })
        .await;
        server
    }

    fn opts(&self) -> OptsBuilder {
        OptsBuilder::default().socket(Some(self.socket.display().to_string())).user(Some("root"))
    }
}

impl Drop for OnFolder {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Work with everything that has to come through, with moments between.
async fn work(source: &Mysqld) -> Vec<Moment> {
    let steps = [
        "INSERT INTO shop.t (s) VALUES ('one'), ('two'); UPDATE shop.t SET s = 'zwei' WHERE id = 2",
        "ALTER TABLE shop.t ADD COLUMN j JSON, ADD COLUMN d DATETIME(6) DEFAULT NOW(6);
         INSERT INTO shop.t (s, j) VALUES ('three', '{\"a\": [1, 2.5, null]}');
         CREATE EVENT shop.later ON SCHEDULE EVERY 1 DAY DO INSERT INTO shop.t (s) VALUES ('x');
         ALTER EVENT shop.running DISABLE; SET GLOBAL event_scheduler = ON;
         CREATE USER later@localhost IDENTIFIED BY 'l'; GRANT reader TO later@localhost;
         ALTER USER app@'%' IDENTIFIED BY 'changed'",
        "FLUSH BINARY LOGS; DELETE FROM shop.t WHERE id = 1;
         ALTER EVENT shop.stopped ENABLE; ALTER EVENT shop.later ON SCHEDULE EVERY 2 DAY;
         CREATE TRIGGER shop.tr BEFORE INSERT ON shop.t FOR EACH ROW SET NEW.s = UPPER(NEW.s);
         INSERT INTO shop.t (s) VALUES ('four')",
        "SET SESSION binlog_transaction_compression = ON;
         INSERT INTO shop.t (s) SELECT REPEAT(s, 100) FROM shop.t; DROP EVENT shop.running;
         DROP USER later@localhost",
        "CREATE DATABASE other; CREATE TABLE other.nopk (a INT, b BIT(7)); FLUSH BINARY LOGS;
         INSERT INTO other.nopk VALUES (1, b'101'), (1, b'101'); TRUNCATE shop.t;
         DROP TABLE shop.t",
    ];
    let mut moments = vec![moment(source).await];
    for step in steps {
        source.sql(step).await;
        moments.push(moment(source).await);
    }
    moments
}

/// Runs the statements one by one in one session, as a client does that sends no two at once.
async fn one_by_one(server: &Mysqld, statements: &str) {
    let mut conn = server.conn().await;
    for statement in statements.split(';').map(str::trim).filter(|s| !s.is_empty()) {
        conn.query_drop(statement).await.unwrap_or_else(|error| panic!("{error}: {statement}"));
    }
}

async fn shop(args: &[&str]) -> Mysqld {
    let source = Mysqld::start(args).await;
    one_by_one(
        &source,
        "CREATE DATABASE shop;
             CREATE TABLE shop.t (id INT PRIMARY KEY AUTO_INCREMENT, s TEXT);
             CREATE EVENT shop.running ON SCHEDULE EVERY 1 DAY DO DELETE FROM shop.t WHERE id < 0;
             CREATE EVENT shop.stopped ON SCHEDULE EVERY 1 DAY DISABLE DO DELETE FROM shop.t;
             CREATE ROLE reader; GRANT SELECT ON shop.* TO reader;
             CREATE USER app@'%' IDENTIFIED BY 'x'; GRANT reader TO app@'%'",
    )
    .await;
    source
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
            "CREATE USER part@'%'; GRANT SELECT ON *.* TO part@'%';
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
