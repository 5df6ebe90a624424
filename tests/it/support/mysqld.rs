//! MySQL and MariaDB servers.

use super::process::{self, Process};
use super::{SERVER_DEADLINE, eventually};
use mysql_async::prelude::{FromRow, Queryable};
use mysql_async::{Conn, OptsBuilder};
use std::borrow::Cow;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use tempfile::TempDir;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flavour {
    Mysql,
    Mariadb,
    Mariadb118,
    Mariadb105,
}

/// A MySQL server (or a MariaDB server, by [`Mariadbd::start`]) with an empty data directory:
/// row-based binary log, GTIDs, `root` without a password, a server id of its own.
///
/// Commits reach the kernel, not the disk: they survive a killed server, not a power cut.
#[derive(Debug)]
pub(crate) struct Mysqld {
    flavour: Flavour,
    process: Option<Process>,
    args: Vec<String>,
    port: u16,
    server_id: u32,
    version: String,
    dir: TempDir,
}

/// Starts MariaDB servers.
#[derive(Debug)]
pub(crate) struct Mariadbd;

impl Mariadbd {
    /// Starts a MariaDB server (10.11, the one from apt) with further options.
    pub(crate) async fn start(args: &[&str]) -> Mysqld {
        Mysqld::start_flavour(Flavour::Mariadb, &template(Flavour::Mariadb), args).await
    }

    /// Starts a MariaDB 11.8 server with further options.
    pub(crate) async fn start_11_8(args: &[&str]) -> Mysqld {
        Mysqld::start_flavour(Flavour::Mariadb118, &template(Flavour::Mariadb118), args).await
    }

    /// Starts a MariaDB 10.5 server with further options.
    pub(crate) async fn start_10_5(args: &[&str]) -> Mysqld {
        Mysqld::start_flavour(Flavour::Mariadb105, &template(Flavour::Mariadb105), args).await
    }
}

impl Mysqld {
    /// Starts a MySQL server with further options; they win over those given here.
    pub(crate) async fn start(args: &[&str]) -> Self {
        Self::start_flavour(Flavour::Mysql, &template(Flavour::Mysql), args).await
    }

    /// Starts a MySQL server on a copy of a data directory.
    pub(crate) async fn start_on(data: &Path, args: &[&str]) -> Self {
        Self::start_flavour(Flavour::Mysql, data, args).await
    }

    async fn start_flavour(flavour: Flavour, data: &Path, args: &[&str]) -> Self {
        let mut server = Self {
            flavour,
            process: None,
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            port: process::free_port(),
            server_id: rand::random_range(1_000..0x7fff_ffff),
            version: process::version(&flavour.program()),
            dir: tempfile::Builder::new().prefix("pitr-mysql-").tempdir().unwrap(),
        };
        copy_dir(data, &server.datadir());
        for _ in 0..5 {
            if server.try_launch().await {
                return server;
            }
            // Somebody else took the port between the look and the start.
            server.port = process::free_port();
        }
        panic!("no port to start on");
    }

    /// Starts the process and waits until it answers. False if its port was taken.
    async fn try_launch(&mut self) -> bool {
        let log = self.dir.path().join("server.log");
        let log_before = std::fs::read(&log).unwrap_or_default().len();
        self.process = Some(Process::spawn(self.command(), &log));
        let opts = self.opts();
        eventually("the MySQL server answers", SERVER_DEADLINE, async || {
            let process = self.process.as_mut().unwrap();
            if let Some(status) = process.ended() {
                let log = process.log().split_off(log_before);
                let taken = log.contains("Address already in use");
                assert!(taken, "{} ended with {status}:\n{log}", self.flavour.daemon());
                return Some(false);
            }
            let mut conn = Conn::new(opts.clone()).await.ok()?;
            let port: Option<u16> = conn.query_first("SELECT @@port").await.ok()?;
            let datadir: Option<String> = conn.query_first("SELECT @@datadir").await.ok()?;
            conn.disconnect().await.ok()?;
            // Not somebody else's server on the same port.
            let ours = datadir?.starts_with(self.dir.path().to_str().unwrap());
            (port == Some(self.port)).then_some(ours)
        })
        .await
    }

