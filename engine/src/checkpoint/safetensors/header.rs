//! The header of a safetensors file: what it says about each tensor, and the proof that the file agrees.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::json;
use wattle_kernels::tensor::MAX_RANK;
use wattle_kernels::{DType, Error};

use super::super::error::{CheckpointError, Result};

/// The cap of the format itself.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The header's length as a little-endian u64.
const LENGTH_BYTES: u64 = 8;

/// The data starts at a multiple of this, so that a reader who maps the file finds every element aligned.
const DATA_ALIGNMENT: usize = 8;

const METADATA_KEY: &str = "__metadata__";

/// An element type of the format: those of tensors here, and half precision, which is read from elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    F32,
    F16,
    Bf16,
    I32,
    I8,
    U8,
}

impl Stored {
    const ALL: [Stored; 6] = [Stored::F32, Stored::Bf16, Stored::F16, Stored::I32, Stored::I8, Stored::U8];

    /// The format's spelling.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Stored::F32 => "F32",
            Stored::F16 => "F16",
            Stored::Bf16 => "BF16",
            Stored::I32 => "I32",
            Stored::I8 => "I8",
            Stored::U8 => "U8",
        }
    }

    /// Of one element.
    pub(crate) fn size_in_bytes(self) -> usize {
        match self {
            Stored::F32 | Stored::I32 => 4,
            Stored::F16 | Stored::Bf16 => 2,
            Stored::I8 | Stored::U8 => 1,
        }
    }

    /// The same type of a tensor; none for half precision.
    pub(crate) fn dtype(self) -> Option<DType> {
        match self {
            Stored::F32 => Some(DType::F32),
            Stored::F16 => None,
            Stored::Bf16 => Some(DType::Bf16),
            Stored::I32 => Some(DType::I32),
            Stored::I8 => Some(DType::I8),
            Stored::U8 => Some(DType::U8),
        }
    }
}

impl From<DType> for Stored {
    fn from(dtype: DType) -> Self {
        match dtype {
            DType::F32 => Stored::F32,
            DType::Bf16 => Stored::Bf16,
            DType::I32 => Stored::I32,
            DType::I8 => Stored::I8,
            DType::U8 => Stored::U8,
        }
    }
}

/// The tensors of a file in the order of their bytes, which follow each other without a gap.
#[derive(Debug)]
pub(crate) struct Header {
    /// One for each tensor.
    pub(crate) entries: Vec<Entry>,
    /// Where the first tensor starts in the file.
    pub(crate) data_start: u64,
    /// The size of all tensors together.
    pub(crate) data_bytes: u64,
}

/// One tensor of a file.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Its name.
    pub(crate) name: String,
    /// Its element type.
    pub(crate) stored: Stored,
    /// Its shape.
    pub(crate) shape: Vec<usize>,
    /// Where it starts after `data_start`.
    pub(crate) start: u64,
    /// Its size.
    pub(crate) bytes: u64,
    /// Its place in the list given to [`Header::new`], or in the JSON that was read.
    pub(crate) index: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Claim {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

impl Header {
    /// The header of a new file. Wide elements come first, so that each one is aligned to its own size.
    pub(crate) fn new(tensors: Vec<(String, Stored, Vec<usize>)>) -> Result<Self> {
        let mut names = BTreeSet::from([METADATA_KEY.to_owned()]);
        let mut entries = Vec::new();
        for (index, (name, stored, shape)) in tensors.into_iter().enumerate() {
            if !names.insert(name.clone()) {
                return Err(CheckpointError::Tensor(Error::Value {
                    op: "save",
                    what: "the name of a tensor",
                    got: name,
                    expected: "a name that no other tensor of the file has".to_owned(),
                }));
            }
            let bytes = (shape.iter().product::<usize>() * stored.size_in_bytes()) as u64;
            entries.push(Entry { name, stored, shape, start: 0, bytes, index });
        }
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.stored.size_in_bytes()));
        let mut data_bytes = 0;
        for entry in &mut entries {
            entry.start = data_bytes;
            data_bytes += entry.bytes;
        }
        let mut header = Header { entries, data_start: 0, data_bytes };
        header.data_start = header.to_bytes().len() as u64;
        Ok(header)
    }

    /// Size of the whole file.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.data_start + self.data_bytes
    }

    /// The length, the JSON, and spaces up to the data.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut json = serde_json::Map::new();
        // transformers loads only files that name their framework.
        json.insert(METADATA_KEY.to_owned(), json!({"format": "pt"}));
        for entry in &self.entries {
            let claim = json!({
                "dtype": entry.stored.name(),
                "shape": entry.shape,
                "data_offsets": [entry.start, entry.start + entry.bytes],
            });
            json.insert(entry.name.clone(), claim);
        }
        let mut bytes = vec![0; LENGTH_BYTES as usize];
        bytes.extend_from_slice(serde_json::Value::Object(json).to_string().as_bytes());
        bytes.resize(bytes.len().next_multiple_of(DATA_ALIGNMENT), b' ');
        let json_bytes = bytes.len() as u64 - LENGTH_BYTES;
        bytes[..LENGTH_BYTES as usize].copy_from_slice(&json_bytes.to_le_bytes());
        bytes
    }

    /// Reads the header of a file of `file_bytes` bytes from its start. Allocates no more than the file is long.
    pub(crate) fn read(
        path: &Path,
        file_bytes: u64,
        mut read: impl FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<Self> {
        let corrupt = |what: String| corrupt(path, None, what);
        let Some(rest_bytes) = file_bytes.checked_sub(LENGTH_BYTES) else {
            return Err(corrupt(format!("it has {file_bytes} bytes, too few for a safetensors file")));
        };
        let mut length = [0; LENGTH_BYTES as usize];
        read(&mut length)?;
        let json_bytes = u64::from_le_bytes(length);
        if json_bytes > MAX_HEADER_BYTES.min(rest_bytes) {
            let most = format!("at most {MAX_HEADER_BYTES} and the rest of the file, {rest_bytes}");
            return Err(corrupt(format!("its header claims {json_bytes} bytes, expected {most}")));
        }
        let mut json = vec![0; json_bytes as usize];
        read(&mut json)?;
        if json.first() != Some(&b'{') {
            return Err(corrupt("its header does not start with '{'".to_owned()));
        }
        let Claims(claims) = serde_json::from_slice(&json)
            .map_err(|error| corrupt(format!("its header is not a list of tensors: {error}")))?;
        let mut entries = Vec::with_capacity(claims.len());
        for (index, (name, claim)) in claims.into_iter().enumerate() {
            entries.push(check_claim(path, index, name, claim)?);
        }
        entries.sort_by_key(|entry| (entry.start, entry.bytes));
        let data_bytes = check_contiguous(path, &entries)?;
        let data_start = LENGTH_BYTES + json_bytes;
        if data_start.checked_add(data_bytes) != Some(file_bytes) {
            let found = file_bytes - data_start;
            return Err(corrupt(format!(
                "its header describes {data_bytes} bytes of tensors, it has {found}"
            )));
        }
        Ok(Header { entries, data_start, data_bytes })
    }
}

