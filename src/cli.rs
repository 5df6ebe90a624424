//! The command line: what can be typed, and one function for each command.
//!
//! Results go to stdout (one JSON document with `--json`), logs and progress to stderr. Nothing
//! in pitr uses this module.

mod progress;
mod doctor;
mod audit;
mod drill;
mod log;
mod mark;
mod restore;
mod retention;
mod verify;

use crate::archive::Archive;
use crate::clock::{self, Target, Timestamp, in_zone};
use crate::config::{self, Config};
use crate::daemon;
use crate::error::{Class, Context, Error, Result};
use crate::export;
use crate::windows;
use clap::{Args, CommandFactory, Parser, Subcommand};
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Keeps a continuous, checkable history of MySQL and Redis, and puts all of it back to one
/// instant.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  pitr init                                    create the archive named in pitr.toml
  pitr doctor                                  what would go wrong, and what mends it
  pitr run                                     capture every source, until stopped
  pitr windows                                 what can be restored, and how far behind it is
  pitr restore --to '10 minutes ago' --plan    what a restore would do
  pitr restore --to 2024-05-01T03:00           every source, into fresh folders

Exit codes: 0 ok, 1 finding, 2 usage, 3 unavailable, 4 not restorable, 5 corrupt, 6 refused,
7 busy, 70 bug, 130 interrupted."
)]
struct Cli {
    /// Configuration file [default: $PITR_CONFIG, ./pitr.toml, /etc/pitr/pitr.toml]
    #[arg(short, long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one JSON document on stdout
    #[arg(long, global = true)]
    json: bool,
    /// Say more: -v what is decided, -vv every step
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create the archive
    Init,
    /// Look at servers, settings, rights, disk and tools, and say what mends what is wrong
    Doctor(doctor::DoctorArgs),
    /// Capture every source, until stopped (Ctrl-C and SIGTERM seal and stop)
    Run,
    /// Take a baseline now, through the running daemon, or alone when none runs
    Baseline {
        /// Only this source (repeatable); without it, all
        #[arg(long, value_name = "NAME")]
        source: Vec<String>,
    },
    /// Name this instant, to restore to exactly it later (through the running daemon)
    Mark(mark::MarkArgs),
    /// Say what can be restored: windows, gaps, lag
    Windows,
    /// Put sources back to one instant
    Restore(Box<restore::RestoreArgs>),
    /// Write a source's binlog files, byte for byte, from the archive alone
    Export(ExportArgs),
    /// Say what happened: every record, or only moments that somebody may want to go back before
    Log(log::LogArgs),
    /// Say what each hour changed, and prove that nothing is missing
    Audit(audit::AuditArgs),
    /// Re-read what is stored: digests, chain, readability
    Verify(verify::VerifyArgs),
    /// Rehearse a restore into scratch servers, and look at what came of it
    Drill(drill::DrillArgs),
    /// Say what is older than it has to be, and delete it with --apply
    Prune(retention::PruneArgs),
    /// Keep a span of time restorable, whatever its age
    Hold(retention::HoldArgs),
    /// Rebuild the catalog from the archive
    Reindex,
    /// Start scratch servers, work on them, break something, restore to just before, and compare
    Demo {
        /// Keep the scratch folder
        #[arg(long)]
        keep: bool,
    },
    /// Print a completion script
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pitr export --source shop-mysql --out binlogs
  pitr export --source shop-mysql --out binlogs --from '2 hours ago'

Only a file that is whole gets the name that it has at the source. The newest, which still grows,
and one of which the archive lacks a part say so in their names: binlog.000007.until-8190.")]
struct ExportArgs {
    /// The source
    #[arg(long, value_name = "NAME")]
    source: String,
    /// A new or empty folder to write to
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Only this timeline
    #[arg(long, value_name = "N")]
    timeline: Option<u32>,
    /// Only files with what was committed from then on
    #[arg(long, value_name = "T")]
    from: Option<String>,
    /// Only files with what was committed until then
    #[arg(long, value_name = "T")]
    to: Option<String>,
    /// Zone of civil times [default: the configuration's, else this host's]
    #[arg(long, value_name = "ZONE")]
    tz: Option<String>,
}

/// Parses the command line, runs the command, and reports.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && std::env::args_os().any(|arg| arg == "--json") => {
            let error = mistyped(&error);
            report_error(&error, true);
            return ExitCode::from(error.class().exit_code());
        }
        Err(error) => {
            // There is nowhere left to complain to.
            drop(error.print());
            return ExitCode::from(if error.use_stderr() { Class::Usage.exit_code() } else { 0 });
        }
    };
    start_logging(cli.verbose, matches!(cli.command, Command::Run));
    let json = cli.json;
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report_error(&error, json);
            ExitCode::from(error.class().exit_code())
        }
    }
}

