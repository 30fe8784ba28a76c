//! From joules to grams of CO2-equivalent: the carbon intensity of electricity by place and year.

mod cache;
mod electricity_maps;
mod feed;
mod file;
mod grid;
mod http;
mod past;
mod provider;
#[cfg(test)]
mod replay_server;
mod source;
mod uk;
mod watttime;

use std::borrow::Cow;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::{CarbonConfig, ProviderConfig};
use crate::error::{Error, Result};
use crate::units::GramsPerKilowattHour;

pub use feed::CarbonFeed;
pub(crate) use past::Past;
pub use past::fetch;
use provider::{TIMEOUT, environment};
pub(crate) use uk::Area as UkArea;

/// Whom the built-in figures are owed to, to be shown wherever they are used.
pub const CREDIT: &str = "Ember; Energy Institute; Our World in Data, CC BY 4.0";

/// A carbon intensity with everything needed to judge it later.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GridIntensity {
    /// The intensity.
    pub grams_per_kwh: GramsPerKilowattHour,
    /// The place it holds for: an ISO 3166 code, or `World`.
    pub zone: String,
    /// The year it holds for; `None` for a figure of the user's own.
    pub year: Option<u16>,
    /// What is counted in it.
    pub basis: Basis,
    /// Whose emissions it counts.
    pub accounting: Accounting,
    /// Where it comes from.
    pub source: Cow<'static, str>,
    /// The time it holds for; `None` for a yearly or declared figure, which holds for all times.
    pub period: Option<Period>,
    /// Whether it is the provider's own estimate or forecast.
    pub estimated: bool,
}

/// A span of time: its end is no part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Period {
    /// Its start.
    pub from: Timestamp,
    /// Its end.
    pub until: Timestamp,
}

impl Period {
    /// Whether a moment is part of it.
    pub fn contains(self, at: Timestamp) -> bool {
        (self.from..self.until).contains(&at)
    }

    /// Whether the two have a moment in common.
    pub fn overlaps(self, other: Period) -> bool {
        self.from < other.until && other.from < self.until
    }
}

/// Whose emissions are counted: the two must never be summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Accounting {
    /// The grid's, where the electricity is drawn.
    #[default]
    Location,
    /// Those of the contracts that the user holds (certificates, purchase agreements).
    Market,
}

impl Accounting {
    /// The name in files and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Accounting::Location => "location",
            Accounting::Market => "market",
        }
    }

    /// The accounting of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Accounting::Location, Accounting::Market].into_iter().find(|accounting| accounting.as_str() == name)
    }
}

/// What a carbon intensity counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// Average of all generation, building and fuel supply of the plants included.
    LifecycleAverage,
    /// Average of all generation, at the stacks of the plants only.
    DirectAverage,
    /// Of the plants that answer a change of demand. Never to be mixed with averages.
    Marginal,
    /// Whatever the user meant.
    UserDeclared,
}

impl Basis {
    /// The name in files and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Basis::LifecycleAverage => "lifecycle_average",
            Basis::DirectAverage => "direct_average",
            Basis::Marginal => "marginal",
            Basis::UserDeclared => "user_declared",
        }
    }

    /// The basis of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        use Basis::*;
        [LifecycleAverage, DirectAverage, Marginal, UserDeclared]
            .into_iter()
            .find(|basis| basis.as_str() == name)
    }
}

/// The newest yearly figure of a place, by code or English name, in any case.
///
/// # Errors
/// When the place is not in the table; the error names the nearest ones.
pub fn lookup(location: &str) -> Result<GridIntensity> {
    lookup_year(location, u16::MAX)
}

/// The figure of a place for `year`, or for the nearest year before it that is in the table; for a year older than
/// the table, its oldest.
///
/// # Errors
/// As [`lookup`].
pub fn lookup_year(location: &str, year: u16) -> Result<GridIntensity> {
    let wanted = location.trim();
    let unknown = || Error::Location { given: location.into(), nearest: nearest(wanted) };
    let row = grid::TABLE
        .iter()
        .find(|row| row.code.eq_ignore_ascii_case(wanted) || row.name.eq_ignore_ascii_case(wanted))
        .ok_or_else(unknown)?;
    let not_after = row.years.iter().find(|(of, _)| *of <= year);
    let &(year, grams) = not_after.or(row.years.last()).ok_or_else(unknown)?;
    Ok(GridIntensity {
        grams_per_kwh: GramsPerKilowattHour(grams),
        zone: row.code.into(),
        year: Some(year),
        basis: Basis::LifecycleAverage,
        accounting: Accounting::Location,
        source: CREDIT.into(),
        period: None,
        estimated: false,
    })
}

/// What is known of a configured provider without asking it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProviderFinding {
    /// `electricity_maps`, `watttime`, `uk_carbon_intensity`, `file`.
    pub provider: &'static str,
    /// True when it can be asked: its settings fit, its token or file is there.
    pub available: bool,
    /// What it would be asked for, or what is missing and what to do.
    pub detail: String,
}

/// Tells of each configured provider whether it can be asked. Nothing leaves the machine.
pub fn check(config: &CarbonConfig) -> Vec<ProviderFinding> {
    let finding = |(index, config): (usize, &ProviderConfig)| {
        let key = format!("carbon.providers[{index}]");
        let opened = provider::open(config, &key, &environment, TIMEOUT);
        let available = opened.is_ok();
        let detail = opened.map_or_else(|error| error.to_string(), |provider| provider.whom().to_owned());
        ProviderFinding { provider: config.kind.as_str(), available, detail }
    };
    config.providers.iter().enumerate().map(finding).collect()
}

