//! The walk through the archive's own bytes to a place, to learn what was executed before it.
//!
//! A dump names the file and offset of its snapshot reliably, its GTIDs not always; so the set
//! at that offset is derived from the stream (MySQL bug 84478). Memory stays bounded whatever is
//! in the log.
//!
//! **Invariant:** the place found is a boundary between transactions, or it is an error.

use super::event::{FormatDescription, HEAD_BYTES, Head, MAGIC};
use super::executed::Executed;
use super::stream::{End, Splitter, Track};
use crate::clock::Timestamp;
use crate::engine::Located;
use crate::error::{Error, Result};
use crate::position::Position;
use crate::record::Piece;
use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

/// Walks `pieces`, which begin at `from`, to the byte at `offset` of the same file.
///
/// # Errors
/// Corrupt, if they end before, or `offset` lies within a transaction or an event.
pub(crate) async fn locate(
    from: Position,
    mut pieces: mpsc::Receiver<Result<Piece>>,
    offset: u64,
) -> Result<Located> {
    let place = format!("{}:{offset}", from.log);
    let gtids: Executed = from.gtids.parse().map_err(|error: Error| {
        Error::corrupt(format!("archived position {from}")).source(error)
    })?;
    if offset < from.offset {
        return Err(Error::bug(format!("walk from {from} back to {place}")));
    }
    let mut walk = Walk::new(&from, gtids);
    if offset == from.offset {
        return Ok(Located { position: from, last_at: None });
    }
    while let Some(piece) = pieces.recv().await {
        match piece? {
            Piece::Log { at, head } if !walk.begun && at.is_same_place(&from) => {
                walk.begin(&at, &head)?;
            }
            Piece::Log { at, .. } => {
                let end = walk.track.offset;
                return Err(Error::corrupt(format!(
                    "find {place}: the archive goes on at {at} after {}:{end}",
                    from.log
                )));
            }
            Piece::Bytes(bytes) => {
                if walk.until(bytes, offset)? {
                    let gtids = walk.track.gtids.map(|g| g.to_string()).unwrap_or_default();
                    let position = Position { gtids, ..Position::new(&from.log, offset) };
                    return Ok(Located { position, last_at: walk.last_at });
                }
            }
        }
    }
    let end = walk.track.offset;
    Err(Error::corrupt(format!("find {place}: the archive ends at {}:{end}", from.log)))
}

/// A walk through a part of one file.
pub(super) struct Walk {
    /// How many of the file's magic bytes are still to come.
    magic_left: usize,
    pub(super) track: Track,
    pub(super) splitter: Splitter,
    last_at: Option<Timestamp>,
    begun: bool,
}

impl Walk {
    /// A walk that begins at `from`, before which `gtids` were executed.
    pub(super) fn new(from: &Position, gtids: Executed) -> Self {
        let begun = usize::try_from(from.offset).unwrap_or(usize::MAX);
        Self {
            magic_left: MAGIC.len().saturating_sub(begun),
            track: Track::new(&from.log, from.offset.max(MAGIC.len() as u64), Some(gtids)),
            splitter: Splitter::default(),
            last_at: None,
            begun: false,
        }
    }

    /// Learns from the head of the file how its events are written.
    pub(super) fn begin(&mut self, at: &Position, head: &Bytes) -> Result<()> {
        self.begun = true;
        if at.offset <= MAGIC.len() as u64 {
            return Ok(());
        }
        let fde = head.get(MAGIC.len()..).unwrap_or_default();
        let length = Head::parse(fde)?.length as usize;
        let fde = fde.get(..length.max(HEAD_BYTES)).ok_or_else(|| {
            Error::corrupt(format!("{}: the head of the file is cut short", at.log))
        })?;
        self.track.checksum = FormatDescription::parse(fde)?.checksum;
        Ok(())
    }

    /// Adds the next bytes of the file.
    pub(super) fn push(&mut self, mut bytes: Bytes) -> Result<()> {
        if !self.begun {
            return Err(Error::bug("bytes of a log before its name"));
        }
        let magic = self.magic_left.min(bytes.len());
        let expected = MAGIC.get(MAGIC.len() - self.magic_left..).unwrap_or_default();
        if !expected.starts_with(bytes.get(..magic).unwrap_or_default()) {
            return Err(self.track.corrupt("not a binlog"));
        }
        self.magic_left -= magic;
        bytes.advance(magic);
        self.splitter.push(bytes);
        Ok(())
    }

    /// Takes the next bytes; says whether the walk has arrived.
    fn until(&mut self, bytes: Bytes, offset: u64) -> Result<bool> {
        self.push(bytes)?;
        if self.magic_left == 0 && self.track.offset == offset {
            return Ok(true);
        }
        while let Some(part) = self.splitter.next()? {
            let end = self.track.take(&part)?;
            if let Some(End::Record(event)) = end {
                self.last_at = self.last_at.max(event.immediate_commit_ts);
            }
            if self.track.offset >= offset {
                if self.track.whole == offset && self.track.offset == offset {
                    return Ok(true);
                }
                let what = format!("{offset} lies within an event or a transaction");
                return Err(self.track.corrupt(&what));
            }
        }
        Ok(false)
    }
}
