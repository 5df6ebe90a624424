//! Walks an RDB file from value to value: finds which databases it uses, and moves its expiries.
//!
//! Everything that is not an expiry is copied byte for byte, whatever it means; strings stream
//! through, so memory is bounded whatever their size. Of the values it knows the outer form only,
//! which is what tells where the next one begins.
//!
//! Facts from `rdb.h` and `rdb.c` (`rdbSaveRio`, `rdbSaveObject`, `rdbLoadObject`), `listpack.c`
//! and `lzf_d.c` of Redis 7.0 to 8.0, and of Valkey 9.0. Formats fork and move: the same number
//! means a hash of one kind in Redis and of another one in Valkey.
//!
//! **Invariant:** a file that holds anything unknown is refused, never guessed at, and no input
//! makes the walk panic.

pub(super) mod flow;
mod listpack;

use super::rdb::Crc64;
use crate::error::{Class, Error, Result};
use std::collections::BTreeMap;
use std::io::{BufRead, Read, Write};

/// RDB versions of Redis whose forms are known: those of Redis 6.2 to 8.4.
const REDIS_KNOWN: std::ops::RangeInclusive<u32> = 9..=12;
/// The same of Valkey, under its own magic number: that of 9.0 and 9.1.
const VALKEY_KNOWN: u32 = 80;

/// The longest listpack that is taken into memory: a hash of 512 fields of 64 bytes, by default.
const LISTPACK_BYTES_MAX: u64 = 64 << 20;

/// What an RDB file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Survey {
    /// The highest database that has a key.
    pub(super) db_max: u32,
    /// Keys.
    pub(super) keys: u64,
    /// Keys and fields with an expiry.
    pub(super) expiries: u64,
    /// Of each database: keys, and those of them that have an expiry.
    pub(super) databases: BTreeMap<u32, (u64, u64)>,
}

/// Walks a whole file from `from` and writes it to `to`, with `by_ms` added to every expiry and
/// with the checksum that it has then.
///
/// # Errors
/// Refused, if it holds what is not known; corrupt, if it is no RDB file.
pub(super) fn walk(from: impl BufRead, to: impl Write, by_ms: i64) -> Result<Survey> {
    let to = Sink { to, crc: Crc64::default() };
    let mut walk = Walk { from, to, by_ms, valkey: false, survey: Survey::default() };
    walk.file()?;
    walk.to.to.flush().map_err(broken)?;
    Ok(walk.survey)
}

/// The payload of DUMP with `by_ms` added to the expiries of fields in it. Whose form it is, the
/// type of the value says.
///
/// # Errors
/// As of [`walk()`].
pub(super) fn shift_payload(payload: &[u8], by_ms: i64) -> Result<Vec<u8>> {
    /// RDB version and checksum.
    const TRAILER: usize = 10;
    let Some((value, trailer)) =
        payload.len().checked_sub(TRAILER).and_then(|at| payload.split_at_checked(at))
    else {
        return Err(Error::corrupt("a value dumped is cut short"));
    };
    let valkey = value.first() == Some(&kind::HASH_VALKEY);
    let to = Sink { to: Vec::with_capacity(payload.len() + 8), crc: Crc64::default() };
    let mut walk = Walk { from: value, to, by_ms, valkey, survey: Survey::default() };
    let kind = walk.byte()?;
    walk.value(kind)?;
    if !walk.from.is_empty() {
        return Err(Error::corrupt("a value dumped goes on behind its end"));
    }
    walk.to.put(trailer.get(..2).unwrap_or_default())?;
    let crc = walk.to.crc.value();
    let mut out = walk.to.to;
    out.extend_from_slice(&crc.to_le_bytes());
    Ok(out)
}

/// Whether values of this type carry expiries of their own.
pub(super) fn has_field_expiries(kind: u8) -> bool {
    (kind::HASH_VALKEY..=kind::HASH_LISTPACK_EX).contains(&kind)
}

