//! The archive as a whole, on folders made for the purpose.

use super::*;
use crate::baseline::{Label, Stored};
use crate::manifest::SegmentHeader;
use crate::record::{BaselineTaken, Chunk, Mark, Protection, Server};
use crate::segment::Writer;
use rstest::rstest;

const T0: i64 = 1_714_532_400;

fn at(secs: i64) -> Timestamp {
    Timestamp::from_secs(T0 + secs)
}

/// Writes segment `number` with the 500 bytes of the log before `500 * number`.
fn write(
    archive: &mut Archive,
    number: u64,
    previous: Option<String>,
    sealed: bool,
) -> SegmentMeta {
    let start = 500 * (number - 1);
    let header = SegmentHeader {
        format: FORMAT,
        archive: archive.meta().archive.clone(),
        source: "shop".into(),
        engine: EngineKind::Mysql,
        server: Server::default(),
        timeline: 1,
        number,
        start: Position::new("log", start),
        opened_at: at(0),
        skew_micros: 0,
        previous,
        broken: None,
        continues: None,
        fork: None,
        head: None,
    };
    let open = names::open_segment("shop", 1, number);
    let mut writer = Writer::create(archive.store().create(&open).unwrap(), &header, 1).unwrap();
    let end = Position::new("log", start + 500);
    let marks = vec![Mark::new(end.offset, at(number.cast_signed()))];
    let bytes = vec![1; 500];
    writer
        .append(&Chunk { start, bytes, records: 1, whole: Some(end), marks, ..Chunk::default() })
        .unwrap();
    let meta = writer.finish().unwrap().1;
    if sealed {
        archive.store().publish(&open, &names::segment("shop", 1, number)).unwrap();
    }
    meta
}

/// Segments 1 and 2 have their rows; 3 is sealed and has none, 4 has no final name, and neither
/// has the baseline its row, whose place is in segment 4.
fn behind_its_objects() -> (tempfile::TempDir, Archive) {
    let dir = tempfile::tempdir().unwrap();
    let mut archive = Archive::init(dir.path()).unwrap();
    let mut previous = None;
    for number in 1..=2 {
        let meta = write(&mut archive, number, previous, true);
        previous = Some(meta.digest.clone());
        let blocks = archive.segment("shop", 1, number).unwrap().blocks().to_vec();
        archive.catalog_mut().add_segment(&meta, &blocks).unwrap();
    }
    let older = dir.path().join("older");
    drop(archive);
    std::fs::copy(dir.path().join(names::CATALOG), &older).unwrap();
    let mut archive = Archive::open(dir.path()).unwrap();
    let third = write(&mut archive, 3, previous, true);
    write(&mut archive, 4, Some(third.digest), false);
    let label = Label { source: "shop".into(), engine: EngineKind::Mysql, level: 1 };
    let mut pieces = vec![Ok(Bytes::from_static(b"copy"))].into_iter();
    let folder = archive.store().path("shop").unwrap();
    let stored = Stored::write(&folder, EngineKind::Mysql, 1, || pieces.next()).unwrap();
    let position = Position::new("log", 1500);
    let taken = BaselineTaken {
        position: position.clone(),
        at: at(3),
        server: Server::default(),
        kind: "sql",
        contents: None,
    };
    stored.publish(&mut archive, &label, 1, &taken, position, at(3)).unwrap();
    drop(archive);
    std::fs::copy(&older, dir.path().join(names::CATALOG)).unwrap();
    let archive = Archive::open_read_only(dir.path()).unwrap();
    assert_eq!(archive.catalog().last_segment("shop", 1).unwrap().unwrap().header.number, 2);
    assert_eq!(archive.catalog().baselines("shop").unwrap(), []);
    (dir, archive)
}

#[rstest]
#[case::in_the_catalog(250, &[1, 2, 3, 4])]
#[case::sealed_without_a_row(1250, &[3, 4])]
#[case::without_its_final_name(1750, &[4])]
fn what_the_catalog_lacks_is_found(#[case] offset: u64, #[case] numbers: &[u64]) {
    let (_dir, archive) = behind_its_objects();
    let history = archive.history("shop", EngineKind::Mysql).unwrap();
    assert_eq!(history.timelines, [(1, Some(at(4)))]);
    let baselines: Vec<_> = history.baselines.iter().map(|baseline| baseline.at).collect();
    assert_eq!(baselines, [at(3)]);
    let place = Position::new("log", offset);
    let segments = archive.segments_from("shop", 1, &place, None).unwrap();
    let found: Vec<u64> = segments.iter().map(|segment| segment.header.number).collect();
    assert_eq!(found, numbers);
}

