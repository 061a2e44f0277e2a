//! The exclusive right to work on a VM, kept on the VM itself so that it holds across stores, programs and sites.
//!
//! The value of `vmferry:lease` is `<holder>:<epoch>:<expires>`, seconds since 1970. XAPI's `add_to_other_config` fails when the
//! key exists, which makes a free lease exclusive. XAPI has no compare-and-set, so a takeover (remove, then
//! add) can be lost to another one: who takes over waits a settle interval, reads the key back, and goes on only
//! if its own value still stands.

use crate::error::RunError;
use crate::holder::{Holder, Liveness};
use crate::keys;
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use vmferry_xapi::records::Vm;
use vmferry_xapi::{ApiError, Error, Ref, Session};

/// A lease as it stands on a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeaseValue {
    pub(crate) holder: Holder,
    /// Grows with every takeover: a late writer finds a higher one and stops.
    pub(crate) epoch: u64,
    pub(crate) expires: Timestamp,
}

impl LeaseValue {
    fn parse(text: &str) -> Option<Self> {
        let (rest, expires) = text.rsplit_once(':')?;
        let (holder, epoch) = rest.rsplit_once(':')?;
        Some(Self {
            holder: Holder::named(holder),
            epoch: epoch.parse().ok()?,
            expires: Timestamp::from_second(expires.parse().ok()?).ok()?,
        })
    }
}

impl std::fmt::Display for LeaseValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.holder.as_str(), self.epoch, self.expires.as_second())
    }
}

/// What to do about the lease that a VM carries.
#[derive(Debug, PartialEq, Eq)]
enum Claim {
    /// Nobody holds it.
    Free,
    /// Its holder is gone; take it with this epoch.
    TakeOver { epoch: u64 },
    /// Somebody else works here.
    Held { holder: String, expires: Option<Timestamp> },
}

/// Decides on a lease text. One that cannot be read belongs to a program we do not know: it is left alone.
fn claim(text: Option<&str>, this: &Holder, now: Timestamp) -> Claim {
    let Some(text) = text else { return Claim::Free };
    let Some(found) = LeaseValue::parse(text) else {
        return Claim::Held { holder: text.to_owned(), expires: None };
    };
    let gone = match found.holder.liveness(this) {
        Liveness::Dead => true,
        // Another run of this process.
        Liveness::Own | Liveness::Unknown => found.expires < now,
    };
    if gone {
        Claim::TakeOver { epoch: found.epoch + 1 }
    } else {
        Claim::Held { holder: found.holder.as_str().to_owned(), expires: Some(found.expires) }
    }
}

/// How long leases live and settle.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeaseTerms {
    pub(crate) ttl: Duration,
    pub(crate) settle: Duration,
}

/// A lease that this process holds and keeps renewing. Release it; one that is only dropped stays on the VM until it
/// expires or this process ends.
#[derive(Debug)]
pub(crate) struct Lease {
    held: Arc<Held>,
    renewing: JoinHandle<()>,
}

#[derive(Debug)]
struct Held {
    session: Session,
    vm: Ref<Vm>,
    vm_uuid: String,
    terms: LeaseTerms,
    /// Locked while the key on the VM is being replaced, so that nobody reads the moment in between as a loss.
    value: Mutex<LeaseValue>,
    /// Why it is lost, once it is.
    lost: watch::Sender<Option<String>>,
}

impl Lease {
    /// Takes the lease of a VM, or says who holds it.
    pub(crate) async fn acquire(
        session: &Session,
        vm: &Ref<Vm>,
        vm_uuid: &str,
        this: &Holder,
        terms: LeaseTerms,
    ) -> Result<Self, RunError> {
        let now = session.server_time().await?;
        let record: Vm = session.get_record(vm).await?;
        let (epoch, taken_over) = match claim(record.other_config.get(keys::LEASE).map(String::as_str), this, now) {
            Claim::Free => (1, false),
            Claim::TakeOver { epoch } => (epoch, true),
            Claim::Held { holder, expires } => {
                return Err(RunError::Locked { vm: vm_uuid.to_owned(), holder, expires });
            }
        };
        let value = LeaseValue { holder: this.clone(), epoch, expires: now + terms.ttl };
        let held = Held {
            session: session.clone(),
            vm: vm.clone(),
            vm_uuid: vm_uuid.to_owned(),
            terms,
            value: Mutex::new(value.clone()),
            lost: watch::Sender::new(None),
        };
        if taken_over {
            session.remove_from_other_config(vm, keys::LEASE).await?;
        }
        held.add(&value).await?;
        if taken_over {
            tokio::time::sleep(terms.settle).await;
            held.check().await?;
        }
        let held = Arc::new(held);
        let renewing = tokio::spawn(keep(Arc::clone(&held)));
        Ok(Self { held, renewing })
    }

