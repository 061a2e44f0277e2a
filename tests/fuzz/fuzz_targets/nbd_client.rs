//! An NBD server that says anything: refused, or the bytes that were asked for, each once and in order.
#![no_main]

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use vmferry_disk::extent::{Extent, Extents};
use vmferry_disk::nbd::{ExportName, Handshake, NbdError, Pace, Reader};

const REQUEST: u64 = 512;
const DEPTH: u16 = 4;
const SECRET: &str = "OpaqueRef";

/// The server: what it says, a few bytes at a time, and then the end. It is never waited for.
struct Script<'a> {
    says: &'a [u8],
    cut: usize,
}

impl AsyncRead for Script<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (taken, rest) = self.says.split_at(self.says.len().min(self.cut).min(buffer.remaining()));
        buffer.put_slice(taken);
        self.says = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fuzz_target!(|input: &[u8]| {
    let Some(([mode, extents], says)) = input.split_first_chunk::<2>() else { return };
    let mut says = says.to_vec();
    if mode & 1 != 0 {
        says.splice(..0, b"NBDMAGICIHAVEOPT\0\x03\0\0\0\0\0\0\xff\0\0\x03".iter().copied());
        repair(&mut says[28..]);
    }
    let script = Script { says: &says, cut: usize::from(mode >> 2) * 9 + 1 };
    // One extent for each bit.
    let bit = |bit: u64| Extent { offset: 3 * bit * REQUEST, length: (1 + bit % 3) * REQUEST };
    let extents: Extents = (0..8).filter(|n| extents >> n & 1 == 1).map(bit).collect();
    let talk = async {
        if mode & 2 == 0 {
            return talk(script, extents).await;
        }
        let (script, agreed) = Handshake::begin(script).await?.start_tls().await?;
        Handshake::resume(script, agreed).open(&name()).await.map(|_| ())
    };
    let Poll::Ready(result) = pin!(talk).poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("a server that is never waited for was waited for");
    };
    if let Err(error) = result {
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains(SECRET), "{shown}");
        assert_ne!(io::Error::from(error).kind(), io::ErrorKind::UnexpectedEof);
    }
});

fn name() -> ExportName {
    ExportName::new(format!("/disk?session_id={SECRET}"))
}

/// Reads all extents.
async fn talk(script: Script<'_>, extents: Extents) -> Result<(), NbdError> {
    let client = Handshake::begin(script).await?.open(&name()).await?;
    let pace = Pace { depth: DEPTH, request_size: REQUEST as u32 };
    let mut reader = Reader::new(vec![client], extents.clone(), pace)?;
    let mut buffer = [0; 300];
    let mut read = Extents::new();
    while let Some(piece) = reader.read(&mut buffer).await? {
        assert!(piece.offset >= read.end() && !piece.bytes.is_empty());
        read.insert(Extent { offset: piece.offset, length: piece.bytes.len() as u64 });
    }
    assert_eq!(read, extents);
    Ok(())
}

/// Makes replies of what stands where they have to be: their magic number, small cookies, few errors.
fn repair(mut says: &mut [u8]) {
    while let Some((reply, rest)) = says.split_first_chunk_mut::<16>() {
        reply[..4].copy_from_slice(&0x6744_6698_u32.to_be_bytes());
        reply[4..7].fill(0);
        reply[7] = reply[7].saturating_sub(240);
        reply[8..15].fill(0);
        let data = if reply[7] == 0 { rest.len().min(REQUEST as usize) } else { 0 };
        says = &mut rest[data..];
    }
}
