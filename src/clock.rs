//! Time: the one place that reads it, and the one type that carries it.
//!
//! Inside pitr an instant is a [`Timestamp`], µs since 1970 in UTC. Civil time with a zone exists
//! only at the edge: [`parse_target`] turns what an operator typed into one instant, once, and
//! refuses a civil time that a DST change makes ambiguous or impossible.

use crate::error::{Error, Result};
use chrono::{DateTime, NaiveDate, NaiveDateTime, SecondsFormat, TimeZone, Timelike, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::time::Duration;

/// An instant: µs since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// Now, by this host's clock.
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn now() -> Self {
        Self(Utc::now().timestamp_micros())
    }

    /// The instant `micros` µs after 1970 (before, if negative).
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// The instant `secs` s after 1970.
    pub const fn from_secs(secs: i64) -> Self {
        Self(secs.saturating_mul(1_000_000))
    }

    /// µs since 1970.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// The instant `d` later.
    #[must_use]
    pub fn after(self, d: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(d.as_micros()).unwrap_or(i64::MAX)))
    }

    /// The instant `d` earlier.
    #[must_use]
    pub fn before(self, d: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(d.as_micros()).unwrap_or(i64::MAX)))
    }

    /// The instant `micros` µs later, or earlier if negative.
    #[must_use]
    pub fn shifted(self, micros: i64) -> Self {
        Self(self.0.saturating_add(micros))
    }

    /// How long after `earlier` this is; zero if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// The full UTC hour that this instant lies in.
    #[must_use]
    pub fn hour(self) -> Self {
        const HOUR: i64 = 3_600_000_000;
        Self(self.0.div_euclid(HOUR) * HOUR)
    }

    /// `20240501T030000Z`, as file names carry it.
    pub fn compact(self) -> String {
        match self.utc() {
            Some(utc) => utc.format("%Y%m%dT%H%M%SZ").to_string(),
            None => self.0.to_string(),
        }
    }

    /// The instant as chrono has it, unless it lies outside of chrono's years.
    pub fn utc(self) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp_micros(self.0)
    }

    /// Reads RFC 3339.
    pub fn parse(text: &str) -> Option<Self> {
        DateTime::parse_from_rfc3339(text).ok().map(|t| Self(t.timestamp_micros()))
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with µs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.utc() {
            Some(utc) => f.write_str(&utc.to_rfc3339_opts(SecondsFormat::Micros, true)),
            None => write!(f, "{}us", self.0),
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::parse(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("not an RFC 3339 time: {text:?}")))
    }
}

/// A time zone by its IANA name.
pub use chrono_tz::Tz;

/// The zone of this host, or UTC where it has none that is known.
pub fn host_zone() -> Tz {
    iana_time_zone::get_timezone().ok().and_then(|name| name.parse().ok()).unwrap_or(Tz::UTC)
}

/// What `--to` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The newest instant that can be restored.
    Latest,
    /// This instant.
    At(Timestamp),
}

/// Reads what an operator typed as the target of a restore.
///
/// Accepts `latest`, RFC 3339 (`2024-05-01T03:00:00Z`), civil time in `zone`
/// (`2024-05-01T03:00`, seconds and fractions optional, a space in place of the `T`), and
/// `N seconds|minutes|hours|days ago`.
///
/// # Errors
/// Usage, if it is none of these, or if the civil time does not exist or exists twice in `zone`
/// (both instants are named).
pub fn parse_target(text: &str, zone: Tz, now: Timestamp) -> Result<Target> {
    let text = text.trim();
    if text == "latest" {
        return Ok(Target::Latest);
    }
    if let Some(ago) = text.strip_suffix("ago") {
        return parse_ago(ago.trim(), now).map(Target::At).ok_or_else(|| not_a_time(text));
    }
    if let Ok(t) = DateTime::parse_from_rfc3339(text) {
        return Ok(Target::At(Timestamp(t.timestamp_micros())));
    }
    let civil = parse_civil(text).ok_or_else(|| not_a_time(text))?;
    resolve_civil(civil, zone).map(Target::At)
}

