//! Scheduled events: which of them were enabled at an instant.
//!
//! An event that is created or altered by a replication applier comes out disabled, whatever the
//! statement says (`Event_parse_data::check_originator_id` in the server's
//! `sql/event_parse_data.cc`), so that it does not run twice. What it would have been is worked
//! out here: from the states after the baseline was loaded, and the statements that are replayed.
//! At the end each event is put into that state, and looked at again.
//!
//! Only the head of a statement is read, as tokens: never an event's body.
//!
//! **Invariant:** nothing but an event's state is changed; where the rest comes out different, or
//! a state is not known, that is an error.

use super::accounts::identifier;
use super::ask;
use super::flavor::Family;
use crate::error::{Class, Error, Result};
use mysql_async::Conn;
use std::collections::BTreeMap;

/// The state of an event, with the server's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It runs.
    Enabled,
    /// It does not.
    Disabled,
    /// It does not run here, but on another server.
    ReplicaSide,
}

impl State {
    /// Reads `information_schema.EVENTS.STATUS`, in its old words too.
    fn parse(status: &str) -> Option<Self> {
        match status {
            "ENABLED" => Some(Self::Enabled),
            "DISABLED" => Some(Self::Disabled),
            "REPLICA_SIDE_DISABLED" | "SLAVESIDE_DISABLED" => Some(Self::ReplicaSide),
            _ => None,
        }
    }

    fn clause(self, family: Family) -> &'static str {
        match (self, family) {
            (Self::Enabled, _) => "ENABLE",
            (Self::Disabled, _) => "DISABLE",
            (Self::ReplicaSide, Family::MySql) => "DISABLE ON REPLICA",
            (Self::ReplicaSide, Family::MariaDb) => "DISABLE ON SLAVE",
        }
    }
}

/// Schema, and name in lower case: names of events are compared without case.
type Name = (String, String);

/// The states of all events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct States(BTreeMap<Name, State>);

fn key(schema: &str, name: &str) -> Name {
    (schema.to_owned(), name.to_lowercase())
}

impl States {
    /// The states as the server has them now.
    pub(super) async fn read(conn: &mut Conn) -> Result<Self> {
        let rows: Vec<(String, String, String)> = ask::rows(
            conn,
            "SELECT EVENT_SCHEMA, EVENT_NAME, CAST(STATUS AS CHAR) FROM information_schema.EVENTS",
            || "read the states of scheduled events".into(),
        )
        .await?;
        let mut states = BTreeMap::new();
        for (schema, name, status) in rows {
            let state = State::parse(&status).ok_or_else(|| {
                Error::unavailable(format!("event {schema}.{name} has the unknown state {status}"))
            })?;
            states.insert(key(&schema, &name), state);
        }
        Ok(Self(states))
    }

    /// Takes note of a statement that is replayed, run with `schema` as the default one. Says
    /// whether it was about events.
    pub(super) fn note(&mut self, schema: &[u8], statement: &[u8]) -> bool {
        // Nearly every statement is BEGIN, or about something else.
        let mut tokens = Tokens(statement);
        let Some(Token::Word(verb)) = tokens.next() else { return false };
        let is = |word: &str| verb.eq_ignore_ascii_case(word.as_bytes());
        let noted = if is("CREATE") || is("ALTER") {
            tokens
                .up_to_event()
                .and_then(|()| self.created_or_altered(schema, tokens, is("CREATE")))
        } else if is("DROP") {
            self.dropped(schema, tokens)
        } else {
            None
        };
        noted.is_some()
    }

    fn created_or_altered(
        &mut self,
        schema: &[u8],
        mut tokens: Tokens<'_>,
        create: bool,
    ) -> Option<()> {
        let kept = create && tokens.skip_words(&["IF", "NOT", "EXISTS"]);
        let name = tokens.name(schema)?;
        let clauses = tokens.clauses(schema);
        if create {
            let state = clauses.state.unwrap_or(State::Enabled);
            if kept {
                self.0.entry(name).or_insert(state);
            } else {
                self.0.insert(name, state);
            }
            return Some(());
        }
        // Without a clause, it stays as it is.
        let before = self.0.remove(&name);
        if let Some(state) = clauses.state.or(before) {
            self.0.insert(clauses.renamed.unwrap_or(name), state);
        }
        Some(())
    }