    fn command(&self) -> Command {
        let dir = self.dir.path();
        let mut command = Command::new(self.flavour.program());
        // A MariaDB that starts deletes the temporary tables of others in a folder they share.
        command.env("TMPDIR", dir);
        command.arg("--no-defaults");
        if process::is_root() {
            command.arg("--user=root");
        }
        command
            .arg(format!("--datadir={}", self.datadir().display()))
            .arg(format!("--socket={}", self.socket().display()))
            .arg(format!("--pid-file={}", dir.join("server.pid").display()))
            .arg("--bind-address=127.0.0.1")
            .arg(format!("--port={}", self.port))
            .arg(format!("--server-id={}", self.server_id))
            .args(["--log-bin=binlog", "--binlog-format=ROW", "--sync-binlog=0"])
            .args(["--innodb-flush-log-at-trx-commit=2", "--innodb-buffer-pool-size=64M"]);
        match self.flavour {
            Flavour::Mysql => command.args([
                "--mysqlx=OFF",
                "--gtid-mode=ON",
                "--enforce-gtid-consistency=ON",
                "--log-error-verbosity=2",
            ]),
            Flavour::Mariadb | Flavour::Mariadb118 | Flavour::Mariadb105 => {
                command.arg("--gtid-strict-mode=ON")
            }
        };
        command.args(&self.args);
        command
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn server_id(&self) -> u32 {
        self.server_id
    }

    /// Whether it is a MariaDB, of whatever version.
    pub(crate) fn is_mariadb(&self) -> bool {
        self.flavour != Flavour::Mysql
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().expect("the server is stopped").pid()
    }

    /// `mysql://root@127.0.0.1:PORT`
    pub(crate) fn url(&self) -> String {
        format!("mysql://root@127.0.0.1:{}", self.port)
    }

    pub(crate) fn datadir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("mysqld.sock")
    }

    /// What the server wrote to its error log, over all starts.
    pub(crate) fn log(&self) -> String {
        let path = self.dir.path().join("server.log");
        String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
    }

    /// What to connect with, as `root`.
    pub(crate) fn opts(&self) -> OptsBuilder {
        OptsBuilder::default()
            .ip_or_hostname("127.0.0.1")
            .tcp_port(self.port)
            .user(Some("root"))
            .prefer_socket(false)
    }

    /// A connection of its own, as `root`.
    pub(crate) async fn conn(&self) -> Conn {
        Conn::new(self.opts()).await.unwrap()
    }

    /// Runs a statement, or several with `;` between them, on a connection of its own.
    ///
    /// Send what creates a trigger, event or routine by itself: in one packet with others, MySQL
    /// (9.7.4) keeps the `;` as a part of the body, and `mysqldump` then writes a comment
    /// `/*!50003 TRIGGER … ; */` that no server loads.
    pub(crate) async fn sql(&self, statements: &str) {
        let mut conn = self.conn().await;
        let statements = self.worded(statements);
        conn.query_drop(&*statements)
            .await
            .unwrap_or_else(|error| panic!("{error}\nin: {statements:.300}"));
        conn.disconnect().await.unwrap();
    }

