//! qemu-img as an independent reader.

use crate::folder::Recorded;
use crate::model::*;
use std::fs::File;
use std::path::Path;
use std::process::Command;
use target_hyperv::{Format, Points};
use vmferry_vhdx::{MemoryFile, Storage};

/// Whether qemu-img is there. Where the environment demands peers, it has to be.
#[expect(clippy::print_stderr, reason = "a skipped test should say so")]
pub(crate) fn is_missing() -> bool {
    if Command::new("qemu-img").arg("--version").output().is_ok() {
        return false;
    }
    let required = std::env::var_os("VMFERRY_REQUIRE_PEERS").is_some_and(|value| value == "1");
    assert!(!required, "qemu-img is required here; install the package qemu-utils");
    eprintln!("skipped: there is no qemu-img");
    true
}

/// A file of the file system with what `file` has; zeroes are holes.
fn store(file: &MemoryFile, path: &Path) {
    let out = File::create(path).expect("made");
    let length = file.length().expect("a length");
    out.set_length(length).expect("a length");
    for at in (0..length).step_by(4096) {
        let mut part = vec![0; (length - at).min(4096) as usize];
        file.read_at(at, &mut part).expect("read");
        if part.iter().any(|byte| *byte != 0) {
            out.write_at(at, &part).expect("written");
        }
    }
}

/// What qemu calls it.
fn name_of(format: Format) -> &'static str {
    match format {
        Format::Vhdx => "vhdx",
        Format::Vhd => "vpc",
    }
}

/// Which of these disks the file is, after qemu replayed its log and found nothing wrong. Of VHD it knows no check.
pub(crate) fn which(format: Format, file: &MemoryFile, disks: &[Vec<u8>]) -> Option<usize> {
    let folder = tempfile::tempdir().expect("a folder");
    let (image, raw) = (folder.path().join("disk"), folder.path().join("disk.raw"));
    store(file, &image);
    if format == Format::Vhdx {
        run(&["check", "-q", "-f", "vhdx", "-r", "all"], &[&image]);
    }
    run(&["convert", "-f", name_of(format), "-O", "raw"], &[&image, &raw]);
    let read = std::fs::read(&raw).expect("read");
    disks.iter().position(|disk| *disk == read)
}

fn run(arguments: &[&str], paths: &[&Path]) {
    let output = Command::new("qemu-img").args(arguments).args(paths).output().expect("qemu-img runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn qemu_reads_what_is_kept_as_whole_files() {
    if is_missing() {
        return;
    }
    for setting in ALL.into_iter().filter(|(_, points)| *points != Points::Differencing) {
        let (format, points) = setting;
        let keeper = keeper(Recorded::default(), setting);
        let mut model = Model::default();
        let first = [("a", SIZE, change([(0, Some(1)), (1, Some(2)), (4, Some(3))]))];
        model.commit(&keeper, &draft(1, None), &first);
        for number in 2..5 {
            let base = format!("point-{}", number - 1);
            let change = change([(number, Some(9)), (number - 2, None), (4, Some(number as u8))]);
            model.commit(&keeper, &draft(number as u32, Some(&base)), &[("a", SIZE, change)]);
        }
        let world = keeper.place.world();
        for (id, expected) in &model.points {
            let (size, content) = &expected.disks["a"];
            let image = if points == Points::Newest { "point-1" } else { id };
            let suffix = format!("a~{image}.{format:?}").to_lowercase();
            let file = world.files().find(|(path, _)| path.ends_with(&suffix)).expect("the disk").1;
            assert_eq!(which(format, file, &[raw(format, *size, content)]), Some(0), "{id}");
        }
    }
}
