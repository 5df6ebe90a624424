//! Binlog files from the outside: where events begin and end, and how a file begins and ends.
//!
//! Nothing of an event but its head is believed, so that every file that can be stored can be
//! exported, also one with events that this version of pitr does not know.

use super::event::{FormatDescription, HEAD_BYTES, Head, MAGIC, kind};
use super::stream::Splitter;
use crate::error::{Error, Result};
use crate::record::Parse;
use bytes::Bytes;

/// Follows the bytes of one binlog file.
#[derive(Debug, Default)]
pub struct Shape {
    splitter: Splitter,
    /// Bytes of the magic number that are still to come.
    magic_left: usize,
    events: u64,
    last: Option<u8>,
}

impl Shape {
    /// Begins at this offset of a file: at its beginning, or between two events.
    pub fn new(offset: u64) -> Self {
        let magic = MAGIC.len() as u64;
        let magic_left = usize::try_from(magic.saturating_sub(offset)).unwrap_or(0);
        Self { magic_left, ..Self::default() }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// Corrupt, if they are not those of a binlog.
    pub fn push(&mut self, mut bytes: Bytes) -> Result<()> {
        let magic = bytes.split_to(self.magic_left.min(bytes.len()));
        let expected = MAGIC.get(MAGIC.len() - self.magic_left..).unwrap_or_default();
        if !expected.starts_with(&magic) {
            return Err(Error::corrupt("not a binlog file"));
        }
        self.magic_left -= magic.len();
        self.splitter.push(bytes);
        while let Some(part) = self.splitter.next()? {
            if let Some(head) = part.head {
                self.events += 1;
                self.last = Some(head.kind);
            }
        }
        Ok(())
    }

    /// How many events have begun.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Whether the bytes end between two events.
    pub fn is_between_events(&self) -> bool {
        self.magic_left == 0 && self.splitter.is_between_events()
    }

    /// Whether the last event says that the file ends with it.
    pub fn is_closed(&self) -> bool {
        self.is_between_events() && matches!(self.last, Some(kind::ROTATE | kind::STOP))
    }
}

impl Parse for Shape {
    fn push(&mut self, bytes: Bytes) -> Result<()> {
        Self::push(self, bytes)
    }

    fn is_between_records(&self) -> bool {
        self.is_between_events()
    }
}

/// The magic number and the FORMAT_DESCRIPTION at the beginning of a file: what a reader needs
/// to make sense of events from its middle.
///
/// # Errors
/// Corrupt, if `beginning` does not begin with them.
pub fn file_head(beginning: &[u8]) -> Result<&[u8]> {
    let bad = || Error::corrupt("the beginning of the file is not that of a binlog");
    let event = beginning.strip_prefix(&MAGIC).filter(|rest| rest.len() >= HEAD_BYTES);
    let event = event.ok_or_else(bad)?;
    let head = Head::parse(event)?;
    let length = head.length as usize;
    let whole = event.get(..length).filter(|_| head.kind == kind::FORMAT_DESCRIPTION);
    FormatDescription::parse(whole.ok_or_else(bad)?)?;
    beginning.get(..MAGIC.len() + length).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::mysql::event::{Checksum, artificial_rotate, build};
    use crate::engine::mysql::stream::tests::{file, head};

    fn followed(offset: u64, bytes: &[u8], piece: usize) -> Result<Shape> {
        let mut shape = Shape::new(offset);
        for piece in bytes.chunks(piece) {
            shape.push(Bytes::copy_from_slice(piece))?;
        }
        Ok(shape)
    }

    #[test]
    fn a_file_says_whether_it_is_at_its_end() {
        let c = Checksum::Crc32;
        let begun = [&MAGIC[..], &file(&[vec![9]], c)].concat();
        let stop = build(head(kind::STOP), &[], c);
        let rotate = artificial_rotate(1, "binlog.000002", 4, c);
        for piece in [1, 7, 1000] {
            let shape = followed(0, &begun, piece).unwrap();
            assert_eq!((shape.events(), shape.is_closed()), (4, false));
            for end in [&stop, &rotate] {
                let whole = [&begun[..], end].concat();
                assert!(followed(0, &whole, piece).unwrap().is_closed());
                let cut = followed(0, &whole[..whole.len() - 1], piece).unwrap();
                assert!(!cut.is_closed() && !cut.is_between_events());
            }
        }
        assert!(followed(4, &begun[4..], 9).unwrap().is_between_events());
        assert!(followed(0, b"\xfebim", 9).is_err());
        assert!(!followed(0, b"\xfebi", 9).unwrap().is_between_events());
    }

    #[test]
    fn the_head_of_a_file_is_found_or_refused() {
        let log = [&MAGIC[..], &file(&[vec![9]], Checksum::Crc32)].concat();
        let found = file_head(&log).unwrap();
        assert_eq!(found.len(), 4 + 19 + 57 + 42 + 1 + 4);
        for end in 0..found.len() {
            assert!(file_head(&log[..end]).is_err(), "{end}");
        }
        assert!(file_head(&log[4..]).is_err());
    }
}
