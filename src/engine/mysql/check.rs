//! The last look at a restored server: is it what was applied, and nothing else?
//!
//! **Invariant:** reads only.

use super::accounts::identifier;
use super::baseline::SYSTEM_SCHEMAS;
use super::executed::Executed;
use super::flavor::Family;
use super::{ask, standing};
use crate::error::{Class, Error, Result};
use mysql_async::{Conn, Row};

/// How many tables are named in one statement.
const TABLES_AT_ONCE: usize = 50;

/// Looks at GTIDs, if it is known which there have to be, replication and every table. Gives how many tables there are.
///
/// # Errors
/// Finding, if something is not as it has to be.
pub(super) async fn everything(
    conn: &mut Conn,
    family: Family,
    expected: Option<&Executed>,
) -> Result<usize> {
    if let Some(expected) = expected {
        standing::compare(conn, family, expected).await?;
    }
    let asking = || "ask the target for its replication".to_owned();
    if ask::first::<Row>(conn, "SHOW REPLICA STATUS", asking).await?.is_some() {
        return Err(Error::new(Class::Finding, "the target is still configured as a replica"));
    }
    tables(conn).await
}

/// How many XA transactions are prepared and wait for their COMMIT or ROLLBACK.
pub(super) async fn prepared(conn: &mut Conn) -> Result<usize> {
    let open: Vec<Row> =
        ask::rows(conn, "XA RECOVER", || "list prepared XA transactions".into()).await?;
    Ok(open.len())
}

/// Lets the server check each table quickly: that it can be opened, and its definition is sound.
async fn tables(conn: &mut Conn) -> Result<usize> {
    let tables: Vec<(String, String)> = ask::rows(
        conn,
        format!(
            "SELECT TABLE_SCHEMA, TABLE_NAME FROM information_schema.TABLES \
             WHERE TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED', 'SEQUENCE') \
             AND TABLE_SCHEMA NOT IN ({SYSTEM_SCHEMAS})"
        ),
        || "list the restored tables".into(),
    )
    .await?;
    // What is prepared and not decided locks its tables: a check of them would wait for that.
    if prepared(conn).await? > 0 {
        for (schema, table) in &tables {
            let name = format!("{}.{}", identifier(schema), identifier(table));
            ask::run(conn, format!("SELECT 1 FROM {name} LIMIT 0"), || {
                format!("open the restored table {name}")
            })
            .await?;
        }
        return Ok(tables.len());
    }
    for some in tables.chunks(TABLES_AT_ONCE) {
        let names: Vec<String> = some
            .iter()
            .map(|(schema, table)| format!("{}.{}", identifier(schema), identifier(table)))
            .collect();
        let rows: Vec<(String, String, String, String)> =
            ask::rows(conn, format!("CHECK TABLE {} FOR UPGRADE", names.join(", ")), || {
                "check the restored tables".into()
            })
            .await?;
        if let Some((table, _, _, text)) =
            rows.iter().find(|(_, _, kind, _)| kind.eq_ignore_ascii_case("error"))
        {
            return Err(Error::new(Class::Finding, format!("table {table}: {text}")));
        }
    }
    Ok(tables.len())
}
