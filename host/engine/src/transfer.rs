//! Moves one disk: one read of the source for all targets that share a base, proven at both ends.

use crate::error::{RunError, chain};
use crate::moving::blocking;
use crate::plan::SR_GRANULARITY;
use crate::progress::{DiskLabel, Progress};
use crate::run::Run;
use crate::snapshot::TakenDisk;
use futures_util::FutureExt;
use futures_util::future::join_all;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use vmferry_disk::digest::{DraftTable, Leaf, Root};
use vmferry_disk::transfer::{self, EngineName, Options, SinkError, TransferError};
use vmferry_disk::vhd::{DiskType, Head, HeadError};
use vmferry_xapi::records::Vdi;
use vmferry_xapi::{Export, Import, Ref, Session};

/// Where one target wants the stream of a disk.
pub(crate) struct Destination {
    /// Which of the run's lanes it belongs to.
    pub(crate) lane: usize,
    pub(crate) session: Session,
    pub(crate) vdi: Ref<Vdi>,
}

/// One read of a disk, and everybody who wants it.
pub(crate) struct Stream<'a> {
    pub(crate) source: &'a Session,
    pub(crate) disk: &'a TakenDisk,
    /// The source snapshot disk the delta starts from; `None` for a full copy.
    pub(crate) base: Option<Ref<Vdi>>,
    pub(crate) destinations: Vec<Destination>,
    /// The digest table to fill, when digests can be known.
    pub(crate) table: Option<DraftTable>,
    pub(crate) label: DiskLabel,
}

/// What became of a stream.
pub(crate) struct Moved {
    pub(crate) facts: StreamFacts,
    /// By lane: bytes sent, or what went wrong there.
    pub(crate) lanes: Vec<(usize, Result<u64, RunError>)>,
}

/// What the reports of all its targets share.
pub(crate) struct StreamFacts {
    pub(crate) engine: EngineName,
    pub(crate) bytes_read: u64,
    pub(crate) changed_bytes: u64,
    pub(crate) digest: Option<Root>,
    pub(crate) elapsed: Duration,
}

/// The source side failed, and nobody got anything whole: what happened, for each target that waited for it.
pub(crate) struct SourceFailed(pub(crate) String);

impl<E: std::error::Error> From<E> for SourceFailed {
    fn from(error: E) -> Self {
        Self(chain(&error))
    }
}

/// Moves the stream. A target's own failure is told in [`Moved::lanes`].
pub(crate) async fn carry(run: &Run<'_>, stream: Stream<'_>) -> Result<Moved, SourceFailed> {
    let started = Instant::now();
    let what = &stream.label.disk_uuid;
    let label = format!("vmferry {}: exporting disk {}", run.job.name, stream.label.disk);
    let mut export = stream.source.export_vdi(&stream.disk.vdi, stream.base.as_ref(), &label).await?;
    let head = match read_head(&mut export, &stream, run.job.tuning.first_byte).await {
        Ok(head) => head,
        Err(Broken { ended, message }) => return Err(explain(export, ended, message).await),
    };

    run.progress.disk_started(&stream.label, head.stream_length());
    let opened = open_imports(run, &stream, head.stream_length()).await;
    let (mut lanes, mut imports): (Vec<usize>, Vec<Import>) = (Vec::new(), Vec::new());
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
        export.abort().await;
        run.progress.disk_finished(&stream.label, false);
        return Ok(nothing_moved(started, results));
    }

    let mut table = stream.table;
    let mut record = |leaf: u64, digest: Leaf| {
        if let Some(table) = &mut table {
            table.set(leaf, digest);
        }
    };
    let hashing = run.job.integrity == crate::Integrity::Digest;
    let meter = Meter::new(run.progress, &stream.label, imports.len());
    let options = Options {
        leaves: hashing.then_some(&mut record),
        progress: &meter,
        stall: run.job.tuning.stall,
        first_byte: run.job.tuning.first_byte,
    };
    let outcome = transfer::lockstep(&mut export, &head, &mut imports, options).await;
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(TransferError::NoSinkLeft { sinks, .. }) => {
            export.abort().await;
            for ((lane, import), sink) in lanes.into_iter().zip(imports).zip(sinks) {
                results.push((lane, conclude(import, sink.bytes_written, sink.result, what).await));
            }
            run.progress.disk_finished(&stream.label, false);
            return Ok(nothing_moved(started, results));
        }
        Err(error) => {
            join_all(imports.into_iter().map(Import::abort)).await;
            run.progress.disk_finished(&stream.label, false);
            let ended = matches!(error, TransferError::Source { .. } | TransferError::Truncated { .. });
            return Err(explain(export, ended, chain(&error)).await);
        }
    };
    let concluded = lanes.into_iter().zip(imports).zip(outcome.sinks).map(|((lane, import), sink)| {
        async move { (lane, conclude(import, sink.bytes_written, sink.result, what).await) }.boxed()
    });
    results.extend(join_all(concluded).await);
    let exported = export.finish().await;
    run.progress.disk_finished(&stream.label, exported.is_ok());
    exported?;

    let digest = match table {
        Some(table) => Some(blocking(move || table.commit()).await?),
        None => None,
    };
    let facts = StreamFacts {
        engine: outcome.engine,
        bytes_read: outcome.bytes_read,
        changed_bytes: head.changed_bytes(),
        digest,
        elapsed: started.elapsed(),
    };
    Ok(Moved { facts, lanes: results })
}

