//! Which tables of a target may be changed at the same time: those of different groups.
//!
//! A row that is changed can change rows of other tables, or depend on them, through foreign keys.
//! Triggers do not run for row events of the log; tables that they connect are in one group all
//! the same, in case a server runs them for what a foreign key does. So are those of one name but for
//! its case.
//!
//! Known are the tables of a baseline. What a statement of the log may have changed about groups is
//! not found out: from there on all tables are one group.
//!
//! **Invariant:** when in doubt, all tables are one group.

use super::baseline::SYSTEM_SCHEMAS;
use super::event::{Head, Query, Reader, kind};
use super::{ask, half};
use crate::error::Result;
use mysql_async::Conn;
use std::collections::{HashMap, HashSet};

/// Words without which no statement connects two tables, renames one or makes one of an engine that
/// stands for other tables. They may stand anywhere in it.
const CONNECTING: [&[u8]; 8] = [
    b"REFERENCES",
    b"RENAME",
    b"TRIGGER",
    b"VIEW",
    b"FUNCTION",
    b"PROCEDURE",
    b"UNION",
    b"CONNECTION",
];
/// Engines whose tables stand for themselves alone.
const PLAIN_ENGINES: [&str; 3] = ["innodb", "myisam", "memory"];
/// The server refused what an account may not.
const ACCESS_DENIED: [u16; 2] = [1142, 1227];

/// Schema and table, in small letters.
type Name = String;

/// The groups of tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Groups {
    /// All tables are one.
    One,
    /// Of each table that is not a group by itself, a table of its group that stands for it.
    Several(HashMap<Name, Name>),
}

impl Groups {
    /// Asks a server for the groups that its tables are in. What the account must not see makes
    /// them one.
    ///
    /// # Errors
    /// Unavailable, if the server does not answer.
    pub(super) async fn read(conn: &mut Conn) -> Result<Self> {
        let read = read(conn).await;
        if ask::server_code(&read).is_some_and(|code| ACCESS_DENIED.contains(&code)) {
            return Ok(Self::One);
        }
        Ok(read?.map_or(Self::One, |schema| schema.groups()))
    }

    /// The group of a table, which is named as a TABLE_MAP does it: schema and table, each with its
    /// length and a NUL behind it.
    pub(super) fn of(&self, table: &[u8]) -> Name {
        let Self::Several(others) = self else { return Name::new() };
        let mut at = Reader(table);
        let mut part = || {
            at.u8();
            String::from_utf8_lossy(at.until_nul().unwrap_or_default()).into_owned()
        };
        let name = name(&part(), &part());
        others.get(&name).cloned().unwrap_or(name)
    }

    /// Takes note of an event of the log, or of the beginning of one if it is not `whole`.
    ///
    /// # Errors
    /// Corrupt, if it is not what a server writes.
    pub(super) fn note_event(&mut self, head: &Head, body: &[u8], whole: bool) -> Result<()> {
        match head.kind {
            kind::QUERY => self.note(Query::parse(body)?.statement, whole),
            // What is in there is not seen.
            kind::TRANSACTION_PAYLOAD => self.doubt(),
            known if kind::is_known(known) => {}
            _ => self.doubt(),
        }
        Ok(())
    }

    /// Takes note of a statement of the log, or of the beginning of one if it is not `whole`.
    fn note(&mut self, statement: &[u8], whole: bool) {
        let statement = statement.to_ascii_uppercase();
        let connects = |word: &&[u8]| memchr::memmem::find(&statement, word).is_some();
        if !whole || CONNECTING.iter().any(connects) {
            self.doubt();
        }
    }

    /// Takes note of something in the log that is not understood.
    pub(super) fn doubt(&mut self) {
        if *self != Self::One {
            tracing::info!("from here on the log may connect any tables: they are one group");
        }
        *self = Self::One;
    }
}

fn name(schema: &str, table: &str) -> Name {
    format!("{schema}\0{table}").to_lowercase()
}

/// What connects the tables of a server.
#[derive(Debug, Default)]
struct Schema {
    tables: Vec<(String, String)>,
    /// Pairs of tables.
    keys: Vec<(Name, Name)>,
    /// The table of each trigger, and what it does.
    triggers: Vec<(Name, String)>,
    /// Names of views and routines.
    others: Vec<String>,
}

