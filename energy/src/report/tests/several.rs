//! Several ledgers: copies, ranks, runs of one name, weeks, and what is never summed.

use super::*;
use crate::carbon::{Accounting, Basis};
use crate::config::EmbodiedConfig;
use crate::report::FunctionalUnit;
use crate::units::Grams;

/// Steps 1 to `steps` of one rank, 400 J and 2 s each.
fn write_rank(path: &Path, info: &RunInfo, steps: u64) {
    let mut ledger = Ledger::open(path, info).unwrap();
    for n in 1..=steps {
        let tags = WindowTags { step: Some(n), tokens: 50, loss: Some(5.0 - n as f64) };
        ledger.record(&window(n, WindowKind::Step), tags).unwrap();
    }
    ledger.finish(RunStatus::Completed, None).unwrap();
}

fn of_rank(rank: u32, config_hash: &str) -> RunInfo {
    RunInfo { rank, world_size: 2, config_hash: config_hash.into(), ..info("many", None) }
}

fn read(paths: &[&Path]) -> Report {
    Report::from_ledgers(paths, &Overrides::default()).unwrap()
}

#[test]
fn a_segment_in_two_ledgers_counts_once_and_is_told_of() {
    let directory = tempfile::tempdir().unwrap();
    write_run(directory.path(), "tiny");
    let [own, merged, link] =
        ["ledger.sqlite", "merged.sqlite", "link"].map(|name| directory.path().join(name));
    crate::merge(&merged, &[&own]).unwrap();
    let report = read(&[&own, &merged]);
    assert_eq!(report.runs.len(), 1);
    assert_eq!(report.total().energy, MicroJoules(2_800_000_000));
    assert_eq!(report.total().steps, 4);
    let [notice] = &report.notices[..] else { panic!("{:?}", report.notices) };
    assert!(
        notice.contains("2 of 2 segments of run tiny-2026") && notice.contains("counts once"),
        "{notice}"
    );

    std::os::unix::fs::symlink(directory.path(), &link).unwrap();
    let report = read(&[directory.path(), &link.join("ledger.sqlite"), &own]);
    assert_eq!(report.total().energy, MicroJoules(2_800_000_000));
    assert_eq!(report.notices.len(), 2, "{:?}", report.notices);
}

#[test]
fn the_newer_copy_of_a_segment_counts() {
    let directory = tempfile::tempdir().unwrap();
    let [own, copy] = ["ledger.sqlite", "copy.sqlite"].map(|name| directory.path().join(name));
    let mut ledger = Ledger::open(&own, &info("tiny", None)).unwrap();
    let tags = |n| WindowTags { step: Some(n), tokens: 50, loss: None };
    ledger.record(&window(0, WindowKind::Step), tags(1)).unwrap();
    ledger.flush().unwrap();
    crate::merge(&copy, &[&own]).unwrap();
    ledger.record(&window(1, WindowKind::Step), tags(2)).unwrap();
    ledger.finish(RunStatus::Completed, None).unwrap();
    for order in [[&*copy, &*own], [&*own, &*copy]] {
        let report = read(&order);
        assert_eq!((report.total().energy, report.total().steps), (MicroJoules(800_000_000), 2));
        assert_eq!((report.runs.len(), report.runs[0].status), (1, RunStatus::Completed));
    }
}

