//! README.md of an exported model: what it is, what it cost, how to load it.

use std::fmt::Write;
use std::path::Path;

use wattle_energy::report::Details;
use wattle_energy::{Overrides, Report};

use super::LoadedModel;
use super::huggingface::Family;
use crate::telemetry::format;

/// The card. With the run's ledger it has the energy and `co2_eq_emissions`; without one it says that neither is known.
pub(super) fn model_card(
    model: &LoadedModel,
    family: Family,
    ledger: Option<&Path>,
) -> wattle_energy::Result<String> {
    let report = match ledger {
        Some(path) => Some(Report::from_ledger(path, &Overrides::default())?),
        None => None,
    };
    let front_matter = match &report {
        Some(report) => report.to_model_card(&Details::default())?,
        None => "---\n---\n".to_owned(),
    };
    // Keys of ours go before those of the report, inside the same block.
    let mut out =
        front_matter.replacen("---\n", "---\nlibrary_name: transformers\npipeline_tag: text-generation\n", 1);
    let name = &model.config.run.name;
    let name = if name.is_empty() { "A language model" } else { name };
    let weights = format::count(model.store.num_weights() as u64);
    // Writing to a string cannot fail.
    let _ = write!(
        out,
        "\n# {name}\n\nA language model of {weights} parameters, trained with wattle and written in the layout of \
         `{}`.\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
         model = AutoModelForCausalLM.from_pretrained(\"PATH\")\n\
         tokenizer = AutoTokenizer.from_pretrained(\"PATH\")\n```\n",
        family.architecture()
    );
    match &report {
        Some(report) => {
            let _ = write!(out, "\n{}", report.to_markdown());
        }
        None => out.push_str("\nThe energy of its training is not known: it came without a ledger.\n"),
    }
    Ok(out)
}
