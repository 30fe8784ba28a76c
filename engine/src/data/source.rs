//! The documents of a corpus, in an order that depends on names alone.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::cargo_registry::{self, CARGO_REGISTRY};
use super::error::{Error, Result};
use super::readers::{self, Reader};

/// One text, the unit of packing and of the train/held-out split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The file it comes from, with the line or row inside.
    pub origin: String,
    /// The text.
    pub text: String,
}

/// A file or directory that was found but not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Which.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

/// What was read and what was not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CorpusSummary {
    /// Documents with text.
    pub num_documents: u64,
    /// Bytes of their text.
    pub num_bytes: u64,
    /// Documents without text, which were passed over.
    pub num_empty_documents: u64,
    /// What was found but not read.
    pub skipped: Vec<Skipped>,
}

/// Streams the documents of all files that a list of entries names.
pub struct Documents {
    key: &'static str,
    files: std::vec::IntoIter<SourceFile>,
    reader: Option<OpenFile>,
    text_field: String,
    remaining_bytes: u64,
    summary: CorpusSummary,
    /// Set after an error: what follows it is not looked at.
    failed: bool,
}

/// A file to read.
pub(super) struct SourceFile {
    pub(super) path: PathBuf,
    /// Named by the user, so that it is an error if it is not text; other files were found in a directory.
    pub(super) named: bool,
}

struct OpenFile {
    file: SourceFile,
    documents: Reader,
}

impl Documents {
    /// Finds the files of `entries`, which stand under `key` ("data.train") in the configuration.
    pub fn open(
        key: &'static str,
        entries: &[String],
        text_field: &str,
        max_bytes: Option<u64>,
    ) -> Result<Self> {
        let (files, skipped) = expand(key, entries)?;
        Ok(Documents {
            key,
            files: files.into_iter(),
            reader: None,
            text_field: text_field.into(),
            remaining_bytes: max_bytes.unwrap_or(u64::MAX),
            summary: CorpusSummary { skipped, ..CorpusSummary::default() },
            failed: false,
        })
    }

    /// What was read so far.
    pub fn summary(&self) -> &CorpusSummary {
        &self.summary
    }

    /// A file that both will read.
    pub(super) fn shared_path(&self, other: &Documents) -> Option<&Path> {
        let canonical = |file: &SourceFile| fs::canonicalize(&file.path).ok();
        let others: BTreeSet<PathBuf> = other.files.as_slice().iter().filter_map(canonical).collect();
        let is_shared = |file: &&SourceFile| canonical(file).is_some_and(|path| others.contains(&path));
        self.files.as_slice().iter().find(is_shared).map(|file| file.path.as_path())
    }

    fn next_document(&mut self) -> Result<Option<Document>> {
        while self.remaining_bytes > 0 {
            let Some(open) = &mut self.reader else {
                let Some(file) = self.files.next() else { break };
                let documents = readers::open(&file.path, &self.text_field, self.remaining_bytes)?;
                self.reader = Some(OpenFile { file, documents });
                continue;
            };
            match open.documents.next() {
                Some(Ok(document)) if document.text.is_empty() => self.summary.num_empty_documents += 1,
                Some(Ok(document)) => {
                    if let Some(document) = self.count(document) {
                        return Ok(Some(document));
                    }
                }
                Some(Err(Error::NotText { path, offset, found })) if !open.file.named => {
                    self.reader = None;
                    self.summary.skipped.push(Skipped { path, reason: format!("byte {offset}: {found}") });
                }
                Some(Err(error)) => return Err(error),
                None => self.reader = None,
            }
        }
        if self.summary.num_documents == 0 {
            return Err(Error::NoData {
                what: format!(
                    "{} holds no text ({} empty documents, {} files skipped)",
                    self.key,
                    self.summary.num_empty_documents,
                    self.summary.skipped.len()
                ),
                remedy: "name files with text",
            });
        }
        Ok(None)
    }

    /// Cuts the last document to the bytes that are left, and counts. Nothing where they hold no character.
    fn count(&mut self, mut document: Document) -> Option<Document> {
        if document.text.len() as u64 > self.remaining_bytes {
            let end = document.text.floor_char_boundary(self.remaining_bytes as usize);
            document.text.truncate(end);
            self.remaining_bytes = 0;
            if document.text.is_empty() {
                return None;
            }
        } else {
            self.remaining_bytes -= document.text.len() as u64;
        }
        self.summary.num_documents += 1;
        self.summary.num_bytes += document.text.len() as u64;
        Some(document)
    }
}

