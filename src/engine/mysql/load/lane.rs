//! A connection that runs statements of any length, one after the other.
//!
//! A statement is sent as it comes in: its length need not be known, since the protocol cuts a
//! packet into frames of 16 MiB − 1 and only the last one is shorter (MySQL manual, "Protocol
//! Basics"). So a row of 1 GB passes through one frame's worth of memory.
//!
//! **Invariant:** a statement counts as run only when the server said so, with all its results.

use super::super::auth::{self, ServerError};
use super::super::event::Reader;
use super::super::packet::{MAX_FRAME, Packets, broken, next_frame_head, receive};
use super::super::tools::Server;
use crate::engine::tls::Stream;
use crate::engine::{Endpoint, TlsOptions};
use crate::error::{Class, Error, Result};
use bytes::{Buf, Bytes};
use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

const COM_QUERY: u8 = 0x03;
const COM_SET_OPTION: u8 = 0x1b;
/// `SERVER_MORE_RESULTS_EXISTS` among the status flags.
const MORE_RESULTS: u16 = 0x0008;
/// `SERVER_STATUS_NO_BACKSLASH_ESCAPES`.
const NO_BACKSLASH_ESCAPES: u16 = 0x0200;

/// How long a server that hung up is listened to.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why a statement did not run.
#[derive(Debug)]
pub(super) enum Failed {
    /// The server does not take it; the connection goes on.
    Refused(ServerError),
    /// The connection is of no use any more.
    Broken(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Broken(error)
    }
}

impl Failed {
    /// As an error, with what was being done. It is worth a new attempt, if it says nothing about
    /// the statement.
    pub(super) fn context(self, doing: impl fmt::Display) -> Error {
        let (error, ended) = match self {
            Self::Refused(ServerError { code, message }) => {
                let ended = auth::ENDED.contains(&code);
                (Error::unavailable(format!("error {code}: {message}")), ended)
            }
            Self::Broken(error) => {
                let lost = error.class() == Class::Unavailable;
                (error, lost)
            }
        };
        let error = error.context(doing);
        if ended { error.worth_again() } else { error }
    }

    /// Whether the server gave this up for the sake of another connection's statement, and left
    /// nothing of it: to be run again.
    pub(super) fn is_deadlock(&self) -> bool {
        matches!(self, Self::Refused(error) if matches!(error.code, 1205 | 1213))
    }
}

/// A row of text: one value for each column, if it is not NULL.
pub(super) type TextRow = Vec<Option<Bytes>>;

/// The connection.
pub(super) struct Lane {
    packets: Packets<Stream>,
    peer: String,
    status: u16,
    /// Its number at the server.
    pub(super) id: u32,
    /// How many of the dump's settings are in force here; see `tables.rs`.
    pub(super) settings: u64,
}

impl Lane {
    /// Connects, and lets several statements come at once.
    pub(super) async fn connect(server: &Server<'_>) -> Result<Self> {
        let ((packets, greeting), peer) = match server {
            Server::Endpoint(endpoint) => (auth::connect(endpoint).await?, endpoint.to_string()),
            Server::Socket { path, user, password } => {
                let account = Endpoint {
                    host: path.display().to_string(),
                    port: 0,
                    user: (*user).to_owned(),
                    password: (*password).clone(),
                    tls: TlsOptions::default(),
                };
                (auth::connect_local(path, &account).await?, path.display().to_string())
            }
        };
        let id = greeting.connection_id;
        let mut lane = Self { packets, peer, status: 0, id, settings: 0 };
        // MYSQL_OPTION_MULTI_STATEMENTS_ON.
        lane.send(COM_SET_OPTION, &[0, 0]).await?;
        let answer = receive(&mut lane.packets, &lane.peer).await?;
        match ServerError::parse(&answer) {
            Some(error) => Err(error.for_operator(&lane.peer)),
            None => Ok(lane),
        }
    }

    /// Whether backslashes in text are plain ones, after the statement before.
    pub(super) fn plain_backslash(&self) -> bool {
        self.status & NO_BACKSLASH_ESCAPES != 0
    }

    /// Runs a statement, or several with `;` between them, and drops the rows that it gives.
    pub(super) async fn run(&mut self, statement: &[u8]) -> Result<(), Failed> {
        self.rows(statement).await.map(drop)
    }

    /// Runs a statement and gives the rows of its last result.
    pub(super) async fn rows(&mut self, statement: &[u8]) -> Result<Vec<TextRow>, Failed> {
        let sent = self.send(COM_QUERY, statement).await;
        self.answer_to(sent).await
    }

    /// Runs a statement whose bytes are still coming. A channel that closes before
    /// [`Chunk::End`] came breaks the connection, so that the server drops what it has of it.
    pub(super) async fn run_long(&mut self, parts: mpsc::Receiver<Chunk>) -> Result<(), Failed> {
        let sent = self.send_long(parts).await;
        self.answer_to(sent).await.map(drop)
    }

    async fn answer_to(&mut self, sent: Result<()>) -> Result<Vec<TextRow>, Failed> {
        let Err(error) = sent else { return self.results().await };
        // A server that refuses a packet says why, and hangs up: its words are the better error.
        match tokio::time::timeout(LAST_WORDS, self.results()).await {
            Ok(Err(Failed::Refused(error))) => Err(Failed::Refused(error)),
            _ => Err(Failed::Broken(error)),
        }
    }

