//! Samples the server's clock against the end of its append-only files.
//!
//! What was executed until an instant is in the server's buffer or in the file (`INFO
//! persistence`, `aof_buffer_length` and `aof_current_size`). The end of the file is taken once
//! that buffer was written, and the clock is read again behind it: everything before the end was
//! executed within the span of the sample, which its mark keeps and a cut takes into account.
//!
//! A server that answers behind a look at its files wrote what they had then, whole. One that died
//! meanwhile may have left a torn record, which it removes when it starts again.
//!
//! **Invariant:** no sample is taken while the log is not written to the files of the manifest:
//! when appendonly is off, or was just switched on and waits for its first base. Only what a
//! server had written that lived on is confirmed.

use super::blocking;
use super::chain::{names_in, read_manifest};
use crate::clock::Timestamp;
use crate::engine::redis::control::Control;
use crate::engine::sample::Sampler;
use crate::engine::timing::LogEnd;
use crate::engine::{Endpoint, Placed};
use crate::error::{Context, Error, Result};
use crate::position::Position;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long the server may not answer until its capture is ended.
const GONE_AFTER: Duration = Duration::from_secs(5);

/// The longest span of a sample that is used.
const SPAN_MAX: Duration = Duration::from_secs(1);

/// How often the end is looked for where one is needed, and how often of that one is wanted at
/// which nothing is being written.
const LOOKS: u32 = 50;
const QUIET_LOOKS: u32 = 10;
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What is said when nothing is logged.
pub(super) const OFF: &str = "appendonly is off: nothing that is written now is captured";

/// The same of what was written meanwhile, as the reason of a gap.
pub(super) const WAS_OFF: &str =
    "appendonly was off for a while: what was written meanwhile is in no file";

/// A file, and how much of it.
pub(super) type End = (String, u64);

/// Reads the clock of the server whose run id is `identity`.
pub(super) struct FileClock {
    pub(super) control: Option<Control>,
    pub(super) endpoint: Endpoint,
    pub(super) identity: String,
    pub(super) dir: PathBuf,
    /// How far the server has surely written.
    pub(super) written: watch::Sender<Option<End>>,
    /// Why the capture cannot go on as it is.
    pub(super) trouble: watch::Sender<Option<String>>,
    pub(super) silent_since: Option<Instant>,
}

impl FileClock {
    async fn read(&mut self) -> Result<Option<LogEnd>> {
        let control = match &mut self.control {
            Some(control) => control,
            None => self.control.insert(Control::connect(&self.endpoint).await?),
        };
        let seen = look(control, &self.identity, &self.dir).await?;
        if seen.written.is_some() {
            self.written.send_replace(seen.written);
        }
        if let Some(trouble) = seen.trouble {
            self.complain(trouble);
            return Ok(None);
        }
        Ok(seen.end)
    }
}

impl FileClock {
    /// What comes later does not hide that nothing was written for a while.
    fn complain(&self, trouble: String) {
        self.trouble.send_if_modified(|said| {
            let is_news = said.as_deref() != Some(OFF) && *said != Some(trouble.clone());
            if is_news {
                *said = Some(trouble);
            }
            is_news
        });
    }
}

impl Sampler for FileClock {
    type Sample = LogEnd;

    async fn sample(&mut self) -> Result<Option<LogEnd>> {
        let sample = self.read().await;
        match &sample {
            Ok(_) => self.silent_since = None,
            Err(error) => {
                let since = *self.silent_since.get_or_insert_with(Instant::now);
                if since.elapsed() > GONE_AFTER {
                    self.complain(error.to_string());
                }
            }
        }
        sample
    }

    fn disconnect(&mut self) {
        self.control = None;
    }
}

/// What a look at the files and their server gave.
#[derive(Debug, Default)]
struct Look {
    /// How far the server has surely written.
    written: Option<End>,
    /// The same, with the instant until which it executed nothing that is not in there; `None` if
    /// that could not be told this time.
    end: Option<LogEnd>,
    /// Nothing was written while it was looked.
    quiet: bool,
    /// Why the capture cannot go on as it is.
    trouble: Option<String>,
}

