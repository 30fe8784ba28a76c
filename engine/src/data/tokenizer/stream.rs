//! Text as it is generated: each piece as soon as its characters are whole.

use super::Tokenizer;
use crate::data::error::Result;

/// Tokens after which a character that is still not whole is given out as U+FFFD.
const MAX_PENDING: usize = 64;

/// Decodes one id after another.
#[derive(Debug)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    /// Tokens given out before, which tell some decoders whether a space comes first, and then those pending.
    ids: Vec<u32>,
    /// How many of `ids` were given out before.
    num_context: usize,
    /// Bytes of the text of `ids` that are given out.
    num_emitted: usize,
}

impl<'a> StreamDecoder<'a> {
    /// Starts at the beginning of a text.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        StreamDecoder { tokenizer, ids: Vec::new(), num_context: 0, num_emitted: 0 }
    }

    /// The text that `id` completes; empty in the middle of a character.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids)?;
        // Only the last U+FFFD may still become a character: what stands before it is wrong for good.
        let whole = match text.strip_suffix(char::REPLACEMENT_CHARACTER) {
            Some(whole) if self.ids.len() - self.num_context < MAX_PENDING => whole,
            _ => &text,
        };
        let piece = whole.get(self.num_emitted..).unwrap_or_default().to_owned();
        self.num_emitted = self.num_emitted.max(whole.len());
        if whole.len() == text.len() {
            self.ids.drain(..self.num_context);
            self.num_context = self.ids.len();
            self.num_emitted = self.tokenizer.decode(&self.ids)?.len();
        }
        Ok(piece)
    }

    /// What is left at the end: U+FFFD if the last character is not whole.
    pub fn finish(self) -> Result<String> {
        let text = self.tokenizer.decode(&self.ids)?;
        Ok(text.get(self.num_emitted..).unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream(ids: &[u32]) -> Vec<String> {
        let tokenizer = Tokenizer::byte();
        let mut decoder = StreamDecoder::new(&tokenizer);
        let mut pieces: Vec<String> = ids.iter().map(|&id| decoder.push(id).unwrap()).collect();
        pieces.push(decoder.finish().unwrap());
        pieces
    }

    #[test]
    fn a_character_comes_when_it_is_whole() {
        let ids: Vec<u32> = "a\u{1F33E}b".bytes().map(u32::from).collect();
        assert_eq!(stream(&ids), ["a", "", "", "", "\u{1F33E}", "b", ""]);
        assert_eq!(stream(&ids[..3]), ["a", "", "", "\u{FFFD}"]);
        assert_eq!(stream(&[0xFF, u32::from(b'a'), 256]), ["", "\u{FFFD}a", "", ""]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_pieces_are_the_decoded_whole(ids in prop::collection::vec(0u32..258, 0..50)) {
            prop_assert_eq!(stream(&ids).concat(), Tokenizer::byte().decode(&ids).unwrap());
        }
    }
}
