//! The stream that a replica gets: the log from the beginning of a plan up to the cut.
//!
//! Each dump walks the whole log from its beginning, whatever the replica has, so that what was
//! walked over is counted the same each time; what the replica has already is not sent. Records
//! are left out whole or sent whole. Behind the cut follow heartbeats, nothing else.
//!
//! Events go out as they are. Made up are only what a source makes up: the ROTATE before each
//! file, heartbeats, and a FORMAT_DESCRIPTION that does not make a replica drop temporary tables
//! when it comes to a file again (`created`), nor take the file for one that was never closed.
//!
//! **Invariant:** of a record behind the cut no byte is sent; the decision stands before its
//! first event.

use super::event::{
    self, Checksum, FDE_CREATED_AT, FormatDescription, GtidEvent, Head, MAGIC, Query, Rotate, body,
    flag, kind,
};
use super::events::States;
use super::gtid::GtidSet;
use super::packet::{Framer, PacketCodec, Packets};
use super::serve::Ended;
use super::stream::{End, Part, Splitter, Track};
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::position::Position;
use crate::record::{Applied, Cut, Landing, OpenLog, Piece};
use bytes::{Buf, Bytes, BytesMut};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

/// How much is collected before it is written, in bytes.
const WRITE_BYTES: usize = 512 << 10;
/// Where the flags stand in an event's head.
const FLAGS_AT: usize = 17;

/// What is replayed.
#[derive(Clone)]
pub(super) struct Program {
    /// Reads the log from the beginning of the plan.
    pub(super) log: OpenLog,
    /// Where to stop.
    pub(super) cut: Cut,
    /// Everything executed before the beginning.
    pub(super) base: GtidSet,
    /// The scheduled events, as they are at the beginning.
    pub(super) events: States,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program")
            .field("cut", &self.cut)
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

/// What stands before the cut.
#[derive(Debug, Clone)]
pub(super) struct Served {
    /// As the receipt has it.
    pub(super) applied: Applied,
    /// Everything executed at the cut.
    pub(super) gtids: GtidSet,
    /// The scheduled events at the cut.
    pub(super) events: States,
}

/// One stream to one replica.
pub(super) struct Dump<'a> {
    io: TcpStream,
    framer: Framer,
    out: BytesMut,
    program: &'a Program,
    server_id: u32,
    replica_id: u32,
    /// What the replica has.
    has: GtidSet,
    heartbeat: Duration,
    version_2: bool,
    walk: Walk,
}

/// Where in the log the stream is.
struct Walk {
    /// `None` until the log's first piece.
    track: Option<Track>,
    splitter: Splitter,
    /// How many of the file's magic bytes are still to come.
    magic_left: usize,
    /// FORMAT_DESCRIPTION and PREVIOUS_GTIDS of the file.
    format: Bytes,
    previous: Bytes,
    /// Whether anything was sent: then the replica knows which file it is in.
    started: bool,
    /// Whether something was left out since the last event that was sent.
    skipped: bool,
    /// Whether the current event, or transaction, is sent.
    sending: bool,
    /// The file that the replica was told comes next.
    rotated: Option<String>,
    /// How the events made up between two files have to be written.
    checksum: Checksum,
    records: u64,
    bytes: u64,
    first: Option<GtidEvent>,
    last: Option<GtidEvent>,
    events: States,
}

/// What the bytes so far came to.
enum Step {
    /// More are needed.
    More,
    /// The cut, and the first record behind it if it is known.
    Cut(Option<Landing>),
}

impl<'a> Dump<'a> {
    /// Takes over a connection on which a dump was asked for.
    pub(super) fn new(
        packets: Packets<TcpStream>,
        program: &'a Program,
        server_id: u32,
        replica_id: u32,
        has: GtidSet,
    ) -> Self {
        let parts = packets.into_parts();
        let codec: PacketCodec = parts.codec;
        Self {
            io: parts.io,
            framer: Framer::new(codec.sequence()),
            out: BytesMut::with_capacity(WRITE_BYTES + (64 << 10)),
            program,
            server_id,
            replica_id,
            has,
            heartbeat: Duration::from_secs(1),
            version_2: false,
            walk: Walk::new(program.events.clone()),
        }
    }

    /// How often, and in which form, the replica wants to hear from its source.
    pub(super) fn heartbeats(&mut self, every: Duration, version_2: bool) {
        self.heartbeat = every;
        self.version_2 = version_2;
    }

