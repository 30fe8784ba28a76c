//! A run that was interrupted, in whatever way, ends with the bits of one that was not.

use std::fs;
use std::path::Path;

use wattle_tests::outcome::{Outcome, checkpoint, newest_checkpoint, progress};
use wattle_tests::process::{Process, checkpoint_steps, num_metrics};
use wattle_tests::program::{Ran, Workshop};

/// The tiny run of 40 steps, unbroken.
fn unbroken(workshop: &Workshop) -> Outcome {
    workshop.train("unbroken", &[]);
    Outcome::of(&workshop.path("unbroken"))
}

fn flip_a_bit(checkpoint: &Path) {
    let path = checkpoint.join("rank-0.safetensors");
    let mut bytes = fs::read(&path).expect("the checkpoint is there");
    let last = bytes.len() - 1;
    bytes[last] ^= 0x10;
    fs::write(&path, bytes).expect("the checkpoint is writable");
}

fn resume(workshop: &Workshop, arguments: &[&str]) -> Ran {
    let mut all = vec!["train", "config.toml"];
    all.extend(arguments);
    workshop.run(&all)
}

#[test]
fn twenty_steps_and_then_twenty_are_forty() {
    let workshop = Workshop::new();
    let whole = unbroken(&workshop);
    workshop.train("parts", &["--max-steps", "20"]);
    assert_eq!(progress(&newest_checkpoint(&workshop.path("parts")))["step"], 20);
    let ran = workshop.train("parts", &[]);
    assert!(ran.stderr.contains("going on from parts/checkpoints/step-00000020"), "{}", ran.stderr);
    whole.assert_same(&Outcome::of(&workshop.path("parts")));
}

#[test]
fn any_step_is_a_good_one_to_stop_at() {
    let workshop = Workshop::new();
    let whole = unbroken(&workshop);
    for step in ["1", "7", "20", "39"] {
        workshop.train("parts", &["--max-steps", step]);
        assert_eq!(num_metrics(&workshop.path("parts")).to_string(), step);
    }
    workshop.train("parts", &[]);
    whole.assert_same(&Outcome::of(&workshop.path("parts")));
}

#[test]
fn a_finished_run_that_is_started_again_stays_as_it_is() {
    let workshop = Workshop::new();
    let whole = unbroken(&workshop);
    workshop.train("unbroken", &[]);
    whole.assert_same(&Outcome::of(&workshop.path("unbroken")));
}

#[test]
fn a_killed_run_ends_as_an_unbroken_one() {
    let workshop = Workshop::new();
    // Long enough to be caught between any two checkpoints.
    let sets = ["--set", "run.max_tokens=102400", "--set", "eval.every_steps=0"];
    workshop.train("unbroken", &sets);
    let run = workshop.path("killed");
    for steps in [1, 35, 101, 250] {
        let mut process = Process::train(&workshop, "killed", &sets);
        process.wait_until("the step to kill at", || num_metrics(&run) >= steps);
        process.kill();
    }
    let mut process = Process::train(&workshop, "killed", &sets);
    process.wait_until("the checkpoint to kill at", || checkpoint_steps(&run).last() >= Some(&300));
    process.kill();
    let ran = workshop.train("killed", &sets);
    assert!(ran.stderr.contains("going on from killed/checkpoints/step-000003"), "{}", ran.stderr);
    Outcome::of(&workshop.path("unbroken")).assert_same(&Outcome::of(&run));
}

#[test]
fn a_run_killed_before_its_first_checkpoint_begins_again() {
    let workshop = Workshop::new();
    let sets = ["--set", "run.max_tokens=51200", "--set", "checkpoint.every_steps=0"];
    workshop.train("unbroken", &sets);
    let run = workshop.path("killed");
    let mut process = Process::train(&workshop, "killed", &sets);
    process.wait_until("step 20", || num_metrics(&run) >= 20);
    process.kill();
    assert!(checkpoint_steps(&run).is_empty());
    workshop.train("killed", &sets);
    Outcome::of(&workshop.path("unbroken")).assert_same(&Outcome::of(&run));
}

#[test]
fn a_flipped_bit_costs_one_checkpoint_and_no_more() {
    let workshop = Workshop::new();
    let whole = unbroken(&workshop);
    workshop.train("run", &["--max-steps", "30"]);
    let run = workshop.path("run");
    flip_a_bit(&checkpoint(&run, 30));
    let ran = workshop.train("run", &[]);
    assert!(ran.stderr.contains("checkpoint refused: "), "{}", ran.stderr);
    assert!(ran.stderr.contains("step-00000030/rank-0.safetensors"), "{}", ran.stderr);
    assert!(ran.stderr.contains("going on from run/checkpoints/step-00000020"), "{}", ran.stderr);
    whole.assert_same(&Outcome::of(&run));
}

