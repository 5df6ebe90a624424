//! GTIDs of MariaDB, and the state of a binlog that they add up to.
//!
//! A GTID is `domain-server-sequence`. A binlog's state is, for each domain and each server in it,
//! the sequence number that was logged last, and for each domain, which server that was: this is
//! what the GTID_LIST at the beginning of every file holds (`Gtid_list_log_event` in the server's
//! `sql/log_event.h`; `rpl_binlog_state` in `sql/rpl_gtid.cc`).
//!
//! With `gtid_strict_mode=OFF` sequence numbers may arrive out of order, or even twice. The
//! server's own state then has the number that was logged *last*, not the largest one; so has
//! this one, and the two can be compared for equality at the beginning of every file.
//!
//! **Invariant:** the same transactions, added in the same order, give equal states, which print
//! the same text. Memory is bounded by the bytes that were read.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// The name of one transaction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct MariaGtid {
    /// `gtid_domain_id`: transactions of different domains are independent of each other.
    pub(crate) domain: u32,
    /// `server_id` of the server that committed first.
    pub(crate) server: u32,
    /// Its number in the domain.
    pub(crate) sequence: u64,
}

impl fmt::Display for MariaGtid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.domain, self.server, self.sequence)
    }
}

impl fmt::Debug for MariaGtid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl MariaGtid {
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split('-');
        let gtid = Self {
            domain: number(numbers.next()?)?,
            server: number(numbers.next()?)?,
            sequence: number(numbers.next()?)?,
        };
        numbers.next().is_none().then_some(gtid)
    }
}

fn number<T: FromStr>(text: &str) -> Option<T> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

/// What was logged last in one domain.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Domain {
    id: u32,
    /// Server and its last sequence number: the server that logged last stands at the end, the
    /// others before it in the order of their ids. Never empty.
    last: Vec<(u32, u64)>,
}

impl Domain {
    fn sequence(&self, server: u32) -> Option<u64> {
        let (newest, others) = self.last.split_last()?;
        if newest.0 == server {
            return Some(newest.1);
        }
        let at = others.binary_search_by_key(&server, |(id, _)| *id).ok()?;
        others.get(at).map(|(_, sequence)| *sequence)
    }

    fn add(&mut self, server: u32, sequence: u64) {
        let added = (server, sequence);
        // Nearly always the server that logged last logs again.
        let Some(newest) = self.last.pop_if(|(id, _)| *id != server) else {
            self.last.pop();
            return self.last.push(added);
        };
        let by_id = |(id, _): &(u32, u64)| *id;
        if let Ok(at) = self.last.binary_search_by_key(&server, by_id) {
            self.last.remove(at);
        }
        let at = self.last.partition_point(|(id, _)| *id < newest.0);
        self.last.insert(at, newest);
        self.last.push(added);
    }

    fn gtids(&self) -> impl Iterator<Item = MariaGtid> {
        let domain = self.id;
        let gtid = move |&(server, sequence): &_| MariaGtid { domain, server, sequence };
        self.last.iter().map(gtid)
    }
}

/// Everything that a MariaDB's binlog holds before a place, told by the last transactions.
#[derive(Clone, Default)]
pub(crate) struct BinlogState {
    /// Sorted by id.
    domains: Vec<Domain>,
    /// Where the last GTID was added: nearly always the next one has the same domain.
    hint: usize,
}

impl PartialEq for BinlogState {
    fn eq(&self, other: &Self) -> bool {
        self.domains == other.domains
    }
}

impl Eq for BinlogState {}

impl BinlogState {
    /// Whether nothing was ever logged.
    pub(crate) fn is_empty(&self) -> bool {
        self.domains.is_empty()
    }

