//! MySQL's own programs as children of pitr: how they are found, and how they get their password.
//!
//! A program gets everything it needs to connect from an option file that only this user can
//! read, in a folder that only this user can enter; both are gone when the value is dropped. The
//! operator's own option files and login paths are not read, so that a setting made for other
//! work (`skip-triggers`, `ignore-table`) cannot change what pitr does.
//!
//! **Invariant:** no password stands in an argument, in the environment or in an error.

use crate::engine::private::PrivateDir;
use crate::engine::{Endpoint, Secret, TlsMode};
use crate::error::{Class, Context, Error, Result};
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

/// How much of a program's error output is kept, in bytes: its end.
const STDERR_BYTES: usize = 8 << 10;
/// Where Debian and its kin keep the public certificate authorities, for `verify` without `ca`.
const PUBLIC_CA: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Where a client program connects to.
#[derive(Debug)]
pub(super) enum Server<'a> {
    /// Over TCP.
    Endpoint(&'a Endpoint),
    /// Over a local socket.
    Socket {
        /// Path of the socket.
        path: &'a Path,
        /// User name.
        user: &'a str,
        /// Password; empty for none.
        password: &'a Secret,
    },
}

/// An option file for MySQL's client programs.
#[derive(Debug)]
pub(super) struct OptionFile {
    dir: PrivateDir,
}

impl OptionFile {
    /// Writes the file.
    pub(super) fn create(server: &Server<'_>) -> Result<Self> {
        let text = option_text(server)?;
        let dir = PrivateDir::create()?;
        let path = dir.path().join("client.cnf");
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .unavailable(|| format!("write {}", path.display()))?;
        Ok(Self { dir })
    }

    /// `program`, told to read this file and nothing else.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let mut defaults = std::ffi::OsString::from("--defaults-file=");
        defaults.push(self.dir.path().join("client.cnf"));
        command
            .arg(defaults)
            // Login paths are read even then; this names a file that is not there.
            .env("MYSQL_TEST_LOGIN_FILE", self.dir.path().join("none"))
            .env_remove("MYSQL_PWD")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }
}

fn option_text(server: &Server<'_>) -> Result<String> {
    let mut text = String::from("[client]\n");
    let mut set = |name: &str, value: &str| -> Result<()> {
        let value = quoted(value)
            .ok_or_else(|| Error::usage(format!("{name}: a control character is in the value")))?;
        writeln!(text, "{name}={value}").class(Class::Bug, || "write options".into())
    };
    match server {
        Server::Socket { path, user, password } => {
            let path = path
                .to_str()
                .ok_or_else(|| Error::usage(format!("{} is not UTF-8", path.display())))?;
            set("socket", path)?;
            set("user", user)?;
            set("password", password.reveal())?;
        }
        Server::Endpoint(endpoint) => {
            set("protocol", "TCP")?;
            set("host", &endpoint.host)?;
            set("port", &endpoint.port.to_string())?;
            set("user", &endpoint.user)?;
            if !endpoint.password.is_empty() {
                set("password", endpoint.password.reveal())?;
            }
            let tls = &endpoint.tls;
            // `loose-`: MariaDB's programs do not know these names.
            match tls.mode {
                TlsMode::Off => {
                    set("loose-ssl-mode", "DISABLED")?;
                    set("loose-get-server-public-key", "ON")?;
                }
                TlsMode::Require => set("loose-ssl-mode", "REQUIRED")?,
                TlsMode::Verify => {
                    set("loose-ssl-mode", "VERIFY_IDENTITY")?;
                    let ca = tls.ca.as_deref().unwrap_or(Path::new(PUBLIC_CA));
                    set("ssl-ca", &ca.display().to_string())?;
                }
            }
            for (name, path) in [("ssl-cert", &tls.cert), ("ssl-key", &tls.key)] {
                if let Some(path) = path {
                    set(name, &path.display().to_string())?;
                }
            }
            // Read by MariaDB's programs only, which would go on without TLS otherwise.
            text.push_str(match tls.mode {
                TlsMode::Off => "[client-mariadb]\nskip-ssl\n",
                TlsMode::Require => "[client-mariadb]\nssl\nskip-ssl-verify-server-cert\n",
                TlsMode::Verify => "[client-mariadb]\nssl\nssl-verify-server-cert\n",
            });
        }
    }
    Ok(text)
}

