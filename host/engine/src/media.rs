//! A VM's first copy on media: one VHD per disk, and a manifest that says what they are.
//!
//! ```text
//! vmferry-<snapshot disk>.vhd    a disk, as a host exports it
//! manifest.json                  written last: a folder without it is no export
//! manifest.draft                 an export that came to its end and could not say so any more
//! ```
//!
//! What is read here was carried by hand, so nothing in it is believed: sizes have bounds, files have the names that their
//! content gives them, and every file has to come to the digest that stands beside it.

use crate::allocation::MAX_VHD_DISK;
use crate::description::{self, Fields, InterfaceEntry, record};
use crate::inventory::AttachedDisk;
use crate::job::{Job, JobIds};
use crate::run::Networks;
use crate::snapshot::{Taken, TakenDisk};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use uuid::Uuid;
use vmferry_disk::digest::Root;
use vmferry_xapi::Ref;
use vmferry_xapi::records::{Vbd, Vdi, Vm};

const FORMAT: &str = "vmferry-seed";
const VERSION: u64 = 1;
const MANIFEST: &str = "manifest.json";
const DRAFT: &str = "manifest.draft";

/// Most bytes of a manifest that are read. One disk takes about a kilobyte.
const MAX_MANIFEST: u64 = 16 << 20;
/// Most disks that XAPI hangs on a VM.
const MAX_DISKS: usize = 255;
/// Most interfaces that are read; XAPI has seven.
const MAX_INTERFACES: usize = 64;
/// Longest VHD that is read, for a disk of 2 TiB with every block in use.
const MAX_FILE: u64 = MAX_VHD_DISK + (1 << 30);

/// Why a folder is no seed of this job; a sentence for an operator.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", .file.display())]
pub(crate) struct MediaError {
    file: PathBuf,
    why: String,
}

impl MediaError {
    fn new(file: impl Into<PathBuf>, why: impl Into<String>) -> Self {
        Self { file: file.into(), why: why.into() }
    }
}

/// What stands in `manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: String,
    version: u64,
    media: Uuid,
    job: Uuid,
    schedule: Uuid,
    tenant: String,
    taken_at: Timestamp,
    vm: Fields,
    snapshot: Fields,
    disks: Vec<DiskEntry>,
    interfaces: Vec<InterfaceEntry>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskEntry {
    file: String,
    /// Bytes of the file.
    length: u64,
    /// uuid of the source's snapshot disk.
    content: Uuid,
    /// Root of the digests of what the disk holds.
    digest: String,
    /// Bytes of the disk.
    size: u64,
    disk: Fields,
    drive: Fields,
}

/// A file that was written.
pub(crate) struct Written {
    /// Bytes of the file.
    pub(crate) length: u64,
    pub(crate) digest: Root,
}

/// A seed that was read and found to be in order, the content of its files aside.
pub(crate) struct Media {
    pub(crate) id: Uuid,
    /// The live VM of the source.
    pub(crate) vm: Vm,
    pub(crate) taken: Taken,
    /// What the files of the disks have to be, in the order of [`Taken::disks`].
    pub(crate) files: Vec<MediaFile>,
    pub(crate) networks: Networks,
}

/// A disk's file.
pub(crate) struct MediaFile {
    pub(crate) path: PathBuf,
    /// Its length in bytes.
    pub(crate) length: u64,
    pub(crate) digest: Root,
}

