//! The page is whole, small, harmless, and its plots hold what the account holds.

use std::path::Path;
use std::sync::Arc;

use rusqlite::Connection;

use super::*;
use crate::carbon;
use crate::ledger::{FILE_NAME, Ledger, MarkKind, RunInfo, RunStatus, WindowTags};
use crate::meter::Provenance;
use crate::report::{Overrides, RunReport};
use crate::units::{MicroJoules, Seconds};
use crate::window::{DomainEnergy, WindowEnergy, WindowKind};

fn info(name: &str, resumed_from_step: Option<u64>) -> RunInfo {
    RunInfo {
        name: name.into(),
        resumed_from_step,
        pue: 1.2,
        ..RunInfo::new(name, carbon::lookup("FRA").unwrap())
    }
}

/// A window whose microjoules no bin divides evenly.
fn window(seq: u64, kind: WindowKind) -> WindowEnergy {
    let part = |domain: &str, sensor, provenance, microjoules| DomainEnergy {
        domain: Arc::from(domain),
        sensor,
        provenance,
        microjoules: MicroJoules(microjoules),
    };
    let parts = vec![
        part("gpu-0", "nvml", Provenance::MeasuredCounter, 300_000_007 + seq * 1_000_003),
        part("gpu-0", "nvml", Provenance::Interpolated, 1_000_001 * (seq % 2)),
        part("ram", "model", Provenance::Modelled, 9_999_991),
    ];
    WindowEnergy::new(seq, kind, Seconds(0.7 + 0.13 * seq as f64), None, true, parts)
}

/// Set-up and eleven steps; a restart that does the last two steps again, one more, and an evaluation.
fn write_run(directory: &Path, name: &str) {
    let path = directory.join(FILE_NAME);
    let step = |n: u64| WindowTags { step: Some(n), tokens: 1001, loss: Some(8.0 / (n as f64 + 1.0)) };
    let mut first = Ledger::open(&path, &info(name, None)).unwrap();
    first.record(&window(0, WindowKind::Setup), WindowTags::default()).unwrap();
    for n in 1..=11 {
        first.record(&window(n, WindowKind::Step), step(n)).unwrap();
    }
    first.mark(MarkKind::Sensor, Some(11), "gpu-0 <img src=x> could not be read").unwrap();
    drop(first);
    let mut second = Ledger::open(&path, &info(name, Some(9))).unwrap();
    for n in 10..=12 {
        second.record(&window(n - 10, WindowKind::Step), step(n)).unwrap();
    }
    let held_out = WindowTags { step: Some(12), tokens: 0, loss: Some(1.5) };
    second.record(&window(3, WindowKind::Evaluation), held_out).unwrap();
    second.finish(RunStatus::Completed, None).unwrap();
}

fn report_of(directory: &Path, overrides: &Overrides) -> Report {
    Report::from_ledger(directory, overrides).unwrap()
}

fn page_of(name: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    write_run(directory.path(), name);
    report_of(directory.path(), &Overrides::default()).to_html().unwrap()
}

fn check_sums(run: &RunReport, num_bins: usize) {
    let series = RunSeries::read(run, num_bins).unwrap();
    assert_eq!(series.energy(), run.account.energy, "{num_bins} bins");
    for measured in [true, false] {
        let plotted = series.domains.iter().filter(|domain| domain.measured == measured);
        let plotted: u64 = plotted.flat_map(|domain| &domain.microjoules).sum();
        let counted = run.account.domains.iter().filter(|domain| domain.source.is_measured() == measured);
        assert_eq!(MicroJoules(plotted), counted.map(|domain| domain.energy).sum(), "{num_bins} bins");
    }
    assert_eq!(series.tokens.iter().sum::<u64>(), run.account.tokens, "{num_bins} bins");
    let grams: f64 = series.grams.iter().sum();
    assert!((grams - run.account.grams.0).abs() < 1e-9 * grams, "{num_bins} bins: {grams} g");
    let covered: f64 = series.covered_seconds.iter().sum();
    assert!((covered - run.account.duration.0).abs() < 1e-6, "{num_bins} bins: {covered} s");
}

#[test]
fn the_bins_add_up_to_the_account_to_the_microjoule() {
    let directory = tempfile::tempdir().unwrap();
    write_run(directory.path(), "tiny");
    let report = report_of(directory.path(), &Overrides::default());
    for num_bins in [1, 2, 7, 100, NUM_BINS] {
        check_sums(&report.runs[0], num_bins);
    }
    let elsewhere = Overrides { location: Some("POL".into()), pue: Some(1.5) };
    check_sums(&report_of(directory.path(), &elsewhere).runs[0], NUM_BINS);
}

