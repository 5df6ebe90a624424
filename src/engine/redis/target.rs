//! Restores into a running, empty server, as its master.
//!
//! `load` makes the target our replica and sends the baseline, `replay` sends the stream up to the
//! cut on the same connection, `finish` makes it a master of its own.
//!
//! **Invariant:** nothing on the target changes before `load`, and `finish` says `Ok` only if the
//! target acknowledged exactly the last byte of the last record and no command failed on it.

use super::control::Control;
use super::replay::Replay;
use super::serve::{Master, Replica};
use super::walk::flow::shift;
use super::{examine, lapsed, rdb, settle, version};
use crate::engine::OUT_OF_THE_WAY_MS;
use crate::engine::{Endpoint, Expired, Needs, Target, TargetOptions, Ttl, Work};
use crate::error::{Class, Error, Result};
use crate::manifest::BaselineMeta;
use crate::record::{Applied, Cut, OpenBaseline, OpenLog, Server};
use bytes::Bytes;
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How long the connection to the target stays without a byte before we send a PING: well below
/// the `repl-timeout` of 60 s after which it would give us up.
const PING_AFTER: Duration = Duration::from_secs(5);

/// How the replication ids begin that we make up, so that a target that was left half restored is
/// known: `pitr` in hexadecimal digits.
const REPLID_HEAD: &str = "70697472";

/// How long an incomplete record may be to be held back until its end is seen.
const HELD_MAX: usize = 1 << 20;

/// How long a master may take to notice that it is one.
const PROMOTION_MAX: Duration = Duration::from_secs(10);

/// A running server that is restored into.
#[derive(Debug)]
pub struct RedisServer {
    options: TargetOptions,
    endpoint: Endpoint,
    state: State,
    expired: Option<Expired>,
    /// How far expiries are moved, in ms.
    by_ms: Option<i64>,
    /// Whether others see to what becomes of expiries.
    is_scratch: bool,
}

/// How far the restore is.
#[derive(Debug)]
enum State {
    New,
    /// Fit and unchanged.
    Fit(Fitness),
    /// It has the baseline and is our replica.
    Loaded(Fitness, Replica),
    /// It has everything up to the cut and is our replica.
    Replayed(Fitness, Replayed),
    /// A step failed.
    Failed,
}

/// A target behind the last record.
#[derive(Debug)]
struct Replayed {
    replica: Replica,
    /// Whether a command of ours may follow.
    between_records: bool,
    unknown_commands: Vec<String>,
}

/// What is known of the target before anything is done to it.
#[derive(Debug, Clone, Copy)]
struct Fitness {
    /// How many databases it has, if it tells.
    databases: Option<u32>,
    /// Commands of a master that failed on it, over its life.
    failures: u64,
}

impl RedisServer {
    /// A target at `endpoint`. Connects to nothing yet.
    pub fn new(options: TargetOptions, endpoint: Endpoint) -> Self {
        let by_ms = options.expiry.by_ms();
        Self { options, endpoint, state: State::New, expired: None, by_ms, is_scratch: false }
    }

    /// A scratch server, in which no key expires: all expiries are far in the future.
    pub(super) fn scratch(options: TargetOptions, endpoint: Endpoint) -> Self {
        let by_ms = Some(OUT_OF_THE_WAY_MS);
        Self { by_ms, is_scratch: true, ..Self::new(options, endpoint) }
    }

    fn take_state(&mut self) -> State {
        std::mem::replace(&mut self.state, State::Failed)
    }

