//! Deleting from real archives: what is left is whole after every single step.

use super::*;
use crate::archive::{log_head, read_meta};
use crate::baseline::{Label, Stored};
use crate::manifest::{Break, Continues, FORMAT, Fork, Hold, SegmentHeader, StrangeEvent};
use crate::plan;
use crate::position::Position;
use crate::record::{BaselineTaken, Chunk, Mark, Protection, Server};
use crate::segment::Writer;
use bytes::Bytes;
use std::path::Path;
use std::process::Command;

pub(crate) const SOURCE: &str = "shop";

/// An hour after the first instant.
pub(crate) fn at(hour: i64) -> Timestamp {
    Timestamp::from_secs(1_714_532_400 + hour * 3600)
}

/// An archive that grows.
pub(crate) struct Made {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) archive: Archive,
    engine: EngineKind,
    pub(crate) timeline: u32,
    number: u64,
    /// How many segments a log has.
    of_log: u64,
    pub(crate) place: Position,
    pub(crate) hour: i64,
    /// What segments are filled with; their numbers, if nothing.
    pub(crate) fill: Option<u8>,
    pub(crate) previous: Option<String>,
    continues: Option<Continues>,
    fork: Option<Fork>,
    broken: Option<Break>,
}

impl Made {
    pub(crate) fn new(engine: EngineKind) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let archive = Archive::init(dir.path()).unwrap();
        Self {
            dir,
            archive,
            engine,
            timeline: 1,
            number: 0,
            of_log: 10,
            place: Position::new("log.1", 0),
            hour: 0,
            fill: None,
            previous: None,
            continues: None,
            fork: None,
            broken: None,
        }
    }

    /// One more segment, of 12 hours; sealed and in the catalog, unless it is to stay open.
    pub(crate) fn segment(&mut self, sealed: bool) {
        self.number += 1;
        let header = SegmentHeader {
            format: FORMAT,
            archive: self.archive.meta().archive.clone(),
            source: SOURCE.into(),
            engine: self.engine,
            server: Server::default(),
            timeline: self.timeline,
            number: self.number,
            start: self.place.clone(),
            opened_at: at(self.hour),
            skew_micros: 0,
            previous: self.previous.clone(),
            broken: self.broken.take(),
            continues: self.continues.take(),
            fork: self.fork.take(),
            head: None,
        };
        let (start, begun) = (self.place.offset, at(self.hour + 1));
        self.place.offset += 500;
        self.hour += 12;
        let open = names::open_segment(SOURCE, self.timeline, self.number);
        let store = self.archive.store().clone();
        let mut writer = Writer::create(store.create(&open).unwrap(), &header, 1).unwrap();
        let mark = Mark::new(self.place.offset, at(self.hour));
        let chunk = Chunk {
            start,
            bytes: vec![self.fill.unwrap_or(self.number as u8); 500],
            records: 1,
            whole: Some(self.place.clone()),
            // The records of a Redis carry no times.
            first_at: (self.engine == EngineKind::Mysql).then_some(begun),
            last_at: (self.engine == EngineKind::Mysql).then_some(at(self.hour)),
            marks: vec![mark],
            ..Chunk::default()
        };
        writer.append(&chunk).unwrap();
        if !sealed {
            return;
        }
        let meta = writer.finish().unwrap().1;
        store.publish(&open, &names::segment(SOURCE, self.timeline, self.number)).unwrap();
        let reader = self.archive.segment(SOURCE, self.timeline, self.number).unwrap();
        self.archive.catalog_mut().add_segment(&meta, reader.blocks()).unwrap();
        self.previous = Some(meta.digest);
    }

    pub(crate) fn baseline(&mut self) {
        let label = Label { source: SOURCE.into(), engine: self.engine, level: 1 };
        let folder = self.archive.store().path(SOURCE).unwrap();
        let mut pieces = vec![Ok(Bytes::from(vec![7; 9000]))].into_iter();
        let stored = Stored::write(&folder, EngineKind::Mysql, 1, || pieces.next()).unwrap();
        let taken = BaselineTaken {
            position: self.place.clone(),
            at: at(self.hour),
            server: Server::default(),
            kind: "sql",
            contents: None,
        };
        let (position, timeline, at) = (self.place.clone(), self.timeline, at(self.hour));
        stored.publish(&mut self.archive, &label, timeline, &taken, position, at).unwrap();
    }

    /// A day of two segments with a baseline between them.
    pub(crate) fn days(&mut self, days: u32) {
        for _ in 0..days {
            self.segment(true);
            self.baseline();
            self.segment(true);
            if self.number.is_multiple_of(self.of_log) {
                self.place = Position::new(format!("log.{}", self.number / self.of_log + 1), 0);
            }
        }
    }

    fn strange(&self) {
        let strange = StrangeEvent {
            event: 99,
            timeline: self.timeline,
            segment: self.number,
            first: self.place.clone(),
            seen_at: at(self.hour),
        };
        let name = names::strange_event(SOURCE, self.timeline, 99);
        let json = serde_json::to_vec(&strange).unwrap();
        self.archive.store().put_new(&name, &json).unwrap();
    }

    fn protection(&self, lapse: Option<&str>) {
        let change = Protection { at: at(self.hour), lapse: lapse.map(str::to_owned) };
        self.archive.file_protection(SOURCE, &change).unwrap();
    }

    pub(crate) fn next_timeline(&mut self, continues: bool) {
        let (timeline, number) = (self.timeline, self.number);
        if continues {
            self.continues = Some(Continues { timeline, number });
        } else {
            let after = Some(at(self.hour));
            self.broken = Some(Break { after, reason: "it was reset".into() });
            self.previous = None;
        }
        (self.timeline, self.number) = (timeline + 1, 0);
        self.place = Position::new("log.1", 0);
    }

    /// Goes back to the middle of a segment, and on from there in another timeline, which begins
    /// where that segment does.
    pub(crate) fn leave(&mut self, number: u64) {
        let left = self.archive.segment(SOURCE, self.timeline, number).unwrap().meta().clone();
        let (timeline, start) = (self.timeline, left.header.start);
        let at = Position { offset: start.offset + 250, ..start.clone() };
        self.fork = Some(Fork { timeline, number, at });
        self.continues = Some(Continues { timeline, number: number - 1 });
        (self.previous, self.place) = (left.header.previous, start);
        self.hour = 12 * (number as i64 - 1);
        (self.timeline, self.number) = (timeline + 1, 0);
    }

    pub(crate) fn options(&self, days: u32) -> Options {
        let policy = Policy { days, min_baselines: 1 };
        let (archive, now) = (self.dir.path().to_owned(), at(self.hour));
        let stop = Arc::default();
        Options { archive, sources: vec![], policy, apply: true, force: true, now, stop }
    }

    fn hold(&self, name: &str, from: i64, to: i64) {
        let (from, to, made_at) = (at(from), at(to), at(self.hour));
        self.archive.hold(SOURCE, &Hold { name: name.into(), from, to, made_at }).unwrap();
    }
}

