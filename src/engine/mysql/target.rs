//! A MySQL server that is restored into: one that runs, or a fresh folder.
//!
//! The log is replayed by the target's own applier, with pitr as its replication source. While
//! that goes on the target has settings that suit it; what they were before is put back at the
//! end. A folder is filled by a scratch server and left cleanly shut down.
//!
//! **Invariant:** a folder whose restore did not come to its end holds a file that says so, and
//! a server keeps its replication settings then: neither can be taken for a restored one.

use super::accounts;
use super::apply::way::Way;
use super::apply::{self, Names};
use super::events::States;
use super::executed::Executed;
use super::half::Half;
use super::load::{self, Accounts, Baseline, Rights};
use super::serve::{Identity, ReplaySource};
use super::server::{LARGEST_PACKET, ScratchServer, Setup};
use super::walk::Program;
use super::{ask, check, only, preflight, replay, sql, tools};
use crate::durable;
use crate::engine::{self, Apply, Endpoint, Needs, Target, TargetOptions, Work, tls, unfinished};
use crate::error::{Context, Error, Result};
use crate::manifest::BaselineMeta;
use crate::record::{Applied, Cut, OpenLog, Server};
use bytes::Bytes;
use mysql_async::Conn;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use tokio::sync::mpsc;

/// The data directory within a folder.
const DATA: &str = "data";
/// Within a folder, where the log waits to be applied.
const RELAY: &str = "relay";
/// What a restore makes in a folder, besides the mark of one that is not finished.
const OWN: [&str; 2] = [DATA, RELAY];

/// A MySQL server on its way to an earlier state.
#[derive(Debug)]
pub struct MysqlTarget {
    options: TargetOptions,
    place: Place,
    needs: Needs,
    session: Option<Conn>,
    globals: Globals,
    /// Accounts that are not what they were at the source.
    accounts: Accounts,
    /// What the scheduled events have to be at the end.
    events: Option<States>,
    lower_case_table_names: u8,
    /// How the log is applied.
    way: Way,
}

#[derive(Debug)]
enum Place {
    Running(Endpoint),
    Folder { dir: PathBuf, server: Option<Box<ScratchServer>> },
}

impl MysqlTarget {
    /// A running server.
    pub fn running(options: TargetOptions, endpoint: Endpoint) -> Self {
        Self::new(options, Place::Running(endpoint))
    }

    /// A folder that is not there yet, or empty.
    pub fn folder(options: TargetOptions, dir: PathBuf) -> Self {
        Self::new(options, Place::Folder { dir, server: None })
    }

    fn new(options: TargetOptions, place: Place) -> Self {
        Self {
            options,
            place,
            needs: Needs::default(),
            session: None,
            globals: Globals::default(),
            accounts: Accounts::default(),
            events: None,
            lower_case_table_names: 0,
            way: Way::native("the server is pitr's own"),
        }
    }

    /// The place, for messages.
    fn at(&self) -> String {
        match &self.place {
            Place::Running(endpoint) => endpoint.to_string(),
            Place::Folder { dir, .. } => dir.display().to_string(),
        }
    }

    /// A new connection, whatever settings the server gives to new ones.
    async fn connect(&self) -> Result<Conn> {
        let mut conn = match &self.place {
            Place::Running(endpoint) => sql::connect(endpoint).await?,
            Place::Folder { server: Some(server), .. } => server.connect().await?,
            Place::Folder { server: None, .. } => {
                return Err(Error::bug("the scratch server is used before it is started"));
            }
        };
        ask::keep_open(&mut conn).await?;
        for setting in ["autocommit = 1", "sql_log_bin = 0", "sql_mode = ''"] {
            ask::run(&mut conn, format!("SET SESSION {setting}"), || format!("set {setting}"))
                .await?;
        }
        Ok(conn)
    }

    /// The connection that was opened first. It stays: the log may change the password.
    fn session(&mut self) -> Result<&mut Conn> {
        self.session.as_mut().ok_or_else(|| Error::bug("the target is used before its preflight"))
    }

    async fn look(&mut self, needs: &Needs) -> Result<Server> {
        self.needs = needs.clone();
        preflight::client(needs).await?;
        let at = self.at();
        match &self.place {
            Place::Folder { .. } if self.options.apply == Apply::Sql => {
                Err(Error::usage("--apply sql is for running servers")
                    .hint("name one with --target, or leave --apply away"))
            }
            Place::Folder { dir, .. } => {
                unfinished::check(dir, &OWN)?;
                preflight::folder(needs).await
            }
            Place::Running(endpoint) => {
                let mut conn = sql::connect(endpoint).await?;
                ask::keep_open(&mut conn).await?;
                ask::run(&mut conn, "SET SESSION autocommit = 1", || "set autocommit".into())
                    .await?;
                let (asked, clean) = (self.options.apply, self.options.clean);
                let (server, way) = preflight::running(&mut conn, needs, asked, &at, clean).await?;
                self.way = way;
                if !self.way.sql && self.listen().ip().is_loopback() {
                    preflight::same_host(endpoint).await?;
                }
                self.session = Some(conn);
                Ok(server)
            }
        }
    }

