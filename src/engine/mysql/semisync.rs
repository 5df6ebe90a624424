//! The replica's side of semi-synchronous replication: what the source waits for, and the answer.
//!
//! A source that knows a replica as semi-synchronous puts two bytes before each event, `ef` and a
//! flag: 1 if commits wait until the replica has the event. The answer is a packet of its own,
//! `ef`, the position behind the event, the file's name. The source takes that as "everything up to
//! there", compares positions by file name and offset, and believes any: one that it never sent
//! would let all later commits through unprotected, without a word (seen on MySQL 9.7 and MariaDB
//! 10.11). Hence the types here: a [`Flag`] comes only from a received packet, an [`Ack`] only from
//! a flag whose event came whole, and both die with the connection's [`Acks`].
//!
//! **Invariant:** only a place that this connection received with a flag is acknowledged, and only
//! when everything before it is synced.

use crate::error::{Error, Result};
use crate::position::Position;
use bytes::{Buf, Bytes};
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use tokio::sync::watch;

/// The first of the two bytes before an event, and of an answer.
const MAGIC: u8 = 0xef;

/// The source waits for an answer.
const WANTED: u8 = 0x01;

/// Flagged events that are remembered, at most. Of more, the newest takes the place of the one
/// before it, which only answers both at once.
const OWED_MAX: usize = 4096;

/// "Commits wait for the event in this packet."
#[derive(Debug)]
pub(crate) struct Flag(());

/// An answer, ready to be sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ack(Vec<u8>);

impl Ack {
    /// The packet's payload.
    pub(crate) fn payload(&self) -> &[u8] {
        &self.0
    }
}

/// A flagged event that came whole: the number of its file on this connection, and its end.
#[derive(Debug, Clone, Copy)]
struct Owed {
    file: u64,
    end: u64,
}

/// What one connection owes its source.
#[derive(Debug)]
pub(crate) struct Acks {
    /// Up to where everything that this connection brought is synced.
    durable: watch::Receiver<Option<Position>>,
    /// Whether packets have the two bytes; known from the first one on.
    header: Arc<OnceLock<bool>>,
    /// Names of the files that came, the oldest first, and the number of the first of them.
    files: VecDeque<String>,
    first_file: u64,
    owed: VecDeque<Owed>,
}

impl Acks {
    /// Of a connection that was registered as semi-synchronous and brought nothing yet. `durable`
    /// must be of this connection, too: nothing, until something that it brought is synced.
    pub(crate) fn new(durable: watch::Receiver<Option<Position>>) -> Self {
        let (files, owed) = (VecDeque::new(), VecDeque::new());
        Self { durable, header: Arc::default(), files, first_file: 0, owed }
    }

    /// Takes the two bytes off a packet, if they are there.
    ///
    /// # Errors
    /// Corrupt, if a packet has them where others had not, or the other way round.
    pub(crate) fn strip(&mut self, packet: &mut Bytes) -> Result<Option<Flag>> {
        // A made-up ROTATE comes first, and its time is zero: so this is no byte of an event.
        let header = *self.header.get_or_init(|| packet.first() == Some(&MAGIC));
        if !header {
            return Ok(None);
        }
        let wanted = match packet.get(..2) {
            Some([MAGIC, flag]) => flag & WANTED != 0,
            _ => return Err(Error::corrupt("an event without its semi-synchronous header")),
        };
        packet.advance(2);
        Ok(wanted.then_some(Flag(())))
    }

    /// Whether the source knows this connection as semi-synchronous; set by the first packet.
    pub(crate) fn active(&self) -> Arc<OnceLock<bool>> {
        Arc::clone(&self.header)
    }

    /// The next events are of this file.
    pub(crate) fn begin_file(&mut self, name: &str) {
        if self.files.back().is_none_or(|last| last != name) {
            self.files.push_back(name.to_owned());
        }
    }

    /// The event that came with a flag is whole, and ends at `end` of the file that was begun last.
    pub(crate) fn owe(&mut self, _: Flag, end: u64) {
        let file = self.first_file + self.files.len().saturating_sub(1) as u64;
        if self.owed.len() == OWED_MAX {
            self.owed.pop_back();
        }
        self.owed.push_back(Owed { file, end });
    }

    /// Whether the source waits.
    pub(crate) fn is_owed(&self) -> bool {
        !self.owed.is_empty()
    }

