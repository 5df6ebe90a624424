//! The records of hours: each as it was written, and none left out.
//!
//! A record carries its own digest and that of the one before it, and the catalog has the digests
//! of all. So a record that was changed is found by its own digest; one that was forged, by the next
//! one or the catalog; one that is gone, by either.

use super::{Kind, Work};
use crate::clock::Timestamp;
use crate::error::{Class, Result};
use crate::manifest::{Before, HourRecord, names};
use std::collections::BTreeMap;

impl Work<'_> {
    /// Looks at the records of a source.
    pub(super) fn hours(&mut self, source: &str, objects: &[String]) -> Result<()> {
        let all = (Timestamp::from_micros(i64::MIN), Timestamp::from_micros(i64::MAX));
        let rows = self.archive.catalog().audits(source, all.0, all.1)?;
        let mut rows: BTreeMap<Timestamp, String> = rows.into_iter().collect();
        // Names sort as hours do.
        let hours = objects.iter().filter_map(|name| names::parse_hour(name));
        // What stands before the next one: nothing yet, or something that cannot be read.
        let (mut before, mut is_known) = (None, true);
        for (_, hour) in hours {
            let name = names::hour(source, hour);
            self.report.objects += 1;
            let row = rows.remove(&hour);
            let record = match self.archive.hour_record(source, hour) {
                Ok(record) => record,
                Err(error) if matches!(error.class(), Class::Corrupt | Class::Refused) => {
                    self.damaged(&name, error)?;
                    is_known = false;
                    continue;
                }
                Err(error) => return Err(error),
            };
            self.hour(&name, &record, row.as_deref())?;
            if is_known && record.previous != before {
                let reason = match (&record.previous, &before) {
                    (Some(named), Some(found)) if named.hour == found.hour => {
                        "it does not name the digest of the hour before it".to_owned()
                    }
                    (Some(named), _) => {
                        format!("the hour before it, {}, is missing", named.hour)
                    }
                    (None, _) => "it names no hour before it, and there is one".to_owned(),
                };
                self.found(&name, Kind::Chain, reason);
            }
            before = Some(Before { hour, digest: record.digest });
            is_known = true;
        }
        for hour in rows.into_keys() {
            let name = names::hour(source, hour);
            self.found(name, Kind::Missing, "the record of an hour that the catalog has");
        }
        Ok(())
    }

    /// Compares a record with the catalog, and with the segments that it was counted from.
    fn hour(&mut self, name: &str, record: &HourRecord, row: Option<&str>) -> Result<()> {
        match row {
            None => self.found(name, Kind::Catalog, "the catalog does not have it"),
            Some(row) if row != record.digest => {
                self.found(name, Kind::Chain, "it is not the one that the catalog has");
            }
            Some(_) => {}
        }
        for segment in &record.increment.segments {
            let (timeline, number) = (segment.timeline, segment.number);
            let found = self.archive.catalog().segment(&record.source, timeline, number)?;
            if found.is_some_and(|found| found.digest != segment.digest) {
                let segment = names::segment(&record.source, timeline, number);
                self.found(name, Kind::Chain, format!("it was counted from another {segment}"));
            }
        }
        Ok(())
    }
}
