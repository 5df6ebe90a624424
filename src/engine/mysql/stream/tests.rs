//! Splitting and following a log that comes in pieces of any size.

use super::*;
use crate::engine::mysql::event::{build, renew_crc};
use crate::engine::mysql::executed::TxId;
use crate::engine::mysql::gtid::GtidSet;
use proptest::prelude::*;
use rstest::rstest;

const UUID: [u8; 16] = [7; 16];

pub(in crate::engine::mysql) fn head(kind: u8) -> Head {
    Head { timestamp: 1, kind, server_id: 3, length: 0, log_pos: 0, flags: 0 }
}

pub(in crate::engine::mysql) fn format_description(checksum: Checksum) -> Vec<u8> {
    let mut body = vec![4, 0];
    body.extend([b'9'; 50]);
    body.extend([0; 4]);
    body.push(19);
    body.extend([0; 42]);
    body.push(u8::from(checksum == Checksum::Crc32));
    build(head(kind::FORMAT_DESCRIPTION), &body, Checksum::Crc32)
}

pub(in crate::engine::mysql) fn previous_gtids(set: &str, checksum: Checksum) -> Vec<u8> {
    let mut body = vec![];
    set.parse::<GtidSet>().unwrap().encode(&mut body);
    build(head(kind::PREVIOUS_GTIDS), &body, checksum)
}

/// A transaction of a GTID event and events with bodies of these lengths.
pub(in crate::engine::mysql) fn transaction(
    n: u64,
    bodies: &[usize],
    checksum: Checksum,
) -> Vec<u8> {
    let mut rest = vec![];
    for (i, &len) in bodies.iter().enumerate() {
        let kind = if i == 0 { kind::QUERY } else { kind::WRITE_ROWS };
        rest.extend(build(head(kind), &vec![i as u8; len], checksum));
    }
    let mut body = vec![0];
    body.extend(UUID);
    body.extend(n.to_le_bytes());
    body.push(2);
    body.extend([0; 16]);
    body.extend((1000 + n).to_le_bytes().iter().take(7));
    body.push(0xfe);
    let gtid_length = HEAD_BYTES + body.len() + 8 + checksum.len();
    body.extend(((gtid_length + rest.len()) as u64).to_le_bytes());
    let mut all = build(head(kind::GTID), &body, checksum);
    assert_eq!(all.len(), gtid_length);
    all.extend(rest);
    all
}

pub(in crate::engine::mysql) fn uuid() -> uuid::Uuid {
    uuid::Uuid::from_bytes(UUID)
}

/// A file behind its magic bytes: transactions 3, 4, … after 1 and 2 were executed before it.
pub(in crate::engine::mysql) fn file(transactions: &[Vec<usize>], checksum: Checksum) -> Vec<u8> {
    let mut log = format_description(checksum);
    log.extend(previous_gtids(&format!("{}:1-2", uuid()), checksum));
    for (i, bodies) in transactions.iter().enumerate() {
        log.extend(transaction(3 + i as u64, bodies, checksum));
    }
    log
}

/// Reads bytes that arrive in pieces; gives what ended, and the track.
fn read(log: &[u8], piece: usize) -> Result<(Vec<(u64, End)>, Track)> {
    let mut splitter = Splitter::default();
    let mut track = Track::new("binlog.000001", 4, None);
    track.unlogged = Some(Executed::default());
    let mut ends = vec![];
    for piece in log.chunks(piece) {
        splitter.push(Bytes::copy_from_slice(piece));
        while let Some(part) = splitter.next()? {
            if let Some(end) = track.take(&part)? {
                ends.push((track.offset, end));
            }
        }
    }
    if !splitter.is_between_events() {
        return Err(Error::corrupt("torn"));
    }
    Ok((ends, track))
}

fn gtids(track: &Track) -> GtidSet {
    track.gtids.as_ref().unwrap().to_string().parse().unwrap()
}

