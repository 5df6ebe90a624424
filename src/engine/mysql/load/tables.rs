//! Runs a dump over several connections, so that it ends like over one.
//!
//! One connection, the control, runs everything but rows, in the dump's order. Rows of a table
//! whose rows may come in any order go over whichever connection is free, each of which first
//! takes over the settings that the dump made up to there. From a table that turns out to be
//! large, the keys that can wait are taken off before its first row and added behind its last one,
//! in one statement, while the dump goes on. That this makes the same table is first seen on the
//! empty one; where the server shows a difference or refuses, keys stay.
//!
//! What is neither a table nor one of its rows waits until all rows before it are in. A table with
//! foreign keys waits until the tables that it refers to have all of their keys.
//!
//! Where an attempt goes on with what another one left ([`resume`]), the statements of tables that
//! are whole are passed over.
//!
//! **Invariant:** the first error ends everything; success means that every statement was run,
//! and that every table shows the definition that it had before keys were taken off.

use super::super::tools::Server;
use super::Baseline;
use super::create::{Definition, Key};
use super::lane::{Chunk, Failed, Lane};
use super::resume::{self, Whole};
use super::split::{Part, Splitter};
use super::statement::{Kind, kind};
use crate::engine::Meter;
use crate::error::{Class, Context, Error, Result};
use bytes::Bytes;
use mysql_async::Conn;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// What a dump must not depend on, what keeps it out of the target's history, and room for keys
/// to be sorted in. The dump's own head sets the rest. MariaDB passes over comments of MySQL's
/// versions, but takes no empty statement.
const PREAMBLE: &str = "SET NAMES utf8mb4;\
    SET SESSION sql_log_bin = 0;\
    SET SESSION autocommit = 1;\
    SET SESSION wait_timeout = 31536000;\
    SET SESSION net_read_timeout = 31536000;\
    SET SESSION innodb_strict_mode = OFF \
    /*!80013 , SESSION sql_require_primary_key = OFF */ \
    /*!80027 , SESSION innodb_ddl_buffer_size = 67108864 */ \
    /*!80030 , SESSION sql_generate_invisible_primary_key = OFF */ \
    /*!80400 , SESSION restrict_fk_on_non_standard_key = OFF */";

/// Rows of a table up to this many bytes go in with all keys in place: making keys later costs a
/// few statements, too.
const SMALL_BYTES: usize = 8 << 20;
/// Parts of a long statement between the dump and a connection.
const CHUNKS_IN_FLIGHT: usize = 8;
/// How often a statement is run that the server gave up for the sake of others.
const TRIES: u32 = 20;
/// Settings that are kept for connections which have not taken them over.
const SETTINGS_KEPT: usize = 256;

/// Runs the dump in `baseline`, past the tables that are whole. Where it can be gone on with, what
/// is whole is noted.
///
/// # Errors
/// Those of the baseline. Unavailable, with the server's words, if a statement is not taken.
pub(super) async fn load(
    baseline: &mut Baseline,
    server: &Server<'_>,
    conn: &mut Conn,
    whole: Option<&Whole>,
    meter: &Meter,
) -> Result<()> {
    meter.begin();
    let mut loader = Loader::start(server, whole, meter).await?;
    // This session has held the lock of the restore all the time: whoever takes it from now on
    // meets all of these connections, and ends them.
    super::ask::run(conn, "DO 0", || "see that nobody else restores".into()).await?;
    let mut dump = Dump { baseline, splitter: Splitter::new() };
    let loaded = loader.run_all(&mut dump).await;
    if loaded.is_err() {
        loader.running.shutdown().await;
        for id in loader.ids {
            // What still runs is of no use any more; as a rule nothing does.
            drop(
                super::ask::run(conn, format!("KILL {id}"), || "end what still runs".into()).await,
            );
        }
    }
    loaded
}

/// The dump as a row of statements.
struct Dump<'a> {
    baseline: &'a mut Baseline,
    splitter: Splitter,
}

