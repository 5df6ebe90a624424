//! The parsers as targets for a fuzzer: each takes arbitrary bytes, must not panic, and must hold
//! what it promises.
//!
//! `fuzz/` holds the targets for cargo-fuzz; `fixtures/corpus/` holds bytes of real servers, which
//! the tests below put through the same functions.

use super::changes::Changes;
use super::event::{
    Checksum, FormatDescription, GtidEvent, HEAD_BYTES, Head, Heartbeat, MAGIC, Query, Rotate,
    body, kind, parse_executed_list, renew_crc,
};
use super::executed::Executed;
use super::gtid::GtidSet;
use super::maria::BinlogState;
use super::packet::{ANSWER_LIMIT, FragmentDecoder, PacketCodec};
use super::shape::{Shape, file_head};
use super::stream::{End, Splitter, Track};
use crate::engine::decode::Interest;
use crate::error::Result;
use crate::position::Position;
use bytes::{Bytes, BytesMut};
use tokio_util::codec::Decoder;

/// Packets as they come over the wire: read whole, and in fragments of the bytes as they arrive.
/// The first byte says in which pieces they arrive.
pub fn packets(data: &[u8]) {
    let Some((piece, wire)) = data.split_first() else { return };
    let mut codec = PacketCodec::new(ANSWER_LIMIT);
    let (mut src, mut whole) = (BytesMut::from(wire), Vec::new());
    let clean = loop {
        match codec.decode(&mut src) {
            Ok(Some(packet)) => whole.push(packet.to_vec()),
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    let mut decoder = FragmentDecoder::new(0);
    let (mut arrived, mut packets, mut done) = (BytesMut::new(), Vec::<Vec<u8>>::new(), 0);
    'wire: for piece in wire.chunks(usize::from(*piece) * 37 + 1) {
        arrived.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut arrived) {
                Ok(Some(fragment)) => {
                    if fragment.first {
                        packets.push(vec![]);
                    }
                    if let Some(packet) = packets.last_mut() {
                        packet.extend_from_slice(&fragment.bytes);
                    }
                    done += usize::from(fragment.last);
                }
                Ok(None) => break,
                Err(_) => break 'wire,
            }
        }
    }
    packets.truncate(done);
    // Both ways find the same packets, as far as the first one that is wrong.
    let both = whole.len().min(packets.len());
    assert_eq!(whole.get(..both), packets.get(..both), "packets differ");
    assert!(!clean || whole.len() == packets.len(), "{} and {}", whole.len(), packets.len());
}

/// One event: its head, and its body as that of every type that is understood.
pub fn event(data: &[u8]) {
    let Ok(head) = Head::parse(data) else { return };
    assert_eq!(head.to_bytes()[..], data[..HEAD_BYTES], "a head that reads differently");
    drop(FormatDescription::parse(data));
    drop(file_head(&[&MAGIC, data].concat()));
    for checksum in [Checksum::None, Checksum::Crc32] {
        let Ok(body) = body(data, checksum) else { continue };
        for kind in [kind::GTID, kind::ANONYMOUS_GTID, kind::GTID_TAGGED, kind::MARIA_GTID] {
            drop(GtidEvent::parse(&Head { kind, ..head }, body));
        }
        for kind in [kind::HEARTBEAT, kind::HEARTBEAT_V2] {
            drop(Heartbeat::parse(&Head { kind, ..head }, body));
        }
        for kind in [kind::PREVIOUS_GTIDS, kind::MARIA_GTID_LIST] {
            drop(parse_executed_list(kind, body));
        }
        drop(Rotate::parse(body));
        if let Ok(query) = Query::parse(body) {
            query.is_end();
            for whole in [false, true] {
                drop(query.uncompress(whole, &mut Vec::new()));
            }
        }
    }
}