fn number(event: &GtidEvent) -> u64 {
    match event.gtid {
        Some(TxId::MySql(gtid)) => gtid.n,
        _ => 0,
    }
}

fn records(ends: &[(u64, End)]) -> Vec<(u64, u64)> {
    let record = |&(at, end): &(u64, End)| match end {
        End::Record(event) => Some((at, number(&event))),
        _ => None,
    };
    ends.iter().filter_map(record).collect()
}

#[test]
fn transactions_end_where_they_say() {
    let log = file(&[vec![20, 30], vec![20]], Checksum::Crc32);
    let (ends, track) = read(&log, usize::MAX).unwrap();
    let second = 4 + log.len() as u64;
    let first = second - transaction(4, &[20], Checksum::Crc32).len() as u64;
    assert_eq!(records(&ends), [(first, 3), (second, 4)]);
    assert_eq!((track.offset, track.whole), (second, second));
    assert!(!track.is_open());
    assert_eq!(track.gtids.unwrap().to_string(), format!("{}:1-4", uuid()));
}

#[test]
fn within_a_transaction_the_whole_stays_behind() {
    let log = file(&[vec![20, 30], vec![20, 500]], Checksum::None);
    let (_, done) =
        read(&log[..log.len() - transaction(4, &[20, 500], Checksum::None).len()], 10).unwrap();
    let (ends, track) = read(&log[..log.len() - 519], 10).unwrap();
    assert_eq!(ends.last().unwrap().1, End::Within);
    assert!(track.is_open());
    assert_eq!(track.whole, done.whole);
    assert_eq!(track.gtids, done.gtids);
}

#[test]
fn what_does_not_fit_together_is_corrupt() {
    let c = Checksum::Crc32;
    let cases = [
        ("twice", [file(&[vec![9]], c), transaction(3, &[9], c)].concat()),
        ("within", {
            // The event that the first transaction promises does not come.
            let mut cut = [file(&[], c), transaction(3, &[50], c)].concat();
            cut.truncate(cut.len() - 50 - HEAD_BYTES - 4);
            cut.extend(transaction(4, &[9], c));
            cut
        }),
        ("beyond", {
            let mut long = file(&[], c);
            let promised = transaction(3, &[10], c);
            long.extend(&promised[..promised.len() - 10 - HEAD_BYTES - 4]);
            long.extend(build(head(kind::QUERY), &[0; 11], c));
            long
        }),
        ("never came", [file(&[], c), previous_gtids(&format!("{}:1-3", uuid()), c)].concat()),
        ("lacks", [file(&[vec![9]], c), previous_gtids(&format!("{}:1-2", uuid()), c)].concat()),
        ("outside", [file(&[], c), build(head(kind::WRITE_ROWS), &[0; 9], c)].concat()),
    ];
    for (what, log) in cases {
        let error = read(&log, 7).map(drop).unwrap_err();
        assert!(error.to_string().contains(what), "{what}: {error}");
    }
}

#[test]
fn an_event_of_a_newer_server_is_taken_wherever_it_stands() {
    let c = Checksum::Crc32;
    let newer = build(head(99), &[1; 30], c);
    let log = [file(&[vec![9]], c), newer.clone(), transaction(4, &[9], c), newer].concat();
    let (ends, track) = read(&log, 10).unwrap();
    assert_eq!(records(&ends).len(), 2);
    assert_eq!(ends.iter().filter(|(_, end)| *end == End::Outside).count(), 4);
    assert_eq!(track.whole, 4 + log.len() as u64);
    assert!(head(99).is_strange() && !head(kind::WRITE_ROWS).is_strange());
    let ignorable = Head { flags: super::super::event::flag::IGNORABLE, ..head(99) };
    assert!(!ignorable.is_strange());
}

