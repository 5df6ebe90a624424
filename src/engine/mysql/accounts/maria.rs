//! Accounts of MariaDB: roles have names of their own there, without a host, and are created by
//! statements of their own.
//!
//! `SHOW GRANTS` lists a role's grants with those of the roles that it has; each line names its
//! own grantee, so that doing one twice changes nothing.

use super::{Account, Statement, identifier, push};
use crate::engine::mysql::ask;
use crate::error::{Error, Result};
use mysql_async::Conn;

/// The pseudo role that everybody has: it is never created.
const EVERYBODY: &str = "PUBLIC";

/// All accounts, roles and grants, in an order in which each finds what it builds on.
pub(super) async fn read(conn: &mut Conn) -> Result<Vec<Statement>> {
    let reading = || "read the accounts".to_owned();
    ask::run(conn, "SET SESSION sql_mode = ''", reading).await?;
    let users = super::list(conn).await?;
    let roles: Vec<String> =
        ask::rows(conn, "SELECT User FROM mysql.user WHERE is_role = 'Y' ORDER BY 1", reading)
            .await?;
    let role = |name: &str| Account { user: name.to_owned(), host: String::new() };
    let mut statements = Vec::new();
    for name in roles.iter().filter(|name| *name != EVERYBODY) {
        let sql = format!("CREATE ROLE IF NOT EXISTS {}", identifier(name));
        push(&mut statements, &role(name), sql)?;
    }
    for user in &users {
        let sql: String = ask::first(conn, format!("SHOW CREATE USER {}", user.quoted()), reading)
            .await?
            .ok_or_else(|| Error::unavailable(format!("no account {}", user.quoted())))?;
        let definition = sql.strip_prefix("CREATE USER ").ok_or_else(|| {
            Error::unavailable(format!("no definition of account {}", user.quoted()))
        })?;
        push(&mut statements, user, format!("CREATE USER IF NOT EXISTS {definition}"))?;
    }
    let grantees = roles
        .iter()
        .map(|name| (role(name), if name == EVERYBODY { name.clone() } else { identifier(name) }))
        .chain(users.iter().map(|user| (user.clone(), user.quoted())));
    for (account, name) in grantees {
        let lines: Vec<String> = ask::rows(conn, format!("SHOW GRANTS FOR {name}"), || {
            format!("read the grants of {name}")
        })
        .await?;
        // Everybody has USAGE; what else stands on such a line, CREATE USER has said.
        let said = ["GRANT USAGE ON *.* TO", "GRANT PROXY ON "];
        for line in lines.iter().filter(|line| !said.iter().any(|start| line.starts_with(start))) {
            push(&mut statements, &account, without_login(line, &name))?;
        }
    }
    proxies(conn, &mut statements).await?;
    let holders: Vec<(String, String, String)> =
        ask::rows(conn, "SELECT Role, User, Host FROM mysql.roles_mapping", reading).await?;
    for name in roles.iter().filter(|name| *name != EVERYBODY) {
        let holders = holders.iter().filter(|(role, ..)| role == name);
        push(&mut statements, &role(name), give_back(name, holders))?;
    }
    Ok(statements)
}

/// Who may act as whom. The installer's rows have no host, which no statement can give.
async fn proxies(conn: &mut Conn, statements: &mut Vec<Statement>) -> Result<()> {
    let rows: Vec<(String, String, String, String, u8, String)> = ask::rows(
        conn,
        "SELECT Host, User, Proxied_host, Proxied_user, With_grant, Grantor \
         FROM mysql.proxies_priv",
        || "read mysql.proxies_priv".into(),
    )
    .await?;
    for (host, user, proxied_host, proxied_user, with_grant, grantor) in rows {
        let values = [&host, &user, &proxied_host, &proxied_user, &grantor].map(|v| literal(v));
        let sql = format!(
            "INSERT IGNORE INTO mysql.proxies_priv \
             (Host, User, Proxied_host, Proxied_user, Grantor, With_grant) \
             VALUES ({}, {with_grant})",
            values.join(", ")
        );
        push(statements, &Account { user, host }, sql)?;
    }
    Ok(())
}

/// A grant without the way to log in that MariaDB writes behind the name of the account: given
/// again, it would be a new password, and an expired one would be so no longer.
fn without_login(grant: &str, grantee: &str) -> String {
    let to = format!(" ON *.* TO {grantee}");
    let Some((privileges, rest)) = grant.split_once(&to) else { return grant.to_owned() };
    // Outside of quotes: every second part.
    let with = rest.split('\'').step_by(2).any(|part| part.contains(" WITH GRANT OPTION"));
    format!("{privileges}{to}{}", if with { " WITH GRANT OPTION" } else { "" })
}

/// Who creates a role has it with the right to hand it on. Takes that away again from whom loads
/// this, unless the role was theirs anyway.
fn give_back<'a>(
    role: &str,
    holders: impl Iterator<Item = &'a (String, String, String)>,
) -> String {
    let holders: Vec<String> =
        holders.map(|(_, user, host)| literal(&format!("{user}@{host}"))).collect();
    let revoke = literal(&format!("REVOKE {} FROM CURRENT_USER", identifier(role)));
    let holders = if holders.is_empty() { "''".to_owned() } else { holders.join(", ") };
    format!("EXECUTE IMMEDIATE IF(CURRENT_USER() IN ({holders}), 'DO 0', {revoke})")
}

/// A text in quotes, for a session without `NO_BACKSLASH_ESCAPES`.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_sets_no_password() {
        let to = "GRANT RELOAD ON *.* TO `a`@`%`";
        let cases = [
            (" IDENTIFIED BY PASSWORD '*7446'", ""),
            (" IDENTIFIED VIA x USING ' WITH GRANT OPTION' OR y", ""),
            (" REQUIRE SSL WITH GRANT OPTION MAX_QUERIES_PER_HOUR 5", " WITH GRANT OPTION"),
            ("", ""),
        ];
        for (rest, kept) in cases {
            let grant = without_login(&format!("{to}{rest}"), "`a`@`%`");
            assert_eq!(grant, format!("{to}{kept}"));
        }
        let other = "GRANT SELECT ON `d`.* TO `a`@`%` WITH GRANT OPTION";
        assert_eq!(without_login(other, "`a`@`%`"), other);
    }
}
