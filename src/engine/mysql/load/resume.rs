//! A load that was interrupted goes on with the tables that are whole.
//!
//! While a running server is loaded, a table beside its mark ([`half`](super::super::half)) holds
//! the name of each table whose rows and keys are all in. The next attempt drops everything else
//! and reads the baseline again, past what is whole.
//!
//! Only tables of InnoDB are noted: of others a crash may lose rows that were taken. An event of
//! the source that came to run would change them, so where the scheduler was switched on again,
//! as by a restart of the server, nothing counts as whole any more.
//!
//! **Invariant:** a table is noted after the server has taken all of it, and forgotten before
//! anything else may change it; nothing is dropped or skipped while a connection of an earlier
//! attempt still works.

use super::super::accounts::identifier;
use super::super::ask;
use super::super::baseline::SYSTEM_SCHEMAS;
use super::super::half::SCHEMA;
use crate::error::{Error, Result};
use mysql_async::Conn;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The most connections that load at once, the one for everything but rows included.
pub(super) const LANES_MAX: usize = 9;
/// How long what was begun may take to be rolled back.
const ROLLBACK: Duration = Duration::from_hours(1);
/// How often the server is asked meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What is noted in place of a table's name as soon as there may be an event. A table's name has
/// quotes.
const EVENTS: &str = "EVENTS";
/// `ER_NO_SUCH_THREAD`: it has ended by itself.
const NO_SUCH_THREAD: u16 = 1094;
/// `ER_NO_SUCH_TABLE`.
const NO_SUCH_TABLE: u16 = 1146;

/// The tables that are whole, each with its schema, both quoted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in super::super) struct Whole(BTreeSet<String>);

