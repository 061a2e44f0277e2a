//! How a disk is read, and in which encoding it travels: what is possible, what is chosen, and why not better.
//!
//! | Transfer | Read | Encoding |
//! | --- | --- | --- |
//! | delta, changed blocks known, NBD open | NBD, the changed 64 KiB | `chunked` or VHD, whichever is shorter |
//! | delta otherwise | VHD export against the base | VHD |
//! | delta, but the storage knows no differences | VHD export, compared with the base | `chunked`, only what differs |
//! | full | VHD export | VHD |
//! | resync | VHD export | `chunked`, only what differs |
//! | beyond VHD's 2 TiB: delta, changed blocks known | NBD, the changed 64 KiB | `chunked` |
//! | delta otherwise | NBD, the clusters that a qcow2 export against the base would hold | `chunked` |
//! | full | NBD, the clusters that a qcow2 export would hold | `chunked` without zeroes |
//! | resync | the same, and what the copy holds | `chunked`, only what differs |
//!
//! Where a host does not tell the clusters of a disk beyond 2 TiB, the whole disk is read.

use crate::allocation::{MAX_VHD_DISK, Question};
use crate::error::chain;
use crate::export::{self, NotBegun};
use crate::job::Nbd;
use crate::media;
use crate::plan::{SR_GRANULARITY, replica_size};
use crate::retrieving::Retrieving;
use crate::run::Run;
use crate::snapshot::TakenDisk;
use crate::transfer::{From, SourceFailed, blocking};
use crate::tried;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll};
use tokio::fs::File;
use tokio::io::{AsyncRead, ReadBuf};
use uuid::Uuid;
use vmferry_disk::chunked::{Coverage, Plan, Resync, chunked_bytes, vhd_bytes};
use vmferry_disk::chunks::Gaps;
use vmferry_disk::digest::{Leaf, Table};
use vmferry_disk::extent::Extents;
use vmferry_disk::transfer::{Layout, SocketCall, SocketReader};
use vmferry_disk::vhd::{BLOCK_SIZE, DiskType, Head, NewDisk, Writer};
use vmferry_disk::{cbt, nbd};
use vmferry_xapi::records::Vdi;
use vmferry_xapi::{Connection, Export, NbdClient, Ref, Session};

const UNTRACKED: &str = "changed-block tracking is off for the disk";

/// An open source, read as a stream of one encoding.
pub(crate) struct Source {
    pub(crate) reader: Reader,
    pub(crate) shape: Shape,
    /// Why a better way was not taken.
    pub(crate) notes: Vec<String>,
    /// Whether the disk is read whole and compared with its base, since the storage does not tell what differs from that.
    pub(crate) compared_with_base: bool,
    /// What it means that the stream leaves out something of the disk.
    pub(crate) gaps: Gaps,
    /// What was asked for, where the stream holds more than that: what others asked for.
    pub(crate) own: Option<Own>,
}

impl Source {
    /// A source that holds what was asked for and nothing else.
    pub(crate) fn new(reader: Reader, shape: Shape, notes: Vec<String>) -> Self {
        Self { reader, shape, notes, compared_with_base: false, gaps: Gaps::Refused, own: None }
    }

    /// The part of it for somebody who needs these ranges, or why it does not hold them.
    pub(crate) fn part(&self, needed: &Extents, grain: u64, framing: bool) -> Result<Own, String> {
        if self.compared_with_base {
            return Err("what other targets need is found by comparing with what they hold".to_owned());
        }
        let size = self.shape.layout().disk_size();
        let own = Own::new(size, needed.widened(grain, size), framing).map_err(|SourceFailed(why)| why)?;
        let is_there = self.gaps == Gaps::Zero || own.extents().without(&self.shape.extents()).is_empty();
        if is_there { Ok(own) } else { Err("what is read for other targets does not hold all of it".to_owned()) }
    }
}

/// A stream that is laid out here.
pub(crate) enum Own {
    Chunked(Plan),
    Vhd(Writer),
}

