//! Which server it is: family and version, told by the version it announces.
//!
//! This is the one place where MySQL and MariaDB are told apart by name. Whatever differs between
//! them asks a [`Flavor`]; nothing else reads a version string.
//!
//! **Invariant:** a text without a version in it has no flavor: it is never taken for a server
//! that pitr knows.

use crate::record::TimeSource;
use std::fmt;

/// A family of servers that share a replication protocol and a form of GTIDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// MySQL, Percona Server and other descendants with `uuid:number` GTIDs.
    MySql,
    /// MariaDB, with `domain-server-sequence` GTIDs.
    MariaDb,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MySql => "MySQL",
            Self::MariaDb => "MariaDB",
        })
    }
}

/// Family and version of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flavor {
    /// The family.
    pub(crate) family: Family,
    /// Major, minor and patch number.
    pub(crate) number: (u32, u32, u32),
}

impl Flavor {
    /// Reads what `@@version`, a greeting or a FORMAT_DESCRIPTION says: `9.7.4-2`,
    /// `10.11.19-MariaDB-log`, `5.5.5-10.11.19-MariaDB-log`. `None` if it is no version.
    pub(crate) fn parse(version: &str) -> Option<Self> {
        // MariaDB puts this before its own version for clients that compare with 5.5.
        let own = version.strip_prefix("5.5.5-").unwrap_or(version);
        let is_maria = own.to_ascii_lowercase().contains("mariadb");
        let version = if is_maria { own } else { version };
        let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
        let major = numbers.next()?.ok()?;
        let mut next = || numbers.next().and_then(Result::ok);
        let number = (major, next()?, next().unwrap_or(0));
        let family = if is_maria { Family::MariaDb } else { Family::MySql };
        Some(Self { family, number })
    }

    /// Whether it is a MariaDB.
    pub(crate) fn is_maria(self) -> bool {
        self.family == Family::MariaDb
    }
}

/// How the transactions of a server of this version are timed.
pub(crate) fn times(version: &str) -> TimeSource {
    match Flavor::parse(version) {
        Some(flavor) if flavor.is_maria() => TimeSource::Header,
        _ => TimeSource::Commit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("9.7.4-2", Family::MySql, (9, 7, 4))]
    #[case("8.0.45-0ubuntu0.24.04.1", Family::MySql, (8, 0, 45))]
    #[case("26.7.0", Family::MySql, (26, 7, 0))]
    #[case("5.5.5-m3-log", Family::MySql, (5, 5, 5))]
    #[case("10.11.19-MariaDB-log", Family::MariaDb, (10, 11, 19))]
    #[case("5.5.5-10.11.19-MariaDB-log", Family::MariaDb, (10, 11, 19))]
    #[case("11.8.3-mariadb-ubu2404", Family::MariaDb, (11, 8, 3))]
    #[case("12.3-MariaDB", Family::MariaDb, (12, 3, 0))]
    fn servers_are_told_by_their_version(
        #[case] version: &str,
        #[case] family: Family,
        #[case] number: (u32, u32, u32),
    ) {
        assert_eq!(Flavor::parse(version), Some(Flavor { family, number }));
    }

    #[rstest]
    #[case("")]
    #[case("MariaDB")]
    #[case("8")]
    #[case("99999999999.1")]
    fn what_is_no_version_is_no_server(#[case] version: &str) {
        assert_eq!(Flavor::parse(version), None);
    }
}
