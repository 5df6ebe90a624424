//! Taking rows out of the catalog, before the objects behind them are deleted.
//!
//! **Invariant:** what is left is what a rebuild from the remaining objects gives.

use super::insert::{Batch, parse};
use super::{failed, int};
use crate::clock::Timestamp;
use crate::error::Result;
use crate::manifest::{SegmentHeader, SegmentMeta};
use rusqlite::params;
use std::collections::BTreeSet;

impl Batch<'_> {
    /// Takes out a baseline.
    pub fn remove_baseline(&self, source: &str, timeline: u32, name: &str) -> Result<()> {
        self.run(
            "DELETE FROM baseline WHERE source = ?1 AND timeline = ?2 AND name = ?3",
            params![source, timeline, name],
        )?;
        self.forget_empty(source, timeline)
    }

    /// Takes out the segments of a timeline with a smaller number than `before`, and all that was
    /// derived from them.
    pub fn remove_segments(&self, source: &str, timeline: u32, before: u64) -> Result<()> {
        let key = params![source, timeline, int(before)?];
        let hours = self.hours_of(source, timeline, before)?;
        self.run("DELETE FROM segment WHERE source = ?1 AND timeline = ?2 AND number < ?3", key)?;
        self.run("DELETE FROM landmark WHERE source = ?1 AND timeline = ?2 AND segment < ?3", key)?;
        self.run("DELETE FROM gap WHERE source = ?1 AND timeline = ?2 AND segment < ?3", key)?;
        self.correct_reached(source, timeline)?;
        self.correct_hours(source, &hours)?;
        self.forget_empty(source, timeline)
    }

    /// The hours that the segments before a number are counted in.
    fn hours_of(&self, source: &str, timeline: u32, before: u64) -> Result<BTreeSet<Timestamp>> {
        let headers: Vec<String> = self.all(
            "SELECT header FROM segment WHERE source = ?1 AND timeline = ?2 AND number < ?3",
            params![source, timeline, int(before)?],
            |row| row.get(0),
        )?;
        let hour = |text: &String| parse(text).map(|header: SegmentHeader| header.opened_at.hour());
        headers.iter().map(hour).collect()
    }

    /// Corrects what was added up from the first segment on, and the gap before the one that is
    /// the first now.
    fn correct_reached(&self, source: &str, timeline: u32) -> Result<()> {
        let rows: Vec<(i64, i64, Option<i64>, Option<i64>)> = self.all(
            "SELECT id, number, until, reached FROM segment WHERE source = ?1 AND timeline = ?2
             ORDER BY number",
            params![source, timeline],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
        )?;
        let mut reached = None;
        for (id, _, until, known) in &rows {
            reached = reached.max(*until);
            if reached == *known {
                // Everything behind it was added up from here, or from something later.
                break;
            }
            self.run("UPDATE segment SET reached = ?2 WHERE id = ?1", params![id, reached])?;
        }
        let Some((id, ..)) = rows.first() else { return Ok(()) };
        let first = self.segment_row(*id)?;
        self.add_gap(&first, None)?;
        self.amend_gaps(&first.header, true)
    }

    /// Counts some hours of a source again.
    fn correct_hours(&self, source: &str, hours: &BTreeSet<Timestamp>) -> Result<()> {
        if hours.is_empty() {
            return Ok(());
        }
        for hour in hours {
            self.run(
                "DELETE FROM hour WHERE source = ?1 AND hour = ?2",
                params![source, hour.as_micros()],
            )?;
        }
        let rows: Vec<(i64, String)> = self.all(
            "SELECT id, header ->> '$.opened_at' FROM segment WHERE source = ?1
             ORDER BY timeline, number",
            [source],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        let counted = |text: &str| {
            Timestamp::parse(text).is_some_and(|opened_at| hours.contains(&opened_at.hour()))
        };
        for (id, _) in rows.iter().filter(|(_, opened_at)| counted(opened_at)) {
            self.add_to_hour(&self.segment_row(*id)?)?;
        }
        Ok(())
    }

    /// Takes out a timeline, and a source, of which nothing is left.
    fn forget_empty(&self, source: &str, timeline: u32) -> Result<()> {
        self.run(
            "DELETE FROM timeline WHERE source = ?1 AND timeline = ?2
             AND NOT EXISTS (SELECT 1 FROM segment WHERE source = ?1 AND timeline = ?2)
             AND NOT EXISTS (SELECT 1 FROM baseline WHERE source = ?1 AND timeline = ?2)",
            params![source, timeline],
        )?;
        self.run(
            "DELETE FROM source WHERE name = ?1
             AND NOT EXISTS (SELECT 1 FROM timeline WHERE source = ?1)",
            [source],
        )
    }

    fn segment_row(&self, id: i64) -> Result<SegmentMeta> {
        let rows: Vec<(String, String, i64, String)> = self.all(
            "SELECT header, totals, bytes_stored, digest FROM segment WHERE id = ?1",
            [id],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
        )?;
        let missing = || failed(rusqlite::Error::QueryReturnedNoRows, "read the catalog");
        let (header, totals, bytes_stored, digest) = rows.into_iter().next().ok_or_else(missing)?;
        Ok(SegmentMeta {
            header: parse(&header)?,
            totals: parse(&totals)?,
            bytes_stored: bytes_stored.cast_unsigned(),
            digest,
            sealed: true,
        })
    }
}