impl Own {
    /// The shorter one of these ranges of a disk; without the `chunked` framing VHD.
    pub(crate) fn new(size: u64, extents: Extents, framing: bool) -> Result<Self, SourceFailed> {
        let vhd = vhd_bytes(size, &extents);
        if framing && vhd.is_none_or(|vhd| chunked_bytes(&extents) <= vhd) {
            return Ok(Self::Chunked(Plan::new(size, extents, Coverage::Whole)?));
        }
        let blocks = extents.to_vhd_blocks(size);
        let used: Vec<u32> =
            blocks.split(BLOCK_SIZE).map(|block| (block.offset / u64::from(BLOCK_SIZE)) as u32).collect();
        let disk = NewDisk { virtual_size: size, unique_id: Uuid::new_v4(), creator: *b"tap\0", parent: None };
        Ok(Self::Vhd(Writer::new(&disk, &used)?))
    }

    /// What it holds of the disk.
    pub(crate) fn extents(&self) -> Extents {
        match self {
            Self::Chunked(plan) => plan.extents().clone(),
            Self::Vhd(writer) => Extents::of_vhd(writer.head()),
        }
    }

    pub(crate) fn shape(&self) -> Shape {
        match self {
            Self::Chunked(plan) => Shape::Chunked(plan.clone()),
            Self::Vhd(writer) => Shape::Vhd(Box::new(writer.head().clone())),
        }
    }
}

/// The encoding of a stream, and what it has to hold.
pub(crate) enum Shape {
    Vhd(Box<Head>),
    Chunked(Plan),
}

impl Shape {
    pub(crate) fn layout(&self) -> Layout<'_> {
        match self {
            Self::Vhd(head) => Layout::Vhd(head),
            Self::Chunked(plan) => Layout::Chunked(plan),
        }
    }

    /// Bytes that will be read, as far as it is known: what is left out of a `chunked` stream counts as if it came.
    pub(crate) fn expected_bytes(&self) -> u64 {
        match self {
            Self::Vhd(head) => head.stream_length(),
            Self::Chunked(plan) => chunked_bytes(plan.extents()),
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Vhd(_) => "vhd",
            Self::Chunked(_) => "chunked",
        }
    }

    /// What it may set of the disk.
    fn extents(&self) -> Extents {
        match self {
            Self::Vhd(head) => Extents::of_vhd(head),
            Self::Chunked(plan) => plan.extents().clone(),
        }
    }
}

/// Whether a target takes the `chunked` framing, which is known from XAPI's source alone until a host has shown it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chunked {
    /// A host of this version wrote what it was sent.
    Proven,
    /// Nobody tried it yet: what is written has to be read back before it counts.
    Untried,
    /// It cannot be tried here, or a host of this version wrote something else.
    Unusable(&'static str),
}

/// What is asked of [`open`].
pub(crate) struct Opening<'a> {
    pub(crate) run: &'a Run<'a>,
    pub(crate) source: &'a Session,
    pub(crate) disk: &'a TakenDisk,
    pub(crate) from: &'a From,
    pub(crate) chunked: Chunked,
    /// The least that is read in one piece, in bytes: as large as the chunks of the stores that take part.
    pub(crate) grain: u64,
    /// What others need, if it can be read together with this.
    pub(crate) also: &'a Extents,
    /// What the pool shows as the name of an export's task.
    pub(crate) label: &'a str,
}

/// Opens a disk in the best way that there is.
pub(crate) async fn open(this: &Opening<'_>) -> Result<Source, SourceFailed> {
    let mut notes = Vec::new();
    let framing = this.framing(&mut notes);
    if matches!(this.from, From::Copy(_)) && !framing {
        return Err(this.failed(format!("what differs cannot be sent alone; {}", notes.join("; "))));
    }
    if let Some(extents) = this.to_read_by_nbd(&mut notes).await? {
        match this.connect(&mut notes).await {
            Ok(clients) => {
                let own = Own::new(this.size(), extents.widened(this.grain, this.size()), framing)?;
                return this.by_nbd(clients, own, notes).await;
            }
            Err(why) if this.is_beyond_vhd() => {
                return Err(this.failed(format!("it is larger than the {MAX_VHD_DISK} bytes of a VHD, and {why}")));
            }
            Err(why) => notes.push(why),
        }
    }
    let begun = match this.from {
        From::Base { snapshot, table } => match this.export(Some(snapshot)).await {
            Err(NotBegun::NoDifferences(why)) => {
                tried::no_differences_told(this.run, &this.disk.of, &why).await;
                let table = table.as_deref().filter(|_| framing).ok_or_else(|| {
                    this.failed(format!("{why}; what it holds cannot be compared either, so the next run copies it"))
                })?;
                notes.push(format!("{why}; it was read whole and compared"));
                let (reader, shape) = this.compared(table).await?;
                return Ok(Source { compared_with_base: true, ..Source::new(reader, shape, notes) });
            }
            begun => begun,
        },
        From::Copy(table) => {
            let (reader, shape) = this.compared(table).await?;
            return Ok(Source::new(reader, shape, notes));
        }
        From::Nothing => this.export(None).await,
    };
    let (export, head) = begun.map_err(|failed| SourceFailed(failed.into_message()))?;
    let (reader, shape) = (Reader::Plain(Plain::Export(export)), Shape::Vhd(Box::new(head)));
    Ok(Source { gaps: this.gaps(), ..Source::new(reader, shape, notes) })
}

