//! Whether a server, or a folder, can be restored into. Looks only, changes nothing.
//!
//! **Invariant:** every refusal here is given before anything was changed, and says what to do.

use super::apply::way::{self, Facts, Way};
use super::baseline::{self, SYSTEM_SCHEMAS};
use super::flavor::{Family, Flavor};
use super::half::Half;
use super::load::resume::Whole;
use super::{ask, join, server, tools};
use crate::engine::{Apply, Endpoint, Leftover, Needs, tls};
use crate::error::{Class, Context, Error, Result};
use crate::record::Server;
use mysql_async::{Conn, Row};

/// What the account needs on a MySQL whichever way the log is applied, each with what stands
/// for it.
const MYSQL_PRIVILEGES: [&[&str]; 18] = [
    &["SELECT"],
    &["INSERT"],
    &["UPDATE"],
    &["DELETE"],
    &["CREATE"],
    &["DROP"],
    &["ALTER"],
    &["REFERENCES"],
    &["TRIGGER"],
    &["EVENT"],
    &["CREATE VIEW"],
    &["CREATE ROUTINE"],
    &["ALTER ROUTINE"],
    &["CREATE USER"],
    &["RELOAD"],
    &["LOCK TABLES"],
    &["REPLICATION CLIENT", "SUPER"],
    &["SET_ANY_DEFINER", "SET_USER_ID"],
];

/// What the account needs on a MariaDB whichever way the log is applied, each with what stands for it.
const MARIA_PRIVILEGES: [&[&str]; 21] = [
    &["SELECT"],
    &["INSERT"],
    &["UPDATE"],
    &["DELETE"],
    &["CREATE"],
    &["DROP"],
    &["ALTER"],
    &["INDEX"],
    &["REFERENCES"],
    &["TRIGGER"],
    &["EVENT"],
    &["CREATE VIEW"],
    &["CREATE ROUTINE"],
    &["ALTER ROUTINE"],
    &["CREATE USER"],
    &["RELOAD"],
    &["LOCK TABLES"],
    &["DELETE HISTORY"],
    &["BINLOG MONITOR", "REPLICATION CLIENT", "SUPER"],
    &["BINLOG ADMIN", "SUPER"],
    &["SET USER", "SUPER"],
];

/// The oldest MariaDB whose log tells all that a statement depends on.
const OLDEST_AS_STATEMENTS: (u32, u32, u32) = (10, 11, 0);

/// What the archive comes from.
///
/// # Errors
/// Refused, if that is no version.
pub(super) fn source(needs: &Needs) -> Result<Flavor> {
    if needs.version.is_empty() {
        return Ok(Flavor { family: Family::MySql, number: (0, 0, 0) });
    }
    Flavor::parse(&needs.version).ok_or_else(|| {
        Error::refused(format!("{:?} is no version that can be compared", needs.version))
    })
}

/// What is to be restored, as far as what an interrupted restore left is concerned.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempt<'a> {
    pub(super) leftover: Leftover,
    pub(super) purpose: &'a str,
}

/// What an interrupted restore left that this one goes on with.
#[derive(Debug)]
pub(super) struct GoesOn {
    pub(super) half: Half,
    pub(super) whole: Whole,
}

/// What there is of earlier restores.
enum Found {
    Nothing,
    /// What this one would go on with.
    Leftover,
    TakenOver(GoesOn),
}

impl Found {
    fn taken_over(self) -> Option<GoesOn> {
        match self {
            Self::TakenOver(goes_on) => Some(goes_on),
            Self::Nothing | Self::Leftover => None,
        }
    }
}

/// Looks at a running server, and decides how the log is applied there. What an interrupted
/// restore left is taken over or away, if that is wanted.
pub(super) async fn running(
    conn: &mut Conn,
    needs: &Needs,
    source: Flavor,
    asked: Apply,
    at: &str,
    attempt: Attempt<'_>,
) -> Result<(Server, Way, Option<GoesOn>)> {
    let asking = || format!("ask {at} what it is");
    let facts = "SELECT @@version, @@server_id";
    let (version, server_id): (String, u32) = ask::first(conn, facts, asking)
        .await?
        .ok_or_else(|| Error::unavailable(format!("{at} does not say which version it is")))?;
    check_version(at, &version, needs)?;
    let identity = join::identity(conn, at, source).await?;
    if needs.sources.contains(&identity) {
        return Err(Error::refused(format!("{at} is a source of this archive ({identity})"))
            .hint("restore into another server; nothing is restored into a source"));
    }
    let server = Server { version, identity, anonymous: false };
    let (way, goes_on) = match source.family {
        Family::MySql => check_mysql(conn, needs, asked, server_id, at, attempt).await?,
        Family::MariaDb => check_maria(conn, source, needs, asked, server_id, at, attempt).await?,
    };
    Ok((server, way, goes_on))
}

