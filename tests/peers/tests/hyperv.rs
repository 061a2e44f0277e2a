//! Disk files for Hyper-V in the eyes of readers that nobody here wrote.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on has failed its test")]

use std::path::{Path, PathBuf};
use target_hyperv::{Format, Keeper, Points};
use vmferry_peers::{Peer, script};
use vmferry_plugin_api::delta::double::{Delta, Restore};
use vmferry_plugin_api::delta::{Info, Kind};
use vmferry_plugin_api::files::Folder;
use vmferry_plugin_api::target::{DiskReceipt, Draft};

const CHUNK: usize = 1 << 20;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A target in a folder, with a VM of one disk.
struct Target {
    folder: tempfile::TempDir,
    keeper: Keeper<Folder>,
    /// What each point should show, in their order.
    points: Vec<(String, Vec<u8>)>,
    committed: u32,
}

impl Target {
    fn new(format: Format, points: Points) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let name = text(folder.path()).to_owned();
        let keeper = Keeper { place: Folder::open(&name).unwrap(), name, points, format, grace: 0 };
        Self { folder, keeper, points: Vec::new(), committed: 0 }
    }

    /// Makes a point of the disk as it is now, by what differs from the newest.
    fn commit(&mut self, disk: &[u8]) {
        let base = self.points.last().cloned();
        self.committed += 1;
        let id = format!("point-{}", self.committed);
        let draft = Draft {
            id: id.clone(),
            job: "erp".to_owned(),
            vm: "7".to_owned(),
            name: "files".to_owned(),
            taken_at: 1_700_000_000 + i64::from(self.committed),
            base: base.as_ref().map(|(id, _)| id.clone()),
            metadata: "{}".to_owned(),
            extensions: Vec::new(),
        };
        let info = Info {
            disk: "system".to_owned(),
            content: id.clone(),
            size: disk.len() as u64,
            kind: base.as_ref().map_or(Kind::Full, |(id, _)| Kind::Delta(id.clone())),
            expected_bytes: 0,
            extensions: Vec::new(),
        };
        let before = base.map_or_else(|| vec![0; disk.len()], |(_, disk)| disk);
        let size = self.keeper.format.block_size() as usize;
        let chunks = before.chunks(size).zip(disk.chunks(size)).enumerate().filter(|(_, (old, new))| old != new);
        let chunks = chunks.map(|(index, (_, new))| ((index * size) as u64, new.to_vec()));
        let receipt = self.keeper.write_disk(&draft, &Delta::new(info, chunks)).unwrap();
        let receipt = DiskReceipt { disk: "system".to_owned(), receipt, digest: None };
        self.keeper.commit(&draft, &[receipt]).unwrap();
        if self.keeper.points == Points::Newest {
            self.points.clear();
        }
        self.points.push((id, disk.to_vec()));
    }

    /// The file that shows a point.
    fn image(&self, point: &str) -> PathBuf {
        let folder = self.folder.path().join("job-erp/vm-7");
        let state: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.join("points.json")).unwrap()).unwrap();
        let point = state["points"].as_array().unwrap().iter().find(|kept| kept["id"] == point).unwrap();
        folder.join(point["disks"][0]["image"].as_str().unwrap())
    }
}

/// A disk of 20 MiB and a bit, and the same with other data in some blocks.
fn disk(seed: u8, blocks: &[usize], from: &[u8]) -> Vec<u8> {
    let mut disk = from.to_vec();
    for block in blocks {
        let end = disk.len().min((block + 1) * CHUNK);
        for (at, byte) in disk[block * CHUNK..end].iter_mut().enumerate() {
            *byte = if seed == 0 { 0 } else { (at / 511) as u8 ^ seed };
        }
    }
    disk
}

