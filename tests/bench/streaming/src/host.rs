//! A host with as much of XAPI as a transfer meets: login, tasks, `GET /export_raw_vdi`, `PUT /import_raw_vdi`.
//!
//! It answers a disk stream as XAPI does: 200 at once, then the data until the connection ends, and the truth about it in
//! the task. It costs as little as it can, since it shares the machine with what is measured.

mod calls;
mod connection;

use crate::stream::{Shape, Stream};
use anyhow::{Context as _, bail, ensure};
use calls::Tasks;
use clap::Args;
use connection::Connection;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A disk that forgets what is written to it.
pub(crate) const DISCARD: &str = "OpaqueRef:discard";
/// A disk that forgets what is written to it, but keeps its digest.
pub(crate) const HASH: &str = "OpaqueRef:hash";

pub(crate) const CERTIFICATE: &str = "certificate.pem";
pub(crate) const KEY: &str = "key.pem";

const ACCEPTED: &[u8] = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncache-control: no-cache, no-store\r\n\r\n";

/// Fewer and larger writes cost the sender less.
const WRITE_SIZE: usize = 1 << 20;
/// As much of a body as is taken at a time.
const READ_SIZE: usize = 1 << 20;
const MAX_HEAD: usize = 16 << 10;

/// Arguments.
#[derive(Args)]
pub(crate) struct Host {
    /// Folder with key and certificate, for TLS 1.2 as XAPI's proxy speaks it
    #[arg(long)]
    tls: Option<PathBuf>,
}

/// The first line that a host prints.
#[derive(Serialize, Deserialize)]
pub(crate) struct Ready {
    pub(crate) port: u16,
}

/// The line that a host prints for every import.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Receipt {
    /// Bytes of the body.
    pub(crate) received: u64,
    /// The body had the promised length, or an end of its own.
    pub(crate) whole: bool,
    /// BLAKE3 of the body, if it went to [`HASH`].
    pub(crate) digest: Option<String>,
}

impl Host {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let tls = self.tls.as_deref().map(tls_config).transpose()?.map(Arc::new);
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        println!("{}", serde_json::to_string(&Ready { port: listener.local_addr()?.port() })?);
        let tasks = Arc::new(Tasks::default());
        for tcp in listener.incoming() {
            let (tcp, tls, tasks) = (tcp?, tls.clone(), Arc::clone(&tasks));
            // A connection that breaks is the client's to tell: its task has not succeeded.
            std::thread::spawn(move || serve(Connection::new(tcp, tls)?, &tasks));
        }
        Ok(())
    }
}

/// What a default XAPI offers: TLS 1.2 with ECDHE-RSA-AES256-GCM-SHA384.
fn tls_config(folder: &Path) -> anyhow::Result<ServerConfig> {
    let certificate = CertificateDer::from_pem_file(folder.join(CERTIFICATE))?;
    let key = PrivateKeyDer::from_pem_file(folder.join(KEY))?;
    let mut provider = ring::default_provider();
    provider.cipher_suites = vec![ring::cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384];
    Ok(ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS12])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?)
}

/// The head of a request.
struct Request {
    verb: String,
    path: String,
    query: HashMap<String, String>,
    length: Option<u64>,
}

impl Request {
    fn parse(head: &str) -> anyhow::Result<Self> {
        let mut lines = head.lines();
        let mut words = lines.next().unwrap_or_default().split(' ');
        let (verb, target) = words.next().zip(words.next()).context("a request line")?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let length =
            lines.find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
        Ok(Self {
            verb: verb.to_owned(),
            path: path.to_owned(),
            query: pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            length,
        })
    }

    fn argument(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }
}

/// Serves calls until the connection ends, or one stream.
fn serve(mut connection: Connection, tasks: &Tasks) -> anyhow::Result<()> {
    let mut ahead = Vec::new();
    while let Some(request) = next_request(&mut connection, &mut ahead)? {
        match (request.verb.as_str(), request.path.as_str()) {
            ("POST", _) => {
                let mut body = std::mem::take(&mut ahead);
                let length = request.length.context("a call without a length")?;
                let more = length.checked_sub(body.len() as u64).context("more than one call at a time")?;
                (&mut connection).take(more).read_to_end(&mut body)?;
                let answer = tasks.answer(std::str::from_utf8(&body)?);
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/xml\r\ncontent-length:";
                connection.write_all(format!("{head} {}\r\n\r\n{answer}", answer.len()).as_bytes())?;
                connection.flush()?;
            }
            ("GET", "/export_raw_vdi") => {
                let done = export(&mut connection, &request);
                tasks.end(request.argument("task_id"), done.is_ok());
                connection.close();
                return done;
            }
            ("PUT", "/import_raw_vdi") => {
                let done = import(&mut connection, &request, &ahead);
                tasks.end(request.argument("task_id"), done.is_ok());
                connection.close();
                return done;
            }
            (verb, path) => bail!("{verb} {path} is not served"),
        }
    }
    Ok(())
}