async fn check_mysql(
    conn: &mut Conn,
    needs: &Needs,
    asked: Apply,
    server_id: u32,
    at: &str,
    attempt: Attempt<'_>,
) -> Result<(Way, Option<GoesOn>)> {
    // First, as the other questions need some of them.
    check_privileges(conn, &MYSQL_PRIVILEGES, at).await?;
    let found = check_half(conn, at, attempt).await?;
    if matches!(found, Found::Nothing) {
        check_empty(conn, at).await?;
    }
    if !matches!(found, Found::Leftover) {
        let end = "STOP REPLICA; RESET REPLICA ALL";
        check_no_replica(conn, "SHOW REPLICA STATUS", end, at).await?;
    }
    let settings = settings(conn, at).await?;
    let facts = Facts {
        has_gtids: settings.gtid_mode == "ON",
        anonymous: needs.anonymous,
        scheduler_on: settings.scheduler == "ON",
        lacks_to_replicate: baseline::missing_privileges(conn, &way::TO_REPLICATE).await?,
        lacks_to_run: baseline::missing_privileges(conn, &way::TO_RUN).await?,
    };
    // Else the account may not see them.
    if !facts.lacks_to_replicate.contains(&"REPLICATION SLAVE") {
        check_no_source(conn, "SHOW REPLICAS", at).await?;
    }
    let way = Way::choose(asked, &facts, at)?;
    if !way.is_sql() {
        check_server_id(server_id, needs, "SET PERSIST", at)?;
        settings.check_gtids(at, needs)?;
    }
    if !way.admin {
        check_trust(conn, at).await?;
    }
    settings.check_writable(at)?;
    Ok((way, found.taken_over()))
}

async fn check_maria(
    conn: &mut Conn,
    source: Flavor,
    needs: &Needs,
    asked: Apply,
    server_id: u32,
    at: &str,
    attempt: Attempt<'_>,
) -> Result<(Way, Option<GoesOn>)> {
    // First, as the other questions need some of them.
    check_privileges(conn, &MARIA_PRIVILEGES, at).await?;
    let settings: Vec<(String, String)> =
        ask::rows(conn, "SHOW GLOBAL VARIABLES", || format!("read the settings of {at}")).await?;
    let has = |name: &str, value: &str| {
        settings.iter().any(|setting| setting.0.eq_ignore_ascii_case(name) && setting.1 == value)
    };
    let facts = Facts {
        has_gtids: true,
        anonymous: false,
        scheduler_on: has("event_scheduler", "ON"),
        lacks_to_replicate: baseline::missing_privileges(conn, &way::MARIA_TO_REPLICATE).await?,
        lacks_to_run: baseline::missing_privileges(conn, &way::MARIA_TO_RUN).await?,
    };
    let may_administer = facts.may_administer();
    // Else the account may not see them.
    let sees_replication = may_administer || facts.lacks_to_run.is_empty();
    let found = check_half(conn, at, attempt).await?;
    if matches!(found, Found::Nothing) {
        check_empty(conn, at).await?;
    }
    if !matches!(found, Found::Leftover) && sees_replication {
        let end = "STOP ALL REPLICAS; RESET REPLICA 'name' ALL";
        check_no_replica(conn, "SHOW ALL REPLICAS STATUS", end, at).await?;
    }
    if may_administer {
        check_no_source(conn, "SHOW REPLICA HOSTS", at).await?;
    }
    let way = Way::choose(asked, &facts, at)?;
    if way.is_sql() && source.number < OLDEST_AS_STATEMENTS {
        return Err(Error::refused(format!(
            "{at}: the log of a MariaDB before 10.11 does not tell all that its statements \
             depend on: it is not applied as SQL"
        ))
        .hint("restore with --apply native, which needs ALL ON *.* on the target"));
    }
    if !way.is_sql() {
        check_server_id(server_id, needs, "SET GLOBAL", at)?;
    }
    check_maria_settings(&settings, &way, at)?;
    Ok((way, found.taken_over()))
}

fn check_server_id(server_id: u32, needs: &Needs, set: &str, at: &str) -> Result<()> {
    if server_id != 0 && !needs.origins.contains(&server_id) {
        return Ok(());
    }
    let free = free_server_id(&needs.origins);
    Err(Error::refused(format!(
        "{at} has server_id {server_id}, as servers in the archive have: \
         it would drop their transactions as its own"
    ))
    .hint(format!("{set} server_id = {free}")))
}

