//! Reads segments: sealed ones by their footer, open ones block by block.
//!
//! The reader never trusts a length that it has not compared with the file's size and the
//! format's limits, and never hands out bytes that do not match their checksums.
//!
//! **Invariant:** what [`Reader::read_block`] gives is exactly what was appended, or an error.

use super::format::{
    self, BLOCK_FRAME_MAX, DIGEST, Entry, Footer, HEAD_MAX, Head, JSON_MAX, Kind, PREFIX, TRAILER,
};
use super::tally::Tally;
use super::writer::check_header;
use crate::error::{Class, Context, Error, Result};
use crate::manifest::{BlockMeta, SegmentHeader, SegmentMeta, Totals};
use crate::position::Position;
use crate::record::Mark;
use std::fmt;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use zstd::zstd_safe;

/// Reads one segment.
pub struct Reader<R: Read + Seek> {
    inner: R,
    /// Size of the file.
    file_len: u64,
    header_len: u64,
    meta: SegmentMeta,
    entries: Vec<Entry>,
    blocks: Vec<BlockMeta>,
    torn: u64,
    /// A block as it is stored: head and zstd frame.
    buffer: Vec<u8>,
    decompressor: zstd::bulk::Decompressor<'static>,
}

impl<R: Read + Seek> Reader<R> {
    /// Opens a sealed segment: reads header and footer, and checks that they agree. Its blocks
    /// are not read; [`Reader::read_block`] checks each, [`Reader::verify`] the whole.
    ///
    /// # Errors
    /// Corrupt, if anything is not as it was written, or the footer is missing.
    pub fn open(inner: R) -> Result<Self> {
        let (mut reader, _) = Self::begin(inner)?;
        let trailer_at = reader.file_len.checked_sub(TRAILER as u64);
        let trailer_at = trailer_at.ok_or_else(|| Error::corrupt("too short for a segment"))?;
        reader.fill(trailer_at, TRAILER as u64)?;
        let at = format::footer_offset(&reader.buffer)?;
        let len = reader.file_len.checked_sub(at).filter(|len| *len > TRAILER as u64);
        let len = len.ok_or_else(|| no_footer(reader.meta.header.number))?;
        reader.fill(at, PREFIX as u64)?;
        if format::frame_len(&reader.buffer).ok() != Some(len) {
            return Err(no_footer(reader.meta.header.number));
        }
        reader.fill(at, len)?;
        reader.take_footer(at)?;
        Ok(reader)
    }

    /// Reads a segment that may lack its footer: walks its blocks, compares each with its
    /// checksums, and stops at the first byte that is not part of a whole block. What follows is
    /// [`Reader::torn_bytes`]. A segment that turns out to have its footer is checked as
    /// [`Reader::open`] does, and is marked as sealed.
    ///
    /// # Errors
    /// Corrupt, if not even the header is whole: see [`Reader::header_is_torn`].
    pub fn scan(inner: R) -> Result<Self> {
        let (mut reader, mut at) = Self::begin(inner)?;
        let mut tally = Tally::new(&reader.meta.header);
        while at < reader.file_len {
            if reader.scan_footer(at)? {
                return Ok(reader);
            }
            match reader.scan_block(at, &mut tally) {
                Ok(entry) => {
                    at += entry.stored_len;
                    reader.blocks.push(entry.meta());
                    reader.entries.push(entry);
                }
                // Damage is where a segment that was torn ends. A disk that does not answer is not.
                Err(error) if error.class() == Class::Corrupt => break,
                Err(error) => return Err(error),
            }
        }
        reader.torn = reader.file_len - at;
        reader.meta.totals = tally.totals().clone();
        reader.meta.bytes_stored = at;
        Ok(reader)
    }

