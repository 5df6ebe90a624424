//! Cuts a dump into statements, by the rules of the stock client (`add_line` in the server's
//! `client/mysql.cc`, run with `--binary-mode`).
//!
//! A statement ends at the delimiter, outside of quotes and comments; `DELIMITER` at the beginning
//! of a statement changes it. What stands in `/*! … */` counts as code. Lines of comment between
//! statements are left out.
//!
//! **Invariant:** every byte of a statement is handed out, in order, however the dump arrives; what
//! is held is bounded whatever the length of a statement; a dump that ends within one is an error.

use crate::error::{Error, Result};
use bytes::{Buf, Bytes, BytesMut};

/// A statement that is longer than this comes in several parts: one frame of the protocol.
pub(super) const LONG: usize = super::super::packet::MAX_FRAME;
/// Length of the parts behind the first one, about.
const PART: usize = 256 << 10;
/// The longest line with a `DELIMITER` command.
const COMMAND_BYTES: usize = 4096;
/// The command, in lower case.
const DELIMITER: &[u8] = b"delimiter";

/// A statement, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// The bytes, without the delimiter.
    pub(super) bytes: Bytes,
    /// Whether the statement begins with it.
    pub(super) first: bool,
    /// Whether the statement ends with it.
    pub(super) last: bool,
}

/// Where in a statement the next byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Within {
    /// Before its first byte.
    Nothing,
    /// In a line of comment before its first byte.
    Skipped,
    Code,
    Quotes(u8),
    Line,
    Comment,
}

/// Cuts what is pushed into statements.
#[derive(Debug)]
pub(super) struct Splitter {
    /// What was not handed out yet.
    held: BytesMut,
    /// How much of it was looked at.
    seen: usize,
    within: Within,
    /// Whether a part of the statement was handed out.
    begun: bool,
    delimiter: Vec<u8>,
    /// Whether a backslash in text is one (`NO_BACKSLASH_ESCAPES`).
    pub(super) plain_backslash: bool,
    /// Whether nothing more will be pushed.
    ended: bool,
}

/// What the look at some bytes came to.
enum Look {
    /// The statement ends at this byte of what is held.
    End(usize),
    /// Everything up to this byte was looked at; more is needed to go on.
    More(usize),
}

impl Splitter {
    /// For the beginning of a dump.
    pub(super) fn new() -> Self {
        Self {
            held: BytesMut::new(),
            seen: 0,
            within: Within::Nothing,
            begun: false,
            delimiter: b";".to_vec(),
            plain_backslash: false,
            ended: false,
        }
    }

    /// Takes the next bytes of the dump.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// Says that nothing comes behind what was pushed.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    /// Whether [`Self::end`] was called.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// The next part, if there is enough to tell. Settings that the statement before it made must
    /// be in place, since they may change how this one reads.
    ///
    /// # Errors
    /// Corrupt, if the dump ended within a statement or changes its delimiter to nothing.
    pub(super) fn next(&mut self) -> Result<Option<Part>> {
        while matches!(self.within, Within::Nothing | Within::Skipped) {
            if !self.find_beginning()? {
                return Ok(None);
            }
        }
        match self.look() {
            Look::End(at) => {
                let bytes = self.held.split_to(at).freeze();
                self.held.advance(self.delimiter.len());
                self.within = Within::Nothing;
                Ok(Some(self.part(bytes, true)))
            }
            Look::More(seen) => {
                self.seen = seen;
                let enough = if self.begun { PART } else { LONG };
                if seen >= enough {
                    let bytes = self.held.split_to(seen).freeze();
                    return Ok(Some(self.part(bytes, false)));
                }
                if self.ended {
                    return Err(Error::corrupt("the dump ends within a statement"));
                }
                Ok(None)
            }
        }
    }

    fn part(&mut self, bytes: Bytes, last: bool) -> Part {
        let first = !std::mem::replace(&mut self.begun, !last);
        self.seen = 0;
        Part { bytes, first, last }
    }

