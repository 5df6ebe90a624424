//! The always-on replica: one process, one archive, one task for each source.
//!
//! Sources do not know of each other: what one of them does, or fails to do, never holds up
//! another. Each is taken up where the archive left it, streamed until the stream breaks, and
//! taken up again after a pause that grows and is not the same for all.
//!
//! Commands reach the daemon as JSON lines through a socket in the archive's folder.

mod newest;
mod auditing;
mod canary;
mod pruning;
mod setup;
mod rehearsing;

pub use pruning::ask_prune;

use crate::archive::{Archive, read_meta};
use crate::baseline::{self, Label};
use crate::capture::{CHUNKS_IN_FLIGHT, Capture, Shared};
use crate::clock::Timestamp;
use crate::config::Config;
use crate::durable::Lock;
use crate::engine::{Source, SourceOptions, open_source};
use crate::error::{Class, Context, Error, Result};
use crate::manifest::{BaselineMeta, NamedMark, names};
use crate::mark;
use crate::position::Position;
use crate::prune;
use crate::retention::Policy;
use crate::schedule;
use futures_util::FutureExt;
use newest::newest_baseline;
use pruning::Pruning;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

/// First pause after a stream broke.
const PAUSE_MIN: Duration = Duration::from_millis(200);

/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// A stream that lasted so long starts the pauses from the shortest again.
const STEADY: Duration = Duration::from_secs(30);

/// A source that has not streamed for so long is called down.
const DOWN_AFTER: Duration = Duration::from_secs(30);

/// How long a command that needs a stream tries to get one.
const GIVE_UP_AFTER: Duration = Duration::from_secs(5);

/// Pause after a baseline that failed.
const BASELINE_RETRY: Duration = Duration::from_secs(30);

/// How often the baseline task looks whether a source has begun a timeline without one.
const BASELINE_LOOK: Duration = Duration::from_millis(250);

/// How long a daemon may take to answer what it knows at once.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Longest request that a command may send, in bytes.
const REQUEST_MAX: u64 = 1 << 16;

/// Where a source stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Connected; bytes are taken as they come.
    Streaming,
    /// Not connected; tried again and again.
    Reconnecting,
    /// Not connected for longer than a hiccup.
    Down,
}

impl State {
    /// The word used in reports.
    pub fn word(self) -> &'static str {
        match self {
            Self::Streaming => "streaming",
            Self::Reconnecting => "reconnecting",
            Self::Down => "down",
        }
    }
}

