//! Moves one disk: one read of the source for all targets that share a base, proven at both ends.

use crate::error::{RunError, chain};
use crate::inventory::AttachedDisk;
use crate::lane::LaneId;
use crate::progress::{DiskLabel, Progress};
use crate::run::Run;
use crate::snapshot::TakenDisk;
use crate::source::{self, Chunked, Opening, Reader, Shape};
use crate::storing::{ImageFormat, Storing};
use crate::tried;
use futures_util::FutureExt;
use futures_util::future::join_all;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::fs::File;
use tokio::io::AsyncWrite;
use tokio::task::JoinSet;
use vmferry_disk::digest::{DraftTable, Leaf, Root};
use vmferry_disk::extent::Extents;
use vmferry_disk::transfer::{
    self, EngineName, Options, SinkOutcome, SocketCall, SocketWriter, Throttle, TransferError,
};
use vmferry_model::target::{DeltaInfo, Draft, PointStore};
use vmferry_xapi::records::Vdi;
use vmferry_xapi::{Import, Ref, Session};

/// Where one target wants the stream of a disk.
pub(crate) struct Destination {
    /// Which of the run's lanes it belongs to.
    pub(crate) lane: LaneId,
    pub(crate) place: Place,
    pub(crate) throttles: Vec<Arc<Throttle>>,
}

/// What takes a stream.
pub(crate) enum Place {
    /// A disk of a target.
    Disk { session: Session, vdi: Ref<Vdi> },
    /// A file on media, made new; it takes VHD alone.
    File(PathBuf),
    /// A new image file of a disk.
    Image { path: PathBuf, format: ImageFormat, size: u64 },
    /// A disk of a store's draft.
    Store { store: Arc<dyn PointStore>, draft: Draft, info: DeltaInfo },
}

/// What the targets of a stream hold already.
pub(crate) enum From {
    /// Nothing: the landing is a new disk.
    Nothing,
    /// The content of a snapshot disk of the source.
    Base {
        snapshot: Ref<Vdi>,
        /// The table of its digests, where that is known.
        table: Option<PathBuf>,
    },
    /// Something whose digests are in this table.
    Copy(PathBuf),
}

/// One read of a disk, and everybody who wants it.
pub(crate) struct Stream<'a> {
    pub(crate) source: &'a Session,
    pub(crate) disk: &'a TakenDisk,
    pub(crate) from: From,
    pub(crate) destinations: Vec<Destination>,
    /// The digest table to fill, when digests can be known.
    pub(crate) table: Option<DraftTable>,
    /// Whether all destinations take the `chunked` framing.
    pub(crate) chunked: Chunked,
    /// The least that is read in one piece, in bytes.
    pub(crate) grain: u64,
    pub(crate) label: DiskLabel,
}

/// Where a source goes.
pub(crate) struct Feed<'a> {
    /// The disk that is read, or was.
    pub(crate) disk: &'a AttachedDisk,
    pub(crate) destinations: Vec<Destination>,
    /// The digest table to fill, when digests can be known.
    pub(crate) table: Option<DraftTable>,
    /// What the digests have to come to, where that is known.
    pub(crate) wanted: Option<Root>,
    pub(crate) label: DiskLabel,
}

/// What became of a stream.
pub(crate) struct Moved {
    pub(crate) facts: StreamFacts,
    /// By lane: what was sent, or what went wrong there.
    pub(crate) lanes: Vec<(LaneId, Result<Sent, RunError>)>,
}

/// What a place took.
pub(crate) struct Sent {
    /// Bytes of the stream.
    pub(crate) bytes: u64,
    /// How they moved.
    pub(crate) engine: EngineName,
    /// What a store wants to be told at its commit.
    pub(crate) receipt: Option<Vec<u8>>,
}

/// What the reports of all its targets share.
pub(crate) struct StreamFacts {
    /// `export`, `nbd` or `file`.
    pub(crate) source: &'static str,
    /// `vhd` or `chunked`.
    pub(crate) encoding: &'static str,
    pub(crate) notes: Vec<String>,
    /// Whether it was a delta by its plan, and was compared with its base instead.
    pub(crate) compared_with_base: bool,
    pub(crate) bytes_read: u64,
    pub(crate) changed_bytes: u64,
    pub(crate) digest: Option<Root>,
    /// What a `chunked` stream was planned to set; `None` when some of it was left out, or for VHD.
    pub(crate) extents: Option<Extents>,
    pub(crate) elapsed: Duration,
}

