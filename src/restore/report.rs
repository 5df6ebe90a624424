//! What a restore reports, and leaves behind as its receipt: `pitr.restore/1`.
//!
//! **Invariant:** keys may be added, never renamed.

use super::Job;
use crate::clock::Timestamp;
use crate::engine::inspect::Check;
use crate::engine::{Expired, Way};
use crate::manifest::{EngineKind, Module, StoredSetup};
use crate::record::{Applied, Cut, Landing};
use serde::Serialize;

/// `pitr.restore/1`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Name and version of this document's form.
    pub schema: &'static str,
    /// The instant; where a place was asked for, the commit time of the last record before the cut
    /// (as far as known, else that of the baseline).
    pub to: Timestamp,
    /// The place in the log that was asked for, if it was not the instant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
    /// Whether the record at that place was to be left out.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub before: bool,
    /// The databases that were named for this restore; each source has those that are kept.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub databases: Vec<String>,
    /// The only keys that are restored; without it, all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<String>,
    /// Whether this only says what would be done.
    pub plan: bool,
    /// The largest difference between the clocks of the sources when they were captured.
    pub skew_ms: Option<i64>,
    /// Where the receipt is.
    pub receipt: Option<String>,
    /// Source by source.
    pub sources: Vec<SourceReport>,
}

/// One source of a [`Report`].
#[derive(Debug, Clone, Serialize)]
pub struct SourceReport {
    /// Name of the source.
    pub name: String,
    /// Kind of the source.
    pub engine: EngineKind,
    /// The server or folder restored into.
    pub target: String,
    /// Version of the server restored into.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub target_version: String,
    /// How the log is applied: `native` by the server itself, `sql` as statements.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apply: Option<&'static str>,
    /// Why it is applied that way.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub apply_reason: String,
    /// The only databases that are kept; without it, all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub databases: Vec<String>,
    /// Why only those.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub databases_reason: &'static str,
    /// Version of the server that the baseline was taken from.
    pub source_version: String,
    /// The timeline that the instant is in.
    pub timeline: u32,
    /// The baseline.
    pub baseline: BaselineReport,
    /// How many segments are replayed.
    pub segments: u64,
    /// Their digests, in order; none for one that is still open.
    pub digests: Vec<Option<String>>,
    /// Where the replay stops, as far as it is known beforehand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut: Option<String>,
    /// How exactly the instant is known, in ms, where it is known by samples of the clock: what was
    /// committed within that may be on either side of the cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uncertainty_ms: Option<u64>,
    /// The same in µs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uncertainty_us: Option<u64>,
    /// Where the archive's log ends, if the instant is the newest one that is known of it and there
    /// is more: it was captured last, and its time is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goes_on_to: Option<String>,
    /// Types of events in the log that this version does not know: whether they can be applied is
    /// up to the target.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub strange_events: Vec<u8>,
    /// Records applied.
    pub records: u64,
    /// Raw bytes of the log applied.
    pub bytes: u64,
    /// First record applied.
    pub first_applied: Option<Landing>,
    /// Last record applied.
    pub last_applied: Option<Landing>,
    /// First record left out.
    pub first_left_out: Option<Landing>,
    /// GTIDs executed at the end.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub gtids: String,
    /// What became of the times at which keys expire.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Expired>,
    /// What the source was besides its data. A folder gets it; a running server is left as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub setup: Option<SetupReport>,
    /// How long it took.
    pub seconds: Seconds,
    /// `passed`, or `planned` if nothing was done.
    pub check: &'static str,
    /// What the check compared.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub checked: String,
    /// What a rehearsal found besides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inspection: Vec<Check>,
}

/// What a source was besides its data, in a [`SourceReport`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SetupReport {
    /// The object that has all of it.
    pub object: String,
    /// When it was read.
    pub at: Timestamp,
    /// How many users there were.
    pub users: u64,
    /// How many settings.
    pub settings: u64,
    /// The modules, each with its version.
    pub modules: Vec<String>,
    /// How many nodes its cluster had.
    pub nodes: u64,
    /// Settings that hold a secret, and have to be set anew.
    pub withheld: Vec<String>,
    /// What the account was not allowed to ask.
    pub unread: Vec<String>,
}

