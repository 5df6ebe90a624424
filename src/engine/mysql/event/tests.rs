//! Event heads and bodies: real bytes, and arbitrary ones.

use super::*;
use proptest::prelude::*;
use rstest::rstest;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.bytes().filter_map(|b| char::from(b).to_digit(16)).map(|d| d as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// GTID event of a MySQL 9.7.4, as `mysqlbinlog --hexdump` shows it.
const GTID: &str = "b7f4026b 21 055b0000 4d000000 eb000000 0000
    01 99e5655de67c11f1bcea02fc00000001 0100000000000000 02
    0000000000000000 0100000000000000 e1fd90dadd6006 b0 50620100 5ff42e52";

/// GTID_TAGGED event of a MySQL 9.7.4.
const TAGGED: &str =
    "b7f4026b2a055b0000500000007f030000000002720000000265029503caba9903f822c503f102a9
    0304f10300000002040406087461677808080a100c7f9f2491dadd60061051041283120bb98a322a";

#[test]
fn a_real_gtid_event_is_understood() {
    let event = hex(GTID);
    let head = Head::parse(&event).unwrap();
    assert_eq!((head.kind, head.server_id, head.length), (kind::GTID, 23301, 77));
    assert_eq!((head.log_pos, head.flags), (235, 0));
    assert_eq!(head.to_bytes()[..], event[..HEAD_BYTES]);
    assert!(verify_crc(&event));
    let gtid = GtidEvent::parse(&head, body(&event, Checksum::Crc32).unwrap()).unwrap();
    assert_eq!(gtid.gtid.unwrap().to_string(), "99e5655d-e67c-11f1-bcea-02fc00000001:1");
    assert_eq!((gtid.last_committed, gtid.sequence_number), (0, 1));
    let at = Some(Timestamp::from_micros(1_795_355_831_238_113));
    assert_eq!((gtid.immediate_commit_ts, gtid.original_commit_ts), (at, at));
    assert_eq!(gtid.transaction_length, 176);
}

#[test]
fn a_real_tagged_gtid_event_is_understood() {
    let event = hex(TAGGED);
    let head = Head::parse(&event).unwrap();
    assert_eq!(head.length as usize, event.len());
    assert!(verify_crc(&event));
    let gtid = GtidEvent::parse(&head, body(&event, Checksum::Crc32).unwrap()).unwrap();
    assert_eq!(gtid.gtid.unwrap().to_string(), "99e5655d-e67c-11f1-bcea-02fc00000001:tagx:1");
    assert_eq!((gtid.last_committed, gtid.sequence_number), (2, 4));
    let at = Some(Timestamp::from_micros(1_795_355_831_248_031));
    assert_eq!((gtid.immediate_commit_ts, gtid.original_commit_ts), (at, at));
    assert_eq!(gtid.transaction_length, 276);
}

#[rstest]
#[case(GTID)]
#[case(TAGGED)]
fn a_clock_is_changed_and_nothing_else(#[case] event: &str) {
    let event = hex(event);
    let head = Head::parse(&event).unwrap();
    let before = body(&event, Checksum::Crc32).unwrap();
    let parsed = GtidEvent::parse(&head, before).unwrap();
    for (last_committed, sequence_number) in [(0, 1), (63, 64), (8191, 8200), (1 << 40, i64::MAX)] {
        let written = with_clock(&head, before, last_committed, sequence_number).unwrap();
        let expected = GtidEvent { last_committed, sequence_number, ..parsed };
        assert_eq!(GtidEvent::parse(&head, &written).unwrap(), expected);
        let back = (parsed.last_committed, parsed.sequence_number);
        assert_eq!(with_clock(&head, &written, back.0, back.1).unwrap(), before);
    }
    for end in 0..before.len() {
        drop(with_clock(&head, &before[..end], 1, 2));
    }
}

#[test]
fn a_transaction_of_an_old_server_gets_no_clock() {
    let event = hex(GTID);
    let head = Head::parse(&event).unwrap();
    let old = &event[HEAD_BYTES..HEAD_BYTES + 25];
    assert_eq!(with_clock(&head, old, 1, 2).unwrap(), old);
}

#[test]
fn a_replicated_transaction_has_two_commit_times() {
    let mut event = hex(GTID);
    let head = Head::parse(&event).unwrap();
    let body = &mut event[HEAD_BYTES..];
    // Bit 55 of the first time says that the original one follows.
    body[42 + 6] |= 0x80;
    let mut with_two = body[..49].to_vec();
    with_two.extend(7_u64.to_le_bytes().iter().take(7));
    with_two.extend(&body[49..body.len() - CRC_BYTES]);
    let gtid = GtidEvent::parse(&head, &with_two).unwrap();
    assert_eq!(gtid.immediate_commit_ts, Some(Timestamp::from_micros(1_795_355_831_238_113)));
    assert_eq!(gtid.original_commit_ts, Some(Timestamp::from_micros(7)));
    assert_eq!(gtid.transaction_length, 176);
}

#[test]
fn one_flipped_bit_breaks_the_checksum() {
    let good = hex(GTID);
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(!verify_crc(&bad), "bit {bit}");
    }
    let mut renewed = good.clone();
    renewed[10] ^= 1;
    renew_crc(&mut renewed);
    assert!(verify_crc(&renewed));
}

