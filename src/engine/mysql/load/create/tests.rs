//! Many forms of `CREATE TABLE`, as `SHOW CREATE TABLE` gives them.

use super::*;
use proptest::prelude::*;
use rstest::rstest;

/// The names of the keys that can wait, in a table with these items behind `id` and `PRIMARY KEY`.
fn waiting(items: &str) -> Vec<String> {
    let text = table(items, ") ENGINE=InnoDB DEFAULT CHARSET=utf8mb4");
    names(&text)
}

fn table(items: &str, end: &str) -> String {
    format!("CREATE TABLE `t` (\n  `id` int NOT NULL,\n  {items},\n  PRIMARY KEY (`id`)\n{end}")
}

fn names(text: &str) -> Vec<String> {
    let read = Definition::read(text).unwrap();
    read.later.iter().map(|key| key.name.trim_matches('`').to_owned()).collect()
}

#[rstest]
#[case::plain("`a` int,\n  KEY `k` (`a`)", &["k"])]
#[case::several("`a` int,\n  UNIQUE KEY `u` (`a`),\n  KEY `k` (`a`),\n  KEY `l` (`a`,`id`)",
    &["u", "k", "l"])]
#[case::prefix_and_order("`a` text,\n  KEY `k` (`a`(10),`id` DESC)", &["k"])]
#[case::settings("`a` int,\n  KEY `k` (`a`) USING BTREE COMMENT 'it''s (a), \\'b' /*!80000 INVISIBLE */",
    &["k"])]
#[case::block_size("`a` int,\n  KEY `k` (`a`) KEY_BLOCK_SIZE=8,\n  KEY `l` (`a`) IGNORED",
    &["k", "l"])]
#[case::unknown_setting("`a` int,\n  KEY `k` (`a`) SOMETHING=1", &[])]
#[case::hash("`a` text,\n  UNIQUE KEY `u` (`a`) USING HASH", &[])]
#[case::expression("`a` int,\n  KEY `k` ((`a` + 1))", &[])]
#[case::expression_behind("`a` int,\n  KEY `k` (`a`,(`a` + 1))", &[])]
#[case::multi_valued("`j` json,\n  KEY `k` ((cast(`j` as unsigned array)))", &[])]
#[case::before_one_that_stays("`a` int,\n  KEY `k` (`a`),\n  KEY `f` ((`a` + 1)),\n  KEY `l` (`a`)",
    &["l"])]
#[case::of_another_kind("`a` int,\n  UNIQUE KEY `u` (`a`),\n  KEY `f` ((`a` + 1)),\n  KEY `l` (`a`)",
    &["u", "l"])]
#[case::fulltext("`a` text,\n  KEY `k` (`a`(5)),\n  FULLTEXT KEY `f` (`a`) /*!50100 WITH PARSER `ngram` */ ",
    &["k"])]
#[case::spatial("`g` point NOT NULL /*!80003 SRID 4326 */,\n  KEY `k` (`id`),\n  SPATIAL KEY `s` (`g`)",
    &["k"])]
#[case::auto_increment("`a` int NOT NULL AUTO_INCREMENT,\n  KEY `n` (`a`),\n  KEY `k` (`id`)", &["k"])]
#[case::auto_increment_in_words(
    "`a` int COMMENT 'AUTO_INCREMENT',\n  `AUTO_INCREMENT` int,\n  KEY `k` (`a`,`AUTO_INCREMENT`)",
    &["k"])]
#[case::foreign_key("`a` int,\n  `b` int,\n  KEY `k` (`b`),\n  KEY `fk` (`a`,`b`),\n  KEY `l` (`b`),\n  \
    CONSTRAINT `fk` FOREIGN KEY (`a`) REFERENCES `p` (`id`) ON DELETE CASCADE", &["l"])]
#[case::check("`a` int,\n  KEY `k` (`a`),\n  CONSTRAINT `c` CHECK ((`a` > 1) and (`a` <> ')')) \
    /*!80016 NOT ENFORCED */", &["k"])]
