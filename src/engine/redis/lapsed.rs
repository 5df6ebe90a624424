//! Counts the keys that a restore brings back only to lose them: those that were alive at the
//! instant restored and are past their expiry by now.
//!
//! Only the target's master can see them: to everybody else a replica hides what is past its
//! expiry, and a master deletes it (`db.c`, `expireIfNeeded`). So pitr, while it is the target's
//! master, lets it run a script over each database, some thousand keys at a time, that notes in a
//! key of its own what it has counted. The key is deleted at the end.
//!
//! **Invariant:** what is counted is every key, once, or nothing is said.

use super::control::Control;
use super::serve::Replica;
use crate::error::Result;
use std::time::Duration;
use tokio::time::Instant;

/// Keys that one run of the script looks at, at least.
const KEYS_A_RUN: u32 = 10_000;

/// How long one run may take.
const RUN_MAX: Duration = Duration::from_mins(1);

/// How often the count is begun anew, if a database shrank its table meanwhile and so showed some
/// keys twice.
const TRIES: u32 = 3;

/// KEYS: where the count is noted, in database 0. ARGV: database, instant, now (ms), keys a run.
const SCRIPT: &[u8] = b"
redis.call('SELECT', 0)
local s = redis.call('HMGET', KEYS[1], 'cursor', 'keys', 'before', 'lapsed', 'runs')
local cursor, keys, before = s[1] or '0', tonumber(s[2] or 0), tonumber(s[3] or 0)
local lapsed, runs, left = tonumber(s[4] or 0), tonumber(s[5] or 0), tonumber(ARGV[4])
redis.call('SELECT', ARGV[1])
repeat
  local page = redis.call('SCAN', cursor, 'COUNT', 1000)
  cursor = page[1]
  for _, key in ipairs(page[2]) do
    if key ~= KEYS[1] then
      local at = redis.call('PEXPIRETIME', key)
      keys = keys + 1
      if at >= 0 and at < tonumber(ARGV[2]) then before = before + 1
      elseif at >= 0 and at < tonumber(ARGV[3]) then lapsed = lapsed + 1 end
    end
  end
  left = left - 1000
until cursor == '0' or left <= 0
redis.call('SELECT', 0)
redis.call('HSET', KEYS[1], 'cursor', cursor, 'keys', keys, 'before', before,
  'lapsed', lapsed, 'runs', runs + 1)";

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Lapsed {
    /// Keys, expired ones included.
    keys: u64,
    /// Keys that were past their expiry at the instant already, and not deleted yet.
    pub(super) before: u64,
    /// Keys that were alive at the instant and are past their expiry now.
    pub(super) since: u64,
}

/// Counts on a target that has applied everything sent, between two records. `databases` are those
/// that have keys, with how many.
///
/// # Errors
/// Unavailable, if the target is lost. `Ok(None)`, if it does not run the script, or keys moved.
pub(super) async fn count(
    replica: &mut Replica,
    control: &mut Control,
    databases: &[(u32, u64)],
    at_ms: i64,
    now_ms: i64,
) -> Result<Option<Lapsed>> {
    let tally = format!("pitr:{:032x}", rand::random::<u128>());
    let expected: u64 = databases.iter().map(|(_, keys)| keys).sum();
    let mut found = None;
    for _ in 0..TRIES {
        found = run(replica, control, databases, &tally, [at_ms, now_ms]).await?;
        replica.say(&[b"SELECT", b"0"]).await?;
        replica.say(&[b"DEL", tally.as_bytes()]).await?;
        if found.is_none_or(|found| found.keys == expected) {
            break;
        }
        found = None;
    }
    settled(replica).await?;
    Ok(found)
}

async fn run(
    replica: &mut Replica,
    control: &mut Control,
    databases: &[(u32, u64)],
    tally: &str,
    [at_ms, now_ms]: [i64; 2],
) -> Result<Option<Lapsed>> {
    let mut runs = 0;
    let mut found = Lapsed::default();
    let (at_ms, now_ms, most) = (at_ms.to_string(), now_ms.to_string(), KEYS_A_RUN.to_string());
    for (db, _) in databases {
        let db = db.to_string();
        loop {
            let args = [&db, &at_ms, &now_ms, &most].map(String::as_bytes);
            let mut words = vec![&b"EVAL"[..], SCRIPT, b"1", tally.as_bytes()];
            words.extend(args);
            replica.say(&words).await?;
            settled(replica).await?;
            runs += 1;
            let words = ["HMGET", tally, "cursor", "runs", "keys", "before", "lapsed"];
            let noted: Vec<Option<u64>> = control.ask(&words).await?;
            let [Some(cursor), Some(noted_runs), Some(keys), Some(before), Some(lapsed)] =
                noted[..]
            else {
                return Ok(None);
            };
            if noted_runs != runs {
                return Ok(None);
            }
            found = Lapsed { keys, before, since: lapsed };
            if cursor == 0 {
                break;
            }
        }
    }
    Ok(Some(found))
}

/// Waits until the target has applied everything that was sent.
async fn settled(replica: &mut Replica) -> Result<()> {
    let sent = replica.sent();
    loop {
        replica.say(&[b"REPLCONF", b"GETACK", b"*"]).await?;
        if replica.applied(sent, Instant::now() + RUN_MAX).await?.is_some() {
            return Ok(());
        }
    }
}
