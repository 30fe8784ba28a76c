//! Whole saves and loads, and what disks, crashes and flipped bits do to them.

mod corruption;
mod crash;
mod full_disk;
mod save_and_load;

use std::fs;
use std::path::Path;

use serde_json::json;
use wattle_kernels::{DType, Tensor, bf16};

use super::{NamedTensor, Newest, Progress, State, newest_valid};

/// A state of every element type, with what breaks careless code: NaN payloads, empty tensors, a scalar, and odd
/// sizes before wide elements. The numbers depend on `step` and `variant`.
fn state(step: u64, variant: u64) -> State {
    let bits = |i: u64| (step * 31 + variant * 7 + i) as u32;
    let float = |i: u64| f32::from_bits(0x3f80_0000 + bits(i));
    let named = |name: &str, tensor| NamedTensor { name: name.to_owned(), tensor };
    let special = [0x7f80_0001, 0xffc1_2345, 0x8000_0000, 0x0000_0001, 0x7f80_0000].map(f32::from_bits);
    let gate: Vec<f32> = (0..24).map(float).collect();
    let brain: Vec<bf16> = [0x7f81, 0xffff, 0x8000, bits(0) as u16, 5].map(bf16::from_bits).into();
    State {
        tensors: vec![
            named("mask", Tensor::from_slice(&[1u8, 0, bits(0) as u8], &[3]).unwrap()),
            named("model.layers.0.moe.gate_up", Tensor::from_slice(&gate, &[2, 3, 4]).unwrap()),
            named("nothing", Tensor::from_slice::<f32>(&[], &[0, 3]).unwrap()),
            named("compute.copy", Tensor::from_slice(&brain, &[5, 1]).unwrap()),
            named("model.norm", Tensor::from_slice(&special, &[5]).unwrap()),
            named("quantised", Tensor::from_slice(&[-128i8, 127, bits(0) as i8], &[1, 3]).unwrap()),
            named("router.counts", Tensor::from_slice(&[i32::MIN, -1, bits(0) as i32], &[3]).unwrap()),
            named("optimizer.scale", Tensor::from_slice(&[float(9)], &[]).unwrap()),
        ],
        progress: Progress {
            step,
            tokens: u64::MAX - variant,
            next_sample: step * 16,
            nonfinite_steps: step.min(2),
            seed: (1 << 53) + 1,
        },
        config_toml: format!("[run]\nseed = {variant}\nname = \"ü\"\n"),
        extra:
            json!({"noise_scale": 0.1 + 0.2, "smallest": f64::from_bits(1), "z": 1, "a": ["last", {"x": {}}]})
                .as_object()
                .unwrap()
                .clone(),
    }
}

/// An empty directory, in memory where the system has such a place: these tests sync thousands of times.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// Every bit of the tensor.
fn bits(tensor: &Tensor) -> Vec<u32> {
    match tensor.dtype() {
        DType::F32 => tensor.data::<f32>().unwrap().iter().map(|x| x.to_bits()).collect(),
        DType::Bf16 => tensor.data::<bf16>().unwrap().iter().map(|x| x.to_bits().into()).collect(),
        DType::I32 => tensor.data::<i32>().unwrap().iter().map(|x| *x as u32).collect(),
        DType::I8 => tensor.data::<i8>().unwrap().iter().map(|x| *x as u8 as u32).collect(),
        DType::U8 => tensor.data::<u8>().unwrap().iter().map(|x| (*x).into()).collect(),
    }
}

fn same(a: &State, b: &State) -> bool {
    let tensors = |state: &State| -> Vec<_> {
        let facts =
            |t: &NamedTensor| (t.name.clone(), t.tensor.dtype(), t.tensor.shape().to_vec(), bits(&t.tensor));
        state.tensors.iter().map(facts).collect()
    };
    tensors(a) == tensors(b)
        && a.progress == b.progress
        && a.config_toml == b.config_toml
        && a.extra == b.extra
        && a.extra.keys().eq(b.extra.keys())
}

fn newest(checkpoints: &Path) -> Newest {
    newest_valid(checkpoints, |_| true).unwrap().expect("a checkpoint")
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The names in a directory, sorted.
fn names(directory: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<_> = fs::read_dir(directory).unwrap().map(name).collect();
    names.sort();
    names
}
