//! Redis and Valkey: captured as a replica, restored as their master.
//!
//! - capture: [`RedisSource`] over `client` (replication connection), `tail`, `ack`, `clock`
//!   (time index), `follow` (which of several servers), `history` (why a stream did not go on), `baseline`, `locate`, `find` (places that people name),
//!   `hold` (where the stream ends, with writes held meanwhile); [`AofSource`] for a server that is captured from its
//!   append-only files (`aof`);
//! - restore: [`RedisServer`] and [`RedisFolder`] over `replay` (what of the stream is executed),
//!   `examine` (whether the target can take it), `serve` (pitr as a master), `walk` (an RDB file's
//!   outer form), and for expiries `shift` (those of the stream), `lapsed` and `settle`;
//! - look: `checkup` (rights and settings, for `pitr doctor`);
//! - some keys only: [`RedisPart`], by way of a `scratch` server that holds a `state`;
//! - compare: `digest`, and [`content`] of what is archived;
//! - besides the data: `setup` (users, settings, modules);
//! - shared: `resp` (the stream's form), `records` (what ends where in it), `rdb` (a file's head and checksum), `version` (who can
//!   read what), `control` (ordinary commands).
//!
//! **Invariant:** what is archived is what the server sent, and only a server reads values: of an
//! RDB file pitr reads the head, and where a restore needs it the outer form.

mod aof;
pub mod digest;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod version;
mod rdb;
mod resp;
mod records;
mod canary;
mod changes;
mod control;
mod client;
mod clock;
mod ack;
mod follow;
mod history;
mod baseline;
mod hold;
mod setup;
mod tail;
mod locate;
mod find;
mod shift;
mod replay;
mod walk;
mod examine;
mod lapsed;
mod settle;
mod serve;
mod target;
mod folder;
mod scratch;
mod state;
mod part;
mod inspect;
mod checkup;

pub use aof::AofSource;
pub use changes::Changes;
pub(in crate::engine) use checkup::checkup;
pub(in crate::engine) use find::{find, parse_place};
pub use folder::RedisFolder;
pub use part::RedisPart;
pub use records::Records;
pub(crate) use resp::is_file;
pub use state::{Content, content};
pub use target::RedisServer;

use super::{Hold, Located, Placed, Source, SourceOptions, Work};
use crate::error::{Error, Result};
use crate::manifest::Setup;
use crate::position::Position;
use crate::record::{BaselineTaken, Captured, Contents, Parse, Piece};
use bytes::Bytes;
use follow::Chosen;
use std::sync::{Mutex, PoisonError};
use tokio::sync::{mpsc, watch};

/// A Redis or Valkey server that is captured from.
#[derive(Debug)]
pub struct RedisSource {
    options: SourceOptions,
    /// The server that was followed last.
    followed: Mutex<Option<Chosen>>,
}

impl RedisSource {
    /// A source with these options. Connects to nothing yet.
    pub fn new(options: SourceOptions) -> Self {
        Self { options, followed: Mutex::default() }
    }

    /// From now on this server is captured.
    fn follow(&self, chosen: &Chosen) {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        *followed = Some(chosen.clone());
    }

    /// The server that is captured.
    async fn followed(&self) -> Result<Chosen> {
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match followed {
            Some(chosen) => Ok(chosen),
            None => follow::choose(&self.options, None).await,
        }
    }
}

/// Counts the keys of a full copy, which comes in pieces. Not for a thread of the runtime.
pub(in crate::engine) fn count(pieces: mpsc::Receiver<Result<Bytes>>) -> Result<Contents> {
    walk::flow::count(pieces)
}

/// Reads an archived stream command by command.
#[derive(Debug)]
pub struct Commands(resp::Scanner);

impl Commands {
    /// Begins at `start`, which lies between two records.
    pub fn new(start: &Position) -> Self {
        Self(resp::Scanner::of(&start.log, start.offset, start.db))
    }
}

impl Parse for Commands {
    fn push(&mut self, bytes: Bytes) -> Result<()> {
        let mut at = 0;
        while self.0.next(&bytes, &mut at)?.is_some() {}
        Ok(())
    }

    fn is_between_records(&self) -> bool {
        self.0.at_record_start()
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

    fn setup(&self) -> Work<'_, Option<Setup>> {
        Box::pin(async { setup::read(&self.followed().await?.at).await.map(Some) })
    }

    fn place<'a>(&'a self, name: &'a str) -> Work<'a, Placed> {
        Box::pin(async move { hold::place(&self.followed().await?.clock, name).await })
    }

    fn canary(&self) -> Work<'_, ()> {
        Box::pin(async {
            let chosen = self.followed().await?;
            if chosen.at != chosen.clock {
                let what = format!("{} is a replica: nothing is written to its master", chosen.at);
                return Err(
                    Error::refused(what).hint("capture the master, or [drill] canary = false")
                );
            }
            canary::write(&chosen.at).await
        })
    }

    fn hold(&self) -> Work<'_, Box<dyn Hold>> {
        Box::pin(async { hold::Pause::prepare(&self.followed().await?.at, None).await })
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
