//! Each thing that can be wrong is made wrong once, and found where it is.

use super::*;
use crate::clock::Tz;
use crate::position::Position;
use crate::prune::tests::{Made, SOURCE, at, three_times};
use crate::record::Chunk;
use rstest::rstest;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Any bytes are one record, unless they end in a zero.
#[derive(Default)]
struct Anything(Option<u8>);

impl Parse for Anything {
    fn push(&mut self, bytes: Bytes) -> Result<()> {
        self.0 = bytes.last().copied();
        if bytes.contains(&0xEE) {
            return Err(Error::corrupt("0xEE is no record"));
        }
        Ok(())
    }

    fn is_between_records(&self) -> bool {
        self.0 != Some(0)
    }
}

fn options(root: &Path) -> Options {
    Options {
        archive: root.to_owned(),
        sources: vec![],
        sample: Sample::All,
        parser: |_, _| Box::new(Anything::default()),
    }
}

fn findings(root: &Path) -> Vec<Finding> {
    verify(&options(root), &|_, _| {}).unwrap().findings
}

/// Six days in one timeline: twelve segments and six baselines.
fn six_days() -> Made {
    let mut made = Made::new(EngineKind::Mysql);
    made.days(6);
    made
}

fn path(made: &Made, name: &str) -> PathBuf {
    made.archive.store().path(name).unwrap()
}

fn segment(number: u64) -> String {
    names::segment(SOURCE, 1, number)
}

#[test]
fn a_sound_archive_has_no_findings_and_all_of_it_was_read() {
    let made = three_times(3, 4);
    let steps = AtomicU64::new(0);
    let report = verify(&options(made.dir.path()), &|done, total| {
        assert!(done <= total);
        steps.store(done, Ordering::Relaxed);
    })
    .unwrap();
    assert_eq!(report.findings, []);
    report.check().unwrap();
    // 18 segments and 9 baselines; the open segment is no object that is read whole.
    assert_eq!(report.read, 27);
    assert_eq!(report.objects, 18 + 9 + 1 + 2 + 3, "with JSON, events and changes");
    let zst = made.archive.store().list("").unwrap().into_iter();
    let sizes = zst
        .filter(|name| name.strip_suffix(".zst").is_some())
        .map(|name| made.archive.store().size(&name).unwrap().unwrap());
    assert_eq!(report.bytes, sizes.sum::<u64>());
    assert_eq!(steps.into_inner(), report.bytes);
    assert!(report.text(Tz::UTC).ends_with("all as they were written\n"));
}

#[test]
fn a_flipped_bit_in_any_byte_of_a_segment_is_found_in_that_segment() {
    let mut made = Made::new(EngineKind::Mysql);
    made.days(1);
    let path = path(&made, &segment(1));
    let sound = std::fs::read(&path).unwrap();
    for place in 0..sound.len() {
        let mut damaged = sound.clone();
        damaged[place] ^= 1 << (place % 8);
        std::fs::write(&path, &damaged).unwrap();
        let report = verify(&options(made.dir.path()), &|_, _| {}).unwrap();
        let is_it = |f: &Finding| f.object == segment(1) && f.kind == Kind::Damaged;
        assert!(report.findings.iter().any(is_it), "at {place}: {report:#?}");
        assert_eq!(report.check().unwrap_err().class(), Class::Corrupt);
    }
    std::fs::write(&path, &sound).unwrap();
    assert_eq!(findings(made.dir.path()), []);
}

#[test]
fn damage_in_an_open_segment_is_told_from_its_torn_end() {
    let made = three_times(3, 4);
    let names = made.archive.store().list("").unwrap();
    let open = names.into_iter().find(|name| name.strip_suffix(".open").is_some()).unwrap();
    let path = path(&made, &open);
    let file = File::open(&path).unwrap();
    let header = Reader::scan(BufReader::new(file)).unwrap().meta().header.clone();
    let mut writer = crate::segment::Writer::create(vec![], &header, 1).unwrap();
    for start in [0, 10, 20].map(|more| header.start.offset + more) {
        let whole = Position { offset: start + 10, ..header.start.clone() };
        let chunk = Chunk { start, bytes: vec![1; 10], whole: Some(whole), ..Chunk::default() };
        writer.append(&chunk).unwrap();
    }
    let bytes = writer.get_ref().clone();
    let blocks = Reader::scan(std::io::Cursor::new(&bytes)).unwrap().blocks().to_vec();
    assert_eq!(blocks.len(), 3);
    for (block, is_found) in blocks.iter().zip([true, true, false]) {
        let mut damaged = bytes.clone();
        damaged[(block.file_offset + block.stored_len - 1) as usize] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        let found = findings(made.dir.path());
        assert_eq!(found.len(), usize::from(is_found), "{found:#?}");
        assert!(found.iter().all(|f| f.object == open.replace(".open", ".zst")), "{found:#?}");
        assert!(found.iter().all(|f| f.kind == Kind::Damaged && f.lost.is_some()), "{found:#?}");
    }
    std::fs::write(&path, &bytes).unwrap();
    std::fs::copy(&path, path.with_extension("damaged")).unwrap();
    let found = findings(made.dir.path());
    assert_eq!(found.len(), 1);
    assert!(found[0].reason.contains("damaged while it was open"), "{found:#?}");
}

