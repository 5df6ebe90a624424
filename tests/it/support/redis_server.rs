//! Redis servers.

use super::mysqld::copy_dir;
use super::process::{self, Process};
use super::{SERVER_DEADLINE, eventually};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, FromRedisValue};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use tempfile::TempDir;

/// An empty Redis server that keeps nothing on disk by itself, unless options say otherwise.
#[derive(Debug)]
pub(crate) struct RedisServer {
    process: Option<Process>,
    /// Whether its folder holds a `redis.conf` to start with.
    has_conf: bool,
    program: String,
    args: Vec<String>,
    port: u16,
    dir: TempDir,
}

impl RedisServer {
    /// Starts a server with further options, as in `&["--databases", "4"]`.
    pub(crate) async fn start(args: &[&str]) -> Self {
        Self::start_program("redis-server", args).await
    }

    /// The same of another server than that of `redis-server`: one of [`REDIS_SERVERS`].
    pub(crate) async fn start_program(program: &str, args: &[&str]) -> Self {
        Self::start_in(program, None, args).await
    }

    /// Starts a server on a copy of a folder with a `redis.conf`.
    pub(crate) async fn start_on(dir: &Path) -> Self {
        Self::start_in("redis-server", Some(dir), &[]).await
    }

    async fn start_in(program: &str, from: Option<&Path>, args: &[&str]) -> Self {
        let mut server = Self {
            process: None,
            has_conf: from.is_some(),
            program: program.to_owned(),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            port: process::free_port(),
            dir: tempfile::Builder::new().prefix("pitr-redis-").tempdir().unwrap(),
        };
        if let Some(from) = from {
            copy_dir(from, server.dir.path());
        }
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
        let mut command = Command::new(process::program(&self.program));
        if self.has_conf {
            command.arg(self.dir.path().join("redis.conf"));
        }
        command
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--dir"])
            .arg(self.dir.path())
            .args(["--save", "", "--enable-debug-command", "yes"])
            .args(&self.args);
        let log = self.dir.path().join("server.log");
        let log_before = std::fs::read(&log).unwrap_or_default().len();
        self.process = Some(Process::spawn(command, &log));
        let url = self.url();
        eventually("the Redis server answers", SERVER_DEADLINE, async || {
            let process = self.process.as_mut().unwrap();
            if let Some(status) = process.ended() {
                let log = process.log().split_off(log_before);
                let taken = log.contains("Address already in use");
                assert!(taken, "{} ended with {status}:\n{log}", self.program);
                return Some(false);
            }
            let client = Client::open(url.as_str()).unwrap();
            let mut conn = client.get_multiplexed_async_connection().await.ok()?;
            let info: String =
                redis::cmd("INFO").arg("server").query_async(&mut conn).await.ok()?;
            // Not somebody else's server on the same port.
            Some(info.contains(&format!("process_id:{}\r\n", process.pid())))
        })
        .await
    }

    /// The program that it runs.
    pub(crate) fn program(&self) -> &str {
        &self.program
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().expect("the server is stopped").pid()
    }

    /// `redis://127.0.0.1:PORT`
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The folder that the server runs in (`dump.rdb`, `appendonlydir`).
    pub(crate) fn datadir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// What the server wrote, over all starts.
    pub(crate) fn log(&self) -> String {
        let path = self.dir.path().join("server.log");
        String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
    }

    /// A connection of its own to database 0.
    pub(crate) async fn conn(&self) -> MultiplexedConnection {
        self.conn_to(0).await
    }

    /// A connection of its own to a database.
    pub(crate) async fn conn_to(&self, database: u32) -> MultiplexedConnection {
        let client = Client::open(format!("{}/{database}", self.url())).unwrap();
        // The client's own limit of 500 ms is too short for large values on a busy machine.
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(SERVER_DEADLINE));
        client.get_multiplexed_async_connection_with_config(&config).await.unwrap()
    }

    /// Runs one command in database 0: `server.cmd::<()>(&["SET", "k", "v"]).await`.
    pub(crate) async fn cmd<T: FromRedisValue>(&self, words: &[&str]) -> T {
        self.cmd_in(0, words).await
    }

    /// Runs one command in a database.
    pub(crate) async fn cmd_in<T: FromRedisValue>(&self, database: u32, words: &[&str]) -> T {
        let mut conn = self.conn_to(database).await;
        let mut command = redis::Cmd::new();
        for word in words {
            command.arg(word);
        }
        command.query_async(&mut conn).await.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// Freezes the server (`STOP`), wakes it up (`CONT`), or sends another signal.
    pub(crate) fn signal(&self, name: &str) {
        self.process.as_ref().expect("the server is stopped").signal(name);
    }

    /// Ends the server as a crash would. Data that was not saved is lost.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Shuts the server down in order. Saves only what its options make it save.
    pub(crate) async fn stop(&mut self) -> Option<ExitStatus> {
        let mut process = self.process.take()?;
        Some(process.terminate(SERVER_DEADLINE).await)
    }

    /// Starts the server again (after [`stop`](Self::stop) if it runs), with the same folder,
    /// options and port.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        assert!(self.try_launch().await, "port {} is taken by somebody else", self.port);
    }
}
