//! Reading the catalog: the questions of the planner, the reports and the daemon.
//!
//! Every statement that looks at segments or blocks is answered by an index search; a test reads
//! SQLite's query plans to hold that.

use super::insert::parse;
use super::{Catalog, Hour, failed, int};
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::manifest::{BaselineMeta, BlockMeta, EngineKind, Gap, PlacedLandmark, SegmentMeta};
use crate::record::TimeSource;
use rusqlite::types::ValueRef;
use rusqlite::{Params, Row, params};
use std::fmt::Write as _;

/// A segment's columns, in the order in which [`segment`] reads them.
macro_rules! segment_where {
    ($condition:literal) => {
        concat!("SELECT header, totals, bytes_stored, digest FROM segment WHERE ", $condition)
    };
}

pub(super) const SOURCES: &str = "SELECT name, engine FROM source ORDER BY name";
pub(super) const TIMELINES: &str =
    "SELECT timeline FROM timeline WHERE source = ?1 ORDER BY timeline";
pub(super) const SEGMENT: &str = segment_where!("source = ?1 AND timeline = ?2 AND number = ?3");
pub(super) const LAST_SEGMENT: &str =
    segment_where!("source = ?1 AND timeline = ?2 ORDER BY number DESC LIMIT 1");
pub(super) const REACHED: &str = "SELECT reached FROM segment
     WHERE source = ?1 AND timeline = ?2 ORDER BY number DESC LIMIT 1";
pub(super) const OUTLINE: &str = "SELECT number, reached, bytes_stored FROM segment
     WHERE source = ?1 AND timeline = ?2 ORDER BY number";
pub(super) const SEGMENTS_FROM: &str =
    segment_where!("source = ?1 AND timeline = ?2 AND number >= ?3 ORDER BY number LIMIT ?4");
pub(super) const SEGMENT_CONTAINING: &str = segment_where!(
    "source = ?1 AND timeline = ?2 AND start_log = ?3 AND start_offset <= ?4
     ORDER BY start_offset DESC, number DESC LIMIT 1"
);
pub(super) const FIRST_OF_LOG: &str = segment_where!(
    "source = ?1 AND timeline = ?2 AND start_log = ?3 ORDER BY start_offset, number LIMIT 1"
);
pub(super) const FIRST_REACHING: &str = "SELECT number FROM segment
     WHERE source = ?1 AND timeline = ?2 AND reached >= ?3 ORDER BY reached, number LIMIT 1";
pub(super) const FIRST_UNTIL: &str = segment_where!(
    "source = ?1 AND timeline = ?2 AND number >= ?3 AND until >= ?4 ORDER BY number LIMIT 1"
);
pub(super) const BLOCKS: &str = "SELECT file_offset, stored_len, raw_len, start, whole_until,
        block.records, block.first_at, block.last_at, time, known_until
     FROM segment CROSS JOIN block ON block.segment = segment.id
     WHERE source = ?1 AND timeline = ?2 AND number = ?3 ORDER BY position";
pub(super) const BASELINES: &str =
    "SELECT meta FROM baseline WHERE source = ?1 ORDER BY at, timeline, name";
pub(super) const NEWEST_BASELINE: &str = "SELECT meta FROM baseline
     WHERE source = ?1 AND at <= ?2 ORDER BY at DESC, timeline DESC, name DESC LIMIT 1";
pub(super) const GAPS: &str = "SELECT timeline, segment, after, before, reason FROM gap
     WHERE source = ?1 ORDER BY timeline, segment";
pub(super) const LANDMARKS: &str = "SELECT timeline, segment, position, log, landmark FROM landmark
     WHERE source = ?1 ORDER BY timeline, segment, position";
pub(super) const HOURS: &str = "SELECT hour, segments, records, bytes_raw, bytes_stored,
        first_position, last_position, first_at, last_at
     FROM hour WHERE source = ?1 AND hour >= ?2 AND hour < ?3 ORDER BY hour";
pub(super) const REACHED_BEFORE: &str = "SELECT reached FROM segment
     WHERE source = ?1 AND timeline = ?2 AND number < ?3 ORDER BY number DESC LIMIT 1";