    async fn load_baseline(
        &mut self,
        meta: &BaselineMeta,
        pieces: mpsc::Receiver<Result<Bytes>>,
    ) -> Result<()> {
        let baseline = Baseline::open(pieces).await?;
        self.prepare(&baseline).await?;
        let session = self.session.as_mut().ok_or_else(|| Error::bug("no connection"))?;
        let me = accounts::me(session).await?;
        let user;
        let password;
        let socket;
        let server = match &self.place {
            Place::Running(endpoint) => tools::Server::Endpoint(endpoint),
            Place::Folder { server: Some(server), .. } => {
                (user, password) = server.admin();
                socket = server.socket();
                tools::Server::Socket { path: &socket, user, password }
            }
            Place::Folder { server: None, .. } => return Err(Error::bug("no scratch server")),
        };
        let rights = if self.way.admin { Rights::All } else { Rights::Some };
        self.accounts = load::load(baseline, &server, session, &me, rights).await?;
        if !self.options.databases.is_empty() {
            // Better now than after the replay; one may still be made there.
            only::check_foreign_keys(session, &self.options.databases).await?;
        }
        if !self.way.admin || !self.way.gtids {
            // Its GTIDs stay the target's own.
            return Ok(());
        }
        load::take_over_gtids(session, &meta.position.gtids).await
    }

    async fn replay_log(
        &mut self,
        baseline: &BaselineMeta,
        log: OpenLog,
        cut: &Cut,
    ) -> Result<Applied> {
        let listen = self.listen();
        let conn = self.session()?;
        let replica_id: Option<u32> =
            ask::first(conn, "SELECT @@server_id", || "ask for server_id".into()).await?;
        let replica_id = replica_id.ok_or_else(|| Error::bug("the target has no server_id"))?;
        let base: Executed = baseline.position.gtids.parse()?;
        let events = States::read(conn).await?;
        let program = Program { log, cut: cut.clone(), base, events };
        if self.way.sql {
            return self.apply_as_sql(&program).await;
        }
        let mut taken = self.needs.origins.clone();
        taken.push(replica_id);
        let identity = Identity {
            version: baseline.server.version.clone(),
            server_id: preflight::free_server_id(&taken),
            uuid: uuid::Uuid::new_v4().to_string(),
        };
        let source = ReplaySource::bind(listen, identity, replica_id, program).await?;
        self.make_fast().await?;
        let address = self.reachable(source.address()?).await?;
        let conn = self.session()?;
        let served = source.served();
        let replay = async {
            replay::start(conn, &source, address).await?;
            let all = replay::wait(conn, served).await?;
            replay::end(conn).await?;
            Ok(all)
        };
        let outcome = tokio::select! {
            outcome = replay => outcome,
            error = source.run() => Err(error),
        };
        match outcome {
            Ok(all) => {
                self.events = Some(all.events.clone());
                Ok(all.applied.clone())
            }
            Err(error) => Err(self.leave(error).await),
        }
    }

    /// Applies the log over an ordinary connection.
    async fn apply_as_sql(&mut self, program: &Program) -> Result<Applied> {
        self.make_fast().await?;
        let names = if self.way.gtids { Names::Kept } else { Names::New };
        let Place::Running(endpoint) = &self.place else {
            return Err(Error::bug("a folder's log is applied by its own server"));
        };
        let conn = self.session.as_mut().ok_or_else(|| Error::bug("no connection"))?;
        let before = load::executed(conn).await?;
        let served = apply::run(program, endpoint, conn, names)
            .await
            .map_err(|error| error.context(format!("replay into {endpoint}")))?;
        self.events = Some(served.events);
        let mut applied = served.applied;
        if names == Names::Kept {
            let mut executed = before;
            executed.union_with(&served.gtids.subtract(&program.base));
            applied.gtids = executed.to_string();
        } else {
            applied.gtids = load::executed(conn).await?.to_string();
        }
        Ok(applied)
    }

