//! Which of several servers is captured from, and when that changes.
//!
//! The rules are a function of what the servers say ([`choose`]); `docs/decisions` has the
//! reasons. Everything archived is compared by GTIDs: names and offsets of files mean nothing on
//! another server.
//!
//! **Invariant:** a server that lacks anything archived is never gone on from as if it had it. A
//! fork is followed only when there is one: a server that was promoted (it takes writes and
//! replicates from nobody), while the one that was captured is gone or was demoted.

use super::executed::Executed;
use super::{join, sql};
use crate::engine::Endpoint;
use crate::error::Result;
use mysql_async::{Conn, Row};
use std::time::Duration;

/// How long the current server has to be gone before a replica that nobody promoted is gone on
/// from: a restart takes less.
pub(crate) const REPLICA_AFTER: Duration = Duration::from_secs(10);

/// How long it has to be gone before a promoted server that lacks archived transactions is
/// followed: they may still come, and so may a server that has them.
pub(crate) const FORK_AFTER: Duration = Duration::from_secs(30);

/// How long a server may take to say what it has.
const VIEW_TIMEOUT: Duration = Duration::from_secs(5);

/// What one server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is an answer of its own")]
pub(crate) struct View {
    /// `@@server_uuid`.
    pub(crate) uuid: String,
    /// Everything that it executed.
    pub(crate) executed: Executed,
    /// What of that is in none of its files.
    pub(crate) purged: Executed,
    /// Whether every transaction gets a GTID.
    pub(crate) named: bool,
    /// Whether ordinary accounts cannot write to it.
    pub(crate) read_only: bool,
    /// Whether replication from another server is switched on.
    pub(crate) replicates: bool,
    /// Whether it is connected to that server and applies what comes.
    pub(crate) fed: bool,
}

/// A configured server, and what it says or why it says nothing.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// Its address, for messages.
    pub(crate) peer: String,
    /// What it says.
    pub(crate) view: Result<View, String>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Choice {
    /// This one is the server that the archive ends with, or nothing is archived yet: go on by
    /// file and position.
    Stay(usize),
    /// This other one has everything that was archived: go on by GTIDs.
    Join(usize),
    /// This one has another history from a point on: follow it on a new timeline.
    Fork(usize, String),
    /// None can be gone on from now.
    Wait(String),
}

/// Asks every server at once.
pub(crate) async fn look_around(endpoints: &[Endpoint]) -> Vec<Seen> {
    let looks = endpoints.iter().map(|endpoint| async {
        let peer = endpoint.to_string();
        let view = async {
            let mut conn = sql::connect(endpoint).await?;
            let view = view(&mut conn, &peer).await?;
            // A connection that does not end in order is closed all the same.
            drop(conn.disconnect().await);
            Ok::<_, crate::error::Error>(view)
        };
        let view = match tokio::time::timeout(VIEW_TIMEOUT, view).await {
            Ok(view) => view.map_err(|error| error.to_string()),
            Err(_) => Err(format!("{peer} does not answer")),
        };
        Seen { peer, view }
    });
    futures_util::future::join_all(looks).await
}

/// `@@server_uuid`; `None` of a MariaDB, which has none.
pub(crate) async fn uuid(conn: &mut Conn, peer: &str) -> Result<Option<String>> {
    let ask = "SHOW GLOBAL VARIABLES LIKE 'server_uuid'";
    let row: Option<(String, String)> = sql::rows(conn, peer, ask).await?.into_iter().next();
    Ok(row.map(|(_, uuid)| uuid))
}

/// Whether a server is closed for ordinary accounts.
pub(crate) async fn is_read_only(conn: &mut Conn, peer: &str) -> Result<bool> {
    let (read_only,): (bool,) = sql::row(conn, peer, "SELECT @@GLOBAL.read_only").await?;
    Ok(read_only)
}

/// Whether a server is set up to replicate from another one, running or not.
pub(crate) async fn replicates(conn: &mut Conn, peer: &str) -> Result<bool> {
    Ok(!channels(conn, peer).await?.is_empty())
}