    /// Streams up to the cut, says so, and keeps the connection alive from then on.
    pub(super) async fn run(&mut self, served: &watch::Sender<Option<Arc<Served>>>) -> Ended {
        let left_out = match self.stream().await {
            Ok(left_out) => left_out,
            Err(ended) => return ended,
        };
        match self.served(left_out) {
            Ok(all) => drop(served.send_replace(Some(Arc::new(all)))),
            Err(error) => return Ended::Fatal(error),
        }
        loop {
            if let Err(ended) = self.beat().await {
                return ended;
            }
            tokio::select! {
                () = tokio::time::sleep(self.heartbeat) => {}
                ended = gone(&mut self.io) => return ended,
            }
        }
    }

    async fn stream(&mut self) -> Result<Option<Landing>, Ended> {
        let mut pieces = (self.program.log)();
        let left_out = loop {
            let piece = match pieces.try_recv() {
                Ok(piece) => Some(piece),
                Err(mpsc::error::TryRecvError::Disconnected) => None,
                Err(mpsc::error::TryRecvError::Empty) => self.wait_for(&mut pieces).await?,
            };
            let step = match piece.transpose().map_err(Ended::Fatal)? {
                Some(Piece::Log { at, head }) => self.open(&at, &head).map_err(Ended::Fatal)?,
                Some(Piece::Bytes(bytes)) => self.take(bytes).await?,
                None => {
                    self.check_end().map_err(Ended::Fatal)?;
                    break None;
                }
            };
            match step {
                Step::More => {}
                Step::Cut(Some(left_out)) => break Some(left_out),
                Step::Cut(None) => break self.walk.look_ahead(&mut pieces).await,
            }
        };
        if !self.walk.started {
            self.start().map_err(Ended::Fatal)?;
        }
        self.flush().await?;
        Ok(left_out)
    }

    /// Waits for the archive. Meanwhile the replica gets what there is, and heartbeats.
    async fn wait_for(
        &mut self,
        pieces: &mut mpsc::Receiver<Result<Piece>>,
    ) -> Result<Option<Result<Piece>>, Ended> {
        self.flush().await?;
        loop {
            tokio::select! {
                piece = pieces.recv() => return Ok(piece),
                () = tokio::time::sleep(self.heartbeat) => {
                    // Never within a transaction.
                    if self.walk.started && !self.walk.is_open() {
                        self.beat().await?;
                    }
                }
                ended = gone(&mut self.io) => return Err(ended),
            }
        }
    }

    /// The log goes on at `at`.
    fn open(&mut self, at: &Position, head: &Bytes) -> Result<Step> {
        let first = self.walk.track.is_none();
        self.walk.open(at, head, &self.program.base)?;
        if first && self.walk.format.is_empty() && at.offset > MAGIC.len() as u64 {
            return Err(Error::corrupt(format!("{at}: the head of the file is missing")));
        }
        if self.walk.started && self.walk.is_at_file_start() {
            self.rotate()?;
        }
        self.at_place()
    }

    /// Whether the cut is at this place.
    fn at_place(&self) -> Result<Step> {
        let (Cut::At(cut), Some(track)) = (&self.program.cut, &self.walk.track) else {
            return Ok(Step::More);
        };
        let at = cut.offset.max(MAGIC.len() as u64);
        if cut.log != track.log || track.offset < at {
            return Ok(Step::More);
        }
        if track.offset > at || track.is_open() {
            return Err(Error::usage(format!("{cut} lies within a transaction, or an event"))
                .hint("restore to an instant instead: it is cut between transactions"));
        }
        Ok(Step::Cut(None))
    }

    /// Sends what stands in `bytes` before the cut.
    async fn take(&mut self, bytes: Bytes) -> Result<Step, Ended> {
        self.walk.push(bytes).map_err(Ended::Fatal)?;
        while let Some(part) = self.walk.splitter.next().map_err(Ended::Fatal)? {
            let step = self.part(&part).map_err(Ended::Fatal)?;
            if self.out.len() >= WRITE_BYTES {
                self.flush().await?;
            }
            if let Step::Cut(_) = step {
                return Ok(step);
            }
        }
        Ok(Step::More)
    }

