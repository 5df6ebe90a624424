//! What the tests of a MariaDB restore share: a source with everything in its log that MariaDB
//! has of its own, moments of it, targets.

use crate::mysql_restore::harness::Taken;
use crate::support::{Mariadbd, Mysqld, eventually, program};
use bytes::Bytes;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, OptsBuilder};
use pitr::clock::Timestamp;
use pitr::engine::Needs;
use pitr::engine::digest::Digest;
use pitr::engine::mysql::digest::digest;
use pitr::manifest::{BaselineMeta, EngineKind, FORMAT};
use pitr::position::Position;
use pitr::record::{LOG_HEAD_BYTES, Piece, Server};
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The series that a test is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Series {
    Maria10_5,
    Maria10,
    Maria11,
}

impl Series {
    pub(crate) async fn start(self, args: &[&str]) -> Mysqld {
        match self {
            Self::Maria10_5 => Mariadbd::start_10_5(args).await,
            Self::Maria10 => Mariadbd::start(args).await,
            Self::Maria11 => Mariadbd::start_11_8(args).await,
        }
    }

    pub(crate) fn named(self, name: &str) -> String {
        match self {
            Self::Maria10_5 => format!("{name}-10.5"),
            Self::Maria10 => name.to_owned(),
            Self::Maria11 => format!("{name}-11.8"),
        }
    }
}

/// Options of a source with large rows, and with functions that no other server lets be created.
pub(crate) const SOURCE: [&str; 3] =
    ["--max-allowed-packet=64M", "--event-scheduler=ON", "--log-bin-trust-function-creators=ON"];

/// The end of the source's log.
pub(crate) async fn end_of_log(server: &Mysqld) -> Position {
    let (log, offset): (String, u64) = {
        let row: (String, u64, String, String) = server.row("SHOW MASTER STATUS").await;
        (row.0, row.1)
    };
    let mut position = Position::new(log, offset);
    position.gtids = server.row("SELECT @@gtid_binlog_state").await;
    position
}

/// A dump of a server that nobody writes to, in the form of a baseline.
pub(crate) async fn dumped(source: &Mysqld, series: Series) -> Taken {
    let position = end_of_log(source).await;
    let version: String = source.row("SELECT @@version").await;
    let schemas: Vec<String> = source
        .rows(
            "SELECT SCHEMA_NAME FROM information_schema.SCHEMATA WHERE SCHEMA_NAME NOT IN \
             ('mysql', 'information_schema', 'performance_schema', 'sys')",
        )
        .await;
    let output = Command::new(program(&series.named("mariadb-dump")))
        .args(["--no-defaults", "--user=root", "--single-transaction", "--routines", "--events"])
        .args(["--triggers", "--hex-blob", "--max-allowed-packet=64M"])
        .arg(format!("--socket={}", source.socket().display()))
        .arg("--databases")
        .args(&schemas)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut text = format!(
        "-- pitr: baseline 1 mark {{\"version\":\"{version}\",\"lower_case_table_names\":0,\
         \"partial_revokes\":false,\"page_bytes\":16384}}\n"
    )
    .into_bytes();
    text.extend(output.stdout);
    let mut accounts = String::from("\n-- pitr: accounts mark\n");
    for sql in ["CREATE USER IF NOT EXISTS root@localhost", "GRANT ALL ON *.* TO root@localhost"] {
        let account = "-- pitr: account {\"user\":\"root\",\"host\":\"localhost\"}";
        writeln!(accounts, "{account}\n{sql};").unwrap();
    }
    accounts.push_str("FLUSH PRIVILEGES;\n-- pitr: end mark\n");
    text.extend(accounts.into_bytes());
    let now = Timestamp::now();
    let meta = BaselineMeta {
        format: FORMAT,
        archive: "a".into(),
        source: "shop-maria".into(),
        engine: EngineKind::Mysql,
        server: Server { version, ..Server::default() },
        timeline: 1,
        name: "base.sql.zst".into(),
        position,
        at: now,
        begun_at: now,
        finished_at: now,
        bytes_raw: text.len() as u64,
        bytes_stored: 0,
        digest: String::new(),
        contents: None,
    };
    Taken { meta, bytes: text }
}

