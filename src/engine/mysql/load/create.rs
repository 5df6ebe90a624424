//! Reads `CREATE TABLE` statements as dumps carry them, which is as `SHOW CREATE TABLE` gives
//! them: which keys can wait until the rows are in, and whether rows may come in any order.
//!
//! A key waits only if it is of the plain kind: whole columns or their first characters, not the
//! primary key, not needed by an `AUTO_INCREMENT` column or a foreign key, and not in front of one
//! of its kind that stays, since the order of keys is a part of a table's definition.
//!
//! **Invariant:** what is not understood is left as it is. That a server makes the same table of
//! the two steps is not believed from here: the loader lets it show.

/// More partitions than this, and making each key several times costs more than it saves.
const PARTITIONS: usize = 64;

/// What a `CREATE TABLE` says, as far as loading depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Definition<'a> {
    /// The name as it is quoted there.
    pub(super) name: &'a str,
    /// Whether it is one of InnoDB.
    pub(super) is_innodb: bool,
    /// Whether rows may come in any order, over any connection: InnoDB with a primary key.
    pub(super) any_order: bool,
    /// Keys that can be added after the rows.
    pub(super) later: Vec<Key<'a>>,
    /// Tables that foreign keys refer to, as they are quoted there.
    pub(super) refers_to: Vec<&'a str>,
}

/// A secondary key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key<'a> {
    /// Its name as it is quoted there.
    pub(super) name: &'a str,
    /// All of it, as `ADD` takes it.
    pub(super) text: &'a str,
}

impl<'a> Definition<'a> {
    /// Reads a statement. Nothing, if it is not one that makes a table with named columns.
    pub(super) fn read(statement: &'a str) -> Option<Self> {
        let rest = statement.strip_prefix("CREATE TABLE ")?;
        let rest = rest.strip_prefix("IF NOT EXISTS ").unwrap_or(rest);
        let (name, rest) = quoted(rest)?;
        let body = rest.trim_start().strip_prefix('(')?;
        let (items, options) = items(body)?;
        let keys: Vec<Item<'a>> = items.iter().map(|item| Item::read(item)).collect();
        let column = |item: &&&'a str| item.starts_with('`');
        let counted: Vec<&str> = items
            .iter()
            .filter(column)
            .filter_map(|item| quoted(item))
            .filter(|(_, rest)| has_word(rest, "AUTO_INCREMENT"))
            .map(|(name, _)| name)
            .collect();
        let mut refers_to = vec![];
        let mut needed = counted;
        for item in &keys {
            if let Item::ForeignKey { columns, table } = item {
                refers_to.push(*table);
                needed.extend(columns);
            }
        }
        let is_innodb = engine_is_innodb(options);
        let any_order = is_innodb
            && keys.contains(&Item::Primary)
            && !has_word(options, "VERSIONING")
            && !keys.contains(&Item::Unknown);
        let later = if any_order && partitions(options) <= PARTITIONS {
            later(&keys, &needed)
        } else {
            vec![]
        };
        Some(Self { name, is_innodb, any_order, later, refers_to })
    }
}

/// The keys that can wait, in their order.
fn later<'a>(items: &[Item<'a>], needed: &[&str]) -> Vec<Key<'a>> {
    let (mut unique_stays, mut other_stays) = (false, false);
    let mut later = vec![];
    for item in items.iter().rev() {
        let Item::Secondary { unique, key, first, plain } = item else { continue };
        let stays = if *unique { &mut unique_stays } else { &mut other_stays };
        *stays |= !plain || needed.contains(first);
        if !*stays {
            later.push(*key);
        }
    }
    later.reverse();
    later
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Item<'a> {
    Column,
    Primary,
    Secondary {
        unique: bool,
        key: Key<'a>,
        /// Its first column, quoted; empty for an expression.
        first: &'a str,
        /// Whether it is nothing but columns and settings that are known.
        plain: bool,
    },
    ForeignKey {
        columns: Vec<&'a str>,
        table: &'a str,
    },
    /// Something else that is no column and no key.
    Other,
    Unknown,
}

impl<'a> Item<'a> {
    fn read(item: &'a str) -> Self {
        let key =
            |unique, rest: &'a str| Self::secondary(item, unique, rest).unwrap_or(Self::Unknown);
        if item.starts_with('`') {
            Self::Column
        } else if item.starts_with("PRIMARY KEY ") {
            Self::Primary
        } else if let Some(rest) = item.strip_prefix("UNIQUE KEY ") {
            key(true, rest)
        } else if let Some(rest) = item.strip_prefix("KEY ") {
            key(false, rest)
        } else if let Some(rest) = item.strip_prefix("CONSTRAINT ") {
            Self::constraint(rest).unwrap_or(Self::Unknown)
        } else if ["FULLTEXT KEY ", "SPATIAL KEY ", "CHECK ", "/*!", "PERIOD "]
            .iter()
            .any(|start| item.starts_with(start))
        {
            Self::Other
        } else {
            Self::Unknown
        }
    }

    fn secondary(text: &'a str, unique: bool, rest: &'a str) -> Option<Self> {
        let (name, rest) = quoted(rest)?;
        let body = rest.strip_prefix(" (")?;
        let (parts, settings) = items(body)?;
        let first = parts.first().and_then(|part| quoted(part)).map_or("", |(name, _)| name);
        let plain = parts.iter().all(|part| is_plain_part(part)) && are_plain_settings(settings);
        Some(Self::Secondary { unique, key: Key { name, text }, first, plain })
    }

    /// What stands behind CONSTRAINT: a foreign key or a check.
    fn constraint(rest: &'a str) -> Option<Self> {
        let (_, rest) = quoted(rest)?;
        let Some(body) = rest.strip_prefix(" FOREIGN KEY (") else {
            return rest.starts_with(" CHECK (").then_some(Self::Other);
        };
        let (columns, rest) = items(body)?;
        let columns =
            columns.iter().map(|column| Some(quoted(column)?.0)).collect::<Option<_>>()?;
        let (mut table, rest) = quoted(rest.strip_prefix(" REFERENCES ")?)?;
        if let Some(rest) = rest.strip_prefix('.') {
            table = quoted(rest)?.0;
        }
        Some(Self::ForeignKey { columns, table })
    }
}

