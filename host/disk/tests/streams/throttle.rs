//! Throttles on transfers, on a clock that the tests own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use vmferry_disk::chunked::Resync;
use vmferry_disk::digest::Leaf;
use vmferry_disk::transfer::{Options, Progress, Throttle, lockstep};
use vmferry_disk::vhd::{Head, Writer};

use crate::model;

const MIB: u64 = 1 << 20;
const STALL: Duration = Duration::from_secs(30);

/// 16 MiB in 8 blocks.
fn stream() -> Vec<u8> {
    let disk = model::pattern(16 << 20, 3);
    let writer = Writer::new(&model::new_disk(disk.len() as u64), &[0, 1, 2, 3, 4, 5, 6, 7]).expect("a small disk");
    model::render(&writer, &disk)
}

/// Moves `stream` under `throttles`; how long it took, in seconds.
async fn transfer(stream: &[u8], throttles: &[Arc<Throttle>]) -> f64 {
    let started = Instant::now();
    let mut source = stream;
    let head = Head::read(&mut source).await.expect("a good head");
    let options = Options { leaves: None, progress: &(), throttles, stall: STALL, first_byte: STALL };
    let mut sinks = [Vec::new()];
    lockstep(&mut source, &head, &mut sinks, options).await.expect("a good stream");
    assert!(sinks[0] == stream);
    started.elapsed().as_secs_f64()
}

/// What keeps a source that compares from counting as stalled.
struct Work(Arc<AtomicU64>);

impl Progress for Work {
    fn read(&self, _: u64) {}
    fn written(&self, _: usize, _: u64) {}
    fn work(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Compares `stream` with what is `held` everywhere, under throttles on what is read and on what is sent; how long it took,
/// in seconds, and how many bytes were sent.
async fn resync(stream: &[u8], held: Option<Leaf>, read: &[Arc<Throttle>], sent: &[Arc<Throttle>]) -> (f64, usize) {
    let started = Instant::now();
    let mut source = stream;
    let head = Head::read(&mut source).await.expect("a good head");
    let mut source = Resync::of_vhd(source, &head, |_| held).expect("ranges of the disk").throttled(read);
    let (plan, work) = (source.plan().clone(), Work(source.work()));
    let options = Options { leaves: None, progress: &work, throttles: sent, stall: STALL, first_byte: STALL };
    let mut sinks = [Vec::new()];
    lockstep(&mut source, &plan, &mut sinks, options).await.expect("a good stream");
    (started.elapsed().as_secs_f64(), sinks[0].len())
}

fn fixed(rate: u64) -> Arc<Throttle> {
    Arc::new(Throttle::new(move |_| Some(rate)))
}

#[track_caller]
fn assert_about(took: f64, expected: f64) {
    assert!((took - expected).abs() < 0.02 * expected + 0.2, "{took} s, not {expected} s");
}

#[tokio::test(start_paused = true)]
async fn a_transfer_keeps_to_its_rate() {
    let stream = stream();
    for rate in [20 * 1024, MIB, 100 * MIB] {
        assert_about(transfer(&stream, &[fixed(rate)]).await, stream.len() as f64 / rate as f64);
    }
    let unlimited = Arc::new(Throttle::new(|_| None));
    assert!(transfer(&stream, &[unlimited]).await < 0.01);
}

#[tokio::test(start_paused = true)]
async fn the_tightest_throttle_counts() {
    let stream = stream();
    let took = transfer(&stream, &[fixed(4 * MIB), fixed(MIB), fixed(100 * MIB)]).await;
    assert_about(took, 16.0);
}

#[tokio::test(start_paused = true)]
async fn one_that_is_listed_twice_counts_twice() {
    let stream = stream();
    let link = fixed(4 * MIB);
    assert_about(transfer(&stream, &[link.clone(), link]).await, 8.0);
}

#[tokio::test(start_paused = true)]
async fn transfers_share_a_throttle() {
    let stream = stream();
    let (link, started) = (fixed(4 * MIB), Instant::now());
    let links = [link];
    let (one, two, three) =
        tokio::join!(transfer(&stream, &links), transfer(&stream, &links), transfer(&stream, &links));
    assert_about(started.elapsed().as_secs_f64(), 12.0);
    for took in [one, two, three] {
        assert!((11.0..12.3).contains(&took), "each gets its share: {took} s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_is_no_stall_and_a_new_rate_counts_within_a_second() {
    let stream = stream();
    let rate = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&rate);
    let throttle = Arc::new(Throttle::new(move |_| Some(told.load(Relaxed))));
    let pause = 100 * STALL;
    tokio::spawn(async move {
        sleep(pause).await;
        rate.store(MIB, Relaxed);
        sleep(Duration::from_secs(4)).await;
        rate.store(8 * MIB, Relaxed);
    });
    let took = transfer(&stream, &[throttle]).await;
    let expected = pause.as_secs_f64() + 4.0 + 12.0 / 8.0;
    assert!((expected - 0.5..expected + 1.0).contains(&took), "{took} s");
}

#[tokio::test(start_paused = true)]
async fn the_rate_is_asked_once_a_second() {
    let stream = stream();
    let asked = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&asked);
    let throttle = Throttle::new(move |_| {
        count.fetch_add(1, Relaxed);
        Some(MIB)
    });
    assert_about(transfer(&stream, &[Arc::new(throttle)]).await, 16.0);
    assert!((15..=18).contains(&asked.load(Relaxed)), "{asked:?}");
}

/// 16 MiB in 8 blocks that hold zeroes.
fn zeroes() -> Vec<u8> {
    let writer = Writer::new(&model::new_disk(16 << 20), &[0, 1, 2, 3, 4, 5, 6, 7]).expect("a small disk");
    model::render(&writer, &vec![0; 16 << 20])
}

#[tokio::test(start_paused = true)]
async fn what_is_read_to_be_compared_counts_once_whether_it_is_sent_or_not() {
    let none = &[][..];
    for (stream, held, sends) in [(zeroes(), Some(Leaf::ZERO), false), (stream(), None, true)] {
        let (took, sent) = resync(&stream, held, &[fixed(MIB)], none).await;
        assert_about(took, 16.0);
        assert_eq!(sent > 16 << 20, sends);
        assert!(resync(&stream, held, none, none).await.0 < 0.01);
        // A link carries what is sent.
        let (took, _) = resync(&stream, held, none, &[fixed(MIB)]).await;
        assert_about(took, if sends { 16.0 } else { 0.0 });
    }
}

#[tokio::test(start_paused = true)]
async fn comparing_that_waits_for_a_throttle_is_no_stall() {
    let rate = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&rate);
    let throttle = Arc::new(Throttle::new(move |_| Some(told.load(Relaxed))));
    let pause = 10 * STALL;
    tokio::spawn(async move {
        sleep(pause).await;
        rate.store(MIB, Relaxed);
    });
    let (took, sent) = resync(&zeroes(), Some(Leaf::ZERO), &[throttle], &[]).await;
    assert_about(took, pause.as_secs_f64() + 16.0);
    assert_eq!(sent, 12, "the end marker");
}