/// What a daemon says of one source.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SourceStatus {
    /// Name of the source.
    pub name: String,
    /// Where it stands.
    pub state: State,
    /// What the last attempt failed with; `None` while it streams.
    pub error: Option<String>,
    /// The newest timeline.
    pub timeline: u32,
    /// Nothing committed until then is missing on disk.
    pub durable_at: Option<Timestamp>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Request {
    Status,
    Baseline { source: String },
    Mark { name: String, barrier: bool, sources: Vec<String> },
    Cover { at: Timestamp, sources: Vec<String>, wait_ms: u64 },
    Prune { policy: Policy, force: bool },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Reply {
    Status(Vec<SourceStatus>),
    Baseline(Box<BaselineMeta>),
    Mark(Box<NamedMark>),
    Covered(bool),
    Pruned(Box<prune::Report>),
    Failed { exit: u8, message: String, hint: Option<String> },
}

/// One source, as the tasks of the daemon share it.
#[derive(Debug)]
struct Station {
    options: SourceOptions,
    /// Folder of the archive.
    root: PathBuf,
    label: Label,
    engine: Box<dyn Source>,
    shared: Arc<Shared>,
    trouble: Mutex<Trouble>,
    durable: watch::Sender<Option<Position>>,
    baselines: mpsc::Sender<oneshot::Sender<Result<BaselineMeta>>>,
    /// Whether baselines are taken without being asked for.
    automatic: bool,
}

#[derive(Debug, Default)]
struct Trouble {
    error: Option<String>,
    hint: Option<String>,
    class: Option<Class>,
    since: Option<Instant>,
}

impl Trouble {
    /// Whether it is there to stay: what the operator has to change, or for long enough.
    fn is_lasting(&self) -> bool {
        matches!(self.class, Some(Class::Usage | Class::Refused))
            || self.since.is_some_and(|since| since.elapsed() > GIVE_UP_AFTER)
    }
}

impl Station {
    fn status(&self) -> SourceStatus {
        let trouble = self.trouble.lock().map(|t| (t.error.clone(), t.since)).unwrap_or_default();
        let state = match trouble.1 {
            _ if self.shared.is_streaming() => State::Streaming,
            Some(since) if since.elapsed() > DOWN_AFTER => State::Down,
            _ => State::Reconnecting,
        };
        let full = self.shared.disk_full.load(Ordering::Acquire);
        let error =
            if full { Some("the disk is full: waiting for space".into()) } else { trouble.0 };
        SourceStatus {
            name: self.options.name.clone(),
            state,
            error: error.filter(|_| full || state != State::Streaming),
            timeline: self.shared.timeline(),
            durable_at: self.shared.known_until(),
        }
    }

    fn failed(&self, error: &Error) {
        if self.automatic {
            tracing::warn!(source = %self.options.name, "{error}");
            if let Some(hint) = error.hint_text() {
                tracing::warn!(source = %self.options.name, "hint: {hint}");
            }
        } else {
            // The command that waits for the stream ends with it.
            tracing::debug!(source = %self.options.name, "{error}");
        }
        if let Ok(mut trouble) = self.trouble.lock() {
            trouble.error = Some(error.to_string());
            trouble.hint = error.hint_text().map(str::to_owned);
            trouble.class = Some(error.class());
            trouble.since.get_or_insert_with(Instant::now);
        }
    }

    /// Completes when the source streams; gives up when it is in trouble that lasts.
    async fn until_streaming(&self) -> Result<()> {
        while !self.shared.is_streaming() {
            if let Ok(trouble) = self.trouble.lock()
                && let Some(message) = &trouble.error
                && trouble.is_lasting()
            {
                let class = trouble.class.unwrap_or(Class::Unavailable);
                let error = Error::new(class, format!("{}: {message}", self.options.name));
                return Err(match &trouble.hint {
                    Some(hint) => error.hint(hint),
                    None => error,
                });
            }
            tokio::time::sleep(BASELINE_LOOK).await;
        }
        Ok(())
    }

    /// Has a baseline taken; returns when it is stored.
    async fn take_baseline(&self) -> Result<BaselineMeta> {
        let (send, receive) = oneshot::channel();
        let stopping = || Error::unavailable("the daemon is stopping");
        self.baselines.send(send).await.map_err(|_| stopping())?;
        receive.await.map_err(|_| stopping())?
    }

    fn recovered(&self) {
        if let Ok(mut trouble) = self.trouble.lock() {
            *trouble = Trouble::default();
        }
    }
}

/// Runs until `stop` completes; then seals what is open, and returns.
///
/// # Errors
/// Busy, if another pitr holds the archive; usage, if there is none.
pub async fn run(config: Config, stop: impl Future<Output = ()>) -> Result<()> {
    let working = async |stations: Vec<Arc<Station>>| {
        tracing::info!("capturing {} sources", stations.len());
        stop.await;
        tracing::info!("stopping: sealing what is open");
        Ok(())
    };
    run_while(config, true, working).await
}

/// Takes a baseline of every source of `config` where no daemon runs: captures for as long as
/// that takes, then seals what is open, and returns.
///
/// # Errors
/// Busy, if another pitr holds the archive; unavailable, if a source cannot be reached;
/// interrupted, if `stop` completes first.
pub async fn take_baselines(
    config: Config,
    stop: impl Future<Output = ()>,
) -> Result<Vec<BaselineMeta>> {
    let working = async |stations: Vec<Arc<Station>>| {
        let taking = stations.iter().map(|station| async {
            station.until_streaming().await?;
            station.take_baseline().await
        });
        tokio::select! {
            taken = futures_util::future::try_join_all(taking) => taken,
            () = stop => Err(Error::new(Class::Interrupted, "no baseline was taken")),
        }
    };
    run_while(config, false, working).await
}

/// Captures while `working` works. Baselines that are due are taken only if `automatic`.
async fn run_while<T>(
    config: Config,
    automatic: bool,
    working: impl AsyncFnOnce(Vec<Arc<Station>>) -> Result<T>,
) -> Result<T> {
    let root = config.archive.clone();
    read_meta(&root)?;
    let _lock = Lock::acquire(&root.join(names::LOCK))?;
    // A catalog that is missing is rebuilt here: once, before all sources open it at once.
    drop(Archive::open(&root)?);
    let listener = listen(&root)?;
    let (stopping, stopped) = watch::channel(false);
    let mut stations = Vec::new();
    let mut tasks = JoinSet::new();
    for options in config.sources.clone() {
        let label =
            Label { source: options.name.clone(), engine: options.engine, level: config.level };
        let (asks, asked) = mpsc::channel(4);
        let station = Arc::new(Station {
            engine: open_source(options.clone()),
            options,
            root: root.clone(),
            label,
            shared: Arc::new(Shared::new()),
            trouble: Mutex::default(),
            durable: watch::channel(None).0,
            baselines: asks,
            automatic,
        });
        stations.push(Arc::clone(&station));
        tasks.spawn(supervise(Arc::clone(&station), config.clone(), stopped.clone()));
        if automatic && config.drill.canary {
            tasks.spawn(canary::keep(Arc::clone(&station), stopped.clone()));
        }
        tasks.spawn(auditing::keep_hours(Arc::clone(&station), stopped.clone()));
        tasks.spawn(keep_baselines(station, config.clone(), asked, stopped.clone()));
    }
    if let (true, Some(every)) = (automatic, config.drill.every) {
        tasks.spawn(rehearsing::rehearse(config.clone(), every, stopped.clone()));
    }
    tasks.spawn(serve(listener, root.clone(), stations.clone(), stopped));
    let result = working(stations.clone()).await;
    stopping.send_replace(true);
    for station in &stations {
        station.shared.stop.store(true, Ordering::Release);
    }
    let mut sealed = Ok(());
    while let Some(ended) = tasks.join_next().await {
        let ended = ended.class(Class::Bug, || "a task of the daemon".into()).and_then(|r| r);
        if let Err(error) = ended {
            tracing::error!("{error}");
            sealed = Err(error);
        }
    }
    match std::fs::remove_file(root.join(names::SOCKET)) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!("remove {}: {error}", names::SOCKET);
        }
        _ => {}
    }
    let done = result?;
    sealed.map(|()| done)
}

