//! The fault matrix: either end stops, in each way, at every stage of a stream, under both engines; metadata is
//! flipped bit by bit. Each fault gets its own name, and none is a success.

use std::ops::Range;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use vmferry_disk::transfer::{EngineName, Options, Outcome, SinkError, SocketWriter, TransferError, lockstep, relay};
use vmferry_disk::vhd::{DiskType, Head, HeadError, VhdError, Writer};

use crate::model::{self, Model, ModelBlock};
use crate::tcp::{self, Failing, Meter, Stop};

const USED: [u32; 3] = [0, 2, 3];
const HEAD: usize = 2560;
const BLOCK: usize = 512 + (2 << 20);
const END: usize = HEAD + USED.len() * BLOCK + 512;

/// Where an end stops: the bytes that passed before.
const STAGES: [(&str, usize); 12] = [
    ("before the first byte", 0),
    ("footer's copy", 300),
    ("header", 1000),
    ("BAT", 2100),
    ("end of the head", HEAD),
    ("first bitmap", HEAD + 100),
    ("first block", HEAD + 512 + 70_001),
    ("block boundary", HEAD + BLOCK),
    ("middle", HEAD + BLOCK + 1_000_000),
    ("last block", END - 512 - 1),
    ("last footer", END - 100),
    ("end", END),
];

const STOPS: [Stop; 3] = [Stop::Close, Stop::Reset, Stop::Stall];
const ENGINES: [EngineName; 2] = [EngineName::Lockstep, EngineName::Splice];

/// Long enough for a busy machine: only what has really stopped takes this long.
const STALL: Duration = Duration::from_secs(3);

fn stream() -> Vec<u8> {
    let disk = model::pattern(16 << 20, 5);
    let writer = Writer::new(&model::new_disk(disk.len() as u64), &USED).expect("a small disk");
    let stream = model::render(&writer, &disk);
    assert_eq!(stream.len(), END);
    stream
}

/// What came of a transfer.
#[derive(Debug)]
enum Fate {
    HeadStalled,
    Head(HeadError),
    Failed(TransferError),
    Done(Outcome),
}

/// A whole transfer, as a caller does it: the head under a limit of its own, then the rest.
async fn run<W: SocketWriter>(engine: EngineName, mut source: TcpStream, sinks: &mut [W], meter: &Meter) -> Fate {
    let head = match timeout(STALL, Head::read(&mut source)).await {
        Err(_) => return Fate::HeadStalled,
        Ok(Err(error)) => return Fate::Head(error),
        Ok(Ok(head)) => head,
    };
    let options = Options { leaves: None, progress: meter, throttles: &[], stall: STALL, first_byte: STALL };
    let outcome = match engine {
        EngineName::Lockstep => lockstep(&mut source, &head, sinks, options).await,
        EngineName::Splice => relay(&mut source, &head, sinks, options).await,
        EngineName::Pooled => unreachable!("it is that of a sink"),
    };
    match outcome {
        Err(error) => Fate::Failed(error),
        Ok(outcome) => {
            assert_eq!(outcome.engine, engine, "{:?}", outcome.not_spliced);
            Fate::Done(outcome)
        }
    }
}

/// Runs all cases at once: those that stall wait together. How many there were.
async fn all<F: Future<Output = ()> + Send + 'static>(cases: impl IntoIterator<Item = F>) -> usize {
    let mut running: JoinSet<()> = cases.into_iter().collect();
    let count = running.len();
    while let Some(done) = running.join_next().await {
        done.expect("the case holds");
    }
    count
}

#[tokio::test]
async fn a_source_that_stops_is_never_a_success() {
    let stream = stream();
    let mut cases = Vec::new();
    for engine in ENGINES {
        for (stage, at) in STAGES {
            for stop in STOPS {
                let bytes = stream[..at].to_vec();
                cases.push(async move {
                    let meter = Meter::new();
                    let source = tcp::source(bytes.clone(), stop, &meter).await;
                    let (sink, taker) = tcp::sink(usize::MAX, Stop::Close).await;
                    let mut sinks = [sink];
                    let fate = run(engine, source, &mut sinks, &meter).await;
                    drop(sinks);
                    let taken = taker.bytes().await;
                    let case = format!("{engine}, {stage}, {stop:?}: {fate:?}");
                    assert!(bytes.starts_with(&taken), "{case}");
                    let at = at as u64;
                    let named = match (&fate, stop) {
                        (Fate::Done(outcome), Stop::Close) => {
                            stage == "end" && taken == bytes && outcome.bytes_read == at
                        }
                        (Fate::Head(HeadError::Truncated { at: found }), Stop::Close)
                        | (Fate::Head(HeadError::Io { at: found, .. }), Stop::Reset) => {
                            at < HEAD as u64 && *found == at
                        }
                        (Fate::HeadStalled, Stop::Stall) => at < HEAD as u64,
                        (Fate::Failed(TransferError::Truncated { at: found, expected }), Stop::Close) => {
                            stage != "end" && *found == at && *expected == Some(END as u64)
                        }
                        (Fate::Failed(TransferError::Source { at: found, .. }), Stop::Reset)
                        | (Fate::Failed(TransferError::SourceStalled { at: found, .. }), Stop::Stall) => *found == at,
                        _ => false,
                    };
                    assert!(named, "{case}");
                    assert!(matches!(fate, Fate::Done(_)) || taken.len() < END, "{case}");
                });
            }
        }
    }
    assert_eq!(all(cases).await, 72);
}

