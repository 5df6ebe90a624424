//! Redis.
pub mod digest;
