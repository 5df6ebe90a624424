//! What an archived log says: its bytes as records that somebody can read.
//!
//! An engine makes [`Record`]s of the bytes of its log and hands them to whoever [`Take`]s them.
//! Nothing is executed and nothing is guessed: what cannot be read is counted as such.
//!
//! **Invariant:** memory is bounded whatever the size of a record: of one with many tables, keys or
//! statements the first ones are kept, and the rest is counted.

use super::Keys;
use crate::clock::Timestamp;
use crate::error::Result;
use crate::position::Position;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Most tables, and most beginnings of keys, that are told apart within one record.
pub const NAMES_MAX: usize = 10_000;

/// Most statements that are kept of one record.
pub const STATEMENTS_MAX: usize = 16;

/// Longest statement that is kept, in bytes.
pub const STATEMENT_BYTES_MAX: usize = 4 << 10;

/// What stands for names beyond [`NAMES_MAX`].
pub const OTHERS: &str = "(others)";

/// How many rows of a table were changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rows {
    /// Rows inserted.
    pub inserts: u64,
    /// Rows updated.
    pub updates: u64,
    /// Rows deleted.
    pub deletes: u64,
}

impl Rows {
    /// All of them.
    pub fn sum(&self) -> u64 {
        self.inserts + self.updates + self.deletes
    }

    /// Adds others.
    pub fn add(&mut self, other: &Self) {
        self.inserts += other.inserts;
        self.updates += other.updates;
        self.deletes += other.deletes;
    }
}

/// What a statement is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StatementKind {
    /// It changes what there is: tables, schemas, accounts.
    Ddl,
    /// It changes rows, and was logged as it is: nobody counted them.
    Change,
    /// Rows follow that it changed: the server logged its text beside them.
    Origin,
}

/// A statement in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Statement {
    /// What it is about.
    pub kind: StatementKind,
    /// Its first word, in capitals.
    pub verb: String,
    /// The default schema; empty if there is none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub schema: String,
    /// What it says, shortened; without secrets.
    pub text: String,
}

/// One record of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// Offset of its first byte.
    pub start: u64,
    /// Offset behind its last byte.
    pub end: u64,
    /// What the log calls it: a GTID.
    pub name: Option<String>,
    /// Its commit time, if the log carries one.
    pub at: Option<Timestamp>,
    /// Rows changed, by `schema.table`.
    pub tables: BTreeMap<String, Rows>,
    /// Its first statements.
    pub statements: Vec<Statement>,
    /// How many more there were.
    pub more_statements: u64,
    /// Commands, by name.
    pub commands: BTreeMap<String, u64>,
    /// Keys that its commands name, by their beginning up to the first `:`; empty for those
    /// without one.
    pub prefixes: BTreeMap<String, u64>,
    /// Commands, by database.
    pub databases: BTreeMap<u32, u64>,
    /// The first keys among them that are wanted (see [`Interest`]).
    pub keys: Vec<String>,
    /// How many keys are wanted.
    pub wanted_keys: u64,
    /// Whether it is a block of several commands.
    pub multi: bool,
    /// Events that could not be decoded.
    pub undecoded: u64,
    /// What was wrong with the first of them.
    pub trouble: Option<String>,
}

impl Record {
    /// How many bytes it has in the log.
    pub fn bytes(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Rows and commands in it.
    pub fn changes(&self) -> u64 {
        self.tables.values().map(Rows::sum).sum::<u64>() + self.commands.values().sum::<u64>()
    }

    pub(crate) fn add_rows(&mut self, table: &str, rows: &Rows) {
        add(&mut self.tables, table).add(rows);
    }

    pub(crate) fn add_statement(&mut self, statement: Statement) {
        if self.statements.len() < STATEMENTS_MAX {
            self.statements.push(statement);
        } else {
            self.more_statements += 1;
        }
    }

    pub(crate) fn fail(&mut self, why: impl fmt::Display) {
        self.undecoded += 1;
        self.trouble.get_or_insert_with(|| why.to_string());
    }
}

/// The count of a name, or that of all others where there are too many.
pub(crate) fn add<'a, V: Default>(counts: &'a mut BTreeMap<String, V>, name: &str) -> &'a mut V {
    let name = if counts.len() < NAMES_MAX || counts.contains_key(name) { name } else { OTHERS };
    counts.entry(name.to_owned()).or_default()
}

/// What is asked for beyond counts.
#[derive(Debug, Clone, Default)]
pub struct Interest {
    /// Keys to be told by name; `None` for none.
    pub keys: Option<Keys>,
    /// Whether each row is handed over.
    pub rows: bool,
    /// Of which tables, by patterns like those of keys; `None` for all.
    pub tables: Option<Keys>,
}

/// A row before and after a change: names of columns and their values, as JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RowChange {
    /// `schema.table`.
    pub table: String,
    /// `insert`, `update` or `delete`.
    pub change: &'static str,
    /// The row before; `None` of an insert.
    pub before: Option<serde_json::Map<String, serde_json::Value>>,
    /// The row after; `None` of a delete.
    pub after: Option<serde_json::Map<String, serde_json::Value>>,
}

/// Whoever takes what is decoded.
pub trait Take {
    /// A record ended.
    ///
    /// # Errors
    /// Whatever keeps it from going on.
    fn record(&mut self, record: Record) -> Result<()>;

    /// A row of the record that goes on, where rows are asked for. `begun` is the record as far as
    /// it is known.
    ///
    /// # Errors
    /// As [`Self::record`].
    fn row(&mut self, _begun: &Record, _row: RowChange) -> Result<()> {
        Ok(())
    }
}

/// Decodes the bytes of a log.
pub trait Decode: fmt::Debug {
    /// The next bytes stand at `at`, which lies between two records. `head` has the first bytes of
    /// that log, as far as a reader needs them.
    ///
    /// # Errors
    /// Corrupt, if that is not where the bytes before ended, or `head` is none.
    fn go_on(&mut self, at: &Position, head: &Bytes) -> Result<()>;

    /// Takes the next bytes.
    ///
    /// # Errors
    /// Corrupt, if they are not those of such a log, or what comes before them is missing; those
    /// of `to`.
    fn push(&mut self, bytes: Bytes, to: &mut dyn Take) -> Result<()>;

    /// Whether the bytes so far end between two records.
    fn is_between_records(&self) -> bool;
}
