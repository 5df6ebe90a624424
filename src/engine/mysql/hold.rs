//! Reads where the binlog ends, and holds writes for a moment meanwhile.
//!
//! The lock is that of a baseline, with a shorter patience. It ends with its connection: at once
//! when this process dies, and after [`Hold::take`]'s limit when its host does.

use super::baseline::{Limits, Lock, LogEnd, facts, server_clock};
use super::sql;
use crate::engine::{Endpoint, Hold, Placed, Work};
use crate::error::{Error, Result};
use crate::position::Position;
use crate::record::Server;
use mysql_async::Conn;
use std::time::Duration;

/// The end of the binlog now.
pub(super) async fn place(endpoint: &Endpoint) -> Result<Placed> {
    let mut conn = sql::connect(endpoint).await?;
    let (_, server, _) = facts(&mut conn, &endpoint.to_string()).await?;
    let placed = read(&mut conn, server).await?;
    // A connection that does not end in order is closed all the same.
    drop(conn.disconnect().await);
    Ok(placed)
}

async fn read(conn: &mut Conn, server: Server) -> Result<Placed> {
    // The clock first: what is committed later may still lie before the end.
    let at = server_clock(conn).await?;
    let LogEnd { file, offset } = LogEnd::read(conn).await?;
    Ok(Placed { position: Position::new(file, offset), at, server, published: false })
}

/// Holds the writes of one server.
#[derive(Debug)]
pub(super) struct Locked {
    server: Server,
    conn: Option<Conn>,
    lock: Option<Lock>,
}

impl Locked {
    pub(super) async fn prepare(endpoint: Endpoint) -> Result<Box<dyn Hold>> {
        let mut conn = sql::connect(&endpoint).await?;
        let (_, server, _) = facts(&mut conn, &endpoint.to_string()).await?;
        Ok(Box::new(Self { server, conn: Some(conn), lock: None }))
    }
}

impl Hold for Locked {
    fn take(&mut self, most: Duration) -> Work<'_, ()> {
        Box::pin(async move {
            let conn = self.conn.take().ok_or_else(|| Error::bug("writes are held already"))?;
            let seconds = u32::try_from(most.as_secs()).unwrap_or(u32::MAX).max(1);
            let limits = Limits { wait: seconds, idle: Some(seconds) };
            self.lock = Some(Lock::take_on(conn, limits).await?);
            Ok(())
        })
    }

    fn place(&mut self) -> Work<'_, Placed> {
        Box::pin(async move {
            let server = self.server.clone();
            let lock = self.lock.as_mut().ok_or_else(|| Error::bug("writes are not held"))?;
            read(lock.conn(), server).await
        })
    }

    fn release(mut self: Box<Self>) -> Work<'static, Duration> {
        Box::pin(async move {
            let lock = self.lock.take();
            lock.ok_or_else(|| Error::bug("writes are not held"))?.release().await
        })
    }
}
