//! Writes a segment: header, blocks, footer, each with a single `write_all`.
//!
//! The writer never syncs and knows no file: syncing is the caller's, through [`Writer::get_ref`].
//!
//! **Invariant:** after a failed write nothing more is written; what is on disk stays a segment
//! with a torn tail.

use super::format::{self, BLOCK_RAW_MAX, Description, Entry, GTIDS_MAX, Head, MARKS_MAX, Whole};
use super::tally::Tally;
use crate::error::{Class, Context, Error, Result};
use crate::manifest::{BlockMeta, FORMAT, SegmentHeader, SegmentMeta, Totals};
use crate::record::{Chunk, LANDMARKS_MAX};
use std::borrow::Cow;
use std::fmt;
use std::io::Write;

/// Writes one segment.
pub struct Writer<W: Write> {
    out: W,
    header: SegmentHeader,
    tally: Tally,
    hasher: blake3::Hasher,
    compressor: zstd::bulk::Compressor<'static>,
    /// Encoded entries of the footer.
    index: Vec<u8>,
    /// A block's head on its way out.
    head: Vec<u8>,
    /// Head and zstd frame on their way out. Only grows, so that it is not zeroed for each block.
    buffer: Vec<u8>,
    bytes_stored: u64,
    failed: bool,
}

impl<W: Write> Writer<W> {
    /// Begins a segment: writes its header. `level` is zstd's.
    ///
    /// # Errors
    /// Bug, if the header is not one of this format; unavailable, if it cannot be written.
    pub fn create(out: W, header: &SegmentHeader, level: i32) -> Result<Self> {
        check_header(header).map_err(Error::bug)?;
        let mut compressor = zstd::bulk::Compressor::new(level)
            .and_then(|mut compressor| {
                compressor.include_checksum(true)?;
                compressor.include_contentsize(true)?;
                Ok(compressor)
            })
            .class(Class::Usage, || format!("set up zstd at level {level}"))?;
        // Frames name no dictionary, so they need not say so.
        compressor.include_dictid(false).class(Class::Bug, || "set up zstd".into())?;
        let mut writer = Self {
            out,
            header: header.clone(),
            tally: Tally::new(header),
            hasher: blake3::Hasher::new(),
            compressor,
            index: vec![],
            head: vec![],
            buffer: vec![],
            bytes_stored: 0,
            failed: false,
        };
        format::encode_header(&mut writer.buffer, header)?;
        let len = writer.buffer.len();
        writer.write_buffer(len)?;
        Ok(writer)
    }

    /// Appends a chunk as one block.
    ///
    /// # Errors
    /// Bug, if the chunk does not begin where the last one ended, belongs to another log, or
    /// contradicts itself; nothing is written then. Unavailable, if it cannot be written; the
    /// segment then takes nothing more.
    pub fn append(&mut self, chunk: &Chunk) -> Result<BlockMeta> {
        self.refuse_if_failed()?;
        self.check(chunk).map_err(|what| {
            Error::bug(format!("append {} bytes at {}: {what}", chunk.bytes.len(), chunk.start))
        })?;
        let mut head = Head {
            description: Description {
                start: chunk.start,
                raw_len: chunk.bytes.len() as u32,
                frame_len: 0,
                frame_crc: 0,
                records: chunk.records,
                time: chunk.time,
                marks: chunk.marks.len() as u32,
                whole_until: chunk.whole.as_ref().map(|whole| whole.offset),
                first_at: chunk.first_at,
                last_at: chunk.last_at,
                has_landmarks: !chunk.landmarks.is_empty(),
                has_spans: chunk.marks.iter().any(|mark| mark.span_micros != 0),
                known_until: chunk.marks.iter().map(|mark| mark.at).max(),
            },
            whole: chunk
                .whole
                .as_ref()
                .map(|whole| Whole::new(whole.db, &self.tally.totals().end.gtids, &whole.gtids)),
            marks: Cow::Borrowed(&chunk.marks),
            origins: Cow::Borrowed(&chunk.origins),
            landmarks: Cow::Borrowed(&chunk.landmarks),
        };
        head.description
            .check()
            .and_then(|()| format::check_marks(&head.description, &chunk.marks))
            .map_err(|what| Error::bug(format!("append at {}: {what}", chunk.start)))?;

        let head_len = head.encoded_len()?;
        let room = head_len + zstd::zstd_safe::compress_bound(chunk.bytes.len());
        if self.buffer.len() < room {
            self.buffer.resize(room, 0);
        }
        let (head_place, frame_place) = self.buffer.split_at_mut(head_len);
        let frame_len = self
            .compressor
            .compress_to_buffer(&chunk.bytes, frame_place)
            .class(Class::Bug, || "compress a block".into())?;
        head.description.frame_len = frame_len as u32;
        head.description.frame_crc =
            crc32c::crc32c(frame_place.get(..frame_len).unwrap_or_default());
        head.encode(&mut self.head)?;
        if self.head.len() != head_len {
            return Err(Error::bug("a block's head has another length than announced"));
        }
        head_place.copy_from_slice(&self.head);

        let entry = Entry {
            file_offset: self.bytes_stored,
            stored_len: (head_len + frame_len) as u64,
            description: head.description,
        };
        self.write_buffer(head_len + frame_len)?;
        entry.encode(&mut self.index);
        if let Some(whole) = &chunk.whole {
            self.tally.gtids_mut().clone_from(&whole.gtids);
        }
        let db = chunk.whole.as_ref().map_or(0, |whole| whole.db);
        self.tally.add(&entry.description, db, &chunk.marks, &chunk.origins);
        self.tally.add_landmarks(&chunk.landmarks);
        Ok(entry.meta())
    }

