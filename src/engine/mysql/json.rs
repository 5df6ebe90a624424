//! JSON as MySQL stores it.
//!
//! Encoding: the comment at the top of the server's `sql-common/json_binary.h`; of what changed in
//! a document `Json_diff_vector::write_binary` in its `sql-common/json_diff.cc`.
//!
//! **Invariant:** no bytes make it panic or go round in a circle: a document is no deeper than
//! [`DEPTH_MAX`], and of no more values than it has bytes.

use super::event::Reader;
use super::values::{base64, datetime, decimal};
use serde_json::{Map, Value, json};

/// The deepest document that a server takes (`JSON_DOCUMENT_MAX_DEPTH`), and one level more.
const DEPTH_MAX: usize = 101;

mod kind {
    pub(super) const SMALL_OBJECT: u8 = 0;
    pub(super) const LARGE_OBJECT: u8 = 1;
    pub(super) const SMALL_ARRAY: u8 = 2;
    pub(super) const LARGE_ARRAY: u8 = 3;
    pub(super) const LITERAL: u8 = 4;
    pub(super) const INT16: u8 = 5;
    pub(super) const UINT16: u8 = 6;
    pub(super) const INT32: u8 = 7;
    pub(super) const UINT32: u8 = 8;
    pub(super) const INT64: u8 = 9;
    pub(super) const UINT64: u8 = 10;
    pub(super) const DOUBLE: u8 = 11;
    pub(super) const STRING: u8 = 12;
    pub(super) const OPAQUE: u8 = 15;
}

/// A document. `None` if it is none.
pub(super) fn value(bytes: &[u8]) -> Option<Value> {
    // An empty document stands for NULL (`json_binary::parse_binary`).
    let Some((kind, rest)) = bytes.split_first() else { return Some(Value::Null) };
    let mut left = bytes.len();
    scalar_or_container(*kind, rest, DEPTH_MAX, &mut left)
}

/// What changed in a document: operation, path and the new value. `None` if it is none.
pub(super) fn differences(bytes: &[u8]) -> Option<Value> {
    let mut at = Reader(bytes);
    let mut found = vec![];
    while !at.0.is_empty() {
        let operation = match at.u8()? {
            0 => "replace",
            1 => "insert",
            2 => "remove",
            _ => return None,
        };
        let mut part = || {
            let len = usize::try_from(at.lenenc()?).ok()?;
            at.bytes(len)
        };
        let path = String::from_utf8_lossy(part()?).into_owned();
        let mut difference = json!({ "operation": operation, "path": path });
        if operation != "remove"
            && let Some(fields) = difference.as_object_mut()
        {
            fields.insert("value".into(), value(part()?)?);
        }
        found.push(difference);
    }
    Some(json!({ "differences": found }))
}

fn scalar_or_container(kind: u8, bytes: &[u8], depth: usize, left: &mut usize) -> Option<Value> {
    *left = left.checked_sub(1)?;
    let mut at = Reader(bytes);
    Some(match kind {
        kind::SMALL_OBJECT => container(bytes, true, 2, depth, left)?,
        kind::LARGE_OBJECT => container(bytes, true, 4, depth, left)?,
        kind::SMALL_ARRAY => container(bytes, false, 2, depth, left)?,
        kind::LARGE_ARRAY => container(bytes, false, 4, depth, left)?,
        kind::LITERAL => literal(at.u8()?)?,
        kind::INT16 => at.u16()?.cast_signed().into(),
        kind::UINT16 => at.u16()?.into(),
        kind::INT32 => at.u32()?.cast_signed().into(),
        kind::UINT32 => at.u32()?.into(),
        kind::INT64 => at.u64()?.cast_signed().into(),
        kind::UINT64 => at.u64()?.into(),
        kind::DOUBLE => f64::from_bits(at.u64()?).into(),
        kind::STRING => {
            let len = length(&mut at)?;
            *left = left.checked_sub(len)?;
            std::str::from_utf8(at.bytes(len)?).ok()?.into()
        }
        kind::OPAQUE => {
            let field = at.u8()?;
            let len = length(&mut at)?;
            *left = left.checked_sub(len)?;
            opaque(field, at.bytes(len)?)
        }
        _ => return None,
    })
}

fn literal(byte: u8) -> Option<Value> {
    match byte {
        0 => Some(Value::Null),
        1 => Some(true.into()),
        2 => Some(false.into()),
        _ => None,
    }
}

