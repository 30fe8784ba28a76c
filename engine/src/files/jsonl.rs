//! JSON lines: one object a line, appended while the run goes on and cut back to a checkpoint on resume.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::{FileError, attempt, parent, replace_atomically, sync_directory};

/// A longer line is refused, so that a damaged file cannot ask for any amount of memory.
const MAX_LINE_BYTES: u64 = 16 << 20;

/// Objects wait in memory up to this size before they go to the file.
const BUFFER_BYTES: usize = 64 << 10;

/// Appends objects to a JSON lines file. The file only ever grows by whole lines.
#[derive(Debug)]
pub struct JsonlWriter {
    file: File,
    path: PathBuf,
    /// Whole lines not yet in the file.
    pending: Vec<u8>,
}

impl JsonlWriter {
    /// Opens `path` for appending and creates it if missing. A torn last line, left by a crash, is dropped first.
    ///
    /// # Errors
    /// [`FileError`]; also when the file holds a line that is no object before its last one.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        trim_jsonl_after(path, |_| true)?;
        let file = attempt("open", path, || OpenOptions::new().append(true).create(true).open(path))?;
        // A new file's name is not durable by its own sync.
        sync_directory(parent(path))?;
        Ok(JsonlWriter { file, path: path.to_owned(), pending: Vec::new() })
    }

    /// Adds one object. It reaches the file with the next [`flush`](Self::flush), or when 64 KiB are waiting.
    ///
    /// # Errors
    /// [`FileError`] when `object` cannot be written as JSON or the file cannot be written.
    pub fn write(&mut self, object: &impl Serialize) -> Result<(), FileError> {
        let line = attempt("write an object to", &self.path, || Ok(serde_json::to_vec(object)?))?;
        self.pending.extend_from_slice(&line);
        self.pending.push(b'\n');
        if self.pending.len() >= BUFFER_BYTES { self.flush() } else { Ok(()) }
    }

    /// Hands all waiting objects to the operating system: other programs see them, a killed process keeps them.
    ///
    /// # Errors
    /// [`FileError`]; the objects then still wait, and no part of them stays in the file.
    pub fn flush(&mut self) -> Result<(), FileError> {
        let (file, pending) = (&mut self.file, &self.pending);
        attempt("write", &self.path, || {
            let good_bytes = file.metadata()?.len();
            let written = file.write_all(pending);
            if written.is_err() {
                // A torn line in the middle would spoil the file for good; at the end it can be cut off again.
                let _ = file.set_len(good_bytes);
            }
            written
        })?;
        self.pending.clear();
        Ok(())
    }

    /// Flushes and makes everything written so far survive a power loss.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn sync(&mut self) -> Result<(), FileError> {
        self.flush()?;
        attempt("sync", &self.path, || self.file.sync_data())
    }
}

impl Drop for JsonlWriter {
    fn drop(&mut self) {
        // Nobody can be told here; who must know calls `flush`.
        let _ = self.flush();
    }
}

/// All objects of a JSON lines file but a torn last line.
///
/// # Errors
/// [`FileError`], also when the file is missing or holds a line that is no object before its last one.
pub fn read_jsonl(path: &Path) -> Result<Vec<Value>, FileError> {
    let file = attempt("open", path, || File::open(path))?;
    let mut lines = Lines { reader: BufReader::new(file), path, number: 0 };
    let mut objects = Vec::new();
    while let Some(line) = lines.next()? {
        objects.extend(line.object);
    }
    Ok(objects)
}

/// Rewrites a JSON lines file without the objects that `keep` says no to and without a torn last line; gives the
/// number of lines dropped. The kept lines stay byte for byte. A missing file has none.
///
/// # Errors
/// [`FileError`], with the line's number when a line before the last is no JSON object; the file is then untouched.
pub fn trim_jsonl_after(path: &Path, keep: impl Fn(&Value) -> bool) -> Result<u64, FileError> {
    let file = match attempt("open", path, || File::open(path)) {
        Ok(file) => file,
        Err(error) if error.source.kind() == ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let (mut num_dropped, mut num_repaired) = (0, 0);
    let mut lines = Lines { reader: BufReader::new(file), path, number: 0 };
    // The first pass only looks: mostly there is nothing to do, and then the file is not written.
    while let Some(line) = lines.next()? {
        match line.object {
            Some(object) if keep(&object) => num_repaired += u64::from(!line.ended),
            _ => num_dropped += 1,
        }
    }
    if num_dropped + num_repaired == 0 {
        return Ok(0);
    }
    let file = attempt("open", path, || File::open(path))?;
    let mut lines = Lines { reader: BufReader::new(file), path, number: 0 };
    replace_atomically(path, |out| {
        let mut kept = Vec::with_capacity(BUFFER_BYTES);
        while let Some(line) = lines.next()? {
            if line.object.is_some_and(|object| keep(&object)) {
                kept.extend_from_slice(&line.bytes);
                kept.push(b'\n');
            }
            if kept.len() >= BUFFER_BYTES {
                out.write(&kept)?;
                kept.clear();
            }
        }
        out.write(&kept)
    })?;
    Ok(num_dropped)
}

struct Lines<'a> {
    reader: BufReader<File>,
    path: &'a Path,
    number: u64,
}

