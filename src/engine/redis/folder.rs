//! Restores into a fresh folder that a server can be started on.
//!
//! ```text
//! DIR/redis.conf                                  with the settings that shape data, as captured
//! DIR/users.acl                                   the users, as captured
//! DIR/appendonlydir/appendonly.aof.manifest
//! DIR/appendonlydir/appendonly.aof.1.base.rdb     the baseline, untouched
//! DIR/appendonlydir/appendonly.aof.N.incr.aof     the stream up to the cut
//! ```
//!
//! That is the multi-part append-only file of Redis 7.0 and newer and of Valkey (`aof.c`). A
//! server that loads it takes no key for expired meanwhile, so the data becomes what it was.
//! Each file is loaded from database 0 on, so each begins with a SELECT.
//!
//! **Invariant:** nothing is written into a folder that holds anything but what an interrupted
//! restore left, and `finish` says `Ok`
//! only after everything was read back from disk and was found whole.

use super::client::encode;
use super::rdb;
use super::replay::Replay;
use super::resp::{Kind, Scanner};
use super::{examine, inspect, scratch, setup, walk};
use crate::clock::Timestamp;
use crate::durable;
use crate::engine::inspect::Check;
use crate::engine::{Expired, Needs, Target, TargetOptions, Ttl, Work, unfinished};
use crate::error::{Class, Context, Error, Result};
use crate::manifest::{BaselineMeta, Setup};
use crate::record::{Applied, Contents, Cut, OpenBaseline, OpenLog, Server};
use bytes::Bytes;
use std::fmt::Write as _;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

const APPEND_DIR: &str = "appendonlydir";
/// What a restore makes in a folder, besides the mark of one that is not finished.
const OWN: [&str; 5] = [APPEND_DIR, CONF, "redis.tmp", USERS, "users.tmp"];
const CONF: &str = "redis.conf";
const USERS: &str = "users.acl";
const MANIFEST: &str = "appendonly.aof.manifest";
const BASE: &str = "appendonly.aof.1.base.rdb";

/// The length at which the next increment file begins.
const INCREMENT_BYTES: u64 = 64 << 20;

/// How many databases the restored server has where it is not known how many the source had, or
/// whether that was enough for the baseline: a server with too few of them refuses to start, and idle
/// ones cost nothing.
const DATABASES_MIN: u32 = 1024;

/// How much is read at once when everything is checked.
const CHECK_BYTES: usize = 1 << 20;

/// A folder that is restored into.
#[derive(Debug)]
pub struct RedisFolder {
    options: TargetOptions,
    dir: PathBuf,
    increments: u32,
    databases: u32,
    setup: Option<Setup>,
    unknown_commands: Vec<String>,
    /// Of the server that was captured.
    version: String,
}

impl RedisFolder {
    /// The folder `dir`, which must not exist or be empty.
    pub fn new(options: TargetOptions, dir: PathBuf) -> Self {
        let (increments, databases, setup) = (0, DATABASES_MIN, None);
        let (unknown_commands, version) = (vec![], String::new());
        Self { options, dir, increments, databases, setup, unknown_commands, version }
    }

    /// Takes what the source was besides its data.
    pub(super) fn is_to_be(&mut self, setup: Option<&Setup>) {
        self.setup = setup.cloned();
        self.databases = setup.and_then(|setup| setup::shaping(setup).1).unwrap_or(DATABASES_MIN);
    }

    /// Has at least this database: what is known of the source may be older than its keys.
    pub(super) fn make_room(&mut self, database: u32) {
        self.databases = self.databases.max(database.saturating_add(1));
    }

    fn append_dir(&self) -> PathBuf {
        self.dir.join(APPEND_DIR)
    }

    fn increment(&self, number: u32) -> PathBuf {
        self.append_dir().join(increment_name(number))
    }

    pub(super) fn check_fresh(&self) -> Result<()> {
        let dir = self.dir.display();
        if self.dir.to_str().is_none_or(|text| text.contains(['\n', '\r'])) {
            return Err(Error::usage(format!("{dir}: redis.conf cannot hold such a path"))
                .hint("restore into a folder whose path is plain UTF-8"));
        }
        unfinished::check(&self.dir, &OWN)
    }

    /// Begins a folder that a server is going to fill.
    pub(super) fn begin(&self) -> Result<()> {
        self.check_fresh()?;
        unfinished::begin(&self.dir, &OWN)
    }

    /// Ends a folder that a server has filled, and that is shut down.
    pub(super) async fn finish_filled(&self) -> Result<()> {
        self.write_conf()?;
        durable::sync_dir(&self.append_dir())?;
        check_with_server(&self.append_dir().join(MANIFEST)).await?;
        unfinished::end(&self.dir)
    }

