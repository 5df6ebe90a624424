//! Looks at the servers of a MySQL or MariaDB source: rights, settings, clock, tools.
//!
//! What a capture refuses is asked with the very functions that it asks with; what it takes, and
//! what would hurt later, is judged from the server's variables ([`judge`]).
//!
//! **Invariant:** only SELECT and SHOW are sent.

use super::flavor::Flavor;
use super::protection;
use super::{baseline, join, preflight, sql};
use crate::engine::checkup::{Checkup, Finding, Level, OUTAGE, encryption, skew, span};
use crate::engine::{Endpoint, Needs, SourceOptions};
use crate::error::{Class, Result};
use futures_util::future::join_all;
use mysql_async::Conn;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long all questions to one server may take.
const LOOK_MAX: Duration = Duration::from_mins(1);

/// Variables of a server by their names, in lower case.
type Variables = BTreeMap<String, String>;

/// A variable that has to have one of some values.
struct Rule {
    name: &'static str,
    /// The first one is what is recommended.
    good: &'static [&'static str],
    level: Level,
    why: &'static str,
}

/// In the order in which they are shown. A server that lacks a variable has the good value built in.
const RULES: [Rule; 6] = [
    Rule {
        name: "binlog_format",
        good: &["ROW"],
        level: Level::Problem,
        why: "a statement that is run again need not do the same (UUID(), LIMIT without ORDER BY, \
              temporary tables), so what is restored may differ without a sign",
    },
    Rule {
        name: "binlog_row_image",
        good: &["FULL", "FULL_NODUP"],
        level: Level::Note,
        why: "a restore is exact all the same; what a row was before a change is not in the log \
              as a whole",
    },
    Rule {
        name: "binlog_checksum",
        good: &["CRC32"],
        level: Level::Warning,
        why: "what the source's disk or memory changes in the log is not noticed when it is \
              captured",
    },
    Rule {
        name: "sync_binlog",
        good: &["1"],
        level: Level::Warning,
        why: "a power cut at the source takes transactions out of its log that clients saw \
              committed, and that pitr may have: the source then goes on with another history",
    },
    Rule {
        name: "innodb_flush_log_at_trx_commit",
        good: &["1", "3"],
        level: Level::Warning,
        why: "a power cut at the source takes away commits that its log, and so the archive, has",
    },
    Rule {
        name: "gtid_strict_mode",
        good: &["ON"],
        level: Level::Note,
        why: "the server itself then refuses transactions whose GTIDs are out of order, which \
              prove less about what is missing",
    },
];

/// What was found at one server, and its `server_id`.
struct Look {
    checkup: Checkup,
    server_id: Option<u32>,
}

/// Looks at all servers of a source.
pub(in crate::engine) async fn checkup(options: &SourceOptions) -> Vec<Checkup> {
    let looks = options.endpoints().enumerate().map(|(index, endpoint)| async move {
        let server = endpoint.to_string();
        let mut look = Look { checkup: Checkup { server, findings: vec![] }, server_id: None };
        look.at(options, endpoint, index == 0).await;
        look
    });
    let mut looks = join_all(looks).await;
    let ids: Vec<Option<u32>> = looks.iter().map(|look| look.server_id).collect();
    for (index, look) in looks.iter_mut().enumerate() {
        look.checkup.findings.extend(conflict(&ids, index));
    }
    looks.into_iter().map(|look| look.checkup).collect()
}

impl Look {
    async fn at(&mut self, options: &SourceOptions, endpoint: &Endpoint, is_first: bool) {
        let begun = Instant::now();
        let peer = endpoint.to_string();
        let mut conn = match sql::connect(endpoint).await {
            Ok(conn) => conn,
            Err(error) => {
                let (level, why) = if is_first {
                    (Level::Problem, "nothing is captured while it cannot be reached")
                } else {
                    (Level::Warning, "it cannot be gone on from when the first one fails")
                };
                self.add(Finding::failed(level, "reachable", &error, why));
                return;
            }
        };
        let took = begun.elapsed().as_millis();
        self.add(Finding::ok("reachable", format!("logged in as {peer} in {took} ms")));
        self.checkup.findings.extend(encryption(endpoint));
        let why = "the rest was not looked at";
        match tokio::time::timeout(LOOK_MAX, self.ask(options, &mut conn, &peer)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.add(Finding::failed(Level::Problem, "answers", &error, why)),
            Err(_) => {
                let what = format!("it took more than {}", span(LOOK_MAX));
                self.add(Finding::new(Level::Problem, "answers", what, why));
            }
        }
        // A connection that does not end in order is closed all the same.
        drop(conn.disconnect().await);
    }

