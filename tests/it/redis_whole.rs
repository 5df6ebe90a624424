//! Whether the log between two baselines of Redis is complete, and what a server is besides its
//! data.

use crate::instants::until_windows;
use crate::support::{Daemon, Pitr, RedisServer, eventually};
use pitr::engine::redis;
use std::time::Duration;

const SOON: Duration = Duration::from_mins(1);

async fn captured(options: &[&str]) -> (RedisServer, Pitr, Daemon) {
    let server = RedisServer::start(options).await;
    let pitr = Pitr::new(&[("shop-redis", server.url())]);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    (server, pitr, daemon)
}

/// Changes of every kind whose trace in the log is another than what was asked for.
async fn work(server: &RedisServer, round: u32) {
    for n in 0..50 {
        let key = format!("k:{round}:{n}");
        server.cmd_in::<()>(n % 3, &["SET", &key, "v", "PX", "1000000"]).await;
        server.cmd_in::<()>(n % 3, &["HSET", "h", &key, "1"]).await;
    }
    server.cmd::<()>(&["SET", "short", "lived", "PX", "1"]).await;
    server.cmd::<()>(&["INCRBYFLOAT", "float", "0.1"]).await;
    server.cmd::<()>(&["SADD", "set", "a", "b", "c", "d"]).await;
    let _: Vec<String> = server.cmd(&["SPOP", "set", "2"]).await;
    let _: String = server.cmd(&["XADD", "stream", "*", "f", "v"]).await;
    let script = "redis.call('INCR', 'n'); redis.call('EXPIRE', 'n', 500)";
    server.cmd::<()>(&["EVAL", script, "0"]).await;
    let library =
        format!("#!lua name=l{round}\nredis.register_function('f{round}', function() end)");
    let _: String = server.cmd(&["FUNCTION", "LOAD", &library]).await;
}

#[tokio::test]
async fn a_baseline_with_the_log_behind_it_is_the_next_one_and_what_was_never_logged_is_named() {
    let (server, pitr, mut daemon) = captured(&[]).await;
    for round in 0..2 {
        work(&server, round).await;
        pitr.run(&["baseline"]).await.ok();
    }
    let report = pitr.run(&["verify", "--closure", "--json"]).await.ok().json();
    let closed = report["closure"].as_array().unwrap();
    assert_eq!(closed.len(), 3, "{report:#}");
    assert!(closed[0]["from"].is_null(), "nothing comes before the first: {report:#}");
    for closed in &closed[1..] {
        assert_eq!(closed["differences"].as_array().unwrap().len(), 0, "{report:#}");
        assert!(closed["records"].as_u64().unwrap() > 100, "{report:#}");
        assert!(closed["elements"].as_u64().unwrap() > 50, "{report:#}");
    }
    let text = pitr.run(&["verify", "--closure"]).await.ok().stdout;
    assert_eq!(text.matches("the same with their expiries").count(), 2, "{text}");

    // The server itself can be told not to log: no chain and no offset shows that.
    let hidden = "redis.set_repl(redis.REPL_NONE); redis.call('PEXPIRE', 'k:0:1', 1000001)";
    server.cmd_in::<()>(1, &["EVAL", hidden, "0"]).await;
    server.cmd::<()>(&["SET", "logged", "1"]).await;
    pitr.run(&["baseline"]).await.ok();
    pitr.run(&["verify"]).await.ok();
    let output = pitr.run(&["verify", "--closure", "--json"]).await.exits(1);
    let differences = output.json()["closure"][3]["differences"].as_array().unwrap().clone();
    assert_eq!(differences.len(), 1, "{differences:?}");
    let said = differences[0].as_str().unwrap();
    assert!(
        said.contains("database 1") && said.ends_with(": \"k:0:1\""),
        "an expiry alone: {said}"
    );
    let error = output.error_json();
    assert_eq!(error["class"], "finding");
    assert!(error["message"].as_str().unwrap().contains("k:0:1"), "{error}");
    assert!(daemon.terminate(Duration::from_secs(30)).await.success());
    // It needs neither the source nor a daemon.
    drop(server);
    let text = pitr.run(&["verify", "--closure"]).await.exits(1).stdout;
    assert!(text.contains("are not base-"), "{text}");
}