    /// What the segment amounts to so far.
    pub fn totals(&self) -> Totals {
        self.tally.totals().clone()
    }

    /// Its header.
    pub fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// Bytes written so far.
    pub fn bytes_stored(&self) -> u64 {
        self.bytes_stored
    }

    /// Offset in the log after the last byte appended: where the next chunk has to begin.
    pub fn raw_end(&self) -> u64 {
        self.tally.raw_end()
    }

    /// Whether the last byte appended ends a record, so that the segment can be finished.
    pub fn ends_whole(&self) -> bool {
        self.tally.raw_end() == self.tally.totals().end.offset
    }

    /// What is written to; to sync it, for example.
    pub fn get_ref(&self) -> &W {
        &self.out
    }

    /// Writes the footer, and gives back what was written to (still to be synced).
    ///
    /// # Errors
    /// Bug, if the last byte appended lies within a record: see [`Writer::ends_whole`].
    /// Unavailable, if the footer cannot be written.
    pub fn finish(mut self) -> Result<(W, SegmentMeta)> {
        self.refuse_if_failed()?;
        if !self.ends_whole() {
            return Err(Error::bug(format!(
                "seal segment {}: its last bytes, from {} on, are inside a record",
                self.header.number,
                self.tally.totals().end
            )));
        }
        let totals = self.totals();
        format::begin_footer(&mut self.buffer, &totals, &self.index, self.bytes_stored)?;
        self.hasher.update(&self.buffer);
        let digest = self.hasher.finalize();
        format::end_footer(&mut self.buffer, digest.as_bytes());
        self.out
            .write_all(&self.buffer)
            .and_then(|()| self.out.flush())
            .unavailable(|| format!("write the footer of segment {}", self.header.number))?;
        let meta = SegmentMeta {
            bytes_stored: self.bytes_stored + self.buffer.len() as u64,
            header: self.header,
            totals,
            digest: digest.to_hex().to_string(),
            sealed: true,
        };
        Ok((self.out, meta))
    }

    fn check(&self, chunk: &Chunk) -> Result<(), String> {
        let end = &self.tally.totals().end;
        if chunk.start != self.raw_end() {
            return Err(format!("the segment ends at {}", self.raw_end()));
        }
        if chunk.bytes.len() > BLOCK_RAW_MAX || chunk.marks.len() > MARKS_MAX {
            return Err(format!("more than {BLOCK_RAW_MAX} bytes or {MARKS_MAX} marks"));
        }
        if chunk.origins.len() > format::ORIGINS_MAX {
            return Err(format!("{} origins", chunk.origins.len()));
        }
        if chunk.landmarks.len() > LANDMARKS_MAX {
            return Err(format!("{} landmarks", chunk.landmarks.len()));
        }
        match &chunk.whole {
            None if !chunk.landmarks.is_empty() => Err("landmarks where no record ends".into()),
            Some(whole) if whole.log != end.log => {
                Err(format!("it is of log {}, the segment of {}", whole.log, end.log))
            }
            Some(whole) if whole.gtids.len() > GTIDS_MAX => {
                Err(format!("a GTID set of {} bytes", whole.gtids.len()))
            }
            _ => Ok(()),
        }
    }

    fn refuse_if_failed(&self) -> Result<()> {
        if self.failed {
            let number = self.header.number;
            return Err(Error::unavailable(format!(
                "segment {number} could not be written before"
            ))
            .hint("its whole records are kept; capture goes on in a new segment"));
        }
        Ok(())
    }

    fn write_buffer(&mut self, len: usize) -> Result<()> {
        let bytes = self.buffer.get(..len).unwrap_or_default();
        if let Err(error) = self.out.write_all(bytes) {
            self.failed = true;
            return Err(error).unavailable(|| format!("write segment {}", self.header.number));
        }
        self.hasher.update(bytes);
        self.bytes_stored += len as u64;
        Ok(())
    }
}

/// Whether a header is one that this program writes and reads; says what is wrong.
pub(super) fn check_header(header: &SegmentHeader) -> Result<(), String> {
    if header.format != FORMAT {
        return Err(format!("a segment header of format {}", header.format));
    }
    if header.timeline == 0 || header.number == 0 {
        return Err("a segment header with timeline or number 0".into());
    }
    if header.start.gtids.len() > GTIDS_MAX {
        return Err(format!("a GTID set of {} bytes", header.start.gtids.len()));
    }
    Ok(())
}

impl<W: Write> fmt::Debug for Writer<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("header", &self.header)
            .field("totals", self.tally.totals())
            .field("bytes_stored", &self.bytes_stored)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}
