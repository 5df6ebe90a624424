//! A full copy of a MySQL server at a known place of its binlog, by `mysqldump`.
//!
//! The dump streams from the child into the channel; it never touches the disk. What a dump of
//! schemas leaves out (accounts, roles, grants) is appended as statements.
//!
//! ```text
//! -- pitr: baseline 1 <mark> <facts as JSON>
//! … what mysqldump writes …
//! -- pitr: accounts <mark>
//! -- pitr: account {"user":"app","host":"%"}
//! CREATE USER IF NOT EXISTS …;
//! -- pitr: end <mark>
//! ```
//!
//! The mark is random, so that nothing in a routine's body can look like one of these lines. The
//! whole is SQL that the stock client takes.
//!
//! `mysqldump` reads rows in one snapshot, but accounts, routines, views, triggers and events as
//! they are when it comes to them. So these are compared: before the dump, when its head shows
//! that the snapshot is taken, and at its end.
//!
//! **Invariant:** a copy is reported as taken only if the dump's closing mark came, the program
//! ended well, and nothing changed beneath it that a snapshot does not cover.

use super::accounts::{self, Account, Statement, identifier};
use super::tools::{self, OptionFile};
use super::unwrap::Unwrap;
use super::{ask, sql};
use crate::clock::Timestamp;
use crate::engine::SourceOptions;
use crate::error::{Class, Context, Error, Result};
use crate::position::Position;
use crate::record::{BaselineTaken, Server};
use bytes::{Bytes, BytesMut};
use mysql_async::{Conn, Row};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStdout};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Bytes per piece handed over, at most.
const PIECE_BYTES: usize = 256 << 10;
/// The dump's position must stand in this many first bytes.
const HEAD_BYTES: usize = 64 << 10;
/// Length of the dump's last bytes that are searched for the closing mark.
const TAIL_BYTES: usize = 256;
/// How often a baseline is begun anew when something changes beneath its head.
const ATTEMPTS: u32 = 3;
/// Schemas that a server makes itself.
pub(super) const SYSTEM_SCHEMAS: &str =
    "'mysql', 'information_schema', 'performance_schema', 'sys', 'ndbinfo'";
/// The package that has the client programs.
pub(super) const CLIENT_PACKAGE: &str =
    "mysql-client (in Debian: mysql-client or default-mysql-client)";

/// What the target has to know about the source before it loads anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    /// `@@version`.
    pub(super) version: String,
    /// `@@lower_case_table_names`: fixed when a data directory is made.
    pub(super) lower_case_table_names: u8,
    /// `@@partial_revokes`: without it, a revoke of a part is an error.
    pub(super) partial_revokes: bool,
    /// `@@innodb_page_size`, in bytes: what fits into a row depends on it.
    pub(super) page_bytes: u32,
}

/// Beginning of the first line of a baseline.
pub(super) const HEAD_MARK: &str = "-- pitr: baseline 1 ";
/// Beginning of the line before the accounts.
pub(super) const ACCOUNTS_MARK: &str = "-- pitr: accounts ";
/// Beginning of the line before an account's statement.
pub(super) const ACCOUNT_MARK: &str = "-- pitr: account ";
/// Beginning of the last line.
pub(super) const END_MARK: &str = "-- pitr: end ";

/// Takes a full copy and streams it into `out`, in pieces of at most 256 KiB.
///
/// # Errors
/// Usage, if privileges are missing. Unavailable, if the server or the program is not there, if
/// the dump fails, or if definitions kept changing beneath it: what was streamed is then useless.
pub(super) async fn take(
    options: &SourceOptions,
    out: mpsc::Sender<Bytes>,
) -> Result<BaselineTaken> {
    let mut conn = sql::connect(&options.endpoint).await?;
    ask::keep_open(&mut conn).await?;
    check_privileges(&mut conn).await?;
    let (facts, server) = facts(&mut conn).await?;
    let program = options.dump_command.as_deref().unwrap_or("mysqldump");
    check_program(program, &facts.version).await?;
    let work = Work { options, program, facts: &facts, server: &server, out: &out };
    for attempt in 1..=ATTEMPTS {
        match work.attempt(&mut conn).await? {
            Attempt::Taken(taken) => return Ok(taken),
            Attempt::Changed(what) => {
                tracing::info!(source = options.name, attempt, "baseline begun anew: {what}");
            }
        }
    }
    Err(Error::unavailable(format!(
        "baseline of {}: accounts, schemas or definitions changed during each of {ATTEMPTS} starts",
        options.name
    ))
    .hint("run `pitr baseline` at a time without DDL"))
}

