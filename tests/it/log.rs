//! `pitr log`: what was written is what it says, with every value as it was.

use crate::export::until_durable;
use crate::instants::until_windows;
use crate::support::{Mariadbd, Mysqld, Pitr, RedisServer};
use serde_json::{Value, json};
use std::time::Duration;

const VALUES: &str = "CREATE DATABASE w; CREATE TABLE w.v (
    id INT PRIMARY KEY, u BIGINT UNSIGNED, d DECIMAL(30,10), a DATE, t TIME(3), dt DATETIME(6),
    ts TIMESTAMP(2) NULL, y YEAR, c VARCHAR(300) CHARACTER SET utf8mb4, vb VARBINARY(4), bl BLOB,
    l TEXT CHARACTER SET latin1, b BIT(11), e ENUM('x','y'), s SET('a','b','c'), f FLOAT, g DOUBLE,
    n INT NULL, m MEDIUMINT)";

const ROW: &str = "SET time_zone = '+00:00'; INSERT INTO w.v VALUES
    (1, 18446744073709551615, -12345.6789, '2024-05-01', '-10:11:12.5', '2024-05-01 03:00:00.123456',
     '2024-05-01 01:02:03.45', 2024, 'ä', x'00ff', x'ff00', 'plain', b'10101010101', 'y', 'a,c', 1.1,
     2.5, NULL, -3)";

/// The values of that row, in the order of its columns.
fn values(sign_is_known: bool) -> Vec<Value> {
    vec![
        json!(1),
        if sign_is_known { json!(u64::MAX) } else { json!(-1) },
        json!("-12345.6789000000"),
        json!("2024-05-01"),
        json!("-10:11:12.500"),
        json!("2024-05-01 03:00:00.123456"),
        json!("2024-05-01 01:02:03.45Z"),
        json!(2024),
        json!("ä"),
        json!({ "base64": "AP8=" }),
        json!({ "base64": "/wA=" }),
        json!("plain"),
        json!(0b101_0101_0101),
        json!(2),
        json!(0b101),
        json!(1.1),
        json!(2.5),
        Value::Null,
        json!(-3),
    ]
}

