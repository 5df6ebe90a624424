//! A scratch server: a program from PATH on a fresh data directory, behind a local socket in a
//! folder that only this user can enter.
//!
//! Its settings are as fast as is safe for a run that starts over when it fails: no binlog, no
//! doublewrite, and MySQL's redo log off while work goes on. [`ScratchServer::shutdown`] puts that
//! right and leaves a directory that any server of the version can start on; a server that is
//! dropped before is killed, and its directory is worth nothing.
//!
//! What the families call their programs and options stands in [`mysql`] and [`maria`].
//!
//! **Invariant:** it never listens on the network, and never runs events.

mod maria;
mod mysql;

use super::ask;
use super::flavor::{Family, Flavor};
use super::tools;
use crate::engine::Secret;
use crate::engine::guard::Guard;
use crate::engine::private::PrivateDir;
use crate::error::{Context, Error, Result};
use mysql_async::{Conn, OptsBuilder};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

/// Longest path of a local socket that Linux takes.
const SOCKET_PATH_BYTES: usize = 107;
/// How long a start may take. Starting on a fresh directory takes seconds.
const START: Duration = Duration::from_mins(3);
/// How long a clean shutdown may take: everything in the buffer pool is written.
const SHUTDOWN: Duration = Duration::from_hours(1);
/// How far the receiver may be ahead of the applier, in bytes on the disk.
pub(crate) const RELAY_BYTES: u64 = 4 << 30;
/// Lines of the server's error log that go into an error.
const LOG_LINES: usize = 12;
/// Largest packet of the protocol: the server's own upper limit, in bytes.
pub(super) const LARGEST_PACKET: u64 = 1 << 30;

/// What is fixed when a data directory is made, and what the run needs.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    /// The kind of server.
    pub(super) family: Family,
    /// The program: one of [`programs`].
    pub(super) program: String,
    /// Where the data directory is made; must not exist.
    pub(super) data: PathBuf,
    /// Where the log is kept until it is applied; must exist, and is to be removed afterwards.
    pub(super) relay: PathBuf,
    /// `lower_case_table_names` of the source.
    pub(super) lower_case_table_names: u8,
    /// `innodb_page_size` of the source, in bytes.
    pub(super) page_bytes: u32,
    /// `partial_revokes` of the source.
    pub(super) partial_revokes: bool,
    /// Its `server_id`.
    pub(super) server_id: u32,
    /// Whether it has to apply transactions without GTIDs.
    pub(super) anonymous: bool,
}

/// A running scratch server.
#[derive(Debug)]
pub(super) struct ScratchServer {
    family: Family,
    program: String,
    child: Child,
    guard: Option<Guard>,
    runtime: PrivateDir,
    user: String,
    password: Secret,
}

impl ScratchServer {
    /// Makes a fresh data directory and starts a server on it.
    ///
    /// # Errors
    /// Unavailable, with the end of the server's error log, if it does not start.
    pub(super) async fn start(setup: &Setup) -> Result<Self> {
        initialize(setup).await?;
        let runtime = PrivateDir::create()?;
        let socket = runtime.path().join("s");
        if socket.as_os_str().len() > SOCKET_PATH_BYTES {
            return Err(Error::usage(format!(
                "{} is too long for the path of a socket",
                socket.display()
            ))
            .hint("set TMPDIR to a folder with a shorter path"));
        }
        let child = command(setup, &runtime)
            .spawn()
            .map_err(|error| tools::start_error(&setup.program, package(setup.family), error))?;
        let guard = Guard::over(&child)?;
        let mut server = Self {
            family: setup.family,
            program: setup.program.clone(),
            child,
            guard,
            runtime,
            user: "root".into(),
            password: Secret::default(),
        };
        let mut root = server.wait_until_ready().await?;
        server.make_admin(&mut root).await?;
        Ok(server)
    }

    /// A connection as the temporary administrator.
    pub(super) async fn connect(&self) -> Result<Conn> {
        let opts = OptsBuilder::default()
            .socket(Some(self.socket().display().to_string()))
            .user(Some(self.user.clone()))
            .pass(Some(self.password.reveal().to_owned()))
            .max_allowed_packet(Some(LARGEST_PACKET as usize));
        Conn::new(opts).await.unavailable(|| "connect to the scratch server".into())
    }

    /// Path of its socket.
    pub(super) fn socket(&self) -> PathBuf {
        self.runtime.path().join("s")
    }

    /// The temporary administrator.
    pub(super) fn admin(&self) -> (&str, &Secret) {
        (&self.user, &self.password)
    }

    /// Makes the directory safe again (redo log on, temporary administrator gone), shuts the
    /// server down in order and waits until it has ended.
    pub(super) async fn shutdown(mut self) -> Result<()> {
        let doing = || "shut the scratch server down".to_owned();
        let program = self.program.clone();
        let mut conn = self.connect().await?;
        if self.family == Family::MySql {
            ask::run(&mut conn, mysql::REDO_ON, doing).await?;
        }
        ask::run(&mut conn, "SET GLOBAL innodb_fast_shutdown = 1", doing).await?;
        ask::run(&mut conn, format!("DROP USER '{}'@'localhost'", self.user), doing).await?;
        ask::run(&mut conn, "SHUTDOWN", doing).await?;
        // It ends by itself from here on, whatever becomes of us.
        self.guard = None;
        drop(conn);
        match tokio::time::timeout(SHUTDOWN, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(self.with_log(&format!("{program} ended with {status}"))),
            Ok(Err(error)) => Err(error).unavailable(|| format!("wait for {program}")),
            Err(_) => {
                let secs = SHUTDOWN.as_secs();
                Err(self.with_log(&format!("{program} did not end within {secs} s")))
            }
        }
    }

