//! What a point's folder is called, and what is in it beside the disks.

use serde::{Deserialize, Serialize};
use vmferry_plugin_api::files::{EntryKind, Folder};
use vmferry_plugin_api::target::*;

/// `point.json`.
#[derive(Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// 1. Who does not know another leaves the point alone.
    format: u32,
    job: String,
    vm: String,
    name: String,
    /// Seconds since 1970.
    taken_at: Timestamp,
    pub(crate) disks: Vec<Kept>,
    pub(crate) metadata: serde_json::Value,
}

/// One disk in it, and the receipt of `write`.
#[derive(Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) disk: String,
    pub(crate) content: String,
    pub(crate) size: u64,
    pub(crate) stored: u64,
    pub(crate) digest: Option<String>,
}

impl Kept {
    pub(crate) fn to_receipt(&self) -> Result<Vec<u8>, Error> {
        serde_json::to_vec(self).map_err(|problem| Error::damaged(problem.to_string()))
    }
}

/// An operator's word.
pub(crate) enum Held {
    Yes,
    No,
}

const FORMAT: u32 = 1;
const MANIFEST: &str = "point.json";
const HELD: &str = "held";
const DAMAGED: &str = "damaged";

/// The name of a point's folder: its identity, if that can be one.
pub(crate) fn name(id: &str) -> Result<&str, Error> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    match (1..=64).contains(&id.len()) && id.bytes().all(plain) {
        true => Ok(id),
        false => Err(Error::with_code(ErrorCode::Unsupported, format!("`{id}` cannot name a file"))),
    }
}

pub(crate) fn draft(id: &str) -> Result<String, Error> {
    Ok(format!("{}.draft", name(id)?))
}

pub(crate) fn gone(id: &str) -> Result<String, Error> {
    Ok(format!("{}.gone", name(id)?))
}

pub(crate) fn raw(disk: &str) -> Result<String, Error> {
    Ok(format!("{}.raw", name(disk)?))
}

pub(crate) fn digests(disk: &str) -> Result<String, Error> {
    Ok(format!("{}.blake3", name(disk)?))
}

/// The folder of a committed point.
pub(crate) fn open(all: &Folder, id: &str) -> Result<Folder, Error> {
    all.folder(name(id)?)
}

pub(crate) fn read(folder: &Folder) -> Result<Manifest, Error> {
    let text = folder.read(MANIFEST)?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|problem| Error::damaged(format!("{MANIFEST}: {problem}")))?;
    match manifest.format {
        FORMAT => Ok(manifest),
        format => {
            Err(Error::with_code(ErrorCode::Unsupported, format!("{MANIFEST} has format {format}; use a newer plugin")))
        }
    }
}

/// Describes a point whose disks are written.
pub(crate) fn write(folder: &Folder, draft: &Draft, receipts: Vec<DiskReceipt>) -> Result<(), Error> {
    let disks = receipts
        .into_iter()
        .map(|DiskReceipt { receipt, digest, .. }| Ok(Kept { digest, ..serde_json::from_slice(&receipt)? }))
        .collect::<Result<_, serde_json::Error>>();
    let damaged = |problem: serde_json::Error| Error::damaged(format!("the draft {}: {problem}", draft.id));
    let manifest = Manifest {
        format: FORMAT,
        job: draft.job.clone(),
        vm: draft.vm.clone(),
        name: draft.name.clone(),
        taken_at: draft.taken_at,
        disks: disks.map_err(damaged)?,
        metadata: serde_json::from_str(&draft.metadata).map_err(damaged)?,
    };
    folder.replace(MANIFEST, &serde_json::to_vec_pretty(&manifest).map_err(damaged)?)
}

/// A point as the host is told of it.
pub(crate) fn of(id: &str, folder: &Folder) -> Result<Point, Error> {
    let Manifest { job, vm, name, taken_at, disks, .. } = read(folder)?;
    let damaged = match folder.read(DAMAGED) {
        Err(error) if error.code == ErrorCode::NotFound => None,
        found => Some(String::from_utf8_lossy(&found?).into_owned()),
    };
    let disk = |kept: Kept| PointDisk {
        disk: kept.disk,
        content: kept.content,
        size: kept.size,
        stored: kept.stored,
        digest: kept.digest,
        extensions: Vec::new(),
    };
    Ok(Point {
        id: id.to_owned(),
        job,
        vm,
        name,
        taken_at,
        disks: disks.into_iter().map(disk).collect(),
        held: folder.stat(HELD)?.is_some(),
        damaged,
        extensions: Vec::new(),
    })
}

/// Points of a VM, or of all, oldest first.
pub(crate) fn all(all: &Folder, vm: Option<&str>) -> Result<Vec<Point>, Error> {
    let mut points = Vec::new();
    for entry in all.list()? {
        // Whatever else an operator keeps here has no such name, or nothing of ours in it.
        if entry.kind != EntryKind::Folder || name(&entry.name).is_err() {
            continue;
        }
        let folder = all.folder(&entry.name)?;
        if folder.stat(MANIFEST)?.is_none() {
            continue;
        }
        let point = of(&entry.name, &folder)?;
        if vm.is_none_or(|vm| vm == point.vm) {
            points.push(point);
        }
    }
    points.sort_by(|a, b| (a.taken_at, &a.id).cmp(&(b.taken_at, &b.id)));
    Ok(points)
}

pub(crate) fn keep_held(folder: &Folder, held: Held) -> Result<(), Error> {
    match held {
        Held::Yes => folder.replace(HELD, b""),
        Held::No => folder.remove(HELD).and_then(|()| folder.sync()),
    }
}

/// Remembers what a verification found.
pub(crate) fn keep_damage(folder: &Folder, found: &[Damage]) -> Result<(), Error> {
    match found {
        [] => folder.remove(DAMAGED).and_then(|()| folder.sync()),
        [first, ..] => {
            let disk = first.disk.as_deref().unwrap_or_default();
            let at = first.extent.map(|extent| format!(" at {}", extent.offset)).unwrap_or_default();
            let all = format!("{} places, the first on disk {disk}{at}: {}", found.len(), first.message);
            folder.replace(DAMAGED, all.as_bytes())
        }
    }
}

/// Removes a folder that is no point, and what is in it.
pub(crate) fn remove(all: &Folder, name: &str) -> Result<(), Error> {
    if all.stat(name)?.is_none() {
        return Ok(());
    }
    let folder = all.folder(name)?;
    for entry in folder.list()? {
        folder.remove(&entry.name)?;
    }
    all.remove_folder(name)?;
    all.sync()
}

/// What is being made or removed by nobody any more.
pub(crate) fn collect(all: &Folder, drafts: &[String], apply: bool) -> Result<Vec<Garbage>, Error> {
    let mut found = Vec::new();
    for entry in all.list()? {
        let why = match entry.name.rsplit_once('.') {
            Some((id, "draft")) if name(id).is_ok() && !drafts.iter().any(|draft| draft == id) => {
                "it was begun and never became a recovery point"
            }
            Some((id, "gone")) if name(id).is_ok() => "the recovery point was deleted",
            _ => continue,
        };
        let folder = all.folder(&entry.name)?;
        let mut bytes = 0;
        for file in folder.list()? {
            bytes += folder.stat(&file.name)?.map_or(0, |stat| stat.size);
        }
        if apply {
            remove(all, &entry.name)?;
        }
        found.push(Garbage { what: entry.name, why: why.to_owned(), bytes });
    }
    Ok(found)
}
