//! The replica's side of a replication connection: handshake, PSYNC, the RDB transfer.
//!
//! The exchange is that of `replication.c` (`syncWithMaster`, `slaveTryPartialResynchronization`,
//! `readSyncBulkPayload`). Nothing is announced that is not needed: no listening port (Sentinel
//! then never promotes us), no compression, no second channel.
//!
//! **Invariant:** reading is bounded: a line has a limit, an RDB file streams, and a server that
//! says nothing for [`SILENCE_MAX`] is given up.

use super::rdb::{self, Fields};
use crate::engine::tls::{self, Stream};
use crate::engine::{Endpoint, Secret};
use crate::error::{Class, Context, Error, Result};
use bytes::{Bytes, BytesMut};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

/// How long a server may say nothing: the default of `repl-timeout`. A master that is alive
/// sends a PING every 10 s, and a newline every second while it prepares an RDB file.
pub(super) const SILENCE_MAX: Duration = Duration::from_mins(1);

/// The longest status line taken from a server.
const LINE_BYTES_MAX: usize = 64 << 10;

/// How much is read at once.
const READ_BYTES: usize = 256 << 10;

/// Length of the mark that frames an RDB file of unknown length.
const EOF_MARK_BYTES: usize = 40;

/// What an account needs, as the rules of ACL SETUSER.
pub(super) const ACL: &str = "+ping +psync +replconf +role +time +info +multi +exec +config|get";

/// A command as an array of bulk strings.
pub(super) fn encode(args: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// What the server answered to PSYNC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// It sends everything: an RDB file that holds the stream `replid` up to `offset`.
    Full {
        /// Replication id.
        replid: String,
        /// Offset of the last byte that is in the file.
        offset: u64,
    },
    /// It goes on at the byte asked for.
    Continue {
        /// Its replication id now, if it says so; it may be another one.
        replid: Option<String>,
    },
}

/// A replication connection.
pub(super) struct Link {
    read: ReadHalf<Stream>,
    write: WriteHalf<Stream>,
    buffer: BytesMut,
    address: String,
}

impl Link {
    /// Connects and introduces us as a replica. `valkey` is the version of a Valkey server,
    /// which serves its older RDB format to a replica that does not name its version.
    pub(super) async fn connect(endpoint: &Endpoint, valkey: Option<&str>) -> Result<Self> {
        let (read, write) = tokio::io::split(tls::connect(endpoint).await?);
        let address = endpoint.to_string();
        let mut link = Self { read, write, buffer: BytesMut::new(), address };
        let pong = link.ask(&[b"PING"]).await?;
        let may_follow = ["+PONG", "-NOAUTH", "-NOPERM"].iter().any(|ok| pong.starts_with(ok));
        if !may_follow {
            return Err(link.refusal("PING", &pong));
        }
        link.authenticate(&endpoint.user, &endpoint.password).await?;
        link.demand("REPLCONF", &[b"REPLCONF", b"capa", b"eof", b"capa", b"psync2"]).await?;
        if let Some(version) = valkey {
            link.demand("REPLCONF version", &[b"REPLCONF", b"version", version.as_bytes()]).await?;
        }
        Ok(link)
    }

    async fn authenticate(&mut self, user: &str, password: &Secret) -> Result<()> {
        let password = password.reveal().as_bytes();
        match (user, password) {
            ("", b"") => Ok(()),
            ("", password) => self.demand("AUTH", &[b"AUTH", password]).await,
            (user, password) => self.demand("AUTH", &[b"AUTH", user.as_bytes(), password]).await,
        }
    }

    /// Asks for the RDB file only, without joining the stream. False if the server is too old to
    /// know that.
    pub(super) async fn rdb_only(&mut self) -> Result<bool> {
        let reply = self.ask(&[b"REPLCONF", b"rdb-only", b"1"]).await?;
        match reply.as_str() {
            "+OK" => Ok(true),
            _ if reply.starts_with("-ERR Unrecognized REPLCONF option") => Ok(false),
            _ => Err(self.refusal("REPLCONF rdb-only", &reply)),
        }
    }