/// The source side failed, and nobody got anything whole: what happened, for each target that waited for it.
#[derive(Debug)]
pub(crate) struct SourceFailed(pub(crate) String);

impl<E: std::error::Error> std::convert::From<E> for SourceFailed {
    fn from(error: E) -> Self {
        Self(chain(&error))
    }
}

/// Moves the stream. A target's own failure is told in [`Moved::lanes`].
pub(crate) async fn carry(run: &Run<'_>, stream: Stream<'_>) -> Result<Moved, SourceFailed> {
    let started = Instant::now();
    let label = format!("vmferry {}: exporting disk {}", run.job.name, stream.label.disk);
    let opening = Opening {
        run,
        source: stream.source,
        disk: stream.disk,
        from: &stream.from,
        chunked: stream.chunked,
        grain: stream.grain,
        label: &label,
    };
    let source = source::open(&opening).await?;
    let Stream { disk, destinations, table, label, .. } = stream;
    pour(run, source, Feed { disk: &disk.of, destinations, table, wanted: None, label }, started).await
}

/// Moves what an open source gives.
pub(crate) async fn pour(
    run: &Run<'_>,
    source: source::Source,
    stream: Feed<'_>,
    started: Instant,
) -> Result<Moved, SourceFailed> {
    let what = &stream.label.disk_uuid;
    let source::Source { mut reader, shape, mut notes, compared_with_base } = source;
    let mut facts = StreamFacts {
        source: reader.name(),
        encoding: shape.name(),
        notes: Vec::new(),
        compared_with_base,
        bytes_read: 0,
        changed_bytes: 0,
        digest: None,
        extents: None,
        elapsed: Duration::ZERO,
    };

    run.progress.disk_started(&stream.label, shape.expected_bytes());
    let opened = open_sinks(run, &stream, &shape).await;
    let (mut lanes, mut imports): (Vec<LaneId>, Vec<Sink>) = (Vec::new(), Vec::new());
    let mut results = Vec::new();
    for (lane, import) in opened {
        match import {
            Ok(import) => {
                lanes.push(lane);
                imports.push(import);
            }
            Err(error) => results.push((lane, Err(error))),
        }
    }
    if imports.is_empty() {
        reader.abort().await;
        run.progress.disk_finished(&stream.label, false);
        return Ok(Moved { facts, lanes: results });
    }

    let hashing = run.job.integrity == crate::Integrity::Digest;
    let meter = Meter::new(Arc::clone(run.progress), stream.label.clone(), imports.len(), reader.work());
    let links = stream.destinations.iter().filter(|to| lanes.contains(&to.lane)).flat_map(|to| &to.throttles);
    // The job's limits are on what is read, those of links on what is sent.
    let job = if matches!(reader, Reader::Compared(_)) { &[][..] } else { &run.job.throttles };
    let throttles: Vec<Arc<Throttle>> = job.iter().chain(links).cloned().collect();
    let (stall, first_byte) = (run.job.tuning.stall, run.job.tuning.first_byte);
    let mut table = stream.table;
    // A task of its own: the disks of a run flow on as many cores as there are, and a wake-up stays on the thread that
    // got it.
    let flowing = async move {
        let mut record = |leaf: u64, digest: Leaf| {
            if let Some(table) = &mut table {
                table.set(leaf, digest);
            }
        };
        let leaves: Option<&mut (dyn FnMut(u64, Leaf) + Send)> = if hashing { Some(&mut record) } else { None };
        let options = Options { leaves, progress: &meter, throttles: &throttles, stall, first_byte };
        let outcome = transfer::relay(&mut reader, shape.layout(), &mut imports, options).await;
        (reader, shape, imports, table, outcome)
    };
    let (reader, shape, imports, table, outcome) = beside(flowing).await;
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(TransferError::NoSinkLeft { sinks, .. }) => {
            reader.abort().await;
            for ((lane, import), sink) in lanes.into_iter().zip(imports).zip(sinks) {
                results.push((lane, conclude(import, EngineName::Lockstep, sink, what).await));
            }
            run.progress.disk_finished(&stream.label, false);
            return Ok(Moved { facts, lanes: results });
        }
        Err(error) => {
            join_all(imports.into_iter().map(Sink::abort)).await;
            run.progress.disk_finished(&stream.label, false);
            let ended = matches!(error, TransferError::Source { .. } | TransferError::Truncated { .. });
            let broke_off = ended || matches!(error, TransferError::SourceStalled { .. });
            let by_nbd = reader.name() == "nbd";
            let SourceFailed(message) = reader.explain(ended, chain(&error)).await;
            if by_nbd && broke_off {
                tried::nbd_broke_off(run, stream.disk, &message).await;
            }
            let how = if notes.is_empty() { String::new() } else { format!(" ({})", notes.join("; ")) };
            return Err(SourceFailed(message + &how));
        }
    };
    let engine = outcome.engine;
    let concluded = lanes
        .into_iter()
        .zip(imports)
        .zip(outcome.sinks)
        .map(|((lane, import), sink)| async move { (lane, conclude(import, engine, sink, what).await) }.boxed());
    results.extend(join_all(concluded).await);
    let left_out = reader.left_out();
    let finished = reader.finish().await;
    run.progress.disk_finished(&stream.label, finished.is_ok());
    finished?;

    if let (false, Some(why)) = (hashing, &outcome.not_spliced) {
        notes.push(format!("not spliced: {why}"));
    }
    facts.digest = match table {
        Some(table) => {
            let wanted = stream.wanted;
            Some(blocking(move || commit_table(table, wanted)).await?)
        }
        None => None,
    };
    facts.notes = notes;
    // What was compared and left out was read as well.
    facts.bytes_read = outcome.bytes_read + left_out;
    facts.changed_bytes = outcome.content.data_bytes();
    facts.extents = match shape {
        Shape::Chunked(plan) if left_out == 0 => Some(plan.extents().clone()),
        _ => None,
    };
    facts.elapsed = started.elapsed();
    Ok(Moved { facts, lanes: results })
}