/// Marks between keys (`rdb.h`, `RDB_OPCODE_*`).
mod opcode {
    pub(super) const SLOT_INFO: u8 = 244;
    pub(super) const FUNCTION: u8 = 245;
    pub(super) const MODULE_AUX: u8 = 247;
    pub(super) const IDLE: u8 = 248;
    pub(super) const FREQ: u8 = 249;
    pub(super) const AUX: u8 = 250;
    pub(super) const RESIZE: u8 = 251;
    pub(super) const EXPIRE_MS: u8 = 252;
    pub(super) const EXPIRE_SECS: u8 = 253;
    pub(super) const SELECT: u8 = 254;
    pub(super) const END: u8 = 255;
}

/// Types of values (`rdb.h`, `RDB_TYPE_*`).
mod kind {
    pub(super) const STRING: u8 = 0;
    pub(super) const LIST: u8 = 1;
    pub(super) const SET: u8 = 2;
    pub(super) const ZSET: u8 = 3;
    pub(super) const HASH: u8 = 4;
    pub(super) const ZSET_2: u8 = 5;
    pub(super) const MODULE_2: u8 = 7;
    pub(super) const HASH_ZIPMAP: u8 = 9;
    pub(super) const HASH_ZIPLIST: u8 = 13;
    pub(super) const LIST_QUICKLIST: u8 = 14;
    pub(super) const STREAM: u8 = 15;
    pub(super) const HASH_LISTPACK: u8 = 16;
    pub(super) const ZSET_LISTPACK: u8 = 17;
    pub(super) const LIST_QUICKLIST_2: u8 = 18;
    pub(super) const STREAM_2: u8 = 19;
    pub(super) const SET_LISTPACK: u8 = 20;
    pub(super) const STREAM_3: u8 = 21;
    /// Of Valkey. Release candidates of Redis 7.4 used it otherwise.
    pub(super) const HASH_VALKEY: u8 = 22;
    pub(super) const HASH_METADATA: u8 = 24;
    pub(super) const HASH_LISTPACK_EX: u8 = 25;
}

struct Sink<W> {
    to: W,
    crc: Crc64,
}

impl<W: Write> Sink<W> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.crc.update(bytes);
        self.to.write_all(bytes).map_err(broken)
    }
}

struct Walk<R, W> {
    from: R,
    to: Sink<W>,
    by_ms: i64,
    valkey: bool,
    survey: Survey,
}

/// A length, or the mark of a string that is kept in another form.
enum Length {
    Plain(u64),
    Form(u8),
}

impl<R: BufRead, W: Write> Walk<R, W> {
    fn file(&mut self) -> Result<()> {
        self.head()?;
        let mut db = 0;
        // Whether the next key has an expiry.
        let mut expires = false;
        loop {
            let mark = self.take_byte()?;
            expires |= matches!(mark, opcode::EXPIRE_MS | opcode::EXPIRE_SECS);
            match mark {
                opcode::EXPIRE_MS => {
                    let at = i64::from_le_bytes(self.take()?);
                    self.key_expiry(Some(at))?;
                    continue;
                }
                opcode::EXPIRE_SECS => {
                    let secs = i64::from(u32::from_le_bytes(self.take()?));
                    self.key_expiry(secs.checked_mul(1000))?;
                    continue;
                }
                _ => self.to.put(&[mark])?,
            }
            match mark {
                opcode::END => return self.end(),
                opcode::SELECT => {
                    let number = self.length()?;
                    db =
                        u32::try_from(number).map_err(|_| cut_short("the number of a database"))?;
                }
                opcode::AUX => self.strings(2)?,
                opcode::RESIZE => self.lengths(2)?,
                opcode::SLOT_INFO => self.lengths(3)?,
                opcode::IDLE => self.lengths(1)?,
                opcode::FREQ => self.copy(1)?,
                opcode::FUNCTION => self.string()?,
                opcode::MODULE_AUX => self.module()?,
                kind => {
                    self.string()?;
                    self.value(kind)?;
                    self.survey.keys += 1;
                    let count = self.survey.databases.entry(db).or_default();
                    count.0 += 1;
                    count.1 += u64::from(std::mem::take(&mut expires));
                    self.survey.db_max = self.survey.db_max.max(db);
                }
            }
        }
    }

