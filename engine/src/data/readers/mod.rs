//! One reader for each kind of file: UTF-8 text, JSON lines and Parquet.

mod json_lines;
mod parquet;
mod text;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use super::error::{Error, Result};
use super::source::Document;

/// The longest line or text that is read into memory at once, so that a damaged or hostile file cannot ask
/// for more.
const MAX_LINE_BYTES: u64 = 256 << 20;
/// The longest text file that is one document; `data.max_bytes` cuts a longer one.
const MAX_TEXT_BYTES: u64 = 4 << 30;

/// The documents of one file in its order. What follows an error is not asked for.
pub(super) type Reader = Box<dyn Iterator<Item = Result<Document>> + Send>;

/// Opens a file by its name; `wanted_bytes` is how much text the caller will take at most.
pub(super) fn open(path: &Path, text_field: &str, wanted_bytes: u64) -> Result<Reader> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    if name.ends_with(".parquet") {
        return Ok(Box::new(parquet::ParquetDocuments::open(path, text_field)?));
    }
    let file = File::open(path).map_err(Error::read(path))?;
    let unpacked: Box<dyn BufRead + Send> = if name.ends_with(".gz") {
        Box::new(BufReader::new(flate2::read::MultiGzDecoder::new(file)))
    } else if name.ends_with(".zst") {
        Box::new(BufReader::new(zstd::Decoder::new(file).map_err(Error::read(path))?))
    } else {
        Box::new(BufReader::new(file))
    };
    let inner_name = name.trim_end_matches(".gz").trim_end_matches(".zst");
    if inner_name.ends_with(".jsonl") || inner_name.ends_with(".ndjson") {
        Ok(Box::new(json_lines::JsonLines::new(path, unpacked, text_field)))
    } else {
        Ok(Box::new(std::iter::once(text::read(path, unpacked, wanted_bytes))))
    }
}