/// The folder of an export under way.
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// Makes the folder where it is not there, and removes the disks of an export that died in it. One that holds an export
    /// already is left alone.
    pub(crate) fn prepare(path: &Path) -> Result<Self, MediaError> {
        std::fs::create_dir_all(path).map_err(|error| MediaError::new(path, error.to_string()))?;
        if path.join(MANIFEST).symlink_metadata().is_ok() {
            return Err(MediaError::new(path, "it holds an export already; give another folder, or empty this one"));
        }
        let unfinished = |entry: &std::fs::DirEntry| entry.file_name().to_str().is_some_and(is_file_name);
        let entries = std::fs::read_dir(path).map_err(|error| MediaError::new(path, error.to_string()))?;
        for entry in entries.flatten().filter(unfinished) {
            std::fs::remove_file(entry.path()).map_err(|error| MediaError::new(entry.path(), error.to_string()))?;
        }
        Ok(Self(path.to_owned()))
    }

    /// The id of an export that came to its end here and could not say so any more.
    pub(crate) fn draft(&self) -> Option<Uuid> {
        let text = read_bounded(&self.0.join(DRAFT)).ok()?;
        Some(serde_json::from_slice::<Manifest>(&text).ok()?.media)
    }

    /// Where the disk of this content goes.
    pub(crate) fn file_of(&self, disk: &TakenDisk) -> PathBuf {
        self.0.join(file_name(&disk.uuid))
    }

    /// Writes the manifest as a draft, durably: all that [`Self::publish`] has to do is to name it.
    pub(crate) fn write_draft(
        &self,
        media: Uuid,
        job: &Job,
        source: &Vm,
        taken: &Taken,
        written: &[Written],
        networks: &Networks,
    ) -> Result<(), MediaError> {
        let path = self.0.join(DRAFT);
        let manifest = manifest(media, job, source, taken, written, networks)
            .and_then(|manifest| serde_json::to_vec_pretty(&manifest).map_err(|error| error.to_string()))
            .map_err(|why| MediaError::new(&path, why))?;
        let write = || {
            let mut file = File::create(&path)?;
            file.write_all(&manifest)?;
            file.sync_all()?;
            File::open(&self.0)?.sync_all()
        };
        write().map_err(|error| MediaError::new(&path, error.to_string()))
    }

    /// Makes the folder an export.
    pub(crate) fn publish(&self) -> Result<(), MediaError> {
        let path = self.0.join(MANIFEST);
        let publish = || {
            std::fs::rename(self.0.join(DRAFT), &path)?;
            File::open(&self.0)?.sync_all()
        };
        publish().map_err(|error| MediaError::new(&path, error.to_string()))
    }

    /// Removes what an export left that did not come to its end.
    pub(crate) fn clear(&self, taken: &Taken) {
        let files = taken.disks.iter().map(|disk| self.file_of(disk));
        for file in [self.0.join(MANIFEST), self.0.join(DRAFT)].into_iter().chain(files) {
            match std::fs::remove_file(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(file = %file.display(), %error, "an unfinished export could not be removed");
                }
                _ => {}
            }
        }
    }
}

impl Media {
    /// Reads the manifest of a folder and looks whether it is a seed of this job and all its files are there.
    pub(crate) fn open(folder: &Path, job: &Job) -> Result<Self, MediaError> {
        let path = folder.join(MANIFEST);
        let text = read_bounded(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => MediaError::new(
                folder,
                format!("it has no {MANIFEST}, so it is no finished export; give the folder of `vmferry seed export`"),
            ),
            _ => MediaError::new(&path, error.to_string()),
        })?;
        let media = parse(&text, folder, &job.ids, &job.tenant).map_err(|why| MediaError::new(&path, why))?;
        for file in &media.files {
            let found = file.path.symlink_metadata();
            let found = found.map_err(|error| MediaError::new(&file.path, format!("{error}; {AGAIN}")))?;
            if !found.is_file() {
                return Err(MediaError::new(&file.path, format!("it is no file; {AGAIN}")));
            }
            if found.len() != file.length {
                let why = format!("it has {} bytes, {} were written; {AGAIN}", found.len(), file.length);
                return Err(MediaError::new(&file.path, why));
            }
        }
        Ok(media)
    }
}

/// What to do about a file that is not what was written.
pub(crate) const AGAIN: &str = "copy it to the media again, or export anew";

fn file_name(content: &str) -> String {
    format!("vmferry-{content}.vhd")
}

fn is_file_name(name: &str) -> bool {
    let content = name.strip_prefix("vmferry-").and_then(|name| name.strip_suffix(".vhd"));
    content.is_some_and(|content| Uuid::parse_str(content).is_ok())
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_MANIFEST + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_MANIFEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is longer than {MAX_MANIFEST} bytes")));
    }
    Ok(text)
}

fn manifest(
    media: Uuid,
    job: &Job,
    source: &Vm,
    taken: &Taken,
    written: &[Written],
    networks: &Networks,
) -> Result<Manifest, String> {
    let uuid = |text: &str| Uuid::parse_str(text).map_err(|_| format!("{text:?} is no uuid"));
    let disks = taken.disks.iter().zip(written).map(|(disk, written)| {
        Ok(DiskEntry {
            file: file_name(&disk.uuid),
            length: written.length,
            content: uuid(&disk.uuid)?,
            digest: written.digest.to_string(),
            size: disk.of.record.virtual_size,
            disk: description::disk(&disk.of.record),
            drive: description::drive(&disk.of.vbd_record),
        })
    });
    Ok(Manifest {
        format: FORMAT.to_owned(),
        version: VERSION,
        media,
        job: job.ids.job,
        schedule: job.ids.schedule,
        tenant: job.tenant.clone(),
        taken_at: taken.taken_at,
        vm: description::vm(source),
        snapshot: description::vm(&taken.record),
        disks: disks.collect::<Result<_, String>>()?,
        interfaces: description::interfaces(networks)?,
    })
}