/// `None` if there is something that groups do not follow from.
async fn read(conn: &mut Conn) -> Result<Option<Schema>> {
    let mut schema = Schema::default();
    let own = half::SCHEMA;
    let tables: Vec<(String, String, String, Option<String>)> = ask::rows(
        conn,
        format!(
            "SELECT TABLE_SCHEMA, TABLE_NAME, TABLE_TYPE, ENGINE FROM information_schema.TABLES \
             WHERE TABLE_SCHEMA NOT IN ({SYSTEM_SCHEMAS}, '{own}')"
        ),
        || "list the tables".into(),
    )
    .await?;
    for (of, table, what, engine) in tables {
        if what != "BASE TABLE" {
            schema.others.push(table);
            continue;
        }
        if !PLAIN_ENGINES.contains(&engine.unwrap_or_default().to_lowercase().as_str()) {
            return Ok(None);
        }
        schema.tables.push((of, table));
    }
    let keys = foreign_keys(conn).await?;
    // What the account may not see of foreign keys is missing there.
    let counted: Option<(u64, u64)> = ask::first(
        conn,
        "SELECT (SELECT COUNT(*) FROM information_schema.INNODB_FOREIGN), \
         (SELECT COUNT(*) FROM information_schema.REFERENTIAL_CONSTRAINTS)",
        || "count the foreign keys".into(),
    )
    .await?;
    if counted.is_none_or(|(there, seen)| there != seen) {
        return Ok(None);
    }
    schema.keys = keys.iter().map(|(a, b, c, d)| (name(a, b), name(c, d))).collect();
    let triggers: Vec<(String, String, Option<String>)> = ask::rows(
        conn,
        format!(
            "SELECT EVENT_OBJECT_SCHEMA, EVENT_OBJECT_TABLE, ACTION_STATEMENT \
             FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA NOT IN ({SYSTEM_SCHEMAS})"
        ),
        || "read the triggers".into(),
    )
    .await?;
    for (of, table, text) in triggers {
        let Some(text) = text else { return Ok(None) };
        schema.triggers.push((name(&of, &table), text));
    }
    if !schema.triggers.is_empty() {
        let routines: Vec<String> = ask::rows(
            conn,
            format!(
                "SELECT ROUTINE_NAME FROM information_schema.ROUTINES \
                 WHERE ROUTINE_SCHEMA NOT IN ({SYSTEM_SCHEMAS})"
            ),
            || "list the routines".into(),
        )
        .await?;
        schema.others.extend(routines);
    }
    Ok(Some(schema))
}

/// All foreign keys: schema and table, and those that they refer to.
///
/// # Errors
/// Unavailable, if the server does not answer.
pub(super) async fn foreign_keys(conn: &mut Conn) -> Result<Vec<(String, String, String, String)>> {
    ask::rows(
        conn,
        "SELECT DISTINCT TABLE_SCHEMA, TABLE_NAME, REFERENCED_TABLE_SCHEMA, REFERENCED_TABLE_NAME \
         FROM information_schema.KEY_COLUMN_USAGE WHERE REFERENCED_TABLE_SCHEMA IS NOT NULL",
        || "read the foreign keys".into(),
    )
    .await
}

impl Schema {
    fn groups(&self) -> Groups {
        let mut sets = Sets::default();
        for (from, to) in &self.keys {
            sets.join(from, to);
        }
        for (table, text) in &self.triggers {
            let text = text.to_lowercase();
            let in_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$');
            let words: HashSet<&str> = text.split(|c| !in_word(c)).collect();
            let mentions = |name: &str| {
                let name = name.to_lowercase();
                // What is quoted may be written otherwise, if a quote is in it.
                words.contains(&*name)
                    || !name.chars().all(in_word)
                        && (name.contains(['`', '"']) || text.contains(&name))
            };
            if words.contains("call") || self.others.iter().any(|other| mentions(other)) {
                return Groups::One;
            }
            for (of, other) in self.tables.iter().filter(|(_, other)| mentions(other)) {
                sets.join(table, &name(of, other));
            }
        }
        sets.groups()
    }
}

/// Sets of names that are joined.
#[derive(Debug, Default)]
struct Sets {
    /// Of each name one that it was joined with, or itself.
    leads_to: HashMap<Name, Name>,
}

