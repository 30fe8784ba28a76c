//! The command line as users and their scripts hold on to it: streams, keys, help and exit codes.

use std::fs::File;
use std::io::Read;
use std::process::Stdio;

use serde_json::Value;
use wattle_tests::program::{Ran, Workshop};

const COMMANDS: [&[&str]; 14] = [
    &["train"],
    &["eval"],
    &["generate"],
    &["logits"],
    &["report"],
    &["plan"],
    &["bench"],
    &["inspect"],
    &["doctor"],
    &["config"],
    &["config", "show"],
    &["config", "schema"],
    &["completions"],
    &["man"],
];

/// What `bench --profile` must name for a training step in f32.
const STEP_OPERATIONS: [&str; 29] = [
    "adamw",
    "add",
    "attention",
    "attention_backward",
    "cross_entropy_backward",
    "embedding",
    "embedding_backward",
    "fill_zero",
    "gather",
    "gather_sum",
    "grouped_matmul",
    "grouped_matmul_backward_input",
    "grouped_matmul_backward_weight",
    "matmul",
    "matmul_backward_input",
    "matmul_backward_weight",
    "rms_norm",
    "rms_norm_backward",
    "rope",
    "rope_backward",
    "router",
    "router_backward",
    "router_losses",
    "routing_plan",
    "routing_shares",
    "routing_tally",
    "sum_of_squares",
    "swiglu",
    "swiglu_backward",
];

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().expect("an object").keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

fn sorted<'a>(names: &[&'a str]) -> Vec<&'a str> {
    let mut names = names.to_vec();
    names.sort_unstable();
    names
}

#[test]
fn every_command_has_help_with_one_example() {
    let workshop = Workshop::new();
    for command in COMMANDS {
        let ran = workshop.run(&[command, &["--help"]].concat());
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{command:?}");
        let examples: Vec<&str> = ran.stdout.lines().filter(|line| line.starts_with("Example: ")).collect();
        let start = format!("Example: wattle {}", command.join(" "));
        assert!(examples.len() == 1 && examples[0].starts_with(&start), "{command:?}: {examples:?}");
    }
}

#[test]
fn the_help_lists_every_command() {
    let ran = Workshop::new().run(&["--help"]);
    for command in COMMANDS {
        assert!(ran.stdout.contains(&format!("\n  {} ", command[0])), "{command:?}: {}", ran.stdout);
    }
}

