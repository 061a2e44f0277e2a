//! Exclusive rights for a time: leases of the host's store, which all its workers share.

use crate::bindings::host::vmferry::plugin::types::{Error, ErrorCode};
use crate::bindings::target::vmferry::plugin::lock;
use crate::grants::is_name;
use crate::limits::LOCK_OPERATIONS;
use crate::state::{State, error, no_answer};
use std::sync::Arc;
use std::time::Duration;
use vmferry_model::store::{Acquired, Leases};
use wasmtime::component::Resource;

/// The longest time for which a right is given at once. Who died with it is waited for that long.
const MAX_SECONDS: u64 = 3600;

/// A right that a guest holds.
#[allow(unreachable_pub, reason = "generated code exports it again")]
pub struct Lease {
    name: String,
    epoch: u64,
}

impl lock::Host for State {
    async fn acquire(&mut self, name: String, seconds: u64) -> wasmtime::Result<Result<Resource<Lease>, Error>> {
        let (leases, length) = match self.leases_once().and_then(|leases| Ok((leases, checked(&name, seconds)?))) {
            Ok(granted) => granted,
            Err(error) => return Ok(Err(error)),
        };
        let (tenant, plugin) = (&self.lent.tenant, &self.lent.plugin);
        Ok(match leases.acquire(tenant, plugin, &name, length).await {
            Ok(Acquired::Epoch(epoch)) => Ok(self.table.push(Lease { name, epoch })?),
            Ok(Acquired::HeldFor(rest)) => Err(Error {
                retry_after: Some(rest.as_secs() + 1),
                ..error(ErrorCode::Unavailable, format!("somebody else holds the lock `{name}`"))
            }),
            Ok(Acquired::TooMany(most)) => {
                Err(error(ErrorCode::Limit, format!("a plugin has at most {most} locks; use fewer names")))
            }
            Err(problem) => Err(no_answer(&problem)),
        })
    }
}

impl lock::HostLease for State {
    fn epoch(&mut self, lease: Resource<Lease>) -> wasmtime::Result<u64> {
        Ok(self.table.get(&lease)?.epoch)
    }

    async fn renew(&mut self, lease: Resource<Lease>, seconds: u64) -> wasmtime::Result<Result<(), Error>> {
        let leases = self.leases_once();
        let Lease { name, epoch } = self.table.get(&lease)?;
        let (leases, length) = match leases.and_then(|leases| Ok((leases, checked(name, seconds)?))) {
            Ok(granted) => granted,
            Err(error) => return Ok(Err(error)),
        };
        Ok(match leases.renew(&self.lent.tenant, &self.lent.plugin, name, *epoch, length).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(error(ErrorCode::Denied, format!("the lock `{name}` was lost; stop writing"))),
            Err(problem) => Err(no_answer(&problem)),
        })
    }

    async fn drop(&mut self, lease: Resource<Lease>) -> wasmtime::Result<()> {
        let Lease { name, epoch } = self.table.delete(lease)?;
        if let Ok(leases) = self.leases()
            && let Err(problem) = leases.release(&self.lent.tenant, &self.lent.plugin, &name, epoch).await
        {
            // It ends by itself.
            tracing::warn!(error = %problem, lock = name, "a plugin's lock could not be given back");
        }
        Ok(())
    }
}

impl State {
    /// For one more operation, if the call may have it.
    fn leases_once(&mut self) -> Result<Arc<dyn Leases>, Error> {
        let leases = self.leases()?;
        if self.lock_operations >= LOCK_OPERATIONS + self.begun.elapsed().as_secs() {
            let said = format!("one call may take and renew locks {LOCK_OPERATIONS} times, and once more each second");
            return Err(Error { retry_after: Some(1), ..error(ErrorCode::Limit, said) });
        }
        self.lock_operations += 1;
        Ok(leases)
    }

    fn leases(&self) -> Result<Arc<dyn Leases>, Error> {
        self.lent.rights.lock().map_err(|refusal| self.denied(refusal))?;
        let none = || error(ErrorCode::Unsupported, "this host has no locks for plugins".to_owned());
        self.lent.services.leases.clone().ok_or_else(none)
    }
}

fn checked(name: &str, seconds: u64) -> Result<Duration, Error> {
    if !is_name(name) {
        let said = "a lock's name has 1 to 64 letters, digits, `.`, `_` and `-`".to_owned();
        return Err(error(ErrorCode::Limit, said));
    }
    match seconds {
        1..=MAX_SECONDS => Ok(Duration::from_secs(seconds)),
        _ => Err(error(ErrorCode::Limit, format!("a lock is held for 1 to {MAX_SECONDS} seconds at a time"))),
    }
}