/// `` `column` ``, `` `column`(10) ``, both with DESC or ASC behind them.
fn is_plain_part(part: &str) -> bool {
    let Some((_, rest)) = quoted(part) else { return false };
    let rest = match rest.strip_prefix('(') {
        Some(length) => match length.split_once(')') {
            Some((digits, rest)) if digits.bytes().all(|byte| byte.is_ascii_digit()) => rest,
            _ => return false,
        },
        None => rest,
    };
    matches!(rest, "" | " DESC" | " ASC")
}

/// What may stand behind a key's columns without making it another kind of key.
fn are_plain_settings(settings: &str) -> bool {
    let mut rest = settings.trim();
    while !rest.is_empty() {
        // Not USING HASH: in MariaDB that may be a key over a hidden column.
        let known = ["USING BTREE", "/*!80000 INVISIBLE */", "IGNORED"];
        let behind = known.iter().find_map(|known| rest.strip_prefix(known));
        let behind = behind.or_else(|| {
            let number = rest.strip_prefix("KEY_BLOCK_SIZE=")?;
            Some(number.trim_start_matches(|c: char| c.is_ascii_digit()))
        });
        let behind = behind.or_else(|| {
            let text = rest.strip_prefix("COMMENT ")?;
            text.starts_with('\'').then(|| text.get(quoted_len(text)?..)).flatten()
        });
        let Some(behind) = behind else { return false };
        rest = behind.trim_start();
    }
    true
}

