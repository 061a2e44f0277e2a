//! The exclusive right to work on a VM, kept on the VM itself so that it holds across stores, programs and sites.
//!
//! The value of `vmferry:lease` is `<holder>:<epoch>:<expires>`, seconds since 1970. XAPI's `add_to_other_config` fails when the
//! key exists, which makes a free lease exclusive. XAPI has no compare-and-set, so a takeover (remove, then
//! add) can be lost to another one: who takes over waits a settle interval, reads the key back, and goes on only
//! if its own value still stands.

use crate::error::RunError;
use crate::holder::{Holder, Liveness};
use crate::job::Tuning;
use crate::keys::{self, Keys};
use crate::objects::replace_keys;
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use vmferry_xapi::records::Vm;
use vmferry_xapi::{ApiError, Error, Ref, Session, params};

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Nobody holds it.
    Free,
    /// Its holder is known to be gone, or let it expire; take it with this epoch.
    TakeOver { epoch: u64, gone: bool },
    /// Somebody else works here; the epoch is that of a lease that can be read.
    Held { holder: String, epoch: Option<u64>, expires: Option<Timestamp> },
}

/// Decides on a lease text. One that cannot be read belongs to a program we do not know: it is left alone. `held_here` says
/// whether a run of this process still holds the lease of that epoch.
fn claim(text: Option<&str>, this: &Holder, now: Timestamp, held_here: impl Fn(u64) -> bool) -> Claim {
    let Some(text) = text else { return Claim::Free };
    let Some(found) = LeaseValue::parse(text) else {
        return Claim::Held { holder: text.to_owned(), epoch: None, expires: None };
    };
    let gone = match found.holder.liveness(this) {
        Liveness::Dead => true,
        Liveness::Own => !held_here(found.epoch),
        Liveness::Unknown => false,
    };
    if gone || found.expires < now {
        Claim::TakeOver { epoch: found.epoch + 1, gone }
    } else {
        let (epoch, expires) = (Some(found.epoch), Some(found.expires));
        Claim::Held { holder: found.holder.as_str().to_owned(), epoch, expires }
    }
}

/// How long leases live and settle.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeaseTerms {
    pub(crate) ttl: Duration,
    pub(crate) settle: Duration,
}

impl LeaseTerms {
    pub(crate) fn of(tuning: &Tuning) -> Self {
        Self { ttl: tuning.lease_ttl, settle: tuning.lease_settle }
    }
}

/// A lease that this process holds and keeps renewing. Release it; one that is only dropped, because its run was cancelled,
/// stays on the VM for the next run to take over.
#[derive(Debug)]
pub(crate) struct Lease {
    held: Arc<Held>,
    renewing: JoinHandle<()>,
    /// Whether somebody else held it before, who may still be writing.
    pub(crate) taken_over: bool,
    /// Whether that was somebody who was not known to be gone.
    pub(crate) displaced: bool,
    _entry: Entry,
}

/// Whose turn it is to take a lease in this process.
static ACQUIRING: Mutex<()> = Mutex::const_new(());

/// The leases that runs of this process hold now: VM and epoch. A pool's address would not tell more for certain: its master
/// may change meanwhile.
static HELD_HERE: std::sync::Mutex<BTreeSet<(String, u64)>> = std::sync::Mutex::new(BTreeSet::new());

/// A line of [`HELD_HERE`], taken out when it is dropped.
#[derive(Debug)]
struct Entry((String, u64));

impl Entry {
    fn new(vm_uuid: &str, epoch: u64) -> Self {
        let line = (vm_uuid.to_owned(), epoch);
        HELD_HERE.lock().unwrap_or_else(PoisonError::into_inner).insert(line.clone());
        Self(line)
    }

