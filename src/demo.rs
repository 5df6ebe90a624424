//! Shows the whole thing on scratch servers: capture, an accident, the way back, the proof.
//!
//! It starts a MySQL and a Redis server from PATH in a temporary folder, captures both while an
//! application works on them, notes what they hold at one instant, destroys it, restores to that
//! instant into fresh folders, starts servers on those and compares.
//!
//! **Invariant:** it touches nothing but its own folder and the servers that it started itself.

use crate::archive::Archive;
use crate::clock::Timestamp;
use crate::config::Config;
use crate::daemon;
use crate::engine::digest::Digest;
use crate::engine::{Apply, Endpoint, mysql, redis};
use crate::error::{Class, Context, Error, Result};
use crate::manifest::EngineKind;
use crate::restore::{self, Goal, Options, Progress};
use crate::windows;
use ::redis::AsyncCommands;
use mysql_async::prelude::Queryable;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Orders placed before the accident.
const ORDERS: u32 = 400;

/// How long a server may take to answer for the first time.
const START: Duration = Duration::from_secs(90);

/// How long the first baselines may take.
const FIRST_BASELINES: Duration = Duration::from_mins(2);

/// Runs the demonstration; `say` is told what happens, line by line.
///
/// # Errors
/// Unavailable, if a server is not on PATH; finding, if what was restored differs.
pub async fn run(keep: bool, mut say: impl FnMut(&str)) -> Result<()> {
    let dir = Scratch::create(keep)?;
    say(&format!("scratch folder {}", dir.0.display()));
    let mysql = MysqlServer::fresh(&dir.0.join("source-mysql")).await?;
    let redis = RedisServer::start(&dir.0.join("source-redis"), None).await?;
    say(&format!("started MySQL {} and Redis {} as sources", mysql.version, redis.version));

    let config = configure(&dir.0, &mysql, &redis)?;
    Archive::init(&config.archive)?;
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(daemon::run(config.clone(), async {
        // Ends as well when the demonstration fails and drops the sender.
        drop(stopped.await);
    }));
    let shown = show(&dir.0, &config, &mysql, &redis, &mut say).await;
    if stop.send(()).is_err() {
        tracing::debug!("the daemon ended by itself");
    }
    let ended = running.await.class(Class::Bug, || "the daemon".into())?;
    shown.and(ended)
}

async fn show(
    dir: &Path,
    config: &Config,
    mysql: &MysqlServer,
    redis: &RedisServer,
    say: &mut impl FnMut(&str),
) -> Result<()> {
    let mut sql = mysql.connect().await?;
    let mut cache = redis.connect().await?;
    prepare_shop(&mut sql).await?;
    wait_for_baselines(config).await?;
    say("both sources stream; their first baselines are stored");

    for number in 1..=ORDERS {
        place_order(&mut sql, &mut cache, number).await?;
    }
    tokio::time::sleep(Duration::from_millis(400)).await;
    let instant = Timestamp::now();
    let before = (mysql::digest::digest(&mut sql).await?, redis::digest::digest(&mut cache).await?);
    say(&format!("placed {ORDERS} orders in both; noted what they hold at {instant}"));
    tokio::time::sleep(Duration::from_millis(400)).await;

    sql_drop(&mut sql, "DELETE FROM shop.orders WHERE id % 2 = 0").await?;
    sql_drop(&mut sql, "DROP TABLE shop.orders").await?;
    redis_do(::redis::cmd("FLUSHALL").exec_async(&mut cache).await)?;
    say("the accident: a careless DELETE, a DROP TABLE, a FLUSHALL");

    let names: Vec<String> = config.sources.iter().map(|source| source.name.clone()).collect();
    let (archive, wait) = (config.archive.clone(), restore::WAIT_FOR_DAEMON);
    let covered =
        tokio::task::spawn_blocking(move || daemon::cover(&archive, instant, names, wait))
            .await
            .class(Class::Bug, || "ask the daemon".into())?;
    if !covered {
        return Err(Error::unavailable(format!("the capture did not pass {instant} in time")));
    }
    let into = dir.join("restored");
    let options = Options {
        archive: config.archive.clone(),
        sources: config.sources.clone(),
        configured: config.sources.iter().map(|source| source.endpoint.clone()).collect(),
        to: Goal::Instant(instant),
        targets: BTreeMap::new(),
        into: Some(into.clone()),
        listen: None,
        apply: Apply::default(),
        ttl: crate::engine::Ttl::Absolute,
        keys: crate::engine::Keys::default(),
        in_place: None,
        databases: vec![],
        clean: vec![],
        inspect: None,
    };
    let report = restore::prepare(&options)?.run(&Arc::new(Progress::default())).await?;
    for source in &report.sources {
        say(&format!(
            "restored {} to that instant in {:.1} s: {} records behind its baseline",
            source.name, source.seconds.total, source.records
        ));
    }

    let mysql = MysqlServer::on(&into.join("shop-mysql").join("data")).await?;
    let redis = RedisServer::start(
        &into.join("shop-redis"),
        Some(&into.join("shop-redis").join("redis.conf")),
    )
    .await?;
    let (mut sql, mut cache) = (mysql.connect().await?, redis.connect().await?);
    let after = (mysql::digest::digest(&mut sql).await?, redis::digest::digest(&mut cache).await?);
    compare("MySQL", &before.0, &after.0, say)?;
    compare("Redis", &before.1, &after.1, say)
}

