//! A recovery point as one XVA file, and an XVA as a recovery point.

use crate::error::{EngineError, RunError};
use crate::ova::{self, Imported, ImportedDisk};
use crate::transfer::blocking;
use async_trait::async_trait;
use jiff::Timestamp;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use vmferry_disk::xva::{Archive, Piece, Writer, XvaError};
use vmferry_model::plugin::{PluginError, PluginFailure, PluginId};
use vmferry_model::target::{
    Chunks, Damage, DeltaInfo, DiskReceipt, Draft, PointStore, Restored, Shape, StoredDisk, StoredExtent,
    StoredGarbage, StoredPoint, VmMetadata,
};

/// An XVA that is being written, disk after disk.
#[derive(Clone)]
pub(crate) struct XvaFile {
    path: Arc<Path>,
    writer: Arc<Mutex<Option<Writer<File>>>>,
}

impl XvaFile {
    /// Makes the file, which must not be there yet.
    pub(crate) fn create(path: &Path, metadata: &str) -> io::Result<Self> {
        let file = File::options().write(true).create_new(true).open(path)?;
        let writer = Writer::new(file, metadata.as_bytes())?;
        Ok(Self { path: path.into(), writer: Arc::new(Mutex::new(Some(writer))) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Begins with the next disk.
    pub(crate) fn begin(&self, id: &str, size: u64) -> io::Result<()> {
        self.write(|writer| writer.begin(id, size))
    }

    /// Takes a piece of it.
    pub(crate) fn put(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write(|writer| writer.put(offset, bytes))
    }

    /// Ends the file, and waits until it is on the storage.
    pub(crate) fn finish(&self) -> io::Result<()> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        writer.ok_or_else(finished)?.finish()?.sync_all()
    }

    fn write(&self, write: impl FnOnce(&mut Writer<File>) -> io::Result<()>) -> io::Result<()> {
        write(self.writer.lock().unwrap_or_else(PoisonError::into_inner).as_mut().ok_or_else(finished)?)
    }
}

fn finished() -> io::Error {
    io::Error::other("the XVA was finished already")
}

/// The only recovery point that an XVA has, and a store that keeps nothing else.
pub(crate) struct XvaStore {
    path: PathBuf,
    archive: Arc<Archive>,
    metadata: VmMetadata,
    disks: Vec<ImportedDisk>,
    pub(crate) point: StoredPoint,
    /// What is not restored.
    pub(crate) warnings: Vec<String>,
}

impl XvaStore {
    /// Reads what the VM is, and where in the file its disks are. Their data is looked at when it is read.
    pub(crate) async fn open(path: &Path) -> Result<Self, EngineError> {
        let refused = |why: String| EngineError::Refused(format!("{}: {why}", path.display()));
        let file = path.to_owned();
        let open = move || -> Result<_, XvaError> {
            let file = File::open(file).map_err(|source| XvaError::Io { at: 0, source })?;
            let modified = file.metadata().and_then(|metadata| metadata.modified()).ok();
            Ok((Archive::open(file)?, modified))
        };
        let (archive, modified) = blocking(open).await.map_err(|error| refused(crate::error::chain(&error)))?;
        let taken_at = modified.and_then(|at| Timestamp::try_from(at).ok()).unwrap_or(Timestamp::UNIX_EPOCH);
        let Imported { vm, name, suspended, disks, metadata } =
            ova::read(archive.metadata(), taken_at).map_err(refused)?;
        for ImportedDisk { id, size, .. } in &disks {
            let found = archive.disk(id).map_or(0, |disk| disk.length);
            if found != *size {
                return Err(refused(format!(
                    "disk {id} has {size} bytes by ova.xml, and {found} in the XVA: it is not whole; export it again"
                )));
            }
        }
        let stored = |disk: &ImportedDisk| StoredDisk {
            disk: disk.uuid.clone(),
            content: disk.uuid.clone(),
            size: disk.size,
            stored: archive.disk(&disk.id).map_or(0, |disk| disk.extents().total_bytes()),
            digest: None,
        };
        let point = StoredPoint {
            id: vm.clone(),
            job: String::new(),
            vm,
            name,
            taken_at,
            disks: disks.iter().map(stored).collect(),
            held: false,
            damaged: None,
        };
        let memory = suspended.then(|| "the memory of the suspended VM is left out: what is restored boots".to_owned());
        Ok(Self {
            path: path.to_owned(),
            archive: Arc::new(archive),
            metadata,
            disks,
            point,
            warnings: memory.into_iter().collect(),
        })
    }

    /// What the archive calls a disk.
    fn id(&self, call: &str, uuid: &str) -> Result<&str, PluginError> {
        let disk = self.disks.iter().find(|disk| disk.uuid == uuid);
        disk.map(|disk| disk.id.as_str())
            .ok_or_else(|| self.failed(call, "not-found", &format!("it has no disk {uuid}")))
    }

    fn failed(&self, call: &str, code: &str, message: &str) -> PluginError {
        PluginError {
            plugin: PluginId { name: self.path.display().to_string(), version: "XVA".to_owned() },
            call: call.to_owned(),
            failure: PluginFailure::Refused { code: code.to_owned(), message: message.to_owned() },
        }
    }

    fn read_only<T>(&self, call: &str) -> Result<T, PluginError> {
        Err(self.failed(call, "unsupported", "an XVA is read, and not changed"))
    }

    /// The chunk that holds a byte of a disk.
    async fn chunk(&self, id: &str, byte: u64) -> Result<Option<Piece>, PluginError> {
        let (archive, disk) = (self.archive.clone(), id.to_owned());
        let read = blocking(move || match archive.disk(&disk) {
            Some(disk) => archive.chunk(disk, byte),
            None => Ok(None),
        });
        read.await.map_err(|error| self.failed("read", "damaged", &crate::error::chain(&error)))
    }
}

#[async_trait]
impl PointStore for XvaStore {
    fn shape(&self) -> Shape {
        Shape { chunk_size: vmferry_disk::xva::CHUNK as u32, only_newest: true }
    }

    async fn points(&self, vm: Option<&str>) -> Result<Vec<StoredPoint>, PluginError> {
        Ok(vm.is_none_or(|vm| vm == self.point.vm).then(|| self.point.clone()).into_iter().collect())
    }

    async fn metadata(&self, _: &str) -> Result<VmMetadata, PluginError> {
        Ok(self.metadata.clone())
    }

    async fn layout(&self, _: &str, disk: &str, _: Option<&str>) -> Result<Vec<StoredExtent>, PluginError> {
        let extents = self.archive.disk(self.id("layout", disk)?).map(|disk| disk.extents()).unwrap_or_default();
        Ok(extents.iter().map(|extent| StoredExtent { offset: extent.offset, length: extent.length }).collect())
    }

    async fn read(
        &self,
        _: &str,
        disk: &str,
        extents: &[StoredExtent],
        mut restored: Box<dyn Restored>,
    ) -> Result<(), PluginError> {
        let id = self.id("read", disk)?;
        let mut last: Option<Piece> = None;
        for extent in extents {
            let (mut at, end) = (extent.offset, extent.offset.saturating_add(extent.length));
            while at < end {
                let holds = |piece: &Piece| (piece.offset..piece.offset + piece.bytes.len() as u64).contains(&at);
                let piece = match last.take().filter(holds) {
                    Some(piece) => piece,
                    // Nobody asks for what no layout named.
                    None => match self.chunk(id, at).await? {
                        Some(piece) => piece,
                        None => break,
                    },
                };
                let from = (at - piece.offset) as usize;
                let to = piece.bytes.len().min((end - piece.offset) as usize);
                let put = restored.put(at, piece.bytes.slice(from..to)).await;
                put.map_err(|error| self.failed("read", "broken-off", &error.to_string()))?;
                at = piece.offset + to as u64;
                last = Some(piece);
            }
        }
        Ok(())
    }

    async fn write(&self, _: &Draft, _: DeltaInfo, _: Box<dyn Chunks>) -> Result<Vec<u8>, PluginError> {
        self.read_only("write")
    }

    async fn commit(&self, _: &Draft, _: &[DiskReceipt]) -> Result<StoredPoint, PluginError> {
        self.read_only("commit")
    }

    async fn abort(&self, _: &Draft) -> Result<(), PluginError> {
        self.read_only("abort")
    }

    async fn verify(&self, _: &str) -> Result<Vec<Damage>, PluginError> {
        self.read_only("verify")
    }

    async fn hold(&self, _: &str, _: bool) -> Result<(), PluginError> {
        self.read_only("hold")
    }

    async fn delete(&self, _: &str) -> Result<(), PluginError> {
        self.read_only("delete")
    }

    async fn collect(&self, _: &[String], _: bool) -> Result<Vec<StoredGarbage>, PluginError> {
        self.read_only("collect")
    }
}

/// The error of a file that is written.
pub(crate) fn write_failed(path: &Path, error: &io::Error) -> RunError {
    RunError::Media(format!("{}: {error}", path.display()))
}
