//! An NBD export read as a run reads it, and dropped.

use clap::Args;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::net::TcpStream;
use vmferry_disk::chunked::{Coverage, Plan};
use vmferry_disk::digest::Leaf;
use vmferry_disk::extent::Extents;
use vmferry_disk::nbd::{Client, ExportName, Handshake, Pace, Source};
use vmferry_disk::transfer::{Options, lockstep};

/// Arguments.
#[derive(Args)]
pub(crate) struct NbdRead {
    /// Host and port
    #[arg(long)]
    address: String,
    #[arg(long)]
    connections: usize,
    /// Requests under way on each connection
    #[arg(long)]
    requests: u16,
    /// Bytes
    #[arg(long)]
    request_size: u32,
    /// Tell what was read
    #[arg(long)]
    digest: bool,
}

/// Opens the server's only disk, one connection after the other.
pub(crate) async fn connect(address: &str, connections: usize) -> anyhow::Result<Vec<Client<TcpStream>>> {
    let mut clients = Vec::new();
    for _ in 0..connections {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        clients.push(Handshake::begin(tcp).await?.open(&ExportName::new("disk")).await?);
    }
    Ok(clients)
}

/// What the process prints if it is to tell.
#[derive(Serialize, Deserialize)]
pub(crate) struct Digest {
    /// BLAKE3 of the leaves of the whole disk.
    pub(crate) of_leaves: String,
}

impl NbdRead {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        tokio::runtime::Runtime::new()?.block_on(async { tokio::spawn(self.read()).await? })
    }

    async fn read(self) -> anyhow::Result<()> {
        let clients = connect(&self.address, self.connections).await?;
        let size = clients.first().map_or(0, Client::size);
        let plan = Plan::new(size, Extents::whole_disk(size), Coverage::Whole)?;
        let pace = Pace { depth: self.requests, request_size: self.request_size };
        let mut source = Source::chunked(clients, &plan, pace)?;
        let mut hasher = blake3::Hasher::new();
        let mut record = |_: u64, leaf: Leaf| {
            hasher.update(&leaf.0);
        };
        let options = Options {
            leaves: if self.digest { Some(&mut record) } else { None },
            progress: &(),
            throttles: &[],
            stall: Duration::from_secs(60),
            first_byte: Duration::from_secs(60),
        };
        lockstep::<_, TcpStream>(&mut source, &plan, &mut [], options).await?;
        for client in source.into_clients() {
            client.disconnect().await?;
        }
        if self.digest {
            let digest = Digest { of_leaves: hasher.finalize().to_string() };
            println!("{}", serde_json::to_string(&digest)?);
        }
        Ok(())
    }
}