impl Dump<'_> {
    async fn next(&mut self) -> Result<Option<Part>> {
        loop {
            if let Some(part) = self.splitter.next()? {
                return Ok(Some(part));
            }
            match self.baseline.sql().await? {
                Some(bytes) => self.splitter.push(&bytes),
                None if self.splitter.has_ended() => return Ok(None),
                None => self.splitter.end(),
            }
        }
    }

    /// Passes over the rest of a statement.
    async fn pass(&mut self) -> Result<()> {
        while let Some(part) = self.next().await? {
            if part.last {
                return Ok(());
            }
        }
        Err(Error::corrupt("the dump ends within a statement"))
    }

    /// The rest of a statement, to whoever runs it. False, if that one does not take it any more.
    async fn rest(&mut self, first: Bytes, to: mpsc::Sender<Chunk>) -> Result<bool> {
        let mut next = Some(Part { bytes: first, first: true, last: false });
        while let Some(part) = next {
            if to.send(Chunk::Bytes(part.bytes)).await.is_err() {
                return Ok(false);
            }
            if part.last {
                return Ok(to.send(Chunk::End).await.is_ok());
            }
            next = self.next().await?;
        }
        Err(Error::corrupt("the dump ends within a statement"))
    }
}

/// A table that is being loaded.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "four answers that do not depend on each other")]
struct Table {
    /// With its schema, quoted.
    full_name: Arc<str>,
    name: String,
    create: Bytes,
    any_order: bool,
    /// Whether a crash leaves all that was taken.
    is_safe: bool,
    /// Statements that take the keys off which can wait, and that add them.
    keys: Option<(String, String)>,
    /// Its definition with all keys, if those that can wait are off.
    shown: Option<Bytes>,
    /// Rows that wait for the decision whether the table is large.
    held: Vec<Bytes>,
    held_bytes: usize,
    /// Whether that is decided.
    decided: bool,
    /// Statements with its rows that are running.
    running: usize,
    /// Whether all of its rows were sent.
    sent: bool,
}

type TableNumber = u64;

/// What a connection comes back from.
struct Done {
    lane: Lane,
    work: Work,
}

enum Work {
    Rows(Option<TableNumber>),
    Keys(TableNumber),
}

struct Loader<'a> {
    meter: &'a Meter,
    control: Lane,
    idle: Vec<Lane>,
    /// Numbers of all connections at the server.
    ids: Vec<u32>,
    settings: Settings,
    running: JoinSet<Result<Done>>,
    /// How many of those that run are rows.
    rows: usize,
    schema: String,
    tables: BTreeMap<TableNumber, Table>,
    /// The table whose rows are expected next.
    current: Option<TableNumber>,
    next_number: TableNumber,
    /// Tables whose keys can be added.
    ready: Vec<TableNumber>,
    /// The tables that were whole at the beginning.
    whole: Option<&'a Whole>,
    /// That of them whose statements are passed over now.
    passed: Option<String>,
    /// Those that are whole by now and not noted yet; nothing, if none is noted.
    noted: Option<Vec<String>>,
}

