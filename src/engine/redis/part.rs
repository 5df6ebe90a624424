//! Restores some of the keys: the instant is brought back in a scratch server, and what is chosen
//! of it is copied by DUMP and RESTORE, into a running server or cluster or into a folder.
//!
//! In the scratch server all expiries are moved far into the future, so that everything is there
//! to be read, also what has expired since; they are moved back, or on, when they are copied.
//!
//! **Invariant:** nothing is written into the target before all of the instant is in the scratch
//! server, and then only what was chosen. A server that is not empty is written into only if that
//! was asked for; keys that were not chosen are never touched.

use super::control::Control;
use super::folder::RedisFolder;
use super::scratch::Scratch;
use super::state::State;
use super::target::{RedisServer, check_empty, keyspace};
use super::{settle, version, walk};
use crate::engine::{
    Destination, Endpoint, Expired, Needs, OUT_OF_THE_WAY_MS, Target, TargetOptions, Ttl, Work,
};
use crate::error::{Class, Error, Result};
use crate::manifest::BaselineMeta;
use crate::record::{Applied, Cut, OpenBaseline, OpenLog, Server};
use redis::{Cmd, Value, cmd};

/// Keys looked at at once.
const SLICE: usize = 1000;

/// How many bytes of values are under way at once, unless one alone has more.
const BATCH_BYTES: u64 = 16 << 20;

/// What a folder's server is told while it is filled.
const FOLDER_SETTINGS: &str = "databases 1024\nappendonly yes\nappenddirname \"appendonlydir\"\n\
    appendfilename \"appendonly.aof\"\nauto-aof-rewrite-percentage 0";

/// A target for some keys.
#[derive(Debug)]
pub struct RedisPart {
    options: TargetOptions,
    needs: Needs,
    /// The version of a running target.
    version: Option<String>,
    state: Option<State>,
    expired: Option<Expired>,
}

/// What was copied.
#[derive(Debug, Default)]
struct Copied {
    keys: u64,
    lapsed: u64,
    before: u64,
    /// The highest database with keys.
    highest: u32,
}

impl RedisPart {
    /// A target with these options. Starts nothing yet.
    pub fn new(options: TargetOptions) -> Self {
        Self { options, needs: Needs::default(), version: None, state: None, expired: None }
    }

    async fn check(&mut self, needs: &Needs) -> Result<Server> {
        self.needs = needs.clone();
        let server = match self.options.destination.clone() {
            Destination::Folder(dir) => {
                RedisFolder::new(self.options.clone(), dir).check_fresh()?;
                Server { version: needs.version.clone(), ..Server::default() }
            }
            Destination::Running(at) => {
                let server = self.check_running(&at, needs).await?;
                self.version = Some(server.version.clone());
                server
            }
        };
        super::scratch::program_for(&needs.version, self.version.as_deref()).await?;
        Ok(server)
    }

    async fn check_running(&self, at: &Endpoint, needs: &Needs) -> Result<Server> {
        let mut control = Control::connect(at).await?;
        let server = control.server().await?;
        let refused = |why: String| Error::refused(format!("{at} {why}"));
        if needs.sources.contains(&server.identity) {
            return Err(refused("is a server that pitr captures from".into())
                .hint("restore into another server"));
        }
        if !version::can_take(&server.version, &needs.version) {
            return Err(refused(format!(
                "is version {}, which cannot take the data of version {}",
                server.version, needs.version
            )));
        }
        if control.info("replication").await?.get("role").is_none_or(|role| role != "master") {
            return Err(refused("is a replica of another server".into())
                .hint("name its master, or the node of a cluster that is one"));
        }
        if !self.options.in_place
            && let Some(what) = check_empty(&mut control).await?
        {
            let name = &self.options.name;
            return Err(refused(format!("is not empty: it has {what}")).hint(format!(
                "--in-place --confirm {name} replaces the keys that are chosen and leaves the others"
            )));
        }
        Ok(server)
    }

    /// Starts the scratch server, and lets it look through what it is going to get.
    async fn prepare(
        &mut self,
        baseline: &BaselineMeta,
        open: OpenBaseline,
        log: OpenLog,
        cut: &Cut,
    ) -> Result<()> {
        let (options, at_most) = (&self.options, self.version.as_deref());
        let state = State::begin(options, &self.needs, at_most, baseline, open, log, cut).await?;
        self.state = Some(state);
        Ok(())
    }

