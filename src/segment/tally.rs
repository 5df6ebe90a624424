//! Adds blocks up to what a whole segment amounts to, in the writer and in the reader alike.
//!
//! **Invariant:** `known_until` never takes a mark into account that lies behind the end of the
//! last whole record.

use super::format::Description;
use crate::clock::Timestamp;
use crate::manifest::{LANDMARKS_MAX, SegmentHeader, Totals};
use crate::record::{Landmark, Mark, add_landmark};
use std::collections::VecDeque;

/// The sum of the blocks so far.
#[derive(Debug)]
pub(super) struct Tally {
    totals: Totals,
    /// Offset after the last byte, which may lie within a record.
    raw_end: u64,
    /// Marks behind the end of the last whole record, in order.
    pending: VecDeque<Mark>,
}

impl Tally {
    pub(super) fn new(header: &SegmentHeader) -> Self {
        let totals = Totals {
            end: header.start.clone(),
            blocks: 0,
            records: 0,
            bytes_raw: 0,
            first_at: None,
            last_at: None,
            known_until: None,
            origins: vec![],
            landmarks: vec![],
        };
        Self { totals, raw_end: header.start.offset, pending: VecDeque::new() }
    }

    pub(super) fn totals(&self) -> &Totals {
        &self.totals
    }

    pub(super) fn raw_end(&self) -> u64 {
        self.raw_end
    }

    /// GTIDs where the last whole record ends; a block's difference is applied to them before
    /// the block is added.
    pub(super) fn gtids_mut(&mut self) -> &mut String {
        &mut self.totals.end.gtids
    }

    /// The landmarks of the blocks so far.
    pub(super) fn add_landmarks(&mut self, landmarks: &[Landmark]) {
        for landmark in landmarks {
            add_landmark(&mut self.totals.landmarks, landmark.clone(), LANDMARKS_MAX);
        }
    }

    /// Adds a block whose start is the raw end. `db` is that of its whole records' end.
    pub(super) fn add(&mut self, block: &Description, db: u32, marks: &[Mark], origins: &[u32]) {
        let totals = &mut self.totals;
        totals.blocks += 1;
        totals.records += u64::from(block.records);
        totals.bytes_raw += u64::from(block.raw_len);
        totals.first_at = earlier(totals.first_at, block.first_at);
        totals.last_at = totals.last_at.max(block.last_at);
        totals.known_until = totals.known_until.max(block.last_at);
        self.raw_end = block.end();
        if let Some(whole) = block.whole_until {
            totals.end.offset = whole;
            totals.end.db = db;
        }
        self.pending.extend(marks);
        while let Some(mark) = self.pending.front().filter(|m| m.offset <= totals.end.offset) {
            totals.known_until = totals.known_until.max(Some(mark.at));
            self.pending.pop_front();
        }
        for origin in origins {
            if let Err(at) = totals.origins.binary_search(origin) {
                totals.origins.insert(at, *origin);
            }
        }
    }
}

/// The smaller of two times of which either may be unknown.
pub(super) fn earlier(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
