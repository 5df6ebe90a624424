//! Files when commits of the source wait for the archive, and when they do not.
//!
//! **Invariant:** while nothing is captured, the last thing filed is a lapse; after a crash it
//! begins at the last instant up to which nothing is missing.

use super::Capture;
use crate::clock::Timestamp;
use crate::error::Result;
use crate::record::Protection;

impl Capture {
    /// The source's commits begin, or cease, to wait.
    pub(super) fn protection(&self, change: &Protection) -> Result<()> {
        self.archive.file_protection(&self.label.source, change)
    }

    /// The stream ended, or the process that took it: commits wait no more.
    pub(super) fn unprotect(&self, why: &str) -> Result<()> {
        let source = &self.label.source;
        let Some(Protection { at, lapse: None }) = self.archive.protection(source)? else {
            return Ok(());
        };
        let at = self.known_until.map_or(at, |known: Timestamp| known.max(at));
        self.archive.file_protection(source, &Protection { at, lapse: Some(why.into()) })
    }
}