#[test]
fn damage_of_a_block_is_located_with_the_instants_that_are_lost() {
    let made = six_days();
    let path = path(&made, &segment(5));
    let mut bytes = std::fs::read(&path).unwrap();
    let frame = bytes.windows(4).position(|four| four == 0xFD2F_B528_u32.to_le_bytes()).unwrap();
    bytes[frame + 9] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let found = findings(made.dir.path());
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!((found[0].kind, found[0].block), (Kind::Damaged, Some(0)));
    assert_eq!(found[0].offsets, Some((2000, 2500)));
    // Segment 4 ends at hour 48; the baseline behind segment 5 is of hour 60.
    assert_eq!(found[0].lost, Some(Lost { after: Some(at(48)), until: Some(at(60)) }));
    let report = verify(&options(made.dir.path()), &|_, _| {}).unwrap();
    let text = report.text(Tz::UTC);
    assert!(text.contains("block 0 (2000 to 2500)") && text.contains("1 finding"), "{text}");
}

#[test]
fn a_baseline_within_a_damaged_block_does_not_end_the_loss() {
    let mut made = Made::new(EngineKind::Mysql);
    made.days(2);
    made.segment(true);
    made.baseline();
    (made.place.offset, made.hour) = (2250, 54);
    made.baseline();
    let path = path(&made, &segment(5));
    let mut bytes = std::fs::read(&path).unwrap();
    let frame = bytes.windows(4).position(|four| four == 0xFD2F_B528_u32.to_le_bytes()).unwrap();
    bytes[frame + 9] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let found = findings(made.dir.path());
    assert_eq!(
        found[0].lost,
        Some(Lost { after: Some(at(48)), until: Some(at(60)) }),
        "{found:#?}"
    );
}

#[test]
fn a_timeline_that_left_another_one_is_sound_and_its_damage_is_found() {
    let forked = |spoil: fn(&mut Made)| {
        let mut made = six_days();
        made.leave(5);
        spoil(&mut made);
        made.days(2);
        made
    };
    let first = names::segment(SOURCE, 2, 1);
    let made = forked(|_| {});
    assert_eq!(findings(made.dir.path()), []);

    let spoils: [fn(&mut Made); 3] = [
        |made| made.previous = Some("0".repeat(64)),
        |made| made.place.offset += 100,
        |made| made.place.gtids = "u:1-5".into(),
    ];
    for spoil in spoils {
        let found = findings(forked(spoil).dir.path());
        let chain = found.iter().find(|f| f.kind == Kind::Chain).unwrap();
        assert_eq!(chain.object, first, "{found:#?}");
        // The baseline behind the first segment of the new timeline.
        let lost = Lost { after: Some(at(48)), until: Some(at(60)) };
        assert_eq!(chain.lost, Some(lost), "{found:#?}");
    }

    let copy = path(&made, &first);
    let sound = std::fs::read(&copy).unwrap();
    let mut damaged = sound.clone();
    let frame = sound.windows(4).position(|four| four == 0xFD2F_B528_u32.to_le_bytes()).unwrap();
    damaged[frame + 9] ^= 1;
    std::fs::write(&copy, damaged).unwrap();
    let found = findings(made.dir.path());
    assert_eq!((found[0].object.as_str(), found[0].block), (first.as_str(), Some(0)), "{found:#?}");
    std::fs::write(&copy, sound).unwrap();

    std::fs::remove_file(path(&made, &segment(4))).unwrap();
    let found = findings(made.dir.path());
    assert!(found.iter().any(|f| f.object == segment(4) && f.kind == Kind::Missing), "{found:#?}");
}

#[test]
fn a_timeline_that_is_gone_is_missed_by_the_one_that_goes_on_from_it() {
    let mut made = six_days();
    made.next_timeline(true);
    made.days(1);
    let root = made.dir.path();
    assert_eq!(findings(root), []);
    std::fs::remove_dir_all(root.join(SOURCE).join("t0001")).unwrap();
    let meta = crate::archive::read_meta(root).unwrap();
    crate::reindex::reindex(root, &meta).unwrap();
    let found = findings(root);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!((found[0].object.as_str(), found[0].kind), (segment(12).as_str(), Kind::Missing));
    // The baseline behind the first segment of the second timeline.
    assert_eq!(found[0].lost, Some(Lost { after: None, until: Some(at(156)) }));
}

