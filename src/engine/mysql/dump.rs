//! The stream that a replica gets: the log from the beginning of a plan up to the cut.
//!
//! Each dump walks the whole log from its beginning, whatever the replica has, so that what was
//! walked over is counted the same each time; what the replica has already is not sent. Records
//! are left out whole or sent whole. Behind the cut follow heartbeats, nothing else.
//!
//! Events go out as they are, or small transactions merged ([`super::merge`]), with a logical clock
//! that fits what is sent. Made up are only what a source makes up: the ROTATE before each
//! file, heartbeats, and a FORMAT_DESCRIPTION that does not make a replica drop temporary tables
//! when it comes to a file again (`created`), nor take the file for one that was never closed.
//!
//! Where not all transactions have GTIDs, the stream begins at the byte that the replica asks for,
//! be it between two records or, when it connects again, in one.
//!
//! **Invariant:** of a record behind the cut no byte is sent; the decision stands before its
//! first event.

use super::event::{
    self, Checksum, FDE_CREATED_AT, FormatDescription, GtidEvent, MAGIC, Rotate, body, flag, kind,
};
use super::executed::{Executed, TxId};
use super::merge::{self, Merger, Offer, TRANSACTION_BYTES};
use super::packet::{Framer, PacketCodec, Packets};
use super::serve::{Ended, Held};
use super::stream::Part;
use super::walk::{Next, Program, Served, Walk};
use crate::error::{Error, Result};
use crate::position::Position;
use crate::record::{Landing, Piece};
use bytes::{Bytes, BytesMut};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

/// How much is collected before it is written, in bytes.
const WRITE_BYTES: usize = 512 << 10;
/// Where an event's head says where it ends in its file.
const LOG_POS_AT: usize = 13;
/// Where the flags stand in an event's head.
const FLAGS_AT: usize = 17;

/// Whether a FORMAT_DESCRIPTION is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repeated {
    /// It comes as it stands in the file.
    No,
    /// At the beginning of its file.
    Here,
    /// Before what stands further on in its file.
    Elsewhere,
}

/// How a replica wants the stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    /// How often it wants to hear from its source.
    pub(super) heartbeat: Duration,
    /// Whether heartbeats may be of version 2.
    pub(super) heartbeat_version_2: bool,
    /// Whether it wants MariaDB's ANNOTATE_ROWS events.
    pub(super) annotations: bool,
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
    has: Held,
    form: Form,
    walk: Walk<'a>,
    told: Told,
    /// Whether the current event is left out of what is sent.
    muted: bool,
    /// `None` if transactions are sent as they are.
    merging: Option<Merging>,
    /// Where in the file that which is merged now begins, if something is: nothing behind that
    /// was sent.
    unsent: Option<u64>,
    /// Everything executed, as the target names it.
    named: Executed,
}

/// Transactions that are merged.
struct Merging {
    merger: Merger,
    /// The transaction that is read now, if it is short enough.
    open: Option<TxId>,
    /// Its bytes so far.
    bytes: Vec<u8>,
}

