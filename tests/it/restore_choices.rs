//! What a restore may be asked to go to besides an instant: places in the log.

use crate::instants::until_windows;
use crate::support::{Mysqld, Output, Pitr, RedisServer, clear_of_the_hour, eventually};
use ::redis::AsyncCommands;
use pitr::engine::digest::Digest;
use pitr::engine::{mysql, redis};
use std::time::Duration;

async fn content(server: &Mysqld) -> Digest {
    let mut conn = server.conn().await;
    mysql::digest::digest(&mut conn).await.unwrap()
}

/// Where the source's log ends now.
async fn end_of_log(source: &Mysqld) -> (String, u64) {
    let (log, offset, ..): (String, u64, String, String, String) =
        source.row("SHOW BINARY LOG STATUS").await;
    (log, offset)
}

/// A moment between two transactions.
struct Moment {
    log: String,
    offset: u64,
    gtids: String,
    content: Digest,
}

async fn moment(source: &Mysqld) -> Moment {
    let (log, offset) = end_of_log(source).await;
    let gtids = source.gtid_executed().await;
    Moment { log, offset, gtids, content: content(source).await }
}

/// The number of the last transaction of the source's own.
async fn last_number(source: &Mysqld) -> u64 {
    let text: String = source.row("SELECT REGEXP_SUBSTR(@@gtid_executed, '[0-9]+$')").await;
    text.parse().unwrap()
}

async fn plan(pitr: &Pitr, option: &str, place: &str) -> Output {
    pitr.run(&["restore", "--json", "--plan", "--source", "shop-mysql", option, place]).await
}

async fn restored(pitr: &Pitr, option: &str, place: &str) -> (Mysqld, serde_json::Value) {
    let target = Mysqld::start(&[]).await;
    let to = format!("shop-mysql={}", target.url());
    let args = ["restore", "--json", "--source", "shop-mysql", option, place, "--target", &to];
    let report = pitr.run(&args).await.ok().json();
    (target, report)
}

/// Refused as not restorable; gives message, hint and the nearest places.
fn refusal(output: Output) -> (String, String, Vec<String>) {
    let error = output.exits(4).error_json();
    let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
    let nearest = error["nearest"].as_array().unwrap();
    let nearest = nearest.iter().map(|place| place.as_str().unwrap().to_owned()).collect();
    (text("message"), text("hint"), nearest)
}

