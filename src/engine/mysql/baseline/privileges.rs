//! What the account of pitr needs, and what it has.
//!
//! **Invariant:** what is missing is named; nothing is taken on trust.

use super::super::{accounts, ask};
use crate::error::{Error, Result};
use mysql_async::Conn;

/// What the account needs to see everything: what it may not see is left out silently.
const PRIVILEGES: [&[&str]; 7] = [
    &["SELECT"],
    &["RELOAD"],
    &["SHOW VIEW"],
    &["TRIGGER"],
    &["EVENT"],
    &["REPLICATION CLIENT"],
    &["LOCK TABLES"],
];

/// Refuses an account that may not see everything.
pub(super) async fn check_privileges(conn: &mut Conn) -> Result<()> {
    let missing = missing_privileges(conn, &PRIVILEGES).await?;
    if missing.is_empty() {
        return Ok(());
    }
    let me = accounts::me(conn).await?;
    let list = missing.join(", ");
    Err(Error::usage(format!("{} may not take a baseline: it lacks {list}", me.quoted()))
        .hint(format!("GRANT {list} ON *.* TO {}", me.quoted())))
}

/// Those of the privileges that this connection does not have globally; of each group one is
/// enough, and the first is named.
pub(in super::super) async fn missing_privileges(
    conn: &mut Conn,
    needed: &[&[&'static str]],
) -> Result<Vec<&'static str>> {
    let lines: Vec<String> =
        ask::rows(conn, "SHOW GRANTS", || "read our own grants".into()).await?;
    if let Some(line) = lines.iter().find(|line| line.starts_with("REVOKE ")) {
        let me = accounts::me(conn).await?;
        return Err(Error::usage(format!("a part is hidden from {}: {line}", me.quoted()))
            .hint("give the account its privileges back on every schema"));
    }
    let have: Vec<&str> = lines.iter().filter_map(|line| global_privileges(line)).collect();
    let has = |name: &str| {
        have.iter().flat_map(|list| list.split(',')).any(|one| {
            let one = one.trim();
            one == name || one == "ALL PRIVILEGES"
        })
    };
    Ok(needed
        .iter()
        .filter(|group| !group.iter().any(|name| has(name)))
        .filter_map(|group| group.first().copied())
        .collect())
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
