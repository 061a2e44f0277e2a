//! qemu-img as an independent reader and writer.

use crate::model::{self, AnyImage, Content};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::process::Command;
use vmferry_vhdx::{Image, MemoryFile, Storage};

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
fn store(file: &MemoryFile, path: &Path) {
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
pub(crate) fn assert_holds<I: AnyImage>(file: &MemoryFile, content: &Content, size: u64) {
    let folder = tempfile::tempdir().expect("a folder");
    let (image, raw) = (folder.path().join("disk"), folder.path().join("disk.raw"));
    store(file, &image);
    let flat = File::create(&raw).expect("made");
    flat.set_length(size).expect("a length");
    for (block, fill) in content {
        let length = (size - block * I::BLOCK).min(I::BLOCK);
        flat.write_at(block * I::BLOCK, &vec![*fill; length as usize]).expect("written");
    }
    assert_same::<I>(&image, &raw, size);
}

/// qemu finds a disk of this size, nothing wrong with it, and the same as in the raw file. Of VPC's it knows no check.
fn assert_same<I: AnyImage>(image: &Path, raw: &Path, size: u64) {
    let path = |path: &Path| path.to_str().expect("a plain path").to_owned();
    if I::NAME == "vhdx" {
        run(["check", "-q", "-f", I::NAME, "-r", "all", &path(image)]);
    }
    run(["compare", "-q", "-f", I::NAME, "-F", "raw", &path(image), &path(raw)]);
    let told = run(["info", "-f", I::NAME, "--output=json", &path(image)]);
    assert!(told.contains(&format!("\"virtual-size\": {size}")), "{told}");
}

fn check_written_and_rewritten<I: AnyImage<File = MemoryFile>>() {
    let size = 5 * I::BLOCK + 512;
    let mut image = I::make(MemoryFile::default(), size);
    let mut content = Content::new();
    assert_holds::<I>(image.at(), &content, size);
    for (number, delta) in [
        BTreeMap::from([(0, Some(1)), (3, Some(3)), (5, Some(5))]),
        BTreeMap::from([(0, Some(9)), (3, None)]),
        BTreeMap::from([(3, Some(7)), (5, Some(6)), (1, Some(1))]),
    ]
    .into_iter()
    .enumerate()
    {
        let changes = model::changes(&image, &delta);
        image.change(&changes, model::ids(number as u128));
        model::apply(&mut content, &delta);
        assert_holds::<I>(image.at(), &content, size);
    }
}

#[test]
fn qemu_reads_what_was_written_and_rewritten() {
    if is_missing() {
        return;
    }
    check_written_and_rewritten::<Image<MemoryFile>>();
    check_written_and_rewritten::<vmferry_vhd::Image<MemoryFile>>();
}

#[test]
fn qemu_takes_the_size_that_a_vhd_says_however_large_it_is() {
    if is_missing() {
        return;
    }
    // The largest, one whose geometry is not its size, and one whose geometry is nothing.
    for size in [vmferry_vhd::MAX_SIZE, (100 << 30) + 512, 512] {
        let image = vmferry_vhd::Image::<MemoryFile>::make(MemoryFile::default(), size);
        assert_holds::<vmferry_vhd::Image<MemoryFile>>(image.file(), &Content::new(), size);
    }
}

/// Another program's file is read, changed, and read by that program again.
fn check_of_qemu<I: AnyImage<File = File>>(options: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let (made, raw) = (folder.path().join("disk"), folder.path().join("disk.raw"));
    let size = 9 * I::BLOCK;
    let mut content = Content::from([(0, 1), (1, 2), (7, 3)]);
    std::fs::write(&raw, model::raw(&content, size, I::BLOCK)).expect("written");
    let path = |path: &Path| path.to_str().expect("a plain path").to_owned();
    run(["convert", "-f", "raw", "-O", I::NAME, "-o", options, &path(&raw), &path(&made)]);
    let mut image = I::reopen(File::options().read(true).write(true).open(&made).expect("opened"));
    assert!(image.is_sound());
    assert_eq!(model::content(&image), content);
    let delta = BTreeMap::from([(1, None), (2, Some(4)), (7, Some(5))]);
    let changes = model::changes(&image, &delta);
    image.change(&changes, model::ids(7));
    model::apply(&mut content, &delta);
    std::fs::write(&raw, model::raw(&content, size, I::BLOCK)).expect("written");
    assert_same::<I>(&made, &raw, size);
}

#[test]
fn files_that_qemu_made_are_read_and_written() {
    if is_missing() {
        return;
    }
    check_of_qemu::<Image<File>>("subformat=dynamic,block_size=1048576");
    check_of_qemu::<vmferry_vhd::Image<File>>("subformat=dynamic,force_size=on");
}
