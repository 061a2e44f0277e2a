//! A disk by NBD that looks like a stream: its own scan takes it, and it holds the disk.

use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncReadExt};
use uuid::Uuid;
use vmferry_disk::chunked::{self, Coverage, Plan, Resync};
use vmferry_disk::digest::{LEAF_SIZE, Leaf};
use vmferry_disk::extent::{Extent, Extents};
use vmferry_disk::nbd::{NbdError, Pace, Source};
use vmferry_disk::vhd::{self, BLOCK_SIZE, Head, NewDisk, Parent, Piece, Writer};

use crate::server::{Fault, Server, pattern};

/// Two blocks of 2 MiB and a bit, which ends inside of a leaf.
const DISK_SIZE: u64 = 2 * BLOCK_SIZE as u64 + 3 * LEAF_SIZE + 1536;

fn any_leaves() -> impl Strategy<Value = Extents> {
    let leaves = DISK_SIZE.div_ceil(LEAF_SIZE);
    proptest::collection::vec((0..leaves, 1..20u64), 0..6).prop_map(|list| {
        let extent = |(from, length)| Extent { offset: from * LEAF_SIZE, length: length * LEAF_SIZE };
        list.into_iter().map(extent).collect::<Extents>().clipped(DISK_SIZE)
    })
}

/// Reads to the end in pieces of `cut` bytes.
async fn read_to_end(mut source: impl AsyncRead + Unpin, cut: usize) -> std::io::Result<Vec<u8>> {
    let mut stream = Vec::new();
    let mut buffer = vec![0; cut];
    loop {
        match source.read(&mut buffer).await? {
            0 => return Ok(stream),
            n => stream.extend(&buffer[..n]),
        }
    }
}

fn put(disk: &mut [u8], piece: Piece<'_>) {
    let at = piece.offset as usize;
    disk[at..at + piece.bytes.len()].copy_from_slice(piece.bytes);
}

fn expected(disk: &[u8], extents: &Extents) -> Vec<u8> {
    let mut expected = vec![0xee; disk.len()];
    for Extent { offset, length } in extents.iter() {
        let range = offset as usize..(offset + length) as usize;
        expected[range.clone()].copy_from_slice(&disk[range]);
    }
    expected
}

/// What a `chunked` stream does to a disk, by its scan.
fn apply_chunked(plan: &Plan, stream: &[u8]) -> (Vec<u8>, chunked::ScanReport) {
    let mut disk = vec![0xee; plan.disk_size() as usize];
    let mut scan = chunked::Scan::new(plan);
    scan.feed(stream, &mut |piece| put(&mut disk, piece)).expect("the planned stream");
    (disk, scan.finish().expect("a complete stream"))
}

fn writer(blocks: &Extents) -> Writer {
    // A difference: what it does not hold has not changed.
    let parent = Some(Parent { unique_id: Uuid::from_u128(6), timestamp: 0, path: "base.vhd".to_owned() });
    let disk = NewDisk { virtual_size: DISK_SIZE, unique_id: Uuid::from_u128(7), creator: *b"tap\0", parent };
    let numbers: Vec<u32> = blocks.split(BLOCK_SIZE).map(|b| (b.offset / u64::from(BLOCK_SIZE)) as u32).collect();
    Writer::new(&disk, &numbers).expect("a small disk")
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_chunked_source_is_the_planned_stream(
        extents in any_leaves(), connections in 1..4usize, depth in 1..4u16, cut in 1..300_000usize,
    ) {
        runtime().block_on(async {
            let server = Server::of(pattern(DISK_SIZE as usize));
            let plan = Plan::new(DISK_SIZE, extents.clone(), Coverage::Whole).unwrap();
            let pace = Pace { depth, ..Pace::default() };
            let source = Source::chunked(server.clients(connections).await, &plan, pace).unwrap();
            let stream = read_to_end(source, cut).await.unwrap();
            assert_eq!(Some(stream.len() as u64), plan.stream_length());
            let (disk, report) = apply_chunked(&plan, &stream);
            assert!(disk == expected(&server.disk, &extents));
            assert_eq!(report.data_bytes, extents.total_bytes());
        });
    }

    #[test]
    fn a_vhd_source_is_the_stream_that_was_laid_out(
        extents in any_leaves(), connections in 1..4usize, cut in 1..300_000usize,
    ) {
        runtime().block_on(async {
            let server = Server::of(pattern(DISK_SIZE as usize));
            let blocks = extents.to_vhd_blocks(DISK_SIZE);
            let writer = writer(&blocks);
            let source = Source::vhd(server.clients(connections).await, &writer, Pace::default()).unwrap();
            let stream = read_to_end(source, cut).await.unwrap();
            assert_eq!(stream.len() as u64, writer.head().stream_length());
            let head = Head::read(&mut stream.as_slice()).await.unwrap();
            let mut disk = vec![0xee; DISK_SIZE as usize];
            let mut scan = vhd::Scan::new(&head);
            scan.feed(&stream[head.raw().len()..], &mut |piece| put(&mut disk, piece)).unwrap();
            assert_eq!(scan.finish().unwrap().partial_blocks, 0);
            assert!(disk == expected(&server.disk, &blocks));
        });
    }

    /// A disk with zeroes onto a target whose leaves are known in part, by either encoding of the source.
    #[test]
    fn a_resync_sends_what_differs_and_nothing_else(
        extents in any_leaves(), by_vhd in any::<bool>(), cut in 1..300_000usize,
        zero in proptest::collection::vec(any::<bool>(), 70), same in proptest::collection::vec(0..3u8, 70),
    ) {
        runtime().block_on(async {
            let mut disk = pattern(DISK_SIZE as usize);
            for (leaf, _) in disk.chunks_mut(LEAF_SIZE as usize).zip(&zero).filter(|(_, zero)| **zero) {
                leaf.fill(0);
            }
            let server = Server::of(disk.clone());
            let leaf_of = |index: u64| {
                let from = (index * LEAF_SIZE) as usize;
                Leaf::of(&disk[from..disk.len().min(from + LEAF_SIZE as usize)])
            };
            let held = |index: u64| match same[index as usize] {
                0 => None,
                1 => Some(leaf_of(index)),
                _ => Some(Leaf([9; 16])),
            };
            let (extents, stream, plan, counts) = if by_vhd {
                let extents = extents.to_vhd_blocks(DISK_SIZE);
                let mut source =
                    Source::vhd(server.clients(2).await, &writer(&extents), Pace::default()).unwrap();
                let head = Head::read(&mut source).await.unwrap();
                let mut resync = Resync::of_vhd(source, &head, held).unwrap();
                let stream = read_to_end(&mut resync, cut).await.unwrap();
                (extents, stream, resync.plan().clone(), resync.counts())
            } else {
                let plan = Plan::new(DISK_SIZE, extents.clone(), Coverage::Whole).unwrap();
                let source = Source::chunked(server.clients(2).await, &plan, Pace::default()).unwrap();
                let mut resync = Resync::of_chunked(source, &plan, held);
                let stream = read_to_end(&mut resync, cut).await.unwrap();
                (extents, stream, resync.plan().clone(), resync.counts())
            };
            let sent: Extents =
                extents.split(LEAF_SIZE as u32).filter(|leaf| same[(leaf.offset / LEAF_SIZE) as usize] != 1).collect();
            let (written, report) = apply_chunked(&plan, &stream);
            assert!(written == expected(&disk, &sent));
            assert_eq!((counts.compared_bytes, counts.sent_bytes), (extents.total_bytes(), sent.total_bytes()));
            assert_eq!(report.left_out_bytes, extents.total_bytes() - sent.total_bytes());
        });
    }
}