/// Ten days, ten that go on from them on another server, and ten of a fork, with an open segment.
fn thirty_days() -> Made {
    three_times(10, 10)
}

pub(crate) fn three_times(days: u32, of_log: u64) -> Made {
    let mut made = Made::new(EngineKind::Mysql);
    made.of_log = of_log;
    made.protection(None);
    made.strange();
    made.days(days / 2);
    made.protection(Some("the archive was slow"));
    made.days(days - days / 2);
    made.next_timeline(true);
    made.days(days);
    made.protection(None);
    made.next_timeline(false);
    made.strange();
    made.days(days);
    made.segment(false);
    made
}

/// Of every sixth hour since the first one, whether it can be restored: everything that a restore
/// would read is read, and compared with its digests.
fn restorable(root: &Path, hours: i64) -> Vec<bool> {
    let archive = Archive::open_read_only(root).unwrap();
    let engine = archive.catalog().sources().unwrap()[0].1;
    let history = archive.history(SOURCE, engine).unwrap();
    let can = |instant: Timestamp| -> Result<()> {
        let (baseline, last) = plan::choose(&history, instant)?;
        let json = format!("{}.json", baseline_name(baseline));
        let stored = reindex::read_baseline(archive.store(), archive.meta(), &json).unwrap().0;
        assert_eq!(stored, *baseline);
        let place = &baseline.position;
        let segments = archive
            .segments_towards(Some(last), SOURCE, baseline.timeline, place, Some(instant))
            .unwrap();
        // What the windows promise has to be there.
        let segments = plan::line_up(baseline, segments, instant).unwrap();
        for segment in segments {
            let (timeline, number) = (segment.header.timeline, segment.header.number);
            let mut reader = archive.segment(SOURCE, timeline, number).unwrap();
            reader.verify().unwrap();
            log_head(archive.store(), &mut reader).unwrap();
        }
        Ok(())
    };
    (0..=hours / 6).map(|quarter| can(at(6 * quarter)).is_ok()).collect()
}

