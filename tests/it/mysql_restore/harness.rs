//! What the tests of a MySQL restore share: baselines, logs from binlog files, moments, targets.

use crate::support::{Mysqld, eventually, program};
use bytes::Bytes;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, OptsBuilder};
use pitr::clock::Timestamp;
use pitr::engine::digest::Digest;
use pitr::engine::mysql::digest::{digest, digest_accounts};
use pitr::engine::mysql::{MysqlSource, MysqlTarget};
use pitr::engine::{Destination, Endpoint, Needs, Source, SourceOptions, Target, TargetOptions};
use pitr::error::{Error, Result};
use pitr::manifest::{BaselineMeta, EngineKind, FORMAT};
use pitr::position::Position;
use pitr::record::{Applied, BaselineTaken, Cut, LOG_HEAD_BYTES, OpenBaseline, OpenLog, Piece};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// A baseline as the archive would have it.
pub(crate) struct Taken {
    pub(crate) meta: BaselineMeta,
    pub(crate) bytes: Vec<u8>,
}

impl Taken {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    pub(crate) fn pieces(&self) -> OpenBaseline {
        let bytes = self.bytes.clone();
        Arc::new(move || Ok(pieces(&bytes)))
    }
}

pub(crate) fn pieces(bytes: &[u8]) -> mpsc::Receiver<Result<Bytes>> {
    let (tx, rx) = mpsc::channel(bytes.len() / 100_000 + 2);
    for part in bytes.chunks(100_000) {
        tx.try_send(Ok(Bytes::copy_from_slice(part))).unwrap();
    }
    rx
}

pub(crate) fn source_options(url: &str) -> SourceOptions {
    SourceOptions {
        name: "shop-mysql".into(),
        engine: EngineKind::Mysql,
        endpoint: Endpoint::parse(EngineKind::Mysql, url).unwrap(),
        standbys: vec![],
        sample_every: Duration::from_millis(100),
        dump_command: None,
        aof: None,
        databases: vec![],
        semi_sync: false,
        digests: true,
    }
}

pub(crate) async fn try_baseline(options: &SourceOptions) -> Result<(BaselineTaken, Vec<u8>)> {
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
pub(crate) async fn baseline(source: &Mysqld) -> Taken {
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
        contents: None,
    };
    Taken { meta, bytes }
}

pub(crate) async fn needs(source: &Mysqld) -> Needs {
    let (version, uuid) = source.row("SELECT @@version, @@server_uuid").await;
    Needs { version, origins: vec![source.server_id()], sources: vec![uuid], ..Needs::default() }
}

pub(crate) fn running(target: &Mysqld) -> MysqlTarget {
    let endpoint = Endpoint::parse(EngineKind::Mysql, &target.url()).unwrap();
    MysqlTarget::running(options(Destination::Running(endpoint.clone())), endpoint)
}

pub(crate) fn folder(dir: &Path) -> MysqlTarget {
    MysqlTarget::folder(options(Destination::Folder(dir.to_owned())), dir.to_owned())
}

pub(crate) fn options(destination: Destination) -> TargetOptions {
    TargetOptions {
        name: "shop-mysql".into(),
        engine: EngineKind::Mysql,
        destination,
        listen: None,
        apply: pitr::engine::Apply::default(),
        databases: vec![],
        expiry: pitr::engine::Expiry::default(),
        keys: pitr::engine::Keys::default(),
        in_place: false,
        leftover: pitr::engine::Leftover::default(),
        purpose: String::new(),
    }
}

