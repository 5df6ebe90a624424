//! Going on in the log of another server: what the archive has is left out, and the stream is
//! opened where the first transaction begins that it lacks. And what no log has at all.
//!
//! **Invariant:** no transaction that was archived is handed over again, and none that was not is
//! left out.

use super::super::event::{GtidEvent, Head, body, kind};
use super::super::executed::Executed;
use super::super::stream::Part;
use super::{Filling, Pump, Stop};
use crate::error::Result;
use crate::position::Position;
use crate::record::{Continuity, LOG_HEAD_BYTES};
use bytes::Bytes;

/// The log of another server, as long as it is not where the archive is.
#[derive(Debug)]
pub(super) struct Joining {
    /// What was archived before this log was joined.
    pub(super) had: Executed,
    /// That, and what was handed over since.
    pub(super) archived: Executed,
    /// The first bytes of the file.
    pub(super) head: Vec<u8>,
    /// Whether what comes is left out, since the archive has it.
    pub(super) skipping: bool,
}

impl Pump<'_> {
    /// Whether the archive lacks the event that begins with `part`. Where the log goes over from
    /// what it has to what it lacks, the stream is opened.
    pub(super) async fn is_missing(&mut self, head: &Head, part: &Part) -> Result<bool, Stop> {
        let checksum = self.track.checksum;
        let Some(joining) = &mut self.joining else { return Ok(true) };
        let is_head = head.kind == kind::FORMAT_DESCRIPTION || head.is_executed_list();
        if is_head && joining.head.len() + part.bytes.len() <= LOG_HEAD_BYTES {
            joining.head.extend_from_slice(&part.bytes);
        }
        if head.is_gtid() {
            let event = GtidEvent::parse(head, body(&part.bytes, checksum)?)?;
            let Some(gtid) = event.gtid else {
                let what = "a transaction without a GTID: whether it was archived cannot be told";
                return Err(self.track.corrupt(what).into());
            };
            let known = joining.had.contains(gtid);
            match (known, joining.skipping) {
                (true, false) => {
                    joining.skipping = true;
                    self.flush().await?;
                }
                (false, true) => self.open_here().await?,
                _ => {}
            }
        }
        Ok(self.joining.as_ref().is_none_or(|joining| !joining.skipping))
    }

    /// Opens the stream between two records of another server's log: everything before this
    /// place is in the archive.
    pub(super) async fn open_here(&mut self) -> Result<(), Stop> {
        let Some(joining) = &mut self.joining else { return Ok(()) };
        joining.skipping = false;
        let head = Bytes::copy_from_slice(&joining.head);
        let gtids = joining.archived.to_string();
        let offset = self.track.offset;
        self.filling = Filling::default();
        self.filling.chunk.start = offset;
        let at = Position { gtids, ..Position::new(&self.track.log, offset) };
        self.open(at, Continuity::Joins { head }).await?;
        self.settle_joining();
        Ok(())
    }

    /// Another server's log is joined for good when it has come to have what the archive has.
    pub(super) fn settle_joining(&mut self) {
        let has_all = |joining: &Joining| {
            !joining.skipping && self.track.gtids.as_ref() == Some(&joining.archived)
        };
        if self.joining.as_ref().is_some_and(has_all) {
            self.joining = None;
        }
    }

    /// At the end of the log: what the source has executed and never logged is missing in the
    /// archive, unless it was executed before the first baseline of this history.
    pub(super) fn check_unlogged(&mut self, executed: &Executed) -> Result<()> {
        let Some(gtids) = &mut self.track.gtids else { return Ok(()) };
        let never_came = executed.subtract(gtids);
        if never_came.is_empty() || self.joining.is_some() {
            return Ok(());
        }
        if self.history.is_some() && never_came.is_subset(&self.facts.executed) {
            gtids.union_with(&never_came);
            self.track.unlogged.get_or_insert_default().union_with(&never_came);
            return Ok(());
        }
        self.track.forked = true;
        let what = format!(
            "the source has executed {never_came} and did not log it: gtid_purged was set by hand, \
             or log_replica_updates is off"
        );
        Err(self.track.corrupt(&what))
    }
}