/// What the parser says for people, as an error of one line with its hint.
fn mistyped(error: &clap::Error) -> Error {
    let text = error.to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    // What is missing stands in the lines behind it.
    let more = lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("tip:"));
    let message: Vec<&str> = std::iter::once(first).chain(more).collect();
    let message = message.join(" ");
    Error::usage(message.strip_prefix("error: ").unwrap_or(&message))
        .hint("`pitr help` shows the commands, and --help after a command its options")
}

fn run(cli: Cli) -> Result<()> {
    match &cli.command {
        Command::Completions { shell } => {
            let mut out = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "pitr", &mut out);
            return print(&out);
        }
        Command::Man => {
            let mut out = Vec::new();
            clap_mangen::Man::new(Cli::command())
                .render(&mut out)
                .class(Class::Bug, || "render the manual page".into())?;
            return print(&out);
        }
        Command::Demo { keep } => {
            let say = |line: &str| eprint(&format!("{line}\n"));
            return runtime()?.block_on(async {
                tokio::select! {
                    shown = crate::demo::run(*keep, say) => shown,
                    () = until_stopped() => {
                        Err(Error::new(Class::Interrupted, "the demonstration was interrupted"))
                    }
                }
            });
        }
        _ => {}
    }
    let config = Config::load(cli.config.as_deref())?;
    match cli.command {
        Command::Init => init(&config, cli.json),
        Command::Doctor(args) => doctor::doctor(&config, &args, cli.json),
        Command::Run => runtime()?.block_on(daemon::run(config, until_stopped())),
        Command::Baseline { source } => take_baselines(config, &source, cli.json),
        Command::Mark(args) => mark::mark(&config, &args, cli.json),
        Command::Windows => {
            let report = windows::windows(&config)?;
            show(&report, cli.json, || report.text(config.zone))
        }
        Command::Restore(args) => restore::restore(&config, &args, cli.json),
        Command::Export(args) => export(&config, args, cli.json),
        Command::Log(args) => log::log(&config, &args, cli.json),
        Command::Audit(args) => audit::audit(&config, &args, cli.json),
        Command::Verify(args) => verify::verify(&config, &args, cli.json),
        Command::Drill(args) => drill::drill(&config, &args, cli.json),
        Command::Prune(args) => retention::prune(&config, &args, cli.json),
        Command::Hold(args) => retention::hold(&config, &args, cli.json),
        Command::Reindex => reindex(&config, cli.json),
        Command::Demo { .. } | Command::Completions { .. } | Command::Man => Ok(()),
    }
}

fn init(config: &Config, json: bool) -> Result<()> {
    let archive = Archive::init(&config.archive)?;
    let report = InitReport {
        schema: "pitr.init/1",
        archive: archive.meta().archive.clone(),
        dir: config.archive.display().to_string(),
    };
    show(&report, json, || format!("created archive {}\n", report.dir))
}

#[derive(Serialize)]
struct InitReport {
    schema: &'static str,
    archive: String,
    dir: String,
}

fn take_baselines(config: Config, names: &[String], json: bool) -> Result<()> {
    let mut taken = Vec::new();
    let zone = config.zone;
    let sources = chosen(&config, names)?;
    for source in &sources {
        match daemon::ask_baseline(&config.archive, &source.name) {
            Some(meta) => taken.push(meta?),
            None if taken.is_empty() => {
                let alone = Config { sources, ..config };
                let runtime = runtime()?;
                taken = runtime.block_on(daemon::take_baselines(alone, until_stopped()))?;
                break;
            }
            None => {
                return Err(Error::unavailable(
                    "the daemon stopped before all baselines were taken",
                )
                .hint("run `pitr baseline` again; it works without a daemon as well"));
            }
        }
    }
    let report = BaselineReport { schema: "pitr.baseline/1", baselines: taken };
    show(&report, json, || {
        let line = |meta: &crate::manifest::BaselineMeta| {
            format!(
                "{}: {} at {}, {} bytes stored\n",
                meta.source,
                meta.name,
                in_zone(meta.at, zone),
                meta.bytes_stored
            )
        };
        report.baselines.iter().map(line).collect()
    })
}

