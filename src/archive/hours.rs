//! The records of hours.

use super::Archive;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::manifest::{HourRecord, names};
use crate::reindex;

impl Archive {
    /// Reads the record of an hour.
    ///
    /// # Errors
    /// Corrupt, if it is missing, or not as it was written; refused, if its format is another one.
    pub fn hour_record(&self, source: &str, hour: Timestamp) -> Result<HourRecord> {
        let name = names::hour(source, hour);
        if !self.store().exists(&name)? {
            return Err(Error::corrupt(format!("{name} is missing"))
                .hint("take it from the other copy; `pitr verify` shows all that is missing"));
        }
        reindex::read_hour(self.store(), self.meta(), &name).map_err(|error| error.context(&name))
    }
}
