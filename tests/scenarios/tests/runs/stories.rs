//! STORIES.md names tests that exist.

use std::path::Path;

#[test]
fn every_story_has_its_tests() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut missing = Vec::new();
    let mut found = 0;
    // What is in ticks and has `::` is a test.
    let names = include_str!("../../STORIES.md").split('`').skip(1).step_by(2);
    for (file, test) in names.filter(|name| !name.ends_with("::")).filter_map(|name| name.rsplit_once("::")) {
        let path = match file.strip_suffix(".rs") {
            Some(_) => here.join("../..").join(file),
            None => here.join("tests/runs").join(file.replace("::", "/")).with_extension("rs"),
        };
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        match text.contains(&format!("fn {test}()")) || text.contains(&format!("    {test}: ")) {
            true => found += 1,
            false => missing.push(format!("{file}::{test}")),
        }
    }
    assert_eq!(missing, Vec::<String>::new());
    assert!(found > 80, "only {found} names were read");
}
