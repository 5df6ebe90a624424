//! What others find in exported files: the crate `mysql_cdc`, an independent reader of binlog
//! files, finds the events that the server's own tool finds, and the rows that were written.
//!
//! Kept out is what `mysql_cdc` 0.2.1 does not read: rows of 16 MiB and more, VECTOR columns,
//! negative TIMEs, lists of GTIDs with tags, statements and VARBINARY that are not UTF-8. Of compressed
//! transactions and row events, and of partial JSON, it gives heads without rows.

use crate::export::{events, until_durable};
use crate::instants::until_windows;
use crate::support::{Mariadbd, Mysqld, Pitr};
use mysql_cdc::binlog_reader::BinlogReader;
use mysql_cdc::events::binlog_event::BinlogEvent;
use mysql_cdc::events::row_events::mysql_value::MySqlValue;
use mysql_cdc::events::row_events::row_data::RowData;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

/// Rows inserted, updated and deleted in each table.
type Rows = BTreeMap<String, [usize; 3]>;

/// What a reader finds in a file.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    /// Of each event: where it begins, where its head says that it ends, what it is, and which
    /// table it maps.
    events: Vec<(u64, u64, String)>,
    rows: Rows,
}

/// Where an event of one row stands in [`Rows`].
const CHANGES: [&str; 3] = ["Write_rows", "Update_rows", "Delete_rows"];

/// The name that the servers' tools print for an event.
fn name(kind: u8) -> &'static str {
    match kind {
        2 => "Query",
        3 => "Stop",
        4 => "Rotate",
        5 => "Intvar",
        13 => "Rand",
        14 => "User_var",
        15 => "Start",
        16 => "Xid",
        19 => "Table_map",
        23 | 30 | 166 => CHANGES[0],
        24 | 31 | 167 => CHANGES[1],
        25 | 32 | 168 => CHANGES[2],
        29 => "Rows_query",
        33 | 162 => "GTID",
        35 => "Previous-GTIDs",
        38 => "XA PREPARE",
        160 => "Annotate_rows",
        161 => "Binlog checkpoint",
        163 => "Gtid list",
        other => panic!("an event of type {other}"),
    }
}

/// By `mysql_cdc`. The second is the text in the first column of each row that was inserted into
/// `r.v`, in the order of the file.
fn found_by_mysql_cdc(file: &Path) -> (Found, Vec<String>) {
    let (mut found, mut texts) = (Found::default(), vec![]);
    let (mut at, mut tables) = (4, BTreeMap::new());
    for event in BinlogReader::new(File::open(file).unwrap()).unwrap().read_events() {
        let (head, event) = event.unwrap_or_else(|error| panic!("{}: {error:?}", file.display()));
        let mut what = name(head.event_type).to_owned();
        let changed = match &event {
            BinlogEvent::TableMapEvent(map) => {
                let table = format!("{}.{}", map.database_name, map.table_name);
                what = format!("{what} {table}");
                tables.insert(map.table_id, table);
                None
            }
            BinlogEvent::WriteRowsEvent(event) => Some((event.table_id, 0, event.rows.len())),
            BinlogEvent::UpdateRowsEvent(event) => Some((event.table_id, 1, event.rows.len())),
            BinlogEvent::DeleteRowsEvent(event) => Some((event.table_id, 2, event.rows.len())),
            _ => None,
        };
        if let Some((id, change, count)) = changed {
            found.rows.entry(tables[&id].clone()).or_default()[change] += count;
        }
        if let BinlogEvent::WriteRowsEvent(event) = &event
            && tables[&event.table_id] == "r.v"
        {
            texts.extend(event.rows.iter().map(first_text));
        }
        found.events.push((at, head.next_event_position.into(), what));
        at += u64::from(head.event_length);
    }
    // Its iterator also ends where an event is shorter than what should stand in it.
    assert_eq!(at, std::fs::metadata(file).unwrap().len(), "{}", file.display());
    (found, texts)
}

fn first_text(row: &RowData) -> String {
    match &row.cells[0] {
        Some(MySqlValue::String(text)) => text.clone(),
        other => panic!("{other:?}"),
    }
}

