//! A capture that runs in the background and keeps everything it was handed.

use crate::support::{RedisServer, eventually};
use bytes::Bytes;
use pitr::clock::Timestamp;
use pitr::engine::digest::Digest;
use pitr::engine::redis::RedisSource;
use pitr::engine::{
    Destination, Endpoint, Expired, Expiry, Needs, Source, SourceOptions, Target, TargetOptions,
    open_target,
};
use pitr::error::Error;
use pitr::manifest::{BaselineMeta, EngineKind, FORMAT};
use pitr::position::Position;
use pitr::record::{
    Applied, BaselineTaken, CHUNK_BYTES, Captured, Chunk, Continuity, Cut, Mark, OpenBaseline,
    OpenLog, Piece, Server,
};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

pub(super) const SOON: Duration = Duration::from_secs(20);

/// What was handed over, in order and put together.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) opened: Vec<(Position, Continuity)>,
    pub(super) server: Server,
    pub(super) skew_micros: i64,
    pub(super) logs: Vec<Position>,
    pub(super) baselines: Vec<(BaselineTaken, Result<Vec<u8>, String>)>,
    /// All bytes since the last `Opened`.
    pub(super) bytes: Vec<u8>,
    /// Where the last whole record ends.
    pub(super) whole: Option<Position>,
    pub(super) records: u64,
    pub(super) chunks: usize,
    pub(super) marks: Vec<Mark>,
    pub(super) alive: usize,
}

impl Kept {
    pub(super) fn start(&self) -> &Position {
        &self.opened.last().expect("the stream was opened").0
    }

    /// Offset after the last byte.
    pub(super) fn end(&self) -> u64 {
        self.start().offset + self.bytes.len() as u64
    }

    pub(super) fn needs(&self) -> Needs {
        Needs { version: self.server.version.clone(), ..Needs::default() }
    }

    /// The first baseline, as the archive describes it.
    fn baseline(&self) -> (BaselineMeta, Vec<u8>) {
        let (taken, bytes) = &self.baselines[0];
        let bytes = bytes.clone().unwrap();
        let meta = BaselineMeta {
            format: FORMAT,
            archive: String::new(),
            source: "shop-redis".into(),
            engine: EngineKind::Redis,
            server: taken.server.clone(),
            timeline: 1,
            name: "base.rdb.zst".into(),
            position: taken.position.clone(),
            at: taken.at,
            begun_at: Timestamp::now(),
            finished_at: Timestamp::now(),
            bytes_raw: bytes.len() as u64,
            bytes_stored: 0,
            digest: String::new(),
            contents: None,
        };
        (meta, bytes)
    }

    /// The first baseline, as the archive gives it back.
    pub(super) fn open_baseline(&self) -> OpenBaseline {
        let (_, bytes) = self.baseline();
        Arc::new(move || {
            let (sender, pieces) = mpsc::channel(2);
            let bytes = bytes.clone();
            tokio::spawn(async move {
                for piece in bytes.chunks(100) {
                    if sender.send(Ok(Bytes::copy_from_slice(piece))).await.is_err() {
                        return;
                    }
                }
            });
            Ok(pieces)
        })
    }

    /// The log since the last `Opened`, as the archive gives it back.
    fn open_log(&self) -> OpenLog {
        let mut pieces = vec![];
        let mut bounds = vec![self.start().clone()];
        bounds.extend(self.logs.clone());
        for (i, at) in bounds.iter().enumerate() {
            let end = bounds.get(i + 1).map_or(self.end(), |next| next.offset);
            let place = |offset: u64| usize::try_from(offset - self.start().offset).unwrap();
            pieces.push(Piece::Log { at: at.clone(), head: Bytes::new() });
            for bytes in self.bytes[place(at.offset)..place(end)].chunks(70_001) {
                pieces.push(Piece::Bytes(Bytes::copy_from_slice(bytes)));
            }
        }
        Arc::new(move || {
            let (sender, receiver) = mpsc::channel(2);
            let pieces = pieces.clone();
            tokio::spawn(async move {
                for piece in pieces {
                    if sender.send(Ok(piece)).await.is_err() {
                        return;
                    }
                }
            });
            receiver
        })
    }

    fn mark(&mut self, mark: Mark) {
        if let Some(last) = self.marks.last() {
            assert!(last.offset <= mark.offset && last.at <= mark.at, "{last:?} then {mark:?}");
        }
        self.marks.push(mark);
    }

    fn chunk(&mut self, chunk: Chunk) {
        assert_eq!(chunk.start, self.end(), "chunks follow on each other");
        assert!(!chunk.bytes.is_empty());
        assert!(chunk.bytes.len() <= CHUNK_BYTES, "{} bytes at once", chunk.bytes.len());
        for mark in &chunk.marks {
            assert!((chunk.start..=chunk.end()).contains(&mark.offset), "{mark:?} in {chunk:?}");
            self.mark(*mark);
        }
        self.bytes.extend_from_slice(&chunk.bytes);
        self.records += u64::from(chunk.records);
        self.chunks += 1;
        self.whole = chunk.whole.or(self.whole.take());
    }
}

