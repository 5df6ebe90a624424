//! Which way the log goes into a running target: through its own applier, or as statements.
//!
//! **Invariant:** a value: nothing here asks a server.

use crate::engine::Apply;
use crate::error::{Error, Result};

/// What only a replica needs, each privilege with what stands for it.
pub(in super::super) const TO_REPLICATE: [&[&str]; 3] = [
    &["REPLICATION SLAVE"],
    &["REPLICATION_SLAVE_ADMIN", "SUPER"],
    &[SYSTEM_VARIABLES_ADMIN, "SUPER"],
];

/// What only statements need.
pub(in super::super) const TO_RUN: [&[&str]; 2] = [
    &["REPLICATION_APPLIER", "BINLOG_ADMIN", "SUPER"],
    &["SESSION_VARIABLES_ADMIN", "SYSTEM_VARIABLES_ADMIN", "SUPER"],
];

/// The same of a MariaDB.
pub(in super::super) const MARIA_TO_REPLICATE: [&[&str]; 3] =
    [&["REPLICATION SLAVE ADMIN", "SUPER"], &["REPLICATION MASTER ADMIN", "SUPER"], &[SUPER]];

/// What only statements need there.
pub(in super::super) const MARIA_TO_RUN: [&[&str]; 2] = [
    &["BINLOG REPLAY", "SUPER"],
    &["SLAVE MONITOR", "REPLICA MONITOR", "REPLICATION SLAVE ADMIN", "SUPER"],
];

/// What sets most global variables of a MariaDB.
const SUPER: &str = "SUPER";
/// What sets those of a MySQL.
const SYSTEM_VARIABLES_ADMIN: &str = "SYSTEM_VARIABLES_ADMIN";

/// What the log goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum By {
    /// The target's own applier.
    Applier,
    /// The same, which gets small transactions merged.
    ApplierMerged,
    /// An ordinary connection, as statements.
    Statements,
}

impl By {
    /// As `--apply` and reports have it.
    pub(in super::super) fn word(self) -> &'static str {
        match self {
            Self::Applier => "native",
            Self::ApplierMerged => "merged",
            Self::Statements => "sql",
        }
    }
}

/// Which way, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Way {
    /// How the log gets in.
    pub(in super::super) by: By,
    /// Whether global variables can be set, and with them the GTIDs of the baseline.
    pub(in super::super) admin: bool,
    /// Whether transactions keep their GTIDs.
    pub(in super::super) gtids: bool,
    /// Why, as the end of a sentence.
    pub(in super::super) why: String,
}

/// What is known of a target.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct Facts {
    /// What of [`TO_REPLICATE`] the account lacks.
    pub(in super::super) lacks_to_replicate: Vec<&'static str>,
    /// What of [`TO_RUN`] the account lacks.
    pub(in super::super) lacks_to_run: Vec<&'static str>,
    /// Whether the target gives transactions GTIDs: `gtid_mode` is ON, or it is a MariaDB.
    pub(in super::super) has_gtids: bool,
    /// Whether the log has transactions without GTIDs.
    pub(in super::super) anonymous: bool,
    /// Whether scheduled events run.
    pub(in super::super) scheduler_on: bool,
}

impl Facts {
    /// Whether the account may set global variables, and with them the GTIDs of the baseline. A
    /// MariaDB wants all that a replica needs for those.
    pub(in super::super) fn may_administer(&self) -> bool {
        let lacks = |name| self.lacks_to_replicate.contains(&name);
        let is_maria =
            MARIA_TO_REPLICATE.iter().filter_map(|any| any.first()).any(|name| lacks(name));
        !lacks(SYSTEM_VARIABLES_ADMIN) && !is_maria
    }
}

impl Way {
    /// Whether the log is applied as statements.
    pub(in super::super) fn is_sql(&self) -> bool {
        self.by == By::Statements
    }

    /// Whether small transactions are merged.
    pub(in super::super) fn is_merged(&self) -> bool {
        self.by == By::ApplierMerged
    }

    /// Through the target's own applier.
    pub(in super::super) fn native(why: &str) -> Self {
        Self { by: By::Applier, admin: true, gtids: true, why: why.into() }
    }

