//! The metrics endpoint of the real binary: where it is refused, where it is told, and that it changes nothing.
//! `tests/prometheus.sh` has a real Prometheus read it.

use std::net::TcpListener;

use wattle_tests::program::{Ran, Workshop};

/// Trains 20 steps with metrics at `address`.
fn train_at(workshop: &Workshop, address: &str) -> Ran {
    let set = format!("telemetry.prometheus_address={address}");
    let arguments =
        ["train", "config.toml", "--quiet", "--run-dir", "watched", "--max-steps", "20", "--set", &set];
    workshop.run(&arguments)
}

#[test]
fn an_address_that_is_none_is_a_problem_of_the_configuration() {
    let ran = train_at(&Workshop::new(), "localhost:9464");
    let words = ["telemetry.prometheus_address: is \"localhost:9464\"", "such as \"127.0.0.1:9464\""];
    ran.expect_refusal(78, &words);
}

#[test]
fn an_address_that_is_taken_ends_the_run_before_it_makes_anything() {
    let workshop = Workshop::new();
    let holder = TcpListener::bind("127.0.0.1:0").expect("some port is free");
    let address = holder.local_addr().expect("a listener has an address").to_string();
    let ran = train_at(&workshop, &address);
    ran.expect_refusal(74, &["telemetry.prometheus_address", &address, "give another port, or 0"]);
    assert!(!workshop.path("watched").exists());
}

#[test]
fn a_free_port_is_told_and_the_run_learns_the_same() {
    let workshop = Workshop::new();
    let ran = train_at(&workshop, "127.0.0.1:0");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let told = ran.stderr.lines().find_map(|line| line.strip_prefix("metrics at http://127.0.0.1:"));
    let port = told.and_then(|rest| rest.strip_suffix("/metrics")?.parse::<u16>().ok());
    assert!(port.is_some_and(|port| port > 0), "{}", ran.stderr);
    let alone = workshop.train("alone", &["--quiet", "--max-steps", "20"]);
    assert!(!alone.stderr.contains("metrics at"), "{}", alone.stderr);
    let losses = |run| -> Vec<_> {
        workshop.metrics(run).iter().map(|step| (step["step"].clone(), step["loss"].clone())).collect()
    };
    assert_eq!(losses("watched"), losses("alone"));
    assert_eq!(losses("watched").len(), 20);
}
