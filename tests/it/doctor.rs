//! `pitr doctor` at real servers: each check is made to fail once, and what it says mends it does.

use crate::daemon::SmallDisk;
use crate::instants::until_windows;
use crate::support::{Mariadbd, Mysqld, Pitr, RedisServer, eventually};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

/// What `doctor --json` said.
struct Seen(Value);

impl Seen {
    async fn look(pitr: &Pitr) -> Self {
        let output = pitr.run(&["doctor", "--json"]).await;
        let report = output.json();
        assert_eq!(report["schema"], "pitr.doctor/1");
        let bad = report["problems"].as_u64().unwrap() + report["warnings"].as_u64().unwrap();
        assert_eq!(output.code(), Some(i32::from(bad > 0)), "{report:#}\n{}", output.stderr);
        Self(report)
    }

    /// The findings of a check at a server of a source, or of the archive.
    fn all(&self, source: Option<usize>, server: usize, check: &str) -> Vec<&Value> {
        let findings = match source {
            None => vec![&self.0["archive"]],
            Some(source) => {
                let source = &self.0["sources"][source];
                vec![&source["findings"], &source["servers"][server]["findings"]]
            }
        };
        let all = findings.into_iter().flat_map(|list| list.as_array().unwrap());
        all.filter(|finding| finding["check"] == check).collect()
    }

    /// The only one.
    fn one(&self, source: Option<usize>, check: &str) -> &Value {
        let all = self.all(source, 0, check);
        assert_eq!(all.len(), 1, "{check} in {:#}", self.0);
        all[0]
    }

    fn level(&self, source: Option<usize>, check: &str) -> &str {
        self.one(source, check)["level"].as_str().unwrap()
    }

    fn expect(&self, source: Option<usize>, levels: &[(&str, &str)]) {
        for (check, level) in levels {
            let finding = self.one(source, check);
            assert_eq!(&finding["level"], level, "{finding:#}");
            assert_eq!(finding["why"].is_null(), *level == "ok", "{finding:#}");
        }
    }

    fn fix(&self, source: Option<usize>, check: &str) -> &str {
        self.one(source, check)["fix"].as_str().unwrap_or_else(|| panic!("no fix for {check}"))
    }
}

/// Every file with its length and the time of its last change.
fn state(dir: &Path) -> BTreeMap<String, (u64, SystemTime)> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            // What SQLite keeps beside a catalog while somebody reads it.
            if path.display().to_string().contains("catalog.sqlite-") {
                continue;
            }
            let meta = path.metadata().unwrap();
            found.insert(path.display().to_string(), (meta.len(), meta.modified().unwrap()));
            if meta.is_dir() {
                dirs.push(path);
            }
        }
    }
    found
}

const SAFE: [&str; 2] = ["--sync-binlog=1", "--innodb-flush-log-at-trx-commit=1"];

#[tokio::test]
async fn where_all_is_well_nothing_is_found_and_nothing_is_changed() {
    let (source, cache) = (Mysqld::start(&SAFE).await, RedisServer::start(&[]).await);
    let pitr = Pitr::new(&[("shop-mysql", source.url()), ("shop-redis", cache.url())]);
    let before = Seen::look(&pitr).await;
    assert_eq!(before.level(None, "archive"), "problem");
    assert!(before.fix(None, "archive").contains("pitr init"));
    assert_eq!(before.level(Some(0), "log_bin"), "ok", "servers are looked at without an archive");

    pitr.run(&["init"]).await.ok();
    let (files, executed) = (state(&pitr.archive()), source.gtid_executed().await);
    let fresh = Seen::look(&pitr).await;
    assert_eq!(fresh.0["problems"], 0, "{:#}", fresh.0);
    assert_eq!(fresh.0["warnings"], 0, "{:#}", fresh.0);
    fresh.expect(None, &[("writable", "ok"), ("daemon", "note"), ("privacy", "ok")]);
    assert_eq!(fresh.fix(None, "daemon"), "pitr run");
    let all = ["reachable", "version", "privileges", "gtid_mode", "log_replica_updates", "engines"];
    for check in all.iter().chain(&["dump_program", "server_program", "clock", "binlog_expire"]) {
        assert_eq!(fresh.level(Some(0), check), "ok");
    }
    let all = ["reachable", "version", "privileges", "role", "repl-backlog-size", "clock"];
    for check in all.iter().chain(&["client-output-buffer-limit", "server_program"]) {
        assert_eq!(fresh.level(Some(1), check), "ok");
    }
    assert_eq!(state(&pitr.archive()), files);
    assert_eq!(source.gtid_executed().await, executed);

    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    let running = Seen::look(&pitr).await;
    assert_eq!((&running.0["problems"], &running.0["warnings"]), (&0.into(), &0.into()));
    let what = running.one(None, "daemon")["what"].as_str().unwrap();
    assert!(what.contains(&format!("(process {})", daemon.pid())), "{what}");
    for source in [0, 1] {
        running.expect(Some(source), &[("capture", "ok"), ("baseline", "ok"), ("window", "ok")]);
    }
    let text = pitr.run(&["doctor"]).await.ok().stdout;
    assert!(text.ends_with("0 problems, 0 warnings, 2 notes\n"), "{text}");

    daemon.signal("STOP");
    let frozen = Seen::look(&pitr).await;
    assert_eq!(frozen.level(None, "daemon"), "problem");
    assert!(frozen.fix(None, "daemon").contains(&daemon.pid().to_string()));
    daemon.kill();
    let dead = Seen::look(&pitr).await;
    dead.expect(None, &[("daemon", "warning")]);
}

