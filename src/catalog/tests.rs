//! What goes into the catalog comes out of it, and bad rows are noticed.

use super::*;
use crate::manifest::{Break, EngineKind, FORMAT, SegmentHeader, Totals};
use crate::position::Position;
use crate::record::{Server, TimeSource};
use rstest::rstest;
use rusqlite::types::Value;

const T0: i64 = 1_714_532_400; // 2024-05-01T03:00:00Z
const MINUTE: i64 = 60;

fn at(secs: i64) -> Timestamp {
    Timestamp::from_secs(T0 + secs)
}

fn digest(timeline: u32, number: u64) -> String {
    blake3::hash(format!("{timeline} {number}").as_bytes()).to_hex().to_string()
}

/// Segment `number` of minute `number`, with 1000 bytes; ten segments to a log.
fn segment(source: &str, timeline: u32, number: u64) -> (SegmentMeta, Vec<BlockMeta>) {
    let (log, nth) = (format!("binlog.{:06}", (number - 1) / 10), (number - 1) % 10);
    let minute = number as i64 * MINUTE;
    let header = SegmentHeader {
        format: FORMAT,
        archive: "a".into(),
        source: source.into(),
        engine: EngineKind::Mysql,
        server: Server::default(),
        timeline,
        number,
        start: Position::new(log.clone(), 4 + nth * 1000),
        opened_at: at(minute),
        skew_micros: 0,
        previous: (number > 1).then(|| digest(timeline, number - 1)),
        broken: None,
        continues: None,
        fork: None,
        head: None,
    };
    let totals = Totals {
        end: Position::new(log, 1004 + nth * 1000),
        blocks: 1,
        records: 7,
        bytes_raw: 1000,
        first_at: Some(at(minute + 1)),
        last_at: Some(at(minute + 50)),
        known_until: Some(at(minute + 59)),
        origins: vec![],
        landmarks: vec![],
    };
    let block = BlockMeta {
        file_offset: 300,
        stored_len: 200,
        raw_len: 1000,
        start: header.start.offset,
        whole_until: Some(totals.end.offset),
        records: 7,
        first_at: totals.first_at,
        last_at: totals.last_at,
        time: TimeSource::Header,
        known_until: totals.known_until,
    };
    let digest = digest(timeline, number);
    (SegmentMeta { header, totals, bytes_stored: 600, digest, sealed: true }, vec![block])
}

fn baseline(source: &str, secs: i64) -> BaselineMeta {
    BaselineMeta {
        format: FORMAT,
        archive: "a".into(),
        source: source.into(),
        engine: EngineKind::Mysql,
        server: Server::default(),
        timeline: 1,
        name: format!("base-{}.sql.zst", at(secs).compact()),
        position: Position::new("binlog.000000", 4),
        at: at(secs),
        begun_at: at(secs),
        finished_at: at(secs + 5),
        bytes_raw: 10,
        bytes_stored: 5,
        digest: "d".into(),
        contents: None,
    }
}

fn filled(count: u64) -> Catalog {
    let mut catalog = Catalog::in_memory().unwrap();
    catalog
        .batch(|batch| {
            for number in 1..=count {
                let (meta, blocks) = segment("shop", 1, number);
                batch.add_segment(&meta, &blocks)?;
            }
            Ok(())
        })
        .unwrap();
    catalog
}

fn number(found: Result<Option<SegmentMeta>>) -> Option<u64> {
    found.unwrap().map(|meta| meta.header.number)
}

#[test]
fn what_was_added_is_found() {
    let mut catalog = filled(25);
    let (meta, blocks) = segment("shop", 1, 12);
    assert_eq!(catalog.segment("shop", 1, 12).unwrap(), Some(meta));
    assert_eq!(catalog.blocks("shop", 1, 12).unwrap(), blocks);
    assert_eq!(number(catalog.segment("shop", 2, 12)), None);
    assert_eq!(number(catalog.last_segment("shop", 1)), Some(25));
    let from = catalog.segments_from("shop", 1, 20, 3).unwrap();
    assert_eq!(from.iter().map(|m| m.header.number).collect::<Vec<_>>(), [20, 21, 22]);
    assert_eq!(number(catalog.first_segment_of_log("shop", 1, "binlog.000001")), Some(11));
    assert_eq!(number(catalog.first_segment_of_log("shop", 1, "binlog.000009")), None);
    assert!(catalog.gaps("shop").unwrap().is_empty());
    catalog.add_baseline(&baseline("shop", 100)).unwrap();
    catalog.add_baseline(&baseline("shop", 50)).unwrap();
    catalog.add_segment(&segment("other", 3, 1).0, &segment("other", 3, 1).1).unwrap();
    let kind = EngineKind::Mysql;
    assert_eq!(catalog.sources().unwrap(), [("other".into(), kind), ("shop".into(), kind)]);
    assert_eq!(catalog.timelines("shop").unwrap(), [1]);
    assert_eq!(catalog.timelines("other").unwrap(), [3]);
    let all = catalog.baselines("shop").unwrap();
    assert_eq!(all, [baseline("shop", 50), baseline("shop", 100)]);
    let newest = |secs| catalog.newest_baseline_at_or_before("shop", at(secs)).unwrap();
    assert_eq!(newest(49), None);
    assert_eq!(newest(99), Some(baseline("shop", 50)));
    assert_eq!(newest(100), Some(baseline("shop", 100)));
}

