//! Makes `fixtures/corpus`: bytes of real servers for the fuzz targets.

use crate::events::{ROWS, SCHEMA, STATEMENTS};
use crate::support::{Mariadbd, Mysqld, RedisServer};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tokio::io::AsyncReadExt;

/// The largest file of the corpus, in bytes.
const LARGEST: usize = 16 << 10;

/// What MariaDB writes in its own way.
const MARIA: [&str; 4] = [
    "CREATE DATABASE e; CREATE TABLE e.t (a INT PRIMARY KEY, b TEXT); CREATE SEQUENCE e.s",
    "INSERT INTO e.t VALUES (1, REPEAT('x', 500)); SELECT NEXTVAL(e.s);
     SET gtid_domain_id = 7; UPDATE e.t SET b = REPEAT('y', 300)",
    "SET gtid_domain_id = 8; SET SESSION binlog_format = STATEMENT; BEGIN;
     INSERT INTO e.t VALUES (RAND() * 0 + 2, @@session.server_id); COMMIT",
    "XA START 'a'; INSERT INTO e.t VALUES (3, ''); XA END 'a'; XA PREPARE 'a'; XA COMMIT 'a';
     CREATE TABLE e.u (c INT) ENGINE = MyISAM; BEGIN; INSERT INTO e.u VALUES (1);
     INSERT INTO e.t VALUES (4, ''); ROLLBACK; DELETE FROM e.t",
];

/// Values of each type, in the forms for few and for many elements.
const REDIS: [&str; 16] = [
    "SET text value",
    "SET number 12345",
    "SET gone soon PXAT 33000000000000",
    "RPUSH list a b 7 -70000 5000000000",
    "SADD numbers 1 2 70000",
    "SADD words a b c",
    "HSET hash f v g 1",
    "ZADD zset 1.5 a -inf b 2 c",
    "XADD stream 1-1 f v g w",
    "XADD stream 2-1 f x g y",
    "XGROUP CREATE stream readers 0",
    "XREADGROUP GROUP readers one COUNT 1 STREAMS stream >",
    "PFADD counted a b c",
    "GEOADD places 13.4 52.5 here",
    "FUNCTION LOAD #!lua\nname=l\nredis.register_function('f',function()return\t1\tend)",
    "SETRANGE long 300 end",
];

struct Corpus {
    dir: PathBuf,
    kinds: BTreeSet<u8>,
}

impl Corpus {
    fn put(&self, part: &str, name: &str, bytes: &[u8]) {
        if bytes.len() <= LARGEST {
            std::fs::create_dir_all(self.dir.join(part)).unwrap();
            std::fs::write(self.dir.join(part).join(name), bytes).unwrap();
        }
    }

    /// A binlog file: as a stream, as packets, and the first of each type of its events.
    fn file(&mut self, name: &str, file: &[u8]) {
        let log = &file[4..];
        // The first byte says in which pieces the bytes arrive.
        self.put("stream", name, &[&[40], log].concat());
        let (mut rest, mut packets, mut sequence) = (log, vec![3], 0_u8);
        while !rest.is_empty() {
            let length = u32::from_le_bytes(rest[9..13].try_into().unwrap()) as usize;
            let (event, behind) = rest.split_at(length);
            let [a, b, c, _] = u32::try_from(length + 1).unwrap().to_le_bytes();
            packets.extend([a, b, c, sequence, 0]);
            packets.extend(event);
            sequence = sequence.wrapping_add(1);
            if self.kinds.insert(event[4]) {
                self.put("event", &format!("type-{:03}", event[4]), event);
            }
            if matches!(event[4], 35 | 163) {
                self.put("gtids", name, &event[19..length - 4]);
            }
            rest = behind;
        }
        self.put("packets", name, &packets);
    }

