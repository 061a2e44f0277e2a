//! Transfers whose payload the kernel moves, and when it does not.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use vmferry_disk::chunked::{Coverage, Plan};
use vmferry_disk::extent::Extents;
use vmferry_disk::transfer::{
    EngineName, NotSpliced, Options, Outcome, Progress, SinkError, SocketCall, SocketReader, SocketWriter,
    TransferError, relay,
};
use vmferry_disk::vhd::{DiskType, Head, Writer};

use crate::model::{self, Model, ModelBlock};
use crate::tcp::{self, Failing, Meter, Stop};

fn options(progress: &dyn Progress) -> Options<'_> {
    let minute = Duration::from_secs(60);
    Options { leaves: None, progress, throttles: &[], stall: minute, first_byte: minute }
}

/// Five blocks of 2 MiB.
fn stream() -> Vec<u8> {
    let disk = model::pattern(16 << 20, 5);
    let writer = Writer::new(&model::new_disk(disk.len() as u64), &[0, 1, 3, 4, 7]).expect("a small disk");
    model::render(&writer, &disk)
}

/// Relays `stream` from one TCP connection to `count` others. Every sink has to get every byte.
async fn relay_whole(stream: &[u8], count: usize) -> Outcome {
    let meter = Meter::new();
    let mut source = tcp::source(stream.to_vec(), Stop::Close, &meter).await;
    let (mut sinks, mut takers) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let (sink, taker) = tcp::sink(usize::MAX, Stop::Close).await;
        sinks.push(sink);
        takers.push(taker);
    }
    let head = Head::read(&mut source).await.expect("a good head");
    let outcome = relay(&mut source, &head, &mut sinks, options(&meter)).await.expect("a good stream");
    drop(sinks);
    assert_eq!(outcome.bytes_read, stream.len() as u64);
    for (taker, sink) in takers.into_iter().zip(&outcome.sinks) {
        assert!(taker.bytes().await == stream);
        assert!(sink.result.is_ok());
        assert_eq!(sink.bytes_written, stream.len() as u64);
    }
    outcome
}

#[tokio::test]
async fn the_kernel_moves_a_stream_to_any_number_of_sinks() {
    let stream = stream();
    for count in [1, 2, 3, 5] {
        let outcome = relay_whole(&stream, count).await;
        assert_eq!(outcome.engine, EngineName::Splice, "{:?}", outcome.not_spliced);
        assert_eq!(outcome.content.data_bytes(), 10 << 20);
    }
}

#[tokio::test]
async fn a_stream_without_blocks_is_relayed() {
    let writer = Writer::new(&model::new_disk(8 << 20), &[]).unwrap();
    let outcome = relay_whole(&model::render(&writer, &[]), 2).await;
    assert_eq!(outcome.content.data_bytes(), 0);
}

/// Blocks of other sizes (bitmaps from one sector to 16), gaps, and an order of their own.
#[tokio::test]
async fn streams_of_every_shape_are_relayed() {
    for (block_size, gap) in [(4096, 0), (65536, 3), (2 << 20, 5000), (32 << 20, 1)] {
        let block = |number| ModelBlock {
            number,
            gap,
            set: vec![true; block_size as usize / 512],
            data: model::pattern(block_size as usize, number.into()),
        };
        let model = Model {
            virtual_size: 4 * u64::from(block_size),
            block_size,
            header_offset: 1024,
            table_gap: 512,
            spare_entries: 7,
            disk_type: DiskType::Differencing,
            blocks: vec![block(2), block(0), block(3)],
        };
        let outcome = relay_whole(&model.encode(), 2).await;
        assert_eq!(outcome.engine, EngineName::Splice, "{:?}", outcome.not_spliced);
    }
}

/// A source and a sink whose kernel may refuse, and a source that has read ahead.
struct Reluctant {
    tcp: TcpStream,
    refuses: bool,
    ahead: Vec<u8>,
}

impl AsyncRead for Reluctant {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.tcp).poll_read(cx, buf);
        }
        let n = buf.remaining().min(self.ahead.len());
        buf.put_slice(&self.ahead.drain(..n).collect::<Vec<_>>());
        Poll::Ready(Ok(()))
    }
}

impl SocketReader for Reluctant {
    fn lends_socket(&self) -> bool {
        true
    }

    fn read_ahead(&self) -> usize {
        self.ahead.len()
    }

    fn poll_read_call(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        call: &mut SocketCall<'_>,
    ) -> Poll<io::Result<usize>> {
        assert!(self.ahead.is_empty(), "what was read ahead comes first");
        if self.refuses {
            return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
        }
        Pin::new(&mut self.tcp).poll_read_call(cx, call)
    }
}

