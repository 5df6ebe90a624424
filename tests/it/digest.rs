//! Digests: equal content gives equal digests, and every kind of change is seen and named.

use crate::support::{Mysqld, RedisServer, SERVER_DEADLINE, eventually, program};
use pitr::engine::digest::Digest;
use pitr::engine::{mysql, redis};

async fn mysql_digest(server: &Mysqld) -> Digest {
    let mut conn = server.conn().await;
    let digest = mysql::digest::digest(&mut conn).await.unwrap();
    conn.disconnect().await.unwrap();
    digest
}

async fn mysql_accounts(server: &Mysqld) -> Digest {
    let mut conn = server.conn().await;
    let digest = mysql::digest::digest_accounts(&mut conn).await.unwrap();
    conn.disconnect().await.unwrap();
    digest
}

/// Statements that are sent one by one: see [`Mysqld::sql`].
const SCHEMA: &str = r"
    CREATE DATABASE shop DEFAULT CHARACTER SET latin1;
    CREATE TABLE shop.kinds (
        id INT AUTO_INCREMENT PRIMARY KEY, f FLOAT, fd FLOAT(9,2), d DOUBLE, dd DOUBLE(12,3),
        n DECIMAL(30,10), j JSON, ts TIMESTAMP(6) NULL, dt DATETIME(6), t TIME(6), y YEAR,
        b BIT(11), e ENUM('', 'x', 'y'), s SET('a', 'b'), bl LONGBLOB, vb VARBINARY(20),
        l1 VARCHAR(20) CHARACTER SET latin1, u8 VARCHAR(20) CHARACTER SET utf8mb4,
        g GEOMETRY, v VECTOR(3), hidden INT INVISIBLE,
        gs INT GENERATED ALWAYS AS (hidden * 2) STORED,
        gv INT GENERATED ALWAYS AS (hidden * 3) VIRTUAL);
    CREATE TABLE shop.keyless (a INT, b VARCHAR(10));
    CREATE TABLE shop.KEYLESS (z INT);
    CREATE TABLE shop.parent (id INT PRIMARY KEY);
    CREATE TABLE shop.`odd ``name` (`c ``x` INT PRIMARY KEY, p INT,
        CONSTRAINT fk FOREIGN KEY (p) REFERENCES shop.parent (id) ON DELETE CASCADE);
    CREATE VIEW shop.seen AS SELECT id, f FROM shop.kinds;
    CREATE PROCEDURE shop.proc(a INT) SELECT a;
    CREATE FUNCTION shop.func() RETURNS INT DETERMINISTIC RETURN 1;
    CREATE TRIGGER shop.trig BEFORE INSERT ON shop.parent FOR EACH ROW SET NEW.id = NEW.id;
    CREATE EVENT shop.ev ON SCHEDULE EVERY 1 YEAR STARTS '2030-01-01' DO DELETE FROM shop.keyless";

async fn create_schema(server: &Mysqld) {
    for statement in SCHEMA.split(";\n") {
        server.sql(statement).await;
    }
}

const ROW_ONE: &str = r"INSERT INTO shop.kinds
    (id, f, fd, d, dd, n, j, ts, dt, t, y, b, e, s, bl, vb, l1, u8, g, v, hidden) VALUES
    (1, 1.1, 1234567.89, 0.1e0, 1.25, 1.0000000001, JSON_ARRAY(1, 1.5, NULL),
     '2024-01-01 00:00:00.000001', '2024-01-01 00:00:00.000001', '-10:00:00.5', 2024, b'101', 'x',
     'a,b', x'00ff00', x'0001', 'é', '😀', ST_GeomFromText('POINT(1 2)', 4326),
     STRING_TO_VECTOR('[1,2,3]'), 5)";

