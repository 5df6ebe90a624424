//! Hours of archives made for the purpose: streams of Redis, whose times are marks.

use super::*;
use crate::manifest::Continuity::{Gap, Proved, Unproved};
use crate::manifest::{ArchiveMeta, FORMAT, SegmentHeader};
use crate::position::Position;
use crate::record::{Chunk, Mark, Server};
use crate::segment::Writer;
use proptest::prelude::*;

const SOURCE: &str = "cache";

/// Minutes after a full hour.
fn at(minute: i64) -> Timestamp {
    Timestamp::from_secs(1_714_532_400 + 60 * minute)
}

/// A command that sets a key, and the minute of the first mark behind it.
type Write = (u8, i64);

/// An archive with a segment for each list of blocks of writes; the last one stays open.
fn made(segments: &[Vec<Vec<Write>>], seal_last: bool) -> (tempfile::TempDir, Archive) {
    let dir = tempfile::tempdir().unwrap();
    let meta = Archive::init(dir.path()).unwrap().meta().clone();
    // As old as what is in it.
    let meta = ArchiveMeta { created: at(0), ..meta };
    std::fs::write(dir.path().join(names::ARCHIVE), serde_json::to_vec(&meta).unwrap()).unwrap();
    let mut archive = Archive::open(dir.path()).unwrap();
    let (mut offset, mut previous) = (0, None);
    for (index, blocks) in segments.iter().enumerate() {
        let number = index as u64 + 1;
        let opened = blocks.iter().flatten().next().map_or(0, |(_, minute)| *minute);
        let header = SegmentHeader {
            format: FORMAT,
            archive: archive.meta().archive.clone(),
            source: SOURCE.into(),
            engine: EngineKind::Redis,
            server: Server::default(),
            timeline: 1,
            number,
            start: Position::new("log", offset),
            opened_at: at(opened),
            skew_micros: 0,
            previous: previous.clone(),
            broken: None,
            continues: None,
            fork: None,
            head: None,
        };
        let open = names::open_segment(SOURCE, 1, number);
        let file = archive.store().create(&open).unwrap();
        let mut writer = Writer::create(file, &header, 1).unwrap();
        for block in blocks {
            let (start, mut bytes, mut marks) = (offset, Vec::new(), Vec::new());
            for (key, minute) in block {
                let key = format!("k{}:{key:03}", key % 3);
                let len = key.len();
                bytes.extend_from_slice(
                    format!("*3\r\n$3\r\nSET\r\n${len}\r\n{key}\r\n$1\r\nx\r\n").as_bytes(),
                );
                marks.push(Mark::new(start + bytes.len() as u64, at(*minute)));
            }
            offset += bytes.len() as u64;
            let records = block.len() as u32;
            let whole = Some(Position::new("log", offset));
            writer
                .append(&Chunk { start, bytes, records, whole, marks, ..Chunk::default() })
                .unwrap();
        }
        if number as usize == segments.len() && !seal_last {
            break;
        }
        let meta = writer.finish().unwrap().1;
        archive.store().publish(&open, &names::segment(SOURCE, 1, number)).unwrap();
        let blocks = archive.segment(SOURCE, 1, number).unwrap().blocks().to_vec();
        archive.catalog_mut().add_segment(&meta, &blocks).unwrap();
        previous = Some(meta.digest);
    }
    (dir, archive)
}

fn counted(archive: &Archive, from: i64, to: i64) -> BTreeMap<Timestamp, Counted> {
    let now = at(100_000);
    count(archive, SOURCE, EngineKind::Redis, at(from), at(to), now).unwrap()
}

fn records(archive: &Archive, from: i64, to: i64) -> Vec<u64> {
    counted(archive, from, to).values().map(|hour| hour.increment.records).collect()
}

/// Three segments over three hours; the second one has records of two.
fn three_hours() -> Vec<Vec<Vec<Write>>> {
    vec![
        vec![vec![(1, 5), (2, 10)], vec![(3, 50)]],
        vec![vec![(4, 59), (5, 61)], vec![(6, 62)], vec![(7, 119)]],
        vec![vec![(8, 121)], vec![(9, 190)]],
    ]
}

#[test]
fn each_record_is_in_the_hour_in_which_it_was_committed() {
    let (_dir, archive) = made(&three_hours(), true);
    assert_eq!(records(&archive, 0, 240), [4, 3, 1, 1]);
    // Wherever one begins to count.
    for hour in 0..4 {
        let alone = records(&archive, 60 * hour, 60 * hour + 60);
        assert_eq!(alone, [[4, 3, 1, 1][hour as usize]], "hour {hour}");
    }
    let hours = counted(&archive, 0, 240);
    let raw: u64 = hours.values().map(|hour| hour.increment.bytes_raw).sum();
    assert_eq!(raw, archive.catalog().last_segment(SOURCE, 1).unwrap().unwrap().totals.end.offset);
    let verdicts: Vec<Continuity> = hours.values().map(|hour| hour.increment.continuity).collect();
    assert_eq!(verdicts, [Proved, Proved, Proved, Unproved]);
    let second = &hours[&at(60)].increment;
    assert_eq!(second.key_prefixes.iter().map(|prefix| prefix.count).sum::<u64>(), 3);
    let of: Vec<u64> = second.segments.iter().map(|segment| segment.number).collect();
    assert_eq!(of, [2]);
}