/// Keeps a table, if it comes to what is wanted.
fn commit_table(mut table: DraftTable, wanted: Option<Root>) -> Result<Root, SourceFailed> {
    if let Some(wanted) = wanted {
        let found = table.root()?;
        if found != wanted {
            return Err(SourceFailed(format!("what was read has the digest {found}, not {wanted}, which was sent")));
        }
    }
    Ok(table.commit()?)
}

async fn open_sinks(run: &Run<'_>, stream: &Feed<'_>, shape: &Shape) -> Vec<(LaneId, Result<Sink, RunError>)> {
    let label = format!("vmferry {}: importing disk {}", run.job.name, stream.label.disk);
    let open = stream.destinations.iter().map(|to| {
        let label = &label;
        async move { (to.lane, to.place.open(shape, label).await) }.boxed()
    });
    join_all(open).await
}

/// Ends one import. XAPI's 200 said nothing; what counts is that it took every byte and that its task succeeded.
async fn conclude(import: Sink, engine: EngineName, sink: SinkOutcome, disk: &str) -> Result<Sent, RunError> {
    let engine = if matches!(import, Sink::Store(_)) { EngineName::Pooled } else { engine };
    match sink.result {
        Ok(()) => import.finish().await.map(|receipt| Sent { bytes: sink.bytes_written, engine, receipt }),
        Err(error) => {
            let cause = import.finish().await.err().map(|cause| format!(": {}", chain(&cause))).unwrap_or_default();
            Err(RunError::Transfer { disk: disk.to_owned(), message: format!("{}{cause}", chain(&error)) })
        }
    }
}

impl Place {
    async fn open(&self, shape: &Shape, label: &str) -> Result<Sink, RunError> {
        Ok(match (self, shape) {
            (Self::Disk { session, vdi }, Shape::Vhd(head)) => {
                Sink::Disk(session.import_vdi(vdi, head.stream_length(), label).await?)
            }
            (Self::Disk { session, vdi }, Shape::Chunked(_)) => Sink::Disk(session.import_chunked(vdi, label).await?),
            (Self::File(path), _) => {
                let file = File::create(path).await.map_err(|error| file_failed(path, &error))?;
                Sink::File(path.clone(), file)
            }
            (Self::Image { path, format, size }, _) => {
                Sink::Store(Storing::into_file(path, *format, &path.display().to_string(), *size, shape)?)
            }
            (Self::Store { store, draft, info }, _) => Sink::Store(Storing::begin(store, draft, info, shape)?),
        })
    }
}

