//! `pitr prune` and `pitr hold`: what is kept, and for how long.

use super::{chosen, show};
use crate::archive::Archive;
use crate::clock::{self, Target, Timestamp, Tz, in_zone};
use crate::config::{self, Config};
use crate::daemon;
use crate::durable::Lock;
use crate::error::{Error, Result};
use crate::manifest::{Hold, names};
use crate::plan;
use crate::prune::{self, Options};
use clap::Args;
use serde::Serialize;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pitr prune                  what would go, what stays, and why
  pitr prune --apply          delete it

Every instant of the last `[retention] days` stays restorable, and so does what is held. The daemon
does the same after each daily baseline.")]
pub(super) struct PruneArgs {
    /// Delete; without it nothing is touched
    #[arg(long)]
    apply: bool,
    /// Delete even if this host's clock looks wrong, or more than half would go
    #[arg(long, requires = "apply")]
    force: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pitr hold audit-2024 --from 2024-05-01T00:00 --to 2024-05-02T00:00
  pitr hold --list
  pitr hold --release audit-2024

What was captured from the baseline before the span on stays as long as the span is held.")]
pub(super) struct HoldArgs {
    /// What the hold is released by
    #[arg(required_unless_present_any = ["list", "release"], requires_all = ["from", "to"])]
    name: Option<String>,
    /// First instant
    #[arg(long, value_name = "T", requires = "name")]
    from: Option<String>,
    /// Last instant
    #[arg(long, value_name = "T", requires = "name")]
    to: Option<String>,
    /// Only this source (repeatable); without it, all
    #[arg(long, value_name = "NAME")]
    source: Vec<String>,
    /// Zone of civil times [default: the configuration's, else this host's]
    #[arg(long, value_name = "ZONE")]
    tz: Option<String>,
    /// List what is held
    #[arg(long, conflicts_with_all = ["name", "release"])]
    list: bool,
    /// Release a hold
    #[arg(long, value_name = "HOLD", conflicts_with = "name")]
    release: Option<String>,
}

pub(super) fn prune(config: &Config, args: &PruneArgs, json: bool) -> Result<()> {
    let options = Options {
        archive: config.archive.clone(),
        sources: vec![],
        policy: config.retention,
        apply: args.apply,
        force: args.force,
        now: Timestamp::now(),
        stop: std::sync::Arc::default(),
    };
    let report = if args.apply {
        match daemon::ask_prune(&config.archive, config.retention, args.force) {
            Some(report) => report?,
            None => {
                crate::archive::read_meta(&config.archive)?;
                let _lock = Lock::acquire(&config.archive.join(names::LOCK))?;
                prune::prune(&options)?
            }
        }
    } else {
        prune::prune(&options)?
    };
    show(&report, json, || report.text(config.zone))
}

/// `pitr.hold/1`.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    holds: Vec<Line>,
}

/// A hold of one source.
#[derive(Serialize)]
struct Line {
    source: String,
    #[serde(flatten)]
    hold: Hold,
    /// Whether something of the span can be restored.
    restorable: bool,
}

/// Makes, releases or lists holds; shows what is held afterwards.
pub(super) fn hold(config: &Config, args: &HoldArgs, json: bool) -> Result<()> {
    let archive = Archive::open_read_only(&config.archive)?;
    let sources = chosen(config, &args.source)?;
    if let Some(name) = &args.name {
        let hold = new_hold(config, args, name)?;
        for source in &sources {
            archive.hold(&source.name, &hold)?;
        }
    } else if let Some(name) = &args.release {
        let mut released = 0;
        for source in &sources {
            released += u32::from(archive.release(&source.name, name)?);
        }
        if released == 0 {
            return Err(Error::usage(format!("nothing is held by {name}"))
                .hint("`pitr hold --list` shows the holds"));
        }
    }
    let mut holds = Vec::new();
    for source in &sources {
        let windows = plan::windows(&archive.history(&source.name, source.engine)?);
        for hold in archive.holds(&source.name)? {
            let restorable = windows.iter().any(|w| w.from <= hold.to && w.to >= hold.from);
            holds.push(Line { source: source.name.clone(), hold, restorable });
        }
    }
    let report = Report { schema: "pitr.hold/1", holds };
    show(&report, json, || text(&report, config.zone))
}

fn new_hold(config: &Config, args: &HoldArgs, name: &str) -> Result<Hold> {
    let zone = match &args.tz {
        Some(name) => config::parse_zone(name)?,
        None => config.zone,
    };
    let now = Timestamp::now();
    let instant = |text: Option<&String>| match clock::parse_target(
        text.map_or("", String::as_str),
        zone,
        now,
    )? {
        Target::At(at) => Ok(at),
        Target::Latest => Ok::<_, Error>(now),
    };
    let (from, to) = (instant(args.from.as_ref())?, instant(args.to.as_ref())?);
    if from > to {
        return Err(Error::usage("--from is later than --to"));
    }
    if !names::is_usable(name) {
        return Err(Error::usage(format!("not a name for a hold: {name:?}"))
            .hint("use letters, digits, `-`, `_` and `.`, at most 64 of them"));
    }
    Ok(Hold { name: name.to_owned(), from, to, made_at: now })
}

fn text(report: &Report, zone: Tz) -> String {
    let mut out = String::new();
    for Line { source, hold, restorable } in &report.holds {
        let (from, to) = (in_zone(hold.from, zone), in_zone(hold.to, zone));
        out += &format!("{}: {source} from {from} to {to}", hold.name);
        out += if *restorable { "\n" } else { " (nothing of it can be restored)\n" };
    }
    if report.holds.is_empty() {
        out += "nothing is held\n";
    }
    out
}
