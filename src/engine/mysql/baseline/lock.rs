//! The short global lock under which all snapshots of a baseline are opened.
//!
//! While it is held, nothing is committed, prepared or defined. That it was held all the time is
//! proved at its end: the connection that holds it still answers, and the binlog ends where it
//! ended at the beginning. So snapshots that were opened under it are of one instant, and that
//! instant is the log's end.
//!
//! **Invariant:** dropped or released, it is gone: it lives no longer than its connection.

use super::super::{ask, sql};
use super::place::LogEnd;
use crate::engine::Endpoint;
use crate::error::{Error, Result};
use mysql_async::{Conn, Row};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// How long the lock may be waited for, and how long it may be held, in seconds: who wants to
/// write waits meanwhile.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Limits {
    /// For each of the two steps that it takes.
    pub(in super::super) wait: u32,
    /// The server lets go when nothing came from us for so long; `None` for a year.
    pub(in super::super) idle: Option<u32>,
}

/// The limits of a baseline.
pub(super) const BASELINE: Limits = Limits { wait: 30, idle: None };

/// Holds the lock.
#[derive(Debug)]
pub(in super::super) struct Lock {
    conn: Conn,
    at: LogEnd,
    since: Instant,
}

impl Lock {
    /// Waits for running statements to end, and locks.
    ///
    /// # Errors
    /// Unavailable, if a statement does not end in time.
    pub(super) async fn take(endpoint: &Endpoint) -> Result<Self> {
        Self::take_on(sql::connect(endpoint).await?, BASELINE).await
    }

    /// The same over a connection that is there, within these limits.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub(in super::super) async fn take_on(mut conn: Conn, limits: Limits) -> Result<Self> {
        let locking = || "lock against writes for a moment".to_owned();
        match limits.idle {
            Some(idle) => {
                let idle = format!("SET SESSION wait_timeout = {idle}");
                ask::run(&mut conn, idle, locking).await?;
            }
            None => ask::keep_open(&mut conn).await?,
        }
        let wait = format!("SET SESSION lock_wait_timeout = {}", limits.wait);
        ask::run(&mut conn, wait, locking).await?;
        let mut since = Instant::now();
        // Most of the waiting is done here, where writers go on.
        for statement in ["FLUSH LOCAL TABLES", "FLUSH TABLES WITH READ LOCK"] {
            since = Instant::now();
            let locked = ask::run(&mut conn, statement, locking).await;
            let timed_out = ask::server_code(&locked) == Some(1205);
            let busy = "see SHOW PROCESSLIST for the statement that runs for so long";
            locked.map_err(|error| if timed_out { error.hint(busy) } else { error })?;
        }
        let at = LogEnd::read(&mut conn).await?;
        Ok(Self { conn, at, since })
    }

    /// The connection that holds it.
    pub(in super::super) fn conn(&mut self) -> &mut Conn {
        &mut self.conn
    }

    /// Where the binlog ends for as long as the lock is held.
    pub(super) fn at(&self) -> &LogEnd {
        &self.at
    }

    /// As [`prepared`], at the instant of the lock.
    pub(super) async fn prepared(&mut self) -> Result<Option<Vec<String>>> {
        prepared(&mut self.conn).await
    }

    /// Lets writers go on. Gives how long they waited.
    ///
    /// # Errors
    /// Unavailable, if the lock was not held all the time.
    pub(in super::super) async fn release(mut self) -> Result<Duration> {
        let lost = |error: Error| error.context("the lock against writes was lost");
        let end = LogEnd::read(&mut self.conn).await.map_err(lost)?;
        if end != self.at {
            return Err(Error::unavailable(format!(
                "the binlog went on from {} to {end} under a lock against writes",
                self.at
            )));
        }
        ask::run(&mut self.conn, "UNLOCK TABLES", || "unlock".into()).await.map_err(lost)?;
        Ok(self.since.elapsed())
    }
}

/// Transactions that are prepared and neither committed nor rolled back, as `XA COMMIT` takes
/// their names. `None` if the account may not see them.
pub(super) async fn prepared(conn: &mut Conn) -> Result<Option<Vec<String>>> {
    let asking = || "ask for prepared XA transactions".to_owned();
    let rows = ask::rows::<Row>(conn, "XA RECOVER", asking).await;
    if ask::server_code(&rows) == Some(1401) {
        return Ok(None);
    }
    let names = rows?.into_iter().map(|row| {
        xid(row).ok_or_else(|| Error::unavailable("the answer to XA RECOVER is not understood"))
    });
    names.collect::<Result<_>>().map(Some)
}

/// `formatID`, `gtrid_length`, `bqual_length`, `data` as `X'…',X'…',1`.
fn xid(mut row: Row) -> Option<String> {
    let format: i64 = row.take_opt(0)?.ok()?;
    let length: usize = row.take_opt(1)?.ok()?;
    let data: Vec<u8> = row.take_opt(3)?.ok()?;
    let (global, branch) = data.split_at_checked(length)?;
    let hex = |bytes: &[u8]| {
        bytes.iter().try_fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02X}").ok()?;
            Some(text)
        })
    };
    Some(format!("X'{}',X'{}',{format}", hex(global)?, hex(branch)?))
}