#[tokio::test]
async fn what_a_mysql_lacks_is_found_and_mended_by_what_is_said() {
    let bad = [
        "--binlog-format=STATEMENT",
        "--binlog-row-image=MINIMAL",
        "--binlog-checksum=NONE",
        "--binlog-expire-logs-seconds=3600",
        "--binlog-ignore-db=scratch",
        "--server-id=77",
    ];
    let mut source = Mysqld::start(&bad).await;
    let standby = Mysqld::start(&["--server-id=77"]).await;
    source
        .sql(
            "CREATE USER pitr@'127.0.0.1'; GRANT SELECT, REPLICATION SLAVE ON *.* TO \
             pitr@'127.0.0.1'; CREATE DATABASE w; CREATE TABLE w.t (n INT) ENGINE=MyISAM",
        )
        .await;
    let url = source.url().replace("root@", "pitr@");
    let pitr = Pitr::new(&[("shop-mysql", url.clone())]);
    let urls = format!("urls = [{url:?}, {:?}]\nsemi_sync = true", standby.url());
    pitr.write_config(&pitr.config().replace(&format!("url = {url:?}"), &urls));
    pitr.run(&["init"]).await.ok();

    let found = Seen::look(&pitr).await;
    found.expect(
        Some(0),
        &[
            ("privileges", "problem"),
            ("binlog_format", "problem"),
            ("binlog_row_image", "note"),
            ("binlog_checksum", "warning"),
            ("sync_binlog", "warning"),
            ("innodb_flush_log_at_trx_commit", "warning"),
            ("binlog_expire", "warning"),
            ("engines", "note"),
            ("semi_sync", "problem"),
        ],
    );
    let what = found.one(Some(0), "privileges")["what"].as_str().unwrap();
    assert!(what.contains("lacks REPLICATION CLIENT, RELOAD"), "{what}");
    // Without the right to follow the log, its filters could not be asked for.
    found.expect(Some(0), &[("binlog_filters", "warning")]);
    let ids = found.all(Some(0), 1, "server_id");
    assert_eq!(ids.len(), 1, "{:#}", found.0);
    assert_eq!(ids[0]["level"], "problem");

    let mut mended = vec![];
    for check in [
        "privileges",
        "binlog_format",
        "binlog_row_image",
        "binlog_checksum",
        "sync_binlog",
        "innodb_flush_log_at_trx_commit",
        "binlog_expire",
        "engines",
        "semi_sync",
    ] {
        let fix = found.fix(Some(0), check);
        source.sql(fix.split(" (").next().unwrap()).await;
        mended.push((check, "ok"));
    }
    standby.sql(ids[0]["fix"].as_str().unwrap()).await;
    let after = Seen::look(&pitr).await;
    // Nothing captures yet, and that is said.
    assert_eq!(mended.pop(), Some(("semi_sync", "ok")));
    after.expect(Some(0), &mended);
    after.expect(Some(0), &[("semi_sync", "note"), ("semi_sync_replicas", "note")]);
    after.expect(Some(0), &[("binlog_filters", "problem")]);
    assert!(after.fix(Some(0), "binlog_filters").contains("binlog_ignore_db"));
    assert_eq!(after.fix(Some(0), "semi_sync"), "pitr run");
    assert_eq!(after.all(Some(0), 1, "server_id"), [&Value::Null; 0]);

    source.restart_with(&["--skip-log-bin", "--gtid-mode=OFF"]).await;
    let found = Seen::look(&pitr).await;
    found.expect(Some(0), &[("log_bin", "problem"), ("gtid_mode", "warning")]);
}

