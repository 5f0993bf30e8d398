//! The plot as one HTML file: nothing of it comes from elsewhere, and it reads the same as XML.
//!
//! Pure. The picture is there twice, for wide pages and paper and for narrow ones; the style sheet shows one of them.

use super::{
    content::PlotContent,
    file::MARKER,
    ink::escaped,
    sheet::{PictureShape, draw},
};
use std::{fmt::Write as _, io};

/// The widths of the pictures: for a screen or a sheet of paper, and for a telephone.
const WIDE: u32 = 1100;
const NARROW: u32 = 390;

const STYLE: &str = "
:root{color-scheme:light dark;--paper:#FFFFFF;--ink:#1B2026;--soft:#56606B;--grid:#E2E6EA}
@media screen and (prefers-color-scheme:dark){:root{--paper:#14181D;--ink:#E7EAEE;--soft:#A7B1BC;--grid:#2B323A}}
*{box-sizing:border-box}
body{margin:0 auto;padding:16px;max-width:1180px;background:var(--paper);color:var(--ink);
font:15px/1.45 system-ui,sans-serif}
h1{font-size:1.35em;margin:0 0 .4em;overflow-wrap:anywhere}h2{font-size:1.1em;margin:1.4em 0 .4em}
p{margin:.2em 0;overflow-wrap:anywhere}.missing{border-left:4px solid var(--soft);padding-left:10px}
svg{display:block;width:100%;height:auto}.narrow{display:none}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:4px 10px 4px 0;border-bottom:1px solid var(--grid);overflow-wrap:anywhere}
td.number,th.number{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
.hint:hover rect,.decision:hover path{stroke:var(--soft)}
@media screen and (max-width:760px){body{padding:8px}.wide{display:none}.narrow{display:block}}
@media print{body{padding:0;max-width:none}figure{break-inside:auto}tr{break-inside:avoid}}
figure{margin:1em 0}
";

/// The page.
///
/// # Errors
/// Those of the picture.
pub(super) fn page(content: &PlotContent) -> io::Result<String> {
    let wide = draw(content, PictureShape { width: WIDE, is_alone: false })?;
    let narrow = draw(content, PictureShape { width: NARROW, is_alone: false })?;
    let title = escaped(&content.title);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\" xmlns=\"http://www.w3.org/1999/xhtml\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <!-- {MARKER} -->\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n",
    );
    let mut put = |text: &str| page.push_str(text);
    content.facts.iter().for_each(|fact| put(&format!("<p>{}</p>\n", escaped(fact))));
    if !content.missing.is_empty() {
        put("<h2>What is missing</h2>\n");
        content.missing.iter().for_each(|line| put(&format!("<p class=\"missing\">{}</p>\n", escaped(line))));
    }
    put(&format!("<figure class=\"wide\">\n{wide}</figure>\n<figure class=\"narrow\">\n{narrow}</figure>\n"));
    put(&decisions(content));
    put(&ledger(content));
    put(&devices(content));
    page.push_str("</body>\n</html>\n");
    Ok(page)
}

/// The picture as a file of its own.
///
/// # Errors
/// Those of the picture.
pub(super) fn picture(content: &PlotContent) -> io::Result<String> {
    let svg = draw(content, PictureShape { width: WIDE, is_alone: true })?;
    Ok(svg.replacen(">\n", &format!(">\n<!-- {} -->\n", MARKER), 1))
}

fn decisions(content: &PlotContent) -> String {
    let mut text = "<h2>Decisions and warnings</h2>\n".to_owned();
    if content.decisions.is_empty() {
        return text + "<p>None is recorded.</p>\n";
    }
    text += "<table>\n<thead><tr><th class=\"number\">no</th><th class=\"number\">time</th><th>decision and reason</th></tr></thead>\n<tbody>\n";
    for decision in &content.decisions {
        // a String takes everything
        writeln!(
            text,
            "<tr><td class=\"number\">{}</td><td class=\"number\">{:.3} s</td><td>{}</td></tr>",
            decision.number,
            decision.at,
            escaped(&decision.words)
        )
        .ok();
    }
    text + "</tbody>\n</table>\n"
}

fn ledger(content: &PlotContent) -> String {
    if content.ledger.is_empty() {
        return String::new();
    }
    let mut text = "<h2>Blackout ledger</h2>\n<table>\n<tbody>\n".to_owned();
    for (span, ms) in &content.ledger {
        writeln!(text, "<tr><td>{}</td><td class=\"number\">{ms:.3} ms</td></tr>", escaped(span)).ok();
    }
    let total: f64 = content.ledger.iter().map(|span| span.1).sum();
    writeln!(text, "<tr><th>together</th><th class=\"number\">{total:.3} ms</th></tr>").ok();
    text + "</tbody>\n</table>\n"
}

fn devices(content: &PlotContent) -> String {
    if content.devices.is_empty() {
        return String::new();
    }
    let mut text = "<h2>Devices in the blackout</h2>\n<p>Save and load overlap.</p>\n<table>\n<tbody>\n".to_owned();
    for (device, ms) in &content.devices {
        writeln!(text, "<tr><td>{}</td><td class=\"number\">{ms:.3} ms</td></tr>", escaped(device)).ok();
    }
    text + "</tbody>\n</table>\n"
}