    fn server(&mut self) -> Result<&mut RedisServer> {
        let state = self.state.as_mut().map(|state| &mut state.server);
        state.ok_or_else(|| Error::bug("a step of a restore without the one before"))
    }

    async fn copy_all(&mut self, applied: &Applied) -> Result<String> {
        self.server()?.finish(applied).await?;
        let Some(state) = self.state.take() else {
            return Err(Error::bug("finish without replay"));
        };
        let unknown_commands = state.server.expired().unwrap_or_default().unknown_commands;
        let mut from = Control::connect(state.endpoint()).await?;
        let expiry = self.options.expiry;
        let mut expired = Expired { policy: expiry.ttl, unknown_commands, ..Expired::default() };
        if expiry.ttl == Ttl::Shift {
            expired.shift_ms = expiry.by_ms();
        }
        if expiry.ttl == Ttl::Persist {
            let databases = keyspace(&mut from).await?.databases;
            let at_ms = expiry.at_ms() + OUT_OF_THE_WAY_MS;
            let settled = settle::persist(&mut from, &databases, at_ms).await?;
            expired.persisted = Some(settled.persisted);
            expired.expired_before = Some(settled.deleted);
        }
        let (copied, into) = match self.options.destination.clone() {
            Destination::Running(at) => (self.copy(&mut from, &at).await?, at.to_string()),
            Destination::Folder(dir) => {
                let mut folder = RedisFolder::new(self.options.clone(), dir.clone());
                folder.is_to_be(self.needs.setup.as_ref());
                folder.begin()?;
                let needed = &self.needs.version;
                let new = Scratch::start(needed, None, Some(&dir), FOLDER_SETTINGS).await?;
                let copied = self.copy(&mut from, &new.endpoint.clone()).await?;
                rewrite(&mut Control::connect(&new.endpoint).await?).await?;
                new.shut_down().await?;
                folder.make_room(copied.highest);
                folder.finish_filled().await?;
                (copied, dir.display().to_string())
            }
        };
        if expiry.ttl != Ttl::Persist {
            expired.expired_before = Some(copied.before);
        }
        if expiry.ttl == Ttl::Absolute {
            expired.lapsed = Some(copied.lapsed);
        }
        self.expired = Some(expired);
        Ok(format!(
            "{} keys ({}) were copied into {into}, each with the expiry that it is to have; the \
             scratch server had acknowledged the last of {} records",
            copied.keys, self.options.keys, applied.records
        ))
    }

    async fn copy(&self, from: &mut Control, to: &Endpoint) -> Result<Copied> {
        let mut writer = Writer::connect(to).await?;
        let mut databases = keyspace(from).await?.databases;
        databases.retain(|(db, _)| self.options.keys.has_database(*db));
        let most = databases.iter().map(|(db, _)| *db).max().unwrap_or(0);
        writer.check_databases(most).await?;
        if self.options.keys.is_all() {
            let functions: Vec<u8> = from.ask(&["FUNCTION", "DUMP"]).await?;
            writer.write(cmd("FUNCTION").arg("RESTORE").arg(functions)).await?;
        }
        let mut copied = Copied { highest: most, ..Copied::default() };
        let now_ms = writer.home.time().await?.as_micros().div_euclid(1000);
        for (db, _) in databases {
            let () = from.ask(&["SELECT", &db.to_string()]).await?;
            writer.select(db).await?;
            let mut cursor = b"0".to_vec();
            loop {
                let scan = cmd("SCAN").arg(&cursor).arg("COUNT").arg(SLICE).to_owned();
                let (next, mut names): (Vec<u8>, Vec<Vec<u8>>) = from.run(&scan).await?;
                names.retain(|name| self.options.keys.has_key(name));
                self.copy_keys(from, &mut writer, names, now_ms, &mut copied).await?;
                if next == b"0" {
                    break;
                }
                cursor = next;
            }
        }
        Ok(copied)
    }