enum Attempt {
    Taken(BaselineTaken),
    Changed(String),
}

struct Work<'a> {
    options: &'a SourceOptions,
    program: &'a str,
    facts: &'a Facts,
    server: &'a Server,
    out: &'a mpsc::Sender<Bytes>,
}

impl Work<'_> {
    async fn attempt(&self, conn: &mut Conn) -> Result<Attempt> {
        let before = self.beneath(conn).await?;
        if before.schemas.is_empty() {
            return self.without_schemas(conn).await;
        }
        let mut dump = Dump::start(self, &before)?;
        let head = match dump.read_head().await {
            Ok(head) => head,
            Err(error) => return Err(dump.explain(error).await),
        };
        let after = self.beneath(conn).await?;
        if let Some(what) = after.differs_from(&before) {
            return Ok(Attempt::Changed(what));
        }
        let position = position_in_head(&head)?;
        if !before.log_end.is_before_or_at(&position) || !position.is_before_or_at(&after.log_end) {
            return Err(Error::unavailable(format!(
                "{} says it begins at {position}, but the server's log was between {} and {}",
                self.program, before.log_end, after.log_end
            )));
        }
        let mark = uuid::Uuid::new_v4().simple().to_string();
        self.send(self.first_line(&mark)?).await?;
        dump.forward(head, self.out).await?;
        let end = self.beneath(conn).await?;
        if let Some(what) = end.undermines(&after) {
            return Err(Error::unavailable(format!(
                "baseline of {}: {what} while the dump ran, so that it may hold a mix",
                self.options.name
            ))
            .hint("run `pitr baseline` at a time without DDL"));
        }
        self.send(last_lines(&mark, &after.accounts)?).await?;
        Ok(Attempt::Taken(self.taken(&position, after.now)))
    }

    /// A server without user schemas: nothing for `mysqldump` to do.
    async fn without_schemas(&self, conn: &mut Conn) -> Result<Attempt> {
        ask::run(conn, "FLUSH TABLES WITH READ LOCK", || "lock against writes for a moment".into())
            .await?;
        let beneath = self.beneath(conn).await;
        ask::run(conn, "UNLOCK TABLES", || "unlock".into()).await?;
        let beneath = beneath?;
        if !beneath.schemas.is_empty() {
            return Ok(Attempt::Changed("a schema was created".into()));
        }
        let mark = uuid::Uuid::new_v4().simple().to_string();
        self.send(self.first_line(&mark)?).await?;
        self.send(last_lines(&mark, &beneath.accounts)?).await?;
        Ok(Attempt::Taken(self.taken(&beneath.log_end, beneath.now)))
    }

    /// Everything that a snapshot does not cover, as it is now.
    async fn beneath(&self, conn: &mut Conn) -> Result<Beneath> {
        // A connection of its own: reading accounts changes the session.
        let mut other = sql::connect(&self.options.endpoint).await?;
        let accounts = accounts::read(&mut other).await?;
        drop(other);
        Beneath::read(conn, accounts).await
    }

    fn first_line(&self, mark: &str) -> Result<Bytes> {
        let facts = serde_json::to_string(self.facts).class(Class::Bug, || "write facts".into())?;
        Ok(format!("{HEAD_MARK}{mark} {facts}\n").into())
    }

    async fn send(&self, bytes: Bytes) -> Result<()> {
        send(self.out, bytes).await
    }

    fn taken(&self, position: &LogEnd, at: Timestamp) -> BaselineTaken {
        BaselineTaken {
            position: Position::new(position.file.clone(), position.offset),
            at,
            server: self.server.clone(),
            kind: "sql",
        }
    }
}

