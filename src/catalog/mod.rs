//! The catalog: an SQLite index over the archive, for questions that must be answered fast.
//!
//! It holds nothing that the archive's objects do not; deleting it loses nothing, and
//! [`crate::reindex`] makes it anew. It never opens what it indexes. Only the process that holds
//! the archive's lock writes it; others read beside it.
//!
//! **Invariant:** rows depend on which segments and baselines were added, not on the order in
//! which they were; so a rebuilt catalog equals the one that grew.

mod insert;
mod query;
mod remove;

pub use insert::Batch;

use crate::clock::Timestamp;
use crate::error::{Class, Error, Result};
use crate::manifest::{BaselineMeta, BlockMeta, HourRecord, SegmentMeta};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `user_version` of the schema below. A catalog with another one is not migrated but rebuilt:
/// that is always possible and has one code path.
const SCHEMA_VERSION: i64 = 3;
const SCHEMA: &str = include_str!("schema.sql");
/// How long a statement waits for another process: a writer's transactions take milliseconds,
/// a checkpoint on a busy disk may take seconds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Characters that mean something in an SQLite URI, besides those that are not printable.
const URI: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'?').add(b'#');

/// The open catalog.
#[derive(Debug)]
pub struct Catalog {
    db: Connection,
}

/// What one hour of a source amounts to: the segments that were opened in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hour {
    /// When it begins (UTC).
    pub hour: Timestamp,
    /// Number of segments.
    pub segments: u64,
    /// Number of records.
    pub records: u64,
    /// Bytes uncompressed.
    pub bytes_raw: u64,
    /// Size of the files.
    pub bytes_stored: u64,
    /// Where its first segment begins, as text.
    pub first_position: String,
    /// Where its last segment ends, as text.
    pub last_position: String,
    /// Smallest commit time.
    pub first_at: Option<Timestamp>,
    /// Largest commit time.
    pub last_at: Option<Timestamp>,
}

impl Catalog {
    /// Opens the catalog for writing; makes an empty one where there is none. An archive that has
    /// objects already is opened through [`crate::reindex::open_catalog`] instead.
    ///
    /// # Errors
    /// Corrupt, if the file is no catalog; refused, if another version of pitr made it (both can
    /// be rebuilt); unavailable or busy otherwise.
    pub fn open(path: &Path) -> Result<Self> {
        let db = Connection::open(path).map_err(|e| failed(e, "open the catalog"))?;
        let mut catalog = Self { db };
        catalog.set_up().map_err(|error| error.context(path.display()))?;
        Ok(catalog)
    }