    /// All rows of a query.
    pub(crate) async fn rows<T: FromRow + Send + 'static>(&self, query: &str) -> Vec<T> {
        let mut conn = self.conn().await;
        let query = self.worded(query);
        let rows = conn.query(&*query).await.unwrap_or_else(|error| panic!("{error}\nin: {query}"));
        conn.disconnect().await.unwrap();
        rows
    }

    /// The first row of a query.
    pub(crate) async fn row<T: FromRow + Send + 'static>(&self, query: &str) -> T {
        self.rows(query).await.into_iter().next().unwrap_or_else(|| panic!("no row: {query}"))
    }

    /// Statements in the words of a MySQL 8.0 or 8.4, if it is one.
    pub(crate) fn worded<'a>(&self, statements: &'a str) -> Cow<'a, str> {
        let mut worded = Cow::Borrowed(statements);
        let mut say = |new: &str, old: &str| {
            if worded.contains(new) {
                worded = worded.replace(new, old).into();
            }
        };
        if self.version.contains(" Ver 8.0.") {
            say("SHOW BINARY LOG STATUS", "SHOW MASTER STATUS");
            say("RESET BINARY LOGS AND GTIDS", "RESET MASTER");
            say("SET_ANY_DEFINER, ALLOW_NONEXISTENT_DEFINER", "SET_USER_ID");
            say(":tag:5'", ":5'");
            for tag in ["tagged", "tag_a", "tag_b", "other"] {
                say(&format!("'AUTOMATIC:{tag}'"), "'AUTOMATIC'");
            }
        }
        if self.version.contains(" Ver 8.") {
            // Its own mysqldump cannot dump a schema with a quote in its name.
            say("q 'u\"o;t😀e", "quote");
            say("VECTOR(3)", "VARBINARY(40)");
            say("STRING_TO_VECTOR(", "SHA1(");
            say("TO_VECTOR(", "SHA1(");
        }
        worded
    }

    /// `@@gtid_executed`, without line breaks.
    pub(crate) async fn gtid_executed(&self) -> String {
        let set: String = self.row("SELECT @@GLOBAL.gtid_executed").await;
        set.replace('\n', "")
    }

    /// Freezes the server (`STOP`), wakes it up (`CONT`), or sends another signal.
    pub(crate) fn signal(&self, name: &str) {
        self.process.as_ref().expect("the server is stopped").signal(name);
    }

    /// Ends the server as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Shuts the server down in order.
    pub(crate) async fn stop(&mut self) -> Option<ExitStatus> {
        let mut process = self.process.take()?;
        Some(process.terminate(SERVER_DEADLINE).await)
    }

    /// Starts the server again (after [`stop`](Self::stop) if it runs), with the same data,
    /// options and port.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        assert!(self.try_launch().await, "port {} is taken by somebody else", self.port);
    }

    /// Starts the server again with other options than it was first started with.
    pub(crate) async fn restart_with(&mut self, args: &[&str]) {
        self.args = args.iter().map(|&arg| arg.to_owned()).collect();
        self.restart().await;
    }
}

impl Flavour {
    fn daemon(self) -> &'static str {
        match self {
            Self::Mysql => "mysqld",
            Self::Mariadb => "mariadbd",
            Self::Mariadb118 => "mariadbd-11.8",
            Self::Mariadb105 => "mariadbd-10.5",
        }
    }

    /// The server program. MariaDB installs a `mysqld` of its own, which is not meant here.
    fn program(self) -> PathBuf {
        let program = process::program(self.daemon());
        let version = process::version(&program);
        let is_mariadb = version.contains("MariaDB");
        assert_eq!(
            is_mariadb,
            self != Self::Mysql,
            "{} is another server ({version}): run fixtures/servers.sh",
            program.display()
        );
        program
    }
}

/// A data directory as the server's own installer makes it, made once per version and build
/// folder, and copied for each server. Making one takes seconds.
fn template(flavour: Flavour) -> PathBuf {
    let program = flavour.program();
    let version = process::version(&program);
    let key: String =
        version.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let template = cache.join(format!("datadir{key}"));
    let lock = File::create(cache.join("datadir.lock")).unwrap();
    lock.lock().unwrap();
    if template.exists() {
        return template;
    }
    let made = tempfile::Builder::new().prefix("datadir-new-").tempdir_in(cache).unwrap();
    let data = made.path().join("data");
    let mut command = match flavour {
        Flavour::Mysql => {
            let mut command = Command::new(program);
            // A small redo log is small to copy; a started server grows it to its own size.
            command.args(["--no-defaults", "--initialize-insecure"]);
            command.arg("--innodb-redo-log-capacity=8M");
            command
        }
        Flavour::Mariadb | Flavour::Mariadb118 | Flavour::Mariadb105 => {
            let installer = flavour.daemon().replace("mariadbd", "mariadb-install-db");
            let mut command = Command::new(process::program(&installer));
            command.args(["--no-defaults", "--skip-test-db", "--force"]);
            command.args(["--auth-root-authentication-method=normal", "--skip-name-resolve"]);
            command
        }
    };
    if process::is_root() {
        command.arg("--user=root");
    }
    command.env("TMPDIR", made.path());
    let output = command.arg(format!("--datadir={}", data.display())).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "initialise {version}: {}\n{text}", output.status);
    // Each copy makes its own server uuid.
    if flavour == Flavour::Mysql {
        std::fs::remove_file(data.join("auto.cnf")).unwrap();
    }
    rename(&data, &template);
    template
}

#[expect(clippy::disallowed_methods, reason = "a cache of tests needs no durable name")]
fn rename(from: &Path, to: &Path) {
    std::fs::rename(from, to).unwrap();
}

/// Copies a folder with everything in it; the copy's folder may exist.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
