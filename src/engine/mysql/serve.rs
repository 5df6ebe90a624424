//! pitr as a replication source: a replica connects, asks what replicas ask, and gets the log.
//!
//! What a replica asks, and in which order, is what `sql/rpl_replica.cc` of the server does; what
//! it is sent is what `sql/rpl_binlog_sender.cc` sends. Only one replica is let in: the one that
//! knows the one-time password and has the right `server_id`. When it connects again, its old
//! stream ends, and the new one leaves out what it has.
//!
//! This listens and answers; what goes into the stream is decided in `dump`. What replicas of a
//! family ask, and how, is in [`mysql`] and [`maria`].
//!
//! **Invariant:** whoever does not know the password changes nothing and learns nothing but the
//! version that is announced.

mod held;
mod maria;
mod mysql;

pub(super) use held::Held;

use super::auth::{self, Greeting, OK_PACKET, Plugin, ServerError};
use super::dump::{Dump, Form};
use super::flavor::Family;
use super::maria::BinlogState;
use super::packet::{PacketCodec, Packets, receive, send};
use super::walk::{Program, Served};
use crate::engine::Secret;
use crate::error::{Context, Error, Result};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::codec::Decoder;

/// The largest command that is read: a GTID set with a million intervals has 16 MB.
const COMMAND_LIMIT: usize = 64 << 20;
/// How many connections may be open at once. One is needed; more are old ones, or strangers.
const CONNECTIONS: usize = 64;
/// How often a replica hears from its source if it does not say how often it wants to.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Commands of the protocol (`enum_server_command` in the server's `my_command.h`).
mod command {
    pub(super) const QUIT: u8 = 0x01;
    pub(super) const QUERY: u8 = 0x03;
    pub(super) const PING: u8 = 0x0e;
    pub(super) const BINLOG_DUMP: u8 = 0x12;
    pub(super) const REGISTER_REPLICA: u8 = 0x15;
    pub(super) const BINLOG_DUMP_GTID: u8 = 0x1e;
}

/// Errors that replicas know how to take.
mod code {
    pub(super) const UNKNOWN_SYSTEM_VARIABLE: u16 = 1193;
    pub(super) const NOT_SUPPORTED: u16 = 1235;
    pub(super) const FATAL: u16 = 1236;
}

/// Why a connection is over.
#[derive(Debug)]
pub(super) enum Ended {
    /// The other side went away, or had to go. It may come again.
    Closed(Error),
    /// The log cannot be served: the whole replay is over.
    Fatal(Error),
}

/// Who pitr says it is.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    /// What it is a source for.
    pub(super) family: Family,
    /// Version of the captured server.
    pub(super) version: String,
    /// A `server_id` that neither the target nor any event has.
    pub(super) server_id: u32,
    /// A fresh uuid, so that the target can have no GTID of it.
    pub(super) uuid: String,
    /// Whether the log is served by places instead of GTIDs.
    pub(super) by_place: bool,
}

/// A listening source.
#[derive(Debug)]
pub(super) struct ReplaySource {
    listener: TcpListener,
    identity: Identity,
    /// `server_id` of the one replica.
    replica_id: u32,
    user: String,
    password: Secret,
    program: Program,
    served: watch::Sender<Option<Arc<Served>>>,
    /// Number of the newest dump; older ones end when it grows.
    newest: watch::Sender<u64>,
}

impl ReplaySource {
    /// Listens at `listen`, with a fresh password.
    ///
    /// # Errors
    /// Unavailable, if the address cannot be listened at.
    pub(super) async fn bind(
        listen: SocketAddr,
        identity: Identity,
        replica_id: u32,
        program: Program,
    ) -> Result<Self> {
        let listener = TcpListener::bind(listen)
            .await
            .unavailable(|| format!("listen at {listen} for the target"))?;
        Ok(Self {
            listener,
            identity,
            replica_id,
            user: "pitr".into(),
            // As long as CHANGE REPLICATION SOURCE takes it.
            password: Secret::new(format!("{:032x}", rand::random::<u128>())),
            program,
            served: watch::Sender::new(None),
            newest: watch::Sender::new(0),
        })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> Result<SocketAddr> {
        self.listener.local_addr().unavailable(|| "ask where pitr listens".into())
    }

    /// What the replica logs in with.
    pub(super) fn login(&self) -> (&str, &Secret) {
        (&self.user, &self.password)
    }

    /// Says, once everything up to the cut was sent, what that was.
    pub(super) fn served(&self) -> watch::Receiver<Option<Arc<Served>>> {
        self.served.subscribe()
    }

    /// Serves until dropped, or until the log cannot be served: then it gives the reason.
    pub(super) async fn run(&self) -> Error {
        let mut connections = FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((tcp, peer)) if connections.len() < CONNECTIONS => {
                        connections.push(self.connection(tcp, peer));
                    }
                    Ok((_, peer)) => tracing::warn!("{peer}: too many connections"),
                    Err(error) => {
                        // Such as too many open files: not for long, as a rule.
                        tracing::warn!("accept a connection of the target: {error}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(ended) = connections.next() => match ended {
                    Ended::Fatal(error) => return error,
                    Ended::Closed(reason) => tracing::debug!("connection ended: {reason}"),
                },
            }
        }
    }

