//! The digest of a MySQL server: definitions and rows of every user schema, and its accounts.
//!
//! Rows are hashed one by one as they arrive, so memory is bounded by the largest row. Values are
//! taken as the bytes that the server stores: without conversion of character sets, FLOAT and
//! DOUBLE with all their digits, ENUM and SET as numbers, geometries with their SRID.
//!
//! Left out is what a faithful copy need not share: AUTO_INCREMENT counters, creation times,
//! index statistics. What stands outside of the schemas and accounts (SRS, servers, loadable
//! functions, resource groups) is not read. Values of virtual generated columns are left out too, because they follow
//! from the definition and the other columns. Inside of JSON, values of types that have no JSON
//! notation (a date, an opaque binary) count as their text.

use crate::engine::digest::{Digest, Sum, put};
use crate::error::{Context, Error, Result};
use crate::record::{Contents, TableContents};
use blake3::Hasher;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Row, Value};

/// Digests all user schemas: their definitions, tables, rows, views, routines, triggers, events.
///
/// All rows are read in one consistent snapshot. The definitions are not part of it, so nobody
/// may change them meanwhile. `conn` should be a connection of its own: its session settings and
/// its default schema are changed.
///
/// # Errors
/// Unavailable, if the server cannot be asked. Refused, if the account may not see a definition.
pub async fn digest(conn: &mut Conn) -> Result<Digest> {
    let mut digest = Digest::default();
    prepare(conn).await?;
    run(conn, "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ").await?;
    run(conn, "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY").await?;
    for schema in names(conn, SCHEMAS, &[]).await? {
        digest_schema(conn, &mut digest, &schema).await?;
    }
    run(conn, "COMMIT").await?;
    Ok(digest)
}

/// Digests the rows of every InnoDB table of `schemas`, in whatever transaction is open on `conn`:
/// in its snapshot, if it has one. The session's settings and its default schema are changed.
///
/// # Errors
/// Unavailable, if the server cannot be asked, or a definition is newer than the snapshot.
pub(super) async fn contents(conn: &mut Conn, schemas: &[String]) -> Result<Contents> {
    const TABLES: &str = "SELECT table_name, table_type FROM information_schema.tables WHERE \
         table_type IN ('BASE TABLE', 'SYSTEM VERSIONED') AND engine = 'InnoDB' AND table_schema = ";
    prepare(conn).await?;
    let mut contents = Contents::default();
    for schema in schemas {
        for pair in names(conn, TABLES, &[schema]).await?.chunks_exact(2) {
            let [table, kind] = pair else { continue };
            let full = format!("{}.{}", quote(schema), quote(table));
            let query = rows_query(conn, schema, table, &full, kind).await?;
            let sum = sum_rows(conn, &query).await?;
            contents.tables.push(TableContents {
                name: format!("{schema}.{table}"),
                rows: sum.elements(),
                digest: sum.hash().to_hex().to_string(),
            });
        }
    }
    contents.tables.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(contents)
}

/// All schemas that are not the server's own.
pub(super) async fn schemas(conn: &mut Conn) -> Result<Vec<String>> {
    names(conn, SCHEMAS, &[]).await
}

/// Digests the accounts and roles with their grants, except for those of the server itself.
///
/// # Errors
/// As [`digest`].
pub async fn digest_accounts(conn: &mut Conn) -> Result<Digest> {
    const ACCOUNTS: &str = "SELECT user, host FROM mysql.user WHERE user NOT IN \
         ('mysql.sys', 'mysql.session', 'mysql.infoschema', 'mariadb.sys')";
    let mut digest = Digest::default();
    let is_maria = prepare(conn).await?;
    // Roles of MariaDB have no host, and no definition besides their grants.
    let users = if is_maria { format!("{ACCOUNTS} AND is_role <> 'Y'") } else { ACCOUNTS.into() };
    for account in names(conn, &users, &[]).await?.chunks_exact(2) {
        let [user, host] = account else { continue };
        let account = format!("{}@{}", literal(user), literal(host));
        let definition = show(conn, &format!("SHOW CREATE USER {account}"), 1).await?;
        digest.insert(format!("account {account}"), definition);
        let grants = sum_rows(conn, &format!("SHOW GRANTS FOR {account}")).await?;
        digest.insert(format!("grants of {account}"), grants);
    }
    if is_maria {
        let roles = "SELECT user FROM mysql.user WHERE is_role = 'Y'";
        for role in names(conn, roles, &[]).await? {
            // The one that everybody has is a keyword.
            let name = if role == "PUBLIC" { role.clone() } else { quote(&role) };
            let grants = sum_rows(conn, &format!("SHOW GRANTS FOR {name}")).await?;
            digest.insert(format!("role {role}"), grants);
        }
    }
    Ok(digest)
}

