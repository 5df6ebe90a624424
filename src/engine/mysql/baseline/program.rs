//! The dump program as a child: started, read, and seen to its end.
//!
//! **Invariant:** [`Dump::forward`] ends well only if the program did and its closing mark came.

use super::super::flavor::{Family, Flavor};
use super::super::tools::{self, OptionFile};
use super::super::unwrap::Unwrap;
use super::beneath::Beneath;
use super::exact::Exact;
use super::splice::{Name, Part, Splice};
use super::{CLIENT_PACKAGE, MARIADB_PACKAGE, PIECE_BYTES, Work, send};
use crate::error::{Context, Error, Result};
use bytes::{Bytes, BytesMut};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStdout};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// What the program writes when its snapshot is open.
const FIRST_SCHEMA: &[u8] = b"\n-- Current Database: `";
/// That must stand in this many first bytes.
const HEAD_BYTES: usize = 64 << 10;
/// How long it may take, in seconds: writers wait meanwhile.
const HEAD_SECONDS: u64 = 60;
/// MariaDB takes and gives the history of system-versioned tables from this version on.
const HISTORY: (u32, u32, u32) = (10, 11, 0);
/// How much faster the rows that replace the program's go than those, which are read meanwhile: a
/// server drops a connection that takes nothing for a minute.
const PACE: usize = 4;
/// Length of the dump's last bytes that are searched for the closing mark.
const TAIL_BYTES: usize = 256;

/// A running `mysqldump`; killed when dropped.
pub(super) struct Dump<'a> {
    program: &'a str,
    child: Child,
    stdout: ChildStdout,
    stderr: JoinHandle<String>,
    tail: Vec<u8>,
    family: Family,
    /// Keeps the option file until the program has ended.
    _options: OptionFile,
}

impl<'a> Dump<'a> {
    /// Starts the program. With `places`, a MariaDB's writes down where its snapshot is.
    pub(super) fn start(work: &Work<'a>, beneath: &Beneath, places: bool) -> Result<Dump<'a>> {
        let options = OptionFile::create(&tools::Server::Endpoint(&work.options.endpoint))?;
        if beneath.history > 0 && !work.program.history {
            return Err(Error::refused(format!(
                "{} tables are system-versioned, and their history cannot be dumped from this \
                 version of MariaDB",
                beneath.history
            ))
            .hint("MariaDB 10.11 is the first with `mariadb-dump --dump-history`"));
        }
        let program = work.program.name.as_str();
        let mut command = options.command(program);
        command.args([
            "--single-transaction",
            "--hex-blob",
            "--routines",
            "--triggers",
            "--events",
            "--default-character-set=utf8mb4",
            "--quick",
            "--no-tablespaces",
            "--max-allowed-packet=1G",
        ]);
        command.args(work.program.options());
        if places {
            command.arg("--master-data=2");
        }
        command.arg("--databases").arg("--").args(&beneath.schemas);
        let mut child = command
            .spawn()
            .map_err(|error| dump_missing(tools::start_error(program, CLIENT_PACKAGE, error)))?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(Error::bug("a child without pipes"));
        };
        let stderr = tokio::spawn(tools::last_words(stderr));
        let family = work.flavor.family;
        Ok(Dump { program, child, stdout, stderr, tail: Vec::new(), family, _options: options })
    }

    /// Reads the first bytes, up to what is written only when the snapshot is open.
    pub(super) async fn read_head(&mut self) -> Result<BytesMut> {
        let mut head = BytesMut::with_capacity(PIECE_BYTES);
        let reading = async {
            while !head.windows(FIRST_SCHEMA.len()).any(|part| part == FIRST_SCHEMA) {
                if head.len() >= HEAD_BYTES || self.read(&mut head).await? == 0 {
                    return Err(Error::unavailable(format!("{} names no schema", self.program)));
                }
            }
            Ok(())
        };
        match tokio::time::timeout(Duration::from_secs(HEAD_SECONDS), reading).await {
            Ok(read) => read.map(|()| head),
            Err(_) => Err(Error::unavailable(format!(
                "{} wrote nothing for {HEAD_SECONDS} s",
                self.program
            ))),
        }
    }

