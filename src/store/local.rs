//! The store in a local folder: an object is a file, `/` in its name is a folder.
//!
//! Files that are still being written live beside the objects, under names that are not final
//! ([`Local::create`]), until [`Local::publish`] gives them theirs.
//!
//! **Invariant:** a final name is given only to synced bytes, through [`crate::durable`].

use super::check_name;
use crate::durable;
use crate::error::{Class, Context, Error, Result};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// How deep folders are followed by [`Local::list`]: more than an archive has.
const DEPTH_MAX: usize = 16;

/// A folder with objects.
#[derive(Debug, Clone)]
pub struct Local {
    root: PathBuf,
}

impl Local {
    /// The store in the folder `root`, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The file of an object.
    ///
    /// # Errors
    /// Usage, if it is no name of an object: see [`check_name`].
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        check_name(name)?;
        Ok(self.root.join(name))
    }

    /// Stores a small object whole. It is durable when this returns.
    ///
    /// # Errors
    /// Bug, if it exists already; unavailable, if it cannot be written.
    pub fn put_new(&self, name: &str, bytes: &[u8]) -> Result<()> {
        durable::create(&self.path_with_folder(name)?, bytes)
    }

    /// A file for an object in progress, under a name that is not final. Readable, too.
    ///
    /// # Errors
    /// Bug, if a file has that name: nothing is ever truncated. Unavailable, if it cannot be made.
    pub fn create(&self, name: &str) -> Result<File> {
        let path = self.path_with_folder(name)?;
        let created = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let class = match &created {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Class::Bug,
            _ => Class::Unavailable,
        };
        let file = created.class(class, || format!("create {}", path.display()))?;
        // The name has to survive a power cut as the bytes do that will be synced into it.
        durable::sync_dir(path.parent().unwrap_or(&self.root))?;
        Ok(file)
    }

    /// Syncs the file `from` and gives it its final name.
    ///
    /// # Errors
    /// Bug, if `to` exists already; unavailable, if it cannot be done.
    pub fn publish(&self, from: &str, to: &str) -> Result<()> {
        let (from, to) = (self.path(from)?, self.path_with_folder(to)?);
        File::open(&from)
            .and_then(|file| file.sync_all())
            .unavailable(|| format!("sync {}", from.display()))?;
        durable::publish(&from, &to)
    }

    /// Opens an object for reading.
    ///
    /// # Errors
    /// Unavailable, if it is not there or cannot be read.
    pub fn open(&self, name: &str) -> Result<File> {
        let path = self.path(name)?;
        File::open(&path).unavailable(|| format!("open {}", path.display()))
    }

    /// The bytes of a small object.
    ///
    /// # Errors
    /// Unavailable, if it is not there or cannot be read; refused, if it has more than `max` bytes.
    pub fn get(&self, name: &str, max: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![];
        self.open(name)?
            .take(max.saturating_add(1))
            .read_to_end(&mut bytes)
            .unavailable(|| format!("read {name}"))?;
        if bytes.len() as u64 > max {
            return Err(Error::refused(format!("{name} has more than {max} bytes")));
        }
        Ok(bytes)
    }

    /// `len` bytes of an object from byte `start` on.
    ///
    /// # Errors
    /// Corrupt, if the object ends before; unavailable, if it is not there or cannot be read.
    pub fn range(&self, name: &str, start: u64, len: usize) -> Result<Vec<u8>> {
        let mut file = self.open(name)?;
        let mut bytes = vec![];
        file.seek(SeekFrom::Start(start))
            .and_then(|_| file.take(len as u64).read_to_end(&mut bytes))
            .unavailable(|| format!("read {name}"))?;
        if bytes.len() != len {
            return Err(Error::corrupt(format!("{name} ends before byte {}", start + len as u64)));
        }
        Ok(bytes)
    }

    /// Size of an object in bytes; `None` if there is none of that name.
    pub fn size(&self, name: &str) -> Result<Option<u64>> {
        let path = self.path(name)?;
        match std::fs::metadata(&path) {
            Ok(found) if found.is_file() => Ok(Some(found.len())),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).unavailable(|| format!("look at {}", path.display())),
        }
    }

    /// Whether there is an object of that name.
    pub fn exists(&self, name: &str) -> Result<bool> {
        Ok(self.size(name)?.is_some())
    }

    /// All names that begin with `prefix`, sorted. Includes files in progress; a folder that is
    /// not there holds none.
    ///
    /// # Errors
    /// Unavailable, if a folder cannot be read.
    pub fn list(&self, prefix: &str) -> Result<Vec<String>> {
        let folder = match prefix.rsplit_once('/') {
            Some((folder, _)) => {
                check_name(folder)?;
                format!("{folder}/")
            }
            None => String::new(),
        };
        let mut names = vec![];
        self.walk(&folder, prefix, DEPTH_MAX, &mut names)?;
        names.sort_unstable();
        Ok(names)
    }

    /// Removes an object, durably. One that is gone already is no error.
    pub fn delete(&self, name: &str) -> Result<()> {
        durable::remove(&self.path(name)?)
    }

    /// Adds what is in `folder` (empty, or a name with `/` at its end).
    fn walk(&self, folder: &str, prefix: &str, deep: usize, into: &mut Vec<String>) -> Result<()> {
        let path = self.root.join(folder);
        let reading = || format!("list {}", path.display());
        let entries = match std::fs::read_dir(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries.unavailable(reading)?,
        };
        for entry in entries {
            let entry = entry.unavailable(reading)?;
            // No object of pitr has such a name.
            let Ok(name) = entry.file_name().into_string() else { continue };
            let name = format!("{folder}{name}");
            // Follows links: a source's folder may lie on another disk.
            let kind = match std::fs::metadata(entry.path()) {
                // Removed since, or a link that leads nowhere.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                found => found.unavailable(reading)?,
            };
            let inner = format!("{name}/");
            if kind.is_dir() && (inner.starts_with(prefix) || prefix.starts_with(&inner)) {
                if deep == 0 {
                    return Err(Error::refused(format!("{} is too deep", entry.path().display())));
                }
                self.walk(&inner, prefix, deep - 1, into)?;
            } else if kind.is_file() && name.starts_with(prefix) {
                into.push(name);
            }
        }
        Ok(())
    }

    fn path_with_folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name)?;
        if let Some(folder) = path.parent() {
            durable::create_dir_all(folder)?;
        }
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use std::io::Write;

    fn store() -> (tempfile::TempDir, Local) {
        let dir = tempfile::tempdir().unwrap();
        let store = Local::new(dir.path().join("archive"));
        (dir, store)
    }

    #[rstest]
    #[case::empty("")]
    #[case::absolute("/etc/passwd")]
    #[case::up("a/../b")]
    #[case::only_up("..")]
    #[case::here("./a")]
    #[case::double("a//b")]
    #[case::folder("a/")]
    #[case::windows("a\\b")]
    #[case::drive("c:/a")]
    #[case::nul("a\0b")]
    fn names_that_lead_elsewhere_are_refused(#[case] name: &str) {
        let (_dir, store) = store();
        assert_eq!(store.path(name).unwrap_err().class(), Class::Usage);
        assert!(store.put_new(name, b"x").is_err());
        assert!(store.delete(name).is_err());
        assert!(store.list(&format!("{name}/x")).is_err());
    }

    #[test]
    fn overlong_names_are_refused() {
        assert!(check_name(&"a".repeat(255)).is_ok());
        assert!(check_name(&"a".repeat(256)).is_err());
        assert!(check_name(&"a/".repeat(600)).is_err());
    }

    #[test]
    fn an_object_is_written_once() {
        let (_dir, store) = store();
        store.put_new("shop/t0001/a.json", b"one").unwrap();
        assert_eq!(store.put_new("shop/t0001/a.json", b"two").unwrap_err().class(), Class::Bug);
        assert_eq!(store.get("shop/t0001/a.json", 3).unwrap(), b"one");
        assert_eq!(store.get("shop/t0001/a.json", 2).unwrap_err().class(), Class::Refused);
        assert_eq!(store.range("shop/t0001/a.json", 1, 2).unwrap(), b"ne");
        assert_eq!(store.range("shop/t0001/a.json", 1, 3).unwrap_err().class(), Class::Corrupt);
        assert_eq!(store.get("shop/t0001/b.json", 9).unwrap_err().class(), Class::Unavailable);
    }

    #[test]
    fn a_file_in_progress_becomes_an_object_by_publishing() {
        let (_dir, store) = store();
        let mut file = store.create("shop/t0001/seg.open").unwrap();
        file.write_all(b"bytes").unwrap();
        assert_eq!(store.create("shop/t0001/seg.open").unwrap_err().class(), Class::Bug);
        store.publish("shop/t0001/seg.open", "shop/t0001/seg.zst").unwrap();
        assert!(!store.exists("shop/t0001/seg.open").unwrap());
        assert_eq!(store.size("shop/t0001/seg.zst").unwrap(), Some(5));
        store.create("shop/t0001/seg.open").unwrap();
        assert!(store.publish("shop/t0001/seg.open", "shop/t0001/seg.zst").is_err());
        assert_eq!(store.get("shop/t0001/seg.zst", 9).unwrap(), b"bytes");
    }

    #[test]
    fn listing_is_by_prefix_and_sorted() {
        let (_dir, store) = store();
        assert!(store.list("").unwrap().is_empty());
        for name in ["shop/t0002/a", "shop/t0001/b", "shop/t0001/a", "shopping/x", "archive.json"] {
            store.put_new(name, b"").unwrap();
        }
        assert_eq!(store.list("shop/").unwrap(), ["shop/t0001/a", "shop/t0001/b", "shop/t0002/a"]);
        assert_eq!(store.list("shop/t0001/b").unwrap(), ["shop/t0001/b"]);
        assert_eq!(store.list("sho").unwrap().len(), 4);
        assert_eq!(store.list("").unwrap().len(), 5);
        store.delete("shopping/x").unwrap();
        store.delete("shopping/x").unwrap();
        assert!(store.list("shopping/").unwrap().is_empty());
    }
}
