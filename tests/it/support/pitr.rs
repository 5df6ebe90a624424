//! The `pitr` program: one-shot commands and the daemon.

use super::process::{self, Process};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long one command may take.
const COMMAND_DEADLINE: Duration = Duration::from_mins(4);

/// A temporary folder with a `pitr.toml` and room for an archive, in which `pitr` is run.
#[derive(Debug)]
pub(crate) struct Pitr {
    dir: TempDir,
}

impl Pitr {
    /// A folder with a minimal configuration for these sources, given by name and url.
    pub(crate) fn new(sources: &[(&str, String)]) -> Self {
        let pitr = Self { dir: tempfile::Builder::new().prefix("pitr-test-").tempdir().unwrap() };
        let mut toml = format!("[archive]\ndir = {:?}\n", pitr.archive().display().to_string());
        for (name, url) in sources {
            let (engine, _) = url.split_once("://").unwrap();
            write!(toml, "\n[[source]]\nname = {name:?}\nengine = {engine:?}\nurl = {url:?}\n")
                .unwrap();
        }
        pitr.write_config(&toml);
        pitr
    }

    /// The folder; commands run in it.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The folder of the archive.
    pub(crate) fn archive(&self) -> PathBuf {
        self.dir.path().join("archive")
    }

    pub(crate) fn config_path(&self) -> PathBuf {
        self.dir.path().join("pitr.toml")
    }

    pub(crate) fn config(&self) -> String {
        std::fs::read_to_string(self.config_path()).unwrap()
    }

    /// Replaces the configuration.
    pub(crate) fn write_config(&self, toml: &str) {
        std::fs::write(self.config_path(), toml).unwrap();
    }

    /// Adds lines to the end of the configuration: keys of the last source, or further tables.
    pub(crate) fn append_config(&self, toml: &str) {
        self.write_config(&format!("{}{toml}\n", self.config()));
    }

    /// The program with the test's folder, configuration and search path, ready for arguments.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pitr"));
        command
            .current_dir(self.dir())
            .env("PITR_CONFIG", self.config_path())
            .env("PATH", process::search_path())
            .env_remove("RUST_LOG");
        command
    }

    /// Runs a command to its end.
    pub(crate) async fn run(&self, args: &[&str]) -> Output {
        let mut command = tokio::process::Command::from(self.command());
        let done = command.args(args).stdin(Stdio::null()).kill_on_drop(true).output();
        let output = tokio::time::timeout(COMMAND_DEADLINE, done)
            .await
            .unwrap_or_else(|_| panic!("pitr {args:?} runs on after {COMMAND_DEADLINE:?}"))
            .unwrap();
        Output {
            command: format!("pitr {}", args.join(" ")),
            status: output.status,
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs a command to its success, and says what that took.
    pub(crate) async fn run_measured(&self, args: &[&str]) -> Took {
        const LOOK_EVERY: Duration = Duration::from_millis(20);
        let begun = Instant::now();
        let mut command = self.spawn(args);
        let mut took = Took::default();
        while command.ended().is_none() {
            let rss = command.rss_bytes_max_if_running().unwrap_or(0);
            took.rss_bytes_max = took.rss_bytes_max.max(rss);
            took.cpu = command.cpu_time();
            assert!(begun.elapsed() < COMMAND_DEADLINE, "pitr {args:?}: {}", command.log());
            tokio::time::sleep(LOOK_EVERY).await;
        }
        took.time = begun.elapsed();
        let ended = command.ended();
        assert!(ended.unwrap().success(), "pitr {args:?}: {ended:?}: {}", command.log());
        took
    }

    /// Starts `pitr run`. Does not wait until it captures.
    pub(crate) fn spawn_run(&self) -> Daemon {
        self.spawn_run_with(&[])
    }

    /// The same, with these variables in its environment.
    pub(crate) fn spawn_run_with(&self, variables: &[(&str, &str)]) -> Daemon {
        self.spawn_with(&["run"], variables)
    }

    /// Starts a command and leaves it running.
    pub(crate) fn spawn(&self, args: &[&str]) -> Daemon {
        self.spawn_with(args, &[])
    }

    fn spawn_with(&self, args: &[&str], variables: &[(&str, &str)]) -> Daemon {
        let mut command = self.command();
        command.envs(variables.iter().copied());
        command.args(args);
        Daemon { process: Process::spawn(command, &self.dir().join("daemon.log")) }
    }
}

/// What a command took, as far as its last 20 ms were seen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Took {
    pub(crate) time: Duration,
    /// CPU time, without that of programs that it ran.
    pub(crate) cpu: Duration,
    /// The largest resident memory.
    pub(crate) rss_bytes_max: u64,
}

/// What a command printed and how it ended.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    pub(crate) command: String,
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    /// The exit code; none if a signal ended the command.
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Panics unless the command ended with this exit code.
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(
            self.code(),
            Some(code),
            "{}: {}\nstdout:\n{}\nstderr:\n{}",
            self.command,
            self.status,
            self.stdout,
            self.stderr
        );
        self
    }

    /// Panics unless the command succeeded.
    pub(crate) fn ok(self) -> Self {
        self.exits(0)
    }

    /// The one JSON document on stdout.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{}: {error}\n{}", self.command, self.stdout))
    }

    /// The `pitr.error/1` document: the last line of stderr with `--json`.
    pub(crate) fn error_json(&self) -> serde_json::Value {
        let line = self.stderr.lines().last().unwrap_or_default();
        serde_json::from_str(line)
            .unwrap_or_else(|error| panic!("{}: {error}\n{}", self.command, self.stderr))
    }
}

/// A running `pitr run`, or another command. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    process: Process,
}

impl Daemon {
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What this daemon, and those before it in the same folder, wrote.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.process.ended()
    }

    /// SIGKILL: the crash that nothing may be lost in.
    pub(crate) fn kill(&mut self) -> ExitStatus {
        self.process.kill()
    }

    /// SIGTERM: it seals what is open and stops.
    pub(crate) async fn terminate(&mut self, deadline: Duration) -> ExitStatus {
        self.process.terminate(deadline).await
    }

    /// Freezes the daemon (`STOP`), wakes it up (`CONT`), or sends another signal.
    pub(crate) fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Resident memory now, in bytes.
    pub(crate) fn rss_bytes(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    /// The largest resident memory so far, in bytes.
    pub(crate) fn rss_bytes_max(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    /// The same, unless it has ended.
    pub(crate) fn rss_bytes_max_if_running(&self) -> Option<u64> {
        self.status("VmHWM:").ok()
    }

    /// The CPU time so far, without that of programs that it ran.
    pub(crate) fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // Behind the name, which may have spaces: state is the first field, utime the 12th, then stime.
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let ticks = fields.split_whitespace().skip(11).take(2);
        // USER_HZ is 100 wherever Linux runs.
        Duration::from_millis(10 * ticks.map(|ticks| ticks.parse::<u64>().unwrap()).sum::<u64>())
    }

    fn status_bytes(&self, key: &str) -> u64 {
        self.status(key).unwrap_or_else(|text| panic!("no {key} in {text}"))
    }

    fn status(&self, key: &str) -> Result<u64, String> {
        let path = format!("/proc/{}/status", self.pid());
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        kib.map(|kib| kib * 1024).ok_or(text)
    }
}
