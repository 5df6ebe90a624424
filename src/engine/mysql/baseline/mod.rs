//! A full copy of a MySQL or MariaDB server at a known place of its binlog, by the server's own
//! dump program.
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
//! That program reads rows in one snapshot, but accounts, routines, views, triggers and events as
//! they are when it comes to them. So these are compared: before the dump, when its head shows
//! that the snapshot is taken, and at its end. Rows that it would change are read here, in a
//! snapshot of the same instant: both are opened under one [`lock`], or, where MariaDB proves that
//! they are at one place, without it ([`quiet`]).
//!
//! **Invariant:** a copy is reported as taken only if the dump's closing mark came, the program
//! ended well, and nothing changed beneath it that a snapshot does not cover.

mod beneath;
mod exact;
mod facts;
mod lock;
mod place;
mod privileges;
mod program;
mod quiet;
mod splice;

pub(super) use facts::{Facts, facts, has_partial_revokes, server_clock};
pub(super) use lock::{Limits, Lock};
pub(super) use place::LogEnd;
pub(super) use privileges::{check_all as check_all_privileges, check_capture, missing_privileges};

use super::accounts::{self, Statement};
use super::flavor::Flavor;
use super::{ask, sql};
use crate::clock::Timestamp;
use crate::engine::SourceOptions;
use crate::error::{Class, Context, Error, Result};
use crate::position::Position;
use crate::record::{BaselineTaken, Contents, Server};
use beneath::Beneath;
use bytes::{Bytes, BytesMut};
use exact::Exact;
use mysql_async::Conn;
use program::{Dump, Program};
use quiet::Quiet;
use std::time::Duration;
use tokio::sync::mpsc;

/// Bytes per piece handed over, at most.
const PIECE_BYTES: usize = 256 << 10;
/// How often a baseline is begun anew when something changes beneath its head.
const ATTEMPTS: u32 = 4;
/// How often it is looked whether no XA transaction is prepared any more: with growing pauses,
/// for a quarter of a minute.
const XA_LOOKS: u32 = 4;
/// Schemas that a server makes itself.
pub(super) const SYSTEM_SCHEMAS: &str =
    "'mysql', 'information_schema', 'performance_schema', 'sys', 'ndbinfo'";
/// The package that has the client programs.
pub(super) const CLIENT_PACKAGE: &str =
    "mysql-client (in Debian: mysql-client or default-mysql-client)";
