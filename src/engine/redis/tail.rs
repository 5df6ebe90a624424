//! Captures a replication stream as a replica of the source.
//!
//! One loop reads the stream and hands it over in chunks; beside it one task acknowledges what is
//! durable and one samples the clock, so neither waits while the consumer stalls. The position
//! after every record is known, with the database selected there, because `+CONTINUE` does not
//! repeat the SELECT.
//!
//! **Invariant:** nothing is acknowledged to the source that is not durable, and no clock sample
//! is attached to any other place of the stream than the one at which it was taken.

use super::ack::{self, Acks};
use super::client::{Answer, Link, SILENCE_MAX, Transfer};
use super::clock::Clock;
use super::control::{Control, Sample};
use super::records::Records;
use super::resp::Kind;
use super::{RedisSource, baseline, follow, history, version};
use crate::engine::sample::{self, Samples};
use crate::engine::tls;
use crate::error::{Context, Error, Result};
use crate::position::Position;
use crate::record::{
    BaselineTaken, CHUNK_BYTES, Captured, Chunk, Continuity, Mark, Server, TimeSource,
};
use bytes::{BufMut, Bytes, BytesMut};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, ReadHalf};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How long the first byte of a chunk waits for more.
const HOLD: Duration = Duration::from_millis(50);

/// The same once a client of the source waits for an acknowledgement.
const HOLD_URGENT: Duration = Duration::from_millis(5);

/// How often it is said of an idle source that nothing is missing.
const ALIVE_EVERY: Duration = Duration::from_millis(500);

/// How many clock samples may wait for their bytes.
const SAMPLES_MAX: usize = 4096;

/// How much is read at once.
const READ_BYTES: usize = 256 << 10;

/// Pieces of an RDB file that may wait for their consumer.
const PIECES_WAITING: usize = 4;

/// The work of `Source::tail`.
pub(super) async fn tail(
    source: &RedisSource,
    resume: Option<Position>,
    out: mpsc::Sender<Captured>,
    durable: watch::Receiver<Option<Position>>,
) -> Result<()> {
    let options = &source.options;
    let chosen = follow::choose(options, resume.as_ref()).await?;
    source.follow(&chosen);
    let mut control = Control::connect(&chosen.at).await?;
    let mut time = Control::connect(&chosen.clock).await?;
    let timed = time.server().await?;
    let server = control.server().await?;
    version::check_captured(&server.version)?;
    let skew_micros = time.skew_micros().await?;
    let silence_max = silence_max(&mut control).await;
    // An account that may not do this would leave the archive without a time index.
    time.sample().await?;
    let before = history::look(&mut control).await?;
    let mut link = Link::connect(&chosen.at, server.version.strip_suffix("-valkey")).await?;
    if let Some(asked) = &resume
        && let Some(reached) = before.replica_behind(asked)
    {
        let behind = format!("the source is a replica at offset {reached}, behind {asked}");
        return Err(Error::unavailable(behind)
            .hint("it is waited for until it has caught up with the archive, or is promoted"));
    }
    // A source that was promoted without the last writes that the archive has goes on from there.
    let fork = resume.as_ref().and_then(|asked| before.fork(asked));
    let after = fork.as_ref().or(resume.as_ref());
    let answer = link.psync(after.map(|p| (p.log.as_str(), p.offset))).await?;
    if let (Answer::Full { .. }, Some(asked), None) = (&answer, &resume, &fork)
        && history::look(&mut control).await?.fork(asked).is_some()
    {
        // A copy would be a gap where none need be.
        return Err(Error::unavailable(
            "the source was promoted in this moment; it is asked again",
        ));
    }
    let Some(joined) = join(&mut link, &mut time, &server, resume, answer, &before, &out).await?
    else {
        return Ok(());
    };
    let Joined { at, now, full, continuity } = joined;
    if chosen.clock != chosen.at {
        let stream = time.place(None).await?.position.log;
        if stream != *now.as_ref().unwrap_or(&at.log) {
            return Err(Error::unavailable(format!(
                "{} is a replica of another stream than {}, which is taken for its master",
                chosen.at, chosen.clock
            )));
        }
    }

    let mut tasks = JoinSet::new();
    let (reader, writer, buffered) = link.into_parts();
    let logs = std::iter::once(at.log.clone()).chain(now.clone()).collect();
    // Only what is durable is acknowledged: nothing yet, after a full copy. The first
    // acknowledgement makes the source begin to stream, whatever its offset.
    let initial = if full.is_some() { 0 } else { at.offset };
    let acks = ack::start(&mut tasks, writer, durable, logs, at.offset, initial);
    let (identity, endpoint) = (timed.identity, chosen.clock.clone());
    let clock = Clock { control: Some(time), endpoint, identity };
    let samples = sample::start(&mut tasks, clock, chosen.clock, options.sample_every);
    if let Some(full) = full {
        full.deliver().await?;
    }
    let opened = Captured::Opened { server, at: at.clone(), continuity, skew_micros };
    if out.send(opened).await.is_err() {
        return Ok(());
    }
    let mut current = at;
    if let Some(log) = now {
        current.log = log;
        if out.send(Captured::Log(current.clone())).await.is_err() {
            return Ok(());
        }
    }
    let mut stream = Stream::new(&current, reader, samples, acks, out);
    stream.run(&buffered, &mut tasks, silence_max).await
}

