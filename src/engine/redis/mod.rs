//! Redis and Valkey: captured as a replica, restored as their master.

pub mod digest;
mod resp;