    fn dropped(&mut self, schema: &[u8], mut tokens: Tokens<'_>) -> Option<()> {
        let Token::Word(what) = tokens.next()? else { return None };
        let is = |word: &str| what.eq_ignore_ascii_case(word.as_bytes());
        tokens.skip_words(&["IF", "EXISTS"]);
        if is("EVENT") {
            self.0.remove(&tokens.name(schema)?);
        } else if is("DATABASE") || is("SCHEMA") {
            let gone = tokens.next()?.identifier()?;
            self.0.retain(|(schema, _), _| *schema != gone);
        }
        Some(())
    }

    /// Puts every event of the server into its state here, and looks at them again.
    ///
    /// The session's settings are changed: close the connection afterwards.
    ///
    /// # Errors
    /// Finding, if the state of an event is not known or did not come out right.
    pub(super) async fn put_in_force(&self, conn: &mut Conn, family: Family) -> Result<usize> {
        let before = details(conn).await?;
        let mut wrong = Vec::new();
        for (name, event) in &before {
            let now = State::parse(&event.status);
            match self.0.get(name) {
                Some(state) if now != Some(*state) => {
                    event.alter(conn, family, *state).await?;
                }
                Some(_) => {}
                None => wrong.push(format!("{}.{}", name.0, name.1)),
            }
        }
        let after = details(conn).await?;
        for (name, event) in &before {
            let same = after.get(name).is_some_and(|after| {
                State::parse(&after.status) == self.0.get(name).copied()
                    && after.same_but_state(event)
            });
            if !same {
                wrong.push(format!("{}.{}", name.0, name.1));
            }
        }
        wrong.dedup();
        if wrong.is_empty() {
            return Ok(before.len());
        }
        Err(Error::new(
            Class::Finding,
            format!("the state of scheduled events is not what it was: {}", wrong.join(", ")),
        )
        .hint("compare information_schema.EVENTS with the source"))
    }
}

/// An event as `information_schema.EVENTS` has it.
#[derive(Debug, PartialEq, Eq)]
struct Details {
    schema: String,
    name: String,
    status: String,
    definer: String,
    sql_mode: String,
    time_zone: String,
    client: String,
    collation: String,
    /// Everything else that must stay as it is.
    rest: String,
}

async fn details(conn: &mut Conn) -> Result<BTreeMap<Name, Details>> {
    let rows: Vec<[String; 9]> = ask::rows::<mysql_async::Row>(
        conn,
        "SELECT EVENT_SCHEMA, EVENT_NAME, CAST(STATUS AS CHAR), DEFINER, \
         CAST(SQL_MODE AS CHAR), TIME_ZONE, CHARACTER_SET_CLIENT, COLLATION_CONNECTION, \
         SHA2(CONCAT_WS('|', EVENT_DEFINITION, EVENT_TYPE, EXECUTE_AT, INTERVAL_VALUE, \
         INTERVAL_FIELD, STARTS, ENDS, ON_COMPLETION, EVENT_COMMENT, DATABASE_COLLATION), 256) \
         FROM information_schema.EVENTS",
        || "read the scheduled events".into(),
    )
    .await?
    .into_iter()
    .map(|mut row| {
        let mut columns: [String; 9] = Default::default();
        for (at, column) in columns.iter_mut().enumerate() {
            *column = row.take_opt::<String, _>(at).and_then(Result::ok).ok_or_else(|| {
                Error::unavailable("read the scheduled events: a column of another form")
            })?;
        }
        Ok(columns)
    })
    .collect::<Result<_>>()?;
    let details = rows.into_iter().map(|row| {
        let [schema, name, status, definer, sql_mode, time_zone, client, collation, rest] = row;
        let name_key = key(&schema, &name);
        let details =
            Details { schema, name, status, definer, sql_mode, time_zone, client, collation, rest };
        (name_key, details)
    });
    Ok(details.collect())
}

impl Details {
    fn same_but_state(&self, other: &Self) -> bool {
        let parts = |event: &Self| {
            (
                event.definer.clone(),
                event.sql_mode.clone(),
                event.time_zone.clone(),
                event.client.clone(),
                event.collation.clone(),
                event.rest.clone(),
            )
        };
        parts(self) == parts(other)
    }

