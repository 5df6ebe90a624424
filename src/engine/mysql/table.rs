//! TABLE_MAP: what the rows behind it are made of.
//!
//! Layout: `Table_map_event` in the server's `libs/mysql/binlog/event/rows_event.h`, with the
//! optional metadata of MySQL 8 and MariaDB 10.5; lengths of values: `table_def::calc_field_size`
//! in its `sql/rpl_utility.cc`, and MariaDB's compressed columns in `sql/log_event.h`.
//!
//! **Invariant:** a column whose values have a length that is not known makes the table one that
//! cannot be decoded, never one that is decoded wrongly.

use super::event::Reader;
use crate::error::{Error, Result};

/// Types of columns (`enum_field_types` in the server's `field_types.h`; 140 and 141 are MariaDB's).
pub(super) mod types {
    pub(in crate::engine::mysql) const TINY: u8 = 1;
    pub(in crate::engine::mysql) const SHORT: u8 = 2;
    pub(in crate::engine::mysql) const LONG: u8 = 3;
    pub(in crate::engine::mysql) const FLOAT: u8 = 4;
    pub(in crate::engine::mysql) const DOUBLE: u8 = 5;
    pub(in crate::engine::mysql) const NULL: u8 = 6;
    pub(in crate::engine::mysql) const TIMESTAMP: u8 = 7;
    pub(in crate::engine::mysql) const LONGLONG: u8 = 8;
    pub(in crate::engine::mysql) const INT24: u8 = 9;
    pub(in crate::engine::mysql) const DATE: u8 = 10;
    pub(in crate::engine::mysql) const TIME: u8 = 11;
    pub(in crate::engine::mysql) const DATETIME: u8 = 12;
    pub(in crate::engine::mysql) const YEAR: u8 = 13;
    pub(in crate::engine::mysql) const NEWDATE: u8 = 14;
    pub(in crate::engine::mysql) const VARCHAR: u8 = 15;
    pub(in crate::engine::mysql) const BIT: u8 = 16;
    pub(in crate::engine::mysql) const TIMESTAMP2: u8 = 17;
    pub(in crate::engine::mysql) const DATETIME2: u8 = 18;
    pub(in crate::engine::mysql) const TIME2: u8 = 19;
    pub(in crate::engine::mysql) const BLOB_COMPRESSED: u8 = 140;
    pub(in crate::engine::mysql) const VARCHAR_COMPRESSED: u8 = 141;
    pub(in crate::engine::mysql) const VECTOR: u8 = 242;
    pub(in crate::engine::mysql) const JSON: u8 = 245;
    pub(in crate::engine::mysql) const NEWDECIMAL: u8 = 246;
    pub(in crate::engine::mysql) const ENUM: u8 = 247;
    pub(in crate::engine::mysql) const SET: u8 = 248;
    pub(in crate::engine::mysql) const TINY_BLOB: u8 = 249;
    pub(in crate::engine::mysql) const MEDIUM_BLOB: u8 = 250;
    pub(in crate::engine::mysql) const LONG_BLOB: u8 = 251;
    pub(in crate::engine::mysql) const BLOB: u8 = 252;
    pub(in crate::engine::mysql) const VAR_STRING: u8 = 253;
    pub(in crate::engine::mysql) const STRING: u8 = 254;
    pub(in crate::engine::mysql) const GEOMETRY: u8 = 255;
}

/// How long a column's value is in a row image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    /// So many bytes.
    Fixed(usize),
    /// As a number of so many bytes before it says.
    Prefixed(usize),
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    /// Its type: ENUM and SET as such, although the event calls them STRING.
    pub(super) kind: u8,
    /// What the event says of it beyond the type.
    pub(super) meta: u16,
    /// How long its values are.
    pub(super) size: Size,
    /// Whether numbers have no sign; `None` if the event does not say it.
    pub(super) unsigned: Option<bool>,
    /// Its collation, if the event names it: 63 is that of bytes.
    pub(super) collation: Option<u64>,
    /// Its name, if the event has it.
    pub(super) name: Option<String>,
}

/// The most columns that a table of any server has (`MAX_FIELDS`).
const COLUMNS_MAX: usize = 4096;

/// A table, as far as a row event tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    /// `schema.table`.
    pub(super) name: String,
    /// Its columns, or why they are not known.
    pub(super) columns: std::result::Result<Vec<Column>, String>,
}

impl Table {
    /// Reads the body of a TABLE_MAP event, and gives the number of the table as well.
    ///
    /// # Errors
    /// Corrupt, if it is none.
    pub(super) fn parse(body: &[u8]) -> Result<(u64, Self)> {
        parse(body).ok_or_else(|| Error::corrupt("TABLE_MAP event: not in its form"))
    }
}

