//! Extents over one and more connections, and connections that break.

use std::io;
use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::time::timeout;
use vmferry_disk::extent::{Extent, Extents};
use vmferry_disk::nbd::{Errno, NbdError, Pace, Reader};

use crate::server::{self, Fault, Server, pattern};

const SECTORS: u64 = 2000;
const DISK_SIZE: u64 = SECTORS * 512;

/// Reads everything; the pieces as they came, joined where they touch.
async fn read_all(server: &Server, extents: &Extents, connections: usize, pace: Pace) -> Result<Vec<u8>, NbdError> {
    let mut reader = Reader::new(server.clients(connections).await, extents.clone(), pace)?;
    let mut disk = vec![0xee; server.disk.len()];
    let mut buffer = vec![0; 10_000];
    let mut behind = 0;
    while let Some(piece) = reader.read(&mut buffer).await? {
        assert!(piece.offset >= behind, "in the order of the disk");
        behind = piece.offset + piece.bytes.len() as u64;
        disk[piece.offset as usize..behind as usize].copy_from_slice(piece.bytes);
    }
    assert!(reader.read(&mut buffer).await?.is_none(), "the end stays the end");
    for client in reader.into_clients() {
        client.disconnect().await.expect("a living server");
    }
    Ok(disk)
}

fn expected(server: &Server, extents: &Extents) -> Vec<u8> {
    let mut disk = vec![0xee; server.disk.len()];
    for Extent { offset, length } in extents.iter() {
        let range = offset as usize..(offset + length) as usize;
        disk[range.clone()].copy_from_slice(&server.disk[range]);
    }
    disk
}

