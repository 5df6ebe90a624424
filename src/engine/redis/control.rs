//! Ordinary commands to a Redis server, over a connection of their own.
//!
//! The `redis` crate speaks; the connection below it is made like all others, so addresses,
//! accounts and TLS mean the same everywhere.

use super::aof::clock::Persistence;
use super::client::ACL;
use crate::clock::Timestamp;
use crate::engine::sample::Timed;
use crate::engine::{Endpoint, Placed, tls};
use crate::error::{Class, Error, Result};
use crate::position::Position;
use crate::record::Server;
use ::redis::aio::MultiplexedConnection;
use ::redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, FromRedisValue, RedisConnectionInfo, RedisError,
};
use std::collections::HashMap;
use std::fmt;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long a server may take to answer a command.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// How many samples the clock difference is taken from; the one with the shortest way counts.
const SKEW_SAMPLES: usize = 5;

/// `(server clock, replication offset)`, read at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
    /// The server's clock.
    pub(super) at: Timestamp,
    /// Bytes of the replication stream that it had executed.
    pub(super) offset: u64,
    /// Whether it is the master of that stream.
    pub(super) is_master: bool,
    /// How long it took to ask and to hear the answer.
    pub(super) round_trip: Duration,
}

impl Timed for Sample {
    fn at(&self) -> Timestamp {
        self.at
    }
}

/// What EXEC gives back of TIME and ROLE.
type TimeAndRole = ((i64, i64), Vec<::redis::Value>);

/// What EXEC gives back of TIME and two sections of INFO.
type TimeAndInfo = ((i64, i64), String, String);

/// A connection for ordinary commands.
pub(super) struct Control {
    connection: MultiplexedConnection,
    driver: JoinHandle<()>,
    address: String,
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Control {
    pub(super) async fn connect(endpoint: &Endpoint) -> Result<Self> {
        let address = endpoint.to_string();
        let stream = tls::connect(endpoint).await?;
        let mut info = RedisConnectionInfo::default().set_skip_set_lib_name();
        if !endpoint.user.is_empty() {
            info = info.set_username(&endpoint.user);
        }
        if !endpoint.password.is_empty() || !endpoint.user.is_empty() {
            info = info.set_password(endpoint.password.reveal());
        }
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(ANSWER_MAX));
        let connect = MultiplexedConnection::new_with_config(&info, stream, config);
        let (connection, driver) = match tokio::time::timeout(ANSWER_MAX, connect).await {
            Ok(connected) => connected.map_err(|e| failure(&address, "connecting", e))?,
            Err(_) => return Err(Error::unavailable(format!("{address} does not answer"))),
        };
        Ok(Self { connection, driver: tokio::spawn(driver), address })
    }

    /// Sends one command.
    pub(super) async fn ask<T: FromRedisValue>(&mut self, words: &[&str]) -> Result<T> {
        let mut cmd = Cmd::new();
        for word in words {
            cmd.arg(word);
        }
        let result = cmd.query_async(&mut self.connection).await;
        result.map_err(|e| failure(&self.address, &words.join(" "), e))
    }

    /// Sends one command of any words.
    pub(super) async fn run<T: FromRedisValue>(&mut self, cmd: &Cmd) -> Result<T> {
        let result = cmd.query_async(&mut self.connection).await;
        result.map_err(|e| failure(&self.address, "asking", e))
    }

    /// Sends one command; if another node of the cluster has its key, gives the address of that.
    pub(super) async fn run_or_moved(
        &mut self,
        cmd: &Cmd,
    ) -> Result<Result<::redis::Value, String>> {
        let answer: Result<::redis::Value, RedisError> =
            cmd.query_async(&mut self.connection).await;
        match answer {
            Ok(answer) => Ok(Ok(answer)),
            Err(error) => match error.redirect_node() {
                Some((address, _)) => Ok(Err(address.to_owned())),
                None => Err(failure(&self.address, "asking", error)),
            },
        }
    }

    /// Sends commands all at once, and takes the answer of each.
    pub(super) async fn each<T: FromRedisValue>(&mut self, cmds: &[Cmd]) -> Result<Vec<T>> {
        if cmds.is_empty() {
            return Ok(vec![]);
        }
        let mut pipe = ::redis::pipe();
        for cmd in cmds {
            pipe.add_command(cmd.clone());
        }
        let answers: Result<Vec<T>, _> = pipe.query_async(&mut self.connection).await;
        let answers = answers.map_err(|e| failure(&self.address, "asking", e))?;
        if answers.len() == cmds.len() {
            return Ok(answers);
        }
        Err(Error::corrupt(format!("{} gave {} answers", self.address, answers.len())))
    }

