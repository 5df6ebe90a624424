//! A baseline's pieces, read and written as a file by a thread that may wait for them.

use super::{Survey, walk};
use crate::engine::redis::rdb::{self, Fields};
use crate::error::{Class, Context, Error, Result};
use crate::record::{Contents, DatabaseContents};
use bytes::{Buf, Bytes};
use std::io::{self, BufRead, BufWriter, Read, Write};
use tokio::sync::mpsc;

/// Length of the pieces that are handed on.
const PIECE_BYTES: usize = 256 << 10;

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

/// Reads a baseline to its end, and tries to move its expiries.
///
/// # Errors
/// Corrupt, if it is damaged.
pub(in crate::engine::redis) async fn look(pieces: Pieces, by_ms: i64) -> Result<Look> {
    let reading = tokio::task::spawn_blocking(move || {
        let mut from = From::new(pieces);
        let survey = walk(&mut from, io::sink(), by_ms);
        // A wrong checksum explains everything else.
        let fields = from.finish()?;
        match survey {
            Err(error) if error.class() != Class::Refused => Err(error),
            survey => Ok(Look { fields, survey }),
        }
    });
    reading.await.class(Class::Bug, || "look through a baseline".into())?
}

/// Reads a baseline to its end, and counts its keys. Not for a thread of the runtime.
///
/// # Errors
/// Refused, if it has a form that is not known; corrupt, if it is damaged.
pub(in crate::engine::redis) fn count(pieces: Pieces) -> Result<Contents> {
    let mut from = From::new(pieces);
    let survey = walk(&mut from, io::sink(), 0);
    // Whoever hands pieces over is not held up by what cannot be counted.
    from.finish()?;
    let database = |(number, (keys, expiring))| DatabaseContents { number, keys, expiring };
    let databases = survey?.databases.into_iter().map(database).collect();
    Ok(Contents { tables: vec![], databases })
}

/// The baseline with `by_ms` added to every expiry. An error comes in place of the last piece.
pub(in crate::engine::redis) fn shift(pieces: Pieces, by_ms: i64) -> Pieces {
    let (send, receive) = mpsc::channel(2);
    std::thread::spawn(move || {
        let mut from = From::new(pieces);
        let mut to = BufWriter::with_capacity(PIECE_BYTES, To { send: send.clone(), held: None });
        let moved = walk(&mut from, &mut to, by_ms);
        let moved = from.finish().and(moved);
        // What was not flushed is of no use, and must not be sent when the writer is dropped.
        let (to, _) = to.into_parts();
        let last = match (moved, to.held) {
            (Ok(_), Some(last)) => Ok(last),
            (Ok(_), None) => return,
            (Err(error), _) => Err(error),
        };
        // Nobody may be there any more; then nobody wants to know.
        drop(send.blocking_send(last));
    });
    receive
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

/// Hands pieces on, the last one only once all is known to be right.
struct To {
    send: mpsc::Sender<Result<Bytes>>,
    held: Option<Bytes>,
}

impl Write for To {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(piece) = self.held.replace(Bytes::copy_from_slice(bytes)) {
            let gone = |_| io::Error::other(Error::new(Class::Interrupted, "nobody reads on"));
            self.send.blocking_send(Ok(piece)).map_err(gone)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
