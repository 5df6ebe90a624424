//! The bytes of a segment file: constants, and encoding and decoding of each frame.
//!
//! Every integer is little-endian. What is written here stands in `docs/SEGMENT_FORMAT.md`,
//! which carries a digest of this file: change both together. Nothing here does I/O or knows
//! the order of frames in a file.
//!
//! **Invariant:** each value has exactly one encoding (absent values are zero, reserved bytes are
//! zero), so what decodes encodes again to the same bytes, and no bit of a frame is idle.

use crate::clock::Timestamp;
use crate::error::{Class, Context, Error, Result};
use crate::manifest::{BlockMeta, FORMAT};
use crate::record::{Landmark, Mark, TimeSource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::borrow::Cow;

/// Most raw bytes that a block may have.
pub const BLOCK_RAW_MAX: usize = 64 << 20;

/// The zstd frame of such a block, with room for the overhead of incompressible data.
pub(super) const BLOCK_FRAME_MAX: usize = BLOCK_RAW_MAX + (1 << 20);
/// Most marks in a block.
pub(super) const MARKS_MAX: usize = 1 << 16;
/// Most origins in a block.
pub(super) const ORIGINS_MAX: usize = 1 << 16;
/// Longest JSON in a header or footer.
pub(super) const JSON_MAX: usize = 32 << 20;
/// Longest GTID set at the end of a block.
pub(super) const GTIDS_MAX: usize = 16 << 20;

/// One of the magic numbers of skippable frames (zstd format, "Skippable Frames").
const SKIPPABLE: u32 = 0x184D_2A57;
/// Begins the content of each of our skippable frames.
pub(super) const MAGIC: [u8; 4] = *b"PITR";
/// Where it stands in such a frame.
pub(super) const MAGIC_AT: usize = 8;

/// Skippable magic, length, own magic, version, kind, reserved byte.
pub(super) const PREFIX: usize = 16;
/// CRC32C at the end of each frame.
const CRC: usize = 4;
/// A block's description, the same in its head and in the footer's index.
pub(super) const DESCRIPTION: usize = 64;
/// A block head without marks, origins and GTIDs.
const HEAD_FIXED: usize = PREFIX + DESCRIPTION + 20 + CRC;
/// Longest block head.
pub(super) const HEAD_MAX: usize =
    HEAD_FIXED + MARKS_MAX * (MARK + SPAN) + ORIGINS_MAX * ORIGIN + GTIDS_MAX + 4 + LANDMARKS_BYTES;
const MARK: usize = 16;
const SPAN: usize = 4;
const ORIGIN: usize = 4;
/// Longest JSON of a block's landmarks.
const LANDMARKS_BYTES: usize = 64 << 10;
/// An entry of the footer's index: place, length, description.
pub(super) const ENTRY: usize = 16 + DESCRIPTION;
/// The end of the footer, and of the file: the footer's own place, digest, CRC32C.
pub(super) const TRAILER: usize = 8 + DIGEST + CRC;
pub(super) const DIGEST: usize = 32;

const HAS_WHOLE: u8 = 1;
const HAS_FIRST: u8 = 2;
const HAS_LAST: u8 = 4;
const HAS_KNOWN: u8 = 8;
const HAS_LANDMARKS: u8 = 16;
const HAS_SPANS: u8 = 32;

/// What a skippable frame of a segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Header = 1,
    Head = 2,
    Footer = 3,
}

/// Begins a frame at the start of `out`, which is emptied.
fn begin(out: &mut Vec<u8>, kind: Kind) {
    out.clear();
    out.extend_from_slice(&SKIPPABLE.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&(FORMAT as u16).to_le_bytes());
    out.extend_from_slice(&[kind as u8, 0]);
}

/// Writes the length of the frame, which `more` bytes and the CRC will still be added to.
fn set_len(out: &mut [u8], more: usize) -> Result<()> {
    let len = u32::try_from(out.len() - 8 + more + CRC)
        .map_err(|_| Error::bug("a segment frame would be longer than 4 GiB"))?;
    if let Some(field) = out.get_mut(4..8) {
        field.copy_from_slice(&len.to_le_bytes());
    }
    Ok(())
}

