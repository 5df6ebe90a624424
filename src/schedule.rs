//! Decides when something is due: values in, values out.

use crate::clock::{Timestamp, Tz, resolve_civil};
use chrono::{Days, NaiveTime};

/// The next daily run at `at` (civil time in `zone`) after `now`. A day on which that time does
/// not exist, or exists twice, because of a DST change is served an hour later.
pub fn next_daily(now: Timestamp, at: NaiveTime, zone: Tz) -> Timestamp {
    let Some(today) = now.utc().map(|utc| utc.with_timezone(&zone).date_naive()) else {
        return now;
    };
    for ahead in 0..=2 {
        let Some(day) = today.checked_add_days(Days::new(ahead)) else { continue };
        let civil = day.and_time(at);
        let due = resolve_civil(civil, zone)
            .or_else(|_| resolve_civil(civil + chrono::Duration::hours(1), zone));
        if let Ok(due) = due
            && due > now
        {
            return due;
        }
    }
    // Unreachable with real zones; a day later is never too early.
    now.after(std::time::Duration::from_hours(24))
}

/// Whether a baseline has to be taken now: there is none yet, or the daily time `at` (civil time
/// in `zone`) has come since the newest one was begun.
pub fn is_baseline_due(newest: Option<Timestamp>, now: Timestamp, at: NaiveTime, zone: Tz) -> bool {
    newest.is_none_or(|begun| now >= next_daily(begun, at, zone))
}

/// Whether an hour is over: by the clock of this host, and by that of the source, of which
/// everything committed until `reached` is on disk.
pub fn is_hour_over(hour: Timestamp, reached: Option<Timestamp>, now: Timestamp) -> bool {
    let end = hour.after(std::time::Duration::from_hours(1));
    reached.is_some_and(|reached| reached >= end) && now >= end
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::over("2024-05-01T03:00:00Z", "2024-05-01T03:00:00Z", true)]
    #[case::long_over("2024-05-03T07:00:00Z", "2024-05-03T07:00:00Z", true)]
    #[case::running("2024-05-01T02:59:59Z", "2024-05-01T02:59:59Z", false)]
    #[case::source_is_behind("2024-05-01T02:30:00Z", "2024-05-01T03:10:00Z", false)]
    #[case::source_is_ahead("2024-05-01T03:00:01Z", "2024-05-01T02:59:58Z", false)]
    fn an_hour_is_over_when_both_clocks_say_so(
        #[case] reached: &str,
        #[case] now: &str,
        #[case] over: bool,
    ) {
        let at = |text: &str| Timestamp::parse(text).unwrap();
        assert_eq!(is_hour_over(at("2024-05-01T02:00:00Z"), Some(at(reached)), at(now)), over);
        assert!(!is_hour_over(at("2024-05-01T02:00:00Z"), None, at(now)));
    }

    #[rstest]
    #[case::later_today("2024-05-01T00:30:00Z", "2024-05-01T01:00:00.000000Z")]
    #[case::exactly_now_is_tomorrow("2024-05-01T01:00:00Z", "2024-05-02T01:00:00.000000Z")]
    #[case::tomorrow("2024-05-01T12:00:00Z", "2024-05-02T01:00:00.000000Z")]
    #[case::first_day_of_winter_time("2024-10-26T12:00:00Z", "2024-10-27T02:00:00.000000Z")]
    fn daily_at_three_in_paris(#[case] now: &str, #[case] due: &str) {
        let at = NaiveTime::from_hms_opt(3, 0, 0).unwrap();
        let next = next_daily(Timestamp::parse(now).unwrap(), at, Tz::Europe__Paris);
        assert_eq!(next.to_string(), due);
    }

    #[rstest]
    #[case::skipped_hour("2024-03-30T12:00:00Z", "2024-03-31T01:30:00.000000Z")]
    #[case::doubled_hour("2024-10-26T12:00:00Z", "2024-10-27T02:30:00.000000Z")]
    fn a_time_that_dst_takes_away_or_doubles_is_served_an_hour_later(
        #[case] now: &str,
        #[case] due: &str,
    ) {
        let at = NaiveTime::from_hms_opt(2, 30, 0).unwrap();
        let next = next_daily(Timestamp::parse(now).unwrap(), at, Tz::Europe__Paris);
        assert_eq!(next.to_string(), due);
    }

    #[rstest]
    #[case::the_first(None, "2024-05-01T12:00:00Z", true)]
    #[case::before_the_hour(Some("2024-04-30T01:00:05Z"), "2024-05-01T00:59:59Z", false)]
    #[case::at_the_hour(Some("2024-04-30T01:00:05Z"), "2024-05-01T01:00:00Z", true)]
    #[case::taken_today(Some("2024-05-01T01:00:00Z"), "2024-05-01T23:00:00Z", false)]
    #[case::missed_while_no_daemon_ran(Some("2024-04-28T01:00:05Z"), "2024-05-01T12:00:00Z", true)]
    fn one_baseline_a_day(#[case] newest: Option<&str>, #[case] now: &str, #[case] due: bool) {
        let at = NaiveTime::from_hms_opt(3, 0, 0).unwrap();
        let newest = newest.map(|text| Timestamp::parse(text).unwrap());
        let now = Timestamp::parse(now).unwrap();
        assert_eq!(is_baseline_due(newest, now, at, Tz::Europe__Paris), due);
    }
}
