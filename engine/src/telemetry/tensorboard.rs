//! Scalars for TensorBoard: one event file a process in the run directory.
//!
//! The file is a sequence of records (length, its checksum, an `Event` message, its checksum); the few fields that
//! scalars need of the protocol buffer are written here by hand. Source: tensorflow/core/lib/io/record_writer.h,
//! tensorflow/core/util/event.proto and framework/summary.proto.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::files::{self, FileError};
use crate::telemetry::StepMetrics;

/// An event file that grows by an event a step.
#[derive(Debug)]
pub struct TensorBoard {
    path: PathBuf,
    file: File,
}

impl TensorBoard {
    /// Begins an event file in `run_directory`. What earlier files hold beyond `resumed_step` is done again and will be
    /// passed over by TensorBoard.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn create(run_directory: &Path, resumed_step: u64) -> Result<Self, FileError> {
        let time = wall_time();
        let name = format!("events.out.tfevents.{:.6}.{}.wattle", time, std::process::id());
        let path = run_directory.join(name);
        let file =
            files::attempt("create", &path, || OpenOptions::new().create_new(true).append(true).open(&path))?;
        let mut board = TensorBoard { path, file };
        let mut version = Message::default();
        version.double(1, time);
        version.bytes(3, b"brain.Event:2");
        board.write(&version)?;
        let mut session = Message::default();
        // SessionLog { status: START }
        session.varint(1, 1);
        let mut start = Message::default();
        start.double(1, time);
        start.varint(2, resumed_step);
        start.bytes(7, &session.0);
        board.write(&start)?;
        Ok(board)
    }

    /// Adds a step's scalars. Values that are unknown or not finite are left out.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn step(&mut self, metrics: &StepMetrics) -> Result<(), FileError> {
        let mut summary = Message::default();
        for (tag, value) in scalars(metrics) {
            let mut scalar = Message::default();
            scalar.bytes(1, tag.as_bytes());
            scalar.float(2, value as f32);
            summary.bytes(1, &scalar.0);
        }
        let mut event = Message::default();
        event.double(1, wall_time());
        event.varint(2, metrics.step);
        event.bytes(5, &summary.0);
        self.write(&event)
    }

    fn write(&mut self, event: &Message) -> Result<(), FileError> {
        let data = &event.0;
        let length = (data.len() as u64).to_le_bytes();
        let record = [&length[..], &masked_checksum(&length), data, &masked_checksum(data)].concat();
        // One write: a kill leaves no half of a record behind another.
        files::attempt("write", &self.path, || self.file.write_all(&record))
    }
}

/// Tags in groups, as TensorBoard folds them.
fn scalars(metrics: &StepMetrics) -> impl Iterator<Item = (&'static str, f64)> {
    [
        ("loss/total", Some(metrics.loss)),
        ("loss/cross_entropy", Some(metrics.ce_loss)),
        ("loss/balance", Some(metrics.balance_loss)),
        ("loss/z", Some(metrics.z_loss)),
        ("loss/held_out", metrics.val_loss),
        ("optimizer/gradient_norm", Some(metrics.grad_norm)),
        ("optimizer/learning_rate", Some(metrics.lr)),
        ("optimizer/batch_tokens", Some(metrics.batch_tokens as f64)),
        ("routing/active_experts_mean", Some(metrics.k_mean)),
        ("routing/expert_load_cv", Some(metrics.expert_load_cv)),
        ("routing/dropped_tokens", Some(metrics.dropped_tokens as f64)),
        ("speed/tokens_per_second", Some(metrics.tokens_per_second)),
        ("speed/mfu", Some(metrics.mfu)),
        ("energy/joules", metrics.joules),
        ("energy/joules_per_token", metrics.joules_per_token),
        ("energy/watts", metrics.watts),
        ("carbon/grams_co2e", metrics.grams_co2e),
        ("carbon/grams_co2e_total", Some(metrics.grams_co2e_total)),
    ]
    .into_iter()
    .filter_map(|(tag, value)| Some((tag, value.filter(|value| value.is_finite())?)))
}

fn wall_time() -> f64 {
    // A clock before 1970 is no reason to stop a run.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// CRC-32C, turned and shifted as the format wants it, so that a checksum of checksums is not weak.
fn masked_checksum(data: &[u8]) -> [u8; 4] {
    (crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)).to_le_bytes()
}

/// A protocol buffer message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn key(&mut self, field: u64, wire_type: u64) {
        self.raw_varint(field << 3 | wire_type);
    }

    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint(&mut self, field: u64, value: u64) {
        self.key(field, 0);
        self.raw_varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key(field, 2);
        self.raw_varint(value.len() as u64);
        self.0.extend(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_encoded_as_the_protocol_buffer_guide_says() {
        // The guide's own examples: field 1 = 150, field 2 = "testing".
        let mut message = Message::default();
        message.varint(1, 150);
        message.bytes(2, b"testing");
        assert_eq!(message.0, [0x08, 0x96, 0x01, 0x12, 0x07, 0x74, 0x65, 0x73, 0x74, 0x69, 0x6e, 0x67]);
    }

    /// Origin of the checksum: RFC 3720, B.4, 32 bytes of zeros.
    #[test]
    fn checksums_are_crc_32c_and_masked() {
        let crc = 0x8a91_36aa_u32;
        assert_eq!(crc32c::crc32c(&[0; 32]), crc);
        let masked = crc.rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(masked_checksum(&[0; 32]), masked.to_le_bytes());
    }

    #[test]
    fn a_file_starts_with_its_version_and_every_record_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let board = TensorBoard::create(directory.path(), 7).unwrap();
        let bytes = std::fs::read(&board.path).unwrap();
        let (mut at, mut records) = (0, Vec::new());
        while at < bytes.len() {
            let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            assert_eq!(bytes[at + 8..at + 12], masked_checksum(&bytes[at..at + 8]));
            let data = &bytes[at + 12..at + 12 + length];
            assert_eq!(bytes[at + 12 + length..at + 16 + length], masked_checksum(data));
            records.push(data.to_vec());
            at += 16 + length;
        }
        assert_eq!(records.len(), 2);
        assert!(records[0].ends_with(b"brain.Event:2"));
        assert!(records[1].ends_with(&[2 << 3, 7, 7 << 3 | 2, 2, 8, 1]), "the start of a session at step 7");
    }
}