    async fn check(&self, needs: &Needs) -> Result<(Server, Fitness)> {
        let at = &self.endpoint;
        let mut control = Control::connect(at).await?;
        let server = control.server().await?;
        let refused = |why: String| Error::refused(format!("{at} {why}"));
        if needs.sources.contains(&server.identity) {
            return Err(refused("is a server that pitr captures from".into())
                .hint("restore into another server; start an empty one"));
        }
        if !version::can_take(&server.version, &needs.version) {
            return Err(refused(format!(
                "is version {}, which cannot take the data of version {}",
                server.version, needs.version
            ))
            .hint("start a target of the version that was captured, or a newer one"));
        }
        if control.info("cluster").await?.get("cluster_enabled").is_some_and(|on| on == "1") {
            return Err(refused("is in cluster mode, which knows no REPLICAOF".into()).hint(
                "with --key '*' the keys are copied one by one, which works towards a cluster",
            ));
        }
        let replication = control.info("replication").await?;
        if is_half_restored(&replication) {
            let port = at.port;
            return Err(refused(
                "is half restored: an attempt did not come to its end, and nobody feeds it any more"
                    .into(),
            )
            .hint(format!(
                "empty it: redis-cli -p {port} REPLICAOF NO ONE && redis-cli -p {port} FLUSHALL"
            )));
        }
        check_role(&replication).map_err(refused)?;
        if control.setting("tls-replication").await.as_deref() == Some("yes") {
            return Err(refused("wants its master to speak TLS, which pitr does not do".into())
                .hint(format!(
                    "on the target: redis-cli -p {} CONFIG SET tls-replication no",
                    at.port
                )));
        }
        check_empty(&mut control).await?.map_or(Ok(()), |what| {
            Err(refused(format!("is not empty: it has {what}"))
                .hint("restore into an empty server, or empty this one with FLUSHALL"))
        })?;
        let databases = control.setting("databases").await.and_then(|n| n.parse().ok());
        let failures = failures(&mut control).await?;
        Ok((server, Fitness { databases, failures }))
    }

    /// Makes the target our replica and sends it the baseline.
    async fn send_baseline(
        &self,
        baseline: &BaselineMeta,
        pieces: mpsc::Receiver<Result<Bytes>>,
    ) -> Result<Replica> {
        let master = Master::bind(self.options.listen, &self.endpoint).await?;
        let mut control = Control::connect(&self.endpoint).await?;
        let (ip, port) = (master.address.ip().to_string(), master.address.port().to_string());
        let () = control.ask(&["REPLICAOF", &ip, &port]).await?;
        let mut replica = master.accept().await?;
        let replid = format!("{REPLID_HEAD}{:032x}", rand::random::<u128>());
        match self.by_ms {
            None => {
                Self::copy(&mut replica, &replid, baseline, pieces).await?;
                // By itself it acknowledges once a second. Behind a copy of unknown length nothing
                // may be sent before it does: its end would not be found in what is read at once.
                replica.say(&[b"REPLCONF", b"GETACK", b"*"]).await?;
            }
            Some(by_ms) => {
                let mark = format!("{:032x}{:08x}", rand::random::<u128>(), rand::random::<u32>());
                replica.begin_marked_copy(&replid, &mark).await?;
                // What is wrong with the file comes as an error before its last piece.
                let mut pieces = shift(pieces, by_ms);
                while let Some(piece) = pieces.recv().await.transpose()? {
                    replica.copy(&piece).await?;
                }
                replica.copy(mark.as_bytes()).await?;
            }
        }
        // Its first acknowledgement says that it has loaded the file.
        while replica.applied(0, Instant::now() + PING_AFTER).await?.is_none() {
            replica.say(&[b"PING"]).await?;
        }
        Ok(replica)
    }

    /// Sends the baseline as it is.
    async fn copy(
        replica: &mut Replica,
        replid: &str,
        baseline: &BaselineMeta,
        mut pieces: mpsc::Receiver<Result<Bytes>>,
    ) -> Result<()> {
        replica.begin_copy(replid, baseline.bytes_raw).await?;
        let mut check = rdb::Check::new();
        // The last piece goes only once the file is known to be sound: a target that gets less
        // than was announced keeps what it has, which is nothing.
        let mut last = Bytes::new();
        while let Some(piece) = pieces.recv().await.transpose()? {
            check.update(&piece);
            if check.bytes() > baseline.bytes_raw {
                break;
            }
            replica.copy(&std::mem::replace(&mut last, piece)).await?;
        }
        if check.bytes() != baseline.bytes_raw {
            return Err(Error::corrupt(format!(
                "{} gave {} bytes instead of {}",
                baseline.name,
                check.bytes(),
                baseline.bytes_raw
            )));
        }
        check.finish().map_err(|e| e.context(&baseline.name))?;
        replica.copy(&last).await
    }

