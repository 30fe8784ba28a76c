//! The text that every builder of a Rust program has: the sources and documents of its crates.
//!
//! Cargo fetches only what the host needs, so Cargo.lock alone does not say what is on disk. The crates taken
//! are those reached from the workspace by dependencies that hold on every platform: not optional, not under
//! `[target]`, not for development. A build on any host has fetched them all, so that the text is the same
//! everywhere; of a crate with several versions the newest is taken.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::{Error, Result};
use super::source::{Skipped, walk};

/// The entry of `data.train` that stands for this text.
pub const CARGO_REGISTRY: &str = "cargo-registry";

/// Larger files are tables that some program wrote.
const MAX_FILE_BYTES: u64 = 256 << 10;
/// No Cargo.lock or Cargo.toml is larger.
const MAX_MANIFEST_BYTES: u64 = 16 << 20;
const REMEDY: &str = "run `cargo fetch` in the directory of Cargo.lock, or name other text in data.train \
                      (vendored sources: their directory)";

/// The .rs and .md files, by crate and path, and what is missing.
pub(super) fn files() -> Result<(Vec<PathBuf>, Vec<Skipped>)> {
    let current = std::env::current_dir().map_err(Error::read(Path::new(".")))?;
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from).filter(|home| !home.as_os_str().is_empty());
    let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    files_under(&current, &home.unwrap_or_default().join("registry/src"))
}

fn files_under(start: &Path, registry: &Path) -> Result<(Vec<PathBuf>, Vec<Skipped>)> {
    let Some(workspace) = start.ancestors().find(|directory| directory.join("Cargo.lock").is_file()) else {
        return Err(Error::NoData {
            what: format!("there is no Cargo.lock in {} or above it", start.display()),
            remedy: "run in the directory of a Rust workspace, or name other text in data.train",
        });
    };
    let crates = Lock::read(workspace)?.portable_crates(workspace, registry)?;
    let (mut paths, mut skipped) = (Vec::new(), Vec::new());
    for (name, version) in &crates {
        let Some(directory) = crate_directory(registry, name, version) else {
            let path = registry.join("*").join(format!("{name}-{version}"));
            skipped.push(Skipped { path, reason: "not fetched: run `cargo fetch`".into() });
            continue;
        };
        for path in walk(&directory)?.0 {
            if !path.extension().is_some_and(|extension| extension == "rs" || extension == "md") {
                continue;
            }
            let bytes = path.metadata().map_err(Error::read(&path))?.len();
            if bytes <= MAX_FILE_BYTES {
                paths.push(path);
            } else {
                skipped.push(Skipped { path, reason: format!("{bytes} bytes, more than {MAX_FILE_BYTES}") });
            }
        }
    }
    if paths.is_empty() {
        return Err(Error::NoData {
            what: format!(
                "none of the {} crates of {} is under {}",
                crates.len(),
                workspace.join("Cargo.lock").display(),
                registry.display()
            ),
            remedy: REMEDY,
        });
    }
    Ok((paths, skipped))
}

/// Where cargo has unpacked a crate; several registries may stand side by side.
fn crate_directory(registry: &Path, name: &str, version: &str) -> Option<PathBuf> {
    let mut indexes: Vec<PathBuf> =
        registry.read_dir().ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    indexes.sort();
    indexes.iter().map(|index| index.join(format!("{name}-{version}"))).find(|path| path.is_dir())
}

#[derive(Deserialize)]
struct Lock {
    #[serde(default)]
    package: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    /// None for the workspace's own crates.
    source: Option<String>,
    /// "name", or "name version" where the name alone is ambiguous.
    #[serde(default)]
    dependencies: Vec<String>,
}

impl Lock {
    fn read(workspace: &Path) -> Result<Self> {
        parse(&workspace.join("Cargo.lock"))
    }