#[tokio::test]
async fn a_chain_of_differencing_disks_reads_the_same_before_and_after_its_oldest_are_merged() -> anyhow::Result<()> {
    let Some(python) = Peer::python()? else { return Ok(()) };
    let mut target = Target::new(Format::Vhdx, Points::Differencing);
    let first = disk(1, &[0, 1, 5, 20], &vec![0; 20 * CHUNK + 512]);
    let second = disk(0, &[1], &disk(2, &[0, 7, 20], &first));
    let third = disk(3, &[1, 19], &disk(0, &[5], &second));
    let fourth = disk(4, &[0, 2], &third);
    for disk in [&first, &second, &third, &fourth] {
        target.commit(disk);
    }
    let read = async |target: &Target, parents: &[u32]| -> anyhow::Result<()> {
        for ((point, disk), parents) in target.points.iter().zip(parents) {
            let raw = target.folder.path().join("raw");
            let told = python.run([text(&script("py/read_vhdx.py")), text(&target.image(point)), text(&raw)]).await?;
            assert_eq!(told.trim(), parents.to_string(), "{point}");
            assert!(std::fs::read(&raw)? == *disk, "{point}");
        }
        Ok(())
    };
    read(&target, &[0, 1, 2, 3]).await?;
    for (deleted, parents) in [(1, vec![0, 1, 2]), (0, vec![0, 1]), (0, vec![0])] {
        let (point, _) = target.points.remove(deleted);
        target.keeper.delete(&point).unwrap();
        read(&target, &parents).await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_script_that_registers_a_vm_is_powershell() -> anyhow::Result<()> {
    let Some(python) = Peer::python()? else { return Ok(()) };
    let mut target = Target::new(Format::Vhdx, Points::Newest);
    target.commit(&disk(1, &[0], &vec![0; CHUNK]));
    let register = target.image(&target.points[0].0).with_file_name("register.ps1");
    let parse = script("py/parse_powershell.py");
    python.run([text(&parse), text(&register)]).await?;
    let whole = std::fs::read_to_string(&register)?;
    std::fs::write(&register, whole.trim_end().trim_end_matches("$vm").trim_end().trim_end_matches('}'))?;
    assert!(python.run([text(&parse), text(&register)]).await.is_err(), "a script without its last brace is none");
    Ok(())
}

#[tokio::test]
async fn a_vhd_reads_by_the_footer_at_its_end_whatever_was_changed_in_place() -> anyhow::Result<()> {
    let Some(python) = Peer::python()? else { return Ok(()) };
    let mut target = Target::new(Format::Vhd, Points::Newest);
    let first = disk(1, &[0, 1, 5, 20], &vec![0; 20 * CHUNK + 512]);
    let second = disk(0, &[0, 1], &disk(2, &[2, 7, 20], &first));
    let third = disk(3, &[1, 19], &disk(0, &[5], &second));
    for disk in [&first, &second, &third] {
        target.commit(disk);
        let raw = target.folder.path().join("raw");
        let (point, _) = &target.points[0];
        python.run([text(&script("py/read_vhd.py")), text(&target.image(point)), text(&raw)]).await?;
        assert!(std::fs::read(&raw)? == *disk, "{point}");
    }
    Ok(())
}

#[tokio::test]
async fn an_ext4_filesystem_passes_fsck_after_full_and_deltas() -> anyhow::Result<()> {
    let mut programs = Vec::new();
    for name in ["mkfs.ext4", "debugfs", "qemu-img", "e2fsck", "diff"] {
        let Some(program) = Peer::system(name)? else { return Ok(()) };
        programs.push(program);
    }
    let [mkfs, debugfs, qemu_img, e2fsck, diff] = programs.as_slice() else { unreachable!("as many as names") };
    for (format, points) in [
        (Format::Vhdx, Points::Newest),
        (Format::Vhdx, Points::Copies),
        (Format::Vhdx, Points::Differencing),
        (Format::Vhd, Points::Newest),
        (Format::Vhd, Points::Copies),
    ] {
        let scratch = tempfile::tempdir()?;
        let path = |name: &str| scratch.path().join(name);
        std::fs::create_dir(path("files"))?;
        for index in 0..200_usize {
            let bytes: Vec<u8> = (0..index * 601).map(|at| (at * at + index) as u8).collect();
            std::fs::write(path("files").join(format!("file-{index}")), bytes)?;
        }
        let image = path("disk.img");
        mkfs.run(["-q", "-d", text(&path("files")), text(&image), "48M"]).await?;
        let mut target = Target::new(format, points);
        target.commit(&std::fs::read(&image)?);
        for round in 0..3 {
            let (changed, removed) = (format!("file-{}", 50 + round), format!("file-{}", 120 + round));
            std::fs::write(path("files").join(&changed), format!("changed in round {round}").repeat(9_000))?;
            std::fs::remove_file(path("files").join(&removed))?;
            let new = path("files").join(&changed);
            std::fs::write(path("commands"), format!("rm {changed}\nwrite {} {changed}\nrm {removed}\n", text(&new)))?;
            debugfs.run(["-w", "-f", text(&path("commands")), text(&image)]).await?;
            target.commit(&std::fs::read(&image)?);
        }
        let newest = target.points.last().unwrap().0.clone();
        let restored = path("restored.img");
        if points == Points::Differencing {
            // qemu reads no differencing VHDX, so the newest point is made the only one first.
            for (point, _) in target.points.iter().rev().skip(1) {
                target.keeper.delete(point).unwrap();
            }
        }
        let image = target.image(&newest);
        let name = if format == Format::Vhdx { "vhdx" } else { "vpc" };
        if format == Format::Vhdx {
            // Of the other it knows no check.
            qemu_img.run(["check", "-q", "-f", name, text(&image)]).await?;
        }
        qemu_img.run(["convert", "-f", name, "-O", "raw", text(&image), text(&restored)]).await?;
        e2fsck.run(["-fn", text(&restored)]).await?;
        std::fs::create_dir(path("found"))?;
        let dump = format!("rdump / {}", text(&path("found")));
        debugfs.run(["-R", &dump, text(&restored)]).await?;
        std::fs::remove_dir(path("found/lost+found"))?;
        diff.run(["-r", text(&path("files")), text(&path("found"))]).await?;
        assert!(target.keeper.verify(&newest, &Restore::default()).unwrap().is_empty());
    }
    Ok(())
}
