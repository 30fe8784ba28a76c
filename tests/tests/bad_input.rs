//! What goes wrong outside: one clear message, the documented exit code, and nothing lost.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::process::Command;

use wattle_tests::program::{Ran, Workshop};

/// Trains into a directory of its own with overrides.
fn train_with(workshop: &Workshop, sets: &[&str]) -> Ran {
    let mut arguments = vec!["train", "config.toml", "--quiet", "--run-dir", "refused"];
    arguments.extend(sets.iter().flat_map(|set| ["--set", set]));
    workshop.run(&arguments)
}

/// A workshop with a run of 20 steps and the checkpoints of steps 10 and 20.
fn with_run() -> Workshop {
    let workshop = Workshop::new();
    workshop.train("run", &["--max-steps", "20", "--quiet"]);
    workshop
}

#[test]
fn all_problems_of_a_configuration_are_listed_at_once_with_the_nearest_key() {
    let ran = train_with(
        &Workshop::new(),
        &["moe.topk=1", "model.num_heads=3", "moe.num_experts=many", "run.max_tokens=-5", "modle.d_model=8"],
    );
    let words = [
        "config.toml: 5 problems",
        "moe.topk: is no known key; the nearest known key is moe.top_k",
        "model.num_heads: is 3, expected a divisor of model.d_model = 16",
        "moe.num_experts: is \"many\", expected a whole number",
        "run.max_tokens: ",
        "the nearest known section is [model]",
    ];
    ran.expect_refusal(78, &words);
}

#[test]
fn a_problem_in_the_file_is_named_by_its_line() {
    let workshop = Workshop::new();
    workshop.write("broken.toml", "[run]\nmax_tokens = 5\nmax_tokens = 6\n");
    workshop.run(&["train", "broken.toml"]).expect_refusal(78, &["broken.toml", "line 3"]);
    workshop.write("binary.toml", [0xff, 0xfe, 0]);
    workshop.run(&["config", "show", "binary.toml"]).expect_refusal(78, &["binary.toml", "not UTF-8"]);
}

#[test]
fn shapes_that_cannot_be_are_refused_with_both_numbers() {
    for (set, words) in [
        ("model.head_dim=3", ["model.head_dim: is 3", "even"]),
        ("moe.top_k=5", ["moe.top_k: is 5", "at most the 4"]),
        ("model.num_heads=3", ["is 3", "divisor of model.d_model = 16"]),
        ("model.num_kv_heads=3", ["is 3", "divisor of model.num_heads = 2"]),
        ("moe.num_leading_dense_layers=2", ["is 2", "fewer than model.num_layers = 2"]),
        ("device.threads=60000", ["is 60000", "at most 4096"]),
        ("optimizer.micro_batch_sequences=3", ["is 3", "divisor of optimizer.batch_sequences = 8"]),
        ("run.max_tokens=10", ["is 10", "256"]),
        ("run.name=../../etc", ["../../etc", "letters"]),
    ] {
        train_with(&Workshop::new(), &[set]).expect_refusal(78, &words);
    }
    train_with(&Workshop::new(), &["tokenizer.kind=bpe", "tokenizer.vocab_size=100"])
        .expect_refusal(78, &["tokenizer.vocab_size: is 100", "expected 257"]);
}

#[test]
fn a_refused_configuration_leaves_nothing_behind() {
    let workshop = Workshop::new();
    train_with(&workshop, &["moe.top_k=5"]).expect_refusal(78, &[]);
    assert!(!workshop.path("refused").exists());
}

#[test]
fn a_missing_configuration_is_an_input_error_said_once() {
    let workshop = Workshop::new();
    let ran = workshop.run(&["train", "nowhere.toml"]);
    ran.expect_refusal(74, &["nowhere.toml: cannot be read", "expected a configuration file in TOML"]);
    assert_eq!(ran.stderr.matches("No such file").count(), 1, "{}", ran.stderr);
    workshop.run(&["train", "."]).expect_refusal(74, &["cannot be read"]);
}