    async fn connection(&self, tcp: TcpStream, peer: SocketAddr) -> Ended {
        let peer = format!("replica at {peer}");
        match self.conversation(tcp, &peer).await {
            Ok(ended) => ended,
            Err(reason) => Ended::Closed(reason),
        }
    }

    async fn conversation(&self, tcp: TcpStream, peer: &str) -> Result<Ended> {
        tcp.set_nodelay(true).unavailable(|| peer.to_owned())?;
        let mut packets = PacketCodec::new(COMMAND_LIMIT).framed(tcp);
        let id = rand::random::<u32>() >> 1;
        let greeting = match self.identity.family {
            Family::MySql => Greeting::new(&self.identity.version, id, Plugin::CachingSha2),
            Family::MariaDb => {
                Greeting::new(&maria::announced(&self.identity.version), id, Plugin::Native)
            }
        };
        auth::accept(&mut packets, &greeting, &self.user, &self.password, peer).await?;
        let mut said = Said { heartbeat: HEARTBEAT, ..Said::default() };
        loop {
            packets.codec_mut().restart();
            let packet = receive(&mut packets, peer).await?;
            let (command, body) = packet
                .split_first()
                .ok_or_else(|| Error::corrupt(format!("{peer}: an empty command")))?;
            match *command {
                command::QUIT => return Ok(Ended::Closed(Error::unavailable("it said goodbye"))),
                command::PING | command::REGISTER_REPLICA => {
                    send(&mut packets, &OK_PACKET, peer).await?;
                }
                command::QUERY => {
                    let asked = String::from_utf8_lossy(body);
                    self.answer(&mut packets, &asked, &mut said, peer).await?;
                }
                asks if asks == self.dump_command() => match self.request(body, &said) {
                    Ok(request) => return Ok(self.dump(packets, request, peer).await),
                    Err(refused) => {
                        send(&mut packets, &refused.encode(), peer).await?;
                        return Err(Error::refused(format!("{peer}: {}", refused.message)));
                    }
                },
                other => {
                    let text = format!("pitr does not know command {other}");
                    let error = ServerError { code: code::NOT_SUPPORTED, message: text };
                    send(&mut packets, &error.encode(), peer).await?;
                }
            }
        }
    }

    async fn answer(
        &self,
        packets: &mut Packets<TcpStream>,
        asked: &str,
        said: &mut Said,
        peer: &str,
    ) -> Result<()> {
        tracing::debug!("{peer} asks: {asked:.200}");
        if let Some(period) = heartbeat_period(asked) {
            said.heartbeat = period;
        }
        match self.reply(asked, said) {
            Reply::Done => send(packets, &OK_PACKET, peer).await,
            Reply::Error(code, message) => {
                send(packets, &ServerError { code, message }.encode(), peer).await
            }
            Reply::Row(columns) => {
                // One row of text, with the old end marks.
                const END: [u8; 5] = [0xfe, 0, 0, 2, 0];
                send(packets, &[columns.len() as u8], peer).await?;
                let mut row = Vec::new();
                for (name, value) in columns {
                    let mut column = Vec::new();
                    for word in ["def", "", "", "", name, ""] {
                        put_text(&mut column, word);
                    }
                    // utf8mb4, 1,024 characters, VAR_STRING, no flags, no decimals.
                    column.extend_from_slice(&[12, 45, 0, 0, 4, 0, 0, 0xfd, 0, 0, 0, 0, 0]);
                    send(packets, &column, peer).await?;
                    put_text(&mut row, &value);
                }
                for packet in [&END[..], &row, &END] {
                    send(packets, packet, peer).await?;
                }
                Ok(())
            }
        }
    }

