//! What the host can lend.

use crate::egress::Credential;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use vmferry_disk::encoding::SealKey;
use vmferry_model::store::{KeyValue, Leases};

/// What the host can lend to plugins; each piece reaches a plugin only if it was requested and granted.
#[derive(Clone, Default)]
pub struct HostServices {
    /// Small values that outlive a call.
    pub key_value: Option<Arc<dyn KeyValue>>,
    /// Keys to sign with, by name. They never reach a guest.
    pub sign_keys: BTreeMap<String, Vec<u8>>,
    /// Keys to seal with, by name. They never reach a guest.
    pub seal_keys: BTreeMap<String, SealKey>,
    /// Exclusive rights among all who use the same store.
    pub leases: Option<Arc<dyn Leases>>,
    /// What is added to requests, the first that fits a request's server. They never reach a guest.
    pub credentials: Vec<Credential>,
}

/// Names keys and servers, never their values.
impl fmt::Debug for HostServices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostServices")
            .field("key_value", &self.key_value.is_some())
            .field("sign_keys", &self.sign_keys.keys())
            .field("seal_keys", &self.seal_keys.keys())
            .field("leases", &self.leases.is_some())
            .field("credentials", &self.credentials)
            .finish()
    }
}
