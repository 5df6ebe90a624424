//! The capture path on dumps that are made here, without a server.

use super::*;
use crate::engine::mysql::auth::ServerError;
use crate::engine::mysql::event::{artificial_rotate, build, heartbeat_v2};
use crate::engine::mysql::flavor::Flavor;
use crate::engine::mysql::packet::{MAX_FRAME, PacketCodec, Packets};
use crate::engine::mysql::stream::tests::{
    file, format_description, head, previous_gtids, transaction, uuid,
};
use crate::engine::tls::Stream;
use crate::engine::{Endpoint, Secret, TlsOptions};
use crate::error::Class;
use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use tokio_util::codec::Encoder;

const C: Checksum = Checksum::Crc32;
const LOG: &str = "binlog.000001";

fn facts(end: u64) -> Facts {
    Facts {
        version: "9.7.4".into(),
        flavor: Flavor::parse("9.7.4").unwrap(),
        identity: "u".into(),
        server_id: 1,
        executed: Executed::default(),
        purged: Executed::default(),
        current: (LOG.into(), end),
        named: true,
        resets: 0,
        skew_micros: 0,
        status: "SHOW BINARY LOG STATUS",
        files: vec![],
    }
}

/// Splits a file's bytes behind the magic into its events.
fn events(mut log: &[u8]) -> Vec<Vec<u8>> {
    let mut events = vec![];
    while !log.is_empty() {
        let (event, rest) = log.split_at(Head::parse(log).unwrap().length as usize);
        events.push(event.to_vec());
        log = rest;
    }
    events
}

/// The events of a dump from the beginning of the file.
fn dump(log: &[u8]) -> Vec<Vec<u8>> {
    let mut sent = vec![artificial_rotate(3, LOG, 4, C)];
    sent.extend(events(log));
    sent
}

/// Sends events, or other packets if they are no events, and then hangs up.
async fn run(start: Start, facts: &Facts, sent: Vec<Vec<u8>>) -> (Vec<Captured>, Stop) {
    let mut wire = BytesMut::new();
    let mut codec = PacketCodec::new(usize::MAX);
    for event in sent {
        let packet = if event.first() == Some(&0xff) { event } else { [vec![0], event].concat() };
        codec.encode(&packet[..], &mut wire).unwrap();
    }
    let (mut server, client) = tokio::io::duplex(100_000);
    let packets = Packets::new(Box::new(client) as Stream, PacketCodec::new(0));
    let reader = FragmentReader::new(packets, "the source".into());
    let (out, mut captured) = mpsc::channel(1000);
    let nobody = Endpoint {
        host: "127.0.0.1".into(),
        port: 1,
        user: String::new(),
        password: Secret::default(),
        tls: TlsOptions::default(),
    };
    let opened = AtomicBool::new(false);
    let (mut pump, asked, position) = Pump::new(
        &out,
        facts,
        Aside::new(&nobody, None),
        Timing::default(),
        start,
        Some((LOG.into(), 1)),
        &opened,
    );
    assert_eq!((asked.as_str(), position >= 4), (LOG, true));
    let send = async {
        // The other side may have hung up before.
        server.write_all(&wire).await.ok();
        // Longer than bytes wait for more.
        tokio::time::sleep(2 * FLUSH_AFTER).await;
        drop(server);
    };
    let (stop, ()) = tokio::join!(pump.run(reader), send);
    drop(pump);
    drop(out);
    let mut all = vec![];
    while let Some(one) = captured.recv().await {
        all.push(one);
    }
    (all, stop)
}

fn bytes(captured: &[Captured]) -> Vec<u8> {
    let bytes = |one: &Captured| match one {
        Captured::Chunk(chunk) => chunk.bytes.clone(),
        _ => vec![],
    };
    captured.iter().flat_map(bytes).collect()
}

fn begin() -> Start {
    Start::Begin { broken: None }
}

fn place(offset: u64, set: &str) -> (Position, Executed) {
    let gtids: Executed = set.parse().unwrap();
    (Position { gtids: gtids.to_string(), ..Position::new(LOG, offset) }, gtids)
}

fn message(stop: &Stop) -> (&'static str, String) {
    match stop {
        Stop::Closed => ("closed", String::new()),
        Stop::Broken(reason) => ("broken", reason.clone()),
        Stop::BrokeOff(error) => ("broke off", error.to_string()),
        Stop::Failed(error) => (error.class().word(), error.to_string()),
    }
}