#[tokio::test]
async fn a_sink_that_fails_is_named_and_the_other_gets_everything() {
    let stream = stream();
    let mut cases = Vec::new();
    for engine in ENGINES {
        for (stage, limit) in STAGES {
            for stop in STOPS {
                let stream = stream.clone();
                cases.push(async move {
                    let meter = Meter::new();
                    let source = tcp::source(stream.clone(), Stop::Close, &meter).await;
                    let (good, good_taker) = tcp::sink(usize::MAX, Stop::Close).await;
                    let (bad, bad_taker) = tcp::sink(usize::MAX, Stop::Close).await;
                    let mut sinks =
                        [Failing { tcp: good, left: usize::MAX, stop }, Failing { tcp: bad, left: limit, stop }];
                    let fate = run(engine, source, &mut sinks, &meter).await;
                    drop(sinks);
                    let case = format!("{engine}, {stage}, {stop:?}: {fate:?}");
                    let Fate::Done(outcome) = &fate else { panic!("{case}") };
                    assert!(good_taker.bytes().await == stream && outcome.sinks[0].result.is_ok(), "{case}");
                    let taken = bad_taker.bytes().await;
                    assert!(stream.starts_with(&taken), "{case}");
                    let told = &outcome.sinks[1];
                    assert_eq!(told.bytes_written, taken.len() as u64, "{case}");
                    let at = match (&told.result, stop) {
                        (Ok(()), _) => {
                            assert!(taken == stream, "{case}");
                            return;
                        }
                        (Err(SinkError::Closed { at }), Stop::Close)
                        | (Err(SinkError::Io { at, .. }), Stop::Reset)
                        | (Err(SinkError::Stalled { at, .. }), Stop::Stall) => *at as usize,
                        _ => panic!("{case}"),
                    };
                    // A splice moves up to a pipe's worth before the sink is asked again.
                    let grain = if engine == EngineName::Splice { 1 << 20 } else { 0 };
                    assert!((limit..=limit + grain).contains(&at), "{case}");
                });
            }
        }
    }
    assert_eq!(all(cases).await, 72);
}

/// The same by what a far end does. What its kernel has taken counts as handed over: whether the far end has made
/// something of it is for the caller to ask.
#[tokio::test]
async fn a_far_end_that_stops_is_no_success_as_soon_as_it_can_be_known() {
    let stream = stream();
    let mut cases = Vec::new();
    for engine in ENGINES {
        for (stage, limit) in STAGES {
            for stop in STOPS {
                let stream = stream.clone();
                cases.push(async move {
                    let meter = Meter::new();
                    let source = tcp::source(stream.clone(), Stop::Close, &meter).await;
                    let (sink, taker) = tcp::sink(limit, stop).await;
                    let mut sinks = [sink];
                    let fate = run(engine, source, &mut sinks, &meter).await;
                    let case = format!("{engine}, {stage}, {stop:?}: {fate:?}");
                    match &fate {
                        Fate::Done(outcome) => {
                            assert!(limit + tcp::IN_SOCKETS > END, "{case}");
                            assert_eq!(outcome.sinks[0].bytes_written, END as u64, "{case}");
                        }
                        Fate::Failed(TransferError::NoSinkLeft { sinks, .. }) => {
                            let named = match (sinks[0].result.as_ref().unwrap_err(), stop) {
                                (SinkError::Io { .. }, Stop::Close | Stop::Reset) => true,
                                (SinkError::Stalled { at, .. }, Stop::Stall) => *at >= limit as u64,
                                _ => false,
                            };
                            assert!(named && sinks[0].bytes_written < END as u64, "{case}");
                        }
                        _ => panic!("{case}"),
                    }
                    drop(sinks);
                    assert!(stream.starts_with(&taker.bytes().await));
                });
            }
        }
    }
    assert_eq!(all(cases).await, 72);
}

