//! What two copies of a system must agree on: one hash per table, view, key space, account.
//!
//! A digest says whether two servers hold the same content, and names what differs. It depends on
//! the content alone: not on the order in which rows or keys were written, nor on how the server
//! keeps them. The parts that fill it are in the engines' folders.
//!
//! **Invariant:** what an engine cannot read in full is an error, never a part left out.

use blake3::{Hash, Hasher};
use std::collections::BTreeMap;
use std::fmt;

/// Up to how many single elements a digest remembers by name, to say which of them differ.
const DETAILS_MAX: usize = 10_000;

/// How many differing elements [`Digest::diff`] names for each part.
const NAMED_MAX: usize = 20;

/// The digest of everything in one server, or of a chosen part of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Digest {
    parts: BTreeMap<String, Part>,
}

/// What stands behind one name of a digest.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    hash: Hash,
    elements: u64,
    /// The elements by name. Empty if they have none, or if they are too many.
    details: BTreeMap<String, Hash>,
}

impl Digest {
    /// Adds what `sum` holds under `name`. Parts of one name do not occur twice.
    pub(crate) fn insert(&mut self, name: String, sum: Sum) {
        let part = Part { hash: sum.hash(), elements: sum.elements, details: sum.details };
        let before = self.parts.insert(name, part);
        debug_assert!(before.is_none(), "a part occurs twice");
    }

    /// The hash of each part as hexadecimal text, by name.
    pub fn parts(&self) -> BTreeMap<String, String> {
        self.parts.iter().map(|(name, part)| (name.clone(), part.hash.to_string())).collect()
    }

    /// How many rows or keys stand behind a part; none if there is no such part.
    pub fn elements(&self, part: &str) -> Option<u64> {
        self.parts.get(part).map(|part| part.elements)
    }

    /// One hash over everything, as hexadecimal text.
    pub fn total(&self) -> String {
        let mut hasher = Hasher::new();
        for (name, part) in &self.parts {
            put(&mut hasher, name.as_bytes());
            hasher.update(part.hash.as_bytes());
        }
        hasher.finalize().to_string()
    }

    /// One sentence for each difference; empty if and only if both are equal.
    pub fn diff(&self, other: &Self) -> Vec<String> {
        let mut lines = vec![];
        for (name, part) in &self.parts {
            match other.parts.get(name) {
                None => lines.push(format!("{name}: only in the first")),
                Some(there) if part != there => lines.push(part.against(name, there)),
                Some(_) => {}
            }
        }
        let only_there = other.parts.keys().filter(|name| !self.parts.contains_key(*name));
        lines.extend(only_there.map(|name| format!("{name}: only in the second")));
        lines
    }
}

impl fmt::Display for Digest {
    /// The total.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.total())
    }
}

impl Part {
    /// How this part differs from the one of the same name on the other side.
    fn against(&self, name: &str, there: &Self) -> String {
        let counts = match (self.elements, there.elements) {
            (1, 1) => "differs".to_owned(),
            (here, there) if here == there => format!("{here} on both sides, but not the same"),
            (here, there) => format!("{here} in the first, {there} in the second"),
        };
        let names: Vec<&str> = (self.details.keys())
            .chain(there.details.keys().filter(|key| !self.details.contains_key(*key)))
            .filter(|key| self.details.get(*key) != there.details.get(*key))
            .map(String::as_str)
            .collect();
        // With the details of one side missing, all those of the other would be named.
        if names.is_empty() || self.details.is_empty() != there.details.is_empty() {
            return format!("{name}: {counts}");
        }
        let more = names.len().saturating_sub(NAMED_MAX);
        let named = names.get(..NAMED_MAX).unwrap_or(&names).join(", ");
        match more {
            0 => format!("{name}: {counts}: {named}"),
            _ => format!("{name}: {counts}: {named} and {more} more"),
        }
    }
}

