//! The parsers as targets for a fuzzer: each takes arbitrary bytes, must not panic, and must hold
//! what it promises. `fuzz/` holds the targets for cargo-fuzz.

use super::aof::manifest;
use super::changes::Changes;
use super::walk::walk;
use crate::engine::Keys;
use crate::engine::decode::Interest;
use crate::position::Position;

/// The manifest of an append-only file: what is read is one that the server could have written.
pub fn manifest(data: &[u8]) {
    let Ok(read) = manifest::parse(data) else { return };
    assert!(read.increments.is_sorted_by_key(|entry| entry.seq));
    for entry in read.base.iter().chain(&read.increments) {
        assert!(!entry.name.contains('/') && entry.name != ".." && !entry.name.is_empty());
    }
}

/// The commands of a replication stream or of a file, whatever pieces they come in: the first byte
/// says which.
pub fn commands(data: &[u8]) {
    let Some((first, log)) = data.split_first() else { return };
    let name =
        if first % 2 == 0 { "0123456789abcdef0123456789abcdef01234567" } else { "1.incr.aof" };
    let (at, piece) = (Position::new(name, 0), usize::from(first / 2) + 1);
    let keys = || Interest { keys: Some(Keys::default()), ..Interest::default() };
    crate::engine::fuzz::decode(|| Box::new(Changes::new(keys())), &at, log, piece);
}

/// An RDB file with eight bytes behind its magic number that say how far its expiries are moved.
/// What was moved is walked over again, to the same end, and moves back.
pub fn rdb(data: &[u8]) {
    let Some((magic, rest)) = data.split_at_checked(9) else { return };
    let Some((by, rest)) = rest.split_first_chunk() else { return };
    let by = i64::from_le_bytes(*by);
    let mut moved = vec![];
    let Ok(survey) = walk(&[magic, rest].concat()[..], &mut moved, by) else { return };
    let mut again = vec![];
    assert_eq!(walk(&moved[..], &mut again, 0).ok(), Some(survey), "it is walked over again");
    assert_eq!(again, moved, "and nothing moves");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn commands_of_a_real_server_are_found_and_bear_it_to_be_spoiled() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/corpus/commands");
        let file = std::fs::read(dir.join("file")).unwrap();
        commands(&file);
        crate::engine::mutate::each(&file, 5000, commands);
        // As a stream, which has no annotations.
        let is_note = |line: &&[u8]| line.starts_with(b"#TS:");
        let lines: Vec<&[u8]> = file[1..]
            .split_inclusive(|byte| *byte == b'\n')
            .filter(|line| !is_note(line))
            .collect();
        let stream = [&[20][..], &lines.concat()].concat();
        commands(&stream);
        crate::engine::mutate::each(&stream, 5000, commands);
    }

    #[test]
    fn the_target_holds_for_what_real_servers_save_and_bears_it_spoiled() {
        for name in ["small", "large"] {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/corpus/rdb");
            let bytes = std::fs::read(dir.join(name)).unwrap();
            let mut moved = vec![];
            let (magic, rest) = bytes.split_at(9);
            let survey = walk(&[magic, &rest[8..]].concat()[..], &mut moved, 3_600_000).unwrap();
            assert!(moved.len() > 100 && moved != bytes, "{name}: {survey:?}");
            rdb(&bytes);
            crate::engine::mutate::each(&bytes, 5000, rdb);
        }
    }
}