    /// Sends the stream up to the cut, and waits until the target has applied it.
    async fn send_stream(
        &self,
        mut replica: Replica,
        fitness: Fitness,
        baseline: &BaselineMeta,
        log: OpenLog,
        cut: &Cut,
    ) -> Result<(Applied, Replayed)> {
        let mut replay =
            Replay::new(log(), &baseline.position, cut, fitness.databases)?.moved(self.by_ms);
        let mut held = vec![];
        // Our own count behind the last record sent.
        let mut whole = replica.sent();
        loop {
            let step = match tokio::time::timeout(PING_AFTER, replay.next()).await {
                Ok(Ok(Some(step))) => step,
                Ok(Ok(None)) => break,
                Ok(Err(error)) => return Err(error),
                // A slow archive must not look like a dead master.
                Err(_) if replica.sent() == whole => {
                    replica.say(&[b"PING"]).await?;
                    whole = replica.sent();
                    continue;
                }
                Err(_) => continue,
            };
            let ready = step.whole.map(|n| held.len() + n);
            held.extend_from_slice(&step.bytes);
            let now = match ready {
                Some(ready) => ready,
                None if held.len() > HELD_MAX => held.len(),
                None => 0,
            };
            replica.send(held.get(..now).unwrap_or_default()).await?;
            held.drain(..now);
            if ready.is_some() {
                whole = replica.sent();
            }
        }
        // What is held belongs to a record that the cut goes through. If part of it was sent,
        // the target never gets its end and forgets it when it stops being our replica.
        let between_records = replica.sent() == whole;
        let applied = loop {
            if between_records {
                replica.say(&[b"REPLCONF", b"GETACK", b"*"]).await?;
            }
            if let Some(at) = replica.applied(whole, Instant::now() + PING_AFTER).await? {
                break at;
            }
        };
        if !between_records && applied != whole {
            return Err(Error::bug(format!(
                "the target is at {applied} although the last record ends at {whole}"
            )));
        }
        let unknown_commands = replay.unknown_commands();
        let applied = replay.finish().await;
        Ok((applied, Replayed { replica, between_records, unknown_commands }))
    }

