//! A running server that is being restored into says so itself, until it is done.
//!
//! A schema with one view in it holds what the next attempt has to know if this one is
//! interrupted: of which source, for which purpose, since when, which accounts were there, and
//! what the global variables were that were changed. A view is no table: nothing counts or checks
//! it. While the baseline is loaded, a table stands beside it ([`resume`]).
//!
//! **Invariant:** only a server that holds this is ever cleaned, only when told to or for a
//! restore of the same purpose, and never while the attempt that wrote it still holds its lock.

use super::accounts::{self, Account};
use super::ask;
use super::load::resume::{self, Whole};
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use mysql_async::Conn;
use std::time::{Duration, Instant};

/// The schema.
pub(super) const SCHEMA: &str = "pitr_unfinished_restore";
/// The lock of the session that restores.
const LOCK: &str = "pitr_unfinished_restore";
/// `ER_SPECIFIC_ACCESS_DENIED_ERROR`.
const ACCESS_DENIED: u16 = 1227;
/// How long a session that was ended may take to go.
const GOING: Duration = Duration::from_mins(1);
/// Kinds of notes.
const SOURCE: &str = "source";
const PURPOSE: &str = "purpose";
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
    /// Marks a server, which is empty, as being restored into. `purpose` is what a later attempt
    /// must be for to go on with what this one leaves.
    pub(super) async fn begin(conn: &mut Conn, source: &str, purpose: &str) -> Result<Self> {
        lock(conn).await?;
        let mut notes = vec![
            note(SOURCE, source, ""),
            note(PURPOSE, purpose, ""),
            note(BEGUN, &Timestamp::now().to_string(), ""),
        ];
        for account in accounts::list(conn).await? {
            notes.push(note(ACCOUNT, &account.user, &account.host));
        }
        run(conn, "SET SESSION sql_log_bin = 0").await?;
        run(conn, &format!("CREATE DATABASE {SCHEMA}")).await?;
        let half = Self { notes };
        half.write(conn).await?;
        resume::begin(conn).await?;
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
        if resume::user_of(conn, LOCK).await?.is_some() && Self::read(conn).await?.is_some() {
            return Err(busy());
        }
        Self::read(conn).await
    }

    /// The mark, whether its attempt goes on or not.
    async fn read(conn: &mut Conn) -> Result<Option<Self>> {
        let asking = || "look for an unfinished restore".to_owned();
        let schemas = format!(
            "SELECT SCHEMA_NAME FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = '{SCHEMA}'"
        );
        if ask::first::<String>(conn, schemas, asking).await?.is_none() {
            return Ok(None);
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

    fn of(&self, kind: &str) -> Option<&str> {
        self.notes.iter().find(|note| note.0 == kind).map(|note| &*note.1)
    }

    /// Whether nothing is noted: the attempt was interrupted before it did anything else, or the
    /// one that took the mark away was.
    pub(super) fn is_bare(&self) -> bool {
        self.notes.is_empty()
    }

    /// Whether a restore for this purpose may go on here.
    pub(super) fn is_for(&self, purpose: &str) -> bool {
        !purpose.is_empty() && self.of(PURPOSE) == Some(purpose)
    }

    /// Whether this is the mark of the same attempt.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        [SOURCE, PURPOSE, BEGUN].iter().all(|kind| self.of(kind) == other.of(kind))
            && self.of(BEGUN).is_some()
    }

    /// The refusal of a server in such a state.
    pub(super) fn refusal(&self, at: &str) -> Error {
        let source = self.of(SOURCE).unwrap_or("NAME");
        let begun = self.of(BEGUN).map(|at| format!(", begun at {at},")).unwrap_or_default();
        Error::refused(format!(
            "{at} is half restored: an attempt to restore {source}{begun} did not come to its end"
        ))
        .hint(format!(
            "the same restore to the same instant goes on there; --clean-target {source} drops \
             every schema, and the accounts that came with them, and starts anew"
        ))
    }

    /// Takes away what the attempt has brought, and puts back what it has changed.
    pub(super) async fn clean(self, conn: &mut Conn) -> Result<()> {
        self.lock(conn).await?;
        resume::end_lanes(conn).await?;
        self.take_away(conn, &Whole::default()).await?;
        Self::end(conn).await
    }

    /// Takes over what an attempt for the same purpose left: its mark, and the tables that are
    /// whole. Everything else is taken away as by [`clean`](Self::clean).
    pub(super) async fn resume(mut self, conn: &mut Conn) -> Result<(Self, Whole)> {
        self.lock(conn).await?;
        resume::end_lanes(conn).await?;
        let whole = resume::whole(conn).await?;
        self.take_away(conn, &whole).await?;
        self.notes.retain(|(kind, ..)| kind != GLOBAL);
        self.write(conn).await?;
        resume::begin(conn).await?;
        Ok((self, whole))
    }

    /// Takes the lock of the attempt, if that has not come to its end since it was looked at.
    async fn lock(&self, conn: &mut Conn) -> Result<()> {
        lock(conn).await?;
        if Self::read(conn).await?.as_ref() == Some(self) { Ok(()) } else { Err(busy()) }
    }

    async fn take_away(&self, conn: &mut Conn, whole: &Whole) -> Result<()> {
        run(conn, "SET SESSION sql_log_bin = 0").await?;
        run(conn, "SET SESSION foreign_key_checks = 0").await?;
        for statement in ["STOP REPLICA", "RESET REPLICA ALL"] {
            let ended = run(conn, statement).await;
            // Who may not end a replication has not begun one; another one's is refused later.
            if ask::server_code(&ended) != Some(ACCESS_DENIED) {
                ended?;
            }
        }
        // Before the scheduler is what it was: an event would change tables that stay.
        resume::drop_all_but(conn, whole).await?;
        for (_, name, value) in self.notes.iter().filter(|note| note.0 == GLOBAL).rev() {
            let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
            let value = if digits { value.clone() } else { format!("'{value}'") };
            run(conn, &format!("SET GLOBAL {name} = {value}")).await?;
        }
        let kept: Vec<Account> = self
            .notes
            .iter()
            .filter(|note| note.0 == ACCOUNT)
            .map(|(_, user, host)| Account { user: user.clone(), host: host.clone() })
            .collect();
        let me = accounts::me(conn).await?;
        for account in accounts::list(conn).await? {
            if account != me && !self.is_bare() && !kept.contains(&account) {
                run(conn, &format!("DROP USER {}", account.quoted())).await?;
            }
        }
        run(conn, "SET SESSION foreign_key_checks = 1").await
    }

    /// Takes a mark without notes away, and nothing else.
    pub(super) async fn drop_bare(conn: &mut Conn) -> Result<()> {
        lock(conn).await?;
        Self::end(conn).await
    }

    /// Takes the mark away.
    pub(super) async fn end(conn: &mut Conn) -> Result<()> {
        run(conn, "SET SESSION sql_log_bin = 0").await?;
        run(conn, &format!("DROP DATABASE {SCHEMA}")).await?;
        run(conn, &format!("DO RELEASE_LOCK('{LOCK}')")).await
    }
}

fn note(kind: &str, name: &str, value: &str) -> (String, String, String) {
    (kind.to_owned(), name.to_owned(), value.to_owned())
}

/// Whoever holds this restores into the server, as long as its session lasts.
async fn lock(conn: &mut Conn) -> Result<()> {
    let locked: Option<Option<u8>> =
        ask::first(conn, format!("SELECT GET_LOCK('{LOCK}', 0)"), || "take a lock".into()).await?;
    if locked.flatten() == Some(1) { Ok(()) } else { Err(busy()) }
}

/// Ends a session of our own that holds the lock and does not answer any more, if the server
/// still has it.
pub(super) async fn end_session(conn: &mut Conn, id: u32) -> Result<()> {
    let begun = Instant::now();
    while resume::user_of(conn, LOCK).await? == Some(u64::from(id)) {
        resume::kill(conn, u64::from(id), begun.elapsed() > GOING).await?;
    }
    Ok(())
}

fn busy() -> Error {
    Error::busy("another restore is filling the target").hint("wait for it, or take another server")
}

async fn run(conn: &mut Conn, statement: &str) -> Result<()> {
    ask::run(conn, statement, || format!("run {statement:.80}")).await
}