pub(super) const AUDITS: &str = "SELECT hour, digest FROM audit
     WHERE source = ?1 AND hour >= ?2 AND hour < ?3 ORDER BY hour";
pub(super) const LAST_AUDIT: &str =
    "SELECT hour, digest FROM audit WHERE source = ?1 ORDER BY hour DESC LIMIT 1";

/// All rows of each table, without what depends on the order of insertion.
const DUMPS: [(&str, &str); 9] = [
    ("source", "SELECT * FROM source ORDER BY name"),
    ("timeline", "SELECT * FROM timeline ORDER BY source, timeline"),
    (
        "segment",
        "SELECT source, timeline, number, digest, bytes_stored, start_log, start_offset,
            first_known, until, reached, header, totals
         FROM segment ORDER BY source, timeline, number",
    ),
    (
        "block",
        "SELECT source, timeline, number, position, file_offset, stored_len, raw_len, start,
            whole_until, records, first_at, last_at, time, known_until
         FROM segment JOIN block ON block.segment = segment.id
         ORDER BY source, timeline, number, position",
    ),
    ("baseline", "SELECT * FROM baseline ORDER BY source, timeline, name"),
    ("landmark", "SELECT * FROM landmark ORDER BY source, timeline, segment, position"),
    ("gap", "SELECT * FROM gap ORDER BY source, timeline, segment"),
    ("hour", "SELECT * FROM hour ORDER BY source, hour"),
    ("audit", "SELECT * FROM audit ORDER BY source, hour"),
];

impl Catalog {
    /// All sources that the archive has anything of, by name.
    pub fn sources(&self) -> Result<Vec<(String, EngineKind)>> {
        self.all(SOURCES, [], |row| {
            let (name, engine): (String, String) = (row.get(0)?, row.get(1)?);
            Ok((name, engine))
        })?
        .into_iter()
        .map(|(name, word)| {
            let engine =
                [EngineKind::Mysql, EngineKind::Redis].into_iter().find(|e| e.word() == word);
            let unknown = || Error::refused(format!("{name} has the unknown engine {word}"));
            let engine = engine.ok_or_else(unknown)?;
            Ok((name, engine))
        })
        .collect()
    }

    /// The timelines of a source, in order.
    pub fn timelines(&self, source: &str) -> Result<Vec<u32>> {
        self.all(TIMELINES, [source], |row| row.get(0))
    }

    /// A segment by its number.
    pub fn segment(&self, source: &str, timeline: u32, number: u64) -> Result<Option<SegmentMeta>> {
        self.one_segment(SEGMENT, params![source, timeline, int(number)?])
    }

    /// The newest segment of a timeline.
    pub fn last_segment(&self, source: &str, timeline: u32) -> Result<Option<SegmentMeta>> {
        self.one_segment(LAST_SEGMENT, params![source, timeline])
    }

    /// Nothing committed until then is missing in the timeline, holes aside. Not always known from
    /// its last segment: that of a binlog file that was begun and closed again has no time in it.
    pub fn reached(&self, source: &str, timeline: u32) -> Result<Option<Timestamp>> {
        let last: Vec<Option<i64>> =
            self.all(REACHED, params![source, timeline], |row| row.get(0))?;
        Ok(last.first().copied().flatten().map(Timestamp::from_micros))
    }

    /// Number, largest instant known up to its end, and size of every segment of a timeline, in
    /// order.
    pub fn outline(
        &self,
        source: &str,
        timeline: u32,
    ) -> Result<Vec<(u64, Option<Timestamp>, u64)>> {
        self.all(OUTLINE, params![source, timeline], |row| {
            Ok((unsigned(row, 0)?, time(row, 1)?, unsigned(row, 2)?))
        })
    }

    /// Up to `limit` segments of a timeline from `number` on, in order.
    pub fn segments_from(
        &self,
        source: &str,
        timeline: u32,
        number: u64,
        limit: usize,
    ) -> Result<Vec<SegmentMeta>> {
        let params = params![source, timeline, int(number)?, limit as i64];
        self.all(SEGMENTS_FROM, params, stored)?.into_iter().map(Stored::segment).collect()
    }

