//! What pitr reads of an RDB file: its version, its first fields and its checksum.
//!
//! All else is opaque. RDB formats fork and move (Redis and Valkey use the same opcodes for
//! different things), so only a server of the right version reads the keys.
//!
//! Facts from `rdb.c` of Redis: `rdbSaveRio`, `rdbSaveInfoAuxFields`, `rdbLoadLenByRef`; the
//! checksum is CRC-64/REDIS ("Jones") over everything before it, and zero if switched off.
//!
//! **Invariant:** [`Check::finish`] says `Ok` only of bytes that begin as an RDB file, end with
//! its end mark, and whose checksum, if they carry one, is right.

use crate::error::{Error, Result};

/// How many first bytes are kept to read the fields from.
const HEAD_BYTES: usize = 4096;

/// The end mark and the checksum.
const TRAILER_BYTES: usize = 9;

const OPCODE_AUX: u8 = 0xFA;
const OPCODE_EOF: u8 = 0xFF;

/// What the first fields say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Fields {
    /// Version of the format.
    pub(crate) rdb_version: u32,
    /// Version of the server that wrote it.
    pub(crate) server_version: String,
    /// Replication id of the stream that goes on behind it.
    pub(crate) repl_id: Option<String>,
    /// Offset of that stream.
    pub(crate) repl_offset: Option<u64>,
    /// Database selected in that stream.
    pub(crate) repl_db: Option<u32>,
    /// When it was begun, in seconds since 1970 by the server's clock.
    pub(crate) ctime: Option<i64>,
}

/// Reads the first fields of an RDB file, as far as `head` holds them.
///
/// # Errors
/// Corrupt, if it is no RDB file.
pub(crate) fn fields(head: &[u8]) -> Result<Fields> {
    let no_rdb = || Error::corrupt("not an RDB file: the magic number is missing");
    let (magic, rest) = head.split_at_checked(9).ok_or_else(no_rdb)?;
    let digits = magic.strip_prefix(b"REDIS").or_else(|| magic.strip_prefix(b"VALKEY"));
    let version = digits.and_then(|d| std::str::from_utf8(d).ok()?.parse().ok());
    let mut fields = Fields { rdb_version: version.ok_or_else(no_rdb)?, ..Fields::default() };
    let mut cursor = Cursor(rest);
    while cursor.0.first() == Some(&OPCODE_AUX) {
        cursor.take(1);
        let (Some(key), Some(value)) = (cursor.string(), cursor.string()) else { break };
        match key.as_slice() {
            b"redis-ver" | b"valkey-ver" => {
                fields.server_version = String::from_utf8_lossy(&value).into_owned();
            }
            b"repl-id" => fields.repl_id = String::from_utf8(value).ok(),
            b"repl-offset" => fields.repl_offset = parse(&value),
            b"repl-stream-db" => fields.repl_db = parse(&value),
            b"ctime" => fields.ctime = parse(&value),
            _ => {}
        }
    }
    Ok(fields)
}

fn parse<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Takes values off the front of bytes; `None` once they do not suffice.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    /// A string in one of its encodings; `None` also for a compressed one, which the first
    /// fields never are.
    fn string(&mut self) -> Option<Vec<u8>> {
        let [first] = self.array()?;
        let low = first & 0x3F;
        let length = match (first >> 6, low) {
            (0, _) => u64::from(low),
            (1, _) => {
                let [second] = self.array()?;
                u64::from(low) << 8 | u64::from(second)
            }
            (2, 0) => u64::from(u32::from_be_bytes(self.array()?)),
            (2, 1) => u64::from_be_bytes(self.array()?),
            (3, 0) => return Some(i8::from_le_bytes(self.array()?).to_string().into_bytes()),
            (3, 1) => return Some(i16::from_le_bytes(self.array()?).to_string().into_bytes()),
            (3, 2) => return Some(i32::from_le_bytes(self.array()?).to_string().into_bytes()),
            _ => return None,
        };
        Some(self.take(usize::try_from(length).ok()?)?.to_vec())
    }
}

/// Checks an RDB file while it streams by, in constant memory.
#[derive(Debug)]
pub(crate) struct Check {
    head: Vec<u8>,
    bytes: u64,
    crc: Crc64,
    /// The last bytes seen, which may be the trailer; not in `crc` yet.
    tail: Vec<u8>,
}

impl Check {
    pub(crate) fn new() -> Self {
        Self { head: vec![], bytes: 0, crc: Crc64::default(), tail: vec![] }
    }

