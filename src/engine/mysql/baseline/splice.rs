//! Finds, in what a dump program writes, the rows that it cannot write exactly.
//!
//! Dump programs ask the server for values as text. A FLOAT then has six digits, the sign of a
//! zero gets lost when `-0` is read as an integer, and a member `''` of an ENUM looks like its
//! error value. Rows of such tables are left out here, and the caller is told where it has to put
//! its own ([`Part::Rows`]); in rows of tables that can only hold the sign of a zero, that token
//! is put in quotes, because a text `'-0'` keeps its sign.
//!
//! ```text
//! USE `shop`;
//! LOCK TABLES `t` WRITE;
//! /*!40000 ALTER TABLE `t` DISABLE KEYS */;
//! INSERT INTO `t` VALUES (…),(…);            MariaDB's program begins a line with each row
//! /*!40000 ALTER TABLE `t` ENABLE KEYS */;
//! ```
//!
//! **Invariant:** each table whose rows are left out is met exactly once, with nothing but rows
//! between these lines; anything else is an error. What is held back is bounded by [`LONG`].

use crate::error::{Error, Result};
use bytes::{Bytes, BytesMut};
use std::collections::{BTreeMap, BTreeSet};

/// From this length on, in bytes, a line is handed on in parts. Lines that have to be understood
/// as a whole hold two names of 64 characters.
const LONG: usize = 4 << 10;

/// How a dump sets the mode in which it is loaded, and how it has to be: a date such as
/// `2024-02-30`, which a source may have let in, else becomes `0000-00-00` without a word.
const SQL_MODE: [&[u8]; 2] = [
    b"/*!40101 SET @OLD_SQL_MODE=@@SQL_MODE, SQL_MODE='NO_AUTO_VALUE_ON_ZERO' */;\n",
    b"/*!40101 SET @OLD_SQL_MODE=@@SQL_MODE, SQL_MODE='NO_AUTO_VALUE_ON_ZERO,\
      ALLOW_INVALID_DATES' */;\n",
];

/// A table: schema and name.
pub(super) type Name = (String, String);

/// What becomes of the rows that the program writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Care {
    /// The caller writes them.
    Replace,
    /// They stay, but zeros keep their signs.
    Signs,
}

/// A piece of the dump as it has to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// These bytes.
    Text(Bytes),
    /// Here, at the beginning of a line, the rows of this table.
    Rows(Name),
    /// Nothing more until the program has written more.
    More,
}

#[derive(Debug)]
enum Place {
    /// Not among rows.
    Outside,
    /// Behind the line that locks the table of this name, in quotes.
    Locked(Vec<u8>),
    /// Among its rows.
    Rows(Vec<u8>, Option<Care>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Copy,
    Drop,
    Signs,
}

/// Takes a dump apart.
#[derive(Debug)]
pub(super) struct Splice {
    /// By schema and name, both in quotes.
    cares: BTreeMap<(Vec<u8>, Vec<u8>), (Name, Care)>,
    /// Tables still to be met whose rows are replaced.
    missing: BTreeSet<Name>,
    schema: Vec<u8>,
    /// Whether the mode was set as it has to be.
    mode_set: bool,
    place: Place,
    held: BytesMut,
    /// What can be handed out.
    ready: BytesMut,
    /// How the line goes on of which a part was taken already.
    within: Option<Mode>,
    signs: Signs,
}

impl Splice {
    /// For a dump in which these tables need care.
    pub(super) fn new(cares: impl IntoIterator<Item = (Name, Care)>) -> Self {
        let quote = |name: &str| super::super::accounts::identifier(name).into_bytes();
        let cares: BTreeMap<_, _> = cares
            .into_iter()
            .map(|(name, care)| ((quote(&name.0), quote(&name.1)), (name, care)))
            .collect();
        let replaced = cares.values().filter(|(_, care)| *care == Care::Replace);
        Self {
            missing: replaced.map(|(name, _)| name.clone()).collect(),
            cares,
            schema: vec![],
            mode_set: false,
            place: Place::Outside,
            held: BytesMut::new(),
            ready: BytesMut::new(),
            within: None,
            signs: Signs::default(),
        }
    }

    /// Takes the next bytes; ask for all parts before giving more.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// What comes next.
    ///
    /// # Errors
    /// Unavailable, if the dump is not of the form known.
    pub(super) fn next(&mut self) -> Result<Part> {
        while self.due().is_none()
            && let Some((piece, whole)) = self.piece()
        {
            self.take(&piece, whole)?;
        }
        if !self.ready.is_empty() {
            return Ok(Part::Text(self.ready.split().freeze()));
        }
        let Some(name) = self.due() else { return Ok(Part::More) };
        self.missing.remove(&name);
        Ok(Part::Rows(name))
    }

    /// Takes bytes in which the rows go on that are left out.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub(super) fn skip(&mut self, bytes: &[u8]) -> Result<()> {
        self.feed(bytes);
        while self.is_among_rows()
            && let Some((piece, whole)) = self.piece()
        {
            self.take(&piece, whole)?;
        }
        Ok(())
    }

    /// Whether rows that are left out go on.
    pub(super) fn is_among_rows(&self) -> bool {
        matches!(self.place, Place::Rows(_, Some(Care::Replace)))
    }

    /// The table whose rows belong here and were not asked for yet.
    fn due(&self) -> Option<Name> {
        let Place::Rows(table, Some(Care::Replace)) = &self.place else { return None };
        let (name, _) = self.cares.get(&(self.schema.clone(), table.clone()))?;
        self.missing.contains(name).then(|| name.clone())
    }

