//! A baseline on its way into a target: the dump through the `mysql` client, then the accounts.
//!
//! Nothing that is loaded gets into the target's binlog or takes a GTID of the target.
//!
//! **Invariant:** a baseline counts as loaded only if its own last line was read, the client
//! ended well, and every statement for every account was taken.

use super::accounts::{self, Account, SYSTEM_ACCOUNTS};
use super::ask;
use super::baseline::{ACCOUNT_MARK, ACCOUNTS_MARK, CLIENT_PACKAGE, END_MARK, Facts, HEAD_MARK};
use super::executed::Executed;
use super::tools::{self, OptionFile};
use crate::error::{Context, Error, Result};
use bytes::{Bytes, BytesMut};
use mysql_async::Conn;
use std::collections::BTreeSet;
use std::process::Stdio;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

/// The client program.
pub(super) const CLIENT: &str = "mysql";
/// The first line must end within this many bytes.
const HEAD_BYTES: usize = 64 << 10;
/// The accounts of a server must fit into this many bytes.
const ACCOUNTS_BYTES: usize = 256 << 20;

/// What a dump must not depend on, and what keeps it out of the target's history. The dump's own
/// head sets the rest.
const PREAMBLE: &str = "SET SESSION sql_log_bin = 0;\n\
    SET SESSION autocommit = 1;\n\
    SET SESSION innodb_strict_mode = OFF;\n\
    /*!80013 SET SESSION sql_require_primary_key = OFF */;\n\
    /*!80030 SET SESSION sql_generate_invisible_primary_key = OFF */;\n\
    /*!80400 SET SESSION restrict_fk_on_non_standard_key = OFF */;\n";

/// A baseline's bytes, taken apart at its marks.
#[derive(Debug)]
pub(super) struct Baseline {
    pieces: mpsc::Receiver<Result<Bytes>>,
    /// Bytes that were received and not handed out yet.
    held: BytesMut,
    facts: Facts,
    mark: String,
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
        Ok(Self { pieces, held, facts, mark: mark.to_owned() })
    }

    /// What is known about the source.
    pub(super) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Feeds the dump to the client, and gives what stands behind it.
    async fn feed(&mut self, into: &mut (impl AsyncWriteExt + Unpin)) -> Result<Fed> {
        let needle = format!("\n{ACCOUNTS_MARK}{}\n", self.mark).into_bytes();
        loop {
            if let Some(at) = find(&self.held, &needle) {
                let sql = self.held.split_to(at);
                let _mark = self.held.split_to(needle.len());
                return Ok(write(into, &sql).await);
            }
            // The mark may have begun in the last bytes.
            let ready = self.held.len().saturating_sub(needle.len());
            let sql = self.held.split_to(ready);
            if write(into, &sql).await == Fed::ClientGone {
                return Ok(Fed::ClientGone);
            }
            match self.pieces.recv().await.transpose()? {
                Some(piece) => self.held.extend_from_slice(&piece),
                None => return Err(Error::corrupt("the baseline ends before its accounts")),
            }
        }
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

#[derive(Debug, PartialEq, Eq)]
enum Fed {
    All,
    ClientGone,
}

async fn write(into: &mut (impl AsyncWriteExt + Unpin), bytes: &[u8]) -> Fed {
    // Why it is gone, its exit status and its last words tell.
    if into.write_all(bytes).await.is_ok() { Fed::All } else { Fed::ClientGone }
}

fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    let first = needle.first()?;
    let mut from = 0;
    loop {
        let rest = hay.get(from..)?;
        let at = from + rest.iter().position(|byte| byte == first)?;
        if hay.get(at..)?.starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
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

/// Loads a baseline into an empty server. Gives the accounts that were left as they are.
///
/// # Errors
/// Those of the pieces. Unavailable, with the client's words, if a statement is not taken.
pub(super) async fn load(
    mut baseline: Baseline,
    server: &tools::Server<'_>,
    conn: &mut Conn,
    keep: &Account,
    rights: Rights,
) -> Result<Accounts> {
    run_client(&mut baseline, server).await?;
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
}

async fn run_client(baseline: &mut Baseline, server: &tools::Server<'_>) -> Result<()> {
    let options = OptionFile::create(server)?;
    let mut child = options
        .command(CLIENT)
        .args(["--binary-mode", "--batch", "--comments", "--skip-reconnect"])
        .args(["--default-character-set=utf8mb4", "--max-allowed-packet=1G"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| tools::start_error(CLIENT, CLIENT_PACKAGE, error))?;
    let (Some(mut stdin), Some(stderr)) = (child.stdin.take(), child.stderr.take()) else {
        return Err(Error::bug("a child without pipes"));
    };
    let stderr = tokio::spawn(tools::last_words(stderr));
    let mut fed = write(&mut stdin, PREAMBLE.as_bytes()).await;
    if fed == Fed::All {
        // On an error here the child is dropped, and with it killed, before its input ends: what
        // it has of an unfinished statement is never run.
        fed = baseline.feed(&mut stdin).await?;
    }
    drop(stdin);
    let status = child.wait().await.unavailable(|| format!("wait for {CLIENT}"))?;
    let stderr = stderr.await.unwrap_or_default();
    if !status.success() {
        return Err(tools::failed(CLIENT, status, &stderr).context("load the baseline"));
    }
    if fed == Fed::ClientGone {
        return Err(Error::unavailable(format!("{CLIENT} ended before the dump did: {stderr}")));
    }
    if !stderr.is_empty() {
        tracing::warn!("{CLIENT}: {stderr}");
    }
    Ok(())
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
    let mut lacking = BTreeSet::new();
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
        let run = ask::run(conn, sql, || match account {
            // Never the statement itself: it may hold a hash.
            Some(account) if !sql.starts_with("GRANT ") && !sql.starts_with("REVOKE ") => {
                format!("create account {}", account.quoted())
            }
            _ => sql.clone(),
        })
        .await;
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
    Ok(Accounts { kept, lacking })
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
        assert_eq!(baseline.feed(&mut sql).await.unwrap(), Fed::All);
        assert_eq!(sql, b"SELECT '\n-- pitr: accounts abd\n';\n");
        let account = Account { user: "a".into(), host: "%".into() };
        let expected =
            vec![(Some(account), "GRANT x".to_owned()), (None, "FLUSH PRIVILEGES".to_owned())];
        assert_eq!(baseline.accounts().await.unwrap(), expected);
    }

    #[tokio::test]
    async fn a_baseline_that_is_cut_anywhere_is_corrupt() {
        for len in 0..TEXT.len() {
            let read = async {
                let mut baseline = opened(TEXT.get(..len).unwrap(), 50).await?;
                baseline.feed(&mut Vec::new()).await?;
                baseline.accounts().await
            };
            assert_eq!(read.await.unwrap_err().class(), Class::Corrupt, "cut at {len}");
        }
    }
}
