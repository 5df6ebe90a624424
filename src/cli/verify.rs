//! `pitr verify`: is everything still as it was written?

use super::{chosen, show};
use crate::clock::Timestamp;
use crate::config::Config;
use crate::engine;
use crate::error::{Error, Result};
use crate::verify::{self, Options, Sample};
use clap::Args;
use indicatif::BinaryBytes;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// How often it is said how far it is.
const SAY_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pitr verify                      read everything
  pitr verify --sample 5%          another twentieth each day: all of it in 20 days
  pitr verify --source shop-mysql --json

Heads, the chain of digests and the catalog are looked at whatever the sample is. Needs no server, and
works beside `pitr run`. Exit code 5 if something is damaged or missing, 1 if there is only more than
there has to be.")]
pub(super) struct VerifyArgs {
    /// Read only a part of the bytes, another one each day
    #[arg(long, value_name = "N%")]
    sample: Option<String>,
    /// Only this source (repeatable); without it, all that the archive has
    #[arg(long, value_name = "NAME")]
    source: Vec<String>,
}

pub(super) fn verify(config: &Config, args: &VerifyArgs, json: bool) -> Result<()> {
    if !args.source.is_empty() {
        chosen(config, &args.source)?;
    }
    let sample = match &args.sample {
        None => Sample::All,
        Some(text) => Sample::percent(percent(text)?, Timestamp::now())?,
    };
    let options = Options {
        archive: config.archive.clone(),
        sources: args.source.clone(),
        sample,
        parser: engine::parser,
    };
    let said = Cell::new(Instant::now());
    let report = verify::verify(&options, &|done, total| {
        if said.get().elapsed() >= SAY_EVERY {
            said.set(Instant::now());
            tracing::info!("verified {} of {}", BinaryBytes(done), BinaryBytes(total));
        }
    })?;
    show(&report, json, || report.text(config.zone))?;
    report.check()
}

fn percent(text: &str) -> Result<f64> {
    let number = text.trim().trim_end_matches('%').trim();
    number.parse().map_err(|_| {
        Error::usage(format!("not a part of a whole: {text:?}")).hint("write it like --sample 5%")
    })
}
