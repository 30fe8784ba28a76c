//! The ledger counts each joule once, through restarts and kills, and everyone tells the same sums.

use std::path::Path;

use serde_json::Value;
use wattle_energy::report::{Account, RunReport};
use wattle_energy::{Overrides, Report, RunStatus};
use wattle_tests::process::{Process, checkpoint_steps, num_metrics};
use wattle_tests::program::Workshop;

/// A kilowatt for an hour.
const JOULES_PER_KILOWATT_HOUR: f64 = 3.6e6;

fn report(run: &Path) -> Report {
    Report::from_ledger(run, &Overrides::default()).expect("the ledger is readable")
}

fn only_run(report: &Report) -> &RunReport {
    assert_eq!(report.runs.len(), 1, "restarts belong to one run");
    &report.runs[0]
}

/// Windows and microjoules of a kind; none of it is 0 of both.
fn kind(account: &Account, name: &str) -> (u64, u64) {
    account.kinds.iter().find(|kind| kind.kind == name).map_or((0, 0), |kind| (kind.windows, kind.energy.0))
}

fn assert_near(left: f64, right: f64) {
    assert!((left - right).abs() <= 1e-9 * right.abs(), "{left} and {right}");
}

/// The sums that must agree in every ledger.
fn assert_balanced(report: &Report) {
    let run = only_run(report);
    let account = &run.account;
    let energy = account.energy.0;
    assert!(energy > 0);
    assert_eq!(energy, account.domains.iter().map(|domain| domain.energy.0).sum::<u64>(), "over domains");
    assert_eq!(energy, account.kinds.iter().map(|kind| kind.energy.0).sum::<u64>(), "over kinds of window");
    assert_eq!(energy, run.segments.iter().map(|segment| segment.energy.0).sum::<u64>(), "over processes");
    let of_phases = account.phases.iter().map(|phase| phase.energy.0).sum::<u64>();
    assert_eq!(kind(account, "step").1, of_phases, "over phases");
    let experts_phase = account.phases.iter().find(|phase| phase.phase == "experts");
    let of_experts = run.experts.iter().map(|expert| expert.energy.0).sum::<u64>();
    assert_eq!(experts_phase.map_or(0, |phase| phase.energy.0), of_experts, "over experts");
    assert_eq!(account.incomplete_windows, 0);
    let emitted = run.segments.iter().map(|segment| {
        segment.energy.joules().0 / JOULES_PER_KILOWATT_HOUR * segment.intensity.grams_per_kwh.0 * segment.pue
    });
    assert_near(account.grams.0, emitted.sum());
}

/// The phases of each step in metrics.jsonl are the step.
fn assert_phases_are_the_step(metrics: &[Value]) {
    for step in metrics {
        let phases = step["phase_joules"].as_object().expect("the model always has an answer");
        let sum: f64 = phases.values().map(|joules| joules.as_f64().expect("a number")).sum();
        assert_near(sum, step["joules"].as_f64().expect("the model always has an answer"));
        assert!(phases.contains_key("experts") && phases.contains_key("router"), "{phases:?}");
    }
}

/// Microjoules of the steps, as metrics.jsonl tells them.
fn step_energy(metrics: &[Value]) -> u64 {
    let joules = metrics.iter().map(|step| step["joules"].as_f64().expect("the model always has an answer"));
    joules.map(|joules| (joules * 1e6).round() as u64).sum()
}

fn grams_total(metrics: &[Value]) -> f64 {
    metrics.last().and_then(|step| step["grams_co2e_total"].as_f64()).expect("carbon is in every step")
}

/// Emissions of setting up and of steps alone, in a report with one place and building.
fn grams_of_setup_and_steps(report: &Report) -> f64 {
    let account = &report.total();
    let share = (kind(account, "setup").1 + kind(account, "step").1) as f64 / account.energy.0 as f64;
    account.grams.0 * share
}

