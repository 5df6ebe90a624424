//! `pitr.toml`: from text to checked values. Every default is a documented constant here.
//!
//! An unknown key is an error that names the nearest known one: a setting that is misspelt must
//! not be silently without effect. For the same reason a key of a later version is not accepted.

use crate::capture::Sealing;
use crate::clock::{Tz, host_zone};
use crate::engine::{self, Aof, Endpoint, Secret, SourceOptions, TlsMode, TlsOptions};
use crate::error::{Class, Context, Error, Result};
use crate::manifest::{EngineKind, names};
use crate::retention::Policy;
use chrono::NaiveTime;
use serde::Deserialize;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the configuration is looked for when neither `-c` nor `$PITR_CONFIG` names it.
pub const DEFAULT_PATHS: [&str; 2] = ["./pitr.toml", "/etc/pitr/pitr.toml"];

/// Raw bytes in a segment: a few seconds of a busy source, and quick to read as a whole.
pub const SEGMENT_MAX_BYTES: u64 = 64 << 20;

/// Age of a segment, in seconds: what is not sealed has no off-site copy yet.
pub const SEGMENT_MAX_SECONDS: u64 = 600;

/// zstd level: on binlogs the next levels cost twice the time for a few percent.
pub const SEGMENT_LEVEL: i32 = 1;

/// When the daily baseline is taken, civil time.
pub const BASELINE_AT: &str = "02:00";

/// Whether baselines of MySQL carry row counts and digests: only so a drill compares with the source.
pub const BASELINE_DIGESTS: bool = true;

/// How often the clock of a Redis source is sampled, in ms: how exactly an instant can be hit.
pub const SAMPLE_MS: u64 = 100;

/// The window of retention, in days: time to notice what went wrong, with a weekend and a holiday.
pub const RETENTION_DAYS: u32 = 14;

/// The newest baselines that stay, whatever their age: if one is damaged, there is another one.
pub const RETENTION_MIN_BASELINES: usize = 2;

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it came from.
    pub path: PathBuf,
    /// Folder of the archive.
    pub archive: PathBuf,
    /// Zone of civil times.
    pub zone: Tz,
    /// The sources, in the order in which they are restored.
    pub sources: Vec<SourceOptions>,
    /// When the daily baseline is taken.
    pub baseline_at: NaiveTime,
    /// Zone of `baseline_at`.
    pub baseline_zone: Tz,
    /// What is kept.
    pub retention: Policy,
    /// Rehearsals.
    pub drill: Drill,
    /// When segments are sealed.
    pub sealing: Sealing,
    /// zstd level of segments and baselines.
    pub level: i32,
}

