//! Says what can be restored: windows, gaps and lag of each source, and of all together.

use crate::archive::{Archive, Lapse};
use crate::clock::{Timestamp, Tz, in_zone};
use crate::config::Config;
use crate::daemon::{self, SourceStatus, State};
use crate::engine::SourceOptions;
use crate::error::Result;
use crate::manifest::{EngineKind, Gap, StrangeEvent};
use crate::plan::{self, JointWindow, Window};
use crate::record::Protection;
use serde::Serialize;

/// `pitr.windows/1`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Name and version of this document's form.
    pub schema: &'static str,
    /// When it was made.
    pub now: Timestamp,
    /// Source by source, as configured.
    pub sources: Vec<SourceReport>,
    /// What all sources have in common.
    pub joint: Joint,
}

/// One source of a [`Report`].
#[derive(Debug, Clone, Serialize)]
pub struct SourceReport {
    /// Name of the source.
    pub name: String,
    /// Kind of the source.
    pub engine: EngineKind,
    /// `streaming`, `reconnecting`, `down`, or `stopped` when no daemon runs.
    pub state: &'static str,
    /// What the last attempt to stream failed with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The newest timeline; 0 before the first.
    pub timeline: u32,
    /// Nothing committed until then is missing on disk.
    pub durable_at: Option<Timestamp>,
    /// How far that is behind this host's clock.
    pub lag_ms: Option<i64>,
    /// What can be restored.
    pub windows: Vec<Window>,
    /// What cannot.
    pub gaps: Vec<GapReport>,
    /// Types of events in the log that this version does not know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub strange_events: Vec<StrangeEvent>,
    /// The baselines.
    pub baselines: Vec<BaselineReport>,
    /// When commits did not wait for the archive, where they are to (`semi_sync`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub semi_sync: Option<SemiSync>,
}

/// How well a semi-synchronous source was protected.
#[derive(Debug, Clone, Serialize)]
pub struct SemiSync {
    /// The times in which commits did not wait for the archive, in order.
    pub asynchronous: Vec<Lapse>,
}

/// A gap of a [`SourceReport`].
#[derive(Debug, Clone, Serialize)]
pub struct GapReport {
    /// Nothing is missing up to here.
    pub after: Option<Timestamp>,
    /// Capture goes on from here.
    pub before: Option<Timestamp>,
    /// The timeline behind it.
    pub timeline: u32,
    /// A sentence for the operator.
    pub reason: String,
}

/// A baseline of a [`SourceReport`].
#[derive(Debug, Clone, Serialize)]
pub struct BaselineReport {
    /// File name.
    pub name: String,
    /// The earliest instant that it can serve.
    pub at: Timestamp,
    /// Bytes uncompressed.
    pub bytes_raw: u64,
    /// Size of its file.
    pub bytes_stored: u64,
}

/// What all sources have in common.
#[derive(Debug, Clone, Serialize)]
pub struct Joint {
    /// Instants that all sources can be restored to.
    pub windows: Vec<JointWindow>,
    /// The newest of them.
    pub newest: Option<Timestamp>,
}

/// Reads the archive, and asks the daemon if one runs.
pub fn windows(config: &Config) -> Result<Report> {
    let status = daemon::status(&config.archive);
    let archive = Archive::open_read_only(&config.archive)?;
    let now = Timestamp::now();
    let mut sources = Vec::new();
    for source in &config.sources {
        let live = status.iter().flatten().find(|live| live.name == source.name);
        sources.push(report(&archive, source, live, now)?);
    }
    let each: Vec<Vec<Window>> = sources.iter().map(|source| source.windows.clone()).collect();
    let windows = plan::joint(&each);
    let newest = windows.last().map(|window| window.to);
    let joint = Joint { windows, newest };
    Ok(Report { schema: "pitr.windows/1", now, sources, joint })
}