async fn lines(pitr: &Pitr, args: &[&str]) -> Vec<Value> {
    let output = pitr.run(&[&["log", "--rows"], args].concat()).await.ok();
    output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn image(names: &[&str], values: &[Value]) -> Value {
    let named = names.iter().map(|name| (*name).to_owned()).zip(values.iter().cloned());
    Value::Object(named.collect())
}

/// `names` are those of the columns, as far as the server logs them.
async fn rows_are_what_was_written(source: &Mysqld, names: &[&str], sign_is_known: bool) {
    let pitr = Pitr::new(&[("shop-mysql", source.url())]);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    source.sql(VALUES).await;
    source.sql("CREATE TABLE w.other (id INT); INSERT INTO w.other VALUES (1), (2), (3)").await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let before = pitr::clock::Timestamp::now().to_string();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    source.sql(ROW).await;
    source.sql("UPDATE w.v SET c = 'b', n = 7").await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let between = pitr::clock::Timestamp::now().to_string();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    source.sql("DELETE FROM w.v; DROP TABLE w.other").await;
    until_durable(&pitr, &mut daemon).await;

    let first = values(sign_is_known);
    let mut second = first.clone();
    (second[8], second[17]) = (json!("b"), json!(7));
    let (first, second) = (image(names, &first), image(names, &second));
    let found = lines(&pitr, &["--table", "w.v"]).await;
    let changes: Vec<(&str, &Value, &Value)> = found
        .iter()
        .map(|line| (line["change"].as_str().unwrap(), &line["before"], &line["after"]))
        .collect();
    let expected = [
        ("insert", &Value::Null, &first),
        ("update", &first, &second),
        ("delete", &second, &Value::Null),
    ];
    assert_eq!(changes, expected);
    assert!(found.iter().all(|line| line["table"] == "w.v" && line["source"] == "shop-mysql"));
    assert_eq!(lines(&pitr, &["--table", "w.*"]).await.len(), 6);
    assert_eq!(lines(&pitr, &["--from", &before, "--to", &between]).await.len(), 2);
    assert_eq!(lines(&pitr, &["--from", &between]).await.len(), 1);

    // The same as records: beside the daemon, and without it.
    for runs in [true, false] {
        if !runs {
            assert!(daemon.terminate(Duration::from_secs(30)).await.success(), "{}", daemon.log());
        }
        let report = pitr.run(&["log", "--json", "--table", "w.v"]).await.ok().json();
        assert_eq!(report["schema"], "pitr.log/1");
        let records = report["records"].as_array().unwrap();
        let counts: Vec<Value> = records.iter().map(|record| record["tables"][0].clone()).collect();
        let count = |inserts: u64, updates: u64, deletes: u64| json!({ "name": "w.v", "inserts": inserts, "updates": updates, "deletes": deletes });
        assert_eq!(counts, [count(1, 0, 0), count(0, 1, 0), count(0, 0, 1)]);
        let texts: Vec<&str> =
            records.iter().map(|r| r["statements"][0]["text"].as_str().unwrap()).collect();
        assert!(texts[1].contains("UPDATE w.v SET c = 'b'"), "{texts:?}");
        let text = pitr.run(&["log", "--from", &between]).await.ok().stdout;
        assert!(text.contains("  w.v +0 ~0 -1  "), "{text}");
        let dropped = text.lines().position(|line| line.contains("DROP TABLE")).unwrap();
        let restore = text.lines().nth(dropped + 1).unwrap();
        assert!(restore.contains("pitr restore --source shop-mysql --before landmark:"), "{text}");
        let large = pitr.run(&["log", "--larger-than", "1M"]).await.ok().stdout;
        assert_eq!(large, "nothing\n");
    }
}

#[tokio::test]
async fn rows_of_a_mysql_are_what_was_written() {
    let source =
        Mysqld::start(&["--binlog-rows-query-log-events=ON", "--binlog-row-metadata=FULL"]).await;
    let names = [
        "id", "u", "d", "a", "t", "dt", "ts", "y", "c", "vb", "bl", "l", "b", "e", "s", "f", "g",
        "n", "m",
    ];
    rows_are_what_was_written(&source, &names, true).await;
}

#[tokio::test]
async fn rows_of_a_mariadb_are_what_was_written_as_far_as_its_log_says() {
    let source = Mariadbd::start(&[]).await;
    let names: Vec<String> = (1..=19).map(|n| format!("@{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    rows_are_what_was_written(&source, &names, false).await;
}

#[tokio::test]
async fn changes_within_documents_are_shown_as_such() {
    let source = Mysqld::start(&["--binlog-row-metadata=FULL"]).await;
    let pitr = Pitr::new(&[("shop-mysql", source.url())]);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    let long = "t".repeat(300);
    source.sql("CREATE DATABASE w; CREATE TABLE w.j (id INT PRIMARY KEY, j JSON)").await;
    source
        .sql(&format!(
            "INSERT INTO w.j VALUES (1, JSON_OBJECT('n', 1, 'long', '{long}', 'a', \
             JSON_ARRAY(1.5e0, true, NULL, -70000, CAST('2024-05-01' AS DATE), 12.30)));
             SET SESSION binlog_row_value_options = 'PARTIAL_JSON';
             SET SESSION binlog_transaction_compression = ON;
             UPDATE w.j SET j = JSON_SET(j, '$.n', 'two')"
        ))
        .await;
    until_durable(&pitr, &mut daemon).await;
    let found = lines(&pitr, &[]).await;
    let document = &found[0]["after"]["j"];
    let array = json!([1.5, true, null, -70000, "2024-05-01", "12.30"]);
    assert_eq!(*document, json!({ "n": 1, "long": long, "a": array }));
    assert_eq!(found[1]["before"]["j"], *document);
    let difference = json!({ "operation": "replace", "path": "$.n", "value": "two" });
    assert_eq!(found[1]["after"]["j"], json!({ "differences": [difference] }));
}

#[tokio::test]
async fn commands_are_found_by_the_keys_that_they_name() {
    let cache = RedisServer::start(&[]).await;
    let pitr = Pitr::new(&[("shop-redis", cache.url())]);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    cache.cmd::<()>(&["SET", "cart:1", "a"]).await;
    cache.cmd::<()>(&["SET", "user:1", "a"]).await;
    cache.cmd::<()>(&["DEL", "user:1", "cart:1"]).await;
    cache
        .cmd_in::<()>(2, &["EVAL", "for n=1,30 do redis.call('SET', 'cart:'..n, n) end", "0"])
        .await;
    cache.cmd::<()>(&["FLUSHALL"]).await;
    until_durable(&pitr, &mut daemon).await;
    let report = pitr.run(&["log", "--json", "--key", "cart:*"]).await.ok().json();
    let records = report["records"].as_array().unwrap();
    let keys: Vec<(u64, &str, bool)> = records
        .iter()
        .map(|record| {
            let command = record["commands"][0]["name"].as_str().unwrap();
            (record["wanted_keys"].as_u64().unwrap(), command, record["multi"].as_bool().unwrap())
        })
        .collect();
    assert_eq!(keys, [(1, "SET", false), (1, "DEL", false), (30, "SET", true)], "{report:#}");
    assert_eq!(records[2]["databases"], json!([2]));
    let text = pitr.run(&["log"]).await.ok().stdout;
    assert!(text.contains("FLUSHALL") && text.contains("--before landmark:"), "{text}");
    assert_eq!(text.lines().filter(|line| line.contains("  shop-redis  ")).count(), 5, "{text}");
}