#[tokio::test]
async fn what_a_mariadb_lacks_is_found_and_mended_by_what_is_said() {
    let bad = ["--binlog-format=MIXED", "--expire-logs-days=1", "--gtid-strict-mode=OFF"];
    let source = Mariadbd::start(&bad).await;
    source
        .sql("CREATE USER pitr@'127.0.0.1'; GRANT SELECT, RELOAD ON *.* TO pitr@'127.0.0.1'")
        .await;
    let pitr = Pitr::new(&[("shop", source.url().replace("root@", "pitr@"))]);
    pitr.append_config("semi_sync = true");
    pitr.run(&["init"]).await.ok();
    let found = Seen::look(&pitr).await;
    let levels = [
        ("privileges", "problem"),
        ("binlog_format", "warning"),
        ("sync_binlog", "warning"),
        ("gtid_strict_mode", "note"),
        ("binlog_expire", "warning"),
        ("semi_sync", "problem"),
    ];
    found.expect(Some(0), &levels);
    for (check, _) in &levels {
        let fix = found.fix(Some(0), check);
        source.sql(fix.split(", and ").next().unwrap().split(" (").next().unwrap()).await;
    }
    let after = Seen::look(&pitr).await;
    for (check, _) in &levels[..5] {
        assert_eq!(after.level(Some(0), check), "ok", "{:#}", after.0);
    }
    after.expect(Some(0), &[("semi_sync", "note"), ("server_program", "ok")]);
    after.expect(Some(0), &[("binlog_filters", "ok")]);
}

#[tokio::test]
async fn what_a_redis_lacks_is_found_and_mended_by_what_is_said() {
    let source = RedisServer::start(&[
        "--repl-backlog-size",
        "16kb",
        "--client-output-buffer-limit",
        "replica 1mb 0 0",
        "--repl-diskless-sync",
        "no",
        "--maxmemory",
        "100mb",
        "--maxmemory-policy",
        "allkeys-lru",
    ])
    .await;
    let all = "+replconf +role +time +info +multi +exec +config|get +acl|dryrun +ping";
    let account = ["ACL", "SETUSER", "pitr", "on", ">geheim", "&*"].into_iter();
    source.cmd::<()>(&account.chain(all.split(' ')).collect::<Vec<_>>()).await;
    let url = source.url().replace("redis://", "redis://pitr:geheim@");
    let pitr = Pitr::new(&[("shop", url)]);
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(pitr.config_path(), private).unwrap();
    pitr.run(&["init"]).await.ok();

    let mut writer = source.conn().await;
    let writing = tokio::spawn(async move {
        let value = "x".repeat(10_000);
        loop {
            let set: redis::RedisResult<()> =
                redis::cmd("SET").arg("k").arg(&value).query_async(&mut writer).await;
            set.unwrap();
        }
    });
    let found = Seen::look(&pitr).await;
    writing.abort();
    found.expect(
        Some(0),
        &[
            ("privileges", "problem"),
            ("repl-backlog-size", "warning"),
            ("client-output-buffer-limit", "warning"),
            ("repl-diskless-sync", "note"),
            ("maxmemory-policy", "note"),
            ("aof-timestamp-enabled", "note"),
        ],
    );
    assert_eq!(found.fix(Some(0), "privileges"), "ACL SETUSER pitr +psync");
    assert!(found.fix(Some(0), "repl-backlog-size").contains("mb"));
    let mended = ["privileges", "repl-diskless-sync", "aof-timestamp-enabled", "repl-backlog-size"];
    for check in mended {
        let fix = found.fix(Some(0), check).split(';').next().unwrap();
        source.cmd::<()>(&fix.split(' ').collect::<Vec<_>>()).await;
    }
    let after = Seen::look(&pitr).await;
    for check in mended {
        assert_eq!(after.level(Some(0), check), "ok", "{:#}", after.0);
    }
    assert!(!after.0.to_string().contains("geheim"));
}

