//! What every provider of carbon intensities has in common: what it is asked, what it answers, how it fails.

use std::time::Duration;

use jiff::Timestamp;

use super::electricity_maps::ElectricityMaps;
use super::file::FileProvider;
use super::uk::{Area, UkCarbonIntensity};
use super::watttime::WattTime;
use super::{Accounting, Basis, GridIntensity, Period};
use crate::config::{ProviderConfig, ProviderKind};
use crate::error::Error;
use crate::units::GramsPerKilowattHour;

/// Longest wait for a whole answer.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);

/// How far back a provider is asked for corrections of what it said before.
pub(super) const LOOK_BACK: Duration = Duration::from_secs(24 * 3600);

/// A source of carbon intensities.
pub(super) trait Provider: Send {
    /// The provider and the place, as people know them: `Electricity Maps, zone DE`.
    fn whom(&self) -> &str;

    /// Time from the start of a period until its value can be expected.
    fn delay(&self) -> Duration;

    /// The value of the present, and those of the last day, which may correct what was said before. At least one
    /// value, none of it a forecast beyond the period of the present.
    fn recent(&mut self, now: Moment) -> Result<Answer, Failure>;

    /// Every value whose period touches `span`.
    fn history(&mut self, span: Period, now: Moment) -> Result<Vec<GridIntensity>, Failure>;
}

/// One instant on both clocks: waiting is done on the one that cannot jump, periods are of the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// Monotonic time, from a start of its own.
    pub(super) monotonic: Duration,
    /// Wall time; it may jump either way.
    pub(super) wall: Timestamp,
}

/// What a provider said.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// Values with their periods.
    pub(super) values: Vec<GridIntensity>,
    /// What a person should hear once: the provider says it once.
    pub(super) note: Option<String>,
    /// How long it wants to be left alone, when it says so.
    pub(super) busy: Option<Duration>,
}

/// Why a provider gave nothing.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{whom}: {message}; {remedy}")]
pub(super) struct Failure {
    /// The provider and the place.
    pub(super) whom: String,
    /// What went wrong; no secret is in it.
    pub(super) message: String,
    /// What to do.
    pub(super) remedy: String,
    /// When to ask again.
    pub(super) kind: FailureKind,
}

/// What a failure means for the next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// The credentials were not accepted.
    Unauthorised,
    /// It will not work until a person changes something.
    Unusable,
    /// Asked too often: not again before this time has passed.
    Busy(Duration),
    /// The next request may work.
    Passing,
}

impl Failure {
    pub(super) fn new(whom: &str, kind: FailureKind, message: impl Into<String>, remedy: &str) -> Self {
        Failure { whom: whom.into(), message: message.into(), remedy: remedy.into(), kind }
    }

    /// An answer that is not what the provider's documentation says.
    pub(super) fn garbled(whom: &str, message: impl Into<String>) -> Self {
        let remedy =
            "it is asked again later; if it lasts, check carbon.providers.url, or report it as a bug";
        Failure::new(whom, FailureKind::Passing, message, remedy)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Error::Provider { whom: failure.whom, message: failure.message, remedy: failure.remedy }
    }
}

/// A look-up in the environment, so that tests need not change the process's own.
pub(super) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The environment of this process.
pub(super) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Makes ready to ask a provider, without asking it. `key` is where the configuration names it.
///
/// # Errors
/// When a setting, a token or a file is missing or cannot be used.
pub(super) fn open(
    config: &ProviderConfig,
    key: &str,
    environment: Environment,
    timeout: Duration,
) -> Result<Box<dyn Provider>, Error> {
    let mut problems = Vec::new();
    config.validate(key, &mut problems);
    if let Some(problem) = problems.into_iter().next() {
        return Err(Error::Setting { key: problem.key, message: problem.message });
    }
    let unset = |message: String| Error::Setting { key: key.into(), message };
    let zone = config.zone.as_deref().unwrap_or_default();
    let url = config.url.as_deref();
    Ok(match config.kind {
        ProviderKind::ElectricityMaps => {
            let token = secret("ELECTRICITY_MAPS_TOKEN", environment).map_err(unset)?;
            Box::new(ElectricityMaps::new(zone, url, token, timeout))
        }
        ProviderKind::Watttime => {
            let user = secret("WATTTIME_USER", environment).map_err(unset)?;
            let password = secret("WATTTIME_PASSWORD", environment).map_err(unset)?;
            Box::new(WattTime::new(zone, url, &user, &password, timeout))
        }
        ProviderKind::UkCarbonIntensity => {
            let area = Area::parse(config.zone.as_deref()).map_err(unset)?;
            Box::new(UkCarbonIntensity::new(area, url, timeout))
        }
        ProviderKind::File => {
            let path = config.path.clone().unwrap_or_default();
            Box::new(FileProvider::open(path, config.zone.clone())?)
        }
    })
}

