//! The planner's boundaries, case by case. Instants are seconds; segments end where they say.

use super::*;
use crate::manifest::{FORMAT, SegmentHeader, Totals};
use crate::record::Server;
use rstest::rstest;

fn at(secs: i64) -> Timestamp {
    Timestamp::from_secs(secs)
}

fn baseline(timeline: u32, secs: i64, offset: u64) -> BaselineMeta {
    BaselineMeta {
        format: FORMAT,
        archive: "a".into(),
        source: "shop".into(),
        engine: EngineKind::Mysql,
        server: Server::default(),
        timeline,
        name: format!("base-{secs}"),
        position: Position::new("log.1", offset),
        at: at(secs),
        begun_at: at(secs),
        finished_at: at(secs),
        bytes_raw: 1,
        bytes_stored: 1,
        digest: String::new(),
        contents: None,
    }
}

fn gap(timeline: u32, segment: u64, after: i64, before: i64) -> Gap {
    let reason = "the binlog was purged".into();
    Gap { timeline, segment, after: Some(at(after)), before: Some(at(before)), reason }
}

fn history(timelines: &[(u32, i64)], baselines: Vec<BaselineMeta>, gaps: Vec<Gap>) -> History {
    History {
        source: "shop".into(),
        engine: EngineKind::Mysql,
        timelines: timelines.iter().map(|(t, until)| (*t, Some(at(*until)))).collect(),
        joins: vec![],
        forks: vec![],
        baselines,
        gaps,
    }
}

/// Segment `number` covers offsets `(number - 1) * 100 .. number * 100`.
fn segment(number: u64, last_at: Option<i64>, known_until: Option<i64>) -> SegmentMeta {
    SegmentMeta {
        header: SegmentHeader {
            format: FORMAT,
            archive: "a".into(),
            source: "shop".into(),
            engine: EngineKind::Mysql,
            server: Server::default(),
            timeline: 1,
            number,
            start: Position::new("log.1", (number - 1) * 100),
            opened_at: at(0),
            skew_micros: 0,
            previous: (number > 1).then(|| format!("digest {}", number - 1)),
            broken: None,
            continues: None,
            fork: None,
            head: None,
        },
        totals: Totals {
            end: Position::new("log.1", number * 100),
            blocks: 1,
            records: 1,
            bytes_raw: 100,
            first_at: last_at.map(at),
            last_at: last_at.map(at),
            known_until: known_until.or(last_at).map(at),
            origins: vec![],
            landmarks: vec![],
        },
        bytes_stored: 50,
        digest: format!("digest {number}"),
        sealed: true,
    }
}

#[rstest]
#[case::exactly_the_first(100, Some("base-100"))]
#[case::between(150, Some("base-100"))]
#[case::exactly_the_second(200, Some("base-200"))]
#[case::after_the_second(299, Some("base-200"))]
#[case::exactly_the_end(300, Some("base-200"))]
#[case::before_the_first(99, None)]
#[case::behind_the_end(301, None)]
fn the_newest_baseline_before_the_instant_is_chosen(
    #[case] to: i64,
    #[case] expected: Option<&str>,
) {
    let history = history(&[(1, 300)], vec![baseline(1, 100, 0), baseline(1, 200, 50)], vec![]);
    let chosen = choose(&history, at(to));
    assert_eq!(chosen.as_ref().ok().map(|(b, _)| b.name.as_str()), expected);
    if let Err(error) = chosen {
        assert_eq!(error.class().exit_code(), 4);
        assert_eq!(error.nearest_instants().len(), 1, "{error:?}");
    }
}

#[test]
fn an_instant_in_a_gap_is_refused_with_both_edges() {
    let history = history(
        &[(1, 200), (2, 400)],
        vec![baseline(1, 100, 0), baseline(2, 310, 0)],
        vec![gap(2, 1, 200, 300)],
    );
    let error = choose(&history, at(250)).unwrap_err();
    assert!(error.to_string().contains("the binlog was purged"), "{error}");
    assert_eq!(error.nearest_instants(), [at(200).to_string(), at(310).to_string()]);
    // The stretch between the gap's end and the first baseline behind it is out of reach as well.
    assert!(choose(&history, at(305)).is_err());
    assert_eq!(choose(&history, at(200)).unwrap().0.timeline, 1);
    assert_eq!(choose(&history, at(310)).unwrap().0.timeline, 2);
}

