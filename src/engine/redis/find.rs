//! The walk through a piece of the archive to a place that somebody named.
//!
//! **Invariant:** a place found is one between two records; one within a record is named with both
//! its ends.

use super::resp::{Scanner, is_file};
use crate::engine::place::{Found, Place, parse_offset};
use crate::error::{Error, Result};
use crate::position::Position;
use crate::record::{Landing, Piece};

/// Reads `<replication id>:<offset>`.
///
/// # Errors
/// Usage, if it is none.
pub(crate) fn parse_place(text: &str) -> Result<Place> {
    match parse_offset(text) {
        Some((log, offset))
            if log.len() == 40 && log.bytes().all(|byte| byte.is_ascii_hexdigit()) =>
        {
            Ok(Place::Offset { log: log.to_ascii_lowercase(), offset })
        }
        Some((log, offset)) if is_file(log) => {
            Ok(Place::Offset { log: log.to_owned(), offset })
        }
        _ => Err(Error::usage(format!("not a place in a replication stream: {text:?}"))
            .hint("write the replication id (40 hexadecimal digits), a colon, and the offset; of an append-only log, the name of the file, a colon, and the offset")),
    }
}

/// See [`crate::engine::place::find`].
pub(crate) fn find(
    from: &Position,
    pieces: &mut dyn Iterator<Item = Result<Piece>>,
    offset: u64,
) -> Result<Option<Found>> {
    let mut scanner = Scanner::of(&from.log, from.offset, from.db);
    let mut before: Option<Landing> = None;
    let found =
        |begin, end, record, before| Found { begin, end, record, before, executed: String::new() };
    if offset == from.offset {
        return Ok(Some(found(offset, offset, None, before)));
    }
    for piece in pieces {
        let Piece::Bytes(bytes) = piece? else { continue };
        let mut at = 0;
        while let Some(command) = scanner.next(&bytes, &mut at)? {
            if !command.ends_record {
                continue;
            }
            let (begin, end) = (command.record_start, command.end);
            let named = || Landing { position: format!("{}:{begin}", from.log), at: None };
            let record = command.record_has_data.then(named);
            if end == offset {
                return Ok(Some(found(end, end, None, record.or(before))));
            }
            if end > offset {
                return Ok(Some(found(begin, end, record, before)));
            }
            before = record.or(before);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;
    use bytes::Bytes;

    const STREAM: &[u8] =
        b"*1\r\n$4\r\nPING\r\n*1\r\n$5\r\nMULTI\r\n*2\r\n$3\r\nDEL\r\n$1\r\nk\r\n\
        *1\r\n$4\r\nEXEC\r\n*2\r\n$3\r\nDEL\r\n$1\r\nk\r\n";

    fn at(offset: u64, piece: usize) -> Option<Found> {
        let from = Position::new("id", 1000);
        let log = Piece::Log { at: from.clone(), head: Bytes::new() };
        let bytes = STREAM.chunks(piece).map(|part| Piece::Bytes(Bytes::copy_from_slice(part)));
        find(&from, &mut std::iter::once(log).chain(bytes).map(Ok), offset).unwrap()
    }

    #[test]
    fn every_place_is_a_boundary_or_lies_in_a_record_that_is_named() {
        // PING, then MULTI to EXEC, then DEL.
        let ends = [1000, 1014, 1063, 1063 + 20];
        for piece in [1, 7, 1000] {
            for offset in 1000..=*ends.last().unwrap() {
                let found = at(offset, piece).unwrap();
                if ends.contains(&offset) {
                    assert_eq!((found.begin, found.end), (offset, offset));
                } else {
                    let begin = ends.iter().rev().find(|end| **end < offset).unwrap();
                    let end = ends.iter().find(|end| **end > offset).unwrap();
                    assert_eq!((found.begin, found.end), (*begin, *end), "{offset}");
                }
            }
            assert_eq!(at(1084, piece), None);
        }
        assert_eq!(at(1070, 5).unwrap().before.unwrap().position, "id:1014");
        assert_eq!(at(1005, 5).unwrap().record, None, "a PING is no change");
    }

    #[test]
    fn only_an_id_with_an_offset_is_a_place() {
        let id = "8371b4fb1155b71f4a04d3e1bc3e18c4a990aeeb";
        let place = parse_place(&format!("{id}:77")).unwrap();
        assert_eq!(place, Place::Offset { log: id.into(), offset: 77 });
        for text in ["", "77", "x:77", &format!("{id}:"), &format!("{id}:-1"), id] {
            assert_eq!(parse_place(text).unwrap_err().class(), Class::Usage, "{text}");
        }
    }
}
