//! The logical clock of a transaction: which of those before it an applier has to wait for
//! (`last_committed` and `sequence_number`), written anew.
//!
//! **Invariant:** nothing but the clock, and the length that has to fit it, is changed.

use super::{GtidEvent, Head, LOGICAL_CLOCK_AT, Tagged, kind, tagged};
use crate::error::{Error, Result};

/// The body of a GTID event of MySQL, with another clock. One of a server before 5.7 has none, and
/// stays as it is: appliers run such a transaction alone.
///
/// # Errors
/// Corrupt, if it is no GTID event of MySQL.
pub(crate) fn with_clock(
    head: &Head,
    body: &[u8],
    last_committed: i64,
    sequence_number: i64,
) -> Result<Vec<u8>> {
    let event = GtidEvent::parse(head, body)?;
    if head.kind == kind::GTID_TAGGED {
        let written = tagged_with(body, last_committed, sequence_number);
        return written.ok_or_else(|| Error::corrupt("GTID_TAGGED event: it cannot be written"));
    }
    let mut body = body.to_vec();
    if event.sequence_number == 0 && event.last_committed == 0 {
        return Ok(body);
    }
    let clock = [last_committed.to_le_bytes(), sequence_number.to_le_bytes()].concat();
    let place = LOGICAL_CLOCK_AT..LOGICAL_CLOCK_AT + clock.len();
    match body.get_mut(place) {
        Some(place) => place.copy_from_slice(&clock),
        None => return Err(Error::corrupt("GTID event: it has no room for a clock")),
    }
    Ok(body)
}

/// The same of a GTID_TAGGED event, whose fields are as long as their numbers.
fn tagged_with(body: &[u8], last_committed: i64, sequence_number: i64) -> Option<Vec<u8>> {
    let Tagged { fields, clock, .. } = tagged(body)?;
    let mut rest = body.get(fields..clock.start)?.to_vec();
    for (id, number) in [(4, last_committed), (5, sequence_number)] {
        put_varlen(&mut rest, id);
        put_varlen(&mut rest, (number << 1 ^ number >> 63).cast_unsigned());
    }
    rest.extend_from_slice(body.get(clock.end..)?);
    let version = *body.first()?;
    // The size counts itself.
    (1..=9).find_map(|bytes| {
        let mut written = vec![version];
        put_varlen(&mut written, (1 + bytes + rest.len()) as u64);
        let fits = written.len() == 1 + bytes;
        fits.then(|| {
            written.extend_from_slice(&rest);
            written
        })
    })
}

/// Appends a number of `mysql::serialization`.
fn put_varlen(to: &mut Vec<u8>, n: u64) {
    let bits = 64 - n.leading_zeros();
    let bytes = bits.div_ceil(7).max(1) as usize;
    if bytes > 8 {
        to.push(0xff);
        to.extend_from_slice(&n.to_le_bytes());
        return;
    }
    let number = n << bytes | ((1 << (bytes - 1)) - 1);
    to.extend(number.to_le_bytes().iter().take(bytes));
}

#[cfg(test)]
mod tests {
    use super::super::Reader;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_are_read_as_they_were_written(n: u64, small in 0..70_000_u64) {
            for n in [n, small] {
                let mut bytes = vec![];
                put_varlen(&mut bytes, n);
                let mut at = Reader(&bytes);
                prop_assert_eq!(at.varlen(), Some(n));
                prop_assert!(at.0.is_empty());
            }
        }
    }
}
