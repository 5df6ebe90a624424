//! Where in a source's stream something is, in the engine's own words.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A place in a source's stream, and what a reader has to know to begin there.
///
/// `log` names the byte stream that `offset` counts in: the binlog file of a MySQL source, the
/// replication id of a Redis source. Offsets are summed from the lengths of what was received,
/// never read from a 32-bit field. A position stands *before* the byte at `offset`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Binlog file name, or Redis replication id.
    pub log: String,
    /// Bytes of `log` before this place. For Redis this is the replication offset of the last
    /// byte before it.
    pub offset: u64,
    /// All GTIDs executed before this place; empty where the engine has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub gtids: String,
    /// The Redis database selected at this place; 0 where the engine has none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub db: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl Position {
    /// A `db` that an engine gives where it goes on without knowing it: the database selected is
    /// the one at the place before, which the archive knows. Never stored.
    pub const DB_AS_BEFORE: u32 = u32::MAX;

    /// The place `offset` in `log`, without GTIDs and with database 0 selected.
    pub fn new(log: impl Into<String>, offset: u64) -> Self {
        Self { log: log.into(), offset, gtids: String::new(), db: 0 }
    }

    /// Whether both name the same byte of the same log, whatever else is known there.
    pub fn is_same_place(&self, other: &Self) -> bool {
        self.log == other.log && self.offset == other.offset
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.log, self.offset)
    }
}