    /// The answer to a statement, whatever its case and spacing.
    fn reply(&self, asked: &str, said: &mut Said) -> Reply {
        let lower = asked.to_ascii_lowercase();
        let words: Vec<&str> = lower.trim_end_matches(';').split_ascii_whitespace().collect();
        match self.identity.family {
            Family::MySql => mysql::reply(&self.identity, &words),
            Family::MariaDb => maria::reply(&self.identity, &words, said),
        }
    }

    fn dump_command(&self) -> u8 {
        match self.identity.family {
            Family::MySql if !self.identity.by_place => command::BINLOG_DUMP_GTID,
            Family::MySql | Family::MariaDb => command::BINLOG_DUMP,
        }
    }

    fn request(&self, body: &[u8], said: &Said) -> Result<Request, ServerError> {
        let refused = |message: &str| ServerError { code: code::FATAL, message: message.into() };
        let request = match self.identity.family {
            Family::MySql if self.identity.by_place => mysql::request_place(body, said),
            Family::MySql => mysql::request(body, said),
            Family::MariaDb => maria::request(body, said, &self.program.base),
        };
        let request = request.map_err(refused)?;
        if request.server_id != self.replica_id {
            return Err(refused("pitr serves one server only, which is another one"));
        }
        Ok(request)
    }

    async fn dump(&self, packets: Packets<TcpStream>, request: Request, peer: &str) -> Ended {
        tracing::debug!("{peer} has {}", request.has);
        let mut newest = self.newest.subscribe();
        let mut number = 0;
        self.newest.send_modify(|n| {
            *n += 1;
            number = *n;
        });
        let mut dump = Dump::new(
            packets,
            &self.program,
            self.identity.server_id,
            self.replica_id,
            request.has,
            request.form,
        );
        let superseded = newest.wait_for(|n| *n != number);
        tokio::select! {
            ended = dump.run(&self.served) => ended,
            _ = superseded => Ended::Closed(Error::unavailable("the replica connected again")),
        }
    }
}

/// An answer with one value.
fn value(value: impl Into<String>) -> Reply {
    Reply::Row(vec![("value", value.into())])
}

fn unknown_variable(name: &str) -> Reply {
    let text = format!("Unknown system variable '{name:.64}'");
    Reply::Error(code::UNKNOWN_SYSTEM_VARIABLE, text)
}

fn not_supported() -> Reply {
    Reply::Error(code::NOT_SUPPORTED, "pitr answers only what replicas ask".into())
}

#[derive(Debug, PartialEq, Eq)]
enum Reply {
    Done,
    /// One row: names of columns and their values.
    Row(Vec<(&'static str, String)>),
    Error(u16, String),
}

fn put_text(to: &mut Vec<u8>, text: &str) {
    super::event::put_lenenc(to, text.len() as u64);
    to.extend_from_slice(text.as_bytes());
}

/// `SET @master_heartbeat_period = N, @source_heartbeat_period = N`, in ns.
fn heartbeat_period(asked: &str) -> Option<Duration> {
    let (_, rest) = asked.split_once("heartbeat_period")?;
    let digits: String =
        rest.trim_start_matches([' ', '=']).chars().take_while(char::is_ascii_digit).collect();
    let period = Duration::from_nanos(digits.parse().ok()?);
    // Never so often that it is work.
    (!period.is_zero()).then(|| period.max(Duration::from_millis(10)))
}

/// What a replica said before it asked for the log.
#[derive(Debug, Default)]
struct Said {
    heartbeat: Duration,
    /// MariaDB: the last transaction that it has of each domain.
    position: Option<BinlogState>,
    /// MariaDB: what it understands.
    capability: u32,
}

/// What a replica asks for.
#[derive(Debug)]
struct Request {
    server_id: u32,
    has: Held,
    form: Form,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn heartbeat_periods_are_read_in_nanoseconds() {
        let asked =
            "SET @master_heartbeat_period = 2000000000, @source_heartbeat_period = 2000000000";
        assert_eq!(heartbeat_period(asked), Some(Duration::from_secs(2)));
        assert_eq!(heartbeat_period("SET @master_heartbeat_period= 0"), None);
        assert_eq!(heartbeat_period("SET NAMES utf8"), None);
    }

    proptest! {
        #[test]
        fn arbitrary_statements_never_panic(statement in ".{0,200}") {
            let _ = heartbeat_period(&statement);
        }
    }
}
