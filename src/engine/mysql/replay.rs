//! The target's side of a replay: its replication settings, and watching its applier.
//!
//! **Invariant:** a replay is over when the target has executed everything that was sent, or when
//! one of its replication threads, or the log, says why that cannot be. It waits for nothing else.

use super::ask;
use super::executed::Executed;
use super::serve::ReplaySource;
use super::walk::Served;
use crate::error::{Error, Result};
use mysql_async::{Conn, Row};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How often the target is asked how it fares.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long a thread may be stopped without an error: somebody may start it again.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often progress is logged.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// Makes the target a replica of pitr at `address` and starts it.
pub(super) async fn start(
    conn: &mut Conn,
    source: &ReplaySource,
    address: SocketAddr,
) -> Result<()> {
    let (user, password) = source.login();
    let host = match address.ip() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => ip.to_string(),
    };
    let port = address.port();
    // Neither error nor log gets to see the statement: it has the password.
    ask::run(
        conn,
        format!(
            "CHANGE REPLICATION SOURCE TO SOURCE_HOST = '{host}', SOURCE_PORT = {port}, \
             SOURCE_USER = '{user}', SOURCE_PASSWORD = '{}', SOURCE_AUTO_POSITION = 1, \
             SOURCE_SSL = 0, GET_SOURCE_PUBLIC_KEY = 0, SOURCE_CONNECT_RETRY = 1, \
             SOURCE_RETRY_COUNT = 30, SOURCE_HEARTBEAT_PERIOD = 1, SOURCE_DELAY = 0, \
             PRIVILEGE_CHECKS_USER = NULL, REQUIRE_ROW_FORMAT = 0",
            password.reveal()
        ),
        || "make the target a replica of pitr".into(),
    )
    .await?;
    ask::run(conn, "START REPLICA", || "start the target's replication".into()).await
}

/// Stops replication and forgets everything about it.
pub(super) async fn end(conn: &mut Conn) -> Result<()> {
    ask::run(conn, "STOP REPLICA", || "stop the target's replication".into()).await?;
    ask::run(conn, "RESET REPLICA ALL", || "forget the target's replication".into()).await
}

/// Waits until everything was sent and executed.
///
/// # Errors
/// Unavailable, with the words of the target, if a replication thread has stopped.
pub(super) async fn wait(
    conn: &mut Conn,
    mut served: watch::Receiver<Option<Arc<Served>>>,
) -> Result<Arc<Served>> {
    let mut reported = Instant::now();
    let mut stopped: Option<Instant> = None;
    loop {
        match check_threads(conn).await? {
            None => stopped = None,
            Some(what) if stopped.get_or_insert_with(Instant::now).elapsed() > PATIENCE => {
                return Err(Error::unavailable(format!("the target's {what} was stopped")));
            }
            Some(_) => {}
        }
        let all = served.borrow_and_update().clone();
        match all {
            Some(all) if has_executed(conn, &all.gtids).await? => return Ok(all),
            Some(_) => {}
            None => {
                // Ends early when everything was sent.
                let _timeout = tokio::time::timeout(LOOK_EVERY, served.changed()).await;
            }
        }
        if reported.elapsed() >= REPORT_EVERY {
            reported = Instant::now();
            if let Some(executed) = super::load::executed(conn).await?.count() {
                tracing::info!("the target has executed {executed} transactions");
            }
        }
    }
}

/// Waits a moment for the target to have executed all of `set`.
async fn has_executed(conn: &mut Conn, set: &Executed) -> Result<bool> {
    if set.is_empty() {
        return Ok(true);
    }
    // 1: not yet.
    let missing: Option<u8> =
        ask::first(conn, format!("SELECT WAIT_FOR_EXECUTED_GTID_SET('{set}', 1)"), || {
            "wait for the target".into()
        })
        .await?;
    Ok(missing == Some(0))
}

/// Whether the receiver and the applier still work. Gives the one that somebody stopped.
async fn check_threads(conn: &mut Conn) -> Result<Option<&'static str>> {
    let asking = || "ask the target for its replication".to_owned();
    let row: Option<Row> = ask::first(conn, "SHOW REPLICA STATUS", asking).await?;
    let row = row.ok_or_else(|| {
        Error::unavailable("the target is no replica any more: somebody reset its replication")
    })?;
    let text = |name: &str| -> String {
        row.get_opt::<Option<String>, _>(name).and_then(Result::ok).flatten().unwrap_or_default()
    };
    for (running, number, message, what) in [
        ("Replica_SQL_Running", "Last_SQL_Errno", "Last_SQL_Error", "applier"),
        ("Replica_IO_Running", "Last_IO_Errno", "Last_IO_Error", "receiver"),
    ] {
        let (state, number) = (text(running), text(number));
        if state != "No" {
            continue;
        }
        if number == "0" {
            return Ok(Some(what));
        }
        let worker = worker_error(conn).await?.unwrap_or_else(|| text(message));
        return Err(Error::unavailable(format!(
            "the target's {what} stopped with error {number}: {worker}"
        ))
        .hint("the target is left as it is, for a look at it; make a fresh one to try again"));
    }
    Ok(None)
}

/// What the first worker that failed says: the coordinator only points there.
async fn worker_error(conn: &mut Conn) -> Result<Option<String>> {
    ask::first(
        conn,
        "SELECT LAST_ERROR_MESSAGE FROM \
         performance_schema.replication_applier_status_by_worker \
         WHERE LAST_ERROR_NUMBER <> 0 ORDER BY LAST_ERROR_TIMESTAMP LIMIT 1",
        || "ask the target's workers".into(),
    )
    .await
}
