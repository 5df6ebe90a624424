//! A MySQL server that is restored into: one that runs, or a fresh folder.
//!
//! The log is replayed by the target's own applier, with pitr as its replication source. While
//! that goes on the target has settings that suit it; what they were before is put back at the
//! end. A folder is filled by a scratch server and left cleanly shut down.
//!
//! **Invariant:** a folder whose restore did not come to its end holds a file that says so, and
//! a server keeps its replication settings then: neither can be taken for a restored one.

use super::accounts::{self, Account};
use super::load::{self, Baseline};
use super::server::{LARGEST_PACKET, ScratchServer, Setup};
use super::{ask, preflight, sql, tools};
use crate::durable;
use crate::engine::{Endpoint, Needs, Target, TargetOptions, Work};
use crate::error::{Error, Result};
use crate::manifest::BaselineMeta;
use crate::record::{Applied, Cut, OpenLog, Server};
use bytes::Bytes;
use mysql_async::Conn;
use std::path::PathBuf;
use tokio::sync::mpsc;

/// The file in a folder that is not restored to its end.
const UNFINISHED: &str = "UNFINISHED.txt";
/// The data directory within a folder.
const DATA: &str = "data";

/// A MySQL server on its way to an earlier state.
#[derive(Debug)]
pub struct MysqlTarget {
    options: TargetOptions,
    place: Place,
    needs: Needs,
    session: Option<Conn>,
    globals: Globals,
    kept: Vec<Account>,
}

#[derive(Debug)]
enum Place {
    Running(Endpoint),
    Folder { dir: PathBuf, server: Option<ScratchServer> },
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
            kept: vec![],
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
            Place::Folder { dir, .. } => preflight::folder(dir, needs).await,
            Place::Running(endpoint) => {
                let mut conn = sql::connect(endpoint).await?;
                ask::run(&mut conn, "SET SESSION autocommit = 1", || "set autocommit".into())
                    .await?;
                let server = preflight::running(&mut conn, needs, &at).await?;
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
        self.kept = load::load(baseline, &server, session, &me).await?;
        load::take_over_gtids(session, &meta.position.gtids).await
    }

    /// Makes the target ready to take a baseline: the last point at which nothing was changed.
    async fn prepare(&mut self, baseline: &Baseline) -> Result<()> {
        let facts = baseline.facts();
        match &mut self.place {
            Place::Folder { dir, server } => {
                durable::create_dir_all(dir)?;
                let note = "This restore has not come to its end: the data here is not usable.\n";
                durable::replace(&dir.join(UNFINISHED), note.as_bytes())?;
                let setup = Setup {
                    data: dir.join(DATA),
                    lower_case_table_names: facts.lower_case_table_names,
                    page_bytes: facts.page_bytes,
                    partial_revokes: facts.partial_revokes,
                    server_id: preflight::free_server_id(&self.needs.origins),
                };
                let started = server.insert(ScratchServer::start(&setup).await?);
                self.session = Some(started.connect().await?);
            }
            Place::Running(endpoint) => {
                let at = endpoint.to_string();
                let conn =
                    self.session.as_mut().ok_or_else(|| Error::bug("no preflight was made"))?;
                check_names(conn, &at, facts.lower_case_table_names).await?;
                if facts.partial_revokes {
                    // It stays on: with partial revokes in force it cannot be switched off.
                    set_global(conn, "partial_revokes", "ON").await?;
                }
            }
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

    fn load<'a>(
        &'a mut self,
        baseline: &'a BaselineMeta,
        pieces: mpsc::Receiver<Result<Bytes>>,
    ) -> Work<'a, ()> {
        Box::pin(self.load_baseline(baseline, pieces))
    }

    fn replay<'a>(
        &'a mut self,
        _baseline: &'a BaselineMeta,
        _log: OpenLog,
        _cut: &'a Cut,
    ) -> Work<'a, Applied> {
        Box::pin(async { Err(Error::bug("replay is not there yet")) })
    }

    fn finish<'a>(&'a mut self, _applied: &'a Applied) -> Work<'a, String> {
        Box::pin(async { Err(Error::bug("finish is not there yet")) })
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
struct Globals(Vec<(String, String)>);

impl Globals {
    /// Changes one and remembers what it was.
    async fn change(&mut self, conn: &mut Conn, name: &str, value: &str) -> Result<()> {
        let before: Option<String> =
            ask::first(conn, format!("SELECT CAST(@@GLOBAL.{name} AS CHAR)"), || {
                format!("read {name}")
            })
            .await?;
        let before = before.ok_or_else(|| Error::unavailable(format!("{name} has no value")))?;
        set_global(conn, name, value).await?;
        self.0.push((name.to_owned(), before));
        Ok(())
    }

    /// Puts all of them back, the last one first.
    async fn put_back(&mut self, conn: &mut Conn) -> Result<()> {
        while let Some((name, value)) = self.0.pop() {
            let quoted = if value.bytes().all(|b| b.is_ascii_digit()) {
                value
            } else {
                format!("'{value}'")
            };
            set_global(conn, &name, &quoted).await?;
        }
        Ok(())
    }
}
