//! Rights on all schemas but some (`partial_revokes`): what was taken back stays taken back, on a
//! server where names of schemas in grants mean the same, and pitr overlooks nothing because of it.

use crate::apply_sql::{MANAGED, TRUST, far, target};
use crate::mysql_restore::harness::*;
use crate::support::Mysqld;
use mysql_async::Conn;
use mysql_async::prelude::Queryable;
use pitr::engine::mysql::MysqlTarget;
use pitr::engine::mysql::digest::{digest, digest_accounts};
use pitr::engine::{Apply, Target};
use pitr::error::Class;
use std::sync::Arc;

fn managed(server: &Mysqld) -> MysqlTarget {
    target(&server.url().replace("root@", "customer:pw@"), Apply::Auto)
}

/// What a restored account may is tried, not only read.
async fn assert_means_the_same(server: impl Into<mysql_async::Opts>) {
    let opts = mysql_async::OptsBuilder::from_opts(server.into());
    let opts = opts.user(Some("part")).pass(Some("p"));
    let mut conn = Conn::new(opts).await.unwrap();
    let seen: Vec<u32> = conn.query("SELECT a FROM shop.t").await.unwrap();
    assert_eq!(seen, [1]);
    for denied in ["SELECT a FROM secret.t", "SELECT a FROM late.t", "DELETE FROM a_b.t"] {
        let error = conn.query_drop(denied).await.unwrap_err();
        assert!(error.to_string().contains("command denied"), "{denied}: {error}");
    }
    conn.query_drop("DELETE FROM shop.t WHERE a = 7").await.unwrap();
    conn.query_drop("DELETE FROM axb.t WHERE a = 7").await.unwrap();
}

async fn source() -> (Mysqld, Taken) {
    let source = Mysqld::start(&["--partial-revokes=ON"]).await;
    for schema in ["shop", "secret", "a_b", "axb", "late"] {
        source
            .sql(&format!(
                "CREATE DATABASE {schema}; CREATE TABLE {schema}.t (a INT PRIMARY KEY);
                 INSERT INTO {schema}.t VALUES (1)"
            ))
            .await;
    }
    one_by_one(
        &source,
        "CREATE USER part@'%' IDENTIFIED BY 'p';
         GRANT SELECT, DELETE ON *.* TO part@'%' WITH GRANT OPTION;
         REVOKE SELECT ON secret.* FROM part@'%'; REVOKE DELETE ON a_b.* FROM part@'%';
         CREATE ROLE reader; GRANT SELECT ON *.* TO reader; REVOKE SELECT ON a_b.* FROM reader;
         CREATE USER other@localhost DEFAULT ROLE reader; GRANT reader TO other@localhost",
    )
    .await;
    let taken = baseline(&source).await;
    // Taken back, given again, and given where only a part was missing.
    one_by_one(
        &source,
        "REVOKE SELECT ON late.* FROM part@'%'; REVOKE SELECT ON shop.* FROM reader;
         GRANT SELECT ON a_b.* TO reader; CREATE USER new@localhost;
         GRANT INSERT ON *.* TO new@localhost; REVOKE INSERT ON shop.* FROM new@localhost",
    )
    .await;
    (source, taken)
}

#[tokio::test]
async fn what_was_taken_back_for_some_schemas_is_taken_back_in_what_is_restored() {
    let (source, taken) = source().await;
    let then = moment(&source).await;
    assert!(taken.text().contains("REVOKE DELETE ON `a_b`.* FROM `part`@`%`"));
    let log = open_log(log_of(&source, &taken.meta.position).await, None);
    let needs = needs(&source).await;

    // It is switched on where it is off, and stays on.
    let server = Mysqld::start(&[]).await;
    restore(&mut running(&server), &needs, &taken, Arc::clone(&log), &far()).await.unwrap();
    assert_same(&moment(&server).await, &then);
    assert_eq!(server.row::<u32>("SELECT @@GLOBAL.partial_revokes").await, 1);
    assert_means_the_same(server.opts()).await;

    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("shop");
    restore(&mut folder(&dir), &needs, &taken, Arc::clone(&log), &far()).await.unwrap();
    // A server that is started without the option has it on, as there are such accounts.
    let restored = OnFolder::start(&dir).await;
    let mut conn = Conn::new(restored.opts()).await.unwrap();
    assert_eq!(digest(&mut conn).await.unwrap().diff(&then.data), [""; 0]);
    assert_eq!(digest_accounts(&mut conn).await.unwrap().diff(&then.accounts), [""; 0]);
    assert_means_the_same(restored.opts()).await;

    // Nor is a server changed on which the account cannot switch it on.
    let server = Mysqld::start(&["--event-scheduler=OFF", TRUST]).await;
    server.sql(MANAGED).await;
    let mut to = managed(&server);
    to.preflight(&needs).await.unwrap();
    let error = to.load(&taken.meta, taken.pieces()).await.unwrap_err();
    assert_eq!(error.class(), Class::Refused, "{error:?}");
    assert_eq!(error.hint_text(), Some("SET PERSIST partial_revokes = ON"));
    let schemas: Vec<String> = server.rows("SHOW DATABASES").await;
    assert_eq!(schemas, ["information_schema", "mysql", "performance_schema", "sys"]);
    drop(to);
    server.sql("SET PERSIST partial_revokes = ON").await;
    restore(&mut managed(&server), &needs, &taken, log, &far()).await.unwrap();
    assert_means_the_same(server.opts()).await;
}

#[tokio::test]
async fn a_target_where_rights_would_mean_something_else_is_refused_and_left_as_it_is() {
    let source = Mysqld::start(&[]).await;
    source
        .sql("CREATE DATABASE shop1; CREATE USER app@'%'; GRANT SELECT ON `shop%`.* TO app")
        .await;
    let taken = baseline(&source).await;
    let server = Mysqld::start(&["--partial-revokes=ON"]).await;
    let mut to = running(&server);
    to.preflight(&needs(&source).await).await.unwrap();
    let error = to.load(&taken.meta, taken.pieces()).await.unwrap_err();
    assert_eq!(error.class(), Class::Refused, "{error:?}");
    assert!(error.to_string().contains("partial_revokes = ON"), "{error}");
    let schemas: Vec<String> = server.rows("SHOW DATABASES").await;
    assert_eq!(schemas, ["information_schema", "mysql", "performance_schema", "sys"]);
    server.sql(error.hint_text().unwrap()).await;
    to.load(&taken.meta, taken.pieces()).await.unwrap();
    let seen: Vec<String> = server.rows("SHOW DATABASES LIKE 'shop1'").await;
    assert_eq!(seen, ["shop1"]);
}

#[tokio::test]
async fn an_account_from_which_a_schema_is_hidden_takes_no_baseline() {
    let (source, _) = source().await;
    source
        .sql(
            "CREATE USER pitr IDENTIFIED BY 'x'; GRANT SELECT, RELOAD, LOCK TABLES, SHOW VIEW, EVENT,
             TRIGGER, REPLICATION CLIENT, REPLICATION SLAVE ON *.* TO pitr",
        )
        .await;
    let options = source_options(&source.url().replace("root@", "pitr:x@"));
    try_baseline(&options).await.unwrap();
    source.sql("REVOKE SELECT ON secret.* FROM pitr").await;
    let error = try_baseline(&options).await.unwrap_err();
    assert_eq!(error.class(), Class::Usage, "{error:?}");
    assert!(error.to_string().contains("a part is hidden from"), "{error}");
    assert!(error.to_string().contains("ON `secret`.* FROM `pitr`@`%`"), "{error}");
}
