//! `pitr restore`: its options, and what it says.

use super::{chosen, eprint, progress, runtime, show, until_stopped};
use crate::archive::Archive;
use crate::clock::{self, Target, Timestamp, Tz, in_zone};
use crate::config::{self, Config};
use crate::daemon;
use crate::engine::{Apply, Endpoint, Expired, Keys, Secret, SourceOptions, Ttl};
use crate::error::{Class, Context, Error, Result};
use crate::restore::{self, Goal, Progress};
use clap::{ArgGroup, Args, ValueEnum};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long what still works in the background is waited for when a restore has ended.
const STOP: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("goal").required(true).args(["to", "to_position", "before"]))]
#[command(after_help = "\
Examples:
  pitr restore --to 2024-05-01T03:00:00Z
  pitr restore --to '2024-05-01 05:00' --tz Europe/Berlin --into /srv/restored
  pitr restore --to '10 minutes ago' --source shop-mysql \\
      --target shop-mysql=mysql://root@127.0.0.1:3307
  pitr restore --source shop-mysql --to latest --database orders --database customers
  pitr restore --source shop-redis --to '2 hours ago' --ttl shift
  pitr restore --source shop-redis --to '2 hours ago' --key 'cart:*' --into carts
  pitr restore --source shop-mysql --to-position binlog.000007:4711
  pitr restore --source shop-mysql --before 3e11fa47-71ca-11e1-9e33-c80aa9429562:23
  pitr restore --source shop-mysql --before landmark:1.42.3
  pitr restore --to mark:before-deploy

The last record committed at or before the instant is in; at a place, everything before it. Records
are never cut: a place within one is refused, and both its ends are named. Nothing is restored into a server or
folder that is not empty.")]
pub(super) struct RestoreArgs {
    /// RFC 3339, civil time (with --tz), 'latest', '10 minutes ago', or 'mark:NAME'
    #[arg(long, value_name = "T")]
    to: Option<String>,
    /// A place in the log of one --source: FILE:OFFSET, a GTID (that transaction is in), a set of
    /// GTIDs (exactly that state), REPLID:OFFSET
    #[arg(long, value_name = "P")]
    to_position: Option<String>,
    /// As --to-position, but the transaction or command that begins there, or lies there, is left
    /// out; also a landmark, as `pitr log --landmarks` names it
    #[arg(long, value_name = "P")]
    before: Option<String>,
    /// Zone of a civil time [default: the configuration's, else this host's]
    #[arg(long, value_name = "ZONE")]
    tz: Option<String>,
    /// Only this source (repeatable); without it, all
    #[arg(long, value_name = "NAME")]
    source: Vec<String>,
    /// Restore only this database of a MySQL or MariaDB source (repeatable). Everything is replayed,
    /// so it is exact; the other databases are dropped at the end [default: as the source's
    /// configuration says, else all]
    #[arg(long, value_name = "NAME")]
    database: Vec<String>,
    /// Restore all databases, also of a source whose configuration names some (databases)
    #[arg(long, conflicts_with = "database")]
    all_databases: bool,
    /// Restore only keys of a Redis source that match, as with the command KEYS (repeatable). They
    /// are copied out of a scratch server, also into a cluster
    #[arg(long, value_name = "PATTERN")]
    key: Vec<String>,
    /// Restore only keys of this database of a Redis source (repeatable)
    #[arg(long, value_name = "NUMBER")]
    db: Vec<u32>,
    /// Leave out keys of a Redis source that begin like this (repeatable)
    #[arg(long, value_name = "PREFIX")]
    drop_prefix: Vec<String>,
    /// Write the keys chosen into a target that is not empty: they are replaced, others stay
    #[arg(long, requires = "confirm")]
    in_place: bool,
    /// The source whose target --in-place means
    #[arg(long, value_name = "NAME", requires = "in_place")]
    confirm: Option<String>,
    /// Restore this source into a running, empty server (repeatable)
    #[arg(long, value_name = "NAME=URL")]
    target: Vec<String>,
    /// Password of a target, in a file (repeatable)
    #[arg(long, value_name = "NAME=FILE")]
    target_password_file: Vec<String>,
    /// Clean this source's target first: drop everything there. Only if an interrupted restore left
    /// it half filled (repeatable)
    #[arg(long, value_name = "NAME")]
    clean_target: Vec<String>,
    /// Restore into fresh folders DIR/NAME [default: ./restored-<instant>]
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,
    /// Serve the log to targets on this address [default: 127.0.0.1, any port]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// How the log goes into a running MySQL: by its own applier, or as statements
    #[arg(long, value_enum, value_name = "WAY", default_value_t = ApplyWay::Auto)]
    apply: ApplyWay,
    /// What becomes of the times at which keys of Redis expire
    #[arg(long, value_enum, value_name = "POLICY", default_value_t = TtlPolicy::Absolute)]
    ttl: TtlPolicy,
    /// Print what would be done, and stop
    #[arg(long)]
    plan: bool,
}