    async fn write_base(
        &self,
        baseline: &BaselineMeta,
        mut pieces: mpsc::Receiver<Result<Bytes>>,
    ) -> Result<()> {
        self.check_fresh()?;
        unfinished::begin(&self.dir, &OWN)?;
        durable::create_dir_all(&self.append_dir())?;
        let mut base = Output::create(self.append_dir().join(BASE)).await?;
        if let Some(by_ms) = self.options.expiry.by_ms() {
            let mut pieces = walk::flow::shift(pieces, by_ms);
            while let Some(piece) = pieces.recv().await.transpose()? {
                base.write(&piece).await?;
            }
            return base.close().await;
        }
        let mut check = rdb::Check::new();
        while let Some(piece) = pieces.recv().await.transpose()? {
            check.update(&piece);
            base.write(&piece).await?;
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
        base.close().await
    }

    async fn write_increments(
        &mut self,
        baseline: &BaselineMeta,
        log: OpenLog,
        cut: &Cut,
    ) -> Result<Applied> {
        let mut replay =
            Replay::new(log(), &baseline.position, cut, None)?.moved(self.options.expiry.by_ms());
        let mut file = self.next_increment(baseline.position.db).await?;
        // Length of the file up to the end of the last whole record.
        let mut whole = file.len;
        while let Some(step) = replay.next().await? {
            let (before, behind) =
                step.bytes.split_at_checked(step.whole.unwrap_or(0)).unwrap_or_default();
            file.write(before).await?;
            if step.whole.is_some() {
                whole = file.len;
                if whole >= INCREMENT_BYTES {
                    file.close().await?;
                    file = self.next_increment(replay.db()).await?;
                    whole = file.len;
                }
            }
            file.write(behind).await?;
        }
        // The cut may go through a record, of which the beginning was written already.
        file.cut(whole).await?;
        file.close().await?;
        let counted = baseline.contents.as_ref().map(|contents| &contents.databases);
        let highest = match counted {
            Some(counted) => counted.iter().map(|database| database.number).max(),
            None => Some(DATABASES_MIN - 1),
        };
        self.make_room(replay.db_max().max(highest.unwrap_or(0)));
        self.write_configuration()?;
        self.unknown_commands = replay.unknown_commands();
        Ok(replay.finish().await)
    }

    /// Begins an increment file, which is loaded from database 0 on.
    async fn next_increment(&mut self, db: u32) -> Result<Output> {
        self.increments += 1;
        let mut file = Output::create(self.increment(self.increments)).await?;
        file.write(&encode(&[b"SELECT", db.to_string().as_bytes()])).await?;
        Ok(file)
    }

    fn write_configuration(&self) -> Result<()> {
        let mut manifest = format!("file {BASE} seq 1 type b\n");
        for number in 1..=self.increments {
            let line = writeln!(manifest, "file {} seq {number} type i", increment_name(number));
            line.class(Class::Bug, || "write a manifest".into())?;
        }
        durable::create(&self.append_dir().join(MANIFEST), manifest.as_bytes())?;
        durable::sync_dir(&self.append_dir())?;
        self.write_conf()?;
        // The name of the folder itself must be as durable as what is in it.
        self.dir.parent().filter(|p| !p.as_os_str().is_empty()).map_or(Ok(()), durable::sync_dir)
    }

    /// Writes `redis.conf`, and the users if they are known.
    fn write_conf(&self) -> Result<()> {
        if let Some(setup) = self.setup.as_ref().filter(|setup| !setup.users.is_empty()) {
            let users = setup.users.join("\n") + "\n";
            // It has their passwords' digests.
            durable::create_private(&self.dir.join(USERS), users.as_bytes())?;
        }
        durable::create(&self.dir.join(CONF), self.configuration()?.as_bytes())
    }

    fn configuration(&self) -> Result<String> {
        let dir = std::path::absolute(&self.dir)
            .unavailable(|| format!("find folder {}", self.dir.display()))?;
        let dir = dir.to_str().unwrap_or_default().replace('\\', "\\\\").replace('"', "\\\"");
        let (name, databases) = (&self.options.name, self.databases);
        let unknown = Setup::default();
        let setup = self.setup.as_ref().unwrap_or(&unknown);
        let (users, shaping) = (accounts(&dir, setup), setup::shaping(setup).0);
        Ok(format!(
            r#"# {name}, restored by pitr. Start it with: redis-server "{dir}/redis.conf"
#
# Reachable from this host only: set `bind` and `port` as the original had them.
bind 127.0.0.1 -::1
protected-mode yes
port 6379
{users}
# The data. If the folder is moved, `dir` has to follow, and `aclfile`, if there is one.
dir "{dir}"
appendonly yes
appenddirname "{APPEND_DIR}"
appendfilename "appendonly.aof"
save ""
{shaping}
# For the first start, which must load everything or fail. Afterwards set them as you like.
aof-load-truncated no
maxmemory 0
databases {databases}
"#
        ))
    }

    /// Reads everything back.
    async fn verify(&self, applied: &Applied) -> Result<String> {
        let dir = self.append_dir();
        let increments: Vec<_> = (1..=self.increments).map(|n| self.increment(n)).collect();
        let read = tokio::task::spawn_blocking(move || {
            check_base(&dir.join(BASE))?;
            increments.iter().map(|path| check_increment(path)).sum::<Result<u64>>()
        });
        let records = read.await.class(Class::Bug, || "check the folder".into())??;
        if records != applied.records {
            return Err(Error::new(
                Class::Finding,
                format!(
                    "{} holds {records} records instead of {}",
                    self.dir.display(),
                    applied.records
                ),
            ));
        }
        let valid = check_with_server(&self.append_dir().join(MANIFEST)).await?;
        unfinished::end(&self.dir)?;
        let server = if valid { "; redis-check-aof found it valid" } else { "" };
        Ok(format!(
            "the baseline and all {records} records were read back from {}{server}",
            self.dir.display()
        ))
    }
}

impl Target for RedisFolder {
    fn preflight<'a>(&'a mut self, needs: &'a Needs) -> Work<'a, Server> {
        Box::pin(async move {
            self.check_fresh()?;
            self.is_to_be(needs.setup.as_ref());
            self.version.clone_from(&needs.version);
            // No server is there yet: the files are those of the version captured.
            Ok(Server { version: needs.version.clone(), ..Server::default() })
        })
    }