#[test]
fn a_catalog_that_is_behind_catches_up() {
    let (dir, archive) = behind_its_objects();
    drop(archive);
    let mut archive = Archive::open(dir.path()).unwrap();
    let (store, meta) = (archive.store().clone(), archive.meta().clone());
    reindex::catch_up(archive.catalog_mut(), &store, &meta, "shop").unwrap();
    assert_eq!(archive.catalog().last_segment("shop", 1).unwrap().unwrap().header.number, 3);
    assert_eq!(archive.catalog().baselines("shop").unwrap().len(), 1);
}

/// A server that is restarted, or told to flush its logs, leaves a log without a record.
#[test]
fn a_last_segment_without_a_record_takes_no_window_away() {
    let dir = tempfile::tempdir().unwrap();
    let mut archive = Archive::init(dir.path()).unwrap();
    let first = write(&mut archive, 1, None, true);
    let blocks = archive.segment("shop", 1, 1).unwrap().blocks().to_vec();
    archive.catalog_mut().add_segment(&first, &blocks).unwrap();
    let header = SegmentHeader {
        number: 2,
        start: Position::new("next", 0),
        previous: Some(first.digest.clone()),
        ..first.header.clone()
    };
    let mut writer = Writer::create(Vec::new(), &header, 1).unwrap();
    let whole = Some(Position::new("next", 150));
    writer.append(&Chunk { bytes: vec![1; 150], whole, ..Chunk::default() }).unwrap();
    let (file, second) = writer.finish().unwrap();
    archive.store().put_new(&names::segment("shop", 1, 2), &file).unwrap();
    let blocks = archive.segment("shop", 1, 2).unwrap().blocks().to_vec();
    archive.catalog_mut().add_segment(&second, &blocks).unwrap();
    let history = archive.history("shop", EngineKind::Mysql).unwrap();
    assert_eq!(history.timelines, [(1, Some(at(1)))]);

    // Nor does a hole behind it go unseen.
    let header = SegmentHeader { number: 4, start: second.totals.end, ..header };
    let mut writer = Writer::create(Vec::new(), &header, 1).unwrap();
    let whole = Some(Position::new("next", 300));
    let (start, last_at) = (150, Some(at(9)));
    let chunk =
        Chunk { start, bytes: vec![1; 150], records: 1, whole, last_at, ..Chunk::default() };
    writer.append(&chunk).unwrap();
    let (file, fourth) = writer.finish().unwrap();
    archive.store().put_new(&names::segment("shop", 1, 4), &file).unwrap();
    let blocks = archive.segment("shop", 1, 4).unwrap().blocks().to_vec();
    archive.catalog_mut().add_segment(&fourth, &blocks).unwrap();
    let history = archive.history("shop", EngineKind::Mysql).unwrap();
    assert_eq!(history.timelines, [(1, Some(at(9)))]);
    let after: Vec<_> = history.gaps.iter().map(|gap| gap.after).collect();
    assert_eq!(after, [Some(at(1))]);
}

#[test]
fn a_change_of_protection_that_is_just_being_written_is_none_yet() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::init(dir.path()).unwrap();
    let change = |secs| Protection { at: at(secs), lapse: Some(format!("for {secs}")) };
    archive.file_protection("shop", &change(1)).unwrap();
    let folder = dir.path().join("shop/semi-sync");
    std::fs::write(folder.join(format!("{:020}.tmp", at(2).as_micros())), "").unwrap();
    assert_eq!(archive.protection("shop").unwrap(), Some(change(1)));
    assert_eq!(archive.lapses("shop").unwrap().len(), 1);
    archive.file_protection("shop", &change(2)).unwrap();
    let reasons: Vec<_> =
        archive.lapses("shop").unwrap().into_iter().map(|lapse| lapse.reason).collect();
    assert_eq!(reasons, ["for 1", "for 2"]);
    let superseded = archive.protection_before("shop", at(3)).unwrap();
    assert_eq!(superseded.len(), 1, "{superseded:?}");
}
