//! Packets of the client/server protocol: what stands between the socket and everything else.
//!
//! A packet is one payload in frames of up to 16 MiB − 1, each with a sequence number (MySQL
//! manual, "Protocol Basics"). Commands and answers are read whole, up to a limit, by
//! [`PacketCodec`]. Events, which may have 1 GiB, are read in fragments by [`FragmentDecoder`] and
//! written in pieces by [`Framer`].
//!
//! **Invariant:** a frame out of sequence is an error; no length that a peer announces makes this
//! module reserve memory for more than has arrived.

use super::semisync::Ack;
use crate::engine::tls::{self, Stream};
use crate::error::{Class, Error, Result};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::codec::{Decoder, Encoder, Framed};

/// The largest payload of one frame. A frame of exactly this length is followed by another one.
pub(crate) const MAX_FRAME: usize = 0xff_ffff;

/// Length of a frame's head: 3 bytes of length, 1 of sequence.
const FRAME_HEAD: usize = 4;

/// The largest answer that is read whole: handshakes, result rows, keys, errors.
pub(crate) const ANSWER_LIMIT: usize = 64 << 20;

/// The first fragment of a packet holds at least this much of it, or all of it.
pub(crate) const FIRST_FRAGMENT: usize = 64 << 10;

/// How long the source may take to take an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How much room a read from the socket finds, in bytes.
const READ_BYTES: usize = 256 << 10;

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// Reads a frame's head: payload length and sequence number.
fn frame_head(bytes: &[u8]) -> Option<(usize, u8)> {
    let &[a, b, c, sequence] = bytes.first_chunk::<FRAME_HEAD>()?;
    Some((u32::from_le_bytes([a, b, c, 0]) as usize, sequence))
}

/// A frame's head: payload length and sequence number, which counts on.
pub(crate) fn next_frame_head(len: usize, sequence: &mut u8) -> [u8; FRAME_HEAD] {
    let [a, b, c, _] = (len as u32).to_le_bytes();
    let head = [a, b, c, *sequence];
    *sequence = sequence.wrapping_add(1);
    head
}

fn check_sequence(expected: &mut u8, found: u8) -> io::Result<()> {
    if *expected != found {
        return Err(invalid(format!("packet {found} came where {expected} was due")));
    }
    *expected = expected.wrapping_add(1);
    Ok(())
}

/// Whole packets, up to a limit, in both directions. The sequence counts on through an exchange;
/// each new command begins with [`PacketCodec::restart`].
#[derive(Debug)]
pub(crate) struct PacketCodec {
    limit: usize,
    sequence: u8,
    /// Frames of a packet that goes on in another frame.
    parts: BytesMut,
}

impl PacketCodec {
    /// A codec that refuses to read packets of more than `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, sequence: 0, parts: BytesMut::new() }
    }

    /// Begins a new exchange: the next packet, in either direction, has number 0.
    pub(crate) fn restart(&mut self) {
        self.sequence = 0;
    }

    /// The number that the next packet has.
    pub(crate) fn sequence(&self) -> u8 {
        self.sequence
    }

    /// Goes on behind frames that were written past this codec.
    pub(crate) fn go_on_at(&mut self, sequence: u8) {
        self.sequence = sequence;
    }
}

impl Decoder for PacketCodec {
    type Item = Bytes;
    type Error = io::Error;

    fn decode(&mut self, src: &mut BytesMut) -> io::Result<Option<Bytes>> {
        while let Some((len, sequence)) = frame_head(src) {
            if self.parts.len() + len > self.limit {
                return Err(invalid(format!("a packet of more than {} bytes", self.limit)));
            }
            if src.len() < FRAME_HEAD + len {
                return Ok(None);
            }
            check_sequence(&mut self.sequence, sequence)?;
            src.advance(FRAME_HEAD);
            let payload = src.split_to(len);
            if len < MAX_FRAME && self.parts.is_empty() {
                return Ok(Some(payload.freeze()));
            }
            self.parts.unsplit(payload);
            if len < MAX_FRAME {
                return Ok(Some(std::mem::take(&mut self.parts).freeze()));
            }
        }
        Ok(None)
    }

    fn decode_eof(&mut self, src: &mut BytesMut) -> io::Result<Option<Bytes>> {
        match self.decode(src)? {
            None if !src.is_empty() || !self.parts.is_empty() => {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "ended within a packet"))
            }
            packet => Ok(packet),
        }
    }
}