struct Line {
    /// Without the newline.
    bytes: Vec<u8>,
    /// False for a last line without its newline.
    ended: bool,
    /// Nothing where a torn last line stands.
    object: Option<Value>,
}

impl Lines<'_> {
    fn next(&mut self) -> Result<Option<Line>, FileError> {
        self.number += 1;
        let number = self.number;
        attempt("read", self.path, || {
            let mut bytes = Vec::new();
            (&mut self.reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut bytes)?;
            if bytes.is_empty() {
                return Ok(None);
            }
            let ended = bytes.last() == Some(&b'\n');
            if ended {
                bytes.pop();
            }
            let is_last = self.reader.fill_buf()?.is_empty();
            let object = serde_json::from_slice::<Value>(&bytes).ok().filter(Value::is_object);
            if object.is_none() && !is_last {
                let what = format!("line {number} is no JSON object; repair the line or move the file away");
                return Err(io::Error::new(ErrorKind::InvalidData, what));
            }
            Ok(Some(Line { bytes, ended, object }))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;
    use crate::files::faults;

    fn file_with(content: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metrics.jsonl");
        fs::write(&path, content).unwrap();
        (directory, path)
    }

    fn up_to(step: u64) -> impl Fn(&Value) -> bool {
        move |object| object["step"].as_u64().is_some_and(|s| s <= step)
    }

    #[test]
    fn objects_after_the_step_and_a_torn_last_line_go_and_the_rest_stays_byte_for_byte() {
        let (_directory, path) = file_with("{\"step\":1, \"loss\":1.50}\n{\"step\":2}\n{\"step\":3}\n{\"ste");
        assert_eq!(trim_jsonl_after(&path, up_to(2)).unwrap(), 2);
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"step\":1, \"loss\":1.50}\n{\"step\":2}\n");
    }

    #[test]
    fn a_last_line_torn_at_any_byte_never_costs_another_line() {
        let whole = "{\"step\":1}\n{\"step\":2,\"note\":\"}\"}\n";
        for len in 0..=whole.len() {
            let (_directory, path) = file_with(&whole[..len]);
            JsonlWriter::open(&path).unwrap().write(&json!({"step": 9})).unwrap();
            let complete = [(10, "{\"step\":1}\n"), (32, "{\"step\":2,\"note\":\"}\"}\n")];
            let kept: String =
                complete.iter().filter(|(end, _)| len >= *end).map(|(_, line)| *line).collect();
            assert_eq!(fs::read_to_string(&path).unwrap(), kept + "{\"step\":9}\n", "cut at {len}");
        }
    }

    #[test]
    fn a_missing_file_has_nothing_to_trim_and_is_not_created() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metrics.jsonl");
        assert_eq!(trim_jsonl_after(&path, |_| false).unwrap(), 0);
        assert!(!path.exists());
    }

    #[test]
    fn a_damaged_line_in_the_middle_is_named_and_nothing_is_changed() {
        let content = "{\"step\":1}\n{\"st\n{\"step\":3}\n";
        let (_directory, path) = file_with(content);
        let error = trim_jsonl_after(&path, up_to(1)).unwrap_err();
        assert!(error.to_string().contains("line 2 is no JSON object"), "{error}");
        assert_eq!(error.exit_code(), 65);
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
    }

    #[test]
    fn objects_wait_for_a_flush_and_then_are_in_the_file() {
        let (_directory, path) = file_with("");
        let mut writer = JsonlWriter::open(&path).unwrap();
        writer.write(&json!({"step": 1, "loss": 2.5})).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        writer.sync().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"step\":1,\"loss\":2.5}\n");
        writer.write(&json!({"note": "x".repeat(BUFFER_BYTES)})).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
    }

    #[test]
    fn a_new_file_is_durable_by_name_before_the_first_object() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metrics.jsonl");
        let expected = directory.path().to_owned();
        let fails =
            move |what: &'static str, path: &Path| match what == "sync the directory" && path == expected {
                true => Err(ErrorKind::Other.into()),
                false => Ok(()),
            };
        let error = faults::watch(fails, || JsonlWriter::open(&path)).unwrap_err();
        assert_eq!(error.path, directory.path());
    }

    /// `/dev/full` answers every write with ENOSPC.
    #[test]
    fn a_full_disk_is_a_clear_error_and_the_objects_still_wait() {
        let file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut writer = JsonlWriter { file, path: "/dev/full".into(), pending: Vec::new() };
        writer.write(&json!({"step": 1})).unwrap();
        let error = writer.flush().unwrap_err();
        assert_eq!(error.exit_code(), 74);
        assert!(error.to_string().contains("free some space"), "{error}");
        assert_eq!(writer.pending, b"{\"step\":1}\n");
    }
}
