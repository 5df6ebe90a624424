//! MySQL baselines, and the way back: into a running server and into a folder.
//!
//! The log comes straight from the source's binlog files, so nothing of the archive takes part.

use crate::support::Mysqld;
use bytes::Bytes;
use pitr::clock::Timestamp;
use pitr::engine::mysql::{MysqlSource, MysqlTarget};
use pitr::engine::{Destination, Endpoint, Needs, Source, SourceOptions, Target, TargetOptions};
use pitr::error::{Class, Result};
use pitr::manifest::{BaselineMeta, EngineKind, FORMAT};
use pitr::record::BaselineTaken;
use std::path::Path;
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
            use mysql_async::prelude::Queryable;
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