fn secret(name: &str, environment: Environment) -> Result<String, String> {
    let value = environment(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
    let value = value.ok_or_else(|| {
        format!("needs the environment variable {name}, which is not set; export it before the run")
    })?;
    match value.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(value),
        false => Err(format!(
            "cannot use the environment variable {name}: it holds a space or a character outside ASCII; export it anew"
        )),
    }
}

/// A time as the providers write it: RFC 3339, with or without seconds.
pub(super) fn parse_time(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// A value of a grid, for one period.
pub(super) struct Value<'a> {
    pub(super) grams_per_kwh: f64,
    pub(super) zone: &'a str,
    pub(super) basis: Basis,
    pub(super) source: &'a str,
    pub(super) period: Period,
    pub(super) estimated: bool,
}

impl Value<'_> {
    /// The value as the ledger knows it.
    ///
    /// # Errors
    /// When no grid can have such an intensity.
    pub(super) fn check(self, whom: &str) -> Result<GridIntensity, Failure> {
        let grams = self.grams_per_kwh;
        if !plausible(grams) {
            let message = format!("gave {grams} g/kWh for {}, where 0 to 5000 is possible", self.period.from);
            return Err(Failure::garbled(whom, message));
        }
        Ok(GridIntensity {
            grams_per_kwh: GramsPerKilowattHour(grams),
            zone: self.zone.into(),
            year: None,
            basis: self.basis,
            accounting: Accounting::Location,
            source: self.source.to_owned().into(),
            period: Some(self.period),
            estimated: self.estimated,
        })
    }
}

/// Whether a grid can have this intensity: coal with the oldest plants stays under 2000 g/kWh.
pub(super) fn plausible(grams_per_kwh: f64) -> bool {
    (0.0..=5000.0).contains(&grams_per_kwh)
}

/// The period that starts at `from` and lasts `length`; `None` beyond the range of time.
pub(super) fn period(from: Timestamp, length: Duration) -> Option<Period> {
    Some(Period { from, until: from.checked_add(length).ok()? })
}

/// `span` in pieces of at most `length`, for providers that give no more at once.
pub(super) fn pieces(span: Period, length: Duration) -> impl Iterator<Item = Period> {
    let mut from = span.from;
    std::iter::from_fn(move || {
        let until = from.checked_add(length).map_or(span.until, |until| until.min(span.until));
        let piece = (from < span.until).then_some(Period { from, until });
        from = until;
        piece
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(kind: ProviderKind) -> ProviderConfig {
        ProviderConfig { kind, zone: Some("DE".into()), url: None, path: None, stale_after_minutes: 120 }
    }

    fn refusal(config: &ProviderConfig, environment: Environment) -> String {
        open(config, "carbon.providers[0]", environment, TIMEOUT).err().unwrap().to_string()
    }

    #[test]
    fn a_missing_token_is_named_with_its_variable() {
        let none = |_: &str| None;
        let message = refusal(&config(ProviderKind::ElectricityMaps), &none);
        assert!(message.starts_with("carbon.providers[0] ") && message.contains("ELECTRICITY_MAPS_TOKEN"));
        assert!(refusal(&config(ProviderKind::Watttime), &none).contains("WATTTIME_USER"));
        let user_only = |name: &str| (name == "WATTTIME_USER").then(|| "ada".to_owned());
        assert!(refusal(&config(ProviderKind::Watttime), &user_only).contains("WATTTIME_PASSWORD"));
        let blank = |_: &str| Some("  \n".to_owned());
        assert!(refusal(&config(ProviderKind::ElectricityMaps), &blank).contains("not set"));
    }

    #[test]
    fn a_token_that_no_header_can_carry_is_refused_without_showing_it() {
        let message = refusal(&config(ProviderKind::ElectricityMaps), &|_| Some("se\ncret".into()));
        assert!(message.contains("ELECTRICITY_MAPS_TOKEN") && !message.contains("cret"), "{message}");
    }

    #[test]
    fn times_are_read_with_and_without_seconds_and_with_an_offset() {
        let noon = parse_time("2018-01-20T12:00:00Z").unwrap();
        for text in ["2018-01-20T12:00Z", "2018-01-20T12:00:00.000Z", "2018-01-20T13:00:00+01:00"] {
            assert_eq!(parse_time(text), Some(noon), "{text}");
        }
        for text in ["2018-01-20T12:00", "2018-01-20", "noon", ""] {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }

    #[test]
    fn a_long_span_is_cut_without_gap_or_overlap() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let cut: Vec<Period> =
            pieces(Period { from: at(0), until: at(25) }, Duration::from_secs(10)).collect();
        let ends: Vec<(Timestamp, Timestamp)> = cut.iter().map(|piece| (piece.from, piece.until)).collect();
        assert_eq!(ends, [(at(0), at(10)), (at(10), at(20)), (at(20), at(25))]);
    }
}
