//! Snapshots of MariaDB without a moment in which writers wait.
//!
//! MariaDB tells of a consistent snapshot at which place of the binlog it is
//! (`binlog_snapshot_file`, `binlog_snapshot_position`), and the dump program writes it down. So
//! one snapshot needs no lock, and two are of one instant if they are at one place. What has to
//! be kept away is DDL, which is done before it is logged: `BACKUP STAGE BLOCK_DDL` waits for
//! statements that define something to end and holds further ones back, while rows are written
//! and committed.
//!
//! A prepared XA transaction is in no snapshot, and a look at what is prepared is not of the
//! snapshot's instant here. So it is looked before and behind, and the ends of XA transactions are
//! counted: one that was prepared at the instant and is in neither look ended between them.
//!
//! **Invariant:** dropped or released, it is gone: it lives no longer than its connection.

use super::super::{ask, sql};
use super::lock::{BASELINE, prepared};
use super::place::LogEnd;
use crate::engine::Endpoint;
use crate::error::{Error, Result};
use mysql_async::{Conn, Row};

/// How often it is tried to open two snapshots at one place.
pub(super) const TRIES: u32 = 3;
/// Where MariaDB keeps accounts: no stage of a backup holds changes of them back.
const ACCOUNTS: [&str; 7] = [
    "global_priv",
    "db",
    "tables_priv",
    "columns_priv",
    "procs_priv",
    "proxies_priv",
    "roles_mapping",
];

/// Keeps DDL away, and changes of accounts.
#[derive(Debug)]
pub(super) struct Quiet {
    conn: Conn,
    accounts: Conn,
}

/// How often the server was told to commit or to roll back an XA transaction.
type Told = Vec<(String, u64)>;

impl Quiet {
    /// Waits for what runs to end, and holds further DDL back. `None` if that takes too long.
    pub(super) async fn take(endpoint: &Endpoint) -> Result<Option<Self>> {
        let blocking = || "hold back DDL for a moment".to_owned();
        let (mut conn, mut accounts) =
            (sql::connect(endpoint).await?, sql::connect(endpoint).await?);
        for conn in [&mut conn, &mut accounts] {
            ask::keep_open(conn).await?;
            let wait = format!("SET SESSION lock_wait_timeout = {}", BASELINE.wait);
            ask::run(conn, wait, blocking).await?;
        }
        let tables: Vec<String> =
            ACCOUNTS.iter().map(|table| format!("mysql.{table} READ")).collect();
        let locked =
            ask::run(&mut accounts, format!("LOCK TABLES {}", tables.join(", ")), blocking).await;
        if ask::server_code(&locked) == Some(1205) {
            return Ok(None);
        }
        locked?;
        for stage in ["START", "FLUSH", "BLOCK_DDL"] {
            let done = ask::run(&mut conn, format!("BACKUP STAGE {stage}"), blocking).await;
            if ask::server_code(&done) == Some(1205) {
                return Ok(None);
            }
            done?;
        }
        Ok(Some(Self { conn, accounts }))
    }

    /// Before the snapshot: what was told, and then whether surely nothing is prepared.
    pub(super) async fn before(&mut self) -> Result<(Told, bool)> {
        let told = self.told().await?;
        Ok((told, self.nothing_prepared().await?))
    }

    /// Behind the snapshot: whether surely nothing was prepared at its instant.
    pub(super) async fn nothing_was_prepared(&mut self, told: &Told) -> Result<bool> {
        // In this order: what ends before the look is counted behind it.
        Ok(self.nothing_prepared().await? && self.told().await? == *told)
    }

    async fn nothing_prepared(&mut self) -> Result<bool> {
        Ok(prepared(&mut self.conn).await?.is_some_and(|xids| xids.is_empty()))
    }

    async fn told(&mut self) -> Result<Told> {
        let told = "SHOW GLOBAL STATUS WHERE Variable_name IN ('Com_xa_commit', 'Com_xa_rollback')";
        ask::rows(&mut self.conn, told, || "count the ends of XA transactions".into()).await
    }

    /// Lets DDL go on.
    ///
    /// # Errors
    /// Unavailable, if it was not held back all the time.
    pub(super) async fn release(mut self) -> Result<()> {
        // Connections that were lost answer nothing.
        let lost = |error: Error| error.context("DDL was not held back all the time");
        let ending = || "let DDL go on".to_owned();
        ask::run(&mut self.conn, "BACKUP STAGE END", ending).await.map_err(lost)?;
        ask::run(&mut self.accounts, "UNLOCK TABLES", ending).await.map_err(lost)
    }
}

/// The place of the consistent snapshot that a connection has open; `None` if it does not say.
pub(super) async fn snapshot_place(conn: &mut Conn) -> Result<Option<LogEnd>> {
    let asking = || "ask for the place of a snapshot".to_owned();
    let rows: Vec<Row> =
        ask::rows(conn, "SHOW SESSION STATUS LIKE 'binlog_snapshot_%'", asking).await?;
    let value = |name: &str| {
        rows.iter().find_map(|row| {
            let found: String = row.get_opt(0)?.ok()?;
            found.eq_ignore_ascii_case(name).then(|| row.get_opt::<String, _>(1)?.ok())?
        })
    };
    let file = value("binlog_snapshot_file").filter(|file| !file.is_empty());
    let offset = value("binlog_snapshot_position").and_then(|text| text.parse().ok());
    Ok(file.zip(offset).map(|(file, offset)| LogEnd { file, offset }))
}

/// The place that the dump program writes into the head of a dump.
pub(super) fn written_place(head: &[u8]) -> Result<LogEnd> {
    let head = String::from_utf8_lossy(head);
    let place = head.lines().find_map(|line| {
        let rest = line.strip_prefix("-- CHANGE MASTER TO MASTER_LOG_FILE='")?;
        let (file, rest) = rest.split_once("', MASTER_LOG_POS=")?;
        let offset = rest.strip_suffix(';')?.parse().ok()?;
        Some(LogEnd { file: file.to_owned(), offset })
    });
    place.ok_or_else(|| Error::unavailable("the dump program does not write its snapshot's place"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_dump_stands_in_its_head() {
        let head = b"-- MariaDB dump\n\n-- CHANGE MASTER TO MASTER_LOG_FILE='binlog.000007', \
                     MASTER_LOG_POS=4294967400;\n\n-- Current Database: `s`\n";
        let place = written_place(head).unwrap();
        assert_eq!(place.to_string(), "binlog.000007:4294967400");
        for head in ["", "-- CHANGE MASTER TO MASTER_LOG_FILE='binlog.000007', MASTER_LOG_POS=x;"] {
            assert!(written_place(head.as_bytes()).is_err(), "{head}");
        }
    }
}