#[tokio::test]
async fn places_in_a_binlog_are_exact_or_refused_with_both_ends() {
    let source = Mysqld::start(&[]).await;
    source.sql("CREATE DATABASE shop; CREATE TABLE shop.t (n INT PRIMARY KEY, s TEXT)").await;
    let pitr = Pitr::new(&[("shop-mysql", source.url())]);
    let before_everything = moment(&source).await;
    source.sql("INSERT INTO shop.t VALUES (0, 'in the baseline')").await;
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;

    let uuid: String = source.row("SELECT @@server_uuid").await;
    for n in 1..=20 {
        source.sql(&format!("INSERT INTO shop.t VALUES ({n}, REPEAT('x', 1000))")).await;
    }
    let first = moment(&source).await;
    source.sql("FLUSH BINARY LOGS; UPDATE shop.t SET s = 'changed' WHERE n < 10").await;
    let changed = last_number(&source).await;
    let second = moment(&source).await;
    source.sql("DROP TABLE shop.t").await;
    let dropped = last_number(&source).await;
    let third = moment(&source).await;
    source.sql("SET gtid_next = 'AUTOMATIC:other'; CREATE TABLE shop.u (a INT PRIMARY KEY)").await;
    source.sql("INSERT INTO shop.u VALUES (1)").await;
    let last = moment(&source).await;
    assert!(last.gtids.contains(":other:1"), "{}", last.gtids);

    // Offsets: exact at a boundary, also at once after it was written, and where a file ends.
    let at = |m: &Moment| format!("{}:{}", m.log, m.offset);
    let (target, report) = restored(&pitr, "--to-position", &at(&last)).await;
    assert_eq!(content(&target).await.diff(&last.content), [""; 0]);
    assert_eq!(target.gtid_executed().await, last.gtids);
    assert_eq!(report["position"].as_str(), Some(&*at(&last)));
    let planned = plan(&pitr, "--to-position", &at(&first)).await.ok().json();
    assert_eq!(planned["sources"][0]["cut"].as_str().unwrap(), at(&first));

    // Within a transaction: both ends are named, and are restorable.
    let inside = format!("{}:{}", second.log, second.offset - 1);
    let (message, hint, nearest) = refusal(plan(&pitr, "--to-position", &inside).await);
    assert!(message.contains(&format!("{uuid}:{changed}")), "{message}");
    assert!(hint.contains("--to-position"), "{hint}");
    assert_eq!(nearest[1], at(&second));
    for place in &nearest {
        plan(&pitr, "--to-position", place).await.ok();
    }
    // What lies within the transaction leaves all of it out.
    let planned = plan(&pitr, "--before", &inside).await.ok().json();
    assert_eq!(planned["sources"][0]["cut"].as_str().unwrap(), nearest[0]);

    // One transaction: with it, and without it.
    let (target, report) = restored(&pitr, "--to-position", &format!("{uuid}:{changed}")).await;
    assert_eq!(content(&target).await.diff(&second.content), [""; 0]);
    assert_eq!(target.gtid_executed().await, second.gtids);
    let applied = &report["sources"][0]["last_applied"]["position"];
    assert_eq!(applied.as_str().unwrap(), format!("{uuid}:{changed}"));
    assert_eq!(report["to"], report["sources"][0]["last_applied"]["at"]);
    let (target, report) = restored(&pitr, "--before", &format!("{uuid}:{dropped}")).await;
    assert_eq!(content(&target).await.diff(&second.content), [""; 0]);
    let left_out = &report["sources"][0]["first_left_out"]["position"];
    assert_eq!(left_out.as_str().unwrap(), format!("{uuid}:{dropped}"));
    assert_eq!(report["before"], true);

    // A set is a state, and only one that there was.
    for state in [&first, &second, &third, &last] {
        let planned = plan(&pitr, "--to-position", &state.gtids).await.ok().json();
        let cut = planned["sources"][0]["cut"].as_str().unwrap();
        // The end of a file and the beginning of the next are the same state.
        assert!(cut == at(state) || state.gtids == first.gtids, "{cut}");
    }
    let without = format!("{uuid}:2-{changed}");
    let (message, hint, _) = refusal(plan(&pitr, "--to-position", &without).await);
    assert!(message.contains(&format!("{uuid}:1 was in as well")), "{message}");
    assert!(hint.contains(&format!("--to-position {uuid}:{changed}")), "{hint}");

    // Places that are not there.
    let absent = format!("{uuid}:{}", dropped + 1000);
    let (message, _, nearest) = refusal(plan(&pitr, "--to-position", &absent).await);
    assert!(message.contains("is not in the archive of shop-mysql"), "{message}");
    assert_eq!(nearest[1], at(&last));
    let early = format!("{uuid}:1");
    let (message, _, nearest) = refusal(plan(&pitr, "--to-position", &early).await);
    assert!(message.contains("before the first baseline"), "{message}");
    plan(&pitr, "--to-position", &nearest[0]).await.ok();
    let early = at(&before_everything);
    let (_, _, nearest) = refusal(plan(&pitr, "--to-position", &early).await);
    assert!(!nearest.is_empty());
    let (_, _, nearest) = refusal(plan(&pitr, "--before", "binlog.999999:4").await);
    assert_eq!(nearest[1], at(&last));
    plan(&pitr, "--before", &last.gtids).await.exits(2);
    plan(&pitr, "--to-position", "yesterday").await.exits(2);
    pitr.run(&["restore", "--to", "latest", "--before", &inside]).await.exits(2);
    pitr.run(&["restore", "--source", "shop-mysql"]).await.exits(2);
}

