//! Takes a capture up where a crash, or an orderly stop, left it.

use super::Capture;
use crate::archive::SegmentReader;
use crate::durable;
use crate::error::{Class, Context, Result};
use crate::manifest::{Break, names};
use crate::record::Recalled;
use crate::reindex;
use crate::segment::Reader;
use std::fs::File;
use std::io::BufReader;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// How many of its last bytes an archive shows to an engine that goes on behind them: more than
/// the head of a transaction, which has its time.
const RECALLED_BYTES: usize = 64 << 10;

/// Puts in front of `bytes`, which begin at `from` in the log, up to `wanted` more of a segment.
fn prepend(
    bytes: &mut Vec<u8>,
    reader: &mut SegmentReader,
    mut from: u64,
    mut wanted: usize,
) -> Result<()> {
    for index in (0..reader.blocks().len()).rev() {
        let Some(block) = reader.blocks().get(index).filter(|block| block.raw_len > 0) else {
            continue;
        };
        if block.end() != from || wanted == 0 {
            return Ok(());
        }
        from = block.start;
        let mut more = Vec::new();
        reader.read_block(index, &mut more)?;
        let mut more = more.split_off(more.len().saturating_sub(wanted));
        wanted -= more.len();
        more.append(bytes);
        *bytes = more;
    }
    Ok(())
}

impl Capture {
    /// What the archive has directly before the place to go on from; `None` if it has nothing of
    /// this timeline. Asked between two streams.
    pub fn recall(&self) -> Result<Option<Recalled>> {
        let Some(place) = self.end.clone() else { return Ok(None) };
        let mut before = Vec::new();
        let mut last_records = None;
        let newest = self.next_number - u64::from(self.open.is_none());
        for number in (1..=newest).rev() {
            let wanted = RECALLED_BYTES.saturating_sub(before.len());
            let from = place.offset.saturating_sub(before.len() as u64);
            let meta = if wanted > 0 && from > 0 {
                let reader = self.archive.segment(&self.label.source, self.timeline, number);
                let mut reader = match reader {
                    // The source has been idle for longer than its history is kept.
                    Err(error) if error.class() == Class::Gap => break,
                    opened => opened?,
                };
                if reader.meta().header.start.log == place.log {
                    prepend(&mut before, &mut reader, from, wanted)?;
                }
                reader.meta().clone()
            } else {
                // Only its row is needed.
                let source = &self.label.source;
                let row = self.archive.catalog().segments_from(source, self.timeline, number, 1)?;
                // As above: the oldest ones are gone.
                let Some(row) = row.into_iter().find(|row| row.header.number == number) else {
                    break;
                };
                row
            };
            let (start, totals) = (meta.header.start, meta.totals);
            if totals.records > 0 {
                last_records.get_or_insert((start.clone(), totals.end, totals.records));
            }
            let is_all = before.len() >= RECALLED_BYTES || start.log != place.log;
            if is_all && last_records.is_some() {
                break;
            }
        }
        let is_nothing = before.is_empty() && last_records.is_none();
        Ok((!is_nothing).then(|| Recalled { place, before: before.into(), last_records }))
    }

    /// A log of which nothing was stored is not begun: the next stream goes on at the end of the
    /// one before, where there is something to compare.
    pub(super) fn forget_empty_log(&mut self) -> Result<()> {
        if self.open.is_some() || self.end.as_ref().is_none_or(|end| end.offset > 0) {
            return Ok(());
        }
        let last = self.archive.catalog().last_segment(&self.label.source, self.timeline)?;
        let Some(last) = last.filter(|last| last.header.number + 1 == self.next_number) else {
            return Ok(());
        };
        self.end = Some(last.totals.end);
        Ok(())
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
            let mut reader = Reader::scan(file)
                .map_err(|error| error.context(format!("recover {}", open.display())))?;
            if reader.goes_on_behind_damage()? {
                self.keep_damaged(timeline, number, &open)?;
            }
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

    /// Something whole stands behind damage: mostly it was durable, and the source may have been told
    /// so. It cannot be a part of the log, but it is not thrown away either.
    fn keep_damaged(&self, timeline: u32, number: u64, open: &Path) -> Result<()> {
        let mut name = names::damaged_segment(&self.label.source, timeline, number);
        let mut kept = self.archive.store().path(&name)?;
        for again in 2.. {
            match is_same_file(open, &kept)? {
                Some(true) => return Ok(()),
                Some(false) => {
                    name = names::damaged_again(&self.label.source, timeline, number, again);
                }
                None => break,
            }
            kept = self.archive.store().path(&name)?;
        }
        // Where the file system has no hard links, it takes a copy.
        if std::fs::hard_link(open, &kept).is_err() {
            let bytes = std::fs::read(open).unavailable(|| format!("read {}", open.display()))?;
            durable::create(&kept, &bytes)?;
        }
        durable::sync_dir(&self.folder(timeline)?)?;
        tracing::error!(
            source = %self.label.source,
            "segment {number} is damaged in its middle; all of it is kept as {name}. What stands \
             behind the damage is captured again if the source still has it: see `pitr windows`"
        );
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

/// Whether two names are of one file; `None` if there is none under the second.
fn is_same_file(one: &Path, other: &Path) -> Result<Option<bool>> {
    let of = |path: &Path| {
        let found = std::fs::symlink_metadata(path);
        match found {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            found => found.map(|found| Some((found.dev(), found.ino()))),
        }
        .unavailable(|| format!("look at {}", path.display()))
    };
    let (one, other) = (of(one)?, of(other)?);
    Ok(other.map(|other| one == Some(other)))
}
