//! Tests of the ledger: restarts, double entries, and disks that refuse.

use std::sync::Arc;

use super::*;
use crate::carbon;
use crate::meter::Provenance;
use crate::units::{MicroJoules, Seconds};
use crate::window::{DomainEnergy, WindowKind};

pub(super) fn run(resumed_from_step: Option<u64>) -> RunInfo {
    RunInfo { resumed_from_step, ..RunInfo::new("run-1", carbon::lookup("FRA").unwrap()) }
}

pub(super) fn window(seq: u64, microjoules: u64) -> WindowEnergy {
    let part = DomainEnergy {
        domain: Arc::from("cpu"),
        sensor: "model",
        provenance: Provenance::Modelled,
        microjoules: MicroJoules(microjoules),
    };
    WindowEnergy::new(seq, WindowKind::Step, Seconds(0.5), None, true, vec![part])
}

pub(super) fn step(step: u64) -> WindowTags {
    WindowTags { step: Some(step), tokens: 100, loss: Some(2.0) }
}

/// One number from the ledger at `path`.
pub(super) fn ask(path: &Path, sql: &str) -> i64 {
    Connection::open(path).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
}

#[test]
fn windows_of_a_finished_run_are_on_disk_with_their_domains_and_grams() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE_NAME);
    let mut ledger = Ledger::open(&path, &run(None)).unwrap();
    // 3.6 MJ are one kilowatt-hour: 41 g in France.
    let grams = ledger.record(&window(0, 3_600_000_000_000), step(1)).unwrap();
    assert_eq!(grams, Some(Grams(41.0)));
    ledger.finish(RunStatus::Completed, None).unwrap();

    assert_eq!(ask(&path, "SELECT sum(microjoules) FROM window"), 3_600_000_000_000);
    assert_eq!(
        ask(
            &path,
            "SELECT sum(microjoules) FROM window_energy JOIN sensor ON sensor.id = window_energy.sensor
             WHERE source = 'modelled'"
        ),
        3_600_000_000_000
    );
    assert_eq!(
        ask(&path, "SELECT count(*) FROM segment WHERE status = 'completed' AND ended_ms NOT NULL"),
        1
    );
    assert_eq!(ask(&path, "SELECT count(*) FROM run WHERE status = 'completed'"), 1);
}

#[test]
fn a_window_entered_twice_counts_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE_NAME);
    let mut ledger = Ledger::open(&path, &run(None)).unwrap();
    ledger.record(&window(0, 5), step(1)).unwrap();
    ledger.flush().unwrap();
    ledger.record(&window(0, 5), step(1)).unwrap();
    ledger.record(&window(1, 7), step(2)).unwrap();
    ledger.finish(RunStatus::Completed, None).unwrap();
    assert_eq!(ask(&path, "SELECT sum(microjoules) FROM window"), 12);
    assert_eq!(ask(&path, "SELECT sum(microjoules) FROM window_energy"), 12);
}

#[test]
fn a_resumed_run_keeps_what_was_spent_and_marks_what_was_done_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE_NAME);
    let mut first = Ledger::open(&path, &run(None)).unwrap();
    for n in 1..=25 {
        first.record(&window(n, 10), step(n)).unwrap();
    }
    first.flush().unwrap();
    // Dropped without an end, as a killed process leaves it.
    drop(first);

    let mut second = Ledger::open(&path, &run(Some(20))).unwrap();
    assert_eq!(second.spent_before().energy, MicroJoules(250));
    assert_eq!(ask(&path, "SELECT count(*) FROM segment WHERE status = 'crashed' AND ended_ms IS NULL"), 1);
    for n in 21..=40 {
        second.record(&window(n - 21, 10), step(n)).unwrap();
    }
    second.finish(RunStatus::Completed, None).unwrap();

    assert_eq!(ask(&path, "SELECT sum(microjoules) FROM window"), 450);
    assert_eq!(ask(&path, "SELECT sum(microjoules) FROM window WHERE NOT superseded"), 400);
    assert_eq!(ask(&path, "SELECT count(DISTINCT step) FROM window WHERE NOT superseded"), 40);
    assert_eq!(ask(&path, "SELECT count(*) FROM window WHERE NOT superseded"), 40);
    assert_eq!(ask(&path, "SELECT resumed_from_step FROM segment WHERE number = 1"), 20);
    assert_eq!(ask(&path, "SELECT count(*) FROM run"), 1);
}

#[test]
fn a_run_begun_anew_supersedes_all_its_earlier_steps() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE_NAME);
    let mut first = Ledger::open(&path, &run(None)).unwrap();
    first.record(&window(0, 10), step(1)).unwrap();
    drop(first);
    drop(Ledger::open(&path, &run(None)).unwrap());
    assert_eq!(ask(&path, "SELECT count(*) FROM window WHERE superseded"), 1);
}

#[test]
fn a_window_without_readings_is_unknown_on_disk_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE_NAME);
    let mut ledger = Ledger::open(&path, &run(None)).unwrap();
    let blind = WindowEnergy::new(0, WindowKind::Step, Seconds(0.5), None, false, Vec::new());
    assert_eq!(ledger.record(&blind, step(1)).unwrap(), None);
    ledger.finish(RunStatus::Completed, None).unwrap();
    assert_eq!(ask(&path, "SELECT count(*) FROM window WHERE microjoules IS NULL AND grams IS NULL"), 1);
}

