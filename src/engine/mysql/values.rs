//! Values of rows as JSON, so that nothing of them is lost.
//!
//! Encodings: `Field_*::pack` in the server's `sql/field.cc`, `my_*_packed_from_binary` in its
//! `mysys/my_time.cc`, `bin2decimal` in its `strings/decimal.cc`. Numbers stay numbers, DECIMAL and
//! times are text, bytes are `{"base64": …}`. What the log does not say (members of ENUM and SET,
//! and from servers that do not log it the sign of a number) is not guessed: see `docs/CLI.md`.

use super::event::Reader;
use super::json;
use super::rows::Image;
use super::table::{Column, DIGITS_BYTES, Size, Table, types};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

/// The collation of bytes.
const BINARY: u64 = 63;

/// The columns of a row image. What cannot be read is given as its bytes.
pub(super) fn image(table: &Table, present: &[usize], image: &Image) -> Map<String, Value> {
    let mut values = Map::new();
    if let Some(bytes) = image.too_long {
        values.insert("too_long_bytes".into(), bytes.into());
        return values;
    }
    let Ok(columns) = &table.columns else { return values };
    let (mut at, mut json_place) = (Reader(&image.bytes), vec![]);
    // Bits of partial JSON count the JSON columns of the table, whether they are present or not.
    let jsons = columns.iter().enumerate().filter(|(_, c)| c.kind == types::JSON);
    json_place.extend(jsons.map(|(index, _)| index));
    let nulls = at.bytes(present.len().div_ceil(8)).unwrap_or_default();
    for (place, index) in present.iter().enumerate() {
        let Some(column) = columns.get(*index) else { return values };
        let name = column.name.clone().unwrap_or_else(|| format!("@{}", index + 1));
        if nulls.get(place / 8).is_some_and(|byte| byte >> (place % 8) & 1 == 1) {
            values.insert(name, Value::Null);
            continue;
        }
        // The walk over the row has found all of them.
        let Some(bytes) = take(&mut at, column.size) else { return values };
        let bit = json_place.iter().position(|json| json == index);
        let is_partial = bit.is_some_and(|bit| {
            image.partial.get(bit / 8).is_some_and(|byte| byte >> (bit % 8) & 1 == 1)
        });
        let value = if is_partial { json::differences(bytes) } else { value(column, bytes) };
        values.insert(name, value.unwrap_or_else(|| base64(bytes)));
    }
    values
}

fn take<'a>(at: &mut Reader<'a>, size: Size) -> Option<&'a [u8]> {
    let len = match size {
        Size::Fixed(len) => len,
        Size::Prefixed(prefix) => little(at.bytes(prefix)?) as usize,
    };
    at.bytes(len)
}

pub(super) fn base64(bytes: &[u8]) -> Value {
    json!({ "base64": STANDARD.encode(bytes) })
}