impl Sets {
    /// The name that stands for the set.
    fn root(&mut self, name: &str) -> Name {
        let mut root = name.to_owned();
        while let Some(next) = self.leads_to.get(&root).filter(|next| **next != root) {
            root.clone_from(next);
        }
        self.leads_to.insert(name.to_owned(), root.clone());
        root
    }

    fn join(&mut self, a: &str, b: &str) {
        let (a, b) = (self.root(a), self.root(b));
        self.leads_to.insert(a, b);
    }

    fn groups(mut self) -> Groups {
        let names: Vec<Name> = self.leads_to.keys().cloned().collect();
        Groups::Several(names.into_iter().map(|name| (name.clone(), self.root(&name))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn mapped(table: &str) -> Vec<u8> {
        let mut bytes = vec![];
        for part in ["Shop", table] {
            bytes.push(part.len() as u8);
            bytes.extend_from_slice(part.as_bytes());
            bytes.push(0);
        }
        bytes
    }

    fn schema() -> Schema {
        let tables = ["a", "b", "c", "d", "e"];
        Schema {
            tables: tables.iter().map(|table| ("shop".to_owned(), (*table).to_owned())).collect(),
            keys: vec![
                (name("shop", "a"), name("shop", "b")),
                (name("shop", "c"), name("shop", "not_there")),
                (name("shop", "B"), name("shop", "not_there")),
            ],
            ..Schema::default()
        }
    }

    fn same(groups: &Groups, one: &str, other: &str) -> bool {
        groups.of(&mapped(one)) == groups.of(&mapped(other))
    }

    #[test]
    fn foreign_keys_make_groups_whatever_lies_between() {
        let groups = schema().groups();
        assert!(same(&groups, "a", "b") && same(&groups, "a", "c") && same(&groups, "A", "C"));
        assert!(!same(&groups, "a", "d") && !same(&groups, "d", "e"));
        assert!(same(&groups, "a", "not_there") && !same(&groups, "a", "unknown"));
        assert!(same(&Groups::One, "a", "d"));
    }

    #[rstest]
    #[case::a_table("INSERT INTO `e` VALUES (1)", true)]
    #[case::nothing("SET NEW.x = 1", false)]
    fn triggers_make_groups(#[case] text: &str, #[case] is_same: bool) {
        let mut schema = schema();
        schema.others = vec!["reaches".into()];
        schema.triggers = vec![(name("shop", "d"), text.into())];
        let groups = schema.groups();
        assert_eq!(same(&groups, "d", "e"), is_same);
        assert_ne!(groups, Groups::One);
    }

    #[rstest]
    #[case::a_routine("SET NEW.x = Reaches(1)")]
    #[case::any_routine("Call p()")]
    fn what_a_trigger_reaches_unseen_makes_all_tables_one(#[case] text: &str) {
        let mut schema = schema();
        schema.others = vec!["reaches".into()];
        schema.triggers = vec![(name("shop", "d"), text.into())];
        assert_eq!(schema.groups(), Groups::One);
    }

    #[rstest]
    #[case::a_key("alter table a add foreign key (x) references d (x)", true, true)]
    #[case::a_key_in_a_comment("CREATE TABLE f (x INT /*!50100 REFERENCES d (x) */)", true, true)]
    #[case::a_new_name("ALTER TABLE a RENAME TO z", true, true)]
    #[case::a_trigger(
        "CREATE DEFINER=`r`@`%` TRIGGER t BEFORE INSERT ON a FOR EACH ROW",
        true,
        true
    )]
    #[case::a_part("CREATE TABLE f (x INT,", false, true)]
    #[case::a_column("ALTER TABLE a ADD COLUMN x INT", true, false)]
    #[case::a_table("CREATE TABLE f (x INT) ENGINE = InnoDB", true, false)]
    #[case::no_table("FLUSH BINARY LOGS", true, false)]
    fn statements_that_may_connect_tables_make_them_one(
        #[case] statement: &str,
        #[case] whole: bool,
        #[case] is_one: bool,
    ) {
        let mut groups = schema().groups();
        groups.note(statement.as_bytes(), whole);
        assert_eq!(groups == Groups::One, is_one);
    }
}
