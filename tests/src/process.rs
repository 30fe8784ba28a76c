//! The binary while it runs: waiting until it has come somewhere, and signals.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::program::{Ran, Workshop};

/// A bound on waiting that only a hanging program meets; nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running process, killed when it is dropped.
pub struct Process(Option<Child>);

impl Process {
    /// Starts it with its output kept for [`Process::finish`].
    pub fn start(mut command: Command) -> Self {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Process(Some(child.expect("the binary starts")))
    }

    /// Starts training into `run` with further arguments, as [`Workshop::train`] does.
    pub fn train(workshop: &Workshop, run: &str, arguments: &[&str]) -> Self {
        let mut all = vec!["train", "config.toml", "--run-dir", run];
        all.extend(arguments);
        Self::start(workshop.command(&all))
    }

    /// Waits until `condition` holds while the process runs.
    ///
    /// # Panics
    /// When the process ends before, or never comes there.
    pub fn wait_until(&mut self, what: &str, mut condition: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !condition() {
            if self.child().try_wait().expect("a child can be asked").is_some() {
                let ran = self.end();
                panic!("it ended with {} before {what}: {}", ran.code, ran.stderr);
            }
            assert!(begin.elapsed() < PATIENCE, "{what} did not come");
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    /// Sends a signal, such as `libc::SIGTERM`.
    ///
    /// # Panics
    /// When the process has already ended.
    pub fn signal(&mut self, signal: i32) {
        assert!(
            self.child().try_wait().expect("a child can be asked").is_none(),
            "it ended before the signal"
        );
        let id = self.child().id() as i32;
        // SAFETY: kill takes plain numbers; the child is not yet waited for, so its id is still its own.
        assert_eq!(unsafe { libc::kill(id, signal) }, 0, "the signal can be sent");
    }

    /// Kills it with `kill -9`, in the midst of whatever it does.
    ///
    /// # Panics
    /// When the process ended by itself before.
    pub fn kill(mut self) {
        self.signal(libc::SIGKILL);
        assert_eq!(self.end().code, -1, "it ended before it was killed");
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Ran {
        self.end()
    }

    fn child(&mut self) -> &mut Child {
        self.0.as_mut().expect("only `end` takes the child")
    }

    fn end(&mut self) -> Ran {
        let child = self.0.take().expect("it is ended once");
        Ran::from(child.wait_with_output().expect("a child can be waited for"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // The test has failed already; what is left to do is to leave nothing running.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Lines that a run has written to its metrics.jsonl so far.
pub fn num_metrics(run: &Path) -> usize {
    std::fs::read(run.join("metrics.jsonl"))
        .map_or(0, |text| text.iter().filter(|&&byte| byte == b'\n').count())
}

/// The steps of a run's checkpoints that are in place, in order.
pub fn checkpoint_steps(run: &Path) -> Vec<u64> {
    let entries = std::fs::read_dir(run.join("checkpoints")).into_iter().flatten();
    let names = entries.map(|entry| PathBuf::from(entry.expect("the directory is readable").file_name()));
    let mut steps: Vec<u64> =
        names.filter_map(|name| name.to_str()?.strip_prefix("step-")?.parse().ok()).collect();
    steps.sort_unstable();
    steps
}