impl<'a> Loader<'a> {
    async fn start(
        server: &'a Server<'a>,
        whole: Option<&'a Whole>,
        meter: &'a Meter,
    ) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let mut control = locked(server, 0).await?;
        let preamble = Bytes::from_static(PREAMBLE.as_bytes());
        control.run(&preamble).await.map_err(|failed| failed.context("set the session up"))?;
        let mut idle = vec![];
        for number in 1..=(cores + 1).clamp(3, resume::LANES_MAX - 1) {
            match locked(server, number).await {
                Ok(lane) => idle.push(lane),
                // A server may allow few.
                Err(error) if error.class() != Class::Busy && !idle.is_empty() => {
                    tracing::debug!("{error}: fewer connections load");
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Self {
            meter,
            ids: idle.iter().chain([&control]).map(|lane| lane.id).collect(),
            control,
            idle,
            settings: Settings { kept: vec![preamble], before: 0 },
            running: JoinSet::new(),
            rows: 0,
            schema: String::new(),
            tables: BTreeMap::new(),
            current: None,
            next_number: 0,
            ready: vec![],
            whole,
            passed: None,
            noted: whole.map(|_| vec![]),
        })
    }

    async fn run_all(&mut self, dump: &mut Dump<'_>) -> Result<()> {
        while let Some(part) = dump.next().await? {
            self.reap().await?;
            if part.last {
                self.statement(part.bytes, &mut dump.splitter).await?;
            } else {
                self.long_statement(part.bytes, dump).await?;
            }
        }
        self.close().await?;
        while !self.running.is_empty() || !self.ready.is_empty() {
            self.wait_for_one().await?;
        }
        self.note().await?;
        match self.tables.values().next() {
            None => Ok(()),
            Some(table) => Err(Error::bug(format!("{} was not loaded whole", table.full_name))),
        }
    }

    /// Runs a statement, or has it run.
    async fn statement(&mut self, statement: Bytes, splitter: &mut Splitter) -> Result<()> {
        let kind = kind(&statement);
        match kind {
            Kind::CreateTable => {
                self.close().await?;
                return self.create(statement).await;
            }
            Kind::Insert(name) if self.is_passed(name) => return Ok(()),
            Kind::Insert(name) => {
                if let Some(number) = self.current_named(name) {
                    return self.row(number, statement).await;
                }
                self.close().await?;
                self.all_rows_in().await?;
            }
            // Nobody else is here to lock out, and one connection would lock out the others.
            Kind::Lock => return Ok(()),
            Kind::Keys if self.passed.is_some() || self.current_in_any_order() => return Ok(()),
            Kind::Setting => self.settings.push(&statement),
            Kind::Use(schema) => {
                self.close().await?;
                schema.clone_into(&mut self.schema);
                self.settings.push(&statement);
            }
            Kind::Drop(name) => {
                self.close().await?;
                if self.is_whole(name) {
                    return Ok(());
                }
            }
            Kind::Keys | Kind::Object { .. } | Kind::Other => {
                self.close().await?;
                self.all_rows_in().await?;
            }
        }
        self.forget(kind).await?;
        self.on_control(&statement).await?;
        splitter.plain_backslash = self.control.plain_backslash();
        Ok(())
    }

    /// With its schema, quoted.
    fn full_name(&self, name: &str) -> String {
        let dot = if self.schema.is_empty() { "" } else { "." };
        format!("{}{dot}{name}", self.schema)
    }

    /// Whether the table of this name, quoted, was whole at the beginning.
    fn is_whole(&self, name: &str) -> bool {
        self.whole.is_some_and(|whole| whole.contains(&self.full_name(name)))
    }

    /// Whether the statements of the table of this name, quoted, are passed over.
    fn is_passed(&self, name: &str) -> bool {
        self.passed.as_deref() == Some(name)
    }

    /// Before a statement runs that is none of the current table: what it may change counts as
    /// whole no more.
    async fn forget(&mut self, kind: Kind<'_>) -> Result<()> {
        if self.noted.is_none() {
            return Ok(());
        }
        let statement = match kind {
            Kind::Insert(name) => {
                self.note().await?;
                resume::forget(&self.full_name(name))
            }
            Kind::Object { event: true } => resume::note_events(),
            Kind::Other => {
                // Nor does what comes after it: this would then be run over it.
                self.noted = None;
                resume::forget_all()
            }
            _ => return Ok(()),
        };
        self.on_control(statement.as_bytes()).await
    }

    /// Notes the tables that are whole by now.
    async fn note(&mut self) -> Result<()> {
        let Some(noted) = self.noted.as_mut().filter(|noted| !noted.is_empty()) else {
            return Ok(());
        };
        let statement = resume::note(&std::mem::take(noted));
        self.on_control(statement.as_bytes()).await
    }

    async fn on_control(&mut self, statement: &[u8]) -> Result<()> {
        self.control.run(statement).await.map_err(|failed| failed.context(beginning(statement)))
    }

    /// Runs a statement that is still being read.
    async fn long_statement(&mut self, first: Bytes, dump: &mut Dump<'_>) -> Result<()> {
        let kind = kind(&first);
        let table = match kind {
            Kind::Insert(name) if self.is_passed(name) => return dump.pass().await,
            Kind::Insert(name) => self.current_named(name),
            _ => None,
        };
        let any_order = table.is_some() && self.current_in_any_order();
        match table {
            Some(number) if any_order => self.decide(number, true).await?,
            Some(_) => {}
            None => {
                self.close().await?;
                self.all_rows_in().await?;
                self.forget(kind).await?;
            }
        }
        let doing = self.doing(table, &first);
        let (to, parts) = mpsc::channel(CHUNKS_IN_FLIGHT);
        let (mut lane, settings) = self.lane().await?;
        self.count_rows(table);
        self.running.spawn(async move {
            settings.apply(&mut lane).await?;
            lane.run_long(parts).await.map_err(|failed| failed.context(doing))?;
            Ok(Done { lane, work: Work::Rows(table) })
        });
        // Why it is not taken, the one that does not take it says.
        let _taken: bool = dump.rest(first, to).await?;
        if any_order { Ok(()) } else { self.all_rows_in().await }
    }

    /// Makes a table as the dump says.
    async fn create(&mut self, statement: Bytes) -> Result<()> {
        let text = std::str::from_utf8(&statement).ok();
        let Some(definition) = text.and_then(Definition::read) else {
            self.all_rows_in().await?;
            return self.on_control(&statement).await;
        };
        let full_name = self.full_name(definition.name);
        if self.is_whole(definition.name) && exists(&mut self.control, &full_name).await? {
            self.passed = Some(definition.name.to_owned());
            self.meter.begin_table();
            self.meter.end_table();
            return Ok(());
        }
        let full_name: Arc<str> = full_name.into();
        for other in &definition.refers_to {
            self.all_keys_of(other).await?;
        }
        self.on_control(&statement).await?;
        let list = |each: &dyn Fn(&Key<'_>) -> String| {
            let list: Vec<String> = definition.later.iter().map(each).collect();
            format!("ALTER TABLE {full_name} {}", list.join(", "))
        };
        let keys = (!definition.later.is_empty()).then(|| {
            let drop = list(&|key| format!("DROP KEY {}", key.name));
            (drop, list(&|key| format!("ADD {}", key.text)))
        });
        let table = Table {
            full_name,
            name: definition.name.to_owned(),
            any_order: definition.any_order,
            is_safe: definition.is_innodb,
            keys,
            create: Bytes::copy_from_slice(&statement),
            shown: None,
            held: vec![],
            held_bytes: 0,
            decided: false,
            running: 0,
            sent: false,
        };
        self.meter.begin_table();
        self.tables.insert(self.next_number, table);
        self.current = Some(self.next_number);
        self.next_number += 1;
        Ok(())
    }

    fn current_named(&self, name: &str) -> Option<TableNumber> {
        self.current.filter(|number| self.tables.get(number).is_some_and(|t| t.name == name))
    }

    fn current_in_any_order(&self) -> bool {
        let table = self.current.and_then(|number| self.tables.get(&number));
        table.is_some_and(|table| table.any_order)
    }

    /// Takes rows of the current table.
    async fn row(&mut self, number: TableNumber, statement: Bytes) -> Result<()> {
        let Some(table) = self.tables.get_mut(&number) else {
            return Err(Error::bug("rows of no table"));
        };
        if !table.any_order {
            let doing = format!("load {}", table.full_name);
            return self.control.run(&statement).await.map_err(|failed| failed.context(doing));
        }
        if table.decided {
            return self.send_rows(number, statement).await;
        }
        table.held_bytes += statement.len();
        table.held.push(statement);
        if table.held_bytes > SMALL_BYTES || table.keys.is_none() {
            self.decide(number, true).await?;
        }
        Ok(())
    }

    /// Decides whether a table's keys wait, and sends the rows that were held until then.
    async fn decide(&mut self, number: TableNumber, large: bool) -> Result<()> {
        let Some(table) = self.tables.get_mut(&number) else { return Ok(()) };
        if !std::mem::replace(&mut table.decided, true) && large && table.keys.is_some() {
            let name = Arc::clone(&table.full_name);
            self.take_keys_off(number)
                .await
                .map_err(|error| error.context(format!("load {name}")))?;
        }
        let Some(table) = self.tables.get_mut(&number) else { return Ok(()) };
        for statement in std::mem::take(&mut table.held) {
            self.send_rows(number, statement).await?;
        }
        Ok(())
    }

    /// Takes the keys that can wait off an empty table, if adding them gives the same table again.
    async fn take_keys_off(&mut self, number: TableNumber) -> Result<()> {
        let Some(table) = self.tables.get_mut(&number) else { return Ok(()) };
        let Some((drop, add)) = &table.keys else { return Ok(()) };
        let control = &mut self.control;
        let shown = show_create(control, &table.full_name)
            .await
            .map_err(|failed| failed.context("look at its definition"))?;
        if let Err(failed) = control.run(drop.as_bytes()).await {
            // A foreign key of another table may need one of them.
            return tolerated(failed, &table.full_name);
        }
        let again = async {
            control.run(add.as_bytes()).await?;
            let again = show_create(control, &table.full_name).await?;
            if again != shown {
                return Ok(false);
            }
            control.run(drop.as_bytes()).await?;
            Ok(true)
        };
        match again.await {
            Ok(true) => {
                table.shown = Some(shown);
                return Ok(());
            }
            Ok(false) => tracing::debug!("{}: its keys cannot wait", table.full_name),
            Err(failed) => tolerated(failed, &table.full_name)?,
        }
        let back = format!("DROP TABLE {}", table.full_name);
        for statement in [back.as_bytes(), &table.create] {
            control.run(statement).await.map_err(|failed| failed.context("make it anew"))?;
        }
        Ok(())
    }

    async fn send_rows(&mut self, number: TableNumber, statement: Bytes) -> Result<()> {
        let doing = self.doing(Some(number), &statement);
        let (mut lane, settings) = self.lane().await?;
        self.count_rows(Some(number));
        self.running.spawn(async move {
            settings.apply(&mut lane).await?;
            let mut tries = 1;
            while let Err(failed) = lane.run(&statement).await {
                if !failed.is_deadlock() || tries == TRIES {
                    return Err(failed.context(doing));
                }
                tokio::time::sleep(Duration::from_millis(u64::from(10 * tries))).await;
                tries += 1;
            }
            Ok(Done { lane, work: Work::Rows(Some(number)) })
        });
        Ok(())
    }

    fn doing(&self, table: Option<TableNumber>, statement: &[u8]) -> String {
        match table.and_then(|number| self.tables.get(&number)) {
            Some(table) => format!("load {}", table.full_name),
            None => beginning(statement),
        }
    }

    fn count_rows(&mut self, number: Option<TableNumber>) {
        self.rows += 1;
        if let Some(table) = number.and_then(|number| self.tables.get_mut(&number)) {
            table.running += 1;
        }
    }

    /// Ends the current table: no more of its rows will come.
    async fn close(&mut self) -> Result<()> {
        self.passed = None;
        let Some(number) = self.current.take() else { return Ok(()) };
        self.decide(number, false).await?;
        if let Some(table) = self.tables.get_mut(&number) {
            table.sent = true;
        }
        self.go_on_with(number);
        Ok(())
    }

    /// Adds the keys of a table whose rows are all in, or is done with it.
    fn go_on_with(&mut self, number: TableNumber) {
        let Some(table) = self.tables.get(&number) else { return };
        if !table.sent || table.running > 0 {
            return;
        }
        if table.shown.is_none() {
            self.end(number);
            return;
        }
        self.ready.push(number);
        self.start_ready();
    }

    fn end(&mut self, number: TableNumber) {
        let table = self.tables.remove(&number);
        if let (Some(noted), Some(table)) = (&mut self.noted, table)
            && table.is_safe
        {
            noted.push(table.full_name.to_string());
        }
        self.meter.end_table();
    }

    fn start_ready(&mut self) {
        while !self.ready.is_empty()
            && let Some(mut lane) = self.idle.pop()
        {
            let number = self.ready.remove(0);
            let Some(table) = self.tables.get(&number) else { continue };
            let (Some((_, add)), Some(shown)) = (table.keys.clone(), table.shown.clone()) else {
                continue;
            };
            let full_name = Arc::clone(&table.full_name);
            let settings = self.settings.missing_in(&mut lane);
            self.running.spawn(async move {
                settings.apply(&mut lane).await?;
                let doing = || format!("add the keys of {full_name}");
                lane.run(add.as_bytes()).await.map_err(|failed| failed.context(doing()))?;
                let now =
                    show_create(&mut lane, &full_name).await.map_err(|f| f.context(doing()))?;
                if without_counter(&now) != without_counter(&shown) {
                    return Err(Error::new(
                        Class::Finding,
                        format!("{full_name} shows another definition after its keys were added"),
                    ));
                }
                Ok(Done { lane, work: Work::Keys(number) })
            });
        }
    }

    /// Waits until the rows that were sent are in.
    async fn all_rows_in(&mut self) -> Result<()> {
        while self.rows > 0 {
            self.wait_for_one().await?;
        }
        Ok(())
    }

    /// Waits until all tables of this name have their keys.
    async fn all_keys_of(&mut self, name: &str) -> Result<()> {
        while self.tables.values().any(|table| table.name == name && table.shown.is_some()) {
            self.wait_for_one().await?;
        }
        Ok(())
    }

    /// A free connection, and the settings that it lacks.
    async fn lane(&mut self) -> Result<(Lane, Missing)> {
        loop {
            if let Some(mut lane) = self.idle.pop() {
                let missing = self.settings.missing_in(&mut lane);
                return Ok((lane, missing));
            }
            self.wait_for_one().await?;
        }
    }

    /// Takes note of what is done by now.
    async fn reap(&mut self) -> Result<()> {
        while let Some(done) = self.running.try_join_next() {
            self.done(done)?;
        }
        if self.running.is_empty() && self.settings.kept.len() > SETTINGS_KEPT {
            for lane in &mut self.idle {
                self.settings.missing_in(lane).apply(lane).await?;
            }
            self.settings.forget();
        }
        self.note().await
    }

    async fn wait_for_one(&mut self) -> Result<()> {
        match self.running.join_next().await {
            Some(done) => self.done(done),
            None => Err(Error::bug("the load waits for nothing")),
        }
    }

    fn done(&mut self, done: Result<Result<Done>, tokio::task::JoinError>) -> Result<()> {
        let Done { lane, work } = done.class(Class::Bug, || "load".into())??;
        self.idle.push(lane);
        match work {
            Work::Rows(number) => {
                self.rows -= 1;
                if let Some(number) = number {
                    if let Some(table) = self.tables.get_mut(&number) {
                        table.running -= 1;
                    }
                    self.go_on_with(number);
                }
            }
            Work::Keys(number) => self.end(number),
        }
        self.start_ready();
        Ok(())
    }
}

/// The settings that the dump made, for the connections that take them over when they are next
/// used.
#[derive(Debug)]
struct Settings {
    kept: Vec<Bytes>,
    /// How many there were before those.
    before: u64,
}

/// Settings that a connection lacks, as one text.
struct Missing(Vec<u8>);

impl Settings {
    fn push(&mut self, statement: &[u8]) {
        // A copy, since a slice would keep much more of the dump in memory.
        self.kept.push(Bytes::copy_from_slice(statement));
    }

