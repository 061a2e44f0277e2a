//! Moves one disk: one read of the source for as many targets as there can be, proven at both ends.

mod meter;

use crate::error::{RunError, chain};
use crate::inventory::AttachedDisk;
use crate::lane::LaneId;
use crate::progress::DiskLabel;
use crate::run::Run;
use crate::shares::{Begun, Reading, Share, Want};
use crate::snapshot::TakenDisk;
use crate::source::{self, Own, Reader, Shape};
use crate::storing::{ImageFormat, Seen, Storing};
use crate::tried;
use crate::xva::XvaFile;
use futures_util::FutureExt;
use futures_util::future::join_all;
use meter::Meter;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::fs::File;
use tokio::io::AsyncWrite;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use vmferry_disk::chunks::Gaps;
use vmferry_disk::digest::{DraftTable, LEAF_SIZE, Leaf, Root};
use vmferry_disk::extent::Extents;
use vmferry_disk::part::Part;
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
#[expect(clippy::large_enum_variant, reason = "there is one of it for each target of a disk")]
pub(crate) enum Place {
    /// A disk of a target.
    Disk { session: Session, vdi: Ref<Vdi> },
    /// A file on media, made new; it takes VHD alone.
    File(PathBuf),
    /// An empty file that becomes an image of a disk.
    Image { file: std::fs::File, path: PathBuf, format: ImageFormat, size: u64 },
    /// A disk of an XVA, under this name.
    Xva { xva: XvaFile, id: String, size: u64 },
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

/// A disk, and everybody who wants some of it.
pub(crate) struct Stream<'a> {
    pub(crate) source: &'a Session,
    pub(crate) disk: &'a TakenDisk,
    /// By what they start from. Who lacks most comes first.
    pub(crate) wants: Vec<Want>,
    /// Its targets are those of the wants.
    pub(crate) label: DiskLabel,
}

/// Where a source goes.
struct Feed<'a> {
    /// The disk that is read, or was.
    disk: &'a AttachedDisk,
    shares: Vec<Share>,
    /// What the digests have to come to, where that is known.
    wanted: Option<Root>,
    label: DiskLabel,
}

/// What became of a share of a stream.
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

impl SourceFailed {
    fn nobody() -> Self {
        Self("nobody wanted it".to_owned())
    }
}

impl<E: std::error::Error> std::convert::From<E> for SourceFailed {
    fn from(error: E) -> Self {
        Self(chain(&error))
    }
}

/// Moves a disk to everybody who wants some of it, in as few reads as there can be; what became of it, by the lanes that waited for
/// it. A target's own failure is told in [`Moved::lanes`].
pub(crate) async fn carry(run: &Run<'_>, stream: Stream<'_>) -> Vec<(Vec<LaneId>, Result<Moved, SourceFailed>)> {
    let Stream { source, disk, wants, label } = stream;
    let name = format!("vmferry {}: exporting disk {}", run.job.name, label.disk);
    let reading = Reading { run, source, disk, label: &name };
    let mut waiting = VecDeque::from(wants);
    let mut carried = Vec::new();
    while let Some(lead) = waiting.pop_front() {
        let started = Instant::now();
        let Begun { source, shares, apart } = reading.begin(lead, waiting.into()).await;
        waiting = apart.into();
        let lanes: Vec<Vec<LaneId>> =
            shares.iter().map(|share| share.want.destinations.iter().map(|to| to.lane).collect()).collect();
        let targets = shares.iter().flat_map(|share| share.want.targets.clone()).collect();
        let feed = Feed { disk: &disk.of, shares, wanted: None, label: DiskLabel { targets, ..label.clone() } };
        let moved = match source {
            Ok(source) => pour(run, source, feed, started).await,
            Err(failed) => Err(failed),
        };
        match moved {
            Ok((moved, left)) => {
                if let Some(why) = wasted(&moved) {
                    tried::reading_together_failed(run, &disk.of, &why).await;
                }
                waiting.extend(left.into_iter().map(|share| share.want));
                carried.extend(lanes.into_iter().zip(moved.into_iter().map(Ok)));
            }
            Err(failed) => {
                if lanes.len() > 1 {
                    tried::reading_together_failed(run, &disk.of, &failed.0).await;
                }
                carried.push((lanes.concat(), Err(failed)));
            }
        }
    }
    carried
}

/// Why a read for several was for nobody in the end but those who lack less than was read.
fn wasted(moved: &[Moved]) -> Option<String> {
    let (lead, others) = moved.split_first()?;
    let failure = lead.lanes.iter().find_map(|(_, result)| result.as_ref().err())?;
    let is_there = |moved: &Moved| moved.lanes.iter().any(|(_, result)| result.is_ok());
    (!is_there(lead) && others.iter().any(is_there)).then(|| chain(failure))
}

