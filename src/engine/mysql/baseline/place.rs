//! The end of a server's binlog.
//!
//! **Invariant:** reads only.

use super::super::ask;
use crate::error::{Error, Result};
use mysql_async::{Conn, Row};

/// A place in the server's binlog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct LogEnd {
    pub(in super::super) file: String,
    pub(in super::super) offset: u64,
}

impl LogEnd {
    /// The end of the log as it is now.
    pub(in super::super) async fn read(conn: &mut Conn) -> Result<Self> {
        let asking = || "ask for the end of the binlog".to_owned();
        let mut row = ask::first::<Row>(conn, "SHOW BINARY LOG STATUS", asking).await;
        if ask::is_syntax_error(&row) {
            // What servers before 8.2 call it.
            row = ask::first(conn, "SHOW MASTER STATUS", asking).await;
        }
        let end = row?.and_then(|mut row| {
            let file = row.take_opt::<String, _>(0)?.ok()?;
            let offset = row.take_opt::<u64, _>(1)?.ok()?;
            Some(Self { file, offset })
        });
        end.ok_or_else(|| {
            Error::usage("the source writes no binlog")
                .hint("start it with --log-bin (on by default)")
        })
    }
}

impl std::fmt::Display for LogEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file, self.offset)
    }
}
