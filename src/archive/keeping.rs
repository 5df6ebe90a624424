//! What is kept whatever its age, and what was deleted: small objects beside a source's timelines.

use super::{Archive, reading};
use crate::error::{Class, Context, Error, Result};
use crate::manifest::{Hold, Pruned, PrunedTimeline, names};
use crate::reindex;
use std::collections::{BTreeMap, BTreeSet};

/// Longest hold that is read, in bytes.
const HOLD_MAX: u64 = 1 << 16;

/// What was deleted from a source, all records together. It may still be there, if the deletion
/// was interrupted.
#[derive(Debug, Clone, Default)]
pub struct Forgotten {
    /// Of each timeline the number before which all segments were deleted.
    pub before: BTreeMap<u32, u64>,
    /// Names of the baselines' files.
    pub baselines: BTreeSet<String>,
    /// The newest record.
    pub last: Option<Pruned>,
}

impl Archive {
    /// The spans of a source that are held, by name.
    ///
    /// # Errors
    /// Corrupt, if one of them is damaged: then nobody can tell what it holds.
    pub fn holds(&self, source: &str) -> Result<Vec<Hold>> {
        let names = self.store().list(&names::holds(source))?;
        let read = |name: &String| {
            let json = self.store().get(name, HOLD_MAX)?;
            serde_json::from_slice(&json).corrupt(|| format!("read {name}"))
        };
        // What a crash left half written has another ending.
        names.iter().filter(|name| name.strip_suffix(".json").is_some()).map(read).collect()
    }

    /// Holds a span of a source. It is durable when this returns.
    ///
    /// # Errors
    /// Usage, if there is one of that name.
    pub fn hold(&self, source: &str, hold: &Hold) -> Result<()> {
        let _reading = reading(self.root())?;
        let name = names::hold(source, &hold.name);
        if self.store().exists(&name)? {
            return Err(Error::usage(format!("{source} has a hold named {}", hold.name)).hint(
                format!("`pitr hold --release {}` ends it; or take another name", hold.name),
            ));
        }
        let json = serde_json::to_vec_pretty(hold).class(Class::Bug, || "write JSON".into())?;
        self.store().put_new(&name, &json)
    }

    /// Releases a hold. `false` if the source has none of that name.
    pub fn release(&self, source: &str, hold: &str) -> Result<bool> {
        let name = names::hold(source, hold);
        let is_there = self.store().exists(&name)?;
        if is_there {
            self.store().delete(&name)?;
        }
        Ok(is_there)
    }

    /// What was deleted from a source.
    ///
    /// # Errors
    /// Corrupt, if a record of it is damaged.
    pub fn forgotten(&self, source: &str) -> Result<Forgotten> {
        let mut all = Forgotten::default();
        for name in self.store().list(&names::pruned_folder(source))? {
            if !names::is_pruned(&name) {
                continue;
            }
            let record = reindex::read_pruned(self.store(), &name).map_err(|e| e.context(&name))?;
            for PrunedTimeline { timeline, before } in &record.timelines {
                let known = all.before.entry(*timeline).or_default();
                *known = (*known).max(*before);
            }
            all.baselines.extend(record.baselines.iter().cloned());
            all.last = Some(record);
        }
        Ok(all)
    }
}
