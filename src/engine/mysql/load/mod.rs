//! A baseline on its way into a target: the dump over several connections, then the accounts.
//!
//! Nothing that is loaded gets into the target's binlog or takes a GTID of the target.
//!
//! **Invariant:** a baseline counts as loaded only if its own last line was read, and the server
//! took every statement of the dump and every one for every account.

mod create;
mod lane;
mod split;
mod statement;
mod tables;
pub(super) mod resume;

use self::resume::Whole;
use super::accounts::{self, Account, SYSTEM_ACCOUNTS};
use super::ask;
use super::baseline::{ACCOUNT_MARK, ACCOUNTS_MARK, END_MARK, Facts, HEAD_MARK};
use super::executed::Executed;
use super::tools;
use crate::engine::Meter;
use crate::error::{Context, Error, Result};
use bytes::{Buf, Bytes, BytesMut};
use mysql_async::Conn;
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::mpsc;

/// The first line must end within this many bytes.
const HEAD_BYTES: usize = 64 << 10;
/// The accounts of a server must fit into this many bytes.
const ACCOUNTS_BYTES: usize = 256 << 20;

/// A baseline's bytes, taken apart at its marks.
#[derive(Debug)]
pub(super) struct Baseline {
    pieces: mpsc::Receiver<Result<Bytes>>,
    /// Bytes that were received and not handed out yet.
    held: BytesMut,
    facts: Facts,
    mark: String,
    /// What stands between the dump and the accounts.
    accounts_mark: Vec<u8>,
    sql_ended: bool,
}

impl Baseline {
    /// Reads the first line.
    ///
    /// # Errors
    /// Corrupt, if it is not one that pitr wrote; those among the pieces.
    pub(super) async fn open(mut pieces: mpsc::Receiver<Result<Bytes>>) -> Result<Self> {
        let mut held = BytesMut::new();
        let line = loop {
            if let Some(end) = held.iter().position(|byte| *byte == b'\n') {
                let line = held.split_to(end + 1);
                break String::from_utf8_lossy(&line).trim_end().to_owned();
            }
            match pieces.recv().await.transpose()? {
                Some(piece) if held.len() < HEAD_BYTES => held.extend_from_slice(&piece),
                _ => return Err(Error::corrupt("the baseline has no first line")),
            }
        };
        let parsed = line.strip_prefix(HEAD_MARK).and_then(|rest| rest.split_once(' '));
        let (mark, facts) =
            parsed.ok_or_else(|| Error::corrupt("the baseline is not one of MySQL, version 1"))?;
        let facts =
            serde_json::from_str(facts).corrupt(|| "read the first line of the baseline".into())?;
        let accounts_mark = format!("\n{ACCOUNTS_MARK}{mark}\n").into_bytes();
        Ok(Self { pieces, held, facts, mark: mark.to_owned(), accounts_mark, sql_ended: false })
    }

    /// What is known about the source.
    pub(super) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The next bytes of the dump; nothing behind its last ones.
    async fn sql(&mut self) -> Result<Option<Bytes>> {
        while !self.sql_ended {
            if let Some(at) = memchr::memmem::find(&self.held, &self.accounts_mark) {
                let sql = self.held.split_to(at);
                self.held.advance(self.accounts_mark.len());
                self.sql_ended = true;
                return Ok(Some(sql.freeze()));
            }
            // The mark may have begun in the last bytes.
            let ready = self.held.len().saturating_sub(self.accounts_mark.len());
            if ready > 0 {
                return Ok(Some(self.held.split_to(ready).freeze()));
            }
            match self.pieces.recv().await.transpose()? {
                Some(piece) => self.held.extend_from_slice(&piece),
                None => return Err(Error::corrupt("the baseline ends before its accounts")),
            }
        }
        Ok(None)
    }

    /// The account statements, each with its account.
    async fn accounts(&mut self) -> Result<Vec<(Option<Account>, String)>> {
        while let Some(piece) = self.pieces.recv().await.transpose()? {
            if self.held.len() > ACCOUNTS_BYTES {
                return Err(Error::corrupt("the accounts of the baseline do not end"));
            }
            self.held.extend_from_slice(&piece);
        }
        let text = String::from_utf8(std::mem::take(&mut self.held).to_vec())
            .corrupt(|| "the accounts of the baseline".into())?;
        let end = format!("\n{END_MARK}{}\n", self.mark);
        let text = text
            .strip_suffix(&end)
            .ok_or_else(|| Error::corrupt("the baseline ends before its last line"))?;
        parse_accounts(text)
    }
}

fn parse_accounts(text: &str) -> Result<Vec<(Option<Account>, String)>> {
    let mut statements = Vec::new();
    let mut account = None;
    for line in text.lines() {
        if let Some(json) = line.strip_prefix(ACCOUNT_MARK) {
            account =
                Some(serde_json::from_str(json).corrupt(|| "an account of the baseline".into())?);
        } else {
            let sql = line
                .strip_suffix(';')
                .ok_or_else(|| Error::corrupt("a statement of the baseline's accounts is cut"))?;
            statements.push((account.take(), sql.to_owned()));
        }
    }
    Ok(statements)
}