async fn look(control: &mut Control, identity: &str, dir: &Path) -> Result<Look> {
    let before = control.persistence().await?;
    let settled = control.persistence().await?;
    let (dir, is_rewriting) = (dir.to_owned(), before.rewrites.is_running);
    let written = blocking(move || end_of_files(&dir, is_rewriting)).await?;
    let behind = control.persistence().await?;
    let all = [&before, &settled, &behind];
    if all.iter().any(|said| said.identity != identity) {
        let trouble = Some("the server was restarted".into());
        return Ok(Look { trouble, ..Look::default() });
    }
    // While a server loads, a torn record may still be at the end of its files.
    if before.loading {
        return Ok(Look::default());
    }
    if !all.iter().all(|said| said.enabled) {
        return Ok(Look { written, trouble: Some(OFF.into()), ..Look::default() });
    }
    let span = behind.at.since(before.at);
    let is_told = settled.has_written(&before) && span <= SPAN_MAX;
    let end = written.clone().filter(|_| is_told);
    let end = end.map(|(log, offset)| LogEnd { log, offset, at: before.at, span });
    let quiet = settled.size == behind.size && settled.rewrites == behind.rewrites;
    Ok(Look { written, end, quiet, trouble: None })
}

/// The file that is written, and how far; `None` while it is one that is in no manifest yet, which
/// may be only where a base `is_rewriting`.
fn end_of_files(dir: &Path, is_rewriting: bool) -> Result<Option<End>> {
    // `aof.c`, `getTempIncrAofName`: where writes go until the first base is there. Looked for
    // before the manifest is read: once it is gone, the manifest names what it has become. A
    // server that died may have left one.
    let is_waiting =
        |name: &String| name.starts_with("temp-") && name.strip_suffix(".incr").is_some();
    if is_rewriting && names_in(dir)?.iter().any(is_waiting) {
        return Ok(None);
    }
    let Some(last) = read_manifest(dir)?.increments.pop() else { return Ok(None) };
    let path = dir.join(&last.name);
    let len = std::fs::metadata(&path).unavailable(|| format!("look at {}", path.display()))?.len();
    Ok(Some((last.name, len)))
}

/// The end of the files now, as a place.
///
/// # Errors
/// Unavailable, if it could not be told.
pub(in crate::engine::redis) async fn place(control: &mut Control, dir: &Path) -> Result<Placed> {
    let server = control.server().await?;
    for nth in 0..LOOKS {
        let seen = look(control, &server.identity, dir).await?;
        if let Some(trouble) = seen.trouble {
            return Err(Error::refused(trouble));
        }
        // In the middle of a write, the end may be within a record.
        if let Some(LogEnd { log, offset, at, .. }) =
            seen.end.filter(|_| seen.quiet || nth > QUIET_LOOKS)
        {
            let position = Position::new(log, offset);
            return Ok(Placed { position, at, server, published: false });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Err(Error::unavailable("the end of the append-only log could not be told")
        .hint("the server's disk is slow, or its base is being written for the first time"))
}

/// What a server says of its append-only log, at an instant of its clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::engine::redis) struct Persistence {
    at: Timestamp,
    /// The run id.
    identity: String,
    loading: bool,
    pub(super) enabled: bool,
    /// Bytes of all its files.
    size: u64,
    /// Bytes that are not written into them yet.
    buffered: u64,
    rewrites: Rewrites,
}

/// Which base there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Rewrites {
    /// How many were begun.
    begun: u64,
    is_running: bool,
    /// Whether one waits for another child process to end. If it is the first one behind
    /// `appendonly no`, nothing is logged until then.
    is_waiting: bool,
    base_size: u64,
}

