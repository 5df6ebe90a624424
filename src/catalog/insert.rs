//! Writing the catalog: what one more segment or baseline changes.
//!
//! **Invariant:** every hole gets a row: a segment that does not go on from the one before it, by
//! number, by digest or by offset, has a gap before it, whatever its header says.

use super::{failed, int, micros};
use crate::clock::Timestamp;
use crate::error::{Class, Context, Error, Result};
use crate::manifest::{
    BaselineMeta, BlockMeta, EngineKind, HourRecord, PlacedLandmark, SegmentHeader, SegmentMeta,
    Totals,
};
use crate::record::TimeSource;
use rusqlite::{Connection, OptionalExtension, Params, Row, params};

/// Things that are added in one transaction; see [`super::Catalog::batch`].
#[derive(Debug)]
pub struct Batch<'a> {
    db: &'a Connection,
}

/// What is known about the segment before or after another one.
pub(super) struct Neighbour {
    number: u64,
    digest: String,
    reached: Option<i64>,
    totals: String,
}

impl<'a> Batch<'a> {
    pub(super) fn new(db: &'a Connection) -> Self {
        Self { db }
    }

    /// See [`super::Catalog::add_segment`]. If it fails, the batch is as it was before.
    pub fn add_segment(&self, meta: &SegmentMeta, blocks: &[BlockMeta]) -> Result<()> {
        self.whole_or_nothing(|| self.insert_segment(meta, blocks))
    }

    /// See [`super::Catalog::add_baseline`]. If it fails, the batch is as it was before.
    pub fn add_baseline(&self, meta: &BaselineMeta) -> Result<()> {
        self.whole_or_nothing(|| self.insert_baseline(meta))
    }

    /// See [`super::Catalog::add_hour`]. If it fails, the batch is as it was before.
    pub fn add_hour(&self, record: &HourRecord) -> Result<()> {
        let (source, hour) = (&record.source, record.hour.as_micros());
        let digest = &record.digest;
        let found: Option<String> = self.maybe(
            "SELECT digest FROM audit WHERE source = ?1 AND hour = ?2",
            params![source, hour],
            |row| row.get(0),
        )?;
        match found {
            Some(found) if found == *digest => return Ok(()),
            Some(_) => {
                return Err(Error::corrupt(format!(
                    "there are two different records of {source} for the hour {}",
                    record.hour
                )));
            }
            None => {}
        }
        self.run(
            "INSERT INTO audit (source, hour, digest, continuity) VALUES (?1, ?2, ?3, ?4)",
            params![source, hour, digest, record.increment.continuity.word()],
        )
    }

    fn whole_or_nothing(&self, add: impl FnOnce() -> Result<()>) -> Result<()> {
        self.run("SAVEPOINT one", [])?;
        let added = add();
        if added.is_err() {
            self.run("ROLLBACK TO one", [])?;
        }
        self.run("RELEASE one", [])?;
        added
    }