    fn head(&mut self) -> Result<()> {
        let magic: [u8; 9] = self.take()?;
        let redis = magic.strip_prefix(b"REDIS").and_then(number);
        let valkey = magic.strip_prefix(b"VALKEY").and_then(number);
        self.valkey = match (redis, valkey) {
            (Some(version), _) if REDIS_KNOWN.contains(&version) => false,
            (_, Some(VALKEY_KNOWN)) => true,
            (None, None) => return Err(Error::corrupt("not an RDB file")),
            _ => return Err(unknown(format!("RDB version {}", magic.escape_ascii()))),
        };
        self.to.put(&magic)
    }

    /// Copies the end mark's checksum, which is zero if it is switched off.
    fn end(&mut self) -> Result<()> {
        let crc = self.to.crc.value();
        let stored = u64::from_le_bytes(self.take()?);
        self.to.put(&(if stored == 0 { 0 } else { crc }).to_le_bytes())?;
        match self.from.fill_buf().map_err(broken)? {
            [] => Ok(()),
            _ => Err(Error::corrupt("the RDB file goes on behind its end")),
        }
    }

    fn key_expiry(&mut self, at: Option<i64>) -> Result<()> {
        self.to.put(&[opcode::EXPIRE_MS])?;
        let at = at.ok_or_else(out_of_range)?;
        self.expiry(at)
    }

    /// Writes an expiry of eight bytes.
    fn expiry(&mut self, at: i64) -> Result<()> {
        self.survey.expiries += 1;
        let at = moved(at, self.by_ms).ok_or_else(out_of_range)?;
        self.to.put(&at.to_le_bytes())
    }

    /// A value behind its key.
    fn value(&mut self, kind: u8) -> Result<()> {
        match kind {
            // One string: the value, or a packed form of all of it.
            kind::STRING
            | kind::HASH_ZIPMAP..=kind::HASH_ZIPLIST
            | kind::HASH_LISTPACK
            | kind::ZSET_LISTPACK
            | kind::SET_LISTPACK => self.string(),
            kind::LIST | kind::SET | kind::LIST_QUICKLIST => self.each(Self::string),
            kind::HASH => self.each(|walk| walk.strings(2)),
            kind::ZSET => self.each(|walk| {
                walk.string()?;
                // The length of a number in digits; the last three mean numbers without any.
                let digits = walk.byte()?;
                if digits < 253 { walk.copy(u64::from(digits)) } else { Ok(()) }
            }),
            kind::ZSET_2 => self.each(|walk| {
                walk.string()?;
                walk.copy(8)
            }),
            kind::LIST_QUICKLIST_2 => self.each(|walk| {
                walk.lengths(1)?;
                walk.string()
            }),
            kind::MODULE_2 => self.module(),
            kind::STREAM | kind::STREAM_2 | kind::STREAM_3 => self.stream(kind),
            kind::HASH_VALKEY if self.valkey => self.each(|walk| {
                walk.strings(2)?;
                match i64::from_le_bytes(walk.take()?) {
                    // `EXPIRY_NONE`
                    -1 => walk.to.put(&(-1_i64).to_le_bytes()),
                    at => walk.expiry(at),
                }
            }),
            kind::HASH_METADATA if !self.valkey => {
                self.first_expiry()?;
                // Each field's expiry is told by its distance to the first one.
                self.each(|walk| {
                    walk.lengths(1)?;
                    walk.strings(2)
                })
            }
            kind::HASH_LISTPACK_EX if !self.valkey => {
                self.first_expiry()?;
                self.listpack_with_expiries()
            }
            other => Err(unknown(format!("a value of type {other}"))),
        }
    }

    /// The soonest expiry among the fields of a hash; 0 if none has one.
    fn first_expiry(&mut self) -> Result<()> {
        match i64::from_le_bytes(self.take()?) {
            0 => self.to.put(&[0; 8]),
            at => self.expiry(at),
        }
    }

    fn each(&mut self, mut item: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        let count = self.length()?;
        for _ in 0..count {
            item(self)?;
        }
        Ok(())
    }

