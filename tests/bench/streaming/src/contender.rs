//! What is measured, and by which commands.

use crate::host::HASH;
use crate::measure::Pipeline;
use crate::scene::Scene;
use crate::stream::{Shape, Stream};
use std::fmt;

/// What both NBD clients use: the streaming core's defaults.
const NBD_CONNECTIONS: usize = 2;
const NBD_REQUESTS: usize = 8;
const NBD_REQUEST_SIZE: usize = 256 << 10;

/// How hosts are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    Https,
}

/// How the streaming core moves a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    Lockstep,
    LockstepWithDigest,
    Splice,
}

/// A transfer by the streaming core, in a process that does nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transfer {
    pub(crate) scheme: Scheme,
    pub(crate) engine: Engine,
    pub(crate) sinks: usize,
}

/// One thing that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    /// `curl | curl`, one sink.
    Curl(Scheme),
    /// One buffer between plain sockets.
    BareCopy {
        sinks: usize,
    },
    /// A pipe between plain sockets, by `splice` and `tee`.
    BareSplice {
        sinks: usize,
    },
    Transfer(Transfer),
    /// `nbdcopy` into nothing.
    NbdCopy,
    /// The streaming core's NBD source, into nothing.
    NbdRead,
    /// AES-256-GCM, open and seal; in memory.
    Aead,
    /// BLAKE3 of 64 KiB pieces; in memory.
    Blake3,
}

impl Contender {
    /// How many sinks it fills.
    pub(crate) fn sinks(self) -> usize {
        match self {
            Self::Curl(_) => 1,
            Self::BareCopy { sinks } | Self::BareSplice { sinks } => sinks,
            Self::Transfer(transfer) => transfer.sinks,
            Self::NbdCopy | Self::NbdRead | Self::Aead | Self::Blake3 => 0,
        }
    }

    pub(crate) fn scheme(self) -> Scheme {
        match self {
            Self::Curl(scheme) | Self::Transfer(Transfer { scheme, .. }) => scheme,
            _ => Scheme::Http,
        }
    }

    /// Moves the disk of this shape into the disk `into`.
    pub(crate) fn pipeline(self, scene: &Scene, shape: Shape, into: &str) -> anyhow::Result<Pipeline> {
        let [source, sink] = scene.hosts(self.scheme());
        let get = format!("/export_raw_vdi?format=vhd&vdi={}", shape.reference());
        let put = format!("/import_raw_vdi?format=vhd&vdi={into}");
        let words = |line: &[&str]| line.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let bare = |way: &str, sinks: usize| -> anyhow::Result<Pipeline> {
            let (program, length) = (scene.bare_forward(), Stream::new(shape)?.length().to_string());
            let (source, sink) = (source.address(), sink.address());
            Ok(vec![words(&[&program, way, &source, &get, &length, &sink, &put, &sinks.to_string()])])
        };
        let floor =
            |work: &str| vec![words(&[scene.program(), "floor", work, "--mib", &(shape.disk_size >> 20).to_string()])];
        Ok(match self {
            Self::Curl(_) => {
                let length = format!("Content-Length: {}", Stream::new(shape)?.length());
                let (get, put) = (format!("{}{get}", source.url()), format!("{}{put}", sink.url()));
                // Without a length curl would send chunks, which XAPI refuses, and it would wait for a 100.
                let upload =
                    ["curl", "-sSkf", "-T", "-", "-H", "Transfer-Encoding:", "-H", "Expect:", "-H", &length, &put];
                vec![words(&["curl", "-sSkf", &get]), words(&upload)]
            }
            Self::BareCopy { sinks } => bare("copy", sinks)?,
            Self::BareSplice { sinks } => bare("splice", sinks)?,
            Self::Aead => floor("aead"),
            Self::Blake3 => floor("blake3"),
            Self::Transfer(Transfer { scheme, engine, sinks }) => {
                let sinks = sinks.to_string();
                let (from, to, disk) = (source.url(), sink.url(), shape.reference());
                let mut line = words(&[scene.program(), "forward", "--from", &from, "--to", &to, "--disk", &disk]);
                line.extend(words(&["--into", into, "--sinks", &sinks]));
                if scheme == Scheme::Https {
                    line.extend(words(&["--pin", scene.pin()]));
                }
                match engine {
                    Engine::Lockstep => {}
                    Engine::LockstepWithDigest => line.extend(words(&["--digest-table", &scene.digest_table()])),
                    Engine::Splice => line.extend(words(&["--splice"])),
                }
                vec![line]
            }
            Self::NbdCopy => {
                let (connections, requests) = (format!("-C{NBD_CONNECTIONS}"), format!("-R{NBD_REQUESTS}"));
                let size = format!("--request-size={NBD_REQUEST_SIZE}");
                vec![words(&["nbdcopy", &connections, &requests, &size, &scene.nbd().url(), "null:"])]
            }
            Self::NbdRead => {
                let (connections, requests) = (NBD_CONNECTIONS.to_string(), NBD_REQUESTS.to_string());
                let (size, address) = (NBD_REQUEST_SIZE.to_string(), scene.nbd().address());
                let mut line = words(&[scene.program(), "nbd-read", "--address", &address]);
                line.extend(words(&["--connections", &connections, "--requests", &requests, "--request-size", &size]));
                if into == HASH {
                    line.extend(words(&["--digest"]));
                }
                vec![line]
            }
        })
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "HTTP",
            Self::Https => "HTTPS",
        })
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lockstep => "lockstep",
            Self::LockstepWithDigest => "lockstep, digest",
            Self::Splice => "splice",
        })
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let targets = |sinks: usize| if sinks > 1 { format!(", {sinks} targets") } else { String::new() };
        match self {
            Self::Curl(scheme) => write!(f, "{scheme} curl | curl"),
            Self::BareCopy { sinks: 0 } => f.write_str("HTTP receive and drop"),
            Self::BareCopy { sinks } => write!(f, "HTTP bare copy loop{}", targets(*sinks)),
            Self::BareSplice { sinks } => write!(f, "HTTP bare splice loop{}", targets(*sinks)),
            Self::Transfer(Transfer { scheme, engine, sinks }) => write!(f, "{scheme} {engine}{}", targets(*sinks)),
            Self::NbdCopy => f.write_str("NBD nbdcopy"),
            Self::NbdRead => f.write_str("NBD source"),
            Self::Aead => f.write_str("AES-256-GCM, open and seal"),
            Self::Blake3 => f.write_str("BLAKE3 of 64 KiB"),
        }
    }
}
