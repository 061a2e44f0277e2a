//! From a package to a plugin that can be called.

use crate::bindings::host::vmferry::plugin::types::Description;
use crate::bindings::host::vmferry::plugin::{log, sign, store, types};
use crate::bindings::notifier::NotifierPre;
use crate::bindings::retention::RetentionPre;
use crate::bindings::scheduler::SchedulerPre;
use crate::bindings::target::TargetPre;
use crate::bindings::target::vmferry::plugin::{delta, lock, seal};
use crate::cache::Cache;
use crate::call::{Caller, Surroundings};
use crate::contract::{self, Misfit};
use crate::convert;
use crate::engines::{Engines, Lane};
use crate::grants::{Grants, Rights};
use crate::lent::HostServices;
use crate::limits::{Budget, MAX_COMPONENT, MAX_MEMORY};
use crate::lookup::Lookups;
use crate::manifest::{Kind, Manifest, is_version};
use crate::package::{ComponentDigest, Package};
use crate::plugin::{Guest, Plugin};
use crate::request_line;
use crate::state::{HasState, Lent, State};
use crate::sterile::{Replay, stop_the_clock};
use crate::target;
use std::sync::Arc;
use vmferry_model::plugin::{PluginError, PluginId};
use wasmtime::component::{Component, Linker};

/// A package that is no plugin for this host.
#[derive(Debug, thiserror::Error)]
#[error("plugin {name} ({origin}): {cause}")]
pub struct LoadError {
    /// The plugin's id.
    pub name: String,
    /// Where it is from.
    pub origin: String,
    /// What is wrong.
    pub cause: LoadFailure,
}

/// What is wrong with a package.
#[derive(Debug, thiserror::Error)]
pub enum LoadFailure {
    /// Too large to be looked at.
    #[error("the component is larger than {} MiB", MAX_COMPONENT >> 20)]
    TooLarge,
    /// Not WebAssembly at all.
    #[error("is not a WebAssembly component; build it with `cargo build --target wasm32-wasip2 --release`")]
    NotWasm,
    /// WebAssembly of the older shape.
    #[error(
        "is a core module, not a component; build it for the target wasm32-wasip2, or wrap it with `wasm-tools component new`"
    )]
    CoreModule,
    /// Damaged, or using features that this host does not run.
    #[error("cannot be compiled: {0}")]
    Invalid(String),
    /// Not of the world it claims.
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// It could not say who it is.
    #[error("{0}")]
    Describe(Box<PluginError>),
    /// It says who it is in words that no report could show.
    #[error("the component says that its version is `{0}`, which is none; write letters, digits, `.`, `+` and `-`")]
    Version(String),
    /// Its manifest and its code are of different plugins.
    #[error("its plugin.toml says `{manifest}`, the component says `{component}`; build both from the same source")]
    Disagree {
        /// Id and version in the manifest.
        manifest: String,
        /// Id and version in the component.
        component: String,
    },
    /// The host is at fault.
    #[error("the sandbox failed: {0}")]
    Host(String),
}

/// What loading needs from the sandbox.
pub(crate) struct Loader {
    pub(crate) engines: Engines,
    pub(crate) cache: Option<Cache>,
    policy: Linker<State>,
    notifier: Linker<State>,
    target: Linker<State>,
}

impl Loader {
    pub(crate) fn new(engines: Engines, cache: Option<Cache>) -> wasmtime::Result<Self> {
        let policy = policy_linker(&engines.policy)?;
        let notifier = notifier_linker(&engines.notifier)?;
        let target = target_linker(&engines.target)?;
        Ok(Self { engines, cache, policy, notifier, target })
    }

    fn lane(&self, kind: Kind) -> &Arc<Lane> {
        match kind {
            Kind::Scheduler | Kind::Retention => &self.engines.policy,
            Kind::Notifier => &self.engines.notifier,
            Kind::Target => &self.engines.target,
        }
    }

    /// Compiles, or takes from the cache. Blocks for as long as a compilation takes.
    pub(crate) fn compile(&self, package: &Package) -> Result<(Kind, Component), LoadFailure> {
        looks_like_a_component(&package.component)?;
        let kind = match &package.manifest {
            Some(manifest) => manifest.kind,
            // Without a manifest the exports tell the kind, and the kind tells the engine.
            None => contract::kind_of(&self.component(&self.engines.policy, package)?)?,
        };
        let component = self.component(self.lane(kind), package)?;
        contract::check(&component, kind)?;
        Ok((kind, component))
    }

    fn component(&self, lane: &Lane, package: &Package) -> Result<Component, LoadFailure> {
        if let Some(component) = self.cache.as_ref().and_then(|cache| cache.get(&lane.engine, &package.digest)) {
            return Ok(component);
        }
        let component = Component::new(&lane.engine, &package.component)
            .map_err(|error| LoadFailure::Invalid(convert::text(&format!("{error:#}"))))?;
        if let Some(cache) = &self.cache {
            cache.put(&lane.engine, &package.digest, &component);
        }
        Ok(component)
    }