impl Iterator for Documents {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let document = self.next_document().transpose();
        self.failed = matches!(document, Some(Err(_)));
        document
    }
}

/// The files of each entry in the order of the entries, sorted within one; a file named twice is read once.
fn expand(key: &str, entries: &[String]) -> Result<(Vec<SourceFile>, Vec<Skipped>)> {
    let (mut files, mut skipped) = (Vec::new(), Vec::new());
    let mut seen = BTreeSet::new();
    for entry in entries {
        let (found, not_read) = expand_entry(key, entry)?;
        skipped.extend(not_read);
        for file in found {
            let identity = fs::canonicalize(&file.path).map_err(Error::read(&file.path))?;
            if seen.insert(identity) {
                files.push(file);
            } else {
                skipped.push(Skipped { path: file.path, reason: "named twice, read once".into() });
            }
        }
    }
    Ok((files, skipped))
}

fn expand_entry(key: &str, entry: &str) -> Result<(Vec<SourceFile>, Vec<Skipped>)> {
    let found = |path: PathBuf| SourceFile { path, named: false };
    if entry == CARGO_REGISTRY {
        let (paths, skipped) = cargo_registry::files()?;
        return Ok((paths.into_iter().map(found).collect(), skipped));
    }
    let path = Path::new(entry);
    if path.is_file() {
        return Ok((vec![SourceFile { path: path.into(), named: true }], Vec::new()));
    }
    let (paths, skipped) = if path.is_dir() {
        walk(path)?
    } else if entry.contains(['*', '?', '[']) {
        (matches(key, entry)?, Vec::new())
    } else {
        return Err(Error::NoData {
            what: format!("{key} names \"{entry}\", which is no file, directory or pattern"),
            remedy: "correct the path; a relative path starts at the current directory",
        });
    };
    if paths.is_empty() {
        return Err(Error::NoData {
            what: format!("{key} names \"{entry}\", which holds no file"),
            remedy: "correct the path or the pattern",
        });
    }
    Ok((paths.into_iter().map(found).collect(), skipped))
}

