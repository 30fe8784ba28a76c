//! Parquet: each row a document, in one column of strings. Only that column's pages are read.

use std::collections::VecDeque;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use parquet::basic::Type;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};

use crate::data::error::{Error, Result};
use crate::data::source::Document;

/// Rows decoded at once.
const BATCH_ROWS: usize = 256;
/// The largest column chunk that is accepted, unpacked.
const MAX_COLUMN_CHUNK_BYTES: i64 = 4 << 30;

/// Reads one row after another.
pub(super) struct ParquetDocuments {
    path: PathBuf,
    file: SerializedFileReader<File>,
    /// Number of the text column among the leaves.
    column: usize,
    /// Row groups opened so far.
    num_groups: usize,
    /// The text column of the open row group.
    values: Option<ColumnReaderImpl<ByteArrayType>>,
    /// Decoded rows not given out yet; `None` is a null.
    rows: VecDeque<Option<ByteArray>>,
    num_rows: u64,
}

impl ParquetDocuments {
    /// Reads the footer and finds the text column.
    pub(super) fn open(path: &Path, text_field: &str) -> Result<Self> {
        let file = File::open(path).map_err(Error::read(path))?;
        let file = guarded(path, "footer", || SerializedFileReader::new(file))?;
        let schema = file.metadata().file_metadata().schema_descr_ptr();
        let column = schema.columns().iter().position(|column| column.path().string() == text_field);
        let problem = match column {
            None => {
                let names: Vec<String> =
                    schema.columns().iter().take(20).map(|c| c.path().string()).collect();
                format!("no column \"{text_field}\"; the file has: {}", names.join(", "))
            }
            Some(column) if is_text_column(&schema.column(column)) => {
                return Ok(ParquetDocuments {
                    path: path.to_owned(),
                    file,
                    column,
                    num_groups: 0,
                    values: None,
                    rows: VecDeque::new(),
                    num_rows: 0,
                });
            }
            Some(_) => format!("the column \"{text_field}\" does not hold one string a row"),
        };
        Err(content_error(path, "schema".into(), problem))
    }

    fn next_document(&mut self) -> Result<Option<Document>> {
        while self.rows.is_empty() {
            if self.values.is_none() && !self.open_next_group()? {
                return Ok(None);
            }
            self.decode_rows()?;
        }
        let Some(row) = self.rows.pop_front() else { return Ok(None) };
        self.num_rows += 1;
        let origin = format!("{}:{}", self.path.display(), self.num_rows);
        let text = match row {
            None => String::new(),
            Some(bytes) => std::str::from_utf8(bytes.data())
                .map_err(|_| {
                    let place = format!("row {}", self.num_rows);
                    content_error(&self.path, place, "the text is not UTF-8".into())
                })?
                .to_owned(),
        };
        Ok(Some(Document { origin, text }))
    }

    /// Opens the text column of the next row group; false after the last one.
    fn open_next_group(&mut self) -> Result<bool> {
        let number = self.num_groups;
        if number == self.file.num_row_groups() {
            return Ok(false);
        }
        self.num_groups += 1;
        let place = format!("row group {number}");
        let bytes = self.file.metadata().row_group(number).column(self.column).uncompressed_size();
        if !(0..=MAX_COLUMN_CHUNK_BYTES).contains(&bytes) {
            let problem = format!("the text takes {bytes} bytes, expected at most {MAX_COLUMN_CHUNK_BYTES}");
            return Err(content_error(&self.path, place, problem));
        }
        let reader =
            guarded(&self.path, &place, || self.file.get_row_group(number)?.get_column_reader(self.column))?;
        match reader {
            ColumnReader::ByteArrayColumnReader(values) => self.values = Some(values),
            _ => return Err(content_error(&self.path, place, "the text column holds no strings".into())),
        }
        Ok(true)
    }

