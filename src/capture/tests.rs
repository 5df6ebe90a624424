//! A capture against a model of its source, with connections that break and processes that die.
//!
//! The source never changes: what is asked for again comes again. So whatever happens on the way,
//! the archive must end up with exactly its bytes, and with marks that tell the truth about them.

use super::*;
use crate::manifest::EngineKind;
use crate::segment::Reader;
use proptest::prelude::*;

const NAME: &str = "shop";

/// µs between two records.
const STEP: i64 = 1000;

/// The logs of a source: for each, where its records end.
#[derive(Debug, Clone)]
struct Model(Vec<Vec<u64>>);

/// A place in the model: number of the log, offset in it.
type Place = (usize, u64);

impl Model {
    fn len(&self, log: usize) -> u64 {
        self.0[log].last().copied().unwrap_or(0)
    }

    fn end(&self) -> Place {
        (self.0.len() - 1, self.len(self.0.len() - 1))
    }

    fn bytes(log: usize, from: u64, to: u64) -> Vec<u8> {
        (from..to).map(|at| (at.wrapping_mul(2_654_435_761) >> 19) as u8 ^ log as u8).collect()
    }

    fn is_boundary(&self, (log, offset): Place) -> bool {
        offset == 0 || self.0[log].contains(&offset)
    }

    /// When the last record before a boundary was committed.
    fn committed(&self, (log, offset): Place) -> i64 {
        let before: usize = self.0[..log].iter().map(Vec::len).sum();
        let here = self.0[log].iter().take_while(|end| **end <= offset).count();
        (before + here) as i64 * STEP
    }

    /// The mark that the source gives at this boundary while it streams; not at every one.
    fn mark(&self, (log, offset): Place) -> Option<Mark> {
        let at = self.committed((log, offset));
        (at / STEP % 3 == 0).then(|| mark(offset, at + 100))
    }

    /// The next chunk from `place` on, of at most `len` bytes.
    fn chunk(&self, (log, start): Place, len: u64) -> Chunk {
        let end = self.len(log).min(start + len);
        let ends: Vec<u64> =
            self.0[log].iter().copied().filter(|at| start < *at && *at <= end).collect();
        Chunk {
            start,
            bytes: Self::bytes(log, start, end),
            records: ends.len() as u32,
            whole: ends.last().map(|at| position((log, *at))),
            time: crate::record::TimeSource::Sampled,
            marks: ends.iter().filter_map(|at| self.mark((log, *at))).collect(),
            ..Chunk::default()
        }
    }
}

fn mark(offset: u64, at: i64) -> Mark {
    Mark::new(offset, Timestamp::from_micros(1_700_000_000_000_000 + at))
}

fn position((log, offset): Place) -> Position {
    Position::new(format!("log-{log}"), offset)
}

fn place(position: &Position) -> Place {
    (position.log.strip_prefix("log-").unwrap().parse().unwrap(), position.offset)
}

/// How a connection ends.
#[derive(Debug, Clone, Copy)]
enum Ending {
    /// The source goes away; the same process connects again.
    Broken,
    /// The process is stopped in order, and started again.
    Stopped,
    /// The process dies. Of what was not synced, so many thousandths are on disk, the last bytes
    /// of it as garbage.
    Died { kept: u64, garbage: u64 },
}

#[derive(Debug, Clone)]
struct Connection {
    /// Lengths of the chunks; 0 is a sign of life.
    chunks: Vec<u64>,
    ending: Ending,
}

fn connections() -> impl Strategy<Value = Vec<Connection>> {
    let ending = prop_oneof![
        Just(Ending::Broken),
        Just(Ending::Stopped),
        (0..=1000_u64, 0..40_u64).prop_map(|(kept, garbage)| Ending::Died { kept, garbage }),
    ];
    let length = prop_oneof![1 => Just(0_u64), 4 => 1..60_u64, 2 => 60..2500_u64];
    let one = (proptest::collection::vec(length, 0..30), ending)
        .prop_map(|(chunks, ending)| Connection { chunks, ending });
    proptest::collection::vec(one, 1..8)
}

fn models() -> impl Strategy<Value = Model> {
    let length = prop_oneof![6 => 1..200_u64, 1 => 1000..4000_u64];
    let log = proptest::collection::vec(length, 1..40).prop_map(|lengths| {
        let mut end = 0;
        lengths
            .iter()
            .map(|length| {
                end += length;
                end
            })
            .collect::<Vec<u64>>()
    });
    proptest::collection::vec(log, 1..4).prop_map(Model)
}