// A replay from within a log reads it from its beginning: only the baseline in log.2, of hour 132,
// leads on where a segment of log.1 is gone.
#[rstest]
#[case::in_the_middle(5, Some(at(48)), Some(at(132)))]
#[case::the_first(1, None, Some(at(132)))]
#[case::the_last(12, Some(at(132)), None)]
fn a_segment_that_is_gone_is_named_with_the_instants_that_are_lost(
    #[case] number: u64,
    #[case] after: Option<Timestamp>,
    #[case] until: Option<Timestamp>,
    #[values(true, false)] reindexed: bool,
) {
    let made = six_days();
    let root = made.dir.path().to_owned();
    std::fs::remove_file(path(&made, &segment(number))).unwrap();
    if reindexed {
        let meta = crate::archive::read_meta(&root).unwrap();
        crate::reindex::reindex(&root, &meta).unwrap();
    }
    let found = findings(&root);
    if reindexed && number == 12 {
        // Nothing that is left tells of a last segment but the baseline whose log it was.
        assert_eq!(found, []);
        return;
    }
    let missing = found.iter().find(|f| f.object == segment(number)).unwrap();
    assert_eq!(missing.kind, Kind::Missing, "{found:#?}");
    assert_eq!(missing.lost, Some(Lost { after, until }), "{found:#?}");
}

#[test]
fn a_truncated_and_a_swapped_segment_are_found() {
    let made = six_days();
    let (third, seventh) = (path(&made, &segment(3)), path(&made, &segment(7)));
    let (a, b) = (std::fs::read(&third).unwrap(), std::fs::read(&seventh).unwrap());
    std::fs::write(&third, &a[..a.len() - 20]).unwrap();
    let found = findings(made.dir.path());
    assert!(found.iter().any(|f| f.object == segment(3) && f.kind == Kind::Damaged), "{found:#?}");
    std::fs::write(&third, &b).unwrap();
    std::fs::write(&seventh, &a).unwrap();
    let found = findings(made.dir.path());
    for number in [3, 7] {
        let named = found.iter().find(|f| f.object == segment(number)).unwrap();
        assert!(named.reason.contains("by its header it is"), "{found:#?}");
    }
}

#[test]
fn what_was_left_out_of_a_chain_that_was_signed_again_is_found() {
    // A hundred bytes, and in another archive a GTID, are missing between two segments.
    for spoil in
        [(|made: &mut Made| made.place.offset += 100) as fn(&mut Made), |made: &mut Made| {
            made.place.gtids = "u:1-5".into();
        }]
    {
        let mut made = six_days();
        made.place.log = "log.2".into();
        made.segment(true);
        spoil(&mut made);
        made.segment(true);
        let found = findings(made.dir.path());
        let chain = found.iter().find(|f| f.kind == Kind::Chain).unwrap();
        assert_eq!(chain.object, segment(14), "{found:#?}");
    }
    let mut made = six_days();
    made.previous = Some("0".repeat(64));
    made.segment(true);
    let found = findings(made.dir.path());
    assert!(found.iter().any(|f| f.kind == Kind::Chain && f.object == segment(13)), "{found:#?}");
}

#[test]
fn damage_of_a_baseline_or_its_json_is_found() {
    let made = six_days();
    let history = made.archive.history(SOURCE, EngineKind::Mysql).unwrap();
    let name = baseline_name(&history.baselines[2]);
    let json = format!("{name}.json");
    for object in [&name, &json] {
        let path = path(&made, object);
        let sound = std::fs::read(&path).unwrap();
        for place in (0..sound.len()).step_by(5) {
            // A blank in the JSON is no damage.
            if sound[place].is_ascii_whitespace() {
                continue;
            }
            let mut damaged = sound.clone();
            damaged[place] ^= 0x10;
            std::fs::write(&path, &damaged).unwrap();
            let found = findings(made.dir.path());
            let is_it = |f: &Finding| f.object == json && f.kind == Kind::Damaged;
            assert!(found.iter().any(is_it), "{object} at {place}: {found:#?}");
        }
        std::fs::remove_file(&path).unwrap();
        let found = findings(made.dir.path());
        assert!(found.iter().any(|f| f.kind == Kind::Missing), "{object}: {found:#?}");
        std::fs::write(&path, &sound).unwrap();
    }
    assert_eq!(findings(made.dir.path()), []);
}