#[test]
fn an_hour_is_recorded_when_all_of_it_is_sealed_and_then_never_again() {
    let (dir, mut archive) = made(&three_hours(), false);
    let hours = |hours: &[i64]| hours.iter().map(|hour| at(60 * hour)).collect::<Vec<_>>();
    let record = |archive: &mut Archive, now: i64| {
        record_hours(archive, SOURCE, EngineKind::Redis, at(now)).unwrap()
    };
    // By this host's clock the second hour still runs; the third is in an open segment.
    assert_eq!(record(&mut archive, 100), hours(&[0]));
    assert_eq!(record(&mut archive, 500), hours(&[1]));
    assert_eq!(record(&mut archive, 501), []);
    let first = archive.hour_record(SOURCE, at(0)).unwrap();
    let second = archive.hour_record(SOURCE, at(60)).unwrap();
    assert_eq!((first.increment.records, second.increment.records), (4, 3));
    assert_eq!(first.previous, None);
    let before = second.previous.unwrap();
    assert_eq!((before.hour, before.digest), (at(0), first.digest.clone()));

    // A crash between an object and its row: the object stands.
    let root = dir.path().to_owned();
    let grown = archive.catalog().dump().unwrap();
    drop(archive);
    std::fs::remove_file(root.join(names::CATALOG)).unwrap();
    let mut archive = Archive::open(&root).unwrap();
    assert_eq!(archive.catalog().dump().unwrap(), grown);
    assert_eq!(record(&mut archive, 502), []);
    assert_eq!(archive.hour_record(SOURCE, at(0)).unwrap(), first);
}

#[test]
fn what_is_missing_is_a_gap_in_the_hours_that_it_concerns() {
    let (dir, archive) = made(&three_hours(), true);
    std::fs::remove_file(dir.path().join(names::segment(SOURCE, 1, 2))).unwrap();
    let hours = counted(&archive, 0, 180);
    let verdicts: Vec<Continuity> = hours.values().map(|hour| hour.increment.continuity).collect();
    assert_eq!(verdicts, [Gap, Gap, Proved]);
    let reason = hours[&at(60)].increment.reason.clone().unwrap();
    assert!(reason.contains("seg-00000000000000000002.zst is missing"), "{reason}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever the segments and blocks: counted alone, an hour is what it is among others, and all
    /// hours together are the whole log.
    #[test]
    fn hours_add_up_wherever_one_begins(
        steps in proptest::collection::vec(
            proptest::collection::vec(
                proptest::collection::vec((any::<u8>(), 0..50_i64), 1..4), 1..4), 1..5),
    ) {
        let mut minute = 0;
        let segments: Vec<Vec<Vec<Write>>> = steps.iter().map(|blocks| {
            blocks.iter().map(|block| block.iter().map(|(key, step)| {
                minute += step;
                (*key, minute)
            }).collect()).collect()
        }).collect();
        let total = segments.iter().flatten().map(Vec::len).sum::<usize>() as u64;
        let (_dir, archive) = made(&segments, true);
        let end = (minute / 60 + 1) * 60;
        let all = records(&archive, 0, end);
        prop_assert_eq!(all.iter().sum::<u64>(), total);
        for (hour, expected) in all.iter().enumerate() {
            let from = 60 * hour as i64;
            prop_assert_eq!(&records(&archive, from, from + 60), &[*expected]);
        }
    }
}

#[test]
fn a_report_reads_well_in_every_form() {
    let increment = |continuity, reason: Option<&str>| Increment {
        records: 3,
        bytes_raw: 5000,
        bytes_stored: 900,
        first: Some(crate::record::Landing { position: "u:1".into(), at: Some(at(1)) }),
        last: Some(crate::record::Landing { position: "u:3".into(), at: Some(at(59)) }),
        tables: vec![crate::manifest::TableCount {
            name: "shop.orders".into(),
            inserts: 10,
            updates: 2,
            deletes: 1,
        }],
        ddl: vec![crate::manifest::Ddl {
            at: Some(at(5)),
            position: "binlog.000001:4711".into(),
            text: "ALTER TABLE shop.orders ADD COLUMN note TEXT COMMENT '<b>, \"x\"'".into(),
        }],
        undecoded: 1,
        undecoded_reason: Some("u:2: shop.odd: a column of type 99".into()),
        lag_max_ms: Some(40),
        continuity,
        reason: reason.map(str::to_owned),
        ..Increment::default()
    };
    let proved = SourceHour {
        name: "shop-mysql".into(),
        increment: increment(Proved, None),
        digest: Some("d1".into()),
        previous: None,
        recorded_at: Some(at(61)),
    };
    let gap = increment(Gap, Some("segment 7 is missing"));
    let hours = vec![
        Hour { hour: at(0), sources: vec![proved] },
        Hour { hour: at(60), sources: vec![SourceHour::counted("shop-mysql", gap)] },
    ];
    let report = Report { schema: "pitr.audit/1", from: at(0), to: at(120), hours };
    insta::assert_snapshot!("text", report.text(crate::clock::Tz::UTC));
    insta::assert_snapshot!("csv", report.csv());
    insta::assert_snapshot!("html", report.html(crate::clock::Tz::UTC));
    let error = report.check().unwrap_err();
    assert_eq!(error.class().exit_code(), 1);
    assert!(error.to_string().contains("gap: segment 7 is missing"), "{error}");
}
