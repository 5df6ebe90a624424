//! The data of an instant in a scratch server, in which no key expires.
//!
//! All expiries are moved far into the future, and by the same time, so that everything is there to
//! be read: also what has expired since, and what was past its expiry and not deleted yet.

use super::control::Control;
use super::digest::digest;
use super::scratch::Scratch;
use super::target::RedisServer;
use crate::engine::digest::Digest;
use crate::engine::{Destination, Endpoint, Needs, Target, TargetOptions};
use crate::error::Result;
use crate::manifest::BaselineMeta;
use crate::record::{Applied, Cut, OpenBaseline, OpenLog};
use std::sync::Arc;

/// Databases of the scratch server: more than any source has.
const SETTINGS: &str = "databases 4096\nappendonly no";

/// A scratch server, and what fills it.
#[derive(Debug)]
pub(super) struct State {
    /// What fills it.
    pub(super) server: RedisServer,
    scratch: Scratch,
}

impl State {
    /// Starts the server, and lets it look through what it is going to get. `at_most` is a version
    /// that its data has to be fit for.
    ///
    /// # Errors
    /// Unavailable, if no such server is on PATH. Refused or corrupt, as a restore would be.
    pub(super) async fn begin(
        options: &TargetOptions,
        needs: &Needs,
        at_most: Option<&str>,
        baseline: &BaselineMeta,
        open: OpenBaseline,
        log: OpenLog,
        cut: &Cut,
    ) -> Result<Self> {
        let scratch = Scratch::start(&needs.version, at_most, None, SETTINGS).await?;
        let options = TargetOptions {
            destination: Destination::Running(scratch.endpoint.clone()),
            listen: None,
            ..options.clone()
        };
        let mut server = RedisServer::scratch(options, scratch.endpoint.clone());
        server.preflight(needs).await?;
        server.examine(baseline, open, log, cut).await?;
        Ok(Self { server, scratch })
    }

    /// Where it is.
    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.scratch.endpoint
    }
}

/// What a baseline with the log behind it holds at `cut`.
#[derive(Debug)]
pub struct Content {
    /// All of it.
    pub digest: Digest,
    /// What the log had.
    pub applied: Applied,
    /// Commands in it whose expiries, if they have any, could not be moved.
    pub unknown_commands: Vec<String>,
}

/// Digests what a baseline with the log behind it holds at `cut`, by way of a scratch server.
///
/// # Errors
/// As [`State::begin`]; finding, if the server did not take what it was sent.
pub async fn content(
    options: &TargetOptions,
    needs: &Needs,
    baseline: &BaselineMeta,
    open: OpenBaseline,
    log: OpenLog,
    cut: &Cut,
) -> Result<Content> {
    let pieces = Arc::clone(&open);
    let again = Arc::clone(&log);
    let mut state = State::begin(options, needs, None, baseline, open, again, cut).await?;
    state.server.load(baseline, pieces).await?;
    let applied = state.server.replay(baseline, log, cut).await?;
    state.server.finish(&applied).await?;
    let mut control = Control::connect(state.endpoint()).await?;
    let digest = digest(control.connection()).await?;
    let unknown_commands = state.server.expired().unwrap_or_default().unknown_commands;
    state.scratch.shut_down().await?;
    Ok(Content { digest, applied, unknown_commands })
}
