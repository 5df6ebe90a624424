//! Finds the commands in a replication stream, whatever the chunks it comes in.
//!
//! The scanner looks at heads only: it never copies, holds or allocates anything, so a value of
//! any size streams through it. It knows the few commands that mean something to a reader of the
//! stream (SELECT, MULTI, EXEC, PING, REPLCONF, PUBLISH) and treats all others alike.
//!
//! The form of a stream is that of RESP arrays of bulk strings (the protocol specification at
//! redis.io, "Sending commands to a Redis server"; `replication.c`, `replicationFeedSlaves`).
//! Anything else is an error with its offset: a byte log that is not understood is not guessed at.
//!
//! **Invariant:** the commands found do not depend on where the chunks begin and end, and no
//! input makes the scanner panic.

use crate::error::{Error, Result};

/// The longest command name that is looked at; longer ones are only known to be longer.
const NAME_MAX: usize = 32;

/// The most arguments that Redis takes in one command (`networking.c`, `processMultibulkBuffer`).
const ARGS_MAX: u64 = i32::MAX as u64;

/// The longest argument taken for real. Redis itself limits its clients to 512 MB by default
/// (`proto-max-bulk-len`) and a replica not at all.
const ARG_BYTES_MAX: u64 = 1 << 40;

/// How many digits the length of an argument has at most to be read at once; so many are well below
/// [`ARG_BYTES_MAX`].
const PLAIN_DIGITS: usize = 9;

/// The longest annotation that is taken for one.
const NOTE_MAX: u64 = 64 << 10;

/// Whether a log is a file of an append-only log: its offsets begin at 0 with database 0 selected,
/// and annotations may stand between its commands (`aof.c`, `genAofTimestampAnnotationIfNeeded`).
/// Otherwise it is a replication stream, whose offsets and database go on under another id.
pub(crate) fn is_file(log: &str) -> bool {
    log.strip_suffix(".aof").is_some()
}

/// What a command means to a reader of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// From here on commands go to this database.
    Select(u32),
    /// Begins a record of several commands.
    Multi,
    /// Ends it.
    Exec,
    /// Keeps the connection alive.
    Ping,
    /// The master wants an acknowledgement at once.
    GetAck,
    /// Any other REPLCONF.
    ReplConf,
    /// PUBLISH or SPUBLISH: a message to subscribers, no change of data.
    Publish,
    /// An annotation in a file; one of the time says that what follows was done in this second
    /// (since 1970) or later.
    Note(Option<u64>),
    /// A change of data, or of scripts and functions.
    Data,
}

impl Kind {
    /// Whether the command changes data: it is replayed into a restored server.
    pub(crate) fn is_data(self) -> bool {
        matches!(self, Self::Data)
    }

    /// Whether the command concerns only replicas and subscribers that are attached right now.
    /// It never goes into a restored server.
    pub(crate) fn is_chatter(self) -> bool {
        matches!(self, Self::Ping | Self::GetAck | Self::ReplConf | Self::Publish | Self::Note(_))
    }
}

/// One command of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Command {
    /// Offset of its first byte.
    pub(crate) start: u64,
    /// Offset after its last byte.
    pub(crate) end: u64,
    /// What it means.
    pub(crate) kind: Kind,
    /// Offset of the first byte of the record it belongs to: its own, or that of its MULTI.
    pub(crate) record_start: u64,
    /// Whether a record ends with it: it stands outside of MULTI, or is the EXEC.
    pub(crate) ends_record: bool,
    /// Whether the record that ends with it changes data.
    pub(crate) record_has_data: bool,
    /// The database selected behind it. Means something only where a record ends.
    pub(crate) db: u32,
    /// Its name, if it is one that somebody may want to go back before.
    pub(crate) landmark: Option<&'static str>,
}

/// Where in a command the scanner stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the `*`.
    Start,
    /// In the number behind `*`.
    Count,
    /// Behind the `\r` of the count.
    CountEnd,
    /// Before a `$`.
    ArgStart,
    /// In the number behind `$`.
    Len,
    /// Behind the `\r` of the length.
    LenEnd,
    /// In the bytes of an argument.
    Arg,
    /// Before the `\r` behind an argument.
    ArgCr,
    /// Before the `\n` behind an argument.
    ArgLf,
    /// In an annotation.
    Note,
}