/// `--apply`.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ApplyWay {
    /// By its applier where the account may make it a replica, else as statements
    Auto,
    /// By its own applier, as a replica of pitr
    Native,
    /// The same, with small transactions merged into large ones: faster, for MySQL with GTIDs
    Merged,
    /// As statements over one connection: for managed servers
    Sql,
}

/// `--ttl`.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum TtlPolicy {
    /// Keep them: keys whose expiry has passed since are gone, and counted
    Absolute,
    /// Move them by the time that has passed since, so that each key lives as long as it had left
    Shift,
    /// Drop them: what was alive at the instant stays
    Persist,
}

impl From<TtlPolicy> for Ttl {
    fn from(policy: TtlPolicy) -> Self {
        match policy {
            TtlPolicy::Absolute => Self::Absolute,
            TtlPolicy::Shift => Self::Shift,
            TtlPolicy::Persist => Self::Persist,
        }
    }
}

impl From<ApplyWay> for Apply {
    fn from(way: ApplyWay) -> Self {
        match way {
            ApplyWay::Auto => Self::Auto,
            ApplyWay::Native => Self::Native,
            ApplyWay::Merged => Self::Merged,
            ApplyWay::Sql => Self::Sql,
        }
    }
}

pub(super) fn restore(config: &Config, args: &RestoreArgs, json: bool) -> Result<()> {
    let zone = match &args.tz {
        Some(name) => config::parse_zone(name)?,
        None => config.zone,
    };
    let mut sources = chosen(config, &args.source)?;
    if args.all_databases {
        for source in &mut sources {
            source.databases.clear();
        }
    }
    let names: Vec<String> = sources.iter().map(|source| source.name.clone()).collect();
    let targets = parse_targets(config, args, &names)?;
    let to = goal(config, args, zone, &sources, &names)?;
    if let (Goal::Instant(to), false) = (&to, json) {
        eprint(&format!("restore to {} = {to}\n", in_zone(*to, zone)));
    }
    let options = restore::Options {
        archive: config.archive.clone(),
        sources: sources.clone(),
        configured: config.sources.iter().flat_map(SourceOptions::endpoints).cloned().collect(),
        to,
        targets,
        into: args.into.clone(),
        listen: args.listen,
        apply: args.apply.into(),
        databases: args.database.clone(),
        ttl: args.ttl.into(),
        keys: Keys {
            patterns: args.key.clone(),
            databases: args.db.clone(),
            without: args.drop_prefix.clone(),
        },
        in_place: args.confirm.clone(),
        clean: args.clean_target.clone(),
        inspect: None,
    };
    if let Some(name) = args.clean_target.iter().find(|name| !options.targets.contains_key(*name)) {
        return Err(Error::usage(format!("--clean-target {name}, which has no --target")));
    }
    let plan = match restore::prepare(&options) {
        // What was written a moment ago may not be on disk yet.
        Err(error) if error.class() == Class::Gap && matches!(options.to, Goal::Place { .. }) => {
            let wait = restore::WAIT_FOR_DAEMON;
            if !daemon::cover(&config.archive, Timestamp::now(), names, wait) {
                return Err(error);
            }
            restore::prepare(&options)?
        }
        plan => plan?,
    };
    let report = if args.plan {
        runtime()?.block_on(plan.look())?
    } else {
        let progress = Arc::new(Progress::default());
        let runtime = runtime()?;
        let restored = runtime.block_on(async {
            tokio::select! {
                report = plan.run(&progress) => report,
                () = until_stopped() => {
                    Err(Error::new(Class::Interrupted, "the restore was interrupted")
                        .hint("run the same restore again: it goes on, or starts anew"))
                }
                () = progress::show(Arc::clone(&progress)) => Err(Error::bug("progress ended")),
            }
        });
        // What still reads the archive after an interruption is not waited for.
        runtime.shutdown_timeout(STOP);
        restored?
    };
    show(&report, json, || report_text(&report, zone))
}