/// Streams one source for as long as the daemon runs.
async fn supervise(
    station: Arc<Station>,
    config: Config,
    mut stopped: watch::Receiver<bool>,
) -> Result<()> {
    let mut pause = PAUSE_MIN;
    let (mut capture, mut recalled): (Option<Capture>, _) = (None, None);
    while !*stopped.borrow() {
        let begun = Instant::now();
        let ready = match capture.take() {
            Some(ready) if ready.resume() == recalled => Ok(ready),
            Some(ready) => recall(&station, ready).await,
            None => match recover(&station, &config).await {
                Ok(ready) => recall(&station, ready).await,
                Err(error) => Err(error),
            },
        };
        let ready = match ready {
            Ok(ready) => ready,
            Err(error) => {
                station.failed(&error);
                rest(&mut pause, &mut stopped).await;
                continue;
            }
        };
        recalled = ready.resume();
        let (ended, returned) = stream(&station, ready, &mut stopped).await;
        capture = returned;
        if *stopped.borrow() {
            break;
        }
        if let Err(error) = ended {
            station.failed(&error);
        }
        if begun.elapsed() > STEADY {
            pause = PAUSE_MIN;
        }
        rest(&mut pause, &mut stopped).await;
    }
    match capture {
        Some(capture) => blocking(move || capture.close()).await,
        None => Ok(()),
    }
}