    fn reads_ahead(&self) -> bool {
        self.options.expiry.by_ms().is_some()
    }

    fn examine<'a>(
        &'a mut self,
        baseline: &'a BaselineMeta,
        open: OpenBaseline,
        log: OpenLog,
        cut: &'a Cut,
    ) -> Work<'a, ()> {
        let by_ms = self.options.expiry.by_ms();
        Box::pin(async move { examine::examine(baseline, &open, &log, cut, by_ms).await.map(drop) })
    }

    fn expired(&self) -> Option<Expired> {
        let expiry = self.options.expiry;
        Some(Expired {
            policy: expiry.ttl,
            shift_ms: expiry.by_ms(),
            unknown_commands: self.unknown_commands.clone(),
            not_counted: (expiry.ttl == Ttl::Absolute)
                .then(|| "no server has them yet; it tells when it is started".into()),
            ..Expired::default()
        })
    }

    fn load<'a>(&'a mut self, baseline: &'a BaselineMeta, open: OpenBaseline) -> Work<'a, ()> {
        Box::pin(async move { self.write_base(baseline, open()?).await })
    }

    fn replay<'a>(
        &'a mut self,
        baseline: &'a BaselineMeta,
        log: OpenLog,
        cut: &'a Cut,
    ) -> Work<'a, Applied> {
        Box::pin(self.write_increments(baseline, log, cut))
    }

    fn can_inspect<'a>(&'a mut self, needs: &'a Needs) -> Work<'a, ()> {
        Box::pin(async { scratch::program_for(&needs.version, None).await.map(drop) })
    }

    fn contents<'a>(&'a mut self, _baseline: &'a BaselineMeta) -> Work<'a, Option<Contents>> {
        Box::pin(async {
            let dir = std::path::absolute(self.append_dir())
                .unavailable(|| format!("find folder {}", self.dir.display()))?;
            inspect::count(&self.version, &dir, BASE).await.map(Some)
        })
    }

    fn inspect<'a>(
        &'a mut self,
        _baseline: &'a BaselineMeta,
        is_finished: bool,
        canary: Option<Timestamp>,
    ) -> Work<'a, Vec<Check>> {
        Box::pin(async move {
            // A server that runs on it writes into it.
            if !is_finished {
                return Ok(vec![]);
            }
            let dir = std::path::absolute(&self.dir)
                .unavailable(|| format!("find folder {}", self.dir.display()))?;
            inspect::inspect(&self.version, &dir, self.databases, canary).await
        })
    }

    fn finish<'a>(&'a mut self, applied: &'a Applied) -> Work<'a, String> {
        Box::pin(self.verify(applied))
    }
}

