//! What a MariaDB writes in its own way: how a transaction begins, compressed rows, settings of a
//! session.
//!
//! Layouts: `Gtid_log_event`, `Rows_log_event` (`row_log_event_uncompress`) and `Query_log_event`
//! in the server's `sql/log_event.cc`; bits of settings as its `mariadb-binlog` reads them.
//!
//! **Invariant:** what is not understood is an error, never left out.

use super::super::event::{self, HEAD_BYTES, Reader, kind, maria_flag};
use super::super::maria::MariaGtid;
use super::session::{self, Collations};
use crate::error::{Context, Error, Result};
use std::io::Read;

/// The assignments that give the next transaction its name.
pub(super) fn name(gtid: MariaGtid) -> String {
    let MariaGtid { domain, server, sequence } = gtid;
    format!(
        "@@SESSION.gtid_domain_id={domain},@@SESSION.server_id={server},\
         @@SESSION.gtid_seq_no={sequence}"
    )
}

/// The statement with which the transaction of a GTID event begins; `None` if it is one statement
/// that stands by itself.
///
/// # Errors
/// Corrupt, if the event is cut short.
pub(super) fn opening(body: &[u8]) -> Result<Option<String>> {
    let opening =
        parse_opening(body).ok_or_else(|| Error::corrupt("GTID event: not in its form"))?;
    Ok(Some(opening).filter(|statement| !statement.is_empty()))
}

fn parse_opening(body: &[u8]) -> Option<String> {
    const PREPARED_XA: u8 = 0x40;
    let mut at = Reader(body);
    let (_sequence, _domain, flags) = (at.u64()?, at.u32()?, at.u8()?);
    if flags & maria_flag::GROUP_COMMIT_ID != 0 {
        at.u64()?;
    }
    if flags & PREPARED_XA != 0 {
        let format = at.u32()?.cast_signed();
        let (gtrid, bqual) = (usize::from(at.u8()?), usize::from(at.u8()?));
        return Some(format!("XA START {}", xid(&mut at, format, gtrid, bqual)?));
    }
    let is_standalone = flags & maria_flag::STANDALONE != 0;
    Some(if is_standalone { String::new() } else { "START TRANSACTION".into() })
}

/// Whether a statement within a transaction commits it: `CREATE TABLE … SELECT` is logged as the
/// table and its rows.
pub(super) fn commits(statement: &[u8]) -> bool {
    let mut words = statement
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty())
        .map(<[u8]>::to_ascii_uppercase);
    let is_create = words.next().is_some_and(|word| word == b"CREATE");
    is_create && !words.take(3).any(|word| word == b"TEMPORARY")
}

/// The name of an XA transaction, whose parts follow.
pub(super) fn xid(at: &mut Reader<'_>, format: i32, gtrid: usize, bqual: usize) -> Option<String> {
    let (gtrid, bqual) = (session::hex(at.bytes(gtrid)?), session::hex(at.bytes(bqual)?));
    Some(format!("X'{gtrid}',X'{bqual}',{format}"))
}

/// A compressed row event.
pub(super) struct CompressedRows<'a> {
    /// Its type without compression.
    pub(super) kind: u8,
    /// What stands before the rows, without the event's head.
    pub(super) prefix: &'a [u8],
    /// How long the rows are, in bytes.
    pub(super) length: u64,
    compressed: &'a [u8],
}

impl<'a> CompressedRows<'a> {
    /// Reads the body of one.
    ///
    /// # Errors
    /// Corrupt, if it is not what a server writes.
    pub(super) fn parse(kind: u8, body: &'a [u8]) -> Result<Self> {
        Self::read(kind, body).ok_or_else(|| bad("not in its form"))
    }

    fn read(kind: u8, body: &'a [u8]) -> Option<Self> {
        let plain = match kind {
            kind::MARIA_WRITE_ROWS_COMPRESSED_V1 => kind::WRITE_ROWS_V1,
            kind::MARIA_UPDATE_ROWS_COMPRESSED_V1 => kind::UPDATE_ROWS_V1,
            kind::MARIA_DELETE_ROWS_COMPRESSED_V1 => kind::DELETE_ROWS_V1,
            kind::MARIA_WRITE_ROWS_COMPRESSED => kind::WRITE_ROWS,
            kind::MARIA_UPDATE_ROWS_COMPRESSED => kind::UPDATE_ROWS,
            kind::MARIA_DELETE_ROWS_COMPRESSED => kind::DELETE_ROWS,
            _ => return None,
        };
        let mut at = Reader(body);
        // Number of the table, and flags.
        at.bytes(8)?;
        if plain >= kind::WRITE_ROWS {
            let extra = usize::from(at.u16()?);
            at.bytes(extra.checked_sub(2)?)?;
        }
        let columns = usize::try_from(at.lenenc()?).ok()?;
        at.bytes(columns.div_ceil(8))?;
        if matches!(plain, kind::UPDATE_ROWS | kind::UPDATE_ROWS_V1) {
            at.bytes(columns.div_ceil(8))?;
        }
        let prefix = body.get(..body.len() - at.0.len())?;
        let length = event::uncompressed_length(&mut at)?;
        Some(Self { kind: plain, prefix, length, compressed: at.0 })
    }

