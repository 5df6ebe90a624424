//! Says why a source could not go on with the stream that the archive has.

use super::control::Control;
use crate::error::Result;
use crate::position::Position;
use std::collections::HashMap;

/// What a source said of its own history before it was asked to go on.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    replication: HashMap<String, String>,
    uptime_secs: Option<u64>,
    is_empty: bool,
}

/// Asks the source.
pub(super) async fn look(control: &mut Control) -> Result<History> {
    let replication = control.info("replication").await?;
    let server = control.info("server").await?;
    let uptime_secs = server.get("uptime_in_seconds").and_then(|secs| secs.parse().ok());
    let is_empty = control.info("keyspace").await?.keys().all(|name| !name.starts_with("db"));
    Ok(History { replication, uptime_secs, is_empty })
}

impl History {
    /// Where the source is, if it is a replica that does not have yet what the archive, which ends
    /// at `asked`, has of the same stream. It would send everything anew.
    pub(super) fn replica_behind(&self, asked: &Position) -> Option<u64> {
        let field = |name: &str| self.replication.get(name);
        let reached = field("master_repl_offset")?.parse().ok()?;
        let is_behind = field("role")? == "slave"
            && field("master_replid")? == &asked.log
            && asked.offset > reached;
        is_behind.then_some(reached)
    }

    /// The place at which the source was promoted, if the archive, which ends at `asked`, has more
    /// than that of the stream before. The source goes on from there, as long as its backlog has it
    /// (`replication.c`, `masterTryPartialResynchronization`: an offset up to
    /// `second_repl_offset` of the former id is taken).
    pub(super) fn fork(&self, asked: &Position) -> Option<Position> {
        let field = |name: &str| self.replication.get(name);
        let second: u64 = field("second_repl_offset")?.parse().ok()?;
        // The offset names the first byte that is not in common.
        let last_in_common = second.checked_sub(1)?;
        let is_behind = field("master_replid2")? == &asked.log && asked.offset > last_in_common;
        // Which database is selected there, the archive knows.
        let db = Position::DB_AS_BEFORE;
        is_behind.then(|| Position { db, ..Position::new(asked.log.clone(), last_in_common) })
    }

    /// The sentence for the operator: the archive ends at `asked`, and the source sent everything
    /// anew as `replid` at `offset`.
    pub(super) fn broken(&self, asked: &Position, replid: &str, offset: u64) -> String {
        let field = |name: &str| self.replication.get(name).map_or("", String::as_str);
        let number = |name: &str| field(name).parse::<u64>().ok();
        let reached = number("master_repl_offset").unwrap_or(offset);
        if field("master_replid") == asked.log {
            if asked.offset > reached {
                return format!(
                    "the source is behind the archive: it is at offset {reached} and the archive \
                     at {} of the same stream, so it lost writes that the archive has",
                    asked.offset
                );
            }
            return self.overrun(asked, offset);
        }
        let second = number("second_repl_offset").unwrap_or(0);
        if field("master_replid2") == asked.log {
            if asked.offset >= second {
                return format!(
                    "the source was promoted at offset {second} without the writes up to {} that \
                     the archive has from the former master",
                    asked.offset
                );
            }
            return self.overrun(asked, offset);
        }
        let uptime = match self.uptime_secs {
            Some(secs) => format!("it started {secs} s ago and "),
            None => String::new(),
        };
        let empty = if self.is_empty {
            "; it holds no keys now, and what it had stays in the timeline before"
        } else {
            ""
        };
        format!(
            "the source has another history: {uptime}its replication id is {replid} instead of \
             {}, so it restarted without its history, was replaced, or had no replica for longer \
             than repl-backlog-ttl{empty}",
            asked.log
        )
    }

    /// The bytes between are not in the backlog any more.
    fn overrun(&self, asked: &Position, offset: u64) -> String {
        let field = |name: &str| self.replication.get(name).map_or("unknown", String::as_str);
        format!(
            "the source's replication backlog of {} bytes no longer reaches back to offset {} (it \
             began at {}), and everything up to {offset} is lost; raise repl-backlog-size",
            field("repl_backlog_size"),
            asked.offset,
            field("repl_backlog_first_byte_offset"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[test]
    fn a_replica_that_lags_is_told_from_a_master_that_lost_writes() {
        let mut history = history();
        let asked = Position::new("a", 401);
        assert_eq!(history.replica_behind(&asked), None, "it does not say that it is a replica");
        history.replication.insert("role".into(), "slave".into());
        assert_eq!(history.replica_behind(&asked), Some(400));
        assert_eq!(history.replica_behind(&Position::new("a", 400)), None);
        assert_eq!(history.replica_behind(&Position::new("c", 401)), None);
        history.replication.insert("role".into(), "master".into());
        assert_eq!(history.replica_behind(&asked), None);
    }

    #[rstest]
    #[case::ahead_of_the_promotion("b", 250, Some(199))]
    #[case::by_one_byte("b", 200, Some(199))]
    #[case::at_the_promotion("b", 199, None)]
    #[case::before_it("b", 150, None)]
    #[case::of_the_new_stream("a", 250, None)]
    #[case::of_another("c", 250, None)]
    fn what_a_promotion_lost_is_gone_back_before(
        #[case] log: &str,
        #[case] offset: u64,
        #[case] expected: Option<u64>,
    ) {
        let fork = history().fork(&Position::new(log, offset));
        let db = Position::DB_AS_BEFORE;
        let expected = expected.map(|offset| Position { db, ..Position::new(log, offset) });
        assert_eq!(fork, expected);
        assert_eq!(History::default().fork(&Position::new(log, offset)), None);
    }

    #[rstest]
    #[case::behind("a", 500, "is behind the archive: it is at offset 400")]
    #[case::overrun("a", 100, "no longer reaches back to offset 100 (it began at 300)")]
    #[case::promoted("b", 250, "was promoted at offset 200 without the writes up to 250")]
    #[case::promoted_long_ago("b", 150, "no longer reaches back to offset 150")]
    #[case::other("c", 400, "another history: it started 7 s ago and its replication id is d")]
    fn every_break_has_its_reason(#[case] log: &str, #[case] offset: u64, #[case] expected: &str) {
        let reason = history().broken(&Position::new(log, offset), "d", 450);
        assert!(reason.contains(expected), "{reason}");
    }

    fn history() -> History {
        let replication = [
            ("master_replid", "a"),
            ("master_replid2", "b"),
            ("master_repl_offset", "400"),
            ("second_repl_offset", "200"),
            ("repl_backlog_first_byte_offset", "300"),
        ];
        let replication = replication.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        History { replication, uptime_secs: Some(7), is_empty: false }
    }
}
