//! What is merged, what is not, and that the rows stay what they were.

use super::*;
use crate::engine::mysql::event::{build, put_lenenc, verify_crc};
use crate::engine::mysql::gtid::{Gtid, Tag};
use crate::engine::mysql::stream::tests::head;
use proptest::prelude::*;
use rstest::rstest;

const C: Checksum = Checksum::Crc32;
const UTC: &[u8] = b"\x05\x03UTC";

/// An event as its type and body.
type Made = (u8, Vec<u8>);

fn gtid(n: u64) -> TxId {
    TxId::MySql(Gtid::new([7; 16], Tag::default(), n).unwrap())
}

fn query(session: &[u8], statement: &str) -> Made {
    let mut body = vec![0; 8];
    body.push(4);
    body.extend([0; 2]);
    body.extend((session.len() as u16).to_le_bytes());
    body.extend_from_slice(session);
    body.extend_from_slice(b"shop\0");
    body.extend_from_slice(statement.as_bytes());
    (kind::QUERY, body)
}

fn map(number: u64, table: &str, columns: u8) -> Made {
    let mut body = number.to_le_bytes()[..6].to_vec();
    body.extend([1, 0]);
    for name in ["shop", table] {
        body.push(name.len() as u8);
        body.extend_from_slice(name.as_bytes());
        body.push(0);
    }
    body.push(columns);
    (kind::TABLE_MAP, body)
}

fn rows(kind: u8, number: u64, flags: u16, row: &[u8]) -> Made {
    let mut body = number.to_le_bytes()[..6].to_vec();
    body.extend(flags.to_le_bytes());
    body.extend([2, 0]);
    body.extend_from_slice(row);
    (kind, body)
}

fn xid(n: u64) -> Made {
    (kind::XID, n.to_le_bytes().to_vec())
}

/// The events of a transaction behind its GTID event: one row in each of these tables.
fn shop(n: u64, tables: &[u64]) -> Vec<Made> {
    let mut events = vec![query(UTC, "BEGIN")];
    for table in tables {
        events.push(map(*table, &format!("t{table}"), 3));
        events.push(rows(kind::WRITE_ROWS, *table, 1, &n.to_le_bytes()));
    }
    events.push(xid(n));
    events
}

/// Events as they stand in the log from 1000 on, each with the place where it ends.
fn logged(events: &[Made]) -> Vec<u8> {
    let mut log = vec![];
    for (kind, body) in events {
        let log_pos = 1000 + (log.len() + HEAD_BYTES + body.len() + C.len()) as u32;
        log.extend(build(Head { log_pos, ..head(*kind) }, body, C));
    }
    log
}

fn transaction(events: &[Made]) -> Vec<u8> {
    logged(&[&[clocked(7, 8)], events].concat())
}

fn compressed(events: &[Made]) -> Vec<u8> {
    let events = events.iter();
    let plain: Vec<u8> =
        events.flat_map(|(kind, body)| build(head(*kind), body, Checksum::None)).collect();
    let mut body = vec![2, 1, 0, 3];
    let mut length = vec![];
    put_lenenc(&mut length, plain.len() as u64);
    put_lenenc(&mut body, length.len() as u64);
    body.extend(length);
    body.push(0);
    body.extend(zstd::encode_all(&plain[..], 3).unwrap());
    logged(&[clocked(7, 8), (kind::TRANSACTION_PAYLOAD, body)])
}

/// A GTID event whose clock says this.
fn clocked(last_committed: i64, sequence_number: i64) -> Made {
    let mut body = vec![9; 42];
    body[25] = 2;
    body[26..34].copy_from_slice(&last_committed.to_le_bytes());
    body[34..].copy_from_slice(&sequence_number.to_le_bytes());
    (kind::GTID, body)
}

fn merger(groups: Groups) -> Merger {
    Merger::new(&Merge { groups, lanes: 3 })
}

/// All tables are one group.
fn one() -> Merger {
    merger(Groups::One)
}

/// Each table is a group.
fn several() -> Merger {
    merger(Groups::Several(HashMap::default()))
}

