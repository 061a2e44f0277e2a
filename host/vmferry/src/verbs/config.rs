//! `vmferry config`: what is configured, and whether it can work.

use super::print;
use crate::compose;
use crate::config::Config;
use crate::config::job::{Job, Overlap, PluginUse};
use crate::exit::Exit;
use crate::output::Form;
use crate::plugins::Plugins;
use crate::problem::Failure;
use serde::Serialize;
use serde_json::{Value, json};
use vmferry_store::Store;

/// What `config check --json` prints.
#[derive(Serialize)]
struct Checked {
    files: Vec<String>,
    pools: usize,
    jobs: usize,
    warnings: usize,
}

/// The configuration was read without complaint; what is left is what the plugins say to their settings.
pub(super) async fn check(config: &Config, form: Form) -> Result<Exit, Failure> {
    let store = Store::in_memory().await.map_err(|error| Failure::because(&error))?;
    let plugins = Plugins::new(config, &store, None)?;
    let mut problems = Vec::new();
    for job in config.jobs.values() {
        if let Err(failure) = plugins.policies(job).await {
            problems.extend(failure.problems);
        }
    }
    if !problems.is_empty() {
        return Err(Failure { exit: Exit::Usage, problems });
    }
    let checked = Checked {
        files: config.files.iter().map(|file| file.display().to_string()).collect(),
        pools: config.pools.len(),
        jobs: config.jobs.len(),
        warnings: config.warnings.len(),
    };
    print(form, &checked, |checked| {
        format!(
            "{}: in order; pools: {}, jobs: {}, warnings: {}\n",
            checked.files.join(", "),
            checked.pools,
            checked.jobs,
            checked.warnings
        )
    })?;
    Ok(Exit::Done)
}

/// Prints the configuration as it was understood, defaults included, secrets left out.
pub(super) fn show(config: &Config, form: Form) -> Result<Exit, Failure> {
    print(form, &described(config), |value| {
        toml::to_string_pretty(value).unwrap_or_else(|error| format!("{error}\n"))
    })?;
    Ok(Exit::Done)
}

/// TOML knows no null, so what is not set is left out.
fn described(config: &Config) -> Value {
    let pools = config.pools.iter().map(|(name, pool)| {
        let value = json!({ "url": pool.endpoint.to_string(), "username": pool.username, "password": "…" });
        (name.clone(), value)
    });
    let jobs = config.jobs.iter().map(|(name, job)| (name.clone(), described_job(name, job)));
    let plugins = config.plugins.iter().map(|(name, plugin)| {
        let http: Vec<_> = plugin.grants.http.iter().map(ToString::to_string).collect();
        let grants =
            json!({ "http": http, "sign": plugin.grants.sign, "private_addresses": plugin.grants.private_addresses });
        let mut value = json!({ "grants": grants });
        if let Some(path) = &plugin.path {
            value["path"] = path.display().to_string().into();
        }
        (name.clone(), value)
    });
    let keys = config.keys.keys().map(|name| (name.clone(), json!({ "secret": "…" })));
    json!({
        "store": { "path": config.store.display().to_string() },
        "pool": Value::Object(pools.collect()),
        "job": Value::Object(jobs.collect()),
        "plugin": Value::Object(plugins.collect()),
        "key": Value::Object(keys.collect()),
    })
}

fn described_job(name: &str, job: &Job) -> Value {
    let ids = compose::job(name, job).ids;
    let plugin = |used: &PluginUse| json!({ "plugin": used.plugin, "with": used.with });
    let targets: Vec<_> = job
        .targets
        .iter()
        .map(|target| json!({ "name": target.name, "pool": target.pool, "sr": target.sr, "networks": target.networks }))
        .collect();
    let notify: Vec<_> = job
        .notify
        .iter()
        .map(|one| json!({ "plugin": one.notifier.plugin, "on": one.on, "with": one.notifier.with }))
        .collect();
    let select = &job.select;
    let mut value = json!({
        "select": {
            "pool": select.pool,
            "vms": select.vms,
            "tags": select.tags,
            "power_state": select.power_states,
            "exclude": { "vms": select.exclude_vms, "tags": select.exclude_tags },
        },
        "targets": targets,
        "integrity": if job.digests { "digest" } else { "structure" },
        "overlap": match job.overlap {
            Overlap::Skip => "skip",
            Overlap::Wait => "wait",
        },
        "notify": notify,
        "xo": { "job": ids.job.to_string(), "schedule": ids.schedule.to_string() },
    });
    for (key, used) in [("schedule", &job.schedule), ("retention", &job.retention)] {
        if let Some(used) = used {
            value[key] = plugin(used);
        }
    }
    value
}