    /// Changes the state. The session's settings become part of an event that it alters, so they
    /// are made those that the event has.
    async fn alter(&self, conn: &mut Conn, family: Family, state: State) -> Result<()> {
        let Self { schema, name, .. } = self;
        let doing = || format!("set the state of event {schema}.{name}");
        let (user, host) = self.definer.rsplit_once('@').unwrap_or((&self.definer, "%"));
        for statement in [
            "SET SESSION sql_log_bin = 0".to_owned(),
            format!("SET SESSION character_set_client = {}", self.client),
            format!("SET SESSION collation_connection = {}", self.collation),
            format!("SET SESSION time_zone = {}", text(&self.time_zone)),
            format!("SET SESSION sql_mode = {}", text(&self.sql_mode)),
            format!(
                "ALTER DEFINER = {}@{} EVENT {}.{} {}",
                identifier(user),
                identifier(host),
                identifier(schema),
                identifier(name),
                state.clause(family)
            ),
            "SET SESSION sql_mode = ''".to_owned(),
            "SET NAMES utf8mb4".to_owned(),
        ] {
            ask::run(conn, statement, doing).await?;
        }
        Ok(())
    }
}

/// A value from the server, quoted. None of those used here may hold a quote.
fn text(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// What follows the name in a statement for an event, up to its body.
#[derive(Debug, Default)]
struct Clauses {
    state: Option<State>,
    renamed: Option<Name>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    /// An unquoted word.
    Word(&'a [u8]),
    /// Text in quotes of any kind, without them.
    Quoted(&'a [u8], u8),
    /// Any other byte.
    Other(u8),
}

impl Token<'_> {
    /// The name that this is, if it is one.
    fn identifier(self) -> Option<String> {
        match self {
            Self::Word(word) => Some(String::from_utf8_lossy(word).into_owned()),
            Self::Quoted(inner, quote) => {
                let inner = String::from_utf8_lossy(inner);
                let quote = char::from(quote);
                Some(inner.replace(&format!("{quote}{quote}"), &quote.to_string()))
            }
            Self::Other(_) => None,
        }
    }
}

/// Where the DEFINER would stand in an `ALTER EVENT` that has none. The server takes who runs it
/// then, and does not write that into the statement that it logs.
pub(super) fn place_of_definer(statement: &[u8]) -> Option<usize> {
    let mut tokens = Tokens(statement);
    let mut is = |word: &str| matches!(tokens.next(), Some(Token::Word(found)) if found.eq_ignore_ascii_case(word.as_bytes()));
    if !is("ALTER") {
        return None;
    }
    let place = statement.len() - tokens.0.len();
    tokens.skip_words(&["EVENT"]).then_some(place)
}

/// The tokens of a statement, without comments.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tokens<'a>(&'a [u8]);

impl<'a> Tokens<'a> {
    /// Those of this statement.
    pub(super) fn new(statement: &'a [u8]) -> Self {
        Self(statement)
    }

    /// What has not been read.
    pub(super) fn rest(self) -> &'a [u8] {
        self.0
    }

    /// The next word in capitals, if a word comes next.
    pub(super) fn word(&mut self) -> Option<String> {
        match self.next()? {
            Token::Word(word) => Some(String::from_utf8_lossy(word).to_ascii_uppercase()),
            _ => None,
        }
    }

    /// The next byte.
    pub(super) fn first(self) -> Option<u8> {
        self.0.first().copied()
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at_checked(len).unwrap_or((self.0, &[]));
        self.0 = rest;
        taken
    }

    fn skip_past(&mut self, mark: &[u8]) {
        let at = self.0.windows(mark.len()).position(|part| part == mark);
        self.take(at.map_or(self.0.len(), |at| at + mark.len()));
    }

    /// Skips space and comments. What stands in `/*!50106 … */` counts.
    pub(super) fn skip_space(&mut self) {
        loop {
            match self.0 {
                [space, ..] if space.is_ascii_whitespace() => drop(self.take(1)),
                [b'/', b'*', b'!', ..] => {
                    self.take(3);
                    let digits = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
                    self.take(digits);
                }
                [b'*', b'/', ..] => drop(self.take(2)),
                [b'/', b'*', ..] => {
                    self.take(2);
                    self.skip_past(b"*/");
                }
                [b'#', ..] => self.skip_past(b"\n"),
                [b'-', b'-', space, ..] if space.is_ascii_whitespace() => self.skip_past(b"\n"),
                _ => return,
            }
        }
    }

    fn next(&mut self) -> Option<Token<'a>> {
        self.skip_space();
        let first = *self.0.first()?;
        if matches!(first, b'`' | b'"' | b'\'') {
            return Some(self.quoted(first));
        }
        let in_word =
            |byte: &u8| byte.is_ascii_alphanumeric() || matches!(*byte, b'_' | b'$' | 0x80..);
        let len = self.0.iter().take_while(|byte| in_word(byte)).count();
        if len == 0 {
            self.take(1);
            return Some(Token::Other(first));
        }
        Some(Token::Word(self.take(len)))
    }

    fn quoted(&mut self, quote: u8) -> Token<'a> {
        self.take(1);
        let mut len = 0;
        loop {
            match self.0.get(len..).unwrap_or_default() {
                // Backslashes escape in text only.
                [b'\\', _, ..] if quote != b'`' => len += 2,
                [a, b, ..] if *a == quote && *b == quote => len += 2,
                [a, ..] if *a == quote => break,
                [_, ..] => len += 1,
                [] => break,
            }
        }
        let inner = self.take(len);
        self.take(1);
        Token::Quoted(inner, quote)
    }

    /// Goes behind the word EVENT; before it only a DEFINER may stand.
    fn up_to_event(&mut self) -> Option<()> {
        // OR REPLACE DEFINER = `user` @ `host`: no more tokens than this.
        for _ in 0..12 {
            match self.next()? {
                Token::Word(word) if word.eq_ignore_ascii_case(b"EVENT") => return Some(()),
                Token::Word(word) if is_other_object(word) => return None,
                // A user may have any name, also that of an object.
                Token::Word(word) if word.eq_ignore_ascii_case(b"DEFINER") => {
                    self.next()?;
                    self.next()?;
                }
                _ => {}
            }
        }
        None
    }

    /// Skips these words, if they all follow.
    pub(super) fn skip_words(&mut self, words: &[&str]) -> bool {
        let mut ahead = *self;
        for word in words {
            match ahead.next() {
                Some(Token::Word(found)) if found.eq_ignore_ascii_case(word.as_bytes()) => {}
                _ => return false,
            }
        }
        *self = ahead;
        true
    }

    /// `name` or `schema.name`.
    fn name(&mut self, schema: &[u8]) -> Option<Name> {
        let first = self.next()?.identifier()?;
        let mut ahead = *self;
        if ahead.next() == Some(Token::Other(b'.')) {
            let second = ahead.next()?.identifier()?;
            *self = ahead;
            return Some(key(&first, &second));
        }
        Some(key(&String::from_utf8_lossy(schema), &first))
    }

    fn clauses(mut self, schema: &[u8]) -> Clauses {
        let mut clauses = Clauses::default();
        let mut depth = 0_u32;
        while let Some(token) = self.next() {
            let word = match token {
                Token::Other(b'(') => {
                    depth += 1;
                    continue;
                }
                Token::Other(b')') => {
                    depth = depth.saturating_sub(1);
                    continue;
                }
                Token::Word(word) if depth == 0 => word,
                _ => continue,
            };
            let is = |text: &str| word.eq_ignore_ascii_case(text.as_bytes());
            if is("DO") || is("COMMENT") {
                // The state stands before either.
                break;
            } else if is("RENAME") && self.skip_words(&["TO"]) {
                clauses.renamed = self.name(schema);
            } else if is("ENABLE") {
                clauses.state = Some(State::Enabled);
            } else if is("DISABLE") {
                let elsewhere =
                    self.skip_words(&["ON", "SLAVE"]) || self.skip_words(&["ON", "REPLICA"]);
                let state = if elsewhere { State::ReplicaSide } else { State::Disabled };
                clauses.state = Some(state);
            }
        }
        clauses
    }
}

