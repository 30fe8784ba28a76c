//! One ledger out of several: ranks, runs, machines.

use std::path::Path;

use rusqlite::{Connection, Transaction, params};

use super::store;
use crate::error::{Error, Result};

/// Tables whose rows belong to a segment, with their columns beside `segment`; sensors and window energies, which
/// are numbered anew, come apart.
const OF_A_SEGMENT: [(&str, &str); 6] = [
    (
        "intensity",
        "number, role, grams_per_kwh, zone, basis, accounting, source, year, from_ms, until_ms, estimated, learned_ms",
    ),
    (
        "window",
        "seq, kind, step, tokens, ended_ms, seconds, microjoules, intensity, grams, loss, error_bound_joules, \
         complete, superseded",
    ),
    ("phase_energy", "phase, seconds, microjoules"),
    ("expert_energy", "layer, expert, tokens, microjoules"),
    ("waste", "reason, count, microjoules"),
    ("mark", "number, at_ms, step, kind, text"),
];

/// All columns of a segment but its id and its run.
const SEGMENT: &str = "uid, rank, world_size, number, resumed_from_step, started_ms, alive_ms, ended_ms, status, host, \
                       version, pue, wue_l_per_kwh, embodied_kg, embodied_years, embodied_share, embodied_boundary, \
                       sensor_resets, sensor_spikes, gap_seconds, overhead_seconds";

/// Copies every run of the ledgers `from` into the ledger `into`, which is created when it is not there.
///
/// A segment that `into` has already is replaced by its newer copy: merging twice counts nothing twice, and merging
/// again brings what a running process has added. Each source is taken whole or not at all.
///
/// # Errors
/// When a source cannot be read or `into` cannot be written, or is itself among the sources.
pub fn merge(into: &Path, from: &[impl AsRef<Path>]) -> Result<()> {
    let mut connection = store::open_for_writing(into)?;
    for source in from {
        let (path, checked) = store::open_for_reading(source.as_ref())?;
        drop(checked);
        if path.canonicalize().ok() == into.canonicalize().ok() {
            return Err(Error::Ledger {
                path,
                action: "merge",
                reason: "it is the ledger to merge into".into(),
                remedy: "merge into another file",
            });
        }
        let read = |error: rusqlite::Error| store::failure(&path, "merge", &error);
        let uri = format!("{}?mode=ro", store::uri(&path));
        connection.execute("ATTACH DATABASE ?1 AS source", [uri]).map_err(read)?;
        let copied = copy(&mut connection);
        let detached = connection.execute_batch("DETACH DATABASE source");
        copied.and(detached).map_err(read)?;
    }
    Ok(())
}

fn copy(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    transaction.execute(
        "INSERT INTO main.run (uid, run_id, name, config_hash, started_ms, ended_ms, status)
         SELECT uid, run_id, name, config_hash, started_ms, ended_ms, status FROM source.run WHERE true
         ON CONFLICT (uid) DO UPDATE
         SET config_hash = excluded.config_hash, ended_ms = excluded.ended_ms, status = excluded.status",
        [],
    )?;
    let segments = {
        let mut statement = transaction.prepare(
            "SELECT source.segment.id, source.segment.uid, main.run.id
             FROM source.segment JOIN source.run ON source.run.id = source.segment.run
                                 JOIN main.run ON main.run.uid = source.run.uid
             ORDER BY source.segment.id",
        )?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        rows.collect::<rusqlite::Result<Vec<(i64, String, i64)>>>()?
    };
    for (theirs, uid, run) in segments {
        remove_segment(&transaction, &uid)?;
        copy_segment(&transaction, theirs, run)?;
    }
    transaction.commit()
}

fn remove_segment(transaction: &Transaction<'_>, uid: &str) -> rusqlite::Result<()> {
    let tables = OF_A_SEGMENT.iter().map(|(table, _)| *table);
    // A window goes after its energies, which refer to it.
    for table in ["window_energy", "sensor"].into_iter().chain(tables) {
        transaction.execute(
            &format!(
                "DELETE FROM main.{table} WHERE segment IN (SELECT id FROM main.segment WHERE uid = ?1)"
            ),
            [uid],
        )?;
    }
    transaction.execute("DELETE FROM main.segment WHERE uid = ?1", [uid])?;
    Ok(())
}

