//! GTIDs of MySQL, and sets of them: the arithmetic that proves continuity.
//!
//! A set maps each `uuid` (with its tag, from MySQL 8.3 on) to sorted, disjoint, non-adjacent
//! intervals. Text is read as liberally as the server does and written in one canonical form;
//! the binary form is that of `COM_BINLOG_DUMP_GTID` and of the PREVIOUS_GTIDS event
//! (`Gtid_set::encode` in the server's `sql/rpl_gtid_set.cc`).
//!
//! Nothing here trusts a count in its input: what is read is bounded by the bytes that are there.
//!
//! **Invariant:** two sets that hold the same GTIDs are equal and print the same text.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// The first number that is no valid one any more (`GNO_END` in the server's `sql/rpl_gtid.h`).
const GNO_END: u64 = i64::MAX as u64;

/// A tag's largest length, in bytes.
const TAG_BYTES: usize = 32;

/// The tag of a GTID; empty for the untagged ones.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Tag {
    // Padded with zero bytes, which no tag has, so the order of arrays is that of the texts.
    bytes: [u8; TAG_BYTES],
    len: u8,
}

impl Tag {
    /// Reads a tag: up to 32 letters, digits and `_`, no digit first; capitals are lowered.
    /// The empty text is the empty tag.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let mut bytes = [0; TAG_BYTES];
        let len = u8::try_from(text.len()).ok()?;
        for (to, &from) in bytes.get_mut(..text.len())?.iter_mut().zip(text) {
            *to = from.to_ascii_lowercase();
        }
        let word = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'_';
        let valid = bytes.iter().take(text.len()).all(word);
        (valid && !text.first().is_some_and(u8::is_ascii_digit)).then_some(Self { bytes, len })
    }

    /// Whether this is the tag of the untagged GTIDs.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The text.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.as_bytes()))
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(self.as_bytes()))
    }
}

/// Who numbers transactions: a server's uuid and a tag.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Origin {
    /// `server_uuid` of the server that committed first.
    pub(crate) uuid: [u8; 16],
    /// Its tag.
    pub(crate) tag: Tag,
}

/// The name of one transaction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Gtid {
    /// Who numbered it.
    pub(crate) origin: Origin,
    /// Its number, from 1 to 2⁶³ − 2.
    pub(crate) n: u64,
}

impl Gtid {
    /// The GTID of these parts, if `n` is a valid number.
    pub(crate) fn new(uuid: [u8; 16], tag: Tag, n: u64) -> Option<Self> {
        (1..GNO_END).contains(&n).then_some(Self { origin: Origin { uuid, tag }, n })
    }
}

impl fmt::Display for Gtid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_uuid(f, &self.origin.uuid)?;
        if !self.origin.tag.is_empty() {
            write!(f, ":{}", self.origin.tag)?;
        }
        write!(f, ":{}", self.n)
    }
}

impl fmt::Debug for Gtid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn write_uuid(f: &mut fmt::Formatter<'_>, uuid: &[u8; 16]) -> fmt::Result {
    write!(f, "{}", uuid::Uuid::from_bytes(*uuid).as_hyphenated())
}

/// Numbers from `start` to before `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Interval {
    start: u64,
    end: u64,
}

/// The numbers of one origin: sorted, disjoint, not adjacent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Numbers(Vec<Interval>);

impl Numbers {
    /// Adds `add`; says whether any of it is new.
    fn insert(&mut self, add: Interval) -> bool {
        // Nearly always a server appends to its newest interval.
        match self.0.last_mut() {
            Some(last) if last.end == add.start => {
                last.end = add.end;
                return true;
            }
            Some(last) if last.end > add.start => {}
            _ => {
                self.0.push(add);
                return true;
            }
        }
        // Everything from `low` up to before `high` touches what is added.
        let low = self.0.partition_point(|i| i.end < add.start);
        let high = self.0.partition_point(|i| i.start <= add.end);
        let touched = self.0.get(low..high).unwrap_or_default();
        if touched.iter().any(|i| i.start <= add.start && add.end <= i.end) {
            return false;
        }
        let start = touched.first().map_or(add.start, |i| i.start.min(add.start));
        let end = touched.last().map_or(add.end, |i| i.end.max(add.end));
        self.0.splice(low..high, [Interval { start, end }]);
        true
    }

