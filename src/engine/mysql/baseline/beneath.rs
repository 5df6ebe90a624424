//! What a snapshot of rows does not cover, compared before, at and after it.
//!
//! **Invariant:** reads only.

use super::super::accounts::{Statement, identifier};
use super::super::ask;
use super::SYSTEM_SCHEMAS;
use super::facts::server_clock;
use crate::clock::Timestamp;
use crate::error::Result;
use mysql_async::Conn;
use std::collections::BTreeMap;

/// What a snapshot of rows does not cover.
#[derive(Debug)]
pub(super) struct Beneath {
    pub(super) accounts: Vec<Statement>,
    pub(super) schemas: Vec<String>,
    /// Views, routines, triggers and events, each with a digest of its definition.
    definitions: BTreeMap<(String, String, String), String>,
    /// Tables, each with the second in which it was created or altered.
    tables: BTreeMap<(String, String), i64>,
    /// How many tables keep no versions of their rows.
    pub(super) unversioned: u64,
    /// How many tables keep the rows that they had (MariaDB's system versioning).
    pub(super) history: u64,
    pub(super) now: Timestamp,
}

/// Schema, table, when it was made, engine, kind.
type TableRow = (String, String, Option<i64>, Option<String>, String);

impl Beneath {
    /// Reads all of it.
    pub(super) async fn read(conn: &mut Conn, accounts: Vec<Statement>) -> Result<Self> {
        let reading = || "read what there is to dump".to_owned();
        let schemas = schemas(conn).await?;
        let (mut unversioned, mut history) = (0, 0);
        let mut tables = BTreeMap::new();
        let rows: Vec<TableRow> = ask::rows(
            conn,
            format!(
                "SELECT TABLE_SCHEMA, TABLE_NAME, CAST(UNIX_TIMESTAMP(CREATE_TIME) AS SIGNED), \
                 ENGINE, TABLE_TYPE FROM information_schema.TABLES WHERE \
                 TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED', 'SEQUENCE') \
                 AND TABLE_SCHEMA NOT IN ({SYSTEM_SCHEMAS})"
            ),
            reading,
        )
        .await?;
        for (schema, table, created, engine, kind) in rows {
            history += u64::from(kind == "SYSTEM VERSIONED");
            unversioned += u64::from(engine.as_deref() != Some("InnoDB"));
            tables.insert((schema, table), created.unwrap_or(0));
        }
        let definitions = definitions(conn).await?;
        // After the rest: an upper bound of when all of it was seen.
        let now = server_clock(conn).await?;
        Ok(Self { accounts, schemas, definitions, tables, unversioned, history, now })
    }

    /// What differs between before the snapshot and after it, if anything.
    pub(super) fn differs_from(&self, before: &Self) -> Option<String> {
        if self.accounts != before.accounts {
            return Some("accounts or grants changed".into());
        }
        if self.schemas != before.schemas {
            return Some("schemas were created or dropped".into());
        }
        if self.tables != before.tables {
            return Some("tables were created, renamed or dropped".into());
        }
        // A table can be altered again within its second, and nobody would see it.
        let begun = before.now.as_micros().div_euclid(1_000_000);
        let fresh = self.tables.iter().find(|(_, created)| **created >= begun);
        if let Some(((schema, table), _)) = fresh {
            let name = format!("{}.{}", identifier(schema), identifier(table));
            return Some(format!("table {name} was just created or altered"));
        }
        self.changed_definition(before)
    }

    /// What changed between the snapshot and the end of the dump that the dump may have mixed.
    /// Tables that came later are not in the dump, or made it fail.
    pub(super) fn undermines(&self, at_snapshot: &Self) -> Option<String> {
        let other = |(name, at)| self.tables.get(name) != Some(at);
        if let Some(((schema, table), _)) =
            at_snapshot.tables.iter().find(|(name, at)| other((*name, *at)))
        {
            let name = format!("{}.{}", identifier(schema), identifier(table));
            return Some(format!("table {name} was altered, renamed or dropped"));
        }
        if at_snapshot.schemas.iter().any(|schema| !self.schemas.contains(schema)) {
            return Some("a schema was dropped".into());
        }
        self.changed_definition(at_snapshot)
    }

    fn changed_definition(&self, before: &Self) -> Option<String> {
        if self.definitions == before.definitions {
            return None;
        }
        let differs = |(key, digest)| before.definitions.get(key) != Some(digest);
        let key = self.definitions.iter().find(|(key, digest)| differs((*key, *digest)));
        let gone = before.definitions.keys().find(|key| !self.definitions.contains_key(*key));
        let (kind, schema, name) = key.map(|(key, _)| key).or(gone)?;
        Some(format!("{kind} {}.{} changed", identifier(schema), identifier(name)))
    }
}

/// The schemas to dump, sorted.
async fn schemas(conn: &mut Conn) -> Result<Vec<String>> {
    ask::rows(
        conn,
        format!(
            "SELECT SCHEMA_NAME FROM information_schema.SCHEMATA \
             WHERE SCHEMA_NAME NOT IN ({SYSTEM_SCHEMAS}) ORDER BY 1"
        ),
        || "list the schemas".into(),
    )
    .await
}

async fn definitions(conn: &mut Conn) -> Result<BTreeMap<(String, String, String), String>> {
    const PARTS: [(&str, &str, &str, &str, &str); 4] = [
        (
            "view",
            "VIEWS",
            "TABLE_SCHEMA",
            "TABLE_NAME",
            "VIEW_DEFINITION, DEFINER, SECURITY_TYPE, CHECK_OPTION",
        ),
        (
            "routine",
            "ROUTINES",
            "ROUTINE_SCHEMA",
            "CONCAT(ROUTINE_TYPE, ' ', ROUTINE_NAME)",
            "ROUTINE_DEFINITION, DEFINER, SECURITY_TYPE, SQL_MODE, CREATED, LAST_ALTERED",
        ),
        (
            "trigger",
            "TRIGGERS",
            "TRIGGER_SCHEMA",
            "TRIGGER_NAME",
            "ACTION_STATEMENT, EVENT_OBJECT_TABLE, ACTION_ORDER, DEFINER, SQL_MODE, CREATED",
        ),
        (
            "event",
            "EVENTS",
            "EVENT_SCHEMA",
            "EVENT_NAME",
            "EVENT_DEFINITION, DEFINER, STATUS, SQL_MODE, CREATED, LAST_ALTERED",
        ),
    ];
    let mut found = BTreeMap::new();
    for (kind, table, schema, name, definition) in PARTS {
        let rows: Vec<(String, String, String)> = ask::rows(
            conn,
            format!(
                "SELECT {schema}, {name}, SHA2(CONCAT_WS('|', {definition}), 256) \
                 FROM information_schema.{table} WHERE {schema} NOT IN ({SYSTEM_SCHEMAS})"
            ),
            || format!("read the definitions of {kind}s"),
        )
        .await?;
        found.extend(
            rows.into_iter().map(|(schema, name, sha)| ((kind.to_owned(), schema, name), sha)),
        );
    }
    Ok(found)
}
