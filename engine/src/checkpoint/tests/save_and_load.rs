//! What is saved comes back: every bit, the order, the newest of several, and no more than `keep`.

use super::super::{CheckpointError, load, newest_valid, save};
use super::*;

#[test]
fn every_bit_of_every_element_type_comes_back_in_order() {
    let root = scratch();
    let saved = state(100, 1);
    let path = save(&root.path().join("run/checkpoints"), &saved, 3).unwrap();
    assert_eq!(path, root.path().join("run/checkpoints/step-00000100"));
    assert_eq!(names(&path), ["manifest.json", "rank-0.safetensors"]);
    assert!(same(&load(&path, |_| true).unwrap(), &saved));
}

#[test]
fn a_tensor_larger_than_one_piece_comes_back() {
    let root = scratch();
    let values: Vec<f32> = (0..200_001u32).map(|i| f32::from_bits(i.wrapping_mul(0x9E37_79B1))).collect();
    let tensor = Tensor::from_slice(&values, &[200_001]).unwrap();
    let mut saved = state(1, 1);
    saved.tensors.push(NamedTensor { name: "large".to_owned(), tensor });
    assert!(same(&load(&save(root.path(), &saved, 1).unwrap(), |_| true).unwrap(), &saved));
}

#[test]
fn only_wanted_tensors_are_kept_and_the_others_are_verified_all_the_same() {
    let root = scratch();
    let saved = state(100, 1);
    let path = save(root.path(), &saved, 1).unwrap();
    let wanted = |name: &str| name.starts_with("model.");
    let mut rest = saved.clone();
    rest.tensors.retain(|named| wanted(&named.name));
    assert!(rest.tensors.len() == 2 && same(&load(&path, wanted).unwrap(), &rest));

    let file = path.join("rank-0.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    // The last byte is of a tensor of bytes.
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    let error = load(&path, wanted).unwrap_err();
    assert!(error.to_string().contains("in tensor quantised: its BLAKE3 is"), "{error}");
}

#[test]
fn a_state_without_tensors_or_extras_comes_back() {
    let root = scratch();
    let empty = State {
        tensors: Vec::new(),
        config_toml: String::new(),
        extra: serde_json::Map::new(),
        ..state(0, 0)
    };
    assert!(same(&load(&save(root.path(), &empty, 1).unwrap(), |_| true).unwrap(), &empty));
}

#[test]
fn the_same_state_gives_the_same_bytes() {
    let roots = [scratch(), scratch()];
    let paths = roots.each_ref().map(|root| save(root.path(), &state(5, 5), 1).unwrap());
    for file in ["manifest.json", "rank-0.safetensors"] {
        let [a, b] = paths.each_ref().map(|path| fs::read(path.join(file)).unwrap());
        assert_eq!(a, b, "{file}");
    }
}

#[test]
fn the_newest_keep_checkpoints_stay() {
    for keep in 0..=3 {
        let root = scratch();
        for step in 1..=5 {
            save(root.path(), &state(step, 0), keep).unwrap();
        }
        let kept: Vec<String> = (6 - keep.max(1)..=5).map(|step| format!("step-{step:08}")).collect();
        assert_eq!(names(root.path()), kept, "keep {keep}");
    }
}

#[test]
fn a_step_saved_again_is_replaced() {
    let root = scratch();
    save(root.path(), &state(100, 1), 3).unwrap();
    save(root.path(), &state(200, 1), 3).unwrap();
    save(root.path(), &state(200, 2), 3).unwrap();
    assert_eq!(names(root.path()), ["step-00000100", "step-00000200"]);
    assert!(same(&newest(root.path()).state, &state(200, 2)));
}

#[test]
fn a_save_of_an_earlier_step_ends_the_later_line() {
    let root = scratch();
    for step in [100, 200, 300] {
        save(root.path(), &state(step, 1), 2).unwrap();
    }
    save(root.path(), &state(250, 2), 2).unwrap();
    assert_eq!(names(root.path()), ["step-00000200", "step-00000250"]);
    assert!(same(&newest(root.path()).state, &state(250, 2)));
}

#[test]
fn a_manifest_names_its_parent_and_describes_each_tensor() {
    let root = scratch();
    let read = |path: &Path| -> serde_json::Value {
        serde_json::from_slice(&fs::read(path.join("manifest.json")).unwrap()).unwrap()
    };
    let first = read(&save(root.path(), &state(100, 1), 2).unwrap());
    let path = save(root.path(), &state(200, 1), 2).unwrap();
    let second = read(&path);
    assert_eq!(first["parent"], serde_json::Value::Null);
    assert_eq!(second["parent"], first["blake3"]);
    assert_eq!((&second["format"], &second["step"]), (&json!(1), &json!(200)));
    let shard = fs::read(path.join("rank-0.safetensors")).unwrap();
    assert_eq!(second["shards"][0]["blake3"], blake3::hash(&shard).to_hex().as_str());
    for record in second["tensors"].as_array().unwrap() {
        let [start, bytes] = ["offset", "bytes"].map(|key| record[key].as_u64().unwrap() as usize);
        assert_eq!(
            record["blake3"],
            blake3::hash(&shard[start..start + bytes]).to_hex().as_str(),
            "{record}"
        );
    }
}

#[test]
fn a_missing_checkpoint_is_said_to_be_missing() {
    let root = scratch();
    assert!(newest_valid(&root.path().join("checkpoints"), |_| true).unwrap().is_none());
    assert!(newest_valid(root.path(), |_| true).unwrap().is_none());
    let error = load(&root.path().join("step-00000001"), |_| true).unwrap_err();
    assert!(matches!(error, CheckpointError::NotFound { .. }), "{error}");
}

#[test]
fn a_checkpoint_may_be_copied_under_a_free_name_but_not_under_another_step() {
    let root = scratch();
    let path = save(root.path(), &state(100, 1), 1).unwrap();
    copy_tree(&path, &root.path().join("best"));
    assert!(same(&load(&root.path().join("best"), |_| true).unwrap(), &state(100, 1)));
    let renamed = root.path().join("step-00000999");
    fs::rename(&path, &renamed).unwrap();
    assert!(matches!(load(&renamed, |_| true), Err(CheckpointError::Corrupt { .. })));
}

#[test]
fn a_tensor_name_used_twice_is_refused_before_anything_is_written() {
    let root = scratch();
    let mut twice = state(1, 1);
    twice.tensors.push(twice.tensors[0].clone());
    let error = save(root.path(), &twice, 1).unwrap_err();
    assert!(error.to_string().contains("mask"), "{error}");
    assert_eq!(names(root.path()), [""; 0]);
}
