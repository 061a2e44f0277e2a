//! Small values that outlive a call. Natively they live in the test's thread.

use crate::Error;

/// The value of a key.
pub fn get(key: &str) -> Result<Option<Vec<u8>>, Error> {
    imp::get(key)
}

/// Sets a key.
pub fn set(key: &str, value: &[u8]) -> Result<(), Error> {
    imp::set(key, value)
}

/// Removes a key; an absent one is no error.
pub fn delete(key: &str) -> Result<(), Error> {
    imp::delete(key)
}

/// Keys that start with `prefix`, in order.
pub fn list_keys(prefix: &str) -> Result<Vec<String>, Error> {
    imp::list_keys(prefix)
}

#[cfg(target_arch = "wasm32")]
use crate::bindings::host::vmferry::plugin::store as imp;

#[cfg(not(target_arch = "wasm32"))]
mod imp {
    use crate::Error;
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    thread_local! {
        static VALUES: RefCell<BTreeMap<String, Vec<u8>>> = const { RefCell::new(BTreeMap::new()) };
    }

    pub(super) fn get(key: &str) -> Result<Option<Vec<u8>>, Error> {
        Ok(VALUES.with_borrow(|values| values.get(key).cloned()))
    }

    pub(super) fn set(key: &str, value: &[u8]) -> Result<(), Error> {
        VALUES.with_borrow_mut(|values| values.insert(key.to_owned(), value.to_vec()));
        Ok(())
    }

    pub(super) fn delete(key: &str) -> Result<(), Error> {
        VALUES.with_borrow_mut(|values| values.remove(key));
        Ok(())
    }

    pub(super) fn list_keys(prefix: &str) -> Result<Vec<String>, Error> {
        Ok(VALUES.with_borrow(|values| values.keys().filter(|key| key.starts_with(prefix)).cloned().collect()))
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    #[test]
    fn the_double_keeps_lists_and_forgets() {
        super::set("a/1", b"x").expect("set");
        super::set("b", b"y").expect("set");
        assert_eq!(super::get("a/1").expect("get"), Some(b"x".to_vec()));
        assert_eq!(super::list_keys("a/").expect("list"), ["a/1"]);
        super::delete("a/1").expect("delete");
        assert_eq!(super::get("a/1").expect("get"), None);
    }
}