    /// The bytes that are left at the end.
    ///
    /// # Errors
    /// Unavailable, if a table was not met.
    pub(super) fn finish(&mut self) -> Result<Bytes> {
        if !self.mode_set {
            return Err(Error::unavailable("the dump does not set sql_mode as is expected"));
        }
        if let Some((schema, table)) = self.missing.first() {
            return Err(Error::unavailable(format!(
                "the dump does not show where the rows of {schema}.{table} are"
            )));
        }
        if self.within == Some(Mode::Drop) || matches!(self.place, Place::Rows(..)) {
            return Err(Error::unavailable("the dump ends among the rows of a table"));
        }
        Ok(self.held.split().freeze())
    }

    /// The next line, or a part of a long one, and whether it ends there.
    fn piece(&mut self) -> Option<(BytesMut, bool)> {
        if let Some(end) = self.held.iter().position(|byte| *byte == b'\n') {
            return Some((self.held.split_to(end + 1), true));
        }
        (self.held.len() >= LONG).then(|| (self.held.split(), false))
    }

    fn take(&mut self, piece: &[u8], ends: bool) -> Result<()> {
        let mode = match self.within {
            Some(mode) => mode,
            None => self.classify(piece)?,
        };
        self.within = (!ends).then_some(mode);
        let [theirs, ours] = SQL_MODE;
        match mode {
            Mode::Copy if piece == theirs && !self.mode_set => {
                self.ready.extend_from_slice(ours);
                self.mode_set = true;
            }
            Mode::Copy => self.ready.extend_from_slice(piece),
            Mode::Drop => {}
            Mode::Signs => self.signs.keep(piece, &mut self.ready),
        }
        Ok(())
    }

    /// Understands the beginning of a line.
    fn classify(&mut self, line: &[u8]) -> Result<Mode> {
        if let Place::Rows(table, care) = &self.place {
            let care = *care;
            if keys_line(line, b"ENABLE").is_some_and(|name| name == table) {
                self.place = Place::Outside;
                return Ok(Mode::Copy);
            }
            let insert = line
                .strip_prefix(b"INSERT INTO ")
                .and_then(|rest| rest.strip_prefix(table.as_slice()));
            let is_row =
                insert.is_some_and(|rest| rest.starts_with(b" ")) || line.starts_with(b"(");
            return match care {
                None => Ok(Mode::Copy),
                Some(care) if is_row => {
                    self.signs = Signs::default();
                    Ok(if care == Care::Signs { Mode::Signs } else { Mode::Drop })
                }
                Some(_) => Err(Error::unavailable(format!(
                    "a line among the rows of {} is not understood: {}",
                    String::from_utf8_lossy(table),
                    String::from_utf8_lossy(line.get(..60).unwrap_or(line)).trim_end()
                ))),
            };
        }
        let before = std::mem::replace(&mut self.place, Place::Outside);
        if let Place::Locked(table) = before
            && keys_line(line, b"DISABLE").is_some_and(|name| name == table)
        {
            let found = self.cares.get(&(self.schema.clone(), table.clone()));
            let care = found.map(|(_, care)| *care);
            if let Some((name, Care::Replace)) = found
                && !self.missing.contains(name)
            {
                return Err(Error::unavailable(format!(
                    "the dump shows the rows of {}.{} twice",
                    name.0, name.1
                )));
            }
            self.place = Place::Rows(table, care);
        } else if let Some(schema) = between(line, b"USE ", b";\n") {
            self.schema = schema.to_vec();
        } else if let Some(table) = between(line, b"LOCK TABLES ", b" WRITE;\n") {
            self.place = Place::Locked(table.to_vec());
        }
        Ok(Mode::Copy)
    }
}

fn between<'a>(line: &'a [u8], before: &[u8], after: &[u8]) -> Option<&'a [u8]> {
    line.strip_prefix(before)?.strip_suffix(after)
}

/// The table in ``/*!40000 ALTER TABLE `t` ENABLE KEYS */;``.
fn keys_line<'a>(line: &'a [u8], verb: &[u8]) -> Option<&'a [u8]> {
    between(line, b"/*!40000 ALTER TABLE ", b" KEYS */;\n")?.strip_suffix(verb)?.strip_suffix(b" ")
}

/// Puts a value `-0` or `-0.00` in quotes, for as long as a row may be.
#[derive(Debug, Default)]
struct Signs {
    /// The quote that a text or name was begun with.
    quote: Option<u8>,
    escaped: bool,
    /// A value that may turn out to be one, begun behind `(` or `,`.
    value: Vec<u8>,
    at_value: bool,
}

impl Signs {
    fn keep(&mut self, bytes: &[u8], out: &mut BytesMut) {
        for &byte in bytes {
            if let Some(quote) = self.quote {
                out.extend_from_slice(&[byte]);
                if self.escaped {
                    self.escaped = false;
                } else if byte == b'\\' && quote == b'\'' {
                    self.escaped = true;
                } else if byte == quote {
                    self.quote = None;
                }
                continue;
            }
            if self.goes_on(byte) {
                self.value.push(byte);
                continue;
            }
            if !self.value.is_empty() {
                let zero = self.value.len() > 1 && matches!(byte, b',' | b')');
                let quotes: &[u8] = if zero { b"'" } else { b"" };
                for part in [quotes, &self.value, quotes] {
                    out.extend_from_slice(part);
                }
                self.value.clear();
            }
            out.extend_from_slice(&[byte]);
            self.at_value = matches!(byte, b'(' | b',');
            if matches!(byte, b'\'' | b'`') {
                self.quote = Some(byte);
            }
        }
    }

    /// Whether this byte goes on with what may be a negative zero.
    fn goes_on(&self, byte: u8) -> bool {
        match self.value.as_slice() {
            [] => self.at_value && byte == b'-',
            [_, _] => byte == b'.',
            _ => byte == b'0',
        }
    }
}

#[cfg(test)]
#[path = "splice_tests.rs"]
mod tests;
