//! JSON lines: each line an object, one of whose fields holds a document.

use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::MAX_LINE_BYTES;
use crate::data::error::{Error, Result};
use crate::data::source::Document;

/// Reads one line after another.
pub(super) struct JsonLines {
    path: PathBuf,
    file: Box<dyn BufRead + Send>,
    text_field: String,
    /// Lines read so far.
    num_lines: u64,
}

impl JsonLines {
    /// Reads `file`, which was opened at `path`.
    pub(super) fn new(path: &Path, file: Box<dyn BufRead + Send>, text_field: &str) -> Self {
        JsonLines { path: path.to_owned(), file, text_field: text_field.into(), num_lines: 0 }
    }

    /// The next line that is not blank.
    fn next_line(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            let mut line = Vec::new();
            let mut bounded = (&mut self.file).take(MAX_LINE_BYTES + 1);
            bounded.read_until(b'\n', &mut line).map_err(Error::read(&self.path))?;
            if line.is_empty() {
                return Ok(None);
            }
            self.num_lines += 1;
            if line.len() as u64 > MAX_LINE_BYTES {
                return Err(self.error(format!("the line is longer than {MAX_LINE_BYTES} bytes")));
            }
            if !line.trim_ascii().is_empty() {
                return Ok(Some(line));
            }
        }
    }

    fn parse(&self, line: &[u8]) -> Result<Document> {
        let line = line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line);
        let value: Value = serde_json::from_slice(line)
            .map_err(|error| self.error(format!("column {}: not JSON ({error})", error.column())))?;
        let Value::Object(mut fields) = value else {
            return Err(self.error("not a JSON object".into()));
        };
        let text = match fields.remove(&self.text_field) {
            Some(Value::String(text)) => text,
            Some(Value::Null) => String::new(),
            Some(_) => return Err(self.error(format!("the field \"{}\" is not a string", self.text_field))),
            None => {
                let keys: Vec<&str> = fields.keys().take(20).map(String::as_str).collect();
                let problem = format!("no field \"{}\"; the line has: {}", self.text_field, keys.join(", "));
                return Err(self.error(problem));
            }
        };
        Ok(Document { origin: format!("{}:{}", self.path.display(), self.num_lines), text })
    }

    fn error(&self, problem: String) -> Error {
        Error::Content {
            path: self.path.clone(),
            place: format!("line {}", self.num_lines),
            problem,
            remedy: "each line must be a JSON object with its text in the field that data.text_field names",
        }
    }
}

impl Iterator for JsonLines {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Self::Item> {
        let line = self.next_line().transpose()?;
        Some(line.and_then(|line| self.parse(&line)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &'static str) -> Result<Vec<Document>> {
        JsonLines::new(Path::new("a.jsonl"), Box::new(text.as_bytes()), "text").collect()
    }

    #[test]
    fn each_line_is_a_document_with_its_line_number() {
        let documents = check("{\"text\":\"one\"}\n\n{\"id\":7,\"text\":\"two\\n\"}").unwrap();
        assert_eq!(documents.iter().map(|d| d.text.as_str()).collect::<Vec<_>>(), ["one", "two\n"]);
        assert_eq!(documents[1].origin, "a.jsonl:3");
    }

    #[test]
    fn a_bad_line_is_named() {
        for (text, expected) in [
            ("{\"text\":\"one\"}\n{\"text\":\n{\"text\":\"three\"}", "not JSON"),
            ("{\"text\":\"one\"}\n{\"body\":\"b\",\"id\":1}", "the line has: body, id"),
            ("{\"text\":\"one\"}\n{\"text\":5}", "not a string"),
            ("{\"text\":\"one\"}\n[1]", "not a JSON object"),
        ] {
            let error = check(text).unwrap_err().to_string();
            assert!(error.contains("a.jsonl (line 2)") && error.contains(expected), "{error}");
        }
    }
}
