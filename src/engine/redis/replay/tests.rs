//! Every cut of a stream, in pieces of every length.

use super::*;
use crate::error::Class;

/// Commands, and whether each is passed on.
const COMMANDS: [(&[&str], bool); 11] = [
    (&["SET", "a", "1"], true),
    (&["PING"], false),
    (&["SELECT", "3"], true),
    (&["publish", "channel", "*1\r\n$4\r\nPING\r\n"], false),
    (&["MULTI"], true),
    (&["SPUBLISH", "c", "m"], false),
    (&["LPUSH", "l", "x"], true),
    (&["EXEC"], true),
    (&["REPLCONF", "GETACK", "*"], false),
    (&["A-NAME-THAT-IS-LONGER-THAN-ANY-COMMAND-OF-REDIS", "x"], true),
    (&["DEL", "a"], true),
];

const BEGIN: u64 = 5000;

fn wire(args: &[&str]) -> Vec<u8> {
    let args: Vec<_> = args.iter().map(|a| a.as_bytes()).collect();
    encode(&args)
}

fn stream() -> Vec<u8> {
    COMMANDS.iter().flat_map(|(args, _)| wire(args)).collect()
}

fn place(offset: u64) -> Position {
    Position { db: 2, ..Position::new("id", offset) }
}

/// The stream as the archive gives it back, from 31 bytes before `BEGIN` on.
fn archive(piece: usize) -> mpsc::Receiver<Result<Piece>> {
    let before = [wire(&["SELECT", "2"]), wire(&["INCR", "n"])].concat();
    let bytes = [before.as_slice(), &stream()].concat();
    let (sender, pieces) = mpsc::channel(10_000);
    let at = Position { db: 9, ..Position::new("id", BEGIN - before.len() as u64) };
    sender.try_send(Ok(Piece::Log { at, head: Bytes::new() })).unwrap();
    for piece in bytes.chunks(piece) {
        sender.try_send(Ok(Piece::Bytes(Bytes::copy_from_slice(piece)))).unwrap();
    }
    pieces
}

async fn replay(piece: usize, cut: u64, databases: Option<u32>) -> Result<(Vec<u8>, u64, Applied)> {
    let cut = Cut::At(place(cut));
    let mut replay = Replay::new(archive(piece), &place(BEGIN), &cut, databases)?;
    let (mut out, mut whole) = (vec![], 0);
    while let Some(step) = replay.next().await? {
        whole = step.whole.map_or(whole, |n| out.len() + n);
        out.extend_from_slice(&step.bytes);
    }
    out.truncate(whole);
    let db_max = u64::from(replay.db_max());
    Ok((out, db_max, replay.finish().await))
}

/// What is to be executed up to `cut`, its records, and where the last one begins.
fn model(cut: u64) -> (Vec<u8>, u64, u64) {
    if cut == BEGIN {
        return (vec![], 0, 0);
    }
    let (mut at, mut out, mut block, mut in_multi) = (BEGIN, wire(&["SELECT", "2"]), vec![], false);
    let (mut records, mut record_start, mut last) = (0, BEGIN, 0);
    for (args, passed) in COMMANDS {
        if !in_multi {
            record_start = at;
        }
        at += wire(args).len() as u64;
        if at > cut {
            break;
        }
        if passed {
            block.extend(wire(args));
        }
        in_multi = (in_multi || args[0] == "MULTI") && args[0] != "EXEC";
        if !in_multi {
            out.append(&mut block);
            if passed && args[0] != "SELECT" {
                (records, last) = (records + 1, record_start);
            }
        }
    }
    (out, records, last)
}

#[tokio::test]
async fn every_cut_gives_the_whole_records_before_it() {
    let end = BEGIN + stream().len() as u64;
    for piece in [1, 7, 4096] {
        for cut in BEGIN..=end {
            let (out, _, applied) = replay(piece, cut, Some(16)).await.unwrap();
            let (expected, records, last) = model(cut);
            assert_eq!(
                String::from_utf8_lossy(&out),
                String::from_utf8_lossy(&expected),
                "cut at {cut} in pieces of {piece}"
            );
            assert_eq!(applied.records, records, "cut at {cut}");
            let name = |at: u64| (at > 0).then(|| format!("id:{at}"));
            assert_eq!(applied.last.map(|l| l.position), name(last), "cut at {cut}");
            let left_out = applied.first_left_out.map(|l| l.position);
            assert_eq!(left_out.is_none(), cut == end, "cut at {cut}: {left_out:?}");
        }
    }
    let (_, db_max, applied) = replay(64, end, None).await.unwrap();
    assert_eq!((db_max, applied.bytes), (3, end - BEGIN));
    assert_eq!(applied.first.unwrap().position, "id:5000");
    // PING, SELECT and PUBLISH behind the cut are no records.
    let cut = BEGIN + wire(&["SET", "a", "1"]).len() as u64;
    let (_, _, applied) = replay(64, cut, None).await.unwrap();
    let multi: usize = COMMANDS[..4].iter().map(|(args, _)| wire(args).len()).sum();
    assert_eq!(applied.first_left_out.unwrap().position, format!("id:{}", BEGIN + multi as u64));
}

