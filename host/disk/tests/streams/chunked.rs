//! Transfers of the `chunked` framing, whose length nobody knows before its end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf, repeat};
use tokio::time::{Instant, Sleep, sleep};
use vmferry_disk::chunked::{ChunkedError, Coverage, END_MARKER, Plan, Resync, frame_header};
use vmferry_disk::digest::{LEAF_SIZE, Leaf};
use vmferry_disk::extent::{Extent, Extents};
use vmferry_disk::transfer::{Content, Layout, Options, Outcome, Progress, TransferError, lockstep};

use crate::model;

const DISK_SIZE: u64 = 8 << 20;

fn disk() -> Vec<u8> {
    model::pattern(DISK_SIZE as usize, 41)
}

fn extents(leaves: &[(u64, u64)]) -> Extents {
    leaves.iter().map(|&(leaf, count)| Extent { offset: leaf * LEAF_SIZE, length: count * LEAF_SIZE }).collect()
}

/// Frames of at most `most` bytes that hold `extents`, and the end marker.
fn stream(extents: &Extents, most: u32) -> Vec<u8> {
    let disk = disk();
    let mut stream = Vec::new();
    for extent in extents.split(most) {
        stream.extend(frame_header(extent));
        stream.extend(&disk[extent.offset as usize..extent.end() as usize]);
    }
    stream.extend(END_MARKER);
    stream
}

struct Moved {
    result: Result<Outcome, TransferError>,
    leaves: Vec<(u64, Leaf)>,
    sink: Vec<u8>,
}

async fn transfer(source: &mut (impl AsyncRead + Unpin), plan: &Plan) -> Moved {
    let mut leaves = Vec::new();
    let mut take = |leaf, digest| leaves.push((leaf, digest));
    let minute = Duration::from_secs(60);
    let options = Options { leaves: Some(&mut take), progress: &(), throttles: &[], stall: minute, first_byte: minute };
    let mut sinks = [Vec::new()];
    let result = lockstep(source, Layout::Chunked(plan), &mut sinks, options).await;
    let [sink] = sinks;
    Moved { result, leaves, sink }
}

fn digests(extents: &Extents) -> Vec<(u64, Leaf)> {
    let disk = disk();
    let leaf = |e: Extent| (e.offset / LEAF_SIZE, Leaf::of(&disk[e.offset as usize..e.end() as usize]));
    extents.split(LEAF_SIZE as u32).map(leaf).collect()
}

#[tokio::test]
async fn a_planned_stream_arrives_whole_and_is_hashed() {
    let extents = extents(&[(0, 1), (3, 40), (50, 1), (127, 1)]);
    let plan = Plan::new(DISK_SIZE, extents.clone(), Coverage::Whole).unwrap();
    for most in [512, 65536, 100 << 10, 2 << 20] {
        let stream = stream(&extents, most);
        let moved = transfer(&mut stream.as_slice(), &plan).await;
        let outcome = moved.result.unwrap();
        assert!(moved.sink == stream, "frames of {most}");
        assert_eq!(moved.leaves, digests(&extents));
        assert_eq!((outcome.bytes_read, outcome.sinks[0].bytes_written), (stream.len() as u64, stream.len() as u64));
        let Content::Chunked(report) = outcome.content else { panic!("{:?}", outcome.content) };
        assert_eq!((report.data_bytes, report.left_out_bytes), (43 * LEAF_SIZE, 0));
    }
}

#[tokio::test]
async fn what_the_target_holds_may_be_left_out() {
    let planned = extents(&[(0, 128)]);
    let sent = extents(&[(2, 1), (9, 30), (100, 2)]);
    let plan = Plan::new(DISK_SIZE, planned, Coverage::Part).unwrap();
    let stream = stream(&sent, 65536);
    let moved = transfer(&mut stream.as_slice(), &plan).await;
    assert_eq!(moved.result.unwrap().content.data_bytes(), 33 * LEAF_SIZE);
    assert_eq!(moved.leaves, digests(&sent));
    let nothing = transfer(&mut END_MARKER.as_slice(), &plan).await;
    assert_eq!(nothing.result.unwrap().content.data_bytes(), 0);
    assert_eq!(nothing.sink, END_MARKER);
}

#[tokio::test]
async fn a_cut_stream_is_an_error_wherever_it_is_cut() {
    let extents = extents(&[(0, 1), (3, 8)]);
    let plan = Plan::new(DISK_SIZE, extents.clone(), Coverage::Whole).unwrap();
    let stream = stream(&extents, 65536);
    let frame = 12 + 65536;
    for at in [0, 1, 11, 12, 13, frame - 1, frame, frame + 5, 5 * frame, stream.len() - 12, stream.len() - 1] {
        for coverage in [Coverage::Whole, Coverage::Part] {
            let plan = if coverage == Coverage::Part { plan.in_part() } else { plan.clone() };
            let moved = transfer(&mut &stream[..at], &plan).await;
            let error = moved.result.unwrap_err();
            let TransferError::Truncated { at: found, expected: None } = error else { panic!("cut at {at}: {error}") };
            assert_eq!(found, at as u64);
            assert!(moved.sink == stream[..at]);
        }
    }
}

