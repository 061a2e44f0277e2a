//! The hosts between which the contenders move disks, each a process of its own.

use crate::contender::{Contender, Scheme};
use crate::delta;
use crate::host::{CERTIFICATE, DISCARD, HASH, KEY, Ready, Receipt};
use crate::measure::{Cost, measure};
use crate::nbd_read::Digest;
use crate::stream::{Shape, Stream};
use anyhow::{Context as _, ensure};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use tempfile::TempDir;

/// What other people's programs are needed, and Debian's packages of them.
const OTHER_PROGRAMS: [(&str, &str); 4] =
    [("curl", "curl"), ("openssl", "openssl"), ("nbdcopy", "libnbd-bin"), ("nbdkit", "nbdkit")];

/// Everything that the contenders need. It ends with its value.
pub(crate) struct Scene {
    program: String,
    folder: TempDir,
    pin: String,
    plain: [HostProcess; 2],
    tls: [HostProcess; 2],
    nbd: NbdServer,
}

/// What became of one run of a contender.
pub(crate) struct Ran {
    pub(crate) cost: Cost,
    pub(crate) receipts: Vec<Receipt>,
}

impl Scene {
    /// `shape` is the disk that is there by NBD; the hosts have any.
    pub(crate) fn start(shape: Shape) -> anyhow::Result<Self> {
        for (program, package) in OTHER_PROGRAMS {
            let missing = || format!("{program} does not start; Debian has it in {package}");
            Command::new(program).arg("--version").output().with_context(missing)?;
        }
        let program = std::env::current_exe()?;
        let folder = tempfile::tempdir()?;
        let pin = make_certificate(folder.path())?;
        let plain = || HostProcess::start(None);
        let tls = || HostProcess::start(Some(folder.path()));
        let (plain, tls) = ([plain()?, plain()?], [tls()?, tls()?]);
        let nbd = NbdServer::start(&folder.path().join("disk"), shape)?;
        let program = program.into_os_string().into_string().ok().context("a program whose path is UTF-8")?;
        Ok(Self { program, folder, pin, plain, tls, nbd })
    }

    /// This program.
    pub(crate) fn program(&self) -> &str {
        &self.program
    }

    pub(crate) fn bare_forward(&self) -> String {
        Path::new(&self.program).with_file_name("bare-forward").display().to_string()
    }

    /// SHA-256 of the certificate of both TLS hosts.
    pub(crate) fn pin(&self) -> &str {
        &self.pin
    }

    pub(crate) fn digest_table(&self) -> String {
        self.folder.path().join("digests").display().to_string()
    }

    /// The source's host and the target's.
    pub(crate) fn hosts(&self, scheme: Scheme) -> &[HostProcess; 2] {
        match scheme {
            Scheme::Http => &self.plain,
            Scheme::Https => &self.tls,
        }
    }

    pub(crate) fn nbd(&self) -> &NbdServer {
        &self.nbd
    }

    /// Lets a contender move a disk, and checks that every sink got as many bytes as the stream has.
    pub(crate) fn run(&mut self, contender: Contender, shape: Shape, into: &str) -> anyhow::Result<Ran> {
        let cost = measure(&contender.pipeline(self, shape, into)?)?;
        let [_, sink] = match contender.scheme() {
            Scheme::Http => &mut self.plain,
            Scheme::Https => &mut self.tls,
        };
        let length = Stream::new(shape)?.length();
        let mut receipts = Vec::new();
        for _ in 0..contender.sinks() {
            let receipt: Receipt = sink.next_line()?;
            let whole = receipt.whole && receipt.received == length;
            ensure!(whole, "{contender}: a sink got {receipt:?} of a stream of {length} bytes");
            receipts.push(receipt);
        }
        Ok(Ran { cost, receipts })
    }

    /// Bytes that the delta of scattered writes takes, as the sink counts them.
    pub(crate) fn delta_bytes(&mut self) -> anyhow::Result<u64> {
        let disk = self.folder.path().join("delta");
        let file = File::create(&disk)?;
        file.set_len(delta::DISK_SIZE)?;
        for write in delta::writes() {
            file.write_all_at(&vec![7; write.length as usize], write.offset)?;
        }
        let server = NbdServer::serve(&disk)?;
        let [_, sink] = &mut self.plain;
        let (address, to) = (server.address(), sink.url());
        let line = [&self.program, "delta", "--address", &address, "--to", &to, "--into", DISCARD];
        measure(&vec![line.map(str::to_owned).to_vec()])?;
        let receipt: Receipt = sink.next_line()?;
        ensure!(receipt.whole, "delta: {receipt:?}");
        Ok(receipt.received)
    }