    /// Asks for the stream from the byte after `after` on, or for everything.
    pub(super) async fn psync(&mut self, after: Option<(&str, u64)>) -> Result<Answer> {
        let (replid, next) = match after {
            Some((replid, offset)) => (replid, offset.saturating_add(1).to_string()),
            None => ("?", "-1".to_owned()),
        };
        let reply = self.ask(&[b"PSYNC", replid.as_bytes(), next.as_bytes()]).await?;
        let mut words = reply.split(' ');
        let (word, id, offset) = (words.next(), words.next(), words.next());
        let replid = id.filter(|id| is_replid(id)).map(str::to_owned);
        match (word, replid, offset.and_then(|o| o.parse().ok())) {
            (Some("+FULLRESYNC"), Some(replid), Some(offset)) => {
                Ok(Answer::Full { replid, offset })
            }
            (Some("+CONTINUE"), replid, _) if replid.is_some() == id.is_some() => {
                Ok(Answer::Continue { replid })
            }
            _ => Err(self.refusal("PSYNC", &reply)),
        }
    }

    /// Reads the head of the RDB file that follows on [`Answer::Full`].
    pub(super) async fn transfer(&mut self) -> Result<Transfer> {
        let line = self.line().await?;
        let form = match line.strip_prefix('$') {
            Some(rest) => match rest.strip_prefix("EOF:") {
                Some(mark) => mark.as_bytes().try_into().ok().map(Form::Marked),
                None => rest.parse().ok().map(Form::Counted),
            },
            None => None,
        };
        match form {
            Some(form) => Ok(Transfer { form, over: false, check: rdb::Check::new() }),
            None => Err(self.refusal("the RDB file", &line)),
        }
    }

    /// Reads more bytes into the buffer.
    pub(super) async fn fill(&mut self) -> Result<()> {
        if self.buffer.capacity() - self.buffer.len() < READ_BYTES / 4 {
            self.buffer.reserve(READ_BYTES);
        }
        let read = tokio::time::timeout(SILENCE_MAX, self.read.read_buf(&mut self.buffer));
        let address = &self.address;
        match read.await {
            Ok(Ok(0)) => Err(Error::unavailable(format!("{address} closed the connection"))),
            Ok(read) => read.map(drop).unavailable(|| format!("read from {address}")),
            Err(_) => {
                let secs = SILENCE_MAX.as_secs();
                Err(Error::unavailable(format!("{address} said nothing for {secs} s")))
            }
        }
    }

    /// The two directions, and what was read already.
    pub(super) fn into_parts(self) -> (ReadHalf<Stream>, WriteHalf<Stream>, BytesMut) {
        (self.read, self.write, self.buffer)
    }

    async fn demand(&mut self, what: &str, args: &[&[u8]]) -> Result<()> {
        let reply = self.ask(args).await?;
        if reply == "+OK" { Ok(()) } else { Err(self.refusal(what, &reply)) }
    }

    async fn ask(&mut self, args: &[&[u8]]) -> Result<String> {
        let write = self.write.write_all(&encode(args)).await;
        write.unavailable(|| format!("write to {}", self.address))?;
        self.line().await
    }

    /// The next line, without the newlines that a server sends while it is busy.
    async fn line(&mut self) -> Result<String> {
        loop {
            while self.buffer.first() == Some(&b'\n') {
                drop(self.buffer.split_to(1));
            }
            let end = self.buffer.iter().position(|byte| *byte == b'\n');
            if let Some(end) = end {
                let line = self.buffer.split_to(end + 1);
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                let address = &self.address;
                return Err(Error::corrupt(format!("{address} does not speak like Redis")));
            }
            self.fill().await?;
        }
    }

    /// The error for an answer that is not the one hoped for.
    fn refusal(&self, what: &str, reply: &str) -> Error {
        refusal(&self.address, what, reply)
    }
}

/// The error for an answer of `address` to `what` that is not the one hoped for.
fn refusal(address: &str, what: &str, reply: &str) -> Error {
    let shown: String = reply.chars().filter(|c| !c.is_control()).take(200).collect();
    let error = |class| Error::new(class, format!("{address} answered {what} with {shown:?}"));
    let word = reply.split(' ').next().unwrap_or_default();
    match word {
        "-NOAUTH" | "-WRONGPASS" => error(Class::Usage)
            .hint("set `password_file` of the source, and the user in its url if it has one"),
        "-NOPERM" => error(Class::Usage)
            .hint(format!("give the account what it needs: ACL SETUSER <user> on &* {ACL}")),
        "-LOADING" => error(Class::Unavailable).hint("the server still loads its data; wait"),
        "-NOMASTERLINK" | "-MASTERDOWN" => error(Class::Unavailable)
            .hint("the server is a replica without its master; capture from the master instead"),
        "-ERR" if reply.contains("unknown command") => error(Class::Usage).hint(
            "the server does not offer replication; many managed services block or rename PSYNC",
        ),
        "-ERR" if reply.contains("invalid password") || reply.contains("AUTH") => {
            error(Class::Usage).hint("check `password_file` of the source")
        }
        _ if reply.starts_with('-') => error(Class::Unavailable)
            .hint("the server's log says why; a failed BGSAVE needs memory and disk space"),
        _ => error(Class::Corrupt).hint("is that address really a Redis or Valkey server?"),
    }
}