#[tokio::test]
async fn places_in_a_redis_stream_are_exact_or_refused_with_both_ends() {
    let cache = RedisServer::start(&[]).await;
    let pitr = Pitr::new(&[("shop-redis", cache.url())]);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    let mut keys = cache.conn().await;
    let place = async || {
        let info: String = cache.cmd(&["INFO", "replication"]).await;
        let field = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("{info}")).to_owned()
        };
        (field("master_replid:"), field("master_repl_offset:").parse::<u64>().unwrap())
    };
    for n in 0..20 {
        let () = keys.set(format!("key:{n}"), vec![7_u8; 100]).await.unwrap();
    }
    let (id, noted) = place().await;
    let then = redis::digest::digest(&mut keys).await.unwrap();
    let () = ::redis::pipe()
        .atomic()
        .del("key:1")
        .ignore()
        .set("key:2", 3)
        .ignore()
        .query_async(&mut keys)
        .await
        .unwrap();
    let (_, end) = place().await;
    let () = keys.set("later", 1).await.unwrap();

    // The source may say PING between; a record is what changes something.
    let at = |offset: u64| format!("{id}:{offset}");
    let copy = RedisServer::start(&[]).await;
    let to = format!("shop-redis={}", copy.url());
    let noted_at = at(noted);
    let args = ["restore", "--json", "--source", "shop-redis", "--to-position", &noted_at];
    let report = pitr.run(&[&args[..], &["--target", &to]].concat()).await.ok().json();
    assert_eq!(report["sources"][0]["cut"].as_str().unwrap(), at(noted));
    let now = redis::digest::digest(&mut copy.conn().await).await.unwrap();
    assert_eq!(now.diff(&then), [""; 0]);

    let plan = async |option: &'static str, place: String| {
        pitr.run(&["restore", "--json", "--plan", "--source", "shop-redis", option, &place]).await
    };
    let (message, _, nearest) = refusal(plan("--to-position", at(end - 3)).await);
    assert!(message.contains("lies within"), "{message}");
    assert_eq!(nearest[1], at(end));
    let planned = plan("--before", at(end - 3)).await.ok().json();
    assert_eq!(planned["sources"][0]["cut"].as_str().unwrap(), nearest[0]);
    let (_, _, nearest) = refusal(plan("--to-position", at(end + 1_000_000)).await);
    assert_eq!(nearest.len(), 2);
    plan("--to-position", format!("{}:5", "0".repeat(40))).await.exits(4);
    plan("--to-position", "3e11fa47-71ca-11e1-9e33-c80aa9429562:5".into()).await.exits(2);
}

#[tokio::test]
async fn a_place_in_a_segment_that_was_lost_is_refused_with_the_nearest_places() {
    clear_of_the_hour().await;
    let source = Mysqld::start(&[]).await;
    source.sql("CREATE DATABASE shop; CREATE TABLE shop.t (n INT PRIMARY KEY)").await;
    let pitr = Pitr::new(&[("shop-mysql", source.url())]);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    let mut places = vec![];
    for n in 0..4 {
        source.sql(&format!("INSERT INTO shop.t VALUES ({n})")).await;
        places.push((end_of_log(&source).await, last_number(&source).await));
        source.sql("FLUSH BINARY LOGS").await;
    }
    let uuid: String = source.row("SELECT @@server_uuid").await;
    let last = format!("{uuid}:{}", places[3].1);
    eventually("all of it is in the archive", Duration::from_secs(20), async || {
        (plan(&pitr, "--to-position", &last).await.code() == Some(0)).then_some(())
    })
    .await;
    daemon.terminate(Duration::from_secs(20)).await;
    let ((log, offset), number) = &places[1];
    let planned = plan(&pitr, "--to-position", &format!("{log}:{offset}")).await.ok().json();
    let segments = planned["sources"][0]["segments"].as_u64().unwrap();
    let folder = pitr.archive().join("shop-mysql/t0001");
    std::fs::remove_file(folder.join(format!("seg-{segments:020}.zst"))).unwrap();
    pitr.run(&["reindex"]).await.ok();
    for place in [format!("{log}:{offset}"), format!("{uuid}:{number}"), last] {
        let (message, hint, nearest) = refusal(plan(&pitr, "--to-position", &place).await);
        assert!(!nearest.is_empty() && hint.contains(&nearest[0]), "{message} / {hint}");
    }
    let ((log, offset), _) = &places[0];
    plan(&pitr, "--to-position", &format!("{log}:{offset}")).await.ok();
}

