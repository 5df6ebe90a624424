//! A MySQL or MariaDB server that is restored into: one that runs, or a fresh folder.
//!
//! The way is the same for both; where their words differ, the modules below know them.
//!
//! The log is replayed by the target's own applier, with pitr as its replication source. While
//! that goes on the target has settings that suit it; what they were before is put back at the
//! end. A folder is filled by a scratch server and left cleanly shut down.
//!
//! **Invariant:** a folder whose restore did not come to its end holds a file that says so, and
//! a server keeps its replication settings then: neither can be taken for a restored one.

use super::accounts::{self, Account};
use super::apply::way::Way;
use super::apply::{self, Names};
use super::events::States;
use super::executed::Executed;
use super::flavor::Family;
use super::groups::Groups;
use super::half::{self, Half};
use super::load::resume::{self, Whole};
use super::load::{self, Accounts, Baseline, Rights};
use super::merge::Merge;
use super::preflight::{Attempt, GoesOn};
use super::serve::{Identity, ReplaySource};
use super::server::{LARGEST_PACKET, ScratchServer, Setup};
use super::settings::{Globals, set_global, workers};
use super::walk::Program;
use super::{
    ask, baseline, canary, check, digest, inspect, only, preflight, replay, sql, standing, tools,
};
use crate::clock::Timestamp;
use crate::durable;
use crate::engine::canary::judge;
use crate::engine::inspect::{Check, Outcome};
use crate::engine::{
    self, Apply, Endpoint, Meter, Needs, Target, TargetOptions, Work, tls, unfinished,
};
use crate::error::{Class, Context, Error, Result};
use crate::manifest::BaselineMeta;
use crate::record::{Applied, Contents, Cut, OpenBaseline, OpenLog, Server};
use mysql_async::Conn;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The data directory within a folder.
const DATA: &str = "data";
/// Within a folder, where the log waits to be applied.
const RELAY: &str = "relay";
/// What a restore makes in a folder, besides the mark of one that is not finished.
const OWN: [&str; 2] = [DATA, RELAY];

