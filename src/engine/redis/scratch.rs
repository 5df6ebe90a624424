//! A scratch server: a program from PATH, on loopback, behind a password that nobody else knows.
//!
//! It holds what a target itself cannot show: the data of an instant, before it is copied in parts,
//! or before its keys are counted. It ends with pitr, however that ends, and what it keeps on disk
//! goes with it.
//!
//! **Invariant:** a server of which pitr did not start the process is never taken for it.

use super::control::Control;
use super::version;
use crate::engine::guard::Guard;
use crate::engine::private::PrivateDir;
use crate::engine::{Endpoint, Secret};
use crate::error::{Class, Context, Error, Result};
use crate::manifest::EngineKind;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::time::Instant;

/// How long a server may take to start, and to end.
const START_MAX: Duration = Duration::from_secs(30);
const END_MAX: Duration = Duration::from_mins(10);

/// How often another port is tried, if somebody takes the one that was free.
const PORTS_TRIED: u32 = 5;

/// A running scratch server.
#[derive(Debug)]
pub(super) struct Scratch {
    /// Where it is.
    pub(super) endpoint: Endpoint,
    child: Child,
    _guard: Option<Guard>,
    /// Where it keeps temporary files, unless it is to leave some.
    _dir: Option<PrivateDir>,
}

impl Scratch {
    /// Starts a server that can take the data of version `needed`, and whose data one of version
    /// `at_most` can take, in `dir` or a folder that goes with it, with further lines of
    /// configuration.
    ///
    /// # Errors
    /// Unavailable, if there is no such program on PATH, or it does not start.
    pub(super) async fn start(
        needed: &str,
        at_most: Option<&str>,
        dir: Option<&Path>,
        settings: &str,
    ) -> Result<Self> {
        let program = program_for(needed, at_most).await?;
        let mut last = Error::bug("no port was tried");
        for _ in 0..PORTS_TRIED {
            let mut server = spawn(&program, dir, settings).await?;
            match server.wait_until_ready().await {
                Ok(()) => return Ok(server),
                Err(error) => last = error,
            }
        }
        Err(last.context(format!("start {program}")))
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_MAX;
        let pid = self.child.id().map(|pid| pid.to_string());
        loop {
            if let Some(status) = self.child.try_wait().unavailable(|| "wait".into())? {
                return Err(Error::unavailable(format!("it ended with {status}")));
            }
            if let Ok(mut control) = Control::connect(&self.endpoint).await
                && let Ok(info) = control.info("server").await
                && info.get("process_id") == pid.as_ref()
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::unavailable("it does not answer"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends it in order: what it has appended to its files is on disk then.
    pub(super) async fn shut_down(mut self) -> Result<()> {
        let mut control = Control::connect(&self.endpoint).await?;
        // The connection breaks instead of an answer.
        let said: Result<()> = control.ask(&["SHUTDOWN", "NOSAVE"]).await;
        let ended = tokio::time::timeout(END_MAX, self.child.wait()).await;
        match ended {
            Ok(status) if status.as_ref().is_ok_and(std::process::ExitStatus::success) => Ok(()),
            _ => Err(said
                .err()
                .unwrap_or_else(|| Error::unavailable("it does not end"))
                .context("end the scratch server")),
        }
    }
}

async fn spawn(program: &str, dir: Option<&Path>, settings: &str) -> Result<Scratch> {
    let own = if dir.is_none() { Some(PrivateDir::create()?) } else { None };
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .unavailable(|| "find a free port".into())?
        .port();
    let password = format!("{:032x}", rand::random::<u128>());
    let dir = dir.or_else(|| own.as_ref().map(PrivateDir::path)).and_then(Path::to_str);
    let dir = dir.ok_or_else(|| Error::usage("the folder's path is no UTF-8"))?;
    let dir = dir.replace('\\', "\\\\").replace('"', "\\\"");
    let configuration = format!(
        "bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir \"{dir}\"\nsave \"\"\n\
         daemonize no\nlogfile \"\"\nmaxmemory 0\n{settings}\n"
    );
    let mut command = Command::new(program);
    command
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = command.spawn().unavailable(|| format!("start {program}"))?;
    let guard = Guard::over(&child)?;
    // The password is not for the list of processes.
    if let Some(mut stdin) = child.stdin.take() {
        let sent = stdin.write_all(configuration.as_bytes()).await;
        sent.unavailable(|| format!("configure {program}"))?;
    }
    let mut endpoint = Endpoint::parse(EngineKind::Redis, &format!("redis://127.0.0.1:{port}"))?;
    endpoint.password = Secret::new(password);
    Ok(Scratch { endpoint, child, _guard: guard, _dir: own })
}

/// The first program on PATH that can take data of version `needed`, and gives what one of version
/// `at_most` can take.
///
/// # Errors
/// Unavailable, if there is none.
pub(super) async fn program_for(needed: &str, at_most: Option<&str>) -> Result<String> {
    let series = needed.split('.').next().unwrap_or_default();
    let mut names =
        vec![format!("redis-server-{series}"), "redis-server".into(), "valkey-server".into()];
    if needed.ends_with("-valkey") {
        names.rotate_right(1);
    }
    let mut seen = vec![];
    for name in names {
        let Ok(output) = Command::new(&name).arg("--version").output().await else { continue };
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let number = said.split(" v=").nth(1).and_then(|rest| rest.split_whitespace().next());
        let Some(number) = number else { continue };
        let family = if said.starts_with("Valkey") { "-valkey" } else { "" };
        let found = format!("{number}{family}");
        let fits_target = at_most.is_none_or(|target| version::can_take(target, &found));
        if version::can_take(&found, needed) && fits_target {
            return Ok(name);
        }
        seen.push(format!("{name} is {found}"));
    }
    let seen = if seen.is_empty() { "none is on PATH".into() } else { seen.join(", ") };
    Err(Error::new(
        Class::Unavailable,
        format!("a scratch server is needed that can take the data of {needed}: {seen}"),
    )
    .hint("install redis-server or valkey-server of that version or a newer one"))
}