#[test]
fn with_every_checkpoint_damaged_nothing_is_guessed_and_nothing_deleted() {
    let workshop = Workshop::new();
    workshop.train("run", &["--max-steps", "20"]);
    let run = workshop.path("run");
    assert_eq!(checkpoint_steps(&run), [10, 20]);
    for step in [10, 20] {
        flip_a_bit(&checkpoint(&run, step));
    }
    let content = |name: &str| fs::read(run.join(name)).expect("the file is there");
    let names = ["metrics.jsonl", "config.toml", "checkpoints/step-00000010/rank-0.safetensors"];
    let before = names.map(content);
    let ran = resume(&workshop, &["--run-dir", "run"]);
    assert_eq!(ran.code, 65, "{}", ran.stderr);
    for part in ["none of its checkpoints is valid", "step-00000010", "step-00000020"] {
        assert!(ran.stderr.contains(part), "{part} is missing: {}", ran.stderr);
    }
    assert_eq!(checkpoint_steps(&run), [10, 20]);
    assert!(before == names.map(content));
}

#[test]
fn an_explicit_checkpoint_or_run_directory_is_gone_on_from() {
    let workshop = Workshop::new();
    let whole = unbroken(&workshop);
    workshop.train("run", &["--max-steps", "20"]);
    let run = workshop.path("run");
    // As a path of its own, and together with the run directory it lies in.
    for run_dir in [&[][..], &["--run-dir", "run"]] {
        for (from, step, max_steps) in [("run", 20, "21"), ("run/checkpoints/step-00000010", 10, "20")] {
            let ran =
                resume(&workshop, &[&["--resume", from, "--max-steps", max_steps][..], run_dir].concat());
            assert_eq!(ran.code, 0, "{}", ran.stderr);
            assert!(ran.stderr.contains(&format!("(step {step})")), "{}", ran.stderr);
            assert!(ran.stdout.trim_end().ends_with("run"), "{}", ran.stdout);
            assert_eq!(num_metrics(&run).to_string(), max_steps);
        }
    }
    workshop.train("run", &["--resume", "run"]);
    whole.assert_same(&Outcome::of(&run));
}

#[test]
fn an_older_checkpoint_leaves_the_line_after_it_even_if_killed_before_the_next_save() {
    let workshop = Workshop::new();
    let length = ["--set", "run.max_tokens=102400"];
    workshop.train("unbroken", &length);
    workshop.train("run", &[&length[..], &["--max-steps", "30"]].concat());
    let run = workshop.path("run");
    let back = ["--resume", "run/checkpoints/step-00000010", "--set", "checkpoint.every_steps=0"];
    let mut process = Process::train(&workshop, "run", &[&length[..], &back].concat());
    process.wait_until("the later checkpoints to go", || checkpoint_steps(&run) == [10]);
    process.kill();
    let ran = workshop.train("run", &length);
    assert!(ran.stderr.contains("(step 10)"), "{}", ran.stderr);
    Outcome::of(&workshop.path("unbroken")).assert_same(&Outcome::of(&run));
}

#[test]
fn a_checkpoint_can_go_on_in_a_new_run_directory() {
    let workshop = Workshop::new();
    let whole = unbroken(&workshop);
    let from = "unbroken/checkpoints/step-00000020";
    let ran = workshop.train("branch", &["--resume", from]);
    assert!(ran.stderr.contains("(step 20)"), "{}", ran.stderr);
    let branch = Outcome::of(&workshop.path("branch"));
    assert!(whole.tensors == branch.tensors);
    assert_eq!(whole.metrics[20..], branch.metrics);
    assert_eq!(
        checkpoint_steps(&workshop.path("branch")),
        [20, 30, 40],
        "it can be resumed from its first moment"
    );
    whole.assert_same(&Outcome::of(&workshop.path("unbroken")));
    // It is a run now: another start from the old one would mix two histories.
    let ran = resume(&workshop, &["--resume", from, "--run-dir", "branch"]);
    assert_eq!(ran.code, 78, "{}", ran.stderr);
    assert!(ran.stderr.contains("already holds a run"), "{}", ran.stderr);
}

