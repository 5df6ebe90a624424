//! Reads what a server is besides its data: users, settings, modules, cluster. No stream has it.
//!
//! **Invariant:** no secret is read into it in clear. Passwords of users are hashes in `ACL LIST`;
//! settings that hold one are only named.

use super::control::Control;
use crate::engine::Endpoint;
use crate::error::{Class, Error, Result};
use crate::manifest::{Module, Setup};
use ::redis::{FromRedisValue, Value};
use std::collections::BTreeMap;

/// Settings whose values change the bytes in which data is kept, or what becomes of it: those that
/// a restored folder starts with.
const SHAPING: [&str; 27] = [
    "active-expire-effort",
    "aof-timestamp-enabled",
    "appendfsync",
    "hash-max-listpack-entries",
    "hash-max-listpack-value",
    "hll-sparse-max-bytes",
    "lazyfree-lazy-eviction",
    "lazyfree-lazy-expire",
    "lazyfree-lazy-server-del",
    "lazyfree-lazy-user-del",
    "lazyfree-lazy-user-flush",
    "lfu-decay-time",
    "lfu-log-factor",
    "list-compress-depth",
    "list-max-listpack-size",
    "maxmemory-policy",
    "maxmemory-samples",
    "notify-keyspace-events",
    "proto-max-bulk-len",
    "rdbcompression",
    "set-max-intset-entries",
    "set-max-listpack-entries",
    "set-max-listpack-value",
    "stream-node-max-bytes",
    "stream-node-max-entries",
    "zset-max-listpack-entries",
    "zset-max-listpack-value",
];

/// Reads it. What the account may not read is named, and is no error.
///
/// # Errors
/// Unavailable, if the server does not answer.
pub(super) async fn read(endpoint: &Endpoint) -> Result<Setup> {
    let mut control = Control::connect(endpoint).await?;
    let mut setup = Setup { version: control.server().await?.version, ..Setup::default() };
    if let Some(users) = asked::<Vec<String>>(&mut control, &["ACL", "LIST"], &mut setup).await? {
        setup.users = users;
        // The order is that of a hash table.
        setup.users.sort_unstable();
    }
    if let Some(settings) =
        asked::<BTreeMap<String, String>>(&mut control, &["CONFIG", "GET", "*"], &mut setup).await?
    {
        for (name, value) in settings {
            if !is_secret(&name, &value) {
                setup.settings.insert(name, value);
            } else if !value.is_empty() {
                setup.withheld.push(name);
            }
        }
    }
    if let Some(modules) =
        asked::<Vec<Value>>(&mut control, &["MODULE", "LIST"], &mut setup).await?
    {
        setup.modules = modules.into_iter().map(module).collect::<Result<_>>()?;
        setup.modules.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    }
    let cluster = control.info("cluster").await?;
    if cluster.get("cluster_enabled").is_some_and(|on| on == "1")
        && let Some(nodes) =
            asked::<String>(&mut control, &["CLUSTER", "NODES"], &mut setup).await?
    {
        setup.cluster = nodes.lines().map(node).collect::<Result<_>>()?;
        setup.cluster.sort_unstable();
    }
    Ok(setup)
}

