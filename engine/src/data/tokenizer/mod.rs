//! Text to token ids and back: byte-level BPE, plain bytes, or any tokenizer.json of the Hugging Face format.

mod bytes;
mod gpt2;
mod sample;
mod stream;
#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rayon::prelude::*;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::{AddedToken, ModelWrapper, TokenizerBuilder};

use super::config::{DataConfig, TokenizerConfig, TokenizerKind};
use super::error::{Error, Result};
use crate::files;

pub use stream::StreamDecoder;

/// The end of a document, in tokenizers made here.
pub const BOUNDARY_TOKEN: &str = "<|endoftext|>";
/// The 256 bytes and the boundary token.
pub const SMALLEST_BPE_VOCABULARY: usize = 257;

/// What other tokenizers call the end of a document, most usual first.
const KNOWN_BOUNDARY_TOKENS: [&str; 6] =
    [BOUNDARY_TOKEN, "<|end_of_text|>", "</s>", "<eos>", "<｜end▁of▁sentence｜>", "[SEP]"];
/// No tokenizer.json is larger, and no vocabulary has more ids.
const MAX_FILE_BYTES: u64 = 256 << 20;
const MAX_VOCABULARY: usize = 1 << 24;
/// Longer text is encoded in pieces, in parallel: the encoder needs many times the memory of its text.
const PIECE_BYTES: usize = 64 << 10;
/// A piece grows to this size if no line in it ends with a letter or digit.
const MAX_PIECE_BYTES: usize = 1 << 20;

/// Turns text into ids below [`Tokenizer::vocab_size`] and back.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    kind: Kind,
    boundary_id: u32,
    vocab_size: usize,
}

#[derive(Clone, Debug)]
enum Kind {
    /// Id 0 to 255 is the byte of that value.
    Bytes,
    Model {
        model: Box<tokenizers::Tokenizer>,
        /// Whether text may be cut before a line break and the parts encoded apart.
        divisible: bool,
        /// Whether the quick way through ASCII text gives the same ids.
        is_gpt2: bool,
    },
}

impl Tokenizer {
    /// The tokenizer of a configuration; `seed` chooses the held-out documents, which BPE does not learn
    /// from.
    pub fn from_config(config: &TokenizerConfig, data: &DataConfig, seed: u64) -> Result<Self> {
        match (config.kind, &config.path) {
            (TokenizerKind::Byte, _) => Ok(Tokenizer::byte()),
            (TokenizerKind::Bpe, _) => {
                let texts = sample::training_sample(data, seed, config.training_bytes)?;
                Tokenizer::train_bpe(&texts, config.vocab_size)
            }
            (TokenizerKind::File, Some(path)) => Tokenizer::from_file(path),
            (TokenizerKind::File, None) => Err(Error::Tokenizer {
                what: "tokenizer.path".into(),
                problem: "is missing, expected the tokenizer.json that kind = \"file\" loads".into(),
                remedy: "set tokenizer.path, or another tokenizer.kind",
            }),
        }
    }

    /// One id for each byte, and 256 for the end of a document.
    pub fn byte() -> Self {
        Tokenizer { kind: Kind::Bytes, boundary_id: 256, vocab_size: 257 }
    }

    /// Learns byte-level BPE. The vocabulary has at most `vocab_size` ids: fewer if the texts hold fewer
    /// pairs.
    pub fn train_bpe(texts: &[String], vocab_size: usize) -> Result<Self> {
        if !(SMALLEST_BPE_VOCABULARY..=MAX_VOCABULARY).contains(&vocab_size) {
            return Err(Error::Tokenizer {
                what: format!("tokenizer.vocab_size = {vocab_size}"),
                problem: format!("expected {SMALLEST_BPE_VOCABULARY} to {MAX_VOCABULARY} for byte-level BPE"),
                remedy: "256 ids are the bytes and one ends a document; choose another size, or kind = \"byte\"",
            });
        }
        let untrainable = |error: tokenizers::Error| Error::Tokenizer {
            what: "training BPE".into(),
            problem: error.to_string(),
            remedy: "give other text, or load a tokenizer.json with kind = \"file\"",
        };
        let mut trainer = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(vocab_size)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(vec![AddedToken::from(BOUNDARY_TOKEN, true)])
            .build();
        let byte_level = ByteLevel::new(false, true, true);
        let mut model: tokenizers::TokenizerImpl<
            BPE,
            NormalizerWrapper,
            PreTokenizerWrapper,
            PostProcessorWrapper,
            DecoderWrapper,
        > = TokenizerBuilder::new()
            .with_model(BPE::default())
            .with_pre_tokenizer(Some(byte_level.into()))
            .with_decoder(Some(byte_level.into()))
            .build()
            .map_err(untrainable)?;
        model.train(&mut trainer, texts.iter()).map_err(untrainable)?;
        Tokenizer::from_model(model.into(), "trained BPE")
    }

    /// Loads a tokenizer.json; one that [`Tokenizer::byte`] saved comes back as such.
    pub fn from_file(path: &Path) -> Result<Self> {
        let what = path.display().to_string();
        let bytes = path.metadata().map_err(Error::read(path))?.len();
        if bytes > MAX_FILE_BYTES {
            let problem = format!("{bytes} bytes, expected at most {MAX_FILE_BYTES}");
            return Err(unusable(&what, problem));
        }
        let json = std::fs::read(path).map_err(Error::read(path))?;
        let model = guarded(&what, || tokenizers::Tokenizer::from_bytes(&json))?;
        if bytes::is_byte_tokenizer(&model) {
            return Ok(Tokenizer::byte());
        }
        Tokenizer::from_model(model, &what)
    }