async fn send(out: &mpsc::Sender<Bytes>, bytes: Bytes) -> Result<()> {
    out.send(bytes)
        .await
        .map_err(|_| Error::unavailable("the baseline's bytes are not taken any more"))
}

fn last_lines(mark: &str, accounts: &[Statement]) -> Result<Bytes> {
    let mut text = format!("\n{ACCOUNTS_MARK}{mark}\n");
    for Statement { account, sql } in accounts {
        let account =
            serde_json::to_string(account).class(Class::Bug, || "write an account".into())?;
        for part in [ACCOUNT_MARK, &account, "\n", sql, ";\n"] {
            text.push_str(part);
        }
    }
    for part in ["FLUSH PRIVILEGES;\n", END_MARK, mark, "\n"] {
        text.push_str(part);
    }
    Ok(text.into())
}

/// A running `mysqldump`; killed when dropped.
struct Dump<'a> {
    program: &'a str,
    child: Child,
    stdout: ChildStdout,
    stderr: JoinHandle<String>,
    tail: Vec<u8>,
    /// Keeps the option file until the program has ended.
    _options: OptionFile,
}

impl<'a> Dump<'a> {
    fn start(work: &Work<'a>, beneath: &Beneath) -> Result<Dump<'a>> {
        let options = OptionFile::create(&tools::Server::Endpoint(&work.options.endpoint))?;
        let mut command = options.command(work.program);
        command.args([
            "--source-data=2",
            "--set-gtid-purged=OFF",
            "--hex-blob",
            "--routines",
            "--triggers",
            "--events",
            "--default-character-set=utf8mb4",
            "--quick",
            "--no-tablespaces",
            "--max-allowed-packet=1G",
            "--loose-column-statistics=0",
        ]);
        if beneath.unversioned == 0 {
            command.arg("--single-transaction");
        } else {
            // Tables without versions of their rows are in no snapshot.
            tracing::warn!(
                source = work.options.name,
                "{} tables are not InnoDB: writes wait while the baseline is taken",
                beneath.unversioned
            );
            command.arg("--lock-all-tables");
        }
        command.arg("--databases").arg("--").args(&beneath.schemas);
        let mut child = command.spawn().map_err(|error| {
            dump_missing(tools::start_error(work.program, CLIENT_PACKAGE, error))
        })?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(Error::bug("a child without pipes"));
        };
        let stderr = tokio::spawn(tools::last_words(stderr));
        let program = work.program;
        Ok(Dump { program, child, stdout, stderr, tail: Vec::new(), _options: options })
    }

    /// Reads up to and with the line that names the position, or more.
    async fn read_head(&mut self) -> Result<BytesMut> {
        let mut head = BytesMut::with_capacity(PIECE_BYTES);
        loop {
            if position_line(&head).is_some() {
                return Ok(head);
            }
            if head.len() >= HEAD_BYTES || self.read(&mut head).await? == 0 {
                return Err(Error::unavailable(format!(
                    "{} names no binlog position",
                    self.program
                )));
            }
        }
    }

    /// Hands over the rest, and sees to it that it was all.
    async fn forward(mut self, head: BytesMut, out: &mpsc::Sender<Bytes>) -> Result<()> {
        let mut unwrap = Unwrap::default();
        let mut buffer = head;
        loop {
            // Pipes give little at a time: wait for a fuller piece.
            let mut n = 1;
            while n > 0 && buffer.len() < PIECE_BYTES {
                buffer.reserve(PIECE_BYTES);
                n = self.read(&mut buffer).await?;
            }
            self.keep_tail(&buffer);
            let mut ready = unwrap.push(&buffer);
            buffer.clear();
            while !ready.is_empty() {
                send(out, ready.split_to(ready.len().min(PIECE_BYTES))).await?;
            }
            if n == 0 {
                break;
            }
        }
        let rest = unwrap.finish();
        if !rest.is_empty() {
            send(out, rest).await?;
        }
        let status =
            self.child.wait().await.unavailable(|| format!("wait for {}", self.program))?;
        let stderr = (&mut self.stderr).await.unwrap_or_default();
        if !status.success() {
            return Err(tools::failed(self.program, status, &stderr));
        }
        let complete = self.tail.windows(COMPLETED.len()).any(|part| part == COMPLETED);
        if !complete {
            return Err(Error::unavailable(format!(
                "{} ended without its closing mark: {stderr}",
                self.program
            )));
        }
        if !stderr.is_empty() {
            tracing::warn!("{}: {stderr}", self.program);
        }
        Ok(())
    }

