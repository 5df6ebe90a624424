//! Times a log that is made of files and carries no times, or too coarse ones, by samples.
//!
//! A sample is the end of the log at an instant of the source's clock. It waits here for the bytes
//! that it belongs to, and becomes a mark among them.
//!
//! **Invariant:** marks grow in place and time, and none is given for bytes handed over before.

use super::sample::{Samples, Timed};
use crate::clock::Timestamp;
use crate::error::Error;
use crate::record::Mark;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How much later than a mark's instant the bytes before it may have been committed, at most.
pub const SPAN: Duration = Duration::from_millis(20);

/// How many samples may wait for their bytes.
const WAITING_MAX: usize = 4096;

/// How often an idle source's clock is handed on.
const ALIVE_EVERY: Duration = Duration::from_secs(1);

/// The end of the log at an instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LogEnd {
    /// The file that is written.
    pub(super) log: String,
    /// Its length.
    pub(super) offset: u64,
    /// The instant, by the source's clock.
    pub(super) at: Timestamp,
    /// How long the reading took, by the source's clock.
    pub(super) span: Duration,
}

impl Timed for LogEnd {
    fn at(&self) -> Timestamp {
        self.at
    }
}

/// Samples on their way to their bytes.
#[derive(Debug, Default)]
pub(super) struct Timing {
    /// `None` for a log that carries its times itself.
    samples: Option<Samples<LogEnd>>,
    /// In order.
    waiting: VecDeque<LogEnd>,
    newest: Option<Timestamp>,
    /// The mark that was handed on last without bytes, and when.
    alive: Option<(Mark, Instant)>,
    /// The sampler, which ends with this.
    _task: JoinSet<Error>,
}

impl Timing {
    /// Times a log by what a sampler that was started in `task` reads.
    pub(super) fn of(samples: Samples<LogEnd>, task: JoinSet<Error>) -> Self {
        Self { samples: Some(samples), _task: task, ..Self::default() }
    }

    /// Whether the log is timed by samples.
    pub(super) fn is_sampled(&self) -> bool {
        self.samples.is_some()
    }

    /// The next sample. Pends for ever if none are taken.
    pub(super) async fn next(&mut self) -> LogEnd {
        match &mut self.samples {
            Some(samples) => samples.next().await,
            None => std::future::pending().await,
        }
    }

    /// Keeps a sample for the bytes that it belongs to. Everything before `offset` of `log` was
    /// handed over.
    pub(super) fn note(&mut self, mut end: LogEnd, log: &str, offset: u64) {
        if is_before(&end.log, end.offset, log, offset)
            || self
                .waiting
                .back()
                .is_some_and(|last| is_before(&end.log, end.offset, &last.log, last.offset))
        {
            return;
        }
        // A server clock that steps back is held until it has caught up.
        if let Some(held) = self.newest.filter(|newest| *newest > end.at) {
            end.span += held.since(end.at);
            end.at = held;
        }
        self.newest = Some(end.at);
        if self.waiting.len() >= WAITING_MAX {
            self.waiting.pop_front();
        }
        self.waiting.push_back(end);
    }

    /// The marks within the bytes of `log` that are about to be handed over, in order.
    pub(super) async fn marks(&mut self, log: &str, start: u64, end: u64) -> Vec<Mark> {
        let Some(samples) = &mut self.samples else { return vec![] };
        // A sample on its way may belong to these bytes.
        let settled: Vec<LogEnd> = samples.settle().await.collect();
        for sample in settled {
            self.note(sample, log, start);
        }
        let mut marks = vec![];
        while let Some(first) = self.waiting.front()
            && (first.log != log || first.offset <= end)
            && is_before(&first.log, first.offset, log, end.saturating_add(1))
        {
            if first.log == log && first.offset >= start {
                marks.push(Mark::within(first.offset, first.at, first.span));
            }
            self.waiting.pop_front();
        }
        marks
    }

    /// What a new sample says when everything before `offset` of `log` was handed over and nothing
    /// else came: at once for a new place, then once in a while.
    pub(super) fn alive(&mut self, log: &str, offset: u64) -> Option<Mark> {
        let here = |end: &LogEnd| end.log == log && end.offset == offset;
        // The newest stays for the bytes that come next, unless it is handed on now.
        while self.waiting.get(1).is_some_and(here) {
            self.waiting.pop_front();
        }
        let end = self.waiting.front().filter(|end| here(end))?;
        let (mark, now) = (Mark::within(offset, end.at, end.span), Instant::now());
        let due = self.alive.is_none_or(|(last, when)| {
            last.offset != offset || (last.at < mark.at && when + ALIVE_EVERY <= now)
        });
        if !due {
            return None;
        }
        self.waiting.pop_front();
        self.alive = Some((mark, now));
        Some(mark)
    }
}

/// Whether a place comes before another. Files are numbered with at least six digits.
fn is_before(log: &str, offset: u64, other: &str, than: u64) -> bool {
    (log.len(), log, offset) < (other.len(), other, than)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(log: &str, offset: u64, at: i64) -> LogEnd {
        LogEnd { log: log.into(), offset, at: Timestamp::from_micros(at), span: Duration::ZERO }
    }

    fn timing(ends: &[LogEnd]) -> Timing {
        let (_, ready) = tokio::sync::mpsc::channel(1);
        let (_, asking) = tokio::sync::watch::channel(false);
        let mut timing = Timing { samples: Some(Samples::of(ready, asking)), ..Timing::default() };
        for end in ends {
            timing.note(end.clone(), "b.000002", 100);
        }
        timing
    }

    async fn marks(timing: &mut Timing, log: &str, start: u64, end: u64) -> Vec<(u64, i64)> {
        let marks = timing.marks(log, start, end).await;
        marks.iter().map(|mark| (mark.offset, mark.at.as_micros())).collect()
    }

    #[tokio::test]
    async fn samples_wait_for_their_bytes_and_never_go_back() {
        let mut timing = timing(&[
            end("b.000001", 900, 1),
            end("b.000002", 99, 2),
            end("b.000002", 100, 3),
            end("b.000002", 200, 5),
            end("b.000002", 150, 6),
            end("b.000002", 300, 4),
            end("b.000003", 50, 7),
            end("b.1000000", 4, 8),
        ]);
        assert_eq!(marks(&mut timing, "b.000002", 100, 250).await, [(100, 3), (200, 5)]);
        // The clock went back: its time is held.
        assert_eq!(marks(&mut timing, "b.000002", 250, 400).await, [(300, 5)]);
        assert_eq!(marks(&mut timing, "b.000003", 60, 70).await, []);
        assert_eq!(marks(&mut timing, "b.1000000", 0, 70).await, [(4, 8)]);
    }

    #[tokio::test]
    async fn an_idle_source_is_alive_now_and_then() {
        let mut timing = timing(&[end("b.000002", 100, 3), end("b.000002", 100, 4)]);
        let at = |mark: Option<Mark>| mark.map(|mark| mark.at.as_micros());
        assert_eq!(at(timing.alive("b.000002", 100)), Some(4));
        timing.note(end("b.000002", 100, 5), "b.000002", 100);
        assert_eq!(at(timing.alive("b.000002", 100)), None);
        // It is not lost: the next bytes begin with it.
        assert_eq!(marks(&mut timing, "b.000002", 100, 110).await, [(100, 5)]);
        timing.note(end("b.000002", 120, 6), "b.000002", 100);
        assert_eq!(at(timing.alive("b.000002", 100)), None);
        assert_eq!(at(timing.alive("b.000002", 120)), Some(6));
    }
}
