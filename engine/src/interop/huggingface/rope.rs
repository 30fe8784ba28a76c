//! Rotary positions in config.json: `rope_parameters` of transformers 5, `rope_theta` and `rope_scaling` before.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use crate::model::RopeScaling;
use crate::model::config::ModelConfig;

/// Reads what there is into `model`.
pub(super) fn read(fields: &mut Fields, model: &mut ModelConfig, max_positions: usize) {
    let theta = fields.number("rope_theta");
    let fraction = fields.number("partial_rotary_factor");
    let old = fields.object("rope_scaling");
    let new = fields.object("rope_parameters");
    let mut own = Fields::new(new.or(old).unwrap_or_default());
    model.rope_theta = own.number("rope_theta").or(theta).unwrap_or(10_000.0);
    model.rotary_fraction = own.number("partial_rotary_factor").or(fraction).unwrap_or(model.rotary_fraction);
    let kind = own.text("rope_type").or_else(|| own.text("type"));
    own.ignore(&["type"]);
    model.rope_scaling = match kind.as_deref() {
        None | Some("default") => None,
        Some("linear") => Some(RopeScaling::Linear { factor: required(&mut own, "factor") }),
        Some("llama3") => Some(RopeScaling::Llama3 {
            factor: required(&mut own, "factor"),
            low_freq_factor: required(&mut own, "low_freq_factor"),
            high_freq_factor: required(&mut own, "high_freq_factor"),
            original_max_positions: own.required_size("original_max_position_embeddings"),
        }),
        Some("yarn") => Some(yarn(&mut own, max_positions)),
        Some(other) => {
            own.problems
                .push(format!("rope_type is \"{other}\"; default, linear, llama3 and yarn are supported"));
            // Its own keys are no further problems.
            fields.problems.extend(std::mem::take(&mut own.problems).iter().map(in_rope));
            return;
        }
    };
    fields.problems.extend(own.finish().iter().map(in_rope));
}

fn in_rope(problem: &String) -> String {
    format!("rope_parameters.{problem}")
}

fn required(fields: &mut Fields, key: &str) -> f64 {
    fields.number(key).unwrap_or_else(|| {
        fields.problems.push(format!("{key} is missing, expected a number"));
        1.0
    })
}

fn yarn(own: &mut Fields, max_positions: usize) -> RopeScaling {
    let factor = required(own, "factor");
    let scale = |mscale: f64| if factor > 1.0 { 0.1 * mscale * factor.ln() + 1.0 } else { 1.0 };
    let attention_factor = own.number("attention_factor");
    let attention_factor = match (attention_factor, own.number("mscale"), own.number("mscale_all_dim")) {
        (Some(given), ..) => given,
        (None, Some(of_heads), Some(of_all)) => scale(of_heads) / scale(of_all),
        _ => scale(1.0),
    };
    own.only("truncate", &json!(true));
    RopeScaling::Yarn {
        factor,
        beta_fast: own.number("beta_fast").unwrap_or(32.0),
        beta_slow: own.number("beta_slow").unwrap_or(1.0),
        attention_factor,
        original_max_positions: own.size("original_max_position_embeddings").unwrap_or(max_positions),
    }
}

/// `rope_parameters` of a model.
pub(super) fn write(model: &ModelConfig) -> Value {
    let mut out = Map::new();
    out.insert("rope_theta".into(), json!(model.rope_theta));
    if model.rotary_fraction != 1.0 {
        out.insert("partial_rotary_factor".into(), json!(model.rotary_fraction));
    }
    let further = match model.rope_scaling {
        None => json!({"rope_type": "default"}),
        Some(RopeScaling::Linear { factor }) => json!({"rope_type": "linear", "factor": factor}),
        Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions }) => {
            json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_positions,
            })
        }
        Some(RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            attention_factor,
            original_max_positions,
        }) => json!({
            "rope_type": "yarn",
            "factor": factor,
            "beta_fast": beta_fast,
            "beta_slow": beta_slow,
            "attention_factor": attention_factor,
            "original_max_position_embeddings": original_max_positions,
        }),
    };
    if let Value::Object(further) = further {
        out.extend(further);
    }
    out.into()
}