/// Reads a manifest, or says what is wrong with it.
fn parse(text: &[u8], folder: &Path, ids: &JobIds, tenant: &str) -> Result<Media, String> {
    let json: serde_json::Value = serde_json::from_slice(text).map_err(|error| format!("damaged: {error}"))?;
    if json.get("format").and_then(serde_json::Value::as_str) != Some(FORMAT) {
        return Err("it is not the manifest of a seed".to_owned());
    }
    let version = json.get("version").and_then(serde_json::Value::as_u64);
    if version != Some(VERSION) {
        let found = version.map_or_else(|| "unknown".to_owned(), |version| version.to_string());
        return Err(format!(
            "it is of version {found}, this program reads {VERSION}; import with the program that wrote it"
        ));
    }
    let manifest: Manifest = serde_json::from_value(json).map_err(|error| format!("damaged: {error}"))?;
    if (manifest.job, manifest.schedule) != (ids.job, ids.schedule) || manifest.tenant != tenant {
        return Err(format!(
            "it was exported for job {} of tenant {}, this one is {} of {tenant}; name the job as it is named there",
            manifest.job, manifest.tenant, ids.job
        ));
    }
    if manifest.disks.len() > MAX_DISKS || manifest.interfaces.len() > MAX_INTERFACES {
        return Err("it has more disks or interfaces than a VM".to_owned());
    }
    // Keys and names carry it with four digits of a year.
    if manifest.taken_at <= Timestamp::UNIX_EPOCH || manifest.taken_at.strftime("%Y").to_string().len() != 4 {
        return Err(format!("its date {} is none of a snapshot", manifest.taken_at));
    }
    let vm: Vm = record("VM", manifest.vm)?;
    let snapshot: Vm = record("snapshot", manifest.snapshot)?;
    let (mut disks, mut files) = (Vec::new(), Vec::new());
    let (mut contents, mut devices) = (BTreeSet::new(), BTreeSet::new());
    for entry in manifest.disks {
        let DiskEntry { file, length, content, digest, size, disk, drive } = entry;
        let what = format!("disk {content}");
        let name = file_name(&content.to_string());
        if file != name {
            return Err(format!("{what}: its file is called {file:?}, not {name}"));
        }
        if size == 0 || size > MAX_VHD_DISK || !size.is_multiple_of(512) || length > MAX_FILE {
            return Err(format!("{what}: no VHD of {length} bytes holds a disk of {size} bytes"));
        }
        let digest = digest.parse::<Root>().map_err(|error| format!("{what}: {error}"))?;
        let mut record_of_disk: Vdi = record(&what, disk)?;
        record_of_disk.virtual_size = size;
        let drive: Vbd = record(&what, drive)?;
        if !contents.insert(content) || !devices.insert(drive.userdevice.clone()) {
            return Err(format!("{what} or its device number {} is there twice", drive.userdevice));
        }
        let (vbd, vdi) = (Ref::null(), Ref::null());
        let of = AttachedDisk { vbd, vbd_record: drive, vdi, record: record_of_disk };
        disks.push(TakenDisk::on_media(of, content.to_string()));
        files.push(MediaFile { path: folder.join(name), length, digest });
    }
    let networks = description::networks(manifest.interfaces)?;
    let taken = Taken { reference: Ref::null(), record: snapshot, taken_at: manifest.taken_at, disks };
    Ok(Media { id: manifest.media, vm, taken, files, networks })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const TENANT: &str = "default";

    fn ids() -> JobIds {
        JobIds::derived(TENANT, "erp")
    }

    fn valid() -> serde_json::Value {
        let disk = |n: u128| {
            let content = Uuid::from_u128(n).to_string();
            json!({
                "file": file_name(&content), "length": 4096, "content": content, "digest": "ab".repeat(32), "size": 2 << 20,
                "disk": { "uuid": Uuid::from_u128(n + 100).to_string(), "name_label": "system", "tags": ["erp"] },
                "drive": { "uuid": Uuid::from_u128(n + 200).to_string(), "userdevice": n.to_string(), "bootable": true },
            })
        };
        let vm = json!({ "uuid": Uuid::from_u128(1).to_string(), "name_label": "erp", "platform": { "acpi": "1" } });
        json!({
            "format": FORMAT, "version": VERSION, "media": Uuid::from_u128(9), "job": ids().job, "schedule": ids().schedule,
            "tenant": TENANT, "taken_at": "2026-11-21T19:48:01Z", "vm": vm, "snapshot": vm, "disks": [disk(1), disk(2)],
            "interfaces": [{
                "interface": { "uuid": Uuid::from_u128(5).to_string(), "device": "0", "MAC": "00:16:3e:00:00:01", "MTU": 1500 },
                "network": Uuid::from_u128(6), "network_name": "Pool-wide network",
            }],
        })
    }

    fn read(manifest: &serde_json::Value) -> Result<Media, String> {
        parse(manifest.to_string().as_bytes(), Path::new("/media/usb"), &ids(), TENANT)
    }

    #[test]
    fn a_manifest_gives_what_a_commit_needs() {
        let media = read(&valid()).unwrap();
        assert_eq!((media.taken.disks.len(), media.files.len(), media.networks.interfaces.len()), (2, 2, 1));
        assert_eq!(media.taken.disks[1].of.record.virtual_size, 2 << 20);
        let platform = media.vm.raw["platform"].as_struct().unwrap();
        assert_eq!(platform["acpi"].as_str(), Some("1"));
        assert_eq!(media.networks.interfaces[0].network, media.networks.networks[0].0);
        assert_eq!(media.files[0].path.parent(), Some(Path::new("/media/usb")));
    }

    #[test]
    fn a_manifest_that_asks_for_something_else_is_refused_with_its_reason() {
        for (place, value, wanted) in [
            ("/version", json!(2), "of version 2"),
            ("/format", json!("tar"), "not the manifest"),
            ("/job", json!(Uuid::from_u128(7)), "was exported for job"),
            ("/tenant", json!("other"), "was exported for job"),
            ("/taken_at", json!("1970-01-01T00:00:00Z"), "its date"),
            ("/taken_at", json!("-009999-01-02T01:59:59Z"), "its date"),
            ("/disks/0/file", json!("../../etc/shadow"), "its file is called"),
            ("/disks/0/content", json!("no uuid"), "damaged"),
            ("/disks/0/size", json!(0), "no VHD"),
            ("/disks/0/size", json!(513), "no VHD"),
            ("/disks/0/size", json!(u64::MAX), "no VHD"),
            ("/disks/0/length", json!(u64::MAX), "no VHD"),
            ("/disks/0/digest", json!("AB"), "not a digest root"),
            ("/disks/0/disk/uuid", json!("../x"), "no uuid"),
            ("/disks/1/drive/userdevice", json!("1"), "there twice"),
            ("/vm/uuid", json!("me"), "no uuid"),
            ("/vm/tags", json!("erp"), "VM: "),
        ] {
            let mut manifest = valid();
            match manifest.pointer_mut(place) {
                Some(found) => *found = value,
                None => manifest["vm"]["tags"] = value,
            }
            let error = read(&manifest).err().unwrap_or_else(|| panic!("{place} is taken"));
            assert!(error.contains(wanted), "{place}: {error}");
        }
        let mut manifest = valid();
        manifest["disks"] = json!(vec![valid()["disks"][0].clone(); 300]);
        assert!(read(&manifest).err().unwrap().contains("more disks"));
    }

    proptest! {
        #[test]
        fn whatever_stands_in_a_manifest_files_stay_in_its_folder_and_sizes_in_bounds(
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<prop::sample::Index>(),
            whole in prop::bool::weighted(0.8),
        ) {
            let mut text = valid().to_string().into_bytes();
            for (at, byte) in edits {
                let at = at.index(text.len());
                text[at] = byte;
            }
            if !whole {
                text.truncate(cut.index(text.len()));
            }
            if let Ok(media) = parse(&text, Path::new("/media/usb"), &ids(), TENANT) {
                prop_assert_eq!(media.files.len(), media.taken.disks.len());
                for (file, disk) in media.files.iter().zip(&media.taken.disks) {
                    prop_assert_eq!(file.path.parent(), Some(Path::new("/media/usb")));
                    prop_assert!(disk.of.record.virtual_size <= MAX_VHD_DISK && file.length <= MAX_FILE);
                    prop_assert!(Uuid::parse_str(&disk.uuid).is_ok());
                }
            }
        }
    }
}
