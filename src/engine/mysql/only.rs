//! Some schemas of many: what is not wanted is taken away again, once everything is there.
//!
//! The whole log is replayed, so that what is kept is exactly what it was, whatever the format of
//! the log and wherever statements, triggers and routines reach. Filters of the replica would
//! skip by the names that stand in a statement: a table that was renamed from one schema into
//! another would be missing, and a statement that read another schema would find nothing.
//!
//! **Invariant:** what is kept does not depend on what was dropped: a foreign key that leads out is
//! a refusal by name; definitions that mention another schema are told.

use super::accounts::identifier;
use super::baseline::SYSTEM_SCHEMAS;
use super::{ask, groups, half};
use crate::error::{Class, Error, Result};
use mysql_async::Conn;

/// Where definitions stand that may reach into other schemas: what it is, and schema, name and
/// text of each.
const DEFINITIONS: [(&str, &str); 4] = [
    ("view", "SELECT TABLE_SCHEMA, TABLE_NAME, VIEW_DEFINITION FROM information_schema.VIEWS"),
    (
        "trigger",
        "SELECT TRIGGER_SCHEMA, TRIGGER_NAME, ACTION_STATEMENT FROM information_schema.TRIGGERS",
    ),
    (
        "routine",
        "SELECT ROUTINE_SCHEMA, ROUTINE_NAME, ROUTINE_DEFINITION FROM information_schema.ROUTINES",
    ),
    ("event", "SELECT EVENT_SCHEMA, EVENT_NAME, EVENT_DEFINITION FROM information_schema.EVENTS"),
];

/// Whether these can be databases that are restored alone.
///
/// # Errors
/// Usage, naming the one that cannot.
pub fn check_databases(names: &[String]) -> Result<()> {
    for (index, name) in names.iter().enumerate() {
        if name.is_empty() {
            return Err(Error::usage("a database has no name")
                .hint("name it as SHOW DATABASES does, or leave it away"));
        }
        if SYSTEM_SCHEMAS.contains(&format!("'{}'", name.to_lowercase())) {
            return Err(Error::usage(format!("{name} is the server's own database"))
                .hint("accounts are restored whatever databases are chosen"));
        }
        if names.iter().take(index).any(|other| other == name) {
            return Err(
                Error::usage(format!("database {name} is named twice")).hint("name each one once")
            );
        }
    }
    Ok(())
}

/// Refuses foreign keys that lead from the wanted schemas to others.
///
/// # Errors
/// Refused, with the tables on both sides.
pub(super) async fn check_foreign_keys(conn: &mut Conn, wanted: &[String]) -> Result<()> {
    let keys = groups::foreign_keys(conn).await?;
    let out = keys.iter().find(|(from, _, to, _)| wanted.contains(from) && !wanted.contains(to));
    let Some((schema, table, other, parent)) = out else { return Ok(()) };
    Err(Error::refused(format!(
        "{schema}.{table} has a foreign key to {other}.{parent}, which is not among the databases"
    ))
    .hint(format!("restore both: --database {schema} --database {other}")))
}

/// Drops all schemas but the wanted ones. Says what it did, and what to look at.
///
/// # Errors
/// Finding, if one of them is not there; refused, as [`check_foreign_keys`].
pub(super) async fn keep(conn: &mut Conn, wanted: &[String]) -> Result<String> {
    let schemas: Vec<String> = ask::rows(
        conn,
        format!(
            "SELECT SCHEMA_NAME FROM information_schema.SCHEMATA \
             WHERE SCHEMA_NAME NOT IN ({SYSTEM_SCHEMAS}) ORDER BY 1"
        ),
        || "list the schemas".into(),
    )
    .await?;
    let schemas: Vec<String> = schemas.into_iter().filter(|s| s != half::SCHEMA).collect();
    if let Some(missing) = wanted.iter().find(|name| !schemas.contains(name)) {
        let there = wanted.iter().filter(|name| schemas.contains(name));
        let there: Vec<String> = there.map(|name| format!("--database {name}")).collect();
        return Err(Error::new(
            Class::Finding,
            format!("there was no database {missing} then; there were: {}", schemas.join(", ")),
        )
        .hint(if there.is_empty() {
            "restore all of them: --all-databases".to_owned()
        } else {
            format!("restore those that were there: {}", there.join(" "))
        }));
    }
    check_foreign_keys(conn, wanted).await?;
    let others: Vec<String> = schemas.into_iter().filter(|s| !wanted.contains(s)).collect();
    let mut said = format!("only {} kept", wanted.join(", "));
    for reaching in reaching_out(conn, wanted, &others).await? {
        tracing::warn!("{reaching}");
        said.push_str(", ");
        said.push_str(&reaching);
    }
    // A prepared XA transaction may hold a table: then this fails, and does not wait for it.
    for setting in ["sql_log_bin = 0", "foreign_key_checks = 0", "lock_wait_timeout = 60"] {
        ask::run(conn, format!("SET SESSION {setting}"), || format!("set {setting}")).await?;
    }
    for schema in &others {
        ask::run(conn, format!("DROP DATABASE {}", identifier(schema)), || {
            format!("drop {schema}, which is not wanted")
        })
        .await?;
    }
    ask::run(conn, "SET SESSION foreign_key_checks = 1", || "set foreign_key_checks".into())
        .await?;
    Ok(said)
}

async fn reaching_out(
    conn: &mut Conn,
    wanted: &[String],
    others: &[String],
) -> Result<Vec<String>> {
    let mut reaching = Vec::new();
    for (what, query) in DEFINITIONS {
        let rows: Vec<(String, String, Option<String>)> =
            ask::rows(conn, query, || format!("read the definition of each {what}")).await?;
        for (schema, name, text) in rows {
            let text = text.unwrap_or_default();
            if !wanted.contains(&schema) {
                continue;
            }
            reaching.extend(
                others
                    .iter()
                    .filter(|other| mentions(&text, other))
                    .map(|other| format!("{what} {schema}.{name} mentions {other}")),
            );
        }
    }
    Ok(reaching)
}

/// Whether a definition has something like `schema.name` in it, quoted or not. It may stand in a
/// comment: then it is told for nothing.
fn mentions(text: &str, schema: &str) -> bool {
    let (text, schema) = (text.to_lowercase(), schema.to_lowercase());
    let in_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$');
    text.match_indices(&*schema).any(|(at, found)| {
        let before = text.get(..at).unwrap_or_default();
        let before = before.strip_suffix(['`', '"']).unwrap_or(before).chars().next_back();
        let behind = text.get(at + found.len()..).unwrap_or_default();
        let behind = behind.strip_prefix(['`', '"']).unwrap_or(behind).trim_start();
        !before.is_some_and(|c| in_name(c) || c == '.') && behind.starts_with('.')
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("select `other`.`t`.`a` AS `a` from `other`.`t`", true)]
    #[case("INSERT INTO Other . t VALUES (1)", true)]
    #[case("CALL other.p()", true)]
    #[case("select `another`.`t`.`a` from `another`.`t`", false)]
    #[case("select `shop`.`other`.`a` from shop.other", false)]
    #[case("SET NEW.s = 'other'", false)]
    #[case("", false)]
    fn a_definition_that_reaches_into_another_schema_is_seen(
        #[case] text: &str,
        #[case] found: bool,
    ) {
        assert_eq!(mentions(text, "other"), found);
    }
}
