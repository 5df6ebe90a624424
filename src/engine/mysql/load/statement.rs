//! What kind of statement a dump goes on with, as far as it matters where and when it runs.
//!
//! **Invariant:** what is not recognised for certain is [`Kind::Other`], which runs alone, in its
//! place.

/// A statement of a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind<'a> {
    /// Makes a table.
    CreateTable,
    /// Fills the table of this name, quoted as it is there.
    Insert(&'a str),
    /// Changes a setting of the session, or its default schema.
    Setting,
    /// Changes the session's default schema to this one, quoted as it is there.
    Use(&'a str),
    /// Removes a table or view that may be there: the one of this name, quoted as it is there.
    Drop(&'a str),
    /// Locks tables, or unlocks them.
    Lock,
    /// Tells tables that are not of InnoDB to leave their keys for later, or to make them now.
    Keys,
    /// Makes or removes a schema, or something that is no table, such as a histogram: with what was
    /// made before gone, it can be run once more.
    Object {
        /// Whether that may be an event.
        event: bool,
    },
    /// Anything else.
    Other,
}

/// How statements begin that make or remove objects. A conditional comment may end behind CREATE.
const OBJECTS: [&str; 6] =
    ["CREATE ", "CREATE*/", "DROP ", "SELECT SETVAL(", "DO SETVAL(", "ANALYZE TABLE "];

/// Reads the beginning of a statement.
pub(super) fn kind(statement: &[u8]) -> Kind<'_> {
    let head = statement.get(..HEAD_BYTES.min(statement.len())).unwrap_or_default();
    // The head may end within a letter.
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) => match head.get(..error.valid_up_to()).map(std::str::from_utf8) {
            Some(Ok(text)) => text,
            _ => return Kind::Other,
        },
    };
    let text = unwrapped(text);
    let is = |start: &str| text.get(..start.len()).is_some_and(|t| t.eq_ignore_ascii_case(start));
    if is("INSERT INTO ") {
        let name = text.get("INSERT INTO ".len()..).unwrap_or_default();
        return name_len(name).and_then(|len| name.get(..len)).map_or(Kind::Other, Kind::Insert);
    }
    if is("SET ") {
        let whole = statement.len() <= HEAD_BYTES;
        let text = text.to_ascii_uppercase();
        let lasting = ["GLOBAL", "PERSIST", "PASSWORD", "ROLE", "AUTOCOMMIT", "TRANSACTION"];
        let of_session = whole && !lasting.iter().any(|word| text.contains(word));
        return if of_session { Kind::Setting } else { Kind::Other };
    }
    if is("USE ") {
        return Kind::Use(text.get("USE ".len()..).unwrap_or_default().trim());
    }
    for drop in ["DROP TABLE IF EXISTS ", "DROP VIEW IF EXISTS "] {
        if is(drop) {
            let name = text.get(drop.len()..).unwrap_or_default();
            return Kind::Drop(name.trim_end_matches("*/").trim());
        }
    }
    if is("CREATE TABLE ") {
        Kind::CreateTable
    } else if OBJECTS.iter().any(|start| is(start)) {
        Kind::Object { event: text.to_ascii_uppercase().contains("EVENT") }
    } else if is("LOCK TABLES ") || is("UNLOCK TABLES") {
        Kind::Lock
    } else if is("ALTER TABLE ")
        && (text.contains(" DISABLE KEYS") || text.contains(" ENABLE KEYS"))
        && statement.len() <= HEAD_BYTES
    {
        Kind::Keys
    } else {
        Kind::Other
    }
}

/// The kind of a statement must show in this many of its first bytes.
const HEAD_BYTES: usize = 1024;

/// A statement without the conditional comment that it begins with, if it does.
fn unwrapped(text: &str) -> &str {
    // What MariaDB's program puts in front of a dump: for its own client, and of no version. The
    // lines of comment behind it are within the first statement.
    let mut text = match text.strip_prefix("/*M!999999\\-").and_then(|rest| rest.split_once("*/")) {
        Some((_, rest)) => rest.trim_start(),
        None => text,
    };
    while let Some((_, rest)) = text.strip_prefix("--").and_then(|rest| rest.split_once('\n')) {
        text = rest.trim_start();
    }
    let behind = text.strip_prefix("/*!").or_else(|| text.strip_prefix("/*M!"));
    match behind {
        Some(rest) => rest.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start(),
        None => text,
    }
}