    /// Hands over the rest, and sees to it that it was all.
    pub(super) async fn forward(
        mut self,
        head: BytesMut,
        exact: &mut Exact,
        out: &mpsc::Sender<Bytes>,
    ) -> Result<()> {
        let mut splice = Splice::new(exact.cares());
        // MariaDB's program ends a wrapped definition on a line of its own, and that loads.
        let mut unwrap = (self.family == Family::MySql).then(Unwrap::default);
        let mut buffer = head;
        loop {
            // Pipes give little at a time: wait for a fuller piece.
            let mut n = 1;
            while n > 0 && buffer.len() < PIECE_BYTES {
                buffer.reserve(PIECE_BYTES);
                n = self.read(&mut buffer).await?;
            }
            self.keep_tail(&buffer);
            splice.feed(&buffer);
            buffer.clear();
            loop {
                match splice.next()? {
                    Part::Text(text) => {
                        let text = match &mut unwrap {
                            Some(unwrap) => unwrap.push(&text),
                            None => text,
                        };
                        send(out, text).await?;
                    }
                    Part::Rows(table) => {
                        self.replace_rows(&table, exact, &mut splice, out).await?;
                    }
                    Part::More => break,
                }
            }
            if n == 0 {
                break;
            }
        }
        let rest = splice.finish();
        self.ended().await?;
        let mut rest = BytesMut::from(rest?.as_ref());
        if let Some(mut unwrap) = unwrap {
            let ready = unwrap.push(&rest);
            rest = BytesMut::from(ready.as_ref());
            rest.extend_from_slice(&unwrap.finish());
        }
        send(out, rest.freeze()).await
    }

    /// Hands over the rows of a table, while the program's own are read and dropped.
    async fn replace_rows(
        &mut self,
        table: &Name,
        exact: &mut Exact,
        splice: &mut Splice,
        out: &mpsc::Sender<Bytes>,
    ) -> Result<()> {
        let (tx, mut rows) = mpsc::channel(1);
        let copying = async move { exact.copy(table, &tx).await };
        tokio::pin!(copying);
        let mut buffer = BytesMut::new();
        let (mut sent, mut dropped, mut copied) = (0, 0, false);
        loop {
            tokio::select! {
                result = &mut copying, if !copied => {
                    result?;
                    copied = true;
                }
                piece = rows.recv() => match piece {
                    Some(piece) => {
                        sent += piece.len();
                        send(out, piece).await?;
                    }
                    None if copied => return Ok(()),
                    // Only what is over closes the channel.
                    None => {
                        (&mut copying).await?;
                        return Ok(());
                    }
                },
            }
            while splice.is_among_rows() && dropped * PACE < sent {
                buffer.reserve(PIECE_BYTES);
                let n = self.read(&mut buffer).await?;
                if n == 0 {
                    // Whether it ended well is asked for at the end.
                    break;
                }
                dropped += n;
                self.keep_tail(&buffer);
                splice.skip(&buffer)?;
                buffer.clear();
            }
        }
    }

    /// Waits for the program's end, and sees to it that it was a good one.
    async fn ended(&mut self) -> Result<()> {
        let status =
            self.child.wait().await.unavailable(|| format!("wait for {}", self.program))?;
        let stderr = (&mut self.stderr).await.unwrap_or_default();
        if !status.success() {
            return Err(tools::failed(self.program, status, &stderr));
        }
        let complete = self.tail.windows(COMPLETED.len()).any(|part| part == COMPLETED);
        if !complete {
            return Err(Error::unavailable(format!(
                "{} ended without its closing mark: {stderr}",
                self.program
            )));
        }
        if !stderr.is_empty() {
            tracing::warn!("{}: {stderr}", self.program);
        }
        Ok(())
    }

