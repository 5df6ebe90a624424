//! What is known about stored bytes: segments, blocks, baselines, gaps. Values only.
//!
//! The same values stand in a segment's header and footer, beside a baseline as JSON, in the
//! catalog's rows and in the planner's arguments. `docs/SEGMENT_FORMAT.md` describes their form
//! on disk.

mod hours;

pub use hours::{
    Before, Continuity, Covered, DatabaseCount, Ddl, Fallback, HourRecord, Increment, LandmarkLine,
    Largest, NameCount, SegmentRef, TableCount,
};

use crate::clock::Timestamp;
use crate::error::{Class, Context, Error, Result};
use crate::position::Position;
use crate::record::{Contents, Landmark, Server, TimeSource};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// The version of the archive's layout and of the segment format that this program writes.
pub const FORMAT: u32 = 1;

/// Longest JSON beside a baseline: a GTID set is its only part without a natural limit.
pub const BASELINE_JSON_MAX: u64 = 32 << 20;

/// Most landmarks that are kept of a segment.
pub const LANDMARKS_MAX: usize = 1000;

/// A kind of system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// MySQL, MariaDB included.
    Mysql,
    /// Redis, Valkey included.
    Redis,
}

impl EngineKind {
    /// The word used in configuration, names and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Mysql => "mysql",
            Self::Redis => "redis",
        }
    }
}

/// `archive.json`: what makes a folder an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveMeta {
    /// [`FORMAT`] of the program that created it.
    pub format: u32,
    /// A random UUID; every segment and baseline names it.
    pub archive: String,
    /// When it was created.
    pub created: Timestamp,
}

/// The history of a source does not go on from what stands before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Break {
    /// Nothing is missing up to here; `None` if nothing was archived before.
    pub after: Option<Timestamp>,
    /// A sentence for the operator.
    pub reason: String,
}

/// Where a timeline goes on from, without a hole: the end of another one. The source failed over
/// to a server that has everything that was archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Continues {
    /// The timeline before.
    pub timeline: u32,
    /// Number of the last segment that both have, whose digest the header has as `previous`.
    pub number: u64,
}

/// Where a timeline leaves another one, whose last records the source lost: it failed over to a
/// server that did not have them. What lies before `at` in the segment is in both timelines, what
/// lies behind it stays in the other one only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fork {
    /// The timeline that is left.
    pub timeline: u32,
    /// Its segment that holds the place.
    pub number: u64,
    /// The place.
    pub at: Position,
}

/// The head of a segment: written before its first byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentHeader {
    /// [`FORMAT`].
    pub format: u32,
    /// Id of the archive.
    pub archive: String,
    /// Name of the source.
    pub source: String,
    /// Kind of the source.
    pub engine: EngineKind,
    /// The server that the bytes came from.
    pub server: Server,
    /// Timeline, from 1.
    pub timeline: u32,
    /// Number within the timeline, from 1, without holes.
    pub number: u64,
    /// Where the first byte stands.
    pub start: Position,
    /// When it was opened, by pitr's clock. Decides the hour that it is counted in.
    pub opened_at: Timestamp,
    /// How far the source's clock was ahead of pitr's when it was opened, in µs.
    pub skew_micros: i64,
    /// BLAKE3 digest (hex) of the segment before it, in its timeline or in the one that this
    /// timeline continues; `None` if there is none.
    pub previous: Option<String>,
    /// Set if what stands before is not continued: for the first segment of a second or later
    /// timeline either this or `continues`.
    #[serde(default, rename = "break", skip_serializing_if = "Option::is_none")]
    pub broken: Option<Break>,
    /// Set on the first segment of a timeline that goes on from another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continues: Option<Continues>,
    /// Set on the first segment of a timeline that leaves another one before its end. Begins with
    /// what that one's segment has before the fork.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fork: Option<Fork>,
    /// The first bytes of the log (hex), if its first segment begins in the middle of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<String>,
}

