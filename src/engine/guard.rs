//! Children that must not outlive pitr, however it ends.
//!
//! `kill_on_drop` does nothing for a process that is killed itself. So a shell waits beside each
//! such child, at the end of a pipe that only pitr holds open: when pitr is gone, the pipe is
//! closed, and the shell kills the child.

use crate::error::{Context, Result};
use std::process::Stdio;
use tokio::process::{Child, Command};

/// Kills a process when this one ends in whatever way. Dropped, it watches no longer.
#[derive(Debug)]
pub(in crate::engine) struct Guard {
    /// Ends when it is dropped.
    _shell: Child,
}

impl Guard {
    /// Watches over `child`. One that has ended already needs no guard.
    pub(in crate::engine) fn over(child: &Child) -> Result<Option<Self>> {
        let Some(pid) = child.id() else { return Ok(None) };
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "read -r end; kill -KILL \"$1\"", "sh", &pid.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // What is typed at the terminal is not for it.
            .process_group(0)
            .kill_on_drop(true);
        let shell = shell.spawn().unavailable(|| "start sh to watch over a child".into())?;
        Ok(Some(Self { _shell: shell }))
    }
}
