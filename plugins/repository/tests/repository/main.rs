//! Facts about repositories, on a storage that fails as storages do.

#![allow(clippy::unwrap_used, reason = "tests")]

mod damage;
mod facts;
mod failures;
mod hosts;
mod support;