/// Reads a request's head; what came behind it is left in `ahead`. `None` at the end of the connection.
fn next_request(connection: &mut Connection, ahead: &mut Vec<u8>) -> anyhow::Result<Option<Request>> {
    loop {
        if let Some(end) = ahead.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let request = Request::parse(std::str::from_utf8(&ahead[..end])?)?;
            ahead.drain(..end + 4);
            return Ok(Some(request));
        }
        ensure!(ahead.len() < MAX_HEAD, "a head without an end");
        let mut more = [0; 4096];
        match connection.read(&mut more)? {
            0 => return Ok(None),
            n => ahead.extend_from_slice(&more[..n]),
        }
    }
}

fn export(connection: &mut Connection, request: &Request) -> anyhow::Result<()> {
    let shape = Shape::of_reference(request.argument("vdi")).context("no such disk")?;
    let stream = Stream::new(shape)?;
    connection.write_all(ACCEPTED)?;
    for part in stream.parts() {
        for piece in part.chunks(WRITE_SIZE) {
            connection.write_all(piece)?;
        }
    }
    Ok(connection.flush()?)
}

fn import(connection: &mut Connection, request: &Request, ahead: &[u8]) -> anyhow::Result<()> {
    connection.write_all(ACCEPTED)?;
    connection.flush()?;
    let hasher = (request.argument("vdi") == HASH).then(blake3::Hasher::new);
    let mut body = Body { connection, ahead, received: 0, hasher, buffer: vec![0; READ_SIZE] };
    let whole = match request.length {
        Some(length) => body.take(length),
        None => body.take_frames(),
    };
    let digest = body.hasher.map(|hasher| hasher.finalize().to_string());
    let receipt = Receipt { received: body.received, whole: whole.is_ok(), digest };
    println!("{}", serde_json::to_string(&receipt)?);
    Ok(whole?)
}

/// The body of an import.
struct Body<'a> {
    connection: &'a mut Connection,
    /// What came with the request's head.
    ahead: &'a [u8],
    received: u64,
    hasher: Option<blake3::Hasher>,
    buffer: Vec<u8>,
}

impl Body<'_> {
    /// Takes this many bytes.
    fn take(&mut self, mut length: u64) -> io::Result<()> {
        while length > 0 {
            let most = length.min(READ_SIZE as u64) as usize;
            let taken = match &self.hasher {
                None if self.ahead.is_empty() => self.connection.discard(&mut self.buffer[..most])?,
                _ => self.read(most)?,
            };
            if taken == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.received += taken as u64;
            length -= taken as u64;
        }
        Ok(())
    }

    /// Takes frames of the `chunked` framing, up to the one that ends it.
    fn take_frames(&mut self) -> io::Result<()> {
        loop {
            let mut header = [0; 12];
            let mut filled = 0;
            while filled < header.len() {
                let taken = self.read(header.len() - filled)?;
                if taken == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                header[filled..filled + taken].copy_from_slice(&self.buffer[..taken]);
                filled += taken;
                self.received += taken as u64;
            }
            if header == [0; 12] {
                return Ok(());
            }
            let [.., a, b, c, d] = header;
            self.take(u32::from_le_bytes([a, b, c, d]).into())?;
        }
    }

    /// Reads at most `most` bytes into the buffer, and hashes them if that is asked for.
    fn read(&mut self, most: usize) -> io::Result<usize> {
        let buffer = &mut self.buffer[..most];
        let taken = if self.ahead.is_empty() { self.connection.read(buffer)? } else { self.ahead.read(buffer)? };
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..taken]);
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_from_its_head() {
        let head = "PUT /import_raw_vdi?format=vhd&vdi=OpaqueRef:hash HTTP/1.1\r\nHost: a\r\nCONTENT-LENGTH: 42";
        let request = Request::parse(head).expect("a request");
        assert_eq!((request.verb.as_str(), request.path.as_str()), ("PUT", "/import_raw_vdi"));
        assert_eq!((request.argument("vdi"), request.argument("task_id")), (HASH, ""));
        assert_eq!(request.length, Some(42));
        assert!(Request::parse("PUT").is_err());
    }
}
