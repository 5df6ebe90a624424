//! Takes full copies and stores them, each at a proved place in the archive's own stream.
//!
//! The bytes go through zstd straight into a file; nothing is held back in memory and nothing is
//! written uncompressed. The JSON beside the file is written last: a baseline without it does not
//! exist.

use crate::archive::{Archive, SegmentReader, baseline_name, log_head};
use crate::clock::Timestamp;
use crate::durable;
use crate::engine::{Counter, Located, Source};
use crate::error::{Class, Context, Error, Result};
use crate::manifest::{BaselineMeta, EngineKind, FORMAT, names};
use crate::position::Position;
use crate::record::{BaselineTaken, Contents, Piece, Server};
use crate::store::Local;
use bytes::Bytes;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Pieces of a baseline on their way from the engine to the file.
pub const PIECES_IN_FLIGHT: usize = 16;

/// How long the stream may take to pass the place of a baseline that was just taken.
const CATCH_UP_TIMEOUT: Duration = Duration::from_mins(10);

/// How long is waited before a copy that failed by chance of its moment is begun anew.
const PAUSES: [Duration; 3] =
    [Duration::from_secs(5), Duration::from_secs(30), Duration::from_mins(2)];

/// How often it is looked how far the stream has come.
const PROOF_LOOK: Duration = Duration::from_millis(50);

/// What a baseline is stored under.
#[derive(Debug, Clone)]
pub struct Label {
    /// Name of the source.
    pub source: String,
    /// Kind of the source.
    pub engine: EngineKind,
    /// zstd level.
    pub level: i32,
}

/// A baseline's bytes on disk, not yet part of the archive.
#[derive(Debug)]
pub struct Stored {
    temporary: PathBuf,
    raw_len: u64,
    file_len: u64,
    digest: String,
    begun_at: Timestamp,
    contents: Option<Contents>,
}

impl Stored {
    /// Writes pieces of a copy of such a system as they come, until they end. An error among them ends it with that error
    /// and leaves nothing behind.
    pub fn write(
        dir: &Path,
        engine: EngineKind,
        level: i32,
        mut next: impl FnMut() -> Option<Result<Bytes>>,
    ) -> Result<Self> {
        durable::create_dir_all(dir)?;
        let begun_at = Timestamp::now();
        let temporary = dir.join(format!("base-{}.tmp", begun_at.as_micros()));
        let written = (|| {
            let file = File::create(&temporary)
                .unavailable(|| format!("create {}", temporary.display()))?;
            let mut encoder = zstd::Encoder::new(Hashed::new(file), level)
                .class(Class::Bug, || "start zstd".into())?;
            encoder.include_checksum(true).class(Class::Bug, || "set up zstd".into())?;
            let mut raw_len = 0;
            let mut counter = Counter::new(engine);
            while let Some(piece) = next() {
                let piece = piece?;
                raw_len += piece.len() as u64;
                counter.feed(&piece);
                encoder
                    .write_all(&piece)
                    .unavailable(|| format!("write {}", temporary.display()))?;
            }
            let hashed =
                encoder.finish().unavailable(|| format!("write {}", temporary.display()))?;
            hashed.file.sync_all().unavailable(|| format!("sync {}", temporary.display()))?;
            let digest = hashed.hasher.finalize().to_hex().to_string();
            Ok((raw_len, hashed.len, digest, counter.finish()))
        })();
        match written {
            Ok((raw_len, file_len, digest, contents)) => {
                Ok(Self { temporary, raw_len, file_len, digest, begun_at, contents })
            }
            Err(error) => {
                durable::remove(&temporary)?;
                Err(error)
            }
        }
    }

    /// Makes it part of the archive, at `position`.
    pub fn publish(
        self,
        archive: &mut Archive,
        label: &Label,
        timeline: u32,
        taken: &BaselineTaken,
        position: Position,
        at: Timestamp,
    ) -> Result<BaselineMeta> {
        let meta = BaselineMeta {
            format: FORMAT,
            archive: archive.meta().archive.clone(),
            source: label.source.clone(),
            engine: label.engine,
            server: taken.server.clone(),
            timeline,
            name: self.free_name(archive, label, timeline, taken.kind)?,
            position,
            at,
            begun_at: self.begun_at,
            finished_at: Timestamp::now(),
            bytes_raw: self.raw_len,
            bytes_stored: self.file_len,
            digest: self.digest.clone(),
            contents: taken.contents.clone().or_else(|| self.contents.clone()),
        };
        let path = archive.store().path(&baseline_name(&meta))?;
        durable::create_dir_all(&archive.store().path(&names::timeline(&label.source, timeline))?)?;
        durable::publish(&self.temporary, &path)?;
        archive.store().put_new(&format!("{}.json", baseline_name(&meta)), &meta.encode()?)?;
        archive.catalog_mut().add_baseline(&meta)?;
        Ok(meta)
    }

