//! Questions and statements on a `mysql_async` connection that may take as long as they need.
//!
//! **Invariant:** an answer of an unexpected form is an error, never a panic.

use super::auth;
use crate::error::{Context, Error, Result};
use mysql_async::Conn;
use mysql_async::prelude::{FromRow, Queryable};

/// All rows of an answer. `doing` is what the error says was being done.
///
/// # Errors
/// Unavailable, if the server gives an error or rows of another form.
pub(super) async fn rows<T: FromRow + Send + 'static>(
    conn: &mut Conn,
    sql: impl AsRef<str>,
    doing: impl Fn() -> String,
) -> Result<Vec<T>> {
    let rows =
        conn.query_map(sql.as_ref(), mysql_async::from_row_opt::<T>).await.unavailable(&doing)?;
    rows.into_iter()
        .collect::<Result<_, _>>()
        .map_err(|_| Error::unavailable(format!("{}: rows of another form", doing())))
}

/// The first row of an answer, if there is one.
///
/// # Errors
/// As [`rows`].
pub(super) async fn first<T: FromRow + Send + 'static>(
    conn: &mut Conn,
    sql: impl AsRef<str>,
    doing: impl Fn() -> String,
) -> Result<Option<T>> {
    Ok(rows(conn, sql, doing).await?.into_iter().next())
}

/// Runs a statement.
///
/// # Errors
/// Unavailable, if the server gives an error.
pub(super) async fn run(
    conn: &mut Conn,
    sql: impl AsRef<str>,
    doing: impl Fn() -> String,
) -> Result<()> {
    conn.query_drop(sql.as_ref()).await.unavailable(doing)
}

/// Lets the server keep this connection while it waits for other work, such as a dump of hours.
///
/// # Errors
/// As [`run`].
pub(super) async fn keep_open(conn: &mut Conn) -> Result<()> {
    // A year, the server's own limit.
    run(conn, "SET SESSION wait_timeout = 31536000", || "set wait_timeout".into()).await
}

/// Whether the server said that it does not know the statement.
pub(super) fn is_syntax_error<T>(answer: &Result<T>) -> bool {
    server_code(answer) == Some(1064)
}

/// Whether the connection was lost, by whoever's doing, or the server ended it.
pub(super) fn is_lost(error: &Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref());
    match cause {
        Some(mysql_async::Error::Server(error)) => auth::ENDED.contains(&error.code),
        Some(mysql_async::Error::Io(_)) => true,
        Some(mysql_async::Error::Driver(error)) => {
            matches!(error, mysql_async::DriverError::ConnectionClosed)
        }
        _ => false,
    }
}

/// The number of the server's error, if it gave one.
pub(super) fn server_code<T>(answer: &Result<T>) -> Option<u16> {
    let error = answer.as_ref().err()?;
    let cause = std::error::Error::source(error)?.downcast_ref::<mysql_async::Error>()?;
    match cause {
        mysql_async::Error::Server(error) => Some(error.code),
        _ => None,
    }
}