    /// How long the event is without compression, in bytes, but for a checksum.
    pub(super) fn event_length(&self) -> u64 {
        (HEAD_BYTES + self.prefix.len()) as u64 + self.length
    }

    /// Uncompresses the rows, piece by piece.
    ///
    /// # Errors
    /// Corrupt, if they are not as long as it says.
    pub(super) fn rows(&self, mut put: impl FnMut(&[u8])) -> Result<()> {
        let mut inflated = flate2::read::ZlibDecoder::new(self.compressed).take(self.length + 1);
        let mut piece = vec![0; 64 << 10];
        let mut length = 0;
        loop {
            let read = inflated.read(&mut piece).corrupt(|| "uncompress rows".into())?;
            if read == 0 {
                break;
            }
            length += read as u64;
            put(piece.get(..read).unwrap_or_default());
        }
        if length == self.length { Ok(()) } else { Err(bad("of another length")) }
    }
}

fn bad(why: &str) -> Error {
    Error::corrupt(format!("compressed row event: {why}"))
}

/// Settings that stand in the flags of a session: the bit, the variable, and its value if the bit
/// is set. Servers that lack the variable do what its other value means.
pub(super) const OPTIONS: [(u32, &str, u64); 4] = [
    (1 << 15, "check_constraint_checks", 0),
    (1 << 24, "explicit_defaults_for_timestamp", 1),
    (1 << 28, "sql_if_exists", 1),
    (1 << 30, "system_versioning_insert_history", 1),
];

/// Which collation takes the place of each charset's own default one, as the variable
/// `character_set_collations` has it. `at` is at the number of pairs of numbers.
///
/// # Errors
/// Unavailable, if the target does not know one of them. `None`, if the pairs are cut short.
pub(super) fn charset_collations(
    at: &mut Reader<'_>,
    known: &Collations,
) -> Option<Result<String>> {
    let mut pairs = Vec::new();
    for _ in 0..at.u8()? {
        let (charset, collation) = (u32::from(at.u16()?), u32::from(at.u16()?));
        let (Some((_, charset)), Some((collation, _))) =
            (known.get(&charset), known.get(&collation))
        else {
            return Some(Err(Error::unavailable(format!(
                "the target does not know collation {charset} or {collation}, \
                 which a statement ran with"
            ))));
        };
        pairs.push(format!("{charset}={collation}"));
    }
    Some(Ok(pairs.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bodies of GTID events as a MariaDB 10.11 writes them.
    #[test]
    fn a_transaction_begins_as_its_gtid_says() {
        let one = [&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x29][..], &[0; 6]].concat();
        assert_eq!(opening(&one).unwrap(), None);
        let many = [&[3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x0c][..], &[0; 6]].concat();
        assert_eq!(opening(&many).unwrap().unwrap(), "START TRANSACTION");
        let xa = [0x15, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x4c, 3, 0, 0, 0, 1, 1, b'a', b'b'];
        assert_eq!(opening(&xa).unwrap().unwrap(), "XA START X'61',X'62',3");
        let group = [&xa[..12], &[0x4e], &[9; 8], &xa[13..]].concat();
        assert_eq!(opening(&group).unwrap().unwrap(), "XA START X'61',X'62',3");
        assert!(opening(&xa[..20]).is_err());
        assert!(opening(&one[..12]).is_err());
    }

    #[test]
    fn rows_are_uncompressed_to_the_byte() {
        let rows: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
        let mut zlib = vec![];
        flate2::read::ZlibEncoder::new(&rows[..], flate2::Compression::fast())
            .read_to_end(&mut zlib)
            .unwrap();
        let start = [&[7; 6][..], &[1, 0], &[9], &[0xff, 1], &[0xff, 1]].concat();
        let length = (rows.len() as u32).to_be_bytes();
        let body = [&start[..], &[0x83], &length[1..], &zlib].concat();
        let read = CompressedRows::parse(kind::MARIA_UPDATE_ROWS_COMPRESSED_V1, &body).unwrap();
        assert_eq!((read.kind, read.prefix), (kind::UPDATE_ROWS_V1, &start[..]));
        let mut found = vec![];
        read.rows(|piece| found.extend_from_slice(piece)).unwrap();
        assert!(found == rows);
        for (length, compressed) in [(299_999_u32, &zlib[..]), (300_001, &zlib), (300_000, &[1])] {
            let body = [&start[..], &[0x83], &length.to_be_bytes()[1..], compressed].concat();
            let read = CompressedRows::parse(kind::MARIA_UPDATE_ROWS_COMPRESSED_V1, &body).unwrap();
            assert!(read.rows(|_| {}).is_err(), "{length}");
        }
        for len in 0..start.len() + 4 {
            let kind = kind::MARIA_UPDATE_ROWS_COMPRESSED_V1;
            assert!(CompressedRows::parse(kind, &body[..len]).is_err(), "{len}");
        }
    }
}