#[test]
fn what_was_never_logged_counts_as_executed_and_is_missed_in_no_list() {
    let mut track = Track::new("binlog.000001", 4, None);
    let unlogged = "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5";
    track.unlogged = Some(unlogged.parse().unwrap());
    let c = Checksum::Crc32;
    let log = [file(&[vec![9]], c), previous_gtids(&format!("{}:1-3", uuid()), c)].concat();
    let mut splitter = Splitter::default();
    splitter.push(Bytes::from(log));
    while let Some(part) = splitter.next().unwrap() {
        track.take(&part).unwrap();
    }
    assert_eq!(track.gtids.unwrap().to_string(), format!("{}:1-3,{unlogged}", uuid()));
}

#[test]
fn every_flipped_bit_is_noticed() {
    let log = file(&[vec![20, 30], vec![15]], Checksum::Crc32);
    for bit in 0..log.len() * 8 {
        let mut bad = log.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(read(&bad, 40).is_err(), "bit {} of byte {}", bit % 8, bit / 8);
    }
}

#[test]
fn a_large_event_passes_in_parts() {
    let log = file(&[vec![20, 1 << 20]], Checksum::Crc32);
    let (ends, _) = read(&log, 100_000).unwrap();
    assert_eq!(records(&ends).len(), 1);
    let mut bad = log;
    let at = bad.len() - 500_000;
    bad[at] ^= 1;
    assert!(read(&bad, 100_000).is_err());
}

#[test]
fn a_large_set_is_read_whole() {
    let many: Vec<String> = (0..20_000).map(|i| (2 * i + 5).to_string()).collect();
    let text = format!("{}:{}", uuid(), many.join(":"));
    let mut log = format_description(Checksum::Crc32);
    log.extend(previous_gtids(&text, Checksum::Crc32));
    log.extend(transaction(3, &[9], Checksum::Crc32));
    let (_, track) = read(&log, 10_000).unwrap();
    assert_eq!(gtids(&track).count(), 20_001);
}

#[test]
fn a_transaction_over_4_gib_ends_where_it_says_in_a_file_over_4_gib() {
    const BEFORE: u64 = 6 << 30;
    const BETWEEN: u64 = 5 << 30;
    let mut log = transaction(3, &[20, 40], Checksum::Crc32);
    let gtid = Head::parse(&log).unwrap().length as usize;
    let promised = log.len() as u64 + BETWEEN;
    log[gtid - 4 - 8..gtid - 4].copy_from_slice(&promised.to_le_bytes());
    renew_crc(&mut log[..gtid]);
    let known = format!("{}:1-2", uuid()).parse().unwrap();
    let mut track = Track::new("binlog.000001", BEFORE, Some(known));
    track.checksum = Checksum::Crc32;
    let mut splitter = Splitter::default();
    splitter.push(Bytes::from(log));
    for end in [End::Within, End::Within] {
        let part = splitter.next().unwrap().unwrap();
        assert_eq!(track.take(&part).unwrap(), Some(end));
    }
    // What stands between are 5 GiB of events that nobody has to make for this.
    track.offset += BETWEEN;
    track.event_end += BETWEEN;
    let part = splitter.next().unwrap().unwrap();
    assert!(track.is_open() && track.whole == BEFORE);
    assert!(matches!(track.take(&part).unwrap(), Some(End::Record(_))));
    assert_eq!((track.whole, track.is_open()), (BEFORE + promised, false));
}

proptest! {
    #[test]
    fn what_is_read_does_not_depend_on_how_it_arrives(
        shape in proptest::collection::vec(
            proptest::collection::vec(0..200_000_usize, 0..3), 0..4),
        piece in 1..300_000_usize,
        crc in any::<bool>(),
    ) {
        let log = file(&shape, if crc { Checksum::Crc32 } else { Checksum::None });
        let (all, _) = read(&log, usize::MAX).unwrap();
        let (ends, track) = read(&log, piece).unwrap();
        prop_assert_eq!(&ends, &all);
        prop_assert_eq!(records(&ends).len(), shape.len());
        prop_assert_eq!(track.offset, 4 + log.len() as u64);
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..400),
        lengths in proptest::collection::vec(19..60_u8, 0..8),
        piece in 1..100_usize,
    ) {
        // Lengths that make sense lead further in.
        let mut at = 0;
        for length in lengths {
            if let Some(field) = bytes.get_mut(at + 9..at + 13) {
                field.copy_from_slice(&u32::from(length).to_le_bytes());
                let end = (at + usize::from(length)).min(bytes.len());
                renew_crc(&mut bytes[at..end]);
                at += usize::from(length);
            }
        }
        drop(read(&bytes, piece));
    }
}

