//! One ordinary connection with many packets under way: a packet is sent before the answers to
//! those before it have come.
//!
//! The server answers in order. For packets that pitr composes, the answers are counted: the
//! server forgets to say that more follow behind a `BINLOG` that applied rows (seen with MySQL
//! 9.7). A packet that holds one statement of the source is sent alone, when nothing else is under
//! way, and its answer is read as any client reads it.
//!
//! **Invariant:** the first error ends everything. What is under way behind it was composed so
//! that the server refuses it too (see `script`).

use super::super::auth::{self, ServerError};
use super::super::event::Reader;
use super::super::packet::{ANSWER_LIMIT, Framer, MAX_FRAME, PacketCodec, broken, receive, send};
use crate::engine::Endpoint;
use crate::engine::tls::Stream;
use crate::error::{Error, Result};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use std::sync::Arc;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::codec::FramedRead;

/// How many packets may be under way.
const WINDOW: u32 = 256;
/// How many KiB may be under way; one larger packet may be under way alone.
const WINDOW_KIB: u32 = 16 << 10;
/// How much is collected before it is written, in bytes.
const WRITE_BYTES: usize = 256 << 10;

const COM_QUERY: u8 = 0x03;
const COM_SET_OPTION: u8 = 0x1b;
/// `SERVER_MORE_RESULTS_EXISTS`.
const MORE_RESULTS: u16 = 0x0008;

/// What is to come back for a packet.
#[derive(Debug)]
enum Replies {
    /// As many OK packets as it has statements.
    Counted(u32),
    /// Whatever a statement of the source gives: results, or an error if the source had this one
    /// (0: none).
    AsServed(u16),
}

/// A packet under way.
#[derive(Debug)]
struct Due {
    replies: Replies,
    /// How many frames it was sent in: the answers are numbered on from there.
    frames: usize,
    kib: u32,
    /// What it is, for messages.
    what: String,
}

/// The connection.
pub(super) struct Pipeline {
    io: WriteHalf<Stream>,
    out: BytesMut,
    peer: String,
    due: mpsc::Sender<Due>,
    packets: Arc<Semaphore>,
    kib: Arc<Semaphore>,
    reader: JoinHandle<Result<()>>,
}

impl Pipeline {
    /// Connects, runs `setup` one by one, and allows several statements in a packet.
    ///
    /// # Errors
    /// As [`auth::connect`]; unavailable, if the server does not take one of the statements.
    pub(super) async fn connect(endpoint: &Endpoint, setup: &[&str]) -> Result<Self> {
        let peer = endpoint.to_string();
        let (mut packets, _) = auth::connect(endpoint).await?;
        for statement in setup {
            packets.codec_mut().restart();
            let command = [&[COM_QUERY], statement.as_bytes()].concat();
            send(&mut packets, &command, &peer).await?;
            let answer = receive(&mut packets, &peer).await?;
            if let Some(error) = ServerError::parse(&answer) {
                return Err(error.for_operator(&peer).context(format!("run {statement}")));
            }
        }
        packets.codec_mut().restart();
        // MYSQL_OPTION_MULTI_STATEMENTS_ON is 0.
        send(&mut packets, &[COM_SET_OPTION, 0, 0], &peer).await?;
        let answer = receive(&mut packets, &peer).await?;
        if let Some(error) = ServerError::parse(&answer) {
            return Err(error.for_operator(&peer));
        }
        let parts = packets.into_parts();
        if !parts.read_buf.is_empty() {
            return Err(Error::corrupt(format!("{peer}: more than was asked for")));
        }
        let (read, io) = tokio::io::split(parts.io);
        // Each packet in it holds one of as many permits.
        let (due, dues) = mpsc::channel(WINDOW as usize);
        let (packets, kib) = (
            Arc::new(Semaphore::new(WINDOW as usize)),
            Arc::new(Semaphore::new(WINDOW_KIB as usize)),
        );
        let codec = PacketCodec::new(ANSWER_LIMIT);
        let answers = Answers { packets: FramedRead::new(read, codec), peer: peer.clone() };
        let windows = [Arc::clone(&packets), Arc::clone(&kib)];
        let reader = tokio::spawn(answers.read(dues, windows));
        Ok(Self { io, out: BytesMut::new(), peer, due, packets, kib, reader })
    }