/// Whether this is a replication id: 40 hexadecimal digits.
pub(super) fn is_replid(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// How the end of an RDB file is told.
#[derive(Debug)]
enum Form {
    /// So many bytes are left.
    Counted(u64),
    /// It ends before these bytes. The server sends nothing behind them until it gets an
    /// acknowledgement, so they are the last ones that arrive.
    Marked([u8; EOF_MARK_BYTES]),
}

/// An RDB file on its way in.
#[derive(Debug)]
pub(super) struct Transfer {
    form: Form,
    over: bool,
    check: rdb::Check,
}

impl Transfer {
    /// The next bytes of the file; `None` at its end.
    pub(super) async fn next(&mut self, link: &mut Link) -> Result<Option<Bytes>> {
        while !self.over {
            if let Some(piece) = self.take(&mut link.buffer) {
                self.check.update(&piece);
                return Ok(Some(piece));
            }
            if !self.over {
                link.fill().await.map_err(|e| e.context("receive an RDB file"))?;
            }
        }
        Ok(None)
    }

    /// Whether all bytes of the file were taken off the connection.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// What is known about the file so far.
    pub(super) fn check(&self) -> &rdb::Check {
        &self.check
    }

    /// Says whether the file was whole and sound.
    pub(super) fn finish(self) -> Result<Fields> {
        self.check.finish()
    }

    /// Takes bytes of the file off the buffer, and the mark behind them.
    fn take(&mut self, buffer: &mut BytesMut) -> Option<Bytes> {
        if self.over {
            return None;
        }
        let piece = match &mut self.form {
            Form::Counted(left) => {
                let n = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
                *left -= n as u64;
                self.over = *left == 0;
                buffer.split_to(n)
            }
            Form::Marked(mark) => {
                self.over = buffer.ends_with(mark);
                let piece = buffer.split_to(buffer.len().saturating_sub(EOF_MARK_BYTES));
                if self.over {
                    buffer.clear();
                }
                piece
            }
        };
        (!piece.is_empty()).then(|| piece.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const MARK: &[u8; 40] = b"0123456789abcdef0123456789abcdef01234567";

    /// What comes out of a marked transfer whose bytes arrive in `pieces`.
    fn receive(pieces: &[&[u8]]) -> (Vec<u8>, bool) {
        let check = rdb::Check::new();
        let mut transfer = Transfer { form: Form::Marked(*MARK), over: false, check };
        let (mut buffer, mut out) = (BytesMut::new(), vec![]);
        for piece in pieces {
            assert!(!transfer.over, "over before the last piece");
            buffer.extend_from_slice(piece);
            while let Some(piece) = transfer.take(&mut buffer) {
                out.extend_from_slice(&piece);
            }
        }
        (out, transfer.over)
    }

    #[test]
    fn the_mark_may_be_split_over_any_two_reads() {
        // The first part of the mark stands in the file as well.
        let file = [b"REDIS0010", &MARK[..17], b"end"].concat();
        let sent = [file.as_slice(), MARK].concat();
        for at in 0..=sent.len() {
            let (before, after) = sent.split_at(at);
            let pieces: Vec<_> = [before, after].into_iter().filter(|p| !p.is_empty()).collect();
            assert_eq!(receive(&pieces), (file.clone(), true), "split at {at}");
        }
        let bytes: Vec<_> = sent.chunks(1).collect();
        assert_eq!(receive(&bytes), (file, true));
    }

    #[rstest]
    #[case("-NOAUTH Authentication required.", Class::Usage)]
    #[case("-NOPERM this user has no permissions to run the 'psync' command", Class::Usage)]
    #[case("-LOADING Redis is loading the dataset in memory", Class::Unavailable)]
    #[case("-NOMASTERLINK Can't SYNC while not connected with my master", Class::Unavailable)]
    #[case("-ERR unknown command 'PSYNC', with args beginning with:", Class::Usage)]
    #[case("-ERR BGSAVE failed, replication can't continue", Class::Unavailable)]
    #[case("HTTP/1.1 400 Bad Request", Class::Corrupt)]
    fn refusals_say_what_helps(#[case] reply: &str, #[case] class: Class) {
        let error = refusal("db:6379", "PSYNC", reply);
        assert_eq!(error.class(), class);
        assert!(error.hint_text().is_some());
    }
}