/// The answer to a command, or `None` and a note if the account may not ask, or the server has no
/// command of that name (any more).
async fn asked<T: FromRedisValue>(
    control: &mut Control,
    words: &[&str],
    setup: &mut Setup,
) -> Result<Option<T>> {
    match control.ask(words).await {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if matches!(error.class(), Class::Usage | Class::Refused) => {
            setup.unread.push(words.join(" "));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Whether a setting holds something that is not for others: those of the server (`requirepass`,
/// `masterauth`, `primaryauth`, `tls-key-file-pass`), those of modules by their names (which have a
/// dot, as in `search.key`), and urls that may hold a password.
fn is_secret(name: &str, value: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let within = ["pass", "secret", "token", "credential"];
    let is_key = name.contains('.') && name.ends_with("key");
    // What stands before an `@`, or behind a `?`, may be one.
    let is_private_url = value.split_once("://").is_some_and(|(_, rest)| rest.contains(['@', '?']));
    name.ends_with("auth")
        || is_key
        || within.iter().any(|word| name.contains(word))
        || is_private_url
}

/// One of `MODULE LIST`. Its arguments may hold secrets, and are left out.
fn module(value: Value) -> Result<Module> {
    let odd = || Error::corrupt("MODULE LIST does not list modules");
    let fields: BTreeMap<String, Value> =
        FromRedisValue::from_redis_value(value).map_err(|_| odd())?;
    let text =
        |name: &str| fields.get(name).and_then(|value| String::from_redis_value_ref(value).ok());
    Ok(Module {
        name: text("name").ok_or_else(odd)?,
        version: text("ver").unwrap_or_default(),
        path: text("path").unwrap_or_default(),
    })
}

/// A line of `CLUSTER NODES` without what changes all the time: `<id> <address> <flags> <master>
/// <ping> <pong> <epoch> <link> <slots>…`.
fn node(line: &str) -> Result<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        [id, address, flags, master, _, _, _, _, slots @ ..] => {
            let flags: Vec<&str> =
                flags.split(',').filter(|flag| !matches!(*flag, "myself" | "fail?")).collect();
            let head = format!("{id} {address} {} {master}", flags.join(","));
            Ok(std::iter::once(head.as_str())
                .chain(slots.iter().copied())
                .collect::<Vec<_>>()
                .join(" "))
        }
        _ => Err(Error::corrupt(format!("a line of CLUSTER NODES is not one: {line:?}"))),
    }
}

/// The lines of a restored folder's configuration, and the databases that the source had.
pub(super) fn shaping(setup: &Setup) -> (String, Option<u32>) {
    let settings = SHAPING.iter().filter_map(|name| Some((name, setup.settings.get(*name)?)));
    // A list setting holds what a module or a newer server may have put there.
    let plain = settings.filter(|(_, value)| !value.contains(['"', '\n', '\r', '\\']));
    let mut lines = String::new();
    for (name, value) in plain {
        lines += &format!("{name} \"{value}\"\n");
    }
    let databases = setup.settings.get("databases").and_then(|text| text.parse().ok());
    (lines, databases)
}

/// Whether the server takes the default user's rights for those of the log that it loads: while it
/// loads an append-only file, an `EXEC` is checked against them (`multi.c`, `execCommand`, until
/// Redis 8.4), and what they do not allow is left out.
pub(super) fn may_load(users: &[String]) -> bool {
    let default = users.iter().find(|line| line.starts_with("user default "));
    default.is_none_or(|line| {
        let has = |word: &str| line.split_whitespace().any(|found| found == word);
        has("~*") && has("+@all") && !line.split_whitespace().any(|word| word.starts_with('-'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("requirepass", true)]
    #[case("masterauth", true)]
    #[case("primaryauth", true)]
    #[case("tls-key-file-pass", true)]
    #[case("tls-client-key-file-pass", true)]
    #[case("search.oss-global-password", true)]
    #[case("search.license_key", true)]
    #[case("tls-key-file", false)]
    #[case("tls-auth-clients", false)]
    #[case("masteruser", false)]
    #[case("maxmemory-policy", false)]
    fn a_secret_is_known_by_its_name(#[case] name: &str, #[case] secret: bool) {
        assert_eq!(is_secret(name, ""), secret);
    }

    #[test]
    fn a_url_with_a_password_is_a_secret() {
        for secret in [
            "http://user:geheim@host:1/",
            "http://u:a/b@h",
            "http://a http://u:p@h",
            "http://h?token=x",
        ] {
            assert!(is_secret("proxy", secret), "{secret}");
        }
        for harmless in ["http://host:1/a", "a:b@c", "k?", ""] {
            assert!(!is_secret("proxy", harmless), "{harmless}");
        }
    }

    #[test]
    fn a_node_is_the_same_while_only_its_clock_goes_on() {
        let line = |ping: u32, epoch: u32| {
            format!(
                "07c3 127.0.0.1:30004@31004,h myself,slave e7d1 {ping} 1426238317239 {epoch} connected 1-5 7"
            )
        };
        assert_eq!(node(&line(0, 4)).unwrap(), "07c3 127.0.0.1:30004@31004,h slave e7d1 1-5 7");
        assert_eq!(node(&line(0, 4)).unwrap(), node(&line(9, 5)).unwrap());
        assert!(node("nothing of it").is_err());
    }

    #[test]
    fn a_folder_gets_what_shapes_data_and_nothing_of_the_place() {
        let setup = |settings: &[(&str, &str)]| Setup {
            settings: settings.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            ..Setup::default()
        };
        let (lines, databases) = shaping(&setup(&[
            ("port", "6379"),
            ("dir", "/x"),
            ("databases", "77"),
            ("maxmemory-policy", "allkeys-lru"),
            ("notify-keyspace-events", ""),
            ("appendfsync", "a\nport 1"),
        ]));
        assert_eq!(lines, "maxmemory-policy \"allkeys-lru\"\nnotify-keyspace-events \"\"\n");
        assert_eq!(databases, Some(77));
        assert_eq!(shaping(&Setup::default()), (String::new(), None));
    }

    #[rstest]
    #[case("user default on nopass ~* &* +@all", true)]
    #[case("user default on #ab sanitize-payload ~* &* +@all", true)]
    #[case("user default off nopass ~* &* -@all", false)]
    #[case("user default on nopass ~* &* +@all -debug", false)]
    #[case("user default on nopass ~cache:* &* +@all", false)]
    #[case("user other on nopass ~* &* -@all", true)]
    fn a_log_is_loaded_with_the_rights_of_the_default_user(#[case] line: &str, #[case] may: bool) {
        assert_eq!(may_load(&[line.into()]), may);
    }
}
