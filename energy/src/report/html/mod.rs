//! The report as one HTML file: plots, tables, and nothing to fetch.
//!
//! The plotting library, the style and the data lie inside the page. Its Content-Security-Policy admits exactly the
//! scripts and the style that were written into it, by their hashes, and no connection to anywhere.

mod intensities;
mod marks;
mod markup;
mod plots;
mod runs;
mod section;
mod series;
mod timeline;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::Report;
use crate::error::Result;
use markup::{escape, fill};
use series::RunSeries;

const PAGE: &str = include_str!("assets/page.html");
const STYLE: &str = include_str!("assets/style.css");
const SCRIPT: &str = include_str!("assets/page.js");
const CHART: &str = include_str!("assets/vendor/chart.umd.min.js");
const CHART_MATRIX: &str = include_str!("assets/vendor/chartjs-chart-matrix.min.js");

/// More runs than these are compared, and not shown one by one: the page would grow beyond what a reader can use.
const MAX_SHOWN_RUNS: usize = 4;

/// Bins of equal time in the plots of a run that is alone on its page.
const NUM_BINS: usize = 600;

/// Bins of a run that shares it with others.
const NUM_SHARED_BINS: usize = 300;

/// Bins of a run that is only compared: its curve needs them between two losses only.
const NUM_COMPARED_BINS: usize = 200;

pub(super) fn render(report: &Report) -> Result<String> {
    let shown = report.runs.len() <= MAX_SHOWN_RUNS;
    let num_bins = match report.runs.len() {
        0 | 1 => NUM_BINS,
        _ if shown => NUM_SHARED_BINS,
        _ => NUM_COMPARED_BINS,
    };
    let mut body = String::new();
    let mut data = Vec::new();
    runs::write_head(&mut body, report);
    if report.runs.len() > 1 {
        runs::write_comparison(&mut body, report, shown);
    }
    for (index, run) in report.runs.iter().enumerate() {
        let series = RunSeries::read(run, num_bins)?;
        if shown {
            let (marks, num_more) = marks::of_run(run, &series.timeline);
            let place = section::Place { index, is_alone: report.runs.len() == 1 };
            section::write(&mut body, place, run, &series, &marks, num_more);
            data.push(plots::run(run, &series, &marks));
        } else {
            data.push(plots::curve(run, &series));
        }
    }
    // Inside a script element only `<` could end it or begin a comment.
    let data = json!({"runs": data}).to_string().replace('<', "\\u003c");
    let scripts = [CHART, CHART_MATRIX, SCRIPT].map(inline_script);
    let hashes: Vec<String> = scripts.iter().map(|script| source_hash(script)).collect();
    let policy = format!(
        "default-src 'none'; script-src {}; style-src {}; img-src data:; base-uri 'none'; form-action 'none'",
        hashes.join(" "),
        source_hash(STYLE)
    );
    Ok(fill(
        PAGE,
        &[
            ("title", &escape(&runs::title(report))),
            ("policy", &policy),
            ("style", STYLE),
            ("body", &body),
            ("data", &data),
            ("chart", &scripts[0]),
            ("chart_matrix", &scripts[1]),
            ("script", &scripts[2]),
            ("version", env!("CARGO_PKG_VERSION")),
        ],
    ))
}

/// A script that ends where its element ends, and does not name a source map, which a debugger would fetch.
fn inline_script(script: &str) -> String {
    let lines = script.lines().filter(|line| !line.starts_with("//# sourceMappingURL="));
    lines.collect::<Vec<_>>().join("\n").replace("</script", "<\\/script")
}

/// How a Content-Security-Policy names an inline script or style.
fn source_hash(text: &str) -> String {
    format!("'sha256-{}'", base64(&Sha256::digest(text)))
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let group = (0..3).fold(0, |group, at| group << 8 | u32::from(chunk.get(at).copied().unwrap_or(0)));
        for at in 0..4 {
            let sextet = (group >> (18 - 6 * at)) as usize % 64;
            out.push(if at <= chunk.len() { char::from(ALPHABET[sextet]) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests;
