//! qemu-img as an independent reader and writer.

use crate::model::{self, Content};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::process::Command;
use vmferry_vhdx::{Image, MIB, MemoryFile, Storage};

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

/// Runs it; it has to succeed.
fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> String {
    let output = Command::new("qemu-img").args(arguments).output().expect("qemu-img runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A file of the file system with what `file` has; zeroes are holes.
fn store(file: &MemoryFile, path: &std::path::Path) {
    let out = File::create(path).expect("made");
    let length = file.length().expect("a length");
    out.set_length(length).expect("a length");
    for at in (0..length).step_by(64 << 10) {
        let mut part = vec![0; (length - at).min(64 << 10) as usize];
        file.read_at(at, &mut part).expect("read");
        if part.iter().any(|byte| *byte != 0) {
            out.write_at(at, &part).expect("written");
        }
    }
}

/// qemu replays the log, finds nothing wrong, and reads this content.
pub(crate) fn assert_holds(file: &MemoryFile, content: &Content, size: u64) {
    let folder = tempfile::tempdir().expect("a folder");
    let (vhdx, raw) = (folder.path().join("disk.vhdx"), folder.path().join("disk.raw"));
    store(file, &vhdx);
    let flat = File::create(&raw).expect("made");
    flat.set_length(size).expect("a length");
    for (block, fill) in content {
        let length = (size - block * MIB).min(MIB);
        flat.write_at(block * MIB, &vec![*fill; length as usize]).expect("written");
    }
    let path = |path: &std::path::Path| path.to_str().expect("a plain path").to_owned();
    run(["check", "-q", "-f", "vhdx", "-r", "all", &path(&vhdx)]);
    run(["compare", "-q", "-f", "vhdx", "-F", "raw", &path(&vhdx), &path(&raw)]);
}

#[test]
fn qemu_reads_what_was_written_and_rewritten() {
    if is_missing() {
        return;
    }
    let size = 5 * MIB + 512;
    let mut image = Image::create(MemoryFile::default(), model::disk(size), model::ids(0), "vmferry").expect("made");
    let mut content = Content::new();
    assert_holds(image.file(), &content, size);
    for (number, delta) in [
        BTreeMap::from([(0, Some(1)), (3, Some(3)), (5, Some(5))]),
        BTreeMap::from([(0, Some(9)), (3, None)]),
        BTreeMap::from([(3, Some(7)), (5, Some(6)), (1, Some(1))]),
    ]
    .into_iter()
    .enumerate()
    {
        let changes = model::changes(&image, &delta);
        image.commit(&changes, model::ids(number as u128)).expect("committed");
        model::apply(&mut content, &delta);
        assert_holds(image.file(), &content, size);
    }
}

#[test]
fn files_that_qemu_made_are_read_and_written() {
    if is_missing() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (vhdx, raw) = (folder.path().join("disk.vhdx"), folder.path().join("disk.raw"));
    let size = 9 * MIB;
    let mut content = Content::from([(0, 1), (1, 2), (7, 3)]);
    std::fs::write(&raw, model::raw(&content, size)).expect("written");
    let path = |path: &std::path::Path| path.to_str().expect("a plain path").to_owned();
    let options = ["convert", "-f", "raw", "-O", "vhdx", "-o", "subformat=dynamic,block_size=1048576"];
    run(options.iter().map(ToString::to_string).chain([path(&raw), path(&vhdx)]));
    let file = File::options().read(true).write(true).open(&vhdx).expect("opened");
    let mut image = Image::open(file).expect("a sound file");
    assert!(image.check().expect("read").is_empty());
    assert_eq!(model::content(&image), content);
    let delta = BTreeMap::from([(1, None), (2, Some(4)), (7, Some(5))]);
    let changes = model::changes(&image, &delta);
    image.commit(&changes, model::ids(7)).expect("committed");
    model::apply(&mut content, &delta);
    std::fs::write(&raw, model::raw(&content, size)).expect("written");
    run(["check", "-q", "-f", "vhdx", &path(&vhdx)]);
    run(["compare", "-q", "-f", "vhdx", "-F", "raw", &path(&vhdx), &path(&raw)]);
    let told = run(["info", "--output=json", &path(&vhdx)]);
    assert!(told.contains("\"virtual-size\": 9437184"), "{told}");
}