    /// A listpack of name, value and expiry in turn.
    fn listpack_with_expiries(&mut self) -> Result<()> {
        let packed = self.take_string(LISTPACK_BYTES_MAX)?;
        let moved = listpack::shift(&packed, self.by_ms)?;
        self.to.put(&[0x80])?;
        let len = u32::try_from(moved.len()).map_err(|_| cut_short("a listpack"))?;
        self.to.put(&len.to_be_bytes())?;
        self.to.put(&moved)
    }

    fn stream(&mut self, kind: u8) -> Result<()> {
        self.each(|walk| walk.strings(2))?;
        // Entries, last id; first id, largest id deleted and entries ever added.
        self.lengths(if kind == kind::STREAM { 3 } else { 8 })?;
        self.each(|walk| {
            walk.string()?;
            // Last id delivered; entries read.
            walk.lengths(if kind == kind::STREAM { 2 } else { 3 })?;
            // Unacknowledged entries: id, time of delivery, number of deliveries.
            walk.each(|walk| {
                walk.copy(16 + 8)?;
                walk.lengths(1)
            })?;
            // Consumers: name, when they were seen and active, ids of their entries.
            walk.each(|walk| {
                walk.string()?;
                walk.copy(if kind == kind::STREAM_3 { 16 } else { 8 })?;
                walk.each(|walk| walk.copy(16))
            })
        })
    }

    /// What a module wrote: its id, and values that each say what they are.
    fn module(&mut self) -> Result<()> {
        self.lengths(1)?;
        loop {
            match self.length()? {
                0 => return Ok(()),
                1 | 2 => self.lengths(1)?,
                3 => self.copy(4)?,
                4 => self.copy(8)?,
                5 => self.string()?,
                other => return Err(unknown(format!("a module's value of form {other}"))),
            }
        }
    }

    fn strings(&mut self, count: usize) -> Result<()> {
        (0..count).try_for_each(|_| self.string())
    }

    fn lengths(&mut self, count: usize) -> Result<()> {
        (0..count).try_for_each(|_| self.length().map(drop))
    }

    /// Copies a string, in whatever form.
    fn string(&mut self) -> Result<()> {
        let (length, bytes, used) = self.take_length()?;
        self.to.put(bytes.get(..used).unwrap_or_default())?;
        match length {
            Length::Plain(len) => self.copy(len),
            Length::Form(0) => self.copy(1),
            Length::Form(1) => self.copy(2),
            Length::Form(2) => self.copy(4),
            Length::Form(3) => {
                let packed = self.length()?;
                self.length()?;
                self.copy(packed)
            }
            Length::Form(other) => Err(unknown(format!("a string of form {other}"))),
        }
    }

    /// Takes a string off, unpacked, without copying it.
    fn take_string(&mut self, most: u64) -> Result<Vec<u8>> {
        let (length, ..) = self.take_length()?;
        let plain = |length| match length {
            Length::Plain(len) if len <= most => Ok(len),
            _ => Err(unknown(format!("a packed hash of more than {most} bytes"))),
        };
        let Length::Form(3) = length else {
            let len = plain(length)?;
            return self.take_bytes(len);
        };
        let packed = plain(self.take_length()?.0)?;
        let len = plain(self.take_length()?.0)?;
        lzf_unpack(&self.take_bytes(packed)?, len).ok_or_else(|| cut_short("a packed string"))
    }

    /// Copies a length, and says it.
    fn length(&mut self) -> Result<u64> {
        let (length, bytes, used) = self.take_length()?;
        self.to.put(bytes.get(..used).unwrap_or_default())?;
        match length {
            Length::Plain(length) => Ok(length),
            Length::Form(_) => Err(cut_short("a length")),
        }
    }