fn report(
    archive: &Archive,
    source: &SourceOptions,
    live: Option<&SourceStatus>,
    now: Timestamp,
) -> Result<SourceReport> {
    let (name, engine) = (&source.name, source.engine);
    let mut history = archive.history(name, engine)?;
    let newest = history.timelines.iter().map(|(timeline, _)| *timeline).max().unwrap_or(0);
    // The daemon knows of an idle source that nothing was committed since; the files follow.
    if let Some(live) = live
        && let Some((_, until)) = history.timelines.iter_mut().find(|(t, _)| *t == live.timeline)
    {
        *until = (*until).max(live.durable_at);
    }
    let on_disk =
        history.timelines.iter().find(|(t, _)| *t == newest).and_then(|(_, until)| *until);
    let streams = live.is_some_and(|live| live.state == State::Streaming);
    let semi_sync = semi_sync(archive, source, streams, on_disk.unwrap_or(now))?;
    let durable_at = live.and_then(|live| live.durable_at).or(on_disk);
    Ok(SourceReport {
        name: name.to_owned(),
        engine,
        state: live.map_or("stopped", |live| live.state.word()),
        error: live.and_then(|live| live.error.clone()),
        timeline: newest,
        durable_at,
        lag_ms: durable_at.map(|at| i64::try_from(now.since(at).as_millis()).unwrap_or(i64::MAX)),
        windows: plan::windows(&history),
        gaps: history.gaps.iter().map(GapReport::of).collect(),
        strange_events: archive.strange_events(name)?,
        baselines: history
            .baselines
            .iter()
            .map(|baseline| BaselineReport {
                name: baseline.name.clone(),
                at: baseline.at,
                bytes_raw: baseline.bytes_raw,
                bytes_stored: baseline.bytes_stored,
            })
            .collect(),
        semi_sync,
    })
}

/// The lapses that are filed; of a daemon that was killed, the last one is not, yet.
fn semi_sync(
    archive: &Archive,
    source: &SourceOptions,
    streams: bool,
    on_disk: Timestamp,
) -> Result<Option<SemiSync>> {
    let last = archive.protection(&source.name)?;
    if !source.semi_sync && last.is_none() {
        return Ok(None);
    }
    let mut asynchronous = archive.lapses(&source.name)?;
    if let Some(Protection { at, lapse: None }) = last
        && !streams
    {
        let reason = "the source is not captured".into();
        asynchronous.push(Lapse { from: at.max(on_disk), to: None, reason });
    }
    Ok(Some(SemiSync { asynchronous }))
}

impl GapReport {
    fn of(gap: &Gap) -> Self {
        Self {
            after: gap.after,
            before: gap.before,
            timeline: gap.timeline,
            reason: gap.reason.clone(),
        }
    }
}

impl Report {
    /// The report for people, with times in `zone`.
    pub fn text(&self, zone: Tz) -> String {
        let mut out = String::new();
        let when = |at: Option<Timestamp>| at.map_or_else(|| "-".into(), |at| in_zone(at, zone));
        let span = |from, to| format!("    {} .. {}\n", in_zone(from, zone), in_zone(to, zone));
        for source in &self.sources {
            let lag = source.lag_ms.map(|ms| format!(", {ms} ms behind")).unwrap_or_default();
            let error = source.error.as_deref().map(|e| format!(" ({e})")).unwrap_or_default();
            out += &format!("{}: {}{lag}{error}\n", source.name, source.state);
            out.extend(source.windows.iter().map(|window| span(window.from, window.to)));
            if source.windows.is_empty() {
                out += "    nothing can be restored yet\n";
            }
            for gap in &source.gaps {
                let (after, before) = (when(gap.after), when(gap.before));
                out += &format!("    gap {after} .. {before}: {}\n", gap.reason);
            }
            for strange in &source.strange_events {
                let (event, first) = (strange.event, &strange.first);
                out += &format!("    events of the unknown type {event} from {first} on\n");
            }
            for lapse in source.semi_sync.iter().flat_map(|known| &known.asynchronous) {
                let (from, to) = (when(Some(lapse.from)), when(lapse.to));
                out += &format!("    asynchronous {from} .. {to}: {}\n", lapse.reason);
            }
            let count = source.baselines.len();
            out += &format!("    {count} baseline{}\n", if count == 1 { "" } else { "s" });
        }
        out += "all together:\n";
        out.extend(self.joint.windows.iter().map(|window| span(window.from, window.to)));
        match self.joint.newest {
            Some(newest) => out += &format!("    newest instant: {newest}\n"),
            None => out += "    no instant in common yet\n",
        }
        out
    }
}
