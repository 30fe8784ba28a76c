//! What providers said lately, on disk: a restart within a period does not ask again, and the processes of one
//! machine ask once for all of them.
//!
//! One small JSON file for each provider and place, replaced as a whole. It may be deleted at any time; what cannot be
//! read is as good as absent.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::GridIntensity;
use crate::config::ProviderConfig;

const VERSION: u32 = 1;

/// Values older than this before the newest are dropped.
const KEPT: Duration = Duration::from_secs(48 * 3600);

/// The place on disk of one provider's values.
pub(super) struct Cache {
    path: PathBuf,
    owner: Owner,
}

/// Whose values a file holds: names of files may coincide, this may not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Owner {
    version: u32,
    provider: String,
    zone: Option<String>,
    url: Option<String>,
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Cached {
    /// When the provider was asked last, by any process.
    pub(super) asked_at: Timestamp,
    /// When it may be asked again.
    pub(super) not_before: Timestamp,
    /// What it said, in order of time.
    pub(super) values: Vec<GridIntensity>,
}

#[derive(Serialize, Deserialize)]
struct Content {
    #[serde(flatten)]
    owner: Owner,
    #[serde(flatten)]
    cached: Cached,
}

impl Cache {
    /// The cache of a provider in a directory, which is made when something is stored.
    pub(super) fn new(directory: &Path, config: &ProviderConfig) -> Self {
        let zone = config.zone.as_deref().unwrap_or("all");
        let tame = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
        let zone: String = zone.chars().map(tame).collect();
        let provider = config.kind.as_str();
        Cache {
            path: directory.join(format!("{provider}.{zone}.json")),
            owner: Owner {
                version: VERSION,
                provider: provider.into(),
                zone: config.zone.clone(),
                url: config.url.clone(),
            },
        }
    }

    /// What was stored last; nothing when there is none that can be used.
    pub(super) fn load(&self) -> Option<Cached> {
        let text = fs::read(&self.path).ok()?;
        let content: Content = serde_json::from_slice(&text).ok()?;
        (content.owner == self.owner).then_some(content.cached)
    }

    /// Replaces what is stored; the values stored before are kept beside the new ones while they are young.
    ///
    /// # Errors
    /// When the file cannot be written; the one before is then still whole.
    pub(super) fn store(&self, mut cached: Cached) -> io::Result<()> {
        if let Some(before) = self.load() {
            let is_new = |old: &GridIntensity| cached.values.iter().all(|new| new.period != old.period);
            let kept: Vec<GridIntensity> = before.values.into_iter().filter(is_new).collect();
            cached.values.extend(kept);
        }
        let start = |value: &GridIntensity| value.period.map(|period| period.from);
        cached.values.sort_by_key(start);
        if let Some(oldest) = cached.values.last().and_then(start).and_then(|at| at.checked_sub(KEPT).ok()) {
            cached.values.retain(|value| start(value) >= Some(oldest));
        }
        let content = serde_json::to_vec(&Content { owner: self.owner.clone(), cached })?;
        self.replace(&content)
    }

    fn replace(&self, content: &[u8]) -> io::Result<()> {
        if let Some(directory) = self.path.parent() {
            fs::create_dir_all(directory)?;
        }
        let draft = self.path.with_extension(format!("{}.tmp", std::process::id()));
        let written = fs::File::create(&draft)
            .and_then(|mut file| file.write_all(content))
            .and_then(|()| fs::rename(&draft, &self.path));
        if written.is_err() {
            // The draft is of no use to anybody; that it could not be removed either changes nothing.
            let _ = fs::remove_file(&draft);
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::carbon::{Period, lookup};
    use crate::config::ProviderKind;
    use crate::units::GramsPerKilowattHour;

    fn config(zone: &str) -> ProviderConfig {
        ProviderConfig {
            kind: ProviderKind::ElectricityMaps,
            zone: Some(zone.into()),
            url: None,
            path: None,
            stale_after_minutes: 120,
        }
    }

    fn at(hour: i64) -> Timestamp {
        Timestamp::from_second(hour * 3600).unwrap()
    }

    fn value(hour: i64, grams: f64) -> GridIntensity {
        GridIntensity {
            grams_per_kwh: GramsPerKilowattHour(grams),
            period: Some(Period { from: at(hour), until: at(hour + 1) }),
            ..lookup("FRA").unwrap()
        }
    }

    fn cached(values: Vec<GridIntensity>) -> Cached {
        Cached { asked_at: at(0), not_before: at(1), values }
    }

    #[test]
    fn what_is_stored_comes_back_and_young_values_stay_beside_new_ones() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::new(&directory.path().join("carbon"), &config("DE"));
        assert_eq!(cache.load(), None);
        cache.store(cached(vec![value(0, 1.0), value(50, 2.0), value(51, 3.0)])).unwrap();
        cache.store(cached(vec![value(52, 5.0), value(51, 4.0)])).unwrap();
        assert_eq!(cache.load(), Some(cached(vec![value(50, 2.0), value(51, 4.0), value(52, 5.0)])));
        let names: Vec<_> = fs::read_dir(directory.path().join("carbon")).unwrap().collect();
        assert_eq!(names.len(), 1, "no draft is left behind");
    }

    #[test]
    fn the_values_of_another_place_address_or_version_are_not_taken() {
        let directory = tempfile::tempdir().unwrap();
        let cache = |config: &ProviderConfig| Cache::new(directory.path(), config);
        cache(&config("US/CA")).store(cached(vec![value(0, 1.0)])).unwrap();
        assert!(cache(&config("US/CA")).load().is_some());
        assert_eq!(cache(&config("US?CA")).load(), None, "the file has the same name");
        let mirror = ProviderConfig { url: Some("http://mirror".into()), ..config("US/CA") };
        assert_eq!(cache(&mirror).load(), None);
        let path = directory.path().join("electricity_maps.US_CA.json");
        let newer = fs::read_to_string(&path).unwrap().replace(r#""version":1"#, r#""version":2"#);
        fs::write(&path, newer).unwrap();
        assert_eq!(cache(&config("US/CA")).load(), None);
    }

    #[test]
    fn a_damaged_file_is_as_good_as_absent_and_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::new(directory.path(), &config("DE"));
        cache.store(cached(vec![value(0, 1.0)])).unwrap();
        let path = directory.path().join("electricity_maps.DE.json");
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert_eq!(cache.load(), None);
        cache.store(cached(vec![value(1, 2.0)])).unwrap();
        assert_eq!(cache.load(), Some(cached(vec![value(1, 2.0)])));
    }

    #[test]
    fn a_place_that_cannot_be_written_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(Cache::new(&file, &config("DE")).store(cached(Vec::new())).is_err());
    }
}
