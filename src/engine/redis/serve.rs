//! pitr as the master of a server that is restored.
//!
//! The target is told `REPLICAOF` us and connects; it gets the baseline as its full copy and the
//! archived stream behind it, and applies both as it would from any master: keys that have
//! expired since are not taken for expired (`db.c`, `keyIsExpired`), so the data becomes what it
//! was. Offsets towards the target are our own count, from zero, under a replication id that was
//! never used: nothing else can ever mistake the target for a copy of the source.
//!
//! **Invariant:** one connection, from the target's address, gets one full copy. A target that
//! comes back gets nothing, and the restore fails.

use super::client::{encode, is_replid};
use crate::engine::{Endpoint, tls};
use crate::error::{Class, Context, Error, Result};
use bytes::{Buf, Bytes, BytesMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long the target may take to connect and to introduce itself.
const CONNECT_MAX: Duration = Duration::from_secs(30);

/// How long the target may be silent: it acknowledges every second, and sends newlines while it
/// loads. Loading from a slow disk can keep it from both for a while.
const SILENCE_MAX: Duration = Duration::from_mins(5);

/// The longest command taken from the target. What replicas say is short.
const COMMAND_BYTES_MAX: usize = 64 << 10;

/// Waits for the target.
#[derive(Debug)]
pub(super) struct Master {
    listener: TcpListener,
    /// Where the target finds us.
    pub(super) address: SocketAddr,
    /// Where the target may come from.
    allowed: Vec<IpAddr>,
}

impl Master {
    /// Listens where the target can reach us: at `listen`, or on loopback.
    pub(super) async fn bind(listen: Option<SocketAddr>, target: &Endpoint) -> Result<Self> {
        let allowed = addresses(target).await?;
        let local = allowed.iter().all(IpAddr::is_loopback);
        let at = match listen {
            Some(at) => at,
            None if allowed.iter().any(IpAddr::is_ipv4) => (Ipv4Addr::LOCALHOST, 0).into(),
            None => (Ipv6Addr::LOCALHOST, 0).into(),
        };
        if at.ip().is_loopback() && !local {
            return Err(Error::usage(format!("{target} cannot reach pitr on loopback"))
                .hint("name an address of this host that the target can reach, with --listen"));
        }
        let listener = TcpListener::bind(at).await.unavailable(|| format!("listen on {at}"))?;
        let mut address = listener.local_addr().unavailable(|| format!("listen on {at}"))?;
        if address.ip().is_unspecified() {
            // The address that this host has towards the target is one that it can answer.
            let tcp = tls::connect_tcp(target).await?;
            let ours = tcp.local_addr().unavailable(|| "look up our own address".into())?;
            address.set_ip(ours.ip());
        }
        Ok(Self { listener, address, allowed })
    }

    /// Takes the target's connection up to its PSYNC. Others are turned away.
    pub(super) async fn accept(self) -> Result<Replica> {
        let deadline = Instant::now() + CONNECT_MAX;
        let mut last = None;
        loop {
            let accepted = tokio::time::timeout_at(deadline, self.listener.accept()).await;
            let (tcp, from) = match accepted {
                Ok(accepted) => accepted.unavailable(|| format!("listen on {}", self.address))?,
                Err(_) => {
                    let (secs, at) = (CONNECT_MAX.as_secs(), self.address);
                    let silent = format!("the target did not connect to {at} in {secs} s");
                    let error = last.unwrap_or_else(|| Error::unavailable(silent));
                    return Err(error.hint("its log says why; a firewall may stand between"));
                }
            };
            let (ip, ours) = (from.ip().to_canonical(), self.address.ip());
            if !self.allowed.contains(&ip) && ip != ours {
                tracing::warn!(%from, "turned away: not the target");
                continue;
            }
            let mut incoming = Incoming { tcp, buffer: BytesMut::new() };
            match tokio::time::timeout_at(deadline, incoming.introduce()).await {
                Ok(Ok(())) => return Ok(Replica::start(incoming)),
                Ok(Err(error)) => last = Some(error),
                Err(_) => {}
            }
        }
    }
}

/// All addresses of the target.
async fn addresses(target: &Endpoint) -> Result<Vec<IpAddr>> {
    let found = tokio::net::lookup_host(target.address()).await;
    let found = found.unavailable(|| format!("look up {target}"))?;
    Ok(found.map(|at| at.ip().to_canonical()).collect())
}

/// A connection that says it is a replica.
struct Incoming {
    tcp: TcpStream,
    buffer: BytesMut,
}

impl Incoming {
    /// Answers what a replica says before PSYNC, one command at a time and in order: a replica
    /// sends several at once (`replication.c`, `syncWithMaster`).
    async fn introduce(&mut self) -> Result<()> {
        self.tcp.set_nodelay(true).unavailable(|| "talk to the target".into())?;
        loop {
            while let Some(command) = next_command(&mut self.buffer)? {
                let name = command.first().map(|n| n.to_ascii_uppercase()).unwrap_or_default();
                let reply: &[u8] = match name.as_slice() {
                    b"PSYNC" => return Ok(()),
                    b"PING" => b"+PONG\r\n",
                    b"AUTH" | b"REPLCONF" => b"+OK\r\n",
                    _ => b"-ERR this is pitr, which restores one server\r\n",
                };
                self.tcp.write_all(reply).await.unavailable(|| "talk to the target".into())?;
            }
            let read = self.tcp.read_buf(&mut self.buffer).await;
            if read.unavailable(|| "talk to the target".into())? == 0 {
                return Err(Error::unavailable("the target closed the connection too early"));
            }
        }
    }
}

/// Takes one command of a replica off the buffer; `None` until it is whole. Newlines between
/// commands, which a loading replica sends, are dropped.
fn next_command(buffer: &mut BytesMut) -> Result<Option<Vec<Bytes>>> {
    while matches!(buffer.first(), Some(b'\n' | b'\r')) {
        buffer.advance(1);
    }
    let mut rest: &[u8] = buffer;
    match parse_command(&mut rest) {
        Ok(Some(command)) => {
            let used = buffer.len() - rest.len();
            buffer.advance(used);
            Ok(Some(command))
        }
        Ok(None) if buffer.len() <= COMMAND_BYTES_MAX => Ok(None),
        Ok(None) | Err(()) => Err(Error::corrupt("the target does not speak like a Redis replica")),
    }
}

/// Takes an array of bulk strings off the front. `None` until it is whole.
fn parse_command(rest: &mut &[u8]) -> Result<Option<Vec<Bytes>>, ()> {
    let mut args = vec![];
    let Some(count) = number(rest, b'*')? else { return Ok(None) };
    for _ in 0..count {
        let Some(len) = number(rest, b'$')? else { return Ok(None) };
        let Some((arg, behind)) = rest.split_at_checked(len) else { return Ok(None) };
        let Some((end, behind)) = behind.split_at_checked(2) else { return Ok(None) };
        if end != b"\r\n" {
            return Err(());
        }
        args.push(Bytes::copy_from_slice(arg));
        *rest = behind;
    }
    Ok(Some(args))
}

/// Takes `<mark><number>\r\n` off the front. `None` until it is whole.
fn number(rest: &mut &[u8], mark: u8) -> Result<Option<usize>, ()> {
    if rest.first().is_some_and(|first| *first != mark) {
        return Err(());
    }
    let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
        return if rest.len() > 32 { Err(()) } else { Ok(None) };
    };
    let (line, behind) = rest.split_at_checked(end + 1).ok_or(())?;
    let digits = line.strip_prefix(&[mark]).and_then(|l| l.strip_suffix(b"\r\n")).ok_or(())?;
    let number = std::str::from_utf8(digits).ok().and_then(|d| d.parse().ok()).ok_or(())?;
    *rest = behind;
    if number > COMMAND_BYTES_MAX { Err(()) } else { Ok(Some(number)) }
}