    /// What the connection lacks; it counts as taken over.
    fn missing_in(&self, lane: &mut Lane) -> Missing {
        let known = usize::try_from(lane.settings.saturating_sub(self.before)).unwrap_or(0);
        lane.settings = self.before + self.kept.len() as u64;
        Missing(self.kept.get(known..).unwrap_or_default().join(&b";\n"[..]))
    }

    /// Forgets what every connection has taken over.
    fn forget(&mut self) {
        self.before += self.kept.len() as u64;
        self.kept.clear();
    }
}

impl Missing {
    async fn apply(&self, lane: &mut Lane) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        lane.run(&self.0).await.map_err(|failed| failed.context("take over the dump's settings"))
    }
}

/// A connection that can be found, and ended, as long as it works.
async fn locked(server: &Server<'_>, number: usize) -> Result<Lane> {
    let mut lane =
        Lane::connect(server).await.map_err(|error| Failed::from(error).context("load"))?;
    let lock = format!("SELECT GET_LOCK('{}', 0)", resume::lane_lock(number));
    let rows = lane.rows(lock.as_bytes()).await.map_err(|failed| failed.context("take a lock"))?;
    match rows.first().and_then(|row| row.first()) {
        Some(Some(taken)) if taken == &b"1"[..] => Ok(lane),
        _ => Err(Error::busy("a connection of another restore fills the target")),
    }
}