#[test]
fn metrics_ledger_and_report_tell_the_same_sums() {
    let workshop = Workshop::new();
    // Evaluation and checkpoint come after the last step only: metrics.jsonl has all that came before.
    let sets =
        ["checkpoint.every_steps=0", "eval.every_steps=0", "carbon.grams_per_kwh=250", "carbon.pue=1.4"];
    workshop.train("run", &sets.map(|set| ["--set", set]).concat());
    let report = report(&workshop.path("run"));
    assert_balanced(&report);
    let (run, metrics) = (only_run(&report), workshop.metrics("run"));
    let account = &run.account;
    assert_eq!((account.steps, account.tokens, run.status), (40, 10240, RunStatus::Completed));
    assert_eq!(kind(account, "step"), (40, step_energy(&metrics)));
    assert_phases_are_the_step(&metrics);
    for (name, windows) in [("setup", 1), ("evaluation", 1), ("checkpoint", 1), ("unattributed", 1)] {
        assert_eq!(kind(account, name).0, windows, "windows of {name}");
    }
    assert_eq!(account.superseded.0, 0);
    let joules = account.energy.joules().0;
    assert_near(account.grams.0, joules / JOULES_PER_KILOWATT_HOUR * 250.0 * 1.4);
    assert_near(grams_total(&metrics), grams_of_setup_and_steps(&report));
    assert_eq!(run.final_loss, metrics[39]["ce_loss"].as_f64());

    let ran = workshop.run(&["report", "run", "--format", "json"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let json: Value = serde_json::from_str(&ran.stdout).expect("it is JSON");
    assert_eq!(json["total"]["tokens"], 10240);
    assert_near(json["total"]["energy_joules"].as_f64().expect("energy is known"), joules);
    assert_near(json["total"]["emissions_grams_co2e"].as_f64().expect("carbon is known"), account.grams.0);
    assert_eq!(json["total"]["measured_share_percent"], 0.0, "a model is no measurement");
}

#[test]
fn a_resumed_run_goes_on_counting_where_it_was() {
    let workshop = Workshop::new();
    let run = workshop.path("run");
    workshop.train("run", &["--max-steps", "20"]);
    let before = report(&run);
    assert_balanced(&before);
    workshop.train("run", &["--set", "carbon.pue=1.5"]);
    let after = report(&run);
    assert_balanced(&after);
    let account = &only_run(&after).account;
    assert_eq!((account.steps, account.tokens), (40, 10240));
    assert_eq!(kind(account, "step"), (40, step_energy(&workshop.metrics("run"))));
    assert_eq!(kind(account, "setup").0, 2);
    assert_eq!(account.superseded.0, 0, "nothing was done twice");
    let [first, second] = &only_run(&after).segments[..] else { panic!("two processes are two segments") };
    assert_eq!((first.resumed_from_step, second.resumed_from_step), (None, Some(20)));
    assert_eq!((first.status, second.status), (RunStatus::Interrupted, RunStatus::Completed));
    assert_eq!((first.pue, second.pue), (only_run(&before).segments[0].pue, 1.5), "each as it was counted");
    assert_eq!(first.energy, before.total().energy, "the past is not rewritten");

    let metrics = workshop.metrics("run");
    let total =
        |step: usize| metrics[step - 1]["grams_co2e_total"].as_f64().expect("carbon is in every step");
    assert!((2..=40).all(|step| total(step - 1) < total(step)), "the total only grows");
    assert!(total(21) > before.total().grams.0 && total(40) < after.total().grams.0);
}

#[test]
fn what_a_kill_made_vain_is_spent_but_not_in_the_model() {
    let workshop = Workshop::new();
    let run = workshop.path("run");
    let num_steps = 1600;
    let sets = ["run.max_tokens=409600", "checkpoint.every_steps=0", "eval.every_steps=0"];
    let sets = sets.map(|set| ["--set", set]).concat();
    let mut process = Process::train(&workshop, "run", &sets);
    process.wait_until("step 5", || num_metrics(&run) >= 5);
    process.signal(libc::SIGUSR1);
    process.wait_until("the checkpoint", || !checkpoint_steps(&run).is_empty());
    let saved = checkpoint_steps(&run)[0];
    // Windows reach the disk together, some time after their steps.
    process.wait_until("a later step in the ledger", || report(&run).total().steps > saved);
    process.kill();
    let killed = report(&run);
    assert_balanced(&killed);
    let steps_before = kind(&killed.total(), "step").0;
    assert!(steps_before > saved);
    assert_eq!(killed.total().superseded.0, 0, "nothing is known to be vain yet");

    workshop.train("run", &sets);
    let after = report(&run);
    assert_balanced(&after);
    let account = &only_run(&after).account;
    assert_eq!(
        (account.steps, account.tokens),
        (num_steps, num_steps * 256),
        "each step is in the model once"
    );
    let (step_windows, step_microjoules) = kind(account, "step");
    assert_eq!(
        step_windows,
        steps_before + num_steps - saved,
        "and each was paid for as often as it was done"
    );
    let metrics = workshop.metrics("run");
    assert_eq!(
        step_microjoules + kind(account, "open").1 - account.superseded.0,
        step_energy(&metrics),
        "all but the vain is in the metrics"
    );
    assert!(account.superseded.0 > 0 && account.superseded < account.energy);
    let [first, second] = &only_run(&after).segments[..] else { panic!("two processes are two segments") };
    assert_eq!((first.status, second.status), (RunStatus::Crashed, RunStatus::Completed));
    assert_eq!((second.resumed_from_step, first.energy), (Some(saved), killed.total().energy));
    assert!(grams_total(&metrics) > killed.total().grams.0 && grams_total(&metrics) < account.grams.0);

    let text = workshop.run(&["report", "run"]).stdout;
    assert!(text.contains("done again"), "{text}");
}
