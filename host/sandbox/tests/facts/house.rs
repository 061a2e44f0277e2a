//! What the tests share: one sandbox for all of them, guests by name, and inputs.

use async_trait::async_trait;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;
use vmferry_model::event::{Event, Severity};
use vmferry_model::plugin::{PluginError, PluginFailure, PointView};
use vmferry_model::store::{Acquired, KeyValue, KeyValueError, Leases, StoreError};
use vmferry_model::target::{
    BrokenOff, Chunk, Chunks, DeltaInfo, Draft, Firmware, MachineMetadata, Restored, VmMetadata,
};
use vmferry_sandbox::{Grants, Instance, Limits, LoadFailure, Package, Plugin, Sandbox, Settings};

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

pub(crate) async fn bundled(id: &str) -> Plugin {
    let plugin = vmferry_bundle::get(id).expect("a bundled plugin");
    let package = Package::from_parts(id, plugin.manifest, plugin.component).expect("a package");
    SANDBOX.load(&package).await.expect("a plugin")
}

/// A folder that a target is granted.
pub(crate) fn in_folder(folder: &Path, with: serde_json::Value) -> Instance {
    let grants = Grants { folders: vec![folder.to_str().expect("UTF-8").to_owned()], ..Grants::default() };
    Instance { grants, with, ..Instance::default() }
}

pub(crate) fn draft(id: &str) -> Draft {
    let vm = MachineMetadata {
        name: "erp".to_owned(),
        description: String::new(),
        vcpus: 2,
        memory: 1 << 30,
        firmware: Firmware::Uefi,
        secure_boot: false,
    };
    let (disks, interfaces) = (Vec::new(), Vec::new());
    Draft {
        id: id.to_owned(),
        job: "nightly".to_owned(),
        vm: "vm".to_owned(),
        name: "erp".to_owned(),
        taken_at: now(),
        base: None,
        metadata: VmMetadata { format: 1, vm, disks, interfaces, xapi: serde_json::Value::Null },
    }
}

pub(crate) fn info(size: u64, base: Option<&str>) -> DeltaInfo {
    DeltaInfo {
        disk: "disk".to_owned(),
        content: "content".to_owned(),
        size,
        base: base.map(str::to_owned),
        expected_bytes: size,
    }
}

/// A source of these chunks, each by its offset and the byte that it is full of. Dropped, it tells.
pub(crate) struct Source {
    chunks: std::vec::IntoIter<Chunk>,
    end: Result<(), BrokenOff>,
}

impl Source {
    pub(crate) fn of(chunks: &[(u64, usize, u8)]) -> Self {
        let chunk =
            |&(offset, length, byte): &(u64, usize, u8)| Chunk { offset, bytes: Bytes::from(vec![byte; length]) };
        Self { chunks: chunks.iter().map(chunk).collect::<Vec<_>>().into_iter(), end: Ok(()) }
    }

    pub(crate) fn breaking_off(self, why: &str) -> Self {
        Self { end: Err(BrokenOff(why.to_owned())), ..self }
    }
}

#[async_trait]
impl Chunks for Source {
    async fn next(&mut self) -> Result<Option<Chunk>, BrokenOff> {
        match self.chunks.next() {
            Some(chunk) => Ok(Some(chunk)),
            None => self.end.clone().map(|()| None),
        }
    }
}

/// What was restored, in the order in which it came.
#[derive(Clone, Default)]
pub(crate) struct Pieces(pub(crate) Arc<Mutex<Vec<(u64, Bytes)>>>);

#[async_trait]
impl Restored for Pieces {
    async fn put(&mut self, offset: u64, bytes: Bytes) -> Result<(), BrokenOff> {
        self.0.lock().expect("unpoisoned").push((offset, bytes));
        Ok(())
    }
}

/// Locks in memory, which never end by themselves.
#[derive(Default)]
pub(crate) struct Locks(Mutex<BTreeMap<String, (u64, bool)>>);

#[async_trait]
impl Leases for Locks {
    async fn acquire(&self, tenant: &str, plugin: &str, name: &str, _: Duration) -> Result<Acquired, StoreError> {
        let mut all = self.0.lock().expect("unpoisoned");
        let (epoch, held) = all.entry(format!("{tenant}/{plugin}/{name}")).or_default();
        if *held {
            return Ok(Acquired::HeldFor(Duration::from_secs(5)));
        }
        (*epoch, *held) = (*epoch + 1, true);
        Ok(Acquired::Epoch(*epoch))
    }

    async fn renew(&self, tenant: &str, plugin: &str, name: &str, epoch: u64, _: Duration) -> Result<bool, StoreError> {
        let all = self.0.lock().expect("unpoisoned");
        Ok(all.get(&format!("{tenant}/{plugin}/{name}")) == Some(&(epoch, true)))
    }

    async fn release(&self, tenant: &str, plugin: &str, name: &str, epoch: u64) -> Result<(), StoreError> {
        let mut all = self.0.lock().expect("unpoisoned");
        if let Some(right) = all.get_mut(&format!("{tenant}/{plugin}/{name}")).filter(|right| right.0 == epoch) {
            right.1 = false;
        }
        Ok(())
    }
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