    /// An error with the last lines of the server's error log.
    pub(super) fn with_log(&self, what: &str) -> Error {
        let log = std::fs::read(self.runtime.path().join("error.log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default();
        Error::unavailable(format!("{what}; its error log ends with: {}", tail.join(" | ")))
    }

    async fn wait_until_ready(&mut self) -> Result<Conn> {
        let program = self.program.clone();
        let ready = async {
            loop {
                let ended = self.child.try_wait().unavailable(|| format!("watch {program}"))?;
                if let Some(status) = ended {
                    return Err(self.with_log(&format!("{program} ended with {status}")));
                }
                if let Ok(conn) = self.connect().await {
                    return Ok(conn);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        match tokio::time::timeout(START, ready).await {
            Ok(ready) => ready,
            Err(_) => {
                let secs = START.as_secs();
                Err(self.with_log(&format!("{program} does not answer within {secs} s")))
            }
        }
    }

    /// Goes on as an administrator of its own, so that `root@localhost` can become what the
    /// source had; those that a fresh directory comes with are dropped.
    async fn make_admin(&mut self, root: &mut Conn) -> Result<()> {
        let user = format!("pitr-{:016x}", rand::random::<u64>());
        let password = format!("{:032x}", rand::random::<u128>());
        let mut statements = vec![
            format!("CREATE USER '{user}'@'localhost' IDENTIFIED BY '{password}'"),
            format!("GRANT ALL ON *.* TO '{user}'@'localhost' WITH GRANT OPTION"),
        ];
        let rest = match self.family {
            Family::MySql => mysql::admin(&user),
            Family::MariaDb => maria::admin(root, &user).await?,
        };
        statements.extend(rest);
        for statement in statements {
            // The statement is not named: it holds the password.
            ask::run(root, statement, || "set up the scratch server".into()).await?;
        }
        self.user = user;
        self.password = Secret::new(password);
        Ok(())
    }
}

/// The programs that may serve to restore what a server of this version had, the best first.
pub(super) fn programs(source: Flavor) -> Vec<String> {
    match source.family {
        Family::MySql => vec!["mysqld".into()],
        Family::MariaDb => maria::programs(source),
    }
}

/// The package that has the program.
pub(super) fn package(family: Family) -> &'static str {
    match family {
        Family::MySql => mysql::PACKAGE,
        Family::MariaDb => maria::PACKAGE,
    }
}

async fn initialize(setup: &Setup) -> Result<()> {
    let (name, mut command) = match setup.family {
        Family::MySql => mysql::initializer(setup),
        Family::MariaDb => maria::initializer(setup),
    };
    let child = for_data(&mut command, setup)
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| tools::start_error(&name, package(setup.family), error))?;
    let guard = Guard::over(&child)?;
    let output = child.wait_with_output().await.unavailable(|| format!("wait for {name}"))?;
    drop(guard);
    if output.status.success() {
        return Ok(());
    }
    let stderr = tools::last_words(&output.stderr[..]).await;
    Err(tools::failed(&name, output.status, &stderr))
}

/// Names the data directory, and what is fixed with it.
fn for_data<'a>(command: &'a mut Command, setup: &Setup) -> &'a mut Command {
    if runs_as_root() {
        command.arg("--user=root");
    }
    command
        .arg(with_path("--datadir=", &setup.data))
        .arg(format!("--lower-case-table-names={}", setup.lower_case_table_names))
        .arg(format!("--innodb-page-size={}", setup.page_bytes))
        // A MariaDB that starts deletes the temporary tables in there, whosever they are.
        .env("TMPDIR", &setup.relay)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
}

fn command(setup: &Setup, runtime: &PrivateDir) -> Command {
    let mut command = Command::new(&setup.program);
    let runtime = runtime.path();
    for_data(command.arg("--no-defaults"), setup)
        .arg(with_path("--socket=", &runtime.join("s")))
        .arg(with_path("--pid-file=", &runtime.join("pid")))
        .arg(with_path("--log-error=", &runtime.join("error.log")))
        .args(["--skip-networking", "--event-scheduler=OFF", "--skip-log-bin"])
        .args(["--innodb-doublewrite=OFF", "--innodb-flush-log-at-trx-commit=0"])
        .arg(with_path("--relay-log=", &setup.relay.join("relay")))
        .arg(format!("--relay-log-space-limit={RELAY_BYTES}"))
        .arg("--local-infile=OFF")
        .arg(format!("--max-allowed-packet={LARGEST_PACKET}"))
        .arg(format!("--innodb-buffer-pool-size={}", buffer_pool_bytes()))
        .arg(format!("--server-id={}", setup.server_id));
    match setup.family {
        Family::MySql => mysql::options(&mut command, setup),
        Family::MariaDb => maria::options(&mut command, setup),
    }
    command
}

fn with_path(option: &str, path: &Path) -> std::ffi::OsString {
    let mut text = std::ffi::OsString::from(option);
    text.push(path);
    text
}

/// mysqld refuses to run as root unless told to.
fn runs_as_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// Two fifths of the memory that is free now: other servers may be restored at the same time.
fn buffer_pool_bytes() -> u64 {
    const LEAST: u64 = 128 << 20;
    let free_kib = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    });
    free_kib.map_or(LEAST, |kib| (kib.saturating_mul(1024) / 5 * 2).max(LEAST))
}