pub(crate) async fn needs(source: &Mysqld) -> Needs {
    let version = source.row("SELECT @@version").await;
    Needs { version, origins: vec![source.server_id()], ..Needs::default() }
}

/// The source's binlog as it is now, from a place on.
pub(crate) async fn log_of(source: &Mysqld, from: &Position) -> Vec<Piece> {
    let logs: Vec<(String, u64)> = source.rows("SHOW BINARY LOGS").await;
    let mut pieces = vec![];
    for (name, _) in logs.into_iter().skip_while(|(name, _)| *name != from.log) {
        let mut bytes = std::fs::read(source.datadir().join(&name)).unwrap();
        // On the disk the open file is marked as such, which it never is on the wire.
        bytes[4 + 17] &= !1;
        let bytes = Bytes::from(bytes);
        let start = if name == from.log { from.offset } else { 0 };
        let head = bytes.slice(..bytes.len().min(LOG_HEAD_BYTES));
        pieces.push(Piece::Log { at: Position::new(name, start), head });
        let rest = bytes.slice(start as usize..);
        for at in (0..rest.len()).step_by(77_777) {
            pieces.push(Piece::Bytes(rest.slice(at..rest.len().min(at + 77_777))));
        }
    }
    pieces
}

/// What a server was like at an instant.
#[derive(Debug)]
pub(crate) struct Moment {
    pub(crate) step: &'static str,
    pub(crate) at: Timestamp,
    pub(crate) place: Position,
    pub(crate) seen: Seen,
}

/// What of it a restored server has to have too.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) data: Digest,
    pub(crate) events: Vec<(String, String, String)>,
    /// Every version of every row of the system-versioned table.
    pub(crate) history: Vec<(u32, Option<String>, String, String)>,
    /// What the next values of the sequences depend on.
    pub(crate) sequences: Vec<(u64, u64)>,
    /// XA transactions that are prepared.
    pub(crate) prepared: Vec<String>,
}

pub(crate) async fn seen(conn: &mut Conn) -> Seen {
    let events = "SELECT EVENT_NAME, CAST(STATUS AS CHAR), DEFINER FROM information_schema.EVENTS \
                  ORDER BY 1";
    let mut sequences = vec![];
    let names = "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'shop' \
                 AND TABLE_TYPE = 'SEQUENCE' ORDER BY 1";
    let names: Vec<String> = conn.query(names).await.unwrap();
    for name in names {
        let next = format!("SELECT next_not_cached_value, cycle_count FROM shop.{name}");
        sequences.push(conn.query_first(next).await.unwrap().unwrap());
    }
    let events = conn.query(events).await.unwrap();
    // 11.8 has a later end of time than 10.11.
    let history = "SELECT id, s, CAST(row_start AS CHAR), \
                   IF(row_end >= '2038-01-01', 'current', CAST(row_end AS CHAR)) \
                   FROM shop.v FOR SYSTEM_TIME ALL ORDER BY 3, 4, 1";
    let history = conn.query(history).await.unwrap_or_default();
    let prepared: Vec<(u32, u32, u32, String)> = conn.query("XA RECOVER").await.unwrap();
    let prepared = prepared.into_iter().map(|(.., id)| id).collect();
    Seen { data: digest(conn).await.unwrap(), events, history, sequences, prepared }
}

pub(crate) fn assert_same(restored: &Seen, then: &Moment) {
    let (step, then) = (then.step, &then.seen);
    assert_eq!(restored.data.diff(&then.data), Vec::<String>::new(), "{step}");
    assert_eq!(restored.events, then.events, "{step}");
    assert_eq!(restored.history, then.history, "{step}");
    assert_eq!(restored.sequences, then.sequences, "{step}");
    assert_eq!(restored.prepared, then.prepared, "{step}");
}

