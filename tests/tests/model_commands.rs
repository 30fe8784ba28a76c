//! What reads a finished run: eval, generate, logits, inspect and report agree with training and with each other.

use std::fs;

use serde_json::Value;
use wattle_engine::autograd::Tape;
use wattle_engine::interop::LoadedModel;
use wattle_engine::model::{KvCache, Pass};
use wattle_kernels::Tensor;
use wattle_tests::program::Workshop;

/// The byte tokenizer's end of a document.
const BOUNDARY: usize = 256;

/// A workshop with a run of 40 steps in f32.
fn trained(sets: &[&str]) -> Workshop {
    let workshop = Workshop::new();
    let mut arguments = vec!["--quiet", "--set", "precision.compute=f32"];
    arguments.extend(sets.iter().flat_map(|set| ["--set", set]));
    workshop.train("run", &arguments);
    workshop
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Runs `wattle logits` and returns the rows of its one tensor.
fn logits(workshop: &Workshop, ids: &[usize]) -> Vec<Vec<f32>> {
    let ids: Vec<String> = ids.iter().map(usize::to_string).collect();
    let ran = workshop.run(&["logits", "run", "--ids", &ids.join(","), "--output", "l.safetensors"]);
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (0, "", ""));
    // The format: length of a JSON header in 8 bytes, the header, the data.
    let bytes = fs::read(workshop.path("l.safetensors")).expect("it was written");
    let header_len = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let (header, data) = bytes[8..].split_at(header_len);
    let header: Value = serde_json::from_slice(header).expect("the header is JSON");
    let tensor = &header["logits"];
    assert_eq!(
        (&tensor["dtype"], &tensor["shape"][0], &tensor["shape"][1]),
        (&"F32".into(), &ids.len().into(), &257.into())
    );
    let values: Vec<f32> =
        data.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("4 bytes"))).collect();
    values.chunks_exact(257).map(<[f32]>::to_vec).collect()
}

fn argmax(row: &[f32]) -> usize {
    let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.expect("a row has columns").0
}

/// Generates greedily and returns the tokens.
fn greedy(workshop: &Workshop, prompt: &str, max_tokens: &str) -> Vec<usize> {
    let arguments =
        ["generate", "run", "--prompt", prompt, "--temperature", "0", "--max-tokens", max_tokens, "--json"];
    let result = workshop.run(&arguments).json();
    result["tokens"].as_array().expect("a list").iter().map(|id| number(id) as usize).collect()
}

#[test]
fn eval_of_the_held_out_text_gives_the_last_validation_loss() {
    let workshop = trained(&[]);
    let text = fs::read(workshop.path("text.txt")).expect("the workshop has a text");
    // held_out_by = "tail", held_out_fraction = 0.02
    let held_out = &text[text.len() - text.len() / 50..];
    workshop.write("held.txt", held_out);
    let result = workshop.run(&["eval", "run", "--data", "held.txt", "--json"]).json();
    let expected = number(&workshop.metrics("run")[39]["val_loss"]);
    let loss = number(&result["loss"]);
    assert!((loss - expected).abs() < 1e-6, "{loss}, training said {expected}");
    assert_eq!(result.as_object().map(serde_json::Map::len), Some(4));
    assert_eq!(result["tokens"], held_out.len());
    assert!((number(&result["perplexity"]) - loss.exp()).abs() < 1e-9);
    // One token a byte: the bits of all predicted tokens over the bytes of the text.
    assert!((number(&result["bits_per_byte"]) - loss / std::f64::consts::LN_2).abs() < 1e-9);
}

#[test]
fn eval_does_not_depend_on_its_batch_size() {
    let workshop = trained(&[]);
    workshop.write("held.txt", "7 sheep and 49 stars\n".repeat(30));
    let losses = ["1", "3", "64"].map(|batch| {
        number(
            &workshop.run(&["eval", "run", "--data", "held.txt", "--batch", batch, "--json"]).json()["loss"],
        )
    });
    assert!(losses.iter().all(|loss| (loss - losses[0]).abs() < 1e-6), "{losses:?}");
}

