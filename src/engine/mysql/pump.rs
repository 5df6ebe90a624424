//! The capture path: fragments from the wire in, chunks out.
//!
//! Bytes are copied once, from the read buffer into the chunk that is being filled. Only heads
//! are looked at, and the few events that say where transactions begin. A chunk is handed over
//! when it is full, or [`FLUSH_AFTER`] after its first byte came.
//!
//! **Invariant:** what is handed over is the source's file, byte for byte, from the place named
//! in [`Captured::Opened`] on. Events that the source makes up for its readers are never in it.

mod chain;
mod filling;
mod joining;
mod proof;

use self::chain::{Chain, reset};
use self::filling::Filling;
use self::joining::Joining;
use self::proof::Proof;
use super::event::{
    Checksum, FormatDescription, HEAD_BYTES, Head, Heartbeat, MAGIC, Query, Rotate, body, kind,
    verify_crc,
};
use super::executed::Executed;
use super::flavor::Family;
use super::join::{Aside, Facts, Start};
use super::landmark;
use super::packet::{Fragment, FragmentReader};
use super::semisync::{Acks, Flag};
use super::stream::{End, Part, Splitter, Track};
use crate::clock::Timestamp;
use crate::engine::timing::{LogEnd, Timing};
use crate::error::{Error, Result};
use crate::position::Position;
use crate::record::{
    CHUNK_BYTES, Captured, Chunk, Continuity, LANDMARKS_MAX, Landmark, Mark, Server, TimeSource,
    add_landmark,
};
use bytes::Bytes;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How long bytes wait for more before they are handed over.
const FLUSH_AFTER: Duration = Duration::from_millis(50);

/// How long the source may be silent. It sends a heartbeat every second.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);

/// How far a mark stays behind the source's clock. It is proved without a margin (see
/// [`Aside::end_of_log`]); this one is for clocks that are set back by a little.
const MARGIN: Duration = Duration::from_secs(1);

/// How long the source may write to its log and send nothing but heartbeats.
const STUCK_LIMIT: Duration = Duration::from_secs(10);

/// Why a pump stopped.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Nobody takes what it yields any more.
    Closed,
    /// What was asked for cannot be continued, and nothing was handed over yet.
    Broken(String),
    /// The history broke off after the stream was opened: the next connection has to say so.
    BrokeOff(Error),
    /// The connection failed, or what came over it makes no sense.
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// What has to be seen before the stream may be called open.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Hold {
    /// PREVIOUS_GTIDS, which says where the stream begins.
    Begin { broken: Option<String> },
    /// The dump of the middle of a file begins.
    Middle { at: Position },
    /// The walk through the file arrives at the place, with the same transactions before it.
    Walk { at: Position, gtids: Executed },
    /// PREVIOUS_GTIDS, which must say the same as the place.
    File { at: Position },
    /// The first transaction that the archive does not have, or the end of the log.
    Join,
    /// Nothing: it is open.
    Open,
}

/// A file: its name, and when it was begun in s since 1970.
pub(crate) type FileId = (String, u32);

/// What the source is expected to send next, where it is not just any event of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    /// The made-up ROTATE that names the file.
    Rotate,
    /// The FORMAT_DESCRIPTION at the beginning of the file.
    Format,
    /// The FORMAT_DESCRIPTION that is repeated when a dump begins in the middle of a file.
    RepeatedFormat,
    /// Events.
    Event,
}

