//! Rows of tables that a dump program does not write exactly, written here instead.
//!
//! Values are asked for as the server stores them: a FLOAT as a DOUBLE with all its digits, an
//! ENUM and SET by its number, a text in its own character set. Generated columns are left out,
//! as everywhere in a dump: the server makes them anew from columns that are now exact.
//!
//! The rows are read on a connection of its own, whose snapshot is of the same instant as the
//! program's (see [`lock`](super::lock) and [`quiet`](super::quiet)).
//!
//! **Invariant:** a column of a type that is not known is an error, never a guess. Memory is
//! bounded by the largest row.

use super::super::accounts::identifier;
use super::super::{ask, digest, sql};
use super::place::LogEnd;
use super::quiet::snapshot_place;
use super::splice::{Care, Name};
use super::{PIECE_BYTES, send};
use crate::engine::Endpoint;
use crate::error::{Context, Error, Result};
use crate::record::Contents;
use bytes::{Bytes, BytesMut};
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Row, Value};
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::mpsc;

/// From this length on, in bytes, a statement gets no further row.
const STATEMENT_BYTES: usize = 1 << 20;
/// The largest packet that a server sends, in bytes.
const PACKET_BYTES: usize = 1 << 30;

/// How a column is asked for, and how its values are written.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    /// A number in digits, as it comes.
    Digits,
    /// By its number: BIT, ENUM, SET.
    Number,
    /// FLOAT and DOUBLE: in quotes, since `-0` alone is an integer.
    Real,
    /// In quotes, with escapes.
    Text,
    /// A text that is not in UTF-8: its bytes, with the name of its character set.
    Charset(String),
    /// Bytes.
    Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Column {
    name: String,
    form: Form,
}

/// The tables that need care, and the connection that reads those that are replaced.
#[derive(Debug)]
pub(super) struct Exact {
    conn: Conn,
    tables: BTreeMap<Name, Table>,
    /// The schemas that are dumped.
    schemas: Vec<String>,
    /// Whether the snapshot is open.
    is_open: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Table {
    care: Care,
    columns: Vec<Column>,
    /// Whether it keeps the rows that it had.
    history: bool,
}

impl Exact {
    /// Connects, and finds the tables among those of `schemas`.
    ///
    /// # Errors
    /// Refused, if such a table has a column of a type that is not known.
    pub(super) async fn open(endpoint: &Endpoint, schemas: &[String]) -> Result<Self> {
        let options = sql::options(endpoint).max_allowed_packet(Some(PACKET_BYTES));
        let mut conn =
            Conn::new(options).await.map_err(|error| sql::failed(&endpoint.to_string(), error))?;
        ask::keep_open(&mut conn).await?;
        prepare(&mut conn).await?;
        let tables = tables(&mut conn, schemas).await?;
        Ok(Self { conn, tables, schemas: schemas.to_vec(), is_open: false })
    }

    /// Opens the snapshot, or a new one.
    pub(super) async fn snapshot(&mut self) -> Result<()> {
        let opening = || "open a snapshot".to_owned();
        for statement in [
            // Converts nothing, from here on: bytes as they are stored.
            "SET SESSION character_set_results = NULL",
            "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
            "START TRANSACTION WITH CONSISTENT SNAPSHOT",
        ] {
            ask::run(&mut self.conn, statement, opening).await?;
        }
        self.is_open = true;
        Ok(())
    }

    /// Ends the snapshot, which is not of the instant of the others.
    pub(super) async fn close(&mut self) -> Result<()> {
        self.is_open = false;
        ask::run(&mut self.conn, "ROLLBACK", || "end a snapshot".into()).await
    }

    /// Counts and digests all rows in the snapshot, after everything else was read. A baseline
    /// without this is as good: `None` if there is no snapshot, or somebody changed a definition.
    pub(super) async fn contents(mut self) -> Option<Contents> {
        if !self.is_open {
            return None;
        }
        let counted = digest::contents(&mut self.conn, &self.schemas).await;
        let counted = counted.inspect_err(|error| {
            tracing::warn!("the baseline is stored without the digests of its tables: {error}");
        });
        counted.ok()
    }

    /// The place of the snapshot, on a server that tells it.
    pub(super) async fn place(&mut self) -> Result<Option<LogEnd>> {
        snapshot_place(&mut self.conn).await
    }

    /// Whether there are rows to be read here, so that a snapshot is needed.
    pub(super) fn has_rows(&self) -> bool {
        self.tables.values().any(|table| table.care == Care::Replace)
    }

    /// What becomes of which table.
    pub(super) fn cares(&self) -> Vec<(Name, Care)> {
        self.tables.iter().map(|(name, table)| (name.clone(), table.care)).collect()
    }

