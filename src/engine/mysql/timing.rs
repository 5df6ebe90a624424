//! Reads the clock of a server whose log carries only whole seconds: MariaDB's.
//!
//! Beside the stream the source is asked for its clock and then for the end of its log. The server
//! tells that end under the lock under which transactions are written (`LOCK_log`), so everything
//! that was committed up to the instant lies before the end. The clock is read once more behind
//! it: everything before the end was written within [`SPAN`] of the instant, or the sample is not
//! used. So a mark is good in both directions, on a busy server too.

use super::flavor::Flavor;
use super::{join, sql};
use crate::engine::Endpoint;
use crate::engine::sample::{self, Sampler};
use crate::engine::timing::{LogEnd, SPAN, Timing};
use crate::error::{Error, Result};
use mysql_async::Conn;
use std::time::Duration;
use tokio::task::JoinSet;

/// Starts to sample a server that was just looked at.
pub(super) fn start(endpoint: &Endpoint, facts: &join::Facts, every: Duration) -> Timing {
    let mut task = JoinSet::new();
    let clock = LogClock {
        endpoint: endpoint.clone(),
        flavor: facts.flavor,
        identity: facts.identity.clone(),
        conn: None,
    };
    let samples = sample::start(&mut task, clock, endpoint.clone(), every);
    Timing::of(samples, task)
}

/// Asks one server for the end of its log.
struct LogClock {
    endpoint: Endpoint,
    flavor: Flavor,
    identity: String,
    conn: Option<Conn>,
}

impl LogClock {
    async fn connect(&self) -> Result<Conn> {
        let peer = self.endpoint.to_string();
        let mut conn = sql::connect(&self.endpoint).await?;
        if join::identity(&mut conn, &peer, self.flavor).await? == self.identity {
            return Ok(conn);
        }
        Err(Error::unavailable(format!("{peer} is another server now")))
    }
}

impl Sampler for LogClock {
    type Sample = LogEnd;

    async fn sample(&mut self) -> Result<Option<LogEnd>> {
        let peer = self.endpoint.to_string();
        let mut conn = match self.conn.take() {
            Some(conn) => conn,
            None => self.connect().await?,
        };
        let at = join::clock(&mut conn, &peer).await?;
        let (log, offset) = join::end_of_log(&mut conn, &peer, "SHOW MASTER STATUS").await?;
        let after = join::clock(&mut conn, &peer).await?;
        self.conn = Some(conn);
        let quick = at <= after && after.since(at) <= SPAN;
        Ok(quick.then_some(LogEnd { log, offset, at, span: after.since(at) }))
    }

    fn disconnect(&mut self) {
        self.conn = None;
    }
}
