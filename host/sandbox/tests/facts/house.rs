//! What the tests share: one sandbox for all of them, guests by name, and inputs.

use async_trait::async_trait;
use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex};
use std::time::Duration;
use vmferry_model::event::{Event, Severity};
use vmferry_model::plugin::{PluginError, PluginFailure, PointView};
use vmferry_model::store::{KeyValue, KeyValueError};
use vmferry_sandbox::{Instance, Limits, LoadFailure, Package, Plugin, Sandbox, Settings};

/// With a cache, or every test would compile its guest.
pub(crate) static SANDBOX: LazyLock<Sandbox> = LazyLock::new(|| {
    let compile_cache = Some(concat!(env!("CARGO_TARGET_TMPDIR"), "/compiled-guests").into());
    Sandbox::new(&Settings { compile_cache }).expect("the sandbox starts")
});

/// A guest of `tests/scenarios/guests`, under a manifest of this kind and whatever else it should say.
pub(crate) fn package(name: &str, kind: &str, manifest: &str) -> Package {
    let manifest = vmferry_test_guests::manifest(kind, manifest);
    Package::from_parts(name, &manifest, vmferry_test_guests::get(name)).expect("a package")
}

pub(crate) async fn load(name: &str, kind: &str, manifest: &str) -> Plugin {
    SANDBOX.load(&package(name, kind, manifest)).await.expect("a plugin")
}

pub(crate) async fn refusal(package: &Package) -> LoadFailure {
    SANDBOX.load(package).await.expect_err("no plugin").cause
}

/// A use with limits so tight that a test need not wait.
pub(crate) fn hurried() -> Instance {
    Instance {
        limits: Limits { timeout: Some(Duration::from_millis(200)), ..Limits::default() },
        ..Instance::default()
    }
}

pub(crate) fn with(with: serde_json::Value) -> Instance {
    Instance { with, ..Instance::default() }
}

pub(crate) fn now() -> jiff::Timestamp {
    "2026-11-21T07:30:00.75Z".parse().expect("a moment")
}

pub(crate) fn points(count: usize) -> Vec<PointView> {
    (0..count).map(|at| PointView { id: format!("point {at}"), taken_at: now(), held: false }).collect()
}

pub(crate) fn event() -> Event {
    Event {
        kind: "failed".to_owned(),
        time: now(),
        severity: Severity::Error,
        job: Some("erp".to_owned()),
        vm: None,
        run: Some("run 1".to_owned()),
        detail: serde_json::json!({ "outcome": "failed" }),
    }
}

pub(crate) fn failure<T: std::fmt::Debug>(result: Result<T, PluginError>) -> PluginFailure {
    result.expect_err("a plugin that fails").failure
}

/// A store in memory. It has a quota, as the real one does.
#[derive(Default)]
pub(crate) struct Memory(pub(crate) Mutex<BTreeMap<(String, String, String), Vec<u8>>>);

#[async_trait]
impl KeyValue for Memory {
    async fn get(&self, tenant: &str, plugin: &str, key: &str) -> Result<Option<Vec<u8>>, KeyValueError> {
        Ok(self.0.lock().expect("unpoisoned").get(&(tenant.into(), plugin.into(), key.into())).cloned())
    }

    async fn set(&self, tenant: &str, plugin: &str, key: &str, value: &[u8], quota: u64) -> Result<(), KeyValueError> {
        let wanted = (key.len() + value.len()) as u64;
        if wanted > quota {
            return Err(KeyValueError::Quota { plugin: plugin.to_owned(), wanted, quota });
        }
        self.0.lock().expect("unpoisoned").insert((tenant.into(), plugin.into(), key.into()), value.to_vec());
        Ok(())
    }

    async fn delete(&self, tenant: &str, plugin: &str, key: &str) -> Result<(), KeyValueError> {
        self.0.lock().expect("unpoisoned").remove(&(tenant.into(), plugin.into(), key.into()));
        Ok(())
    }

    async fn list(&self, tenant: &str, plugin: &str, prefix: &str) -> Result<Vec<String>, KeyValueError> {
        let all = self.0.lock().expect("unpoisoned");
        let own = all.keys().filter(|(t, p, key)| t == tenant && p == plugin && key.starts_with(prefix));
        Ok(own.map(|(_, _, key)| key.clone()).collect())
    }
}
