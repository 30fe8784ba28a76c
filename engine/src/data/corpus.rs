//! All documents as two long streams of token ids, one to train on and one held out.

use rayon::prelude::*;

use super::config::DataConfig;
use super::error::{Error, Result};
use super::source::{CorpusSummary, Documents};
use super::split::{Parts, Split, open_train};
use super::tokenizer::Tokenizer;

/// Text that is tokenised in parallel before the next is read, so that memory holds tokens and not the
/// corpus.
const BLOCK_BYTES: usize = 32 << 20;

/// The tokens of a run.
#[derive(Debug)]
pub struct TokenCorpus {
    /// To train on.
    pub train: TokenStream,
    /// To evaluate on; empty if `data.held_out_fraction` is 0 and `data.validation` names nothing.
    pub held_out: TokenStream,
    /// What was read of `data.train`.
    pub summary: CorpusSummary,
    /// What was read of `data.validation`, if it names anything.
    pub validation_summary: Option<CorpusSummary>,
}

/// Documents one after another, each ended by the boundary token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenStream {
    tokens: Tokens,
    num_bytes: u64,
    num_documents: u64,
}

/// Two bytes a token wherever the vocabulary allows it.
#[derive(Clone, Debug, PartialEq)]
enum Tokens {
    Small(Vec<u16>),
    Large(Vec<u32>),
}

impl TokenCorpus {
    /// BLAKE3 of all tokens, to train on and held out: the same text under the same tokenizer has the same.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for stream in [&self.train, &self.held_out] {
            hasher.update(&(stream.len() as u64).to_le_bytes());
            // In pieces: hashing is fast only on long runs of bytes.
            match &stream.tokens {
                Tokens::Small(ids) => ids.chunks(4096).for_each(|ids| {
                    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
                    hasher.update(&bytes);
                }),
                Tokens::Large(ids) => ids.chunks(4096).for_each(|ids| {
                    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
                    hasher.update(&bytes);
                }),
            }
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Reads, divides and tokenises the text of a configuration; `seed` chooses the held-out documents.
    pub fn load(config: &DataConfig, tokenizer: &Tokenizer, seed: u64) -> Result<Self> {
        let mut documents = open_train(config)?;
        let validation = match config.validation.is_empty() {
            true => None,
            false => Some(open_validation(config, &documents)?),
        };
        let mut split = Split::new(config, seed)?;
        let mut train = TokenStream::new(tokenizer.vocab_size());
        let mut held_out = TokenStream::new(tokenizer.vocab_size());
        for_each_block(&mut documents, |texts| {
            let parts: Vec<Parts> = texts.into_iter().map(|text| split.divide(text)).collect();
            let (train_texts, held_out_texts): (Vec<_>, Vec<_>) =
                parts.into_iter().map(|parts| (parts.train, parts.held_out)).unzip();
            train.append(train_texts.into_iter().flatten().collect(), tokenizer)?;
            held_out.append(held_out_texts.into_iter().flatten().collect(), tokenizer)
        })?;
        let summary = documents.summary().clone();
        let validation_summary = match validation {
            None => None,
            Some(documents) => {
                let (stream, summary) = TokenStream::encode(documents, tokenizer)?;
                held_out = stream;
                Some(summary)
            }
        };
        let holds_out = config.held_out_fraction > 0.0 && validation_summary.is_none();
        if train.is_empty() || holds_out && held_out.is_empty() {
            return Err(Error::NoData {
                what: format!(
                    "data.held_out_fraction = {} of {} documents leaves {} to train on and {} held out",
                    config.held_out_fraction,
                    summary.num_documents,
                    train.num_documents,
                    held_out.num_documents
                ),
                remedy: "set data.held_out_by = \"tail\", or name held-out text in data.validation",
            });
        }
        Ok(TokenCorpus { train, held_out, summary, validation_summary })
    }
}