    /// The newest segment that begins at `offset` of `log` or before it. Whether it reaches as
    /// far as `offset` is for the caller to see: compare with its `totals.end`.
    pub fn segment_containing(
        &self,
        source: &str,
        timeline: u32,
        log: &str,
        offset: u64,
    ) -> Result<Option<SegmentMeta>> {
        // An offset that is larger than any that can be kept lies behind all of them.
        let offset = i64::try_from(offset).unwrap_or(i64::MAX);
        self.one_segment(SEGMENT_CONTAINING, params![source, timeline, log, offset])
    }

    /// The segment with the first bytes of `log` that the archive has.
    pub fn first_segment_of_log(
        &self,
        source: &str,
        timeline: u32,
        log: &str,
    ) -> Result<Option<SegmentMeta>> {
        self.one_segment(FIRST_OF_LOG, params![source, timeline, log])
    }

    /// The first segment, from number `from` on, whose `known_until` is not before `at`: with the
    /// segments up to it nothing that was committed up to `at` is missing.
    pub fn first_segment_known_past(
        &self,
        source: &str,
        timeline: u32,
        from: u64,
        at: Timestamp,
    ) -> Result<Option<SegmentMeta>> {
        let (from, at) = (int(from)?, at.as_micros());
        let first: Vec<i64> =
            self.all(FIRST_REACHING, params![source, timeline, at], |row| row.get(0))?;
        match first.first() {
            None => Ok(None),
            // Usual: time goes forward, and nothing before `from` was as late as `at`.
            Some(number) if *number >= from => {
                self.one_segment(SEGMENT, params![source, timeline, *number])
            }
            Some(_) => self.one_segment(FIRST_UNTIL, params![source, timeline, from, at]),
        }
    }

    /// The blocks of a segment, in order; none if there is no such segment.
    pub fn blocks(&self, source: &str, timeline: u32, number: u64) -> Result<Vec<BlockMeta>> {
        self.all(BLOCKS, params![source, timeline, int(number)?], block)
    }

    /// All baselines of a source, by the instant that they serve first.
    pub fn baselines(&self, source: &str) -> Result<Vec<BaselineMeta>> {
        let texts: Vec<String> = self.all(BASELINES, [source], |row| row.get(0))?;
        texts.iter().map(|text| parse(text)).collect()
    }

    /// The baseline that serves `at` and is nearest to it.
    pub fn newest_baseline_at_or_before(
        &self,
        source: &str,
        at: Timestamp,
    ) -> Result<Option<BaselineMeta>> {
        let params = params![source, at.as_micros()];
        let texts: Vec<String> = self.all(NEWEST_BASELINE, params, |row| row.get(0))?;
        texts.first().map(|text| parse(text)).transpose()
    }

    /// All gaps of a source, by timeline and number.
    pub fn gaps(&self, source: &str) -> Result<Vec<Gap>> {
        self.all(GAPS, [source], |row| {
            Ok(Gap {
                timeline: row.get(0)?,
                segment: row.get::<_, i64>(1)?.cast_unsigned(),
                after: time(row, 2)?,
                before: time(row, 3)?,
                reason: row.get(4)?,
            })
        })
    }

    /// All landmarks of a source in sealed segments, in order.
    pub fn landmarks(&self, source: &str) -> Result<Vec<PlacedLandmark>> {
        let rows: Vec<(u32, u64, u32, String, String)> = self.all(LANDMARKS, [source], |row| {
            Ok((row.get(0)?, unsigned(row, 1)?, row.get(2)?, row.get(3)?, row.get(4)?))
        })?;
        let placed = |(timeline, segment, position, log, text): (_, _, _, _, String)| {
            Ok(PlacedLandmark { timeline, segment, position, log, landmark: parse(&text)? })
        };
        rows.into_iter().map(placed).collect()
    }

    /// The hours of a source that begin at `from` or later, and before `to`.
    pub fn hours(&self, source: &str, from: Timestamp, to: Timestamp) -> Result<Vec<Hour>> {
        self.all(HOURS, params![source, from.as_micros(), to.as_micros()], |row| {
            Ok(Hour {
                hour: Timestamp::from_micros(row.get(0)?),
                segments: unsigned(row, 1)?,
                records: unsigned(row, 2)?,
                bytes_raw: unsigned(row, 3)?,
                bytes_stored: unsigned(row, 4)?,
                first_position: row.get(5)?,
                last_position: row.get(6)?,
                first_at: time(row, 7)?,
                last_at: time(row, 8)?,
            })
        })
    }