fn corrupt(path: &Path, tensor: Option<&str>, what: String) -> CheckpointError {
    CheckpointError::Corrupt { path: path.to_owned(), tensor: tensor.map(str::to_owned), what }
}

/// The tensor's size must be that of its shape, and a tensor must be able to have it.
fn check_claim(path: &Path, index: usize, name: String, claim: Claim) -> Result<Entry> {
    let Claim { dtype, shape, data_offsets: [start, end] } = claim;
    let unsupported = |what: String| CheckpointError::Unsupported { path: path.to_owned(), what };
    let Some(stored) = Stored::ALL.into_iter().find(|known| known.name() == dtype) else {
        let known = Stored::ALL.map(Stored::name).join(", ");
        return Err(unsupported(format!(
            "tensor {name} has the element type {dtype}, expected one of {known}"
        )));
    };
    if shape.len() > MAX_RANK {
        return Err(unsupported(format!("tensor {name} has shape {shape:?}, at most {MAX_RANK} dimensions")));
    }
    let shape_bytes = shape.iter().try_fold(stored.size_in_bytes(), |bytes, &dim| bytes.checked_mul(dim));
    let bytes = end.checked_sub(start);
    if bytes.is_none() || bytes != shape_bytes.map(|bytes| bytes as u64) {
        let wanted = shape_bytes.map_or_else(|| "more than memory can have".to_owned(), |b| b.to_string());
        let what = format!("it lies at {start}..{end}, but {dtype} of shape {shape:?} takes {wanted} bytes");
        return Err(corrupt(path, Some(&name), what));
    }
    Ok(Entry { name, stored, shape, start, bytes: end - start, index })
}

/// The entries, ordered by start, must follow each other without hole or overlap. Gives the end of the last one.
fn check_contiguous(path: &Path, entries: &[Entry]) -> Result<u64> {
    let mut end = 0;
    for entry in entries {
        if entry.start != end {
            let fault = if entry.start < end { "overlaps the tensor before it" } else { "leaves a hole" };
            let what = format!("it starts at {}, expected {end}: it {fault}", entry.start);
            return Err(corrupt(path, Some(&entry.name), what));
        }
        end = entry.start + entry.bytes;
    }
    Ok(end)
}

/// The header's JSON. A map would silently keep only the last of two equal keys.
struct Claims(Vec<(String, Claim)>);

impl<'de> Deserialize<'de> for Claims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct ClaimsVisitor;
        impl<'de> Visitor<'de> for ClaimsVisitor {
            type Value = Claims;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Claims, A::Error> {
                let (mut claims, mut names) = (Vec::new(), BTreeSet::new());
                while let Some(name) = map.next_key::<String>()? {
                    if !names.insert(name.clone()) {
                        return Err(A::Error::custom(format_args!("tensor {name} stands in it twice")));
                    }
                    if name == METADATA_KEY {
                        map.next_value::<BTreeMap<String, String>>()?;
                    } else {
                        claims.push((name, map.next_value()?));
                    }
                }
                Ok(Claims(claims))
            }
        }
        deserializer.deserialize_map(ClaimsVisitor)
    }
}