    /// Writes the rows of a table as statements, in pieces.
    pub(super) async fn copy(&mut self, name: &Name, into: &mpsc::Sender<Bytes>) -> Result<()> {
        let Some(table) = self.tables.get(name) else {
            return Err(Error::bug("rows of a table that is not known"));
        };
        let failed = || format!("read the rows of {}.{}", name.0, name.1);
        let (select, head) = statements(name, table);
        let mut rows = self.conn.query_iter(select).await.unavailable(failed)?;
        let mut out = BytesMut::new();
        // Length of the statement that is being written; 0 between two.
        let mut statement = 0;
        while let Some(row) = rows.next().await.unavailable(failed)? {
            let before = out.len();
            out.extend_from_slice(if statement == 0 { head.as_bytes() } else { b"," });
            write_row(&row, &table.columns, &mut out)
                .map_err(|error| error.context(format!("{}.{}", name.0, name.1)))?;
            statement += out.len() - before;
            if statement >= STATEMENT_BYTES {
                out.extend_from_slice(b";\n");
                statement = 0;
            }
            if out.len() >= PIECE_BYTES {
                send(into, out.split().freeze()).await?;
            }
        }
        if statement > 0 {
            out.extend_from_slice(b";\n");
        }
        send(into, out.freeze()).await
    }
}

/// Makes the answers depend on nothing but the content.
async fn prepare(conn: &mut Conn) -> Result<()> {
    let setting = || "set up a session".to_owned();
    for statement in [
        "SET SESSION sql_mode = '', time_zone = '+00:00', sql_select_limit = DEFAULT",
        // As long as the reader of a baseline may take.
        "SET SESSION net_write_timeout = 86400, net_read_timeout = 86400",
    ] {
        ask::run(conn, statement, setting).await?;
    }
    // What only some servers know: a limit on the time, and a column that hides itself.
    for statement in [
        "SET SESSION max_execution_time = 0",
        "SET SESSION max_statement_time = 0",
        "SET SESSION show_gipk_in_create_table_and_information_schema = ON",
    ] {
        let set = ask::run(conn, statement, setting).await;
        if ask::server_code(&set) != Some(1193) {
            set?;
        }
    }
    Ok(())
}

async fn tables(conn: &mut Conn, schemas: &[String]) -> Result<BTreeMap<Name, Table>> {
    type Found = (String, String, String, String, String, Option<String>, Option<String>, String);
    let rows: Vec<Found> = ask::rows(
        conn,
        "SELECT TABLE_SCHEMA, TABLE_NAME, COLUMN_NAME, LOWER(DATA_TYPE), COLUMN_TYPE, \
         CHARACTER_SET_NAME, GENERATION_EXPRESSION, TABLE_TYPE FROM information_schema.COLUMNS \
         JOIN (SELECT DISTINCT TABLE_SCHEMA, TABLE_NAME, TABLE_TYPE \
          FROM information_schema.COLUMNS JOIN \
          information_schema.TABLES USING (TABLE_SCHEMA, TABLE_NAME) \
          WHERE TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED') AND ENGINE <> 'MRG_MyISAM' \
          AND COALESCE(GENERATION_EXPRESSION, '') = '' \
          AND (DATA_TYPE IN ('float', 'double') \
               OR DATA_TYPE IN ('enum', 'set') AND COLUMN_TYPE LIKE '%''''%')) AS odd \
         USING (TABLE_SCHEMA, TABLE_NAME) ORDER BY TABLE_SCHEMA, TABLE_NAME, ORDINAL_POSITION",
        || "look for columns that need care".into(),
    )
    .await?;
    let mut tables: BTreeMap<Name, Table> = BTreeMap::new();
    let mut unknown = BTreeMap::new();
    let mut named_periods = BTreeSet::new();
    for (schema, table, column, kind, full, charset, generation, table_type) in rows {
        if !schemas.contains(&schema) {
            continue;
        }
        let name = (schema, table);
        let history = table_type == "SYSTEM VERSIONED";
        let found = tables.entry(name.clone()).or_insert(Table {
            care: Care::Signs,
            columns: vec![],
            history,
        });
        let mut form = form(&kind, charset);
        match generation.as_deref().unwrap_or_default() {
            "" => {}
            // Generated, but given for a row of the history. Numbers of transactions cannot be.
            "ROW START" | "ROW END" => {
                named_periods.insert(name.clone());
                form = form.filter(|form| *form == Form::Text);
            }
            _ => continue,
        }
        let ambiguous = matches!(kind.as_str(), "enum" | "set") && full.contains("''");
        if kind == "float" || ambiguous {
            found.care = Care::Replace;
        }
        match form {
            Some(form) => found.columns.push(Column { name: column, form }),
            None => drop(unknown.insert(name, (column, full))),
        }
    }
    for (name, table) in tables.iter_mut().filter(|(_, table)| table.history) {
        for column in ["row_start", "row_end"] {
            if !named_periods.contains(name) {
                table.columns.push(Column { name: column.into(), form: Form::Text });
            }
        }
    }
    for (name, (column, full)) in unknown {
        if tables.get(&name).is_some_and(|table| table.care == Care::Replace) {
            return Err(Error::refused(format!(
                "{}.{} has a FLOAT and a column {column} of type {full}, which pitr cannot read \
                 exactly",
                name.0, name.1
            )));
        }
    }
    Ok(tables)
}

/// How a column of a type is written; `None` for a type that is not known.
fn form(kind: &str, charset: Option<String>) -> Option<Form> {
    Some(match kind {
        "tinyint" | "smallint" | "mediumint" | "int" | "bigint" | "decimal" | "year" => {
            Form::Digits
        }
        "float" | "double" => Form::Real,
        "bit" | "enum" | "set" => Form::Number,
        "char" | "varchar" | "tinytext" | "text" | "mediumtext" | "longtext" => {
            match charset.as_deref()? {
                "utf8mb4" | "utf8mb3" | "utf8" | "ascii" => Form::Text,
                _ => Form::Charset(charset?),
            }
        }
        "date" | "time" | "datetime" | "timestamp" | "json" | "uuid" | "inet4" | "inet6" => {
            Form::Text
        }
        "binary" | "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" | "vector"
        | "geometry" | "point" | "linestring" | "polygon" | "multipoint" | "multilinestring"
        | "multipolygon" | "geometrycollection" | "geomcollection" => Form::Bytes,
        _ => return None,
    })
}

/// The question for a table's rows, and how a statement with its rows begins.
fn statements((schema, name): &Name, table: &Table) -> (String, String) {
    let columns = &table.columns;
    let expression = |column: &Column| {
        let name = identifier(&column.name);
        match column.form {
            // As text, FLOAT has six digits and FLOAT(m,d) has d decimals.
            Form::Real => format!("{name} * 1e0"),
            Form::Number => format!("CAST({name} AS UNSIGNED)"),
            _ => name,
        }
    };
    let expressions: Vec<String> = columns.iter().map(expression).collect();
    let names: Vec<String> = columns.iter().map(|column| identifier(&column.name)).collect();
    let (schema, name) = (identifier(schema), identifier(name));
    let period = if table.history { " FOR SYSTEM_TIME ALL" } else { "" };
    (
        format!("SELECT {} FROM {schema}.{name}{period}", expressions.join(",")),
        format!("INSERT INTO {name} ({}) VALUES ", names.join(",")),
    )
}

fn write_row(row: &Row, columns: &[Column], out: &mut BytesMut) -> Result<()> {
    let unexpected = |column: &Column| {
        Error::unavailable(format!("a value of column {} is of another form", column.name))
    };
    for (index, column) in columns.iter().enumerate() {
        out.extend_from_slice(if index == 0 { b"(" } else { b"," });
        match row.as_ref(index) {
            Some(Value::NULL) => out.extend_from_slice(b"NULL"),
            Some(Value::Bytes(bytes)) => match &column.form {
                Form::Digits | Form::Number => {
                    if bytes.is_empty() || !bytes.iter().all(|b| b"0123456789-.".contains(b)) {
                        return Err(unexpected(column));
                    }
                    out.extend_from_slice(bytes);
                }
                Form::Real | Form::Text => quote(bytes, out),
                Form::Charset(name) => {
                    out.extend_from_slice(b"_");
                    out.extend_from_slice(name.as_bytes());
                    out.extend_from_slice(b" ");
                    hex(bytes, out);
                }
                Form::Bytes => hex(bytes, out),
            },
            _ => return Err(unexpected(column)),
        }
    }
    out.extend_from_slice(b")");
    Ok(())
}

/// A text in quotes, for a session without `NO_BACKSLASH_ESCAPES`.
fn quote(bytes: &[u8], out: &mut BytesMut) {
    out.extend_from_slice(b"'");
    for part in bytes.split_inclusive(|byte| b"\0\n\r\\'\"\x1a".contains(byte)) {
        let escaped: Option<&[u8]> = match part.last() {
            Some(0) => Some(b"\\0"),
            Some(b'\n') => Some(b"\\n"),
            Some(b'\r') => Some(b"\\r"),
            Some(b'\\') => Some(b"\\\\"),
            Some(b'\'') => Some(b"\\'"),
            Some(b'"') => Some(b"\\\""),
            Some(0x1a) => Some(b"\\Z"),
            _ => None,
        };
        match (escaped, part.split_last()) {
            (Some(escaped), Some((_, plain))) => {
                out.extend_from_slice(plain);
                out.extend_from_slice(escaped);
            }
            _ => out.extend_from_slice(part),
        }
    }
    out.extend_from_slice(b"'");
}

fn hex(bytes: &[u8], out: &mut BytesMut) {
    if bytes.is_empty() {
        out.extend_from_slice(b"''");
        return;
    }
    let digit = |half: u8| if half < 10 { b'0' + half } else { b'A' - 10 + half };
    out.reserve(2 + 2 * bytes.len());
    out.extend_from_slice(b"0x");
    for byte in bytes {
        out.extend_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
    }
}