    fn insert_segment(&self, meta: &SegmentMeta, blocks: &[BlockMeta]) -> Result<()> {
        let (header, totals) = (&meta.header, &meta.totals);
        let (source, timeline, number) = (&header.source, header.timeline, int(header.number)?);
        if !meta.sealed || meta.digest.is_empty() || blocks.len() as u64 != totals.blocks {
            return Err(Error::bug(format!("segment {number} of {source} is not a sealed one")));
        }
        let key = params![source, timeline, number];
        let found: Option<String> = self.maybe(
            "SELECT digest FROM segment WHERE source = ?1 AND timeline = ?2 AND number = ?3",
            key,
            |row| row.get(0),
        )?;
        match found {
            Some(digest) if digest == meta.digest => return Ok(()),
            Some(_) => {
                return Err(Error::corrupt(format!(
                    "two different segments of {source} have number {number} in timeline {timeline}"
                )));
            }
            None => {}
        }
        self.add_source(source, header.engine, timeline)?;

        let before = self.neighbour(
            "SELECT number, digest, reached, totals FROM segment
             WHERE source = ?1 AND timeline = ?2 AND number < ?3 ORDER BY number DESC LIMIT 1",
            key,
        )?;
        let until = micros(totals.known_until.max(totals.last_at));
        let reached = before.as_ref().and_then(|before| before.reached).max(until);
        self.run(
            "INSERT INTO segment (source, timeline, number, digest, bytes_stored, start_log,
                start_offset, first_known, until, reached, header, totals)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
            params![
                source,
                timeline,
                number,
                meta.digest,
                int(meta.bytes_stored)?,
                header.start.log,
                int(header.start.offset)?,
                first_known(meta, blocks),
                until,
                reached,
                json(header)?,
                json(totals)?,
            ],
        )?;
        self.add_blocks(self.db.last_insert_rowid(), blocks)?;
        self.add_landmarks(meta)?;
        self.add_gap(meta, before.as_ref())?;
        self.amend_later(meta, reached)?;
        self.add_to_hour(meta)
    }

    fn insert_baseline(&self, meta: &BaselineMeta) -> Result<()> {
        let found: Option<String> = self.maybe(
            "SELECT digest FROM baseline WHERE source = ?1 AND timeline = ?2 AND name = ?3",
            params![meta.source, meta.timeline, meta.name],
            |row| row.get(0),
        )?;
        match found {
            Some(digest) if digest == meta.digest => return Ok(()),
            Some(_) => {
                return Err(Error::corrupt(format!(
                    "two different baselines of {} are named {}",
                    meta.source, meta.name
                )));
            }
            None => {}
        }
        self.add_source(&meta.source, meta.engine, meta.timeline)?;
        self.run(
            "INSERT INTO baseline (source, timeline, name, at, digest, meta)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                meta.source,
                meta.timeline,
                meta.name,
                meta.at.as_micros(),
                meta.digest,
                json(meta)?,
            ],
        )
    }

    fn add_source(&self, name: &str, engine: EngineKind, timeline: u32) -> Result<()> {
        self.run(
            "INSERT OR IGNORE INTO source (name, engine) VALUES (?1, ?2)",
            params![name, engine.word()],
        )?;
        let known: Option<String> =
            self.maybe("SELECT engine FROM source WHERE name = ?1", [name], |row| row.get(0))?;
        if known.as_deref() != Some(engine.word()) {
            let known = known.unwrap_or_default();
            return Err(Error::corrupt(format!("{name} is {known}, not {}", engine.word())));
        }
        self.run(
            "INSERT OR IGNORE INTO timeline (source, timeline) VALUES (?1, ?2)",
            params![name, timeline],
        )
    }

    fn add_blocks(&self, segment: i64, blocks: &[BlockMeta]) -> Result<()> {
        for (position, block) in blocks.iter().enumerate() {
            let time = match block.time {
                TimeSource::Commit => 0,
                TimeSource::Header => 1,
                TimeSource::Sampled => 2,
            };
            self.run(
                "INSERT INTO block (segment, position, file_offset, stored_len, raw_len, start,
                    whole_until, records, first_at, last_at, time, known_until)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
                params![
                    segment,
                    position as i64,
                    int(block.file_offset)?,
                    int(block.stored_len)?,
                    int(block.raw_len)?,
                    int(block.start)?,
                    block.whole_until.map(int).transpose()?,
                    block.records,
                    micros(block.first_at),
                    micros(block.last_at),
                    time,
                    micros(block.known_until),
                ],
            )?;
        }
        Ok(())
    }

    fn add_landmarks(&self, meta: &SegmentMeta) -> Result<()> {
        for placed in PlacedLandmark::of(meta) {
            self.run(
                "INSERT INTO landmark (source, timeline, segment, position, log, landmark)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![
                    meta.header.source,
                    placed.timeline,
                    int(placed.segment)?,
                    placed.position,
                    placed.log,
                    json(&placed.landmark)?,
                ],
            )?;
        }
        Ok(())
    }

    /// Puts a gap before a segment, or takes away one that turned out to be none.
    pub(super) fn add_gap(&self, meta: &SegmentMeta, before: Option<&Neighbour>) -> Result<()> {
        let header = &meta.header;
        let key = params![header.source, header.timeline, int(header.number)?];
        self.run("DELETE FROM gap WHERE source = ?1 AND timeline = ?2 AND segment = ?3", key)?;
        let Some((after, reason)) = gap_before(meta, before)? else { return Ok(()) };
        self.run(
            "INSERT INTO gap (source, timeline, segment, after, before, reason)
             VALUES (?1, ?2, ?3, ?4, NULL, ?5)",
            params![header.source, header.timeline, int(header.number)?, after, reason],
        )
    }

    /// Brings up to date what was derived from segments around the one that was added.
    fn amend_later(&self, meta: &SegmentMeta, reached: Option<i64>) -> Result<()> {
        let header = &meta.header;
        let key = params![header.source, header.timeline, int(header.number)?];
        let next: Option<(String, String, String, i64)> = self.maybe(
            "SELECT header, totals, digest, bytes_stored FROM segment
             WHERE source = ?1 AND timeline = ?2 AND number > ?3 ORDER BY number LIMIT 1",
            key,
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
        )?;
        if let Some((next_header, next_totals, digest, bytes_stored)) = &next {
            let next = SegmentMeta {
                header: parse(next_header)?,
                totals: parse(next_totals)?,
                bytes_stored: bytes_stored.cast_unsigned(),
                digest: digest.clone(),
                sealed: true,
            };
            let neighbour = Neighbour {
                number: header.number,
                digest: meta.digest.clone(),
                reached,
                totals: json(&meta.totals)?,
            };
            self.add_gap(&next, Some(&neighbour))?;
            self.run(
                "UPDATE segment SET reached = ?4 WHERE source = ?1 AND timeline = ?2
                 AND number > ?3 AND ?4 IS NOT NULL AND (reached IS NULL OR reached < ?4)",
                params![header.source, header.timeline, int(header.number)?, reached],
            )?;
        }
        self.amend_gaps(header, next.is_some())
    }

    /// Brings the ends of gaps around a segment up to date, and, if there are segments behind it
    /// (`later`), those of gaps behind them.
    pub(super) fn amend_gaps(&self, header: &SegmentHeader, later: bool) -> Result<()> {
        if later {
            // Gaps behind it begin where the segments before them had come to.
            self.run(
                "UPDATE gap SET after = (
                    SELECT reached FROM segment
                    WHERE segment.source = gap.source AND segment.timeline = gap.timeline
                    AND segment.number < gap.segment ORDER BY segment.number DESC LIMIT 1)
                 WHERE source = ?1 AND timeline = ?2 AND segment > ?3",
                params![header.source, header.timeline, int(header.number)?],
            )?;
        }
        // A gap ends at the first time that is known behind it.
        self.run(
            "UPDATE gap SET before = (
                SELECT first_known FROM segment
                WHERE segment.source = gap.source AND segment.timeline = gap.timeline
                AND segment.number >= gap.segment AND first_known IS NOT NULL
                ORDER BY segment.number LIMIT 1)
             WHERE source = ?1 AND timeline = ?2 AND (before IS NULL OR ?3)",
            params![header.source, header.timeline, later],
        )
    }

    pub(super) fn add_to_hour(&self, meta: &SegmentMeta) -> Result<()> {
        let (header, totals) = (&meta.header, &meta.totals);
        self.run(
            "INSERT INTO hour (source, hour, segments, records, bytes_raw, bytes_stored,
                first_timeline, first_number, first_position,
                last_timeline, last_number, last_position, first_at, last_at)
             VALUES (?1, ?2, 1, ?3, ?4, ?5, ?6, ?7, ?8, ?6, ?7, ?9, ?10, ?11)
             ON CONFLICT DO UPDATE SET
                segments = segments + 1,
                records = records + excluded.records,
                bytes_raw = bytes_raw + excluded.bytes_raw,
                bytes_stored = bytes_stored + excluded.bytes_stored,
                first_position = iif((excluded.first_timeline, excluded.first_number)
                    < (first_timeline, first_number), excluded.first_position, first_position),
                last_position = iif((excluded.last_timeline, excluded.last_number)
                    > (last_timeline, last_number), excluded.last_position, last_position),
                (first_timeline, first_number) = (SELECT
                    min(first_timeline, excluded.first_timeline),
                    iif((excluded.first_timeline, excluded.first_number)
                        < (first_timeline, first_number), excluded.first_number, first_number)),
                (last_timeline, last_number) = (SELECT
                    max(last_timeline, excluded.last_timeline),
                    iif((excluded.last_timeline, excluded.last_number)
                        > (last_timeline, last_number), excluded.last_number, last_number)),
                first_at = coalesce(min(first_at, excluded.first_at), first_at, excluded.first_at),
                last_at = coalesce(max(last_at, excluded.last_at), last_at, excluded.last_at)",
            params![
                header.source,
                header.opened_at.hour().as_micros(),
                int(totals.records)?,
                int(totals.bytes_raw)?,
                int(meta.bytes_stored)?,
                header.timeline,
                int(header.number)?,
                header.start.to_string(),
                totals.end.to_string(),
                micros(totals.first_at),
                micros(totals.last_at),
            ],
        )
    }

    fn neighbour(&self, sql: &str, key: impl Params) -> Result<Option<Neighbour>> {
        self.maybe(sql, key, |row| {
            Ok(Neighbour {
                number: row.get::<_, i64>(0)?.cast_unsigned(),
                digest: row.get(1)?,
                reached: row.get(2)?,
                totals: row.get(3)?,
            })
        })
    }

    pub(super) fn run(&self, sql: &str, params: impl Params) -> Result<()> {
        let done = self.db.prepare_cached(sql).and_then(|mut statement| statement.execute(params));
        done.map(|_| ()).map_err(|e| failed(e, "write the catalog"))
    }

    pub(super) fn all<T>(
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

    fn maybe<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>> {
        self.db
            .prepare_cached(sql)
            .and_then(|mut statement| statement.query_row(params, read).optional())
            .map_err(|e| failed(e, "read the catalog"))
    }
}

