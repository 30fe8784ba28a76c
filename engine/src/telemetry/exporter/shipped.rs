//! The files that name our metrics, in `configs/` and `docs/`, name only those that exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::catalogue::{self, Kind};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every sample name that a scrape can have.
fn sample_names() -> BTreeSet<String> {
    let names = catalogue::ALL.iter().flat_map(|metric| match metric.kind {
        Kind::Histogram => {
            ["_bucket", "_sum", "_count"].map(|suffix| format!("{}{suffix}", metric.name)).into()
        }
        _ => vec![format!("{}{}", metric.name, metric.suffix())],
    });
    names.collect()
}

/// The metric names in a text: `wattle_…` of the exporter, `wattle:…` of recording rules.
fn names_in(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = text.split(|c| !is_part(c)).map(|word| word.trim_end_matches(':'));
    words
        .filter(|word| word.starts_with("wattle_") || word.starts_with("wattle:"))
        .map(str::to_owned)
        .collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The names that the recording rules make.
fn recorded() -> BTreeSet<String> {
    let rules = read("configs/prometheus/recording.rules.yml");
    rules.lines().filter_map(|line| line.trim().strip_prefix("- record: ")).map(str::to_owned).collect()
}

#[test]
fn rules_and_documentation_name_only_metrics_that_exist() {
    let samples: BTreeSet<String> = sample_names().union(&recorded()).cloned().collect();
    // A text may speak of a histogram as a whole; a query may not.
    let metrics = catalogue::ALL.iter().map(|metric| metric.name.to_owned());
    let metrics: BTreeSet<String> = samples.iter().cloned().chain(metrics).collect();
    for (path, known) in [
        ("configs/prometheus/recording.rules.yml", &samples),
        ("configs/prometheus/alerts.rules.yml", &samples),
        ("configs/prometheus/rules.test.yml", &samples),
        ("docs/monitoring.md", &metrics),
    ] {
        let names = names_in(&read(path));
        assert!(!names.is_empty(), "{path}");
        let unknown: Vec<_> = names.difference(known).collect();
        assert!(unknown.is_empty(), "{path}: {unknown:?}");
    }
}

#[test]
fn the_documentation_names_every_metric() {
    let documented = names_in(&read("docs/monitoring.md"));
    for metric in catalogue::ALL {
        let name = format!("{}{}", metric.name, metric.suffix());
        let is_there = documented.iter().any(|word| word.starts_with(&name));
        assert!(is_there, "{name}");
    }
}

/// All values of a key, at any depth.
fn find<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get(key));
            map.values().for_each(|value| find(value, key, found));
        }
        Value::Array(values) => values.iter().for_each(|value| find(value, key, found)),
        _ => {}
    }
}

#[test]
fn every_panel_asks_for_metrics_that_exist_and_is_described_with_its_unit() {
    let known: BTreeSet<String> = sample_names().union(&recorded()).cloned().collect();
    let dashboard: Value = serde_json::from_str(&read("configs/grafana/dashboards/wattle.json")).unwrap();
    let unknown: Vec<_> = names_in(&dashboard.to_string()).difference(&known).cloned().collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert_eq!((&dashboard["schemaVersion"], &dashboard["id"]), (&json!(39), &Value::Null));
    let panels = dashboard["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{}", panel["title"]);
        if panel["type"] == "row" {
            continue;
        }
        assert!(panel["description"].as_str().unwrap().len() > 20, "{}", panel["title"]);
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{}", panel["title"]);
        for target in panel["targets"].as_array().unwrap() {
            let query = target["expr"].as_str().unwrap();
            assert!(!names_in(query).is_empty(), "{query}");
            assert!(query.contains("job=~\"$job\", instance=~\"$instance\""), "{query}");
        }
    }
    let mut sources = Vec::new();
    find(&dashboard["panels"], "datasource", &mut sources);
    assert!(sources.iter().all(|source| source["uid"] == "${datasource}"), "{sources:?}");
}