    /// Completes when something was synced; never while nothing is owed.
    pub(crate) async fn synced(&mut self) {
        if self.owed.is_empty() || self.durable.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The answer for everything owed that is synced, if there is any: the highest place only.
    pub(crate) fn due(&mut self) -> Option<Ack> {
        if self.owed.is_empty() {
            return None;
        }
        let (file, offset) = {
            let durable = self.durable.borrow_and_update();
            let place = durable.as_ref()?;
            let index = self.files.iter().rposition(|name| *name == place.log)?;
            (self.first_file + index as u64, place.offset)
        };
        let is_synced = |owed: &Owed| owed.file < file || (owed.file == file && owed.end <= offset);
        let mut highest = None;
        while let Some(owed) = self.owed.front().copied().filter(is_synced) {
            highest = Some(owed);
            self.owed.pop_front();
        }
        let highest = highest?;
        let index = usize::try_from(highest.file - self.first_file).ok()?;
        let name = self.files.get(index)?;
        let mut payload = Vec::with_capacity(1 + 8 + name.len());
        payload.push(MAGIC);
        payload.extend_from_slice(&highest.end.to_le_bytes());
        payload.extend_from_slice(name.as_bytes());
        // What lies before is answered, and never asked for again.
        self.files.drain(..index);
        self.first_file = highest.file;
        Some(Ack(payload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acks() -> (watch::Sender<Option<Position>>, Acks) {
        let (durable, of_connection) = watch::channel(None);
        let mut acks = Acks::new(of_connection);
        assert!(acks.strip(&mut Bytes::from_static(b"\xef\x00event")).unwrap().is_none());
        acks.begin_file("b.000007");
        (durable, acks)
    }

    fn flagged(acks: &mut Acks, end: u64) {
        let flag = acks.strip(&mut Bytes::from_static(b"\xef\x01event")).unwrap();
        acks.owe(flag.unwrap(), end);
    }

    fn ack(end: u64, name: &str) -> Ack {
        Ack([&[MAGIC][..], &end.to_le_bytes(), name.as_bytes()].concat())
    }

    #[test]
    fn the_highest_synced_place_is_answered_and_no_other() {
        let (durable, mut acks) = acks();
        for end in [100, 200, 300] {
            flagged(&mut acks, end);
        }
        assert_eq!(acks.due(), None, "nothing is synced");
        durable.send_replace(Some(Position::new("b.000007", 250)));
        assert_eq!(acks.due(), Some(ack(200, "b.000007")));
        assert_eq!(acks.due(), None, "no answer is given twice");
        durable.send_replace(Some(Position::new("b.000007", 300)));
        assert_eq!(acks.due(), Some(ack(300, "b.000007")));
        assert!(!acks.is_owed());
        durable.send_replace(Some(Position::new("b.000007", 999)));
        assert_eq!(acks.due(), None, "what is synced and was not asked for");
    }

    #[test]
    fn a_later_file_answers_for_the_earlier_ones_by_their_own_names() {
        let (durable, mut acks) = acks();
        flagged(&mut acks, 900);
        acks.begin_file("b.000008");
        flagged(&mut acks, 50);
        durable.send_replace(Some(Position::new("b.000007", 900)));
        assert_eq!(acks.due(), Some(ack(900, "b.000007")));
        flagged(&mut acks, 70);
        acks.begin_file("b.000009");
        flagged(&mut acks, 40);
        durable.send_replace(Some(Position::new("b.000009", 0)));
        assert_eq!(acks.due(), Some(ack(70, "b.000008")));
        durable.send_replace(Some(Position::new("other.000009", 4000)));
        assert_eq!(acks.due(), None, "a file that this connection never brought");
    }

    #[test]
    fn many_unanswered_events_take_bounded_room_and_the_newest_is_kept() {
        let (durable, mut acks) = acks();
        for end in 1..=3 * OWED_MAX as u64 {
            flagged(&mut acks, end);
        }
        assert_eq!(acks.owed.len(), OWED_MAX);
        durable.send_replace(Some(Position::new("b.000007", u64::MAX)));
        assert_eq!(acks.due(), Some(ack(3 * OWED_MAX as u64, "b.000007")));
    }

    #[test]
    fn a_source_that_does_not_wait_sends_events_as_they_are() {
        let mut acks = Acks::new(watch::channel(None).1);
        let mut packet = Bytes::from_static(b"\x00\x00\x00\x00\x04");
        assert!(acks.strip(&mut packet).unwrap().is_none());
        assert_eq!((packet.len(), acks.active().get()), (5, Some(&false)));
        let mut late = Bytes::from_static(b"\xef\x01\x00\x00\x04");
        assert!(acks.strip(&mut late).unwrap().is_none());
        assert_eq!(late.len(), 5, "the byte is one of the event's time");
        let (_, mut acks) = self::acks();
        assert!(acks.strip(&mut Bytes::from_static(b"\x00\x00\x00\x00\x04")).is_err());
    }
}