#[test]
fn a_hole_within_a_timeline_ends_the_window_before_it() {
    let hole = history(
        &[(1, 400)],
        vec![baseline(1, 100, 0), baseline(1, 320, 50)],
        vec![gap(1, 7, 200, 300)],
    );
    let expected = [
        Window { from: at(100), to: at(200), timeline: 1 },
        Window { from: at(320), to: at(400), timeline: 1 },
    ];
    assert_eq!(windows(&hole), expected);
    assert!(choose(&hole, at(250)).is_err());
    assert_eq!(choose(&hole, at(400)).unwrap().0.name, "base-320");
}

#[test]
fn where_timelines_overlap_the_newest_wins() {
    let forked =
        history(&[(1, 300), (2, 400)], vec![baseline(1, 100, 0), baseline(2, 250, 0)], vec![]);
    assert_eq!(choose(&forked, at(240)).unwrap().0.timeline, 1);
    assert_eq!(choose(&forked, at(260)).unwrap().0.timeline, 2);
}

#[test]
fn nothing_is_restorable_without_a_baseline() {
    let empty = history(&[(1, 300)], vec![], vec![]);
    assert_eq!(windows(&empty), []);
    assert!(choose(&empty, at(200)).unwrap_err().nearest_instants().is_empty());
}

#[rstest]
#[case::overlap(&[(0, 10)], &[(5, 20)], &[(5, 10)])]
#[case::touch(&[(0, 10)], &[(10, 20)], &[(10, 10)])]
#[case::apart(&[(0, 10)], &[(11, 20)], &[])]
#[case::gap_in_one(&[(0, 30)], &[(0, 10), (20, 30)], &[(0, 10), (20, 30)])]
#[case::overlapping_timelines(&[(0, 20), (10, 30)], &[(0, 30)], &[(0, 30)])]
fn the_joint_windows_are_the_intersection(
    #[case] a: &[(i64, i64)],
    #[case] b: &[(i64, i64)],
    #[case] expected: &[(i64, i64)],
) {
    let list = |spans: &[(i64, i64)]| -> Vec<Window> {
        spans.iter().map(|(f, t)| Window { from: at(*f), to: at(*t), timeline: 1 }).collect()
    };
    let joint: Vec<(Timestamp, Timestamp)> =
        joint(&[list(a), list(b)]).iter().map(|w| (w.from, w.to)).collect();
    let expected: Vec<_> = expected.iter().map(|(f, t)| (at(*f), at(*t))).collect();
    assert_eq!(joint, expected);
}

#[rstest]
#[case::in_the_first(150, 2)]
#[case::equal_to_a_commit_goes_on_to_the_next(200, 3)]
#[case::just_before_a_commit(299, 3)]
#[case::exactly_the_end(400, 4)]
#[case::known_to_be_idle(410, 4)]
fn the_replay_ends_with_the_first_record_left_out(#[case] to: i64, #[case] expected: usize) {
    let log = vec![
        segment(1, Some(100), None),
        segment(2, Some(200), None),
        segment(3, Some(300), None),
        segment(4, Some(400), Some(410)),
    ];
    let replay = line_up(&baseline(1, 90, 10), log, at(to)).unwrap();
    assert_eq!(replay.len(), expected);
}

#[test]
fn a_log_timed_by_marks_ends_with_the_first_mark_behind_the_instant() {
    let mut base = baseline(1, 90, 10);
    base.engine = EngineKind::Redis;
    let mut log = vec![segment(1, None, Some(100)), segment(2, None, Some(200))];
    for segment in &mut log {
        segment.header.engine = EngineKind::Redis;
    }
    assert_eq!(line_up(&base, log.clone(), at(95)).unwrap().len(), 1);
    assert_eq!(line_up(&base, log.clone(), at(100)).unwrap().len(), 2);
    assert!(line_up(&base, log, at(201)).is_err());
}

#[test]
fn a_missing_segment_is_a_gap_and_never_a_shorter_replay() {
    let log = vec![segment(1, Some(100), None), segment(3, Some(300), None)];
    let error = line_up(&baseline(1, 90, 10), log, at(250)).unwrap_err();
    assert_eq!(error.class().exit_code(), 4);
    let log = vec![segment(2, Some(200), None)];
    assert!(line_up(&baseline(1, 90, 10), log, at(150)).is_err(), "the first is missing");
    assert!(line_up(&baseline(1, 90, 10), vec![], at(150)).is_err());
}

#[test]
fn an_instant_behind_the_last_record_is_refused() {
    let log = vec![segment(1, Some(100), None)];
    assert_eq!(line_up(&baseline(1, 90, 10), log, at(101)).unwrap_err().class().exit_code(), 4);
}