/// Loads a baseline into a server that is empty but for the tables that are whole. Gives the
/// accounts that were left as they are.
///
/// # Errors
/// Those of the pieces. Unavailable, with the server's words, if a statement is not taken.
pub(super) async fn load(
    mut baseline: Baseline,
    server: &tools::Server<'_>,
    conn: &mut Conn,
    keep: &Account,
    rights: Rights,
    whole: Option<&Whole>,
    meter: &Meter,
) -> Result<Accounts> {
    tables::load(&mut baseline, server, conn, whole, meter)
        .await
        .map_err(|error| error.context("load the baseline"))?;
    let statements = baseline.accounts().await?;
    apply_accounts(conn, &statements, keep, rights).await
}

/// What the account that loads may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rights {
    /// Everything.
    All,
    /// Not everything, as on a managed server: accounts that are there stay as they are, and
    /// what the server does not let it grant stays away.
    Some,
}

/// What became of the accounts.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    /// Those that were left as they are.
    pub(super) kept: Vec<Account>,
    /// Those that lack something, because the server did not allow it.
    pub(super) lacking: BTreeSet<Account>,
    /// Dynamic privileges of the source that the server does not know, and who lacks them.
    pub(super) unknown: BTreeMap<String, BTreeSet<Account>>,
}

async fn apply_accounts(
    conn: &mut Conn,
    statements: &[(Option<Account>, String)],
    keep: &Account,
    rights: Rights,
) -> Result<Accounts> {
    for setting in ["sql_log_bin = 0", "sql_mode = ''"] {
        ask::run(conn, format!("SET SESSION {setting}"), || format!("set {setting}")).await?;
    }
    let there = accounts::list(conn).await?;
    let left_alone = |account: &Account| {
        account == keep
            || SYSTEM_ACCOUNTS.contains(&account.user.as_str())
            || rights == Rights::Some && there.contains(account)
    };
    let (mut lacking, mut unknown) = (BTreeSet::new(), BTreeMap::new());
    let named: BTreeSet<&Account> =
        statements.iter().filter_map(|(account, _)| account.as_ref()).collect();
    // What the target has under these names gives way to what the source had.
    for account in &there {
        if named.contains(account) && !left_alone(account) {
            ask::run(conn, format!("DROP USER {}", account.quoted()), || {
                format!("replace account {}", account.quoted())
            })
            .await?;
        }
    }
    for (account, sql) in statements {
        if account.as_ref().is_some_and(left_alone) {
            continue;
        }
        let mut run = ask::run(conn, sql, || match account {
            // Never the statement itself: it may hold a hash.
            Some(account) if !sql.starts_with("GRANT ") && !sql.starts_with("REVOKE ") => {
                format!("create account {}", account.quoted())
            }
            _ => sql.clone(),
        })
        .await;
        if let (Some(account), Some(NOT_REGISTERED)) = (account, ask::server_code(&run))
            && let Some((grant, others)) = known_part(sql, &dynamic_privileges(conn).await?)
        {
            run = match grant {
                Some(grant) => ask::run(conn, &grant, || grant.clone()).await,
                None => Ok(()),
            };
            for privilege in others {
                let who: &mut BTreeSet<Account> = unknown.entry(privilege).or_default();
                who.insert(account.clone());
            }
        }
        // Access denied, for one reason or another; an account that was not made.
        let denied =
            matches!(ask::server_code(&run), Some(1044 | 1045 | 1142 | 1227 | 1396 | 1410 | 3523));
        match (run, account) {
            (Err(error), Some(account)) if rights == Rights::Some && denied => {
                tracing::warn!("{}: {error}", account.quoted());
                lacking.insert(account.clone());
            }
            (run, _) => run?,
        }
    }
    let kept = named.into_iter().filter(|account| left_alone(account)).cloned().collect();
    Ok(Accounts { kept, lacking, unknown })
}

/// What a server says to a GRANT of a dynamic privilege that nothing in it has registered
/// (`ER_SYNTAX_ERROR`; `grant_dynamic_privilege` in the server's `sql/auth/sql_authorization.cc`).
const NOT_REGISTERED: u16 = 1149;

/// The dynamic privileges that a server knows, among its others.
async fn dynamic_privileges(conn: &mut Conn) -> Result<BTreeSet<String>> {
    let rows: Vec<(String, String, String)> =
        ask::rows(conn, "SHOW PRIVILEGES", || "list the privileges of the server".into()).await?;
    Ok(rows.into_iter().map(|(privilege, _, _)| privilege.to_uppercase()).collect())
}

/// Of a GRANT of dynamic privileges, as `SHOW GRANTS` writes it, what a server can do that knows
/// these (`None` if nothing is left), and the privileges that are left out. `None` if it is another
/// statement, or all are known.
fn known_part(sql: &str, known: &BTreeSet<String>) -> Option<(Option<String>, Vec<String>)> {
    let (privileges, to) = sql.strip_prefix("GRANT ")?.split_once(" ON *.* TO ")?;
    let privileges = privileges.split(',').map(|name| name.trim().to_owned());
    let (there, others): (Vec<_>, Vec<_>) = privileges.partition(|name| known.contains(name));
    let grant = format!("GRANT {} ON *.* TO {to}", there.join(","));
    (!others.is_empty()).then(|| ((!there.is_empty()).then_some(grant), others))
}