/// Looks for the program that fills a folder. Gives it, and its version.
pub(super) async fn folder(needs: &Needs, source: Flavor) -> Result<(String, Server)> {
    let (program, version) = server_program(needs, source).await?;
    Ok((program, Server { version, ..Server::default() }))
}

/// The first program on PATH that fits.
async fn server_program(needs: &Needs, source: Flavor) -> Result<(String, String)> {
    let package = server::package(source.family);
    let mut refused = None;
    for program in server::programs(source) {
        let version = match tools::program_version(&program, package).await {
            Ok(version) => version,
            Err(error) => {
                refused = refused.or(Some(error));
                continue;
            }
        };
        match check_version(&format!("{program} on PATH"), &version, needs) {
            Ok(()) => return Ok((program, version)),
            // What is there and does not fit says more than what is not there.
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.unwrap_or_else(|| Error::bug("no program is named")))
}

/// Whether the target runs on this host: then it reaches what listens on loopback.
pub(super) async fn same_host(endpoint: &Endpoint) -> Result<()> {
    let tcp = tls::connect_tcp(endpoint).await?;
    let ips = tcp.local_addr().and_then(|local| Ok((local.ip(), tcp.peer_addr()?.ip())));
    let (here, there) = ips.unavailable(|| format!("look at the connection to {endpoint}"))?;
    if here == there || there.is_loopback() {
        return Ok(());
    }
    Err(Error::refused(format!("{endpoint} is on another host: it cannot reach pitr on loopback"))
        .hint(format!("let pitr listen where the target reaches it: --listen {here}:0")))
}

/// A `server_id` that no event in the archive carries.
pub(super) fn free_server_id(origins: &[u32]) -> u32 {
    loop {
        let id = rand::random_range(1..u32::MAX);
        if !origins.contains(&id) {
            return id;
        }
    }
}

fn check_version(what: &str, version: &str, needs: &Needs) -> Result<()> {
    if needs.version.is_empty() {
        return Ok(());
    }
    let flavor = |text: &str| {
        Flavor::parse(text)
            .ok_or_else(|| Error::refused(format!("{text:?} is no version that can be compared")))
    };
    let (have, source) = (flavor(version)?, flavor(&needs.version)?);
    if have.family != source.family {
        return Err(Error::refused(format!(
            "{what} is {} {version}, the source was {} {}: neither applies the other's log",
            have.family, source.family, needs.version
        ))
        .hint("MySQL is restored into MySQL, MariaDB into MariaDB"));
    }
    let series = |flavor: Flavor| (flavor.number.0, flavor.number.1);
    if series(have) < series(source) {
        return Err(Error::refused(format!(
            "{what} is {version}, older than the source ({})",
            needs.version
        ))
        .hint("restore into a server of the source's version or a newer one"));
    }
    Ok(())
}

/// What an interrupted restore left is taken over or away, if that is wanted.
async fn check_half(conn: &mut Conn, at: &str, attempt: Attempt<'_>) -> Result<Found> {
    let Some(half) = Half::look(conn).await? else { return Ok(Found::Nothing) };
    let is_for_this = half.is_for(attempt.purpose);
    match attempt.leftover {
        Leftover::Clean => {
            half.clean(conn).await.map_err(|error| error.context(format!("clean {at}")))?;
            Ok(Found::Nothing)
        }
        Leftover::GoOn if half.is_bare() => {
            Half::drop_bare(conn).await?;
            Ok(Found::Nothing)
        }
        Leftover::GoOn if is_for_this => {
            let (half, whole) = half
                .resume(conn)
                .await
                .map_err(|error| error.context(format!("go on with the restore into {at}")))?;
            tracing::warn!(
                "{at}: an interrupted restore goes on; {} of its tables are whole",
                whole.len()
            );
            Ok(Found::TakenOver(GoesOn { half, whole }))
        }
        Leftover::Look if is_for_this => Ok(Found::Leftover),
        Leftover::Look | Leftover::GoOn => Err(half.refusal(at)),
    }
}

async fn check_empty(conn: &mut Conn, at: &str) -> Result<()> {
    let schemas: Vec<String> = ask::rows(
        conn,
        format!(
            "SELECT SCHEMA_NAME FROM information_schema.SCHEMATA \
             WHERE SCHEMA_NAME NOT IN ({SYSTEM_SCHEMAS}) ORDER BY 1 LIMIT 5"
        ),
        || format!("list the schemas of {at}"),
    )
    .await?;
    if schemas.is_empty() {
        return Ok(());
    }
    Err(Error::refused(format!("{at} is not empty: it has {}", schemas.join(", ")))
        .hint("restore into a fresh server, or into a folder with --into"))
}

/// Not a replica itself. `channels` shows what it replicates, and `end` ends that.
async fn check_no_replica(conn: &mut Conn, channels: &str, end: &str, at: &str) -> Result<()> {
    let channels: Vec<Row> =
        ask::rows(conn, channels, || format!("ask {at} for replication")).await?;
    if channels.is_empty() {
        return Ok(());
    }
    Err(Error::refused(format!("{at} is configured as a replica")).hint(end))
}

/// Nor a source of others.
async fn check_no_source(conn: &mut Conn, replicas: &str, at: &str) -> Result<()> {
    let replicas: Vec<Row> =
        ask::rows(conn, replicas, || format!("ask {at} for its replicas")).await?;
    if replicas.is_empty() {
        return Ok(());
    }
    Err(Error::refused(format!("{at} has {} replicas", replicas.len()))
        .hint("detach them first: they would take over everything that is restored"))
}

/// The statements that lead from a `gtid_mode` to ON.
pub(super) fn switch_to_gtids(mode: &str) -> String {
    let steps = ["OFF", "OFF_PERMISSIVE", "ON_PERMISSIVE", "ON"];
    let from = steps.iter().position(|step| *step == mode).unwrap_or(0) + 1;
    let modes = steps.get(from..).unwrap_or_default().iter();
    let statements = std::iter::once("SET PERSIST enforce_gtid_consistency = ON".to_owned())
        .chain(modes.map(|mode| format!("SET PERSIST gtid_mode = {mode}")));
    statements.collect::<Vec<_>>().join("; ")
}

/// Settings of a running server.
#[derive(Debug)]
struct Settings {
    gtid_mode: String,
    consistency: String,
    scheduler: String,
    read_only: bool,
}

async fn settings(conn: &mut Conn, at: &str) -> Result<Settings> {
    let settings: Option<(String, String, String, bool, bool)> = ask::first(
        conn,
        "SELECT @@GLOBAL.gtid_mode, @@GLOBAL.enforce_gtid_consistency, @@GLOBAL.event_scheduler, \
             @@GLOBAL.read_only, @@GLOBAL.super_read_only",
        || format!("read the settings of {at}"),
    )
    .await?;
    let (gtid_mode, consistency, scheduler, read_only, super_read_only) =
        settings.ok_or_else(|| Error::unavailable(format!("{at} does not show its settings")))?;
    let read_only = read_only || super_read_only;
    Ok(Settings { gtid_mode, consistency, scheduler, read_only })
}

impl Settings {
    fn check_gtids(&self, at: &str, needs: &Needs) -> Result<()> {
        let Self { gtid_mode, consistency, .. } = self;
        if needs.anonymous {
            return self.check_anonymous(at, needs);
        }
        if gtid_mode == "ON" && consistency == "ON" {
            return Ok(());
        }
        Err(Error::refused(format!(
            "{at} has gtid_mode = {gtid_mode} and enforce_gtid_consistency = {consistency}"
        ))
        .hint(switch_to_gtids(gtid_mode)))
    }

    /// Whether it applies transactions without GTIDs, and others if there are some.
    fn check_anonymous(&self, at: &str, needs: &Needs) -> Result<()> {
        let mode = &self.gtid_mode;
        let refused = |what: &str, hint: &str| {
            let what = format!("{at} has gtid_mode = {mode}: it applies no transactions {what}");
            Err(Error::refused(what).hint(hint))
        };
        match (mode.as_str(), needs.named) {
            ("ON", _) => refused(
                "without GTIDs, as the source's log has them",
                "SET GLOBAL gtid_mode = ON_PERMISSIVE, and ON again after the restore; or restore \
                 with --apply sql: each transaction gets a new GTID of the target's then",
            ),
            ("OFF", true) => refused(
                "with GTIDs, as the source's log has them besides others",
                "SET GLOBAL gtid_mode = OFF_PERMISSIVE, and OFF again after the restore",
            ),
            _ => Ok(()),
        }
    }

    fn check_writable(&self, at: &str) -> Result<()> {
        if !self.read_only {
            return Ok(());
        }
        Err(Error::refused(format!("{at} is read-only"))
            .hint("SET GLOBAL super_read_only = OFF; SET GLOBAL read_only = OFF"))
    }
}

/// Triggers and functions take SUPER where a binlog is written, unless the server trusts everybody
/// (error 1419). Whether there will be some is not known yet.
async fn check_trust(conn: &mut Conn, at: &str) -> Result<()> {
    let wrong: Vec<(String, String)> = ask::rows(
        conn,
        "SHOW GLOBAL VARIABLES WHERE (Variable_name = 'log_bin' AND Value = 'ON') \
         OR (Variable_name = 'log_bin_trust_function_creators' AND Value = 'OFF')",
        || format!("read the settings of {at}"),
    )
    .await?;
    if wrong.len() < 2 {
        return Ok(());
    }
    Err(Error::refused(format!(
        "{at} has log_bin_trust_function_creators = OFF: the account could create neither triggers \
         nor functions there"
    ))
    .hint("SET PERSIST log_bin_trust_function_creators = ON"))
}

/// What a MariaDB could be told to leave out of what it replays, or to do otherwise.
fn check_maria_settings(settings: &[(String, String)], way: &Way, at: &str) -> Result<()> {
    const OFF: [(&str, &str); 10] = [
        ("replicate_do_db", ""),
        ("replicate_do_table", ""),
        ("replicate_ignore_db", ""),
        ("replicate_ignore_table", ""),
        ("replicate_wild_do_table", ""),
        ("replicate_wild_ignore_table", ""),
        ("replicate_rewrite_db", ""),
        ("slave_skip_errors", "OFF"),
        ("read_only", "OFF"),
        ("sql_slave_skip_counter", "0"),
    ];
    /// What has to be right where the account may set nothing.
    const SET: [(&str, &str); 3] = [
        ("gtid_strict_mode", "OFF"),
        ("slave_exec_mode", "STRICT"),
        ("slave_run_triggers_for_rbr", "NO"),
    ];
    /// Else triggers and functions take SUPER where a binlog is written (error 1419).
    const LOGGED: [(&str, &str); 1] = [("log_bin_trust_function_creators", "ON")];
    let logs = settings.iter().any(|(name, value)| name == "log_bin" && value != "OFF");
    let set = if way.admin { &[][..] } else { &SET };
    let logged = if way.admin || !logs { &[][..] } else { &LOGGED };
    let wanted = || OFF.iter().chain(set).chain(logged);
    for (name, value) in settings {
        let name = name.to_ascii_lowercase();
        let wrong = wanted().find(|(off, wanted)| *off == name && wanted != value);
        if let Some((_, wanted)) = wrong {
            return Err(Error::refused(format!("{at} has {name} = {value}"))
                .hint(format!("SET GLOBAL {name} = '{wanted}', or start it without")));
        }
        // The second one for all but those with SUPER.
        if name == "secure_timestamp" && (value == "YES" || value == "SUPER" && !way.admin) {
            return Err(Error::refused(format!(
                "{at} has {name} = {value}: it would give every row the time of the restore"
            ))
            .hint("start it with secure_timestamp = REPLICATION"));
        }
    }
    Ok(())
}

/// Refuses an account that may not even load a baseline.
async fn check_privileges(conn: &mut Conn, needed: &[&[&'static str]], at: &str) -> Result<()> {
    let refused = |what: String| {
        Error::refused(format!("{at}: the account may not restore: {what}"))
            .hint("connect as an account with ALL ON *.* WITH GRANT OPTION, such as root")
    };
    let missing = match baseline::missing_privileges(conn, needed).await {
        Err(error) if error.class() == Class::Usage => return Err(refused(error.to_string())),
        missing => missing?,
    };
    if !missing.is_empty() {
        return Err(refused(format!("it lacks {}", missing.join(", "))));
    }
    let grants: Vec<String> =
        ask::rows(conn, "SHOW GRANTS", || "read our own grants".into()).await?;
    let can_grant =
        |line: &String| line.contains(" ON *.* TO ") && line.ends_with(" WITH GRANT OPTION");
    if !grants.iter().any(can_grant) {
        return Err(refused("it lacks WITH GRANT OPTION".into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::same("9.7.4", "9.7.4", true)]
    #[case::newer("26.7.0", "9.7.4", true)]
    #[case::patch_does_not_count("9.7.3", "9.7.4-2", true)]
    #[case::older("8.4.9", "9.7.0", false)]
    #[case::two_digits("8.10.0", "8.9.0", true)]
    #[case::other_flavour("11.4.2-MariaDB", "9.7.4", false)]
    #[case::nonsense("x", "9.7.4", false)]
    fn versions_are_compared_by_number(
        #[case] have: &str,
        #[case] needed: &str,
        #[case] fits: bool,
    ) {
        let needs = Needs { version: needed.into(), ..Needs::default() };
        let checked = check_version("it", have, &needs);
        assert_eq!(checked.is_ok(), fits);
        assert!(checked.err().is_none_or(|error| error.class() == Class::Refused));
    }
}
