//! Looks at a Redis or Valkey source: rights, settings, how long its backlog lasts, clock, tools.
//!
//! **Invariant:** only commands that read are sent.

use super::client::ACL;
use super::control::Control;
use super::{aof, scratch, version};
use crate::engine::checkup::{Checkup, Finding, INTERRUPTION, Level, encryption, skew, span};
use crate::engine::{Aof, Endpoint, SourceOptions};
use crate::error::{Class, Error, Result};
use std::time::{Duration, Instant};

/// For how long the growth of the stream is watched.
const WATCHED: Duration = Duration::from_secs(1);

/// Looks at the servers. `busiest` is how many bytes a second its stream had in its busiest hour.
pub(in crate::engine) async fn checkup(
    options: &SourceOptions,
    busiest: Option<u64>,
) -> Vec<Checkup> {
    let mut checkups = vec![];
    for endpoint in options.endpoints() {
        let mut look = Look { findings: vec![], busiest };
        look.at(options, endpoint).await;
        checkups.push(Checkup { server: endpoint.to_string(), findings: look.findings });
    }
    checkups
}

struct Look {
    findings: Vec<Finding>,
    busiest: Option<u64>,
}

impl Look {
    async fn at(&mut self, options: &SourceOptions, endpoint: &Endpoint) {
        let begun = Instant::now();
        let connected = match Control::connect(endpoint).await {
            Ok(mut control) => control.server().await.map(|server| (control, server)),
            Err(error) => Err(error),
        };
        let (mut control, server) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                let why = "nothing is captured while it cannot be reached";
                self.add(Finding::failed(Level::Problem, "reachable", &error, why));
                return;
            }
        };
        let took = begun.elapsed().as_millis();
        self.add(Finding::ok("reachable", format!("{endpoint} answered in {took} ms")));
        self.findings.extend(encryption(endpoint));
        match version::check_captured(&server.version) {
            Ok(()) => self.add(Finding::ok("version", server.version.clone())),
            Err(error) => {
                let why = "its stream cannot be replayed faithfully";
                self.add(Finding::failed(Level::Problem, "version", &error, why));
                return;
            }
        }
        if let Err(error) = self.ask(&mut control, options, endpoint).await {
            let why = "the rest could not be looked at";
            self.add(Finding::failed(Level::Problem, "answers", &error, why));
        }
        self.add(match scratch::program_for(&server.version, None).await {
            Ok(program) => {
                Finding::ok("server_program", format!("{program} is there for scratch servers"))
            }
            Err(error) => {
                let why = "here, a restore of some keys is not possible, and no drill runs";
                Finding::failed(Level::Warning, "server_program", &error, why)
            }
        });
    }

    async fn ask(
        &mut self,
        control: &mut Control,
        options: &SourceOptions,
        endpoint: &Endpoint,
    ) -> Result<()> {
        if let Some(aof) = &options.aof {
            self.folder(options, aof, control).await?;
        } else {
            self.stream(control, endpoint).await?;
        }
        self.role(control).await?;
        self.settings(control).await?;
        self.add(skew(control.skew_micros().await?));
        Ok(())
    }

    /// What a capture of append-only files depends on.
    async fn folder(
        &mut self,
        options: &SourceOptions,
        aof: &Aof,
        control: &mut Control,
    ) -> Result<()> {
        const CHECK: &str = "aof_dir";
        let why = "it is not captured";
        let dir = aof.dir.display();
        let checked = match std::fs::read_dir(&aof.dir) {
            Ok(_) => aof::check_folder(options, aof, control).await,
            Err(error) => Err(Error::refused(format!("read {dir}")).source(error).hint(format!(
                "give the user that runs pitr the right to read what is in there: ls -ld {dir}"
            ))),
        };
        self.add(match checked {
            Ok(()) => Finding::ok(CHECK, format!("{dir} can be read")),
            Err(error) if matches!(error.class(), Class::Usage | Class::Refused) => {
                Finding::failed(Level::Problem, CHECK, &error, why)
            }
            Err(error) => return Err(error),
        });
        Ok(())
    }

    /// What a capture of the replication stream depends on.
    async fn stream(&mut self, control: &mut Control, endpoint: &Endpoint) -> Result<()> {
        let may_not = "without them capture is refused";
        match control.sample().await {
            Ok(_) => self.rights(control, endpoint).await,
            Err(error) if error.class() == Class::Usage => {
                self.add(Finding::failed(Level::Problem, "privileges", &error, may_not));
            }
            Err(error) => return Err(error),
        }
        let rate = self.rate(control).await?;
        self.buffers(control, rate).await;
        Ok(())
    }

    /// Which of the commands that a capture sends the account may send.
    async fn rights(&mut self, control: &mut Control, endpoint: &Endpoint) {
        let user = if endpoint.user.is_empty() { "default" } else { &endpoint.user };
        let mut refused = vec![];
        for rule in ACL.split(' ') {
            let name = rule.trim_start_matches('+');
            let words: Vec<&str> = match name {
                "psync" => vec!["psync", "?", "-1"],
                "replconf" => vec!["replconf", "ack", "0"],
                "config|get" => vec!["config", "get", "port"],
                name => vec![name],
            };
            let ask: Vec<&str> = ["ACL", "DRYRUN", user].into_iter().chain(words).collect();
            match control.ask::<String>(&ask).await {
                Ok(said) if said == "OK" => {}
                Ok(_) => refused.push(rule),
                Err(_) => {
                    let what = "the account may not ask what it may: PSYNC was not tried";
                    let why = "a capture that lacks it is refused when it begins";
                    let fix = format!("ACL SETUSER {user} on &* {ACL} +acl|dryrun");
                    self.add(Finding::new(Level::Note, "privileges", what, why).fix(fix));
                    return;
                }
            }
        }
        self.add(if refused.is_empty() {
            Finding::ok("privileges", "the account has what a capture needs")
        } else {
            let list = refused.join(" ");
            let what = format!("the account {user} lacks {list}");
            let fix = format!("ACL SETUSER {user} {list}");
            Finding::new(Level::Problem, "privileges", what, "without them capture is refused")
                .fix(fix)
        });
    }

    async fn role(&mut self, control: &mut Control) -> Result<()> {
        let replication = control.info("replication").await?;
        let field = |name: &str| replication.get(name).map_or("", String::as_str);
        let (role, link) = (field("role"), field("master_link_status"));
        self.add(match (role, link) {
            ("slave", "up") => {
                let what = "it is a replica, and its link to its master is up";
                let why =
                    "its master has to tell its time to the same account; barriers are refused";
                Finding::new(Level::Note, "role", what, why)
            }
            ("slave", _) => {
                let what = "it is a replica without its master";
                let why = "nothing is captured until the link is up again";
                Finding::new(Level::Problem, "role", what, why).fix("INFO replication says why")
            }
            _ => Finding::ok("role", "it is a master"),
        });
        let cluster = control.info("cluster").await?;
        if cluster.get("cluster_enabled").is_some_and(|on| on == "1") {
            let what = "it is a node of a cluster";
            let why = "slots that move to and from other nodes are not followed: what is captured \
                       is this node alone";
            self.add(Finding::new(Level::Problem, "cluster", what, why));
        }
        Ok(())
    }

    /// How many bytes a second the stream has: now, or in the archive's busiest hour if that is more.
    async fn rate(&mut self, control: &mut Control) -> Result<u64> {
        let begun = Instant::now();
        let before = written(control).await?;
        tokio::time::sleep(WATCHED).await;
        let bytes = written(control).await?.saturating_sub(before) as f64;
        let now = (bytes / begun.elapsed().as_secs_f64()) as u64;
        Ok(now.max(self.busiest.unwrap_or(0)))
    }

    /// What a stream waits in while it is not taken.
    async fn buffers(&mut self, control: &mut Control, rate: u64) {
        let what_rate = match self.busiest {
            Some(busiest) if busiest == rate => "in the busiest hour that the archive has",
            _ => "now",
        };
        let backlog = control.setting("repl-backlog-size").await;
        match backlog.and_then(|text| text.parse().ok()) {
            Some(backlog) => self.add(judge_backlog(backlog, rate, what_rate)),
            None => self.unknown("repl-backlog-size"),
        }
        match control.setting("client-output-buffer-limit").await {
            Some(text) => match replica_limit(&text) {
                Some(limit) => self.add(judge_limit(limit, rate, what_rate)),
                None => self.unknown("client-output-buffer-limit"),
            },
            None => self.unknown("client-output-buffer-limit"),
        }
    }

    fn unknown(&mut self, name: &'static str) {
        let what = format!("{name} is not told");
        let why = "it was not looked at";
        self.add(Finding::new(Level::Note, name, what, why).fix("ACL SETUSER … +config|get"));
    }

    async fn settings(&mut self, control: &mut Control) -> Result<()> {
        match control.setting("repl-diskless-sync").await.as_deref() {
            Some("no") => {
                let why = "for each baseline the server first writes all of its data to its own \
                           disk";
                let fix = "CONFIG SET repl-diskless-sync yes; CONFIG REWRITE";
                let found =
                    Finding::new(Level::Note, "repl-diskless-sync", "repl-diskless-sync no", why);
                self.add(found.fix(fix));
            }
            Some(_) => self.add(Finding::ok("repl-diskless-sync", "baselines pass over no disk")),
            None => self.unknown("repl-diskless-sync"),
        }
        let maxmemory = control.setting("maxmemory").await.unwrap_or_default();
        let policy = control.setting("maxmemory-policy").await.unwrap_or_default();
        if maxmemory.parse::<u64>().is_ok_and(|bytes| bytes > 0) && policy != "noeviction" {
            let what = format!("maxmemory {maxmemory} with maxmemory-policy {policy}");
            let why = "keys that the server evicts are gone from then on in what is restored, too";
            self.add(Finding::new(Level::Note, "maxmemory-policy", what, why));
        } else if !policy.is_empty() {
            self.add(Finding::ok("maxmemory-policy", "no keys are evicted"));
        }
        match control.setting("aof-timestamp-enabled").await.as_deref() {
            Some("yes") => self.add(Finding::ok("aof-timestamp-enabled", "its own AOF has times")),
            // A server that keeps no AOF has none to put times into.
            Some(_) => {
                let what = "aof-timestamp-enabled no";
                let why = "with it, an append-only file that the server keeps can be cut at an \
                           instant by redis-check-aof, without pitr";
                let fix = "CONFIG SET aof-timestamp-enabled yes; CONFIG REWRITE";
                let check = "aof-timestamp-enabled";
                self.add(Finding::new(Level::Note, check, what, why).fix(fix));
            }
            None => self.unknown("aof-timestamp-enabled"),
        }
        let modules = control.info("modules").await?;
        if !modules.is_empty() {
            let what = "the server has modules loaded";
            let why = "a target needs the same ones to take their values";
            self.add(Finding::new(Level::Note, "modules", what, why));
        }
        Ok(())
    }

    fn add(&mut self, finding: Finding) {
        self.findings.push(finding);
    }
}

