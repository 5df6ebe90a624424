//! Habits that decay unless something checks them: headers, sizes, who may use whom, links.
//!
//! No servers, no dependencies; reads the files of the package and nothing else.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::string_slice,
    reason = "a test fails by panicking; .clippy.toml knows only #[test]"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The most lines that a source file has before its tests.
const LINES_MAX: usize = 800;

/// Words that any module may use.
const WORDS: [&str; 6] = ["error", "clock", "durable", "position", "record", "manifest"];

/// Modules that may use less than everything that stands above them in `lib.rs`.
///
/// An engine yields records and knows no archive, so that a new system is one folder. A segment
/// is written to any `Write`. A store sees names and bytes. The catalog never opens what it
/// indexes. Decisions are made from values. Stored bytes are checked where no engine is.
const NARROW: [(&str, &[&str]); 12] = [
    ("error", &[]),
    ("clock", &["error"]),
    ("durable", &["error"]),
    ("position", &["error", "clock"]),
    ("segment", &["error", "clock", "position", "record", "manifest"]),
    ("store", &["error", "clock", "durable"]),
    ("catalog", &["error", "clock", "durable", "position", "record", "manifest"]),
    ("engine", &WORDS),
    ("plan", &["error", "clock", "position", "record", "manifest"]),
    ("retention", &["error", "clock", "position", "record", "manifest"]),
    ("schedule", &["error", "clock"]),
    (
        "verify",
        &[
            "error", "clock", "durable", "position", "record", "manifest", "segment", "store",
            "catalog", "archive",
        ],
    ),
];

/// Pairs that must not know each other although the order would allow it: a restore works with a
/// dead daemon and a copied archive, and the status page starts nothing by itself.
const APART: [(&str, &str); 5] = [
    ("restore", "capture"),
    ("serve", "capture"),
    ("serve", "baseline"),
    ("serve", "restore"),
    ("serve", "prune"),
];