#[rstest]
#[case::before_the_first("binlog.000001", 3, None)]
#[case::exactly_first("binlog.000001", 4, Some(11))]
#[case::between("binlog.000001", 1003, Some(11))]
#[case::next_begins("binlog.000001", 1004, Some(12))]
#[case::behind_all("binlog.000001", u64::MAX, Some(20))]
#[case::no_such_log("binlog.000007", 4, None)]
fn a_place_is_found(#[case] log: &str, #[case] offset: u64, #[case] expected: Option<u64>) {
    assert_eq!(number(filled(25).segment_containing("shop", 1, log, offset)), expected);
}

#[rstest]
#[case::before_all(1, 0, Some(1))]
#[case::exactly_known(1, 5 * MINUTE + 59, Some(5))]
#[case::just_after(1, 5 * MINUTE + 60, Some(6))]
#[case::from_later(9, 5 * MINUTE, Some(9))]
#[case::exactly_last(1, 25 * MINUTE + 59, Some(25))]
#[case::after_all(1, 26 * MINUTE, None)]
#[case::from_behind_all(26, 0, None)]
fn a_time_is_found(#[case] from: u64, #[case] secs: i64, #[case] expected: Option<u64>) {
    assert_eq!(number(filled(25).first_segment_known_past("shop", 1, from, at(secs))), expected);
}

#[test]
fn a_time_is_found_although_the_clock_stepped_back() {
    let mut catalog = filled(5);
    for number in 6..=20 {
        let (mut meta, mut blocks) = segment("shop", 1, number);
        let back = |t: &mut Option<Timestamp>| *t = t.map(|t| t.shifted(-5 * MINUTE * 1_000_000));
        back(&mut meta.totals.first_at);
        back(&mut meta.totals.last_at);
        back(&mut meta.totals.known_until);
        blocks[0].known_until = meta.totals.known_until;
        catalog.add_segment(&meta, &blocks).unwrap();
    }
    let found = |from, secs| number(catalog.first_segment_known_past("shop", 1, from, at(secs)));
    assert_eq!(found(1, 4 * MINUTE), Some(4));
    assert_eq!(found(6, 4 * MINUTE), Some(9), "segments 4 and 5 had been that far before");
    assert_eq!(found(1, 7 * MINUTE), Some(12));
    assert_eq!(found(6, 20 * MINUTE), None);
}

#[rstest]
#[case::goes_on(4, |_: &mut SegmentMeta| {}, None)]
#[case::one_missing(5, |_: &mut SegmentMeta| {}, Some("segment 4 is missing"))]
#[case::many_missing(9, |_: &mut SegmentMeta| {}, Some("segments 4 to 8 are missing"))]
#[case::other_chain(4, |m: &mut SegmentMeta| m.header.previous = Some("x".into()), Some("was not written after"))]
#[case::no_chain(4, |m: &mut SegmentMeta| m.header.previous = None, Some("was not written after"))]
#[case::skipped_bytes(4, |m: &mut SegmentMeta| m.header.start.offset += 1, Some("begins at binlog.000000:3005"))]
#[case::repeated_bytes(4, |m: &mut SegmentMeta| m.header.start.offset -= 1, Some("segment 3 ends at"))]
#[case::new_log(4, |m: &mut SegmentMeta| m.header.start = Position::new("binlog.000001", 4), None)]
#[case::said_so(4, |m: &mut SegmentMeta| m.header.broken = Some(Break { after: None, reason: "purged".into() }),
    Some("purged"))]
fn a_segment_that_does_not_go_on_has_a_gap_before_it(
    #[case] number: u64,
    #[case] change: fn(&mut SegmentMeta),
    #[case] expected: Option<&str>,
) {
    let mut catalog = filled(3);
    let (mut meta, blocks) = segment("shop", 1, number);
    change(&mut meta);
    catalog.add_segment(&meta, &blocks).unwrap();
    let gaps = catalog.gaps("shop").unwrap();
    match expected {
        None => assert!(gaps.is_empty(), "{gaps:?}"),
        Some(reason) => {
            assert_eq!(gaps.len(), 1);
            assert!(gaps[0].reason.contains(reason), "{gaps:?}");
            assert_eq!((gaps[0].timeline, gaps[0].segment), (1, number));
            assert_eq!(gaps[0].before, meta.totals.first_at);
            let after = if reason == "purged" { None } else { Some(at(3 * MINUTE + 59)) };
            assert_eq!(gaps[0].after, after);
        }
    }
}