/// A capture and the source that it is connected to.
struct Rig {
    root: tempfile::TempDir,
    model: Model,
    capture: Option<Capture>,
    next: Place,
    /// How often the source has said that it is alive: its clock never goes back.
    idle: i64,
    /// The open segment, and how many bytes of it are synced.
    synced: (u64, u64),
}

impl Rig {
    fn new(model: Model) -> Self {
        let root = tempfile::tempdir().unwrap();
        Archive::init(&root.path().join("a")).unwrap();
        let mut rig = Self { root, model, capture: None, next: (0, 0), idle: 0, synced: (0, 0) };
        rig.recover();
        rig
    }

    fn recover(&mut self) {
        let label = Label { source: NAME.into(), engine: EngineKind::Redis, level: 1 };
        let sealing = Sealing { max_bytes: 3000, max_age: Duration::from_hours(1) };
        let shared = Arc::new(Shared::new());
        let capture = Capture::recover(&self.root.path().join("a"), label, sealing, shared);
        self.capture = Some(capture.unwrap());
    }

    fn resume(&self) -> Place {
        self.capture.as_ref().unwrap().resume().as_ref().map_or((0, 0), place)
    }

    fn opened(&mut self) -> Captured {
        self.next = self.resume();
        assert!(self.model.is_boundary(self.next), "{:?} is within a record", self.next);
        let is_first = self.capture.as_ref().unwrap().resume().is_none();
        let continuity = if is_first { Continuity::Begins } else { Continuity::Continues };
        let (server, at) = (Server::default(), position(self.next));
        Captured::Opened { server, at, continuity, skew_micros: 0 }
    }

    /// What the source sends next.
    fn step(&mut self, len: u64) -> Option<Captured> {
        let (log, offset) = self.next;
        if len == 0 {
            self.idle = (self.idle + 1).min(STEP - 200);
            let at = self.model.committed(self.next) + 100 + self.idle;
            return self.model.is_boundary(self.next).then(|| Captured::Alive(mark(offset, at)));
        }
        if offset == self.model.len(log) {
            if self.next == self.model.end() {
                return None;
            }
            self.next = (log + 1, 0);
            return Some(Captured::Log(position(self.next)));
        }
        let chunk = self.model.chunk(self.next, len);
        self.next.1 = chunk.end();
        Some(Captured::Chunk(chunk))
    }

    /// One connection over the channel, to its end in order.
    fn run(&mut self, chunks: &[u64], runtime: &tokio::runtime::Runtime) {
        let (send, receive) = mpsc::channel(chunks.len() + 1);
        send.try_send(self.opened()).unwrap();
        for len in chunks {
            if let Some(captured) = self.step(*len) {
                send.try_send(captured).unwrap();
            }
        }
        drop(send);
        self.capture.as_mut().unwrap().run(receive, runtime.handle()).unwrap();
        let last = self.resume();
        assert!(last <= self.next);
        assert!(
            last.0 < self.next.0 || self.model.committed(last) == self.model.committed(self.next)
        );
    }

    /// One connection that ends with the death of the process.
    fn die(&mut self, chunks: &[u64], kept: u64, garbage: u64) {
        let opened = self.opened();
        self.capture.as_mut().unwrap().take(opened).unwrap();
        self.note_synced();
        for len in chunks {
            let Some(captured) = self.step(*len) else { continue };
            let capture = self.capture.as_mut().unwrap();
            capture.take(captured).unwrap();
            capture.turn().unwrap();
            if len % 4 == 1 {
                capture.sync().unwrap();
            }
            self.note_synced();
        }
        let capture = self.capture.take().unwrap();
        let durable = capture.durable().borrow().as_ref().map_or((0, 0), place);
        let open = capture.open.as_ref().map(|open| {
            let header = open.writer.header();
            capture.open_path(header.timeline, header.number).unwrap()
        });
        drop(capture);
        if let Some(path) = open {
            let written = std::fs::metadata(&path).unwrap().len();
            let unsynced = written - self.synced.1;
            let len = self.synced.1 + unsynced * kept / 1000;
            let mut bytes = std::fs::read(&path).unwrap();
            bytes.truncate(len as usize);
            for byte in bytes.iter_mut().skip((len - garbage.min(len - self.synced.1)) as usize) {
                *byte = 0;
            }
            std::fs::remove_file(&path).unwrap();
            durable::create(&path, &bytes).unwrap();
        }
        self.recover();
        // The beginning of a log is the end of the one before.
        let durable = match durable {
            (log, 0) if log > 0 => (log - 1, self.model.len(log - 1)),
            place => place,
        };
        assert!(self.resume() >= durable, "{durable:?} was durable, {:?} is left", self.resume());
        assert!(self.resume() <= self.next);
    }