impl SegmentHeader {
    /// The first bytes of the log, as far as the header has them; empty if it has none.
    ///
    /// # Errors
    /// Corrupt, if they are not written as they must be.
    pub fn head_bytes(&self) -> Result<Vec<u8>> {
        let Some(text) = &self.head else { return Ok(vec![]) };
        let digit = |digit: &u8| char::from(*digit).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let byte = |pair: &[u8]| match pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        };
        text.as_bytes().chunks(2).map(byte).collect::<Option<_>>().ok_or_else(|| {
            Error::corrupt(format!("segment {}: the head of its log is not hex", self.number))
        })
    }

    /// Writes the first bytes of a log as [`Self::head`] has them.
    pub fn head_text(bytes: &[u8]) -> String {
        let digit = |digit: u8| char::from_digit(u32::from(digit), 16).unwrap_or_default();
        bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
    }
}

/// One block: a compressed, checksummed, indexed piece of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockMeta {
    /// Where in the segment file the block's head begins.
    pub file_offset: u64,
    /// Length of the block's head and its zstd frame together.
    pub stored_len: u64,
    /// Length of its bytes uncompressed.
    pub raw_len: u64,
    /// Offset of its first byte in the log.
    pub start: u64,
    /// Where the last whole record in it ends; `None` if it is all inside one record.
    pub whole_until: Option<u64>,
    /// How many records end in it.
    pub records: u32,
    /// Smallest commit time among them.
    pub first_at: Option<Timestamp>,
    /// Largest commit time among them.
    pub last_at: Option<Timestamp>,
    /// How the commit times came about.
    pub time: TimeSource,
    /// The latest of its marks: everything committed until then lies before the block's end.
    pub known_until: Option<Timestamp>,
}

impl BlockMeta {
    /// Offset in the log after its last byte.
    pub fn end(&self) -> u64 {
        self.start + self.raw_len
    }
}

/// What a whole segment amounts to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Where its last whole record ends, with what a reader has to know to go on from there.
    pub end: Position,
    /// Number of blocks.
    pub blocks: u64,
    /// Records that end in it.
    pub records: u64,
    /// Bytes uncompressed.
    pub bytes_raw: u64,
    /// Smallest commit time in it.
    pub first_at: Option<Timestamp>,
    /// Largest commit time in it.
    pub last_at: Option<Timestamp>,
    /// Nothing committed until then is missing: the larger of `last_at` and its latest mark.
    pub known_until: Option<Timestamp>,
    /// `server_id`s that its events carry, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub origins: Vec<u32>,
    /// Its landmarks, in order; at most [`LANDMARKS_MAX`] of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub landmarks: Vec<Landmark>,
}

/// A segment, as the catalog and the planner know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentMeta {
    /// Its header.
    pub header: SegmentHeader,
    /// Its totals.
    pub totals: Totals,
    /// Size of its file.
    pub bytes_stored: u64,
    /// BLAKE3 digest (hex); empty while it is open.
    pub digest: String,
    /// Whether it has its footer. An open segment is still being written, or was torn by a crash.
    pub sealed: bool,
}

/// A landmark with its place in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedLandmark {
    /// Timeline of the segment that it is in.
    pub timeline: u32,
    /// Number of that segment.
    pub segment: u64,
    /// Which one of its segment, from 1.
    pub position: u32,
    /// The log that its offset counts in.
    pub log: String,
    /// The landmark.
    pub landmark: Landmark,
}

impl PlacedLandmark {
    /// What names it, now and ever: `landmark:TIMELINE.SEGMENT.POSITION`.
    pub fn name(&self) -> String {
        format!("landmark:{}.{}.{}", self.timeline, self.segment, self.position)
    }

    /// Timeline, segment and position of such a name.
    pub fn parse_name(name: &str) -> Option<(u32, u64, u32)> {
        let mut numbers = name.strip_prefix("landmark:")?.split('.');
        let parsed = (
            numbers.next()?.parse().ok()?,
            numbers.next()?.parse().ok()?,
            numbers.next()?.parse().ok()?,
        );
        numbers.next().is_none().then_some(parsed)
    }

    /// Those of a segment.
    pub fn of(segment: &SegmentMeta) -> impl Iterator<Item = Self> {
        let header = &segment.header;
        segment.totals.landmarks.iter().zip(1..).map(|(landmark, position)| Self {
            timeline: header.timeline,
            segment: header.number,
            position,
            log: header.start.log.clone(),
            landmark: landmark.clone(),
        })
    }
}

