//! `[carbon]`: how joules become grams of CO2-equivalent.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Problem, problem};
use crate::carbon::{self, Accounting, Basis, GridIntensity};
use crate::error::Result;
use crate::units::GramsPerKilowattHour;

/// `[carbon]`: how joules become grams of CO2-equivalent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CarbonConfig {
    /// Where the electricity comes from: an ISO 3166 three-letter code (`FRA`), a country's name, or `World`.
    pub location: String,
    /// Carbon intensity of the electricity in grams of CO2-equivalent per kilowatt-hour, in place of the yearly
    /// figure of the location.
    pub grams_per_kwh: Option<f64>,
    /// Whether the figures count the grid's emissions (location) or those of the user's contracts (market).
    pub accounting: Accounting,
    /// Where intensities that change with time come from. The first prices the energy; the others are recorded and
    /// shown beside it. Without one, and while none answers, the figure of the location holds.
    pub providers: Vec<ProviderConfig>,
    /// Power usage effectiveness of the building: what it draws over what its computers draw.
    pub pue: f64,
    /// Water usage effectiveness: litres per kilowatt-hour drawn by the computers.
    pub wue_l_per_kwh: Option<f64>,
    /// Emissions of making the hardware; without it reports say "not declared".
    pub embodied: Option<EmbodiedConfig>,
}

/// `[[carbon.providers]]`: a source of carbon intensities.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProviderConfig {
    /// Who is asked: electricity_maps, watttime, uk_carbon_intensity or file.
    pub kind: ProviderKind,
    /// The provider's own name of the place: `DE`, `CAISO_NORTH`; a UK region number or the first half of a postcode,
    /// or nothing for all of Great Britain; for a file, the name to record.
    #[serde(default)]
    pub zone: Option<String>,
    /// Another address than the provider's own: a mirror, a gateway. The token is sent there.
    #[serde(default)]
    pub url: Option<String>,
    /// The file of intensities, for the kind `file`: CSV or JSON with from, until and grams_per_kwh.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// How long the last answer holds when no newer one comes, in minutes; then the location's figure is used.
    #[serde(default = "default_stale_after_minutes")]
    pub stale_after_minutes: u64,
}

/// A source of carbon intensities, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProviderKind {
    /// Electricity Maps; the token is read from the variable ELECTRICITY_MAPS_TOKEN.
    ElectricityMaps,
    /// WattTime (marginal); user and password are read from WATTTIME_USER and WATTTIME_PASSWORD.
    Watttime,
    /// The UK's Carbon Intensity API; needs no account.
    UkCarbonIntensity,
    /// A file.
    File,
}

/// `[carbon.embodied]`: emissions of making the hardware that the run reserves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EmbodiedConfig {
    /// Kilograms of CO2-equivalent of the hardware.
    pub kg: f64,
    /// Its expected life, in years.
    pub lifetime_years: f64,
    /// The part of it that the run reserves, 0 to 1.
    #[serde(default = "whole")]
    pub share: f64,
    /// What the figure includes: die, board, server.
    pub boundary: String,
}

fn whole() -> f64 {
    1.0
}

fn default_stale_after_minutes() -> u64 {
    120
}

impl Default for CarbonConfig {
    fn default() -> Self {
        CarbonConfig {
            location: "World".into(),
            grams_per_kwh: None,
            accounting: Accounting::Location,
            providers: Vec::new(),
            pue: 1.0,
            wue_l_per_kwh: None,
            embodied: None,
        }
    }
}