    async fn read(&mut self, into: &mut BytesMut) -> Result<usize> {
        self.stdout
            .read_buf(into)
            .await
            .unavailable(|| format!("read what {} writes", self.program))
    }

    fn keep_tail(&mut self, bytes: &[u8]) {
        let from = bytes.len().saturating_sub(TAIL_BYTES);
        self.tail.extend_from_slice(bytes.get(from..).unwrap_or_default());
        let surplus = self.tail.len().saturating_sub(TAIL_BYTES);
        self.tail.drain(..surplus);
    }

    /// A dump without a head has mostly failed: then its own words are the better error.
    async fn explain(mut self, error: Error) -> Error {
        // It may also still run: only an end of its own within a moment counts.
        let wait = tokio::time::timeout(std::time::Duration::from_secs(5), self.child.wait());
        match wait.await {
            Ok(Ok(status)) if !status.success() => {
                let stderr = (&mut self.stderr).await.unwrap_or_default();
                tools::failed(self.program, status, &stderr)
            }
            _ => error,
        }
    }
}

const COMPLETED: &[u8] = b"\n-- Dump completed";

fn dump_missing(error: Error) -> Error {
    match error.hint_text() {
        Some(hint) => {
            let hint = format!("{hint}, or name it with `dump_command` in the source's settings");
            error.hint(hint)
        }
        None => error,
    }
}

async fn check_program(program: &str, server: &str) -> Result<()> {
    let version = tools::program_version(program, CLIENT_PACKAGE).await.map_err(dump_missing)?;
    let hint = "install the client of the server's version, or name it with `dump_command`";
    if tools::is_mariadb(&version) {
        return Err(Error::unavailable(format!(
            "{program} is MariaDB's ({version}) and cannot dump MySQL {server}"
        ))
        .hint(hint));
    }
    // An older one leaves out silently what it does not know.
    if tools::major_minor(&version) < tools::major_minor(server) {
        return Err(Error::unavailable(format!(
            "{program} {version} is older than the server ({server})"
        ))
        .hint(hint));
    }
    Ok(())
}

/// What a snapshot of rows does not cover.
#[derive(Debug)]
struct Beneath {
    accounts: Vec<Statement>,
    schemas: Vec<String>,
    /// Views, routines, triggers and events, each with a digest of its definition.
    definitions: BTreeMap<(String, String, String), String>,
    /// Tables, each with when it was created: a table of that name that is another one differs.
    tables: BTreeMap<(String, String), String>,
    /// How many tables keep no versions of their rows.
    unversioned: u64,
    log_end: LogEnd,
    now: Timestamp,
}

impl Beneath {
    async fn read(conn: &mut Conn, accounts: Vec<Statement>) -> Result<Self> {
        let reading = || "read what there is to dump".to_owned();
        let prepared = ask::rows::<Row>(conn, "XA RECOVER", reading).await;
        // Without the privilege this cannot be known; a restore would then name the XID.
        let hidden = ask::server_code(&prepared) == Some(1401);
        let prepared = if hidden { vec![] } else { prepared? };
        if !prepared.is_empty() {
            return Err(Error::unavailable(format!(
                "{} XA transactions are prepared and not yet committed: no dump holds them",
                prepared.len()
            ))
            .hint("see XA RECOVER; the baseline is tried again later"));
        }
        let schemas = ask::rows(
            conn,
            format!(
                "SELECT SCHEMA_NAME FROM information_schema.SCHEMATA \
                 WHERE SCHEMA_NAME NOT IN ({SYSTEM_SCHEMAS}) ORDER BY 1"
            ),
            reading,
        )
        .await?;
        let tables: Vec<(String, String, String, Option<String>)> = ask::rows(
            conn,
            format!(
                "SELECT TABLE_SCHEMA, TABLE_NAME, COALESCE(CAST(CREATE_TIME AS CHAR), ''), ENGINE \
                 FROM information_schema.TABLES WHERE TABLE_TYPE = 'BASE TABLE' \
                 AND TABLE_SCHEMA NOT IN ({SYSTEM_SCHEMAS})"
            ),
            reading,
        )
        .await?;
        let versioned = |engine: &Option<String>| engine.as_deref() == Some("InnoDB");
        let unversioned = tables.iter().filter(|(.., engine)| !versioned(engine)).count() as u64;
        let tables = tables.into_iter().map(|(schema, name, at, _)| ((schema, name), at)).collect();
        let definitions = definitions(conn).await?;
        // After the rest: an upper bound of where and when all of it was seen.
        let log_end = LogEnd::read(conn).await?;
        let now = server_clock(conn).await?;
        Ok(Self { accounts, schemas, definitions, tables, unversioned, log_end, now })
    }