/// What the target was last heard to say.
#[derive(Debug, Clone)]
struct Heard {
    when: Instant,
    /// The offset that it has applied.
    acked: Option<u64>,
    /// Why nothing more will be heard.
    lost: Option<String>,
}

/// The target, as our replica.
#[derive(Debug)]
pub(super) struct Replica {
    write: OwnedWriteHalf,
    heard: watch::Receiver<Heard>,
    reader: JoinHandle<()>,
    /// Bytes of the stream sent, by our own count.
    sent: u64,
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Replica {
    fn start(incoming: Incoming) -> Self {
        let (read, write) = incoming.tcp.into_split();
        let first = Heard { when: Instant::now(), acked: None, lost: None };
        let (tell, heard) = watch::channel(first);
        let reader = tokio::spawn(listen(read, incoming.buffer, tell));
        Self { write, heard, reader, sent: 0 }
    }

    /// Bytes of the stream sent.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Announces a full copy of `len` bytes, which [`copy`](Self::copy) then sends.
    pub(super) async fn begin_copy(&mut self, replid: &str, len: u64) -> Result<()> {
        debug_assert!(is_replid(replid), "a replication id has 40 digits");
        self.write(format!("+FULLRESYNC {replid} 0\r\n${len}\r\n").as_bytes()).await
    }

    /// Announces a full copy whose length is not known; it ends with `mark`, of 40 bytes.
    pub(super) async fn begin_marked_copy(&mut self, replid: &str, mark: &str) -> Result<()> {
        debug_assert!(is_replid(replid), "a replication id has 40 digits");
        self.write(format!("+FULLRESYNC {replid} 0\r\n$EOF:{mark}\r\n").as_bytes()).await
    }

    /// Sends bytes of the full copy.
    pub(super) async fn copy(&mut self, bytes: &[u8]) -> Result<()> {
        self.write(bytes).await
    }

    /// Sends bytes of the stream.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.write(bytes).await?;
        self.sent += bytes.len() as u64;
        Ok(())
    }