/// The same where all start from one content.
pub(crate) async fn carry_one(run: &Run<'_>, stream: Stream<'_>) -> Result<Moved, SourceFailed> {
    carry(run, stream).await.pop().map_or_else(|| Err(SourceFailed::nobody()), |(_, moved)| moved)
}

/// Moves what an open source gives to one who wants all of it.
pub(crate) async fn pour_one(
    run: &Run<'_>,
    source: source::Source,
    disk: &AttachedDisk,
    want: Want,
    wanted: Option<Root>,
    label: DiskLabel,
) -> Result<Moved, SourceFailed> {
    let shares = vec![Share { want, own: None }];
    let moved = pour(run, source, Feed { disk, shares, wanted, label }, Instant::now()).await;
    moved.and_then(|(mut moved, _)| moved.pop().ok_or_else(SourceFailed::nobody))
}

/// Moves what an open source gives; what became of each share, and those that were left, since the one that leads has no place to
/// go: for the others it would be read for no good reason.
async fn pour(
    run: &Run<'_>,
    source: source::Source,
    feed: Feed<'_>,
    started: Instant,
) -> Result<(Vec<Moved>, Vec<Share>), SourceFailed> {
    let Feed { disk, mut shares, wanted, label } = feed;
    let what = &label.disk_uuid;
    let source::Source { mut reader, shape, notes, compared_with_base, gaps, .. } = source;
    let is_divided = shares.iter().any(|share| share.own.is_some());
    let begun = |share: &Share| StreamFacts {
        source: reader.name(),
        encoding: share.own.as_ref().map_or(shape.name(), |own| own.shape().name()),
        notes: notes.iter().chain(share.want.notes.iter().filter(|note| !notes.contains(note))).cloned().collect(),
        compared_with_base,
        bytes_read: 0,
        changed_bytes: 0,
        digest: None,
        extents: None,
        elapsed: Duration::ZERO,
    };
    let mut moved: Vec<Moved> = shares.iter().map(|share| Moved { facts: begun(share), lanes: Vec::new() }).collect();

    run.progress.disk_started(&label, shape.expected_bytes());
    let mut takers: Vec<Taker> = Vec::new();
    let mut links: Vec<Arc<Throttle>> = Vec::new();
    for (number, share) in shares.iter().enumerate() {
        for (lane, opened) in open_sinks(run, share, &shape, gaps, &label).await {
            match opened {
                Ok((tap, whole_links)) => {
                    takers.push(Taker { share: number, lane, tap });
                    links.extend(whole_links);
                }
                Err(error) => moved[number].lanes.push((lane, Err(error))),
            }
        }
        if takers.is_empty() {
            reader.abort().await;
            run.progress.disk_finished(&label, false);
            moved.truncate(number + 1);
            let left = shares.split_off(number + 1);
            return Ok((moved, left));
        }
    }

    let hashing = run.job.integrity == crate::Integrity::Digest;
    let meter = Meter::new(Arc::clone(run.progress), label.clone(), &takers, reader.work());
    // The job's limits are on what is read, those of links on what is sent.
    let job = if matches!(reader, Reader::Compared(_)) { &[][..] } else { &run.job.throttles };
    let throttles: Vec<Arc<Throttle>> = job.iter().cloned().chain(links).collect();
    let (stall, first_byte) = (run.job.tuning.stall, run.job.tuning.first_byte);
    let tables: Vec<Leaves> = shares.iter_mut().map(Leaves::of).collect();
    let mut tables = match gaps {
        Gaps::Zero if is_divided => blocking(move || tables.into_iter().map(Leaves::zeroed).collect()).await,
        _ => tables,
    };
    // A task of its own: the disks of a run flow on as many cores as there are, and a wake-up stays on the thread that
    // got it.
    let flowing = async move {
        let mut record = |leaf: u64, digest: Leaf| tables.iter_mut().for_each(|table| table.set(leaf, digest));
        let leaves: Option<&mut (dyn FnMut(u64, Leaf) + Send)> = if hashing { Some(&mut record) } else { None };
        let options = Options { leaves, progress: &meter, throttles: &throttles, stall, first_byte };
        let outcome = transfer::relay(&mut reader, shape.layout(), &mut takers, options).await;
        (reader, shape, takers, tables, outcome)
    };
    let (reader, shape, takers, tables, outcome) = beside(flowing).await;
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(TransferError::NoSinkLeft { sinks, .. }) => {
            reader.abort().await;
            for (taker, sink) in takers.into_iter().zip(sinks) {
                let (share, lane) = (taker.share, taker.lane);
                moved[share].lanes.push((lane, conclude(taker, EngineName::Lockstep, sink, what).await));
            }
            run.progress.disk_finished(&label, false);
            return Ok((moved, Vec::new()));
        }
        Err(error) => {
            join_all(takers.into_iter().map(|taker| taker.tap.into_sink().abort())).await;
            run.progress.disk_finished(&label, false);
            let ended = matches!(error, TransferError::Source { .. } | TransferError::Truncated { .. });
            let broke_off = ended || matches!(error, TransferError::SourceStalled { .. });
            let by_nbd = reader.name() == "nbd";
            let SourceFailed(message) = reader.explain(ended, chain(&error)).await;
            if by_nbd && broke_off {
                tried::nbd_broke_off(run, disk, &message).await;
            }
            let how = if notes.is_empty() { String::new() } else { format!(" ({})", notes.join("; ")) };
            return Err(SourceFailed(message + &how));
        }
    };
    let engine = outcome.engine;
    let concluded = takers.into_iter().zip(outcome.sinks).map(|(taker, sink)| {
        async move {
            let (share, lane) = (taker.share, taker.lane);
            (share, lane, conclude(taker, engine, sink, what).await)
        }
        .boxed()
    });
    for (share, lane, result) in join_all(concluded).await {
        moved[share].lanes.push((lane, result));
    }
    let left_out = reader.left_out();
    let finished = reader.finish().await;
    run.progress.disk_finished(&label, finished.is_ok());
    finished?;

    let not_spliced = match (&outcome.not_spliced, hashing) {
        (Some(_), false) if is_divided => Some("targets get different parts of what is read".to_owned()),
        (Some(why), false) => Some(why.to_string()),
        _ => None,
    };
    let digests = commit_tables(tables, wanted).await?;
    let known = digests.iter().flatten().next().copied();
    for ((Moved { facts, .. }, share), digest) in moved.iter_mut().zip(&shares).zip(digests) {
        facts.notes.extend(not_spliced.iter().map(|why| format!("not spliced: {why}")));
        // All come to the same content, so those that start from nothing known have its digest from the others.
        facts.digest = digest.or(known);
        // What was compared and left out was read as well.
        facts.bytes_read = outcome.bytes_read + left_out;
        facts.elapsed = started.elapsed();
        let set = share.own.as_ref().map(Own::extents);
        facts.changed_bytes = set.as_ref().map_or(outcome.content.data_bytes(), Extents::total_bytes);
        facts.extents = match (set, &shape) {
            (Some(set), _) => (facts.encoding == "chunked").then_some(set),
            (None, Shape::Chunked(plan)) if left_out == 0 => Some(plan.extents().clone()),
            (None, _) => None,
        };
    }
    Ok((moved, Vec::new()))
}

