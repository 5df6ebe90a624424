//! Where a capture begins: what the source says about itself, against what the archive has.
//!
//! Nothing here reads the log. What SQL can prove is proved here; what only the bytes can prove
//! is left to the pump as a hold on its first word.
//!
//! **Invariant:** a place is continued only if the same server still has that file at least that
//! long and has executed everything that was archived; everything else is a break, with a reason.
//! Without GTIDs, what was executed proves nothing: the file is always walked through, and the bytes
//! before the place have to be those that were archived.

use super::executed::Executed;
use super::flavor::{Family, Flavor};
use super::{servers, sql};
use crate::clock::Timestamp;
use crate::engine::Endpoint;
use crate::error::{Error, Result};
use crate::position::Position;
use mysql_async::{Conn, Row};
use std::time::Duration;

/// The oldest MySQL whose transactions say how long they are and when they were committed.
const OLDEST: (u32, u32, u32) = (8, 0, 2);

/// The oldest MariaDB that logs the two halves of an XA transaction.
const OLDEST_MARIA: (u32, u32, u32) = (10, 5, 0);

/// From here on `SHOW MASTER STATUS` is called `SHOW BINARY LOG STATUS`.
const NEW_WORDS: (u32, u32, u32) = (8, 2, 0);

/// How long a transaction that was received may take until it counts as executed. A source sends
/// it before it is committed there, and a semi-synchronous one waits 10 s for its replicas.
const COMMIT_PATIENCE: Duration = Duration::from_secs(15);

/// How often the source's clock is read in one measurement; the quickest reading counts.
const CLOCK_READINGS: u32 = 5;

/// How long a question beside the live stream may take: the stream waits for it.
const ASIDE_TIMEOUT: Duration = Duration::from_secs(3);

/// What a source says about itself.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// `@@version`.
    pub(crate) version: String,
    /// Which server that is.
    pub(crate) flavor: Flavor,
    /// What makes it this server: see [`identity`].
    pub(crate) identity: String,
    /// `@@server_id`.
    pub(crate) server_id: u32,
    /// `@@gtid_executed`, or MariaDB's `@@gtid_binlog_state`.
    pub(crate) executed: Executed,
    /// `@@gtid_purged`: what it has executed and has in no file, because the file is gone or
    /// because it was only told so. Nothing with MariaDB, whose files say it all.
    pub(crate) purged: Executed,
    /// The file that it writes, and how far.
    pub(crate) current: (String, u64),
    /// Whether every transaction gets a GTID (`gtid_mode=ON`), as with MariaDB always.
    pub(crate) named: bool,
    /// How often it was told to RESET something since it was started. Only compared.
    pub(crate) resets: u64,
    /// How far its clock is ahead of this host's, in µs; negative if it is behind.
    pub(crate) skew_micros: i64,
    /// The statement that shows the current file.
    pub(crate) status: &'static str,
    /// All of its files with their sizes, in order.
    pub(crate) files: Vec<(String, u64)>,
}

/// Asks a source about itself.
///
/// # Errors
/// Refused, if it cannot be captured as it is; unavailable, if it does not answer.
pub(crate) async fn look(conn: &mut Conn, peer: &str) -> Result<Facts> {
    let ask = "SELECT @@GLOBAL.version, @@GLOBAL.server_id, @@GLOBAL.log_bin";
    let (version, server_id, log_bin): (String, u32, bool) = sql::row(conn, peer, ask).await?;
    let flavor = check_version(peer, &version)?;
    if !log_bin {
        return Err(Error::refused(format!("{peer} writes no binary log"))
            .hint("start the server with log_bin on"));
    }
    let (mut named, mut resets) = (true, 0);
    if flavor.is_maria() {
        check_maria(conn, peer).await?;
    } else {
        // Before anything else is looked at: a RESET that comes later shows.
        resets = self::resets(conn, peer).await?;
        named = gives_gtids(conn, peer).await?;
        check_logs_all(conn, peer).await?;
    }
    let identity = identity(conn, peer, flavor).await?;
    let status = status_words(flavor);
    check_filters(conn, peer, status).await?;
    let current = end_of_log(conn, peer, status).await?;
    // The list is read after the current file, so it has that one, unless it was purged since.
    let files: Vec<Row> = sql::rows(conn, peer, "SHOW BINARY LOGS").await?;
    let files = files.iter().map(|row| file(peer, row)).collect::<Result<_>>()?;
    let executed = executed(conn, peer, flavor).await?;
    let purged = if flavor.is_maria() {
        Executed::default()
    } else {
        let (purged,): (String,) = sql::row(conn, peer, "SELECT @@GLOBAL.gtid_purged").await?;
        purged.parse()?
    };
    let skew_micros = skew(conn, peer).await?;
    Ok(Facts {
        version,
        flavor,
        identity,
        server_id,
        executed,
        purged,
        current,
        named,
        resets,
        skew_micros,
        status,
        files,
    })
}

