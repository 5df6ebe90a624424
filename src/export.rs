//! Gives the binlog files of a source back, byte for byte, from the archive alone.
//!
//! A file comes out under the name that it has at the source only if all of it is there. What
//! lacks its beginning or its end says so in its name (`binlog.000007.until-8190`), so that
//! nobody takes it for the whole one; in front of what begins in the middle stands the head of a
//! file of the same server, if the archive has one, so that `mysqlbinlog` reads it.
//!
//! **Invariant:** every segment is compared with its digest before a byte of it is written, and a
//! final name is given only to bytes that are complete and synced.

use crate::archive::{Archive, SegmentReader, reading};
use crate::clock::{Timestamp, Tz, in_zone};
use crate::durable;
use crate::engine::mysql::{Shape, file_head};
use crate::error::{Class, Context, Error, Result};
use crate::manifest::{EngineKind, Gap, SegmentMeta, names};
use crate::record::Server;
use bytes::Bytes;
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// How many rows of segments are read at once.
const PAGE: usize = 1000;

/// How many bytes of a file are searched for its head.
const HEAD_WITHIN: usize = 64 << 10;

/// What to export, from where, and whereto.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of the archive.
    pub archive: PathBuf,
    /// Name of the source.
    pub source: String,
    /// Its kind.
    pub engine: EngineKind,
    /// A new or empty folder.
    pub out: PathBuf,
    /// Only this timeline; all, if `None`.
    pub timeline: Option<u32>,
    /// Only files that may hold something committed at this instant or later.
    pub from: Option<Timestamp>,
    /// Only files that may hold something committed at this instant or earlier.
    pub to: Option<Timestamp>,
}

/// `pitr.export/1`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Name and version of this document's form.
    pub schema: &'static str,
    /// Name of the source.
    pub source: String,
    /// The folder that was written to.
    pub dir: String,
    /// The files, in the order of the log.
    pub files: Vec<FileReport>,
    /// Holes in what was asked for.
    pub gaps: Vec<Gap>,
    /// Segments that are damaged or missing: nothing of them was written.
    pub damaged: Vec<Damage>,
}

/// How much of a file was exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Extent {
    /// All of it: equal to the source's own.
    Whole,
    /// All that there is of the newest file, which the source still writes to.
    Growing,
    /// Its beginning or its end is not in the archive.
    Partial,
}

/// One file of a [`Report`].
#[derive(Debug, Clone, Serialize)]
pub struct FileReport {
    /// Where it is, below the folder.
    pub file: String,
    /// Name of the source's file.
    pub log: String,
    /// The timeline that it is of.
    pub timeline: u32,
    /// How much of it was exported.
    pub extent: Extent,
    /// Offset of the first byte in the source's file.
    pub from: u64,
    /// Offset behind the last byte in the source's file.
    pub to: u64,
    /// Bytes put in front of what begins in the middle: the head of a file of the same server.
    pub head_bytes: u64,
    /// Events in it, the head aside.
    pub events: u64,
    /// Smallest commit time in it.
    pub first_at: Option<Timestamp>,
    /// Largest commit time in it.
    pub last_at: Option<Timestamp>,
    /// BLAKE3 digest (hex) of the file as it was written.
    pub digest: String,
}

/// A segment of which nothing was exported.
#[derive(Debug, Clone, Serialize)]
pub struct Damage {
    /// Its name within the archive.
    pub name: String,
    /// The file of the source that it is a part of.
    pub log: String,
    /// What is wrong with it.
    pub reason: String,
    #[serde(skip)]
    class: Class,
}

/// The segments of one binlog file, in order.
#[derive(Debug)]
struct Span {
    log: String,
    timeline: u32,
    server: Server,
    /// Counts up wherever a name may come again: with each timeline, with each server.
    group: usize,
    numbers: Vec<u64>,
    /// Offset of its first byte in the source's file.
    start: u64,
    /// Offset behind its last byte.
    end: u64,
    /// What it may hold was committed between these.
    since: Option<Timestamp>,
    until: Option<Timestamp>,
}