/// The files a pattern matches, sorted; directories it matches are passed over.
fn matches(key: &str, pattern: &str) -> Result<Vec<PathBuf>> {
    let matched = glob::glob(pattern).map_err(|error| Error::NoData {
        what: format!(
            "{key} has the pattern \"{pattern}\", which is wrong at character {}: {}",
            error.pos, error.msg
        ),
        remedy: "correct the pattern; * ? [a-z] and ** are understood",
    })?;
    let mut paths = Vec::new();
    for path in matched {
        let path = path.map_err(|error| {
            let path = error.path().to_owned();
            Error::Io { action: "read", path, source: error.into() }
        })?;
        if path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// All files under a directory, sorted. Hidden names and links to directories, which may lead in a circle,
/// are skipped.
pub(super) fn walk(directory: &Path) -> Result<(Vec<PathBuf>, Vec<Skipped>)> {
    let (mut paths, mut skipped) = (Vec::new(), Vec::new());
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).map_err(Error::read(&directory))? {
            let entry = entry.map_err(Error::read(&directory))?;
            let path = entry.path();
            let file_type = entry.file_type().map_err(Error::read(&path))?;
            let reason = if entry.file_name().to_string_lossy().starts_with('.') {
                "hidden"
            } else if file_type.is_dir() {
                directories.push(path);
                continue;
            } else if path.is_file() {
                paths.push(path);
                continue;
            } else {
                "neither a file nor a directory"
            };
            skipped.push(Skipped { path, reason: reason.into() });
        }
    }
    paths.sort();
    skipped.sort_by(|a, b| a.path.cmp(&b.path));
    Ok((paths, skipped))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(entries: &[String], max_bytes: Option<u64>) -> Result<(Vec<String>, CorpusSummary)> {
        let mut documents = Documents::open("data.train", entries, "text", max_bytes)?;
        let texts = documents.by_ref().map(|document| Ok(document?.text)).collect::<Result<_>>()?;
        Ok((texts, documents.summary().clone()))
    }

    fn corpus() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::create_dir_all(path("b/.hidden")).unwrap();
        fs::write(path("b/.hidden/x.txt"), "hidden").unwrap();
        fs::write(path("b/z.md"), "last").unwrap();
        fs::write(path("b/image.png"), b"\x89PNG\0\0").unwrap();
        fs::write(path("b/empty.txt"), "").unwrap();
        fs::write(path("a.txt"), "first").unwrap();
        let lines = b"{\"text\":\"second\"}\n{\"text\":\"third\"}\n";
        let mut gz = flate2::write::GzEncoder::new(
            fs::File::create(path("b/c.jsonl.gz")).unwrap(),
            flate2::Compression::fast(),
        );
        gz.write_all(lines).unwrap();
        gz.finish().unwrap();
        fs::write(path("b/d.jsonl.zst"), zstd::encode_all(&b"{\"text\":\"fourth\"}"[..], 1).unwrap())
            .unwrap();
        directory
    }

    #[test]
    fn a_directory_is_read_in_sorted_order_and_what_is_skipped_is_told() {
        let directory = corpus();
        let (texts, summary) = read(&[directory.path().display().to_string()], None).unwrap();
        assert_eq!(texts, ["first", "second", "third", "fourth", "last"]);
        assert_eq!((summary.num_documents, summary.num_bytes, summary.num_empty_documents), (5, 26, 1));
        let skipped: Vec<_> = summary.skipped.iter().map(|s| s.path.file_name().unwrap()).collect();
        assert_eq!(skipped, [".hidden", "image.png"]);
    }

    #[test]
    fn patterns_and_repeated_names_read_each_file_once() {
        let directory = corpus();
        let base = directory.path().display();
        let entries = [format!("{base}/b/z.md"), format!("{base}/**/*.[tm]*"), format!("{base}/a.txt")];
        let (texts, summary) = read(&entries, None).unwrap();
        assert_eq!(texts[..2], ["last", "first"]);
        assert_eq!(summary.skipped.iter().filter(|s| s.reason.contains("twice")).count(), 2);
    }

    #[test]
    fn max_bytes_cuts_the_corpus_in_its_order() {
        let directory = corpus();
        let (texts, summary) = read(&[directory.path().display().to_string()], Some(8)).unwrap();
        assert_eq!(texts, ["first", "sec"]);
        assert_eq!(summary.num_bytes, 8);
    }

    #[test]
    fn a_cut_inside_a_character_ends_the_corpus_there() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a.txt"), "\u{feff}ab\u{1F33E}").unwrap();
        fs::write(directory.path().join("b.txt"), "\u{1F33E}").unwrap();
        fs::write(directory.path().join("c.txt"), "c").unwrap();
        let entries = [directory.path().display().to_string()];
        for (max_bytes, expected) in [
            (4, &["ab"][..]),
            (6, &["ab\u{1F33E}"]),
            (8, &["ab\u{1F33E}"]),
            (10, &["ab\u{1F33E}", "\u{1F33E}"]),
        ] {
            let (texts, summary) = read(&entries, Some(max_bytes)).unwrap();
            assert_eq!(texts, expected, "{max_bytes}");
            let counted = (summary.num_documents as usize, summary.num_bytes as usize);
            assert_eq!(counted, (expected.len(), expected.concat().len()));
            assert_eq!(summary.num_empty_documents, 0);
        }
        let (texts, _) = read(&entries, Some(11)).unwrap();
        assert_eq!(texts, ["ab\u{1F33E}", "\u{1F33E}", "c"]);
    }

    #[test]
    fn a_named_file_that_is_no_text_is_an_error() {
        let directory = corpus();
        let error =
            read(&[format!("{}/b/image.png", directory.path().display())], None).unwrap_err().to_string();
        assert!(error.contains("image.png (byte 4)"), "{error}");
    }

    #[test]
    fn a_compressed_file_that_is_cut_short_is_an_error() {
        let directory = corpus();
        for name in ["b/c.jsonl.gz", "b/d.jsonl.zst"] {
            let path = directory.path().join(name);
            let whole = fs::read(&path).unwrap();
            fs::write(&path, &whole[..whole.len() - 4]).unwrap();
            let error = read(&[path.display().to_string()], None).unwrap_err().to_string();
            assert!(error.contains("cannot read") && error.contains(name), "{error}");
        }
    }

    #[test]
    fn missing_and_empty_data_are_named() {
        let directory = corpus();
        let base = directory.path().display();
        for (entry, expected) in [
            (format!("{base}/none.txt"), "none.txt\", which is no file"),
            (format!("{base}/*.rs"), "*.rs\", which holds no file"),
            (format!("{base}/b[/x"), "wrong at character"),
            (format!("{base}/b/empty.txt"), "data.train holds no text (1 empty documents"),
        ] {
            let error = read(&[entry], None).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
