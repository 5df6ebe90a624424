//! The walk through a piece of the archive to a place that somebody named.
//!
//! **Invariant:** transactions are found by the same rules by which they were captured, checksums
//! included; what the walk cannot prove to be a boundary is none.

use super::executed::Executed;
use super::locate::Walk;
use super::stream::End;
use super::walk::landing;
use crate::clock::Timestamp;
use crate::engine::place::{Found, Place, parse_offset};
use crate::error::{Error, Result};
use crate::position::Position;
use crate::record::{Landing, Piece};

/// Reads `binlog.000003:1157`, `uuid:5` or a set of GTIDs.
///
/// # Errors
/// Usage, if it is none of them.
pub(crate) fn parse_place(text: &str) -> Result<Place> {
    // A file's name ends with a dot and its number, which no GTID has.
    if let Some((log, offset)) = parse_offset(text)
        && let Some((_, number)) = log.rsplit_once('.')
        && !number.is_empty()
        && number.bytes().all(|byte| byte.is_ascii_digit())
        && !log.contains([':', ','])
    {
        return Ok(Place::Offset { log: log.to_owned(), offset });
    }
    let set: Executed = text.parse().map_err(|_| {
        Error::usage(format!("not a place in a binlog: {text:?}")).hint(
            "write binlog.000003:1157, one GTID (3e11fa47-71ca-11e1-9e33-c80aa9429562:23, or \
             0-1-100 of MariaDB), or several (…:1-23, or 0-1-100,1-1-7)",
        )
    })?;
    let text = set.to_string();
    let count = match &set {
        Executed::MySql(set) => set.count(),
        Executed::Maria(_) => text.split(',').count() as u64,
    };
    match count {
        _ if set.is_empty() => Err(Error::usage("an empty set of GTIDs names no place")),
        1 => Ok(Place::Record(text)),
        _ => Ok(Place::State(text)),
    }
}

/// Whether everything in `text` was executed before `position`.
pub(crate) fn is_executed(text: &str, position: &Position) -> Result<bool> {
    let (wanted, executed): (Executed, Executed) = (text.parse()?, executed(position)?);
    Ok(wanted.is_subset(&executed))
}

/// What is executed in one and not in the other, both ways: of what `place` wants, and what
/// `executed` has besides. A state of MariaDB is named by the last transaction of each domain.
pub(crate) fn difference(place: &str, executed: &str) -> Result<(String, String)> {
    let (wanted, executed): (Executed, Executed) = (place.parse()?, executed.parse()?);
    let more = match (&wanted, &executed) {
        (Executed::Maria(wanted), Executed::Maria(executed)) => {
            let more = executed.position().filter(|gtid| !wanted.contains(*gtid));
            more.map(|gtid| gtid.to_string()).collect::<Vec<_>>().join(",")
        }
        _ => executed.subtract(&wanted).to_string(),
    };
    Ok((wanted.subtract(&executed).to_string(), more))
}

/// Whether transactions have GTIDs, of those that came between two places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Names {
    /// Some have.
    pub(crate) named: bool,
    /// Some have not.
    pub(crate) anonymous: bool,
}

/// Which of `records` transactions from one place to another have GTIDs: as many as there are more
/// of them at the end. Those of MariaDB all have. `None` if that makes no sense.
pub(crate) fn names(from: &Position, to: &Position, records: u64) -> Option<Names> {
    let (from, to) = (executed(from).ok()?, executed(to).ok()?);
    let named = match (&to, from.is_subset(&to)) {
        (Executed::Maria(_), _) => records,
        (Executed::MySql(_), true) => to.subtract(&from).count()?,
        (Executed::MySql(_), false) => return None,
    };
    Some(Names { named: named > 0, anonymous: named < records })
}

fn executed(position: &Position) -> Result<Executed> {
    position.gtids.parse().map_err(|error: Error| {
        Error::corrupt(format!("archived position {position}")).source(error)
    })
}