fn copy_segment(transaction: &Transaction<'_>, theirs: i64, run: i64) -> rusqlite::Result<()> {
    transaction.execute(
        &format!(
            "INSERT INTO main.segment (run, {SEGMENT}) SELECT ?2, {SEGMENT} FROM source.segment WHERE id = ?1"
        ),
        params![theirs, run],
    )?;
    let ours = transaction.last_insert_rowid();
    for (table, columns) in OF_A_SEGMENT {
        transaction.execute(
            &format!(
                "INSERT INTO main.{table} (segment, {columns})
                 SELECT ?2, {columns} FROM source.{table} WHERE segment = ?1"
            ),
            params![theirs, ours],
        )?;
    }
    transaction.execute(
        "INSERT INTO main.sensor (segment, domain, sensor, source)
         SELECT ?2, domain, sensor, source FROM source.sensor WHERE segment = ?1",
        params![theirs, ours],
    )?;
    transaction.execute(
        "INSERT INTO main.window_energy (segment, seq, sensor, microjoules)
         SELECT ?2, seq, main.sensor.id, microjoules
         FROM source.window_energy JOIN source.sensor ON source.sensor.id = source.window_energy.sensor
              JOIN main.sensor ON main.sensor.segment = ?2 AND main.sensor.domain = source.sensor.domain
                   AND main.sensor.sensor = source.sensor.sensor AND main.sensor.source = source.sensor.source
         WHERE source.window_energy.segment = ?1",
        params![theirs, ours],
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ask, run, step, window};
    use super::super::{Ledger, RunInfo, RunStatus};
    use super::*;

    fn write(path: &Path, run_id: &str, windows: u64) {
        let mut ledger = Ledger::open(path, &RunInfo { run_id: run_id.into(), ..run(None) }).unwrap();
        for seq in 0..windows {
            ledger.record(&window(seq, 10), step(seq + 1)).unwrap();
        }
        ledger.finish(RunStatus::Completed, None).unwrap();
    }

    fn sums(path: &Path) -> [i64; 4] {
        [
            "SELECT count(*) FROM run",
            "SELECT count(*) FROM segment",
            "SELECT sum(microjoules) FROM window",
            "SELECT sum(microjoules) FROM window_energy JOIN sensor ON sensor.id = window_energy.sensor",
        ]
        .map(|sql| ask(path, sql))
    }

    #[test]
    fn runs_of_several_ledgers_stand_in_one_and_none_counts_twice() {
        let directory = tempfile::tempdir().unwrap();
        let [all, first, second] = ["all", "first", "second"].map(|name| directory.path().join(name));
        write(&first, "one", 5);
        write(&second, "two", 7);
        merge(&all, &[&first, &second]).unwrap();
        assert_eq!(sums(&all), [2, 2, 120, 120]);
        merge(&all, &[&second, &first]).unwrap();
        assert_eq!(sums(&all), [2, 2, 120, 120]);
        assert_eq!(sums(&first), [1, 1, 50, 50], "a source is not touched");
    }

    #[test]
    fn merging_again_brings_what_a_run_has_added() {
        let directory = tempfile::tempdir().unwrap();
        let [all, own] = ["all", "own"].map(|name| directory.path().join(name));
        let mut ledger = Ledger::open(&own, &run(None)).unwrap();
        ledger.record(&window(0, 10), step(1)).unwrap();
        ledger.flush().unwrap();
        merge(&all, &[&own]).unwrap();
        assert_eq!(sums(&all), [1, 1, 10, 10]);
        ledger.record(&window(1, 10), step(2)).unwrap();
        ledger.finish(RunStatus::Completed, None).unwrap();
        write(&own, "run-1", 3);
        merge(&all, &[&own]).unwrap();
        // The second segment began anew: the steps of the first are superseded, here as there.
        assert_eq!(sums(&all), [1, 2, 50, 50]);
        assert_eq!(ask(&all, "SELECT sum(microjoules) FROM window WHERE superseded"), 20);
        assert_eq!(ask(&all, "SELECT count(*) FROM run WHERE status = 'completed'"), 1);
    }

    #[test]
    fn a_damaged_source_leaves_the_ledger_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let [all, own, bad] = ["all", "own", "bad"].map(|name| directory.path().join(name));
        write(&own, "one", 5);
        std::fs::write(&bad, "no ledger").unwrap();
        let error = merge(&all, &[&own, &bad]).unwrap_err().to_string();
        assert!(error.contains("bad") && error.contains("no ledger"), "{error}");
        assert_eq!(sums(&all), [1, 1, 50, 50]);
        let error = merge(&all, &[&all]).unwrap_err().to_string();
        assert!(error.contains("merge into another file"), "{error}");
    }
}
