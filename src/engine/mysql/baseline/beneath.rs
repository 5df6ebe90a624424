//! What a snapshot of rows does not cover, compared before, at and after it.
//!
//! **Invariant:** reads only.

use super::super::accounts::{Statement, identifier};
use super::super::ask;
use super::SYSTEM_SCHEMAS;
use super::facts::server_clock;
use super::place::LogEnd;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use mysql_async::{Conn, Row};
use std::collections::BTreeMap;

/// What a snapshot of rows does not cover.
#[derive(Debug)]
pub(super) struct Beneath {
    pub(super) accounts: Vec<Statement>,
    pub(super) schemas: Vec<String>,
    /// Views, routines, triggers and events, each with a digest of its definition.
    definitions: BTreeMap<(String, String, String), String>,
    /// Tables, each with when it was created: a table of that name that is another one differs.
    tables: BTreeMap<(String, String), String>,
    /// How many tables keep no versions of their rows.
    pub(super) unversioned: u64,
    pub(super) log_end: LogEnd,
    pub(super) now: Timestamp,
}

impl Beneath {
    /// Reads all of it.
    pub(super) async fn read(conn: &mut Conn, accounts: Vec<Statement>) -> Result<Self> {
        let reading = || "read what there is to dump".to_owned();
        let prepared = ask::rows::<Row>(conn, "XA RECOVER", reading).await;
        // Without the privilege this cannot be known; a restore would then name the XID.
        let hidden = ask::server_code(&prepared) == Some(1401);
        let prepared = if hidden { vec![] } else { prepared? };
        if !prepared.is_empty() {
            return Err(Error::unavailable(format!(
                "{} XA transactions are prepared and not yet committed: no dump holds them",
                prepared.len()
            ))
            .hint("see XA RECOVER; the baseline is tried again later"));
        }
        let schemas = ask::rows(
            conn,
            format!(
                "SELECT SCHEMA_NAME FROM information_schema.SCHEMATA \
                 WHERE SCHEMA_NAME NOT IN ({SYSTEM_SCHEMAS}) ORDER BY 1"
            ),
            reading,
        )
        .await?;
        let tables: Vec<(String, String, String, Option<String>)> = ask::rows(
            conn,
            format!(
                "SELECT TABLE_SCHEMA, TABLE_NAME, COALESCE(CAST(CREATE_TIME AS CHAR), ''), ENGINE \
                 FROM information_schema.TABLES WHERE TABLE_TYPE = 'BASE TABLE' \
                 AND TABLE_SCHEMA NOT IN ({SYSTEM_SCHEMAS})"
            ),
            reading,
        )
        .await?;
        let versioned = |engine: &Option<String>| engine.as_deref() == Some("InnoDB");
        let unversioned = tables.iter().filter(|(.., engine)| !versioned(engine)).count() as u64;
        let tables = tables.into_iter().map(|(schema, name, at, _)| ((schema, name), at)).collect();
        let definitions = definitions(conn).await?;
        // After the rest: an upper bound of where and when all of it was seen.
        let log_end = LogEnd::read(conn).await?;
        let now = server_clock(conn).await?;
        Ok(Self { accounts, schemas, definitions, tables, unversioned, log_end, now })
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
