//! A running server that is being restored into says so itself, until it is done.
//!
//! A schema with one view in it holds what the next attempt has to know if this one is
//! interrupted: of which source, since when, which accounts were there, and what the global
//! variables were that were changed. A view is no table: nothing counts or checks it.
//!
//! **Invariant:** only a server that holds this is ever cleaned, only when told to, and never
//! while the attempt that wrote it still holds its lock.

use super::accounts::{self, Account, identifier};
use super::ask;
use super::baseline::SYSTEM_SCHEMAS;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use mysql_async::Conn;

/// The schema.
pub(super) const SCHEMA: &str = "pitr_unfinished_restore";
/// The lock of the session that restores.
const LOCK: &str = "pitr_unfinished_restore";
/// `ER_SPECIFIC_ACCESS_DENIED_ERROR`.
const ACCESS_DENIED: u16 = 1227;
/// Kinds of notes.
const SOURCE: &str = "source";
const BEGUN: &str = "begun";
const ACCOUNT: &str = "account";
const GLOBAL: &str = "global";

/// What is known of an attempt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Half {
    /// Kind, name and value.
    notes: Vec<(String, String, String)>,
}

impl Half {
    /// Marks a server, which is empty, as being restored into.
    pub(super) async fn begin(conn: &mut Conn, source: &str) -> Result<Self> {
        let locked: Option<u8> =
            ask::first(conn, format!("SELECT GET_LOCK('{LOCK}', 0)"), || "take a lock".into())
                .await?;
        if locked != Some(1) {
            return Err(busy());
        }
        let note = |kind: &str, name: &str, value: &str| {
            (kind.to_owned(), name.to_owned(), value.to_owned())
        };
        let mut notes =
            vec![note(SOURCE, source, ""), note(BEGUN, &Timestamp::now().to_string(), "")];
        for account in accounts::list(conn).await? {
            notes.push(note(ACCOUNT, &account.user, &account.host));
        }
        run(conn, "SET SESSION sql_log_bin = 0").await?;
        run(conn, &format!("CREATE DATABASE {SCHEMA}")).await?;
        let half = Self { notes };
        half.write(conn).await?;
        Ok(half)
    }

    /// Notes what a global variable is before it is changed.
    pub(super) async fn note_global(
        &mut self,
        conn: &mut Conn,
        name: &str,
        before: &str,
    ) -> Result<()> {
        self.notes.push((GLOBAL.to_owned(), name.to_owned(), before.to_owned()));
        self.write(conn).await
    }

    async fn write(&self, conn: &mut Conn) -> Result<()> {
        let hex = |text: &str| {
            let digits =
                text.bytes().fold(String::new(), |digits, byte| digits + &format!("{byte:02x}"));
            format!("CONVERT(x'{digits}' USING utf8mb4)")
        };
        let rows: Vec<String> = self
            .notes
            .iter()
            .map(|(kind, name, value)| {
                format!("SELECT '{kind}' AS kind, {} AS name, {} AS value", hex(name), hex(value))
            })
            .collect();
        let view = format!("CREATE OR REPLACE VIEW {SCHEMA}.notes AS {}", rows.join(" UNION ALL "));
        run(conn, "SET SESSION sql_log_bin = 0").await?;
        run(conn, &view).await
    }

    /// What an attempt left that has not come to its end.
    ///
    /// # Errors
    /// Busy, if it goes on.
    pub(super) async fn look(conn: &mut Conn) -> Result<Option<Self>> {
        let asking = || "look for an unfinished restore".to_owned();
        let schemas = format!(
            "SELECT SCHEMA_NAME FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = '{SCHEMA}'"
        );
        if ask::first::<String>(conn, schemas, asking).await?.is_none() {
            return Ok(None);
        }
        let used: Option<Option<u64>> =
            ask::first(conn, format!("SELECT IS_USED_LOCK('{LOCK}')"), asking).await?;
        if used.flatten().is_some() {
            return Err(busy());
        }
        let views = format!(
            "SELECT TABLE_NAME FROM information_schema.VIEWS WHERE TABLE_SCHEMA = '{SCHEMA}'"
        );
        // Interrupted between the two statements that make the mark: nothing else was done.
        if ask::first::<String>(conn, views, asking).await?.is_none() {
            return Ok(Some(Self::default()));
        }
        let notes =
            ask::rows(conn, format!("SELECT kind, name, value FROM {SCHEMA}.notes"), asking)
                .await?;
        Ok(Some(Self { notes }))
    }

    /// The refusal of a server in such a state.
    pub(super) fn refusal(&self, at: &str) -> Error {
        let of = |kind: &str| self.notes.iter().find(|note| note.0 == kind).map(|note| &*note.1);
        let source = of(SOURCE).unwrap_or("NAME");
        let begun = of(BEGUN).map(|at| format!(", begun at {at},")).unwrap_or_default();
        Error::refused(format!(
            "{at} is half restored: an attempt to restore {source}{begun} did not come to its end"
        ))
        .hint(format!(
            "--clean-target {source} drops every schema there, and the accounts that came with \
             them, and starts anew"
        ))
    }

    /// Takes away what the attempt has brought, and puts back what it has changed.
    pub(super) async fn clean(self, conn: &mut Conn) -> Result<()> {
        let kept: Vec<Account> = self
            .notes
            .iter()
            .filter(|note| note.0 == ACCOUNT)
            .map(|(_, user, host)| Account { user: user.clone(), host: host.clone() })
            .collect();
        run(conn, "SET SESSION sql_log_bin = 0").await?;
        run(conn, "SET SESSION foreign_key_checks = 0").await?;
        for statement in ["STOP REPLICA", "RESET REPLICA ALL"] {
            let ended = run(conn, statement).await;
            // Who may not end a replication has not begun one; another one's is refused later.
            if ask::server_code(&ended) != Some(ACCESS_DENIED) {
                ended?;
            }
        }
        for (_, name, value) in self.notes.iter().filter(|note| note.0 == GLOBAL).rev() {
            let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
            let value = if digits { value.clone() } else { format!("'{value}'") };
            run(conn, &format!("SET GLOBAL {name} = {value}")).await?;
        }
        let schemas: Vec<String> = ask::rows(
            conn,
            format!(
                "SELECT SCHEMA_NAME FROM information_schema.SCHEMATA \
                 WHERE SCHEMA_NAME NOT IN ({SYSTEM_SCHEMAS}) AND SCHEMA_NAME <> '{SCHEMA}'"
            ),
            || "list the schemas".into(),
        )
        .await?;
        for schema in schemas {
            run(conn, &format!("DROP DATABASE {}", identifier(&schema))).await?;
        }
        let me = accounts::me(conn).await?;
        for account in accounts::list(conn).await? {
            if account != me && !self.notes.is_empty() && !kept.contains(&account) {
                run(conn, &format!("DROP USER {}", account.quoted())).await?;
            }
        }
        run(conn, "SET SESSION foreign_key_checks = 1").await?;
        Self::end(conn).await
    }

    /// Takes the mark away.
    pub(super) async fn end(conn: &mut Conn) -> Result<()> {
        run(conn, "SET SESSION sql_log_bin = 0").await?;
        run(conn, &format!("DROP DATABASE {SCHEMA}")).await?;
        run(conn, &format!("DO RELEASE_LOCK('{LOCK}')")).await
    }
}

fn busy() -> Error {
    Error::busy("another restore is filling the target").hint("wait for it, or take another server")
}

async fn run(conn: &mut Conn, statement: &str) -> Result<()> {
    ask::run(conn, statement, || format!("run {statement:.80}")).await
}