#[test]
fn ranks_with_ledgers_of_their_own_are_one_run_whose_steps_count_once() {
    let directory = tempfile::tempdir().unwrap();
    let [zero, one, other] = ["zero", "one", "other"].map(|name| directory.path().join(name));
    write_rank(&zero, &of_rank(0, "abc"), 3);
    write_rank(&one, &of_rank(1, "abc"), 3);
    write_rank(&other, &of_rank(1, "changed"), 3);
    let report = read(&[&one, &zero]);
    let [run] = &report.runs[..] else { panic!("{:?}", report.runs) };
    assert_eq!((run.account.steps, run.account.tokens), (3, 150));
    assert_eq!(run.account.energy, MicroJoules(2_400_000_000));
    assert_eq!(run.account.duration, Seconds(6.0));
    assert_eq!(run.account.average_power(), Some(Watts(400.0)));
    assert_eq!(run.segments.iter().map(|segment| segment.rank).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(run.ledger, zero);
    assert_eq!((report.weeks()[0].steps, report.weeks()[0].runs), (3, 1));
    assert_eq!(report.notices, [""; 0]);
    assert!(report.to_text().contains("Segments      2 of 2 ranks, of which 0 crashed\n"));

    let report = read(&[&zero, &other]);
    assert_eq!(report.runs.len(), 2, "another configuration is another run");
    assert!(report.notices.iter().any(|notice| notice.contains("two different runs are named many-2026")));
    assert!(report.notices.iter().any(|notice| notice.contains("1 of its 2 ranks")), "{:?}", report.notices);
}

#[test]
fn two_runs_of_one_name_stay_apart_and_are_told_by_their_uids() {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    write_run(directories[0].path(), "same");
    write_run(directories[1].path(), "same");
    let report = Report::from_ledgers(&directories, &Overrides::default()).unwrap();
    assert_eq!(report.runs.len(), 2);
    let [notice] = &report.notices[..] else { panic!("{:?}", report.notices) };
    let text = report.to_text();
    for (run, directory) in report.runs.iter().zip(&directories) {
        assert!(text.contains(&format!("same-2026 {} ", &run.uid[..8])), "{text}");
        assert!(notice.contains(&run.uid[..8]), "{notice}");
        assert!(notice.contains(&directory.path().display().to_string()), "{notice}");
    }
}

#[test]
fn failed_and_aborted_runs_are_in_the_total_and_told() {
    let directory = tempfile::tempdir().unwrap();
    let [failed, killed] = ["failed", "killed"].map(|name| directory.path().join(name));
    for (path, name) in [(&failed, "failed"), (&killed, "killed")] {
        let mut ledger = Ledger::open(path, &info(name, None)).unwrap();
        ledger.record(&window(0, WindowKind::Step), WindowTags::default()).unwrap();
        if name == "failed" {
            ledger.finish(RunStatus::Failed, None).unwrap();
        }
    }
    // Whoever writes next finds the killed run without an end.
    Ledger::open(&killed, &info("next", None)).unwrap().finish(RunStatus::Completed, None).unwrap();
    let report = read(&[&failed, &killed]);
    let total = report.total();
    assert_eq!(total.energy, MicroJoules(800_000_000));
    assert_eq!((total.failed, total.aborted), (MicroJoules(400_000_000), MicroJoules(400_000_000)));
    assert_eq!(report.to_json()["total"]["aborted_energy_joules"], 400.0);
    let text = report.to_text();
    assert!(text.contains("  of it       400 J (50.0 %) for runs that ended with an error\n"), "{text}");
    assert!(text.contains("  aborted     400 J (100.0 %), the run was killed"), "{text}");
}

#[test]
fn weeks_are_those_of_iso_8601_and_add_up_to_the_total() {
    let directory = tempfile::tempdir().unwrap();
    write_run(directory.path(), "tiny");
    let path = directory.path().join("ledger.sqlite");
    // Sunday 3 January 2021 belongs to the last week of 2020; the second after it to the first of 2021.
    let monday_ms = 1_609_718_400_000i64;
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.execute("UPDATE window SET ended_ms = ?1 WHERE segment = 1", [monday_ms - 1]).unwrap();
    connection.execute("UPDATE window SET ended_ms = ?1 WHERE segment = 2", [monday_ms]).unwrap();
    drop(connection);
    let report = read(&[&path]);
    let weeks = report.weeks();
    let shown: Vec<_> =
        weeks.iter().map(|week| (week.name(), week.steps, week.tokens, week.energy)).collect();
    let joules = |joules: u64| Some(MicroJoules(joules * 1_000_000));
    assert_eq!(shown, [("2020-W53".into(), 2, 100, joules(1600)), ("2021-W01".into(), 2, 100, joules(1200))]);
    let grams: f64 = weeks.iter().map(|week| week.grams.0).sum();
    assert!((grams - report.total().grams.0).abs() < 1e-12);
    let csv = report.to_csv_by_week().unwrap();
    assert!(csv.starts_with("week,monday,runs,steps,tokens,energy_kwh,emissions_grams_co2e\n2020-W53,2020-12-28,1,2,100,0.000444"), "{csv}");
    assert_eq!(report.to_json_by_week()["weeks"][1]["week"], "2021-W01");
    let text = report.to_text_by_week();
    assert!(
        text.lines().last().is_some_and(|line| line.starts_with("Total") && line.contains("2.80 kJ")),
        "{text}"
    );
}

#[test]
fn energy_is_priced_with_the_figure_of_its_time_and_estimates_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.sqlite");
    let mut ledger = Ledger::open(&path, &info("tiny", None)).unwrap();
    ledger.record(&window(0, WindowKind::Step), WindowTags::default()).unwrap();
    let hour = crate::Period {
        from: "2026-03-02T10:00Z".parse().unwrap(),
        until: "2026-03-02T11:00Z".parse().unwrap(),
    };
    let forecast = crate::GridIntensity {
        grams_per_kwh: crate::GramsPerKilowattHour(90.0),
        period: Some(hour),
        estimated: true,
        ..carbon::lookup("FRA").unwrap()
    };
    ledger.learn(&forecast, crate::Role::Priced).unwrap();
    let marginal =
        crate::GridIntensity { basis: Basis::Marginal, zone: "CAISO_NORTH".into(), ..forecast.clone() };
    ledger.learn(&marginal, crate::Role::Beside).unwrap();
    ledger.record(&window(1, WindowKind::Step), WindowTags::default()).unwrap();
    ledger.finish(RunStatus::Completed, None).unwrap();
    let connection = rusqlite::Connection::open(&path).unwrap();
    let in_the_hour = hour.from.as_millisecond() + 60_000;
    connection.execute("UPDATE window SET ended_ms = ?1 WHERE seq = 1", [in_the_hour]).unwrap();
    drop(connection);
    let report = read(&[&path]);
    let account = &report.runs[0].account;
    // 400 J at 41 and 400 J at 90 g/kWh, PUE 1.2.
    assert!((account.grams.0 - 400.0 / 3.6e6 * 1.2 * 131.0).abs() < 1e-12, "{:?}", account.grams);
    assert_eq!(account.priced_by_estimates, MicroJoules(400_000_000));
    let text = report.to_text();
    for expect in [
        "  over time   65.5 g/kWh in the mean; 1 later figure from 90 to 90, 50.0 % of the energy by estimates\n",
        "  beside      90 g/kWh in CAISO_NORTH, marginal, ",
    ] {
        assert!(text.contains(expect), "{expect:?} is not in\n{text}");
    }
    let segment = &report.to_json()["runs"][0]["segments"][0];
    assert_eq!(segment["carbon_intensities_beside"][0]["basis"], "marginal");
    assert_eq!(segment["carbon_intensities_priced"][1]["estimated"], true);
}

