//! Keeps the marks of a timeline in the order of time.
//!
//! An engine does so for one connection. The clock of the source may be set while there is none,
//! and what is behind the break in the connection is still later in the log.

use super::Capture;
use crate::engine;
use crate::record::{Mark, TimeSource};

impl Capture {
    /// Holds marks to the latest time that the timeline has. Where records carry their commit
    /// times themselves, those say when something was committed, and marks are left alone.
    pub(super) fn in_order(&self, marks: &mut [Mark]) {
        let time = engine::times(self.label.engine, &self.server.version);
        let Some(floor) = self.known_until.filter(|_| time != TimeSource::Commit) else { return };
        for mark in marks {
            *mark = mark.held_to(floor);
        }
    }
}
