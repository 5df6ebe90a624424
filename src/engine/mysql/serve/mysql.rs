//! What a replica of MySQL asks, and what it is answered (`get_master_version_and_clock` and
//! `request_dump` in the server's `sql/rpl_replica.cc`).

use super::{Held, Identity, Reply, Request, Said, not_supported, unknown_variable, value};
use crate::clock::Timestamp;
use crate::engine::mysql::dump::Form;
use crate::engine::mysql::event::Reader;
use crate::engine::mysql::executed::Executed;
use crate::engine::mysql::gtid::GtidSet;
use crate::position::Position;

/// The answer to a statement, given as its words in lower case.
pub(super) fn reply(identity: &Identity, words: &[&str]) -> Reply {
    match words {
        ["set", ..] => Reply::Done,
        ["select", "unix_timestamp()"] => {
            value((Timestamp::now().as_micros() / 1_000_000).to_string())
        }
        ["select", variable] => match variable.trim_start_matches('@') {
            "global.server_id" | "server_id" => value(identity.server_id.to_string()),
            "global.server_uuid" | "server_uuid" => value(&identity.uuid),
            // Every replica but one with ON takes a source with this one.
            "global.gtid_mode" | "gtid_mode" if identity.by_place => value("OFF_PERMISSIVE"),
            "global.gtid_mode" | "gtid_mode" => value("ON"),
            "source_binlog_checksum" | "master_binlog_checksum" => value("CRC32"),
            "version()" | "version" | "global.version" => value(&identity.version),
            // So it is with semi-synchronous replication, which is not offered.
            name if variable.starts_with("@@") => unknown_variable(name),
            _ => not_supported(),
        },
        _ => not_supported(),
    }
}

/// Reads `COM_BINLOG_DUMP_GTID`.
pub(super) fn request(body: &[u8], said: &Said) -> Result<Request, &'static str> {
    parse(body, said).ok_or("pitr cannot read what is asked for")
}

/// Reads `COM_BINLOG_DUMP`, which names a place in 32 bits.
pub(super) fn request_place(body: &[u8], said: &Said) -> Result<Request, &'static str> {
    parse_place(body, said).ok_or("pitr cannot read what is asked for")
}

fn parse_place(body: &[u8], said: &Said) -> Option<Request> {
    let mut at = Reader(body);
    let (offset, flags, server_id) = (at.u32()?, at.u16()?, at.u32()?);
    let log = std::str::from_utf8(at.0).ok().filter(|log| !log.is_empty())?;
    let has = Held::Before(Position::new(log, offset.into()));
    Some(Request { server_id, has, form: form(flags, said) })
}

fn parse(body: &[u8], said: &Said) -> Option<Request> {
    let mut at = Reader(body);
    let flags = at.u16()?;
    let server_id = at.u32()?;
    let name_len = usize::try_from(at.u32()?).ok()?;
    at.bytes(name_len)?;
    at.u64()?;
    let set_len = usize::try_from(at.u32()?).ok()?;
    let set = GtidSet::decode(at.bytes(set_len)?).ok()?;
    Some(Request { server_id, has: Held::set(Executed::from(set)), form: form(flags, said) })
}

fn form(flags: u16, said: &Said) -> Form {
    const USE_HEARTBEAT_EVENT_V2: u16 = 1 << 1;
    Form {
        heartbeat: said.heartbeat,
        heartbeat_version_2: flags & USE_HEARTBEAT_EVENT_V2 != 0,
        annotations: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_real_dump_command_is_understood() {
        let mut body = vec![0x02, 0, 0xf2, 0x1c, 0, 0, 0, 0, 0, 0];
        body.extend(4_u64.to_le_bytes());
        let set: GtidSet = "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5".parse().unwrap();
        let mut encoded = vec![];
        set.encode(&mut encoded);
        body.extend((encoded.len() as u32).to_le_bytes());
        body.extend(encoded);
        let said = Said::default();
        let request = parse(&body, &said).unwrap();
        assert_eq!((request.server_id, request.form.heartbeat_version_2), (0x1cf2, true));
        assert_eq!(request.has.to_string(), set.to_string());
        for len in 0..body.len() {
            assert!(parse(&body[..len], &said).is_none());
        }
    }

    #[test]
    fn a_place_that_is_asked_for_is_understood() {
        let body = [&[157, 0, 0, 0, 2, 0, 7, 0, 0, 0][..], b"binlog.000002"].concat();
        let request = parse_place(&body, &Said::default()).unwrap();
        let Held::Before(place) = &request.has else { panic!("{request:?}") };
        assert_eq!(place.to_string(), "binlog.000002:157");
        assert_eq!((request.server_id, request.form.heartbeat_version_2), (7, true));
        assert!(parse_place(&body[..10], &Said::default()).is_none());
    }

    proptest! {
        #[test]
        fn arbitrary_commands_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, &Said::default());
            let _ = parse_place(&bytes, &Said::default());
        }
    }
}
