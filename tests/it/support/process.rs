//! Child processes: found on PATH, waited for with a deadline, ended by their process id.

use std::ffi::OsString;
use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A running child. Killed and waited for when dropped.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with both outputs appended to the file `log`.
    pub(super) fn spawn(mut command: Command, log: &Path) -> Self {
        let out = File::options().create(true).append(true).open(log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        Self { child, log: log.to_owned() }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Everything that it wrote.
    pub(super) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// SIGKILL, and waits until it is gone.
    pub(super) fn kill(&mut self) -> ExitStatus {
        // It may have ended by itself; `wait` gives its status in either case.
        drop(self.child.kill());
        self.child.wait().unwrap()
    }

    /// Sends a signal by its name: `TERM`, `STOP`, `CONT`.
    pub(super) fn signal(&self, name: &str) {
        // The shell's builtin: a minimal Debian has no `kill` program.
        let status =
            Command::new("sh").args(["-c", &format!("kill -{name} {}", self.pid())]).status();
        assert!(status.unwrap().success(), "kill -{name} {}", self.pid());
    }

    /// SIGTERM, and waits until it is gone.
    pub(super) async fn terminate(&mut self, deadline: Duration) -> ExitStatus {
        if let Some(status) = self.ended() {
            return status;
        }
        self.signal("TERM");
        self.wait(deadline).await
    }

    /// Waits until it ends by itself.
    pub(super) async fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(
                begun.elapsed() < deadline,
                "process {} runs on after {deadline:?}; its log:\n{}",
                self.pid(),
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether the tests run as root; `mysqld` refuses that unless told `--user=root`.
pub(super) fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

/// A port of 127.0.0.1 that is free now, below the range that the kernel hands to outgoing
/// connections, so that a server that restarts finds it free again.
pub(super) fn free_port() -> u16 {
    for _ in 0..1_000 {
        let port = rand::random_range(12_000..30_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}

/// Where `fixtures/servers.sh` puts the programs that apt cannot install.
fn servers_bin() -> PathBuf {
    let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    var("PITR_SERVERS_DIR")
        .or_else(|| var("XDG_CACHE_HOME").map(|d| d.join("pitr-servers")))
        .or_else(|| var("HOME").map(|d| d.join(".cache/pitr-servers")))
        .unwrap_or_default()
        .join("bin")
}

/// PATH with the folder of `fixtures/servers.sh` in front, and with the folders of system
/// programs, which a plain user's PATH may lack.
pub(super) fn search_path() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let dirs = std::iter::once(servers_bin()).chain(std::env::split_paths(&path)).chain(system);
    std::env::join_paths(dirs).unwrap()
}

/// The program `name`.
///
/// # Panics
/// If there is none: a missing server is a failure, not a skip.
pub(crate) fn program(name: &str) -> PathBuf {
    std::env::split_paths(&search_path())
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("no {name} on PATH: run fixtures/servers.sh"))
}

/// What `program --version` says.
pub(super) fn version(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output();
    let output = output.unwrap_or_else(|error| panic!("{} --version: {error}", program.display()));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
