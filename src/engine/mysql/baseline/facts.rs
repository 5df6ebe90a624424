//! What has to be known about the source before anything is loaded.
//!
//! **Invariant:** reads only.

use super::super::ask;
use super::super::flavor::Flavor;
use super::super::join;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::record::Server;
use mysql_async::Conn;
use serde::{Deserialize, Serialize};

/// What the target has to know about the source before it loads anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Facts {
    /// `@@version`.
    pub(in super::super) version: String,
    /// `@@lower_case_table_names`: fixed when a data directory is made.
    pub(in super::super) lower_case_table_names: u8,
    /// `@@partial_revokes`: without it, a revoke of a part is an error.
    pub(in super::super) partial_revokes: bool,
    /// `@@innodb_page_size`, in bytes: what fits into a row depends on it.
    pub(in super::super) page_bytes: u32,
}

/// The time by the server's clock.
pub(in super::super) async fn server_clock(conn: &mut Conn) -> Result<Timestamp> {
    let micros: Option<i64> =
        ask::first(conn, "SELECT CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000000 AS SIGNED)", || {
            "read the server's clock".into()
        })
        .await?;
    micros
        .map(Timestamp::from_micros)
        .ok_or_else(|| Error::unavailable("the server does not tell its time"))
}

/// Whether rights on all schemas can be taken back for one, and `%` and `_` in the name of a schema
/// mean themselves.
pub(in super::super) async fn has_partial_revokes(conn: &mut Conn) -> Result<bool> {
    // Not there before 8.0.16, nor in MariaDB.
    let partial: Option<(String, String)> =
        ask::first(conn, "SHOW GLOBAL VARIABLES LIKE 'partial_revokes'", || {
            "ask for partial_revokes".into()
        })
        .await?;
    Ok(partial.is_some_and(|(_, value)| value.eq_ignore_ascii_case("on")))
}

/// Asks for them, and which server it is.
pub(in super::super) async fn facts(
    conn: &mut Conn,
    peer: &str,
) -> Result<(Facts, Server, Flavor)> {
    let row: Option<(String, u8, u32)> =
        ask::first(conn, "SELECT @@version, @@lower_case_table_names, @@innodb_page_size", || {
            "ask for the server's version".into()
        })
        .await?;
    let (version, lower_case_table_names, page_bytes) =
        row.ok_or_else(|| Error::unavailable("the server does not tell its version"))?;
    let flavor = Flavor::parse(&version)
        .ok_or_else(|| Error::refused(format!("{version:?} is no version of a server")))?;
    let identity = join::identity(conn, peer, flavor).await?;
    let partial_revokes = has_partial_revokes(conn).await?;
    let facts =
        Facts { version: version.clone(), lower_case_table_names, partial_revokes, page_bytes };
    let anonymous = !flavor.is_maria() && !join::gives_gtids(conn, peer).await?;
    Ok((facts, Server { version, identity, anonymous }, flavor))
}
