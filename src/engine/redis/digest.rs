//! The digest of a Redis server: every key of every database with its type, content and expiry,
//! and its functions.
//!
//! Content counts, not how the server keeps it: encodings, the order inside of sets and hashes,
//! access times and idle times are left out. Expiries count as absolute times, to the
//! millisecond. Of a stream, the times at which consumers were last seen are left out, because a
//! replica sets its own. A value of a module's type counts as its DUMP, which is the same only
//! between servers of one version.
//!
//! Values are read in slices. Memory is bounded by 1 MiB of a string, by 500 elements of a
//! collection, by the unacknowledged entries of a stream, and by 16 bytes (and the overhead of a
//! hash set) for each key of the database, and each element of the set or hash, that is being
//! read: SCAN may return one twice.

use crate::engine::digest::{Digest, Sum, put, put_int};
use crate::error::{Context, Error, Result};
use blake3::{Hash, Hasher};
use redis::aio::ConnectionLike;
use redis::{Cmd, FromRedisValue, Pipeline, Value, cmd, from_redis_value};
use std::collections::{BTreeMap, HashSet};

/// Keys or elements asked for at a time.
const SLICE: usize = 500;

/// Bytes of a string asked for at a time.
const SLICE_BYTES: u64 = 1 << 20;

/// Strings up to this length are asked for many at a time.
const SMALL_BYTES: u64 = 4 << 10;

/// Digests all databases and all functions.
///
/// Nobody may write meanwhile: Redis has no snapshot to read in. Reading a key whose time has come
/// makes a server delete it. `conn` must be a connection of its own, because other databases are
/// selected on it, and its response timeout must allow for large values.
///
/// # Errors
/// Unavailable, if the server cannot be asked. Refused, if it is older than Redis 7.0, or if a key
/// changed while it was read.
pub async fn digest(conn: &mut (impl ConnectionLike + Send)) -> Result<Digest> {
    let mut digest = Digest::default();
    let info: String = ask(conn, cmd("INFO").arg("server")).await?;
    if !is_supported(&info) {
        return Err(unexpected("INFO server"));
    }
    let info: String = ask(conn, cmd("INFO").arg("persistence")).await?;
    if is_loading(&info) {
        // It answers some commands meanwhile, with what it has read so far.
        return Err(Error::unavailable("the server still loads its data").hint("wait until it has"));
    }
    let info: String = ask(conn, cmd("INFO").arg("keyspace")).await?;
    let has_field_expiry = !matches!(
        ask::<Vec<Value>>(conn, cmd("COMMAND").arg("INFO").arg("HPEXPIRETIME")).await?.as_slice(),
        [] | [Value::Nil]
    );
    for database in databases(&info)? {
        () = ask(conn, cmd("SELECT").arg(database)).await?;
        let mut keys = Keys { conn: &mut *conn, has_field_expiry };
        for (kind, sum) in keys.digest_database().await? {
            digest.insert(format!("{kind} keys of database {database}"), sum);
        }
    }
    () = ask(conn, cmd("SELECT").arg(0)).await?;
    let libraries: Vec<Value> = ask(conn, cmd("FUNCTION").arg("LIST").arg("WITHCODE")).await?;
    for library in libraries {
        let library = fields(library)?;
        let mut hasher = Hasher::new();
        for field in ["engine", "library_code"] {
            put(&mut hasher, &bytes(field_of(&library, field)?)?);
        }
        let name = show(&bytes(field_of(&library, "library_name")?)?);
        digest.insert(format!("function library {name}"), Sum::of(hasher.finalize()));
    }
    Ok(digest)
}

/// Whether the server knows PEXPIRETIME and functions: Redis 7.0 (which Valkey calls itself too).
fn is_supported(info: &str) -> bool {
    let version = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
    let major = version.and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    major.is_some_and(|major| major >= 7)
}

fn is_loading(info: &str) -> bool {
    info.lines().any(
        |line| matches!(line.split_once(':'), Some(("loading" | "async_loading", on)) if on != "0"),
    )
}