impl Persistence {
    /// Reads the fields of INFO (`server.c`, `genRedisInfoString`).
    ///
    /// # Errors
    /// Corrupt, if one is missing or no number.
    pub(in crate::engine::redis) fn of(
        at: Timestamp,
        identity: String,
        fields: &HashMap<String, String>,
    ) -> Result<Self> {
        let enabled = number::<u8>(fields, "aof_enabled")? == 1;
        // Of a log that is off there is no size.
        let of_log = |name| if enabled { number(fields, name) } else { Ok(0) };
        if identity.is_empty() {
            return Err(Error::corrupt("INFO server has no run_id"));
        }
        Ok(Self {
            at,
            identity,
            loading: number::<u8>(fields, "loading")? != 0,
            enabled,
            size: of_log("aof_current_size")?,
            buffered: of_log("aof_buffer_length")?,
            rewrites: Rewrites {
                begun: number(fields, "aof_rewrites")?,
                is_running: number::<u8>(fields, "aof_rewrite_in_progress")? != 0,
                is_waiting: number::<u8>(fields, "aof_rewrite_scheduled")? != 0,
                base_size: of_log("aof_base_size")?,
            },
        })
    }

    /// Whether everything that was executed `before` is in the files. Sizes tell that only while
    /// the files stay the same ones.
    fn has_written(&self, before: &Self) -> bool {
        self.rewrites == before.rewrites
            && !self.rewrites.is_waiting
            && self.size >= before.size.saturating_add(before.buffered)
    }
}

fn number<T: FromStr>(fields: &HashMap<String, String>, name: &str) -> Result<T> {
    let text = fields
        .get(name)
        .ok_or_else(|| Error::corrupt(format!("INFO persistence has no {name}")))?;
    text.parse().map_err(|_| Error::corrupt(format!("INFO persistence: {name} is {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: [(&str, &str); 8] = [
        ("loading", "0"),
        ("aof_enabled", "1"),
        ("aof_rewrites", "3"),
        ("aof_rewrite_in_progress", "0"),
        ("aof_rewrite_scheduled", "0"),
        ("aof_current_size", "700"),
        ("aof_base_size", "500"),
        ("aof_buffer_length", "20"),
    ];

    fn said(changed: &[(&str, &str)]) -> Result<Persistence> {
        let fields = FIELDS.iter().chain(changed);
        let fields = fields.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Persistence::of(Timestamp::from_secs(1), "run".into(), &fields.collect())
    }

    #[test]
    fn what_was_buffered_is_written_once_the_same_files_have_grown_by_it() {
        let before = said(&[]).unwrap();
        let later = |changed: &[(&str, &str)]| said(changed).unwrap().has_written(&before);
        assert!(later(&[("aof_current_size", "720")]));
        assert!(!later(&[("aof_current_size", "719")]));
        let grown = ("aof_current_size", "9000");
        assert!(later(&[grown]));
        // Another base has another size, and says nothing of what was added to the log.
        assert!(!later(&[grown, ("aof_base_size", "8900")]));
        assert!(!later(&[grown, ("aof_rewrites", "4")]));
        assert!(!later(&[grown, ("aof_rewrite_in_progress", "1")]));
        assert!(!later(&[grown, ("aof_rewrite_scheduled", "1")]));
    }

    #[test]
    fn a_field_that_is_missing_is_not_taken_for_zero() {
        for (left_out, _) in FIELDS {
            let fields = FIELDS.iter().filter(|(name, _)| *name != left_out);
            let fields = fields.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let read = Persistence::of(Timestamp::from_secs(1), "run".into(), &fields.collect());
            let error = read.unwrap_err().to_string();
            assert!(error.contains(left_out), "{left_out}: {error}");
        }
        assert!(said(&[("aof_current_size", "-1")]).is_err());
        assert!(Persistence::of(Timestamp::from_secs(1), String::new(), &HashMap::new()).is_err());
        // A server whose log is off has no sizes of it.
        let off = said(&[("aof_enabled", "0"), ("aof_current_size", "x")]).unwrap();
        assert!(!off.enabled);
    }

    #[test]
    fn writes_into_a_file_that_is_in_no_manifest_have_no_end() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        put("a.manifest", "file a.1.base.rdb seq 1 type b\nfile a.1.incr.aof seq 1 type i\n");
        put("a.1.incr.aof", "12345");
        let end = Some(("a.1.incr.aof".to_owned(), 5));
        assert_eq!(end_of_files(dir.path(), true).unwrap(), end);
        put("temp-a.incr", "");
        assert_eq!(end_of_files(dir.path(), true).unwrap(), None);
        assert_eq!(end_of_files(dir.path(), false).unwrap(), end, "left by one that died");
    }
}
