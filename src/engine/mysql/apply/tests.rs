//! Events to packets, without a server: what real servers make of them is in `tests/it`.

use super::script::{Names, Script, Step};
use super::session::{Collations, Guarded};
use crate::engine::mysql::event::{self, Checksum, Head, kind};
use crate::engine::mysql::executed::TxId;
use crate::engine::mysql::flavor::Family;
use crate::engine::mysql::gtid::{Gtid, Tag};
use crate::engine::mysql::stream::Part;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;

const STATEMENT_END: u16 = 1;

fn made(kind: u8, body: &[u8], checksum: Checksum) -> Vec<u8> {
    let head = Head { timestamp: 1, kind, server_id: 1, length: 0, log_pos: 0, flags: 0 };
    event::build(head, body, checksum)
}

fn rows(fill: &[u8], flags: u16) -> Vec<u8> {
    let body = [&[1, 0, 0, 0, 0, 0][..], &flags.to_le_bytes(), fill].concat();
    made(kind::WRITE_ROWS, &body, Checksum::Crc32)
}

fn query(statement: &[u8]) -> Vec<u8> {
    let body = [&[0; 13][..], b"\0", statement].concat();
    made(kind::QUERY, &body, Checksum::Crc32)
}

fn script(names: Names) -> Script {
    let mut script = Script::new(Family::MySql, names, Collations::new(), Guarded::new([]));
    // Sets the checksum; the packet is that of a file's head.
    script.format(b"fde", Checksum::Crc32);
    assert!(matches!(script.next_step(), Some(Step::Packet(..))));
    script
}

/// Gives an event in parts of `size` bytes, the first of at least a head and flags.
fn take(script: &mut Script, event: &[u8], size: usize) {
    let first = event.len().min(size.max(40));
    let head = Head::parse(event).unwrap();
    let bytes = bytes::Bytes::copy_from_slice(event);
    let last = first == event.len();
    script.take(&Part { head: Some(head), bytes: bytes.slice(..first), last }).unwrap();
    let mut at = first;
    while at < event.len() {
        let end = (at + size).min(event.len());
        let part = Part { head: None, bytes: bytes.slice(at..end), last: end == event.len() };
        script.take(&part).unwrap();
        at = end;
    }
}

fn steps(script: &mut Script) -> Vec<Step> {
    std::iter::from_fn(|| script.next_step()).collect()
}

fn texts(steps: &[Step]) -> Vec<(&'static str, String, u32)> {
    steps
        .iter()
        .map(|step| match step {
            Step::Packet(text, n) => ("packet", String::from_utf8_lossy(text).into_owned(), *n),
            Step::Alone(text, n) => ("alone", String::from_utf8_lossy(text).into_owned(), *n),
            Step::Statement(text, error) => {
                ("statement", String::from_utf8_lossy(text).into_owned(), u32::from(*error))
            }
        })
        .collect()
}

fn gtid() -> Option<TxId> {
    Gtid::new([0x3e; 16], Tag::default(), 7).map(TxId::MySql)
}

#[test]
fn a_transaction_is_one_packet_that_needs_the_one_before() {
    let mut script = script(Names::Kept);
    let (map, row) = (made(kind::TABLE_MAP, b"map", Checksum::Crc32), rows(b"r", STATEMENT_END));
    script.begin(gtid());
    take(&mut script, &query(b"BEGIN"), 1000);
    take(&mut script, &map, 1000);
    take(&mut script, &row, 1000);
    take(&mut script, &made(kind::XID, &[0; 8], Checksum::Crc32), 1000);
    script.end();
    let literal = STANDARD.encode([map, row].concat());
    let expected = format!(
        "SET @pitr_on=IF(@pitr<=>1,1,COT(0*IFNULL(@pitr,0))),\
         @@SESSION.GTID_NEXT='3e3e3e3e-3e3e-3e3e-3e3e-3e3e3e3e3e3e:7';BEGIN;\
         BINLOG '{literal}';COMMIT;SET @pitr=2"
    );
    assert_eq!(texts(&steps(&mut script)), [("packet", expected, 5)]);
}

