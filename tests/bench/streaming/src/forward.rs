//! One disk moved as a run moves it: logins, tasks, one export, an import per target, digests into a table, both ends
//! confirmed.

use crate::counting::allocations;
use anyhow::{Context as _, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;
use vmferry_disk::digest::{Leaf, Table};
use vmferry_disk::transfer::{EngineName, Options, lockstep, relay};
use vmferry_disk::vhd::Head;
use vmferry_xapi::{Endpoint, Ref, Session, Trust};

/// Arguments.
#[derive(Args)]
pub(crate) struct Forward {
    /// URL of the source's host
    #[arg(long)]
    from: String,
    /// URL of the target's host
    #[arg(long)]
    to: String,
    /// SHA-256 of the hosts' certificate
    #[arg(long)]
    pin: Option<String>,
    /// Reference of the disk to read
    #[arg(long)]
    disk: String,
    /// Reference of the disk to write
    #[arg(long)]
    into: String,
    /// How many imports share the one export
    #[arg(long)]
    sinks: usize,
    /// Let the kernel move the payload
    #[arg(long)]
    splice: bool,
    /// Where the digest table goes; without it no digest is taken
    #[arg(long)]
    digest_table: Option<PathBuf>,
}

/// What a forwarding process prints.
#[derive(Serialize, Deserialize)]
pub(crate) struct Report {
    /// Allocations of the process while the transfer went on, between the opening of its ends and their confirmation.
    pub(crate) allocations: u64,
}

impl Forward {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let report = tokio::runtime::Runtime::new()?.block_on(async { tokio::spawn(self.forward()).await? })?;
        println!("{}", serde_json::to_string(&report)?);
        Ok(())
    }

    async fn forward(self) -> anyhow::Result<Report> {
        let pin = self.pin.as_deref();
        let (source, target) = (login(&self.from, pin).await?, login(&self.to, pin).await?);
        let mut export = source.export_vdi(&Ref::new(self.disk), None, "bench").await?;
        let head = Head::read(&mut export).await?;
        let into = Ref::new(self.into);
        let mut imports = Vec::new();
        for _ in 0..self.sinks {
            imports.push(target.import_vdi(&into, head.stream_length(), "bench").await?);
        }
        let table = self.digest_table.map(|path| Table::create(path, head.virtual_size()));
        let mut table = table.transpose()?;
        let hashing = table.is_some();
        let mut record = |leaf: u64, digest: Leaf| {
            if let Some(table) = &mut table {
                table.set(leaf, digest);
            }
        };
        let options = Options {
            leaves: hashing.then_some(&mut record),
            progress: &(),
            throttles: &[],
            stall: Duration::from_secs(60),
            first_byte: Duration::from_secs(60),
        };
        let before = allocations();
        let outcome = if self.splice {
            relay(&mut export, &head, &mut imports, options).await?
        } else {
            lockstep(&mut export, &head, &mut imports, options).await?
        };
        let allocations = allocations() - before;
        ensure!(self.splice == (outcome.engine == EngineName::Splice), "it went by {}", outcome.engine);
        for (import, sink) in imports.into_iter().zip(outcome.sinks) {
            sink.result?;
            import.finish().await?;
        }
        export.finish().await?;
        if let Some(table) = table {
            table.commit()?;
        }
        source.logout().await?;
        target.logout().await?;
        Ok(Report { allocations })
    }
}

/// Logs in at a host, whose certificate is known by its SHA-256.
pub(crate) async fn login(url: &str, pin: Option<&str>) -> anyhow::Result<Session> {
    let mut endpoint = Endpoint::parse(url)?;
    if let Some(pin) = pin {
        endpoint = endpoint.with_trust(Trust::parse_pin(pin).context("the pin is no SHA-256")?);
    }
    Ok(Session::login(&endpoint, "bench").await?)
}
