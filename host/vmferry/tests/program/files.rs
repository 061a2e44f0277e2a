//! Real input: an ext4 filesystem with a few hundred files goes through full, deltas and a clone.

use crate::stage::{Pool, Stage, have, text};
use serde_json::json;
use std::path::Path;
use std::process::Command;

/// Files are compared and changes are written in pieces of this size.
const PIECE: usize = 64 << 10;

/// Runs a program that must succeed.
#[track_caller]
fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", text(&output));
}

/// Writes to the source's disk what differs between its image before and now, as a guest would have.
fn write_changes(stage: &Stage, disk: &str, before: &[u8], now: &[u8]) -> usize {
    let pieces = before.chunks(PIECE).zip(now.chunks(PIECE)).enumerate().filter(|(_, (old, new))| old != new);
    pieces.map(|(index, (_, new))| stage.source.write(disk, (index * PIECE) as u64, new)).count()
}

fn make_files(folder: &Path) {
    for index in 0..300_u32 {
        let place = folder.join(format!("directory-{}", index % 7));
        std::fs::create_dir_all(&place).unwrap();
        let size = (index as usize * 977) % 90_000;
        let content: Vec<u8> =
            (0..size).map(|at| (at as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3] ^ index as u8).collect();
        std::fs::write(place.join(format!("file-{index}")), content).unwrap();
    }
}

#[test]
fn an_ext4_filesystem_still_passes_fsck_and_holds_the_same_files() {
    if !["mkfs.ext4", "debugfs", "e2fsck", "curl", "qemu-img"].iter().all(|program| have_tool(program)) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (files, image) = (folder.path().join("files"), folder.path().join("disk.img"));
    make_files(&files);
    let (files_text, image_text) = (files.to_str().unwrap(), image.to_str().unwrap());
    run("mkfs.ext4", &["-q", "-d", files_text, image_text, "64M"]);

    let (source, target) = (Pool::start(&["--image", image_text]), Pool::start(&[]));
    let vm = source.facts["vms"][0]["vm"].as_str().unwrap().to_owned();
    let stage = Stage::of(source, target, &vm);
    stage.configure("");
    let disk = stage.source.disks(&vm).remove(0);
    let full = stage.json(&["run", "erp"], 0);
    assert_eq!(full["vms"][0]["targets"][0]["disks"][0]["kind"], "full");

    for round in 0..3 {
        let before = std::fs::read(&image).unwrap();
        let (changed, added, removed) = (
            format!("directory-1/file-{}", 1 + 7 * round),
            format!("new-{round}"),
            format!("directory-2/file-{}", 2 + 7 * round),
        );
        std::fs::write(files.join(&changed), format!("changed in round {round}").repeat(5_000)).unwrap();
        std::fs::write(files.join(&added), vec![round as u8; 70_000]).unwrap();
        std::fs::remove_file(files.join(&removed)).unwrap();
        let commands = folder.path().join("commands");
        let path = |name: &str| files.join(name).display().to_string();
        std::fs::write(
            &commands,
            format!("rm {changed}\nwrite {} {changed}\nwrite {} {added}\nrm {removed}\n", path(&changed), path(&added)),
        )
        .unwrap();
        run("debugfs", &["-w", "-f", commands.to_str().unwrap(), image_text]);
        let pieces = write_changes(&stage, &disk, &before, &std::fs::read(&image).unwrap());
        assert!(pieces > 0);

        let delta = stage.json(&["run", "erp"], 0);
        let delta = &delta["vms"][0]["targets"][0]["disks"][0];
        assert_eq!(delta["kind"], "delta");
        assert!(delta["changed_bytes"].as_u64() < Some(64 << 20), "{delta:#}");
    }

    let clone = stage.json(&["failover", "clone", "erp", "--vm", &vm, "--no-start"], 0);
    let copy = stage.target.disks(clone["vm"].as_str().unwrap()).remove(0);
    assert_eq!(stage.target.sha256(&copy), stage.source.sha256(&disk));

    // Exported by curl, decoded by qemu-img, checked by e2fsck, read by debugfs: nothing of ours in between.
    let (stream, raw, restored) =
        (folder.path().join("copy.vhd"), folder.path().join("copy.img"), folder.path().join("restored"));
    let url = stage.target.text("url").replace("://", "://root:password@");
    run("curl", &["-sSf", "-o", stream.to_str().unwrap(), &format!("{url}/export_raw_vdi?format=vhd&vdi={copy}")]);
    run("qemu-img", &["convert", "-f", "vpc", "-O", "raw", stream.to_str().unwrap(), raw.to_str().unwrap()]);
    run("e2fsck", &["-fn", raw.to_str().unwrap()]);
    std::fs::create_dir(&restored).unwrap();
    run("debugfs", &["-R", &format!("rdump / {}", restored.display()), raw.to_str().unwrap()]);
    std::fs::remove_dir(restored.join("lost+found")).unwrap();
    run("diff", &["-r", files_text, restored.to_str().unwrap()]);
    let count = json!(walk(&restored));
    assert_eq!(count, 300);
}

/// How many files a folder holds.
fn walk(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { walk(&path) } else { 1 }).sum()
}

/// `have`, for programs that do not know `--version`.
fn have_tool(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| folder.join(program).exists());
    found || have(program)
}
