//! The safetensors container: an 8-byte little-endian header length, a JSON header, then the tensors' bytes.
//!
//! Written here and not by the `safetensors` crate, because the bytes must be hashed and synced on their way, without
//! a second copy of the model in memory. Reading is strict, since a header is somebody else's claim: every length is
//! checked against the file, in checked arithmetic, before anything of its size is allocated.
//! Format: <https://github.com/huggingface/safetensors>.

mod header;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use wattle_kernels::{DType, Device, Element, Tensor, bf16};

use super::error::{CheckpointError, Result};
use super::state::NamedTensor;
use crate::files::{self, DurableFile, FileError};
pub(crate) use header::{Entry, Header, Stored};

/// Elements are converted, hashed and written in pieces of this size: two fit in a second-level cache.
const CHUNK_BYTES: usize = 256 << 10;

/// Reads all tensors of a safetensors file, in the order of their bytes.
///
/// # Errors
/// [`Corrupt`](super::CheckpointError::Corrupt) for a header that breaks the format or does not fit the file,
/// [`Unsupported`](super::CheckpointError::Unsupported) for an element type or a rank that tensors cannot have,
/// [`Io`](super::CheckpointError::Io), and [`Tensor`](super::CheckpointError::Tensor) when memory runs out.
pub fn read(path: &Path) -> Result<Vec<NamedTensor>> {
    Ok(Reader::open(path)?.read_tensors(|_| true)?.0)
}

/// Writes tensors to a safetensors file, which appears whole or not at all.
///
/// # Errors
/// [`Io`](super::CheckpointError::Io); [`Tensor`](super::CheckpointError::Tensor) for a name used twice; the source's.
pub(crate) fn write<S: Source>(path: &Path, tensors: &S) -> Result<(), S::Error> {
    let header = Header::new(tensors.describe())?;
    files::replace_atomically(path, |file| {
        file.write(&header.to_bytes())?;
        for entry in &header.entries {
            tensors.give(entry.index, &mut |bytes| Ok(file.write(bytes)?))?;
        }
        Ok(())
    })
}

/// Tensors on their way into a file: in memory, or read piece by piece from where they lie.
pub(crate) trait Source {
    /// Why a tensor cannot be had.
    type Error: From<CheckpointError> + From<FileError>;

    /// Name, element type and shape of each.
    fn describe(&self) -> Vec<(String, Stored, Vec<usize>)>;

    /// Hands all little-endian bytes of the tensor at `index` of the description to `take`, a bounded piece at a time.
    fn give(&self, index: usize, take: &mut Take<'_, Self::Error>) -> Result<(), Self::Error>;
}

/// Takes the next bytes of a tensor.
pub(crate) type Take<'a, E> = dyn FnMut(&[u8]) -> Result<(), E> + 'a;

impl Source for Vec<NamedTensor> {
    type Error = CheckpointError;

    fn describe(&self) -> Vec<(String, Stored, Vec<usize>)> {
        let describe = |NamedTensor { name, tensor }: &NamedTensor| {
            (name.clone(), Stored::from(tensor.dtype()), tensor.shape().to_vec())
        };
        self.iter().map(describe).collect()
    }

