//! The rules of failover, case by case. The archive has the transactions 1 to 10 of `a`.

use super::*;
use rstest::rstest;

const A: &str = "aaaaaaaa-71ca-11e1-9e33-c80aa9429562";
const B: &str = "bbbbbbbb-71ca-11e1-9e33-c80aa9429562";
const C: &str = "cccccccc-71ca-11e1-9e33-c80aa9429562";

fn set(text: &str) -> Executed {
    text.replace('A', A).replace('B', B).parse().unwrap()
}

fn seen(view: Option<View>) -> Seen {
    Seen { peer: "it".into(), view: view.ok_or_else(|| "it is gone".into()) }
}

/// A server that takes writes and replicates from nobody.
fn primary(uuid: &str, executed: &str) -> View {
    View {
        uuid: uuid.into(),
        executed: set(executed),
        purged: Executed::default(),
        named: true,
        read_only: false,
        replicates: false,
        fed: false,
    }
}

/// A replica whose source lives.
fn replica(uuid: &str, executed: &str) -> View {
    View { read_only: true, replicates: true, fed: true, ..primary(uuid, executed) }
}

/// A replica whose source is gone.
fn orphan(uuid: &str, executed: &str) -> View {
    View { fed: false, ..replica(uuid, executed) }
}

/// A server that is closed for writes and replicates from nobody.
fn closed(uuid: &str, executed: &str) -> View {
    View { read_only: true, ..primary(uuid, executed) }
}

fn word(choice: &Choice) -> String {
    match choice {
        Choice::Stay(index) => format!("stay {index}"),
        Choice::Join(index) => format!("join {index}"),
        Choice::Fork(index, _) => format!("fork {index}"),
        Choice::Wait(_) => "wait".into(),
    }
}

#[rstest]
#[case::it_lives(Some(primary(A, "A:1-10")), Some(replica(B, "A:1-10")), 0, "stay 0")]
#[case::both_take_writes(Some(primary(A, "A:1-10")), Some(primary(B, "A:1-10,B:1")), 60, "stay 0")]
#[case::promoted_with_all(None, Some(primary(B, "A:1-10,B:1")), 0, "join 1")]
#[case::promoted_with_more(None, Some(primary(B, "A:1-12")), 0, "join 1")]
#[case::behind(None, Some(orphan(B, "A:1-9")), 600, "wait")]
#[case::behind_but_open(None, Some(View { read_only: false, ..orphan(B, "A:1-9") }), 600, "wait")]
#[case::behind_and_alone(None, Some(primary(B, "A:1-9")), 600, "wait")]
#[case::nobody_promoted_it(None, Some(orphan(B, "A:1-10")), 600, "wait")]
#[case::fed_by_another_soon(None, Some(replica(B, "A:1-11")), 9, "wait")]
#[case::fed_by_another(None, Some(replica(B, "A:1-11")), 10, "join 1")]
#[case::parted_soon(None, Some(primary(B, "A:1-9,B:1")), 29, "wait")]
#[case::parted(None, Some(primary(B, "A:1-9,B:1")), 30, "fork 1")]
#[case::parted_but_a_replica(None, Some(View { read_only: false, ..orphan(B, "A:1-9,B:1") }), 600, "wait")]
#[case::another_database(None, Some(primary(B, "B:1-100")), 600, "wait")]
#[case::switched_over(Some(closed(A, "A:1-10")), Some(primary(B, "A:1-10")), 0, "join 1")]
#[case::switching(Some(closed(A, "A:1-10")), Some(replica(B, "A:1-9")), 0, "stay 0")]
#[case::switched_too_early(Some(closed(A, "A:1-10")), Some(primary(B, "A:1-9,B:1")), 30, "fork 1")]
#[case::demoted_and_fed(Some(replica(A, "A:1-10")), Some(primary(B, "A:1-9,B:1")), 600, "stay 0")]
#[case::both_closed(Some(closed(A, "A:1-10")), Some(closed(B, "A:1-10")), 600, "stay 0")]
#[case::nobody(None, None, 600, "wait")]
fn what_two_servers_say_decides(
    #[case] a: Option<View>,
    #[case] b: Option<View>,
    #[case] gone_for: u64,
    #[case] expected: &str,
) {
    let archived = set("A:1-10");
    let gone_for = Duration::from_secs(gone_for);
    let choice = choose(&[seen(a), seen(b)], Some(A), Some(&archived), gone_for);
    assert_eq!(word(&choice), expected, "{choice:?}");
}

#[test]
fn a_lagging_replica_that_is_asked_first_is_passed_over() {
    let archived = set("A:1-10");
    let servers = [None, Some(orphan(B, "A:1-5")), Some(primary(C, "A:1-10"))].map(seen);
    assert_eq!(choose(&servers, Some(A), Some(&archived), Duration::ZERO), Choice::Join(2));
    // Nor is a fork followed while a server that has everything can be gone on from.
    let servers = [None, Some(primary(B, "A:1-5,B:1")), Some(replica(C, "A:1-10"))].map(seen);
    assert_eq!(choose(&servers, Some(A), Some(&archived), FORK_AFTER), Choice::Join(2));
}

#[test]
fn transactions_that_a_server_has_purged_cannot_be_gone_on_from() {
    let archived = set("A:1-10");
    let purged = View { purged: set("A:1-12"), ..primary(B, "A:1-15") };
    let choice = choose(&[seen(None), seen(Some(purged))], Some(A), Some(&archived), FORK_AFTER);
    let Choice::Fork(1, reason) = choice else { panic!("{choice:?}") };
    assert!(reason.contains("has purged") && reason.contains(":11-12"), "{reason}");
}

#[rstest]
#[case::the_same(primary(A, "A:1-3"), "stay 0")]
#[case::another_with_all(orphan(B, "A:1-11"), "join 0")]
#[case::another_that_is_behind(replica(B, "A:1-9"), "wait")]
#[case::another_database(primary(B, "B:1-100"), "fork 0")]
#[case::restored_from_a_backup(primary(B, "A:1-7"), "fork 0")]
fn behind_a_single_address_is_the_source(#[case] view: View, #[case] expected: &str) {
    let archived = set("A:1-10");
    let choice = choose(&[seen(Some(view))], Some(A), Some(&archived), Duration::ZERO);
    assert_eq!(word(&choice), expected, "{choice:?}");
}

#[test]
fn a_first_capture_takes_the_first_that_takes_writes() {
    let servers = [Some(replica(A, "A:1")), Some(primary(B, "A:1"))].map(seen);
    assert_eq!(choose(&servers, None, None, Duration::ZERO), Choice::Stay(1));
    let servers = [None, Some(replica(B, "A:1"))].map(seen);
    assert_eq!(choose(&servers, None, None, Duration::ZERO), Choice::Stay(1));
}

#[test]
fn a_wait_names_every_server_and_its_reason() {
    let servers = [None, Some(orphan(B, "A:1-9")), Some(closed(C, "A:1-10"))].map(seen);
    let choice = choose(&servers, Some(A), Some(&set("A:1-10")), FORK_AFTER);
    let Choice::Wait(why) = choice else { panic!("{choice:?}") };
    let lacks = set("A:10");
    for part in
        ["it is gone", &format!("lacks {lacks}"), "has all that is archived, and is read-only"]
    {
        assert!(why.contains(part), "{why}");
    }
}
