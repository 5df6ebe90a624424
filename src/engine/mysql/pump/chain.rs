//! The chain of files, where no GTIDs prove it: file follows file by number, and the source was not
//! reset since it was asked what it has.
//!
//! A dump does not notice that the log was reset. At the end of the file that it has open it looks
//! for the next one by name, in the new log as well as in the old one.
//!
//! **Invariant:** without GTIDs, a file is taken for the next one, and the end of a file for the end
//! of the log, only if no RESET came between.

use super::super::auth::ServerError;
use super::{Hold, Pump, Stop};
use crate::error::{Error, Result};

/// What proves that a file follows the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chain {
    /// What was executed before it: every transaction has a GTID.
    Gtids,
    /// Its number, and that there was no RESET.
    Numbers,
}

impl Pump<'_> {
    /// Checks that the source's next file is the one behind the current one, unless GTIDs prove it.
    pub(super) async fn check_chain(&mut self, next: &str) -> Result<(), Stop> {
        if self.chain == Chain::Gtids {
            return Ok(());
        }
        if self.is_reset().await? {
            return Err(reset().into());
        }
        if !follows(&self.track.log, next) {
            self.track.forked = true;
            let what =
                format!("{next} follows, which is not the next file, and there are no GTIDs");
            return Err(self.track.corrupt(&what).into());
        }
        Ok(())
    }

    /// What the source says instead of an event. It hands out no transaction that its `gtid_mode`
    /// would not let it write, as it may have done before the mode was changed.
    pub(super) fn refused(&self, packet: &[u8]) -> Stop {
        let mut whole = vec![0xff];
        whole.extend_from_slice(packet);
        let Some(error) = ServerError::parse(&whole) else {
            return Error::corrupt("the source ended the dump without a reason").into();
        };
        let is_mode = error.message.contains("annot replicate")
            && ["GTID_MODE", "AUTO_POSITION"].iter().any(|why| error.message.contains(why));
        let said = error.for_operator("the source ended the dump");
        match self.hold {
            _ if !is_mode => said.into(),
            Hold::Begin { .. } | Hold::Join => said.into(),
            Hold::Open => Stop::BrokeOff(said),
            Hold::Middle { .. } | Hold::Walk { .. } | Hold::File { .. } => Stop::Broken(format!(
                "gtid_mode was changed before everything was captured: {said}"
            )),
        }
    }

    /// Whether the source was told to RESET something, if that matters.
    pub(super) async fn is_reset(&mut self) -> Result<bool> {
        Ok(self.chain == Chain::Numbers && self.aside.resets().await? != self.facts.resets)
    }
}

/// Something was reset, the log or something else: the next connection compares the bytes.
pub(super) fn reset() -> Error {
    Error::unavailable("the source was told to RESET something: its log is compared again")
}

/// Whether a file's name is that of the one behind another.
fn follows(file: &str, next: &str) -> bool {
    let number = |name: &str| {
        let (base, number) = name.rsplit_once('.')?;
        Some((base.to_owned(), number.parse::<u64>().ok()?))
    };
    match (number(file), number(next)) {
        (Some((base, number)), Some((next_base, next))) => {
            base == next_base && number.checked_add(1) == Some(next)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("binlog.000001", "binlog.000002", true)]
    #[case("my.bin.999999", "my.bin.1000000", true)]
    #[case("binlog.000001", "binlog.000003", false)]
    #[case("binlog.000002", "binlog.000001", false)]
    #[case("binlog.000001", "other.000002", false)]
    #[case("binlog", "binlog.000002", false)]
    fn files_follow_each_other_by_number(
        #[case] file: &str,
        #[case] next: &str,
        #[case] is_next: bool,
    ) {
        assert_eq!(follows(file, next), is_next);
    }
}
