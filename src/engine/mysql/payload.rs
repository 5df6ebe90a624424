//! Transactions that a source wrote compressed: TRANSACTION_PAYLOAD opened, as it comes.
//!
//! Layout: `Transaction_payload_event` in the server's `libs/mysql/binlog/event/codecs/binary.cpp`:
//! fields of type, length and value up to the one of type 0, then one zstd frame of events
//! without checksums.
//!
//! **Invariant:** memory is bounded by what is pushed at once, whatever the payload says.

use super::event::Reader;
use super::stream::{Part, Splitter};
use crate::error::{Context, Error, Result};
use bytes::Bytes;
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

/// How much is decompressed at once.
const PIECE_BYTES: usize = 256 << 10;

/// A payload that is being read.
pub(in super::super) struct Payload {
    /// `None`: it is not compressed.
    decoder: Option<Decoder<'static>>,
    splitter: Splitter,
    /// Compressed bytes that were not decompressed yet.
    compressed: Bytes,
    /// Whether the zstd frame has come to its end.
    ended: bool,
}

fn bad(what: &str) -> Error {
    Error::corrupt(format!("TRANSACTION_PAYLOAD event: {what}"))
}

impl Payload {
    /// Reads the fields before the payload. Gives how many bytes they take.
    ///
    /// # Errors
    /// Corrupt, if they are not in their form, or the compression is not known.
    pub(in super::super) fn open(body: &[u8]) -> Result<(Self, usize)> {
        const END: u64 = 0;
        const COMPRESSION: u64 = 2;
        const ZSTD: u64 = 0;
        const NONE: u64 = 255;
        let mut at = Reader(body);
        let mut compression = NONE;
        let short = || bad("too short");
        loop {
            let field = at.lenenc().ok_or_else(short)?;
            if field == END {
                break;
            }
            let len = at.lenenc().ok_or_else(short)?;
            let value =
                usize::try_from(len).ok().and_then(|len| at.bytes(len)).ok_or_else(short)?;
            if field == COMPRESSION {
                compression = Reader(value).lenenc().ok_or_else(short)?;
            }
        }
        let decoder = match compression {
            ZSTD => Some(Decoder::new().corrupt(|| "begin to decompress".into())?),
            NONE => None,
            _ => return Err(bad("an unknown compression")),
        };
        let payload =
            Self { decoder, splitter: Splitter::default(), compressed: Bytes::new(), ended: false };
        Ok((payload, body.len() - at.0.len()))
    }

    /// Adds the next bytes. All parts of those before must have been taken.
    pub(in super::super) fn push(&mut self, bytes: Bytes) {
        self.compressed = bytes;
    }

    /// The next part of an event in it, or `None` until more bytes are pushed.
    ///
    /// # Errors
    /// Corrupt, if it cannot be decompressed, or holds no events.
    pub(in super::super) fn next(&mut self) -> Result<Option<Part>> {
        loop {
            if let Some(part) = self.splitter.next()? {
                return Ok(Some(part));
            }
            if !self.decompress()? {
                return Ok(None);
            }
        }
    }

    /// Decompresses a piece. `false` if there is nothing more.
    fn decompress(&mut self) -> Result<bool> {
        let Some(decoder) = &mut self.decoder else {
            let all = std::mem::take(&mut self.compressed);
            let some = !all.is_empty();
            self.splitter.push(all);
            return Ok(some);
        };
        if self.ended {
            return if self.compressed.is_empty() { Ok(false) } else { Err(bad("it goes on")) };
        }
        let mut piece = vec![0; PIECE_BYTES];
        let mut input = InBuffer::around(&self.compressed);
        let mut output = OutBuffer::around(&mut piece[..]);
        let hint =
            decoder.run(&mut input, &mut output).corrupt(|| "decompress a transaction".into())?;
        let (read, written) = (input.pos(), output.pos());
        self.compressed = self.compressed.slice(read..);
        self.ended = hint == 0;
        piece.truncate(written);
        self.splitter.push(piece.into());
        Ok(read > 0 || written > 0)
    }

    /// Makes sure that nothing is missing at the end.
    ///
    /// # Errors
    /// Corrupt, if the payload is cut short.
    pub(in super::super) fn finish(&self) -> Result<()> {
        if self.splitter.is_between_events() && (self.ended || self.decoder.is_none()) {
            return Ok(());
        }
        Err(bad("it is cut short"))
    }
}
