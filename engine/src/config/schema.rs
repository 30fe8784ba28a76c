//! The JSON Schema of the configuration, and the questions that loading asks it.
//!
//! The schema is derived from the structs, doc comments included, and the loader walks it to know which keys
//! there are: what is documented, what is accepted and what is suggested cannot drift apart.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::Config;

/// JSON Schema (draft 7, which editors understand) of a configuration file, every key with its description and
/// default.
pub fn schema() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<Config>().to_value();
    remove_null(&mut schema);
    // A section's default repeats those of its keys, and a required key has none.
    for section in properties_mut(&mut schema) {
        if let Some(section) = section.as_object_mut() {
            section.remove("default");
        }
        let required: Vec<String> = required(section).map(str::to_owned).collect();
        for name in required {
            if let Some(key) =
                section.pointer_mut(&format!("/properties/{name}")).and_then(Value::as_object_mut)
            {
                key.remove("default");
            }
        }
    }
    schema
}

/// Takes null, which TOML has not, out of types and defaults: a key that may be absent is just not required.
fn remove_null(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    if map.get("default").is_some_and(Value::is_null) {
        map.remove("default");
    }
    if let Some(Value::Array(types)) = map.get_mut("type") {
        types.retain(|name| name != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            map.insert("type".to_owned(), only);
        }
    }
    // A table that may be absent is one of its own shape and null: what is left of that is the shape.
    if let Some(Value::Array(variants)) = map.get_mut("anyOf") {
        variants.retain(|variant| variant.get("type").is_none_or(|name| name != "null"));
        if let [Value::Object(only)] = variants.as_mut_slice() {
            let only = std::mem::take(only);
            map.remove("anyOf");
            for (name, value) in only {
                map.entry(name).or_insert(value);
            }
        }
    }
    for (name, value) in map.iter_mut() {
        match (name.as_str(), value) {
            ("properties", Value::Object(properties)) => properties.values_mut().for_each(remove_null),
            ("oneOf" | "anyOf", Value::Array(variants)) => variants.iter_mut().for_each(remove_null),
            ("items", items) => remove_null(items),
            _ => {}
        }
    }
}

/// The keys of a section, or the sections of the whole, with the schema of each.
pub(super) fn properties(schema: &Value) -> Option<&Map<String, Value>> {
    schema.get("properties")?.as_object()
}

fn properties_mut(schema: &mut Value) -> impl Iterator<Item = &mut Value> {
    schema.get_mut("properties").and_then(Value::as_object_mut).into_iter().flat_map(|map| map.values_mut())
}

