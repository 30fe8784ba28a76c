//! A command with a time limit and a size limit.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// More than any power reading.
const MOST_BYTES: u64 = 1 << 20;
/// How often an ending command is looked after, once it has closed its output.
const POLL: Duration = Duration::from_millis(5);

/// Runs `words` without a shell and gives what it prints to stdout; ends it, and what it has started, at `limit`.
pub(super) fn run(words: &[String], limit: Duration) -> Result<String, String> {
    let shown = words.join(" ");
    let [program, arguments @ ..] = words else { return Err("the command is empty".into()) };
    let deadline = Instant::now() + limit;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(|error| format!("{shown}: cannot be run: {error}"))?;
    let output = read_until(&mut child, deadline);
    let status = wait_until(&mut child, deadline);
    match (output, status) {
        (Some(output), Some(status)) if status.success() => Ok(output),
        (_, Some(status)) if !status.success() => Err(format!("{shown}: ended with {status}")),
        _ => {
            end(&mut child);
            Err(format!("{shown}: no answer within {limit:.1?}"))
        }
    }
}

/// Everything the child prints, if it closes its output in time. A thread reads, since a pipe has no time limit;
/// it ends when the pipe does.
fn read_until(child: &mut Child, deadline: Instant) -> Option<String> {
    let output = child.stdout.take()?;
    let (give, take) = mpsc::sync_channel(1);
    let reader = std::thread::Builder::new().name("bmc-output".into());
    let read = move || {
        let mut bytes = Vec::new();
        let whole = output.take(MOST_BYTES).read_to_end(&mut bytes).is_ok();
        // Nobody listens after the deadline.
        let _ = give.send(whole.then(|| String::from_utf8_lossy(&bytes).into_owned()));
    };
    reader.spawn(read).ok()?;
    take.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()?
}

fn wait_until(child: &mut Child, deadline: Instant) -> Option<std::process::ExitStatus> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(POLL),
            _ => return None,
        }
    }
}

/// Ends the child and its process group, which it leads.
fn end(child: &mut Child) {
    if let Ok(group) = libc::pid_t::try_from(child.id()) {
        // SAFETY: `kill` takes plain numbers; the child has not been waited for, so its number is still its own.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
    // It cannot refuse SIGKILL; without this it would stay as a zombie.
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_words(words: &[&str], limit: Duration) -> Result<String, String> {
        run(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>(), limit)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn what_a_command_prints_is_given() {
        assert_eq!(run_words(&["echo", "a b"], LONG).unwrap(), "a b\n");
        assert_eq!(run_words(&["true"], LONG).unwrap(), "");
    }

    #[test]
    fn a_failed_command_is_an_error_even_if_it_prints() {
        let error = run_words(&["sh", "-c", "echo 100; exit 3"], LONG).unwrap_err();
        assert!(error.contains("exit status: 3"), "{error}");
        assert!(run(&[], LONG).is_err());
    }

    #[test]
    fn a_command_that_hangs_is_ended_with_what_it_has_started() {
        let directory = tempfile::tempdir().unwrap();
        let numbers = directory.path().join("pids");
        let script = format!("sleep 1000 & echo $$ $! > {}; wait", numbers.display());
        let error = run_words(&["sh", "-c", &script], Duration::from_millis(500)).unwrap_err();
        assert!(error.contains("no answer within"), "{error}");
        let pids = std::fs::read_to_string(numbers).unwrap();
        for pid in pids.split_whitespace() {
            // A killed grandchild may be a zombie until its new parent looks; it no longer runs.
            let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let after_name = state.rsplit(')').next().unwrap_or_default().trim_start();
            assert!(state.is_empty() || after_name.starts_with(['Z', 'X', 'D', 'R']), "{state}");
        }
    }

    #[test]
    fn endless_output_is_cut_off_and_is_no_reading() {
        assert!(run_words(&["yes"], Duration::from_millis(500)).is_err());
    }
}