#[test]
fn eval_for_people_says_the_same() {
    let workshop = trained(&[]);
    let json = workshop.run(&["eval", "run", "--data", "text.txt", "--json"]).json();
    let ran = workshop.run(&["eval", "run", "--data", "text.txt"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert!(ran.stdout.starts_with(&format!("loss          {:.4} nats/token\n", number(&json["loss"]))));
    assert_eq!(ran.stdout.lines().count(), 4);
}

#[test]
fn the_softmax_of_logits_gives_the_loss_of_eval() {
    let workshop = trained(&[]);
    let text = b"12 sheep and 84 stars\n";
    workshop.write("line.txt", text);
    let ids: Vec<usize> = text.iter().map(|&byte| usize::from(byte)).collect();
    let rows = logits(&workshop, &ids);
    let targets = ids[1..].iter().copied().chain([BOUNDARY]);
    let losses = rows.iter().zip(targets).map(|(row, target)| {
        let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
        sum.ln() - f64::from(row[target])
    });
    let expected = losses.sum::<f64>() / ids.len() as f64;
    let result = workshop.run(&["eval", "run", "--data", "line.txt", "--json"]).json();
    assert!((number(&result["loss"]) - expected).abs() < 1e-5, "{result}, by hand {expected}");
}

#[test]
fn greedy_generation_takes_the_largest_logit_of_a_full_recomputation() {
    for sets in [
        &[][..],
        &["model.num_kv_heads=1", "model.attention_windows=[8, 0]", "model.num_global_tokens=2"],
        &[
            "moe.scoring=sigmoid",
            "moe.num_shared_experts=1",
            "model.qk_norm=per_head",
            "model.tied_embedding=false",
        ],
    ] {
        let workshop = trained(sets);
        let prompt = "3 sheep";
        let tokens = greedy(&workshop, prompt, "20");
        assert!(!tokens.is_empty(), "{sets:?}");
        let mut ids = vec![BOUNDARY];
        ids.extend(prompt.bytes().map(usize::from));
        let start = ids.len() - 1;
        ids.extend(&tokens);
        let rows = logits(&workshop, &ids);
        for (index, &token) in tokens.iter().enumerate() {
            assert_eq!(argmax(&rows[start + index]), token, "{sets:?}: token {index}");
        }
    }
}

/// The logits of some tokens, with a cache after those it holds.
fn forward(model: &mut LoadedModel, ids: &[i32], cache: Option<&mut KvCache>) -> Vec<f32> {
    let ids = Tensor::from_slice(ids, &[1, ids.len()]).expect("it fits");
    let mut tape = Tape::forward_only(&mut model.store);
    let pass = Pass { cache, ..Pass::default() };
    let hidden = model.decoder.forward(&mut tape, &ids, &mut model.routing, pass).expect("it computes");
    drop(tape);
    let logits = model.decoder.logits(&model.store, &hidden.value).expect("it computes");
    logits.to_f32_vec().expect("it is f32")
}

#[test]
fn the_key_value_cache_changes_no_logit() {
    let workshop = trained(&["model.num_kv_heads=1", "model.attention_windows=[8, 0]"]);
    let mut model = LoadedModel::open(&workshop.path("run")).expect("the run can be opened");
    let ids: Vec<i32> = b"5 sheep and 35 stars\n6 sheep".iter().map(|&byte| i32::from(byte)).collect();
    let row_len = model.vocab_size;
    let whole = forward(&mut model, &ids, None);
    let mut cache = model.decoder.new_cache(32).expect("it fits");
    // A prompt at once, a few tokens, then one by one.
    let (prompt, rest) = ids.split_at(9);
    let (few, single) = rest.split_at(4);
    let mut parts = forward(&mut model, prompt, Some(&mut cache));
    parts.extend(forward(&mut model, few, Some(&mut cache)));
    for id in single {
        parts.extend(forward(&mut model, &[*id], Some(&mut cache)));
    }
    assert_eq!(
        (whole.len(), parts.len(), cache.len()),
        (ids.len() * row_len, ids.len() * row_len, ids.len())
    );
    let difference = whole.iter().zip(&parts).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(difference < 1e-4, "logits differ by {difference}");
}

#[test]
fn one_seed_gives_one_text_and_another_seed_another() {
    let workshop = trained(&[]);
    let generate = |seed: &str| {
        let ran = workshop.run(&["generate", "run", "--prompt", "1", "--max-tokens", "60", "--seed", seed]);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
        ran.stdout
    };
    assert_eq!(generate("1"), generate("1"));
    assert_ne!(generate("1"), generate("2"));
}

#[test]
fn only_the_likeliest_token_is_greedy_whatever_the_temperature() {
    let workshop = trained(&[]);
    let arguments =
        ["generate", "run", "--prompt", "9 ", "--max-tokens", "15", "--temperature", "2", "--json"];
    let tokens = |flags: &[&str]| workshop.run(&[&arguments[..], flags].concat()).json()["tokens"].clone();
    let greedy = Value::from(greedy(&workshop, "9 ", "15"));
    assert_eq!(tokens(&["--top-k", "1", "--top-p", "1"]), greedy);
    assert_eq!(tokens(&["--top-p", "0.0001"]), greedy);
    assert_ne!(tokens(&["--top-p", "1", "--seed", "3"]), greedy);
}

#[test]
fn generation_keeps_to_max_tokens_and_goes_on_beyond_the_context() {
    let workshop = trained(&[]);
    // The model sees 32 tokens at once.
    for max_tokens in ["0", "1", "31", "100"] {
        let tokens = greedy(&workshop, "2 sheep", max_tokens).len();
        assert!(tokens <= max_tokens.parse().expect("a number"), "{tokens} of {max_tokens}");
    }
    assert_eq!(greedy(&workshop, "2 sheep", "100").len(), 100, "this text does not end by itself");
    let prompt = "a prompt that is far longer than what the model was trained to see at once";
    assert_eq!(greedy(&workshop, prompt, "3").len(), 3);
}

#[test]
fn an_empty_prompt_starts_a_document() {
    let workshop = trained(&[]);
    let result = workshop.run(&["generate", "run", "--prompt", "", "--max-tokens", "4", "--json"]).json();
    assert_eq!(result["prompt"], "");
    assert!(result["tokens"].as_array().is_some_and(|tokens| tokens.len() <= 4), "{result}");
}

#[test]
fn the_text_is_the_same_with_and_without_json() {
    let workshop = trained(&[]);
    let arguments = ["generate", "run", "--prompt", "é 4", "--max-tokens", "40", "--temperature", "1.5"];
    let result = workshop.run(&[&arguments[..], &["--json"]].concat()).json();
    let plain = workshop.run(&arguments);
    assert_eq!(plain.stdout, format!("{}\n", result["text"].as_str().expect("a text")));
    assert_eq!(result["prompt"], "é 4");
}

#[test]
fn a_checkpoint_is_a_model_wherever_one_stands() {
    let workshop = trained(&[]);
    let by_run = workshop.run(&["eval", "run", "--data", "text.txt", "--json"]).json();
    let data = workshop.path("text.txt").display().to_string();
    for (directory, model) in [
        (".", "run/checkpoints/step-00000040"),
        ("run/checkpoints", "step-00000040"),
        ("run/checkpoints/step-00000040", "."),
        ("run/checkpoints/step-00000030", "../step-00000040"),
    ] {
        let mut command = workshop.command(&["eval", model, "--data", &data, "--json"]);
        let output = command.current_dir(workshop.path(directory)).output().expect("the binary starts");
        let result: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
            panic!("{model} in {directory}: {}", String::from_utf8_lossy(&output.stderr));
        });
        assert_eq!(result, by_run, "{model} in {directory}");
    }
    let earlier =
        workshop.run(&["eval", "run/checkpoints/step-00000020", "--data", "text.txt", "--json"]).json();
    assert!(number(&earlier["loss"]) > number(&by_run["loss"]));
}

