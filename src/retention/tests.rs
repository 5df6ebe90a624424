//! What must stay stays, whatever the history and the clock; and what need not goes.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

/// A quarter of a day after the first instant.
fn at(quarter: i64) -> Timestamp {
    Timestamp::from_secs(1_714_532_400 + quarter * 21_600)
}

fn segment(number: u64, quarter: i64) -> Segment {
    Segment { number, reached: Some(at(quarter)), bytes: 100 }
}

fn baseline(timeline: u32, quarter: i64, first: u64, until: i64) -> Baseline {
    Baseline {
        name: format!("base-{timeline}-{quarter}"),
        timeline,
        at: at(quarter),
        bytes: 1000,
        first: Some(first),
        ways: vec![(at(until), timeline)],
        sound: true,
    }
}

/// A segment each day (4 quarters), and a baseline in each of them.
fn steady(days: u64) -> Past {
    let until = 4 * days as i64;
    Past {
        timelines: vec![Timeline {
            number: 1,
            segments: (1..=days).map(|day| segment(day, 4 * day as i64)).collect(),
        }],
        baselines: (1..=days).map(|day| baseline(1, 4 * day as i64 - 2, day, until)).collect(),
        ..Past::default()
    }
}

fn week(min_baselines: usize) -> Policy {
    Policy { days: 7, min_baselines }
}

fn kept(past: &Past, decision: &Decision) -> Vec<usize> {
    let all = decision.baselines.iter().enumerate().take(past.baselines.len());
    all.filter(|(_, why)| why.stays()).map(|(index, _)| index).collect()
}

#[test]
fn the_window_stays_restorable_to_its_first_second_and_nothing_older_stays() {
    let past = steady(20);
    // The window begins at quarter 52; the baseline before is that of day 13, at 50.
    let decision = decide(&past, &week(1), at(80));
    assert_eq!(kept(&past, &decision), (12..20).collect::<Vec<_>>());
    assert_eq!(decision.baselines[12], Why::Window);
    assert_eq!(decision.cuts[0].before, 13);
    assert_eq!((decision.cuts[0].count, decision.cuts[0].kept), (12, 8));
    // A baseline exactly at the first instant is enough.
    let decision = decide(&past, &week(1), at(82));
    assert_eq!(kept(&past, &decision)[0], 13);
}

#[test]
fn the_newest_baselines_stay_however_old_they_are() {
    let past = steady(5);
    for (min, from) in [(1, 4), (3, 2), (9, 0)] {
        let decision = decide(&past, &week(min), at(4000));
        assert_eq!(kept(&past, &decision), (from..5).collect::<Vec<_>>());
        assert_eq!(decision.cuts[0].before, from as u64 + 1);
    }
}

#[test]
fn a_baseline_that_cannot_be_relied_on_does_not_count() {
    let mut past = steady(20);
    past.baselines[12].sound = false;
    let decision = decide(&past, &week(1), at(80));
    assert_eq!((&decision.baselines[11], &decision.baselines[12]), (&Why::Window, &Why::Unsound));
    assert_eq!(decision.cuts[0].before, 12);
    for baseline in &mut past.baselines {
        baseline.sound = false;
    }
    let decision = decide(&past, &week(1), at(80));
    assert_eq!((decision.cuts[0].count, &decision.cuts[0].why), (0, &Why::NoBaseline));
}

#[test]
fn a_binlog_file_stays_from_its_beginning() {
    let mut past = steady(20);
    past.baselines[12].first = Some(9);
    assert_eq!(decide(&past, &week(1), at(80)).cuts[0].before, 9);
    past.baselines[12].first = None;
    assert_eq!(decide(&past, &week(1), at(80)).cuts[0].count, 0, "all may be needed");
}

#[test]
fn a_hold_keeps_what_serves_its_span() {
    let mut past = steady(30);
    let (from, to) = (at(19), at(24));
    past.holds.push(Hold { name: "audit".into(), from, to, made_at: at(100) });
    let decision = decide(&past, &week(1), at(120));
    let held: Vec<usize> =
        (0..30).filter(|i| decision.baselines[*i] == Why::Held("audit".into())).collect();
    assert_eq!(held, [4, 5], "the one before the span, at 18, and the one within, at 22");
    assert_eq!(decision.cuts[0].before, 5);
    past.holds.clear();
    assert_eq!(decide(&past, &week(1), at(120)).cuts[0].before, 23);
}

#[test]
fn an_old_fork_goes_when_its_last_instant_has_left_the_window() {
    let mut past = steady(20);
    past.timelines.push(Timeline { number: 2, segments: vec![segment(1, 84), segment(2, 120)] });
    past.baselines.push(baseline(2, 81, 1, 120));
    let decision = decide(&past, &week(1), at(80 + 28));
    assert_eq!(decision.baselines[19], Why::Window, "day 20 ends exactly where the window begins");
    let decision = decide(&past, &week(1), at(80 + 29));
    assert_eq!(kept(&past, &decision), [20]);
    assert_eq!((decision.cuts[0].count, decision.cuts[0].kept), (20, 0));
    assert_eq!(decision.cuts[0].before, 21);
    assert_eq!(decision.cuts[1].count, 0);
}