/// What is handed out: of each transaction its name, and each event's type, and its body.
fn lanes(merger: &mut Merger) -> Vec<(TxId, Vec<Made>)> {
    let mut last = 0;
    let mut made = |event: Result<&[u8]>| {
        let event = event.unwrap();
        assert!(verify_crc(event));
        let head = Head::parse(event).unwrap();
        assert!(head.log_pos >= last, "a replica would take itself to be further on");
        last = head.log_pos;
        (head.kind, body(event, C).unwrap().to_vec())
    };
    let merged = merger.flush().unwrap().into_iter();
    merged.map(|(name, bytes)| (name, events(&bytes).map(&mut made).collect())).collect()
}

/// The same, of one transaction at the most.
fn flushed(merger: &mut Merger) -> Vec<Made> {
    let mut lanes = lanes(merger);
    assert!(lanes.len() < 2);
    lanes.pop().map(|(_, made)| made).unwrap_or_default()
}

fn offered(merger: &mut Merger, n: u64, events: &[Made]) -> Offer {
    merger.offer(gtid(n), &transaction(events), C).unwrap()
}

#[test]
fn merged_transactions_are_one_with_all_their_rows_in_order() {
    let mut merger = one();
    let mut three = shop(3, &[3]);
    three.insert(1, (kind::ROWS_QUERY, b"\x06INSERT".to_vec()));
    for (n, events) in [(1, shop(1, &[1, 2])), (2, shop(2, &[2])), (3, three)] {
        assert_eq!(offered(&mut merger, n, &events), Offer::Taken);
    }
    let row = |n: u64, table, flags| rows(kind::WRITE_ROWS, table, flags, &n.to_le_bytes());
    let expected = [
        clocked(0, 1),
        query(UTC, "BEGIN"),
        map(1, "t1", 3),
        map(2, "t2", 3),
        map(3, "t3", 3),
        row(1, 1, 0),
        row(1, 2, 0),
        row(2, 2, 0),
        row(3, 3, 1),
        xid(3),
    ];
    assert_eq!(lanes(&mut merger), [(gtid(1), expected.to_vec())]);
    assert_eq!(lanes(&mut merger), []);
}

#[test]
fn groups_go_out_at_once_and_what_follows_waits_for_them() {
    let mut merger = several();
    let row = |n: u64, table, flags| rows(kind::WRITE_ROWS, table, flags, &n.to_le_bytes());
    for (n, tables) in [(1, &[1, 2][..]), (2, &[2]), (3, &[2])] {
        assert_eq!(offered(&mut merger, n, &shop(n, tables)), Offer::Taken);
    }
    let begin = || query(UTC, "BEGIN");
    let (one, two) = (map(1, "t1", 3), map(2, "t2", 3));
    let more = [row(1, 2, 0), row(2, 2, 0), row(3, 2, 1)];
    let expected = [
        (gtid(1), [&[clocked(0, 1), begin(), two][..], &more, &[xid(3)]].concat()),
        (gtid(2), vec![clocked(0, 2), begin(), one, row(1, 1, 1), xid(3)]),
    ];
    assert_eq!(lanes(&mut merger), expected);
    let alone = transaction(&shop(4, &[1]));
    let alone = merger.alone(events(&alone).next().unwrap().unwrap(), C).unwrap();
    assert!(verify_crc(&alone));
    assert_eq!(body(&alone, C).unwrap(), clocked(2, 3).1);
    assert_eq!(offered(&mut merger, 5, &shop(5, &[1])), Offer::Taken);
    assert_eq!(flushed(&mut merger)[0], clocked(3, 4));
}

#[test]
fn no_more_go_out_than_there_are_lanes_and_names() {
    let mut merger = several();
    assert_eq!(offered(&mut merger, 1, &shop(1, &[1, 2, 3, 4, 5])), Offer::Taken);
    assert_eq!(flushed(&mut merger).len(), 1 + 1 + 5 + 5 + 1);
    for n in 1..=9 {
        assert_eq!(offered(&mut merger, n, &shop(n, &[n])), Offer::Taken);
    }
    let names: Vec<TxId> = lanes(&mut merger).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, [gtid(1), gtid(2), gtid(3)]);
}

#[test]
fn tables_of_one_group_stay_together() {
    let name = |table: &str| format!("shop\0{table}");
    let joined = [(name("t1"), name("t1")), (name("t2"), name("t1"))];
    let mut merger = merger(Groups::Several(joined.into()));
    for n in 1..=3 {
        assert_eq!(offered(&mut merger, n, &shop(n, &[n])), Offer::Taken);
    }
    let lengths: Vec<usize> = lanes(&mut merger).iter().map(|(_, made)| made.len()).collect();
    assert_eq!(lengths, [1 + 1 + 2 + 2 + 1, 1 + 1 + 1 + 1 + 1]);
}

