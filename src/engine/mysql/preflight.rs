//! Whether a MySQL server, or a folder, can be restored into. Looks only, changes nothing.
//!
//! **Invariant:** every refusal here is given before anything was changed, and says what to do.

use super::apply::way::{self, Facts, Way};
use super::baseline::{self, SYSTEM_SCHEMAS};
use super::half::Half;
use super::load::CLIENT;
use super::{ask, server, tools};
use crate::engine::{Apply, Endpoint, Needs, tls};
use crate::error::{Class, Context, Error, Result};
use crate::record::Server;
use mysql_async::{Conn, Row};

/// What the account needs on a target whichever way the log is applied, each with what stands
/// for it.
const PRIVILEGES: [&[&str]; 18] = [
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

/// Looks at a running server, and decides how the log is applied there. What an interrupted
/// restore left is taken away, if that is wanted.
pub(super) async fn running(
    conn: &mut Conn,
    needs: &Needs,
    asked: Apply,
    at: &str,
    clean: bool,
) -> Result<(Server, Way)> {
    let asking = || format!("ask {at} what it is");
    let facts = "SELECT @@version, @@server_uuid, @@server_id";
    let facts = ask::first::<(String, String, u32)>(conn, facts, asking).await;
    if ask::server_code(&facts) == Some(1193) {
        // MariaDB has no server_uuid.
        return Err(Error::refused(format!("{at} is not a MySQL server"))
            .hint("a MySQL source is restored into MySQL, not into MariaDB"));
    }
    let (version, identity, server_id) = facts?
        .ok_or_else(|| Error::unavailable(format!("{at} does not say which version it is")))?;
    check_version(at, &version, needs)?;
    if needs.sources.contains(&identity) {
        return Err(Error::refused(format!("{at} is a source of this archive ({identity})"))
            .hint("restore into another server; a source is never written to"));
    }
    // First, as the other questions need some of them.
    let privileges = check_privileges(conn, at).await?;
    match Half::look(conn).await? {
        Some(half) if clean => {
            half.clean(conn).await.map_err(|error| error.context(format!("clean {at}")))?;
        }
        Some(half) => return Err(half.refusal(at)),
        None => {}
    }
    check_empty(conn, at).await?;
    let settings = settings(conn, at).await?;
    let facts = Facts {
        gtid_mode_on: settings.gtid_mode == "ON",
        scheduler_on: settings.scheduler == "ON",
        ..privileges
    };
    check_alone(conn, &facts, at).await?;
    let way = Way::choose(asked, &facts, at)?;
    if !way.sql {
        check_server_id(server_id, needs, at)?;
        settings.check_gtids(at)?;
    }
    settings.check_writable(at)?;
    Ok((Server { version, identity }, way))
}

fn check_server_id(server_id: u32, needs: &Needs, at: &str) -> Result<()> {
    if server_id != 0 && !needs.origins.contains(&server_id) {
        return Ok(());
    }
    let free = free_server_id(&needs.origins);
    Err(Error::refused(format!(
        "{at} has server_id {server_id}, as servers in the archive have: \
         it would drop their transactions as its own"
    ))
    .hint(format!("SET PERSIST server_id = {free}")))
}

/// Looks at the programs that are needed to fill a folder.
pub(super) async fn folder(needs: &Needs) -> Result<Server> {
    let version = tools::program_version(server::PROGRAM, server::PACKAGE).await?;
    check_version(&format!("{} on PATH", server::PROGRAM), &version, needs)?;
    Ok(Server { version, identity: String::new() })
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

/// Looks for the client program.
pub(super) async fn client(needs: &Needs) -> Result<()> {
    let version = tools::program_version(CLIENT, baseline::CLIENT_PACKAGE).await?;
    if tools::is_mariadb(&version) && !tools::is_mariadb(&needs.version) {
        return Err(Error::unavailable(format!(
            "{CLIENT} on PATH is MariaDB's ({version}) and cannot load a dump of MySQL"
        ))
        .hint(format!("install {}", baseline::CLIENT_PACKAGE)));
    }
    Ok(())
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
    if tools::is_mariadb(version) != tools::is_mariadb(&needs.version) {
        return Err(Error::refused(format!(
            "{what} is {version}, the source was {}",
            needs.version
        ))
        .hint("MySQL is restored into MySQL, MariaDB into MariaDB"));
    }
    let number = |text: &str| {
        tools::major_minor(text)
            .ok_or_else(|| Error::refused(format!("{text:?} is no version that can be compared")))
    };
    if number(version)? < number(&needs.version)? {
        return Err(Error::refused(format!(
            "{what} is {version}, older than the source ({})",
            needs.version
        ))
        .hint("restore into a server of the source's version or a newer one"));
    }
    Ok(())
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

/// Neither a replica itself, nor a source of others.
async fn check_alone(conn: &mut Conn, facts: &Facts, at: &str) -> Result<()> {
    let channels: Vec<Row> =
        ask::rows(conn, "SHOW REPLICA STATUS", || format!("ask {at} for replication")).await?;
    if !channels.is_empty() {
        return Err(Error::refused(format!("{at} is configured as a replica"))
            .hint("STOP REPLICA; RESET REPLICA ALL"));
    }
    if facts.lacks_to_replicate.contains(&"REPLICATION SLAVE") {
        // The account may not see them.
        return Ok(());
    }
    let replicas: Vec<Row> =
        ask::rows(conn, "SHOW REPLICAS", || format!("ask {at} for its replicas")).await?;
    if !replicas.is_empty() {
        return Err(Error::refused(format!("{at} has {} replicas", replicas.len()))
            .hint("detach them first: they would take over everything that is restored"));
    }
    Ok(())
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
    fn check_gtids(&self, at: &str) -> Result<()> {
        let Self { gtid_mode, consistency, .. } = self;
        if gtid_mode == "ON" && consistency == "ON" {
            return Ok(());
        }
        let steps = ["OFF", "OFF_PERMISSIVE", "ON_PERMISSIVE", "ON"];
        let from = steps.iter().position(|step| step == gtid_mode).unwrap_or(0) + 1;
        let modes = steps.get(from..).unwrap_or_default().iter();
        let statements = std::iter::once("SET PERSIST enforce_gtid_consistency = ON".to_owned())
            .chain(modes.map(|mode| format!("SET PERSIST gtid_mode = {mode}")));
        Err(Error::refused(format!(
            "{at} has gtid_mode = {gtid_mode} and enforce_gtid_consistency = {consistency}"
        ))
        .hint(statements.collect::<Vec<_>>().join("; ")))
    }

    fn check_writable(&self, at: &str) -> Result<()> {
        if !self.read_only {
            return Ok(());
        }
        Err(Error::refused(format!("{at} is read-only"))
            .hint("SET GLOBAL super_read_only = OFF; SET GLOBAL read_only = OFF"))
    }
}

/// What the account may. Refuses one that may not even load a baseline.
async fn check_privileges(conn: &mut Conn, at: &str) -> Result<Facts> {
    let refused = |what: String| {
        Error::refused(format!("{at}: the account may not restore: {what}"))
            .hint("connect as an account with ALL ON *.* WITH GRANT OPTION, such as root")
    };
    let missing = match baseline::missing_privileges(conn, &PRIVILEGES).await {
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
    Ok(Facts {
        lacks_to_replicate: baseline::missing_privileges(conn, &way::TO_REPLICATE).await?,
        lacks_to_run: baseline::missing_privileges(conn, &way::TO_RUN).await?,
        ..Facts::default()
    })
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