    /// What differs between before the snapshot and after it, if anything.
    fn differs_from(&self, before: &Self) -> Option<String> {
        if self.accounts != before.accounts {
            return Some("accounts or grants changed".into());
        }
        if self.schemas != before.schemas {
            return Some("schemas were created or dropped".into());
        }
        if self.tables != before.tables {
            return Some("tables were created, renamed or dropped".into());
        }
        self.changed_definition(before)
    }

    /// What changed between the snapshot and the end of the dump that the dump may have mixed.
    /// Tables that came later are not in the dump, or made it fail.
    fn undermines(&self, at_snapshot: &Self) -> Option<String> {
        let other = |(name, at)| self.tables.get(name) != Some(at);
        if let Some(((schema, table), _)) =
            at_snapshot.tables.iter().find(|(name, at)| other((*name, *at)))
        {
            let name = format!("{}.{}", identifier(schema), identifier(table));
            return Some(format!("table {name} was altered, renamed or dropped"));
        }
        if at_snapshot.schemas.iter().any(|schema| !self.schemas.contains(schema)) {
            return Some("a schema was dropped".into());
        }
        self.changed_definition(at_snapshot)
    }

    fn changed_definition(&self, before: &Self) -> Option<String> {
        if self.definitions == before.definitions {
            return None;
        }
        let differs = |(key, digest)| before.definitions.get(key) != Some(digest);
        let key = self.definitions.iter().find(|(key, digest)| differs((*key, *digest)));
        let gone = before.definitions.keys().find(|key| !self.definitions.contains_key(*key));
        let (kind, schema, name) = key.map(|(key, _)| key).or(gone)?;
        Some(format!("{kind} {}.{} changed", identifier(schema), identifier(name)))
    }
}

async fn definitions(conn: &mut Conn) -> Result<BTreeMap<(String, String, String), String>> {
    const PARTS: [(&str, &str, &str, &str, &str); 4] = [
        (
            "view",
            "VIEWS",
            "TABLE_SCHEMA",
            "TABLE_NAME",
            "VIEW_DEFINITION, DEFINER, SECURITY_TYPE, CHECK_OPTION",
        ),
        (
            "routine",
            "ROUTINES",
            "ROUTINE_SCHEMA",
            "CONCAT(ROUTINE_TYPE, ' ', ROUTINE_NAME)",
            "ROUTINE_DEFINITION, DEFINER, SECURITY_TYPE, SQL_MODE, CREATED, LAST_ALTERED",
        ),
        (
            "trigger",
            "TRIGGERS",
            "TRIGGER_SCHEMA",
            "TRIGGER_NAME",
            "ACTION_STATEMENT, EVENT_OBJECT_TABLE, ACTION_ORDER, DEFINER, SQL_MODE, CREATED",
        ),
        (
            "event",
            "EVENTS",
            "EVENT_SCHEMA",
            "EVENT_NAME",
            "EVENT_DEFINITION, DEFINER, STATUS, SQL_MODE, CREATED, LAST_ALTERED",
        ),
    ];
    let mut found = BTreeMap::new();
    for (kind, table, schema, name, definition) in PARTS {
        let rows: Vec<(String, String, String)> = ask::rows(
            conn,
            format!(
                "SELECT {schema}, {name}, SHA2(CONCAT_WS('|', {definition}), 256) \
                 FROM information_schema.{table} WHERE {schema} NOT IN ({SYSTEM_SCHEMAS})"
            ),
            || format!("read the definitions of {kind}s"),
        )
        .await?;
        found.extend(
            rows.into_iter().map(|(schema, name, sha)| ((kind.to_owned(), schema, name), sha)),
        );
    }
    Ok(found)
}

