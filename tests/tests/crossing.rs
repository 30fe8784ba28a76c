//! Export and import through the binary: nothing is lost on the way, and what cannot cross is refused by name.

use std::fs;
use std::path::Path;

use serde_json::Value;
use wattle_engine::checkpoint::safetensors;
use wattle_tests::program::{Ran, Workshop};

const FAMILIES: [&str; 6] = ["llama", "qwen3", "mixtral", "olmoe", "qwen3_moe", "glm4_moe"];

fn model(family: &str) -> String {
    format!("{}/data/interop/{family}", env!("CARGO_MANIFEST_DIR"))
}

/// A tokenizer of two ids, for models that came without one.
const TOKENIZER: &str = r#"{"version": "1.0", "model": {"type": "WordLevel", "unk_token": "</s>",
    "vocab": {"</s>": 0, "a": 1}}, "added_tokens": [{"id": 0, "content": "</s>", "special": true,
    "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}]}"#;

/// A copy of a family's model, to be damaged.
fn copy(workshop: &Workshop, family: &str) -> String {
    fs::create_dir_all(workshop.path(family)).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(Path::new(&model(family)).join(name), workshop.path(family).join(name)).unwrap();
    }
    family.to_owned()
}

fn change_config(workshop: &Workshop, family: &str, key: &str, value: Value) {
    let path = format!("{family}/config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(workshop.path(&path)).unwrap()).unwrap();
    config[key] = value;
    workshop.write(&path, config.to_string());
}

/// Runs the binary and expects success.
fn done(workshop: &Workshop, arguments: &[&str]) -> Ran {
    let ran = workshop.run(arguments);
    assert_eq!(ran.code, 0, "{arguments:?}: {}", ran.stderr);
    ran
}

fn refused(workshop: &Workshop, family: &str, code: i32, words: &[&str]) {
    let ran: Ran = workshop.run(&["logits", family, "--ids", "1,2", "--output", "out.safetensors"]);
    assert_eq!(ran.code, code, "{}", ran.stderr);
    for word in words {
        assert!(ran.stderr.contains(word), "{word:?}: {}", ran.stderr);
    }
    assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
}

#[test]
fn a_round_trip_of_every_family_is_exact_to_the_bit() {
    let workshop = Workshop::new();
    for family in FAMILIES {
        done(&workshop, &["export", &model(family), "--output", family]);
        let read = |path: &Path| {
            let mut tensors = safetensors::read(path).unwrap();
            tensors.sort_by(|a, b| a.name.cmp(&b.name));
            tensors
        };
        let there = read(&Path::new(&model(family)).join("model.safetensors"));
        let back = read(&workshop.path(family).join("model.safetensors"));
        assert_eq!(there.len(), back.len(), "{family}");
        for (there, back) in there.iter().zip(&back) {
            assert_eq!(there.name, back.name, "{family}");
            let bits = |tensor: &wattle_kernels::Tensor| -> Vec<u32> {
                tensor.data::<f32>().unwrap().iter().map(|value| value.to_bits()).collect()
            };
            assert_eq!(bits(&there.tensor), bits(&back.tensor), "{family}: {}", there.name);
        }
        // The shape survives as well: what was written is read as what it was read from.
        let logits = |model: &str| {
            let output = format!("{family}.safetensors");
            done(&workshop, &["logits", model, "--ids", "5,9,2,40", "--output", &output]);
            fs::read(workshop.path(&output)).unwrap()
        };
        assert_eq!(logits(&model(family)), logits(family), "{family}");
    }
}

#[test]
fn importing_and_exporting_every_family_gives_back_the_same_file() {
    let workshop = Workshop::new();
    for family in FAMILIES {
        copy(&workshop, family);
        workshop.write(&format!("{family}/tokenizer.json"), TOKENIZER);
        let [run, back, direct] = ["run", "back", "direct"].map(|name| format!("{family}-{name}"));
        done(&workshop, &["import", family, "--output", &run]);
        done(&workshop, &["export", &run, "--output", &back]);
        done(&workshop, &["export", family, "--output", &direct]);
        for name in ["model.safetensors", "config.json", "tokenizer.json"] {
            let [back, direct] = [&back, &direct].map(|model| workshop.path(model).join(name));
            assert!(fs::read(back).unwrap() == fs::read(direct).unwrap(), "{family}: {name}");
        }
        let again = workshop.run(&["import", family, "--output", &run]);
        assert!(again.code == 78 && again.stderr.contains("already holds a run"), "{}", again.stderr);
    }
    let ran = workshop.run(&["import", &model("llama"), "--output", "none"]);
    assert!(ran.code == 65 && ran.stderr.contains("tokenizer.json"), "{}", ran.stderr);
    assert!(!workshop.path("none").exists());
}

#[test]
fn a_model_trained_here_comes_back_with_the_same_loss_and_is_trained_on() {
    let workshop = Workshop::new();
    let sets = ["model.qk_norm=per_head", "moe.bias_update_rate=0"].map(|set| ["--set", set]).concat();
    workshop.train("run", &[&["--max-steps", "20"], &sets[..]].concat());
    done(&workshop, &["export", "run", "--output", "exported"]);
    let eval = |model: &str| done(&workshop, &["eval", model, "--data", "text.txt", "--json"]).json();
    assert_eq!(eval("run"), eval("exported"));

    done(&workshop, &["import", "exported", "--output", "imported"]);
    assert_eq!(eval("run"), eval("imported"));
    let config = fs::read_to_string(workshop.path("imported/config.toml")).unwrap();
    workshop.write("again.toml", config.replace("PATH/TO/YOUR/TEXT", "text.txt"));
    let set = [
        "run.max_tokens=2560",
        "data.held_out_by=tail",
        "data.sequence_length=32",
        "optimizer.batch_sequences=8",
    ];
    let set = set.map(|set| ["--set", set]).concat();
    let mut arguments = vec!["train", "again.toml", "--resume", "imported", "--run-dir", "further"];
    arguments.extend(&set);
    done(&workshop, &arguments);
    let first = workshop.metrics("further")[0]["ce_loss"].as_f64().unwrap();
    let trained = workshop.metrics("run");
    let (start, end) = (&trained[0]["ce_loss"], &trained[19]["ce_loss"]);
    // It begins where the first run left off, not where a new model does.
    assert!(
        first < start.as_f64().unwrap() * 0.9 && first < end.as_f64().unwrap() * 1.2,
        "{first} {start} {end}"
    );
}

#[test]
fn weights_in_bf16_are_half_as_large_and_read_back() {
    let workshop = Workshop::new();
    for dtype in ["f32", "bf16"] {
        done(&workshop, &["export", &model("olmoe"), "--output", dtype, "--dtype", dtype]);
    }
    let bytes = |name: &str| fs::metadata(workshop.path(name).join("model.safetensors")).unwrap().len();
    assert!(bytes("bf16") < bytes("f32") * 6 / 10);
    let ran =
        workshop.run(&["generate", "bf16", "--ids", "1,2,3", "--max-tokens", "5", "--temperature", "0"]);
    assert_eq!((ran.code, ran.stdout.trim().split(',').count()), (0, 5), "{}", ran.stderr);
}

#[test]
fn what_would_change_the_numbers_is_refused_by_name() {
    let workshop = Workshop::new();
    for (family, key, value) in [
        ("olmoe", "clip_qkv", Value::from(8.0)),
        ("glm4_moe", "n_group", Value::from(2)),
        ("qwen3_moe", "mlp_only_layers", serde_json::json!([1])),
        ("qwen3_moe", "decoder_sparse_step", Value::from(2)),
        ("qwen3", "attention_bias", Value::from(true)),
        ("llama", "mlp_bias", Value::from(true)),
        ("llama", "hidden_act", Value::from("gelu")),
        ("llama", "rope_parameters", serde_json::json!({"rope_type": "dynamic", "factor": 2.0})),
        ("llama", "quantization_config", serde_json::json!({"bits": 4})),
        ("mixtral", "num_key_value_heads", Value::from(3)),
    ] {
        copy(&workshop, family);
        change_config(&workshop, family, key, value);
        let word = match key {
            "rope_parameters" => "rope_type",
            "num_key_value_heads" => "num_kv_heads",
            key => key,
        };
        refused(&workshop, family, 78, &["config.json", word]);
    }
    change_config(&workshop, "llama", "model_type", Value::from("bert"));
    refused(&workshop, "llama", 78, &["\"bert\"", "qwen3_moe"]);
}

#[test]
fn tensors_that_are_missing_further_misshaped_or_no_numbers_are_listed() {
    let workshop = Workshop::new();
    let family = &copy(&workshop, "mixtral");
    change_config(&workshop, family, "intermediate_size", Value::from(24));
    refused(
        &workshop,
        family,
        65,
        &["experts.0.w1.weight has shape [20, 24], expected [24, 24]", "and 4 more"],
    );

    copy(&workshop, family);
    change_config(&workshop, family, "num_hidden_layers", Value::from(3));
    refused(&workshop, family, 65, &["model.layers.2.self_attn.q_proj.weight is missing"]);

    copy(&workshop, family);
    change_config(&workshop, family, "tie_word_embeddings", Value::from(true));
    refused(&workshop, family, 65, &["lm_head.weight", "tie_word_embeddings"]);

    let weights = workshop.path(family).join("model.safetensors");
    copy(&workshop, family);
    let mut bytes = fs::read(&weights).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&weights, &bytes).unwrap();
    refused(&workshop, family, 65, &["not finite"]);
    fs::write(&weights, &bytes[..end - 4]).unwrap();
    refused(&workshop, family, 65, &["model.safetensors", "bytes of tensors"]);

    copy(&workshop, family);
    let config = fs::read_to_string(workshop.path(family).join("config.json")).unwrap();
    let dense = config.replace("\"mixtral\"", "\"llama\"").replace("\"sliding_window\": 50,", "");
    workshop.write("mixtral/config.json", dense.replace("\"num_experts_per_tok\": 2,", ""));
    refused(&workshop, family, 78, &["num_local_experts"]);
}

#[test]
fn a_pickle_file_is_never_opened() {
    let workshop = Workshop::new();
    copy(&workshop, "llama");
    fs::rename(workshop.path("llama/model.safetensors"), workshop.path("llama/pytorch_model.bin")).unwrap();
    refused(&workshop, "llama", 65, &["pytorch_model.bin", "pickle", "safetensors"]);
    fs::remove_file(workshop.path("llama/pytorch_model.bin")).unwrap();
    refused(&workshop, "llama", 65, &["neither model.safetensors nor"]);
}

#[test]
fn a_model_without_family_and_a_tokenizer_that_is_too_large_are_refused() {
    let workshop = Workshop::new();
    let sets = ["moe.routed_scaling_factor=2.5", "moe.bias_update_rate=0"].map(|set| ["--set", set]).concat();
    workshop.train("run", &[&["--max-steps", "1"], &sets[..]].concat());
    let ran = workshop.run(&["export", "run", "--output", "exported"]);
    assert_eq!(ran.code, 78, "{}", ran.stderr);
    assert!(ran.stderr.contains("mixtral: does not scale the weights"), "{}", ran.stderr);
    assert!(!workshop.path("exported").exists());

    copy(&workshop, "llama");
    fs::copy(workshop.path("run/tokenizer.json"), workshop.path("llama/tokenizer.json")).unwrap();
    refused(&workshop, "llama", 65, &["has 257 ids, the model's embedding 48 rows"]);
    // Without a tokenizer, what needs one says so.
    fs::remove_file(workshop.path("llama/tokenizer.json")).unwrap();
    let ran = workshop.run(&["generate", "llama", "--prompt", "x"]);
    assert!(ran.code == 65 && ran.stderr.contains("tokenizer.json"), "{}", ran.stderr);
}
