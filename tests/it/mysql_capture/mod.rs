//! Capture of MySQL: what arrives is what the server's own files have, from every beginning and
//! over every interruption; and where that cannot be proved, it is said.

mod harness;

use crate::support::Mysqld;
use harness::{Capture, source, status};
use pitr::record::Continuity;

const TABLE: &str = "CREATE DATABASE shop; CREATE TABLE shop.t (id INT PRIMARY KEY, b LONGBLOB)";

#[tokio::test]
async fn captured_files_are_those_on_the_disk() {
    let mut server = Mysqld::start(&["--max-allowed-packet=64M"]).await;
    // The server's own history: the capture joins at the beginning of the current file.
    server.sql("CREATE DATABASE before_capture; FLUSH BINARY LOGS").await;
    server.sql(TABLE).await;
    let source = source(&server);
    let capture = Capture::start(&source);
    server.sql("INSERT INTO shop.t VALUES (1, REPEAT('x', 20000000)), (2, 'y')").await;
    server.sql("FLUSH BINARY LOGS; ALTER TABLE shop.t ADD c INT; FLUSH BINARY LOGS").await;
    server.sql("FLUSH BINARY LOGS; INSERT INTO shop.t VALUES (3, 'z', 3)").await;
    capture.caught_up(&server).await;
    server.stop().await;
    let (kept, error) = capture.failed().await;
    assert_eq!(error.class().exit_code(), 3, "{error}");
    server.restart().await;
    server.sql("DELETE FROM shop.t WHERE id = 2").await;
    let capture = Capture::go_on(&source, kept);
    capture.caught_up(&server).await;
    let kept = capture.stop().await;

    kept.assert_same_files(&server);
    assert_eq!(kept.assert_same_times(&server), 6);
    assert_eq!(kept.records(), 6);
    assert_eq!(kept.files.len(), 5);
    assert_eq!(kept.opened.len(), 2);
    assert_eq!(kept.opened[0].1, Continuity::Begins);
    assert_eq!((kept.opened[0].0.log.as_str(), kept.opened[0].0.offset), ("binlog.000002", 0));
    assert_eq!(kept.opened[1].1, Continuity::Continues);
    assert_eq!(kept.whole.as_ref().unwrap().gtids, server.gtid_executed().await);
    assert_eq!(kept.origins.first(), Some(&server.server_id()));
    assert_eq!(kept.whole.unwrap().offset, status(&server).await.1);
    assert!(kept.server.version.starts_with("9."), "{:?}", kept.server);
}
