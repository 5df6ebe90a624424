//! Moves the expiries in a replication stream, as far as commands name them.
//!
//! A stream of Redis 7.0 and newer names absolute expiries only (`expire.c`, `t_string.c`,
//! `t_hash.c`: what clients gave as a time from now is rewritten before it is propagated), so a
//! constant added to all of them moves every key and field by the same time. Whatever else a
//! command holds passes through as it comes, in whatever pieces, and memory is bounded.
//!
//! **Invariant:** an expiry that is relative, or stands where this version cannot move it, is an
//! error, never passed on as it is. Commands that are not known are passed on, and named.

use super::walk;
use crate::error::{Error, Result};
use std::collections::BTreeSet;

/// The longest argument that may be a name, an option or a number.
const WORD_MAX: usize = 64;

/// How many names of commands that are not known are kept.
const UNKNOWN_MAX: usize = 20;

/// Commands of Redis up to 8.4 and Valkey up to 9.1 that stand in streams and name no expiry.
const PLAIN: &str = " APPEND BITFIELD BITOP BLMOVE BLMPOP BLPOP BRPOP BRPOPLPUSH BZMPOP BZPOPMAX \
    BZPOPMIN COPY DECR DECRBY DEL DELEX DELIFEQ EXEC FLUSHALL FLUSHDB FUNCTION GEOADD GEORADIUS \
    GEORADIUSBYMEMBER GEOSEARCHSTORE GETDEL GETSET HDEL HGETDEL HINCRBY HINCRBYFLOAT HMSET \
    HPERSIST HSET HSETNX INCR INCRBY INCRBYFLOAT LINSERT LMOVE LMPOP LPOP LPUSH LPUSHX LREM LSET \
    LTRIM MOVE MSET MSETNX MULTI PERSIST PFADD PFCOUNT PFMERGE RENAME RENAMENX RPOP RPOPLPUSH \
    RPUSH RPUSHX SADD SDIFFSTORE SELECT SETBIT SETNX SETRANGE SINTERSTORE SMOVE SORT SPOP SREM \
    SUNIONSTORE SWAPDB UNLINK VADD VREM VSETATTR XACK XACKDEL XADD XAUTOCLAIM XCLAIM XDEL XDELEX \
    XGROUP XREADGROUP XSETID XTRIM ZADD ZDIFFSTORE ZINCRBY ZINTERSTORE ZMPOP ZPOPMAX ZPOPMIN \
    ZRANGESTORE ZREM ZREMRANGEBYLEX ZREMRANGEBYRANK ZREMRANGEBYSCORE ZUNIONSTORE ";

/// Unit of an expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Seconds,
    Millis,
}

/// Where a command has its expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// Nowhere.
    None,
    /// In its second argument.
    Second(Unit),
    /// Behind an option, from this argument on, until FIELDS.
    Options(u64),
    /// MSETEX: behind an option, behind as many pairs as the first argument says.
    Pairs,
    /// RESTORE: in the second argument, if ABSTTL follows; 0 is none.
    Restore,
}

/// What the next argument is, where options are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Option,
    /// The number behind PXAT or EXAT.
    Expiry(Unit),
    /// The value behind an option that takes one.
    Value,
    /// No more options.
    Rest,
}

/// Where in a command the shift stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In the line with the number of arguments.
    Count,
    /// In the line with the length of an argument.
    Length,
    /// In an argument.
    Argument,
    /// In the two bytes behind it, of which so many are left.
    Behind(u8),
}

/// A stream whose expiries are moved.
#[derive(Debug)]
pub(super) struct Shift {
    by_ms: i64,
    state: State,
    line: Vec<u8>,
    args_left: u64,
    /// Number of the argument; the command's name is 0.
    index: u64,
    arg_len: u64,
    arg_left: u64,
    /// The argument so far, if it may have to be changed.
    word: Option<Vec<u8>>,
    rule: Rule,
    next: Next,
    /// RESTORE has an expiry, and ABSTTL was not met yet.
    needs_absttl: bool,
    unknown: BTreeSet<String>,
}

impl Shift {
    pub(super) fn new(by_ms: i64) -> Self {
        Self {
            by_ms,
            state: State::Count,
            line: vec![],
            args_left: 0,
            index: 0,
            arg_len: 0,
            arg_left: 0,
            word: None,
            rule: Rule::None,
            next: Next::Option,
            needs_absttl: false,
            unknown: BTreeSet::new(),
        }
    }

    /// Names of commands met that are not known: whether they have expiries is not, either.
    pub(super) fn unknown(&self) -> Vec<String> {
        self.unknown.iter().cloned().collect()
    }

