//! The raw bytes of a segment, piece by piece.

use super::SegmentReader;
use crate::error::Result;
use bytes::Bytes;

/// The bytes of one segment between two offsets of its log, block by block.
#[derive(Debug)]
pub struct Pieces<'a> {
    reader: &'a mut SegmentReader,
    index: usize,
    from: u64,
    end: u64,
}

impl<'a> Pieces<'a> {
    /// From `from` on, up to `end`.
    pub fn new(reader: &'a mut SegmentReader, from: u64, end: u64) -> Self {
        Self { reader, index: 0, from, end }
    }
}

impl Iterator for Pieces<'_> {
    type Item = Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        let (from, end) = (self.from, self.end);
        loop {
            let (index, block) = (self.index, self.reader.blocks().get(self.index)?.clone());
            self.index += 1;
            if block.end() <= from || block.raw_len == 0 || block.start >= end {
                continue;
            }
            let mut bytes = Vec::new();
            if let Err(error) = self.reader.read_block(index, &mut bytes) {
                return Some(Err(error));
            }
            let mut bytes = Bytes::from(bytes);
            if block.end() > end {
                bytes.truncate(usize::try_from(end - block.start).unwrap_or(usize::MAX));
            }
            if block.start < from {
                let skip = usize::try_from(from - block.start).unwrap_or(usize::MAX);
                bytes = bytes.split_off(skip.min(bytes.len()));
            }
            return Some(Ok(bytes));
        }
    }
}
