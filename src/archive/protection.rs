//! When commits of a source waited for the archive, and when they did not.
//!
//! Each change is a small object of its own, `<source>/semi-sync/<µs>.json`, written once. There
//! are few of them, and no index: they are read when somebody asks.
//!
//! **Invariant:** changes are in order: one is never filed before another that was filed earlier.

use super::Archive;
use crate::clock::Timestamp;
use crate::error::{Class, Context, Result};
use crate::record::Protection;
use serde::Serialize;

/// Longest object that is read, in bytes.
const OBJECT_MAX: u64 = 1 << 16;

/// A time in which commits of a source did not wait for the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lapse {
    /// Since then; what was committed before is in the archive.
    pub from: Timestamp,
    /// Until then; `None` if it still is so.
    pub to: Option<Timestamp>,
    /// A sentence for the operator.
    pub reason: String,
}

fn folder(source: &str) -> String {
    format!("{source}/semi-sync/")
}

impl Archive {
    /// Files a change behind all that were filed before. It is durable when this returns.
    ///
    /// # Errors
    /// Unavailable, if it cannot be read or written.
    pub fn file_protection(&self, source: &str, change: &Protection) -> Result<()> {
        let last = self.protection(source)?.map(|last| last.at.as_micros());
        let after_last = last.map_or(i64::MIN, |last| last.saturating_add(1));
        let at = Timestamp::from_micros(change.at.as_micros().max(after_last));
        let change = Protection { at, ..change.clone() };
        let json = serde_json::to_vec(&change).class(Class::Bug, || "write JSON".into())?;
        // Names sort as times do: no source's clock stands before 1970.
        let name = format!("{}{:020}.json", folder(source), at.as_micros().max(0));
        self.store().put_new(&name, &json)
    }

    /// The last change that was filed.
    ///
    /// # Errors
    /// As [`Self::lapses`].
    pub fn protection(&self, source: &str) -> Result<Option<Protection>> {
        let names = self.changes(source)?;
        names.last().map(|name| self.read_protection(name)).transpose()
    }

    /// The times in which commits did not wait, in order.
    ///
    /// # Errors
    /// Unavailable, if an object cannot be read; corrupt, if it is not what it must be.
    pub fn lapses(&self, source: &str) -> Result<Vec<Lapse>> {
        let mut lapses: Vec<Lapse> = vec![];
        for name in self.changes(source)? {
            let change = self.read_protection(&name)?;
            if let Some(open) = lapses.last_mut().filter(|lapse| lapse.to.is_none()) {
                open.to = Some(change.at);
            }
            if let Some(reason) = change.lapse {
                lapses.push(Lapse { from: change.at, to: None, reason });
            }
        }
        Ok(lapses)
    }

    /// Names of the changes that say nothing of what happened at `at` or later: each has another one
    /// behind it that was in force by then.
    pub fn protection_before(&self, source: &str, at: Timestamp) -> Result<Vec<String>> {
        let mut names = self.changes(source)?;
        let first_after = format!("{}{:020}", folder(source), at.as_micros().max(0));
        names.retain(|name| *name < first_after);
        names.pop();
        Ok(names)
    }

    /// The names of all changes, in order.
    fn changes(&self, source: &str) -> Result<Vec<String>> {
        let mut names = self.store().list(&folder(source))?;
        // What is just being written, or was when pitr died, has another ending.
        names.retain(|name| name.strip_suffix(".json").is_some());
        Ok(names)
    }

    fn read_protection(&self, name: &str) -> Result<Protection> {
        let json = self.store().get(name, OBJECT_MAX)?;
        serde_json::from_slice(&json).corrupt(|| name.to_owned())
    }
}
