//! A catalog that is rebuilt equals the one that was lost.

use super::*;
use crate::clock::Timestamp;
use crate::manifest::{EngineKind, SegmentHeader, SegmentMeta};
use crate::position::Position;
use crate::record::{Chunk, Mark, Server};
use crate::segment::Writer;
use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};

const T0: i64 = 1_714_532_400;

/// An archive in a folder with a catalog that grows with it.
struct Archive {
    dir: tempfile::TempDir,
    meta: ArchiveMeta,
    store: Local,
    catalog: Catalog,
}

impl Archive {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(&dir.path().join(names::CATALOG)).unwrap();
        let created = Timestamp::from_secs(T0);
        let meta = ArchiveMeta { format: FORMAT, archive: "the-archive".into(), created };
        let store = Local::new(dir.path());
        Self { dir, meta, store, catalog }
    }

    /// Writes segment `number` of 500 bytes and adds it to the catalog.
    fn segment(&mut self, source: &str, number: u64, previous: Option<String>) -> SegmentMeta {
        let at = Timestamp::from_secs(T0 + 1800 * number as i64);
        let header = SegmentHeader {
            format: FORMAT,
            archive: self.meta.archive.clone(),
            source: source.into(),
            engine: EngineKind::Redis,
            server: Server::default(),
            timeline: 1,
            number,
            start: Position::new("replid", number * 500),
            opened_at: at,
            skew_micros: 0,
            previous,
            broken: None,
            continues: None,
            fork: None,
            head: None,
        };
        let open = names::open_segment(source, 1, number);
        let mut writer = Writer::create(self.store.create(&open).unwrap(), &header, 1).unwrap();
        for half in 0..2 {
            let start = number * 500 + half * 250;
            writer
                .append(&Chunk {
                    start,
                    bytes: vec![number as u8; 250],
                    records: 3,
                    whole: Some(Position::new("replid", start + 250)),
                    marks: vec![Mark::new(start + 9, at)],
                    ..Chunk::default()
                })
                .unwrap();
        }
        let (file, meta) = writer.finish().unwrap();
        file.sync_all().unwrap();
        let name = names::segment(source, 1, number);
        self.store.publish(&open, &name).unwrap();
        let reader = Reader::open(self.store.open(&name).unwrap()).unwrap();
        assert_eq!(reader.meta(), &meta);
        self.catalog.add_segment(&meta, reader.blocks()).unwrap();
        meta
    }

    fn segments(&mut self, source: &str, count: u64) {
        let mut previous = None;
        for number in 1..=count {
            previous = Some(self.segment(source, number, previous).digest);
        }
    }

    fn baseline(&mut self, source: &str, secs: i64) -> String {
        let at = Timestamp::from_secs(T0 + secs);
        let meta = BaselineMeta {
            format: FORMAT,
            archive: self.meta.archive.clone(),
            source: source.into(),
            engine: EngineKind::Redis,
            server: Server::default(),
            timeline: 1,
            name: names::baseline(at, "rdb"),
            position: Position::new("replid", 600),
            at,
            begun_at: at,
            finished_at: at,
            bytes_raw: 9,
            bytes_stored: 4,
            digest: "d".into(),
            contents: None,
        };
        let name = format!("{}/{}", names::timeline(source, 1), meta.name);
        self.store.put_new(&name, b"four").unwrap();
        let json = meta.encode().unwrap();
        self.store.put_new(&format!("{name}.json"), &json).unwrap();
        self.catalog.add_baseline(&meta).unwrap();
        name
    }

    fn rebuilt(&self) -> (Report, String) {
        let report = reindex(self.dir.path(), &self.meta).unwrap();
        let catalog = Catalog::open_read_only(&self.dir.path().join(names::CATALOG)).unwrap();
        (report, catalog.dump().unwrap())
    }

    fn damage(&self, name: &str, place: SeekFrom) {
        let path = self.store.path(name).unwrap();
        let mut file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let at = file.seek(place).unwrap();
        let mut byte = [0];
        file.read_exact(&mut byte).unwrap();
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&[byte[0] ^ 4]).unwrap();
    }
}