#[case::check_of_mariadb("`a` int CHECK (`a` in (1,2)),\n  KEY `k` (`a`),\n  CONSTRAINT `c` CHECK (`a` > 1)",
    &["k"])]
#[case::defaults("`a` varchar(9) DEFAULT '),(KEY `x` (',\n  `b` varchar(99) DEFAULT (concat(_utf8mb4'(',`a`,_utf8mb4'''')),\n  \
    KEY `k` (`a`)", &["k"])]
#[case::generated("`a` int GENERATED ALWAYS AS ((`id` * (2 + 1))) VIRTUAL,\n  KEY `k` (`a`)", &["k"])]
#[case::odd_names("`a``,(b` int,\n  KEY `k``)` (`a``,(b`),\n  KEY `é 'x\"` (`id`)", &["k``)", "é 'x\""])]
#[case::enumeration("`a` enum('x)','y,''z','\\\\') NOT NULL,\n  KEY `k` (`a`)", &["k"])]
#[case::comment("`a` int COMMENT 'KEY `z` (`a`)' /* KEY `y` (a), ( */,\n  KEY `k` (`a`)", &["k"])]
#[case::clustering("`a` int,\n  CLUSTERING KEY `k` (`a`)", &[])]
fn keys_wait_only_where_that_changes_nothing(#[case] items: &str, #[case] expected: &[&str]) {
    assert_eq!(waiting(items), expected);
}

#[rstest]
#[case::plain(") ENGINE=InnoDB AUTO_INCREMENT=5 DEFAULT CHARSET=utf8mb4 COMMENT='x'", true)]
#[case::tablespace(") /*!50100 TABLESPACE `ts` */ ENGINE=InnoDB", true)]
#[case::other_engine(") ENGINE=MyISAM DEFAULT CHARSET=utf8mb4", false)]
#[case::other_engine_in_words(") ENGINE=MyISAM COMMENT='ENGINE=InnoDB'", false)]
#[case::aria(") ENGINE=Aria DEFAULT CHARSET=utf8mb4 PAGE_CHECKSUM=1", false)]
#[case::none(")", false)]
#[case::versioned(") ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 WITH SYSTEM VERSIONING", false)]
#[case::partitions(") ENGINE=InnoDB\n/*!50100 PARTITION BY HASH (`id`)\nPARTITIONS 8 */", true)]
#[case::ranges(
    ") ENGINE=InnoDB\n/*!50100 PARTITION BY RANGE (`id`)\n(PARTITION p0 VALUES LESS THAN \
    (10) ENGINE = InnoDB,\n PARTITION p1 VALUES LESS THAN MAXVALUE ENGINE = InnoDB) */",
    true
)]
fn only_innodb_with_a_primary_key_takes_rows_in_any_order(#[case] end: &str, #[case] any: bool) {
    let text = table("`a` int,\n  KEY `k` (`a`)", end);
    let read = Definition::read(&text).unwrap();
    assert_eq!(read.any_order, any);
    assert_eq!(read.later.len(), usize::from(any));
}

#[test]
fn without_a_primary_key_everything_stays() {
    let text = "CREATE TABLE `t` (\n  `a` int NOT NULL,\n  UNIQUE KEY `u` (`a`),\n  KEY `k` (`a`)\n\
        ) ENGINE=InnoDB";
    let read = Definition::read(text).unwrap();
    assert!(!read.any_order && read.later.is_empty());
}

