//! A source and its replicas: which server the capture goes on from, and what comes back.

use super::harness::{Watched, digest, now};
use crate::support::{Mysqld, eventually};
use chrono::{DateTime, Utc};
use pitr::engine::digest::Digest;
use std::time::Duration;

/// Long enough for an instant in between to be one at which nothing was going on.
const QUIET: Duration = Duration::from_millis(300);

const INSERT: &str = "INSERT INTO shop.t (b) VALUES (REPEAT('x', 1000))";

/// A server with a table, and an account that replicas log in with.
async fn primary() -> Mysqld {
    let server = Mysqld::start(&[]).await;
    server.sql(super::TABLE).await;
    server
        .sql("CREATE USER repl@'%' IDENTIFIED BY 'r'; GRANT REPLICATION SLAVE ON *.* TO repl@'%'")
        .await;
    server
}

/// Makes a server a replica of another one, closed for writes.
async fn follow(replica: &Mysqld, source: &Mysqld) {
    let port = source.port();
    replica
        .sql(&format!(
            "SET GLOBAL super_read_only = ON; CHANGE REPLICATION SOURCE TO \
             SOURCE_HOST = '127.0.0.1', SOURCE_PORT = {port}, SOURCE_USER = 'repl', \
             SOURCE_PASSWORD = 'r', SOURCE_AUTO_POSITION = 1, GET_SOURCE_PUBLIC_KEY = 1, \
             SOURCE_CONNECT_RETRY = 1; START REPLICA"
        ))
        .await;
}

/// Makes a replica a server of its own that takes writes.
async fn promote(replica: &Mysqld) {
    replica
        .sql("STOP REPLICA; RESET REPLICA ALL; SET GLOBAL super_read_only = OFF; SET GLOBAL read_only = OFF")
        .await;
}

async fn caught_up(replica: &Mysqld, source: &Mysqld) {
    let wanted = source.gtid_executed().await;
    eventually("the replica has caught up", Duration::from_mins(1), async || {
        (replica.gtid_executed().await == wanted).then_some(())
    })
    .await;
}

/// What a server held at an instant at which nothing was going on.
struct Noted {
    at: DateTime<Utc>,
    content: Digest,
    gtids: String,
}

async fn note(server: &Mysqld) -> Noted {
    tokio::time::sleep(QUIET).await;
    let noted =
        Noted { at: now(), content: digest(server).await, gtids: server.gtid_executed().await };
    tokio::time::sleep(QUIET).await;
    noted
}

#[tokio::test]
async fn a_killed_source_and_a_demoted_one_are_gone_on_from_without_a_gap() {
    let (mut first, lagging, second) =
        (primary().await, Mysqld::start(&[]).await, Mysqld::start(&[]).await);
    follow(&lagging, &first).await;
    follow(&second, &first).await;
    caught_up(&lagging, &first).await;
    // The replicas' files are not those of the source.
    second.sql("FLUSH BINARY LOGS; FLUSH BINARY LOGS").await;
    let mut watched = Watched::start_over(&[&first, &lagging, &second], "").await;
    let mut noted = vec![note(&first).await];
    lagging.sql("STOP REPLICA").await;
    first.sql(&format!("{INSERT}; {INSERT}; ALTER TABLE shop.t ADD c INT")).await;
    noted.push(note(&first).await);
    watched.until_passed(noted[1].at).await;
    caught_up(&second, &first).await;

    first.kill();
    noted.push(note(&second).await);
    promote(&second).await;
    second.sql(&format!("{INSERT}; {INSERT}")).await;
    noted.push(note(&second).await);
    let report = watched.until_passed(noted[3].at).await;
    assert_eq!(report["timeline"], 2, "{report:#}");
    second.sql(&format!("FLUSH BINARY LOGS; {INSERT}; CREATE TABLE shop.late (id INT)")).await;
    noted.push(note(&second).await);
    watched.until_passed(noted[4].at).await;

    // A switchover: the old source lives, and takes no writes any more.
    follow(&lagging, &second).await;
    second.sql("SET GLOBAL super_read_only = ON").await;
    caught_up(&lagging, &second).await;
    promote(&lagging).await;
    follow(&second, &lagging).await;
    lagging.sql(INSERT).await;
    watched.until("the third server is streamed", |report| report["timeline"] == 3).await;
    noted.push(note(&lagging).await);
    watched.until_passed(noted[5].at).await;

    // Another process goes on where this one was, on the same server.
    watched.daemon.kill();
    lagging.sql(INSERT).await;
    watched.daemon = watched.pitr.spawn_run();
    noted.push(note(&lagging).await);
    let report = watched.until_passed(noted[6].at).await;
    assert_eq!(report["timeline"], 3, "{report:#}");
    let count = |key: &str| report[key].as_array().unwrap().len();
    assert_eq!((count("gaps"), count("windows"), count("baselines")), (0, 1, 1), "{report:#}");

    watched.pitr.run(&["baseline"]).await.ok();
    lagging.sql(INSERT).await;
    noted.push(note(&lagging).await);
    for noted in &noted {
        watched.restores(noted.at, &noted.content, &noted.gtids).await;
    }
}

#[tokio::test]
async fn what_only_the_old_source_had_stays_on_its_timeline() {
    let (mut first, second) = (primary().await, Mysqld::start(&[]).await);
    follow(&second, &first).await;
    caught_up(&second, &first).await;
    let mut watched = Watched::start_over(&[&first, &second], "").await;
    second.sql("STOP REPLICA").await;
    first.sql(&format!("{INSERT}; {INSERT}")).await;
    let old = note(&first).await;
    watched.until_passed(old.at).await;
    first.kill();
    // Nobody has all of it: that is said, and waited for.
    let lacks = |report: &serde_json::Value| {
        let error = report["error"].as_str().unwrap_or_default();
        report["state"] != "streaming" && error.contains("lacks ")
    };
    watched.until("the replica is named, and what it lacks", lacks).await;
    second.sql("START REPLICA").await;
    promote(&second).await;
    let report = watched.until("it is still waited", lacks).await;
    assert_eq!(report["timeline"], 1, "an open server without writes is no fork: {report:#}");
    second.sql(INSERT).await;
    watched.broke("lacks transactions that were captured").await;
    let new = note(&second).await;
    watched.restores(old.at, &old.content, &old.gtids).await;
    watched.restores(new.at, &new.content, &new.gtids).await;
}
