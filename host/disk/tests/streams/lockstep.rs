//! Transfers between ends that fail at every interesting place.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex, repeat};
use tokio::time::{Instant, sleep};
use vmferry_disk::digest::{LEAF_SIZE, Leaf};
use vmferry_disk::transfer::{Content, Options, Outcome, Progress, SinkError, TransferError, lockstep};
use vmferry_disk::vhd::{DiskType, Head, HeadError, VhdError, Writer};

use crate::model::{self, Model, ModelBlock};

const STALL: Duration = Duration::from_secs(30);
const FIRST_BYTE: Duration = Duration::from_secs(600);

const USED: [u32; 3] = [0, 2, 3];

fn disk() -> Vec<u8> {
    let mut disk = model::pattern(8 << 20, 99);
    disk[100_000..300_000].fill(0);
    disk
}

/// Three blocks of 2 MiB: the head ends at 2560, the last footer starts at 6,295,552.
fn stream() -> Vec<u8> {
    let disk = disk();
    let writer = Writer::new(&model::new_disk(disk.len() as u64), &USED).expect("a small disk");
    model::render(&writer, &disk)
}

/// A sink that takes bytes until `limit` and then does what `then` says.
struct Sink {
    taken: Vec<u8>,
    limit: usize,
    then: Then,
    flushed: bool,
}

#[derive(Clone, Copy)]
enum Then {
    Fail,
    Close,
    Stall,
    FailToFlush,
}

impl Sink {
    fn good() -> Self {
        Self::bad(usize::MAX, Then::Fail)
    }

    fn bad(limit: usize, then: Then) -> Self {
        Self { taken: Vec::new(), limit, then, flushed: false }
    }
}

impl AsyncWrite for Sink {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let room = self.limit - self.taken.len();
        if room == 0 {
            return match self.then {
                Then::Fail | Then::FailToFlush => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                Then::Close => Poll::Ready(Ok(0)),
                Then::Stall => Poll::Pending,
            };
        }
        let n = bytes.len().min(room).min(100_000);
        self.taken.extend(&bytes[..n]);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if matches!(self.then, Then::FailToFlush) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.flushed = true;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[derive(Default)]
struct Counts {
    read: AtomicU64,
    written: [AtomicU64; 3],
}

impl Progress for Counts {
    fn read(&self, bytes: u64) {
        self.read.fetch_add(bytes, Relaxed);
    }

    fn written(&self, sink: usize, bytes: u64) {
        self.written[sink].fetch_add(bytes, Relaxed);
    }
}

fn options(progress: &dyn Progress) -> Options<'_> {
    Options { leaves: None, progress, throttles: &[], stall: STALL, first_byte: FIRST_BYTE }
}

/// Reads the head and moves the rest.
async fn transfer<R, W>(mut source: R, sinks: &mut [W]) -> Result<Outcome, TransferError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let head = Head::read(&mut source).await.expect("a good head");
    lockstep(&mut source, &head, sinks, options(&())).await
}

#[tokio::test]
async fn every_sink_gets_every_byte_and_they_are_counted() {
    let stream = stream();
    let mut source = stream.as_slice();
    let head = Head::read(&mut source).await.unwrap();
    let mut sinks = [Sink::good(), Sink::good(), Sink::good()];
    let counts = Counts::default();
    let mut leaves = Vec::new();
    let mut take = |leaf, digest| leaves.push((leaf, digest));
    let options = Options { leaves: Some(&mut take), ..options(&counts) };
    let outcome = lockstep(&mut source, &head, &mut sinks, options).await.unwrap();

    let length = stream.len() as u64;
    assert_eq!(outcome.engine.to_string(), "lockstep");
    assert_eq!((outcome.bytes_read, counts.read.load(Relaxed)), (length, length));
    for (index, sink) in sinks.iter().enumerate() {
        assert!(sink.taken == stream && sink.flushed, "sink {index}");
        assert_eq!(outcome.sinks[index].bytes_written, length);
        assert_eq!(counts.written[index].load(Relaxed), length);
        assert!(outcome.sinks[index].result.is_ok());
    }
    let Content::Vhd(report) = outcome.content else { panic!("{:?}", outcome.content) };
    assert_eq!((report.blocks, report.partial_blocks), (3, 0));
    assert_eq!((report.data_bytes, outcome.content.data_bytes()), (6 << 20, 6 << 20));
    let disk = disk();
    let expected: Vec<_> = (0..)
        .zip(disk.chunks(LEAF_SIZE as usize).map(Leaf::of))
        .filter(|(leaf, _)| USED.contains(&((leaf / 32) as u32)))
        .collect();
    assert_eq!(leaves, expected);
    assert!(expected.iter().any(|(_, leaf)| *leaf == Leaf::ZERO));
}