    /// Stops what still goes on, and leaves the rest for a look at it.
    async fn leave(&mut self, error: Error) -> Error {
        // The first connection may be in the middle of an answer.
        let stopped = match self.connect().await {
            Ok(mut conn) => {
                ask::run(&mut conn, "STOP REPLICA", || "stop the target's replication".into()).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = stopped {
            tracing::warn!("{error}");
        }
        error.context(format!("replay into {}", self.at()))
    }

    /// Settings for the time of the replay.
    async fn make_fast(&mut self) -> Result<()> {
        if !self.way.admin {
            return Ok(());
        }
        let workers = std::thread::available_parallelism().map_or(4, usize::from).clamp(4, 64);
        let running = matches!(self.place, Place::Running(_));
        let conn = self.session.as_mut().ok_or_else(|| Error::bug("no connection"))?;
        let globals = &mut self.globals;
        globals.change(conn, "replica_parallel_workers", &workers.to_string()).await?;
        let largest = LARGEST_PACKET.to_string();
        globals.change(conn, "replica_max_allowed_packet", &largest).await?;
        globals.change(conn, "replica_pending_jobs_size_max", &largest).await?;
        // Not there before 8.4; what the source allowed is to be allowed here.
        globals.change_if_known(conn, "restrict_fk_on_non_standard_key", "OFF").await?;
        if running {
            // A restore that is interrupted starts over, so nothing is lost by this.
            globals.change(conn, "sync_binlog", "0").await?;
            globals.change(conn, "innodb_flush_log_at_trx_commit", "2").await?;
        }
        Ok(())
    }

    /// Where to listen for the target: where only this host gets to, unless told otherwise.
    fn listen(&self) -> SocketAddr {
        self.options.listen.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    /// How the target reaches what pitr listens at.
    async fn reachable(&self, listening: SocketAddr) -> Result<SocketAddr> {
        if !listening.ip().is_unspecified() {
            return Ok(listening);
        }
        match &self.place {
            Place::Folder { .. } => Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, listening.port()))),
            Place::Running(endpoint) => {
                // The address from which this host talks to the target.
                let tcp = tls::connect_tcp(endpoint).await?;
                let local = tcp.local_addr().unavailable(|| "ask for the own address".into())?;
                Ok(SocketAddr::new(local.ip(), listening.port()))
            }
        }
    }

    async fn finish_and_check(&mut self, applied: &Applied) -> Result<String> {
        let events = self.events.take().ok_or_else(|| Error::bug("finish before replay"))?;
        // A connection of its own: its session's settings change.
        let mut other = self.connect().await?;
        let scheduled = events.put_in_force(&mut other).await?;
        other.disconnect().await.unavailable(|| "close a connection".into())?;
        let running = matches!(self.place, Place::Running(_));
        let databases = std::mem::take(&mut self.options.databases);
        let conn = self.session()?;
        let kept =
            if databases.is_empty() { None } else { Some(only::keep(conn, &databases).await?) };
        let tables = check::everything(conn, &applied.gtids.parse()?).await?;
        if running {
            // What was committed under looser settings is made durable before those come back.
            ask::run(conn, "FLUSH NO_WRITE_TO_BINLOG LOGS", || "make everything durable".into())
                .await?;
        }
        let mut globals = std::mem::take(&mut self.globals);
        globals.put_back(self.session()?).await?;
        let mut said = format!(
            "gtid_executed is exactly that of the instant, {tables} tables checked, \
             {scheduled} scheduled events in their state"
        );
        let prepared = check::prepared(self.session()?).await?;
        if prepared > 0 {
            said.push_str(&format!(", {prepared} XA transactions prepared (XA RECOVER)"));
        }
        said.extend(kept.map(|kept| format!(", {kept}")));
        if let Some(session) = self.session.take() {
            session.disconnect().await.unavailable(|| "close a connection".into())?;
        }
        match &mut self.place {
            Place::Running(_) => {
                let kept = self.accounts.kept.iter().map(|account| (account, "kept as it was"));
                let lacking = self.accounts.lacking.iter();
                let lacking = lacking.map(|account| (account, "without what only the source may"));
                for (account, what) in kept.chain(lacking) {
                    said.push_str(&format!(", {} {what}", account.quoted()));
                }
            }
            Place::Folder { dir, server } => {
                let server = server.take().ok_or_else(|| Error::bug("no scratch server"))?;
                server.shutdown().await?;
                let relay = dir.join(RELAY);
                std::fs::remove_dir_all(&relay)
                    .unavailable(|| format!("remove {}", relay.display()))?;
                durable::sync_dir(&dir.join(DATA))?;
                unfinished::end(dir)?;
                said.push_str(", shut down in order; start it with mysqld --datadir=");
                let data = std::path::absolute(dir.join(DATA))
                    .unavailable(|| format!("find the path of {}", dir.display()))?;
                said.push_str(&data.display().to_string());
                if self.lower_case_table_names != 0 {
                    said.push_str(" --lower-case-table-names=");
                    said.push_str(&self.lower_case_table_names.to_string());
                }
            }
        }
        Ok(said)
    }

