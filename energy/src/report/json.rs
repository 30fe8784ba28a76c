//! The report for programs. Keys are stable and end in their unit.

use serde_json::{Value, json};

use super::{Account, Report, RunReport, SegmentReport};
use crate::units::Joules;

pub(super) fn render(report: &Report) -> Value {
    json!({
        "schema": "wattle-report/1",
        "runs": report.runs.iter().map(run).collect::<Vec<_>>(),
        "total": account(&report.total()),
    })
}

fn run(run: &RunReport) -> Value {
    let mut value = json!({
        "run_id": run.run_id,
        "uid": run.uid,
        "name": run.name,
        "ledger": run.ledger.display().to_string(),
        "config_hash": run.config_hash,
        "status": run.status.as_str(),
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "final_loss_nats": run.final_loss,
        "segments": run.segments.iter().map(segment).collect::<Vec<_>>(),
    });
    if let (Value::Object(own), Value::Object(sums)) = (&mut value, account(&run.account)) {
        own.extend(sums);
    }
    value
}

fn segment(segment: &SegmentReport) -> Value {
    json!({
        "number": segment.number,
        "status": segment.status.as_str(),
        "resumed_from_step": segment.resumed_from_step,
        "host": segment.host,
        "energy_joules": segment.energy.joules(),
        "pue": segment.pue,
        "carbon_intensity": {
            "grams_per_kwh": segment.intensity.grams_per_kwh,
            "zone": segment.intensity.zone,
            "year": segment.intensity.year,
            "basis": segment.intensity.basis,
            "source": segment.intensity.source,
        },
    })
}

fn account(account: &Account) -> Value {
    // Without any reading the joules are unknown, and so is all that follows from them.
    let energy = account.joules();
    json!({
        "duration_seconds": account.duration,
        "steps": account.steps,
        "tokens": account.tokens,
        "energy_joules": energy,
        "energy_kwh": energy.map(Joules::kilowatt_hours),
        "facility_energy_joules": energy.map(|_| account.facility),
        "superseded_energy_joules": energy.map(|_| account.superseded.joules()),
        "joules_per_token": account.joules_per_token(),
        "average_watts": account.average_power(),
        "emissions_grams_co2e": energy.map(|_| account.grams),
        "measured_share_percent": energy.map(|_| account.measured_share() * 100.0),
        "incomplete_windows": account.incomplete_windows,
        "windows": account.kinds.iter().map(|kind| json!({
            "kind": kind.kind,
            "windows": kind.windows,
            "duration_seconds": kind.duration,
            "energy_joules": energy.map(|_| kind.energy.joules()),
        })).collect::<Vec<_>>(),
        "domains": account.domains.iter().map(|domain| json!({
            "domain": domain.domain,
            "sensor": domain.sensor,
            "source": domain.source,
            "energy_joules": domain.energy.joules(),
        })).collect::<Vec<_>>(),
    })
}