    async fn copy_keys(
        &self,
        from: &mut Control,
        writer: &mut Writer,
        names: Vec<Vec<u8>>,
        now_ms: i64,
        copied: &mut Copied,
    ) -> Result<()> {
        let of = |word: &str, name: &Vec<u8>| cmd(word).arg(name).to_owned();
        let ask: Vec<Cmd> = names.iter().map(|name| of("PEXPIRETIME", name)).collect();
        let expiries: Vec<i64> = from.each(&ask).await?;
        let mut chosen = vec![];
        for (name, at) in names.into_iter().zip(expiries) {
            match self.expiry(at, now_ms) {
                Fate::Copy(at) => chosen.push((name, at)),
                Fate::Lapsed => copied.lapsed += 1,
                Fate::Before => copied.before += 1,
            }
        }
        let ask: Vec<Cmd> = chosen
            .iter()
            .map(|(name, _)| cmd("MEMORY").arg("USAGE").arg(name).to_owned())
            .collect();
        let sizes: Vec<Option<u64>> = from.each(&ask).await?;
        let mut rest = chosen.as_slice();
        let mut sizes = sizes.iter();
        while !rest.is_empty() {
            let mut bytes = 0;
            let mut count = 0;
            while count < rest.len() && (count == 0 || bytes < BATCH_BYTES) {
                bytes += sizes.next().copied().flatten().unwrap_or(0);
                count += 1;
            }
            let (batch, behind) = rest.split_at_checked(count).unwrap_or_default();
            let ask: Vec<Cmd> = batch.iter().map(|(name, _)| of("DUMP", name)).collect();
            let values: Vec<Option<Vec<u8>>> = from.each(&ask).await?;
            self.write(writer, batch, values).await?;
            copied.keys += batch.len() as u64;
            rest = behind;
        }
        Ok(())
    }

    async fn write(
        &self,
        writer: &mut Writer,
        batch: &[(Vec<u8>, i64)],
        values: Vec<Option<Vec<u8>>>,
    ) -> Result<()> {
        let mut commands = vec![];
        let by_ms = self.back_ms();
        for ((name, at), value) in batch.iter().zip(values) {
            let shown = name.escape_ascii();
            let Some(mut value) = value else {
                return Err(Error::bug(format!("the scratch server lost the key {shown}")));
            };
            if value.first().is_some_and(|kind| walk::has_field_expiries(*kind)) {
                // Both kinds of servers have their own forms; the type says whose it is.
                value = walk::shift_payload(&value, by_ms)?;
            }
            let mut restore = cmd("RESTORE");
            restore.arg(name).arg(*at).arg(value).arg("ABSTTL");
            if self.options.in_place {
                restore.arg("REPLACE");
            }
            commands.push(restore);
        }
        for answer in writer.each(&commands).await? {
            if answer != Value::Okay {
                return Err(Error::new(Class::Finding, format!("RESTORE gave {answer:?}")));
            }
        }
        let ask: Vec<Cmd> =
            batch.iter().map(|(name, _)| cmd("PEXPIRETIME").arg(name).to_owned()).collect();
        let now_ms = writer.home.time().await?.as_micros().div_euclid(1000);
        for ((name, at), found) in batch.iter().zip(writer.each(&ask).await?) {
            let expected = if *at == 0 { -1 } else { *at };
            let has_gone = *at > 0 && *at <= now_ms + 1000 && found == Value::Int(-2);
            // A hash goes with the last of its fields.
            if found != Value::Int(expected) && !has_gone && found != Value::Int(-2) {
                return Err(Error::new(
                    Class::Finding,
                    format!("key {} expires at {found:?} and not {expected}", name.escape_ascii()),
                ));
            }
        }
        Ok(())
    }

    /// How far expiries are moved from the scratch server to the target.
    fn back_ms(&self) -> i64 {
        let shift = if self.options.expiry.ttl == Ttl::Shift {
            self.options.expiry.by_ms().unwrap_or(0)
        } else {
            0
        };
        shift - OUT_OF_THE_WAY_MS
    }

    /// What becomes of a key that expires at `at` in the scratch server.
    fn expiry(&self, at: i64, now_ms: i64) -> Fate {
        if at < 0 {
            return Fate::Copy(0);
        }
        let real = at - OUT_OF_THE_WAY_MS;
        let expiry = self.options.expiry;
        match expiry.ttl {
            _ if real < expiry.at_ms() => Fate::Before,
            Ttl::Absolute if real < now_ms => Fate::Lapsed,
            // Nothing has an expiry any more.
            Ttl::Persist => Fate::Copy(0),
            Ttl::Absolute | Ttl::Shift => Fate::Copy(at + self.back_ms()),
        }
    }
}

/// What becomes of a key.
enum Fate {
    /// It is copied, with this expiry; 0 is none.
    Copy(i64),
    /// It was alive at the instant, and is past its expiry now.
    Lapsed,
    /// It was past its expiry at the instant.
    Before,
}

