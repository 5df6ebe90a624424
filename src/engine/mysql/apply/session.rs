//! The session that a statement of the source ran in, as `SET` statements for ours.
//!
//! A QUERY event carries it as status variables (`Query_log_event::Query_log_event` in the
//! server's `sql/log_event.cc`, `Q_*` in `statement_events.h`); INTVAR, RAND and USER_VAR events
//! before it carry the rest.
//!
//! **Invariant:** what is not understood is an error: a statement is never run in a session that
//! might give it another meaning.

use super::super::accounts::{Account, identifier};
use super::super::event::{Head, Query, Reader, flag};
use super::super::events;
use super::super::flavor::Family;
use super::maria;
use crate::error::{Error, Result};
use mysql_common::binlog::decimal::Decimal;
use std::collections::BTreeMap;

/// Names of collations, and of the charsets that they belong to, by their numbers.
pub(super) type Collations = BTreeMap<u32, (String, String)>;

/// Flags of a session (`OPTION_*` in the server's `sql/query_options.h`).
mod option {
    pub(super) const AUTO_IS_NULL: u32 = 1 << 14;
    pub(super) const NO_FOREIGN_KEY_CHECKS: u32 = 1 << 26;
    pub(super) const RELAXED_UNIQUE_CHECKS: u32 = 1 << 27;
}

/// What events before a statement say about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Before {
    assignments: Vec<String>,
}

fn bad(what: &str) -> Error {
    Error::corrupt(format!("{what} event: not in its form"))
}

impl Before {
    /// Takes an INTVAR event's body.
    pub(super) fn intvar(&mut self, body: &[u8]) -> Result<()> {
        let mut at = Reader(body);
        let (Some(kind), Some(value)) = (at.u8(), at.u64()) else { return Err(bad("INTVAR")) };
        let name = match kind {
            1 => "LAST_INSERT_ID",
            2 => "INSERT_ID",
            _ => return Err(bad("INTVAR")),
        };
        self.assignments.push(format!("{name}={value}"));
        Ok(())
    }

    /// Takes a RAND event's body.
    pub(super) fn rand(&mut self, body: &[u8]) -> Result<()> {
        let mut at = Reader(body);
        let (Some(one), Some(two)) = (at.u64(), at.u64()) else { return Err(bad("RAND")) };
        self.assignments.push(format!("rand_seed1={one},rand_seed2={two}"));
        Ok(())
    }

    /// Takes a USER_VAR event's body.
    pub(super) fn user_var(&mut self, body: &[u8], collations: &Collations) -> Result<()> {
        let assignment = user_var(body, collations).ok_or_else(|| bad("USER_VAR"))??;
        self.assignments.push(assignment);
        Ok(())
    }
}

fn user_var(body: &[u8], collations: &Collations) -> Option<Result<String>> {
    const STRING: u8 = 0;
    const REAL: u8 = 1;
    const INTEGER: u8 = 2;
    const DECIMAL: u8 = 4;
    let mut at = Reader(body);
    let name_len = usize::try_from(at.u32()?).ok()?;
    let name = identifier(std::str::from_utf8(at.bytes(name_len)?).ok()?);
    if at.u8()? != 0 {
        return Some(Ok(format!("@{name}=NULL")));
    }
    let kind = at.u8()?;
    let collation = at.u32()?;
    let len = usize::try_from(at.u32()?).ok()?;
    let value = at.bytes(len)?;
    let unsigned = at.u8().unwrap_or(0) & 1 != 0;
    if !at.0.is_empty() {
        // A MariaDB names types that plugins bring.
        return Some(Err(Error::unavailable("a variable has a type that is not known here")));
    }
    let value = match kind {
        STRING => {
            let Some((collation, charset)) = collations.get(&collation) else {
                return Some(Err(Error::unavailable(format!(
                    "the target does not know collation {collation}, which a variable has"
                ))));
            };
            let hex = hex(value);
            format!("_{charset} X'{hex}' COLLATE {collation}")
        }
        REAL => format!("{:e}", f64::from_le_bytes(*value.first_chunk()?)),
        INTEGER => {
            let n = u64::from_le_bytes(*value.first_chunk()?);
            if unsigned { n.to_string() } else { n.cast_signed().to_string() }
        }
        DECIMAL => {
            let (&precision, rest) = value.split_first()?;
            let (&scale, digits) = rest.split_first()?;
            let (precision, scale) = (usize::from(precision), usize::from(scale));
            Decimal::read_bin(digits, precision, scale, false).ok()?.to_string()
        }
        _ => return None,
    };
    Some(Ok(format!("@{name}={value}")))
}