    /// Whether the server knows a command.
    pub(super) async fn knows(&mut self, command: &str) -> Result<bool> {
        let known: Vec<::redis::Value> = self.ask(&["COMMAND", "INFO", command]).await?;
        Ok(!matches!(known.as_slice(), [] | [::redis::Value::Nil]))
    }

    /// Sends a command that the server cannot but refuse, and gives what it says.
    pub(super) async fn refusal(&mut self, words: &[&[u8]]) -> Result<String> {
        let mut cmd = Cmd::new();
        for word in words {
            cmd.arg(*word);
        }
        let said: Result<::redis::Value, RedisError> = cmd.query_async(&mut self.connection).await;
        match said {
            Ok(answer) => Err(Error::bug(format!("{} did not refuse: {answer:?}", self.address))),
            Err(error) if error.code().is_some() || error.kind() == ErrorKind::Extension => {
                Ok(error.to_string())
            }
            Err(error) => Err(failure(&self.address, "asking", error)),
        }
    }

    /// The connection itself.
    pub(super) fn connection(&mut self) -> &mut MultiplexedConnection {
        &mut self.connection
    }

    /// Where the server is.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// The fields of one section of INFO.
    pub(super) async fn info(&mut self, section: &str) -> Result<HashMap<String, String>> {
        let text: String = self.ask(&["INFO", section]).await?;
        Ok(fields(&text))
    }

    /// Which server this is.
    pub(super) async fn server(&mut self) -> Result<Server> {
        let info = self.info("server").await?;
        self.server_of(info)
    }

    fn server_of(&self, mut info: HashMap<String, String>) -> Result<Server> {
        let version = match (info.remove("valkey_version"), info.remove("redis_version")) {
            (Some(valkey), _) => format!("{valkey}-valkey"),
            (None, Some(redis)) => redis,
            (None, None) => {
                return Err(Error::corrupt(format!(
                    "{} does not say its version in INFO server",
                    self.address
                )));
            }
        };
        let identity = info.remove("run_id").unwrap_or_default();
        Ok(Server { version, identity, anonymous: false })
    }

    /// One setting; `None` if the server does not have it or does not tell.
    pub(super) async fn setting(&mut self, name: &str) -> Option<String> {
        let reply: Result<Vec<String>> = self.ask(&["CONFIG", "GET", name]).await;
        reply.ok()?.into_iter().nth(1)
    }

    /// The server's clock.
    pub(super) async fn time(&mut self) -> Result<Timestamp> {
        let (secs, micros): (i64, i64) = self.ask(&["TIME"]).await?;
        Ok(timestamp(secs, micros))
    }

    /// The server's clock and replication offset at one moment; `None` from a replica without
    /// its master.
    ///
    /// One EXEC runs as one: everything that the server executed until `at` lies before
    /// `offset`, and what it executes later lies behind.
    pub(super) async fn sample(&mut self) -> Result<Option<Sample>> {
        // Not `Pipeline::atomic`: redis 1.8 panics if the server refuses the MULTI.
        let mut pipe = ::redis::pipe();
        pipe.cmd("MULTI").ignore().cmd("TIME").ignore().cmd("ROLE").ignore().cmd("EXEC");
        let asked = Instant::now();
        let reply: Result<(TimeAndRole,), _> = pipe.query_async(&mut self.connection).await;
        let round_trip = asked.elapsed();
        let (((secs, micros), role),) =
            reply.map_err(|e| failure(&self.address, "TIME, ROLE", e))?;
        // A master answers ["master", offset, replicas], a replica
        // ["slave", host, port, state, offset].
        let name: Option<String> =
            role.first().and_then(|v| FromRedisValue::from_redis_value_ref(v).ok());
        let at = match name.as_deref() {
            Some("master") => 1,
            Some("slave") => 4,
            _ => return Err(Error::corrupt(format!("{}: ROLE says no role", self.address))),
        };
        let offset: Option<i64> =
            role.get(at).and_then(|v| FromRedisValue::from_redis_value_ref(v).ok());
        Ok(offset.and_then(|offset| u64::try_from(offset).ok()).map(|offset| Sample {
            at: timestamp(secs, micros),
            offset,
            is_master: name.as_deref() == Some("master"),
            round_trip,
        }))
    }

