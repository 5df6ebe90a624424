//! Segments: immutable files of consecutive bytes of one source.