fn any_extents() -> impl Strategy<Value = Extents> {
    proptest::collection::vec((0..SECTORS, 1..300u64), 0..8).prop_map(|list| {
        let extent = |(from, length)| Extent { offset: from * 512, length: length * 512 };
        list.into_iter().map(extent).collect::<Extents>().clipped(DISK_SIZE)
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn what_is_read_is_the_disk(
        extents in any_extents(), connections in 1..5usize, depth in 0..6u16, request_size in 0..100_000u32,
        pipe in 100..100_000usize,
    ) {
        let server = Server { pipe, ..Server::of(pattern(DISK_SIZE as usize)) };
        let pace = Pace { depth, request_size };
        let disk = runtime().block_on(read_all(&server, &extents, connections, pace)).unwrap();
        prop_assert!(disk == expected(&server, &extents));
    }

    /// XAPI's server answers in order; others need not.
    #[test]
    fn the_order_of_replies_does_not_matter(
        extents in any_extents(), connections in 1..4usize, window in 1..5usize, request_size in 512..100_000u32,
    ) {
        // Windows that are always filled: as many requests as a multiple of all windows, or none.
        let request_size = request_size / 512 * 512;
        let count: u64 = extents.iter().map(|extent| extent.length.div_ceil(request_size.into())).sum();
        prop_assume!(count.is_multiple_of((connections * window) as u64));
        let disk = pattern(DISK_SIZE as usize);
        let server = Server { window, backwards: true, ..Server::of(disk) };
        let pace = Pace { depth: window as u16, request_size };
        let disk = runtime().block_on(read_all(&server, &extents, connections, pace)).unwrap();
        prop_assert!(disk == expected(&server, &extents));
    }
}

/// The server answers nothing before it has seen `depth` requests, and there is never one more.
#[tokio::test(start_paused = true)]
async fn requests_are_asked_ahead_up_to_the_depth() {
    const DEPTH: u16 = 5;
    let (ours, mut theirs) = duplex(1 << 20);
    let server = tokio::spawn(async move {
        server::greet(&mut theirs, 1).await;
        server::accept_export(&mut theirs, DISK_SIZE).await;
        let mut asked = Vec::new();
        for _ in 0..DEPTH {
            asked.push(server::next_request(&mut theirs).await.expect("a request"));
        }
        let more = timeout(Duration::from_secs(60), theirs.read_u8()).await;
        (asked, more.is_ok())
    });
    let client = server::open(ours).await.unwrap();
    let pace = Pace { depth: DEPTH, request_size: 4096 };
    let mut reader = Reader::new(vec![client], Extents::whole_disk(DISK_SIZE), pace).unwrap();
    let error = reader.read(&mut [0; 512]).await.unwrap_err();
    assert!(matches!(error, NbdError::Closed { offset: 0 }), "{error}");
    let (asked, more) = server.await.unwrap();
    assert!(!more, "more than {DEPTH} requests");
    assert_eq!(asked.iter().map(|asked| asked.offset).collect::<Vec<_>>(), [0, 4096, 8192, 12288, 16384]);
    assert!(asked.iter().all(|asked| asked.length == 4096));
}

/// How reading fails that is disturbed at its third request of 4096 bytes, over one connection.
async fn failure(fault: Fault) -> NbdError {
    let server = Server { fault: Some((2, fault)), ..Server::of(pattern(DISK_SIZE as usize)) };
    let pace = Pace { depth: 3, request_size: 4096 };
    let clients = server.clients(1).await;
    let mut reader = Reader::new(clients, Extents::whole_disk(DISK_SIZE), pace).expect("a large enough export");
    let mut buffer = [0; 1000];
    let error = loop {
        match reader.read(&mut buffer).await {
            Ok(piece) => assert!(piece.is_some(), "{fault:?} passes for the end of the disk"),
            Err(error) => break error,
        }
    };
    let again = reader.read(&mut buffer).await;
    assert!(matches!(again, Err(NbdError::FailedBefore)), "{again:?}");
    error
}

#[tokio::test]
async fn each_failure_has_its_own_error() {
    let refused = failure(Fault::Error(5)).await;
    assert!(matches!(refused, NbdError::Refused { offset: 8192, length: 4096, errno: Errno::Io }), "{refused:?}");
    assert_eq!(refused.to_string(), "the NBD server cannot read 4096 bytes at byte 8192: its storage failed");
    for bytes in [0, 1, 4095] {
        let at = 8192 + bytes as u64;
        let cut = failure(Fault::CutAfter(bytes)).await;
        assert!(matches!(cut, NbdError::Closed { offset } if offset == at), "{cut:?}");
        assert_ne!(io::Error::from(cut).kind(), io::ErrorKind::UnexpectedEof);
    }
    let found = failure(Fault::BadMagic).await;
    assert!(matches!(found, NbdError::BadReply { offset: 8192, found: 0x6744_6699 }), "{found:?}");
    let found = failure(Fault::Structured).await;
    assert!(matches!(found, NbdError::BadReply { offset: 8192, found: 0x668e_33ef }), "{found:?}");
    let found = failure(Fault::UnknownCookie).await;
    assert!(matches!(found, NbdError::UnknownCookie { offset: 8192, found: 1002 }), "{found:?}");
    let found = failure(Fault::RepeatedCookie).await;
    assert!(matches!(found, NbdError::UnknownCookie { offset: 8192, found: 1 }), "{found:?}");
}

/// The other connections are good, and yet nothing passes for the end.
#[tokio::test]
async fn one_broken_connection_of_many_fails_the_reading() {
    let good = Server::of(pattern(DISK_SIZE as usize));
    let bad = Server { fault: Some((7, Fault::CutAfter(512))), ..good.clone() };
    for position in 0..3 {
        let mut clients = good.clients(2).await;
        clients.insert(position, bad.connect().await);
        let pace = Pace { depth: 2, request_size: 4096 };
        let mut reader = Reader::new(clients, Extents::whole_disk(DISK_SIZE), pace).unwrap();
        let mut buffer = [0; 4096];
        let error = loop {
            match reader.read(&mut buffer).await {
                Ok(piece) => assert!(piece.is_some()),
                Err(error) => break error,
            }
        };
        // The eighth request of that connection is number 21 + position of all.
        let at = (21 + position as u64) * 4096 + 512;
        assert!(matches!(error, NbdError::Closed { offset } if offset == at), "{error:?}");
    }
}

/// A repeated answer to a request that waits for its turn.
#[tokio::test]
async fn an_early_reply_counts_once() {
    let (ours, mut theirs) = duplex(1 << 20);
    tokio::spawn(async move {
        server::greet(&mut theirs, 1).await;
        server::accept_export(&mut theirs, 4096).await;
        for _ in 0..4 {
            server::next_request(&mut theirs).await;
        }
        let reply = [&0x6744_6698u32.to_be_bytes()[..], &[0; 4], &2u64.to_be_bytes(), &[7; 512]].concat();
        theirs.write_all(&[reply.clone(), reply].concat()).await.expect("a client");
        let _ = theirs.read_u8().await;
    });
    let client = server::open(ours).await.unwrap();
    let pace = Pace { depth: 4, request_size: 512 };
    let mut reader = Reader::new(vec![client], Extents::whole_disk(4096), pace).unwrap();
    let error = reader.read(&mut [0; 512]).await.unwrap_err();
    assert!(matches!(error, NbdError::UnknownCookie { offset: 0, found: 2 }), "{error:?}");
}

#[tokio::test]
async fn a_reader_wants_1_to_16_connections_to_a_disk_that_is_large_enough() {
    let server = Server::of(pattern(4096));
    let new = |clients, size| Reader::new(clients, Extents::whole_disk(size), Pace::default()).map(|_| ());
    assert!(matches!(new(Vec::new(), 4096), Err(NbdError::BadConnectionCount { count: 0, most: 16 })));
    assert!(matches!(new(server.clients(17).await, 4096), Err(NbdError::BadConnectionCount { count: 17, .. })));
    assert!(new(server.clients(16).await, 4096).is_ok());
    let error = new(server.clients(2).await, 4608).unwrap_err();
    assert!(matches!(error, NbdError::ExportTooSmall { size: 4096, end: 4608 }), "{error}");
}