/// A baseline: the JSON beside its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaselineMeta {
    /// [`FORMAT`].
    pub format: u32,
    /// Id of the archive.
    pub archive: String,
    /// Name of the source.
    pub source: String,
    /// Kind of the source.
    pub engine: EngineKind,
    /// The server that it was taken from.
    pub server: Server,
    /// Timeline that its position is in.
    pub timeline: u32,
    /// File name, such as `base-20240501T030000Z.sql.zst`.
    pub name: String,
    /// It holds exactly what was committed before this place.
    pub position: Position,
    /// The earliest instant that it can serve: not before the last record in it.
    pub at: Timestamp,
    /// When it was begun, by pitr's clock.
    pub begun_at: Timestamp,
    /// When it was complete.
    pub finished_at: Timestamp,
    /// Bytes uncompressed.
    pub bytes_raw: u64,
    /// Size of its file.
    pub bytes_stored: u64,
    /// BLAKE3 digest (hex) of its file.
    pub digest: String,
    /// What the source held at its place, counted beside the copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contents: Option<Contents>,
}

/// A small object's JSON as it stands on disk. A position that changed by one digit would lead a
/// restore astray, so the content carries its own digest.
#[derive(Serialize, Deserialize)]
struct Sealed<T> {
    #[serde(flatten)]
    content: T,
    /// BLAKE3 digest (hex) of the other keys, as compact JSON in the order of the value.
    seal: String,
}

fn seal<T: Serialize>(content: &T) -> Result<String> {
    let json = serde_json::to_vec(content).class(Class::Bug, || "write JSON".into())?;
    Ok(blake3::hash(&json).to_hex().to_string())
}

fn encode_sealed<T: Serialize>(content: &T) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(&Sealed { seal: seal(content)?, content })
        .class(Class::Bug, || "write JSON".into())
}

fn decode_sealed<T: Serialize + DeserializeOwned>(json: &[u8], what: &str) -> Result<T> {
    let sealed: Sealed<T> =
        serde_json::from_slice(json).corrupt(|| format!("it is no {what}'s JSON"))?;
    if seal(&sealed.content)? != sealed.seal {
        return Err(Error::corrupt("its content does not match its seal"));
    }
    Ok(sealed.content)
}

impl BaselineMeta {
    /// The JSON that is stored beside the baseline's file.
    pub fn encode(&self) -> Result<Vec<u8>> {
        encode_sealed(self)
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// Corrupt, if it is no such JSON, or its content does not match its seal.
    pub fn decode(json: &[u8]) -> Result<Self> {
        decode_sealed(json, "baseline")
    }
}

/// An instant that somebody named, with the place in each source's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedMark {
    /// [`FORMAT`].
    pub format: u32,
    /// Id of the archive.
    pub archive: String,
    /// Its name.
    pub name: String,
    /// When it was made, by pitr's clock.
    pub at: Timestamp,
    /// For how long writes were held, in µs, the longest of all sources; `None` if they were not.
    /// The places of a mark for which they were are those of one moment.
    pub held_us: Option<u64>,
    /// The places, one for each source.
    pub sources: Vec<MarkedSource>,
}

/// The place of a [`NamedMark`] in one source's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkedSource {
    /// Name of the source.
    pub name: String,
    /// Kind of the source.
    pub engine: EngineKind,
    /// Timeline that the place is in.
    pub timeline: u32,
    /// Everything before this place is in.
    pub position: Position,
    /// The source's clock when the place was read.
    pub at: Timestamp,
    /// Whether the log itself has the name directly behind the place.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub published: bool,
}

impl NamedMark {
    /// The JSON that is stored.
    pub fn encode(&self) -> Result<Vec<u8>> {
        encode_sealed(self)
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// Corrupt, if it is no such JSON, or its content does not match its seal.
    pub fn decode(json: &[u8]) -> Result<Self> {
        decode_sealed(json, "mark")
    }
}

/// The log has an event of a type that this version does not know: it is archived as it is, and
/// whether a restore can apply it is up to the target. One object for each type and timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StrangeEvent {
    /// The type, as the source's protocol numbers it.
    pub event: u8,
    /// Timeline of the log.
    pub timeline: u32,
    /// Number of the segment that the first of them is in.
    pub segment: u64,
    /// Where the first of them begins: log and offset.
    pub first: Position,
    /// When it was seen, by pitr's clock.
    pub seen_at: Timestamp,
}