impl SetupReport {
    pub(super) fn new(object: String, stored: &StoredSetup) -> Self {
        let setup = &stored.setup;
        let module = |module: &Module| format!("{} {}", module.name, module.version);
        Self {
            object,
            at: stored.at,
            users: setup.users.len() as u64,
            settings: setup.settings.len() as u64,
            modules: setup.modules.iter().map(module).collect(),
            nodes: setup.cluster.len() as u64,
            withheld: setup.withheld.clone(),
            unread: setup.unread.clone(),
        }
    }
}

/// The baseline of a [`SourceReport`].
#[derive(Debug, Clone, Serialize)]
pub struct BaselineReport {
    /// File name.
    pub name: String,
    /// The earliest instant that it can serve.
    pub at: Timestamp,
    /// BLAKE3 digest of its file.
    pub digest: String,
}

/// Durations of a [`SourceReport`].
#[derive(Debug, Clone, Default, Serialize)]
pub struct Seconds {
    /// Loading the baseline.
    pub baseline: f64,
    /// Replaying the log.
    pub replay: f64,
    /// Looking at what was restored, in a rehearsal.
    #[serde(skip_serializing_if = "is_zero")]
    pub inspection: f64,
    /// Everything.
    pub total: f64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_zero(seconds: &f64) -> bool {
    *seconds == 0.0
}

impl SourceReport {
    /// Notes how the log is applied.
    pub(super) fn goes(&mut self, way: Option<Way>) {
        if let Some(way) = way {
            self.apply = Some(way.apply);
            self.apply_reason = way.why;
        }
    }
}

impl Job {
    pub(super) fn report(&self, chosen: &[String]) -> SourceReport {
        SourceReport {
            name: self.options.name.clone(),
            engine: self.options.engine,
            target: self.target(),
            target_version: String::new(),
            apply: None,
            apply_reason: String::new(),
            databases: self.databases.clone(),
            databases_reason: match (self.databases.as_slice(), chosen) {
                ([], _) => "",
                (_, []) => "the configuration of the source says so (databases)",
                _ => "they were asked for",
            },
            source_version: self.baseline.server.version.clone(),
            timeline: self.baseline.timeline,
            baseline: BaselineReport {
                name: self.baseline.name.clone(),
                at: self.baseline.at,
                digest: self.baseline.digest.clone(),
            },
            segments: self.segments.len() as u64,
            digests: self
                .segments
                .iter()
                .map(|segment| segment.sealed.then(|| segment.digest.clone()))
                .collect(),
            cut: match &self.cut {
                Cut::At(position) => Some(position.to_string()),
                Cut::After(_) => None,
            },
            uncertainty_ms: self
                .uncertainty
                .and_then(|d| u64::try_from(d.as_micros().div_ceil(1000)).ok()),
            uncertainty_us: self.uncertainty.and_then(|d| u64::try_from(d.as_micros()).ok()),
            goes_on_to: self.goes_on_to.as_ref().map(ToString::to_string),
            strange_events: self.strange_events.clone(),
            records: 0,
            bytes: 0,
            first_applied: None,
            last_applied: self.last_in.clone(),
            first_left_out: self.first_out.clone(),
            gtids: String::new(),
            ttl: None,
            setup: self.setup.clone(),
            seconds: Seconds::default(),
            check: "planned",
            checked: String::new(),
            inspection: vec![],
        }
    }
}

impl SourceReport {
    pub(super) fn fill(&mut self, applied: Applied) {
        self.records = applied.records;
        self.bytes = applied.bytes;
        self.first_applied = applied.first;
        self.last_applied = applied.last;
        self.first_left_out = applied.first_left_out;
        self.gtids = applied.gtids;
    }
}
