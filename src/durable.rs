//! Changes to local files that survive a power cut, and the lock on the archive.
//!
//! A name appears only after the bytes behind it are on disk: write, sync the file, rename, sync
//! the folder. Everything else in pitr that renames goes through here.

use crate::error::{Class, Context, Error, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often it is looked whether a lock is free.
const LOCK_LOOK: Duration = Duration::from_millis(50);

/// Syncs a folder, so that the names in it are as durable as the bytes behind them.
pub fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .unavailable(|| format!("sync folder {}", dir.display()))
}

/// Gives a synced file its final name and makes the name durable. Refuses to replace.
///
/// The file must have been synced by its writer.
///
/// # Errors
/// Bug, if `to` exists: objects of an archive are written once.
#[expect(clippy::disallowed_methods, reason = "this is the one place that renames")]
pub fn publish(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        return Err(Error::bug(format!("{} exists already", to.display())));
    }
    std::fs::rename(from, to)
        .unavailable(|| format!("rename {} to {}", from.display(), to.display()))?;
    sync_dir(parent(to))
}

/// Writes a small file whole: the old content or the new one is there, never a mix.
#[expect(clippy::disallowed_methods, reason = "this is the one place that renames")]
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("tmp");
    write_synced(&temporary, bytes)?;
    std::fs::rename(&temporary, path).unavailable(|| format!("replace {}", path.display()))?;
    sync_dir(parent(path))
}

/// Puts a synced file in the place of another one: the old or the new one is there, never none.
///
/// Not for objects of an archive, which are written once: see [`publish`].
#[expect(clippy::disallowed_methods, reason = "this is the one place that renames")]
pub fn supersede(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to)
        .unavailable(|| format!("put {} in the place of {}", from.display(), to.display()))?;
    sync_dir(parent(to))
}

/// Writes a small file that must not exist yet.
///
/// # Errors
/// Bug, if it exists; unavailable, if it cannot be written.
pub fn create(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("tmp");
    write_synced(&temporary, bytes)?;
    publish(&temporary, path)
}

/// The same for one that only its owner may read.
///
/// # Errors
/// As [`create`].
pub fn create_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("tmp");
    remove(&temporary)?;
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .unavailable(|| format!("make {}", temporary.display()))?;
    write_synced(&temporary, bytes)?;
    publish(&temporary, path)
}

/// Takes a file's name, if nobody has it: an empty file stands there until it is
/// [replaced](replace). False, if there is one of that name.
///
/// # Errors
/// Unavailable, if it cannot be made.
pub fn reserve(path: &Path) -> Result<bool> {
    match File::options().write(true).create_new(true).open(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error).unavailable(|| format!("create {}", path.display())),
    }
}

/// Makes a folder and the folders above it, durably.
pub fn create_dir_all(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    // One by one, so that the name of each new folder is synced into the one above it.
    create_dir_all(parent(dir))?;
    match std::fs::create_dir(dir) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(error).unavailable(|| format!("create folder {}", dir.display()));
        }
        _ => {}
    }
    sync_dir(parent(dir))
}

/// Removes a file, durably. A file that is gone already is no error.
pub fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => sync_dir(parent(path)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).unavailable(|| format!("remove {}", path.display())),
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().unavailable(|| format!("write {}", path.display()))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// An exclusive lock, held until dropped. The kernel releases it when the process dies, however
/// it dies, so a stale lock cannot exist.
#[derive(Debug)]
pub struct Lock {
    _file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock at `path`, without waiting.
    ///
    /// # Errors
    /// Busy, if another process holds it.
    pub fn acquire(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .unavailable(|| format!("open lock {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file, path: path.to_owned() }),
            Err(TryLockError::WouldBlock) => {
                Err(Error::busy(format!("another pitr holds {}", path.display()))
                    .hint("only one `pitr run` can write an archive; stop the other one first"))
            }
            Err(TryLockError::Error(error)) => {
                Err(error).class(Class::Unavailable, || format!("lock {}", path.display()))
            }
        }
    }

    /// Takes a share of the lock on a file that exists, beside others who read what it stands for;
    /// waits for up to `patience`. Needs no right to write.
    ///
    /// `None` where the file system knows no locks: nobody can be kept out there.
    ///
    /// # Errors
    /// Busy, if another process keeps it for itself all that time.
    pub fn share(path: &Path, patience: Duration) -> Result<Option<Self>> {
        let file = File::open(path).unavailable(|| format!("open {}", path.display()))?;
        let begun = Instant::now();
        loop {
            match file.try_lock_shared() {
                Ok(()) => return Ok(Some(Self { _file: file, path: path.to_owned() })),
                Err(TryLockError::WouldBlock) if begun.elapsed() < patience => {
                    std::thread::sleep(LOCK_LOOK);
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::busy(format!(
                        "another pitr deletes from {}",
                        path.display()
                    ))
                    .hint("try again when it is done"));
                }
                Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {
                    return Ok(None);
                }
                Err(TryLockError::Error(error)) => {
                    return Err(error).unavailable(|| format!("lock {}", path.display()));
                }
            }
        }
    }

    /// Takes the lock on a file that exists for this process alone, without waiting.
    ///
    /// # Errors
    /// Busy, if anybody has a share of it.
    pub fn exclude(path: &Path) -> Result<Self> {
        let file = File::open(path).unavailable(|| format!("open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file, path: path.to_owned() }),
            Err(TryLockError::WouldBlock) => {
                Err(Error::busy(format!("{} is being read", path.display()))
                    .hint("try again when no restore, export or verification runs"))
            }
            Err(TryLockError::Error(error)) => {
                Err(error).unavailable(|| format!("lock {}", path.display()))
            }
        }
    }

    /// The lock's file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