    fn part(&mut self, part: &Part) -> Result<Step> {
        if let Some(head) = &part.head
            && let Step::Cut(left_out) = self.begin(head, part)?
        {
            return Ok(Step::Cut(left_out));
        }
        let end = self.walk.track()?.take(part)?;
        self.walk.bytes += part.bytes.len() as u64;
        if self.walk.sending {
            self.emit(part)?;
        }
        match end {
            Some(End::Record(event)) => {
                self.walk.records += 1;
                self.walk.first.get_or_insert(event);
                self.walk.last = Some(event);
                self.at_place()
            }
            Some(End::Outside) => self.at_place(),
            Some(End::Within) | None => Ok(Step::More),
        }
    }

    /// Looks at the first part of an event: whether the cut is before it, and whether it is sent.
    fn begin(&mut self, head: &Head, part: &Part) -> Result<Step> {
        let checksum = self.walk.track()?.checksum;
        if head.server_id == self.replica_id {
            return Err(self.walk.track()?.corrupt(&format!(
                "an event has server_id {}, which is the target's own: it would drop it",
                head.server_id
            )));
        }
        match head.kind {
            _ if head.is_gtid() => {
                let event = GtidEvent::parse(head.kind, body(&part.bytes, checksum)?)?;
                return self.begin_record(&event);
            }
            kind::INCIDENT => {
                return Err(self.walk.track()?.corrupt("the source lost events here (INCIDENT)"));
            }
            kind::FORMAT_DESCRIPTION => {
                self.walk.format = part.bytes.clone();
                self.walk.previous = Bytes::new();
            }
            kind::PREVIOUS_GTIDS => self.walk.previous = part.bytes.clone(),
            kind::QUERY if self.walk.is_open() => self.walk.note_statement(part, checksum)?,
            _ => {}
        }
        if !self.walk.is_open() {
            self.walk.sending = self.walk.started;
        }
        Ok(Step::More)
    }

    /// A transaction begins: is it before the cut, and does the replica need it?
    fn begin_record(&mut self, event: &GtidEvent) -> Result<Step> {
        let Some(gtid) = event.gtid else {
            return Err(Error::refused(format!(
                "{} transactions have no GTID: they cannot be replayed by auto-position",
                self.walk.place()
            ))
            .hint("set gtid_mode = ON on the source, and take a new baseline"));
        };
        if let Cut::After(until) = self.program.cut {
            let at = event.immediate_commit_ts.ok_or_else(|| {
                Error::refused(format!(
                    "the source wrote no commit time for {gtid}: give a place, not a time"
                ))
                .hint("servers before MySQL 8.0.2 do not write commit times; upgrade the source")
            })?;
            if at > until {
                return Ok(Step::Cut(landing(Some(*event))));
            }
        }
        self.walk.sending = !self.has.contains(gtid);
        if self.walk.sending && !self.walk.started {
            self.start()?;
        }
        if self.walk.sending && self.walk.skipped {
            self.put_heartbeat()?;
            self.walk.skipped = false;
        }
        self.walk.skipped |= !self.walk.sending;
        Ok(Step::More)
    }

    /// Tells the replica which file it is in, and how that is written.
    fn start(&mut self) -> Result<()> {
        self.walk.started = true;
        if self.walk.format.is_empty() {
            // The log has nothing at all: the archive ends where the baseline begins.
            return Ok(());
        }
        let format = self.walk.format.clone();
        self.rotate()?;
        self.format(&format, true)?;
        let previous = self.walk.previous.clone();
        if !previous.is_empty() {
            self.put_event(&previous)?;
        }
        self.walk.skipped = true;
        Ok(())
    }

    /// The made-up ROTATE before each file.
    fn rotate(&mut self) -> Result<()> {
        let log = self.walk.track()?.log.clone();
        let position = MAGIC.len() as u64;
        let rotate = event::artificial_rotate(self.server_id, &log, position, self.walk.checksum);
        self.walk.rotated = None;
        self.put_event(&rotate)
    }

    /// FORMAT_DESCRIPTION as it goes over the wire.
    fn format(&mut self, stored: &[u8], again: bool) -> Result<()> {
        self.walk.checksum = FormatDescription::parse(stored)?.checksum;
        let mut format = stored.to_vec();
        if let Some(flags) = format.get_mut(FLAGS_AT) {
            *flags &= !(flag::IN_USE as u8);
        }
        if again && let Some(created) = format.get_mut(FDE_CREATED_AT..FDE_CREATED_AT + 4) {
            created.fill(0);
            event::renew_crc(&mut format);
        }
        self.put_event(&format)
    }

