//! Tells which records end in a chunk of a stream, and which of them are landmarks.

use super::resp::{Command, Scanner};
use crate::clock::Timestamp;
use crate::error::Result;
use crate::position::Position;
use crate::record::{Chunk, LANDMARKS_MAX, Landmark, add_landmark};

/// Reads a stream chunk by chunk; records may span any number of them.
#[derive(Debug)]
pub struct Records {
    log: String,
    scanner: Scanner,
    /// Where the last whole record ends, and the database selected there.
    whole: Option<(u64, u32)>,
    /// What the open record is, if it is a landmark, and the database it concerns.
    landmark: Option<(&'static str, u32)>,
}

impl Records {
    /// A reader of the stream whose first record begins at `at`.
    pub fn new(at: &Position) -> Self {
        let scanner = Scanner::of(&at.log, at.offset, at.db);
        Self { log: at.log.clone(), scanner, whole: None, landmark: None }
    }

    /// Counts what ends in the bytes of `chunk` from `from` on, and calls `seen` with every command
    /// there. `at` is when a landmark was committed, as far as known.
    ///
    /// # Errors
    /// Corrupt, if the bytes are no replication stream.
    pub(crate) fn note(
        &mut self,
        chunk: &mut Chunk,
        from: usize,
        at: Option<Timestamp>,
        mut seen: impl FnMut(&Command),
    ) -> Result<()> {
        let mut next = from;
        while let Some(command) = self.scanner.next(&chunk.bytes, &mut next)? {
            if let Some(name) = command.landmark {
                // Within MULTI the first one names the record.
                self.landmark.get_or_insert((name, command.db));
            }
            if command.ends_record {
                if let Some((name, db)) = self.landmark.take() {
                    let text = match name {
                        "FLUSHDB" => format!("FLUSHDB of database {db}"),
                        name => name.to_owned(),
                    };
                    let landmark = Landmark { offset: command.record_start, at, text, more: 0 };
                    add_landmark(&mut chunk.landmarks, landmark, LANDMARKS_MAX);
                }
                self.whole = Some((command.end, command.db));
                chunk.records += u32::from(command.record_has_data);
            }
            seen(&command);
        }
        Ok(())
    }

    /// Offset of the next byte to be noted.
    pub(crate) fn offset(&self) -> u64 {
        self.scanner.offset()
    }

    /// Whether all that was noted is whole records.
    pub(crate) fn at_record_start(&self) -> bool {
        self.scanner.at_record_start()
    }

    /// Where the last whole record ends that was noted since this was asked last; `None` if none
    /// did.
    pub(crate) fn take_whole(&mut self) -> Option<Position> {
        let (offset, db) = self.whole.take()?;
        Some(Position { db, ..Position::new(self.log.clone(), offset) })
    }

    /// The offset of [`Self::take_whole`], which stays.
    pub(crate) fn whole_until(&self) -> Option<u64> {
        self.whole.map(|(offset, _)| offset)
    }
}
