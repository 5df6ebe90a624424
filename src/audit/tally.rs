//! Adds the records of an interval up, hour by hour.

use crate::changes::{Broken, Place, Visit};
use crate::clock::Timestamp;
use crate::engine::decode::{OTHERS, Record, Rows, StatementKind, add};
use crate::error::Result;
use crate::manifest::{
    DatabaseCount, Ddl, Increment, LandmarkLine, Largest, NameCount, SegmentMeta, SegmentRef,
    TableCount,
};
use crate::position::Position;
use crate::record::Landing;
use std::collections::BTreeMap;

/// Most statements that change what there is, and most landmarks, that an hour tells of.
const LINES_MAX: usize = 200;

/// How many of the largest records an hour tells of.
const LARGEST: usize = 5;

/// The hours of an interval.
#[derive(Debug, Default)]
pub(super) struct Tallies {
    /// By their first instant.
    pub(super) hours: BTreeMap<Timestamp, Tally>,
    /// What could not be read.
    pub(super) broken: Vec<Broken>,
}

/// One hour.
#[derive(Debug, Default)]
pub(super) struct Tally {
    increment: Increment,
    tables: BTreeMap<String, Rows>,
    statements: BTreeMap<String, u64>,
    commands: BTreeMap<String, u64>,
    prefixes: BTreeMap<String, u64>,
    databases: BTreeMap<u32, u64>,
    parts: Vec<Part>,
}

/// What an hour has of a segment.
#[derive(Debug)]
struct Part {
    segment: SegmentRef,
    is_sealed: bool,
    /// Bytes of the log that the hour has of it, and all.
    bytes: u64,
    bytes_raw: u64,
    bytes_stored: u64,
}

impl Visit for Tallies {
    fn record(&mut self, place: &Place<'_>, record: Record) -> Result<()> {
        let tally = self.hours.entry(place.counts_at.hour()).or_default();
        tally.take(place, &record);
        Ok(())
    }

    fn rest(&mut self, segment: &SegmentMeta, bytes: u64, counts_at: Timestamp) -> Result<()> {
        let tally = self.hours.entry(counts_at.hour()).or_default();
        tally.part(segment).bytes += bytes;
        Ok(())
    }

    fn broken(&mut self, broken: Broken) -> Result<()> {
        self.broken.push(broken);
        Ok(())
    }
}

impl Tally {
    fn part(&mut self, segment: &SegmentMeta) -> &mut Part {
        let header = &segment.header;
        let is_last = self.parts.last().is_some_and(|part| {
            (part.segment.timeline, part.segment.number) == (header.timeline, header.number)
        });
        if !is_last {
            self.parts.push(Part {
                segment: SegmentRef {
                    timeline: header.timeline,
                    number: header.number,
                    digest: segment.digest.clone(),
                },
                is_sealed: segment.sealed,
                bytes: 0,
                bytes_raw: segment.totals.bytes_raw,
                bytes_stored: segment.bytes_stored,
            });
        }
        let last = self.parts.len() - 1;
        &mut self.parts[last]
    }

