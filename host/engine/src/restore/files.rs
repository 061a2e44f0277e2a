//! A recovery point as files: an image of each disk, or one XVA.

use super::Restore;
use crate::error::{EngineError, RunError};
use crate::origin::OriginDisk;
use crate::ova::{self, Exported};
use crate::plan::replica_size;
use crate::restore::RestoreReport;
use crate::source::Chunked;
use crate::storing::ImageFormat;
use crate::transfer::{Place, blocking};
use crate::xva::{self, XvaFile};
use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

impl Restore<'_> {
    /// An image has another name until it is whole, so that one that a restore left half-way is taken for nothing else.
    pub(super) async fn to_files(
        &self,
        folder: &Path,
        format: ImageFormat,
        report: &mut RestoreReport,
    ) -> Result<(), EngineError> {
        std::fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
        for disk in self.disks() {
            let name = image_name(&self.origin.vm.name_label, disk, format);
            let (path, part) = (folder.join(&name), folder.join(format!("{name}.part")));
            if path.exists() {
                let there = format!("{} is there already; remove it, or restore to another folder", path.display());
                return Err(EngineError::Refused(there));
            }
            let file = open_part(&part).map_err(|error| failed(&part, &error))?;
            let size = replica_size(disk.attached.record.virtual_size);
            let place = Place::Image { file, path: part.clone(), format, size };
            let to = path.display().to_string();
            let whole = self.whole(disk, place, &to, Chunked::Proven).await;
            let named = whole.and_then(|restored| match std::fs::rename(&part, &path) {
                Ok(()) => Ok(restored),
                Err(error) => Err(failed(&path, &error)),
            });
            match named {
                Ok(restored) => report.disks.push(restored),
                Err(error) => {
                    let _ = std::fs::remove_file(&part);
                    return Err(error.into());
                }
            }
        }
        let names = File::open(folder).and_then(|folder| folder.sync_all());
        Ok(names.map_err(|error| failed(folder, &error))?)
    }

    /// The VM and its disks as one file. What is there of it when something fails is removed.
    pub(super) async fn to_xva(&self, path: &Path, report: &mut RestoreReport) -> Result<(), EngineError> {
        let disks: Vec<&OriginDisk> = self.disks().collect();
        let keys = self.keys();
        let exported = Exported {
            uuid: &report.vm,
            name: &self.origin.vm.name_label,
            record: &self.origin.snapshot,
            other_config: &keys,
            disks: disks.iter().map(|disk| &disk.attached).collect(),
            networks: &self.origin.networks,
        };
        let document = ova::write(&exported).map_err(|why| {
            let object = self.origin.point.clone();
            RunError::Inconsistent { what: "recovery point", object, why }
        })?;
        let xva = XvaFile::create(path, &document.xml).map_err(|error| xva::write_failed(path, &error))?;
        let written = self.write_disks(&xva, disks.into_iter().zip(&document.disks), report).await;
        if written.is_err() {
            let _ = std::fs::remove_file(path);
        }
        Ok(written?)
    }

    async fn write_disks<'o>(
        &self,
        xva: &XvaFile,
        disks: impl Iterator<Item = (&'o OriginDisk, &'o String)>,
        report: &mut RestoreReport,
    ) -> Result<(), RunError> {
        for (disk, id) in disks {
            let size = replica_size(disk.attached.record.virtual_size);
            let place = Place::Xva { xva: xva.clone(), id: id.clone(), size };
            let to = format!("{}: {id}", xva.path().display());
            report.disks.push(self.whole(disk, place, &to, Chunked::Proven).await?);
        }
        let (file, path) = (xva.clone(), xva.path());
        blocking(move || file.finish()).await.map_err(|error| xva::write_failed(path, &error))
    }
}

fn failed(path: &Path, error: &io::Error) -> RunError {
    RunError::Media(format!("{}: {error}", path.display()))
}

/// Opens what becomes an image once it is whole; what a restore that died left of it goes.
fn open_part(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => return Err(io::Error::other("another restore is writing it")),
        // There are file systems without locks.
        Ok(()) | Err(TryLockError::Error(_)) => {}
    }
    file.set_len(0)?;
    Ok(file)
}

/// `erp-db-0-system.raw`, with nothing in it that could leave its folder.
fn image_name(vm: &str, disk: &OriginDisk, format: ImageFormat) -> String {
    let plain = |text: &str| -> String {
        text.chars()
            .map(|c| if c.is_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' })
            .take(64)
            .collect()
    };
    let extension = match format {
        ImageFormat::Raw => "raw",
        ImageFormat::Qcow2 => "qcow2",
    };
    let (vm, name) = (plain(vm), plain(&disk.attached.record.name_label));
    format!("vm-{vm}-{}-{name}.{extension}", plain(&disk.attached.vbd_record.userdevice))
}
