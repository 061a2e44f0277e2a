//! Sources that cannot be compared: the stream of what differs never ends as if all were well.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use proptest::prelude::*;
use proptest::sample::Index;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use uuid::Uuid;
use vmferry_disk::chunked::{ChunkedError, Coverage, END_MARKER, Plan, Resync, ResyncCounts, ResyncError, Scan};
use vmferry_disk::digest::{LEAF_SIZE, Leaf};
use vmferry_disk::extent::{Extent, Extents};
use vmferry_disk::vhd::{BLOCK_SIZE, Head, NewDisk, StreamPart, VhdError, Writer};

use crate::model::{apply, encode, pattern};

/// Three blocks, of which the last ends inside of a leaf.
const DISK_SIZE: usize = 2 * BLOCK_SIZE as usize + 100_352;
const HEAD: usize = 2560;
const BLOCK: usize = 512 + BLOCK_SIZE as usize;

fn vhd() -> Vec<u8> {
    vhd_of(&[0, 1, 2])
}

/// A whole VHD that holds these blocks of the pattern; the others are zeroes.
fn vhd_of(blocks: &[u32]) -> Vec<u8> {
    let disk =
        NewDisk { virtual_size: DISK_SIZE as u64, unique_id: Uuid::from_u128(7), creator: *b"tap\0", parent: None };
    let content = pattern(DISK_SIZE);
    let mut stream = Vec::new();
    for part in Writer::new(&disk, blocks).expect("a small disk").parts() {
        match part {
            StreamPart::Bytes(bytes) => stream.extend(bytes),
            StreamPart::Disk { offset, length } => {
                let end = stream.len() + length as usize;
                let from = offset as usize;
                stream.extend(&content[from..DISK_SIZE.min(from + length as usize)]);
                stream.resize(end, 0);
            }
        }
    }
    stream
}

async fn resync_vhd(mut stream: &[u8], held: Option<Leaf>) -> io::Result<(Vec<u8>, Plan, ResyncCounts)> {
    let head = Head::read(&mut stream).await.expect("a good head");
    let mut resync = Resync::of_vhd(stream, &head, |_| held).expect("ranges of the disk");
    let mut frames = Vec::new();
    resync.read_to_end(&mut frames).await?;
    Ok((frames, resync.plan().clone(), resync.counts()))
}

async fn refusal(stream: &[u8]) -> ResyncError {
    let error = resync_vhd(stream, None).await.expect_err("a damaged stream");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ResyncError>());
    inner.expect("an error of the comparison").clone()
}

#[tokio::test]
async fn a_good_vhd_becomes_frames_of_its_disk() {
    let (frames, plan, counts) = resync_vhd(&vhd(), None).await.unwrap();
    let mut disk = vec![0; DISK_SIZE];
    let report = apply(Scan::new(&plan), &frames, 4096, &mut disk).unwrap();
    assert!(disk == pattern(DISK_SIZE));
    assert_eq!(counts, ResyncCounts { compared_bytes: DISK_SIZE as u64, sent_bytes: DISK_SIZE as u64 });
    // Leaves that follow each other share frames, as far as a buffer reaches.
    assert!(report.frames <= 20, "{} frames", report.frames);
}

#[tokio::test]
async fn each_damage_of_a_vhd_is_named() {
    let good = vhd();
    let mut bad = good.clone();
    bad[HEAD + 16] = 0;
    assert_eq!(refusal(&bad).await, ResyncError::PartialLeaf { disk_offset: LEAF_SIZE });
    let last = good.len() - 1;
    let mut bad = good.clone();
    bad[last] ^= 1;
    assert_eq!(refusal(&bad).await, ResyncError::Vhd(VhdError::FooterMismatch { at: last as u64 }));
    for cut in [HEAD, HEAD + 512, HEAD + BLOCK, last - 511, last] {
        let truncated = VhdError::Truncated { at: cut as u64, expected: good.len() as u64 };
        assert_eq!(refusal(&good[..cut]).await, ResyncError::Vhd(truncated));
    }
    let longer = [good.as_slice(), &[0]].concat();
    let trailing = VhdError::TrailingBytes { at: good.len() as u64 };
    assert_eq!(refusal(&longer).await, ResyncError::Vhd(trailing));

    // The BAT places the first two blocks the other way round, which is a good VHD.
    let mut swapped = good.clone();
    swapped[2048..2052].copy_from_slice(&good[2052..2056]);
    swapped[2052..2056].copy_from_slice(&good[2048..2052]);
    assert_eq!(refusal(&swapped).await, ResyncError::NotAscending { disk_offset: 0 });
}

