//! A process killed without warning leaves a ledger that is whole.

#![cfg(test)]

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use wattle_energy::{
    CarbonConfig, DomainEnergy, Joules, Ledger, MicroJoules, Overrides, Provenance, Report, RunInfo,
    RunStatus, Seconds, WindowEnergy, WindowKind, WindowTags,
};

const CHILD: &str = "WATTLE_TEST_LEDGER";

#[test]
fn a_killed_writer_leaves_whole_windows_and_its_successor_counts_none_twice() {
    if let Some(path) = std::env::var_os(CHILD) {
        write_until_killed(Path::new(&path));
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.sqlite");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_writer_leaves_whole_windows_and_its_successor_counts_none_twice"])
        .env(CHILD, &path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let at_least = |steps: u64| {
        Report::from_ledger(&path, &Overrides::default())
            .is_ok_and(|report| report.runs.first().is_some_and(|run| run.account.steps >= steps))
    };
    while !at_least(50) {
        assert!(child.try_wait().unwrap().is_none(), "the writer ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();

    let killed = Report::from_ledger(&path, &Overrides::default()).unwrap().runs.remove(0).account;
    assert_eq!(killed.energy, MicroJoules(killed.steps * 3_000_000), "a window is whole or not there");
    let by_domain: MicroJoules = killed.domains.iter().map(|domain| domain.energy).sum();
    assert_eq!(by_domain, killed.energy);

    let mut successor = Ledger::open(&path, &run(Some(20))).unwrap();
    for step in 21..=40 {
        successor.record(&window(step - 21), tags(step)).unwrap();
    }
    successor.finish(RunStatus::Completed, None).unwrap();
    let report = Report::from_ledger(&path, &Overrides::default()).unwrap();
    let account = &report.runs[0].account;
    assert_eq!(account.steps, 40);
    assert_eq!(account.energy, MicroJoules(killed.energy.0 + 20 * 3_000_000));
    assert_eq!(account.superseded, MicroJoules(killed.energy.0 - 20 * 3_000_000));
}

fn write_until_killed(path: &Path) -> ! {
    let mut ledger = Ledger::open(path, &run(None)).unwrap();
    for step in 1.. {
        ledger.record(&window(step - 1), tags(step)).unwrap();
        if step.is_multiple_of(7) {
            ledger.flush().unwrap();
        }
    }
    unreachable!("the steps never end")
}

fn run(resumed_from_step: Option<u64>) -> RunInfo {
    let intensity = CarbonConfig::default().intensity().unwrap();
    RunInfo { resumed_from_step, ..RunInfo::new("killed", intensity) }
}

fn tags(step: u64) -> WindowTags {
    WindowTags { step: Some(step), tokens: 10, loss: None }
}

/// 3 J, in two domains.
fn window(seq: u64) -> WindowEnergy {
    let part = |name: &str, microjoules| DomainEnergy {
        domain: Arc::from(name),
        sensor: "model",
        provenance: Provenance::Modelled,
        microjoules: MicroJoules(microjoules),
    };
    WindowEnergy {
        seq,
        kind: WindowKind::Step,
        duration: Seconds(0.1),
        joules: Some(Joules(3.0)),
        watts: None,
        measured_share: 0.0,
        error_bound: None,
        complete: true,
        domains: vec![part("cpu", 2_000_000), part("ram", 1_000_000)],
    }
}