    fn give(&self, index: usize, take: &mut Take<'_, CheckpointError>) -> Result<()> {
        let tensor = &self[index].tensor;
        match tensor.dtype() {
            DType::F32 => encode(tensor.data()?, f32::to_le_bytes, take),
            DType::Bf16 => encode(tensor.data()?, bf16::to_le_bytes, take),
            DType::I32 => encode(tensor.data()?, i32::to_le_bytes, take),
            DType::I8 => encode(tensor.data()?, i8::to_le_bytes, take),
            DType::U8 => encode(tensor.data()?, u8::to_le_bytes, take),
        }
    }
}

/// Opens a file and reads its header, which has been found to fit it.
///
/// # Errors
/// As [`read`].
pub(crate) fn open_header(path: &Path) -> Result<(File, Header)> {
    let Reader { header, file, .. } = Reader::open(path)?;
    Ok((file, header))
}

/// What was written, for the manifest.
pub(super) struct Written {
    /// Of the whole file.
    pub(super) blake3: blake3::Hash,
    /// Of each tensor's bytes, in the order of the header's entries.
    pub(super) tensor_blake3: Vec<blake3::Hash>,
}

/// Writes the header and the tensors it describes, hashing both on the way.
pub(super) fn write_hashed<S: Source>(
    file: &mut DurableFile,
    header: &Header,
    tensors: &S,
) -> Result<Written, S::Error> {
    let mut file_hasher = blake3::Hasher::new();
    let header_bytes = header.to_bytes();
    file_hasher.update(&header_bytes);
    file.write(&header_bytes)?;
    let mut tensor_blake3 = Vec::with_capacity(header.entries.len());
    for entry in &header.entries {
        let mut tensor_hasher = blake3::Hasher::new();
        tensors.give(entry.index, &mut |bytes| {
            rayon::join(|| tensor_hasher.update(bytes), || file_hasher.update(bytes));
            Ok(file.write(bytes)?)
        })?;
        tensor_blake3.push(tensor_hasher.finalize());
    }
    Ok(Written { blake3: file_hasher.finalize(), tensor_blake3 })
}

/// A file whose header has been read and found to fit it.
pub(super) struct Reader {
    /// What the file holds.
    pub(super) header: Header,
    path: PathBuf,
    file: File,
    /// Has taken the header.
    hasher: blake3::Hasher,
}

impl Reader {
    /// Opens a file and checks its header.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let (file, file_bytes) = files::attempt("open", path, || {
            let file = File::open(path)?;
            let bytes = file.metadata()?.len();
            Ok((file, bytes))
        })?;
        let mut hasher = blake3::Hasher::new();
        let mut read = |bytes: &mut [u8]| -> Result<()> {
            files::attempt("read", path, || (&file).read_exact(bytes))?;
            hasher.update(bytes);
            Ok(())
        };
        let header = Header::read(path, file_bytes, &mut read)?;
        Ok(Reader { header, path: path.to_owned(), file, hasher })
    }

    /// The tensors whose names are `wanted`, in the order of the header's entries, and the BLAKE3 of the whole file.
    pub(super) fn read_tensors(
        mut self,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<(Vec<NamedTensor>, blake3::Hash)> {
        let mut tensors = Vec::with_capacity(self.header.entries.len());
        for entry in &self.header.entries {
            let mut next = |bytes: &mut [u8]| {
                files::attempt("read", &self.path, || self.file.read_exact(bytes))?;
                self.hasher.update(bytes);
                Ok(())
            };
            if !wanted(&entry.name) {
                pass_over(entry.bytes, next)?;
                continue;
            }
            let Some(dtype) = entry.stored.dtype() else {
                let what = format!("tensor {} has the element type {}", entry.name, entry.stored.name());
                return Err(CheckpointError::Unsupported { path: self.path, what });
            };
            let mut tensor = Tensor::scratch(&entry.shape, dtype, Device::Cpu)?;
            fill(&mut tensor, &mut next)?;
            tensors.push(NamedTensor { name: entry.name.clone(), tensor });
        }
        Ok((tensors, self.hasher.finalize()))
    }

    /// Name and BLAKE3 of each tensor, in the order of the header's entries.
    pub(super) fn hash_tensors(mut self) -> Result<Vec<(String, blake3::Hash)>> {
        let hash = |entry: Entry| {
            let mut hasher = blake3::Hasher::new();
            pass_over(entry.bytes, |bytes| {
                files::attempt("read", &self.path, || self.file.read_exact(bytes))?;
                hasher.update(bytes);
                Ok(())
            })?;
            Ok((entry.name, hasher.finalize()))
        };
        self.header.entries.into_iter().map(hash).collect()
    }
}

/// Cuts values into pieces and hands over their bytes.
pub(crate) fn encode<T: Copy, E, const N: usize>(
    values: &[T],
    to_bytes: impl Fn(T) -> [u8; N],
    take: &mut Take<'_, E>,
) -> Result<(), E> {
    let mut buffer = vec![0; CHUNK_BYTES.min(values.len() * N)];
    for values in values.chunks(CHUNK_BYTES / N) {
        let bytes = &mut buffer[..values.len() * N];
        for (to, &value) in bytes.as_chunks_mut::<N>().0.iter_mut().zip(values) {
            *to = to_bytes(value);
        }
        take(bytes)?;
    }
    Ok(())
}