    /// Lets a contender move a disk, and checks that all of it arrived, to the last bit.
    pub(crate) fn prove(&mut self, contender: Contender, shape: Shape) -> anyhow::Result<()> {
        let ran = self.run(contender, shape, HASH)?;
        let stream = Stream::new(shape)?.digest().to_string();
        for receipt in ran.receipts {
            ensure!(receipt.digest.as_ref() == Some(&stream), "{contender}: a sink got other bytes: {receipt:?}");
        }
        if contender == Contender::NbdRead {
            let read: Digest = serde_json::from_str(&ran.cost.output)?;
            ensure!(read.of_leaves == self.nbd.digest_of_leaves()?, "{contender}: other bytes were read");
        }
        Ok(())
    }
}

/// RSA-2048 and signed by itself, as hosts have them. Gives its SHA-256.
fn make_certificate(folder: &Path) -> anyhow::Result<String> {
    let openssl = |arguments: &[&str]| -> anyhow::Result<String> {
        let output = Command::new("openssl").args(arguments).current_dir(folder).output().context("openssl")?;
        ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let subject = ["-subj", "/CN=bench", "-days", "2"];
    openssl(
        &[&["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", KEY, "-out", CERTIFICATE], &subject[..]]
            .concat(),
    )?;
    let fingerprint = openssl(&["x509", "-in", CERTIFICATE, "-noout", "-fingerprint", "-sha256"])?;
    let (_, pin) = fingerprint.trim().split_once('=').context("a fingerprint")?;
    Ok(pin.to_owned())
}

/// A served host. It ends with its value.
pub(crate) struct HostProcess {
    process: Child,
    lines: BufReader<ChildStdout>,
    scheme: Scheme,
    port: u16,
}

impl HostProcess {
    fn start(tls: Option<&Path>) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("host").stdout(Stdio::piped());
        if let Some(folder) = tls {
            command.arg("--tls").arg(folder);
        }
        let mut process = command.spawn()?;
        let lines = BufReader::new(process.stdout.take().context("stdout")?);
        let scheme = if tls.is_some() { Scheme::Https } else { Scheme::Http };
        let mut host = Self { process, lines, scheme, port: 0 };
        host.port = host.next_line::<Ready>()?.port;
        Ok(host)
    }

    /// Host and port.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn url(&self) -> String {
        let scheme = self.scheme.to_string().to_lowercase();
        format!("{scheme}://root:password@{}", self.address())
    }

    fn next_line<T: serde::de::DeserializeOwned>(&mut self) -> anyhow::Result<T> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for HostProcess {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `nbdkit` with one disk, which it has under every name. With one thread it answers a connection's requests in order, as
/// XAPI's server does. It ends with its value.
pub(crate) struct NbdServer {
    process: Child,
    address: SocketAddr,
    disk: PathBuf,
}

impl NbdServer {
    /// Writes the disk and serves it.
    fn start(disk: &Path, shape: Shape) -> anyhow::Result<Self> {
        let mut file = File::create(disk)?;
        Stream::new(shape)?.write_disk(&mut file)?;
        Self::serve(disk)
    }

    /// Serves a disk that is there.
    fn serve(disk: &Path) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        // The socket is handed over as systemd would: bound, listening, and next to the standard ones.
        let script =
            "LISTEN_FDS=1 LISTEN_PID=$$ exec nbdkit --foreground --readonly --threads=1 file \"$1\" 3<&0 </dev/null";
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(disk).stdin(OwnedFd::from(listener));
        let process = command.spawn().context("sh")?;
        Ok(Self { process, address, disk: disk.to_owned() })
    }

    /// Host and port.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn url(&self) -> String {
        format!("nbd://{}/disk", self.address)
    }

    /// BLAKE3 of the disk's leaves: of every 64 KiB the first 16 bytes of its BLAKE3. No part of the disk is empty.
    fn digest_of_leaves(&self) -> anyhow::Result<String> {
        let mut hasher = blake3::Hasher::new();
        let mut file = File::open(&self.disk)?;
        let mut leaf = vec![0; 64 << 10];
        while file.read(&mut leaf)? == leaf.len() {
            hasher.update(&blake3::hash(&leaf).as_bytes()[..16]);
        }
        Ok(hasher.finalize().to_string())
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