/// Length of the quoted name at the beginning of a text, if something follows it.
fn name_len(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    if bytes.first() != Some(&b'`') {
        return None;
    }
    let mut at = 1;
    loop {
        match bytes.get(at..)? {
            [b'`', b'`', ..] => at += 2,
            [b'`', b' ' | b'(', ..] => return Some(at + 1),
            [b'`', ..] | [] => return None,
            _ => at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const OBJECT: Kind<'_> = Kind::Object { event: false };
    const EVENT: Kind<'_> = Kind::Object { event: true };

    #[rstest]
    #[case("CREATE TABLE `t` (", Kind::CreateTable)]
    #[case("CREATE TABLES", OBJECT)]
    #[case("INSERT INTO `t` VALUES (1)", Kind::Insert("`t`"))]
    #[case("INSERT INTO `a``b` (`c`) VALUES (1)", Kind::Insert("`a``b`"))]
    #[case("INSERT INTO `s`.`t` VALUES (1)", Kind::Other)]
    #[case("INSERT INTO t VALUES (1)", Kind::Other)]
    #[case("INSERT IGNORE INTO `t` VALUES (1)", Kind::Other)]
    #[case("INSERT INTO `t", Kind::Other)]
    #[case("/*!40101 SET @saved_cs_client     = @@character_set_client */", Kind::Setting)]
    #[case("SET @OLD_TIME_ZONE=@@TIME_ZONE", Kind::Setting)]
    #[case(
        "/*M!100616 SET @OLD_NOTE_VERBOSITY=@@NOTE_VERBOSITY, NOTE_VERBOSITY=0 */",
        Kind::Setting
    )]
    #[case(
        "/*M!999999\\- enable the sandbox mode */ \n-- a;\n--\n\n/*!40101 SET NAMES utf8mb4 */",
        Kind::Setting
    )]
    #[case("SET @@GLOBAL.GTID_PURGED=/*!80000 '+'*/ ''", Kind::Other)]
    #[case("set autocommit=0", Kind::Other)]
    #[case("SETTING", Kind::Other)]
    #[case("USE `a``b`", Kind::Use("`a``b`"))]
    #[case("DROP TABLE IF EXISTS `t`", Kind::Drop("`t`"))]
    #[case("/*!50001 DROP VIEW IF EXISTS `v`*/", Kind::Drop("`v`"))]
    #[case("DROP TABLE `t`", OBJECT)]
    #[case("/*!50106 CREATE*/ /*!50117 DEFINER=`a`@`b`*/ /*!50106 EVENT `e`", EVENT)]
    #[case("/*!80002 ANALYZE TABLE `t` UPDATE HISTOGRAM ON `a` WITH 9 BUCKETS */", OBJECT)]
    #[case("ALTER DATABASE `d` CHARACTER SET latin1", Kind::Other)]
    #[case("UPDATE `t` SET a = 1", Kind::Other)]
    #[case("LOCK TABLES `t` WRITE", Kind::Lock)]
    #[case("UNLOCK TABLES", Kind::Lock)]
    #[case("/*!40000 ALTER TABLE `t` DISABLE KEYS */", Kind::Keys)]
    #[case("/*!40000 ALTER TABLE `t` ENABLE KEYS */", Kind::Keys)]
    #[case("ALTER TABLE `t` ADD KEY (`a`)", Kind::Other)]
    #[case("/*!50001 CREATE VIEW `v` AS SELECT 1 AS `a`*/", OBJECT)]
    #[case("CREATE DEFINER=`a`@`b` TRIGGER x", OBJECT)]
    #[case("", Kind::Other)]
    fn the_kind_shows_at_the_beginning(#[case] statement: &str, #[case] expected: Kind<'_>) {
        assert_eq!(kind(statement.as_bytes()), expected);
    }

    #[test]
    fn rows_need_not_be_text() {
        for end in [&b"\xff\xfe"[..], "é".as_bytes().get(..1).unwrap()] {
            let mut insert = b"INSERT INTO `t` VALUES ('".to_vec();
            insert.resize(HEAD_BYTES - 1, b'x');
            insert.extend_from_slice(end);
            insert.resize(5000, b'\xff');
            assert_eq!(kind(&insert), Kind::Insert("`t`"));
        }
    }
}
