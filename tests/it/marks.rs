//! Instants that somebody named: all sources come back to exactly their places.

use crate::instants::until_windows;
use crate::support::{Daemon, Mysqld, Output, Pitr, RedisServer, eventually};
use ::redis::AsyncCommands;
use mysql_async::prelude::Queryable;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

const WRITERS: usize = 6;

/// A program that counts in two systems, one after the other: in MySQL first for even numbers, in
/// Redis first for odd ones.
struct Writer {
    /// The number that it has begun, and the last one that it has finished.
    begun: Arc<AtomicU64>,
    done: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Writer {
    fn start(id: usize, source: &Mysqld, cache: &RedisServer, stop: &Arc<AtomicBool>) -> Self {
        let (opts, url, stop) = (source.opts(), cache.url(), Arc::clone(stop));
        let (begun, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (begin, end) = (Arc::clone(&begun), Arc::clone(&done));
        let task = tokio::spawn(async move {
            let mut sql = mysql_async::Conn::new(opts).await.unwrap();
            let client = ::redis::Client::open(url).unwrap();
            let config = ::redis::AsyncConnectionConfig::new()
                .set_response_timeout(Some(Duration::from_secs(30)));
            let mut keys =
                client.get_multiplexed_async_connection_with_config(&config).await.unwrap();
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                begin.store(n, Ordering::SeqCst);
                let row = format!("REPLACE INTO shop.counters VALUES ({id}, {n})");
                if n % 2 == 0 {
                    sql.query_drop(&row).await.unwrap();
                }
                let () = keys.set(format!("counter:{id}"), n).await.unwrap();
                if n % 2 == 1 {
                    sql.query_drop(&row).await.unwrap();
                }
                end.store(n, Ordering::SeqCst);
            }
        });
        Self { begun, done, task }
    }
}

/// Whether a writer ever was where both systems say that it was.
fn is_a_state(in_mysql: u64, in_redis: u64) -> bool {
    let n = in_mysql.max(in_redis);
    in_mysql == in_redis
        || (in_mysql + 1 == n && in_redis == n && n % 2 == 1)
        || (in_redis + 1 == n && in_mysql == n && n.is_multiple_of(2))
}

async fn counters(source: &Mysqld, cache: &RedisServer) -> Vec<(u64, u64)> {
    let rows: Vec<(usize, u64)> = source.rows("SELECT id, n FROM shop.counters").await;
    let mut keys = cache.conn().await;
    let mut found = vec![];
    for id in 0..WRITERS {
        let in_mysql = rows.iter().find(|(row, _)| *row == id).map_or(0, |(_, n)| *n);
        let in_redis: Option<u64> = keys.get(format!("counter:{id}")).await.unwrap();
        found.push((in_mysql, in_redis.unwrap_or(0)));
    }
    found
}

async fn shop(source: &Mysqld) {
    source
        .sql("CREATE DATABASE shop; CREATE TABLE shop.counters (id INT PRIMARY KEY, n BIGINT)")
        .await;
}

/// Both are captured.
async fn captured(source: &Mysqld, cache: &RedisServer) -> (Pitr, Daemon) {
    shop(source).await;
    let pitr = Pitr::new(&[("shop-mysql", source.url()), ("shop-redis", cache.url())]);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    // The copy that opens the window comes before the stream.
    eventually("both stream", Duration::from_mins(1), async || {
        let report = pitr.run(&["windows", "--json"]).await.ok().json();
        let sources = report["sources"].as_array().unwrap().clone();
        sources.iter().all(|source| source["state"] == "streaming").then_some(())
    })
    .await;
    (pitr, daemon)
}

#[tokio::test]
async fn a_barrier_under_load_is_one_moment_of_every_program_that_writes_to_both() {
    let (source, cache) = (Mysqld::start(&[]).await, RedisServer::start(&[]).await);
    let (pitr, _daemon) = captured(&source, &cache).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<Writer> =
        (0..WRITERS).map(|id| Writer::start(id, &source, &cache, &stop)).collect();
    let read = |which: fn(&Writer) -> &AtomicU64| -> Vec<u64> {
        writers.iter().map(|writer| which(writer).load(Ordering::SeqCst)).collect()
    };
    let mut marks = vec![];
    for name in ["first", "second", "third"] {
        let goal: Vec<u64> = read(|writer| &writer.done).iter().map(|n| n + 5).collect();
        eventually("all writers go on", Duration::from_secs(30), async || {
            let now = read(|writer| &writer.done);
            now.iter().zip(&goal).all(|(now, goal)| now >= goal).then_some(())
        })
        .await;
        let done = read(|writer| &writer.done);
        let made = pitr.run(&["mark", name, "--barrier", "--json"]).await.ok().json();
        let begun = read(|writer| &writer.begun);
        let held = made["held_us"].as_u64().unwrap();
        println!("writes were held for {held} µs");
        assert!(0 < held && held < 2_000_000, "{made}");
        assert_eq!(made["sources"].as_array().unwrap().len(), 2, "{made}");
        marks.push((name, done, begun));
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.task.await.unwrap();
    }
    for (name, done, begun) in marks {
        let (target, copy) = (Mysqld::start(&[]).await, RedisServer::start(&[]).await);
        let targets =
            [format!("shop-mysql={}", target.url()), format!("shop-redis={}", copy.url())];
        let to = format!("mark:{name}");
        let args = ["restore", "--json", "--to", &to, "--target", &targets[0], "--target"];
        let report = pitr.run(&[&args[..], &[&targets[1]]].concat()).await.ok().json();
        assert_eq!(report["position"], to, "{report}");
        let found = counters(&target, &copy).await;
        for (id, (in_mysql, in_redis)) in found.iter().enumerate() {
            let all = format!("{name}: writer {id} of {found:?}");
            assert!(is_a_state(*in_mysql, *in_redis), "{all}: never was there");
            assert!(done[id] <= *in_mysql.min(in_redis), "{all}: lost what was done before");
            assert!(*in_mysql.max(in_redis) <= begun[id], "{all}: has what was begun later");
        }
    }
}

#[tokio::test]
async fn a_mark_is_exact_and_can_be_seen_in_the_stream_and_in_the_list() {
    let (source, cache) = (Mysqld::start(&[]).await, RedisServer::start(&[]).await);
    let (pitr, daemon) = captured(&source, &cache).await;
    let mut keys = cache.conn().await;
    // As fast as can be, so that samples of the clock could not tell these places.
    for n in 1..=3 {
        let () = keys.set("counter:0", n).await.unwrap();
        source.sql(&format!("REPLACE INTO shop.counters VALUES (0, {n})")).await;
        let said = pitr.run(&["mark", &format!("m{n}")]).await.ok().stdout;
        assert!(said.contains("everything before it is archived"), "{said}");
    }
    let size: u64 = cache.cmd(&["DBSIZE"]).await;
    assert_eq!(size, 1, "a mark leaves no key");
    drop(daemon);
    let list = pitr.run(&["log", "--marks", "--json"]).await.ok().json();
    let names: Vec<&str> =
        list["marks"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["m1", "m2", "m3"]);
    assert_eq!(list["marks"][1]["sources"][1]["published"], true, "{list}");
    let text = pitr.run(&["log", "--marks"]).await.ok().stdout;
    assert!(text.contains("pitr restore --to mark:m2"), "{text}");
    for n in 1..=3 {
        let (to, into) = (format!("mark:m{n}"), format!("restored-{n}"));
        // The whole pair once; a server takes its time to be made.
        let which: &[&str] = if n == 2 { &[] } else { &["--source", "shop-redis"] };
        pitr.run(&[&["restore", "--to", &to, "--into", &into], which].concat()).await.ok();
        let into = pitr.dir().join(into);
        let copy = RedisServer::start_on(&into.join("shop-redis")).await;
        assert_eq!(copy.cmd::<u64>(&["GET", "counter:0"]).await, n);
        if n == 2 {
            let target = Mysqld::start_on(&into.join("shop-mysql/data"), &[]).await;
            assert_eq!(counters(&target, &copy).await[0], (n, n));
        }
    }
}

/// A statement on a table, which a lock on all tables has to wait for.
async fn slow_statement(server: &Mysqld, seconds: u32) -> JoinHandle<()> {
    let opts = server.opts();
    let text = format!("SELECT SLEEP({seconds}), n FROM shop.counters LIMIT 1");
    let slow = tokio::spawn(async move {
        let mut sql = mysql_async::Conn::new(opts).await.unwrap();
        let _: Option<(u8, i64)> = sql.query_first(text).await.unwrap();
    });
    let running = "SELECT COUNT(*) FROM information_schema.processlist WHERE state = 'User sleep'";
    eventually("the statement runs", Duration::from_secs(30), async || {
        (server.row::<u64>(running).await > 0).then_some(())
    })
    .await;
    slow
}

/// Asks for a barrier that gets the first source and waits for the second, and returns once writes
/// of the first are held.
async fn half_a_barrier(
    pitr: &Arc<Pitr>,
    first: &Mysqld,
    name: &'static str,
) -> JoinHandle<Output> {
    let asker = Arc::clone(pitr);
    let asking = tokio::spawn(async move { asker.run(&["mark", name, "--barrier"]).await });
    let locked = "SELECT COUNT(*) FROM performance_schema.metadata_locks WHERE \
                  object_type = 'GLOBAL' AND lock_type = 'SHARED' AND lock_status = 'GRANTED'";
    let mut conn = first.conn().await;
    let deadline = Instant::now() + Duration::from_secs(30);
    while conn.query_first::<u64, _>(locked).await.unwrap() == Some(0) {
        assert!(Instant::now() < deadline, "{:?}", asking.is_finished());
    }
    asking
}

#[tokio::test]
async fn writes_go_on_when_a_barrier_cannot_be_had_and_when_pitr_freezes_or_dies_under_it() {
    let (first, second) = (Mysqld::start(&[]).await, Mysqld::start(&[]).await);
    shop(&first).await;
    shop(&second).await;
    second.sql("INSERT INTO shop.counters VALUES (0, 0)").await;
    let pitr = Arc::new(Pitr::new(&[("first", first.url()), ("second", second.url())]));
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    let write = async || {
        let writing = first.sql("REPLACE INTO shop.counters VALUES (0, 1)");
        // Much longer than it takes, much shorter than the statement that is in the way.
        tokio::time::timeout(Duration::from_secs(20), writing).await.expect("writes are held");
    };

    let slow = slow_statement(&second, 60).await;
    let said = half_a_barrier(&pitr, &first, "waits").await.await.unwrap().exits(3);
    // Whichever gives up first, pitr or the server, says so.
    let words = ["could not be held together", "lock against writes"];
    assert!(words.iter().any(|words| said.stderr.contains(words)), "{}", said.stderr);
    write().await;

    let asking = half_a_barrier(&pitr, &first, "freezes").await;
    daemon.signal("STOP");
    write().await;
    daemon.signal("CONT");
    asking.await.unwrap().exits(3);

    let asking = half_a_barrier(&pitr, &first, "dies").await;
    daemon.kill();
    write().await;
    asking.await.unwrap().exits(3);
    slow.abort();
    let list = pitr.run(&["log", "--marks", "--json"]).await.ok().json();
    assert_eq!(list["marks"].as_array().unwrap().len(), 0, "{list}");
}

#[tokio::test]
async fn what_cannot_be_marked_or_restored_to_is_refused_in_words() {
    let (source, mut cache) = (Mysqld::start(&[]).await, RedisServer::start(&[]).await);
    let (pitr, mut daemon) = captured(&source, &cache).await;

    for name in ["a/b", "..", ".hidden", "a b", ""] {
        let said = pitr.run(&["mark", name]).await.exits(2);
        assert!(said.stderr.contains("cannot be the name of a mark"), "{}", said.stderr);
    }
    pitr.run(&["mark", "both"]).await.ok();
    let said = pitr.run(&["mark", "both"]).await.exits(6);
    assert!(said.stderr.contains("there is a mark named both already"), "{}", said.stderr);
    let said = pitr.run(&["restore", "--to", "mark:never", "--plan"]).await.exits(2);
    assert!(said.stderr.contains("pitr log --marks"), "{}", said.stderr);

    // A source that is not captured is not in the mark, unless it is left out on purpose.
    cache.stop().await;
    eventually("the source is known to be gone", Duration::from_secs(30), async || {
        let said = pitr.run(&["mark", "without"]).await;
        let named = said.stderr.contains("shop-redis is not streaming");
        (said.code() == Some(3) && named).then_some(())
    })
    .await;
    pitr.run(&["mark", "one", "--source", "shop-mysql"]).await.ok();
    let said = pitr.run(&["restore", "--to", "mark:one", "--plan"]).await.exits(4);
    assert!(said.stderr.contains("--source shop-mysql"), "{}", said.stderr);
    let plan = ["restore", "--to", "mark:one", "--source", "shop-mysql", "--plan", "--json"];
    pitr.run(&plan).await.ok();

    // The baseline that leads to a mark is gone, as after the time that it is kept for.
    source.sql("REPLACE INTO shop.counters VALUES (0, 1)").await;
    let taken = pitr.run(&["baseline", "--source", "shop-mysql", "--json"]).await.ok().json();
    let newest = taken["baselines"][0]["name"].as_str().unwrap().to_owned();
    daemon.terminate(Duration::from_secs(30)).await;
    let said = pitr.run(&["mark", "late"]).await.exits(3);
    assert!(said.stderr.contains("no daemon runs"), "{}", said.stderr);
    let folder = pitr.archive().join("shop-mysql/t0001");
    for file in std::fs::read_dir(&folder).unwrap() {
        let (path, name) = file.map(|file| (file.path(), file.file_name())).unwrap();
        let name = name.into_string().unwrap();
        if name.starts_with("base-") && !name.starts_with(&newest) {
            std::fs::remove_file(path).unwrap();
        }
    }
    pitr.run(&["reindex"]).await.ok();
    let error = pitr.run(&plan).await.exits(4).error_json();
    assert!(error["message"].as_str().unwrap().contains("before the first baseline"), "{error}");
    assert!(!error["nearest"].as_array().unwrap().is_empty(), "{error}");

    // A byte that changed is found.
    let file = pitr.archive().join("marks/both.json");
    let json =
        std::fs::read_to_string(&file).unwrap().replace("\"timeline\": 1", "\"timeline\": 2");
    std::fs::write(&file, json).unwrap();
    let said = pitr.run(&["restore", "--to", "mark:both", "--plan"]).await.exits(5);
    assert!(said.stderr.contains("does not match its seal"), "{}", said.stderr);
}