/// The number of a table: six bytes.
pub(super) fn number(at: &mut Reader<'_>) -> Option<u64> {
    at.array::<6>().map(|&[a, b, c, d, e, f]| u64::from_le_bytes([a, b, c, d, e, f, 0, 0]))
}

fn parse(body: &[u8]) -> Option<(u64, Table)> {
    let mut at = Reader(body);
    let id = number(&mut at)?;
    at.u16()?;
    let mut text = || {
        let len = usize::from(at.u8()?);
        let text = String::from_utf8_lossy(at.bytes(len)?).into_owned();
        at.u8()?;
        Some(text)
    };
    let (schema, table) = (text()?, text()?);
    let count = usize::try_from(at.lenenc()?).ok()?;
    let types = at.bytes(count)?;
    let meta_len = usize::try_from(at.lenenc()?).ok()?;
    let mut metas = Reader(at.bytes(meta_len)?);
    let known = types.get(..COLUMNS_MAX.min(count)).unwrap_or_default();
    let mut columns: std::result::Result<Vec<Column>, String> = known
        .iter()
        .map(|kind| match read_column(*kind, &mut metas) {
            Some(column) => Ok(column),
            None => Err(format!("a column of type {kind}")),
        })
        .collect();
    if count > COLUMNS_MAX {
        columns = Err(format!("{count} columns"));
    }
    // Which columns may be NULL.
    at.bytes(count.div_ceil(8))?;
    let mut table = Table { name: format!("{schema}.{table}"), columns };
    if let Ok(columns) = &mut table.columns {
        // What it is good for is nice to have: without it, rows are counted all the same.
        read_optional(at, columns);
    }
    Some((id, table))
}

/// The type and length of a column's values.
fn read_column(kind: u8, metas: &mut Reader<'_>) -> Option<Column> {
    use types as c;
    let (mut kind, mut meta) = (kind, 0);
    let size = match kind {
        c::NULL => Size::Fixed(0),
        c::TINY | c::YEAR => Size::Fixed(1),
        c::SHORT => Size::Fixed(2),
        c::INT24 | c::DATE | c::TIME | c::NEWDATE => Size::Fixed(3),
        c::LONG | c::TIMESTAMP => Size::Fixed(4),
        c::LONGLONG | c::DATETIME => Size::Fixed(8),
        c::FLOAT | c::DOUBLE => {
            meta = u16::from(metas.u8()?);
            Size::Fixed(if kind == c::FLOAT { 4 } else { 8 })
        }
        c::TIMESTAMP2 | c::DATETIME2 | c::TIME2 => {
            // Of more digits no server knows.
            meta = u16::from(metas.u8().filter(|digits| *digits <= 6)?);
            let whole = match kind {
                c::TIMESTAMP2 => 4,
                c::DATETIME2 => 5,
                _ => 3,
            };
            Size::Fixed(whole + usize::from(meta).div_ceil(2))
        }
        c::NEWDECIMAL => {
            let (precision, scale) = (metas.u8()?, metas.u8()?);
            meta = u16::from_be_bytes([precision, scale]);
            Size::Fixed(decimal_len(precision, scale)?)
        }
        c::BIT => {
            let (bits, bytes) = (metas.u8()?, metas.u8()?);
            meta = u16::from_be_bytes([bytes, bits]);
            Size::Fixed(usize::from(bytes) + usize::from(bits > 0))
        }
        c::VARCHAR | c::VAR_STRING | c::VARCHAR_COMPRESSED => {
            meta = metas.u16()?;
            Size::Prefixed(if meta < 256 { 1 } else { 2 })
        }
        c::TINY_BLOB
        | c::MEDIUM_BLOB
        | c::LONG_BLOB
        | c::BLOB
        | c::BLOB_COMPRESSED
        | c::GEOMETRY
        | c::JSON
        | c::VECTOR => {
            meta = u16::from(metas.u8()?);
            Size::Prefixed(usize::from(meta).clamp(1, 4))
        }
        c::STRING | c::ENUM | c::SET => {
            let (first, second) = (metas.u8()?, metas.u8()?);
            // Lengths of more than a byte have their high bits where the real type stands.
            let (real, len) = if first & 0x30 == 0x30 {
                (first, u16::from(second))
            } else {
                (first | 0x30, u16::from(second) | u16::from((first & 0x30) ^ 0x30) << 4)
            };
            meta = len;
            match real {
                c::ENUM | c::SET => {
                    kind = real;
                    Size::Fixed(usize::from(len))
                }
                _ => Size::Prefixed(if len < 256 { 1 } else { 2 }),
            }
        }
        _ => return None,
    };
    if let (c::JSON | c::BLOB | c::VECTOR | c::GEOMETRY, 0 | 5..) = (kind, meta) {
        return None;
    }
    Some(Column { kind, meta, size, unsigned: None, collation: None, name: None })
}

