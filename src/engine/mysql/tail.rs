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
//! Of several servers, or behind one address, `servers` decides which one is gone on from. While
//! one of several is streamed, it is looked now and then whether it was demoted.
//!
//! **Invariant:** a place is continued in its middle only at a server that this process itself
//! has read it from; after a start of the process the file is walked through again first, and so it
//! always is where transactions have no GTIDs.
//!
//! [`Continuity::Broken`]: crate::record::Continuity::Broken

use super::client::{Client, Replica};
use super::executed::Executed;
use super::join::{self, Aside, Facts, Known, Start};
use super::protection::Watch;
use super::pump::{FileId, Pump, Stop};
use super::semisync::Acks;
use super::servers::{self, Choice, Seen};
use super::{baseline, canary, find, hold, locate, sql, timing};
use crate::engine::timing::Timing;
use crate::engine::{Endpoint, Hold, Located, Placed, Source, SourceOptions, Work};
use crate::error::{Error, Result};
use crate::position::Position;
use crate::record::{BaselineTaken, Captured, Piece, Recalled, Server};
use bytes::Bytes;
use mysql_async::Conn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// How often it is looked whether the server that is streamed was demoted.
const DEMOTED_LOOK: Duration = Duration::from_secs(2);

/// How often, and how long after each other, the servers are asked before a capture gives up for
/// the time being.
const LOOKS: u32 = 10;
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A MySQL server that is captured from.
#[derive(Debug)]
pub struct MysqlSource {
    options: SourceOptions,
    replica: Replica,
    memory: Mutex<Memory>,
    current: Mutex<Current>,
    /// Whether the last connection's stream was opened.
    opened: AtomicBool,
    /// What the archive ended with before the last connection.
    recalled: Mutex<Option<Recalled>>,
    /// Whether it ends, or may end, with transactions that have no GTIDs.
    anonymous: AtomicBool,
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

/// The server that the archive ends with.
#[derive(Debug, Default)]
struct Current {
    /// Its uuid, as far as it is known.
    uuid: Option<String>,
    /// Which of the endpoints was connected to last.
    index: usize,
    /// The server there.
    connected: Option<String>,
    /// Since when the current server is gone or demoted.
    gone_since: Option<Instant>,
}

impl Current {
    /// How long the current server has been gone or demoted, after another look at it.
    fn gone_for(&mut self, seen: &[Seen]) -> Duration {
        let uuid = self.uuid.as_deref();
        let is_well = seen
            .iter()
            .filter_map(|seen| seen.view.as_ref().ok())
            .any(|view| uuid.is_none_or(|uuid| uuid == view.uuid) && (!view.read_only || view.fed));
        if is_well {
            self.gone_since = None;
            return Duration::ZERO;
        }
        self.gone_since.get_or_insert_with(Instant::now).elapsed()
    }
}

impl MysqlSource {
    /// A source with these options. Connects to nothing yet.
    pub fn new(options: SourceOptions) -> Self {
        let uuid = uuid::Uuid::new_v4();
        let (_, low) = uuid.as_u64_pair();
        // In the upper half, where hand-made numbers are rare; never 0.
        let server_id = low as u32 | 1 << 31;
        let replica = Replica { server_id, uuid: uuid.to_string() };
        Self {
            options,
            replica,
            memory: Mutex::default(),
            current: Mutex::default(),
            opened: AtomicBool::new(false),
            recalled: Mutex::default(),
            anonymous: AtomicBool::new(false),
        }
    }