/// The English name of a country by its ISO 3166 three-letter code; regions and the World have none.
pub(crate) fn country_name(code: &str) -> Option<&'static str> {
    let is_iso3 = code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_uppercase());
    grid::TABLE.iter().find(|row| is_iso3 && row.code == code).map(|row| row.name)
}

/// The three places whose code or name looks most like what was asked for.
fn nearest(wanted: &str) -> Vec<String> {
    let wanted = wanted.to_lowercase();
    let likeness = |row: &grid::Row| {
        let code = strsim::jaro_winkler(&wanted, &row.code.to_lowercase());
        code.max(strsim::jaro_winkler(&wanted, &row.name.to_lowercase()))
    };
    let mut rows: Vec<(f64, &grid::Row)> = grid::TABLE.iter().map(|row| (likeness(row), row)).collect();
    rows.sort_by(|a, b| b.0.total_cmp(&a.0));
    rows.iter().take(3).map(|(_, row)| format!("{} ({})", row.code, row.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(location: &str, grams: f64, zone: &str, year: u16) {
        let found = lookup(location).unwrap();
        assert_eq!((found.grams_per_kwh.0, found.zone.as_str(), found.year), (grams, zone, Some(year)));
        assert_eq!(found.source, CREDIT);
    }

    /// Origin of the numbers: OWID grapher `carbon-intensity-electricity`, read in 2026.
    #[test]
    fn the_newest_year_of_a_place_is_used() {
        check("World", 458.0, "World", 2025);
        check("FRA", 41.0, "FRA", 2025);
        check("IDN", 680.0, "IDN", 2024);
        check("UKR", 250.0, "UKR", 2022);
    }

    #[test]
    fn an_older_year_is_priced_with_its_own_figure() {
        let figure = |location, year| lookup_year(location, year).unwrap();
        assert_eq!(figure("FRA", 2024).grams_per_kwh.0, 40.0);
        assert_eq!(figure("FRA", 2019).year, Some(2024));
        assert_eq!(figure("UKR", 2025).year, Some(2022));
    }

    #[test]
    fn places_are_found_by_name_and_in_any_case() {
        check("fra", 41.0, "FRA", 2025);
        check("germany", 330.0, "DEU", 2025);
        check(" United Kingdom ", 217.0, "GBR", 2025);
        check("EU", 210.0, "EU27", 2025);
    }

    #[test]
    fn an_unknown_place_names_the_nearest() {
        for (given, expect) in
            [("DEX", "DEU (Germany)"), ("Frankreich", "FRA (France)"), ("SWEDN", "SWE (Sweden)")]
        {
            let message = lookup(given).unwrap_err().to_string();
            assert!(message.contains(expect), "{message}");
        }
    }

    fn file(path: std::path::PathBuf) -> ProviderConfig {
        let (kind, zone, url) = (crate::config::ProviderKind::File, None, None);
        ProviderConfig { kind, zone, url, path: Some(path), stale_after_minutes: 120 }
    }

    /// Every configuration and file that the documentation shows.
    #[test]
    fn what_the_documentation_shows_can_be_used() {
        #[derive(Deserialize)]
        struct Shown {
            carbon: CarbonConfig,
        }
        let text = include_str!("../../../docs/carbon.md");
        let blocks = |kind: &'static str| {
            text.split("\n```").filter_map(move |block| block.strip_prefix(kind)).collect::<Vec<_>>()
        };
        let configurations = blocks("toml\n");
        assert_eq!(configurations.len(), 5);
        for block in configurations {
            let shown: Shown = toml::from_str(block).unwrap();
            assert!(!shown.carbon.providers.is_empty());
            assert_eq!(shown.carbon.validate(), [], "{block}");
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("grid.csv");
        std::fs::write(&path, blocks("csv\n")[0]).unwrap();
        let all = [Timestamp::MIN, Timestamp::MAX];
        assert_eq!(fetch(&file(path), all[0], all[1]).unwrap().len(), 2);
    }

    #[test]
    fn a_check_tells_of_each_provider_whether_it_can_be_asked() {
        let uk = serde_json::from_str(r#"{"kind":"uk_carbon_intensity","zone":"13"}"#).unwrap();
        let providers = vec![uk, file("/no/such/grid.csv".into())];
        let findings = super::check(&CarbonConfig { providers, ..CarbonConfig::default() });
        let told: Vec<_> = findings.iter().map(|finding| (finding.provider, finding.available)).collect();
        assert_eq!(told, [("uk_carbon_intensity", true), ("file", false)]);
        assert_eq!(findings[0].detail, "UK Carbon Intensity, zone GB-13");
        assert!(findings[1].detail.starts_with("/no/such/grid.csv: cannot be read"));
    }

    #[test]
    fn every_row_is_plausible_and_named_once() {
        let mut codes: Vec<&str> = grid::TABLE.iter().map(|row| row.code).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), grid::TABLE.len());
        for row in grid::TABLE {
            assert!(!row.years.is_empty() && row.years.is_sorted_by(|a, b| a.0 > b.0), "{}", row.code);
            for (year, grams) in row.years {
                assert!((2022..=2025).contains(year) && (20.0..900.0).contains(grams), "{}", row.code);
            }
        }
    }
}
