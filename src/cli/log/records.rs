//! `pitr log` between two instants: every record, or every row, as it is read.

use super::{LogArgs, zone};
use crate::archive::{Archive, reading};
use crate::changes::{self, Broken, Place, Span, Visit};
use crate::cli::chosen;
use crate::clock::{Target, Timestamp, Tz, in_zone, parse_target};
use crate::config::Config;
use crate::engine::decode::{Interest, Record, RowChange};
use crate::engine::{Keys, SourceOptions};
use crate::error::{Class, Context, Error, Result};
use crate::manifest::{Gap, SegmentMeta};
use serde_json::{Value, json};
use std::io::{BufWriter, ErrorKind, StdoutLock, Write};
use std::time::Duration;

/// What is shown where no instant is named.
const LATELY: Duration = Duration::from_hours(1);

/// How many tables, commands and keys of a record a line of text names.
const SHOWN: usize = 8;

/// Shows what was committed between two instants.
///
/// # Errors
/// Usage, if the instants or filters make no sense; corrupt, if a part of it cannot be read.
pub(super) fn records(config: &Config, args: &LogArgs, json: bool) -> Result<()> {
    let zone = zone(config, args)?;
    let now = Timestamp::now();
    let instant = |text: &String| match parse_target(text, zone, now)? {
        Target::At(at) => Ok(at),
        Target::Latest => Ok(now),
    };
    let to = args.to.as_ref().map(instant).transpose()?;
    let from = match args.from.as_ref().map(instant).transpose()? {
        Some(from) => from,
        None => to.unwrap_or(now).before(LATELY),
    };
    if to.is_some_and(|to| to <= from) {
        return Err(Error::usage("--from is not before --to"));
    }
    let patterns = |patterns: &[String]| {
        let all = Keys { patterns: patterns.to_vec(), ..Keys::default() };
        (!patterns.is_empty()).then_some(all)
    };
    let (keys, tables) = (patterns(&args.key), patterns(&args.table));
    let larger_than = args.larger_than.as_deref().map(bytes).transpose()?.unwrap_or(0);
    let _reading = reading(&config.archive)?;
    let archive = Archive::open_read_only(&config.archive)?;
    let mut show = Show {
        out: BufWriter::new(std::io::stdout().lock()),
        zone,
        form: match (args.rows, json) {
            (true, _) => Form::Rows,
            (false, true) => Form::Json,
            (false, false) => Form::Text,
        },
        source: String::new(),
        filter: Filter { tables: tables.clone(), keys: keys.is_some(), larger_than },
        shown: 0,
        broken: vec![],
        undecoded: 0,
        closed: false,
    };
    let interest = Interest { keys, tables, rows: args.rows };
    let sources = chosen(config, &args.source)?;
    match show.all(&archive, &sources, (from, to), &interest) {
        Err(_) if show.closed => Ok(()),
        Err(error) => Err(error),
        Ok(()) => match show.broken.first() {
            None if args.rows && show.undecoded > 0 => Err(Error::new(
                Class::Finding,
                format!("the rows of {} events cannot be shown", show.undecoded),
            )
            .hint("each is named where it stands, with the reason")),
            None => Ok(()),
            Some(broken) => {
                Err(Error::corrupt(format!("a part cannot be read: {}", broken.reason))
                    .hint("`pitr verify` shows what is damaged, and what is lost by it"))
            }
        },
    }
}

/// A number of bytes: `4096`, `64K`, `10M`, `1G`.
fn bytes(text: &str) -> Result<u64> {
    let wrong =
        || Error::usage(format!("not a size: {text:?}")).hint("write it like --larger-than 10M");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..).unwrap_or_default().to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "K" | "KIB" => 1 << 10,
        "M" | "MIB" => 1 << 20,
        "G" | "GIB" => 1 << 30,
        _ => return Err(wrong()),
    };
    digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).ok_or_else(wrong)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    /// One document.
    Json,
    /// A line of JSON for each row.
    Rows,
}

/// Which records are shown.
struct Filter {
    tables: Option<Keys>,
    keys: bool,
    larger_than: u64,
}

impl Filter {
    fn has_table(&self, table: &str) -> bool {
        self.tables.as_ref().is_none_or(|tables| tables.has_key(table.as_bytes()))
    }

    fn has(&self, record: &Record) -> bool {
        let has_table =
            self.tables.is_none() || record.tables.keys().any(|table| self.has_table(table));
        // Nobody knows which tables it is about.
        let has_table = has_table || record.undecoded > 0;
        has_table && (!self.keys || record.wanted_keys > 0) && record.bytes() > self.larger_than
    }
}