/// Every target failed, each in its own way.
fn nothing_moved(started: Instant, lanes: Vec<(usize, Result<u64, RunError>)>) -> Moved {
    let elapsed = started.elapsed();
    let facts = StreamFacts { engine: EngineName::Lockstep, bytes_read: 0, changed_bytes: 0, digest: None, elapsed };
    Moved { facts, lanes }
}

/// A head that cannot be used.
struct Broken {
    /// Whether the stream itself came to an end, rather than that its bytes are wrong.
    ended: bool,
    message: String,
}

/// Ends an export that broke. Why one ended early, XAPI tells in its task alone; of bytes that are wrong it knows nothing.
async fn explain(export: Export, ended: bool, message: String) -> SourceFailed {
    if !ended {
        export.abort().await;
        return SourceFailed(message);
    }
    match export.finish().await {
        Err(cause) => SourceFailed(format!("{message}: {}", chain(&cause))),
        Ok(()) => SourceFailed(message),
    }
}

/// Reads the stream's head and checks that it is the stream that was asked for. Whether it is a difference stands in
/// the footer; against which disk does not, so that is kept on our side alone.
async fn read_head(export: &mut Export, stream: &Stream<'_>, patience: Duration) -> Result<Head, Broken> {
    let wrong = |message| Broken { ended: false, message };
    let head = tokio::time::timeout(patience, Head::read(export))
        .await
        .map_err(|_| wrong(format!("the source did not send the first byte within {patience:?}")))?
        .map_err(|error| Broken { ended: !matches!(error, HeadError::Vhd(_)), message: chain(&error) })?;
    let size = stream.disk.of.record.virtual_size;
    if head.virtual_size() != size && head.virtual_size() != size.next_multiple_of(SR_GRANULARITY) {
        return Err(wrong(format!("the disk has {size} bytes, the source sends one of {}", head.virtual_size())));
    }
    let wanted = if stream.base.is_some() { DiskType::Differencing } else { DiskType::Dynamic };
    if head.disk_type() != wanted {
        return Err(wrong(format!("asked for a {wanted:?} stream, the source sends a {:?} one", head.disk_type())));
    }
    Ok(head)
}

async fn open_imports(run: &Run<'_>, stream: &Stream<'_>, length: u64) -> Vec<(usize, Result<Import, RunError>)> {
    let label = format!("vmferry {}: importing disk {}", run.job.name, stream.label.disk);
    let open = stream.destinations.iter().map(|to| {
        let label = &label;
        async move { (to.lane, to.session.import_vdi(&to.vdi, length, label).await.map_err(RunError::from)) }.boxed()
    });
    join_all(open).await
}

/// Ends one import. XAPI's 200 said nothing; what counts is that it took every byte and that its task succeeded.
async fn conclude(import: Import, bytes: u64, result: Result<(), SinkError>, disk: &str) -> Result<u64, RunError> {
    match result {
        Ok(()) => import.finish().await.map(|()| bytes).map_err(RunError::from),
        Err(error) => {
            let cause = import.finish().await.err().map(|cause| format!(": {}", chain(&cause))).unwrap_or_default();
            Err(RunError::Transfer { disk: disk.to_owned(), message: format!("{}{cause}", chain(&error)) })
        }
    }
}

/// Tells the watcher how far the stream got.
struct Meter<'a> {
    progress: &'a dyn Progress,
    label: &'a DiskLabel,
    written: Vec<AtomicU64>,
    told: AtomicU64,
}

impl<'a> Meter<'a> {
    fn new(progress: &'a dyn Progress, label: &'a DiskLabel, sinks: usize) -> Self {
        Self { progress, label, written: (0..sinks).map(|_| AtomicU64::new(0)).collect(), told: AtomicU64::new(0) }
    }
}

impl transfer::Progress for Meter<'_> {
    fn read(&self, _: u64) {}

    /// A dead sink stays behind, so the foremost one is what is told.
    fn written(&self, sink: usize, bytes: u64) {
        let now = self.written[sink].fetch_add(bytes, Ordering::Relaxed) + bytes;
        let told = self.told.fetch_max(now, Ordering::Relaxed);
        if now > told {
            self.progress.disk_advanced(self.label, now - told);
        }
    }
}
