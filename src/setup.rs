//! Keeps what a server is besides its data, which no log carries: users, settings, modules.
//!
//! What is read is stored where it is not what was read last, so there is one object for each change. They
//! are small, and retention leaves them alone.
//!
//! **Invariant:** an object is written once; what a restore takes is what was read last before its
//! instant.

use crate::archive::Archive;
use crate::clock::Timestamp;
use crate::error::{Class, Result};
use crate::manifest::{FORMAT, Setup, StoredSetup, names};
use std::path::Path;

/// Longest object that is read, in bytes.
const SETUP_MAX: u64 = 32 << 20;

/// Stores what was read `now`, if it is not what was read last. Gives the object's name then. The
/// caller holds the archive's lock.
///
/// # Errors
/// Unavailable, if the archive cannot be read or written.
pub fn keep(root: &Path, source: &str, setup: Setup, now: Timestamp) -> Result<Option<String>> {
    let archive = Archive::open_read_only(root)?;
    match before(&archive, source, now) {
        Ok(Some((_, last))) if last.setup == setup => return Ok(None),
        // What is damaged is told by `verify`; from here on there is a sound one again.
        Err(error) if error.class() != Class::Corrupt => return Err(error),
        _ => {}
    }
    let name = names::setup(source, now);
    if archive.store().exists(&name)? {
        // Within the same second; the next look stores it.
        return Ok(None);
    }
    let stored = StoredSetup {
        format: FORMAT,
        archive: archive.meta().archive.clone(),
        source: source.to_owned(),
        at: now,
        setup,
    };
    archive.store().put_new(&name, &stored.encode()?)?;
    Ok(Some(name))
}

/// What a source was at an instant, with the name of its object: what was read last before it, else
/// first behind it. `None` if nothing was ever read.
///
/// # Errors
/// Corrupt, if the object is damaged. Unavailable, if the archive cannot be read.
pub fn at(archive: &Archive, source: &str, at: Timestamp) -> Result<Option<(String, StoredSetup)>> {
    match before(archive, source, at)? {
        None => match objects(archive, source)?.into_iter().next() {
            Some(first) => read(archive, first).map(Some),
            None => Ok(None),
        },
        found => Ok(found),
    }
}

fn before(archive: &Archive, source: &str, at: Timestamp) -> Result<Option<(String, StoredSetup)>> {
    let until = names::setup(source, at);
    let last = objects(archive, source)?.into_iter().rfind(|name| *name <= until);
    last.map(|name| read(archive, name)).transpose()
}

/// The objects of a source, in order.
fn objects(archive: &Archive, source: &str) -> Result<Vec<String>> {
    let mut all = archive.store().list(&names::setups(source))?;
    all.retain(|name| name.strip_suffix(".json").is_some());
    Ok(all)
}

fn read(archive: &Archive, name: String) -> Result<(String, StoredSetup)> {
    let json = archive.store().get(&name, SETUP_MAX)?;
    let stored = StoredSetup::decode(&json).map_err(|error| error.context(&name))?;
    Ok((name, stored))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_change_is_stored_and_found_for_the_instants_from_then_on() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("archive");
        let archive = Archive::init(&root).unwrap();
        let start = Timestamp::from_secs(1_700_000_000);
        let after = |secs| start.after(Duration::from_secs(secs));
        let setup = |user: &str| Setup { users: vec![user.into()], ..Setup::default() };
        assert_eq!(at(&archive, "r", start).unwrap(), None);
        let first = keep(&root, "r", setup("a"), start).unwrap().unwrap();
        assert_eq!(keep(&root, "r", setup("a"), after(3600)).unwrap(), None);
        let second = keep(&root, "r", setup("b"), after(7200)).unwrap().unwrap();
        let third = keep(&root, "r", setup("a"), after(9000)).unwrap().unwrap();
        let name = |secs| at(&archive, "r", after(secs)).unwrap().unwrap().0;
        assert_eq!(
            [name(0), name(7199), name(7200), name(9999)],
            [first.clone(), first.clone(), second.clone(), third]
        );
        let long_before = at(&archive, "r", Timestamp::from_secs(1)).unwrap().unwrap();
        assert_eq!(long_before.0, first, "the first one there is");
        // A changed byte is noticed, and the next look stores what is true.
        let path = root.join(&second);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"b\"", "\"c\"")).unwrap();
        assert_eq!(at(&archive, "r", after(7300)).unwrap_err().class(), Class::Corrupt);
        assert!(keep(&root, "r", setup("b"), after(7400)).unwrap().is_some());
        assert_eq!(at(&archive, "r", after(7500)).unwrap().unwrap().1.setup, setup("b"));
    }
}
