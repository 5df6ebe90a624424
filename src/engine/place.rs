//! A place in a source's history, as people name it: a transaction, a state, an offset.
//!
//! [`Place::parse`] reads one, [`find`] walks a piece of the archived stream to it and says where
//! the record begins and ends that it names or lies in.
//!
//! **Invariant:** what is found is a boundary between records; a place within one is never moved
//! to the next.

use crate::clock::Timestamp;
use crate::engine::{mysql, redis};
use crate::error::{Error, Result};
use crate::manifest::EngineKind;
use crate::position::Position;
use crate::record::{Landing, Piece};
use std::fmt;

/// Where to go to, in the engine's own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Before this byte of this log: `binlog.000003:1157`, `<replid>:5000`.
    Offset {
        /// Name of the log.
        log: String,
        /// Bytes of it before the place.
        offset: u64,
    },
    /// One transaction, by its GTID.
    Record(String),
    /// The state in which exactly these transactions were executed: a set of GTIDs.
    State(String),
}

impl Place {
    /// Reads `text` as the engine's people write it.
    ///
    /// # Errors
    /// Usage, if it is no place of such an engine.
    pub fn parse(engine: EngineKind, text: &str) -> Result<Self> {
        match engine {
            EngineKind::Mysql => mysql::parse_place(text),
            EngineKind::Redis => redis::parse_place(text),
        }
    }

    /// Whether everything that it names was executed before `position`. An offset says nothing
    /// about that, so it never is.
    ///
    /// # Errors
    /// Corrupt, if the position's list of transactions cannot be read.
    pub fn is_executed_before(&self, position: &Position) -> Result<bool> {
        match self {
            Self::Offset { .. } => Ok(false),
            Self::Record(text) | Self::State(text) => {
                mysql::is_executed(text, position).map_err(|e| e.context(position))
            }
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Offset { log, offset } => write!(f, "{log}:{offset}"),
            Self::Record(text) | Self::State(text) => f.write_str(text),
        }
    }
}

/// What [`find`] found: a boundary, or the record that a place names or lies in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Offset at which the record begins.
    pub begin: u64,
    /// Offset behind it; the same as `begin` if the place is a boundary.
    pub end: u64,
    /// The record; `None` at a boundary, or where the bytes belong to no record.
    pub record: Option<Landing>,
    /// The record before `begin`, if the walk came over it.
    pub before: Option<Landing>,
    /// Everything executed before `end`, where the engine has GTIDs.
    pub executed: String,
}

impl Found {
    /// The commit time of the last record before `begin` (or of the record itself), if known.
    pub fn time(&self, with_record: bool) -> Option<Timestamp> {
        let last = if with_record {
            self.record.as_ref().or(self.before.as_ref())
        } else {
            self.before.as_ref()
        };
        last.and_then(|landing| landing.at)
    }
}

/// Walks `pieces`, consecutive bytes of the log `from.log` that begin at `from`, to `place`.
/// `None` if they end before it.
///
/// # Errors
/// Those of the pieces; corrupt, if they are not what a source writes.
pub fn find(
    engine: EngineKind,
    from: &Position,
    pieces: &mut dyn Iterator<Item = Result<Piece>>,
    place: &Place,
) -> Result<Option<Found>> {
    match (engine, place) {
        (EngineKind::Mysql, _) => mysql::find(from, pieces, place),
        (EngineKind::Redis, Place::Offset { offset, .. }) => redis::find(from, pieces, *offset),
        (EngineKind::Redis, _) => Err(Error::bug("a Redis source has no GTIDs")),
    }
}

/// `log:offset`, if the text has that form.
pub(in crate::engine) fn parse_offset(text: &str) -> Option<(&str, u64)> {
    let (log, offset) = text.trim().rsplit_once(':')?;
    let digits = !offset.is_empty() && offset.bytes().all(|byte| byte.is_ascii_digit());
    (digits && !log.is_empty()).then(|| Some((log, offset.parse().ok()?)))?
}
