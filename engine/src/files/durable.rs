//! A file that is written once, from its start to its end, and then made durable.
//!
//! Large files go past the page cache (`O_DIRECT`), a block at a time: a checkpoint is not read again soon, its copy
//! there would push out what is, and copying it there costs more than a fast disk needs to write it. What does not fill
//! a block, at the end of every file, goes the usual way; so does everything where the file system wants it so.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::{FileError, attempt};

/// Bytes that are written at once.
const BLOCK_BYTES: usize = 4 << 20;

/// Memory and position of direct writes are multiples of this; no disk wants more.
const DIRECT_ALIGNMENT: usize = 4096;

/// A file being written that names itself in every error.
#[derive(Debug)]
pub(crate) struct DurableFile {
    file: File,
    path: PathBuf,
    block: Vec<u8>,
    /// Where the aligned part of the block starts.
    start: usize,
    /// Bytes that wait there.
    waiting: usize,
}

impl DurableFile {
    /// Creates or empties the file.
    pub(crate) fn create(path: &Path) -> Result<Self, FileError> {
        let file = attempt("create", path, || File::create(path))?;
        // Zeroed memory that takes no room before it is touched: a small file costs little.
        let block = vec![0; BLOCK_BYTES + DIRECT_ALIGNMENT];
        let start = block.as_ptr().align_offset(DIRECT_ALIGNMENT);
        Ok(DurableFile { file, path: path.to_owned(), block, start, waiting: 0 })
    }

    /// Appends `bytes`. They reach the file with a full block, or with [`flush`](Self::flush).
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> Result<(), FileError> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.waiting));
            let end = self.start + self.waiting;
            self.block[end..end + now.len()].copy_from_slice(now);
            self.waiting += now.len();
            bytes = later;
            if self.waiting == BLOCK_BYTES {
                self.write_out(true)?;
            }
        }
        Ok(())
    }

    /// Hands all bytes to the system.
    pub(crate) fn flush(&mut self) -> Result<(), FileError> {
        if self.waiting > 0 { self.write_out(false) } else { Ok(()) }
    }

    /// Makes the content durable.
    pub(crate) fn sync(&mut self) -> Result<(), FileError> {
        self.flush()?;
        attempt("sync", &self.path, || self.file.sync_all())
    }

    fn write_out(&mut self, direct: bool) -> Result<(), FileError> {
        let file = &mut self.file;
        let bytes = &self.block[self.start..self.start + self.waiting];
        attempt("write", &self.path, || write_all(file, bytes, direct))?;
        self.waiting = 0;
        Ok(())
    }
}

fn write_all(file: &mut File, mut bytes: &[u8], direct: bool) -> io::Result<()> {
    let mut direct = set_direct(file, direct);
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            // The disk wants another alignment, or wrote a part that left the rest unaligned.
            Err(error) if direct && error.kind() == ErrorKind::InvalidInput => {
                direct = set_direct(file, false);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Has the file written past the page cache or through it. False where it goes through.
#[cfg(target_os = "linux")]
fn set_direct(file: &File, direct: bool) -> bool {
    // A device has ways of its own, and to a pipe the flag means something else.
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return false;
    }
    use std::os::fd::AsRawFd;
    // SAFETY: `file` is open during both calls, and they change no memory.
    unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
        let flags = if direct { flags | libc::O_DIRECT } else { flags & !libc::O_DIRECT };
        libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) == 0 && direct
    }
}

#[cfg(not(target_os = "linux"))]
fn set_direct(_: &File, _: bool) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_of_any_length_in_pieces_of_any_length_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let content: Vec<u8> =
            (0..2 * BLOCK_BYTES as u32 + 1).map(|i| (i.wrapping_mul(0x9E37_79B1) >> 24) as u8).collect();
        let path = directory.path().join("file");
        for length in [0, 1, DIRECT_ALIGNMENT, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, content.len()] {
            for piece in [1 << 10, 100_003, content.len()] {
                let mut file = DurableFile::create(&path).unwrap();
                for bytes in content[..length].chunks(piece) {
                    file.write(bytes).unwrap();
                }
                file.sync().unwrap();
                assert!(fs::read(&path).unwrap() == content[..length], "{length} bytes by {piece}");
            }
        }
    }

    #[test]
    fn a_write_that_must_be_aligned_and_is_not_goes_through_the_cache() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let mut file = File::create(&path).unwrap();
        for _ in 0..2 {
            write_all(&mut file, &[7; 1000], true).unwrap();
        }
        assert_eq!(fs::read(&path).unwrap(), [7; 2000]);
    }
}
