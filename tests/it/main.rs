//! The integration tests: one binary, one module per file, in the order of the alphabet.
//!
//! What goes where: `support` launches real servers and the `pitr` program and holds no test;
//! `servers` proves that what `support` launches is what its documentation says; every other file
//! is named after the part or the engine whose behaviour it shows against real servers. Tests of
//! one function that need no server stand beside that function, in `src`.
//!
//! The servers come from `fixtures/servers.sh`. A missing one is a failure, never a skip.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::string_slice,
    reason = "a test fails by panicking and reports by printing; .clippy.toml knows only #[test]"
)]

mod aof;
mod apply_sql;
mod audit;
mod baseline_exact;
mod cli;
mod continuity;
mod corpus;
mod crash;
mod daemon;
mod damage;
mod digest;
mod doctor;
mod drill;
mod events;
mod export;
mod gtidless;
mod independent_reader;
mod instants;
mod interrupted;
mod large;
mod load;
mod log;
mod login;
mod mariadb_baseline;
mod mariadb_restore;
mod mariadb_whole;
mod marks;
mod merged;
mod mysql_capture;
mod mysql_restore;
mod partial_revokes;
mod redis;
mod redis_whole;
mod restore_choices;
mod resumed;
mod semi_sync;
mod servers;
mod support;
mod verify;