fn objects(root: &Path) -> Vec<String> {
    let mut all = crate::store::Local::new(root).list("").unwrap();
    all.retain(|name| !name.starts_with("catalog.") && name != names::LOCK);
    all
}

fn dump(root: &Path) -> String {
    crate::catalog::Catalog::open_read_only(&root.join(names::CATALOG)).unwrap().dump().unwrap()
}

fn copy(root: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let status = Command::new("cp").arg("-a").arg(root.join(".")).arg(dir.path()).status();
    assert!(status.unwrap().success());
    dir
}

#[test]
fn without_being_told_to_nothing_is_touched_and_every_item_has_its_reason() {
    let made = thirty_days();
    let (before, rows) = (objects(made.dir.path()), dump(made.dir.path()));
    let report = prune(&Options { apply: false, force: false, ..made.options(12) }).unwrap();
    assert_eq!((objects(made.dir.path()), dump(made.dir.path())), (before.clone(), rows));
    let shop = &report.sources[0];
    assert_eq!((shop.kept.baselines, shop.deleted.baselines), (12, 18));
    assert_eq!(shop.kept.segments + shop.deleted.segments, 60);
    assert!(shop.items.iter().all(|item| !item.reason.is_empty()), "{shop:#?}");
    let bytes: u64 = before
        .iter()
        .filter(|name| name.strip_suffix(".zst").is_some())
        .map(|name| made.archive.store().size(name).unwrap().unwrap())
        .sum();
    assert_eq!(shop.kept.bytes + shop.deleted.bytes, bytes);
    assert!(shop.objection.as_ref().unwrap().contains("more than half"), "{shop:#?}");
    let text = report.text(Tz::UTC);
    assert!(text.contains("nothing was deleted: `pitr prune --apply` does it"), "{text}");
}

#[test]
fn the_window_is_restorable_to_its_first_second_and_the_rest_is_gone() {
    let made = thirty_days();
    let (root, hours) = (made.dir.path(), made.hour - 12);
    let before = restorable(root, hours);
    let report = prune(&made.options(12)).unwrap();
    let after = restorable(root, hours);
    // The window begins 12 days before the end of what is open: hour 444. The baseline before
    // it is that of hour 444 itself, half a day into day 18.
    let first = 444 / 6;
    assert_eq!(after[first..], before[first..]);
    assert!(before[2..first].iter().all(|can| *can), "{before:?}");
    assert!(after[..first].iter().all(|can| !can), "{after:?}");
    let left = objects(root);
    assert!(!left.iter().any(|name| name.starts_with("shop/t0001/")), "{left:#?}");
    assert!(left.contains(&names::strange_event(SOURCE, 3, 99)), "{left:#?}");
    // The log from the beginning of the binlog file that the baseline's place is in.
    assert!(left.contains(&names::segment(SOURCE, 2, 11)), "{left:#?}");
    assert!(!left.contains(&names::segment(SOURCE, 2, 10)), "{left:#?}");
    // The change that was in force when the window began, and the one behind it.
    let changes = left.iter().filter(|name| name.contains("semi-sync")).count();
    assert_eq!(changes, 2, "{left:#?}");
    assert_eq!(made.archive.lapses(SOURCE).unwrap()[0].from, at(120));

    let history = made.archive.history(SOURCE, EngineKind::Mysql).unwrap();
    let gaps: Vec<&str> = history.gaps.iter().map(|gap| gap.reason.as_str()).collect();
    assert_eq!(gaps, ["it was reset"], "what was deleted is no gap");
    let rows = dump(root);
    let rebuilt = reindex::reindex(root, &read_meta(root).unwrap()).unwrap();
    assert_eq!((rebuilt.damaged.as_slice(), dump(root)), ([].as_slice(), rows));
    assert_eq!(report.sources[0].deleted.baselines, 18);

    let again = prune(&Options { force: false, ..made.options(12) }).unwrap();
    assert_eq!(again.sources[0].deleted, Sum::default());
    assert_eq!(objects(root), left);
}