/// The keys of a section that have no default.
pub(super) fn required(section: &Value) -> impl Iterator<Item = &str> {
    section.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// The first sentence or clause of a key's description.
pub(super) fn summary(key: &Value) -> &str {
    let description = key.get("description").and_then(Value::as_str).unwrap_or_default();
    description.split(['.', ':', ';', '\n']).next().unwrap_or_default()
}

/// What values a key takes, in words; `None` for a type that explains itself when it is read.
pub(super) fn expected(key: &Value) -> Option<String> {
    if let Some(variants) = key.get("oneOf").and_then(Value::as_array) {
        let names: Option<Vec<&str>> =
            variants.iter().map(|variant| variant.get("const").and_then(Value::as_str)).collect();
        return names.map(|names| format!("one of {}", names.join(", ")));
    }
    match key.get("type")?.as_str()? {
        "integer" if key.get("minimum").is_some() => Some("a whole number, 0 or more".to_owned()),
        "integer" => Some("a whole number".to_owned()),
        "number" => Some("a number".to_owned()),
        "boolean" => Some("true or false".to_owned()),
        "string" => Some("a text in quotes".to_owned()),
        "array" => {
            let item = match key.pointer("/items/type").and_then(Value::as_str) {
                Some("string") => "texts in quotes",
                Some("integer") => "whole numbers, 0 or more,",
                _ => "values",
            };
            Some(format!("a list of {item} in brackets"))
        }
        _ => None,
    }
}

/// What other programs call our keys: names too far from ours to be found by their letters.
const OTHER_NAMES: [(&str, &str); 27] = [
    ("lr", "optimizer.learning_rate"),
    ("wd", "optimizer.weight_decay"),
    ("grad_clip", "optimizer.clip_norm"),
    ("max_grad_norm", "optimizer.clip_norm"),
    ("bs", "optimizer.batch_sequences"),
    ("batch_size", "optimizer.batch_sequences"),
    ("micro_batch_size", "optimizer.micro_batch_sequences"),
    ("seq_len", "data.sequence_length"),
    ("block_size", "data.sequence_length"),
    ("context_length", "data.sequence_length"),
    ("dim", "model.d_model"),
    ("hidden_size", "model.d_model"),
    ("n_embd", "model.d_model"),
    ("n_layer", "model.num_layers"),
    ("n_layers", "model.num_layers"),
    ("num_hidden_layers", "model.num_layers"),
    ("n_head", "model.num_heads"),
    ("n_heads", "model.num_heads"),
    ("num_attention_heads", "model.num_heads"),
    ("num_key_value_heads", "model.num_kv_heads"),
    ("intermediate_size", "model.ffn_size"),
    ("moe_intermediate_size", "moe.expert_ffn_size"),
    ("n_experts", "moe.num_experts"),
    ("num_local_experts", "moe.num_experts"),
    ("num_experts_per_tok", "moe.top_k"),
    ("aux_loss_coef", "moe.balance_loss_coefficient"),
    ("dtype", "precision.compute"),
];

/// The known key that is nearest to an unknown one: what another program calls so, else by edits of the name. A key
/// of another section counts only when its name is almost the same, so that a well-known key in the wrong section is
/// found and chance is not.
pub(super) fn nearest_key(schema: &Value, section: &str, name: &str) -> Option<String> {
    if let Some((_, ours)) = OTHER_NAMES.iter().find(|(theirs, _)| *theirs == name) {
        return Some((*ours).to_owned());
    }
    properties(schema)?
        .iter()
        .flat_map(|(candidate_section, keys)| {
            let keys = properties(keys).into_iter().flat_map(|keys| keys.keys());
            keys.map(move |key| (candidate_section, key))
        })
        .min_by_key(|(candidate_section, key)| {
            let edits = strsim::damerau_levenshtein(key, name);
            let is_near = edits <= name.len() / 4;
            let is_elsewhere = *candidate_section != section;
            (is_elsewhere && !is_near, edits + usize::from(is_elsewhere))
        })
        .map(|(section, key)| format!("{section}.{key}"))
}

/// The known section whose name is alike to an unknown one.
pub(super) fn nearest_section<'a>(schema: &'a Value, name: &str) -> Option<&'a str> {
    let alike = |candidate: &str| strsim::normalized_damerau_levenshtein(candidate, name);
    let candidates = properties(schema)?.keys().map(String::as_str);
    candidates.filter(|candidate| alike(candidate) >= 0.5).max_by(|a, b| alike(a).total_cmp(&alike(b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_section_and_key_is_described() {
        let schema = schema();
        for (name, section) in properties(&schema).unwrap() {
            assert!(section["description"].is_string(), "[{name}]");
            for (key, value) in properties(section).unwrap() {
                assert!(value["description"].is_string(), "{name}.{key}");
            }
        }
    }

    #[test]
    fn a_doc_comment_and_a_default_stand_in_the_schema() {
        let schema = schema();
        let key = &schema["properties"]["optimizer"]["properties"]["clip_norm"];
        assert!(key["description"].as_str().unwrap().starts_with("Largest global L2 norm"));
        assert_eq!(key["default"], 1.0);
        let choice = &schema["properties"]["schedule"]["properties"]["kind"]["oneOf"][1];
        assert_eq!(choice["const"], "cosine");
        assert!(choice["description"].as_str().unwrap().starts_with("Half a cosine"));
    }

    #[test]
    fn a_key_is_either_required_or_has_a_default_or_may_be_left_out() {
        let schema = schema();
        let mut optional = Vec::new();
        for (name, section) in properties(&schema).unwrap() {
            for (key, value) in properties(section).unwrap() {
                let is_required = required(section).any(|required| required == key);
                let has_default = value.get("default").is_some();
                assert!(!(is_required && has_default), "{name}.{key}");
                if !is_required && !has_default {
                    optional.push(format!("{name}.{key}"));
                }
            }
        }
        assert_eq!(
            optional,
            [
                "model.num_kv_heads",
                "model.head_dim",
                "model.vocab_size",
                "model.ffn_size",
                "model.rope_scaling",
                "moe.capacity_factor",
                "data.max_bytes",
                "tokenizer.path",
                "optimizer.micro_batch_sequences",
                "energy.tdp_watts",
                "energy.trace",
                "carbon.grams_per_kwh",
                "carbon.wue_l_per_kwh",
                "carbon.embodied",
                "telemetry.prometheus_address",
            ]
        );
    }

    #[test]
    fn no_part_of_the_schema_allows_null_which_toml_has_not() {
        assert!(!schema().to_string().contains("null"));
    }

    #[test]
    fn names_of_other_programs_lead_to_keys_that_exist() {
        let schema = schema();
        assert_eq!(nearest_key(&schema, "optimizer", "lr").unwrap(), "optimizer.learning_rate");
        for (theirs, ours) in OTHER_NAMES {
            let (section, key) = ours.split_once('.').unwrap();
            assert!(schema["properties"][section]["properties"][key].is_object(), "{ours}");
            assert!(
                schema["properties"][section]["properties"][theirs].is_null(),
                "{theirs} is a key of ours"
            );
        }
    }

    #[test]
    fn a_key_in_the_wrong_section_is_found_in_its_own() {
        let schema = schema();
        assert_eq!(nearest_key(&schema, "model", "top_k").unwrap(), "moe.top_k");
        assert_eq!(nearest_key(&schema, "model", "num_layer").unwrap(), "model.num_layers");
        assert_eq!(nearest_key(&schema, "eval", "max_token").unwrap(), "eval.max_tokens");
        assert_eq!(nearest_key(&schema, "", "sed").unwrap(), "run.seed");
        assert!(nearest_key(&schema, "model", "x").unwrap().starts_with("model."));
    }
}