    /// Goes to the first byte of a statement. False, if more is needed for that.
    fn find_beginning(&mut self) -> Result<bool> {
        if self.within == Within::Skipped {
            let line = self.held.iter().position(|byte| *byte == b'\n');
            self.held.advance(line.map_or(self.held.len(), |at| at + 1));
            if line.is_none() {
                return Ok(false);
            }
            self.within = Within::Nothing;
        }
        let space = self.held.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        self.held.advance(space);
        if self.held.is_empty() {
            return Ok(false);
        }
        let short = !self.ended && self.held.len() < DELIMITER.len() + 1;
        let command = self.held.get(..self.held.len().min(DELIMITER.len())).unwrap_or_default();
        if command.eq_ignore_ascii_case(DELIMITER.get(..command.len()).unwrap_or_default()) {
            if short {
                return Ok(false);
            }
            if self.held.get(DELIMITER.len()).is_none_or(u8::is_ascii_whitespace) {
                return self.change_delimiter();
            }
        }
        if short && self.held.len() < 3.max(self.delimiter.len()) {
            return Ok(false);
        }
        match &self.held[..] {
            [b'#', ..] => self.within = Within::Skipped,
            [b'-', b'-', rest @ ..] if rest.first().copied().is_none_or(is_space_or_control) => {
                self.within = Within::Skipped;
            }
            held if held.starts_with(&self.delimiter) => self.held.advance(self.delimiter.len()),
            _ => self.within = Within::Code,
        }
        Ok(true)
    }

    fn change_delimiter(&mut self) -> Result<bool> {
        let line = self.held.iter().position(|byte| *byte == b'\n');
        if line.is_none() && !self.ended && self.held.len() < COMMAND_BYTES {
            return Ok(false);
        }
        let line = self.held.split_to(line.unwrap_or(self.held.len()));
        let words = line.get(DELIMITER.len()..).unwrap_or_default();
        let mut words = words.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        match words.next() {
            Some(word) if line.len() < COMMAND_BYTES => self.delimiter = word.to_vec(),
            _ => return Err(Error::corrupt("the dump has a DELIMITER command without one")),
        }
        Ok(true)
    }

    /// Looks at bytes up to the end of the statement, or of what is held.
    fn look(&mut self) -> Look {
        let mut at = self.seen;
        loop {
            let Some(rest) = self.held.get(at..).filter(|rest| !rest.is_empty()) else {
                return Look::More(self.held.len());
            };
            match self.within {
                Within::Code => match self.look_at_code(rest) {
                    Code::Plain(len) => at += len,
                    Code::Into(within, len) => {
                        self.within = within;
                        at += len;
                    }
                    Code::Delimiter(len) => return Look::End(at + len),
                    Code::Cut(len) => return Look::More(at + len),
                },
                Within::Quotes(quote) => {
                    let found = if self.plain_backslash || quote == b'`' {
                        memchr::memchr(quote, rest)
                    } else {
                        memchr::memchr2(quote, b'\\', rest)
                    };
                    let Some(len) = found else { return Look::More(self.held.len()) };
                    if rest.get(len) == Some(&quote) {
                        self.within = Within::Code;
                        at += len + 1;
                    } else if len + 1 < rest.len() {
                        at += len + 2;
                    } else {
                        return Look::More(at + len);
                    }
                }
                Within::Comment => match memchr::memchr(b'*', rest) {
                    None => return Look::More(self.held.len()),
                    Some(len) => match rest.get(len + 1) {
                        None => return Look::More(at + len),
                        Some(b'/') => {
                            self.within = Within::Code;
                            at += len + 2;
                        }
                        Some(_) => at += len + 1,
                    },
                },
                Within::Line | Within::Nothing | Within::Skipped => {
                    match memchr::memchr(b'\n', rest) {
                        None => return Look::More(self.held.len()),
                        Some(len) => {
                            self.within = Within::Code;
                            at += len + 1;
                        }
                    }
                }
            }
        }
    }

    /// Looks at code up to the first byte that may change something.
    fn look_at_code(&self, code: &[u8]) -> Code {
        let mark = self.delimiter.first().copied().unwrap_or(b';');
        let len = code
            .iter()
            .position(|byte| SPECIAL[usize::from(*byte)] || *byte == mark)
            .unwrap_or(code.len());
        let rest = code.get(len..).unwrap_or_default();
        let Some(byte) = rest.first() else { return Code::Plain(len) };
        if rest.starts_with(&self.delimiter) {
            return Code::Delimiter(len);
        }
        if !self.ended && self.delimiter.starts_with(rest) {
            return Code::Cut(len);
        }
        let cut = |need: usize| !self.ended && rest.len() < need;
        match (byte, rest.get(1..).unwrap_or_default()) {
            (b'\'' | b'"' | b'`', _) => Code::Into(Within::Quotes(*byte), len + 1),
            (b'#', _) => Code::Into(Within::Line, len + 1),
            (b'-', [] | [b'-']) if cut(3) => Code::Cut(len),
            (b'-', [b'-', after @ ..])
                if after.first().copied().is_none_or(is_space_or_control) =>
            {
                Code::Into(Within::Line, len + 2)
            }
            (b'/', [] | [b'*'] | [b'*', b'M']) if cut(4) => Code::Cut(len),
            // Both servers' conditional comments, of which this is the mark.
            (b'/', [b'*', b'!', ..] | [b'*', b'M', b'!', ..]) => Code::Plain(len + 3),
            (b'/', [b'*', ..]) => Code::Into(Within::Comment, len + 2),
            _ => Code::Plain(len + 1),
        }
    }
}

