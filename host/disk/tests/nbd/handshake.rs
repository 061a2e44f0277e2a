//! The way to an open export, and every way to be refused.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use vmferry_disk::nbd::{ExportName, Handshake, NbdError};

use crate::server::{self, NAME};

/// A stream on which every bit is the other way round: what was sent before an upgrade to it, and what is
/// read from it without one, is noise.
struct Inverted(DuplexStream);

impl AsyncRead for Inverted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.0).poll_read(cx, buffer);
        buffer.filled_mut()[before..].iter_mut().for_each(|byte| *byte = !*byte);
        read
    }
}

impl AsyncWrite for Inverted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let inverted: Vec<u8> = bytes.iter().map(|byte| !*byte).collect();
        Pin::new(&mut self.0).poll_write(cx, &inverted)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

const TLS_ACK: &[u8] = b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x05\0\0\0\x01\0\0\0\0";
const TLS_POLICY: &[u8] = b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x05\x80\0\0\x02\0\0\0\0";

/// A server that greets and answers the first option with these bytes, followed at once by `behind`.
fn answering(answer: &'static [u8], behind: Vec<u8>) -> DuplexStream {
    let (ours, mut theirs) = duplex(4096);
    tokio::spawn(async move {
        server::greet(&mut theirs, 1).await;
        let asked = server::next_option(&mut theirs).await;
        assert_eq!(asked, Some((5, Vec::new())));
        theirs.write_all(&[answer, &behind].concat()).await.expect("a client");
        // Held open until the client is done.
        let _ = theirs.read_to_end(&mut Vec::new()).await;
    });
    ours
}

#[tokio::test]
async fn not_a_byte_behind_the_yes_to_tls_is_read_before_the_upgrade() {
    let export: Vec<u8> = [&65536u64.to_be_bytes()[..], &[0, 3], &[0; 124]].concat();
    let stream = answering(TLS_ACK, export.iter().map(|byte| !*byte).collect());
    let (stream, agreed) = Handshake::begin(stream).await.unwrap().start_tls().await.unwrap();
    let client = Handshake::resume(Inverted(stream), agreed).open(&ExportName::new(NAME)).await.unwrap();
    assert_eq!(client.size(), 65536);
}

#[tokio::test]
async fn a_refused_upgrade_says_so() {
    let handshake = Handshake::begin(answering(TLS_POLICY, Vec::new())).await.unwrap();
    let error = handshake.start_tls().await.unwrap_err();
    assert!(matches!(error, NbdError::TlsRefused { reply: 0x8000_0002 }), "{error}");
}

#[tokio::test]
async fn noise_in_place_of_an_answer_is_an_error() {
    for noise in [b"HTTP/1.1 400 Bad Request", b"IHAVEOPT\0\0\0\x05\0\0\0\x01\0\0\0\0\0\0\0\0"] {
        let handshake = Handshake::begin(answering(noise, Vec::new())).await.unwrap();
        let error = handshake.start_tls().await.unwrap_err();
        assert!(matches!(error, NbdError::BadOptionReply { .. }), "{error}");
    }
    let text = b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x05\0\0\0\x01\0\0\0\x04";
    let error = Handshake::begin(answering(text, b"text".to_vec())).await.unwrap().start_tls().await.unwrap_err();
    assert!(matches!(error, NbdError::BadOptionReply { .. }), "{error}");
}

#[tokio::test]
async fn both_sides_may_waive_the_zeroes() {
    for (flags, answer, zeroes) in [(1, 1, 124), (3, 3, 0), (0xffff, 3, 0)] {
        let (ours, mut theirs) = duplex(4096);
        let server = tokio::spawn(async move {
            let flags = server::greet(&mut theirs, flags).await;
            server::next_option(&mut theirs).await;
            theirs.write_all(&[&4096u64.to_be_bytes()[..], &[0, 3]].concat()).await.expect("a client");
            theirs.write_all(&vec![0; zeroes]).await.expect("a client");
            flags
        });
        assert_eq!(server::open(ours).await.unwrap().size(), 4096);
        assert_eq!(server.await.unwrap(), Some(answer));
    }
}

/// Every prefix of a good handshake: cut there, it fails, says where, and shows no secret.
#[tokio::test]
async fn a_handshake_cut_anywhere_fails() {
    let export = [&4096u64.to_be_bytes()[..], &[0, 3], &[0; 124]].concat();
    let greeting = b"NBDMAGICIHAVEOPT\0\x01".to_vec();
    let all = [greeting, export].concat();
    for cut in 0..all.len() {
        let (ours, mut theirs) = duplex(4096);
        theirs.write_all(&all[..cut]).await.unwrap();
        theirs.shutdown().await.unwrap();
        let error = server::open(ours).await.unwrap_err();
        match (&error, cut) {
            (NbdError::Handshake { doing: "waiting for the greeting", .. }, 0..18)
            | (NbdError::ExportRefused, 18..28)
            | (NbdError::Handshake { doing: "waiting for the export", .. }, 28..) => {}
            _ => panic!("cut at {cut}: {error:?}"),
        }
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("secret") && !shown.contains("3b9aca00"), "{shown}");
    }
}

#[tokio::test]
async fn other_programs_are_told_from_nbd() {
    for (greeting, newstyle) in [(&b"SSH-2.0-OpenSSH_9.2\r\n"[..], false), (b"NBDMAGICIHAVEOPT\0\0", true)] {
        let (ours, mut theirs) = duplex(4096);
        theirs.write_all(greeting).await.unwrap();
        let error = server::open(ours).await.unwrap_err();
        match error {
            NbdError::NotNewstyle => assert!(newstyle),
            NbdError::NotNbd { .. } => {
                assert_eq!(error.to_string(), "no NBD server: it greets with \"SSH-2.0-\"");
            }
            _ => panic!("{error}"),
        }
    }
}