/// Bytes in hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    let digit = |half: u8| DIGITS.get(usize::from(half)).copied().unwrap_or_default();
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Values of our session that are changed only where a statement needs it: changing them takes
/// privileges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Guarded(BTreeMap<&'static str, u64>);

impl Guarded {
    /// The session's values, in the order of [`Guarded::NAMES`].
    pub(super) fn new(values: impl IntoIterator<Item = (&'static str, u64)>) -> Self {
        Self(values.into_iter().collect())
    }

    /// The variables.
    pub(super) const NAMES: [&'static str; 9] = [
        "explicit_defaults_for_timestamp",
        "default_collation_for_utf8mb4",
        "sql_require_primary_key",
        "default_table_encryption",
        "enable_cascade_triggers",
        "check_constraint_checks",
        "sql_if_exists",
        "system_versioning_insert_history",
        "character_set_collations",
    ];

    fn knows(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Assigns one that a server may lack: then it does what the value of a new session means.
    fn assign_if_known(&mut self, to: &mut Vec<String>, name: &'static str, value: u64) {
        if self.knows(name) {
            self.assign(to, name, value);
        }
    }

    fn assign(&mut self, to: &mut Vec<String>, name: &'static str, value: u64) {
        if self.0.insert(name, value) != Some(value) {
            to.push(format!("{name}={value}"));
        }
    }
}

/// What statements are made ready with.
#[derive(Debug, Clone)]
pub(super) struct Context {
    /// That of source and target.
    pub(super) family: Family,
    /// Those that the target knows.
    pub(super) collations: Collations,
    /// What our session has.
    pub(super) guarded: Guarded,
}

/// A statement of the source, ready to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ready {
    /// What makes our session that of the source: `USE`, and one `SET`.
    pub(super) session: Vec<String>,
    /// The statement.
    pub(super) statement: Vec<u8>,
}

impl Context {
    /// Gets a statement of the source ready.
    ///
    /// # Errors
    /// Unavailable, if the session had something that cannot be had here. `None` if the statement
    /// does nothing where it stands: a MariaDB may log the beginning of an ALTER by itself.
    #[expect(clippy::too_many_lines, reason = "one setting after the other, by their codes")]
    pub(super) fn ready(
        &mut self,
        head: &Head,
        query: &Query<'_>,
        before: &mut Before,
    ) -> Result<Option<Ready>> {
        // `Gtid_log_event::FL_START_ALTER_E1` and so on.
        const START_ALTER: u8 = 2;
        const COMMIT_ALTER: u8 = 4;
        const ROLLBACK_ALTER: u8 = 8;
        let is_maria = self.family == Family::MariaDb;
        let guarded = &mut self.guarded;
        let mut charset_collations = String::new();
        let mut collation_database = None;
        let mut invoker = None;
        let mut set = Vec::new();
        // Without these in the event, they are off.
        let mut flags = 0;
        let mut micros = 0;
        let mut time_zone = None;
        let mut lc_time_names = 0;
        let mut increment = (1, 1);
        let mut at = Reader(query.status);
        while let Some(code) = at.u8() {
            let parsed = match code {
                0 => at.u32().map(|n| flags = n),
                1 => at.u64().map(|mode| set.push(format!("sql_mode={mode}"))),
                2 => at.u8().and_then(|len| at.bytes(usize::from(len) + 1)).map(drop),
                3 => at.u16().zip(at.u16()).map(|both| increment = both),
                4 => at.array::<6>().map(|&[a, b, c, d, e, f]| {
                    let [client, connection, server] =
                        [[a, b], [c, d], [e, f]].map(u16::from_le_bytes);
                    set.push(format!(
                        "character_set_client={client},collation_connection={connection},\
                     collation_server={server}"
                    ));
                }),
                5 => short_text(&mut at).map(|zone| time_zone = Some(zone)),
                6 => short_text(&mut at).map(drop),
                7 => at.u16().map(|n| lc_time_names = n),
                8 => at.u16().map(|n| collation_database = Some(n)),
                9 | 17 => at.u64().map(drop),
                10 => at.u32().map(drop),
                11 => match (short_text(&mut at), short_text(&mut at)) {
                    (Some(_), Some(_)) if mentions_current_user(query.statement) => {
                        return Err(Error::unavailable(
                        "a statement means the account that ran it (CURRENT_USER): it cannot be \
                         run over an ordinary connection",
                    )
                    .hint("restore with --apply native"));
                    }
                    (Some(user), Some(host)) => {
                        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
                        invoker = Some(Account { user: text(user), host: text(host) });
                        Some(())
                    }
                    _ => None,
                },
                12 => skip_names(&mut at),
                13 => at.array::<3>().map(|&[a, b, c]| micros = u32::from_le_bytes([a, b, c, 0])),
                16 => at.u8().map(|n| {
                    guarded.assign(&mut set, "explicit_defaults_for_timestamp", n.into());
                }),
                18 => at.u16().map(|n| {
                    guarded.assign(&mut set, "default_collation_for_utf8mb4", n.into());
                }),
                19 => {
                    at.u8().map(|n| guarded.assign(&mut set, "sql_require_primary_key", n.into()))
                }
                20 => {
                    at.u8().map(|n| guarded.assign(&mut set, "default_table_encryption", n.into()))
                }
                21 => {
                    at.u8().map(|n| guarded.assign(&mut set, "enable_cascade_triggers", n.into()))
                }
                128 if is_maria => at.array::<3>().map(|&[a, b, c]| {
                    micros = u32::from_le_bytes([a, b, c, 0]);
                }),
                129 if is_maria => at.u64().map(drop),
                130 if is_maria => match at.u8() {
                    // It begins, or is rolled back.
                    Some(START_ALTER | ROLLBACK_ALTER) => {
                        before.assignments.clear();
                        return Ok(None);
                    }
                    Some(COMMIT_ALTER) => at.u64().map(drop),
                    _ => None,
                },
                131 if is_maria => match maria::charset_collations(&mut at, &self.collations) {
                    Some(text) => {
                        charset_collations = text?;
                        Some(())
                    }
                    None => None,
                },
                _ => {
                    return Err(Error::unavailable(format!(
                        "a statement ran with a setting that is not known here (status {code})"
                    ))
                    .hint("restore with --apply native"));
                }
            };
            parsed.ok_or_else(|| bad("QUERY"))?;
        }
        match collation_database {
            Some(n) => set.push(format!("collation_database={n}")),
            None if is_maria => set.push("collation_database=DEFAULT".into()),
            None => {}
        }
        if is_maria {
            for (bit, name, value) in maria::OPTIONS {
                let value = if flags & bit == 0 { 1 - value } else { value };
                guarded.assign_if_known(&mut set, name, value);
            }
            if guarded.knows("character_set_collations") {
                set.push(format!("character_set_collations='{charset_collations}'"));
            } else if !charset_collations.is_empty() {
                return Err(Error::unavailable("the target has no character_set_collations"));
            }
        }
        let on = |flag: u32| u8::from(flags & flag != 0);
        set.push(format!(
            "foreign_key_checks={},unique_checks={},sql_auto_is_null={}",
            1 - on(option::NO_FOREIGN_KEY_CHECKS),
            1 - on(option::RELAXED_UNIQUE_CHECKS),
            on(option::AUTO_IS_NULL),
        ));
        let (step, offset) = increment;
        set.push(format!("auto_increment_increment={step},auto_increment_offset={offset}"));
        set.push(format!("lc_time_names={lc_time_names}"));
        let zone = time_zone.map_or_else(|| "'SYSTEM'".into(), text_literal);
        set.push(format!("time_zone={zone}"));
        set.push(format!("timestamp={}.{micros:06}", head.timestamp));
        if head.flags & flag::THREAD_SPECIFIC != 0 {
            set.push(format!("pseudo_thread_id={}", query.thread_id));
        }
        set.append(&mut before.assignments);
        let mut statements = Vec::new();
        if head.flags & flag::SUPPRESS_USE == 0 && !query.schema.is_empty() {
            let schema = std::str::from_utf8(query.schema).map_err(|_| bad("QUERY"))?;
            statements.push(format!("USE {}", identifier(schema)));
        }
        statements.push(format!("SET {}", set.join(",")));
        let statement = with_definer(query.statement, invoker.as_ref(), is_maria);
        Ok(Some(Ready { session: statements, statement }))
    }
}

/// The statement, with the account that ran it where the server would take ours.
fn with_definer(statement: &[u8], invoker: Option<&Account>, is_maria: bool) -> Vec<u8> {
    let mut statement = statement.to_vec();
    if let (Some(invoker), Some(at)) = (invoker, events::place_of_definer(&statement)) {
        // Roles of a MariaDB have no host.
        let is_role = is_maria && invoker.host.is_empty();
        let name = if is_role { identifier(&invoker.user) } else { invoker.quoted() };
        let definer = format!(" DEFINER={name}");
        statement.splice(at..at, definer.into_bytes());
    }
    statement
}

/// A text with its length in one byte.
fn short_text<'a>(at: &mut Reader<'a>) -> Option<&'a [u8]> {
    let len = usize::from(at.u8()?);
    at.bytes(len)
}

