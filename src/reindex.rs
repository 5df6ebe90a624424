//! Rebuilds the catalog from the archive's objects alone.
//!
//! Every sealed segment's header and footer and every baseline's JSON is read; the new catalog is
//! made in a file of its own and then takes the place of the old one at once. Segments that are
//! still open are not in a catalog, so they are passed over.
//!
//! An object that cannot be read as what its name says is named in [`Report::damaged`] and gets
//! no row. It is not forgotten by that: a segment that is missing from its timeline is a gap, and
//! a restore over it is refused. Bytes of blocks are not read here; a restore checks those that
//! it needs.
//!
//! **Invariant:** the rebuilt catalog has the same rows as one that grew with the archive.

use crate::catalog::{self, Batch, Catalog};
use crate::clock::Timestamp;
use crate::durable::{self, Lock};
use crate::error::{Class, Context, Error, Result};
use crate::manifest::{
    ArchiveMeta, BASELINE_JSON_MAX, BaselineMeta, FORMAT, HourRecord, Pruned, names,
};
use crate::segment::Reader;
use crate::store::{Local, check_name};
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

/// Longest record of a deletion that is read, in bytes.
const PRUNED_JSON_MAX: u64 = 32 << 20;

/// Longest record of an hour that is read, in bytes.
const HOUR_JSON_MAX: u64 = 32 << 20;

/// What a rebuild found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Sealed segments that are in the catalog now.
    pub segments: u64,
    /// Baselines that are in the catalog now.
    pub baselines: u64,
    /// Segments that are still open, or were torn by a crash: they are in no catalog.
    pub open: u64,
    /// Objects that are not what their names say, and are not in the catalog.
    pub damaged: Vec<Damaged>,
}

/// An object that could not be taken into the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damaged {
    /// Its name in the archive.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Rebuilds the catalog of the archive in the folder `root`, under the archive's lock.
///
/// # Errors
/// Busy, if a daemon holds the archive; unavailable, if something cannot be read or written. The
/// old catalog is as it was then.
pub fn reindex(root: &Path, archive: &ArchiveMeta) -> Result<Report> {
    let _lock = Lock::acquire(&root.join(names::LOCK))?;
    rebuild(root, archive)
}

/// Opens the catalog for writing, and rebuilds it first if it is missing, unreadable or of
/// another version. The caller holds the archive's lock. The report is there if it was rebuilt.
pub fn open_catalog(root: &Path, archive: &ArchiveMeta) -> Result<(Catalog, Option<Report>)> {
    let path = root.join(names::CATALOG);
    // Without this look an empty catalog would take the place of a deleted one.
    if path.exists() {
        match Catalog::open(&path) {
            Err(error) if matches!(error.class(), Class::Corrupt | Class::Refused) => {}
            opened => return opened.map(|catalog| (catalog, None)),
        }
    }
    let report = rebuild(root, archive)?;
    Ok((Catalog::open(&path)?, Some(report)))
}

/// The catalog of an archive that has none, for reading only: nothing is written. A damaged
/// object is logged and left out: it is a gap then.
pub fn in_memory(root: &Path, archive: &ArchiveMeta) -> Result<Catalog> {
    let mut catalog = Catalog::in_memory()?;
    let report = catalog.batch(|batch| fill(batch, &Local::new(root), archive))?;
    for damaged in &report.damaged {
        tracing::error!("{} is damaged: {}", damaged.name, damaged.reason);
    }
    Ok(catalog)
}