fn end_with_crc(out: &mut Vec<u8>) {
    out.extend_from_slice(&crc32c::crc32c(out).to_le_bytes());
}

/// The whole length of the frame that begins with these [`PREFIX`] bytes.
pub(super) fn frame_len(prefix: &[u8]) -> Result<u64> {
    let mut fields = Fields(prefix);
    if fields.u32()? != SKIPPABLE {
        return Err(Error::corrupt("no frame of a segment begins here"));
    }
    let len = u64::from(fields.u32()?) + 8;
    if fields.array::<4>()? != MAGIC || len < (PREFIX + CRC) as u64 {
        return Err(Error::corrupt("no frame of pitr begins here"));
    }
    Ok(len)
}

/// The kind that a frame claims to be; nothing else of it is checked.
pub(super) fn kind_of(prefix: &[u8]) -> Option<Kind> {
    [Kind::Header, Kind::Head, Kind::Footer]
        .into_iter()
        .find(|kind| prefix.get(14) == Some(&(*kind as u8)))
}

/// Checks a whole frame and gives its content.
///
/// # Errors
/// Corrupt, if it is not what a writer wrote; refused, if a newer format wrote it.
pub(super) fn content(frame: &[u8], kind: Kind) -> Result<&[u8]> {
    let len = frame_len(frame)?;
    let (body, crc) = frame
        .split_last_chunk::<CRC>()
        .filter(|_| len == frame.len() as u64)
        .ok_or_else(|| Error::corrupt("a segment frame is cut short"))?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
        return Err(Error::corrupt(
            format!("{kind:?} frame does not match its CRC").to_lowercase(),
        ));
    }
    let mut fields = Fields(body);
    fields.take(12)?;
    let version = u32::from(u16::from_le_bytes(fields.array()?));
    if version != FORMAT {
        return Err(Error::refused(format!("segment format {version} is not known to this pitr"))
            .hint("read it with the version of pitr that wrote it, or a newer one"));
    }
    let [found, reserved] = fields.array()?;
    if found != kind as u8 || reserved != 0 {
        return Err(Error::corrupt(format!("expected a {kind:?} frame").to_lowercase()));
    }
    Ok(fields.0)
}

fn json_of<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).corrupt(|| "a segment's JSON does not parse".into())
}

fn push_json<T: Serialize>(out: &mut Vec<u8>, value: &T) -> Result<()> {
    let json = serde_json::to_vec(value).class(Class::Bug, || "write a segment's JSON".into())?;
    if json.len() > JSON_MAX {
        return Err(Error::bug(format!("a segment's JSON has {} bytes", json.len())));
    }
    out.extend_from_slice(&(json.len() as u32).to_le_bytes());
    out.extend_from_slice(&json);
    Ok(())
}

/// Writes a header frame into `out`, which is emptied.
pub(super) fn encode_header<T: Serialize>(out: &mut Vec<u8>, header: &T) -> Result<()> {
    begin(out, Kind::Header);
    push_json(out, header)?;
    set_len(out, 0)?;
    end_with_crc(out);
    Ok(())
}

/// Reads a header frame.
pub(super) fn decode_header<T: DeserializeOwned>(frame: &[u8]) -> Result<T> {
    let mut fields = Fields(content(frame, Kind::Header)?);
    let len = fields.len(JSON_MAX)?;
    let json = fields.take(len)?;
    fields.end()?;
    json_of(json)
}

/// What is known about a block: the part that its head and the footer's index share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Description {
    pub(super) start: u64,
    pub(super) raw_len: u32,
    /// Length of the zstd frame.
    pub(super) frame_len: u32,
    /// CRC32C of the zstd frame.
    pub(super) frame_crc: u32,
    pub(super) records: u32,
    pub(super) time: TimeSource,
    pub(super) marks: u32,
    pub(super) whole_until: Option<u64>,
    pub(super) first_at: Option<Timestamp>,
    pub(super) last_at: Option<Timestamp>,
    pub(super) known_until: Option<Timestamp>,
    /// Whether landmarks follow in the head.
    pub(super) has_landmarks: bool,
    /// Whether the spans of the marks follow in the head.
    pub(super) has_spans: bool,
}