impl TokenStream {
    /// Tokenises all documents, for text that is not divided.
    pub fn encode(mut documents: Documents, tokenizer: &Tokenizer) -> Result<(Self, CorpusSummary)> {
        let mut stream = TokenStream::new(tokenizer.vocab_size());
        for_each_block(&mut documents, |texts| stream.append(texts, tokenizer))?;
        Ok((stream, documents.summary().clone()))
    }

    /// A stream of given ids, for benchmarks and tests; `num_bytes` is how much text they stand for.
    pub fn from_ids(ids: &[u32], vocab_size: usize, num_bytes: u64) -> Self {
        let mut stream = TokenStream::new(vocab_size);
        stream.tokens.extend(ids);
        stream.num_bytes = num_bytes;
        stream.num_documents = 1;
        stream
    }

    /// Number of tokens, boundary tokens included.
    pub fn len(&self) -> usize {
        match &self.tokens {
            Tokens::Small(tokens) => tokens.len(),
            Tokens::Large(tokens) => tokens.len(),
        }
    }

    /// True if there is no token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of text that the tokens stand for.
    pub fn num_bytes(&self) -> u64 {
        self.num_bytes
    }

    /// Number of documents.
    pub fn num_documents(&self) -> u64 {
        self.num_documents
    }

    /// Bytes of text for each token, boundary tokens included: a loss in nats per token divided by this and
    /// by ln 2 is in bits per byte. 0 for an empty stream.
    pub fn bytes_per_token(&self) -> f64 {
        if self.is_empty() { 0.0 } else { self.num_bytes as f64 / self.len() as f64 }
    }

    /// Appends ids `first..first + len` to `ids`; the caller keeps them within the stream.
    pub(super) fn copy_to(&self, first: usize, len: usize, ids: &mut Vec<i32>) {
        match &self.tokens {
            Tokens::Small(tokens) => ids.extend(tokens[first..first + len].iter().map(|&id| i32::from(id))),
            Tokens::Large(tokens) => ids.extend(tokens[first..first + len].iter().map(|&id| id as i32)),
        }
    }

    fn new(vocab_size: usize) -> Self {
        let tokens = match vocab_size <= 1 << 16 {
            true => Tokens::Small(Vec::new()),
            false => Tokens::Large(Vec::new()),
        };
        TokenStream { tokens, num_bytes: 0, num_documents: 0 }
    }

    /// Tokenises texts in parallel and appends them in their order.
    fn append(&mut self, texts: Vec<String>, tokenizer: &Tokenizer) -> Result<()> {
        let encoded: Vec<Vec<u32>> =
            texts.par_iter().map(|text| tokenizer.encode(text)).collect::<Result<_>>()?;
        for (ids, text) in encoded.iter().zip(&texts) {
            self.tokens.extend(ids);
            self.tokens.extend(&[tokenizer.boundary_id()]);
            self.num_bytes += text.len() as u64;
        }
        self.num_documents += texts.len() as u64;
        Ok(())
    }
}

impl Tokens {
    fn extend(&mut self, ids: &[u32]) {
        match self {
            // The stream was made for a vocabulary of at most 65,536, so that no id is cut.
            Tokens::Small(tokens) => tokens.extend(ids.iter().map(|&id| id as u16)),
            Tokens::Large(tokens) => tokens.extend_from_slice(ids),
        }
    }
}

/// Gives the texts of all documents in blocks of about [`BLOCK_BYTES`].
fn for_each_block(documents: &mut Documents, mut body: impl FnMut(Vec<String>) -> Result<()>) -> Result<()> {
    let (mut block, mut block_bytes) = (Vec::new(), 0);
    for document in documents {
        let text = document?.text;
        block_bytes += text.len();
        block.push(text);
        if block_bytes >= BLOCK_BYTES {
            body(std::mem::take(&mut block))?;
            block_bytes = 0;
        }
    }
    body(block)
}

