//! A plan names every cost before a run, with where each factor comes from.

use std::path::Path;

use serde_json::Value;
use wattle_tests::program::{Ran, Workshop};

fn configs(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs").join(name).to_string_lossy().into_owned()
}

fn case(workshop: &Workshop, text: &str) -> Ran {
    workshop.write("case.toml", text);
    workshop.run(&["plan", "--file", "case.toml", "--json"])
}

fn number(object: &Value, pointer: &str) -> f64 {
    object.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("{pointer} in {object:#}"))
}

fn assert_within(found: f64, expected: f64, share: f64) {
    assert!((found / expected - 1.0).abs() <= share, "{found}, expected {expected}");
}

/// Origin: Patterson et al. 2021 (GPT-3) and 2022 (GLaM).
#[test]
fn the_published_runs_in_configs_come_out_as_published() {
    let workshop = Workshop::new();
    let plan = |name: &str| workshop.run(&["plan", "--file", &configs(name), "--json"]).json();
    for (name, mwh, tonnes) in [("plan/gpt-3.toml", 1287.0, 552.1), ("plan/glam.toml", 456.0, 40.2)] {
        let plan = plan(name);
        assert_within(number(&plan, "/mwh"), mwh, 0.01);
        assert_within(number(&plan, "/tco2e"), tonnes, 0.02);
        assert!(number(&plan, "/range/mwh/low") < mwh && mwh < number(&plan, "/range/mwh/high"));
    }
    let glam = plan("plan/glam.toml");
    assert_within(number(&glam, "/flops"), 6.0 * 96.6e9 * 600e9, 1e-12);
    // GPT-3 took 14.8 days.
    assert_within(number(&plan("plan/gpt-3.toml"), "/hours"), 14.8 * 24.0, 0.01);
    let text = workshop.run(&["plan", "--file", &configs("plan/gpt-3.toml")]);
    assert_eq!(text.code, 0, "{}", text.stderr);
    for words in
        ["GPT-3 175B", "3.150e23 FLOPs", "14.81 days on 10000 chips", "1290 MWh (1032 MWh to", "429 g/kWh"]
    {
        assert!(text.stdout.contains(words), "{words}: {}", text.stdout);
    }
}

#[test]
fn every_case_in_configs_can_be_planned() {
    let workshop = Workshop::new();
    let mut count = 0;
    for entry in std::fs::read_dir(configs("plan")).expect("there are cases") {
        let path = entry.expect("the directory is readable").path();
        let plan = workshop.run(&["plan", "--file", &path.to_string_lossy(), "--json"]).json();
        assert!(number(&plan, "/tco2e") > 0.0, "{}", path.display());
        count += 1;
    }
    assert!(count >= 2);
}

#[test]
fn a_case_that_cannot_be_used_is_refused_with_every_problem() {
    let workshop = Workshop::new();
    case(&workshop, "chip = 3\nchip_watts = \"hot\"\nhours = 5\nefficiency = 0.4\n").expect_refusal(
        78,
        &[
            "case.toml: 4 problems",
            "chip: is no known key; the nearest known key is chips",
            "chip_watts: is \"hot\"",
            "chips: is missing",
            "efficiency: contradicts hours",
        ],
    );
    case(&workshop, "").expect_refusal(78, &["hours: is missing", "chip_watts: is missing"]);
    case(&workshop, "chips = [").expect_refusal(78, &["line 1", "is no TOML"]);
    workshop.run(&["plan", "--file", "none.toml"]).expect_refusal(74, &["none.toml", "No such file"]);
    workshop.run(&["plan", "--file", "."]).expect_refusal(74, &["cannot read ."]);
    workshop.run(&["plan", "none.toml"]).expect_refusal(74, &["none.toml"]);
}

