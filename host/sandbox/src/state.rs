//! What one store holds: everything that a single call can touch.

use crate::bindings::host::vmferry::plugin::log::Level;
use crate::bindings::host::vmferry::plugin::types::{Error, ErrorCode};
use crate::bindings::host::vmferry::plugin::{log, sign, store, types};
use crate::egress::Egress;
use crate::grants::{Refusal, Rights};
use crate::guest_log::CallLog;
use crate::lent::HostServices;
use crate::limits::STORE_OPERATIONS;
use crate::lookup::Lookups;
use crate::memory::Limiter;
use crate::target::data::Data;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use vmferry_model::store::{KeyValueError, StoreError};
use wasmtime::component::{HasData, ResourceTable};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

/// The longest key in a plugin's store.
const MAX_KEY: usize = 256;

/// The data of one store, which lives for one call.
pub(crate) struct State {
    pub(crate) wasi: WasiCtx,
    pub(crate) http: WasiHttpCtx,
    pub(crate) egress: Egress,
    pub(crate) table: ResourceTable,
    pub(crate) limiter: Limiter,
    pub(crate) log: CallLog,
    pub(crate) lent: Arc<Lent>,
    pub(crate) refusals: Refusals,
    /// How often the guest has used its store.
    pub(crate) store_operations: u32,
    /// How often it has taken and renewed locks.
    pub(crate) lock_operations: u64,
    /// When the call began.
    pub(crate) begun: Instant,
    /// Disk data that a target moves.
    pub(crate) data: Data,
}

/// What the host lends to one use of a plugin.
#[derive(Debug)]
pub(crate) struct Lent {
    pub(crate) tenant: String,
    pub(crate) plugin: String,
    pub(crate) rights: Rights,
    pub(crate) store_quota: u64,
    pub(crate) services: HostServices,
    pub(crate) lookups: Lookups,
}

/// The first refusal of a call, kept because the guest's own error cannot be trusted to repeat it.
#[derive(Clone, Default)]
pub(crate) struct Refusals(Arc<Mutex<Option<Refusal>>>);

impl Refusals {
    pub(crate) fn note(&self, refusal: Refusal) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(refusal);
    }

    pub(crate) fn first(&self) -> Option<Refusal> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Ties the host interfaces to the state as a whole.
pub(crate) struct HasState;

impl HasData for HasState {
    type Data<'a> = &'a mut State;
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { hooks: &mut self.egress, table: &mut self.table, ctx: &mut self.http }
    }
}

impl types::Host for State {}

impl log::Host for State {
    fn write(&mut self, level: Level, message: String, fields: Vec<(String, String)>) {
        let level = match level {
            Level::Trace => tracing::Level::TRACE,
            Level::Debug => tracing::Level::DEBUG,
            Level::Info | Level::Other(_) => tracing::Level::INFO,
            Level::Warn => tracing::Level::WARN,
            Level::Error => tracing::Level::ERROR,
        };
        self.log.write(level, &message, &fields);
    }
}

impl sign::Host for State {
    fn hmac_sha256(&mut self, key_name: String, message: Vec<u8>) -> Result<Vec<u8>, Error> {
        self.lent.rights.sign(&key_name).map_err(|refusal| self.denied(refusal))?;
        let key = self.lent.services.sign_keys.get(&key_name).ok_or_else(|| {
            error(
                ErrorCode::NotFound,
                format!("the signing key `{key_name}` is granted, but the host has no value for it"),
            )
        })?;
        let mut mac = Hmac::<Sha256>::new_from_slice(key)
            .map_err(|problem| error(ErrorCode::Config, format!("the signing key `{key_name}`: {problem}")))?;
        mac.update(&message);
        Ok(mac.finalize().into_bytes().to_vec())
    }
}

impl store::Host for State {
    async fn get(&mut self, key: String) -> Result<Option<Vec<u8>>, Error> {
        let (values, Lent { tenant, plugin, .. }) = (self.values(&key)?, &*self.lent);
        values.get(tenant, plugin, &key).await.map_err(unavailable)
    }

    async fn set(&mut self, key: String, value: Vec<u8>) -> Result<(), Error> {
        let (values, Lent { tenant, plugin, store_quota, .. }) = (self.values(&key)?, &*self.lent);
        values.set(tenant, plugin, &key, &value, *store_quota).await.map_err(unavailable)
    }

    async fn delete(&mut self, key: String) -> Result<(), Error> {
        let (values, Lent { tenant, plugin, .. }) = (self.values(&key)?, &*self.lent);
        values.delete(tenant, plugin, &key).await.map_err(unavailable)
    }

    async fn list_keys(&mut self, prefix: String) -> Result<Vec<String>, Error> {
        let (values, Lent { tenant, plugin, .. }) = (self.values(&prefix)?, &*self.lent);
        values.list(tenant, plugin, &prefix).await.map_err(unavailable)
    }
}

impl State {
    fn values(&mut self, key: &str) -> Result<Arc<dyn vmferry_model::store::KeyValue>, Error> {
        self.lent.rights.store(self.lent.store_quota).map_err(|refusal| self.denied(refusal))?;
        if self.store_operations == STORE_OPERATIONS {
            return Err(error(ErrorCode::Limit, format!("one call may use the store {STORE_OPERATIONS} times")));
        }
        self.store_operations += 1;
        if key.len() > MAX_KEY {
            return Err(error(
                ErrorCode::Limit,
                format!("a key has at most {MAX_KEY} bytes, this one has {}", key.len()),
            ));
        }
        self.lent
            .services
            .key_value
            .clone()
            .ok_or_else(|| error(ErrorCode::Unsupported, "this host keeps nothing for plugins".to_owned()))
    }

    pub(crate) fn denied(&self, refusal: Refusal) -> Error {
        let message = refusal.to_string();
        self.refusals.note(refusal);
        error(ErrorCode::Denied, message)
    }
}

fn unavailable(problem: KeyValueError) -> Error {
    match problem {
        KeyValueError::Quota { .. } => error(ErrorCode::Limit, problem.to_string()),
        KeyValueError::Store(problem) => no_answer(&problem),
    }
}

/// Where the store is and why it fails is the operator's business, not the plugin's.
pub(crate) fn no_answer(problem: &StoreError) -> Error {
    tracing::warn!(error = %problem, "a plugin's store could not answer");
    Error { retry_after: Some(30), ..error(ErrorCode::Unavailable, "the host's store could not answer".to_owned()) }
}

pub(crate) fn error(code: ErrorCode, message: String) -> Error {
    Error { code, message, retry_after: None, extensions: Vec::new() }
}
