//! The `[energy]` and `[carbon]` sections of a configuration.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::carbon::{self, Accounting, Basis, GridIntensity};
use crate::error::Result;
use crate::units::GramsPerKilowattHour;

/// `[energy]`: how joules are counted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EnergyConfig {
    /// Where joules come from: auto, nvml, perf, rapl, hwmon, bmc, model, replay or none.
    pub meter: MeterChoice,
    /// Time between two samples of the counters, in milliseconds: 10 to 10000.
    pub interval_ms: u64,
    /// Thermal design power of all processor sockets together, in watts, for the modelled meter; from a table of
    /// processors when absent.
    pub tdp_watts: Option<f64>,
    /// What RAPL (perf, rapl) counts: package (the processors and their memory) or psys (the whole platform, where
    /// the board has that counter). The one contains the other, so never both.
    pub rapl_scope: RaplScope,
    /// Whose CPU time the modelled meter counts: process, or cgroup (everything in this container or job).
    pub model_scope: ModelScope,
    /// For the meter bmc: the command that prints the power of the node, with its arguments, such as
    /// ["ipmitool", "dcmi", "power", "reading"].
    pub bmc_command: Vec<String>,
    /// For the meter bmc: a file that holds the power of the node, written anew by someone else: Redfish JSON, the
    /// output of ipmitool, a number of watts, or a power file of hwmon. Empty: none.
    pub bmc_file: PathBuf,
    /// The recorded trace that the meter `replay` plays back.
    pub trace: Option<PathBuf>,
}

/// A meter, by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MeterChoice {
    /// Every counter there is; the processor is modelled where it has none.
    #[default]
    Auto,
    /// Energy counters of NVIDIA GPUs only.
    Nvml,
    /// Energy counters of the processor and its memory only, read through perf events.
    Perf,
    /// Energy counters of the processor and its memory only, read through powercap.
    Rapl,
    /// Sensors of the processor that its own driver shows in hwmon only: AMD energy counters, NVIDIA Grace power.
    Hwmon,
    /// Power of the whole node, from its management controller, in place of all other meters.
    Bmc,
    /// CPU time times a power curve; nothing is measured.
    Model,
    /// A recorded trace; for tests and for looking into a past run.
    Replay,
    /// Count nothing.
    None,
}

/// What RAPL counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RaplScope {
    /// The processor packages and the memory beside them; psys only where there is no package.
    #[default]
    Package,
    /// The whole platform in one counter.
    Psys,
}

/// Whose CPU time is modelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModelScope {
    /// This process.
    #[default]
    Process,
    /// Everything in the control group (version 2) of this process.
    Cgroup,
}

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

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key, with its section: `carbon.pue`.
    pub key: String,
    /// What is wrong, what is expected.
    pub message: String,
}

impl Default for EnergyConfig {
    fn default() -> Self {
        EnergyConfig {
            meter: MeterChoice::Auto,
            interval_ms: 100,
            tdp_watts: None,
            rapl_scope: RaplScope::Package,
            model_scope: ModelScope::Process,
            bmc_command: Vec::new(),
            bmc_file: PathBuf::new(),
            trace: None,
        }
    }
}

impl EnergyConfig {
    /// All problems at once; empty when the section can be used.
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if !(10..=10_000).contains(&self.interval_ms) {
            problems.push(problem("energy.interval_ms", self.interval_ms, "10 to 10000"));
        }
        if let Some(watts) = self.tdp_watts.filter(|watts| !(*watts > 0.0 && *watts <= 100_000.0)) {
            problems.push(problem("energy.tdp_watts", watts, "above 0 and at most 100000"));
        }
        let (command, file) = (!self.bmc_command.is_empty(), !self.bmc_file.as_os_str().is_empty());
        let mut bmc = |key: &str, message: &str| {
            problems.push(Problem { key: key.into(), message: message.into() });
        };
        match self.meter {
            MeterChoice::Bmc if command && file => {
                bmc("energy.bmc_file", "is given beside energy.bmc_command, expected one of them");
            }
            MeterChoice::Bmc if !command && !file => {
                bmc("energy.bmc_command", "is missing: energy.meter = \"bmc\" needs it or energy.bmc_file");
            }
            MeterChoice::Bmc => {}
            _ if command => bmc("energy.bmc_command", "is given, but energy.meter is not \"bmc\""),
            _ if file => bmc("energy.bmc_file", "is given, but energy.meter is not \"bmc\""),
            _ => {}
        }
        if (self.meter == MeterChoice::Replay) != self.trace.is_some() {
            let message = "belongs with energy.meter = \"replay\": give both or neither".into();
            problems.push(Problem { key: "energy.trace".into(), message });
        }
        problems
    }
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

fn problem(key: &str, got: impl std::fmt::Display, expected: &str) -> Problem {
    Problem { key: key.into(), message: format!("is {got}, expected {expected}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(EnergyConfig::default().validate(), []);
        assert_eq!(CarbonConfig::default().validate(), []);
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let carbon = CarbonConfig { location: "FRX".into(), pue: 0.5, ..CarbonConfig::default() };
        let problems = carbon.validate();
        let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(keys, ["carbon.location", "carbon.pue"]);
        assert!(problems[0].message.contains("FRA"), "{}", problems[0].message);

        let energy = EnergyConfig { interval_ms: 1, tdp_watts: Some(f64::NAN), ..EnergyConfig::default() };
        assert_eq!(energy.validate().len(), 2);
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
    fn the_meter_bmc_needs_exactly_one_source_and_no_other_meter_takes_one() {
        use MeterChoice::{Auto, Bmc};
        let command = || vec!["ipmitool".to_owned()];
        let file = || PathBuf::from("power.json");
        for (meter, bmc_command, bmc_file, expect) in [
            (Bmc, command(), PathBuf::new(), None),
            (Bmc, Vec::new(), file(), None),
            (Bmc, Vec::new(), PathBuf::new(), Some("energy.bmc_command")),
            (Bmc, command(), file(), Some("energy.bmc_file")),
            (Auto, command(), PathBuf::new(), Some("energy.bmc_command")),
            (Auto, Vec::new(), file(), Some("energy.bmc_file")),
        ] {
            let problems =
                EnergyConfig { meter, bmc_command, bmc_file, ..EnergyConfig::default() }.validate();
            assert_eq!(problems.first().map(|problem| problem.key.as_str()), expect);
        }
    }

    #[test]
    fn an_unknown_key_is_refused() {
        assert!(serde_json::from_str::<EnergyConfig>(r#"{"meter":"model","intervall_ms":5}"#).is_err());
        assert!(serde_json::from_str::<EnergyConfig>(r#"{"meter":"model","interval_ms":50}"#).is_ok());
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
