//! Files that are walked: real ones, made-up ones, and broken ones.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

const AT: i64 = 1_714_532_400_123;

/// Writes an RDB file by hand.
#[derive(Debug, Clone, Default)]
struct File(Vec<u8>);

impl File {
    fn new(magic: &[u8]) -> Self {
        Self(magic.to_vec())
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn text(self, text: &[u8]) -> Self {
        assert!(text.len() < 64, "a short one");
        self.raw(&[text.len() as u8]).raw(text)
    }

    fn ms(self, at: i64) -> Self {
        self.raw(&at.to_le_bytes())
    }

    /// The end mark and the checksum.
    fn end(self) -> Vec<u8> {
        let mut file = self.raw(&[opcode::END]);
        let mut crc = Crc64::default();
        crc.update(&file.0);
        file.0.extend_from_slice(&crc.value().to_le_bytes());
        file.0
    }
}

fn walked(file: &[u8], by_ms: i64) -> Result<(Vec<u8>, Survey)> {
    let mut out = vec![];
    let survey = walk(file, &mut out, by_ms)?;
    Ok((out, survey))
}

/// A listpack of name, value and expiry.
fn listpack(fields: &[(&[u8], i64)]) -> Vec<u8> {
    let mut entries = vec![];
    for (name, at) in fields {
        for word in [name, &b"v"[..]] {
            entries.push(0x80 | word.len() as u8);
            entries.extend_from_slice(word);
            entries.push(1 + word.len() as u8);
        }
        if *at == 0 {
            entries.extend_from_slice(&[0, 1]);
        } else {
            entries.push(0xF4);
            entries.extend_from_slice(&at.to_le_bytes());
            entries.push(9);
        }
    }
    let mut out = (entries.len() as u32 + 7).to_le_bytes().to_vec();
    out.extend_from_slice(&(fields.len() as u16 * 3).to_le_bytes());
    out.extend_from_slice(&entries);
    out.push(0xFF);
    out
}

/// All forms that are known in a file of Redis, with expiries at `at`.
fn redis(at: i64) -> Vec<u8> {
    let packed = listpack(&[(b"a", at), (b"b", at + 5), (b"c", 0)]);
    let ids = |file: File, lengths: usize| file.raw(&vec![7; lengths]);
    let mut file = File::new(b"REDIS0012")
        .raw(&[opcode::AUX])
        .text(b"redis-ver")
        .text(b"8.0.6")
        .raw(&[opcode::AUX])
        .text(b"ctime")
        .raw(&[0xC2, 1, 2, 3, 4])
        .raw(&[opcode::MODULE_AUX, 0x81, 1, 2, 3, 4, 5, 6, 7, 8, 2, 2, 5])
        .text(b"x")
        .raw(&[0])
        .raw(&[opcode::FUNCTION])
        .text(b"#!lua name=x")
        .raw(&[opcode::SELECT, 0, opcode::RESIZE, 4, 2, opcode::SLOT_INFO, 1, 1, 1])
        .raw(&[opcode::EXPIRE_MS])
        .ms(at)
        .raw(&[opcode::IDLE, 0x40, 99, kind::STRING])
        .text(b"k")
        .text(b"v")
        .raw(&[opcode::FREQ, 9, kind::STRING])
        .text(b"lzf")
        .raw(&[0xC3, 3, 9])
        .raw(b"\0a\0")
        .raw(&[kind::STRING])
        .text(b"i8")
        .raw(&[0xC0, 1])
        .raw(&[kind::STRING])
        .text(b"long")
        .raw(&[0x80, 0, 0, 0, 70])
        .raw(&[b'x'; 70])
        .raw(&[kind::LIST])
        .text(b"l")
        .raw(&[2])
        .text(b"a")
        .text(b"b")
        .raw(&[kind::ZSET])
        .text(b"z")
        .raw(&[2])
        .text(b"a")
        .raw(&[255])
        .text(b"b")
        .text(b"1.5")
        .raw(&[kind::HASH])
        .text(b"h")
        .raw(&[1])
        .text(b"f")
        .text(b"v")
        .raw(&[kind::ZSET_2])
        .text(b"z2")
        .raw(&[1])
        .text(b"a")
        .ms(77)
        .raw(&[kind::MODULE_2])
        .text(b"m")
        .raw(&[9, 1, 4, 3, 0, 0, 0, 1, 4])
        .ms(3)
        .raw(&[0])
        .raw(&[kind::LIST_QUICKLIST_2])
        .text(b"q")
        .raw(&[1, 2])
        .text(b"packed")
        .raw(&[kind::SET_LISTPACK])
        .text(b"s")
        .text(b"packed");
    for (kind, lengths, group, seen) in
        [(kind::STREAM, 3, 2, 8), (kind::STREAM_2, 8, 3, 8), (kind::STREAM_3, 8, 3, 16)]
    {
        file = file.raw(&[kind]).text(b"x").raw(&[1]).text(&[1; 16]).text(b"packed");
        file = ids(file, lengths).raw(&[1]).text(b"group");
        file = ids(file, group).raw(&[1]).raw(&[3; 24]).raw(&[1]);
        file = file.raw(&[1]).text(b"consumer").raw(&vec![4; seen]).raw(&[1]).raw(&[3; 16]);
    }
    file.raw(&[opcode::SELECT, 11])
        .raw(&[kind::HASH_METADATA])
        .text(b"hm")
        .ms(at)
        .raw(&[2, 1])
        .text(b"a")
        .text(b"v")
        .raw(&[0])
        .text(b"b")
        .text(b"v")
        .raw(&[kind::HASH_LISTPACK_EX])
        .text(b"hl")
        .ms(at)
        .raw(&[0x80])
        .raw(&(packed.len() as u32).to_be_bytes())
        .raw(&packed)
        .end()
}

fn valkey(at: i64) -> Vec<u8> {
    File::new(b"VALKEY080")
        .raw(&[opcode::SELECT, 3, kind::HASH_VALKEY])
        .text(b"h")
        .raw(&[2])
        .text(b"a")
        .text(b"v")
        .ms(at)
        .text(b"b")
        .text(b"v")
        .ms(-1)
        .end()
}

#[test]
fn every_form_is_walked_over_and_only_expiries_move() {
    let databases = [(0, (14, 1)), (11, (2, 0))].into();
    let survey = Survey { db_max: 11, keys: 16, expiries: 3, databases };
    assert_eq!(walked(&redis(AT), 0).unwrap(), (redis(AT), survey));
    for by in [1, -1, 3_600_000, 1 - AT, 1 << 41] {
        assert_eq!(walked(&redis(AT), by).unwrap().0, redis(AT + by), "{by}");
        assert_eq!(walked(&valkey(AT), by).unwrap().0, valkey(AT + by), "{by}");
    }
    let databases = [(3, (1, 0))].into();
    let survey = Survey { db_max: 3, keys: 1, expiries: 1, databases };
    assert_eq!(walked(&valkey(AT), 0).unwrap().1, survey);
}

#[test]
fn seconds_become_milliseconds_and_a_checksum_that_is_off_stays_off() {
    let rest = |file: File| file.raw(&[kind::STRING]).text(b"k").text(b"v").raw(&[0xFF]).ms(0).0;
    let secs = rest(File::new(b"REDIS0009").raw(&[opcode::EXPIRE_SECS, 1, 0, 0, 0]));
    let millis = rest(File::new(b"REDIS0009").raw(&[opcode::EXPIRE_MS]).ms(1007));
    assert_eq!(walked(&secs, 7).unwrap().0, millis);
}

#[test]
fn a_compressed_hash_is_unpacked_to_be_moved() {
    let plain = listpack(&[(b"a", AT)]);
    // Runs of up to 32 bytes, which is how LZF keeps what does not shrink.
    let mut packed = vec![];
    for run in plain.chunks(32) {
        packed.push(run.len() as u8 - 1);
        packed.extend_from_slice(run);
    }
    let file = |at: i64, value: File| {
        let head = File::new(b"REDIS0012").raw(&[kind::HASH_LISTPACK_EX]).text(b"h");
        head.ms(at).raw(&value.0).end()
    };
    let value = File::default().raw(&[0xC3, packed.len() as u8, plain.len() as u8]).raw(&packed);
    let moved = listpack(&[(b"a", AT + 9)]);
    let expected = File::default().raw(&[0x80, 0, 0, 0, moved.len() as u8]).raw(&moved);
    assert_eq!(walked(&file(AT, value), 9).unwrap().0, file(AT + 9, expected));
    assert_eq!(lzf_unpack(b"\x01ab\xE0\x03\x01", 14).unwrap(), b"abababababababab"[..14]);
    assert_eq!(lzf_unpack(b"\x20\x05", 3), None, "a reference to before the beginning");
}

#[test]
fn what_is_not_known_is_refused_and_what_is_damaged_is_corrupt() {
    let class = |file: &[u8]| walked(file, 1).unwrap_err().class();
    for magic in ["REDIS0013", "REDIS0099", "VALKEY081", "REDIS0008"] {
        assert_eq!(class(&File::new(magic.as_bytes()).end()), Class::Refused, "{magic}");
    }
    for kind in [6, 8, 22, 23, 26, 99, 243, 246] {
        let file = File::new(b"REDIS0012").raw(&[kind]).text(b"k").text(b"v").end();
        assert_eq!(class(&file), Class::Refused, "{kind}");
    }
    assert_eq!(class(&File::new(b"VALKEY080").raw(&[24]).text(b"k").end()), Class::Refused);
    assert_eq!(class(b"GIF89a..."), Class::Corrupt);
    let whole = redis(AT);
    for len in 0..whole.len() {
        assert_eq!(class(&whole[..len]), Class::Corrupt, "{len}");
    }
    assert_eq!(class(&[&whole[..], b"x"].concat()), Class::Corrupt);
    let far = File::new(b"REDIS0012").raw(&[opcode::EXPIRE_MS]).ms(i64::MAX);
    assert_eq!(class(&far.raw(&[0]).text(b"k").text(b"v").end()), Class::Refused);
}

#[test]
fn a_value_dumped_is_moved_like_one_in_a_file() {
    let dump = |at: i64| {
        let mut file = File::default().raw(&[kind::HASH_VALKEY, 1]).text(b"f").text(b"v").ms(at);
        file = file.raw(&[80, 0]);
        let mut crc = Crc64::default();
        crc.update(&file.0);
        file.raw(&crc.value().to_le_bytes()).0
    };
    assert_eq!(shift_payload(&dump(AT), -4).unwrap(), dump(AT - 4));
    assert!(shift_payload(&dump(AT)[1..], 0).is_err());
    assert!(shift_payload(b"", 0).is_err());
}

proptest! {
    #[test]
    fn no_bytes_make_the_walk_panic(
        magic in prop_oneof![Just(*b"REDIS0012"), Just(*b"VALKEY080"), Just(*b"REDIS0010")],
        bytes in vec(prop_oneof![0..30_u8, 240..=255_u8, any::<u8>()], 0..200),
        by in any::<i64>(),
    ) {
        crate::engine::redis::fuzz::rdb(&[&magic[..], &by.to_le_bytes(), &bytes].concat());
    }

    #[test]
    fn a_damaged_file_is_moved_without_panic(at in 9..600_usize, byte in any::<u8>()) {
        let mut file = redis(AT);
        if let Some(to) = file.get_mut(at) {
            *to = byte;
        }
        drop(walked(&file, 1));
    }

    #[test]
    fn any_expiries_move_exactly(
        fields in vec((vec(any::<u8>(), 0..40), prop_oneof![Just(0), 1..(1_i64 << 46)]), 1..20),
        by in 0..(1_i64 << 45),
    ) {
        let fields: Vec<(&[u8], i64)> = fields.iter().map(|(name, at)| (&name[..], *at)).collect();
        let moved: Vec<(&[u8], i64)> =
            fields.iter().map(|(name, at)| (*name, if *at == 0 { 0 } else { at + by })).collect();
        prop_assert_eq!(listpack::shift(&listpack(&fields), by).unwrap(), listpack(&moved));
    }
}