    /// Two baselines that begin within one second get different names.
    fn free_name(
        &self,
        archive: &Archive,
        label: &Label,
        timeline: u32,
        kind: &str,
    ) -> Result<String> {
        let folder = names::timeline(&label.source, timeline);
        let mut begun_at = self.begun_at;
        loop {
            let name = names::baseline(begun_at, kind);
            if !archive.store().exists(&format!("{folder}/{name}"))? {
                return Ok(name);
            }
            begun_at = begun_at.after(Duration::from_secs(1));
        }
    }

    /// Removes it: it will not become part of the archive.
    pub fn discard(self) -> Result<()> {
        durable::remove(&self.temporary)
    }
}

/// Takes a baseline of a source whose stream is being captured by this process.
///
/// `durable` follows the capture. The copy becomes part of the archive once the stream has passed
/// its place, and the place was found to lie between two records.
pub async fn take(
    engine: &dyn Source,
    root: &Path,
    label: &Label,
    mut durable: watch::Receiver<Option<Position>>,
    reached: impl Fn() -> Reached,
) -> Result<BaselineMeta> {
    let before = reached().timeline;
    let mut attempt = 0;
    let (taken, stored) = loop {
        match copy(engine, root, label).await {
            Ok(copied) => break copied,
            Err(error) => match PAUSES.get(attempt) {
                Some(pause) if error.is_worth_again() => {
                    attempt += 1;
                    tracing::warn!(
                        source = label.source,
                        attempt,
                        "baseline begun anew in {} s: {error}",
                        pause.as_secs()
                    );
                    tokio::time::sleep(*pause).await;
                }
                _ => return Err(error.context(format!("baseline of {}", label.source))),
            },
        }
    };
    let located = settle(engine, root, label, (&taken.position, &taken.server), &mut durable).await;
    let proved = match located {
        Ok((timeline, located)) => {
            prove(taken.at, before, timeline, &reached).await.map(|()| located)
        }
        Err(error) => Err(error),
    };
    let (timeline, located) = match proved {
        Ok(located) => (before, located),
        Err(error) => {
            stored.discard()?;
            return Err(error.context(format!("baseline of {}", label.source)));
        }
    };
    let at = located.last_at.unwrap_or(taken.at);
    let (root, label) = (root.to_owned(), label.clone());
    tokio::task::spawn_blocking(move || {
        let mut archive = Archive::open(&root)?;
        stored.publish(&mut archive, &label, timeline, &taken, located.position, at)
    })
    .await
    .class(Class::Bug, || "store baseline".into())?
}

/// Has the engine make a copy, and writes it to a file.
async fn copy(engine: &dyn Source, root: &Path, label: &Label) -> Result<(BaselineTaken, Stored)> {
    let (send, mut receive) = mpsc::channel(PIECES_IN_FLIGHT);
    let (dir, kind, level) = (root.join(&label.source), label.engine, label.level);
    let writing = tokio::task::spawn_blocking(move || {
        Stored::write(&dir, kind, level, || receive.blocking_recv().map(Ok))
    });
    let taken = engine.baseline(send).await;
    let stored = writing.await.class(Class::Bug, || "write baseline".into())?;
    match (taken, stored) {
        (Ok(taken), Ok(stored)) => Ok((taken, stored)),
        // A writer that failed closes the channel, which fails the engine: its error is the cause.
        (_, Err(error)) => Err(error),
        (Err(error), Ok(stored)) => {
            stored.discard()?;
            Err(error)
        }
    }
}

/// How far the capture has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// The newest timeline.
    pub timeline: u32,
    /// Nothing committed until then is missing on disk.
    pub known_until: Option<Timestamp>,
}

/// Waits until the timeline that was current `before` a place was read is proved to go on to the
/// instant `at` of the reading. Without that, a place in a source that was reset meanwhile could
/// have the file name and offset of one in the history before.
///
/// # Errors
/// Unavailable, if it does not.
pub async fn prove(
    at: Timestamp,
    before: u32,
    found_in: u32,
    reached: &impl Fn() -> Reached,
) -> Result<()> {
    let deadline = tokio::time::Instant::now() + CATCH_UP_TIMEOUT;
    loop {
        let now = reached();
        if found_in != before || now.timeline != before {
            return Err(Error::unavailable("the history of the source broke off meanwhile")
                .hint("try again; the daemon takes a baseline that is due by itself"));
        }
        if now.known_until.is_some_and(|until| until >= at) {
            return Ok(());
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(Error::unavailable(format!("the stream did not reach {at}"))
                .hint("`pitr windows` shows whether the source is streaming"));
        }
        tokio::time::sleep(PROOF_LOOK).await;
    }
}