impl Encoder<&[u8]> for PacketCodec {
    type Error = io::Error;

    fn encode(&mut self, payload: &[u8], to: &mut BytesMut) -> io::Result<()> {
        let mut framer = Framer { sequence: self.sequence, ..Framer::default() };
        framer.begin(payload.len() as u64, to);
        framer.put(payload, to)?;
        self.sequence = framer.sequence;
        Ok(())
    }
}

/// A connection on which whole packets travel.
pub(crate) type Packets<S> = Framed<S, PacketCodec>;

/// Reads the next packet of a conversation with `peer`.
///
/// # Errors
/// Unavailable, if the connection fails or ends. Corrupt, if it is no packet.
pub(crate) async fn receive<S>(packets: &mut Packets<S>, peer: &str) -> Result<Bytes>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match packets.next().await {
        Some(packet) => packet.map_err(|error| broken(error, peer)),
        None => Err(Error::unavailable(format!("{peer} closed the connection"))),
    }
}

/// Sends a packet of a conversation with `peer`.
///
/// # Errors
/// Unavailable, if the connection fails.
pub(crate) async fn send<S>(packets: &mut Packets<S>, payload: &[u8], peer: &str) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    packets.send(payload).await.map_err(|error| broken(error, peer))
}

/// What a failed read or write of packets means.
pub(crate) fn broken(error: io::Error, peer: &str) -> Error {
    let class = match error.kind() {
        _ if tls::is_tls(&error) => return tls::explain(peer, error),
        io::ErrorKind::InvalidData => Class::Corrupt,
        _ => Class::Unavailable,
    };
    Error::new(class, format!("connection with {peer}")).source(error)
}

/// Writes payloads that come in pieces as frames, one packet after the other.
#[derive(Debug, Default)]
pub(crate) struct Framer {
    sequence: u8,
    /// Bytes that still belong into the current frame, and into the packet behind that frame.
    frame_left: usize,
    behind: u64,
    /// Whether the current frame has its full length, so that another one must follow.
    full: bool,
}

impl Framer {
    /// A writer whose first packet has this number.
    pub(crate) fn new(sequence: u8) -> Self {
        Self { sequence, ..Self::default() }
    }

    /// Begins a packet of `len` bytes of payload. The one before must be complete.
    pub(crate) fn begin(&mut self, len: u64, to: &mut BytesMut) {
        self.behind = len;
        self.next_frame(to);
    }

    /// Adds a piece of the payload.
    ///
    /// # Errors
    /// If it is more than the packet's length leaves.
    pub(crate) fn put(&mut self, mut piece: &[u8], to: &mut BytesMut) -> io::Result<()> {
        while self.full && piece.len() >= self.frame_left {
            let (now, later) = piece.split_at(self.frame_left);
            to.put_slice(now);
            piece = later;
            self.next_frame(to);
        }
        if piece.len() > self.frame_left {
            return Err(invalid("more payload than the packet was announced with".into()));
        }
        to.put_slice(piece);
        self.frame_left -= piece.len();
        Ok(())
    }

    fn next_frame(&mut self, to: &mut BytesMut) {
        let len = usize::try_from(self.behind).unwrap_or(MAX_FRAME).min(MAX_FRAME);
        to.put_slice(&next_frame_head(len, &mut self.sequence));
        self.frame_left = len;
        self.full = len == MAX_FRAME;
        self.behind -= len as u64;
    }
}

/// A part of a packet's payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fragment {
    /// The bytes. If it is the first, at least [`FIRST_FRAGMENT`] or all of the payload.
    pub(crate) bytes: Bytes,
    /// Whether the packet begins with it.
    pub(crate) first: bool,
    /// Whether the packet ends with it.
    pub(crate) last: bool,
}

/// Splits packets of any size into fragments, as they arrive.
#[derive(Debug)]
pub(crate) struct FragmentDecoder {
    sequence: u8,
    /// Bytes of the current frame that were not handed out yet.
    frame_left: usize,
    /// Whether the packet goes on behind the current frame.
    more: bool,
    in_packet: bool,
    /// The next packet may have number 1.
    restarts: bool,
}

impl FragmentDecoder {
    /// A decoder whose first packet has this number.
    pub(crate) fn new(sequence: u8) -> Self {
        Self { sequence, frame_left: 0, more: false, in_packet: false, restarts: false }
    }
}

