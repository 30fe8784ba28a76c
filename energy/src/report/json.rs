//! The report for programs. Keys are stable and end in their unit.

use serde_json::{Value, json};

use super::{
    Account, DomainAccount, ExpertAccount, IntensityRecord, Report, RunReport, SegmentReport, WeekAccount,
};
use crate::carbon::GridIntensity;
use crate::ledger::Role;
use crate::units::Joules;

pub(super) fn render(report: &Report) -> Value {
    json!({
        "schema": "wattle-report/1",
        "notices": report.notices,
        "runs": report.runs.iter().map(|one| run(one, report)).collect::<Vec<_>>(),
        "weeks": report.weeks().iter().map(week).collect::<Vec<_>>(),
        "total": account(&report.total(), report),
    })
}

/// The weeks and the total alone.
pub(super) fn render_weeks(report: &Report) -> Value {
    json!({
        "schema": "wattle-report-weeks/1",
        "notices": report.notices,
        "weeks": report.weeks().iter().map(week).collect::<Vec<_>>(),
        "total": account(&report.total(), report),
    })
}

fn run(run: &RunReport, report: &Report) -> Value {
    let mut value = json!({
        "run_id": run.run_id,
        "uid": run.uid,
        "name": run.name,
        "ledger": run.ledger.display().to_string(),
        "config_hash": run.config_hash,
        "status": run.status.as_str(),
        "started_at": run.started_at,
        "alive_at": run.alive_at,
        "ended_at": run.ended_at,
        "final_loss_nats": run.final_loss,
        "segments": run.segments.iter().map(segment).collect::<Vec<_>>(),
        "experts": run.experts.iter().map(expert).collect::<Vec<_>>(),
        "marks": run.marks.iter().map(|mark| json!({
            "at": mark.at,
            "step": mark.step,
            "kind": mark.kind,
            "text": mark.text,
        })).collect::<Vec<_>>(),
    });
    if let (Value::Object(own), Value::Object(sums)) = (&mut value, account(&run.account, report)) {
        own.extend(sums);
    }
    value
}

fn segment(segment: &SegmentReport) -> Value {
    let with_role = |role| {
        let records = segment.intensities.iter().filter(move |record| record.role == role);
        records.map(record).collect::<Vec<_>>()
    };
    json!({
        "uid": segment.uid,
        "ledger": segment.ledger.display().to_string(),
        "rank": segment.rank,
        "world_size": segment.world_size,
        "number": segment.number,
        "status": segment.status.as_str(),
        "resumed_from_step": segment.resumed_from_step,
        "host": segment.host,
        "version": segment.version,
        "started_at": segment.started_at,
        "ended_at": segment.ended_at,
        "duration_seconds": segment.duration,
        "energy_joules": segment.energy.joules(),
        "emissions_grams_co2e": segment.grams,
        "pue": segment.pue,
        "wue_liters_per_kwh": segment.wue_l_per_kwh,
        "embodied": segment.embodied,
        "carbon_intensity": intensity(&segment.intensity),
        "carbon_intensities_priced": with_role(Role::Priced),
        "carbon_intensities_beside": with_role(Role::Beside),
        "sensor_resets": segment.sensor_health.map(|(resets, ..)| resets),
        "sensor_spikes": segment.sensor_health.map(|(_, spikes, _)| spikes),
        "sensor_gap_seconds": segment.sensor_health.map(|(.., seconds)| seconds),
        "overhead_cpu_seconds": segment.overhead,
    })
}

fn record(record: &IntensityRecord) -> Value {
    let mut value = intensity(&record.intensity);
    if let Value::Object(own) = &mut value {
        own.insert("learned_at".into(), json!(record.learned_at));
    }
    value
}

fn intensity(intensity: &GridIntensity) -> Value {
    json!({
        "grams_per_kwh": intensity.grams_per_kwh,
        "zone": intensity.zone,
        "year": intensity.year,
        "basis": intensity.basis,
        "accounting": intensity.accounting,
        "source": intensity.source,
        "from": intensity.period.map(|period| period.from),
        "until": intensity.period.map(|period| period.until),
        "estimated": intensity.estimated,
    })
}

fn expert(expert: &ExpertAccount) -> Value {
    let joules = expert.energy.joules();
    json!({
        "layer": expert.layer,
        "expert": expert.expert,
        "tokens": expert.tokens,
        "energy_joules": joules,
        "joules_per_token": (expert.tokens > 0).then(|| joules.0 / expert.tokens as f64),
    })
}