    fn exists(vm_uuid: &str, epoch: u64) -> bool {
        let line = (vm_uuid.to_owned(), epoch);
        HELD_HERE.lock().unwrap_or_else(PoisonError::into_inner).contains(&line)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        HELD_HERE.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
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
    /// Takes the lease of a VM, or says who holds it. With `force` it is taken from whoever holds it: he finds that out at
    /// his next check, so what he writes until then must land where nobody reads.
    pub(crate) async fn acquire(
        session: &Session,
        vm: &Ref<Vm>,
        vm_uuid: &str,
        this: &Holder,
        terms: LeaseTerms,
        force: bool,
    ) -> Result<Self, RunError> {
        // Runs of this process take turns, so that none sees a lease of another that is not in the book yet.
        let turn = ACQUIRING.lock().await;
        let (found, now) = Self::look(session, vm, vm_uuid, this).await?;
        let (epoch, taken_over, displaced) = match found {
            Claim::Free => (1, false, false),
            Claim::TakeOver { epoch, .. } => (epoch, true, false),
            Claim::Held { epoch, .. } if force => (epoch.map_or(1, |epoch| epoch + 1), true, true),
            Claim::Held { holder, expires, .. } => {
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
        let entry = Entry::new(vm_uuid, epoch);
        drop(turn);
        if taken_over {
            tokio::time::sleep(terms.settle).await;
            held.check().await?;
        }
        let held = Arc::new(held);
        let renewing = tokio::spawn(keep(Arc::clone(&held)));
        Ok(Self { held, renewing, taken_over, displaced, _entry: entry })
    }

    /// Fails if somebody holds the lease of a VM; changes nothing.
    pub(crate) async fn assert_free(
        session: &Session,
        vm: &Ref<Vm>,
        vm_uuid: &str,
        this: &Holder,
    ) -> Result<(), RunError> {
        match Self::look(session, vm, vm_uuid, this).await?.0 {
            Claim::Held { holder, expires, .. } => Err(RunError::Locked { vm: vm_uuid.to_owned(), holder, expires }),
            Claim::Free | Claim::TakeOver { .. } => Ok(()),
        }
    }

    /// What stands on a VM, and the pool's time.
    async fn look(
        session: &Session,
        vm: &Ref<Vm>,
        vm_uuid: &str,
        this: &Holder,
    ) -> Result<(Claim, Timestamp), RunError> {
        let now = session.server_time().await?;
        let found: Keys = session.call("VM.get_other_config", params![vm]).await?;
        let held_here = |epoch| Entry::exists(vm_uuid, epoch);
        Ok((claim(found.get(keys::LEASE).map(String::as_str), this, now, held_here), now))
    }

    /// Judges the lease that a VM's record carries, for those who only look. `now` is the pool's time.
    pub(crate) fn judge(vm: &Vm, this: &Holder, now: Timestamp) -> Claim {
        let held_here = |epoch| Entry::exists(&vm.uuid, epoch);
        claim(vm.other_config.get(keys::LEASE).map(String::as_str), this, now, held_here)
    }

    /// Whether this is the lease of that VM.
    pub(crate) fn is_of(&self, vm: &Ref<Vm>) -> bool {
        self.held.vm == *vm
    }

    /// Changes the keys of the leased VM in one write, if the lease is still ours. Nothing renews it meanwhile, so the write
    /// neither brings an old lease back nor overwrites somebody else's unseen.
    pub(crate) async fn change_keys(&self, change: impl FnOnce(&mut Keys) + Send) -> Result<(), RunError> {
        let value = self.held.value.lock().await;
        let mut keys = self.held.compare(&value).await?;
        change(&mut keys);
        keys.insert(keys::LEASE.to_owned(), value.to_string());
        Ok(replace_keys(&self.held.session, &self.held.vm, &keys).await?)
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
        self.compare(&value).await.map(drop)
    }

    /// The VM's keys, if they hold this very lease.
    async fn compare(&self, value: &LeaseValue) -> Result<Keys, RunError> {
        let keys: Keys = self.session.call("VM.get_other_config", params![&self.vm]).await?;
        match keys.get(keys::LEASE) {
            Some(text) if *text == value.to_string() => Ok(keys),
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
        let check = |text: Option<&str>, expected: Claim| {
            assert_eq!(claim(text, &this, now, |epoch| epoch == 1), expected, "{text:?}")
        };

        check(None, Claim::Free);
        check(Some("elsewhere.1.2.3:4:999"), Claim::TakeOver { epoch: 5, gone: false });
        check(
            Some("elsewhere.1.2.3:4:1001"),
            Claim::Held { holder: "elsewhere.1.2.3".into(), epoch: Some(4), expires: Some(at(1_001)) },
        );
        // Another run of this very process holds it.
        let own = LeaseValue { holder: this.clone(), epoch: 1, expires: at(1_001) };
        let held = Claim::Held { holder: this.as_str().into(), epoch: Some(1), expires: Some(at(1_001)) };
        check(Some(&own.to_string()), held);
        // A run of this process that was cancelled left it.
        let left = LeaseValue { epoch: 2, ..own };
        check(Some(&left.to_string()), Claim::TakeOver { epoch: 3, gone: true });
        // A program that we do not know.
        check(Some("?"), Claim::Held { holder: "?".into(), epoch: None, expires: None });
    }
}
