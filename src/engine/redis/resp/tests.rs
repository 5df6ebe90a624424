//! Streams cut up in every way, and bytes that are no stream.

use super::*;
use proptest::prelude::*;
use rstest::rstest;

/// A command as the wire has it.
fn wire(args: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// All commands in pieces of a stream that begins at 100, and the offset of an error.
fn scan<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Command>, Option<String>) {
    let mut scanner = Scanner::new(100, 3);
    let mut commands = vec![];
    for piece in pieces {
        let mut at = 0;
        loop {
            match scanner.next(piece, &mut at) {
                Ok(Some(command)) => commands.push(command),
                Ok(None) => break,
                Err(error) => return (commands, Some(error.to_string())),
            }
        }
        assert_eq!(at, piece.len());
    }
    (commands, None)
}

#[test]
fn a_record_is_a_command_or_a_whole_transaction() {
    let stream = [
        wire(&[b"SET", b"k", b"*1\r\n$4\r\nEXEC\r\n"]),
        wire(&[b"multi"]),
        wire(&[b"SELECT", b"7"]),
        wire(&[b"DEL", b""]),
        wire(&[b"EXEC"]),
        wire(&[b"REPLCONF", b"GETACK", b"*"]),
    ]
    .concat();
    let (commands, error) = scan([stream.as_slice()]);
    assert_eq!(error, None);
    let kinds: Vec<_> = commands.iter().map(|c| c.kind).collect();
    let expected = [Kind::Data, Kind::Multi, Kind::Select(7), Kind::Data, Kind::Exec, Kind::GetAck];
    assert_eq!(kinds, expected);
    let ends: Vec<_> = commands.iter().map(|c| c.ends_record).collect();
    assert_eq!(ends, [true, false, false, false, true, true]);
    assert_eq!(commands[0].start, 100);
    assert_eq!(commands[0].db, 3);
    assert_eq!(commands[4].record_start, commands[1].start);
    assert_eq!((commands[4].db, commands[4].record_has_data), (7, true));
    assert!(!commands[5].record_has_data);
    assert_eq!(commands[5].end, 100 + stream.len() as u64);
}

#[rstest]
#[case::inline(b"PING\r\n", "'P' at 100 instead of '*'")]
#[case::newline(b"\n", "'\\n' at 100 instead of '*'")]
#[case::none(b"*0\r\n", "at 103 instead of 1 to 2^31-1 arguments")]
#[case::negative(b"*-1\r\n", "'-' at 101 instead of the number of arguments")]
#[case::empty(b"*\r\n", "'\\r' at 101")]
#[case::many(b"*2147483648\r\n", "instead of 1 to 2^31-1 arguments")]
#[case::huge(b"*1\r\n$9999999999999999999\r\n", "instead of an argument of at most 1 TiB")]
#[case::digits(b"*1\r\n$00000000000000000000", "instead of the length of an argument")]
#[case::null(b"*1\r\n$-1\r\n", "'-' at 105")]
#[case::long(b"*1\r\n$1\r\nab\r\n", "'b' at 109 instead of the end of a line")]
#[case::select(b"*2\r\n$6\r\nSELECT\r\n$1\r\nx\r\n", "SELECT of no database at 100")]
fn what_is_no_stream_is_named_with_its_offset(#[case] bytes: &[u8], #[case] expected: &str) {
    let (commands, error) = scan([bytes]);
    assert_eq!(commands, []);
    assert!(error.clone().unwrap_or_default().contains(expected), "{error:?}");
}

#[rstest]
#[case::zeros(b"*3\r\n$003\r\nDEL\r\n$000000001\r\nk\r\n$0\r\n\r\n")]
#[case::many_digits(b"*2\r\n$3\r\nDEL\r\n$0000000001\r\nk\r\n")]
#[case::no_digits(b"*2\r\n$3\r\nDEL\r\n$\r\nk\r\n")]
#[case::another_mark(b"*2\r\n$3\r\nDEL\r\n:1\r\nk\r\n")]
#[case::one_more(b"*1\r\n$3\r\nDEL\r\n$1\r\nk\r\n")]
fn a_length_read_at_once_means_the_same_as_byte_by_byte(#[case] bytes: &[u8]) {
    assert_eq!(scan([bytes]), scan(bytes.chunks(1)));
}

#[test]
fn a_name_is_known_before_its_command_is_complete() {
    let bytes = wire(&[b"PUBLISH", b"channel", b"message"]);
    let mut scanner = Scanner::new(0, 0);
    let known: Vec<_> = bytes
        .iter()
        .map(|byte| {
            assert!(scanner.next(&[*byte], &mut 0).is_ok());
            scanner.kind_so_far()
        })
        .collect();
    let name_ends = b"*3\r\n$7\r\nPUBLISH".len();
    for (i, kind) in known.iter().enumerate() {
        let expected = i + 1 >= name_ends && i + 1 < bytes.len();
        assert_eq!(*kind == Some(Kind::Publish), expected, "after byte {i}: {kind:?}");
    }
}

/// Commands with names that matter and arguments that look like heads.
fn commands() -> impl Strategy<Value = Vec<u8>> {
    let arg =
        prop_oneof![Just(b"*1\r\n$4\r\n".to_vec()), proptest::collection::vec(any::<u8>(), 0..50),];
    let other =
        (proptest::collection::vec(any::<u8>(), 0..40), proptest::collection::vec(arg, 0..4))
            .prop_map(|(name, args)| {
                // An arbitrary name may happen to be SELECT only by a miracle.
                let all: Vec<&[u8]> = std::iter::once(name.as_slice())
                    .chain(args.iter().map(Vec::as_slice))
                    .collect();
                wire(&all)
            });
    let one = prop_oneof![
        other,
        (0u32..99).prop_map(|n| wire(&[b"SELECT", n.to_string().as_bytes()])),
        Just(wire(&[b"MULTI"])),
        Just(wire(&[b"EXEC"])),
        Just(wire(&[b"PING"])),
    ];
    proptest::collection::vec(one, 0..12).prop_map(|all| all.concat())
}

fn cut<'a>(mut bytes: &'a [u8], lengths: &[usize]) -> Vec<&'a [u8]> {
    let mut pieces = vec![];
    for length in lengths {
        let (piece, rest) = bytes.split_at((*length).min(bytes.len()));
        pieces.push(piece);
        bytes = rest;
    }
    pieces.push(bytes);
    pieces
}

proptest! {
    #[test]
    fn the_chunks_do_not_matter(
        bytes in commands(),
        lengths in proptest::collection::vec(0usize..20, 0..60),
    ) {
        let whole = scan([bytes.as_slice()]);
        prop_assert_eq!(&whole.1, &None);
        prop_assert_eq!(&scan(cut(&bytes, &lengths)), &whole);
        prop_assert_eq!(&scan(bytes.chunks(1)), &whole);
        // Commands follow on each other without a hole.
        let mut at = 100;
        for command in whole.0 {
            prop_assert_eq!(command.start, at);
            at = command.end;
        }
        prop_assert_eq!(at, 100 + bytes.len() as u64);
    }

    #[test]
    fn arbitrary_bytes_give_the_same_answer_in_any_chunks(
        bytes in proptest::collection::vec(
            prop_oneof![any::<u8>(), Just(b'*'), Just(b'$'), Just(b'1'), Just(b'\r'), Just(b'\n')],
            0..200,
        ),
        lengths in proptest::collection::vec(0usize..9, 0..60),
    ) {
        prop_assert_eq!(scan(cut(&bytes, &lengths)), scan([bytes.as_slice()]));
    }
}
