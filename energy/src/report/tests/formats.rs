//! Formats for other programs: CodeCarbon's CSV, BoAmps, model cards, markdown.

use std::time::Duration;

use super::*;
use crate::attribution::{Attribution, Waste};
use crate::report::Details;

fn report() -> Report {
    let directory = tempfile::tempdir().unwrap();
    write_run(directory.path(), "tiny, \"quoted\"");
    Report::from_ledger(directory.path(), &Overrides::default()).unwrap()
}

/// The fields of the last row by column.
fn last_row(csv: &str) -> Vec<(String, String)> {
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    let header = reader.headers().unwrap().clone();
    let row = reader.records().last().unwrap().unwrap();
    header.iter().zip(&row).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn field(row: &[(String, String)], column: &str) -> String {
    row.iter().find(|(name, _)| name == column).unwrap_or_else(|| panic!("no {column}")).1.clone()
}

#[test]
fn the_csv_keeps_codecarbons_meaning() {
    let csv = report().to_csv().unwrap();
    assert_eq!(csv.lines().count(), 2);
    let row = last_row(&csv);
    assert_eq!(row.len(), 38);
    assert!(csv.starts_with(
        "timestamp,project_name,run_id,experiment_id,duration,emissions,emissions_rate,cpu_power"
    ));
    assert!(csv.lines().next().unwrap().ends_with("ram_used_gb,on_cloud,pue,wue"));
    let number = |column| field(&row, column).parse::<f64>().unwrap();
    let near = |column, expected: f64| {
        assert!((number(column) - expected).abs() <= 1e-12 * expected.abs(), "{column}: {}", number(column));
    };
    assert_eq!(field(&row, "project_name"), "tiny, \"quoted\"");
    near("duration", 14.0);
    // Powers are at the computer; energies are the building's, at PUE 1.2.
    near("gpu_power", 150.0);
    near("cpu_power", 50.0);
    near("gpu_energy", 2100.0 / 3.6e6 * 1.2);
    near("cpu_energy", 700.0 / 3.6e6 * 1.2);
    near("energy_consumed", 2800.0 / 3.6e6 * 1.2);
    near("emissions", 2800.0 / 3.6e9 * 1.2 * 41.0);
    near("emissions_rate", 2800.0 / 3.6e9 * 1.2 * 41.0 / 14.0);
    near("pue", 1.2);
    assert_eq!(field(&row, "country_name"), "France");
    assert_eq!(field(&row, "country_iso_code"), "FRA");
    assert_eq!(field(&row, "gpu_count"), "1");
    assert_eq!(field(&row, "tracking_mode"), "machine");
    for unknown in
        ["ram_power", "ram_energy", "water_consumed", "wue", "python_version", "on_cloud", "cpu_model"]
    {
        assert_eq!(field(&row, unknown), "", "{unknown} is unknown, which is not 0");
    }
    let at: jiff::civil::DateTime = field(&row, "timestamp").parse().unwrap();
    assert!(at.year() >= 2025);
}

#[test]
fn water_is_theirs_in_the_csv_and_ours_elsewhere() {
    let mut report = report();
    let account = &mut report.runs[0].account;
    account.water_liters = Some(account.energy.joules().kilowatt_hours() * 2.0);
    let row = last_row(&report.to_csv().unwrap());
    let water: f64 = field(&row, "water_consumed").parse().unwrap();
    // WUE 2 times the building's energy there, times the computers' here.
    assert!((water - 2.0 * 2800.0 / 3.6e6 * 1.2).abs() < 1e-12, "{water}");
    assert_eq!(field(&row, "wue").parse::<f64>().unwrap(), 2.0);
}

#[test]
fn rows_are_appended_by_name_to_each_of_the_three_headers() {
    let report = report();
    let old = "timestamp,experiment_id,project_name,duration,emissions,energy_consumed,country_name,\
               country_iso_code,region,on_cloud,cloud_provider,cloud_region";
    let of_38 = report.to_csv().unwrap();
    let header_38 = of_38.lines().next().unwrap();
    let new = ["experiment_id", "water_consumed", "wue", "ram_used_gb"];
    let of_31: Vec<&str> = header_38
        .split(',')
        .filter(|name| !new.contains(name) && !name.ends_with("_utilization_percent"))
        .collect();
    let swapped = {
        let mut names: Vec<&str> = header_38.split(',').collect();
        names.swap(4, 5);
        names.join(",")
    };
    for header in [old, &of_31.join(","), header_38, &swapped] {
        let columns = header.split(',').count();
        // The last line has no end, as an editor may have left it.
        let existing = format!("{header}\n{}", vec!["x"; columns].join(","));
        let appended = report.appended_to_csv(Path::new("emissions.csv"), &existing).unwrap();
        assert!(appended.starts_with(&existing), "what was there stays");
        assert_eq!(appended.lines().count(), 3);
        let row = last_row(&appended);
        assert_eq!(row.len(), columns);
        assert_eq!(field(&row, "duration"), "14");
        assert_eq!(field(&row, "project_name"), "tiny, \"quoted\"");
    }
    let windows = report.appended_to_csv(Path::new("emissions.csv"), &format!("{old}\r\n")).unwrap();
    assert_eq!(windows.matches("\r\n").count(), 2);
    assert_eq!(report.appended_to_csv(Path::new("emissions.csv"), "").unwrap(), of_38);
}

#[test]
fn a_file_that_rows_do_not_fit_is_refused() {
    let report = report();
    let refused = |existing: &str, words: &str| {
        let error = report.appended_to_csv(Path::new("emissions.csv"), existing).unwrap_err().to_string();
        assert!(error.starts_with("emissions.csv: ") && error.contains(words), "{error}");
    };
    refused("a,b,c\n1,2,3\n", "its 3 columns are not those of CodeCarbon's");
    let of_38 = report.to_csv().unwrap();
    refused(&format!("{of_38}1,2,3\n"), "row 3 has 3 fields of 38");
    let tasks = of_38.lines().next().unwrap().replace("experiment_id,", "").replace(",pue,wue", "");
    refused(&format!("task_name,{tasks}\n"), "tasks of one run");
    refused(&format!("{of_38}\"an open quote"), "row 3 has 1 fields");
}

#[test]
fn unknown_energy_is_an_empty_field() {
    let mut report = report();
    report.runs[0].account.domains.clear();
    let row = last_row(&report.to_csv().unwrap());
    for column in ["emissions", "emissions_rate", "gpu_energy", "energy_consumed", "cpu_power"] {
        assert_eq!(field(&row, column), "");
    }
    assert!(
        report.to_model_card(&Details::default()).unwrap_err().to_string().contains("no sensor was read")
    );
    assert!(report.to_boamps(&Details::default())["measures"][0].get("powerConsumption").is_none());
}

#[test]
fn the_model_card_is_in_grams_with_what_is_known() {
    let report = report();
    let told = Details { training_type: Some("pre-training".into()), hardware: Some("1 x \"H100\"".into()) };
    let card = report.to_model_card(&told).unwrap();
    let lines: Vec<&str> = card.lines().collect();
    assert_eq!((lines[0], lines[1], *lines.last().unwrap()), ("---", "co2_eq_emissions:", "---"));
    let grams: f64 = lines[2].strip_prefix("  emissions: ").unwrap().parse().unwrap();
    assert!((grams - 0.038_266_667).abs() < 1e-9);
    assert!(lines[3].starts_with("  source: \"wattle ") && lines[3].contains("75 % measured"), "{card}");
    assert_eq!(
        lines[4..7],
        [
            "  training_type: \"pre-training\"",
            "  geographical_location: \"France\"",
            "  hardware_used: \"1 x \\\"H100\\\"\"",
        ]
    );
    let untold = report.to_model_card(&Details::default()).unwrap();
    assert!(
        untold.contains("  hardware_used: \"1 GPU, 1 CPU\"\n") && !untold.contains("training_type"),
        "{untold}"
    );
}

#[test]
fn boamps_has_all_that_its_schema_requires() {
    let document = report().to_boamps(&Details::default());
    // Required by model/report_schema.json and the schemas it refers to.
    for pointer in [
        "/header/reportDatetime",
        "/task/taskStage",
        "/task/taskFamily",
        "/task/algorithms/0",
        "/task/dataset/0/dataUsage",
        "/task/dataset/0/dataType",
        "/measures/0/measurementMethod",
        "/measures/0/powerConsumption",
        "/system/os",
        "/software/language",
        "/infrastructure/infraType",
        "/infrastructure/components/0/componentType",
        "/infrastructure/components/0/nbComponent",
        "/environment/country",
    ] {
        assert!(document.pointer(pointer).is_some_and(|value| !value.is_null()), "{pointer}: {document:#}");
    }
    let kwh = document["measures"][0]["powerConsumption"].as_f64().unwrap();
    assert!((kwh - 2800.0 / 3.6e6).abs() < 1e-15, "at the computers, in kWh");
    assert_eq!(document["measures"][0]["measurementDuration"], 14.0);
    assert_eq!(document["quality"], "medium", "off by up to 13.75 %");
    assert_eq!(document["environment"]["country"], "France");
}

#[test]
fn markdown_is_a_table_with_what_the_numbers_rest_on() {
    let text = report().to_markdown();
    assert!(text.contains("| tiny, \"quoted\"-2026 | completed | 4 | 200 | 2.80 kJ | 14.0000 | 75.0 % | 38.3 mg | 1.0000 |\n"), "{text}");
    assert!(
        text.contains("- Carbon intensity: 41 g/kWh in FRA 2025, lifecycle average, location-based (Ember"),
        "{text}"
    );
    assert!(text.contains("- Embodied: not declared\n"), "{text}");
}

#[test]
fn phases_experts_and_work_in_vain_are_shown() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.sqlite");
    let mut ledger = Ledger::open(&path, &info("tiny", None)).unwrap();
    let attribution = Attribution {
        phases: &[("experts", Duration::from_secs(1)), ("attention", Duration::from_millis(500))],
        experts: &[(0, &[40, 30, 20, 10]), (1, &[40, 30, 20, 10])],
        waste: &[Waste { reason: "padding", count: 12, share: 0.05 }],
    };
    let tags = WindowTags { step: Some(1), tokens: 50, loss: None };
    ledger.record_attributed(&window(0, WindowKind::Step), tags, &attribution).unwrap();
    ledger.finish(RunStatus::Completed, None).unwrap();
    let report = Report::from_ledger(&path, &Overrides::default()).unwrap();
    let text = report.to_text();
    for expect in [
        "  Steps by phase\n    experts                       1.00 s      200 J   50.0 %  ██████████\n",
        "  Experts, 8 in all\n    0/0                        40 tokens     40.0 J   20.0 %  ████\n",
        "    ...\n",
        "    1/3                        10 tokens     10.0 J    5.0 %  █\n",
        "  In vain, of the steps\n    padding                         12 x     20.0 J    5.0 %  █\n",
        "Sensors       0 resets, 0 spikes, 0.00 s without a reading; 1 segment told nothing\n",
    ] {
        assert!(text.contains(expect), "{expect:?} is not in\n{text}");
    }
    assert!(!text.contains("    0/2 "), "those in the middle are left out\n{text}");
    let run = &report.to_json()["runs"][0];
    assert_eq!(run["experts"].as_array().unwrap().len(), 8);
    assert_eq!(run["experts"][0]["joules_per_token"], 1.0);
    assert_eq!((&run["phases"][0]["phase"], &run["waste"][0]["count"]), (&"experts".into(), &12.into()));
}