async fn recover(station: &Arc<Station>, config: &Config) -> Result<Capture> {
    let (root, sealing) = (config.archive.clone(), config.sealing);
    let (label, shared) = (station.label.clone(), Arc::clone(&station.shared));
    blocking(move || Capture::recover(&root, label, sealing, shared)).await
}

/// Tells the engine what the archive ends with.
async fn recall(station: &Arc<Station>, capture: Capture) -> Result<Capture> {
    let (capture, last) = blocking(move || {
        let last = capture.recall()?;
        Ok((capture, last))
    })
    .await?;
    station.engine.recall(capture.server(), last);
    Ok(capture)
}

/// One connection, from the handshake to its end. Gives the capture back, unless the disk failed
/// under it, or it panicked: then it has to be recovered.
async fn stream(
    station: &Station,
    mut capture: Capture,
    stopped: &mut watch::Receiver<bool>,
) -> (Result<()>, Option<Capture>) {
    let (send, receive) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let (resume, durable) = (capture.resume(), capture.durable_of_next_stream());
    let runtime = tokio::runtime::Handle::current();
    let writing = tokio::task::spawn_blocking(move || {
        let result = capture.run(receive, &runtime);
        (capture, result)
    });
    let ended = {
        // A writer that ended with an error stays in its handle until it is looked at, and with it
        // the sender that `relay` hears: only its receiver is gone, and a source that is silent
        // would not notice.
        let to_writer = send.clone();
        let tail = caught(station.engine.tail(resume, send, durable.clone()));
        let relay = relay(station, durable);
        tokio::select! {
            ended = tail => ended,
            () = relay => Ok(()),
            () = to_writer.closed() => Ok(()),
            () = until_set(stopped) => Ok(()),
        }
    };
    // The sender is gone with the tail: the writer takes what is left, and ends.
    let error = match writing.await {
        Ok((capture, Ok(()))) => return (ended, Some(capture)),
        Ok((_, Err(error))) => error,
        Err(panicked) => Error::bug("the writer of segments panicked").source(panicked),
    };
    station.shared.broke_off();
    (Err(error), None)
}

/// A panic as an error: a bug that one source comes upon must neither stop the others nor leave
/// that one without a capture, looking as if it had one.
async fn caught<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(done) => done,
        Err(panic) => {
            let said = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
            Err(Error::bug(format!("a panic: {}", said.unwrap_or_default())))
        }
    }
}

/// Passes the durable place on to the station, which outlives the connection.
async fn relay(station: &Station, mut durable: watch::Receiver<Option<Position>>) {
    let mut was_streaming = false;
    loop {
        let place = durable.borrow_and_update().clone();
        station.durable.send_replace(place);
        if station.shared.is_streaming() && !was_streaming {
            was_streaming = true;
            station.recovered();
            tracing::info!(source = %station.options.name, "streaming");
        }
        if durable.changed().await.is_err() {
            return;
        }
    }
}

/// Waits before the next attempt, longer each time, and not exactly as long as others do.
async fn rest(pause: &mut Duration, stopped: &mut watch::Receiver<bool>) {
    let jitter = rand::random_range(0.75..1.25);
    let wait = pause.mul_f64(jitter);
    *pause = (*pause * 2).min(PAUSE_MAX);
    // Either the time is over or the daemon stops; both end the wait.
    drop(tokio::time::timeout(wait, until_set(stopped)).await);
}