    async fn ask(&mut self, options: &SourceOptions, conn: &mut Conn, peer: &str) -> Result<()> {
        let rows: Vec<(String, String)> = sql::rows(conn, peer, "SHOW GLOBAL VARIABLES").await?;
        let vars: Variables =
            rows.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
        let version = vars.get("version").cloned().unwrap_or_default();
        let flavor = match join::check_version(peer, &version) {
            Ok(flavor) => flavor,
            Err(error) => {
                let why = "what it logs cannot be restored to an instant";
                self.add(Finding::failed(Level::Problem, "version", &error, why));
                return Ok(());
            }
        };
        self.add(Finding::ok("version", format!("{} {version}", flavor.family)));
        self.server_id = vars.get("server_id").and_then(|id| id.parse().ok());

        let why = "without them capture or baselines are refused";
        let all = "the account has what capture and baselines need";
        self.require("privileges", all, why, baseline::check_all_privileges(conn).await);
        judge(&vars, flavor, &mut self.checkup.findings);
        self.checkup.findings.extend(gtids(&vars, !options.standbys.is_empty()));
        let why = "it is not captured";
        if flavor.is_maria() {
            let plain = "the binary log is one of plain files";
            self.require("binlog_files", plain, why, join::check_maria(conn, peer).await);
        } else {
            let logs = "everything that it executes is in its own log";
            self.require("log_replica_updates", logs, why, join::check_logs_all(conn, peer).await);
        }
        if is_on(&vars, "log_bin") {
            self.found("binlog_filters", filters(conn, peer, flavor).await);
        }
        self.found("engines", engines(conn, peer).await);
        if options.semi_sync {
            self.found("semi_sync", protection::checkup(conn, peer).await);
        }
        self.found("clock", join::skew(conn, peer).await.map(|micros| vec![skew(micros)]));
        self.tools(options, &version, flavor).await;
        Ok(())
    }

    /// Programs that baselines and restores start.
    async fn tools(&mut self, options: &SourceOptions, version: &str, flavor: Flavor) {
        let why = "no baseline can be taken";
        let dump = options.dump_command.as_deref();
        self.add(match baseline::find_program(dump, version, flavor).await {
            Ok(program) => Finding::ok("dump_program", format!("baselines are taken by {program}")),
            Err(error) => Finding::failed(Level::Problem, "dump_program", &error, why),
        });
        let needs = Needs { version: version.to_owned(), ..Needs::default() };
        self.add(match preflight::folder(&needs, flavor).await {
            Ok((program, server)) => {
                let what = format!("{program} {} is there to restore into folders", server.version);
                Finding::ok("server_program", what)
            }
            Err(error) => {
                let why = "here, a restore needs a running server as its target, and no drill runs";
                Finding::failed(Level::Warning, "server_program", &error, why)
            }
        });
    }

    /// What is checked by a function that refuses.
    fn require(&mut self, check: &'static str, good: &str, why: &str, checked: Result<()>) {
        match checked {
            Ok(()) => self.add(Finding::ok(check, good)),
            Err(error) if matches!(error.class(), Class::Refused | Class::Usage) => {
                self.add(Finding::failed(Level::Problem, check, &error, why));
            }
            Err(error) => self.found(check, Err(error)),
        }
    }

    /// What was found, or that it could not be asked.
    fn found(&mut self, check: &'static str, found: Result<Vec<Finding>>) {
        match found {
            Ok(findings) => self.checkup.findings.extend(findings),
            Err(error) => {
                let why = "it was not looked at";
                self.add(Finding::failed(Level::Warning, check, &error, why));
            }
        }
    }

    fn add(&mut self, finding: Finding) {
        self.checkup.findings.push(finding);
    }
}

