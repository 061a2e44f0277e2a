//! Object stores that nobody here wrote.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use tempfile::TempDir;
use vmferry_peers::{Peer, script};

/// Which store. Both keep `If-None-Match: *`, and neither compares the check sum of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// In memory, written in Python: keeps most rules of Amazon's, Object Lock and versions too, and believes every check sum.
    Moto,
    /// In a folder, written in Rust: compares the check sum of an object that is made by one request, though after it took the
    /// place of the one before. It ignores what asks for Object Lock, makes a bucket that is missing, and neither lists uploads
    /// nor tells one that is unknown from one that is another's.
    S3sFs,
}

/// A store that lives as long as this value.
pub(crate) struct Server {
    pub(crate) kind: Kind,
    pub(crate) url: String,
    /// What requests have to be signed with, where the store looks at that.
    pub(crate) access_key: String,
    pub(crate) secret_key: String,
    folder: TempDir,
    process: Child,
    output: BufReader<ChildStdout>,
    /// moto ends when this does.
    _input: ChildStdin,
}

impl Server {
    /// An empty store, which believes whoever asks. `None` where the program may be missing.
    pub(crate) fn start(kind: Kind) -> anyhow::Result<Option<Self>> {
        Self::start_with(kind, &[], &[])
    }

    /// One with a bucket `backup`, which takes only what is signed with its key.
    pub(crate) fn strict(kind: Kind) -> anyhow::Result<Option<Self>> {
        let (access_key, secret_key) = ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
        let key = ["--access-key", access_key, "--secret-key", secret_key];
        let Some(mut server) = Self::start_with(kind, &["strict"], &key)? else { return Ok(None) };
        (server.access_key, server.secret_key) = match kind {
            Kind::Moto => {
                let key = server.line();
                let (access_key, secret_key) = key.split_once(' ').unwrap();
                (access_key.to_owned(), secret_key.to_owned())
            }
            Kind::S3sFs => {
                std::fs::create_dir(server.folder().join("backup"))?;
                (access_key.to_owned(), secret_key.to_owned())
            }
        };
        Ok(Some(server))
    }

    fn start_with(kind: Kind, moto: &[&str], s3s_fs: &[&str]) -> anyhow::Result<Option<Self>> {
        let folder = tempfile::tempdir()?;
        let program = match kind {
            Kind::Moto => Peer::python()?,
            Kind::S3sFs => Peer::s3s_fs()?,
        };
        let Some(program) = program else { return Ok(None) };
        let mut command = Command::new(program.path());
        match kind {
            Kind::Moto => command.arg(script("py/s3_server.py")).args(moto),
            Kind::S3sFs => {
                command.args(["--host", "127.0.0.1", "--port", "0"]).args(s3s_fs).arg(folder.path());
                command.env("RUST_LOG", "s3s_fs=info")
            }
        };
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let output = BufReader::new(process.stdout.take().unwrap());
        let input = process.stdin.take().unwrap();
        let (url, access_key, secret_key) = (String::new(), String::new(), String::new());
        let mut server = Self { kind, url, access_key, secret_key, folder, process, output, _input: input };
        // s3s-fs says it within a line of its log.
        while server.url.is_empty() {
            let line = server.line();
            let begin = line.find("http://").unwrap_or(line.len());
            server.url = line[begin..].to_owned();
        }
        Ok(Some(server))
    }

    /// What the next line says.
    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.output.read_line(&mut line).unwrap() > 0, "the store has ended");
        line.trim().to_owned()
    }

    /// Where s3s-fs keeps its buckets.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Makes a test of each fact with each store.
macro_rules! with_each_server {
    ($($fact:ident),+ $(,)?) => {
        mod moto {
            $(#[test]
            fn $fact() -> anyhow::Result<()> {
                super::$fact(crate::server::Kind::Moto)
            })+
        }
        mod s3s_fs {
            $(#[test]
            fn $fact() -> anyhow::Result<()> {
                super::$fact(crate::server::Kind::S3sFs)
            })+
        }
    };
    (async $($fact:ident),+ $(,)?) => {
        mod moto {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $fact() -> anyhow::Result<()> {
                super::$fact(crate::server::Kind::Moto).await
            })+
        }
        mod s3s_fs {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $fact() -> anyhow::Result<()> {
                super::$fact(crate::server::Kind::S3sFs).await
            })+
        }
    };
}
pub(crate) use with_each_server;