    /// Writes a command whole.
    async fn send(&mut self, command: u8, payload: &[u8]) -> Result<()> {
        let mut sequence = 0;
        let mut rest = payload;
        let mut room = MAX_FRAME - 1;
        let mut first = Some(command);
        let io = self.packets.get_mut();
        let mut sent = Ok(());
        loop {
            let (now, later) = rest.split_at_checked(room).unwrap_or((rest, &[]));
            let len = now.len() + usize::from(first.is_some());
            let mut head = next_frame_head(len, &mut sequence).to_vec();
            head.extend(first.take());
            sent = match sent {
                Ok(()) => write_two(io, &head, now).await,
                failed => failed,
            };
            // A frame of full length is always followed by another one.
            if len < MAX_FRAME || sent.is_err() {
                break;
            }
            rest = later;
            room = MAX_FRAME;
        }
        let sent = match sent {
            Ok(()) => io.flush().await,
            failed => failed,
        };
        self.packets.codec_mut().go_on_at(sequence);
        sent.map_err(|error| broken(error, &self.peer))
    }

    async fn send_long(&mut self, mut parts: mpsc::Receiver<Chunk>) -> Result<()> {
        let peer = &self.peer;
        let io = self.packets.get_mut();
        let mut sequence = 0;
        let mut held = VecDeque::from([Bytes::from_static(&[COM_QUERY])]);
        let mut len = 1;
        let mut ended = false;
        while !ended || len > 0 {
            while !ended && len < MAX_FRAME {
                match parts.recv().await {
                    Some(Chunk::Bytes(bytes)) => {
                        len += bytes.len();
                        held.push_back(bytes);
                    }
                    Some(Chunk::End) => ended = true,
                    // Whoever reads the dump has ended, and says why.
                    None => return Err(Error::corrupt("the statement is cut")),
                }
            }
            let full = len >= MAX_FRAME;
            let mut left = len.min(MAX_FRAME);
            len -= left;
            let head = next_frame_head(left, &mut sequence);
            let mut sent = io.write_all(&head).await;
            while left > 0
                && sent.is_ok()
                && let Some(mut bytes) = held.pop_front()
            {
                let now = bytes.split_to(left.min(bytes.len()));
                left -= now.len();
                if bytes.has_remaining() {
                    held.push_front(bytes);
                }
                sent = io.write_all(&now).await;
            }
            if sent.is_ok() && ended && full && len == 0 {
                // So that the packet does not end in a frame of full length.
                sent = io.write_all(&next_frame_head(0, &mut sequence)).await;
            }
            if let Err(error) = sent {
                self.packets.codec_mut().go_on_at(sequence);
                return Err(broken(error, peer));
            }
        }
        let flushed = io.flush().await.map_err(|error| broken(error, peer));
        self.packets.codec_mut().go_on_at(sequence);
        flushed
    }

    /// Reads all results of a command.
    async fn results(&mut self) -> Result<Vec<TextRow>, Failed> {
        loop {
            let rows = self.result().await?;
            if self.status & MORE_RESULTS == 0 {
                return Ok(rows);
            }
        }
    }

    async fn result(&mut self) -> Result<Vec<TextRow>, Failed> {
        let packet = self.packet().await?;
        let odd = || Failed::Broken(Error::corrupt("not an answer to a statement"));
        let mut at = Reader(&packet);
        match packet.first() {
            Some(0x00) => {
                at.u8();
                let _affected_rows = at.lenenc();
                let _last_id = at.lenenc();
                self.status = at.u16().ok_or_else(odd)?;
                return Ok(vec![]);
            }
            // A request for a file of this host.
            None | Some(0xfb) => return Err(odd()),
            Some(_) => {}
        }
        let columns = at.lenenc().ok_or_else(odd)?;
        for _ in 0..columns {
            self.packet().await?;
        }
        let end = self.packet().await?;
        self.end(&end).ok_or_else(odd)?;
        let mut rows = vec![];
        loop {
            let packet = self.packet().await?;
            if packet.first() == Some(&0xfe) && packet.len() < 9 {
                self.end(&packet).ok_or_else(odd)?;
                return Ok(rows);
            }
            rows.push(text_row(&packet, columns).ok_or_else(odd)?);
        }
    }

    /// Reads the packet behind columns or rows.
    fn end(&mut self, packet: &[u8]) -> Option<()> {
        let mut at = Reader(packet);
        (at.u8()? == 0xfe).then_some(())?;
        let _warnings = at.u16()?;
        self.status = at.u16()?;
        Some(())
    }

    async fn packet(&mut self) -> Result<Bytes, Failed> {
        let packet = receive(&mut self.packets, &self.peer).await?;
        match ServerError::parse(&packet) {
            Some(error) => Err(Failed::Refused(error)),
            None => Ok(packet),
        }
    }
}

/// A part of a statement, or its end.
#[derive(Debug)]
pub(super) enum Chunk {
    Bytes(Bytes),
    End,
}

async fn write_two(io: &mut Stream, head: &[u8], body: &[u8]) -> std::io::Result<()> {
    io.write_all(head).await?;
    io.write_all(body).await
}

fn text_row(packet: &Bytes, columns: u64) -> Option<TextRow> {
    let mut at = Reader(packet);
    let mut row = vec![];
    for _ in 0..columns {
        if at.0.first() == Some(&0xfb) {
            at.u8()?;
            row.push(None);
        } else {
            let len = usize::try_from(at.lenenc()?).ok()?;
            row.push(Some(packet.slice_ref(at.bytes(len)?)));
        }
    }
    Some(row)
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane").field("peer", &self.peer).finish_non_exhaustive()
    }
}