    /// Takes bytes of whole commands, in any pieces, and appends what becomes of them to `out`.
    /// Whenever a command is whole, so is what was appended.
    ///
    /// # Errors
    /// Refused, if an expiry cannot be moved. Corrupt, if these are no commands.
    pub(super) fn feed(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> Result<()> {
        while !bytes.is_empty() {
            bytes = match self.state {
                State::Count | State::Length => self.take_line(bytes, out)?,
                State::Argument => self.take_argument(bytes, out)?,
                State::Behind(left) => {
                    let taken = left.min(u8::try_from(bytes.len()).unwrap_or(u8::MAX));
                    let (end, rest) = bytes.split_at_checked(taken.into()).unwrap_or_default();
                    if self.word.is_none() {
                        out.extend_from_slice(end);
                    }
                    self.state = State::Behind(left - taken);
                    if left == taken {
                        self.end_argument(out)?;
                    }
                    rest
                }
            };
        }
        Ok(())
    }

    fn take_line<'a>(&mut self, bytes: &'a [u8], out: &mut Vec<u8>) -> Result<&'a [u8]> {
        let end = memchr::memchr(b'\n', bytes).map_or(bytes.len(), |at| at + 1);
        let (part, rest) = bytes.split_at_checked(end).unwrap_or_default();
        self.line.extend_from_slice(part);
        if self.line.len() > WORD_MAX {
            return Err(no_command());
        }
        if self.line.last() != Some(&b'\n') {
            return Ok(rest);
        }
        let mark = if self.state == State::Count { b"*" } else { b"$" };
        let digits = self.line.strip_prefix(mark).and_then(|line| line.strip_suffix(b"\r\n"));
        let length: u64 = digits.and_then(number).ok_or_else(no_command)?;
        if self.state == State::Count {
            (self.args_left, self.index) = (length.checked_sub(1).ok_or_else(no_command)?, 0);
            (self.rule, self.next, self.needs_absttl) = (Rule::None, Next::Option, false);
            self.state = State::Length;
            out.extend_from_slice(&self.line);
        } else {
            (self.arg_len, self.arg_left) = (length, length);
            self.begin_argument()?;
            if self.word.is_none() {
                out.extend_from_slice(&self.line);
            }
            self.state = if length == 0 { State::Behind(2) } else { State::Argument };
        }
        self.line.clear();
        Ok(rest)
    }

    /// Decides whether the argument is held until it is whole.
    fn begin_argument(&mut self) -> Result<()> {
        let may_matter = match self.rule {
            _ if self.index == 0 => true,
            Rule::None => false,
            Rule::Second(_) => self.index == 2,
            Rule::Options(from) => self.index >= from && self.next != Next::Rest,
            Rule::Pairs => self.index == 1,
            Rule::Restore => self.index == 2 || self.index >= 4,
        };
        if may_matter && self.arg_len <= WORD_MAX as u64 {
            self.word = Some(vec![]);
            return Ok(());
        }
        match (may_matter, self.rule, self.next) {
            (true, Rule::Second(_) | Rule::Pairs, _) | (true, _, Next::Expiry(_)) => {
                Err(refused("an expiry that is no number"))
            }
            (true, _, Next::Value) => {
                self.next = Next::Option;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn take_argument<'a>(&mut self, bytes: &'a [u8], out: &mut Vec<u8>) -> Result<&'a [u8]> {
        let taken = usize::try_from(self.arg_left).unwrap_or(usize::MAX).min(bytes.len());
        let (part, rest) = bytes.split_at_checked(taken).unwrap_or_default();
        let is_payload = self.rule == Rule::Restore && self.index == 3;
        if is_payload
            && self.arg_left == self.arg_len
            && part.first().is_some_and(|kind| walk::has_field_expiries(*kind))
        {
            return Err(refused("RESTORE of a hash whose fields may expire"));
        }
        match &mut self.word {
            Some(word) => word.extend_from_slice(part),
            None => out.extend_from_slice(part),
        }
        self.arg_left -= part.len() as u64;
        if self.arg_left == 0 {
            self.state = State::Behind(2);
        }
        Ok(rest)
    }

    fn end_argument(&mut self, out: &mut Vec<u8>) -> Result<()> {
        if let Some(word) = self.word.take() {
            let word = self.rewrite(word)?;
            out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            out.extend_from_slice(&word);
            out.extend_from_slice(b"\r\n");
        }
        self.index += 1;
        self.state = State::Length;
        if self.args_left == 0 {
            self.state = State::Count;
            if self.needs_absttl {
                return Err(refused("RESTORE with a time from now"));
            }
        }
        self.args_left = self.args_left.saturating_sub(1);
        Ok(())
    }

    /// What becomes of an argument that may matter.
    fn rewrite(&mut self, word: Vec<u8>) -> Result<Vec<u8>> {
        if self.index == 0 {
            return self.name(word);
        }
        match self.rule {
            Rule::Second(unit) => self.moved(&word, unit),
            Rule::Restore if self.index == 2 && word == b"0" => Ok(word),
            Rule::Restore if self.index == 2 => {
                self.needs_absttl = true;
                self.moved(&word, Unit::Millis)
            }
            Rule::Restore => {
                self.needs_absttl &= !word.eq_ignore_ascii_case(b"ABSTTL");
                Ok(word)
            }
            Rule::Pairs => {
                let pairs: u64 = number(&word).ok_or_else(|| refused("MSETEX of no number"))?;
                self.rule = Rule::Options(pairs.saturating_mul(2).saturating_add(2));
                Ok(word)
            }
            Rule::Options(_) => self.option(word),
            Rule::None => Ok(word),
        }
    }

    fn name(&mut self, word: Vec<u8>) -> Result<Vec<u8>> {
        let name = word.to_ascii_uppercase();
        self.rule = match name.as_slice() {
            b"PEXPIREAT" | b"HPEXPIREAT" => Rule::Second(Unit::Millis),
            b"EXPIREAT" | b"HEXPIREAT" => Rule::Second(Unit::Seconds),
            b"SET" => Rule::Options(3),
            b"GETEX" | b"HSETEX" | b"HGETEX" => Rule::Options(2),
            b"MSETEX" => Rule::Pairs,
            b"RESTORE" | b"RESTORE-ASKING" => Rule::Restore,
            b"EXPIRE" | b"PEXPIRE" | b"HEXPIRE" | b"HPEXPIRE" | b"SETEX" | b"PSETEX" => {
                return Err(refused(&format!("{} with a time from now", name.escape_ascii())));
            }
            _ => Rule::None,
        };
        if self.rule == Rule::None {
            let shown = name.escape_ascii().to_string();
            if !PLAIN.contains(&format!(" {shown} ")) && self.unknown.len() < UNKNOWN_MAX {
                self.unknown.insert(shown);
            }
        }
        // Seconds do not suffice any more.
        Ok(match name.as_slice() {
            b"EXPIREAT" => b"PEXPIREAT".to_vec(),
            b"HEXPIREAT" => b"HPEXPIREAT".to_vec(),
            _ => word,
        })
    }

    fn option(&mut self, word: Vec<u8>) -> Result<Vec<u8>> {
        match std::mem::replace(&mut self.next, Next::Option) {
            Next::Expiry(unit) => return self.moved(&word, unit),
            Next::Value => return Ok(word),
            Next::Option | Next::Rest => {}
        }
        match word.to_ascii_uppercase().as_slice() {
            b"PXAT" => self.next = Next::Expiry(Unit::Millis),
            b"EXAT" => {
                self.next = Next::Expiry(Unit::Seconds);
                return Ok(b"PXAT".to_vec());
            }
            b"EX" | b"PX" => return Err(refused("an expiry with a time from now")),
            b"IFEQ" | b"IFNE" | b"IFDEQ" | b"IFDNE" => self.next = Next::Value,
            b"FIELDS" => self.next = Next::Rest,
            _ => {}
        }
        Ok(word)
    }

    fn moved(&self, word: &[u8], unit: Unit) -> Result<Vec<u8>> {
        let at: Option<i64> = number(word);
        let at = if unit == Unit::Seconds { at.and_then(|s| s.checked_mul(1000)) } else { at };
        let moved = at.and_then(|at| walk::moved(at, self.by_ms));
        let shown = word.escape_ascii();
        let moved = moved.ok_or_else(|| refused(&format!("an expiry of {shown}")))?;
        Ok(moved.to_string().into_bytes())
    }
}

