//! [`Source`] for MySQL: joins the source's log and hands it over.
//!
//! Three parts do the work: `join` decides where to begin, `client` asks for the dump, `pump`
//! turns it into chunks. Here they are put together, and here is remembered from one connection
//! to the next what only this process knows.
//!
//! When the history breaks off while it is being read (the PREVIOUS_GTIDS of a new file disagree
//! with what came, or an INCIDENT), the connection ends with an error that says so, and the next
//! one begins at the source's current file with [`Continuity::Broken`] and the same reason.
//!
//! **Invariant:** a place is continued in its middle only at a server that this process itself
//! has read it from; after a start of the process the file is walked through again first.
//!
//! [`Continuity::Broken`]: crate::record::Continuity::Broken

use super::client::{Client, Replica};
use super::join::{self, Aside, Facts, Start};
use super::protection::Watch;
use super::pump::{FileId, Pump, Stop};
use super::semisync::Acks;
use super::timing::Timing;
use super::{baseline, locate, sql};
use crate::engine::{Located, Source, SourceOptions, Work};
use crate::error::{Error, Result};
use crate::position::Position;
use crate::record::{BaselineTaken, Captured, Piece};
use bytes::Bytes;
use std::sync::{Mutex, PoisonError};
use tokio::sync::{mpsc, watch};

/// A MySQL server that is captured from.
#[derive(Debug)]
pub struct MysqlSource {
    options: SourceOptions,
    replica: Replica,
    memory: Mutex<Memory>,
    /// A place where the archive ended, and its last bytes before it.
    recalled: Mutex<Option<(Position, Bytes)>>,
}

/// What one connection learns for the next.
#[derive(Debug, Clone, Default)]
struct Memory {
    /// The identity of the server that the last stream came from.
    identity: Option<String>,
    /// The file that it was in.
    file: Option<FileId>,
    /// Why that stream cannot be continued.
    broken: Option<String>,
}

impl MysqlSource {
    /// A source with these options. Connects to nothing yet.
    pub fn new(options: SourceOptions) -> Self {
        let uuid = uuid::Uuid::new_v4();
        let (_, low) = uuid.as_u64_pair();
        // In the upper half, where hand-made numbers are rare; never 0.
        let server_id = low as u32 | 1 << 31;
        let replica = Replica { server_id, uuid: uuid.to_string() };
        Self { options, replica, memory: Mutex::default(), recalled: Mutex::default() }
    }

    fn memory(&self) -> Memory {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remember(&self, memory: Memory) {
        *self.memory.lock().unwrap_or_else(PoisonError::into_inner) = memory;
    }

    async fn capture(
        &self,
        resume: Option<Position>,
        out: &mpsc::Sender<Captured>,
        durable: &watch::Receiver<Option<Position>>,
    ) -> Result<()> {
        let endpoint = &self.options.endpoint;
        let peer = endpoint.to_string();
        let mut conn = sql::connect(endpoint).await?;
        baseline::check_capture(&mut conn).await?;
        let facts = join::look(&mut conn, &peer).await?;
        let memory = self.memory();
        let start = match memory.broken {
            Some(reason) if resume.is_some() => Start::Begin { broken: Some(reason) },
            _ => join::decide(&mut conn, &peer, &facts, resume, memory.identity.as_deref()).await?,
        };
        let stop = self.pump(out, durable, &facts, start, conn).await?;
        let Stop::Broken(reason) = stop else { return end(stop) };
        // The bytes did not prove what SQL had left open.
        let mut conn = sql::connect(endpoint).await?;
        let facts = join::look(&mut conn, &peer).await?;
        let start = Start::Begin { broken: Some(reason) };
        let stop = self.pump(out, durable, &facts, start, conn).await?;
        end(stop)
    }

    /// One dump, until it stops. `conn` is for questions beside it.
    async fn pump(
        &self,
        out: &mpsc::Sender<Captured>,
        durable: &watch::Receiver<Option<Position>>,
        facts: &Facts,
        start: Start,
        conn: mysql_async::Conn,
    ) -> Result<Stop> {
        let endpoint = &self.options.endpoint;
        let mut replica = self.replica.clone();
        if replica.server_id == facts.server_id {
            replica.server_id ^= 1;
        }
        let aside = Aside::new(endpoint, Some(conn));
        let timing = if facts.flavor.is_maria() {
            Timing::start(endpoint, facts, self.options.sample_every)
        } else {
            Timing::default()
        };
        let (mut pump, file, position) =
            Pump::new(out, facts, aside, timing, start, self.memory().file);
        let recalled = self.recalled.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((place, before)) = recalled {
            pump.compare(&place, before);
        }
        let semi_sync = self.options.semi_sync;
        let acks = semi_sync.then(|| Acks::new(durable.clone()));
        let mut watch =
            acks.as_ref().map(|acks| Watch::new(&self.options.name, endpoint, out, acks.active()));
        if let Some(acks) = acks {
            pump.acknowledge(acks);
        }
        let client = Client::connect(endpoint).await?;
        let reader = client.dump(facts.flavor, &replica, &file, position, semi_sync).await?;
        // If this work is dropped on its way, the next connection trusts nothing and walks.
        let before = self.memory();
        self.remember(Memory::default());
        let stop = match &mut watch {
            None => pump.run(reader).await,
            Some(watch) => tokio::select! {
                stop = pump.run(reader) => stop,
                anew = watch.run() => Stop::Failed(anew),
            },
        };
        self.remember(match &stop {
            Stop::BrokeOff(error) => {
                Memory { broken: Some(error.to_string()), ..Memory::default() }
            }
            _ if pump.is_open() => {
                Memory { identity: Some(facts.identity.clone()), file: pump.file(), broken: None }
            }
            _ => Memory { broken: before.broken, ..Memory::default() },
        });
        Ok(stop)
    }
}

/// What a dump that stopped means for the caller.
fn end(stop: Stop) -> Result<()> {
    match stop {
        Stop::Closed => Ok(()),
        Stop::Failed(error) => Err(error),
        Stop::BrokeOff(error) => {
            Err(error
                .hint("the capture goes on behind the break, and a new baseline is needed there"))
        }
        Stop::Broken(reason) => Err(Error::bug(format!("broke twice: {reason}"))),
    }
}

impl Source for MysqlSource {
    fn tail(
        &self,
        resume: Option<Position>,
        out: mpsc::Sender<Captured>,
        durable: watch::Receiver<Option<Position>>,
    ) -> Work<'_, ()> {
        Box::pin(async move {
            let captured = self.capture(resume, &out, &durable).await;
            captured.map_err(|error| error.context(format!("capture {}", self.options.name)))
        })
    }

    fn recall(&self, place: Position, before: Bytes) {
        *self.recalled.lock().unwrap_or_else(PoisonError::into_inner) = Some((place, before));
    }

    fn baseline(&self, out: mpsc::Sender<Bytes>) -> Work<'_, BaselineTaken> {
        Box::pin(baseline::take(&self.options, out))
    }

    fn locate(
        &self,
        from: Position,
        pieces: mpsc::Receiver<Result<Piece>>,
        offset: u64,
    ) -> Work<'_, Located> {
        Box::pin(locate::locate(from, pieces, offset))
    }
}