/// How many partitions the options ask for, at least; subpartitions count.
fn partitions(options: &str) -> usize {
    let mut found = 0_usize;
    let mut words = Words(options);
    let mut before = "";
    while let Some(word) = words.next() {
        // `PARTITION name VALUES`, and `PARTITIONS 8`: not `PARTITION BY`.
        if before.eq_ignore_ascii_case("PARTITION") && !word.eq_ignore_ascii_case("BY") {
            found += 1;
        } else if before.to_ascii_uppercase().ends_with("PARTITIONS") {
            found = found.max(1).saturating_mul(word.parse().unwrap_or(1));
        }
        before = word;
    }
    found
}

fn engine_is_innodb(options: &str) -> bool {
    let mut words = Words(options);
    while let Some(word) = words.next() {
        if word == "ENGINE" {
            return words.next() == Some("=") && words.next() == Some("InnoDB");
        }
    }
    false
}

fn has_word(text: &str, wanted: &str) -> bool {
    let mut words = Words(text);
    std::iter::from_fn(|| words.next()).any(|word| word.eq_ignore_ascii_case(wanted))
}

/// Words and single other characters, without what is in quotes or comments; what is in
/// conditional comments counts.
struct Words<'a>(&'a str);

impl<'a> Words<'a> {
    fn next(&mut self) -> Option<&'a str> {
        loop {
            self.0 = self.0.trim_start();
            let skip = match self.0.as_bytes() {
                [b'/', b'*', b'!', ..] => {
                    let version = self.0.get(3..)?;
                    let behind = version.trim_start_matches(|c: char| c.is_ascii_digit());
                    self.0.len() - behind.len()
                }
                [b'/', b'*', ..] => self.0.find("*/")? + 2,
                [b'*', b'/', ..] => 2,
                [b'\'' | b'"' | b'`', ..] => {
                    let (word, rest) = self.0.split_at_checked(quoted_len(self.0)?)?;
                    self.0 = rest;
                    return Some(word);
                }
                [] => return None,
                _ => break,
            };
            self.0 = self.0.get(skip..)?;
        }
        let in_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$');
        let len = self.0.find(|c| !in_word(c)).unwrap_or(self.0.len());
        let len = if len == 0 { self.0.chars().next()?.len_utf8() } else { len };
        let (word, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(word)
    }
}

/// A name in backquotes with them, and what follows it.
fn quoted(text: &str) -> Option<(&str, &str)> {
    if !text.starts_with('`') {
        return None;
    }
    text.split_at_checked(quoted_len(text)?)
}

/// Length of what is quoted at the beginning of a text, with its quotes.
fn quoted_len(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let quote = *bytes.first()?;
    let mut at = 1;
    loop {
        match bytes.get(at..)? {
            [b'\\', _, ..] if quote != b'`' => at += 2,
            [a, b, ..] if *a == quote && *b == quote => at += 2,
            [a, ..] if *a == quote => return Some(at + 1),
            [_, ..] => at += 1,
            [] => return None,
        }
    }
}

/// The parts of a list, taken apart at its commas, and what follows its closing parenthesis.
fn items(body: &str) -> Option<(Vec<&str>, &str)> {
    let bytes = body.as_bytes();
    let (mut parts, mut from, mut at, mut depth) = (vec![], 0, 0, 0_usize);
    loop {
        match bytes.get(at..)? {
            [b'\'' | b'"' | b'`', ..] => {
                at += quoted_len(body.get(at..)?)?;
                continue;
            }
            [b'/', b'*', after, ..] if *after != b'!' => {
                at += body.get(at..)?.find("*/")? + 2;
                continue;
            }
            [b'(', ..] => depth += 1,
            [b',', ..] if depth == 0 => {
                parts.push(body.get(from..at)?.trim());
                from = at + 1;
            }
            [b')', ..] if depth == 0 => {
                parts.push(body.get(from..at)?.trim());
                return Some((parts, body.get(at + 1..)?));
            }
            [b')', ..] => depth -= 1,
            [_, ..] => {}
            [] => return None,
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests;
