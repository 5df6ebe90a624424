//! The increments of each hour: their counts are those of the servers' own tools, their records are
//! written once and form a chain, and what is missing is said.

use crate::daemon::find;
use crate::export::{events, until_durable};
use crate::instants::until_windows;
use crate::support::{Mariadbd, Mysqld, Pitr, RedisServer, eventually};
use pitr::archive::{Archive, Pieces};
use pitr::audit;
use pitr::clock::Timestamp;
use pitr::manifest::{EngineKind, names};
use pitr::position::Position;
use pitr::record::{Chunk, Mark};
use pitr::segment::Writer;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Rows inserted, updated and deleted in each table.
type Rows = BTreeMap<String, [u64; 3]>;

/// The rows that all hours of a report have, by table.
fn rows(report: &Value) -> Rows {
    let mut rows = Rows::new();
    for table in of_hours(report, "tables") {
        let all = rows.entry(table["name"].as_str().unwrap().to_owned()).or_default();
        for (sum, key) in all.iter_mut().zip(["inserts", "updates", "deletes"]) {
            *sum += table[key].as_u64().unwrap();
        }
    }
    rows
}

/// The named counts that all hours of a report have.
fn counts(report: &Value, key: &str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for count in of_hours(report, key) {
        let name = count["name"].as_str().unwrap().to_owned();
        *counts.entry(name).or_default() += count["count"].as_u64().unwrap();
    }
    counts
}

/// The entries of a list, of all hours of the first source.
fn of_hours(report: &Value, key: &str) -> Vec<Value> {
    let hours = report["hours"].as_array().unwrap();
    hours.iter().flat_map(|hour| hour["sources"][0][key].as_array().unwrap().clone()).collect()
}

fn sum(report: &Value, key: &str) -> u64 {
    let hours = report["hours"].as_array().unwrap();
    hours.iter().map(|hour| hour["sources"][0][key].as_u64().unwrap()).sum()
}

/// The same counted by the server's own tool, over all files of a folder.
fn rows_by_tool(tool: &str, dir: &Path) -> Rows {
    let mut rows = Rows::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        for line in events(tool, &entry.unwrap().path()).lines() {
            let Some(row) = line.strip_prefix("### ") else { continue };
            for (place, words) in ["INSERT INTO ", "UPDATE ", "DELETE FROM "].iter().enumerate() {
                if let Some(table) = row.strip_prefix(words) {
                    rows.entry(table.replace('`', "")).or_default()[place] += 1;
                }
            }
        }
    }
    rows
}

