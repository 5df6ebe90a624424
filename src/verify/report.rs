//! What was found, for people and for programs.

use crate::clock::{Timestamp, Tz, in_zone};
use crate::error::{Class, Error, Result};
use serde::Serialize;

/// `pitr.verify/1`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Name and version of this document's form.
    pub schema: &'static str,
    /// Objects that were looked at.
    pub objects: u64,
    /// Those of them that were read whole.
    pub read: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// What is not as it was written.
    pub findings: Vec<Finding>,
}

/// What kind of thing was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It is not there, and was not deleted as too old.
    Missing,
    /// Its bytes are not those that were written.
    Damaged,
    /// It does not go on from what stands before it.
    Chain,
    /// The catalog says something else: `pitr reindex` mends it.
    Catalog,
    /// It is no part of an archive.
    Surplus,
}

/// One thing that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Name of the object within the archive.
    pub object: String,
    /// What kind of thing it is.
    pub kind: Kind,
    /// The block, counted from 0, if it is one of a segment.
    pub block: Option<usize>,
    /// The bytes of the log that it holds: from, to.
    pub offsets: Option<(u64, u64)>,
    /// The instants that cannot be restored because of it; `None` if there are none, or nothing
    /// that is left tells.
    pub lost: Option<Lost>,
    /// What is wrong.
    pub reason: String,
}

/// Instants of a source that cannot be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// Everything up to here can be; `None` if nothing before is known.
    pub after: Option<Timestamp>,
    /// From here on it can be again, from another baseline; `None` if there is none.
    pub until: Option<Timestamp>,
}

impl Report {
    /// What the findings amount to.
    ///
    /// # Errors
    /// Corrupt, if something is damaged or missing; finding, if there is only more than there
    /// has to be, or a catalog that is not up to date.
    pub fn check(&self) -> Result<()> {
        let Some(first) = self.findings.first() else { return Ok(()) };
        let count = match self.findings.len() {
            1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        let message = format!("{}: {}{count}", first.object, first.reason);
        let is_mild = |finding: &Finding| matches!(finding.kind, Kind::Surplus | Kind::Catalog);
        if self.findings.iter().all(is_mild) {
            return Err(Error::new(Class::Finding, message)
                .hint("`pitr reindex` brings the catalog up to what is there"));
        }
        Err(Error::corrupt(message)
            .hint("take the objects named from the other copy, and run `pitr verify` again"))
    }

    /// The report for people, with times in `zone`.
    pub fn text(&self, zone: Tz) -> String {
        let mut out = String::new();
        for finding in &self.findings {
            let block = finding.block.map(|block| format!(", block {block}")).unwrap_or_default();
            let offsets = finding.offsets.map(|(from, to)| format!(" ({from} to {to})"));
            out += &format!(
                "{}{block}{}: {}\n",
                finding.object,
                offsets.unwrap_or_default(),
                finding.reason
            );
            if let Some(lost) = &finding.lost {
                let when = |at: Option<Timestamp>, none: &str| {
                    at.map_or_else(|| none.to_owned(), |at| in_zone(at, zone))
                };
                out += &format!(
                    "    cannot be restored: after {}, until {}\n",
                    when(lost.after, "the beginning"),
                    when(lost.until, "the next baseline")
                );
            }
        }
        out += &format!(
            "{} objects, {} of them read whole ({} bytes): {}\n",
            self.objects,
            self.read,
            self.bytes,
            match self.findings.len() {
                0 => "all as they were written".to_owned(),
                1 => "1 finding".to_owned(),
                count => format!("{count} findings"),
            }
        );
        out
    }
}