/// Every byte of metadata that means something, one bit of each; every bit of the BAT.
#[tokio::test]
async fn a_flipped_bit_in_the_metadata_is_never_a_success() {
    const BLOCK: usize = 512 + 65536;
    let block = |number| ModelBlock { number, gap: 0, set: vec![true; 128], data: model::pattern(65536, 1) };
    let good = Model {
        virtual_size: 8 * 65536,
        block_size: 65536,
        header_offset: 512,
        table_gap: 512,
        spare_entries: 0,
        disk_type: DiskType::Dynamic,
        blocks: USED.map(block).to_vec(),
    }
    .encode();
    let footer = HEAD + USED.len() * BLOCK;
    assert_eq!(good.len(), footer + 512);
    let one_bit = |bytes: Range<usize>| bytes.map(|byte| (byte, byte % 8));
    let bitmap = |index: usize| HEAD + index * BLOCK..HEAD + index * BLOCK + 16;
    let flips: Vec<(usize, usize)> = one_bit(0..85)
        .chain(one_bit(512..576))
        .chain((2048..2080).flat_map(|byte| (0..8).map(move |bit| (byte, bit))))
        .chain(one_bit(bitmap(0)))
        .chain(one_bit(bitmap(1)))
        .chain(one_bit(bitmap(2)))
        .chain(one_bit(footer..footer + 512))
        .collect();
    let mut count = 0;
    for engine in ENGINES {
        for (byte, bit) in &flips {
            let mut bad = good.clone();
            bad[*byte] ^= 1 << bit;
            let promised = model::head_of(&bad).map_or(0, |head| head.stream_length());
            let meter = Meter::new();
            let source = tcp::source(bad, Stop::Close, &meter).await;
            let (sink, taker) = tcp::sink(usize::MAX, Stop::Close).await;
            let mut sinks = [sink];
            let fate = run(engine, source, &mut sinks, &meter).await;
            drop(sinks);
            let case = format!("{engine}, byte {byte}, bit {bit}: {fate:?}");
            let named = match &fate {
                Fate::Head(HeadError::Vhd(_)) => *byte < HEAD,
                // An entry that points further away makes the stream longer than it is.
                Fate::Failed(TransferError::Truncated { .. }) => (2048..HEAD).contains(byte),
                // Or it points into data, which makes no full bitmap.
                Fate::Failed(TransferError::PartialBitmap { .. }) => (2048..footer).contains(byte),
                Fate::Failed(TransferError::Structure(VhdError::FooterMismatch { at })) => *at == *byte as u64,
                _ => false,
            };
            assert!(named, "{case}");
            let taken = taker.bytes().await.len() as u64;
            assert!(taken < promised || matches!(fate, Fate::Head(_)), "{case}");
            count += 1;
        }
    }
    assert_eq!(count, 2 * (85 + 64 + 256 + 3 * 16 + 512));
}

/// The BAT is what says where blocks are, so it alone can put one over another or name an order.
#[tokio::test]
async fn overlapping_blocks_are_refused_and_any_order_is_taken() {
    let good = stream();
    let entry = |block: usize| 2048 + 4 * block..2048 + 4 * block + 4;
    for engine in ENGINES {
        for (block, other, sectors) in [(2, 0, 0), (2, 0, 1), (3, 2, -1i32), (3, 2, 4096), (0, 3, -4096)] {
            let mut bad = good.clone();
            let place = i32::from_be_bytes(bad[entry(other)].try_into().unwrap()) + sectors;
            bad[entry(block)].copy_from_slice(&place.to_be_bytes());
            let meter = Meter::new();
            let source = tcp::source(bad, Stop::Close, &meter).await;
            let fate = run(engine, source, &mut [] as &mut [TcpStream], &meter).await;
            assert!(matches!(fate, Fate::Head(HeadError::Vhd(VhdError::BlocksOverlap { .. }))), "{fate:?}");
        }
        let mut swapped = good.clone();
        let (first, last) = (entry(0), entry(3));
        swapped[first.clone()].copy_from_slice(&good[last.clone()]);
        swapped[last].copy_from_slice(&good[first]);
        let meter = Meter::new();
        let source = tcp::source(swapped.clone(), Stop::Close, &meter).await;
        let (sink, taker) = tcp::sink(usize::MAX, Stop::Close).await;
        let mut sinks = [sink];
        let fate = run(engine, source, &mut sinks, &meter).await;
        assert!(matches!(fate, Fate::Done(_)), "{fate:?}");
        drop(sinks);
        assert!(taker.bytes().await == swapped);
    }
}

#[tokio::test]
async fn what_goes_on_behind_its_end_is_refused_before_the_end_is_passed_on() {
    for engine in ENGINES {
        for more in [1, 511, 512, 5_000_000] {
            for stop in STOPS {
                let mut endless = stream();
                endless.resize(END + more, 0);
                let meter = Meter::new();
                let source = tcp::source(endless, stop, &meter).await;
                let (sink, taker) = tcp::sink(usize::MAX, Stop::Close).await;
                let mut sinks = [sink];
                let fate = run(engine, source, &mut sinks, &meter).await;
                let Fate::Failed(TransferError::Structure(VhdError::TrailingBytes { at })) = fate else {
                    panic!("{engine}, {more} more, {stop:?}: {fate:?}");
                };
                assert_eq!(at, END as u64);
                drop(sinks);
                assert!(taker.bytes().await.len() <= END - 512);
            }
        }
    }
}
