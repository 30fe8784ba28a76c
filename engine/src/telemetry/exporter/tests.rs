//! The exporter from a step to the socket.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::json;
use wattle_energy::attribution::PhaseEnergy;
use wattle_energy::{DomainEnergy, Joules, MicroJoules, Provenance, Seconds, WindowEnergy, WindowKind};

use super::catalogue::{self, Kind};
use super::exposition::{Dialect, Exposition};
use super::*;

fn facts() -> RunFacts {
    RunFacts {
        run_id: "tiny-20260101-000000".to_owned(),
        first_sparse_layer: 1,
        intensity: wattle_energy::carbon::lookup("FRA").unwrap(),
    }
}

/// A window of half a second of a modelled `cpu` and a measured `gpu-0`.
fn priced(kind: WindowKind, microjoules: &[u64], phases: &[(&'static str, u64)]) -> Priced {
    let sources = [("cpu", "model", Provenance::Modelled), ("gpu-0", "nvml", Provenance::MeasuredCounter)];
    let domains: Vec<_> = sources
        .iter()
        .zip(microjoules)
        .map(|(&(domain, sensor, provenance), &microjoules)| DomainEnergy {
            domain: domain.into(),
            sensor,
            provenance,
            microjoules: MicroJoules(microjoules),
        })
        .collect();
    let total: u64 = microjoules.iter().sum();
    let joules = (!domains.is_empty()).then_some(Joules(total as f64 / 1e6));
    let window = WindowEnergy {
        seq: 0,
        kind,
        duration: Seconds(0.5),
        joules,
        watts: None,
        measured_share: 0.0,
        error_bound: None,
        complete: true,
        domains,
    };
    let phases = phases.iter().map(|&(phase, microjoules)| PhaseEnergy {
        phase,
        seconds: 0.1,
        microjoules: MicroJoules(microjoules),
    });
    Priced { window, grams: joules.map(|joules| joules.0 / 1000.0), phases: phases.collect() }
}

fn metrics(step: u64) -> StepMetrics {
    let value = json!({
        "step": step, "tokens": 512 * step, "time": 1.0, "loss": 2.5, "ce_loss": 2.4, "balance_loss": 0.1,
        "z_loss": 0.0, "grad_norm": 1.0, "lr": 0.001, "batch_tokens": 512, "k_mean": 2.0, "expert_load_cv": 0.2,
        "dropped_tokens": 3, "tokens_per_second": 1024.0, "mfu": 0.4, "joules": null, "joules_per_token": null,
        "energy_source": "model", "watts": null, "grams_co2e": null, "grams_co2e_total": 0.0, "phases": {},
    });
    serde_json::from_value(value).unwrap()
}

fn routing(num_layers: usize) -> Vec<RoutingStats> {
    let stats = RoutingStats {
        load_cv: 0.25,
        max_load_ratio: 1.5,
        load_entropy: 0.9,
        routing_entropy_nats: 1.25,
        dropped_tokens: 3,
        dead_experts: 0,
    };
    vec![stats; num_layers]
}

/// A set-up, a step and an evaluation.
fn busy() -> State {
    let mut state = State::new();
    state.begin_run(facts());
    state.window(&priced(WindowKind::Setup, &[7_000_000, 0], &[]));
    let phases = [("attention", 1_000_001), ("experts", 2_000_000), ("other", 500_000)];
    state.step(&metrics(1), &priced(WindowKind::Step, &[1_500_001, 2_000_000], &phases), &routing(2), 0);
    state.window(&priced(WindowKind::Evaluation, &[100_000, 200_000], &[]));
    state.evaluated(2.25);
    state
}

fn text(state: &State) -> String {
    state.gather().encode(Dialect::Text)
}

/// The values of a sample name, over all labels.
fn values(text: &str, name: &str) -> Vec<f64> {
    let of_name = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
    of_name.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect()
}

fn names(exposition: &Exposition) -> Vec<&'static str> {
    exposition.families.iter().map(|family| family.metric.name).collect()
}

#[test]
fn after_a_step_and_an_evaluation_every_metric_of_the_catalogue_is_there() {
    let all: Vec<_> = catalogue::ALL.iter().map(|metric| metric.name).collect();
    assert_eq!(names(&busy().gather()), all);
}

#[test]
fn a_scrape_has_the_numbers_of_the_run() {
    let text = text(&busy());
    for line in [
        "wattle_tokens_total 512",
        "wattle_steps_total 1",
        "wattle_energy_joules_total{domain=\"cpu\",source=\"modelled\"} 8.600001",
        "wattle_energy_joules_total{domain=\"gpu-0\",source=\"measured_counter\"} 2.200000",
        "wattle_phase_energy_joules_total{phase=\"attention\"} 1.000001",
        "wattle_phase_energy_joules_total{phase=\"setup\"} 7.000000",
        "wattle_phase_energy_joules_total{phase=\"evaluation\"} 0.300000",
        "wattle_unattributed_energy_joules_total 0.500000",
        "wattle_dropped_tokens_total 3",
        "wattle_sensor_resets_total 0",
        "wattle_power_watts{domain=\"gpu-0\",source=\"measured_counter\"} 4.0",
        "wattle_grid_intensity_grams_per_kilowatt_hour{zone=\"FRA\",basis=\"lifecycle_average\"} 41.0",
        "wattle_expert_load_cv{layer=\"1\"} 0.25",
        "wattle_routing_entropy{layer=\"2\"} 1.25",
        "wattle_validation_loss 2.25",
        "wattle_active_experts_mean 2.0",
        "wattle_step_energy_joules_sum 3.500001",
        "wattle_step_duration_seconds_bucket{le=\"0.5\"} 1",
    ] {
        assert!(text.lines().any(|have| have == line), "{line} is missing:\n{text}");
    }
    assert!(!text.contains("phase=\"other\""));
    let carbon = values(&text, "wattle_carbon_grams_total");
    assert!((carbon[0] - 10.800001e-3).abs() < 1e-12 && text.contains("{scope=\"operational\"}"));
}

#[test]
fn what_is_unknown_is_absent_and_not_zero() {
    let mut state = State::new();
    assert_eq!(names(&state.gather()), ["wattle_build"]);
    state.begin_run(facts());
    let at_start = ["wattle_build", "wattle_tokens", "wattle_steps", catalogue::GRID_INTENSITY.name];
    assert_eq!(names(&state.gather()), at_start);
    // A dense model without a sensor.
    state.step(&metrics(1), &priced(WindowKind::Step, &[], &[]), &[], 0);
    let names = names(&state.gather());
    for absent in [
        &catalogue::ENERGY,
        &catalogue::CARBON,
        &catalogue::PHASE_ENERGY,
        &catalogue::UNATTRIBUTED_ENERGY,
        &catalogue::SENSOR_RESETS,
        &catalogue::POWER,
        &catalogue::STEP_ENERGY,
        &catalogue::VALIDATION_LOSS,
        &catalogue::DROPPED_TOKENS,
        &catalogue::ACTIVE_EXPERTS,
        &catalogue::EXPERT_LOAD_CV,
    ] {
        assert!(!names.contains(&absent.name), "{}", absent.name);
    }
    assert!(names.contains(&catalogue::LOSS.name));
    // A sensor that falls silent has no power; its counter stays.
    state.step(&metrics(2), &priced(WindowKind::Step, &[5], &[]), &[], 0);
    state.step(&metrics(3), &priced(WindowKind::Step, &[], &[]), &[], 0);
    assert_eq!(values(&text(&state), "wattle_energy_joules_total"), [5e-6]);
    assert!(values(&text(&state), "wattle_power_watts").is_empty());
}

#[test]
fn a_loss_that_is_not_finite_is_shown_as_such() {
    let mut state = State::new();
    state.begin_run(facts());
    let skipped = StepMetrics { loss: f64::NAN, skipped: true, ..metrics(1) };
    state.step(&skipped, &priced(WindowKind::Step, &[1], &[]), &[], 0);
    assert!(values(&text(&state), "wattle_loss")[0].is_nan());
}

proptest::proptest! {
    #[test]
    fn counters_never_fall_and_phases_add_up_to_the_energy(
        windows in proptest::collection::vec((0..4usize, 0..9_000_000u64, 0..9_000_000u64, 0.0..1.2f64), 1..20)
    ) {
        let mut state = State::new();
        state.begin_run(facts());
        let mut before: Vec<f64> = Vec::new();
        for (index, (kind, cpu, gpu, share)) in windows.into_iter().enumerate() {
            let kind = [WindowKind::Step, WindowKind::Checkpoint, WindowKind::Idle, WindowKind::Unattributed][kind];
            let experts = ((cpu + gpu) as f64 * share) as u64;
            let window = priced(kind, &[cpu, gpu], &[("experts", experts)]);
            match kind {
                WindowKind::Step => state.step(&metrics(index as u64), &window, &routing(1), index as u64 / 3),
                _ => state.window(&window),
            }
            let phases: u64 = state.phases.values().sum();
            proptest::prop_assert_eq!(phases + state.unattributed, state.energy.values().sum::<u64>());
            let text = text(&state);
            let now: Vec<f64> = catalogue::ALL
                .iter()
                .filter(|metric| metric.kind == Kind::Counter)
                .map(|metric| values(&text, &format!("{}_total", metric.name)).iter().sum())
                .collect();
            proptest::prop_assert!(before.iter().zip(&now).all(|(before, now)| before <= now));
            before = now;
        }
    }
}

#[test]
fn a_model_of_very_many_layers_still_has_few_series() {
    let mut state = State::new();
    state.begin_run(facts());
    state.step(&metrics(1), &priced(WindowKind::Step, &[1, 2], &[]), &routing(1500), 0);
    let mut exposition = state.gather();
    assert_eq!(exposition.limit(MAX_SERIES), ["wattle_routing_entropy"]);
    let text = exposition.encode(Dialect::Text);
    assert!(text.lines().filter(|line| !line.starts_with('#')).count() <= MAX_SERIES);
}

fn exporter() -> Exporter {
    Exporter::start("127.0.0.1:0".parse().unwrap()).unwrap()
}

/// The status line with headers, and the body.
fn request(address: SocketAddr, head: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{head}\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_ascii_lowercase(), body.to_owned())
}