#[test]
fn inspect_shows_the_experts_of_a_sparse_run() {
    let workshop = trained(&[]);
    let view = workshop.run(&["inspect", "run", "--format", "json"]).json();
    assert_eq!(
        (&view["steps"], &view["skipped_steps"], &view["checkpoint_step"]),
        (&40.into(), &0.into(), &40.into())
    );
    assert_eq!(view["last"], workshop.metrics("run")[39]);
    let layers = view["expert_tokens"].as_array().expect("a list of layers");
    assert_eq!(layers.len(), 2);
    for layer in layers {
        // Every token of the run chose two of the four experts.
        let tokens: Vec<f64> = layer.as_array().expect("a list of experts").iter().map(number).collect();
        assert_eq!((tokens.len(), tokens.iter().sum::<f64>()), (4, 2.0 * 10_240.0));
    }
    for phase in ["attention", "router", "experts", "head", "optimizer"] {
        assert!(number(&view["phase_seconds"][phase]) > 0.0, "{phase}");
    }
    let text = workshop.run(&["inspect", "run"]);
    assert_eq!((text.code, text.stderr.as_str()), (0, ""));
    for words in ["run\n", "40 (10,240 tokens)", "expert load CV", "sparse layer 1", "phases by time"] {
        assert!(text.stdout.contains(words), "{words:?}: {}", text.stdout);
    }
}

#[test]
fn inspect_names_a_damaged_checkpoint_and_shows_the_one_before() {
    let workshop = trained(&["checkpoint.every_steps=20"]);
    workshop.write("run/checkpoints/step-00000040/manifest.json", "{");
    let ran = workshop.run(&["inspect", "run", "--format", "json"]);
    assert_eq!((ran.code, &ran.json()["checkpoint_step"]), (0, &20.into()));
    assert!(ran.stderr.contains("refused") && ran.stderr.contains("step-00000040"), "{}", ran.stderr);
}