/// A count of bytes that grows as the stream does. A server that never had a replica counts no
/// stream; what its clients send is at least as much.
async fn written(control: &mut Control) -> Result<u64> {
    let replication = control.info("replication").await?;
    let field = |name: &str| replication.get(name).and_then(|text| text.parse::<u64>().ok());
    let offset = match field("repl_backlog_active") {
        Some(0) => None,
        _ => field("master_repl_offset"),
    };
    if let Some(offset) = offset {
        return Ok(offset);
    }
    let stats = control.info("stats").await?;
    let received = stats.get("total_net_input_bytes").and_then(|text| text.parse().ok());
    received.ok_or_else(|| {
        Error::unavailable(format!("{} does not say how much is written", control.address()))
    })
}

fn judge_backlog(backlog: u64, rate: u64, when: &str) -> Finding {
    const CHECK: &str = "repl-backlog-size";
    let what = format!("repl-backlog-size {backlog}, and {rate} bytes a second are written {when}");
    let Some(lasts) = backlog.checked_div(rate).map(Duration::from_secs) else {
        return Finding::ok(CHECK, format!("{what}: it lasts as long as nothing is written"));
    };
    let what = format!("{what}: it lasts {}", span(lasts));
    if lasts >= INTERRUPTION {
        return Finding::ok(CHECK, what);
    }
    let why = format!(
        "a connection that is broken for longer costs a full copy, and leaves a gap; it should \
         bridge {}",
        span(INTERRUPTION)
    );
    let enough = rate.saturating_mul(INTERRUPTION.as_secs());
    let mib = enough.div_ceil(1 << 20).max(1).checked_next_power_of_two().unwrap_or(u64::MAX);
    let fix = format!("CONFIG SET repl-backlog-size {mib}mb; CONFIG REWRITE");
    Finding::new(Level::Warning, CHECK, what, why).fix(fix)
}

