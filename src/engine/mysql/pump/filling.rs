//! The chunk that a pump fills, and what is noted while it does.

use crate::record::{CHUNK_BYTES, Chunk};
use tokio::time::Instant;

/// The chunk that is being filled.
#[derive(Debug, Default)]
pub(super) struct Filling {
    pub(super) chunk: Chunk,
    /// Offset behind the last whole record in it, if one ends in it.
    pub(super) whole: Option<u64>,
    /// When its first byte came.
    pub(super) since: Option<Instant>,
    /// All origins seen since the log was opened.
    pub(super) origins: Vec<u32>,
    /// All types of events seen since then that are not known.
    pub(super) strange: Vec<u8>,
}

impl Filling {
    pub(super) fn see_origin(&mut self, server_id: u32) {
        if self.origins.last() != Some(&server_id) && !self.origins.contains(&server_id) {
            self.origins.push(server_id);
            self.chunk.origins.push(server_id);
        }
    }

    pub(super) fn see_strange(&mut self, kind: u8, offset: u64) {
        if !self.strange.contains(&kind) {
            self.strange.push(kind);
            self.chunk.strange.push((kind, offset));
        }
    }

    pub(super) fn room(&self) -> usize {
        CHUNK_BYTES.saturating_sub(self.chunk.bytes.len())
    }
}
