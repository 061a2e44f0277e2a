//! A delta of scattered small writes, read by NBD and sent in 64 KiB extents.

use crate::forward::login;
use crate::nbd_read::connect;
use clap::Args;
use std::collections::BTreeSet;
use std::time::Duration;
use vmferry_disk::chunked::{Coverage, Plan};
use vmferry_disk::extent::{Extent, Extents};
use vmferry_disk::nbd::{Pace, Source};
use vmferry_disk::transfer::{Options, lockstep};
use vmferry_xapi::Ref;

/// Size of the disk.
pub(crate) const DISK_SIZE: u64 = 64 << 30;
const WRITES: usize = 2000;
const WRITE_SIZE: u64 = 4096;

/// Where the writes went: anywhere, but everywhere the same at each run.
pub(crate) fn writes() -> Vec<Extent> {
    let mut random = vec![0; WRITES * 8];
    blake3::Hasher::new().update(b"writes").finalize_xof().fill(&mut random);
    let offset =
        |bytes: &[u8]| bytes.iter().fold(0, |sum: u64, byte| (sum << 8) | u64::from(*byte)) % (DISK_SIZE / WRITE_SIZE);
    random.chunks(8).map(|bytes| Extent { offset: offset(bytes) * WRITE_SIZE, length: WRITE_SIZE }).collect()
}

/// How many blocks of 2 MiB the writes touch.
pub(crate) fn touched_blocks() -> u32 {
    writes().iter().map(|write| write.offset >> 21).collect::<BTreeSet<_>>().len() as u32
}

/// Arguments.
#[derive(Args)]
pub(crate) struct Delta {
    /// Host and port of the NBD server
    #[arg(long)]
    address: String,
    /// URL of the target's host
    #[arg(long)]
    to: String,
    /// Reference of the disk to write
    #[arg(long)]
    into: String,
}

impl Delta {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        tokio::runtime::Runtime::new()?.block_on(self.send())
    }

    async fn send(self) -> anyhow::Result<()> {
        let extents = writes().into_iter().collect::<Extents>().to_leaves(DISK_SIZE);
        let plan = Plan::new(DISK_SIZE, extents, Coverage::Whole)?;
        let mut source = Source::chunked(connect(&self.address, 1).await?, &plan, Pace::default())?;
        let target = login(&self.to, None).await?;
        let mut imports = [target.import_chunked(&Ref::new(self.into), "bench").await?];
        let options = Options {
            leaves: None,
            progress: &(),
            throttles: &[],
            stall: Duration::from_secs(60),
            first_byte: Duration::from_secs(60),
        };
        let outcome = lockstep(&mut source, &plan, &mut imports, options).await?;
        for (import, sink) in imports.into_iter().zip(outcome.sinks) {
            sink.result?;
            import.finish().await?;
        }
        Ok(target.logout().await?)
    }
}
