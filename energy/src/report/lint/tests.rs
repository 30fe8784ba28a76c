//! Reports with one thing wrong each, and true ones.

use serde_json::json;

use super::super::emissions_csv::COLUMNS;
use super::*;

const COLUMNS_12: &str = "timestamp,experiment_id,project_name,duration,emissions,energy_consumed,country_name,\
                          country_iso_code,region,on_cloud,cloud_provider,cloud_region";

/// An hour at 300 W of GPU, 60 W of processor and 10 W of memory in a building of PUE 1.2, at 100 g/kWh.
fn honest(column: &str) -> &'static str {
    match column {
        "timestamp" => "2026-03-02T10:00:00",
        "project_name" => "moe",
        "run_id" => "r1",
        "experiment_id" => "e1",
        "duration" => "3600",
        "emissions" => "0.0444",
        "emissions_rate" => "0.0000123333",
        "cpu_power" => "60",
        "gpu_power" => "300",
        "ram_power" => "10",
        "cpu_energy" => "0.072",
        "gpu_energy" => "0.36",
        "ram_energy" => "0.012",
        "energy_consumed" => "0.444",
        "country_iso_code" => "DEU",
        "gpu_count" => "1",
        "pue" => "1.2",
        _ => "",
    }
}

fn lint_text(name: &str, text: &str) -> Result<Vec<Finding>> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    std::fs::write(&path, text).unwrap();
    lint(&path)
}

/// Findings in a file of one honest row with some fields changed.
fn with(columns: &[&str], changes: &[(&str, &str)]) -> Vec<Finding> {
    let field = |column: &&str| {
        let changed = changes.iter().find(|(name, _)| name == column);
        changed.map_or(honest(column), |(_, value)| value).to_owned()
    };
    let row: Vec<String> = columns.iter().map(field).collect();
    lint_text("emissions.csv", &format!("{}\n{}\n", columns.join(","), row.join(","))).unwrap()
}

/// One finding that names the columns and says why.
fn check(changes: &[(&str, &str)], columns: &[&str], reason: &str) {
    let findings = with(&COLUMNS, changes);
    let [finding] = &findings[..] else { panic!("one finding was expected for {changes:?}: {findings:#?}") };
    let named: Vec<&str> = finding.values.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(named, columns);
    assert!(finding.reason.contains(reason), "{finding}");
    assert_eq!(finding.place, "row 2");
}

#[test]
fn an_honest_row_passes_in_every_layout() {
    assert_eq!(with(&COLUMNS, &[]), []);
    let of_2021: Vec<&str> = COLUMNS_12.split(',').collect();
    assert_eq!(with(&of_2021, &[]), []);
    let without = |missing: &[&str]| -> Vec<&str> {
        COLUMNS.into_iter().filter(|column| !missing.contains(column)).collect()
    };
    let version_2 = without(&[
        "experiment_id",
        "water_consumed",
        "cpu_utilization_percent",
        "gpu_utilization_percent",
        "ram_utilization_percent",
        "ram_used_gb",
        "wue",
    ]);
    assert_eq!((version_2.len(), with(&version_2, &[])), (31, vec![]));
    let tasks = [vec!["task_name"], without(&["experiment_id", "pue", "wue"])].concat();
    assert_eq!((tasks.len(), with(&tasks, &[])), (36, vec![]));
}

#[test]
fn power_times_time_must_be_the_energy() {
    check(
        &[("cpu_power", "600")],
        &["cpu_power", "duration", "cpu_energy", "pue"],
        "a PUE of 1.2 does not explain",
    );
    // A W taken for a kW, and the whole of it with it.
    check(
        &[
            ("gpu_power", "0.3"),
            ("ram_power", "0.01"),
            ("ram_energy", "0.00001"),
            ("energy_consumed", "0.43201"),
        ],
        &["gpu_power", "duration", "gpu_energy", "pue"],
        "does not explain",
    );
}

#[test]
fn a_pue_applied_twice_is_told_from_one_applied_once() {
    check(
        &[("energy_consumed", "0.5328"), ("emissions", "0.05328"), ("emissions_rate", "0.0000148")],
        &["energy_consumed", "cpu_energy", "gpu_energy", "ram_energy", "pue"],
        "PUE is in it twice",
    );
    check(
        &[("gpu_energy", "0.432"), ("energy_consumed", "0.516")],
        &["gpu_power", "duration", "gpu_energy", "pue"],
        "PUE is in it twice",
    );
}

#[test]
fn known_constants_are_no_measurements() {
    check(
        &[("cpu_power", "42.5"), ("cpu_energy", "0.051"), ("energy_consumed", "0.423")],
        &["cpu_power"],
        "85 W",
    );
    check(
        &[("emissions", "0.2109"), ("emissions_rate", "0.00005858333")],
        &["emissions", "energy_consumed"],
        "2019",
    );
    let in_turkey =
        [("emissions", "0.2109"), ("emissions_rate", "0.00005858333"), ("country_iso_code", "TUR")];
    assert_eq!(with(&COLUMNS, &in_turkey), [], "there it is the figure of 2025");
}

#[test]
fn memory_that_draws_more_than_the_gpu_is_a_model_of_the_host() {
    let changes = [("ram_power", "378"), ("ram_energy", "0.4536"), ("energy_consumed", "0.8856")];
    check(&changes, &["ram_power", "gpu_power"], "modelled from all the host has");
}

