//! Whether it is proved that nothing of an hour is missing: values in, values out.

use crate::changes::Broken;
use crate::clock::Timestamp;
use crate::manifest::{Continuity, Covered, Gap};

/// What is known of a source's history.
#[derive(Debug)]
pub(super) struct Known<'a> {
    /// The archive's first instant; `None` if it has nothing.
    pub(super) begin: Option<Timestamp>,
    /// Whether what was before was deleted as too old.
    pub(super) is_pruned: bool,
    /// Nothing committed until then is missing.
    pub(super) reached: Option<Timestamp>,
    /// The holes, as `windows` has them.
    pub(super) gaps: &'a [Gap],
    /// What could not be read.
    pub(super) broken: &'a [Broken],
    /// The present.
    pub(super) now: Timestamp,
    /// Since when the log has times that lie in the future: what comes behind such a record counts
    /// with it, so that nobody can tell by its time what belongs to an hour.
    pub(super) ahead_since: Option<Timestamp>,
}

/// What of an hour is covered, the verdict on that, and its reason.
pub(super) fn verdict(
    from: Timestamp,
    to: Timestamp,
    known: &Known<'_>,
) -> (Option<Covered>, Continuity, Option<String>) {
    let mut reasons: Vec<String> = Vec::new();
    let mut add = |reason: String| {
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    };
    for gap in known.gaps {
        // Without a time before it, it begins where the archive does.
        let gap = Gap { after: gap.after.or(known.begin), ..gap.clone() };
        if gap.after.is_some() && gap.concerns(Some(from), Some(to)) {
            add(gap.reason);
        }
    }
    for broken in known.broken {
        let is_after = broken.after.or(known.begin).is_none_or(|after| after < to);
        if is_after && broken.before.is_none_or(|before| before >= from) {
            add(broken.reason.clone());
        }
    }
    let begin = known.begin.map(|begin| begin.max(from)).filter(|begin| *begin < to);
    let reached = known.reached.map(|reached| reached.min(to)).filter(|reached| *reached >= from);
    let covered = begin.zip(reached).filter(|(begin, reached)| begin <= reached);
    let covered = covered.map(|(from, to)| Covered { from, to });
    if !reasons.is_empty() {
        return (covered, Continuity::Gap, Some(reasons.join("; ")));
    }
    let unproved = |why: String| (covered, Continuity::Unproved, Some(why));
    let Some(first) = known.begin else { return unproved("nothing is archived".into()) };
    let before = if known.is_pruned { "; what was before was deleted as too old" } else { "" };
    let Some(inside) = covered else {
        return unproved(match known.reached {
            Some(reached) if reached < from => format!("nothing is known after {reached}"),
            _ => format!("the archive begins at {first}{before}"),
        });
    };
    if known.ahead_since.is_some_and(|since| since < to) {
        return unproved(format!(
            "the source's clock was ahead once: its log has times up to {}",
            known.reached.map(|at| at.to_string()).unwrap_or_default()
        ));
    }
    if inside.to < to && known.now >= to {
        return unproved(format!("nothing is known after {}", inside.to));
    }
    let partly = inside.from > from;
    let reason = partly.then(|| format!("the archive begins at {first}{before}"));
    (covered, Continuity::Proved, reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;
    use rstest::rstest;

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_secs(1_714_521_600 + 60 * minute) // 2024-05-01T00:00:00Z
    }

    fn gap(after: i64, before: i64) -> Gap {
        let (after, before) = (Some(at(after)), Some(at(before)));
        Gap { timeline: 2, segment: 1, after, before, reason: "lost".into() }
    }

    /// The hour from minute 60 to 120, of an archive that begins at minute `begin`.
    #[rstest]
    #[case::whole(0, 130, 130, &[], Continuity::Proved)]
    #[case::to_the_end(0, 120, 130, &[], Continuity::Proved)]
    #[case::not_to_the_end(0, 119, 130, &[], Continuity::Unproved)]
    #[case::running(0, 80, 81, &[], Continuity::Proved)]
    #[case::running_and_not_begun(0, 50, 81, &[], Continuity::Unproved)]
    #[case::first(90, 130, 130, &[], Continuity::Proved)]
    #[case::before_the_first(121, 130, 130, &[], Continuity::Unproved)]
    #[case::gap_within(0, 130, 130, &[(70, 80)], Continuity::Gap)]
    #[case::gap_over_it(0, 200, 210, &[(10, 190)], Continuity::Gap)]
    #[case::gap_before(0, 130, 130, &[(10, 60)], Continuity::Proved)]
    #[case::gap_behind(0, 200, 210, &[(120, 190)], Continuity::Proved)]
    #[case::captured_anew_from_before_the_gap(0, 200, 210, &[(80, 10)], Continuity::Gap)]
    #[case::captured_anew_in_another_hour(0, 200, 210, &[(130, 70)], Continuity::Proved)]
    fn an_hour_is_proved_if_nothing_of_it_is_missing(
        #[case] begin: i64,
        #[case] reached: i64,
        #[case] now: i64,
        #[case] gaps: &[(i64, i64)],
        #[case] expected: Continuity,
    ) {
        let gaps: Vec<Gap> = gaps.iter().map(|(after, before)| gap(*after, *before)).collect();
        let known = Known {
            begin: Some(at(begin)),
            is_pruned: false,
            reached: Some(at(reached)),
            gaps: &gaps,
            broken: &[],
            now: at(now),
            ahead_since: None,
        };
        let (_, found, reason) = verdict(at(60), at(120), &known);
        assert_eq!(found, expected, "{reason:?}");
        assert!(found == Continuity::Proved || reason.is_some());
    }

    #[test]
    fn what_cannot_be_read_is_a_gap_in_the_hours_that_it_may_concern() {
        let broken = [Broken {
            after: Some(at(70)),
            before: Some(at(130)),
            reason: "segment 7 is missing".into(),
            class: Class::Gap,
        }];
        let known = Known {
            begin: Some(at(0)),
            is_pruned: false,
            reached: Some(at(200)),
            gaps: &[],
            broken: &broken,
            now: at(200),
            ahead_since: None,
        };
        let of = |hour: i64| verdict(at(hour), at(hour + 60), &known);
        assert_eq!(of(0).1, Continuity::Proved);
        assert_eq!((of(60).1, of(120).1), (Continuity::Gap, Continuity::Gap));
        assert_eq!(of(60).2.as_deref(), Some("segment 7 is missing"));
    }

    #[test]
    fn hours_behind_a_time_in_the_future_are_not_proved() {
        let mut known = Known {
            begin: Some(at(0)),
            is_pruned: false,
            reached: Some(at(9000)),
            gaps: &[],
            broken: &[],
            now: at(300),
            ahead_since: Some(at(70)),
        };
        let of = |known: &Known<'_>, hour: i64| verdict(at(hour), at(hour + 60), known).1;
        assert_eq!(of(&known, 0), Continuity::Proved);
        assert_eq!((of(&known, 60), of(&known, 120)), (Continuity::Unproved, Continuity::Unproved));
        known.ahead_since = None;
        assert_eq!(of(&known, 60), Continuity::Proved);
    }

    #[test]
    fn an_archive_without_anything_proves_nothing() {
        let known = Known {
            begin: None,
            is_pruned: false,
            reached: None,
            gaps: &[],
            broken: &[],
            now: at(200),
            ahead_since: None,
        };
        assert_eq!(verdict(at(60), at(120), &known).1, Continuity::Unproved);
    }
}
