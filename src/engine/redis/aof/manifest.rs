//! The manifest of a multi-part append-only file: which files there are, in which order.
//!
//! `aof.c` of Redis (`aofLoadManifestFromFile`): one file a line, as pairs of keys and values,
//! `file <name> seq <number> type <b|h|i>`; Redis 8 adds pairs (`startoffset`, `endoffset`). A name
//! may be quoted (`sds.c`, `sdssplitargs`). The server writes a manifest anew and renames it into
//! its place, so it is read as a whole.
//!
//! **Invariant:** whatever the bytes, nothing panics, and a name never leads out of the folder.

use crate::error::{Error, Result};

/// The longest line that the server itself takes.
const LINE_MAX: usize = 1024;

/// What the server is told to do now, as files: the base and the increments behind it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// The full copy.
    pub(crate) base: Option<Entry>,
    /// The log behind it, in order. Two or more while the base is rewritten, and after it could
    /// not be.
    pub(crate) increments: Vec<Entry>,
}

/// A file of a [`Manifest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its name.
    pub(crate) name: String,
    /// Its number among those of its kind.
    pub(crate) seq: u64,
}

/// Reads a manifest.
///
/// # Errors
/// Corrupt, with the number of the line, if it is none.
pub(crate) fn parse(bytes: &[u8]) -> Result<Manifest> {
    let text = std::str::from_utf8(bytes).map_err(|_| Error::corrupt("a manifest is not UTF-8"))?;
    if !text.is_empty() && !text.ends_with('\n') {
        return Err(Error::corrupt("the last line of a manifest is not whole"));
    }
    let mut manifest = Manifest::default();
    for (index, line) in text.lines().enumerate() {
        let wrong = |what: &str| Error::corrupt(format!("manifest, line {}: {what}", index + 1));
        if line.starts_with('#') {
            continue;
        }
        if line.len() > LINE_MAX {
            return Err(wrong("it is too long"));
        }
        let (entry, kind) = entry(line).map_err(wrong)?;
        match kind {
            Kind::Base if manifest.base.is_some() => return Err(wrong("a second base")),
            Kind::Base => manifest.base = Some(entry),
            Kind::Increment => {
                if manifest.increments.last().is_some_and(|last| last.seq >= entry.seq) {
                    return Err(wrong("an increment out of order"));
                }
                manifest.increments.push(entry);
            }
            Kind::History => {}
        }
    }
    Ok(manifest)
}

enum Kind {
    Base,
    History,
    Increment,
}

fn entry(line: &str) -> Result<(Entry, Kind), &'static str> {
    let words = split(line).ok_or("a quote is not closed")?;
    let (mut name, mut seq, mut kind) = (None, None, None);
    if words.len() < 6 || !words.len().is_multiple_of(2) {
        return Err("not pairs of keys and values");
    }
    for pair in words.chunks_exact(2) {
        let [key, value] = pair else { continue };
        match key.to_ascii_lowercase().as_str() {
            "file" => name = Some(value.clone()),
            "seq" => seq = value.parse().ok(),
            "type" => {
                kind = match value.as_str() {
                    "b" => Some(Kind::Base),
                    "h" => Some(Kind::History),
                    "i" => Some(Kind::Increment),
                    _ => return Err("a file of an unknown type"),
                }
            }
            // What newer versions add.
            _ => {}
        }
    }
    let name = name.filter(|name| is_plain(name)).ok_or("no name of a file")?;
    let seq = seq.ok_or("no number of a file")?;
    Ok((Entry { name, seq }, kind.ok_or("no type of a file")?))
}

/// Whether a name is one within the folder.
fn is_plain(name: &str) -> bool {
    let odd = |c: char| c.is_control() || matches!(c, '/' | '\\');
    !name.is_empty() && name != "." && name != ".." && !name.contains(odd)
}