    /// Opens the catalog for reading, beside a process that may be writing it.
    ///
    /// # Errors
    /// As [`Catalog::open`]; unavailable, if there is none.
    pub fn open_read_only(path: &Path) -> Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let ready = |db: Connection| {
            db.busy_timeout(BUSY_TIMEOUT).map_err(|e| failed(e, "open the catalog"))?;
            check_version(&db)?;
            Ok(Self { db })
        };
        let opened = Connection::open_with_flags(path, flags)
            .map_err(|e| failed(e, "open the catalog"))
            .and_then(ready);
        // Reading a WAL catalog needs a file beside it, which a read-only medium does not let
        // SQLite make. Where no log lies beside it, the file alone is the whole catalog.
        let log = beside(path, "-wal");
        let opened = match opened {
            Err(error) if error.class() == Class::Unavailable && path.exists() && !log.exists() => {
                let text = path.display().to_string();
                let uri = format!("file:{}?immutable=1", utf8_percent_encode(&text, URI));
                Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI)
                    .map_err(|e| failed(e, "open the catalog"))
                    .and_then(ready)
            }
            opened => opened,
        };
        opened.map_err(|error| error.context(path.display()))
    }

    /// A catalog that is never written to disk.
    pub fn in_memory() -> Result<Self> {
        let db = Connection::open_in_memory().map_err(|e| failed(e, "make a catalog"))?;
        let mut catalog = Self { db };
        catalog.set_up()?;
        Ok(catalog)
    }

    /// Adds a sealed segment, with its blocks, its hour, and a gap if it does not go on from the
    /// segment before it. Adding it again changes nothing.
    ///
    /// # Errors
    /// Corrupt, if another segment of that number, with another digest, is there already.
    pub fn add_segment(&mut self, meta: &SegmentMeta, blocks: &[BlockMeta]) -> Result<()> {
        self.batch(|batch| batch.add_segment(meta, blocks))
    }

    /// Adds a baseline. Adding it again changes nothing.
    ///
    /// # Errors
    /// Corrupt, if another baseline of that name, with another digest, is there already.
    pub fn add_baseline(&mut self, meta: &BaselineMeta) -> Result<()> {
        self.batch(|batch| batch.add_baseline(meta))
    }

    /// Adds the record of an hour. Adding it again changes nothing.
    ///
    /// # Errors
    /// Corrupt, if another record of that hour, with another digest, is there already.
    pub fn add_hour(&mut self, record: &HourRecord) -> Result<()> {
        self.batch(|batch| batch.add_hour(record))
    }

    /// Adds many things in one transaction: all of them, or none if `add` fails.
    pub fn batch<T>(&mut self, add: impl FnOnce(&Batch<'_>) -> Result<T>) -> Result<T> {
        // Immediate: a read transaction that turns into a writing one is not covered by the
        // busy timeout.
        let tx = self
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|e| failed(e, "write the catalog"))?;
        let result = add(&Batch::new(&tx))?;
        tx.commit().map_err(|e| failed(e, "write the catalog"))?;
        Ok(result)
    }

    /// Writes everything into the one file and closes it.
    pub fn close(self) -> Result<()> {
        let busy: bool = self
            .db
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
            .map_err(|e| failed(e, "close the catalog"))?;
        if busy {
            return Err(Error::busy("close the catalog: another process reads it"));
        }
        self.db.close().map_err(|(_, e)| failed(e, "close the catalog"))
    }

    fn set_up(&mut self) -> Result<()> {
        let failed = |e| failed(e, "set up the catalog");
        let db = &self.db;
        db.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
        // More than there are statements, so that none is ever parsed twice.
        db.set_prepared_statement_cache_capacity(64);
        // Readers (`pitr windows`) never wait for the writing daemon, nor it for them.
        db.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
        // The default of WAL (NORMAL) may lose the last transactions in a power cut. They could
        // be found again, but a restore must not miss a segment that was reported as archived.
        db.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
        // A segment's blocks go with it.
        db.pragma_update(None, "foreign_keys", "ON").map_err(failed)?;
        let tx =
            self.db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        let tables: i64 = tx
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
            .map_err(failed)?;
        if tables == 0 {
            tx.execute_batch(SCHEMA).map_err(failed)?;
            tx.pragma_update(None, "user_version", SCHEMA_VERSION).map_err(failed)?;
        }
        check_version(&tx)?;
        tx.commit().map_err(failed)
    }
}

/// The file that SQLite keeps beside a catalog, under the same name with this at its end.
pub(crate) fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

fn check_version(db: &Connection) -> Result<()> {
    let version: i64 = db
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(|e| failed(e, "read the catalog"))?;
    if version != SCHEMA_VERSION {
        return Err(Error::refused(format!(
            "the catalog has version {version}, not {SCHEMA_VERSION}"
        ))
        .hint(REBUILD));
    }
    Ok(())
}

const REBUILD: &str = "run `pitr reindex`: it rebuilds the catalog from the archive";

/// Turns SQLite's error into ours.
fn failed(error: rusqlite::Error, doing: &str) -> Error {
    let class = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Class::Busy,
        // Without a code: a row that does not have the type that it must have.
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) | None => Class::Corrupt,
        Some(_) => Class::Unavailable,
    };
    let error = Error::new(class, doing).source(error);
    if class == Class::Corrupt { error.hint(REBUILD) } else { error }
}

/// An unsigned number as SQLite can keep it.
fn int(value: u64) -> Result<i64> {
    i64::try_from(value)
        .map_err(|_| Error::refused(format!("{value} is larger than a catalog can keep")))
}

fn micros(at: Option<Timestamp>) -> Option<i64> {
    at.map(Timestamp::as_micros)
}

#[cfg(test)]
mod tests;
