//! Looks at everything that a restored MySQL or MariaDB holds: rows, indexes, foreign keys, and
//! whether views, routines, triggers and events can be read.
//!
//! **Invariant:** reads only. What the source may well have had itself (a row that refers to
//! nothing, a view on a table that is gone) is inconclusive: it is not the restore that broke it.

use super::accounts::identifier;
use super::ask;
use super::baseline::SYSTEM_SCHEMAS;
use crate::engine::inspect::{Check, Outcome};
use crate::error::Result;
use mysql_async::{Conn, Row};
use std::collections::BTreeMap;

/// How many findings of one kind are named.
const NAMED_MAX: usize = 20;

/// Findings of one check, which are one line if there are none.
struct Tally {
    check: &'static str,
    looked_at: usize,
    found: Vec<Check>,
}

impl Tally {
    fn new(check: &'static str) -> Self {
        Self { check, looked_at: 0, found: vec![] }
    }

    fn add(&mut self, outcome: Outcome, what: String) {
        if self.found.len() < NAMED_MAX || outcome == Outcome::Failed {
            self.found.push(Check::new(self.check, outcome, what));
        }
    }

    fn finish(self, what: &str, into: &mut Vec<Check>) {
        if self.found.is_empty() {
            let what = format!("{} {what}", self.looked_at);
            into.push(Check::new(self.check, Outcome::Passed, what));
        }
        into.extend(self.found);
    }
}

/// Looks at all schemas that are not the server's own.
///
/// # Errors
/// Unavailable, if the server does not answer.
pub(super) async fn inspect(conn: &mut Conn) -> Result<Vec<Check>> {
    let mut checks = vec![];
    tables(conn, &mut checks).await?;
    foreign_keys(conn, &mut checks).await?;
    programs(conn, &mut checks).await?;
    Ok(checks)
}

/// Counts rows, finds the newest one, and has each table and view checked by the server.
async fn tables(conn: &mut Conn, checks: &mut Vec<Check>) -> Result<()> {
    let all: Vec<(String, String, String)> = ask::rows(
        conn,
        format!(
            "SELECT TABLE_SCHEMA, TABLE_NAME, TABLE_TYPE FROM information_schema.TABLES \
             WHERE TABLE_SCHEMA NOT IN ({SYSTEM_SCHEMAS}) AND TABLE_TYPE IN \
             ('BASE TABLE', 'SYSTEM VERSIONED', 'VIEW') ORDER BY 1, 2"
        ),
        || "list the tables".into(),
    )
    .await?;
    let (mut checked, mut views) = (Tally::new("check_table"), Tally::new("views"));
    for (schema, table, kind) in all {
        let name = format!("{schema}.{table}");
        let quoted = format!("{}.{}", identifier(&schema), identifier(&table));
        let is_view = kind == "VIEW";
        let tally = if is_view { &mut views } else { &mut checked };
        tally.looked_at += 1;
        let said: Vec<(String, String, String, String)> =
            ask::rows(conn, format!("CHECK TABLE {quoted}"), || format!("check {name}")).await?;
        for (_, _, kind, text) in said {
            let outcome = match kind.to_ascii_lowercase().as_str() {
                "status" if text == "OK" => continue,
                // The engine knows no such check.
                "note" => Outcome::Skipped,
                _ if is_view => Outcome::Inconclusive,
                "warning" => Outcome::Inconclusive,
                _ => Outcome::Failed,
            };
            tally.add(outcome, format!("{name}: {text}"));
        }
        if !is_view {
            checks.push(rows(conn, &schema, &table, &quoted).await?);
        }
    }
    checked.finish("tables have sound rows and indexes", checks);
    views.finish("views can be read", checks);
    Ok(())
}

/// How many rows a table has, and the newest one by its counter, its time or its key.
async fn rows(conn: &mut Conn, schema: &str, table: &str, quoted: &str) -> Result<Check> {
    let doing = || format!("count the rows of {schema}.{table}");
    let find = format!(
        "SELECT COLUMN_NAME FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = {} \
         AND TABLE_NAME = {} AND (EXTRA LIKE '%auto_increment%' OR COLUMN_KEY = 'PRI' \
         OR DATA_TYPE IN ('timestamp', 'datetime')) ORDER BY EXTRA LIKE '%auto_increment%' DESC, \
         DATA_TYPE IN ('timestamp', 'datetime') DESC, ORDINAL_POSITION LIMIT 1",
        literal(schema),
        literal(table)
    );
    let column: Option<String> = ask::first(conn, find, doing).await?;
    let newest = column.as_ref().map_or("NULL".into(), |column| {
        format!("CONVERT(CAST(MAX({}) AS CHAR) USING utf8mb4)", identifier(column))
    });
    let count = format!("SELECT COUNT(*), {newest} FROM {quoted}");
    let (rows, newest): (u64, Option<String>) =
        ask::first(conn, count, doing).await?.unwrap_or_default();
    let mut what = format!("{schema}.{table}: {rows} rows");
    if let (Some(column), Some(newest)) = (column, newest) {
        let newest: String = newest.chars().take(64).collect();
        what += &format!(", newest {column} {newest}");
    }
    Ok(Check::new("rows", Outcome::Passed, what))
}

