//! Real input: an ext4 filesystem with a few hundred files goes through full, deltas and a clone.

use crate::stage::{Pool, Stage, have, text};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

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

/// An image with an ext4 filesystem of a few hundred files, and the files.
struct Filesystem {
    folder: TempDir,
}

impl Filesystem {
    fn new() -> Self {
        let this = Self { folder: tempfile::tempdir().unwrap() };
        make_files(&this.files());
        run("mkfs.ext4", &["-q", "-d", &text_of(&this.files()), &text_of(&this.image()), "64M"]);
        this
    }

    fn files(&self) -> PathBuf {
        self.folder.path().join("files")
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("disk.img")
    }

    /// Changes, adds and removes a file, in the image and on the source's disk as a guest would have.
    fn change(&self, round: usize, stage: &Stage, disk: &str) {
        let (files, image) = (self.files(), self.image());
        let before = std::fs::read(&image).unwrap();
        let (changed, added, removed) = (
            format!("directory-1/file-{}", 1 + 7 * round),
            format!("new-{round}"),
            format!("directory-2/file-{}", 2 + 7 * round),
        );
        std::fs::write(files.join(&changed), format!("changed in round {round}").repeat(5_000)).unwrap();
        std::fs::write(files.join(&added), vec![round as u8; 70_000]).unwrap();
        std::fs::remove_file(files.join(&removed)).unwrap();
        let commands = self.folder.path().join("commands");
        let path = |name: &str| files.join(name).display().to_string();
        std::fs::write(
            &commands,
            format!("rm {changed}\nwrite {} {changed}\nwrite {} {added}\nrm {removed}\n", path(&changed), path(&added)),
        )
        .unwrap();
        run("debugfs", &["-w", "-f", &text_of(&commands), &text_of(&image)]);
        let pieces = write_changes(stage, disk, &before, &std::fs::read(&image).unwrap());
        assert!(pieces > 0);
    }

    /// A disk of a pool, or an image file, passes e2fsck and holds the same files. Exported by curl, decoded by qemu-img, read
    /// by debugfs: nothing of ours in between.
    fn assert_on_disk(&self, pool: &Pool, disk: &str) {
        let stream = self.folder.path().join("copy.vhd");
        let url = pool.text("url").replace("://", "://root:password@");
        run("curl", &["-sSf", "-o", &text_of(&stream), &format!("{url}/export_raw_vdi?format=vhd&vdi={disk}")]);
        self.assert_in_file(&stream, "vpc");
    }

    fn assert_in_file(&self, image: &Path, format: &str) {
        let (raw, restored) = (self.folder.path().join("copy.img"), self.folder.path().join("restored"));
        let _ = std::fs::remove_dir_all(&restored);
        run("qemu-img", &["convert", "-f", format, "-O", "raw", &text_of(image), &text_of(&raw)]);
        run("e2fsck", &["-fn", &text_of(&raw)]);
        std::fs::create_dir(&restored).unwrap();
        run("debugfs", &["-R", &format!("rdump / {}", restored.display()), &text_of(&raw)]);
        std::fs::remove_dir(restored.join("lost+found")).unwrap();
        run("diff", &["-r", &text_of(&self.files()), &text_of(&restored)]);
        assert_eq!(walk(&restored), 300);
    }
}