#[test]
fn a_file_that_cannot_be_a_ledger_is_refused_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("none").join(FILE_NAME);
    let error = Ledger::open(&missing, &run(None)).unwrap_err().to_string();
    assert!(error.contains("none/ledger.sqlite") && error.contains("directory exists"), "{error}");

    let garbage = directory.path().join("garbage.sqlite");
    std::fs::write(&garbage, "not a database at all, but a text of some length".repeat(100)).unwrap();
    let error = Ledger::open(&garbage, &run(None)).unwrap_err().to_string();
    assert!(error.contains("no ledger"), "{error}");

    let other = directory.path().join("other.sqlite");
    Connection::open(&other).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    let error = Ledger::open(&other, &run(None)).unwrap_err().to_string();
    assert!(error.contains("another program"), "{error}");
}

/// A ledger whose writes fail as `break_it` makes them fail.
fn broken(path: &Path, break_it: impl Fn(&mut Connection)) -> Error {
    let mut connection = store::open_for_writing(path).unwrap();
    let open = segment::begin(&mut connection, &run(None)).unwrap();
    break_it(&mut connection);
    let mut ledger = Ledger::with_connection(path, &run(None), connection, open).unwrap();
    for seq in 0..500 {
        // Entering may succeed until the writer has met the disk.
        if let Err(error) = ledger.record(&window(seq, 1), step(seq)) {
            return error;
        }
    }
    let error = ledger.flush().unwrap_err();
    assert_eq!(ledger.record(&window(501, 1), step(501)).unwrap_err(), error, "the reason stays");
    error
}

#[test]
fn a_read_only_or_full_disk_gives_one_clear_error() {
    let directory = tempfile::tempdir().unwrap();
    let read_only = broken(&directory.path().join("read-only.sqlite"), |connection| {
        connection.pragma_update(None, "query_only", true).unwrap();
    });
    assert!(read_only.to_string().contains("make the file and its directory writable"), "{read_only}");

    let full = broken(&directory.path().join("full.sqlite"), |connection| {
        // The smallest count SQLite takes is that of the pages in use.
        connection.pragma_update_and_check(None, "max_page_count", 1, |_| Ok(())).unwrap();
    });
    assert!(full.to_string().contains("free some space"), "{full}");
}

#[test]
fn the_queries_of_the_documentation_run_and_agree() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE_NAME);
    let mut ledger = Ledger::open(&path, &run(None)).unwrap();
    let attribution = Attribution {
        phases: &[("experts", Duration::from_millis(300))],
        experts: &[(0, &[2, 1])],
        waste: &[],
    };
    for seq in 0..3 {
        ledger.record_attributed(&window(seq, 1_000_000), step(seq + 1), &attribution).unwrap();
    }
    ledger.finish(RunStatus::Completed, None).unwrap();

    let documentation = include_str!("../../../docs/ledger.md");
    let queries: Vec<&str> =
        documentation.split("```sql\n").skip(1).filter_map(|block| block.split("```").next()).collect();
    assert_eq!(queries.len(), 5);
    let connection = Connection::open(&path).unwrap();
    for query in queries {
        let rows: i64 = connection
            .query_row(&format!("SELECT count(*) FROM ({})", query.trim().trim_end_matches(';')), [], |row| {
                row.get(0)
            })
            .unwrap_or_else(|error| panic!("{error}: {query}"));
        assert!(rows > 0, "{query}");
    }
    let by_phase = ask(&path, "SELECT sum(microjoules) FROM phase_energy");
    assert_eq!(by_phase, 3_000_000);
    let of_experts = ask(&path, "SELECT microjoules FROM phase_energy WHERE phase = 'experts'");
    assert_eq!(of_experts, ask(&path, "SELECT sum(microjoules) FROM expert_energy"));
}

#[test]
fn the_window_in_progress_stands_in_the_ledger_until_it_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE_NAME);
    let mut ledger = Ledger::open(&path, &run(None)).unwrap();
    ledger
        .watch(Duration::from_millis(100), || WindowEnergy { kind: WindowKind::Open, ..window(1, 70) })
        .unwrap();
    // The watched monitor is a window ahead: what it tells is kept back until the ledger has caught up.
    ledger.flush().unwrap();
    assert_eq!(ask(&path, "SELECT count(*) FROM window"), 0);
    ledger.record(&window(0, 10), step(1)).unwrap();
    ledger.flush().unwrap();
    assert_eq!(ask(&path, "SELECT sum(microjoules) FROM window"), 80);
    assert_eq!(ask(&path, "SELECT sum(microjoules) FROM window_energy"), 80);
    ledger.flush().unwrap();
    assert_eq!(ask(&path, "SELECT sum(microjoules) FROM window WHERE kind = 'open'"), 70);

    ledger.record(&window(1, 100), step(2)).unwrap();
    ledger.flush().unwrap();
    assert_eq!(ask(&path, "SELECT count(*) FROM window WHERE kind = 'open'"), 0);
    assert_eq!(ask(&path, "SELECT sum(microjoules) FROM window_energy"), 110);
    ledger.finish(RunStatus::Completed, None).unwrap();
    assert_eq!(ask(&path, "SELECT sum(microjoules) FROM window"), 110);
}