#[tokio::test]
async fn mysql_content_written_in_another_order_has_the_same_digest() {
    let (left, right) = (Mysqld::start(&[]).await, Mysqld::start(&[]).await);
    for server in [&left, &right] {
        create_schema(server).await;
    }
    let other = "INSERT INTO shop.kinds (id, u8) VALUES (2, NULL), (7, '')";
    left.sql(&format!("{ROW_ONE}; {other}; SET GLOBAL time_zone = '+05:00'")).await;
    left.sql("INSERT INTO shop.keyless VALUES (1, 'a'), (1, 'a'), (2, NULL)").await;
    // The counter ends elsewhere, the rows come in another order and by other statements.
    right.sql(&format!("INSERT INTO shop.kinds (id) VALUES (90); {other}; {ROW_ONE}")).await;
    right.sql("DELETE FROM shop.kinds WHERE id = 90").await;
    right.sql("INSERT INTO shop.keyless VALUES (2, 'z'), (1, 'a')").await;
    right.sql("INSERT INTO shop.keyless VALUES (1, 'a')").await;
    right.sql("UPDATE shop.keyless SET b = NULL WHERE a = 2").await;

    let (left, right) = (mysql_digest(&left).await, mysql_digest(&right).await);
    assert_eq!(left.diff(&right), [""; 0]);
    assert_eq!(left, right);
    assert_eq!(left.total(), right.total());
    assert_eq!(left.elements("rows of shop.kinds"), Some(3));
    assert_eq!(left.elements("rows of shop.keyless"), Some(3));
    assert!(left.parts().contains_key("event shop.ev"), "{:?}", left.parts());
}

#[tokio::test]
async fn a_dump_and_a_replica_have_the_digest_of_their_mysql_source() {
    let (source, copy) = (Mysqld::start(&[]).await, Mysqld::start(&[]).await);
    let replica = Mysqld::start(&[]).await;
    create_schema(&source).await;
    source.sql(ROW_ONE).await;
    source.sql("INSERT INTO shop.keyless VALUES (1, 'a'), (1, 'a'), (2, NULL)").await;
    source.sql("CREATE USER app@'%' IDENTIFIED BY 'geheim'; GRANT ALL ON shop.* TO app@'%'").await;
    source
        .sql(
            "SET GLOBAL sql_generate_invisible_primary_key = ON;
             SET sql_generate_invisible_primary_key = ON;
             CREATE TABLE shop.gipk (a INT); INSERT INTO shop.gipk VALUES (3), (1);
             CREATE TABLE shop.parts (a INT AUTO_INCREMENT PRIMARY KEY) PARTITION BY HASH (a) PARTITIONS 3;
             INSERT INTO shop.parts VALUES (), (), ();
             CREATE VIEW shop.wide AS SELECT k.*, l.b AS lb FROM shop.kinds k, shop.keyless l",
        )
        .await;
    let script = format!(
        "{} -h127.0.0.1 -P{} -uroot --single-transaction --hex-blob --routines --triggers \
         --events --set-gtid-purged=OFF --databases shop | {} -h127.0.0.1 -P{} -uroot",
        program("mysqldump").display(),
        source.port(),
        program("mysql").display(),
        copy.port()
    );
    let status = std::process::Command::new("sh").args(["-c", &script]).status().unwrap();
    assert!(status.success());
    replica
        .sql(&format!(
            "CHANGE REPLICATION SOURCE TO SOURCE_HOST = '127.0.0.1', SOURCE_PORT = {},
             SOURCE_USER = 'root', SOURCE_AUTO_POSITION = 1, GET_SOURCE_PUBLIC_KEY = 1;
             START REPLICA",
            source.port()
        ))
        .await;
    let executed = source.gtid_executed().await;
    eventually("the replica has applied everything", SERVER_DEADLINE, async || {
        (replica.gtid_executed().await == executed).then_some(())
    })
    .await;

    let original = mysql_digest(&source).await;
    assert_eq!(original.diff(&mysql_digest(&copy).await), [""; 0]);
    // An event is disabled on a replica until it is made a server of its own.
    let differing = original.diff(&mysql_digest(&replica).await);
    assert_eq!(differing, ["event shop.ev: differs"]);
    assert_eq!(mysql_accounts(&source).await.diff(&mysql_accounts(&replica).await), [""; 0]);
}