/// The end (µs, if known) and the reason of a gap between a segment and the one before it;
/// `None` if the one goes on from the other.
///
/// A new log is not compared with the old one: only its engine knows what follows on what, and
/// has said so in the header. That no segment between them is missing is proved by the digest.
fn gap_before(
    meta: &SegmentMeta,
    before: Option<&Neighbour>,
) -> Result<Option<(Option<i64>, String)>> {
    let header = &meta.header;
    let number = header.number;
    if let Some(broken) = &header.broken {
        return Ok(Some((micros(broken.after), broken.reason.clone())));
    }
    if header.continues.is_some() || header.fork.is_some() {
        // Whether the end of that timeline is there is looked at where both are known.
        return Ok(None);
    }
    let Some(before) = before else {
        // What stood before the first segment that is left was pruned, or never was. The start
        // of a later timeline must say which.
        return Ok((number == 1 && header.timeline > 1).then(|| {
            let timeline = header.timeline;
            (None, format!("timeline {timeline} does not say what stands before it"))
        }));
    };
    let totals: Totals = parse(&before.totals)?;
    let after = before.reached;
    let reason = if before.number + 1 != number {
        match (before.number + 1, number - 1) {
            (first, last) if first == last => format!("segment {first} is missing"),
            (first, last) => format!("segments {first} to {last} are missing"),
        }
    } else if header.previous.as_deref() != Some(before.digest.as_str()) {
        format!("segment {number} was not written after this segment {}", before.number)
    } else if header.start.log == totals.end.log && !header.start.is_same_place(&totals.end) {
        let (start, end) = (&header.start, &totals.end);
        format!("segment {number} begins at {start}, but segment {} ends at {end}", before.number)
    } else {
        return Ok(None);
    };
    Ok(Some((after, reason)))
}

/// The first commit or mark time in a segment, as far as its blocks tell.
fn first_known(meta: &SegmentMeta, blocks: &[BlockMeta]) -> Option<i64> {
    let marks = blocks.iter().find_map(|block| block.known_until);
    [meta.totals.first_at, marks].into_iter().flatten().min().map(Timestamp::as_micros)
}

fn json<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).class(Class::Bug, || "write the catalog".into())
}

/// Reads JSON that the catalog keeps.
pub(super) fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text)
        .corrupt(|| "read the catalog".into())
        .map_err(|error| error.hint(super::REBUILD))
}