/// One connection's work.
#[derive(Debug)]
pub(crate) struct Pump<'a> {
    out: &'a mpsc::Sender<Captured>,
    facts: &'a Facts,
    aside: Aside<'a>,
    timing: Timing,
    /// How commit times come about.
    time: TimeSource,
    /// The source's clock when a commit time was last compared with it.
    clock: Timestamp,
    hold: Hold,
    expect: Expect,
    splitter: Splitter,
    track: Track,
    filling: Filling,
    /// The end of the log when it was joined at the beginning of a file: what lies before that
    /// was history already.
    history: Option<(String, u64)>,
    /// The latest mark that was handed over.
    marked: Option<Timestamp>,
    /// Since when only heartbeats come although the source has written more.
    stuck: Option<Instant>,
    /// The file that is read, as its FORMAT_DESCRIPTION tells it from others of the same name.
    file: Option<FileId>,
    /// What a walk has to find before the place.
    proof: Option<Proof>,
    /// What of another server's log is left out.
    joining: Option<Joining>,
    /// Set when the stream is open.
    opened: &'a AtomicBool,
    /// What the open transaction says, if it is a landmark, and where it begins.
    landmark: Option<(u64, String)>,
    /// Whether the current event is part of the file.
    stored: bool,
    /// Whether the event of the current packet has ended.
    event_ended: bool,
    /// What the source waits for, if it knows pitr as semi-synchronous.
    acks: Option<Acks>,
    /// Commits wait for the current event.
    flag: Option<Flag>,
    /// A packet with a flag has begun.
    is_flagged: bool,
    /// What proves that one file follows another.
    chain: Chain,
}

impl<'a> Pump<'a> {
    /// A pump for a dump that begins at `start`; gives the file and position to ask for, too.
    /// `same` is the file that the last stream was in; `opened` is set when this one is open.
    pub(crate) fn new(
        out: &'a mpsc::Sender<Captured>,
        facts: &'a Facts,
        aside: Aside<'a>,
        timing: Timing,
        start: Start,
        same: Option<FileId>,
        opened: &'a AtomicBool,
    ) -> (Self, String, u64) {
        let magic = MAGIC.len() as u64;
        let history = matches!(start, Start::Begin { .. }).then(|| facts.current.clone());
        let mut joining = None;
        let (hold, file, position, gtids) = match start {
            Start::Begin { broken } => {
                (Hold::Begin { broken }, facts.current.0.clone(), magic, None)
            }
            Start::Middle { at, gtids } => {
                let (file, offset) = (at.log.clone(), at.offset);
                (Hold::Middle { at }, file, offset.max(magic), Some(gtids))
            }
            Start::Walk { at, gtids } => {
                let file = at.log.clone();
                (Hold::Walk { at, gtids }, file, magic, None)
            }
            Start::File { at, gtids, file } => (Hold::File { at }, file, magic, Some(gtids)),
            Start::Join { gtids, file } => {
                let (had, archived) = (gtids.clone(), gtids);
                joining = Some(Joining { had, archived, head: vec![], skipping: true });
                (Hold::Join, file, magic, None)
            }
        };
        let mut track = Track::new(&file, position, gtids);
        track.unlogged = Some(facts.purged.clone());
        let pump = Self {
            out,
            facts,
            aside,
            time: if timing.is_sampled() { TimeSource::Header } else { TimeSource::Commit },
            timing,
            clock: Timestamp::from_micros(0),
            hold,
            expect: Expect::Rotate,
            splitter: Splitter::default(),
            track,
            filling: Filling::default(),
            history,
            marked: None,
            stuck: None,
            file: same,
            proof: None,
            joining,
            opened,
            landmark: None,
            stored: false,
            event_ended: false,
            acks: None,
            flag: None,
            is_flagged: false,
            chain: if facts.named { Chain::Gtids } else { Chain::Numbers },
        };
        (pump, file, position)
    }

    /// Has a walk to `place` compare what comes directly before it with what the archive has there.
    pub(crate) fn compare(&mut self, place: &Position, before: Bytes) {
        if let Hold::Walk { at, .. } = &self.hold
            && at.is_same_place(place)
        {
            let start = at.offset.saturating_sub(before.len() as u64);
            self.proof = Some(Proof { next: MAGIC.len() as u64, start, bytes: before });
        }
    }

    /// Whether a walk has nothing to compare what it finds with.
    pub(crate) fn lacks_proof(&self) -> bool {
        matches!(self.hold, Hold::Walk { .. })
            && self.proof.as_ref().is_none_or(|proof| proof.bytes.is_empty())
    }

    /// Whether transactions without GTIDs came, or may have come.
    pub(crate) fn is_anonymous(&self) -> bool {
        self.chain == Chain::Numbers
    }

    /// Has what is durable acknowledged. The connection must be registered for that.
    pub(crate) fn acknowledge(&mut self, mut acks: Acks) {
        acks.begin_file(&self.track.log);
        self.acks = Some(acks);
    }

