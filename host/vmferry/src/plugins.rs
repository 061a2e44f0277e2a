//! Plugins as the configuration uses them: bundled or from a path, loaded once, with grants, limits and settings.

use crate::compose::TENANT;
use crate::config::job::{Job, PluginUse};
use crate::config::{Config, plugin};
use crate::exit::Exit;
use crate::problem::{Failure, Problem};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::Mutex;
use vmferry_engine::{Policies, StoreTarget, Subscription};
use vmferry_model::plugin::PluginError;
use vmferry_sandbox::{HostServices, Instance, Package, PackageError, Plugin, Sandbox, SandboxError, Settings};
use vmferry_store::Store;

/// Folder under the store for compiled components; the sandbox insists on its owner and mode.
const COMPILE_CACHE: &str = "compiled";

/// The plugins of one configuration.
pub struct Plugins<'a> {
    config: &'a Config,
    sandbox: Sandbox,
    services: HostServices,
    /// By name; a plugin that several jobs use is compiled once.
    loaded: Mutex<BTreeMap<String, Plugin>>,
}

impl<'a> Plugins<'a> {
    /// A sandbox for the plugins of `config`, whose values go to `store`. Compiled code is kept under `cache`, if given.
    pub fn new(config: &'a Config, store: &Store, cache: Option<&Path>) -> Result<Self, Failure> {
        let keys = config.keys.iter().map(|(name, key)| (name.clone(), key.reveal().as_bytes().to_vec()));
        let services = HostServices {
            key_value: Some(Arc::new(store.clone())),
            sign_keys: keys.collect(),
            seal_keys: config.seal_keys.clone(),
            leases: Some(Arc::new(store.clone())),
            credentials: Vec::new(),
        };
        Ok(Self { config, sandbox: sandbox(cache)?, services, loaded: Mutex::default() })
    }

    /// The plugins that decide for a job, each with its settings checked by itself. Everything that is wrong is told.
    pub async fn policies(&self, job: &Job) -> Result<Policies, Failure> {
        let mut problems = Vec::new();
        let mut policies = Policies::default();
        if let Some(used) = &job.schedule {
            match self.set_up(used, async |plugin, instance| plugin.scheduler(instance).await).await {
                Ok(scheduler) => policies.scheduler = Some(scheduler),
                Err(problem) => problems.push(problem),
            }
        }
        if let Some(used) = &job.retention {
            match self.set_up(used, async |plugin, instance| plugin.retention(instance).await).await {
                Ok(retention) => policies.retention = Some(retention),
                Err(problem) => problems.push(problem),
            }
        }
        for one in &job.notify {
            let used = &one.notifier;
            match self.set_up(used, async |plugin, instance| plugin.notifier(instance).await).await {
                Ok(notifier) => {
                    let name = used.plugin.clone();
                    policies.notifiers.push(Subscription { name, on: one.on.clone(), notifier });
                }
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() { Ok(policies) } else { Err(Failure { exit: Exit::Usage, problems }) }
    }

    /// The targets of a job that are stores, each with its settings checked by its plugin. Everything that is wrong is told.
    pub async fn stores(&self, name: &str, job: &Job) -> Result<Vec<StoreTarget>, Failure> {
        let (mut stores, mut problems) = (Vec::new(), Vec::new());
        for target in &job.stores {
            match self.set_up(&target.keeper, async |plugin, instance| plugin.target(instance).await).await {
                Ok(store) => stores.push(StoreTarget {
                    name: target.name.clone(),
                    store,
                    place: StoreTarget::place(TENANT, name, &target.name),
                    required: target.required,
                    throttles: target.throttles.clone(),
                }),
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() { Ok(stores) } else { Err(Failure { exit: Exit::Usage, problems }) }
    }

    async fn set_up<T>(
        &self,
        used: &PluginUse,
        make: impl AsyncFnOnce(&Plugin, Instance) -> Result<T, PluginError>,
    ) -> Result<T, Problem> {
        let at_use = |problem: Problem| problem.at(format!("{} ({})", used.named.place, used.named.key));
        let said = self.config.plugins.get(&used.plugin).cloned().unwrap_or_default();
        let plugin = self.load(&used.plugin, &said).await.map_err(at_use)?;
        let instance = Instance {
            tenant: TENANT.to_owned(),
            with: used.with.clone(),
            grants: said.grants,
            limits: said.limits,
            host: HostServices { credentials: said.credentials, ..self.services.clone() },
        };
        make(&plugin, instance).await.map_err(|error| at_use(Problem::new(error.to_string())))
    }

    async fn load(&self, name: &str, said: &plugin::Plugin) -> Result<Plugin, Problem> {
        let mut loaded = self.loaded.lock().await;
        if let Some(plugin) = loaded.get(name) {
            return Ok(plugin.clone());
        }
        let package =
            package(name, said.path.as_deref()).map_err(|error| Problem::new(format!("plugin {name}: {error}")))?;
        let plugin = self.sandbox.load(&package).await.map_err(|error| Problem::new(error.to_string()))?;
        // Grants, stored values and messages go by the plugin's own name.
        let own = &plugin.id().name;
        if own != name {
            let what = format!("plugin {name}: what lies there calls itself `{own}`");
            return Err(Problem::new(what).remedy(format!("call it `{own}` in the configuration, too")));
        }
        loaded.insert(name.to_owned(), plugin.clone());
        Ok(plugin)
    }
}

/// Without its cache a sandbox compiles at every start, and works.
fn sandbox(cache: Option<&Path>) -> Result<Sandbox, Failure> {
    let settings = Settings { compile_cache: cache.map(|folder| folder.join(COMPILE_CACHE)) };
    let sandbox = match Sandbox::new(&settings) {
        Err(SandboxError::Cache(error)) => {
            tracing::warn!(%error, "plugins are compiled at every start");
            Sandbox::new(&Settings::default())
        }
        other => other,
    };
    sandbox.map_err(|error| Failure::because(format_args!("sandbox: {error}")))
}

/// Why there is no package.
#[derive(Debug, thiserror::Error)]
enum Unpacked {
    #[error("is not part of this program; give its `path` under `[plugin.{0}]`")]
    NotBundled(String),
    #[error(transparent)]
    Package(#[from] PackageError),
}

fn package(name: &str, path: Option<&Path>) -> Result<Package, Unpacked> {
    if let Some(path) = path {
        return Ok(Package::from_path(path)?);
    }
    let bundled = vmferry_bundle::get(name).ok_or_else(|| Unpacked::NotBundled(name.to_owned()))?;
    Ok(Package::from_parts("bundled", bundled.manifest, bundled.component)?)
}
