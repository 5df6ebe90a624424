//! `pitr verify`: is everything still as it was written?

use super::{chosen, runtime, show, until_stopped};
use crate::clock::Timestamp;
use crate::config::Config;
use crate::engine;
use crate::error::{Class, Error, Result};
use crate::restore::{self, Closed};
use crate::verify::{self, Options, Sample};
use clap::Args;
use indicatif::BinaryBytes;
use serde::Serialize;
use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it is said how far it is.
const SAY_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pitr verify                      read everything
  pitr verify --sample 5%          another twentieth each day: all of it in 20 days
  pitr verify --source shop-mysql --json
  pitr verify --closure            each Redis baseline and the log behind it are the next baseline

Heads, the chain of digests and the catalog are looked at whatever the sample is. Needs no server (--closure
needs a redis-server or valkey-server on PATH, and memory for the data), and works beside `pitr run`. Exit
code 5 if something is damaged or missing, 1 if a log is not complete, or there is only more than there has
to be.")]
pub(super) struct VerifyArgs {
    /// Read only a part of the bytes, another one each day
    #[arg(long, value_name = "N%")]
    sample: Option<String>,
    /// Only this source (repeatable); without it, all that the archive has
    #[arg(long, value_name = "NAME")]
    source: Vec<String>,
    /// Prove of Redis sources that the log between two baselines is complete, in scratch servers
    #[arg(long, conflicts_with = "sample")]
    closure: bool,
}

/// What is said where `--closure` was asked for.
#[derive(Serialize)]
struct Both<'a> {
    #[serde(flatten)]
    verified: &'a verify::Report,
    /// `null` if it was not tried, because something is damaged.
    closure: Option<&'a [Closed]>,
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
    if !args.closure {
        show(&report, json, || report.text(config.zone))?;
        return report.check();
    }
    let checked = report.check();
    let closed = match &checked {
        // What is damaged proves nothing.
        Err(error) if error.class() == Class::Corrupt => None,
        _ => Some(close(config, args)?),
    };
    let closure = closed.as_deref();
    show(&Both { verified: &report, closure }, json, || {
        let untried = || "closure: not tried, as something is damaged\n".to_owned();
        report.text(config.zone) + &closure.map_or_else(untried, restore::closure_text)
    })?;
    closed.map_or(Ok(()), |closed| restore::check_closure(&closed))?;
    checked
}

fn close(config: &Config, args: &VerifyArgs) -> Result<Vec<Closed>> {
    let sources = chosen(config, &args.source)?;
    let progress = Arc::default();
    runtime()?.block_on(async {
        tokio::select! {
            closed = restore::closure(&config.archive, &sources, &progress) => closed,
            () = until_stopped() => Err(Error::new(Class::Interrupted, "nothing was proved")),
        }
    })
}

fn percent(text: &str) -> Result<f64> {
    let number = text.trim().trim_end_matches('%').trim();
    number.parse().map_err(|_| {
        Error::usage(format!("not a part of a whole: {text:?}")).hint("write it like --sample 5%")
    })
}
