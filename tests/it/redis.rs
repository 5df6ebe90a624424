//! The Redis engine against real servers: what it captures, and what it gives back.
//!
//! Pieces go from a capture straight into a restore here, without an archive between.

mod capture;
mod expiry;
mod failover;
mod harness;
mod parts;
mod restore;
mod trouble;