/// The lines of `redis.conf` that are about users, secrets and modules.
fn accounts(dir: &str, setup: &Setup) -> String {
    let mut lines = match setup.users.as_slice() {
        [] => "# Its users are not known: anybody on this host may do everything.\n".to_owned(),
        users if setup::may_load(users) => format!("aclfile \"{dir}/{USERS}\"\n"),
        _ => format!(
            "# The default user may not do everything, and older servers apply that to the transactions\n\
             # of the log that they load. Start without the users, give BGREWRITEAOF, then add them:\n\
             # aclfile \"{dir}/{USERS}\"\n"
        ),
    };
    if !setup.withheld.is_empty() {
        lines +=
            &format!("# Secrets, which are not captured: set {}.\n", setup.withheld.join(", "));
    }
    for module in &setup.modules {
        let (name, path) = (&module.name, &module.path);
        lines += &format!("# The source had the module {name}: loadmodule {path:?} …\n");
    }
    lines
}

fn increment_name(number: u32) -> String {
    format!("appendonly.aof.{number}.incr.aof")
}

/// A new file that is written from its beginning to its end.
struct Output {
    file: File,
    path: PathBuf,
    len: u64,
}

impl Output {
    async fn create(path: PathBuf) -> Result<Self> {
        let file = File::create_new(&path).await;
        let file = file.unavailable(|| format!("create {}", path.display()))?;
        Ok(Self { file, path, len: 0 })
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all(bytes).await;
        written.unavailable(|| format!("write {}", self.path.display()))?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Takes back what stands behind `len`.
    async fn cut(&mut self, len: u64) -> Result<()> {
        let cut = async {
            self.file.flush().await?;
            self.file.set_len(len).await
        };
        cut.await.unavailable(|| format!("shorten {}", self.path.display()))?;
        self.len = len;
        Ok(())
    }

    async fn close(mut self) -> Result<()> {
        let close = async {
            self.file.flush().await?;
            self.file.sync_all().await
        };
        close.await.unavailable(|| format!("sync {}", self.path.display()))
    }
}

/// Hands the bytes of a file to `take`, in pieces.
fn read_pieces(path: &Path, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let read = || format!("read {} back", path.display());
    let mut file = std::fs::File::open(path).unavailable(read)?;
    let mut buffer = vec![0; CHECK_BYTES];
    loop {
        let n = match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).unavailable(read),
        };
        take(buffer.get(..n).unwrap_or_default())
            .map_err(|e| e.context(format!("check {}", path.display())))?;
    }
}

fn check_base(path: &Path) -> Result<()> {
    let mut check = rdb::Check::new();
    read_pieces(path, |piece| {
        check.update(piece);
        Ok(())
    })?;
    check.finish().map(drop).map_err(|e| e.context(format!("check {}", path.display())))
}

/// Reads an increment file to its end, and counts the records in it that change data.
fn check_increment(path: &Path) -> Result<u64> {
    let mut scanner = Scanner::new(0, 0);
    let (mut records, mut first) = (0, true);
    read_pieces(path, |piece| {
        let mut at = 0;
        while let Some(command) = scanner.next(piece, &mut at)? {
            if first && !matches!(command.kind, Kind::Select(_)) {
                return Err(Error::corrupt("it does not begin with SELECT"));
            }
            first = false;
            records += u64::from(command.ends_record && command.record_has_data);
        }
        Ok(())
    })?;
    if first || !scanner.at_record_start() {
        let at = scanner.record_start();
        let what = format!("{} ends within the record at {at}", path.display());
        return Err(Error::corrupt(what));
    }
    Ok(records)
}

/// Lets the server's own tool read the files, if it is on PATH and knows their version. It
/// changes nothing unless told `--fix`.
async fn check_with_server(manifest: &Path) -> Result<bool> {
    let output = tokio::process::Command::new("redis-check-aof").arg(manifest).output().await;
    let output = match output {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).unavailable(|| "run redis-check-aof".into()),
    };
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        return Ok(true);
    }
    // It takes a base of Valkey 9, whose format has a name of its own, for a broken AOF; so does
    // `valkey-check-aof` of 9.1.
    if said.contains("Can't handle RDB format version") || is_valkey(manifest).await? {
        return Ok(false);
    }
    let last: Vec<_> = said.lines().rev().take(3).collect();
    let last: Vec<_> = last.into_iter().rev().collect();
    Err(Error::new(Class::Finding, format!("redis-check-aof: {}", last.join("; "))))
}

/// Whether the base beside this manifest is in a format of Valkey's own.
async fn is_valkey(manifest: &Path) -> Result<bool> {
    let mut magic = [0; 6];
    let base = manifest.with_file_name(BASE);
    let reading = async { File::open(&base).await?.read_exact(&mut magic).await };
    reading.await.unavailable(|| format!("read {}", base.display()))?;
    Ok(&magic == b"VALKEY")
}