fn text_of(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// Two pools, the first with a VM whose disk is the filesystem.
fn stage_with(filesystem: &Filesystem) -> Stage {
    let (source, target) = (Pool::start(&["--image", &text_of(&filesystem.image())]), Pool::start(&[]));
    let vm = source.facts["vms"][0]["vm"].as_str().unwrap().to_owned();
    Stage::of(source, target, &vm)
}

fn have_tools() -> bool {
    ["mkfs.ext4", "debugfs", "e2fsck", "curl", "qemu-img"].iter().all(|program| have_tool(program))
}

#[test]
fn an_ext4_filesystem_still_passes_fsck_and_holds_the_same_files() {
    if !have_tools() {
        return;
    }
    let filesystem = Filesystem::new();
    let stage = stage_with(&filesystem);
    stage.configure("");
    let disk = stage.source.disks(&stage.vm).remove(0);
    let full = stage.json(&["run", "erp"], 0);
    assert_eq!(full["vms"][0]["targets"][0]["disks"][0]["kind"], "full");

    for round in 0..3 {
        filesystem.change(round, &stage, &disk);
        let delta = stage.json(&["run", "erp"], 0);
        let delta = &delta["vms"][0]["targets"][0]["disks"][0];
        assert_eq!(delta["kind"], "delta");
        assert!(delta["changed_bytes"].as_u64() < Some(64 << 20), "{delta:#}");
    }

    let clone = stage.json(&["failover", "clone", "erp", "--vm", &stage.vm, "--no-start"], 0);
    let copy = stage.target.disks(clone["vm"].as_str().unwrap()).remove(0);
    assert_eq!(stage.target.sha256(&copy), stage.source.sha256(&disk));
    filesystem.assert_on_disk(&stage.target, &copy);
}

#[test]
fn an_ext4_filesystem_goes_to_a_pool_a_repository_and_hyper_v_in_one_pass_and_comes_back() {
    if !have_tools() {
        return;
    }
    let filesystem = Filesystem::new();
    let stage = stage_with(&filesystem);
    let (repository, disks) = (stage.path("repository"), stage.path("hyper-v"));
    for folder in [&repository, &disks] {
        std::fs::create_dir(folder).unwrap();
    }
    stage.configure_with_stores(&[
        (
            "repository",
            "target-repository",
            &format!("folder = '{}', create = true", repository.display()),
            &repository,
        ),
        ("hyper-v", "target-hyperv", &format!("folder = '{}', points = 'newest'", disks.display()), &disks),
    ]);
    let disk = stage.source.disks(&stage.vm).remove(0);
    for round in 0..3 {
        let report = stage.json(&["run", "erp"], 0);
        let targets = report["vms"][0]["targets"].as_array().unwrap();
        let names: Vec<_> = targets.iter().map(|target| target["target"].as_str().unwrap()).collect();
        assert_eq!(names, ["dr", "repository", "hyper-v"]);
        let digest = &targets[0]["disks"][0]["digest"];
        for target in targets {
            let kind = if round == 0 { "full" } else { "delta" };
            assert_eq!(
                (&target["disks"][0]["kind"], &target["disks"][0]["digest"]),
                (&json!(kind), digest),
                "{target:#}"
            );
        }
        if round < 2 {
            filesystem.change(round, &stage, &disk);
        }
    }
    let verified = stage.json(&["verify", "erp", "--deep"], 0);
    assert_eq!(verified["replicas"].as_array().unwrap().len(), 3, "{verified:#}");

    let vm = &stage.vm;
    let restored = stage.json(&["restore", "erp", "--vm", vm, "--target", "repository", "--to-pool", "dr"], 0);
    assert_eq!(restored["disks"][0]["proven"], true);
    let copy = stage.target.disks(restored["restored"].as_str().unwrap()).remove(0);
    filesystem.assert_on_disk(&stage.target, &copy);

    // The newest state of the disk is one file, which qemu-img reads without us.
    let image = find(&disks, "vhdx");
    run("qemu-img", &["check", "-f", "vhdx", &text_of(&image)]);
    filesystem.assert_in_file(&image, "vhdx");

    let files = stage.path("files");
    let to = text_of(&files);
    stage.json(&["restore", "erp", "--vm", vm, "--target", "hyper-v", "--to-files", &to, "--format", "qcow2"], 0);
    filesystem.assert_in_file(&find(&files, "qcow2"), "qcow2");
    assert_eq!(stage.json(&["gc", "erp"], 0)["findings"], json!([]));
}

/// The only file below a folder whose name ends so.
#[track_caller]
fn find(folder: &Path, extension: &str) -> PathBuf {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            match path.is_dir() {
                true => folders.push(path),
                false if path.extension().is_some_and(|found| found == extension) => found.push(path),
                false => {}
            }
        }
    }
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
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