/// A place in the server's binlog.
#[derive(Debug, Clone, PartialEq, Eq)]
struct LogEnd {
    file: String,
    offset: u64,
}

impl LogEnd {
    async fn read(conn: &mut Conn) -> Result<Self> {
        let asking = || "ask for the end of the binlog".to_owned();
        let mut row = ask::first::<Row>(conn, "SHOW BINARY LOG STATUS", asking).await;
        if ask::is_syntax_error(&row) {
            // What servers before 8.2 call it.
            row = ask::first(conn, "SHOW MASTER STATUS", asking).await;
        }
        let end = row?.and_then(|mut row| {
            let file = row.take_opt::<String, _>(0)?.ok()?;
            let offset = row.take_opt::<u64, _>(1)?.ok()?;
            Some(Self { file, offset })
        });
        end.ok_or_else(|| {
            Error::usage("the source writes no binlog")
                .hint("start it with --log-bin (on by default) and gtid_mode=ON")
        })
    }

    /// Whether this is not behind `other`. Numbers of binlog files grow in length, too.
    fn is_before_or_at(&self, other: &Self) -> bool {
        let key = |end: &Self| (end.file.len(), end.file.clone(), end.offset);
        key(self) <= key(other)
    }
}

impl std::fmt::Display for LogEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file, self.offset)
    }
}

fn position_line(head: &[u8]) -> Option<&str> {
    let is_position = |line: &&[u8]| {
        line.starts_with(b"-- CHANGE REPLICATION SOURCE TO ")
            || line.starts_with(b"-- CHANGE MASTER TO ")
    };
    let end = head.iter().rposition(|byte| *byte == b'\n')?;
    let line = head.get(..end)?.split(|byte| *byte == b'\n').find(is_position)?;
    std::str::from_utf8(line).ok()
}

/// Reads `-- CHANGE REPLICATION SOURCE TO SOURCE_LOG_FILE='…', SOURCE_LOG_POS=…;`.
fn position_in_head(head: &[u8]) -> Result<LogEnd> {
    let read = || {
        let line = position_line(head)?;
        let (_, rest) = line.split_once("_LOG_FILE='")?;
        let (file, rest) = rest.split_once('\'')?;
        let (_, rest) = rest.split_once("_LOG_POS=")?;
        let offset = rest.trim_end().strip_suffix(';')?.parse().ok()?;
        (!file.is_empty()).then(|| LogEnd { file: file.to_owned(), offset })
    };
    read().ok_or_else(|| Error::unavailable("the dump's binlog position cannot be read"))
}

async fn server_clock(conn: &mut Conn) -> Result<Timestamp> {
    let micros: Option<i64> =
        ask::first(conn, "SELECT CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000000 AS SIGNED)", || {
            "read the server's clock".into()
        })
        .await?;
    micros
        .map(Timestamp::from_micros)
        .ok_or_else(|| Error::unavailable("the server does not tell its time"))
}

async fn facts(conn: &mut Conn) -> Result<(Facts, Server)> {
    let row: Option<(String, String, u8, u32)> = ask::first(
        conn,
        "SELECT @@version, @@server_uuid, @@lower_case_table_names, @@innodb_page_size",
        || "ask for the server's version".into(),
    )
    .await?;
    let (version, identity, lower_case_table_names, page_bytes) =
        row.ok_or_else(|| Error::unavailable("the server does not tell its version"))?;
    // Not there before 8.0.16.
    let partial: Option<(String, String)> =
        ask::first(conn, "SHOW GLOBAL VARIABLES LIKE 'partial_revokes'", || {
            "ask for partial_revokes".into()
        })
        .await?;
    let partial_revokes = partial.is_some_and(|(_, value)| value.eq_ignore_ascii_case("on"));
    let facts =
        Facts { version: version.clone(), lower_case_table_names, partial_revokes, page_bytes };
    Ok((facts, Server { version, identity }))
}

