//! The bytes that the archive has before a place, against those that a source sends there.

use bytes::Bytes;

/// The bytes that the archive has before a place. A log that was begun anew may have a boundary
/// there and the same GTIDs before it, but the commit times in it are others.
#[derive(Debug)]
pub(super) struct Proof {
    /// Offset of the next byte that comes.
    pub(super) next: u64,
    /// Offset of the first of the bytes.
    pub(super) start: u64,
    pub(super) bytes: Bytes,
}

impl Proof {
    /// Whether the file's next bytes are those of the archive, as far as it has been told them.
    pub(super) fn agrees(&mut self, came: &[u8]) -> bool {
        let (from, start) = (self.next, self.start);
        self.next += came.len() as u64;
        let (first, end) = (from.max(start), self.next.min(start + self.bytes.len() as u64));
        if first >= end {
            return true;
        }
        let at = |offset: u64, base: u64| usize::try_from(offset - base).unwrap_or(usize::MAX);
        let archived = self.bytes.get(at(first, start)..at(end, start));
        archived.is_some() && archived == came.get(at(first, from)..at(end, from))
    }
}
