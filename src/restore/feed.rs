//! Reads what a restore reads: checks it first, then hands it over piece by piece.
//!
//! **Invariant:** what is handed over is exactly the log from the baseline's place to the last
//! whole record that the plan saw; anything else is an error, never a shorter log.

use super::{Job, Progress};
use crate::archive::{Pieces, SegmentReader, baseline_name, log_head, open_segment};
use crate::error::{Class, Context, Error, Result};
use crate::manifest::{BASELINE_JSON_MAX, BaselineMeta, SegmentMeta, names};
use crate::position::Position;
use crate::record::{OpenLog, Piece};
use crate::store::Local;
use bytes::Bytes;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::mpsc;

/// Pieces of a log or baseline between the archive and the engine.
const PIECES_IN_FLIGHT: usize = 8;

/// Length of a baseline's pieces.
const BASELINE_PIECE_BYTES: usize = 256 << 10;

fn baseline_path(store: &Local, baseline: &BaselineMeta) -> Result<PathBuf> {
    store.path(&baseline_name(baseline))
}

/// Reads everything that a job will read, before anything is touched: what is damaged is found
/// while the target is still as it was.
pub(super) async fn verify(store: &Local, job: &Job, progress: &Arc<Progress>) -> Result<()> {
    let stored: u64 = job.segments.iter().map(|segment| segment.bytes_stored).sum();
    let total = job.baseline.bytes_stored + stored;
    progress.begin(format!("verify what {} needs", job.options.name), total);
    let (store, progress) = (store.clone(), Arc::clone(progress));
    let (baseline, segments) = (job.baseline.clone(), job.segments.clone());
    let verifying = tokio::task::spawn_blocking(move || {
        verify_baseline(&store, &baseline, &progress)?;
        for segment in &segments {
            let header = &segment.header;
            let name = names::segment(&header.source, header.timeline, header.number);
            let mut reader = open_segment(&store, &header.source, header.timeline, header.number)?;
            let found = reader.meta();
            // An open segment has no digest yet; its blocks were checked while it was scanned.
            let is_same = found.header == *header
                && (!segment.sealed || !found.sealed || found.digest == segment.digest);
            if !is_same {
                return Err(Error::corrupt(format!("{name} is not the one in the catalog"))
                    .hint("run `pitr reindex`"));
            }
            if found.sealed {
                reader.verify().map_err(|error| error.context(&name))?;
            }
            progress.advance(usize::try_from(segment.bytes_stored).unwrap_or(usize::MAX));
        }
        Ok(())
    });
    verifying.await.class(Class::Bug, || "verify the archive".into())?
}

/// Compares a baseline's file with its digest, and what the catalog says of it with its JSON.
fn verify_baseline(store: &Local, baseline: &BaselineMeta, progress: &Progress) -> Result<()> {
    let name = format!("{}.json", baseline_name(baseline));
    let json = store.get(&name, BASELINE_JSON_MAX)?;
    let stored = BaselineMeta::decode(&json).map_err(|error| error.context(&name))?;
    if stored != *baseline {
        return Err(Error::corrupt(format!("{name} is not what the catalog says"))
            .hint("run `pitr reindex`"));
    }
    let path = baseline_path(store, baseline)?;
    let mut file = File::open(&path).unavailable(|| format!("open {}", path.display()))?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BASELINE_PIECE_BYTES];
    loop {
        let read = file.read(&mut buffer).unavailable(|| format!("read {}", path.display()))?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        hasher.update(bytes);
        progress.advance(read);
    }
    if hasher.finalize().to_hex().as_str() != baseline.digest {
        return Err(Error::corrupt(format!("{} does not match its digest", path.display())).hint(
            "restore the file from the other copy, or choose an instant after a later baseline",
        ));
    }
    Ok(())
}