#[tokio::test]
async fn users_and_settings_of_then_are_in_a_restored_folder_and_no_secret_is_in_the_archive() {
    let options = ["--databases", "20", "--maxmemory-policy", "volatile-ttl"];
    let (server, pitr, mut daemon) = captured(&options).await;
    server.cmd::<()>(&["CONFIG", "SET", "notify-keyspace-events", "Kx"]).await;
    server.cmd::<()>(&["CONFIG", "SET", "masterauth", "geheim-1"]).await;
    server.cmd::<()>(&["ACL", "SETUSER", "app", "on", ">geheim-2", "~cart:*", "+get"]).await;
    server.cmd_in::<()>(19, &["SET", "cart:1", "x"]).await;
    pitr.run(&["baseline"]).await.ok();
    let stored = eventually("it is kept", SOON, async || newest_setup(&pitr, "cart")).await;
    // A change is kept with the next baseline, and nothing where nothing has changed.
    server.cmd::<()>(&["ACL", "DELUSER", "app"]).await;
    server.cmd::<()>(&["SET", "later", "x"]).await;
    let to = known_after(&pitr).await;
    for text in [stored.clone(), all_text(&pitr)] {
        assert!(!text.contains("geheim"), "{text}");
    }
    assert!(stored.contains("\"masterauth\""), "it is said that there is one: {stored}");
    // Users come from the newest look before the instant.
    let report = pitr.run(&["restore", "--to", &to, "--into", "then", "--json"]).await.ok().json();
    let setup = &report["sources"][0]["setup"];
    assert_eq!(setup["users"], 2, "{setup:#}");
    assert_eq!(setup["withheld"][0], "masterauth", "{setup:#}");
    let copy = RedisServer::start_on(&pitr.dir().join("then").join("shop-redis")).await;
    let users: Vec<String> = copy.cmd(&["ACL", "LIST"]).await;
    assert!(users.iter().any(|user| user.starts_with("user app on #")), "{users:?}");
    let is: Vec<String> = copy.cmd(&["CONFIG", "GET", "notify-keyspace-events"]).await;
    assert_eq!(is[1], "xK");
    let is: Vec<String> = copy.cmd(&["CONFIG", "GET", "databases"]).await;
    assert_eq!(is[1], "20");
    let is: Vec<String> = copy.cmd(&["CONFIG", "GET", "maxmemory-policy"]).await;
    assert_eq!(is[1], "volatile-ttl");
    assert_eq!(copy.cmd_in::<String>(19, &["GET", "cart:1"]).await, "x");
    pitr.run(&["verify"]).await.ok();
    assert!(daemon.terminate(Duration::from_secs(30)).await.success());
}

#[tokio::test]
async fn a_default_user_without_rights_costs_no_transaction_of_the_log() {
    let (server, pitr, _daemon) = captured(&[]).await;
    // Others log in by name: the default user may not write.
    server.cmd::<()>(&["ACL", "SETUSER", "admin", "on", "nopass", "~*", "&*", "+@all"]).await;
    server.cmd::<()>(&["ACL", "SETUSER", "default", "-set"]).await;
    pitr.run(&["baseline"]).await.ok();
    eventually("it is kept", SOON, async || newest_setup(&pitr, "-set")).await;
    let mut conn = server.conn().await;
    let () = ::redis::cmd("AUTH").arg("admin").arg("x").query_async(&mut conn).await.unwrap();
    let mut pipe = ::redis::pipe();
    pipe.atomic().cmd("SET").arg("a").arg(1).ignore().cmd("SET").arg("b").arg(2).ignore();
    let () = pipe.query_async(&mut conn).await.unwrap();
    let digest = redis::digest::digest(&mut conn).await.unwrap();
    let to = known_after(&pitr).await;
    pitr.run(&["restore", "--to", &to, "--into", "then"]).await.ok();
    let folder = pitr.dir().join("then").join("shop-redis");
    let conf = std::fs::read_to_string(folder.join("redis.conf")).unwrap();
    assert!(conf.contains("# aclfile"), "{conf}");
    let copy = RedisServer::start_on(&folder).await;
    let found = redis::digest::digest(&mut copy.conn().await).await.unwrap();
    assert_eq!(digest.diff(&found), [""; 0]);
}