#[rstest]
#[case::a_key(vec![query(UTC, "ALTER TABLE t1 ADD FOREIGN KEY (a) REFERENCES t2 (a)")], true)]
#[case::a_column(vec![query(UTC, "ALTER TABLE t1 ADD COLUMN a INT")], false)]
#[case::a_savepoint(vec![query(UTC, "BEGIN"), query(UTC, "SAVEPOINT a")], false)]
#[case::an_unknown_event(vec![query(UTC, "BEGIN"), (77, vec![])], true)]
fn behind_what_may_connect_tables_they_are_one(#[case] made: Vec<Made>, #[case] is_one: bool) {
    for pack in [false, true] {
        let mut merger = several();
        let bytes = if pack { compressed(&made) } else { transaction(&made) };
        merger.note(&bytes, C).unwrap();
        for n in 1..=2 {
            assert_eq!(offered(&mut merger, n, &shop(n, &[n])), Offer::Taken);
        }
        assert_eq!(lanes(&mut merger).len(), if is_one { 1 } else { 2 });
    }
}

#[test]
fn behind_what_is_not_looked_into_tables_are_one() {
    for kind in [kind::QUERY, kind::TRANSACTION_PAYLOAD] {
        let mut merger = several();
        let (_, part) = query(UTC, "INSERT");
        let part = build(head(kind), &part, Checksum::None);
        let head = Head::parse(&part).unwrap();
        merger.note_part(&head, &part, true).unwrap();
        assert_eq!(merger.groups == Groups::One, kind == kind::TRANSACTION_PAYLOAD);
        merger.note_part(&head, &part, false).unwrap();
        assert_eq!(merger.groups, Groups::One);
    }
}

#[test]
fn a_transaction_that_is_alone_stays_what_it_is() {
    let mut merger = one();
    let mut events = shop(1, &[4]);
    assert_eq!(offered(&mut merger, 1, &events), Offer::Taken);
    events.insert(0, clocked(0, 1));
    assert_eq!(flushed(&mut merger), events);
}

#[test]
fn a_replica_is_told_where_the_last_transaction_ends() {
    for pack in [false, true] {
        let mut merger = one();
        let first = transaction(&shop(1, &[1, 2]));
        let second = if pack { compressed(&shop(2, &[1])) } else { transaction(&shop(2, &[1])) };
        for (n, bytes) in [(1, &first), (2, &second)] {
            assert_eq!(merger.offer(gtid(n), bytes, C).unwrap(), Offer::Taken);
        }
        let merged = merger.flush().unwrap();
        let last = merged.iter().flat_map(|(_, bytes)| events(bytes)).last().unwrap();
        let last = Head::parse(last.unwrap()).unwrap().log_pos;
        assert_eq!(last, 1000 + second.len() as u32);
    }
}

#[test]
fn compressed_transactions_are_opened() {
    let mut merger = one();
    assert_eq!(offered(&mut merger, 1, &shop(1, &[1])), Offer::Taken);
    let second = compressed(&shop(2, &[1, 2]));
    assert_eq!(merger.offer(gtid(2), &second, C).unwrap(), Offer::Taken);
    let merged = flushed(&mut merger);
    let mut merger = one();
    for (n, events) in [(1, shop(1, &[1])), (2, shop(2, &[1, 2]))] {
        assert_eq!(offered(&mut merger, n, &events), Offer::Taken);
    }
    assert_eq!(merged, flushed(&mut merger));
}