/// The numbers of the databases that hold keys, as `INFO keyspace` lists them.
fn databases(info: &str) -> Result<Vec<u32>> {
    let number =
        |line: &str| -> Option<u32> { line.strip_prefix("db")?.split_once(':')?.0.parse().ok() };
    let lines = info.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| number(line).ok_or_else(|| unexpected("INFO keyspace"))).collect()
}

/// A connection with one database selected.
struct Keys<'a, C> {
    conn: &'a mut C,
    has_field_expiry: bool,
}

/// What is known of a key before its content is read.
struct Key {
    name: Vec<u8>,
    kind: String,
    /// ms since 1970, or negative for none.
    expires_at: i64,
    /// Length of a string, in bytes. 0 for other types.
    length: u64,
}

impl<C: ConnectionLike + Send> Keys<'_, C> {
    /// Sums up the keys of the selected database, by their type.
    async fn digest_database(&mut self) -> Result<BTreeMap<String, Sum>> {
        let mut sums: BTreeMap<String, Sum> = BTreeMap::new();
        let mut seen = HashSet::new();
        let mut cursor = b"0".to_vec();
        loop {
            let scan = cmd("SCAN").arg(&cursor).arg("COUNT").arg(SLICE).to_owned();
            let (next, names): (Vec<u8>, Vec<Vec<u8>>) = ask(self.conn, &scan).await?;
            let new = names.into_iter().filter(|name| seen.insert(short(name))).collect();
            for (key, content) in self.read(new).await? {
                let mut hasher = Hasher::new();
                put(&mut hasher, &key.name);
                put(&mut hasher, key.kind.as_bytes());
                put_int(&mut hasher, key.expires_at);
                hasher.update(content.as_bytes());
                let sum = sums.entry(key.kind).or_default();
                sum.add_named(|| show(&key.name), hasher.finalize());
            }
            if next == b"0" {
                return Ok(sums);
            }
            cursor = next;
        }
    }

    /// Reads keys with their content. A key that is gone by now is left out.
    async fn read(&mut self, names: Vec<Vec<u8>>) -> Result<Vec<(Key, Hash)>> {
        let keys = self.describe(names).await?;
        let mut read = vec![];
        let (small, rest): (Vec<Key>, Vec<Key>) =
            keys.into_iter().partition(|key| key.kind == "string" && key.length <= SMALL_BYTES);
        let values: Vec<Option<Vec<u8>>> =
            self.each(&small, |pipe, key| pipe.cmd("GET").arg(&key.name)).await?;
        for (key, value) in small.into_iter().zip(values) {
            let value = value.filter(|value| value.len() as u64 == key.length);
            let content = blake3::hash(&value.ok_or_else(|| changed(&key.name))?);
            read.push((key, content));
        }
        for key in rest {
            let content = match key.kind.as_str() {
                "string" => self.string(&key).await?,
                "list" => self.list(&key.name).await?,
                "set" => self.scanned(&key.name, "SSCAN").await?,
                "hash" => self.scanned(&key.name, "HSCAN").await?,
                "zset" => self.sorted_set(&key.name).await?,
                "stream" => self.stream(&key.name).await?,
                _ => {
                    let dump: Option<Vec<u8>> = ask(self.conn, cmd("DUMP").arg(&key.name)).await?;
                    blake3::hash(&dump.ok_or_else(|| changed(&key.name))?)
                }
            };
            read.push((key, content));
        }
        Ok(read)
    }

    async fn describe(&mut self, names: Vec<Vec<u8>>) -> Result<Vec<Key>> {
        let kinds: Vec<String> = self.each(&names, |pipe, key| pipe.cmd("TYPE").arg(key)).await?;
        let expiries: Vec<i64> =
            self.each(&names, |pipe, key| pipe.cmd("PEXPIRETIME").arg(key)).await?;
        let mut keys = vec![];
        for ((name, kind), expires_at) in names.into_iter().zip(kinds).zip(expiries) {
            // It expired between SCAN and here.
            if kind != "none" && expires_at != -2 {
                keys.push(Key { name, kind, expires_at, length: 0 });
            }
        }
        let strings: Vec<&mut Key> = keys.iter_mut().filter(|key| key.kind == "string").collect();
        let lengths: Vec<u64> =
            self.each(&strings, |pipe, key| pipe.cmd("STRLEN").arg(&key.name)).await?;
        for (key, length) in strings.into_iter().zip(lengths) {
            key.length = length;
        }
        Ok(keys)
    }

    /// Sends one command for each item, all at once, and takes one answer for each.
    async fn each<I, T: FromRedisValue>(
        &mut self,
        items: &[I],
        command: impl for<'p> Fn(&'p mut Pipeline, &I) -> &'p mut Pipeline,
    ) -> Result<Vec<T>> {
        if items.is_empty() {
            return Ok(vec![]);
        }
        let mut pipe = Pipeline::new();
        for item in items {
            command(&mut pipe, item);
        }
        let answers: Vec<T> = pipe.query_async(self.conn).await.unavailable(asking)?;
        if answers.len() != items.len() {
            return Err(unexpected("a pipeline"));
        }
        Ok(answers)
    }

    async fn string(&mut self, key: &Key) -> Result<Hash> {
        let mut hasher = Hasher::new();
        let mut at = 0;
        while at < key.length {
            let end = (at + SLICE_BYTES).min(key.length);
            let range = cmd("GETRANGE").arg(&key.name).arg(at).arg(end - 1).to_owned();
            let slice: Vec<u8> = ask(self.conn, &range).await?;
            if slice.len() as u64 != end - at {
                return Err(changed(&key.name));
            }
            hasher.update(&slice);
            at = end;
        }
        Ok(hasher.finalize())
    }

    async fn list(&mut self, key: &[u8]) -> Result<Hash> {
        let mut hasher = Hasher::new();
        let mut at = 0;
        loop {
            let range = cmd("LRANGE").arg(key).arg(at).arg(at + SLICE - 1).to_owned();
            let slice: Vec<Vec<u8>> = ask(self.conn, &range).await?;
            if slice.is_empty() {
                return Ok(hasher.finalize());
            }
            for element in &slice {
                put(&mut hasher, element);
            }
            at += slice.len();
        }
    }

    /// A set (SSCAN) or a hash (HSCAN), in any order.
    async fn scanned(&mut self, key: &[u8], scan: &str) -> Result<Hash> {
        let width = if scan == "HSCAN" { 2 } else { 1 };
        let mut sum = Sum::default();
        let mut seen = HashSet::new();
        let mut cursor = b"0".to_vec();
        loop {
            let command = cmd(scan).arg(key).arg(&cursor).arg("COUNT").arg(SLICE).to_owned();
            let (next, flat): (Vec<u8>, Vec<Vec<u8>>) = ask(self.conn, &command).await?;
            let mut elements: Vec<&[Vec<u8>]> = flat.chunks(width).collect();
            elements.retain(|element| element.first().is_some_and(|name| seen.insert(short(name))));
            let expiries = self.field_expiries(key, width, &elements).await?;
            for (element, expires_at) in elements.into_iter().zip(expiries) {
                let mut hasher = Hasher::new();
                for part in element {
                    put(&mut hasher, part);
                }
                put_int(&mut hasher, expires_at);
                sum.add(hasher.finalize());
            }
            if next == b"0" {
                return Ok(sum.hash());
            }
            cursor = next;
        }
    }

    /// When each field expires, in ms since 1970; -1 for those that do not.
    async fn field_expiries(
        &mut self,
        key: &[u8],
        width: usize,
        elements: &[&[Vec<u8>]],
    ) -> Result<Vec<i64>> {
        if width == 1 || !self.has_field_expiry || elements.is_empty() {
            return Ok(vec![-1; elements.len()]);
        }
        let mut command = cmd("HPEXPIRETIME");
        command.arg(key).arg("FIELDS").arg(elements.len());
        for name in elements.iter().filter_map(|element| element.first()) {
            command.arg(name);
        }
        let expiries: Vec<i64> = ask(self.conn, &command).await?;
        if expiries.len() != elements.len() || expiries.contains(&-2) {
            return Err(changed(key));
        }
        Ok(expiries)
    }

    async fn sorted_set(&mut self, key: &[u8]) -> Result<Hash> {
        let mut hasher = Hasher::new();
        let mut at = 0;
        loop {
            let range =
                cmd("ZRANGE").arg(key).arg(at).arg(at + SLICE - 1).arg("WITHSCORES").to_owned();
            let slice: Vec<(Vec<u8>, f64)> = ask(self.conn, &range).await?;
            if slice.is_empty() {
                return Ok(hasher.finalize());
            }
            for (member, score) in &slice {
                put(&mut hasher, member);
                hasher.update(&score.to_bits().to_le_bytes());
            }
            at += slice.len();
        }
    }

    async fn stream(&mut self, key: &[u8]) -> Result<Hash> {
        let mut hasher = Hasher::new();
        let mut from = b"-".to_vec();
        loop {
            let range =
                cmd("XRANGE").arg(key).arg(&from).arg("+").arg("COUNT").arg(SLICE).to_owned();
            let slice: Vec<(Vec<u8>, Vec<Vec<u8>>)> = ask(self.conn, &range).await?;
            let Some((last, _)) = slice.last() else { break };
            from = [b"(", last.as_slice()].concat();
            for (id, parts) in &slice {
                put(&mut hasher, id);
                put_int(&mut hasher, parts.len() as i64);
                for part in parts {
                    put(&mut hasher, part);
                }
            }
        }
        let groups: Vec<Value> = ask(self.conn, cmd("XINFO").arg("GROUPS").arg(key)).await?;
        let mut pending_max = 1;
        for group in groups {
            let pending: i64 = take(field_of(&fields(group)?, "pending")?)?;
            pending_max = pending_max.max(pending);
        }
        // COUNT limits the entries, and the unacknowledged entries of each group and consumer.
        let full = cmd("XINFO")
            .arg("STREAM")
            .arg(key)
            .arg("FULL")
            .arg("COUNT")
            .arg(pending_max)
            .to_owned();
        let full = fields(ask(self.conn, &full).await?)?;
        for field in ["last-generated-id", "max-deleted-entry-id", "entries-added"] {
            put(&mut hasher, &bytes(field_of(&full, field)?)?);
        }
        let mut groups = Sum::default();
        for group in items(field_of(&full, "groups")?.clone())? {
            groups.add(stream_group(&fields(group)?)?);
        }
        hasher.update(groups.hash().as_bytes());
        Ok(hasher.finalize())
    }
}

