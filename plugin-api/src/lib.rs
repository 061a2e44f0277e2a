//! What a vmferry plugin author needs: one trait per kind of plugin, one macro line, and test doubles.
//!
//! A plugin is a WebAssembly component. With this crate its author implements a trait and names the type in a macro;
//! everything between that type and the host is generated. Settings arrive as any type that serde can read.
//!
//! ```
//! use serde::Deserialize;
//! use vmferry_plugin_api::scheduler::*;
//!
//! /// Runs once an hour.
//! struct Hourly;
//!
//! #[derive(Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Config {}
//!
//! impl Scheduler for Hourly {
//!     type Config = Config;
//!
//!     fn describe() -> Description {
//!         description!("Starts a run every hour.")
//!     }
//!
//!     fn next_run(_: Config, state: State, now: Timestamp) -> Result<Due, Error> {
//!         Ok(Due::At(state.last_started.map_or(now, |started| started + 3600)))
//!     }
//! }
//!
//! vmferry_plugin_api::export_scheduler!(Hourly);
//! # fn main() {}
//! ```
//!
//! Built with `cargo build --target wasm32-wasip2 --release` from a crate of type `cdylib`, this is a component. Natively
//! the macro expands to nothing, so `cargo test` runs the plugin's tests without any WebAssembly, and the host's functions
//! ([`log`], [`store`], [`sign`], [`seal`], [`lock`], [`http`], [`files`], [`delta`]) are replaced by doubles that a test fills and inspects.
//!
//! The world's documentation, with what each field means, stands in the WIT files this crate is generated from.

#[allow(
    unsafe_code,
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::use_self,
    clippy::allow_attributes_without_reason,
    reason = "generated code; the documentation stands in the WIT files"
)]
#[doc(hidden)]
pub mod bindings;

pub mod calendar;
mod config;
pub mod delta;
mod error;
pub mod files;
pub mod http;
pub mod lock;
pub mod log;
pub mod notifier;
pub mod retention;
pub mod scheduler;
pub mod seal;
pub mod sign;
mod size;
mod span;
pub mod store;
pub mod stream;
pub mod target;

pub use bindings::host::vmferry::plugin::types::{Description, Error, ErrorCode, Timestamp};

pub use config::parse as parse_config;
pub use size::Size;
pub use span::Span;

/// Describes the plugin: id and version are those of its crate, the argument says what it does in one sentence.
///
/// The host compares id and version with `plugin.toml` and refuses a plugin whose two halves disagree.
#[macro_export]
macro_rules! description {
    ($summary:expr) => {
        $crate::Description {
            id: ::std::env!("CARGO_PKG_NAME").to_owned(),
            version: ::std::env!("CARGO_PKG_VERSION").to_owned(),
            summary: ::std::string::String::from($summary),
            extensions: ::std::vec::Vec::new(),
        }
    };
}