impl Description {
    /// Offset after the last byte. Decoding and the writer make sure that it does not overflow.
    pub(super) fn end(&self) -> u64 {
        self.start.saturating_add(u64::from(self.raw_len))
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let flag = |bit: u8, set: bool| if set { bit } else { 0 };
        let micros = |t: Option<Timestamp>| t.map_or(0, Timestamp::as_micros).to_le_bytes();
        out.extend_from_slice(&self.start.to_le_bytes());
        for field in [self.raw_len, self.frame_len, self.frame_crc, self.records] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        let flags = flag(HAS_WHOLE, self.whole_until.is_some())
            | flag(HAS_FIRST, self.first_at.is_some())
            | flag(HAS_LAST, self.last_at.is_some())
            | flag(HAS_KNOWN, self.known_until.is_some())
            | flag(HAS_LANDMARKS, self.has_landmarks)
            | flag(HAS_SPANS, self.has_spans);
        let time = match self.time {
            TimeSource::Commit => 0,
            TimeSource::Header => 1,
            TimeSource::Sampled => 2,
        };
        out.extend_from_slice(&[flags, time, 0, 0]);
        out.extend_from_slice(&self.marks.to_le_bytes());
        out.extend_from_slice(&self.whole_until.unwrap_or(0).to_le_bytes());
        for at in [self.first_at, self.last_at, self.known_until] {
            out.extend_from_slice(&micros(at));
        }
    }

    fn decode(fields: &mut Fields<'_>) -> Result<Self> {
        let start = fields.u64()?;
        let (raw_len, frame_len) = (fields.u32()?, fields.u32()?);
        let (frame_crc, records) = (fields.u32()?, fields.u32()?);
        let [flags, time, reserved @ ..] = fields.array::<4>()?;
        let marks = fields.u32()?;
        let whole_until = fields.u64()?;
        let optional = |bit: u8, value: u64| match (flags & bit != 0, value) {
            (true, value) => Ok(Some(value)),
            (false, 0) => Ok(None),
            (false, _) => Err(Error::corrupt("a block has a value that it says it has not")),
        };
        let whole_until = optional(HAS_WHOLE, whole_until)?;
        let mut time_of = |bit| {
            let micros = optional(bit, fields.u64()?)?;
            Ok::<_, Error>(micros.map(|m| Timestamp::from_micros(m.cast_signed())))
        };
        let (first_at, last_at) = (time_of(HAS_FIRST)?, time_of(HAS_LAST)?);
        let known_until = time_of(HAS_KNOWN)?;
        let time = match time {
            0 => TimeSource::Commit,
            1 => TimeSource::Header,
            2 => TimeSource::Sampled,
            other => return Err(Error::corrupt(format!("unknown time source {other}"))),
        };
        let block = Self {
            start,
            raw_len,
            frame_len,
            frame_crc,
            records,
            time,
            marks,
            whole_until,
            first_at,
            last_at,
            known_until,
            has_landmarks: flags & HAS_LANDMARKS != 0,
            has_spans: flags & HAS_SPANS != 0,
        };
        let known = HAS_WHOLE | HAS_FIRST | HAS_LAST | HAS_KNOWN | HAS_LANDMARKS | HAS_SPANS;
        if flags & !known != 0 || reserved != [0; 2] {
            return Err(Error::corrupt("a block has unknown flags"));
        }
        block.check().map_err(Error::corrupt)?;
        Ok(block)
    }