#[test]
fn a_timeline_whose_first_segment_stays_has_no_gap_where_the_one_before_was_deleted() {
    let mut made = Made::new(EngineKind::Mysql);
    made.days(10);
    made.next_timeline(true);
    made.days(4);
    prune(&made.options(3)).unwrap();
    let archive = Archive::open(made.dir.path()).unwrap();
    let history = archive.history(SOURCE, EngineKind::Mysql).unwrap();
    assert_eq!(history.timelines.iter().map(|t| t.0).collect::<Vec<_>>(), [2]);
    assert_eq!(archive.catalog().segments_from(SOURCE, 2, 1, 1).unwrap()[0].header.number, 1);
    assert_eq!(history.gaps, []);
    assert!(restorable(made.dir.path(), made.hour)[11 * 4..].iter().all(|can| *can));
}

#[rstest::rstest]
#[case::binlogs(EngineKind::Mysql)]
#[case::a_stream(EngineKind::Redis)]
fn an_end_at_any_step_leaves_an_archive_that_restores_with_and_without_its_catalog(
    #[case] engine: EngineKind,
) {
    let (mut made, window) = match engine {
        EngineKind::Mysql => (three_times(3, 4), 4),
        EngineKind::Redis => (Made::new(engine), 3),
    };
    if engine == EngineKind::Redis {
        for day in 0..8 {
            made.segment(true);
            made.baseline();
            made.segment(day < 7);
        }
    }
    let hours = made.hour - 12;
    let whole = copy(made.dir.path());
    let options = |root: &Path| Options { archive: root.to_owned(), ..made.options(window) };
    prune(&options(whole.path())).unwrap();
    let first = ((made.hour - i64::from(window) * 24) / 6) as usize;
    let wanted = restorable(made.dir.path(), hours)[first..].to_vec();
    assert!(wanted.iter().filter(|can| **can).count() > 8, "{wanted:?}");
    let mut steps = 0;
    loop {
        let cut_off = copy(made.dir.path());
        let mut left = steps;
        let done = prune_step_by_step(&options(cut_off.path()), &mut |_| match left {
            0 => Err(Error::new(Class::Interrupted, "killed")),
            _ => {
                left -= 1;
                Ok(())
            }
        });
        let root = cut_off.path();
        assert_eq!(restorable(root, hours)[first..], wanted, "after {steps} steps");
        let rebuilt = copy(root);
        let report = reindex::reindex(rebuilt.path(), &read_meta(root).unwrap()).unwrap();
        assert_eq!(report.damaged, [], "after {steps} steps");
        assert_eq!(restorable(rebuilt.path(), hours)[first..], wanted, "after {steps} steps");
        let known = Archive::open(rebuilt.path()).unwrap().catalog().gaps(SOURCE).unwrap();
        assert!(known.iter().all(|gap| gap.reason == "it was reset"), "{steps}: {known:?}");
        for root in [root, rebuilt.path()] {
            prune(&options(root)).unwrap();
            let without_records = |root: &Path| {
                let mut all = objects(root);
                all.retain(|name| !names::is_pruned(name));
                all
            };
            assert_eq!(without_records(root), without_records(whole.path()), "{steps} steps");
            assert_eq!(dump(root), dump(whole.path()), "after {steps} steps");
        }
        if done.is_ok() {
            break;
        }
        steps += 1;
    }
    assert!(steps > 15, "{steps}");
}

