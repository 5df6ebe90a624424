//! Which server can take what which server wrote.
//!
//! RDB formats only grow within a family: a server reads its own version and older ones
//! (`rdb.c`, `rdbLoadRioWithLoadingCtx`). Redis and Valkey share them up to version 11.

use crate::error::{Error, Result};

/// The oldest version that is captured: older ones replicate relative expiry times, which mean
/// something else when they are replayed (`replication.c` before 7.0).
const CAPTURED_MIN: (u32, u32) = (7, 0);

/// The last RDB version that Redis and Valkey share.
const RDB_SHARED: u32 = 11;

/// A server's version as the rest of pitr writes it: `7.0.15`, `8.1.1-valkey`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    valkey: bool,
    number: (u32, u32),
}

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let (number, valkey) = match text.strip_suffix("-valkey") {
            Some(number) => (number, true),
            None => (text, false),
        };
        let mut numbers = number.split(['.', '-']);
        let number = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
        Some(Self { valkey, number })
    }

    /// The RDB version that it writes, as far as it is known; newer ones are taken for newer.
    fn rdb(self) -> u32 {
        const REDIS: [((u32, u32), u32); 5] =
            [((8, 8), 14), ((8, 6), 13), ((7, 4), 12), ((7, 2), 11), ((7, 0), 10)];
        const VALKEY: [((u32, u32), u32); 2] = [((9, 0), 80), ((7, 2), 11)];
        let known: &[_] = if self.valkey { &VALKEY } else { &REDIS };
        known.iter().find(|(since, _)| self.number >= *since).map_or(9, |(_, rdb)| *rdb)
    }
}

/// Refuses sources whose stream cannot be replayed faithfully.
///
/// # Errors
/// Usage.
pub(super) fn check_captured(version: &str) -> Result<()> {
    match Version::parse(version) {
        Some(version) if version.number >= CAPTURED_MIN => Ok(()),
        _ => Err(Error::usage(format!(
            "Redis {version} cannot be captured: before 7.0 the replication stream carries \
             relative expiry times"
        ))
        .hint("upgrade the source to Redis 7.0 or newer, or Valkey")),
    }
}

/// Whether a server of version `target` can take the data of one of version `source`.
pub(super) fn can_take(target: &str, source: &str) -> bool {
    let (Some(target), Some(source)) = (Version::parse(target), Version::parse(source)) else {
        return false;
    };
    if target.valkey == source.valkey {
        return target.number >= source.number;
    }
    source.rdb() <= RDB_SHARED && target.rdb() >= source.rdb()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("7.0.15", "7.0.15", true)]
    #[case("7.0.4", "7.0.15", true)]
    #[case("7.0.15", "7.2.0", false)]
    #[case("8.4.0", "7.0.15", true)]
    #[case("10.0.0", "9.0.0", true)]
    #[case("8.1.1-valkey", "7.2.5", true)]
    #[case("8.1.1-valkey", "7.4.0", false)]
    #[case("7.2.5", "8.1.1-valkey", true)]
    #[case("7.0.15", "8.1.1-valkey", false)]
    #[case("8.8.0", "9.0.0-valkey", false)]
    #[case("8.0.0-valkey", "9.0.0-valkey", false)]
    #[case("", "7.0.15", false)]
    #[case("7", "7.0.15", false)]
    fn a_server_takes_what_it_can_read(
        #[case] target: &str,
        #[case] source: &str,
        #[case] expected: bool,
    ) {
        assert_eq!(can_take(target, source), expected);
    }

    #[test]
    fn old_sources_are_refused() {
        assert!(check_captured("7.0.15").is_ok());
        assert!(check_captured("9.0.0-valkey").is_ok());
        for old in ["6.2.14", "255.255.255", "x", ""] {
            assert_eq!(check_captured(old).is_err(), old != "255.255.255", "{old}");
        }
    }
}