/// The same of MariaDB.
pub(super) const MARIADB_PACKAGE: &str = "mariadb-client";

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
    let (facts, server, flavor) = facts(&mut conn, &options.endpoint.to_string()).await?;
    let program = Program::find(options.dump_command.as_deref(), &facts.version, flavor).await?;
    let work =
        Work { options, program: &program, facts: &facts, server: &server, flavor, out: &out };
    let (mut changes, mut looks) = (0, 0);
    loop {
        let pause = match work.attempt(&mut conn).await? {
            Attempt::Taken(taken) => return Ok(taken),
            Attempt::Changed(what) => {
                changes += 1;
                if changes == ATTEMPTS {
                    return Err(Error::unavailable(format!(
                        "baseline of {}: {what}; something changed at each of {ATTEMPTS} starts",
                        options.name
                    ))
                    .hint("run `pitr baseline` at a time without DDL"));
                }
                tracing::info!(source = options.name, changes, "baseline begun anew: {what}");
                // So that what was created in this second is not of the next one.
                Duration::from_secs(changes.into())
            }
            Attempt::Prepared(xids) => {
                looks += 1;
                if looks == XA_LOOKS {
                    return Err(prepared(&options.name, &xids));
                }
                tracing::info!(
                    source = options.name,
                    looks,
                    "baseline waits: {} XA transactions are prepared",
                    xids.len()
                );
                Duration::from_secs(1 << looks)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// The program that dumps a server of this version: its name or path.
///
/// # Errors
/// Unavailable, if there is none, or none that fits.
pub(super) async fn find_program(
    given: Option<&str>,
    version: &str,
    flavor: Flavor,
) -> Result<String> {
    Program::find(given, version, flavor).await.map(Program::into_name)
}

/// The rows of a prepared transaction are in no snapshot, and what prepared them lies before it:
/// neither the baseline nor the log behind it has them.
fn prepared(source: &str, xids: &[String]) -> Error {
    let first = xids.first().map(String::as_str).unwrap_or_default();
    let some: Vec<&str> = xids.iter().take(10).map(String::as_str).collect();
    Error::unavailable(format!(
        "baseline of {source}: {} XA transactions are prepared and not yet committed, so that no \
         copy holds them: {}",
        xids.len(),
        some.join("; ")
    ))
    .hint(format!("end each that is left behind: XA COMMIT {first}, or XA ROLLBACK {first}"))
}

enum Attempt {
    Taken(BaselineTaken),
    Changed(String),
    Prepared(Vec<String>),
}

struct Work<'a> {
    options: &'a SourceOptions,
    program: &'a Program,
    facts: &'a Facts,
    server: &'a Server,
    flavor: Flavor,
    out: &'a mpsc::Sender<Bytes>,
}

/// Everything that was opened at one instant.
struct Opened<'a> {
    place: LogEnd,
    exact: Exact,
    /// Not there if there is no schema to dump.
    dump: Option<(Dump<'a>, BytesMut)>,
    /// Still held if there are rows that no snapshot holds.
    lock: Option<Lock>,
}

enum Opening<'a> {
    Opened(Box<Opened<'a>>),
    Prepared(Vec<String>),
}

impl<'a> Work<'a> {
    async fn attempt(&self, conn: &mut Conn) -> Result<Attempt> {
        let before = self.beneath(conn).await?;
        let Opened { place, mut exact, dump, lock } = match self.open(&before).await? {
            Opening::Opened(opened) => *opened,
            Opening::Prepared(xids) => return Ok(Attempt::Prepared(xids)),
        };
        let after = self.beneath(conn).await?;
        if let Some(what) = after.differs_from(&before) {
            return Ok(Attempt::Changed(what));
        }
        let mark = uuid::Uuid::new_v4().simple().to_string();
        self.send(self.first_line(&mark)?).await?;
        if let Some((dump, head)) = dump {
            let forwarded = dump.forward(head, &mut exact, self.out).await;
            // What changed explains what the program may have stumbled over.
            let end = self.beneath(conn).await?;
            if let Some(what) = end.undermines(&after) {
                let failed = forwarded.err().map_or(String::new(), |error| format!(" ({error})"));
                return Err(Error::unavailable(format!(
                    "{what} while the dump ran, so that it may hold a mix{failed}"
                ))
                .hint("run `pitr baseline` at a time without DDL")
                .worth_again());
            }
            forwarded?;
        }
        if let Some(lock) = lock {
            self.released(lock).await?;
        }
        self.send(last_lines(&mark, &after.accounts)?).await?;
        for name in self.options.databases.iter().filter(|name| !after.schemas.contains(name)) {
            tracing::warn!(
                source = self.options.name,
                "`databases` names {name}, which is not there: a restore to now would fail"
            );
        }
        let contents = if self.options.digests { exact.contents().await } else { None };
        Ok(Attempt::Taken(self.taken(&place, after.now, contents)))
    }

    /// Opens all snapshots at one instant.
    async fn open(&self, before: &Beneath) -> Result<Opening<'a>> {
        let endpoint = &self.options.endpoint;
        let mut exact = Exact::open(endpoint, &before.schemas).await?;
        if self.flavor.is_maria() && before.unversioned == 0 && !before.schemas.is_empty() {
            if let Some((place, dump)) = self.open_quietly(before, &mut exact).await? {
                let (dump, lock) = (Some(dump), None);
                return Ok(Opening::Opened(Box::new(Opened { place, exact, dump, lock })));
            }
            tracing::info!(source = self.options.name, "the baseline begins under a lock");
        }
        let mut lock = Lock::take(endpoint).await?;
        match lock.prepared().await? {
            Some(xids) if xids.is_empty() => {}
            Some(xids) => return Ok(Opening::Prepared(xids)),
            None => tracing::warn!(
                source = self.options.name,
                "without XA_RECOVER_ADMIN it is not known whether XA transactions are open"
            ),
        }
        exact.snapshot().await?;
        let dump =
            if before.schemas.is_empty() { None } else { Some(self.started(before, false).await?) };
        let place = lock.at().clone();
        let lock = if before.unversioned == 0 {
            self.released(lock).await?;
            None
        } else {
            tracing::warn!(
                source = self.options.name,
                "{} tables are not InnoDB: writes wait while the baseline is taken",
                before.unversioned
            );
            Some(lock)
        };
        Ok(Opening::Opened(Box::new(Opened { place, exact, dump, lock })))
    }

    /// Opens all snapshots at one place of a MariaDB's log while writers go on. `None` if that
    /// cannot be proved.
    async fn open_quietly(
        &self,
        before: &Beneath,
        exact: &mut Exact,
    ) -> Result<Option<(LogEnd, (Dump<'a>, BytesMut))>> {
        let Some(mut quiet) = Quiet::take(&self.options.endpoint).await? else { return Ok(None) };
        for left in (0..quiet::TRIES).rev() {
            let (told, nothing_prepared) = quiet.before().await?;
            if !nothing_prepared {
                return Ok(None);
            }
            let needed = exact.has_rows();
            if needed || self.options.digests {
                exact.snapshot().await?;
            }
            let dump = self.started(before, true).await?;
            let place = quiet::written_place(&dump.1)?;
            let mut is_one =
                !needed && !self.options.digests || exact.place().await?.as_ref() == Some(&place);
            if !is_one && !needed && left == 0 {
                // Digests are not worth a lock.
                exact.close().await?;
                is_one = true;
            }
            if is_one && quiet.nothing_was_prepared(&told).await? {
                quiet.release().await?;
                return Ok(Some((place, dump)));
            }
        }
        Ok(None)
    }

    /// A dump whose snapshot is open, and its first bytes.
    async fn started(&self, before: &Beneath, places: bool) -> Result<(Dump<'a>, BytesMut)> {
        let mut dump = Dump::start(self, before, places)?;
        match dump.read_head().await {
            Ok(head) => Ok((dump, head)),
            Err(error) => Err(dump.explain(error).await),
        }
    }

    async fn released(&self, lock: Lock) -> Result<()> {
        let held = lock.release().await?;
        tracing::info!(source = self.options.name, "writes waited {} ms", held.as_millis());
        Ok(())
    }

    /// Everything that a snapshot does not cover, as it is now.
    async fn beneath(&self, conn: &mut Conn) -> Result<Beneath> {
        // A connection of its own: reading accounts changes the session.
        let mut other = sql::connect(&self.options.endpoint).await?;
        let accounts = accounts::read(&mut other, self.flavor.family).await?;
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

    fn taken(&self, position: &LogEnd, at: Timestamp, contents: Option<Contents>) -> BaselineTaken {
        BaselineTaken {
            position: Position::new(position.file.clone(), position.offset),
            at,
            server: self.server.clone(),
            kind: "sql",
            contents,
        }
    }
}

async fn send(out: &mpsc::Sender<Bytes>, mut bytes: Bytes) -> Result<()> {
    while !bytes.is_empty() {
        out.send(bytes.split_to(bytes.len().min(PIECE_BYTES)))
            .await
            .map_err(|_| Error::unavailable("the baseline's bytes are not taken any more"))?;
    }
    Ok(())
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