#[tokio::test]
async fn every_change_in_mysql_changes_the_part_it_belongs_to() {
    let server = Mysqld::start(&[]).await;
    create_schema(&server).await;
    server.sql(ROW_ONE).await;
    server.sql("INSERT INTO shop.keyless VALUES (1, 'a'), (1, 'a'), (2, NULL)").await;
    let kinds = "rows of shop.kinds";
    // What is changed, and the names of the parts that must differ because of it.
    let changes = [
        ("UPDATE shop.kinds SET f = 1.1000002", kinds),
        ("UPDATE shop.kinds SET fd = 1234567.75", kinds),
        ("UPDATE shop.kinds SET d = 0.1e0 + 2e-17", kinds),
        ("UPDATE shop.kinds SET n = n + 0.0000000001", kinds),
        ("UPDATE shop.kinds SET j = JSON_ARRAY(1, 1.5, 0)", kinds),
        ("UPDATE shop.kinds SET ts = ts + INTERVAL 1 MICROSECOND", kinds),
        ("UPDATE shop.kinds SET dt = dt + INTERVAL 1 MICROSECOND", kinds),
        ("UPDATE shop.kinds SET t = '-10:00:00.499999'", kinds),
        ("UPDATE shop.kinds SET y = 2025", kinds),
        ("UPDATE shop.kinds SET b = b'100'", kinds),
        ("UPDATE shop.kinds SET e = ''", kinds),
        ("SET sql_mode = ''; UPDATE shop.kinds SET e = 'no such'", kinds),
        ("UPDATE shop.kinds SET s = 'a'", kinds),
        ("UPDATE shop.kinds SET bl = x'00ff01'", kinds),
        ("UPDATE shop.kinds SET vb = x'000100'", kinds),
        ("UPDATE shop.kinds SET l1 = 'è'", kinds),
        ("UPDATE shop.kinds SET u8 = '😁'", kinds),
        ("UPDATE shop.kinds SET u8 = NULL", kinds),
        ("UPDATE shop.kinds SET u8 = ''", kinds),
        ("UPDATE shop.kinds SET g = ST_GeomFromText('POINT(1 2)', 0)", kinds),
        ("UPDATE shop.kinds SET v = STRING_TO_VECTOR('[1,2,3.5]')", kinds),
        ("UPDATE shop.kinds SET hidden = 6", kinds),
        ("INSERT INTO shop.kinds (id) VALUES (3)", kinds),
        ("DELETE FROM shop.keyless WHERE a = 1 LIMIT 1", "rows of shop.keyless"),
        ("INSERT INTO shop.`odd ``name` VALUES (1, NULL)", "rows of shop.odd `name"),
        ("ALTER TABLE shop.keyless COMMENT ' AUTO_INCREMENT=7'", "table shop.keyless"),
        ("CREATE INDEX i ON shop.keyless (a)", "table shop.keyless"),
        ("CREATE TABLE shop.more (a INT)", "rows of shop.more, table shop.more"),
        ("CREATE OR REPLACE VIEW shop.seen AS SELECT id FROM shop.kinds", "view shop.seen"),
        ("ALTER PROCEDURE shop.proc SQL SECURITY INVOKER", "procedure shop.proc"),
        ("DROP FUNCTION shop.func", "function shop.func"),
        ("DROP TRIGGER shop.trig", "trigger shop.trig"),
        ("ALTER EVENT shop.ev DISABLE", "event shop.ev"),
        ("ALTER DATABASE shop DEFAULT CHARACTER SET utf8mb4", "schema shop"),
        ("CREATE DATABASE vacant", "schema vacant"),
    ];
    let mut before = mysql_digest(&server).await;
    for (change, parts) in changes {
        server.sql(change).await;
        let after = mysql_digest(&server).await;
        let differing: Vec<String> = before.diff(&after);
        let mut names: Vec<&str> =
            differing.iter().filter_map(|d| Some(d.split_once(": ")?.0)).collect();
        names.sort_unstable();
        assert_eq!(names.join(", "), parts, "{change}\n{differing:?}");
        before = after;
    }
}

#[tokio::test]
async fn accounts_and_grants_have_a_digest_of_their_own() {
    let server = Mysqld::start(&[]).await;
    let before = mysql_accounts(&server).await;
    server.sql("CREATE USER `o'neil`@'10.%' IDENTIFIED BY 'one'; CREATE ROLE r").await;
    let created = mysql_accounts(&server).await;
    assert_eq!(before.diff(&created).len(), 4, "{:?}", before.diff(&created));
    server.sql("ALTER USER `o'neil`@'10.%' IDENTIFIED BY 'two'").await;
    let altered = mysql_accounts(&server).await;
    assert_eq!(created.diff(&altered), ["account 'o''neil'@'10.%': differs"]);
    server.sql("GRANT SELECT ON *.* TO `o'neil`@'10.%'").await;
    let granted = mysql_accounts(&server).await;
    assert_eq!(altered.diff(&granted).len(), 1);
    assert!(altered.diff(&granted)[0].starts_with("grants of 'o''neil'@'10.%': "));
    assert_eq!(mysql_digest(&server).await.parts().len(), 0);
}