#[tokio::test]
async fn some_databases_of_many_come_back_exactly_and_alone() {
    let source = Mysqld::start(&[]).await;
    source
        .sql(
            "CREATE DATABASE shop; CREATE DATABASE other; CREATE DATABASE third;
             CREATE TABLE shop.t (id INT PRIMARY KEY AUTO_INCREMENT, s TEXT);
             CREATE TABLE other.u (id INT PRIMARY KEY AUTO_INCREMENT, s TEXT);
             CREATE TABLE other.w (s TEXT); INSERT INTO other.w VALUES ('w');
             CREATE TABLE other.moved (id INT PRIMARY KEY); INSERT INTO other.moved VALUES (1);
             CREATE VIEW shop.v AS SELECT id FROM other.u;
             CREATE TRIGGER shop.tr AFTER INSERT ON shop.t FOR EACH ROW
               INSERT INTO other.u (s) VALUES (NEW.s)",
        )
        .await;
    let pitr = Pitr::new(&[("shop-mysql", source.url())]);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    // Each of these is lost, or fails, where statements are filtered by the names in them.
    source
        .sql(
            "USE other; INSERT INTO shop.t (s) VALUES ('one'), ('two');
             SET SESSION binlog_format = STATEMENT; INSERT INTO shop.t (s) SELECT s FROM other.w;
             CREATE TEMPORARY TABLE other.tmp (s TEXT); INSERT INTO other.tmp VALUES ('tmp');
             INSERT INTO shop.t (s) SELECT s FROM other.tmp; DROP TEMPORARY TABLE other.tmp;
             ALTER TABLE other.moved RENAME TO shop.moved; INSERT INTO shop.moved VALUES (2);
             DROP DATABASE third; CREATE DATABASE third; CREATE TABLE third.x (a INT);
             SET SESSION binlog_format = ROW; USE shop; UPDATE t SET s = 'changed' WHERE id = 1;
             CREATE USER late@localhost",
        )
        .await;
    let gtids = source.gtid_executed().await;
    let target = Mysqld::start(&[]).await;
    let to = format!("shop-mysql={}", target.url());
    let args = ["restore", "--json", "--source", "shop-mysql", "--to-position", &gtids];
    let report =
        pitr.run(&[&args[..], &["--database", "shop", "--target", &to]].concat()).await.ok().json();
    let said = report["sources"][0]["checked"].as_str().unwrap();
    for words in ["only shop kept", "view shop.v mentions other", "trigger shop.tr mentions other"]
    {
        assert!(said.contains(words), "{said}");
    }
    assert_eq!(report["databases"], serde_json::json!(["shop"]));
    let schemas: Vec<String> = target.rows("SHOW DATABASES").await;
    let system = ["information_schema", "mysql", "performance_schema", "sys"];
    let own: Vec<&String> = schemas.iter().filter(|s| !system.contains(&s.as_str())).collect();
    assert_eq!(own, ["shop"]);
    for query in [
        "CHECKSUM TABLE shop.t, shop.moved",
        "SELECT TABLE_NAME, TABLE_TYPE FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'shop'
         ORDER BY 1",
        "SELECT User, Host FROM mysql.user WHERE User = 'late'",
    ] {
        let of = async |server: &Mysqld| server.rows::<(String, String)>(query).await;
        assert_eq!(of(&target).await, of(&source).await, "{query}");
    }
    assert_eq!(target.gtid_executed().await, gtids);
    drop(target);

    // What cannot be exact is refused by name, and what is not there is told.
    source
        .sql(
            "CREATE TABLE other.parent (id INT PRIMARY KEY); INSERT INTO other.parent VALUES (1);
             CREATE TABLE shop.child (id INT PRIMARY KEY, p INT,
               FOREIGN KEY (p) REFERENCES other.parent (id)); INSERT INTO shop.child VALUES (1, 1)",
        )
        .await;
    let gtids = source.gtid_executed().await;
    let into = async |databases: &'static [&'static str]| {
        let mut args = vec!["restore", "--json", "--source", "shop-mysql", "--to-position", &gtids];
        args.extend(["--into", "out"]);
        args.extend(databases.iter().flat_map(|name| ["--database", name]));
        pitr.run(&args).await
    };
    let error = into(&["nowhere"]).await.exits(1).error_json();
    assert!(error["message"].as_str().unwrap().contains("no database nowhere"), "{error}");
    let error = into(&["shop"]).await.exits(6).error_json();
    assert!(error["message"].as_str().unwrap().contains("other.parent"), "{error}");
    into(&["sys"]).await.exits(2);
    into(&["shop", "other"]).await.ok();
    let restored = Mysqld::start_on(&pitr.dir().join("out/shop-mysql/data"), &[]).await;
    let query = "CHECKSUM TABLE shop.t, shop.moved, shop.child, other.u, other.parent";
    let of = async |server: &Mysqld| server.rows::<(String, String)>(query).await;
    assert_eq!(of(&restored).await, of(&source).await);
    let third: Vec<String> = restored.rows("SHOW DATABASES LIKE 'third'").await;
    assert!(third.is_empty());
}