#[test]
fn a_client_gets_the_format_it_asks_for() {
    let exporter = exporter();
    exporter.begin_run(facts());
    exporter.step(&metrics(1), &priced(WindowKind::Step, &[5, 6], &[]), &routing(2), 1);
    let (head, body) = request(exporter.address(), "GET /metrics HTTP/1.1");
    assert!(head.starts_with("http/1.1 200") && head.contains("text/plain; version=0.0.4"), "{head}");
    assert_eq!(body, lock(&exporter.state).gather().encode(Dialect::Text));
    let accept = "GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text; version=1.0.0";
    let (head, body) = request(exporter.address(), accept);
    assert!(head.contains("application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(
        body.ends_with("\n# EOF\n") && body.contains("run_id=\"tiny-20260101-000000\",step=\"1\""),
        "{body}"
    );
}

#[test]
fn other_requests_get_plain_answers() {
    let exporter = exporter();
    let status = |head: &str| {
        let (head, body) = request(exporter.address(), head);
        (head.split(' ').nth(1).unwrap().to_owned(), body)
    };
    assert_eq!(status("GET /healthz HTTP/1.1"), ("200".to_owned(), "ok\n".to_owned()));
    assert_eq!(status("HEAD /metrics HTTP/1.1"), ("200".to_owned(), String::new()));
    assert_eq!(status("GET /metrics?name=x HTTP/1.0").0, "200");
    assert_eq!(status("GET / HTTP/1.1").0, "404");
    assert_eq!(status("POST /metrics HTTP/1.1\r\nContent-Length: 0").0, "405");
    assert_eq!(status("nonsense").0, "400");
    assert_eq!(status("GET /healthz HTTP/1.1\r\nContent-Length: x").0, "400");
}

#[test]
fn a_header_without_end_is_cut_off_and_the_next_client_is_served() {
    let exporter = exporter();
    let mut stream = TcpStream::connect(exporter.address()).unwrap();
    // Hung up on while it still talks, so a write or the read may fail.
    let cut_off = (0..10_000).any(|_| stream.write_all(&[b'x'; 4096]).is_err());
    assert!(cut_off);
    assert_eq!(request(exporter.address(), "GET /healthz HTTP/1.1").1, "ok\n");
}

#[test]
fn clients_that_say_nothing_stop_neither_the_step_nor_later_clients() {
    let exporter = exporter();
    exporter.begin_run(facts());
    let silent: Vec<_> = (0..40).map(|_| TcpStream::connect(exporter.address()).unwrap()).collect();
    for step in 1..=10 {
        exporter.step(&metrics(step), &priced(WindowKind::Step, &[5, 6], &[]), &routing(2), 0);
    }
    drop(silent);
    // A client beyond the limit is hung up on; once the silent ones are seen to be gone it is served.
    let answered = (0..1000).any(|_| {
        let mut stream = TcpStream::connect(exporter.address()).unwrap();
        let mut answer = String::new();
        let sent = write!(stream, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
        sent.is_ok() && stream.read_to_string(&mut answer).is_ok() && answer.contains("wattle_steps_total 10")
    });
    assert!(answered);
}

#[test]
fn an_address_that_is_taken_is_told_with_what_to_do_and_free_again_after_the_end() {
    let first = exporter();
    let address = first.address();
    let error = Exporter::start(address).unwrap_err();
    assert_eq!(error.exit_code(), 74);
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("telemetry.prometheus_address: cannot serve at {address}: ")),
        "{text}"
    );
    assert!(text.ends_with("; give another port, or 0 to take a free one"), "{text}");
    drop(first);
    Exporter::start(address).unwrap();
}

#[test]
fn an_address_of_another_machine_is_refused() {
    // TEST-NET-1 of RFC 5737, which no machine has.
    let error = Exporter::start("192.0.2.1:0".parse().unwrap()).unwrap_err();
    assert!(error.to_string().ends_with("give an address of this machine, such as 127.0.0.1 or 0.0.0.0"));
}

#[test]
fn the_gauge_of_the_grid_follows_what_energy_is_priced_with() {
    let exporter = Exporter::start(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    exporter.begin_run(facts());
    exporter.price(&wattle_energy::carbon::lookup("POL").unwrap());
    let run = lock(&exporter.state).run.clone().unwrap();
    assert_eq!(run.intensity.zone, "POL");
}