/// GTIDs as a promoted replica has them: `gtid_slave_pos` and `gtid_binlog_state`.
pub(crate) async fn gtids(conn: &mut Conn) -> (String, String) {
    let ask = "SELECT @@GLOBAL.gtid_slave_pos, @@GLOBAL.gtid_binlog_state";
    let (position, state): (String, Option<String>) = conn.query_first(ask).await.unwrap().unwrap();
    (sorted(&position), sorted(&state.unwrap_or_default()))
}

/// The server gives its domains in any order.
pub(crate) fn sorted(gtids: &str) -> String {
    let mut gtids: Vec<&str> = gtids.split(',').collect();
    gtids.sort_unstable();
    gtids.join(",")
}

/// A source with a schema that the steps of [`work`] change.
pub(crate) async fn shop(series: Series) -> Mysqld {
    let source = series.start(&SOURCE).await;
    for statement in [
        "CREATE DATABASE shop",
        "CREATE TABLE shop.t (id INT PRIMARY KEY AUTO_INCREMENT, s TEXT)",
        "CREATE TABLE shop.a (id INT PRIMARY KEY, n INT) ENGINE = Aria",
        "CREATE TABLE shop.v (id INT PRIMARY KEY, s TEXT) WITH SYSTEM VERSIONING",
        "CREATE TABLE shop.big (id INT PRIMARY KEY, b LONGBLOB)",
        "CREATE SEQUENCE shop.sq START WITH 10 CACHE 5",
        "CREATE EVENT shop.running ON SCHEDULE EVERY 1 DAY STARTS '2035-01-01' DO DELETE FROM shop.t",
        "CREATE EVENT shop.stopped ON SCHEDULE EVERY 1 DAY DISABLE DO DELETE FROM shop.t",
        "CREATE FUNCTION shop.trusted() RETURNS INT MODIFIES SQL DATA RETURN 1",
        "INSERT INTO shop.v VALUES (1, 'first')",
        "DO NEXTVAL(shop.sq)",
    ] {
        source.sql(statement).await;
    }
    source
}