    fn take(&mut self, place: &Place<'_>, record: &Record) {
        self.part(place.segment).bytes += place.bytes;
        let position = place.position(record);
        let all = &mut self.increment;
        all.records += 1;
        let landing = Landing { position: position.clone(), at: place.at };
        all.first.get_or_insert_with(|| landing.clone());
        all.last = Some(landing);
        for (table, rows) in &record.tables {
            add(&mut self.tables, table).add(rows);
        }
        for (from, to) in
            [(&record.commands, &mut self.commands), (&record.prefixes, &mut self.prefixes)]
        {
            for (name, count) in from {
                *add(to, name) += count;
            }
        }
        for (db, count) in &record.databases {
            *self.databases.entry(*db).or_default() += count;
        }
        all.multi += u64::from(record.multi);
        let log = &place.segment.header.start.log;
        let begin = || Position::new(log, record.start).to_string();
        for statement in &record.statements {
            match statement.kind {
                StatementKind::Origin => {}
                StatementKind::Change => *add(&mut self.statements, &statement.verb) += 1,
                StatementKind::Ddl if all.ddl.len() >= LINES_MAX => all.more_ddl += 1,
                StatementKind::Ddl => all.ddl.push(Ddl {
                    at: place.at,
                    position: begin(),
                    text: brief(&statement.text),
                }),
            }
        }
        if record.more_statements > 0 {
            // Which they were is not known any more.
            *add(&mut self.statements, OTHERS) += record.more_statements;
        }
        if let Some(landmark) = place.landmark(record)
            && all.landmarks.len() < LINES_MAX
        {
            all.landmarks.push(LandmarkLine {
                landmark: landmark.name(),
                at: place.at.or(landmark.landmark.at),
                position: begin(),
                text: landmark.landmark.text,
            });
        }
        all.undecoded += record.undecoded;
        if let Some(trouble) = &record.trouble {
            all.undecoded_reason.get_or_insert_with(|| format!("{position}: {trouble}"));
        }
        let smallest = all.largest.last().map_or(0, |last| last.bytes);
        if all.largest.len() < LARGEST || record.bytes() > smallest {
            let (bytes, changes) = (record.bytes(), record.changes());
            let at = all.largest.partition_point(|other| other.bytes >= bytes);
            all.largest.insert(at, Largest { bytes, at: place.at, position, changes });
            all.largest.truncate(LARGEST);
        }
        if let Some(at) = place.at.filter(|_| place.is_first) {
            let header = &place.segment.header;
            let lag = header.opened_at.shifted(header.skew_micros).since(at).as_millis();
            let lag = u64::try_from(lag).unwrap_or(u64::MAX);
            all.lag_max_ms = all.lag_max_ms.max(Some(lag));
        }
    }

    /// Whether something was counted from a segment that is still open.
    pub(super) fn is_open(&self) -> bool {
        self.parts.iter().any(|part| !part.is_sealed && part.bytes > 0)
    }

    /// The counts. What they prove is for others to say.
    pub(super) fn increment(self) -> Increment {
        let named = |counts: BTreeMap<String, u64>| {
            let mut named: Vec<NameCount> =
                counts.into_iter().map(|(name, count)| NameCount { name, count }).collect();
            named.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.name.cmp(&b.name)));
            named
        };
        let tables = self.tables.into_iter().map(|(name, rows)| {
            let Rows { inserts, updates, deletes } = rows;
            TableCount { name, inserts, updates, deletes }
        });
        let databases = self.databases.into_iter().map(|(db, count)| DatabaseCount { db, count });
        let parts: Vec<Part> = self.parts.into_iter().filter(Part::counts).collect();
        Increment {
            bytes_raw: parts.iter().map(|part| part.bytes).sum(),
            bytes_stored: parts.iter().map(Part::stored).sum(),
            tables: tables.collect(),
            statements: named(self.statements),
            commands: named(self.commands),
            key_prefixes: named(self.prefixes),
            databases: databases.collect(),
            segments: parts.into_iter().map(|part| part.segment).collect(),
            ..self.increment
        }
    }
}

impl Part {
    /// Whether the hour has anything of the segment. One without a byte of the log is only marks.
    fn counts(&self) -> bool {
        self.bytes > 0 || self.bytes_raw == 0
    }

    /// Its part of the file.
    fn stored(&self) -> u64 {
        if self.bytes_raw == 0 {
            return self.bytes_stored;
        }
        let part =
            u128::from(self.bytes_stored) * u128::from(self.bytes) / u128::from(self.bytes_raw);
        u64::try_from(part).unwrap_or(u64::MAX)
    }
}

/// A statement as one short line.
fn brief(text: &str) -> String {
    const LONGEST: usize = 200;
    if text.len() <= LONGEST {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(LONGEST);
    format!("{}…", text.get(..end).unwrap_or_default())
}
