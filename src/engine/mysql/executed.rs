//! Everything executed before a place, whichever family of servers the place is in.
//!
//! MySQL has sets of GTIDs ([`GtidSet`]), MariaDB the last GTID of each domain and server
//! ([`BinlogState`]). Whoever follows a log, compares servers or writes positions down uses
//! [`Executed`] and asks for no family.
//!
//! **Invariant:** the families never mix: what holds something of one holds nothing of the other.
//! What holds nothing is the same for both.

use super::flavor::Family;
use super::gtid::{Gtid, GtidSet};
use super::maria::{BinlogState, MariaGtid};
use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// The name of one transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TxId {
    /// Of a MySQL: `uuid:number`, or `uuid:tag:number`.
    MySql(Gtid),
    /// Of a MariaDB: `domain-server-sequence`.
    Maria(MariaGtid),
}

impl fmt::Display for TxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MySql(gtid) => gtid.fmt(f),
            Self::Maria(gtid) => gtid.fmt(f),
        }
    }
}

/// Everything that was executed before a place.
#[derive(Clone)]
pub(crate) enum Executed {
    /// By a MySQL.
    MySql(GtidSet),
    /// By a MariaDB.
    Maria(BinlogState),
}

impl Default for Executed {
    fn default() -> Self {
        Self::MySql(GtidSet::default())
    }
}

impl PartialEq for Executed {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::MySql(a), Self::MySql(b)) => a == b,
            (Self::Maria(a), Self::Maria(b)) => a == b,
            _ => self.is_empty() && other.is_empty(),
        }
    }
}

impl Eq for Executed {}

impl From<GtidSet> for Executed {
    fn from(set: GtidSet) -> Self {
        Self::MySql(set)
    }
}

impl From<BinlogState> for Executed {
    fn from(state: BinlogState) -> Self {
        Self::Maria(state)
    }
}

impl Executed {
    /// Whether it holds nothing.
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::MySql(set) => set.is_empty(),
            Self::Maria(state) => state.is_empty(),
        }
    }

    /// The family whose transactions it holds; `None` if it holds none.
    #[cfg_attr(not(test), expect(dead_code, reason = "a target compares it with its own"))]
    pub(crate) fn family(&self) -> Option<Family> {
        match self {
            _ if self.is_empty() => None,
            Self::MySql(_) => Some(Family::MySql),
            Self::Maria(_) => Some(Family::MariaDb),
        }
    }

    /// Adds the transaction that comes next; says whether it may come. One of MySQL comes only
    /// once; a MariaDB may give a number twice. Nothing of the other family may come.
    pub(crate) fn add(&mut self, id: TxId) -> bool {
        if self.is_empty() {
            *self = match id {
                TxId::MySql(_) => GtidSet::default().into(),
                TxId::Maria(_) => BinlogState::default().into(),
            };
        }
        match (self, id) {
            (Self::MySql(set), TxId::MySql(gtid)) => set.add(gtid),
            (Self::Maria(state), TxId::Maria(gtid)) => {
                state.add(gtid);
                true
            }
            _ => false,
        }
    }

    /// Whether it holds this transaction (see [`BinlogState::contains`] for MariaDB's).
    pub(crate) fn contains(&self, id: TxId) -> bool {
        match (self, id) {
            (Self::MySql(set), TxId::MySql(gtid)) => set.contains(gtid),
            (Self::Maria(state), TxId::Maria(gtid)) => state.contains(gtid),
            _ => false,
        }
    }

    /// What this holds and `other` does not.
    #[must_use]
    pub(crate) fn subtract(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::MySql(a), Self::MySql(b)) => a.subtract(b).into(),
            (Self::Maria(a), Self::Maria(b)) => a.subtract(b).into(),
            _ => self.clone(),
        }
    }

    /// Whether `other` holds everything that this does.
    pub(crate) fn is_subset(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::MySql(a), Self::MySql(b)) => a.is_subset(b),
            _ => self.subtract(other).is_empty(),
        }
    }

    /// Why a file whose list of executed transactions is `said` does not go on where this ends;
    /// `None` if it does. `unlogged` is what was executed and stands in no list; if that is not
    /// known, a list that lacks something passes.
    pub(crate) fn contradicted_by(&self, said: &Self, unlogged: Option<&Self>) -> Option<String> {
        if let (Self::Maria(known), Self::Maria(said)) = (self, said) {
            return known.contradicted_by(said);
        }
        let (missing, extra) = (said.subtract(self), self.subtract(said));
        if !missing.is_empty() {
            Some(format!("has {missing}, which never came"))
        } else if unlogged.is_some_and(|unlogged| !extra.is_subset(unlogged)) {
            Some(format!("lacks {extra}, which came before"))
        } else {
            None
        }
    }

    /// How many transactions it holds; `None` if that cannot be told, as with MariaDB.
    pub(crate) fn count(&self) -> Option<u64> {
        match self {
            Self::MySql(set) => Some(set.count()),
            Self::Maria(_) => None,
        }
    }

    /// Adds everything that `other` holds. Gives `false`, and adds nothing, if that is of another
    /// family.
    pub(crate) fn union_with(&mut self, other: &Self) -> bool {
        if self.is_empty() {
            *self = other.clone();
        }
        match (self, other) {
            (Self::MySql(a), Self::MySql(b)) => a.union_with(b),
            (Self::Maria(a), Self::Maria(b)) => a.union_with(b),
            (_, other) => return other.is_empty(),
        }
        true
    }
}

