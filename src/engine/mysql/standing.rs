//! What a target has executed: read, taken over from a baseline, waited for, and left behind.
//!
//! A MySQL has `gtid_executed`. A MariaDB has two things: `gtid_slave_pos`, the last transaction
//! of each domain that came from a source, and, if it writes a binlog, `gtid_binlog_state`, what
//! that log holds. A restored MariaDB has in both exactly what its source's log had at the
//! instant, as a promoted replica has: it numbers its own transactions from there on, and other
//! replicas may go on with it.
//!
//! **Invariant:** GTIDs are set before the first transaction is replayed, and what was replayed
//! is compared with them: none is set that was not executed.

use super::executed::Executed;
use super::flavor::Family;
use super::maria::BinlogState;
use super::{ask, load};
use crate::error::{Class, Error, Result};
use mysql_async::{Conn, Row};

/// Everything executed by the target, as far as GTIDs say it.
///
/// # Errors
/// Unavailable, if the target does not say it.
pub(super) async fn executed(conn: &mut Conn, family: Family) -> Result<Executed> {
    match family {
        Family::MySql => load::executed(conn).await,
        Family::MariaDb => Ok(slave_pos(conn).await?.into()),
    }
}

/// What [`executed`] gives once everything of `set` is executed.
pub(super) fn as_executed(set: &Executed) -> Executed {
    match set {
        Executed::MySql(_) => set.clone(),
        Executed::Maria(state) => position_of(state).into(),
    }
}

/// Forgets the GTIDs that the target has executed so far and takes over those of a baseline.
///
/// # Errors
/// Finding, if the target has not exactly those afterwards.
pub(super) async fn take_over(conn: &mut Conn, family: Family, gtids: &str) -> Result<()> {
    if family == Family::MySql {
        return load::take_over_gtids(conn, gtids).await;
    }
    let state: BinlogState = gtids.parse()?;
    set_binlog_state(conn, &state).await?;
    set_slave_pos(conn, &position_of(&state)).await
}

/// Waits a moment for the target to have executed all of `set`.
///
/// # Errors
/// Unavailable, if it does not answer.
pub(super) async fn has_executed(conn: &mut Conn, set: &Executed) -> Result<bool> {
    let waiting = || "wait for the target".to_owned();
    if set.is_empty() {
        return Ok(true);
    }
    let state = match set {
        Executed::MySql(set) => {
            let wait = format!("SELECT WAIT_FOR_EXECUTED_GTID_SET('{set}', 1)");
            // 1: not yet.
            let missing: Option<u8> = ask::first(conn, wait, waiting).await?;
            return Ok(missing == Some(0));
        }
        Executed::Maria(state) => state,
    };
    let position = position_of(state);
    let wait = format!("SELECT MASTER_GTID_WAIT('{position}', 1)");
    let waited: Option<i8> = ask::first(conn, wait, waiting).await?;
    if waited != Some(0) {
        return Ok(false);
    }
    // A number is not enough: numbers may come out of order. And what was received of a domain
    // that the log has forgotten since stands in no list of its.
    let applied = slave_pos(conn).await?;
    let row: Option<Row> = ask::first(conn, "SHOW REPLICA STATUS", waiting).await?;
    let received: Option<String> =
        row.and_then(|row| row.get_opt("Gtid_IO_Pos").and_then(Result::ok));
    let received: BinlogState = received.unwrap_or_default().parse()?;
    let all = position.position().all(|gtid| applied.position().any(|other| other == gtid));
    if all && received == applied {
        return Ok(true);
    }
    // The wait was none.
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    Ok(false)
}

/// Leaves on a target that is no replica any more what a promoted replica would have.
///
/// # Errors
/// Finding, if its own binlog holds something else than what was replayed.
pub(super) async fn settle(conn: &mut Conn, set: &Executed) -> Result<()> {
    let Executed::Maria(state) = set else { return Ok(()) };
    let position = position_of(state);
    if slave_pos(conn).await? != position {
        set_slave_pos(conn, &position).await?;
    }
    let Some(logged) = binlog_state(conn).await? else { return Ok(()) };
    if logged == *state {
        return Ok(());
    }
    let logs: Option<bool> =
        ask::first(conn, "SELECT @@GLOBAL.log_slave_updates", || "read log_slave_updates".into())
            .await?;
    if logs != Some(false) {
        return Err(Error::new(
            Class::Finding,
            format!("the target's binlog holds {{{logged}}}, what was replayed was {{{state}}}"),
        ));
    }
    set_binlog_state(conn, state).await
}