/// GTID sets of both families: as events carry them, and as people write them.
pub fn gtids(data: &[u8]) {
    if let Ok(set) = GtidSet::decode(data) {
        assert_eq!(set.to_string().parse::<GtidSet>().ok(), Some(set), "a set reads differently");
    }
    if let Ok(state) = BinlogState::decode(data) {
        let again = state.to_string().parse::<BinlogState>();
        assert_eq!(again.ok(), Some(state), "a state reads differently");
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(set) = text.parse::<Executed>() {
        let again = set.to_string().parse::<Executed>().ok();
        assert_eq!(again.as_ref(), Some(&set), "a text reads differently");
        assert!(set.is_subset(&set) && set.subtract(&set).is_empty());
        assert_eq!(set.contradicted_by(&set, None), None);
    }
}

/// A file behind its magic bytes, whatever pieces it comes in (the first byte says which), gives
/// the same records. Checksums are made right first, so that what they cover is reached.
pub fn stream(data: &[u8]) {
    let Some((piece, log)) = data.split_first() else { return };
    let mut log = log.to_vec();
    renew_crcs(&mut log);
    let whole = follow(&log, log.len().max(1));
    assert_eq!(follow(&log, usize::from(*piece) + 1), whole, "pieces make a difference");
    let mut shape = Shape::new(MAGIC.len() as u64);
    drop(shape.push(Bytes::copy_from_slice(&log)));
}

/// A whole file, with its rows and their values, whatever pieces it comes in (as for [`stream`]).
pub fn changes(data: &[u8]) {
    let Some((piece, log)) = data.split_first() else { return };
    let mut log = log.to_vec();
    renew_crcs(&mut log);
    let rows = || Interest { rows: true, ..Interest::default() };
    let (at, log) = (Position::new("binlog.000001", 0), [&MAGIC[..], &log].concat());
    let piece = usize::from(*piece) + 1;
    crate::engine::fuzz::decode(|| Box::new(Changes::new(rows())), &at, &log, piece);
}

/// What a walk over a file finds: where records end, where the last whole event ends, the set
/// there, and whether it came to the end.
type Found = (Vec<u64>, u64, Option<String>, bool);

fn follow(log: &[u8], piece: usize) -> Found {
    let (mut splitter, mut records) = (Splitter::default(), vec![]);
    let mut track = Track::new("binlog.000001", MAGIC.len() as u64, None);
    let mut walk = || -> Result<()> {
        for piece in log.chunks(piece) {
            splitter.push(Bytes::copy_from_slice(piece));
            while let Some(part) = splitter.next()? {
                let end = track.take(&part)?;
                assert!(track.whole <= track.offset);
                if let Some(End::Record(_)) = end {
                    records.push(track.offset);
                }
            }
        }
        Ok(())
    };
    let is_good = walk().is_ok();
    let gtids = track.gtids.as_ref().map(Executed::to_string);
    (records, track.whole, gtids, is_good)
}

fn renew_crcs(mut log: &mut [u8]) {
    while let Ok(head) = Head::parse(log)
        && let Some((event, rest)) = log.split_at_mut_checked(head.length as usize)
    {
        renew_crc(event);
        log = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    type Target = fn(&[u8]);

    /// Each with the part of the corpus that it takes.
    const TARGETS: [(&str, Target); 5] = [
        ("packets", packets),
        ("event", event),
        ("gtids", gtids),
        ("stream", stream),
        ("stream", changes),
    ];

    /// How often each file is spoiled.
    const ROUNDS: u32 = 300;

    /// All files of one part of the corpus.
    fn corpus(part: &str) -> Vec<Vec<u8>> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/corpus").join(part);
        let read = |entry: std::io::Result<std::fs::DirEntry>| {
            std::fs::read(entry.unwrap().path()).unwrap()
        };
        let files: Vec<Vec<u8>> = std::fs::read_dir(&dir).unwrap().map(read).collect();
        assert!(files.len() >= 2, "{}", dir.display());
        files
    }

    #[test]
    fn what_real_servers_send_goes_through_every_fuzz_target() {
        for (part, target) in TARGETS {
            for bytes in corpus(part) {
                target(&bytes);
            }
        }
    }

    #[test]
    fn every_fuzz_target_bears_what_real_servers_send_with_something_wrong_in_it() {
        for (part, target) in TARGETS {
            for bytes in corpus(part) {
                crate::engine::mutate::each(&bytes, ROUNDS, target);
            }
        }
    }
}
