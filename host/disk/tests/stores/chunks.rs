//! Streams cut into the chunks of a store.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::thread::spawn;

use proptest::prelude::*;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::runtime::Builder;
use vmferry_disk::chunked::Coverage;
use vmferry_disk::chunks::{BrokenOff, Chunk, ChunkError, ChunkReceiver, ChunkSink, Cut, Gaps, handover};
use vmferry_disk::extent::Extents;
use vmferry_disk::transfer::{Layout, NotSpliced, SinkError, SocketWriter, relay};
use vmferry_disk::vhd::{BLOCK_SIZE, Head};

use crate::model::{LEAF, chunked, extents, options, pattern, plan, vhd, vhd_writer};

const KIB_128: u32 = 128 << 10;

fn cut(chunk_size: u32, disk_size: u64, gaps: Gaps) -> Cut {
    Cut { chunk_size, disk_size, gaps }
}

/// All chunks that come, and how they end.
async fn all(mut receiver: ChunkReceiver) -> (BTreeMap<u64, Vec<u8>>, Result<(), BrokenOff>) {
    let mut chunks = BTreeMap::new();
    loop {
        match receiver.next().await {
            Ok(Some(Chunk { offset, bytes })) => {
                let highest: Option<u64> = chunks.last_key_value().map(|(offset, _)| *offset);
                assert!(highest.is_none_or(|highest| highest < offset), "{offset} behind {highest:?}");
                chunks.insert(offset, bytes.to_vec());
            }
            Ok(None) => return (chunks, Ok(())),
            Err(why) => return (chunks, Err(why)),
        }
    }
}

/// What a store has to get of `sent`: every chunk that it touches, with zeroes for what is not sent.
fn expected(disk: &[u8], sent: &Extents, cut: Cut) -> BTreeMap<u64, Vec<u8>> {
    let mut image = vec![0; cut.disk_size as usize];
    let mut touched = BTreeSet::new();
    for extent in sent.iter() {
        let (from, to) = (extent.offset as usize, extent.end() as usize);
        image[from..to].copy_from_slice(&disk[from..to]);
        touched.extend((from..to).step_by(512).map(|at| at as u64 / u64::from(cut.chunk_size)));
    }
    let chunk = |number: u64| {
        let offset = number * u64::from(cut.chunk_size);
        let end = (offset + u64::from(cut.chunk_size)).min(cut.disk_size);
        (offset, image[offset as usize..end as usize].to_vec())
    };
    touched.into_iter().map(chunk).collect()
}

/// Writes a stream in pieces, and gives what came out.
async fn chunks_of<'a>(
    layout: impl Into<Layout<'a>>,
    cut: Cut,
    stream: &[u8],
    piece: usize,
) -> Result<BTreeMap<u64, Vec<u8>>, io::Error> {
    let (mut sink, receiver) = handover(layout, cut, 2).expect("a good cut");
    let write = async move {
        for bytes in stream.chunks(piece) {
            sink.write_all(bytes).await?;
        }
        sink.flush().await
    };
    let (written, (chunks, ended)) = tokio::join!(write, all(receiver));
    written?;
    assert_eq!(ended, Ok(()));
    Ok(chunks)
}