#[tokio::test]
async fn what_was_not_planned_is_refused_before_the_end_is_passed_on() {
    let planned = extents(&[(0, 1), (3, 8)]);
    let plan = Plan::new(DISK_SIZE, planned.clone(), Coverage::Whole).unwrap();
    let good = stream(&planned, 65536);
    for (what, bad) in [
        ("less", stream(&extents(&[(0, 1), (3, 7)]), 65536)),
        ("more", stream(&extents(&[(0, 1), (3, 9)]), 65536)),
        ("elsewhere", stream(&extents(&[(0, 1), (4, 8)]), 65536)),
        ("nothing", END_MARKER.to_vec()),
    ] {
        let moved = transfer(&mut bad.as_slice(), &plan).await;
        let error = moved.result.unwrap_err();
        assert!(matches!(error, TransferError::Framing(_)), "{what}: {error}");
        assert!(moved.sink.len() < bad.len(), "{what}");
    }
    let at = good.len() as u64;
    for more in [1, 12, 1 << 20] {
        let moved = transfer(&mut good.as_slice().chain(repeat(0).take(more)), &plan).await;
        let error = moved.result.unwrap_err();
        assert!(
            matches!(error, TransferError::Framing(ChunkedError::TrailingBytes { at: found }) if found == at),
            "{more} more: {error}"
        );
        assert!(moved.sink.len() < good.len());
    }
    let mut flipped = 0;
    for at in [0, 1, 7, 8, 9, 11, 12 + 65536, 12 + 65536 + 9, good.len() - 12, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        let moved = transfer(&mut bad.as_slice(), &plan).await;
        assert!(matches!(moved.result, Err(TransferError::Framing(_))), "byte {at}: {:?}", moved.result);
        assert!(moved.sink.len() < good.len());
        flipped += 1;
    }
    assert_eq!(flipped, 10);
}

/// A plan need not consist of whole leaves, but then there are no digests of it.
#[tokio::test]
async fn a_leaf_left_open_is_found_before_the_end_is_passed_on() {
    let extents: Extents = [Extent { offset: LEAF_SIZE, length: 4096 }].into_iter().collect();
    let plan = Plan::new(DISK_SIZE, extents.clone(), Coverage::Whole).unwrap();
    let stream = stream(&extents, 65536);
    let moved = transfer(&mut stream.as_slice(), &plan).await;
    assert!(matches!(moved.result, Err(TransferError::PartialLeaf { disk_offset: LEAF_SIZE })), "{:?}", moved.result);
    assert!(moved.sink.len() < stream.len());
}

/// A source that takes its time before each piece of 64 KiB.
struct Slow<'a> {
    rest: &'a [u8],
    pause: Pin<Box<Sleep>>,
}

impl AsyncRead for Slow<'_> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.pause.as_mut().poll(cx));
        self.pause.as_mut().reset(Instant::now() + Duration::from_secs(40));
        let (piece, rest) = self.rest.split_at(self.rest.len().min(LEAF_SIZE as usize).min(buffer.remaining()));
        buffer.put_slice(piece);
        self.rest = rest;
        Poll::Ready(Ok(()))
    }
}

/// Knows how far a comparison is.
struct Working(Arc<AtomicU64>);

impl Progress for Working {
    fn read(&self, _: u64) {}
    fn written(&self, _: usize, _: u64) {}
    fn work(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_compares_and_finds_nothing_to_send_has_not_stalled() {
    let extents = extents(&[(0, 100)]);
    let plan = Plan::new(DISK_SIZE, extents.clone(), Coverage::Whole).unwrap();
    let stream = stream(&extents, 65536);
    let held: Vec<Leaf> = digests(&extents).into_iter().map(|(_, leaf)| leaf).collect();
    let minute = Duration::from_secs(60);
    for watched in [true, false] {
        let pause = Box::pin(sleep(Duration::from_secs(1)));
        let slow = Slow { rest: &stream, pause };
        let mut source = Resync::of_chunked(slow, &plan, |leaf| held.get(leaf as usize).copied());
        let working = Working(source.work());
        let progress: &dyn Progress = if watched { &working } else { &() };
        let options = Options { leaves: None, progress, throttles: &[], stall: minute, first_byte: minute };
        let plan = source.plan().clone();
        let result = lockstep(&mut source, Layout::Chunked(&plan), &mut [Vec::new()], options).await;
        match result {
            Ok(outcome) => assert!(watched && outcome.content.data_bytes() == 0, "{outcome:?}"),
            Err(error) => assert!(!watched && matches!(error, TransferError::SourceStalled { .. }), "{error:?}"),
        }
    }
}