    /// Sends a command of our own: a PING, or the wish for an acknowledgement. Only between
    /// commands of the stream.
    pub(super) async fn say(&mut self, words: &[&[u8]]) -> Result<()> {
        self.send(&encode(words)).await
    }

    /// Waits until the target has applied everything up to `offset`, by our count, and gives the
    /// offset that it says; `None` if it was not so far at `deadline`.
    pub(super) async fn applied(&mut self, offset: u64, deadline: Instant) -> Result<Option<u64>> {
        loop {
            let heard = self.heard.borrow_and_update().clone();
            if let Some(acked) = heard.acked.filter(|acked| *acked >= offset) {
                return Ok(Some(acked));
            }
            if let Some(lost) = heard.lost {
                return Err(lost_target(&lost));
            }
            let silent_at = heard.when + SILENCE_MAX;
            let until = deadline.min(silent_at);
            if tokio::time::timeout_at(until, self.heard.changed()).await.is_err() {
                if silent_at <= deadline {
                    let secs = SILENCE_MAX.as_secs();
                    return Err(lost_target(&format!("it said nothing for {secs} s")));
                }
                return Ok(None);
            }
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let write = self.write.write_all(bytes).await;
        write.map_err(|error| {
            let heard = self.heard.borrow().lost.clone();
            lost_target(&heard.unwrap_or_else(|| error.to_string()))
        })
    }
}

fn lost_target(why: &str) -> Error {
    Error::new(Class::Unavailable, format!("the target broke off the restore: {why}")).hint(
        "its log says why; it holds an incomplete copy now, so empty it (FLUSHALL, FUNCTION \
         FLUSH) before the next attempt",
    )
}

/// Listens to the target until it is gone.
async fn listen(mut read: OwnedReadHalf, mut buffer: BytesMut, tell: watch::Sender<Heard>) {
    let lost = loop {
        match next_command(&mut buffer) {
            Ok(Some(command)) => {
                let acked = acknowledged(&command);
                tell.send_modify(|heard| heard.acked = acked.max(heard.acked));
                continue;
            }
            Ok(None) => {}
            Err(error) => break error.to_string(),
        }
        match read.read_buf(&mut buffer).await {
            Ok(0) => break "it closed the connection".to_owned(),
            Ok(_) => tell.send_modify(|heard| heard.when = Instant::now()),
            Err(error) => break error.to_string(),
        }
    };
    tell.send_modify(|heard| heard.lost = Some(lost));
}

/// The offset in `REPLCONF ACK <offset>`.
fn acknowledged(command: &[Bytes]) -> Option<u64> {
    let [name, word, offset, ..] = command else { return None };
    if !name.eq_ignore_ascii_case(b"REPLCONF") || !word.eq_ignore_ascii_case(b"ACK") {
        return None;
    }
    std::str::from_utf8(offset).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn commands_of_a_replica_are_taken_one_by_one() {
        let mut buffer = BytesMut::from(&b"\n\n"[..]);
        buffer.extend_from_slice(&encode(&[b"REPLCONF", b"capa", b"eof"]));
        buffer.extend_from_slice(b"\n");
        buffer.extend_from_slice(&encode(&[b"replconf", b"ack", b"42"]));
        let first = next_command(&mut buffer).unwrap().unwrap();
        assert_eq!(first, ["REPLCONF", "capa", "eof"]);
        assert_eq!(acknowledged(&first), None);
        let second = next_command(&mut buffer).unwrap().unwrap();
        assert_eq!(acknowledged(&second), Some(42));
        assert_eq!(next_command(&mut buffer).unwrap(), None);
        assert!(next_command(&mut BytesMut::from(&b"GET / HTTP/1.1\r\n"[..])).is_err());
        assert!(next_command(&mut BytesMut::from(&b"*1\r\n$99999999\r\n"[..])).is_err());
    }

    proptest! {
        #[test]
        fn nothing_that_a_replica_says_makes_it_panic(
            bytes in proptest::collection::vec(
                prop_oneof![any::<u8>(), Just(b'*'), Just(b'$'), Just(b'1'), Just(b'\n')],
                0..80,
            ),
        ) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = next_command(&mut buffer) {}
        }
    }
}
