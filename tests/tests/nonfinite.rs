//! A loss or gradient that is not finite never reaches the weights, is counted, and ends a run that has no more.

use std::path::Path;

use wattle_energy::{Overrides, Report, RunStatus};
use wattle_engine::checkpoint;
use wattle_kernels::DType;
use wattle_tests::outcome::{newest_checkpoint, progress};
use wattle_tests::program::Workshop;

fn assert_finite(checkpoint: &Path) {
    let state = checkpoint::load(checkpoint, |_| true).expect("the checkpoint is whole");
    assert!(!state.tensors.is_empty());
    for named in &state.tensors {
        assert_eq!(named.tensor.dtype(), DType::F32);
        let values = named.tensor.to_f32_vec().expect("tensors can be read");
        assert!(values.iter().all(|value| value.is_finite()), "{} is not finite", named.name);
    }
}

/// Runs with a setting that ends in numbers beyond f32, and gives the index of the first skipped step.
fn diverge(workshop: &Workshop, set: &str) -> usize {
    let arguments =
        ["train", "config.toml", "--run-dir", "run", "--set", set, "--set", "run.max_nonfinite_steps=3"];
    let ran = workshop.run(&arguments);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let metrics = workshop.metrics("run");
    let is_skipped = |step: &serde_json::Value| step["skipped"] == true;
    let first = metrics.iter().position(is_skipped).expect("a step was skipped");
    assert!(metrics[first..].iter().all(is_skipped));
    assert_eq!(metrics.len(), first + 3, "the third in a row ends the run");
    assert!(metrics[first]["grad_norm"].is_null());
    for part in ["3 steps in a row", &format!("stopped at step {}", first + 3), "optimizer.learning_rate"] {
        assert!(ran.stderr.contains(part), "{part} is missing: {}", ran.stderr);
    }
    let newest = newest_checkpoint(&workshop.path("run"));
    assert!(ran.stderr.contains(&newest.file_name().expect("it has a name").to_string_lossy().into_owned()));
    assert_finite(&newest);
    let progress = progress(&newest);
    assert_eq!((&progress["step"], &progress["nonfinite_steps"]), (&(first + 3).into(), &3.into()));
    let report =
        Report::from_ledger(&workshop.path("run"), &Overrides::default()).expect("the ledger is readable");
    assert_eq!(report.runs[0].status, RunStatus::Failed);
    first
}

#[test]
fn a_run_that_diverges_stops_with_its_last_good_weights() {
    let workshop = Workshop::new();
    let first = diverge(&workshop, "optimizer.learning_rate=1e30");
    assert!(first >= 1, "the first step has sound weights");
}

#[test]
fn a_run_that_is_not_finite_from_the_start_keeps_its_initial_weights_and_can_be_resumed() {
    let workshop = Workshop::new();
    assert_eq!(diverge(&workshop, "model.init_std=1e30"), 0);
    let again = workshop.run(&["train", "config.toml", "--run-dir", "run", "--set", "model.init_std=1e30"]);
    assert_eq!(again.code, 1, "{}", again.stderr);
    assert!(again.stderr.contains("going on from"), "{}", again.stderr);
    assert_eq!(
        workshop.metrics("run").len(),
        3 + 5,
        "it tries as many as the default allows, and says so again"
    );
}