/// The statement that shows the current file.
pub(super) fn status_words(flavor: Flavor) -> &'static str {
    let new_words = !flavor.is_maria() && flavor.number >= NEW_WORDS;
    if new_words { "SHOW BINARY LOG STATUS" } else { "SHOW MASTER STATUS" }
}

/// Databases that a server was told to log, or not to: each setting with what it names.
pub(super) async fn filters(
    conn: &mut Conn,
    peer: &str,
    status: &str,
) -> Result<Vec<(&'static str, String)>> {
    let row: Row = sql::row(conn, peer, status).await?;
    let columns = [("binlog_do_db", "Binlog_Do_DB"), ("binlog_ignore_db", "Binlog_Ignore_DB")];
    columns
        .into_iter()
        .map(|(name, column)| match row.get_opt::<String, _>(column) {
            Some(Ok(databases)) => Ok((name, databases)),
            _ => Err(Error::unavailable(format!("{peer} does not say {column}"))),
        })
        .filter(|found| !found.as_ref().is_ok_and(|(_, databases)| databases.is_empty()))
        .collect()
}

/// What is not logged would come back as it was at the baseline, older than everything else.
async fn check_filters(conn: &mut Conn, peer: &str, status: &str) -> Result<()> {
    let filters = filters(conn, peer, status).await?;
    let Some((name, databases)) = filters.first() else { return Ok(()) };
    Err(Error::refused(format!("{peer} has {name}={databases}: its log does not have everything"))
        .hint(format!("start the server without {name}")))
}

/// A replica that does not log what it replicates has none of it in its files.
pub(super) async fn check_logs_all(conn: &mut Conn, peer: &str) -> Result<()> {
    let ask = "SHOW GLOBAL VARIABLES WHERE Variable_name IN \
               ('log_replica_updates', 'log_slave_updates') AND Value = 'OFF'";
    if sql::rows::<Row>(conn, peer, ask).await?.is_empty()
        || !servers::replicates(conn, peer).await?
    {
        return Ok(());
    }
    Err(Error::refused(format!("{peer} is a replica that does not log what it replicates")).hint(
        "start it with log_replica_updates=ON, or capture the server that it replicates from",
    ))
}

/// Whether every transaction of a MySQL gets a GTID.
pub(crate) async fn gives_gtids(conn: &mut Conn, peer: &str) -> Result<bool> {
    let (mode,): (String,) = sql::row(conn, peer, "SELECT @@GLOBAL.gtid_mode").await?;
    Ok(mode == "ON")
}

/// How often a MySQL was told to RESET something: its log, among other things.
async fn resets(conn: &mut Conn, peer: &str) -> Result<u64> {
    let (_, times): (String, u64) =
        sql::row(conn, peer, "SHOW GLOBAL STATUS LIKE 'Com_reset'").await?;
    Ok(times)
}

/// What a MariaDB must not have switched on. A dump from the middle of an encrypted file has an
/// event that the file does not have there, so offsets would no longer be those of the file; a
/// binlog in InnoDB (from 12.3 on) has neither files nor offsets.
pub(super) async fn check_maria(conn: &mut Conn, peer: &str) -> Result<()> {
    let ask = "SHOW GLOBAL VARIABLES WHERE Variable_name IN \
               ('encrypt_binlog', 'binlog_storage_engine') AND Value NOT IN ('', 'OFF')";
    let odd: Vec<(String, String)> = sql::rows(conn, peer, ask).await?;
    let Some((name, value)) = odd.first() else { return Ok(()) };
    Err(Error::refused(format!("{peer} has {name}={value}, which cannot be captured"))
        .hint(format!("start the server without {name}; pitr reads a binlog of plain files")))
}

