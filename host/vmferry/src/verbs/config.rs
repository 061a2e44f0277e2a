//! `vmferry config`: what is configured, and whether it can work.

use super::print;
use crate::compose;
use crate::config::Config;
use crate::config::job::{Job, Overlap, PluginUse};
use crate::config::limit::Limit;
use crate::exit::Exit;
use crate::output::Form;
use crate::plugins::Plugins;
use crate::problem::Failure;
use serde::Serialize;
use serde_json::{Value, json};
use vmferry_engine::{Nbd, SnapshotMode};
use vmferry_store::Store;
use vmferry_xapi::StreamNetwork;

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
    for (name, job) in &config.jobs {
        if let Err(failure) = plugins.policies(job).await {
            problems.extend(failure.problems);
        }
        if let Err(failure) = plugins.stores(name, job).await {
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
        let mut value = json!({ "url": pool.endpoint.to_string(), "username": pool.username, "password": "…" });
        if let StreamNetwork::Named(network) = pool.endpoint.stream_network() {
            value["network"] = network.as_str().into();
        }
        (name.clone(), value)
    });
    let jobs = config.jobs.iter().map(|(name, job)| (name.clone(), described_job(name, job)));
    let plugins = config.plugins.iter().map(|(name, plugin)| {
        let http: Vec<_> = plugin.grants.http.iter().map(ToString::to_string).collect();
        let grants =
            json!({ "http": http, "sign": plugin.grants.sign, "private_addresses": plugin.grants.private_addresses });
        let mut value = json!({ "grants": grants });
        let credentials: Vec<_> = plugin.credentials.iter().map(|one| one.server().to_string()).collect();
        if !credentials.is_empty() {
            value["credentials"] = credentials.iter().map(|server| json!({ "server": server })).collect();
        }
        if let Some(path) = &plugin.path {
            value["path"] = path.display().to_string().into();
        }
        (name.clone(), value)
    });
    let keys = config.keys.keys().map(|name| (name.clone(), json!({ "secret": "…" })));
    let links = config.links.iter().map(|(name, limit)| {
        let mut value = json!({});
        describe_limit(&mut value, limit);
        (name.clone(), value)
    });
    json!({
        "store": { "path": config.store.display().to_string() },
        "pool": Value::Object(pools.collect()),
        "job": Value::Object(jobs.collect()),
        "plugin": Value::Object(plugins.collect()),
        "key": Value::Object(keys.collect()),
        "link": Value::Object(links.collect()),
    })
}

fn describe_limit(value: &mut Value, limit: &Limit) {
    if let Some(usual) = limit.usual {
        value["limit"] = usual.into();
    }
    let windows = limit.windows.iter().map(|window| {
        json!({
            "days": window.days.iter().map(|day| format!("{day:?}").to_lowercase()[..3].to_owned()).collect::<Vec<_>>(),
            "from": window.from.strftime("%H:%M").to_string(),
            "to": window.to.strftime("%H:%M").to_string(),
            "limit": window.limit.map_or_else(|| "none".into(), Value::from),
        })
    });
    let windows: Vec<Value> = windows.collect();
    if !windows.is_empty() {
        value["limit_windows"] = windows.into();
    }
}

fn described_job(name: &str, job: &Job) -> Value {
    let ids = compose::job(name, job, Vec::new()).ids;
    let plugin = |used: &PluginUse| json!({ "plugin": used.plugin, "with": used.with });
    let targets: Vec<_> = job
        .targets
        .iter()
        .zip(&job.links)
        .map(|(target, link)| {
            let (name, pool, networks) = (&target.name, &target.pool, &target.networks);
            let mut value = json!({ "name": name, "pool": pool, "networks": networks, "required": target.required });
            match target.srs.as_slice() {
                [sr] => value["sr"] = sr.as_str().into(),
                srs => value["srs"] = srs.into(),
            }
            if let Some(link) = link {
                value["link"] = link.as_str().into();
            }
            value
        })
        .collect();
    let stores = job.stores.iter().map(|store| {
        let mut value = plugin(&store.keeper);
        value["name"] = store.name.as_str().into();
        value["required"] = store.required.into();
        if let Some(link) = &store.link {
            value["link"] = link.as_str().into();
        }
        value
    });
    let targets: Vec<Value> = targets.into_iter().chain(stores).collect();
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
        "snapshot": match job.snapshot {
            SnapshotMode::Disks => "disks",
            SnapshotMode::Offline => "offline",
            SnapshotMode::Memory => "memory",
        },
        "read": {
            "nbd": match job.reading.nbd {
                Nbd::Auto => "auto",
                Nbd::Always => "always",
                Nbd::Never => "never",
            },
            "connections": job.reading.connections,
            "depth": job.reading.pace.depth,
            "request": job.reading.pace.request_size,
            "cbt": if job.reading.enable_cbt { "enable" } else { "keep" },
        },
        "chain": { "wait_above": job.chains.wait_above, "max": job.chains.max },
        "notify": notify,
        "xo": { "job": ids.job.to_string(), "schedule": ids.schedule.to_string() },
    });
    describe_limit(&mut value, &job.limit);
    for (key, used) in [("schedule", &job.schedule), ("retention", &job.retention)] {
        if let Some(used) = used {
            value[key] = plugin(used);
        }
    }
    value
}