struct Show {
    out: BufWriter<StdoutLock<'static>>,
    zone: Tz,
    form: Form,
    source: String,
    filter: Filter,
    shown: u64,
    broken: Vec<Broken>,
    /// Events in what is shown that could not be decoded.
    undecoded: u64,
    /// Whoever read the output has seen enough.
    closed: bool,
}

impl Show {
    /// Shows the interval of all sources, one after the other.
    fn all(
        &mut self,
        archive: &Archive,
        sources: &[SourceOptions],
        (from, to): (Timestamp, Option<Timestamp>),
        interest: &Interest,
    ) -> Result<()> {
        self.begin(from, to)?;
        for source in sources {
            self.source.clone_from(&source.name);
            let gaps = archive.history(&source.name, source.engine)?.gaps;
            for gap in gaps.iter().filter(|gap| gap.concerns(Some(from), to)) {
                self.gap(gap)?;
            }
            let span = Span { from: Some(from), to };
            changes::walk(archive, &source.name, source.engine, span, interest, self)?;
        }
        self.end()
    }

    fn put(&mut self, text: &str) -> Result<()> {
        let written = self.out.write_all(text.as_bytes());
        self.written(written)
    }

    fn written(&mut self, written: std::io::Result<()>) -> Result<()> {
        match written {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.closed = true;
                // Nothing else ends a walk.
                Err(Error::new(Class::Interrupted, "nobody reads what is written"))
            }
            written => written.unavailable(|| "write to stdout".into()),
        }
    }

    fn begin(&mut self, from: Timestamp, to: Option<Timestamp>) -> Result<()> {
        if self.form != Form::Json {
            return Ok(());
        }
        let (from, to) = (json!(from), json!(to));
        self.put(&format!(
            "{{\"schema\": \"pitr.log/1\", \"from\": {from}, \"to\": {to}, \"records\": ["
        ))
    }

    fn end(&mut self) -> Result<()> {
        match self.form {
            Form::Json => {
                let broken: Vec<Value> = self.broken.iter().map(broken_json).collect();
                self.put(&format!("\n], \"broken\": {}}}\n", Value::from(broken)))?;
            }
            Form::Text if self.shown == 0 => self.put("nothing\n")?,
            _ => {}
        }
        let flushed = self.out.flush();
        self.written(flushed)
    }

    fn value(&mut self, value: &Value) -> Result<()> {
        let comma = if self.shown == 0 { "" } else { "," };
        self.shown += 1;
        self.put(&format!("{comma}\n  {value}"))
    }

    fn gap(&mut self, gap: &Gap) -> Result<()> {
        let Gap { after, before, reason, .. } = gap;
        match self.form {
            Form::Text => {
                let when = |at: &Option<Timestamp>| {
                    at.map_or_else(|| "-".to_owned(), |at| in_zone(at, self.zone))
                };
                let line = format!(
                    "{} .. {}  {}  gap: {reason}\n",
                    when(after),
                    when(before),
                    self.source
                );
                self.shown += 1;
                self.put(&line)
            }
            Form::Json => {
                let gap = json!({ "after": after, "before": before, "reason": reason });
                self.value(&json!({ "source": self.source, "gap": gap }))
            }
            Form::Rows => {
                let gap = json!({ "after": after, "before": before, "reason": reason });
                self.put(&format!("{}\n", json!({ "source": self.source, "gap": gap })))
            }
        }
    }
}

fn broken_json(broken: &Broken) -> Value {
    let Broken { after, before, reason, .. } = broken;
    json!({ "after": after, "before": before, "reason": reason })
}

impl Visit for Show {
    fn record(&mut self, place: &Place<'_>, record: Record) -> Result<()> {
        if !self.filter.has(&record) {
            return Ok(());
        }
        self.undecoded += record.undecoded;
        if self.form == Form::Rows {
            return self.unread_rows(place, &record);
        }
        let restore = place.landmark(&record).map(|landmark| {
            format!("pitr restore --source {} --before {}", self.source, landmark.name())
        });
        if self.form == Form::Json {
            let value = self.record_json(place, &record, restore);
            return self.value(&value);
        }
        self.shown += 1;
        let text = self.record_text(place, &record, restore);
        self.put(&text)
    }

    fn row(
        &mut self,
        at: Option<Timestamp>,
        segment: &SegmentMeta,
        begun: &Record,
        row: RowChange,
    ) -> Result<()> {
        if self.form != Form::Rows || !self.filter.has_table(&row.table) {
            return Ok(());
        }
        let place = || format!("{}:{}", segment.header.start.log, begun.start);
        let position = begun.name.clone().unwrap_or_else(place);
        self.shown += 1;
        let RowChange { table, change, before, after } = row;
        let line = json!({
            "source": self.source, "at": at, "position": position, "table": table,
            "change": change, "before": before, "after": after,
        });
        self.put(&format!("{line}\n"))
    }