/// What makes a server this one. MySQL has its `server_uuid`. MariaDB keeps nothing of the kind in
/// its data: `server_uid` is a hash of its network address and port, and not there before 10.11.
/// Where it says the same, it still need not be the same data; the bytes of the log prove that.
pub(crate) async fn identity(conn: &mut Conn, peer: &str, flavor: Flavor) -> Result<String> {
    if !flavor.is_maria() {
        let (uuid,): (String,) = sql::row(conn, peer, "SELECT @@GLOBAL.server_uuid").await?;
        return Ok(uuid);
    }
    let ask = "SELECT @@GLOBAL.server_id, @@GLOBAL.hostname, @@GLOBAL.port, @@GLOBAL.datadir";
    let (id, host, port, datadir): (u32, String, u16, String) = sql::row(conn, peer, ask).await?;
    let ask = "SHOW GLOBAL VARIABLES LIKE 'server_uid'";
    let uid: Vec<(String, String)> = sql::rows(conn, peer, ask).await?;
    let uid = uid.into_iter().next().map_or_else(String::new, |(_, uid)| format!("{uid} "));
    Ok(format!("{uid}{id}@{host}:{port}{datadir}"))
}

/// The first two columns of a row that begins with a file and a number.
fn file(peer: &str, row: &Row) -> Result<(String, u64)> {
    match (row.get_opt(0), row.get_opt(1)) {
        (Some(Ok(name)), Some(Ok(number))) => Ok((name, number)),
        _ => Err(Error::unavailable(format!("{peer}: a list of files of another form"))),
    }
}

/// The file that the source writes, and how far, as its statement for that says.
pub(crate) async fn end_of_log(conn: &mut Conn, peer: &str, status: &str) -> Result<(String, u64)> {
    let row: Row = sql::row(conn, peer, status).await?;
    file(peer, &row)
}

async fn executed(conn: &mut Conn, peer: &str, flavor: Flavor) -> Result<Executed> {
    let ask = if flavor.is_maria() {
        "SELECT @@GLOBAL.gtid_binlog_state"
    } else {
        "SELECT @@GLOBAL.gtid_executed"
    };
    let (text,): (String,) = sql::row(conn, peer, ask).await?;
    text.parse()
}

pub(super) fn check_version(peer: &str, version: &str) -> Result<Flavor> {
    let Some(flavor) = Flavor::parse(version) else {
        return Err(Error::refused(format!("{peer} gives {version:?} as its version")));
    };
    let (oldest, why) = match flavor.family {
        Family::MySql => {
            (OLDEST, "its transactions carry no commit times; pitr needs MySQL 8.0.2 or newer")
        }
        Family::MariaDb => {
            (OLDEST_MARIA, "it does not log XA PREPARE; pitr needs MariaDB 10.5 or newer")
        }
    };
    if flavor.number < oldest {
        let family = flavor.family;
        return Err(
            Error::refused(format!("{peer} is {family} {version}, which is too old")).hint(why)
        );
    }
    Ok(flavor)
}

/// Where a dump begins, and what has to be seen there before its bytes may be handed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Start {
    /// At the beginning of the current file: a first capture, or one behind a break.
    Begin {
        /// Why what was archived is not continued; `None` if nothing was.
        broken: Option<String>,
    },
    /// At exactly the place asked for, in the middle of a file of a server that is known to be
    /// the same.
    Middle {
        /// The place.
        at: Position,
        /// Everything executed before it.
        gtids: Executed,
    },
    /// At the beginning of the place's file, which is read again up to it: the bytes must prove
    /// that it is the same log.
    Walk {
        /// The place.
        at: Position,
        /// Everything executed before it.
        gtids: Executed,
    },
    /// At the beginning of this file, whose PREVIOUS_GTIDS must be what was executed before the
    /// place.
    File {
        /// The place: the beginning of that file, or the end of the one before.
        at: Position,
        /// Everything executed before it.
        gtids: Executed,
        /// The file.
        file: String,
    },
    /// In this file of another server, behind everything that was archived: it is read from its
    /// beginning, and what the archive has is left out.
    Join {
        /// Everything archived.
        gtids: Executed,
        /// The file: the newest before which nothing stands that the archive lacks.
        file: String,
    },
}

