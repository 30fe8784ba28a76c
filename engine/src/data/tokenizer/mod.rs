//! Text to token ids and back: byte-level BPE, plain bytes, or any tokenizer.json of the Hugging Face format.

mod bytes;
mod gpt2;
mod sample;
mod stream;

use std::fs::File;
use std::io::Write;
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
        let json = self.to_json()?;
        let temporary = path.with_extension("json.tmp");
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(json.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&temporary, path)?;
            let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
        };
        write().map_err(|source| Error::Io { action: "write", path: path.to_owned(), source })
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

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    static TEXTS: LazyLock<Vec<String>> = LazyLock::new(|| {
        (0..40)
            .map(|i| format!("fn number_{i}() -> usize {{\n    {i} * {i}\n}}\n// straße \u{1F33E} {i}\n\n"))
            .collect()
    });
    static BPE: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::train_bpe(&TEXTS, 320).unwrap());

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_text_comes_back_from_its_ids(text in "\\PC*|[ \\n\\t\\rfnumber_0-9]{0,60}") {
            for tokenizer in [&*BPE, &Tokenizer::byte()] {
                let ids = tokenizer.encode(&text).unwrap();
                prop_assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
                prop_assert_eq!(&tokenizer.decode(&ids).unwrap(), &text);
            }
        }
    }

    #[test]
    fn training_twice_gives_the_same_tokenizer() {
        let again = Tokenizer::train_bpe(&TEXTS, 320).unwrap();
        assert_eq!(again.to_json().unwrap(), BPE.to_json().unwrap());
        assert_eq!(BPE.vocab_size(), 320);
        assert!(BPE.encode(&TEXTS[0]).unwrap().len() * 2 < TEXTS[0].len(), "BPE shortens its own text");
    }

    #[test]
    fn a_saved_tokenizer_loads_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokenizer.json");
        for tokenizer in [&*BPE, &Tokenizer::byte()] {
            tokenizer.save(&path).unwrap();
            let loaded = Tokenizer::from_file(&path).unwrap();
            assert_eq!(loaded.vocab_size(), tokenizer.vocab_size());
            assert_eq!(loaded.boundary_id(), tokenizer.boundary_id());
            assert_eq!(matches!(loaded.kind, Kind::Bytes), matches!(tokenizer.kind, Kind::Bytes));
            assert_eq!(loaded.encode(&TEXTS[7]).unwrap(), tokenizer.encode(&TEXTS[7]).unwrap());
            assert_eq!(loaded.to_json().unwrap(), tokenizer.to_json().unwrap());
            assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file stays");
        }
    }

    #[test]
    fn the_saved_byte_tokenizer_means_bytes_to_the_library_too() {
        let model = tokenizers::Tokenizer::from_bytes(Tokenizer::byte().to_json().unwrap()).unwrap();
        let text = "a\n\u{1F33E} z";
        let ids = model.encode_fast(text, false).unwrap().get_ids().to_vec();
        assert_eq!(ids, Tokenizer::byte().encode(text).unwrap());
        assert_eq!(model.decode(&ids, true).unwrap(), text);
    }

    #[test]
    fn text_that_spells_the_boundary_does_not_become_it() {
        let text = format!("a{BOUNDARY_TOKEN}b");
        for tokenizer in [&*BPE, &Tokenizer::byte()] {
            let ids = tokenizer.encode(&text).unwrap();
            assert!(!ids.contains(&tokenizer.boundary_id()));
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
    }

    #[test]
    fn a_loaded_file_can_neither_cut_text_nor_encode_it_at_random() {
        let text = format!("{}{BOUNDARY_TOKEN}", TEXTS[3]);
        let mut json: serde_json::Value = serde_json::from_str(&BPE.to_json().unwrap()).unwrap();
        json["added_tokens"][0]["special"] = false.into();
        json["model"]["dropout"] = 0.5.into();
        json["truncation"] = serde_json::json!(
            {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
        );
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokenizer.json");
        std::fs::write(&path, json.to_string()).unwrap();
        let loaded = Tokenizer::from_file(&path).unwrap();
        assert_eq!(loaded.encode(&text).unwrap(), BPE.encode(&text).unwrap());
    }

    #[test]
    fn no_changed_byte_brings_the_loader_down() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokenizer.json");
        let json = BPE.to_json().unwrap().into_bytes();
        for place in (0..json.len()).step_by(41) {
            let mut changed = json.clone();
            changed[place] = b'9';
            std::fs::write(&path, changed).unwrap();
            if let Ok(tokenizer) = Tokenizer::from_file(&path) {
                let ids = tokenizer.encode(&TEXTS[0]).unwrap();
                assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
            }
        }
    }

    #[test]
    fn long_text_encodes_in_pieces_as_it_would_whole() {
        let text = TEXTS.concat().repeat(80);
        assert!(text.len() > 2 * PIECE_BYTES && pieces(&text).len() > 2);
        assert_eq!(pieces(&text).concat(), text);
        let Kind::Model { model, divisible, .. } = &BPE.kind else { panic!("BPE is a model") };
        assert!(divisible);
        assert_eq!(BPE.encode(&text).unwrap(), encode_whole(model, &text).unwrap());
    }

    #[test]
    fn unusable_files_and_sizes_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokenizer.json");
        let without_boundary = BPE.to_json().unwrap().replace(BOUNDARY_TOKEN, "<other>");
        for (json, expected) in [
            ("", "EOF"),
            ("{\"version\":\"1.0\"}", "Model missing"),
            ("{\"version\":", "EOF"),
            (without_boundary.as_str(), "no token for the end of a document"),
        ] {
            std::fs::write(&path, json).unwrap();
            let error = Tokenizer::from_file(&path).unwrap_err().to_string();
            assert!(error.contains("tokenizer.json") && error.contains(expected), "{error}");
        }
        let error = Tokenizer::train_bpe(&TEXTS, 256).unwrap_err().to_string();
        assert!(error.contains("vocab_size = 256") && error.contains("257"), "{error}");
    }
}