/// A consumer group of `XINFO STREAM … FULL`.
fn stream_group(group: &BTreeMap<Vec<u8>, Value>) -> Result<Hash> {
    let mut hasher = Hasher::new();
    for field in ["name", "last-delivered-id", "entries-read"] {
        put(&mut hasher, &bytes(field_of(group, field)?)?);
    }
    // Each unacknowledged entry: id, consumer, delivery time in ms, number of deliveries.
    // Redis 7.0 calls the list `pending`, its documentation calls it `pel`.
    let pending = field_of(group, "pending").or_else(|_| field_of(group, "pel"))?;
    for entry in items(pending.clone())? {
        items(entry)?
            .iter()
            .try_for_each(|part| bytes(part).map(|part| put(&mut hasher, &part)))?;
    }
    let mut consumers = Sum::default();
    for consumer in items(field_of(group, "consumers")?.clone())? {
        consumers.add(blake3::hash(&bytes(field_of(&fields(consumer)?, "name")?)?));
    }
    hasher.update(consumers.hash().as_bytes());
    Ok(hasher.finalize())
}

async fn ask<T: FromRedisValue>(
    conn: &mut (impl ConnectionLike + Send),
    command: &Cmd,
) -> Result<T> {
    command.query_async(conn).await.unavailable(asking)
}