/// What a server is besides its data: no log carries it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// Version of the server.
    pub version: String,
    /// Its users, one a line, as `ACL LIST` gives them: passwords are hashes.
    pub users: Vec<String>,
    /// Its settings by name, without those that hold a secret.
    pub settings: BTreeMap<String, String>,
    /// Settings that are set and hold a secret.
    pub withheld: Vec<String>,
    /// Its modules.
    pub modules: Vec<Module>,
    /// The nodes of its cluster, one a line, without what changes all the time.
    pub cluster: Vec<String>,
    /// Commands that the account may not give, so what they would tell is missing here.
    pub unread: Vec<String>,
}

/// A module of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Where it was loaded from, if the server says it.
    pub path: String,
}

/// A [`Setup`] as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSetup {
    /// [`FORMAT`].
    pub format: u32,
    /// Id of the archive.
    pub archive: String,
    /// Name of the source.
    pub source: String,
    /// When it was read, by pitr's clock. It was the same until the next one was.
    pub at: Timestamp,
    /// What was read.
    pub setup: Setup,
}

impl StoredSetup {
    /// The JSON that is stored.
    pub fn encode(&self) -> Result<Vec<u8>> {
        encode_sealed(self)
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// Corrupt, if it is no such JSON, or its content does not match its seal.
    pub fn decode(json: &[u8]) -> Result<Self> {
        decode_sealed(json, "setup")
    }
}

/// A span of time that retention leaves restorable, whatever its age. One object for each source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// What it is released by.
    pub name: String,
    /// First instant.
    pub from: Timestamp,
    /// Last instant.
    pub to: Timestamp,
    /// When it was made, by pitr's clock.
    pub made_at: Timestamp,
}

/// What retention deletes of a source: written before the first object goes, so that what is
/// missing afterwards can be told from what was lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// When, by pitr's clock.
    pub at: Timestamp,
    /// The timelines whose oldest segments go.
    pub timelines: Vec<PrunedTimeline>,
    /// The baselines that go, by the names of their files within the archive.
    pub baselines: Vec<String>,
}

/// The oldest segments of a timeline are gone, by a [`Pruned`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrunedTimeline {
    /// The timeline.
    pub timeline: u32,
    /// Every segment with a smaller number than this one.
    pub before: u64,
}

/// A hole in what can be restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Timeline that begins, or goes on, behind it.
    pub timeline: u32,
    /// Number of the segment behind it.
    pub segment: u64,
    /// Nothing is missing up to here; `None` if unknown.
    pub after: Option<Timestamp>,
    /// Capture goes on from here; `None` until the first commit or mark behind it.
    pub before: Option<Timestamp>,
    /// A sentence for the operator.
    pub reason: String,
}

impl Gap {
    /// Whether a part of it lies between two instants, of which the second is not in it. A log is
    /// captured anew from the beginning of its file, so `before` may be earlier than `after`: then
    /// it is the moment `after`.
    pub fn concerns(&self, from: Option<Timestamp>, to: Option<Timestamp>) -> bool {
        let end = self.before.map(|before| {
            let least = self.after.map(|after| after.after(Duration::from_micros(1)));
            before.max(least.unwrap_or(before))
        });
        from.is_none_or(|from| end.is_none_or(|end| end > from))
            && to.is_none_or(|to| self.after.is_none_or(|after| after < to))
    }
}

/// Names of objects within an archive. `/` separates folders on every store.
pub mod names {
    use crate::clock::Timestamp;

    /// The file that makes a folder an archive.
    pub const ARCHIVE: &str = "archive.json";
    /// The catalog, local only.
    pub const CATALOG: &str = "catalog.sqlite";
    /// The lock of the writing process, local only.
    pub const LOCK: &str = "pitr.lock";
    /// The running daemon's socket, local only.
    pub const SOCKET: &str = "pitr.sock";

