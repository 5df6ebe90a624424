//! Runs a capture against a real server and keeps what it hands over, as an archive would.

use crate::support::{Mysqld, eventually, program};
use bytes::Bytes;
use pitr::clock::Timestamp;
use pitr::engine::mysql::MysqlSource;
use pitr::engine::{Endpoint, Source, SourceOptions};
use pitr::error::Result;
use pitr::manifest::EngineKind;
use pitr::position::Position;
use pitr::record::{Captured, Continuity, Mark, Recalled, Server};
use std::collections::BTreeMap;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// How long a capture may take to get somewhere.
pub(super) const SOON: Duration = Duration::from_mins(1);

/// Where the flag stands by which an open binlog file differs from what is captured of it.
const IN_USE_AT: usize = 4 + 17;

pub(super) fn endpoint(server: &Mysqld) -> Endpoint {
    Endpoint::parse(EngineKind::Mysql, &server.url()).unwrap()
}

pub(super) fn source_at(endpoint: Endpoint) -> Arc<MysqlSource> {
    Arc::new(MysqlSource::new(SourceOptions {
        name: "shop".into(),
        engine: EngineKind::Mysql,
        endpoint,
        standbys: vec![],
        sample_every: Duration::from_millis(100),
        dump_command: None,
        aof: None,
        databases: vec![],
        semi_sync: false,
        digests: true,
    }))
}

pub(super) fn source(server: &Mysqld) -> Arc<MysqlSource> {
    source_at(endpoint(server))
}

/// What an archive tells that ends there, with these bytes.
pub(super) fn recalled(place: Position, before: Bytes) -> Recalled {
    Recalled { place, before, last_records: None }
}

/// A chunk without its bytes.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) log: String,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) records: u32,
    pub(super) first_at: Option<Timestamp>,
    pub(super) last_at: Option<Timestamp>,
    pub(super) marks: Vec<Mark>,
}

/// Everything that was handed over, by all captures so far.
#[derive(Debug, Default, Clone)]
pub(super) struct Kept {
    pub(super) server: Server,
    pub(super) opened: Vec<(Position, Continuity)>,
    pub(super) skew_micros: i64,
    pub(super) files: BTreeMap<String, Vec<u8>>,
    /// The first bytes of files that are captured from their middle on.
    pub(super) heads: BTreeMap<String, Vec<u8>>,
    pub(super) logs: Vec<Position>,
    pub(super) chunks: Vec<Seen>,
    pub(super) marks: Vec<Mark>,
    pub(super) origins: Vec<u32>,
    /// Behind the last whole record.
    pub(super) whole: Option<Position>,
    log: String,
    offset: u64,
}

impl Kept {
    pub(super) fn records(&self) -> u64 {
        self.chunks.iter().map(|chunk| u64::from(chunk.records)).sum()
    }

    fn take(&mut self, captured: Captured) {
        match captured {
            Captured::Opened { server, at, continuity, skew_micros } => {
                self.server = server;
                self.skew_micros = skew_micros;
                (self.log, self.offset) = (at.log.clone(), at.offset);
                if let Continuity::Joins { head } = &continuity {
                    // Other files from here on, of the same history.
                    assert_eq!(Some(&at.gtids), self.whole.as_ref().map(|whole| &whole.gtids));
                    self.heads.insert(at.log.clone(), head.to_vec());
                    self.files.clear();
                    let before = usize::try_from(at.offset).unwrap();
                    self.files.insert(at.log.clone(), vec![0; before]);
                } else if continuity == Continuity::Continues {
                    assert_eq!(Some(&at), self.whole.as_ref());
                } else {
                    self.files.clear();
                    self.chunks.clear();
                }
                let file = self.files.entry(at.log.clone()).or_default();
                assert!(file.len() as u64 >= at.offset);
                file.truncate(usize::try_from(at.offset).unwrap());
                self.whole = Some(at.clone());
                self.opened.push((at, continuity));
            }
            Captured::Log(at) => {
                assert_eq!(at.offset, 0);
                assert_eq!(Some(&at.gtids), self.whole.as_ref().map(|whole| &whole.gtids));
                (self.log, self.offset) = (at.log.clone(), 0);
                assert!(self.files.insert(at.log.clone(), vec![]).is_none());
                self.whole = Some(at.clone());
                self.logs.push(at);
            }
            Captured::Chunk(chunk) => {
                assert_eq!(chunk.start, self.offset, "chunks follow each other");
                assert!(!chunk.bytes.is_empty());
                assert!(chunk.bytes.len() <= pitr::record::CHUNK_BYTES);
                assert!(chunk.records == 0 || chunk.whole.is_some());
                self.offset = chunk.end();
                self.files.get_mut(&self.log).unwrap().extend(&chunk.bytes);
                self.origins.extend(&chunk.origins);
                self.chunks.push(Seen {
                    log: self.log.clone(),
                    start: chunk.start,
                    end: chunk.end(),
                    records: chunk.records,
                    first_at: chunk.first_at,
                    last_at: chunk.last_at,
                    marks: chunk.marks,
                });
                if let Some(whole) = chunk.whole {
                    assert_eq!(whole.log, self.log);
                    assert!(whole.offset > chunk.start && whole.offset <= self.offset);
                    self.whole = Some(whole);
                }
            }
            Captured::Alive(mark) => {
                assert_eq!(mark.offset, self.offset);
                assert!(self.marks.last().is_none_or(|last| last.at < mark.at));
                self.marks.push(mark);
            }
            Captured::Baseline { .. } => panic!("MySQL sends no baseline by itself"),
            Captured::Protection(_) => panic!("the source was not asked to wait"),
        }
    }