    /// Whether the values agree with each other and with the limits; says which does not.
    pub(super) fn check(&self) -> Result<(), String> {
        let limit = |what, len: u32, max: usize| match len as usize {
            len if len > max => Err(format!("a block with {len} {what}, more than {max}")),
            _ => Ok(()),
        };
        limit("raw bytes", self.raw_len, BLOCK_RAW_MAX)?;
        limit("stored bytes", self.frame_len, BLOCK_FRAME_MAX)?;
        limit("marks", self.marks, MARKS_MAX)?;
        let end = self.start.checked_add(u64::from(self.raw_len));
        let end = end.ok_or_else(|| format!("a block beyond the last offset: {}", self.start))?;
        match self.whole_until {
            Some(whole) if whole < self.start || whole > end => {
                Err(format!("the last whole record ends at {whole}, outside of its block"))
            }
            None if self.records > 0 => {
                Err("records end in a block, but not where the last of them ends".into())
            }
            _ => Ok(()),
        }
    }
}

/// A block's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head<'a> {
    pub(super) description: Description,
    /// Database and GTIDs where the last whole record ends; present as `whole_until` is.
    pub(super) whole: Option<Whole<'a>>,
    pub(super) marks: Cow<'a, [Mark]>,
    pub(super) origins: Cow<'a, [u32]>,
    pub(super) landmarks: Cow<'a, [Landmark]>,
}

/// What a reader has to know besides the offset to go on behind the last whole record.
///
/// The GTID set is stored as its difference to the one before it in the file (that of the
/// last earlier block that has one, or of the header's start): so many bytes are kept in front,
/// so many at the back, and what stands between is replaced. A set of many servers is long, and
/// next to nothing of it changes from block to block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Whole<'a> {
    pub(super) db: u32,
    pub(super) front: u32,
    pub(super) back: u32,
    pub(super) middle: &'a [u8],
}

impl<'a> Whole<'a> {
    /// How `gtids` differs from `before`.
    pub(super) fn new(db: u32, before: &str, gtids: &'a str) -> Self {
        let (before, gtids) = (before.as_bytes(), gtids.as_bytes());
        let front = before.iter().zip(gtids).take_while(|(a, b)| a == b).count();
        let (old, new) = (before.get(front..), gtids.get(front..));
        let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
        let back = old.iter().rev().zip(new.iter().rev()).take_while(|(a, b)| a == b).count();
        let middle = new.get(..new.len() - back).unwrap_or_default();
        Self { db, front: front as u32, back: back as u32, middle }
    }

    /// Turns the GTID set before into the one at this place.
    pub(super) fn apply(&self, gtids: &mut String) -> Result<()> {
        let wrong = || Error::corrupt("a block's GTID set does not fit the one before it");
        let (front, back) = (self.front as usize, self.back as usize);
        let until = gtids.len().checked_sub(back).filter(|until| front <= *until);
        let until = until.ok_or_else(wrong)?;
        if front + back + self.middle.len() > GTIDS_MAX {
            return Err(wrong());
        }
        let middle = std::str::from_utf8(self.middle).corrupt(|| "a block's GTID set".into())?;
        if !gtids.is_char_boundary(front) || !gtids.is_char_boundary(until) {
            return Err(wrong());
        }
        gtids.replace_range(front..until, middle);
        Ok(())
    }
}

impl<'a> Head<'a> {
    /// Length of the encoded head.
    pub(super) fn encoded_len(&self) -> Result<usize> {
        let landmarks = self.landmarks_json()?.map_or(0, |json| 4 + json.len());
        Ok(HEAD_FIXED
            + self.marks.len() * MARK
            + self.origins.len() * ORIGIN
            + self.whole.map_or(0, |whole| whole.middle.len())
            + landmarks
            + if self.description.has_spans { self.marks.len() * SPAN } else { 0 })
    }

    /// The landmarks as they are written; nothing where there are none.
    fn landmarks_json(&self) -> Result<Option<Vec<u8>>> {
        if self.landmarks.is_empty() {
            return Ok(None);
        }
        let json = serde_json::to_vec(&self.landmarks)
            .class(Class::Bug, || "write a block's landmarks".into())?;
        if json.len() > LANDMARKS_BYTES {
            return Err(Error::bug(format!("a block's landmarks have {} bytes", json.len())));
        }
        Ok(Some(json))
    }