    /// Takes a length off: what it says, and the bytes that it has in the file.
    fn take_length(&mut self) -> Result<(Length, [u8; 9], usize)> {
        let mut bytes = [0; 9];
        let first = self.take_byte()?;
        let low = first & 0x3F;
        let (length, rest): (_, &[u8]) = match (first >> 6, low) {
            (0, _) => (Length::Plain(u64::from(low)), &[]),
            (1, _) => {
                let second = self.take_byte()?;
                (Length::Plain(u64::from(low) << 8 | u64::from(second)), &[second])
            }
            (2, 0) => {
                let four = self.take::<4>()?;
                (Length::Plain(u64::from(u32::from_be_bytes(four))), &{ four })
            }
            (2, 1) => {
                let eight = self.take::<8>()?;
                (Length::Plain(u64::from_be_bytes(eight)), &{ eight })
            }
            (3, form) => (Length::Form(form), &[]),
            _ => return Err(cut_short("a length")),
        };
        for (to, from) in bytes.iter_mut().zip(std::iter::once(&first).chain(rest)) {
            *to = *from;
        }
        Ok((length, bytes, 1 + rest.len()))
    }

    fn byte(&mut self) -> Result<u8> {
        let byte = self.take_byte()?;
        self.to.put(&[byte])?;
        Ok(byte)
    }

    fn take_byte(&mut self) -> Result<u8> {
        self.take().map(|[byte]| byte)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes).map_err(broken)?;
        Ok(bytes)
    }

    fn take_bytes(&mut self, len: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![];
        let read = Read::take(&mut self.from, len).read_to_end(&mut bytes);
        if read.map_err(broken)? as u64 == len { Ok(bytes) } else { Err(cut_short("a string")) }
    }

    /// Copies bytes.
    fn copy(&mut self, mut left: u64) -> Result<()> {
        while left > 0 {
            let bytes = self.from.fill_buf().map_err(broken)?;
            let most = usize::try_from(left).unwrap_or(usize::MAX);
            let bytes = bytes.get(..most).unwrap_or(bytes);
            if bytes.is_empty() {
                return Err(cut_short("a value"));
            }
            self.to.put(bytes)?;
            let used = bytes.len();
            self.from.consume(used);
            left -= used as u64;
        }
        Ok(())
    }
}

fn number(digits: &[u8]) -> Option<u32> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn cut_short(what: &str) -> Error {
    Error::corrupt(format!("the RDB file ends within {what}, or is none"))
}

fn unknown(what: String) -> Error {
    Error::refused(format!("the baseline has {what}, which this version of pitr does not know"))
}

fn out_of_range() -> Error {
    Error::refused("an expiry in the baseline is out of range when it is moved")
}

/// An expiry moved by some ms. What is not positive means "none" in some of the forms.
pub(super) fn moved(at: i64, by_ms: i64) -> Option<i64> {
    at.checked_add(by_ms).filter(|moved| *moved > 0 || by_ms == 0)
}

/// The error of what is read from or written to: our own, where there is one inside.
fn broken(error: std::io::Error) -> Error {
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        return cut_short("a value");
    }
    match error.downcast::<Error>() {
        Ok(error) => error,
        Err(error) => Error::new(Class::Unavailable, "read the baseline").source(error),
    }
}

/// Unpacks LZF: runs of bytes, and references to bytes before (`lzf_d.c`).
fn lzf_unpack(mut packed: &[u8], len: u64) -> Option<Vec<u8>> {
    let len = usize::try_from(len).ok()?;
    let mut out: Vec<u8> = Vec::with_capacity(len.min(LISTPACK_BYTES_MAX as usize));
    while let Some((&control, rest)) = packed.split_first() {
        packed = rest;
        if control < 32 {
            let (run, rest) = packed.split_at_checked(usize::from(control) + 1)?;
            out.extend_from_slice(run);
            packed = rest;
        } else {
            let mut run = usize::from(control >> 5);
            if run == 7 {
                let (&more, rest) = packed.split_first()?;
                run += usize::from(more);
                packed = rest;
            }
            let (&low, rest) = packed.split_first()?;
            packed = rest;
            let back = (usize::from(control & 0x1F) << 8 | usize::from(low)) + 1;
            let from = out.len().checked_sub(back)?;
            for at in from..from + run + 2 {
                out.push(*out.get(at)?);
            }
        }
        if out.len() > len {
            return None;
        }
    }
    (out.len() == len).then_some(out)
}

#[cfg(test)]
mod tests;