/// Whether there is a table of this name.
async fn exists(lane: &mut Lane, name: &str) -> Result<bool> {
    match show_create(lane, name).await {
        Ok(_) => Ok(true),
        Err(Failed::Refused(error)) if matches!(error.code, 1049 | 1146) => Ok(false),
        Err(failed) => Err(failed.context(format!("look for {name}"))),
    }
}

/// What the server shows as a table's definition.
async fn show_create(lane: &mut Lane, name: &str) -> Result<Bytes, Failed> {
    let rows = lane.rows(format!("SHOW CREATE TABLE {name}").as_bytes()).await?;
    let shown = rows.into_iter().next().and_then(|row| row.into_iter().nth(1)).flatten();
    shown.ok_or_else(|| Failed::Broken(Error::corrupt("SHOW CREATE TABLE shows nothing")))
}

/// A definition without its `AUTO_INCREMENT=5`, which rows may change.
fn without_counter(definition: &[u8]) -> (&[u8], &[u8]) {
    const COUNTER: &[u8] = b" AUTO_INCREMENT=";
    let options = memchr::memmem::rfind(definition, b"\n) ").unwrap_or(0);
    let found = memchr::memmem::find(definition.get(options..).unwrap_or_default(), COUNTER);
    let Some(at) = found.map(|at| options + at) else { return (definition, &[]) };
    let (before, rest) = definition.split_at_checked(at).unwrap_or((definition, &[]));
    let digits = rest.iter().skip(COUNTER.len()).take_while(|byte| byte.is_ascii_digit()).count();
    (before, rest.get(COUNTER.len() + digits..).unwrap_or_default())
}

/// Goes on where the server refuses to take keys off.
fn tolerated(failed: Failed, table: &str) -> Result<()> {
    match failed {
        Failed::Refused(error) => {
            tracing::debug!(
                "{table}: its keys cannot wait: error {}: {}",
                error.code,
                error.message
            );
            Ok(())
        }
        Failed::Broken(error) => Err(error),
    }
}

/// The beginning of a statement, to name it.
fn beginning(statement: &[u8]) -> String {
    const BYTES: usize = 80;
    let head = statement.get(..BYTES.min(statement.len())).unwrap_or_default();
    let text = String::from_utf8_lossy(head);
    let dots = if statement.len() > BYTES { "…" } else { "" };
    format!("run {:?}", format!("{}{dots}", text.trim()))
}
