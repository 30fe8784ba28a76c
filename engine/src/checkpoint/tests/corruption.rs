//! Any changed, missing or additional byte is found and named, and the checkpoint before it is used.

use std::path::PathBuf;

use super::super::{CheckpointError, load, manifest, newest_valid, save};
use super::*;

const FILES: [&str; 2] = ["manifest.json", "rank-0.safetensors"];

/// Two checkpoints; gives their directory and the newer one.
fn two_checkpoints() -> (tempfile::TempDir, PathBuf) {
    let root = scratch();
    save(root.path(), &state(100, 1), 3).unwrap();
    let newer = save(root.path(), &state(200, 1), 3).unwrap();
    (root, newer)
}

/// The newer checkpoint must be refused because of `file`; gives the tensor that is blamed.
fn refused_for(root: &Path, file: &Path, context: &str) -> Option<String> {
    let found = newest(root);
    assert!(same(&found.state, &state(100, 1)), "{context}");
    assert_eq!(found.rejected.len(), 1, "{context}");
    match &found.rejected[0].reason {
        CheckpointError::Corrupt { path, tensor, .. } if path == file => tensor.clone(),
        reason => panic!("{context}: {reason}"),
    }
}

#[test]
fn every_flipped_byte_is_found_and_named_and_the_previous_checkpoint_is_used() {
    let (root, newer) = two_checkpoints();
    let records = manifest::Manifest::read(&newer).unwrap().tensors;
    for file in FILES.map(|file| newer.join(file)) {
        let sound = fs::read(&file).unwrap();
        for position in 0..sound.len() {
            let mut damaged = sound.clone();
            damaged[position] ^= 1 << (position % 8);
            fs::write(&file, &damaged).unwrap();
            let blamed = refused_for(root.path(), &file, &format!("{} byte {position}", file.display()));
            let holds = |r: &&manifest::TensorRecord| {
                file.ends_with(&r.shard) && (r.offset..r.offset + r.bytes).contains(&(position as u64))
            };
            if let Some(record) = records.iter().find(holds) {
                assert_eq!(blamed.as_ref(), Some(&record.name), "byte {position}");
            }
        }
        fs::write(&file, &sound).unwrap();
    }
    assert!(same(&newest(root.path()).state, &state(200, 1)));
}

#[test]
fn a_file_of_any_other_length_is_found() {
    let (root, newer) = two_checkpoints();
    for file in FILES.map(|file| newer.join(file)) {
        let sound = fs::read(&file).unwrap();
        for len in (0..sound.len()).step_by(5).chain([sound.len() - 1]) {
            fs::write(&file, &sound[..len]).unwrap();
            refused_for(root.path(), &file, &format!("{} cut to {len}", file.display()));
        }
        fs::write(&file, [&sound[..], b"\0"].concat()).unwrap();
        refused_for(root.path(), &file, &format!("{} one byte longer", file.display()));
        fs::remove_file(&file).unwrap();
        refused_for(root.path(), &file, &format!("{} missing", file.display()));
        fs::write(&file, &sound).unwrap();
    }
}

#[test]
fn when_no_checkpoint_is_valid_each_is_named() {
    let (root, _) = two_checkpoints();
    for step in ["step-00000100", "step-00000200"] {
        fs::write(root.path().join(step).join("rank-0.safetensors"), "short").unwrap();
    }
    let error = newest_valid(root.path(), |_| true).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("step-00000100") && text.contains("step-00000200"), "{text}");
    assert_eq!(error.exit_code(), 65);
}

#[test]
fn a_step_that_is_a_file_is_passed_over() {
    let (root, _) = two_checkpoints();
    fs::write(root.path().join("step-00000300"), "").unwrap();
    let found = newest(root.path());
    assert!(same(&found.state, &state(200, 1)));
    assert!(found.rejected[0].path.ends_with("step-00000300"));
}

/// A manifest with `change` made and a right seal, as another program could write it.
fn with_manifest(change: impl FnOnce(&mut manifest::Manifest)) -> (tempfile::TempDir, PathBuf) {
    let root = scratch();
    save(root.path(), &state(100, 1), 3).unwrap();
    let newer = save(root.path(), &state(200, 1), 3).unwrap();
    let mut changed = manifest::Manifest::read(&newer).unwrap();
    change(&mut changed);
    fs::write(newer.join("manifest.json"), changed.to_sealed_bytes().unwrap()).unwrap();
    (root, newer)
}

#[test]
fn a_newer_format_is_an_error_and_no_reason_to_fall_back() {
    let (root, newer) = with_manifest(|manifest| manifest.format = 2);
    for error in [load(&newer, |_| true).unwrap_err(), newest_valid(root.path(), |_| true).unwrap_err()] {
        assert!(matches!(error, CheckpointError::Unsupported { .. }), "{error}");
        assert_eq!(error.exit_code(), 65);
    }
}

#[test]
fn a_sealed_manifest_that_lies_is_refused() {
    type Lie = fn(&mut manifest::Manifest);
    let lies: [(&str, Lie); 8] = [
        ("a path out of the directory", |m| m.shards[0].file = "../step-00000100/rank-0.safetensors".into()),
        ("the directory itself", |m| m.shards[0].file = "..".into()),
        ("another configuration", |m| m.config_toml.push('\n')),
        ("another shape", |m| m.tensors[1].shape = vec![24]),
        ("another offset", |m| m.tensors[1].offset += 4),
        ("a tensor too many", |m| {
            let extra = manifest::TensorRecord { name: "ghost".into(), ..m.tensors[0].clone() };
            m.tensors.push(extra);
        }),
        ("a tensor too few", |m| drop(m.tensors.pop())),
        ("a shard that is not listed", |m| m.shards.clear()),
    ];
    for (lie, change) in lies {
        let (root, newer) = with_manifest(change);
        let error = load(&newer, |_| true).unwrap_err();
        assert!(matches!(error, CheckpointError::Corrupt { .. }), "{lie}: {error}");
        assert!(same(&newest(root.path()).state, &state(100, 1)), "{lie}");
    }
}

#[test]
fn a_sealed_manifest_whose_counts_cannot_be_is_refused() {
    let (root, newer) = two_checkpoints();
    let mut impossible = state(200, 1);
    impossible.progress.nonfinite_steps = 201;
    save(root.path(), &impossible, 3).unwrap();
    assert_eq!(refused_for(root.path(), &newer.join("manifest.json"), "201 of 200 steps"), None);
}