    async fn read(&mut self, into: &mut BytesMut) -> Result<usize> {
        self.stdout
            .read_buf(into)
            .await
            .unavailable(|| format!("read what {} writes", self.program))
    }

    fn keep_tail(&mut self, bytes: &[u8]) {
        let from = bytes.len().saturating_sub(TAIL_BYTES);
        self.tail.extend_from_slice(bytes.get(from..).unwrap_or_default());
        let surplus = self.tail.len().saturating_sub(TAIL_BYTES);
        self.tail.drain(..surplus);
    }

    /// A dump without a head has mostly failed: then its own words are the better error.
    pub(super) async fn explain(mut self, error: Error) -> Error {
        // It may also still run: only an end of its own within a moment counts.
        let wait = tokio::time::timeout(Duration::from_secs(5), self.child.wait());
        match wait.await {
            Ok(Ok(status)) if !status.success() => {
                let stderr = (&mut self.stderr).await.unwrap_or_default();
                tools::failed(self.program, status, &stderr)
            }
            _ => error,
        }
    }
}

const COMPLETED: &[u8] = b"\n-- Dump completed";

fn dump_missing(error: Error) -> Error {
    match error.hint_text() {
        Some(hint) => {
            let hint = format!("{hint}, or name it with `dump_command` in the source's settings");
            error.hint(hint)
        }
        None => error,
    }
}

/// A dump program that fits the server.
#[derive(Debug)]
pub(super) struct Program {
    /// Its name or path.
    name: String,
    family: Family,
    /// Whether it writes the history of system-versioned tables.
    history: bool,
}

impl Program {
    /// The one that was named, else the one of the server's family on PATH.
    ///
    /// # Errors
    /// Unavailable, if there is none, if it is of the other family, or older than the server.
    pub(super) async fn find(given: Option<&str>, server: &str, flavor: Flavor) -> Result<Self> {
        let (names, package): (&[&str], _) = match flavor.family {
            Family::MySql => (&["mysqldump"], CLIENT_PACKAGE),
            // Older ones have the old name only.
            Family::MariaDb => (&["mariadb-dump", "mysqldump"], MARIADB_PACKAGE),
        };
        let mut first = None;
        for name in given.as_ref().map_or(names, std::slice::from_ref) {
            match fitting(name, package, server, flavor).await {
                Ok(history) => {
                    return Ok(Self { name: (*name).to_owned(), family: flavor.family, history });
                }
                // What is wrong with the first says more.
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(first.unwrap_or_else(|| Error::bug("no dump program to look for")))
    }

    /// Its name or path.
    pub(super) fn into_name(self) -> String {
        self.name
    }

    fn options(&self) -> &'static [&'static str] {
        match self.family {
            Family::MySql => &["--set-gtid-purged=OFF", "--loose-column-statistics=0"],
            Family::MariaDb if self.history => &["--dump-history"],
            Family::MariaDb => &[],
        }
    }
}

/// Sees to it that the program is one for this server. Gives whether it writes history.
async fn fitting(name: &str, package: &str, server: &str, flavor: Flavor) -> Result<bool> {
    let version = tools::program_version(name, package).await.map_err(dump_missing)?;
    let hint = "install the client of the server's version, or name it with `dump_command`";
    let found = Flavor::parse(&version);
    if found.is_none_or(|found| found.family != flavor.family) {
        return Err(Error::unavailable(format!(
            "{name} is of another family ({version}) and cannot dump {} {server}",
            flavor.family
        ))
        .hint(hint));
    }
    // An older one leaves out silently what it does not know.
    if tools::major_minor(&version) < tools::major_minor(server) {
        return Err(Error::unavailable(format!(
            "{name} {version} is older than the server ({server})"
        ))
        .hint(hint));
    }
    Ok(flavor.is_maria() && flavor.number >= HISTORY)
}
