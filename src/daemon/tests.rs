//! A source whose engine panics, or whose writer panics or gives up.

use super::*;
use crate::capture::Sealing;
use crate::engine::{Endpoint, Hold, Located, Placed, Work};
use crate::manifest::EngineKind;
use crate::record::{BaselineTaken, Captured, Chunk, Continuity, Piece, Server};
use bytes::Bytes;

/// Opens its stream, waits until that is taken, and then does what it is told to.
#[derive(Debug)]
enum Faulty {
    /// The engine itself panics.
    Engine,
    /// It hands over what makes the writer panic: a record that ends before its chunk begins.
    Panics,
    /// It hands over what the writer does not take: bytes from another place of the log.
    GivesUp,
}

impl Source for Faulty {
    fn tail(
        &self,
        _resume: Option<Position>,
        out: mpsc::Sender<Captured>,
        mut durable: watch::Receiver<Option<Position>>,
    ) -> Work<'_, ()> {
        Box::pin(async move {
            let at = Position::new("log", 100);
            let (server, continuity) = (Server::default(), Continuity::Begins);
            let opened = Captured::Opened { server, at, continuity, skew_micros: 0 };
            out.send(opened).await.unwrap();
            durable.wait_for(Option::is_some).await.unwrap();
            let chunk = |start, whole: Option<u64>| {
                let whole = whole.map(|whole| Position::new("log", whole));
                Captured::Chunk(Chunk { start, bytes: vec![0], whole, ..Chunk::default() })
            };
            match self {
                Self::Engine => panic!("the engine is faulty"),
                Self::Panics => {
                    // The first fills its segment, so that the second is to be divided.
                    out.send(chunk(100, None)).await.unwrap();
                    drop(out.send(chunk(101, Some(99))).await);
                }
                Self::GivesUp => drop(out.send(chunk(7, Some(8))).await),
            }
            std::future::pending().await
        })
    }

    fn baseline(&self, _out: mpsc::Sender<Bytes>) -> Work<'_, BaselineTaken> {
        unreachable!()
    }

    fn place<'a>(&'a self, _name: &'a str) -> Work<'a, Placed> {
        unreachable!()
    }

    fn canary(&self) -> Work<'_, ()> {
        unreachable!()
    }

    fn hold(&self) -> Work<'_, Box<dyn Hold>> {
        unreachable!()
    }

    fn locate(
        &self,
        _from: Position,
        _pieces: mpsc::Receiver<Result<Piece>>,
        _offset: u64,
    ) -> Work<'_, Located> {
        unreachable!()
    }
}

#[rstest::rstest]
#[case::engine(Faulty::Engine, "the engine is faulty")]
#[case::writer_panics(Faulty::Panics, "panicked")]
#[case::writer_gives_up(Faulty::GivesUp, "a chunk begins at 7")]
#[tokio::test]
async fn what_breaks_a_capture_is_an_error_of_its_source_and_nobody_calls_it_streaming(
    #[case] faulty: Faulty,
    #[case] said: &str,
) {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().join("archive");
    Archive::init(&root).unwrap();
    let label = Label { source: "shop".into(), engine: EngineKind::Redis, level: 1 };
    let shared = Arc::new(Shared::new());
    let sealing = Sealing { max_bytes: 1, max_age: Duration::from_hours(1) };
    let capture = Capture::recover(&root, label.clone(), sealing, Arc::clone(&shared)).unwrap();
    let station = Station {
        options: SourceOptions {
            name: "shop".into(),
            engine: EngineKind::Redis,
            endpoint: Endpoint::parse(EngineKind::Redis, "redis://127.0.0.1:1").unwrap(),
            standbys: vec![],
            sample_every: Duration::from_millis(100),
            semi_sync: false,
            digests: true,
            dump_command: None,
            databases: vec![],
            aof: None,
        },
        root,
        label,
        engine: Box::new(faulty),
        shared,
        trouble: Mutex::default(),
        durable: watch::channel(None).0,
        baselines: mpsc::channel(1).0,
        automatic: true,
    };
    let (_stopping, mut stopped) = watch::channel(false);
    let (ended, _) = stream(&station, capture, &mut stopped).await;
    let error = ended.unwrap_err();
    assert_eq!(error.class(), Class::Bug);
    let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    assert!(format!("{error} {cause}").contains(said), "{error}: {cause}");
    assert!(!station.shared.is_streaming());
}