#[tokio::test]
async fn a_full_copy_onto_a_new_disk_leaves_out_its_zeroes() {
    let mut disk = vec![0; DISK_SIZE as usize];
    disk[700_000..900_000].copy_from_slice(&pattern(200_000));
    let server = Server::of(disk.clone());
    let plan = Plan::new(DISK_SIZE, Extents::whole_disk(DISK_SIZE), Coverage::Whole).unwrap();
    let source = Source::chunked(server.clients(2).await, &plan, Pace::default()).unwrap();
    let mut resync = Resync::of_chunked(source, &plan, |_| Some(Leaf::ZERO));
    let stream = read_to_end(&mut resync, 256 << 10).await.unwrap();
    let (written, report) = apply_chunked(resync.plan(), &stream);
    // Leaves 10 to 13 hold the data.
    assert_eq!((report.data_bytes, report.left_out_bytes), (4 * LEAF_SIZE, DISK_SIZE - 4 * LEAF_SIZE));
    let data = 10 * LEAF_SIZE as usize..14 * LEAF_SIZE as usize;
    assert!(written[data.clone()] == disk[data]);
}

/// Wherever a connection breaks, the stream has no end marker and the reader hears of it.
#[tokio::test]
async fn a_broken_connection_is_never_the_end_of_a_stream() {
    let good = Server::of(pattern(DISK_SIZE as usize));
    let plan = Plan::new(DISK_SIZE, Extents::whole_disk(DISK_SIZE), Coverage::Whole).unwrap();
    let pace = Pace { depth: 2, request_size: 128 << 10 };
    let requests = DISK_SIZE.div_ceil(128 << 10) as usize;
    for nth in 0..requests / 2 {
        for fault in [Fault::Error(5), Fault::CutAfter(0), Fault::CutAfter(512), Fault::BadMagic] {
            let bad = Server { fault: Some((nth, fault)), ..good.clone() };
            let clients = vec![good.connect().await, bad.connect().await];
            let mut source = Source::chunked(clients, &plan, pace).unwrap();
            let error = read_to_end(&mut source, 100_000).await.unwrap_err();
            assert_ne!(error.kind(), std::io::ErrorKind::UnexpectedEof, "engines take that for an end");
            let inner = error.get_ref().and_then(|error| error.downcast_ref::<NbdError>());
            assert!(inner.is_some(), "{error:?}");
            let again = read_to_end(&mut source, 100_000).await;
            assert!(again.is_err(), "once broken, always broken");

            let clients = vec![good.connect().await, bad.connect().await];
            let source = Source::chunked(clients, &plan, pace).unwrap();
            let mut resync = Resync::of_chunked(source, &plan, |_| None);
            read_to_end(&mut resync, 100_000).await.unwrap_err();
            read_to_end(&mut resync, 100_000).await.unwrap_err();
        }
    }
}
