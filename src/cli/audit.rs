//! `pitr audit`: what each hour changed, and the proof that nothing is missing.

use super::{chosen, print, show};
use crate::archive::Archive;
use crate::audit::{self, Options};
use crate::clock::{Target, Timestamp, Tz, parse_target};
use crate::config::{self, Config};
use crate::error::{Class, Context, Result};
use crate::manifest::EngineKind;
use clap::Args;
use std::time::Duration;

/// How often a new record is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pitr audit                                       the last day, and the hour that runs
  pitr audit --hour 2024-05-01T02:00               one hour
  pitr audit --from 2024-05-01 --to 2024-05-02 --html > day.html
  pitr audit --follow --json                       each hour as soon as it is recorded

Hours are those of UTC. `pitr run` records each of them when it is over and all of it is archived, each
record with the digest of the one before; hours without a record are counted from the archive, and said
to be so. Exit code 1 if an hour has a gap or is not proved, 5 if a record is not as it was written.")]
pub(super) struct AuditArgs {
    /// The hour that this instant lies in
    #[arg(long, value_name = "T", conflicts_with_all = ["from", "to", "follow"])]
    hour: Option<String>,
    /// From the hour that this instant lies in [default: the last day]
    #[arg(long, value_name = "T")]
    from: Option<String>,
    /// Only hours that begin before this instant [default: up to now]
    #[arg(long, value_name = "T", conflicts_with = "follow")]
    to: Option<String>,
    /// Zone of civil times [default: the configuration's, else this host's]
    #[arg(long, value_name = "ZONE")]
    tz: Option<String>,
    /// Only this source (repeatable); without it, all
    #[arg(long, value_name = "NAME")]
    source: Vec<String>,
    /// Go on with each hour as soon as it is recorded, until stopped
    #[arg(long, conflicts_with_all = ["csv", "html"])]
    follow: bool,
    /// Print comma-separated values
    #[arg(long, conflicts_with_all = ["html", "json"])]
    csv: bool,
    /// Print one page of HTML, which needs nothing else
    #[arg(long, conflicts_with = "json")]
    html: bool,
}

pub(super) fn audit(config: &Config, args: &AuditArgs, json: bool) -> Result<()> {
    let zone = match &args.tz {
        Some(name) => config::parse_zone(name)?,
        None => config.zone,
    };
    let now = Timestamp::now();
    let instant = |text: &String| match parse_target(text, zone, now)? {
        Target::At(at) => Ok(at),
        Target::Latest => Ok(now),
    };
    let mut from = args.from.as_ref().map(instant).transpose()?;
    let mut to = args.to.as_ref().map(instant).transpose()?;
    if let Some(hour) = args.hour.as_ref().map(instant).transpose()? {
        from = Some(hour.hour());
        to = Some(hour.hour().after(audit::HOUR));
    }
    let sources: Vec<(String, EngineKind)> =
        chosen(config, &args.source)?.into_iter().map(|s| (s.name, s.engine)).collect();
    let options = Options { archive: config.archive.clone(), sources, from, to, now };
    if args.follow {
        return follow(&options, zone, json);
    }
    let report = audit::audit(&options)?;
    if args.csv {
        print(report.csv().as_bytes())?;
    } else if args.html {
        print(report.html(zone).as_bytes())?;
    } else {
        show(&report, json, || report.text(zone))?;
    }
    report.check()
}

/// Prints the hours that are recorded, and each further one when it is. Ends when it is stopped.
fn follow(options: &Options, zone: Tz, json: bool) -> Result<()> {
    let mut next: Vec<Timestamp> =
        vec![options.from.unwrap_or(options.now).hour(); options.sources.len()];
    loop {
        let archive = Archive::open_read_only(&options.archive)?;
        let far = Timestamp::from_micros(i64::MAX);
        for ((source, engine), next) in options.sources.iter().zip(&mut next) {
            for (hour, _) in archive.catalog().audits(source, *next, far)? {
                let one = Options {
                    sources: vec![(source.clone(), *engine)],
                    from: Some(hour),
                    to: Some(hour.after(audit::HOUR)),
                    now: Timestamp::now(),
                    ..options.clone()
                };
                let report = audit::audit(&one)?;
                if json {
                    let mut line = serde_json::to_vec(&report)
                        .class(Class::Bug, || "write JSON".to_owned())?;
                    line.push(b'\n');
                    print(&line)?;
                } else {
                    print(report.text(zone).as_bytes())?;
                }
                *next = hour.after(audit::HOUR);
            }
        }
        drop(archive);
        std::thread::sleep(LOOK_EVERY);
    }
}