#[tokio::test]
async fn a_source_that_is_down_and_tools_that_are_gone_hold_up_no_other_check() {
    let (source, cache) = (Mysqld::start(&SAFE).await, RedisServer::start(&[]).await);
    let pitr = Pitr::new(&[
        ("down", "mysql://root@127.0.0.1:9".into()),
        ("shop-mysql", source.url()),
        ("shop-redis", cache.url()),
    ]);
    pitr.run(&["init"]).await.ok();
    let mut command = tokio::process::Command::from(pitr.command());
    command.args(["doctor", "--json"]).env("PATH", pitr.dir());
    let output = command.output().await.unwrap();
    let found = Seen(serde_json::from_slice(&output.stdout).unwrap());
    assert_eq!(output.status.code(), Some(1), "{:#}", found.0);
    found.expect(None, &[("writable", "ok")]);
    found.expect(Some(0), &[("reachable", "problem")]);
    let said = [("reachable", "ok"), ("dump_program", "problem"), ("server_program", "warning")];
    found.expect(Some(1), &said);
    assert!(found.fix(Some(1), "dump_program").contains("install mysql-client"));
    assert!(found.fix(Some(1), "server_program").contains("mysql-server"));
    found.expect(Some(2), &[("reachable", "ok"), ("server_program", "warning")]);
    assert!(found.fix(Some(2), "server_program").contains("install redis-server"));
}

#[tokio::test]
async fn an_archive_that_is_full_or_cannot_be_written_is_found() {
    let cache = RedisServer::start(&[]).await;
    let disk = SmallDisk::mount(16);
    let pitr = Pitr::new(&[("shop", cache.url())]);
    let archive = disk.path().join("archive");
    pitr.write_config(
        &pitr.config().replace(pitr.archive().to_str().unwrap(), archive.to_str().unwrap()),
    );
    pitr.run(&["init"]).await.ok();
    let found = Seen::look(&pitr).await;
    found.expect(None, &[("space", "problem"), ("writable", "ok")]);
    let remount = Command::new("mount").args(["-o", "remount,ro"]).arg(disk.path()).status();
    assert!(remount.unwrap().success());
    let found = Seen::look(&pitr).await;
    found.expect(None, &[("space", "problem"), ("writable", "problem"), ("catalog", "ok")]);

    let others = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    std::fs::set_permissions(pitr.config_path(), others).unwrap();
    let found = Seen::look(&pitr).await;
    found.expect(None, &[("configuration", "warning")]);
    let mended = Command::new("sh").arg("-c").arg(found.fix(None, "configuration")).status();
    assert!(mended.unwrap().success());
    assert_eq!(Seen::look(&pitr).await.level(None, "configuration"), "ok");
}

#[tokio::test]
async fn a_baseline_that_nobody_takes_any_more_is_found() {
    let cache = RedisServer::start(&[]).await;
    let pitr = Pitr::new(&[("shop", cache.url())]);
    pitr.run(&["init"]).await.ok();
    let mut daemon = pitr.spawn_run();
    until_windows(&pitr, &mut daemon).await;
    daemon.kill();
    // The log goes on, and what it begins with is gone.
    for file in std::fs::read_dir(pitr.archive().join("shop/t0001")).unwrap() {
        let path = file.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with("base-") {
            std::fs::remove_file(path).unwrap();
        }
    }
    pitr.run(&["reindex"]).await.ok();
    let found = Seen::look(&pitr).await;
    found.expect(Some(0), &[("baseline", "problem")]);
    let fix = found.fix(Some(0), "baseline").to_owned();
    let args: Vec<&str> = fix.strip_prefix("pitr ").unwrap().split(' ').collect();
    pitr.run(&args).await.ok();
    let found = eventually("the baseline is seen", Duration::from_secs(30), async || {
        let found = Seen::look(&pitr).await;
        (found.level(Some(0), "baseline") == "ok").then_some(found)
    })
    .await;
    found.expect(Some(0), &[("window", "ok")]);
}