/// Words that say that something was left for later.
const MARKERS: [&str; 6] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X:"),
    concat!("HA", "CK:"),
    concat!("unimple", "mented!("),
    concat!("<<<<", "<<<"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below a folder of the package (or the one file of that name), in order.
fn files(below: &str, extension: &str) -> Vec<PathBuf> {
    fn walk(path: &Path, found: &mut Vec<PathBuf>) {
        if path.is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                walk(&entry.unwrap().path(), found);
            }
        } else if path.is_file() {
            found.push(path.to_owned());
        }
    }
    let mut found = vec![];
    walk(&root().join(below), &mut found);
    found.retain(|path| extension.is_empty() || path.extension().is_some_and(|e| e == extension));
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn short(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// Fails with all findings at once.
fn none(findings: Vec<String>) {
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

/// The part of a source file that is not tests.
fn without_tests(text: &str) -> &str {
    text.find("\n#[cfg(test)]\nmod tests").map_or(text, |at| &text[..=at])
}

/// The modules that `lib.rs` declares, in its order.
fn declared() -> Vec<String> {
    let lib = read(&root().join("src/lib.rs"));
    lib.lines()
        .filter_map(|line| Some(line.strip_prefix("pub mod ")?.strip_suffix(';')?.to_owned()))
        .collect()
}

/// The top-level modules that a piece of source names with `crate::`, comments left out.
fn used(text: &str) -> BTreeSet<String> {
    let code: Vec<&str> =
        text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let mut used = BTreeSet::new();
    for (at, path) in code.match_indices("crate::") {
        let rest = &code[at + path.len()..];
        if let Some(group) = rest.strip_prefix('{') {
            // `use crate::{a, b::C, d::{E, F}};`: the names that begin on the first level.
            let mut depth = 1;
            let mut first_level = String::new();
            for letter in group.chars() {
                depth += i32::from(letter == '{') - i32::from(letter == '}');
                match depth {
                    0 => break,
                    1 => first_level.push(letter),
                    _ => {}
                }
            }
            used.extend(first_level.split(',').map(|name| identifier(name.trim())));
        } else {
            used.insert(identifier(rest));
        }
    }
    used.remove("");
    used
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_' || c.is_ascii_digit()).collect()
}

#[test]
fn every_source_file_says_what_it_is() {
    let sources = files("src", "rs").into_iter().chain(files("tests", "rs"));
    // A `tests.rs` is a part of the file beside it.
    let silent =
        sources.filter(|path| !path.ends_with("tests.rs") && !read(path).starts_with("//! "));
    none(silent.map(|path| format!("{}: begin with `//! `", short(&path))).collect());
}

#[test]
fn no_source_file_is_longer_than_a_reader_bears() {
    let sources = files("src", "rs").into_iter().filter(|path| !path.ends_with("tests.rs"));
    let findings = sources.filter_map(|path| {
        let lines = without_tests(&read(&path)).lines().count();
        (lines > LINES_MAX).then(|| format!("{}: {lines} lines, split it", short(&path)))
    });
    none(findings.collect());
}

#[test]
fn every_module_is_declared_in_the_map() {
    let declared = declared();
    assert!(declared.len() >= WORDS.len(), "lib.rs is not read as expected: {declared:?}");
    let mut findings = vec![];
    for entry in fs::read_dir(root().join("src")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let module = name.trim_end_matches(".rs").to_owned();
        if !matches!(module.as_str(), "main" | "lib") && !declared.contains(&module) {
            findings.push(format!("src/{name}: not in lib.rs"));
        }
    }
    none(findings);
}

#[test]
fn a_module_uses_only_what_it_may() {
    let declared = declared();
    let place = |module: &str| declared.iter().position(|name| name == module);
    let mut findings = vec![];
    for path in files("src", "rs") {
        // Tests in a file of their own are as free as those at the end of a file.
        if path.file_name().is_some_and(|name| name == "tests.rs") {
            continue;
        }
        let relative = path.strip_prefix(root().join("src")).unwrap();
        let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
        let module = first.trim_end_matches(".rs");
        let Some(own_place) = place(module) else { continue };
        let narrow = NARROW.iter().find(|(name, _)| *name == module).map(|(_, allowed)| allowed);
        let text = read(&path);
        for other in used(without_tests(&text)).iter().filter(|other| *other != module) {
            let Some(other_place) = place(other) else { continue };
            let why = if other_place > own_place {
                "which stands below it in lib.rs"
            } else if narrow.is_some_and(|allowed| !allowed.contains(&other.as_str())) {
                "which it must not know"
            } else if APART.contains(&(module, other)) {
                "from which it stays apart"
            } else {
                continue;
            };
            findings.push(format!("{}: uses `{other}`, {why}", short(&path)));
        }
    }
    none(findings);
}

#[test]
fn uses_are_found_in_every_notation() {
    let text = "use crate::error::Error;\nuse crate::{clock, record::{Cut, Piece}, store::Store};\n\
                // crate::comment\nfn f() -> crate::plan::Plan { crate::durable::sync() }\n";
    let found: Vec<String> = used(text).into_iter().collect();
    assert_eq!(found, ["clock", "durable", "error", "plan", "record", "store"]);
}

#[test]
fn nothing_was_left_for_later() {
    let places = ["src", "tests", "benches", "docs", "fixtures", ".ci", "README.md", "Cargo.toml"];
    let mut findings = vec![];
    for path in places.iter().flat_map(|place| files(place, "")) {
        // Snapshots and data need not be text.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (number, line) in text.lines().enumerate() {
            for marker in MARKERS.iter().filter(|marker| line.contains(*marker)) {
                findings.push(format!("{}:{}: {marker}", short(&path), number + 1));
            }
        }
    }
    none(findings);
}

#[test]
fn links_in_the_documentation_lead_somewhere() {
    let mut findings = vec![];
    let documents = files("docs", "md").into_iter().chain(files("fixtures", "md"));
    let top = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"].map(|name| root().join(name));
    for path in documents.chain(top) {
        let text = read(&path);
        for (_, rest) in text.match_indices("](").map(|(at, mark)| (at, &text[at + mark.len()..])) {
            let target = rest.split([')', '#']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            if !path.parent().unwrap().join(target).exists() {
                findings.push(format!("{}: no {target}", short(&path)));
            }
        }
    }
    none(findings);
}