#[tokio::test]
async fn made_up_events_are_not_handed_over() {
    let log = file(&[vec![20, 30], vec![9]], C);
    let mut sent = dump(&log);
    sent.push(heartbeat_v2(3, LOG, 4 + log.len() as u64, C));
    let (all, stop) = run(begin(), &facts(4), sent).await;
    assert_eq!(message(&stop).0, "unavailable", "{stop:?}");
    assert!(bytes(&all) == [&MAGIC[..], &log].concat());
    let Some(Captured::Opened { at, continuity, .. }) = all.first() else { panic!("{all:?}") };
    assert_eq!((at.offset, &at.gtids), (0, &format!("{}:1-2", uuid())));
    assert_eq!(*continuity, Continuity::Begins);
}

#[tokio::test]
async fn a_file_with_other_transactions_before_it_breaks_the_history_off() {
    let log = file(&[vec![9]], C);
    for (set, why) in [("1-4", "never came"), ("1-2", "lacks")] {
        let mut sent = dump(&log);
        sent.push(artificial_rotate(3, "binlog.000002", 4, C));
        sent.push(format_description(C));
        sent.push(previous_gtids(&format!("{}:{set}", uuid()), C));
        sent.push(transaction(9, &[9], C));
        let (all, stop) = run(begin(), &facts(4), sent).await;
        let (kind, text) = message(&stop);
        assert_eq!(kind, "broke off", "{text}");
        assert!(text.contains(why), "{text}");
        assert!(matches!(all.last(), Some(Captured::Log(at)) if at.log == "binlog.000002"));
        assert!(bytes(&all) == [&MAGIC[..], &log].concat());
    }
}

#[tokio::test]
async fn events_that_the_source_lost_break_the_history_off_once() {
    let log = [file(&[], C), build(head(kind::INCIDENT), &[1, 0, 0], C)].concat();
    let (_, stop) = run(begin(), &facts(4), dump(&log)).await;
    assert_eq!(message(&stop).0, "broke off", "{stop:?}");
    // The next connection finds it in a file whose history it does not claim.
    let (all, stop) = run(begin(), &facts(4 + log.len() as u64), dump(&log)).await;
    assert_eq!(message(&stop).0, "unavailable", "{stop:?}");
    assert!(bytes(&all) == [&MAGIC[..], &log].concat());
}

#[tokio::test]
async fn what_is_no_dump_is_an_error() {
    let log = file(&[vec![9]], C);
    let good = dump(&log);
    let end = 4 + log.len() as u64;
    let with = |extra: Vec<u8>| [good.clone(), vec![extra]].concat();
    let mut flipped = good.clone();
    flipped[4][30] ^= 1;
    let two_in_one = [transaction(4, &[], C), transaction(5, &[], C)].concat();
    let cases = [
        ("beginning of a dump", events(&log)[1..].to_vec()),
        ("begins elsewhere", vec![artificial_rotate(3, "binlog.000009", 4, C)]),
        ("second FORMAT", with(format_description(C))),
        ("exactly one event", with(two_in_one)),
        ("exactly one event", with(transaction(4, &[], C)[..40].to_vec())),
        ("exactly one event", with(vec![])),
        ("believes to be at", with(heartbeat_v2(3, LOG, end - 1, C))),
        ("believes to be at", with(heartbeat_v2(3, "binlog.000009", end, C))),
        ("odd place", with(artificial_rotate(3, LOG, 4, C))),
        ("comes twice", with(transaction(3, &[], C))),
        ("checksum", flipped),
    ];
    for (what, sent) in cases {
        let (_, stop) = run(begin(), &facts(4), sent).await;
        let (kind, text) = message(&stop);
        assert!(matches!(kind, "corrupt" | "broke off"), "{what}: {kind} {text}");
        assert!(text.contains(what), "{what}: {text}");
    }
    let refused = ServerError { code: 1236, message: "no such log".into() }.encode();
    let (_, stop) = run(begin(), &facts(4), vec![refused]).await;
    let Stop::Failed(error) = stop else { panic!("{stop:?}") };
    assert_eq!(error.class(), Class::Unavailable);
    assert!(error.to_string().contains("no such log"), "{error}");
}