    /// Whether [`Captured::Opened`] was sent.
    pub(crate) fn is_open(&self) -> bool {
        self.hold == Hold::Open
    }

    /// The file that is read.
    pub(crate) fn file(&self) -> Option<FileId> {
        self.file.clone()
    }

    /// Reads until the connection ends or nobody listens any more.
    pub(crate) async fn run(&mut self, mut reader: FragmentReader) -> Stop {
        match self.work(&mut reader).await {
            Ok(()) => Stop::Closed,
            Err(Stop::Failed(error)) => {
                let forked = self.track.forked || error.class() == crate::error::Class::Corrupt;
                match self.hold {
                    Hold::Walk { .. } | Hold::File { .. } if forked => {
                        Stop::Broken(format!("the source has another history: {error}"))
                    }
                    Hold::Open if self.track.forked => Stop::BrokeOff(error),
                    _ => Stop::Failed(error),
                }
            }
            Err(stop) => stop,
        }
    }

    async fn work(&mut self, reader: &mut FragmentReader) -> Result<(), Stop> {
        let mut heard = Instant::now();
        loop {
            while let Some(fragment) = reader.buffered()? {
                self.fragment(fragment).await?;
                if std::mem::take(&mut self.is_flagged) {
                    reader.may_restart();
                }
            }
            self.answer(reader).await?;
            let due = self.filling.since.map(|since| since + FLUSH_AFTER);
            if due.is_some_and(|due| due <= Instant::now()) {
                self.flush().await?;
                continue;
            }
            tokio::select! {
                biased;
                filled = reader.fill() => {
                    filled?;
                    heard = Instant::now();
                }
                end = self.timing.next() => self.timed(end).await?,
                () = self.out.closed() => return Err(Stop::Closed),
                () = synced(self.acks.as_mut()) => {}
                () = tokio::time::sleep_until(due.unwrap_or(heard + SILENCE_LIMIT)) => {
                    if due.is_none() {
                        return Err(Error::unavailable(format!(
                            "the source has been silent for {} s", SILENCE_LIMIT.as_secs()
                        )).into());
                    }
                }
            }
        }
    }

    /// Answers for what is durable by now. What commits wait for, and is not, is handed over at
    /// once: all that has arrived goes into one sync.
    async fn answer(&mut self, reader: &mut FragmentReader) -> Result<(), Stop> {
        let Some(acks) = self.acks.as_mut().filter(|_| self.hold == Hold::Open) else {
            return Ok(());
        };
        if let Some(ack) = acks.due() {
            reader.answer(&ack).await?;
        }
        if acks.is_owed() { self.flush().await } else { Ok(()) }
    }

    async fn fragment(&mut self, fragment: Fragment) -> Result<(), Stop> {
        let mut bytes = fragment.bytes;
        if fragment.first {
            self.event_ended = false;
            let mark = (!bytes.is_empty()).then(|| bytes.split_to(1));
            match mark.as_deref() {
                Some([0x00]) => {}
                Some([0xff]) => return Err(self.refused(&bytes)),
                Some([0xfe]) => {
                    return Err(Error::unavailable("the source ended the dump").into());
                }
                _ => return Err(self.track.corrupt("a packet without an event").into()),
            }
            if let Some(acks) = &mut self.acks {
                self.flag = acks.strip(&mut bytes)?;
                self.is_flagged = self.flag.is_some();
            }
        }
        let more_than_one = "a packet that is not exactly one event";
        self.splitter.push(bytes);
        while let Some(part) = self.splitter.next()? {
            if self.event_ended {
                return Err(self.track.corrupt(more_than_one).into());
            }
            self.event_ended = part.last;
            self.part(part).await?;
        }
        // A packet of a multiple of 16 MiB - 1 ends with a fragment without bytes.
        let between = self.splitter.is_between_events();
        if (self.event_ended && !between) || (fragment.last && !self.event_ended) {
            return Err(self.track.corrupt(more_than_one).into());
        }
        Ok(())
    }