fn number<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn no_command() -> Error {
    Error::corrupt("the replication stream holds what is no command")
}

fn refused(what: &str) -> Error {
    Error::refused(format!("the log holds {what}, which cannot be moved"))
        .hint("restore with --ttl absolute")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::redis::client::encode;
    use proptest::prelude::*;
    use rstest::rstest;

    const BY: i64 = 86_400_007;

    fn stream(lines: &[&str]) -> Vec<u8> {
        let words = |line: &str| -> Vec<Vec<u8>> { line.split(' ').map(Into::into).collect() };
        let encoded = lines.iter().map(|line| {
            let words = words(line);
            encode(&words.iter().map(Vec::as_slice).collect::<Vec<_>>())
        });
        encoded.collect::<Vec<_>>().concat()
    }

    fn shifted(bytes: &[u8], piece: usize) -> Result<Vec<u8>> {
        let (mut shift, mut out) = (Shift::new(BY), vec![]);
        for piece in bytes.chunks(piece) {
            shift.feed(piece, &mut out)?;
        }
        Ok(out)
    }

    #[rstest]
    #[case::of_a_key("PEXPIREAT k 1700000000123", "PEXPIREAT k 1700086400130")]
    #[case::with_a_condition("pexpireat k 1700000000123 NX", "pexpireat k 1700086400130 NX")]
    #[case::in_seconds("EXPIREAT k 1700000000", "PEXPIREAT k 1700086400007")]
    #[case::of_a_value("SET k PXAT PXAT 1700000000123", "SET k PXAT PXAT 1700086400130")]
    #[case::of_a_value_in_seconds("SET k v XX exat 1700000000", "SET k v XX PXAT 1700086400007")]
    #[case::with_a_value_to_compare("SET k v IFEQ PXAT PXAT 1", "SET k v IFEQ PXAT PXAT 86400008")]
    #[case::kept("SET k v KEEPTTL", "SET k v KEEPTTL")]
    #[case::read("GETEX k PXAT 1", "GETEX k PXAT 86400008")]
    #[case::of_fields("HPEXPIREAT h 1 FIELDS 1 5", "HPEXPIREAT h 86400008 FIELDS 1 5")]
    #[case::of_fields_secs("HEXPIREAT h 1 GT FIELDS 1 f", "HPEXPIREAT h 86401007 GT FIELDS 1 f")]
    #[case::with_fields(
        "HSETEX h FNX PXAT 1 FIELDS 1 PXAT 5",
        "HSETEX h FNX PXAT 86400008 FIELDS 1 PXAT 5"
    )]
    #[case::of_many("MSETEX 2 PXAT 1 EXAT 2 PXAT 3", "MSETEX 2 PXAT 1 EXAT 2 PXAT 86400010")]
    #[case::restored("RESTORE k 5 x REPLACE ABSTTL", "RESTORE k 86400012 x REPLACE ABSTTL")]
    #[case::restored_without("RESTORE k 0 x", "RESTORE k 0 x")]
    #[case::none("LPUSH PEXPIREAT PXAT 5", "LPUSH PEXPIREAT PXAT 5")]
    fn an_expiry_is_moved_wherever_it_stands(#[case] from: &str, #[case] to: &str) {
        let around = |line: &str| stream(&["SELECT 3", "MULTI", line, "SET a b", "EXEC"]);
        for piece in [1, 2, 3, 7, 1000] {
            assert_eq!(shifted(&around(from), piece).unwrap(), around(to), "pieces of {piece}");
        }
    }

    #[rstest]
    #[case("EXPIRE k 5")]
    #[case("SETEX k 5 v")]
    #[case("SET k v PX 5")]
    #[case("RESTORE k 5 x REPLACE")]
    #[case("RESTORE k 0 \u{19}x")]
    #[case("PEXPIREAT k soon")]
    #[case("PEXPIREAT k 9223372036854775807")]
    fn what_cannot_be_moved_is_refused(#[case] line: &str) {
        let error = shifted(&stream(&[line]), 1000).unwrap_err();
        assert_eq!(error.class(), crate::error::Class::Refused, "{error}");
    }

    #[test]
    fn commands_that_are_not_known_are_named() {
        let mut shift = Shift::new(BY);
        let bytes =
            stream(&["TAIR.EXHSET k f v PXAT 5", "set a b", "json.set k $ 1", "ZADD z 1 a"]);
        let mut out = vec![];
        shift.feed(&bytes, &mut out).unwrap();
        assert_eq!(out, bytes);
        assert_eq!(shift.unknown(), ["JSON.SET", "TAIR.EXHSET"]);
    }

    proptest! {
        #[test]
        fn no_stream_makes_it_panic_and_pieces_do_not_matter(
            words in proptest::collection::vec(proptest::collection::vec(
                prop_oneof![
                    Just(b"SET".to_vec()), Just(b"PXAT".to_vec()), Just(b"RESTORE".to_vec()),
                    Just(b"17".to_vec()), Just(b"MSETEX".to_vec()), Just(b"PEXPIREAT".to_vec()),
                    proptest::collection::vec(any::<u8>(), 0..90),
                ], 1..8), 0..8),
            cut in 0..400_usize,
            piece in 1..50_usize,
        ) {
            let mut bytes = vec![];
            for command in &words {
                bytes.extend(encode(&command.iter().map(Vec::as_slice).collect::<Vec<_>>()));
            }
            let whole = shifted(&bytes, 10_000).ok();
            prop_assert_eq!(&whole, &shifted(&bytes, piece).ok());
            if cut < bytes.len() {
                bytes.remove(cut);
                drop(shifted(&bytes, piece));
            }
        }
    }
}