/// The last one marks a target that is being restored, and is gone at the end (see `half`).
const SCHEMAS: &str = "SELECT schema_name FROM information_schema.schemata WHERE schema_name \
     NOT IN ('mysql', 'information_schema', 'performance_schema', 'sys', \
     'pitr_unfinished_restore')";
const TABLES: &str =
    "SELECT table_name, table_type FROM information_schema.tables WHERE table_schema = ";
const COLUMNS: &str = "SELECT column_name, data_type, extra, \
     COALESCE(generation_expression, '') FROM information_schema.columns \
     WHERE table_schema = ";
const ROUTINES: &str =
    "SELECT routine_type, routine_name FROM information_schema.routines WHERE routine_schema = ";
const TRIGGERS: &str = "SELECT trigger_name, event_manipulation, event_object_table, action_order, \
     action_statement, action_timing, sql_mode, definer, character_set_client, \
     collation_connection, database_collation FROM information_schema.triggers \
     WHERE trigger_schema = ";
const EVENTS: &str = "SELECT event_name, definer, time_zone, event_definition, event_type, \
     execute_at, interval_value, interval_field, sql_mode, starts, ends, status, on_completion, \
     event_comment, character_set_client, collation_connection, database_collation \
     FROM information_schema.events WHERE event_schema = ";

/// Makes the answers of a session depend on nothing but the content of the server.
/// Says whether it is a MariaDB.
async fn prepare(conn: &mut Conn) -> Result<bool> {
    // `character_set_results = NULL`: no conversion, the bytes as stored. The default schema
    // decides which names in a view come without their schema: here, all come with it.
    run(conn, "SET SESSION sql_mode = '', time_zone = '+00:00', character_set_results = NULL")
        .await?;
    run(conn, "SET SESSION sql_quote_show_create = 1, sql_select_limit = DEFAULT").await?;
    run(conn, "USE information_schema").await?;
    let version: Option<String> =
        conn.query_first("SELECT VERSION()").await.unavailable(|| "ask for the version".into())?;
    let is_maria = version.is_some_and(|version| version.contains("MariaDB"));
    if !is_maria {
        run(conn, "SET SESSION show_gipk_in_create_table_and_information_schema = ON").await?;
        run(conn, "SET SESSION print_identified_with_as_hex = ON, max_execution_time = 0").await?;
    }
    Ok(is_maria)
}

async fn digest_schema(conn: &mut Conn, digest: &mut Digest, schema: &str) -> Result<()> {
    let in_schema = literal(schema);
    let definition = show(conn, &format!("SHOW CREATE DATABASE {}", quote(schema)), 1).await?;
    digest.insert(format!("schema {schema}"), definition);

    for pair in names(conn, TABLES, &[schema]).await?.chunks_exact(2) {
        let [table, kind] = pair else { continue };
        let full = format!("{}.{}", quote(schema), quote(table));
        match kind.as_str() {
            "BASE TABLE" | "SYSTEM VERSIONED" | "SEQUENCE" => {
                let definition = table_definition(conn, &full).await?;
                digest.insert(format!("table {schema}.{table}"), definition);
                let query = rows_query(conn, schema, table, &full, kind).await?;
                let rows = sum_rows(conn, &query).await?;
                digest.insert(format!("rows of {schema}.{table}"), rows);
            }
            "VIEW" => {
                let definition = show(conn, &format!("SHOW CREATE VIEW {full}"), 1).await?;
                digest.insert(format!("view {schema}.{table}"), definition);
            }
            _ => {
                let message = format!("{schema}.{table} is a {kind}, which pitr cannot digest");
                return Err(Error::refused(message));
            }
        }
    }
    for pair in names(conn, ROUTINES, &[schema]).await?.chunks_exact(2) {
        let [kind, routine] = pair else { continue };
        let query = format!("SHOW CREATE {kind} {}.{}", quote(schema), quote(routine));
        let definition = show(conn, &query, 2).await?;
        digest.insert(format!("{} {schema}.{routine}", kind.to_lowercase()), definition);
    }
    for (kind, query) in [("trigger", TRIGGERS), ("event", EVENTS)] {
        for row in rows(conn, &format!("{query}{in_schema}")).await? {
            let name = text(&row, 0, query)?;
            digest.insert(format!("{kind} {schema}.{name}"), Sum::of(hash_row(&row, query)?));
        }
    }
    Ok(())
}