#[test]
fn flags_that_make_no_plan_are_usage_errors() {
    let workshop = Workshop::new();
    for (arguments, words) in [
        (&["plan"][..], "<CONFIG"),
        (&["plan", "config.toml", "--file", "case.toml"], "cannot be used with"),
        (&["plan", "--file", "case.toml", "--chips", "2"], "cannot be used with"),
        (&["plan", "config.toml", "--hardware", "H1000"], "H100 SXM"),
        (&["plan", "config.toml", "--chips", "0"], "--chips"),
        (&["plan", "config.toml", "--chip-watts", "-3"], "expected watts"),
        (&["plan", "config.toml", "--location", "FRX"], "FRA"),
        (&["plan", "config.toml", "--pue", "0.5"], "1.0 to 10.0"),
    ] {
        let ran = workshop.run(arguments);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{arguments:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(words), "{words}: {}", ran.stderr);
    }
}

/// The tiny model of the workshop, counted by hand: d = 16, two layers, 257 token ids, four experts of which a token
/// goes through two.
#[test]
fn a_configuration_is_counted_and_priced_on_the_hardware_asked_for() {
    let workshop = Workshop::new();
    let arguments =
        ["plan", "config.toml", "--hardware", "a100", "--location", "FRA", "--pue", "1.2", "--json"];
    let plan = workshop.run(&arguments).json();
    let attention = 4.0 * 16.0 * 16.0;
    let (router, expert) = (4.0 * 16.0, 3.0 * 16.0 * 16.0);
    let total = 257.0 * 16.0 + 16.0 + 2.0 * (attention + 32.0 + router + 4.0 * expert);
    assert_eq!(number(&plan, "/total_params"), total);
    assert_eq!(number(&plan, "/active_params"), total - 2.0 * 2.0 * expert);
    // Six for each matrix weight a token uses, and six for each of the head's values, layer and position seen.
    let used = 257.0 * 16.0 + 2.0 * (attention + router + 2.0 * expert);
    let per_token = 6.0 * (used + 2.0 * 16.0 * 32.0);
    assert_eq!(number(&plan, "/flops_per_token"), per_token);
    // 10,240 tokens are 40 steps of 256.
    assert_eq!((number(&plan, "/tokens"), number(&plan, "/steps")), (10_240.0, 40.0));
    assert_eq!(number(&plan, "/flops"), per_token * 10_240.0);
    let seconds = per_token * 10_240.0 / (312e12 * number(&plan, "/factors/efficiency/mid"));
    assert_within(number(&plan, "/hours"), seconds / 3600.0, 1e-9);
    let joules = seconds * number(&plan, "/factors/watts_per_chip/mid") * 1.2;
    assert_within(number(&plan, "/joules"), joules, 1e-9);
    // France, 2025.
    assert_within(number(&plan, "/grams"), joules / 3.6e6 * 41.0, 1e-9);
    assert_eq!(number(&plan, "/memory_bytes_per_chip/moments"), 8.0 * total);
    assert_eq!(plan["memory_bytes_per_chip"]["fits"], true);
    for factor in ["peak_flops", "efficiency", "watts_per_chip", "pue", "grams_per_kwh"] {
        assert!(!plan["factors"][factor]["source"].as_str().unwrap_or("").is_empty(), "{factor}");
    }
    assert!(number(&plan, "/range/joules/low") < joules && joules < number(&plan, "/range/joules/high"));
    assert_eq!(plan["embodied"]["boundary"], "board and share of the server");
}

#[test]
fn more_chips_take_less_time_and_the_same_energy() {
    let workshop = Workshop::new();
    let plan = |chips: &str| {
        workshop.run(&["plan", "config.toml", "--hardware", "H100", "--chips", chips, "--json"]).json()
    };
    let (one, eight) = (plan("1"), plan("8"));
    assert_within(number(&one, "/hours"), 8.0 * number(&eight, "/hours"), 1e-9);
    assert_within(number(&one, "/joules"), number(&eight, "/joules"), 1e-9);
    let activations = |plan: &Value| number(plan, "/memory_bytes_per_chip/activations");
    assert_within(activations(&one), 8.0 * activations(&eight), 1e-9);
    assert_eq!(eight["notes"], serde_json::json!([]));
    assert!(plan("64")["notes"][0].as_str().is_some_and(|note| note.contains("8 sequences for 64 chips")));
}