/// Columns of every kind, in rows of every image; compressed and not; and one row that is large.
async fn work(source: &Mysqld) {
    let is_maria = source.is_mariadb();
    source.sql("CREATE DATABASE w; CREATE TABLE w.plain (id INT PRIMARY KEY, x INT)").await;
    source
        .sql(
            "CREATE TABLE w.kinds (id INT AUTO_INCREMENT PRIMARY KEY, a TINYINT, b SMALLINT UNSIGNED,
             c MEDIUMINT, d BIGINT UNSIGNED, f FLOAT, g DOUBLE, h DECIMAL(30,10), i DATE, j TIME(3),
             k DATETIME(6), l TIMESTAMP(2) NULL, m YEAR, n CHAR(255) CHARACTER SET utf8mb4,
             o VARCHAR(40), p VARCHAR(9000), q BIT(11), r ENUM('x','y'), s SET('a','b','c'),
             t TINYBLOB, u BLOB, v MEDIUMTEXT, w LONGBLOB, z JSON)",
        )
        .await;
    for n in 0..20 {
        source
            .sql(&format!(
                "INSERT INTO w.kinds (a, b, c, d, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v,
                 w, z) VALUES (-{n}, {n}, -1, 18446744073709551615, 1.5, 2.5, -12345.6789,
                 '2024-05-01', '-10:11:12.5', '2024-05-01 03:00:00.123456', NULL, 2024, 'ä', 'b',
                 REPEAT('c', {n}00), b'10101010101', 'y', 'a,c', 'x', REPEAT('y', 300), 'z',
                 NULL, '{{\"n\": {n}, \"long\": \"{}\"}}')",
                "t".repeat(100)
            ))
            .await;
    }
    source.sql("UPDATE w.kinds SET a = 1, p = 'q' WHERE id % 2 = 0").await;
    source.sql("DELETE FROM w.kinds WHERE id % 5 = 0").await;
    source.sql("SET SESSION binlog_row_image = 'MINIMAL'; UPDATE w.kinds SET b = 7").await;
    source.sql("SET SESSION binlog_row_image = 'NOBLOB'; UPDATE w.kinds SET o = 'o' LIMIT 3").await;
    // Many rows in one transaction, which takes several events.
    let values: Vec<String> = (0..5000).map(|n| format!("({n}, {n})")).collect();
    source.sql(&format!("INSERT INTO w.plain VALUES {}", values.join(","))).await;
    source
        .sql("UPDATE w.plain SET x = x + 1 WHERE id < 1234; DELETE FROM w.plain WHERE id > 4000")
        .await;
    source.sql("UPDATE w.kinds SET w = REPEAT('w', 3000000) WHERE id = 1").await;
    if is_maria {
        source.sql("SET GLOBAL log_bin_compress = 1").await;
        source
            .sql("UPDATE w.kinds SET v = REPEAT('v', 70000); DELETE FROM w.kinds WHERE id = 3")
            .await;
        source.sql("INSERT INTO w.plain SELECT 10000 + seq, 1 FROM w.seq_1_to_3000").await;
        source
            .sql("CREATE TABLE w.packed (id INT, t TEXT COMPRESSED, v VARCHAR(500) COMPRESSED)")
            .await;
        source.sql("INSERT INTO w.packed VALUES (1, REPEAT('t', 5000), REPEAT('v', 400)), (2, '', NULL)").await;
    } else {
        source.sql("CREATE TABLE w.many (id INT PRIMARY KEY, j JSON, INDEX m ((CAST(j->'$.a' AS UNSIGNED ARRAY))), v VECTOR(3))").await;
        source.sql("INSERT INTO w.many VALUES (1, '{\"a\": [1, 2]}', TO_VECTOR('[1,2,3]')), (2, NULL, NULL)").await;
        source
            .sql(
                "SET SESSION binlog_row_value_options = 'PARTIAL_JSON';
                 UPDATE w.kinds SET z = JSON_SET(z, '$.n', 1000)",
            )
            .await;
        source
            .sql(
                "SET SESSION binlog_transaction_compression = ON;
                 UPDATE w.kinds SET v = REPEAT('v', 70000);
                 INSERT INTO w.plain SELECT id + 10000, x FROM w.plain",
            )
            .await;
    }
    // The tools stop in an event at the first value of this type: one row in each.
    source.sql("CREATE TABLE w.shapes (id INT, g GEOMETRY, x INT)").await;
    for n in 0..3 {
        source
            .sql(&format!("INSERT INTO w.shapes VALUES ({n}, ST_GeomFromText('POINT(1 2)'), 5)"))
            .await;
    }
    source.sql("ALTER TABLE w.plain ADD COLUMN y INT; TRUNCATE TABLE w.plain").await;
}