/// The schemas that a statement changed: a number, then names that end in NUL. 254: too many.
fn skip_names(at: &mut Reader<'_>) -> Option<()> {
    let count = at.u8()?;
    if count == 254 {
        return Some(());
    }
    (0..count).try_for_each(|_| at.until_nul().map(drop))
}

fn text_literal(bytes: &[u8]) -> String {
    format!("CONVERT(X'{}' USING utf8mb4)", hex(bytes))
}

fn mentions_current_user(statement: &[u8]) -> bool {
    const WORD: &[u8] = b"current_user";
    statement.windows(WORD.len()).any(|window| window.eq_ignore_ascii_case(WORD))
}

#[cfg(test)]
mod tests {
    use super::super::super::event::kind;
    use super::*;

    fn head(flags: u16) -> Head {
        Head { timestamp: 100, kind: kind::QUERY, server_id: 1, length: 0, log_pos: 0, flags }
    }

    fn query<'a>(status: &'a [u8], statement: &'a [u8]) -> Query<'a> {
        Query { thread_id: 7, error: 0, status, schema: b"sh`op", statement }
    }

    fn made(status: &[u8], statement: &[u8], flags: u16) -> Result<Ready> {
        let guarded = Guarded::new([("sql_require_primary_key", 0)]);
        let collations = Collations::new();
        let mut context = Context { family: Family::MySql, collations, guarded };
        let ready =
            context.ready(&head(flags), &query(status, statement), &mut Before::default())?;
        Ok(ready.unwrap())
    }

