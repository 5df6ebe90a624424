//! What was counted, for people and for programs.

use super::html;
use crate::clock::{Timestamp, Tz, in_zone};
use crate::error::{Class, Error, Result};
use crate::manifest::{Before, Continuity, HourRecord, Increment, NameCount};
use serde::Serialize;

/// How many tables, commands and beginnings of keys the text shows.
const SHOWN: usize = 20;

/// `pitr.audit/1`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Name and version of this document's form.
    pub schema: &'static str,
    /// The first hour.
    pub from: Timestamp,
    /// The first instant behind the last one.
    pub to: Timestamp,
    /// The hours, in order.
    pub hours: Vec<Hour>,
}

/// An hour of a [`Report`].
#[derive(Debug, Clone, Serialize)]
pub struct Hour {
    /// When it begins.
    pub hour: Timestamp,
    /// Source by source.
    pub sources: Vec<SourceHour>,
}

/// What a source did in an hour.
#[derive(Debug, Clone, Serialize)]
pub struct SourceHour {
    /// Name of the source.
    pub name: String,
    /// The counts and the verdict.
    #[serde(flatten)]
    pub increment: Increment,
    /// Digest of the record; `None` while there is none.
    pub digest: Option<String>,
    /// The record before it.
    pub previous: Option<Before>,
    /// When it was recorded.
    pub recorded_at: Option<Timestamp>,
}

impl SourceHour {
    pub(super) fn recorded(record: HourRecord, digest: String) -> Self {
        Self {
            name: record.source,
            increment: record.increment,
            digest: Some(digest),
            previous: record.previous,
            recorded_at: Some(record.written_at),
        }
    }

    pub(super) fn counted(source: &str, increment: Increment) -> Self {
        let name = source.to_owned();
        Self { name, increment, digest: None, previous: None, recorded_at: None }
    }

    /// Rows inserted, updated and deleted in all tables.
    pub(super) fn rows(&self) -> (u64, u64, u64) {
        let tables = &self.increment.tables;
        tables.iter().fold((0, 0, 0), |(inserts, updates, deletes), table| {
            (inserts + table.inserts, updates + table.updates, deletes + table.deletes)
        })
    }

    /// Commands of all names.
    pub(super) fn commands(&self) -> u64 {
        self.increment.commands.iter().map(|command| command.count).sum()
    }
}

impl Report {
    /// What it amounts to.
    ///
    /// # Errors
    /// Finding, if an hour has a gap, or is not proved.
    pub fn check(&self) -> Result<()> {
        let all = self.hours.iter().flat_map(|hour| hour.sources.iter().map(move |s| (hour, s)));
        let bad: Vec<_> =
            all.filter(|(_, s)| s.increment.continuity != Continuity::Proved).collect();
        let Some((hour, source)) = bad.first() else { return Ok(()) };
        let more = match bad.len() {
            1 => String::new(),
            count => format!(", and {} more hours", count - 1),
        };
        let reason = source.increment.reason.as_deref().unwrap_or_default();
        Err(Error::new(
            Class::Finding,
            format!(
                "{} {}: {}: {reason}{more}",
                source.name,
                hour.hour,
                source.increment.continuity.word()
            ),
        )
        .hint("`pitr windows` shows what can be restored, `pitr verify` what is damaged"))
    }

    /// The report for people, with times in `zone`.
    pub fn text(&self, zone: Tz) -> String {
        let mut out = String::new();
        for hour in &self.hours {
            out += &hour.text(zone);
        }
        if self.hours.is_empty() {
            out += "no hours\n";
        }
        out
    }

    /// A line for each hour of a source, and one for each table, command and beginning of keys.
    pub fn csv(&self) -> String {
        let mut out = "hour,source,kind,name,records,bytes_raw,bytes_stored,inserts,updates,\
            deletes,count,first_position,first_at,last_position,last_at,undecoded,lag_max_ms,\
            continuity,reason,digest\n"
            .to_owned();
        for hour in &self.hours {
            for source in &hour.sources {
                let all = &source.increment;
                let (inserts, updates, deletes) = source.rows();
                let at = |at: Option<Timestamp>| at.map(|at| at.to_string()).unwrap_or_default();
                let number = |number: u64| number.to_string();
                let begin = |kind: &str, name: &str| {
                    vec![hour.hour.to_string(), source.name.clone(), kind.into(), name.into()]
                };
                let first = all.first.as_ref();
                let last = all.last.as_ref();
                let mut line = begin("hour", "");
                line.extend([all.records, all.bytes_raw, all.bytes_stored].map(number));
                line.extend([inserts, updates, deletes, source.commands()].map(number));
                line.extend([
                    first.map(|first| first.position.clone()).unwrap_or_default(),
                    at(first.and_then(|first| first.at)),
                    last.map(|last| last.position.clone()).unwrap_or_default(),
                    at(last.and_then(|last| last.at)),
                    number(all.undecoded),
                    all.lag_max_ms.map(number).unwrap_or_default(),
                    all.continuity.word().to_owned(),
                    all.reason.clone().unwrap_or_default(),
                    source.digest.clone().unwrap_or_default(),
                ]);
                out += &csv_line(&line);
                let empty = |count: usize| std::iter::repeat_n(String::new(), count);
                for table in &all.tables {
                    let mut line = begin("table", &table.name);
                    line.extend(empty(3));
                    line.extend([table.inserts, table.updates, table.deletes].map(number));
                    line.extend(empty(10));
                    out += &csv_line(&line);
                }
                for (kind, counts) in [
                    ("statement", &all.statements),
                    ("command", &all.commands),
                    ("prefix", &all.key_prefixes),
                ] {
                    for NameCount { name, count } in counts {
                        let mut line = begin(kind, name);
                        line.extend(empty(6));
                        line.push(number(*count));
                        line.extend(empty(9));
                        out += &csv_line(&line);
                    }
                }
            }
        }
        out
    }

