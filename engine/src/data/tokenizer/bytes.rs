//! The byte tokenizer as a tokenizer.json: byte-level BPE without a merge, whose ids are the bytes
//! themselves.

use serde_json::json;

use super::BOUNDARY_TOKEN;

/// The file's text.
pub(super) fn byte_tokenizer_json() -> String {
    let vocabulary: serde_json::Map<String, serde_json::Value> =
        (0..=u8::MAX).map(|byte| (byte_char(byte).to_string(), byte.into())).collect();
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false
    });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [{
            "id": 256, "content": BOUNDARY_TOKEN, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        }],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": []
        }
    })
    .to_string()
}

/// Whether a loaded file is that of the byte tokenizer.
pub(super) fn is_byte_tokenizer(model: &tokenizers::Tokenizer) -> bool {
    let ids = model.get_vocab(true);
    ids.len() == 257
        && ids.get(BOUNDARY_TOKEN) == Some(&256)
        && (0..=u8::MAX).all(|byte| ids.get(byte_char(byte).encode_utf8(&mut [0; 4])) == Some(&byte.into()))
}

/// The character that stands for a byte in byte-level vocabularies (GPT-2's `bytes_to_unicode`): itself where
/// it is visible in Latin-1, else the next free one from U+0100.
pub(super) fn byte_char(byte: u8) -> char {
    let is_visible = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if is_visible(byte) {
        return char::from(byte);
    }
    let num_hidden_before = (0..byte).filter(|&other| !is_visible(other)).count() as u32;
    char::from_u32(0x100 + num_hidden_before).unwrap_or(char::REPLACEMENT_CHARACTER)
}
