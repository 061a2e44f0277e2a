//! What a transfer asks of the allocator: nothing for each byte, and no more at its peak for a larger disk than the
//! larger BAT.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use uuid::Uuid;
use vmferry_disk::chunks::{Cut, Gaps, handover};
use vmferry_disk::digest::Leaf;
use vmferry_disk::transfer::{EngineName, Options, lockstep, relay};
use vmferry_disk::vhd::{BLOCK_SIZE, Head, NewDisk, Writer};

/// Counts what each thread asks for.
struct Counting;

#[derive(Clone, Copy, Default)]
struct Counts {
    allocations: u64,
    live: i64,
    peak: i64,
}

thread_local! {
    static COUNTS: Cell<Counts> = const { Cell::new(Counts { allocations: 0, live: 0, peak: 0 }) };
}

fn count(allocations: u64, bytes: i64) {
    let mut counts = COUNTS.get();
    counts.allocations += allocations;
    counts.live += bytes;
    counts.peak = counts.peak.max(counts.live);
    COUNTS.set(counts);
}

#[expect(unsafe_code, reason = "a global allocator cannot be had without; every call goes to the system's as it is")]
// SAFETY: the system's allocator keeps the contract, and counting touches nothing but a thread's plain numbers.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as i64);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, -(layout.size() as i64));
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(1, size as i64 - layout.size() as i64);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What `work` asked for on this thread: allocations, and bytes at the peak beyond what was live before.
fn counted<T>(work: impl Future<Output = T>) -> (T, u64, i64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let before = COUNTS.get();
    COUNTS.set(Counts { peak: before.live, ..before });
    let done = runtime.block_on(work);
    let after = COUNTS.get();
    (done, after.allocations - before.allocations, after.peak - before.live)
}

/// The stream of a disk of `size` bytes that holds its first `blocks` blocks, made as it is read.
struct Stream {
    writer: Writer,
    at: u64,
}

impl Stream {
    fn new(size: u64, blocks: u32) -> Self {
        let disk = NewDisk { virtual_size: size, unique_id: Uuid::nil(), creator: *b"tap\0", parent: None };
        let used: Vec<u32> = (0..blocks).collect();
        Self { writer: Writer::new(&disk, &used).expect("a good disk"), at: 0 }
    }

    /// The bytes from `at` on, at most to the next border between bitmap and data.
    fn next(&self) -> (&[u8], u64) {
        static FULL: [u8; 65536] = [0xff; 65536];
        let head = self.writer.head();
        let (raw, length) = (head.raw(), head.stream_length());
        let footer = length - 512;
        if self.at < raw.len() as u64 {
            (&raw[self.at as usize..], u64::MAX)
        } else if self.at >= footer {
            (&raw[(self.at - footer) as usize..512], length - self.at)
        } else {
            // Data is full of ones like the bitmaps.
            (&FULL, footer - self.at)
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (bytes, most) = self.next();
        let n = bytes.len().min(buf.remaining()).min(usize::try_from(most).unwrap_or(usize::MAX));
        buf.put_slice(&bytes[..n]);
        self.at += n as u64;
        Poll::Ready(Ok(()))
    }
}

fn options(leaves: Option<&mut (dyn FnMut(u64, Leaf) + Send)>) -> Options<'_> {
    let minute = Duration::from_secs(60);
    Options { leaves, progress: &(), throttles: &[], stall: minute, first_byte: minute }
}

/// Allocations and peak of a transfer in lockstep with digests to two sinks.
fn lockstep_costs(size: u64, blocks: u32) -> (u64, i64) {
    let mut source = Stream::new(size, blocks);
    let (digests, allocations, peak) = counted(async {
        let mut digests = 0u64;
        let mut take = |_, _| digests += 1;
        let head = Head::read(&mut source).await.expect("a good head");
        let mut sinks = [tokio::io::sink(), tokio::io::sink()];
        lockstep(&mut source, &head, &mut sinks, options(Some(&mut take))).await.expect("a good stream");
        digests
    });
    assert_eq!(digests, u64::from(blocks) * u64::from(BLOCK_SIZE) / 65536);
    (allocations, peak)
}

#[test]
fn lockstep_does_not_allocate_for_each_byte() {
    let (few, _) = lockstep_costs(1 << 30, 16);
    let (many, _) = lockstep_costs(1 << 30, 400);
    let per_mib = many.saturating_sub(few) as f64 / (2.0 * (400.0 - 16.0));
    assert!(per_mib <= 0.02, "{per_mib} allocations per MiB: {few} for 32 MiB, {many} for 800");
}