impl CarbonConfig {
    /// All problems at once; empty when the section can be used.
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if let Err(error) = self.intensity() {
            let message = error.to_string();
            let message = message.strip_prefix("carbon.location: ").unwrap_or(&message).to_owned();
            problems.push(Problem { key: "carbon.location".into(), message });
        }
        if let Some(grams) = self.grams_per_kwh.filter(|grams| !(0.0..=5000.0).contains(grams)) {
            problems.push(problem("carbon.grams_per_kwh", grams, "0 to 5000"));
        }
        problems.extend(pue_problem(self.pue));
        if let Some(litres) = self.wue_l_per_kwh.filter(|litres| !(0.0..=100.0).contains(litres)) {
            problems.push(problem("carbon.wue_l_per_kwh", litres, "0 to 100"));
        }
        let first_is_of_the_grid =
            self.providers.first().is_some_and(|first| first.kind != ProviderKind::File);
        if self.accounting == Accounting::Market && first_is_of_the_grid {
            let message = "is market, but carbon.providers[0] counts the grid's emissions and the two must not be \
                 summed; set it to location, or let a file of market figures come first";
            problems.push(Problem { key: "carbon.accounting".into(), message: message.into() });
        }
        for (index, provider) in self.providers.iter().enumerate() {
            provider.validate(&format!("carbon.providers[{index}]"), &mut problems);
        }
        problems.extend(self.embodied.iter().flat_map(EmbodiedConfig::validate));
        problems
    }

    /// The carbon intensity to count with: the user's own figure, else the newest year of the location.
    ///
    /// # Errors
    /// When no figure is known for the location and none is given.
    pub fn intensity(&self) -> Result<GridIntensity> {
        match self.grams_per_kwh {
            None => Ok(GridIntensity { accounting: self.accounting, ..carbon::lookup(&self.location)? }),
            Some(grams) => Ok(GridIntensity {
                grams_per_kwh: GramsPerKilowattHour(grams),
                zone: self.location.clone(),
                year: None,
                basis: Basis::UserDeclared,
                accounting: self.accounting,
                source: "carbon.grams_per_kwh".into(),
                period: None,
                estimated: false,
            }),
        }
    }
}

impl ProviderKind {
    /// The name in files and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            ProviderKind::ElectricityMaps => "electricity_maps",
            ProviderKind::Watttime => "watttime",
            ProviderKind::UkCarbonIntensity => "uk_carbon_intensity",
            ProviderKind::File => "file",
        }
    }
}

impl ProviderConfig {
    pub(crate) fn validate(&self, key: &str, problems: &mut Vec<Problem>) {
        let mut missing = |name: &str, what: &str| {
            problems.push(Problem { key: format!("{key}.{name}"), message: format!("is missing: {what}") });
        };
        match self.kind {
            ProviderKind::ElectricityMaps if self.zone.is_none() => missing("zone", "such as \"DE\""),
            ProviderKind::Watttime if self.zone.is_none() => missing("zone", "such as \"CAISO_NORTH\""),
            ProviderKind::File if self.path.is_none() => missing("path", "the file of intensities"),
            ProviderKind::UkCarbonIntensity => {
                if let Err(message) = carbon::UkArea::parse(self.zone.as_deref()) {
                    problems.push(Problem { key: format!("{key}.zone"), message });
                }
            }
            _ => {}
        }
        let named = |zone: &str| {
            let printable = zone.chars().all(|c| !c.is_control());
            (1..=64).contains(&zone.len()) && zone.trim() == zone && printable
        };
        if let Some(zone) = self.zone.as_deref().filter(|zone| !named(zone)) {
            let expected = "1 to 64 characters without blanks around them";
            problems.push(problem(&format!("{key}.zone"), format!("{zone:?}"), expected));
        }
        // The address itself stays out of the message: it may hold a password.
        if self.url.as_deref().is_some_and(|url| !is_address(url)) {
            let message = "cannot be used: expected https:// or http:// with a host, and no user or password";
            problems.push(Problem { key: format!("{key}.url"), message: message.into() });
        }
        if self.kind == ProviderKind::File && self.url.is_some() {
            let message = "has no meaning for a file; name it in path".into();
            problems.push(Problem { key: format!("{key}.url"), message });
        }
        if self.kind != ProviderKind::File && self.path.is_some() {
            let message = "has a meaning only for the kind file".into();
            problems.push(Problem { key: format!("{key}.path"), message });
        }
        if !(1..=100_000).contains(&self.stale_after_minutes) {
            let key = format!("{key}.stale_after_minutes");
            problems.push(problem(&key, self.stale_after_minutes, "1 to 100000"));
        }
    }
}

