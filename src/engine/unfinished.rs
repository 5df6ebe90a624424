//! The mark in a folder whose restore has not come to its end.
//!
//! A restore that was interrupted, in whatever way, leaves the mark behind; the next one clears
//! what the mark stands for and starts anew.
//!
//! **Invariant:** only a folder with a mark that pitr wrote, and with nothing in it but what pitr
//! makes, is ever cleared; and never while the restore that wrote the mark still runs.

use crate::durable;
use crate::error::{Class, Context, Error, Result};
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

/// The file.
const FILE: &str = "UNFINISHED.txt";
/// The same while it is being written.
const TEMPORARY: &str = "UNFINISHED.tmp";
/// What it begins with.
const WORDS: &str = "This restore has not come to its end: the data here is not usable.\n\
    `pitr restore` into this folder clears it and starts anew.\n";
/// What stands before the process that wrote it.
const BY: &str = "process: ";

/// Whether `dir` may be filled: it is not there, or empty, or holds what an interrupted restore
/// left. `own` are the names that a restore makes in it. Changes nothing.
///
/// # Errors
/// Refused, if it holds anything else; busy, if the restore that left it still runs.
pub(in crate::engine) fn check(dir: &Path, own: &[&str]) -> Result<()> {
    let shown = dir.display();
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).class(Class::Refused, || format!("look into {shown}")),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.class(Class::Refused, || format!("look into {shown}"))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    if names.is_empty() || names == [TEMPORARY] {
        return Ok(());
    }
    let refused = |what: String| {
        Err(Error::refused(what).hint("name another folder with --into, or move this one away"))
    };
    let Some(by) = written_by(dir)? else {
        return refused(format!("{shown} is not empty"));
    };
    let known = |name: &String| own.contains(&name.as_str()) || name == FILE || name == TEMPORARY;
    if let Some(strange) = names.iter().find(|name| !known(name)) {
        return refused(format!(
            "{shown} holds a restore that was interrupted, and {strange}, which is not of it"
        ));
    }
    if Process::now(by.pid).is_some_and(|now| now == by) && by.pid != std::process::id() {
        return Err(Error::busy(format!("{shown} is being restored into by process {}", by.pid))
            .hint("wait for it to end, or name another folder with --into"));
    }
    Ok(())
}

/// Clears what an interrupted restore left in `dir`, and marks it as this process' own.
///
/// # Errors
/// As [`check`]; unavailable, if it cannot be written.
pub(in crate::engine) fn begin(dir: &Path, own: &[&str]) -> Result<()> {
    check(dir, own)?;
    durable::create_dir_all(dir)?;
    for name in own {
        let path = dir.join(name);
        let Ok(kind) = std::fs::symlink_metadata(&path) else { continue };
        tracing::info!("remove {}, which an interrupted restore left", path.display());
        if kind.is_dir() { remove_dir(&path)? } else { durable::remove(&path)? }
    }
    let by = Process::now(std::process::id())
        .map(|by| format!("{BY}{} {} {}\n", by.pid, by.start, by.boot));
    durable::replace(&dir.join(FILE), format!("{WORDS}{}", by.unwrap_or_default()).as_bytes())
}

/// Takes the mark away: the restore has come to its end.
pub(in crate::engine) fn end(dir: &Path) -> Result<()> {
    durable::remove(&dir.join(FILE))
}

/// A server that is being killed may still write for a moment.
fn remove_dir(path: &Path) -> Result<()> {
    let mut tries = 0;
    loop {
        match std::fs::remove_dir_all(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) if tries >= 20 => {
                return Err(error).unavailable(|| format!("remove {}", path.display()));
            }
            Err(_) => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// A process, told from others that had the same number.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    pid: u32,
    /// When it started, in clock ticks since the host did (proc(5), `/proc/pid/stat`, field 22).
    start: u64,
    /// The host's run.
    boot: String,
}

impl Process {
    /// The process that has this number now.
    fn now(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field, in parentheses, may hold anything; the 20th behind it is field 22.
        let (_, fields) = stat.rsplit_once(')')?;
        let start = fields.split_ascii_whitespace().nth(19)?.parse().ok()?;
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(Self { pid, start, boot: boot.trim().to_owned() })
    }
}

/// Who wrote the mark, if one of pitr is there. Where that cannot be told, a process that runs no
/// more.
fn written_by(dir: &Path) -> Result<Option<Process>> {
    let path = dir.join(FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(error).class(Class::Refused, || format!("read {}", path.display()));
        }
    };
    let Some(rest) = text.strip_prefix(WORDS) else { return Ok(None) };
    let gone = Process { pid: 0, start: 0, boot: String::new() };
    if rest.is_empty() {
        return Ok(Some(gone));
    }
    let parsed = || {
        let mut fields = rest.strip_prefix(BY)?.split_ascii_whitespace();
        let (pid, start) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(Process { pid, start, boot: fields.next()?.to_owned() })
    };
    Ok(parsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_an_interrupted_restore_left_is_cleared_and_nothing_else() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("a/b");
        check(&dir, &["data"]).unwrap();
        begin(&dir, &["data"]).unwrap();
        std::fs::create_dir(dir.join("data")).unwrap();
        std::fs::write(dir.join("data/x"), "x").unwrap();
        begin(&dir, &["data"]).unwrap();
        assert_eq!(names(&dir), [FILE]);

        std::fs::write(dir.join("mine"), "x").unwrap();
        std::fs::create_dir(dir.join("data")).unwrap();
        let error = begin(&dir, &["data"]).unwrap_err();
        assert_eq!(error.class(), Class::Refused);
        assert!(error.to_string().contains("mine"), "{error}");
        assert_eq!(names(&dir), [FILE, "data", "mine"]);
        std::fs::remove_file(dir.join("mine")).unwrap();
        end(&dir).unwrap();
        assert_eq!(check(&dir, &["data"]).unwrap_err().class(), Class::Refused);
    }

    #[test]
    fn a_mark_that_pitr_did_not_write_protects_the_folder() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path();
        for text in
            ["", "my notes", WORDS.trim_start_matches('T'), &format!("{WORDS}something else")]
        {
            std::fs::write(dir.join(FILE), text).unwrap();
            assert_eq!(begin(dir, &["data"]).unwrap_err().class(), Class::Refused, "{text:?}");
        }
    }

    #[test]
    fn a_folder_that_a_living_process_restores_into_is_busy() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path();
        let parent = Process::now(std::os::unix::process::parent_id()).unwrap();
        let mark = |start: u64| {
            let by = format!("{BY}{} {start} {}\n", parent.pid, parent.boot);
            std::fs::write(dir.join(FILE), format!("{WORDS}{by}")).unwrap();
        };
        mark(parent.start);
        assert_eq!(check(dir, &[]).unwrap_err().class(), Class::Busy);
        // The same number, but another process.
        mark(parent.start + 1);
        check(dir, &[]).unwrap();
    }
}