/// How long the source may be silent: at least as long as its own replicas would wait.
async fn silence_max(control: &mut Control) -> Duration {
    let theirs = control.setting("repl-timeout").await.and_then(|secs| secs.parse().ok());
    theirs.map_or(SILENCE_MAX, |secs| Duration::from_secs(secs).max(SILENCE_MAX))
}

/// Where and how the stream goes on after the handshake.
struct Joined {
    /// Its first byte.
    at: Position,
    /// Its replication id from there on, if it is a new one.
    now: Option<String>,
    /// The end of the full copy that came first.
    full: Option<Ending>,
    continuity: Continuity,
}

/// Takes what the source answered, and the full copy that may come with it. `None` if nobody
/// listens any more.
async fn join(
    link: &mut Link,
    control: &mut Control,
    server: &Server,
    resume: Option<Position>,
    answer: Answer,
    before: &history::History,
    out: &mpsc::Sender<Captured>,
) -> Result<Option<Joined>> {
    let (replid, offset) = match (answer, &resume) {
        (Answer::Continue { replid }, Some(asked)) => {
            let now = replid.filter(|now| *now != asked.log);
            let (at, continuity) = match before.fork(asked) {
                Some(fork) => (fork, Continuity::Forks),
                None => (asked.clone(), Continuity::Continues),
            };
            return Ok(Some(Joined { at, now, full: None, continuity }));
        }
        (Answer::Continue { .. }, None) => {
            return Err(Error::corrupt("the source continues a stream that nobody asked for"));
        }
        (Answer::Full { replid, offset }, _) => (replid, offset),
    };
    let continuity = match &resume {
        None => Continuity::Begins,
        Some(asked) => Continuity::Broken(before.broken(asked, &replid, offset)),
    };
    // Read after the copy began: not before the last record that is in it.
    let at = control.time().await?;
    let mut transfer = link.transfer().await?;
    let mut held = VecDeque::new();
    while !transfer.check().has_fields()
        && let Some(piece) = transfer.next(link).await?
    {
        held.push_back(piece);
    }
    let position = baseline::position(&transfer.check().fields()?, replid, offset)?;
    let (sender, pieces) = mpsc::channel(PIECES_WAITING);
    let taken = BaselineTaken {
        position: position.clone(),
        at,
        server: server.clone(),
        kind: "rdb",
        contents: None,
    };
    if out.send(Captured::Baseline { taken, pieces }).await.is_err() {
        return Ok(None);
    }
    let full = pump(link, transfer, held, sender).await?;
    Ok(Some(Joined { at: position, now: None, full: Some(full), continuity }))
}

