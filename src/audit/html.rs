//! The report as one page: no script, nothing loaded from elsewhere, the hours as a drawing.

use super::report::{Report, SourceHour};
use crate::clock::{Timestamp, Tz, in_zone};
use crate::manifest::{Continuity, NameCount};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;\
    padding:0 1rem;color:#1b1f24;background:#fff}h1{font-size:1.5rem}h2{font-size:1.15rem;\
    margin-top:2.5rem}table{border-collapse:collapse;width:100%;font-size:.9rem}th,td{padding:\
    .25rem .6rem;text-align:left;border-bottom:1px solid #d8dee4;vertical-align:top}td.n,th.n{\
    text-align:right;font-variant-numeric:tabular-nums}code{font-size:.85em;word-break:break-all}\
    .proved{color:#1a7f37}.gap{color:#cf222e;font-weight:600}.unproved{color:#9a6700;font-weight:\
    600}svg{width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:#57606a}";

/// Height of a drawing's bars, and width of one with its space, in px.
const HEIGHT: u64 = 120;
const STEP: usize = 40;

/// The page.
pub(super) fn page(report: &Report, zone: Tz) -> String {
    let (from, to) = (in_zone(report.from, zone), in_zone(report.to, zone));
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width\">\n<title>pitr audit, {from}</title>\n<style>{STYLE}</style>\
         </head>\n<body>\n<h1>Increments from {} to {}</h1>\n",
        escape(&from),
        escape(&to)
    );
    let mut names: Vec<&str> =
        report.hours.iter().flat_map(|h| &h.sources).map(|s| s.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let hours: Vec<(Timestamp, &SourceHour)> = report
            .hours
            .iter()
            .flat_map(|hour| hour.sources.iter().map(|source| (hour.hour, source)))
            .filter(|(_, source)| source.name == name)
            .collect();
        out += &format!("<h2>{}</h2>\n", escape(name));
        out += &drawing(&hours, zone);
        out += &table(&hours, zone);
    }
    out + "</body></html>\n"
}

/// Rows and commands: what a bar is as high as.
fn changes(hour: &SourceHour) -> u64 {
    let (inserts, updates, deletes) = hour.rows();
    inserts + updates + deletes + hour.commands()
}

fn color(continuity: Continuity) -> &'static str {
    match continuity {
        Continuity::Proved => "#2da44e",
        Continuity::Gap => "#cf222e",
        Continuity::Unproved => "#d4a72c",
    }
}

fn drawing(hours: &[(Timestamp, &SourceHour)], zone: Tz) -> String {
    let most = hours.iter().map(|(_, hour)| changes(hour)).max().unwrap_or(0).max(1);
    // A few hours are not drawn larger than a day of them.
    let width = STEP * hours.len().max(24);
    let mut out = format!(
        "<svg viewBox=\"0 0 {width} {}\" role=\"img\" aria-label=\"changes by hour\">\n",
        HEIGHT + 34
    );
    for (place, (at, hour)) in hours.iter().enumerate() {
        let (left, count) = (place * STEP, changes(hour));
        // An hour without changes is still there, as a line in its color.
        let tall = (u128::from(count) * u128::from(HEIGHT) / u128::from(most)).max(2);
        let label = at.utc().map(|utc| utc.with_timezone(&zone).format("%H:%M").to_string());
        out += &format!(
            "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{tall}\" fill=\"{}\"><title>{}: {count} \
             changes, {}</title></rect><text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
            left + 4,
            u128::from(HEIGHT) + 10 - tall,
            STEP - 8,
            color(hour.increment.continuity),
            escape(&in_zone(*at, zone)),
            hour.increment.continuity.word(),
            left + STEP / 2,
            HEIGHT + 26,
            label.unwrap_or_default()
        );
    }
    out + "</svg>\n"
}

fn table(hours: &[(Timestamp, &SourceHour)], zone: Tz) -> String {
    let mut out = "<table><thead><tr><th>hour</th><th>continuity</th><th class=\"n\">records</th>\
        <th class=\"n\">bytes</th><th class=\"n\">stored</th><th>what</th><th>record</th></tr>\
        </thead><tbody>\n"
        .to_owned();
    for (at, hour) in hours {
        let all = &hour.increment;
        let word = all.continuity.word();
        let reason = all.reason.as_deref().map(|why| format!("<br>{}", escape(why)));
        out += &format!(
            "<tr><td>{}</td><td><span class=\"{word}\">{word}</span>{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td><td>{}</td></tr>\n",
            escape(&in_zone(*at, zone)),
            reason.unwrap_or_default(),
            all.records,
            all.bytes_raw,
            all.bytes_stored,
            what(hour).join("<br>"),
            hour.digest.as_deref().map_or_else(
                || "not recorded yet".to_owned(),
                |digest| format!("<code>{}</code>", escape(digest))
            )
        );
    }
    out + "</tbody></table>\n"
}

fn what(hour: &SourceHour) -> Vec<String> {
    let all = &hour.increment;
    let mut lines: Vec<String> = vec![];
    for table in &all.tables {
        lines.push(format!(
            "{}: {} inserted, {} updated, {} deleted",
            escape(&table.name),
            table.inserts,
            table.updates,
            table.deletes
        ));
    }
    for NameCount { name, count } in all.commands.iter().chain(&all.statements) {
        lines.push(format!("{}: {count}", escape(name)));
    }
    if all.undecoded > 0 {
        let why = all.undecoded_reason.as_deref().unwrap_or_default();
        lines.push(format!("{} events not decoded: {}", all.undecoded, escape(why)));
    }
    lines.extend(all.ddl.iter().map(|ddl| format!("<code>{}</code>", escape(&ddl.text))));
    // What changed what there is stands there already, where it came from statements.
    let is_new = |text: &String| !all.ddl.iter().any(|ddl| ddl.text == *text);
    let landmarks = all.landmarks.iter().map(|landmark| &landmark.text).filter(|t| is_new(t));
    lines.extend(landmarks.map(|text| format!("<code>{}</code>", escape(text))));
    lines
}

/// Text as it may stand in a page.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}