    /// Whether the file ends before its header does: it was torn while it was being created, so
    /// nothing was ever in it.
    pub fn header_is_torn(inner: &mut R) -> Result<bool> {
        let file_len = inner.seek(SeekFrom::End(0)).unavailable(|| "read a segment".into())?;
        inner.seek(SeekFrom::Start(0)).unavailable(|| "read a segment".into())?;
        let mut prefix = Vec::with_capacity(PREFIX);
        inner
            .by_ref()
            .take(PREFIX as u64)
            .read_to_end(&mut prefix)
            .unavailable(|| "read a segment".into())?;
        if prefix.len() < PREFIX {
            return Ok(true);
        }
        Ok(format::kind_of(&prefix) == Some(Kind::Header)
            && format::frame_len(&prefix).is_ok_and(|len| file_len < len))
    }

    /// The segment as a whole. Of an open segment the totals count what [`Reader::scan`] found,
    /// and `bytes_stored` is without the torn tail.
    pub fn meta(&self) -> &SegmentMeta {
        &self.meta
    }

    /// Its blocks, in order.
    pub fn blocks(&self) -> &[BlockMeta] {
        &self.blocks
    }

    /// Bytes at the end of an open segment that are no whole block.
    pub fn torn_bytes(&self) -> u64 {
        self.torn
    }

    /// Whether a whole block, or the end of a whole segment, stands behind the bytes at the end of an open segment that are none.
    /// A file that was torn ends there; this one was damaged after it was written.
    ///
    /// # Errors
    /// Unavailable, if it cannot be read.
    pub fn goes_on_behind_damage(&mut self) -> Result<bool> {
        const WINDOW: u64 = 1 << 20;
        let (mut at, end) = (self.meta.bytes_stored + 1, self.file_len);
        while !self.meta.sealed && at + PREFIX as u64 <= end {
            let len = WINDOW.min(end - at);
            let mut window = Vec::new();
            fill(&mut self.inner, &mut window, at, len)?;
            for found in memchr::memmem::find_iter(&window, &format::MAGIC) {
                let frame_at = at + found as u64;
                let begins = frame_at.checked_sub(format::MAGIC_AT as u64);
                match begins.filter(|begins| *begins > self.meta.bytes_stored) {
                    Some(begins) if self.is_block(begins)? || self.is_footer(begins)? => {
                        return Ok(true);
                    }
                    _ => {}
                }
            }
            // What stands over the edge is in the next window, too.
            let next = at + len - (format::MAGIC.len() as u64 - 1).min(len - 1);
            at = if len < WINDOW { end } else { next };
        }
        Ok(false)
    }