/// The definition of a table, without its AUTO_INCREMENT counter.
async fn table_definition(conn: &mut Conn, full: &str) -> Result<Sum> {
    let query = format!("SHOW CREATE TABLE {full}");
    let answer = rows(conn, &query).await?;
    let row = answer.first().ok_or_else(|| unreadable(&query))?;
    let definition = row.as_ref(1).and_then(bytes).ok_or_else(|| unreadable(&query))?;
    Ok(Sum::of(blake3::hash(&without_counter(definition))))
}

/// Cuts ` AUTO_INCREMENT=n` out of the table options: the line that begins with `)`. Texts in
/// quotes on that line come behind it.
fn without_counter(definition: &[u8]) -> Vec<u8> {
    const OPTION: &[u8] = b" AUTO_INCREMENT=";
    let mut kept = Vec::with_capacity(definition.len());
    for line in definition.split_inclusive(|&byte| byte == b'\n') {
        let options = line.split(|&byte| byte == b'\'').next().unwrap_or_default();
        let at = options.windows(OPTION.len()).position(|window| window == OPTION);
        match at.and_then(|at| line.split_at_checked(at)) {
            Some((before, option)) if line.starts_with(b")") => {
                let value = option.get(OPTION.len()..).unwrap_or_default();
                let digits = value.iter().take_while(|byte| byte.is_ascii_digit()).count();
                kept.extend_from_slice(before);
                kept.extend_from_slice(value.get(digits..).unwrap_or_default());
            }
            _ => kept.extend_from_slice(line),
        }
    }
    kept
}

/// The query that gives every stored value of a table, invisible columns included.
async fn rows_query(
    conn: &mut Conn,
    schema: &str,
    table: &str,
    full: &str,
    table_kind: &str,
) -> Result<String> {
    let query = format!(
        "{COLUMNS}{} AND table_name = {} ORDER BY ordinal_position",
        literal(schema),
        literal(table)
    );
    let mut selected = vec![];
    let mut period_is_named = false;
    for row in rows(conn, &query).await? {
        period_is_named |= text(&row, 3, &query)? == "ROW START";
        let column = quote(&text(&row, 0, &query)?);
        let kind = text(&row, 1, &query)?.to_lowercase();
        if text(&row, 2, &query)?.contains("VIRTUAL GENERATED") {
            continue;
        }
        selected.push(match kind.as_str() {
            // As text, FLOAT has 6 digits and FLOAT(m,d) has d decimals; an expression has all.
            "float" | "double" => format!("{column} * 1e0"),
            // The number tells the empty error value from a member that is an empty string.
            // As an integer: a SET of 64 members does not fit into a DOUBLE.
            "enum" | "set" => format!("CAST({column} AS UNSIGNED)"),
            _ => column,
        });
    }
    if selected.is_empty() {
        return Err(unreadable(&query));
    }
    if table_kind == "SYSTEM VERSIONED" {
        // With the rows that were, and from when to when they were.
        if !period_is_named {
            selected.extend(["row_start", "row_end"].map(String::from));
        }
        let selected = selected.join(", ");
        return Ok(format!("SELECT {selected} FROM {full} FOR SYSTEM_TIME ALL"));
    }
    Ok(format!("SELECT {} FROM {full}", selected.join(", ")))
}