    /// Name and newest version of each registry crate that a build on any host needs.
    fn portable_crates(&self, workspace: &Path, registry: &Path) -> Result<BTreeMap<String, String>> {
        let mut queue: Vec<(&Package, Manifest)> = Vec::new();
        for manifest in member_manifests(workspace)? {
            let own = self.package.iter().find(|package| {
                package.source.is_none() && manifest.package.as_ref().is_some_and(|p| p.name == package.name)
            });
            queue.extend(own.map(|package| (package, manifest)));
        }
        let mut visited = BTreeSet::new();
        let mut newest: BTreeMap<String, String> = BTreeMap::new();
        while let Some((package, manifest)) = queue.pop() {
            for dependency in self.required(package, &manifest) {
                if !visited.insert((&dependency.name, &dependency.version)) {
                    continue;
                }
                let known = newest.entry(dependency.name.clone()).or_default();
                if version_order(&dependency.version) > version_order(known) {
                    known.clone_from(&dependency.version);
                }
                if let Some(directory) = crate_directory(registry, &dependency.name, &dependency.version) {
                    queue.push((dependency, parse(&directory.join("Cargo.toml"))?));
                }
            }
        }
        Ok(newest)
    }

    /// The registry crates that `package` needs on every platform.
    fn required<'a>(&'a self, package: &'a Package, manifest: &Manifest) -> Vec<&'a Package> {
        let tables = [&manifest.dependencies, &manifest.build_dependencies];
        let wanted: BTreeSet<&str> = tables
            .into_iter()
            .flatten()
            .filter(|(_, value)| value.get("optional").and_then(toml::Value::as_bool) != Some(true))
            // A dependency may be given another name than its crate's.
            .map(|(key, value)| value.get("package").and_then(toml::Value::as_str).unwrap_or(key))
            .collect();
        let locked = package.dependencies.iter().map(|entry| {
            let mut words = entry.split(' ');
            (words.next().unwrap_or_default(), words.next())
        });
        locked
            .filter(|(name, _)| wanted.contains(name))
            .flat_map(|(name, version)| {
                self.package
                    .iter()
                    .filter(move |p| p.name == name && version.is_none_or(|version| p.version == version))
            })
            .filter(|package| package.source.as_ref().is_some_and(|source| source.starts_with("registry+")))
            .collect()
    }
}

#[derive(Deserialize)]
struct Manifest {
    package: Option<ManifestPackage>,
    workspace: Option<Workspace>,
    #[serde(default)]
    dependencies: BTreeMap<String, toml::Value>,
    #[serde(default, rename = "build-dependencies")]
    build_dependencies: BTreeMap<String, toml::Value>,
}

#[derive(Deserialize)]
struct ManifestPackage {
    name: String,
}

#[derive(Deserialize)]
struct Workspace {
    #[serde(default)]
    members: Vec<String>,
}

/// The manifests of the workspace's crates; a crate that is no workspace is its only member.
fn member_manifests(workspace: &Path) -> Result<Vec<Manifest>> {
    let root: Manifest = parse(&workspace.join("Cargo.toml"))?;
    let mut manifests = Vec::new();
    for member in root.workspace.iter().flat_map(|workspace| &workspace.members) {
        let pattern = workspace.join(member).join("Cargo.toml");
        // A member may be a pattern; what cargo itself would refuse is passed over.
        for path in glob::glob(&pattern.to_string_lossy()).into_iter().flatten().flatten() {
            manifests.push(parse(&path)?);
        }
    }
    manifests.push(root);
    Ok(manifests)
}

fn parse<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let bytes = path.metadata().map_err(Error::read(path))?.len();
    let content_error = |problem: String| Error::Content {
        path: path.to_owned(),
        place: "manifest".into(),
        problem,
        remedy: REMEDY,
    };
    if bytes > MAX_MANIFEST_BYTES {
        return Err(content_error(format!("{bytes} bytes, expected at most {MAX_MANIFEST_BYTES}")));
    }
    let text = std::fs::read_to_string(path).map_err(Error::read(path))?;
    toml::from_str(&text).map_err(|error| content_error(error.message().to_owned()))
}

