//! Full, read-only and forbidden disks. Tests may run as root, whom no mode bits stop; so these refusals come from a
//! path below a regular file, from an injected error, or from a limit handed in.

use std::io::ErrorKind;

use super::super::write::save_within;
use super::super::{CheckpointError, save};
use super::*;
use crate::files::faults;

#[test]
fn too_little_free_space_is_said_with_both_numbers_before_anything_is_written() {
    let root = scratch();
    save(root.path(), &state(100, 1), 1).unwrap();
    let mut large = state(200, 1);
    let tensor = Tensor::zeros(&[3 << 18], DType::F32, wattle_kernels::Device::Cpu).unwrap();
    large.tensors.push(NamedTensor { name: "large".to_owned(), tensor });
    let writes_nothing = |what: &'static str, path: &Path| {
        assert!(!["create", "write", "create the directory"].contains(&what), "{what} {}", path.display());
        Ok(())
    };
    let error = faults::watch(writes_nothing, || save_within(root.path(), &large, 1, 1 << 20)).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("it needs 3.0 MiB, 1.0 MiB are free; free some space"), "{text}");
    assert_eq!(error.exit_code(), 74);
    assert_eq!(names(root.path()), ["step-00000100"]);
    save_within(root.path(), &large, 1, 4 << 20).unwrap();
}

#[test]
fn the_space_asked_for_covers_what_is_written() {
    let root = scratch();
    let saved = state(100, 1);
    let needs = (0..).find(|&free| save_within(root.path(), &saved, 1, free).is_ok()).unwrap();
    let path = root.path().join("step-00000100");
    let written: u64 = names(&path).iter().map(|name| fs::metadata(path.join(name)).unwrap().len()).sum();
    assert!(written <= needs && needs < written * 3, "{written} bytes written, {needs} asked for");
}

#[test]
fn a_path_below_a_file_is_one_clear_error() {
    let root = scratch();
    let file = root.path().join("file");
    fs::write(&file, "").unwrap();
    let error = save(&file.join("checkpoints"), &state(1, 1), 1).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&file.display().to_string()) && text.contains("choose another path"), "{text}");
    assert_eq!(error.exit_code(), 74);
}

#[test]
fn a_read_only_and_a_forbidden_directory_say_so_and_have_their_exit_codes() {
    for (kind, words, code) in [
        (ErrorKind::ReadOnlyFilesystem, "mounted read-only", 74),
        (ErrorKind::PermissionDenied, "owner and the mode", 77),
    ] {
        let root = scratch();
        let refused = move |what: &'static str, _: &Path| match what {
            "create the directory" => Err(kind.into()),
            _ => Ok(()),
        };
        let error = faults::watch(refused, || save(root.path(), &state(1, 1), 1)).unwrap_err();
        assert!(matches!(error, CheckpointError::Io(_)));
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(error.exit_code(), code);
        assert_eq!(names(root.path()), [""; 0]);
    }
}

#[test]
fn a_checkpoint_that_may_not_be_read_is_an_error_and_no_reason_to_fall_back() {
    let root = scratch();
    save(root.path(), &state(100, 1), 2).unwrap();
    let newer = save(root.path(), &state(200, 1), 2).unwrap();
    for (errno, falls_back) in [(libc::EACCES, false), (libc::EIO, true)] {
        let newer = newer.clone();
        let refused = move |_: &'static str, path: &Path| match path.starts_with(&newer) {
            true => Err(std::io::Error::from_raw_os_error(errno)),
            false => Ok(()),
        };
        match faults::watch(refused, || super::super::newest_valid(root.path(), |_| true)) {
            Ok(found) => assert!(falls_back && same(&found.unwrap().state, &state(100, 1))),
            Err(error) => assert!(!falls_back && error.exit_code() == 77, "{error}"),
        }
    }
}
