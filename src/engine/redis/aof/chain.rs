//! The files that follow one another, from the one that is read to the one that is written.
//!
//! Two increments are live at once while the base is rewritten (`aof.c`,
//! `rewriteAppendOnlyFileBackground` opens the next one first): whoever sees both in one manifest
//! knows that the second goes on where the first ends. Consecutive numbers alone say nothing:
//! when appendonly is switched off and on again, the next number comes with a hole before it.
//!
//! Each file is linked into a folder of the archive as soon as it is seen, so the server's removal
//! of its name loses nothing, also while pitr does not run. Where that is not possible (another
//! file system) the open file does the same for as long as the process lives. Only files that are
//! proved to follow one another are linked there.
//!
//! **Invariant:** a file is done only when its successor was seen before its end was.

use super::clock::End;
use super::manifest::{self, Entry, Manifest};
use crate::durable;
use crate::error::{Context, Error, Result};
use crate::position::Position;
use crate::record::CHUNK_BYTES;
use bytes::Bytes;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Longest manifest that is read, in bytes.
const MANIFEST_MAX: u64 = 1 << 20;

/// One of the files.
#[derive(Debug)]
struct Part {
    entry: Entry,
    file: Arc<File>,
}

/// What a look at the files gave.
#[derive(Debug)]
pub(super) enum Step {
    /// The next bytes of the current file.
    Bytes(Vec<u8>),
    /// Nothing new.
    Idle,
    /// The current file is done, and the next one is this.
    Next(String),
    /// The current file is done, and nothing is known to follow.
    Broken(String),
    /// The current file is this short now: shorter than what was read of it.
    Shrunk(u64),
}

/// The files, the one that is read first.
#[derive(Debug)]
pub(super) struct Chain {
    dir: PathBuf,
    pins: PathBuf,
    parts: VecDeque<Part>,
    /// Why nothing follows the last one.
    broken: Option<String>,
    /// What the manifest looked like: its inode, size and times.
    seen: Option<(u64, u64, i64, i64)>,
}

impl Chain {
    fn new(dir: &Path, pins: &Path) -> Self {
        let parts = VecDeque::new();
        Self { dir: dir.to_owned(), pins: pins.to_owned(), parts, broken: None, seen: None }
    }

    /// Begins with the first increment behind the current base.
    ///
    /// # Errors
    /// Refused, if there is none; unavailable, if a file was removed meanwhile.
    pub(super) fn begin(dir: &Path, pins: &Path) -> Result<Self> {
        let mut chain = Self::new(dir, pins);
        for name in chain.pinned()? {
            durable::remove(&pins.join(name))?;
        }
        let manifest = read_manifest(dir)?;
        if manifest.increments.is_empty() {
            return Err(Error::refused(format!("{} has no increment yet", dir.display())));
        }
        chain.extend(manifest.increments)?;
        Ok(chain)
    }

    /// Goes on at `at`. `Err` of the inner result says why that cannot be.
    ///
    /// # Errors
    /// Refused or unavailable, if the files cannot be read.
    pub(super) fn resume(
        dir: &Path,
        pins: &Path,
        at: &Position,
        last: Option<&(Position, Bytes)>,
        same_server: bool,
    ) -> Result<Result<Self, String>> {
        let mut chain = Self::new(dir, pins);
        let name = &at.log;
        let increments = read_manifest(dir)?.increments;
        let place = |name: &str| increments.iter().position(|entry| entry.name == *name);
        let (live, pinned) = (inode(&dir.join(name))?, inode(&pins.join(name))?);
        let files: Vec<Entry> = match (place(name), pinned) {
            (Some(_), Some(pinned)) if live != Some(pinned) => {
                return Ok(Err(format!("{name} is another file than the one that was captured")));
            }
            (Some(first), _) => increments.into_iter().skip(first).collect(),
            (None, None) => {
                return Ok(Err(format!(
                    "{name} was removed by the server before it was read to its end, from offset \
                     {} on",
                    at.offset
                )));
            }
            (None, Some(_)) => {
                // Those that were proved to follow it, and what is live together with the last.
                let mut files: Vec<Entry> = chain.pinned_entries()?;
                let Some(first) = files.iter().position(|entry| entry.name == *name) else {
                    return Ok(Err(format!("{name} is not the name of an increment")));
                };
                files.drain(..first);
                let next = files.last().and_then(|last| place(&last.name));
                files.extend(next.into_iter().flat_map(|i| increments.iter().skip(i + 1)).cloned());
                // The server numbers them one after the other. One that could not be linked is
                // missing here without a trace.
                let numbers: Vec<Option<u64>> =
                    files.iter().map(|entry| seq(&entry.name)).collect();
                let is_next = |pair: &[Option<u64>]| match pair {
                    [Some(one), Some(other)] => one.checked_add(1) == Some(*other),
                    _ => false,
                };
                if !numbers.windows(2).all(is_next) {
                    return Ok(Err(format!(
                        "an increment behind {name} was removed by the server before it was read"
                    )));
                }
                files
            }
        };
        chain.extend(files)?;
        let Some(part) = chain.parts.front() else { return Ok(Err(format!("{name} is gone"))) };
        let is_known = pinned.is_some() || same_server;
        Ok(check(&part.file, at, last, is_known, same_server).map(|()| chain))
    }