/// How many bytes so many decimal digits take (`dig2bytes` in the server's `strings/decimal.cc`).
pub(super) const DIGITS_BYTES: [usize; 10] = [0, 1, 1, 2, 2, 3, 3, 4, 4, 4];

fn decimal_len(precision: u8, scale: u8) -> Option<usize> {
    let (whole, scale) = (usize::from(precision.checked_sub(scale)?), usize::from(scale));
    let len = |digits: usize| Some(digits / 9 * 4 + DIGITS_BYTES.get(digits % 9)?);
    Some(len(whole)? + len(scale)?)
}

fn is_numeric(column: &Column) -> bool {
    use types as c;
    matches!(
        column.kind,
        c::TINY
            | c::SHORT
            | c::INT24
            | c::LONG
            | c::LONGLONG
            | c::NEWDECIMAL
            | c::FLOAT
            | c::DOUBLE
    )
}

fn is_character(column: &Column) -> bool {
    use types as c;
    matches!(
        column.kind,
        c::STRING | c::VAR_STRING | c::VARCHAR | c::VARCHAR_COMPRESSED | c::TINY_BLOB
            ..=c::BLOB | c::BLOB_COMPRESSED
    )
}

/// Signs, collations and names (`Table_map_event::Optional_metadata_field_type`).
fn read_optional(mut at: Reader<'_>, columns: &mut [Column]) -> Option<()> {
    const SIGNS: u8 = 1;
    const DEFAULT_COLLATION: u8 = 2;
    const COLLATIONS: u8 = 3;
    const NAMES: u8 = 4;
    while !at.0.is_empty() {
        let kind = at.u8()?;
        let len = usize::try_from(at.lenenc()?).ok()?;
        let mut value = Reader(at.bytes(len)?);
        match kind {
            SIGNS => {
                let numbers = columns.iter_mut().filter(|column| is_numeric(column));
                for (place, column) in numbers.enumerate() {
                    let byte = value.0.get(place / 8)?;
                    column.unsigned = Some(byte & (0x80 >> (place % 8)) != 0);
                }
            }
            DEFAULT_COLLATION => {
                let usual = value.lenenc()?;
                let mut others = std::collections::BTreeMap::new();
                while !value.0.is_empty() {
                    others.insert(value.lenenc()?, value.lenenc()?);
                }
                let texts = columns.iter_mut().filter(|column| is_character(column));
                for (place, column) in (0_u64..).zip(texts) {
                    column.collation = Some(others.get(&place).copied().unwrap_or(usual));
                }
            }
            COLLATIONS => {
                for column in columns.iter_mut().filter(|column| is_character(column)) {
                    column.collation = Some(value.lenenc()?);
                }
            }
            NAMES => {
                for column in columns.iter_mut() {
                    let len = usize::try_from(value.lenenc()?).ok()?;
                    let name = String::from_utf8_lossy(value.bytes(len)?).into_owned();
                    column.name = Some(name);
                }
            }
            _ => {}
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_table_says_how_long_its_values_are() {
        // CREATE TABLE w.t (a INT UNSIGNED, b VARCHAR(300), c CHAR(255) utf8mb4, d ENUM, e DECIMAL(20,3))
        let mut body = vec![7, 0, 0, 0, 0, 0, 1, 0];
        body.extend_from_slice(b"\x01w\x00\x01t\x00");
        body.extend_from_slice(&[5, 3, 15, 254, 254, 246]);
        body.extend_from_slice(&[8, 0xB0, 4, 0xCE, 0xFC, 247, 1, 20, 3, 0x1F]);
        body.extend_from_slice(&[1, 1, 0b1000_0000, 4, 10]);
        body.extend_from_slice(b"\x01a\x01b\x01c\x01d\x01e");
        let (id, table) = Table::parse(&body).unwrap();
        assert_eq!((id, table.name.as_str()), (7, "w.t"));
        let columns = table.columns.unwrap();
        let sizes: Vec<Size> = columns.iter().map(|column| column.size).collect();
        let expected =
            [Size::Fixed(4), Size::Prefixed(2), Size::Prefixed(2), Size::Fixed(1), Size::Fixed(10)];
        assert_eq!(sizes, expected);
        assert_eq!((columns[0].unsigned, columns[4].unsigned), (Some(true), Some(false)));
        assert_eq!(columns[2].name.as_deref(), Some("c"));
        assert_eq!(columns[3].kind, types::ENUM);
        // A type that is not known is said, and the name of the table stays.
        body[15] = 99;
        assert_eq!(Table::parse(&body).unwrap().1.columns, Err("a column of type 99".into()));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(Table::parse(&bytes));
        }
    }
}