impl Decoder for FragmentDecoder {
    type Item = Fragment;
    type Error = io::Error;

    fn decode(&mut self, src: &mut BytesMut) -> io::Result<Option<Fragment>> {
        let mut first = false;
        if self.frame_left == 0 {
            let Some((len, sequence)) = frame_head(src) else { return Ok(None) };
            if !self.in_packet && src.len() < FRAME_HEAD + len.min(FIRST_FRAGMENT) {
                return Ok(None);
            }
            if !self.in_packet && std::mem::take(&mut self.restarts) && sequence == 1 {
                self.sequence = 1;
            }
            check_sequence(&mut self.sequence, sequence)?;
            src.advance(FRAME_HEAD);
            first = !self.in_packet;
            self.in_packet = true;
            self.frame_left = len;
            self.more = len == MAX_FRAME;
        }
        let len = self.frame_left.min(src.len());
        if len == 0 && self.frame_left > 0 {
            return Ok(None);
        }
        self.frame_left -= len;
        let last = self.frame_left == 0 && !self.more;
        self.in_packet = !last;
        Ok(Some(Fragment { bytes: src.split_to(len).freeze(), first, last }))
    }
}

/// Reads fragments from a connection through one buffer that is used again and again.
pub(crate) struct FragmentReader {
    io: Stream,
    buffer: BytesMut,
    decoder: FragmentDecoder,
    peer: String,
}

impl FragmentReader {
    /// Goes on with a connection that carried whole packets until now.
    pub(crate) fn new(packets: Packets<Stream>, peer: String) -> Self {
        let parts = packets.into_parts();
        let decoder = FragmentDecoder::new(parts.codec.sequence());
        Self { io: parts.io, buffer: parts.read_buf, decoder, peer }
    }

    /// The next fragment that has arrived already, if there is one.
    pub(crate) fn buffered(&mut self) -> Result<Option<Fragment>> {
        self.decoder.decode(&mut self.buffer).map_err(|error| broken(error, &self.peer))
    }

    /// The packet behind the current one may have number 1 again: so does a source that waits for
    /// an answer count on, as if it had read that answer (`net_clear` in `readSlaveReply`).
    pub(crate) fn may_restart(&mut self) {
        self.decoder.restarts = true;
    }

    /// Sends the answer to a semi-synchronous source: a packet of its own, with number 0.
    ///
    /// # Errors
    /// Unavailable, if the connection fails, or the source takes nothing any more.
    pub(crate) async fn answer(&mut self, ack: &Ack) -> Result<()> {
        let mut packet = BytesMut::new();
        let mut framer = Framer::new(0);
        framer.begin(ack.payload().len() as u64, &mut packet);
        framer.put(ack.payload(), &mut packet).map_err(|error| broken(error, &self.peer))?;
        let sending = async {
            self.io.write_all(&packet).await?;
            self.io.flush().await
        };
        match tokio::time::timeout(ANSWER_TIMEOUT, sending).await {
            Ok(sent) => sent.map_err(|error| broken(error, &self.peer)),
            Err(_) => Err(Error::unavailable(format!("{} takes no answers", self.peer))),
        }
    }

    /// Waits for more bytes. May be cancelled without loss.
    ///
    /// # Errors
    /// Unavailable, if the connection fails or ends.
    pub(crate) async fn fill(&mut self) -> Result<()> {
        // All fragments are dropped by now, as a rule; then this moves what is left to the front.
        if self.buffer.capacity() - self.buffer.len() < READ_BYTES / 4 {
            self.buffer.reserve(READ_BYTES);
        }
        match self.io.read_buf(&mut self.buffer).await {
            Ok(0) => Err(Error::unavailable(format!("{} closed the connection", self.peer))),
            Ok(_) => Ok(()),
            Err(error) => Err(broken(error, &self.peer)),
        }
    }
}

