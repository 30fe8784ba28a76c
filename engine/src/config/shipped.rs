//! The files in `configs/`, which users copy, load and say what they claim.

use std::fs;
use std::path::{Path, PathBuf};

use toml::Table;

use super::Config;
use super::resolved::Resolved;
use super::schema::{properties, required, schema};
use crate::model::presets::preset;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs")
}

fn load(name: &str) -> Resolved {
    Config::load(&directory().join(name), &[]).unwrap_or_else(|error| panic!("{error}"))
}

/// The reference with the keys that are absent by default taken in.
fn reference_with_absent_keys(schema: &serde_json::Value) -> String {
    let text = fs::read_to_string(directory().join("reference.toml")).unwrap();
    let keys: Vec<&String> = properties(schema)
        .unwrap()
        .values()
        .flat_map(|section| properties(section).unwrap().keys())
        .collect();
    let is_key = |line: &str| keys.iter().any(|key| line.starts_with(&format!("{key} = ")));
    let lines = text.lines().map(|line| line.strip_prefix("# ").filter(|rest| is_key(rest)).unwrap_or(line));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn every_file_loads_and_is_kept_whole_in_the_run_directory() {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".toml") {
            let resolved = load(&name);
            let again = Config::parse(&name, resolved.to_toml().unwrap().as_bytes(), &[]).unwrap();
            assert_eq!(again.config, resolved.config, "{name}");
            names.push(name);
        }
    }
    assert!(names.len() >= 4, "{names:?}");
}

#[test]
fn the_reference_names_every_key_in_the_order_of_the_schema() {
    let schema = schema();
    let table: Table = reference_with_absent_keys(&schema).parse().unwrap();
    let sections: Vec<&String> = properties(&schema).unwrap().keys().collect();
    assert_eq!(table.keys().collect::<Vec<_>>(), sections);
    for (name, section) in properties(&schema).unwrap() {
        let keys: Vec<&String> = properties(section).unwrap().keys().collect();
        assert_eq!(table[name].as_table().unwrap().keys().collect::<Vec<_>>(), keys, "[{name}]");
    }
}

#[test]
fn the_reference_gives_defaults_wherever_there_are_some() {
    let schema = schema();
    let table: Table = fs::read_to_string(directory().join("reference.toml")).unwrap().parse().unwrap();
    // Only what a user must give: the rest of this file is filled with defaults.
    let mut bare = Table::new();
    for (name, section) in properties(&schema).unwrap() {
        let is_needed = |key: &str| required(section).any(|required| required == key) || key == "train";
        let keys = table[name].as_table().unwrap().iter().filter(|(key, _)| is_needed(key));
        let keys: Table = keys.map(|(key, value)| (key.clone(), value.clone())).collect();
        if !keys.is_empty() {
            bare.insert(name.clone(), keys.into());
        }
    }
    let bare = Config::parse("bare", bare.to_string().as_bytes(), &[]).unwrap();
    assert_eq!(load("reference.toml").config, bare.config);
}

#[test]
fn the_keys_that_the_reference_comments_out_are_valid_when_taken_in() {
    let text = reference_with_absent_keys(&schema());
    // The keys that others ask for.
    let fitting = ["tokenizer.kind=file", "energy.meter=replay"].map(String::from);
    Config::parse("reference", text.as_bytes(), &fitting).unwrap();
}

#[test]
fn the_shakespeare_twins_differ_in_their_feed_forward_layers_only() {
    let (moe, dense) = (load("shakespeare-moe.toml").config, load("shakespeare-dense.toml").config);
    let mut twin = moe.clone();
    twin.run.name = dense.run.name.clone();
    twin.moe = None;
    twin.model.ffn_size = Some(1024);
    assert_eq!(twin, dense);
    let experts = moe.moe.unwrap();
    assert_eq!(experts.top_k * experts.expert_ffn_size, 1024);
}

#[test]
fn the_quickstart_model_is_preset_s() {
    let (config, s) = (load("quickstart.toml").config, preset("S").unwrap());
    assert_eq!(config.moe, Some(s.moe));
    assert_eq!(config.model.head_dim(), s.model.head_dim());
    assert_eq!(crate::model::config::ModelConfig { head_dim: None, ..config.model }, s.model);
    assert_eq!(config.tokenizer.vocab_size, s.vocab_size);
    assert_eq!((config.data.sequence_length, config.optimizer.batch_sequences), (s.sequence_length, s.batch));
}