    /// The ids of a text, without any boundary. Text that spells a special token is text: data cannot end a
    /// document.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let Kind::Model { model, divisible, is_gpt2 } = &self.kind else {
            return Ok(text.bytes().map(u32::from).collect());
        };
        let encode =
            |piece: &&str| if *is_gpt2 { gpt2::encode(model, piece) } else { encode_whole(model, piece) };
        if !divisible || text.len() <= PIECE_BYTES {
            return encode(&text);
        }
        let pieces: Vec<Vec<u32>> = pieces(text).par_iter().map(encode).collect::<Result<_>>()?;
        Ok(pieces.concat())
    }

    /// The text of ids. Special tokens and ids outside the vocabulary have none; bytes that form no character
    /// become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        match &self.kind {
            Kind::Bytes => {
                let bytes: Vec<u8> = ids.iter().filter_map(|&id| u8::try_from(id).ok()).collect();
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Kind::Model { model, .. } => guarded("decoding", || model.decode(ids, true)),
        }
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id that ends a document.
    pub fn boundary_id(&self) -> u32 {
        self.boundary_id
    }

    /// The text of the token that ends a document.
    pub fn boundary_token(&self) -> String {
        match &self.kind {
            Kind::Bytes => None,
            Kind::Model { model, .. } => model.id_to_token(self.boundary_id),
        }
        .unwrap_or_else(|| BOUNDARY_TOKEN.to_owned())
    }

    /// Refuses fewer embedding rows than there are ids.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] with both numbers.
    pub fn check_rows(&self, num_rows: usize) -> Result<()> {
        if num_rows >= self.vocab_size {
            return Ok(());
        }
        Err(Error::Tokenizer {
            what: "the tokenizer".into(),
            problem: format!("has {} ids, the model's embedding {num_rows} rows", self.vocab_size),
            remedy: "give the model its own tokenizer, or raise model.vocab_size before training",
        })
    }

    /// The tokenizer.json that [`Tokenizer::from_file`] and Hugging Face libraries load.
    pub fn to_json(&self) -> Result<String> {
        match &self.kind {
            Kind::Bytes => Ok(bytes::byte_tokenizer_json()),
            Kind::Model { model, .. } => {
                model.to_string(false).map_err(|error| unusable("to JSON", error.to_string()))
            }
        }
    }

    /// Writes the tokenizer.json, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        files::write_atomically(path, self.to_json()?.as_bytes()).map_err(|error| Error::Io {
            action: "write",
            path: error.path,
            source: error.source,
        })
    }

    fn from_model(mut model: tokenizers::Tokenizer, what: &str) -> Result<Self> {
        let Some(boundary) = KNOWN_BOUNDARY_TOKENS.iter().find(|token| model.token_to_id(token).is_some())
        else {
            let problem =
                format!("no token for the end of a document, expected one of {KNOWN_BOUNDARY_TOKENS:?}");
            return Err(unusable(what, problem));
        };
        // A file may ask to cut or pad every text, to drop merges at random, and may list its boundary as an
        // ordinary token.
        if let ModelWrapper::BPE(bpe) = model.get_model()
            && bpe.dropout.is_some()
        {
            let mut bpe = bpe.clone();
            bpe.dropout = None;
            model.with_model(bpe);
        }
        model.with_padding(None);
        model.with_truncation(None).map_err(|error| unusable(what, error.to_string()))?;
        model.add_special_tokens(&[AddedToken::from(*boundary, true)]);
        model.set_encode_special_tokens(true);
        let ids = model.get_vocab(true);
        let vocab_size = ids.values().max().map_or(0, |&id| id as usize + 1);
        if vocab_size > MAX_VOCABULARY {
            let problem = format!("ids up to {}, expected fewer than {MAX_VOCABULARY}", vocab_size - 1);
            return Err(unusable(what, problem));
        }
        let Some(&boundary_id) = ids.get(*boundary) else {
            return Err(unusable(what, format!("the token {boundary} has no id")));
        };
        let encode = |text: &str| encode_whole(&model, text);
        let divisible = encode("one two\n\n three")? == [encode("one two")?, encode("\n\n three")?].concat();
        let is_gpt2 = gpt2::is_gpt2(&model);
        Ok(Tokenizer {
            kind: Kind::Model { model: Box::new(model), divisible, is_gpt2 },
            boundary_id,
            vocab_size,
        })
    }
}

fn encode_whole(model: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>> {
    Ok(guarded("encoding", || model.encode_fast(text, false))?.get_ids().to_vec())
}

/// Cuts a text between a letter or digit and a line break, where no pre-tokenizer in use joins the two sides.
fn pieces(mut text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    while text.len() > PIECE_BYTES {
        let limit = text.floor_char_boundary(MAX_PIECE_BYTES);
        let start = text.floor_char_boundary(PIECE_BYTES);
        let mut breaks = text[start..limit].match_indices('\n').map(|(place, _)| start + place);
        let cut = breaks.find(|&place| text[..place].ends_with(char::is_alphanumeric)).unwrap_or(limit);
        let (piece, rest) = text.split_at(cut);
        pieces.push(piece);
        text = rest;
    }
    pieces.push(text);
    pieces
}

/// Calls the tokenizer library, which may panic on a file that is made to harm, and turns either failure into
/// an error.
fn guarded<T>(what: &str, body: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(unusable(what, error.to_string())),
        Err(_) => Err(unusable(what, "the tokenizer library gave up".into())),
    }
}

fn unusable(what: &str, problem: String) -> Error {
    let remedy = "give a whole tokenizer.json of the Hugging Face format, or set tokenizer.kind to \"bpe\" or \"byte\"";
    Error::Tokenizer { what: what.into(), problem, remedy }
}