/// Hands the pieces of a full copy over until all of it was received. What its consumer has not
/// taken then comes with [`Ending`], so that the source need not wait for it.
async fn pump(
    link: &mut Link,
    mut transfer: Transfer,
    mut held: VecDeque<Bytes>,
    sender: mpsc::Sender<Result<Bytes>>,
) -> Result<Ending> {
    while !transfer.is_over() {
        // A consumer that gave up does not stop the stream behind the copy.
        while let Some(piece) = held.pop_front() {
            drop(sender.send(Ok(piece)).await);
        }
        match transfer.next(link).await {
            Ok(piece) => held.extend(piece),
            Err(error) => {
                let told = Error::new(error.class(), error.to_string());
                drop(sender.send(Err(told)).await);
                return Err(error);
            }
        }
    }
    Ok(Ending { held, transfer, sender })
}

/// The end of a full copy that was received whole.
struct Ending {
    held: VecDeque<Bytes>,
    transfer: Transfer,
    sender: mpsc::Sender<Result<Bytes>>,
}

impl Ending {
    async fn deliver(self) -> Result<()> {
        for piece in self.held {
            drop(self.sender.send(Ok(piece)).await);
        }
        if let Err(error) = self.transfer.finish() {
            let told = Error::new(error.class(), error.to_string());
            drop(self.sender.send(Err(told)).await);
            return Err(error.context("full copy from the source"));
        }
        Ok(())
    }
}

/// The stream, from its first byte on.
struct Stream {
    reader: ReadHalf<tls::Stream>,
    samples: Samples<Sample>,
    acks: Arc<Acks>,
    out: mpsc::Sender<Captured>,
    records: Records,
    /// What was received and not handed over yet.
    chunk: Chunk,
    /// When it is to be handed over.
    due: Option<Instant>,
    /// Samples whose bytes were not handed over yet, in order.
    waiting: VecDeque<Mark>,
    /// The last sample taken from the sampler.
    newest: Option<Mark>,
    /// The last [`Captured::Alive`], and when.
    alive: Option<(Mark, Instant)>,
}

/// Nobody listens any more.
struct Closed;

impl Stream {
    fn new(
        at: &Position,
        reader: ReadHalf<tls::Stream>,
        samples: Samples<Sample>,
        acks: Arc<Acks>,
        out: mpsc::Sender<Captured>,
    ) -> Self {
        Self {
            reader,
            samples,
            acks,
            out,
            records: Records::new(at),
            chunk: empty_chunk(at.offset),
            due: None,
            waiting: VecDeque::new(),
            newest: None,
            alive: None,
        }
    }

    /// Reads until the connection ends or nobody listens any more.
    async fn run(
        &mut self,
        buffered: &BytesMut,
        tasks: &mut JoinSet<Error>,
        silence_max: Duration,
    ) -> Result<()> {
        self.chunk.bytes.extend_from_slice(buffered);
        let mut new_from = 0;
        let mut heard = Instant::now();
        loop {
            if self.chunk.bytes.len() > new_from {
                heard = Instant::now();
                let scanned = self.scan(new_from);
                new_from = self.chunk.bytes.len();
                if let Err(error) = scanned {
                    // What was whole before the bytes that are no stream is still good.
                    drop(self.hand_over_whole().await);
                    return Err(error);
                }
            }
            let due = self.due.is_some_and(|due| due <= Instant::now());
            if due || self.chunk.bytes.len() >= CHUNK_BYTES {
                if self.hand_over().await.is_err() {
                    return Ok(());
                }
                // A consumer that stalled is no silence of the source.
                (new_from, heard) = (0, Instant::now());
            }
            let out = self.out.clone();
            let wake = self.due.unwrap_or(heard + silence_max);
            tokio::select! {
                read = read_some(&mut self.reader, &mut self.chunk.bytes) => match read {
                    Ok(0) => {
                        drop(self.hand_over().await);
                        return Err(Error::unavailable("the source closed the connection"));
                    }
                    Ok(_) => {}
                    Err(error) => {
                        drop(self.hand_over().await);
                        return Err(error);
                    }
                },
                sample = self.samples.next() => {
                    if self.sampled(sample).await.is_err() {
                        return Ok(());
                    }
                }
                () = tokio::time::sleep_until(wake) => {
                    if heard + silence_max <= Instant::now() {
                        let secs = silence_max.as_secs();
                        let silent = format!("the source said nothing for {secs} s");
                        return Err(Error::unavailable(silent));
                    }
                }
                Some(ended) = tasks.join_next() => {
                    drop(self.hand_over().await);
                    return Err(ended.unwrap_or_else(|e| Error::bug("capture task").source(e)));
                }
                () = out.closed() => return Ok(()),
            }
        }
    }