#[tokio::test]
async fn a_stream_without_blocks_passes() {
    let writer = Writer::new(&model::new_disk(8 << 20), &[]).unwrap();
    let stream = model::render(&writer, &[]);
    let mut sinks = [Vec::new()];
    let outcome = transfer(stream.as_slice(), &mut sinks).await.unwrap();
    assert_eq!((outcome.bytes_read, outcome.content.data_bytes()), (3072, 0));
    assert_eq!(sinks[0], stream);
}

#[tokio::test]
async fn without_sinks_a_stream_is_only_checked() {
    let stream = stream();
    let outcome = transfer(stream.as_slice(), &mut [] as &mut [Sink]).await.unwrap();
    assert_eq!((outcome.bytes_read, outcome.sinks.len()), (stream.len() as u64, 0));
    transfer(&stream[..5000], &mut [] as &mut [Sink]).await.unwrap_err();
}

/// Bytes come in any sizes from a socket; here from a pipe of an odd size.
#[tokio::test]
async fn the_sizes_of_reads_and_writes_do_not_matter() {
    for pipe in [777, 65_536, 1 << 20] {
        let stream = stream();
        let (mut near, far) = duplex(pipe);
        let (sink, mut taker) = duplex(pipe / 2);
        let mut sinks = [sink];
        let sent = stream.clone();
        let sender = tokio::spawn(async move { near.write_all(&sent).await });
        let taken = tokio::spawn(async move {
            let mut taken = Vec::new();
            taker.read_to_end(&mut taken).await.map(|_| taken)
        });
        transfer(far, &mut sinks).await.unwrap();
        drop(sinks);
        sender.await.unwrap().unwrap();
        assert!(taken.await.unwrap().unwrap() == stream, "pipe of {pipe}");
    }
}

#[tokio::test]
async fn a_cut_source_is_an_error_wherever_it_is_cut() {
    let stream = stream();
    let (head, block, length) = (2560, 512 + (2 << 20), stream.len());
    for at in [0, 100, 512, 1536, 2047, 2048, head - 1] {
        let error = Head::read(&mut &stream[..at]).await.unwrap_err();
        assert!(matches!(error, HeadError::Truncated { at: found } if found == at as u64));
    }
    let inside = [
        head,
        head + 1,
        head + 511,
        head + 512,
        head + 70_000,
        head + block - 1,
        head + block,
        head + block + 512,
        length - 512 - 1,
        length - 512,
        length - 1,
    ];
    for at in inside {
        let mut sinks = [Sink::good()];
        let error = transfer(&stream[..at], &mut sinks).await.unwrap_err();
        let TransferError::Truncated { at: found, expected } = error else {
            panic!("cut at {at}: {error}");
        };
        assert_eq!((found, expected), (at as u64, Some(length as u64)));
        assert!(sinks[0].taken == stream[..at]);
    }
}

/// TLS reports a peer that just closes as an unexpected end.
struct ClosesRudely<'a>(&'a [u8]);

impl AsyncRead for ClosesRudely<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.0.is_empty() {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

#[tokio::test]
async fn a_rude_end_is_judged_by_the_structure() {
    let stream = stream();
    let mut sinks = [Sink::good()];
    transfer(ClosesRudely(&stream), &mut sinks).await.unwrap();
    assert!(sinks[0].taken == stream);
    let error = transfer(ClosesRudely(&stream[..9999]), &mut [Sink::good()]).await.unwrap_err();
    assert!(matches!(error, TransferError::Truncated { at: 9999, .. }), "{error}");
}

#[tokio::test]
async fn a_failing_source_is_the_source_s_fault() {
    let stream = stream();
    let broken = resetting_after(&stream[..1_000_000]);
    let mut sinks = [Sink::good()];
    let error = transfer(broken, &mut sinks).await.unwrap_err();
    let TransferError::Source { at, source } = error else { panic!("{error}") };
    assert_eq!((at, source.kind()), (1_000_000, io::ErrorKind::ConnectionReset));
    assert!(sinks[0].taken == stream[..1_000_000], "what came before is passed on");
}

/// Gives `bytes`, then a reset, once.
fn resetting_after(bytes: &[u8]) -> impl AsyncRead + Unpin + '_ {
    struct Resets(bool);
    impl AsyncRead for Resets {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut tokio::io::ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if std::mem::replace(&mut self.0, true) {
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }
    }
    bytes.chain(Resets(false))
}