#[test]
fn a_broken_chain_is_corrupt() {
    let mut log = vec![segment(1, Some(100), None), segment(2, Some(200), None)];
    log[1].header.previous = Some("another".into());
    assert_eq!(line_up(&baseline(1, 90, 10), log, at(150)).unwrap_err().class().exit_code(), 5);
    let mut log = vec![segment(1, Some(100), None), segment(2, Some(200), None)];
    log[1].header.start.offset = 101;
    assert_eq!(line_up(&baseline(1, 90, 10), log, at(150)).unwrap_err().class().exit_code(), 5);
}

/// Timeline 2 goes on where timeline 1 ends; timeline 3 begins behind a break.
fn joined() -> History {
    let baselines = vec![baseline(1, 100, 0), baseline(3, 600, 0)];
    let gaps = vec![gap(3, 1, 500, 550)];
    let history = history(&[(1, 300), (2, 500), (3, 700)], baselines, gaps);
    History { joins: vec![(2, 1)], ..history }
}

#[test]
fn a_window_goes_on_into_the_timeline_that_continues_its_own() {
    let found: Vec<_> = windows(&joined()).iter().map(|w| (w.from, w.to, w.timeline)).collect();
    assert_eq!(found, [(at(100), at(500), 2), (at(600), at(700), 3)]);
    assert_eq!(choose(&joined(), at(450)).unwrap().0.timeline, 1);
    let error = choose(&joined(), at(540)).unwrap_err();
    assert_eq!(error.nearest_instants(), [at(500).to_string(), at(600).to_string()]);
    // Not where the timeline that is continued has a hole.
    let mut holed = joined();
    holed.gaps.push(gap(1, 4, 200, 250));
    let found: Vec<_> = windows(&holed).iter().map(|w| (w.from, w.to, w.timeline)).collect();
    assert_eq!(found, [(at(100), at(200), 1), (at(600), at(700), 3)]);
}

/// Timeline 2 leaves timeline 1 behind its segment 3, which reaches 200; timeline 1 has more.
fn left(baselines: Vec<BaselineMeta>) -> History {
    let branch = Branch { timeline: 2, from: 1, number: 3, until: Some(at(200)) };
    History { forks: vec![branch], ..history(&[(1, 300), (2, 500)], baselines, vec![]) }
}

#[test]
fn what_a_timeline_lost_can_be_restored_and_so_can_what_goes_on_before_it() {
    let history = left(vec![baseline(1, 100, 0), baseline(1, 250, 90)]);
    let found: Vec<_> = windows(&history).iter().map(|w| (w.from, w.to, w.timeline)).collect();
    assert_eq!(found, [(at(100), at(300), 1), (at(100), at(500), 2)]);
    // A baseline of what was lost leads nowhere else, and the newest timeline wins.
    let chosen = |to| choose(&history, at(to)).map(|(b, into)| (b.name.clone(), into)).unwrap();
    assert_eq!(chosen(150), ("base-100".into(), 2));
    assert_eq!(chosen(260), ("base-100".into(), 2));
    assert_eq!(chosen(400), ("base-100".into(), 2));
    let lost_only = left(vec![baseline(1, 250, 90)]);
    assert_eq!(choose(&lost_only, at(260)).unwrap().1, 1);
    assert!(choose(&lost_only, at(400)).is_err());
    // Not over a hole in what both have; one behind that does not matter.
    let mut holed = history.clone();
    holed.gaps.push(gap(1, 2, 150, 160));
    assert!(choose(&holed, at(400)).is_err());
    holed.gaps = vec![gap(1, 5, 220, 230)];
    assert_eq!(choose(&holed, at(400)).unwrap().1, 2);
}

#[test]
fn a_timeline_is_lined_up_only_behind_the_end_that_it_continues() {
    let joined = |change: &dyn Fn(&mut SegmentMeta)| {
        let mut behind = segment(1, Some(400), None);
        let before = segment(2, Some(200), None);
        behind.header.timeline = 2;
        behind.header.continues = Some(crate::manifest::Continues { timeline: 1, number: 2 });
        behind.header.start = Position::new("elsewhere", 4711);
        behind.header.previous = Some(before.digest.clone());
        change(&mut behind);
        line_up(&baseline(1, 100, 100), vec![before, behind], at(300)).map(|s| s.len())
    };
    assert_eq!(joined(&|_| ()).unwrap(), 2);
    assert!(joined(&|s| s.header.continues = None).is_err());
    assert!(joined(&|s| s.header.previous = None).is_err());
    assert!(joined(&|s| s.header.start.gtids = "u:1-5".into()).is_err());
    assert!(joined(&|s| s.header.number = 2).is_err());
}