/// Splits a line at spaces that are not within quotes. `None` if a quote is not closed, or what is
/// quoted is not UTF-8.
fn split(line: &str) -> Option<Vec<String>> {
    let mut words = vec![];
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        let (word, behind) = match first {
            '"' | '\'' => quoted(rest.get(1..)?, first)?,
            _ => {
                let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
                let (word, behind) = rest.split_at_checked(end)?;
                (word.to_owned(), behind)
            }
        };
        if !behind.is_empty() && !behind.starts_with(char::is_whitespace) {
            return None;
        }
        words.push(word);
        rest = behind.trim_start();
    }
    Some(words)
}

/// What stands in quotes, and what stands behind them.
fn quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut bytes = vec![];
    let mut rest = text;
    loop {
        let next = rest.chars().next()?;
        rest = rest.get(next.len_utf8()..)?;
        if next == quote {
            return Some((String::from_utf8(bytes).ok()?, rest));
        }
        if next != '\\' {
            bytes.extend_from_slice(next.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        let escaped = rest.chars().next()?;
        rest = rest.get(escaped.len_utf8()..)?;
        let byte = match (quote, escaped) {
            ('\'', '\'') => b'\'',
            // Within single quotes nothing else is escaped.
            ('\'', _) => {
                bytes.push(b'\\');
                bytes.extend_from_slice(escaped.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
            (_, 'n') => b'\n',
            (_, 'r') => b'\r',
            (_, 't') => b'\t',
            (_, 'b') => 8,
            (_, 'a') => 7,
            (_, 'x')
                if rest.get(..2).is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit())) =>
            {
                let byte = u8::from_str_radix(rest.get(..2)?, 16).ok()?;
                rest = rest.get(2..)?;
                byte
            }
            _ => {
                bytes.extend_from_slice(escaped.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
        };
        bytes.push(byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    fn entry(name: &str, seq: u64) -> Entry {
        Entry { name: name.into(), seq }
    }

    #[test]
    fn a_rewrite_has_two_live_increments_and_history_is_passed_over() {
        let text = "# written by a server\n\
                    file appendonly.aof.4.base.rdb seq 4 type b\n\
                    file appendonly.aof.3.incr.aof seq 3 type h\n\
                    file appendonly.aof.9.incr.aof seq 9 type i startoffset 77\n\
                    FILE \"a \\\"b\\\"\\x41.10.incr.aof\" SEQ 10 TYPE i startoffset 90 endoffset 99\n";
        let manifest = parse(text.as_bytes()).unwrap();
        assert_eq!(manifest.base, Some(entry("appendonly.aof.4.base.rdb", 4)));
        let increments = [entry("appendonly.aof.9.incr.aof", 9), entry("a \"b\"A.10.incr.aof", 10)];
        assert_eq!(manifest.increments, increments);
        assert_eq!(parse(b"").unwrap(), Manifest::default());
    }

    #[rstest]
    #[case::torn("file a seq 1 type i")]
    #[case::odd("file a seq 1 type i more\n")]
    #[case::short("file a seq 1\n")]
    #[case::kind("file a seq 1 type x\n")]
    #[case::number("file a seq one type i\n")]
    #[case::outside("file ../a seq 1 type i\n")]
    #[case::hidden_outside("file \"..\\x2fa\" seq 1 type i\n")]
    #[case::open_quote("file \"a seq 1 type i\n")]
    #[case::glued("file \"a\"b seq 1 type i\n")]
    #[case::two_bases("file a seq 1 type b\nfile b seq 2 type b\n")]
    #[case::order("file a seq 2 type i\nfile b seq 1 type i\n")]
    #[case::empty_line("file a seq 1 type b\n\n")]
    fn what_is_no_manifest_is_refused(#[case] text: &str) {
        let error = parse(text.as_bytes()).unwrap_err();
        assert_eq!(error.class(), crate::error::Class::Corrupt, "{error}");
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_no_name_leads_out(
            bytes in proptest::collection::vec(
                prop_oneof![
                    any::<u8>().prop_map(|byte| vec![byte]),
                    "(file|seq|type|b|i|h|[0-9]| |\n|\"|'|\\\\|x2f|\\.\\./)".prop_map(String::into_bytes),
                ],
                0..60,
            ),
        ) {
            super::super::super::fuzz::manifest(&bytes.concat());
        }
    }
}