#[test]
fn the_peak_does_not_grow_with_the_stream_and_with_the_disk_only_by_its_bat() {
    let (_, short) = lockstep_costs(1 << 30, 4);
    let (_, long) = lockstep_costs(1 << 30, 512);
    assert!(long <= short + 4096, "{long} bytes for 1 GiB of data, {short} for 8 MiB");
    let (_, sparse) = lockstep_costs(1 << 40, 4);
    let bat = (1 << 40) / i64::from(BLOCK_SIZE) * 4;
    // While the head comes, its memory doubles as it fills up.
    assert!(sparse <= short + 2 * bat + 65536, "{sparse} bytes for 1 TiB, {short} for 1 GiB");
    assert!(short < 1 << 20, "{short} bytes");
}

/// Allocations of a transfer to a store that has chunks of `size` bytes and drops each before it takes the next.
fn pooled_costs(blocks: u32, size: u32) -> u64 {
    let mut source = Stream::new(1 << 30, blocks);
    let (chunks, allocations, _) = counted(async {
        let head = Head::read(&mut source).await.expect("a good head");
        let cut = Cut { chunk_size: size, disk_size: 1 << 30, gaps: Gaps::Refused };
        let (mut sink, mut receiver) = handover(&head, cut, 3).expect("a good cut");
        let moving = lockstep(&mut source, &head, std::slice::from_mut(&mut sink), options(None));
        let taking = async {
            let mut chunks = 0;
            while receiver.next().await.expect("a good stream").is_some() {
                chunks += 1;
            }
            chunks
        };
        let (moved, chunks) = tokio::join!(moving, taking);
        moved.expect("a good stream");
        chunks
    });
    assert_eq!(chunks, blocks * (BLOCK_SIZE / size));
    allocations
}

#[test]
fn a_store_costs_no_allocation_for_each_chunk() {
    for size in [64 << 10, 1 << 20] {
        let (few, many) = (pooled_costs(16, size), pooled_costs(200, size));
        let per_mib = many.saturating_sub(few) as f64 / (2.0 * (200.0 - 16.0));
        assert!(per_mib <= 0.02, "{per_mib} allocations per MiB: {few} and {many}, chunks of {size} bytes");
    }
}

#[cfg(target_os = "linux")]
mod splice {
    use std::io::{Write, copy, sink};
    use std::net::{TcpListener, TcpStream};
    use std::thread::spawn;

    use super::*;

    /// Allocations of a splice to `count` sinks. The far ends are threads of their own.
    fn costs(blocks: u32, count: usize) -> u64 {
        let mut stream = Stream::new(1 << 30, blocks);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let connect = || {
            let near = TcpStream::connect(address).expect("a connection");
            near.set_nonblocking(true).expect("a socket");
            (near, listener.accept().expect("a connection").0)
        };
        let (source, mut far) = connect();
        let sender = spawn(move || {
            while stream.at < stream.writer.head().stream_length() {
                let (bytes, most) = stream.next();
                let n = bytes.len().min(usize::try_from(most).unwrap_or(usize::MAX));
                far.write_all(&bytes[..n]).expect("the near end reads");
                stream.at += n as u64;
            }
        });
        let (mut sinks, mut takers) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let (near, mut far) = connect();
            sinks.push(near);
            takers.push(spawn(move || copy(&mut far, &mut sink()).expect("bytes and an end")));
        }
        let (length, allocations, _) = counted(async {
            let mut source = tokio::net::TcpStream::from_std(source).expect("a socket");
            let mut sinks: Vec<_> =
                sinks.into_iter().map(|sink| tokio::net::TcpStream::from_std(sink).expect("a socket")).collect();
            let head = Head::read(&mut source).await.expect("a good head");
            let outcome = relay(&mut source, &head, &mut sinks, options(None)).await.expect("a good stream");
            assert_eq!(outcome.engine, EngineName::Splice, "{:?}", outcome.not_spliced);
            outcome.bytes_read
        });
        sender.join().expect("everything was read");
        for taker in takers {
            assert_eq!(taker.join().expect("everything came"), length);
        }
        allocations
    }

    #[test]
    fn splice_does_not_allocate_for_each_byte() {
        for (sinks, limit) in [(1, 0.02), (3, 0.1)] {
            let (few, many) = (costs(16, sinks), costs(200, sinks));
            let per_mib = many.saturating_sub(few) as f64 / (2.0 * (200.0 - 16.0));
            assert!(per_mib <= limit, "{sinks} sinks: {per_mib} allocations per MiB: {few} and {many}");
        }
    }
}
