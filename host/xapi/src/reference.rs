//! References to XAPI objects, and the session reference, which is a secret.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;

use serde::{Deserialize, Deserializer};

use crate::value::{IntoValue, Value};

/// The reference to nothing.
const NULL: &str = "OpaqueRef:NULL";

/// A reference to an object of class `T`, such as `OpaqueRef:6d6c8f2e-…`.
///
/// A reference is random per object, valid while the object exists, and not its uuid.
pub struct Ref<T> {
    text: String,
    class: PhantomData<fn() -> T>,
}

impl<T> Ref<T> {
    /// A reference from its text.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), class: PhantomData }
    }

    /// The reference to nothing, `OpaqueRef:NULL`.
    pub fn null() -> Self {
        Self::new(NULL)
    }

    /// Whether it refers to nothing. Events of old releases leave the text empty for that.
    pub fn is_null(&self) -> bool {
        self.text == NULL || self.text.is_empty()
    }

    /// `None` for the reference to nothing.
    pub fn non_null(&self) -> Option<&Self> {
        (!self.is_null()).then_some(self)
    }

    /// The text as XAPI knows it.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl<T> Clone for Ref<T> {
    fn clone(&self) -> Self {
        Self::new(self.text.clone())
    }
}

impl<T> Default for Ref<T> {
    fn default() -> Self {
        Self::null()
    }
}

impl<T> PartialEq for Ref<T> {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl<T> Eq for Ref<T> {}

impl<T> PartialOrd for Ref<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Ref<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl<T> Hash for Ref<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl<T> fmt::Display for Ref<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<T> fmt::Debug for Ref<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<T> From<String> for Ref<T> {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl<T> From<&str> for Ref<T> {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl<'de, T> Deserialize<'de> for Ref<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

impl<T> IntoValue for Ref<T> {
    fn into_value(self) -> Value {
        Value::String(self.text)
    }
}

/// A session reference: whoever has it may do what the user may, so it never prints.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SessionRef(String);

impl SessionRef {
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }

    /// The secret itself, for the wire only.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SessionRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionRef(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_has_two_spellings_and_a_session_prints_nothing() {
        assert!(Ref::<()>::null().is_null());
        assert!(Ref::<()>::new("").is_null());
        assert_eq!(Ref::<()>::new("OpaqueRef:1").non_null().map(Ref::as_str), Some("OpaqueRef:1"));
        assert!(!format!("{:?}", SessionRef::new("OpaqueRef:secret".to_owned())).contains("secret"));
    }
}
