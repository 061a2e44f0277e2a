//! Encryption with keys that only the host knows. Natively a test names the keys, and nothing is encrypted.

use crate::Error;

/// Encrypts and authenticates `plain` with the key of this name. The same bytes never give the same answer twice.
pub fn seal(key_name: &str, plain: &[u8]) -> Result<Vec<u8>, Error> {
    imp::seal(key_name, plain)
}

/// The bytes that [`seal`] was given. Fails with `other("damaged")` when they were changed or sealed with another key.
pub fn open(key_name: &str, sealed: &[u8]) -> Result<Vec<u8>, Error> {
    imp::open(key_name, sealed)
}

#[cfg(target_arch = "wasm32")]
use crate::bindings::host::vmferry::plugin::seal as imp;

#[cfg(not(target_arch = "wasm32"))]
use double as imp;

/// Keys of a test.
#[cfg(not(target_arch = "wasm32"))]
pub mod double {
    use crate::{Error, ErrorCode};
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeSet;

    thread_local! {
        static KEYS: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
        static SEALED: Cell<u64> = const { Cell::new(0) };
    }

    /// Grants this key to what the test runs. Sealing with it marks bytes with its name and a number, and encrypts nothing.
    pub fn add_key(key_name: &str) {
        KEYS.with_borrow_mut(|keys| keys.insert(key_name.to_owned()));
    }

    pub(crate) fn seal(key_name: &str, plain: &[u8]) -> Result<Vec<u8>, Error> {
        granted(key_name)?;
        SEALED.set(SEALED.get() + 1);
        let mut sealed = mark(key_name);
        sealed.extend(SEALED.get().to_be_bytes());
        sealed.extend(plain);
        Ok(sealed)
    }

    pub(crate) fn open(key_name: &str, sealed: &[u8]) -> Result<Vec<u8>, Error> {
        granted(key_name)?;
        let plain = sealed.strip_prefix(&*mark(key_name)).and_then(|rest| rest.get(size_of::<u64>()..));
        plain.map(<[u8]>::to_vec).ok_or_else(|| Error::damaged(format!("this was not sealed with `{key_name}`")))
    }

    fn mark(key_name: &str) -> Vec<u8> {
        format!("sealed:{key_name}:").into_bytes()
    }

    fn granted(key_name: &str) -> Result<(), Error> {
        match KEYS.with_borrow(|keys| keys.contains(key_name)) {
            true => Ok(()),
            false => {
                Err(Error::with_code(ErrorCode::Denied, format!("the plugin was not granted the key `{key_name}`")))
            }
        }
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    #[test]
    fn the_double_opens_what_it_sealed_with_the_same_key_alone() {
        super::double::add_key("a");
        super::double::add_key("b");
        let sealed = super::seal("a", b"plain").expect("sealed");
        assert_ne!(sealed, super::seal("a", b"plain").expect("sealed"));
        assert_eq!(super::open("a", &sealed).expect("opened"), b"plain");
        assert!(super::open("b", &sealed).is_err() && super::seal("c", b"plain").is_err());
    }
}