#[test]
fn an_unpublished_power_leaves_energy_unknown_until_it_is_given() {
    let workshop = Workshop::new();
    let arguments = ["plan", "config.toml", "--hardware", "TPUv5p", "--json"];
    let plan = workshop.run(&arguments).json();
    assert!(plan["joules"].is_null() && plan["tco2e"].is_null() && number(&plan, "/hours") > 0.0);
    assert!(plan["notes"][0].as_str().is_some_and(|note| note.contains("--chip-watts")));
    let known = workshop.run(&[&arguments[..], &["--chip-watts", "500"]].concat()).json();
    let joules = number(&known, "/hours") * 3600.0 * 500.0;
    assert_within(number(&known, "/joules"), joules, 1e-9);
}

#[test]
fn what_earlier_runs_reached_here_goes_before_published_figures() {
    let workshop = Workshop::new();
    let plan =
        |arguments: &[&str]| workshop.run(&[&["plan", "config.toml", "--json"], arguments].concat()).json();
    let source = |plan: &Value, factor: &str| {
        plan["factors"][factor]["source"].as_str().expect("a factor has a source").to_owned()
    };
    let before = plan(&[]);
    assert!(source(&before, "efficiency").starts_with("no earlier run"), "{before:#}");
    workshop.train("runs/first", &["--quiet"]);
    workshop.train("runs/second", &["--quiet", "--set", "run.seed=8"]);
    let after = plan(&[]);
    assert_eq!(source(&after, "efficiency"), "mfu of 2 earlier runs of this model on this machine");
    // The energy of these runs is modelled, and the plan does not hide it.
    assert!(source(&after, "watts_per_chip").starts_with("modelled from the steps of 2 earlier runs"));
    let mut mfu: Vec<f64> = Vec::new();
    for run in ["runs/first", "runs/second"] {
        mfu.extend(workshop.metrics(run).iter().map(|step| step["mfu"].as_f64().expect("mfu is a number")));
    }
    let (least, most) =
        (mfu.iter().copied().fold(f64::MAX, f64::min), mfu.iter().copied().fold(0.0, f64::max));
    let reached = number(&after, "/factors/efficiency/mid");
    assert!(least <= reached && reached <= most, "{least} {reached} {most}");
    // Another model is measured by these runs for want of better, and it is said.
    let other = plan(&["--set", "moe.top_k=1"]);
    assert_eq!(source(&other, "efficiency"), "mfu of 2 earlier runs of other models on this machine");
    // What this processor did says nothing of another chip.
    let elsewhere = plan(&["--hardware", "H100"]);
    assert!(source(&elsewhere, "efficiency").starts_with("no earlier run"));
    // A ledger that is none is passed over.
    workshop.write("runs/second/ledger.sqlite", "no ledger");
    assert!(source(&plan(&[]), "efficiency").starts_with("mfu of 1 earlier run of this model"));
}

/// The paper's account of memory against what a run of preset S allocates at its peak.
#[test]
fn the_planned_memory_is_what_a_run_allocates() {
    let workshop = Workshop::new();
    let bench =
        workshop.run(&["bench", "--batch", "2", "--steps", "4", "--precision", "f32", "--json"]).json();
    let quickstart = configs("quickstart.toml");
    let sets = ["--set", "optimizer.batch_sequences=2", "--set", "precision.compute=f32"];
    let plan = workshop.run(&[&["plan", &quickstart, "--json"], &sets[..]].concat()).json();
    assert_eq!(plan["total_params"].as_f64(), bench["params"].as_f64());
    assert_eq!(plan["active_params"].as_f64(), bench["active_params"].as_f64());
    let share = number(&bench, "/peak_memory_bytes") / number(&plan, "/memory_bytes_per_chip/total");
    assert!((0.95..1.5).contains(&share), "allocated {share} of what was planned");
}