    async fn part(&mut self, part: Part) -> Result<(), Stop> {
        if let Some(head) = &part.head {
            match (self.expect, head.kind) {
                (Expect::Event, kind::FORMAT_DESCRIPTION) => {
                    return Err(self.track.corrupt("a second FORMAT_DESCRIPTION").into());
                }
                (Expect::Format, kind::FORMAT_DESCRIPTION) => {
                    self.expect = Expect::Event;
                    self.file = Some((self.track.log.clone(), head.timestamp));
                }
                (Expect::RepeatedFormat, kind::FORMAT_DESCRIPTION) => {
                    self.expect = Expect::Event;
                    self.track.checksum = FormatDescription::parse(&part.bytes)?.checksum;
                    return self.open_in_the_middle(head.timestamp).await;
                }
                (_, _) if head.is_artificial() => return self.made_up(head, &part).await,
                (Expect::Event, _) => {}
                _ => return Err(self.track.corrupt("not the beginning of a dump").into()),
            }
            self.check_incident(head)?;
            self.stuck = None;
            self.stored = !matches!(self.hold, Hold::Walk { .. });
            if self.joining.is_some() {
                self.stored = self.is_missing(head, &part).await?;
            }
            if self.stored {
                self.filling.see_origin(head.server_id);
                self.look_for_landmark(head, &part);
                if head.is_strange() {
                    self.filling.see_strange(head.kind, self.track.offset);
                }
            }
        }
        if let Some(proof) = &mut self.proof
            && !proof.agrees(&part.bytes)
        {
            return Err(Stop::Broken(format!(
                "{} of the source is not the one that was captured: it was reset, and holds other \
                 bytes",
                self.track.log
            )));
        }
        let end = self.track.take(&part)?;
        if self.stored {
            self.store(&part.bytes).await?;
        }
        if let Some(end) = end {
            if let (Some(acks), Some(flag)) = (&mut self.acks, self.flag.take()) {
                acks.owe(flag, self.track.offset);
            }
            self.ended(end).await?;
        }
        Ok(())
    }

    /// An INCIDENT says that the source itself lost events: the history breaks off there. One
    /// that lies behind a first capture, or behind a break, is no news.
    fn check_incident(&mut self, head: &Head) -> Result<()> {
        let is_left_out = self.joining.as_ref().is_some_and(|joining| joining.skipping);
        if head.kind != kind::INCIDENT || is_left_out {
            return Ok(());
        }
        let here = &self.track;
        let before = |(log, end): &(String, u64)| *log == here.log && here.offset < *end;
        if self.history.as_ref().is_some_and(before) {
            return Ok(());
        }
        self.track.forked = true;
        Err(self.track.corrupt("the source lost events and says so by an INCIDENT event"))
    }

    /// A statement within a transaction may be one that somebody will want to go back before. One
    /// that cannot be read is none: the archive is whole without it.
    fn look_for_landmark(&mut self, head: &Head, part: &Part) {
        if head.kind != kind::QUERY || self.landmark.is_some() || !self.track.is_open() {
            return;
        }
        let bytes = if part.last {
            body(&part.bytes, self.track.checksum).unwrap_or_default()
        } else {
            part.bytes.get(HEAD_BYTES..).unwrap_or_default()
        };
        let text = Query::parse(bytes).ok().and_then(|query| landmark::text(query.statement));
        self.landmark = text.map(|text| (self.track.whole, text));
    }

    /// Adds bytes of the file.
    async fn store(&mut self, mut bytes: &[u8]) -> Result<(), Stop> {
        loop {
            // What comes before the stream is open is short, and is kept until then.
            let room = if self.is_open() { self.filling.room() } else { usize::MAX };
            let (now, later) = bytes.split_at(bytes.len().min(room));
            if self.filling.since.is_none() {
                self.filling.since = Some(Instant::now());
            }
            self.filling.chunk.bytes.extend_from_slice(now);
            bytes = later;
            if bytes.is_empty() {
                return Ok(());
            }
            self.flush().await?;
        }
    }