/// What kind of log is scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Stream,
    /// Annotations may stand between commands; `note` says that the last command is one.
    File {
        note: bool,
    },
}

/// The first bytes of an argument.
#[derive(Debug, Clone, Copy)]
struct Head {
    bytes: [u8; NAME_MAX],
    len: usize,
    /// Whether the argument is longer than what is kept.
    cut: bool,
}

impl Head {
    const EMPTY: Self = Self { bytes: [0; NAME_MAX], len: 0, cut: false };

    fn push(&mut self, bytes: &[u8]) {
        let room = self.bytes.get_mut(self.len..).unwrap_or_default();
        let taken = room.len().min(bytes.len());
        for (to, from) in room.iter_mut().zip(bytes) {
            *to = from.to_ascii_uppercase();
        }
        self.len += taken;
        self.cut |= taken < bytes.len();
    }

    /// The argument in upper case; empty if it is longer than what is kept.
    fn whole(&self) -> &[u8] {
        if self.cut { &[] } else { self.bytes.get(..self.len).unwrap_or_default() }
    }
}

/// Reads a stream piece by piece.
#[derive(Debug, Clone)]
pub(crate) struct Scanner {
    offset: u64,
    state: State,
    form: Form,
    number: u64,
    digits: u8,
    args_left: u64,
    arg_index: u64,
    arg_left: u64,
    name: Head,
    second: Head,
    command_start: u64,
    record_start: u64,
    in_multi: bool,
    record_has_data: bool,
    /// The database selected where the last record ended.
    db: u32,
    /// The database selected by what was scanned, inside of MULTI included.
    db_now: u32,
}

impl Scanner {
    /// A scanner whose first byte stands at `offset`, before a command outside of MULTI, with
    /// database `db` selected.
    pub(crate) fn new(offset: u64, db: u32) -> Self {
        Self {
            offset,
            state: State::Start,
            form: Form::Stream,
            number: 0,
            digits: 0,
            args_left: 0,
            arg_index: 0,
            arg_left: 0,
            name: Head::EMPTY,
            second: Head::EMPTY,
            command_start: offset,
            record_start: offset,
            in_multi: false,
            record_has_data: false,
            db,
            db_now: db,
        }
    }

    /// The same for a log of this name: see [`is_file`].
    pub(crate) fn of(log: &str, offset: u64, db: u32) -> Self {
        let form = if is_file(log) { Form::File { note: false } } else { Form::Stream };
        Self { form, ..Self::new(offset, db) }
    }

    /// Offset of the next byte to be scanned.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether the next byte begins a record.
    pub(crate) fn at_record_start(&self) -> bool {
        self.state == State::Start && !self.in_multi
    }

    /// Where the record begins that the next byte belongs to.
    pub(crate) fn record_start(&self) -> u64 {
        if self.at_record_start() { self.offset } else { self.record_start }
    }

    /// The database selected by what was scanned, inside of MULTI included.
    pub(crate) fn selected(&self) -> u32 {
        self.db_now
    }

    /// How many arguments the last command had, its name included.
    pub(crate) fn arguments(&self) -> u64 {
        self.arg_index
    }

    /// What the command that is being scanned means, as soon as its name was seen whole. `None`
    /// while it is not known yet. The number of a SELECT and the word behind REPLCONF may still
    /// be missing.
    pub(crate) fn kind_so_far(&self) -> Option<Kind> {
        if self.state == State::Note {
            return Some(Kind::Note(None));
        }
        let name_seen = self.arg_index > 0 || matches!(self.state, State::ArgCr | State::ArgLf);
        let named = name_seen || (self.state == State::Arg && self.name.cut);
        (self.state != State::Start && named).then(|| match self.name.whole() {
            b"SELECT" => Kind::Select(0),
            b"MULTI" => Kind::Multi,
            b"EXEC" => Kind::Exec,
            b"PING" => Kind::Ping,
            b"REPLCONF" => Kind::ReplConf,
            b"PUBLISH" | b"SPUBLISH" => Kind::Publish,
            _ => Kind::Data,
        })
    }

