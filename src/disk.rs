//! What the system's own programs say of a disk.

use crate::error::{Context, Error, Result};
use std::path::Path;
use std::process::{Command, Output};

/// Where `df` and `test` are, whatever PATH is.
const SYSTEM_PATH: &str = "/usr/bin:/bin:/usr/sbin:/sbin";

/// Runs one of the system's programs with `path` as its last argument, and waits for it.
///
/// # Errors
/// Unavailable, if it cannot be run.
pub fn system(program: &str, args: &[&str], path: &Path) -> Result<Output> {
    let mut command = Command::new(program);
    command.args(args).arg(path).env("PATH", SYSTEM_PATH).env("LC_ALL", "C");
    command.output().unavailable(|| format!("run {program}"))
}

/// Free space for ordinary users on the disk of `path`, in bytes.
///
/// # Errors
/// Unavailable, if `df` does not say it.
pub fn free_bytes(path: &Path) -> Result<u64> {
    let output = system("df", &["-Pk", "--"], path)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let odd = || {
        let said = String::from_utf8_lossy(&output.stderr);
        Error::unavailable(format!("df {}: {}", path.display(), said.trim()))
    };
    available(&text).ok_or_else(odd)
}

/// The column before the one in percent, in KiB, of the line below the head.
fn available(text: &str) -> Option<u64> {
    let words: Vec<&str> = text.lines().nth(1)?.split_whitespace().collect();
    let percent = words.iter().rposition(|word| word.ends_with('%'))?;
    let kib: u64 = words.get(percent.checked_sub(1)?)?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/a b 100 40 60 40% /x y\n", Some(60 << 10))]
    #[case("Filesystem 1024-blocks Used Available Capacity Mounted on\n", None)]
    #[case("a\nb c -5 4% /\n", None)]
    #[case("a\n4% /\n", None)]
    #[case("", None)]
    fn free_space_is_read(#[case] text: &str, #[case] free: Option<u64>) {
        assert_eq!(available(text), free);
    }
}
