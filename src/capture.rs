//! Turns what an engine yields into durable segments.
//!
//! One [`Capture`] owns one source's place in the archive: the open segment, the chain digest and
//! the marks. It runs on a thread of its own, so that compression, `fsync` and the catalog never
//! hold up the socket; what it has not taken yet waits in a bounded channel, and behind that in
//! the source itself.
//!
//! Syncs are grouped: everything that waited during one `fsync` shares the next.
//!
//! **Invariant:** the durable mark moves only after the bytes before it are synced, and only to
//! the end of a whole record. A segment begins and ends between two records. A segment gets its
//! final name only when it is complete, and its catalog row only after that.

mod order;
mod patient;
mod fork;
mod protect;
mod recover;
mod strange;

use self::patient::PatientFile;
use crate::archive::Archive;
use crate::baseline::{Label, Reached, Stored};
use crate::clock::Timestamp;
use crate::durable;
use crate::error::{Context, Error, Result};
use crate::manifest::{Break, Continues, FORMAT, Fork, SegmentHeader, SegmentMeta, names};
use crate::position::Position;
use crate::record::{CHUNK_BYTES, Captured, Chunk, Continuity, Mark, Server};
use crate::segment::{Reader, Writer, rewrite};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

/// Chunks between the engine and the writer; bounds memory to this many times
/// [`CHUNK_BYTES`](crate::record::CHUNK_BYTES) a source.
pub const CHUNKS_IN_FLIGHT: usize = 16;

/// Bytes written without a sync, at most.
const UNSYNCED_BYTES_MAX: u64 = 16 << 20;

/// How long bytes may wait for a sync while more keep coming.
const UNSYNCED_MAX: Duration = Duration::from_millis(100);

/// The same where commits of the source wait for the sync.
const URGENT_MAX: Duration = Duration::from_millis(2);

/// How often an idle capture looks at the clock.
const TICK: Duration = Duration::from_millis(500);

/// How often an idle source's progress in time is written down. Until then only the running
/// process knows it; after a crash the source's own log proves it again.
const IDLE_MARK_EVERY: Duration = Duration::from_secs(10);

/// When segments are sealed, besides every full hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealing {
    /// Raw bytes in a segment, at most; one record more if a record is longer.
    pub max_bytes: u64,
    /// Age of a segment.
    pub max_age: Duration,
}

/// What the rest of the process may know of a running capture, and ask of it.
#[derive(Debug, Default)]
pub struct Shared {
    /// Set to end a wait for disk space.
    pub stop: AtomicBool,
    /// Nothing committed until then (µs since 1970) is missing on disk; `i64::MIN` if unknown.
    known_until: AtomicI64,
    /// The same, as the files themselves show it: what another process can restore to.
    written_until: AtomicI64,
    /// Somebody waits for this instant (µs since 1970) to be on disk.
    wanted: AtomicI64,
    /// The newest timeline; 0 before the first.
    timeline: AtomicU32,
    /// The oldest timeline from which an unbroken history leads to the newest.
    unbroken_from: AtomicU32,
    /// The source is connected and streams.
    streaming: AtomicBool,
    /// The disk is full, and the capture waits.
    pub disk_full: AtomicBool,
}

impl Shared {
    /// Shared state of a capture that knows nothing yet.
    pub fn new() -> Self {
        let shared = Self::default();
        shared.known_until.store(i64::MIN, Ordering::Release);
        shared.written_until.store(i64::MIN, Ordering::Release);
        shared.wanted.store(i64::MIN, Ordering::Release);
        shared
    }

    /// Nothing committed until then is missing on disk.
    pub fn known_until(&self) -> Option<Timestamp> {
        instant(&self.known_until)
    }

    /// How far the capture has come.
    pub fn reached(&self) -> Reached {
        Reached { timeline: self.timeline(), known_until: self.known_until() }
    }

    /// Nothing committed until then is missing on disk, and the files themselves show it.
    pub fn written_until(&self) -> Option<Timestamp> {
        instant(&self.written_until)
    }

    /// The newest timeline; 0 before the first.
    pub fn timeline(&self) -> u32 {
        self.timeline.load(Ordering::Acquire)
    }