    fn emit(&mut self, part: &Part) -> Result<()> {
        if let Some(head) = &part.head {
            match head.kind {
                kind::FORMAT_DESCRIPTION => return self.format(&part.bytes, false),
                kind::ROTATE => {
                    let checksum = self.walk.track()?.checksum;
                    let next = Rotate::parse(body(&part.bytes, checksum)?)?;
                    self.walk.rotated = Some(next.file);
                }
                _ => {}
            }
            self.framer.begin(u64::from(head.length) + 1, &mut self.out);
            self.put(&[0])?;
        }
        self.put(&part.bytes)
    }

    fn put_event(&mut self, event: &[u8]) -> Result<()> {
        self.framer.begin(event.len() as u64 + 1, &mut self.out);
        self.put(&[0])?;
        self.put(event)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.framer
            .put(bytes, &mut self.out)
            .map_err(|error| Error::bug("an event longer than it says").source(error))
    }

    fn put_heartbeat(&mut self) -> Result<()> {
        let Some(track) = &self.walk.track else { return Ok(()) };
        let (log, offset) = match &self.walk.rotated {
            Some(next) => (next.as_str(), MAGIC.len() as u64),
            None => (track.log.as_str(), track.offset),
        };
        let checksum = self.walk.checksum;
        let heartbeat = if self.version_2 {
            event::heartbeat_v2(self.server_id, log, offset, checksum)
        } else if u32::try_from(offset).is_ok() {
            event::heartbeat_v1(self.server_id, log, offset, checksum)
        } else {
            // The old form cannot name this place.
            return Ok(());
        };
        self.put_event(&heartbeat)
    }

    async fn beat(&mut self) -> Result<(), Ended> {
        if !self.walk.format.is_empty() {
            self.put_heartbeat().map_err(Ended::Fatal)?;
        }
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), Ended> {
        let written = self.io.write_all(&self.out).await;
        self.out.clear();
        written.map_err(|error| {
            Ended::Closed(Error::unavailable("the replica went away").source(error))
        })
    }

    /// The archive is at its end: was that where the log may stop?
    fn check_end(&self) -> Result<()> {
        let Some(track) = &self.walk.track else {
            return match &self.program.cut {
                Cut::After(_) => Ok(()),
                Cut::At(at) => Err(Error::corrupt(format!("the archive has nothing before {at}"))),
            };
        };
        if track.is_open() || !self.walk.splitter.is_between_events() {
            return Err(track.corrupt("the archive ends within a transaction"));
        }
        match &self.program.cut {
            Cut::After(_) => Ok(()),
            Cut::At(at) => Err(track.corrupt(&format!("the archive ends before {at}"))),
        }
    }

    fn served(&self, first_left_out: Option<Landing>) -> Result<Served> {
        let walk = &self.walk;
        let gtids = match &walk.track {
            Some(track) => track.gtids.clone().ok_or_else(|| Error::bug("no GTIDs are known"))?,
            None => self.program.base.clone(),
        };
        let applied = Applied {
            records: walk.records,
            bytes: walk.bytes,
            first: landing(walk.first),
            last: landing(walk.last),
            first_left_out,
            gtids: gtids.to_string(),
        };
        Ok(Served { applied, gtids, events: walk.events.clone() })
    }
}

impl Walk {
    fn new(events: States) -> Self {
        Self {
            track: None,
            splitter: Splitter::default(),
            magic_left: 0,
            format: Bytes::new(),
            previous: Bytes::new(),
            started: false,
            skipped: false,
            sending: false,
            rotated: None,
            // What the replica was told it is until the first FORMAT_DESCRIPTION.
            checksum: Checksum::Crc32,
            records: 0,
            bytes: 0,
            first: None,
            last: None,
            events,
        }
    }

    fn track(&mut self) -> Result<&mut Track> {
        self.track.as_mut().ok_or_else(|| Error::bug("bytes of a log before its name"))
    }

    fn is_open(&self) -> bool {
        self.track.as_ref().is_some_and(Track::is_open)
    }

    fn is_at_file_start(&self) -> bool {
        self.track.as_ref().is_some_and(|track| track.offset == MAGIC.len() as u64)
    }

    fn place(&self) -> String {
        self.track.as_ref().map_or_else(String::new, |t| format!("{}:{}", t.log, t.offset))
    }

