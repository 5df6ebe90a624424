//! Makes a sealed segment of an open one: small blocks become large, a torn tail is left behind.
//!
//! The old file is only read. What stands behind the last whole record is not taken over: it is
//! fetched from the source again.
//!
//! **Invariant:** the raw bytes of the new segment are those of the old one from its start to the
//! end of its last whole record.

use super::format::{Head, MARKS_MAX, ORIGINS_MAX};
use super::reader::Reader;
use super::tally::earlier;
use super::writer::Writer;
use crate::error::Result;
use crate::manifest::SegmentMeta;
use crate::position::Position;
use crate::record::{CHUNK_BYTES, Chunk, LANDMARKS_MAX, Mark};
use std::io::{Read, Seek, Write};

/// Reads the whole records of a segment and writes them as a sealed one, with blocks of about
/// [`CHUNK_BYTES`]. Of marks that share an offset the first and the last are kept: from the first
/// on an instant leads to this offset, and the last says for how long.
///
/// Gives `None`, and writes nothing, if the segment holds neither a whole record nor a mark.
///
/// # Errors
/// Corrupt, if a block is not what it must be; unavailable, if reading or writing fails. What
/// was written until then is to be thrown away.
pub fn rewrite<R, W>(from: &mut Reader<R>, to: W, level: i32) -> Result<Option<(W, SegmentMeta)>>
where
    R: Read + Seek,
    W: Write,
{
    let meta = from.meta().clone();
    let end = meta.totals.end;
    if end.is_same_place(&meta.header.start) && meta.totals.known_until.is_none() {
        return Ok(None);
    }
    let mut writer = Writer::create(to, &meta.header, level)?;
    let mut merged = Merged::new(meta.header.start, end.offset);
    let mut raw = vec![];
    for index in 0..from.blocks().len() {
        let head = from.read_block_with_head(index, &mut raw)?;
        if head.description.start > end.offset {
            break;
        }
        if !merged.has_room_for(&head) {
            merged.flush(&mut writer)?;
        }
        merged.add(&head, &raw)?;
    }
    merged.flush(&mut writer)?;
    writer.finish().map(Some)
}

fn keep_first_and_last(marks: &mut Vec<Mark>, mark: Mark) {
    let is_third = match marks.as_slice() {
        [.., first, last] => first.offset == mark.offset && last.offset == mark.offset,
        _ => false,
    };
    if is_third {
        marks.pop();
    }
    marks.push(mark);
}

/// A block in the making.
struct Merged {
    chunk: Chunk,
    /// Whether a block was added that nothing was written of yet.
    used: bool,
    /// Where the last whole record so far ends; carried from block to block.
    place: Position,
    /// Offset of the end of the last whole record of all.
    end: u64,
}

impl Merged {
    fn new(start: Position, end: u64) -> Self {
        let chunk = Chunk { start: start.offset, ..Chunk::default() };
        Self { chunk, used: false, place: start, end }
    }

    fn has_room_for(&self, head: &Head<'_>) -> bool {
        !self.used
            || self.chunk.time == head.description.time
                && self.chunk.bytes.len() + head.description.raw_len as usize <= CHUNK_BYTES
                && self.chunk.marks.len() + head.marks.len() <= MARKS_MAX
                && self.chunk.origins.len() + head.origins.len() <= ORIGINS_MAX
                && self.chunk.landmarks.len() + head.landmarks.len() <= LANDMARKS_MAX
                && self.chunk.records.checked_add(head.description.records).is_some()
    }

    fn add(&mut self, head: &Head<'_>, raw: &[u8]) -> Result<()> {
        let (block, chunk) = (&head.description, &mut self.chunk);
        self.used = true;
        let keep = usize::try_from(self.end - block.start).unwrap_or(usize::MAX).min(raw.len());
        chunk.bytes.extend_from_slice(raw.get(..keep).unwrap_or_default());
        chunk.time = block.time;
        chunk.records = chunk.records.saturating_add(block.records);
        chunk.first_at = earlier(chunk.first_at, block.first_at);
        chunk.last_at = chunk.last_at.max(block.last_at);
        if let (Some(offset), Some(whole)) = (block.whole_until, &head.whole) {
            whole.apply(&mut self.place.gtids)?;
            self.place.offset = offset;
            self.place.db = whole.db;
            chunk.whole = Some(self.place.clone());
        }
        for mark in head.marks.iter().filter(|mark| mark.offset <= self.end) {
            keep_first_and_last(&mut chunk.marks, *mark);
        }
        chunk.origins.extend(head.origins.iter());
        chunk.landmarks.extend(head.landmarks.iter().cloned());
        Ok(())
    }

    fn flush<W: Write>(&mut self, writer: &mut Writer<W>) -> Result<()> {
        if self.used {
            writer.append(&self.chunk)?;
        }
        self.used = false;
        let chunk = &mut self.chunk;
        chunk.start = chunk.end();
        chunk.bytes.clear();
        chunk.marks.clear();
        chunk.origins.clear();
        chunk.landmarks.clear();
        (chunk.records, chunk.whole) = (0, None);
        (chunk.first_at, chunk.last_at) = (None, None);
        Ok(())
    }
}