impl std::fmt::Debug for FragmentReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FragmentReader").field("peer", &self.peer).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    fn encoded(payloads: &[Vec<u8>]) -> BytesMut {
        let mut wire = BytesMut::new();
        let mut codec = PacketCodec::new(ANSWER_LIMIT);
        for payload in payloads {
            codec.encode(&payload[..], &mut wire).unwrap();
        }
        wire
    }

    /// Decodes `wire`, which arrives in pieces of the given length, into whole payloads.
    fn reassembled(mut wire: BytesMut, piece: usize) -> Vec<Vec<u8>> {
        let mut decoder = FragmentDecoder::new(0);
        let (mut payloads, mut arrived) = (vec![], BytesMut::new());
        while !wire.is_empty() {
            arrived.put(wire.split_to(piece.min(wire.len())));
            while let Some(fragment) = decoder.decode(&mut arrived).unwrap() {
                if fragment.first {
                    payloads.push(vec![]);
                    assert!(fragment.last || fragment.bytes.len() >= FIRST_FRAGMENT);
                }
                payloads.last_mut().unwrap().extend_from_slice(&fragment.bytes);
            }
        }
        assert!(arrived.is_empty() && !decoder.in_packet);
        payloads
    }

    #[rstest]
    #[case(0)]
    #[case(1)]
    #[case(FIRST_FRAGMENT)]
    #[case(MAX_FRAME - 1)]
    #[case(MAX_FRAME)]
    #[case(MAX_FRAME + 1)]
    #[case(2 * MAX_FRAME)]
    #[case(2 * MAX_FRAME + 100)]
    fn payloads_of_every_size_come_through(#[case] len: usize) {
        let payload: Vec<u8> = (0..len).map(|i| (i * 7 + i / 251) as u8).collect();
        let payloads = vec![payload, vec![1, 2, 3]];
        let wire = encoded(&payloads);
        assert_eq!(wire.len(), len + (len / MAX_FRAME + 1) * FRAME_HEAD + FRAME_HEAD + 3);
        assert!(reassembled(wire.clone(), 99_999) == payloads);
        let mut whole = PacketCodec::new(ANSWER_LIMIT);
        let mut src = wire;
        for payload in &payloads {
            assert!(whole.decode(&mut src).unwrap().unwrap() == payload);
        }
    }

    #[test]
    fn a_packet_over_the_limit_is_refused_before_it_has_arrived() {
        let mut codec = PacketCodec::new(1000);
        let mut src = BytesMut::from(&[0xe9, 3, 0, 0][..]);
        assert!(codec.decode(&mut src).is_err());
    }

    #[test]
    fn a_frame_out_of_sequence_is_refused() {
        for at in [3, 4 + 3 + 3] {
            let mut wire = encoded(&[vec![1, 2, 3], vec![4]]);
            wire[at] ^= 1;
            let mut whole = PacketCodec::new(100);
            let mut src = wire.clone();
            assert!((0..2).any(|_| whole.decode(&mut src).is_err()));
            let mut fragments = FragmentDecoder::new(0);
            assert!((0..2).any(|_| fragments.decode(&mut wire).is_err()));
        }
    }

    #[test]
    fn the_end_within_a_packet_is_an_error() {
        let mut wire = encoded(&[vec![1, 2, 3]]);
        wire.truncate(5);
        assert!(PacketCodec::new(100).decode_eof(&mut wire).is_err());
    }

    #[test]
    fn more_payload_than_announced_is_refused() {
        let (mut framer, mut to) = (Framer::default(), BytesMut::new());
        framer.begin(3, &mut to);
        framer.put(&[1, 2], &mut to).unwrap();
        assert!(framer.put(&[3, 4], &mut to).is_err());
    }

    proptest! {
        #[test]
        fn fragments_do_not_depend_on_how_bytes_arrive(
            lens in proptest::collection::vec(0..200_000_usize, 1..4), piece in 1..100_000_usize,
        ) {
            let payloads: Vec<Vec<u8>> =
                lens.iter().map(|&len| (0..len).map(|i| i as u8).collect()).collect();
            let mut wire = BytesMut::new();
            let mut framer = Framer::default();
            for payload in &payloads {
                framer.begin(payload.len() as u64, &mut wire);
                for part in payload.chunks(piece) {
                    framer.put(part, &mut wire).unwrap();
                }
            }
            prop_assert_eq!(&wire, &encoded(&payloads));
            prop_assert!(reassembled(wire, piece) == payloads);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut src = BytesMut::from(&bytes[..]);
            let mut whole = PacketCodec::new(100);
            while let Ok(Some(_)) = whole.decode(&mut src) {}
            let mut src = BytesMut::from(&bytes[..]);
            let mut fragments = FragmentDecoder::new(0);
            while let Ok(Some(_)) = fragments.decode(&mut src) {}
        }
    }
}
