//! Whose turn it is to change what a VM's folder holds.

use crate::place::Place;
use crate::{Keeper, guid};
use std::thread::sleep;
use std::time::{Duration, Instant};
use vmferry_plugin_api::{Error, lock};

/// A host keeps only so many names of locks, so VMs share them. None is held for longer than a change of a few files takes, or a
/// merge.
const NAMES: u128 = 500;
/// How long a turn is waited for that another has.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(250);

/// The right to change what a VM's folder holds.
pub(crate) struct Turn {
    lease: lock::Lease,
    renewed: Instant,
}

impl Turn {
    /// For how long a holder that died is waited for.
    const SECONDS: u64 = 60;
    const RENEW_AFTER: Duration = Duration::from_secs(15);

    /// Whether it is still ours; asked before each step that takes its time.
    pub(crate) fn go_on(&mut self) -> Result<(), Error> {
        if self.renewed.elapsed() >= Self::RENEW_AFTER {
            self.lease.renew(Self::SECONDS)?;
            self.renewed = Instant::now();
        }
        Ok(())
    }
}

impl<P: Place> Keeper<P> {
    /// Waits for a turn.
    pub(crate) fn turn(&self, folder: &str) -> Result<Turn, Error> {
        let name = format!("folder-{}", guid(&[&self.name, folder]).digits() % NAMES);
        let begun = Instant::now();
        loop {
            match lock::acquire(&name, Turn::SECONDS) {
                Ok(lease) => return Ok(Turn { lease, renewed: Instant::now() }),
                Err(error) if error.retry_after.is_none() || begun.elapsed() >= PATIENCE => return Err(error),
                Err(_) => sleep(PAUSE),
            }
        }
    }
}