#[test]
fn nothing_of_ours_stands_between_a_table_and_its_rows() {
    let mut script = script(Names::New);
    script.begin(gtid());
    take(&mut script, &query(b"BEGIN"), 1000);
    take(&mut script, &query(b"CREATE TABLE t (a INT) START TRANSACTION"), 1000);
    take(&mut script, &rows(b"r", STATEMENT_END), 1000);
    take(&mut script, &made(kind::XID, &[0; 8], Checksum::Crc32), 1000);
    script.end();
    script.begin(gtid());
    take(&mut script, &query(b"BEGIN"), 1000);
    script.end();
    let steps = texts(&steps(&mut script));
    let kinds: Vec<&str> = steps.iter().map(|(kind, ..)| *kind).collect();
    assert_eq!(kinds, ["packet", "statement", "alone", "packet"]);
    let (_, alone, statements) = &steps[2];
    assert!(alone.starts_with("BINLOG '") && alone.ends_with("';COMMIT"), "{alone}");
    assert_eq!(*statements, 2);
    assert!(steps[3].1.starts_with("SET @pitr_on=IF(@pitr<=>2,"), "{}", steps[3].1);
    assert!(!steps.iter().any(|(_, text, _)| text.contains("GTID_NEXT")));
}

#[test]
fn a_statement_that_ends_in_a_semicolon_keeps_it() {
    let mut script = script(Names::New);
    script.begin(None);
    take(&mut script, &query(b"CREATE EVENT e ON SCHEDULE EVERY 1 DAY DO SELECT 1; "), 1000);
    script.end();
    let steps = texts(&steps(&mut script));
    assert!(steps[1].1.ends_with("DO SELECT 1;  SET @pitr_on=1"), "{steps:?}");
}

#[test]
fn what_is_not_understood_is_refused() {
    for kind in [kind::INCIDENT, kind::BEGIN_LOAD_QUERY, 99] {
        let mut script = script(Names::Kept);
        let event = made(kind, b"x", Checksum::Crc32);
        let head = Some(Head::parse(&event).unwrap());
        assert!(script.take(&Part { head, bytes: event.into(), last: true }).is_err(), "{kind}");
    }
}

proptest! {
    #[test]
    fn every_row_goes_in_with_its_maps_however_it_comes(
        sizes in proptest::collection::vec(0..400_000_usize, 1..8),
        part in 64..200_000_usize,
    ) {
        let mut script = script(Names::Kept);
        let map = made(kind::TABLE_MAP, b"map", Checksum::Crc32);
        script.begin(gtid());
        take(&mut script, &query(b"BEGIN"), part);
        take(&mut script, &map, part);
        let mut events = vec![];
        for (index, size) in sizes.iter().enumerate() {
            let flags = if index + 1 == sizes.len() { STATEMENT_END } else { 0 };
            let event = rows(&vec![index as u8; *size], flags);
            take(&mut script, &event, part);
            events.push(event);
        }
        take(&mut script, &made(kind::XID, &[0; 8], Checksum::Crc32), part);
        script.end();
        let mut found = vec![];
        for step in steps(&mut script) {
            let Step::Packet(text, statements) = step else { panic!("only packets") };
            let text = String::from_utf8(text).unwrap();
            prop_assert_eq!(text.split(';').count(), statements as usize);
            // One event more than the limit at most.
            prop_assert!(text.len() < (1 << 20) + 700_000, "{}", text.len());
            for literal in text.split("BINLOG '").skip(1) {
                let literal = STANDARD.decode(literal.split('\'').next().unwrap()).unwrap();
                prop_assert!(literal.starts_with(&map));
                found.extend_from_slice(&literal[map.len()..]);
            }
        }
        prop_assert!(found == events.concat());
    }
}
