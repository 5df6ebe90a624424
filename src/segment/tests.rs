//! What is written comes back, block by block; what was damaged or torn never passes for whole.

use super::format::{self, Entry, Footer, Head, Kind, PREFIX};
use super::*;
use crate::clock::Timestamp;
use crate::error::{Class, Result};
use crate::manifest::{BlockMeta, EngineKind, FORMAT, SegmentHeader, SegmentMeta, Totals};
use crate::position::Position;
use crate::record::{CHUNK_BYTES, Chunk, Mark, Server, TimeSource};
use proptest::prelude::*;
use rstest::rstest;
use std::io::{Cursor, Read, Seek, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

const T0: i64 = 1_714_532_400_000_000;

fn at(micros: i64) -> Timestamp {
    Timestamp::from_micros(T0 + micros)
}

/// The byte that the source has at this offset of its log.
fn source_byte(offset: u64) -> u8 {
    (offset.wrapping_mul(2_654_435_761) >> 21) as u8 & 0x1F
}

fn source_bytes(from: u64, to: u64) -> Vec<u8> {
    (from..to).map(source_byte).collect()
}

fn gtids_at(offset: u64) -> String {
    format!("2f7e1c33-0000-4000-8000-00000000000{}:1-{offset},b:1-7", offset % 3)
}

fn place(offset: u64) -> Position {
    let db = (offset % 16) as u32;
    Position { log: "binlog.000001".into(), offset, gtids: gtids_at(offset), db }
}

fn header(number: u64, start: u64) -> SegmentHeader {
    SegmentHeader {
        format: FORMAT,
        archive: "3f0c2c1a-6a52-4f6e-9f0e-0a4c6f1f2b11".into(),
        source: "shop-mysql".into(),
        engine: EngineKind::Mysql,
        server: Server { version: "9.7.4".into(), identity: "7d0e".into(), anonymous: false },
        timeline: 1,
        number,
        start: place(start),
        opened_at: at(0),
        skew_micros: -3,
        previous: (number > 1).then(|| "ab".repeat(32)),
        broken: None,
        continues: None,
        fork: None,
        head: None,
    }
}

/// A chunk of the source's bytes whose last whole record ends `whole` bytes into it.
fn chunk(start: u64, len: u64, whole: Option<u64>) -> Chunk {
    let time = at(start as i64);
    Chunk {
        strange: vec![],
        landmarks: vec![],
        start,
        bytes: source_bytes(start, start + len),
        records: whole.map_or(0, |_| 2),
        whole: whole.map(|whole| place(start + whole)),
        first_at: whole.map(|_| time),
        last_at: whole.map(|w| time.shifted(w as i64)),
        time: TimeSource::Commit,
        marks: vec![],
        origins: whole.map(|_| vec![(start % 5) as u32]).unwrap_or_default(),
        urgent: false,
    }
}

fn sealed(header: &SegmentHeader, chunks: &[Chunk]) -> (Vec<u8>, SegmentMeta) {
    let mut writer = Writer::create(vec![], header, 1).unwrap();
    for chunk in chunks {
        writer.append(chunk).unwrap();
    }
    writer.finish().unwrap()
}

/// A small segment with everything that a block can have, in three blocks.
fn small_chunks() -> Vec<Chunk> {
    let mut first = chunk(100, 50, Some(40));
    first.marks = vec![Mark::new(120, at(1)), Mark::new(150, at(900))];
    let mut second = chunk(150, 30, Some(30));
    second.time = TimeSource::Header;
    let mut third = chunk(180, 0, None);
    third.time = TimeSource::Sampled;
    third.marks = vec![Mark::within(180, at(5_000), Duration::from_micros(95))];
    vec![first, second, third]
}

fn small() -> (Vec<u8>, SegmentMeta) {
    sealed(&header(2, 100), &small_chunks())
}

fn raw_of<R: Read + Seek>(reader: &mut Reader<R>) -> Result<Vec<u8>> {
    let (mut raw, mut block) = (vec![], vec![]);
    for index in 0..reader.blocks().len() {
        reader.read_block(index, &mut block)?;
        raw.extend_from_slice(&block);
    }
    Ok(raw)
}

fn zstd_dc(stored: &[u8]) -> Vec<u8> {
    let mut child = Command::new("zstd")
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the zstd program is needed for this test");
    let mut stdin = child.stdin.take().unwrap();
    let stored = stored.to_vec();
    let feeder = std::thread::spawn(move || stdin.write_all(&stored));
    let mut raw = vec![];
    child.stdout.take().unwrap().read_to_end(&mut raw).unwrap();
    feeder.join().unwrap().unwrap();
    assert!(child.wait().unwrap().success());
    raw
}

#[test]
fn what_was_appended_is_read_back() {
    let (stored, meta) = small();
    let mut reader = Reader::open(Cursor::new(&stored)).unwrap();
    assert_eq!(reader.meta(), &meta);
    assert_eq!(meta.bytes_stored, stored.len() as u64);
    assert_eq!(meta.totals.end, place(180));
    assert_eq!(meta.totals.records, 4);
    assert_eq!((meta.totals.first_at, meta.totals.last_at), (Some(at(100)), Some(at(180))));
    assert_eq!(meta.totals.known_until, Some(at(5_000)));
    assert_eq!(meta.totals.origins, [0]);
    reader.verify().unwrap();
    assert_eq!(raw_of(&mut reader).unwrap(), source_bytes(100, 180));
    for (index, chunk) in small_chunks().iter().enumerate() {
        assert_eq!(reader.marks(index).unwrap(), chunk.marks);
        let block = &reader.blocks()[index];
        assert_eq!((block.start, block.end(), block.time), (chunk.start, chunk.end(), chunk.time));
        assert_eq!(block.whole_until, chunk.whole.as_ref().map(|whole| whole.offset));
    }
    let scanned = Reader::scan(Cursor::new(&stored)).unwrap();
    assert_eq!(scanned.meta(), &meta);
    assert_eq!(scanned.blocks(), reader.blocks());
}

#[test]
fn the_zstd_program_gives_the_raw_bytes() {
    let chunks = [chunk(4, 3 << 20, Some(3 << 20)), chunk(4 + (3 << 20), 0, None)];
    let (stored, _) = sealed(&header(1, 4), &chunks);
    assert!(zstd_dc(&stored) == source_bytes(4, 4 + (3 << 20)));
    let (stored, _) = small();
    assert_eq!(zstd_dc(&stored), source_bytes(100, 180));
    assert_eq!(zstd_dc(&sealed(&header(1, 4), &[]).0), b"");
}

#[test]
fn every_bit_flipped_is_noticed_and_never_gives_other_bytes() {
    let (stored, _) = small();
    let good = source_bytes(100, 180);
    for place in 0..stored.len() {
        for bit in 0..8 {
            let mut bad = stored.clone();
            bad[place] ^= 1 << bit;
            let noticed = match Reader::open(Cursor::new(&bad)) {
                Err(_) => true,
                Ok(mut reader) => {
                    if let Ok(raw) = raw_of(&mut reader) {
                        assert_eq!(raw, good, "byte {place} bit {bit} gave other bytes");
                    }
                    reader.verify().is_err()
                }
            };
            assert!(noticed, "byte {place} bit {bit} was not noticed");
            if let Ok(mut scanned) = Reader::scan(Cursor::new(&bad)) {
                let raw = raw_of(&mut scanned).unwrap();
                assert!(good.starts_with(&raw) && scanned.torn_bytes() > 0);
            }
        }
    }
}

#[test]
fn any_truncation_of_an_open_segment_gives_its_first_whole_blocks() {
    let (stored, _) = small();
    let full = Reader::open(Cursor::new(&stored)).unwrap();
    let blocks = full.blocks().to_vec();
    let header_len = blocks[0].file_offset;
    for len in 0..stored.len() as u64 {
        let cut = &stored[..len as usize];
        let scanned = Reader::scan(Cursor::new(cut));
        if len < header_len {
            assert_eq!(scanned.unwrap_err().class(), Class::Corrupt);
            assert!(Reader::header_is_torn(&mut Cursor::new(cut)).unwrap());
            continue;
        }
        let mut scanned = scanned.unwrap();
        let whole = blocks.iter().take_while(|b| b.file_offset + b.stored_len <= len).count();
        assert_eq!(scanned.blocks(), &blocks[..whole]);
        assert!(!scanned.meta().sealed);
        assert_eq!(scanned.meta().bytes_stored + scanned.torn_bytes(), len);
        let end = blocks[..whole].last().map_or(100, BlockMeta::end);
        assert_eq!(raw_of(&mut scanned).unwrap(), source_bytes(100, end));
        assert!(Reader::open(Cursor::new(cut)).is_err());
        assert!(!Reader::header_is_torn(&mut Cursor::new(cut)).unwrap());
    }
}

/// Changes a byte of one of pitr's frames and makes its CRC right again.
fn forge(stored: &[u8], frame: usize, at: usize, value: u8) -> Vec<u8> {
    let (from, to) = skippable_frames(stored)[frame];
    let mut bad = stored.to_vec();
    bad[from + at] = value;
    let crc = crc32c::crc32c(&bad[from..to - 4]).to_le_bytes();
    bad[to - 4..to].copy_from_slice(&crc);
    bad
}

#[rstest]
#[case::version(1, 12, Class::Refused)]
#[case::kind(1, 14, Class::Corrupt)]
#[case::reserved(1, 15, Class::Corrupt)]
#[case::unknown_flag(3, 16 + 24, Class::Corrupt)]
#[case::unknown_time_source(3, 16 + 25, Class::Corrupt)]
#[case::reserved_in_description(3, 16 + 26, Class::Corrupt)]
#[case::absent_whole_until(3, 16 + 32, Class::Corrupt)]
#[case::absent_first_at(3, 16 + 40, Class::Corrupt)]
#[case::database_without_a_whole_record(3, 84, Class::Corrupt)]
#[case::too_many_raw_bytes(1, 16 + 11, Class::Corrupt)]
#[case::mark_outside(1, 101, Class::Corrupt)]
fn a_head_with_a_right_crc_and_wrong_fields_is_refused(
    #[case] frame: usize,
    #[case] at: usize,
    #[case] class: Class,
) {
    let stored = small().0;
    let (from, to) = skippable_frames(&stored)[frame];
    assert!(Head::decode(&stored[from..to]).is_ok());
    let bad = forge(&stored, frame, at, 0x7F);
    assert_eq!(Head::decode(&bad[from..to]).unwrap_err().class(), class);
}

#[test]
fn an_index_that_disagrees_with_a_head_is_noticed() {
    let stored = small().0;
    let (from, to) = *skippable_frames(&stored).last().unwrap();
    let first_entry = to - from - format::TRAILER - 3 * format::ENTRY;
    let bad = forge(&stored, 4, first_entry + 16 + 25, 2);
    let mut reader = Reader::open(Cursor::new(&bad)).unwrap();
    assert_eq!(reader.marks(0).unwrap_err().class(), Class::Corrupt);
    assert_eq!(reader.read_block(0, &mut vec![]).unwrap_err().class(), Class::Corrupt);
}

#[test]
fn a_block_that_is_missing_in_the_middle_ends_a_scan() {
    let (stored, _) = small();
    let blocks = Reader::open(Cursor::new(&stored)).unwrap().blocks().to_vec();
    let (second, third) = (&blocks[1], &blocks[2]);
    let mut spliced = stored[..second.file_offset as usize].to_vec();
    let end = third.file_offset + third.stored_len;
    spliced.extend_from_slice(&stored[third.file_offset as usize..end as usize]);
    let mut scanned = Reader::scan(Cursor::new(&spliced)).unwrap();
    assert_eq!((scanned.blocks().len(), scanned.torn_bytes()), (1, third.stored_len));
    // It begins right there: no block was damaged, the one before it is not there.
    assert!(!scanned.goes_on_behind_damage().unwrap());
}

#[test]
fn damage_with_whole_blocks_behind_it_is_told_from_a_torn_end() {
    let (stored, _) = small();
    let blocks = Reader::open(Cursor::new(&stored)).unwrap().blocks().to_vec();
    let last = blocks.last().unwrap();
    let end = (last.file_offset + last.stored_len) as usize;
    for (n, block) in blocks.iter().enumerate() {
        for at in [0, block.stored_len / 2, block.stored_len - 1] {
            let mut bad = stored[..end].to_vec();
            bad[(block.file_offset + at) as usize] ^= 1;
            let mut scanned = Reader::scan(Cursor::new(&bad)).unwrap();
            assert_eq!(scanned.blocks().len(), n);
            assert_eq!(scanned.goes_on_behind_damage().unwrap(), n + 1 < blocks.len());
        }
    }
    // The end of the segment stands behind its last block.
    let mut bad = stored.clone();
    bad[end - 1] ^= 1;
    assert!(Reader::scan(Cursor::new(&bad)).unwrap().goes_on_behind_damage().unwrap());
    for end in (blocks[0].file_offset..end as u64).step_by(7) {
        let mut torn = Reader::scan(Cursor::new(&stored[..end as usize])).unwrap();
        assert!(!torn.goes_on_behind_damage().unwrap(), "{end}");
    }
}

#[test]
fn a_mark_inside_a_record_counts_once_the_record_is_whole() {
    let mut writer = Writer::create(vec![], &header(1, 0), 1).unwrap();
    let mut first = chunk(0, 100, Some(40));
    first.marks = vec![Mark::new(40, at(50)), Mark::new(90, at(70))];
    writer.append(&first).unwrap();
    assert_eq!(writer.totals().known_until, Some(at(50)));
    assert!(!writer.ends_whole());
    let mut second = chunk(100, 10, Some(10));
    (second.first_at, second.last_at) = (None, None);
    writer.append(&second).unwrap();
    assert_eq!(writer.totals().known_until, Some(at(70)));
    assert!(writer.ends_whole());
}

#[test]
fn chunks_that_do_not_fit_are_refused_and_leave_no_trace() {
    let mut writer = Writer::create(vec![], &header(1, 100), 1).unwrap();
    let len = writer.bytes_stored();
    let mut other_log = chunk(100, 5, Some(5));
    other_log.whole.as_mut().unwrap().log = "binlog.000002".into();
    let mut beyond = chunk(100, 5, Some(5));
    beyond.whole.as_mut().unwrap().offset = 106;
    let mut countless = chunk(100, 5, Some(5));
    countless.whole = None;
    let mut stray = chunk(100, 5, Some(5));
    stray.marks = vec![Mark::new(99, at(0))];
    for bad in [chunk(99, 5, Some(5)), other_log, beyond, countless, stray] {
        assert_eq!(writer.append(&bad).unwrap_err().class(), Class::Bug);
    }
    assert_eq!(writer.bytes_stored(), len);
    writer.append(&chunk(100, 5, None)).unwrap();
    assert_eq!(writer.finish().unwrap_err().class(), Class::Bug, "the end is inside a record");
}

#[test]
fn after_a_failed_write_nothing_more_is_written() {
    #[derive(Debug)]
    struct Full(Vec<u8>, usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            match self.1.saturating_sub(self.0.len()).min(bytes.len()) {
                0 => Err(std::io::Error::other("no space left on device")),
                room => {
                    self.0.extend_from_slice(&bytes[..room]);
                    Ok(room)
                }
            }
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (stored, _) = small();
    let mut writer = Writer::create(Full(vec![], stored.len() / 2), &header(2, 100), 1).unwrap();
    let chunks = small_chunks();
    let failed = chunks.iter().position(|chunk| writer.append(chunk).is_err()).unwrap();
    let written = writer.get_ref().0.clone();
    assert_eq!(writer.append(&chunks[failed]).unwrap_err().class(), Class::Unavailable);
    assert_eq!(writer.get_ref().0, written);
    assert_eq!(writer.finish().unwrap_err().class(), Class::Unavailable);
    assert_eq!(Reader::scan(Cursor::new(&written)).unwrap().blocks().len(), failed);
}

#[test]
fn a_rewrite_merges_small_blocks_and_leaves_the_rest_of_a_record_behind() {
    let mut writer = Writer::create(vec![], &header(1, 0), 1).unwrap();
    let step = CHUNK_BYTES as u64 / 4;
    for n in 0..9 {
        let mut chunk = chunk(n * step, step, Some(step - 10));
        let end = chunk.end();
        chunk.marks = (0..3).map(|i| Mark::new(end - 10, at((end + i) as i64))).collect();
        chunk.marks.push(Mark::new(end, at(end as i64 + 9)));
        writer.append(&chunk).unwrap();
    }
    let open = writer.get_ref().clone();
    let mut from = Reader::scan(Cursor::new(&open)).unwrap();
    let (stored, meta) = rewrite(&mut from, vec![], 1).unwrap().unwrap();
    let mut reader = Reader::open(Cursor::new(&stored)).unwrap();
    reader.verify().unwrap();
    let end = 9 * step - 10;
    assert_eq!(meta.totals.end, place(end));
    assert_eq!(meta.totals.records, 18);
    assert_eq!(meta.totals.blocks, 3);
    assert_eq!(meta.totals.known_until, Some(at(9 * step as i64 + 2)));
    assert_eq!(meta.totals.origins, from.meta().totals.origins);
    assert_eq!(raw_of(&mut reader).unwrap(), source_bytes(0, end));
    let marks: Vec<Mark> = (0..3).flat_map(|i| reader.marks(i).unwrap()).collect();
    assert_eq!(marks.len(), 26, "first and last of an offset, and none behind the end");
    assert_eq!(marks[0], Mark::new(step - 10, at(step as i64)));
    assert_eq!(marks[1], Mark::new(step - 10, at(step as i64 + 2)));
}

#[test]
fn a_rewrite_of_nothing_writes_nothing() {
    let mut writer = Writer::create(vec![], &header(1, 0), 1).unwrap();
    writer.append(&chunk(0, 100, None)).unwrap();
    let mut from = Reader::scan(Cursor::new(writer.get_ref().clone())).unwrap();
    assert!(rewrite(&mut from, vec![], 1).unwrap().is_none());
    let mut mark = chunk(100, 0, None);
    mark.marks = vec![Mark::new(100, at(7))];
    writer.append(&mark).unwrap();
    let mut from = Reader::scan(Cursor::new(writer.get_ref().clone())).unwrap();
    assert!(rewrite(&mut from, vec![], 1).unwrap().is_none(), "the mark is inside a record");

    let mut writer = Writer::create(vec![], &header(1, 100), 1).unwrap();
    writer.append(&mark).unwrap();
    let mut from = Reader::scan(Cursor::new(writer.get_ref().clone())).unwrap();
    let (_, meta) = rewrite(&mut from, vec![], 1).unwrap().unwrap();
    assert_eq!((meta.totals.known_until, meta.totals.bytes_raw), (Some(at(7)), 0));
}

#[test]
fn a_long_gtid_set_costs_few_bytes_per_block() {
    let set = |n: u64| -> String {
        let servers =
            (0..500).map(|s| format!("2f7e1c33-0000-4000-8000-{s:012}:1-{}", n * (s % 2)));
        servers.collect::<Vec<_>>().join(",\n")
    };
    let position = |n| Position { gtids: set(n), ..place(n) };
    let head = SegmentHeader { start: position(1000), ..header(1, 1000) };
    let mut writer = Writer::create(vec![], &head, 1).unwrap();
    let small_step =
        |n| Position { gtids: set(1000).replacen("1-1000", &format!("1-{n}"), 1), ..place(n) };
    for n in 1000..1100 {
        let whole = Some(small_step(n + 1));
        writer.append(&Chunk { whole, ..chunk(n, 1, Some(1)) }).unwrap();
    }
    let header_len =
        Reader::scan(Cursor::new(writer.get_ref().clone())).unwrap().blocks()[0].file_offset;
    assert!((writer.bytes_stored() - header_len) / 100 < 160);
    let scanned = Reader::scan(Cursor::new(writer.get_ref().clone())).unwrap();
    assert_eq!(scanned.meta().totals.end, small_step(1100));
}

/// What happens to a segment.
#[derive(Debug, Clone)]
struct Append {
    len: u64,
    whole: Option<u64>,
    mark: bool,
    sync: bool,
}

fn appends() -> impl Strategy<Value = Vec<Append>> {
    let append =
        (0u64..400, proptest::option::weighted(0.6, 0u64..=400), any::<bool>(), any::<bool>())
            .prop_map(|(len, whole, mark, sync)| Append {
                len,
                whole: whole.map(|w| w.min(len)),
                mark,
                sync,
            });
    proptest::collection::vec(append, 0..12)
}

/// What a power cut leaves of a file.
#[derive(Debug, Clone)]
struct Crash {
    /// Share of what was written since the last sync that is still there.
    kept: f64,
    tail: Tail,
}

#[derive(Debug, Clone)]
enum Tail {
    Cut,
    Zeros,
    Hole,
}

fn crashes() -> impl Strategy<Value = Crash> {
    let tail = prop_oneof![Just(Tail::Cut), Just(Tail::Zeros), Just(Tail::Hole)];
    (0.0f64..=1.0, tail).prop_map(|(kept, tail)| Crash { kept, tail })
}

/// A segment under test beside what is known about it.
struct Model {
    writer: Writer<Vec<u8>>,
    /// End and number of records after each whole point.
    wholes: Vec<(u64, u64)>,
    records: u64,
    synced_len: u64,
    synced_whole: u64,
}

impl Model {
    fn new(number: u64, start: u64) -> Self {
        let writer = Writer::create(vec![], &header(number, start), 1).unwrap();
        let synced_len = writer.bytes_stored();
        Self { writer, wholes: vec![(start, 0)], records: 0, synced_len, synced_whole: start }
    }

    fn append(&mut self, step: &Append) {
        let start = self.writer.raw_end();
        let mut chunk = chunk(start, step.len, step.whole);
        if step.mark {
            chunk.marks = vec![Mark::new(chunk.end(), at(chunk.end() as i64))];
        }
        self.records += u64::from(chunk.records);
        self.wholes.extend(chunk.whole.as_ref().map(|whole| (whole.offset, self.records)));
        self.writer.append(&chunk).unwrap();
        if step.sync {
            self.synced_len = self.writer.bytes_stored();
            self.synced_whole = self.writer.totals().end.offset;
        }
    }

    /// Damages the file behind the last sync as a power cut does, reads it again, and gives
    /// where the sealed rest of it ends.
    fn crash(self, number: u64, start: u64, crash: &Crash, raw: &mut Vec<u8>) -> u64 {
        let file = self.writer.get_ref();
        let loose = file.len() as u64 - self.synced_len;
        let kept = self.synced_len + (loose as f64 * crash.kept) as u64;
        let mut left = file[..kept as usize].to_vec();
        match crash.tail {
            Tail::Cut => {}
            // The file had its length already, but not its bytes.
            Tail::Zeros => left.resize(file.len(), 0),
            // Later bytes reached the disk, earlier ones did not.
            Tail::Hole => {
                let lost = file.len().min(kept as usize + 40);
                left.resize(lost, 0);
                left.extend_from_slice(&file[lost..]);
            }
        }
        let mut from = Reader::scan(Cursor::new(&left)).unwrap();
        assert_eq!(from.meta().bytes_stored + from.torn_bytes(), left.len() as u64);
        let Some((stored, meta)) = rewrite(&mut from, vec![], 1).unwrap() else {
            assert_eq!(self.synced_whole, start, "synced records were lost");
            return start;
        };
        let end = meta.totals.end.offset;
        assert!(end >= self.synced_whole, "synced records were lost");
        let whole = self.wholes.iter().rev().find(|(offset, _)| *offset == end);
        let records = whole.expect("cut inside of a record").1;
        assert!(meta.totals.records <= records, "records from nowhere");
        assert_eq!(meta.totals.end, place(end));
        assert_eq!((meta.header.number, meta.header.start.offset), (number, start));
        assert!(meta.totals.known_until.is_none_or(|known| known <= at(end as i64)));
        let mut reader = Reader::open(Cursor::new(stored)).unwrap();
        reader.verify().unwrap();
        raw.extend(raw_of(&mut reader).unwrap());
        end
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn nothing_synced_is_lost_over_crashes_and_reopenings(
        rounds in proptest::collection::vec((appends(), proptest::option::of(crashes())), 1..5),
    ) {
        let (mut start, mut raw) = (7, vec![]);
        for (number, (steps, crash)) in (1u64..).zip(&rounds) {
            let mut model = Model::new(number, start);
            for step in steps {
                model.append(step);
            }
            start = match crash {
                None if model.writer.ends_whole() => {
                    let (stored, meta) = model.writer.finish().unwrap();
                    prop_assert_eq!(meta.totals.records, model.records);
                    let mut reader = Reader::open(Cursor::new(stored)).unwrap();
                    reader.verify().unwrap();
                    raw.extend(raw_of(&mut reader).unwrap());
                    meta.totals.end.offset
                }
                crash => {
                    let whole = Crash { kept: 1.0, tail: Tail::Cut };
                    model.crash(number, start, crash.as_ref().unwrap_or(&whole), &mut raw)
                }
            };
            prop_assert_eq!(&raw, &source_bytes(7, start));
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Reader::open(Cursor::new(&bytes)).is_err());
        prop_assert!(Reader::scan(Cursor::new(&bytes)).is_err());
        Reader::header_is_torn(&mut Cursor::new(&bytes)).unwrap();
    }

    /// Damage that carries a right CRC gets past the first check; the fields must hold by themselves.
    #[test]
    fn damaged_frames_with_a_right_crc_never_panic(
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let (stored, _) = small();
        let mut bad = stored.clone();
        let spans = skippable_frames(&stored);
        for (place, value) in damage {
            let (from, to) = spans[place.index(spans.len())];
            let inside = from + PREFIX + place.index(to - from - PREFIX - 4);
            bad[inside] = value;
        }
        for (from, to) in spans {
            let crc = crc32c::crc32c(&bad[from..to - 4]).to_le_bytes();
            bad[to - 4..to].copy_from_slice(&crc);
        }
        if let Ok(mut reader) = Reader::open(Cursor::new(&bad)) {
            raw_of(&mut reader).ok();
            prop_assert!(reader.verify().is_err() || bad == stored);
        }
        if let Ok(mut reader) = Reader::scan(Cursor::new(&bad)) {
            raw_of(&mut reader).ok();
            rewrite(&mut reader, vec![], 1).ok();
        }
    }
}

/// Begin and end of each frame of pitr's own.
fn skippable_frames(stored: &[u8]) -> Vec<(usize, usize)> {
    let reader = Reader::open(Cursor::new(stored)).unwrap();
    let mut begins: Vec<u64> = reader.blocks().iter().map(|block| block.file_offset).collect();
    let footer = reader.blocks().last().map_or(0, |block| block.file_offset + block.stored_len);
    begins.extend([0, footer]);
    begins.sort_unstable();
    let end = |at: u64| at + format::frame_len(&stored[at as usize..]).unwrap();
    begins.iter().map(|&at| (at as usize, end(at) as usize)).collect()
}

fn fixture(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The golden segment was written by the first version of this format. With `PITR_WRITE_GOLDEN`
/// set the test writes it anew, which is right only when the format's version was raised.
#[test]
fn golden_bytes_decode_and_encode_again_to_the_same() {
    let path = fixture("fixtures/segment/format-1.zst");
    if std::env::var_os("PITR_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, small().0).unwrap();
    }
    let golden = std::fs::read(&path).unwrap();
    let mut reader = Reader::open(Cursor::new(&golden)).unwrap();
    reader.verify().unwrap();
    assert_eq!(raw_of(&mut reader).unwrap(), source_bytes(100, 180));
    assert_eq!(reader.meta().header, header(2, 100));
    assert_eq!(reader.meta().totals, small().1.totals);

    let mut again = vec![];
    let mut frame = vec![];
    let mut index = vec![];
    let mut entries: Vec<Entry> = vec![];
    for (from, to) in skippable_frames(&golden) {
        let bytes = &golden[from..to];
        match format::kind_of(bytes).unwrap() {
            Kind::Header => {
                let header: SegmentHeader = format::decode_header(bytes).unwrap();
                format::encode_header(&mut frame, &header).unwrap();
            }
            Kind::Head => {
                let head = Head::decode(bytes).unwrap();
                head.encode(&mut frame).unwrap();
                assert_eq!(frame.len(), head.encoded_len().unwrap());
                let frame_len = head.description.frame_len;
                entries.push(Entry {
                    file_offset: from as u64,
                    stored_len: (to - from) as u64 + u64::from(frame_len),
                    description: head.description,
                });
                frame.extend_from_slice(&golden[to..to + frame_len as usize]);
            }
            Kind::Footer => {
                let footer: Footer<Totals> = format::decode_footer(bytes).unwrap();
                assert_eq!(footer.entries, entries);
                for entry in &entries {
                    entry.encode(&mut index);
                }
                format::begin_footer(&mut frame, &footer.totals, &index, from as u64).unwrap();
                again.extend_from_slice(&frame);
                let digest = *blake3::hash(&again).as_bytes();
                again.truncate(from);
                format::end_footer(&mut frame, &digest);
            }
        }
        again.extend_from_slice(&frame);
    }
    assert_eq!(again, golden);
}

#[test]
fn the_format_document_belongs_to_the_code() {
    let code = std::fs::read(fixture("src/segment/format.rs")).unwrap();
    let document = std::fs::read_to_string(fixture("docs/SEGMENT_FORMAT.md")).unwrap();
    let line = format!("`src/segment/format.rs` BLAKE3: `{}`", blake3::hash(&code).to_hex());
    assert!(
        document.contains(&line),
        "format.rs has changed: read docs/SEGMENT_FORMAT.md against it, then put in\n{line}"
    );
}