/// How often a load whose connections were lost is gone on with before a further table is whole.
const TRIES: u32 = 5;
/// How long a running server may be away meanwhile.
const AWAY: Duration = Duration::from_mins(2);
/// What helps where that does not help.
const GOES_ON: &str = "run the same restore again: it goes on with the tables that are whole";
/// How often it is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A MySQL server on its way to an earlier state.
#[derive(Debug)]
pub struct MysqlTarget {
    options: TargetOptions,
    place: Place,
    needs: Needs,
    /// That of the source: a target of another one is refused.
    family: Family,
    /// The program that fills a folder.
    program: String,
    session: Option<Conn>,
    /// The number of one that was lost, which the server may not have noticed.
    lost: Option<u32>,
    /// The tables of the baseline that are whole in a running server before they are loaded.
    whole: Whole,
    globals: Globals,
    /// Accounts that are not what they were at the source.
    accounts: Accounts,
    /// What the scheduled events have to be at the end.
    events: Option<States>,
    lower_case_table_names: u8,
    /// How the log is applied.
    way: Way,
    meter: Arc<Meter>,
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
            family: Family::MySql,
            program: String::new(),
            session: None,
            lost: None,
            whole: Whole::default(),
            globals: Globals::default(),
            accounts: Accounts::default(),
            events: None,
            lower_case_table_names: 0,
            way: Way::native("the server is pitr's own"),
            meter: Arc::default(),
        }
    }

    /// The place, for messages.
    fn at(&self) -> String {
        match &self.place {
            Place::Running(endpoint) => endpoint.to_string(),
            Place::Folder { dir, .. } => dir.display().to_string(),
        }
    }

    /// Whether the target replicates by places in the log, as not all transactions have GTIDs.
    fn by_place(&self) -> bool {
        self.family == Family::MySql && self.needs.anonymous && !self.way.is_sql()
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
        let source = preflight::source(needs)?;
        self.family = source.family;
        let at = self.at();
        if self.options.apply == Apply::Merged {
            check_can_merge(needs, source.family)?;
        }
        match &self.place {
            Place::Folder { .. } if self.options.apply == Apply::Sql => {
                Err(Error::usage("--apply sql is for running servers")
                    .hint("name one with --target, or leave --apply away"))
            }
            Place::Folder { dir, .. } => {
                unfinished::check(dir, &OWN)?;
                let (program, server) = preflight::folder(needs, source).await?;
                self.program = program;
                if self.options.apply == Apply::Merged {
                    self.way = Way::merged();
                }
                Ok(server)
            }
            Place::Running(endpoint) => {
                let mut conn = sql::connect(endpoint).await?;
                ask::keep_open(&mut conn).await?;
                ask::run(&mut conn, "SET SESSION autocommit = 1", || "set autocommit".into())
                    .await?;
                let asked = self.options.apply;
                let attempt =
                    Attempt { leftover: self.options.leftover, purpose: &self.options.purpose };
                let (server, way, goes_on) =
                    preflight::running(&mut conn, needs, source, asked, &at, attempt).await?;
                self.way = way;
                if let Some(GoesOn { half, whole }) = goes_on {
                    self.globals.half = Some(half);
                    self.whole = whole;
                }
                if !self.way.is_sql() && self.listen().ip().is_loopback() {
                    preflight::same_host(endpoint).await?;
                }
                self.session = Some(conn);
                Ok(server)
            }
        }
    }

    /// Loads the baseline, and goes on where connections with a running server were lost.
    async fn load_baseline(&mut self, meta: &BaselineMeta, open: OpenBaseline) -> Result<()> {
        let mut tries = 0;
        let mut done = self.load_once(meta, &open).await;
        while let Err(error) = done {
            let is_lost = error.is_worth_again() || ask::is_lost(&error);
            if !is_lost || !matches!(self.place, Place::Running(_)) {
                return Err(error);
            }
            if tries == TRIES {
                return Err(error
                    .context(format!("given up after {TRIES} attempts to go on"))
                    .hint(GOES_ON));
            }
            tries += 1;
            tracing::warn!("{error}");
            let before = self.whole.len();
            done = self.come_back().await;
            if done.is_ok() {
                let whole = self.whole.len();
                tracing::warn!(
                    "the load goes on, attempt {tries} of {TRIES}: {whole} tables are whole"
                );
                tries = if whole > before { 0 } else { tries };
                done = self.load_once(meta, &open).await;
            }
        }
        Ok(())
    }

    /// Connects again to a running server, and takes over what this restore has done there.
    async fn come_back(&mut self) -> Result<()> {
        let Place::Running(endpoint) = &self.place else {
            return Err(Error::bug("nobody else may end a scratch server's connections"));
        };
        let at = endpoint.to_string();
        self.lost = self.session.take().map(|session| session.id()).or(self.lost);
        let begun = Instant::now();
        tokio::time::sleep(LOOK_EVERY).await;
        let mut conn = loop {
            match sql::connect(endpoint).await {
                Ok(conn) => break conn,
                Err(error) if error.class() == Class::Unavailable && begun.elapsed() < AWAY => {
                    tracing::debug!("{error}");
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                Err(error) => return Err(error.hint(GOES_ON)),
            }
        };
        ask::keep_open(&mut conn).await?;
        ask::run(&mut conn, "SET SESSION autocommit = 1", || "set autocommit".into()).await?;
        if let Some(id) = self.lost {
            half::end_session(&mut conn, id).await?;
        }
        let (half, whole) = match (Half::look(&mut conn).await?, &self.globals.half) {
            (Some(half), Some(ours)) if half.is_same(ours) => half.resume(&mut conn).await?,
            _ => {
                return Err(Error::unavailable(format!(
                    "{at} does not hold what this restore began there any more"
                )));
            }
        };
        self.globals = Globals::default();
        self.globals.half = Some(half);
        self.whole = whole;
        self.lost = None;
        self.session = Some(conn);
        Ok(())
    }

    async fn load_once(&mut self, meta: &BaselineMeta, open: &OpenBaseline) -> Result<()> {
        let place = &meta.position;
        if self.by_place() && u32::try_from(place.offset).is_err() {
            return Err(Error::refused(format!(
                "the baseline stands at {place}, and without GTIDs no replica can ask for a place \
                 beyond 4 GiB"
            ))
            .hint("restore from a baseline in another file, or with --apply sql"));
        }
        let baseline = Baseline::open(open()?).await?;
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
        let whole = matches!(self.place, Place::Running(_)).then_some(&self.whole);
        self.accounts =
            load::load(baseline, &server, session, &me, rights, whole, &self.meter).await?;
        if !self.options.databases.is_empty() {
            // Better now than after the replay; one may still be made there.
            only::check_foreign_keys(session, &self.options.databases).await?;
        }
        if !self.way.admin || !self.way.gtids {
            // Its GTIDs stay the target's own.
            return Ok(());
        }
        standing::take_over(session, self.family, &meta.position.gtids).await
    }

    async fn replay_log(
        &mut self,
        baseline: &BaselineMeta,
        log: OpenLog,
        cut: &Cut,
    ) -> Result<Applied> {
        let (listen, family) = (self.listen(), self.family);
        let (by_place, is_merged) = (self.by_place(), self.way.is_merged());
        let is_running = matches!(self.place, Place::Running(_));
        let conn = self.session()?;
        if is_running {
            resume::end(conn).await?;
        }
        let replica_id: Option<u32> =
            ask::first(conn, "SELECT @@server_id", || "ask for server_id".into()).await?;
        let replica_id = replica_id.ok_or_else(|| Error::bug("the target has no server_id"))?;
        let base: Executed = baseline.position.gtids.parse()?;
        let events = States::read(conn).await?;
        let merge = if is_merged { Some(merge(conn).await?) } else { None };
        let lanes = merge.as_ref().map(|merge| merge.lanes);
        let mut program = Program { log, cut: cut.clone(), base, events, by_place, merge };
        if family == Family::MariaDb {
            program.find_place().await?;
        }
        if self.way.is_sql() {
            return self.apply_as_sql(&program).await;
        }
        let mut taken = self.needs.origins.clone();
        taken.push(replica_id);
        let identity = Identity {
            family,
            version: baseline.server.version.clone(),
            server_id: preflight::free_server_id(&taken),
            uuid: uuid::Uuid::new_v4().to_string(),
            by_place,
        };
        let source = ReplaySource::bind(listen, identity, replica_id, program).await?;
        self.make_fast(lanes).await?;
        let address = self.reachable(source.address()?).await?;
        let conn = self.session()?;
        let served = source.served();
        let replay = async {
            let from = by_place.then_some(&baseline.position);
            replay::start(conn, family, &source, address, from).await?;
            let all = replay::wait(conn, family, served).await?;
            replay::end(conn).await?;
            if is_merged {
                // Of those that were merged the target has the names of the first ones only. They
                // are looked at before all names are set: afterwards they prove nothing.
                standing::compare(conn, family, &all.named).await?;
                standing::take_over(conn, family, &all.gtids.to_string()).await?;
            }
            standing::settle(conn, &all.gtids).await?;
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
        self.make_fast(None).await?;
        let names = if self.way.gtids { Names::Kept } else { Names::New };
        let Place::Running(endpoint) = &self.place else {
            return Err(Error::bug("a folder's log is applied by its own server"));
        };
        let conn = self.session.as_mut().ok_or_else(|| Error::bug("no connection"))?;
        let family = self.family;
        let before = match family {
            Family::MySql => load::executed(conn).await?,
            Family::MariaDb => Executed::default(),
        };
        let served = apply::run(program, endpoint, conn, family, names)
            .await
            .map_err(|error| error.context(format!("replay into {endpoint}")))?;
        self.events = Some(served.events);
        let mut applied = served.applied;
        if family == Family::MariaDb {
            if self.way.admin {
                standing::settle_logged(conn, &served.gtids).await?;
            }
        } else if names == Names::Kept {
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

    /// Settings for the time of the replay. `lanes` is how many merged transactions the target gets
    /// to apply at once, if it gets them merged.
    async fn make_fast(&mut self, lanes: Option<usize>) -> Result<()> {
        if !self.way.admin {
            return Ok(());
        }
        let (running, by_place) = (matches!(self.place, Place::Running(_)), self.by_place());
        let conn = self.session.as_mut().ok_or_else(|| Error::bug("no connection"))?;
        let globals = &mut self.globals;
        globals.for_replay(conn, self.family, running, by_place, lanes).await
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
        let scheduled = events.put_in_force(&mut other, self.family).await?;
        other.disconnect().await.unavailable(|| "close a connection".into())?;
        let running = matches!(self.place, Place::Running(_));
        let databases = std::mem::take(&mut self.options.databases);
        let (family, admin) = (self.family, self.way.admin);
        let conn = self.session()?;
        let kept =
            if databases.is_empty() { None } else { Some(only::keep(conn, &databases).await?) };
        let gtids = applied.gtids.parse()?;
        // A MariaDB whose state may not be set has that of its own transactions, too.
        let is_known = family == Family::MySql || admin;
        let tables = check::everything(conn, family, is_known.then_some(&gtids)).await?;
        if running {
            // What was committed under looser settings is made durable before those come back.
            ask::run(conn, "FLUSH NO_WRITE_TO_BINLOG LOGS", || "make everything durable".into())
                .await?;
        }
        let mut globals = std::mem::take(&mut self.globals);
        globals.put_back(self.session()?).await?;
        let gtids = match (family, self.way.gtids, self.way.admin) {
            (Family::MariaDb, _, false) => {
                "the replayed transactions have their GTIDs in the target's binlog, if it writes \
                 one, but gtid_slave_pos, which the account may not set, is what it was"
            }
            (Family::MariaDb, _, true) => "gtid_slave_pos is exactly that of the instant",
            (_, false, _) if self.needs.anonymous => {
                "the transactions are the target's own, as those of the source had no GTIDs"
            }
            (_, false, _) => "the transactions have new names, as gtid_mode is not ON",
            (_, true, false) => {
                "gtid_executed has the replayed transactions, but not those of the baseline, \
                 which the account may not set"
            }
            (_, true, true) if self.needs.anonymous => {
                "everything was applied up to its place in the log, gtid_executed is that of the \
                 instant"
            }
            (_, true, true) => "gtid_executed is exactly that of the instant",
        };
        let mut said = format!(
            "{gtids}, {tables} tables checked, {scheduled} scheduled events in their state"
        );
        let prepared = check::prepared(self.session()?).await?;
        if prepared > 0 {
            said.push_str(&format!(", {prepared} XA transactions prepared (XA RECOVER)"));
        }
        said.extend(kept.map(|kept| format!(", {kept}")));
        if let Some(session) = self.session.take() {
            session.disconnect().await.unavailable(|| "close a connection".into())?;
        }
        for (privilege, who) in self.unknown_rights() {
            said.push_str(&format!(", {who} without {privilege}, which this server does not have"));
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
                said.push_str(", shut down in order; start it with ");
                said.push_str(&self.program);
                said.push_str(" --datadir=");
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
                    family: self.family,
                    program: self.program.clone(),
                    data: dir.join(DATA),
                    relay: dir.join(RELAY),
                    lower_case_table_names: facts.lower_case_table_names,
                    page_bytes: facts.page_bytes,
                    partial_revokes: facts.partial_revokes,
                    server_id: preflight::free_server_id(&self.needs.origins),
                    anonymous: self.needs.anonymous,
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
                let switch = check_partial_revokes(conn, &at, facts.partial_revokes).await?;
                if switch && !self.way.admin {
                    return Err(Error::refused(format!(
                        "{at} has partial_revokes = OFF, the source had ON"
                    ))
                    .hint("SET PERSIST partial_revokes = ON"));
                }
                if self.globals.half.is_none() {
                    let (name, purpose) = (&self.options.name, &self.options.purpose);
                    self.globals.half = Some(Half::begin(conn, name, purpose).await?);
                }
                if switch {
                    // It stays on: with partial revokes in force it cannot be switched off.
                    set_global(conn, "partial_revokes", "ON").await?;
                }
            }
        }
        if !self.way.admin {
            // That no event runs was seen by the preflight.
            return Ok(());
        }
        let running = matches!(self.place, Place::Running(_));
        let conn = self.session.as_mut().ok_or_else(|| Error::bug("no connection"))?;
        self.globals.change(conn, "event_scheduler", "OFF").await?;
        if running {
            // A crash of the host takes the end of the redo log: what a load that goes on counts
            // as whole was noted behind it.
            self.globals.change(conn, "innodb_flush_log_at_trx_commit", "2").await?;
            // Else a function that may do anything cannot be created where a binlog is written, by
            // nobody (error 1418).
            self.globals.change_if_known(conn, "log_bin_trust_function_creators", "1").await?;
        }
        self.globals.change(conn, "max_allowed_packet", &LARGEST_PACKET.to_string()).await
    }

    /// Rights of the source that the target does not know, and the accounts that lack them.
    fn unknown_rights(&self) -> impl Iterator<Item = (&str, String)> {
        self.accounts.unknown.iter().map(|(privilege, who)| {
            let who: Vec<String> = who.iter().map(Account::quoted).collect();
            (privilege.as_str(), who.join(" and "))
        })
    }
}

impl Target for MysqlTarget {
    fn preflight<'a>(&'a mut self, needs: &'a Needs) -> Work<'a, Server> {
        Box::pin(self.look(needs))
    }

    fn way(&self) -> Option<engine::Way> {
        let apply = self.way.by.word();
        Some(engine::Way { apply, why: self.way.why.clone() })
    }

    fn meter(&self) -> Option<Arc<Meter>> {
        Some(Arc::clone(&self.meter))
    }

    fn load<'a>(&'a mut self, baseline: &'a BaselineMeta, open: OpenBaseline) -> Work<'a, ()> {
        Box::pin(self.load_baseline(baseline, open))
    }

    fn replay<'a>(
        &'a mut self,
        baseline: &'a BaselineMeta,
        log: OpenLog,
        cut: &'a Cut,
    ) -> Work<'a, Applied> {
        Box::pin(self.replay_log(baseline, log, cut))
    }

    fn contents<'a>(&'a mut self, _baseline: &'a BaselineMeta) -> Work<'a, Option<Contents>> {
        Box::pin(async move {
            let mut conn = self.connect().await?;
            let schemas = digest::schemas(&mut conn).await?;
            digest::contents(&mut conn, &schemas).await.map(Some)
        })
    }

    fn inspect<'a>(
        &'a mut self,
        baseline: &'a BaselineMeta,
        is_finished: bool,
        canary: Option<Timestamp>,
    ) -> Work<'a, Vec<Check>> {
        Box::pin(async move {
            // Then its server is gone.
            if is_finished {
                return Ok(vec![]);
            }
            let mut conn = self.connect().await?;
            let mut checks = inspect::inspect(&mut conn).await?;
            for (privilege, who) in self.unknown_rights() {
                let what = format!("{who} without {privilege}, which this server does not have");
                checks.push(Check::new("accounts", Outcome::Skipped, what));
            }
            if let Some(to) = canary {
                let tables = baseline.contents.iter().flat_map(|contents| &contents.tables);
                let expected = tables.into_iter().any(|table| table.name == canary::TABLE);
                checks.push(judge(canary::read(&mut conn).await?, to, expected));
            }
            Ok(checks)
        })
    }

    fn finish<'a>(&'a mut self, applied: &'a Applied) -> Work<'a, String> {
        Box::pin(self.finish_and_check(applied))
    }
}

