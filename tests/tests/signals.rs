//! Signals and two processes at one directory: nobody loses work, nobody is left in doubt.

use wattle_energy::{Overrides, Report, RunStatus};
use wattle_tests::outcome::Outcome;
use wattle_tests::process::{Process, checkpoint_steps, num_metrics};
use wattle_tests::program::Workshop;

/// 400 steps: long enough to be caught in the midst.
const LONG: [&str; 4] = ["--set", "run.max_tokens=102400", "--set", "checkpoint.every_steps=0"];

#[test]
fn term_and_int_end_with_a_durable_checkpoint_and_the_same_command_goes_on() {
    let workshop = Workshop::new();
    workshop.train("unbroken", &LONG);
    let run = workshop.path("run");
    for (signal, steps) in [(libc::SIGTERM, 5), (libc::SIGINT, 150)] {
        let mut process = Process::train(&workshop, "run", &LONG);
        process.wait_until("the step to signal at", || num_metrics(&run) >= steps);
        process.signal(signal);
        let ran = process.finish();
        assert_eq!(ran.code, 75, "{}", ran.stderr);
        assert!(ran.stderr.contains("the same command goes on"), "{}", ran.stderr);
        assert_eq!(ran.stdout, "run\n");
        let stopped_at = num_metrics(&run);
        assert!(stopped_at < 400);
        assert_eq!(checkpoint_steps(&run).last(), Some(&(stopped_at as u64)), "no step is lost");
        let report = Report::from_ledger(&run, &Overrides::default()).expect("the ledger is readable");
        assert_eq!(report.runs[0].status, RunStatus::Interrupted);
        assert_eq!(report.total().steps, stopped_at as u64);
        assert!(report.runs[0].segments.iter().all(|segment| segment.status == RunStatus::Interrupted));
    }
    workshop.train("run", &LONG);
    Outcome::of(&workshop.path("unbroken")).assert_same(&Outcome::of(&run));
    let report = Report::from_ledger(&run, &Overrides::default()).expect("the ledger is readable");
    assert_eq!(report.runs[0].status, RunStatus::Completed);
    assert_eq!(report.total().superseded.0, 0, "nothing was done twice");
}

#[test]
fn usr1_makes_a_checkpoint_and_the_run_goes_on() {
    let workshop = Workshop::new();
    let run = workshop.path("run");
    let mut process = Process::train(&workshop, "run", &LONG);
    process.wait_until("step 5", || num_metrics(&run) >= 5);
    process.signal(libc::SIGUSR1);
    process.wait_until("the checkpoint", || !checkpoint_steps(&run).is_empty());
    let asked_for = checkpoint_steps(&run)[0];
    assert!((5..400).contains(&asked_for), "{asked_for}");
    let ran = process.finish();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(checkpoint_steps(&run), [asked_for, 400]);
    workshop.train("unasked", &LONG);
    Outcome::of(&workshop.path("unasked")).assert_same(&Outcome::of(&run));
}

#[test]
fn a_run_directory_has_one_process_at_a_time() {
    let workshop = Workshop::new();
    let run = workshop.path("run");
    let mut process = Process::train(&workshop, "run", &["--set", "run.max_tokens=1M"]);
    process.wait_until("the first step", || num_metrics(&run) >= 1);
    for resume in ["auto", "run"] {
        let second = workshop.run(&["train", "config.toml", "--run-dir", "run", "--resume", resume]);
        assert_eq!(second.code, 78, "{}", second.stderr);
        assert!(second.stderr.contains("run is in use by another process"), "{}", second.stderr);
    }
    process.signal(libc::SIGTERM);
    let ran = process.finish();
    assert_eq!(ran.code, 75, "{}", ran.stderr);
    let steps = Outcome::of(&run).metrics;
    assert!(
        steps.iter().enumerate().all(|(i, step)| step["step"] == i as u64 + 1),
        "the first was not disturbed"
    );
}
