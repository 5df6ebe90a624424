//! Follows the files, and hands over what is in them.
//!
//! **Invariant:** nothing is handed over that a server may take back: what one that died had written
//! of a record is not taken for the beginning of the one that comes in its place.

use super::chain::{Chain, Step};
use super::clock::{self, End, FileClock, OFF, WAS_OFF};
use super::{AofSource, blocking};
use crate::clock::Timestamp;
use crate::engine::redis::control::Control;
use crate::engine::redis::resp::Kind;
use crate::engine::redis::{Records, version};
use crate::engine::sample;
use crate::engine::timing::Timing;
use crate::error::{Class, Error, Result};
use crate::position::Position;
use crate::record::{CHUNK_BYTES, Captured, Chunk, Continuity, Mark, Server, TimeSource};
use std::path::Path;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How often it is looked whether there is more. A rewrite of little data shows both its
/// increments for some milliseconds only.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How long the first byte of a chunk waits for more.
const HOLD: Duration = Duration::from_millis(50);

/// The work of `Source::tail`.
pub(super) async fn tail(
    source: &AofSource,
    resume: Option<Position>,
    out: mpsc::Sender<Captured>,
    durable: watch::Receiver<Option<Position>>,
) -> Result<()> {
    let options = &source.options;
    let mut control = Control::connect(&options.endpoint).await?;
    let server = control.server().await?;
    version::check_captured(&server.version)?;
    check_folder(source, &mut control).await?;
    let skew_micros = control.skew_micros().await?;
    let (chain, at, continuity) = open(source, &mut control, resume, &server).await?;

    let mut tasks = JoinSet::new();
    let (trouble_in, trouble) = watch::channel(None);
    let (written_in, written) = watch::channel(None);
    let file_clock = FileClock {
        control: Some(control),
        endpoint: options.endpoint.clone(),
        identity: server.identity.clone(),
        dir: source.aof.dir.clone(),
        written: written_in,
        trouble: trouble_in,
        silent_since: None,
    };
    let samples =
        sample::start(&mut tasks, file_clock, options.endpoint.clone(), options.sample_every);
    let opened = Captured::Opened { server, at: at.clone(), continuity, skew_micros };
    if out.send(opened).await.is_err() {
        return Ok(());
    }
    let timing = Timing::of(samples, tasks);
    let mut stream = Stream {
        source,
        out,
        timing,
        records: Records::new(&at),
        chunk: empty_chunk(at.offset),
        log: at.log,
        notes: vec![],
        newest: None,
        due: None,
    };
    stream.run(chain, &written, &trouble, durable).await
}

/// Whether the folder is where the server writes, as far as both can be seen.
pub(super) async fn check_folder(source: &AofSource, control: &mut Control) -> Result<()> {
    let dir = &source.aof.dir;
    if !control.persistence().await?.enabled {
        source.memory().broken = Some(WAS_OFF.into());
        return Err(Error::refused(OFF).hint("CONFIG SET appendonly yes"));
    }
    let (Some(home), Some(name)) =
        (control.setting("dir").await, control.setting("appenddirname").await)
    else {
        return Ok(());
    };
    let theirs = Path::new(&home).join(name);
    match (theirs.canonicalize(), dir.canonicalize()) {
        (Ok(theirs), Ok(ours)) if theirs != ours => Err(Error::usage(format!(
            "aof_dir is {}, and the server writes to {}",
            ours.display(),
            theirs.display()
        ))
        .hint(format!("aof_dir = {:?}", theirs.display().to_string()))),
        // A server in a container knows its folder by another path.
        _ => Ok(()),
    }
}

