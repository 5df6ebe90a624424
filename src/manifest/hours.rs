//! What an hour of a source amounts to, and the record of it that is kept for ever.
//!
//! The records of a source form a chain: each names the digest of the one before it, so that none
//! of them can be changed, or left out, without the next one showing it.

use crate::clock::Timestamp;
use crate::error::{Class, Context, Error, Result};
use crate::manifest::EngineKind;
use crate::record::Landing;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Whether it is proved that nothing of an hour is missing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Continuity {
    /// Everything of the part that the archive covers is there.
    Proved,
    /// Something is missing, or damaged.
    Gap,
    /// Nobody can tell.
    #[default]
    Unproved,
}

impl Continuity {
    /// The word used in reports.
    pub fn word(self) -> &'static str {
        match self {
            Self::Proved => "proved",
            Self::Gap => "gap",
            Self::Unproved => "unproved",
        }
    }
}

/// Rows of a table that were changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableCount {
    /// `schema.table`.
    pub name: String,
    /// Rows inserted.
    pub inserts: u64,
    /// Rows updated.
    pub updates: u64,
    /// Rows deleted.
    pub deletes: u64,
}

/// How often something came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameCount {
    /// What.
    pub name: String,
    /// How often.
    pub count: u64,
}

/// Commands in a database of a Redis server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseCount {
    /// Its number.
    pub db: u32,
    /// Commands.
    pub count: u64,
}

/// A statement that changed what there is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ddl {
    /// When it was committed.
    pub at: Option<Timestamp>,
    /// Where it begins.
    pub position: String,
    /// What it says, shortened; without secrets.
    pub text: String,
}

/// One of the largest records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Largest {
    /// Its bytes in the log.
    pub bytes: u64,
    /// When it was committed.
    pub at: Option<Timestamp>,
    /// Where it begins, or its GTID.
    pub position: String,
    /// Rows or commands in it.
    pub changes: u64,
}

/// A landmark of the hour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LandmarkLine {
    /// Its name for `restore --before`.
    pub landmark: String,
    /// When it was committed.
    pub at: Option<Timestamp>,
    /// Where it begins.
    pub position: String,
    /// What it says, shortened; without secrets.
    pub text: String,
}

/// A time in which commits did not wait for the archive, although they are to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    /// Since then.
    pub from: Timestamp,
    /// Until then; `None` if it was not over.
    pub to: Option<Timestamp>,
    /// A sentence for the operator.
    pub reason: String,
}

/// The part of an hour that the archive covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Covered {
    /// From this instant on.
    pub from: Timestamp,
    /// Up to this one.
    pub to: Timestamp,
}

/// A segment that records were counted from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRef {
    /// Its timeline.
    pub timeline: u32,
    /// Its number.
    pub number: u64,
    /// Its digest; empty while it is open.
    pub digest: String,
}

/// What an hour of a source amounts to. Records of other versions may have fewer keys, or more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Increment {
    /// Records committed in it.
    pub records: u64,
    /// Bytes of the log from the first of them to the last, and between them.
    pub bytes_raw: u64,
    /// Bytes of segments' files; of one with records of several hours, each hour's part.
    pub bytes_stored: u64,
    /// The first record.
    pub first: Option<Landing>,
    /// The last record.
    pub last: Option<Landing>,
    /// Rows changed, by table.
    pub tables: Vec<TableCount>,
    /// Statements that changed rows and were logged as they are: nobody counted those rows.
    pub statements: Vec<NameCount>,
    /// The first statements that changed what there is.
    pub ddl: Vec<Ddl>,
    /// How many more there were.
    pub more_ddl: u64,
    /// The largest records, largest first.
    pub largest: Vec<Largest>,
    /// Commands, by name.
    pub commands: Vec<NameCount>,
    /// Keys that commands name, by their beginning up to the first `:`.
    pub key_prefixes: Vec<NameCount>,
    /// Commands, by database.
    pub databases: Vec<DatabaseCount>,
    /// Blocks of several commands.
    pub multi: u64,
    /// Landmarks.
    pub landmarks: Vec<LandmarkLine>,
    /// Events that could not be decoded: what they changed is in none of the counts.
    pub undecoded: u64,
    /// What was wrong with the first of them.
    pub undecoded_reason: Option<String>,
    /// The longest time that a record took to reach the archive, in ms, among those that a segment
    /// begins with; `None` if no segment begins with one.
    pub lag_max_ms: Option<u64>,
    /// When commits did not wait for the archive; `None` where they never were to.
    pub semi_sync: Option<Vec<Fallback>>,
    /// What of the hour the archive covers; `None` if nothing.
    pub covered: Option<Covered>,
    /// Whether it is proved that nothing is missing in that.
    pub continuity: Continuity,
    /// Why not, or why the archive covers a part only.
    pub reason: Option<String>,
    /// The segments that were counted from.
    pub segments: Vec<SegmentRef>,
}

