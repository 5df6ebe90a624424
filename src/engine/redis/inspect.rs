//! Starts a scratch server on a restored folder, and looks at everything that it holds.
//!
//! **Invariant:** the scratch server is of pitr's own making, and ends before this returns.

use super::canary;
use super::control::Control;
use super::digest::digest;
use super::scratch::Scratch;
use crate::clock::Timestamp;
use crate::engine::canary::judge;
use crate::engine::inspect::{Check, Outcome};
use crate::error::{Error, Result};
use crate::record::{Contents, DatabaseContents};
use std::path::Path;
use std::time::Duration;

/// How long loading may take.
const LOAD_MAX: Duration = Duration::from_hours(6);

/// Counts the keys of an RDB file in `dir`.
pub(super) async fn count(version: &str, dir: &Path, file: &str) -> Result<Contents> {
    // The number of databases is not in the file.
    let settings = format!("dbfilename {file}\ndatabases 1024\nappendonly no");
    let scratch = Scratch::start(version, None, Some(dir), &settings).await?;
    let mut control = Control::connect(&scratch.endpoint).await?;
    until_loaded(&mut control).await?;
    let databases = keyspace(&mut control).await?;
    drop(control);
    scratch.shut_down().await?;
    Ok(Contents { tables: vec![], databases })
}

/// Looks at what a restored folder gives.
pub(super) async fn inspect(
    version: &str,
    dir: &Path,
    databases: u32,
    canary: Option<Timestamp>,
) -> Result<Vec<Check>> {
    let settings = format!(
        "appendonly yes\nappenddirname appendonlydir\naof-load-truncated no\ndatabases {databases}"
    );
    let scratch = Scratch::start(version, None, Some(dir), &settings).await?;
    let mut control = Control::connect(&scratch.endpoint).await?;
    until_loaded(&mut control).await?;
    let mut checks = vec![];
    let held = keyspace(&mut control).await?;
    let keys: u64 = held.iter().map(|database| database.keys).sum();
    for database in &held {
        let DatabaseContents { number, keys, expiring } = database;
        let what = format!("database {number}: {keys} keys, {expiring} of them with an expiry");
        checks.push(Check::new("keys", Outcome::Passed, what));
    }
    if held.is_empty() {
        checks.push(Check::new("keys", Outcome::Passed, "there are no keys"));
    }
    let persistence = control.info("persistence").await?;
    let status = persistence.get("aof_last_write_status").map_or("", String::as_str);
    let outcome = if status == "ok" { Outcome::Passed } else { Outcome::Failed };
    let what = format!("the server loaded its append-only file; its state is {status:?}");
    checks.push(Check::new("info", outcome, what));
    checks.push(match digest(control.connection()).await {
        Ok(digest) => {
            let mut kinds = std::collections::BTreeMap::<String, u64>::new();
            for part in digest.parts().keys() {
                if let Some((kind, _)) = part.split_once(" keys of database ") {
                    *kinds.entry(kind.to_owned()).or_default() +=
                        digest.elements(part).unwrap_or(0);
                }
            }
            let read: u64 = kinds.values().sum();
            let list: Vec<String> =
                kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
            let what = format!("every value was read: {}", list.join(", "));
            // Some may have expired since they were counted.
            let expiring: u64 = held.iter().map(|database| database.expiring).sum();
            let lost = read < keys.saturating_sub(expiring) || read > keys;
            let outcome = if lost { Outcome::Failed } else { Outcome::Passed };
            Check::new("types", outcome, what)
        }
        Err(error) => Check::new("types", Outcome::Failed, error.to_string()),
    });
    if let Some(to) = canary {
        // Of keys a baseline has only the number.
        checks.push(judge(canary::read(&mut control).await?, to, false));
    }
    drop(control);
    scratch.shut_down().await?;
    Ok(checks)
}

async fn until_loaded(control: &mut Control) -> Result<()> {
    let deadline = tokio::time::Instant::now() + LOAD_MAX;
    loop {
        let info = control.info("persistence").await?;
        let is_loading = |name: &str| info.get(name).is_some_and(|on| on != "0");
        if !is_loading("loading") && !is_loading("async_loading") {
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            return Err(Error::unavailable("the scratch server still loads its data"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// `INFO keyspace`: `db0:keys=3,expires=1,avg_ttl=0,…`.
async fn keyspace(control: &mut Control) -> Result<Vec<DatabaseContents>> {
    let info = control.info("keyspace").await?;
    let mut databases = vec![];
    for (name, fields) in info {
        let Some(number) = name.strip_prefix("db").and_then(|number| number.parse().ok()) else {
            continue;
        };
        let field = |name: &str| -> Option<u64> {
            fields.split(',').find_map(|field| field.strip_prefix(name)?.parse().ok())
        };
        let (Some(keys), Some(expiring)) = (field("keys="), field("expires=")) else {
            return Err(Error::corrupt(format!("INFO keyspace says {name}:{fields}")));
        };
        databases.push(DatabaseContents { number, keys, expiring });
    }
    databases.sort_by_key(|database| database.number);
    Ok(databases)
}