fn asking() -> String {
    "read the keys of the server".to_owned()
}

/// The first 16 bytes of a hash, to remember what was seen.
fn short(name: &[u8]) -> [u8; 16] {
    let mut first = [0; 16];
    first.iter_mut().zip(blake3::hash(name).as_bytes()).for_each(|(to, from)| *to = *from);
    first
}

/// A name as text, with bytes that cannot be printed escaped.
fn show(name: &[u8]) -> String {
    format!("\"{}\"", name.escape_ascii())
}

/// A reply that is a map: in RESP2 a list of keys and values in turn.
fn fields(value: Value) -> Result<BTreeMap<Vec<u8>, Value>> {
    let pairs: Vec<(Vec<u8>, Value)> = match value {
        Value::Map(pairs) => pairs
            .into_iter()
            .map(|(key, value)| Ok((bytes(&key)?, value)))
            .collect::<Result<_>>()?,
        value => {
            let mut pairs = vec![];
            let mut items = items(value)?.into_iter();
            while let (Some(key), Some(value)) = (items.next(), items.next()) {
                pairs.push((bytes(&key)?, value));
            }
            pairs
        }
    };
    Ok(pairs.into_iter().collect())
}

fn field_of<'a>(fields: &'a BTreeMap<Vec<u8>, Value>, name: &str) -> Result<&'a Value> {
    fields.get(name.as_bytes()).ok_or_else(|| unexpected(name))
}

