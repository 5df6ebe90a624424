//! `pitr drill`: would a restore work?

use super::progress;
use super::{chosen, runtime, show, until_stopped};
use crate::clock::{self, Target, Timestamp};
use crate::config::{self, Config};
use crate::drill::{self, Options};
use crate::engine::SourceOptions;
use crate::error::{Class, Error, Result};
use crate::restore::Progress;
use clap::Args;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long what still reads the archive is waited for after an interruption.
const STOP: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pitr drill                                every source, to a random instant of the last day
  pitr drill --to '2 hours ago' --scratch /srv/scratch
  nice -n 19 pitr drill --source shop-mysql --json

Restores into scratch servers of programs on PATH, in a folder that is thrown away, and looks at all
that is there. The report stays in the archive, under drills/. Exit code 1 unless the drill is passed:
failed, or inconclusive, if a tool or room on the disk is missing or it cannot be told.")]
pub(super) struct DrillArgs {
    /// RFC 3339, civil time (with --tz), or '10 minutes ago' [default: a random instant of the last day]
    #[arg(long, value_name = "T")]
    to: Option<String>,
    /// Zone of a civil time [default: the configuration's, else this host's]
    #[arg(long, value_name = "ZONE")]
    tz: Option<String>,
    /// Only this source (repeatable); without it, all
    #[arg(long, value_name = "NAME")]
    source: Vec<String>,
    /// Where the scratch folder is made, which takes all data [default: the configuration's, else
    /// $TMPDIR, else /tmp]
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

pub(super) fn drill(config: &Config, args: &DrillArgs, json: bool) -> Result<()> {
    let zone = match &args.tz {
        Some(name) => config::parse_zone(name)?,
        None => config.zone,
    };
    let now = Timestamp::now();
    let to = match &args.to {
        None => None,
        Some(text) => match clock::parse_target(text, zone, now)? {
            Target::At(at) => Some(at),
            Target::Latest => {
                return Err(Error::usage("drill to `latest`: it is another one in a moment")
                    .hint("name an instant, or leave --to away"));
            }
        },
    };
    let options = Options {
        archive: config.archive.clone(),
        sources: chosen(config, &args.source)?,
        configured: config.sources.iter().flat_map(SourceOptions::endpoints).cloned().collect(),
        to,
        canary: config.drill.canary,
        scratch: args.scratch.clone().or_else(|| config.drill.dir.clone()),
    };
    let progress = Arc::new(Progress::default());
    let runtime = runtime()?;
    let drilled = runtime.block_on(async {
        tokio::select! {
            report = drill::drill(&options, &progress) => report,
            () = until_stopped() => Err(Error::new(Class::Interrupted, "the drill was interrupted")),
            () = progress::show(Arc::clone(&progress)) => Err(Error::bug("progress ended")),
        }
    });
    runtime.shutdown_timeout(STOP);
    let report = drilled?;
    show(&report, json, || report.text(zone))?;
    report.check()
}