/// What is to be restored to. An instant that a running daemon is about to pass is waited for.
fn goal(
    config: &Config,
    args: &RestoreArgs,
    zone: Tz,
    sources: &[SourceOptions],
    names: &[String],
) -> Result<Goal> {
    let place = |text: &str, before| Goal::Place { text: text.to_owned(), before };
    let to = match (&args.to, &args.to_position, &args.before) {
        (_, Some(text), _) => return Ok(place(text, false)),
        (_, _, Some(text)) => return Ok(place(text, true)),
        (Some(to), ..) if to.starts_with("mark:") => {
            return Ok(Goal::Mark(to.trim_start_matches("mark:").to_owned()));
        }
        (Some(to), ..) => to,
        _ => return Err(Error::usage("restore to when?").hint("name an instant with --to")),
    };
    let now = Timestamp::now();
    let at = match clock::parse_target(to, zone, now)? {
        Target::At(at) if at > now => {
            return Err(Error::gap(format!("{at} is in the future"))
                .hint("`--to latest` is the newest instant that can be restored")
                .nearest(vec![now.to_string()]));
        }
        Target::At(at) => {
            if !daemon::cover(&config.archive, at, names.to_vec(), restore::WAIT_FOR_DAEMON) {
                tracing::debug!("no daemon runs, or it has not passed {at}");
            }
            at
        }
        Target::Latest => newest(config, sources, names)?,
    };
    Ok(Goal::Instant(at))
}

/// The newest instant: what the daemon has on disk, or else what the archive shows.
fn newest(config: &Config, sources: &[SourceOptions], names: &[String]) -> Result<Timestamp> {
    if let Some(status) = daemon::status(&config.archive) {
        let known = status.iter().filter(|s| names.contains(&s.name)).map(|s| s.durable_at);
        if let Some(at) = known.min().flatten()
            && daemon::cover(&config.archive, at, names.to_vec(), restore::WAIT_FOR_DAEMON)
        {
            return Ok(at);
        }
    }
    restore::latest(&Archive::open_read_only(&config.archive)?, sources)
}

fn parse_targets(
    config: &Config,
    args: &RestoreArgs,
    names: &[String],
) -> Result<BTreeMap<String, Endpoint>> {
    let mut targets = BTreeMap::new();
    for text in &args.target {
        let (name, url) = split_pair(text, "--target NAME=URL")?;
        let source = config.source(name)?;
        if !names.iter().any(|n| n == name) {
            return Err(Error::usage(format!("--target {name}, but --source leaves {name} out")));
        }
        targets.insert(name.to_owned(), Endpoint::parse(source.engine, url)?);
    }
    for text in &args.target_password_file {
        let (name, file) = split_pair(text, "--target-password-file NAME=FILE")?;
        let target = targets
            .get_mut(name)
            .ok_or_else(|| Error::usage(format!("a password for {name}, which has no --target")))?;
        let password = std::fs::read_to_string(file)
            .class(Class::Usage, || format!("read password file {file}"))?;
        target.password = Secret::new(password.trim_end_matches(['\r', '\n']));
    }
    Ok(targets)
}

/// A short time as people read it.
fn exactness(micros: u64) -> String {
    if micros < 1000 { format!("{micros} µs") } else { format!("{} ms", micros.div_ceil(1000)) }
}

fn split_pair<'a>(text: &'a str, form: &str) -> Result<(&'a str, &'a str)> {
    text.split_once('=').ok_or_else(|| Error::usage(format!("not of the form {form}")))
}

