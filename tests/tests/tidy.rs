//! The house rules that a reader cannot be asked to check by eye: floors, file sizes, headers, no unfinished places.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Which of our crates each crate may use.
const FLOORS: [(&str, &[&str]); 4] = [
    ("kernels", &[]),
    ("energy", &[]),
    ("router", &["wattle-kernels"]),
    ("engine", &["wattle-kernels", "wattle-energy", "wattle-router"]),
];

/// Outside crates that only one room may name.
const OWNERS: [(&str, &str); 10] = [
    ("cudarc", "kernels"),
    ("mpi", "kernels"),
    ("nvml-wrapper", "energy"),
    ("rusqlite", "energy"),
    ("tokio", "engine"),
    ("axum", "engine"),
    ("hyper", "engine"),
    ("ureq", "energy"),
    ("clap", "engine"),
    ("tokenizers", "engine"),
];

/// A file beyond this is more than one noun.
const MAX_LINES: usize = 500;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above this crate").to_owned()
}

fn dependencies(member: &str) -> BTreeMap<String, toml::Value> {
    let manifest =
        fs::read_to_string(root().join(member).join("Cargo.toml")).expect("every crate has a manifest");
    let manifest: toml::Table = manifest.parse().expect("manifests are TOML");
    manifest["dependencies"].as_table().expect("dependencies are a table").clone().into_iter().collect()
}

fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for member in ["kernels", "energy", "router", "engine", "tests"] {
        walk(&root().join(member), &mut found);
    }
    assert!(found.len() > 50, "the walk lost its way: {} files", found.len());
    found
}

fn walk(directory: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(directory).expect("a crate's folders are readable") {
        let path = entry.expect("a folder's entries are readable").path();
        if path.is_dir() {
            walk(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("sources are text");
            found.push((path, text));
        }
    }
}

#[test]
fn each_crate_uses_only_the_floors_below_it() {
    for (member, allowed) in FLOORS {
        let used: Vec<_> =
            dependencies(member).into_keys().filter(|name| name.starts_with("wattle-")).collect();
        for name in &used {
            assert!(allowed.contains(&name.as_str()), "{member} may not use {name}");
        }
    }
}

#[test]
fn outside_crates_stay_in_their_room() {
    for (name, owner) in OWNERS {
        for (member, _) in FLOORS {
            assert!(
                member == owner || !dependencies(member).contains_key(name),
                "{name} belongs to {owner} alone"
            );
        }
    }
}

#[test]
fn every_version_is_pinned_at_the_workspace() {
    for (member, _) in FLOORS {
        for (name, value) in dependencies(member) {
            let at_workspace = value.get("workspace").and_then(toml::Value::as_bool) == Some(true);
            assert!(at_workspace, "{member}: {name} must say `workspace = true`");
        }
    }
}

#[test]
fn every_file_says_what_it_is_and_is_one_noun() {
    for (path, text) in sources() {
        assert!(text.starts_with("//! "), "{}: starts without a line of what it is", path.display());
        let lines = text.lines().count();
        assert!(lines <= MAX_LINES, "{}: {lines} lines, at most {MAX_LINES}", path.display());
    }
}

#[test]
fn nothing_is_ignored_or_unfinished() {
    // Spelled in two parts, so that this file does not find itself.
    let words = [
        ["#[ig", "nore"],
        ["to", "do!("],
        ["unimple", "mented!("],
        ["db", "g!("],
        ["TO", "DO"],
        ["FIX", "ME"],
    ];
    for (path, text) in sources() {
        for word in words.map(|parts| parts.concat()) {
            assert!(!text.contains(&word), "{}: contains {word}", path.display());
        }
    }
}