/// By the server's own tool.
fn found_by_tool(tool: &str, file: &Path) -> Found {
    let mut found = Found::default();
    let (mut starts, mut heads) = (vec![], vec![]);
    for line in events(tool, file).lines() {
        if let Some(at) = line.strip_prefix("# at ") {
            starts.push(at.parse::<u64>().unwrap());
        } else if let Some(row) = line.strip_prefix("### ") {
            let words = ["INSERT INTO ", "UPDATE ", "DELETE FROM "];
            for (change, table) in
                words.iter().enumerate().filter_map(|(n, word)| Some((n, row.strip_prefix(word)?)))
            {
                found.rows.entry(table.replace('`', "")).or_default()[change] += 1;
            }
        } else if line.contains(" server id ") && line.contains("end_log_pos ") {
            heads.push(head(line).unwrap_or_else(|| panic!("{line}")));
        }
    }
    // Rows are printed with the last event of their statement, so their places come before.
    assert_eq!(starts.len(), heads.len(), "{}", file.display());
    found.events = starts.into_iter().zip(heads).map(|(at, (end, what))| (at, end, what)).collect();
    found
}

/// The end of an event and its name, from a line like
/// `#260101 12:00:00 server id 1  end_log_pos 126 CRC32 0x…  Start: binlog v 4, …`.
fn head(line: &str) -> Option<(u64, String)> {
    let rest = line.strip_prefix('#')?.split_once(" server id ")?.1;
    let rest = rest.split_once("end_log_pos ")?.1;
    let (end, rest) = rest.split_once(' ')?;
    let rest = rest.trim_start();
    let rest = rest.strip_prefix("CRC32 0x").map_or(rest, |rest| rest.split_at(8).1).trim_start();
    // What MariaDB's tool calls a preparation.
    let rest = &rest.replacen("XID = ", name(38), 1);
    let known = (0..=255).filter(|kind| KINDS.contains(kind)).map(name);
    let what = known.filter(|name| rest.starts_with(name)).max_by_key(|name| name.len())?;
    let what = match rest.strip_prefix("Table_map: ") {
        Some(table) => {
            format!("{what} {}", table.split_once(" mapped").unwrap().0.replace('`', ""))
        }
        None => what.to_owned(),
    };
    Some((end.parse().unwrap(), what))
}

/// All that [`name`] knows.
const KINDS: [u8; 26] = [
    2, 3, 4, 5, 13, 14, 15, 16, 19, 23, 24, 25, 29, 30, 31, 32, 33, 35, 38, 160, 161, 162, 163,
    166, 167, 168,
];

/// A table of every type, and one with texts that can be told from each other.
const SCHEMA: [&str; 4] = [
    "CREATE DATABASE r",
    "CREATE TABLE r.t (id INT PRIMARY KEY, i TINYINT, m MEDIUMINT UNSIGNED, l BIGINT, f FLOAT,
        d DOUBLE, n DECIMAL(20, 5), y YEAR, a DATE, c TIME(3), e DATETIME(6), s TIMESTAMP(2) NULL,
        o ENUM('x', 'y'), u SET('p', 'q', 'r'), b BIT(11), h CHAR(9), k VARBINARY(300),
        x LONGTEXT, z BLOB, g INT AS (id * 2) STORED)",
    "CREATE TABLE r.v (w VARCHAR(300) CHARACTER SET utf8mb4)",
    "CREATE TABLE r.p (id INT PRIMARY KEY, x INT)",
];

/// What is executed, and the rows that each table gets of it.
const WORK: [&str; 9] = [
    "INSERT INTO r.t (id, i, m, l, f, d, n, y, a, c, e, s, o, u, b, h, k, x, z) VALUES
        (1, -1, 70000, -5, 0.1, 1e300, -12345.67891, 1999, '2024-02-29', '100:01:02.345',
         '2024-02-29 23:59:59.999999', '2001-02-03 04:05:06.78', 'y', 'p,r', b'10000000001', 'h',
         x'007f', REPEAT('long ', 100000), x'00ff'),
        (2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
         NULL, NULL, NULL, NULL)",
    "UPDATE r.t SET x = 'short', n = 0 WHERE id = 1",
    "INSERT INTO r.v VALUES ('one'), ('zwei'), ('\u{442}\u{440}\u{438}')",
    "BEGIN; INSERT INTO r.p VALUES (1, 1), (2, 2), (3, 3); UPDATE r.p SET x = x + 1 WHERE id < 3;
     INSERT INTO r.v VALUES ('four'); DELETE FROM r.p WHERE id = 3; COMMIT",
    "BEGIN; INSERT INTO r.p VALUES (4, 4); SAVEPOINT s; INSERT INTO r.p VALUES (5, 5);
     ROLLBACK TO s; COMMIT; BEGIN; INSERT INTO r.p VALUES (6, 6); ROLLBACK",
    "SET SESSION binlog_row_image = MINIMAL; UPDATE r.t SET x = 'minimal' WHERE id = 2;
     DELETE FROM r.t WHERE id = 2; SET SESSION binlog_row_image = FULL",
    "SET SESSION binlog_format = STATEMENT; SET @a = 7;
     INSERT INTO r.p SELECT 10 + @a + 0 * LAST_INSERT_ID(), FLOOR(RAND() * 10); SET SESSION binlog_format = ROW",
    "ALTER TABLE r.p ADD COLUMN z INT; TRUNCATE r.p; CREATE TABLE r.gone (a INT);
     DROP TABLE r.gone; FLUSH BINARY LOGS",
    "XA START 'q'; INSERT INTO r.v VALUES ('xa'); XA END 'q'; XA PREPARE 'q'; XA COMMIT 'q'",
];