/// What the account needs to see everything: what it may not see is left out silently.
const PRIVILEGES: [&[&str]; 7] = [
    &["SELECT"],
    &["RELOAD"],
    &["SHOW VIEW"],
    &["TRIGGER"],
    &["EVENT"],
    &["REPLICATION CLIENT"],
    &["LOCK TABLES"],
];

async fn check_privileges(conn: &mut Conn) -> Result<()> {
    let missing = missing_privileges(conn, &PRIVILEGES).await?;
    if missing.is_empty() {
        return Ok(());
    }
    let me = accounts::me(conn).await?;
    let list = missing.join(", ");
    Err(Error::usage(format!("{} may not take a baseline: it lacks {list}", me.quoted()))
        .hint(format!("GRANT {list} ON *.* TO {}", me.quoted())))
}

/// Those of the privileges that this connection does not have globally; of each group one is
/// enough, and the first is named.
pub(super) async fn missing_privileges(
    conn: &mut Conn,
    needed: &[&[&'static str]],
) -> Result<Vec<&'static str>> {
    let lines: Vec<String> =
        ask::rows(conn, "SHOW GRANTS", || "read our own grants".into()).await?;
    if let Some(line) = lines.iter().find(|line| line.starts_with("REVOKE ")) {
        let me: Account = accounts::me(conn).await?;
        return Err(Error::usage(format!("a part is hidden from {}: {line}", me.quoted()))
            .hint("give the account its privileges back on every schema"));
    }
    let have: Vec<&str> = lines.iter().filter_map(|line| global_privileges(line)).collect();
    let has = |name: &str| {
        have.iter().flat_map(|list| list.split(',')).any(|one| {
            let one = one.trim();
            one == name || one == "ALL PRIVILEGES"
        })
    };
    Ok(needed
        .iter()
        .filter(|group| !group.iter().any(|name| has(name)))
        .filter_map(|group| group.first().copied())
        .collect())
}

/// The list in `GRANT list ON *.* TO …`.
fn global_privileges(grant: &str) -> Option<&str> {
    let list = grant.strip_prefix("GRANT ")?.split_once(" ON *.* TO ")?.0;
    (!list.contains('`')).then_some(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_position_is_read_from_the_dumps_head() {
        let head = b"-- MySQL dump\n--\n\n-- CHANGE REPLICATION SOURCE TO \
            SOURCE_LOG_FILE='binlog.000042', SOURCE_LOG_POS=5123456789;\n\nCREATE";
        let expected = LogEnd { file: "binlog.000042".into(), offset: 5_123_456_789 };
        assert_eq!(position_in_head(head).unwrap(), expected);
        let old = b"-- CHANGE MASTER TO MASTER_LOG_FILE='b.1', MASTER_LOG_POS=4;\n";
        assert_eq!(position_in_head(old).unwrap(), LogEnd { file: "b.1".into(), offset: 4 });
    }

    #[test]
    fn a_position_that_is_not_whole_yet_is_not_read() {
        let half = b"-- CHANGE REPLICATION SOURCE TO SOURCE_LOG_FILE='b.1', SOURCE_LOG_POS=51";
        assert_eq!(position_line(half), None);
        assert!(position_in_head(b"-- CHANGE MASTER TO MASTER_LOG_POS=x;\n").is_err());
    }

    #[test]
    fn the_millionth_binlog_comes_after_those_with_six_digits() {
        let end = |file: &str, offset| LogEnd { file: file.into(), offset };
        assert!(end("b.999999", 9).is_before_or_at(&end("b.1000000", 4)));
        assert!(!end("b.000002", 5).is_before_or_at(&end("b.000002", 4)));
    }

    #[test]
    fn only_global_grants_count_as_global() {
        assert_eq!(
            global_privileges("GRANT SELECT, RELOAD ON *.* TO `a`@`%`"),
            Some("SELECT, RELOAD")
        );
        assert_eq!(global_privileges("GRANT SELECT ON `a`.* TO `a`@`%`"), None);
        assert_eq!(global_privileges("GRANT `x ON *.* TO `@`%` TO `a`@`%`"), None);
    }
}