    /// The database selected where the last whole record ended.
    pub(crate) fn db(&self) -> u32 {
        self.db
    }

    /// Scans `bytes` from `*at` on, up to the end of a command, and moves `*at` behind what was
    /// scanned. `None` once all bytes are used up.
    ///
    /// # Errors
    /// Corrupt, with the offset, if the bytes are no replication stream. The scanner is of no
    /// use after that.
    pub(crate) fn next(&mut self, bytes: &[u8], at: &mut usize) -> Result<Option<Command>> {
        self.next_seen(bytes, at, |_, _| {})
    }

    /// The same; `seen` gets the bytes of arguments as they come, each piece with the number of its
    /// argument, from 0. An empty argument has no piece.
    ///
    /// # Errors
    /// As [`Scanner::next`].
    pub(crate) fn next_seen(
        &mut self,
        bytes: &[u8],
        at: &mut usize,
        mut seen: impl FnMut(u64, &[u8]),
    ) -> Result<Option<Command>> {
        while let Some(rest) = bytes.get(*at..)
            && let Some(&byte) = rest.first()
        {
            if self.state == State::Arg {
                let index = self.arg_index;
                let taken = self.argument(rest);
                seen(index, rest.get(..taken).unwrap_or_default());
                *at += taken;
                self.offset += taken as u64;
                continue;
            }
            if let Some(taken) = self.argument_head(rest) {
                *at += taken;
                self.offset += taken as u64;
                continue;
            }
            let ended = self.step(byte)?;
            *at += 1;
            self.offset += 1;
            if ended {
                return self.command().map(Some);
            }
        }
        Ok(None)
    }

    /// Takes bytes of the argument that the scanner stands in.
    fn argument(&mut self, rest: &[u8]) -> usize {
        let left = usize::try_from(self.arg_left).unwrap_or(usize::MAX);
        let bytes = rest.get(..left).unwrap_or(rest);
        match self.arg_index {
            0 => self.name.push(bytes),
            1 => self.second.push(bytes),
            _ => {}
        }
        self.arg_left -= bytes.len() as u64;
        if self.arg_left == 0 {
            self.state = State::ArgCr;
        }
        bytes.len()
    }

    /// Takes what stands before an argument, and the end of the line of the one before it, at once:
    /// the same as [`Scanner::step`] does with each byte. `None` if it is not all there or not plain.
    fn argument_head(&mut self, rest: &[u8]) -> Option<usize> {
        let behind = match self.state {
            State::ArgStart => rest.strip_prefix(b"$")?,
            State::ArgCr if self.args_left > 1 => rest.strip_prefix(b"\r\n$")?,
            _ => return None,
        };
        let (mut len, mut digits) = (0, 0);
        for digit in behind.iter().take(PLAIN_DIGITS).take_while(|byte| byte.is_ascii_digit()) {
            len = len * 10 + u64::from(digit - b'0');
            digits += 1;
        }
        let behind = behind.get(digits..)?.strip_prefix(b"\r\n").filter(|_| digits > 0)?;
        if self.state == State::ArgCr {
            self.args_left -= 1;
            self.arg_index += 1;
        }
        self.arg_left = len;
        self.state = if len == 0 { State::ArgCr } else { State::Arg };
        Some(rest.len() - behind.len())
    }