#[test]
fn data_that_cannot_be_trained_on_is_bad_data() {
    let workshop = Workshop::new();
    workshop.write("empty.txt", "");
    workshop.write("binary.txt", b"some text\0\x01\x02");
    workshop.write("latin1.txt", b"caf\xe9 au lait");
    workshop.write("short.txt", "twenty bytes of text");
    workshop.write("line.jsonl", "{\"text\": \"good\"}\n{\"text\": 5}\n");
    for (sets, words) in [
        (&["data.train=[\"gone.txt\"]"][..], ["\"gone.txt\"", "no file, directory or pattern"]),
        (&["data.train=[\"gone-*.txt\"]"], ["\"gone-*.txt\"", "holds no file"]),
        (&["data.train=[\"empty.txt\"]"], ["data.train holds no text", "name files with text"]),
        (&["data.train=[\"binary.txt\"]"], ["binary.txt (byte 9)", "expected UTF-8 text"]),
        (&["data.train=[\"latin1.txt\"]"], ["latin1.txt (byte 3)", "expected UTF-8 text"]),
        (&["data.train=[\"line.jsonl\"]"], ["line.jsonl (line 2)", "text"]),
        (&["data.train=[\"short.txt\"]", "data.held_out_fraction=0"], ["21 tokens", "sequence_length = 32"]),
        (&["tokenizer.kind=file", "tokenizer.path=text.txt"], ["text.txt", "tokenizer.json"]),
    ] {
        train_with(&workshop, sets).expect_refusal(65, &words);
    }
}

#[test]
fn a_start_that_failed_can_be_mended_in_the_same_directory() {
    let workshop = Workshop::new();
    train_with(&workshop, &["data.train=[\"gone.txt\"]"]).expect_refusal(65, &[]);
    workshop.write("corpus.txt", "mended ".repeat(400));
    let sets = ["data.train=[\"corpus.txt\"]", "tokenizer.kind=bpe", "tokenizer.vocab_size=260"];
    let ran = train_with(&workshop, &sets);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "refused\n"), "{}", ran.stderr);
    let tokenizer =
        fs::read_to_string(workshop.path("refused/tokenizer.json")).expect("the run has a tokenizer");
    assert!(tokenizer.contains("merges"), "the tokenizer is the one of the second start");
}

#[test]
fn a_directory_with_a_configuration_of_its_own_is_not_overwritten() {
    let workshop = Workshop::new();
    let before = fs::read_to_string(workshop.path("config.toml")).expect("it is there");
    workshop
        .run(&["train", "config.toml", "--run-dir", "."])
        .expect_refusal(78, &["no run directory", "--run-dir"]);
    assert_eq!(fs::read_to_string(workshop.path("config.toml")).expect("it is there"), before);
}

#[test]
fn another_model_is_not_trained_into_a_run() {
    let workshop = with_run();
    let train = ["train", "config.toml", "--run-dir", "run"];
    let ran = workshop.run(&[&train[..], &["--set", "model.d_model=32"]].concat());
    ran.expect_refusal(78, &["`model.d_model` differs", "16 there, 32 here"]);
    workshop.run(&[&train[..], &["--resume", "never"]].concat()).expect_refusal(78, &["already holds a run"]);
    workshop.run(&["eval", "run", "--data", "text.txt", "--json"]).json();
}

#[test]
fn a_run_directory_below_a_file_is_refused() {
    let workshop = Workshop::new();
    for directory in ["text.txt", "text.txt/run"] {
        let ran = workshop.run(&["train", "config.toml", "--run-dir", directory]);
        ran.expect_refusal(74, &["cannot create the directory text.txt", "choose another path"]);
    }
}

#[test]
fn a_path_that_is_no_run_is_refused_by_every_reader() {
    let workshop = Workshop::new();
    for path in ["nowhere", ".", "text.txt"] {
        workshop.run(&["eval", path, "--data", "text.txt"]).expect_refusal(74, &[path]);
        workshop.run(&["generate", path, "--prompt", "a"]).expect_refusal(74, &[path]);
        workshop.run(&["logits", path, "--ids", "1", "--output", "l"]).expect_refusal(74, &[path]);
        workshop.run(&["inspect", path]).expect_refusal(74, &[path]);
        workshop.run(&["report", path]).expect_refusal(74, &[path]);
        workshop
            .run(&["train", "config.toml", "--resume", path])
            .expect_refusal(74, &[path, "no checkpoint at"]);
    }
    assert!(!workshop.path("l").exists() && !workshop.path("runs").exists());
}

