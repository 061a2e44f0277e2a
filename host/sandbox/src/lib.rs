//! Runs vmferry's plugins: WebAssembly components, within limits, behind the traits of `vmferry-model`.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use vmferry_sandbox::{Instance, Package, Sandbox, Settings};
//!
//! let sandbox = Sandbox::new(&Settings::default())?;
//! let plugin = sandbox.load(&Package::from_folder("plugins/schedule-interval".as_ref())?).await?;
//! let with = serde_json::json!({ "every": "15m" });
//! let scheduler = plugin.scheduler(Instance { with, ..Instance::default() }).await?;
//! let next = scheduler.next_run(&Default::default(), jiff::Timestamp::now()).await?;
//! # let _ = next;
//! # Ok(())
//! # }
//! ```
//!
//! What holds for every call:
//!
//! - A fresh store and a fresh instance. Nothing passes from one call to the next, and a trap ends nothing but its call.
//! - Every [limit](Limits) is armed before guest code runs: wall time, CPU time, memory summed over all linear memories,
//!   function tables, host objects, bytes handed to the host, log lines, uses of the store, and the length of answers.
//! - A call that gets no turn within its own wall time is answered as busy, and all attempts of a notifier together have
//!   twice that time.
//! - A plugin [may do](Grants) what its manifest requests and the operator grants, and a refusal names the line to add.
//! - What comes back is an answer of the host's own types, or a [`PluginError`](vmferry_model::plugin::PluginError) that
//!   names the plugin, its version, the call and what happened.
//!
//! Suggested reading order: [`Package`], [`Sandbox::load`] (`load.rs`), [`Plugin`] (`plugin.rs`), one call (`call.rs`), then
//! what surrounds it: `sterile.rs` for policies, `egress.rs` for notifiers.

mod address;
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    dead_code,
    clippy::all,
    clippy::use_self,
    clippy::allow_attributes_without_reason,
    reason = "generated code; the documentation stands in the WIT files"
)]
mod bindings;
mod breaker;
mod cache;
mod call;
mod contract;
mod convert;
mod egress;
mod engines;
mod folder;
mod grants;
mod guest_log;
mod lent;
mod limits;
mod load;
mod lock;
mod lookup;
mod manifest;
mod memory;
mod package;
mod plugin;
mod request_line;
mod seal;
mod share;
mod state;
mod sterile;
mod target;

pub use cache::CacheError;
pub use contract::Misfit;
pub use egress::{AwsKey, Credential, CredentialError};
pub use engines::{Allocation, EngineError};
pub use grants::{Grants, HostPattern, PatternError};
pub use lent::HostServices;
pub use limits::{Limits, MAX_COMPONENT, MAX_HOST_OBJECTS, MAX_MEMORY, MAX_TABLE_ELEMENTS};
pub use load::{LoadError, LoadFailure};
pub use manifest::{Kind, Manifest, ManifestError};
pub use package::{ComponentDigest, Package, PackageError};
pub use plugin::{Instance, Plugin};
pub use target::{Passed, Target};
pub use vmferry_disk::encoding::SealKey;

use load::Loader;
use std::path::PathBuf;
use std::sync::Arc;

/// How the sandbox itself is set up.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Where compiled components are kept between starts: a folder that belongs to this user alone, mode 0700, made if
    /// absent. Without one every start compiles, which takes about 50 ms of CPU per small plugin.
    pub compile_cache: Option<PathBuf>,
}

/// A sandbox that cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// No engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A cache that cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// Where plugins run. One per process; cheap to clone.
#[derive(Clone)]
pub struct Sandbox {
    loader: Arc<Loader>,
}

impl std::fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sandbox").field("allocation", &self.allocation()).finish_non_exhaustive()
    }
}

impl Sandbox {
    /// Starts the engines and the thread that ends endless guests.
    pub fn new(settings: &Settings) -> Result<Self, SandboxError> {
        let cache = settings.compile_cache.as_deref().map(cache::Cache::open).transpose()?;
        let loader = Loader::new(engines::Engines::start()?, cache)
            .map_err(|error| EngineError::Engine(format!("{error:#}")))?;
        Ok(Self { loader: Arc::new(loader) })
    }

    /// Where instances get their memory; chosen at the start, and logged there.
    pub fn allocation(&self) -> Allocation {
        self.loader.engines.allocation
    }

    /// Reads, checks, compiles and links a plugin, and asks it who it is.
    pub async fn load(&self, package: &Package) -> Result<Plugin, LoadError> {
        let (loader, shared) = (self.loader.clone(), package.clone());
        let compiled = tokio::task::spawn_blocking(move || loader.compile(&shared)).await;
        let loaded = match compiled {
            Ok(Ok((kind, component))) => self.loader.introduce(package, kind, &component).await,
            Ok(Err(failure)) => Err(failure),
            Err(panic) => Err(LoadFailure::Host(panic.to_string())),
        };
        loaded.map_err(|cause| LoadError { name: package.name.clone(), origin: package.origin.clone(), cause })
    }
}