#[test]
fn keys_of_a_thousand_partitions_stay() {
    let ranges = |n: usize| {
        let parts: Vec<String> = (0..n)
            .map(|n| {
                format!("PARTITION `p{n}` VALUES LESS THAN ({n}) COMMENT = 'x' ENGINE = InnoDB")
            })
            .collect();
        let end = format!(
            ") ENGINE=InnoDB\n/*!50100 PARTITION BY RANGE (`id`)\n({}) */",
            parts.join(",\n ")
        );
        table("`a` int,\n  KEY `k` (`a`)", &end)
    };
    for (n, keys) in [(1000, 0), (PARTITIONS + 1, 0), (PARTITIONS, 1)] {
        let text = ranges(n);
        let read = Definition::read(&text).unwrap();
        assert!(read.any_order);
        assert_eq!(read.later.len(), keys, "{n} partitions");
    }
    let hashed = table(
        "`a` int,\n  KEY `k` (`a`)",
        ") ENGINE=InnoDB /*!50100 PARTITION BY RANGE (`id`) SUBPARTITION BY HASH (`id`) \
         SUBPARTITIONS 40 (PARTITION p0 VALUES LESS THAN (1), PARTITION p1 VALUES LESS THAN (9)) */",
    );
    assert_eq!(names(&hashed), ["k"]);
    let hashed = table(
        "`a` int,\n  KEY `k` (`a`)",
        ") ENGINE=InnoDB PARTITION BY HASH (`id`) PARTITIONS 1000",
    );
    assert!(names(&hashed).is_empty());
}

#[test]
fn tables_that_are_referred_to_are_named() {
    let text = table(
        "`a` int,\n  KEY `k` (`a`),\n  CONSTRAINT `f1` FOREIGN KEY (`a`,`id`) REFERENCES `p``q` (`x`,`y`),\n  \
         CONSTRAINT `f2` FOREIGN KEY (`id`) REFERENCES `other`.`r` (`id`) ON UPDATE SET NULL",
        ") ENGINE=InnoDB",
    );
    let read = Definition::read(&text).unwrap();
    assert_eq!(read.refers_to, ["`p``q`", "`r`"]);
    assert!(read.later.is_empty());
}

#[rstest]
#[case("CREATE TABLE t (id int)")]
#[case("CREATE TABLE `t` LIKE `u`")]
#[case("CREATE TABLE `t`")]
#[case("CREATE TABLE `t` (`a` int")]
#[case("CREATE TABLE `t` (`a` varchar(9) DEFAULT ')")]
#[case("CREATE TEMPORARY TABLE `t` (`a` int)")]
#[case("CREATE VIEW `t` AS SELECT 1 AS `a`")]
#[case("")]
fn other_statements_are_not_read(#[case] text: &str) {
    assert_eq!(Definition::read(text), None);
}

#[test]
fn a_key_is_added_as_it_stood() {
    let text = table("`a` int,\n  UNIQUE KEY `u` (`a`) USING BTREE COMMENT ','", ") ENGINE=InnoDB");
    let read = Definition::read(&text).unwrap();
    assert_eq!(read.later[0].text, "UNIQUE KEY `u` (`a`) USING BTREE COMMENT ','");
    assert_eq!((read.name, read.later[0].name), ("`t`", "`u`"));
}

proptest! {
    #[test]
    fn any_text_is_read_without_a_panic(text in "[`'\"(),a-e /*!\\\\KEY\n]{0,120}") {
        drop(Definition::read(&text));
        drop(Definition::read(&format!("CREATE TABLE `t` ({text}) ENGINE=InnoDB")));
    }

    #[test]
    fn names_and_texts_of_any_form_do_not_confuse(
        column in "[^`\0]{1,20}", text in "[^\0]{0,30}", name in "[^\0]{1,20}",
    ) {
        let column = format!("`{}`", column.replace('`', "``"));
        let name = format!("`{}`", name.replace('`', "``"));
        let text = format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"));
        let items = format!(
            "{column} varchar(99) DEFAULT {text} COMMENT {text},\n  UNIQUE KEY {name} ({column}) COMMENT {text},\n  \
             KEY `f` (({column} + {text})),\n  KEY `k` ({column}(5))"
        );
        let text = table(&items, ") ENGINE=InnoDB");
        let read = Definition::read(&text).unwrap();
        let found: Vec<&str> = read.later.iter().map(|key| key.name).collect();
        prop_assert_eq!(found, vec![name.as_str(), "`k`"]);
    }
}