/// Damages both checkpoints of a run and returns what the readers say.
fn read_damaged(damage: impl Fn(&std::path::Path)) -> [Ran; 3] {
    let workshop = with_run();
    for step in ["step-00000010", "step-00000020"] {
        damage(&workshop.path("run/checkpoints").join(step));
    }
    [
        workshop.run(&["eval", "run", "--data", "text.txt"]),
        workshop.run(&["generate", "run", "--prompt", "a"]),
        workshop.run(&["generate", "run/checkpoints/step-00000020", "--prompt", "a"]),
    ]
}

#[test]
fn a_cut_off_checkpoint_is_bad_data_that_names_the_file() {
    for ran in read_damaged(|step| {
        let shard =
            OpenOptions::new().write(true).open(step.join("rank-0.safetensors")).expect("it is there");
        shard.set_len(20_000).expect("it can be cut");
    }) {
        ran.expect_refusal(65, &["step-00000020/rank-0.safetensors", "150176 bytes", "13392"]);
    }
}

#[test]
fn garbage_for_a_checkpoint_is_bad_data_that_names_the_file() {
    for ran in
        read_damaged(|step| fs::write(step.join("rank-0.safetensors"), [0xa5; 5000]).expect("writable"))
    {
        ran.expect_refusal(65, &["step-00000020/rank-0.safetensors"]);
    }
    for ran in read_damaged(|step| fs::write(step.join("manifest.json"), "{\"step\": ").expect("writable")) {
        ran.expect_refusal(65, &["step-00000020/manifest.json"]);
    }
}

#[test]
fn one_flipped_bit_is_found_and_the_checkpoint_before_is_used() {
    let workshop = with_run();
    let path = workshop.path("run/checkpoints/step-00000020/rank-0.safetensors");
    let mut bytes = fs::read(&path).expect("it is there");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).expect("writable");
    let ran = workshop.run(&["eval", "run", "--data", "text.txt", "--json"]);
    assert!(ran.stderr.contains("checkpoint refused: ") && ran.stderr.contains("BLAKE3"), "{}", ran.stderr);
    let before = workshop.run(&["eval", "run/checkpoints/step-00000010", "--data", "text.txt", "--json"]);
    assert_eq!(ran.json(), before.json());
}

#[test]
fn a_broken_or_missing_tokenizer_is_named() {
    let workshop = with_run();
    workshop.write("run/tokenizer.json", "{\"nope\": ");
    workshop
        .run(&["generate", "run", "--prompt", "a"])
        .expect_refusal(65, &["run/tokenizer.json", "tokenizer.json"]);
    fs::remove_file(workshop.path("run/tokenizer.json")).expect("it is there");
    let ran = workshop.run(&["eval", "run", "--data", "text.txt"]);
    ran.expect_refusal(74, &["run/tokenizer.json", "check that the path exists"]);
    let ran = workshop.run(&["train", "config.toml", "--run-dir", "run", "--quiet"]);
    ran.expect_refusal(74, &["run/tokenizer.json"]);
}

#[test]
fn a_broken_ledger_is_named_and_kept() {
    let workshop = with_run();
    workshop.write("run/ledger.sqlite", "no database at all, but a text of some length");
    workshop
        .run(&["report", "run"])
        .expect_refusal(74, &["run/ledger.sqlite", "not a database", "move it away"]);
    let kept = fs::read_to_string(workshop.path("run/ledger.sqlite")).expect("it is there");
    assert!(kept.starts_with("no database"));
}

#[test]
fn token_ids_the_model_cannot_take_are_refused_with_both_numbers() {
    let workshop = with_run();
    let logits = |ids: &str| workshop.run(&["logits", "run", "--ids", ids, "--output", "l.safetensors"]);
    logits("1,257").expect_refusal(65, &["token id 257", "below 257"]);
    logits("4294967295").expect_refusal(65, &["token id 4294967295", "below 257"]);
    logits(&["1"; 33].join(",")).expect_refusal(65, &["33 token ids", "at most 32"]);
    logits("1,-2").expect_refusal(2, &["-2"]);
    logits("").expect_refusal(2, &["--ids"]);
    assert!(!workshop.path("l.safetensors").exists());
}