/// Opens an export that media carry, of a disk of `size` bytes.
pub(crate) async fn open_file(path: &Path, size: u64) -> Result<Source, SourceFailed> {
    let failed = |why: String| SourceFailed(format!("{}: {why}; {}", path.display(), media::AGAIN));
    let mut file = File::open(path).await.map_err(|error| failed(error.to_string()))?;
    let head = Head::read(&mut file).await.map_err(|error| failed(chain(&error)))?;
    if head.disk_type() != DiskType::Dynamic || ![size, replica_size(size)].contains(&head.virtual_size()) {
        let found = head.virtual_size();
        return Err(failed(format!("it is no whole disk of {size} bytes, but {:?} of {found}", head.disk_type())));
    }
    let (reader, shape) = (Reader::Plain(Plain::File(file)), Shape::Vhd(Box::new(head)));
    Ok(Source::new(reader, shape, Vec::new()))
}

impl Opening<'_> {
    pub(crate) fn size(&self) -> u64 {
        self.disk.of.record.virtual_size
    }

    fn is_beyond_vhd(&self) -> bool {
        self.size() > MAX_VHD_DISK
    }

    /// Whether the `chunked` framing is used.
    pub(crate) fn framing(&self, notes: &mut Vec<String>) -> bool {
        match self.chunked {
            Chunked::Proven | Chunked::Untried => true,
            Chunked::Unusable(why) => {
                notes.push(format!("the chunked framing is not used: {why}"));
                false
            }
        }
    }

    /// What a stream from here leaves out is zero, unless it is a difference.
    fn gaps(&self) -> Gaps {
        if matches!(self.from, From::Nothing) { Gaps::Zero } else { Gaps::Refused }
    }

    fn failed(&self, why: String) -> SourceFailed {
        SourceFailed(format!("disk {} ({} bytes): {why}", self.disk.of.record.name_label, self.size()))
    }

    /// What is to be read by NBD; `None` where an export is the better way, or the only one.
    async fn to_read_by_nbd(&self, notes: &mut Vec<String>) -> Result<Option<Extents>, SourceFailed> {
        if self.is_beyond_vhd() {
            return self.to_read_beyond_vhd(notes).await.map(Some);
        }
        let mode = self.run.job.reading.nbd;
        match (mode, self.from) {
            // A copy has to be compared where the source has nothing as well; an export says where that is.
            (Nbd::Never, _) | (Nbd::Auto, From::Nothing) | (_, From::Copy(_)) => return Ok(None),
            (Nbd::Auto, From::Base { .. }) if !self.disk.cbt_enabled => {
                notes.push(format!("{UNTRACKED}, so blocks of 2 MiB travel"));
                return Ok(None);
            }
            (Nbd::Auto, From::Base { .. }) | (Nbd::Always, From::Base { .. } | From::Nothing) => {}
        }
        if !self.size().is_multiple_of(SR_GRANULARITY) {
            // Digests are those of the rounded disk, which an export gives and NBD does not.
            notes.push("its size is no multiple of 2 MiB, so it is exported".to_owned());
            return Ok(None);
        }
        if let Some(why) = tried::nbd_is_left_alone(self.run, &self.disk.of).await {
            notes.push(why);
            return Ok(None);
        }
        if let From::Base { snapshot, .. } = self.from {
            match self.changed(snapshot).await {
                Ok(extents) => return Ok(Some(extents)),
                Err(why) => notes.push(format!("{why}, so blocks of 2 MiB travel")),
            }
        }
        match mode {
            Nbd::Auto | Nbd::Never => Ok(None),
            Nbd::Always => self.used_blocks().await,
        }
    }

    /// What is to be read of a disk that no VHD can hold.
    async fn to_read_beyond_vhd(&self, notes: &mut Vec<String>) -> Result<Extents, SourceFailed> {
        let base = match self.from {
            From::Base { snapshot, .. } => Some(snapshot),
            From::Nothing | From::Copy(_) => None,
        };
        if let Some(base) = base {
            match self.changed(base).await {
                Ok(extents) => return Ok(extents),
                Err(why) => notes.push(format!("{why}, so the host is asked which clusters differ")),
            }
        }
        let question = Question {
            session: self.source,
            vdi: &self.disk.vdi,
            base,
            size: self.size(),
            patience: self.run.job.tuning.first_byte,
            label: self.label,
        };
        let told = match question.ask().await {
            Ok(told) => told,
            Err(why) => {
                notes.push(format!("the whole disk is read, since where it has data is not known: {why}"));
                return Ok(Extents::whole_disk(self.size()));
            }
        };
        let From::Copy(table) = self.from else { return Ok(told) };
        // What is zeroes here and something else there has to be compared as well.
        let table = table.clone();
        let held = blocking(move || Table::open(table)?.data_extents()).await?;
        Ok(told.union(&held.clipped(self.size())))
    }

    /// What has to be sent onto a base, found out without a read of the data; or why that cannot be known.
    pub(crate) async fn needed(&self, notes: &mut Vec<String>) -> Result<Extents, String> {
        let From::Base { snapshot, .. } = self.from else { return Err("it does not start from a base".to_owned()) };
        if self.is_beyond_vhd() {
            return self.to_read_beyond_vhd(notes).await.map_err(|SourceFailed(why)| why);
        }
        match self.changed(snapshot).await {
            Ok(extents) => return Ok(extents),
            Err(why) => notes.push(format!("{why}, so blocks of 2 MiB travel")),
        }
        let (export, head) = self.export(Some(snapshot)).await.map_err(NotBegun::into_message)?;
        export.abort().await;
        Ok(Extents::of_vhd(&head))
    }

    /// What changed since `base`, in 64 KiB, or why that is not known.
    async fn changed(&self, base: &Ref<Vdi>) -> Result<Extents, String> {
        if !self.disk.cbt_enabled {
            return Err(UNTRACKED.to_owned());
        }
        let unknown = |why: &dyn std::error::Error| format!("what changed is not known in 64 KiB: {}", chain(why));
        let bitmap = self.source.list_changed_blocks(base, &self.disk.vdi).await.map_err(|error| unknown(&error))?;
        cbt::changed_extents(&bitmap, self.size()).map_err(|error| unknown(&error))
    }

    /// The blocks that an export would hold: its head says so, and the rest is not read. `None` where there are no
    /// differences to export.
    async fn used_blocks(&self) -> Result<Option<Extents>, SourceFailed> {
        let base = match self.from {
            From::Base { snapshot, .. } => Some(snapshot),
            From::Nothing | From::Copy(_) => None,
        };
        match self.export(base).await {
            Ok((export, head)) => {
                export.abort().await;
                Ok(Some(Extents::of_vhd(&head)))
            }
            Err(NotBegun::NoDifferences(_)) => Ok(None),
            Err(NotBegun::Failed(message)) => Err(SourceFailed(message)),
        }
    }

    async fn connect(&self, notes: &mut Vec<String>) -> Result<Vec<NbdClient>, String> {
        let connections = self.source.nbd_clients(&self.disk.vdi, self.run.job.reading.connections).await;
        let connections = connections.map_err(|error| chain(&error))?;
        if !connections.encrypted {
            notes.push("read by NBD without TLS, as the purpose of the pool's network says".to_owned());
        }
        if let Some(failure) = connections.fewer {
            notes.push(format!("only {} NBD connections: {failure}", connections.clients.len()));
        }
        Ok(connections.clients)
    }

    /// What was asked for, and with it what others need, where that is not zero anyway.
    async fn by_nbd(&self, clients: Vec<NbdClient>, own: Own, notes: Vec<String>) -> Result<Source, SourceFailed> {
        let pace = self.run.job.reading.pace;
        if let (From::Base { .. }, false) = (self.from, self.also.is_empty()) {
            let plan = Plan::new(self.size(), own.extents().union(self.also), Coverage::Whole)?;
            let reader = Reader::Plain(Plain::Nbd(nbd::Source::chunked(clients, &plan, pace)?));
            let own = match own {
                Own::Chunked(own) if own == plan => None,
                own => Some(own),
            };
            return Ok(Source { own, ..Source::new(reader, Shape::Chunked(plan), notes) });
        }
        let (reader, shape) = match own {
            Own::Chunked(plan) => {
                let source = Plain::Nbd(nbd::Source::chunked(clients, &plan, pace)?);
                let held: Held = match self.from {
                    From::Base { .. } => {
                        return Ok(Source::new(Reader::Plain(source), Shape::Chunked(plan), notes));
                    }
                    From::Nothing => Box::new(|_| Some(Leaf::ZERO)),
                    From::Copy(table) => held_by(table)?,
                };
                let reader = Resync::of_chunked(source, &plan, held).in_grains(self.grain);
                let reader = reader.throttled(&self.run.job.throttles);
                let plan = reader.plan().clone();
                (Reader::Compared(reader), Shape::Chunked(plan))
            }
            Own::Vhd(writer) => {
                let mut source = nbd::Source::vhd(clients, &writer, pace)?;
                let head = Head::read(&mut source).await?;
                (Reader::Plain(Plain::Nbd(source)), Shape::Vhd(Box::new(head)))
            }
        };
        Ok(Source { gaps: self.gaps(), ..Source::new(reader, shape, notes) })
    }

    /// The whole disk, compared with what `table` says.
    async fn compared(&self, table: &Path) -> Result<(Reader, Shape), SourceFailed> {
        let (export, head) = self.export(None).await.map_err(|failed| SourceFailed(failed.into_message()))?;
        let reader = Resync::of_vhd(Plain::Export(export), &head, held_by(table)?)?.in_grains(self.grain);
        let reader = reader.throttled(&self.run.job.throttles);
        let plan = reader.plan().clone();
        Ok((Reader::Compared(reader), Shape::Chunked(plan)))
    }

    /// Begins an export and checks that it is the stream that was asked for. Whether it is a difference stands in the
    /// footer; against which disk does not, so that is kept on our side alone.
    async fn export(&self, base: Option<&Ref<Vdi>>) -> Result<(Export, Head), NotBegun> {
        let patience = self.run.job.tuning.first_byte;
        let (export, head) = export::begin(self.source, &self.disk.vdi, base, self.label, patience).await?;
        let (size, sent) = (self.size(), head.virtual_size());
        let wanted = if base.is_some() { DiskType::Differencing } else { DiskType::Dynamic };
        let wrong = if sent != size && sent != replica_size(size) {
            format!("the disk has {size} bytes, the source sends one of {sent}")
        } else if head.disk_type() != wanted {
            format!("asked for a {wanted:?} stream, the source sends a {:?} one", head.disk_type())
        } else {
            return Ok((export, head));
        };
        export.abort().await;
        Err(NotBegun::Failed(wrong))
    }
}

