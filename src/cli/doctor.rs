//! `pitr doctor`: what would keep pitr from capturing or restoring, and what mends it.

use super::{chosen, runtime, show};
use crate::config::Config;
use crate::doctor;
use crate::error::Result;
use clap::Args;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pitr doctor                      everything
  pitr doctor --source shop-mysql
  pitr doctor --json

Looks at servers, rights, settings, clocks, tools, disk and archive, with and without a running
daemon, and changes nothing. Each finding says why it matters and what mends it. Exit code 1 if
there is a problem (it does not work, or what comes of it could be wrong) or a warning (something
that may well happen would make it fail); notes alone are exit code 0.")]
pub(super) struct DoctorArgs {
    /// Only this source (repeatable); without it, all
    #[arg(long, value_name = "NAME")]
    source: Vec<String>,
}

pub(super) fn doctor(config: &Config, args: &DoctorArgs, json: bool) -> Result<()> {
    let sources = chosen(config, &args.source)?;
    let report = runtime()?.block_on(doctor::doctor(config, &sources));
    show(&report, json, || report.text())?;
    report.check()
}
