//! Every way to route learns: after a few hundred tiny steps the held-out loss is far below what counting letters gives.

use std::fs;

use wattle_engine::checkpoint;
use wattle_tests::program::Workshop;

/// Trains 300 steps with overrides and expects a held-out loss below half of the letters' entropy.
fn learns(sets: &[&str]) -> Workshop {
    let workshop = Workshop::new();
    let mut arguments = vec!["--set", "run.max_tokens=76800", "--set", "checkpoint.every_steps=0"];
    arguments.extend(sets.iter().flat_map(|set| ["--set", set]));
    workshop.train("run", &arguments);
    let metrics = workshop.metrics("run");
    let loss = metrics[299]["val_loss"].as_f64().expect("the last step evaluates");
    let bound = unigram_entropy(&workshop) / 2.0;
    assert!(loss < bound, "{sets:?}: {loss} nats, expected below {bound}");
    assert!(metrics.iter().all(|step| step.get("skipped").is_none()), "{sets:?}: steps were skipped");
    workshop
}

/// Nats a byte of a model that knows how often each byte comes and nothing else.
fn unigram_entropy(workshop: &Workshop) -> f64 {
    let text = fs::read(workshop.path("text.txt")).expect("the workshop has a text");
    let mut counts = [0_u32; 256];
    text.iter().for_each(|&byte| counts[usize::from(byte)] += 1);
    let shares = counts.iter().filter(|&&n| n > 0).map(|&n| f64::from(n) / text.len() as f64);
    shares.map(|share| -share * share.ln()).sum()
}

/// Mean of a metric over some steps.
fn mean(workshop: &Workshop, key: &str, steps: std::ops::Range<usize>) -> f64 {
    let num_steps = steps.len() as f64;
    workshop.metrics("run")[steps].iter().map(|step| step[key].as_f64().expect("a number")).sum::<f64>()
        / num_steps
}

/// The router biases in the run's last checkpoint, one list per sparse layer.
fn router_biases(workshop: &Workshop) -> Vec<Vec<f32>> {
    let newest =
        checkpoint::newest_valid(&workshop.path("run/checkpoints"), |_| true).expect("it can be read");
    let tensors = newest.expect("there is one").state.tensors;
    let biases = tensors.into_iter().filter(|tensor| tensor.name.starts_with("router.bias."));
    biases.map(|bias| bias.tensor.to_f32_vec().expect("it is f32")).collect()
}

#[test]
fn softmax_routing_learns() {
    let workshop = learns(&["moe.bias_update_rate=0"]);
    assert_eq!(mean(&workshop, "k_mean", 0..300), 2.0);
    assert!(router_biases(&workshop).is_empty());
}

#[test]
fn sigmoid_routing_with_a_bias_learns_and_the_bias_evens_the_load() {
    let sets = ["moe.scoring=sigmoid", "moe.balance_loss=none"];
    let biased = learns(&[&sets[..], &["moe.bias_update_rate=0.01"]].concat());
    let free = learns(&[&sets[..], &["moe.bias_update_rate=0"]].concat());
    let (with, without) =
        (mean(&biased, "expert_load_cv", 250..300), mean(&free, "expert_load_cv", 250..300));
    assert!(with < 0.5 * without, "the load varies by {with} with the bias and by {without} without");
    assert_eq!(mean(&biased, "balance_loss", 0..300), 0.0);
    let biases = router_biases(&biased);
    assert_eq!(biases.len(), 2);
    for layer in biases {
        assert!(layer.iter().any(|bias| bias.abs() > 0.005), "the bias has moved: {layer:?}");
        // Each step moves it by the rate or not at all.
        assert!(layer.iter().all(|bias| (bias / 0.01 - (bias / 0.01).round()).abs() < 1e-2), "{layer:?}");
    }
}

#[test]
fn a_capacity_drops_tokens_and_the_model_still_learns() {
    let workshop = learns(&["moe.capacity_factor=1.0", "moe.bias_update_rate=0"]);
    assert!(mean(&workshop, "dropped_tokens", 0..300) > 0.0, "experts at their even share must drop some");
    assert!(
        mean(&workshop, "dropped_tokens", 250..300) < mean(&workshop, "dropped_tokens", 0..50),
        "the balance loss makes the drops fewer"
    );
}

