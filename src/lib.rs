//! The map of pitr, in the order in which to read it.
//!
//! A module uses only what stands above it; `tests/tidy.rs` holds that rule.

// Words that everybody shares: no I/O, except in `clock`, `durable` and `disk`.
pub mod error;
pub mod clock;
pub mod durable;
pub mod disk;
pub mod position;
pub mod record;
pub mod manifest;

// Bytes at rest.
pub mod segment;
pub mod store;
pub mod catalog;

// The systems that are captured from and restored into.
pub mod engine;

// Decisions: values in, values out.
pub mod plan;
pub mod retention;
pub mod schedule;

// The archive as a whole.
pub mod reindex;
pub mod archive;
pub mod setup;
pub mod changes;

// One verb, one file.
pub mod audit;
pub mod baseline;
pub mod capture;
pub mod mark;
pub mod restore;
pub mod verify;
pub mod prune;
pub mod export;
pub mod drill;

// The process around the verbs.
pub mod config;
pub mod daemon;
pub mod windows;
pub mod doctor;
pub mod demo;
pub mod cli;
