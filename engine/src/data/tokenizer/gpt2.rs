//! A quick way through byte-level BPE for ASCII lines, which most lines of code and English are.
//!
//! The library tracks the origin of every character through a general pattern matcher. Where the
//! pre-tokenizer is GPT-2's and a line is ASCII, its pattern is a short scan, and a word seen before has its
//! ids at hand. Other lines go to the library; the ids are the same either way.

use std::collections::HashMap;

use tokenizers::{Model, ModelWrapper, PreTokenizerWrapper};

use super::bytes::byte_char;
use super::guarded;
use crate::data::error::Result;

/// Whether a tokenizer is byte-level BPE over GPT-2's words and nothing else.
pub(super) fn is_gpt2(model: &tokenizers::Tokenizer) -> bool {
    let has_words = match model.get_pre_tokenizer() {
        Some(PreTokenizerWrapper::ByteLevel(byte_level)) => {
            byte_level.use_regex && !byte_level.add_prefix_space
        }
        _ => false,
    };
    has_words
        && model.get_normalizer().is_none()
        && matches!(model.get_model(), ModelWrapper::BPE(_))
        && model.get_added_vocabulary().get_added_tokens_decoder().values().all(|token| token.special)
}

/// The ids of a text under a tokenizer that [`is_gpt2`].
pub(super) fn encode(model: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>> {
    let mut ids = Vec::with_capacity(text.len() / 3);
    let mut known: HashMap<&str, Vec<u32>> = HashMap::new();
    for line in lines(text) {
        if !line.is_ascii() {
            ids.extend_from_slice(guarded("encoding", || model.encode_fast(line, false))?.get_ids());
            continue;
        }
        for word in Words(line) {
            if let Some(word_ids) = known.get(word) {
                ids.extend_from_slice(word_ids);
                continue;
            }
            let spelled: String = word.bytes().map(byte_char).collect();
            let tokens = guarded("encoding", || model.get_model().tokenize(&spelled))?;
            let word_ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
            ids.extend_from_slice(&word_ids);
            known.insert(word, word_ids);
        }
    }
    Ok(ids)
}

/// Cuts a text before each line break that follows a visible character: there a word ends in any case.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut start = 0;
    let mut breaks = text.match_indices('\n');
    std::iter::from_fn(move || {
        if start == text.len() {
            return None;
        }
        let end = breaks
            .by_ref()
            .map(|(place, _)| place)
            .find(|&place| place > start && !text[start..place].ends_with(char::is_whitespace))
            .unwrap_or(text.len());
        let line = &text[start..end];
        start = end;
        Some(line)
    })
}

/// The words of an ASCII text by GPT-2's pattern:
/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.
struct Words<'a>(&'a str);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Space,
    Letter,
    Digit,
    Other,
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.0.is_empty() {
            return None;
        }
        let (word, rest) = self.0.split_at(word_length(self.0.as_bytes()));
        self.0 = rest;
        Some(word)
    }
}

/// Bytes of the first word of a text that is not empty.
fn word_length(text: &[u8]) -> usize {
    let suffixes = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];
    if let Some(suffix) = suffixes.iter().find(|suffix| text.starts_with(suffix.as_bytes())) {
        return suffix.len();
    }
    let lead = usize::from(text[0] == b' ');
    match text.get(lead).map(|&byte| class(byte)) {
        Some(word_class) if word_class != Class::Space => lead + run_length(&text[lead..], word_class),
        // Spaces before a word leave it their last one.
        _ => match run_length(text, Class::Space) {
            spaces if spaces == text.len() || spaces == 1 => spaces,
            spaces => spaces - 1,
        },
    }
}

fn run_length(text: &[u8], wanted: Class) -> usize {
    text.iter().position(|&byte| class(byte) != wanted).unwrap_or(text.len())
}

fn class(byte: u8) -> Class {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' => Class::Letter,
        b'0'..=b'9' => Class::Digit,
        b'\t'..=b'\r' | b' ' => Class::Space,
        _ => Class::Other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::data::tokenizer::{Kind, Tokenizer};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn the_ids_are_those_of_the_library(
            text in "([ -~]{0,4}|[ \\t\\n\\r\\x0b\\x0c]{1,3}|'(s|t|re|ve|m|ll|d|x)|[a-z]{1,5}|[0-9]{1,3}|\\PC{0,2}|\u{85}){0,30}"
        ) {
            let texts = ["don't they'll 12 345\n\n\tif (x) {\n    y()  ;\r\n}\n".to_owned()];
            let tokenizer = Tokenizer::train_bpe(&texts, 300).unwrap();
            let Kind::Model { model, is_gpt2: true, .. } = &tokenizer.kind else { panic!("is GPT-2's") };
            let expected = model.encode_fast(text.as_str(), false).unwrap();
            prop_assert_eq!(encode(model, &text).unwrap(), expected.get_ids());
        }
    }
}
