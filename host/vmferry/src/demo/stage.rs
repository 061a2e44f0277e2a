//! What the demo plays on: two pools, a VM with recognisable data, a listener, a configuration file.

use super::listener::Listener;
use crate::output::units::Size;
use anyhow::Context;
use serde::Serialize;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use xapi_sim::{DiskSpec, Sim, SimConfig, VmSpec};

/// The name of the demo's job.
pub(super) const JOB: &str = "demo";

const TAG: &str = "demo";
const PASSWORD: &str = "demo password";
const DISK_SIZE: u64 = 1 << 30;
/// The unit in which a VHD keeps track of changes.
const BLOCK: u64 = 2 << 20;
/// Blocks of each disk that hold data: 64 MiB, spread over the whole disk.
const BLOCKS_WITH_DATA: u64 = 32;
/// Blocks that each round of changes writes, on the first disk and on the second.
const CHANGED_BLOCKS: [u64; 2] = [3, 1];

/// Everything that is simulated, and what belongs to it.
pub(super) struct Stage {
    pub(super) prod: Sim,
    pub(super) dr: Sim,
    pub(super) vm: String,
    disks: Vec<String>,
    pub(super) listener: Listener,
    pub(super) config_file: PathBuf,
    folder: TempDir,
}

/// A disk whose copy is the same.
#[derive(Serialize)]
pub(super) struct Proof {
    /// uuid of the source disk.
    pub(super) disk: String,
    /// uuid of the clone's disk.
    pub(super) copy: String,
    /// SHA-256 of the content of both.
    pub(super) sha256: String,
}

impl Stage {
    pub(super) async fn build() -> anyhow::Result<Self> {
        let (prod, dr) = (pool("prod").await?, pool("dr").await?);
        let disk = |name: &str| DiskSpec { name: name.to_owned(), size: DISK_SIZE, ..DiskSpec::default() };
        let vm = prod.add_vm(VmSpec {
            name: "erp-database".to_owned(),
            disks: vec![disk("system"), disk("data")],
            running: true,
            tags: vec![TAG.to_owned()],
            vifs: 1,
            ..VmSpec::default()
        });
        let disks = prod.vm_disks(&vm);
        let listener = Listener::start().await.context("listener on loopback")?;
        let folder = tempfile::Builder::new().prefix("vmferry-demo-").tempdir().context("temporary folder")?;
        let config_file = folder.path().join("vmferry.toml");
        write_private(&folder.path().join("password"), PASSWORD)?;
        write_private(&config_file, &configuration(&prod, &dr, &listener)?)?;
        let stage = Self { prod, dr, vm, disks, listener, config_file, folder };
        for disk in 0..stage.disks.len() {
            for n in 0..BLOCKS_WITH_DATA {
                stage.write_block(disk, n, 1);
            }
        }
        Ok(stage)
    }

    pub(super) fn describe(&self) -> String {
        format!(
            "VM erp-database on prod: {} disks of {}, {} of data on each; configuration: {}",
            self.disks.len(),
            Size(DISK_SIZE),
            Size(BLOCKS_WITH_DATA * BLOCK),
            self.config_file.display()
        )
    }

    /// Writes as the running VM would, before run `n`; says what.
    pub(super) fn change(&self, n: u32) -> String {
        for (disk, blocks) in CHANGED_BLOCKS.into_iter().enumerate() {
            for block in 0..blocks {
                // Other blocks each time, so that the chain holds pieces of every age.
                self.write_block(disk, (u64::from(n) * 5 + block) % BLOCKS_WITH_DATA, n);
            }
        }
        let [system, data] = CHANGED_BLOCKS.map(|blocks| Size(blocks * BLOCK).to_string());
        format!("the VM writes {system} on its first disk and {data} on its second")
    }

    fn write_block(&self, disk: usize, n: u64, generation: u32) {
        let offset = n * (DISK_SIZE / BLOCKS_WITH_DATA);
        self.prod.write(&self.disks[disk], offset, &text(disk, n, generation));
    }