/// A file that is being written.
#[derive(Debug)]
struct Piece {
    temporary: PathBuf,
    out: BufWriter<File>,
    hasher: blake3::Hasher,
    shape: Shape,
    start: u64,
    end: u64,
    head_bytes: u64,
    first_at: Option<Timestamp>,
    last_at: Option<Timestamp>,
}

/// Writes the files. `say` gets a line for each.
///
/// # Errors
/// Refused, if the folder is not empty, or the source is no MySQL server; gap, if the archive has
/// nothing of what was asked for; unavailable, if a disk fails. What is damaged, missing or not
/// whole is no error of this function: see [`Report::check`].
pub fn export(options: &Options, say: impl Fn(&str)) -> Result<Report> {
    if options.engine != EngineKind::Mysql {
        return Err(Error::refused(format!(
            "{} is not a MySQL source: this version exports binlog files only",
            options.source
        ))
        .hint("`pitr restore --into DIR` makes an appendonlydir of a Redis source"));
    }
    let _reading = reading(&options.archive)?;
    let archive = Archive::open_read_only(&options.archive)?;
    let history = archive.history(&options.source, options.engine)?;
    let mut timelines: Vec<u32> = history.timelines.iter().map(|(number, _)| *number).collect();
    timelines.sort_unstable();
    let newest = timelines.last().copied();
    let known = timelines.clone();
    timelines.retain(|number| options.timeline.is_none_or(|only| only == *number));
    let all = spans(&archive, &options.source, &timelines)?;
    let chosen: Vec<&Span> = all.iter().filter(|span| options.wants(span)).collect();
    if chosen.is_empty() {
        let known: Vec<String> = known.iter().map(u32::to_string).collect();
        return Err(Error::gap(format!("nothing of {} is archived there", options.source)).hint(
            format!(
                "`pitr windows` shows what is; timelines: {}",
                if known.is_empty() { "none yet".into() } else { known.join(", ") }
            ),
        ));
    }
    make_empty(&options.out)?;
    let is_shared = chosen.iter().any(|span| chosen.first().is_some_and(|f| f.group != span.group));
    let mut report = Report {
        schema: "pitr.export/1",
        source: options.source.clone(),
        dir: options.out.display().to_string(),
        files: vec![],
        gaps: history.gaps.iter().filter(|gap| options.concerns(gap)).cloned().collect(),
        damaged: vec![],
    };
    for span in chosen {
        let behind = all.iter().skip_while(|other| !std::ptr::eq(*other, span)).nth(1);
        let folder = if is_shared { folder(&all, span) } else { String::new() };
        let mut work = Work {
            archive: &archive,
            source: &options.source,
            all: &all,
            span,
            dir: options.out.join(&folder),
            folder,
            // Behind it comes another file of the same server: so the server had closed it.
            is_followed: behind.is_some_and(|next| next.group == span.group),
            is_newest: behind.is_none() && Some(span.timeline) == newest,
            report: &mut report,
        };
        durable::create_dir_all(&work.dir)?;
        work.export()?;
        say(&format!("exported what there is of {} of timeline {}", span.log, span.timeline));
    }
    Ok(report)
}

impl Options {
    fn wants(&self, span: &Span) -> bool {
        let late_enough = self.from.is_none_or(|from| span.until.is_none_or(|at| at >= from));
        let early_enough = self.to.is_none_or(|to| span.since.is_none_or(|at| at <= to));
        span.end > span.start && late_enough && early_enough
    }

    fn concerns(&self, gap: &Gap) -> bool {
        self.timeline.is_none_or(|only| only == gap.timeline) && gap.concerns(self.from, self.to)
    }
}

/// Only a folder with nothing in it keeps what was exported apart from everything else.
fn make_empty(dir: &Path) -> Result<()> {
    durable::create_dir_all(dir)?;
    let mut entries =
        std::fs::read_dir(dir).unavailable(|| format!("read folder {}", dir.display()))?;
    if entries.next().is_some() {
        return Err(Error::refused(format!("{} is not empty", dir.display()))
            .hint("name a new or empty folder with --out"));
    }
    Ok(())
}

