//! A baseline's pieces, read as a file by a thread that may wait for them.

use super::{Survey, walk};
use crate::engine::redis::rdb::{self, Fields};
use crate::error::{Class, Context, Result};
use bytes::{Buf, Bytes};
use std::io::{self, BufRead, Read};
use tokio::sync::mpsc;

type Pieces = mpsc::Receiver<Result<Bytes>>;

/// What a baseline says of itself.
#[derive(Debug)]
pub(in crate::engine::redis) struct Look {
    /// Its first fields.
    pub(in crate::engine::redis) fields: Fields,
    /// What it holds.
    ///
    /// # Errors
    /// Refused, if it has a form that is not known.
    pub(in crate::engine::redis) survey: Result<Survey>,
}

/// Reads a baseline to its end.
///
/// # Errors
/// Corrupt, if it is damaged.
pub(in crate::engine::redis) async fn look(pieces: Pieces) -> Result<Look> {
    let reading = tokio::task::spawn_blocking(move || {
        let mut from = From::new(pieces);
        let survey = walk(&mut from, io::sink(), 0);
        // A wrong checksum explains everything else.
        let fields = from.finish()?;
        match survey {
            Err(error) if error.class() != Class::Refused => Err(error),
            survey => Ok(Look { fields, survey }),
        }
    });
    reading.await.class(Class::Bug, || "look through a baseline".into())?
}

/// Reads pieces, and checks them as it goes.
struct From {
    pieces: Pieces,
    now: Bytes,
    check: rdb::Check,
}

impl From {
    fn new(pieces: Pieces) -> Self {
        Self { pieces, now: Bytes::new(), check: rdb::Check::new() }
    }

    /// Reads what is left, and says whether all of it is an RDB file.
    fn finish(mut self) -> Result<Fields> {
        io::copy(&mut self, &mut io::sink()).map_err(super::broken)?;
        self.check.finish()
    }
}

impl BufRead for From {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.now.is_empty() {
            match self.pieces.blocking_recv() {
                Some(Ok(piece)) => {
                    self.check.update(&piece);
                    self.now = piece;
                }
                Some(Err(error)) => return Err(io::Error::other(error)),
                None => break,
            }
        }
        Ok(&self.now)
    }

    fn consume(&mut self, amount: usize) {
        self.now.advance(amount.min(self.now.len()));
    }
}

impl Read for From {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}
