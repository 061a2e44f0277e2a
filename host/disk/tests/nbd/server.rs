//! A server that speaks as XAPI's does, in memory, and fails where it is told to.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use vmferry_disk::nbd::{Client, ExportName, Handshake, NbdError};

/// The name that the servers here expect, in XAPI's form.
pub(crate) const NAME: &str = "/3b9aca00-0000-4000-8000-000000000001?session_id=OpaqueRef:secret";

/// What a server does besides answering.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) disk: Arc<Vec<u8>>,
    /// Requests that it takes before it answers them.
    pub(crate) window: usize,
    /// Answers a window from its last request to its first.
    pub(crate) backwards: bool,
    /// What it does in place of answering the `n`th request.
    pub(crate) fault: Option<(usize, Fault)>,
    /// Bytes of the pipe in each direction.
    pub(crate) pipe: usize,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// An error reply, and then the end, as XAPI's server does.
    Error(u32),
    /// A good reply, so many bytes of data, and then the end.
    CutAfter(usize),
    /// A reply with another magic number.
    BadMagic,
    /// A reply to a request that was never made.
    UnknownCookie,
    /// The reply to the request before, once more.
    RepeatedCookie,
    /// The start of a structured reply.
    Structured,
}

/// A request as it came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    cookie: u64,
    pub(crate) offset: u64,
    pub(crate) length: usize,
}

impl Server {
    pub(crate) fn of(disk: Vec<u8>) -> Self {
        Self { disk: Arc::new(disk), window: 1, backwards: false, fault: None, pipe: 1 << 20 }
    }

    /// A client whose export is open. The server lives as long as the client.
    pub(crate) async fn connect(&self) -> Client<DuplexStream> {
        let (ours, theirs) = duplex(self.pipe);
        tokio::spawn(self.clone().serve(theirs));
        open(ours).await.expect("a good server")
    }

    pub(crate) async fn clients(&self, count: usize) -> Vec<Client<DuplexStream>> {
        let mut clients = Vec::new();
        for _ in 0..count {
            clients.push(self.connect().await);
        }
        clients
    }

    async fn serve(self, mut stream: DuplexStream) {
        // A client that goes away, here or below, ends the server.
        if greet(&mut stream, 1).await.is_none() || accept_export(&mut stream, self.disk.len() as u64).await.is_none() {
            return;
        }
        let mut answered = 0;
        let mut before = 0;
        'windows: loop {
            let mut asked = Vec::new();
            while asked.len() < self.window {
                match next_request(&mut stream).await {
                    Some(request) => asked.push(request),
                    None if asked.is_empty() => return,
                    None => break,
                }
            }
            if self.backwards {
                asked.reverse();
            }
            for request in asked {
                let fault = self.fault.filter(|(nth, _)| *nth == answered).map(|(_, fault)| fault);
                if self.answer(&mut stream, request, before, fault).await.is_none() {
                    break 'windows;
                }
                (answered, before) = (answered + 1, request.cookie);
            }
        }
    }

    /// `None`: the connection is over.
    async fn answer(&self, stream: &mut DuplexStream, request: Asked, before: u64, fault: Option<Fault>) -> Option<()> {
        let Asked { cookie, offset, length } = request;
        let data = &self.disk[offset as usize..offset as usize + length];
        let (magic, error, cookie, data) = match fault {
            None => (0x6744_6698, 0, cookie, data),
            Some(Fault::Error(error)) => (0x6744_6698, error, cookie, &[][..]),
            Some(Fault::CutAfter(bytes)) => (0x6744_6698, 0, cookie, &data[..bytes]),
            Some(Fault::BadMagic) => (0x6744_6699, 0, cookie, data),
            Some(Fault::UnknownCookie) => (0x6744_6698, 0, cookie + 1000, data),
            Some(Fault::RepeatedCookie) => (0x6744_6698, 0, before, data),
            Some(Fault::Structured) => (0x668e_33ef_u32, 0, cookie, data),
        };
        let head = [&magic.to_be_bytes()[..], &u32::to_be_bytes(error), &cookie.to_be_bytes()].concat();
        stream.write_all(&head).await.ok()?;
        stream.write_all(data).await.ok()?;
        fault.is_none().then_some(())
    }
}

/// Opens the export over `stream`, without TLS.
pub(crate) async fn open(stream: DuplexStream) -> Result<Client<DuplexStream>, NbdError> {
    Handshake::begin(stream).await?.open(&ExportName::new(NAME)).await
}

/// Greets, and takes the client's flags.
pub(crate) async fn greet(stream: &mut DuplexStream, flags: u16) -> Option<u32> {
    stream.write_all(b"NBDMAGICIHAVEOPT").await.ok()?;
    stream.write_u16(flags).await.ok()?;
    stream.read_u32().await.ok()
}

/// Takes an option; its number and data.
pub(crate) async fn next_option(stream: &mut DuplexStream) -> Option<(u32, Vec<u8>)> {
    let mut magic = [0; 8];
    stream.read_exact(&mut magic).await.ok()?;
    assert_eq!(&magic, b"IHAVEOPT");
    let option = stream.read_u32().await.ok()?;
    let mut data = vec![0; stream.read_u32().await.ok()? as usize];
    stream.read_exact(&mut data).await.ok()?;
    Some((option, data))
}

/// Answers the option that has to be `EXPORT_NAME`, with the zeroes that XAPI's server sends.
pub(crate) async fn accept_export(stream: &mut DuplexStream, size: u64) -> Option<()> {
    let (option, name) = next_option(stream).await?;
    assert_eq!((option, name.as_slice()), (1, NAME.as_bytes()));
    stream.write_u64(size).await.ok()?;
    stream.write_u16(3).await.ok()?;
    stream.write_all(&[0; 124]).await.ok()
}

/// Takes a request, which has to be a read of whole sectors.
pub(crate) async fn next_request(stream: &mut DuplexStream) -> Option<Asked> {
    let mut raw = [0; 28];
    stream.read_exact(&mut raw).await.ok()?;
    assert_eq!(raw[..4], [0x25, 0x60, 0x95, 0x13]);
    if raw[4..8] == [0, 0, 0, 2] {
        return None;
    }
    assert_eq!(raw[4..8], [0; 4], "a plain read");
    let number = |from: usize| u64::from_be_bytes(raw[from..from + 8].try_into().expect("eight bytes"));
    let length = u32::from_be_bytes(raw[24..].try_into().expect("four bytes")) as usize;
    let (cookie, offset) = (number(8), number(16));
    assert!(offset.is_multiple_of(512) && length.is_multiple_of(512) && length > 0, "{offset} {length}");
    Some(Asked { cookie, offset, length })
}

/// Recognisable content: each sector differs from all others.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    let word = |at: usize| (at as u64 / 512 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[at % 8];
    (0..length).map(word).collect()
}