/// What is known of the server that the place asked for is of.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Known<'a> {
    /// Its identity, if this process has read that place from it.
    pub(crate) same: Option<&'a str>,
    /// Its identity as the archive has it.
    pub(crate) archived: Option<&'a str>,
    /// Whether the archive ends with transactions without GTIDs.
    pub(crate) anonymous: bool,
}

/// Decides where to begin.
///
/// With MariaDB, SQL proves little: another identity may be the same data, and a sequence number
/// that went back need not be a loss. Whatever SQL leaves open there, the walk has to prove.
///
/// # Errors
/// Corrupt, if the place asked for makes no sense. Unavailable, if the source does not answer.
pub(crate) async fn decide(
    conn: &mut Conn,
    peer: &str,
    facts: &Facts,
    resume: Option<Position>,
    known: Known<'_>,
) -> Result<Start> {
    let Some(at) = resume else { return Ok(Start::Begin { broken: None }) };
    let gtids: Executed = at
        .gtids
        .parse()
        .map_err(|error: Error| Error::corrupt(format!("archived position {at}")).source(error))?;
    let broken = |reason: String| Ok(Start::Begin { broken: Some(reason) });
    let maria = facts.flavor.is_maria();
    let anonymous = known.anonymous || !facts.named;
    let same = known.same.filter(|_| !anonymous);
    if let Some(identity) = if anonymous { known.archived } else { same }
        && identity != facts.identity
        && !maria
    {
        return broken(format!(
            "{peer} is another server now: its server_uuid is {}, it was {identity}",
            facts.identity
        ));
    }
    let index = facts.files.iter().position(|(name, _)| *name == at.log);
    let fits = |index: &usize| facts.files.get(*index).is_some_and(|(_, size)| *size >= at.offset);
    let Some(index) = index.filter(fits) else {
        let lost = gtids.subtract(&facts.executed);
        return broken(if !lost.is_empty() {
            not_executed(peer, &lost)
        } else if index.is_none() && is_behind(&facts.current.0, &at.log) {
            format!(
                "{peer} has no {} any more and writes to {}: it was reset, or restored from a backup",
                at.log, facts.current.0
            )
        } else if index.is_none() {
            format!("{peer} has purged {} before all of it was captured", at.log)
        } else {
            format!("{peer} has another {}, which is shorter than what was captured", at.log)
        });
    };
    let told = facts.purged.subtract(&gtids);
    if !maria && !told.is_empty() {
        return broken(format!(
            "{peer} has in no file what it says that it executed ({told}): it was told so by \
             gtid_purged, or the files were purged before they were captured"
        ));
    }
    let same = same.is_some_and(|identity| identity == facts.identity);
    let known = if maria {
        same && gtids.is_subset(&facts.executed) && u32::try_from(at.offset).is_ok()
    } else {
        match not_yet_executed(conn, peer, &gtids, facts).await? {
            Missing::Nothing => same,
            // They may be committed when the answer comes that only the stream can give. What the
            // log holds up to the place proves more than what was executed does.
            Missing::Waits => false,
            Missing::Lost(lost) => return broken(not_executed(peer, &lost)),
        }
    };
    let size = facts.files.get(index).map_or(0, |(_, size)| *size);
    let next = facts.files.get(index + 1).map(|(name, _)| name.clone());
    Ok(match (known, next) {
        _ if at.offset == 0 => Start::File { file: at.log.clone(), at, gtids },
        (true, Some(file)) if at.offset == size => Start::File { file, at, gtids },
        (true, _) => Start::Middle { at, gtids },
        (false, _) => Start::Walk { at, gtids },
    })
}

/// Whether a file stands before another one, by their numbers.
fn is_behind(file: &str, other: &str) -> bool {
    let number = |name: &str| name.rsplit_once('.')?.1.parse::<u64>().ok();
    matches!((number(file), number(other)), (Some(file), Some(other)) if file < other)
}