    /// Whether all of `part` is in here.
    fn contains(&self, part: Interval) -> bool {
        let at = self.0.partition_point(|i| i.end < part.end);
        self.0.get(at).is_some_and(|i| i.start <= part.start && part.end <= i.end)
    }

    /// What is in here and not in `other`.
    fn subtract(&self, other: &Self) -> Self {
        let mut left = vec![];
        let mut cuts = other.0.iter().peekable();
        for whole in &self.0 {
            let mut start = whole.start;
            while let Some(cut) = cuts.peek() {
                if cut.start >= whole.end {
                    break;
                }
                if cut.start > start {
                    left.push(Interval { start, end: cut.start });
                }
                start = start.max(cut.end);
                if cut.end > whole.end {
                    break;
                }
                cuts.next();
            }
            if start < whole.end {
                left.push(Interval { start, end: whole.end });
            }
        }
        Self(left)
    }
}

/// A set of GTIDs.
#[derive(Clone, Default)]
pub(crate) struct GtidSet {
    /// Sorted by origin; none of them without numbers.
    origins: Vec<(Origin, Numbers)>,
    /// Where the last GTID was added: nearly always the next one has the same origin.
    hint: usize,
}

impl PartialEq for GtidSet {
    fn eq(&self, other: &Self) -> bool {
        self.origins == other.origins
    }
}

impl Eq for GtidSet {}

impl GtidSet {
    /// Whether it holds nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.origins.is_empty()
    }

    /// Adds one GTID; says whether it is new. Allocates only for a new interval.
    pub(crate) fn add(&mut self, gtid: Gtid) -> bool {
        self.insert(gtid.origin, Interval { start: gtid.n, end: gtid.n + 1 })
    }

    /// Whether it holds this GTID.
    pub(crate) fn contains(&self, gtid: Gtid) -> bool {
        self.numbers(&gtid.origin)
            .is_some_and(|n| n.contains(Interval { start: gtid.n, end: gtid.n + 1 }))
    }

    /// Adds everything that `other` holds.
    pub(crate) fn union_with(&mut self, other: &Self) {
        for (origin, numbers) in &other.origins {
            for &interval in &numbers.0 {
                self.insert(*origin, interval);
            }
        }
    }

    /// Whether `other` holds everything that this does.
    pub(crate) fn is_subset(&self, other: &Self) -> bool {
        self.origins.iter().all(|(origin, numbers)| {
            other.numbers(origin).is_some_and(|o| numbers.0.iter().all(|&i| o.contains(i)))
        })
    }

    /// What this holds and `other` does not.
    #[must_use]
    pub(crate) fn subtract(&self, other: &Self) -> Self {
        let nothing = Numbers::default();
        let left = |(origin, numbers): &(Origin, Numbers)| {
            let left = numbers.subtract(other.numbers(origin).unwrap_or(&nothing));
            (!left.0.is_empty()).then_some((*origin, left))
        };
        Self { origins: self.origins.iter().filter_map(left).collect(), hint: 0 }
    }

    /// How many GTIDs it holds.
    pub(crate) fn count(&self) -> u64 {
        let intervals = self.origins.iter().flat_map(|(_, numbers)| &numbers.0);
        intervals.fold(0, |sum, i| sum.saturating_add(i.end - i.start))
    }

    fn numbers(&self, origin: &Origin) -> Option<&Numbers> {
        let at = self.origins.binary_search_by(|(o, _)| o.cmp(origin)).ok()?;
        self.origins.get(at).map(|(_, numbers)| numbers)
    }

    fn insert(&mut self, origin: Origin, interval: Interval) -> bool {
        if let Some((at, numbers)) = self.origins.get_mut(self.hint)
            && *at == origin
        {
            return numbers.insert(interval);
        }
        match self.origins.binary_search_by(|(o, _)| o.cmp(&origin)) {
            Ok(at) => {
                self.hint = at;
                self.origins.get_mut(at).is_some_and(|(_, numbers)| numbers.insert(interval))
            }
            Err(at) => {
                self.hint = at;
                self.origins.insert(at, (origin, Numbers(vec![interval])));
                true
            }
        }
    }

    /// Reads the binary form, plain or tagged, which must fill `bytes`.
    ///
    /// # Errors
    /// Corrupt, if it is not a set as a server writes it.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        decode(bytes)
            .ok_or_else(|| Error::corrupt(format!("not a GTID set ({} bytes)", bytes.len())))
    }
}