/// Numbers of a version, compared one after another.
fn version_order(version: &str) -> Vec<u64> {
    let release = version.split(['-', '+']).next().unwrap_or_default();
    release.split('.').map_while(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A workspace of one crate over a registry: common 1.9.0 and 1.10.0, a Windows-only crate, an optional
    /// one, one for tests, and `deep`, which `common` needs under another name.
    fn workspace() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("w/Cargo.toml", "[workspace]\nmembers = ['crates/*']");
        write(
            "w/crates/own/Cargo.toml",
            "[package]\nname = 'own'\n[dependencies]\ncommon = '1'\nextra = { version = '1', optional = true }\n\
             [dev-dependencies]\ntester = '1'\n[target.'cfg(windows)'.dependencies]\nwin = '1'\n\
             [build-dependencies]\nbuilder = '1'",
        );
        let package = |name: &str, version: &str, dependencies: &str| {
            format!(
                "[[package]]\nname = '{name}'\nversion = '{version}'\n{}dependencies = [{dependencies}]\n",
                if name == "own" { "" } else { "source = 'registry+https://example.org'\n" }
            )
        };
        let lock = [
            package("own", "0.1.0", "'common 1.10.0', 'extra', 'tester', 'win', 'builder'"),
            package("common", "1.9.0", ""),
            package("common", "1.10.0", "'deep'"),
            package("deep", "2.0.0", "'common 1.9.0'"),
            package("extra", "1.0.0", ""),
            package("tester", "1.0.0", ""),
            package("win", "1.0.0", ""),
            package("builder", "1.0.0", ""),
        ];
        write("w/Cargo.lock", &lock.concat());
        for (name, manifest) in [
            ("common-1.9.0", ""),
            ("common-1.10.0", "[dependencies.renamed]\nversion = '2'\npackage = 'deep'"),
            ("deep-2.0.0", "[dependencies]\ncommon = '1.9'"),
            ("extra-1.0.0", ""),
            ("tester-1.0.0", ""),
            ("win-1.0.0", ""),
        ] {
            write(&format!("r/index/{name}/Cargo.toml"), manifest);
            write(&format!("r/index/{name}/src/lib.rs"), name);
            write(&format!("r/index/{name}/data.bin"), "no text");
        }
        write("r/index/deep-2.0.0/README.md", "read me");
        write("r/index/deep-2.0.0/src/table.rs", &"x".repeat(MAX_FILE_BYTES as usize + 1));
        directory
    }

    #[test]
    fn the_text_is_the_newest_version_of_each_crate_that_every_platform_needs() {
        let directory = workspace();
        let registry = directory.path().join("r");
        let (paths, skipped) = files_under(&directory.path().join("w/crates/own"), &registry).unwrap();
        let names: Vec<_> =
            paths.iter().map(|path| path.strip_prefix(registry.join("index")).unwrap().to_owned()).collect();
        let expected = ["common-1.10.0/src/lib.rs", "deep-2.0.0/README.md", "deep-2.0.0/src/lib.rs"];
        assert_eq!(names, expected.map(PathBuf::from));
        let skipped: Vec<_> = skipped.iter().map(|s| s.path.file_name().unwrap()).collect();
        assert_eq!(skipped, ["builder-1.0.0", "table.rs"]);
    }

    #[test]
    fn an_empty_registry_is_an_error_with_its_remedy() {
        let directory = workspace();
        let error =
            files_under(&directory.path().join("w"), &directory.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("none of the 2 crates") && error.contains("cargo fetch"), "{error}");
    }

    #[test]
    fn no_lock_file_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let error = files_under(directory.path(), directory.path()).unwrap_err().to_string();
        assert!(error.contains("no Cargo.lock"), "{error}");
    }
}