    /// Whether a whole block of what comes behind this segment's bytes begins at `at`.
    fn is_block(&mut self, at: u64) -> Result<bool> {
        let start = self.meta.header.start.offset;
        let end = self.entries.last().map_or(start, |last| {
            last.description.start.saturating_add(u64::from(last.description.raw_len))
        });
        match self.block_at(at) {
            // One that lies in the log's own bytes is of another place.
            Ok(entry) if entry.description.start < end => Ok(false),
            Ok(entry) => Ok(split_block(&self.buffer, &entry)
                .is_ok_and(|(_, frame)| check_frame(frame, &entry).is_ok())),
            Err(error) if error.class() == Class::Corrupt => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the footer of a segment stands at `at`.
    fn is_footer(&mut self, at: u64) -> Result<bool> {
        let rest = self.file_len - at;
        if rest < PREFIX as u64 {
            return Ok(false);
        }
        self.fill(at, PREFIX as u64)?;
        match format::frame_len(&self.buffer) {
            Ok(len) if len == rest => self.fill(at, len)?,
            _ => return Ok(false),
        }
        Ok(format::decode_footer::<Totals>(&self.buffer).is_ok())
    }

    /// Reads a block: its raw bytes into `into`, which is emptied first, and its marks.
    ///
    /// # Errors
    /// Corrupt, if head, stored bytes or raw bytes are not what they must be; `into` is empty then.
    pub fn read_block(&mut self, index: usize, into: &mut Vec<u8>) -> Result<Vec<Mark>> {
        into.clear();
        let entry = self.fill_block(index)?;
        let named = |error: Error| error.context(format!("block {index}"));
        let (head, frame) = split_block(&self.buffer, &entry).map_err(named)?;
        let marks = head.marks.into_owned();
        check_frame(frame, &entry).map_err(named)?;
        let raw_len = entry.description.raw_len as usize;
        into.reserve(raw_len);
        let result = self.decompressor.decompress_to_buffer(frame, into);
        match result {
            Ok(len) if len == raw_len && into.len() == raw_len => Ok(marks),
            result => {
                into.clear();
                let error = Error::corrupt(format!("block {index} does not decompress"));
                Err(match result {
                    Ok(_) => error,
                    Err(cause) => error.source(cause),
                })
            }
        }
    }

    /// Reads the marks of a block, from its head alone.
    ///
    /// # Errors
    /// Corrupt, if the head is not what it must be.
    pub fn marks(&mut self, index: usize) -> Result<Vec<Mark>> {
        let entry = self.entry(index)?;
        self.fill(entry.file_offset, entry.head_len())?;
        let head = decode_head(&self.buffer, &entry);
        Ok(head.map_err(|error| error.context(format!("block {index}")))?.marks.into_owned())
    }

    /// Where the last whole record of each block ends, with everything that a reader has to know
    /// to begin there; `None` for a block that is all inside one record. From the blocks' heads
    /// alone.
    ///
    /// # Errors
    /// Corrupt, if a head is not what it must be.
    pub fn wholes(&mut self) -> Result<Vec<Option<Position>>> {
        let mut place = self.meta.header.start.clone();
        let mut wholes = Vec::with_capacity(self.entries.len());
        for index in 0..self.entries.len() {
            let entry = self.entry(index)?;
            self.fill(entry.file_offset, entry.head_len())?;
            let head = decode_head(&self.buffer, &entry)
                .map_err(|error| error.context(format!("block {index}")))?;
            let (Some(offset), Some(whole)) = (head.description.whole_until, head.whole) else {
                wholes.push(None);
                continue;
            };
            whole.apply(&mut place.gtids)?;
            (place.offset, place.db) = (offset, whole.db);
            wholes.push(Some(place.clone()));
        }
        Ok(wholes)
    }

    /// Reads everything: compares the digest with all bytes of the file, and each block with its
    /// checksums, and the totals with what the blocks' heads add up to.
    ///
    /// # Errors
    /// Corrupt, if anything does not match.
    pub fn verify(&mut self) -> Result<()> {
        if self.meta.sealed {
            let digest = self.hash()?;
            if digest.to_hex().as_str() != self.meta.digest {
                return Err(Error::corrupt(format!(
                    "segment {} does not match its digest",
                    self.meta.header.number
                )));
            }
        }
        let mut raw = vec![];
        let mut tally = Tally::new(&self.meta.header);
        for index in 0..self.entries.len() {
            self.read_block(index, &mut raw)?;
            let entry = self.entry(index)?;
            let head = decode_head(&self.buffer, &entry)?;
            add_to(&mut tally, &head)?;
        }
        if *tally.totals() != self.meta.totals {
            return Err(Error::corrupt("a segment's totals are not those of its blocks"));
        }
        Ok(())
    }

    /// Reads everything as [`Reader::verify`] does, but once, from front to back, and does not stop
    /// at damage: `each` gets every block in order, its raw bytes or what is wrong with it.
    ///
    /// # Errors
    /// Corrupt, if anything does not match, whether `each` was told of it or not.
    pub fn verify_blocks(
        &mut self,
        mut each: impl FnMut(usize, &BlockMeta, Result<&[u8]>),
    ) -> Result<()> {
        let mut hasher = blake3::Hasher::new();
        self.fill(0, self.header_len)?;
        hasher.update(&self.buffer);
        let (mut place, mut raw) = (self.header_len, vec![]);
        let mut tally = Tally::new(&self.meta.header);
        let mut bad = 0;
        for (index, block) in self.blocks.clone().iter().enumerate() {
            let entry = self.entry(index)?;
            let read = self.read_block(index, &mut raw).and_then(|_| {
                let head = decode_head(&self.buffer, &entry)?;
                add_to(&mut tally, &head)
            });
            match read {
                Err(error) if error.class() != Class::Corrupt => return Err(error),
                Err(error) => {
                    bad += 1;
                    each(index, block, Err(error));
                }
                Ok(()) => each(index, block, Ok(&raw)),
            }
            // Whatever is wrong with it: the buffer has the block as it is stored.
            hasher.update(&self.buffer);
            place += entry.stored_len;
        }
        let footer = self.file_len.checked_sub(place + (DIGEST + 4) as u64);
        let footer = footer.ok_or_else(|| no_footer(self.meta.header.number))?;
        self.fill(place, footer)?;
        hasher.update(&self.buffer);
        if bad > 0 {
            return Err(Error::corrupt(format!("{bad} blocks are damaged")));
        }
        if hasher.finalize().to_hex().as_str() != self.meta.digest {
            return Err(Error::corrupt("it does not match its digest"));
        }
        if *tally.totals() != self.meta.totals {
            return Err(Error::corrupt("a segment's totals are not those of its blocks"));
        }
        Ok(())
    }

    /// Reads a block as [`Reader::read_block`] does, and gives its origins and the difference of
    /// its GTID set as well.
    pub(super) fn read_block_with_head(
        &mut self,
        index: usize,
        into: &mut Vec<u8>,
    ) -> Result<Head<'_>> {
        self.read_block(index, into)?;
        let entry = self.entry(index)?;
        decode_head(&self.buffer, &entry)
    }

    /// Reads the header; what follows it is at the offset given.
    fn begin(mut inner: R) -> Result<(Self, u64)> {
        let file_len = inner.seek(SeekFrom::End(0)).unavailable(|| "read a segment".into())?;
        let mut buffer = vec![];
        fill(&mut inner, &mut buffer, 0, (PREFIX as u64).min(file_len))?;
        let len = format::frame_len(&buffer)?;
        if len > file_len || len > (JSON_MAX + 64) as u64 {
            return Err(Error::corrupt("a segment ends within its header"));
        }
        fill(&mut inner, &mut buffer, 0, len)?;
        let header: SegmentHeader = format::decode_header(&buffer)?;
        check_header(&header).map_err(Error::corrupt)?;
        let meta = SegmentMeta {
            totals: Tally::new(&header).totals().clone(),
            header,
            bytes_stored: file_len,
            digest: String::new(),
            sealed: false,
        };
        let decompressor =
            zstd::bulk::Decompressor::new().class(Class::Bug, || "set up zstd".into())?;
        let reader = Self {
            inner,
            file_len,
            header_len: len,
            meta,
            entries: vec![],
            blocks: vec![],
            torn: 0,
            buffer,
            decompressor,
        };
        Ok((reader, len))
    }

    /// Takes the footer that is in the buffer and begins at `at`.
    fn take_footer(&mut self, at: u64) -> Result<()> {
        let footer: Footer<Totals> = format::decode_footer(&self.buffer)?;
        if footer.at != at {
            return Err(Error::corrupt("a segment's footer is not where it says"));
        }
        check_index(&self.meta.header, &footer, self.header_len)?;
        self.blocks = footer.entries.iter().map(Entry::meta).collect();
        self.entries = footer.entries;
        self.torn = 0;
        self.meta.totals = footer.totals;
        self.meta.bytes_stored = self.file_len;
        self.meta.digest = blake3::Hash::from_bytes(footer.digest).to_hex().to_string();
        self.meta.sealed = true;
        Ok(())
    }

    /// Whether the rest of the file, from `at`, is a whole footer; takes it if so.
    fn scan_footer(&mut self, at: u64) -> Result<bool> {
        let rest = self.file_len - at;
        if rest < (PREFIX + TRAILER) as u64 {
            return Ok(false);
        }
        self.fill(at, PREFIX as u64)?;
        if format::kind_of(&self.buffer) != Some(Kind::Footer)
            || format::frame_len(&self.buffer).ok() != Some(rest)
        {
            return Ok(false);
        }
        self.fill(at, rest)?;
        match self.take_footer(at) {
            Ok(()) => Ok(true),
            Err(error) if error.class() == Class::Corrupt => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads and checks the block that begins at `at`, and adds it to the sum.
    fn scan_block(&mut self, at: u64, tally: &mut Tally) -> Result<Entry> {
        let entry = self.block_at(at)?;
        if entry.description.start != tally.raw_end() {
            return Err(Error::corrupt("a block that does not go on from the one before"));
        }
        let (head, frame) = split_block(&self.buffer, &entry)?;
        check_frame(frame, &entry)?;
        add_to(tally, &head)?;
        Ok(entry)
    }

    /// Reads what says that it is a block into the buffer.
    fn block_at(&mut self, at: u64) -> Result<Entry> {
        let torn = || Error::corrupt("the segment ends within a block");
        let rest = self.file_len - at;
        if rest < PREFIX as u64 {
            return Err(torn());
        }
        self.fill(at, PREFIX as u64)?;
        let head_len = format::frame_len(&self.buffer)?;
        if head_len > rest || head_len > HEAD_MAX as u64 {
            return Err(torn());
        }
        self.fill(at, head_len)?;
        let description = Head::decode(&self.buffer)?.description;
        let stored_len = head_len + u64::from(description.frame_len);
        if stored_len > rest {
            return Err(torn());
        }
        let entry = Entry { file_offset: at, stored_len, description };
        self.fill(at, stored_len)?;
        Ok(entry)
    }

    fn entry(&self, index: usize) -> Result<Entry> {
        let none =
            || Error::bug(format!("segment {} has no block {index}", self.meta.header.number));
        self.entries.get(index).cloned().ok_or_else(none)
    }

    /// Reads a block, as it is stored, into the buffer.
    fn fill_block(&mut self, index: usize) -> Result<Entry> {
        let entry = self.entry(index)?;
        if entry.stored_len > (HEAD_MAX + BLOCK_FRAME_MAX) as u64 {
            return Err(Error::corrupt(format!("block {index} is too long")));
        }
        self.fill(entry.file_offset, entry.stored_len)?;
        Ok(entry)
    }

    fn fill(&mut self, at: u64, len: u64) -> Result<()> {
        fill(&mut self.inner, &mut self.buffer, at, len)
    }

    /// The digest of all bytes before the place where the footer has it.
    fn hash(&mut self) -> Result<blake3::Hash> {
        let reading = || "read a segment".into();
        let mut left = self.file_len.saturating_sub((DIGEST + 4) as u64);
        self.inner.seek(SeekFrom::Start(0)).unavailable(reading)?;
        let mut hasher = blake3::Hasher::new();
        let piece_len = usize::try_from(left).unwrap_or(usize::MAX).min(1 << 17);
        self.buffer.resize(piece_len, 0);
        while left > 0 {
            let len = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let Some(piece) = self.buffer.get_mut(..len) else { break };
            self.inner.read_exact(piece).map_err(read_error)?;
            hasher.update(piece);
            left -= len as u64;
        }
        Ok(hasher.finalize())
    }
}

/// Reads `len` bytes at `at` into `buffer`, which has exactly them afterwards.
fn fill<R: Read + Seek>(inner: &mut R, buffer: &mut Vec<u8>, at: u64, len: u64) -> Result<()> {
    buffer.clear();
    inner.seek(SeekFrom::Start(at)).unavailable(|| "read a segment".into())?;
    let read = inner.by_ref().take(len).read_to_end(buffer).map_err(read_error)?;
    if read as u64 != len {
        return Err(Error::corrupt(format!("a segment ends {} bytes early", len - read as u64)));
    }
    Ok(())
}

fn read_error(error: std::io::Error) -> Error {
    let class = match error.kind() {
        ErrorKind::UnexpectedEof => Class::Corrupt,
        _ => Class::Unavailable,
    };
    Error::new(class, "read a segment").source(error)
}

fn no_footer(number: u64) -> Error {
    Error::corrupt(format!("segment {number} has no footer where it must have one"))
}

/// Decodes a head and compares it with what the index says.
fn decode_head<'a>(stored: &'a [u8], entry: &Entry) -> Result<Head<'a>> {
    let len = usize::try_from(entry.head_len()).unwrap_or(usize::MAX);
    let bytes = stored.get(..len).ok_or_else(|| Error::corrupt("a block is cut short"))?;
    let head = Head::decode(bytes)?;
    if head.description != entry.description {
        return Err(Error::corrupt("a block's head is not the one in the footer's index"));
    }
    Ok(head)
}

/// Head and zstd frame of a stored block.
fn split_block<'a>(stored: &'a [u8], entry: &Entry) -> Result<(Head<'a>, &'a [u8])> {
    let head = decode_head(stored, entry)?;
    let len = usize::try_from(entry.head_len()).unwrap_or(usize::MAX);
    let frame = stored.get(len..).ok_or_else(|| Error::corrupt("a block is cut short"))?;
    Ok((head, frame))
}