    /// Writes the frame into `out`, which is emptied.
    pub(super) fn encode(&self, out: &mut Vec<u8>) -> Result<()> {
        begin(out, Kind::Head);
        self.description.encode(out);
        let whole = self.whole.unwrap_or(Whole { db: 0, front: 0, back: 0, middle: &[] });
        let (origins, middle) = (self.origins.len() as u32, whole.middle.len() as u32);
        for field in [origins, whole.db, whole.front, whole.back, middle] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        for mark in self.marks.iter() {
            out.extend_from_slice(&mark.offset.to_le_bytes());
            out.extend_from_slice(&mark.at.as_micros().to_le_bytes());
        }
        for origin in self.origins.iter() {
            out.extend_from_slice(&origin.to_le_bytes());
        }
        out.extend_from_slice(whole.middle);
        if let Some(json) = self.landmarks_json()? {
            out.extend_from_slice(&(json.len() as u32).to_le_bytes());
            out.extend_from_slice(&json);
        }
        if self.description.has_spans {
            for mark in self.marks.iter() {
                out.extend_from_slice(&mark.span_micros.to_le_bytes());
            }
        }
        set_len(out, 0)?;
        end_with_crc(out);
        Ok(())
    }

    /// Reads a block head frame.
    pub(super) fn decode(frame: &'a [u8]) -> Result<Self> {
        let mut fields = Fields(content(frame, Kind::Head)?);
        let description = Description::decode(&mut fields)?;
        let origins = fields.len(ORIGINS_MAX)?;
        let (db, front, back) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let middle = fields.len(GTIDS_MAX)?;
        let mut marks = Fields(fields.take(description.marks as usize * MARK)?);
        let mut origin_fields = Fields(fields.take(origins * ORIGIN)?);
        let middle = fields.take(middle)?;
        let landmarks: Vec<Landmark> = if description.has_landmarks {
            let len = fields.len(LANDMARKS_BYTES)?;
            json_of(fields.take(len)?)?
        } else {
            vec![]
        };
        if landmarks.is_empty() == description.has_landmarks {
            return Err(Error::corrupt("a block has not the landmarks that it says it has"));
        }
        let spans = if description.has_spans { description.marks as usize * SPAN } else { 0 };
        let mut spans = Fields(fields.take(spans)?);
        fields.end()?;
        let marks: Vec<Mark> = (0..description.marks)
            .map(|_| {
                let offset = marks.u64()?;
                let at = Timestamp::from_micros(marks.u64()?.cast_signed());
                let span_micros = if description.has_spans { spans.u32()? } else { 0 };
                Ok(Mark { offset, at, span_micros })
            })
            .collect::<Result<_>>()?;
        let origins = (0..origins).map(|_| origin_fields.u32()).collect::<Result<Vec<_>>>()?;
        let whole = description.whole_until.map(|_| Whole { db, front, back, middle });
        if whole.is_none() && (db != 0 || front != 0 || back != 0 || !middle.is_empty()) {
            return Err(Error::corrupt("a block has a position that it says it has not"));
        }
        check_marks(&description, &marks).map_err(Error::corrupt)?;
        Ok(Self {
            description,
            whole,
            marks: marks.into(),
            origins: origins.into(),
            landmarks: landmarks.into(),
        })
    }
}

/// Whether marks lie within their block, in order, and agree with `known_until`.
pub(super) fn check_marks(block: &Description, marks: &[Mark]) -> Result<(), String> {
    let outside = |mark: &&Mark| mark.offset < block.start || mark.offset > block.end();
    if let Some(mark) = marks.iter().find(outside) {
        return Err(format!("a mark at {}, outside of its block", mark.offset));
    }
    if !marks.is_sorted_by_key(|mark| mark.offset) {
        return Err("marks of a block are out of order".into());
    }
    if marks.iter().any(|mark| mark.span_micros != 0) != block.has_spans {
        return Err("a block has not the spans of marks that it says it has".into());
    }
    if marks.iter().map(|mark| mark.at).max() != block.known_until {
        return Err("marks of a block disagree with its known_until".into());
    }
    Ok(())
}

