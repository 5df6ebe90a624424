//! Writes the records of hours: one object each, once.
//!
//! An hour is recorded when it is over by the source's own clock, and everything committed in it
//! is sealed; hours that passed while no daemon ran are recorded when one does. Each record names
//! the digest of the one before it.
//!
//! **Invariant:** records are written in the order of hours without a hole, and what was written is
//! never written again.

use super::{HOUR, begin, count, read_record};
use crate::archive::{Archive, reading};
use crate::clock::Timestamp;
use crate::error::Result;
use crate::manifest::{Before, EngineKind, FORMAT, HourRecord, names};

/// How long before an archive was made the first hour may lie that is recorded, in hours. A log may
/// be older, or begin with a time that a clock did not know yet.
const BEFORE_MAX: u32 = 366 * 24;

/// How many hours are counted at once.
const AT_ONCE: u32 = 24;

/// The hour of a source that is to be recorded next; `None` while the archive has nothing of it.
///
/// # Errors
/// Unavailable, if the archive cannot be read.
pub fn next_hour(archive: &Archive, source: &str) -> Result<Option<Timestamp>> {
    match archive.catalog().last_audit(source)? {
        Some((last, _)) => Ok(Some(last.after(HOUR))),
        None => {
            let earliest = archive.meta().created.before(BEFORE_MAX * HOUR);
            Ok(begin(archive, source)?.map(|begin| begin.max(earliest).hour()))
        }
    }
}

/// Records the hours of a source that are over at `now` and complete in the archive, oldest first,
/// at most a day of them. Gives those that it has recorded. The caller holds the archive's lock.
///
/// # Errors
/// Unavailable, if the archive cannot be read or written; corrupt, if a record is not as it was
/// written.
pub fn record_hours(
    archive: &mut Archive,
    source: &str,
    engine: EngineKind,
    now: Timestamp,
) -> Result<Vec<Timestamp>> {
    let Some(first) = next_hour(archive, source)? else { return Ok(vec![]) };
    // What is deleted meanwhile would look as if it were missing.
    let _reading = reading(archive.root())?;
    let history = archive.history(source, engine)?;
    let reached = history.timelines.iter().filter_map(|(_, until)| *until).max();
    let Some(reached) = reached else { return Ok(vec![]) };
    let end = reached.min(now).hour().min(first.after(AT_ONCE * HOUR));
    if first >= end {
        return Ok(vec![]);
    }
    let mut previous = match archive.catalog().last_audit(source)? {
        Some((hour, digest)) => {
            read_record(archive, source, hour, &digest)?;
            Some(Before { hour, digest })
        }
        None => None,
    };
    let mut recorded = Vec::new();
    for (hour, counted) in count(archive, source, engine, first, end, now)? {
        // What is still open has no digest that could be named.
        if counted.is_open {
            break;
        }
        let name = names::hour(source, hour);
        let record = if archive.store().exists(&name)? {
            // A crash came between the object and its row.
            archive.hour_record(source, hour)?
        } else {
            let mut record = HourRecord {
                format: FORMAT,
                archive: archive.meta().archive.clone(),
                source: source.to_owned(),
                engine,
                hour,
                previous: previous.clone(),
                written_at: now,
                increment: counted.increment,
                digest: String::new(),
            };
            archive.store().put_new(&name, &record.encode()?)?;
            record
        };
        archive.catalog_mut().add_hour(&record)?;
        previous = Some(Before { hour, digest: record.digest });
        recorded.push(hour);
    }
    Ok(recorded)
}