#[test]
fn a_real_format_description_is_understood() {
    let event =
        hex("b7f4026b0f055b00007b0000007f00000001000400392e372e342d32000000000000000000000000
    000000000000000000000000000000000000000000000000000000000000000000000013000d0008
    000000000400040000006300041a08000000000000020000000a0a0a2a2a001234000a2800000102
    f687c1");
    let fde = FormatDescription::parse(&event).unwrap();
    assert_eq!(fde.server_version, "9.7.4-2");
    assert_eq!((fde.created, fde.checksum), (0, Checksum::Crc32));
    assert_eq!(event[FDE_CREATED_AT..][..4], [0; 4]);
    assert_eq!(fde.post_header_lengths.len(), 42);
    // The stored checksum is that of the event with the flag clear.
    let mut closed = event.clone();
    closed[17] = 0;
    assert!(verify_crc(&closed));
}

#[rstest]
#[case(Checksum::None)]
#[case(Checksum::Crc32)]
fn events_made_up_for_a_reader_are_read_back(#[case] checksum: Checksum) {
    for position in [4, 250, 251, 0xffff, 0x1_0000, 0x00ff_ffff, 0x0100_0000, 5 << 32] {
        let event = artificial_rotate(7, "binlog.000002", position, checksum);
        let head = Head::parse(&event).unwrap();
        assert!(head.is_artificial());
        assert_eq!((head.timestamp, head.log_pos, head.server_id), (0, 0, 7));
        let rotate = Rotate::parse(body(&event, checksum).unwrap()).unwrap();
        assert_eq!(rotate, Rotate { position, file: "binlog.000002".into() });

        let event = heartbeat_v2(7, "binlog.000002", position, checksum);
        let head = Head::parse(&event).unwrap();
        assert!(head.is_artificial());
        let beat = Heartbeat::parse(&head, body(&event, checksum).unwrap()).unwrap();
        assert_eq!(beat, Heartbeat { position, file: "binlog.000002".into(), truncated: false });

        let event = heartbeat_v1(7, "binlog.000002", position, checksum);
        assert_eq!(checksum == Checksum::Crc32, verify_crc(&event));
        let head = Head::parse(&event).unwrap();
        let beat = Heartbeat::parse(&head, body(&event, checksum).unwrap()).unwrap();
        assert_eq!(beat.position, position & 0xffff_ffff);
    }
}

#[test]
fn a_heartbeat_of_mariadb_beyond_4_gib_has_its_place_before_the_name() {
    let body = hex("0500000001000000 6d62696e2e303030303031");
    let event = build(made_up(kind::HEARTBEAT, 7, 0, 0), &body, Checksum::None);
    let beat = Heartbeat::parse(&Head::parse(&event).unwrap(), &body).unwrap();
    let file = "mbin.000001".into();
    assert_eq!(beat, Heartbeat { file, position: (1 << 32) + 5, truncated: false });
}

#[test]
fn compressed_statements_are_read() {
    // What MariaDB 10.11 wrote with log_bin_compress for `insert into ai(u) values ('xxx…')`.
    let log = include_bytes!("../../../../fixtures/mariadb/mbin.000003");
    let at = log.windows(5).position(|w| w[4] == kind::MARIA_QUERY_COMPRESSED).unwrap();
    let head = Head::parse(&log[at..]).unwrap();
    let body = &log[at + HEAD_BYTES..at + head.length as usize - CRC_BYTES];
    let query = Query::parse(body).unwrap();
    assert_eq!(query.schema, b"d");
    let mut buffer = vec![];
    let whole = query.uncompress(true, &mut buffer).unwrap();
    let statement = format!("insert into ai(u) values ('{}')", "x".repeat(500));
    assert_eq!(whole.statement, statement.as_bytes());
    // Of a part, what is there is uncompressed; a whole one must be whole.
    let mut part = query;
    part.statement = &part.statement[..part.statement.len() - 8];
    assert!(part.uncompress(true, &mut vec![]).is_err());
    let mut buffer = vec![];
    assert!(
        statement.as_bytes().starts_with(part.uncompress(false, &mut buffer).unwrap().statement)
    );
}

#[test]
fn a_heartbeat_has_the_bytes_that_a_real_server_sends() {
    let real = hex("00000000 29 b9820100 2d000000 fd563685 0000");
    let mut event = heartbeat_v2(99001, "binlog.000002", 0x0085_3656, Checksum::Crc32);
    assert_eq!(
        event[HEAD_BYTES..event.len() - 4],
        hex("01 0d 62696e6c6f672e303030303032 02 04 fd563685 00")
    );
    assert_eq!(event.len(), 45);
    event.truncate(13);
    assert_eq!(event[..], real[..13]);
}

#[test]
fn the_statement_of_a_query_event_is_found() {
    let body = hex("0900000000000000 01 0000 0300 aabbcc 7400 42454749 4e");
    let query = Query::parse(&body).unwrap();
    assert_eq!((query.schema, query.statement), (&b"t"[..], &b"BEGIN"[..]));
    assert!(Query::parse(&body[..14]).is_err());
}

#[test]
fn names_that_are_no_plain_file_names_are_refused() {
    for name in ["", "../x", "a b", "a\0b", "\u{e9}"] {
        let mut body = 4_u64.to_le_bytes().to_vec();
        body.extend(name.as_bytes());
        assert!(Rotate::parse(&body).is_err(), "{name:?}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        everything(&bytes);
    }

    #[test]
    fn damaged_events_never_panic(
        which in 0..2_usize, cut in 0..100_usize, at in 0..100_usize, to in any::<u8>(),
    ) {
        let mut event = hex([GTID, TAGGED][which]);
        event.truncate(event.len() - cut.min(event.len()));
        if let Some(byte) = event.get_mut(at) {
            *byte = to;
        }
        everything(&event);
    }
}

fn everything(bytes: &[u8]) {
    let head = Head::parse(bytes);
    assert!(bytes.len() > CRC_BYTES || !verify_crc(bytes) || bytes == [0; 4]);
    drop(FormatDescription::parse(bytes));
    for checksum in [Checksum::None, Checksum::Crc32] {
        for body in [body(bytes, checksum).unwrap_or_default(), bytes] {
            drop(Rotate::parse(body));
            drop(parse_executed_list(kind::PREVIOUS_GTIDS, body));
            drop(parse_executed_list(kind::MARIA_GTID_LIST, body));
            if let Ok(query) = Query::parse(body) {
                drop(query.uncompress(true, &mut vec![]));
            }
            if let Ok(head) = &head {
                for kind in [kind::GTID, kind::ANONYMOUS_GTID, kind::GTID_TAGGED, kind::MARIA_GTID]
                {
                    drop(GtidEvent::parse(&Head { kind, ..*head }, body));
                }
                drop(Heartbeat::parse(head, body));
                drop(Heartbeat::parse(&Head { kind: kind::HEARTBEAT_V2, ..*head }, body));
            }
        }
    }
}