/// Work with everything that has to come through, with moments between. Statements of a step run
/// in one session that stays open over all steps.
#[expect(clippy::too_many_lines, reason = "a list of statements")]
pub(crate) async fn work(source: &Mysqld) -> Vec<Moment> {
    let steps: [(&str, &[&str]); 9] = [
        ("nothing", &[]),
        (
            "two domains, compressed and annotated",
            &[
                "SET GLOBAL log_bin_compress = ON",
                "INSERT INTO shop.t (s) VALUES ('one'), (REPEAT('two', 1000))",
                "SET SESSION gtid_domain_id = 1",
                "CREATE TABLE shop.other (id INT PRIMARY KEY, s TEXT)",
                "INSERT INTO shop.other SELECT seq, REPEAT('x', 500) FROM shop.seq_1_to_200",
                "SET SESSION gtid_domain_id = 0",
                "UPDATE shop.t SET s = REPEAT('zwei', 400) WHERE id = 2",
            ],
        ),
        (
            "sequences and a system-versioned table",
            &[
                "DO NEXTVAL(shop.sq)",
                "SELECT SETVAL(shop.sq, 100)",
                "CREATE SEQUENCE shop.sq2 INCREMENT BY 7",
                "DO NEXTVAL(shop.sq2)",
                "UPDATE shop.v SET s = 'second' WHERE id = 1",
                "INSERT INTO shop.v VALUES (2, NULL)",
                "DELETE FROM shop.v WHERE id = 1",
                "SET GLOBAL log_bin_compress = OFF",
            ],
        ),
        (
            "statements, and a temporary table over a rotation",
            &[
                "SET SESSION binlog_format = STATEMENT",
                "CREATE TEMPORARY TABLE shop.tmp (id INT PRIMARY KEY, s TEXT)",
                "INSERT INTO shop.tmp VALUES (50, 'temporary'), (51, CONNECTION_ID())",
                "FLUSH BINARY LOGS",
                "SET @n = 5",
                "INSERT INTO shop.t SELECT id + @n, s FROM shop.tmp",
                "INSERT INTO shop.t (s) VALUES (RAND()), (LAST_INSERT_ID()), (NOW(6))",
                "CREATE TABLE shop.made AS SELECT * FROM shop.tmp",
            ],
        ),
        (
            "a prepared XA transaction, and a rolled back mix of engines",
            &[
                "SET SESSION binlog_format = ROW",
                "DROP TEMPORARY TABLE shop.tmp",
                "BEGIN",
                "INSERT INTO shop.t (s) VALUES ('not kept')",
                "INSERT INTO shop.a VALUES (1, 1)",
                "ROLLBACK",
            ],
        ),
        ("XA over a rotation", &["FLUSH BINARY LOGS", "XA COMMIT 'kept'", "XA ROLLBACK 'lost'"]),
        (
            "definitions",
            &[
                "ALTER TABLE shop.t ADD COLUMN j JSON, ADD COLUMN d DATETIME(6) DEFAULT NOW(6)",
                "INSERT INTO shop.t (s, j) VALUES ('three', '{\"a\": [1, 2.5, null]}')",
                "CREATE EVENT shop.later ON SCHEDULE EVERY 1 DAY STARTS '2035-01-01' DO DO 1",
                "ALTER EVENT shop.running DISABLE",
                "CREATE OR REPLACE EVENT shop.replaced ON SCHEDULE EVERY 1 DAY \
                 STARTS '2035-01-01' DISABLE DO DO 2",
                "CREATE TRIGGER shop.tr BEFORE INSERT ON shop.t FOR EACH ROW SET NEW.s = UPPER(NEW.s)",
                "CREATE PROCEDURE shop.p() SELECT 1",
                "CREATE FUNCTION shop.f() RETURNS INT MODIFIES SQL DATA RETURN 2",
                "INSERT INTO shop.t (s) VALUES ('four')",
            ],
        ),
        ("a row of 20 MB", &["INSERT INTO shop.big VALUES (1, REPEAT('0123456789', 2000000))"]),
        (
            "the end",
            &[
                "ALTER EVENT shop.stopped ENABLE",
                "TRUNCATE shop.other",
                "DROP TABLE shop.made",
                "SET SESSION gtid_domain_id = 7",
                "CREATE DATABASE late",
                "SET SESSION gtid_domain_id = 0",
            ],
        ),
    ];
    let mut conn = source.conn().await;
    let mut moments = vec![];
    for (step, statements) in steps {
        for statement in statements {
            conn.query_drop(*statement)
                .await
                .unwrap_or_else(|error| panic!("{error}: {statement}"));
        }
        if step.starts_with("a prepared") {
            prepare(source, "kept", 900).await;
            prepare(source, "lost", 901).await;
        }
        moments.push(moment(source, step).await);
        // The log has whole seconds.
        tokio::time::sleep(Duration::from_millis(1_100)).await;
    }
    moments
}

/// Prepares an XA transaction of one row and leaves it.
async fn prepare(source: &Mysqld, name: &str, id: u32) {
    let mut conn = source.conn().await;
    for statement in [
        format!("XA START '{name}'"),
        format!("INSERT INTO shop.t (id, s) VALUES ({id}, '{name}')"),
        format!("XA END '{name}'"),
        format!("XA PREPARE '{name}'"),
    ] {
        conn.query_drop(&statement).await.unwrap_or_else(|error| panic!("{error}: {statement}"));
    }
    conn.disconnect().await.unwrap();
}

async fn moment(source: &Mysqld, step: &'static str) -> Moment {
    let mut conn = source.conn().await;
    let place = end_of_log(source).await;
    let seen = seen(&mut conn).await;
    Moment { step, at: Timestamp::now(), place, seen }
}

/// A server on a restored folder, ended when dropped.
pub(crate) struct OnFolder {
    child: Child,
    socket: std::path::PathBuf,
}