#[tokio::test]
async fn a_large_mysql_table_is_digested_with_every_row() {
    let server = Mysqld::start(&["--cte-max-recursion-depth=1000000"]).await;
    server
        .sql(
            "CREATE DATABASE d; CREATE TABLE d.t (id INT PRIMARY KEY, pad VARCHAR(100));
              INSERT INTO d.t WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n
              WHERE i < 200000) SELECT i, REPEAT('x', 100) FROM n",
        )
        .await;
    let before = mysql_digest(&server).await;
    assert_eq!(before.elements("rows of d.t"), Some(200_000));
    server.sql("UPDATE d.t SET pad = 'y' WHERE id = 123456").await;
    let after = mysql_digest(&server).await;
    assert_eq!(before.diff(&after), ["rows of d.t: 200000 on both sides, but not the same"]);
}

async fn redis_digest(server: &RedisServer) -> Digest {
    redis::digest::digest(&mut server.conn().await).await.unwrap()
}

/// One key of each type, in order or in reverse.
async fn fill_redis(server: &RedisServer, reverse: bool) {
    let mut commands = vec![
        "SET plain v",
        "SET expiring v PXAT 33000000000123",
        "RPUSH list a b c",
        "SADD set 1 2 3",
        "SADD words x y z",
        "HSET hash f 1 g 2",
        "ZADD zset 1.1 a -inf b 0.30000000000000004 c",
        "PFADD hll a b c",
        "SETBIT bits 100 1",
        "GEOADD geo 13.361389 38.115556 Palermo",
        "XADD stream 1-1 f v",
    ];
    if reverse {
        commands.reverse();
    }
    for command in commands {
        let words: Vec<&str> = command.split(' ').collect();
        server.cmd::<::redis::Value>(&words).await;
    }
    for command in ["XADD stream 2-1 f w", "XGROUP CREATE stream group 0", "SELECT 0"] {
        let words: Vec<&str> = command.split(' ').collect();
        server.cmd::<::redis::Value>(&words).await;
    }
    let claim = ["XCLAIM", "stream", "group", "worker", "0", "1-1", "TIME", "1700000000000"];
    let claim = [claim.as_slice(), &["RETRYCOUNT", "2", "FORCE", "JUSTID"]].concat();
    server.cmd::<::redis::Value>(&claim).await;
    server.cmd_in::<()>(5, &["SET", "plain", "in five"]).await;
    let code = "#!lua name=lib\nredis.register_function('f', function() return 1 end)";
    server.cmd::<String>(&["FUNCTION", "LOAD", code]).await;
    let numbers: Vec<String> = (0..3_000).map(|i: u32| i.to_string()).collect();
    for (command, key) in [("SADD", "big set"), ("RPUSH", "big list")] {
        let mut words = vec![command, key];
        let mut numbers: Vec<&str> = numbers.iter().map(String::as_str).collect();
        if reverse && command == "SADD" {
            numbers.reverse();
        }
        words.extend(numbers);
        server.cmd::<()>(&words).await;
    }
    server.cmd::<()>(&["SETRANGE", "big string", "3000000", "end"]).await;
}

#[tokio::test]
async fn redis_content_written_in_another_order_has_the_same_digest() {
    // The encodings differ too.
    let options = ["--set-max-intset-entries", "1", "--hash-max-listpack-entries", "0"];
    let (left, right) = (RedisServer::start(&[]).await, RedisServer::start(&options).await);
    fill_redis(&left, false).await;
    fill_redis(&right, true).await;
    let (left, right) = (redis_digest(&left).await, redis_digest(&right).await);
    assert_eq!(left.diff(&right), [""; 0]);
    assert_eq!(left, right);
    assert_eq!(left.elements("string keys of database 0"), Some(5));
    assert_eq!(left.elements("string keys of database 5"), Some(1));
}