/// What the replica was told so far.
struct Told {
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
    /// Where the replica takes itself to be, at the most: it begins with the place of a transaction
    /// and adds the lengths of events.
    offset: u64,
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
        has: Held,
        form: Form,
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
            form,
            walk: Walk::new(program),
            told: Told {
                started: false,
                skipped: false,
                sending: false,
                rotated: None,
                // What the replica was told it is until the first FORMAT_DESCRIPTION.
                checksum: Checksum::Crc32,
                offset: 0,
            },
            muted: false,
            merging: program.merge.as_ref().map(|merge| Merging {
                merger: Merger::new(merge),
                open: None,
                bytes: vec![],
            }),
            unsent: None,
            named: program.base.clone(),
        }
    }

    /// Streams up to the cut, says so, and keeps the connection alive from then on.
    pub(super) async fn run(&mut self, served: &watch::Sender<Option<Arc<Served>>>) -> Ended {
        let left_out = match self.stream().await {
            Ok(left_out) => left_out,
            Err(ended) => return ended,
        };
        let all = self.walk.served(left_out).map(|all| match &self.merging {
            Some(_) => Served { named: self.named.clone(), ..all },
            None => all,
        });
        match all {
            Ok(all) => drop(served.send_replace(Some(Arc::new(all)))),
            Err(error) => return Ended::Fatal(error),
        }
        loop {
            if let Err(ended) = self.beat().await {
                return ended;
            }
            tokio::select! {
                () = tokio::time::sleep(self.form.heartbeat) => {}
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
                    self.walk.check_end().map_err(Ended::Fatal)?;
                    break None;
                }
            };
            match step {
                Step::More => {}
                Step::Cut(Some(left_out)) => break Some(left_out),
                Step::Cut(None) => break self.walk.look_ahead(&mut pieces).await,
            }
        };
        self.send_merged().map_err(Ended::Fatal)?;
        if let Some(missing) = self.has.never_came() {
            return Err(Ended::Fatal(Error::corrupt(format!(
                "the target has executed {missing}, which is not in the archive before the cut"
            ))));
        }
        if !self.told.started {
            self.start_at_end().map_err(Ended::Fatal)?;
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
                () = tokio::time::sleep(self.form.heartbeat) => {
                    // Never within a transaction.
                    if self.told.started && !self.walk.is_open() {
                        self.beat().await?;
                    }
                }
                ended = gone(&mut self.io) => return Err(ended),
            }
        }
    }

    /// The log goes on at `at`.
    fn open(&mut self, at: &Position, head: &Bytes) -> Result<Step> {
        self.send_merged()?;
        let ended_there = self.stands_where_asked();
        let at_cut = self.walk.open(at, head)?;
        if self.walk.joined && self.by_place() {
            return Err(Error::refused(format!(
                "the archive goes on at {at} on another server: there, places do not tell \
                 transactions without GTIDs apart"
            ))
            .hint("take a new baseline behind that, and restore from there"));
        }
        // A file that a killed source wrote may end there, without an event behind it.
        self.told.started |= ended_there && self.walk.is_at_file_start();
        if self.told.started && self.walk.is_at_file_start() {
            self.rotate()?;
        } else if self.told.started && self.walk.joined {
            self.start()?;
        }
        Ok(if at_cut { Step::Cut(None) } else { Step::More })
    }

    /// Sends what stands in `bytes` before the cut.
    async fn take(&mut self, bytes: Bytes) -> Result<Step, Ended> {
        self.walk.push(bytes).map_err(Ended::Fatal)?;
        while let Some(next) = self.walk.next().map_err(Ended::Fatal)? {
            let (part, begins) = match next {
                Next::Part(part, begins) => (part, begins),
                Next::Cut(left_out) => return Ok(Step::Cut(left_out)),
            };
            let at_cut = self.part(&part, begins.as_ref()).map_err(Ended::Fatal)?;
            if self.out.len() >= WRITE_BYTES {
                self.flush().await?;
            }
            if at_cut {
                return Ok(Step::Cut(None));
            }
        }
        Ok(Step::More)
    }

    /// Sends a part, if the replica needs it. Says whether the cut is behind it.
    fn part(&mut self, part: &Part, begins: Option<&GtidEvent>) -> Result<bool> {
        if let Some(head) = &part.head {
            if head.server_id == self.replica_id {
                return Err(self.walk.track()?.corrupt(&format!(
                    "an event has server_id {}, which is the target's own: it would drop it",
                    head.server_id
                )));
            }
            self.muted = head.kind == kind::MARIA_ANNOTATE_ROWS && !self.form.annotations;
            match begins {
                _ if self.by_place() => self.told.sending = self.told.started || self.arrives()?,
                Some(event) => self.begin_record(event)?,
                None if !self.walk.is_open() => {
                    self.send_merged()?;
                    self.told.sending = self.told.started;
                }
                None => {}
            }
        }
        // The file's checksum is known only when its FORMAT_DESCRIPTION was gone over.
        let at_cut = self.walk.take(part)?;
        if self.by_place() && u32::try_from(self.walk.track()?.offset).is_err() {
            return Err(Error::refused(format!(
                "{}: without GTIDs, a replica cannot tell a place beyond 4 GiB",
                self.walk.place()
            ))
            .hint("restore with --apply sql"));
        }
        if let Some(merging) = &mut self.merging
            && merging.open.is_some()
        {
            merging.bytes.extend_from_slice(&part.bytes);
            if !self.walk.is_open() {
                self.end_record()?;
            }
        } else if let Some(gtid) = self.go_alone(part, begins)? {
            self.put_event(&gtid)?;
        } else if self.told.sending && !self.muted {
            self.emit(part)?;
        }
        Ok(at_cut)
    }

    /// Of a transaction that is too long to be merged with others: takes note of what it does to
    /// the groups of tables, and gives its GTID event as it is sent, if this part is it.
    fn go_alone(&mut self, part: &Part, begins: Option<&GtidEvent>) -> Result<Option<Vec<u8>>> {
        let (Some(merging), Some(head)) = (&mut self.merging, &part.head) else { return Ok(None) };
        let checksum = self.walk.track()?.checksum;
        if begins.is_some() {
            let gtid = merging.merger.alone(&part.bytes, checksum)?;
            return Ok(self.told.sending.then_some(gtid));
        }
        merging.merger.note_part(head, &part.bytes, part.last)?;
        Ok(None)
    }

    /// Whether the replica is served by places.
    fn by_place(&self) -> bool {
        matches!(self.has, Held::Before(_))
    }

    /// Whether the walk stands at the place that the replica asked for.
    fn stands_where_asked(&self) -> bool {
        let (Held::Before(place), Ok(track)) = (&self.has, self.walk.track()) else { return false };
        track.log == place.log && track.offset == place.offset.max(MAGIC.len() as u64)
    }

    /// Whether the walk has come to the place that the replica asked for: an event begins there.
    /// Then the replica is told so.
    fn arrives(&mut self) -> Result<bool> {
        let (Held::Before(place), track) = (&self.has, self.walk.track()?) else {
            return Ok(false);
        };
        let at = place.offset.max(MAGIC.len() as u64);
        if track.log != place.log || track.offset < at {
            return Ok(false);
        }
        if track.offset > at {
            return Err(track.corrupt(&format!("the target asks for {place}, within an event")));
        }
        self.told.started = true;
        self.rotate_to(at)?;
        if at > MAGIC.len() as u64 {
            // The file's own one comes by itself otherwise.
            let format = self.walk.format.clone();
            self.format(&format, Repeated::Elsewhere)?;
        }
        Ok(true)
    }

    /// Everything up to the cut was walked over, and nothing of it was sent.
    fn start_at_end(&mut self) -> Result<()> {
        if !self.by_place() {
            return self.start();
        }
        let empty = self.walk.format.is_empty();
        if empty || self.arrives()? {
            return Ok(());
        }
        let what = format!("the target asks for {}, which is not in the archive", self.has);
        Err(self.walk.track()?.corrupt(&what))
    }

    /// A transaction begins: is it merged with others, and if not, does the replica need it?
    fn begin_record(&mut self, event: &GtidEvent) -> Result<()> {
        let Some(gtid) = event.gtid else {
            return Err(Error::refused(format!(
                "{} transactions have no GTID: they cannot be replayed by GTIDs",
                self.walk.place()
            ))
            .hint("restore with --apply sql into a server that is empty"));
        };
        let Some(merging) = &mut self.merging else { return self.begin_sending(gtid) };
        if (1..=TRANSACTION_BYTES).contains(&event.transaction_length) {
            merging.open = Some(gtid);
            merging.bytes.clear();
            return Ok(());
        }
        self.send_merged()?;
        self.begin_sending(gtid)
    }

    /// A transaction that may be merged has ended.
    fn end_record(&mut self) -> Result<()> {
        let track = self.walk.track()?;
        let (checksum, ends) = (track.checksum, track.offset);
        let Some(mut merging) = self.merging.take() else { return Ok(()) };
        let ended = self.merge(&mut merging, checksum, ends);
        self.merging = Some(merging);
        ended
    }

    fn merge(&mut self, merging: &mut Merging, checksum: Checksum, ends: u64) -> Result<()> {
        let Some(gtid) = merging.open.take() else { return Ok(()) };
        let begins = ends - merging.bytes.len() as u64;
        let mut offered = merging.merger.offer(gtid, &merging.bytes, checksum)?;
        if offered != Offer::Taken {
            self.send(merging)?;
        }
        if offered == Offer::Later {
            offered = merging.merger.offer(gtid, &merging.bytes, checksum)?;
        }
        if offered == Offer::Taken {
            self.unsent.get_or_insert(begins);
            return Ok(());
        }
        self.unsent = Some(begins);
        self.begin_sending(gtid)?;
        self.unsent = None;
        merging.merger.note(&merging.bytes, checksum)?;
        for (n, event) in merge::events(&merging.bytes).enumerate() {
            let mut event = Cow::Borrowed(event?);
            if n == 0 {
                event = merging.merger.alone(&event, checksum)?.into();
            }
            if self.told.sending {
                self.put_event(&event)?;
            }
        }
        Ok(())
    }

    /// Sends what is merged so far, if the replica needs it.
    fn send_merged(&mut self) -> Result<()> {
        let Some(mut merging) = self.merging.take() else { return Ok(()) };
        let sent = self.send(&mut merging);
        self.merging = Some(merging);
        sent
    }

    fn send(&mut self, merging: &mut Merging) -> Result<()> {
        for (gtid, bytes) in merging.merger.flush()? {
            // All of them begin at one place.
            self.begin_sending(gtid)?;
            if self.told.sending {
                for event in merge::events(&bytes) {
                    self.put_event(event?)?;
                }
            }
        }
        self.unsent = None;
        Ok(())
    }

    /// A transaction comes next: does the replica need it?
    fn begin_sending(&mut self, gtid: TxId) -> Result<()> {
        if !self.named.add(gtid) {
            return Err(self.walk.track()?.corrupt(&format!("{gtid} comes twice")));
        }
        self.told.sending = !self.has.has(gtid);
        if self.told.sending && !self.told.started {
            self.start()?;
        }
        let begins = self.unsent.unwrap_or(self.walk.track()?.offset);
        self.told.offset = self.told.offset.max(begins);
        if self.told.sending && self.told.skipped {
            self.put_place()?;
            self.told.skipped = false;
        }
        self.told.skipped |= !self.told.sending;
        Ok(())
    }

    /// Tells the replica which file it is in, and how that is written.
    fn start(&mut self) -> Result<()> {
        self.told.started = true;
        if self.walk.format.is_empty() {
            // The log has nothing at all: the archive ends where the baseline begins.
            return Ok(());
        }
        let format = self.walk.format.clone();
        self.rotate()?;
        self.format(&format, Repeated::Here)?;
        let previous = self.walk.previous.clone();
        if !previous.is_empty() {
            self.put_event(&previous)?;
        }
        self.told.skipped = true;
        Ok(())
    }

    /// The made-up ROTATE before each file.
    fn rotate(&mut self) -> Result<()> {
        self.rotate_to(MAGIC.len() as u64)
    }

    fn rotate_to(&mut self, position: u64) -> Result<()> {
        let log = self.walk.track()?.log.clone();
        let rotate = event::artificial_rotate(self.server_id, &log, position, self.told.checksum);
        self.told.rotated = None;
        self.told.offset = position;
        self.put_made_up(&rotate)
    }

    /// FORMAT_DESCRIPTION as it goes over the wire.
    fn format(&mut self, stored: &[u8], repeated: Repeated) -> Result<()> {
        self.told.checksum = FormatDescription::parse(stored)?.checksum;
        let mut format = stored.to_vec();
        if let Some(flags) = format.get_mut(FLAGS_AT) {
            *flags &= !(flag::IN_USE as u8);
        }
        if repeated != Repeated::No
            && let Some(created) = format.get_mut(FDE_CREATED_AT..FDE_CREATED_AT + 4)
        {
            created.fill(0);
        }
        if repeated == Repeated::Elsewhere
            && let Some(log_pos) = format.get_mut(LOG_POS_AT..LOG_POS_AT + 4)
        {
            // Else the replica would take it for a part of the file behind its place.
            log_pos.fill(0);
        }
        if repeated != Repeated::No {
            event::renew_crc(&mut format);
        }
        self.put_event(&format)
    }

    fn emit(&mut self, part: &Part) -> Result<()> {
        if let Some(head) = &part.head {
            match head.kind {
                kind::FORMAT_DESCRIPTION => return self.format(&part.bytes, Repeated::No),
                kind::ROTATE => {
                    let checksum = self.walk.track()?.checksum;
                    let next = Rotate::parse(body(&part.bytes, checksum)?)?;
                    self.told.rotated = Some(next.file);
                }
                _ => {}
            }
            self.told.offset += u64::from(head.length);
            self.framer.begin(u64::from(head.length) + 1, &mut self.out);
            self.put(&[0])?;
        }
        self.put(&part.bytes)
    }

    /// Sends an event of the log.
    fn put_event(&mut self, event: &[u8]) -> Result<()> {
        self.told.offset += event.len() as u64;
        self.put_made_up(event)
    }

    /// Sends one that stands in no log: it does not count for the replica's place.
    fn put_made_up(&mut self, event: &[u8]) -> Result<()> {
        self.framer.begin(event.len() as u64 + 1, &mut self.out);
        self.put(&[0])?;
        self.put(event)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.framer
            .put(bytes, &mut self.out)
            .map_err(|error| Error::bug("an event longer than it says").source(error))
    }

    /// Tells the replica where the next event stands, when it did not get those before it.
    fn put_place(&mut self) -> Result<()> {
        let track = self.walk.track()?;
        let Some(Executed::Maria(state)) = &track.gtids else { return self.put_heartbeat() };
        let (state, offset, checksum) = (state.clone(), track.offset, self.told.checksum);
        let list = event::artificial_gtid_list(self.server_id, &state, offset, checksum);
        self.put_made_up(&list)
    }

    fn put_heartbeat(&mut self) -> Result<()> {
        let Ok(track) = self.walk.track() else { return Ok(()) };
        let (log, offset) = match &self.told.rotated {
            Some(next) => (next.as_str(), MAGIC.len() as u64),
            None => (track.log.as_str(), self.unsent.unwrap_or(track.offset)),
        };
        // Compressed transactions are longer when they are merged, and no heartbeat may be of a
        // place that the replica is beyond.
        let offset = match (&self.told.rotated, &self.program.merge) {
            (None, Some(_)) => offset.max(self.told.offset),
            _ => offset,
        };
        self.told.offset = self.told.offset.max(offset);
        let checksum = self.told.checksum;
        let heartbeat = if self.form.heartbeat_version_2 {
            event::heartbeat_v2(self.server_id, log, offset, checksum)
        } else if u32::try_from(offset).is_ok() {
            event::heartbeat_v1(self.server_id, log, offset, checksum)
        } else {
            // The old form cannot name this place.
            return Ok(());
        };
        self.put_made_up(&heartbeat)
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