impl OnFolder {
    pub(crate) async fn start(series: Series, dir: &Path) -> Self {
        let socket = dir.parent().unwrap().join("sock");
        let child = Command::new(program(&series.named("mariadbd")))
            .env("TMPDIR", dir)
            .arg("--no-defaults")
            .args(["--user=root", "--skip-networking", "--event-scheduler=OFF"])
            .args(["--log-bin=binlog", "--server-id=4711", "--innodb-buffer-pool-size=64M"])
            .arg("--max-allowed-packet=64M")
            .arg(format!("--datadir={}", dir.join("data").display()))
            .arg(format!("--socket={}", socket.display()))
            .arg(format!("--log-error={}", dir.parent().unwrap().join("err").display()))
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

/// Breaks the connection of the target's receiver, which does not know why: logs in to pitr as the
/// target does and asks for the log, whereupon pitr ends the older stream. Says whether it did.
pub(crate) async fn supersede(target: &Mysqld) -> bool {
    let Ok(info) = std::fs::read_to_string(target.datadir().join("master.info")) else {
        return false;
    };
    // Number of lines, file, position, host, user, password, port.
    let lines: Vec<&str> = info.lines().collect();
    let (Some(password), Some(port)) = (lines.get(5), lines.get(6)) else { return false };
    let receiver = "SELECT COUNT(*) FROM information_schema.PROCESSLIST \
                    WHERE COMMAND = 'Slave_IO' AND STATE LIKE 'Waiting for master%'";
    if target.row::<u32>(receiver).await == 0 {
        return false;
    }
    let Ok(mut tcp) = TcpStream::connect(format!("127.0.0.1:{port}")).await else { return false };
    let greeting = packet(&mut tcp).await;
    // Protocol, version with its NUL, number of the connection.
    let at = 1 + greeting.iter().skip(1).position(|b| *b == 0).unwrap() + 1 + 4;
    let mut nonce = [0; 20];
    nonce[..8].copy_from_slice(&greeting[at..at + 8]);
    nonce[8..].copy_from_slice(&greeting[at + 27..at + 39]);
    let scramble = scramble(target, password, &nonce).await;
    // PROTOCOL_41, SECURE_CONNECTION and PLUGIN_AUTH; 23 bytes are reserved.
    let mut login = 0x0008_8200_u32.to_le_bytes().to_vec();
    login.extend([0, 0, 0, 1, 45]);
    login.extend([0; 23]);
    login.extend(b"pitr\0\x14");
    login.extend(scramble);
    login.extend(b"mysql_native_password\0");
    send(&mut tcp, 1, &login).await;
    assert_eq!(packet(&mut tcp).await[0], 0, "not let in");
    for statement in ["SET @mariadb_slave_capability=4", "SET @slave_connect_state=''"] {
        send(&mut tcp, 0, &[b"\x03", statement.as_bytes()].concat()).await;
        assert_eq!(packet(&mut tcp).await[0], 0, "{statement}");
    }
    let mut dump = vec![0x12, 4, 0, 0, 0, 0, 0];
    dump.extend(target.server_id().to_le_bytes());
    send(&mut tcp, 0, &dump).await;
    // The log, or the end: the receiver may have come back already.
    drop(tcp.read(&mut [0; 64]).await);
    true
}

/// `SHA1(password) XOR SHA1(nonce, SHA1(SHA1(password)))`, with the server's own arithmetic.
async fn scramble(server: &Mysqld, password: &str, nonce: &[u8]) -> Vec<u8> {
    let nonce = nonce.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    let (once, mixed): (Vec<u8>, Vec<u8>) = server
        .row(&format!(
            "SELECT UNHEX(SHA1('{password}')), UNHEX(SHA1(CONCAT(x'{nonce}', \
             UNHEX(SHA1(UNHEX(SHA1('{password}')))))))"
        ))
        .await;
    once.iter().zip(mixed).map(|(a, b)| a ^ b).collect()
}

async fn packet(tcp: &mut TcpStream) -> Vec<u8> {
    let mut head = [0; 4];
    tcp.read_exact(&mut head).await.unwrap();
    let mut body = vec![0; u32::from_le_bytes([head[0], head[1], head[2], 0]) as usize];
    tcp.read_exact(&mut body).await.unwrap();
    body
}

async fn send(tcp: &mut TcpStream, number: u8, body: &[u8]) {
    let [a, b, c, _] = (body.len() as u32).to_le_bytes();
    tcp.write_all(&[&[a, b, c, number], body].concat()).await.unwrap();
}
