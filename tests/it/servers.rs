//! What the launchers promise about the servers that they start.

use crate::support::{Mariadbd, Mysqld, RedisServer};

#[tokio::test]
async fn mysqld_is_mysql_with_gtids_and_keeps_its_data_over_a_crash() {
    let (mut first, second) = (Mysqld::start(&["--sync-binlog=7"]).await, Mysqld::start(&[]).await);
    let (version, mode, sync): (String, String, u32) =
        first.row("SELECT VERSION(), @@gtid_mode, @@sync_binlog").await;
    assert!(!version.contains("MariaDB"), "{version}");
    assert_eq!((mode.as_str(), sync), ("ON", 7));
    let uuid = "SELECT @@server_uuid";
    assert_ne!(first.row::<String>(uuid).await, second.row::<String>(uuid).await);
    assert_ne!(first.server_id(), second.server_id());

    first
        .sql("CREATE DATABASE d; CREATE TABLE d.t (a INT PRIMARY KEY); INSERT d.t VALUES (7)")
        .await;
    let before = first.gtid_executed().await;
    assert!(before.ends_with(":1-3"), "{before}");
    first.kill();
    first.restart().await;
    assert_eq!(first.row::<u32>("SELECT a FROM d.t").await, 7);
    assert_eq!(first.gtid_executed().await, before);
    assert!(first.stop().await.unwrap().success());
}

#[tokio::test]
async fn mariadbd_is_mariadb_with_a_binary_log() {
    let server = Mariadbd::start(&[]).await;
    let (version, log_bin): (String, u32) = server.row("SELECT VERSION(), @@log_bin").await;
    assert!(version.contains("MariaDB"), "{version}");
    assert_eq!(log_bin, 1);
}

#[tokio::test]
async fn the_other_mariadbds_are_of_their_series_and_restart() {
    let args = ["--gtid-domain-id=7"];
    for (mut server, series) in
        [(Mariadbd::start_11_8(&args).await, "11.8."), (Mariadbd::start_10_5(&args).await, "10.5.")]
    {
        let of = "SELECT VERSION(), @@gtid_domain_id";
        let (version, domain): (String, u32) = server.row(of).await;
        assert!(version.starts_with(series) && version.contains("MariaDB"), "{version}");
        assert_eq!(domain, 7);
        server.sql("CREATE DATABASE d; CREATE SEQUENCE d.s").await;
        server.restart().await;
        assert_eq!(server.row::<u32>("SELECT NEXTVAL(d.s)").await, 1);
    }
}

#[tokio::test]
async fn redis_server_starts_with_options_and_restarts_on_its_port() {
    let mut server = RedisServer::start(&["--databases", "4", "--appendonly", "yes"]).await;
    server.cmd_in::<()>(3, &["SET", "k", "v"]).await;
    server.restart().await;
    assert_eq!(server.cmd_in::<String>(3, &["GET", "k"]).await, "v");
    assert!(server.stop().await.unwrap().success());
}
