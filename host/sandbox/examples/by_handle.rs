//! What it costs to store a disk through a component that moves it by handle, beside the same work in native code: for each chunk
//! the look for zeroes, the BLAKE3 digest and the write, and one sync at the end. One after the other in each round; medians.
//!
//! ```text
//! cargo run --release -p vmferry-sandbox --example by_handle -- [GIB] [ROUNDS] [FOLDER]
//! ```

use anyhow::Context;
use async_trait::async_trait;
use bytes::Bytes;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vmferry_model::target::{
    BrokenOff, Chunk, Chunks, DeltaInfo, DiskReceipt, Draft, Firmware, MachineMetadata, PointStore, VmMetadata,
};
use vmferry_sandbox::{Grants, Instance, Package, Sandbox, Settings};

const CHUNK: usize = 2 << 20;
/// What the disk repeats: more than a processor's cache holds.
const PATTERN: usize = 256 << 20;

/// What a round took.
#[derive(Clone, Copy)]
struct Cost {
    wall: Duration,
    cpu: Duration,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let gib: u64 = arguments.next().map_or(Ok(2), |text| text.parse())?;
    let rounds: usize = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let folder = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let scratch = tempfile::tempdir_in(folder)?;
    let size = gib << 30;
    let pattern = pattern();

    let sandbox = Sandbox::new(&Settings::default())?;
    let bundled = vmferry_bundle::get("example-target-folder").context("the bundle has no example-target-folder")?;
    let plugin = sandbox.load(&Package::from_parts(bundled.id, bundled.manifest, bundled.component)?).await?;
    let path = scratch.path().to_str().context("UTF-8")?.to_owned();
    let grants = Grants { folders: vec![path.clone()], ..Grants::default() };
    let with = serde_json::json!({ "folder": path });
    let target = plugin.target(Instance { with, grants, ..Instance::default() }).await?;

    let (mut by_handle, mut native) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let id = format!("point-{round}");
        let handled = measure(async {
            let receipt = target.write(&draft(&id), info(size), Box::new(Disk::new(&pattern, size))).await?;
            let receipt = DiskReceipt { disk: "disk".to_owned(), receipt, digest: None };
            target.commit(&draft(&id), &[receipt]).await?;
            Ok(())
        })
        .await?;
        target.delete(&id).await?;
        let file = scratch.path().join("native.raw");
        let wrote = measure(async { write_natively(&file, &pattern, size).await }).await?;
        std::fs::remove_file(&file)?;
        // The first round fills caches and compiles nothing any more.
        if round > 0 {
            by_handle.push(handled);
            native.push(wrote);
        }
    }
    let mut out = std::io::stdout();
    let passed = target.passed();
    let median = |costs: &[Cost], of: fn(&Cost) -> Duration| {
        let mut all: Vec<Duration> = costs.iter().map(of).collect();
        all.sort();
        all[all.len() / 2].as_secs_f64()
    };
    for (name, costs) in [("by handle", &by_handle), ("natively", &native)] {
        let (cpu, wall) = (median(costs, |cost| cost.cpu), median(costs, |cost| cost.wall));
        writeln!(out, "{name:10} {gib} GiB: CPU {cpu:.2} s, {wall:.2} s wall")?;
    }
    let mut ratios: Vec<f64> =
        by_handle.iter().zip(&native).map(|(one, other)| one.cpu.as_secs_f64() / other.cpu.as_secs_f64()).collect();
    ratios.sort_by(f64::total_cmp);
    writeln!(
        out,
        "CPU by handle to native, median of {rounds} pairs: {:.2} ({:.2} to {:.2})",
        ratios[rounds / 2],
        ratios[0],
        ratios[rounds - 1]
    )?;
    writeln!(
        out,
        "payload: {} bytes stored, {} of them copied into the plugin's memory",
        passed.stored, passed.copied
    )?;
    Ok(())
}

async fn measure(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<Cost> {
    let (begun, before) = (Instant::now(), cpu()?);
    work.await?;
    Ok(Cost { wall: begun.elapsed(), cpu: cpu()? - before })
}

/// CPU time of this process with all its threads, those that ended too, in steps of 10 ms.
fn cpu() -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit_once(')').context("a name")?.1;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Duration::from_millis(ticks * 10))
}

/// Bytes that nothing compresses and no chunk of which is zero.
fn pattern() -> Bytes {
    let mut bytes = vec![0; PATTERN];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes.into()
}

fn chunk(pattern: &Bytes, offset: u64) -> Bytes {
    let at = offset as usize % PATTERN;
    pattern.slice(at..at + CHUNK)
}

async fn write_natively(path: &Path, pattern: &Bytes, size: u64) -> anyhow::Result<()> {
    let file = File::create_new(path)?;
    file.set_len(size)?;
    let mut digests = Vec::new();
    for offset in (0..size).step_by(CHUNK) {
        let chunk = chunk(pattern, offset);
        if chunk.iter().all(|byte| *byte == 0) {
            continue;
        }
        digests.extend_from_slice(blake3::hash(&chunk).as_bytes());
        file.write_all_at(&chunk, offset)?;
    }
    file.sync_all()?;
    std::fs::write(path.with_extension("digests"), digests)?;
    Ok(())
}

/// A disk on its way to a store.
struct Disk {
    pattern: Bytes,
    size: u64,
    at: u64,
}

impl Disk {
    fn new(pattern: &Bytes, size: u64) -> Self {
        Self { pattern: pattern.clone(), size, at: 0 }
    }
}

#[async_trait]
impl Chunks for Disk {
    async fn next(&mut self) -> Result<Option<Chunk>, BrokenOff> {
        if self.at == self.size {
            return Ok(None);
        }
        let next = Chunk { offset: self.at, bytes: chunk(&self.pattern, self.at) };
        self.at += CHUNK as u64;
        Ok(Some(next))
    }
}

fn info(size: u64) -> DeltaInfo {
    let (disk, content) = ("disk".to_owned(), "content".to_owned());
    DeltaInfo { disk, content, size, base: None, expected_bytes: size }
}

fn draft(id: &str) -> Draft {
    let vm = MachineMetadata {
        name: "erp".to_owned(),
        description: String::new(),
        vcpus: 1,
        memory: 1 << 30,
        firmware: Firmware::Bios,
        secure_boot: false,
    };
    let metadata =
        VmMetadata { format: 1, vm, disks: Vec::new(), interfaces: Vec::new(), xapi: serde_json::Value::Null };
    Draft {
        id: id.to_owned(),
        job: "job".to_owned(),
        vm: "vm".to_owned(),
        name: "erp".to_owned(),
        taken_at: jiff::Timestamp::UNIX_EPOCH,
        base: None,
        metadata,
    }
}