/// A hash over a multiset of elements, in whatever order they come.
///
/// The BLAKE3 hashes of the elements are added up in four lanes of 64 bits. A sum, unlike XOR,
/// does not lose an element that occurs twice.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sum {
    lanes: [u64; 4],
    elements: u64,
    details: BTreeMap<String, Hash>,
    too_many: bool,
}

impl Sum {
    /// The sum of one element.
    pub(crate) fn of(element: Hash) -> Self {
        let mut sum = Self::default();
        sum.add(element);
        sum
    }

    /// Adds an element.
    pub(crate) fn add(&mut self, element: Hash) {
        let (words, _) = element.as_bytes().as_chunks::<8>();
        for (lane, word) in self.lanes.iter_mut().zip(words) {
            *lane = lane.wrapping_add(u64::from_le_bytes(*word));
        }
        self.elements += 1;
    }

    /// Adds an element that has a name. The name must be part of what was hashed.
    pub(crate) fn add_named(&mut self, name: impl FnOnce() -> String, element: Hash) {
        self.add(element);
        if self.details.len() >= DETAILS_MAX {
            self.too_many = true;
            self.details = BTreeMap::new();
        }
        if !self.too_many {
            self.details.insert(name(), element);
        }
    }

    /// How many were added.
    pub(crate) fn elements(&self) -> u64 {
        self.elements
    }

    /// The hash of all elements added.
    pub(crate) fn hash(&self) -> Hash {
        let mut hasher = Hasher::new();
        for lane in self.lanes {
            hasher.update(&lane.to_le_bytes());
        }
        hasher.update(&self.elements.to_le_bytes());
        hasher.finalize()
    }
}

/// Hashes a value with its length, so that two neighbours cannot trade bytes.
pub(crate) fn put(hasher: &mut Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

/// Hashes a number.
pub(crate) fn put_int(hasher: &mut Hasher, value: i64) {
    hasher.update(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(elements: &[&str]) -> Sum {
        let mut sum = Sum::default();
        for element in elements {
            sum.add_named(|| (*element).to_owned(), blake3::hash(element.as_bytes()));
        }
        sum
    }

    fn digest(elements: &[&str]) -> Digest {
        let mut digest = Digest::default();
        digest.insert("rows".into(), sum(elements));
        digest
    }

    #[test]
    fn the_order_of_elements_does_not_matter_but_their_number_does() {
        assert_eq!(digest(&["a", "b", "c"]), digest(&["c", "a", "b"]));
        let (once, twice) = (digest(&["a", "b"]), digest(&["a", "a", "b"]));
        assert_ne!(once, twice);
        assert_ne!(once.total(), twice.total());
        assert_ne!(digest(&["a", "a"]), digest(&["b", "b"]));
        assert_eq!(once.diff(&twice), ["rows: 2 in the first, 3 in the second"]);
    }

    #[test]
    fn a_difference_is_named_and_equality_has_none() {
        let (left, right) = (digest(&["a", "b"]), digest(&["a", "c"]));
        assert_eq!(left.diff(&right), ["rows: 2 on both sides, but not the same: b, c"]);
        assert!(left.diff(&left.clone()).is_empty());
        let nothing = Digest::default();
        assert_eq!(left.diff(&nothing), ["rows: only in the first"]);
        assert_eq!(nothing.diff(&left), ["rows: only in the second"]);
    }

    #[test]
    fn names_of_very_many_elements_are_not_kept() {
        let mut many = Sum::default();
        for i in 0..=DETAILS_MAX {
            many.add_named(|| i.to_string(), blake3::hash(i.to_string().as_bytes()));
        }
        assert!(many.details.is_empty());
        assert_eq!(many.elements, DETAILS_MAX as u64 + 1);
    }

    #[test]
    fn neighbours_cannot_trade_bytes() {
        let hash = |parts: [&[u8]; 2]| {
            let mut hasher = Hasher::new();
            for part in parts {
                put(&mut hasher, part);
            }
            hasher.finalize()
        };
        assert_ne!(hash([b"ab", b"c"]), hash([b"a", b"bc"]));
    }
}