#[test]
fn grams_follow_the_intensity_of_their_time() {
    let directory = tempfile::tempdir().unwrap();
    write_run(directory.path(), "tiny");
    let ledger = Connection::open(directory.path().join(FILE_NAME)).unwrap();
    // From the fourth window on, a kilowatt-hour has ten times the grams.
    let added = ledger.execute(
        "INSERT INTO intensity SELECT segment, 1, 'priced', 410, zone, basis, accounting, 'live', NULL,
             (SELECT ended_ms - CAST(seconds * 500 AS INTEGER) FROM window WHERE segment = 1 AND seq = 3),
             (SELECT ended_ms + 86400000 FROM window WHERE segment = 1 AND seq = 3), 0, learned_ms
         FROM intensity WHERE segment = 1",
        [],
    );
    assert_eq!(added, Ok(1));
    let report = report_of(directory.path(), &Overrides::default());
    check_sums(&report.runs[0], NUM_BINS);
    assert!(report.to_html().unwrap().contains("Kilowatt-hours were priced at 41 to 410 g CO2e"));
}

#[test]
fn losses_stand_at_the_energy_spent_until_then() {
    let directory = tempfile::tempdir().unwrap();
    write_run(directory.path(), "tiny");
    let report = report_of(directory.path(), &Overrides::default());
    let run = &report.runs[0];
    let series = RunSeries::read(run, NUM_BINS).unwrap();
    let data = plots::curve(run, &series);
    let joules: Vec<f64> = serde_json::from_value(data["training"]["joules"].clone()).unwrap();
    // Steps 1 to 9 of the first segment, the two done again and a new one of the second.
    assert_eq!(joules.len(), 12);
    assert!(joules.is_sorted(), "{joules:?}");
    // Set-up and the first step, 310 and 312 J; between edges of bins their power is mixed.
    assert!((joules[0] - 622.0).abs() < 4.0, "{joules:?}");
    // The evaluation is the last window.
    let all = run.account.energy.joules().0;
    let held_out = data["evaluation"]["joules"][0].as_f64().unwrap();
    assert!((held_out - all).abs() < 1e-5 * all && joules[11] < held_out, "{held_out} of {all}");
    assert_eq!(data["evaluation"]["loss"], json!([1.5]));
}

#[test]
fn a_hostile_name_is_text_and_nothing_else() {
    let name = "</title></script><script>window.injected=1</script>{{script}}";
    let page = page_of(name);
    assert_eq!(page.matches("<script").count(), 4, "the page's own: data, two libraries, one script");
    assert_eq!(page.matches("</script>").count(), 4);
    assert!(!page.contains("<script>window.injected") && !page.contains("<img src=x"));
    assert!(page.contains(
        "<h1>&lt;/title&gt;&lt;/script&gt;&lt;script&gt;window.injected=1&lt;/script&gt;{{script}}</h1>"
    ));
    assert!(page.contains("gpu-0 &lt;img src=x&gt; could not be read"));
}

#[test]
fn the_page_fetches_nothing() {
    let page = page_of("tiny");
    assert!(page.contains("default-src 'none'; script-src 'sha256-"));
    // The libraries name their homes in comments.
    let own = page.replace(&inline_script(CHART), "").replace(&inline_script(CHART_MATRIX), "");
    assert!(own.len() < page.len() - 200_000);
    for word in ["http://", "https://", "//# sourceMappingURL", "url(", "@import", "<script src", "<img"] {
        assert!(!own.contains(word), "{word}");
    }
    assert!(!page.contains("sourceMappingURL"));
    let links: Vec<_> = own.match_indices("href=").map(|(at, _)| &own[at..at + 13]).collect();
    assert_eq!(links, ["href=\"data:,\""]);
}

#[test]
fn the_vendored_files_are_those_of_the_note() {
    let note = include_str!("assets/vendor/README.md");
    for (name, text) in [("chart.umd.min.js", CHART), ("chartjs-chart-matrix.min.js", CHART_MATRIX)] {
        let hash: String = Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
        let line = note.lines().find(|line| line.contains(name)).unwrap();
        assert!(line.contains(&hash), "{name}: {hash}");
    }
}

/// Origin of the number: SHA-256 of nothing, FIPS 180-4, as Content Security Policy Level 3 writes it.
#[test]
fn a_source_is_named_by_its_hash() {
    assert_eq!(source_hash(""), "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='");
    assert_eq!((base64(b"a"), base64(b"ab"), base64(b"abc")), ("YQ==".into(), "YWI=".into(), "YWJj".into()));
}