/// Finds where to go on in the log of another server than the archive ends with.
///
/// # Errors
/// Unavailable, if it does not have all that is archived any more, or does not answer.
pub(crate) async fn join(
    conn: &mut Conn,
    peer: &str,
    facts: &Facts,
    archived: Executed,
) -> Result<Start> {
    let (lost, purged) = (archived.subtract(&facts.executed), facts.purged.subtract(&archived));
    if !lost.is_empty() || !purged.is_empty() {
        return Err(Error::unavailable(format!(
            "{peer} changed while it was looked at: it lacks {{{lost}}}, and has purged {{{purged}}}"
        )));
    }
    // Each file's list holds that of the file before it.
    let (mut low, mut high) = (0, facts.files.len());
    while high - low > 1 {
        let middle = usize::midpoint(low, high);
        let Some((file, _)) = facts.files.get(middle) else { break };
        if previous(conn, peer, file).await?.is_subset(&archived) {
            low = middle;
        } else {
            high = middle;
        }
    }
    let (file, _) = facts.files.get(low).ok_or_else(|| {
        Error::unavailable(format!("{peer} lists no files")).hint("is log_bin on there?")
    })?;
    Ok(Start::Join { gtids: archived, file: file.clone() })
}

/// Everything executed before a file.
async fn previous(conn: &mut Conn, peer: &str, file: &str) -> Result<Executed> {
    // FORMAT_DESCRIPTION comes first.
    let ask = format!("SHOW BINLOG EVENTS IN '{}' LIMIT 2", file.replace('\'', "''"));
    let events: Vec<Row> = sql::rows(conn, peer, &ask).await?;
    let text =
        |row: &Row, column| row.get_opt::<String, _>(column).and_then(std::result::Result::ok);
    let is_list = |row: &&Row| text(row, "Event_type").as_deref() == Some("Previous_gtids");
    let list = events.iter().find(is_list).and_then(|row| text(row, "Info")).ok_or_else(|| {
        Error::unavailable(format!("{peer} does not say what was executed before {file}"))
    })?;
    list.parse()
}

fn not_executed(peer: &str, lost: &Executed) -> String {
    format!(
        "{peer} has lost transactions that were captured ({lost}): it was reset, restored from a \
         backup, or crashed before they were on its disk"
    )
}

/// What of the archive the source has not executed.
enum Missing {
    Nothing,
    /// Something, and commits of a semi-synchronous source wait for an answer.
    Waits,
    /// This, and nothing says that it will be.
    Lost(Executed),
}

/// What of `gtids` the source has not executed, and does not execute soon.
async fn not_yet_executed(
    conn: &mut Conn,
    peer: &str,
    gtids: &Executed,
    facts: &Facts,
) -> Result<Missing> {
    let mut lost = gtids.subtract(&facts.executed);
    let begun = tokio::time::Instant::now();
    while !lost.is_empty() {
        if commits_wait(conn, peer).await? {
            return Ok(Missing::Waits);
        }
        if begun.elapsed() > COMMIT_PATIENCE {
            return Ok(Missing::Lost(lost));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        lost = gtids.subtract(&executed(conn, peer, facts.flavor).await?);
    }
    Ok(Missing::Nothing)
}

/// Whether commits wait for the answer of a semi-synchronous replica.
async fn commits_wait(conn: &mut Conn, peer: &str) -> Result<bool> {
    let ask = "SHOW GLOBAL STATUS LIKE 'Rpl_semi_sync%wait_sessions'";
    let rows: Vec<(String, String)> = sql::rows(conn, peer, ask).await?;
    Ok(rows.iter().any(|(_, sessions)| sessions != "0"))
}

/// How far the source's clock is ahead of this host's, in µs.
pub(super) async fn skew(conn: &mut Conn, peer: &str) -> Result<i64> {
    let mut best: Option<(Duration, i64)> = None;
    for _ in 0..CLOCK_READINGS {
        let before = Timestamp::now();
        let source = clock(conn, peer).await?;
        let after = Timestamp::now();
        let middle = before.as_micros().midpoint(after.as_micros());
        let took = after.since(before);
        if best.is_none_or(|(quickest, _)| took < quickest) {
            best = Some((took, source.as_micros().saturating_sub(middle)));
        }
    }
    Ok(best.map_or(0, |(_, skew)| skew))
}

/// The source's clock.
pub(crate) async fn clock(conn: &mut Conn, peer: &str) -> Result<Timestamp> {
    // Unlike NOW(), UTC_TIMESTAMP() does not repeat itself when the clocks go back.
    let ask = "SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))";
    let (micros,): (i64,) = sql::row(conn, peer, ask).await?;
    Ok(Timestamp::from_micros(micros))
}

/// A connection beside the dump, which asks whether the source still writes the log that is read.
///
/// A dump does not notice that the source was reset: it waits at the end of a file that is gone,
/// and goes on sending heartbeats.
#[derive(Debug)]
pub(crate) struct Aside<'a> {
    endpoint: &'a Endpoint,
    conn: Option<Conn>,
}