    /// Folder of one timeline.
    pub fn timeline(source: &str, timeline: u32) -> String {
        format!("{source}/t{timeline:04}")
    }

    /// A sealed segment.
    pub fn segment(source: &str, timeline: u32, number: u64) -> String {
        format!("{source}/t{timeline:04}/seg-{number:020}.zst")
    }

    /// A segment that is still being written, or was torn by a crash.
    pub fn open_segment(source: &str, timeline: u32, number: u64) -> String {
        format!("{source}/t{timeline:04}/seg-{number:020}.open")
    }

    /// What is kept of a segment that was damaged while it was open: see [`is_kept`].
    pub fn damaged_segment(source: &str, timeline: u32, number: u64) -> String {
        format!("{source}/t{timeline:04}/seg-{number:020}.damaged")
    }

    /// The same, where another one of that number is kept already.
    pub fn damaged_again(source: &str, timeline: u32, number: u64, again: u32) -> String {
        format!("{source}/t{timeline:04}/seg-{number:020}.{again}.damaged")
    }

    /// Whether an object is a segment as it was when a part of it was found damaged: what is whole
    /// behind that part is in no other object.
    pub fn is_kept(name: &str) -> bool {
        name.ends_with(".damaged")
    }

    /// A baseline. `kind` is `sql` or `rdb`.
    pub fn baseline(begun_at: Timestamp, kind: &str) -> String {
        format!("base-{}.{kind}.zst", begun_at.compact())
    }

    /// What is known of events of an unknown type in a timeline.
    pub fn strange_event(source: &str, timeline: u32, event: u8) -> String {
        format!("{source}/t{timeline:04}/event-{event:03}.json")
    }

    /// What the objects begin with that say what a server was besides its data.
    pub fn setups(source: &str) -> String {
        format!("{source}/setup/")
    }

    /// What a server was besides its data, as read at an instant. Names are in order of time.
    pub fn setup(source: &str, at: Timestamp) -> String {
        format!("{}{}.json", setups(source), at.compact())
    }

    /// Below a source: the folder of links to files of a server that are not archived yet, local
    /// only.
    pub const PINS: &str = "aof";

    /// Whether a name is one of a source's local files in [`PINS`].
    pub fn is_pin(source: &str, name: &str) -> bool {
        let rest = name.strip_prefix(source).and_then(|rest| rest.strip_prefix('/'));
        rest.is_some_and(|rest| rest.split_once('/').is_some_and(|(folder, _)| folder == PINS))
    }

    /// The folder of named marks, which no source may be named after.
    pub const MARKS: &str = "marks";

    /// The folder of reports of drills, which no source may be named after.
    pub const DRILLS: &str = "drills";

    /// The report of a drill. `kind` is `json` or `html`. Names sort as times do.
    pub fn drill(begun_at: Timestamp, kind: &str) -> String {
        format!("{DRILLS}/drill-{}.{kind}", begun_at.compact())
    }

    /// A named mark.
    pub fn named_mark(name: &str) -> String {
        format!("{MARKS}/{name}.json")
    }

    /// Whether a name that somebody chose can be a part of an object's name: letters, digits, `-`,
    /// `_` and `.`, at most 64 of them.
    pub fn is_usable(name: &str) -> bool {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !name.is_empty()
            && name.len() <= 64
            && name.chars().all(allowed)
            && !name.starts_with(['.', '-'])
    }

    /// Folder of what is held of a source.
    pub fn holds(source: &str) -> String {
        format!("{source}/holds/")
    }

    /// A span of time that retention leaves alone.
    pub fn hold(source: &str, name: &str) -> String {
        format!("{source}/holds/hold-{name}.json")
    }

    /// Folder of the records of what retention deleted of a source.
    pub fn pruned_folder(source: &str) -> String {
        format!("{source}/pruned/")
    }

    /// The record of what retention deleted at one time. Names sort as times do.
    pub fn pruned(source: &str, at: Timestamp) -> String {
        format!("{source}/pruned/{:020}.json", at.as_micros().max(0))
    }

