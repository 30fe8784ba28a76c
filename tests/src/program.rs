//! The real binary at work in a directory of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// A temporary directory with a small configuration and text to train on.
pub struct Workshop {
    directory: TempDir,
}

impl Default for Workshop {
    fn default() -> Self {
        Self::new()
    }
}

impl Workshop {
    /// A tiny sparse model over a byte vocabulary; a step takes milliseconds.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let workshop = Workshop { directory };
        workshop.write("config.toml", CONFIG);
        let text: String =
            (0..4000).map(|i| format!("{} sheep and {} stars\n", i % 97, i * 7 % 89)).collect();
        workshop.write("text.txt", &text);
        workshop
    }

    /// A path inside the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file inside the directory.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).expect("the temporary directory is writable");
    }

    /// The binary, ready to run inside the directory.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(arguments).current_dir(self.directory.path()).env("NO_COLOR", "1");
        command
    }

    /// Runs the binary to its end.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        Ran::from(self.command(arguments).output().expect("the binary starts"))
    }

    /// Trains into `run` with further arguments, and expects success.
    pub fn train(&self, run: &str, arguments: &[&str]) -> Ran {
        let mut all = vec!["train", "config.toml", "--run-dir", run];
        all.extend(arguments);
        let ran = self.run(&all);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        ran
    }

    /// The objects of a run's metrics.jsonl.
    pub fn metrics(&self, run: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.path(run).join("metrics.jsonl")).expect("the run has metrics");
        text.lines().map(|line| serde_json::from_str(line).expect("every line is JSON")).collect()
    }
}

/// What a finished process left.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// All of stdout.
    pub stdout: String,
    /// All of stderr.
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ran {
    /// Stdout as one JSON value.
    pub fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}", self.stderr);
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }

    /// Expects one message on stderr that has all these words, this exit code, and nothing on stdout.
    pub fn expect_refusal(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        assert_eq!(self.stdout, "", "a refusal is no data");
        assert_eq!(self.stderr.matches("error: ").count(), 1, "{}", self.stderr);
        assert!(self.stderr.contains("\nerror: ") || self.stderr.starts_with("error: "), "{}", self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is missing: {}", self.stderr);
        }
        for word in ["panicked", "backtrace", "RUST_BACKTRACE"] {
            assert!(!self.stderr.contains(word), "{}", self.stderr);
        }
    }
}

/// The binary that this workspace's build made: beside the test's own executable.
fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its executable");
    let built = test.parent().and_then(Path::parent).expect("tests are built two levels below the binary");
    let path = built.join(format!("wattle{}", std::env::consts::EXE_SUFFIX));
    assert!(path.exists(), "{} is missing: run `cargo test --workspace`, which builds it", path.display());
    path
}

const CONFIG: &str = r#"
[run]
name = "tiny"
seed = 7
max_tokens = 10240

[model]
d_model = 16
num_layers = 2
num_heads = 2

[moe]
num_experts = 4
top_k = 2
expert_ffn_size = 16
bias_update_rate = 0.001

[data]
train = ["text.txt"]
held_out_by = "tail"
held_out_fraction = 0.02
sequence_length = 32

[tokenizer]
kind = "byte"

[optimizer]
learning_rate = 0.01
batch_sequences = 8

[schedule]
kind = "cosine"
warmup_tokens = 1024

[checkpoint]
every_steps = 10

[eval]
every_steps = 20

[energy]
meter = "model"
"#;