/// A foreign key: the columns that refer, and those that they refer to.
#[derive(Default)]
struct Reference {
    child: String,
    parent: String,
    columns: Vec<(String, String)>,
}

/// Looks for rows that refer to nothing.
async fn foreign_keys(conn: &mut Conn, checks: &mut Vec<Check>) -> Result<()> {
    type Column = (String, String, String, String, String, String, String);
    let columns: Vec<Column> = ask::rows(
        conn,
        format!(
            "SELECT TABLE_SCHEMA, TABLE_NAME, CONSTRAINT_NAME, COLUMN_NAME, \
             REFERENCED_TABLE_SCHEMA, REFERENCED_TABLE_NAME, REFERENCED_COLUMN_NAME \
             FROM information_schema.KEY_COLUMN_USAGE WHERE REFERENCED_TABLE_NAME IS NOT NULL \
             AND TABLE_SCHEMA NOT IN ({SYSTEM_SCHEMAS}) ORDER BY 1, 2, 3, ORDINAL_POSITION"
        ),
        || "list the foreign keys".into(),
    )
    .await?;
    let mut keys: BTreeMap<String, Reference> = BTreeMap::new();
    for (schema, table, key, column, to_schema, to_table, to_column) in columns {
        let found = keys.entry(format!("{schema}.{table}.{key}")).or_default();
        found.child = format!("{}.{}", identifier(&schema), identifier(&table));
        found.parent = format!("{}.{}", identifier(&to_schema), identifier(&to_table));
        found.columns.push((identifier(&column), identifier(&to_column)));
    }
    let mut tally = Tally::new("foreign_keys");
    for (name, Reference { child, parent, columns }) in keys {
        tally.looked_at += 1;
        let given: Vec<String> =
            columns.iter().map(|(c, _)| format!("c.{c} IS NOT NULL")).collect();
        let same: Vec<String> = columns.iter().map(|(c, p)| format!("p.{p} = c.{c}")).collect();
        let ask = format!(
            "SELECT COUNT(*) FROM {child} c WHERE {} AND NOT EXISTS \
             (SELECT 1 FROM {parent} p WHERE {})",
            given.join(" AND "),
            same.join(" AND ")
        );
        let orphans: Result<Option<u64>> =
            ask::first(conn, ask, || format!("look for orphans of {name}")).await;
        match orphans {
            Ok(orphans) => match orphans.unwrap_or(0) {
                0 => {}
                count => {
                    let what =
                        format!("{name}: {count} rows refer to nothing, here or at the source");
                    tally.add(Outcome::Inconclusive, what);
                }
            },
            // A parent that is not there, which foreign_key_checks = 0 allows.
            Err(error) => tally.add(Outcome::Inconclusive, format!("{name}: {error}")),
        }
    }
    tally.finish("foreign keys lead somewhere", checks);
    Ok(())
}

/// Has the server read each routine, trigger and event, for which it parses them.
async fn programs(conn: &mut Conn, checks: &mut Vec<Check>) -> Result<()> {
    let sources = [
        ("routines", "ROUTINE_TYPE, ROUTINE_SCHEMA, ROUTINE_NAME", "ROUTINES", "ROUTINE_SCHEMA"),
        ("triggers", "'TRIGGER', TRIGGER_SCHEMA, TRIGGER_NAME", "TRIGGERS", "TRIGGER_SCHEMA"),
        ("events", "'EVENT', EVENT_SCHEMA, EVENT_NAME", "EVENTS", "EVENT_SCHEMA"),
    ];
    for (check, columns, from, schema) in sources {
        let all: Vec<(String, String, String)> = ask::rows(
            conn,
            format!(
                "SELECT {columns} FROM information_schema.{from} \
                 WHERE {schema} NOT IN ({SYSTEM_SCHEMAS}) ORDER BY 1, 2, 3"
            ),
            || format!("list the {check}"),
        )
        .await?;
        let mut tally = Tally::new(check);
        for (kind, schema, name) in all {
            tally.looked_at += 1;
            let show = format!("SHOW CREATE {kind} {}.{}", identifier(&schema), identifier(&name));
            let doing = || format!("{schema}.{name}");
            if let Err(error) = ask::rows::<Row>(conn, show, doing).await {
                tally.add(Outcome::Failed, error.to_string());
            }
        }
        tally.finish(&format!("{check} can be read"), checks);
    }
    Ok(())
}

/// A string literal, for the `sql_mode` that the target's connections have.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}