/// The newest object that says what the server is, if it has a word.
fn newest_setup(pitr: &Pitr, word: &str) -> Option<String> {
    let folder = pitr.archive().join("shop-redis/setup");
    let mut all: Vec<_> =
        std::fs::read_dir(folder).ok()?.map(|entry| entry.unwrap().path()).collect();
    all.sort();
    let text = std::fs::read_to_string(all.pop()?).unwrap();
    text.contains(word).then_some(text)
}

fn all_text(pitr: &Pitr) -> String {
    let folder = pitr.archive().join("shop-redis/setup");
    let files = std::fs::read_dir(folder).unwrap();
    files.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap()).collect()
}

/// An instant before which all was done that was done until now.
async fn known_after(pitr: &Pitr) -> String {
    #[expect(clippy::disallowed_methods, reason = "the test stands outside of the program")]
    let now = chrono::Utc::now();
    eventually("the instant is known", SOON, async || {
        let report = pitr.run(&["windows", "--json"]).await.ok().json();
        let known: chrono::DateTime<chrono::Utc> =
            report["sources"][0]["durable_at"].as_str()?.parse().unwrap();
        // A mark that is known stands behind all of it.
        (known > now).then(|| known.to_rfc3339_opts(chrono::SecondsFormat::Micros, true))
    })
    .await
}

#[tokio::test]
async fn chosen_keys_and_times_to_live_come_back_as_asked() {
    let (server, pitr, _daemon) = captured(&[]).await;
    server.cmd::<()>(&["SET", "cart:1", "x", "PX", "1500"]).await;
    server.cmd::<()>(&["SET", "user:1", "y", "PX", "1500"]).await;
    server.cmd::<()>(&["SET", "user:2", "z", "PX", "3600000"]).await;
    let expires: i64 = server.cmd(&["PEXPIRETIME", "user:2"]).await;
    let to = known_after(&pitr).await;
    eventually("it has expired", SOON, async || {
        let left: i64 = server.cmd(&["EXISTS", "cart:1", "user:1"]).await;
        (left == 0).then_some(())
    })
    .await;
    let into = async |name: &str, more: &[&str]| {
        let args = ["restore", "--to", &to, "--into", name, "--json"];
        let report = pitr.run(&[&args[..], more].concat()).await.ok().json();
        let copy = RedisServer::start_on(&pitr.dir().join(name).join("shop-redis")).await;
        let mut keys: Vec<String> = copy.cmd(&["KEYS", "*"]).await;
        keys.sort_unstable();
        (report["sources"][0]["ttl"].clone(), keys, copy)
    };
    let (ttl, keys, copy) = into("absolute", &[]).await;
    assert_eq!(keys, ["user:2"]);
    assert!(ttl["not_counted"].is_string(), "{ttl:#}");
    assert_eq!(copy.cmd::<i64>(&["PEXPIRETIME", "user:2"]).await, expires);
    let (_, keys, copy) = into("persist", &["--ttl", "persist"]).await;
    assert_eq!(keys, ["cart:1", "user:1", "user:2"]);
    for key in keys {
        assert_eq!(copy.cmd::<i64>(&["PTTL", &key]).await, -1);
    }
    let (_, keys, copy) = into("key", &["--ttl", "persist", "--key", "cart:*"]).await;
    assert_eq!(keys, ["cart:1"]);
    assert_eq!(copy.cmd::<String>(&["GET", "cart:1"]).await, "x");
    let (ttl, keys, _) = into("absolute-key", &["--key", "cart:*"]).await;
    assert_eq!(keys, [""; 0]);
    assert_eq!(ttl["lapsed"], 1, "{ttl:#}");
    // What had 1.5 s to live may be gone again before it is looked for.
    let (ttl, keys, copy) = into("shift", &["--ttl", "shift"]).await;
    assert!(keys.contains(&"user:2".into()), "{keys:?}");
    let moved = copy.cmd::<i64>(&["PEXPIRETIME", "user:2"]).await - expires;
    assert!(moved > 0 && ttl["shift_ms"] == moved, "{moved}: {ttl:#}");
    let target = RedisServer::start(&[]).await;
    let into = format!("shop-redis={}", target.url());
    let chosen = ["restore", "--to", &to, "--ttl", "persist", "--key", "user:*", "--target", &into];
    pitr.run(&chosen).await.ok();
    let mut keys: Vec<String> = target.cmd(&["KEYS", "*"]).await;
    keys.sort_unstable();
    assert_eq!(keys, ["user:1", "user:2"]);
}
