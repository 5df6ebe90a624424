//! The canary of a MySQL or MariaDB: the only row of `pitr.canary`.

use super::{ask, servers, sql};
use crate::clock::Timestamp;
use crate::engine::Endpoint;
use crate::error::{Error, Result};
use mysql_async::Conn;

/// The table, as baselines name it.
pub(super) const TABLE: &str = "pitr.canary";

/// What servers say of a schema or a table that is not there (`ER_BAD_DB_ERROR`,
/// `ER_NO_SUCH_TABLE`).
const NOT_THERE: [u16; 2] = [1049, 1146];

/// Writes the server's time; makes schema and table first, if they are not there.
pub(super) async fn write(endpoint: &Endpoint) -> Result<()> {
    let mut conn = sql::connect(endpoint).await?;
    let peer = endpoint.to_string();
    // A row of its own would make a replica differ from its master, and stop it one day.
    if servers::is_read_only(&mut conn, &peer).await?
        || servers::replicates(&mut conn, &peer).await?
    {
        return Err(Error::refused(format!("{peer} is a replica, into which nothing is written"))
            .hint("capture the server that the application writes to, or [drill] canary = false"));
    }
    let doing = || format!("write the canary of {endpoint}");
    // UTC_TIMESTAMP() is when the statement began: the commit comes later.
    let row = "INSERT INTO pitr.canary (id, at) VALUES (1, UTC_TIMESTAMP(6)) \
               ON DUPLICATE KEY UPDATE at = UTC_TIMESTAMP(6)";
    let written = ask::run(&mut conn, row, doing).await;
    let written = if ask::server_code(&written).is_some_and(|code| NOT_THERE.contains(&code)) {
        create(&mut conn, doing).await?;
        ask::run(&mut conn, row, doing).await
    } else {
        written
    };
    written.map_err(|error| {
        error.hint(
            "GRANT CREATE, INSERT, UPDATE ON pitr.* to the account, or [drill] canary = false",
        )
    })
}

async fn create(conn: &mut Conn, doing: impl Fn() -> String) -> Result<()> {
    for statement in [
        "CREATE DATABASE IF NOT EXISTS pitr",
        "CREATE TABLE IF NOT EXISTS pitr.canary \
         (id TINYINT UNSIGNED PRIMARY KEY, at DATETIME(6) NOT NULL) ENGINE = InnoDB",
    ] {
        ask::run(conn, statement, &doing).await?;
    }
    Ok(())
}

/// The time that it holds, if it is there.
pub(super) async fn read(conn: &mut Conn) -> Result<Option<Timestamp>> {
    let ask = "SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', at) FROM pitr.canary WHERE id = 1";
    let found: Result<Option<i64>> = ask::first(conn, ask, || format!("read {TABLE}")).await;
    if ask::server_code(&found).is_some_and(|code| NOT_THERE.contains(&code)) {
        return Ok(None);
    }
    Ok(found?.map(Timestamp::from_micros))
}
