//! A ledger of a long run, to measure reports on:
//!
//!     cargo build --release -p wattle-energy --example million_steps
//!     target/release/examples/million_steps make DIRECTORY [STEPS]
//!     /usr/bin/time -v target/release/examples/million_steps text DIRECTORY
//!     /usr/bin/time -v target/release/examples/million_steps json DIRECTORY
//!
//! A million steps of 0.1 s by default: a GPU's counter and a processor's, phases, 16 layers of 64 experts, an
//! evaluation every 1000 steps, and an hourly carbon intensity. Its windows are entered in bulk, for the ledger's
//! own writer waits for the disk; the schema and the segment are the ledger's own.

use std::path::{Path, PathBuf};
use std::time::Instant;

use jiff::Timestamp;
use rusqlite::{Connection, params};
use wattle_energy::{LEDGER_FILE_NAME, Ledger, Overrides, Report, RunInfo, RunStatus, carbon};

const STEP_MS: i64 = 100;
const GPU_MICROJOULES: u64 = 35_000_000;
const CPU_MICROJOULES: u64 = 8_000_000;
const TOKENS: u64 = 32_768;
const STEPS_TO_EVALUATION: u64 = 1000;
const PHASES: [&str; 7] = ["experts", "attention", "head", "router", "dispatch", "optimizer", "other"];
const LAYERS: u64 = 16;
const EXPERTS: u64 = 64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (what, directory) =
        arguments.next().zip(arguments.next()).ok_or("give make, text or json, and a directory")?;
    let directory = PathBuf::from(directory);
    let report = || Report::from_ledger(&directory, &Overrides::default());
    match what.as_str() {
        "make" => make(&directory, arguments.next().map_or(Ok(1_000_000), |steps| steps.parse())?)?,
        "text" => print!("{}", report()?.to_text()),
        "json" => println!("{:#}", report()?.to_json()),
        other => return Err(format!("{other} is none of make, text and json").into()),
    }
    Ok(())
}

fn make(directory: &Path, steps: u64) -> Result<(), Box<dyn std::error::Error>> {
    std::fs::create_dir_all(directory)?;
    let path = directory.join(LEDGER_FILE_NAME);
    if path.exists() {
        return Err(format!("{} is there already", path.display()).into());
    }
    let begin = Instant::now();
    let info = RunInfo { pue: 1.1, ..RunInfo::new("million-steps", carbon::lookup("FRA")?) };
    Ledger::open(&path, &info)?.finish(RunStatus::Completed, None)?;
    let mut connection = Connection::open(&path)?;
    connection.pragma_update(None, "synchronous", "OFF")?;
    let transaction = connection.transaction()?;
    let start_ms = Timestamp::now().as_millisecond();
    enter_windows(&transaction, steps, start_ms)?;
    enter_intensities(&transaction, start_ms, start_ms + steps as i64 * STEP_MS)?;
    enter_split(&transaction, steps)?;
    transaction.commit()?;
    connection.pragma_update_and_check(None, "wal_checkpoint", "TRUNCATE", |_| Ok(()))?;
    let bytes = std::fs::metadata(&path)?.len();
    println!("{}: {steps} steps, {} MB, {:.1?}", path.display(), bytes / 1_000_000, begin.elapsed());
    Ok(())
}

