//! The canary: a row or a key of pitr's own in each source, which holds the time at which it was
//! written. What is restored to an instant has that of shortly before it.
//!
//! **Invariant:** nothing else of a source is ever written to, and this only where it is asked for
//! (`[drill] canary`).

use super::inspect::{Check, Outcome};
use crate::clock::Timestamp;
use std::time::Duration;

/// How often it is written.
pub const EVERY: Duration = Duration::from_mins(1);

/// How old it may be at an instant: it is written every minute, by a daemon that may be busy.
const OLD: Duration = Duration::from_secs(150);

/// How much later than an instant it may be: instants of logs without commit times are not known
/// more exactly.
const SLACK: Duration = Duration::from_secs(2);

/// The name of the check.
pub(super) const CHECK: &str = "canary";

/// Judges what was `found` in what was restored to `to`. `expected` says that its baseline has one.
pub(super) fn judge(found: Option<Timestamp>, to: Timestamp, expected: bool) -> Check {
    let (outcome, what) = match found {
        None if expected => (Outcome::Failed, "the canary of the baseline is gone".to_owned()),
        None => (Outcome::Skipped, "the source had no canary at that instant".to_owned()),
        Some(found) if found > to.after(SLACK) => {
            (Outcome::Failed, format!("the canary of {found} is of later than {to}"))
        }
        Some(found) => {
            let (age, what) = (to.since(found), "the canary was written");
            let what = format!("{what} {:.1} s before the instant", age.as_secs_f64());
            if age <= OLD {
                (Outcome::Passed, what)
            } else {
                let why = "what was written since is missing, or pitr did not run";
                (Outcome::Inconclusive, format!("{what}: {why}"))
            }
        }
    };
    Check::new(CHECK, outcome, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::just_before(Some(990), false, Outcome::Passed)]
    #[case::within_the_exactness(Some(1001), false, Outcome::Passed)]
    #[case::later(Some(1003), false, Outcome::Failed)]
    #[case::old(Some(800), false, Outcome::Inconclusive)]
    #[case::not_yet_there(None, false, Outcome::Skipped)]
    #[case::gone(None, true, Outcome::Failed)]
    fn a_canary_is_of_shortly_before_the_instant(
        #[case] found: Option<i64>,
        #[case] expected: bool,
        #[case] outcome: Outcome,
    ) {
        let check = judge(found.map(Timestamp::from_secs), Timestamp::from_secs(1000), expected);
        assert_eq!(check.outcome, outcome, "{check:?}");
    }
}