/// Two leaves and a short one.
fn small() -> (Plan, Vec<u8>) {
    let disk_size = 2 * LEAF_SIZE + 512;
    let plan = Plan::new(disk_size, Extents::whole_disk(disk_size), Coverage::Whole).expect("the whole disk");
    let stream = encode(&pattern(disk_size as usize), plan.extents().split(50_000));
    (plan, stream)
}

#[tokio::test]
async fn a_chunked_source_is_checked_as_well() {
    let (plan, stream) = small();
    let mut bad = stream.clone();
    bad[0] = 1;
    let mut resync = Resync::of_chunked(bad.as_slice(), &plan, |_| None);
    let error = resync.read_to_end(&mut Vec::new()).await.unwrap_err();
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ResyncError>());
    let out_of_place = ChunkedError::OutOfPlace { at: 0, offset: 1, expected: Some(0) };
    assert_eq!(inner, Some(&ResyncError::Chunked(out_of_place)));
    resync.read_to_end(&mut Vec::new()).await.expect_err("once refused, always refused");
}

/// A source that fails behind its bytes.
struct Failing<'a>(&'a [u8]);

impl AsyncRead for Failing<'_> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.0.is_empty() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

#[tokio::test]
async fn a_source_that_fails_is_not_one_that_ends() {
    let (plan, stream) = small();
    for cut in [0, 1, 12, 70_000, stream.len() - 12, stream.len()] {
        let mut resync = Resync::of_chunked(Failing(&stream[..cut]), &plan, |_| None);
        let mut frames = Vec::new();
        let error = resync.read_to_end(&mut frames).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "cut at {cut}");
        assert!(!frames.ends_with(&END_MARKER), "cut at {cut}");
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Blocks that a whole VHD does not hold are zeroes, whatever the target holds there. A grain is sent whole or not at all.
    #[test]
    fn what_a_whole_vhd_leaves_out_is_zeroed_on_the_target(
        present in proptest::collection::vec(any::<bool>(), 3),
        zeroed in proptest::collection::vec((any::<Index>(), any::<bool>()), 0..40),
        equal_from in 0..DISK_SIZE, grain in prop_oneof![Just(1usize), Just(4), Just(32)],
    ) {
        let blocks: Vec<u32> = (0..3).filter(|block| present[*block as usize]).collect();
        let mut source = vec![0; DISK_SIZE];
        let block_size = BLOCK_SIZE as usize;
        let content = pattern(DISK_SIZE);
        for block in blocks.iter().map(|block| *block as usize * block_size) {
            let end = DISK_SIZE.min(block + block_size);
            source[block..end].copy_from_slice(&content[block..end]);
        }
        // The target holds other data, zeroes in some places, and the source's data in others.
        let mut target = vec![0x77; DISK_SIZE];
        target[equal_from..].copy_from_slice(&source[equal_from..]);
        let (leaf_size, grain_size) = (LEAF_SIZE as usize, LEAF_SIZE as usize * grain);
        for (at, equal) in &zeroed {
            let at = at.index(DISK_SIZE) / leaf_size * leaf_size;
            let end = DISK_SIZE.min(at + leaf_size);
            match equal {
                true => target[at..end].copy_from_slice(&source[at..end]),
                false => target[at..end].fill(0),
            }
        }
        let leaves: Vec<Leaf> = target.chunks(leaf_size).map(Leaf::of).collect();
        let different = |(a, b): (&[u8], &[u8])| if a == b { 0 } else { a.len() as u64 };
        let expected: u64 = source.chunks(grain_size).zip(target.chunks(grain_size)).map(different).sum();
        let stream = vhd_of(&blocks);
        let (frames, plan, counts) = runtime().block_on(async {
            let mut rest = stream.as_slice();
            let head = Head::read(&mut rest).await.expect("a good head");
            let mut resync = Resync::of_vhd(rest, &head, |leaf| Some(leaves[leaf as usize]))
                .expect("ranges of the disk")
                .in_grains(grain_size as u64);
            let mut frames = Vec::new();
            resync.read_to_end(&mut frames).await.expect("a good stream");
            (frames, resync.plan().clone(), resync.counts())
        });
        prop_assert_eq!(counts, ResyncCounts { compared_bytes: DISK_SIZE as u64, sent_bytes: expected });
        prop_assert_eq!(apply(Scan::new(&plan), &frames, 4096, &mut target).unwrap().data_bytes, expected);
        prop_assert!(target == source);
    }

    /// Ranges that end inside of a grain are compared as far as they go.
    #[test]
    fn grains_of_a_chunked_source_are_sent_whole(
        present in proptest::collection::vec(any::<bool>(), 24), changed in proptest::collection::vec(any::<bool>(), 24),
        frame in 1..300u32,
    ) {
        let leaf = |number: usize| Extent { offset: number as u64 * LEAF_SIZE, length: LEAF_SIZE };
        let leaves_where = |set: &[bool]| (0..24).filter(|n| set[*n]).map(leaf).collect::<Extents>();
        let (disk, planned) = (pattern(24 * LEAF_SIZE as usize), leaves_where(&present));
        let plan = Plan::new(24 * LEAF_SIZE, planned.clone(), Coverage::Whole).unwrap();
        let stream = encode(&disk, planned.split(frame * 512));
        let leaves: Vec<Leaf> = disk.chunks(LEAF_SIZE as usize).map(Leaf::of).collect();
        let held = |leaf: u64| (!changed[leaf as usize]).then(|| leaves[leaf as usize]);
        let mut resync = Resync::of_chunked(stream.as_slice(), &plan, held).in_grains(4 * LEAF_SIZE);
        let mut frames = Vec::new();
        runtime().block_on(resync.read_to_end(&mut frames)).unwrap();
        // Leaves of a grain that follow each other are one piece.
        let mut sent = vec![false; 24];
        for piece in (0..24).filter(|n| present[*n]).collect::<Vec<_>>().chunk_by(|a, b| a + 1 == *b && b % 4 != 0) {
            let differs = piece.iter().any(|n| changed[*n]);
            piece.iter().for_each(|n| sent[*n] = differs);
        }
        let sent = leaves_where(&sent);
        prop_assert_eq!(resync.counts().sent_bytes, sent.total_bytes());
        let (mut onto, mut expected) = (vec![0; disk.len()], vec![0; disk.len()]);
        for range in sent.iter().map(|extent| extent.offset as usize..extent.end() as usize) {
            expected[range.clone()].copy_from_slice(&disk[range]);
        }
        apply(Scan::new(resync.plan()), &frames, 999, &mut onto).unwrap();
        prop_assert!(onto == expected);
    }

    #[test]
    fn a_cut_source_never_gives_an_end_marker(cut in any::<Index>()) {
        let (plan, stream) = small();
        let cut = cut.index(stream.len());
        let mut resync = Resync::of_chunked(&stream[..cut], &plan, |_| None);
        let mut frames = Vec::new();
        let error = runtime().block_on(resync.read_to_end(&mut frames)).unwrap_err();
        prop_assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        prop_assert!(apply(Scan::new(resync.plan()), &frames, 4096, &mut vec![0; 200_000]).is_err());
    }

    /// What is kept and what is sent make up the source's disk, whatever the target held.
    #[test]
    fn target_and_stream_make_the_source(
        changes in proptest::collection::vec((any::<Index>(), any::<u8>()), 0..6),
        known in proptest::collection::vec(any::<bool>(), 3),
    ) {
        let (plan, stream) = small();
        let source = pattern(plan.disk_size() as usize);
        let mut target = source.clone();
        for (at, value) in &changes {
            target[at.index(source.len())] = *value;
        }
        let leaves: Vec<Leaf> = target.chunks(LEAF_SIZE as usize).map(Leaf::of).collect();
        let held = |leaf: u64| known[leaf as usize].then(|| leaves[leaf as usize]);
        let mut resync = Resync::of_chunked(stream.as_slice(), &plan, held);
        let mut frames = Vec::new();
        runtime().block_on(resync.read_to_end(&mut frames)).unwrap();
        let differs = |(leaf, (a, b)): (usize, (&[u8], &[u8]))| if !known[leaf] || a != b { a.len() as u64 } else { 0 };
        let pairs = source.chunks(LEAF_SIZE as usize).zip(target.chunks(LEAF_SIZE as usize));
        let expected: u64 = pairs.enumerate().map(differs).sum();
        prop_assert_eq!(resync.counts().sent_bytes, expected);
        let plan = resync.plan().clone();
        prop_assert_eq!(apply(Scan::new(&plan), &frames, 999, &mut target).unwrap().data_bytes, expected);
        prop_assert!(target == source);
    }
}

#[test]
fn a_range_that_splits_a_leaf_cannot_be_compared() {
    let extents: Extents = [Extent { offset: 512, length: 512 }].into_iter().collect();
    let plan = Plan::new(LEAF_SIZE, extents, Coverage::Whole).unwrap();
    let stream = encode(&pattern(LEAF_SIZE as usize), plan.extents().split(512));
    let mut resync = Resync::of_chunked(stream.as_slice(), &plan, |_| None);
    let error = runtime().block_on(resync.read_to_end(&mut Vec::new())).unwrap_err();
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ResyncError>());
    assert_eq!(inner, Some(&ResyncError::PartialLeaf { disk_offset: 0 }));
}
