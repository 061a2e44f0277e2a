//! Exclusive rights for a time, across all workers of the host. Natively they are those of the test's thread.

use crate::Error;
use crate::bindings::host::vmferry::plugin::lock as wit;

/// A right that somebody holds. Dropping it gives it back.
#[derive(Debug)]
pub struct Lease(Inner);

#[derive(Debug)]
enum Inner {
    #[cfg_attr(not(target_arch = "wasm32"), allow(dead_code, reason = "only a host makes these"))]
    Host(wit::Lease),
    #[cfg(not(target_arch = "wasm32"))]
    Double(double::Lease),
}

impl Lease {
    /// Grows with every new holder of the same name.
    pub fn epoch(&self) -> u64 {
        match &self.0 {
            Inner::Host(lease) => lease.epoch(),
            #[cfg(not(target_arch = "wasm32"))]
            Inner::Double(lease) => lease.epoch(),
        }
    }

    /// Holds it for another while in seconds, counted from now. Fails with `denied` when it has been lost; then stop writing.
    pub fn renew(&self, seconds: u64) -> Result<(), Error> {
        match &self.0 {
            Inner::Host(lease) => lease.renew(seconds),
            #[cfg(not(target_arch = "wasm32"))]
            Inner::Double(lease) => lease.renew(),
        }
    }
}

/// Takes the right called `name` for so many seconds. Fails at once with `unavailable` and `retry_after` when somebody else
/// holds it.
pub fn acquire(name: &str, seconds: u64) -> Result<Lease, Error> {
    #[cfg(target_arch = "wasm32")]
    return wit::acquire(name, seconds).map(Inner::Host).map(Lease);
    #[cfg(not(target_arch = "wasm32"))]
    double::acquire(name, seconds).map(Inner::Double).map(Lease)
}

/// Rights of a test, in which time stands.
#[cfg(not(target_arch = "wasm32"))]
pub mod double {
    use crate::{Error, ErrorCode};
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    thread_local! {
        static HELD: RefCell<BTreeMap<String, Right>> = const { RefCell::new(BTreeMap::new()) };
    }

    #[derive(Default)]
    struct Right {
        epoch: u64,
        held: bool,
    }

    /// Lets somebody else take the right away from its holder, as when its time has passed.
    pub fn take_away(name: &str) {
        HELD.with_borrow_mut(|all| {
            let right = all.entry(name.to_owned()).or_default();
            right.epoch += 1;
            right.held = false;
        });
    }

    #[derive(Debug)]
    pub(super) struct Lease {
        name: String,
        epoch: u64,
    }

    impl Lease {
        pub(super) fn epoch(&self) -> u64 {
            self.epoch
        }

        pub(super) fn renew(&self) -> Result<(), Error> {
            let lost = || Error::with_code(ErrorCode::Denied, format!("the lock `{}` was lost", self.name));
            HELD.with_borrow(|all| all.get(&self.name).is_some_and(|right| right.epoch == self.epoch))
                .then_some(())
                .ok_or_else(lost)
        }
    }

    impl Drop for Lease {
        fn drop(&mut self) {
            HELD.with_borrow_mut(|all| {
                if let Some(right) = all.get_mut(&self.name).filter(|right| right.epoch == self.epoch) {
                    right.held = false;
                }
            });
        }
    }

    pub(super) fn acquire(name: &str, seconds: u64) -> Result<Lease, Error> {
        HELD.with_borrow_mut(|all| {
            let right = all.entry(name.to_owned()).or_default();
            if right.held {
                return Err(Error::unavailable(format!("somebody else holds the lock `{name}`"), seconds));
            }
            right.held = true;
            right.epoch += 1;
            Ok(Lease { name: name.to_owned(), epoch: right.epoch })
        })
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;

    #[test]
    fn the_doubles_rights_are_exclusive_and_their_epochs_grow() {
        let first = acquire("index", 60).expect("free");
        assert!(acquire("index", 60).expect_err("held").retry_after.is_some());
        drop(first);
        let second = acquire("index", 60).expect("given back");
        assert_eq!((second.epoch(), second.renew(60)), (2, Ok(())));
        double::take_away("index");
        assert!(second.renew(60).is_err());
    }
}