#[test]
fn an_instant_that_is_held_stays_until_it_is_released() {
    let made = thirty_days();
    made.hold("audit", 100, 130);
    let root = made.dir.path();
    let before = restorable(root, made.hour - 12);
    prune(&made.options(12)).unwrap();
    let after = restorable(root, made.hour - 12);
    // From the baseline at hour 84 to the end of the span, and whatever follows.
    assert!(before[84 / 6..=130 / 6].iter().all(|can| *can), "{before:?}");
    assert_eq!(after[84 / 6..], before[84 / 6..]);
    assert!(!after[78 / 6]);
    // It is an object of the archive: a rebuilt catalog changes nothing.
    reindex::reindex(root, &read_meta(root).unwrap()).unwrap();
    assert_eq!(prune(&made.options(12)).unwrap().sources[0].deleted, Sum::default());
    assert_eq!(made.archive.holds(SOURCE).unwrap()[0].name, "audit");
    let again = made.archive.hold(SOURCE, &made.archive.holds(SOURCE).unwrap()[0]);
    assert_eq!(again.unwrap_err().class(), Class::Usage);
    assert!(made.archive.release(SOURCE, "audit").unwrap());
    assert!(!made.archive.release(SOURCE, "audit").unwrap());
    assert_ne!(prune(&made.options(12)).unwrap().sources[0].deleted, Sum::default());
    assert!(!restorable(root, made.hour)[84 / 6]);
}

#[test]
fn nothing_goes_on_the_strength_of_a_baseline_that_is_damaged() {
    let made = thirty_days();
    let root = made.dir.path();
    let history = made.archive.history(SOURCE, EngineKind::Mysql).unwrap();
    // The one that the first instants of the window would be restored from.
    let relied = history.baselines.iter().find(|baseline| baseline.at == at(444)).unwrap();
    let path = made.archive.store().path(&baseline_name(relied)).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let report = prune(&made.options(12)).unwrap();
    let window = report.sources[0].items.iter().find(|item| item.reason == Why::Window.text());
    assert_eq!(window.unwrap().at, Some(at(420)), "{report:#?}");
    assert!(restorable(root, made.hour)[444 / 6 - 1]);
}

#[test]
fn a_clock_that_jumped_and_more_than_half_are_refused_and_nothing_is_touched() {
    let made = thirty_days();
    let before = objects(made.dir.path());
    let careful = Options { force: false, ..made.options(12) };
    let error = prune(&careful).unwrap_err();
    assert_eq!(error.class(), Class::Refused);
    assert!(error.to_string().contains("more than half"), "{error}");
    let jumped = Options { now: at(made.hour + 25), ..made.options(29) };
    let error = prune(&Options { force: false, ..jumped.clone() }).unwrap_err();
    assert!(error.to_string().contains("clock is ahead"), "{error}");
    assert!(error.hint_text().unwrap().contains("--force"));
    assert_eq!(objects(made.dir.path()), before);
    prune(&jumped).unwrap();
    assert!(objects(made.dir.path()).len() < before.len());
}

#[test]
fn nothing_goes_while_somebody_reads_the_archive() {
    let made = thirty_days();
    let before = objects(made.dir.path());
    let reader = crate::archive::reading(made.dir.path()).unwrap();
    let error = prune(&made.options(12)).unwrap_err();
    assert_eq!(error.class(), Class::Busy);
    assert_eq!(objects(made.dir.path()), before);
    // Two may read at once, and looking is no deleting.
    drop(crate::archive::reading(made.dir.path()).unwrap());
    prune(&Options { apply: false, ..made.options(12) }).unwrap();
    drop(reader);
    prune(&made.options(12)).unwrap();
}

#[test]
fn it_ends_between_two_steps_when_it_is_told_to() {
    let made = thirty_days();
    let options = made.options(12);
    options.stop.store(true, Ordering::Release);
    assert_eq!(prune(&options).unwrap_err().class(), Class::Interrupted);
}
