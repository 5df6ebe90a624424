//! Places in a server's binlog: where it ends, and where a dump says that it begins.
//!
//! **Invariant:** a place that is not whole is not read.

use super::super::ask;
use crate::error::{Error, Result};
use mysql_async::{Conn, Row};

/// A place in the server's binlog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LogEnd {
    pub(super) file: String,
    pub(super) offset: u64,
}

impl LogEnd {
    /// The end of the log as it is now.
    pub(super) async fn read(conn: &mut Conn) -> Result<Self> {
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
                .hint("start it with --log-bin (on by default) and gtid_mode=ON")
        })
    }

    /// Whether this is not behind `other`. Numbers of binlog files grow in length, too.
    pub(super) fn is_before_or_at(&self, other: &Self) -> bool {
        let key = |end: &Self| (end.file.len(), end.file.clone(), end.offset);
        key(self) <= key(other)
    }
}

impl std::fmt::Display for LogEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file, self.offset)
    }
}

/// The line of a dump that names its position, once it is whole.
pub(super) fn position_line(head: &[u8]) -> Option<&str> {
    let is_position = |line: &&[u8]| {
        line.starts_with(b"-- CHANGE REPLICATION SOURCE TO ")
            || line.starts_with(b"-- CHANGE MASTER TO ")
    };
    let end = head.iter().rposition(|byte| *byte == b'\n')?;
    let line = head.get(..end)?.split(|byte| *byte == b'\n').find(is_position)?;
    std::str::from_utf8(line).ok()
}

/// Reads `-- CHANGE REPLICATION SOURCE TO SOURCE_LOG_FILE='…', SOURCE_LOG_POS=…;`.
pub(super) fn position_in_head(head: &[u8]) -> Result<LogEnd> {
    let read = || {
        let line = position_line(head)?;
        let (_, rest) = line.split_once("_LOG_FILE='")?;
        let (file, rest) = rest.split_once('\'')?;
        let (_, rest) = rest.split_once("_LOG_POS=")?;
        let offset = rest.trim_end().strip_suffix(';')?.parse().ok()?;
        (!file.is_empty()).then(|| LogEnd { file: file.to_owned(), offset })
    };
    read().ok_or_else(|| Error::unavailable("the dump's binlog position cannot be read"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_position_is_read_from_the_dumps_head() {
        let head = b"-- MySQL dump\n--\n\n-- CHANGE REPLICATION SOURCE TO \
            SOURCE_LOG_FILE='binlog.000042', SOURCE_LOG_POS=5123456789;\n\nCREATE";
        let expected = LogEnd { file: "binlog.000042".into(), offset: 5_123_456_789 };
        assert_eq!(position_in_head(head).unwrap(), expected);
        let old = b"-- CHANGE MASTER TO MASTER_LOG_FILE='b.1', MASTER_LOG_POS=4;\n";
        assert_eq!(position_in_head(old).unwrap(), LogEnd { file: "b.1".into(), offset: 4 });
    }

    #[test]
    fn a_position_that_is_not_whole_yet_is_not_read() {
        let half = b"-- CHANGE REPLICATION SOURCE TO SOURCE_LOG_FILE='b.1', SOURCE_LOG_POS=51";
        assert_eq!(position_line(half), None);
        assert!(position_in_head(b"-- CHANGE MASTER TO MASTER_LOG_POS=x;\n").is_err());
    }

    #[test]
    fn the_millionth_binlog_comes_after_those_with_six_digits() {
        let end = |file: &str, offset| LogEnd { file: file.into(), offset };
        assert!(end("b.999999", 9).is_before_or_at(&end("b.1000000", 4)));
        assert!(!end("b.000002", 5).is_before_or_at(&end("b.000002", 4)));
    }
}