/// Brings the catalog up to what a source has and a crash, or a catalog from an older copy of the
/// archive, left without rows. The caller holds the archive's lock.
///
/// # Errors
/// Corrupt, if a sealed segment is not what it must be.
pub fn catch_up(
    catalog: &mut Catalog,
    store: &Local,
    archive: &ArchiveMeta,
    source: &str,
) -> Result<()> {
    let known: HashSet<String> = catalog.baselines(source)?.iter().map(baseline_json).collect();
    let mut last = HashMap::new();
    for timeline in catalog.timelines(source)? {
        if let Some(segment) = catalog.last_segment(source, timeline)? {
            last.insert(timeline, segment.header.number);
        }
    }
    let far = Timestamp::from_micros(i64::MAX);
    let hours = catalog.audits(source, Timestamp::from_micros(i64::MIN), far)?;
    let hours: HashSet<String> = hours.iter().map(|(hour, _)| names::hour(source, *hour)).collect();
    // Names come sorted, so segments come in their order.
    for name in store.list(&format!("{source}/"))? {
        match names::parse_segment(&name) {
            None if names::parse_hour(&name).is_some() && !hours.contains(&name) => {
                let added = read_hour(store, archive, &name)
                    .and_then(|hour| catalog.batch(|batch| batch.add_hour(&hour)));
                pass_over_damage(added, &name)?;
            }
            Some((timeline, number, true))
                if last.get(&timeline).is_none_or(|last| number > *last) =>
            {
                catalog
                    .batch(|batch| add_segment(batch, store, archive, &name))
                    .map_err(|error| error.context(&name))?;
            }
            None if is_baseline(&name) && !known.contains(&name) => {
                let added = catalog.batch(|batch| add_baseline(batch, store, archive, &name));
                pass_over_damage(added.map(drop), &name)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// What is damaged is said; a disk that does not answer is an error.
fn pass_over_damage(added: Result<()>, name: &str) -> Result<()> {
    match added {
        Err(error) if matches!(error.class(), Class::Corrupt | Class::Refused) => {
            tracing::error!("{name} is damaged: {error}");
            Ok(())
        }
        other => other.map_err(|error| error.context(name)),
    }
}

fn baseline_json(meta: &BaselineMeta) -> String {
    format!("{}/{}.json", names::timeline(&meta.source, meta.timeline), meta.name)
}

fn rebuild(root: &Path, archive: &ArchiveMeta) -> Result<Report> {
    let path = root.join(names::CATALOG);
    let fresh = catalog::beside(&path, ".new");
    for end in ["", "-wal", "-shm"] {
        durable::remove(&catalog::beside(&fresh, end))?;
    }
    let mut catalog = Catalog::open(&fresh)?;
    let store = Local::new(root);
    let report = catalog.batch(|batch| fill(batch, &store, archive))?;
    catalog.close()?;
    File::open(&fresh)
        .and_then(|file| file.sync_all())
        .unavailable(|| format!("sync {}", fresh.display()))?;

    // The old catalog's log must not be applied to the new one. What is in it is first brought
    // into the old catalog's own file, so that after a crash between these steps the old one
    // still is a catalog; if that fails, it was none.
    if path.exists()
        && let Err(error) = Catalog::open(&path).and_then(Catalog::close)
    {
        tracing::debug!(%error, "the old catalog could not be closed");
    }
    for end in ["-wal", "-shm"] {
        durable::remove(&catalog::beside(&path, end))?;
    }
    durable::supersede(&fresh, &path)?;
    Ok(report)
}

/// Adds all that is in the archive. Names come sorted, so segments come in their order.
fn fill(batch: &Batch<'_>, store: &Local, archive: &ArchiveMeta) -> Result<Report> {
    let mut report = Report::default();
    let (mut described, mut copies) = (HashSet::new(), vec![]);
    let mut pruned = HashSet::new();
    for name in store.list("")? {
        let added = match what(&name) {
            Object::Segment => {
                add_segment(batch, store, archive, &name).map(|()| report.segments += 1)
            }
            Object::Baseline => add_baseline(batch, store, archive, &name).map(|file| {
                report.baselines += 1;
                described.insert(file);
            }),
            Object::Open => {
                report.open += 1;
                Ok(())
            }
            Object::Copy => {
                copies.push(name);
                continue;
            }
            Object::Hour => read_hour(store, archive, &name).and_then(|hour| batch.add_hour(&hour)),
            Object::Pruned => read_pruned(store, &name).map(|gone| pruned.extend(gone.baselines)),
            Object::Other => continue,
        };
        match added {
            Ok(()) => {}
            // Damage is reported; a disk that does not answer ends the rebuild.
            Err(error) if matches!(error.class(), Class::Corrupt | Class::Refused) => {
                report.damaged.push(Damaged { name, reason: error.to_string() });
            }
            Err(error) => return Err(error.context(name)),
        }
    }
    // A deletion that was interrupted leaves bytes without their JSON, and is taken up again.
    let is_left = |name: &String| !described.contains(name) && !pruned.contains(name);
    for name in copies.into_iter().filter(is_left) {
        let reason = "no JSON beside it says what it is".into();
        report.damaged.push(Damaged { name, reason });
    }
    Ok(report)
}

enum Object {
    Segment,
    Open,
    /// A baseline's bytes.
    Copy,
    /// The JSON beside them.
    Baseline,
    /// What was deleted from a source.
    Pruned,
    /// What an hour amounts to.
    Hour,
    Other,
}

fn what(name: &str) -> Object {
    let file = name.rsplit_once('/').map_or("", |(_, file)| file);
    match names::parse_segment(name) {
        Some((_, _, true)) => Object::Segment,
        Some((_, _, false)) => Object::Open,
        None => match file.rsplit_once('.') {
            // Not passed over, although it has no number that can be read.
            Some((stem, "zst")) if stem.starts_with("seg-") => Object::Segment,
            Some((stem, "zst")) if stem.starts_with("base-") => Object::Copy,
            Some((stem, "json")) if stem.starts_with("base-") => Object::Baseline,
            _ if names::is_pruned(name) => Object::Pruned,
            _ if names::parse_hour(name).is_some() => Object::Hour,
            _ => Object::Other,
        },
    }
}

fn add_segment(batch: &Batch<'_>, store: &Local, archive: &ArchiveMeta, name: &str) -> Result<()> {
    let reader = Reader::open(BufReader::new(store.open(name)?))?;
    let meta = reader.meta();
    let header = &meta.header;
    if header.archive != archive.archive {
        return Err(Error::corrupt(format!("it belongs to archive {}", header.archive)));
    }
    let right = names::segment(&header.source, header.timeline, header.number);
    if right != name {
        return Err(Error::corrupt(format!("by its header it is {right}")));
    }
    batch.add_segment(meta, reader.blocks())
}

/// Reads a record of what was deleted from a source.
///
/// # Errors
/// Corrupt, if it is none.
pub fn read_pruned(store: &Local, name: &str) -> Result<Pruned> {
    let json = store.get(name, PRUNED_JSON_MAX)?;
    serde_json::from_slice(&json).corrupt(|| "it is no record of a deletion".into())
}

/// Reads the record of an hour.
///
/// # Errors
/// Corrupt or refused, if it is not what its name says.
pub fn read_hour(store: &Local, archive: &ArchiveMeta, name: &str) -> Result<HourRecord> {
    let record = HourRecord::decode(&store.get(name, HOUR_JSON_MAX)?)?;
    if record.format != FORMAT {
        return Err(Error::refused(format!("record format {} is not known", record.format)));
    }
    if record.archive != archive.archive {
        return Err(Error::corrupt(format!("it belongs to archive {}", record.archive)));
    }
    let right = names::hour(&record.source, record.hour);
    if right != name {
        return Err(Error::corrupt(format!("by its content it is {right}")));
    }
    Ok(record)
}

/// Gives the name of the baseline's bytes.
fn add_baseline(
    batch: &Batch<'_>,
    store: &Local,
    archive: &ArchiveMeta,
    name: &str,
) -> Result<String> {
    let (meta, file) = read_baseline(store, archive, name)?;
    batch.add_baseline(&meta).map(|()| file)
}

/// Whether an object of this name is the JSON beside a baseline.
pub fn is_baseline(name: &str) -> bool {
    matches!(what(name), Object::Baseline)
}

/// Reads the JSON beside a baseline, and gives the name of the baseline's bytes.
///
/// # Errors
/// Corrupt or refused, if it is not what its name says, or the bytes are not there.
pub fn read_baseline(
    store: &Local,
    archive: &ArchiveMeta,
    name: &str,
) -> Result<(BaselineMeta, String)> {
    let json = store.get(name, BASELINE_JSON_MAX)?;
    let meta = BaselineMeta::decode(&json)?;
    if meta.format != FORMAT {
        return Err(Error::refused(format!("baseline format {} is not known", meta.format)));
    }
    if meta.archive != archive.archive {
        return Err(Error::corrupt(format!("it belongs to archive {}", meta.archive)));
    }
    let file = format!("{}/{}", names::timeline(&meta.source, meta.timeline), meta.name);
    let stem = file.rsplit_once('/').and_then(|(_, last)| last.split('.').next());
    let beside = file.rsplit_once('/').map(|(folder, _)| folder);
    let (folder, last) = name.rsplit_once('/').unwrap_or_default();
    if beside != Some(folder) || last.split('.').next() != stem {
        return Err(Error::corrupt(format!("by its content it belongs to {file}")));
    }
    let size = match check_name(&file) {
        Ok(()) => store.size(&file)?,
        Err(error) => return Err(Error::corrupt("it names no object").source(error)),
    };
    match size {
        Some(size) if size == meta.bytes_stored => Ok((meta, file)),
        Some(size) => {
            let wrong = format!("{file} has {size} bytes, not {}", meta.bytes_stored);
            Err(Error::corrupt(wrong))
        }
        None => Err(Error::corrupt(format!("{file} is missing"))),
    }
}

#[cfg(test)]
mod tests;