    /// Where the stream ends, and the server's clock, at one moment. `publish` is a channel and
    /// what is published there directly behind the place.
    ///
    /// # Errors
    /// Usage, if the account may not do it. Unavailable, if the server does not answer, or is a
    /// replica without its master.
    pub(super) async fn place(&mut self, publish: Option<(&str, &str)>) -> Result<Placed> {
        let mut pipe = ::redis::pipe();
        pipe.cmd("MULTI").ignore();
        if let Some((channel, message)) = publish {
            pipe.cmd("PUBLISH").arg(channel).arg(message).ignore();
        }
        for section in ["server", "replication"] {
            pipe.cmd("INFO").arg(section).ignore();
        }
        pipe.cmd("TIME").ignore().cmd("EXEC");
        let doing = "read the end of the stream";
        let replies: Result<(Vec<::redis::Value>,), _> =
            pipe.query_async(&mut self.connection).await;
        let (mut replies,) = replies.map_err(|e| failure(&self.address, doing, e))?;
        let odd = || Error::corrupt(format!("{}: {doing}: not the answers to it", self.address));
        let behind = replies.split_off(usize::from(publish.is_some()).min(replies.len()));
        let answers: (String, String, (i64, i64)) =
            FromRedisValue::from_redis_value(::redis::Value::Array(behind)).map_err(|_| odd())?;
        let (server, replication, (secs, micros)) = answers;
        let mut replication = fields(&replication);
        if replication.get("master_link_status").is_some_and(|status| status != "up") {
            let cut_off = format!("{} is a replica without its master", self.address);
            return Err(Error::unavailable(cut_off));
        }
        let offset = replication.get("master_repl_offset").and_then(|text| text.parse().ok());
        let log = replication.remove("master_replid").ok_or_else(odd)?;
        Ok(Placed {
            position: Position::new(log, offset.ok_or_else(odd)?),
            at: timestamp(secs, micros),
            server: self.server_of(fields(&server))?,
            published: publish.is_some(),
        })
    }

    /// What the server says of its append-only log, and its clock, at one moment.
    ///
    /// # Errors
    /// Corrupt, if a field is missing that every server with append-only files has.
    pub(super) async fn persistence(&mut self) -> Result<Persistence> {
        let doing = "read INFO persistence";
        let mut pipe = ::redis::pipe();
        pipe.cmd("MULTI").ignore().cmd("TIME").ignore();
        for section in ["server", "persistence"] {
            pipe.cmd("INFO").arg(section).ignore();
        }
        pipe.cmd("EXEC");
        let reply: Result<(TimeAndInfo,), _> = pipe.query_async(&mut self.connection).await;
        let (((secs, micros), server, persistence),) =
            reply.map_err(|e| failure(&self.address, doing, e))?;
        let identity = self.server_of(fields(&server))?.identity;
        let read = Persistence::of(timestamp(secs, micros), identity, &fields(&persistence));
        read.map_err(|error| error.context(&self.address))
    }

    /// How far the server's clock is ahead of this host's, in µs.
    pub(super) async fn skew_micros(&mut self) -> Result<i64> {
        let mut best: Option<(Duration, i64)> = None;
        for _ in 0..SKEW_SAMPLES {
            let (begun, here) = (Instant::now(), Timestamp::now());
            let there = self.time().await?;
            let way = begun.elapsed();
            let middle = here.after(way / 2);
            if best.is_none_or(|(shortest, _)| way < shortest) {
                best = Some((way, there.as_micros().saturating_sub(middle.as_micros())));
            }
        }
        Ok(best.map_or(0, |(_, skew)| skew))
    }
}

/// The fields of an answer to INFO.
fn fields(text: &str) -> HashMap<String, String> {
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect()
}

fn timestamp(secs: i64, micros: i64) -> Timestamp {
    Timestamp::from_secs(secs).shifted(micros)
}

/// The error for a command that did not work. `what` holds no secret.
fn failure(address: &str, what: &str, error: RedisError) -> Error {
    let text = error.to_string().to_ascii_uppercase();
    let unknown = error.kind() == ErrorKind::AuthenticationFailed
        || matches!(error.code(), Some("NOAUTH" | "WRONGPASS"));
    let (class, hint) = if unknown {
        (Class::Usage, Some("check the password file and the user in the url".to_owned()))
    } else if text.contains("NOPERM") {
        // A transaction that was refused names the reason only in its text.
        let needs = format!("give the account what it needs: ACL SETUSER <user> on &* {ACL}");
        (Class::Usage, Some(needs))
    } else if text.contains("UNKNOWN COMMAND") {
        (Class::Refused, None)
    } else {
        (Class::Unavailable, None)
    };
    let failed = Error::new(class, format!("{what} on {address}")).source(error);
    match hint {
        Some(hint) => failed.hint(hint),
        None => failed,
    }
}