async fn channels(conn: &mut Conn, peer: &str) -> Result<Vec<Row>> {
    // The newer words are known from 8.0.22 on.
    match sql::rows(conn, peer, "SHOW REPLICA STATUS").await {
        Ok(channels) => Ok(channels),
        Err(_) => sql::rows(conn, peer, "SHOW SLAVE STATUS").await,
    }
}

async fn view(conn: &mut Conn, peer: &str) -> Result<View> {
    let ask = "SELECT @@GLOBAL.server_uuid, @@GLOBAL.gtid_executed, @@GLOBAL.gtid_purged";
    let (uuid, executed, purged): (String, String, String) = sql::row(conn, peer, ask).await?;
    let read_only = is_read_only(conn, peer).await?;
    let channels = channels(conn, peer).await?;
    let state = |row: &Row, names: [&str; 2]| -> String {
        let text = |name| row.get_opt::<Option<String>, _>(name).and_then(Result::ok).flatten();
        names.into_iter().find_map(text).unwrap_or_default()
    };
    let threads: Vec<(String, String)> = channels
        .iter()
        .map(|row| {
            let receiver = state(row, ["Replica_IO_Running", "Slave_IO_Running"]);
            (receiver, state(row, ["Replica_SQL_Running", "Slave_SQL_Running"]))
        })
        .collect();
    Ok(View {
        uuid,
        executed: executed.parse()?,
        purged: purged.parse()?,
        named: join::gives_gtids(conn, peer).await?,
        read_only,
        replicates: threads.iter().any(|(io, sql)| io != "No" || sql != "No"),
        fed: !threads.is_empty() && threads.iter().all(|(io, sql)| io == "Yes" && sql == "Yes"),
    })
}

