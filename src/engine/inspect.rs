//! What a look at a restored server found: whether its data is whole and can be used.
//!
//! Unlike the check at the end of each restore, which compares what was applied, this reads
//! everything: it is for rehearsals.

use crate::record::{Contents, DatabaseContents};
use serde::Serialize;

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It is as it has to be.
    Passed,
    /// There is nothing to compare with: neither for nor against it.
    Skipped,
    /// It cannot be told whether the restore is to blame, or the source is the same.
    Inconclusive,
    /// It is not as it has to be.
    Failed,
}

impl Outcome {
    /// The word used in reports.
    pub fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Skipped => "skipped",
            Self::Inconclusive => "inconclusive",
            Self::Failed => "failed",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// A short name that stays the same, such as `foreign_keys`.
    pub check: &'static str,
    /// How it went.
    pub outcome: Outcome,
    /// What was found.
    pub what: String,
}

impl Check {
    /// A check with its outcome.
    pub fn new(check: &'static str, outcome: Outcome, what: impl Into<String>) -> Self {
        Self { check, outcome, what: what.into() }
    }
}

/// Compares what a target held after its baseline was loaded with what the source held there.
pub fn compare(source: Option<&Contents>, target: Option<&Contents>) -> Vec<Check> {
    const CHECK: &str = "baseline";
    let (source, target) = match (source, target) {
        (Some(source), Some(target)) => (source, target),
        (None, _) => {
            let what = "the baseline carries no digests of the source to compare with";
            return vec![Check::new(CHECK, Outcome::Skipped, what)];
        }
        (_, None) => {
            let what = "what the target holds could not be counted";
            return vec![Check::new(CHECK, Outcome::Inconclusive, what)];
        }
    };
    let mut checks = Vec::new();
    let mut fail = |what: String| checks.push(Check::new(CHECK, Outcome::Failed, what));
    let find = |name: &str| target.tables.iter().find(|table| table.name == name);
    for there in &source.tables {
        match find(&there.name) {
            None => fail(format!("{} is missing, with {} rows", there.name, there.rows)),
            Some(here) if here.rows != there.rows => fail(format!(
                "{} has {} rows, the source had {}",
                there.name, here.rows, there.rows
            )),
            Some(here) if here.digest != there.digest => fail(format!(
                "{} has {} rows as the source had, but not the same ones",
                there.name, there.rows
            )),
            Some(_) => {}
        }
    }
    for here in &target.tables {
        if !source.tables.iter().any(|there| there.name == here.name) {
            fail(format!("{} was not in the source's snapshot", here.name));
        }
    }
    for there in &source.databases {
        let keys = target.databases.iter().find(|d| d.number == there.number).map_or(0, |d| d.keys);
        // Those whose expiry has passed are gone when a server loads them.
        let least = there.keys.saturating_sub(there.expiring);
        if keys < least || keys > there.keys {
            fail(format!(
                "database {} has {keys} keys, the source had {}, of which {} expire",
                there.number, there.keys, there.expiring
            ));
        }
    }
    for here in &target.databases {
        if !source.databases.iter().any(|there| there.number == here.number) {
            fail(format!("database {} had no keys at the source", here.number));
        }
    }
    if checks.is_empty() {
        let rows: u64 = source.tables.iter().map(|table| table.rows).sum();
        let sum =
            |of: fn(&DatabaseContents) -> u64, all: &Contents| all.databases.iter().map(of).sum();
        let (keys, found): (u64, u64) = (sum(|it| it.keys, source), sum(|it| it.keys, target));
        let expiring: u64 = sum(|it| it.expiring, source);
        let what = if source.databases.is_empty() {
            format!("{} tables with {rows} rows are what the source had", source.tables.len())
        } else {
            format!(
                "{found} of {keys} keys in {} databases are there; {expiring} have an expiry, which \
                 may have passed",
                source.databases.len()
            )
        };
        checks.push(Check::new(CHECK, Outcome::Passed, what));
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{DatabaseContents, TableContents};
    use rstest::rstest;

    fn tables(tables: &[(&str, u64, &str)]) -> Contents {
        let table = |(name, rows, digest): &(&str, u64, &str)| TableContents {
            name: (*name).into(),
            rows: *rows,
            digest: (*digest).into(),
        };
        Contents { tables: tables.iter().map(table).collect(), databases: vec![] }
    }

    fn databases(databases: &[(u32, u64, u64)]) -> Contents {
        let database = |&(number, keys, expiring): &(u32, u64, u64)| DatabaseContents {
            number,
            keys,
            expiring,
        };
        Contents { tables: vec![], databases: databases.iter().map(database).collect() }
    }

    #[rstest]
    #[case::same(&[("a.b", 7, "x")], None)]
    #[case::a_row_less(&[("a.b", 6, "x")], Some("a.b has 6 rows, the source had 7"))]
    #[case::another_row(&[("a.b", 7, "y")], Some("not the same ones"))]
    #[case::no_table(&[], Some("a.b is missing, with 7 rows"))]
    #[case::one_more(&[("a.b", 7, "x"), ("a.c", 1, "z")], Some("a.c was not in"))]
    fn tables_have_to_be_what_the_source_counted(
        #[case] found: &[(&str, u64, &str)],
        #[case] wrong: Option<&str>,
    ) {
        let checks = compare(Some(&tables(&[("a.b", 7, "x")])), Some(&tables(found)));
        assert_eq!(checks.len(), 1, "{checks:?}");
        let expected = if wrong.is_some() { Outcome::Failed } else { Outcome::Passed };
        assert_eq!(checks[0].outcome, expected);
        assert!(checks[0].what.contains(wrong.unwrap_or("1 tables with 7 rows")), "{checks:?}");
    }

    #[rstest]
    #[case::all(&[(0, 10, 4), (2, 1, 0)], Outcome::Passed)]
    #[case::some_expired(&[(0, 6, 0), (2, 1, 0)], Outcome::Passed)]
    #[case::one_too_few(&[(0, 5, 0), (2, 1, 0)], Outcome::Failed)]
    #[case::one_too_many(&[(0, 11, 4), (2, 1, 0)], Outcome::Failed)]
    #[case::a_database_is_gone(&[(0, 10, 4)], Outcome::Failed)]
    #[case::a_database_too_many(&[(0, 10, 4), (2, 1, 0), (3, 1, 0)], Outcome::Failed)]
    fn keys_may_only_be_gone_if_they_expire(
        #[case] found: &[(u32, u64, u64)],
        #[case] outcome: Outcome,
    ) {
        let source = databases(&[(0, 10, 4), (2, 1, 0)]);
        let checks = compare(Some(&source), Some(&databases(found)));
        assert_eq!(checks[0].outcome, outcome, "{checks:?}");
    }

    #[test]
    fn what_cannot_be_compared_passes_nothing() {
        let some = Contents::default();
        assert_eq!(compare(None, Some(&some))[0].outcome, Outcome::Skipped);
        assert_eq!(compare(Some(&some), None)[0].outcome, Outcome::Inconclusive);
    }
}