#[tokio::test]
async fn a_replica_and_a_saved_file_have_the_digest_of_their_redis_source() {
    let (source, replica) = (RedisServer::start(&[]).await, RedisServer::start(&[]).await);
    // Half of it is there when the replica connects, the rest arrives as a stream.
    fill_redis(&source, false).await;
    let port = source.port().to_string();
    replica.cmd::<()>(&["REPLICAOF", "127.0.0.1", &port]).await;
    source.cmd::<()>(&["SET", "streamed", "v", "PX", "3600000"]).await;
    let read = ["XREADGROUP", "GROUP", "group", "reader", "STREAMS", "stream", ">"];
    source.cmd::<::redis::Value>(&read).await;
    let acknowledged: u32 = source.cmd(&["WAIT", "1", "30000"]).await;
    assert_eq!(acknowledged, 1);
    let original = redis_digest(&source).await;
    assert_eq!(original.diff(&redis_digest(&replica).await), [""; 0]);

    replica.cmd::<()>(&["REPLICAOF", "NO", "ONE"]).await;
    replica.cmd::<()>(&["SAVE"]).await;
    let folder = replica.datadir().display().to_string();
    let loaded = RedisServer::start(&["--dir", &folder]).await;
    assert_eq!(original.diff(&redis_digest(&loaded).await), [""; 0]);
}

#[tokio::test]
async fn the_expiry_of_a_hash_field_changes_its_key_where_fields_expire() {
    let server = RedisServer::start(&[]).await;
    let known: Vec<::redis::Value> = server.cmd(&["COMMAND", "INFO", "HPEXPIREAT"]).await;
    server.cmd::<()>(&["HSET", "hash", "f", "1", "g", "2"]).await;
    let before = redis_digest(&server).await;
    if known == [::redis::Value::Nil] {
        // Redis 7.0 and 7.2: fields live as long as their hash.
        return;
    }
    let expire = ["HPEXPIREAT", "hash", "33000000000123", "FIELDS", "1", "g"];
    server.cmd::<::redis::Value>(&expire).await;
    let after = redis_digest(&server).await;
    assert_ne!(before, after);
    let expire = ["HPEXPIREAT", "hash", "33000000000124", "FIELDS", "1", "g"];
    server.cmd::<::redis::Value>(&expire).await;
    assert_ne!(after, redis_digest(&server).await);
}

#[tokio::test]
async fn every_change_in_redis_changes_the_key_it_belongs_to() {
    let server = RedisServer::start(&[]).await;
    fill_redis(&server, false).await;
    let changes = [
        ("SET plain w", "\"plain\""),
        ("SETRANGE plain 1 \u{1}", "\"plain\""),
        ("PEXPIREAT expiring 33000000000124", "\"expiring\""),
        ("PERSIST expiring", "\"expiring\""),
        ("LSET list 1 x", "\"list\""),
        ("LMOVE list list LEFT RIGHT", "\"list\""),
        ("LSET big\u{a0}list 2999 x", ""),
        ("SREM set 2", "\"set\""),
        ("HSET hash f 2", "\"hash\""),
        ("HSET hash h 1", "\"hash\""),
        ("ZADD zset 0.3 c", "\"zset\""),
        ("PFADD hll d", "\"hll\""),
        ("XDEL stream 2-1", "\"stream\""),
        ("XADD stream 3-1 f v", "\"stream\""),
        ("XACK stream group 1-1", "\"stream\""),
        ("XGROUP SETID stream group 2-1", "\"stream\""),
        ("XGROUP CREATECONSUMER stream group idle", "\"stream\""),
        ("RENAME plain renamed", "\"plain\", \"renamed\""),
        ("DEL list", "list keys of database 0"),
        ("MOVE hash 5", "hash keys of database 0"),
        ("SWAPDB 0 5", "database 5"),
        ("FUNCTION DELETE lib", "function library \"lib\": only in the first"),
        ("FLUSHALL", "only in the first"),
    ];
    let mut before = redis_digest(&server).await;
    for (change, named) in changes {
        let words: Vec<String> =
            change.split(' ').map(|word| word.replace('\u{a0}', " ")).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        server.cmd::<::redis::Value>(&words).await;
        let after = redis_digest(&server).await;
        let differing = before.diff(&after);
        assert_ne!(before.total(), after.total(), "{change}");
        assert!(differing.iter().any(|line| line.contains(named)), "{change}: {differing:?}");
        before = after;
    }
    assert_eq!(before, Digest::default());
}