/// The source's binlog as it is now, from a place on.
pub(crate) async fn log_of(source: &Mysqld, from: &Position) -> Vec<Piece> {
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
pub(crate) fn open_log(pieces: Vec<Piece>, error: Option<fn() -> Error>) -> OpenLog {
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
pub(crate) struct Moment {
    pub(crate) at: Timestamp,
    pub(crate) gtids: String,
    pub(crate) data: Digest,
    pub(crate) accounts: Digest,
    pub(crate) events: Vec<(String, String, String)>,
}

pub(crate) const EVENTS: &str =
    "SELECT EVENT_NAME, CAST(STATUS AS CHAR), DEFINER FROM information_schema.EVENTS ORDER BY 1";

pub(crate) async fn moment(server: &Mysqld) -> Moment {
    let mut conn = server.conn().await;
    moment_of(&mut conn).await
}

pub(crate) async fn moment_of(conn: &mut Conn) -> Moment {
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

pub(crate) fn assert_same(restored: &Moment, then: &Moment) {
    assert_eq!(restored.data.diff(&then.data), Vec::<String>::new());
    assert_eq!(restored.accounts.diff(&then.accounts), Vec::<String>::new());
    assert_eq!(restored.gtids, then.gtids);
    assert_eq!(restored.events, then.events);
}

/// The whole way into a target.
pub(crate) async fn restore(
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
pub(crate) struct OnFolder {
    child: Child,
    socket: std::path::PathBuf,
}

impl OnFolder {
    pub(crate) async fn start(dir: &Path) -> Self {
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

    pub(crate) fn opts(&self) -> OptsBuilder {
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
/// Events run as soon as they are there; none of them changes anything, so that a moment is one.
pub(crate) async fn work(source: &Mysqld) -> Vec<Moment> {
    let steps = [
        "INSERT INTO shop.t (s) VALUES ('one'), ('two'); UPDATE shop.t SET s = 'zwei' WHERE id = 2",
        "ALTER TABLE shop.t ADD COLUMN j JSON, ADD COLUMN d DATETIME(6) DEFAULT NOW(6);
         INSERT INTO shop.t (s, j) VALUES ('three', '{\"a\": [1, 2.5, null]}');
         CREATE EVENT shop.later ON SCHEDULE EVERY 1 DAY DO DELETE FROM shop.t WHERE id < 0;
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
pub(crate) async fn one_by_one(server: &Mysqld, statements: &str) {
    let mut conn = server.conn().await;
    for statement in statements.split(';').map(str::trim).filter(|s| !s.is_empty()) {
        conn.query_drop(statement).await.unwrap_or_else(|error| panic!("{error}: {statement}"));
    }
}

pub(crate) async fn shop(args: &[&str]) -> Mysqld {
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

/// Sends `pieces` slowly: a pause after each.
pub(crate) fn slow_log(pieces: Vec<Piece>, pause: Duration) -> OpenLog {
    let pieces = Arc::new(pieces);
    Arc::new(move || {
        let (tx, rx) = mpsc::channel(1);
        let pieces = Arc::clone(&pieces);
        tokio::spawn(async move {
            for piece in pieces.iter() {
                tokio::time::sleep(pause).await;
                if tx.send(Ok(piece.clone())).await.is_err() {
                    return;
                }
            }
        });
        rx
    })
}

/// Has `rows` transactions of one row each behind the baseline.
pub(crate) async fn counted(rows: u32) -> (Mysqld, Taken) {
    let source = Mysqld::start(&[]).await;
    source
        .sql("CREATE DATABASE shop; CREATE TABLE shop.n (id INT PRIMARY KEY, s VARBINARY(2000))")
        .await;
    let taken = baseline(&source).await;
    let mut conn = source.conn().await;
    for id in 0..rows {
        let insert = format!("INSERT INTO shop.n VALUES ({id}, REPEAT('x', 1000))");
        conn.query_drop(insert).await.unwrap();
    }
    (source, taken)
}

/// GTID, end and commit time of each transaction in a file, as the stock tool has them.
pub(crate) fn transactions(source: &Mysqld, file: &str) -> Vec<(u64, i64)> {
    let output = Command::new(program("mysqlbinlog"))
        .args(["--no-defaults", "--base64-output=DECODE-ROWS"])
        .arg(source.datadir().join(file))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut found = vec![];
    let mut at = 0;
    for line in text.lines() {
        if let Some(offset) = line.strip_prefix("# at ") {
            at = offset.parse().unwrap();
        }
        if let Some(rest) = line.strip_prefix("# immediate_commit_timestamp=") {
            let micros = rest.split(' ').next().unwrap().parse().unwrap();
            found.push((at, micros));
        }
    }
    found
}
