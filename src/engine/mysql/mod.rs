//! MySQL: a replica while it captures, a source while it restores.
//!
//! The words of the log ([`event`], [`gtid`]) come first, then the wire,
//! and on top of them capture and the way back. SQL that is no part of replication
//! goes over `mysql_async`.
//!
//! **Invariant:** bytes of the binlog are never changed on the way into the archive: what is
//! parsed is parsed beside them.

mod auth;
mod checkup;
mod canary;
mod changes;
mod client;
pub mod digest;
mod event;
mod executed;
mod flavor;
mod find;
mod gtid;
mod hold;
mod landmark;
mod join;
mod json;
mod locate;
mod maria;
mod packet;
mod payload;
mod protection;
mod pump;
mod rows;
mod semisync;
mod servers;
mod shape;
mod sql;
mod stream;
mod table;
mod tail;
mod timing;
mod values;

#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;

pub use changes::Changes;
pub(in crate::engine) use checkup::checkup;
pub use client::knock;
pub use find::find_late;
pub(crate) use find::{difference, names};
pub(in crate::engine) use find::{find, is_executed, parse_place};
pub(in crate::engine) use flavor::times;
pub(crate) use server::RELAY_BYTES;
pub use shape::{Shape, file_head};
pub use sql::connect;
pub use tail::MysqlSource;

// The full copy, and the way back.
mod accounts;
mod apply;
mod ask;
mod baseline;
mod check;
mod dump;
mod events;
mod groups;
mod half;
mod inspect;
mod load;
mod merge;
mod only;
mod preflight;
mod replay;
mod serve;
mod server;
mod settings;
mod standing;
mod target;
mod tools;
mod unwrap;
mod walk;

pub use only::check_databases;
pub use target::MysqlTarget;