    /// Makes the target a master and checks it.
    async fn promote(
        &self,
        fitness: Fitness,
        replayed: &mut Replayed,
        applied: &Applied,
    ) -> Result<(String, Expired)> {
        let mut control = Control::connect(&self.endpoint).await?;
        let failed = failures(&mut control).await?.saturating_sub(fitness.failures);
        let before = keyspace(&mut control).await?;
        let mut expired = self.count_lapsed(&mut control, replayed, &before).await?;
        let () = control.ask(&["REPLICAOF", "NO", "ONE"]).await?;
        let deadline = Instant::now() + PROMOTION_MAX;
        while control.info("replication").await?.get("role").is_none_or(|role| role != "master") {
            if Instant::now() > deadline {
                let at = &self.endpoint;
                return Err(Error::new(Class::Finding, format!("{at} stays a replica")));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if failed > 0 {
            return Err(Error::new(
                Class::Finding,
                format!("{failed} of the commands sent failed on {}", self.endpoint),
            )
            .hint("its log names them; a module or a renamed command may be missing there"));
        }
        if self.options.expiry.ttl == Ttl::Persist && !self.is_scratch {
            let at_ms = self.options.expiry.at_ms() + OUT_OF_THE_WAY_MS;
            let settled = settle::persist(&mut control, &before.databases, at_ms).await?;
            expired.persisted = Some(settled.persisted);
            expired.expired_before = Some(settled.deleted);
        }
        let said = format!(
            "the server acknowledged the last of {} records and none failed; it held {} keys in \
             {} databases, {} of them with an expiry",
            applied.records,
            before.keys,
            before.databases.len(),
            before.expires
        );
        Ok((said, expired))
    }

    /// Says what becomes of expiries, and counts what has passed while the target is our replica.
    async fn count_lapsed(
        &self,
        control: &mut Control,
        replayed: &mut Replayed,
        holdings: &Holdings,
    ) -> Result<Expired> {
        let expiry = self.options.expiry;
        let mut expired = Expired {
            policy: expiry.ttl,
            unknown_commands: std::mem::take(&mut replayed.unknown_commands),
            ..Expired::default()
        };
        match expiry.ttl {
            _ if self.is_scratch => {}
            Ttl::Shift => expired.shift_ms = expiry.by_ms(),
            Ttl::Persist => {}
            Ttl::Absolute if holdings.expires == 0 => {
                (expired.lapsed, expired.expired_before) = (Some(0), Some(0));
            }
            Ttl::Absolute if !replayed.between_records => {
                expired.not_counted = Some("the instant lies within a long record".into());
            }
            Ttl::Absolute => {
                let now_ms = control.time().await?.as_micros().div_euclid(1000);
                let replica = &mut replayed.replica;
                let databases = &holdings.databases;
                let at_ms = expiry.at_ms();
                match lapsed::count(replica, control, databases, at_ms, now_ms).await? {
                    Some(found) => {
                        expired.lapsed = Some(found.since);
                        expired.expired_before = Some(found.before);
                    }
                    None => {
                        let why = "the server does not run scripts, or its keys moved meanwhile";
                        expired.not_counted = Some(why.into());
                    }
                }
            }
        }
        Ok(expired)
    }

    /// After a failure: the target must not go on asking us for data.
    async fn let_go(&self, error: Error) -> Error {
        let undo = async {
            let () =
                Control::connect(&self.endpoint).await?.ask(&["REPLICAOF", "NO", "ONE"]).await?;
            Ok::<_, Error>(())
        };
        match undo.await {
            Ok(()) => error,
            Err(undo) => {
                tracing::warn!(target_server = %self.endpoint, error = %undo, "it is still told to replicate from pitr; REPLICAOF NO ONE ends that");
                error
            }
        }
    }
}

impl Target for RedisServer {
    fn preflight<'a>(&'a mut self, needs: &'a Needs) -> Work<'a, Server> {
        Box::pin(async move {
            let (server, fitness) = self.check(needs).await?;
            self.state = State::Fit(fitness);
            Ok(server)
        })
    }

    fn expired(&self) -> Option<Expired> {
        self.expired.clone()
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
        Box::pin(async move {
            let State::Fit(fitness) = &self.state else {
                return Err(Error::bug("examine without preflight"));
            };
            let by_ms = self.by_ms;
            let found = examine::examine(baseline, &open, &log, cut, by_ms).await?;
            if let Err(unknown) = &found.baseline.survey {
                tracing::warn!(
                    target_server = %self.endpoint,
                    "whether it has enough databases for the baseline is not known: {unknown}"
                );
            }
            examine::check_databases(found.db_max, fitness.databases)?;
            let mut control = Control::connect(&self.endpoint).await?;
            examine::check_format(&mut control, found.baseline.fields.rdb_version).await
        })
    }

    fn load<'a>(&'a mut self, baseline: &'a BaselineMeta, open: OpenBaseline) -> Work<'a, ()> {
        Box::pin(async move {
            let State::Fit(fitness) = self.take_state() else {
                return Err(Error::bug("load without preflight"));
            };
            match self.send_baseline(baseline, open()?).await {
                Ok(replica) => {
                    self.state = State::Loaded(fitness, replica);
                    Ok(())
                }
                Err(error) => Err(self.let_go(error).await),
            }
        })
    }

    fn replay<'a>(
        &'a mut self,
        baseline: &'a BaselineMeta,
        log: OpenLog,
        cut: &'a Cut,
    ) -> Work<'a, Applied> {
        Box::pin(async move {
            let State::Loaded(fitness, replica) = self.take_state() else {
                return Err(Error::bug("replay without load"));
            };
            match self.send_stream(replica, fitness, baseline, log, cut).await {
                Ok((applied, replayed)) => {
                    self.state = State::Replayed(fitness, replayed);
                    Ok(applied)
                }
                Err(error) => Err(self.let_go(error).await),
            }
        })
    }