/// Forgets the GTIDs that the server has executed so far and takes over those of a baseline.
///
/// # Errors
/// Finding, if the server has not exactly those afterwards.
pub(super) async fn take_over_gtids(conn: &mut Conn, gtids: &str) -> Result<()> {
    let set: Executed = gtids.parse()?;
    let clearing = || "clear the target's own GTIDs".to_owned();
    let mut cleared = ask::run(conn, "RESET BINARY LOGS AND GTIDS", clearing).await;
    if ask::is_syntax_error(&cleared) {
        // What servers before 8.2 call it.
        cleared = ask::run(conn, "RESET MASTER", clearing).await;
    }
    cleared?;
    if !set.is_empty() {
        ask::run(conn, format!("SET GLOBAL gtid_purged = '{set}'"), || "set gtid_purged".into())
            .await?;
    }
    let executed = executed(conn).await?;
    if executed != set {
        return Err(Error::new(
            crate::error::Class::Finding,
            format!("the target has executed {executed}, not {set}, after its baseline"),
        ));
    }
    Ok(())
}

/// `@@gtid_executed`.
pub(super) async fn executed(conn: &mut Conn) -> Result<Executed> {
    let text: Option<String> =
        ask::first(conn, "SELECT @@GLOBAL.gtid_executed", || "read gtid_executed".into()).await?;
    text.ok_or_else(|| Error::unavailable("the target has no gtid_executed"))?.parse()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;
    use rstest::rstest;

    const TEXT: &str = "-- pitr: baseline 1 abc {\"version\":\"9.7.4\",\
        \"lower_case_table_names\":0,\"partial_revokes\":false,\"page_bytes\":16384}\n\
        SELECT '\n-- pitr: accounts abd\n';\n\n-- pitr: accounts abc\n\
        -- pitr: account {\"user\":\"a\",\"host\":\"%\"}\nGRANT x;\nFLUSH PRIVILEGES;\n\
        -- pitr: end abc\n";

    async fn opened(text: &str, piece: usize) -> Result<Baseline> {
        let (tx, rx) = mpsc::channel(10_000);
        for part in text.as_bytes().chunks(piece) {
            tx.send(Ok(Bytes::copy_from_slice(part))).await.unwrap();
        }
        drop(tx);
        Baseline::open(rx).await
    }

    #[rstest]
    #[case(1)]
    #[case(7)]
    #[case(100_000)]
    #[tokio::test]
    async fn a_baseline_is_taken_apart_however_its_bytes_arrive(#[case] piece: usize) {
        let mut baseline = opened(TEXT, piece).await.unwrap();
        assert_eq!(baseline.facts().version, "9.7.4");
        let mut sql = Vec::new();
        while let Some(bytes) = baseline.sql().await.unwrap() {
            sql.extend_from_slice(&bytes);
        }
        assert_eq!(sql, b"SELECT '\n-- pitr: accounts abd\n';\n");
        let account = Account { user: "a".into(), host: "%".into() };
        let expected =
            vec![(Some(account), "GRANT x".to_owned()), (None, "FLUSH PRIVILEGES".to_owned())];
        assert_eq!(baseline.accounts().await.unwrap(), expected);
    }

    #[rstest]
    #[case("GRANT A,B_C,D ON *.* TO `x`@`%` WITH GRANT OPTION",
        Some((Some("GRANT A,D ON *.* TO `x`@`%` WITH GRANT OPTION"), &["B_C"][..])))]
    #[case("GRANT B_C ON *.* TO `x`@`%`", Some((None, &["B_C"][..])))]
    #[case("GRANT A,D ON *.* TO `x`@`%`", None)]
    #[case("GRANT B_C ON `s`.* TO `x`@`%`", None)]
    #[case("CREATE USER `x`@`%`", None)]
    fn a_grant_is_done_as_far_as_the_server_knows_it(
        #[case] sql: &str,
        #[case] expected: Option<(Option<&str>, &[&str])>,
    ) {
        let known = ["A", "D"].map(str::to_owned).into();
        let part = known_part(sql, &known);
        let part = part.as_ref().map(|(grant, others)| {
            (grant.as_deref(), others.iter().map(String::as_str).collect::<Vec<_>>())
        });
        assert_eq!(part, expected.map(|(grant, others)| (grant, others.to_vec())));
    }

    #[tokio::test]
    async fn a_baseline_that_is_cut_anywhere_is_corrupt() {
        for len in 0..TEXT.len() {
            let read = async {
                let mut baseline = opened(TEXT.get(..len).unwrap(), 50).await?;
                while baseline.sql().await?.is_some() {}
                baseline.accounts().await
            };
            assert_eq!(read.await.unwrap_err().class(), Class::Corrupt, "cut at {len}");
        }
    }
}
