//! Drops the expiries of a server that was restored with all of them moved out of the way.
//!
//! What was past its expiry at the instant is deleted, keys and fields of hashes alike: it was not
//! to be seen any more, only not deleted yet. Everything else stays for good.
//!
//! **Invariant:** expiries are far in the future meanwhile, so nothing expires under our hands.

use super::control::Control;
use crate::error::Result;
use redis::Cmd;

/// Keys or fields looked at at once.
const SLICE: usize = 1000;

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Settled {
    /// Keys and fields that lost their expiry.
    pub(super) persisted: u64,
    /// Keys that were deleted.
    pub(super) deleted: u64,
}

/// Drops all expiries in these databases. Those before `at_ms`, an instant moved like they were,
/// have passed.
pub(super) async fn persist(
    control: &mut Control,
    databases: &[(u32, u64)],
    at_ms: i64,
) -> Result<Settled> {
    let has_field_expiry = control.knows("HPEXPIRETIME").await?;
    let mut settled = Settled::default();
    for (db, _) in databases {
        let () = control.ask(&["SELECT", &db.to_string()]).await?;
        let mut cursor = b"0".to_vec();
        loop {
            let scan = redis::cmd("SCAN").arg(&cursor).arg("COUNT").arg(SLICE).to_owned();
            let (next, names): (Vec<u8>, Vec<Vec<u8>>) = control.run(&scan).await?;
            keys(control, names, at_ms, has_field_expiry, &mut settled).await?;
            if next == b"0" {
                break;
            }
            cursor = next;
        }
    }
    let () = control.ask(&["SELECT", "0"]).await?;
    Ok(settled)
}

async fn keys(
    control: &mut Control,
    names: Vec<Vec<u8>>,
    at_ms: i64,
    has_field_expiry: bool,
    settled: &mut Settled,
) -> Result<()> {
    let each = |word: &str| -> Vec<Cmd> {
        names.iter().map(|name| redis::cmd(word).arg(name).to_owned()).collect()
    };
    let expiries: Vec<i64> = control.each(&each("PEXPIRETIME")).await?;
    let mut changes = vec![];
    for (name, at) in names.iter().zip(expiries) {
        match at {
            // None, or gone.
            ..0 => {}
            _ if at < at_ms => {
                settled.deleted += 1;
                changes.push(redis::cmd("UNLINK").arg(name).to_owned());
            }
            _ => {
                settled.persisted += 1;
                changes.push(redis::cmd("PERSIST").arg(name).to_owned());
            }
        }
    }
    let _: Vec<redis::Value> = control.each(&changes).await?;
    if has_field_expiry {
        let kinds: Vec<String> = control.each(&each("TYPE")).await?;
        for (name, _) in names.iter().zip(kinds).filter(|(_, kind)| kind == "hash") {
            fields(control, name, at_ms, settled).await?;
        }
    }
    Ok(())
}

async fn fields(
    control: &mut Control,
    key: &[u8],
    at_ms: i64,
    settled: &mut Settled,
) -> Result<()> {
    let mut cursor = b"0".to_vec();
    loop {
        let scan = redis::cmd("HSCAN").arg(key).arg(&cursor).arg("COUNT").arg(SLICE).to_owned();
        let (next, pairs): (Vec<u8>, Vec<Vec<u8>>) = control.run(&scan).await?;
        let names: Vec<Vec<u8>> = pairs.into_iter().step_by(2).collect();
        if !names.is_empty() {
            let mut ask = redis::cmd("HPEXPIRETIME");
            ask.arg(key).arg("FIELDS").arg(names.len()).arg(&names);
            let expiries: Vec<i64> = control.run(&ask).await?;
            let mut changes = vec![];
            for (name, at) in names.iter().zip(expiries).filter(|(_, at)| *at >= 0) {
                let mut change = redis::cmd(if at < at_ms { "HDEL" } else { "HPERSIST" });
                change.arg(key);
                if at >= at_ms {
                    change.arg("FIELDS").arg(1);
                    settled.persisted += 1;
                }
                changes.push(change.arg(name).to_owned());
            }
            let _: Vec<redis::Value> = control.each(&changes).await?;
        }
        if next == b"0" {
            return Ok(());
        }
        cursor = next;
    }
}
