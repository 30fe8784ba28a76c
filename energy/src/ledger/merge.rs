//! One ledger out of several: ranks, runs, machines.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, Transaction, params};

use super::store;
use crate::error::{Error, Result};

/// Tables whose rows belong to a segment, with their columns beside `segment`; sensors and window energies, which
/// are numbered anew, come apart.
const OF_A_SEGMENT: [(&str, &str); 6] = [
    ("intensity", INTENSITY),
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

/// All columns of an intensity but its segment.
const INTENSITY: &str = "number, role, grams_per_kwh, zone, basis, accounting, source, year, from_ms, until_ms, \
                         estimated, learned_ms";

/// The same without the number.
const LEARNED: &str =
    "role, grams_per_kwh, zone, basis, accounting, source, year, from_ms, until_ms, estimated, learned_ms";

/// All columns of a segment but its id and its run.
const SEGMENT: &str = "uid, rank, world_size, number, resumed_from_step, started_ms, alive_ms, ended_ms, status, host, \
                       version, pue, wue_l_per_kwh, embodied_kg, embodied_years, embodied_share, embodied_boundary, \
                       sensor_resets, sensor_spikes, gap_seconds, overhead_seconds";

/// Copies every run of the ledgers `from` into the ledger `into`, which is created when it is not there.
///
/// A segment that `into` has already is replaced by a copy that is as new or newer: merging twice counts nothing twice,
/// and merging again brings what a running process has added. Intensities that `into` learned by itself stay. Each
/// source is taken whole or not at all, and none when one of them is no ledger.
///
/// # Errors
/// When a source cannot be read or `into` cannot be written, is no ledger, or is itself among the sources.
pub fn merge(into: &Path, from: &[impl AsRef<Path>]) -> Result<()> {
    let sources = from.iter().map(|source| Ok(store::open_for_reading(source.as_ref())?.0));
    let sources = sources.collect::<Result<Vec<PathBuf>>>()?;
    check_target(into, &sources)?;
    let mut connection = store::open_for_writing(into)?;
    for path in sources {
        let read = |error: rusqlite::Error| store::failure(&path, "merge", &error);
        let uri = format!("{}?mode=ro", store::uri(&path));
        connection.execute("ATTACH DATABASE ?1 AS source", [uri]).map_err(read)?;
        let copied = copy(&mut connection);
        let detached = connection.execute_batch("DETACH DATABASE source");
        copied.and(detached).map_err(read)?;
    }
    Ok(())
}

/// What is there must be a ledger, and none of the sources: looked at before anything is changed.
fn check_target(into: &Path, sources: &[PathBuf]) -> Result<()> {
    const ACTION: &str = "merge into";
    let refused = |reason: &str, remedy| {
        Err(Error::Ledger { path: into.to_owned(), action: ACTION, reason: reason.into(), remedy })
    };
    let Ok(found) = into.metadata() else { return Ok(()) };
    if !found.is_file() {
        return refused("it is no file", "name a file that is a ledger, or that is not there");
    }
    if found.len() == 0 {
        return refused("it is there and empty, no ledger", "name a ledger, or remove the file");
    }
    if sources.iter().any(|source| source.canonicalize().ok() == into.canonicalize().ok()) {
        return refused("it is one of the ledgers to merge", "merge into another file");
    }
    store::open_for_reading(into).map(drop).map_err(|error| match error {
        Error::Ledger { path, reason, remedy, .. } => Error::Ledger { path, action: ACTION, reason, remedy },
        error => error,
    })
}

/// A segment in one of the ledgers.
struct Segment {
    id: i64,
    uid: String,
    run_uid: String,
    age: Age,
}

/// How new a copy of a segment is: whether it has ended, when it was last seen alive, and how many of its windows later
/// segments have superseded.
type Age = (bool, i64, i64);

fn copy(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    let (theirs, ours) = (segments(&transaction, "source")?, segments(&transaction, "main")?);
    let last_seen = |segments: &[Segment], run_uid: &str| {
        segments.iter().filter(|segment| segment.run_uid == run_uid).map(|segment| segment.age.1).max()
    };
    for run_uid in theirs.iter().map(|segment| &segment.run_uid).collect::<BTreeSet<_>>() {
        if last_seen(&theirs, run_uid) >= last_seen(&ours, run_uid) {
            copy_run(&transaction, run_uid)?;
        }
    }
    for segment in &theirs {
        let own = ours.iter().find(|own| own.uid == segment.uid);
        if own.is_none_or(|own| own.age <= segment.age) {
            replace_segment(&transaction, segment, own)?;
        }
    }
    transaction.commit()
}

fn segments(transaction: &Transaction<'_>, ledger: &str) -> rusqlite::Result<Vec<Segment>> {
    let mut statement = transaction.prepare(&format!(
        "SELECT segment.id, segment.uid, run.uid, segment.ended_ms IS NOT NULL,
                max(segment.started_ms, coalesce(alive_ms, 0), coalesce(segment.ended_ms, 0)),
                (SELECT count(*) FROM {ledger}.window WHERE window.segment = segment.id AND superseded)
         FROM {ledger}.segment JOIN {ledger}.run ON run.id = segment.run ORDER BY segment.id"
    ))?;
    let rows = statement.query_map([], |row| {
        let age = (row.get(3)?, row.get(4)?, row.get(5)?);
        Ok(Segment { id: row.get(0)?, uid: row.get(1)?, run_uid: row.get(2)?, age })
    })?;
    rows.collect()
}

fn copy_run(transaction: &Transaction<'_>, uid: &str) -> rusqlite::Result<()> {
    transaction.execute(
        "INSERT INTO main.run (uid, run_id, name, config_hash, started_ms, ended_ms, status)
         SELECT uid, run_id, name, config_hash, started_ms, ended_ms, status FROM source.run WHERE uid = ?1
         ON CONFLICT (uid) DO UPDATE
         SET config_hash = excluded.config_hash, ended_ms = excluded.ended_ms, status = excluded.status",
        [uid],
    )?;
    Ok(())
}

/// Copies a segment in place of our own copy, and keeps what that one had learned.
fn replace_segment(
    transaction: &Transaction<'_>,
    theirs: &Segment,
    own: Option<&Segment>,
) -> rusqlite::Result<()> {
    if let Some(own) = own {
        transaction.execute_batch("DROP TABLE IF EXISTS temp.learned")?;
        transaction.execute(
            "CREATE TEMP TABLE learned AS SELECT * FROM main.intensity WHERE segment = ?1",
            [own.id],
        )?;
        remove_segment(transaction, own.id)?;
    }
    let copy = copy_segment(transaction, theirs)?;
    if own.is_some() {
        // A row is known by when it was learned; numbers were given by each ledger for itself.
        transaction.execute(
            &format!(
                "INSERT INTO main.intensity (segment, {INTENSITY})
                 SELECT ?1, (SELECT max(number) FROM main.intensity WHERE segment = ?1)
                            + row_number() OVER (ORDER BY number), {LEARNED}
                 FROM temp.learned AS own
                 WHERE NOT EXISTS (SELECT 1 FROM main.intensity AS other WHERE segment = ?1
                                   AND (role, learned_ms, from_ms, until_ms, grams_per_kwh)
                                       IS (own.role, own.learned_ms, own.from_ms, own.until_ms, own.grams_per_kwh))"
            ),
            [copy],
        )?;
    }
    Ok(())
}

fn remove_segment(transaction: &Transaction<'_>, id: i64) -> rusqlite::Result<()> {
    let tables = OF_A_SEGMENT.iter().map(|(table, _)| *table);
    // A window goes after its energies, which refer to it.
    for table in ["window_energy", "sensor"].into_iter().chain(tables) {
        transaction.execute(&format!("DELETE FROM main.{table} WHERE segment = ?1"), [id])?;
    }
    transaction.execute("DELETE FROM main.segment WHERE id = ?1", [id])?;
    Ok(())
}

/// Copies a segment with all that belongs to it, and gives its id here.
fn copy_segment(transaction: &Transaction<'_>, theirs: &Segment) -> rusqlite::Result<i64> {
    transaction.execute(
        &format!(
            "INSERT INTO main.segment (run, {SEGMENT})
             SELECT (SELECT id FROM main.run WHERE uid = ?2), {SEGMENT} FROM source.segment WHERE id = ?1"
        ),
        params![theirs.id, theirs.run_uid],
    )?;
    let ours = transaction.last_insert_rowid();
    for (table, columns) in OF_A_SEGMENT {
        transaction.execute(
            &format!(
                "INSERT INTO main.{table} (segment, {columns})
                 SELECT ?2, {columns} FROM source.{table} WHERE segment = ?1"
            ),
            params![theirs.id, ours],
        )?;
    }
    transaction.execute(
        "INSERT INTO main.sensor (segment, domain, sensor, source)
         SELECT ?2, domain, sensor, source FROM source.sensor WHERE segment = ?1",
        params![theirs.id, ours],
    )?;
    transaction.execute(
        "INSERT INTO main.window_energy (segment, seq, sensor, microjoules)
         SELECT ?2, seq, main.sensor.id, microjoules
         FROM source.window_energy JOIN source.sensor ON source.sensor.id = source.window_energy.sensor
              JOIN main.sensor ON main.sensor.segment = ?2 AND main.sensor.domain = source.sensor.domain
                   AND main.sensor.sensor = source.sensor.sensor AND main.sensor.source = source.sensor.source
         WHERE source.window_energy.segment = ?1",
        params![theirs.id, ours],
    )?;
    Ok(ours)
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
        merge(&all, &[&own]).unwrap();
        let error = merge(&all, &[&own, &bad]).unwrap_err().to_string();
        assert!(error.contains("bad") && error.contains("no ledger"), "{error}");
        assert_eq!(sums(&all), [1, 1, 50, 50]);
        let error = merge(&all, &[&own, &all]).unwrap_err().to_string();
        assert!(error.contains("merge into another file"), "{error}");
        let new = directory.path().join("new");
        assert!(
            merge(&new, &[&own, &bad]).is_err() && !new.exists(),
            "nothing is made of sources that are none"
        );
    }

    #[test]
    fn what_is_there_and_no_ledger_is_refused_and_left_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let [own, text, empty, other] =
            ["own", "text", "empty", "other"].map(|name| directory.path().join(name));
        write(&own, "one", 1);
        std::fs::write(&text, "no ledger").unwrap();
        std::fs::write(&empty, "").unwrap();
        Connection::open(&other).unwrap().execute_batch("CREATE TABLE other (x)").unwrap();
        for (into, reason) in [
            (&text, "no ledger"),
            (&empty, "empty"),
            (&other, "another program"),
            (&directory.path().to_owned(), "it is no file"),
        ] {
            let before = std::fs::read(into).ok();
            let error = merge(into, &[&own]).unwrap_err().to_string();
            assert!(error.contains(reason) && error.starts_with(&into.display().to_string()), "{error}");
            assert_eq!(std::fs::read(into).ok(), before, "{reason}");
        }
    }

    #[test]
    fn an_older_copy_takes_nothing_back() {
        let directory = tempfile::tempdir().unwrap();
        let [all, own, old] = ["all", "own", "old"].map(|name| directory.path().join(name));
        let mut ledger = Ledger::open(&own, &run(None)).unwrap();
        ledger.record(&window(0, 10), step(1)).unwrap();
        drop(ledger);
        // A copy in a file of its own, as a backup makes one.
        merge(&old, &[&own]).unwrap();
        write(&own, "run-1", 3);
        merge(&all, &[&own]).unwrap();
        let questions = [
            "SELECT count(*) FROM window WHERE superseded",
            "SELECT count(*) FROM run WHERE status = 'completed'",
            "SELECT count(*) FROM segment WHERE status = 'crashed'",
        ];
        assert_eq!((sums(&all), questions.map(|sql| ask(&all, sql))), ([1, 2, 40, 40], [1, 1, 1]));
        merge(&all, &[&old]).unwrap();
        assert_eq!((sums(&all), questions.map(|sql| ask(&all, sql))), ([1, 2, 40, 40], [1, 1, 1]));
    }

    #[test]
    fn what_the_merged_ledger_learned_by_itself_stays_when_it_is_merged_again() {
        let directory = tempfile::tempdir().unwrap();
        let [all, own] = ["all", "own"].map(|name| directory.path().join(name));
        write(&own, "one", 5);
        merge(&all, &[&own]).unwrap();
        let learn =
            "INSERT INTO intensity SELECT segment, 1, role, 7, zone, basis, accounting, source, year, 0, 9,
                                                  estimated, learned_ms + 1 FROM intensity";
        assert_eq!(Connection::open(&all).unwrap().execute(learn, []).unwrap(), 1);
        let learn_other = learn.replace(", 7, ", ", 8, ");
        assert_eq!(Connection::open(&own).unwrap().execute(&learn_other, []).unwrap(), 1);
        for _ in 0..2 {
            merge(&all, &[&own]).unwrap();
            let known = "SELECT group_concat(number || ':' || grams_per_kwh, ' ') FROM intensity";
            let known: String =
                Connection::open(&all).unwrap().query_row(known, [], |row| row.get(0)).unwrap();
            assert_eq!(known, "0:41.0 1:8.0 2:7.0");
        }
    }
}