    fn open(&mut self, at: &Position, head: &Bytes, base: &GtidSet) -> Result<()> {
        let magic = MAGIC.len() as u64;
        let start = at.offset.max(magic);
        if !self.splitter.is_between_events() || self.magic_left > 0 {
            return Err(Error::corrupt(format!(
                "{} ends within an event, and {at} follows",
                self.place()
            )));
        }
        match &mut self.track {
            // The same file goes on.
            Some(track) if track.log == at.log && track.offset == start => return Ok(()),
            Some(track) if start == magic => track.begin_file(&at.log)?,
            Some(track) => {
                return Err(track.corrupt(&format!("the archive goes on at {at}, not here")));
            }
            None => self.track = Some(Track::new(&at.log, start, Some(base.clone()))),
        }
        self.magic_left = usize::try_from(magic.saturating_sub(at.offset)).unwrap_or(0);
        if start > magic {
            self.read_head(at, head)?;
        }
        Ok(())
    }

    /// Takes FORMAT_DESCRIPTION and PREVIOUS_GTIDS from the head of a file whose middle follows.
    fn read_head(&mut self, at: &Position, head: &Bytes) -> Result<()> {
        let cut_short = || Error::corrupt(format!("{at}: the head of the file is cut short"));
        let mut rest = head.clone();
        if rest.len() < MAGIC.len() || rest.split_to(MAGIC.len()) != MAGIC[..] {
            return Err(cut_short());
        }
        let format = Head::parse(&rest)?;
        if format.kind != kind::FORMAT_DESCRIPTION || rest.len() < format.length as usize {
            return Err(cut_short());
        }
        self.format = rest.split_to(format.length as usize);
        self.track()?.checksum = FormatDescription::parse(&self.format)?.checksum;
        // A list of GTIDs may be longer than the head; replicas can do without.
        if let Ok(previous) = Head::parse(&rest)
            && previous.kind == kind::PREVIOUS_GTIDS
            && rest.len() >= previous.length as usize
        {
            self.previous = rest.split_to(previous.length as usize);
        }
        Ok(())
    }

    fn push(&mut self, mut bytes: Bytes) -> Result<()> {
        let magic = self.magic_left.min(bytes.len());
        let expected = MAGIC.get(MAGIC.len() - self.magic_left..).unwrap_or_default();
        if !expected.starts_with(bytes.get(..magic).unwrap_or_default()) {
            return Err(self.track()?.corrupt("not a binlog"));
        }
        self.magic_left -= magic;
        bytes.advance(magic);
        self.track()?;
        self.splitter.push(bytes);
        Ok(())
    }

    /// Scheduled events are made and changed by statements.
    fn note_statement(&mut self, part: &Part, checksum: Checksum) -> Result<()> {
        let bytes = if part.last {
            body(&part.bytes, checksum)?
        } else {
            part.bytes.get(event::HEAD_BYTES..).unwrap_or_default()
        };
        let query = Query::parse(bytes)?;
        self.events.note(query.schema, query.statement);
        Ok(())
    }

    /// The first record behind a cut at a place. It is only named, so that trouble behind the cut
    /// is none.
    async fn look_ahead(&mut self, pieces: &mut mpsc::Receiver<Result<Piece>>) -> Option<Landing> {
        loop {
            while let Ok(Some(part)) = self.splitter.next() {
                let Some(head) = &part.head else { continue };
                if head.is_gtid() {
                    let checksum = self.track.as_ref()?.checksum;
                    let event = GtidEvent::parse(head.kind, body(&part.bytes, checksum).ok()?);
                    return landing(event.ok());
                }
            }
            match pieces.recv().await?.ok()? {
                Piece::Bytes(bytes) => self.push(bytes).ok()?,
                Piece::Log { .. } => return None,
            }
        }
    }
}

fn landing(event: Option<GtidEvent>) -> Option<Landing> {
    let event = event?;
    let position = event.gtid.map_or_else(|| "anonymous".into(), |gtid| gtid.to_string());
    let at: Option<Timestamp> = event.immediate_commit_ts;
    Some(Landing { position, at })
}

/// Waits until the other side is gone. A replica says nothing after it asked for a dump.
async fn gone(io: &mut TcpStream) -> Ended {
    let mut nothing = [0; 64];
    loop {
        match io.read(&mut nothing).await {
            Ok(1..) => {}
            Ok(0) => return Ended::Closed(Error::unavailable("the replica went away")),
            Err(error) => {
                return Ended::Closed(Error::unavailable("the replica went away").source(error));
            }
        }
    }
}
