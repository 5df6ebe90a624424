//! What a replica has already of the log that it asks for.
//!
//! A replica of MySQL says it as a set, or, where transactions have no GTIDs, as a place in the log.
//! One of MariaDB names the last transaction that it has in each domain: what stands in the log
//! before that one, and it, it has.
//!
//! **Invariant:** a transaction that the replica does not have is never taken for one that it
//! has, whatever order the numbers of a domain have.

use crate::engine::mysql::executed::{Executed, TxId};
use crate::engine::mysql::maria::{BinlogState, MariaGtid};
use crate::position::Position;
use std::fmt;

/// What a replica has.
#[derive(Debug, Clone)]
pub(in super::super) enum Held {
    /// These transactions.
    Set(Executed),
    /// In each of these domains everything up to the one named, which is still to come in the log.
    UpTo(Vec<MariaGtid>),
    /// Everything before this place.
    Before(Position),
}

impl Held {
    /// A replica that has these transactions.
    pub(super) fn set(set: Executed) -> Self {
        Self::Set(set)
    }

    /// A replica that stands at `position`, in a log before which `base` was executed.
    pub(super) fn up_to(position: &BinlogState, base: &Executed) -> Self {
        let begins = |gtid: &MariaGtid| match base {
            Executed::Maria(base) => base.position().any(|other| other == *gtid),
            Executed::MySql(_) => false,
        };
        Self::UpTo(position.position().filter(|gtid| !begins(gtid)).collect())
    }

    /// Whether the replica has this transaction, which comes next in the log.
    pub(in super::super) fn has(&mut self, id: TxId) -> bool {
        match (self, id) {
            (Self::Set(set), id) => set.contains(id),
            (Self::UpTo(last), TxId::Maria(gtid)) => {
                let Some(at) = last.iter().position(|last| last.domain == gtid.domain) else {
                    return false;
                };
                if last.get(at) == Some(&gtid) {
                    last.swap_remove(at);
                }
                true
            }
            // What it has before a place is told by places.
            (Self::UpTo(_), TxId::MySql(_)) | (Self::Before(_), _) => false,
        }
    }

    /// What the replica said it has and did not come, once all of the log was walked over.
    pub(in super::super) fn never_came(&self) -> Option<String> {
        match self {
            // A set may hold what is not in the log; a place is looked for where the log ends.
            Self::Set(_) | Self::Before(_) => None,
            Self::UpTo(last) => (!last.is_empty()).then(|| self.to_string()),
        }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(set) => set.fmt(f),
            Self::UpTo(last) => {
                let names: Vec<String> = last.iter().map(MariaGtid::to_string).collect();
                f.write_str(&names.join(","))
            }
            Self::Before(place) => write!(f, "everything before {place}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn came(held: &mut Held, gtids: &str) -> Vec<String> {
        let mut sent = vec![];
        for text in gtids.split(' ') {
            let state: BinlogState = text.parse().unwrap();
            let gtid = state.position().next().unwrap();
            if !held.has(TxId::Maria(gtid)) {
                sent.push(text.to_owned());
            }
        }
        sent
    }

    #[test]
    fn in_each_domain_everything_behind_the_named_transaction_is_sent() {
        let base: Executed = "0-1-5,2-1-9".parse().unwrap();
        let position: BinlogState = "0-1-7,1-1-2,2-1-9".parse().unwrap();
        let mut held = Held::up_to(&position, &base);
        let log = "0-1-6 1-1-1 3-1-1 2-1-10 0-1-7 1-1-2 0-1-8 1-1-3";
        assert_eq!(came(&mut held, log), ["3-1-1", "2-1-10", "0-1-8", "1-1-3"]);
        assert_eq!(held.never_came(), None);
    }

    #[test]
    fn numbers_out_of_order_are_told_by_their_place_in_the_log() {
        let base: Executed = "0-1-5".parse().unwrap();
        let position: BinlogState = "0-2-4".parse().unwrap();
        let mut held = Held::up_to(&position, &base);
        assert_eq!(came(&mut held, "0-1-6 0-2-4 0-2-3 0-1-7"), ["0-2-3", "0-1-7"]);
    }

    #[test]
    fn a_transaction_that_never_came_is_named() {
        let position: BinlogState = "0-1-7".parse().unwrap();
        let mut held = Held::up_to(&position, &Executed::default());
        came(&mut held, "0-1-6 0-1-8");
        assert_eq!(held.never_came().unwrap(), "0-1-7");
    }
}
