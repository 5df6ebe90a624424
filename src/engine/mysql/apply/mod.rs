//! The log applied over one ordinary connection, where a target cannot be made a replica.
//!
//! The walk gives events, the `script` makes packets of statements of them, the `pipeline` has
//! many of those under way at once. Nothing of it needs a privilege of replication but the one to
//! run `BINLOG`.
//!
//! **Invariant:** transactions are applied whole, one after the other, in the order of the log, up
//! to the cut; one that the target knows already is an error, because the server would leave it
//! out in silence.

mod maria;
mod pipeline;
mod script;
mod session;
pub(super) mod way;

pub(super) use script::Names;

use super::event::kind;
use super::executed::Executed;
use super::flavor::{Family, Flavor};
use super::walk::{Next, Program, Served, Walk};
use super::{ask, load};
use crate::engine::Endpoint;
use crate::error::{Error, Result};
use crate::record::{Landing, Piece};
use mysql_async::Conn;
use pipeline::Pipeline;
use script::{Script, Step};
use session::{Collations, Guarded};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How often progress is logged.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// What the session is before the first statement of the source.
const SETUP: [&str; 5] = [
    "SET SESSION autocommit=1",
    "SET SESSION sql_mode=''",
    "SET SESSION wait_timeout=2147483",
    "SET SESSION net_read_timeout=3600",
    "SET @pitr=0",
];

/// What a MariaDB needs besides: row events go into its own log whatever format is set there, and
/// an XA transaction that is prepared leaves the session, as it leaves an applier.
const MARIA_SETUP: [&str; 2] =
    ["SET SESSION binlog_format='MIXED'", "SET SESSION pseudo_slave_mode=1"];

/// Applies `program` to the server at `endpoint`; `conn` is another connection to it.
///
/// # Errors
/// Unavailable, with the words of the target, if it does not take something; those of the log.
pub(super) async fn run(
    program: &Program,
    endpoint: &Endpoint,
    conn: &mut Conn,
    family: Family,
    names: Names,
) -> Result<Served> {
    let known = match (family, names) {
        (Family::MySql, Names::Kept) => load::executed(conn).await?,
        // A MariaDB leaves out nothing because of its name.
        _ => Executed::default(),
    };
    let (collations, guarded) = (collations(conn, family).await?, guarded(conn).await?);
    let script = Script::new(family, names, collations, guarded);
    let besides = if family == Family::MariaDb { &MARIA_SETUP[..] } else { &[] };
    let pipeline = Pipeline::connect(endpoint, &[&SETUP[..], besides].concat()).await?;
    let limit: Option<u64> =
        ask::first(conn, "SELECT @@GLOBAL.max_allowed_packet", || "read max_allowed_packet".into())
            .await?;
    let limit = limit.ok_or_else(|| Error::bug("max_allowed_packet has no value"))?;
    let mut apply = Apply {
        walk: Walk::new(program),
        script,
        pipeline,
        known,
        name: String::new(),
        limit,
        reported: Instant::now(),
        applied: 0,
    };
    let left_out = apply.stream((program.log)()).await?;
    apply.walk.served(left_out)
}

struct Apply<'a> {
    walk: Walk<'a>,
    script: Script,
    pipeline: Pipeline,
    /// What the target had executed before.
    known: Executed,
    /// The current transaction, for messages.
    name: String,
    /// The largest packet that the target takes, in bytes.
    limit: u64,
    reported: Instant,
    applied: u64,
}