/// The folder of a file where names may come more than once: `t0001`; `t0001.2` for the second
/// server of a timeline.
fn folder(all: &[Span], span: &Span) -> String {
    let first = all.iter().find(|other| other.timeline == span.timeline);
    match span.group - first.map_or(span.group, |first| first.group) {
        0 => format!("t{:04}", span.timeline),
        more => format!("t{:04}.{}", span.timeline, more + 1),
    }
}

/// The binlog files that the archive has anything of, in order.
fn spans(archive: &Archive, source: &str, timelines: &[u32]) -> Result<Vec<Span>> {
    let mut spans = Vec::new();
    for timeline in timelines {
        // Open segments first: one that is sealed meanwhile shows up twice, never not at all.
        let open = archive.open_segments(source)?;
        let mut reached = None;
        let mut next = 1;
        let mut group = spans.last().map_or(0, |last: &Span| last.group + 1);
        let mut add = |segment: &SegmentMeta| {
            let header = &segment.header;
            next = header.number + 1;
            let (since, until) = (reached.max(segment.totals.first_at), segment.totals.known_until);
            reached = reached.max(until);
            let end = segment.totals.end.offset;
            match spans.last_mut() {
                Some(last) if last.timeline == *timeline => {
                    let goes_on = last.server.identity == header.server.identity;
                    let same_log = last.log == header.start.log;
                    if goes_on && same_log && last.end <= header.start.offset {
                        last.numbers.push(header.number);
                        (last.end, last.until) = (end, reached);
                        return;
                    }
                    if !goes_on || same_log {
                        group += 1;
                    }
                }
                _ => {}
            }
            spans.push(Span {
                log: header.start.log.clone(),
                timeline: *timeline,
                server: header.server.clone(),
                group,
                numbers: vec![header.number],
                start: header.start.offset,
                end,
                since,
                until: reached,
            });
        };
        let mut from = 1;
        loop {
            let page = archive.catalog().segments_from(source, *timeline, from, PAGE)?;
            page.iter().for_each(&mut add);
            match page.last() {
                Some(last) if page.len() == PAGE => from = last.header.number + 1,
                last => {
                    from = last.map_or(from, |last| last.header.number + 1);
                    break;
                }
            }
        }
        let open = open.iter().filter(|segment| segment.header.timeline == *timeline);
        open.filter(|segment| segment.header.number >= from).for_each(&mut add);
    }
    Ok(spans)
}

/// The export of one binlog file.
struct Work<'a> {
    archive: &'a Archive,
    source: &'a str,
    all: &'a [Span],
    span: &'a Span,
    dir: PathBuf,
    /// The last part of `dir`; empty if all files are in one folder.
    folder: String,
    is_followed: bool,
    is_newest: bool,
    report: &'a mut Report,
}