    /// The same, with small transactions merged.
    pub(in super::super) fn merged() -> Self {
        Self { by: By::ApplierMerged, ..Self::native("it was asked for") }
    }

    /// Decides for the server at `at`.
    ///
    /// # Errors
    /// Refused, if the way that was asked for cannot be gone, or none can.
    pub(in super::super) fn choose(asked: Apply, facts: &Facts, at: &str) -> Result<Self> {
        let lacking = facts.lacks_to_replicate.join(", ");
        let sql = match asked {
            Apply::Native | Apply::Merged if !lacking.is_empty() => {
                return Err(Error::refused(format!(
                    "{at}: the account cannot make the server a replica: it lacks {lacking}"
                ))
                .hint("restore with --apply sql, or grant what is missing"));
            }
            Apply::Native => return Ok(Self::native("it was asked for")),
            Apply::Merged => return Ok(Self::merged()),
            Apply::Auto if lacking.is_empty() => {
                return Ok(Self::native("the account may make the server a replica"));
            }
            Apply::Auto => format!("the account cannot make the server a replica: no {lacking}"),
            Apply::Sql => "it was asked for".to_owned(),
        };
        if !facts.lacks_to_run.is_empty() {
            let lacking = facts.lacks_to_run.join(", ");
            return Err(Error::refused(format!(
                "{at}: the account can neither make the server a replica nor apply row events: \
                 it lacks {lacking}"
            ))
            .hint(format!("GRANT {lacking} ON *.* TO CURRENT_USER()")));
        }
        let admin = facts.may_administer();
        if facts.scheduler_on && !admin {
            return Err(Error::refused(format!(
                "{at} runs scheduled events, and the account cannot stop it: they would change \
                 what is restored"
            ))
            .hint("set event_scheduler = OFF on the target for the time of the restore"));
        }
        let gtids = facts.has_gtids && !facts.anonymous;
        Ok(Self { by: By::Statements, admin, gtids, why: sql })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;
    use rstest::rstest;

    const NO_ADMIN: &[&str] = &["REPLICATION_SLAVE_ADMIN", "SYSTEM_VARIABLES_ADMIN"];
    const NO_REPLICA: &[&str] = &["REPLICATION_SLAVE_ADMIN"];

    #[rstest]
    #[case::all(Apply::Auto, &[], &[], false, Some((false, true)))]
    #[case::asked(Apply::Sql, &[], &[], true, Some((true, true)))]
    #[case::managed(Apply::Auto, NO_ADMIN, &[], false, Some((true, false)))]
    #[case::no_replica(Apply::Auto, NO_REPLICA, &[], true, Some((true, true)))]
    #[case::events_would_run(Apply::Auto, NO_ADMIN, &[], true, None)]
    #[case::merged(Apply::Merged, &[], &[], true, Some((false, true)))]
    #[case::native_impossible(Apply::Native, NO_ADMIN, &[], false, None)]
    #[case::merged_impossible(Apply::Merged, NO_ADMIN, &[], false, None)]
    #[case::managed_maria(Apply::Auto, &["REPLICATION MASTER ADMIN"], &[], false, Some((true, false)))]
    #[case::neither(Apply::Auto, NO_ADMIN, &["REPLICATION_APPLIER"], false, None)]
    fn the_way_follows_from_what_the_account_may(
        #[case] asked: Apply,
        #[case] replicate: &[&'static str],
        #[case] run: &[&'static str],
        #[case] scheduler_on: bool,
        #[case] way: Option<(bool, bool)>,
    ) {
        let facts = Facts {
            lacks_to_replicate: replicate.to_vec(),
            lacks_to_run: run.to_vec(),
            has_gtids: true,
            anonymous: false,
            scheduler_on,
        };
        let chosen = Way::choose(asked, &facts, "db");
        assert_eq!(chosen.as_ref().ok().map(|way| (way.is_sql(), way.admin)), way);
        assert!(
            chosen.as_ref().is_ok_and(Way::is_merged) == (asked == Apply::Merged && way.is_some())
        );
        assert!(chosen.err().is_none_or(|error| error.class() == Class::Refused));
    }
}
