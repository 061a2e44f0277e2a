//! What a store puts, read as a stream.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::thread::spawn;

use bytes::Bytes;
use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::runtime::Builder;
use vmferry_disk::chunked::Coverage;
use vmferry_disk::chunks::BrokenOff;
use vmferry_disk::extent::Extents;
use vmferry_disk::restored::{PutError, Restored, RestoredSink};
use vmferry_disk::transfer::relay;
use vmferry_disk::vhd::{BLOCK_SIZE, Head};

use crate::model::{LEAF, chunked, extents, options, pattern, plan, vhd, vhd_writer};

const MIB: u64 = 1 << 20;

fn run<T>(work: impl Future<Output = T>) -> T {
    Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

/// Puts these ranges of a disk in pieces, and says that this is all.
async fn put_all(mut sink: RestoredSink, disk: Vec<u8>, put: Extents, piece: u32) {
    let disk = Bytes::from(disk);
    for extent in put.split(piece) {
        sink.put(extent.offset, disk.slice(extent.offset as usize..extent.end() as usize)).await.expect("a good piece");
    }
    sink.finish();
}

/// The same by a thread of its own.
fn put_elsewhere(sink: RestoredSink, disk: &[u8], put: &Extents, piece: u32) {
    let (disk, put) = (disk.to_vec(), put.clone());
    spawn(move || run(put_all(sink, disk, put, piece)));
}

async fn read_to_end(mut source: impl AsyncRead + Unpin, cut: usize) -> std::io::Result<Vec<u8>> {
    let (mut stream, mut buffer) = (Vec::new(), vec![0; cut]);
    loop {
        match source.read(&mut buffer).await? {
            0 => return Ok(stream),
            n => stream.extend(&buffer[..n]),
        }
    }
}

/// The disk where nothing but `put` is in it.
fn only(disk: &[u8], put: &Extents) -> Vec<u8> {
    let mut only = vec![0; disk.len()];
    for range in put.iter().map(|extent| extent.offset as usize..extent.end() as usize) {
        only[range.clone()].copy_from_slice(&disk[range]);
    }
    only
}

fn sectors(list: &[(u64, u64)], disk_size: u64) -> Extents {
    extents(&list.iter().map(|(from, count)| (from * 512, count * 512)).collect::<Vec<_>>()).clipped(disk_size)
}

fn common(one: &Extents, other: &Extents) -> Extents {
    one.without(&one.without(other))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn the_stream_holds_what_was_put_and_zeroes(
        named in proptest::collection::vec((0..5000u64, 1..2000u64), 0..6),
        put in proptest::collection::vec((0..5000u64, 1..900u64), 0..6),
        piece in 1..1000u32, cut in 1..300_000usize, ahead in 0..2_000_000usize,
    ) {
        let disk = pattern(5000 * 512);
        let size = disk.len() as u64;
        let (named, put) = (sectors(&named, size), common(&sectors(&put, size), &sectors(&named, size)));
        let (source, sink) = Restored::chunked(&plan(size, &named, Coverage::Whole), ahead);
        put_elsewhere(sink, &disk, &put, piece * 512);
        let stream = run(read_to_end(source, cut)).unwrap();
        prop_assert!(stream == chunked(&only(&disk, &put), &named, 2 << 20));
    }

    #[test]
    fn a_vhd_of_it_has_whole_blocks(
        blocks in proptest::collection::btree_set(0..4u32, 0..4), put in proptest::collection::vec((0..13000u64, 1..3000u64), 0..6),
        piece in 1..3000u32, cut in 1..300_000usize,
    ) {
        let disk = pattern(3 * u64::from(BLOCK_SIZE) + 1536);
        let writer = vhd_writer(disk.len() as u64, &blocks.into_iter().collect::<Vec<_>>());
        let put = common(&sectors(&put, disk.len() as u64), &Extents::of_vhd(writer.head()));
        let (source, sink) = Restored::vhd(&writer, 100_000);
        put_elsewhere(sink, &disk, &put, piece * 512);
        let stream = run(read_to_end(source, cut)).unwrap();
        prop_assert!(stream == vhd(&writer, &only(&disk, &put)));
    }
}

#[tokio::test]
async fn a_transfer_takes_it_as_any_other_source() {
    let disk = pattern(4 * MIB);
    let writer = vhd_writer(4 * MIB, &[0, 1]);
    let (mut source, sink) = Restored::vhd(&writer, 1 << 20);
    put_elsewhere(sink, &disk, &Extents::whole_disk(4 * MIB), 1 << 20);
    let head = Head::read(&mut source).await.unwrap();
    let mut sinks = [Unsocketed(Vec::new())];
    let outcome = relay(&mut source, &head, &mut sinks, options()).await.unwrap();
    assert_eq!(outcome.content.data_bytes(), 4 * MIB);
    assert!(sinks[0].0 == vhd(&writer, &disk));
}

/// A source of four leaves, and the sink for it, which takes a leaf ahead.
fn four_leaves() -> (Restored, RestoredSink) {
    Restored::chunked(&plan(8 * LEAF, &extents(&[(0, 2 * LEAF), (4 * LEAF, 2 * LEAF)]), Coverage::Whole), LEAF as usize)
}

fn leaf() -> Bytes {
    Bytes::from(vec![7; LEAF as usize])
}

#[tokio::test]
async fn what_is_not_a_piece_of_the_layout_breaks_the_stream_off() {
    let refused = async |first: u64, offset: u64, length: u64| {
        let (mut source, mut sink) = four_leaves();
        sink.put(first, Bytes::from_static(&[1; 512])).await.unwrap();
        let error = sink.put(offset, Bytes::from(vec![0; length as usize])).await.unwrap_err();
        let broken = read_to_end(&mut source, 4096).await.unwrap_err();
        assert_eq!(broken.to_string(), error.to_string());
        error
    };
    let out_of_place = |offset, length| PutError::OutOfPlace { offset, length };
    assert_eq!(refused(0, 2 * LEAF, 512).await, out_of_place(2 * LEAF, 512));
    assert_eq!(refused(0, 512, 2 * LEAF).await, out_of_place(512, 2 * LEAF));
    assert_eq!(refused(0, 6 * LEAF, 1).await, out_of_place(6 * LEAF, 1));
    assert_eq!(refused(0, u64::MAX, 5).await, out_of_place(u64::MAX, 5));
    assert_eq!(refused(1024, 1024, 512).await, PutError::NotAscending { offset: 1024, next: 1536 });
    assert_eq!(refused(4 * LEAF, 0, 512).await, PutError::NotAscending { offset: 0, next: 4 * LEAF + 512 });
}

#[tokio::test]
async fn a_store_waits_until_what_it_put_is_read() {
    let (mut source, mut sink) = four_leaves();
    sink.put(0, leaf()).await.unwrap();
    {
        let mut second = pin!(sink.put(LEAF, leaf()));
        assert!(poll_fn(|cx| Poll::Ready(second.as_mut().poll(cx).is_pending())).await);
        let mut buffer = vec![0; 12 + 100];
        source.read_exact(&mut buffer).await.unwrap();
        second.await.unwrap();
    }
    source.abort("the target is full");
    let error = sink.put(4 * LEAF, leaf()).await.unwrap_err();
    assert_eq!(error, PutError::BrokenOff(BrokenOff("the target is full".to_owned())));
}

/// The last range was put whole, so nothing but the store's word is missing.
#[tokio::test]
async fn only_the_stores_word_ends_the_stream() {
    for (word, fate) in [
        (None, "the store ended before it had restored everything"),
        (Some("the bucket is gone"), "the bucket is gone"),
    ] {
        let (mut source, mut sink) = four_leaves();
        let mut stream = Vec::new();
        let (read, ()) = tokio::join!(source.read_to_end(&mut stream), async move {
            for offset in [0, LEAF, 4 * LEAF, 5 * LEAF] {
                sink.put(offset, leaf()).await.unwrap();
            }
            if let Some(why) = word {
                sink.abort(why);
            }
        });
        assert_eq!(read.unwrap_err().to_string(), fate);
        assert!(stream.len() as u64 <= 2 * 12 + 4 * LEAF, "no byte of an end marker");
    }
}

/// Bytes in memory as a sink.
struct Unsocketed(Vec<u8>);

impl tokio::io::AsyncWrite for Unsocketed {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.0.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl vmferry_disk::transfer::SocketWriter for Unsocketed {}