fn week(week: &WeekAccount) -> Value {
    json!({
        "week": week.name(),
        "monday": week.monday.to_string(),
        "runs": week.runs,
        "steps": week.steps,
        "tokens": week.tokens,
        "energy_joules": week.energy.map(|energy| energy.joules()),
        "energy_kwh": week.energy.map(|energy| energy.joules().kilowatt_hours()),
        "emissions_grams_co2e": week.energy.map(|_| week.grams),
    })
}

fn account(account: &Account, report: &Report) -> Value {
    // Without any reading the joules are unknown, and so is all that follows from them.
    let energy = account.joules();
    let part = |part: crate::MicroJoules| energy.map(|_| part.joules());
    let emissions = account.emissions();
    let range = account.range();
    let joules = energy.and_then(|energy| Some(range?.joules(energy)));
    let grams = emissions.and_then(|grams| Some(range?.grams(grams)));
    let mut value = json!({
        "duration_seconds": account.duration,
        "steps": account.steps,
        "tokens": account.tokens,
        "energy_joules": energy,
        "energy_joules_low": joules.map(|(low, _)| low),
        "energy_joules_high": joules.map(|(_, high)| high),
        "energy_kwh": energy.map(Joules::kilowatt_hours),
        "facility_energy_joules": energy.map(|_| account.facility),
        "superseded_energy_joules": part(account.superseded),
        "failed_energy_joules": part(account.failed),
        "aborted_energy_joules": part(account.aborted),
        "joules_per_token": account.joules_per_token(),
        "average_watts": account.average_power(),
        "emissions_grams_co2e": emissions,
        "emissions_grams_co2e_low": grams.map(|(low, _)| low),
        "emissions_grams_co2e_high": grams.map(|(_, high)| high),
        "mean_grams_per_kwh": account.mean_intensity(),
        "priced_by_estimates_percent": energy.map(|_| account.share_percent(account.priced_by_estimates)),
        "embodied_grams_co2e": account.embodied,
        "water_liters": energy.and(account.water_liters),
        "sci": sci(account, report),
        "measured_share_percent": energy.map(|_| account.measured_share() * 100.0),
        "incomplete_windows": account.incomplete_windows,
        "window_error_bound_joules": account.window_error_bound,
        "sensors": {
            "resets": account.sensors.resets,
            "spikes": account.sensors.spikes,
            "gap_seconds": account.sensors.gap,
            "overhead_cpu_seconds": account.sensors.overhead,
            "segments_that_have_not_told": account.sensors.untold,
        },
    });
    if let (Value::Object(own), Value::Object(parts)) = (&mut value, parts(account)) {
        own.extend(parts);
    }
    value
}

fn parts(account: &Account) -> Value {
    let energy = account.joules();
    json!({
        "windows": account.kinds.iter().map(|kind| json!({
            "kind": kind.kind,
            "windows": kind.windows,
            "duration_seconds": kind.duration,
            "energy_joules": energy.map(|_| kind.energy.joules()),
        })).collect::<Vec<_>>(),
        "phases": account.phases.iter().map(|phase| json!({
            "phase": phase.phase,
            "duration_seconds": phase.duration,
            "energy_joules": phase.energy.joules(),
        })).collect::<Vec<_>>(),
        "waste": account.waste.iter().map(|waste| json!({
            "reason": waste.reason,
            "count": waste.count,
            "energy_joules": waste.energy.joules(),
        })).collect::<Vec<_>>(),
        "domains": account.domains.iter().map(domain).collect::<Vec<_>>(),
    })
}

fn domain(domain: &DomainAccount) -> Value {
    let error = domain.gain_error();
    json!({
        "domain": domain.domain,
        "sensor": domain.sensor,
        "source": domain.source,
        "energy_joules": domain.energy.joules(),
        "gain_error_percent": error.map(|error| error.percent),
        "gain_error_origin": error.map(|error| error.origin),
    })
}

fn sci(account: &Account, report: &Report) -> Value {
    account.sci(report.per).map_or(Value::Null, |sci| {
        json!({
            "grams_co2e_per_unit": sci.grams,
            "functional_unit": sci.per.as_str(),
            "units": sci.units,
            "operational_grams_co2e": sci.operational,
            "embodied_grams_co2e": sci.embodied,
            "embodied": if sci.embodied.is_some() { "included" } else { "not declared" },
        })
    })
}
