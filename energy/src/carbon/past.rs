//! The intensities of the past, to complete a ledger afterwards: measured values in place of estimates, and values for
//! hours in which the provider did not answer.

use std::time::Duration;

use jiff::Timestamp;

use super::provider::{self, Moment, Provider, TIMEOUT, environment};
use super::{GridIntensity, Period};
use crate::config::ProviderConfig;
use crate::error::{Error, Result};

/// The intensities from `from` to `until`, in order of time. Touches the network, unless the provider is a file.
///
/// # Errors
/// When the provider cannot be asked (a token is missing), cannot be reached, or answers with anything but values.
pub fn fetch(config: &ProviderConfig, from: Timestamp, until: Timestamp) -> Result<Vec<GridIntensity>> {
    Past::open(config)?.fetch(Period { from, until })
}

/// A provider that is asked for several spans of the past.
pub(crate) struct Past(Box<dyn Provider>);

impl Past {
    /// Makes ready to ask a provider, without asking it.
    ///
    /// # Errors
    /// When a setting, a token or a file is missing or cannot be used.
    pub(crate) fn open(config: &ProviderConfig) -> Result<Self> {
        provider::open(config, "carbon.providers", &environment, TIMEOUT).map(Past)
    }

    /// Every value whose period touches `span`, in order of time.
    ///
    /// # Errors
    /// When the provider cannot be reached, or answers with anything but values.
    pub(crate) fn fetch(&mut self, span: Period) -> Result<Vec<GridIntensity>> {
        if span.from >= span.until {
            let message = format!("is {} to {}, expected a start before its end", span.from, span.until);
            return Err(Error::Setting { key: "carbon.providers: the time asked for".into(), message });
        }
        let now = Moment { monotonic: Duration::ZERO, wall: Timestamp::now() };
        let mut values = self.0.history(span, now)?;
        values.retain(|value| value.period.is_some_and(|period| period.overlaps(span)));
        values.sort_by_key(|value| value.period.map(|period| (period.from, period.until)));
        values.dedup_by_key(|value| value.period);
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: std::path::PathBuf) -> ProviderConfig {
        let (kind, zone, url) = (crate::config::ProviderKind::File, None, None);
        ProviderConfig { kind, zone, url, path: Some(path), stale_after_minutes: 120 }
    }

    #[test]
    fn the_past_is_fetched_in_order_and_within_what_was_asked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("grid.csv");
        let rows = "2026-01-01T02:00Z,2026-01-01T03:00Z,3\n2026-01-01T00:00Z,2026-01-01T01:00Z,1\n\
                    2026-01-01T01:00Z,2026-01-01T02:00Z,2\n";
        std::fs::write(&path, format!("from,until,grams_per_kwh\n{rows}")).unwrap();
        let at = |minute: &str| format!("2026-01-01T{minute}:00Z").parse().unwrap();
        let fetched = |from: &str, until: &str| {
            fetch(&file(path.clone()), at(from), at(until))
                .map(|values| values.iter().map(|value| value.grams_per_kwh.0).collect::<Vec<_>>())
        };
        assert_eq!(fetched("00:30", "02:00"), Ok(vec![1.0, 2.0]));
        assert_eq!(fetched("00:00", "09:00"), Ok(vec![1.0, 2.0, 3.0]));
        assert_eq!(fetched("05:00", "09:00"), Ok(vec![]));
        let message = fetched("02:00", "02:00").unwrap_err().to_string();
        assert!(message.contains("a start before its end"), "{message}");
    }

    #[test]
    fn ranges_that_overlap_are_told_once_and_a_refusal_is_an_error() {
        use super::super::replay_server::{Reply, Server};
        let half = |from: &str, to: &str, actual: u32| {
            format!(r#"{{"from":"2018-01-{from}Z","to":"2018-01-{to}Z","intensity":{{"actual":{actual}}}}}"#)
        };
        let (early, late) = (half("13T23:30", "14T00:00", 1), half("14T00:00", "14T00:30", 2));
        let server = Server::start([
            Reply::json(&format!(r#"{{"data":[{early},{late}]}}"#)),
            Reply::json(&format!(r#"{{"data":[{late}]}}"#)),
            Reply::status(
                400,
                r#"{"error":{"code":"400 Bad Request","message":"Please enter a valid date"}}"#,
            ),
        ]);
        let url = Some(server.url.as_str());
        let uk = super::super::uk::UkCarbonIntensity::new(super::super::UkArea::Country, url, TIMEOUT);
        let mut uk = Past(Box::new(uk));
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let span = Period { from: at("2018-01-01T00:00Z"), until: at("2018-01-20T00:00Z") };
        let values = uk.fetch(span).unwrap();
        assert_eq!(values.iter().map(|value| value.grams_per_kwh.0).collect::<Vec<_>>(), [1.0, 2.0]);
        let message = uk.fetch(span).unwrap_err().to_string();
        assert!(message.starts_with("UK Carbon Intensity, zone GB: ") && message.contains("valid date"));
    }
}