    /// Compares what was captured with the files of the server, byte for byte.
    pub(super) fn assert_same_files(&self, server: &Mysqld) {
        for (name, captured) in &self.files {
            let mut on_disk = std::fs::read(server.datadir().join(name)).unwrap();
            if self.log == *name {
                on_disk[IN_USE_AT] = 0;
            }
            if let Some(head) = self.heads.get(name) {
                assert!(on_disk.starts_with(head));
                let before = captured.iter().take_while(|byte| **byte == 0).count();
                on_disk[..before].fill(0);
            }
            if *captured != on_disk {
                let at = captured.iter().zip(&on_disk).position(|(a, b)| a != b);
                let lens = (captured.len(), on_disk.len());
                panic!("{name} differs at {at:?}; lengths {lens:?}");
            }
        }
    }

    /// Compares the commit times of all chunks with what `mysqlbinlog` reads.
    pub(super) fn assert_same_times(&self, server: &Mysqld) -> usize {
        let mut compared = 0;
        for name in self.files.keys() {
            let times = times(&server.datadir().join(name));
            for chunk in self.chunks.iter().filter(|chunk| chunk.log == *name) {
                let here: Vec<_> = times
                    .iter()
                    .filter(|(end, _)| chunk.start < *end && *end <= chunk.end)
                    .map(|(_, at)| *at)
                    .collect();
                assert_eq!(u64::from(chunk.records), here.len() as u64, "{chunk:?}");
                assert_eq!(chunk.first_at, here.iter().min().copied());
                assert_eq!(chunk.last_at, here.iter().max().copied());
                compared += here.len();
            }
        }
        compared
    }
}

/// End and commit time of each transaction in a file, as `mysqlbinlog` reads them.
fn times(file: &std::path::Path) -> Vec<(u64, Timestamp)> {
    let output =
        Command::new(program("mysqlbinlog")).arg("--base64-output=DECODE-ROWS").arg(file).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let (mut times, mut at) = (vec![], 0);
    for line in text.lines() {
        if let Some(offset) = line.strip_prefix("# at ") {
            at = offset.parse().unwrap_or(at);
        }
        let value = |key| {
            let (_, value) = line.split_once(key)?;
            value.split_whitespace().next()?.parse::<i64>().ok()
        };
        if let (Some(micros), Some(length)) =
            (value("immediate_commit_timestamp="), value("transaction_length="))
        {
            times.push((at + u64::try_from(length).unwrap(), Timestamp::from_micros(micros)));
        }
    }
    times
}

/// A capture that runs.
pub(super) struct Capture {
    kept: Arc<Mutex<Kept>>,
    /// How often a stream was opened before.
    before: usize,
    task: JoinHandle<Result<()>>,
    stop: tokio::sync::oneshot::Sender<()>,
}

impl Capture {
    /// A first capture.
    pub(super) fn start(source: &Arc<MysqlSource>) -> Self {
        Self::go_on(source, Kept::default())
    }

    /// Goes on behind the last whole record of what is kept.
    pub(super) fn go_on(source: &Arc<MysqlSource>, kept: Kept) -> Self {
        let (resume, before) = (kept.whole.clone(), kept.opened.len());
        let kept = Arc::new(Mutex::new(kept));
        let (out, mut chunks) = mpsc::channel(2);
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let (source, keep) = (Arc::clone(source), Arc::clone(&kept));
        let task = tokio::spawn(async move {
            let (_keep, durable) = watch::channel(None);
            let tail = source.tail(resume, out, durable);
            let collect = async move {
                loop {
                    tokio::select! {
                        biased;
                        _ = &mut stopped => return,
                        captured = chunks.recv() => match captured {
                            Some(captured) => keep.lock().unwrap().take(captured),
                            None => return,
                        },
                    }
                }
            };
            tokio::join!(tail, collect).0
        });
        Self { kept, before, task, stop }
    }

    pub(super) fn kept(&self) -> Kept {
        self.kept.lock().unwrap().clone()
    }

    /// Waits until `enough` has been handed over.
    pub(super) async fn until(&self, what: &str, enough: impl Fn(&Kept) -> bool) {
        eventually(what, SOON, async || {
            assert!(!self.task.is_finished(), "the capture ended while waiting until {what}");
            enough(&self.kept.lock().unwrap()).then_some(())
        })
        .await;
    }

    /// Waits until everything that the server has now is here.
    pub(super) async fn caught_up(&self, server: &Mysqld) {
        let (file, position): (String, u64) = status(server).await;
        self.until("all is captured", |kept| {
            let whole = kept.whole.as_ref();
            kept.opened.len() > self.before
                && whole.is_some_and(|whole| whole.log == file && whole.offset >= position)
        })
        .await;
    }

    /// Ends the capture in order.
    pub(super) async fn stop(self) -> Kept {
        let Self { kept, task, stop, .. } = self;
        stop.send(()).ok();
        tokio::time::timeout(SOON, task).await.expect("the capture stops").unwrap().unwrap();
        Arc::try_unwrap(kept).unwrap().into_inner().unwrap()
    }

    /// Waits for the error with which the capture ends by itself.
    pub(super) async fn failed(self) -> (Kept, pitr::error::Error) {
        let ended = tokio::time::timeout(SOON, self.task).await.expect("the capture ends");
        let error = ended.unwrap().unwrap_err();
        (Arc::try_unwrap(self.kept).unwrap().into_inner().unwrap(), error)
    }
}

pub(super) async fn status(server: &Mysqld) -> (String, u64) {
    let ask = if server.is_mariadb() { "SHOW MASTER STATUS" } else { "SHOW BINARY LOG STATUS" };
    let row: mysql_async::Row = server.row(ask).await;
    (row.get(0).unwrap(), row.get(1).unwrap())
}