/// What the log leaves out.
async fn filters(conn: &mut Conn, peer: &str, flavor: Flavor) -> Result<Vec<Finding>> {
    const CHECK: &str = "binlog_filters";
    let set = join::filters(conn, peer, join::status_words(flavor)).await?;
    if set.is_empty() {
        return Ok(vec![Finding::ok(CHECK, "all databases are logged")]);
    }
    let found = |(name, value): (&str, String)| {
        let what = format!("{name} = {value}: not all databases are logged");
        let why = "what is not in the log could only be restored as it was at the baseline, so \
                   such a server is not captured";
        let fix = format!("take {name} out of the server's configuration and restart it");
        Finding::new(Level::Problem, CHECK, what, why).fix(fix)
    };
    Ok(set.into_iter().map(found).collect())
}

/// Tables that no snapshot holds.
async fn engines(conn: &mut Conn, peer: &str) -> Result<Vec<Finding>> {
    const CHECK: &str = "engines";
    let ask = format!(
        "SELECT COUNT(*), COALESCE(MIN(CONCAT(TABLE_SCHEMA, '.', TABLE_NAME)), ''), \
         COALESCE(MIN(CONCAT('`', TABLE_SCHEMA, '`.`', TABLE_NAME, '`')), '') \
         FROM information_schema.TABLES WHERE TABLE_TYPE = 'BASE TABLE' \
         AND ENGINE <> 'InnoDB' AND TABLE_SCHEMA NOT IN ({})",
        baseline::SYSTEM_SCHEMAS
    );
    let (count, name, quoted): (u64, String, String) = sql::row(conn, peer, &ask).await?;
    if count == 0 {
        return Ok(vec![Finding::ok(CHECK, "all tables are InnoDB")]);
    }
    let what = format!("{count} tables are not InnoDB, such as {name}");
    let why = "writers wait for as long as a baseline takes";
    let fix = format!("ALTER TABLE {quoted} ENGINE = InnoDB");
    Ok(vec![Finding::new(Level::Note, CHECK, what, why).fix(fix)])
}

fn is_on(vars: &Variables, name: &str) -> bool {
    vars.get(name).is_some_and(|value| matches!(value.as_str(), "ON" | "1"))
}

/// What sets a variable now and for later starts.
fn set(flavor: Flavor, name: &str, value: &str) -> String {
    if flavor.is_maria() {
        format!("SET GLOBAL {name} = {value}, and {name} = {value} in the server's configuration")
    } else {
        format!("SET PERSIST {name} = {value}")
    }
}

/// Judges the variables.
fn judge(vars: &Variables, flavor: Flavor, out: &mut Vec<Finding>) {
    if is_on(vars, "log_bin") {
        out.push(Finding::ok("log_bin", "the server writes a binary log"));
    } else {
        let why = "the log is what pitr captures: without it only baselines could be restored";
        let fix = "log_bin = binlog under [mysqld] in the server's configuration, and a restart";
        let what = "the server writes no binary log";
        out.push(Finding::new(Level::Problem, "log_bin", what, why).fix(fix));
    }
    if vars.get("server_id").is_some_and(|id| id == "0") {
        let why = "a server without one refuses every replica, and pitr is one";
        let fix = set(flavor, "server_id", "1");
        out.push(Finding::new(Level::Problem, "server_id", "server_id = 0", why).fix(fix));
    }
    for rule in RULES {
        let Some(value) = vars.get(rule.name) else { continue };
        let what = format!("{} = {value}", rule.name);
        if rule.good.iter().any(|good| value.eq_ignore_ascii_case(good)) {
            out.push(Finding::ok(rule.name, what));
            continue;
        }
        // What is known to be unsafe as a statement is logged as rows then.
        let is_mixed = rule.name == "binlog_format" && value.eq_ignore_ascii_case("MIXED");
        let level = if is_mixed { Level::Warning } else { rule.level };
        let best = rule.good.first().copied().unwrap_or_default();
        let mut fix = set(flavor, rule.name, best);
        if rule.name == "binlog_format" {
            fix += " (sessions that are open keep theirs)";
        }
        out.push(Finding::new(level, rule.name, what, rule.why).fix(fix));
    }
    out.push(expiry(vars, flavor));
    for name in ["max_binlog_total_size", "binlog_space_limit"] {
        let Some(limit) = vars.get(name).filter(|limit| *limit != "0") else { continue };
        let what = format!("{name} = {limit}: the log is purged by its size, too");
        let why = "a busy hour while pitr is away purges what was not captured, which is a gap";
        let fix = set(flavor, name, "0");
        out.push(Finding::new(Level::Warning, name, what, why).fix(fix));
    }
    if let Some(bytes) = vars.get("max_allowed_packet") {
        let what = format!("max_allowed_packet = {bytes}; pitr itself takes rows of any size");
        out.push(Finding::ok("max_allowed_packet", what));
    }
}

