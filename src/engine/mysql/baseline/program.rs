//! The dump program as a child: started, read, and seen to its end.
//!
//! **Invariant:** [`Dump::forward`] ends well only if the program did and its closing mark came.

use super::super::tools::{self, OptionFile};
use super::super::unwrap::Unwrap;
use super::beneath::Beneath;
use super::exact::Exact;
use super::splice::{Part, Splice};
use super::{CLIENT_PACKAGE, PIECE_BYTES, Work, send};
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
/// Length of the dump's last bytes that are searched for the closing mark.
const TAIL_BYTES: usize = 256;

/// A running `mysqldump`; killed when dropped.
pub(super) struct Dump<'a> {
    program: &'a str,
    child: Child,
    stdout: ChildStdout,
    stderr: JoinHandle<String>,
    tail: Vec<u8>,
    /// Keeps the option file until the program has ended.
    _options: OptionFile,
}

impl<'a> Dump<'a> {
    /// Starts the program.
    pub(super) fn start(work: &Work<'a>, beneath: &Beneath) -> Result<Dump<'a>> {
        let options = OptionFile::create(&tools::Server::Endpoint(&work.options.endpoint))?;
        let mut command = options.command(work.program);
        command.args([
            "--single-transaction",
            "--set-gtid-purged=OFF",
            "--hex-blob",
            "--routines",
            "--triggers",
            "--events",
            "--default-character-set=utf8mb4",
            "--quick",
            "--no-tablespaces",
            "--max-allowed-packet=1G",
            "--loose-column-statistics=0",
        ]);
        command.arg("--databases").arg("--").args(&beneath.schemas);
        let mut child = command.spawn().map_err(|error| {
            dump_missing(tools::start_error(work.program, CLIENT_PACKAGE, error))
        })?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(Error::bug("a child without pipes"));
        };
        let stderr = tokio::spawn(tools::last_words(stderr));
        let program = work.program;
        Ok(Dump { program, child, stdout, stderr, tail: Vec::new(), _options: options })
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
        let mut unwrap = Unwrap::default();
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
                    Part::Text(text) => send(out, unwrap.push(&text)).await?,
                    // What the program has to say meanwhile, it says later.
                    Part::Rows(table) => exact.copy(&table, out).await?,
                    Part::More => break,
                }
            }
            if n == 0 {
                break;
            }
        }
        let rest = splice.finish();
        self.ended().await?;
        send(out, unwrap.push(&rest?)).await?;
        send(out, unwrap.finish()).await
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

/// Sees to it that the program is one for this server.
pub(super) async fn check_program(program: &str, server: &str) -> Result<()> {
    let version = tools::program_version(program, CLIENT_PACKAGE).await.map_err(dump_missing)?;
    let hint = "install the client of the server's version, or name it with `dump_command`";
    if tools::is_mariadb(&version) {
        return Err(Error::unavailable(format!(
            "{program} is MariaDB's ({version}) and cannot dump MySQL {server}"
        ))
        .hint(hint));
    }
    // An older one leaves out silently what it does not know.
    if tools::major_minor(&version) < tools::major_minor(server) {
        return Err(Error::unavailable(format!(
            "{program} {version} is older than the server ({server})"
        ))
        .hint(hint));
    }
    Ok(())
}