#[test]
fn wrong_usage_exits_2_and_prints_to_stderr_only() {
    let workshop = Workshop::new();
    for command in COMMANDS {
        let ran = workshop.run(&[command, &["--no-such-flag"]].concat());
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{command:?}");
        assert!(ran.stderr.contains("--no-such-flag"), "{command:?}: {}", ran.stderr);
    }
    for arguments in
        [&["fly"][..], &[], &["train"], &["generate", "run"], &["report"], &["completions", "csh"]]
    {
        let ran = workshop.run(arguments);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{arguments:?}");
        assert!(!ran.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn train_prints_the_run_directory_on_stdout_and_the_rest_in_plain_lines_on_stderr() {
    let workshop = Workshop::new();
    let ran = workshop.train("run", &[]);
    assert_eq!(ran.stdout, "run\n");
    assert!(ran.stderr.contains("step     40  loss "), "{}", ran.stderr);
    assert!(!ran.stderr.contains(['\u{1b}', '\r']), "{:?}", ran.stderr);
    let quiet = workshop.train("quiet", &["--quiet"]);
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("quiet\n", ""));
}

#[test]
fn a_run_without_a_given_directory_gets_one_of_its_name_and_time() {
    let workshop = Workshop::new();
    let ran = workshop.run(&["train", "config.toml", "--max-steps", "2", "--quiet"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let printed = ran.stdout.trim_end();
    assert!(printed.starts_with("runs/tiny-20"), "{printed}");
    for file in
        ["config.toml", "metrics.jsonl", "ledger.sqlite", "tokenizer.json", "checkpoints/step-00000002"]
    {
        assert!(workshop.path(printed).join(file).exists(), "{file}");
    }
}

#[test]
fn each_step_has_the_promised_keys() {
    let workshop = Workshop::new();
    workshop.train("run", &[]);
    let metrics = workshop.metrics("run");
    assert_eq!(metrics.len(), 40);
    let mut expected = vec![
        "step",
        "tokens",
        "time",
        "loss",
        "ce_loss",
        "balance_loss",
        "z_loss",
        "grad_norm",
        "lr",
        "batch_tokens",
        "k_mean",
        "expert_load_cv",
        "dropped_tokens",
        "tokens_per_second",
        "mfu",
        "joules",
        "joules_per_token",
        "energy_source",
        "watts",
        "grams_co2e",
        "grams_co2e_total",
        "phases",
        "phase_joules",
    ];
    assert_eq!(keys(&metrics[0]), sorted(&expected));
    expected.push("val_loss");
    for step in [19, 39] {
        assert_eq!(keys(&metrics[step]), sorted(&expected), "steps that evaluate say what they found");
    }
}

#[test]
fn bench_prints_one_json_line_with_the_promised_keys() {
    let ran = Workshop::new().run(&["bench", "--batch", "1", "--steps", "4", "--precision", "f32", "--json"]);
    assert_eq!((ran.stdout.lines().count(), ran.stderr.as_str()), (1, ""));
    let result = ran.json();
    let expected = [
        "engine",
        "version",
        "preset",
        "device",
        "precision",
        "params",
        "active_params",
        "tokens_per_s",
        "step_ms",
        "gflops",
        "mfu",
        "peak_memory_bytes",
        "joules_per_token",
        "energy_source",
    ];
    assert_eq!(keys(&result), sorted(&expected));
    assert_eq!(
        (&result["engine"], &result["preset"], &result["precision"]),
        (&"wattle".into(), &"S".into(), &"f32".into())
    );
    // By hand from the table of presets: the experts are 6 layers of 8, of which 2 work for a token.
    let expert = 3 * 256 * 512;
    let rest = 4096 * 256 + 6 * (3 * 256 * 256 + 256 * 8 + 2 * 256) + 256;
    assert_eq!(result["params"], rest + 6 * 8 * expert);
    assert_eq!(result["active_params"], rest + 6 * 2 * expert);
    for key in ["tokens_per_s", "step_ms", "gflops", "mfu", "peak_memory_bytes"] {
        assert!(result[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {}", result[key]);
    }
}

/// Preset S in one sequence: 256 tokens, six layers of 256 with eight heads of 32, 8 experts of 512, of which 2 work.
#[test]
fn the_profile_of_a_step_names_its_operations_and_counts_the_flops_of_the_preset() {
    let arguments = ["bench", "--batch", "1", "--steps", "4", "--precision", "f32", "--profile", "--json"];
    let result = Workshop::new().run(&arguments).json();
    let rows = result["profile"].as_array().expect("a list");
    let total = |key: &str, of: fn(&str) -> bool| -> f64 {
        let chosen = rows.iter().filter(|row| row["op"].as_str().is_some_and(of));
        chosen.map(|row| row[key].as_f64().expect("a number")).sum()
    };
    let weights = 4096 * 256 + 6 * (3 * 256 * 256 + 256 * 8 + 2 * 3 * 256 * 512);
    let of_weights = |op: &str| op.contains("matmul") || op.starts_with("cross_entropy");
    assert_eq!(total("flops_per_step", of_weights), 6.0 * f64::from(weights) * 256.0);
    // A query sees itself and what lies before; the backward takes the scores again: five products against two.
    let visible = f64::from(256 * 257 / 2);
    assert_eq!(total("flops_per_step", |op| op.starts_with("attention")), 14.0 * 6.0 * 8.0 * 32.0 * visible);
    let mut operations: Vec<&str> = rows.iter().filter_map(|row| row["op"].as_str()).collect();
    operations.sort_unstable();
    operations.dedup();
    assert_eq!(operations, STEP_OPERATIONS);
    assert!(result["unattributed_ms_per_step"].is_number(), "{result}");
    for row in rows {
        assert!(row["share_of_limit"].as_f64().is_some_and(|share| share > 0.0), "{row}");
    }
    for limit in ["f32_gflops", "bf16_gflops", "memory_read_gb_per_s", "memory_copy_gb_per_s"] {
        for key in [limit.to_owned(), format!("{limit}_one_thread")] {
            assert!(result["limits"][&key].as_f64().is_some_and(|rate| rate > 0.0), "{key}: {result}");
        }
    }
}

#[test]
fn doctor_names_each_meter_with_a_remedy_for_what_is_missing() {
    let workshop = Workshop::new();
    let found = workshop.run(&["doctor", "--json"]).json();
    assert_eq!(keys(&found), ["carbon", "cuda", "devices", "meters", "version"]);
    assert_eq!(found["devices"][0]["kind"], "cpu");
    let meters = found["meters"].as_array().expect("a list");
    let names: Vec<&str> = meters.iter().filter_map(|meter| meter["meter"].as_str()).collect();
    assert_eq!(names, ["nvml", "perf", "rapl", "hwmon", "bmc", "model"]);
    let text = workshop.run(&["doctor"]);
    assert_eq!((text.code, text.stderr.as_str()), (0, ""));
    let libraries = found["cuda"]["libraries"].as_array().expect("a list");
    assert_eq!(libraries.len(), 3);
    for library in libraries {
        assert!(library["version"].is_string() || library["remedy"].is_string(), "{library}");
    }
    for meter in meters {
        assert!(meter["available"] == true || meter["remedy"].is_string(), "{meter}");
        assert!(text.stdout.contains(meter["meter"].as_str().expect("a name")), "{}", text.stdout);
    }
}

#[test]
fn doctor_tells_of_each_carbon_provider_whether_it_can_be_asked() {
    let workshop = Workshop::new();
    let plain = workshop.run(&["doctor", "--json"]).json();
    assert_eq!(plain["carbon"]["zone"], "World");
    assert_eq!(plain["carbon"]["providers"].as_array().map(Vec::len), Some(0));
    let text = workshop.run(&["doctor"]).stdout;
    assert!(text.contains("World: 458 g/kWh in 2025; no provider is configured"), "{text}");

    let config = std::fs::read_to_string(workshop.path("config.toml")).expect("the workshop has one");
    let providers = "[carbon]\nlocation = \"FRA\"\n[[carbon.providers]]\nkind = \"uk_carbon_intensity\"\n\
                     [[carbon.providers]]\nkind = \"electricity_maps\"\nzone = \"DE\"\n";
    workshop.write("priced.toml", format!("{config}\n{providers}"));
    let doctor = |json: &[&str]| {
        let mut command = workshop.command(&[&["doctor", "--config", "priced.toml"], json].concat());
        Ran::from(command.env_remove("ELECTRICITY_MAPS_TOKEN").output().expect("the binary starts"))
    };
    let found = doctor(&["--json"]).json();
    assert_eq!(found["carbon"]["zone"], "FRA");
    let of = |index: usize| found["carbon"]["providers"][index].clone();
    assert_eq!((&of(0)["provider"], &of(0)["available"]), (&"uk_carbon_intensity".into(), &true.into()));
    assert_eq!((&of(1)["provider"], &of(1)["available"]), (&"electricity_maps".into(), &false.into()));
    let text = doctor(&[]).stdout;
    for words in [
        "FRA: 41 g/kWh in 2025, while no provider answers",
        "uk_carbon_intensity can be asked: UK Carbon Intensity, zone GB",
        "electricity_maps cannot be asked: carbon.providers[1] needs the environment variable ELECTRICITY_MAPS_TOKEN",
    ] {
        assert!(text.contains(words), "{words:?} is not in\n{text}");
    }
    workshop.run(&["doctor", "--config", "nowhere.toml"]).expect_refusal(74, &["nowhere.toml"]);
}

#[test]
fn config_show_names_the_origin_of_each_value() {
    let ran = Workshop::new().run(&["config", "show", "config.toml", "--set", "moe.top_k=1"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let line = |key: &str| ran.stdout.lines().find(|line| line.starts_with(key)).expect("every key is shown");
    assert!(line("top_k = 1 ").ends_with("# --set"), "{}", line("top_k"));
    assert!(line("seed = 7 ").contains("# file, line "), "{}", line("seed"));
    assert!(line("rope_theta = ").ends_with("# default"), "{}", line("rope_theta"));
}

#[test]
fn what_config_show_prints_is_a_configuration_with_the_same_values() {
    let workshop = Workshop::new();
    let shown = workshop.run(&["config", "show", "config.toml"]).stdout;
    workshop.write("shown.toml", &shown);
    let again = workshop.run(&["config", "show", "shown.toml"]);
    assert_eq!(again.code, 0, "{}", again.stderr);
    let parse = |text: &str| text.parse::<toml::Table>().expect("it is TOML");
    assert_eq!(parse(&again.stdout), parse(&shown));
}

#[test]
fn the_schema_describes_each_section() {
    let schema = Workshop::new().run(&["config", "schema"]).json();
    let sections = schema["properties"].as_object().expect("sections");
    for name in ["run", "device", "model", "moe", "data", "tokenizer", "optimizer", "schedule", "precision"] {
        assert!(sections[name]["description"].is_string(), "{name}");
    }
    assert_eq!(schema["additionalProperties"], false);
}

#[test]
fn completions_and_the_manual_name_every_command() {
    let workshop = Workshop::new();
    for arguments in
        [&["completions", "bash"][..], &["completions", "zsh"], &["completions", "fish"], &["man"]]
    {
        let ran = workshop.run(arguments);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{arguments:?}");
        for command in COMMANDS {
            assert!(ran.stdout.contains(command[0]), "{arguments:?} lacks {command:?}");
        }
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let workshop = Workshop::new();
    workshop.train("run", &["--max-steps", "2"]);
    for arguments in [
        &["config", "schema"][..],
        &["config", "show", "config.toml"],
        &["completions", "bash"],
        &["man"],
        &["doctor"],
        &["report", "run"],
        &["inspect", "run"],
        &["eval", "run", "--data", "config.toml"],
        &["logits", "--help"],
        &["generate", "run", "--prompt", "a", "--max-tokens", "4000", "--temperature", "3"],
        &["train", "config.toml", "--run-dir", "run", "--quiet"],
    ] {
        let mut child = workshop
            .command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        drop(child.stdout.take());
        let mut stderr = String::new();
        let pipe = child.stderr.as_mut().expect("stderr is a pipe");
        pipe.read_to_string(&mut stderr).expect("stderr is text");
        let status = child.wait().expect("the binary ends");
        assert_eq!((status.code(), stderr.as_str()), (Some(0), ""), "{arguments:?}");
    }
}

#[test]
fn a_full_disk_below_stdout_is_an_error_and_below_stderr_costs_messages_only() {
    let workshop = Workshop::new();
    let full = || File::options().write(true).open("/dev/full").expect("Linux has it");
    for arguments in [&["config", "schema"][..], &["man"], &["completions", "bash"], &["doctor"]] {
        let output = workshop.command(arguments).stdout(full()).output().expect("the binary starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(74), "{arguments:?}: {stderr}");
        assert!(stderr.starts_with("error: cannot write to standard output: "), "{stderr}");
    }
    let train = ["train", "config.toml", "--run-dir", "run"];
    let output = workshop.command(&train).stderr(full()).output().expect("the binary starts");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"run\n"[..]));
    assert_eq!(workshop.metrics("run").len(), 40);
}
