//! Tests of the feed: news, staleness, alerts, the cache, clocks that jump.

use std::fs;

use super::*;
use crate::carbon::Basis;
use crate::carbon::replay_server::{Reply, Server};
use crate::config::ProviderConfig;

fn none(_: &str) -> Option<String> {
    None
}

fn provider(kind: ProviderKind, url: Option<&str>) -> ProviderConfig {
    ProviderConfig {
        kind,
        zone: (kind != ProviderKind::UkCarbonIntensity).then(|| "DE".into()),
        url: url.map(Into::into),
        path: None,
        stale_after_minutes: 120,
    }
}

fn with(providers: Vec<ProviderConfig>) -> CarbonConfig {
    CarbonConfig { providers, ..CarbonConfig::default() }
}

/// A half hour of Great Britain that holds now and for long.
fn present() -> Reply {
    let now = Timestamp::now();
    let time = |time: Timestamp| time.strftime("%Y-%m-%dT%H:%MZ").to_string();
    let (from, to) = (time(now - Duration::from_secs(600)), time(now + Duration::from_secs(1200)));
    Reply::json(&format!(
        r#"{{"data":[{{"from":"{from}","to":"{to}","intensity":{{"forecast":266,"actual":263,"index":"moderate"}}}}]}}"#
    ))
}

/// Takes news until there is as much as expected; a feed that gives nothing makes the test hang, and so fail.
fn wait_for<T>(count: usize, mut take: impl FnMut() -> Vec<T>) -> Vec<T> {
    let mut taken = take();
    while taken.len() < count {
        thread::yield_now();
        taken.extend(take());
    }
    taken
}

#[test]
fn without_providers_there_is_nothing_to_hear() {
    let feed = CarbonFeed::start(&CarbonConfig::default(), None).unwrap();
    assert_eq!(feed.take_news(), []);
    assert_eq!(feed.take_alerts(), [""; 0]);
    assert!(!feed.is_stale());
}

#[test]
fn the_first_provider_prices_and_the_others_stand_beside() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("roof.csv");
    fs::write(&path, "from,until,grams_per_kwh,basis\n2020-01-01T00:00Z,2100-01-01T00:00Z,7,marginal\n")
        .unwrap();
    let server = Server::start([present()]);
    let roof = ProviderConfig { path: Some(path), ..provider(ProviderKind::File, None) };
    let config = with(vec![provider(ProviderKind::UkCarbonIntensity, Some(&server.url)), roof]);
    let feed = CarbonFeed::start_with(&config, Some(directory.path()), &none).unwrap();
    let news = wait_for(2, || feed.take_news());
    assert_eq!((news[0].0, news[0].1.grams_per_kwh.0, news[0].1.zone.as_str()), (Role::Priced, 263.0, "GB"));
    assert_eq!((news[1].0, news[1].1.grams_per_kwh.0, news[1].1.basis), (Role::Beside, 7.0, Basis::Marginal));
    assert_eq!(feed.take_news(), [], "each value is told once");
    assert!(!feed.is_stale());
    assert!(directory.path().join("uk_carbon_intensity.all.json").is_file());
}

#[test]
fn a_second_feed_reads_what_the_first_was_told() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start([present()]);
    let config = with(vec![provider(ProviderKind::UkCarbonIntensity, Some(&server.url))]);
    for _ in 0..2 {
        let feed = CarbonFeed::start_with(&config, Some(directory.path()), &none).unwrap();
        assert_eq!(wait_for(1, || feed.take_news())[0].1.grams_per_kwh.0, 263.0);
        // The value is published before or after it is stored; the second feed must find it stored.
        while !directory.path().join("uk_carbon_intensity.all.json").is_file() {
            thread::yield_now();
        }
    }
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn a_provider_that_fails_is_an_alert_and_nothing_else() {
    let server = Server::start([Reply::status(502, "<html>bad gateway</html>")]);
    let config = with(vec![provider(ProviderKind::ElectricityMaps, Some(&server.url))]);
    let feed = CarbonFeed::start_with(&config, None, &|_| Some("s3cret".into())).unwrap();
    let alert = wait_for(1, || feed.take_alerts()).remove(0);
    assert!(alert.starts_with("Electricity Maps, zone DE: ") && alert.contains("502"), "{alert}");
    assert_eq!(feed.take_news(), []);
    assert!(!feed.is_stale());
}

#[test]
fn a_provider_that_never_answers_holds_up_neither_the_run_nor_its_end() {
    let server = Server::start([Reply::silent()]);
    let config = with(vec![provider(ProviderKind::UkCarbonIntensity, Some(&server.url))]);
    let feed = CarbonFeed::start_with(&config, None, &none).unwrap();
    while server.asked().is_empty() {
        thread::yield_now();
    }
    assert_eq!(feed.take_news(), []);
    assert!(!feed.is_stale());
    drop(feed);
}

#[test]
fn what_a_person_must_mend_is_told_at_the_start() {
    for (config, part) in [
        (
            provider(ProviderKind::ElectricityMaps, None),
            "carbon.providers[1] needs the environment variable ELECTRICITY_MAPS_TOKEN",
        ),
        (
            ProviderConfig { zone: None, ..provider(ProviderKind::Watttime, None) },
            "carbon.providers[1].zone is missing",
        ),
        (
            ProviderConfig { path: Some("/no/such.csv".into()), ..provider(ProviderKind::File, None) },
            "/no/such.csv",
        ),
    ] {
        let config = with(vec![provider(ProviderKind::UkCarbonIntensity, None), config]);
        let message = CarbonFeed::start_with(&config, None, &none).err().unwrap().to_string();
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn what_nobody_takes_does_not_grow_without_end() {
    let mut waiting: Vec<usize> = (0..MAX_WAITING + 3).collect();
    drop_oldest(&mut waiting);
    assert_eq!((waiting.len(), waiting[0]), (MAX_WAITING, 3));
}