/// What a target holds, leaf by leaf; `None` where it is not known.
type Held = Box<dyn FnMut(u64) -> Option<Leaf> + Send + Sync>;

fn held_by(table: &Path) -> Result<Held, SourceFailed> {
    let table = Table::open(table)?;
    Ok(Box::new(move |leaf| table.leaf(leaf).ok()))
}

/// A source as the transfer reads it.
#[expect(clippy::large_enum_variant, reason = "there is one of it for each transfer")]
pub(crate) enum Reader {
    /// As it comes.
    Plain(Plain),
    /// Without what the target holds already. It keeps to the job's limits by itself, since most of what it reads is not sent.
    Compared(Resync<Plain, Held>),
}

/// A source as XAPI gives it.
pub(crate) enum Plain {
    Export(Export),
    Nbd(nbd::Source<Connection>),
    /// An export that media carry.
    File(File),
    /// A point of a store.
    Store(Retrieving),
}

impl Reader {
    /// `export`, `nbd`, `file` or `store`, as reports name it.
    pub(crate) fn name(&self) -> &'static str {
        match self.plain() {
            Plain::Export(_) => "export",
            Plain::Nbd(_) => "nbd",
            Plain::File(_) => "file",
            Plain::Store(_) => "store",
        }
    }

    /// What keeps it from counting as stalled while it compares.
    pub(crate) fn work(&self) -> Option<Arc<AtomicU64>> {
        match self {
            Self::Plain(_) => None,
            Self::Compared(compared) => Some(compared.work()),
        }
    }

    /// Bytes of disk that were compared and not sent.
    pub(crate) fn left_out(&self) -> u64 {
        match self {
            Self::Plain(_) => 0,
            Self::Compared(compared) => compared.counts().compared_bytes - compared.counts().sent_bytes,
        }
    }

    /// Confirms a source that was read to its end.
    pub(crate) async fn finish(self) -> Result<(), SourceFailed> {
        match self.into_plain() {
            Plain::Export(export) => Ok(export.finish().await?),
            Plain::Nbd(source) => {
                // Everything asked for has come; how the goodbye goes does not matter.
                for client in source.into_clients() {
                    let _ = client.disconnect().await;
                }
                Ok(())
            }
            Plain::File(_) => Ok(()),
            Plain::Store(retrieving) => retrieving.finish().await,
        }
    }

    /// Ends a source that is not wanted any more.
    pub(crate) async fn abort(self) {
        match self.into_plain() {
            Plain::Export(export) => export.abort().await,
            Plain::Store(retrieving) => retrieving.abort().await,
            Plain::Nbd(_) | Plain::File(_) => {}
        }
    }

    /// Ends a source that broke. `ended`: the stream came to an end, rather than that its bytes are wrong.
    pub(crate) async fn explain(self, ended: bool, message: String) -> SourceFailed {
        self.into_plain().explain(ended, message).await
    }

    fn plain(&self) -> &Plain {
        match self {
            Self::Plain(plain) => plain,
            Self::Compared(compared) => compared.source(),
        }
    }

    fn into_plain(self) -> Plain {
        match self {
            Self::Plain(plain) => plain,
            Self::Compared(compared) => compared.into_source(),
        }
    }
}

