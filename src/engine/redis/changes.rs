//! What a replication stream says: commands by name, the keys that they name, blocks of them.
//!
//! Which arguments are keys is told for the commands that stand in streams (`commands/*.json` in
//! the sources of Redis 7.0 to 8.4); of any other the first argument is taken for one. A stream
//! has no times, so records have none: whoever has the marks knows them.
//!
//! **Invariant:** of an argument only its beginning is held, whatever its length.

use super::resp::{Kind, Scanner};
use crate::engine::decode::{Decode, Interest, Record, Take, add};
use crate::error::{Error, Result};
use crate::position::Position;
use bytes::Bytes;

/// How much of a name of a command, or of a key, is held.
const HELD_BYTES: usize = 512;

/// Most keys that are told by name, of one record.
const KEYS_MAX: usize = 20;

/// Decodes a replication stream.
#[derive(Debug)]
pub struct Changes {
    interest: Interest,
    scanner: Option<(String, Scanner)>,
    record: Record,
    command: Words,
}

/// Which arguments of a command are keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeysAt {
    None,
    /// This one.
    One(u64),
    /// The first two.
    Two,
    /// All.
    All,
    /// Each second one, from the first on.
    Odd,
}

impl KeysAt {
    fn of(name: &str) -> Self {
        match name {
            "FLUSHALL" | "FLUSHDB" | "SWAPDB" | "FUNCTION" | "SCRIPT" | "EVAL" | "EVALSHA"
            | "FCALL" | "SELECT" | "MULTI" | "EXEC" | "PING" | "PUBLISH" | "SPUBLISH"
            | "REPLCONF" => Self::None,
            "DEL" | "UNLINK" | "PFCOUNT" => Self::All,
            "MSET" | "MSETNX" => Self::Odd,
            "RENAME" | "RENAMENX" | "COPY" | "SMOVE" | "LMOVE" | "BLMOVE" | "RPOPLPUSH"
            | "BRPOPLPUSH" => Self::Two,
            "XGROUP" | "BITOP" => Self::One(2),
            _ => Self::One(1),
        }
    }

    fn has(self, index: u64) -> bool {
        match self {
            Self::None => false,
            Self::One(place) => index == place,
            Self::Two => index == 1 || index == 2,
            Self::All => index >= 1,
            Self::Odd => index % 2 == 1,
        }
    }
}

/// The command that is being scanned.
#[derive(Debug, Default)]
struct Words {
    /// The argument that comes, and its beginning.
    index: u64,
    held: Vec<u8>,
    name: String,
    keys: Option<KeysAt>,
}

impl Words {
    /// Takes a piece of an argument; gives the key that ended before it.
    fn take(&mut self, index: u64, piece: &[u8]) -> Option<Vec<u8>> {
        let ended = if index == self.index { None } else { self.end(index) };
        let room = HELD_BYTES.saturating_sub(self.held.len());
        self.held.extend_from_slice(piece.get(..room).unwrap_or(piece));
        ended
    }

    /// An argument has ended, and another one begins.
    fn end(&mut self, next: u64) -> Option<Vec<u8>> {
        let (index, held) = (self.index, std::mem::take(&mut self.held));
        self.index = next;
        if index == 0 {
            self.name = String::from_utf8_lossy(&held).to_ascii_uppercase();
            self.keys = Some(KeysAt::of(&self.name));
            return None;
        }
        self.keys.is_some_and(|keys| keys.has(index)).then_some(held)
    }
}

impl Changes {
    /// A decoder that stands nowhere yet.
    pub fn new(interest: Interest) -> Self {
        Self { interest, scanner: None, record: Record::default(), command: Words::default() }
    }

    fn key(record: &mut Record, interest: &Interest, db: u32, key: &[u8]) {
        let prefix = key.iter().position(|byte| *byte == b':').and_then(|at| key.get(..=at));
        *add(&mut record.prefixes, &String::from_utf8_lossy(prefix.unwrap_or_default())) += 1;
        let is_wanted = |keys: &crate::engine::Keys| keys.has_database(db) && keys.has_key(key);
        if interest.keys.as_ref().is_some_and(is_wanted) {
            record.wanted_keys += 1;
            if record.keys.len() < KEYS_MAX {
                record.keys.push(String::from_utf8_lossy(key).into_owned());
            }
        }
    }
}

impl Decode for Changes {
    fn go_on(&mut self, at: &Position, _head: &Bytes) -> Result<()> {
        if let Some((log, scanner)) = &self.scanner {
            if !scanner.at_record_start() {
                return Err(Error::corrupt(format!("the log ends within a record before {at}")));
            }
            if *log == at.log && scanner.offset() == at.offset {
                return Ok(());
            }
        }
        self.scanner = Some((at.log.clone(), Scanner::of(&at.log, at.offset, at.db)));
        Ok(())
    }

    fn push(&mut self, bytes: Bytes, to: &mut dyn Take) -> Result<()> {
        let Some((_, scanner)) = &mut self.scanner else {
            return Err(Error::bug("bytes of a stream before its name"));
        };
        let (record, command, interest) = (&mut self.record, &mut self.command, &self.interest);
        let mut at = 0;
        loop {
            let db = scanner.selected();
            let found = scanner.next_seen(&bytes, &mut at, |index, piece| {
                if let Some(key) = command.take(index, piece) {
                    Self::key(record, interest, db, &key);
                }
            })?;
            let Some(found) = found else { return Ok(()) };
            // An argument without a byte was not seen.
            let last = command.end(scanner.arguments());
            let words = std::mem::take(command);
            if found.kind == Kind::Data {
                if let Some(key) = last {
                    Self::key(record, interest, db, &key);
                }
                *add(&mut record.commands, &words.name) += 1;
                *record.databases.entry(found.db).or_default() += 1;
            }
            record.multi |= found.kind == Kind::Multi;
            if found.ends_record {
                let done = std::mem::take(record);
                if found.record_has_data {
                    let (start, end) = (found.record_start, found.end);
                    to.record(Record { start, end, ..done })?;
                }
            }
        }
    }

    fn is_between_records(&self) -> bool {
        self.scanner.as_ref().is_none_or(|(_, scanner)| scanner.at_record_start())
    }
}