#[rstest]
#[case::a_statement(vec![query(UTC, "CREATE TABLE t (a INT)")])]
#[case::a_savepoint({
    let mut events = shop(1, &[1]);
    events.insert(1, query(UTC, "SAVEPOINT a"));
    events
})]
#[case::a_table_without_transactions({
    let mut events = shop(1, &[1]);
    *events.last_mut().unwrap() = query(UTC, "COMMIT");
    events
})]
#[case::a_statement_among_rows({
    let mut events = shop(1, &[1]);
    events.insert(1, (kind::INTVAR, vec![2; 9]));
    events
})]
#[case::a_prepared_transaction({
    let mut events = shop(1, &[1]);
    *events.last_mut().unwrap() = (kind::XA_PREPARE, vec![0; 20]);
    events
})]
#[case::an_unknown_event({
    let mut events = shop(1, &[1]);
    events.insert(1, (77, vec![]));
    events
})]
#[case::something_behind_the_end([shop(1, &[1]), shop(1, &[1])].concat())]
#[case::nothing_changed(vec![query(UTC, "BEGIN"), xid(1)])]
#[case::rows_of_no_table(vec![query(UTC, "BEGIN"), rows(kind::WRITE_ROWS, 1, 1, b""), xid(1)])]
#[case::two_definitions_under_one_number({
    let mut events = shop(1, &[1]);
    events.insert(1, map(1, "t1", 4));
    events
})]
#[case::two_numbers_of_one_table({
    let mut events = shop(1, &[1]);
    events.insert(1, map(2, "t1", 3));
    events
})]
#[case::two_ways_to_check({
    let mut events = shop(1, &[1]);
    events.insert(2, rows(kind::WRITE_ROWS, 1, 2, b""));
    events
})]
fn what_is_more_than_rows_goes_through_as_it_is(#[case] events: Vec<Made>) {
    let mut merger = one();
    assert_eq!(offered(&mut merger, 1, &shop(1, &[1])), Offer::Taken);
    assert_eq!(offered(&mut merger, 2, &events), Offer::NotPlain);
    assert_eq!(merger.offer(gtid(2), &compressed(&events), C).unwrap(), Offer::NotPlain);
    assert_eq!(merger.batch.transactions, 1);
}

#[rstest]
#[case::another_session({
    let mut events = shop(2, &[1]);
    events[0] = query(b"\x05\x03CET", "BEGIN");
    events
})]
#[case::without_foreign_keys({
    let mut events = shop(2, &[1]);
    events[2] = rows(kind::WRITE_ROWS, 1, 3, b"");
    events
})]
#[case::a_changed_table_under_its_number({
    let mut events = shop(2, &[1]);
    events[1] = map(1, "t1", 4);
    events
})]
#[case::a_changed_table_under_another_number({
    let mut events = shop(2, &[9]);
    events[1] = map(9, "t1", 3);
    events
})]
fn what_cannot_be_one_statement_begins_another_batch(#[case] events: Vec<Made>) {
    let mut merger = one();
    assert_eq!(offered(&mut merger, 1, &shop(1, &[1])), Offer::Taken);
    assert_eq!(offered(&mut merger, 2, &events), Offer::Later);
    assert_eq!(flushed(&mut merger).len(), 5);
    assert_eq!(offered(&mut merger, 2, &events), Offer::Taken);
}

#[test]
fn a_batch_is_bounded() {
    let mut merger = one();
    for n in 1..=u64::from(BATCH_TRANSACTIONS) {
        assert_eq!(offered(&mut merger, n, &shop(n, &[1])), Offer::Taken);
    }
    assert_eq!(offered(&mut merger, 5000, &shop(5000, &[1])), Offer::Later);
    flushed(&mut merger);
    let mut events = shop(1, &[1]);
    events[2] = rows(kind::WRITE_ROWS, 1, 1, &vec![0; TRANSACTION_BYTES as usize]);
    let taken = (1..100).take_while(|n| offered(&mut merger, *n, &events) == Offer::Taken).count();
    assert_eq!(taken, BATCH_BYTES / TRANSACTION_BYTES as usize - 1);
    // One that is much longer than it looks.
    flushed(&mut merger);
    events[2] = rows(kind::WRITE_ROWS, 1, 1, &vec![0; OPENED_BYTES]);
    assert_eq!(merger.offer(gtid(1), &compressed(&events), C).unwrap(), Offer::NotPlain);
}

proptest! {
    #[test]
    fn broken_transactions_are_errors_or_not_merged(
        tables in proptest::collection::vec(1..4_u64, 1..4),
        pack: bool,
        at: prop::sample::Index,
        byte: u8,
    ) {
        let events = shop(1, &tables);
        let mut bytes = if pack { compressed(&events) } else { transaction(&events) };
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let mut merger = one();
        if merger.offer(gtid(1), &bytes, C).is_ok_and(|offer| offer == Offer::Taken) {
            merger.flush().unwrap();
        }
        drop(merger.offer(gtid(1), &bytes[..at], C));
    }
}
