//! Signatures with keys that only the host knows. Natively a test says what they are.

use crate::Error;

/// HMAC-SHA-256 of `message` with the key of this name.
pub fn hmac_sha256(key_name: &str, message: &[u8]) -> Result<Vec<u8>, Error> {
    imp::hmac_sha256(key_name, message)
}

#[cfg(target_arch = "wasm32")]
use crate::bindings::host::vmferry::plugin::sign as imp;

#[cfg(not(target_arch = "wasm32"))]
use double as imp;

/// Keys of a test.
#[cfg(not(target_arch = "wasm32"))]
pub mod double {
    use crate::{Error, ErrorCode};
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    thread_local! {
        static SIGNATURES: RefCell<BTreeMap<String, Vec<u8>>> = const { RefCell::new(BTreeMap::new()) };
    }

    /// Makes every signature by this key come out as `signature`. The double computes nothing, so that a plugin's
    /// tests need no cryptography.
    pub fn set_signature(key_name: &str, signature: &[u8]) {
        SIGNATURES.with_borrow_mut(|all| all.insert(key_name.to_owned(), signature.to_vec()));
    }

    pub(super) fn hmac_sha256(key_name: &str, _message: &[u8]) -> Result<Vec<u8>, Error> {
        SIGNATURES.with_borrow(|all| all.get(key_name).cloned()).ok_or_else(|| {
            Error::with_code(ErrorCode::Denied, format!("the plugin was not granted the signing key `{key_name}`"))
        })
    }
}
