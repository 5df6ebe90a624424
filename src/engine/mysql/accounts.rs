//! Accounts, roles and grants as statements, because dumps of schemas leave them out.
//!
//! They are read from the server's own `SHOW CREATE USER` and `SHOW GRANTS`, with hashes in hex
//! so that their binary salt survives. Role grants come from `mysql.role_edges`, since
//! `SHOW GRANTS` also lists mandatory roles that nobody granted.
//!
//! This never sees a password, only hashes, and never changes anything.
//!
//! **Invariant:** a statement is one line and stands after those that it builds on: an account
//! after its default roles, a grant after the accounts it names.

mod maria;

use super::ask;
use super::flavor::Family;
use crate::error::{Context, Error, Result};
use mysql_async::{Conn, Row};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Accounts that every server has and that are never dumped or loaded.
pub(super) const SYSTEM_ACCOUNTS: [&str; 4] =
    ["mysql.infoschema", "mysql.session", "mysql.sys", "mariadb.sys"];

/// An account, by the two parts of its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Account {
    /// User part.
    pub(super) user: String,
    /// Host part.
    pub(super) host: String,
}

impl Account {
    /// The name as statements carry it.
    pub(super) fn quoted(&self) -> String {
        format!("{}@{}", identifier(&self.user), identifier(&self.host))
    }

    /// Reads what `CURRENT_USER()` gives. A host part holds no `@`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (user, host) = text.rsplit_once('@')?;
        Some(Self { user: user.to_owned(), host: host.to_owned() })
    }
}

/// A name in backquotes.
pub(super) fn identifier(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// A statement and the account that it makes or changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Statement {
    /// The account.
    pub(super) account: Account,
    /// The statement, on one line, without `;`.
    pub(super) sql: String,
}

/// All accounts, roles and grants of a server.
///
/// The session's active roles and `sql_mode` are changed: close the connection afterwards.
///
/// # Errors
/// Usage, if the account of pitr may not read them, or if an account's name has a line break.
pub(super) async fn read(conn: &mut Conn, family: Family) -> Result<Vec<Statement>> {
    if family == Family::MariaDb {
        return maria::read(conn).await;
    }
    let reading = || "read the accounts".to_owned();
    // The own account's grants would otherwise include those of its active roles.
    ask::run(conn, "SET SESSION sql_mode = ''", reading).await?;
    ask::run(conn, "SET SESSION print_identified_with_as_hex = ON", reading).await?;
    let accounts = list(conn).await?;
    let additional = additional_passwords(conn).await?;
    let roles = role_grants(conn).await?;
    let order = creation_order(&accounts, &default_roles(conn).await?);
    let mut statements = Vec::new();
    for account in &order {
        let sql: String =
            ask::first(conn, format!("SHOW CREATE USER {}", account.quoted()), reading)
                .await?
                .ok_or_else(|| Error::unavailable(format!("no account {}", account.quoted())))?;
        let definition = sql.strip_prefix("CREATE USER ").ok_or_else(|| {
            Error::unavailable(format!("no definition of account {}", account.quoted()))
        })?;
        push(&mut statements, account, format!("CREATE USER IF NOT EXISTS {definition}"))?;
        if let Some(hash) = additional.get(account) {
            push(&mut statements, account, additional_password(account, hash)?)?;
        }
    }
    let me = me(conn).await?;
    // The own grants come last: to see them without those of its roles, the roles are set aside,
    // and with them perhaps the right to read others' grants.
    for account in order.iter().filter(|a| **a != me) {
        grants(conn, account, &mut statements).await?;
    }
    if order.contains(&me) {
        ask::run(conn, "SET ROLE NONE", reading).await?;
        grants(conn, &me, &mut statements).await?;
    }
    for (account, sql) in roles {
        push(&mut statements, &account, sql)?;
    }
    Ok(statements)
}

/// The account that this connection is logged in as.
pub(super) async fn me(conn: &mut Conn) -> Result<Account> {
    let text: Option<String> =
        ask::first(conn, "SELECT CURRENT_USER()", || "ask who we are".into()).await?;
    text.as_deref()
        .and_then(Account::parse)
        .ok_or_else(|| Error::unavailable("the server does not say who we are"))
}

/// All accounts but the server's own, sorted. Roles of MariaDB are none.
pub(super) async fn list(conn: &mut Conn) -> Result<Vec<Account>> {
    let reading = || "read mysql.user".to_owned();
    let users = "SELECT User, Host FROM mysql.user";
    let maria = format!("{users} WHERE is_role <> 'Y'");
    let mut rows = ask::rows::<(String, String)>(conn, maria, reading).await;
    // MySQL has no such column.
    if ask::server_code(&rows) == Some(1054) {
        rows = ask::rows(conn, users, reading).await;
    }
    let rows = rows?;
    let mut accounts: Vec<Account> = rows
        .into_iter()
        .filter(|(user, _)| !SYSTEM_ACCOUNTS.contains(&user.as_str()))
        .map(|(user, host)| Account { user, host })
        .collect();
    accounts.sort();
    Ok(accounts)
}

async fn grants(conn: &mut Conn, account: &Account, into: &mut Vec<Statement>) -> Result<()> {
    let lines: Vec<String> =
        ask::rows(conn, format!("SHOW GRANTS FOR {}", account.quoted()), || {
            format!("read the grants of {}", account.quoted())
        })
        .await?;
    for line in lines {
        // `GRANT `role`@`host` TO …`: see `role_grants`. Every account has USAGE.
        if line.starts_with("GRANT `") || line.starts_with("GRANT USAGE ON *.* TO") {
            continue;
        }
        push(into, account, line)?;
    }
    Ok(())
}