fn compare(what: &str, before: &Digest, after: &Digest, say: &mut impl FnMut(&str)) -> Result<()> {
    let differences = before.diff(after);
    if differences.is_empty() {
        say(&format!("{what}: everything is as it was (digest {})", before.total()));
        return Ok(());
    }
    Err(Error::new(Class::Finding, format!("{what} differs: {}", differences.join("; "))))
}

async fn prepare_shop(sql: &mut mysql_async::Conn) -> Result<()> {
    for statement in [
        "CREATE DATABASE shop",
        "CREATE TABLE shop.customers (id INT PRIMARY KEY AUTO_INCREMENT, name VARCHAR(40), \
         since DATETIME(6))",
        "CREATE TABLE shop.orders (id INT PRIMARY KEY, customer INT NOT NULL, \
         total DECIMAL(10,2), note JSON, FOREIGN KEY (customer) REFERENCES shop.customers (id) \
         ON DELETE CASCADE)",
        "INSERT INTO shop.customers (name, since) VALUES ('Ada', NOW(6)), ('Grace', NOW(6))",
    ] {
        sql_drop(sql, statement).await?;
    }
    Ok(())
}

async fn place_order(
    sql: &mut mysql_async::Conn,
    cache: &mut ::redis::aio::MultiplexedConnection,
    number: u32,
) -> Result<()> {
    let (customer, total) = (number % 2 + 1, f64::from(number) * 1.25);
    let statement = format!(
        "INSERT INTO shop.orders VALUES ({number}, {customer}, {total}, \
         JSON_OBJECT('number', {number}))"
    );
    sql_drop(sql, &statement).await?;
    redis_do(cache.set::<_, _, ()>(format!("order:{number}"), total).await)?;
    redis_do(cache.hincr::<_, _, _, ()>("orders-by-customer", customer, 1).await)
}

async fn sql_drop(sql: &mut mysql_async::Conn, statement: &str) -> Result<()> {
    sql.query_drop(statement).await.unavailable(|| "work on the scratch MySQL".into())
}

fn redis_do(result: ::redis::RedisResult<()>) -> Result<()> {
    result.unavailable(|| "work on the scratch Redis".into())
}

fn configure(dir: &Path, mysql: &MysqlServer, redis: &RedisServer) -> Result<Config> {
    let text = format!(
        "[archive]\ndir = {:?}\n\n[[source]]\nname = \"shop-mysql\"\nengine = \"mysql\"\n\
         url = \"mysql://root@127.0.0.1:{}\"\n\n[[source]]\nname = \"shop-redis\"\n\
         engine = \"redis\"\nurl = \"redis://127.0.0.1:{}\"\n",
        dir.join("archive").display().to_string(),
        mysql.port,
        redis.port
    );
    let path = dir.join("pitr.toml");
    crate::durable::create(&path, text.as_bytes())?;
    Config::load(Some(&path))
}

