//! Takes note of what is captured and not known, durably: each type once in a timeline.

use super::Capture;
use crate::clock::Timestamp;
use crate::error::{Class, Context, Result};
use crate::manifest::{StrangeEvent, names};
use crate::position::Position;

impl Capture {
    /// Tells whoever will restore that the log has what this version does not know.
    pub(super) fn note_strange(&mut self, event: u8, offset: u64) -> Result<()> {
        let source = &self.label.source;
        let log = self.end.as_ref().map_or("", |end| end.log.as_str());
        let strange = StrangeEvent {
            event,
            timeline: self.timeline,
            segment: self.next_number,
            first: Position::new(log, offset),
            seen_at: Timestamp::now(),
        };
        let name = names::strange_event(source, self.timeline, event);
        if self.archive.store().exists(&name)? {
            return Ok(());
        }
        tracing::error!(
            source = %source,
            "{}: an event of type {event}, which this version does not know: it is archived as it \
             is, but a target may not be able to apply it",
            strange.first
        );
        let json = serde_json::to_vec_pretty(&strange).class(Class::Bug, || "write JSON".into())?;
        self.archive.store().put_new(&name, &json)
    }
}
