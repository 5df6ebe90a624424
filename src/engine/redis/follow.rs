//! Chooses which of the configured servers is captured, and whose clock its stream is timed by.
//!
//! Of several servers the one is captured that has what the archive ends with and is a master; while
//! only a replica has it, it is waited for until that is promoted. A stream is timed by the clock of
//! the master that it comes from, also where a replica is captured: the replica's own clock says
//! nothing of what it has not received yet.
//!
//! **Invariant:** a server with another history is taken only if all of them answer and none has the
//! archive's: the one that does not answer now may be the one that has it.

use super::control::Control;
use crate::engine::{Endpoint, SourceOptions};
use crate::error::{Class, Error, Result};
use crate::position::Position;
use std::collections::HashMap;

/// How many replicas of replicas are gone up, to the master.
const LEVELS_MAX: usize = 5;

/// The server that is captured, and the one that has its clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chosen {
    /// What is captured.
    pub(super) at: Endpoint,
    /// The master: the same, unless that is a replica.
    pub(super) clock: Endpoint,
}

/// Chooses a server for an archive that ends at `resume`.
///
/// # Errors
/// Unavailable, if none answers, or the one that has the archive's history is no master yet.
/// Refused, if the master of a replica cannot be asked for its clock.
pub(super) async fn choose(options: &SourceOptions, resume: Option<&Position>) -> Result<Chosen> {
    if options.standbys.is_empty() {
        return alone(&options.endpoint).await;
    }
    let mut seen = vec![];
    let mut failed = None;
    for endpoint in options.endpoints() {
        match ask(endpoint).await {
            Ok(replication) => seen.push((endpoint.clone(), Standing::of(&replication, resume))),
            Err(error) => {
                tracing::debug!(%endpoint, "{error}");
                failed.get_or_insert(error);
            }
        }
    }
    match pick(&seen, failed.is_none())? {
        Some(at) => Ok(Chosen { at: at.clone(), clock: at.clone() }),
        None => Err(failed.unwrap_or_else(|| Error::unavailable("none of the servers answers"))),
    }
}

async fn ask(endpoint: &Endpoint) -> Result<HashMap<String, String>> {
    Control::connect(endpoint).await?.info("replication").await
}

/// How a server stands to the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Standing {
    is_master: bool,
    /// It has the stream that the archive ends with, or was promoted from it.
    has_history: bool,
}

impl Standing {
    fn of(replication: &HashMap<String, String>, resume: Option<&Position>) -> Self {
        let is = |name: &str, value: &str| replication.get(name).is_some_and(|v| v == value);
        Self {
            is_master: is("role", "master"),
            has_history: resume
                .is_none_or(|at| is("master_replid", &at.log) || is("master_replid2", &at.log)),
        }
    }
}

/// The first master with the archive's history, else, if there is no other server to be asked, the
/// first master; `None` if nobody answered.
fn pick(seen: &[(Endpoint, Standing)], is_all: bool) -> Result<Option<&Endpoint>> {
    let find = |wanted: fn(&Standing) -> bool| {
        seen.iter().find(|(_, standing)| wanted(standing)).map(|(endpoint, _)| endpoint)
    };
    if let Some(master) = find(|it| it.is_master && it.has_history) {
        return Ok(Some(master));
    }
    if let Some(replica) = find(|it| !it.is_master && it.has_history) {
        let wait =
            format!("no master has what the archive ends with, and {replica}, a replica, has");
        return Err(Error::unavailable(wait)
            .hint("it is waited for until a replica that has it is promoted"));
    }
    match find(|it| it.is_master) {
        Some(master) if !is_all => {
            let wait = format!(
                "{master} is a master with another history than the archive's, and not all servers \
                 answer"
            );
            Err(Error::unavailable(wait)
                .hint("one that does not answer may have it; take it out of `urls` if it is gone"))
        }
        None if !seen.is_empty() => Err(Error::unavailable("none of the servers is a master")),
        master => Ok(master),
    }
}

/// The only server, with the clock of its master if it is a replica.
async fn alone(at: &Endpoint) -> Result<Chosen> {
    let mut clock = at.clone();
    for _ in 0..LEVELS_MAX {
        let replication = match ask(&clock).await {
            Ok(replication) => replication,
            Err(error) if clock == *at => return Err(error),
            Err(error) => {
                return Err(Error::new(
                    if error.class() == Class::Usage { Class::Refused } else { error.class() },
                    format!(
                        "{at} is a replica, and its master {clock} does not tell its time: {error}"
                    ),
                )
                .hint(
                    "a stream is timed by the clock of its master: let the same account ask it \
                     there, or capture the master",
                ));
            }
        };
        if replication.get("role").is_none_or(|role| role != "slave") {
            return Ok(Chosen { at: at.clone(), clock });
        }
        let field = |name: &str| replication.get(name).filter(|value| !value.is_empty());
        let port = field("master_port").and_then(|port| port.parse().ok());
        let (Some(host), Some(port)) = (field("master_host"), port) else {
            return Err(Error::corrupt(format!("{clock} is a replica and names no master")));
        };
        clock = Endpoint { host: host.clone(), port, ..clock };
    }
    Err(Error::refused(format!("{at} is a replica of replicas without an end")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::EngineKind;

    fn server(port: u16, is_master: bool, has_history: bool) -> (Endpoint, Standing) {
        let url = format!("redis://h:{port}");
        let at = Endpoint::parse(EngineKind::Redis, &url).unwrap();
        (at, Standing { is_master, has_history })
    }

    fn picked(seen: &[(Endpoint, Standing)]) -> Result<Option<u16>> {
        pick(seen, true).map(|at| at.map(|at| at.port))
    }

    #[test]
    fn another_history_is_taken_only_when_all_servers_answer() {
        let (other, ours) = (server(1, true, false), server(2, true, true));
        let error = pick(std::slice::from_ref(&other), false).unwrap_err();
        assert_eq!(error.class(), Class::Unavailable, "{error}");
        let seen = [other, ours];
        assert_eq!(pick(&seen, false).unwrap().map(|at| at.port), Some(2));
    }

    #[test]
    fn the_master_that_has_the_archives_history_is_followed() {
        let (old, new) = (server(1, true, false), server(2, true, true));
        assert_eq!(picked(&[old.clone(), new.clone()]).unwrap(), Some(2));
        assert_eq!(picked(&[new, old.clone()]).unwrap(), Some(2));
        // A replica that has it may be promoted: a master that came back empty is no successor.
        let replica = server(2, false, true);
        let error = picked(&[old.clone(), replica]).unwrap_err();
        assert_eq!(error.class(), Class::Unavailable, "{error}");
        // Nobody has it any more.
        assert_eq!(picked(&[server(2, false, false), old]).unwrap(), Some(1));
        assert!(picked(&[server(2, false, false)]).is_err());
        assert_eq!(picked(&[]).unwrap(), None);
    }

    #[test]
    fn a_history_is_known_by_the_id_before_or_behind_a_promotion() {
        let fields = [("role", "slave"), ("master_replid", "b"), ("master_replid2", "a")];
        let fields = fields.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let has = |log: &str| Standing::of(&fields, Some(&Position::new(log, 1))).has_history;
        assert_eq!([has("a"), has("b"), has("c")], [true, true, false]);
        assert!(Standing::of(&fields, None).has_history);
    }
}