/// Waits until the capture has passed a place that was read from a server, and finds out in which
/// timeline it is and what stands there.
///
/// # Errors
/// Unavailable, if the capture does not get there, or is of another server. Corrupt, if the place
/// lies within a record.
pub async fn settle(
    engine: &dyn Source,
    root: &Path,
    label: &Label,
    (place, server): (&Position, &Server),
    durable: &mut watch::Receiver<Option<Position>>,
) -> Result<(u32, Located)> {
    let deadline = tokio::time::Instant::now() + CATCH_UP_TIMEOUT;
    loop {
        // Looking into the archive is worth it only once the place can be there.
        let is_behind = durable
            .borrow_and_update()
            .as_ref()
            .is_none_or(|now| now.log == place.log && now.offset < place.offset);
        if !is_behind && let Some(reader) = find(root, &label.source, place).await? {
            let header = reader.meta().header.clone();
            if header.server.identity != server.identity {
                return Err(Error::unavailable(
                    "it was read from another server than the one that is streamed",
                )
                .hint("try again; the daemon takes a baseline that is due by itself"));
            }
            let pieces = stream(Local::new(root), reader, place.offset);
            let located = engine.locate(header.start, pieces, place.offset).await?;
            return Ok((header.timeline, located));
        }
        let changed = tokio::time::timeout_at(deadline, durable.changed()).await;
        match changed {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(Error::unavailable("the capture ended")),
            Err(_) => {
                return Err(Error::unavailable(format!(
                    "the stream did not reach {place} in {} s",
                    CATCH_UP_TIMEOUT.as_secs()
                ))
                .hint("`pitr windows` shows whether the source is streaming"));
            }
        }
    }
}

/// The segment of the newest timeline that holds `place` within its whole records. Open segments
/// are read for that: not on a thread that streams.
async fn find(root: &Path, source: &str, place: &Position) -> Result<Option<SegmentReader>> {
    let (root, source, place) = (root.to_owned(), source.to_owned(), place.clone());
    tokio::task::spawn_blocking(move || look_for(&root, &source, &place))
        .await
        .class(Class::Bug, || "look for the place of a baseline".into())?
}

fn look_for(root: &Path, source: &str, place: &Position) -> Result<Option<SegmentReader>> {
    let archive = Archive::open_read_only(root)?;
    let open = archive.open_segments(source)?;
    let sealed = archive.catalog().timelines(source)?.into_iter().max();
    let Some(timeline) = open.iter().map(|s| s.header.timeline).chain(sealed).max() else {
        return Ok(None);
    };
    let segments = archive.segments_from(source, timeline, place, None)?;
    let holding = segments.iter().take(1).find(|segment| {
        segment.header.start.offset <= place.offset && place.offset <= segment.totals.end.offset
    });
    match holding {
        Some(found) => archive.segment(source, timeline, found.header.number).map(Some),
        None => Ok(None),
    }
}

/// The bytes of one segment, up to the block that holds `offset`.
fn stream(store: Local, mut reader: SegmentReader, offset: u64) -> mpsc::Receiver<Result<Piece>> {
    let (send, receive) = mpsc::channel(4);
    std::thread::spawn(move || {
        let at = reader.meta().header.start.clone();
        let log = log_head(&store, &mut reader).map(|head| Piece::Log { at, head });
        let failed = log.is_err();
        if send.blocking_send(log).is_err() || failed {
            return;
        }
        for index in 0..reader.blocks().len() {
            if reader.blocks().get(index).is_some_and(|block| block.start > offset) {
                break;
            }
            let mut bytes = Vec::new();
            let piece = reader.read_block(index, &mut bytes).map(|_| Piece::Bytes(bytes.into()));
            let failed = piece.is_err();
            if send.blocking_send(piece).is_err() || failed {
                break;
            }
        }
    });
    receive
}

struct Hashed {
    file: File,
    hasher: blake3::Hasher,
    len: u64,
}

impl Hashed {
    fn new(file: File) -> Self {
        Self { file, hasher: blake3::Hasher::new(), len: 0 }
    }
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A copy of the instant 100, begun in timeline 1 and found in `found_in`, while the capture
    /// gets as far as each of `seen`, one after the other.
    #[rstest]
    #[case::reached_exactly(1, &[(1, None), (1, Some(99)), (1, Some(100))], true)]
    #[case::reached_at_once(1, &[(1, Some(101))], true)]
    #[case::found_in_another(2, &[(2, Some(200))], false)]
    #[case::broken_off_meanwhile(1, &[(1, Some(99)), (2, Some(200))], false)]
    #[tokio::test]
    async fn a_copy_is_filed_only_into_a_history_that_is_proved_to_reach_it(
        #[case] found_in: u32,
        #[case] seen: &[(u32, Option<i64>)],
        #[case] filed: bool,
    ) {
        let looks = AtomicUsize::new(0);
        let now = || {
            let look = looks.fetch_add(1, Ordering::Relaxed).min(seen.len() - 1);
            let (timeline, known_until) = seen[look];
            Reached { timeline, known_until: known_until.map(Timestamp::from_secs) }
        };
        let proved = prove(Timestamp::from_secs(100), 1, found_in, &now).await;
        assert_eq!(proved.is_ok(), filed, "{proved:?}");
        if filed {
            assert_eq!(looks.into_inner(), seen.len(), "it waited until then, and no longer");
        }
    }
}