impl Work<'_> {
    fn export(&mut self) -> Result<()> {
        let log = &self.span.log;
        if log.is_empty() || log.contains(['/', '\0']) || matches!(log.as_str(), "." | "..") {
            return Err(Error::corrupt(format!("not the name of a binlog file: {log:?}")));
        }
        let mut piece: Option<Piece> = None;
        let mut before: Option<(u64, String)> = None;
        for &number in &self.span.numbers {
            let mut reader = match self.segment(number, before.as_ref()) {
                Ok(reader) => reader,
                Err(error) if matches!(error.class(), Class::Corrupt | Class::Gap) => {
                    self.report.damaged.push(Damage {
                        name: names::segment(self.source, self.span.timeline, number),
                        log: log.clone(),
                        reason: error.to_string(),
                        class: error.class(),
                    });
                    before = None;
                    self.close(piece.take(), false)?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let start = reader.meta().header.start.offset;
            if piece.as_ref().is_some_and(|piece| piece.end != start) {
                self.close(piece.take(), false)?;
            }
            let into = match &mut piece {
                Some(piece) => piece,
                None => piece.insert(self.begin(start)?),
            };
            into.append(&mut reader).map_err(|error| {
                error.context(names::segment(self.source, self.span.timeline, number))
            })?;
            before = Some((number, reader.meta().digest.clone()));
        }
        // Without its last segment, the file is not whole, whatever comes behind it.
        let is_to_the_end = before.is_some();
        self.close(piece, is_to_the_end)
    }

    /// Opens a segment and compares all of it with its checksums and with the one before it.
    fn segment(&self, number: u64, before: Option<&(u64, String)>) -> Result<SegmentReader> {
        let mut reader = self.archive.segment(self.source, self.span.timeline, number)?;
        let header = &reader.meta().header;
        let ours = header.source == self.source
            && (header.timeline, header.number) == (self.span.timeline, number)
            && header.start.log == self.span.log;
        let follows = before.is_none_or(|(last, digest)| {
            number != last + 1 || header.previous.as_ref() == Some(digest)
        });
        if !ours || !follows {
            return Err(Error::corrupt("it does not continue the segment before it"));
        }
        reader.verify()?;
        Ok(reader)
    }

    fn begin(&self, start: u64) -> Result<Piece> {
        let temporary = self.dir.join(format!("{}.unfinished", self.span.log));
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary);
        let file = file.unavailable(|| format!("create {}", temporary.display()))?;
        let mut piece = Piece {
            temporary,
            out: BufWriter::with_capacity(1 << 20, file),
            hasher: blake3::Hasher::new(),
            shape: Shape::new(start),
            start,
            end: start,
            head_bytes: 0,
            first_at: None,
            last_at: None,
        };
        if start > 0
            && let Some(head) = self.head()?
        {
            piece.write(&head)?;
            piece.head_bytes = head.len() as u64;
        }
        Ok(piece)
    }

    /// The head of the same file, if another timeline has it, or else of any file of the server.
    fn head(&self) -> Result<Option<Vec<u8>>> {
        let mut candidates: Vec<&Span> =
            self.all.iter().filter(|s| s.start == 0 && s.server == self.span.server).collect();
        candidates.sort_by_key(|span| span.log != self.span.log);
        for span in candidates {
            match self.head_of(span) {
                Ok(head) => return Ok(Some(head)),
                Err(error) if matches!(error.class(), Class::Corrupt | Class::Gap) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    fn head_of(&self, span: &Span) -> Result<Vec<u8>> {
        let number = span.numbers.first().ok_or_else(|| Error::bug("a file of no segments"))?;
        let mut reader = self.archive.segment(self.source, span.timeline, *number)?;
        let (mut bytes, mut block) = (Vec::new(), Vec::new());
        for index in 0..reader.blocks().len() {
            if bytes.len() >= HEAD_WITHIN {
                break;
            }
            reader.read_block(index, &mut block)?;
            bytes.extend_from_slice(&block);
        }
        Ok(file_head(&bytes)?.to_vec())
    }

    /// Gives what was written its name, which says how much of the file it is.
    fn close(&mut self, piece: Option<Piece>, is_to_the_end: bool) -> Result<()> {
        let Some(mut piece) = piece.filter(|piece| piece.end > piece.start) else { return Ok(()) };
        let has_end = piece.shape.is_closed() || (self.is_followed && is_to_the_end);
        let extent = match (piece.start, has_end) {
            (0, true) => Extent::Whole,
            (0, false) if self.is_newest && is_to_the_end => Extent::Growing,
            _ => Extent::Partial,
        };
        let (log, from, to) = (&self.span.log, piece.start, piece.end);
        let name = match (from, has_end) {
            (0, true) => log.clone(),
            (0, false) => format!("{log}.until-{to}"),
            (_, true) => format!("{log}.from-{from}"),
            (_, false) => format!("{log}.from-{from}-until-{to}"),
        };
        piece.finish()?;
        durable::publish(&piece.temporary, &self.dir.join(&name))?;
        let file = match self.folder.as_str() {
            "" => name,
            folder => format!("{folder}/{name}"),
        };
        self.report.files.push(FileReport {
            file,
            log: log.clone(),
            timeline: self.span.timeline,
            extent,
            from,
            to,
            head_bytes: piece.head_bytes,
            events: piece.shape.events(),
            first_at: piece.first_at,
            last_at: piece.last_at,
            digest: piece.hasher.finalize().to_hex().to_string(),
        });
        Ok(())
    }
}

impl Piece {
    /// Adds the bytes of a segment, up to its last whole record.
    fn append(&mut self, reader: &mut SegmentReader) -> Result<()> {
        let totals = reader.meta().totals.clone();
        let end = totals.end.offset;
        let mut bytes = Vec::new();
        for index in 0..reader.blocks().len() {
            reader.read_block(index, &mut bytes)?;
            let left = usize::try_from(end.saturating_sub(self.end)).unwrap_or(usize::MAX);
            bytes.truncate(left);
            self.write(&bytes)?;
            self.end += bytes.len() as u64;
            self.shape.push(Bytes::copy_from_slice(&bytes))?;
        }
        if self.end != end {
            return Err(Error::corrupt(format!("it gave bytes up to {}, not to {end}", self.end)));
        }
        self.first_at = [self.first_at, totals.first_at].into_iter().flatten().min();
        self.last_at = self.last_at.max(totals.last_at);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.out.write_all(bytes).unavailable(|| format!("write {}", self.temporary.display()))
    }

    fn finish(&mut self) -> Result<()> {
        if !self.shape.is_between_events() {
            return Err(Error::corrupt("the archive ends within an event"));
        }
        self.out
            .flush()
            .and_then(|()| self.out.get_ref().sync_all())
            .unavailable(|| format!("write {}", self.temporary.display()))
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // It has its final name by now, or it must not stay.
        drop(std::fs::remove_file(&self.temporary));
    }
}

impl Report {
    /// Says by an error, for the exit code, what a script must not pass over.
    ///
    /// # Errors
    /// Corrupt, if a segment is damaged; finding, if there is a hole, or a file other than the
    /// newest is not whole.
    pub fn check(&self) -> Result<()> {
        let corrupt = self.damaged.iter().filter(|d| d.class == Class::Corrupt).count();
        if corrupt > 0 {
            return Err(Error::corrupt(format!(
                "{corrupt} segments are damaged, and nothing of them was exported"
            ))
            .hint("restore them from the other copy, and export again into an empty folder"));
        }
        let partial = self.files.iter().filter(|file| file.extent == Extent::Partial).count();
        let holes = self.gaps.len() + self.damaged.len();
        if partial + holes > 0 {
            return Err(Error::new(
                Class::Finding,
                format!(
                    "{partial} of {} files are not whole, and there are {holes} holes",
                    self.files.len()
                ),
            )
            .hint("the report names them; `pitr windows` says why there are holes"));
        }
        Ok(())
    }

    /// The report for people, with times in `zone`.
    pub fn text(&self, zone: Tz) -> String {
        let when = |at: Option<Timestamp>| at.map_or_else(|| "-".into(), |at| in_zone(at, zone));
        let mut out = format!("{}: exported into {}\n", self.source, self.dir);
        for file in &self.files {
            let what = match (file.extent, file.from, file.head_bytes) {
                (Extent::Whole, ..) => "whole".to_owned(),
                (Extent::Growing, ..) => "whole so far: the source still writes to it".to_owned(),
                (_, 0, _) => "NOT WHOLE: its end is not in the archive".to_owned(),
                (_, from, 0) => format!("NOT WHOLE: begins at {from}, without a head"),
                (_, from, _) => format!("NOT WHOLE: begins at {from}, behind a borrowed head"),
            };
            let (events, bytes) = (file.events, file.to - file.from);
            out += &format!("    {}: {bytes} bytes, {events} events, {what}\n", file.file);
        }
        for gap in &self.gaps {
            let (after, before) = (when(gap.after), when(gap.before));
            out += &format!("    gap {after} .. {before}: {}\n", gap.reason);
        }
        for damage in &self.damaged {
            out += &format!("    damaged: {} ({}): {}\n", damage.name, damage.log, damage.reason);
        }
        out
    }
}