/// Judges whether a MySQL names its transactions.
fn gtids(vars: &Variables, has_standbys: bool) -> Option<Finding> {
    const CHECK: &str = "gtid_mode";
    let mode = vars.get(CHECK)?;
    let what = format!("gtid_mode = {mode}");
    if mode == "ON" {
        return Some(Finding::ok(CHECK, what));
    }
    let (level, why) = if has_standbys {
        (Level::Warning, "nothing shows what another server has, so none is gone on from")
    } else {
        let why = "whether the log goes on is proved by its bytes and files alone, and a restore \
                   into a running server needs one that takes transactions without GTIDs";
        (Level::Note, why)
    };
    Some(Finding::new(level, CHECK, what, why).fix(preflight::switch_to_gtids(mode)))
}

/// Judges for how long the server keeps its log.
fn expiry(vars: &Variables, flavor: Flavor) -> Finding {
    const CHECK: &str = "binlog_expire";
    let number = |name: &str| vars.get(name).and_then(|value| value.parse::<f64>().ok());
    let purges = vars.get("binlog_expire_logs_auto_purge").is_none_or(|value| value != "OFF");
    let seconds = number("binlog_expire_logs_seconds").filter(|seconds| *seconds > 0.0);
    let days = number("expire_logs_days").filter(|days| *days > 0.0);
    let kept = seconds.or(days.map(|days| days * 86_400.0)).filter(|_| purges);
    let Some(kept) = kept.and_then(|secs| Duration::try_from_secs_f64(secs).ok()) else {
        return Finding::ok(CHECK, "the log is kept until somebody purges it");
    };
    let what = format!("the log is kept for {}", span(kept));
    if kept >= OUTAGE {
        return Finding::ok(CHECK, what);
    }
    let why = format!(
        "when pitr is away for longer, what was purged meanwhile is a gap; it should bridge {}",
        span(OUTAGE)
    );
    let fix = if vars.contains_key("binlog_expire_logs_seconds") {
        set(flavor, "binlog_expire_logs_seconds", &OUTAGE.as_secs().to_string())
    } else {
        set(flavor, "expire_logs_days", &(OUTAGE.as_secs() / 86_400).to_string())
    };
    Finding::new(Level::Warning, CHECK, what, why).fix(fix)
}