    /// Takes the next bytes.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        let room = HEAD_BYTES.saturating_sub(self.head.len());
        self.head.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
        self.bytes += bytes.len() as u64;
        match bytes.len().checked_sub(TRAILER_BYTES).and_then(|n| bytes.split_at_checked(n)) {
            Some((before, last)) => {
                self.crc.update(&self.tail);
                self.crc.update(before);
                self.tail.clear();
                self.tail.extend_from_slice(last);
            }
            None => {
                self.tail.extend_from_slice(bytes);
                let surplus = self.tail.len().saturating_sub(TRAILER_BYTES);
                self.crc.update(self.tail.get(..surplus).unwrap_or_default());
                self.tail.drain(..surplus);
            }
        }
    }

    /// How many bytes were taken.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether enough bytes were taken for the first fields to be whole.
    pub(crate) fn has_fields(&self) -> bool {
        self.head.len() >= HEAD_BYTES
    }

    /// The first fields, as far as the bytes taken hold them.
    pub(crate) fn fields(&self) -> Result<Fields> {
        fields(&self.head)
    }

    /// Says whether what was taken is an RDB file to its end, and gives its first fields.
    ///
    /// # Errors
    /// Corrupt, if it is not.
    pub(crate) fn finish(mut self) -> Result<Fields> {
        let fields = self.fields()?;
        let Ok([end, stored @ ..]) = <[u8; TRAILER_BYTES]>::try_from(self.tail.as_slice()) else {
            return Err(Error::corrupt(format!("RDB file of {} bytes is cut short", self.bytes)));
        };
        if end != OPCODE_EOF {
            return Err(Error::corrupt(format!(
                "RDB file of {} bytes does not end with its end mark",
                self.bytes
            )));
        }
        self.crc.update(&[end]);
        let stored = u64::from_le_bytes(stored);
        if stored != 0 && stored != self.crc.value() {
            return Err(Error::corrupt(format!(
                "RDB file of {} bytes: checksum {:016x} instead of {stored:016x}",
                self.bytes,
                self.crc.value()
            )));
        }
        Ok(fields)
    }
}

/// CRC-64/REDIS: polynomial 0xad93d23594c935a9, reflected, starting at zero, eight bytes a step.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Crc64(u64);

/// The polynomial, bits reversed.
const POLYNOMIAL: u64 = 0xad93_d235_94c9_35a9_u64.reverse_bits();

static TABLES: [[u64; 256]; 8] = tables();

const fn tables() -> [[u64; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u64;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        tables[0][i] = crc;
        i += 1;
    }
    let mut t = 1;
    while t < 8 {
        let mut i = 0;
        while i < 256 {
            let before = tables[t - 1][i];
            tables[t][i] = (before >> 8) ^ tables[0][(before & 0xFF) as usize];
            i += 1;
        }
        t += 1;
    }
    tables
}

impl Crc64 {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        let mut crc = self.0;
        let (eights, rest) = bytes.as_chunks::<8>();
        for eight in eights {
            let mixed = (crc ^ u64::from_le_bytes(*eight)).to_le_bytes();
            crc = 0;
            for (table, byte) in TABLES.iter().rev().zip(mixed) {
                crc ^= table[usize::from(byte)];
            }
        }
        for byte in rest {
            crc = (crc >> 8) ^ TABLES[0][usize::from(crc.to_le_bytes()[0] ^ byte)];
        }
        self.0 = crc;
    }

    pub(super) fn value(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An empty data set as Redis 7.0 writes it, without its checksum.
    fn rdb() -> Vec<u8> {
        let mut rdb = b"REDIS0010".to_vec();
        for (key, value) in [
            (&b"redis-ver"[..], &b"\x067.0.15"[..]),
            (b"redis-bits", b"\xC0\x40"),
            (b"repl-stream-db", b"\xC0\x05"),
            (b"repl-id", b"\x288371b4fb1155b71f4a04d3e1bc3e18c4a990aeeb"),
            (b"repl-offset", b"\xC2\x15\xCD\x5B\x07"),
        ] {
            rdb.push(OPCODE_AUX);
            rdb.push(key.len() as u8);
            rdb.extend_from_slice(key);
            rdb.extend_from_slice(value);
        }
        rdb.push(OPCODE_EOF);
        rdb
    }

    fn check(rdb: &[u8], piece: usize) -> Result<Fields> {
        let mut check = Check::new();
        rdb.chunks(piece).for_each(|piece| check.update(piece));
        check.finish()
    }

    #[test]
    fn the_checksum_is_that_of_redis() {
        let mut crc = Crc64::default();
        crc.update(b"123456789");
        assert_eq!(crc.value(), 0xe9c6_d914_c4b8_d9ca);
        let mut crc = Crc64::default();
        crc.update(b"1234");
        crc.update(b"");
        crc.update(b"56789");
        assert_eq!(crc.value(), 0xe9c6_d914_c4b8_d9ca);
    }

    #[test]
    fn any_flipped_bit_is_noticed_in_any_pieces() {
        let mut rdb = rdb();
        let mut crc = Crc64::default();
        crc.update(&rdb);
        rdb.extend_from_slice(&crc.value().to_le_bytes());
        for piece in [1, 2, 8, 9, 10, 13, 4096] {
            let fields = check(&rdb, piece).unwrap();
            assert_eq!((fields.rdb_version, fields.repl_db), (10, Some(5)));
            assert_eq!(fields.repl_offset, Some(123_456_789));
            assert_eq!(fields.repl_id.as_deref(), Some("8371b4fb1155b71f4a04d3e1bc3e18c4a990aeeb"));
        }
        for at in 0..rdb.len() {
            rdb[at] ^= 4;
            assert!(check(&rdb, 7).is_err(), "byte {at}");
            rdb[at] ^= 4;
        }
        for length in 0..rdb.len() {
            assert!(check(&rdb[..length], 7).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_file_without_checksum_still_needs_its_end_mark() {
        let mut rdb = rdb();
        rdb.extend_from_slice(&[0; 8]);
        assert_eq!(check(&rdb, 64).unwrap().server_version, "7.0.15");
        rdb.insert(rdb.len() - 9, 0);
        assert!(check(&rdb, 64).is_ok(), "what lies before the end mark is the server's affair");
        rdb.push(0);
        assert!(check(&rdb, 64).is_err());
    }
}