    /// Finds the records in the bytes of the chunk from `from` on.
    fn scan(&mut self, from: usize) -> Result<()> {
        let mut hold = HOLD;
        // The stream has no times: the newest sample comes before a landmark.
        let at = self.newest.map(|mark| mark.at);
        let acks = &self.acks;
        self.records.note(&mut self.chunk, from, at, |command| {
            if command.kind == Kind::GetAck {
                acks.want(command.end);
                hold = HOLD_URGENT;
            }
        })?;
        let due = Instant::now() + hold;
        self.due = Some(self.due.map_or(due, |before| before.min(due)));
        Ok(())
    }

    /// Hands over what was received.
    async fn hand_over(&mut self) -> Result<(), Closed> {
        self.due = None;
        if self.chunk.bytes.is_empty() {
            return Ok(());
        }
        // Samples on their way belong to places up to here or to later ones; the former must
        // be in this chunk.
        let settled: Vec<Sample> = self.samples.settle().await.collect();
        for sample in settled {
            self.note(sample);
        }
        let end = self.chunk.end();
        let mut chunk = std::mem::replace(&mut self.chunk, empty_chunk(end));
        while let Some(mark) = self.waiting.front()
            && mark.offset <= end
        {
            if mark.offset >= chunk.start {
                chunk.marks.push(*mark);
            }
            self.waiting.pop_front();
        }
        chunk.whole = self.records.take_whole();
        self.out.send(Captured::Chunk(chunk)).await.map_err(|_| Closed)
    }

    /// Hands over only the bytes before the first record that is not whole.
    async fn hand_over_whole(&mut self) -> Result<(), Closed> {
        let whole =
            self.records.whole_until().map_or(0, |end| end.saturating_sub(self.chunk.start));
        self.chunk.bytes.truncate(usize::try_from(whole).unwrap_or(usize::MAX));
        self.hand_over().await
    }

    /// Takes a sample that arrived while nothing was handed over.
    async fn sampled(&mut self, sample: Sample) -> Result<(), Closed> {
        self.note(sample);
        let Some(mark) = self.newest else { return Ok(()) };
        if !self.chunk.bytes.is_empty() || mark.offset != self.chunk.start {
            return Ok(());
        }
        // All before it was handed over: it is known at once, and no chunk will carry it.
        self.waiting.retain(|waiting| waiting.offset > mark.offset);
        let now = Instant::now();
        let due = self.alive.is_none_or(|(last, when)| {
            last.offset < mark.offset || (last.at < mark.at && when + ALIVE_EVERY <= now)
        });
        if !due {
            return Ok(());
        }
        self.alive = Some((mark, now));
        self.out.send(Captured::Alive(mark)).await.map_err(|_| Closed)
    }

    /// Keeps a sample for the chunk that its place is in.
    fn note(&mut self, sample: Sample) {
        // A server clock that steps back is held until it has caught up.
        let mark = Mark::within(sample.offset, sample.at, sample.round_trip);
        let mark = self.newest.map_or(mark, |newest| mark.held_to(newest.at));
        let late = mark.offset < self.chunk.start;
        if late || self.newest.is_some_and(|newest| newest.offset > mark.offset) {
            return;
        }
        self.newest = Some(mark);
        if self.waiting.len() >= SAMPLES_MAX {
            self.waiting.pop_front();
        }
        self.waiting.push_back(mark);
    }
}

fn empty_chunk(start: u64) -> Chunk {
    Chunk { start, time: TimeSource::Sampled, ..Chunk::default() }
}

/// Reads behind `bytes`, up to the length of a chunk.
async fn read_some(reader: &mut ReadHalf<tls::Stream>, bytes: &mut Vec<u8>) -> Result<usize> {
    let room = CHUNK_BYTES.saturating_sub(bytes.len()).clamp(1, READ_BYTES);
    bytes.reserve(room);
    let mut limited = bytes.limit(room);
    reader.read_buf(&mut limited).await.unavailable(|| "read from the source".into())
}