impl fmt::Display for Executed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MySql(set) => set.fmt(f),
            Self::Maria(state) => state.fmt(f),
        }
    }
}

impl fmt::Debug for Executed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

impl FromStr for Executed {
    type Err = Error;

    /// Reads what it prints, or what a server of either family does. Only MySQL's have a `:`.
    fn from_str(text: &str) -> Result<Self> {
        let maria = |c: char| c.is_ascii_digit() || matches!(c, '-' | ',') || c.is_whitespace();
        if !text.trim().is_empty() && text.chars().all(maria) {
            text.parse().map(Self::Maria)
        } else {
            text.parse().map(Self::MySql)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const UUID: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";

    fn of(text: &str) -> Executed {
        text.replace('A', UUID).parse().unwrap()
    }

    #[rstest]
    #[case("", None)]
    #[case("A:1-5", Some(Family::MySql))]
    #[case("0-1-100,1-2-7", Some(Family::MariaDb))]
    fn both_families_are_read_and_written(#[case] text: &str, #[case] family: Option<Family>) {
        let executed = of(text);
        assert_eq!(executed.family(), family);
        assert_eq!(executed.to_string(), text.replace('A', UUID));
    }

    #[rstest]
    #[case("nonsense")]
    #[case("0-1")]
    #[case("0-1-2-3")]
    #[case("0-1-2,0-1-3")]
    #[case("0-1-2 A:1")]
    #[case("4294967296-1-1")]
    #[case("-0-1-1")]
    fn nonsense_is_refused(#[case] text: &str) {
        assert!(text.replace('A', UUID).parse::<Executed>().is_err());
    }

    #[test]
    fn nothing_is_the_same_for_both_and_the_families_never_mix() {
        let mut nothing = Executed::default();
        assert_eq!(nothing, Executed::Maria(BinlogState::default()));
        let maria = TxId::Maria(MariaGtid { domain: 0, server: 1, sequence: 2 });
        let mysql = TxId::MySql(Gtid::new([1; 16], super::super::gtid::Tag::default(), 1).unwrap());
        assert!(nothing.add(maria));
        assert_eq!(nothing, of("0-1-2"));
        assert!(!nothing.add(mysql));
        assert!(!nothing.union_with(&of("A:1")));
        assert!(nothing.union_with(&of("")));
        assert_eq!(nothing, of("0-1-2"));
        assert!(!of("A:1").contains(maria));
        assert_eq!(of("A:1").subtract(&nothing), of("A:1"));
        assert!(of("A:1").contradicted_by(&nothing, None).unwrap().contains("never came"));
        assert!(nothing.contradicted_by(&of(""), Some(&of(""))).unwrap().contains("lacks"));
    }
}