pub(super) fn read_baseline(
    store: &Local,
    baseline: &BaselineMeta,
    progress: Arc<Progress>,
) -> Result<mpsc::Receiver<Result<Bytes>>> {
    let path = baseline_path(store, baseline)?;
    let file = File::open(&path).unavailable(|| format!("open {}", path.display()))?;
    let expected = baseline.bytes_raw;
    let (send, receive) = mpsc::channel(PIECES_IN_FLIGHT);
    std::thread::spawn(move || {
        progress.done.store(0, Ordering::Relaxed);
        let result = (|| {
            let mut decoder = zstd::Decoder::new(file).corrupt(|| path.display().to_string())?;
            let mut total = 0;
            loop {
                let mut buffer = vec![0; BASELINE_PIECE_BYTES];
                let read = fill(&mut decoder, &mut buffer)
                    .corrupt(|| format!("decompress {}", path.display()))?;
                if read == 0 {
                    break;
                }
                buffer.truncate(read);
                total += read as u64;
                progress.advance(read);
                if send.blocking_send(Ok(buffer.into())).is_err() {
                    return Ok(());
                }
            }
            if total == expected {
                return Ok(());
            }
            Err(Error::corrupt(format!("{} holds {total} bytes, not {expected}", path.display())))
        })();
        if let Err(error) = result {
            // The receiver may be gone; then nobody wants to know.
            drop(send.blocking_send(Err(error)));
        }
    });
    Ok(receive)
}

fn fill(from: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest)? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

/// The log from the baseline's place to the end of the last segment, readable again and again.
pub(super) fn read_log(store: Local, job: &Job, progress: Arc<Progress>) -> OpenLog {
    read_segments(store, job.segments.clone(), job.baseline.position.clone(), progress)
}

/// The log from `place`, which is in the first of the segments, to the end of the last one.
fn read_segments(
    store: Local,
    segments: Vec<SegmentMeta>,
    place: Position,
    progress: Arc<Progress>,
) -> OpenLog {
    let segments = Arc::new(segments);
    Arc::new(move || {
        let (send, receive) = mpsc::channel(PIECES_IN_FLIGHT);
        let (store, segments) = (store.clone(), Arc::clone(&segments));
        let (place, progress) = (place.clone(), Arc::clone(&progress));
        std::thread::spawn(move || {
            progress.done.store(0, Ordering::Relaxed);
            if let Err(error) = feed(&store, &segments, &place, &progress, &send) {
                // The receiver may be gone; then nobody wants to know.
                drop(send.blocking_send(Err(error)));
            }
        });
        receive
    })
}

fn feed(
    store: &Local,
    segments: &[SegmentMeta],
    place: &Position,
    progress: &Progress,
    send: &mpsc::Sender<Result<Piece>>,
) -> Result<()> {
    let mut log: Option<(u32, String)> = None;
    for (index, segment) in segments.iter().enumerate() {
        let header = &segment.header;
        let mut reader = open_segment(store, &header.source, header.timeline, header.number)?;
        if reader.meta().header != *header {
            return Err(Error::corrupt(format!(
                "segment {} is not the one that was planned with",
                header.number
            )));
        }
        let from = if index == 0 { place.clone() } else { header.start.clone() };
        // Another server's log is another one, whatever its name.
        let this = (header.timeline, from.log.clone());
        if log.as_ref() != Some(&this) {
            log = Some(this);
            let head = log_head(store, &mut reader)?;
            if send.blocking_send(Ok(Piece::Log { at: from.clone(), head })).is_err() {
                return Ok(());
            }
        }
        if !feed_segment(&mut reader, from.offset, segment, progress, send)? {
            return Ok(());
        }
    }
    Ok(())
}

/// Hands over the bytes of one segment from `from` to its last whole record. `false` if nobody
/// takes them any more.
fn feed_segment(
    reader: &mut SegmentReader,
    from: u64,
    segment: &SegmentMeta,
    progress: &Progress,
    send: &mpsc::Sender<Result<Piece>>,
) -> Result<bool> {
    let end = segment.totals.end.offset;
    let mut next = from;
    for bytes in Pieces::new(reader, from, end) {
        let bytes = bytes?;
        progress.advance(bytes.len());
        next += bytes.len() as u64;
        if send.blocking_send(Ok(Piece::Bytes(bytes))).is_err() {
            return Ok(false);
        }
    }
    if next == end.max(from) {
        return Ok(true);
    }
    Err(Error::corrupt(format!(
        "segment {} gave the log up to {next}, not to {end}",
        segment.header.number
    )))
}

#[cfg(test)]
mod tests;