    /// Compares the clone's disks with the source's, all of their content; the first difference is the error.
    pub(super) async fn prove(&self, copies: &[String]) -> Result<Vec<Proof>, String> {
        if copies.len() != self.disks.len() {
            return Err(format!("the clone has {} disks, its source {}", copies.len(), self.disks.len()));
        }
        let mut proofs = Vec::new();
        for (disk, copy) in self.disks.iter().zip(copies) {
            let (here, there) = (hash(&self.prod, disk), hash(&self.dr, copy));
            let (here, there) = tokio::join!(here, there);
            let (here, there) = (here?, there?);
            if here != there {
                return Err(format!("disk {disk} has sha256 {here}, its copy {copy} has {there}"));
            }
            proofs.push(Proof { disk: disk.clone(), copy: copy.clone(), sha256: here });
        }
        Ok(proofs)
    }

    /// What can be tried while the pools are up.
    pub(super) fn invitation(&self, point: &str) -> String {
        let config = self.config_file.display();
        let vm = &self.vm;
        format!(
            "The pools stay up until Ctrl-C. In another terminal:\n  \
             vmferry --config {config} plan {JOB}\n  \
             vmferry --config {config} run {JOB}\n  \
             vmferry --config {config} points list\n  \
             vmferry --config {config} failover clone {JOB} --vm {vm} --point {point} --network none --start\n  \
             vmferry --config {config} daemon"
        )
    }

    pub(super) async fn close(self) {
        let Self { prod, dr, folder, .. } = self;
        prod.stop().await;
        dr.stop().await;
        if let Err(error) = folder.close() {
            tracing::warn!(%error, "the demo's folder is left behind");
        }
    }
}

async fn pool(name: &str) -> anyhow::Result<Sim> {
    let config = SimConfig { tls: true, name: name.to_owned(), password: PASSWORD.to_owned(), ..SimConfig::default() };
    Sim::start(config).await.with_context(|| format!("simulated pool {name}"))
}

async fn hash(pool: &Sim, disk: &str) -> Result<String, String> {
    let (pool, disk) = (pool.clone(), disk.to_owned());
    tokio::task::spawn_blocking(move || pool.sha256(&disk)).await.map_err(|error| error.to_string())
}

/// A block of lines that say where they belong, so that a misplaced one would be seen.
fn text(disk: usize, n: u64, generation: u32) -> Vec<u8> {
    let length = usize::try_from(BLOCK).unwrap_or(usize::MAX);
    let line = format!("vmferry demo, disk {disk}, block {n:02}, generation {generation}\n");
    line.into_bytes().into_iter().cycle().take(length).collect()
}

/// The file every other verb can be used with.
fn configuration(prod: &Sim, dr: &Sim, listener: &Listener) -> anyhow::Result<String> {
    let certificate = |pool: &Sim| pool.certificate_sha256().context("a pool without a certificate");
    Ok(format!(
        r#"[pool.prod]
url = "{prod_url}"
username = "root"
password_file = "password"
certificate_sha256 = "{prod_certificate}"

[pool.dr]
url = "{dr_url}"
username = "root"
password_file = "password"
certificate_sha256 = "{dr_certificate}"

[store]
path = "state"

[job.{JOB}]
select = {{ pool = "prod", tags = ["{TAG}"] }}
targets = [{{ name = "dr", pool = "dr", sr = "{sr}", networks = {{ "{prod_network}" = "{dr_network}" }} }}]
schedule = {{ plugin = "schedule-interval", with = {{ every = "2s" }} }}
retention = {{ plugin = "retain-count", with = {{ keep = 2 }} }}
notify = [{{ plugin = "notify-webhook", on = ["succeeded", "failed"], with = {{ url = "{listener}/hook" }} }}]

# What a plugin may do, it has to be granted.
[plugin.notify-webhook]
grants = {{ http = ["{listener}"] }}
"#,
        prod_url = prod.url(),
        prod_certificate = certificate(prod)?,
        dr_url = dr.url(),
        dr_certificate = certificate(dr)?,
        sr = dr.default_sr(),
        prod_network = prod.network(),
        dr_network = dr.network(),
        listener = listener.url(),
    ))
}

fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.with_context(|| path.display().to_string())?;
    file.write_all(text.as_bytes()).with_context(|| path.display().to_string())
}
