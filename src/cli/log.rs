//! `pitr log`: what happened, as far as the archive keeps it in short.

use super::{chosen, show};
use crate::archive::Archive;
use crate::clock::{Timestamp, Tz, in_zone};
use crate::config::Config;
use crate::error::Result;
use clap::Args;
use serde::Serialize;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pitr log --landmarks
  pitr log --landmarks --source shop-mysql --json

Landmarks are DROP, TRUNCATE, ALTER, RENAME and CREATE OR REPLACE of tables and schemas, and FLUSHALL,
FLUSHDB and SWAPDB. Behind each stands the restore that goes to just before it.")]
pub(super) struct LogArgs {
    /// Moments that somebody may want to go back before
    #[arg(long, required = true)]
    landmarks: bool,
    /// Only this source (repeatable); without it, all
    #[arg(long, value_name = "NAME")]
    source: Vec<String>,
}

/// `pitr.log/1`.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    landmarks: Vec<Line>,
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

/// Lists landmarks from the catalog, and from segments that are still open.
pub(super) fn log(config: &Config, args: &LogArgs, json: bool) -> Result<()> {
    let archive = Archive::open_read_only(&config.archive)?;
    let mut landmarks = Vec::new();
    for source in chosen(config, &args.source)? {
        for found in archive.landmarks(&source.name)? {
            let name = found.name();
            landmarks.push(Line {
                restore: format!("pitr restore --source {} --before {name}", source.name),
                source: source.name.clone(),
                landmark: name,
                at: found.landmark.at,
                position: format!("{}:{}", found.log, found.landmark.offset),
                text: found.landmark.text,
                more: found.landmark.more,
            });
        }
    }
    let report = Report { schema: "pitr.log/1", landmarks };
    show(&report, json, || text(&report, config.zone))
}

fn text(report: &Report, zone: Tz) -> String {
    let mut out = String::new();
    for line in &report.landmarks {
        let at = line.at.map_or_else(|| "-".into(), |at| in_zone(at, zone));
        out += &format!("{at}  {}  {}\n    {}\n", line.source, line.text, line.restore);
        if line.more > 0 {
            out += &format!("    and {} more at once, which were not kept\n", line.more);
        }
    }
    if report.landmarks.is_empty() {
        out += "no landmarks\n";
    }
    out
}
