//! What one tenant may have at a time of what all have together, so that nobody can have all of it.

use crate::limits::{TENANT_CALLS, TENANT_LOOKUPS, TENANT_TRANSFERS};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::Semaphore;

/// The share of one tenant. Whoever has a permit of it keeps it as well, or what is left behind would not count for the next use.
#[derive(Debug)]
pub(crate) struct Share {
    pub(crate) calls: Arc<Semaphore>,
    pub(crate) transfers: Arc<Semaphore>,
    pub(crate) lookups: Arc<Semaphore>,
    /// One clone for each transfer that has a turn, and one for each of them that somebody still waits for.
    pub(crate) transferring: Arc<()>,
    pub(crate) awaited: Arc<()>,
}

impl Share {
    /// Whether every transfer that the tenant may have was given up and has not ended: none will unless its file system answers.
    pub(crate) fn hangs(&self) -> bool {
        let hanging = Arc::strong_count(&self.transferring).saturating_sub(Arc::strong_count(&self.awaited));
        hanging >= TENANT_TRANSFERS
    }
}

impl Default for Share {
    fn default() -> Self {
        let of = |most| Arc::new(Semaphore::new(most));
        let (transferring, awaited) = Default::default();
        let (calls, transfers, lookups) = (of(TENANT_CALLS), of(TENANT_TRANSFERS), of(TENANT_LOOKUPS));
        Self { calls, transfers, lookups, transferring, awaited }
    }
}

/// The shares of all tenants that have any plugin in use.
#[derive(Debug, Default)]
pub(crate) struct Shares(Mutex<HashMap<String, Weak<Share>>>);

impl Shares {
    pub(crate) fn of(&self, tenant: &str) -> Arc<Share> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = all.get(tenant).and_then(Weak::upgrade) {
            return share;
        }
        all.retain(|_, share| share.strong_count() > 0);
        let share = Arc::<Share>::default();
        all.insert(tenant.to_owned(), Arc::downgrade(&share));
        share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_has_one_share_for_as_long_as_anything_uses_it() {
        let shares = Shares::default();
        let share = shares.of("a");
        assert!(Arc::ptr_eq(&share, &shares.of("a")) && !Arc::ptr_eq(&share, &shares.of("b")));
        drop(share);
        drop(shares.of("c"));
        shares.of("d");
        assert_eq!(shares.0.lock().expect("unpoisoned").len(), 1, "nobody uses the others any more");
    }
}
