//! Names an instant: reads where each source's log ends, and files that once all of it is archived.
//!
//! With a barrier the places are those of one moment. Every source's writes are held; then every
//! place is read, and read once more. What was equal both times, in every source, was the end of
//! its log in the moment between the two rounds, in which all were held. So nothing is before one
//! place that was caused by something behind another.
//!
//! **Invariant:** writes are held for [`HOLD_MAX`] at most, whatever happens to this process, and a
//! mark is filed only if everything before its places is durable and proved to be in the archive.

use crate::archive::Archive;
use crate::baseline::{Label, prove, settle};
use crate::capture::Shared;
use crate::clock::Timestamp;
use crate::engine::{Hold, Placed, Source};
use crate::error::{Class, Context, Error, Result};
use crate::manifest::{FORMAT, MarkedSource, NamedMark};
use crate::position::Position;
use futures_util::future::try_join_all;
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;

/// The longest time for which writes are held.
pub const HOLD_MAX: Duration = Duration::from_secs(2);

/// How often a barrier is tried, if a log went on under it: a Redis master writes a PING into its
/// own log every 10 s.
const BARRIERS: u32 = 3;

/// A source that is captured by this process.
#[derive(Debug)]
pub struct Streamed<'a> {
    /// The source itself.
    pub engine: &'a dyn Source,
    /// Name and kind.
    pub label: &'a Label,
    /// The place up to which its log is durable.
    pub durable: watch::Receiver<Option<Position>>,
    /// How far its capture has come.
    pub shared: &'a Shared,
}

/// Names this instant.
///
/// # Errors
/// Usage or refused, if the name cannot be had. Unavailable, if a source does not answer, writes
/// could not be held together, or a capture does not get there: no mark is filed then.
pub async fn mark(
    root: &Path,
    name: &str,
    barrier: bool,
    sources: Vec<Streamed<'_>>,
) -> Result<NamedMark> {
    let archive = Archive::open_read_only(root)?;
    archive.refuse_taken(name)?;
    let id = archive.meta().archive.clone();
    drop(archive);
    let before: Vec<u32> = sources.iter().map(|source| source.shared.timeline()).collect();
    let doing = |error: Error| error.context(format!("mark {name}"));
    let at = Timestamp::now();
    let (places, held) = if barrier {
        let (places, held) = held_together(&sources).await.map_err(doing)?;
        (places, Some(held))
    } else {
        let places = sources.iter().map(|source| async {
            let placed = source.engine.place(name).await;
            placed.map_err(|error| error.context(&source.label.source))
        });
        (try_join_all(places).await.map_err(doing)?, None)
    };
    let settled = sources.into_iter().zip(places).zip(before).map(|((source, placed), before)| {
        let name = source.label.source.clone();
        async move { archived(root, source, placed, before).await.map_err(|e| e.context(name)) }
    });
    let mark = NamedMark {
        format: FORMAT,
        archive: id,
        name: name.to_owned(),
        at,
        held_us: held.map(|held| u64::try_from(held.as_micros()).unwrap_or(u64::MAX)),
        sources: try_join_all(settled).await.map_err(doing)?,
    };
    let (root, filed) = (root.to_owned(), mark.clone());
    let filing =
        tokio::task::spawn_blocking(move || Archive::open_read_only(&root)?.file_mark(&filed));
    filing.await.class(Class::Bug, || "file a mark".into())?.map_err(doing)?;
    Ok(mark)
}

/// Waits until everything before a place is durable, and proves that the place is one in the
/// archive.
async fn archived(
    root: &Path,
    mut source: Streamed<'_>,
    placed: Placed,
    before: u32,
) -> Result<MarkedSource> {
    let place = (&placed.position, &placed.server);
    let (timeline, located) =
        settle(source.engine, root, source.label, place, &mut source.durable).await?;
    prove(placed.at, before, timeline, &|| source.shared.reached()).await?;
    Ok(MarkedSource {
        name: source.label.source.clone(),
        engine: source.label.engine,
        timeline,
        position: located.position,
        at: placed.at,
        published: placed.published,
    })
}

/// The ends of all logs at one moment, and for how long writes were held.
async fn held_together(sources: &[Streamed<'_>]) -> Result<(Vec<Placed>, Duration)> {
    for _ in 1..BARRIERS {
        if let Some(done) = hold(sources).await? {
            return Ok(done);
        }
    }
    hold(sources).await?.ok_or_else(|| {
        Error::unavailable(format!("a log went on under each of {BARRIERS} barriers"))
            .hint("try again; has somebody else ended the pause or unlocked the tables?")
    })
}

/// One barrier; `None` if a log went on under it.
async fn hold(sources: &[Streamed<'_>]) -> Result<Option<(Vec<Placed>, Duration)>> {
    let prepare = sources.iter().map(|source| async {
        let ready = source.engine.hold().await;
        ready.map_err(|error| error.context(&source.label.source))
    });
    let mut holds = try_join_all(prepare).await?;
    let read = async {
        // One after the other: databases, which may have to wait for statements, come first.
        for (hold, source) in holds.iter_mut().zip(sources) {
            let taken = hold.take(HOLD_MAX).await;
            taken.map_err(|error| error.context(&source.label.source))?;
        }
        let first = places(&mut holds).await?;
        let second = places(&mut holds).await?;
        Ok::<_, Error>((first, second))
    };
    // Behind this limit a server may have let go by itself: what was read is then no moment. What
    // is held is dropped with the connections.
    let limited = tokio::time::timeout(HOLD_MAX, read).await;
    let (first, second) = limited.unwrap_or_else(|_| {
        Err(Error::unavailable(format!("writes could not be held together within {HOLD_MAX:?}"))
            .hint("a statement that runs for long may be in the way; nothing is held any more"))
    })?;
    let released = try_join_all(holds.into_iter().map(Hold::release)).await?;
    let same = first.iter().zip(&second).all(|(a, b)| a.position == b.position);
    let held = released.into_iter().max().unwrap_or_default();
    Ok(same.then_some((first, held)))
}

async fn places(holds: &mut [Box<dyn Hold>]) -> Result<Vec<Placed>> {
    try_join_all(holds.iter_mut().map(|hold| hold.place())).await
}
