//! Segments: immutable files of consecutive bytes of one source, in plain zstd clothing.
//!
//! A segment is `header (head frame)* footer`. Header, block heads and footer ride in zstd
//! *skippable frames*, which every zstd decoder passes over; each block's bytes are one ordinary
//! zstd frame. So `zstd -dc seg-*.zst` gives the source's raw bytes, without pitr. The layout,
//! byte by byte, stands in `docs/SEGMENT_FORMAT.md`; `format.rs` is its only implementation.
//!
//! | limit | |
//! |---|---|
//! | raw bytes of a block | 64 MiB ([`BLOCK_RAW_MAX`]); about 1 MiB is usual |
//! | marks of a block | 65,536 |
//! | JSON in a header or footer | 32 MiB |
//! | GTID set at a block's end | 16 MiB |
//!
//! A length that a file claims is compared with these limits and with the size of the file
//! before anything is allocated for it.
//!
//! A file without its footer is an *open* segment. [`Reader::scan`] reads it block by block and
//! stops at the first byte that is not what a writer could have left there (the torn tail);
//! [`rewrite`] makes a sealed segment of the whole records before that place.
//!
//! This module knows no engine, no store and no catalog, and never looks into the raw bytes.
//!
//! **Invariant:** a sealed segment begins and ends between two records: the next segment of the
//! same log begins at exactly its [`Totals::end`](crate::manifest::Totals).

mod format;
mod reader;
mod rewrite;
mod tally;
mod writer;

pub use format::BLOCK_RAW_MAX;
pub use reader::Reader;
pub use rewrite::rewrite;
pub use writer::Writer;

#[cfg(test)]
mod tests;
