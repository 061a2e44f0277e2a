//! The vocabulary of vmferry: what a run is about, what it decided and what came of it.
//!
//! Everything here is plain data, plus the traits through which the engine, the sandbox and the store
//! meet without naming one another. Nothing in this crate does I/O.
//!
//! - [`plan`]: what a run will send, and why.
//! - [`report`]: what a run did; the shape of `vmferry run --json`.
//! - [`event`]: what notifiers hear.
//! - [`plugin`]: what the host asks of a scheduler, a retention rule and a notifier.
//! - [`target`]: what it asks of whoever keeps recovery points elsewhere than on a pool.
//! - [`store`]: what the host keeps: run history and small values.

pub mod event;
pub mod plan;
pub mod plugin;
pub mod report;
pub mod store;
pub mod target;