    /// What a Redis server saves, with how far its expiries are moved behind the magic number.
    async fn saved(&self, name: &str, args: &[&str]) {
        let redis = RedisServer::start(args).await;
        fill(&redis).await;
        let _: String = redis.cmd(&["SAVE"]).await;
        let rdb = std::fs::read(redis.datadir().join("dump.rdb")).unwrap();
        let moved = 3_600_000_i64.to_le_bytes();
        self.put("rdb", name, &[&rdb[..9], &moved, &rdb[9..]].concat());
    }

    /// What a Redis server appends to its file, with how it is cut up before it.
    async fn appended(&self) {
        let on = ["--appendonly", "yes", "--aof-timestamp-enabled", "yes"];
        let redis = RedisServer::start(&on).await;
        fill(&redis).await;
        let script = "redis.call('SET', 'k', '*1') redis.call('DEL', 'k')";
        let _: ::redis::Value = redis.cmd(&["EVAL", script, "0"]).await;
        redis.cmd_in::<()>(3, &["SET", "elsewhere", ""]).await;
        let file = redis.datadir().join("appendonlydir/appendonly.aof.1.incr.aof");
        self.put("commands", "file", &[b"\x15", &std::fs::read(file).unwrap()[..]].concat());
    }

    async fn files(&mut self, name: &str, server: &Mysqld) {
        let mut greeting = vec![1];
        let port = ("127.0.0.1", server.port());
        let mut io = tokio::net::TcpStream::connect(port).await.unwrap();
        io.read_buf(&mut greeting).await.unwrap();
        self.put("packets", &format!("{name}-greeting"), &greeting);
        for entry in std::fs::read_dir(server.datadir()).unwrap() {
            let entry = entry.unwrap();
            let file = entry.file_name().into_string().unwrap();
            if let Some(number) = file.strip_prefix("binlog.").filter(|n| n.starts_with('0')) {
                self.file(&format!("{name}-{number}"), &std::fs::read(entry.path()).unwrap());
            }
        }
    }
}

async fn fill(redis: &RedisServer) {
    for command in REDIS {
        let words: Vec<String> = command.split(' ').map(|word| word.replace("\\n", "\n")).collect();
        let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
        let code = words.get(2..).unwrap_or_default().join(" ");
        if words[0] == "FUNCTION" {
            words.truncate(2);
            words.push(&code);
        }
        let _: ::redis::Value = redis.cmd(&words).await;
    }
}

#[tokio::test]
#[ignore = "writes fixtures/corpus anew; see fixtures/README.md"]
async fn the_corpus_is_made_anew_from_real_servers() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/corpus");
    let mut corpus = Corpus { dir, kinds: BTreeSet::new() };
    let mut mysql = Mysqld::start(&[]).await;
    for statements in [&[SCHEMA][..], &ROWS, &STATEMENTS].concat() {
        mysql.sql(statements).await;
        mysql.sql("FLUSH BINARY LOGS").await;
    }
    mysql.sql("XA START 'a'; DELETE FROM e.t; XA END 'a'; XA PREPARE 'a'; XA ROLLBACK 'a'").await;
    mysql.restart().await;
    corpus.files("mysql", &mysql).await;
    corpus.put("gtids", "mysql-text", mysql.gtid_executed().await.as_bytes());

    let maria = Mariadbd::start(&["--log-bin-compress=ON", "--log-bin-compress-min-len=20"]).await;
    for statements in MARIA {
        maria.sql(statements).await;
        maria.sql("FLUSH BINARY LOGS").await;
    }
    corpus.files("mariadb", &maria).await;
    let state: String = maria.row("SELECT @@gtid_binlog_state").await;
    corpus.put("gtids", "mariadb-text", state.as_bytes());

    corpus.saved("small", &[]).await;
    let few = ["hash", "zset"].map(|kind| format!("--{kind}-max-listpack-entries"));
    let few: Vec<&str> = few.iter().flat_map(|name| [name.as_str(), "1"]).collect();
    corpus.saved("large", &[&few[..], &["--set-max-intset-entries", "1"]].concat()).await;
    corpus.appended().await;
    println!("types of events: {:?}", corpus.kinds);
}