/// What CREATE and ALTER are mostly about. Ends the search for EVENT, which may be a name there.
fn is_other_object(word: &[u8]) -> bool {
    const OTHERS: [&str; 16] = [
        "TABLE",
        "DATABASE",
        "SCHEMA",
        "VIEW",
        "PROCEDURE",
        "FUNCTION",
        "TRIGGER",
        "INDEX",
        "USER",
        "ROLE",
        "SERVER",
        "TABLESPACE",
        "UNIQUE",
        "TEMPORARY",
        "ALGORITHM",
        "AGGREGATE",
    ];
    OTHERS.iter().any(|other| word.eq_ignore_ascii_case(other.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    fn states(entries: &[(&str, State)]) -> States {
        let entry = |(name, state): &(&str, State)| (key("shop", name), *state);
        States(entries.iter().map(entry).collect())
    }

    #[rstest]
    #[case::plain("CREATE EVENT e ON SCHEDULE EVERY 1 DAY DO SELECT 1", &[("e", State::Enabled)])]
    #[case::definer(
        "CREATE DEFINER=`root`@`localhost` EVENT IF NOT EXISTS `shop`.`E` ON SCHEDULE AT \
         '2030-01-01 00:00:00' + INTERVAL (1+1) DAY ON COMPLETION PRESERVE DISABLE DO DELETE x",
        &[("e", State::Disabled)]
    )]
    #[case::replica("create event e on schedule every 1 day disable on slave do set @a = 1",
        &[("e", State::ReplicaSide)])]
    #[case::body("CREATE EVENT e ON SCHEDULE EVERY 1 DAY DO ALTER EVENT e DISABLE",
        &[("e", State::Enabled)])]
    #[case::comment("CREATE EVENT e ON SCHEDULE EVERY 1 DAY COMMENT 'DISABLE' DO SELECT 1",
        &[("e", State::Enabled)])]
    #[case::comments("/* DROP */ CREATE -- EVENT x\n/*!50106 EVENT e*/ ON SCHEDULE EVERY 1 DAY \
        # DISABLE\n DO SELECT 1", &[("e", State::Enabled)])]
    #[case::other_schema("CREATE EVENT other.e ON SCHEDULE EVERY 1 DAY DO SELECT 1", &[])]
    #[case::table_of_that_name("CREATE TABLE event (e INT)", &[])]
    #[case::quoted_name("CREATE EVENT `a``b.c` ON SCHEDULE EVERY 1 DAY DO SELECT 1",
        &[("a`b.c", State::Enabled)])]
    fn created_events_are_in_the_state_that_their_statement_says(
        #[case] statement: &str,
        #[case] expected: &[(&str, State)],
    ) {
        let mut found = States::default();
        found.note(b"shop", statement.as_bytes());
        found.0.retain(|(schema, _), _| schema == "shop");
        assert_eq!(found, states(expected));
    }

    #[rstest]
    #[case::disable("ALTER EVENT e DISABLE", &[("e", State::Disabled), ("f", State::Disabled)])]
    #[case::enable("ALTER DEFINER = x@y EVENT shop.F ENABLE COMMENT 'DISABLE'",
        &[("e", State::Enabled), ("f", State::Enabled)])]
    #[case::unchanged("ALTER EVENT f ON SCHEDULE EVERY 2 DAY DO SELECT 'ENABLE'",
        &[("e", State::Enabled), ("f", State::Disabled)])]
    #[case::renamed("ALTER EVENT f RENAME TO g",
        &[("e", State::Enabled), ("g", State::Disabled)])]
    #[case::renamed_away("ALTER EVENT f ON COMPLETION PRESERVE RENAME TO other.g ENABLE",
        &[("e", State::Enabled)])]
    #[case::dropped("DROP EVENT IF EXISTS `e`", &[("f", State::Disabled)])]
    #[case::schema_dropped("DROP DATABASE shop", &[])]
    #[case::other_schema_dropped("DROP SCHEMA IF EXISTS `other`",
        &[("e", State::Enabled), ("f", State::Disabled)])]
    #[case::kept("CREATE EVENT IF NOT EXISTS f ON SCHEDULE EVERY 1 DAY DO SELECT 1",
        &[("e", State::Enabled), ("f", State::Disabled)])]
    #[case::table("DROP TABLE e", &[("e", State::Enabled), ("f", State::Disabled)])]
    fn changes_of_events_are_followed(#[case] statement: &str, #[case] expected: &[(&str, State)]) {
        let mut found = states(&[("e", State::Enabled), ("f", State::Disabled)]);
        found.note(b"shop", statement.as_bytes());
        found.0.retain(|(schema, _), _| schema == "shop");
        assert_eq!(found, states(expected));
    }

    proptest! {
        #[test]
        fn arbitrary_statements_never_panic(
            verb in "(CREATE EVENT |ALTER EVENT |DROP EVENT )?",
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut statement = verb.into_bytes();
            statement.extend(bytes);
            States::default().note(b"shop", &statement);
        }
    }
}