/// The record before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// Its hour.
    pub hour: Timestamp,
    /// Its digest.
    pub digest: String,
}

/// The record of an hour: `<source>/audit/…/HH.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HourRecord {
    /// [`FORMAT`](super::FORMAT).
    pub format: u32,
    /// Id of the archive.
    pub archive: String,
    /// Name of the source.
    pub source: String,
    /// Kind of the source.
    pub engine: EngineKind,
    /// When the hour begins (UTC).
    pub hour: Timestamp,
    /// The record of the hour before; `None` of the first one.
    pub previous: Option<Before>,
    /// When it was written, by pitr's clock.
    pub written_at: Timestamp,
    /// What the hour amounts to.
    #[serde(flatten)]
    pub increment: Increment,
    /// Its digest (BLAKE3, hex), which the JSON carries as `seal`; empty until it was encoded or
    /// decoded.
    #[serde(skip)]
    pub digest: String,
}

/// The key of the digest.
const SEAL: &str = "seal";

impl HourRecord {
    /// The JSON that is stored; takes note of its digest.
    ///
    /// # Errors
    /// A bug, if it cannot be written as JSON.
    pub fn encode(&mut self) -> Result<Vec<u8>> {
        let writing = || "write JSON".to_owned();
        let mut json = serde_json::to_value(&*self).class(Class::Bug, writing)?;
        self.digest = digest(&json);
        if let Value::Object(keys) = &mut json {
            keys.insert(SEAL.into(), self.digest.clone().into());
        }
        serde_json::to_vec_pretty(&json).class(Class::Bug, writing)
    }

    /// Reads what [`Self::encode`] wrote, in this or another version.
    ///
    /// # Errors
    /// Corrupt, if it is no such JSON, or its content does not match its digest.
    pub fn decode(json: &[u8]) -> Result<Self> {
        let reading = || "it is no record of an hour".to_owned();
        let mut json: Value = serde_json::from_slice(json).corrupt(reading)?;
        let seal = json.as_object_mut().and_then(|keys| keys.remove(SEAL));
        let digest = digest(&json);
        if seal.as_ref().and_then(Value::as_str) != Some(&digest) {
            return Err(Error::corrupt("its content does not match its seal"));
        }
        let record: Self = serde_json::from_value(json).corrupt(reading)?;
        Ok(Self { digest, ..record })
    }
}

/// The digest of a document, whoever wrote it: of all of its keys, also those that this version
/// does not know.
fn digest(json: &Value) -> String {
    let mut text = String::new();
    write_sorted(json, &mut text);
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

/// Compact JSON with the keys of each object in order.
fn write_sorted(json: &Value, out: &mut String) {
    let mut separator = "";
    match json {
        Value::Array(values) => {
            out.push('[');
            for value in values {
                out.push_str(std::mem::replace(&mut separator, ","));
                write_sorted(value, out);
            }
            out.push(']');
        }
        Value::Object(keys) => {
            let mut keys: Vec<_> = keys.iter().collect();
            keys.sort_by_key(|(key, _)| *key);
            out.push('{');
            for (key, value) in keys {
                out.push_str(std::mem::replace(&mut separator, ","));
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                write_sorted(value, out);
            }
            out.push('}');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_in_other_versions_and_never_in_another_form() {
        let mut record = HourRecord {
            format: 1,
            archive: "a".into(),
            source: "shop".into(),
            engine: EngineKind::Mysql,
            hour: Timestamp::from_secs(3600),
            previous: None,
            written_at: Timestamp::from_secs(7300),
            increment: Increment { records: 7, ..Increment::default() },
            digest: String::new(),
        };
        let json = record.encode().unwrap();
        assert_eq!(HourRecord::decode(&json).unwrap(), record);
        let text = String::from_utf8(json.clone()).unwrap();
        for (from, to) in [("\"records\": 7", "\"records\": 8"), ("\"seal\": \"", "\"seal\": \"0")]
        {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text);
            assert!(HourRecord::decode(changed.as_bytes()).is_err(), "{from}");
        }
        // One more key, and one less, with a digest of that.
        let mut other: Value = serde_json::from_slice(&json).unwrap();
        let keys = other.as_object_mut().unwrap();
        keys.remove("seal");
        keys.remove("multi");
        keys.insert("later".into(), 1.into());
        let sealed = digest(&other);
        other.as_object_mut().unwrap().insert("seal".into(), sealed.clone().into());
        let read = HourRecord::decode(&serde_json::to_vec(&other).unwrap()).unwrap();
        assert_eq!((read.increment, read.digest), (record.increment, sealed));
    }
}
