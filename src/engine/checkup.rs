//! What a look at a source found: settings and rights that a capture or a restore depends on.
//!
//! Engines judge what they know of their own servers; nothing is changed by looking.
//!
//! **Invariant:** what could not be asked is a finding itself, never an `ok`.

use super::{Endpoint, SourceOptions, mysql, redis};
use crate::error::Error;
use crate::manifest::EngineKind;
use serde::Serialize;
use std::time::Duration;

/// For how long a source should keep what was not captured yet: from Friday evening, when pitr or its
/// host fails, to Monday, when somebody looks.
pub const OUTAGE: Duration = Duration::from_hours(72);

/// For how long the backlog of a Redis source should bridge a broken connection: pitr's host is
/// restarted, or a network is repaired. A longer one costs a full copy and leaves a gap.
pub const INTERRUPTION: Duration = Duration::from_mins(10);

/// From which difference of clocks on a restore of several sources to one instant suffers.
pub const SKEW_MAX: Duration = Duration::from_secs(1);

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing has to be done.
    Note,
    /// It works, and something that may well happen would make it fail.
    Warning,
    /// It does not work, or what comes of it could be wrong.
    Problem,
}

impl Level {
    /// The word used in reports.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was looked at: a short name that stays the same, such as `log_bin`.
    pub check: &'static str,
    /// What was found.
    pub what: String,
    /// Why it matters.
    pub why: Option<String>,
    /// The statement, setting or command that mends it.
    pub fix: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self { level: Level::Ok, check, what: what.into(), why: None, fix: None }
    }

    /// Anything else, with the reason why it matters.
    pub fn new(
        level: Level,
        check: &'static str,
        what: impl Into<String>,
        why: impl Into<String>,
    ) -> Self {
        Self { level, check, what: what.into(), why: Some(why.into()), fix: None }
    }

    /// What could not be asked, or is refused with these words.
    pub fn failed(level: Level, check: &'static str, error: &Error, why: &str) -> Self {
        let fix = error.hint_text().map(str::to_owned);
        Self { level, check, what: error.to_string(), why: Some(why.into()), fix }
    }

    /// Adds what mends it.
    #[must_use]
    pub fn fix(self, fix: impl Into<String>) -> Self {
        Self { fix: Some(fix.into()), ..self }
    }
}

/// What was found at one server of a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checkup {
    /// Where it is.
    pub server: String,
    /// In the order in which it was looked at.
    pub findings: Vec<Finding>,
}

/// Looks at all servers of a source. `busiest` is how many bytes a second its log grew in the
/// busiest hour that the archive knows of.
///
/// What is wrong is a finding, and so is a server that does not answer: there is no error.
pub async fn checkup(options: &SourceOptions, busiest: Option<u64>) -> Vec<Checkup> {
    match options.engine {
        EngineKind::Mysql => mysql::checkup(options).await,
        EngineKind::Redis => redis::checkup(options, busiest).await,
    }
}

/// Judges how far a server's clock is ahead of this host's, in µs.
pub(in crate::engine) fn skew(micros: i64) -> Finding {
    let ms = micros / 1000;
    let what = match ms {
        0 => "its clock is that of this host, to the ms".to_owned(),
        1.. => format!("its clock is {ms} ms ahead of this host's"),
        _ => format!("its clock is {} ms behind this host's", -ms),
    };
    if u128::from(micros.unsigned_abs()) <= SKEW_MAX.as_micros() {
        return Finding::ok("clock", what);
    }
    let why = "an instant means each source's own clock: sources that are restored to one instant \
               are apart by as much as their clocks were";
    Finding::new(Level::Warning, "clock", what, why).fix("run chrony or ntpd on both hosts")
}

/// Whether what goes over the connection can be read on the way.
pub(in crate::engine) fn encryption(endpoint: &Endpoint) -> Option<Finding> {
    let is_local = endpoint.host == "localhost"
        || endpoint.host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if is_local || endpoint.tls.mode != super::TlsMode::Off {
        return None;
    }
    let what = format!("the connection to {} is not encrypted", endpoint.address());
    let why = "everything that is written to the source passes over it";
    let fix = "tls = { mode = \"verify\", ca = \"…\" } in the source's settings (docs/ACCOUNTS.md)";
    Some(Finding::new(Level::Note, "tls", what, why).fix(fix))
}

/// A span of time as people say it, in its largest unit.
pub(in crate::engine) fn span(time: Duration) -> String {
    let secs = time.as_secs();
    let (count, unit) = match secs {
        0..120 => (secs, "s"),
        120..7200 => (secs / 60, "min"),
        7200..172_800 => (secs / 3600, "h"),
        _ => (secs / 86_400, "days"),
    };
    format!("{count} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(0, Level::Ok, "to the ms")]
    #[case(-900_000, Level::Ok, "900 ms behind")]
    #[case(1_000_001, Level::Warning, "1000 ms ahead")]
    #[case(i64::MIN, Level::Warning, "behind")]
    fn clocks_that_differ_are_a_finding(
        #[case] micros: i64,
        #[case] level: Level,
        #[case] what: &str,
    ) {
        let found = skew(micros);
        assert_eq!(found.level, level);
        assert!(found.what.contains(what), "{found:?}");
    }

    #[rstest]
    #[case("mysql://a@127.0.0.1", false)]
    #[case("mysql://a@[::1]:3307", false)]
    #[case("mysql://a@db.example", true)]
    fn a_network_is_not_trusted_silently(#[case] url: &str, #[case] found: bool) {
        let endpoint = Endpoint::parse(EngineKind::Mysql, url).unwrap();
        assert_eq!(encryption(&endpoint).is_some(), found);
    }
}