    fn broken(&mut self, broken: Broken) -> Result<()> {
        if self.form == Form::Text {
            let when = |at: Option<Timestamp>| {
                at.map_or_else(|| "-".to_owned(), |at| in_zone(at, self.zone))
            };
            let (after, before) = (when(broken.after), when(broken.before));
            let line = format!(
                "{after} .. {before}  {}  cannot be read: {}\n",
                self.source, broken.reason
            );
            self.put(&line)?;
        }
        self.broken.push(broken);
        Ok(())
    }
}

impl Show {
    /// Among rows, says where some are left out because they cannot be read.
    fn unread_rows(&mut self, place: &Place<'_>, record: &Record) -> Result<()> {
        if record.undecoded == 0 {
            return Ok(());
        }
        let line = json!({
            "source": self.source, "at": place.at, "position": place.position(record),
            "undecoded": record.undecoded, "reason": record.trouble,
        });
        self.put(&format!("{line}\n"))
    }

    fn record_json(&self, place: &Place<'_>, record: &Record, restore: Option<String>) -> Value {
        let tables = record.tables.iter().filter(|(table, _)| self.filter.has_table(table));
        let tables: Vec<Value> = tables
            .map(|(name, rows)| {
                json!({
                    "name": name, "inserts": rows.inserts, "updates": rows.updates,
                    "deletes": rows.deletes,
                })
            })
            .collect();
        let commands: Vec<Value> = record
            .commands
            .iter()
            .map(|(name, count)| json!({ "name": name, "count": count }))
            .collect();
        let databases: Vec<u32> = record.databases.keys().copied().collect();
        json!({
            "source": self.source, "at": place.at, "position": place.position(record),
            "timeline": place.segment.header.timeline, "bytes": record.bytes(), "tables": tables,
            "statements": record.statements, "more_statements": record.more_statements,
            "commands": commands, "databases": databases, "multi": record.multi,
            "keys": record.keys, "wanted_keys": record.wanted_keys,
            "undecoded": record.undecoded, "undecoded_reason": record.trouble, "restore": restore,
        })
    }

    fn record_text(&self, place: &Place<'_>, record: &Record, restore: Option<String>) -> String {
        let at = place.at.map_or_else(|| "-".to_owned(), |at| in_zone(at, self.zone));
        let mut parts = vec![];
        let tables = record.tables.iter().filter(|(table, _)| self.filter.has_table(table));
        parts.extend(tables.map(|(name, rows)| {
            format!("{name} +{} ~{} -{}", rows.inserts, rows.updates, rows.deletes)
        }));
        parts.extend(record.commands.iter().map(|(name, count)| match count {
            1 => name.clone(),
            count => format!("{name} x{count}"),
        }));
        let left = parts.len().saturating_sub(SHOWN);
        parts.truncate(SHOWN);
        if left > 0 {
            parts.push(format!("and {left} more"));
        }
        if record.multi {
            parts.push("in one block".into());
        }
        if record.undecoded > 0 {
            let why = record.trouble.as_deref().unwrap_or_default();
            parts.push(format!("{} events not decoded: {why}", record.undecoded));
        }
        let mut text = format!(
            "{at}  {}  {}  {}  {} bytes\n",
            self.source,
            place.position(record),
            if parts.is_empty() { "-".to_owned() } else { parts.join(", ") },
            record.bytes()
        );
        for statement in &record.statements {
            text += &format!("    {}\n", statement.text);
        }
        if record.more_statements > 0 {
            text += &format!("    and {} more statements\n", record.more_statements);
        }
        if !record.keys.is_empty() {
            let more = record.wanted_keys.saturating_sub(record.keys.len() as u64);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            text += &format!("    keys: {}{more}\n", record.keys.join(", "));
        }
        if let Some(restore) = restore {
            text += &format!("    {restore}\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("4096", 4096)]
    #[case("64K", 65_536)]
    #[case("10MiB", 10_485_760)]
    #[case("1g", 1 << 30)]
    fn sizes(#[case] text: &str, #[case] expected: u64) {
        assert_eq!(bytes(text).unwrap(), expected);
    }

    #[rstest]
    #[case("")]
    #[case("M")]
    #[case("1.5M")]
    #[case("99999999999G")]
    #[case("1X")]
    fn what_is_no_size_is_refused(#[case] text: &str) {
        assert!(bytes(text).is_err());
    }
}