impl Plain {
    /// Why an export ended early, XAPI tells in its task alone; of bytes that are wrong it knows nothing.
    async fn explain(self, ended: bool, message: String) -> SourceFailed {
        let export = match self {
            Self::Export(export) => export,
            Self::Store(retrieving) => return retrieving.explain(message).await,
            Self::Nbd(_) | Self::File(_) => return SourceFailed(message),
        };
        if !ended {
            export.abort().await;
            return SourceFailed(message);
        }
        match export.finish().await {
            Err(cause) => SourceFailed(format!("{message}: {}", chain(&cause))),
            Ok(()) => SourceFailed(message),
        }
    }
}

impl AsyncRead for Plain {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Export(export) => Pin::new(export).poll_read(cx, buf),
            Self::Nbd(source) => Pin::new(source).poll_read(cx, buf),
            Self::File(file) => Pin::new(file).poll_read(cx, buf),
            Self::Store(retrieving) => Pin::new(retrieving).poll_read(cx, buf),
        }
    }
}

impl AsyncRead for Reader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(plain) => Pin::new(plain).poll_read(cx, buf),
            Self::Compared(compared) => Pin::new(compared).poll_read(cx, buf),
        }
    }
}

impl SocketReader for Reader {
    fn lends_socket(&self) -> bool {
        matches!(self, Self::Plain(Plain::Export(export)) if export.lends_socket())
    }

    fn read_ahead(&self) -> usize {
        match self {
            Self::Plain(Plain::Export(export)) => export.read_ahead(),
            _ => 0,
        }
    }

    fn poll_read_call(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        call: &mut SocketCall<'_>,
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(Plain::Export(export)) => Pin::new(export).poll_read_call(cx, call),
            _ => Poll::Ready(Err(io::ErrorKind::Unsupported.into())),
        }
    }
}