enum Code {
    /// So many bytes are nothing special.
    Plain(usize),
    /// Behind so many bytes, something else goes on.
    Into(Within, usize),
    /// Behind so many bytes stands the delimiter.
    Delimiter(usize),
    /// Behind so many bytes, more is needed to tell.
    Cut(usize),
}

fn is_space_or_control(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte.is_ascii_control()
}

/// Bytes that may end a stretch of plain code, besides the delimiter.
const SPECIAL: [bool; 256] = {
    let mut special = [false; 256];
    let bytes = b"'\"`#-/";
    let mut at = 0;
    while at < bytes.len() {
        special[bytes[at] as usize] = true;
        at += 1;
    }
    special
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;
    use proptest::prelude::*;
    use rstest::rstest;

    /// The statements of a dump that comes in pieces of this length.
    fn split(dump: &[u8], piece: usize) -> Result<Vec<Vec<u8>>> {
        let mut splitter = Splitter::new();
        let mut statements: Vec<Vec<u8>> = vec![];
        let mut pieces = dump.chunks(piece);
        loop {
            while let Some(part) = splitter.next()? {
                if part.first {
                    statements.push(vec![]);
                }
                statements.last_mut().unwrap().extend_from_slice(&part.bytes);
            }
            if splitter.ended {
                return Ok(statements);
            }
            match pieces.next() {
                Some(piece) => splitter.push(piece),
                None => splitter.end(),
            }
        }
    }

    fn texts(dump: &str) -> Vec<String> {
        let of = |piece| {
            let parts = split(dump.as_bytes(), piece).unwrap();
            parts.into_iter().map(|part| String::from_utf8(part).unwrap()).collect::<Vec<_>>()
        };
        let whole = of(dump.len().max(1));
        for piece in 1..dump.len() {
            assert_eq!(of(piece), whole, "in pieces of {piece}");
        }
        whole
    }

    #[rstest]
    #[case::several("a; b;\n\n  c ;", &["a", "b", "c "])]
    #[case::none("", &[])]
    #[case::only_comments("-- a;\n# b;\n--\n-- c", &[])]
    #[case::empty_ones("; ;\n;a;;", &["a"])]
    #[case::text("x ';' \";\" `;`; b;", &["x ';' \";\" `;`", "b"])]
    #[case::doubled("x 'it'';s' `a``;`; b;", &["x 'it'';s' `a``;`", "b"])]
    #[case::escaped(r"x 'it\';s' '\\'; b;", &[r"x 'it\';s' '\\'", "b"])]
    #[case::no_escape_in_names(r"x `a\`; b;", &[r"x `a\`", "b"])]
    #[case::comment("x /* ; ' */ y; b;", &["x /* ; ' */ y", "b"])]
    #[case::stars("x /***; **/ y; b;", &["x /***; **/ y", "b"])]
    #[case::hint("select /*+ a;b ' */ y; b;", &["select /*+ a;b ' */ y", "b"])]
    #[case::conditional("/*!40101 SET x = ';' */; b;", &["/*!40101 SET x = ';' */", "b"])]
    #[case::conditional_ends("/*!40101 a; b */;", &["/*!40101 a", "b */"])]
    #[case::of_mariadb("/*M!100100 a ';' */; b;", &["/*M!100100 a ';' */", "b"])]
    #[case::sandbox("/*!999999\\- enable the sandbox mode */ \n-- x\nSET a; b;",
        &["/*!999999\\- enable the sandbox mode */ \n-- x\nSET a", "b"])]
    #[case::line_comment("x -- ; '\ny; b;", &["x -- ; '\ny", "b"])]
    #[case::hash("x # ; '\ny; b;", &["x # ; '\ny", "b"])]
    #[case::minus_minus("select 1--1, 2 --3; b;", &["select 1--1, 2 --3", "b"])]
    #[case::division("select 1/2, 3 / *; b;", &["select 1/2, 3 / *", "b"])]
    #[case::delimiter("DELIMITER ;;\nbegin a; b; end ;;\nx;;\ndelimiter ;\nc; d;",
        &["begin a; b; end ", "x", "c", "d"])]
    #[case::slashes("DELIMITER //\na / b /* // */ // b; //\nDELIMITER $$\nc//$$",
        &["a / b /* // */ ", "b; ", "c//"])]
    #[case::no_command("delimiters; DELIMITER\t;;\na;b;;", &["delimiters", "a;b"])]
    #[case::not_at_the_start("a\nDELIMITER ;\nb;", &["a\nDELIMITER ", "b"])]
    #[case::text_over_lines("x 'a\n-- ;\n#'; b;", &["x 'a\n-- ;\n#'", "b"])]
    fn statements_are_cut_where_the_stock_client_cuts_them(
        #[case] dump: &str,
        #[case] expected: &[&str],
    ) {
        assert_eq!(texts(dump), expected);
    }

    #[rstest]
    #[case("a")]
    #[case("a; b")]
    #[case("a; 'b;")]
    #[case("a; `b;")]
    #[case("a; /* b;")]
    #[case("a; -")]
    #[case("DELIMITER ;;\na;")]
    #[case("DELIMITER \na;")]
    fn a_dump_that_ends_within_a_statement_is_corrupt(#[case] dump: &str) {
        for piece in 1..=dump.len() {
            assert_eq!(split(dump.as_bytes(), piece).unwrap_err().class(), Class::Corrupt);
        }
    }

    #[test]
    fn a_backslash_is_one_where_the_session_says_so() {
        let mut splitter = Splitter::new();
        splitter.push(br"SET a; x 'b\'; c '\\''; ");
        splitter.end();
        assert_eq!(splitter.next().unwrap().unwrap().bytes, &b"SET a"[..]);
        splitter.plain_backslash = true;
        assert_eq!(splitter.next().unwrap().unwrap().bytes, &br"x 'b\'"[..]);
        splitter.plain_backslash = false;
        assert!(splitter.next().is_err());
    }

    #[test]
    fn a_statement_of_any_length_comes_in_parts_and_little_is_held() {
        let mut splitter = Splitter::new();
        splitter.push(b"INSERT 'x");
        let (mut len, mut parts) = (0, 0);
        for _ in 0..200 {
            splitter.push(&vec![b';'; PART]);
            while let Some(part) = splitter.next().unwrap() {
                assert_eq!((part.first, part.last), (parts == 0, false));
                len += part.bytes.len();
                parts += 1;
            }
            assert!(splitter.held.len() < LONG + PART);
        }
        assert!(parts > 100, "{parts}");
        splitter.push(b"'; b;");
        splitter.end();
        let last = splitter.next().unwrap().unwrap();
        assert!(last.last && !last.first);
        assert_eq!(len + last.bytes.len(), b"INSERT 'x'".len() + 200 * PART);
        let next = splitter.next().unwrap().unwrap();
        assert_eq!(next, Part { bytes: "b".into(), first: true, last: true });
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_made_up(
            text in r#"[-ab; */\n'"`\\#!M+]{0,200}"#, piece in 1..50_usize,
        ) {
            let whole = split(text.as_bytes(), usize::MAX);
            let parts = split(text.as_bytes(), piece);
            match (whole, parts) {
                (Ok(whole), Ok(parts)) => {
                    let mut rest = text.as_bytes();
                    for statement in &whole {
                        let at = rest.windows(statement.len()).position(|w| w == statement);
                        rest = &rest[at.unwrap() + statement.len()..];
                    }
                    prop_assert_eq!(whole, parts);
                }
                (Err(_), Err(_)) => {}
                (whole, parts) => prop_assert!(false, "{whole:?} / {parts:?}"),
            }
        }

        #[test]
        fn quoted_values_never_end_a_statement(values in proptest::collection::vec(
            r#"[-ab; */\n'"`\\#]{0,20}"#, 1..6), piece in 1..50_usize,
        ) {
            let quoted = |value: &String| {
                format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
            };
            let list: Vec<String> = values.iter().map(quoted).collect();
            let insert = format!("INSERT INTO `t` VALUES ({})", list.join(","));
            let dump = format!("{insert};\n{insert};\n");
            let parts = split(dump.as_bytes(), piece).unwrap();
            prop_assert_eq!(parts, vec![insert.as_bytes(); 2]);
        }
    }
}