/// The files from `resume` on, or from the current base on, with the reason.
async fn open(
    source: &AofSource,
    control: &mut Control,
    resume: Option<Position>,
    server: &Server,
) -> Result<(Chain, Position, Continuity)> {
    let (dir, pins) = (source.aof.dir.clone(), source.aof.pins.clone());
    let (broken, last, identity) = {
        let memory = source.memory();
        (memory.broken.clone(), memory.last.clone(), memory.identity.clone())
    };
    let same_server = identity == server.identity;
    let resumed = match (resume, broken) {
        (None, _) => Err(None),
        (Some(_), Some(reason)) => Err(Some(reason)),
        (Some(at), None) => {
            blocking(move || {
                let chain = Chain::resume(&dir, &pins, &at, last.as_ref(), same_server)?;
                Ok(chain.map(|chain| (chain, at)).map_err(Some))
            })
            .await?
        }
    };
    let opened = match resumed {
        Ok((chain, at)) => (chain, at, Continuity::Continues),
        Err(reason) => {
            // While the first base is written, the manifest names files that nothing follows.
            clock::place(control, &source.aof.dir).await?;
            let (dir, pins) = (source.aof.dir.clone(), source.aof.pins.clone());
            let chain = blocking(move || Chain::begin(&dir, &pins)).await?;
            let at = Position::new(chain.name(), 0);
            (chain, at, reason.map_or(Continuity::Begins, Continuity::Broken))
        }
    };
    let mut memory = source.memory();
    memory.broken = None;
    memory.identity.clone_from(&server.identity);
    memory.marked = None;
    memory.tails += 1;
    Ok(opened)
}

/// The log, from its first byte on.
struct Stream<'a> {
    source: &'a AofSource,
    out: mpsc::Sender<Captured>,
    timing: Timing,
    log: String,
    records: Records,
    /// What was read and not handed over yet.
    chunk: Chunk,
    /// What annotations in it say of the time.
    notes: Vec<Mark>,
    /// The latest time of a mark that was handed over.
    newest: Option<Timestamp>,
    /// When it is to be handed over.
    due: Option<Instant>,
}

/// Nobody listens any more.
struct Closed;