/// Adds up the rows of a query as they arrive.
async fn sum_rows(conn: &mut Conn, query: &str) -> Result<Sum> {
    let failed = || format!("run {query:.200}");
    let mut sum = Sum::default();
    let mut result = conn.query_iter(query).await.unavailable(failed)?;
    while let Some(row) = result.next().await.unavailable(failed)? {
        sum.add(hash_row(&row, query)?);
    }
    Ok(sum)
}

/// Hashes the answer to a SHOW CREATE statement, whose column `definition` must be readable.
async fn show(conn: &mut Conn, query: &str, definition: usize) -> Result<Sum> {
    let answer = rows(conn, query).await?;
    let [row] = answer.as_slice() else { return Err(unreadable(query)) };
    // SHOW CREATE USER has one column only.
    let definition = definition.min(row.len().saturating_sub(1));
    row.as_ref(definition).and_then(bytes).ok_or_else(|| unreadable(query))?;
    Ok(Sum::of(hash_row(row, query)?))
}

fn hash_row(row: &Row, query: &str) -> Result<blake3::Hash> {
    let mut hasher = Hasher::new();
    for column in 0..row.len() {
        match row.as_ref(column) {
            Some(Value::NULL) => {
                hasher.update(&[0]);
            }
            Some(Value::Bytes(bytes)) => {
                hasher.update(&[1]);
                put(&mut hasher, bytes);
            }
            // The text protocol has no other values.
            Some(_) | None => return Err(unreadable(query)),
        }
    }
    Ok(hasher.finalize())
}

/// Names that a query about `schema` gives, all columns of all rows in one list, in order.
async fn names(conn: &mut Conn, query: &str, schema: &[&str]) -> Result<Vec<String>> {
    let query = match schema {
        [schema] => format!("{query}{}", literal(schema)),
        _ => query.to_owned(),
    };
    let mut names = vec![];
    for row in rows(conn, &query).await? {
        for column in 0..row.len() {
            names.push(text(&row, column, &query)?);
        }
    }
    Ok(names)
}

async fn rows(conn: &mut Conn, query: &str) -> Result<Vec<Row>> {
    conn.query(query).await.unavailable(|| format!("run {query:.200}"))
}

async fn run(conn: &mut Conn, statement: &str) -> Result<()> {
    conn.query_drop(statement).await.unavailable(|| format!("run {statement:.200}"))
}

fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::Bytes(bytes) => Some(bytes),
        _ => None,
    }
}

fn text(row: &Row, column: usize, query: &str) -> Result<String> {
    let bytes = row.as_ref(column).and_then(bytes).ok_or_else(|| unreadable(query))?;
    String::from_utf8(bytes.to_vec()).map_err(|_| unreadable(query))
}

fn unreadable(query: &str) -> Error {
    Error::refused(format!("{query:.200}: the definition cannot be read"))
        .hint("use an account with all privileges, such as root")
}

/// An identifier in backticks.
fn quote(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// A string literal, for the `sql_mode` that [`prepare`] sets.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::plain(") ENGINE=InnoDB AUTO_INCREMENT=17 CHARSET=x", ") ENGINE=InnoDB CHARSET=x")]
    #[case::none(") ENGINE=InnoDB CHARSET=x", ") ENGINE=InnoDB CHARSET=x")]
    #[case::last(") ENGINE=InnoDB AUTO_INCREMENT=3", ") ENGINE=InnoDB")]
    #[case::comment(
        ") ENGINE=InnoDB COMMENT=' AUTO_INCREMENT=3'",
        ") ENGINE=InnoDB COMMENT=' AUTO_INCREMENT=3'"
    )]
    #[case::column(
        "  `a` int DEFAULT ' AUTO_INCREMENT=3'",
        "  `a` int DEFAULT ' AUTO_INCREMENT=3'"
    )]
    #[case::partitions(") E AUTO_INCREMENT=9\n/*!50100 PARTITION */", ") E\n/*!50100 PARTITION */")]
    fn the_counter_is_cut_out_of_the_options_only(#[case] definition: &str, #[case] kept: &str) {
        assert_eq!(String::from_utf8(without_counter(definition.as_bytes())).unwrap(), kept);
    }
}