async fn role_grants(conn: &mut Conn) -> Result<Vec<(Account, String)>> {
    let rows: Vec<(String, String, String, String, String)> = ask::rows(
        conn,
        "SELECT FROM_USER, FROM_HOST, TO_USER, TO_HOST, CAST(WITH_ADMIN_OPTION AS CHAR) \
             FROM mysql.role_edges ORDER BY 3, 4, 1, 2",
        || "read mysql.role_edges".into(),
    )
    .await?;
    let grant = |(role, role_host, user, host, admin): (String, String, String, String, String)| {
        let role = Account { user: role, host: role_host };
        let account = Account { user, host };
        let option = if admin == "Y" { " WITH ADMIN OPTION" } else { "" };
        let sql = format!("GRANT {} TO {}{option}", role.quoted(), account.quoted());
        (account, sql)
    };
    Ok(rows.into_iter().map(grant).collect())
}

type Roles = BTreeMap<Account, Vec<Account>>;

async fn default_roles(conn: &mut Conn) -> Result<Roles> {
    let rows: Vec<(String, String, String, String)> = ask::rows(
        conn,
        "SELECT USER, HOST, DEFAULT_ROLE_USER, DEFAULT_ROLE_HOST FROM mysql.default_roles",
        || "read mysql.default_roles".into(),
    )
    .await?;
    let mut roles = Roles::new();
    for (user, host, role, role_host) in rows {
        let role = Account { user: role, host: role_host };
        roles.entry(Account { user, host }).or_default().push(role);
    }
    Ok(roles)
}

/// Accounts in an order in which each comes after its default roles. `CREATE USER … DEFAULT ROLE`
/// needs them to be there.
fn creation_order(accounts: &[Account], default_roles: &Roles) -> Vec<Account> {
    let mut order: Vec<Account> = Vec::with_capacity(accounts.len());
    let mut left: Vec<&Account> = accounts.iter().collect();
    while !left.is_empty() {
        let waits = |account: &Account| {
            default_roles.get(account).is_some_and(|roles| {
                roles.iter().any(|role| role != account && left.contains(&role))
            })
        };
        let (later, now): (Vec<&Account>, Vec<&Account>) =
            left.iter().copied().partition(|account| waits(account));
        if now.is_empty() {
            // The server allows no circle of roles; should there be one, loading will name it.
            order.extend(later.into_iter().cloned());
            break;
        }
        order.extend(now.into_iter().cloned());
        left = later;
    }
    order
}

/// Second passwords (`RETAIN CURRENT PASSWORD`), which `SHOW CREATE USER` leaves out.
async fn additional_passwords(conn: &mut Conn) -> Result<BTreeMap<Account, Vec<u8>>> {
    let rows: Vec<Row> = ask::rows(
        conn,
        "SELECT User, Host, CAST(User_attributes->>'$.additional_password' AS BINARY) \
             FROM mysql.user WHERE User_attributes->>'$.additional_password' IS NOT NULL",
        || "read mysql.user".into(),
    )
    .await?;
    let mut found = BTreeMap::new();
    for row in rows {
        let (user, host, hash): (String, String, Vec<u8>) =
            mysql_async::from_row_opt(row).unavailable(|| "read mysql.user".into())?;
        found.insert(Account { user, host }, hash);
    }
    Ok(found)
}

fn additional_password(account: &Account, hash: &[u8]) -> Result<String> {
    Ok(format!(
        "UPDATE mysql.user SET User_attributes = JSON_SET(COALESCE(User_attributes, \
         JSON_OBJECT()), '$.additional_password', CONVERT({} USING utf8mb4)) \
         WHERE User = CONVERT({} USING utf8mb4) AND Host = CONVERT({} USING utf8mb4)",
        hex(hash)?,
        hex(account.user.as_bytes())?,
        hex(account.host.as_bytes())?,
    ))
}

fn hex(bytes: &[u8]) -> Result<String> {
    if bytes.is_empty() {
        return Ok("''".into());
    }
    let mut text = String::from("0x");
    for byte in bytes {
        write!(text, "{byte:02X}").class(crate::error::Class::Bug, || "write hex".into())?;
    }
    Ok(text)
}

fn push(into: &mut Vec<Statement>, account: &Account, sql: String) -> Result<()> {
    if sql.contains(['\n', '\r', '\0']) {
        return Err(Error::usage(format!(
            "account {:?}: a line break is in its name or in one of its grants",
            account.quoted()
        ))
        .hint("rename the account, or the schema or table that the grant names"));
    }
    into.push(Statement { account: account.clone(), sql });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(name: &str) -> Account {
        Account { user: name.into(), host: "%".into() }
    }

    #[test]
    fn an_account_is_created_after_its_default_roles() {
        let accounts = ["a", "b", "c"].map(account);
        let roles = Roles::from([
            (account("a"), vec![account("b"), account("gone")]),
            (account("b"), vec![account("c")]),
        ]);
        let order = creation_order(&accounts, &roles);
        assert_eq!(order, ["c", "b", "a"].map(account));
        let circle =
            Roles::from([(account("a"), vec![account("b")]), (account("b"), vec![account("a")])]);
        assert_eq!(creation_order(&accounts, &circle).len(), 3);
    }

    #[test]
    fn names_are_quoted_and_read_back() {
        let odd = Account { user: "a`b@c".into(), host: "10.%".into() };
        assert_eq!(odd.quoted(), "`a``b@c`@`10.%`");
        assert_eq!(Account::parse("a`b@c@10.%"), Some(odd));
    }
}
