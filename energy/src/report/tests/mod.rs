//! Reports checked by hand arithmetic.

use std::sync::Arc;

use super::*;
use crate::carbon;
use crate::ledger::RunStatus;
use crate::ledger::{Ledger, RunInfo, WindowTags};
use crate::meter::Provenance;
use crate::units::{Joules, MicroJoules, Seconds, Watts};
use crate::window::{DomainEnergy, WindowEnergy, WindowKind};

fn info(name: &str, resumed_from_step: Option<u64>) -> RunInfo {
    RunInfo {
        name: name.into(),
        config_hash: "abc".into(),
        resumed_from_step,
        pue: 1.2,
        ..RunInfo::new(&format!("{name}-2026"), carbon::lookup("FRA").unwrap())
    }
}

fn part(domain: &str, sensor: &'static str, provenance: Provenance, joules: u64) -> DomainEnergy {
    DomainEnergy {
        domain: Arc::from(domain),
        sensor,
        provenance,
        microjoules: MicroJoules(joules * 1_000_000),
    }
}

/// A window of 2 s: 300 J measured on a GPU and 100 J modelled on the processor.
fn window(seq: u64, kind: WindowKind) -> WindowEnergy {
    let parts = vec![
        part("gpu-0", "nvml", Provenance::MeasuredCounter, 300),
        part("cpu", "model", Provenance::Modelled, 100),
    ];
    WindowEnergy::new(seq, kind, Seconds(2.0), None, true, parts)
}

/// Setup, steps 1 to 3, killed; resumed from step 2: steps 3 and 4, evaluation. Seven windows of 400 J.
fn write_run(directory: &Path, name: &str) {
    let path = directory.join("ledger.sqlite");
    let step = |n: u64| WindowTags { step: Some(n), tokens: 50, loss: Some(5.0 - n as f64) };
    let mut first = Ledger::open(&path, &info(name, None)).unwrap();
    first.record(&window(0, WindowKind::Setup), WindowTags::default()).unwrap();
    for n in 1..=3 {
        first.record(&window(n, WindowKind::Step), step(n)).unwrap();
    }
    drop(first);
    let mut second = Ledger::open(&path, &info(name, Some(2))).unwrap();
    second.record(&window(0, WindowKind::Step), step(3)).unwrap();
    second.record(&window(1, WindowKind::Step), step(4)).unwrap();
    let evaluation = WindowTags { step: Some(4), ..WindowTags::default() };
    second.record(&window(2, WindowKind::Evaluation), evaluation).unwrap();
    second.finish(RunStatus::Completed, None).unwrap();
}

#[test]
fn the_numbers_are_those_of_hand_arithmetic() {
    let directory = tempfile::tempdir().unwrap();
    write_run(directory.path(), "tiny");
    let report = Report::from_ledger(directory.path(), &Overrides::default()).unwrap();
    let run = &report.runs[0];
    let account = &run.account;
    assert_eq!(account.energy, MicroJoules(2_800_000_000));
    assert_eq!(account.superseded, MicroJoules(400_000_000));
    assert_eq!((account.steps, account.tokens), (4, 200));
    assert_eq!(account.duration, Seconds(14.0));
    assert_eq!(account.average_power(), Some(Watts(200.0)));
    assert_eq!(account.joules_per_token(), Some(14.0));
    assert_eq!(account.measured_share(), 0.75);
    assert_eq!(account.facility, Joules(2800.0 * 1.2));
    // 2800 J / 3.6e6 * 1.2 * 41 g/kWh.
    assert!((account.grams.0 - 0.038_266_667).abs() < 1e-9, "{:?}", account.grams);
    assert_eq!(run.final_loss, Some(1.0));
    assert_eq!(run.status, RunStatus::Completed);
    let segments: Vec<_> = run.segments.iter().map(|s| (s.status, s.resumed_from_step)).collect();
    assert_eq!(segments, [(RunStatus::Crashed, None), (RunStatus::Completed, Some(2))]);
    let steps = account.kinds.iter().find(|kind| kind.kind == "step").unwrap();
    assert_eq!((steps.windows, steps.energy), (5, MicroJoules(2_000_000_000)));
    let by_kind: MicroJoules = account.kinds.iter().map(|kind| kind.energy).sum();
    let by_domain: MicroJoules = account.domains.iter().map(|domain| domain.energy).sum();
    assert_eq!((by_kind, by_domain), (account.energy, account.energy));
}

#[test]
fn another_place_and_building_change_the_grams_and_not_the_joules() {
    let directory = tempfile::tempdir().unwrap();
    write_run(directory.path(), "tiny");
    let overrides = Overrides { location: Some("POL".into()), pue: Some(1.0) };
    let report = Report::from_ledger(&directory.path().join("ledger.sqlite"), &overrides).unwrap();
    let account = &report.runs[0].account;
    assert_eq!(account.energy, MicroJoules(2_800_000_000));
    // 2800 J / 3.6e6 * 589 g/kWh.
    assert!((account.grams.0 - 0.458_111_111).abs() < 1e-9, "{:?}", account.grams);
    assert_eq!(report.runs[0].segments[0].intensity.zone, "POL");
    let unknown = Overrides { location: Some("XXX".into()), pue: None };
    assert!(Report::from_ledger(directory.path(), &unknown).is_err());
    let impossible = Overrides { location: None, pue: Some(0.5) };
    let error = Report::from_ledger(directory.path(), &impossible).unwrap_err().to_string();
    assert_eq!(error, "carbon.pue is 0.5, expected 1.0 to 10.0");
}