#[test]
fn balance_over_the_global_batch_learns_with_accumulated_gradients() {
    let workshop = learns(&["moe.balance_loss=global_batch", "optimizer.micro_batch_sequences=2"]);
    // The loss of an even load is its coefficient in each of two layers.
    let balance = mean(&workshop, "balance_loss", 250..300);
    assert!((balance - 0.02).abs() < 0.002, "{balance}");
}

#[test]
fn accumulated_gradients_learn_as_one_batch_does() {
    let sets = ["run.max_tokens=10240", "moe.balance_loss=none", "precision.compute=f32"];
    let losses = |micro: &'static str| {
        let workshop = Workshop::new();
        let mut arguments = vec!["--set", micro];
        arguments.extend(sets.iter().flat_map(|set| ["--set", set]));
        workshop.train("run", &arguments);
        let column =
            workshop.metrics("run").into_iter().map(|step| step["ce_loss"].as_f64().expect("a number"));
        column.collect::<Vec<f64>>()
    };
    let (whole, parts) =
        (losses("optimizer.micro_batch_sequences=8"), losses("optimizer.micro_batch_sequences=2"));
    assert!((whole[0] - parts[0]).abs() < 1e-6, "{} and {}", whole[0], parts[0]);
    // Sums in another order drift apart slowly.
    assert!((whole[39] - parts[39]).abs() < 1e-2, "{} and {}", whole[39], parts[39]);
}

#[test]
fn balance_per_sequence_learns() {
    learns(&["moe.balance_loss=sequence"]);
}

#[test]
fn bf16_learns_and_is_bf16() {
    let bf16 = learns(&["precision.compute=bf16"]);
    let f32 = learns(&["precision.compute=f32"]);
    let losses = [&bf16, &f32].map(|workshop| mean(workshop, "ce_loss", 0..10));
    assert!(losses[0] != losses[1], "bf16 rounds, so the losses cannot be equal");
    assert!((losses[0] - losses[1]).abs() < 0.05, "{losses:?}");
}

#[test]
fn every_expert_for_every_token_learns() {
    let workshop = learns(&["moe.top_k=4"]);
    assert_eq!(mean(&workshop, "expert_load_cv", 0..300), 0.0);
}

#[test]
fn one_expert_learns() {
    let workshop = learns(&["moe.num_experts=1", "moe.top_k=1"]);
    assert_eq!(mean(&workshop, "k_mean", 0..300), 1.0);
}

#[test]
fn one_expert_per_token_learns() {
    learns(&["moe.top_k=1", "moe.renormalise=false"]);
}

#[test]
fn shared_experts_and_leading_dense_layers_learn() {
    learns(&["moe.num_shared_experts=2", "moe.num_leading_dense_layers=1", "model.ffn_size=32"]);
}

#[test]
fn an_untied_head_normalised_heads_and_a_z_loss_learn() {
    let workshop = learns(&[
        "model.tied_embedding=false",
        "model.qk_norm=per_head",
        "model.num_kv_heads=1",
        "model.attention_windows=[8, 0]",
        "moe.z_loss_coefficient=0.001",
    ]);
    assert!(mean(&workshop, "z_loss", 0..300) > 0.0);
}

#[test]
fn a_bpe_vocabulary_learns() {
    let workshop = Workshop::new();
    let sets = ["tokenizer.kind=bpe", "tokenizer.vocab_size=300", "run.max_tokens=25600"];
    let arguments: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    workshop.train("run", &arguments);
    let metrics = workshop.metrics("run");
    let [first, last] = [0, 99].map(|step: usize| metrics[step]["ce_loss"].as_f64().expect("a number"));
    assert!((first - 300_f64.ln()).abs() < 0.2, "untrained, each of 300 tokens is as likely: {first}");
    assert!(last < 0.6 * first, "{first} to {last}");
}
