//! What a run of one VM takes in pools of many: XAPI gives all records of a class or one, and has no index of our keys.

use crate::pool::{Disk, Pool};
use crate::whole::{Job, mb};
use anyhow::ensure;
use clap::Args;

const DISK: Disk = Disk { gib: 1, blocks: 8 };

/// Arguments.
#[derive(Args)]
pub(crate) struct Crowd {
    /// VMs in either pool, with two disks each
    #[arg(long, default_value_t = 5000)]
    vms: usize,
}

impl Crowd {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let program = std::env::current_exe()?.with_file_name("vmferry");
        ensure!(program.exists(), "{} is not built; use tests/bench/run", program.display());
        for vms in [0, self.vms] {
            let mut source = Pool::with_crowd(false, Some(DISK), vms)?;
            let job = Job::onto(&program, &source, Pool::with_crowd(false, None, vms)?, "digest")?;
            for kind in ["full", "delta"] {
                let cost = job.run(kind)?;
                let (wall, cpu, peak) = (cost.wall, cost.cpu, mb(&cost));
                println!("{vms} VMs beside it, {kind}: {wall:.2} s wall, {cpu:.2} CPU-s, {peak:.1} MB peak");
                source.write(1)?;
            }
        }
        Ok(())
    }
}
