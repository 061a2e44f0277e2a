//! qemu-nbd and nbdkit as servers that nobody here wrote.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tokio::net::TcpStream;
use vmferry_disk::chunked::{Coverage, Plan, Scan};
use vmferry_disk::extent::{Extent, Extents};
use vmferry_disk::nbd::{Client, Errno, ExportName, Handshake, NbdError, Pace, Reader, Source};

use crate::server::pattern;

const DISK_SIZE: usize = (9 << 20) + 512;

/// A server on a socket that was open before it started, so that nobody has to wait for it.
struct Peer {
    process: Child,
    address: SocketAddr,
}

impl Peer {
    /// Starts `program`, which inherits the socket the way systemd passes it. `None` if it is missing and may be.
    #[expect(clippy::print_stderr, reason = "a skipped test should say so")]
    fn start(program: &str, package: &str, arguments: &[&str]) -> Option<Self> {
        if Command::new(program).arg("--version").output().is_err() {
            let required = std::env::var_os("VMFERRY_REQUIRE_PEERS").is_some_and(|value| value == "1");
            assert!(!required, "{program} is required here; install the package {package}");
            eprintln!("skipped: there is no {program}");
            return None;
        }
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let process = Command::new("sh")
            .args(["-c", r#"LISTEN_FDS=1 LISTEN_PID=$$ exec "$@" 3<&0 0</dev/null"#, "sh", program])
            .args(arguments)
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)))
            .spawn()
            .expect("a shell");
        Some(Self { process, address })
    }

    fn qemu_nbd(disk: &Path) -> Option<Self> {
        let disk = disk.to_str().expect("a plain path");
        Self::start("qemu-nbd", "qemu-utils", &["-r", "-t", "-e", "16", "-f", "raw", "-x", "disk", disk])
    }

    fn nbdkit(arguments: &[&str]) -> Option<Self> {
        // The only flag of XAPI's greeting.
        Self::start("nbdkit", "nbdkit", &[&["-f", "-r", "--mask-handshake=1"], arguments].concat())
    }

    async fn connect(&self, name: &str) -> Result<Client<TcpStream>, NbdError> {
        let stream = TcpStream::connect(self.address).await.expect("a listening server");
        Handshake::begin(stream).await?.open(&ExportName::new(name)).await
    }

    async fn clients(&self, count: usize) -> Vec<Client<TcpStream>> {
        let mut clients = Vec::new();
        for _ in 0..count {
            clients.push(self.connect("disk").await.expect("an export"));
        }
        clients
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill().and_then(|()| self.process.wait());
    }
}

/// A disk in a file, with holes.
fn disk(folder: &Path) -> io::Result<(std::path::PathBuf, Vec<u8>)> {
    let mut disk = pattern(DISK_SIZE);
    disk[1 << 20..3 << 20].fill(0);
    let path = folder.join("disk.raw");
    std::fs::write(&path, &disk)?;
    Ok((path, disk))
}

/// Reads the whole disk in several ways, and a part of it.
async fn read_in_every_way(peer: &Peer, disk: &[u8]) {
    let size = disk.len() as u64;
    for (connections, depth, request_size) in [(1, 1, 2 << 20), (1, 8, 64 << 10), (2, 8, 256 << 10), (16, 2, 100_000)] {
        let plan = Plan::new(size, Extents::whole_disk(size), Coverage::Whole).expect("a good plan");
        let clients = peer.clients(connections).await;
        assert!(clients.iter().all(|client| client.size() == size));
        let mut source = Source::chunked(clients, &plan, Pace { depth, request_size }).expect("a large enough export");
        let mut stream = Vec::new();
        tokio::io::copy(&mut source, &mut stream).await.expect("a good server");
        let mut read = vec![0xee; disk.len()];
        let mut scan = Scan::new(&plan);
        scan.feed(&stream, &mut |piece| {
            let at = piece.offset as usize;
            read[at..at + piece.bytes.len()].copy_from_slice(piece.bytes);
        })
        .expect("the planned stream");
        scan.finish().expect("a complete stream");
        assert!(read == disk, "{connections} connections, depth {depth}");
        for client in source.into_clients() {
            client.disconnect().await.expect("a living server");
        }
    }

    let extents: Extents = [(512, 1024), (3 << 20, 70_144), (9 << 20, 512)]
        .map(|(offset, length)| Extent { offset, length })
        .into_iter()
        .collect();
    let mut reader =
        Reader::new(peer.clients(2).await, extents.clone(), Pace::default()).expect("a large enough export");
    let mut buffer = vec![0; 1 << 20];
    let mut read = 0;
    while let Some(piece) = reader.read(&mut buffer).await.expect("a good server") {
        let at = piece.offset as usize;
        assert!(piece.bytes == &disk[at..at + piece.bytes.len()], "byte {at}");
        read += piece.bytes.len() as u64;
    }
    assert_eq!(read, extents.total_bytes());
}

#[tokio::test]
async fn qemu_nbd_serves_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let (path, disk) = disk(folder.path()).unwrap();
    let Some(peer) = Peer::qemu_nbd(&path) else { return };
    read_in_every_way(&peer, &disk).await;
    let refused = peer.connect("another").await.unwrap_err();
    assert!(matches!(refused, NbdError::ExportRefused), "{refused:?}");
    let stream = TcpStream::connect(peer.address).await.unwrap();
    let refused = Handshake::begin(stream).await.unwrap().start_tls().await.unwrap_err();
    assert!(matches!(refused, NbdError::TlsRefused { .. }), "{refused:?}");
}

#[tokio::test]
async fn nbdkit_serves_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let (path, disk) = disk(folder.path()).unwrap();
    let Some(peer) = Peer::nbdkit(&["file", path.to_str().unwrap()]) else { return };
    read_in_every_way(&peer, &disk).await;
}

#[tokio::test]
async fn an_error_of_nbdkit_names_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = disk(folder.path()).unwrap();
    let file = path.to_str().unwrap();
    let Some(peer) = Peer::nbdkit(&["--filter=error", "file", file, "error-pread=EIO", "error-pread-rate=1"]) else {
        return;
    };
    let extents: Extents = [Extent { offset: 65536, length: 65536 }].into_iter().collect();
    let mut reader = Reader::new(peer.clients(1).await, extents, Pace::default()).unwrap();
    let error = reader.read(&mut [0; 4096]).await.unwrap_err();
    assert!(matches!(error, NbdError::Refused { offset: 65536, length: 65536, errno: Errno::Io }), "{error:?}");
}

#[tokio::test]
async fn a_server_that_is_killed_is_not_the_end_of_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let (path, disk) = disk(folder.path()).unwrap();
    let Some(mut peer) = Peer::qemu_nbd(&path) else { return };
    let extents = Extents::whole_disk(disk.len() as u64);
    let pace = Pace { depth: 1, request_size: 64 << 10 };
    let mut reader = Reader::new(peer.clients(2).await, extents, pace).unwrap();
    let mut buffer = vec![0; 64 << 10];
    reader.read(&mut buffer).await.unwrap();
    peer.process.kill().unwrap();
    peer.process.wait().unwrap();
    let error = loop {
        match reader.read(&mut buffer).await {
            Ok(piece) => assert!(piece.is_some()),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, NbdError::Closed { .. } | NbdError::Io { .. }), "{error:?}");
}