impl Apply<'_> {
    async fn stream(
        &mut self,
        mut pieces: mpsc::Receiver<Result<Piece>>,
    ) -> Result<Option<Landing>> {
        let left_out = loop {
            let piece = match pieces.try_recv() {
                Ok(piece) => Some(piece),
                Err(mpsc::error::TryRecvError::Disconnected) => None,
                Err(mpsc::error::TryRecvError::Empty) => {
                    self.pipeline.flush().await?;
                    pieces.recv().await
                }
            };
            let at_cut = match piece.transpose()? {
                Some(Piece::Log { at, head }) => {
                    let at_cut = self.walk.open(&at, &head)?;
                    if !self.walk.is_at_file_start() {
                        self.format().await?;
                    }
                    at_cut
                }
                Some(Piece::Bytes(bytes)) => {
                    self.walk.push(bytes)?;
                    match self.take().await? {
                        Some(Some(left_out)) => break Some(left_out),
                        found => found.is_some(),
                    }
                }
                None => {
                    self.walk.check_end()?;
                    break None;
                }
            };
            if at_cut {
                break self.walk.look_ahead(&mut pieces).await;
            }
        };
        self.pipeline.drain().await?;
        Ok(left_out)
    }

    /// Applies what was pushed. `Some` if the cut was reached, with what is behind it if it is
    /// known.
    async fn take(&mut self) -> Result<Option<Option<Landing>>> {
        while let Some(next) = self.walk.next()? {
            let (part, begins) = match next {
                Next::Part(part, begins) => (part, begins),
                Next::Cut(left_out) => return Ok(Some(left_out)),
            };
            if let Some(event) = &begins {
                self.name = event.gtid.map_or_else(|| self.walk.place(), |gtid| gtid.to_string());
                if let Some(gtid) = event.gtid.filter(|gtid| self.known.contains(*gtid)) {
                    return Err(Error::refused(format!(
                        "the target has executed {gtid} already: it would leave it out"
                    ))
                    .hint("restore into a fresh server"));
                }
                self.script.begin(event.gtid);
            }
            let inside = begins.is_some() || self.walk.is_open();
            let at_cut = self.walk.take(&part)?;
            if inside {
                self.script.take(&part).map_err(|error| error.context(self.name.clone()))?;
                if !self.walk.is_open() {
                    self.script.end();
                    self.report();
                }
                self.send().await?;
            } else if part.head.is_some_and(|head| head.kind == kind::FORMAT_DESCRIPTION) {
                self.format().await?;
            }
            if at_cut {
                return Ok(Some(None));
            }
        }
        Ok(None)
    }

    async fn format(&mut self) -> Result<()> {
        let track = self.walk.track()?;
        self.name = format!("the head of {}", track.log);
        self.script.format(&self.walk.format, track.checksum);
        self.send().await
    }

    /// Sends what the script has.
    async fn send(&mut self) -> Result<()> {
        while let Some(step) = self.script.next_step() {
            let what = self.name.clone();
            let (Step::Packet(text, _) | Step::Alone(text, _) | Step::Statement(text, _)) = &step;
            if text.len() as u64 >= self.limit {
                return Err(Error::unavailable(format!(
                    "{what} needs a packet of {} bytes, the target takes {} (max_allowed_packet)",
                    text.len(),
                    self.limit
                ))
                .hint("set max_allowed_packet = 1G on the target, and restore into a fresh one"));
            }
            match step {
                Step::Packet(text, statements) => {
                    self.pipeline.send(&text, statements, what).await?;
                }
                Step::Alone(text, statements) => {
                    self.pipeline.drain().await?;
                    self.pipeline.send(&text, statements, what).await?;
                    self.pipeline.drain().await?;
                }
                Step::Statement(text, error) => self.pipeline.run(&text, error, what).await?,
            }
        }
        Ok(())
    }

    fn report(&mut self) {
        self.applied += 1;
        if self.reported.elapsed() >= REPORT_EVERY {
            self.reported = Instant::now();
            tracing::info!("{} transactions were sent to the target", self.applied);
        }
    }
}

async fn collations(conn: &mut Conn, family: Family) -> Result<Collations> {
    let listing = || "list the target's collations".to_owned();
    let version: Option<String> = ask::first(conn, "SELECT @@version", listing).await?;
    let number = version.as_deref().and_then(Flavor::parse).map_or((0, 0, 0), |f| f.number);
    // From then on a MariaDB has collations that stand for another one in each charset.
    let table = if family == Family::MariaDb && number >= (10, 10, 1) {
        "FULL_COLLATION_NAME, CHARACTER_SET_NAME \
         FROM information_schema.COLLATION_CHARACTER_SET_APPLICABILITY"
    } else {
        "COLLATION_NAME, CHARACTER_SET_NAME FROM information_schema.COLLATIONS"
    };
    let query =
        format!("SELECT ID, {table} WHERE ID IS NOT NULL AND CHARACTER_SET_NAME IS NOT NULL");
    let rows: Vec<(u32, String, String)> = ask::rows(conn, query, listing).await?;
    Ok(rows.into_iter().map(|(id, collation, charset)| (id, (collation, charset))).collect())
}

/// The values that a new session of the target has.
async fn guarded(conn: &mut Conn) -> Result<Guarded> {
    let mut values = Vec::new();
    for name in Guarded::NAMES {
        let row: Option<(String, String)> =
            ask::first(conn, format!("SHOW GLOBAL VARIABLES LIKE '{name}'"), || {
                format!("read {name}")
            })
            .await?;
        let value = match row.as_ref().map(|(_, value)| value.as_str()) {
            Some("ON" | "1") => 1,
            Some("OFF" | "0") => 0,
            // A text of its own, which every statement has.
            Some(_) if name == "character_set_collations" => 0,
            Some("utf8mb4_general_ci") => 45,
            Some("utf8mb4_0900_ai_ci") => 255,
            _ => continue,
        };
        values.push((name, value));
    }
    Ok(Guarded::new(values))
}

#[cfg(test)]
mod tests;