#[test]
fn inspect_shows_a_dense_run_without_experts() {
    let workshop = Workshop::new();
    let config = fs::read_to_string(workshop.path("config.toml")).expect("it is there");
    let (head, rest) = config.split_once("[moe]").expect("the configuration is sparse");
    let (_, tail) = rest.split_once("[data]").expect("data follows");
    workshop.write("config.toml", format!("{head}ffn_size = 32\n\n[data]{tail}"));
    workshop.train("run", &["--quiet"]);
    let view = workshop.run(&["inspect", "run", "--format", "json"]).json();
    assert_eq!(view["expert_tokens"], serde_json::json!([]));
    assert_eq!(view["last"]["k_mean"], 0.0);
    let text = workshop.run(&["inspect", "run"]).stdout;
    assert!(text.contains("phases by time") && !text.contains("expert"), "{text}");
    assert_eq!(greedy(&workshop, "8 ", "6").len(), 6);
}

#[test]
fn report_prices_two_runs_and_their_total() {
    let workshop = trained(&[]);
    workshop.train("second", &["--quiet", "--max-steps", "10"]);
    let report = |flags: &[&str]| {
        workshop.run(&[&["report", "run", "second", "--format", "json"], flags].concat()).json()
    };
    let priced = |report: &Value, grams_per_kwh: f64, pue: f64| {
        let runs = report["runs"].as_array().expect("a list of runs");
        assert_eq!((&runs[0]["run_id"], &runs[1]["run_id"]), (&"run".into(), &"second".into()));
        for run in runs {
            let kwh = number(&run["energy_joules"]) / 3.6e6;
            let grams = number(&run["emissions_grams_co2e"]);
            assert!(
                kwh > 0.0 && (grams / (kwh * grams_per_kwh * pue) - 1.0).abs() < 1e-6,
                "{grams} g, {kwh} kWh"
            );
        }
        let sum = |key: &str| runs.iter().map(|run| number(&run[key])).sum::<f64>();
        for key in ["energy_joules", "emissions_grams_co2e", "tokens", "steps"] {
            let total = number(&report["total"][key]);
            assert!((total - sum(key)).abs() <= 1e-9 * total, "{key}: {total}");
        }
        assert_eq!((number(&runs[0]["tokens"]), number(&runs[1]["tokens"])), (10_240.0, 2_560.0));
        runs[0]["energy_joules"].clone()
    };
    let at = |report: &Value, key: &str| number(&report["runs"][0]["segments"][0]["carbon_intensity"][key]);
    let (world, france) = (report(&[]), report(&["--location", "FRA", "--pue", "1.5"]));
    let (world_grams, france_grams) = (at(&world, "grams_per_kwh"), at(&france, "grams_per_kwh"));
    assert!(france_grams < world_grams, "{france_grams} in France, {world_grams} in the world");
    let joules = priced(&world, world_grams, 1.0);
    assert_eq!(priced(&france, france_grams, 1.5), joules, "another place changes the price, not the energy");
}

#[test]
fn report_goes_to_a_file_or_to_stdout() {
    let workshop = trained(&[]);
    let shown = workshop.run(&["report", "run"]);
    assert_eq!((shown.code, shown.stderr.as_str()), (0, ""));
    assert!(shown.stdout.contains("modelled 100.0 %") && shown.stdout.contains("CO2e"), "{}", shown.stdout);
    let saved = workshop.run(&["report", "run", "--output", "report.txt"]);
    assert_eq!((saved.code, saved.stdout.as_str(), saved.stderr.as_str()), (0, "", ""));
    assert_eq!(fs::read_to_string(workshop.path("report.txt")).expect("it was written"), shown.stdout);
}

#[test]
fn report_agrees_with_the_metrics_of_the_run() {
    let workshop = trained(&[]);
    let report = workshop.run(&["report", "run", "--format", "json"]).json();
    let steps = workshop.metrics("run");
    let joules: f64 = steps.iter().map(|step| number(&step["joules"])).sum();
    let windows = report["runs"][0]["windows"].as_array().expect("a list").clone();
    let of_steps = windows.iter().find(|window| window["kind"] == "step").expect("steps used energy");
    assert_eq!(of_steps["windows"], 40);
    assert!((number(&of_steps["energy_joules"]) - joules).abs() < 1e-4, "{of_steps}, metrics say {joules}");
    let grams = number(&report["runs"][0]["emissions_grams_co2e"]);
    assert!(
        number(&steps[39]["grams_co2e_total"]) <= grams,
        "the last evaluation and checkpoint come after it"
    );
}