    /// Makes the target ready to take a baseline: the last point at which nothing was changed.
    async fn prepare(&mut self, baseline: &Baseline) -> Result<()> {
        let facts = baseline.facts();
        self.lower_case_table_names = facts.lower_case_table_names;
        match &mut self.place {
            Place::Folder { dir, server } => {
                unfinished::begin(dir, &OWN)?;
                durable::create_dir_all(&dir.join(RELAY))?;
                let setup = Setup {
                    data: dir.join(DATA),
                    relay: dir.join(RELAY),
                    lower_case_table_names: facts.lower_case_table_names,
                    page_bytes: facts.page_bytes,
                    partial_revokes: facts.partial_revokes,
                    server_id: preflight::free_server_id(&self.needs.origins),
                };
                let started = server.insert(Box::new(ScratchServer::start(&setup).await?));
                let mut conn = started.connect().await?;
                ask::keep_open(&mut conn).await?;
                self.session = Some(conn);
            }
            Place::Running(endpoint) => {
                let at = endpoint.to_string();
                let conn =
                    self.session.as_mut().ok_or_else(|| Error::bug("no preflight was made"))?;
                check_names(conn, &at, facts.lower_case_table_names).await?;
                if self.way.admin {
                    self.globals.half = Some(Half::begin(conn, &self.options.name).await?);
                }
                if facts.partial_revokes {
                    // It stays on: with partial revokes in force it cannot be switched off.
                    set_global(conn, "partial_revokes", "ON").await?;
                }
            }
        }
        if !self.way.admin {
            // That no event runs was seen by the preflight.
            return Ok(());
        }
        let conn = self.session.as_mut().ok_or_else(|| Error::bug("no connection"))?;
        self.globals.change(conn, "event_scheduler", "OFF").await?;
        self.globals.change(conn, "max_allowed_packet", &LARGEST_PACKET.to_string()).await
    }
}

impl Target for MysqlTarget {
    fn preflight<'a>(&'a mut self, needs: &'a Needs) -> Work<'a, Server> {
        Box::pin(self.look(needs))
    }

    fn way(&self) -> Option<engine::Way> {
        let apply = if self.way.sql { "sql" } else { "native" };
        Some(engine::Way { apply, why: self.way.why.clone() })
    }

    fn load<'a>(
        &'a mut self,
        baseline: &'a BaselineMeta,
        pieces: mpsc::Receiver<Result<Bytes>>,
    ) -> Work<'a, ()> {
        Box::pin(self.load_baseline(baseline, pieces))
    }

    fn replay<'a>(
        &'a mut self,
        baseline: &'a BaselineMeta,
        log: OpenLog,
        cut: &'a Cut,
    ) -> Work<'a, Applied> {
        Box::pin(self.replay_log(baseline, log, cut))
    }

    fn finish<'a>(&'a mut self, applied: &'a Applied) -> Work<'a, String> {
        Box::pin(self.finish_and_check(applied))
    }
}

/// Whether names of schemas and tables mean on the target what they meant on the source.
async fn check_names(conn: &mut Conn, at: &str, source: u8) -> Result<()> {
    let target: Option<u8> = ask::first(conn, "SELECT @@lower_case_table_names", || {
        format!("ask {at} for lower_case_table_names")
    })
    .await?;
    if target == Some(source) {
        return Ok(());
    }
    let target = target.map_or_else(|| "unknown".into(), |n| n.to_string());
    Err(Error::refused(format!(
        "{at} has lower_case_table_names = {target}, the source had {source}"
    ))
    .hint("it is fixed when a data directory is made: restore with --into, or make another server"))
}

async fn set_global(conn: &mut Conn, name: &str, value: &str) -> Result<()> {
    ask::run(conn, format!("SET GLOBAL {name} = {value}"), || format!("set {name} = {value}")).await
}

/// Global variables that were changed for the time of the restore.
#[derive(Debug, Default)]
struct Globals {
    before: Vec<(String, String)>,
    /// Where a running server keeps them, too.
    half: Option<Half>,
}

impl Globals {
    /// Changes one and remembers what it was.
    async fn change(&mut self, conn: &mut Conn, name: &str, value: &str) -> Result<()> {
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
    async fn change_if_known(&mut self, conn: &mut Conn, name: &str, value: &str) -> Result<()> {
        let known: Vec<(String, String)> =
            ask::rows(conn, format!("SHOW GLOBAL VARIABLES LIKE '{name}'"), || {
                format!("read {name}")
            })
            .await?;
        if known.is_empty() { Ok(()) } else { self.change(conn, name, value).await }
    }

    /// Puts all of them back, the last one first: then the restore has come to its end.
    async fn put_back(&mut self, conn: &mut Conn) -> Result<()> {
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
