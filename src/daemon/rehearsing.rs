//! Rehearses restores: a process of its own at the lowest priority, `pitr drill`, when one is due.
//!
//! **Invariant:** what becomes of a drill touches no capture.

use super::{blocking, until_set};
use crate::archive::Archive;
use crate::clock::Timestamp;
use crate::config::Config;
use crate::drill;
use crate::error::{Context, Error, Result};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};
use tokio::sync::watch;

/// How often it is looked whether one is due.
const LOOK: Duration = Duration::from_secs(5);

/// How long is waited after one that could not be begun.
const RETRY: Duration = Duration::from_hours(1);

/// How long one may take to end when the daemon does.
const END_MAX: Duration = Duration::from_secs(3);

/// Has drills made for as long as the daemon runs.
pub(super) async fn rehearse(
    config: Config,
    every: Duration,
    mut stopped: watch::Receiver<bool>,
) -> Result<()> {
    let mut not_before = Instant::now();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = until_set(&mut stopped) => return Ok(()),
        }
        if Instant::now() < not_before {
            continue;
        }
        let due = match is_due(&config, every).await {
            Ok(due) => due,
            Err(error) => {
                tracing::warn!("look for the last drill: {error}");
                not_before = Instant::now() + RETRY;
                continue;
            }
        };
        if !due {
            continue;
        }
        tracing::info!("a drill begins");
        match run(&config, &mut stopped).await {
            Ok(Some(0)) => tracing::info!("the drill is passed"),
            Ok(Some(1)) => tracing::error!("the drill is not passed: `pitr doctor` says more"),
            Ok(Some(code)) => {
                tracing::warn!("the drill could not be made (exit {code}): run `pitr drill`");
                not_before = Instant::now() + RETRY;
            }
            // The daemon stops.
            Ok(None) => return Ok(()),
            Err(error) => {
                tracing::warn!("{error}");
                not_before = Instant::now() + RETRY;
            }
        }
    }
}

/// Whether there is something to rehearse, and the last time is long enough ago.
async fn is_due(config: &Config, every: Duration) -> Result<bool> {
    let (root, sources) = (config.archive.clone(), config.sources.clone());
    blocking(move || {
        let archive = Archive::open_read_only(&root)?;
        if let Some(last) = drill::last(&archive)?
            && Timestamp::now() < last.begun_at.after(every)
        {
            return Ok(false);
        }
        Ok(crate::restore::latest(&archive, &sources).is_ok())
    })
    .await
}

/// Runs one to its end, and gives its exit code; `None` if the daemon stops first.
async fn run(config: &Config, stopped: &mut watch::Receiver<bool>) -> Result<Option<i32>> {
    let program = std::env::current_exe().unavailable(|| "find the own program".into())?;
    let mut command = Command::new("nice");
    command
        .args(["-n", "19"])
        .arg(program)
        .arg("--config")
        .arg(&config.path)
        .arg("drill")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true);
    let mut child = command.spawn().unavailable(|| "start a drill".into())?;
    tokio::select! {
        status = child.wait() => {
            let status = status.unavailable(|| "wait for a drill".into())?;
            let ended = || Error::unavailable(format!("the drill ended with {status}"));
            status.code().ok_or_else(ended).map(Some)
        }
        () = until_set(stopped) => {
            end(&mut child).await;
            Ok(None)
        }
    }
}

/// Has a drill clean up and end, as with Ctrl-C.
async fn end(child: &mut Child) {
    let Some(pid) = child.id() else { return };
    let asked = Command::new("kill").args(["-TERM", &pid.to_string()]).status().await;
    if let Err(error) = asked {
        tracing::warn!("end the drill: {error}");
    }
    if tokio::time::timeout(END_MAX, child.wait()).await.is_err() {
        tracing::warn!("the drill does not end, and is killed");
    }
}