/// See [`crate::engine::place::find`].
pub(crate) fn find(
    from: &Position,
    pieces: &mut dyn Iterator<Item = Result<Piece>>,
    place: &Place,
) -> Result<Option<Found>> {
    let wanted: Executed = match place {
        Place::Offset { .. } => Executed::default(),
        Place::Record(text) | Place::State(text) => text.parse()?,
    };
    let mut walk = Walk::new(from, executed(from)?);
    // The magic bytes of a file are no event, and nothing to stop within.
    let mut begin = walk.track.offset;
    let mut before = None;
    if matches!(place, Place::Offset { offset, .. } if *offset <= begin) {
        return Ok(Some(boundary(begin, before, from.gtids.clone())));
    }
    for piece in pieces {
        match piece? {
            Piece::Log { at, head } => walk.begin(&at, &head)?,
            Piece::Bytes(bytes) => walk.push(bytes)?,
        }
        while let Some(part) = walk.splitter.next()? {
            let ended = match walk.track.take(&part)? {
                None | Some(End::Within) => continue,
                Some(End::Record(event)) => Some(event),
                Some(End::Outside) => None,
            };
            let end = walk.track.whole;
            let executed =
                || walk.track.gtids.as_ref().map(Executed::to_string).unwrap_or_default();
            let arrived = match place {
                Place::Offset { offset, .. } => *offset <= end,
                Place::Record(_) | Place::State(_) => {
                    walk.track.gtids.as_ref().is_some_and(|known| wanted.is_subset(known))
                }
            };
            if arrived && matches!(place, Place::Offset { offset, .. } if *offset == end) {
                let last = ended.map(|event| landing(&event, &from.log, begin)).or(before);
                return Ok(Some(boundary(end, last, executed())));
            }
            if arrived {
                let record = ended.map(|event| landing(&event, &from.log, begin));
                return Ok(Some(Found { begin, end, record, before, executed: executed() }));
            }
            before = ended.map(|event| landing(&event, &from.log, begin)).or(before);
            begin = end;
        }
    }
    Ok(None)
}

/// Walks `pieces` like [`find`], to the first record from `first` on that carries a time later than
/// `time`. Gives the offset at which it begins; `None` if there is none.
///
/// # Errors
/// Those of the pieces; corrupt, if they are not what a source writes.
pub fn find_late(
    from: &Position,
    pieces: &mut dyn Iterator<Item = Result<Piece>>,
    first: u64,
    time: Timestamp,
) -> Result<Option<u64>> {
    let mut walk = Walk::new(from, executed(from)?);
    let mut begin = walk.track.offset;
    for piece in pieces {
        match piece? {
            Piece::Log { at, head } => walk.begin(&at, &head)?,
            Piece::Bytes(bytes) => walk.push(bytes)?,
        }
        while let Some(part) = walk.splitter.next()? {
            let ended = walk.track.take(&part)?;
            if let Some(End::Record(event)) = ended
                && begin >= first
                && event.immediate_commit_ts.is_some_and(|at| at > time)
            {
                return Ok(Some(begin));
            }
            if matches!(ended, Some(End::Record(_) | End::Outside)) {
                begin = walk.track.whole;
            }
        }
    }
    Ok(None)
}

fn boundary(at: u64, before: Option<Landing>, executed: String) -> Found {
    Found { begin: at, end: at, record: None, before, executed }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;
    use rstest::rstest;

    const A: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";

    #[rstest]
    #[case::offset("binlog.000003:1157", Place::Offset { log: "binlog.000003".into(), offset: 1157 })]
    #[case::odd_name("my-bin.x.12:4", Place::Offset { log: "my-bin.x.12".into(), offset: 4 })]
    #[case::one(&format!("{A}:23"), Place::Record(format!("{A}:23")))]
    #[case::tagged(&format!("{A}:tag:7"), Place::Record(format!("{A}:tag:7")))]
    #[case::maria("0-1-100", Place::Record("0-1-100".into()))]
    #[case::maria_state("1-7-5,0-1-100", Place::State("0-1-100,1-7-5".into()))]
    #[case::set(&format!(" {A}:1-23 "), Place::State(format!("{A}:1-23")))]
    fn places_are_told_apart(#[case] text: &str, #[case] place: Place) {
        assert_eq!(parse_place(text).unwrap(), place);
    }

    #[rstest]
    #[case("0-1-100,1-2-5", "0-1-100,1-2-5", "", "")]
    #[case::other_servers_came_before("0-1-100,1-2-5", "0-3-7,0-1-100,1-2-5", "", "")]
    #[case::goes_further("0-1-100,1-2-5", "0-1-101,1-2-5", "", "0-1-101")]
    #[case::more_domains("0-1-100,1-2-5", "0-1-100,1-2-5,2-1-1", "", "2-1-1")]
    #[case::other_server_was_last("0-1-100,1-2-5", "0-1-100,0-3-90,1-2-5", "", "0-3-90")]
    #[case::not_yet("0-1-100,1-2-5", "0-1-100", "1-2-5", "")]
    fn a_state_of_mariadb_is_named_by_the_last_of_each_domain(
        #[case] place: &str,
        #[case] executed: &str,
        #[case] missing: &str,
        #[case] more: &str,
    ) {
        assert_eq!(difference(place, executed).unwrap(), (missing.to_owned(), more.to_owned()));
    }

    #[rstest]
    #[case("")]
    #[case("binlog.000003")]
    #[case("binlog:3")]
    #[case("binlog.000003:-1")]
    #[case("binlog.000003:99999999999999999999999")]
    #[case("3e11fa47-71ca-11e1-9e33-c80aa9429562:5-4")]
    fn what_is_no_place_is_said_to_be_none(#[case] text: &str) {
        assert_eq!(parse_place(text).unwrap_err().class(), Class::Usage);
    }
}