async fn counts_are_those_of_the_tool(source: &Mysqld, tool: &str) {
    let pitr = Pitr::new(&[("shop-mysql", source.url())]);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    work(source).await;
    until_durable(&pitr, &mut daemon).await;

    // Beside the daemon, from the segment that is open.
    let beside = pitr.run(&["audit", "--json"]).await.ok().json();
    assert_eq!(beside["schema"], "pitr.audit/1");
    assert!(daemon.terminate(Duration::from_secs(30)).await.success(), "{}", daemon.log());
    pitr.run(&["export", "--source", "shop-mysql", "--out", "files"]).await.ok();
    let expected = rows_by_tool(tool, &pitr.dir().join("files"));
    assert!(expected["w.plain"].iter().all(|count| *count > 500), "{expected:?}");
    let report = pitr.run(&["audit", "--json"]).await.ok().json();
    for report in [&beside, &report] {
        assert_eq!(sum(report, "undecoded"), 0, "{report:#}");
        assert_eq!(rows(report), expected);
        let ddl = of_hours(report, "ddl");
        let texts: Vec<&str> = ddl.iter().map(|ddl| ddl["text"].as_str().unwrap()).collect();
        for text in ["ALTER TABLE w.plain ADD COLUMN y INT", "TRUNCATE TABLE w.plain"] {
            assert!(texts.contains(&text), "{texts:?}");
        }
        let landmarks = of_hours(report, "landmarks");
        assert!(landmarks.iter().any(|l| l["text"] == "TRUNCATE TABLE w.plain"), "{report:#}");
        let largest = of_hours(report, "largest");
        assert!(largest.iter().any(|l| l["bytes"].as_u64().unwrap() > 3_000_000), "{report:#}");
        let hours = report["hours"].as_array().unwrap();
        assert!(hours.iter().all(|hour| hour["sources"][0]["continuity"] == "proved"));
        assert!(hours.iter().all(|hour| hour["sources"][0]["digest"].is_null()));
    }
    // Every byte of the log is in exactly one hour.
    let archive = Archive::open_read_only(&pitr.archive()).unwrap();
    let segments = archive.catalog().segments_from("shop-mysql", 1, 1, 1000).unwrap();
    let raw: u64 = segments.iter().map(|segment| segment.totals.bytes_raw).sum();
    assert_eq!(sum(&report, "bytes_raw"), raw);
    let records: u64 = segments.iter().map(|segment| segment.totals.records).sum();
    assert_eq!(sum(&report, "records"), records);

    // In every other form there is the same.
    let text = pitr.run(&["audit"]).await.ok().stdout;
    assert!(text.contains("not recorded yet"), "{text}");
    let csv = pitr.run(&["audit", "--csv"]).await.ok().stdout;
    let mut from_csv = Rows::new();
    let fields = csv.lines().next().unwrap().split(',').count();
    for line in csv.lines().filter(|line| line.contains(",shop-mysql,table,")) {
        let line: Vec<&str> = line.split(',').collect();
        assert_eq!(line.len(), fields);
        let all = from_csv.entry(line[3].to_owned()).or_default();
        for (sum, number) in all.iter_mut().zip(&line[7..10]) {
            *sum += number.parse::<u64>().unwrap();
        }
    }
    assert_eq!(from_csv, expected, "{csv}");
    let html = pitr.run(&["audit", "--html"]).await.ok().stdout;
    assert!(html.contains("<svg") && html.contains("w.plain: "), "{html}");
    assert!(!html.contains("http") && !html.contains("<script"), "it loads nothing: {html}");

    // A segment that is gone is a gap, with its reason.
    let gone = find(&pitr.archive().join("shop-mysql"), "zst");
    let gone = gone.iter().find(|object| object.contains("/seg-")).unwrap();
    std::fs::remove_file(gone).unwrap();
    let output = pitr.run(&["audit", "--json"]).await.exits(1);
    let report = output.json();
    let hours = report["hours"].as_array().unwrap();
    let hour = hours.iter().find(|hour| hour["sources"][0]["continuity"] == "gap");
    let reason = hour.unwrap()["sources"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("is missing"), "{reason}");
    assert_eq!(output.error_json()["class"], "finding");
}

#[tokio::test]
async fn the_counts_of_a_mysql_are_those_of_its_own_tool() {
    let source = Mysqld::start(&["--binlog-rows-query-log-events=ON"]).await;
    counts_are_those_of_the_tool(&source, "mysqlbinlog").await;
}

#[tokio::test]
async fn the_counts_of_a_mariadb_are_those_of_its_own_tool() {
    let source = Mariadbd::start(&["--max-allowed-packet=64M"]).await;
    counts_are_those_of_the_tool(&source, "mariadb-binlog").await;
}

/// How often each command was called, by the server's own count.
async fn command_stats(cache: &RedisServer) -> BTreeMap<String, u64> {
    let info: String = cache.cmd(&["INFO", "commandstats"]).await;
    info.lines()
        .filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(":calls="))
        .map(|(name, rest)| {
            (name.to_ascii_uppercase(), rest.split(',').next().unwrap().parse().unwrap())
        })
        .collect()
}

