//! Takes a capture up where a crash, or an orderly stop, left it.

use super::Capture;
use crate::durable;
use crate::error::{Class, Context, Result};
use crate::manifest::Break;
use crate::position::Position;
use crate::reindex;
use crate::segment::Reader;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

/// How many of its last bytes an archive shows to an engine that goes on behind them: more than
/// the head of a transaction, which has its time.
const RECALLED_BYTES: usize = 64 << 10;

impl Capture {
    /// Up to [`RECALLED_BYTES`] that the archive has directly before the place to go on from, as
    /// far as they are in one block; `None` if there are none. Asked of a recovered capture.
    pub fn last_bytes(&self) -> Result<Option<(Position, Vec<u8>)>> {
        let Some(place) = self.end.clone() else { return Ok(None) };
        let source = &self.label.source;
        let mut number = self.next_number.saturating_sub(1);
        // Segments that hold marks only have the same place at both ends.
        while number > 0 {
            let mut reader = match self.archive.segment(source, self.timeline, number) {
                // The source has been idle for longer than its history is kept.
                Err(error) if error.class() == Class::Gap => return Ok(None),
                opened => opened?,
            };
            if !reader.meta().totals.end.is_same_place(&place) {
                return Ok(None);
            }
            if let Some(last) = reader.blocks().iter().rposition(|block| block.raw_len > 0) {
                let mut bytes = Vec::new();
                reader.read_block(last, &mut bytes)?;
                let bytes = bytes.split_off(bytes.len().saturating_sub(RECALLED_BYTES));
                return Ok(Some((place, bytes)));
            }
            number -= 1;
        }
        Ok(None)
    }

    /// Removes what was being written under a temporary name.
    pub(super) fn remove_unfinished(&self) -> Result<()> {
        for name in self.archive.store().list(&format!("{}/", self.label.source))? {
            let extension = Path::new(&name).extension().and_then(|e| e.to_str());
            if matches!(extension, Some("tmp" | "rewrite")) {
                durable::remove(&self.archive.store().path(&name)?)?;
            }
        }
        Ok(())
    }

    /// Seals what a crash left open, cut after its last whole record.
    pub(super) fn seal_torn(&mut self) -> Result<()> {
        self.index_unindexed()?;
        for (timeline, number) in self.archive.open_segment_numbers(&self.label.source)? {
            let (open, sealed) =
                (self.open_path(timeline, number)?, self.sealed_path(timeline, number)?);
            if sealed.exists() {
                durable::remove(&open)?;
                continue;
            }
            let mut file = BufReader::with_capacity(
                1 << 18,
                File::open(&open).unavailable(|| format!("open {}", open.display()))?,
            );
            if Reader::header_is_torn(&mut file)? {
                // Torn in its first write: nothing behind it was ever durable.
                durable::remove(&open)?;
                continue;
            }
            let reader = Reader::scan(file)
                .map_err(|error| error.context(format!("recover {}", open.display())))?;
            if reader.meta().sealed {
                durable::publish(&open, &sealed)?;
            } else if let Some(meta) = self.seal_whole_part(timeline, number)? {
                let (end, torn) = (meta.totals.end, reader.torn_bytes());
                tracing::info!(
                    source = %self.label.source,
                    "recovered segment {number} up to {end}; {torn} bytes were torn"
                );
            } else {
                continue;
            }
            self.index_unindexed()?;
        }
        Ok(())
    }

    /// Brings the catalog up to what it does not have yet.
    fn index_unindexed(&mut self) -> Result<()> {
        let (store, meta) = (self.archive.store().clone(), self.archive.meta().clone());
        reindex::catch_up(self.archive.catalog_mut(), &store, &meta, &self.label.source)
    }

    pub(super) fn find_end(&mut self) -> Result<()> {
        let source = self.label.source.clone();
        let baseline = self
            .archive
            .catalog()
            .baselines(&source)?
            .into_iter()
            .max_by_key(|b| (b.timeline, b.begun_at));
        let segments = self.archive.catalog().timelines(&source)?.into_iter().max();
        self.timeline =
            segments.max(baseline.as_ref().map(|baseline| baseline.timeline)).unwrap_or(0);
        if self.timeline == 0 {
            return Ok(());
        }
        self.unbroken_from = self.timeline;
        let mut known = self.archive.catalog().reached(&source, self.timeline)?;
        while let Some(first) =
            self.archive.catalog().segments_from(&source, self.unbroken_from, 1, 1)?.pop()
            && let Some(from) = first.header.continues
            && from.timeline < self.unbroken_from
        {
            self.unbroken_from = from.timeline;
            // What the other timeline has behind a fork is not of this history.
            let catalog = self.archive.catalog();
            let before = match first.header.fork {
                Some(_) => catalog
                    .segments_from(&source, from.timeline, from.number, 1)?
                    .pop()
                    .and_then(|last| last.totals.known_until),
                None => catalog.reached(&source, from.timeline)?,
            };
            known = known.max(before);
        }
        if let Some(last) = self.archive.catalog().last_segment(&source, self.timeline)? {
            self.server = last.header.server.clone();
            self.next_number = last.header.number + 1;
            self.previous = Some(last.digest.clone());
            self.known_until = self.known_until.max(known);
            self.end = Some(last.totals.end);
        } else if let Some(baseline) = baseline {
            // A full resync was stored, but nothing behind it.
            self.end = Some(baseline.position);
            self.known_until = Some(baseline.at);
            let after = match self.timeline.checked_sub(1).filter(|before| *before > 0) {
                Some(before) => self.archive.catalog().reached(&source, before)?,
                None => None,
            };
            let reason = "the source sent a full copy of itself".to_owned();
            self.broken = (self.timeline > 1).then_some(Break { after, reason });
        }
        Ok(())
    }
}