/// The rows that [`WORK`] writes as rows: one more for each of the texts of [`many`].
fn expected() -> Rows {
    [("r.t", [2, 2, 1]), ("r.v", [5 + MANY, 0, 0]), ("r.p", [4, 2, 1])]
        .map(|(table, rows)| (table.to_owned(), rows))
        .into()
}

/// So many that they take several events.
const MANY: usize = 500;

fn many() -> Vec<String> {
    (0..MANY).map(|n| format!("{n:0100}")).collect()
}

async fn is_read_by_others(source: Mysqld, tool: &str, kinds: &[&str]) {
    let pitr = Pitr::new(&[("shop", source.url())]);
    // Of the server's own series, like the tool.
    let dump = tool.replace("binlog", "dump");
    pitr.append_config(&format!("dump_command = \"{dump}\""));
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    for statements in SCHEMA.iter().chain(&WORK) {
        source.sql(statements).await;
    }
    let values: Vec<String> = many().iter().map(|text| format!("('{text}')")).collect();
    source.sql(&format!("INSERT INTO r.v VALUES {}", values.join(","))).await;
    source.sql("FLUSH BINARY LOGS; FLUSH BINARY LOGS").await;
    until_durable(&pitr, &mut daemon).await;
    pitr.run(&["export", "--source", "shop", "--out", "files"]).await.ok();

    let logs: Vec<mysql_async::Row> = source.rows("SHOW BINARY LOGS").await;
    let (mut rows, mut texts, mut seen) = (Rows::new(), vec![], String::new());
    for log in &logs[..logs.len() - 1] {
        let log: String = log.get(0).unwrap();
        let (found, found_texts) = found_by_mysql_cdc(&pitr.dir().join("files").join(&log));
        assert_eq!(found, found_by_tool(tool, &source.datadir().join(&log)), "{log}");
        for (table, counts) in &found.rows {
            let sum = rows.entry(table.clone()).or_default();
            (0..3).for_each(|change| sum[change] += counts[change]);
        }
        texts.extend(found_texts);
        found.events.iter().for_each(|(.., what)| seen += &format!("{what}\n"));
    }
    assert_eq!(rows, expected());
    let first = ["one", "zwei", "\u{442}\u{440}\u{438}", "four", "xa"].map(str::to_owned);
    assert_eq!(texts, [&first[..], &many()].concat());
    for kind in kinds {
        assert!(seen.lines().any(|what| what == *kind), "no {kind} in\n{seen}");
    }
    assert!(daemon.terminate(std::time::Duration::from_secs(5)).await.success());
}

/// What both servers write.
const BOTH: [&str; 12] = [
    "Start",
    "Rotate",
    "Query",
    "Xid",
    "GTID",
    "Table_map r.t",
    "Write_rows",
    "Update_rows",
    "Delete_rows",
    "Intvar",
    "User_var",
    "Rand",
];

#[tokio::test]
async fn an_independent_reader_finds_every_event_of_mysql_in_exported_files() {
    let source = Mysqld::start(&["--binlog-rows-query-log-events=ON"]).await;
    let kinds = [&BOTH[..], &["Rows_query", "Previous-GTIDs"]].concat();
    is_read_by_others(source, "mysqlbinlog", &kinds).await;
}

#[tokio::test]
async fn an_independent_reader_finds_every_event_of_mariadb_in_exported_files() {
    let kinds = [&BOTH[..], &["Annotate_rows", "Gtid list", "Binlog checkpoint"]].concat();
    is_read_by_others(Mariadbd::start(&[]).await, "mariadb-binlog", &kinds).await;
    is_read_by_others(Mariadbd::start_11_8(&[]).await, "mariadb-binlog-11.8", &kinds).await;
}