    /// After every step: what of the open segment can no longer be lost.
    fn note_synced(&mut self) {
        let Some(open) = &self.capture.as_ref().unwrap().open else { return };
        let number = open.writer.header().number;
        if open.unsynced_since.is_none() {
            self.synced = (number, open.writer.bytes_stored());
        } else if self.synced.0 != number {
            // Its header was synced before it got its name.
            self.synced = (number, open.writer.bytes_stored() - open.unsynced_bytes);
        }
    }

    /// Takes the rest of the source, stops, and compares the archive with the model.
    fn finish(mut self, runtime: &tokio::runtime::Runtime) {
        for _ in 0..2 {
            self.run(&[700; 200], runtime);
        }
        assert_eq!(self.resume(), self.model.end());
        self.capture.take().unwrap().close().unwrap();
        let archive = Archive::open_read_only(&self.root.path().join("a")).unwrap();
        for name in archive.store().list("").unwrap() {
            let extension = Path::new(&name).extension().and_then(|extension| extension.to_str());
            let is_left = matches!(extension, Some("open" | "rewrite" | "tmp"));
            assert!(!is_left, "{name} is left over");
        }
        let mut found: Vec<Vec<u8>> = vec![vec![]; self.model.0.len()];
        let (mut previous, mut end, mut last) = (None, (0, 0), None);
        let segments = archive.catalog().segments_from(NAME, 1, 1, 10_000).unwrap();
        let mut marked = BTreeSet::new();
        for (index, meta) in segments.iter().enumerate() {
            let header = &meta.header;
            assert_eq!(header.number, index as u64 + 1);
            assert_eq!(header.previous, previous, "the chain of digests");
            let mut reader = archive.segment(NAME, 1, header.number).unwrap();
            reader.verify().unwrap();
            assert_eq!(reader.meta().digest, meta.digest);
            let start = place(&header.start);
            assert!(start == end || start == (end.0 + 1, 0) && end.1 == self.model.len(end.0));
            let mut block = vec![];
            for at in 0..reader.blocks().len() {
                let marks = reader.read_block(at, &mut block).unwrap();
                found[start.0].extend_from_slice(&block);
                for mark in marks {
                    self.check_mark(start.0, mark);
                    assert!(last < Some((start.0, mark.offset, mark.at)), "marks grow");
                    last = Some((start.0, mark.offset, mark.at));
                    marked.insert((start.0, mark.offset));
                }
            }
            (previous, end) = (Some(meta.digest.clone()), place(&meta.totals.end));
        }
        for (log, ends) in self.model.0.iter().enumerate() {
            assert_eq!(found[log], Model::bytes(log, 0, self.model.len(log)), "log {log}");
            for at in ends.iter().filter(|at| self.model.mark((log, **at)).is_some()) {
                assert!(marked.contains(&(log, *at)), "the mark at {at} of log {log} is lost");
            }
        }
    }