    /// An event of the file ends.
    async fn ended(&mut self, end: End) -> Result<(), Stop> {
        if self.stored && end != End::Within {
            self.filling.whole = Some(self.track.whole);
            if let End::Record(event) = end {
                let at = event.immediate_commit_ts.map(|at| self.not_in_the_future(at));
                let chunk = &mut self.filling.chunk;
                chunk.records += 1;
                if event.gtid.is_none() {
                    self.chain = Chain::Numbers;
                }
                if let Some((offset, text)) = self.landmark.take() {
                    let at = event.immediate_commit_ts;
                    let landmark = Landmark { offset, at, text, more: 0 };
                    add_landmark(&mut chunk.landmarks, landmark, LANDMARKS_MAX);
                }
                chunk.last_at = chunk.last_at.max(at);
                chunk.first_at = match (chunk.first_at, at) {
                    (Some(first), Some(at)) => Some(first.min(at)),
                    (first, at) => first.or(at),
                };
            }
        }
        if let (true, Some(joining)) = (self.stored, &mut self.joining)
            && let End::Record(event) = end
        {
            if event.gtid.is_some_and(|gtid| !joining.archived.add(gtid)) {
                self.track.forked = true;
                return Err(self.track.corrupt("a transaction comes twice").into());
            }
            self.settle_joining();
        }
        if self.hold != Hold::Open {
            self.try_open().await?;
        }
        if self.filling.room() == 0 {
            self.flush().await?;
        }
        Ok(())
    }

    /// A session may give its events any time (`SET timestamp`); nothing that has come can have been
    /// committed later than now.
    fn not_in_the_future(&mut self, at: Timestamp) -> Timestamp {
        if self.time == TimeSource::Header && at > self.clock {
            let now = Timestamp::now().as_micros();
            self.clock = Timestamp::from_micros(now.saturating_add(self.facts.skew_micros));
            return at.min(self.clock);
        }
        at
    }

    /// The end of the log at an instant has come.
    async fn timed(&mut self, end: LogEnd) -> Result<(), Stop> {
        let chunk = &self.filling.chunk;
        self.timing.note(end, &self.track.log, chunk.start);
        // Between transactions, with all that came handed over: else it goes with its bytes.
        let idle = chunk.bytes.is_empty() && self.hold == Hold::Open && !self.track.is_open();
        if idle && let Some(mark) = self.timing.alive(&self.track.log, self.track.offset) {
            return self.send(Captured::Alive(mark)).await;
        }
        Ok(())
    }