#[test]
fn instants_are_lost_with_a_baseline_only_where_no_earlier_one_leads_to_them() {
    let mut made = six_days();
    made.next_timeline(true);
    made.days(2);
    made.next_timeline(false);
    made.days(2);
    let history = made.archive.history(SOURCE, EngineKind::Mysql).unwrap();
    let hour = |hour| history.baselines.iter().find(|b| b.at == at(hour)).unwrap();
    let cases = [
        (12, Some(Lost { after: None, until: Some(at(36)) })),
        (60, None),
        // The first of the timeline that goes on, and the first behind a gap.
        (156, None),
        (204, Some(Lost { after: Some(at(204)), until: Some(at(228)) })),
    ];
    for (at, lost) in cases {
        let name = baseline_name(hour(at));
        for object in [name.clone(), format!("{name}.json")] {
            let path = path(&made, &object);
            let sound = std::fs::read(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            let found = findings(made.dir.path());
            let named = found.iter().find(|f| f.object == format!("{name}.json")).unwrap();
            assert_eq!((named.kind, named.lost), (Kind::Missing, lost), "{object}: {found:#?}");
            std::fs::write(&path, sound).unwrap();
        }
    }
}

#[test]
fn a_catalog_that_says_something_else_and_files_of_others_are_mild() {
    let made = six_days();
    let root = made.dir.path();
    made.archive.store().put_new("shop/t0001/notes.txt", b"x").unwrap();
    made.archive.store().put_new("notes.txt", b"x").unwrap();
    let db = rusqlite::Connection::open(root.join(names::CATALOG)).unwrap();
    db.execute("UPDATE segment SET bytes_stored = 1 WHERE number = 4", []).unwrap();
    db.execute("UPDATE block SET records = 7 WHERE segment = 6", []).unwrap();
    db.execute("DELETE FROM segment WHERE number = 9", []).unwrap();
    let report = verify(&options(root), &|_, _| {}).unwrap();
    let of = |kind| report.findings.iter().filter(move |f| f.kind == kind).map(|f| &f.object);
    assert!(of(Kind::Surplus).eq(["notes.txt", "shop/t0001/notes.txt"]), "{report:#?}");
    assert!(of(Kind::Catalog).eq(&[segment(4), segment(6), segment(9)]), "{report:#?}");
    assert_eq!(report.findings.len(), 5);
    assert_eq!(report.check().unwrap_err().class(), Class::Finding);
}

#[test]
fn bytes_that_are_no_records_are_found_although_every_digest_matches() {
    let mut made = six_days();
    made.fill = Some(0xEE);
    made.segment(true);
    made.fill = Some(0);
    made.segment(true);
    let found = findings(made.dir.path());
    assert_eq!(found.len(), 2, "{found:#?}");
    assert_eq!((found[0].object.as_str(), found[0].block), (segment(13).as_str(), Some(0)));
    assert_eq!(found[1].reason, "it ends within a record");
}

#[test]
fn what_was_deleted_as_too_old_is_not_missing_and_without_a_record_of_it_is() {
    let made = three_times(3, 4);
    let root = made.dir.path();
    let before = crate::prune::prune(&made.options(4)).unwrap();
    assert!(before.sources[0].deleted.segments > 6, "{before:#?}");
    assert_eq!(findings(root), []);
    std::fs::remove_dir_all(root.join(SOURCE).join("pruned")).unwrap();
    let found = findings(root);
    assert!(found.iter().any(|f| f.kind == Kind::Missing), "{found:#?}");
}

#[test]
fn a_part_each_day_reads_everything_once_in_as_many_days_as_there_are_parts() {
    let made = three_times(3, 4);
    let (mut read, days) = (0, 20);
    for day in 0..days {
        let now = Timestamp::from_secs(day * 86_400 + 5);
        let sample = Sample::percent(5.0, now).unwrap();
        assert_eq!(sample, Sample::Part { of: 20, day: day as u64 });
        let report = verify(&Options { sample, ..options(made.dir.path()) }, &|_, _| {}).unwrap();
        assert_eq!(report.findings, []);
        read += report.read;
    }
    assert_eq!(read, 27);
    for wrong in [0.0, -1.0, 101.0, f64::NAN] {
        assert_eq!(Sample::percent(wrong, at(0)).unwrap_err().class(), Class::Usage);
    }
}

#[test]
fn only_the_sources_named_are_looked_at() {
    let made = six_days();
    std::fs::remove_file(path(&made, &segment(5))).unwrap();
    let sources = vec!["another".into()];
    let report = verify(&Options { sources, ..options(made.dir.path()) }, &|_, _| {}).unwrap();
    assert_eq!((report.objects, report.findings.len()), (0, 0));
}