#[tokio::test]
async fn the_databases_of_a_configuration_are_kept_unless_a_restore_says_otherwise() {
    let (cache, source) = (RedisServer::start(&[]).await, Mysqld::start(&[]).await);
    let pitr = Pitr::new(&[("shop-redis", cache.url()), ("shop-mysql", source.url())]);
    pitr.append_config("databases = [\"shop\", \"crm\"]");
    source.sql("CREATE DATABASE shop; CREATE DATABASE other; CREATE TABLE other.t (a INT)").await;
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    // The baseline has everything, and so has the log.
    eventually("what is not there is warned of", Duration::from_secs(10), async || {
        daemon.log().contains("`databases` names crm, which is not there").then_some(())
    })
    .await;
    source
        .sql(
            "CREATE DATABASE crm; CREATE TABLE shop.t (a INT); CREATE TABLE crm.t (a INT);
             INSERT INTO shop.t VALUES (7); INSERT INTO crm.t SELECT a FROM shop.t;
             INSERT INTO other.t SELECT a FROM crm.t",
        )
        .await;
    tokio::time::sleep(Duration::from_millis(800)).await;
    daemon.terminate(Duration::from_secs(20)).await;

    let own = ["crm", "other", "shop"];
    let schemas = |folder: &str| {
        let data = pitr.dir().join(folder).join("shop-mysql/data");
        own.into_iter().filter(|name| data.join(name).exists()).collect::<Vec<_>>()
    };
    let restore = async |folder: &str, more: &[&str]| {
        let args = ["restore", "--to", "latest", "--into", folder, "--json"];
        pitr.run(&[&args[..], more].concat()).await
    };
    let of = |report: &serde_json::Value, source: &str| {
        let sources = report["sources"].as_array().unwrap();
        let found = sources.iter().find(|found| found["name"] == source).unwrap();
        (found["databases"].clone(), found["databases_reason"].clone())
    };
    let configured = serde_json::json!(["shop", "crm"]);
    let none = serde_json::Value::Null;

    let plan = restore("plan", &["--plan"]).await.ok().json();
    let (databases, reason) = of(&plan, "shop-mysql");
    assert_eq!(databases, configured);
    assert!(reason.as_str().unwrap().contains("the configuration of the source"), "{reason}");
    assert_eq!(of(&plan, "shop-redis"), (none.clone(), none.clone()));
    assert_eq!(plan["databases"], none);
    let said = pitr.run(&["restore", "--to", "latest", "--plan"]).await.ok().stdout;
    assert!(said.contains("only shop, crm would be kept: the configuration"), "{said}");

    let report = restore("kept", &[]).await.ok().json();
    assert_eq!(schemas("kept"), ["crm", "shop"]);
    assert_eq!(of(&report, "shop-mysql").0, configured);
    let receipt = pitr.dir().join("kept").read_dir().unwrap().flatten();
    let receipt = receipt.map(|entry| entry.path()).find(|path| path.is_file()).unwrap();
    let receipt: serde_json::Value =
        serde_json::from_slice(&std::fs::read(receipt).unwrap()).unwrap();
    assert_eq!(of(&receipt, "shop-mysql"), of(&report, "shop-mysql"));

    let report =
        restore("other", &["--source", "shop-mysql", "--database", "other"]).await.ok().json();
    assert_eq!(schemas("other"), ["other"]);
    let asked = (serde_json::json!(["other"]), serde_json::json!("they were asked for"));
    assert_eq!(of(&report, "shop-mysql"), asked);
    let report = restore("all", &["--all-databases"]).await.ok().json();
    assert_eq!(schemas("all"), own);
    assert_eq!(of(&report, "shop-mysql"), (none.clone(), none));
    let restored = Mysqld::start_on(&pitr.dir().join("all/shop-mysql/data"), &[]).await;
    assert_eq!(restored.row::<u32>("SELECT a FROM other.t").await, 7);

    // One that was not there is an error, which says what to do.
    pitr.write_config(&pitr.config().replace("\"crm\"", "\"gone\""));
    let error = restore("missing", &["--source", "shop-mysql"]).await.exits(1).error_json();
    assert!(error["message"].as_str().unwrap().contains("no database gone then"), "{error}");
    assert_eq!(error["hint"], "restore those that were there: --database shop");
    pitr.write_config(&pitr.config().replace("\"gone\"", "\"mysql\""));
    let said = pitr.run(&["windows"]).await.exits(2).stderr;
    assert!(said.contains("mysql is the server's own database"), "{said}");
}

