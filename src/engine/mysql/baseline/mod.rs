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

mod beneath;
mod facts;
mod place;
mod privileges;
mod program;

pub(super) use facts::Facts;
pub(super) use privileges::missing_privileges;

use super::accounts::{self, Statement};
use super::{ask, sql};
use crate::clock::Timestamp;
use crate::engine::SourceOptions;
use crate::error::{Class, Context, Error, Result};
use crate::position::Position;
use crate::record::{BaselineTaken, Server};
use beneath::Beneath;
use bytes::Bytes;
use mysql_async::Conn;
use place::{LogEnd, position_in_head};
use program::Dump;
use tokio::sync::mpsc;

/// Bytes per piece handed over, at most.
const PIECE_BYTES: usize = 256 << 10;
/// How often a baseline is begun anew when something changes beneath its head.
const ATTEMPTS: u32 = 3;
/// Schemas that a server makes itself.
pub(super) const SYSTEM_SCHEMAS: &str =
    "'mysql', 'information_schema', 'performance_schema', 'sys', 'ndbinfo'";
/// The package that has the client programs.
pub(super) const CLIENT_PACKAGE: &str =
    "mysql-client (in Debian: mysql-client or default-mysql-client)";

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
    privileges::check_privileges(&mut conn).await?;
    let (facts, server) = facts::facts(&mut conn).await?;
    let program = options.dump_command.as_deref().unwrap_or("mysqldump");
    program::check_program(program, &facts.version).await?;
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