fn decode(mut bytes: &[u8]) -> Option<GtidSet> {
    let count = take_u64(&mut bytes)?;
    let (n, tagged) = match count >> 56 {
        0 => (count, false),
        1 if count & 0xff == 1 => (count << 8 >> 16, true),
        _ => return None,
    };
    let mut set = GtidSet::default();
    for _ in 0..n {
        let (uuid, rest) = bytes.split_first_chunk::<16>()?;
        bytes = rest;
        let mut tag = Tag::default();
        if tagged {
            let (&len, rest) = bytes.split_first()?;
            let (text, rest) = rest.split_at_checked(usize::from(len >> 1))?;
            tag = Tag::parse(text).filter(|_| len & 1 == 0)?;
            bytes = rest;
        }
        let mut numbers = Numbers::default();
        let mut last = 0;
        for _ in 0..take_u64(&mut bytes)? {
            let interval = Interval { start: take_u64(&mut bytes)?, end: take_u64(&mut bytes)? };
            if interval.start <= last || interval.end <= interval.start || interval.end > GNO_END {
                return None;
            }
            last = interval.end;
            numbers.0.push(interval);
        }
        let origin = Origin { uuid: *uuid, tag };
        match set.origins.binary_search_by(|(o, _)| o.cmp(&origin)) {
            Err(at) if !numbers.0.is_empty() => set.origins.insert(at, (origin, numbers)),
            Err(_) => {}
            Ok(_) => return None,
        }
    }
    bytes.is_empty().then_some(set)
}

fn take_u64(bytes: &mut &[u8]) -> Option<u64> {
    let (number, rest) = bytes.split_first_chunk::<8>()?;
    *bytes = rest;
    Some(u64::from_le_bytes(*number))
}

