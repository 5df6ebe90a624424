//! What the engines' targets for a fuzzer have in common.

use super::decode::{Decode, Record, RowChange, Take};
use crate::error::Result;
use crate::position::Position;
use bytes::Bytes;

/// What was decoded before the first error, and if there was none, whether it ends between two
/// records.
#[derive(Debug, Default, PartialEq)]
struct Found {
    records: Vec<Record>,
    rows: Vec<RowChange>,
    is_whole: Option<bool>,
}

impl Take for Found {
    fn record(&mut self, record: Record) -> Result<()> {
        self.records.push(record);
        Ok(())
    }

    fn row(&mut self, _begun: &Record, row: RowChange) -> Result<()> {
        self.rows.push(row);
        Ok(())
    }
}

/// Decodes `log`, which begins at `at`: the same is found in pieces of any size as in the whole.
///
/// # Panics
/// If it is not.
pub(in crate::engine) fn decode(
    decoder: impl Fn() -> Box<dyn Decode>,
    at: &Position,
    log: &[u8],
    piece: usize,
) {
    let found = |piece: usize| {
        let (mut decoder, mut found) = (decoder(), Found::default());
        let mut push = || -> Result<()> {
            decoder.go_on(at, &Bytes::new())?;
            for piece in log.chunks(piece) {
                decoder.push(Bytes::copy_from_slice(piece), &mut found)?;
            }
            Ok(())
        };
        let is_good = push().is_ok();
        found.is_whole = is_good.then(|| decoder.is_between_records());
        found
    };
    let whole = found(log.len().max(1));
    assert!(whole.records.is_sorted_by_key(|record| record.end), "records go back");
    assert_eq!(found(piece), whole, "pieces make a difference");
}