    /// Whether the lease is still ours: asked right before anything that cannot be taken back.
    pub(crate) async fn check(&self) -> Result<(), RunError> {
        self.held.check().await
    }

    /// Ends when the lease is lost.
    pub(crate) async fn lost(&self) -> RunError {
        let mut lost = self.held.lost.subscribe();
        let found = lost.wait_for(Option::is_some).await.ok().and_then(|found| found.clone());
        RunError::LeaseLost { vm: self.held.vm_uuid.clone(), found }
    }

    /// Gives the lease back, if it is still ours.
    pub(crate) async fn release(self) -> Result<(), RunError> {
        self.renewing.abort();
        self.held.check().await?;
        Ok(self.held.session.remove_from_other_config(&self.held.vm, keys::LEASE).await?)
    }

    /// The value as it stands on the VM.
    pub(crate) async fn text(&self) -> String {
        self.held.value.lock().await.to_string()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

/// Renews a lease three times per lifetime. A pool that does not answer is asked again at the next turn; a lease that
/// is somebody else's is lost.
async fn keep(held: Arc<Held>) {
    loop {
        tokio::time::sleep(held.terms.ttl / 3).await;
        match held.renew().await {
            Ok(()) => {}
            Err(RunError::LeaseLost { found, .. }) => {
                held.lost.send_replace(Some(found.unwrap_or_else(|| "nobody".to_owned())));
                return;
            }
            Err(error) => tracing::warn!(vm = held.vm_uuid, %error, "the lease could not be renewed; trying again"),
        }
    }
}

impl Held {
    /// Prolongs the lease. Between removing and adding the key nobody holds it; who slips in wins, and this
    /// run stops.
    async fn renew(&self) -> Result<(), RunError> {
        let mut value = self.value.lock().await;
        self.compare(&value).await?;
        let renewed = LeaseValue { expires: self.session.server_time().await? + self.terms.ttl, ..value.clone() };
        self.session.remove_from_other_config(&self.vm, keys::LEASE).await?;
        self.add(&renewed).await.map_err(|error| match error {
            RunError::Locked { vm, holder, .. } => RunError::LeaseLost { vm, found: Some(holder) },
            other => other,
        })?;
        *value = renewed;
        Ok(())
    }

    async fn check(&self) -> Result<(), RunError> {
        let value = self.value.lock().await;
        self.compare(&value).await
    }

    async fn compare(&self, value: &LeaseValue) -> Result<(), RunError> {
        let record: Vm = self.session.get_record(&self.vm).await?;
        match record.other_config.get(keys::LEASE) {
            Some(text) if *text == value.to_string() => Ok(()),
            found => Err(RunError::LeaseLost { vm: self.vm_uuid.clone(), found: found.cloned() }),
        }
    }

    async fn add(&self, value: &LeaseValue) -> Result<(), RunError> {
        match self.session.add_to_other_config(&self.vm, keys::LEASE, &value.to_string()).await {
            Err(Error::Api(ApiError::MapDuplicateKey { .. })) => {
                Err(RunError::Locked { vm: self.vm_uuid.clone(), holder: "another run".to_owned(), expires: None })
            }
            other => Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_lease_reads_back_as_it_was_written() {
        let value = LeaseValue { holder: Holder::named("boot.1.2.3"), epoch: 7, expires: at(1_800_000_000) };
        assert_eq!(LeaseValue::parse(&value.to_string()), Some(value));
        for nonsense in ["", "x", "a:b", "a:b:c", "a:1:c"] {
            assert_eq!(LeaseValue::parse(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn who_may_take_a_lease() {
        let this = Holder::this_process();
        let now = at(1_000);
        let check = |text: Option<&str>, expected: Claim| assert_eq!(claim(text, &this, now), expected, "{text:?}");

        check(None, Claim::Free);
        check(Some("elsewhere.1.2.3:4:999"), Claim::TakeOver { epoch: 5 });
        check(
            Some("elsewhere.1.2.3:4:1001"),
            Claim::Held { holder: "elsewhere.1.2.3".into(), expires: Some(at(1_001)) },
        );
        // Another run of this very process holds it.
        let own = LeaseValue { holder: this.clone(), epoch: 1, expires: at(1_001) };
        check(Some(&own.to_string()), Claim::Held { holder: this.as_str().into(), expires: Some(at(1_001)) });
        // A program that we do not know.
        check(Some("?"), Claim::Held { holder: "?".into(), expires: None });
    }
}