/// The digest table of a share, and which leaves of the stream count for it.
struct Leaves {
    table: Option<DraftTable>,
    /// What it gets of the disk; `None` for the stream as it comes. What differs from its base is then found out beside: others
    /// may have been read more, and if that was not the same as its base, its digest is not theirs.
    own: Option<Extents>,
}

impl Leaves {
    /// Takes the table of a share.
    fn of(share: &mut Share) -> Self {
        Self { table: share.want.table.take(), own: share.own.as_ref().map(Own::extents) }
    }

    /// In a part of what leaves out zeroes, zeroes are what does not come.
    fn zeroed(mut self) -> Self {
        if let (Some(table), Some(own)) = (&mut self.table, &self.own) {
            own.leaf_numbers().for_each(|leaf| table.set(leaf, Leaf::ZERO));
        }
        self
    }

    fn set(&mut self, leaf: u64, digest: Leaf) {
        if let Some(table) = &mut self.table
            && self.own.as_ref().is_none_or(|own| own.holds(leaf * LEAF_SIZE))
        {
            table.set(leaf, digest);
        }
    }
}

/// Keeps the tables that there are; what each of them comes to.
async fn commit_tables(tables: Vec<Leaves>, wanted: Option<Root>) -> Result<Vec<Option<Root>>, SourceFailed> {
    let mut roots = Vec::new();
    for Leaves { table, .. } in tables {
        roots.push(match table {
            Some(table) => {
                // Dropped with the run, which its thread is not.
                let (_run, mut ended) = oneshot::channel::<Infallible>();
                let is_wanted = move || ended.try_recv() == Err(oneshot::error::TryRecvError::Empty);
                Some(blocking(move || commit_table(table, wanted, is_wanted)).await?)
            }
            None => None,
        });
    }
    Ok(roots)
}