/// Whether the stored bytes are those that were written, and exactly one zstd frame that says
/// how long its content is.
fn check_frame(frame: &[u8], entry: &Entry) -> Result<()> {
    let block = &entry.description;
    if frame.len() != block.frame_len as usize || crc32c::crc32c(frame) != block.frame_crc {
        return Err(Error::corrupt("stored bytes do not match their CRC"));
    }
    let content = zstd_safe::get_frame_content_size(frame).ok().flatten();
    let one_frame = zstd_safe::find_frame_compressed_size(frame).ok() == Some(frame.len());
    if content != Some(u64::from(block.raw_len)) || !one_frame {
        return Err(Error::corrupt(
            "a block is not one zstd frame of the length that it must have",
        ));
    }
    Ok(())
}

/// Adds a block to the sum, with the GTID set at its end.
fn add_to(tally: &mut Tally, head: &Head<'_>) -> Result<()> {
    if let Some(whole) = &head.whole {
        whole.apply(tally.gtids_mut())?;
    }
    let db = head.whole.map_or(0, |whole| whole.db);
    tally.add(&head.description, db, &head.marks, &head.origins);
    tally.add_landmarks(&head.landmarks);
    Ok(())
}

/// Whether the blocks in a footer follow each other without holes, in the file and in the log,
/// and add up to its totals.
fn check_index(header: &SegmentHeader, footer: &Footer<Totals>, header_len: u64) -> Result<()> {
    let mut place = header_len;
    let mut sum = Tally::new(header);
    for (index, entry) in footer.entries.iter().enumerate() {
        if entry.file_offset != place || entry.description.start != sum.raw_end() {
            return Err(Error::corrupt(format!("block {index} does not follow the one before it")));
        }
        let next = place.checked_add(entry.stored_len).filter(|_| entry.head_len() > 0);
        place = next.ok_or_else(|| Error::corrupt(format!("block {index} has no length")))?;
        let at_end = |at| Mark::new(entry.description.end(), at);
        let mark: Vec<Mark> = entry.description.known_until.map(at_end).into_iter().collect();
        sum.add(&entry.description, 0, &mark, &[]);
    }
    let (sum, raw_end) = (sum.totals(), sum.raw_end());
    let totals = &footer.totals;
    let same = totals.blocks == sum.blocks
        && totals.records == sum.records
        && totals.bytes_raw == sum.bytes_raw
        && totals.first_at == sum.first_at
        && totals.last_at == sum.last_at
        && totals.known_until == sum.known_until
        && totals.end.is_same_place(&sum.end)
        && totals.end.offset == raw_end;
    if place != footer.at || !same {
        return Err(Error::corrupt("a segment's footer does not agree with itself"));
    }
    Ok(())
}

impl<R: Read + Seek> fmt::Debug for Reader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("meta", &self.meta)
            .field("blocks", &self.blocks.len())
            .field("torn", &self.torn)
            .finish_non_exhaustive()
    }
}
