//! Goes back to an earlier place of the archive, and on from there in a new timeline.
//!
//! A server that was promoted without the last writes of the former one has a history that leaves
//! the archive's before its end. The new timeline begins with a copy of what the segment that is
//! left has before that place, and continues the segment before; so every segment still begins and
//! ends where its header says, and what the source lost stays where it is.
//!
//! **Invariant:** nothing that lies behind the place is in the new timeline or is said to be known
//! in it.

use super::Capture;
use crate::archive::baseline_name;
use crate::durable;
use crate::engine::redis::Records;
use crate::error::{Context, Result};
use crate::manifest::{BaselineMeta, Continues, Fork, SegmentMeta};
use crate::position::Position;
use crate::record::{Chunk, TimeSource};

impl Capture {
    /// Begins a timeline that leaves the current one at `at`.
    pub(super) fn fork(&mut self, at: &Position) -> Result<()> {
        self.seal()?;
        let (source, from) = (self.label.source.clone(), self.timeline);
        let Some(left) = self.archive.segment_holding(&source, from, at)? else {
            return self.begin_timeline(format!(
                "the source went back to {at}, which lies before what timeline {from} has"
            ));
        };
        tracing::error!(
            %source,
            "the source lost what it had behind {at}: that stays in timeline {from}, and timeline \
             {} goes on from there",
            from + 1
        );
        let baseline = self.baseline_within(&left, at)?;
        let number = left.header.number;
        self.continues = match number.checked_sub(1).filter(|before| *before > 0) {
            Some(before) => Some(Continues { timeline: from, number: before }),
            None => left.header.continues,
        };
        self.known_until = None;
        if let Some(shared) = self.continues {
            let catalog = self.archive.catalog();
            let last = catalog.segments_from(&source, shared.timeline, shared.number, 1)?.pop();
            self.known_until = last.and_then(|last| last.totals.known_until);
        }
        if baseline.is_none() && !self.has_baseline_before(from)? {
            // One is taken at once of a history that has none.
            self.unbroken_from = from + 1;
        }
        if self.continues.is_none() {
            self.unbroken_from = from + 1;
        }
        self.fork = Some(Fork { timeline: from, number, at: at.clone() });
        (self.broken, self.head) = (None, None);
        self.previous.clone_from(&left.header.previous);
        (self.timeline, self.next_number) = (from + 1, 1);
        (self.idle, self.idle_written) = (None, None);
        self.origins.clear();
        self.end = Some(left.header.start.clone());
        self.copy(&left, at)?;
        self.sync()?;
        if !self.end.as_ref().is_some_and(|end| end.is_same_place(at)) || !self.is_whole() {
            return self.begin_timeline(format!(
                "the source went back to {at}, which lies within a record of timeline {from}"
            ));
        }
        if let Some(baseline) = baseline
            && self.open.is_some()
        {
            self.copy_baseline(&baseline)?;
        }
        self.shared.forget(self.known_until);
        Ok(())
    }

    /// The place with the database that is selected where the archive ends, if the engine does
    /// not know it.
    pub(super) fn with_db(&self, at: Position) -> Position {
        let before = self.end.as_ref().map_or(0, |end| end.db);
        let db = if at.db == Position::DB_AS_BEFORE { before } else { at.db };
        Position { db, ..at }
    }

    /// Appends what the segment `left` has before `at`.
    fn copy(&mut self, left: &SegmentMeta, at: &Position) -> Result<()> {
        let (timeline, number) = (left.header.timeline, left.header.number);
        let mut reader = self.archive.segment(&self.label.source, timeline, number)?;
        let mut records = Records::new(&left.header.start);
        let mut known = None;
        let server = std::mem::replace(&mut self.server, left.header.server.clone());
        for index in 0..reader.blocks().len() {
            let Some(start) = reader.blocks().get(index).map(|block| block.start) else { break };
            if start >= at.offset {
                break;
            }
            let mut bytes = Vec::new();
            let mut marks = reader.read_block(index, &mut bytes)?;
            bytes.truncate(usize::try_from(at.offset - start).unwrap_or(usize::MAX));
            // What the former server said when it stood at the place is not of this history.
            marks.retain(|mark| mark.offset < at.offset);
            let time = TimeSource::Sampled;
            let mut chunk = Chunk { start, bytes, time, marks, ..Chunk::default() };
            records.note(&mut chunk, 0, known, |_| {})?;
            known = chunk.marks.last().map(|mark| mark.at).or(known);
            chunk.whole = records.take_whole();
            self.append(chunk)?;
        }
        self.server = server;
        Ok(())
    }

    /// The newest baseline of the current timeline within the part of `left` before `at`.
    fn baseline_within(&self, left: &SegmentMeta, at: &Position) -> Result<Option<BaselineMeta>> {
        let baselines = self.archive.catalog().baselines(&self.label.source)?;
        let within = |baseline: &BaselineMeta| {
            let place = &baseline.position;
            baseline.timeline == self.timeline
                && place.log == at.log
                && (left.header.start.offset..=at.offset).contains(&place.offset)
        };
        let within = baselines.into_iter().filter(within);
        Ok(within.max_by_key(|baseline| (baseline.position.offset, baseline.begun_at)))
    }

    /// Whether a baseline leads to what the timeline `from` shares with the new one.
    fn has_baseline_before(&self, from: u32) -> Result<bool> {
        let baselines = self.archive.catalog().baselines(&self.label.source)?;
        Ok(baselines.iter().any(|baseline| {
            (self.unbroken_from..=from).contains(&baseline.timeline)
                && Some(baseline.at) <= self.known_until
        }))
    }

    /// The same bytes under a name of the new timeline.
    fn copy_baseline(&mut self, baseline: &BaselineMeta) -> Result<()> {
        let copy = BaselineMeta { timeline: self.timeline, ..baseline.clone() };
        let store = self.archive.store();
        let (old, new) =
            (store.path(&baseline_name(baseline))?, store.path(&baseline_name(&copy))?);
        let temporary = new.with_extension("tmp");
        durable::remove(&temporary)?;
        std::fs::hard_link(&old, &temporary)
            .or_else(|_| std::fs::copy(&old, &temporary).map(drop))
            .unavailable(|| format!("copy {}", old.display()))?;
        durable::publish(&temporary, &new)?;
        store.put_new(&format!("{}.json", baseline_name(&copy)), &copy.encode()?)?;
        self.archive.catalog_mut().add_baseline(&copy)
    }
}