    /// Sends a packet of `statements` statements that pitr composed. Waits only if too much is
    /// under way.
    ///
    /// # Errors
    /// The one of an earlier packet, or of the connection.
    pub(super) async fn send(&mut self, text: &[u8], statements: u32, what: String) -> Result<()> {
        self.queue(text, Replies::Counted(statements), what).await
    }

    /// Sends one statement of the source, alone, and waits until it was run. `error` is the one
    /// that it ended with at the source; 0 for none.
    ///
    /// # Errors
    /// Unavailable, if the server ends it in another way than the source did.
    pub(super) async fn run(&mut self, statement: &[u8], error: u16, what: String) -> Result<()> {
        self.drain().await?;
        self.queue(statement, Replies::AsServed(error), what).await?;
        self.drain().await
    }

    async fn queue(&mut self, text: &[u8], replies: Replies, what: String) -> Result<()> {
        let kib = u32::try_from(text.len() >> 10).unwrap_or(u32::MAX).clamp(1, WINDOW_KIB);
        self.acquire(kib).await?;
        let len = text.len() + 1;
        let frames = len / MAX_FRAME + 1;
        let due = Due { replies, frames, kib, what };
        if self.due.send(due).await.is_err() {
            return Err(self.failure().await);
        }
        let too_long = |error| Error::bug("a packet longer than it says").source(error);
        let mut framer = Framer::new(0);
        framer.begin(len as u64, &mut self.out);
        framer.put(&[COM_QUERY], &mut self.out).map_err(too_long)?;
        for piece in text.chunks(WRITE_BYTES) {
            framer.put(piece, &mut self.out).map_err(too_long)?;
            if self.out.len() >= WRITE_BYTES {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Makes room for one more packet.
    async fn acquire(&mut self, kib: u32) -> Result<()> {
        let free = |packets: &Semaphore, kibs: &Semaphore| {
            packets.available_permits() > 0 && kibs.available_permits() >= kib as usize
        };
        if !free(&self.packets, &self.kib) {
            // What is not sent is not answered.
            self.flush().await?;
        }
        let (packets, kibs) = (Arc::clone(&self.packets), Arc::clone(&self.kib));
        let (Ok(one), Ok(size)) = (packets.acquire().await, kibs.acquire_many(kib).await) else {
            return Err(self.failure().await);
        };
        one.forget();
        size.forget();
        Ok(())
    }

    /// Writes what was collected.
    ///
    /// # Errors
    /// As [`Pipeline::send`].
    pub(super) async fn flush(&mut self) -> Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        let written = self.io.write_all(&self.out).await;
        self.out.clear();
        match written {
            Ok(()) => Ok(()),
            // What the server said before it hung up explains more.
            Err(_) if self.reader.is_finished() => Err(self.failure().await),
            Err(error) => Err(broken(error, &self.peer)),
        }
    }

    /// Waits until nothing is under way.
    ///
    /// # Errors
    /// As [`Pipeline::send`].
    pub(super) async fn drain(&mut self) -> Result<()> {
        self.flush().await?;
        let packets = Arc::clone(&self.packets);
        match packets.acquire_many(WINDOW).await {
            // Given back at once.
            Ok(_all) => Ok(()),
            Err(_) => Err(self.failure().await),
        }
    }

    /// Why the reader ended.
    async fn failure(&mut self) -> Error {
        match (&mut self.reader).await {
            Ok(Err(error)) => error,
            Ok(Ok(())) => Error::bug("the answers ended before the packets did"),
            Err(error) => Error::bug("the reader of answers panicked").source(error),
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// The side that reads.
struct Answers {
    packets: FramedRead<ReadHalf<Stream>, PacketCodec>,
    peer: String,
}

impl Answers {
    async fn read(
        mut self,
        mut due: mpsc::Receiver<Due>,
        windows: [Arc<Semaphore>; 2],
    ) -> Result<()> {
        let [packets, kib] = &windows;
        while let Some(next) = due.recv().await {
            if let Err(error) = self.answer(&next).await {
                packets.close();
                kib.close();
                return Err(error);
            }
            packets.add_permits(1);
            kib.add_permits(next.kib as usize);
        }
        Ok(())
    }

    async fn answer(&mut self, due: &Due) -> Result<()> {
        // Numbers have one byte.
        self.packets.decoder_mut().go_on_at(due.frames as u8);
        match due.replies {
            Replies::Counted(statements) => {
                for index in 0..statements {
                    let packet = self.packet().await?;
                    if let Some(error) = ServerError::parse(&packet) {
                        return Err(self.refused(&error, &due.what));
                    }
                    if packet.first() != Some(&0) {
                        return Err(Error::corrupt(format!(
                            "{}: answer {} of {statements} to {} is no OK",
                            self.peer,
                            index + 1,
                            due.what
                        )));
                    }
                }
                Ok(())
            }
            Replies::AsServed(expected) => self.results(expected, &due.what).await,
        }
    }

    /// Reads what a statement of the source gives.
    async fn results(&mut self, expected: u16, what: &str) -> Result<()> {
        loop {
            let packet = self.packet().await?;
            let status = match packet.first() {
                Some(0xff) => {
                    let error = ServerError::parse(&packet);
                    return match error {
                        Some(error) if error.code == expected => Ok(()),
                        Some(error) => Err(self.refused(&error, what)),
                        None => Err(self.nonsense(what)),
                    };
                }
                Some(0x00) => {
                    let mut at = Reader(packet.get(1..).unwrap_or_default());
                    at.lenenc().and_then(|_rows| at.lenenc()).and_then(|_id| at.u16())
                }
                // A request for a file of ours.
                Some(0xfb) | None => return Err(self.nonsense(what)),
                Some(_) => self.skip_rows(what).await?,
            };
            match status {
                Some(status) if status & MORE_RESULTS != 0 => {}
                Some(_) if expected == 0 => return Ok(()),
                Some(_) => {
                    return Err(Error::unavailable(format!(
                        "{}: {what} succeeded here and ended with error {expected} at the source",
                        self.peer
                    )));
                }
                None => return Err(self.nonsense(what)),
            }
        }
    }

    /// Reads past the columns and rows of a result; gives the status behind them.
    async fn skip_rows(&mut self, what: &str) -> Result<Option<u16>> {
        let mut ends = 0;
        loop {
            let packet = self.packet().await?;
            match packet.first() {
                Some(0xff) => {
                    return Err(match ServerError::parse(&packet) {
                        Some(error) => self.refused(&error, what),
                        None => self.nonsense(what),
                    });
                }
                // EOF: once behind the columns, once behind the rows.
                Some(0xfe) if packet.len() < 9 => {
                    ends += 1;
                    if ends == 2 {
                        let mut at = Reader(packet.get(3..).unwrap_or_default());
                        return Ok(at.u16());
                    }
                }
                _ => {}
            }
        }
    }

    async fn packet(&mut self) -> Result<Bytes> {
        match self.packets.next().await {
            Some(packet) => packet.map_err(|error| broken(error, &self.peer)),
            None => Err(Error::unavailable(format!("{} closed the connection", self.peer))),
        }
    }

    fn refused(&self, error: &ServerError, what: &str) -> Error {
        Error::unavailable(format!(
            "{} did not take {what}: error {}: {}",
            self.peer, error.code, error.message
        ))
        .hint("the target is left as it is, for a look at it; make a fresh one to try again")
    }

    fn nonsense(&self, what: &str) -> Error {
        Error::corrupt(format!("{}: the answer to {what} makes no sense", self.peer))
    }
}
