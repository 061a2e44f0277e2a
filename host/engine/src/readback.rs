//! Reads a disk and says what it holds, leaf by leaf.

use crate::allocation::{MAX_VHD_DISK, Question};
use crate::error::{RunError, chain};
use crate::export::{self, NotBegun};
use crate::inventory::AttachedDisk;
use crate::job::Job;
use crate::progress::{DiskLabel, Progress};
use vmferry_disk::chunked::{Coverage, Plan};
use vmferry_disk::digest::Leaf;
use vmferry_disk::extent::Extents;
use vmferry_disk::nbd;
use vmferry_disk::transfer::{self, Layout, Options};
use vmferry_xapi::records::Vdi;
use vmferry_xapi::{Import, Ref, Session};

/// What was written to a disk that held something else before.
#[derive(Clone, Copy)]
pub(crate) struct Written<'a> {
    /// The disk that holds what was there before.
    pub(crate) onto: &'a Ref<Vdi>,
    pub(crate) extents: &'a Extents,
}

/// What was read.
#[derive(Default)]
pub(crate) struct Read {
    /// In a whole disk, the rest is zeroes.
    pub(crate) extents: Extents,
    /// Why more was read than had to be.
    pub(crate) note: Option<String>,
}

/// On whose behalf disks are read back.
#[derive(Clone, Copy)]
pub(crate) struct ReadBack<'a> {
    pub(crate) job: &'a Job,
    pub(crate) progress: &'a dyn Progress,
    /// Name of the VM, for the watcher.
    pub(crate) vm: &'a str,
}

impl ReadBack<'_> {
    /// Reads a disk, or with `written` what was written to it, and hands out the digest of every 64 KiB. `None` where the
    /// storage does not tell what differs.
    pub(crate) async fn read(
        &self,
        session: &Session,
        disk: &AttachedDisk,
        written: Option<Written<'_>>,
        leaves: &mut (dyn FnMut(u64, Leaf) + Send),
    ) -> Result<Option<Read>, RunError> {
        let label = DiskLabel {
            vm: self.vm.to_owned(),
            disk: disk.record.name_label.clone(),
            disk_uuid: disk.record.uuid.clone(),
            targets: Vec::new(),
        };
        let read = match disk.record.virtual_size > MAX_VHD_DISK {
            true => self.by_nbd(session, disk, written, &label, leaves).await.map(Some),
            false => {
                let base = written.map(|written| written.onto);
                let read = self.by_export(session, disk, base, &label, leaves).await;
                read.map(|extents| extents.map(|extents| Read { extents, note: None }))
            }
        };
        self.progress.disk_finished(&label, read.is_ok());
        read.map_err(|message| RunError::Transfer { disk: label.disk_uuid, message })
    }

    async fn by_export(
        &self,
        session: &Session,
        disk: &AttachedDisk,
        base: Option<&Ref<Vdi>>,
        label: &DiskLabel,
        leaves: &mut (dyn FnMut(u64, Leaf) + Send),
    ) -> Result<Option<Extents>, String> {
        let task = format!("vmferry {}: reading disk {} back", self.job.name, disk.record.name_label);
        let begun = export::begin(session, &disk.vdi, base, &task, self.job.tuning.first_byte).await;
        let (mut export, head) = match begun {
            Ok(begun) => begun,
            Err(NotBegun::NoDifferences(_)) => return Ok(None),
            Err(NotBegun::Failed(message)) => return Err(message),
        };
        self.progress.disk_started(label, head.stream_length());
        match self.hash(&mut export, Layout::Vhd(&head), label, leaves).await {
            Ok(()) => export.finish().await.map_err(|error| chain(&error))?,
            Err(why) => {
                export.abort().await;
                return Err(why);
            }
        }
        Ok(Some(Extents::of_vhd(&head)))
    }

    async fn by_nbd(
        &self,
        session: &Session,
        disk: &AttachedDisk,
        written: Option<Written<'_>>,
        label: &DiskLabel,
        leaves: &mut (dyn FnMut(u64, Leaf) + Send),
    ) -> Result<Read, String> {
        let size = disk.record.virtual_size;
        let (extents, note) = match written {
            Some(written) => (written.extents.to_leaves(size), None),
            None => self.allocated(session, disk).await,
        };
        let reading = &self.job.reading;
        let connections = session.nbd_clients(&disk.vdi, reading.connections).await.map_err(|error| chain(&error))?;
        let plan = Plan::new(size, extents.clone(), Coverage::Whole).map_err(|error| chain(&error))?;
        let source = nbd::Source::chunked(connections.clients, &plan, reading.pace);
        let mut source = source.map_err(|error| chain(&error))?;
        self.progress.disk_started(label, extents.total_bytes());
        self.hash(&mut source, Layout::Chunked(&plan), label, leaves).await?;
        Ok(Read { extents, note })
    }

    /// Where a disk has data; all of it where that is not known, and why.
    async fn allocated(&self, session: &Session, disk: &AttachedDisk) -> (Extents, Option<String>) {
        let (size, name) = (disk.record.virtual_size, &disk.record.name_label);
        let label = format!("vmferry {}: where does disk {name} have data?", self.job.name);
        let patience = self.job.tuning.first_byte;
        let question = Question { session, vdi: &disk.vdi, base: None, size, patience, label: &label };
        match question.ask().await {
            Ok(told) => (told, None),
            Err(why) => {
                let note = format!("all of disk {name} was read, since where it has data is not known: {why}");
                (Extents::whole_disk(size), Some(note))
            }
        }
    }

    async fn hash(
        &self,
        source: &mut (impl tokio::io::AsyncRead + Unpin),
        layout: Layout<'_>,
        label: &DiskLabel,
        leaves: &mut (dyn FnMut(u64, Leaf) + Send),
    ) -> Result<(), String> {
        let progress = Reads { progress: self.progress, label };
        let options = Options {
            leaves: Some(leaves),
            progress: &progress,
            throttles: &[],
            stall: self.job.tuning.stall,
            first_byte: self.job.tuning.first_byte,
        };
        let no_sink: &mut [Import] = &mut [];
        transfer::lockstep(source, layout, no_sink, options).await.map(drop).map_err(|error| chain(&error))
    }
}

/// Tells the watcher how much was read.
struct Reads<'a> {
    progress: &'a dyn Progress,
    label: &'a DiskLabel,
}

impl transfer::Progress for Reads<'_> {
    fn read(&self, bytes: u64) {
        self.progress.disk_advanced(self.label, bytes);
    }

    fn written(&self, _: usize, _: u64) {}
}
