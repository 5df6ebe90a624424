//! GTIDs and binlog states of MariaDB.

use super::*;
use proptest::prelude::*;
use rstest::rstest;

fn state(text: &str) -> BinlogState {
    text.parse().unwrap()
}

fn gtid(text: &str) -> MariaGtid {
    MariaGtid::parse(text).unwrap()
}

/// The body of a GTID_LIST event.
fn encode(state: &BinlogState) -> Vec<u8> {
    let gtids: Vec<_> = state.domains.iter().flat_map(Domain::gtids).collect();
    let mut body = (gtids.len() as u32).to_le_bytes().to_vec();
    for gtid in gtids {
        body.extend(gtid.domain.to_le_bytes());
        body.extend(gtid.server.to_le_bytes());
        body.extend(gtid.sequence.to_le_bytes());
    }
    body
}

#[rstest]
#[case("", "")]
#[case("1-2-7, 0-1-100", "0-1-100,1-2-7")]
#[case("0-3-9,0-2-8,0-1-100", "0-2-8,0-3-9,0-1-100")]
#[case("0-1-18446744073709551615", "0-1-18446744073709551615")]
fn text_is_written_in_one_form(#[case] text: &str, #[case] canonical: &str) {
    assert_eq!(state(text).to_string(), canonical);
    assert_eq!(BinlogState::decode(&encode(&state(text))).unwrap(), state(text));
}

#[test]
fn the_server_that_logged_last_stands_at_the_end_of_its_domain() {
    let mut log = BinlogState::default();
    for name in ["0-1-1", "0-2-2", "7-1-1", "0-1-3"] {
        log.add(gtid(name));
    }
    assert_eq!(log.to_string(), "0-2-2,0-1-3,7-1-1");
    assert_ne!(log, state("0-1-3,0-2-2,7-1-1"), "the order in a domain is a part of the state");
    let position: Vec<_> = log.position().map(|gtid| gtid.to_string()).collect();
    assert_eq!(position, ["0-1-3", "7-1-1"]);
    assert!(log.contains(gtid("0-2-2")) && log.contains(gtid("0-2-1")));
    assert!(!log.contains(gtid("0-2-3")) && !log.contains(gtid("0-9-1")));
}

#[test]
fn a_number_out_of_order_is_the_last_one_all_the_same() {
    // What a server with gtid_strict_mode=OFF has in its list after `SET gtid_seq_no = 5`.
    let mut log = state("0-1-100");
    log.add(gtid("0-1-5"));
    log.add(gtid("0-1-6"));
    assert_eq!(log, state("0-1-6"));
    assert_eq!(log.contradicted_by(&state("0-1-6")), None);
}

#[rstest]
#[case::same("0-1-5,1-2-3", "0-1-5,1-2-3", None)]
#[case::nothing("", "", None)]
#[case::behind("0-1-5", "0-1-4", Some("lacks 0-1-5"))]
#[case::ahead("0-1-5", "0-1-6", Some("has 0-1-6"))]
#[case::another("0-1-5", "0-2-6,0-1-5", Some("has 0-2-6"))]
#[case::order("0-1-5,0-2-5", "0-2-5,0-1-5", Some("says"))]
#[case::forgotten("0-1-5,0-2-5", "0-2-5", Some("lacks 0-1-5"))]
#[case::reset("0-1-5,1-1-1", "", Some("lacks 0-1-5,1-1-1"))]
#[case::domain_deleted("0-1-5,1-1-1", "0-1-5", None)]
#[case::domain_deleted_and_more("0-1-5,1-1-1", "0-1-4", Some("lacks 0-1-5"))]
#[case::new_domain("0-1-5", "0-1-5,1-1-1", Some("has 1-1-1"))]
fn a_file_goes_on_only_where_the_log_ended(
    #[case] known: &str,
    #[case] said: &str,
    #[case] why: Option<&str>,
) {
    let found = state(known).contradicted_by(&state(said));
    match why {
        None => assert_eq!(found, None),
        Some(why) => {
            assert!(found.as_deref().is_some_and(|found| found.contains(why)), "{found:?}");
        }
    }
}

#[test]
fn the_bytes_of_a_real_list_are_read() {
    // GTID_LIST of a MariaDB 10.11: domains 1 and 0, and one with the flag of a reached UNTIL.
    let mut body = vec![2, 0, 0, 0];
    body.extend([1, 0, 0, 0, 0xe8, 0x1c, 0, 0, 0x0b, 0xbd, 0, 0, 0, 0, 0, 0]);
    body.extend([0, 0, 0, 0, 0xe8, 0x1c, 0, 0, 0x0a, 0x0d, 0, 0, 0, 0, 0, 0]);
    let read = BinlogState::decode(&body).unwrap();
    assert_eq!(read.to_string(), "0-7400-3338,1-7400-48395");
    body[3] = 0x10;
    assert_eq!(BinlogState::decode(&body).unwrap(), read);
}

#[test]
fn a_count_that_lies_is_refused() {
    for count in [0_u32, 1, 3, COUNT_MASK] {
        let mut body = count.to_le_bytes().to_vec();
        body.extend([7; 32]);
        assert!(BinlogState::decode(&body).is_err(), "{count}");
    }
    assert!(BinlogState::decode(&[2, 0, 0]).is_err());
    let twice = [&[2, 0, 0, 0][..], &[7; 32]].concat();
    assert!(BinlogState::decode(&twice).is_err());
}

#[test]
fn union_keeps_the_larger_number() {
    let mut both = state("0-1-5,0-2-9,1-1-1");
    both.union_with(&state("0-1-7,0-2-3,2-1-1"));
    assert_eq!(both, state("0-1-7,0-2-9,1-1-1,2-1-1"));
    assert_eq!(state("0-1-7,0-2-9").subtract(&state("0-1-7,0-2-8")), state("0-2-9"));
}

proptest! {
    #[test]
    fn what_is_added_is_what_the_list_says(
        log in proptest::collection::vec((0..3_u32, 1..4_u32, 1..50_u64), 0..60)
    ) {
        let mut added = BinlogState::default();
        let mut last: Vec<(u32, u32, u64)> = vec![];
        for &(domain, server, sequence) in &log {
            added.add(MariaGtid { domain, server, sequence });
            last.retain(|(d, s, _)| (*d, *s) != (domain, server));
            last.push((domain, server, sequence));
        }
        let list: Vec<_> = last
            .iter()
            .map(|&(domain, server, sequence)| MariaGtid { domain, server, sequence })
            .collect();
        let said = BinlogState::from_list(list).unwrap();
        prop_assert_eq!(&said, &added);
        prop_assert_eq!(added.contradicted_by(&said), None);
        prop_assert_eq!(&state(&said.to_string()), &said);
        prop_assert!(said.subtract(&added).is_empty());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        if let Ok(read) = BinlogState::decode(&bytes) {
            prop_assert_eq!(BinlogState::decode(&encode(&read)).unwrap(), read);
        }
    }
}
