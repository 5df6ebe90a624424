//! This host: free space, who holds the archive, who can read and change what is secret.
//!
//! The standard library does not tell free space or rights; the programs of every Unix do.

use crate::config::Config;
use crate::disk::system;
use crate::engine::checkup::{Finding, Level};
use indicatif::BinaryBytes;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

/// With less free space than this, the next segments and baselines may not fit.
const FREE_MIN: u64 = 256 << 20;

const DAY: Duration = Duration::from_hours(24);

/// How fast the archive grows, and for how long it goes on to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Growth {
    /// Segments and a baseline, compressed.
    pub(super) bytes_a_day: u64,
    /// How far back the archive goes.
    pub(super) held: Duration,
    /// How far back it goes when retention begins to delete.
    pub(super) kept: Duration,
}

/// Whether files can be made in the archive: asked of the kernel, not tried.
pub(super) fn writable(root: &Path) -> Finding {
    const CHECK: &str = "writable";
    let why = "nothing can be captured into it";
    match system("test", &["-w"], root) {
        Ok(output) if output.status.success() => Finding::ok(CHECK, "files can be made in it"),
        Ok(_) => {
            let what = format!("{} cannot be written to by this user", root.display());
            let fix = format!(
                "chown it to the user that runs pitr, or mount it writable: findmnt -T {}",
                root.display()
            );
            Finding::new(Level::Problem, CHECK, what, why).fix(fix)
        }
        Err(error) => Finding::failed(Level::Note, CHECK, &error, "it was not looked at"),
    }
}

/// Judges whether the archive has room to grow.
pub(super) fn judge_space(free: u64, growth: Option<Growth>) -> Finding {
    const CHECK: &str = "space";
    let why = "a full disk holds up the capture until there is space, or the sources purge what \
               was not captured";
    let fix = "a larger disk, or a smaller [retention] days and `pitr prune`";
    let what = format!("{} are free", BinaryBytes(free));
    if free < FREE_MIN {
        return Finding::new(Level::Problem, CHECK, what, why).fix(fix);
    }
    let Some(Growth { bytes_a_day, held, kept }) = growth else {
        return Finding::ok(CHECK, format!("{what}; how fast it grows is not known yet"));
    };
    let what = format!("{what}, and the archive grows by {} a day", BinaryBytes(bytes_a_day));
    let ahead = kept.saturating_sub(held).max(DAY);
    let needed = bytes_a_day as f64 * (ahead.as_secs_f64() / DAY.as_secs_f64());
    let lasts = free as f64 / bytes_a_day.max(1) as f64;
    if free as f64 >= needed {
        return Finding::ok(CHECK, format!("{what}: enough until retention deletes as much"));
    }
    let what = format!("{what}: it is full in {lasts:.1} days");
    let level = if lasts < 1.0 { Level::Problem } else { Level::Warning };
    Finding::new(level, CHECK, what, why).fix(fix)
}

/// The process that holds a lock on a file. Read from the kernel's list: trying to lock would get
/// into the way of a daemon that starts.
pub(super) fn lock_holder(path: &Path) -> Option<u32> {
    let inode = std::fs::metadata(path).ok()?.ino();
    holder(&std::fs::read_to_string("/proc/locks").ok()?, inode)
}

/// Lines are `1: FLOCK  ADVISORY  WRITE 4711 08:01:131074 0 EOF`; those that wait have `->`.
fn holder(locks: &str, inode: u64) -> Option<u32> {
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let kind = words.next()?;
        let (mode, pid, place) = (words.nth(1)?, words.next()?, words.next()?);
        let is_it = place.rsplit(':').next()?.parse() == Ok(inode);
        (kind == "FLOCK" && mode == "WRITE" && is_it).then(|| pid.parse().ok())?
    })
}

/// Who else can read the data or change what pitr does. That nobody can read passwords was seen to
/// when the configuration was read.
pub(super) fn files(config: &Config) -> Vec<Finding> {
    let mode = |path: &Path| std::fs::metadata(path).map(|meta| meta.permissions().mode());
    let mut findings = Vec::new();
    if let Ok(mode) = mode(&config.path) {
        let path = config.path.display();
        findings.push(if mode & 0o022 == 0 {
            Finding::ok("configuration", format!("only its owner can change {path}"))
        } else {
            let what = format!("others can change {path}");
            let why = "who changes it has pitr run commands of their own (password_command)";
            Finding::new(Level::Warning, "configuration", what, why)
                .fix(format!("chmod go-w {path}"))
        });
    }
    if let Ok(mode) = mode(&config.archive) {
        let path = config.archive.display();
        let others = mode & 0o007;
        findings.push(if others == 0 {
            Finding::ok("privacy", "only its owner and group can look into the archive")
        } else {
            let what = format!("everybody on this host can look into {path}");
            let why = "it holds all data of all sources, and the digests of their passwords";
            Finding::new(Level::Warning, "privacy", what, why).fix(format!("chmod o-rwx {path}"))
        });
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const GIB: u64 = 1 << 30;

    #[rstest]
    #[case::nothing_left(100 << 20, None, Level::Problem)]
    #[case::too_early(GIB, None, Level::Ok)]
    #[case::steady(2 * GIB, Some((GIB, 20, 15)), Level::Ok)]
    #[case::steady_and_tight(GIB, Some((2 * GIB, 20, 15)), Level::Problem)]
    #[case::enough_for_the_rest(11 * GIB, Some((GIB, 5, 15)), Level::Ok)]
    #[case::full_before_retention_deletes(9 * GIB, Some((GIB, 5, 15)), Level::Warning)]
    #[case::full_today(GIB, Some((2 * GIB, 5, 15)), Level::Problem)]
    #[case::nothing_grows(GIB, Some((0, 5, 15)), Level::Ok)]
    fn a_disk_has_to_take_what_is_going_to_be_kept(
        #[case] free: u64,
        #[case] growth: Option<(u64, u32, u32)>,
        #[case] level: Level,
    ) {
        let growth = growth.map(|(bytes_a_day, held, kept)| Growth {
            bytes_a_day,
            held: DAY * held,
            kept: DAY * kept,
        });
        let found = judge_space(free, growth);
        assert_eq!(found.level, level, "{found:?}");
        assert_eq!(found.fix.is_some(), level > Level::Ok);
    }

    #[test]
    fn who_holds_a_lock_is_found() {
        let locks = "1: POSIX  ADVISORY  WRITE 1 08:01:42 0 EOF\n\
                     2: FLOCK  ADVISORY  READ 2 08:01:42 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 3 08:01:42 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 4711 00:2e:42 0 EOF\n";
        assert_eq!(holder(locks, 42), Some(4711));
        assert_eq!(holder(locks, 43), None);
        assert_eq!(holder("nonsense\n", 42), None);
    }
}
