//! The benchmark presets: models of fixed shape on which training speed is compared.

use super::config::{ModelConfig, MoeConfig};

/// The preset called `name`, whatever its case.
pub fn preset(name: &str) -> Option<Preset> {
    SHAPES.iter().find(|shape| shape.name.eq_ignore_ascii_case(name)).map(Shape::preset)
}

/// The names of all presets, the smallest first.
pub fn preset_names() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|shape| shape.name)
}

/// A model and the batch it is measured on.
#[derive(Debug, Clone, PartialEq)]
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// Number of token ids.
    pub vocab_size: usize,
    /// The transformer.
    pub model: ModelConfig,
    /// Its experts.
    pub moe: MoeConfig,
    /// Tokens of a sequence.
    pub sequence_length: usize,
    /// Sequences of a step; 1 for OLMOE, whose batch is meant to be raised to what the memory holds.
    pub batch: usize,
}

/// One row of the table of presets.
struct Shape {
    name: &'static str,
    vocab_size: usize,
    d_model: usize,
    num_layers: usize,
    num_heads: usize,
    num_kv_heads: usize,
    sequence_length: usize,
    num_experts: usize,
    top_k: usize,
    expert_ffn_size: usize,
    batch: usize,
    tied_embedding: bool,
}

#[rustfmt::skip]
const SHAPES: [Shape; 5] = [
    Shape { name: "S", vocab_size: 4096, d_model: 256, num_layers: 6, num_heads: 8, num_kv_heads: 4, sequence_length: 256,
            num_experts: 8, top_k: 2, expert_ffn_size: 512, batch: 16, tied_embedding: true },
    Shape { name: "M", vocab_size: 8192, d_model: 512, num_layers: 8, num_heads: 8, num_kv_heads: 4, sequence_length: 512,
            num_experts: 16, top_k: 2, expert_ffn_size: 768, batch: 8, tied_embedding: true },
    Shape { name: "F", vocab_size: 8192, d_model: 512, num_layers: 4, num_heads: 8, num_kv_heads: 4, sequence_length: 512,
            num_experts: 64, top_k: 8, expert_ffn_size: 256, batch: 8, tied_embedding: true },
    Shape { name: "G", vocab_size: 32768, d_model: 1024, num_layers: 16, num_heads: 16, num_kv_heads: 16, sequence_length: 2048,
            num_experts: 32, top_k: 4, expert_ffn_size: 512, batch: 16, tied_embedding: true },
    Shape { name: "OLMOE", vocab_size: 50304, d_model: 2048, num_layers: 16, num_heads: 16, num_kv_heads: 16, sequence_length: 4096,
            num_experts: 64, top_k: 8, expert_ffn_size: 1024, batch: 1, tied_embedding: false },
];

impl Shape {
    fn preset(&self) -> Preset {
        Preset {
            name: self.name,
            vocab_size: self.vocab_size,
            model: ModelConfig {
                d_model: self.d_model,
                num_layers: self.num_layers,
                num_heads: self.num_heads,
                num_kv_heads: Some(self.num_kv_heads),
                tied_embedding: self.tied_embedding,
                ..ModelConfig::default()
            },
            moe: MoeConfig {
                num_experts: self.num_experts,
                top_k: self.top_k,
                expert_ffn_size: self.expert_ffn_size,
                ..MoeConfig::default()
            },
            sequence_length: self.sequence_length,
            batch: self.batch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_valid_and_found_by_its_name() {
        for name in preset_names() {
            let preset = preset(name).unwrap();
            assert_eq!(preset.model.validate(), []);
            assert_eq!(preset.moe.validate(&preset.model), []);
        }
        assert_eq!(preset("s"), preset("S"));
        assert_eq!(preset("XL"), None);
    }
}
