//! The least that moves a body from one HTTP connection to others: no check, no TLS, no XAPI, blocking.
//!
//! `bare-forward copy|splice SOURCE PATH LENGTH SINK PATH SINKS`: `copy` goes through one buffer, `splice` through a pipe.

use anyhow::{Context as _, bail, ensure};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice, tee};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::OwnedFd;

const BUFFER_SIZE: usize = 256 << 10;
const PIPE_SIZE: usize = 1 << 20;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [way, source, get, length, sink, put, sinks] = arguments.as_slice() else {
        bail!("bare-forward copy|splice SOURCE PATH LENGTH SINK PATH SINKS");
    };
    let (length, sinks): (usize, usize) = (length.parse()?, sinks.parse()?);
    let mut source = request(source, &format!("GET {get} HTTP/1.1\r\nConnection: close\r\n\r\n"))?;
    let ahead = body_ahead(&mut source)?;
    let put = format!("PUT {put} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    let mut sinks = (0..sinks).map(|_| request(sink, &put)).collect::<anyhow::Result<Vec<_>>>()?;
    for sink in &mut sinks {
        sink.write_all(&ahead)?;
    }
    let left = length.checked_sub(ahead.len()).context("the source sends more than the length")?;
    match way.as_str() {
        "copy" => copy_all(source, &mut sinks, left)?,
        "splice" => splice_all(&source, &sinks, left)?,
        other => bail!("no way called {other}"),
    }
    for mut sink in sinks {
        body_ahead(&mut sink)?;
        ensure!(sink.read(&mut [0])? == 0, "the sink says more than its 200");
    }
    Ok(())
}

fn request(address: &str, head: &str) -> anyhow::Result<TcpStream> {
    let mut connection = TcpStream::connect(address)?;
    connection.set_nodelay(true)?;
    connection.write_all(head.as_bytes())?;
    Ok(connection)
}

/// Reads a response's head and gives what came behind it.
fn body_ahead(connection: &mut TcpStream) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            ensure!(bytes.starts_with(b"HTTP/1.1 200"), "refused");
            return Ok(bytes.split_off(end + 4));
        }
        let mut more = [0; 4096];
        let n = connection.read(&mut more)?;
        ensure!(n > 0, "the connection ended without an answer");
        bytes.extend_from_slice(&more[..n]);
    }
}

fn copy_all(mut source: TcpStream, sinks: &mut [TcpStream], mut left: usize) -> anyhow::Result<()> {
    let mut buffer = vec![0; BUFFER_SIZE];
    while left > 0 {
        let n = source.read(&mut buffer)?;
        ensure!(n > 0 && n <= left, "the source's length is wrong");
        for sink in &mut *sinks {
            sink.write_all(&buffer[..n])?;
        }
        left -= n;
    }
    Ok(())
}

/// A pipe per sink. What is in the first is doubled into the others before it goes on.
fn splice_all(source: &TcpStream, sinks: &[TcpStream], mut left: usize) -> anyhow::Result<()> {
    let pipes = sinks.iter().map(|_| pipe()).collect::<anyhow::Result<Vec<_>>>()?;
    let (_, first) = pipes.first().context("no sink")?;
    while left > 0 {
        let n = splice(source, None, first, None, PIPE_SIZE.min(left), SpliceFlags::MOVE)?;
        ensure!(n > 0, "the source ended early");
        left -= n;
        for (_, other) in &pipes[1..] {
            ensure!(tee(&pipes[0].0, other, n, SpliceFlags::empty())? == n, "a pipe is smaller than the first");
        }
        let more = if left > 0 { SpliceFlags::MORE } else { SpliceFlags::empty() };
        for ((pipe, _), sink) in pipes.iter().zip(sinks) {
            let mut inside = n;
            while inside > 0 {
                inside -= splice(pipe, None, sink, None, inside, SpliceFlags::MOVE | more)?;
            }
        }
    }
    Ok(())
}

/// Reading and writing end.
fn pipe() -> anyhow::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    fcntl_setpipe_size(&writer, PIPE_SIZE)?;
    Ok((reader, writer))
}