    /// The oldest timeline from which an unbroken history leads to the newest one.
    pub fn unbroken_from(&self) -> u32 {
        self.unbroken_from.load(Ordering::Acquire)
    }

    /// Whether the source is connected and streams.
    pub fn is_streaming(&self) -> bool {
        self.streaming.load(Ordering::Acquire)
    }

    /// The capture is gone without having said so itself.
    pub fn broke_off(&self) {
        self.streaming.store(false, Ordering::Release);
    }

    /// Asks that `at` be written down as soon as the source has passed it.
    pub fn want(&self, at: Timestamp) {
        self.wanted.fetch_max(at.as_micros(), Ordering::AcqRel);
    }

    /// Only what was committed until then is known, after all.
    fn forget(&self, at: Option<Timestamp>) {
        let known = at.map_or(i64::MIN, Timestamp::as_micros);
        self.known_until.store(known, Ordering::Release);
        self.written_until.store(known, Ordering::Release);
    }

    fn know(&self, at: Timestamp) {
        self.known_until.fetch_max(at.as_micros(), Ordering::AcqRel);
    }
}

fn instant(micros: &AtomicI64) -> Option<Timestamp> {
    match micros.load(Ordering::Acquire) {
        i64::MIN => None,
        micros => Some(Timestamp::from_micros(micros)),
    }
}

/// One source's place in the archive, and the segment being written.
#[derive(Debug)]
pub struct Capture {
    archive: Archive,
    label: Label,
    sealing: Sealing,
    shared: Arc<Shared>,
    durable: watch::Sender<Option<Position>>,

    server: Server,
    skew_micros: i64,
    timeline: u32,
    /// The oldest timeline from which an unbroken history leads here.
    unbroken_from: u32,
    next_number: u64,
    /// Digest of the last sealed segment of the timeline.
    previous: Option<String>,
    /// Where the last whole record ends; `None` before the first stream.
    end: Option<Position>,
    /// Nothing committed until then is missing in what was taken (not necessarily synced).
    known_until: Option<Timestamp>,
    /// The break that the next segment begins with.
    broken: Option<Break>,
    /// What the next segment goes on from, if the timeline begins with it.
    continues: Option<Continues>,
    /// Where the timeline left another one, if it begins with the next segment.
    fork: Option<Fork>,
    /// The first bytes of the current log, if what is stored of it begins in its middle.
    head: Option<String>,
    /// The timeline has nothing in it yet but a baseline that came with the stream.
    fresh: bool,
    open: Option<Open>,
    /// `server_id`s seen in the current log; every segment of it names all of them.
    origins: BTreeSet<u32>,
    /// The last idle mark that was written.
    idle_written: Option<Mark>,
    /// The last idle mark that was not, yet.
    idle: Option<Mark>,
}

#[derive(Debug)]
struct Open {
    writer: Writer<PatientFile>,
    opened_at: Timestamp,
    since: Instant,
    unsynced_since: Option<Instant>,
    unsynced_bytes: u64,
    /// Somebody waits for the sync.
    urgent: bool,
    /// Offset after the last byte; beyond `Capture::end` while a record is incomplete.
    end: u64,
}

impl Capture {
    /// Takes up a source where the archive left it: repairs what a crash left open, and finds
    /// the place to go on from. The caller holds the archive's lock.
    pub fn recover(
        root: &Path,
        label: Label,
        sealing: Sealing,
        shared: Arc<Shared>,
    ) -> Result<Self> {
        let archive = Archive::open(root)?;
        let (durable, _) = watch::channel(None);
        let mut capture = Self {
            archive,
            label,
            sealing,
            shared,
            durable,
            server: Server::default(),
            skew_micros: 0,
            timeline: 0,
            unbroken_from: 0,
            next_number: 1,
            previous: None,
            end: None,
            known_until: None,
            broken: None,
            continues: None,
            fork: None,
            head: None,
            fresh: false,
            open: None,
            origins: BTreeSet::new(),
            idle_written: None,
            idle: None,
        };
        capture.remove_unfinished()?;
        capture.seal_torn()?;
        capture.find_end()?;
        capture.unprotect("pitr did not run")?;
        capture.publish_durable();
        Ok(capture)
    }

    /// The place to ask the source for: everything before it is on disk.
    pub fn resume(&self) -> Option<Position> {
        self.end.clone()
    }