#[test]
fn absurd_flags_are_wrong_usage() {
    let workshop = with_run();
    let generate = |flag: &str, value: &str| workshop.run(&["generate", "run", "--prompt", "a", flag, value]);
    for (flag, value) in [
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--temperature", "inf"),
        ("--top-p", "0"),
        ("--top-p", "7"),
        ("--top-k", "-1"),
        ("--max-tokens", "-4"),
        ("--seed", "x"),
    ] {
        generate(flag, value).expect_refusal(2, &[value]);
    }
    for arguments in [
        &["bench", "--preset", "XL"][..],
        &["bench", "--batch", "0"],
        &["bench", "--steps", "1"],
        &["bench", "--precision", "f8"],
        &["bench", "--limits", "--profile"],
        &["eval", "run", "--data", "text.txt", "--batch", "0"],
        &["report", "run", "--pue", "0.5"],
        &["report", "run", "--pue", "-1"],
        &["report", "run", "--location", "Atlantis"],
        &["report", "run", "--format", "clay"],
        &["train", "config.toml", "--max-steps", "-3"],
        &["train", "config.toml", "--set"],
    ] {
        let value = arguments[arguments.len() - 1];
        workshop.run(arguments).expect_refusal(2, &[value]);
    }
}

#[test]
fn text_to_evaluate_must_be_there_and_be_text() {
    let workshop = with_run();
    workshop.write("empty.txt", "");
    workshop.write("binary.txt", b"\0\0\0\0");
    let eval = |data: &str| workshop.run(&["eval", "run", "--data", data]);
    eval("gone.txt").expect_refusal(65, &["--data", "\"gone.txt\""]);
    eval("empty.txt").expect_refusal(65, &["--data", "no text"]);
    eval("binary.txt").expect_refusal(65, &["binary.txt (byte 0)", "UTF-8"]);
}

#[test]
fn an_output_that_is_a_full_device_fails_and_stays_a_device() {
    let workshop = with_run();
    // By way of a link, so that a program which renames over its output breaks the link and not the device.
    symlink("/dev/full", workshop.path("full")).expect("links can be made");
    let outputs = [
        workshop.run(&["report", "run", "--output", "full"]),
        workshop.run(&["logits", "run", "--ids", "1,2", "--output", "full"]),
    ];
    for ran in outputs {
        ran.expect_refusal(74, &["cannot write", "full", "No space left on device", "free some space"]);
    }
    assert!(workshop.path("full").is_symlink() && !workshop.path("full.tmp").exists());
    workshop.run(&["report", "run", "--output", "nowhere/report"]).expect_refusal(74, &["nowhere/report"]);
}

/// Lets a process write files of at most `bytes`, as a disk that fills up does; beyond, writing fails.
fn limit_files(command: &mut Command, bytes: u64) -> &mut Command {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    let apply = move || {
        // SAFETY: both calls are async-signal-safe and `limit` lives in the closure.
        let failed = unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN) == libc::SIG_ERR
                || libc::setrlimit(libc::RLIMIT_FSIZE, &limit) != 0
        };
        if failed { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: between fork and exec the closure allocates nothing and takes no lock.
    unsafe { command.pre_exec(apply) }
}

#[test]
fn a_checkpoint_that_cannot_be_written_ends_the_run_and_keeps_the_one_before() {
    let workshop = with_run();
    let train = ["train", "config.toml", "--run-dir", "run", "--quiet"];
    // Enough for what the run holds now and a few more steps, too little for the 150 KB of a checkpoint.
    let mut command = workshop.command(&train);
    let ran = Ran::from(limit_files(&mut command, 120_000).output().expect("the binary starts"));
    ran.expect_refusal(74, &["cannot write run/checkpoints/", "File too large"]);
    let left: Vec<String> = fs::read_dir(workshop.path("run/checkpoints"))
        .expect("it is there")
        .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
        .collect();
    assert!(
        left.contains(&"step-00000020".to_owned()) && !left.contains(&"step-00000030".to_owned()),
        "{left:?}"
    );
    workshop.run(&["eval", "run", "--data", "text.txt", "--json"]).json();
    assert_eq!(workshop.run(&train).stdout, "run\n");
    assert_eq!(workshop.metrics("run").len(), 40);
}