#[test]
fn emissions_of_different_kinds_have_no_sum() {
    let directory = tempfile::tempdir().unwrap();
    let [grid, contract] = ["grid", "contract"].map(|name| directory.path().join(name));
    write_rank(&grid, &info("grid", None), 1);
    let market = crate::GridIntensity { accounting: Accounting::Market, ..carbon::lookup("FRA").unwrap() };
    write_rank(&contract, &RunInfo { intensity: market, ..info("contract", None) }, 1);
    let report = read(&[&grid, &contract]);
    assert_eq!(report.total().emissions(), None);
    assert!(report.to_json()["total"]["emissions_grams_co2e"].is_null());
    assert!(report.runs.iter().all(|run| run.account.emissions().is_some()));
    assert_eq!(report.runs[1].account.sci(FunctionalUnit::Step), None, "contracts have no place in an SCI");
    assert!(report.to_model_card(&Default::default()).unwrap_err().to_string().contains("no sum"));
}

#[test]
fn the_software_carbon_intensity_is_that_of_hand_arithmetic() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.sqlite");
    let server = EmbodiedConfig { kg: 1000.0, lifetime_years: 4.0, share: 0.25, boundary: "server".into() };
    let info = RunInfo { embodied: Some(server), wue_l_per_kwh: Some(1.8), ..info("tiny", None) };
    write_rank(&path, &info, 2);
    let report = read(&[&path]);
    let account = &report.runs[0].account;
    // 4 s of four years of a quarter of 1000 kg; 800 J at 41 g/kWh and PUE 1.2.
    let embodied = 250_000.0 * 4.0 / (4.0 * 365.25 * 86_400.0);
    let operational = 800.0 / 3.6e6 * 1.2 * 41.0;
    let sci = account.sci(FunctionalUnit::Token).unwrap();
    assert!((sci.grams.0 - (operational + embodied) / 100.0).abs() < 1e-15, "{sci:?}");
    assert!(sci.embodied.is_some_and(|Grams(grams)| (grams - embodied).abs() < 1e-12));
    assert_eq!(account.sci(FunctionalUnit::Step).unwrap().units, 2);
    assert_eq!(account.sci(FunctionalUnit::Run).unwrap().units, 1);
    assert!((account.water_liters.unwrap() - 800.0 / 3.6e6 * 1.8).abs() < 1e-15, "of the computers' energy");
}

#[test]
fn what_is_not_declared_is_not_zero() {
    let directory = tempfile::tempdir().unwrap();
    write_run(directory.path(), "tiny");
    let report = read(&[directory.path()]);
    let total = &report.to_json()["total"];
    assert!(total["embodied_grams_co2e"].is_null() && total["water_liters"].is_null());
    assert_eq!(total["sci"]["embodied"], "not declared");
    assert_eq!(total["sci"]["functional_unit"], "token");
    let text = report.to_text();
    assert!(
        text.contains("Embodied      not declared\n") && text.contains("Water         not declared\n"),
        "{text}"
    );
    assert!(text.contains("CO2e per token (ISO/IEC 21031), embodied not declared\n"), "{text}");
    let nothing = Account { tokens: 0, ..report.total() };
    assert_eq!(nothing.sci(FunctionalUnit::Token), None, "without R there is no SCI");
}

#[test]
fn the_range_carries_each_sensors_error() {
    let directory = tempfile::tempdir().unwrap();
    write_run(directory.path(), "tiny");
    let report = read(&[directory.path()]);
    // 2100 J of NVML at 5 % and 700 J of a model at 40 %: 105 + 280 of 2800 J.
    let range = report.total().range().unwrap();
    assert!((range.high - 1.1375).abs() < 1e-12 && (range.low - 0.8625).abs() < 1e-12, "{range:?}");
    let text = report.to_text();
    assert!(text.contains("  range       2.42 kJ to 3.19 kJ: nvml ±5 %, model ±40 %\n"), "{text}");
    let mut unknown = report.total();
    unknown.domains[0].sensor = "bmc".into();
    assert_eq!(unknown.range(), None, "an error nobody has told is not taken for none");
}