impl AsyncWrite for Reluctant {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        // A few bytes at a time, so that a refusal finds a bitmap partly written.
        Pin::new(&mut self.tcp).poll_write(cx, &bytes[..bytes.len().min(100_000)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

impl SocketWriter for Reluctant {
    fn lends_socket(&self) -> bool {
        true
    }

    fn poll_write_call(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        call: &mut SocketCall<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.refuses {
            return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
        }
        Pin::new(&mut self.tcp).poll_write_call(cx, call)
    }
}

/// Who refuses, and what was read ahead of `stream`: the outcome. All sinks have to get every byte.
async fn relay_reluctantly(stream: &[u8], source_refuses: bool, sinks_refuse: &[bool], ahead: usize) -> Outcome {
    let meter = Meter::new();
    let (ahead, rest) = stream.split_at(ahead);
    let tcp = tcp::source(rest.to_vec(), Stop::Close, &meter).await;
    let mut source = Reluctant { tcp, refuses: source_refuses, ahead: ahead.to_vec() };
    let (mut sinks, mut takers) = (Vec::new(), Vec::new());
    for refuses in sinks_refuse {
        let (tcp, taker) = tcp::sink(usize::MAX, Stop::Close).await;
        sinks.push(Reluctant { tcp, refuses: *refuses, ahead: Vec::new() });
        takers.push(taker);
    }
    let head = Head::read(&mut source).await.expect("a good head");
    let outcome = relay(&mut source, &head, &mut sinks, options(&meter)).await.expect("a good stream");
    drop(sinks);
    for taker in takers {
        assert!(taker.bytes().await == stream);
    }
    assert!(outcome.sinks.iter().all(|sink| sink.result.is_ok()));
    outcome
}

#[tokio::test]
async fn where_the_kernel_refuses_lockstep_goes_on() {
    let stream = stream();
    for (source, sinks) in [
        (true, [false, false, false].as_slice()),
        (true, &[false]),
        (false, &[true]),
        (false, &[true, true, true]),
        (false, &[true, false, false]),
        (false, &[false, false, true]),
    ] {
        let outcome = relay_reluctantly(&stream, source, sinks, 0).await;
        assert_eq!(outcome.engine, EngineName::Lockstep);
        assert!(matches!(outcome.not_spliced, Some(NotSpliced::Kernel(_))), "{:?}", outcome.not_spliced);
    }
}

#[tokio::test]
async fn what_was_read_ahead_comes_first() {
    let stream = stream();
    let head = model::head_of(&stream).unwrap().raw().len();
    for ahead in [1, head, head + 1, head + 512, head + 700, head + 4096, head + 512 + (2 << 20), head + (5 << 20)] {
        let outcome = relay_reluctantly(&stream, false, &[false, false], ahead).await;
        assert_eq!(outcome.engine, EngineName::Splice, "{ahead} bytes ahead: {:?}", outcome.not_spliced);
    }
}

/// Ends without a socket to lend.
struct Opaque<T>(T);

impl<T: AsyncRead + Unpin> AsyncRead for Opaque<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Opaque<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl<T: AsyncRead + Unpin> SocketReader for Opaque<T> {}
impl<T: AsyncWrite + Unpin> SocketWriter for Opaque<T> {}

#[tokio::test]
async fn the_outcome_says_why_the_kernel_was_not_asked() {
    let stream = stream();
    let head = model::head_of(&stream).unwrap();
    let rest = &stream[head.raw().len()..];
    let meter = Meter::new();

    let mut sinks = [Opaque(Vec::new())];
    let outcome = relay(&mut Opaque(rest), &head, &mut sinks, options(&())).await.unwrap();
    assert_eq!(outcome.engine, EngineName::Lockstep);
    assert!(matches!(outcome.not_spliced, Some(NotSpliced::Source)));
    assert!(sinks[0].0 == stream);

    let mut source = tcp::source(rest.to_vec(), Stop::Close, &meter).await;
    let outcome = relay(&mut source, &head, &mut sinks, options(&())).await.unwrap();
    assert!(matches!(outcome.not_spliced, Some(NotSpliced::Sink { sink: 0 })));

    let mut source = tcp::source(rest.to_vec(), Stop::Close, &meter).await;
    let mut leaves = 0;
    let mut take = |_, _| leaves += 1;
    let digest = Options { leaves: Some(&mut take), ..options(&()) };
    let outcome = relay(&mut source, &head, &mut sinks, digest).await.unwrap();
    assert!(matches!(outcome.not_spliced, Some(NotSpliced::Digest)));
    assert_eq!(leaves, 160);

    let mut source = tcp::source(rest.to_vec(), Stop::Close, &meter).await;
    let outcome = relay(&mut source, &head, &mut [] as &mut [TcpStream], options(&())).await.unwrap();
    assert!(matches!(outcome.not_spliced, Some(NotSpliced::NoSink)));
    assert_eq!(outcome.bytes_read, stream.len() as u64);

    let plan = Plan::new(8 << 20, Extents::new(), Coverage::Whole).unwrap();
    let mut source = tcp::source(vec![0; 12], Stop::Close, &meter).await;
    let outcome = relay(&mut source, &plan, &mut [] as &mut [TcpStream], options(&())).await.unwrap();
    assert!(matches!(outcome.not_spliced, Some(NotSpliced::Chunked)));
}

/// Whichever sink it is, the last one included, which is served from the pipe that the others get copies of.
#[tokio::test]
async fn a_sink_that_fails_does_not_disturb_the_others() {
    let stream = stream();
    for failing in 0..3 {
        for stop in [Stop::Close, Stop::Reset] {
            for left in [0, 2560, 3072, 100_000, 5_000_000] {
                let meter = Meter::new();
                let mut source = tcp::source(stream.clone(), Stop::Close, &meter).await;
                let (mut sinks, mut takers) = (Vec::new(), Vec::new());
                for sink in 0..3 {
                    let (tcp, taker) = tcp::sink(usize::MAX, Stop::Close).await;
                    let left = if sink == failing { left } else { usize::MAX };
                    sinks.push(Failing { tcp, left, stop });
                    takers.push(taker);
                }
                let head = Head::read(&mut source).await.unwrap();
                let outcome = relay(&mut source, &head, &mut sinks, options(&meter)).await.unwrap();
                drop(sinks);
                assert_eq!(outcome.engine, EngineName::Splice, "{:?}", outcome.not_spliced);
                for (sink, (taker, told)) in takers.into_iter().zip(&outcome.sinks).enumerate() {
                    let taken = taker.bytes().await;
                    if sink != failing {
                        assert!(told.result.is_ok() && taken == stream, "sink {sink} of {failing}, {left} {stop:?}");
                        continue;
                    }
                    assert!(stream.starts_with(&taken) && taken.len() as u64 == told.bytes_written);
                    let at = match (told.result.as_ref().unwrap_err(), stop) {
                        (SinkError::Closed { at }, Stop::Close) | (SinkError::Io { at, .. }, Stop::Reset) => *at,
                        (other, _) => panic!("{other}"),
                    };
                    assert_eq!(at, told.bytes_written);
                    assert!((left as u64..left as u64 + (1 << 20)).contains(&at), "{left}: {at}");
                }
            }
        }
    }
}

/// Every sink but one dies, one after the other, each at another place.
#[tokio::test]
async fn the_last_sink_left_gets_everything() {
    let stream = stream();
    for survivor in 0..4 {
        let meter = Meter::new();
        let mut source = tcp::source(stream.clone(), Stop::Close, &meter).await;
        let (mut sinks, mut takers) = (Vec::new(), Vec::new());
        for sink in 0..4 {
            let (tcp, taker) = tcp::sink(usize::MAX, Stop::Close).await;
            let left = if sink == survivor { usize::MAX } else { 1_000_000 * (sink + 1) };
            sinks.push(Failing { tcp, left, stop: Stop::Reset });
            takers.push(taker);
        }
        let head = Head::read(&mut source).await.unwrap();
        let outcome = relay(&mut source, &head, &mut sinks, options(&meter)).await.unwrap();
        drop(sinks);
        for (sink, taker) in takers.into_iter().enumerate() {
            let taken = taker.bytes().await;
            assert!(stream.starts_with(&taken));
            assert_eq!(taken.len() == stream.len(), sink == survivor);
            assert_eq!(outcome.sinks[sink].result.is_ok(), sink == survivor);
        }
    }
}

#[tokio::test]
async fn without_a_sink_left_the_source_is_not_read_any_further() {
    let stream = stream();
    let meter = Meter::new();
    let mut source = tcp::source(stream.clone(), Stop::Close, &meter).await;
    let head = Head::read(&mut source).await.unwrap();
    let mut sinks = Vec::new();
    for left in [3_000_000, 1_000_000] {
        let (tcp, _) = tcp::sink(usize::MAX, Stop::Close).await;
        sinks.push(Failing { tcp, left, stop: Stop::Reset });
    }
    let error = relay(&mut source, &head, &mut sinks, options(&meter)).await.unwrap_err();
    let TransferError::NoSinkLeft { at, sinks } = error else { panic!("{error}") };
    assert!((3_000_000..5_500_000).contains(&at), "{at}");
    assert!(sinks.iter().all(|sink| sink.result.is_err()));
}

#[tokio::test]
async fn a_relay_can_be_spawned_and_dropped() {
    let meter = Meter::new();
    let mut source = tcp::source(stream(), Stop::Close, &meter).await;
    let (sink, _taker) = tcp::sink(5_000_000, Stop::Stall).await;
    let mut read = meter.subscribe();
    let task = tokio::spawn(async move {
        let head = Head::read(&mut source).await.unwrap();
        relay(&mut source, &head, &mut [sink], options(&meter)).await.map(drop)
    });
    read.wait_for(|total| *total > 1_000_000).await.unwrap();
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
}