/// Whether `partial_revokes` has to be switched on, as it was on the source.
///
/// # Errors
/// Refused, if it is on and was off there: rights mean something else then.
async fn check_partial_revokes(conn: &mut Conn, at: &str, source: bool) -> Result<bool> {
    match (baseline::has_partial_revokes(conn).await?, source) {
        (true, false) => Err(Error::refused(format!(
            "{at} has partial_revokes = ON, the source had OFF: rights on `shop%` would be rights \
             on one schema of that name"
        ))
        .hint("SET PERSIST partial_revokes = OFF")),
        (target, source) => Ok(source && !target),
    }
}

/// How transactions are merged for a target that has its baseline.
async fn merge(conn: &mut Conn) -> Result<Merge> {
    let groups = Groups::read(conn).await?;
    // What it can never apply at once needs no other worker.
    let lanes = if groups == Groups::One { 1 } else { workers() };
    tracing::info!("merged transactions go in over {lanes} lanes");
    Ok(Merge { groups, lanes })
}

/// Whether transactions of this log can be merged.
fn check_can_merge(needs: &Needs, family: Family) -> Result<()> {
    let why = match family {
        Family::MariaDb => "the log of a MariaDB is not merged",
        Family::MySql if needs.anonymous => "transactions without GTIDs are not merged",
        Family::MySql => return Ok(()),
    };
    Err(Error::refused(format!("--apply merged: {why}")).hint("leave --apply away"))
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