/// A value as option files take it, in quotes ("Using Option Files" in the manual).
fn quoted(value: &str) -> Option<String> {
    let mut text = String::with_capacity(value.len() + 2);
    text.push('"');
    for c in value.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            c if c.is_control() => return None,
            c => text.push(c),
        }
    }
    text.push('"');
    Some(text)
}

/// A program that could not be started, with what helps.
pub(super) fn start_error(program: &str, package: &str, error: std::io::Error) -> Error {
    let missing = error.kind() == ErrorKind::NotFound;
    let failed = Error::unavailable(format!("start {program}")).source(error);
    if missing {
        failed.hint(format!("install {package}, or put {program} on PATH"))
    } else {
        failed
    }
}

/// What `program --version` says: the version of the server that it belongs to.
pub(super) async fn program_version(program: &str, package: &str) -> Result<String> {
    let output = Command::new(program)
        .args(["--no-defaults", "--version"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| start_error(program, package, error))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(Error::unavailable(format!("{program} --version: {}", stderr.trim())));
    }
    version_word(&text).ok_or_else(|| {
        Error::unavailable(format!("{program} --version says no version: {}", text.trim()))
    })
}

/// The version in `mysqld  Ver 9.7.4 for Linux on x86_64` or in
/// `mysqldump  Ver 10.19 Distrib 10.11.6-MariaDB, for debian-linux-gnu`, or in
/// `mariadb-dump from 11.8.9-MariaDB, client 10.20 for debian-linux-gnu`.
fn version_word(text: &str) -> Option<String> {
    let after = |mark: &str| text.split_once(mark).map(|(_, rest)| rest);
    let rest = after("Distrib ").or_else(|| after("Ver ")).or_else(|| after(" from "))?;
    let word = rest.split([' ', ',']).next()?;
    word.starts_with(|c: char| c.is_ascii_digit()).then(|| word.to_owned())
}

/// Major and minor number of a server version.
pub(super) fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Reads error output to its end and keeps the last part of it.
pub(super) async fn last_words(mut stderr: impl AsyncRead + Unpin) -> String {
    let mut kept = Vec::new();
    let mut buffer = vec![0; 4096];
    // An error while reading ends the text: the exit status tells the rest.
    while let Ok(n @ 1..) = stderr.read(&mut buffer).await {
        kept.extend_from_slice(buffer.get(..n).unwrap_or_default());
        let surplus = kept.len().saturating_sub(STDERR_BYTES);
        kept.drain(..surplus);
    }
    String::from_utf8_lossy(&kept).trim().to_owned()
}

/// The error of a program that ended badly.
pub(super) fn failed(program: &str, status: ExitStatus, stderr: &str) -> Error {
    let said = if stderr.is_empty() { "it said nothing" } else { stderr };
    Error::unavailable(format!("{program} failed ({status}): {said}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::mysql("mysqld  Ver 9.7.4-2 for Linux on x86_64 ((Debian))", "9.7.4-2")]
    #[case::dump("mysqldump  Ver 8.0.36-28 for Linux on x86_64 (x)", "8.0.36-28")]
    #[case::mariadb(
        "mysqldump  Ver 10.19 Distrib 10.11.6-MariaDB, for debian-linux-gnu (x86_64)",
        "10.11.6-MariaDB"
    )]
    #[case::mariadb_new(
        "/usr/bin/mariadb-dump from 11.8.9-MariaDB, client 10.20 for debian-linux-gnu (x86_64)",
        "11.8.9-MariaDB"
    )]
    #[case::mariadb_server(
        "mariadbd  Ver 11.8.9-MariaDB-0+deb13u1 from Debian for debian-linux-gnu on x86_64 (x)",
        "11.8.9-MariaDB-0+deb13u1"
    )]
    fn versions_of_programs_are_found(#[case] text: &str, #[case] version: &str) {
        assert_eq!(version_word(text).unwrap(), version);
    }

    #[test]
    fn values_cannot_break_out_of_their_quotes() {
        assert_eq!(quoted("a\"b\\c #d\n").unwrap(), "\"a\\\"b\\\\c #d\\n\"");
        assert_eq!(quoted("a\0b"), None);
    }

    #[test]
    fn private_files_are_gone_when_dropped_and_closed_to_others() {
        use std::os::unix::fs::PermissionsExt;
        let file = OptionFile::create(&Server::Socket {
            path: Path::new("/x/s"),
            user: "root",
            password: &Secret::new("x"),
        })
        .unwrap();
        let dir = file.dir.path().to_owned();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&dir.join("client.cnf"))), (0o700, 0o600));
        drop(file);
        assert!(!dir.exists());
    }
}