#[tokio::test]
async fn an_endless_source_is_refused_before_its_end_is_passed_on() {
    let stream = stream();
    let source = stream.as_slice().chain(repeat(0));
    let mut sinks = [Sink::good()];
    let error = transfer(source, &mut sinks).await.unwrap_err();
    let at = stream.len() as u64;
    assert!(matches!(error, TransferError::Structure(VhdError::TrailingBytes { at: found }) if found == at), "{error}");
    assert!(sinks[0].taken.len() < stream.len());
}

/// A head that arrived whole and good may still be followed by anything.
#[tokio::test]
async fn a_flipped_bit_in_the_metadata_is_an_error() {
    let good = stream();
    let (first_bitmap, footer) = (2560, good.len() - 512);
    for at in [0, 70, 600, 2048, 2049] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        let mut source = bad.as_slice();
        let refused = match Head::read(&mut source).await {
            Err(_) => true,
            Ok(head) => lockstep(&mut source, &head, &mut [Sink::good()], options(&())).await.is_err(),
        };
        assert!(refused, "bit at byte {at}");
    }
    for at in [footer, footer + 64, footer + 511] {
        let mut bad = good.clone();
        bad[at] ^= 0x80;
        let mut sinks = [Sink::good()];
        let error = transfer(bad.as_slice(), &mut sinks).await.unwrap_err();
        assert!(matches!(error, TransferError::Structure(VhdError::FooterMismatch { .. })), "{error}");
        assert!(sinks[0].taken.len() < good.len());
    }
    let mut bad = good.clone();
    bad[first_bitmap + 100] ^= 0x10;
    let mut source = bad.as_slice();
    let head = Head::read(&mut source).await.unwrap();
    let mut take = |_, _| {};
    let options = Options { leaves: Some(&mut take), ..options(&()) };
    let error = lockstep(&mut source, &head, &mut [Sink::good()], options).await.unwrap_err();
    assert!(matches!(error, TransferError::PartialBitmap { disk_offset: 411_136 }), "{error}");
}

/// XAPI's exports never do this, so it is damage, and the importer would leave a sector out.
#[tokio::test]
async fn a_sector_left_out_of_a_block_is_an_error_with_and_without_digests() {
    let block = ModelBlock {
        number: 0,
        gap: 0,
        set: (0..128).map(|sector| sector < 127).collect(),
        data: model::pattern(65536, 0),
    };
    let stream = Model {
        virtual_size: 65536,
        block_size: 65536,
        header_offset: 512,
        table_gap: 512,
        spare_entries: 0,
        disk_type: DiskType::Differencing,
        blocks: vec![block],
    }
    .encode();
    for digests in [true, false] {
        let mut source = stream.as_slice();
        let head = Head::read(&mut source).await.unwrap();
        let mut take = |_, _| {};
        let leaves: Option<&mut (dyn FnMut(u64, Leaf) + Send)> = if digests { Some(&mut take) } else { None };
        let mut sinks = [Sink::good()];
        let error = lockstep(&mut source, &head, &mut sinks, Options { leaves, ..options(&()) }).await.unwrap_err();
        assert!(matches!(error, TransferError::PartialBitmap { disk_offset: 65024 }), "{error}");
        assert!(sinks[0].taken.len() < stream.len());
    }
}

#[tokio::test]
async fn a_failing_sink_does_not_disturb_the_others() {
    let stream = stream();
    let length = stream.len();
    for limit in [0, 100, 2560, 3000, 1_000_000, length - 512, length - 1] {
        for then in [Then::Fail, Then::Close] {
            let mut sinks = [Sink::good(), Sink::bad(limit, then), Sink::good()];
            let outcome = transfer(stream.as_slice(), &mut sinks).await.unwrap();
            assert!(sinks[0].taken == stream && sinks[2].taken == stream);
            assert!(outcome.sinks[0].result.is_ok() && outcome.sinks[2].result.is_ok());
            assert_eq!(outcome.sinks[1].bytes_written, limit as u64);
            let error = outcome.sinks[1].result.as_ref().unwrap_err();
            let at = match (error, then) {
                (SinkError::Io { at, .. }, Then::Fail) | (SinkError::Closed { at }, Then::Close) => *at,
                _ => panic!("{error}"),
            };
            assert_eq!(at, limit as u64);
        }
    }
}

#[tokio::test]
async fn a_sink_that_cannot_flush_has_failed() {
    let stream = stream();
    let mut sinks = [Sink::bad(usize::MAX, Then::FailToFlush), Sink::good()];
    let outcome = transfer(stream.as_slice(), &mut sinks).await.unwrap();
    assert!(matches!(outcome.sinks[0].result, Err(SinkError::Io { at, .. }) if at == stream.len() as u64));
    assert!(outcome.sinks[1].result.is_ok());
}

