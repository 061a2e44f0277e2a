//! What the host keeps: run history and small values.
//!
//! The store is history and cache. Replicas describe themselves, so losing the store costs no chain and no failover.

use crate::plugin::ScheduleState;
use crate::report::RunReport;
use async_trait::async_trait;
use std::time::Duration;

/// A store that could not answer.
#[derive(Debug, thiserror::Error)]
#[error("state store {store}: {action}: {source}")]
pub struct StoreError {
    /// Which store: a path or URL without secrets.
    pub store: String,
    /// What was being done.
    pub action: &'static str,
    /// Why it failed.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// The history of runs.
#[async_trait]
pub trait RunStore: Send + Sync {
    /// Adds a finished run.
    async fn record(&self, tenant: &str, report: &RunReport) -> Result<(), StoreError>;

    /// What the history says about a job; a job never seen has an empty past.
    async fn schedule_state(&self, tenant: &str, job: &str) -> Result<ScheduleState, StoreError>;

    /// Bytes sent by the disk's latest deltas to this target, newest first, at most `limit`.
    async fn delta_history(
        &self,
        tenant: &str,
        job: &str,
        target: &str,
        disk: &str,
        limit: u32,
    ) -> Result<Vec<u64>, StoreError>;

    /// The latest runs of a job, newest first, at most `limit`.
    async fn recent(&self, tenant: &str, job: &str, limit: u32) -> Result<Vec<RunReport>, StoreError>;

    /// What was found out about the outside world by trying; `None` if nobody tried yet.
    async fn recall(&self, fact: &str) -> Result<Option<String>, StoreError>;

    /// Keeps what was found out, in place of what was believed before.
    async fn remember(&self, fact: &str, value: &str) -> Result<(), StoreError>;
}

/// A key-value write that was refused.
#[derive(Debug, thiserror::Error)]
pub enum KeyValueError {
    /// The value would exceed the plugin's quota.
    #[error(
        "{plugin} would hold {wanted} bytes in its store, its quota is {quota}; delete keys or raise `limits.store`"
    )]
    Quota {
        /// The plugin's id.
        plugin: String,
        /// Bytes it would hold.
        wanted: u64,
        /// Bytes it may hold.
        quota: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What came of asking for an exclusive right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acquired {
    /// It was given. The number grows with every new holder of the same name.
    Epoch(u64),
    /// Somebody else has it for so long.
    HeldFor(Duration),
    /// The plugin has used as many names as it may, which is so many.
    TooMany(u32),
}

/// Exclusive rights for a time, of one tenant's plugin, among all who use the store.
#[async_trait]
pub trait Leases: Send + Sync {
    /// Takes the right of this name, if nobody has it.
    async fn acquire(&self, tenant: &str, plugin: &str, name: &str, length: Duration) -> Result<Acquired, StoreError>;

    /// Holds it for another while, counted from now; false when it was lost.
    async fn renew(
        &self,
        tenant: &str,
        plugin: &str,
        name: &str,
        epoch: u64,
        length: Duration,
    ) -> Result<bool, StoreError>;

    /// Gives it back, unless it was lost.
    async fn release(&self, tenant: &str, plugin: &str, name: &str, epoch: u64) -> Result<(), StoreError>;
}

/// Small values of one tenant's plugin. Keys are at most 256 bytes.
#[async_trait]
pub trait KeyValue: Send + Sync {
    /// The value of a key.
    async fn get(&self, tenant: &str, plugin: &str, key: &str) -> Result<Option<Vec<u8>>, KeyValueError>;

    /// Sets a key; `quota` bounds the sum of all keys and values of this plugin.
    async fn set(&self, tenant: &str, plugin: &str, key: &str, value: &[u8], quota: u64) -> Result<(), KeyValueError>;

    /// Removes a key; an absent one is no error.
    async fn delete(&self, tenant: &str, plugin: &str, key: &str) -> Result<(), KeyValueError>;

    /// Keys that start with `prefix`, in order.
    async fn list(&self, tenant: &str, plugin: &str, prefix: &str) -> Result<Vec<String>, KeyValueError>;
}