impl EmbodiedConfig {
    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut check = |name: &str, value: f64, fits: bool, expected: &str| {
            if !fits {
                problems.push(problem(&format!("carbon.embodied.{name}"), value, expected));
            }
        };
        check("kg", self.kg, (0.0..=1e9).contains(&self.kg), "0 to 1e9");
        let years = self.lifetime_years;
        check("lifetime_years", years, years > 0.0 && years <= 100.0, "above 0 and at most 100");
        check("share", self.share, (0.0..=1.0).contains(&self.share), "0 to 1");
        problems
    }
}

/// What is wrong with a power usage effectiveness: no building draws less than its computers.
pub(crate) fn pue_problem(pue: f64) -> Option<Problem> {
    (!(1.0..=10.0).contains(&pue)).then(|| problem("carbon.pue", pue, "1.0 to 10.0"))
}

/// Whether requests can be sent to an address.
fn is_address(url: &str) -> bool {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    rest.is_some_and(|rest| {
        let host = rest.split('/').next().unwrap_or_default();
        !host.is_empty() && rest.bytes().all(|byte| byte.is_ascii_graphic() && !b"@?#".contains(&byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(CarbonConfig::default().validate(), []);
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let carbon = CarbonConfig { location: "FRX".into(), pue: 0.5, ..CarbonConfig::default() };
        let problems = carbon.validate();
        let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(keys, ["carbon.location", "carbon.pue"]);
        assert!(problems[0].message.contains("FRA"), "{}", problems[0].message);
    }

    #[test]
    fn a_provider_must_have_what_its_kind_needs() {
        let problems = |json: &str| {
            let provider = serde_json::from_str(json).unwrap();
            let carbon = CarbonConfig { providers: vec![provider], ..CarbonConfig::default() };
            let problems = carbon.validate();
            problems
                .into_iter()
                .map(|problem| format!("{} {}", problem.key, problem.message))
                .collect::<Vec<_>>()
        };
        for good in [
            r#"{"kind":"electricity_maps","zone":"DE"}"#,
            r#"{"kind":"watttime","zone":"CAISO_NORTH","url":"http://127.0.0.1:8080/wt"}"#,
            r#"{"kind":"uk_carbon_intensity"}"#,
            r#"{"kind":"uk_carbon_intensity","zone":"13"}"#,
            r#"{"kind":"file","path":"grid.csv"}"#,
        ] {
            assert_eq!(problems(good), [""; 0], "{good}");
        }
        for (bad, part) in [
            (r#"{"kind":"electricity_maps"}"#, "carbon.providers[0].zone is missing"),
            (r#"{"kind":"electricity_maps","zone":" "}"#, "carbon.providers[0].zone is"),
            (r#"{"kind":"uk_carbon_intensity","zone":"Leeds"}"#, "1 to 17"),
            (r#"{"kind":"file"}"#, "carbon.providers[0].path is missing"),
            (r#"{"kind":"watttime","zone":"X","path":"grid.csv"}"#, "only for the kind file"),
            (r#"{"kind":"file","path":"grid.csv","url":"http://x"}"#, "no meaning for a file"),
            (r#"{"kind":"watttime","zone":"X","url":"ftp://x"}"#, "https://"),
            (r#"{"kind":"watttime","zone":"X","stale_after_minutes":0}"#, "1 to 100000"),
        ] {
            let found = problems(bad);
            assert!(found.len() == 1 && found[0].contains(part), "{bad}: {found:?}");
        }
        let providers = vec![serde_json::from_str(r#"{"kind":"uk_carbon_intensity"}"#).unwrap()];
        let market = CarbonConfig { accounting: Accounting::Market, providers, ..CarbonConfig::default() };
        assert_eq!(market.validate()[0].key, "carbon.accounting");
        let secret = problems(r#"{"kind":"watttime","zone":"X","url":"https://ada:pa55@host"}"#);
        assert!(secret.len() == 1 && !secret[0].contains("pa55"), "{secret:?}");
    }

    #[test]
    fn a_figure_of_the_users_own_is_labelled_as_such() {
        let carbon = CarbonConfig { grams_per_kwh: Some(17.0), ..CarbonConfig::default() };
        let intensity = carbon.intensity().unwrap();
        assert_eq!(intensity.grams_per_kwh.0, 17.0);
        assert_eq!(intensity.basis, Basis::UserDeclared);
        assert_eq!(intensity.year, None);
    }
}