#[test]
fn a_timeline_that_goes_on_needs_the_one_before_until_it_has_a_baseline_of_its_own() {
    let mut past = steady(20);
    past.timelines.push(Timeline { number: 2, segments: vec![segment(1, 84), segment(2, 120)] });
    past.joins.push((2, 1));
    for baseline in &mut past.baselines {
        baseline.ways = vec![(at(120), 2)];
    }
    let decision = decide(&past, &week(1), at(120));
    assert_eq!(kept(&past, &decision), [19]);
    assert_eq!((decision.cuts[0].before, decision.cuts[1].count), (20, 0));
    past.baselines.push(baseline(2, 90, 2, 120));
    let decision = decide(&past, &week(1), at(120));
    assert_eq!(kept(&past, &decision), [20]);
    assert_eq!((decision.cuts[0].kept, decision.cuts[1].before), (0, 2));
}

#[test]
fn a_timeline_that_left_another_one_needs_it_as_far_as_a_baseline_of_it_is_needed() {
    let mut past = steady(20);
    // It leaves within day 15: the baselines until then lead to both ends.
    past.timelines.push(Timeline { number: 2, segments: vec![segment(1, 84), segment(2, 120)] });
    past.joins.push((2, 1));
    for baseline in past.baselines.iter_mut().filter(|baseline| baseline.at <= at(58)) {
        baseline.ways.push((at(120), 2));
    }
    let decision = decide(&past, &week(1), at(120));
    assert_eq!(kept(&past, &decision), [14, 19], "of each way the newest, and the newest of all");
    assert_eq!((decision.cuts[0].before, decision.cuts[1].count), (15, 0));
    past.baselines.push(baseline(2, 90, 2, 120));
    let decision = decide(&past, &week(1), at(120));
    assert_eq!(kept(&past, &decision), [20]);
}

#[test]
fn a_newest_timeline_without_a_baseline_stays_whole() {
    let mut past = steady(20);
    past.timelines.push(Timeline { number: 2, segments: vec![segment(1, 84), segment(2, 120)] });
    let decision = decide(&past, &week(1), at(400));
    assert_eq!((decision.cuts[1].count, &decision.cuts[1].why), (0, &Why::NoBaseline));
    assert_eq!(kept(&past, &decision), [19], "the newest that there is");
}

#[test]
fn a_clock_that_jumped_and_the_deletion_of_more_than_half_are_objected_to() {
    let past = steady(20);
    let policy = week(1);
    let object = |now, newest, last: Option<i64>| {
        let evidence = Evidence { newest: Some(newest), last_pruned: last.map(at) };
        let decision = decide(&past, &policy, now);
        objection(&decision, &past, &evidence, &policy, now)
    };
    let fine = object(at(44), at(44), None);
    assert_eq!(fine, None, "a day or two go");
    assert_eq!(object(at(44), at(41), Some(40)), None, "not even a day ahead");
    assert!(object(at(44), at(39), None).unwrap().contains("clock is ahead"));
    assert!(object(at(76), at(76), None).unwrap().contains("more than half"));
    // 38 days after the last deletion, and a quarter more.
    assert_eq!(object(at(44), at(44), Some(44 - 152)), None);
    assert!(object(at(44), at(44), Some(44 - 153)).unwrap().contains("deleted last"));
    let nothing = steady(3);
    let decision = decide(&nothing, &policy, at(12));
    assert!(decision.is_empty());
    let evidence = Evidence { newest: Some(at(0)), last_pruned: None };
    assert_eq!(objection(&decision, &nothing, &evidence, &policy, at(12)), None);
}

/// What random histories are made from: for each timeline whether it joins the one before, its
/// segments (length in quarters, whether a hole is before it), and where its baselines are (a
/// segment, how many segments before it its log begins, whether it is sound).
type Shape = Vec<(bool, Vec<(i64, bool)>, Vec<(prop::sample::Index, u64, bool)>)>;

fn shapes() -> impl Strategy<Value = Shape> {
    let segments = prop::collection::vec((0..12_i64, prop::bool::weighted(0.08)), 1..9);
    let place = (any::<prop::sample::Index>(), 0..3_u64, prop::bool::weighted(0.85));
    let baselines = prop::collection::vec(place, 0..6);
    prop::collection::vec((any::<bool>(), segments, baselines), 1..4)
}