    #[test]
    fn a_session_is_made_what_it_was() {
        let status = [
            &[0][..],
            &(option::NO_FOREIGN_KEY_CHECKS).to_le_bytes(),
            &[1],
            &5_u64.to_le_bytes(),
            &[6, 3],
            b"std",
            &[3, 2, 0, 1, 0],
            &[4, 255, 0, 255, 0, 8, 0],
            &[5, 6],
            b"+02:00",
            &[13, 0x40, 0x42, 0x0e],
            &[12, 2],
            b"a\0b\0",
            &[19, 1],
        ]
        .concat();
        let statements = made(&status, b"x", flag::THREAD_SPECIFIC).unwrap().session;
        assert_eq!(
            statements,
            [
                "USE `sh``op`",
                "SET sql_mode=5,character_set_client=255,collation_connection=255,collation_server=8,\
             sql_require_primary_key=1,foreign_key_checks=0,unique_checks=1,sql_auto_is_null=0,\
             auto_increment_increment=2,auto_increment_offset=1,lc_time_names=0,\
             time_zone=CONVERT(X'2B30323A3030' USING utf8mb4),timestamp=100.934464,\
             pseudo_thread_id=7",
            ]
        );
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert!(made(&[99, 0], b"x", 0).is_err());
        assert!(made(&[1, 0], b"x", 0).is_err(), "cut short");
        let invoker = [11, 1, b'u', 1, b'h'];
        assert!(made(&invoker, b"CREATE TABLE t (a INT)", 0).is_ok());
        assert!(made(&invoker, b"GRANT x TO Current_User()", 0).is_err());
        let altered = made(&invoker, b"/* c */ alter EVENT e DISABLE", 0).unwrap().statement;
        assert_eq!(altered.as_slice(), b"/* c */ alter DEFINER=`u`@`h` EVENT e DISABLE");
        for other in [&b"ALTER DEFINER=a EVENT e DISABLE"[..], b"ALTER TABLE event ADD a INT"] {
            assert_eq!(made(&invoker, other, 0).unwrap().statement, other);
        }
    }

    #[test]
    fn variables_keep_their_types() {
        let collations = Collations::from([(255, ("utf8mb4_0900_ai_ci".into(), "utf8mb4".into()))]);
        let var = |kind: u8, value: &[u8], flags: u8| {
            let body = [
                &3_u32.to_le_bytes()[..],
                b"a`b",
                &[0, kind],
                &255_u32.to_le_bytes(),
                &(value.len() as u32).to_le_bytes(),
                value,
                &[flags],
            ]
            .concat();
            let mut before = Before::default();
            before.user_var(&body, &collations).map(|()| before.assignments.concat())
        };
        assert_eq!(
            var(0, b"\xc3\xa4'", 0).unwrap(),
            "@`a``b`=_utf8mb4 X'C3A427' COLLATE utf8mb4_0900_ai_ci"
        );
        assert_eq!(var(2, &u64::MAX.to_le_bytes(), 0).unwrap(), "@`a``b`=-1");
        assert_eq!(var(2, &u64::MAX.to_le_bytes(), 1).unwrap(), "@`a``b`=18446744073709551615");
        assert_eq!(var(1, &0.1_f64.to_le_bytes(), 0).unwrap(), "@`a``b`=1e-1");
        assert!(var(9, b"", 0).is_err());
        assert!(var(1, b"1", 0).is_err());
    }
}