/// Opens `data.validation`, which must share no file with `train`.
fn open_validation(config: &DataConfig, train: &Documents) -> Result<Documents> {
    let validation =
        Documents::open("data.validation", &config.validation, &config.text_field, config.max_bytes)?;
    match validation.shared_path(train) {
        Some(path) => Err(Error::Overlap { path: path.to_owned() }),
        None => Ok(validation),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::HeldOutBy;

    fn corpus_of(texts: &[&str], change: impl FnOnce(&mut DataConfig)) -> Result<TokenCorpus> {
        let directory = tempfile::tempdir().unwrap();
        for (number, text) in texts.iter().enumerate() {
            std::fs::write(directory.path().join(format!("{number:03}.txt")), text).unwrap();
        }
        let train = vec![directory.path().display().to_string()];
        let mut config = DataConfig { train, ..DataConfig::default() };
        change(&mut config);
        TokenCorpus::load(&config, &Tokenizer::byte(), 1)
    }

    fn ids(stream: &TokenStream) -> Vec<i32> {
        let mut ids = Vec::new();
        stream.copy_to(0, stream.len(), &mut ids);
        ids
    }

    #[test]
    fn documents_are_packed_in_order_each_with_its_boundary() {
        let corpus = corpus_of(&["ab", "c"], |config| config.held_out_fraction = 0.0).unwrap();
        assert_eq!(ids(&corpus.train), [97, 98, 256, 99, 256]);
        assert_eq!((corpus.train.num_bytes(), corpus.train.num_documents()), (3, 2));
        assert_eq!(corpus.train.bytes_per_token(), 0.6);
        assert!(corpus.held_out.is_empty());
    }

    #[test]
    fn both_streams_together_hold_every_document_once() {
        let texts: Vec<String> = (0..200).map(|i| format!("{i:03}")).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let corpus = corpus_of(&texts, |config| config.held_out_fraction = 0.3).unwrap();
        let mut all: Vec<Vec<i32>> = [&corpus.train, &corpus.held_out]
            .into_iter()
            .flat_map(|stream| ids(stream).split(|&id| id == 256).map(<[i32]>::to_vec).collect::<Vec<_>>())
            .filter(|document| !document.is_empty())
            .collect();
        all.sort();
        let expected: Vec<Vec<i32>> =
            texts.iter().map(|text| text.bytes().map(i32::from).collect()).collect();
        assert_eq!(all, expected);
        assert!(corpus.held_out.num_documents() > 30);
    }

    #[test]
    fn one_document_cannot_be_held_out_whole() {
        let error = corpus_of(&["one long text"], |_| ()).unwrap_err().to_string();
        assert!(error.contains("of 1 documents") && error.contains("held_out_by = \"tail\""), "{error}");
        let corpus = corpus_of(&["one long text"], |config| {
            config.held_out_by = HeldOutBy::Tail;
            config.held_out_fraction = 0.31;
        })
        .unwrap();
        assert_eq!(
            ids(&corpus.held_out),
            [b't', b'e', b'x', b't'].map(i32::from).into_iter().chain([256]).collect::<Vec<_>>()
        );
    }

    #[test]
    fn validation_text_is_kept_whole_and_apart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v.txt").display().to_string();
        std::fs::write(&path, "held").unwrap();
        let corpus = corpus_of(&["a", "b"], |config| config.validation = vec![path.clone()]).unwrap();
        assert_eq!(ids(&corpus.held_out), [104, 101, 108, 100, 256]);
        assert_eq!(corpus.train.num_documents(), 2);
        let error = corpus_of(&["a"], |config| {
            config.train.push(path.clone());
            config.validation = vec![path];
        })
        .unwrap_err()
        .to_string();
        assert!(error.contains("v.txt is named by data.validation and by data.train"), "{error}");
    }

    #[test]
    fn a_large_vocabulary_keeps_every_id() {
        let stream = TokenStream::from_ids(&[0, 65_535, 65_536, 70_000], 70_001, 4);
        assert_eq!(ids(&stream), [0, 65_535, 65_536, 70_000]);
    }
}
