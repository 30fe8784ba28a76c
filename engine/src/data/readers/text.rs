//! A UTF-8 text file: one document.

use std::io::{BufRead, Read};
use std::path::Path;

use super::MAX_TEXT_BYTES;
use crate::data::error::{Error, Result};
use crate::data::source::Document;

/// What is read beyond the wanted bytes. A byte order mark and a character that is cut off do not make the text too
/// short, so that the caller, who cuts it, can tell a long file from a short one.
const SPARE_BYTES: u64 = 8;

/// Reads the whole file, or a little more than its first `wanted_bytes`.
pub(super) fn read(path: &Path, mut file: impl BufRead, wanted_bytes: u64) -> Result<Document> {
    // A large binary file shows itself in its first block: it is not read to its end.
    let first_block = file.fill_buf().map_err(Error::read(path))?;
    refuse_zero_bytes(path, first_block)?;
    let mut bytes = Vec::new();
    let limit_bytes = wanted_bytes.min(MAX_TEXT_BYTES + 1) + SPARE_BYTES;
    file.take(limit_bytes).read_to_end(&mut bytes).map_err(Error::read(path))?;
    if wanted_bytes > MAX_TEXT_BYTES && bytes.len() as u64 > MAX_TEXT_BYTES {
        return Err(Error::Content {
            path: path.to_owned(),
            place: format!("byte {MAX_TEXT_BYTES}"),
            problem: format!("one document is longer than {MAX_TEXT_BYTES} bytes"),
            remedy: "split the file, or set data.max_bytes",
        });
    }
    let is_whole = (bytes.len() as u64) < limit_bytes;
    Ok(Document { origin: path.display().to_string(), text: to_text(path, bytes, is_whole)? })
}

/// Checks that the bytes are text; a character that a cut has split at the end is dropped.
fn to_text(path: &Path, mut bytes: Vec<u8>, is_whole: bool) -> Result<String> {
    refuse_zero_bytes(path, &bytes)?;
    if let Err(error) = std::str::from_utf8(&bytes) {
        let offset = error.valid_up_to();
        if is_whole || error.error_len().is_some() {
            let found = format!("byte {:#04x} begins no character", bytes[offset]);
            return Err(Error::NotText { path: path.to_owned(), offset, found });
        }
        bytes.truncate(offset);
    }
    if bytes.starts_with("\u{feff}".as_bytes()) {
        bytes.drain(..3);
    }
    String::from_utf8(bytes).map_err(|error| Error::NotText {
        path: path.to_owned(),
        offset: error.utf8_error().valid_up_to(),
        found: "no character begins here".into(),
    })
}

fn refuse_zero_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    match bytes.iter().position(|&byte| byte == 0) {
        None => Ok(()),
        Some(offset) => {
            Err(Error::NotText { path: path.to_owned(), offset, found: "a zero byte stands here".into() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], wanted_bytes: u64) -> Result<String> {
        read(Path::new("a.txt"), bytes, wanted_bytes).map(|document| document.text)
    }

    #[test]
    fn text_is_read_as_it_stands_without_its_byte_order_mark() {
        assert_eq!(
            check("\u{feff}one\r\ntwo \u{1F33E}\n".as_bytes(), u64::MAX).unwrap(),
            "one\r\ntwo \u{1F33E}\n"
        );
    }

    #[test]
    fn a_long_file_gives_more_than_is_wanted_and_ends_at_a_whole_character() {
        let text = "\u{feff}\u{1F33E}".to_owned() + &"\u{1F33E}".repeat(9);
        for wanted_bytes in 0..9 {
            let read = check(text.as_bytes(), wanted_bytes).unwrap();
            assert!(read.len() as u64 > wanted_bytes && read.len() < 20, "{wanted_bytes}: {}", read.len());
            assert!(read.chars().all(|c| c == '\u{1F33E}'));
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_named_with_their_offset() {
        let error = check(b"abc\xff\xfe", u64::MAX).unwrap_err().to_string();
        assert!(error.contains("a.txt (byte 3)") && error.contains("0xff"), "{error}");
        let error = check(b"ab\0", u64::MAX).unwrap_err().to_string();
        assert!(error.contains("a.txt (byte 2)"), "{error}");
        assert!(check(b"ab\xf0\x9f", u64::MAX).is_err(), "a file that ends inside a character");
    }
}
