//! The report of a drill as a page of its own: no script, nothing loaded from elsewhere.

use super::{Report, Verdict};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:60em;\
padding:0 1em;color:#222}table{border-collapse:collapse;width:100%;margin:.5em 0 1.5em}\
td,th{border:1px solid #ccc;padding:.25em .6em;text-align:left;vertical-align:top}\
.passed{color:#176b2c}.failed{color:#a40000}.inconclusive{color:#8a5a00}.skipped{color:#666}";

/// The page.
pub(super) fn page(report: &Report) -> String {
    let word = report.verdict.word();
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <title>Drill {word}</title><style>{STYLE}</style></head><body>\n\
         <h1>Drill <span class=\"{word}\">{word}</span></h1>\n<table>\n"
    );
    let rows = [
        ("begun", report.begun_at.to_string()),
        ("restored to", report.to.to_string()),
        ("newest instant", format!("{} ({} ms behind)", report.newest, report.rpo_ms)),
        ("time to restore", format!("{:.1} s", report.rto_seconds)),
        ("time in all", format!("{:.1} s", report.seconds)),
    ];
    for (name, value) in rows {
        row(&mut out, name, &value);
    }
    out += "</table>\n";
    if report.verdict != Verdict::Passed {
        out += "<h2>Why</h2>\n<ul>\n";
        for reason in &report.reasons {
            out += &format!("<li>{}</li>\n", escaped(reason));
        }
        out += "</ul>\n";
    }
    for source in report.restore.iter().flat_map(|restored| &restored.sources) {
        out += &format!("<h2>{}</h2>\n<table>\n", escaped(&source.name));
        row(&mut out, "server", &source.target_version);
        row(&mut out, "baseline", &format!("{} of {}", source.baseline.name, source.baseline.at));
        row(&mut out, "replayed", &format!("{} records, {} bytes", source.records, source.bytes));
        row(&mut out, "checked", &source.checked);
        out += "</table>\n<table>\n<tr><th>check</th><th>outcome</th><th>found</th></tr>\n";
        for check in &source.inspection {
            let word = check.outcome.word();
            out += &format!(
                "<tr><td>{}</td><td class=\"{word}\">{word}</td><td>{}</td></tr>\n",
                escaped(check.check),
                escaped(&check.what)
            );
        }
        out += "</table>\n";
    }
    out += "</body></html>\n";
    out
}

fn row(out: &mut String, name: &str, value: &str) {
    *out += &format!("<tr><th>{name}</th><td>{}</td></tr>\n", escaped(value));
}

/// Text as it may stand in a page: names come from the sources, and may be anything.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tables_cannot_break_out_of_the_page() {
        assert_eq!(escaped("<script>\"a\" & b"), "&lt;script&gt;&quot;a&quot; &amp; b");
    }
}