    /// Takes one byte outside of arguments. True if a command ends with it.
    fn step(&mut self, byte: u8) -> Result<bool> {
        self.state = match (self.state, byte) {
            (State::Start, b'*' | b'#') if byte == b'*' || self.form != Form::Stream => {
                if let Form::File { note } = &mut self.form {
                    *note = byte == b'#';
                }
                self.command_start = self.offset;
                if !self.in_multi {
                    self.record_start = self.offset;
                    self.record_has_data = false;
                }
                (self.number, self.digits) = (0, 0);
                (self.name, self.second, self.arg_index) = (Head::EMPTY, Head::EMPTY, 0);
                if byte == b'#' { State::Note } else { State::Count }
            }
            (State::Note, b'\n') => State::Start,
            (State::Note, _) if self.number < NOTE_MAX => {
                self.name.push(&[byte]);
                self.number += 1;
                State::Note
            }
            (State::ArgStart, b'$') => {
                (self.number, self.digits) = (0, 0);
                State::Len
            }
            (State::Count | State::Len, b'0'..=b'9') if self.digits < 19 => {
                self.number = self.number * 10 + u64::from(byte - b'0');
                self.digits += 1;
                self.state
            }
            (State::Count, b'\r') if self.digits > 0 => State::CountEnd,
            (State::Len, b'\r') if self.digits > 0 => State::LenEnd,
            (State::CountEnd, b'\n') if (1..=ARGS_MAX).contains(&self.number) => {
                self.args_left = self.number;
                State::ArgStart
            }
            (State::LenEnd, b'\n') if self.number <= ARG_BYTES_MAX => {
                self.arg_left = self.number;
                if self.number == 0 { State::ArgCr } else { State::Arg }
            }
            (State::ArgCr, b'\r') => State::ArgLf,
            (State::ArgLf, b'\n') => {
                self.args_left -= 1;
                self.arg_index += 1;
                if self.args_left == 0 { State::Start } else { State::ArgStart }
            }
            _ => return Err(self.unexpected(byte)),
        };
        Ok(self.state == State::Start)
    }

    /// The command that ended with the last byte.
    fn command(&mut self) -> Result<Command> {
        let kind = self.kind()?;
        // The same as `multi.c` does: MULTI within MULTI and EXEC without one change nothing.
        match kind {
            Kind::Select(db) => self.db_now = db,
            Kind::Multi => self.in_multi = true,
            Kind::Exec => self.in_multi = false,
            Kind::Data => self.record_has_data = true,
            _ => {}
        }
        let ends_record = !self.in_multi;
        if ends_record {
            self.db = self.db_now;
        }
        Ok(Command {
            start: self.command_start,
            end: self.offset,
            kind,
            record_start: self.record_start,
            ends_record,
            record_has_data: self.record_has_data,
            db: self.db_now,
            landmark: match self.name.whole() {
                _ if self.form == (Form::File { note: true }) => None,
                b"FLUSHALL" => Some("FLUSHALL"),
                b"FLUSHDB" => Some("FLUSHDB"),
                b"SWAPDB" => Some("SWAPDB"),
                _ => None,
            },
        })
    }

    fn kind(&self) -> Result<Kind> {
        if self.form == (Form::File { note: true }) {
            let text = std::str::from_utf8(self.name.whole()).ok();
            let secs = text.and_then(|text| text.trim_end().strip_prefix("TS:")?.parse().ok());
            return Ok(Kind::Note(secs));
        }
        Ok(match self.name.whole() {
            b"SELECT" => {
                let number = std::str::from_utf8(self.second.whole()).ok();
                let db = number.and_then(|n| n.parse().ok()).filter(|_| self.arg_index == 2);
                let at = self.command_start;
                Kind::Select(db.ok_or_else(|| {
                    Error::corrupt(format!("replication stream: SELECT of no database at {at}"))
                })?)
            }
            b"MULTI" => Kind::Multi,
            // DISCARD is never replicated; if it were, it would end what MULTI began.
            b"EXEC" | b"DISCARD" => Kind::Exec,
            b"PING" => Kind::Ping,
            b"REPLCONF" if self.second.whole() == b"GETACK" => Kind::GetAck,
            b"REPLCONF" => Kind::ReplConf,
            b"PUBLISH" | b"SPUBLISH" => Kind::Publish,
            _ => Kind::Data,
        })
    }

    fn unexpected(&self, byte: u8) -> Error {
        let expected = match self.state {
            State::Start => "'*'",
            State::Count => "the number of arguments",
            State::Note => "the end of an annotation",
            State::ArgStart => "'$'",
            State::Len => "the length of an argument",
            State::CountEnd if !(1..=ARGS_MAX).contains(&self.number) => "1 to 2^31-1 arguments",
            State::LenEnd if self.number > ARG_BYTES_MAX => "an argument of at most 1 TiB",
            _ => "the end of a line",
        };
        let (shown, at) = (byte.escape_ascii(), self.offset);
        Error::corrupt(format!("replication stream: '{shown}' at {at} instead of {expected}"))
    }
}

#[cfg(test)]
mod tests;