impl<'a> Aside<'a> {
    /// Asks over `conn`, if there is one, until that breaks; then over a new one.
    pub(crate) fn new(endpoint: &'a Endpoint, conn: Option<Conn>) -> Self {
        Self { endpoint, conn }
    }

    /// Everything that the source has executed.
    ///
    /// # Errors
    /// Unavailable, if there is no answer in time; the next question gets a new connection.
    pub(crate) async fn executed(&mut self, facts: &Facts) -> Result<Executed> {
        let peer = self.endpoint.to_string();
        let ask = async {
            let mut conn = match self.conn.take() {
                Some(conn) => conn,
                None => sql::connect(self.endpoint).await?,
            };
            let executed = executed(&mut conn, &peer, facts.flavor).await?;
            self.conn = Some(conn);
            Ok(executed)
        };
        match tokio::time::timeout(ASIDE_TIMEOUT, ask).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::unavailable(format!("{peer}: no answer in time"))),
        }
    }

    /// How often the source was told to RESET something.
    ///
    /// # Errors
    /// Unavailable, if there is no answer in time; the next question gets a new connection.
    pub(crate) async fn resets(&mut self) -> Result<u64> {
        let peer = self.endpoint.to_string();
        let ask = async {
            let mut conn = match self.conn.take() {
                Some(conn) => conn,
                None => sql::connect(self.endpoint).await?,
            };
            let resets = resets(&mut conn, &peer).await?;
            self.conn = Some(conn);
            Ok(resets)
        };
        match tokio::time::timeout(ASIDE_TIMEOUT, ask).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::unavailable(format!("{peer}: no answer in time"))),
        }
    }

    /// An instant of the source's clock, and the file it writes and how far, no earlier than that.
    ///
    /// The server reads its end under the lock under which commits take their timestamps and are
    /// written (`LOCK_log`), so everything committed up to that instant lies before that end.
    ///
    /// # Errors
    /// Unavailable, if there is no answer in time; the next question gets a new connection.
    pub(crate) async fn end_of_log(&mut self, facts: &Facts) -> Result<(Timestamp, String, u64)> {
        let peer = self.endpoint.to_string();
        let ask = async {
            let mut conn = match self.conn.take() {
                Some(conn) => conn,
                None => sql::connect(self.endpoint).await?,
            };
            let at = clock(&mut conn, &peer).await?;
            let (file, position) = end_of_log(&mut conn, &peer, facts.status).await?;
            self.conn = Some(conn);
            Ok((at, file, position))
        };
        match tokio::time::timeout(ASIDE_TIMEOUT, ask).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::unavailable(format!("{peer}: no answer in time"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("9.7.4-2", true)]
    #[case("8.0.2", true)]
    #[case("26.7.0", true)]
    #[case("8.0.1-dmr", false)]
    #[case("5.7.44-log", false)]
    #[case("10.11.19-MariaDB-log", true)]
    #[case("5.5.5-10.5.1-MariaDB", true)]
    #[case("11.8.3-MariaDB-ubu2404", true)]
    #[case("10.4.34-MariaDB-log", false)]
    #[case("", false)]
    fn only_servers_that_write_what_is_needed_are_captured(
        #[case] version: &str,
        #[case] taken: bool,
    ) {
        assert_eq!(check_version("db", version).is_ok(), taken);
    }
}