#[tokio::test]
async fn an_archive_that_does_not_reach_the_cut_is_an_error() {
    let end = BEGIN + stream().len() as u64;
    let error = replay(64, end + 1, None).await.unwrap_err();
    assert_eq!(error.class(), Class::Corrupt);
    assert!(error.to_string().contains(&format!("ends at {end}")), "{error}");
    // A hole, another database and another beginning.
    let broken: [&[(u64, u32, &[u8])]; 4] = [
        &[(BEGIN, 2, b"*1\r\n$4\r\nPING\r\n"), (BEGIN + 15, 2, b"x")],
        &[(BEGIN, 2, b"*1\r\n$4\r\nPING\r\n"), (BEGIN + 14, 3, b"x")],
        &[(BEGIN + 1, 2, b"*1\r\n$4\r\nPING\r\n")],
        &[(BEGIN - 3, 2, b"*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPING\r\n")],
    ];
    for pieces in broken {
        let (sender, receiver) = mpsc::channel(9);
        for (offset, db, bytes) in pieces {
            let at = Position { db: *db, ..Position::new("id", *offset) };
            sender.try_send(Ok(Piece::Log { at, head: Bytes::new() })).unwrap();
            sender.try_send(Ok(Piece::Bytes(Bytes::copy_from_slice(bytes)))).unwrap();
        }
        drop(sender);
        let cut = Cut::At(place(end));
        let mut replay = Replay::new(receiver, &place(BEGIN), &cut, None).unwrap();
        let error = loop {
            match replay.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("reached the cut over {pieces:?}"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.class(), Class::Corrupt, "{error}");
    }
}

#[tokio::test]
async fn a_database_that_the_target_lacks_stops_the_replay() {
    let end = BEGIN + stream().len() as u64;
    assert!(replay(64, end, Some(4)).await.is_ok());
    for databases in [2, 3] {
        let error = replay(64, end, Some(databases)).await.unwrap_err();
        assert!(error.to_string().contains("has only"), "{error}");
    }
}

/// Files of an append-only log as the archive gives them back.
fn files(logs: &[(&str, &[&[&str]])]) -> mpsc::Receiver<Result<Piece>> {
    let (sender, pieces) = mpsc::channel(100);
    for (log, commands) in logs {
        let at = Position::new(*log, 0);
        sender.try_send(Ok(Piece::Log { at, head: Bytes::new() })).unwrap();
        for command in *commands {
            sender.try_send(Ok(Piece::Bytes(wire(command).into()))).unwrap();
        }
    }
    pieces
}

async fn replay_files(logs: &[(&str, &[&[&str]])], cut: Position) -> Result<Vec<u8>> {
    let begin = Position::new("a.1.incr.aof", 0);
    let mut replay = Replay::new(files(logs), &begin, &Cut::At(cut), None)?;
    let mut out = vec![];
    while let Some(step) = replay.next().await? {
        out.extend_from_slice(&step.bytes);
    }
    Ok(out)
}

#[tokio::test]
async fn each_file_begins_in_database_0_and_a_baseline_may_stand_before_an_empty_one() {
    let (first, second) = (["SELECT", "3"], ["SET", "a", "1"]);
    let end = wire(&second).len() as u64;
    let logs: [(&str, &[&[&str]]); 3] =
        [("a.1.incr.aof", &[]), ("a.2.incr.aof", &[&first]), ("a.3.incr.aof", &[&second])];
    let out = replay_files(&logs, Position::new("a.3.incr.aof", end)).await.unwrap();
    let zero = ["SELECT", "0"];
    assert_eq!(out, [wire(&zero), wire(&first), wire(&zero), wire(&second)].concat());
    // Of a file that the baseline's place is not in, nothing says what came before it.
    let error = replay_files(&logs[1..], Position::new("a.3.incr.aof", end)).await.unwrap_err();
    assert_eq!(error.class(), Class::Corrupt, "{error}");
}

#[tokio::test]
async fn a_server_that_was_promoted_at_the_baselines_place_goes_on_from_it() {
    let (sender, pieces) = mpsc::channel(9);
    let (before, behind) = (place(BEGIN), Position { db: 2, ..Position::new("next", BEGIN) });
    let set = wire(&["SET", "a", "1"]);
    for at in [before.clone(), behind] {
        sender.try_send(Ok(Piece::Log { at, head: Bytes::new() })).unwrap();
    }
    sender.try_send(Ok(Piece::Bytes(set.clone().into()))).unwrap();
    drop(sender);
    let cut = Cut::At(Position::new("next", BEGIN + set.len() as u64));
    let mut replay = Replay::new(pieces, &before, &cut, None).unwrap();
    let mut out = vec![];
    while let Some(step) = replay.next().await.unwrap() {
        out.extend_from_slice(&step.bytes);
    }
    assert_eq!(out, [wire(&["SELECT", "2"]), set].concat());
}
