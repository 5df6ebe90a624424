//! Moves the expiries in a listpack that holds name, value and expiry of each field in turn.
//!
//! Form of a listpack (`listpack.c`): length and number of entries, entries, an end mark. An
//! entry is its kind and length, its bytes, and its whole length again, to be read backwards.

use crate::error::{Error, Result};

const END: u8 = 0xFF;
const HEAD_BYTES: usize = 6;
/// Kind of a number of eight bytes.
const NUMBER_64: u8 = 0xF4;

/// The listpack with `by_ms` added to every third entry that is not 0, "no expiry".
///
/// # Errors
/// Corrupt, if it is none, or a third entry is no number.
pub(super) fn shift(packed: &[u8], by_ms: i64) -> Result<Vec<u8>> {
    rewritten(packed, by_ms).ok_or_else(|| Error::corrupt("a hash with expiring fields is damaged"))
}

fn rewritten(packed: &[u8], by_ms: i64) -> Option<Vec<u8>> {
    let (head, mut rest) = packed.split_at_checked(HEAD_BYTES)?;
    if usize::try_from(u32::from_le_bytes(head.get(..4)?.try_into().ok()?)).ok()? != packed.len() {
        return None;
    }
    let mut out = Vec::with_capacity(packed.len());
    out.extend_from_slice(head);
    let mut index = 0_usize;
    while *rest.first()? != END {
        let entry = Entry::first_of(rest)?;
        let (bytes, behind) = rest.split_at_checked(entry.bytes + back_bytes(entry.bytes))?;
        match entry.number {
            Some(at) if index % 3 == 2 && at != 0 => {
                out.push(NUMBER_64);
                out.extend_from_slice(&super::moved(at, by_ms)?.to_le_bytes());
                // The length of what was just written.
                out.push(9);
            }
            None if index % 3 == 2 => return None,
            _ => out.extend_from_slice(bytes),
        }
        rest = behind;
        index += 1;
    }
    if rest.len() != 1 || !index.is_multiple_of(3) {
        return None;
    }
    out.push(END);
    let len = u32::try_from(out.len()).ok()?;
    out.get_mut(..4)?.copy_from_slice(&len.to_le_bytes());
    Some(out)
}

/// The first entry of some bytes.
struct Entry {
    /// Its length without the length at its end.
    bytes: usize,
    number: Option<i64>,
}

impl Entry {
    fn first_of(bytes: &[u8]) -> Option<Self> {
        let first = *bytes.first()?;
        let at = |index: usize| bytes.get(index).copied().map(usize::from);
        let string = |bytes| Some(Self { bytes, number: None });
        let number = |bytes, number| Some(Self { bytes, number: Some(number) });
        let signed = |width: usize| {
            let mut wide = [0; 8];
            // The highest bytes first in place, so that a shift back keeps the sign.
            wide.get_mut(8 - width..)?.copy_from_slice(bytes.get(1..=width)?);
            number(1 + width, i64::from_le_bytes(wide) >> (64 - 8 * width))
        };
        match first {
            0x00..=0x7F => number(1, i64::from(first)),
            0x80..=0xBF => string(1 + usize::from(first & 0x3F)),
            0xC0..=0xDF => {
                let value = i64::from(first & 0x1F) << 8 | i64::try_from(at(1)?).ok()?;
                number(2, if value >= 1 << 12 { value - (1 << 13) } else { value })
            }
            0xE0..=0xEF => string(2 + (usize::from(first & 0x0F) << 8 | at(1)?)),
            0xF0 => {
                let len = u32::from_le_bytes(bytes.get(1..5)?.try_into().ok()?);
                string(usize::try_from(len).ok()?.checked_add(5)?)
            }
            0xF1 => signed(2),
            0xF2 => signed(3),
            0xF3 => signed(4),
            NUMBER_64 => signed(8),
            _ => None,
        }
    }
}

/// How many bytes the length at the end of an entry takes (`lpEncodeBacklen`).
fn back_bytes(entry: usize) -> usize {
    match entry {
        0..=127 => 1,
        128..=16_382 => 2,
        16_383..=2_097_150 => 3,
        2_097_151..=268_435_454 => 4,
        _ => 5,
    }
}