    /// The server that the archive's newest bytes came from.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Follows the place up to which everything is on disk.
    pub fn durable(&self) -> watch::Receiver<Option<Position>> {
        self.durable.subscribe()
    }

    /// The same of the next stream only: there is none until that stream is open. What was durable
    /// of an earlier one says nothing about a place of the same name in this one.
    pub fn durable_of_next_stream(&mut self) -> watch::Receiver<Option<Position>> {
        self.durable = watch::channel(None).0;
        self.durable.subscribe()
    }

    /// The newest timeline; 0 before the first.
    pub fn timeline(&self) -> u32 {
        self.timeline
    }

    /// Takes everything that comes until the channel closes. Afterwards all of it that forms
    /// whole records is durable, and [`Self::resume`] says where to go on.
    ///
    /// # Errors
    /// Unavailable, if the disk fails; the capture has to be recovered then.
    pub fn run(&mut self, mut captured: mpsc::Receiver<Captured>, runtime: &Handle) -> Result<()> {
        loop {
            let next = match captured.try_recv() {
                Ok(next) => Some(next),
                Err(mpsc::error::TryRecvError::Disconnected) => break,
                Err(mpsc::error::TryRecvError::Empty) => {
                    // Nothing waits: the moment at which a sync delays nobody.
                    self.sync()?;
                    let wait = async { tokio::time::timeout(TICK, captured.recv()).await };
                    match runtime.block_on(wait) {
                        Ok(Some(next)) => Some(next),
                        Ok(None) => break,
                        Err(_) => None,
                    }
                }
            };
            if let Some(next) = next {
                self.take(next)?;
            }
            self.turn()?;
        }
        self.end_stream()
    }

    /// Seals the open segment if its hour is over or it is old, and syncs what has waited long.
    pub fn turn(&mut self) -> Result<()> {
        let Some(open) = &self.open else { return Ok(()) };
        let patience = if open.urgent { URGENT_MAX } else { UNSYNCED_MAX };
        let waited = open.unsynced_since.is_some_and(|since| since.elapsed() >= patience);
        if waited || open.unsynced_bytes >= UNSYNCED_BYTES_MAX {
            self.sync()?;
        }
        if self.is_full() && self.is_whole() {
            self.seal()?;
        }
        Ok(())
    }

    /// Seals what is open. Called when the process stops.
    pub fn close(mut self) -> Result<()> {
        self.end_stream()?;
        self.seal()
    }

    fn take(&mut self, captured: Captured) -> Result<()> {
        match captured {
            Captured::Opened { server, at, continuity, skew_micros } => {
                self.server = server;
                self.skew_micros = skew_micros;
                self.opened(at, continuity)
            }
            Captured::Log(at) => {
                if !self.is_whole() {
                    return Err(Error::corrupt(format!(
                        "{}: the stream went on to {at} in the middle of a record",
                        self.label.source
                    )));
                }
                self.seal()?;
                self.origins.clear();
                self.head = None;
                self.idle = None;
                self.end = Some(self.with_db(at));
                Ok(())
            }
            Captured::Chunk(chunk) => self.chunk(chunk),
            Captured::Alive(mark) => self.alive(mark),
            Captured::Protection(change) => self.protection(&change),
            Captured::Baseline { taken, mut pieces } => {
                self.begin_timeline("the source sent a full copy of itself".into())?;
                self.fresh = true;
                self.server = taken.server.clone();
                let dir = self.archive.store().path(&self.label.source)?;
                let (engine, level) = (self.label.engine, self.label.level);
                let stored = Stored::write(&dir, engine, level, || pieces.blocking_recv())?;
                let (position, at) = (taken.position.clone(), taken.at);
                let label = self.label.clone();
                stored.publish(
                    &mut self.archive,
                    &label,
                    self.timeline,
                    &taken,
                    position.clone(),
                    at,
                )?;
                self.end = Some(position);
                self.known_until = Some(at);
                self.shared.know(at);
                self.publish_durable();
                Ok(())
            }
        }
    }

