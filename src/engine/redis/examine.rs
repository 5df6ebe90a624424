//! Looks through what is going to be restored, while the target still has what it has: a server
//! that meets a format or a database that it does not know in the middle of a load has lost its
//! data by then, or ends (`replication.c`, `readSyncBulkPayload`; `rdb.c`).

use super::control::Control;
use super::rdb::Crc64;
use super::replay::Replay;
use super::walk::flow::{Look, look};
use crate::error::{Error, Result};
use crate::manifest::BaselineMeta;
use crate::record::{Cut, OpenBaseline, OpenLog};

/// What is going to be restored.
#[derive(Debug)]
pub(super) struct Examined {
    /// The baseline.
    pub(super) baseline: Look,
    /// The highest database in the baseline, as far as that can be read, and in the log.
    pub(super) db_max: u32,
}

/// Reads baseline and log up to the cut, and moves expiries as the restore will.
///
/// # Errors
/// Corrupt, if they are damaged. Refused, if expiries are to be moved and one cannot be.
pub(super) async fn examine(
    meta: &BaselineMeta,
    open: &OpenBaseline,
    log: &OpenLog,
    cut: &Cut,
    by_ms: Option<i64>,
) -> Result<Examined> {
    let baseline =
        look(open()?, by_ms.unwrap_or(0)).await.map_err(|error| error.context(&meta.name))?;
    if let (Some(_), Err(unknown)) = (by_ms, &baseline.survey) {
        let hint = "with `--ttl absolute` expiries need not be read";
        return Err(Error::refused(unknown.to_string()).hint(hint));
    }
    let mut replay = Replay::new(log(), &meta.position, cut, None)?.moved(by_ms);
    while replay.next().await?.is_some() {}
    let in_baseline = baseline.survey.as_ref().map_or(0, |survey| survey.db_max);
    Ok(Examined { db_max: replay.db_max().max(in_baseline), baseline })
}

/// Refuses a server that cannot load files of this RDB version.
///
/// The server is asked to RESTORE a value that is of no type: it looks at the version first, and
/// keeps nothing in either case (`cluster.c`, `restoreCommand`, `verifyDumpPayload`).
pub(super) async fn check_format(control: &mut Control, version: u32) -> Result<()> {
    const NO_TYPE: u8 = 0xFF;
    let Ok(short) = u16::try_from(version) else {
        return Err(Error::corrupt(format!("RDB version {version}")));
    };
    let mut payload = vec![NO_TYPE];
    payload.extend_from_slice(&short.to_le_bytes());
    let mut crc = Crc64::default();
    crc.update(&payload);
    payload.extend_from_slice(&crc.value().to_le_bytes());
    let key = format!("pitr:{:032x}", rand::random::<u128>());
    let said = control.refusal(&[b"RESTORE", key.as_bytes(), b"0", &payload]).await?;
    if said.contains("payload version") {
        return Err(Error::refused(format!(
            "{} cannot load the baseline, which is of RDB version {version}",
            control.address()
        ))
        .hint("start a target of the version that was captured, or a newer one"));
    }
    tracing::debug!("asked whether it loads RDB version {version}, the target says: {said}");
    Ok(())
}

/// Refuses a server that has fewer databases than are used.
pub(super) fn check_databases(db_max: u32, databases: Option<u32>) -> Result<()> {
    match databases {
        Some(databases) if db_max >= databases => Err(Error::refused(format!(
            "the archive uses database {db_max}, and the target has only {databases} databases"
        ))
        .hint(format!("start the target with `databases {}` in its configuration", db_max + 1))),
        _ => Ok(()),
    }
}