/// A length of seven bits a byte, the lowest first.
fn length(at: &mut Reader<'_>) -> Option<usize> {
    let mut len = 0_usize;
    for place in 0..5 {
        let byte = at.u8()?;
        len |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some(len);
        }
    }
    None
}

/// A value of a type of SQL.
fn opaque(field: u8, bytes: &[u8]) -> Value {
    use super::table::types as c;
    let packed = || bytes.try_into().ok().map(i64::from_le_bytes);
    let text = match field {
        c::NEWDECIMAL => match bytes {
            [precision, scale, digits @ ..] => decimal(digits, *precision, *scale),
            _ => None,
        },
        // As DATETIME2, with µs in the lowest 24 bits.
        c::DATE => packed().map(|at| {
            let text = datetime((at >> 24).cast_unsigned(), "");
            text.split(' ').next().unwrap_or_default().to_owned()
        }),
        c::DATETIME | c::TIMESTAMP => packed()
            .map(|at| datetime((at >> 24).cast_unsigned(), &format!(".{:06}", at & 0xff_ffff))),
        c::TIME => packed().map(|at| {
            let (sign, at) =
                if at < 0 { ("-", at.unsigned_abs()) } else { ("", at.unsigned_abs()) };
            let (whole, micros) = (at >> 24, at & 0xff_ffff);
            let (hours, minutes, seconds) = (whole >> 12 & 0x3ff, whole >> 6 & 63, whole & 63);
            format!("{sign}{hours:02}:{minutes:02}:{seconds:02}.{micros:06}")
        }),
        _ => None,
    };
    text.map_or_else(|| base64(bytes), Value::from)
}

/// An object or array whose offsets take `width` bytes and count from `bytes` on.
fn container(
    bytes: &[u8],
    is_object: bool,
    width: usize,
    depth: usize,
    left: &mut usize,
) -> Option<Value> {
    let depth = depth.checked_sub(1)?;
    let mut at = Reader(bytes);
    let number = |at: &mut Reader<'_>| {
        let number = at.bytes(width)?;
        Some(number.iter().rev().fold(0_usize, |all, byte| all << 8 | usize::from(*byte)))
    };
    let (count, size) = (number(&mut at)?, number(&mut at)?);
    // What an offset leads to lies within.
    let bytes = bytes.get(..size)?;
    let mut keys = vec![];
    if is_object {
        for _ in 0..count {
            let (place, len) = (number(&mut at)?, usize::from(at.u16()?));
            let key = bytes.get(place..)?.get(..len)?;
            *left = left.checked_sub(len)?;
            keys.push(std::str::from_utf8(key).ok()?.to_owned());
        }
    }
    let mut values = vec![];
    for _ in 0..count {
        let kind = at.u8()?;
        let entry = at.bytes(width)?;
        let is_inlined = matches!(kind, kind::LITERAL | kind::INT16 | kind::UINT16)
            || (width == 4 && matches!(kind, kind::INT32 | kind::UINT32));
        let from = if is_inlined { entry } else { bytes.get(number(&mut Reader(entry))?..)? };
        values.push(scalar_or_container(kind, from, depth, left)?);
    }
    Some(if is_object {
        Value::Object(keys.into_iter().zip(values).collect::<Map<_, _>>())
    } else {
        Value::Array(values)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_document_is_read_as_it_was_written() {
        // {"a": [1, true], "b": "x"}
        let bytes = [
            0, 2, 0, 0x25, 0, 0x12, 0, 1, 0, 0x13, 0, 1, 0, 2, 0x14, 0, 12, 0x1e, 0, b'a', b'b', 2,
            0, 10, 0, 5, 1, 0, 4, 1, 0, 1, b'x', 0, 0, 0, 0, 0,
        ];
        assert_eq!(value(&bytes), Some(json!({ "a": [1, true], "b": "x" })));
        assert_eq!(value(&[]), Some(Value::Null));
        assert_eq!(value(&[4, 1]), Some(json!(true)));
    }

    #[test]
    fn a_document_that_holds_itself_is_none() {
        // An array whose one element is the array.
        assert_eq!(value(&[2, 1, 0, 7, 0, 2, 0, 0]), None);
    }

    #[test]
    fn a_document_that_repeats_a_text_more_than_it_has_bytes_is_none() {
        // An array of ten elements that are all the same text of 90 bytes.
        let mut bytes = vec![2, 10, 0, 125, 0];
        bytes.extend([12, 34, 0].repeat(10));
        bytes.push(90);
        bytes.extend([b'x'; 90]);
        assert_eq!(value(&bytes), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop(value(&bytes));
            drop(differences(&bytes));
        }
    }
}
