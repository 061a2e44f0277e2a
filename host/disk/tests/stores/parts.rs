//! Sinks that get a part of what was read for several.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use vmferry_disk::chunked::Coverage;
use vmferry_disk::chunks::Gaps;
use vmferry_disk::extent::{Extent, Extents};
use vmferry_disk::part::{Part, PartError};
use vmferry_disk::transfer::{Layout, Options, Progress, Throttle, lockstep};
use vmferry_disk::vhd::{BLOCK_SIZE, Head};

use crate::model::{LEAF, chunked, extents, pattern, plan, vhd, vhd_writer};

/// A disk of three blocks and a bit.
const DISK: u64 = 3 * BLOCK_SIZE as u64 + 70 * 1024;

/// Takes a few bytes at a time, and nothing at every other call.
#[derive(Debug)]
struct Slow {
    bytes: Vec<u8>,
    most: usize,
    ready: bool,
}

impl Slow {
    fn new(most: usize) -> Self {
        Self { bytes: Vec::new(), most, ready: false }
    }
}

impl AsyncWrite for Slow {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.ready = !self.ready;
        if self.ready {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let taken = bytes.len().min(self.most);
        self.bytes.extend_from_slice(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

/// Writes the common stream in pieces; what the part passed on.
fn passed_on(mut part: Part<Slow>, stream: &[u8], piece: usize) -> io::Result<Vec<u8>> {
    run(async {
        for bytes in stream.chunks(piece) {
            part.write_all(bytes).await?;
        }
        part.flush().await?;
        let written = part.written();
        let inner = part.into_inner();
        assert_eq!(written, inner.bytes.len() as u64);
        Ok(inner.bytes)
    })
}

fn leaves(list: &[(u64, u64)]) -> Extents {
    extents(&list.iter().map(|(from, count)| (from * LEAF, count * LEAF)).collect::<Vec<_>>()).clipped(DISK)
}

/// The disk where nothing but `read` is in it.
fn only(disk: &[u8], read: &Extents) -> Vec<u8> {
    let mut only = vec![0; disk.len()];
    for range in read.iter().map(|extent| extent.offset as usize..extent.end() as usize) {
        only[range.clone()].copy_from_slice(&disk[range]);
    }
    only
}

fn blocks_of(extents: &Extents) -> Vec<u32> {
    extents.to_vhd_blocks(DISK).split(BLOCK_SIZE).map(|block| (block.offset / u64::from(BLOCK_SIZE)) as u32).collect()
}

fn ranges() -> impl Strategy<Value = Vec<(u64, u64)>> {
    proptest::collection::vec((0..98u64, 1..40u64), 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    /// Both framings out of both framings; what was not read is zero.
    #[test]
    fn a_part_is_a_stream_of_its_own(
        read in ranges(), wanted in ranges(), frame in 1..900u32, piece in 1..500_000usize, most in 1..200_000usize,
    ) {
        let (disk, read, wanted) = (pattern(DISK), leaves(&read), leaves(&wanted));
        let own_plan = plan(DISK, &wanted, Coverage::Whole);
        let own_vhd = vhd_writer(DISK, &blocks_of(&wanted));
        let check = |common: Layout<'_>, stream: &[u8], there: &[u8]| {
            let part = Part::chunked(Slow::new(most), common, Gaps::Zero, &own_plan);
            assert!(passed_on(part, stream, piece).expect("a good stream") == chunked(there, &wanted, 2 << 20));
            let part = Part::vhd(Slow::new(most), common, Gaps::Zero, &own_vhd);
            assert!(passed_on(part, stream, piece).expect("a good stream") == vhd(&own_vhd, there));
        };
        let common = plan(DISK, &read, Coverage::Whole);
        check((&common).into(), &chunked(&disk, &read, frame * 512), &only(&disk, &read));
        let common = vhd_writer(DISK, &blocks_of(&read));
        check(common.head().into(), &vhd(&common, &disk), &only(&disk, &read.to_vhd_blocks(DISK)));
    }

    #[test]
    fn a_difference_has_to_hold_what_a_part_of_it_needs(
        read in ranges(), wanted in ranges(), frame in 1..900u32, piece in 1..500_000usize,
    ) {
        let (disk, read, wanted) = (pattern(DISK), leaves(&read), leaves(&wanted));
        let (common, own) = (plan(DISK, &read, Coverage::Whole), plan(DISK, &wanted, Coverage::Whole));
        let part = Part::chunked(Slow::new(100_000), &common, Gaps::Refused, &own);
        let passed = passed_on(part, &chunked(&disk, &read, frame * 512), piece);
        let missing = wanted.without(&read).iter().next();
        match missing {
            None => prop_assert!(passed.unwrap() == chunked(&disk, &wanted, 2 << 20)),
            Some(Extent { offset: disk_offset, .. }) => {
                let error = passed.unwrap_err();
                let error: &PartError = error.get_ref().and_then(|error| error.downcast_ref()).expect("its own error");
                prop_assert_eq!(error, &PartError::Missing { disk_offset });
            }
        }
    }
}

#[test]
fn the_end_is_passed_on_only_behind_a_complete_stream() {
    let (disk, wanted) = (pattern(DISK), leaves(&[(1, 2)]));
    let common = plan(DISK, &Extents::whole_disk(DISK), Coverage::Whole);
    let stream = chunked(&disk, common.extents(), 2 << 20);
    let own = plan(DISK, &wanted, Coverage::Whole);
    let part = || Part::chunked(Slow::new(1 << 20), &common, Gaps::Refused, &own);
    let whole = chunked(&disk, &wanted, 2 << 20);
    assert!(passed_on(part(), &stream[..stream.len() - 1], 100_000).unwrap() == whole[..whole.len() - 12]);
    assert!(passed_on(part(), &stream, 100_000).unwrap() == whole);
}

#[test]
fn a_stream_that_goes_back_has_no_parts() {
    let disk = pattern(DISK);
    let writer = vhd_writer(DISK, &[0, 1]);
    let mut stream = vhd(&writer, &disk);
    let [first, second] = [2048, 2052].map(|at| stream[at..at + 4].to_vec());
    stream[2048..2052].copy_from_slice(&second);
    stream[2052..2056].copy_from_slice(&first);
    let head = run(Head::read(&mut stream.as_slice())).unwrap();
    let part = Part::vhd(Slow::new(1 << 20), &head, Gaps::Zero, &writer);
    let error = passed_on(part, &stream, 100_000).unwrap_err();
    assert!(error.to_string().contains("goes back to disk byte 0"), "{error}");
}

/// Tells of one sink's work.
struct Watch(Arc<AtomicU64>);

impl Progress for Watch {
    fn read(&self, _: u64) {}
    fn written(&self, _: usize, _: u64) {}
    fn sink_work(&self, _: usize) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A megabyte of sixty-four, at a quarter of a megabyte a second, to a transfer that waits a second for a sink.
#[tokio::test(start_paused = true)]
async fn a_limit_counts_what_is_written_and_who_waits_for_it_has_not_stalled() {
    let size = 64 << 20;
    let (disk, wanted) = (pattern(size), extents(&[(32 << 20, 1 << 20)]));
    let common = plan(size, &Extents::whole_disk(size), Coverage::Whole);
    let stream = chunked(&disk, common.extents(), 2 << 20);
    let own = plan(size, &wanted, Coverage::Whole);
    let limit = [Arc::new(Throttle::new(|_| Some(256 << 10)))];
    let part = Part::chunked(Vec::new(), &common, Gaps::Refused, &own).throttled(&limit);
    let watch = Watch(part.work());
    let second = Duration::from_secs(1);
    let options = Options { leaves: None, progress: &watch, throttles: &[], stall: second, first_byte: second };
    let started = tokio::time::Instant::now();
    let mut sinks = [part];
    let outcome = lockstep(&mut stream.as_slice(), &common, &mut sinks, options).await.unwrap();
    outcome.sinks[0].result.as_ref().unwrap();
    let took = started.elapsed().as_secs_f64();
    assert!((3.0..5.0).contains(&took), "{took} s");
    let [part] = sinks;
    assert!(part.into_inner() == chunked(&disk, &wanted, 2 << 20));
}