/// Lets a server write what it has as a new base, and waits for that.
async fn rewrite(control: &mut Control) -> Result<()> {
    let _: String = control.ask(&["BGREWRITEAOF"]).await?;
    loop {
        let info = control.info("persistence").await?;
        let is = |key: &str, value: &str| info.get(key).is_some_and(|found| found == value);
        if is("aof_rewrite_in_progress", "0") && is("aof_rewrite_scheduled", "0") {
            if is("aof_last_bgrewrite_status", "ok") {
                return Ok(());
            }
            return Err(Error::new(Class::Unavailable, "the server could not write its data"));
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// Writes into a server, or into the node of a cluster that has the key.
struct Writer {
    home: Control,
    at: Endpoint,
    in_cluster: bool,
    /// Other nodes met.
    nodes: Vec<(String, Control)>,
}

impl Writer {
    async fn connect(at: &Endpoint) -> Result<Self> {
        let mut home = Control::connect(at).await?;
        let cluster = home.info("cluster").await?;
        let in_cluster = cluster.get("cluster_enabled").is_some_and(|on| on == "1");
        Ok(Self { home, at: at.clone(), in_cluster, nodes: vec![] })
    }

    async fn check_databases(&mut self, most: u32) -> Result<()> {
        if self.in_cluster && most > 0 {
            return Err(Error::refused(format!(
                "{} is a cluster, which has database 0 only, and there are keys in {most}",
                self.at
            ))
            .hint("choose the keys of database 0 with --db 0"));
        }
        let databases = self.home.setting("databases").await.and_then(|n| n.parse().ok());
        super::examine::check_databases(most, if self.in_cluster { None } else { databases })
    }

    async fn select(&mut self, db: u32) -> Result<()> {
        if self.in_cluster { Ok(()) } else { self.home.ask(&["SELECT", &db.to_string()]).await }
    }

    async fn write(&mut self, command: &Cmd) -> Result<()> {
        self.home.run(command).await
    }

    async fn each(&mut self, commands: &[Cmd]) -> Result<Vec<Value>> {
        if !self.in_cluster {
            return self.home.each(commands).await;
        }
        let mut answers = vec![];
        for command in commands {
            let moved = match self.home.run_or_moved(command).await? {
                Ok(answer) => {
                    answers.push(answer);
                    continue;
                }
                Err(moved) => moved,
            };
            answers.push(self.node(&moved).await?.run(command).await?);
        }
        Ok(answers)
    }

    /// The node at `address`, as a cluster names it.
    async fn node(&mut self, address: &str) -> Result<&mut Control> {
        let known = self.nodes.iter().position(|(at, _)| at == address);
        let place = match known {
            Some(place) => place,
            None => {
                let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
                let mut at = self.at.clone();
                if !host.is_empty() {
                    host.clone_into(&mut at.host);
                }
                at.port = port.parse().map_err(|_| {
                    Error::corrupt(format!("{} names a node at {address}", self.at))
                })?;
                self.nodes.push((address.to_owned(), Control::connect(&at).await?));
                self.nodes.len() - 1
            }
        };
        let node = self.nodes.get_mut(place).map(|(_, node)| node);
        node.ok_or_else(|| Error::bug("a node is lost"))
    }
}

impl Target for RedisPart {
    fn preflight<'a>(&'a mut self, needs: &'a Needs) -> Work<'a, Server> {
        Box::pin(self.check(needs))
    }

    fn reads_ahead(&self) -> bool {
        true
    }

    fn examine<'a>(
        &'a mut self,
        baseline: &'a BaselineMeta,
        open: OpenBaseline,
        log: OpenLog,
        cut: &'a Cut,
    ) -> Work<'a, ()> {
        Box::pin(self.prepare(baseline, open, log, cut))
    }

    fn load<'a>(&'a mut self, baseline: &'a BaselineMeta, open: OpenBaseline) -> Work<'a, ()> {
        Box::pin(async move { self.server()?.load(baseline, open).await })
    }

    fn replay<'a>(
        &'a mut self,
        baseline: &'a BaselineMeta,
        log: OpenLog,
        cut: &'a Cut,
    ) -> Work<'a, Applied> {
        Box::pin(async move { self.server()?.replay(baseline, log, cut).await })
    }

    fn finish<'a>(&'a mut self, applied: &'a Applied) -> Work<'a, String> {
        Box::pin(self.copy_all(applied))
    }

    fn expired(&self) -> Option<Expired> {
        self.expired.clone()
    }
}