/// A running capture.
#[derive(Debug)]
pub(super) struct Capture {
    kept: Arc<Mutex<Kept>>,
    tail: JoinHandle<Result<(), Error>>,
    consumer: JoinHandle<()>,
    /// What the capture takes for durable.
    pub(super) durable: watch::Sender<Option<Position>>,
}

pub(super) fn endpoint(server: &RedisServer) -> Endpoint {
    Endpoint::parse(EngineKind::Redis, &server.url()).unwrap()
}

pub(super) fn source(endpoint: Endpoint) -> RedisSource {
    RedisSource::new(SourceOptions {
        name: "shop-redis".into(),
        engine: EngineKind::Redis,
        endpoint,
        standbys: vec![],
        sample_every: Duration::from_millis(100),
        dump_command: None,
        aof: None,
        databases: vec![],
        semi_sync: false,
        digests: true,
    })
}

impl Capture {
    pub(super) fn start(server: &RedisServer, resume: Option<Position>) -> Self {
        Self::start_at(endpoint(server), resume, |_| Duration::ZERO)
    }

    /// The same, with a consumer that stalls as long as `stall` says before it keeps something.
    pub(super) fn start_at(
        endpoint: Endpoint,
        resume: Option<Position>,
        stall: impl Fn(&Captured) -> Duration + Send + 'static,
    ) -> Self {
        let (out, mut captured) = mpsc::channel(8);
        let (durable, durable_seen) = watch::channel(resume.clone());
        let tail =
            tokio::spawn(async move { source(endpoint).tail(resume, out, durable_seen).await });
        let kept = Arc::new(Mutex::new(Kept::default()));
        let keeping = Arc::clone(&kept);
        let consumer = tokio::spawn(async move {
            while let Some(captured) = captured.recv().await {
                tokio::time::sleep(stall(&captured)).await;
                if let Captured::Baseline { taken, mut pieces } = captured {
                    let mut bytes = Ok(vec![]);
                    while let Some(piece) = pieces.recv().await {
                        bytes = match (bytes, piece) {
                            (Ok(bytes), Ok(piece)) => Ok([bytes, piece.to_vec()].concat()),
                            (_, Err(error)) | (Err(error), Ok(_)) => Err(error),
                        };
                    }
                    let bytes = bytes.map_err(|e: Error| e.to_string());
                    keeping.lock().unwrap().baselines.push((taken, bytes));
                    continue;
                }
                let mut kept = keeping.lock().unwrap();
                match captured {
                    Captured::Opened { server, at, continuity, skew_micros } => {
                        (kept.server, kept.skew_micros) = (server, skew_micros);
                        kept.opened.push((at, continuity));
                        kept.bytes.clear();
                    }
                    Captured::Log(at) => kept.logs.push(at),
                    Captured::Chunk(chunk) => kept.chunk(chunk),
                    Captured::Alive(mark) => {
                        assert_eq!(mark.offset, kept.end());
                        kept.alive += 1;
                        kept.mark(mark);
                    }
                    Captured::Baseline { .. } | Captured::Protection(_) => {
                        unreachable!("taken above, or of another engine")
                    }
                }
            }
        });
        Self { kept, tail, consumer, durable }
    }

    pub(super) fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap()
    }

    /// Waits until the stream was opened.
    pub(super) async fn opened(&self) -> Position {
        eventually("the stream is opened", SOON, async || {
            assert!(!self.tail.is_finished(), "the capture ended");
            let kept = self.kept();
            kept.opened.last().map(|(at, _)| at.clone())
        })
        .await
    }

    /// Waits until everything that the server has executed by now was handed over, and says
    /// where that ends.
    pub(super) async fn caught_up(&self, server: &RedisServer) -> Position {
        let role: Vec<redis::Value> = server.cmd(&["ROLE"]).await;
        let offset: u64 = redis::from_redis_value_ref(&role[1]).unwrap();
        eventually("the capture has caught up", SOON, async || {
            let kept = self.kept();
            kept.whole.clone().filter(|whole| whole.offset >= offset)
        })
        .await
    }

    /// Stops it, as the daemon does, and gives what it kept.
    pub(super) async fn stop(self) -> Kept {
        let Self { kept, tail, consumer, durable } = self;
        consumer.abort();
        drop(consumer.await);
        tail.await.unwrap().unwrap();
        drop(durable);
        Arc::into_inner(kept).unwrap().into_inner().unwrap()
    }

    /// Waits until it ends by itself, and gives what it kept and why it ended.
    pub(super) async fn ended(self) -> (Kept, Error) {
        let Self { kept, tail, consumer, durable } = self;
        let error = tokio::time::timeout(SOON, tail).await.unwrap().unwrap().unwrap_err();
        consumer.await.unwrap();
        drop(durable);
        (Arc::into_inner(kept).unwrap().into_inner().unwrap(), error)
    }
}

/// Takes a baseline and gives its bytes.
pub(super) async fn baseline(server: &RedisServer) -> (BaselineTaken, Vec<u8>) {
    let (out, mut pieces) = mpsc::channel::<Bytes>(4);
    let collect = tokio::spawn(async move {
        let mut bytes = vec![];
        while let Some(piece) = pieces.recv().await {
            bytes.extend_from_slice(&piece);
        }
        bytes
    });
    let taken = source(endpoint(server)).baseline(out).await.unwrap();
    (taken, collect.await.unwrap())
}

