//! Names and bytes of an archive.