/// `[drill]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drill {
    /// How often the daemon rehearses; never by itself, if it is not said.
    pub every: Option<Duration>,
    /// Where the scratch folder is made.
    pub dir: Option<PathBuf>,
    /// Whether the daemon writes a [`canary`](crate::engine::canary) into each source.
    pub canary: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    archive: ArchiveTable,
    tz: Option<String>,
    #[serde(default)]
    source: Vec<SourceTable>,
    #[serde(default)]
    baseline: BaselineTable,
    #[serde(default)]
    retention: RetentionTable,
    #[serde(default)]
    segment: SegmentTable,
    #[serde(default)]
    drill: DrillTable,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ArchiveTable {
    dir: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceTable {
    name: String,
    engine: EngineKind,
    url: Option<String>,
    urls: Option<Vec<String>>,
    password_file: Option<PathBuf>,
    password_command: Option<String>,
    credential: Option<String>,
    tls: Option<TlsOptions>,
    dump_command: Option<String>,
    databases: Option<Vec<String>>,
    semi_sync: Option<bool>,
    sample_ms: Option<u64>,
    capture: Option<CaptureWay>,
    aof_dir: Option<PathBuf>,
}

/// How a Redis source is captured.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum CaptureWay {
    Stream,
    Aof,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct BaselineTable {
    at: Option<String>,
    tz: Option<String>,
    digests: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RetentionTable {
    days: Option<u32>,
    min_baselines: Option<usize>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct DrillTable {
    every: Option<String>,
    dir: Option<PathBuf>,
    #[serde(default)]
    canary: bool,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct SegmentTable {
    max_bytes: Option<u64>,
    max_seconds: Option<u64>,
    level: Option<i32>,
}

impl Config {
    /// Finds and reads the configuration: `given`, else `$PITR_CONFIG`, else the default paths.
    pub fn load(given: Option<&Path>) -> Result<Self> {
        let path = match given {
            Some(path) => path.to_owned(),
            None => match std::env::var_os("PITR_CONFIG") {
                Some(path) => PathBuf::from(path),
                None => DEFAULT_PATHS.iter().map(PathBuf::from).find(|p| p.exists()).ok_or_else(
                    || {
                        Error::usage(
                            "no configuration: neither ./pitr.toml nor /etc/pitr/pitr.toml",
                        )
                        .hint("name it with `-c FILE`; README.md shows a minimal one")
                    },
                )?,
            },
        };
        let text = std::fs::read_to_string(&path)
            .class(Class::Usage, || format!("read {}", path.display()))
            .map_err(|error| {
                error.hint("name another file with `-c FILE`; README.md shows a minimal one")
            })?;
        Self::parse(&text, &path).map_err(|error| error.context(path.display()))
    }

    fn parse(text: &str, path: &Path) -> Result<Self> {
        let file: File = toml::from_str(text).map_err(|error| explain(text, &error))?;
        let zone = match &file.tz {
            Some(name) => parse_zone(name)?,
            None => host_zone(),
        };
        let mut sources = Vec::new();
        let digests = file.baseline.digests.unwrap_or(BASELINE_DIGESTS);
        for table in &file.source {
            let source = source(table, path, &file.archive.dir)
                .map_err(|error| error.context(format!("source {:?}", table.name)))?;
            sources.push(SourceOptions { digests, ..source });
        }
        for (index, source) in sources.iter().enumerate() {
            if sources.iter().take(index).any(|other| other.name == source.name) {
                return Err(Error::usage(format!("two sources are named {:?}", source.name)));
            }
        }
        // Databases before caches: what refers comes after what is referred to.
        sources.sort_by_key(|source| source.engine != EngineKind::Mysql);
        let at = file.baseline.at.as_deref().unwrap_or(BASELINE_AT);
        let baseline_at = NaiveTime::parse_from_str(at, "%H:%M").map_err(|_| {
            Error::usage(format!("baseline.at is not a time of day: {at:?}"))
                .hint("write it like at = \"02:00\"")
        })?;
        let baseline_zone = match &file.baseline.tz {
            Some(name) => parse_zone(name)?,
            None => zone,
        };
        let days = file.retention.days.unwrap_or(RETENTION_DAYS);
        let min_baselines = file.retention.min_baselines.unwrap_or(RETENTION_MIN_BASELINES);
        if days == 0 || min_baselines == 0 {
            return Err(Error::usage("retention: days and min_baselines are at least 1"));
        }
        let max_bytes = file.segment.max_bytes.unwrap_or(SEGMENT_MAX_BYTES);
        let max_seconds = file.segment.max_seconds.unwrap_or(SEGMENT_MAX_SECONDS);
        let level = file.segment.level.unwrap_or(SEGMENT_LEVEL);
        if max_bytes == 0 || max_seconds == 0 || !(1..=19).contains(&level) {
            return Err(Error::usage(
                "segment: max_bytes and max_seconds are at least 1, level is 1 to 19",
            ));
        }
        let every = file.drill.every.as_deref().map(parse_every).transpose()?;
        Ok(Self {
            path: path.to_owned(),
            archive: file.archive.dir,
            zone,
            sources,
            baseline_at,
            baseline_zone,
            retention: Policy { days, min_baselines },
            drill: Drill { every, dir: file.drill.dir, canary: file.drill.canary },
            sealing: Sealing { max_bytes, max_age: Duration::from_secs(max_seconds) },
            level,
        })
    }

    /// The source of that name.
    ///
    /// # Errors
    /// Usage, naming the nearest one.
    pub fn source(&self, name: &str) -> Result<&SourceOptions> {
        self.sources.iter().find(|source| source.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.sources.iter().map(|s| s.name.as_str()).collect();
            let error = Error::usage(format!("no source is named {name:?}"));
            match nearest(name, &names) {
                Some(near) => error.hint(format!("did you mean {near:?}?")),
                None => error.hint(format!("the sources are: {}", names.join(", "))),
            }
        })
    }
}

/// Reads a span of time: `7d`, `12h`, `90m`.
fn parse_every(text: &str) -> Result<Duration> {
    let wrong = || {
        Error::usage(format!("drill.every is no span of time: {text:?}"))
            .hint("write it like every = \"7d\", \"12h\" or \"90m\"")
    };
    let (number, seconds) = match text.trim().split_at_checked(text.trim().len().saturating_sub(1))
    {
        Some((number, "d")) => (number, 86_400),
        Some((number, "h")) => (number, 3_600),
        Some((number, "m")) => (number, 60),
        _ => return Err(wrong()),
    };
    let count: u64 = number.trim().parse().map_err(|_| wrong())?;
    match count.checked_mul(seconds) {
        Some(seconds @ 1..) => Ok(Duration::from_secs(seconds)),
        _ => Err(wrong()),
    }
}

fn source(table: &SourceTable, config: &Path, archive: &Path) -> Result<SourceOptions> {
    check_name(&table.name)?;
    let mut endpoints = endpoints(table)?;
    let has_passwords = endpoints.iter().any(|endpoint| !endpoint.password.is_empty());
    if has_passwords {
        refuse_if_readable(config, "the configuration holds a password")?;
    }
    let given = [
        table.password_file.is_some(),
        table.password_command.is_some(),
        table.credential.is_some(),
        has_passwords,
    ];
    if given.iter().filter(|given| **given).count() > 1 {
        return Err(Error::usage("more than one password is given")
            .hint("keep one of password_file, password_command, credential and the url's"));
    }
    if let Some(password) = password(table)? {
        for endpoint in &mut endpoints {
            endpoint.password = password.clone();
        }
    }
    if let Some(tls) = &table.tls {
        if tls.mode == TlsMode::Off && (tls.ca.is_some() || tls.cert.is_some()) {
            return Err(Error::usage("tls has certificates, but mode = \"off\"")
                .hint("set mode = \"verify\", or remove the certificates"));
        }
        if tls.cert.is_some() != tls.key.is_some() {
            return Err(Error::usage("tls: `cert` and `key` go together")
                .hint("give both for a client certificate, or neither"));
        }
        for endpoint in &mut endpoints {
            endpoint.tls = tls.clone();
        }
    }
    let semi_sync = table.semi_sync.unwrap_or(false);
    if semi_sync && table.engine != EngineKind::Mysql {
        return Err(Error::usage("semi_sync is for MySQL and MariaDB")
            .hint("on Redis, WAIT 1 returns when the archive has what was written"));
    }
    let sample_ms = table.sample_ms.unwrap_or(SAMPLE_MS);
    if sample_ms == 0 {
        return Err(Error::usage("sample_ms is at least 1"));
    }
    Ok(SourceOptions {
        name: table.name.clone(),
        engine: table.engine,
        endpoint: endpoints.remove(0),
        standbys: endpoints,
        sample_every: Duration::from_millis(sample_ms),
        dump_command: table.dump_command.clone(),
        databases: databases(table)?,
        aof: aof(table, archive)?,
        semi_sync,
        digests: BASELINE_DIGESTS,
    })
}

/// Where the append-only files are, for a source that is captured from them.
fn aof(table: &SourceTable, archive: &Path) -> Result<Option<Aof>> {
    let way = table.capture.unwrap_or(CaptureWay::Stream);
    if table.engine != EngineKind::Redis && (table.capture.is_some() || table.aof_dir.is_some()) {
        return Err(Error::usage("capture and aof_dir are for Redis and Valkey"));
    }
    match (way, &table.aof_dir) {
        (CaptureWay::Stream, None) => Ok(None),
        (CaptureWay::Stream, Some(_)) => {
            Err(Error::usage("aof_dir is for capture = \"aof\"").hint("add that, or remove aof_dir"))
        }
        (CaptureWay::Aof, None) => Err(Error::usage("capture = \"aof\" needs aof_dir").hint(
            "the folder of the files: `CONFIG GET dir` and `CONFIG GET appenddirname` make its path",
        )),
        (CaptureWay::Aof, Some(_)) if table.urls.is_some() => {
            Err(Error::usage("capture = \"aof\" is of one server").hint("name it with url"))
        }
        (CaptureWay::Aof, Some(dir)) => {
            Ok(Some(Aof { dir: dir.clone(), pins: archive.join(&table.name).join(names::PINS) }))
        }
    }
}

/// The databases that a restore keeps unless it is told otherwise.
fn databases(table: &SourceTable) -> Result<Vec<String>> {
    let Some(names) = &table.databases else { return Ok(vec![]) };
    if table.engine != EngineKind::Mysql {
        return Err(Error::usage("databases are those of a MySQL or MariaDB source")
            .hint("some keys of a Redis source are restored with --key, --db and --drop-prefix"));
    }
    if names.is_empty() {
        return Err(Error::usage("databases names none")
            .hint("leave the key away: then a restore brings all of them back"));
    }
    engine::mysql::check_databases(names).map_err(|error| error.context("databases"))?;
    Ok(names.clone())
}

/// The servers of `url` or `urls`: at least one.
fn endpoints(table: &SourceTable) -> Result<Vec<Endpoint>> {
    let urls = match (&table.url, &table.urls) {
        (Some(url), None) => vec![url.clone()],
        (None, Some(urls)) if !urls.is_empty() => urls.clone(),
        (Some(_), Some(_)) => {
            return Err(Error::usage("both url and urls are given")
                .hint("keep `urls = [\"…\", \"…\"]`, in the order of failover, or `url` alone"));
        }
        (None, _) => {
            return Err(Error::usage("the url is missing")
                .hint("add url = \"…\", or urls = [\"…\", \"…\"] for a server and its replicas"));
        }
    };
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for url in &urls {
        let endpoint = Endpoint::parse(table.engine, url)?;
        if endpoints.iter().any(|known| known.address() == endpoint.address()) {
            return Err(Error::usage(format!("urls has {} twice", endpoint.address()))
                .hint("name each server once"));
        }
        endpoints.push(endpoint);
    }
    Ok(endpoints)
}

/// The password from beside the url, if one is named.
fn password(table: &SourceTable) -> Result<Option<Secret>> {
    if let Some(file) = &table.password_file {
        return read_password(file).map(Some);
    }
    if let Some(command) = &table.password_command {
        return run_password_command(command).map(Some);
    }
    let Some(name) = &table.credential else { return Ok(None) };
    let dir = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
        Error::usage(format!("credential {name:?}: $CREDENTIALS_DIRECTORY is not set"))
            .hint(format!("add LoadCredential={name}:FILE to the systemd unit"))
    })?;
    read_password(&Path::new(&dir).join(name)).map(Some)
}

/// A source's name is a folder of the archive and a part of object names.
fn check_name(name: &str) -> Result<()> {
    if names::is_usable(name) && name != names::MARKS && name != names::DRILLS {
        return Ok(());
    }
    Err(Error::usage("the name is not usable as a folder name")
        .hint("use letters, digits, `-`, `_` and `.`, at most 64 of them"))
}

/// The time zone of that name.
///
/// # Errors
/// Usage, naming the nearest one.
pub fn parse_zone(name: &str) -> Result<Tz> {
    name.parse().map_err(|_| {
        let names: Vec<&str> = chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name()).collect();
        let error = Error::usage(format!("no time zone is named {name:?}"));
        match nearest(name, &names) {
            Some(near) => error.hint(format!("did you mean {near:?}?")),
            None => error.hint("use an IANA name, such as Europe/Berlin or UTC"),
        }
    })
}

