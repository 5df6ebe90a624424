//! `pitr log`: what happened: every record between two instants, or landmarks and marks alone.

mod records;

use super::{chosen, show};
use crate::archive::Archive;
use crate::clock::{Timestamp, Tz, in_zone};
use crate::config::{self, Config};
use crate::error::Result;
use crate::manifest::NamedMark;
use clap::Args;
use serde::Serialize;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pitr log                                                        the last hour
  pitr log --from '2 hours ago' --table 'shop.*' --larger-than 1M
  pitr log --source shop-redis --key 'cart:*'
  pitr log --from 2024-05-01T02:00 --to 2024-05-01T02:10 --table shop.orders --rows
  pitr log --landmarks                                            answers at once, from the catalog
  pitr log --marks

A line of a record has its time, its GTID or place, rows inserted (+), updated (~) and deleted (-) by
table, or its commands; then the statements that are in the log with it.
Landmarks are DROP, TRUNCATE, ALTER, RENAME and CREATE OR REPLACE of tables and schemas, and FLUSHALL,
FLUSHDB and SWAPDB. Behind each stands the restore that goes to just before it.
Marks are instants that were named with `pitr mark`.")]
pub(super) struct LogArgs {
    /// Only moments that somebody may want to go back before
    #[arg(long, conflicts_with_all = RECORDS)]
    landmarks: bool,
    /// Only instants that were named with `pitr mark`
    #[arg(long, conflicts_with_all = RECORDS)]
    marks: bool,
    /// What was committed from then on [default: an hour before --to]
    #[arg(long, value_name = "T")]
    from: Option<String>,
    /// What was committed before then [default: all of it]
    #[arg(long, value_name = "T")]
    to: Option<String>,
    /// Zone of civil times [default: the configuration's, else this host's]
    #[arg(long, value_name = "ZONE")]
    tz: Option<String>,
    /// Only records with rows of such a table: `shop.orders`, `shop.*` (repeatable)
    #[arg(long, value_name = "PATTERN")]
    table: Vec<String>,
    /// Only records with such a key of Redis: `cart:*` (repeatable)
    #[arg(long, value_name = "PATTERN")]
    key: Vec<String>,
    /// Only records of more bytes: `4096`, `64K`, `10M`, `1G`
    #[arg(long, value_name = "SIZE")]
    larger_than: Option<String>,
    /// Print each row before and after its change, as a line of JSON
    #[arg(long, conflicts_with_all = ["key", "larger_than"])]
    rows: bool,
    /// Only this source (repeatable); without it, all
    #[arg(long, value_name = "NAME")]
    source: Vec<String>,
}

/// What chooses records, and means nothing for landmarks and marks.
const RECORDS: [&str; 6] = ["from", "to", "table", "key", "larger_than", "rows"];

/// `pitr.log/1`.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    landmarks: Option<Vec<Line>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    marks: Option<Vec<NamedMark>>,
}

/// One landmark.
#[derive(Serialize)]
struct Line {
    source: String,
    landmark: String,
    at: Option<Timestamp>,
    position: String,
    text: String,
    /// So many followed closely that none of them was kept.
    #[serde(skip_serializing_if = "is_none")]
    more: u32,
    restore: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_none(more: &u32) -> bool {
    *more == 0
}

/// Lists landmarks from the catalog, and from segments that are still open; and named marks.
pub(super) fn log(config: &Config, args: &LogArgs, json: bool) -> Result<()> {
    if !args.landmarks && !args.marks {
        return records::records(config, args, json);
    }
    let archive = Archive::open_read_only(&config.archive)?;
    let sources: Vec<String> =
        chosen(config, &args.source)?.into_iter().map(|source| source.name).collect();
    let landmarks = args.landmarks.then(|| landmarks(&archive, &sources)).transpose()?;
    let marks = args.marks.then(|| archive.named_marks()).transpose()?;
    let of_sources = |mark: &NamedMark| mark.sources.iter().any(|s| sources.contains(&s.name));
    let marks = marks.map(|marks| marks.into_iter().filter(of_sources).collect());
    let report = Report { schema: "pitr.log/1", landmarks, marks };
    let zone = zone(config, args)?;
    show(&report, json, || text(&report, zone))
}

fn zone(config: &Config, args: &LogArgs) -> Result<Tz> {
    args.tz.as_deref().map_or(Ok(config.zone), config::parse_zone)
}

fn landmarks(archive: &Archive, sources: &[String]) -> Result<Vec<Line>> {
    let mut landmarks = Vec::new();
    for source in sources {
        for found in archive.landmarks(source)? {
            let name = found.name();
            landmarks.push(Line {
                restore: format!("pitr restore --source {source} --before {name}"),
                source: source.clone(),
                landmark: name,
                at: found.landmark.at,
                position: format!("{}:{}", found.log, found.landmark.offset),
                text: found.landmark.text,
                more: found.landmark.more,
            });
        }
    }
    Ok(landmarks)
}

fn text(report: &Report, zone: Tz) -> String {
    let mut out = String::new();
    for line in report.landmarks.iter().flatten() {
        let at = line.at.map_or_else(|| "-".into(), |at| in_zone(at, zone));
        out += &format!("{at}  {}  {}\n    {}\n", line.source, line.text, line.restore);
        if line.more > 0 {
            out += &format!("    and {} more at once, which were not kept\n", line.more);
        }
    }
    if report.landmarks.as_ref().is_some_and(Vec::is_empty) {
        out += "no landmarks\n";
    }
    for mark in report.marks.iter().flatten() {
        let sources: Vec<&str> = mark.sources.iter().map(|s| s.name.as_str()).collect();
        let how = if mark.held_us.is_some() { "  one moment" } else { "" };
        out +=
            &format!("{}  {}{how}  ({})\n", in_zone(mark.at, zone), mark.name, sources.join(", "));
        out += &format!("    pitr restore --to mark:{}\n", mark.name);
    }
    if report.marks.as_ref().is_some_and(Vec::is_empty) {
        out += "no marks\n";
    }
    out
}