/// Keeps a table, if it comes to what is wanted. One that appears after its run is gone would be nobody's.
fn commit_table(
    mut table: DraftTable,
    wanted: Option<Root>,
    is_wanted: impl FnOnce() -> bool,
) -> Result<Root, SourceFailed> {
    if let Some(wanted) = wanted {
        let found = table.root()?;
        if found != wanted {
            return Err(SourceFailed(format!("what was read has the digest {found}, not {wanted}, which was sent")));
        }
    }
    table.sync()?;
    if !is_wanted() {
        return Err(SourceFailed("the run ended".to_owned()));
    }
    Ok(table.commit()?)
}

/// Opens the sinks of a share, each with the limits that are on the whole of what is read for it.
async fn open_sinks(
    run: &Run<'_>,
    share: &Share,
    shape: &Shape,
    gaps: Gaps,
    disk: &DiskLabel,
) -> Vec<(LaneId, Result<(Tap, Vec<Arc<Throttle>>), RunError>)> {
    let label = format!("vmferry {}: importing disk {}", run.job.name, disk.disk);
    let open = share.want.destinations.iter().map(|to| {
        let label = &label;
        async move {
            let opened = match &share.own {
                None => to.place.open(shape, label).await.map(|sink| (Tap::Whole(sink), to.throttles.clone())),
                Some(own) => to.place.open(&own.shape(), label).await.map(|sink| {
                    let part = match own {
                        Own::Chunked(plan) => Part::chunked(sink, shape.layout(), gaps, plan),
                        Own::Vhd(writer) => Part::vhd(sink, shape.layout(), gaps, writer),
                    };
                    (Tap::Part(Box::new(part.throttled(&to.throttles))), Vec::new())
                }),
            };
            (to.lane, opened)
        }
        .boxed()
    });
    join_all(open).await
}

/// Ends one import. XAPI's 200 said nothing; what counts is that it took every byte and that its task succeeded.
async fn conclude(taker: Taker, engine: EngineName, sink: SinkOutcome, disk: &str) -> Result<Sent, RunError> {
    let bytes = match &taker.tap {
        Tap::Whole(_) => sink.bytes_written,
        Tap::Part(part) => part.written(),
    };
    let import = taker.tap.into_sink();
    let engine = if matches!(import, Sink::Store(_)) { EngineName::Pooled } else { engine };
    match sink.result {
        Ok(()) => import.finish().await.map(|receipt| Sent { bytes, engine, receipt }),
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
            (Self::Image { file, path, format, size }, _) => {
                let file = file.try_clone().map_err(|error| file_failed(path, &error))?;
                Sink::Store(Storing::into_file(file, path, *format, *size, shape)?)
            }
            (Self::Xva { xva, id, size }, _) => {
                Sink::Store(Storing::into_xva(xva, id, &xva.path().display().to_string(), *size, shape)?)
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

    /// How far a store has come with its call.
    fn seen(&self) -> Option<Arc<Seen>> {
        match self {
            Self::Disk(_) | Self::File(..) => None,
            Self::Store(storing) => storing.seen(),
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

/// Who takes a stream, or a part of it.
struct Taker {
    /// Which share it belongs to.
    share: usize,
    lane: LaneId,
    tap: Tap,
}

/// What is written to a place.
#[expect(clippy::large_enum_variant, reason = "there is one of it for each target of a transfer")]
enum Tap {
    /// The stream as it comes.
    Whole(Sink),
    /// A part of it.
    Part(Box<Part<Sink>>),
}

impl Tap {
    fn into_sink(self) -> Sink {
        match self {
            Self::Whole(sink) => sink,
            Self::Part(part) => part.into_inner(),
        }
    }
}

impl AsyncWrite for Taker {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().tap {
            Tap::Whole(sink) => Pin::new(sink).poll_write(cx, bytes),
            Tap::Part(part) => Pin::new(part).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().tap {
            Tap::Whole(sink) => Pin::new(sink).poll_flush(cx),
            Tap::Part(part) => Pin::new(part).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().tap {
            Tap::Whole(sink) => Pin::new(sink).poll_shutdown(cx),
            Tap::Part(part) => Pin::new(part).poll_shutdown(cx),
        }
    }
}

impl SocketWriter for Taker {
    fn lends_socket(&self) -> bool {
        matches!(&self.tap, Tap::Whole(sink) if sink.lends_socket())
    }

    fn poll_write_call(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        call: &mut SocketCall<'_>,
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().tap {
            Tap::Whole(sink) => Pin::new(sink).poll_write_call(cx, call),
            Tap::Part(_) => Poll::Ready(Err(io::ErrorKind::Unsupported.into())),
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