/// Windows, marks and experts beyond what the page shows: bins, caps and the experts bound its size, the number of
/// windows does not, so that what holds for 20,000 windows holds for any number.
#[test]
fn a_long_run_of_a_large_model_stays_under_two_megabytes() {
    let directory = tempfile::tempdir().unwrap();
    write_run(directory.path(), "large");
    let ledger = Connection::open(directory.path().join(FILE_NAME)).unwrap();
    ledger
        .execute_batch(
            "BEGIN;
             WITH RECURSIVE n (i) AS (SELECT 100 UNION ALL SELECT i + 1 FROM n WHERE i < 20099)
             INSERT INTO window SELECT 2, i, 'step', i, 4096, ended_ms + (i - 100) * 500, 0.5,
                 8 * (1000001 + i * 7919 % 100003), 0, 0.1, 2 + i * 7919 % 1009 / 1009.0, NULL, 1, 0
             FROM n, (SELECT max(ended_ms) AS ended_ms FROM window);
             WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 7)
             INSERT INTO sensor SELECT 100 + i, 2, 'gpu-' || (i + 1), 'nvml', 'measured_counter' FROM n;
             INSERT INTO window_energy
             SELECT 2, seq, sensor.id, microjoules / 8 FROM window JOIN sensor ON sensor.id >= 100
             WHERE window.segment = 2 AND seq >= 100;
             WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 48 * 128 - 1)
             INSERT INTO expert_energy SELECT 2, i / 128, i % 128, i, 1000000007 + i FROM n;
             WITH RECURSIVE n (i) AS (SELECT 10 UNION ALL SELECT i + 1 FROM n WHERE i < 5009)
             INSERT INTO mark SELECT 2, i, started_ms + i * 3000, i, 'controller', 'batch tokens 262144 -> 393216'
             FROM n, segment WHERE segment.id = 2;
             COMMIT;",
        )
        .unwrap();
    let report = report_of(directory.path(), &Overrides::default());
    check_sums(&report.runs[0], NUM_BINS);
    let page = report.to_html().unwrap();
    assert!(page.len() < 1_000_000, "{} bytes", page.len());
    assert!(page.contains("more are in the ledger"));
    // The restart is kept, however many decisions there are.
    assert!(page.contains("<b>restart</b>"));
    ledger.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let copies: Vec<_> = (0..MAX_SHOWN_RUNS).map(|n| directory.path().join(format!("{n}.sqlite"))).collect();
    for (n, copy) in copies.iter().enumerate() {
        std::fs::copy(directory.path().join(FILE_NAME), copy).unwrap();
        let rename = format!("UPDATE run SET uid = uid || {n}; UPDATE segment SET uid = uid || {n}");
        Connection::open(copy).unwrap().execute_batch(&rename).unwrap();
    }
    let four = Report::from_ledgers(&copies, &Overrides::default()).unwrap().to_html().unwrap();
    assert_eq!(four.matches("data-plot=\"power\"").count(), MAX_SHOWN_RUNS);
    assert!(four.len() < 2_000_000, "{} bytes", four.len());
}

#[test]
fn many_runs_are_compared_and_not_shown_one_by_one() {
    let directory = tempfile::tempdir().unwrap();
    let runs: Vec<_> = (0..=MAX_SHOWN_RUNS).map(|n| directory.path().join(format!("run-{n}"))).collect();
    for (n, run) in runs.iter().enumerate() {
        std::fs::create_dir(run).unwrap();
        write_run(run, &format!("tiny-{n}"));
    }
    let page = Report::from_ledgers(&runs, &Overrides::default()).unwrap().to_html().unwrap();
    assert_eq!(page.matches("<canvas").count(), 1);
    assert!(page.contains("for the plots of one, make its report alone"));
    assert!(page.contains("<h1>5 runs</h1>"));
}

#[test]
fn a_run_without_meters_has_no_plots_of_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(&directory.path().join(FILE_NAME), &info("blind", None)).unwrap();
    let blind = WindowEnergy::new(0, WindowKind::Step, Seconds(1.0), None, true, Vec::new());
    ledger.record(&blind, WindowTags { step: Some(1), tokens: 50, loss: Some(3.0) }).unwrap();
    ledger.finish(RunStatus::Completed, None).unwrap();
    let page = report_of(directory.path(), &Overrides::default()).to_html().unwrap();
    assert!(page.contains("No sensor was read") && !page.contains("<canvas"));
    assert!(page.contains("<strong>unknown</strong>"));
}
