//! Global settings of a target for the time of a restore.
//!
//! **Invariant:** what was changed is put back, the last change first, unless the restore fails:
//! then the server is left as it is.

use super::ask;
use super::flavor::Family;
use super::half::Half;
use super::server::LARGEST_PACKET;
use crate::error::{Error, Result};
use mysql_async::Conn;

/// How much each worker of a MariaDB may have waiting, in bytes.
const QUEUED_BYTES: &str = "16777216";

/// How many workers of a target apply.
pub(super) fn workers() -> usize {
    std::thread::available_parallelism().map_or(4, usize::from).clamp(4, 64)
}

/// Sets one for good.
pub(super) async fn set_global(conn: &mut Conn, name: &str, value: &str) -> Result<()> {
    ask::run(conn, format!("SET GLOBAL {name} = {value}"), || format!("set {name} = {value}")).await
}

/// Global variables that were changed for the time of the restore.
#[derive(Debug, Default)]
pub(super) struct Globals {
    before: Vec<(String, String)>,
    /// Where a running server keeps them, too.
    pub(super) half: Option<Half>,
}

impl Globals {
    /// Settings for the time of the replay. `running` is whether the target is a server that has
    /// settings of its own, `by_place` whether the log has transactions without GTIDs, and `lanes`
    /// how many merged transactions the target gets to apply at once, if it gets them merged.
    pub(super) async fn for_replay(
        &mut self,
        conn: &mut Conn,
        family: Family,
        running: bool,
        by_place: bool,
        lanes: Option<usize>,
    ) -> Result<()> {
        let workers = lanes.unwrap_or_else(workers).to_string();
        let largest = LARGEST_PACKET.to_string();
        match family {
            Family::MySql => {
                self.change(conn, "replica_parallel_workers", &workers).await?;
                if lanes.is_some() {
                    // What may be applied at once is in the clock. Later servers know no other type.
                    let name = "replica_parallel_type";
                    self.change_if_known(conn, name, "LOGICAL_CLOCK").await?;
                }
                self.change(conn, "replica_max_allowed_packet", &largest).await?;
                self.change(conn, "replica_pending_jobs_size_max", &largest).await?;
                // Not there before 8.4; what the source allowed is to be allowed here.
                self.change_if_known(conn, "restrict_fk_on_non_standard_key", "OFF").await?;
            }
            Family::MariaDb => {
                self.change(conn, "slave_parallel_threads", &workers).await?;
                self.change(conn, "slave_parallel_mode", "optimistic").await?;
                self.change(conn, "slave_parallel_max_queued", QUEUED_BYTES).await?;
                self.change(conn, "slave_max_allowed_packet", &largest).await?;
                // A source without strict mode may have numbered out of order.
                self.change(conn, "gtid_strict_mode", "0").await?;
                self.change(conn, "gtid_ignore_duplicates", "0").await?;
                self.change(conn, "replicate_events_marked_for_skip", "REPLICATE").await?;
                self.change(conn, "slave_exec_mode", "STRICT").await?;
                self.change(conn, "slave_run_triggers_for_rbr", "NO").await?;
            }
        }
        if by_place {
            // A source without GTIDs may log what the target would not let a client do.
            self.change(conn, "enforce_gtid_consistency", "OFF").await?;
        }
        if running {
            // A restore that is interrupted starts over, so nothing is lost by this.
            self.change(conn, "sync_binlog", "0").await?;
            self.change(conn, "innodb_flush_log_at_trx_commit", "2").await?;
        }
        Ok(())
    }

    /// Changes one and remembers what it was.
    pub(super) async fn change(&mut self, conn: &mut Conn, name: &str, value: &str) -> Result<()> {
        let before: Option<String> =
            ask::first(conn, format!("SELECT CAST(@@GLOBAL.{name} AS CHAR)"), || {
                format!("read {name}")
            })
            .await?;
        let before = before.ok_or_else(|| Error::unavailable(format!("{name} has no value")))?;
        // The scheduler of events can be off for good.
        if before == value || before == "DISABLED" {
            return Ok(());
        }
        if let Some(half) = &mut self.half {
            half.note_global(conn, name, &before).await?;
        }
        set_global(conn, name, value).await?;
        self.before.push((name.to_owned(), before));
        Ok(())
    }

    /// The same for one that a server may not have.
    pub(super) async fn change_if_known(
        &mut self,
        conn: &mut Conn,
        name: &str,
        value: &str,
    ) -> Result<()> {
        let known: Vec<(String, String)> =
            ask::rows(conn, format!("SHOW GLOBAL VARIABLES LIKE '{name}'"), || {
                format!("read {name}")
            })
            .await?;
        if known.is_empty() { Ok(()) } else { self.change(conn, name, value).await }
    }

    /// Puts all of them back, the last one first: then the restore has come to its end.
    pub(super) async fn put_back(&mut self, conn: &mut Conn) -> Result<()> {
        while let Some((name, value)) = self.before.pop() {
            let quoted = if value.bytes().all(|b| b.is_ascii_digit()) {
                value
            } else {
                format!("'{value}'")
            };
            set_global(conn, &name, &quoted).await?;
        }
        match self.half.take() {
            Some(_) => Half::end(conn).await,
            None => Ok(()),
        }
    }
}