    /// A mark is true if its offset is a boundary, and its time lies between the commit before it
    /// and the commit behind it: then the instant resolves to this offset.
    fn check_mark(&self, log: usize, found: Mark) {
        assert!(self.model.is_boundary((log, found.offset)), "{found:?}");
        let committed = mark(found.offset, self.model.committed((log, found.offset))).at;
        let behind = committed.shifted(STEP);
        assert!(committed <= found.at && found.at < behind, "{found:?} lies");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn whatever_breaks_on_the_way_the_archive_holds_the_source(
        model in models(),
        connections in connections(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let mut rig = Rig::new(model);
        for connection in &connections {
            match connection.ending {
                Ending::Broken => rig.run(&connection.chunks, &runtime),
                Ending::Stopped => {
                    rig.run(&connection.chunks, &runtime);
                    rig.capture.take().unwrap().close().unwrap();
                    rig.recover();
                }
                Ending::Died { kept, garbage } => rig.die(&connection.chunks, kept, garbage),
            }
            rig.synced = (0, 0);
        }
        rig.finish(&runtime);
    }
}

#[test]
fn a_place_is_found_in_the_open_segment_behind_sealed_ones() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut rig = Rig::new(Model(vec![(1..=50).map(|n| n * 200).collect()]));
    rig.run(&[1000; 7], &runtime);
    assert!(rig.capture.as_ref().unwrap().open.is_some());
    let archive = Archive::open_read_only(&rig.root.path().join("a")).unwrap();
    assert!(archive.catalog().last_segment(NAME, 1).unwrap().unwrap().header.number > 1);
    for offset in (0..=7000).step_by(200) {
        let found = archive.segments_from(NAME, 1, &position((0, offset)), None).unwrap();
        let (first, last) = (found.first().unwrap(), found.last().unwrap());
        let holds = first.header.start.offset..=first.totals.end.offset;
        assert!(holds.contains(&offset), "{offset} is not in {holds:?}");
        assert_eq!(last.totals.end.offset, 7000);
    }
}

#[test]
fn what_stands_behind_damage_is_kept_and_the_source_is_asked_for_it_again() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut rig = Rig::new(Model(vec![(1..=20).map(|n| n * 100).collect()]));
    rig.run(&[300; 4], &runtime);
    let open = rig.capture.take().unwrap().open_path(1, 1).unwrap();
    let mut damaged = std::fs::read(&open).unwrap();
    let second = Reader::scan(std::io::Cursor::new(&damaged)).unwrap().blocks()[1].clone();
    damaged[(second.file_offset + second.stored_len - 1) as usize] ^= 1;
    std::fs::remove_file(&open).unwrap();
    durable::create(&open, &damaged).unwrap();
    // One of the same number, from an earlier time.
    durable::create(&open.with_extension("damaged"), b"earlier").unwrap();
    rig.recover();
    assert_eq!(rig.resume(), (0, 300));
    assert_eq!(std::fs::read(open.with_extension("damaged")).unwrap(), b"earlier");
    assert_eq!(std::fs::read(open.with_extension("2.damaged")).unwrap(), damaged);
    rig.finish(&runtime);
}

#[test]
fn a_clock_that_is_set_back_between_two_connections_stands_still_until_it_has_caught_up() {
    let root = tempfile::tempdir().unwrap();
    Archive::init(root.path()).unwrap();
    let sealing = Sealing { max_bytes: 3000, max_age: Duration::from_hours(1) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // What the clock says at the end of each chunk of ten bytes: it goes back with the second connection.
    for (connection, clocks) in [[100, 200], [50, 150], [170, 300]].iter().enumerate() {
        let label = Label { source: NAME.into(), engine: EngineKind::Redis, level: 1 };
        let mut capture =
            Capture::recover(root.path(), label, sealing, Arc::new(Shared::new())).unwrap();
        let (send, receive) = mpsc::channel(3);
        let start = connection as u64 * 20;
        let continuity = if connection == 0 { Continuity::Begins } else { Continuity::Continues };
        let (server, at) = (Server::default(), position((0, start)));
        send.try_send(Captured::Opened { server, at, continuity, skew_micros: 0 }).unwrap();
        for (start, clock) in [start, start + 10].into_iter().zip(clocks) {
            let end = start + 10;
            let chunk = Chunk {
                start,
                bytes: vec![0; 10],
                whole: Some(position((0, end))),
                time: crate::record::TimeSource::Sampled,
                marks: vec![mark(end, *clock)],
                ..Chunk::default()
            };
            send.try_send(Captured::Chunk(chunk)).unwrap();
        }
        drop(send);
        capture.run(receive, runtime.handle()).unwrap();
        capture.close().unwrap();
    }
    let archive = Archive::open_read_only(root.path()).unwrap();
    let mut marks = vec![];
    for number in 1..=3 {
        let mut segment = archive.segment(NAME, 1, number).unwrap();
        for index in 0..segment.blocks().len() {
            let found = segment.marks(index).unwrap();
            marks.extend(found.iter().map(|m| (m.offset, m.at.as_micros() % STEP, m.span_micros)));
        }
    }
    let held = [(10, 100, 0), (20, 200, 0), (30, 200, 150), (40, 200, 50), (50, 200, 30)];
    assert_eq!(marks, [&held[..], &[(60, 300, 0)]].concat());
}

#[test]
fn a_sign_of_life_at_another_place_than_the_end_says_nothing() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut rig = Rig::new(Model(vec![vec![100, 200, 300]]));
    rig.run(&[200], &runtime);
    let capture = rig.capture.as_mut().unwrap();
    let known = capture.shared.known_until();
    for (offset, moves) in [(100, false), (300, false), (200, true)] {
        capture.take(Captured::Alive(mark(offset, 50 * STEP))).unwrap();
        capture.sync().unwrap();
        assert_eq!(capture.shared.known_until() != known, moves, "{offset}");
    }
}