#[test]
fn a_run_without_meters_has_unknown_energy_rather_than_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.sqlite");
    let mut ledger = Ledger::open(&path, &info("tiny", None)).unwrap();
    let blind = WindowEnergy::new(0, WindowKind::Step, Seconds(1.0), None, true, Vec::new());
    ledger.record(&blind, WindowTags { step: Some(1), tokens: 50, loss: None }).unwrap();
    ledger.finish(RunStatus::Completed, None).unwrap();
    let report = Report::from_ledger(&path, &Overrides::default()).unwrap();
    assert_eq!(report.runs[0].account.joules_per_token(), None);
    assert!(report.to_text().contains("Energy        unknown: no sensor was read\n"), "{}", report.to_text());
    let total = &report.to_json()["total"];
    assert!(total["energy_joules"].is_null() && total["emissions_grams_co2e"].is_null(), "{total}");
    assert_eq!(total["tokens"], 50);
}

#[test]
fn the_text_says_what_was_spent_on_what_and_how_it_is_known() {
    let directory = tempfile::tempdir().unwrap();
    write_run(directory.path(), "tiny");
    let text = Report::from_ledger(directory.path(), &Overrides::default()).unwrap().to_text();
    for expect in [
        "Run           tiny-2026 (tiny)\n",
        "Segments      2, of which 1 crashed\n",
        "Trained       4 steps, 200 tokens\n",
        "Energy        2.80 kJ (7.78e-4 kWh)\n",
        "  superseded  400 J (14.3 %), steps done again after a resume\n",
        "  measured    75.0 %, modelled 25.0 %\n",
        "Mean power    200 W\n",
        "Per token     14.0000 J\n",
        "Building      3.36 kJ with its PUE\n",
        "Emissions     38.3 mg CO2e\n",
        "Final loss    1.0000 nats\n",
        "Intensity     41 g/kWh in FRA 2025, lifecycle average, PUE 1.2\n",
        "  source      Ember; Energy Institute; Our World in Data, CC BY 4.0\n",
        "    step                 5 x     10.00 s    2.00 kJ   71.4 %  ██████████████▎\n",
        "    gpu-0            measured_counter (nvml)    2.10 kJ   75.0 %  ███████████████\n",
        "    cpu                     modelled (model)      700 J   25.0 %  █████\n",
    ] {
        assert!(text.contains(expect), "{expect:?} is not in\n{text}");
    }
}

#[test]
fn several_runs_are_summed_and_compared() {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    write_run(directories[0].path(), "one");
    write_run(directories[1].path(), "two");
    let report = Report::from_ledgers(&directories, &Overrides::default()).unwrap();
    let total = report.total();
    assert_eq!((total.energy, total.steps), (MicroJoules(5_600_000_000), 8));
    assert_eq!(total.kinds.len(), 3);
    assert_eq!(total.measured_share(), 0.75);
    let text = report.to_text();
    assert!(text.lines().any(|line| line.starts_with("Total") && line.contains("5.60 kJ")), "{text}");
}

#[test]
fn the_json_has_stable_keys_with_their_units() {
    let directory = tempfile::tempdir().unwrap();
    write_run(directory.path(), "tiny");
    let json = Report::from_ledger(directory.path(), &Overrides::default()).unwrap().to_json();
    let run = &json["runs"][0];
    assert_eq!(json["schema"], "wattle-report/1");
    assert_eq!(json["total"]["energy_joules"], 2800.0);
    assert_eq!(run["superseded_energy_joules"], 400.0);
    assert_eq!(run["measured_share_percent"], 75.0);
    assert_eq!(run["joules_per_token"], 14.0);
    assert_eq!(run["segments"][0]["carbon_intensity"]["grams_per_kwh"], 41.0);
    assert_eq!(run["segments"][0]["carbon_intensity"]["year"], 2025);
    assert_eq!(run["domains"][0]["source"], "measured_counter");
}

#[test]
fn a_missing_ledger_is_told_by_its_path() {
    let directory = tempfile::tempdir().unwrap();
    let error = Report::from_ledger(directory.path(), &Overrides::default()).unwrap_err().to_string();
    assert!(error.contains("ledger.sqlite") && error.contains("run directory"), "{error}");
}

#[test]
fn a_report_can_be_made_while_the_run_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.sqlite");
    let mut ledger = Ledger::open(&path, &info("tiny", None)).unwrap();
    ledger.record(&window(0, WindowKind::Setup), WindowTags::default()).unwrap();
    ledger.flush().unwrap();
    let report = Report::from_ledger(&path, &Overrides::default()).unwrap();
    assert_eq!(report.runs[0].status, RunStatus::Running);
    assert_eq!(report.runs[0].account.energy, MicroJoules(400_000_000));
    ledger.finish(RunStatus::Completed, None).unwrap();
}

#[test]
fn a_finished_ledger_is_read_where_nothing_can_be_written_beside_it() {
    let directory = tempfile::tempdir().unwrap();
    write_run(directory.path(), "tiny");
    // Stands for a read-only directory, which root could write to all the same.
    std::fs::create_dir(directory.path().join("ledger.sqlite-shm")).unwrap();
    let report = Report::from_ledger(directory.path(), &Overrides::default()).unwrap();
    assert_eq!(report.runs[0].account.energy, MicroJoules(2_800_000_000));
}

mod formats;
mod several;