/// Servers of one source must be told apart by their ids.
fn conflict(ids: &[Option<u32>], index: usize) -> Option<Finding> {
    let id = (*ids.get(index)?)?;
    let is_first = ids.iter().position(|other| *other == Some(id)) == Some(index);
    if ids.len() == 1 || is_first {
        return None;
    }
    let what = format!("server_id = {id}, as another server of this source has");
    let why = "servers that replicate drop each other's transactions as their own if their ids \
               are the same";
    let fix = format!("SET PERSIST server_id = {}", preflight::free_server_id(&[id]));
    Some(Finding::new(Level::Problem, "server_id", what, why).fix(fix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn judged(vars: &[(&str, &str)], version: &str) -> Vec<Finding> {
        let good = [("log_bin", "ON"), ("server_id", "1"), ("binlog_format", "ROW")];
        let vars = good.iter().chain(vars).map(|(n, v)| ((*n).into(), (*v).into())).collect();
        let mut out = vec![];
        judge(&vars, Flavor::parse(version).unwrap(), &mut out);
        out
    }

    #[rstest]
    #[case::no_log(("log_bin", "OFF"), Level::Problem, "log_bin = binlog")]
    #[case::no_id(("server_id", "0"), Level::Problem, "SET PERSIST server_id = 1")]
    #[case::statements(("binlog_format", "STATEMENT"), Level::Problem, "binlog_format = ROW")]
    #[case::mixed(("binlog_format", "MIXED"), Level::Warning, "binlog_format = ROW")]
    #[case::image(("binlog_row_image", "MINIMAL"), Level::Note, "binlog_row_image = FULL")]
    #[case::checksum(("binlog_checksum", "NONE"), Level::Warning, "binlog_checksum = CRC32")]
    #[case::sync(("sync_binlog", "1000"), Level::Warning, "sync_binlog = 1")]
    #[case::flush(("innodb_flush_log_at_trx_commit", "2"), Level::Warning, "_trx_commit = 1")]
    #[case::strict(("gtid_strict_mode", "OFF"), Level::Note, "gtid_strict_mode = ON")]
    #[case::a_day(("binlog_expire_logs_seconds", "86400"), Level::Warning, "seconds = 259200")]
    #[case::two_days(("expire_logs_days", "2.000000"), Level::Warning, "expire_logs_days = 3")]
    #[case::by_size(("max_binlog_total_size", "1073741824"), Level::Warning, "total_size = 0")]
    fn a_setting_that_hurts_is_found_with_what_mends_it(
        #[case] var: (&str, &str),
        #[case] level: Level,
        #[case] fix: &str,
    ) {
        let found = judged(&[var], "9.7.4");
        let bad: Vec<&Finding> = found.iter().filter(|f| f.level > Level::Ok).collect();
        let [bad] = bad.as_slice() else { panic!("one finding, not {bad:?}") };
        assert_eq!(bad.level, level);
        assert!(bad.why.is_some() && bad.fix.as_deref().unwrap().contains(fix), "{bad:?}");
    }

    #[rstest]
    #[case(&[("binlog_expire_logs_seconds", "259200")])]
    #[case(&[("binlog_expire_logs_seconds", "0"), ("expire_logs_days", "0.000000")])]
    #[case(&[("binlog_expire_logs_seconds", "60"), ("binlog_expire_logs_auto_purge", "OFF")])]
    #[case(&[("sync_binlog", "1"), ("binlog_checksum", "CRC32"), ("binlog_row_image", "full")])]
    fn good_settings_are_ok(#[case] vars: &[(&str, &str)]) {
        let found = judged(vars, "9.7.4");
        assert!(found.iter().all(|finding| finding.level == Level::Ok), "{found:?}");
    }

    #[rstest]
    #[case("ON", true, Level::Ok, "")]
    #[case(
        "OFF_PERMISSIVE",
        false,
        Level::Note,
        "gtid_mode = ON_PERMISSIVE; SET PERSIST gtid_mode = ON"
    )]
    #[case("OFF", true, Level::Warning, "SET PERSIST gtid_mode = OFF_PERMISSIVE; ")]
    fn without_gtids_no_other_server_is_gone_on_from(
        #[case] mode: &str,
        #[case] has_standbys: bool,
        #[case] level: Level,
        #[case] fix: &str,
    ) {
        let vars = std::iter::once(("gtid_mode".to_owned(), mode.to_owned())).collect();
        let found = gtids(&vars, has_standbys).unwrap();
        assert_eq!(found.level, level);
        assert!(found.fix.unwrap_or_default().contains(fix));
    }

    #[test]
    fn mariadb_is_told_what_it_understands() {
        let found = judged(&[("sync_binlog", "0")], "11.8.3-MariaDB");
        let fixes: Vec<&str> = found.iter().filter_map(|f| f.fix.as_deref()).collect();
        assert_eq!(
            fixes,
            ["SET GLOBAL sync_binlog = 1, and sync_binlog = 1 in the server's configuration"]
        );
    }

    #[test]
    fn servers_of_a_source_have_ids_of_their_own() {
        assert_eq!(conflict(&[Some(1), Some(2), None], 1), None);
        assert_eq!(conflict(&[Some(1)], 0), None);
        assert_eq!(conflict(&[None, None], 1), None);
        assert_eq!(conflict(&[Some(1), Some(1)], 0), None, "it is said once");
        assert_eq!(conflict(&[Some(1), Some(1)], 1).unwrap().level, Level::Problem);
    }
}