#[test]
fn a_checkpoint_of_other_data_is_refused_by_its_key() {
    let workshop = Workshop::new();
    workshop.train("run", &["--max-steps", "10"]);
    for resume_from in
        [&["--run-dir", "run"][..], &["--resume", "run/checkpoints/step-00000010", "--run-dir", "new"]]
    {
        let ran = resume(&workshop, &[resume_from, &["--set", "data.sequence_length=16"]].concat());
        assert_eq!(ran.code, 78, "{}", ran.stderr);
        assert!(ran.stderr.contains("data.sequence_length"), "{}", ran.stderr);
    }
}

#[test]
fn a_path_without_a_checkpoint_is_an_error_that_names_it() {
    let workshop = Workshop::new();
    let ran = resume(&workshop, &["--resume", "nowhere"]);
    assert_ne!(ran.code, 0);
    assert!(ran.stderr.contains("nowhere"), "{}", ran.stderr);
    assert!(!workshop.path("runs").exists(), "nothing was begun instead");
}

#[test]
fn auto_goes_on_with_an_unfinished_run_and_leaves_a_finished_one() {
    let workshop = Workshop::new();
    let whole = unbroken(&workshop);
    let start = |arguments: &[&str]| {
        let ran = resume(&workshop, arguments);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        ran.stdout.trim_end().to_owned()
    };
    let first = start(&["--max-steps", "10"]);
    assert!(first.starts_with("runs/tiny-"), "{first}");
    let other = start(&["--max-steps", "10", "--set", "run.seed=8"]);
    assert_ne!(first, other, "another configuration is another run");
    let never = start(&["--max-steps", "10", "--resume", "never"]);
    assert!(never != first && never != other, "never starts anew");
    fs::remove_dir_all(workshop.path(&never)).expect("the run directory is there");
    assert_eq!(start(&[]), first);
    whole.assert_same(&Outcome::of(&workshop.path(&first)));
    let next = start(&[]);
    assert!(next != first && next != other, "the first is finished");
    whole.assert_same(&Outcome::of(&workshop.path(&next)));
}

#[test]
fn never_refuses_a_directory_that_holds_a_run() {
    let workshop = Workshop::new();
    workshop.train("run", &["--max-steps", "10"]);
    let ran = resume(&workshop, &["--run-dir", "run", "--resume", "never"]);
    assert_eq!(ran.code, 78, "{}", ran.stderr);
    assert!(ran.stderr.contains("already holds a run"), "{}", ran.stderr);
    assert_eq!(num_metrics(&workshop.path("run")), 10);
}

#[test]
fn checkpoints_alone_are_a_run_that_a_new_one_must_not_replace() {
    let workshop = Workshop::new();
    workshop.train("old", &["--max-steps", "10"]);
    workshop.train("run", &["--max-steps", "30"]);
    fs::remove_file(workshop.path("run/config.toml")).expect("it is there");
    for from in ["never", "old"] {
        let ran = resume(&workshop, &["--run-dir", "run", "--resume", from]);
        assert_eq!(ran.code, 78, "{}", ran.stderr);
        assert!(ran.stderr.contains("already holds a run"), "{}", ran.stderr);
    }
    assert_eq!(checkpoint_steps(&workshop.path("run")), [10, 20, 30]);
}

#[test]
fn a_run_whose_configuration_lacks_a_newer_key_goes_on_and_a_broken_one_is_named() {
    let workshop = Workshop::new();
    let first = resume(&workshop, &["--max-steps", "10"]).stdout.trim_end().to_owned();
    let path = workshop.path(&first).join("config.toml");
    let saved = fs::read_to_string(&path).expect("the run keeps its configuration");
    let older = saved.replace("shuffle = true\n", "");
    assert!(older != saved);
    fs::write(&path, older).expect("writable");
    let ran = resume(&workshop, &["--max-steps", "20"]);
    assert_eq!((ran.code, ran.stdout.trim_end()), (0, first.as_str()), "{}", ran.stderr);
    fs::write(&path, "[run").expect("writable");
    let ran = resume(&workshop, &["--run-dir", &first]);
    ran.expect_refusal(65, &["config.toml is damaged", "does not load"]);
}

#[test]
fn a_run_does_not_go_on_over_another_text() {
    let workshop = Workshop::new();
    workshop.train("run", &["--max-steps", "10"]);
    let text = std::fs::read_to_string(workshop.path("text.txt")).expect("it is there");
    workshop.write("text.txt", text.replace("sheep", "goats"));
    let ran = workshop.run(&["train", "config.toml", "--run-dir", "run"]);
    ran.expect_refusal(65, &["has changed since step 10", "--resume never"]);
    workshop.write("text.txt", text);
    workshop.train("run", &["--max-steps", "20"]);
}