    /// The records of a source's hours that begin at `from` or later, and before `to`: hour and
    /// digest.
    pub fn audits(
        &self,
        source: &str,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Vec<(Timestamp, String)>> {
        self.all(AUDITS, params![source, from.as_micros(), to.as_micros()], audited)
    }

    /// The newest of them.
    pub fn last_audit(&self, source: &str) -> Result<Option<(Timestamp, String)>> {
        Ok(self.all(LAST_AUDIT, [source], audited)?.into_iter().next())
    }

    /// As [`Self::reached`], of the segments before `number`.
    pub fn reached_before(
        &self,
        source: &str,
        timeline: u32,
        number: u64,
    ) -> Result<Option<Timestamp>> {
        let params = params![source, timeline, int(number)?];
        let last: Vec<Option<i64>> = self.all(REACHED_BEFORE, params, |row| row.get(0))?;
        Ok(last.first().copied().flatten().map(Timestamp::from_micros))
    }

    /// All rows as text, in one order: equal catalogs have equal dumps.
    pub fn dump(&self) -> Result<String> {
        let mut text = String::new();
        for (table, sql) in DUMPS {
            let rows = self.all(sql, [], |row| {
                let mut line = table.to_owned();
                let mut column = 0;
                while let Ok(value) = row.get_ref(column) {
                    line.push('\t');
                    // Writing to a string cannot fail.
                    let _written = match value {
                        ValueRef::Null => write!(line, "-"),
                        ValueRef::Integer(n) => write!(line, "{n}"),
                        ValueRef::Text(bytes) => write!(line, "{}", String::from_utf8_lossy(bytes)),
                        other => write!(line, "{other:?}"),
                    };
                    column += 1;
                }
                line.push('\n');
                Ok(line)
            })?;
            text.extend(rows);
        }
        Ok(text)
    }

    fn one_segment(&self, sql: &str, params: impl Params) -> Result<Option<SegmentMeta>> {
        self.all(sql, params, stored)?.into_iter().next().map(Stored::segment).transpose()
    }

    fn all<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        self.db
            .prepare_cached(sql)
            .and_then(|mut statement| statement.query_map(params, read)?.collect())
            .map_err(|e| failed(e, "read the catalog"))
    }
}

/// A row of `segment`.
struct Stored {
    header: String,
    totals: String,
    size: u64,
    digest: String,
}

fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    Ok(Stored {
        header: row.get(0)?,
        totals: row.get(1)?,
        size: unsigned(row, 2)?,
        digest: row.get(3)?,
    })
}

impl Stored {
    fn segment(self) -> Result<SegmentMeta> {
        Ok(SegmentMeta {
            header: parse(&self.header)?,
            totals: parse(&self.totals)?,
            bytes_stored: self.size,
            digest: self.digest,
            sealed: true,
        })
    }
}

fn audited(row: &Row<'_>) -> rusqlite::Result<(Timestamp, String)> {
    Ok((Timestamp::from_micros(row.get(0)?), row.get(1)?))
}

fn block(row: &Row<'_>) -> rusqlite::Result<BlockMeta> {
    Ok(BlockMeta {
        file_offset: unsigned(row, 0)?,
        stored_len: unsigned(row, 1)?,
        raw_len: unsigned(row, 2)?,
        start: unsigned(row, 3)?,
        whole_until: row.get::<_, Option<i64>>(4)?.map(i64::cast_unsigned),
        records: row.get(5)?,
        first_at: time(row, 6)?,
        last_at: time(row, 7)?,
        time: match row.get::<_, i64>(8)? {
            0 => TimeSource::Commit,
            1 => TimeSource::Header,
            2 => TimeSource::Sampled,
            other => return Err(rusqlite::Error::IntegralValueOutOfRange(8, other)),
        },
        known_until: time(row, 9)?,
    })
}

fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Timestamp>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(Timestamp::from_micros))
}

/// A number that [`int`] took in.
fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(column)?.cast_unsigned())
}