async fn redis_work(cache: &RedisServer) {
    for n in 0..50 {
        cache.cmd::<()>(&["SET", &format!("cart:{n}"), &"v".repeat(n)]).await;
        cache.cmd::<()>(&["HSET", &format!("user:{}", n % 7), "f", &n.to_string()]).await;
    }
    cache.cmd::<()>(&["MSET", "cart:x", "1", "user:y", "", "plain", "3"]).await;
    cache.cmd::<()>(&["DEL", "cart:0", "cart:1", "cart:2"]).await;
    cache.cmd_in::<()>(3, &["LPUSH", "queue:a", &"big".repeat(300_000)]).await;
    cache.cmd::<()>(&["EVAL", "for n=1,100 do redis.call('INCR', 'hits:'..n) end", "0"]).await;
    cache.cmd_in::<()>(5, &["FLUSHDB"]).await;
}

fn expect_redis(report: &Value, stats: &BTreeMap<String, u64>) {
    let commands = counts(report, "commands");
    for name in ["SET", "HSET", "MSET", "DEL", "LPUSH", "INCR", "FLUSHDB"] {
        assert_eq!(commands.get(name), stats.get(name), "{name}: {commands:?} {stats:?}");
    }
    assert_eq!(commands.values().sum::<u64>(), 50 + 50 + 1 + 1 + 1 + 100 + 1, "{commands:?}");
    let prefixes = counts(report, "key_prefixes");
    let expected = [("cart:", 54), ("user:", 51), ("", 1), ("queue:", 1), ("hits:", 100)];
    let expected = expected.map(|(name, count)| (name.to_owned(), count));
    assert_eq!(prefixes, BTreeMap::from(expected));
    assert_eq!(sum(report, "multi"), 1);
    let databases = of_hours(report, "databases");
    let of = |db: u64| {
        let found = databases.iter().filter(|count| count["db"] == db);
        found.map(|count| count["count"].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!((of(0), of(3), of(5)), (202, 1, 1), "{databases:?}");
    assert!(of_hours(report, "landmarks").iter().any(|l| l["text"] == "FLUSHDB of database 5"));
}

#[tokio::test]
async fn the_hours_that_passed_without_a_daemon_are_recorded_once_and_for_ever() {
    let cache = RedisServer::start(&[]).await;
    let pitr = Pitr::new(&[("shop-redis", cache.url())]);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    redis_work(&cache).await;
    until_durable(&pitr, &mut daemon).await;
    let stats = command_stats(&cache).await;
    assert!(daemon.terminate(Duration::from_secs(30)).await.success(), "{}", daemon.log());
    expect_redis(&pitr.run(&["audit", "--json"]).await.ok().json(), &stats);

    // The same bytes, captured three hours ago: as a stream has no times but those of its marks.
    let now = Timestamp::now();
    let then = now.hour().before(3 * audit::HOUR).after(Duration::from_mins(20));
    let older = aged(&pitr, "shop-redis", then);
    let mut daemon = older.spawn_run();
    let recorded = |report: &Value| {
        let hours = report["hours"].as_array().unwrap();
        let recorded = |hour: &&Value| hour["sources"][0]["digest"].is_string();
        hours.iter().filter(recorded).count()
    };
    let from = then.to_string();
    let args = ["audit", "--json", "--from", &from];
    let report = eventually("the hours are recorded", Duration::from_mins(2), async || {
        assert!(daemon.ended().is_none(), "{}", daemon.log());
        let report: Value = serde_json::from_str(&older.run(&args).await.stdout).ok()?;
        (recorded(&report) >= 3).then_some(report)
    })
    .await;
    let hours = report["hours"].as_array().unwrap();
    assert_eq!(hours[0]["hour"], then.hour().to_string());
    assert_eq!(hours[0]["sources"][0]["continuity"], "proved", "{:#}", hours[0]);
    let first = serde_json::json!({ "hours": [hours[0]] });
    expect_redis(&first, &stats);
    // Each names the one before it.
    for pair in hours.windows(2).filter(|pair| pair[1]["sources"][0]["digest"].is_string()) {
        let (before, behind) = (&pair[0]["sources"][0], &pair[1]["sources"][0]);
        assert_eq!(behind["previous"]["digest"], before["digest"], "{report:#}");
        assert_eq!(behind["previous"]["hour"], pair[0]["hour"]);
    }

    // Another look, another daemon, another catalog: the same records.
    let digests = |report: &Value| {
        let hours = report["hours"].as_array().unwrap();
        hours.iter().map(|hour| hour["sources"][0]["digest"].clone()).collect::<Vec<_>>()
    };
    assert!(daemon.terminate(Duration::from_secs(30)).await.success(), "{}", daemon.log());
    older.run(&["reindex"]).await.ok();
    let mut daemon = older.spawn_run();
    until_windows(&older, &mut daemon).await;
    assert!(daemon.terminate(Duration::from_secs(30)).await.success(), "{}", daemon.log());
    let again = older.run(&args).await.ok().json();
    assert_eq!(digests(&again)[..3], digests(&report)[..3]);
    older.run(&["verify"]).await.ok();

    // A record that was changed is found by whoever looks, also where its digest was made anew.
    let record = older.archive().join(names::hour("shop-redis", then.hour()));
    let text = std::fs::read_to_string(&record).unwrap();
    std::fs::write(&record, text.replace("\"count\": 54", "\"count\": 55")).unwrap();
    older.run(&args).await.exits(5);
    let output = older.run(&["verify", "--json"]).await.exits(5);
    let finding = &output.json()["findings"][0];
    assert_eq!(finding["kind"], "damaged", "{finding}");
    let forged = pitr::manifest::HourRecord::decode(text.as_bytes()).unwrap();
    let mut increment = forged.increment.clone();
    increment.records += 1;
    let mut forged = pitr::manifest::HourRecord { increment, ..forged };
    std::fs::write(&record, forged.encode().unwrap()).unwrap();
    let catalog = older.archive().join(names::CATALOG);
    for end in ["", "-wal", "-shm"] {
        drop(std::fs::remove_file(format!("{}{end}", catalog.display())));
    }
    let output = older.run(&["verify", "--json"]).await.exits(5);
    let report = output.json();
    let kinds: Vec<&str> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| f["kind"].as_str().unwrap())
        .collect();
    assert!(kinds.contains(&"chain"), "{report:#}");
}

/// An archive of its own with the bytes of a source's log, as if captured at `then`, with marks of
/// a clock that read `then` before the first byte and a minute later behind the last one.
fn aged(pitr: &Pitr, source: &str, then: Timestamp) -> Pitr {
    let url =
        pitr.config().lines().find_map(|line| line.strip_prefix("url = ")).unwrap().to_owned();
    let older = Pitr::new(&[(source, url.trim_matches('"').to_owned())]);
    let archive = Archive::open_read_only(&pitr.archive()).unwrap();
    let segments = archive.catalog().segments_from(source, 1, 1, 1000).unwrap();
    let mine = Archive::init(&older.archive()).unwrap();
    let first = segments[0].header.clone();
    let mut header = first.clone();
    header.archive.clone_from(&mine.meta().archive);
    header.opened_at = then;
    let name = names::segment(source, 1, 1);
    let mut writer = Writer::create(Vec::new(), &header, 1).unwrap();
    let mut start = first.start.offset;
    let mut mark = vec![Mark::new(start, then)];
    let last = segments.len() - 1;
    for (index, segment) in segments.iter().enumerate() {
        let mut reader = archive.segment(source, 1, segment.header.number).unwrap();
        let end = segment.totals.end.clone();
        let mut bytes = Vec::new();
        for piece in Pieces::new(&mut reader, segment.header.start.offset, end.offset) {
            bytes.extend_from_slice(&piece.unwrap());
        }
        if index == last {
            mark.push(Mark::new(end.offset, then.after(Duration::from_mins(1))));
        }
        let whole = Some(Position { ..end });
        let records = u32::try_from(segment.totals.records).unwrap();
        let marks = std::mem::take(&mut mark);
        let length = bytes.len() as u64;
        let chunk = Chunk {
            start,
            bytes,
            records,
            whole,
            marks,
            landmarks: segment.totals.landmarks.clone(),
            ..Chunk::default()
        };
        writer.append(&chunk).unwrap();
        start += length;
    }
    let (file, meta) = writer.finish().unwrap();
    mine.store().put_new(&name, &file).unwrap();
    assert_eq!(meta.header.engine, EngineKind::Redis);
    drop(mine);
    std::fs::remove_file(older.archive().join(names::CATALOG)).unwrap();
    older
}