#[derive(Serialize)]
struct BaselineReport {
    schema: &'static str,
    baselines: Vec<crate::manifest::BaselineMeta>,
}

fn reindex(config: &Config, json: bool) -> Result<()> {
    let meta = crate::archive::read_meta(&config.archive)?;
    let report = crate::reindex::reindex(&config.archive, &meta)?;
    show(&report, json, || {
        let mut text = format!(
            "{} segments and {} baselines are in the catalog; {} segments are open\n",
            report.segments, report.baselines, report.open
        );
        for damaged in &report.damaged {
            text += &format!("damaged: {}: {}\n", damaged.name, damaged.reason);
        }
        text
    })?;
    if report.damaged.is_empty() {
        return Ok(());
    }
    Err(Error::corrupt(format!("{} objects are damaged", report.damaged.len()))
        .hint("restore them from the other copy, and run `pitr reindex` again"))
}

fn export(config: &Config, args: ExportArgs, json: bool) -> Result<()> {
    let zone = match &args.tz {
        Some(name) => config::parse_zone(name)?,
        None => config.zone,
    };
    let instant = |text: &String| clock::parse_target(text, zone, Timestamp::now());
    let bound = |text: Option<&String>| match text.map(instant).transpose()? {
        Some(Target::At(at)) => Ok(Some(at)),
        Some(Target::Latest) | None => Ok::<_, Error>(None),
    };
    let (from, to) = (bound(args.from.as_ref())?, bound(args.to.as_ref())?);
    if from.zip(to).is_some_and(|(from, to)| from > to) {
        return Err(Error::usage("--from is later than --to"));
    }
    let options = export::Options {
        archive: config.archive.clone(),
        engine: config.source(&args.source)?.engine,
        source: args.source,
        out: args.out,
        timeline: args.timeline,
        from,
        to,
    };
    let report = export::export(&options, |line| tracing::info!("{line}"))?;
    show(&report, json, || report.text(zone))?;
    report.check()
}

fn chosen(config: &Config, names: &[String]) -> Result<Vec<crate::engine::SourceOptions>> {
    if config.sources.is_empty() {
        return Err(Error::usage(format!("{} has no source", config.path.display()))
            .hint("add a [[source]] table; README.md shows one"));
    }
    for name in names {
        config.source(name)?;
    }
    let wanted = |name: &String| names.is_empty() || names.contains(name);
    Ok(config.sources.iter().filter(|source| wanted(&source.name)).cloned().collect())
}

/// Completes at the first SIGINT or SIGTERM.
async fn until_stopped() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut signals = Vec::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        match signal(kind) {
            Ok(signal) => signals.push(signal),
            Err(error) => tracing::error!("listen for signals: {error}"),
        }
    }
    let waits = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
    futures_util::future::select_all(waits).await;
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .class(Class::Bug, || "start the runtime".into())
}

fn start_logging(verbose: u8, is_daemon: bool) {
    let default = match (verbose, is_daemon) {
        (0, false) => "warn,pitr::cli=info",
        (0, true) => "info",
        (1, _) => "pitr=debug,info",
        _ => "pitr=trace,debug",
    };
    let filter = EnvFilter::try_from_env("PITR_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}

fn show<T: Serialize>(report: &T, json: bool, text: impl FnOnce() -> String) -> Result<()> {
    if json {
        let mut out =
            serde_json::to_vec_pretty(report).class(Class::Bug, || "write JSON".into())?;
        out.push(b'\n');
        print(&out)
    } else {
        print(text().as_bytes())
    }
}

fn print(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        // Whoever read the output has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.unavailable(|| "write to stdout".into()),
    }
}

fn eprint(text: &str) {
    // There is nowhere left to complain to.
    drop(std::io::stderr().write_all(text.as_bytes()));
}

fn report_error(error: &Error, json: bool) {
    if json {
        let document = serde_json::json!({
            "schema": "pitr.error/1",
            "class": error.class().word(),
            "exit": error.class().exit_code(),
            "message": error.to_string(),
            "hint": error.hint_text(),
            "nearest": error.nearest_instants(),
        });
        eprint(&format!("{document}\n"));
        return;
    }
    eprint(&format!("{error}\n"));
    if let Some(hint) = error.hint_text() {
        eprint(&format!("hint: {hint}\n"));
    }
}