    /// Whether a name is one that [`pruned`] gives.
    pub fn is_pruned(name: &str) -> bool {
        let (folder, file) = name.rsplit_once('/').unwrap_or_default();
        folder.ends_with("/pruned") && file.strip_suffix(".json").is_some()
    }

    /// Folder of the records of a source's hours.
    pub fn hours(source: &str) -> String {
        format!("{source}/audit/")
    }

    /// The record of an hour. Names sort as hours do.
    pub fn hour(source: &str, hour: Timestamp) -> String {
        let place = hour.utc().map(|utc| utc.format("%Y/%m/%d/%H").to_string());
        format!("{source}/audit/{}.json", place.unwrap_or_else(|| hour.as_micros().to_string()))
    }

    /// Source and hour of a name that [`hour`] gives.
    pub fn parse_hour(name: &str) -> Option<(&str, Timestamp)> {
        let (source, place) = name.split_once("/audit/")?;
        let mut parts = place.strip_suffix(".json")?.split('/');
        let (year, month, day, hour) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let at = Timestamp::parse(&format!("{year}-{month}-{day}T{hour}:00:00Z"))?;
        (self::hour(source, at) == name).then_some((source, at))
    }

    /// Whether a name is one that [`strange_event`] gives.
    pub fn is_strange_event(name: &str) -> bool {
        let file = name.rsplit_once('/').map_or("", |(_, file)| file);
        file.strip_prefix("event-").and_then(|rest| rest.strip_suffix(".json")).is_some()
    }

    /// Timeline and number of a segment's name, and whether it is sealed.
    pub fn parse_segment(name: &str) -> Option<(u32, u64, bool)> {
        let mut parts = name.rsplit('/');
        let file = parts.next()?.strip_prefix("seg-")?;
        let timeline = parts.next()?.strip_prefix('t')?.parse().ok()?;
        let (number, sealed) = match file.strip_suffix(".zst") {
            Some(number) => (number, true),
            None => (file.strip_suffix(".open")?, false),
        };
        Some((timeline, number.parse().ok()?, sealed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::TableContents;

    #[test]
    fn a_baseline_whose_json_changed_is_noticed() {
        let meta = BaselineMeta {
            format: FORMAT,
            archive: "a".into(),
            source: "shop".into(),
            engine: EngineKind::Mysql,
            server: Server::default(),
            timeline: 1,
            name: "base-20240501T030000Z.sql.zst".into(),
            position: Position { gtids: "u:1-5".into(), ..Position::new("log.1", 157) },
            at: Timestamp::from_secs(1),
            begun_at: Timestamp::from_secs(1),
            finished_at: Timestamp::from_secs(2),
            bytes_raw: 3,
            bytes_stored: 2,
            digest: "d".into(),
            contents: None,
        };
        let json = meta.encode().unwrap();
        assert_eq!(BaselineMeta::decode(&json).unwrap(), meta);
        let text = String::from_utf8(json).unwrap();
        assert!(!text.contains("contents"), "as it was written before there were any");
        let table = TableContents { name: "a.b".into(), rows: 7, digest: "x".into() };
        let contents = Some(Contents { tables: vec![table], databases: vec![] });
        let counted = BaselineMeta { contents, ..meta.clone() };
        let json = counted.encode().unwrap();
        assert_eq!(BaselineMeta::decode(&json).unwrap(), counted);
        let changed = String::from_utf8(json).unwrap().replace("\"rows\": 7", "\"rows\": 8");
        assert!(BaselineMeta::decode(changed.as_bytes()).is_err());
        for (from, to) in [("157", "158"), ("1-5", "1-6"), ("\"seal\": \"", "\"seal\": \"0")] {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text);
            assert!(BaselineMeta::decode(changed.as_bytes()).is_err(), "{from} to {to}");
        }
    }

    #[test]
    fn segment_names_parse_back() {
        assert_eq!(names::parse_segment(&names::segment("a-b", 3, 42)), Some((3, 42, true)));
        assert_eq!(names::parse_segment(&names::open_segment("x", 1, 7)), Some((1, 7, false)));
        assert_eq!(names::parse_segment("x/t0001/base-20240501T030000Z.sql.zst"), None);
        assert_eq!(names::parse_segment("x/t0001/seg-x.zst"), None);
    }
}