    /// Decodes a batch of rows; the column is closed after its last one.
    fn decode_rows(&mut self) -> Result<()> {
        let Some(values) = self.values.as_mut() else { return Ok(()) };
        let place = format!("row group {}", self.num_groups - 1);
        let (mut levels, mut present) = (Vec::new(), Vec::new());
        let (num_rows, ..) = guarded(&self.path, &place, || {
            values.read_records(BATCH_ROWS, Some(&mut levels), None, &mut present)
        })?;
        if num_rows == 0 {
            self.values = None;
            return Ok(());
        }
        // A required column has no levels; an optional one has the highest level where a value is present.
        let max_level =
            self.file.metadata().file_metadata().schema_descr().column(self.column).max_def_level();
        let mut present = present.into_iter();
        match levels.is_empty() {
            true => self.rows.extend(present.map(Some)),
            false => self.rows.extend(
                levels.into_iter().map(|level| if level == max_level { present.next() } else { None }),
            ),
        }
        Ok(())
    }
}

impl Iterator for ParquetDocuments {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_document().transpose()
    }
}

fn is_text_column(column: &parquet::schema::types::ColumnDescriptor) -> bool {
    column.physical_type() == Type::BYTE_ARRAY && column.max_rep_level() == 0
}

/// Calls into the decoder, which may panic on a damaged file, and turns either failure into an error.
fn guarded<T>(
    path: &Path,
    place: &str,
    body: impl FnOnce() -> std::result::Result<T, ParquetError>,
) -> Result<T> {
    let problem = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => format!("not readable as Parquet ({error})"),
        Err(_) => "not readable as Parquet (the decoder gave up)".into(),
    };
    Err(content_error(path, place.into(), problem))
}

fn content_error(path: &Path, place: String, problem: String) -> Error {
    Error::Content {
        path: path.to_owned(),
        place,
        problem,
        remedy: "give a whole Parquet file (uncompressed, Snappy, gzip or Zstandard) with its text in the column that \
                 data.text_field names",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::basic::Compression;
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;

    /// Two row groups of an id and an optional text.
    fn write(path: &Path, compression: Compression) {
        let schema = "message rows { REQUIRED INT64 id; OPTIONAL BYTE_ARRAY text (UTF8); }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = WriterProperties::builder().set_compression(compression).build();
        let mut writer =
            SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::new(properties)).unwrap();
        for (texts, levels) in [(vec!["one", "two"], vec![1, 0, 1]), (vec!["three"], vec![1])] {
            let mut group = writer.next_row_group().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            let ids: Vec<i64> = (0..levels.len() as i64).collect();
            column.typed::<parquet::data_type::Int64Type>().write_batch(&ids, None, None).unwrap();
            column.close().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            let texts: Vec<ByteArray> = texts.into_iter().map(ByteArray::from).collect();
            column.typed::<ByteArrayType>().write_batch(&texts, Some(&levels), None).unwrap();
            column.close().unwrap();
            group.close().unwrap();
        }
        writer.close().unwrap();
    }

    #[test]
    fn rows_come_in_order_over_row_groups_with_nulls_as_empty_text() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.parquet");
        for compression in
            [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(Default::default())]
        {
            write(&path, compression);
            let texts: Vec<String> =
                ParquetDocuments::open(&path, "text").unwrap().map(|d| d.unwrap().text).collect();
            assert_eq!(texts, ["one", "", "two", "three"], "{compression:?}");
        }
    }

    #[test]
    fn a_missing_or_numeric_column_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.parquet");
        write(&path, Compression::UNCOMPRESSED);
        let error = ParquetDocuments::open(&path, "body").err().unwrap().to_string();
        assert!(error.contains("no column \"body\"; the file has: id, text"), "{error}");
        let error = ParquetDocuments::open(&path, "id").err().unwrap().to_string();
        assert!(error.contains("does not hold one string a row"), "{error}");
    }

    #[test]
    fn no_changed_byte_brings_the_reader_down() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.parquet");
        write(&path, Compression::SNAPPY);
        let whole = std::fs::read(&path).unwrap();
        let mut num_refused = 0;
        for place in 0..whole.len() {
            let mut changed = whole.clone();
            changed[place] ^= 0xFF;
            std::fs::write(&path, changed).unwrap();
            let result: Result<Vec<Document>> =
                ParquetDocuments::open(&path, "text").and_then(|documents| documents.collect());
            num_refused += usize::from(result.is_err());
        }
        assert!(num_refused > whole.len() / 4, "{num_refused} of {}", whole.len());
    }

    #[test]
    fn half_a_file_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.parquet");
        write(&path, Compression::UNCOMPRESSED);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let error = ParquetDocuments::open(&path, "text").err().unwrap().to_string();
        assert!(error.contains("a.parquet (footer)"), "{error}");
    }
}