#[test]
fn a_rebuilt_catalog_equals_the_one_that_grew() {
    let mut archive = Archive::new();
    archive.segments("shop", 12);
    archive.segments("cart", 3);
    archive.baseline("shop", 100);
    // A hole that was there while it grew: the same gap has to come out.
    archive.segment("cart", 7, None);
    archive.store.create(&names::open_segment("cart", 1, 8)).unwrap();
    let grown = archive.catalog.dump().unwrap();
    // The growing catalog stays open, so its log lies beside it and must not get into the new one.
    let log = catalog::beside(&archive.dir.path().join(names::CATALOG), "-wal");
    assert!(log.metadata().unwrap().len() > 0);
    let (report, rebuilt) = archive.rebuilt();
    assert_eq!(rebuilt, grown);
    assert_eq!(report, Report { segments: 16, baselines: 1, open: 1, damaged: vec![] });
    let (again, rebuilt) = archive.rebuilt();
    assert_eq!((again, rebuilt), (report, grown));
    let left: Vec<String> = archive.store.list("catalog").unwrap();
    assert!(left.iter().all(|name| !name.contains(".new")), "{left:?}");
}

#[test]
fn what_is_damaged_is_named_and_leaves_a_gap() {
    let mut archive = Archive::new();
    archive.segments("shop", 6);
    let baseline = archive.baseline("shop", 100);
    let lost = archive.baseline("shop", 200);
    let bare = archive.baseline("shop", 300);
    archive.damage(&names::segment("shop", 1, 3), SeekFrom::End(-60));
    let (from, to) = (names::segment("shop", 1, 5), names::segment("shop", 1, 9));
    archive.store.publish(&from, &to).unwrap();
    archive.store.put_new(&from, b"not a segment at all").unwrap();
    archive.damage(&format!("{baseline}.json"), SeekFrom::Start(0));
    archive.store.delete(&lost).unwrap();
    archive.store.delete(&format!("{bare}.json")).unwrap();
    let (report, _) = archive.rebuilt();
    let mut named: Vec<&str> = report.damaged.iter().map(|d| d.name.as_str()).collect();
    named.sort_unstable();
    let json = |name: &str| format!("{name}.json");
    let mut expected = [
        names::segment("shop", 1, 3),
        from,
        to,
        baseline.clone(),
        json(&baseline),
        json(&lost),
        bare,
    ];
    expected.sort_unstable();
    assert_eq!(named, expected);
    assert_eq!((report.segments, report.baselines), (4, 0));
    let catalog = Catalog::open(&archive.dir.path().join(names::CATALOG)).unwrap();
    let gaps = catalog.gaps("shop").unwrap();
    let reasons: Vec<&str> = gaps.iter().map(|gap| gap.reason.as_str()).collect();
    assert_eq!(reasons, ["segment 3 is missing", "segment 5 is missing"]);
}

#[test]
fn objects_of_another_archive_are_not_taken_in() {
    let mut archive = Archive::new();
    archive.segments("shop", 2);
    archive.baseline("shop", 100);
    archive.meta.archive = "another".into();
    let (report, _) = archive.rebuilt();
    assert_eq!((report.segments, report.baselines, report.damaged.len()), (0, 0, 4));
}

#[test]
fn a_catalog_that_is_missing_or_unreadable_is_made_anew() {
    let mut archive = Archive::new();
    archive.segments("shop", 4);
    let grown = archive.catalog.dump().unwrap();
    let path = archive.dir.path().join(names::CATALOG);
    let open = |archive: &Archive| open_catalog(archive.dir.path(), &archive.meta).unwrap();
    assert!(open(&archive).1.is_none(), "a good catalog is left alone");
    for spoil in [
        |path: &Path| std::fs::remove_file(path),
        |path: &Path| std::fs::write(path, "x".repeat(999)),
    ] {
        spoil(&path).unwrap();
        let (catalog, report) = open(&archive);
        assert_eq!(report.map(|report| report.segments), Some(4));
        assert_eq!(catalog.dump().unwrap(), grown);
    }
}

#[test]
fn the_log_of_the_old_catalog_is_not_applied_to_the_new_one() {
    let mut archive = Archive::new();
    archive.segments("shop", 4);
    let grown = archive.catalog.dump().unwrap();
    let path = archive.dir.path().join(names::CATALOG);
    // Another process still has the old catalog open, so its log stays.
    let other = rusqlite::Connection::open(&path).unwrap();
    other.pragma_update(None, "user_version", 99).unwrap();
    let (report, rebuilt) = archive.rebuilt();
    assert_eq!((report.segments, rebuilt), (4, grown));
}

#[test]
fn a_daemon_that_holds_the_archive_is_not_disturbed() {
    let archive = Archive::new();
    let _daemon = Lock::acquire(&archive.dir.path().join(names::LOCK)).unwrap();
    let error = reindex(archive.dir.path(), &archive.meta).unwrap_err();
    assert_eq!(error.class(), Class::Busy);
}
