//! `pitr log`: what happened, as far as the archive keeps it in short.

use super::{chosen, show};
use crate::archive::Archive;
use crate::clock::{Timestamp, Tz, in_zone};
use crate::config::Config;
use crate::error::Result;
use crate::manifest::NamedMark;
use clap::Args;
use serde::Serialize;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pitr log --landmarks
  pitr log --landmarks --source shop-mysql --json
  pitr log --marks

Landmarks are DROP, TRUNCATE, ALTER, RENAME and CREATE OR REPLACE of tables and schemas, and FLUSHALL,
FLUSHDB and SWAPDB. Behind each stands the restore that goes to just before it.
Marks are instants that were named with `pitr mark`.")]
pub(super) struct LogArgs {
    /// Moments that somebody may want to go back before
    #[arg(long, required_unless_present = "marks")]
    landmarks: bool,
    /// Instants that were named with `pitr mark`
    #[arg(long)]
    marks: bool,
    /// Only this source (repeatable); without it, all
    #[arg(long, value_name = "NAME")]
    source: Vec<String>,
}

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
    let archive = Archive::open_read_only(&config.archive)?;
    let sources: Vec<String> =
        chosen(config, &args.source)?.into_iter().map(|source| source.name).collect();
    let landmarks = args.landmarks.then(|| landmarks(&archive, &sources)).transpose()?;
    let marks = args.marks.then(|| archive.named_marks()).transpose()?;
    let of_sources = |mark: &NamedMark| mark.sources.iter().any(|s| sources.contains(&s.name));
    let marks = marks.map(|marks| marks.into_iter().filter(of_sources).collect());
    let report = Report { schema: "pitr.log/1", landmarks, marks };
    show(&report, json, || text(&report, config.zone))
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