impl Whole {
    pub(super) fn contains(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    /// How many there are.
    pub(in super::super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// The lock that a connection holds as long as it lasts.
pub(super) fn lane_lock(number: usize) -> String {
    format!("{SCHEMA}.{number}")
}

/// Makes room for the names, unless there is.
pub(in super::super) async fn begin(conn: &mut Conn) -> Result<()> {
    let create = format!(
        "CREATE TABLE IF NOT EXISTS {SCHEMA}.loaded (name VARBINARY(600) NOT NULL PRIMARY KEY) \
         ENGINE = InnoDB"
    );
    ask::run(conn, create, || "make room for what is loaded".into()).await
}

/// The load is over, and the tables will change: none is whole any more.
pub(in super::super) async fn end(conn: &mut Conn) -> Result<()> {
    let drop = format!("DROP TABLE IF EXISTS {SCHEMA}.loaded");
    ask::run(conn, drop, || "forget what is loaded".into()).await
}

/// A statement that notes these tables.
pub(super) fn note(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("({})", hex(name))).collect();
    format!("REPLACE INTO {SCHEMA}.loaded VALUES {}", names.join(", "))
}

/// A statement that notes that there may be an event.
pub(super) fn note_events() -> String {
    note(&[EVENTS.to_owned()])
}

/// A statement that forgets one table.
pub(super) fn forget(name: &str) -> String {
    format!("DELETE FROM {SCHEMA}.loaded WHERE name = {}", hex(name))
}

/// A statement that forgets all tables.
pub(super) fn forget_all() -> String {
    format!("DELETE FROM {SCHEMA}.loaded")
}

/// In no setting of a session does this mean anything else.
fn hex(name: &str) -> String {
    let digits = name.bytes().fold(String::new(), |digits, byte| digits + &format!("{byte:02x}"));
    format!("x'{digits}'")
}

/// The tables that are whole.
pub(in super::super) async fn whole(conn: &mut Conn) -> Result<Whole> {
    let asking = || "ask which tables are whole".to_owned();
    let noted = ask::rows(conn, format!("SELECT name FROM {SCHEMA}.loaded"), asking).await;
    if ask::server_code(&noted) == Some(NO_SUCH_TABLE) {
        return Ok(Whole::default());
    }
    let noted: Vec<Vec<u8>> = noted?;
    let noted: BTreeSet<String> =
        noted.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    let scheduler: Option<String> =
        ask::first(conn, "SELECT CAST(@@GLOBAL.event_scheduler AS CHAR)", asking).await?;
    let runs = !matches!(scheduler.as_deref(), Some("OFF" | "DISABLED"));
    if runs && noted.contains(EVENTS) {
        tracing::warn!("the target's event scheduler was switched on: the load starts anew");
        return Ok(Whole::default());
    }
    let there: Vec<(String, String)> = ask::rows(
        conn,
        format!(
            "SELECT TABLE_SCHEMA, TABLE_NAME FROM information_schema.TABLES \
             WHERE TABLE_SCHEMA NOT IN ({SYSTEM_SCHEMAS}) AND ENGINE = 'InnoDB'"
        ),
        asking,
    )
    .await?;
    let there = there.iter().map(|(schema, table)| quoted(schema, table));
    Ok(Whole(there.filter(|name| noted.contains(name)).collect()))
}

fn quoted(schema: &str, name: &str) -> String {
    format!("{}.{}", identifier(schema), identifier(name))
}

/// Drops all schemas, but leaves the tables that are whole, and theirs.
pub(in super::super) async fn drop_all_but(conn: &mut Conn, whole: &Whole) -> Result<()> {
    let dropping = |what: &str| format!("drop {what}, which an interrupted restore left");
    let listing = || "list what an interrupted restore left".to_owned();
    let objects: Vec<(String, String, String)> = ask::rows(
        conn,
        "SELECT 'EVENT', EVENT_SCHEMA, EVENT_NAME FROM information_schema.EVENTS \
         UNION ALL SELECT 'TRIGGER', TRIGGER_SCHEMA, TRIGGER_NAME FROM information_schema.TRIGGERS \
         UNION ALL SELECT ROUTINE_TYPE, ROUTINE_SCHEMA, ROUTINE_NAME \
           FROM information_schema.ROUTINES WHERE ROUTINE_TYPE <> 'PACKAGE BODY' \
         UNION ALL SELECT IF(TABLE_TYPE IN ('VIEW', 'SEQUENCE'), TABLE_TYPE, 'TABLE'), \
           TABLE_SCHEMA, TABLE_NAME FROM information_schema.TABLES",
        listing,
    )
    .await?;
    let schemas: Vec<String> = ask::rows(
        conn,
        format!(
            "SELECT SCHEMA_NAME FROM information_schema.SCHEMATA \
             WHERE SCHEMA_NAME NOT IN ({SYSTEM_SCHEMAS}) AND SCHEMA_NAME <> '{SCHEMA}'"
        ),
        listing,
    )
    .await?;
    for schema in schemas {
        let of_it = || objects.iter().filter(|(_, of, _)| *of == schema);
        let stays =
            |kind: &str, name: &str| kind == "TABLE" && whole.contains(&quoted(&schema, name));
        if !of_it().any(|(kind, _, name)| stays(kind, name)) {
            let name = identifier(&schema);
            ask::run(conn, format!("DROP DATABASE {name}"), || dropping(&name)).await?;
            continue;
        }
        for (kind, _, name) in of_it().filter(|(kind, _, name)| !stays(kind, name)) {
            let name = quoted(&schema, name);
            ask::run(conn, format!("DROP {kind} IF EXISTS {name}"), || dropping(&name)).await?;
        }
    }
    Ok(())
}

/// Ends what connections of earlier attempts still do, and waits until they are gone.
pub(in super::super) async fn end_lanes(conn: &mut Conn) -> Result<()> {
    let begun = Instant::now();
    for number in 0..LANES_MAX {
        while let Some(id) = user_of(conn, &lane_lock(number)).await? {
            kill(conn, id, begun.elapsed() > ROLLBACK).await?;
        }
    }
    Ok(())
}

/// The session that holds a lock.
pub(in super::super) async fn user_of(conn: &mut Conn, lock: &str) -> Result<Option<u64>> {
    let asking = || "look for an unfinished restore".to_owned();
    let used: Option<Option<u64>> =
        ask::first(conn, format!("SELECT IS_USED_LOCK('{lock}')"), asking).await?;
    Ok(used.flatten())
}

/// Ends a session and gives it a moment to go.
///
/// # Errors
/// Unavailable, if it is `overdue`.
pub(in super::super) async fn kill(conn: &mut Conn, id: u64, overdue: bool) -> Result<()> {
    if overdue {
        return Err(Error::unavailable(format!(
            "the target's connection {id}, of an earlier attempt, does not end"
        ))
        .hint("SHOW PROCESSLIST says what it does; run the same restore again once it is gone"));
    }
    let killed = ask::run(conn, format!("KILL {id}"), || format!("end connection {id}")).await;
    if ask::server_code(&killed) != Some(NO_SUCH_THREAD) {
        killed?;
    }
    tokio::time::sleep(LOOK_EVERY).await;
    Ok(())
}
