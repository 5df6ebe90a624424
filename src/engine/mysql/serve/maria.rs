//! What a replica of MariaDB asks, and what it is answered (`get_master_version_and_clock` and
//! `request_dump` in the server's `sql/slave.cc`).
//!
//! It says in user variables what it understands and what it has, and then asks for the log with
//! the old command.

use super::{Held, Identity, Reply, Request, Said, not_supported, unknown_variable, value};
use crate::clock::Timestamp;
use crate::engine::mysql::dump::Form;
use crate::engine::mysql::event::Reader;
use crate::engine::mysql::executed::Executed;

/// What a replica says that it understands if it takes the events as they are in the log: GTIDs.
const CAPABILITY_GTID: u32 = 4;

/// The version as a source announces it: up to 10.x with a prefix for the replicas of MySQL that
/// look at the first number. A replica tells by it which protocol to speak.
pub(super) fn announced(version: &str) -> String {
    if version.starts_with("10.") { format!("5.5.5-{version}") } else { version.to_owned() }
}

/// The answer to a statement, given as its words in lower case. Takes note of what it says.
pub(super) fn reply(identity: &Identity, words: &[&str], said: &mut Said) -> Reply {
    match words {
        ["set", ..] => {
            let Some((name, value)) = assignment(words) else { return Reply::Done };
            match (name.as_str(), value.parse(), value.parse()) {
                ("mariadb_slave_capability", Ok(capability), _) => said.capability = capability,
                ("slave_connect_state", _, Ok(position)) => said.position = Some(position),
                ("mariadb_slave_capability" | "slave_connect_state" | "slave_until_gtid", ..) => {
                    return not_supported();
                }
                _ => {}
            }
            Reply::Done
        }
        ["select", "unix_timestamp()"] => {
            value((Timestamp::now().as_micros() / 1_000_000).to_string())
        }
        ["select", variable] => match variable.trim_start_matches('@') {
            "master_binlog_checksum" => value("CRC32"),
            "global.gtid_domain_id" => value("0"),
            "version()" | "version" | "global.version" => value(&identity.version),
            name if variable.starts_with("@@") => unknown_variable(name),
            _ => not_supported(),
        },
        ["show", "variables", "like", "'server_id'"] => {
            variable("server_id", identity.server_id.to_string())
        }
        // Semi-synchronous replication is not offered.
        ["show", "variables", "like", "'rpl_semi_sync_master_enabled'"] => {
            variable("rpl_semi_sync_master_enabled", "OFF".into())
        }
        _ => not_supported(),
    }
}

fn variable(name: &str, value: String) -> Reply {
    Reply::Row(vec![("Variable_name", name.to_owned()), ("Value", value)])
}

/// Name and value in `SET @name = 'value'`.
fn assignment(words: &[&str]) -> Option<(String, String)> {
    let text = words.get(1..)?.concat();
    let (name, value) = text.strip_prefix('@')?.split_once('=')?;
    Some((name.to_owned(), value.trim_matches('\'').to_owned()))
}

/// Reads `COM_BINLOG_DUMP`. `base` is what was executed before the log begins.
pub(super) fn request(body: &[u8], said: &Said, base: &Executed) -> Result<Request, &'static str> {
    const SEND_ANNOTATE_ROWS: u16 = 1 << 1;
    let mut at = Reader(body);
    let mut parse = || {
        at.u32()?;
        Some((at.u16()?, at.u32()?))
    };
    let (flags, server_id) = parse().ok_or("pitr cannot read what is asked for")?;
    if said.capability < CAPABILITY_GTID {
        return Err("pitr serves replicas only that know the GTIDs of MariaDB");
    }
    let position = said.position.as_ref().ok_or("pitr serves the log by GTID only")?;
    let form = Form {
        heartbeat: said.heartbeat,
        heartbeat_version_2: false,
        annotations: flags & SEND_ANNOTATE_ROWS != 0,
    };
    Ok(Request { server_id, has: Held::up_to(position, base), form })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::mysql::flavor::Family;
    use proptest::prelude::*;
    use rstest::rstest;

    fn ask(statement: &str, said: &mut Said) -> Reply {
        let identity = Identity {
            family: Family::MariaDb,
            version: "10.11.19-MariaDB-log".into(),
            server_id: 7,
            uuid: String::new(),
            by_place: false,
        };
        let lower = statement.to_ascii_lowercase();
        let words: Vec<&str> = lower.split_ascii_whitespace().collect();
        reply(&identity, &words, said)
    }

    #[test]
    fn what_a_replica_says_it_has_and_understands_is_what_it_gets_the_log_by() {
        let mut said = Said::default();
        let mut body = vec![4, 0, 0, 0, 2, 0];
        body.extend(7_400_u32.to_le_bytes());
        let base: Executed = "0-7400-6".parse().unwrap();
        assert!(request(&body, &said, &base).is_err());
        assert_eq!(ask("SET @mariadb_slave_capability=4", &mut said), Reply::Done);
        assert!(request(&body, &said, &base).is_err());
        assert_eq!(ask("SET @slave_connect_state='0-7400-6, 1-7400-2'", &mut said), Reply::Done);
        let request = request(&body, &said, &base).unwrap();
        assert_eq!((request.server_id, request.form.annotations), (7_400, true));
        assert_eq!(request.has.to_string(), "1-7400-2");
    }

    #[rstest]
    #[case("10.11.19-MariaDB-log", "5.5.5-10.11.19-MariaDB-log")]
    #[case("11.8.9-MariaDB", "11.8.9-MariaDB")]
    fn versions_are_announced_as_sources_do(#[case] version: &str, #[case] expected: &str) {
        assert_eq!(announced(version), expected);
    }

    #[test]
    fn the_server_id_is_given_in_two_columns_and_no_stop_is_promised() {
        let mut said = Said::default();
        let Reply::Row(columns) = ask("SHOW VARIABLES LIKE 'SERVER_ID'", &mut said) else {
            panic!()
        };
        assert_eq!((columns.len(), columns[1].1.as_str()), (2, "7"));
        let until = ask("SET @slave_until_gtid='0-1-2'", &mut said);
        assert!(matches!(until, Reply::Error(1235, _)));
        let position = ask("SELECT binlog_gtid_pos('',4)", &mut said);
        assert!(matches!(position, Reply::Error(1235, _)));
    }

    proptest! {
        #[test]
        fn arbitrary_commands_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..40),
            statement in "(SET @slave_connect_state)?.{0,40}",
        ) {
            let mut said = Said { capability: 4, ..Said::default() };
            ask(&statement, &mut said);
            drop(request(&bytes, &said, &Executed::default()));
        }
    }
}