/// Completes when the daemon stops.
async fn until_set(stopped: &mut watch::Receiver<bool>) {
    // A sender that is gone means the same.
    drop(stopped.wait_for(|stopped| *stopped).await);
}

/// Takes the first baseline of each timeline at once, then one a day (one that was due while no
/// daemon ran is taken as soon as it does), and those asked for.
async fn keep_baselines(
    station: Arc<Station>,
    config: Config,
    mut asked: mpsc::Receiver<oneshot::Sender<Result<BaselineMeta>>>,
    mut stopped: watch::Receiver<bool>,
) -> Result<()> {
    let mut not_before = Instant::now();
    // The unbroken history for which a baseline was looked for, by its first timeline, and when
    // its newest one was begun.
    let mut newest: (u32, Option<Timestamp>) = (0, None);
    let mut pruning = Pruning::default();
    let mut setup = setup::Keeper::default();
    loop {
        let ask = tokio::select! {
            ask = asked.recv() => ask,
            () = tokio::time::sleep(BASELINE_LOOK) => None,
            () = until_set(&mut stopped) => return Ok(()),
        };
        let turns = async {
            pruning.turn(&config, &station.options.name).await;
            if station.shared.is_streaming() {
                setup.turn(&station).await;
            }
        };
        tokio::select! {
            () = turns => {}
            () = until_set(&mut stopped) => return Ok(()),
        }
        let timeline = station.shared.unbroken_from();
        let ready =
            station.automatic && station.shared.is_streaming() && Instant::now() >= not_before;
        if ready && timeline != newest.0 {
            newest = (timeline, newest_baseline(&station, &config, timeline).await?);
        }
        let (at, zone) = (config.baseline_at, config.baseline_zone);
        let is_due = || schedule::is_baseline_due(newest.1, Timestamp::now(), at, zone);
        if ask.is_none() && !(ready && is_due()) {
            continue;
        }
        let taking = caught(baseline::take(
            station.engine.as_ref(),
            &config.archive,
            &station.label,
            station.durable.subscribe(),
            || station.shared.reached(),
        ));
        let taken = tokio::select! {
            taken = taking => taken,
            () = until_set(&mut stopped) => return Ok(()),
        };
        match &taken {
            Ok(meta) => {
                tracing::info!(source = %station.options.name, "baseline {} at {}", meta.name, meta.at);
                newest = (timeline, Some(meta.begun_at));
                setup.ask();
                // With one more baseline, an older one may be needed no longer.
                if station.automatic && ask.is_none() {
                    pruning.ask();
                }
            }
            Err(error) => {
                // Whoever asked is told anyway.
                if station.automatic {
                    tracing::error!(source = %station.options.name, "{error}");
                    if let Some(hint) = error.hint_text() {
                        tracing::error!(source = %station.options.name, "hint: {hint}");
                    }
                }
                not_before = Instant::now() + BASELINE_RETRY;
            }
        }
        if let Some(ask) = ask {
            // Whoever asked may have gone.
            drop(ask.send(taken));
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.class(Class::Bug, || "a worker thread".into())?
}

// The socket.

fn socket_path(root: &Path) -> Result<(std::fs::File, PathBuf)> {
    // A socket's path may have 107 bytes only; the folder's descriptor is a short name for it.
    let dir = std::fs::File::open(root).unavailable(|| format!("open {}", root.display()))?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{}", dir.as_raw_fd(), names::SOCKET));
    Ok((dir, path))
}

fn listen(root: &Path) -> Result<UnixListener> {
    let path = root.join(names::SOCKET);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).unavailable(|| format!("remove old {}", path.display()));
        }
        _ => {}
    }
    let (_dir, short) = socket_path(root)?;
    let listener =
        UnixListener::bind(short).unavailable(|| format!("listen on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .unavailable(|| format!("protect {}", path.display()))?;
    Ok(listener)
}

async fn serve(
    listener: UnixListener,
    root: PathBuf,
    stations: Vec<Arc<Station>>,
    mut stopped: watch::Receiver<bool>,
) -> Result<()> {
    let stations = Arc::new(stations);
    let mut visits = JoinSet::new();
    loop {
        tokio::select! {
            () = until_set(&mut stopped) => return Ok(()),
            visit = listener.accept() => match visit {
                Ok((stream, _)) => {
                    let (root, stations) = (root.clone(), Arc::clone(&stations));
                    visits.spawn(async move {
                        if let Err(error) = answer(stream, &root, &stations).await {
                            tracing::debug!("a command's connection: {error}");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!("accept a command: {error}");
                    tokio::time::sleep(PAUSE_MIN).await;
                }
            },
            Some(_) = visits.join_next(), if !visits.is_empty() => {}
        }
    }
}

async fn answer(
    mut stream: UnixStream,
    root: &Path,
    stations: &[Arc<Station>],
) -> std::io::Result<()> {
    let (read, mut write) = stream.split();
    let mut line = String::new();
    let limited = tokio::io::AsyncReadExt::take(read, REQUEST_MAX);
    tokio::io::BufReader::new(limited).read_line(&mut line).await?;
    let reply = match serde_json::from_str(&line) {
        Ok(request) => carry_out(request, root, stations).await,
        Err(error) => Err(Error::usage("not a request").source(error)),
    };
    let reply = reply.unwrap_or_else(|error| Reply::Failed {
        exit: error.class().exit_code(),
        message: error.to_string(),
        hint: error.hint_text().map(str::to_owned),
    });
    let mut json = serde_json::to_vec(&reply)?;
    json.push(b'\n');
    write.write_all(&json).await
}

/// The station of a source, if it streams.
fn streaming<'a>(stations: &'a [Arc<Station>], source: &str) -> Result<&'a Arc<Station>> {
    let station = stations.iter().find(|s| s.options.name == source).ok_or_else(|| {
        Error::usage(format!("the running daemon has no source {source:?}"))
            .hint("restart it, if the configuration was changed")
    })?;
    if station.shared.is_streaming() {
        return Ok(station);
    }
    Err(Error::unavailable(format!("{source} is not streaming")).hint("`pitr windows` shows why"))
}

async fn carry_out(request: Request, root: &Path, stations: &[Arc<Station>]) -> Result<Reply> {
    match request {
        Request::Prune { policy, force } => pruning::carry_out(root, policy, force).await,
        Request::Status => Ok(Reply::Status(stations.iter().map(|s| s.status()).collect())),
        Request::Baseline { source } => {
            let station = streaming(stations, &source)?;
            Ok(Reply::Baseline(Box::new(station.take_baseline().await?)))
        }
        Request::Mark { name, barrier, sources } => {
            let marked: Vec<_> =
                sources.iter().map(|name| streaming(stations, name)).collect::<Result<_>>()?;
            let Some(root) = marked.first().map(|station| station.root.clone()) else {
                return Err(Error::usage("a mark of no source"));
            };
            let streamed = marked.iter().map(|station| mark::Streamed {
                engine: station.engine.as_ref(),
                label: &station.label,
                durable: station.durable.subscribe(),
                shared: &station.shared,
            });
            let made = mark::mark(&root, &name, barrier, streamed.collect()).await?;
            tracing::info!("mark {name} of {}", sources.join(", "));
            Ok(Reply::Mark(Box::new(made)))
        }
        Request::Cover { at, sources, wait_ms } => {
            let wanted: Vec<&Arc<Station>> =
                stations.iter().filter(|s| sources.contains(&s.options.name)).collect();
            for station in &wanted {
                station.shared.want(at);
            }
            let deadline = Instant::now() + Duration::from_millis(wait_ms);
            loop {
                let covers =
                    |s: &&Arc<Station>| s.shared.written_until().is_some_and(|until| until >= at);
                if wanted.iter().all(covers) {
                    return Ok(Reply::Covered(true));
                }
                if Instant::now() >= deadline {
                    return Ok(Reply::Covered(false));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

// The other side of the socket: what commands ask.

/// What a running daemon says of its sources; `None` if none runs.
pub fn status(root: &Path) -> Option<Vec<SourceStatus>> {
    match ask(root, &Request::Status, Some(ANSWER_MAX)) {
        Ok(Reply::Status(status)) => Some(status),
        Ok(_) => None,
        Err(error) => {
            if error.class() != Class::Busy {
                tracing::warn!("the daemon does not say how it is: {error}");
            }
            None
        }
    }
}

/// Has the running daemon take a baseline; returns when it is stored. `None` if none runs.
pub fn ask_baseline(root: &Path, source: &str) -> Option<Result<BaselineMeta>> {
    match ask(root, &Request::Baseline { source: source.to_owned() }, None) {
        Ok(Reply::Baseline(meta)) => Some(Ok(*meta)),
        Ok(_) => Some(Err(Error::bug("the daemon answered something else"))),
        Err(error) if error.class() == Class::Busy => None,
        Err(error) => Some(Err(error)),
    }
}

/// Has the running daemon name this instant; returns when everything before it is archived.
///
/// # Errors
/// Busy, if no daemon runs; whatever the daemon says otherwise.
pub fn ask_mark(root: &Path, name: &str, barrier: bool, sources: Vec<String>) -> Result<NamedMark> {
    match ask(root, &Request::Mark { name: name.to_owned(), barrier, sources }, None)? {
        Reply::Mark(mark) => Ok(*mark),
        _ => Err(Error::bug("the daemon answered something else")),
    }
}

/// Waits until the running daemon has everything up to `at` on disk, or `wait` is over. `false`
/// if it does not, or no daemon runs.
pub fn cover(root: &Path, at: Timestamp, sources: Vec<String>, wait: Duration) -> bool {
    let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    let request = Request::Cover { at, sources, wait_ms };
    matches!(ask(root, &request, Some(wait + ANSWER_MAX)), Ok(Reply::Covered(true)))
}

/// Sends one request and reads its reply, which may take as long as `patience`: a daemon that is
/// frozen, or whose disk is, still takes connections. Busy, if no daemon runs.
fn ask(root: &Path, request: &Request, patience: Option<Duration>) -> Result<Reply> {
    if !root.join(names::SOCKET).exists() {
        return Err(Error::busy("no daemon runs"));
    }
    let (_dir, path) = socket_path(root)?;
    let mut stream = std::os::unix::net::UnixStream::connect(path)
        .class(Class::Busy, || "no daemon runs".into())?;
    stream
        .set_write_timeout(Some(ANSWER_MAX))
        .and_then(|()| stream.set_read_timeout(patience))
        .unavailable(|| "ask the daemon".into())?;
    let mut json = serde_json::to_vec(request).class(Class::Bug, || "write JSON".into())?;
    json.push(b'\n');
    stream.write_all(&json).unavailable(|| "ask the daemon".into())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unavailable(|| "hear the daemon".into())?;
    if line.is_empty() {
        return Err(Error::unavailable("the daemon stopped before it answered"));
    }
    match serde_json::from_str(&line).class(Class::Bug, || "understand the daemon".into())? {
        Reply::Failed { exit, message, hint } => {
            let classes = [
                Class::Finding,
                Class::Usage,
                Class::Unavailable,
                Class::Gap,
                Class::Corrupt,
                Class::Refused,
                Class::Busy,
            ];
            let class = classes.into_iter().find(|class| class.exit_code() == exit);
            let class = class.unwrap_or(Class::Bug);
            let error = Error::new(class, message);
            Err(match hint {
                Some(hint) => error.hint(hint),
                None => error,
            })
        }
        reply => Ok(reply),
    }
}

#[cfg(test)]
mod tests;
