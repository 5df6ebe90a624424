//! `pitr mark`: its options, and what it says.

use super::{chosen, show};
use crate::clock::in_zone;
use crate::config::Config;
use crate::daemon;
use crate::error::{Class, Error, Result};
use crate::manifest::NamedMark;
use clap::Args;
use serde::Serialize;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pitr mark before-deploy
  pitr mark before-deploy --barrier
  pitr restore --to mark:before-deploy

Returns once everything before the mark is in the archive. With --barrier the sources are marked at one
moment: what is in one of them before it is in all others, too, with everything that it followed from.
For that, all writes wait for some milliseconds, 2 seconds at most. `pitr log --marks` lists marks.")]
pub(super) struct MarkArgs {
    /// Letters, digits, '-', '_' and '.'; a mark is never changed
    #[arg(value_name = "NAME")]
    name: String,
    /// Hold all writes until every source's place is read
    #[arg(long)]
    barrier: bool,
    /// Only this source (repeatable); without it, all
    #[arg(long, value_name = "NAME")]
    source: Vec<String>,
}

/// `pitr.mark/1`.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    #[serde(flatten)]
    mark: NamedMark,
}

pub(super) fn mark(config: &Config, args: &MarkArgs, json: bool) -> Result<()> {
    let sources = chosen(config, &args.source)?.into_iter().map(|source| source.name).collect();
    let made = daemon::ask_mark(&config.archive, &args.name, args.barrier, sources);
    let mark = made.map_err(|error| match error.class() {
        Class::Busy => Error::unavailable("mark an instant: no daemon runs")
            .hint("start `pitr run`: only a daemon that captures knows the instant"),
        _ => error,
    })?;
    let report = Report { schema: "pitr.mark/1", mark };
    show(&report, json, || {
        let mark = &report.mark;
        let mut out = format!("mark {} at {}\n", mark.name, in_zone(mark.at, config.zone));
        for source in &mark.sources {
            out += &format!("    {} at {}\n", source.name, source.position);
        }
        if let Some(held) = mark.held_us {
            out += &format!("writes were held for {}.{} ms\n", held / 1000, held % 1000 / 100);
        }
        out + &format!("everything before it is archived: pitr restore --to mark:{}\n", mark.name)
    })
}