#[test]
fn energy_is_neither_negative_nor_nothing_while_time_passes() {
    let negative = with(&COLUMNS, &[("gpu_energy", "-72.8"), ("energy_consumed", "-72.7")]);
    let named: Vec<&str> = negative.iter().map(|finding| finding.values[0].0.as_str()).collect();
    assert_eq!(named, ["energy_consumed", "gpu_energy"]);
    check(
        &[("gpu_power", ""), ("gpu_energy", "0"), ("energy_consumed", "0.084")],
        &["gpu_energy", "gpu_count", "duration"],
        "a reading that failed is not a reading of zero",
    );
    let nothing = [("cpu_energy", ""), ("gpu_energy", ""), ("ram_energy", ""), ("energy_consumed", "0")];
    check(&nothing, &["energy_consumed", "duration"], "a reading that failed");
}

#[test]
fn emissions_follow_from_energy_and_time() {
    check(
        &[("emissions", "44.4"), ("emissions_rate", "0.01233333")],
        &["emissions", "energy_consumed"],
        "no electricity emits more",
    );
    check(
        &[("emissions_rate", "0.0123333")],
        &["emissions_rate", "duration", "emissions"],
        "rate times the duration",
    );
    check(
        &[("energy_consumed", "0.3")],
        &["energy_consumed", "cpu_energy", "gpu_energy", "ram_energy"],
        "add up",
    );
}

#[test]
fn a_row_that_lost_a_field_and_a_word_for_a_number_are_found() {
    let text = format!("{COLUMNS_12}\n2026-03-02T10:00:00,e1,moe,3600,0.04\n");
    let findings = lint_text("emissions.csv", &text).unwrap();
    assert!(findings.len() == 1 && findings[0].reason.starts_with("5 fields of 12"), "{findings:?}");
    check(&[("water_consumed", "None")], &["water_consumed"], "no number");
    check(&[("timestamp", "yesterday")], &["timestamp"], "no time");
}

#[test]
fn a_run_cannot_last_longer_than_the_time_between_its_rows() {
    let row = |timestamp: &str, duration: &str| {
        let field = |column: &&str| match *column {
            "timestamp" => timestamp.to_owned(),
            "duration" => duration.to_owned(),
            "emissions_rate" | "cpu_power" | "gpu_power" | "ram_power" => String::new(),
            other => honest(other).to_owned(),
        };
        COLUMNS.iter().map(field).collect::<Vec<_>>().join(",")
    };
    let file = |second: &str| {
        let first = row("2026-03-02T10:00:00", "60");
        let text = format!("{}\n{first}\n{}\n", COLUMNS.join(","), row("2026-03-02T10:01:00", second));
        lint_text("emissions.csv", &text).unwrap()
    };
    assert_eq!(file("120"), []);
    let findings = file("7200");
    assert!(findings.len() == 1 && findings[0].place == "row 3", "{findings:?}");
    assert!(findings[0].reason.contains("60 s had passed"), "{}", findings[0]);
}

#[test]
fn a_finding_names_file_row_values_and_reason_in_one_line() {
    let shown =
        with(&COLUMNS, &[("cpu_power", "42.5"), ("cpu_energy", "0.051"), ("energy_consumed", "0.423")]);
    let shown = shown[0].to_string();
    assert!(shown.contains("emissions.csv: row 2: cpu_power = 42.5: half of 85 W"), "{shown}");
    assert!(!shown.contains('\n'));
}

fn report() -> serde_json::Value {
    json!({
        "schema": "wattle-report/1",
        "runs": [{
            "started_at": "2026-03-02T10:00:00Z", "ended_at": "2026-03-02T11:00:10Z", "duration_seconds": 3600.0,
            "energy_joules": 3_600_000.0, "average_watts": 1000.0, "facility_energy_joules": 4_320_000.0,
            "emissions_grams_co2e": 120.0, "superseded_energy_joules": 0.0, "water_liters": null,
            "domains": [{ "domain": "gpu-0", "energy_joules": 3_000_000.0 },
                        { "domain": "ram", "energy_joules": 600_000.0 }],
            "windows": [{ "kind": "step", "energy_joules": 3_600_000.0 }],
            "segments": [{ "energy_joules": 3_600_000.0, "pue": 1.2, "carbon_intensity": { "zone": "DEU" } }],
        }],
    })
}

#[test]
fn our_own_report_is_held_to_its_sums() {
    let lint_json = |report: &serde_json::Value| lint_text("report.json", &report.to_string()).unwrap();
    assert_eq!(lint_json(&report()), []);
    for (key, value, reason) in [
        ("facility_energy_joules", json!(5_184_000.0), "PUE is in it twice"),
        ("average_watts", json!(900.0), "power times time"),
        ("superseded_energy_joules", json!(1e9), "more than the whole"),
        ("ended_at", json!("2026-03-02T10:10:00Z"), "last longer than the run"),
        ("emissions_grams_co2e", json!(570.0), "475 g/kWh"),
        ("emissions_grams_co2e", json!(-1.0), "negative"),
        ("windows", json!([]), "its windows add up"),
        (
            "domains",
            json!([{ "domain": "gpu-0", "energy_joules": 6e5 }, { "domain": "ram", "energy_joules": 3e6 }]),
            "modelled from all the host has",
        ),
    ] {
        let mut changed = report();
        changed["runs"][0][key] = value;
        let findings = lint_json(&changed);
        assert!(findings.len() == 1 && findings[0].reason.contains(reason), "{key}: {findings:#?}");
        assert_eq!(findings[0].place, "runs[0]");
    }
}

#[test]
fn what_is_no_report_is_refused() {
    let refused = |name: &str, text: &str, words: &str| {
        let error = lint_text(name, text).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(words), "{error}");
    };
    refused("other.csv", "a,b\n1,2\n", "its 2 columns are those of no report");
    refused("other.json", "{\"runs\": []}", "schema");
    refused("broken.json", "{", "no JSON");
    refused("empty.csv", "", "its 0 columns");
    assert!(lint(Path::new("nowhere.csv")).unwrap_err().to_string().contains("nowhere.csv"));
}