#[test]
fn a_gap_ends_at_the_first_time_that_is_known_behind_it() {
    let mut catalog = filled(3);
    let (silent, blocks) = silent(5);
    catalog.add_segment(&silent, &blocks).unwrap();
    assert_eq!(catalog.gaps("shop").unwrap()[0].before, None);
    let (meta, blocks) = segment("shop", 1, 6);
    catalog.add_segment(&meta, &blocks).unwrap();
    assert_eq!(catalog.gaps("shop").unwrap()[0].before, Some(at(6 * MINUTE + 1)));
}

#[test]
fn a_second_timeline_must_say_what_stands_before_it() {
    let mut catalog = filled(1);
    let (meta, blocks) = segment("shop", 2, 1);
    catalog.add_segment(&meta, &blocks).unwrap();
    let gaps = catalog.gaps("shop").unwrap();
    assert_eq!((gaps.len(), gaps[0].timeline, gaps[0].segment), (1, 2, 1));
}

/// A segment behind a gap, without any time of its own.
fn silent(number: u64) -> (SegmentMeta, Vec<BlockMeta>) {
    let (mut meta, mut blocks) = segment("shop", 1, number);
    let totals = &mut meta.totals;
    (totals.first_at, totals.last_at, totals.known_until) = (None, None, None);
    (blocks[0].first_at, blocks[0].last_at, blocks[0].known_until) = (None, None, None);
    (meta, blocks)
}

#[test]
fn the_order_of_insertion_leaves_no_trace() {
    let any = |n| if n == 18 { silent(n) } else { segment("shop", 1, n) };
    let mut grown = filled(0);
    let mut shuffled = filled(0);
    let mut numbers: Vec<u64> = (1..=30).filter(|n| *n != 17).collect();
    for &n in &numbers {
        let (meta, blocks) = any(n);
        grown.add_segment(&meta, &blocks).unwrap();
    }
    // Among others 20, then 18, then 19.
    numbers.sort_by_key(|n| n * 11 % 31);
    for &n in &numbers {
        let (meta, blocks) = any(n);
        shuffled.add_segment(&meta, &blocks).unwrap();
        shuffled.add_segment(&meta, &blocks).unwrap();
    }
    let gaps = grown.gaps("shop").unwrap();
    assert_eq!((gaps.len(), gaps[0].before), (1, segment("shop", 1, 19).0.totals.first_at));
    assert_eq!(grown.dump().unwrap(), shuffled.dump().unwrap());
}

#[test]
fn another_segment_of_the_same_number_is_refused() {
    let mut catalog = filled(3);
    let before = catalog.dump().unwrap();
    let (mut meta, blocks) = segment("shop", 1, 2);
    meta.digest = "other".into();
    assert_eq!(catalog.add_segment(&meta, &blocks).unwrap_err().class(), Class::Corrupt);
    let (mut meta, blocks) = segment("shop", 1, 4);
    meta.header.engine = EngineKind::Redis;
    assert_eq!(catalog.add_segment(&meta, &blocks).unwrap_err().class(), Class::Corrupt);
    let (mut meta, blocks) = segment("shop", 1, 4);
    meta.sealed = false;
    assert_eq!(catalog.add_segment(&meta, &blocks).unwrap_err().class(), Class::Bug);
    let (meta, mut blocks) = segment("shop", 1, 4);
    blocks[0].start = u64::MAX;
    assert_eq!(catalog.add_segment(&meta, &blocks).unwrap_err().class(), Class::Refused);
    assert_eq!(catalog.dump().unwrap(), before);
    catalog.add_baseline(&baseline("shop", 1)).unwrap();
    let other = BaselineMeta { digest: "other".into(), ..baseline("shop", 1) };
    assert_eq!(catalog.add_baseline(&other).unwrap_err().class(), Class::Corrupt);
}

#[test]
fn what_fails_within_a_batch_leaves_no_trace_in_it() {
    let mut catalog = filled(3);
    let before = catalog.dump().unwrap();
    catalog
        .batch(|batch| {
            let (meta, mut blocks) = segment("fresh", 1, 4);
            blocks[0].start = u64::MAX;
            assert!(batch.add_segment(&meta, &blocks).is_err());
            Ok(())
        })
        .unwrap();
    assert_eq!(catalog.dump().unwrap(), before);
}

