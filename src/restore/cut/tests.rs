//! Where an instant is cut, by marks and by seconds.

use super::*;
use crate::manifest::{EngineKind, FORMAT, SegmentHeader, names};
use crate::record::{Chunk, Server};
use crate::segment::Writer;
use rstest::rstest;

/// Files of a MariaDB: the first record was made in second 0, the last of the first file and all
/// of the second in second 1, that of the third file in second 64.
pub(in crate::restore) const FILES: [(&str, &str, &[u8]); 3] = [
    ("mbin.000001", "", include_bytes!("../../../fixtures/mariadb/mbin.000001")),
    ("mbin.000002", "0-7400-500,1-7400-1", include_bytes!("../../../fixtures/mariadb/mbin.000002")),
    (
        "mbin.000003",
        "0-7400-1004,1-7400-1",
        include_bytes!("../../../fixtures/mariadb/mbin.000003"),
    ),
];

/// 2026-11-23T21:06:15Z.
const T0: i64 = 1_795_467_975;

/// How exact each mark is.
const EXACT: Duration = Duration::from_micros(400);

fn at(millis: i64) -> Timestamp {
    Timestamp::from_micros(T0 * 1_000_000 + millis * 1000)
}

fn server() -> Server {
    Server { version: "10.11.19-MariaDB-log".into(), identity: "a".into(), anonymous: false }
}

/// An archive with one segment for each file, and marks in them: file, offset, ms.
pub(in crate::restore) fn archive(
    marks: &[(usize, u64, i64)],
) -> (tempfile::TempDir, Archive, Vec<SegmentMeta>) {
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::init(dir.path()).unwrap();
    let mut segments: Vec<SegmentMeta> = vec![];
    for (i, (log, gtids, bytes)) in FILES.into_iter().enumerate() {
        let number = i as u64 + 1;
        let place = |offset| Position { gtids: gtids.to_owned(), ..Position::new(log, offset) };
        let header = SegmentHeader {
            format: FORMAT,
            archive: archive.meta().archive.clone(),
            source: "shop".into(),
            engine: EngineKind::Mysql,
            server: server(),
            timeline: 1,
            number,
            start: place(0),
            opened_at: at(0),
            skew_micros: 0,
            previous: segments.last().map(|segment| segment.digest.clone()),
            broken: None,
            continues: None,
            fork: None,
            head: None,
        };
        let open = names::open_segment("shop", 1, number);
        let out = archive.store().create(&open).unwrap();
        let mut writer = Writer::create(out, &header, 1).unwrap();
        let here = marks.iter().filter(|(file, ..)| *file == i);
        let marks = here.map(|(_, offset, ms)| Mark::within(*offset, at(*ms), EXACT)).collect();
        writer
            .append(&Chunk {
                start: 0,
                bytes: bytes.to_vec(),
                records: 1,
                whole: Some(place(bytes.len() as u64)),
                time: TimeSource::Header,
                marks,
                ..Chunk::default()
            })
            .unwrap();
        segments.push(writer.finish().unwrap().1);
        archive.store().publish(&open, &names::segment("shop", 1, number)).unwrap();
    }
    (dir, archive, segments)
}

fn baseline(archive: &Archive, offset: u64) -> BaselineMeta {
    BaselineMeta {
        format: FORMAT,
        archive: archive.meta().archive.clone(),
        source: "shop".into(),
        engine: EngineKind::Mysql,
        server: server(),
        timeline: 1,
        name: "base".into(),
        position: Position::new("mbin.000001", offset),
        at: at(-1000),
        begun_at: at(-1000),
        finished_at: at(-1000),
        bytes_raw: 0,
        bytes_stored: 0,
        digest: String::new(),
        contents: None,
    }
}

fn cut(marks: &[(usize, u64, i64)], to: i64) -> (String, u64) {
    let (_dir, archive, segments) = archive(marks);
    let found = find(&archive, &baseline(&archive, 323), &segments, at(to)).unwrap();
    let (Cut::At(place), Some(open)) = found else { panic!("{found:?}") };
    (place.to_string(), u64::try_from(open.as_millis()).unwrap())
}

#[rstest]
#[case::the_first_second_is_not_over(500, "mbin.000001:323")]
#[case::nor_the_second_one(1999, "mbin.000001:8022")]
#[case::all_of_both_seconds(2000, "mbin.000003:391")]
#[case::long_before_the_next(63_500, "mbin.000003:391")]
#[case::everything(70_000, "mbin.000003:647")]
fn without_marks_the_seconds_of_the_records_tell(#[case] to: i64, #[case] place: &str) {
    let (found, open) = cut(&[], to);
    if to == 1999 {
        // Where exactly the second begins is the server's affair; a boundary it must be.
        assert!(found.starts_with("mbin.000001:") && found != "mbin.000001:323", "{found}");
    } else {
        assert_eq!(found, place);
    }
    assert_eq!(open, 1000);
}

const MARKS: [(usize, u64, i64); 5] =
    [(0, 770, 100), (0, 2337, 200), (0, 9759, 900), (1, 976, 1900), (2, 391, 2000)];

#[rstest]
#[case::at_a_mark_its_bytes_may_be_later(200, "mbin.000001:770", 100)]
#[case::a_moment_later_they_are_not(220, "mbin.000001:2337", 20)]
#[case::before_the_next(919, "mbin.000001:2337", 719)]
#[case::behind_it_in_the_next_file(920, "mbin.000001:9759", 20)]
#[case::last(63_000, "mbin.000003:391", 1000)]
fn marks_tell_where_they_are_near(#[case] to: i64, #[case] place: &str, #[case] open: u64) {
    assert_eq!(cut(&MARKS, to), (place.to_owned(), open));
}

#[test]
fn between_marks_that_are_far_apart_the_seconds_tell_and_never_lead_behind_the_later_one() {
    let far = [(0, 323, -500), (1, 976, 60_000), (2, 647, 70_000)];
    // The last of the second file and what follows until the third were surely over at 63 s.
    assert_eq!(cut(&far, 40_000), ("mbin.000002:976".into(), 1000));
    assert_eq!(cut(&far, 500), ("mbin.000001:323".into(), 1000));
    // A mark at the same place leaves nothing open until then, and what came since is open.
    let idle = [(1, 976, 3000), (1, 976, 30_000), (1, 976, 60_000), (2, 647, 60_300)];
    for (to, open) in [(40_000, 0), (60_000, 0), (60_015, 15), (60_319, 319)] {
        assert_eq!(cut(&idle, to), ("mbin.000002:976".into(), open), "{to}");
    }
}

#[test]
fn a_log_with_commit_times_is_cut_by_the_engine() {
    let (_dir, archive, segments) = archive(&[]);
    let mut baseline = baseline(&archive, 323);
    baseline.server.version = "8.4.1".into();
    let found = find(&archive, &baseline, &segments, at(500)).unwrap();
    assert_eq!(found, (Cut::After(at(500)), None));
}

#[test]
fn how_exact_the_clock_was_on_both_sides_is_a_part_of_what_is_known() {
    let known = |marks: &[(usize, u64, i64)], to| {
        let (_dir, archive, segments) = archive(marks);
        find(&archive, &baseline(&archive, 323), &segments, at(to)).unwrap().1.unwrap()
    };
    let between = [(0, 1000, 1000), (0, 2000, 1300)];
    assert_eq!(known(&between, 1100), Duration::from_millis(100) + 2 * EXACT);
    // Nothing was written between the two: only the clock itself is inexact.
    let idle = [(0, 1000, 1000), (0, 1000, 1300)];
    assert_eq!(known(&idle, 1100), 2 * EXACT);
}