    /// Adds the transaction that was logged next. Allocates only for a new domain or server.
    pub(crate) fn add(&mut self, gtid: MariaGtid) {
        if let Some(domain) = self.domains.get_mut(self.hint)
            && domain.id == gtid.domain
        {
            return domain.add(gtid.server, gtid.sequence);
        }
        match self.domains.binary_search_by_key(&gtid.domain, |domain| domain.id) {
            Ok(at) => {
                self.hint = at;
                if let Some(domain) = self.domains.get_mut(at) {
                    domain.add(gtid.server, gtid.sequence);
                }
            }
            Err(at) => {
                self.hint = at;
                let last = vec![(gtid.server, gtid.sequence)];
                self.domains.insert(at, Domain { id: gtid.domain, last });
            }
        }
    }

    /// Whether the transaction lies before the place, or one of the same domain and server with a
    /// larger number does. Exact as long as each server numbers in order.
    pub(crate) fn contains(&self, gtid: MariaGtid) -> bool {
        let last = self.domain(gtid.domain).and_then(|domain| domain.sequence(gtid.server));
        last.is_some_and(|last| gtid.sequence <= last)
    }

    /// The last transactions of this state that `other` does not contain.
    #[must_use]
    pub(crate) fn subtract(&self, other: &Self) -> Self {
        self.filter(|gtid| !other.contains(gtid))
    }

    /// Adds everything of `other`: of two numbers of a server the larger one counts, and where
    /// both know a domain, the server that logged last there according to `other`.
    pub(crate) fn union_with(&mut self, other: &Self) {
        for gtid in other.domains.iter().flat_map(Domain::gtids) {
            let known = self.domain(gtid.domain).and_then(|domain| domain.sequence(gtid.server));
            let sequence = gtid.sequence.max(known.unwrap_or(0));
            self.add(MariaGtid { sequence, ..gtid });
        }
    }

    /// The last transaction of each domain: a position as `gtid_slave_pos` has it.
    pub(crate) fn position(&self) -> impl Iterator<Item = MariaGtid> {
        self.domains.iter().filter_map(|domain| domain.gtids().last())
    }

    /// Why a file that begins with the state `said` is not the one after this state; `None` if it
    /// is. A whole domain may be missing there (`FLUSH BINARY LOGS DELETE_DOMAIN_ID`) as long as
    /// another one shows that it is the same log.
    pub(crate) fn contradicted_by(&self, said: &Self) -> Option<String> {
        let ours = |gtid: &MariaGtid| {
            self.domain(gtid.domain).and_then(|domain| domain.sequence(gtid.server))
        };
        let strange = said.filter(|gtid| ours(&gtid) != Some(gtid.sequence));
        let new = strange.filter(|gtid| ours(&gtid).is_none_or(|last| last < gtid.sequence));
        let known = |gtid: MariaGtid| said.domain(gtid.domain).is_some() || said.is_empty();
        let lost = self.filter(|gtid| known(gtid) && !said.has(gtid));
        if !new.is_empty() {
            return Some(format!("has {new}, which never came"));
        }
        if !lost.is_empty() {
            return Some(format!("lacks {lost}, which came before"));
        }
        let other_order = said.domains.iter().any(|domain| self.domain(domain.id) != Some(domain));
        other_order.then(|| format!("says {said} where {self} came"))
    }

    fn has(&self, gtid: MariaGtid) -> bool {
        let last = self.domain(gtid.domain).and_then(|domain| domain.sequence(gtid.server));
        last == Some(gtid.sequence)
    }

    fn filter(&self, keep: impl Fn(MariaGtid) -> bool) -> Self {
        let some = |domain: &Domain| {
            let kept = domain.gtids().filter(|gtid| keep(*gtid));
            let last: Vec<_> = kept.map(|gtid| (gtid.server, gtid.sequence)).collect();
            (!last.is_empty()).then_some(Domain { id: domain.id, last })
        };
        Self { domains: self.domains.iter().filter_map(some).collect(), hint: 0 }
    }

    fn domain(&self, id: u32) -> Option<&Domain> {
        let at = self.domains.binary_search_by_key(&id, |domain| domain.id).ok()?;
        self.domains.get(at)
    }