    /// One page that needs nothing else, with times in `zone`.
    pub fn html(&self, zone: Tz) -> String {
        html::page(self, zone)
    }
}

/// A line of fields, each quoted if it has to be (RFC 4180).
fn csv_line(fields: &[String]) -> String {
    let quoted = |field: &String| {
        if field.contains(['"', ',', '\n', '\r']) {
            format!("\"{}\"", field.replace('"', "\"\""))
        } else {
            field.clone()
        }
    };
    let fields: Vec<String> = fields.iter().map(quoted).collect();
    format!("{}\n", fields.join(","))
}

impl Hour {
    /// The hour for people, with times in `zone`.
    pub fn text(&self, zone: Tz) -> String {
        let mut out = format!("{}\n", in_zone(self.hour, zone));
        for source in &self.sources {
            source.write(&mut out, zone);
        }
        out
    }
}

impl SourceHour {
    fn write(&self, out: &mut String, zone: Tz) {
        let all = &self.increment;
        let reason = all.reason.as_deref().map(|why| format!(" ({why})")).unwrap_or_default();
        *out += &format!(
            "  {}: {}{reason}, {}, {} of log, {} stored\n",
            self.name,
            all.continuity.word(),
            many(all.records, "record"),
            many(all.bytes_raw, "byte"),
            all.bytes_stored
        );
        let mut line = |text: String| *out += &format!("      {text}\n");
        if let (Some(first), Some(last)) = (&all.first, &all.last) {
            let at = |at: Option<Timestamp>| at.map_or_else(|| "-".into(), |at| in_zone(at, zone));
            line(format!("from {} at {}", first.position, at(first.at)));
            line(format!("to   {} at {}", last.position, at(last.at)));
        }
        for table in all.tables.iter().take(SHOWN) {
            line(format!(
                "{}: {} inserted, {} updated, {} deleted",
                table.name, table.inserts, table.updates, table.deletes
            ));
        }
        more(&mut line, all.tables.len(), "tables");
        for statement in &all.statements {
            let NameCount { name, count } = statement;
            line(format!("{name}: {}, whose rows nobody counted", many(*count, "statement")));
        }
        if all.undecoded > 0 {
            let why = all.undecoded_reason.as_deref().unwrap_or_default();
            line(format!("{} could not be decoded: {why}", many(all.undecoded, "event")));
        }
        let list = |counts: &[NameCount]| {
            let shown = counts.iter().take(SHOWN).map(|count| {
                let name = if count.name.is_empty() { "(no prefix)" } else { &count.name };
                format!("{name} {}", count.count)
            });
            let rest = if counts.len() > SHOWN { ", …" } else { "" };
            format!("{}{rest}", shown.collect::<Vec<_>>().join(", "))
        };
        if !all.commands.is_empty() {
            line(format!("commands: {}", list(&all.commands)));
            line(format!("keys: {}", list(&all.key_prefixes)));
        }
        if all.multi > 0 {
            line(many(all.multi, "block of several commands"));
        }
        for ddl in all.ddl.iter().take(SHOWN) {
            line(format!("{}  {}", ddl.position, ddl.text));
        }
        more(&mut line, all.ddl.len() + usize::try_from(all.more_ddl).unwrap_or(0), "statements");
        for landmark in all.landmarks.iter().take(SHOWN) {
            line(format!("{}  {}", landmark.landmark, landmark.text));
        }
        more(&mut line, all.landmarks.len(), "landmarks");
        if let Some(largest) = all.largest.first() {
            line(format!("largest: {}, {}", largest.position, many(largest.bytes, "byte")));
        }
        if let Some(lag) = all.lag_max_ms {
            line(format!("at most {lag} ms from commit to archive, where a segment begins"));
        }
        for fallback in all.semi_sync.iter().flatten() {
            let to = fallback.to.map_or_else(|| "now".into(), |to| in_zone(to, zone));
            let from = in_zone(fallback.from, zone);
            line(format!("commits did not wait from {from} to {to}: {}", fallback.reason));
        }
        match (&self.digest, &self.recorded_at) {
            (Some(digest), Some(at)) => {
                line(format!("recorded {} as {digest}", in_zone(*at, zone)));
            }
            _ => line("not recorded yet".into()),
        }
    }
}

fn more(line: &mut impl FnMut(String), count: usize, what: &str) {
    if count > SHOWN {
        line(format!("and {} more {what}", count - SHOWN));
    }
}

fn many(count: u64, what: &str) -> String {
    match (count, what.split_once(' ')) {
        (1, _) => format!("1 {what}"),
        (_, Some((noun, rest))) => format!("{count} {noun}s {rest}"),
        _ => format!("{count} {what}s"),
    }
}
