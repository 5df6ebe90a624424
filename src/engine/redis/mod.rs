//! Redis and Valkey: captured as a replica, restored as their master.
//!
//! - capture: [`RedisSource`] over `client` (replication connection), `tail`, `ack`, `clock`
//!   (time index), `history` (why a stream did not go on), `baseline`, `locate`;
//! - shared: `resp` (the stream's form), `rdb` (a file's head and checksum), `control` (ordinary
//!   commands).
//!
//! **Invariant:** the stream's bytes pass through unchanged, and RDB files stay opaque: only a
//! server of the right version reads keys.

pub mod digest;
mod rdb;
mod resp;
mod control;
mod client;
mod clock;
mod ack;
mod history;
mod baseline;
mod tail;
mod locate;

use super::{Located, Source, SourceOptions, Work};
use crate::error::{Error, Result};
use crate::position::Position;
use crate::record::{BaselineTaken, Captured, Piece};
use bytes::Bytes;
use tokio::sync::{mpsc, watch};

/// The oldest version that is captured: older ones replicate relative expiry times, which mean
/// something else when they are replayed (`replication.c` before 7.0).
const VERSION_MIN: (u32, u32) = (7, 0);

/// A Redis or Valkey server that is captured from.
#[derive(Debug)]
pub struct RedisSource {
    options: SourceOptions,
}

impl RedisSource {
    /// A source with these options. Connects to nothing yet.
    pub fn new(options: SourceOptions) -> Self {
        Self { options }
    }
}

impl Source for RedisSource {
    fn tail(
        &self,
        resume: Option<Position>,
        out: mpsc::Sender<Captured>,
        durable: watch::Receiver<Option<Position>>,
    ) -> Work<'_, ()> {
        Box::pin(tail::tail(self, resume, out, durable))
    }

    fn baseline(&self, out: mpsc::Sender<Bytes>) -> Work<'_, BaselineTaken> {
        Box::pin(baseline::take(self, out))
    }

    fn locate(
        &self,
        from: Position,
        pieces: mpsc::Receiver<Result<Piece>>,
        offset: u64,
    ) -> Work<'_, Located> {
        Box::pin(locate::locate(from, pieces, offset))
    }
}

/// Major and minor number of a version.
fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(['.', '-']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Refuses sources whose stream cannot be replayed faithfully.
fn check_version(version: &str) -> Result<()> {
    match major_minor(version) {
        Some(version) if version >= VERSION_MIN => Ok(()),
        _ => Err(Error::usage(format!(
            "Redis {version} cannot be captured: before 7.0 the replication stream carries \
             relative expiry times"
        ))
        .hint("upgrade the source to Redis 7.0 or newer, or Valkey")),
    }
}