/// The landmarks that `pitr log` lists: name and text.
async fn landmarks(pitr: &Pitr) -> Vec<(String, String)> {
    let report = pitr.run(&["log", "--landmarks", "--json"]).await.ok().json();
    let text = |line: &serde_json::Value, key: &str| line[key].as_str().unwrap().to_owned();
    let lines = report["landmarks"].as_array().unwrap();
    lines.iter().map(|line| (text(line, "landmark"), text(line, "text"))).collect()
}

#[tokio::test]
async fn a_restore_to_before_a_landmark_brings_back_what_it_took_away() {
    let (source, cache) = (Mysqld::start(&[]).await, RedisServer::start(&[]).await);
    source.sql("CREATE DATABASE shop; CREATE TABLE shop.t (n INT PRIMARY KEY, s TEXT)").await;
    let pitr = Pitr::new(&[("shop-mysql", source.url()), ("shop-redis", cache.url())]);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    let mut keys = cache.conn().await;
    for n in 0..20 {
        source.sql(&format!("INSERT INTO shop.t VALUES ({n}, REPEAT('x', 1000))")).await;
        let () = keys.set(format!("key:{n}"), n).await.unwrap();
    }
    let then = content(&source).await;
    let then_keys = redis::digest::digest(&mut keys).await.unwrap();
    source
        .sql(
            "/* by mistake */ DROP TABLE shop.t; CREATE TABLE shop.u (a INT);
             CREATE USER app IDENTIFIED BY 'secret'; ALTER USER app IDENTIFIED BY 'secret2';
             CREATE TEMPORARY TABLE shop.tmp (a INT); DROP TEMPORARY TABLE shop.tmp;
             ALTER TABLE shop.u ADD b INT COMMENT 'password: secret3'; TRUNCATE shop.u",
        )
        .await;
    let () = ::redis::cmd("FLUSHALL").query_async(&mut keys).await.unwrap();

    let listed = eventually("all landmarks are listed", Duration::from_secs(20), async || {
        let listed = landmarks(&pitr).await;
        (listed.len() == 4).then_some(listed)
    })
    .await;
    let texts: Vec<&str> = listed.iter().map(|(_, text)| text.as_str()).collect();
    assert!(texts[0].starts_with("DROP TABLE `shop`.`t`"), "{texts:?}");
    assert!(texts[1].starts_with("ALTER TABLE shop.u ADD b INT COMMENT"), "{texts:?}");
    assert_eq!(texts[2..], ["TRUNCATE shop.u", "FLUSHALL"]);
    assert!(!texts.join(" ").contains("secret"), "{texts:?}");

    let drop_table = listed[0].0.clone();
    let (target, report) = restored(&pitr, "--before", &drop_table).await;
    assert_eq!(content(&target).await.diff(&then), [""; 0]);
    assert_eq!(report["position"].as_str(), Some(&*drop_table));
    assert!(report["sources"][0]["first_left_out"]["at"].is_string(), "{report}");

    // It has the same name when its segment is sealed, and in a catalog that was made anew.
    daemon.terminate(Duration::from_secs(20)).await;
    assert_eq!(landmarks(&pitr).await, listed);
    pitr.run(&["reindex"]).await.ok();
    assert_eq!(landmarks(&pitr).await, listed);
    let copy = RedisServer::start(&[]).await;
    let to = format!("shop-redis={}", copy.url());
    let flushed = ["restore", "--source", "shop-redis", "--before", &listed[3].0];
    pitr.run(&[&flushed[..], &["--target", &to]].concat()).await.ok();
    let now = redis::digest::digest(&mut copy.conn().await).await.unwrap();
    assert_eq!(now.diff(&then_keys), [""; 0]);

    plan(&pitr, "--to-position", &drop_table).await.exits(2);
    plan(&pitr, "--before", "landmark:1.1.99").await.exits(4);
    plan(&pitr, "--before", "landmark:7").await.exits(2);
}
