//! Takes a full copy beside the running tail.
//!
//! `REPLCONF rdb-only 1` makes the server send an RDB file without making us a replica; its fields
//! and the FULLRESYNC line say where in the stream it stands (`replication.c`, `replconfCommand`).
//!
//! **Invariant:** a copy that is handed over whole was checked: its end mark, its checksum, and
//! that its fields name the place that the server announced.

use super::client::{Answer, Link};
use super::control::Control;
use super::rdb::Fields;
use super::{RedisSource, version};
use crate::error::{Class, Error, Result};
use crate::position::Position;
use crate::record::BaselineTaken;
use bytes::Bytes;
use tokio::sync::mpsc;

/// The work of `Source::baseline`.
pub(super) async fn take(source: &RedisSource, out: mpsc::Sender<Bytes>) -> Result<BaselineTaken> {
    let chosen = source.followed().await?;
    let endpoint = &chosen.at;
    let mut control = Control::connect(endpoint).await?;
    let server = control.server().await?;
    version::check_captured(&server.version)?;
    let mut link = Link::connect(endpoint, server.version.strip_suffix("-valkey")).await?;
    if !link.rdb_only().await? {
        // The server then takes us for a replica until the connection is closed below.
        tracing::debug!(%endpoint, "the server does not know rdb-only");
    }
    let Answer::Full { replid, offset } = link.psync(None).await? else {
        return Err(Error::corrupt(format!("{endpoint} sent no full copy although asked to")));
    };
    // Read after the copy began: not before the last record that is in it.
    let at = Control::connect(&chosen.clock).await?.time().await?;
    let mut transfer = link.transfer().await?;
    while let Some(piece) = transfer.next(&mut link).await? {
        if out.send(piece).await.is_err() {
            return Err(Error::new(Class::Interrupted, "nobody takes the baseline any more"));
        }
    }
    let fields = transfer.finish()?;
    let position = position(&fields, replid, offset)?;
    Ok(BaselineTaken { position, at, server, kind: "rdb", contents: None })
}

/// The place of a full copy: as FULLRESYNC says, with the database that the file names.
///
/// # Errors
/// Corrupt, if the file names another place.
pub(super) fn position(fields: &Fields, replid: String, offset: u64) -> Result<Position> {
    let other_id = fields.repl_id.as_ref().filter(|id| **id != replid);
    let other_offset = fields.repl_offset.filter(|there| *there != offset);
    if other_id.is_some() || other_offset.is_some() {
        return Err(Error::corrupt(format!(
            "the RDB file stands at {}:{} and not at {replid}:{offset}, as the server said",
            other_id.unwrap_or(&replid),
            other_offset.unwrap_or(offset),
        )));
    }
    // A master selects the database anew after every full copy; only the stream of a replica
    // goes on with the database in the file, and a replica always names it.
    Ok(Position { db: fields.repl_db.unwrap_or(0), ..Position::new(replid, offset) })
}