/// Has all bytes of a tensor written into a buffer, piece by piece, and keeps none.
fn pass_over(tensor_bytes: u64, mut give: impl FnMut(&mut [u8]) -> Result<()>) -> Result<()> {
    let mut buffer = vec![0; tensor_bytes.min(CHUNK_BYTES as u64) as usize];
    let mut left = tensor_bytes;
    while left > 0 {
        let bytes = &mut buffer[..left.min(CHUNK_BYTES as u64) as usize];
        give(bytes)?;
        left -= bytes.len() as u64;
    }
    Ok(())
}

/// Fills a tensor from the bytes that `give` writes into the piece it is handed.
fn fill(tensor: &mut Tensor, give: impl FnMut(&mut [u8]) -> Result<()>) -> Result<()> {
    match tensor.dtype() {
        DType::F32 => decode(tensor, f32::from_le_bytes, give),
        DType::Bf16 => decode(tensor, bf16::from_le_bytes, give),
        DType::I32 => decode(tensor, i32::from_le_bytes, give),
        DType::I8 => decode(tensor, i8::from_le_bytes, give),
        DType::U8 => decode(tensor, u8::from_le_bytes, give),
    }
}

fn decode<T: Element, const N: usize>(
    tensor: &mut Tensor,
    from_bytes: impl Fn([u8; N]) -> T,
    mut give: impl FnMut(&mut [u8]) -> Result<()>,
) -> Result<()> {
    let values = tensor.data_mut::<T>()?;
    let mut buffer = vec![0; CHUNK_BYTES.min(values.len() * N)];
    for values in values.chunks_mut(CHUNK_BYTES / N) {
        let bytes = &mut buffer[..values.len() * N];
        give(bytes)?;
        for (value, from) in values.iter_mut().zip(bytes.as_chunks::<N>().0) {
            *value = from_bytes(*from);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn file_of(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
    }

    fn read_bytes(bytes: &[u8]) -> Result<Vec<NamedTensor>> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.safetensors");
        fs::write(&path, bytes).unwrap();
        read(&path)
    }

    #[test]
    fn the_safetensors_crate_reads_what_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.safetensors");
        let named = |name: &str, tensor| NamedTensor { name: name.to_owned(), tensor };
        let written = vec![
            named("odd", Tensor::from_slice(&[1u8, 2, 3], &[3]).unwrap()),
            named("half", Tensor::from_slice(&[bf16::from_bits(0x7f81)], &[1]).unwrap()),
            named("empty", Tensor::from_slice::<i32>(&[], &[2, 0]).unwrap()),
            named("wide", Tensor::from_slice(&[f32::from_bits(0x7f80_0001), 2.0], &[1, 2]).unwrap()),
            named("signed", Tensor::from_slice(&[-1i8], &[]).unwrap()),
            named("ids \"quoted\"\n", Tensor::from_slice(&[7i32], &[1]).unwrap()),
        ];
        write(&path, &written).unwrap();
        let bytes = fs::read(&path).unwrap();
        let other = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(other.len(), written.len());
        for (index, NamedTensor { name, tensor }) in written.iter().enumerate() {
            let view = other.tensor(name).unwrap();
            assert_eq!(format!("{}", view.dtype()), Stored::from(tensor.dtype()).name());
            assert_eq!(view.shape(), tensor.shape());
            let mut given = Vec::new();
            let mut take = |bytes: &[u8]| {
                given.extend_from_slice(bytes);
                Ok(())
            };
            written.give(index, &mut take).unwrap();
            assert_eq!(view.data(), given, "{name}");
            let offset = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
            assert_eq!(offset % tensor.dtype().size_in_bytes(), 0, "{name} is not aligned");
        }
        // The order of the bytes: wide elements first.
        let names: Vec<String> = read(&path).unwrap().into_iter().map(|tensor| tensor.name).collect();
        assert_eq!(names, ["empty", "wide", "ids \"quoted\"\n", "half", "odd", "signed"]);
    }

    #[test]
    fn what_the_safetensors_crate_writes_is_read() {
        let data: Vec<u8> = [1.5f32, -0.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let view =
            ::safetensors::tensor::TensorView::new(::safetensors::Dtype::F32, vec![2, 1], &data).unwrap();
        let bytes = ::safetensors::serialize([("w", view)], None).unwrap();
        let tensors = read_bytes(&bytes).unwrap();
        assert_eq!(
            (tensors.len(), tensors[0].name.as_str(), tensors[0].tensor.shape()),
            (1, "w", &[2, 1][..])
        );
        assert_eq!(tensors[0].tensor.data::<f32>().unwrap(), [1.5, -0.0]);
    }

    #[test]
    fn a_header_that_lies_is_refused_and_says_what_is_wrong() {
        let entry = |name: &str, shape: &str, start: u64, end: u64| {
            format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{start},{end}]}}"#)
        };
        let two = |a: String, b: String| format!("{{{a},{b}}}");
        let one = |a: String| format!("{{{a}}}");
        let max = u64::MAX;
        let lies = [
            (two(entry("a", "[1]", 0, 4), entry("b", "[2]", 0, 8)), "overlaps"),
            (two(entry("a", "[1]", 0, 4), entry("b", "[0]", 2, 2)), "overlaps"),
            (one(entry("a", "[1]", 4, 8)), "leaves a hole"),
            (one(entry("a", "[1]", 0, 4)), "describes 4 bytes of tensors, it has 8"),
            (one(entry("a", "[3]", 0, 12)), "describes 12 bytes of tensors, it has 8"),
            (one(entry("a", "[3]", 0, 8)), "takes 12 bytes"),
            (one(entry("a", "[2]", 8, 0)), "it lies at 8..0"),
            (one(entry("a", "[2]", max - 7, max)), "takes 8 bytes"),
            (one(entry("a", "[2]", max - 8, max)), "leaves a hole"),
            (one(entry("a", "[4611686018427387904]", 0, 0)), "more than memory can have"),
            (one(entry("a", "[4294967296,4294967296,0]", 0, 0)), "more than memory can have"),
            (one(entry("a", "[-2]", 0, 8)), "not a list of tensors"),
            (one(entry("a", "[18446744073709551616]", 0, 8)), "not a list of tensors"),
            (two(entry("a", "[2]", 0, 8), entry("a", "[2]", 0, 8)), "stands in it twice"),
            (one(entry("a", "[1,1,1,1,2]", 0, 8)), "at most 4 dimensions"),
            (one(entry("a", "[2]", 0, 8).replace("F32", "F64")), "element type F64"),
            (one(entry("a", "[2]", 0, 8).replace("shape", "shap")), "not a list of tensors"),
            (one(r#""__metadata__":{"x":1}"#.to_owned()), "not a list of tensors"),
            ("[1]".to_owned(), "does not start with '{'"),
            (format!(" {}", one(entry("a", "[2]", 0, 8))), "does not start with '{'"),
            (format!("{}x", one(entry("a", "[2]", 0, 8))), "not a list of tensors"),
            (r#"{"a":"#.repeat(1000), "not a list of tensors"),
            (String::new(), "does not start with '{'"),
        ];
        for (header, words) in lies {
            let error = read_bytes(&file_of(&header, &[0; 8])).unwrap_err();
            assert!(error.to_string().contains(words), "{header}: {error}");
            assert_eq!(error.exit_code(), 65, "{header}");
        }
        let truth = one(entry("a", "[2]", 0, 8));
        assert_eq!(read_bytes(&file_of(&truth, &[0; 8])).unwrap().len(), 1);
    }

    #[test]
    fn a_header_length_beyond_the_file_or_the_cap_is_refused_unread() {
        for claimed in [9u64, 100_000_001, 1 << 40, u64::MAX] {
            let error = read_bytes(&[&claimed.to_le_bytes()[..], b"{}      "].concat()).unwrap_err();
            assert!(error.to_string().contains("its header claims"), "{error}");
        }
        for len in 0..8 {
            assert!(read_bytes(&vec![0; len]).unwrap_err().to_string().contains("too few"));
        }
    }

    #[test]
    fn a_missing_file_is_an_input_error() {
        let error = read(Path::new("/nonexistent/x.safetensors")).unwrap_err();
        assert!(matches!(error, CheckpointError::Io(_)));
        assert_eq!(error.exit_code(), 74);
    }
}