fn read_password(file: &Path) -> Result<Secret> {
    refuse_if_readable(file, "the password file")?;
    let text = std::fs::read_to_string(file)
        .class(Class::Usage, || format!("read password file {}", file.display()))?;
    Ok(Secret::new(text.trim_end_matches(['\r', '\n'])))
}

fn run_password_command(command: &str) -> Result<Secret> {
    let output = std::process::Command::new("/bin/sh")
        .args(["-c", command])
        .output()
        .class(Class::Usage, || "run password_command".into())?;
    if !output.status.success() {
        return Err(Error::usage(format!(
            "password_command failed with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        )));
    }
    let text = String::from_utf8(output.stdout)
        .class(Class::Usage, || "read the output of password_command".into())?;
    Ok(Secret::new(text.trim_end_matches(['\r', '\n'])))
}

fn refuse_if_readable(file: &Path, what: &str) -> Result<()> {
    let meta =
        std::fs::metadata(file).class(Class::Usage, || format!("read {}", file.display()))?;
    if meta.permissions().mode() & 0o007 != 0 {
        return Err(Error::usage(format!("{what} {} can be read by others", file.display()))
            .hint(format!("chmod 600 {}", file.display())));
    }
    Ok(())
}

/// What is wrong in the file, where, and which known key is the nearest.
fn explain(text: &str, error: &toml::de::Error) -> Error {
    let line = error
        .span()
        .and_then(|span| text.get(..span.start))
        .map(|before| before.matches('\n').count() + 1);
    let message = error.message().lines().next().unwrap_or_default().to_owned();
    let place = line.map(|line| format!("line {line}: ")).unwrap_or_default();
    // The message of an unknown key lists those known: `unknown field `x`, expected one of `a`, …`.
    let mut quoted = message.split('`').skip(1).step_by(2);
    let hint = match (message.starts_with("unknown field"), quoted.next()) {
        (true, Some(unknown)) => {
            let known: Vec<&str> = quoted.collect();
            nearest(unknown, &known)
                .map(|near| format!("did you mean `{near}`?"))
                .or_else(|| Some(format!("the keys here are: {}", known.join(", "))))
        }
        _ => None,
    };
    let error = Error::usage(format!("{place}{message}"));
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), *candidate))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"
        [archive]
        dir = "archive"

        [[source]]
        name = "shop-redis"
        engine = "redis"
        url = "redis://127.0.0.1:6379"

        [[source]]
        name = "shop-mysql"
        engine = "mysql"
        url = "mysql://pitr@127.0.0.1:3306"
    "#;

    fn parse(text: &str) -> Result<Config> {
        Config::parse(text, Path::new("/dev/null"))
    }

    #[test]
    fn the_minimal_file_has_a_default_for_everything_else() {
        let config = parse(MINIMAL).unwrap();
        let names: Vec<&str> = config.sources.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["shop-mysql", "shop-redis"], "databases come before caches");
        assert_eq!(config.sealing.max_bytes, SEGMENT_MAX_BYTES);
        let retention = Policy { days: RETENTION_DAYS, min_baselines: RETENTION_MIN_BASELINES };
        assert_eq!(config.retention, retention);
    }

    #[test]
    fn an_unknown_key_names_the_nearest_one_and_its_line() {
        let error = parse(&MINIMAL.replace("dir =", "dirr =")).unwrap_err();
        assert_eq!(error.class(), Class::Usage);
        assert!(error.to_string().contains("line 3"), "{error}");
        assert_eq!(error.hint_text(), Some("did you mean `dir`?"));
        let error = parse(&MINIMAL.replace("url = \"redis", "sample_sm = 5\nurl = \"redis"));
        assert_eq!(error.unwrap_err().hint_text(), Some("did you mean `sample_ms`?"));
    }

    #[test]
    fn append_only_files_need_their_folder_and_one_redis_server() {
        let source = |more: &str| {
            parse(&format!(
                "[archive]\ndir = \"/a\"\n[[source]]\nname = \"r\"\nengine = \"redis\"\n{more}"
            ))
        };
        let url = "url = \"redis://h:1\"";
        let read = source(&format!("{url}\ncapture = \"aof\"\naof_dir = \"/r/aof\"")).unwrap();
        let aof = Aof { dir: "/r/aof".into(), pins: "/a/r/aof".into() };
        assert_eq!(read.sources[0].aof, Some(aof));
        assert_eq!(source(&format!("{url}\ncapture = \"stream\"")).unwrap().sources[0].aof, None);
        for wrong in [
            format!("{url}\ncapture = \"aof\""),
            format!("{url}\naof_dir = \"/r/aof\""),
            format!("{url}\ncapture = \"files\""),
        ] {
            assert_eq!(source(&wrong).unwrap_err().class(), Class::Usage, "{wrong}");
        }
    }

    #[test]
    fn several_servers_are_given_in_the_order_of_failover() {
        let one = "url = \"mysql://pitr@127.0.0.1:3306\"";
        let urls = |urls: &str| parse(&MINIMAL.replace(one, urls));
        let config = urls("urls = [\"mysql://pitr@a\", \"mysql://pitr@b:3307\"]").unwrap();
        let all: Vec<_> = config.sources[0].endpoints().map(ToString::to_string).collect();
        assert_eq!(all, ["pitr@a:3306", "pitr@b:3307"]);
        assert_eq!(config.sources[0].endpoint.host, "a");
        for wrong in ["", "urls = []", "urls = [\"mysql://a\", \"mysql://a:3306\"]"] {
            assert_eq!(urls(wrong).unwrap_err().class(), Class::Usage, "{wrong}");
        }
        let error = urls(&format!("{one}\nurls = [\"mysql://pitr@b\"]")).unwrap_err();
        assert!(error.to_string().contains("both url and urls"), "{error}");
        let redis = MINIMAL
            .replace("url = \"redis://127.0.0.1:6379\"", "urls = [\"redis://a\", \"redis://b\"]");
        let config = parse(&redis).unwrap();
        let source = config.sources.iter().find(|s| s.engine == EngineKind::Redis).unwrap();
        assert_eq!((source.endpoint.host.as_str(), source.standbys.len()), ("a", 1));
        let files = redis
            .replace("urls = [\"redis", "capture = \"aof\"\naof_dir = \"/r\"\nurls = [\"redis");
        assert_eq!(parse(&files).unwrap_err().class(), Class::Usage);
    }

    #[test]
    fn some_databases_are_named_each_once_and_of_a_mysql() {
        let with = |engine: &str, key: &str| {
            let url = format!("url = \"{engine}://");
            parse(&MINIMAL.replace(&url, &format!("{key}\n{url}")))
        };
        let config = with("mysql", "databases = [\"shop\", \"crm\"]").unwrap();
        assert_eq!(config.sources[0].databases, ["shop", "crm"]);
        for (wrong, words) in [
            ("[]", "names none"),
            ("[\"\"]", "no name"),
            ("[\"shop\", \"Sys\"]", "Sys is the server's own"),
            ("[\"shop\", \"crm\", \"shop\"]", "shop is named twice"),
            ("\"shop\"", "line"),
        ] {
            let error = with("mysql", &format!("databases = {wrong}")).unwrap_err();
            assert_eq!(error.class(), Class::Usage, "{wrong}");
            assert!(error.to_string().contains(words), "{error}");
        }
        let error = with("redis", "databases = [\"0\"]").unwrap_err();
        assert!(error.to_string().contains("MySQL or MariaDB"), "{error}");
        assert!(error.hint_text().unwrap().contains("--db"));
    }

    #[test]
    fn retention_keeps_at_least_a_day_and_a_baseline() {
        let with = |table: &str| parse(&format!("{MINIMAL}\n[retention]\n{table}"));
        let config = with("days = 30\nmin_baselines = 3").unwrap();
        assert_eq!(config.retention, Policy { days: 30, min_baselines: 3 });
        for wrong in ["days = 0", "min_baselines = 0", "days = -1", "weeks = 2"] {
            assert_eq!(with(wrong).unwrap_err().class(), Class::Usage, "{wrong}");
        }
    }

    #[test]
    fn drills_are_off_unless_it_is_said_how_often() {
        let with = |table: &str| parse(&format!("{MINIMAL}\n[drill]\n{table}"));
        assert_eq!(parse(MINIMAL).unwrap().drill, Drill::default());
        for (text, hours) in [("7d", 168), ("12h", 12), ("120m", 2)] {
            let config = with(&format!("every = \"{text}\"")).unwrap();
            assert_eq!(config.drill.every, Some(Duration::from_hours(hours)));
        }
        for wrong in ["", "d", "0d", "-1d", "7", "7w", "99999999999999999999d", "é"] {
            let error = with(&format!("every = \"{wrong}\"")).unwrap_err();
            assert_eq!(error.class(), Class::Usage, "{wrong}");
        }
        assert!(with("canary = true").unwrap().drill.canary);
    }

    #[test]
    fn names_that_would_leave_the_folder_are_refused() {
        for name in ["../x", "a/b", ".hidden", ""] {
            assert!(parse(&MINIMAL.replace("shop-redis", name)).is_err(), "{name:?}");
        }
        assert!(parse(&MINIMAL.replace("shop-redis", "shop-mysql")).is_err(), "twice");
    }
}