/// Consecutive files of a MariaDB 10.11 with what is odd about its transactions in the first: two
/// domains, XA, savepoints, MyISAM and ROLLBACK, user variables before DDL, numbers out of order.
const MARIA: [&[u8]; 3] = [
    include_bytes!("../../../../fixtures/mariadb/mbin.000001"),
    include_bytes!("../../../../fixtures/mariadb/mbin.000002"),
    include_bytes!("../../../../fixtures/mariadb/mbin.000003"),
];

/// The transactions that `SHOW BINLOG EVENTS` has in the first file.
const MARIA_TRANSACTIONS: usize = 35;

#[rstest]
#[case(1)]
#[case(100)]
#[case(usize::MAX)]
fn transactions_of_mariadb_end_where_no_other_event_belongs_to_them(#[case] piece: usize) {
    let (ends, track) = read(&MARIA[0][4..], piece).unwrap();
    let is_record = |(_, end): &&(u64, End)| matches!(end, End::Record(_));
    assert_eq!(ends.iter().filter(is_record).count(), MARIA_TRANSACTIONS);
    // Nothing but the head of the file and its ROTATE lies between transactions.
    let outside = ends.iter().filter(|(_, end)| *end == End::Outside).map(|(at, _)| *at);
    assert_eq!(outside.collect::<Vec<_>>(), [256, 285, 323, 9759]);
    // The last number of the domain, not its largest one: so says the list of the next file.
    assert_eq!(track.gtids.unwrap().to_string(), "0-7400-500,1-7400-1");
    assert_eq!(track.whole, MARIA[0].len() as u64);
    let Some((_, End::Record(last))) = ends.get(ends.len() - 2) else { panic!("no record") };
    assert!(last.immediate_commit_ts.is_some());
}

#[test]
fn files_of_mariadb_prove_that_they_follow_each_other() {
    let follow = |files: &[&[u8]]| {
        let mut splitter = Splitter::default();
        let mut track = Track::new("mbin.000001", 4, None);
        track.unlogged = Some(Executed::default());
        for (i, file) in files.iter().enumerate() {
            if i > 0 {
                track.begin_file("mbin.next")?;
            }
            splitter.push(Bytes::copy_from_slice(&file[4..]));
            while let Some(part) = splitter.next()? {
                track.take(&part)?;
            }
        }
        Ok::<_, Error>(track.gtids.unwrap().to_string())
    };
    assert_eq!(follow(&MARIA).unwrap(), "0-7400-1005,1-7400-1");
    let error = follow(&[MARIA[0], MARIA[2]]).unwrap_err().to_string();
    assert!(error.contains("has 0-7400-1004, which never came"), "{error}");
    let error = follow(&[MARIA[1], MARIA[2], MARIA[0]]).unwrap_err().to_string();
    assert!(error.contains("lacks 0-7400-1005,1-7400-1, which came before"), "{error}");
}

#[test]
fn a_transaction_of_mariadb_without_its_end_is_open() {
    // `XA END` in the middle of a prepared transaction, and its end.
    let (ends, track) = read(&MARIA[0][4..4372], 64).unwrap();
    assert_eq!((track.whole, track.is_open()), (4103, true));
    assert_eq!(ends.last().unwrap().1, End::Within);
    let cut = [&MARIA[0][4..4372], &MARIA[0][9717..]].concat();
    let error = read(&cut, 64).map(drop).unwrap_err().to_string();
    assert!(error.contains("within a transaction"), "{error}");
}