    fn finish<'a>(&'a mut self, applied: &'a Applied) -> Work<'a, String> {
        Box::pin(async move {
            let State::Replayed(fitness, mut replayed) = self.take_state() else {
                return Err(Error::bug("finish without replay"));
            };
            let promoted = self.promote(fitness, &mut replayed, applied).await;
            // The connection stands until here: a target that lost it would only try again.
            drop(replayed);
            let (said, expired) = promoted?;
            self.expired = Some(expired);
            Ok(said)
        })
    }
}

/// Whether it is the replica of a pitr that has ended: it tells so by the id of what it was sent.
fn is_half_restored(replication: &HashMap<String, String>) -> bool {
    let is = |key: &str, value: &str| replication.get(key).is_some_and(|found| found == value);
    let sent = replication.get("master_replid").is_some_and(|id| id.starts_with(REPLID_HEAD));
    is("role", "slave") && is("master_link_status", "down") && sent
}

/// Whether the fields of INFO replication are those of a master without replicas.
fn check_role(replication: &HashMap<String, String>) -> Result<(), String> {
    if replication.get("role").is_none_or(|role| role != "master") {
        return Err(
            "is a replica of another server (REPLICAOF NO ONE makes it one of its own)".into()
        );
    }
    match replication.get("connected_slaves").map(String::as_str) {
        Some("0") | None => Ok(()),
        Some(n) => Err(format!("has replicas attached ({n})")),
    }
}

/// What stands in the way of calling the target empty.
pub(super) async fn check_empty(control: &mut Control) -> Result<Option<String>> {
    let mut keyspace: Vec<_> = control.info("keyspace").await?.into_iter().collect();
    keyspace.retain(|(name, _)| name.starts_with("db"));
    keyspace.sort();
    if let Some((name, fields)) = keyspace.first() {
        let keys = field(fields, "keys").unwrap_or(0);
        return Ok(Some(format!("{keys} keys in {name}")));
    }
    let functions: Vec<::redis::Value> = control.ask(&["FUNCTION", "LIST"]).await?;
    Ok((!functions.is_empty()).then(|| format!("{} function libraries", functions.len())))
}

/// Commands from a master that failed, over the server's life (`networking.c`,
/// `afterErrorReply`).
async fn failures(control: &mut Control) -> Result<u64> {
    stat(control, "unexpected_error_replies").await
}

async fn stat(control: &mut Control, name: &str) -> Result<u64> {
    let stats = control.info("stats").await?;
    stats.get(name).and_then(|n| n.parse().ok()).ok_or_else(|| {
        Error::new(Class::Finding, format!("the target does not say {name} in INFO stats"))
    })
}

/// How much a server holds.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    /// The databases that have keys, with how many.
    pub(super) databases: Vec<(u32, u64)>,
    keys: u64,
    expires: u64,
}

pub(super) async fn keyspace(control: &mut Control) -> Result<Holdings> {
    let mut sum = Holdings::default();
    for (name, fields) in control.info("keyspace").await? {
        if let Some(db) = name.strip_prefix("db").and_then(|number| number.parse().ok()) {
            let keys = field(&fields, "keys").unwrap_or(0);
            sum.keys += keys;
            sum.expires += field(&fields, "expires").unwrap_or(0);
            sum.databases.push((db, keys));
        }
    }
    Ok(sum)
}

/// One number of `keys=3,expires=1,avg_ttl=0`.
fn field(fields: &str, name: &str) -> Option<u64> {
    let mut pairs = fields.split(',').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).and_then(|(_, value)| value.parse().ok())
}