impl fmt::Display for GtidSet {
    /// The server's own text with `,` between the uuids, where the server adds a line break.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut uuid = None;
        for (origin, numbers) in &self.origins {
            if uuid != Some(origin.uuid) {
                if uuid.is_some() {
                    f.write_str(",")?;
                }
                write_uuid(f, &origin.uuid)?;
                uuid = Some(origin.uuid);
            }
            if !origin.tag.is_empty() {
                write!(f, ":{}", origin.tag)?;
            }
            for Interval { start, end } in &numbers.0 {
                let last = end - 1;
                if last == *start {
                    write!(f, ":{start}")?;
                } else {
                    write!(f, ":{start}-{last}")?;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for GtidSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

impl FromStr for GtidSet {
    type Err = Error;

    /// Reads what a server prints or takes: `uuid:1-3:7:tag:1-2, uuid:…`.
    fn from_str(text: &str) -> Result<Self> {
        parse(text).ok_or_else(|| {
            Error::usage(format!("not a GTID set: {text:?}"))
                .hint("write it like 3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5")
        })
    }
}

fn parse(text: &str) -> Option<GtidSet> {
    let mut set = GtidSet::default();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let mut words = part.split(':').map(str::trim);
        let uuid = words.next().filter(|uuid| matches!(uuid.len(), 32 | 36))?;
        let uuid = uuid::Uuid::try_parse(uuid).ok()?.into_bytes();
        let mut tag = Tag::default();
        // Whether something must follow: a uuid or a tag names nothing by itself.
        let mut open = true;
        for word in words {
            if word.starts_with(|c: char| c.is_ascii_digit()) {
                let (start, end) = word.split_once('-').unwrap_or((word, word));
                let (start, end) = (number(start)?, number(end)?);
                // An empty interval is taken for nothing, as the server does.
                if start <= end {
                    set.insert(Origin { uuid, tag }, Interval { start, end: end + 1 });
                }
                open = false;
            } else {
                tag = Tag::parse(word.as_bytes()).filter(|tag| !tag.is_empty())?;
                open = true;
            }
        }
        if open {
            return None;
        }
    }
    Some(set)
}

fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|n| digits && (1..GNO_END).contains(n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;
    use std::collections::BTreeSet;

    const A: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
    const B: &str = "99e5655d-e67c-11f1-bcea-02fc00000001";

    impl GtidSet {
        /// Appends the binary form: the plain one unless the set has tags.
        pub(crate) fn encode(&self, to: &mut Vec<u8>) {
            let tagged = self.origins.iter().any(|(origin, _)| !origin.tag.is_empty());
            let n = self.origins.len() as u64;
            // The tagged form has its version (1) in both the lowest and the highest byte.
            let count = if tagged { 1 << 56 | n << 8 | 1 } else { n };
            to.extend_from_slice(&count.to_le_bytes());
            for (origin, numbers) in &self.origins {
                to.extend_from_slice(&origin.uuid);
                if tagged {
                    // A variable-length number of one byte: no tag is longer than 63 bytes.
                    to.push(origin.tag.len << 1);
                    to.extend_from_slice(origin.tag.as_bytes());
                }
                to.extend_from_slice(&(numbers.0.len() as u64).to_le_bytes());
                for interval in &numbers.0 {
                    to.extend_from_slice(&interval.start.to_le_bytes());
                    to.extend_from_slice(&interval.end.to_le_bytes());
                }
            }
        }
    }

    fn set(text: &str) -> GtidSet {
        text.parse().unwrap()
    }

    #[rstest]
    #[case::empty("", "")]
    #[case::one("A:5", "A:5")]
    #[case::joined("A:1-3:4:6", "A:1-4:6")]
    #[case::sorted("B:1,\nA:9:1-2", "A:1-2:9,B:1")]
    #[case::tags("B:1-3:tagx:1-2:a_much_longer_tag:1", "B:1-3:a_much_longer_tag:1:tagx:1-2")]
    #[case::only_tagged("A:Tag_1:7", "A:tag_1:7")]
    #[case::same_uuid_twice("A:1,A:2", "A:1-2")]
    #[case::nothing_between("A:5-4", "")]
    #[case::largest("A:9223372036854775806", "A:9223372036854775806")]
    fn text_is_read_as_the_server_does_and_written_canonically(
        #[case] text: &str,
        #[case] canonical: &str,
    ) {
        let names = |text: &str| text.replace('A', A).replace('B', B);
        // Only the uuids are replaced: no tag has a capital A or B.
        let parsed = set(&names(text));
        assert_eq!(parsed.to_string(), names(canonical));
        assert_eq!(set(&names(text).to_uppercase()).to_string(), names(canonical));
        let mut bytes = vec![];
        parsed.encode(&mut bytes);
        assert_eq!(GtidSet::decode(&bytes).unwrap(), parsed);
    }

    #[rstest]
    #[case("A")]
    #[case("A:")]
    #[case("A:0")]
    #[case("A:1-")]
    #[case("A:-1")]
    #[case("A:tag")]
    #[case("A:1:tag")]
    #[case("A:9223372036854775807")]
    #[case("A:+1")]
    #[case("A:ta g:1")]
    #[case("A:a_tag_that_is_longer_than_32_chars:1")]
    #[case("nonsense")]
    fn nonsense_is_refused(#[case] text: &str) {
        let text = text.replace('A', A);
        assert!(text.parse::<GtidSet>().is_err(), "{text}");
    }

    #[test]
    fn the_bytes_of_a_real_tagged_set_are_read_and_written() {
        // PREVIOUS_GTIDS of a MySQL 9.7.4.
        let text = format!("{B}:1-3:a_much_longer_tag_here_ab:1:tagx:1-2");
        let mut bytes = vec![1, 3, 0, 0, 0, 0, 0, 1];
        let uuid = uuid::Uuid::try_parse(B).unwrap().into_bytes();
        for (tag, end) in [("", 4), ("a_much_longer_tag_here_ab", 2), ("tagx", 3)] {
            bytes.extend(uuid);
            bytes.push((tag.len() as u8) << 1);
            bytes.extend(tag.as_bytes());
            for n in [1_u64, 1, end] {
                bytes.extend(n.to_le_bytes());
            }
        }
        assert_eq!(GtidSet::decode(&bytes).unwrap().to_string(), text);
        let mut written = vec![];
        set(&text).encode(&mut written);
        assert_eq!(written, bytes);
    }

    #[test]
    fn a_count_that_lies_is_refused() {
        for head in [[0xff; 8], [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0], [1, 0xff, 0, 0, 0, 0, 0, 1]] {
            assert!(GtidSet::decode(&head).is_err());
            let mut long = head.to_vec();
            long.extend([1; 100]);
            assert!(GtidSet::decode(&long).is_err());
        }
    }

    type Model = BTreeSet<(u8, bool, u64)>;

    fn gtid((who, tagged, n): (u8, bool, u64)) -> Gtid {
        let tag = Tag::parse(if tagged { b"t" } else { b"" }).unwrap();
        Gtid::new([who; 16], tag, n).unwrap()
    }

    fn build(model: &[(u8, bool, u64)]) -> (GtidSet, Model) {
        let mut set = GtidSet::default();
        let mut seen = Model::new();
        for &one in model {
            assert_eq!(set.add(gtid(one)), seen.insert(one));
        }
        (set, seen)
    }

    fn some() -> impl Strategy<Value = Vec<(u8, bool, u64)>> {
        proptest::collection::vec((0..3_u8, any::<bool>(), 1..25_u64), 0..60)
    }

    proptest! {
        #[test]
        fn sets_behave_like_sets(a in some(), b in some()) {
            let (set_a, model_a) = build(&a);
            let (set_b, model_b) = build(&b);
            prop_assert_eq!(set_a.count(), model_a.len() as u64);
            prop_assert_eq!(set_a.is_subset(&set_b), model_a.is_subset(&model_b));
            prop_assert_eq!(set_a == set_b, model_a == model_b);
            let difference: Vec<_> = model_a.difference(&model_b).copied().collect();
            let left = set_a.subtract(&set_b);
            prop_assert_eq!(&left, &build(&difference).0);
            prop_assert!(left.is_subset(&set_a));
            let mut union = set_a.clone();
            union.union_with(&set_b);
            let both: Vec<_> = model_a.union(&model_b).copied().collect();
            prop_assert_eq!(&union, &build(&both).0);
            for one in (1..25).map(|n| (1, true, n)) {
                prop_assert_eq!(set_a.contains(gtid(one)), model_a.contains(&one));
            }
            prop_assert_eq!(&set_a.to_string().parse::<GtidSet>().unwrap(), &set_a);
            let mut bytes = vec![];
            set_a.encode(&mut bytes);
            prop_assert_eq!(GtidSet::decode(&bytes).unwrap(), set_a);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(set) = GtidSet::decode(&bytes) {
                let mut again = vec![];
                set.encode(&mut again);
                prop_assert_eq!(GtidSet::decode(&again).unwrap(), set);
            }
        }

        #[test]
        fn arbitrary_text_never_panics(text in ".{0,80}") {
            if let Ok(set) = text.parse::<GtidSet>() {
                prop_assert_eq!(set.to_string().parse::<GtidSet>().unwrap(), set);
            }
        }
    }
}