    /// A state of these transactions, each of which is the last one of its domain and server; the
    /// last one of a domain is the newest there. `None` if one of them comes twice.
    fn from_list(mut gtids: Vec<MariaGtid>) -> Option<Self> {
        // Stable: within a domain the order counts.
        gtids.sort_by_key(|gtid| gtid.domain);
        let mut domains: Vec<Domain> = vec![];
        for same in gtids.chunk_by(|a, b| a.domain == b.domain) {
            let (newest, others) = same.split_last()?;
            let mut last: Vec<_> = others.iter().map(|gtid| (gtid.server, gtid.sequence)).collect();
            last.sort_unstable();
            let twice = last.windows(2).any(|pair| matches!(pair, [(a, _), (b, _)] if a == b));
            if twice || last.iter().any(|(server, _)| *server == newest.server) {
                return None;
            }
            last.push((newest.server, newest.sequence));
            domains.push(Domain { id: newest.domain, last });
        }
        Some(Self { domains, hint: 0 })
    }

    /// Reads the body of a GTID_LIST event: the number of entries, whose upper four bits are
    /// flags, and for each domain `u32`, server `u32` and sequence `u64`.
    ///
    /// # Errors
    /// Corrupt, if it is not what a server writes.
    pub(crate) fn decode(body: &[u8]) -> Result<Self> {
        decode(body)
            .ok_or_else(|| Error::corrupt(format!("not a list of GTIDs ({} bytes)", body.len())))
    }
}

impl BinlogState {
    /// The body of a GTID_LIST event with the last transaction of each domain.
    pub(crate) fn encode_position(&self) -> Vec<u8> {
        let mut body = (self.domains.len() as u32 & COUNT_MASK).to_le_bytes().to_vec();
        for gtid in self.position() {
            body.extend_from_slice(&gtid.domain.to_le_bytes());
            body.extend_from_slice(&gtid.server.to_le_bytes());
            body.extend_from_slice(&gtid.sequence.to_le_bytes());
        }
        if self.is_empty() {
            // What the server pads an empty list with.
            body.extend_from_slice(&[0; 2]);
        }
        body
    }
}

/// How many bits of the number of entries are the number.
const COUNT_MASK: u32 = (1 << 28) - 1;

fn decode(body: &[u8]) -> Option<BinlogState> {
    let (count, entries) = body.split_first_chunk::<4>()?;
    let count = u32::from_le_bytes(*count) & COUNT_MASK;
    let (entries, rest) = entries.as_chunks::<16>();
    // An empty list is padded: the fixed part of some older events was longer.
    if u32::try_from(entries.len()).ok()? != count || (!rest.is_empty() && count > 0) {
        return None;
    }
    let entry = |entry: &[u8; 16]| {
        let (domain, rest) = entry.split_first_chunk::<4>()?;
        let (server, rest) = rest.split_first_chunk::<4>()?;
        let (sequence, _) = rest.split_first_chunk::<8>()?;
        Some(MariaGtid {
            domain: u32::from_le_bytes(*domain),
            server: u32::from_le_bytes(*server),
            sequence: u64::from_le_bytes(*sequence),
        })
    };
    BinlogState::from_list(entries.iter().map(entry).collect::<Option<_>>()?)
}

impl fmt::Display for BinlogState {
    /// `0-1-100,0-2-120,1-2-7`: by domain, the newest of each at its end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, gtid) in self.domains.iter().flat_map(Domain::gtids).enumerate() {
            write!(f, "{}{gtid}", if i > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for BinlogState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

impl FromStr for BinlogState {
    type Err = Error;

    /// Reads `@@gtid_binlog_state`, `@@gtid_slave_pos` or what this prints.
    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let gtids = parts.map(MariaGtid::parse).collect::<Option<Vec<_>>>();
        gtids.and_then(Self::from_list).ok_or_else(|| {
            Error::usage(format!("not a list of MariaDB GTIDs: {text:?}"))
                .hint("write it like 0-1-100,1-2-7")
        })
    }
}

#[cfg(test)]
mod tests;
