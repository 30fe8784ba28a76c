//! What a user sees of the configuration as a whole: which files load, and which problems are told.

use super::{Config, ConfigError, Resolved};

/// The smallest valid configuration.
pub const MINIMAL: &str = "[run]
max_tokens = \"2M\"
[model]
d_model = 32
num_layers = 2
num_heads = 4
ffn_size = 64
[data]
train = [\"books\"]
";

/// The smallest valid `[moe]`.
const MOE: &str = "[moe]\nnum_experts = 4\ntop_k = 2\nexpert_ffn_size = 8\n";

pub fn load(text: &str, sets: &[&str]) -> Result<Resolved, ConfigError> {
    let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
    Config::parse("test.toml", text.as_bytes(), &sets)
}

/// Asserts that the text and the overrides have exactly these problems, one a line, in this order.
#[track_caller]
fn check(text: &str, sets: &[&str], expected: &[&str]) {
    let error = load(text, sets).expect_err("has problems");
    assert_eq!(error.exit_code(), 78);
    let text = error.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
    assert_eq!(&lines[1..], expected);
}

/// Asserts that the minimal configuration, with experts, is well but for these overrides.
#[track_caller]
fn check_rule(sets: &[&str], expected: &str) {
    check(&format!("{MINIMAL}{MOE}"), sets, &[expected]);
}

#[test]
fn a_minimal_file_loads_with_defaults_and_derived_values() {
    let config = load(MINIMAL, &[]).unwrap().config;
    assert_eq!(config.run.max_tokens.get(), 2_000_000);
    assert_eq!(config.run.name, "run");
    assert_eq!(config.moe, None);
    assert_eq!((config.model.num_kv_heads, config.model.head_dim), (Some(4), Some(8)));
    assert_eq!(config.optimizer.micro_batch_sequences, Some(16));
    assert_eq!(config.schedule.decay_tokens.get(), 400_000);
    assert_eq!(config.checkpoint.every_steps, 200);
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_known_key() {
    let model_last = MINIMAL.replace("[data]\ntrain = [\"books\"]\n", "");
    check(
        &format!(
            "{model_last}num_layer = 3\ntop_k = 1\n[checkpoint]\nevery_step = 5\n[data]\ntrain = [\"a\"]\n"
        ),
        &["optimizer.lr_rate=1"],
        &[
            "line 8: model.num_layer: is no known key; the nearest known key is model.num_layers",
            "line 9: model.top_k: is no known key; the nearest known key is moe.top_k",
            "line 11: checkpoint.every_step: is no known key; the nearest known key is checkpoint.every_steps",
            "--set: optimizer.lr_rate: is no known key; the nearest known key is optimizer.learning_rate",
        ],
    );
    check(
        &format!("sed = 1\n{MINIMAL}"),
        &[],
        &["line 1: sed: is no known key; the nearest known key is run.seed"],
    );
}

#[test]
fn an_unknown_section_is_refused_with_what_there_is() {
    let error =
        load(&format!("{MINIMAL}[optimiser]\nbeta1 = 0.8\n[parallel]\nranks = 2\n"), &[]).unwrap_err();
    let text = error.to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[1],
        "  line 10: optimiser: this build has no section [optimiser]; the nearest known section is [optimizer]"
    );
    assert!(lines[2].starts_with("  line 12: parallel: this build has no section [parallel]; it has [run] "));
    assert_eq!(lines.len(), 3);
}

#[test]
fn all_problems_of_every_kind_come_at_once_in_the_order_of_the_file() {
    check(
        "[run]\nname = 5\n[model]\nd_modle = 32\nnum_layers = \"two\"\nnum_heads = 4\n\
         [schedule]\nkind = \"cosin\"\nwarmup_tokens = \"5X\"\n[optimizer]\nbeta1 = 1.5\n\
         [carbon]\npue = 0.5\n[data]\ntrain = [\"books\"]\n",
        &["checkpoint.keep=0"],
        &[
            "line 2: run.name: is 5, expected a text in quotes",
            "line 4: model.d_modle: is no known key; the nearest known key is model.d_model",
            "line 5: model.num_layers: is \"two\", expected a whole number, 0 or more",
            "line 8: schedule.kind: is \"cosin\", expected one of wsd, cosine, constant, linear",
            "line 9: schedule.warmup_tokens: is \"5X\", expected a number of tokens such as 20000000 or \"20M\" \
             (k, M, B, T; digits, at most one point, then the suffix)",
            "line 11: optimizer.beta1: is 1.5, expected at least 0 and below 1",
            "line 13: carbon.pue: is 0.5, expected 1.0 to 10.0",
            "--set: checkpoint.keep: is 0, expected at least 1",
            "run.max_tokens: is missing: Training budget in tokens",
            "model.d_model: is missing: Width of the residual stream",
            "model.ffn_size: is missing, expected the hidden size of the dense layers: \
             without a section [moe] every layer is dense",
        ],
    );
}

#[test]
fn a_value_of_the_wrong_type_is_told_what_its_key_takes() {
    for (set, expected) in [
        ("run.seed=-1", "run.seed: is -1, expected a whole number, 0 or more"),
        ("device.threads=1.5", "device.threads: is 1.5, expected a whole number, 0 or more"),
        ("optimizer.beta1=high", "optimizer.beta1: is \"high\", expected a number"),
        ("model.attention_bias=1", "model.attention_bias: is 1, expected true or false"),
        ("moe.capacity_factor=big", "moe.capacity_factor: is \"big\", expected a number"),
        (
            "model.attention_windows=[\"x\"]",
            "model.attention_windows: is [\"x\"], expected a list of whole numbers, 0 or more, in brackets",
        ),
        ("device.kind=tpu", "device.kind: is \"tpu\", expected one of auto, cpu"),
    ] {
        check_rule(&[set], &format!("--set: {expected}"));
    }
    check_rule(
        &["run.max_tokens=-5"],
        "--set: run.max_tokens: invalid value: integer `-5`, expected a number of tokens such as 20000000 or \"20M\"",
    );
}

#[test]
fn a_section_that_is_no_table_is_told_so() {
    check(
        &format!("device = \"cpu\"\n{MINIMAL}"),
        &[],
        &["line 1: device: is \"cpu\", expected a section: a line [device] and its keys below"],
    );
}

#[test]
fn every_syntax_error_comes_with_its_line() {
    let error = load("[run]\nseed = = 1\nname = \"a\"\nname = \"b\"\n", &[]).unwrap_err().to_string();
    assert!(error.contains("line 2: is no TOML: "), "{error}");
    assert!(error.contains("line 4: is no TOML: "), "{error}");
    let error = Config::parse("test.toml", b"[run]\nname = \"\xff\"\n", &[]).unwrap_err().to_string();
    assert!(error.contains("line 2: is not UTF-8 text"), "{error}");
}

#[test]
fn a_byte_order_mark_and_windows_line_ends_are_no_problem() {
    let text = format!("\u{feff}{}", MINIMAL.replace('\n', "\r\n"));
    assert_eq!(load(&text, &[]).unwrap().config, load(MINIMAL, &[]).unwrap().config);
}

#[test]
fn set_overrides_the_file_and_the_last_one_wins() {
    let sets = [
        "run.name=2026",
        "run.max_tokens=20M",
        "schedule.kind=cosine",
        "model.attention_windows=[8, 0]",
        "optimizer.learning_rate = 1e-4",
        "run.sample_prompt=\"a = b\"",
        "run.seed=1",
        "run.seed=2",
        "moe.num_experts=4",
        "moe.top_k=1",
        "moe.expert_ffn_size=8",
    ];
    let config = load(MINIMAL, &sets).unwrap().config;
    assert_eq!(config.run.name, "2026");
    assert_eq!(config.run.max_tokens.get(), 20_000_000);
    assert_eq!(config.model.attention_windows, [8, 0]);
    assert_eq!(config.optimizer.learning_rate, 1e-4);
    assert_eq!(config.run.sample_prompt, "a = b");
    assert_eq!(config.run.seed, 2);
    assert_eq!(config.moe.unwrap().top_k, 1);
}

#[test]
fn a_set_that_names_no_key_or_no_value_is_refused() {
    check(
        MINIMAL,
        &["run.seed", "seed=1", "run.seed.low=1", ".seed=1", "model.attention_windows=[1"],
        &[
            "--set: run.seed: is no override, expected KEY=VALUE such as moe.top_k=1",
            "--set: seed: is no key, expected SECTION.KEY such as moe.top_k",
            "--set: run.seed.low: is no key, expected SECTION.KEY such as moe.top_k",
            "--set: .seed: is no key, expected SECTION.KEY such as moe.top_k",
            "--set: model.attention_windows: [1 is no TOML value: unclosed array, expected `]`",
        ],
    );
}

#[test]
fn setting_one_key_of_an_absent_moe_asks_for_the_others() {
    check(
        MINIMAL,
        &["moe.top_k=1"],
        &[
            "moe.num_experts: is missing: Number of routed experts of each MoE layer",
            "moe.expert_ffn_size: is missing: Hidden size of one routed expert",
        ],
    );
}

#[test]
fn every_rule_of_the_model_is_told() {
    check_rule(&["model.num_layers=0"], "--set: model.num_layers: is 0, expected at least 1");
    check_rule(
        &["model.num_heads=5", "model.num_kv_heads=5"],
        "--set: model.num_heads: is 5, expected a divisor of model.d_model = 32; or give model.head_dim",
    );
    check_rule(
        &["model.num_kv_heads=3"],
        "--set: model.num_kv_heads: is 3, expected a divisor of model.num_heads = 4",
    );
    let odd = "expected an even size above 0: rotary positions turn pairs of values";
    check_rule(&["model.head_dim=7"], &format!("--set: model.head_dim: is 7, {odd}"));
    check_rule(&["model.num_heads=32"], &format!("model.head_dim: is 1, {odd}"));
    check_rule(&["model.ffn_size=0"], "--set: model.ffn_size: is 0, expected at least 1, or no such key");
    check_rule(&["model.rope_theta=1"], "--set: model.rope_theta: is 1, expected above 1, such as 10000");
    check_rule(&["model.norm_epsilon=0"], "--set: model.norm_epsilon: is 0, expected above 0, such as 1e-6");
    check_rule(&["model.init_std=nan"], "--set: model.init_std: is NaN, expected above 0, such as 0.02");
}

#[test]
fn every_rule_of_the_experts_is_told() {
    check_rule(
        &["moe.top_k=5"],
        "--set: moe.top_k: is 5, expected at most the 4 of num_experts; lower top_k or add experts",
    );
    check_rule(&["moe.expert_ffn_size=0"], "--set: moe.expert_ffn_size: is 0, expected at least 1");
    check_rule(
        &["moe.num_leading_dense_layers=2"],
        "--set: moe.num_leading_dense_layers: is 2, expected fewer than model.num_layers = 2; \
         for a dense model leave [moe] out",
    );
    check_rule(
        &["moe.capacity_factor=0"],
        "--set: moe.capacity_factor: is 0, expected a finite number above 0; leave it out to drop no tokens",
    );
    let dense_below = MINIMAL.replace("ffn_size = 64\n", "") + MOE;
    assert!(load(&dense_below, &[]).is_ok());
    check(
        &dense_below,
        &["moe.num_leading_dense_layers=1"],
        &["model.ffn_size: is missing, expected the hidden size of the dense layers: \
           moe.num_leading_dense_layers is not 0"],
    );
}

#[test]
fn every_rule_of_the_optimizer_and_the_schedule_is_told() {
    check_rule(
        &["optimizer.learning_rate=0"],
        "--set: optimizer.learning_rate: is 0, expected above 0, such as 1e-3",
    );
    check_rule(&["optimizer.beta2=1"], "--set: optimizer.beta2: is 1, expected at least 0 and below 1");
    check_rule(&["optimizer.epsilon=0"], "--set: optimizer.epsilon: is 0, expected above 0, such as 1e-8");
    check_rule(&["optimizer.weight_decay=-1"], "--set: optimizer.weight_decay: is -1, expected 0 or more");
    check_rule(&["optimizer.clip_norm=-1"], "--set: optimizer.clip_norm: is -1, expected 0 (off) or more");
    check_rule(
        &["optimizer.batch_sequences=0"],
        "--set: optimizer.batch_sequences: is 0, expected at least 1",
    );
    for micro in [0, 3, 32] {
        check_rule(
            &[&format!("optimizer.micro_batch_sequences={micro}")],
            &format!(
                "--set: optimizer.micro_batch_sequences: is {micro}, \
                 expected a divisor of optimizer.batch_sequences = 16"
            ),
        );
    }
    check_rule(
        &["schedule.final_fraction=1.5"],
        "--set: schedule.final_fraction: is 1.5, expected a fraction of the peak, from 0 to 1",
    );
    check_rule(
        &["schedule.warmup_tokens=3M"],
        "--set: schedule.warmup_tokens: is 3M, expected at most run.max_tokens = 2M",
    );
    let too_long = "expected at most 500k: warm-up and decay must fit into run.max_tokens = 2M";
    check_rule(
        &["schedule.warmup_tokens=1.5M", "schedule.decay_tokens=600k"],
        &format!("--set: schedule.decay_tokens: is 600k, {too_long}"),
    );
    assert!(load(MINIMAL, &["schedule.warmup_tokens=2M", "schedule.kind=cosine"]).is_ok());
}

#[test]
fn every_rule_of_the_run_is_told() {
    for name in ["", "a/b", ".hidden", "a b"] {
        check_rule(
            &[&format!("run.name={name:?}")],
            &format!(
                "--set: run.name: is {name:?}, expected letters, digits, '-', '_' and '.', \
                 the first no '.': it names a directory"
            ),
        );
    }
    check_rule(&["run.directory="], "--set: run.directory: is empty, expected a directory such as \"runs\"");
    check_rule(
        &["run.max_tokens=0"],
        "--set: run.max_tokens: is 0, expected the training budget in tokens such as \"20M\"",
    );
    check_rule(
        &["run.max_tokens=4k"],
        "--set: run.max_tokens: is 4k, expected at least the 4096 of one step: \
         optimizer.batch_sequences = 16 times data.sequence_length = 256",
    );
    check_rule(&["run.max_nonfinite_steps=0"], "--set: run.max_nonfinite_steps: is 0, expected at least 1");
    check_rule(
        &["telemetry.log_every_steps=0"],
        "--set: telemetry.log_every_steps: is 0, expected at least 1",
    );
    for address in ["localhost:9464", "127.0.0.1", "127.0.0.1:65536", ":9464", ""] {
        check_rule(
            &[&format!("telemetry.prometheus_address={address}")],
            &format!(
                "--set: telemetry.prometheus_address: is {address:?}, expected an IP address and a port such as \
                 \"127.0.0.1:9464\" or \"[::1]:9464\"; 0.0.0.0 opens it to the network, port 0 takes a free one"
            ),
        );
    }
}

#[test]
fn problems_of_data_tokenizer_energy_and_carbon_are_told_with_the_rest() {
    let entries = "expected files, directories or patterns, or \"cargo-registry\" for the sources of this build's crates";
    check_rule(&["data.train=[]"], &format!("--set: data.train: is empty, {entries}"));
    check_rule(
        &["tokenizer.kind=file"],
        "tokenizer.path: is missing, expected the tokenizer.json that kind = \"file\" loads",
    );
    check_rule(&["energy.interval_ms=1"], "--set: energy.interval_ms: is 1, expected 10 to 10000");
    check_rule(&["carbon.pue=0.5"], "--set: carbon.pue: is 0.5, expected 1.0 to 10.0");
    check_rule(&["energy.tdp_watts=low"], "--set: energy.tdp_watts: is \"low\", expected a number");
    check_rule(
        &["tokenizer.path=5", "tokenizer.kind=file", "data.max_bytes=x"],
        "--set: data.max_bytes: is \"x\", expected a whole number, 0 or more",
    );
}

#[test]
fn a_file_that_is_not_there_is_an_input_error_that_names_it() {
    let error = Config::load(std::path::Path::new("no/such.toml"), &[]).unwrap_err();
    assert_eq!(error.exit_code(), 74);
    assert!(error.to_string().starts_with("no/such.toml: cannot be read"), "{error}");
}

proptest::proptest! {
    #[test]
    fn no_text_and_no_override_makes_the_loader_panic(
        line in "[\\[a-z_.=\"'0-9 \\n\\]{}#é-]{0,40}",
        at in 0..MINIMAL.len(),
        set in "(run|model|moe|x)?\\.?(seed|top_k|name)?=?[\\[a-z\"0-9é{]{0,6}",
    ) {
        let text = format!("{}{line}{}", &MINIMAL[..at], &MINIMAL[at..]);
        if let Err(error) = load(&text, &[&set]) {
            proptest::prop_assert_eq!(error.exit_code(), 78);
        }
    }
}
