//! The base of the append-only log as a baseline: it stands where the first increment begins.
//!
//! **Invariant:** it counts from the first instant for which the records behind it are timed. A base
//! may be days old, and nothing in its log says when what stands there was done.

use super::chain::read_manifest;
use super::{AofSource, blocking};
use crate::clock::Timestamp;
use crate::engine::redis::control::Control;
use crate::engine::redis::{rdb, version};
use crate::error::{Class, Context, Error, Result};
use crate::position::Position;
use crate::record::BaselineTaken;
use bytes::Bytes;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How long a rewrite may take.
const REWRITE_MAX: Duration = Duration::from_hours(6);

/// How often it is looked whether it has ended.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Length of the pieces handed over.
const PIECE_BYTES: usize = 256 << 10;

/// The work of `Source::baseline`: the base that is there, or a new one if it was copied before.
pub(super) async fn take(source: &AofSource, out: mpsc::Sender<Bytes>) -> Result<BaselineTaken> {
    let endpoint = &source.options.endpoint;
    let mut control = Control::connect(endpoint).await?;
    let server = control.server().await?;
    version::check_captured(&server.version)?;
    let (copied, tails) = {
        let memory = source.memory();
        (memory.copied.clone(), memory.tails)
    };
    let mut base = find(source).await?;
    if copied.as_ref() == Some(&base.name) {
        control
            .ask::<String>(&["BGREWRITEAOF"])
            .await
            .map_err(|e| e.hint("the account needs +bgrewriteaof for more than one baseline"))?;
        let begun = Instant::now();
        while copied.as_ref() == Some(&base.name) {
            if begun.elapsed() > REWRITE_MAX {
                return Err(Error::unavailable(format!("{endpoint} does not end BGREWRITEAOF")));
            }
            tokio::time::sleep(LOOK_EVERY).await;
            base = find(source).await?;
            let info = control.info("persistence").await?;
            let is = |name: &str, value: &str| info.get(name).is_some_and(|is| is == value);
            if copied.as_ref() == Some(&base.name)
                && is("aof_rewrite_in_progress", "0")
                && is("aof_rewrite_scheduled", "0")
                && is("aof_last_bgrewrite_status", "err")
            {
                return Err(Error::unavailable(format!("BGREWRITEAOF failed at {endpoint}"))
                    .hint("its log says why: mostly a full disk, or no memory for a child"));
            }
        }
    }
    let Base { name, mut file, increment } = base;
    let mut check = rdb::Check::new();
    loop {
        let (read, bytes) = blocking(move || read(file)).await?;
        file = read;
        if bytes.is_empty() {
            break;
        }
        check.update(&bytes);
        if out.send(bytes).await.is_err() {
            return Err(Error::new(Class::Interrupted, "nobody takes the baseline any more"));
        }
    }
    let fields = check.fields().map_err(|error| {
        error.context(&name).hint(
            "a base of commands is not supported: CONFIG SET aof-use-rdb-preamble yes, then \
             BGREWRITEAOF",
        )
    })?;
    check.finish().map_err(|error| error.context(&name))?;
    let Some(ctime) = fields.ctime else {
        return Err(Error::corrupt(format!("{name} does not say when it was made")));
    };
    source.memory().copied = Some(name);
    // The second in which it was begun was not over: the last record in it may be of its end.
    let made = Timestamp::from_secs(ctime).after(Duration::from_secs(1));
    let at = made.max(timed_from(source, &increment, tails).await?);
    Ok(BaselineTaken {
        position: Position::new(increment, 0),
        at,
        server,
        kind: "rdb",
        contents: None,
    })
}

/// The earliest instant for which the records of `increment`, or of a file behind it, are timed.
///
/// # Errors
/// Unavailable, if the capture ends before it has read up to there.
async fn timed_from(source: &AofSource, increment: &str, tails: u64) -> Result<Timestamp> {
    loop {
        {
            let memory = source.memory();
            if memory.tails != tails {
                return Err(Error::unavailable("the capture of the files began anew meanwhile")
                    .hint("try again; the daemon takes a baseline that is due by itself"));
            }
            let reached = |log: &str| (log.len(), log) >= (increment.len(), increment);
            if let Some((_, at)) = memory.marked.as_ref().filter(|(log, _)| reached(log)) {
                return Ok(*at);
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The base, and the increment behind it.
struct Base {
    name: String,
    file: File,
    increment: String,
}

async fn find(source: &AofSource) -> Result<Base> {
    let dir = source.aof.dir.clone();
    blocking(move || {
        loop {
            let manifest = read_manifest(&dir)?;
            let (Some(base), Some(first)) = (manifest.base, manifest.increments.first()) else {
                return Err(Error::unavailable(format!("{} has no base yet", dir.display()))
                    .hint("BGREWRITEAOF makes one"));
            };
            let path: PathBuf = dir.join(&base.name);
            match File::open(&path) {
                // A rewrite ended meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                file => {
                    let file = file.unavailable(|| format!("open {}", path.display()))?;
                    return Ok(Base { name: base.name, file, increment: first.name.clone() });
                }
            }
            if read_manifest(&dir)?.base.is_some_and(|again| again.name == base.name) {
                return Err(Error::unavailable(format!("{} is not there", path.display())));
            }
        }
    })
    .await
}

fn read(mut file: File) -> Result<(File, Bytes)> {
    let mut bytes = Vec::with_capacity(PIECE_BYTES);
    let limited = Read::take(&mut file, PIECE_BYTES as u64);
    { limited }.read_to_end(&mut bytes).unavailable(|| "read the base".into())?;
    Ok((file, bytes.into()))
}