fn file_failed(path: &Path, error: &io::Error) -> RunError {
    RunError::Media(format!("{}: {error}", path.display()))
}

/// A place that is being written to.
enum Sink {
    Disk(Import),
    File(PathBuf, File),
    Store(Storing),
}

impl Sink {
    /// Confirms what was written whole. A file is on the media then, and a store gives its receipt.
    async fn finish(self) -> Result<Option<Vec<u8>>, RunError> {
        match self {
            Self::Disk(import) => Ok(import.finish().await.map(|()| None)?),
            Self::File(path, file) => file.sync_all().await.map(|()| None).map_err(|error| file_failed(&path, &error)),
            Self::Store(storing) => storing.finish().await.map(Some),
        }
    }

    async fn abort(self) {
        match self {
            Self::Disk(import) => import.abort().await,
            Self::File(..) => {}
            Self::Store(storing) => storing.abort().await,
        }
    }
}

impl AsyncWrite for Sink {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Disk(import) => Pin::new(import).poll_write(cx, bytes),
            Self::File(_, file) => Pin::new(file).poll_write(cx, bytes),
            Self::Store(storing) => Pin::new(&mut storing.sink).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Disk(import) => Pin::new(import).poll_flush(cx),
            Self::File(_, file) => Pin::new(file).poll_flush(cx),
            Self::Store(storing) => Pin::new(&mut storing.sink).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Disk(import) => Pin::new(import).poll_shutdown(cx),
            Self::File(_, file) => Pin::new(file).poll_shutdown(cx),
            Self::Store(storing) => Pin::new(&mut storing.sink).poll_shutdown(cx),
        }
    }
}

impl SocketWriter for Sink {
    fn lends_socket(&self) -> bool {
        matches!(self, Self::Disk(import) if import.lends_socket())
    }

    fn poll_write_call(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        call: &mut SocketCall<'_>,
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Disk(import) => Pin::new(import).poll_write_call(cx, call),
            Self::File(..) | Self::Store(_) => Poll::Ready(Err(io::ErrorKind::Unsupported.into())),
        }
    }
}

/// Runs a future as a task of its own, which ends where this is dropped.
async fn beside<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    let mut task = JoinSet::new();
    task.spawn(work);
    joined(&mut task).await
}

/// What the only task of a set comes to.
pub(crate) async fn joined<T: 'static>(task: &mut JoinSet<T>) -> T {
    match task.join_next().await {
        Some(Ok(done)) => done,
        Some(Err(panicked)) => std::panic::resume_unwind(panicked.into_panic()),
        None => std::future::pending().await,
    }
}

/// Runs work that reads or writes a whole digest table (256 MiB for a disk of 1 TiB) beside the streams.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

/// Tells the watcher how far the stream got.
struct Meter {
    progress: Arc<dyn Progress>,
    label: DiskLabel,
    written: Vec<AtomicU64>,
    told: AtomicU64,
    work: Option<Arc<AtomicU64>>,
}

impl Meter {
    fn new(progress: Arc<dyn Progress>, label: DiskLabel, sinks: usize, work: Option<Arc<AtomicU64>>) -> Self {
        let written = (0..sinks).map(|_| AtomicU64::new(0)).collect();
        Self { progress, label, written, told: AtomicU64::new(0), work }
    }
}

impl transfer::Progress for Meter {
    fn read(&self, _: u64) {}

    fn work(&self) -> u64 {
        self.work.as_ref().map_or(0, |work| work.load(Ordering::Relaxed))
    }

    /// A dead sink stays behind, so the foremost one is what is told.
    fn written(&self, sink: usize, bytes: u64) {
        let now = self.written[sink].fetch_add(bytes, Ordering::Relaxed) + bytes;
        let told = self.told.fetch_max(now, Ordering::Relaxed);
        if now > told {
            self.progress.disk_advanced(&self.label, now - told);
        }
    }
}
