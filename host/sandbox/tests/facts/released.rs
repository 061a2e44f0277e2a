//! A released package never changes, and the current one is the newest that was released until its version says otherwise.

use std::collections::BTreeMap;
use std::path::Path;

/// BLAKE3 over names and contents of the files of each released version.
const RELEASED: &[(&str, &str)] = &[("0.1.0", "FILL")];

fn wit() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../wit"))
}

fn files(folder: &Path) -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let wit = entries.filter(|path| path.extension().is_some_and(|extension| extension == "wit"));
    let read = |path: std::path::PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
        (name, std::fs::read_to_string(path).expect("text"))
    };
    wit.map(read).collect()
}

fn digest(files: &BTreeMap<String, String>) -> String {
    let mut hasher = blake3::Hasher::new();
    for (name, text) in files {
        for part in [name, text] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
    }
    hasher.finalize().to_hex().to_string()
}

#[test]
fn the_files_of_a_released_version_are_as_they_were() {
    for (version, expected) in RELEASED {
        assert_eq!(digest(&files(&wit().join("released").join(version))), *expected, "wit/released/{version}");
    }
}

#[test]
fn the_current_package_is_a_released_one_or_a_new_version() {
    let current = files(wit());
    let version = current["types.wit"].lines().find_map(|line| line.strip_prefix("package vmferry:plugin@"));
    let version = version.expect("a package line").trim_end_matches(';');
    if RELEASED.iter().any(|(released, _)| *released == version) {
        assert_eq!(current, files(&wit().join("released").join(version)), "give the package a new version");
    }
}