/// A history, and for each baseline the segments (timeline, number) that a restore from it to the
/// end of its stretch reads.
fn history(shape: &Shape) -> (Past, Vec<BTreeSet<(u32, u64)>>, i64) {
    let mut past = Past::default();
    let (mut needs, mut clock) = (Vec::new(), 0);
    // Where the unbroken stretch that each segment is in ends: filled in from behind.
    let mut places: Vec<(u32, u64, i64, bool)> = Vec::new();
    for (index, (joins, segments, _)) in shape.iter().enumerate() {
        let number = index as u32 + 1;
        let joined = *joins && number > 1;
        if joined {
            past.joins.push((number, number - 1));
        }
        let (mut rows, mut next) = (Vec::new(), 1);
        for (place, (quarters, hole)) in segments.iter().enumerate() {
            let hole = *hole && place > 0;
            next += u64::from(hole);
            clock += quarters;
            rows.push(segment(next, clock));
            places.push((number, next, clock, if place == 0 { !joined } else { hole }));
            next += 1;
        }
        past.timelines.push(Timeline { number, segments: rows });
    }
    for (index, (_, _, baselines)) in shape.iter().enumerate() {
        let number = index as u32 + 1;
        let own: Vec<usize> =
            (0..places.len()).filter(|place| places[*place].0 == number).collect();
        for (place, back, sound) in baselines {
            let holding = *place.get(&own);
            let mut first = holding;
            for _ in 0..*back {
                if first > own[0] && !places[first].3 {
                    first -= 1;
                }
            }
            let more = places[holding + 1..].iter().take_while(|place| !place.3).count();
            let last = holding + more;
            let begins = if holding == 0 { 0 } else { places[holding - 1].2 };
            let (timeline, _, until, _) = places[last];
            past.baselines.push(Baseline {
                sound: *sound,
                ways: vec![(at(until), timeline)],
                ..baseline(number, begins, places[first].1, 0)
            });
            needs.push(places[first..=last].iter().map(|place| (place.0, place.1)).collect());
        }
    }
    (past, needs, clock)
}

/// The instants that each baseline serves, if it and all that it needs are there.
fn spans(past: &Past, needs: &[BTreeSet<(u32, u64)>]) -> Vec<Option<(Timestamp, Timestamp)>> {
    let there: BTreeSet<(u32, u64)> = past
        .timelines
        .iter()
        .flat_map(|timeline| timeline.segments.iter().map(|s| (timeline.number, s.number)))
        .collect();
    let serves = |(baseline, needs): (&Baseline, &BTreeSet<(u32, u64)>)| {
        (baseline.sound && needs.is_subset(&there)).then(|| (baseline.at, baseline.until()))
    };
    past.baselines.iter().zip(needs).map(serves).collect()
}

/// What is left after a decision.
fn carried_out(past: &Past, decision: &Decision) -> (Past, Vec<usize>) {
    let kept = kept(past, decision);
    let mut left = past.clone();
    left.baselines = kept.iter().map(|index| past.baselines[*index].clone()).collect();
    for (timeline, cut) in left.timelines.iter_mut().zip(&decision.cuts) {
        timeline.segments.retain(|segment| segment.number >= cut.before);
        assert_eq!(timeline.segments.len() as u64, cut.kept);
    }
    left.timelines.retain(|timeline| !timeline.segments.is_empty());
    (left, kept)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_could_be_restored_in_the_window_and_in_holds_still_can_be(
        shape in shapes(),
        days in 1..12_u32,
        min_baselines in 1..4_usize,
        later in 0..60_i64,
        held in prop::collection::vec((0..200_i64, 0..20_i64), 0..3),
    ) {
        let (mut past, needs, end) = history(&shape);
        for (name, (from, length)) in held.iter().enumerate() {
            let (name, made_at) = (name.to_string(), at(end));
            past.holds.push(Hold { name, from: at(*from), to: at(from + length), made_at });
        }
        let (policy, now) = (Policy { days, min_baselines }, at(end + later));
        let decision = decide(&past, &policy, now);
        let (left, kept) = carried_out(&past, &decision);
        let left_needs: Vec<_> = kept.iter().map(|index| needs[*index].clone()).collect();
        let (before, after) = (spans(&past, &needs), spans(&left, &left_needs));

        let window = (policy.window_from(now), now);
        let wanted = past.holds.iter().map(|hold| (hold.from, hold.to)).chain([window]);
        for (from, to) in wanted {
            for span in before.iter().flatten() {
                let (first, last) = (span.0.max(from), span.1.min(to));
                let covers = |s: &(Timestamp, Timestamp)| s.0 <= first && last <= s.1;
                prop_assert!(first > last || after.iter().flatten().any(covers),
                    "{first} to {last} could be restored: {decision:#?}");
            }
        }
        let newest = |spans: &[Option<(Timestamp, Timestamp)>], past: &Past| {
            let mut sound: Vec<_> = past.baselines.iter().zip(spans)
                .filter(|(b, _)| b.sound).map(|(b, span)| (b.timeline, b.at, *span)).collect();
            sound.sort();
            sound.split_off(sound.len().saturating_sub(min_baselines))
        };
        prop_assert_eq!(newest(&before, &past), newest(&after, &left), "the newest baselines");
        let last = |past: &Past| past.timelines.last().map(|t| t.segments.last().unwrap().number);
        prop_assert_eq!(last(&past), last(&left), "the capture goes on from its last segment");

        let again = decide(&left, &policy, now);
        prop_assert!(again.is_empty(), "once more: {again:#?} after {decision:#?}");
    }
}