#[tokio::test]
async fn without_a_sink_left_the_source_is_not_read_any_further() {
    let stream = stream();
    let mut source = stream.as_slice();
    let head = Head::read(&mut source).await.unwrap();
    let mut sinks = [Sink::bad(10_000, Then::Fail), Sink::bad(600_000, Then::Close)];
    let error = lockstep(&mut source, &head, &mut sinks, options(&())).await.unwrap_err();
    let TransferError::NoSinkLeft { at, sinks } = error else { panic!("{error}") };
    assert_eq!(at as usize, stream.len() - source.len());
    assert!((600_000..1_000_000).contains(&at));
    assert!(matches!(sinks[0].result, Err(SinkError::Io { at: 10_000, .. })));
    assert!(matches!(sinks[1].result, Err(SinkError::Closed { at: 600_000 })));
}

#[tokio::test(start_paused = true)]
async fn a_stalled_source_is_named() {
    let stream = stream();
    for (sent, limit) in [(2560, FIRST_BYTE), (2_000_000, STALL), (stream.len(), STALL)] {
        let (mut near, far) = duplex(stream.len());
        near.write_all(&stream[..sent]).await.unwrap();
        let before = Instant::now();
        let mut sinks = [Sink::good()];
        let error = transfer(far, &mut sinks).await.unwrap_err();
        let TransferError::SourceStalled { at, waited } = error else { panic!("{error}") };
        assert_eq!((at as usize, waited), (sent, limit));
        assert_eq!(before.elapsed().as_secs(), limit.as_secs());
        assert!(sinks[0].taken.len() < stream.len());
    }
}

#[tokio::test(start_paused = true)]
async fn a_stalled_sink_is_dropped_and_the_others_go_on() {
    let stream = stream();
    let before = Instant::now();
    let mut sinks = [Sink::bad(3_000_000, Then::Stall), Sink::good()];
    let outcome = transfer(stream.as_slice(), &mut sinks).await.unwrap();
    assert!(sinks[1].taken == stream);
    let Err(SinkError::Stalled { at: 3_000_000, waited }) = outcome.sinks[0].result else {
        panic!("{:?}", outcome.sinks[0]);
    };
    // Its first wait, which may be an import that attaches its disk.
    assert_eq!((waited, before.elapsed().as_secs()), (FIRST_BYTE, FIRST_BYTE.as_secs()));
}

/// A pipe whose far end takes `bytes` every `pause`, `times` times.
fn slow_taker(pipe: usize, bytes: usize, pause: Duration, times: usize) -> tokio::io::DuplexStream {
    let (sink, mut taker) = duplex(pipe);
    tokio::spawn(async move {
        let mut buffer = vec![0; bytes];
        for _ in 0..times {
            sleep(pause).await;
            if taker.read_exact(&mut buffer).await.is_err() {
                return;
            }
        }
        std::future::pending::<()>().await;
    });
    sink
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_stalls_later_has_the_shorter_limit() {
    let stream = stream();
    let before = Instant::now();
    let mut sinks = [slow_taker(4096, 4096, FIRST_BYTE / 2, 1)];
    let error = transfer(stream.as_slice(), &mut sinks).await.unwrap_err();
    let TransferError::NoSinkLeft { sinks, .. } = error else { panic!("{error}") };
    let Err(SinkError::Stalled { at: 8192, waited: STALL }) = sinks[0].result else {
        panic!("{:?}", sinks[0]);
    };
    assert_eq!(before.elapsed().as_secs(), (FIRST_BYTE / 2 + STALL).as_secs());
}

#[tokio::test(start_paused = true)]
async fn slow_is_not_stalled() {
    let stream = stream();
    let almost = STALL - Duration::from_secs(1);
    let steps = stream.len() / 100_000;
    let (mut near, far) = duplex(stream.len());
    let sent = stream.clone();
    tokio::spawn(async move {
        for bytes in sent.chunks(500_000) {
            near.write_all(bytes).await?;
            sleep(almost).await;
        }
        near.shutdown().await
    });
    let mut sinks = [slow_taker(50_000, 100_000, almost, steps + 1)];
    let before = Instant::now();
    let outcome = transfer(far, &mut sinks).await.unwrap();
    assert!(outcome.sinks[0].result.is_ok());
    assert!(before.elapsed() > 10 * STALL);
}

#[tokio::test]
async fn a_transfer_can_be_spawned() {
    let stream = stream();
    let task = tokio::spawn(async move {
        let mut leaves = 0;
        let mut source = stream.as_slice();
        let head = Head::read(&mut source).await.unwrap();
        let mut take = |_, _| leaves += 1;
        let options = Options { leaves: Some(&mut take), ..options(&()) };
        lockstep(&mut source, &head, &mut [Vec::new()], options).await.unwrap();
        leaves
    });
    assert_eq!(task.await.unwrap(), 96);
}