/// The same for a MariaDB that has run and logged everything itself. Its binlog may lack what it
/// has a reason not to log (an empty transaction, say): then it is emptied, and goes on behind
/// what was replayed.
///
/// # Errors
/// Unavailable, if the target does not take it.
pub(super) async fn settle_logged(conn: &mut Conn, set: &Executed) -> Result<()> {
    let Executed::Maria(state) = set else { return Ok(()) };
    if binlog_state(conn).await?.is_some_and(|logged| logged != *state) {
        set_binlog_state(conn, state).await?;
    }
    set_slave_pos(conn, &position_of(state)).await
}

/// Looks whether the target has executed exactly `expected`.
///
/// # Errors
/// Finding, if it has not.
pub(super) async fn compare(conn: &mut Conn, family: Family, expected: &Executed) -> Result<()> {
    let finding = |what: String| Err(Error::new(Class::Finding, what));
    let executed = executed(conn, family).await?;
    let wanted = as_executed(expected);
    if executed != wanted {
        let (missing, surplus) = (wanted.subtract(&executed), executed.subtract(&wanted));
        return finding(format!(
            "the target has not executed exactly what was applied: \
             missing {{{missing}}}, surplus {{{surplus}}}"
        ));
    }
    if let Executed::Maria(state) = expected
        && let Some(logged) = binlog_state(conn).await?
        && logged != *state
    {
        return finding(format!("the target's gtid_binlog_state is {{{logged}}}, not {{{state}}}"));
    }
    Ok(())
}

fn position_of(state: &BinlogState) -> BinlogState {
    let mut position = BinlogState::default();
    state.position().for_each(|gtid| position.add(gtid));
    position
}

async fn slave_pos(conn: &mut Conn) -> Result<BinlogState> {
    let text: Option<String> =
        ask::first(conn, "SELECT @@GLOBAL.gtid_slave_pos", || "read gtid_slave_pos".into()).await?;
    text.ok_or_else(|| Error::unavailable("the target has no gtid_slave_pos"))?.parse()
}

async fn set_slave_pos(conn: &mut Conn, position: &BinlogState) -> Result<()> {
    let set = format!("SET GLOBAL gtid_slave_pos = '{position}'");
    ask::run(conn, set, || "set gtid_slave_pos".into()).await?;
    let now = slave_pos(conn).await?;
    if now == *position {
        return Ok(());
    }
    let what = format!("the target's gtid_slave_pos is {{{now}}}, not {{{position}}}");
    Err(Error::new(Class::Finding, what))
}

/// `@@gtid_binlog_state`; `None` if the target writes no binlog.
async fn binlog_state(conn: &mut Conn) -> Result<Option<BinlogState>> {
    let reading = || "read gtid_binlog_state".to_owned();
    let state: Option<(bool, Option<String>)> =
        ask::first(conn, "SELECT @@GLOBAL.log_bin, @@GLOBAL.gtid_binlog_state", reading).await?;
    match state {
        Some((true, state)) => Ok(Some(state.unwrap_or_default().parse()?)),
        Some((false, _)) => Ok(None),
        None => Err(Error::unavailable("the target has no gtid_binlog_state")),
    }
}

/// Empties the target's binlog, if it writes one, and has it go on behind `state`.
async fn set_binlog_state(conn: &mut Conn, state: &BinlogState) -> Result<()> {
    if binlog_state(conn).await?.is_none() {
        return Ok(());
    }
    ask::run(conn, "RESET MASTER", || "clear the target's own GTIDs".into()).await?;
    let set = format!("SET GLOBAL gtid_binlog_state = '{state}'");
    ask::run(conn, set, || "set gtid_binlog_state".into()).await
}