/// A connection without the client's own short timeout.
pub(super) async fn patient(server: &RedisServer) -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(server.url()).unwrap();
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    client.get_multiplexed_async_connection_with_config(&config).await.unwrap()
}

/// Everything that a server holds, without its connection's own short timeout.
pub(super) async fn digest(server: &RedisServer) -> Digest {
    pitr::engine::redis::digest::digest(&mut patient(server).await).await.unwrap()
}

/// Where a restore goes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    Server,
    Folder,
}

/// A server with what was restored, and what was said about it.
#[derive(Debug)]
pub(super) struct Restored {
    pub(super) server: RedisServer,
    pub(super) applied: Applied,
    pub(super) check: String,
    _dir: Option<tempfile::TempDir>,
}

impl Restored {
    pub(super) fn new(
        server: RedisServer,
        applied: Applied,
        check: String,
        dir: Option<tempfile::TempDir>,
    ) -> Self {
        Self { server, applied, check, _dir: dir }
    }
}

impl Way {
    /// Restores up to `cut`, and starts the folder if it is one.
    pub(super) async fn restore(self, kept: &Kept, cut: &Cut) -> Result<Restored, Error> {
        self.restore_into("redis-server", kept, cut).await
    }

    /// The same into the server of another program.
    pub(super) async fn restore_into(
        self,
        program: &str,
        kept: &Kept,
        cut: &Cut,
    ) -> Result<Restored, Error> {
        match self {
            Self::Server => {
                let server = RedisServer::start_program(program, &[]).await;
                let (applied, check) = restore(server_target(&server), kept, cut).await?;
                Ok(Restored { server, applied, check, _dir: None })
            }
            Self::Folder => {
                let dir = tempfile::tempdir().unwrap();
                let data = dir.path().join("shop-redis");
                let (applied, check) = restore(folder(&data), kept, cut).await?;
                let server = start_on(program, &data).await;
                Ok(Restored { server, applied, check, _dir: Some(dir) })
            }
        }
    }
}

/// Starts a server as the folder's `redis.conf` says, but on a port that is free.
pub(super) async fn start_on(program: &str, data: &Path) -> RedisServer {
    let conf = std::fs::read_to_string(data.join("redis.conf")).unwrap();
    let mut args = vec![];
    for line in conf.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (name, value) = line.split_once(' ').unwrap();
        if !matches!(name, "port" | "bind" | "save") {
            args.push(format!("--{name}"));
            args.push(value.trim_matches('"').to_owned());
        }
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let server = RedisServer::start_program(program, &args).await;
    // It answers INFO while it loads.
    eventually("the server has loaded the folder", SOON, async || {
        let info: String = server.cmd(&["INFO", "persistence"]).await;
        info.contains("\r\nloading:0\r\n").then_some(())
    })
    .await;
    server
}

pub(super) fn options_at(destination: Destination) -> TargetOptions {
    TargetOptions {
        name: "shop-redis".into(),
        engine: EngineKind::Redis,
        destination,
        listen: None,
        apply: pitr::engine::Apply::default(),
        databases: vec![],
        expiry: Expiry::default(),
        keys: pitr::engine::Keys::default(),
        in_place: false,
        leftover: pitr::engine::Leftover::default(),
        purpose: String::new(),
    }
}

pub(super) fn server_target(server: &RedisServer) -> Box<dyn Target> {
    server_with(server, Expiry::default())
}

pub(super) fn server_with(server: &RedisServer, expiry: Expiry) -> Box<dyn Target> {
    let options = options_at(Destination::Running(endpoint(server)));
    open_target(TargetOptions { expiry, ..options })
}

pub(super) fn folder(dir: &Path) -> Box<dyn Target> {
    folder_with(dir, Expiry::default())
}

pub(super) fn folder_with(dir: &Path, expiry: Expiry) -> Box<dyn Target> {
    open_target(TargetOptions { expiry, ..options_at(Destination::Folder(dir.to_owned())) })
}

/// All steps of a restore, in their order.
pub(super) async fn restore(
    target: Box<dyn Target>,
    kept: &Kept,
    cut: &Cut,
) -> Result<(Applied, String), Error> {
    restore_and(target, kept, cut).await.map(|(applied, check, _)| (applied, check))
}

/// The same, and what became of expiries.
pub(super) async fn restore_and(
    mut target: Box<dyn Target>,
    kept: &Kept,
    cut: &Cut,
) -> Result<(Applied, String, Option<Expired>), Error> {
    target.preflight(&kept.needs()).await?;
    let (meta, _) = kept.baseline();
    target.examine(&meta, kept.open_baseline(), kept.open_log(), cut).await?;
    target.load(&meta, kept.open_baseline()).await?;
    let applied = target.replay(&meta, kept.open_log(), cut).await?;
    let check = target.finish(&applied).await?;
    Ok((applied, check, target.expired()))
}