    fn opened(&mut self, mut at: Position, continuity: Continuity) -> Result<()> {
        match continuity {
            Continuity::Continues => {
                if !self.end.as_ref().is_some_and(|end| end.is_same_place(&at)) {
                    return Err(Error::bug(format!(
                        "{}: the stream goes on at {at}, the archive ends at {:?}",
                        self.label.source, self.end
                    )));
                }
            }
            Continuity::Joins { head } => {
                self.join(&at)?;
                self.head = Some(SegmentHeader::head_text(&head));
            }
            Continuity::Forks => {
                self.fork(&at)?;
                at = self.with_db(at);
            }
            Continuity::Begins if self.timeline == 0 => self.begin_timeline(String::new())?,
            Continuity::Begins if self.fresh => {}
            Continuity::Begins => self.begin_timeline("capture began anew".into())?,
            Continuity::Broken(reason) => {
                tracing::error!(source = %self.label.source, "gap: {reason}");
                if self.fresh {
                    if let Some(broken) = &mut self.broken {
                        broken.reason = reason;
                    }
                } else {
                    self.begin_timeline(reason)?;
                }
            }
        }
        self.fresh = false;
        self.end = Some(at);
        self.publish_durable();
        self.shared.streaming.store(true, Ordering::Release);
        Ok(())
    }

    /// The stream goes on in the log of another server, or in another place of the same one: a
    /// new timeline, which continues this one.
    fn join(&mut self, at: &Position) -> Result<()> {
        if self.end.as_ref().is_none_or(|end| end.gtids != at.gtids) {
            return Err(Error::bug(format!(
                "{}: the stream goes on at {at} with other GTIDs than the archive ends with",
                self.label.source
            )));
        }
        self.seal()?;
        self.origins.clear();
        self.idle_written = None;
        self.idle = None;
        if self.next_number == 1 {
            // Nothing is stored of this timeline yet: it begins here.
            return Ok(());
        }
        let (timeline, number) = (self.timeline, self.next_number - 1);
        tracing::info!(source = %self.label.source, "timeline {} goes on from {timeline}", timeline + 1);
        self.continues = Some(Continues { timeline, number });
        self.timeline += 1;
        self.next_number = 1;
        Ok(())
    }

    fn begin_timeline(&mut self, reason: String) -> Result<()> {
        self.seal()?;
        let after = self.known_until;
        self.broken = (self.timeline > 0).then_some(Break { after, reason });
        self.continues = None;
        self.fork = None;
        self.head = None;
        self.unbroken_from = self.timeline + 1;
        self.timeline += 1;
        self.next_number = 1;
        self.previous = None;
        self.known_until = None;
        self.idle_written = None;
        self.idle = None;
        self.end = None;
        Ok(())
    }

    fn chunk(&mut self, mut chunk: Chunk) -> Result<()> {
        chunk.whole = chunk.whole.map(|whole| self.with_db(whole));
        let expected = match &self.open {
            Some(open) => Some(open.end),
            None => self.end.as_ref().map(|end| end.offset),
        };
        if expected != Some(chunk.start) {
            return Err(Error::bug(format!(
                "{}: a chunk begins at {}, the stream is at {expected:?}",
                self.label.source, chunk.start
            )));
        }
        if self.is_full()
            && let Some(whole) = &chunk.whole
            && whole.offset < chunk.end()
        {
            // The segment ends with the last whole record; the rest begins the next one.
            let (head, tail) = split(chunk);
            self.append(head)?;
            self.seal()?;
            return self.append(tail);
        }
        self.append(chunk)
    }