    /// The name of the current file.
    pub(super) fn name(&self) -> String {
        self.parts.front().map(|part| part.entry.name.clone()).unwrap_or_default()
    }

    /// Looks whether there is something behind `offset` of the current file. Of the last one only
    /// what was `written` by a server that lived on is read.
    pub(super) fn step(&mut self, offset: u64, room: usize, written: Option<&End>) -> Result<Step> {
        // First the manifest: only then what is the end now is the end for good.
        self.follow()?;
        let Some(part) = self.parts.front() else { return Err(Error::bug("no file is read")) };
        let reading = || format!("read {}", part.entry.name);
        let len = part.file.metadata().unavailable(reading)?.len();
        if len < offset {
            return Ok(Step::Shrunk(len));
        }
        // A file that has a successor, or that the server has left behind, is written no more.
        let is_last = self.parts.len() == 1 && self.broken.is_none();
        let written = written.filter(|(name, _)| *name == part.entry.name).map(|(_, end)| *end);
        let until = if is_last { len.min(written.unwrap_or(0)) } else { len };
        let left = usize::try_from(until.saturating_sub(offset)).unwrap_or(usize::MAX);
        let size = left.min(room.min(CHUNK_BYTES));
        if size > 0 {
            let mut bytes = vec![0; size];
            return match part.file.read_exact_at(&mut bytes, offset) {
                Ok(()) => Ok(Step::Bytes(bytes)),
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(Step::Shrunk(offset)),
                Err(error) => Err(error).unavailable(reading),
            };
        }
        if left > 0 || is_last {
            return Ok(Step::Idle);
        }
        if let Some(next) = self.parts.get(1) {
            return Ok(Step::Next(next.entry.name.clone()));
        }
        Ok(self.broken.clone().map_or(Step::Idle, Step::Broken))
    }

    /// Goes over to the next file.
    pub(super) fn advance(&mut self) {
        self.parts.pop_front();
    }

    /// Lets go of the files before this one, all of which is durable.
    pub(super) fn release_before(&self, name: &str) -> Result<()> {
        let Some(current) = seq(name) else { return Ok(()) };
        let is_before = |entry: &Entry| seq(&entry.name).is_some_and(|seq| seq < current);
        for entry in self.pinned_entries()?.into_iter().filter(is_before) {
            durable::remove(&self.pins.join(entry.name))?;
        }
        Ok(())
    }

    /// Takes in what the manifest has behind the last file.
    fn follow(&mut self) -> Result<()> {
        let path = manifest_path(&self.dir)?;
        let found = fs::metadata(&path).unavailable(|| format!("look at {}", path.display()))?;
        let looks = (found.ino(), found.len(), found.mtime(), found.mtime_nsec());
        if self.seen == Some(looks) || self.broken.is_some() {
            return Ok(());
        }
        let increments = read_manifest(&self.dir)?.increments;
        let last = self.parts.back().map(|part| part.entry.name.clone()).unwrap_or_default();
        match increments.iter().position(|entry| entry.name == last) {
            Some(place) => self.extend(increments.into_iter().skip(place + 1))?,
            None => {
                let next = increments.first().map_or("nothing", |entry| entry.name.as_str());
                self.broken = Some(format!(
                    "the append-only log goes on with {next}, and nobody saw that it follows {last}: \
                     appendonly was off for a while, or files were rewritten while pitr did not look"
                ));
            }
        }
        self.seen = Some(looks);
        Ok(())
    }

    fn extend(&mut self, entries: impl IntoIterator<Item = Entry>) -> Result<()> {
        for entry in entries {
            let file = Arc::new(self.open(&entry.name)?);
            self.parts.push_back(Part { entry, file });
        }
        Ok(())
    }

    /// Links a file into the archive, and opens it.
    fn open(&self, name: &str) -> Result<File> {
        let (live, pin) = (self.dir.join(name), self.pins.join(name));
        durable::create_dir_all(&self.pins)?;
        let path = match fs::hard_link(&live, &pin) {
            Ok(()) => &pin,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let live_inode = inode(&live)?;
                if live_inode.is_some() && live_inode != inode(&pin)? {
                    return Err(Error::unavailable(format!(
                        "{} is another file than {}",
                        live.display(),
                        pin.display()
                    )));
                }
                &pin
            }
            Err(error) if error.kind() == ErrorKind::NotFound && inode(&pin)?.is_some() => &pin,
            Err(error) => {
                tracing::debug!("link {} into the archive: {error}", live.display());
                &live
            }
        };
        File::open(path).unavailable(|| format!("open {}", path.display()))
    }

    /// Names of the files that are linked.
    fn pinned(&self) -> Result<Vec<String>> {
        if !self.pins.is_dir() {
            return Ok(vec![]);
        }
        Ok(names_in(&self.pins)?.into_iter().filter(|name| seq(name).is_some()).collect())
    }

    /// The files that are linked, in order.
    fn pinned_entries(&self) -> Result<Vec<Entry>> {
        let names = self.pinned()?.into_iter();
        let mut entries: Vec<Entry> =
            names.filter_map(|name| Some(Entry { seq: seq(&name)?, name })).collect();
        entries.sort_by_key(|entry| entry.seq);
        Ok(entries)
    }
}