#[tokio::test]
async fn a_file_is_walked_to_the_place_and_must_agree_with_it() {
    let log = file(&[vec![20, 30], vec![9]], C);
    let end = 4 + log.len() as u64;
    let first = end - transaction(4, &[9], C).len() as u64;
    let walk = async |offset: u64, n: u64| {
        let (at, gtids) = place(offset, &format!("{}:1-{n}", uuid()));
        run(Start::Walk { at, gtids }, &facts(end), dump(&log)).await
    };
    for (offset, n) in [(first, 3), (end, 4)] {
        let (all, stop) = walk(offset, n).await;
        assert_eq!(message(&stop).0, "unavailable", "{stop:?}");
        assert!(matches!(&all[0], Captured::Opened { at, continuity: Continuity::Continues, .. }
            if at.offset == offset));
        assert!(bytes(&all) == log[usize::try_from(offset).unwrap() - 4..]);
    }
    for (offset, n, why) in
        [(first, 4, "other transactions"), (first - 1, 3, "no boundary"), (first + 9, 3, "no")]
    {
        let (all, stop) = walk(offset, n).await;
        let (kind, text) = message(&stop);
        assert!(kind == "broken" && text.contains(why), "{offset} {n}: {text}");
        assert!(all.is_empty());
    }
}

#[tokio::test]
async fn in_the_middle_the_repeated_format_is_not_stored() {
    let log = file(&[vec![9], vec![9]], C);
    let last = transaction(4, &[9], C);
    let (at, gtids) = place(4 + (log.len() - last.len()) as u64, &format!("{}:1-3", uuid()));
    let offset = at.offset;
    let middle = |begun: u32| {
        let format = build(
            Head { timestamp: begun, ..head(kind::FORMAT_DESCRIPTION) },
            &format_description(C)[19..][..100],
            C,
        );
        [vec![artificial_rotate(3, LOG, offset, C), format], events(&last)].concat()
    };
    let start = || Start::Middle { at: at.clone(), gtids: gtids.clone() };
    let (all, stop) = run(start(), &facts(9), middle(1)).await;
    assert_eq!(message(&stop).0, "unavailable", "{stop:?}");
    assert!(bytes(&all) == last);
    // The last stream was in a file of this name that was begun at another time.
    let (all, stop) = run(start(), &facts(9), middle(2)).await;
    assert_eq!(message(&stop).0, "broken", "{stop:?}");
    assert!(all.is_empty());
}

#[tokio::test]
async fn beyond_4_gib_places_and_heartbeats_have_all_their_bits() {
    let last = transaction(4, &[9], C);
    let (at, gtids) = place((5 << 30) + 7, &format!("{}:1-3", uuid()));
    let end = at.offset + last.len() as u64;
    let start = || Start::Middle { at: at.clone(), gtids: gtids.clone() };
    let sent = |said| {
        let begin = vec![artificial_rotate(3, LOG, at.offset, C), format_description(C)];
        [begin, events(&last), vec![heartbeat_v2(3, LOG, said, C)]].concat()
    };
    let (all, stop) = run(start(), &facts(9), sent(end)).await;
    assert_eq!(message(&stop).0, "unavailable", "{stop:?}");
    let Some(Captured::Chunk(chunk)) = all.last() else { panic!("{all:?}") };
    assert_eq!((chunk.start, chunk.end()), (at.offset, end));
    assert_eq!(chunk.whole.as_ref().unwrap().offset, end);
    let (_, stop) = run(start(), &facts(9), sent(end & 0xffff_ffff)).await;
    assert!(message(&stop).1.contains("believes to be at"), "{stop:?}");
}

#[tokio::test]
async fn chunks_keep_their_length_whatever_comes_first() {
    let many: Vec<String> = (0..200_000).map(|i| (2 * i + 5).to_string()).collect();
    let mut log = format_description(C);
    log.extend(previous_gtids(&format!("{}:{}", uuid(), many.join(":")), C));
    assert!(log.len() > 3 * CHUNK_BYTES);
    // Events of lengths at which their packets end in an empty frame.
    log.extend(transaction(3, &[9, MAX_FRAME - 1 - 19 - 4, 2 * MAX_FRAME - 1 - 19 - 4], C));
    let (all, _) = run(begin(), &facts(4), dump(&log)).await;
    assert!(bytes(&all) == [&MAGIC[..], &log].concat());
    let mut at = 0;
    for one in &all {
        if let Captured::Chunk(chunk) = one {
            assert!(chunk.start == at && chunk.bytes.len() <= CHUNK_BYTES);
            at = chunk.end();
        }
    }
    let Some(Captured::Chunk(last)) = all.last() else { panic!("no chunk") };
    assert_eq!((last.records, last.whole.as_ref().unwrap().offset), (1, at));
}
