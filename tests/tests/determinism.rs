//! One seed gives one run, to the bit, whatever the number of threads.

use wattle_tests::outcome::Outcome;
use wattle_tests::program::Workshop;

fn outcome(workshop: &Workshop, run: &str, sets: &[&str]) -> Outcome {
    let arguments: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    workshop.train(run, &arguments);
    Outcome::of(&workshop.path(run))
}

fn losses(outcome: &Outcome, key: &str) -> Vec<f64> {
    outcome.metrics.iter().map(|step| step[key].as_f64().expect("losses are numbers")).collect()
}

#[test]
fn the_same_seed_gives_the_same_bits() {
    let workshop = Workshop::new();
    let first = outcome(&workshop, "a", &[]);
    assert_eq!(first.metrics.len(), 40);
    assert_eq!(first.progress["tokens"], 10240);
    first.assert_same(&outcome(&workshop, "b", &[]));
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let workshop = Workshop::new();
    let one = outcome(&workshop, "one", &["device.threads=1"]);
    for threads in ["2", "3"] {
        one.assert_same(&outcome(&workshop, threads, &[&format!("device.threads={threads}")]));
    }
}

#[test]
fn the_number_of_threads_changes_no_bit_in_bf16() {
    let workshop = Workshop::new();
    let bf16 = "precision.compute=\"bf16\"";
    let one = outcome(&workshop, "one", &["device.threads=1", bf16]);
    one.assert_same(&outcome(&workshop, "two", &["device.threads=2", bf16]));
    assert!(one.tensors != outcome(&workshop, "f32", &["precision.compute=\"f32\""]).tensors);
}

#[test]
fn another_seed_gives_another_run() {
    let workshop = Workshop::new();
    let (one, other) = (outcome(&workshop, "a", &[]), outcome(&workshop, "b", &["run.seed=8"]));
    assert!(one.tensors != other.tensors);
    assert!(losses(&one, "ce_loss").iter().zip(&losses(&other, "ce_loss")).all(|(one, other)| one != other));
}

#[test]
fn accumulated_micro_batches_learn_as_the_whole_batch_does() {
    let workshop = Workshop::new();
    // The balance loss looks at one micro-batch at a time and is another function there; bf16 would round away
    // what is compared.
    let sets = ["moe.balance_loss=\"none\"", "precision.compute=\"f32\""];
    let whole = outcome(&workshop, "whole", &sets);
    let halves = outcome(&workshop, "halves", &[sets[0], sets[1], "optimizer.micro_batch_sequences=4"]);
    for (step, (whole, halves)) in losses(&whole, "loss").iter().zip(losses(&halves, "loss")).enumerate() {
        assert!((whole - halves).abs() <= 1e-4 * whole, "step {}: {whole} and {halves}", step + 1);
    }
    assert_eq!(whole.progress["next_sample"], halves.progress["next_sample"]);
    assert!(whole.tensors != halves.tensors, "sums in another order round differently: was the batch split?");
}