/// Whether the file goes on behind what the archive has of it.
fn check(
    file: &File,
    at: &Position,
    last: Option<&(Position, Bytes)>,
    is_known: bool,
    same_server: bool,
) -> Result<(), String> {
    let (name, offset) = (&at.log, at.offset);
    let unread = |error: std::io::Error| format!("{name} cannot be read: {error}");
    let len = file.metadata().map_err(unread)?.len();
    if len < offset {
        return Err(format!(
            "{name} has {len} bytes and the archive {offset} of it: the server lost writes that \
             the archive has"
        ));
    }
    let last = last.filter(|(place, bytes)| place.is_same_place(at) && !bytes.is_empty());
    if let Some((_, bytes)) = last {
        let bytes = bytes.get(bytes.len().saturating_sub(len.min(offset) as usize)..);
        let bytes = bytes.unwrap_or_default();
        let mut found = vec![0; bytes.len()];
        file.read_exact_at(&mut found, offset - bytes.len() as u64).map_err(unread)?;
        if found != bytes {
            return Err(format!(
                "{name} has other bytes before offset {offset} than the archive: the server went \
                 back in its history"
            ));
        }
    }
    // Without bytes to compare, a file that another run of the server wrote may have changed.
    if last.is_some() || (is_known && (offset == 0 || same_server)) {
        return Ok(());
    }
    Err(format!("it cannot be proved that {name} is the file that was captured"))
}

/// The number in the name of an increment: `appendonly.aof.3.incr.aof`.
fn seq(name: &str) -> Option<u64> {
    name.strip_suffix(".incr.aof")?.rsplit('.').next()?.parse().ok()
}

fn inode(path: &Path) -> Result<Option<(u64, u64)>> {
    match fs::metadata(path) {
        Ok(found) => Ok(Some((found.dev(), found.ino()))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).unavailable(|| format!("look at {}", path.display())),
    }
}

/// Reads the manifest in a folder of append-only files.
///
/// # Errors
/// Usage, if the folder is not there or cannot be read. Refused, if it holds no manifest, or more
/// than one.
pub(super) fn read_manifest(dir: &Path) -> Result<Manifest> {
    let path = manifest_path(dir)?;
    let bytes = fs::read(&path).unavailable(|| format!("read {}", path.display()))?;
    if bytes.len() as u64 > MANIFEST_MAX {
        return Err(Error::corrupt(format!("{} is too long", path.display())));
    }
    manifest::parse(&bytes).map_err(|error| error.context(path.display()))
}

fn manifest_path(dir: &Path) -> Result<PathBuf> {
    let shown = dir.display();
    let mut found: Vec<String> = names_in(dir)
        .map_err(|error| {
            let hint = "aof_dir is the folder appendonlydir of the server, on this host, and pitr \
                        must be able to read it";
            Error::usage(error.to_string()).hint(hint)
        })?
        .into_iter()
        .filter(|name| name.strip_suffix(".manifest").is_some() && !name.starts_with("temp-"))
        .collect();
    match (found.pop(), found.pop()) {
        (Some(name), None) => Ok(dir.join(name)),
        (Some(_), Some(_)) => Err(Error::refused(format!("{shown} has more than one manifest"))
            .hint("move those away that are not the server's")),
        (None, _) => Err(Error::refused(format!("{shown} has no manifest")).hint(
            "switch it on with CONFIG SET appendonly yes; aof_dir is the folder appendonlydir (a \
             single appendonly.aof is that of a server before 7.0)",
        )),
    }
}

/// What is in a folder; without names that are not UTF-8, none of which the server gives.
///
/// # Errors
/// Unavailable, if the folder or one of its entries cannot be read.
pub(super) fn names_in(dir: &Path) -> Result<Vec<String>> {
    let listing = || format!("list {}", dir.display());
    let entries: std::io::Result<Vec<_>> =
        fs::read_dir(dir).unavailable(listing)?.map(|entry| Ok(entry?.file_name())).collect();
    Ok(entries
        .unavailable(listing)?
        .into_iter()
        .filter_map(|name| name.into_string().ok())
        .collect())
}

#[cfg(test)]
mod tests;
