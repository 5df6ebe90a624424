//! The target's side of a replay: its replication settings, and watching its applier.
//!
//! **Invariant:** a replay is over when the target has executed everything that was sent, or when
//! one of its replication threads, or the log, says why that cannot be. It waits for nothing else.

use super::flavor::Family;
use super::serve::ReplaySource;
use super::walk::Served;
use super::{ask, standing};
use crate::error::{Error, Result};
use crate::position::Position;
use mysql_async::{Conn, Row};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How often the target is asked how it fares.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long a thread may be stopped without an error: somebody may start it again.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the receiver may try in vain to connect: pitr listens all the time.
const CONNECTING: Duration = Duration::from_secs(30);
/// How often progress is logged.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// Makes the target a replica of pitr at `address` and starts it: by GTIDs, or at the place `from`.
pub(super) async fn start(
    conn: &mut Conn,
    family: Family,
    source: &ReplaySource,
    address: SocketAddr,
    from: Option<&Position>,
) -> Result<()> {
    let (user, password) = source.login();
    let host = match address.ip() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => ip.to_string(),
    };
    let (port, password) = (address.port(), password.reveal());
    let place = from.map_or_else(
        || "SOURCE_AUTO_POSITION = 1".to_owned(),
        |Position { log, offset, .. }| {
            // Before the first event.
            let offset = (*offset).max(4);
            format!(
                "SOURCE_AUTO_POSITION = 0, SOURCE_LOG_FILE = '{log}', SOURCE_LOG_POS = {offset}, \
                 ASSIGN_GTIDS_TO_ANONYMOUS_TRANSACTIONS = OFF"
            )
        },
    );
    let change = match family {
        Family::MySql => format!(
            "CHANGE REPLICATION SOURCE TO SOURCE_HOST = '{host}', SOURCE_PORT = {port}, \
             SOURCE_USER = '{user}', SOURCE_PASSWORD = '{password}', {place}, \
             SOURCE_SSL = 0, GET_SOURCE_PUBLIC_KEY = 0, SOURCE_CONNECT_RETRY = 1, \
             SOURCE_RETRY_COUNT = 30, SOURCE_HEARTBEAT_PERIOD = 1, SOURCE_DELAY = 0, \
             PRIVILEGE_CHECKS_USER = NULL, REQUIRE_ROW_FORMAT = 0"
        ),
        Family::MariaDb => format!(
            "CHANGE MASTER TO MASTER_HOST = '{host}', MASTER_PORT = {port}, \
             MASTER_USER = '{user}', MASTER_PASSWORD = '{password}', \
             MASTER_USE_GTID = slave_pos, MASTER_SSL = 0, MASTER_SSL_VERIFY_SERVER_CERT = 0, \
             MASTER_CONNECT_RETRY = 1, MASTER_HEARTBEAT_PERIOD = 1, MASTER_DELAY = 0"
        ),
    };
    // Neither error nor log gets to see the statement: it has the password.
    ask::run(conn, change, || "make the target a replica of pitr".into()).await?;
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
    family: Family,
    mut served: watch::Receiver<Option<Arc<Served>>>,
) -> Result<Arc<Served>> {
    let mut reported = Instant::now();
    let mut stopped: Option<Instant> = None;
    loop {
        match check_threads(conn, family).await? {
            None => stopped = None,
            Some((patience, what))
                if stopped.get_or_insert_with(Instant::now).elapsed() > patience =>
            {
                return Err(Error::unavailable(format!("the target's {what}")));
            }
            Some(_) => {}
        }
        let all = served.borrow_and_update().clone();
        match all {
            Some(all) if has_applied(conn, &all).await? => return Ok(all),
            Some(_) => {}
            None => {
                // Ends early when everything was sent.
                let _timeout = tokio::time::timeout(LOOK_EVERY, served.changed()).await;
            }
        }
        if reported.elapsed() >= REPORT_EVERY {
            reported = Instant::now();
            if let Some(executed) = standing::executed(conn, family).await?.count() {
                tracing::info!("the target has executed {executed} transactions");
            }
        }
    }
}

/// Waits a moment for the target to have applied everything.
async fn has_applied(conn: &mut Conn, all: &Served) -> Result<bool> {
    let Some(end) = &all.end else { return standing::has_executed(conn, &all.named).await };
    let asking = || "ask the target how far it has come".to_owned();
    let row: Option<Row> = ask::first(conn, "SHOW REPLICA STATUS", asking).await?;
    let at = row.and_then(|row| {
        let log: String = row.get_opt("Relay_Source_Log_File")?.ok()?;
        Some(Position::new(log, row.get_opt("Exec_Source_Log_Pos")?.ok()?))
    });
    let at = at.ok_or_else(|| Error::unavailable("the target does not say how far it has come"))?;
    if has_passed(&at, end) {
        return standing::has_executed(conn, &all.gtids).await;
    }
    tokio::time::sleep(LOOK_EVERY).await;
    Ok(false)
}

/// Whether an applier that stands at `at` has applied what ends at `end`.
fn has_passed(at: &Position, end: &Position) -> bool {
    let number = |log: &str| log.rsplit_once('.').and_then(|(_, n)| n.parse::<u64>().ok());
    at.log == end.log && at.offset >= end.offset || number(&at.log) > number(&end.log)
}

/// Whether the receiver and the applier still work. If one does not, and gives no error that is
/// final: how long that may last, and what is the matter.
async fn check_threads(conn: &mut Conn, family: Family) -> Result<Option<(Duration, String)>> {
    let asking = || "ask the target for its replication".to_owned();
    let row: Option<Row> = ask::first(conn, "SHOW REPLICA STATUS", asking).await?;
    let row = row.ok_or_else(|| {
        Error::unavailable("the target is no replica any more: somebody reset its replication")
    })?;
    let text = |name: &str| -> String {
        row.get_opt::<Option<String>, _>(name).and_then(Result::ok).flatten().unwrap_or_default()
    };
    let (applier, receiver) = match family {
        Family::MySql => ("Replica_SQL_Running", "Replica_IO_Running"),
        Family::MariaDb => ("Slave_SQL_Running", "Slave_IO_Running"),
    };
    for (running, number, message, what) in [
        (applier, "Last_SQL_Errno", "Last_SQL_Error", "applier"),
        (receiver, "Last_IO_Errno", "Last_IO_Error", "receiver"),
    ] {
        let (state, number) = (text(running), text(number));
        match (state.as_str(), number.as_str()) {
            ("No", "0") => return Ok(Some((PATIENCE, format!("{what} was stopped")))),
            ("Connecting", _) => {
                let what = format!("{what} does not get through to pitr: {}", text(message));
                return Ok(Some((CONNECTING, what)));
            }
            ("No", _) => {}
            ("", _) => {
                return Err(Error::unavailable(format!("the target does not say {running}")));
            }
            _ => continue,
        }
        let said = match family {
            Family::MySql => worker_error(conn).await?,
            Family::MariaDb => None,
        };
        let said = said.unwrap_or_else(|| text(message));
        return Err(Error::unavailable(format!(
            "the target's {what} stopped with error {number}: {said}"
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