async fn wait_for_baselines(config: &Config) -> Result<()> {
    let deadline = tokio::time::Instant::now() + FIRST_BASELINES;
    loop {
        let asked = config.clone();
        let report = tokio::task::spawn_blocking(move || windows::windows(&asked))
            .await
            .class(Class::Bug, || "read the windows".into())??;
        if report.sources.iter().all(|source| !source.windows.is_empty()) {
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            let waiting = report.sources.iter().filter(|source| source.windows.is_empty());
            let why: Vec<String> = waiting
                .map(|source| {
                    format!("{} ({})", source.name, source.error.as_deref().unwrap_or("no reason"))
                })
                .collect();
            return Err(Error::unavailable(format!("no first baseline of {}", why.join(", "))));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The demonstration's folder, removed at its end unless it is to be kept.
struct Scratch(PathBuf, bool);

impl Scratch {
    fn create(keep: bool) -> Result<Self> {
        let name = format!("pitr-demo-{}", Timestamp::now().as_micros());
        let dir = std::env::temp_dir().join(name);
        crate::durable::create_dir_all(&dir)?;
        Ok(Self(dir, keep))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.1
            && let Err(error) = std::fs::remove_dir_all(&self.0)
        {
            tracing::warn!("remove {}: {error}", self.0.display());
        }
    }
}

/// A server process, killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

struct MysqlServer {
    _process: Process,
    port: u16,
    version: String,
}

impl MysqlServer {
    /// A server on a new data directory, set up as a source has to be.
    async fn fresh(dir: &Path) -> Result<Self> {
        crate::durable::create_dir_all(dir)?;
        let data = dir.join("data");
        let made = mysqld(&data)
            .arg("--initialize-insecure")
            .output()
            .map_err(|error| missing("mysqld", &error))?;
        if !made.status.success() {
            let stderr = String::from_utf8_lossy(&made.stderr);
            return Err(Error::unavailable(format!("mysqld --initialize-insecure: {stderr}"))
                .hint("the demonstration needs MySQL 8.0 or newer as `mysqld` on PATH"));
        }
        Self::on(&data).await
    }

    /// A server on a data directory that is there.
    async fn on(data: &Path) -> Result<Self> {
        let port = free_port()?;
        let mut command = mysqld(data);
        command
            .args(["--gtid-mode=ON", "--enforce-gtid-consistency=ON", "--bind-address=127.0.0.1"])
            .arg(format!("--port={port}"))
            .arg(format!("--server-id={port}"))
            // In the data directory: a relative path is short enough for a socket everywhere.
            .arg("--socket=mysqld.sock")
            .arg("--log-bin=binlog");
        let process = Process(command.spawn().map_err(|error| missing("mysqld", &error))?);
        let mut server = Self { _process: process, port, version: String::new() };
        let deadline = tokio::time::Instant::now() + START;
        loop {
            match server.connect().await {
                Ok(mut sql) => {
                    let version: Option<String> = sql
                        .query_first("SELECT VERSION()")
                        .await
                        .unavailable(|| "ask MySQL for its version".into())?;
                    server.version = version.unwrap_or_default();
                    return Ok(server);
                }
                Err(error) if tokio::time::Instant::now() > deadline => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    async fn connect(&self) -> Result<mysql_async::Conn> {
        let url = format!("mysql://root@127.0.0.1:{}", self.port);
        mysql::connect(&Endpoint::parse(EngineKind::Mysql, &url)?).await
    }
}

fn mysqld(data: &Path) -> Command {
    let mut command = Command::new("mysqld");
    command.arg("--no-defaults").arg(format!("--datadir={}", data.display())).arg("--mysqlx=OFF");
    if is_root(data) {
        command.arg("--user=root");
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Whether this process runs as root, which mysqld wants to be told.
fn is_root(data: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let known = data.parent().and_then(|dir| std::fs::metadata(dir).ok());
    known.is_some_and(|dir| dir.uid() == 0)
}

struct RedisServer {
    _process: Process,
    port: u16,
    version: String,
}

impl RedisServer {
    async fn start(dir: &Path, conf: Option<&Path>) -> Result<Self> {
        crate::durable::create_dir_all(dir)?;
        let port = free_port()?;
        let mut command = Command::new("redis-server");
        if let Some(conf) = conf {
            command.arg(conf);
        }
        command
            .current_dir(dir)
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = Process(command.spawn().map_err(|error| missing("redis-server", &error))?);
        let mut server = Self { _process: process, port, version: String::new() };
        let deadline = tokio::time::Instant::now() + START;
        loop {
            if let Ok(mut cache) = server.connect().await {
                let info: ::redis::RedisResult<String> =
                    ::redis::cmd("INFO").arg("server").query_async(&mut cache).await;
                if let Ok(info) = info {
                    let version = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
                    version.unwrap_or_default().trim().clone_into(&mut server.version);
                    return Ok(server);
                }
            }
            if tokio::time::Instant::now() > deadline {
                return Err(Error::unavailable("the scratch Redis does not answer"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn connect(&self) -> Result<::redis::aio::MultiplexedConnection> {
        let client = ::redis::Client::open(format!("redis://127.0.0.1:{}", self.port))
            .unavailable(|| "name the scratch Redis".into())?;
        client
            .get_multiplexed_async_connection()
            .await
            .unavailable(|| "connect to the scratch Redis".into())
    }
}

fn free_port() -> Result<u16> {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .unavailable(|| "find a free port".into())
}

fn missing(program: &str, error: &std::io::Error) -> Error {
    Error::unavailable(format!("start {program}: {error}"))
        .hint("`fixtures/servers.sh` installs the servers that the demonstration uses")
}
