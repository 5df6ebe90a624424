//! Launchers for real servers and for the `pitr` program, and what tests wait with.
//!
//! Everything listens on 127.0.0.1 only, lives in a temporary folder of its own and ends, by its
//! process id, when its value is dropped. Nothing here waits without a deadline.
//!
//! ```ignore
//! let source = Mysqld::start(&["--binlog-checksum=NONE"]).await;
//! source.sql("CREATE DATABASE shop; CREATE TABLE shop.t (id INT PRIMARY KEY)").await;
//! let cache = RedisServer::start(&["--databases", "4"]).await;
//! let pitr = Pitr::new(&[("shop-mysql", source.url()), ("shop-redis", cache.url())]);
//! pitr.run(&["init"]).await.ok();
//! let mut daemon = pitr.spawn_run();
//! let windows = pitr.run(&["windows", "--json"]).await.ok().json();
//! daemon.kill();
//! ```

#![allow(dead_code, unused_imports, reason = "each test file uses the part that it needs")]

mod mysqld;
mod pitr;
mod process;
mod proxy;
mod redis_server;

pub(crate) use mysqld::{Mariadbd, Mysqld, copy_dir};
pub(crate) use pitr::{Daemon, Output, Pitr, Took};
pub(crate) use process::program;
pub(crate) use proxy::Proxy;
pub(crate) use redis_server::RedisServer;

use std::time::{Duration, Instant};

/// How long a server may take to start or stop. Generous: test machines are small and busy.
pub(crate) const SERVER_DEADLINE: Duration = Duration::from_secs(90);

/// A literal of random bytes, which no compression makes smaller. The server's own function for
/// them gives 1,024 at most.
pub(crate) fn random_literal(bytes: usize) -> String {
    let hex = |byte: u8| format!("{byte:02x}");
    format!("x'{}'", (0..bytes).map(|_| hex(rand::random())).collect::<String>())
}

/// Waits until the next full hour, at which daemons seal their segments, is not near: for tests
/// that count segments.
#[expect(clippy::disallowed_methods, reason = "the test stands outside of the program")]
pub(crate) async fn clear_of_the_hour() {
    const HOUR: i64 = 3600;
    const NEAR: i64 = 120;
    let left = HOUR - chrono::Utc::now().timestamp().rem_euclid(HOUR);
    if left <= NEAR {
        tokio::time::sleep(Duration::from_secs(left.unsigned_abs() + 1)).await;
    }
}

/// Tries `attempt` every 50 ms until it gives a value; panics naming `what` at the deadline.
pub(crate) async fn eventually<T>(
    what: &str,
    deadline: Duration,
    mut attempt: impl AsyncFnMut() -> Option<T>,
) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = attempt().await {
            return value;
        }
        assert!(begun.elapsed() < deadline, "not within {deadline:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