fn little(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn big(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn value(column: &Column, bytes: &[u8]) -> Option<Value> {
    use types as c;
    Some(match column.kind {
        c::TINY | c::SHORT | c::INT24 | c::LONG | c::LONGLONG => {
            let number = little(bytes);
            if column.unsigned == Some(true) {
                return Some(number.into());
            }
            let unused = 64 - 8 * u32::try_from(bytes.len()).ok()?;
            (((number << unused).cast_signed()) >> unused).into()
        }
        // The shortest text that means this number.
        c::FLOAT => {
            f32::from_le_bytes(bytes.try_into().ok()?).to_string().parse::<f64>().ok()?.into()
        }
        c::DOUBLE => f64::from_le_bytes(bytes.try_into().ok()?).into(),
        c::NEWDECIMAL => {
            let [precision, scale] = column.meta.to_be_bytes();
            decimal(bytes, precision, scale)?.into()
        }
        c::YEAR => match bytes.first()? {
            0 => 0.into(),
            year => (1900 + u32::from(*year)).into(),
        },
        c::DATE | c::NEWDATE => {
            let packed = little(bytes);
            date(packed >> 9, packed >> 5 & 15, packed & 31).into()
        }
        c::TIME => {
            // A number of 24 bits with its sign.
            let digits = little(bytes);
            let (sign, digits) =
                if digits < 1 << 23 { ("", digits) } else { ("-", (1 << 24) - digits) };
            let time = clock(digits / 10_000, digits / 100 % 100, digits % 100);
            format!("{sign}{time}").into()
        }
        c::DATETIME => {
            let digits = little(bytes);
            let (day, time) = (digits / 1_000_000, digits % 1_000_000);
            let day = date(day / 10_000, day / 100 % 100, day % 100);
            format!("{day} {}", clock(time / 10_000, time / 100 % 100, time % 100)).into()
        }
        c::TIMESTAMP => utc(little(bytes), "")?.into(),
        c::TIMESTAMP2 => {
            let (seconds, fraction) = bytes.split_at_checked(4)?;
            utc(big(seconds), &fraction_text(big(fraction), fraction.len(), column.meta))?.into()
        }
        c::DATETIME2 => {
            let (whole, fraction) = bytes.split_at_checked(5)?;
            // The sign bit is always set.
            let packed = big(whole).checked_sub(0x80_0000_0000)?;
            datetime(packed, &fraction_text(big(fraction), fraction.len(), column.meta)).into()
        }
        c::TIME2 => time2(bytes, column.meta)?.into(),
        c::BIT => big(bytes).into(),
        c::ENUM | c::SET => little(bytes).into(),
        c::JSON => json::value(bytes)?,
        c::STRING | c::VARCHAR | c::VAR_STRING | c::TINY_BLOB..=c::BLOB => {
            text(column.collation, bytes)
        }
        _ => base64(bytes),
    })
}

/// Text as such, if it is sure to be what the server means by these bytes.
fn text(collation: Option<u64>, bytes: &[u8]) -> Value {
    let is_utf8 = |id: u64| matches!(id, 33 | 45 | 46 | 76 | 83 | 192..=247 | 255..=323 | 576..);
    let as_text = match collation {
        Some(BINARY) => None,
        Some(id) if !is_utf8(id) => {
            Some(bytes).filter(|bytes| bytes.iter().all(|b| (1..0x80).contains(b)))
        }
        _ => Some(bytes),
    };
    match as_text.and_then(|bytes| std::str::from_utf8(bytes).ok()) {
        Some(text) => text.into(),
        None => base64(bytes),
    }
}

fn date(year: u64, month: u64, day: u64) -> String {
    format!("{year:04}-{month:02}-{day:02}")
}

fn clock(hours: u64, minutes: u64, seconds: u64) -> String {
    format!("{hours:02}:{minutes:02}:{seconds:02}")
}

/// Year and month, day, hours, minutes and seconds in 17, 5, 5, 6 and 6 bits.
pub(super) fn datetime(packed: u64, fraction: &str) -> String {
    let (day, time) = (packed >> 17, packed & 0x1_ffff);
    let month = day >> 5;
    format!(
        "{} {}{fraction}",
        date(month / 13, month % 13, day & 31),
        clock(time >> 12, time >> 6 & 63, time & 63)
    )
}

fn utc(seconds: u64, fraction: &str) -> Option<String> {
    if seconds == 0 && fraction.bytes().all(|byte| matches!(byte, b'.' | b'0')) {
        return Some(format!("0000-00-00 00:00:00{fraction}"));
    }
    let at = crate::clock::Timestamp::from_micros(i64::try_from(seconds).ok()? * 1_000_000);
    let text = at.utc()?.format("%Y-%m-%d %H:%M:%S");
    Some(format!("{text}{fraction}Z"))
}

/// `.123`: as many digits as the column has. Two of them take a byte.
fn fraction_text(number: u64, bytes: usize, digits: u16) -> String {
    let digits = usize::from(digits);
    if digits == 0 {
        return String::new();
    }
    let all = format!("{number:0width$}", width = 2 * bytes);
    format!(".{}", all.get(..digits).unwrap_or(&all))
}

/// Hours, minutes and seconds in 10, 6 and 6 bits behind the sign; what is negative is the
/// complement of all of it, the fraction included.
fn time2(bytes: &[u8], digits: u16) -> Option<String> {
    let len = bytes.len();
    let fraction_bits = 8 * u32::try_from(len.checked_sub(3)?).ok()?;
    let sign = 0x80_0000_u64 << fraction_bits;
    let all = big(bytes);
    let (negative, packed) = match all.checked_sub(sign) {
        Some(packed) => ("", packed),
        None => ("-", sign - all),
    };
    let (whole, fraction) = (packed >> fraction_bits, packed & ((1 << fraction_bits) - 1));
    let text = clock(whole >> 12 & 0x3ff, whole >> 6 & 63, whole & 63);
    Some(format!("{negative}{text}{}", fraction_text(fraction, len - 3, digits)))
}

/// Nine digits in four bytes, from the point outwards; what is negative is inverted, and the first
/// bit as well.
pub(super) fn decimal(bytes: &[u8], precision: u8, scale: u8) -> Option<String> {
    let (whole, scale) = (usize::from(precision.checked_sub(scale)?), usize::from(scale));
    let is_negative = bytes.first()? & 0x80 == 0;
    let mut plain: Vec<u8> =
        bytes.iter().map(|byte| if is_negative { !byte } else { *byte }).collect();
    *plain.first_mut()? ^= 0x80;
    let mut at = Reader(&plain);
    let mut digits = String::new();
    let mut group = |digits: &mut String, count: usize| {
        let number = big(at.bytes(*DIGITS_BYTES.get(count)?)?);
        if count > 0 {
            digits.push_str(&format!("{number:0count$}"));
        }
        Some(())
    };
    group(&mut digits, whole % 9)?;
    for _ in 0..whole / 9 {
        group(&mut digits, 9)?;
    }
    let integer = digits.trim_start_matches('0').to_owned();
    let mut text = if is_negative { "-".to_owned() } else { String::new() };
    text.push_str(if integer.is_empty() { "0" } else { &integer });
    if scale > 0 {
        let mut fraction = String::new();
        for _ in 0..scale / 9 {
            group(&mut fraction, 9)?;
        }
        group(&mut fraction, scale % 9)?;
        text.push('.');
        text.push_str(&fraction);
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(&[0x81, 0x0D, 0xFB, 0x38, 0xD2, 0x04, 0xD2], 14, 4, "1234567890.1234")]
    #[case(&[0x7E, 0xF2, 0x04, 0xC7, 0x2D, 0xFB, 0x2D], 14, 4, "-1234567890.1234")]
    #[case(&[0x80, 0x00], 4, 2, "0.00")]
    fn decimals_have_all_of_their_digits(
        #[case] bytes: &[u8],
        #[case] precision: u8,
        #[case] scale: u8,
        #[case] expected: &str,
    ) {
        assert_eq!(decimal(bytes, precision, scale).as_deref(), Some(expected));
    }

    #[rstest]
    #[case(&[0x80, 0x00, 0x00], 0, "00:00:00")]
    #[case(&[0x7F, 0xFF, 0xFF], 0, "-00:00:01")]
    #[case(&[0x7F, 0xFF, 0xFF, 0xF6], 1, "-00:00:00.1")]
    #[case(&[0x80, 0xC8, 0xC8, 0x01, 0xE2, 0x40], 6, "12:35:08.123456")]
    fn times_are_what_they_were(#[case] bytes: &[u8], #[case] digits: u16, #[case] text: &str) {
        assert_eq!(time2(bytes, digits).as_deref(), Some(text));
    }
}
