//! The report as a BoAmps document, Boavizta's exchange format for the energy of AI tasks.
//!
//! Source of the fields: github.com/Boavizta/BoAmps, model/report_schema.json and the schemas beside it. One document
//! tells one task, so several runs make a list. Energy is that of the computers, in kilowatt-hours. What the schema
//! requires and a ledger does not know is said in the schema's own words for it ("other"), never made up.

use serde_json::{Map, Value, json};

use super::emissions_csv::{Hardware, num_domains};
use super::{Account, Details, Report, RunReport};
use crate::carbon;

impl Report {
    /// A document, or a list of them where there are several runs.
    pub fn to_boamps(&self, details: &Details) -> Value {
        let mut documents: Vec<Value> = self.runs.iter().map(|run| document(run, details)).collect();
        match documents.pop() {
            Some(only) if documents.is_empty() => only,
            Some(last) => {
                documents.push(last);
                Value::Array(documents)
            }
            None => Value::Array(documents),
        }
    }
}

fn document(run: &RunReport, details: &Details) -> Value {
    let ended = run.ended_at.or(run.alive_at).unwrap_or(run.started_at);
    let stage = match details.training_type.as_deref() {
        Some("fine-tuning") => "finetuning",
        _ => "training",
    };
    let mut document = json!({
        "header": {
            "formatVersion": "0.1",
            "formatVersionSpecificationUri": "https://github.com/Boavizta/BoAmps/tree/main/model",
            "reportId": run.uid,
            "reportDatetime": ended.strftime("%Y-%m-%d %H:%M:%S").to_string(),
            "reportStatus": if run.ended_at.is_some() { "final" } else { "draft" },
        },
        "task": {
            "taskStage": stage,
            "taskFamily": "language modelling",
            "algorithms": [{
                "algorithmType": "llm",
                "algorithmName": "mixture-of-experts transformer",
                "framework": "wattle",
                "frameworkVersion": env!("CARGO_PKG_VERSION"),
            }],
            "dataset": [{ "dataUsage": "input", "dataType": "token", "dataQuantity": run.account.tokens }],
            "taskDescription": format!("{} ({})", run.run_id, run.name),
        },
        "measures": [measure(run)],
        "system": { "os": std::env::consts::OS },
        "software": { "language": "rust" },
        "infrastructure": { "infraType": "other", "components": components(run, details) },
    });
    if let Value::Object(own) = &mut document {
        if let Some(environment) = environment(run) {
            own.insert("environment".into(), environment);
        }
        if let Some(quality) = quality(&run.account) {
            own.insert("quality".into(), quality.into());
        }
    }
    document
}

fn measure(run: &RunReport) -> Value {
    let account = &run.account;
    let tracking = |hardware| {
        let of_it = account.domains.iter().find(|part| Hardware::of_domain(&part.domain) == Some(hardware));
        of_it.map(|part| format!("{} ({})", part.sensor, part.source))
    };
    let mut measure = Map::new();
    measure.insert("measurementMethod".into(), "wattle".into());
    measure.insert("version".into(), env!("CARGO_PKG_VERSION").into());
    for (key, hardware) in [("cpuTrackingMode", Hardware::Cpu), ("gpuTrackingMode", Hardware::Gpu)] {
        if let Some(mode) = tracking(hardware) {
            measure.insert(key.into(), mode.into());
        }
    }
    // Without a reading the key is left out: the schema wants a number, and 0 would not be true.
    if let Some(joules) = account.joules() {
        measure.insert("powerConsumption".into(), json!(joules.kilowatt_hours()));
    }
    measure.insert("measurementDuration".into(), json!(account.duration));
    let started = run.started_at.strftime("%Y-%m-%d %H:%M:%S").to_string();
    measure.insert("measurementDateTime".into(), started.into());
    measure.into()
}

fn components(run: &RunReport, details: &Details) -> Vec<Value> {
    let kinds = [(Hardware::Cpu, "cpu"), (Hardware::Gpu, "gpu"), (Hardware::Ram, "ram")];
    let mut components: Vec<Value> = kinds
        .into_iter()
        .map(|(hardware, name)| (num_domains(run, hardware), name))
        .filter(|(count, _)| *count > 0)
        .map(|(count, name)| json!({ "componentType": name, "nbComponent": count }))
        .collect();
    if let Some(hardware) = &details.hardware {
        components.push(json!({ "componentName": hardware, "componentType": "other", "nbComponent": 1 }));
    }
    if components.is_empty() {
        components.push(json!({ "componentType": "other", "nbComponent": 1 }));
    }
    components
}

fn environment(run: &RunReport) -> Option<Value> {
    let zone = &run.segments.first()?.intensity.zone;
    let mut environment = json!({ "country": carbon::country_name(zone).unwrap_or(zone) });
    if let (Value::Object(own), Some(mean)) = (&mut environment, run.account.mean_intensity()) {
        own.insert("powerSourceCarbonIntensity".into(), json!(mean));
    }
    Some(environment)
}

/// The schema's classes: within 10, 25 or 50 %.
fn quality(account: &Account) -> Option<&'static str> {
    let off_percent = (account.range()?.high - 1.0) * 100.0;
    [(10.0, "high"), (25.0, "medium"), (50.0, "low")]
        .into_iter()
        .find(|(most, _)| off_percent <= *most)
        .map(|(_, class)| class)
}