    /// Opens the stream, if what it was held for has been seen.
    async fn try_open(&mut self) -> Result<(), Stop> {
        let (offset, whole) = (self.track.offset, self.track.whole);
        match &self.hold {
            Hold::Walk { at, gtids } if offset >= at.offset => {
                let known = self.track.gtids.get_or_insert_with(|| gtids.clone());
                if whole != at.offset || known != gtids {
                    return Err(Stop::Broken(format!(
                        "{} of the source is not the one that was captured: at {} it has {}",
                        at.log,
                        at.offset,
                        if whole == at.offset { "other transactions" } else { "no boundary" },
                    )));
                }
                let at = at.clone();
                self.filling.chunk.start = offset;
                self.open(at, Continuity::Continues).await
            }
            Hold::Begin { broken } if self.track.gtids.is_some() => {
                let continuity = match broken.clone() {
                    Some(reason) => Continuity::Broken(reason),
                    None => Continuity::Begins,
                };
                self.open(self.beginning(), continuity).await
            }
            // Its FORMAT_DESCRIPTION comes first; PREVIOUS_GTIDS was compared by the track.
            Hold::File { at } if !self.track.awaits_gtids => {
                let at = at.clone();
                let another = at.log != self.track.log;
                self.open(at, Continuity::Continues).await?;
                if another {
                    self.send(Captured::Log(self.beginning())).await?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Opens the stream in the middle of a file that was begun at this instant.
    async fn open_in_the_middle(&mut self, begun: u32) -> Result<(), Stop> {
        let Hold::Middle { at } = &self.hold else { return Ok(()) };
        let at = at.clone();
        if self.file.as_ref().is_some_and(|(log, was)| *log == at.log && *was != begun) {
            return Err(Stop::Broken(format!(
                "the source has another {} than the one that was captured: it was reset",
                at.log
            )));
        }
        self.file = Some((at.log.clone(), begun));
        self.filling.chunk.start = at.offset;
        self.open(at, Continuity::Continues).await
    }

    async fn open(&mut self, at: Position, continuity: Continuity) -> Result<(), Stop> {
        self.hold = Hold::Open;
        self.opened.store(true, Ordering::Release);
        let server = Server {
            version: self.facts.version.clone(),
            identity: self.facts.identity.clone(),
            anonymous: !self.facts.named,
        };
        let skew_micros = self.facts.skew_micros;
        self.send(Captured::Opened { server, at, continuity, skew_micros }).await
    }

    /// The first byte of the current file.
    fn beginning(&self) -> Position {
        Position { gtids: self.gtids(), ..Position::new(&self.track.log, 0) }
    }

    fn gtids(&self) -> String {
        if let Some(joining) = &self.joining {
            return joining.archived.to_string();
        }
        self.track.gtids.as_ref().map(Executed::to_string).unwrap_or_default()
    }

    /// An event that the source made up for its reader.
    async fn made_up(&mut self, head: &Head, part: &Part) -> Result<(), Stop> {
        if !part.last {
            return Err(self.track.corrupt("a made-up event of more than 64 KiB").into());
        }
        // Before the first FORMAT_DESCRIPTION it is not known whether a checksum is at the end.
        let has_crc = verify_crc(&part.bytes);
        let checksum = if has_crc { Checksum::Crc32 } else { Checksum::None };
        let body = body(&part.bytes, checksum)?;
        match head.kind {
            kind::ROTATE => self.rotate(&Rotate::parse(body)?).await,
            kind::HEARTBEAT | kind::HEARTBEAT_V2 => {
                let beat = Heartbeat::parse(head, body)?;
                self.heartbeat(&beat).await
            }
            // Where a replica stands that connects by GTID: it stands in no file.
            kind::MARIA_GTID_LIST => Ok(()),
            other => {
                let what = format!("a made-up event of type {other}");
                Err(self.track.corrupt(&what).into())
            }
        }
    }

    /// The next events are those of this file.
    async fn rotate(&mut self, rotate: &Rotate) -> Result<(), Stop> {
        let magic = MAGIC.len() as u64;
        if self.expect == Expect::Rotate {
            if rotate.file != self.track.log || rotate.position != self.track.offset {
                return Err(self.track.corrupt("the dump begins elsewhere").into());
            }
            if rotate.position != magic || matches!(self.hold, Hold::Middle { .. }) {
                self.expect = Expect::RepeatedFormat;
                return Ok(());
            }
        } else {
            if rotate.file == self.track.log || rotate.position != magic {
                return Err(self.track.corrupt("the log goes on at an odd place").into());
            }
            if !matches!(self.hold, Hold::Open | Hold::Join) {
                return Err(self.track.corrupt("the file ends before the place").into());
            }
            self.flush().await?;
            self.check_chain(&rotate.file).await?;
        }
        self.track.begin_file(&rotate.file)?;
        if let Some(acks) = &mut self.acks {
            acks.begin_file(&rotate.file);
        }
        self.expect = Expect::Format;
        if let Some(joining) = &mut self.joining {
            joining.head = MAGIC.to_vec();
            if joining.skipping {
                return Ok(());
            }
        }
        self.filling.chunk.start = 0;
        if self.hold == Hold::Open {
            // What was seen in the log before has to be named again.
            self.filling.origins.clear();
            self.send(Captured::Log(self.beginning())).await?;
        }
        if !matches!(self.hold, Hold::Walk { .. }) {
            self.store(&MAGIC).await?;
        }
        Ok(())
    }

    /// Nothing has come for a while. If the source says that its log ends here, then everything
    /// committed until now was handed over.
    async fn heartbeat(&mut self, beat: &Heartbeat) -> Result<(), Stop> {
        let joins = self.joining.as_ref().is_some_and(|joining| joining.skipping);
        let awaited = self.hold == Hold::Open || joins;
        if self.track.is_open() || !awaited || self.expect != Expect::Event {
            return Ok(());
        }
        let offset = self.track.offset;
        let known = if beat.truncated { offset & 0xffff_ffff } else { offset };
        if beat.file != self.track.log || beat.position != known {
            let what = format!("the source believes to be at {}:{}", beat.file, beat.position);
            return Err(self.track.corrupt(&what).into());
        }
        self.flush().await?;
        let asked = async {
            // Before the end of the log: all of it is logged before that end, if it is at all.
            let executed = match self.facts.flavor.family {
                Family::MySql => Some(self.aside.executed(self.facts).await?),
                Family::MariaDb => None,
            };
            let end = self.aside.end_of_log(self.facts).await?;
            Ok((executed, end, self.is_reset().await?))
        };
        let (executed, (at, file, position)) = match asked.await {
            Ok::<_, Error>((_, _, true)) => return Err(reset().into()),
            Ok((executed, end, false)) => (executed, end),
            Err(error) => {
                tracing::warn!("no proof that nothing is missing: {error}");
                return Ok(());
            }
        };
        let same = file == self.track.log;
        if same && position == offset {
            self.stuck = None;
            if joins {
                self.open_here().await?;
            }
            if let Some(executed) = executed {
                self.check_unlogged(&executed)?;
            }
            return if self.timing.is_sampled() {
                Ok(())
            } else {
                self.mark(at.before(MARGIN)).await
            };
        }
        if same && position < offset {
            self.track.forked = true;
            let what = format!("the file has only {position} bytes at the source: it was reset");
            return Err(self.track.corrupt(&what).into());
        }
        // More is to come, unless the dump waits in a file that nobody writes any more.
        if self.stuck.get_or_insert_with(Instant::now).elapsed() > STUCK_LIMIT {
            let what = format!("the source writes to {file}:{position} and does not send it");
            return Err(Error::unavailable(format!("{}:{offset}: {what}", self.track.log)).into());
        }
        Ok(())
    }

    async fn mark(&mut self, at: Timestamp) -> Result<(), Stop> {
        if self.marked.is_some_and(|marked| at <= marked) {
            return Ok(());
        }
        self.marked = Some(at);
        self.send(Captured::Alive(Mark::new(self.track.offset, at))).await
    }

    /// Hands over what there is, unless the stream is not open yet.
    async fn flush(&mut self) -> Result<(), Stop> {
        let filling = &mut self.filling;
        filling.since = None;
        if self.hold != Hold::Open || filling.chunk.bytes.is_empty() {
            return Ok(());
        }
        let (start, len) = (filling.chunk.end(), filling.chunk.bytes.len());
        // A busy source gets whole chunks at once, an idle one no more than it needs.
        let bytes = Vec::with_capacity((2 * len).clamp(4096, CHUNK_BYTES));
        let next = Chunk { start, bytes, time: self.time, ..Chunk::default() };
        let mut chunk = std::mem::replace(&mut filling.chunk, next);
        // What was kept until the stream was open may be longer; no record ends in its beginning.
        while chunk.bytes.len() > CHUNK_BYTES {
            let rest = chunk.bytes.split_off(CHUNK_BYTES);
            let bytes = std::mem::replace(&mut chunk.bytes, rest);
            let part = Chunk { start: chunk.start, bytes, time: self.time, ..Chunk::default() };
            chunk.start = part.end();
            self.send(Captured::Chunk(part)).await?;
        }
        chunk.urgent = self.acks.as_ref().is_some_and(Acks::is_owed);
        let filling = &mut self.filling;
        if let Some(offset) = filling.whole.take() {
            let gtids = self.gtids();
            chunk.whole = Some(Position { gtids, ..Position::new(&self.track.log, offset) });
        }
        chunk.marks = self.timing.marks(&self.track.log, chunk.start, chunk.end()).await;
        self.send(Captured::Chunk(chunk)).await
    }

    async fn send(&self, captured: Captured) -> Result<(), Stop> {
        self.out.send(captured).await.map_err(|_| Stop::Closed)
    }
}

/// Completes when something that the source waits for may be durable.
async fn synced(acks: Option<&mut Acks>) {
    match acks {
        Some(acks) => acks.synced().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