    fn append(&mut self, mut chunk: Chunk) -> Result<()> {
        if let Some(idle) = self.idle.take().filter(|idle| idle.offset == chunk.start) {
            chunk.marks.insert(0, idle);
        }
        self.in_order(&mut chunk.marks);
        if let (Some(mark), true) = (chunk.marks.last(), chunk.bytes.is_empty()) {
            self.idle_written = Some(*mark);
        }
        self.origins.extend(&chunk.origins);
        for (event, offset) in std::mem::take(&mut chunk.strange) {
            self.note_strange(event, offset)?;
        }
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                chunk.origins = self.origins.iter().copied().collect();
                let open = self.create()?;
                self.open.insert(open)
            }
        };
        let before = open.writer.bytes_stored();
        open.writer.append(&chunk)?;
        open.unsynced_bytes += open.writer.bytes_stored() - before;
        open.unsynced_since.get_or_insert_with(Instant::now);
        open.end = chunk.end();
        open.urgent |= chunk.urgent;
        let marks = chunk.marks.iter().map(|mark| mark.at);
        self.known_until = marks.chain(chunk.last_at).chain(self.known_until).max();
        if let Some(whole) = chunk.whole {
            self.end = Some(whole);
        }
        Ok(())
    }

    /// The first mark at an offset is written at once: from then on an instant leads there. The
    /// last one goes with the next bytes; those between say nothing that these two do not.
    fn alive(&mut self, mark: Mark) -> Result<()> {
        let at_end = self.end.as_ref().is_some_and(|end| end.offset == mark.offset);
        if !at_end || !self.is_whole() {
            return Ok(());
        }
        let written = self.idle_written.map_or(i64::MIN, |written| written.at.as_micros());
        let wanted = self.shared.wanted.load(Ordering::Acquire);
        let is_new = self.idle_written.is_none_or(|written| written.offset != mark.offset);
        let is_wanted = written < wanted && wanted <= mark.at.as_micros();
        let is_due = mark.at.as_micros() >= written.saturating_add(micros(IDLE_MARK_EVERY));
        if is_new || is_wanted || is_due {
            let (end, start) = (self.end.clone(), mark.offset);
            self.idle = None;
            return self.append(Chunk { start, whole: end, marks: vec![mark], ..Chunk::default() });
        }
        self.idle = Some(mark);
        if self.open.as_ref().is_none_or(|open| open.unsynced_since.is_none()) {
            self.shared.know(mark.at);
        }
        Ok(())
    }

    /// Makes what was written durable, and says so.
    fn sync(&mut self) -> Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        if open.unsynced_since.is_none() {
            return Ok(());
        }
        open.writer.get_ref().sync()?;
        open.unsynced_since = None;
        open.unsynced_bytes = 0;
        open.urgent = false;
        self.publish_durable();
        Ok(())
    }

    fn publish_durable(&mut self) {
        if let Some(known) = self.known_until {
            self.shared.know(known);
            self.shared.written_until.fetch_max(known.as_micros(), Ordering::AcqRel);
        }
        self.shared.unbroken_from.store(self.unbroken_from, Ordering::Release);
        self.shared.timeline.store(self.timeline, Ordering::Release);
        self.durable.send_replace(self.end.clone());
    }

    fn create(&mut self) -> Result<Open> {
        let start = self.end.clone().ok_or_else(|| Error::bug("bytes before a stream"))?;
        let opened_at = Timestamp::now();
        let header = SegmentHeader {
            format: FORMAT,
            archive: self.archive.meta().archive.clone(),
            source: self.label.source.clone(),
            engine: self.label.engine,
            server: self.server.clone(),
            timeline: self.timeline,
            number: self.next_number,
            start: start.clone(),
            opened_at,
            skew_micros: self.skew_micros,
            previous: self.previous.clone(),
            broken: self.broken.clone(),
            continues: self.continues,
            fork: self.fork.clone(),
            // The later segments of a log are found behind its first one.
            head: self.head.clone().filter(|_| self.next_number == 1),
        };
        let name = names::open_segment(&self.label.source, self.timeline, self.next_number);
        let path = self.archive.store().path(&name)?;
        durable::create_dir_all(&self.folder(self.timeline)?)?;
        // The name appears with a header that is durable: a bad one is damage, never a torn write.
        let temporary = path.with_extension("tmp");
        let file = PatientFile::create(&temporary, Arc::clone(&self.shared))?;
        let writer = Writer::create(file, &header, self.label.level)?;
        writer.get_ref().sync()?;
        durable::publish(&temporary, &path)?;
        Ok(Open {
            writer,
            opened_at,
            since: Instant::now(),
            unsynced_since: Some(Instant::now()),
            unsynced_bytes: 0,
            urgent: false,
            end: start.offset,
        })
    }

    fn is_full(&self) -> bool {
        self.open.as_ref().is_some_and(|open| {
            open.writer.totals().bytes_raw >= self.sealing.max_bytes
                || open.since.elapsed() >= self.sealing.max_age
                || open.opened_at.hour() != Timestamp::now().hour()
        })
    }

    /// Whether the stream stands between two records.
    fn is_whole(&self) -> bool {
        match (&self.open, &self.end) {
            (Some(open), Some(end)) => open.end == end.offset,
            _ => true,
        }
    }

    /// The stream broke off: what is whole is made durable, what is not is cut off.
    fn end_stream(&mut self) -> Result<()> {
        self.shared.streaming.store(false, Ordering::Release);
        if let Some(idle) = self.idle.take().filter(|_| self.is_whole()) {
            let (end, start) = (self.end.clone(), idle.offset);
            self.append(Chunk { start, whole: end, marks: vec![idle], ..Chunk::default() })?;
        }
        self.sync()?;
        self.unprotect("the stream ended")?;
        if !self.is_whole() {
            self.seal()?;
        }
        self.forget_empty_log()
    }

    /// Gives the open segment its footer and its final name, and indexes it.
    fn seal(&mut self) -> Result<()> {
        self.sync()?;
        let is_whole = self.is_whole();
        let Some(open) = self.open.take() else { return Ok(()) };
        let header = open.writer.header().clone();
        let totals = open.writer.totals();
        let (timeline, number) = (header.timeline, header.number);
        let path = self.open_path(timeline, number)?;
        // Many small blocks cost space and index rows: write them again as few large ones.
        let is_fragmented = totals.blocks > 2 * (totals.bytes_raw / CHUNK_BYTES as u64) + 8;
        let sealed = if is_whole && !is_fragmented {
            let (file, meta) = open.writer.finish()?;
            file.sync()?;
            durable::publish(&path, &self.sealed_path(timeline, number)?)?;
            Some(meta)
        } else {
            drop(open);
            self.seal_whole_part(timeline, number)?
        };
        if let Some(meta) = sealed {
            self.index(&meta)?;
        }
        if self.next_number > 1 {
            self.broken = None;
            self.continues = None;
            self.fork = None;
        }
        Ok(())
    }

    /// Writes the whole records of an open segment as a sealed one. `None` if there are none.
    fn seal_whole_part(&mut self, timeline: u32, number: u64) -> Result<Option<SegmentMeta>> {
        let open = self.open_path(timeline, number)?;
        let file = File::open(&open).unavailable(|| format!("open {}", open.display()))?;
        let mut reader = Reader::scan(BufReader::with_capacity(1 << 18, file))?;
        let temporary = open.with_extension("rewrite");
        let to = PatientFile::create(&temporary, Arc::clone(&self.shared))?;
        let rewritten = rewrite(&mut reader, to, self.label.level)?;
        let meta = match rewritten {
            Some((file, meta)) => {
                file.sync()?;
                durable::publish(&temporary, &self.sealed_path(timeline, number)?)?;
                Some(meta)
            }
            None => {
                durable::remove(&temporary)?;
                None
            }
        };
        durable::remove(&open)?;
        Ok(meta)
    }

    fn index(&mut self, meta: &SegmentMeta) -> Result<()> {
        let (timeline, number) = (meta.header.timeline, meta.header.number);
        let reader = self.archive.segment(&self.label.source, timeline, number)?;
        self.archive.catalog_mut().add_segment(meta, reader.blocks())?;
        self.next_number = number + 1;
        self.previous = Some(meta.digest.clone());
        Ok(())
    }

    fn folder(&self, timeline: u32) -> Result<PathBuf> {
        self.archive.store().path(&names::timeline(&self.label.source, timeline))
    }

    fn open_path(&self, timeline: u32, number: u64) -> Result<PathBuf> {
        self.archive.store().path(&names::open_segment(&self.label.source, timeline, number))
    }

    fn sealed_path(&self, timeline: u32, number: u64) -> Result<PathBuf> {
        self.archive.store().path(&names::segment(&self.label.source, timeline, number))
    }
}

/// Divides a chunk after its last whole record. Everything known of the records goes with them.
fn split(mut chunk: Chunk) -> (Chunk, Chunk) {
    let whole = chunk.whole.as_ref().map_or(chunk.start, |whole| whole.offset);
    let rest = chunk.bytes.split_off(usize::try_from(whole - chunk.start).unwrap_or(usize::MAX));
    let tail = Chunk { start: whole, bytes: rest, time: chunk.time, ..Chunk::default() };
    (chunk, tail)
}

fn micros(d: Duration) -> i64 {
    i64::try_from(d.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