fn enter_windows(ledger: &Connection, steps: u64, start_ms: i64) -> rusqlite::Result<()> {
    for (id, domain, sensor) in [(1, "gpu-0", "nvml"), (2, "package-0", "rapl")] {
        ledger.execute(
            "INSERT INTO sensor (id, segment, domain, sensor, source) VALUES (?1, 1, ?2, ?3, 'measured_counter')",
            params![id, domain, sensor],
        )?;
    }
    let mut window = ledger.prepare(
        "INSERT INTO window (segment, seq, kind, step, tokens, ended_ms, seconds, microjoules, intensity, grams, loss,
                             error_bound_joules, complete)
         VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, 0, ?8, ?9, 0.2, 1)",
    )?;
    let mut energy = ledger
        .prepare("INSERT INTO window_energy (segment, seq, sensor, microjoules) VALUES (1, ?1, ?2, ?3)")?;
    let (mut seq, mut ended_ms) = (0u64, start_ms);
    let mut enter = |kind: &str, step: u64, tokens: u64, loss: Option<f64>| -> rusqlite::Result<()> {
        // Parts in a thousand, so that no two windows in a row are the same.
        let wobble = seq * 7919 % 1000;
        let (gpu, cpu) = (GPU_MICROJOULES + wobble * 1000, CPU_MICROJOULES + wobble * 100);
        ended_ms += STEP_MS;
        let grams = (gpu + cpu) as f64 / 3.6e12 * 41.0 * 1.1;
        let seconds = STEP_MS as f64 / 1000.0;
        window.execute(params![seq, kind, step, tokens, ended_ms, seconds, gpu + cpu, grams, loss])?;
        energy.execute(params![seq, 1, gpu])?;
        energy.execute(params![seq, 2, cpu])?;
        seq += 1;
        Ok(())
    };
    for step in 1..=steps {
        enter("step", step, TOKENS, Some(2.0 + 8.0 / (step as f64).sqrt()))?;
        if step % STEPS_TO_EVALUATION == 0 {
            enter("evaluation", step, 0, None)?;
        }
    }
    Ok(())
}

/// One figure for each hour, as a provider gives them.
fn enter_intensities(ledger: &Connection, start_ms: i64, end_ms: i64) -> rusqlite::Result<()> {
    const HOUR_MS: i64 = 3_600_000;
    let first = start_ms - start_ms.rem_euclid(HOUR_MS);
    for (number, from_ms) in (1i64..).zip((first..=end_ms).step_by(HOUR_MS as usize)) {
        ledger.execute(
            "INSERT INTO intensity (segment, number, role, grams_per_kwh, zone, basis, accounting, source, year,
                                    from_ms, until_ms, estimated, learned_ms)
             VALUES (1, ?1, 'priced', ?2, 'FR', 'lifecycle_average', 'location', 'electricity_maps', NULL, ?3, ?4, ?5,
                     ?3)",
            params![number, 30 + number * 13 % 50, from_ms, from_ms + HOUR_MS, number % 4 == 0],
        )?;
    }
    Ok(())
}

/// Phases that add up to the steps, and experts that add up to their phase.
fn enter_split(ledger: &Connection, steps: u64) -> rusqlite::Result<()> {
    let of_steps: u64 =
        ledger.query_row("SELECT sum(microjoules) FROM window WHERE kind = 'step'", [], |row| row.get(0))?;
    let part = of_steps / PHASES.len() as u64;
    let of_experts = of_steps - part * (PHASES.len() as u64 - 1);
    for phase in PHASES {
        let energy = if phase == "experts" { of_experts } else { part };
        let seconds = steps as f64 * STEP_MS as f64 / 1000.0 / PHASES.len() as f64;
        ledger.execute("INSERT INTO phase_energy VALUES (1, ?1, ?2, ?3)", params![phase, seconds, energy])?;
    }
    let each = of_experts / (LAYERS * EXPERTS);
    let mut rest = of_experts;
    for expert in 0..LAYERS * EXPERTS {
        let energy = if expert + 1 == LAYERS * EXPERTS { rest } else { each - expert };
        rest -= energy;
        ledger.execute(
            "INSERT INTO expert_energy VALUES (1, ?1, ?2, ?3, ?4)",
            params![expert / EXPERTS, expert % EXPERTS, steps * TOKENS * 8 / EXPERTS, energy],
        )?;
    }
    ledger.execute("INSERT INTO waste VALUES (1, 'padding', ?1, ?2)", params![steps * 12, of_steps / 100])?;
    Ok(())
}
