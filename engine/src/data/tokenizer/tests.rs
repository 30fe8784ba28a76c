//! What a tokenizer promises: text comes back, files load as they were saved, bad ones are named.

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