/// Decides where to go on. `current` is the uuid of the server that the archive ends with, if it
/// is known; `archived` is everything that the archive has, `None` if it has nothing yet;
/// `gone_for` is how long the current server has not been seen, or was seen demoted.
pub(crate) fn choose(
    seen: &[Seen],
    current: Option<&str>,
    archived: Option<&Executed>,
    gone_for: Duration,
) -> Choice {
    let views = || {
        let reached =
            |(index, seen): (usize, &'_ Seen)| Some((index, seen.view.as_ref().ok()?.clone()));
        seen.iter().enumerate().filter_map(reached)
    };
    let Some(archived) = archived else {
        let first = views().find(|(_, view)| !view.read_only).or_else(|| views().next());
        return first.map_or_else(|| wait(seen, None), |(index, _)| Choice::Stay(index));
    };
    let now = views().find(|(_, view)| current.is_none_or(|uuid| uuid == view.uuid));
    if let Some((index, view)) = &now
        && (seen.len() == 1 || !view.read_only)
    {
        return Choice::Stay(*index);
    }
    let others =
        || views().filter(|(_, view)| view.named && current.is_some_and(|uuid| uuid != view.uuid));
    if let Some((index, _)) = others().find(|(_, view)| !view.read_only && has_all(view, archived))
    {
        return Choice::Join(index);
    }
    if let Some((index, view)) = &now
        && view.fed
    {
        return Choice::Stay(*index);
    }
    // Behind one address there is one server at a time, whichever it is.
    let alone = seen.len() == 1;
    let replica = others().find(|(_, view)| has_all(view, archived) && (view.fed || alone));
    if let (Some((index, _)), None) = (replica, &now)
        && (alone || gone_for >= REPLICA_AFTER)
    {
        return Choice::Join(index);
    }
    let fork = others().find(|(_, view)| is_promoted(view, archived, alone));
    if let Some((index, view)) = fork
        && (alone || gone_for >= FORK_AFTER)
    {
        let peer = seen.get(index).map_or("", |seen| &seen.peer);
        return Choice::Fork(index, parting(peer, &view, archived));
    }
    if let (true, None, [only]) = (alone, &now, seen)
        && only.view.as_ref().is_ok_and(|view| !view.named)
    {
        return Choice::Fork(0, nameless(&only.peer));
    }
    match now {
        Some((index, _)) => Choice::Stay(index),
        None => wait(seen, Some(archived)),
    }
}

/// Decides where to go on where the archive ends with transactions without GTIDs: at the server
/// that they came from, and nowhere else. `current` is its uuid.
pub(crate) fn choose_the_same(seen: &[Seen], current: Option<&str>) -> Choice {
    let is_current = |seen: &&Seen| {
        seen.view.as_ref().is_ok_and(|view| current.is_none_or(|uuid| uuid == view.uuid))
    };
    if let Some(index) = seen.iter().position(|seen| is_current(&seen)) {
        return Choice::Stay(index);
    }
    let others = |seen: &Seen| match &seen.view {
        Ok(_) => format!("{} is another server", seen.peer),
        Err(why) => why.clone(),
    };
    let why: Vec<String> = seen.iter().map(others).collect();
    Choice::Wait(format!(
        "the archive ends with transactions without GTIDs, so only the server that they came from \
         can be gone on from, as no other can show that it has them: {}",
        why.join("; ")
    ))
}

fn nameless(peer: &str) -> String {
    format!(
        "{peer} is another server, and its gtid_mode is not ON: nothing shows whether it has what \
         was captured"
    )
}

/// Whether everything archived is in its history, and everything else of it in its files.
fn has_all(view: &View, archived: &Executed) -> bool {
    archived.is_subset(&view.executed) && view.purged.is_subset(archived)
}

/// Whether it takes writes as a server of its own, and is not quite another database.
fn is_promoted(view: &View, archived: &Executed, alone: bool) -> bool {
    let shares = archived.subtract(&view.executed) != *archived;
    let goes_on = !view.executed.is_subset(archived);
    !view.read_only && !view.replicates && (alone || (shares && goes_on))
}

/// Why what was archived does not go on at this server.
fn parting(peer: &str, view: &View, archived: &Executed) -> String {
    let lost = archived.subtract(&view.executed);
    if lost.is_empty() {
        let purged = view.purged.subtract(archived);
        return format!(
            "{peer} is another server, and has purged transactions that were not captured before \
             ({purged})"
        );
    }
    format!(
        "{peer} is another server, and lacks transactions that were captured ({lost}): it was \
         promoted before it had them, or restored from a backup; they stay on the timeline before"
    )
}

/// Says of each server why it is not gone on from.
fn wait(seen: &[Seen], archived: Option<&Executed>) -> Choice {
    let why: Vec<String> = seen.iter().map(|seen| why_not(seen, archived)).collect();
    Choice::Wait(match archived {
        Some(_) => format!("no server can be gone on from: {}", why.join("; ")),
        None => format!("no server can be reached: {}", why.join("; ")),
    })
}

fn why_not(seen: &Seen, archived: Option<&Executed>) -> String {
    let (view, archived) = match (&seen.view, archived) {
        (Err(why), _) => return why.clone(),
        (Ok(_), None) => return seen.peer.clone(),
        (Ok(view), Some(archived)) => (view, archived),
    };
    let lost = archived.subtract(&view.executed);
    let purged = view.purged.subtract(archived);
    let what = if !view.named {
        "cannot show what it has, as its gtid_mode is not ON".to_owned()
    } else if !lost.is_empty() {
        format!("lacks {lost}")
    } else if !purged.is_empty() {
        format!("has purged {purged}")
    } else {
        "has all that is archived".to_owned()
    };
    let role = match (view.read_only, view.replicates, view.fed) {
        (_, true, false) => ", and is a replica that is not connected",
        (_, true, true) => ", and is a replica",
        (true, false, _) => ", and is read-only",
        (false, false, _) => ", and takes writes",
    };
    format!("{} {what}{role}", seen.peer)
}

#[cfg(test)]
mod tests;
