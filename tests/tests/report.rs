//! `wattle report` through the binary: its formats, its linter, and ledgers that cannot be read.

use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

use serde_json::Value;
use wattle_tests::process::{Process, checkpoint_steps};
use wattle_tests::program::{Ran, Workshop};
use wattle_tests::provider::CarbonProvider;

/// SQLite's header keeps the schema's version here, as four bytes, the highest first.
const USER_VERSION_OFFSET: u64 = 60;

/// And the mark of the program that the file belongs to.
const APPLICATION_ID_OFFSET: u64 = 68;

fn with_run() -> Workshop {
    let workshop = Workshop::new();
    workshop
        .train("run", &["--max-steps", "2", "--set", "carbon.location=\"FRA\"", "--set", "carbon.pue=1.25"]);
    workshop
}

fn overwrite(file: &Path, offset: u64, bytes: &[u8]) {
    let mut file = OpenOptions::new().write(true).open(file).expect("the ledger is there");
    file.seek(SeekFrom::Start(offset)).expect("it is long enough");
    file.write_all(bytes).expect("it may be written");
}

#[test]
fn every_format_of_one_run_tells_the_same_energy() {
    let workshop = with_run();
    let report = |format: &str| {
        let ran = workshop.run(&["report", "run", "--format", format]);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{format}");
        ran.stdout
    };
    let json: Value = serde_json::from_str(&report("json")).expect("it is JSON");
    let joules = json["total"]["energy_joules"].as_f64().expect("the model always has an answer");
    let grams = json["total"]["emissions_grams_co2e"].as_f64().expect("carbon is known");
    assert!(json["total"]["energy_joules_high"].as_f64() > Some(joules), "a model is far from exact");
    let csv = report("csv");
    let (header, row) = csv.trim_end().split_once('\n').expect("a header and a row");
    let fields: Vec<&str> = row.split(',').collect();
    let field = |name: &str| -> f64 {
        let at = header.split(',').position(|column| column == name).expect("the column is there");
        fields[at].parse().expect("a number")
    };
    assert_eq!((header.split(',').count(), fields.len()), (38, 38));
    assert!((field("energy_consumed") * 3.6e6 - joules * 1.25).abs() < 1e-6 * joules);
    assert!((field("emissions") * 1000.0 - grams).abs() < 1e-6 * grams);
    let boamps: Value = serde_json::from_str(&report("boamps")).expect("it is JSON");
    let kwh = boamps["measures"][0]["powerConsumption"].as_f64().expect("energy is known");
    assert!((kwh * 3.6e6 - joules).abs() < 1e-6 * joules);
    let card = report("model-card");
    assert!(card.contains(&format!("\n  emissions: {grams}\n")) && card.contains("\"France\""), "{card}");
    assert!(report("markdown").contains("| completed |") || report("markdown").contains("| interrupted |"));
    let text = report("text");
    for line in
        ["Steps by phase", "Experts, 8 in all", "not declared", "model ±40 %", "per token (ISO/IEC 21031)"]
    {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    let by_week = workshop.run(&["report", "run", "--by", "week", "--format", "csv"]).stdout;
    assert!(by_week.starts_with("week,monday,") && by_week.lines().count() == 2, "{by_week}");
    let per_run = workshop.run(&["report", "run", "--per", "run", "--format", "json"]).json();
    assert_eq!(per_run["total"]["sci"]["units"], 1);
}

#[test]
fn csv_is_appended_to_a_file_that_is_there_and_the_linter_finds_it_true() {
    let workshop = with_run();
    let append = || workshop.run(&["report", "run", "--format", "csv", "--output", "emissions.csv"]);
    let read = || fs::read_to_string(workshop.path("emissions.csv")).expect("it was written");
    assert_eq!(append().code, 0);
    let first = read();
    assert_eq!(append().code, 0);
    assert!(read().starts_with(&first) && read().lines().count() == 3, "{}", read());
    let clean = workshop.run(&["report", "--lint", "emissions.csv"]);
    assert_eq!((clean.code, clean.stdout.as_str()), (0, ""), "{}", clean.stderr);

    workshop.write("emissions.csv", "a,b\n1,2\n");
    append().expect_refusal(65, &["emissions.csv", "its 2 columns", "give another file"]);
    assert_eq!(read(), "a,b\n1,2\n", "what was there stays");
}

#[test]
fn the_linter_names_what_cannot_be_true_and_exits_1() {
    let workshop = with_run();
    let json = workshop.run(&["report", "run", "--format", "json"]).stdout;
    workshop.write("report.json", &json);
    assert_eq!(workshop.run(&["report", "--lint", "report.json"]).code, 0);
    let mut report: Value = serde_json::from_str(&json).expect("it is JSON");
    report["runs"][0]["emissions_grams_co2e"] = 1e9.into();
    workshop.write("report.json", report.to_string());
    let header = "timestamp,experiment_id,project_name,duration,emissions,energy_consumed,country_name,\
                  country_iso_code,region,on_cloud,cloud_provider,cloud_region";
    workshop.write("old.csv", format!("{header}\n2021-05-01T00:00:00,e,p,60,0.475,1,,,,N,,\n"));
    let ran = workshop.run(&["report", "--lint", "report.json", "old.csv"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    for words in
        ["report.json: runs[0]: emissions_grams_co2e = 1000000000.0: ", "old.csv: row 2: emissions = 0.475"]
    {
        assert!(ran.stdout.contains(words), "{words:?} is not in\n{}", ran.stdout);
    }
    let found = workshop.run(&["report", "--lint", "old.csv", "--format", "json"]);
    let found: Value = serde_json::from_str(&found.stdout).expect("it is JSON");
    assert_eq!(found[0]["place"], "row 2");
    workshop.write("text.json", "no report");
    workshop.run(&["report", "--lint", "text.json"]).expect_refusal(65, &["text.json"]);
    workshop.run(&["report", "--lint", "nowhere.csv"]).expect_refusal(65, &["nowhere.csv"]);
}

#[test]
fn a_ledger_that_cannot_be_read_is_named_with_what_to_do() {
    let workshop = with_run();
    let ledger = workshop.path("run/ledger.sqlite");
    let whole = fs::read(&ledger).expect("the run has a ledger");
    let refused = |words: &[&str]| {
        let words: Vec<&str> = [&["ledger.sqlite"], words].concat();
        workshop.run(&["report", "run"]).expect_refusal(74, &words);
    };
    workshop.write("run/ledger.sqlite", &whole[..whole.len() / 2]);
    refused(&["malformed", ".recover"]);
    workshop.write("run/ledger.sqlite", "");
    refused(&["the file is empty", "restore it"]);
    workshop.write("run/ledger.sqlite", &whole);
    overwrite(&ledger, USER_VERSION_OFFSET, &99u32.to_be_bytes());
    refused(&["schema version 99", "or a newer one"]);
    workshop.write("run/ledger.sqlite", &whole);
    overwrite(&ledger, APPLICATION_ID_OFFSET, &[0; 4]);
    refused(&["another program"]);
    workshop.write("run/ledger.sqlite", &whole);
    assert_eq!(workshop.run(&["report", "run"]).code, 0, "whole again, it is read");
}

#[test]
fn a_ledger_that_another_program_has_locked_is_waited_for_and_then_named() {
    let workshop = with_run();
    let file = OpenOptions::new().read(true).write(true).open(workshop.path("run/ledger.sqlite"));
    let file = file.expect("the run has a ledger");
    // SQLite locks bytes from a gigabyte on; whoever holds them all for writing keeps every reader out.
    // SAFETY: flock is plain numbers, for which zero is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = 0x4000_0000;
    lock.l_len = 512;
    // SAFETY: the descriptor is open and the lock is a whole, initialised flock.
    let locked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &raw const lock) };
    assert_eq!(locked, 0, "nobody else holds it");
    workshop.run(&["report", "run"]).expect_refusal(74, &["ledger.sqlite", "locked", "another process"]);
    drop(file);
    assert_eq!(workshop.run(&["report", "run"]).code, 0);
}

#[test]
fn two_runs_of_one_id_are_told_apart_and_a_run_given_twice_counts_once() {
    let workshop = with_run();
    fs::create_dir(workshop.path("copy")).expect("a directory can be made");
    fs::copy(workshop.path("run/ledger.sqlite"), workshop.path("copy/ledger.sqlite"))
        .expect("it can be copied");
    let one = workshop.run(&["report", "run", "--format", "json"]).json();
    let ran = workshop.run(&["report", "run", "copy", "--format", "json"]);
    assert_eq!(ran.code, 0);
    assert!(ran.stderr.contains("note: ") && ran.stderr.contains("counts once"), "{}", ran.stderr);
    let both: Value = serde_json::from_str(&ran.stdout).expect("it is JSON");
    assert_eq!(both["total"]["energy_joules"], one["total"]["energy_joules"]);
    assert_eq!(both["runs"].as_array().map(Vec::len), Some(1));

    // A run's id is the name of its directory: another of that name elsewhere has the same.
    workshop.train("elsewhere/run", &["--max-steps", "2"]);
    let ran = workshop.run(&["report", "run", "elsewhere/run", "--format", "json"]);
    assert_eq!(ran.code, 0);
    for words in
        ["two different runs are named run", "in run/ledger.sqlite", "in elsewhere/run/ledger.sqlite"]
    {
        assert!(ran.stderr.contains(words), "{words:?} is not in {}", ran.stderr);
    }
    let apart: Value = serde_json::from_str(&ran.stdout).expect("it is JSON");
    assert_eq!(apart["runs"].as_array().map(Vec::len), Some(2));
}

/// A single figure for a whole century.
fn century(grams_per_kwh: &str) -> String {
    format!("from,until,grams_per_kwh\n2000-01-01T00:00Z,2100-01-01T00:00Z,{grams_per_kwh}\n")
}

/// Writes the workshop's configuration with a provider, under another name.
fn with_provider(workshop: &Workshop, file: &str, provider: &str) {
    let config = fs::read_to_string(workshop.path("config.toml")).expect("the workshop has a configuration");
    workshop.write(file, format!("{config}\n[[carbon.providers]]\n{provider}\n"));
}

/// Grams and joules of the building in a JSON report.
fn grams_and_building_joules(report: &Value, pue: f64) -> (f64, f64) {
    let number = |key: &str| report["total"][key].as_f64().expect("it is known");
    (number("emissions_grams_co2e"), number("energy_joules") * pue)
}

fn expect_priced(report: &Value, pue: f64, grams_per_kwh: f64) {
    let (grams, joules) = grams_and_building_joules(report, pue);
    let expect = joules / 3.6e6 * grams_per_kwh;
    assert!((grams - expect).abs() < 1e-9 * expect, "{grams} g, expected {expect} g");
}

#[test]
fn a_run_is_completed_from_its_own_provider_once_and_priced_anew() {
    let workshop = Workshop::new();
    with_provider(&workshop, "config.toml", "kind = \"file\"\npath = \"grid.csv\"");
    workshop.write("grid.csv", century(""));
    workshop.train("run", &["--max-steps", "2", "--set", "carbon.location=\"FRA\""]);
    let report = |arguments: &[&str]| {
        let ran = workshop.run(&[&["report", "run", "--format", "json"], arguments].concat());
        (ran.json(), ran.stderr)
    };
    expect_priced(&report(&[]).0, 1.0, 41.0);
    let (lacking, told) = report(&["--complete"]);
    expect_priced(&lacking, 1.0, 41.0);
    assert!(told.starts_with("note: run: the provider has no carbon intensity from 20"), "{told}");

    workshop.write("grid.csv", century("100"));
    let (completed, told) = report(&["--complete"]);
    assert_eq!(told, "run: carbon intensities learned from file: 1\n");
    expect_priced(&completed, 1.0, 100.0);
    // Nothing is lacking: neither is anything learned, nor the file missed.
    fs::remove_file(workshop.path("grid.csv")).expect("it is there");
    assert_eq!(report(&["--complete"]), (completed, String::new()));
    let place = report(&["--location", "FRA"]).0;
    expect_priced(&place, 1.0, 41.0);
}

#[test]
fn a_provider_that_fails_is_one_error_and_later_completes_over_http() {
    let workshop = with_run();
    let provider = CarbonProvider::new();
    let kind = format!("kind = \"uk_carbon_intensity\"\nurl = \"{}\"", provider.url);
    with_provider(&workshop, "uk.toml", &kind);
    let complete =
        || workshop.run(&["report", "run", "--complete", "--config", "uk.toml", "--format", "json"]);
    let ledger = fs::read(workshop.path("run/ledger.sqlite")).expect("the run has a ledger");
    let words = ["cannot complete run", "UK Carbon Intensity, zone GB", "503"];
    complete().expect_refusal(74, &words);
    assert_eq!(fs::read(workshop.path("run/ledger.sqlite")).expect("it is still there"), ledger);

    provider.tell(200);
    let completed = complete();
    assert_eq!(completed.stderr, "run: carbon intensities learned from uk_carbon_intensity: 1\n");
    expect_priced(&completed.json(), 1.25, 200.0);
    let asked = provider.asked();
    assert!(asked.len() == 2 && asked[1].contains(":00Z/"), "whole hours: {asked:?}");
    let again = complete();
    assert_eq!((again.json(), again.stderr.as_str()), (completed.json(), ""));
    assert_eq!(provider.asked().len(), 2, "nothing was lacking");
}

#[test]
fn a_run_in_progress_is_not_completed_before_it_has_ended() {
    let workshop = Workshop::new();
    with_provider(&workshop, "grid.toml", "kind = \"file\"\npath = \"grid.csv\"");
    let mut training = Process::train(&workshop, "run", &["--set", "run.max_tokens=\"100M\""]);
    // What came before a checkpoint is in the ledger.
    training.wait_until("a checkpoint", || !checkpoint_steps(&workshop.path("run")).is_empty());
    workshop.write("grid.csv", century("100"));
    let complete =
        |run: &str| workshop.run(&["report", run, "--complete", "--config", "grid.toml", "--format", "json"]);
    let busy = complete("run");
    assert_eq!(busy.code, 0, "{}", busy.stderr);
    assert_eq!(
        busy.stderr,
        "note: run: 1 segment without an end may still be written: complete it when the run has ended\n"
    );
    training.kill();
    // The ledger says that the run goes on; its lock says that it does not. A copy has no lock to ask.
    assert_eq!(workshop.run(&["report", "run", "--merge", "copy.sqlite"]).code, 0);
    assert!(complete("copy.sqlite").stderr.contains("may still be written"));
    let killed = complete("run");
    assert_eq!(killed.stderr, "run: carbon intensities learned from file: 1\n");
    expect_priced(&killed.json(), 1.0, 100.0);
    // The rows that were learned are not in the way of the process that goes on.
    workshop.train("run", &["--set", "run.max_tokens=\"100M\"", "--max-steps", "2"]);
    let resumed = complete("run");
    assert_eq!(resumed.stderr, "run: carbon intensities learned from file: 1\n");
    expect_priced(&resumed.json(), 1.0, 100.0);
}

#[test]
fn completing_without_anybody_to_ask_says_what_to_give() {
    let workshop = with_run();
    let complete = |arguments: &[&str]| workshop.run(&[&["report", "--complete"], arguments].concat());
    complete(&["run"]).expect_refusal(78, &["carbon.providers", "run/config.toml", "--config FILE"]);
    fs::copy(workshop.path("run/ledger.sqlite"), workshop.path("alone.sqlite")).expect("it can be copied");
    complete(&["alone.sqlite"]).expect_refusal(78, &["carbon.providers", "--config FILE"]);
    complete(&["run", "--config", "nowhere.toml"]).expect_refusal(74, &["nowhere.toml"]);
    assert_eq!(workshop.run(&["report", "run", "--config", "config.toml"]).code, 2, "it needs --complete");
    assert_eq!(workshop.run(&["report", "run", "--lint", "--complete"]).code, 2);
}

#[test]
fn a_merged_ledger_is_the_sum_of_its_runs_to_the_microjoule_however_often_it_is_merged() {
    let workshop = with_run();
    workshop.train("other", &["--max-steps", "3"]);
    let microjoules = |report: &Ran| {
        let joules = report.json()["total"]["energy_joules"].as_f64().expect("it is known");
        (joules * 1e6).round() as u64
    };
    let of = |runs: &[&str]| workshop.run(&[&["report", "--format", "json"], runs].concat());
    let sum = microjoules(&of(&["run"])) + microjoules(&of(&["other"]));
    let merge = || workshop.run(&["report", "run", "other", "--merge", "all.sqlite", "--format", "json"]);
    let merged = merge();
    assert_eq!((merged.code, merged.stderr.as_str()), (0, "merged into all.sqlite: 2 ledgers\n"));
    assert_eq!(microjoules(&merged), sum);
    let all = of(&["all.sqlite"]);
    assert_eq!(microjoules(&all), sum);
    assert_eq!(all.json()["runs"].as_array().map(Vec::len), Some(2));
    assert_eq!(merge().code, 0);
    assert_eq!(of(&["all.sqlite"]).json(), all.json(), "nothing counts twice");
    // All three name each segment, and it counts once.
    assert_eq!(microjoules(&of(&["all.sqlite", "run", "other"])), sum);
}

#[test]
fn a_file_that_is_no_ledger_is_not_merged_into() {
    let workshop = with_run();
    let merge = |into: &str| workshop.run(&["report", "run", "--merge", into]);
    workshop.write("notes.txt", "my notes");
    merge("notes.txt").expect_refusal(74, &["notes.txt", "cannot merge into", "no ledger"]);
    assert_eq!(fs::read_to_string(workshop.path("notes.txt")).expect("it is there"), "my notes");
    merge("run").expect_refusal(74, &["run", "it is no file"]);
    merge("run/ledger.sqlite").expect_refusal(74, &["run/ledger.sqlite", "merge into another file"]);
    merge("nowhere/all.sqlite").expect_refusal(74, &["nowhere/all.sqlite"]);
    workshop.run(&["report", "run", "missing", "--merge", "all.sqlite"]).expect_refusal(74, &["missing"]);
    assert!(!workshop.path("all.sqlite").exists(), "nothing is made for a run that is not there");
}