/// A block as the footer's index has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) file_offset: u64,
    /// Length of head and zstd frame together.
    pub(super) stored_len: u64,
    pub(super) description: Description,
}

impl Entry {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.file_offset.to_le_bytes());
        out.extend_from_slice(&self.stored_len.to_le_bytes());
        self.description.encode(out);
    }

    /// Length of the block's head.
    pub(super) fn head_len(&self) -> u64 {
        self.stored_len.saturating_sub(u64::from(self.description.frame_len))
    }

    pub(super) fn meta(&self) -> BlockMeta {
        let block = &self.description;
        BlockMeta {
            file_offset: self.file_offset,
            stored_len: self.stored_len,
            raw_len: u64::from(block.raw_len),
            start: block.start,
            whole_until: block.whole_until,
            records: block.records,
            first_at: block.first_at,
            last_at: block.last_at,
            time: block.time,
            known_until: block.known_until,
        }
    }
}

/// Writes a footer frame into `out`, which is emptied, up to the place of the digest. `index` is
/// made of [`Entry::encode`]; `at` is the place in the file at which the footer begins.
pub(super) fn begin_footer<T: Serialize>(
    out: &mut Vec<u8>,
    totals: &T,
    index: &[u8],
    at: u64,
) -> Result<()> {
    begin(out, Kind::Footer);
    push_json(out, totals)?;
    let entries = u32::try_from(index.len() / ENTRY).map_err(|_| Error::bug("too many blocks"))?;
    out.extend_from_slice(&entries.to_le_bytes());
    out.extend_from_slice(index);
    out.extend_from_slice(&at.to_le_bytes());
    set_len(out, DIGEST)
}

/// Completes a footer frame. `digest` is over all bytes of the file before this place.
pub(super) fn end_footer(out: &mut Vec<u8>, digest: &[u8; DIGEST]) {
    out.extend_from_slice(digest);
    end_with_crc(out);
}

/// Where the footer begins, by the last [`TRAILER`] bytes of a file.
pub(super) fn footer_offset(trailer: &[u8]) -> Result<u64> {
    Fields(trailer).u64()
}

/// A footer.
#[derive(Debug)]
pub(super) struct Footer<T> {
    pub(super) totals: T,
    pub(super) entries: Vec<Entry>,
    /// Where it says that it begins.
    pub(super) at: u64,
    pub(super) digest: [u8; DIGEST],
}

/// Reads a footer frame.
pub(super) fn decode_footer<T: DeserializeOwned>(frame: &[u8]) -> Result<Footer<T>> {
    let mut fields = Fields(content(frame, Kind::Footer)?);
    let len = fields.len(JSON_MAX)?;
    let totals = json_of(fields.take(len)?)?;
    let count = fields.u32()? as usize;
    let len = count.checked_mul(ENTRY).ok_or_else(|| Error::corrupt("too many blocks"))?;
    let mut index = Fields(fields.take(len)?);
    let entries = (0..count)
        .map(|_| {
            let (file_offset, stored_len) = (index.u64()?, index.u64()?);
            let description = Description::decode(&mut index)?;
            Ok(Entry { file_offset, stored_len, description })
        })
        .collect::<Result<_>>()?;
    let (at, digest) = (fields.u64()?, fields.array()?);
    fields.end()?;
    Ok(Footer { totals, entries, at, digest })
}

/// Takes fields off the front of bytes that may be hostile.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let short = || Error::corrupt("a segment frame is shorter than its fields");
        let (taken, rest) = self.0.split_at_checked(len).ok_or_else(short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let short = || Error::corrupt("a segment frame is shorter than its fields");
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or_else(short)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A length or count with its limit.
    fn len(&mut self, max: usize) -> Result<usize> {
        match self.u32()? as usize {
            len if len > max => Err(Error::corrupt(format!("a length of {len}, more than {max}"))),
            len => Ok(len),
        }
    }

    fn end(&self) -> Result<()> {
        match self.0.len() {
            0 => Ok(()),
            more => Err(Error::corrupt(format!("{more} bytes too many in a segment frame"))),
        }
    }
}
