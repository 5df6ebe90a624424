//! Samples the server's clock against the end of its append-only files.
//!
//! What was executed until an instant is in the server's buffer or in the file (`INFO
//! persistence`, `aof_buffer_length` and `aof_current_size`). The end of the file is taken once
//! that buffer was written, and the clock is read again behind it: everything before the end was
//! executed within the span of the sample, which its mark keeps and a cut takes into account.
//!
//! **Invariant:** no sample is taken while the log is not written to the files of the manifest:
//! when appendonly is off, or was just switched on and waits for its first base.

use super::blocking;
use super::chain::read_manifest;
use crate::clock::Timestamp;
use crate::engine::redis::control::Control;
use crate::engine::sample::Sampler;
use crate::engine::timing::LogEnd;
use crate::engine::{Endpoint, Placed};
use crate::error::{Context, Error, Result};
use crate::position::Position;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long the server may not answer until its capture is ended.
const GONE_AFTER: Duration = Duration::from_secs(5);

/// The longest span of a sample that is used.
const SPAN_MAX: Duration = Duration::from_secs(1);

/// How often the end is looked for where one is needed.
const LOOKS: u32 = 50;
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Reads the clock of the server whose run id is `identity`.
pub(super) struct FileClock {
    pub(super) control: Option<Control>,
    pub(super) endpoint: Endpoint,
    pub(super) identity: String,
    pub(super) dir: PathBuf,
    /// Why the capture cannot go on as it is.
    pub(super) trouble: watch::Sender<Option<String>>,
    pub(super) silent_since: Option<Instant>,
}

impl FileClock {
    async fn read(&mut self) -> Result<Option<LogEnd>> {
        let control = match &mut self.control {
            Some(control) => control,
            None => {
                let mut fresh = Control::connect(&self.endpoint).await?;
                if fresh.server().await?.identity != self.identity {
                    self.trouble.send_replace(Some("the server was restarted".into()));
                    return Ok(None);
                }
                self.control.insert(fresh)
            }
        };
        match end(control, &self.dir).await? {
            End::Off => {
                self.trouble.send_replace(Some(OFF.into()));
                Ok(None)
            }
            End::Unknown => Ok(None),
            End::At(end) => Ok(Some(end)),
        }
    }
}

/// What is said when nothing is logged.
pub(super) const OFF: &str = "appendonly is off: nothing that is written now is captured";

impl Sampler for FileClock {
    type Sample = LogEnd;

    async fn sample(&mut self) -> Result<Option<LogEnd>> {
        let sample = self.read().await;
        match &sample {
            Ok(_) => self.silent_since = None,
            Err(error) => {
                let since = *self.silent_since.get_or_insert_with(Instant::now);
                if since.elapsed() > GONE_AFTER {
                    self.trouble.send_replace(Some(error.to_string()));
                }
            }
        }
        sample
    }

    fn disconnect(&mut self) {
        self.control = None;
    }
}

/// The end of the files.
enum End {
    At(LogEnd),
    /// It could not be told this time.
    Unknown,
    /// Nothing is logged.
    Off,
}

async fn end(control: &mut Control, dir: &Path) -> Result<End> {
    let first = control.persistence().await?;
    if !first.enabled {
        return Ok(End::Off);
    }
    let second = control.persistence().await?;
    let written = second.size >= first.size.saturating_add(first.buffered);
    if !written {
        return Ok(End::Unknown);
    }
    let dir = dir.to_owned();
    let Some((log, offset)) = blocking(move || end_of_files(&dir)).await? else {
        return Ok(End::Unknown);
    };
    let span = control.time().await?.since(first.at);
    let end = LogEnd { log, offset, at: first.at, span };
    Ok(if span <= SPAN_MAX { End::At(end) } else { End::Unknown })
}

/// The file that is written, and how far; `None` while it is one that is in no manifest yet.
fn end_of_files(dir: &Path) -> Result<Option<(String, u64)>> {
    let Some(last) = read_manifest(dir)?.increments.pop() else { return Ok(None) };
    let path = dir.join(&last.name);
    let len = std::fs::metadata(&path).unavailable(|| format!("look at {}", path.display()))?.len();
    // `aof.c`, `getTempIncrAofName`: where writes go until the first base is there.
    let names = std::fs::read_dir(dir).unavailable(|| format!("list {}", dir.display()))?;
    let waits = names
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .any(|name| name.starts_with("temp-") && name.strip_suffix(".incr").is_some());
    Ok((!waits).then_some((last.name, len)))
}

/// The end of the files now, as a place.
///
/// # Errors
/// Unavailable, if it could not be told.
pub(in crate::engine::redis) async fn place(control: &mut Control, dir: &Path) -> Result<Placed> {
    let server = control.server().await?;
    for _ in 0..LOOKS {
        match end(control, dir).await? {
            End::At(LogEnd { log, offset, at, .. }) => {
                let position = Position::new(log, offset);
                return Ok(Placed { position, at, server, published: false });
            }
            End::Off => return Err(Error::refused(OFF)),
            End::Unknown => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
    Err(Error::unavailable("the end of the append-only log could not be told")
        .hint("the server's disk is slow, or its base is being written for the first time"))
}

/// What a server says of its append-only log, at an instant of its clock.
#[derive(Debug, Clone, Copy)]
pub(in crate::engine::redis) struct Persistence {
    pub(in crate::engine::redis) at: Timestamp,
    pub(in crate::engine::redis) enabled: bool,
    /// Bytes of all its files.
    pub(in crate::engine::redis) size: u64,
    /// Bytes that are not written into them yet.
    pub(in crate::engine::redis) buffered: u64,
}