fn report_text(report: &restore::Report, zone: Tz) -> String {
    let mut out = String::new();
    for source in &report.sources {
        let did = if report.plan { "would restore" } else { "restored" };
        out += &format!("{}: {did} into {}\n", source.name, source.target);
        out += &format!(
            "    baseline {} ({}) and {} segment{} of timeline {}\n",
            source.baseline.name,
            in_zone(source.baseline.at, zone),
            source.segments,
            if source.segments == 1 { "" } else { "s" },
            source.timeline
        );
        if !source.databases.is_empty() {
            let (names, why) = (source.databases.join(", "), source.databases_reason);
            let kept = if report.plan { "would be kept" } else { "were kept" };
            out += &format!("    of the databases, only {names} {kept}: {why}\n");
        }
        if let Some(cut) = &source.cut {
            out += &format!("    cut at {cut}\n");
            if let Some(us) = source.uncertainty_us.filter(|us| *us > 0) {
                let within = exactness(us);
                out += &format!(
                    "    what was committed within {within} of the instant may be on either side\n"
                );
            }
        }
        if let Some(end) = &source.goes_on_to {
            out += &format!(
                "    the archive goes on to {end}, of which no instant is known yet: \
                 --source {} --to-position {end} brings that back, too\n",
                source.name
            );
        }
        if !report.plan {
            out += &format!(
                "    {} records, {} bytes, in {:.1} s (baseline {:.1} s, replay {:.1} s)\n",
                source.records,
                source.bytes,
                source.seconds.total,
                source.seconds.baseline,
                source.seconds.replay
            );
        }
        let landing = |what: &str, landing: &Option<crate::record::Landing>| {
            landing.as_ref().map(|landing| {
                let at = landing.at.map(|at| format!(" at {at}")).unwrap_or_default();
                format!("    {what} {}{at}\n", landing.position)
            })
        };
        out.extend(landing("last in: ", &source.last_applied));
        out.extend(landing("first out:", &source.first_left_out));
        if !report.plan {
            out += &format!("    check passed: {}\n", source.checked);
        }
        out.extend(source.ttl.as_ref().map(ttl_text));
        out.extend(source.setup.as_ref().map(|setup| setup_text(setup, zone)));
    }
    if let Some(skew) = report.skew_ms {
        out += &format!("clocks of the sources differed by {skew} ms\n");
    }
    if let Some(receipt) = &report.receipt {
        out += &format!("receipt: {receipt}\n");
    }
    out
}

/// What is known of the source besides its data.
fn setup_text(setup: &restore::SetupReport, zone: Tz) -> String {
    let restore::SetupReport { object, users, modules, nodes, withheld, unread, .. } = setup;
    let at = in_zone(setup.at, zone);
    let mut out = format!("    {users} users, and the settings, as of {at}: {object}\n");
    let mut list = |what: &str, names: &[String]| {
        if !names.is_empty() {
            out += &format!("    {what}: {}\n", names.join(", "));
        }
    };
    list("modules that it had", modules);
    list("secrets, to be set anew", withheld);
    list("not known, because the account may not ask", unread);
    if *nodes > 0 {
        out += &format!("    it was in a cluster of {nodes} nodes\n");
    }
    out
}

/// What became of expiries, as a line.
fn ttl_text(expired: &Expired) -> String {
    let mut out = match expired.policy {
        Ttl::Absolute => match (expired.lapsed, &expired.not_counted) {
            (Some(lapsed), _) => format!(
                "    expiries kept: {lapsed} keys were alive then and are past their expiry now{}\n",
                if lapsed == 0 {
                    ""
                } else {
                    " (--ttl shift brings them back with the time they had left)"
                }
            ),
            (None, why) => format!(
                "    expiries kept: keys past their expiry now were not counted: {}\n",
                why.as_deref().unwrap_or("no reason is known")
            ),
        },
        Ttl::Shift => {
            format!("    expiries moved by {} ms\n", expired.shift_ms.unwrap_or_default())
        }
        Ttl::Persist => format!(
            "    {} expiries dropped; {} keys were past theirs at the instant already\n",
            expired.persisted.unwrap_or_default(),
            expired.expired_before.unwrap_or_default()
        ),
    };
    if !expired.unknown_commands.is_empty() {
        let names = expired.unknown_commands.join(", ");
        out += &format!("    not known, so not moved if they have expiries: {names}\n");
    }
    out
}
