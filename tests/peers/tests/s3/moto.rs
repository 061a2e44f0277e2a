//! An object store in memory.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use vmferry_peers::{Peer, script};

/// A store that lives as long as this value.
pub(crate) struct Moto {
    pub(crate) url: String,
    process: Child,
    output: BufReader<ChildStdout>,
    _input: ChildStdin,
}

impl Moto {
    /// An empty store, which believes whoever asks.
    pub(crate) fn start(python: &Peer) -> Self {
        Self::start_as(python, &[])
    }

    /// One with a bucket `backup` that takes only what is signed with a key: its public half, and its secret.
    pub(crate) fn strict(python: &Peer) -> (Self, String, String) {
        let mut moto = Self::start_as(python, &["strict"]);
        let key = moto.line();
        let (access, secret) = key.split_once(' ').unwrap();
        (moto, access.to_owned(), secret.to_owned())
    }

    fn start_as(python: &Peer, arguments: &[&str]) -> Self {
        let mut command = Command::new(python.path());
        command.arg(script("py/s3_server.py")).args(arguments);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let mut moto = Self { url: String::new(), output, _input: process.stdin.take().unwrap(), process };
        moto.url = moto.line();
        moto
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
