//! Which keys of a Redis server are restored.

use std::fmt;

/// A choice of keys: those in the databases named that match a pattern and begin with none of the
/// prefixes. What is empty does not restrict.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keys {
    /// Patterns as those of the command KEYS; a key matches one of them.
    pub patterns: Vec<String>,
    /// Databases.
    pub databases: Vec<u32>,
    /// Beginnings of keys that are left out.
    pub without: Vec<String>,
}

impl Keys {
    /// Whether nothing is left out.
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }

    /// Whether keys of this database may be chosen.
    pub(crate) fn has_database(&self, db: u32) -> bool {
        self.databases.is_empty() || self.databases.contains(&db)
    }

    /// Whether a key is chosen, by its name.
    pub(crate) fn has_key(&self, key: &[u8]) -> bool {
        let matches = |pattern: &String| is_match(pattern.as_bytes(), key);
        (self.patterns.is_empty() || self.patterns.iter().any(matches))
            && !self.without.iter().any(|prefix| key.starts_with(prefix.as_bytes()))
    }
}

impl fmt::Display for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = vec![];
        if !self.patterns.is_empty() {
            parts.push(format!("keys like {}", self.patterns.join(", ")));
        }
        if !self.databases.is_empty() {
            let numbers: Vec<String> = self.databases.iter().map(u32::to_string).collect();
            parts.push(format!("in database {}", numbers.join(", ")));
        }
        if !self.without.is_empty() {
            parts.push(format!("without {}", self.without.join(", ")));
        }
        f.write_str(if parts.is_empty() { "all keys" } else { "" })?;
        f.write_str(&parts.join(", "))
    }
}

/// Matches as Redis does (`util.c`, `stringmatchlen`): `*`, `?`, `[a-z]`, `[^a]`, `\` before one of
/// them. Goes back to the last `*` only, so it takes no longer than pattern times text.
fn is_match(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Behind the last star, and what of the text it has not taken.
    let mut star = None;
    loop {
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            star = Some((p, t));
            continue;
        }
        let step = match (pattern.get(p..).filter(|rest| !rest.is_empty()), text.get(t)) {
            (None, None) => return true,
            (Some(rest), Some(byte)) => one(rest, *byte),
            _ => None,
        };
        match (step, star) {
            (Some(used), _) => (p, t) = (p + used, t + 1),
            (None, Some((behind, taken))) if taken < text.len() => {
                (p, t) = (behind, taken + 1);
                star = Some((behind, taken + 1));
            }
            _ => return false,
        }
    }
}

/// Matches one byte with the beginning of a pattern, and says how much of that it used.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'[', class @ ..] => {
            let (is_in, used) = in_class(class, byte);
            is_in.then_some(1 + used)
        }
        [b'\\', literal, ..] => (*literal == byte).then_some(2),
        [literal, ..] => (*literal == byte).then_some(1),
        [] => None,
    }
}

/// Whether a class, of which the `[` is left out, has a byte; and how long it is. One without its
/// `]` ends with the pattern.
fn in_class(class: &[u8], byte: u8) -> (bool, usize) {
    let negated = class.first() == Some(&b'^');
    let mut at = usize::from(negated);
    let mut found = false;
    loop {
        match class.get(at..).unwrap_or_default() {
            [] => return (found != negated, at),
            [b']', ..] => return (found != negated, at + 1),
            [b'\\', literal, ..] => {
                found |= *literal == byte;
                at += 2;
            }
            [from, b'-', to, ..] => {
                found |= (*from.min(to)..=*from.max(to)).contains(&byte);
                at += 3;
            }
            [literal, ..] => {
                found |= *literal == byte;
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("cart:*", "cart:1", true)]
    #[case("cart:*", "cart:", true)]
    #[case("cart:*", "car", false)]
    #[case("*", "", true)]
    #[case("", "a", false)]
    #[case("h?llo", "hallo", true)]
    #[case("h?llo", "hllo", false)]
    #[case("h[ae]llo", "hillo", false)]
    #[case("h[^e]llo", "hallo", true)]
    #[case("h[^e]llo", "hello", false)]
    #[case("h[b-a]llo", "hallo", true)]
    #[case("h\\*llo", "h*llo", true)]
    #[case("h\\*llo", "hallo", false)]
    #[case("*a*b*c", "xxaxxbxxbxc", true)]
    #[case("*a*b*c", "xxaxxbxxbx", false)]
    #[case("a[", "a", false)]
    #[case("a[b", "ab", true)]
    fn patterns_match_as_those_of_redis(
        #[case] pattern: &str,
        #[case] text: &str,
        #[case] expected: bool,
    ) {
        assert_eq!(is_match(pattern.as_bytes(), text.as_bytes()), expected);
    }

    #[test]
    fn many_stars_take_no_time() {
        assert!(!is_match("a*".repeat(5000).as_bytes(), "a".repeat(4999).as_bytes()));
    }

    #[test]
    fn a_choice_is_all_that_it_says() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let keys = Keys {
            patterns: words(&["cart:*", "user:*"]),
            databases: vec![3],
            without: words(&["user:cache:"]),
        };
        assert!(keys.has_key(b"cart:1") && keys.has_key(b"user:1") && !keys.has_key(b"x"));
        assert!(!keys.has_key(b"user:cache:1") && keys.has_database(3) && !keys.has_database(0));
        assert!(Keys::default().is_all() && Keys::default().has_key(b"") && !keys.is_all());
        let said = "keys like cart:*, user:*, in database 3, without user:cache:";
        assert_eq!(keys.to_string(), said);
    }
}