/// The instant of a civil time in a zone.
///
/// # Errors
/// Usage, if a DST change makes the time impossible or ambiguous there.
pub fn resolve_civil(civil: NaiveDateTime, zone: Tz) -> Result<Timestamp> {
    use chrono::LocalResult;
    let micros = |t: DateTime<Tz>| Timestamp(t.timestamp_micros());
    match zone.from_local_datetime(&civil) {
        LocalResult::Single(t) => Ok(micros(t)),
        LocalResult::Ambiguous(a, b) => {
            let (a, b) = (micros(a), micros(b));
            Err(Error::usage(format!("{civil} exists twice in {zone}: it is {a} or {b}"))
                .hint(format!("name the instant you mean, as in --to {a}"))
                .nearest(vec![a.to_string(), b.to_string()]))
        }
        LocalResult::None => {
            // The clock jumped over this time: name the last instant before and the first after.
            let probe = |minutes| {
                let near = civil + chrono::Duration::minutes(minutes);
                zone.from_local_datetime(&near).earliest().map(micros)
            };
            let before = (1..=180).find_map(|m| probe(-m));
            let after = (1..=180).find_map(probe);
            let near: Vec<String> =
                before.into_iter().chain(after).map(|t| t.to_string()).collect();
            Err(Error::usage(format!(
                "{civil} does not exist in {zone}: the clock jumped over it, between {}",
                near.join(" and ")
            ))
            .hint("name the instant you mean with its offset, as in --to 2024-05-01T03:00:00Z")
            .nearest(near))
        }
    }
}

/// An instant in a zone, as people write it, with its offset.
pub fn in_zone(at: Timestamp, zone: Tz) -> String {
    match at.utc() {
        Some(utc) => {
            let local = utc.with_timezone(&zone);
            let precision = if local.nanosecond() == 0 { "" } else { "%.6f" };
            format!("{} ({zone})", local.format(&format!("%Y-%m-%d %H:%M:%S{precision} %:z")))
        }
        None => at.to_string(),
    }
}

fn not_a_time(text: &str) -> Error {
    Error::usage(format!("not a time: {text:?}")).hint(
        "write 2024-05-01T03:00:00Z, a civil time such as 2024-05-01T03:00 (with --tz), \
         '10 minutes ago' or 'latest'",
    )
}

fn parse_civil(text: &str) -> Option<NaiveDateTime> {
    const FORMATS: [&str; 4] =
        ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M"];
    FORMATS.iter().find_map(|format| NaiveDateTime::parse_from_str(text, format).ok()).or_else(
        || NaiveDate::parse_from_str(text, "%Y-%m-%d").ok().and_then(|d| d.and_hms_opt(0, 0, 0)),
    )
}

fn parse_ago(text: &str, now: Timestamp) -> Option<Timestamp> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let seconds_per_unit: u64 = match unit.trim() {
        "s" | "sec" | "second" | "seconds" => 1,
        "m" | "min" | "minute" | "minutes" => 60,
        "h" | "hour" | "hours" => 3_600,
        "d" | "day" | "days" => 86_400,
        _ => return None,
    };
    let seconds = number.parse::<u64>().ok()?.checked_mul(seconds_per_unit)?;
    Some(now.before(Duration::from_secs(seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const NOW: Timestamp = Timestamp::from_secs(1_714_532_400); // 2024-05-01T03:00:00Z

    #[rstest]
    #[case::zulu("2024-05-01T01:00:00Z", "2024-05-01T01:00:00.000000Z")]
    #[case::offset("2024-05-01T03:00:00.250+02:00", "2024-05-01T01:00:00.250000Z")]
    #[case::civil("2024-05-01T03:00", "2024-05-01T01:00:00.000000Z")]
    #[case::civil_space("2024-05-01 03:00:00.5", "2024-05-01T01:00:00.500000Z")]
    #[case::date("2024-05-01", "2024-04-30T22:00:00.000000Z")]
    #[case::ago("10 minutes ago", "2024-05-01T02:50:00.000000Z")]
    #[case::ago_short("2h ago", "2024-05-01T01:00:00.000000Z")]
    fn targets(#[case] text: &str, #[case] expected: &str) {
        let Target::At(at) = parse_target(text, Tz::Europe__Paris, NOW).unwrap() else {
            panic!("{text} is no instant")
        };
        assert_eq!(at.to_string(), expected);
    }

    #[rstest]
    #[case::twice("2024-10-27T02:30", "2024-10-27T00:30:00.000000Z")]
    #[case::never("2024-03-31T02:30", "2024-03-31T00:59:00.000000Z")]
    fn civil_times_around_dst_are_refused_with_both_instants(
        #[case] text: &str,
        #[case] first: &str,
    ) {
        let error = parse_target(text, Tz::Europe__Paris, NOW).unwrap_err();
        assert_eq!(error.class().exit_code(), 2);
        assert_eq!(error.nearest_instants().len(), 2);
        assert_eq!(error.nearest_instants()[0], first);
    }

    #[rstest]
    #[case("")]
    #[case("yesterday")]
    #[case("2024-13-01T00:00")]
    #[case("99999999999999999999 days ago")]
    #[case("é ago")]
    fn nonsense_is_refused(#[case] text: &str) {
        assert!(parse_target(text, Tz::UTC, NOW).is_err());
    }
}
