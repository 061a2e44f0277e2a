//! What the verbs do.

mod config;
mod daemon;
mod doctor;
mod failover;
mod gc;
mod plan;
mod points;
mod restore;
mod run;
mod seed;
mod verify;

use crate::cli::{Cli, Common, ConfigVerb, Failover, Points, SeedArgs, Verb};
use crate::config::{Config, Surroundings};
use crate::exit::Exit;
use crate::output::Form;
use crate::output::progress::Screen;
use crate::plugins::Plugins;
use crate::problem::{Failure, Problem};
use crate::{compose, demo};
pub(crate) use failover::clone_text;
use std::path::{Path, PathBuf};
use vmferry_engine::{Engine, EngineError, Job};
use vmferry_store::Store;

/// Where the configuration is looked for, in this order, when nobody names one.
const DEFAULT_FILES: [&str; 2] = ["vmferry.toml", "/etc/vmferry/vmferry.toml"];

/// Does what the command line asks for.
pub async fn perform(cli: Cli, screen: &Screen) -> Result<Exit, Failure> {
    let common = &cli.common;
    match cli.verb {
        Verb::Demo(arguments) => demo::demo(&arguments, form(common), screen).await,
        Verb::Daemon => daemon::daemon(load(common)?, screen).await,
        Verb::Run(arguments) => run::run(&Workplace::open(common).await?, &arguments, screen).await,
        Verb::Plan(arguments) => plan::plan(&Workplace::open(common).await?, &arguments).await,
        Verb::Points(Points::List { job }) => {
            points::list(&Workplace::open(common).await?, job.as_deref(), screen).await
        }
        Verb::Points(Points::Hold(held)) => points::hold(&Workplace::open(common).await?, &held, true).await,
        Verb::Points(Points::Release(held)) => points::hold(&Workplace::open(common).await?, &held, false).await,
        Verb::Restore(arguments) => restore::restore(&Workplace::open(common).await?, arguments, screen).await,
        Verb::Verify(arguments) => verify::verify(&Workplace::open(common).await?, &arguments, screen).await,
        Verb::Failover(Failover::Clone(arguments)) => {
            failover::clone(&Workplace::open(common).await?, &arguments, screen).await
        }
        Verb::Failover(Failover::Start(arguments)) => {
            failover::start(&Workplace::open(common).await?, &arguments, screen).await
        }
        Verb::Seed(arguments) => match *arguments {
            SeedArgs { pair: Some(pair), .. } => seed::pair(common, pair, screen).await,
            SeedArgs { verb: Some(verb), .. } => seed::of_job(&Workplace::open(common).await?, verb, screen).await,
            // The command line asks for one or the other.
            SeedArgs { .. } => Err(Failure::usage(Problem::new("nothing to seed").remedy("vmferry seed --help"))),
        },
        Verb::Gc(arguments) => gc::gc(&Workplace::open(common).await?, &arguments).await,
        Verb::Doctor(arguments) => doctor::doctor(&Workplace::open(common).await?, &arguments).await,
        Verb::Config(ConfigVerb::Check) => config::check(&load(common)?, form(common)).await,
        Verb::Config(ConfigVerb::Show) => config::show(&load(common)?, form(common)),
    }
}

fn form(common: &Common) -> Form {
    if common.json { Form::Json } else { Form::Text }
}

/// Reads the configuration and tells its warnings.
fn load(common: &Common) -> Result<Config, Failure> {
    let file = common.config.clone().unwrap_or_else(default_file);
    let config = load_file(&file)?;
    for warning in &config.warnings {
        crate::output::say(warning.as_warning());
    }
    Ok(config)
}

/// Reads a configuration in the surroundings of this process.
pub(crate) fn load_file(file: &Path) -> Result<Config, Failure> {
    let bundled: Vec<_> = vmferry_bundle::all().iter().map(|plugin| plugin.id).collect();
    let environment = |name: &str| std::env::var(name).ok();
    crate::config::load(file, &Surroundings { environment: &environment, bundled: &bundled })
        .map_err(|problems| Failure { exit: Exit::Usage, problems })
}

fn default_file() -> PathBuf {
    let [here, system] = DEFAULT_FILES.map(PathBuf::from);
    if here.exists() || !system.exists() { here } else { system }
}

/// What a verb needs that works on pools.
pub(crate) struct Workplace {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) engine: Engine,
    pub(crate) form: Form,
}

impl Workplace {
    async fn open(common: &Common) -> Result<Self, Failure> {
        Self::new(load(common)?, form(common)).await
    }

    pub(crate) async fn new(config: Config, form: Form) -> Result<Self, Failure> {
        let store = compose::store(&config).await?;
        let engine = compose::engine(&config, &store);
        Ok(Self { config, store, engine, form })
    }

    /// The job of that name.
    async fn job(&self, name: &str) -> Result<Job, Failure> {
        let configured = self.config.job(name).map_err(Failure::usage)?;
        let stores = match configured.stores.is_empty() {
            true => Vec::new(),
            false => {
                Plugins::new(&self.config, &self.store, Some(&self.config.store))?.stores(name, configured).await?
            }
        };
        Ok(compose::job(name, configured, stores))
    }

    /// The job of that name with its pools alone: a failover needs nothing else, and must not fail for something else.
    fn job_on_pools(&self, name: &str) -> Result<Job, Failure> {
        Ok(compose::job(name, self.config.job(name).map_err(Failure::usage)?, Vec::new()))
    }

    /// Logs out, whatever became of the work.
    async fn close<T>(&self, outcome: T) -> T {
        self.engine.close().await;
        outcome
    }
}

/// The engine's errors say what, on which object, and what to do.
fn engine_failure(error: &EngineError, job: &str) -> Failure {
    failure_at(error, format!("job {job}"))
}

fn failure_at(error: &EngineError, place: String) -> Failure {
    let exit = match error {
        EngineError::Refused(_) => Exit::Refused,
        error if error.is_usage() => Exit::Usage,
        error if error.is_locked() => Exit::Locked,
        _ => Exit::Failed,
    };
    Failure { exit, problems: vec![Problem::new(error.to_string()).at(place)] }
}

fn print<T: serde::Serialize>(form: Form, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
    form.print(value, text).map_err(|error| Failure::because(format_args!("standard output: {error}")))
}