    fn memory(&self) -> Memory {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remember(&self, memory: Memory) {
        *self.memory.lock().unwrap_or_else(PoisonError::into_inner) = memory;
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn endpoint(&self, index: usize) -> &Endpoint {
        self.options.endpoints().nth(index).unwrap_or(&self.options.endpoint)
    }

    async fn capture(
        &self,
        resume: Option<Position>,
        out: &mpsc::Sender<Captured>,
        durable: &watch::Receiver<Option<Position>>,
    ) -> Result<()> {
        if self.opened.swap(false, Ordering::AcqRel) {
            let mut current = self.current();
            current.uuid = current.connected.take();
        }
        let archived = match &resume {
            Some(at) => Some(at.gtids.parse::<Executed>().map_err(|error| {
                Error::corrupt(format!("archived position {at}")).source(error)
            })?),
            None => None,
        };
        let choice = self.choose(archived.as_ref()).await?;
        let index = match choice {
            Choice::Stay(index) | Choice::Join(index) | Choice::Fork(index, _) => index,
            Choice::Wait(why) => return Err(Error::unavailable(why)),
        };
        let (mut conn, facts) = self.look(index).await?;
        let peer = self.endpoint(index).to_string();
        let memory = self.memory();
        let start = match (choice, memory.broken, archived) {
            (Choice::Join(_), _, Some(archived)) => {
                tracing::info!(source = %self.options.name, "going on from {peer}");
                join::join(&mut conn, &peer, &facts, archived).await?
            }
            (Choice::Fork(_, reason), ..) | (_, Some(reason), Some(_)) => {
                Start::Begin { broken: Some(reason) }
            }
            _ => {
                let archived = self.current().uuid.clone();
                let known = Known {
                    same: memory.identity.as_deref(),
                    archived: archived.as_deref(),
                    anonymous: self.is_anonymous(),
                };
                join::decide(&mut conn, &peer, &facts, resume, known).await?
            }
        };
        let stop = self.pump(out, durable, &facts, start, conn).await?;
        let Stop::Broken(reason) = stop else { return end(stop) };
        // The bytes did not prove what SQL had left open.
        let (conn, facts) = self.look(index).await?;
        let start = Start::Begin { broken: Some(reason) };
        let stop = self.pump(out, durable, &facts, start, conn).await?;
        end(stop)
    }

    fn is_anonymous(&self) -> bool {
        self.anonymous.load(Ordering::Acquire)
    }

    /// Connects to one of the servers, and asks it about itself.
    async fn look(&self, index: usize) -> Result<(Conn, Facts)> {
        let endpoint = self.endpoint(index);
        let mut conn = sql::connect(endpoint).await?;
        baseline::check_capture(&mut conn).await?;
        let facts = join::look(&mut conn, &endpoint.to_string()).await?;
        if facts.flavor.is_maria() && !self.options.standbys.is_empty() {
            return Err(Error::refused(format!(
                "{endpoint} is a MariaDB, and urls has several servers"
            ))
            .hint("only MySQL is gone on from another server; keep one url"));
        }
        let mut current = self.current();
        current.index = index;
        current.connected = Some(facts.identity.clone());
        Ok((conn, facts))
    }

    /// Decides which server is gone on from. Waits a while for one that can be.
    async fn choose(&self, archived: Option<&Executed>) -> Result<Choice> {
        let endpoints: Vec<Endpoint> = self.options.endpoints().cloned().collect();
        let expected = self.current().uuid.clone();
        let anonymous = self.is_anonymous() && archived.is_some();
        if let [endpoint] = endpoints.as_slice() {
            let Some(expected) = expected.filter(|_| !anonymous) else {
                return Ok(Choice::Stay(0));
            };
            let mut conn = sql::connect(endpoint).await?;
            let uuid = servers::uuid(&mut conn, &endpoint.to_string()).await?;
            drop(conn.disconnect().await);
            if uuid.is_none_or(|uuid| uuid == expected) {
                return Ok(Choice::Stay(0));
            }
        }
        let mut looks = 1;
        loop {
            let seen = servers::look_around(&endpoints).await;
            let choice = {
                let mut current = self.current();
                let gone_for = current.gone_for(&seen);
                if anonymous {
                    servers::choose_the_same(&seen, current.uuid.as_deref())
                } else {
                    servers::choose(&seen, current.uuid.as_deref(), archived, gone_for)
                }
            };
            if looks >= LOOKS || !matches!(choice, Choice::Wait(_)) {
                return Ok(choice);
            }
            looks += 1;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// One dump, until it stops. `conn` is for questions beside it.
    async fn pump(
        &self,
        out: &mpsc::Sender<Captured>,
        durable: &watch::Receiver<Option<Position>>,
        facts: &Facts,
        start: Start,
        conn: Conn,
    ) -> Result<Stop> {
        let endpoint = self.endpoint(self.current().index);
        let mut replica = self.replica.clone();
        if replica.server_id == facts.server_id {
            replica.server_id ^= 1;
        }
        let aside = Aside::new(endpoint, Some(conn));
        let timing = if facts.flavor.is_maria() {
            timing::start(endpoint, facts, self.options.sample_every)
        } else {
            Timing::default()
        };
        let same = self.memory().file;
        let (mut pump, file, position) =
            Pump::new(out, facts, aside, timing, start, same, &self.opened);
        let recalled = self.recalled.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(recalled) = recalled {
            pump.compare(&recalled.place, recalled.before);
        }
        let strict = self.is_anonymous() || !facts.named;
        if strict && pump.lacks_proof() {
            return Ok(Stop::Broken(format!(
                "nothing that was captured before {file} is at hand to be compared with what {endpoint} \
                 has, and there are no GTIDs"
            )));
        }
        let semi_sync = self.options.semi_sync;
        let acks = semi_sync.then(|| Acks::new(durable.clone()));
        let mut watch =
            acks.as_ref().map(|acks| Watch::new(&self.options.name, endpoint, out, acks.active()));
        if let Some(acks) = acks {
            pump.acknowledge(acks);
        }
        let client = Client::connect(endpoint).await?;
        let reader =
            client.dump((facts.flavor, facts.named), &replica, &file, position, semi_sync).await?;
        // If this work is dropped on its way, the next connection trusts nothing and walks.
        let before = self.memory();
        self.remember(Memory::default());
        let anew = async {
            match &mut watch {
                None => std::future::pending().await,
                Some(watch) => watch.run().await,
            }
        };
        let stop = tokio::select! {
            stop = pump.run(reader) => stop,
            anew = anew => Stop::Failed(anew),
            demoted = self.until_demoted(durable) => Stop::Failed(demoted),
        };
        self.remember(match &stop {
            Stop::BrokeOff(error) => {
                Memory { broken: Some(error.to_string()), ..Memory::default() }
            }
            _ if pump.is_open() => {
                let identity = (!pump.is_anonymous()).then(|| facts.identity.clone());
                Memory { identity, file: pump.file(), broken: None }
            }
            _ => Memory { broken: before.broken, ..Memory::default() },
        });
        Ok(stop)
    }

    /// Completes when another of the servers has to be gone on from although this one streams.
    async fn until_demoted(&self, durable: &watch::Receiver<Option<Position>>) -> Error {
        if self.options.standbys.is_empty() {
            return std::future::pending().await;
        }
        let endpoints: Vec<Endpoint> = self.options.endpoints().cloned().collect();
        let endpoint = self.endpoint(self.current().index);
        loop {
            tokio::time::sleep(DEMOTED_LOOK).await;
            if self.is_anonymous() {
                // No other server can be gone on from.
                continue;
            }
            let look = async {
                let mut conn = sql::connect(endpoint).await?;
                let read_only = servers::is_read_only(&mut conn, &endpoint.to_string()).await?;
                drop(conn.disconnect().await);
                Ok::<_, Error>(read_only)
            };
            // A server that does not answer ends the stream by itself.
            if !look.await.unwrap_or(false) {
                self.current().gone_since = None;
                continue;
            }
            let archived = durable.borrow().as_ref().and_then(|at| at.gtids.parse().ok());
            let Some(archived) = archived else { continue };
            let seen = servers::look_around(&endpoints).await;
            let mut current = self.current();
            let gone_for = current.gone_for(&seen);
            // The stream may be open, and its server not known as the current one yet.
            let uuid = current.connected.clone().or_else(|| current.uuid.clone());
            match servers::choose(&seen, uuid.as_deref(), Some(&archived), gone_for) {
                Choice::Join(_) | Choice::Fork(..) => {
                    return Error::unavailable(format!("{endpoint} was made read-only"));
                }
                Choice::Stay(_) | Choice::Wait(_) => {}
            }
        }
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

    fn recall(&self, server: &Server, last: Option<Recalled>) {
        let known = (!server.identity.is_empty()).then(|| server.identity.clone());
        self.current().uuid = known;
        // It is what the archive says that counts now.
        self.opened.store(false, Ordering::Release);
        let records = last.as_ref().and_then(|last| last.last_records.as_ref());
        let anonymous = records.is_some_and(|(from, to, records)| {
            find::names(from, to, *records).is_none_or(|names| names.anonymous)
        });
        self.anonymous.store(server.anonymous || anonymous, Ordering::Release);
        *self.recalled.lock().unwrap_or_else(PoisonError::into_inner) = last;
    }

    fn baseline(&self, out: mpsc::Sender<Bytes>) -> Work<'_, BaselineTaken> {
        Box::pin(async move {
            // Of the server that is streamed: the copy's place is one in its log.
            let endpoint = self.endpoint(self.current().index).clone();
            baseline::take(&SourceOptions { endpoint, ..self.options.clone() }, out).await
        })
    }

    fn place<'a>(&'a self, _name: &'a str) -> Work<'a, Placed> {
        Box::pin(async {
            let endpoint = self.endpoint(self.current().index).clone();
            hold::place(&endpoint).await
        })
    }

    fn canary(&self) -> Work<'_, ()> {
        Box::pin(async {
            let endpoint = self.endpoint(self.current().index).clone();
            canary::write(&endpoint).await
        })
    }

    fn hold(&self) -> Work<'_, Box<dyn Hold>> {
        let endpoint = self.endpoint(self.current().index).clone();
        Box::pin(hold::Locked::prepare(endpoint))
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
