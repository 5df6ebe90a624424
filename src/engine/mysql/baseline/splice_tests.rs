//! Tests of taking a dump apart.

use super::*;
use proptest::prelude::*;

const DUMP: &str = "-- head\n\
    /*!40101 SET @OLD_SQL_MODE=@@SQL_MODE, SQL_MODE='NO_AUTO_VALUE_ON_ZERO' */;\n\
    USE `shop`;\nLOCK TABLES `a` WRITE;\n\
    /*!40000 ALTER TABLE `a` DISABLE KEYS */;\nINSERT INTO `a` VALUES (1.1,'x'),(-0,NULL);\n\
    /*!40000 ALTER TABLE `a` ENABLE KEYS */;\nUNLOCK TABLES;\n\
    LOCK TABLES `it's` WRITE;\n/*!40000 ALTER TABLE `it's` DISABLE KEYS */;\n\
    INSERT INTO `it's` (`b'`, `c,(-0`) VALUES (-0,'(-0,\\',-0)'),(-0.00,-0.5),(5,-0);\n\
    /*!40000 ALTER TABLE `it's` ENABLE KEYS */;\nUNLOCK TABLES;\n\
    LOCK TABLES `plain` WRITE;\n/*!40000 ALTER TABLE `plain` DISABLE KEYS */;\n\
    INSERT INTO `plain` VALUES\n(-0);\n/*!40000 ALTER TABLE `plain` ENABLE KEYS */;\n\
    USE `other`;\nLOCK TABLES `a` WRITE;\n/*!40000 ALTER TABLE `a` DISABLE KEYS */;\n\
    INSERT INTO `a` VALUES\n(1,-0),\n(2,-0);\n/*!40000 ALTER TABLE `a` ENABLE KEYS */;\n\
    -- Dump completed";

const EXPECTED: &str = "-- head\n\
    /*!40101 SET @OLD_SQL_MODE=@@SQL_MODE, SQL_MODE='NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES' */;\n\
    USE `shop`;\nLOCK TABLES `a` WRITE;\n\
    /*!40000 ALTER TABLE `a` DISABLE KEYS */;\n<shop.a>\n\
    /*!40000 ALTER TABLE `a` ENABLE KEYS */;\nUNLOCK TABLES;\n\
    LOCK TABLES `it's` WRITE;\n/*!40000 ALTER TABLE `it's` DISABLE KEYS */;\n\
    INSERT INTO `it's` (`b'`, `c,(-0`) VALUES ('-0','(-0,\\',-0)'),('-0.00',-0.5),(5,'-0');\n\
    /*!40000 ALTER TABLE `it's` ENABLE KEYS */;\nUNLOCK TABLES;\n\
    LOCK TABLES `plain` WRITE;\n/*!40000 ALTER TABLE `plain` DISABLE KEYS */;\n\
    INSERT INTO `plain` VALUES\n(-0);\n/*!40000 ALTER TABLE `plain` ENABLE KEYS */;\n\
    USE `other`;\nLOCK TABLES `a` WRITE;\n/*!40000 ALTER TABLE `a` DISABLE KEYS */;\n\
    INSERT INTO `a` VALUES\n(1,'-0'),\n(2,'-0');\n/*!40000 ALTER TABLE `a` ENABLE KEYS */;\n\
    -- Dump completed";

fn name(schema: &str, table: &str) -> Name {
    (schema.into(), table.into())
}

fn spliced(dump: &[u8], piece: usize, cares: &[(Name, Care)]) -> Result<String> {
    let mut splice = Splice::new(cares.iter().cloned());
    let mut out = vec![];
    for bytes in dump.chunks(piece) {
        splice.feed(bytes);
        loop {
            match splice.next()? {
                Part::Text(text) => out.extend_from_slice(&text),
                Part::Rows((schema, table)) => {
                    out.extend_from_slice(format!("<{schema}.{table}>\n").as_bytes());
                }
                Part::More => break,
            }
        }
        assert!(splice.held.len() <= LONG);
    }
    out.extend_from_slice(&splice.finish()?);
    Ok(String::from_utf8(out).unwrap())
}

fn cares() -> [(Name, Care); 3] {
    [
        (name("shop", "a"), Care::Replace),
        (name("shop", "it's"), Care::Signs),
        (name("other", "a"), Care::Signs),
    ]
}

proptest! {
    #[test]
    fn rows_are_replaced_and_zeros_keep_their_signs_however_the_dump_arrives(
        piece in 1..1500_usize,
    ) {
        let out = spliced(DUMP.as_bytes(), piece, &cares()).unwrap();
        prop_assert_eq!(out, EXPECTED);
    }

    #[test]
    fn a_dump_without_such_tables_goes_through_as_it_is(
        text in "[-0a(),'`; \n]{0,400}", piece in 1..500_usize,
    ) {
        let [theirs, ours] = SQL_MODE.map(|line| String::from_utf8_lossy(line).into_owned());
        let out = spliced(format!("{theirs}{text}").as_bytes(), piece, &[]).unwrap();
        prop_assert_eq!(out, format!("{ours}{text}"));
    }
}

#[test]
fn long_rows_are_not_held_back() {
    let rows = format!("INSERT INTO `a` VALUES ('{}');\n", "x".repeat(1_000_000));
    let dump = DUMP.replace("INSERT INTO `a` VALUES (1.1,'x'),(-0,NULL);\n", &rows.repeat(3));
    assert_eq!(spliced(dump.as_bytes(), 3000, &cares()).unwrap(), EXPECTED);
}

#[test]
fn a_dump_of_another_form_is_refused() {
    let refused = |dump: &str, words: &str| {
        let error = spliced(dump.as_bytes(), 100, &cares()).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    };
    refused(&DUMP.replace("USE `shop`", "USE `shop2`"), "where the rows of shop.a are");
    refused(&DUMP.replacen("INSERT INTO `a`", "REPLACE INTO `a`", 1), "not understood");
    refused(&DUMP.replacen("ENABLE", "enable", 1), "not understood");
    refused(&DUMP.replace("SQL_MODE", "sql_mode"), "sql_mode");
    refused(&DUMP.replace("USE `other`", "USE `shop`"), "twice");
    refused(DUMP.split_at(DUMP.find("(1.1").unwrap()).0, "ends among the rows");
}