    /// Links, and asks the plugin who it is.
    pub(crate) async fn introduce(
        &self,
        package: &Package,
        kind: Kind,
        component: &Component,
    ) -> Result<Plugin, LoadFailure> {
        let lane = self.lane(kind).clone();
        let guest = self.link(kind, component).map_err(|error| Misfit::Types(convert::text(&format!("{error:#}"))))?;
        let description =
            describe(package, kind, &guest, &lane).await.map_err(|error| LoadFailure::Describe(Box::new(error)))?;
        let id = PluginId { name: description.id, version: description.version };
        match &package.manifest {
            Some(Manifest { id: name, version, .. }) if *name != id.name || *version != id.version => {
                return Err(LoadFailure::Disagree {
                    manifest: format!("{name} {version}"),
                    component: convert::text(&format!("{} {}", id.name, id.version)),
                });
            }
            _ if !is_version(&id.version) => return Err(LoadFailure::Version(convert::text(&id.version))),
            _ => {}
        }
        // A component alone goes by the name that the operator gave its file.
        let id = PluginId { name: package.name.clone(), ..id };
        Ok(Plugin::new(id, kind, package.manifest.clone(), package.digest, lane, guest))
    }

    fn link(&self, kind: Kind, component: &Component) -> wasmtime::Result<Guest> {
        Ok(match kind {
            Kind::Scheduler => Guest::Scheduler(SchedulerPre::new(self.policy.instantiate_pre(component)?)?),
            Kind::Retention => Guest::Retention(RetentionPre::new(self.policy.instantiate_pre(component)?)?),
            Kind::Notifier => Guest::Notifier(NotifierPre::new(self.notifier.instantiate_pre(component)?)?),
            Kind::Target => Guest::Target(TargetPre::new(self.target.instantiate_pre(component)?)?),
        })
    }
}

fn looks_like_a_component(bytes: &[u8]) -> Result<(), LoadFailure> {
    /// After the magic number: the binary format's version, then whether it is a module or a component.
    const MODULE: &[u8] = b"\0asm\x01\0\0\0";
    const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";
    if bytes.len() > MAX_COMPONENT {
        Err(LoadFailure::TooLarge)
    } else if bytes.starts_with(MODULE) {
        Err(LoadFailure::CoreModule)
    } else if !bytes.starts_with(COMPONENT) {
        Err(LoadFailure::NotWasm)
    } else {
        Ok(())
    }
}

fn policy_linker(lane: &Lane) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(&lane.engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    stop_the_clock(&mut linker)?;
    types::add_to_linker::<_, HasState>(&mut linker, |state| state)?;
    log::add_to_linker::<_, HasState>(&mut linker, |state| state)?;
    Ok(linker)
}

fn target_linker(lane: &Lane) -> wasmtime::Result<Linker<State>> {
    let mut linker = notifier_linker(lane)?;
    target::watch(&mut linker)?;
    target::bound(&mut linker)?;
    seal::add_to_linker::<_, HasState>(&mut linker, |state| state)?;
    lock::add_to_linker::<_, HasState>(&mut linker, |state| state)?;
    delta::add_to_linker::<_, HasState>(&mut linker, |state| state)?;
    Ok(linker)
}

fn notifier_linker(lane: &Lane) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(&lane.engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    request_line::bound(&mut linker)?;
    types::add_to_linker::<_, HasState>(&mut linker, |state| state)?;
    log::add_to_linker::<_, HasState>(&mut linker, |state| state)?;
    store::add_to_linker::<_, HasState>(&mut linker, |state| state)?;
    sign::add_to_linker::<_, HasState>(&mut linker, |state| state)?;
    Ok(linker)
}

/// Asks for the description: nobody's settings, no rights, and the memory that the manifest asks for, since what the
/// operator grants is not known before there is a use.
async fn describe(package: &Package, kind: Kind, guest: &Guest, lane: &Arc<Lane>) -> Result<Description, PluginError> {
    let manifest = package.manifest.as_ref();
    let version = manifest.map_or("of unknown version", |manifest| &manifest.version).to_owned();
    let id = PluginId { name: package.name.clone(), version };
    let mut budget = Budget::default_for(kind);
    let wanted = manifest.and_then(|manifest| manifest.limits.memory).unwrap_or_default();
    budget.memory = budget.memory.max(wanted.min(MAX_MEMORY));
    let lent = Lent {
        tenant: String::new(),
        plugin: package.name.clone(),
        rights: Rights::new(&package.name, None, Grants::default()),
        store_quota: 0,
        services: HostServices::default(),
        lookups: Lookups::of(Arc::default()),
    };
    let caller = Caller::new(id, kind, lane.clone(), budget, lent);
    Ok(caller.call("describe", introduction(kind, &package.digest), |ready| guest.describe(ready)).await?)
}

/// A policy is deterministic here, too: the clock stands at its beginning.
fn introduction(kind: Kind, digest: &ComponentDigest) -> Surroundings {
    if !kind.is_policy() {
        return Surroundings::Open;
    }
    Surroundings::Sterile(Replay { now: jiff::Timestamp::UNIX_EPOCH, input: blake3::hash(digest.as_bytes()) })
}