/// Hard limit of a replica's output buffer, in bytes; 0 for none. The setting reads
/// `normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60`.
fn replica_limit(text: &str) -> Option<u64> {
    let mut words = text.split_whitespace();
    words.find(|word| matches!(*word, "slave" | "replica"))?;
    words.next()?.parse().ok()
}

fn judge_limit(limit: u64, rate: u64, when: &str) -> Finding {
    const CHECK: &str = "client-output-buffer-limit";
    if limit == 0 {
        return Finding::ok(CHECK, "a replica's output buffer has no limit");
    }
    let what = format!("a replica's output buffer may have {limit} bytes");
    let Some(lasts) = limit.checked_div(rate).map(Duration::from_secs) else {
        return Finding::ok(CHECK, what);
    };
    if lasts >= INTERRUPTION {
        return Finding::ok(CHECK, what);
    }
    let what =
        format!("{what}; with {rate} bytes a second, as {when}, it is full in {}", span(lasts));
    let why = "while a full copy is sent, the stream waits in this buffer; when it is full, the \
               server breaks the connection, and the copy begins anew";
    let mib = (rate.saturating_mul(INTERRUPTION.as_secs()) >> 20).saturating_add(1);
    let fix = format!("CONFIG SET client-output-buffer-limit \"replica {mib}mb 0 0\"");
    Finding::new(Level::Warning, CHECK, what, why).fix(fix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::idle(1 << 20, 0, Level::Ok, "")]
    #[case::enough(600_000, 1_000, Level::Ok, "")]
    #[case::short(599_999, 1_000, Level::Warning, "repl-backlog-size 1mb")]
    #[case::busy(1 << 20, 1 << 20, Level::Warning, "repl-backlog-size 1024mb")]
    #[case::absurd(1 << 20, u64::MAX, Level::Warning, "repl-backlog-size")]
    fn a_backlog_has_to_last(
        #[case] backlog: u64,
        #[case] rate: u64,
        #[case] level: Level,
        #[case] fix: &str,
    ) {
        let found = judge_backlog(backlog, rate, "now");
        assert_eq!(found.level, level, "{found:?}");
        assert!(found.fix.unwrap_or_default().contains(fix));
    }

    #[rstest]
    #[case(
        "normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60",
        Some(268_435_456)
    )]
    #[case("replica 0 0 0", Some(0))]
    #[case("normal 0 0 0", None)]
    #[case("slave x 0 0", None)]
    fn the_limit_of_replicas_is_found(#[case] text: &str, #[case] limit: Option<u64>) {
        assert_eq!(replica_limit(text), limit);
    }

    #[test]
    fn a_buffer_that_a_copy_would_overflow_is_a_warning() {
        assert_eq!(judge_limit(0, 1 << 30, "now").level, Level::Ok);
        assert_eq!(judge_limit(256 << 20, 1 << 10, "now").level, Level::Ok);
        let found = judge_limit(256 << 20, 1 << 20, "now");
        assert_eq!(found.level, Level::Warning);
        assert_eq!(
            found.fix.unwrap(),
            "CONFIG SET client-output-buffer-limit \"replica 601mb 0 0\""
        );
    }
}
