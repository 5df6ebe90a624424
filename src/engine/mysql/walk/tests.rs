//! Where a walk stops, and what it never takes for its end.

use super::*;
use crate::engine::mysql::event::build;
use crate::engine::mysql::stream::tests::{file, head, transaction, uuid};
use crate::error::Class;
use rstest::rstest;
use std::sync::Arc;

const LOG: &str = "binlog.000001";

const C: Checksum = Checksum::Crc32;

/// Two transactions, 3 and 4, committed at 1003 and 1004 µs.
fn log() -> Vec<u8> {
    [&MAGIC[..], &file(&[vec![20, 30], vec![20]], C)].concat()
}

/// Where the first of them ends, and the second.
fn ends() -> (u64, u64) {
    let end = log().len() as u64;
    (end - transaction(4, &[20], C).len() as u64, end)
}

/// How many records are walked over up to the cut.
fn walked(cut: Cut, log: &[u8]) -> Result<u64> {
    let base = format!("{}:1-2", uuid()).parse()?;
    let nothing: OpenLog = Arc::new(|| mpsc::channel(1).1);
    let events = States::default();
    let program = Program { log: nothing, cut, base, events, by_place: false, merge: None };
    let mut walk = Walk::new(&program);
    assert!(!walk.open(&Position::new(LOG, 0), &Bytes::new())?);
    for piece in log.chunks(50) {
        walk.push(Bytes::copy_from_slice(piece))?;
        while let Some(next) = walk.next()? {
            let Next::Part(part, _) = next else { return Ok(walk.records) };
            if walk.take(&part)? {
                return Ok(walk.records);
            }
        }
    }
    walk.check_end()?;
    Ok(walk.records)
}

fn at(offset: u64) -> Cut {
    Cut::At(Position::new(LOG, offset))
}

#[rstest]
#[case::before_all(1002, 0)]
#[case::the_instant_itself_is_in(1003, 1)]
#[case::of_the_last(1004, 2)]
#[case::behind_all(9999, 2)]
fn an_instant_takes_in_what_was_committed_until_then(#[case] micros: i64, #[case] records: u64) {
    let cut = Cut::After(Timestamp::from_micros(micros));
    assert_eq!(walked(cut, &log()).unwrap(), records);
}

#[test]
fn a_place_is_a_boundary_that_the_log_has_or_an_error() {
    let (first, second) = ends();
    assert_eq!(walked(at(first), &log()).unwrap(), 1);
    assert_eq!(walked(at(second), &log()).unwrap(), 2);
    for within in [first - 1, first + 1, second - 1] {
        let error = walked(at(within), &log()).unwrap_err();
        assert!(error.to_string().contains("lies within"), "{within}: {error}");
    }
    let elsewhere = Cut::At(Position::new("binlog.000002", 4));
    for behind in [at(second + 1), elsewhere] {
        let error = walked(behind, &log()).unwrap_err();
        assert_eq!(error.class(), Class::Corrupt);
        assert!(error.to_string().contains("ends before"), "{error}");
    }
}

#[test]
fn a_log_that_ends_within_a_transaction_is_corrupt_wherever_it_ends() {
    let (first, second) = ends();
    let (never, log) = (Cut::After(Timestamp::from_micros(i64::MAX)), log());
    for end in first..=second {
        let walked = walked(never.clone(), &log[..end as usize]);
        if end == first || end == second {
            walked.unwrap();
        } else {
            assert_eq!(walked.unwrap_err().class(), Class::Corrupt, "{end}");
        }
    }
}

#[test]
fn what_a_source_says_that_it_lost_is_not_gone_over() {
    let lost = [&log()[..], &build(head(kind::INCIDENT), &[1, 0, 0], C)].concat();
    let error = walked(Cut::After(Timestamp::from_micros(i64::MAX)), &lost).unwrap_err();
    assert!(error.to_string().contains("INCIDENT"), "{error}");
    // Before it is no trouble.
    assert_eq!(walked(at(ends().1), &lost).unwrap(), 2);
}