fn run<T>(work: impl Future<Output = T>) -> T {
    Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

fn refusal(error: &io::Error) -> &ChunkError {
    error.get_ref().and_then(|error| error.downcast_ref()).expect("the sink's own error")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Any sectors may come; the disk of the store may be larger than that of the stream.
    #[test]
    fn a_full_copy_gives_every_chunk_that_it_touches(
        ranges in proptest::collection::vec((0..2000u64, 1..300u64), 0..8), frame in 1..300u32, piece in 1..400_000usize,
        chunk in prop_oneof![Just(65536u32), Just(KIB_128), Just(1 << 20)], more in 0..5000u64,
    ) {
        let disk = pattern(2000 * 512);
        let size = disk.len() as u64;
        let sent = extents(&ranges.iter().map(|(from, count)| (from * 512, count * 512)).collect::<Vec<_>>()).clipped(size);
        let stream = chunked(&disk, &sent, frame * 512);
        let cut = cut(chunk, size + more * 512, Gaps::Zero);
        let chunks = run(chunks_of(&plan(size, &sent, Coverage::Whole), cut, &stream, piece)).unwrap();
        prop_assert!(chunks == expected(&disk, &sent, cut));
    }

    #[test]
    fn a_delta_of_whole_chunks_passes(
        numbers in proptest::collection::btree_set(0..20u64, 0..12), frame in 1..900u32, piece in 1..400_000usize,
    ) {
        // The last chunk is a short one of the stream's disk, and not of the store's.
        let disk = pattern(20 * u64::from(KIB_128) - 1536);
        let size = disk.len() as u64;
        let whole: Vec<_> = numbers.iter().map(|number| (number * u64::from(KIB_128), u64::from(KIB_128))).collect();
        let sent = extents(&whole).clipped(size);
        let cut = cut(KIB_128, 2 << 21, Gaps::Refused);
        let stream = chunked(&disk, &sent, frame * 512);
        let chunks = run(chunks_of(&plan(size, &sent, Coverage::Whole), cut, &stream, piece)).unwrap();
        prop_assert!(chunks == expected(&disk, &sent, cut));
    }

    #[test]
    fn blocks_of_a_vhd_are_cut(
        blocks in proptest::collection::btree_set(0..4u32, 0..4), piece in 1..600_000usize,
        chunk in prop_oneof![Just(65536u32), Just(2 << 20)], gaps in prop_oneof![Just(Gaps::Zero), Just(Gaps::Refused)],
    ) {
        let disk = pattern(3 * u64::from(BLOCK_SIZE) + 70_000 / 512 * 512);
        let size = disk.len() as u64;
        let writer = vhd_writer(size, &blocks.into_iter().collect::<Vec<_>>());
        let cut = cut(chunk, 4 * u64::from(BLOCK_SIZE), gaps);
        let chunks = run(chunks_of(writer.head(), cut, &vhd(&writer, &disk), piece)).unwrap();
        prop_assert!(chunks == expected(&disk, &Extents::of_vhd(writer.head()), cut));
    }
}

#[test]
fn a_delta_of_half_a_chunk_is_refused() {
    let disk = pattern(1 << 20);
    let refused = |ranges: &[(u64, u64)]| {
        let sent = extents(ranges);
        let stream = chunked(&disk, &sent, 1 << 20);
        let plan = plan(1 << 20, &sent, Coverage::Whole);
        let error = run(chunks_of(&plan, cut(KIB_128, 1 << 20, Gaps::Refused), &stream, 100_000)).unwrap_err();
        refusal(&error).clone()
    };
    let partial = |disk_offset| ChunkError::Partial { disk_offset, chunk_size: KIB_128.into() };
    assert_eq!(refused(&[(LEAF, LEAF)]), partial(0));
    assert_eq!(refused(&[(2 * LEAF, LEAF), (6 * LEAF, 2 * LEAF)]), partial(2 * LEAF));
    assert_eq!(refused(&[(14 * LEAF, LEAF)]), partial(14 * LEAF));
}

#[test]
fn what_cannot_be_cut_is_refused() {
    let plan = plan(1 << 20, &Extents::new(), Coverage::Whole);
    let refused = |chunk_size, disk_size| handover(&plan, cut(chunk_size, disk_size, Gaps::Zero), 1).map(|_| ());
    for size in [0, 512, 32 << 10, 96 << 10, 4 << 20] {
        assert_eq!(refused(size, 1 << 20), Err(ChunkError::BadSize { size }));
    }
    let (stream, disk) = (1 << 20, (1 << 20) - 512);
    assert_eq!(refused(KIB_128, disk), Err(ChunkError::BeyondDisk { stream, disk }));
}

/// A stream of eight chunks, and the ends of its handover.
fn eight_chunks(ahead: usize) -> (Vec<u8>, ChunkSink, ChunkReceiver) {
    let (disk, whole) = (pattern(8 * LEAF), Extents::whole_disk(8 * LEAF));
    let plan = plan(8 * LEAF, &whole, Coverage::Whole);
    let (sink, receiver) = handover(&plan, cut(LEAF as u32, 8 * LEAF, Gaps::Refused), ahead).expect("a good cut");
    (chunked(&disk, &whole, 1 << 20), sink, receiver)
}

/// What the sink takes of `bytes` at once.
async fn taken(sink: &mut ChunkSink, bytes: &[u8]) -> usize {
    poll_fn(|cx| match Pin::new(&mut *sink).poll_write(cx, bytes) {
        Poll::Ready(taken) => Poll::Ready(taken.expect("a good stream")),
        Poll::Pending => Poll::Ready(0),
    })
    .await
}

#[tokio::test]
async fn the_sink_takes_no_more_than_it_may_fill_ahead() {
    let (stream, mut sink, mut receiver) = eight_chunks(3);
    let leaf = LEAF as usize;
    assert_eq!(taken(&mut sink, &stream).await, 12 + 3 * leaf);
    assert_eq!(taken(&mut sink, &stream[12 + 3 * leaf..]).await, 0);
    let first = receiver.next().await.unwrap().expect("a chunk");
    assert_eq!(taken(&mut sink, &stream[12 + 3 * leaf..]).await, leaf);
    assert_eq!(first.bytes, stream[12..12 + leaf]);
}

#[tokio::test]
async fn chunks_that_are_held_do_not_stop_the_others() {
    let (stream, mut sink, mut receiver) = eight_chunks(1);
    let write = async {
        sink.write_all(&stream).await?;
        sink.flush().await
    };
    let take = async {
        let mut held = Vec::new();
        while let Some(chunk) = receiver.next().await.expect("a whole stream") {
            held.push(chunk);
        }
        held
    };
    let (written, held) = tokio::join!(write, take);
    written.unwrap();
    assert_eq!(held.iter().map(|chunk| chunk.offset).collect::<Vec<_>>(), (0..8).map(|n| n * LEAF).collect::<Vec<_>>());
    assert!(held.iter().all(|chunk| chunk.bytes[..] == stream[12 + chunk.offset as usize..][..LEAF as usize]));
}

#[tokio::test]
async fn memory_is_used_again_once_it_is_dropped() {
    let (stream, mut sink, mut receiver) = eight_chunks(2);
    let mut places = BTreeSet::new();
    let write = sink.write_all(&stream);
    let take = async {
        for _ in 0..8 {
            let chunk = receiver.next().await.expect("a good stream").expect("a chunk");
            places.insert(chunk.bytes.as_ptr() as usize);
        }
    };
    tokio::join!(write, take).0.unwrap();
    assert!(places.len() <= 3, "{} buffers for 2 chunks ahead and one that is looked at", places.len());
}

#[tokio::test]
async fn only_a_flushed_sink_has_an_end() {
    let (stream, mut sink, receiver) = eight_chunks(9);
    sink.write_all(&stream).await.unwrap();
    drop(sink);
    assert_eq!(all(receiver).await.1, Err(BrokenOff("the transfer ended before the stream did".to_owned())));

    let (stream, mut sink, mut receiver) = eight_chunks(9);
    sink.write_all(&stream[..stream.len() - 1]).await.unwrap();
    sink.flush().await.unwrap();
    assert!(receiver.next().await.unwrap().is_some());
    sink.abort("the source host went down");
    assert_eq!(receiver.next().await, Err(BrokenOff("the source host went down".to_owned())));
}

#[tokio::test]
async fn a_damaged_stream_fails_the_sink() {
    let (mut stream, mut sink, _receiver) = eight_chunks(9);
    stream[8..12].copy_from_slice(&0u32.to_le_bytes());
    let error = sink.write_all(&stream).await.unwrap_err();
    assert!(matches!(refusal(&error), ChunkError::Chunked(_)), "{error}");
    assert!(!sink.lends_socket());
}

/// A transfer to a store that works in a runtime of its own, and to one that gives up.
#[test]
fn a_store_in_another_runtime_gets_everything_and_one_that_gives_up_fails_alone() {
    let disk = pattern(16 << 20);
    let writer = vhd_writer(disk.len() as u64, &[0, 1, 2, 3, 4, 5, 6, 7]);
    let stream = vhd(&writer, &disk);
    let cut = cut(1 << 20, disk.len() as u64, Gaps::Zero);
    let (good, receiver) = handover(writer.head(), cut, 2).unwrap();
    let (bad, mut gives_up) = handover(writer.head(), cut, 2).unwrap();
    let store = spawn(move || run(all(receiver)));
    let other = spawn(move || {
        run(async {
            gives_up.next().await.expect("a good stream").expect("a chunk");
            gives_up.refuse("the bucket is gone");
        });
    });
    let outcome = run(async {
        let mut source = Source(stream.as_slice());
        let head = Head::read(&mut source).await.expect("a good head");
        relay(&mut source, &head, &mut [good, bad], options()).await.expect("a good stream")
    });
    other.join().expect("it gave up");
    assert!(matches!(outcome.not_spliced, Some(NotSpliced::Source)));
    assert!(outcome.sinks[0].result.is_ok());
    let Err(SinkError::Io { source, .. }) = &outcome.sinks[1].result else { panic!("{:?}", outcome.sinks[1]) };
    assert_eq!(source.to_string(), "the bucket is gone");
    let (chunks, ended) = store.join().expect("everything came");
    assert_eq!(ended, Ok(()));
    assert!(chunks == expected(&disk, &Extents::whole_disk(disk.len() as u64), cut));
}

/// Bytes in memory as a source.
struct Source<'a>(&'a [u8]);

impl tokio::io::AsyncRead for Source<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl vmferry_disk::transfer::SocketReader for Source<'_> {}
