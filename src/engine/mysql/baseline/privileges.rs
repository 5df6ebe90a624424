//! What the account of pitr needs, and what it has: checked by name, before the work begins.
//!
//! **Invariant:** what is missing is named; nothing is taken on trust.

use super::super::{accounts, ask};
use crate::error::{Error, Result};
use mysql_async::Conn;

/// What following the log takes. MariaDB shows the second by a name of its own.
const CAPTURE: [&[&str]; 2] =
    [&["REPLICATION SLAVE"], &["REPLICATION CLIENT", "BINLOG MONITOR", "SUPER"]];

/// What the account needs to see everything: what it may not see is left out silently.
const PRIVILEGES: [&[&str]; 7] = [
    &["SELECT"],
    &["RELOAD"],
    &["SHOW VIEW"],
    &["TRIGGER"],
    &["EVENT"],
    &["REPLICATION CLIENT", "BINLOG MONITOR", "SUPER"],
    &["LOCK TABLES"],
];

/// Refuses an account that may not follow the log.
pub(in super::super) async fn check_capture(conn: &mut Conn) -> Result<()> {
    let lines = our_grants(conn).await?;
    refuse(conn, "follow the log", &among(&lines, &CAPTURE)).await
}

/// Refuses an account that may not see everything.
pub(super) async fn check_privileges(conn: &mut Conn) -> Result<()> {
    let missing = missing_privileges(conn, &PRIVILEGES).await?;
    refuse(conn, "take a baseline", &missing).await
}

/// Refuses an account that may not do both.
pub(in super::super) async fn check_all(conn: &mut Conn) -> Result<()> {
    let mut missing = missing_privileges(conn, &CAPTURE).await?;
    for name in missing_privileges(conn, &PRIVILEGES).await? {
        if !missing.contains(&name) {
            missing.push(name);
        }
    }
    refuse(conn, "follow the log and take a baseline", &missing).await
}

async fn refuse(conn: &mut Conn, doing: &str, missing: &[&str]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let me = accounts::me(conn).await?;
    let list = missing.join(", ");
    Err(Error::usage(format!("{} may not {doing}: it lacks {list}", me.quoted()))
        .hint(format!("GRANT {list} ON *.* TO {}", me.quoted())))
}

/// What the server says that this connection may, roles that are active included.
async fn our_grants(conn: &mut Conn) -> Result<Vec<String>> {
    ask::rows(conn, "SHOW GRANTS", || "read our own grants".into()).await
}

/// Those of the privileges that this connection does not have globally; of each group one is
/// enough, and the first is named.
pub(in super::super) async fn missing_privileges(
    conn: &mut Conn,
    needed: &[&[&'static str]],
) -> Result<Vec<&'static str>> {
    let lines = our_grants(conn).await?;
    if let Some(line) = lines.iter().find(|line| line.starts_with("REVOKE ")) {
        let me = accounts::me(conn).await?;
        return Err(Error::usage(format!("a part is hidden from {}: {line}", me.quoted()))
            .hint("give the account its privileges back on every schema"));
    }
    Ok(among(&lines, needed))
}

fn among(lines: &[String], needed: &[&[&'static str]]) -> Vec<&'static str> {
    let have: Vec<&str> = lines.iter().filter_map(|line| global_privileges(line)).collect();
    let has = |name: &str| {
        have.iter().flat_map(|list| list.split(',')).any(|one| {
            let one = one.trim();
            one == name || one == "ALL PRIVILEGES"
        })
    };
    needed
        .iter()
        .filter(|group| !group.iter().any(|name| has(name)))
        .filter_map(|group| group.first().copied())
        .collect()
}

/// The list in `GRANT list ON *.* TO …`.
fn global_privileges(grant: &str) -> Option<&str> {
    let list = grant.strip_prefix("GRANT ")?.split_once(" ON *.* TO ")?.0;
    (!list.contains('`')).then_some(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_global_grants_count_as_global() {
        assert_eq!(
            global_privileges("GRANT SELECT, RELOAD ON *.* TO `a`@`%`"),
            Some("SELECT, RELOAD")
        );
        assert_eq!(global_privileges("GRANT SELECT ON `a`.* TO `a`@`%`"), None);
        assert_eq!(global_privileges("GRANT `x ON *.* TO `@`%` TO `a`@`%`"), None);
    }
}