#[test]
fn hours_add_their_segments_up() {
    let catalog = filled(70);
    let hours = catalog.hours("shop", at(0), at(7200)).unwrap();
    assert_eq!(hours.len(), 2);
    assert_eq!((hours[0].hour, hours[0].segments), (at(0), 59));
    assert_eq!((hours[1].hour, hours[1].segments), (at(3600), 11));
    let second = &hours[1];
    assert_eq!((second.records, second.bytes_raw, second.bytes_stored), (77, 11_000, 6_600));
    assert_eq!(second.first_position, "binlog.000005:9004");
    assert_eq!(second.last_position, "binlog.000006:10004");
    assert_eq!(second.first_at, Some(at(3601)));
    assert_eq!(second.last_at, Some(at(70 * MINUTE + 50)));
    assert_eq!(catalog.hours("shop", at(1), at(3600)).unwrap(), []);
}

#[test]
fn a_catalog_on_disk_is_read_beside_its_writer_and_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalog.sqlite");
    assert_eq!(Catalog::open_read_only(&path).unwrap_err().class(), Class::Unavailable);
    let mut catalog = Catalog::open(&path).unwrap();
    catalog.add_segment(&segment("shop", 1, 1).0, &segment("shop", 1, 1).1).unwrap();
    let reader = Catalog::open_read_only(&path).unwrap();
    assert_eq!(reader.dump().unwrap(), catalog.dump().unwrap());
    let pragma =
        |name| -> Value { catalog.db.pragma_query_value(None, name, |row| row.get(0)).unwrap() };
    assert_eq!(pragma("journal_mode"), Value::Text("wal".into()));
    assert_eq!(pragma("synchronous"), Value::Integer(2));
    drop(reader);
    let text = catalog.dump().unwrap();
    catalog.close().unwrap();
    assert_eq!(Catalog::open(&path).unwrap().dump().unwrap(), text);
}

#[test]
fn a_file_that_is_no_catalog_is_refused_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalog.sqlite");
    std::fs::write(&path, [7; 5000]).unwrap();
    let error = Catalog::open(&path).unwrap_err();
    assert_eq!(error.class(), Class::Corrupt);
    assert!(error.hint_text().unwrap().contains("pitr reindex"));
    std::fs::remove_file(&path).unwrap();
    let catalog = Catalog::open(&path).unwrap();
    catalog.db.pragma_update(None, "user_version", 99).unwrap();
    drop(catalog);
    assert_eq!(Catalog::open(&path).unwrap_err().class(), Class::Refused);
    assert_eq!(Catalog::open_read_only(&path).unwrap_err().class(), Class::Refused);
}

/// Copies of the first segment, a minute apart, without the cost of adding each.
fn multiply(catalog: &Catalog, count: u64) {
    catalog
        .db
        .execute(
            "WITH RECURSIVE n (i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
             INSERT INTO segment (source, timeline, number, digest, bytes_stored, start_log,
                start_offset, first_known, until, reached, header, totals)
             SELECT source, timeline, i, digest, bytes_stored, start_log, start_offset + 1000 * i,
                first_known, until + 60000000 * (i - 1), reached + 60000000 * (i - 1),
                replace(header, '\"number\":1', '\"number\":' || i), totals
             FROM segment, n WHERE number = 1",
            [count as i64],
        )
        .unwrap();
}

/// With very many segments a plan stays fast only if nothing is ever scanned or sorted.
#[test]
fn every_query_is_an_index_search() {
    let catalog = filled(1);
    multiply(&catalog, 100_000);
    let count: i64 =
        catalog.db.query_row("SELECT count(*) FROM segment", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 100_000);
    let past = catalog.first_segment_known_past("shop", 1, 5, at(90_000 * MINUTE));
    assert_eq!(number(past), Some(90_000));
    assert_eq!(
        number(catalog.segment_containing("shop", 1, "binlog.000000", 50_000_000)),
        Some(49_999)
    );
    for sql in [
        query::TIMELINES,
        query::SEGMENT,
        query::LAST_SEGMENT,
        query::REACHED,
        query::SEGMENTS_FROM,
        query::SEGMENT_CONTAINING,
        query::FIRST_OF_LOG,
        query::FIRST_REACHING,
        query::FIRST_UNTIL,
        query::BLOCKS,
        query::BASELINES,
        query::NEWEST_BASELINE,
        query::GAPS,
        query::HOURS,
        query::AUDITS,
        query::LAST_AUDIT,
        query::REACHED_BEFORE,
    ] {
        let mut statement = catalog.db.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let steps: Vec<String> =
            statement.raw_query().mapped(|row| row.get(3)).map(|step| step.unwrap()).collect();
        assert!(!steps.is_empty());
        for step in steps {
            assert!(step.starts_with("SEARCH"), "{step}\nin {sql}");
        }
    }
}