impl Stream<'_> {
    async fn run(
        &mut self,
        mut chain: Chain,
        written: &watch::Receiver<Option<End>>,
        trouble: &watch::Receiver<Option<String>>,
        mut durable: watch::Receiver<Option<Position>>,
    ) -> Result<()> {
        loop {
            // In this order: what was written before the trouble is read.
            let said = trouble.borrow().clone();
            let written = written.borrow().clone();
            let (offset, room) =
                (self.records.offset(), CHUNK_BYTES.saturating_sub(self.chunk.bytes.len()));
            let (back, step) = blocking(move || {
                let step = chain.step(offset, room, written.as_ref());
                Ok((chain, step))
            })
            .await?;
            chain = back;
            let is_idle = match step? {
                Step::Bytes(bytes) => {
                    if let Err(error) = self.scan(&bytes) {
                        drop(self.hand_over_whole().await);
                        return Err(error);
                    }
                    false
                }
                Step::Idle => true,
                Step::Next(next) => {
                    if !self.records.at_record_start() {
                        return self.broken(format!("{} ends within a record", self.log)).await;
                    }
                    if self.hand_over().await.is_err() || self.enter(next).await.is_err() {
                        return Ok(());
                    }
                    chain.advance();
                    false
                }
                Step::Broken(reason) => return self.broken(reason).await,
                Step::Shrunk(len) => {
                    drop(self.hand_over_whole().await);
                    return Err(Error::unavailable(format!(
                        "{} was cut to {len} bytes, after {offset} were read",
                        self.log
                    )));
                }
            };
            let due = self.due.is_some_and(|due| due <= Instant::now());
            if (due || self.chunk.bytes.len() >= CHUNK_BYTES) && self.hand_over().await.is_err() {
                return Ok(());
            }
            if durable.has_changed().unwrap_or(false) {
                let done = durable.borrow_and_update().as_ref().map(|at| at.log.clone());
                if let Some(log) = done {
                    chain.release_before(&log)?;
                }
            }
            if !is_idle {
                continue;
            }
            if let Some(said) = said {
                // What is not whole, nobody completes.
                drop(self.hand_over_whole().await);
                if said == OFF {
                    self.source.memory().broken = Some(WAS_OFF.into());
                }
                return Err(Error::unavailable(said));
            }
            let out = self.out.clone();
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                end = self.timing.next() => {
                    self.timing.note(end, &self.log, self.chunk.start);
                    if self.alive().await.is_err() {
                        return Ok(());
                    }
                }
                () = out.closed() => return Ok(()),
            }
        }
    }

    /// Ends the connection, so that the next one begins anew behind a gap.
    async fn broken(&mut self, reason: String) -> Result<()> {
        drop(self.hand_over_whole().await);
        self.source.memory().broken = Some(reason.clone());
        Err(Error::new(Class::Unavailable, reason)
            .hint("the capture goes on behind the gap, with the server's current base"))
    }

    /// Takes bytes in, and finds the records in them.
    fn scan(&mut self, bytes: &[u8]) -> Result<()> {
        let from = self.chunk.bytes.len();
        self.chunk.bytes.extend_from_slice(bytes);
        self.due.get_or_insert_with(|| Instant::now() + HOLD);
        let at = self.notes.last().map(|note| note.at).or(self.newest);
        let notes = &mut self.notes;
        self.records.note(&mut self.chunk, from, at, |command| {
            if let Kind::Note(Some(secs)) = command.kind {
                // What stands before was done before this second.
                let at = Timestamp::from_secs(i64::try_from(secs).unwrap_or(i64::MAX)).shifted(-1);
                notes.push(Mark::new(command.start, at));
            }
        })
    }

    /// Hands over what was read.
    async fn hand_over(&mut self) -> Result<(), Closed> {
        self.due = None;
        if self.chunk.bytes.is_empty() {
            return Ok(());
        }
        let (start, end) = (self.chunk.start, self.chunk.end());
        let mut chunk = std::mem::replace(&mut self.chunk, empty_chunk(end));
        let mut marks = self.timing.marks(&self.log, start, end).await;
        let later = self.notes.iter().position(|note| note.offset > end);
        marks.extend(self.notes.drain(..later.unwrap_or(self.notes.len())));
        marks.retain(|mark| mark.offset >= start);
        marks.sort_by_key(|mark| (mark.offset, mark.at));
        chunk.marks = marks.into_iter().map(|mark| self.in_order(mark)).collect();
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

    /// Goes over to the next file.
    async fn enter(&mut self, next: String) -> Result<(), Closed> {
        let at = Position::new(next.clone(), 0);
        self.records = Records::new(&at);
        self.chunk = empty_chunk(0);
        self.notes.clear();
        self.log = next;
        self.out.send(Captured::Log(at)).await.map_err(|_| Closed)
    }

    /// Says of an idle log that nothing is missing, now and then.
    async fn alive(&mut self) -> Result<(), Closed> {
        let (log, offset) = (self.log.clone(), self.chunk.start);
        if !self.chunk.bytes.is_empty() || !self.records.at_record_start() {
            return Ok(());
        }
        let Some(mark) = self.timing.alive(&log, offset) else { return Ok(()) };
        let mark = self.in_order(mark);
        self.out.send(Captured::Alive(mark)).await.map_err(|_| Closed)
    }

    /// Holds a mark to the latest time so far.
    fn in_order(&mut self, mark: Mark) -> Mark {
        let mark = self.newest.map_or(mark, |newest| mark.held_to(newest));
        self.newest = Some(mark.at);
        let mut memory = self.source.memory();
        if memory.marked.as_ref().is_none_or(|(log, _)| *log != self.log) {
            // What stands before a mark may be that much later.
            memory.marked = Some((self.log.clone(), mark.at.after(mark.span())));
        }
        mark
    }
}

fn empty_chunk(start: u64) -> Chunk {
    Chunk { start, time: TimeSource::Sampled, ..Chunk::default() }
}