fn items(value: Value) -> Result<Vec<Value>> {
    match value {
        Value::Array(items) | Value::Set(items) => Ok(items),
        _ => Err(unexpected("a list")),
    }
}

/// The bytes of a scalar. A missing number becomes a text that no number has.
fn bytes(value: &Value) -> Result<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Ok(bytes.clone()),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Ok(text.clone().into()),
        Value::Int(number) => Ok(number.to_string().into()),
        Value::Nil => Ok(b"(nil)".to_vec()),
        _ => Err(unexpected("a scalar")),
    }
}

fn take<T: FromRedisValue>(value: &Value) -> Result<T> {
    from_redis_value(value.clone()).corrupt(|| "read a reply of the server".into())
}

fn unexpected(what: &str) -> Error {
    Error::refused(format!("the server's answer to {what} is not as expected"))
        .hint("pitr digests Redis 7.0 and later")
}

fn changed(key: &[u8]) -> Error {
    Error::refused(format!("key {} changed while it was read", show(key)))
        .hint("stop the writers and try again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases_with_keys_are_found_in_info() {
        let info = "# Keyspace\r\ndb0:keys=1,expires=0,avg_ttl=0\r\ndb13:keys=2,expires=1\r\n";
        assert_eq!(databases(info).unwrap(), [0, 13]);
        assert!(databases("# Keyspace\r\n").unwrap().is_empty());
        assert!(databases("dbx:keys=1").is_err());
    }

    #[test]
    fn servers_older_than_redis_7_are_not_supported() {
        assert!(is_supported("redis_version:7.0.15\r\nredis_mode:standalone\r\n"));
        assert!(is_supported("# Server\r\nredis_version:10.2.0\r\n"));
        assert!(!is_supported("redis_version:6.2.14\r\n"));
        assert!(!is_supported(""));
    }

    #[test]
    fn a_server_that_still_loads_is_told_from_one_that_has() {
        assert!(is_loading("# Persistence\r\nloading:1\r\nasync_loading:0\r\n"));
        assert!(is_loading("loading:0\r\nasync_loading:1\r\n"));
        assert!(!is_loading("loading:0\r\nasync_loading:0\r\nrdb_last_load_keys_loaded:1\r\n"));
    }

    #[test]
    fn replies_of_both_protocols_read_the_same() {
        let text = |text: &str| Value::BulkString(text.into());
        let flat = Value::Array(vec![text("a"), Value::Int(1), text("b"), Value::Nil]);
        let map = Value::Map(vec![(text("b"), Value::Nil), (text("a"), Value::Int(1))]);
        assert_eq!(fields(flat).unwrap(), fields(map).unwrap());
        assert!(fields(Value::Int(1)).is_err());
    }
}
