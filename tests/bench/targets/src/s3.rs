//! What a bucket costs: the component that comes with the program beside curl, which uploads the same bytes to the same server with the
//! same signatures, in objects as large as the component's. As parts of one object they would be written twice: s3s-fs copies them.
//!
//! The server is s3s-fs of the search path. Its CPU time is in no figure, its pace is in every wall time: it leaves Nagle's algorithm
//! on, so that some of its answers wait 40 ms for an acknowledgement, which is most of what a small delta takes here. What is sent is
//! counted in a round of its own, through a relay.

use crate::{Cost, cpu, image, measure, size};
use anyhow::{Context as _, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use nix::sys::resource::UsageWho;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use vmferry_model::target::{
    BrokenOff, Chunk, Chunks, DeltaInfo, DiskReceipt, Draft, Firmware, MachineMetadata, PointStore, VmMetadata,
};
use vmferry_sandbox::{
    AwsKey, Credential, Grants, HostServices, Instance, Package, Passed, Plugin, Sandbox, Settings, Target,
};

const ACCESS_KEY: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET_KEY: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

/// Size of the objects.
const OBJECT: usize = 32 << 20;

/// The bucket's server, which ends with this value.
struct Server {
    url: String,
    root: PathBuf,
    process: Child,
}

impl Server {
    fn start(root: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir(root)?;
        let mut command = Command::new("s3s-fs");
        command.args(["--host", "127.0.0.1", "--port", "0", "--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY]);
        command.arg(root).env("RUST_LOG", "s3s_fs=info").stdout(Stdio::piped());
        let mut process = command.spawn().context("s3s-fs does not start; .ci/run says how to install it")?;
        let output = process.stdout.take().context("its output")?;
        let mut server = Self { url: String::new(), root: root.to_owned(), process };
        for line in BufReader::new(output).lines() {
            if let Some((_, address)) = line?.split_once("http://") {
                server.url = format!("http://{}", address.trim());
                server.empty()?;
                return Ok(server);
            }
        }
        anyhow::bail!("s3s-fs ended without saying where it is")
    }

    fn bucket(&self) -> PathBuf {
        self.root.join("backup")
    }

    /// Leaves an empty bucket.
    fn empty(&self) -> anyhow::Result<()> {
        for entry in std::fs::read_dir(&self.root)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => std::fs::remove_dir_all(entry.path())?,
                false => std::fs::remove_file(entry.path())?,
            }
        }
        Ok(std::fs::create_dir(self.bucket())?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Passes connections on to a server, and counts what goes there.
async fn relay(server: &str) -> anyhow::Result<(String, Arc<AtomicU64>)> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let url = format!("http://{}", listener.local_addr()?);
    let (server, sent) = (server.trim_start_matches("http://").to_owned(), Arc::new(AtomicU64::new(0)));
    let counted = sent.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (server, sent) = (server.clone(), counted.clone());
            tokio::spawn(async move {
                let mut server = TcpStream::connect(server).await?;
                let (mut from_client, mut to_client) = client.split();
                let (mut from_server, mut to_server) = server.split();
                let request = async {
                    let mut piece = vec![0; 256 << 10];
                    loop {
                        let read = from_client.read(&mut piece).await?;
                        if read == 0 {
                            return to_server.shutdown().await;
                        }
                        sent.fetch_add(read as u64, Relaxed);
                        to_server.write_all(&piece[..read]).await?;
                    }
                };
                tokio::try_join!(request, tokio::io::copy(&mut from_server, &mut to_client)).map(drop)
            });
        }
    });
    Ok((url, sent))
}

/// Pieces of an image that are to be kept.
struct Data {
    image: PathBuf,
    size: u64,
    chunk: usize,
    offsets: Vec<u64>,
}

impl Data {
    /// Everything, or what differs from another image.
    fn of(image: &Path, base: Option<&Path>, chunk_kib: u64) -> anyhow::Result<Self> {
        let chunk = (chunk_kib << 10) as usize;
        let size = std::fs::metadata(image)?.len();
        let file = File::open(image)?;
        let base = base.map(File::open).transpose()?;
        let mut offsets = Vec::new();
        for offset in (0..size).step_by(chunk) {
            let is_same = match &base {
                Some(base) => piece(&file, offset, size, chunk)? == piece(base, offset, size, chunk)?,
                None => false,
            };
            if !is_same {
                offsets.push(offset);
            }
        }
        Ok(Self { image: image.to_owned(), size, chunk, offsets })
    }

    fn chunks(&self) -> anyhow::Result<Box<Source>> {
        let offsets = self.offsets.clone().into_iter();
        Ok(Box::new(Source { image: File::open(&self.image)?, size: self.size, chunk: self.chunk, offsets }))
    }

    /// The same as files, one for each object.
    fn files(&self, folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
        std::fs::create_dir(folder)?;
        let image = File::open(&self.image)?;
        let mut files = Vec::new();
        for offsets in self.offsets.chunks(OBJECT / self.chunk) {
            let path = folder.join(files.len().to_string());
            let mut file = File::create(&path)?;
            for offset in offsets {
                file.write_all(&piece(&image, *offset, self.size, self.chunk)?)?;
            }
            files.push(path);
        }
        Ok(files)
    }
}

fn piece(image: &File, offset: u64, size: u64, chunk: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; chunk.min((size - offset) as usize)];
    image.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

struct Source {
    image: File,
    size: u64,
    chunk: usize,
    offsets: std::vec::IntoIter<u64>,
}

#[async_trait]
impl Chunks for Source {
    async fn next(&mut self) -> Result<Option<Chunk>, BrokenOff> {
        let Some(offset) = self.offsets.next() else { return Ok(None) };
        let bytes = piece(&self.image, offset, self.size, self.chunk).map_err(|error| BrokenOff(error.to_string()))?;
        Ok(Some(Chunk { offset, bytes: Bytes::from(bytes) }))
    }
}

/// The component, set up for the bucket.
async fn target(plugin: &Plugin, url: &str, chunk_kib: u64, compress: bool) -> anyhow::Result<Arc<Target>> {
    let key = AwsKey {
        access_key: ACCESS_KEY.to_owned(),
        secret_key: SECRET_KEY.to_owned(),
        session_token: None,
        region: "us-east-1".to_owned(),
        service: "s3".to_owned(),
    };
    let with = serde_json::json!({
        "endpoint": url, "bucket": "backup", "create": true, "chunk_size": chunk_kib << 10, "compress": compress, "pack_size": OBJECT,
    });
    let grants = Grants { http: vec![url.parse()?], ..Grants::default() };
    let credentials = vec![Credential::aws(url.parse()?, key)?];
    let host = HostServices { credentials, ..HostServices::default() };
    Ok(plugin.target(Instance { with, grants, host, ..Instance::default() }).await?)
}

fn draft(id: &str, base: Option<&str>) -> anyhow::Result<Draft> {
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
    Ok(Draft {
        id: id.to_owned(),
        job: "job".to_owned(),
        vm: "vm".to_owned(),
        name: "erp".to_owned(),
        taken_at: if base.is_none() { "2026-11-26T01:00:00Z" } else { "2026-11-26T02:00:00Z" }.parse()?,
        base: base.map(str::to_owned),
        metadata,
    })
}

/// Keeps a point by the component.
async fn keep(target: &Target, id: &str, base: Option<&str>, data: &Data) -> anyhow::Result<Cost> {
    let (begun, before) = (Instant::now(), cpu(UsageWho::RUSAGE_SELF)?);
    let info = DeltaInfo {
        disk: "disk".to_owned(),
        content: id.to_owned(),
        size: data.size,
        base: base.map(str::to_owned),
        expected_bytes: (data.offsets.len() * data.chunk) as u64,
    };
    let receipt = target.write(&draft(id, base)?, info, data.chunks()?).await?;
    let receipt = DiskReceipt { disk: "disk".to_owned(), receipt, digest: None };
    target.commit(&draft(id, base)?, &[receipt]).await?;
    Ok(Cost { wall: begun.elapsed().as_secs_f64(), cpu: cpu(UsageWho::RUSAGE_SELF)? - before })
}

/// Uploads files by one curl.
fn upload(url: &str, folder: &str, files: &[PathBuf]) -> anyhow::Result<Cost> {
    let mut curl = Command::new("curl");
    for (number, file) in files.iter().enumerate() {
        // Options are those of one request, up to `--next`.
        if number > 0 {
            curl.arg("--next");
        }
        curl.args(["--silent", "--show-error", "--fail", "--aws-sigv4", "aws:amz:us-east-1:s3"]);
        curl.args(["--header", "x-amz-content-sha256: UNSIGNED-PAYLOAD"]);
        curl.arg("--user").arg(format!("{ACCESS_KEY}:{SECRET_KEY}"));
        curl.arg("--upload-file").arg(file).arg(format!("{url}/backup/{folder}/{number}"));
    }
    measure(&mut curl)
}

/// What one round found.
struct Pair {
    component: Cost,
    curl: Cost,
}

/// Median of the component, of curl, and of their ratios, with the smallest and the largest.
fn told(pairs: &[Pair], of: fn(&Cost) -> f64) -> String {
    let sorted = |value: &dyn Fn(&Pair) -> f64| {
        let mut all: Vec<f64> = pairs.iter().map(value).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let component = sorted(&|pair| of(&pair.component));
    let curl = sorted(&|pair| of(&pair.curl));
    let ratios = sorted(&|pair| of(&pair.component) / of(&pair.curl));
    let middle = pairs.len() / 2;
    let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
    format!("{:.2} / {:.2} s = {:.2} ({least:.2} to {most:.2})", component[middle], curl[middle], ratios[middle])
}

fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

/// What is compared, and where.
struct Bench {
    server: Server,
    relay: String,
    /// Bytes that went through the relay.
    sent: Arc<AtomicU64>,
    plugin: Plugin,
}

impl Bench {
    /// One line of the table, and what passed the component.
    async fn compare(
        &self,
        rounds: u64,
        (chunk_kib, compress): (u64, bool),
        (first, first_files): (&Data, &[PathBuf]),
        (delta, delta_files): (&Data, &[PathBuf]),
    ) -> anyhow::Result<(String, Passed)> {
        let Self { server, relay, sent, plugin } = self;
        let (mut firsts, mut deltas, mut sizes) = (Vec::new(), Vec::new(), String::new());
        let mut passed = Passed::default();
        for round in 0..=rounds {
            // The first round fills caches, and counts what is stored and sent.
            let url = if round == 0 { relay } else { &server.url };
            let sent = || sent.swap(0, Relaxed);
            server.empty()?;
            let target = target(plugin, url, chunk_kib, compress).await?;
            sent();
            let one = keep(&target, "one", None, first).await?;
            let (stored_one, sent_one) = (size(&server.bucket())?, sent());
            let two = keep(&target, "two", Some("one"), delta).await?;
            let (stored_two, sent_two) = (size(&server.bucket())? - stored_one, sent());
            ensure!(target.verify("two").await?.is_empty(), "the point is damaged");
            sent();
            let Passed { stored, copied, .. } = target.passed();
            (passed.stored, passed.copied) = (passed.stored + stored, passed.copied + copied);
            let (curl_one, curl_sent_one) = (upload(url, "plain/one", first_files)?, sent());
            let (curl_two, curl_sent_two) = (upload(url, "plain/two", delta_files)?, sent());
            if round > 0 {
                firsts.push(Pair { component: one, curl: curl_one });
                deltas.push(Pair { component: two, curl: curl_two });
                continue;
            }
            let [stored_one, stored_two] = [stored_one, stored_two].map(mib);
            let [sent_one, sent_two] = [(sent_one, curl_sent_one), (sent_two, curl_sent_two)]
                .map(|(component, curl)| format!("{} / {}", mib(component), mib(curl)));
            sizes = format!("{stored_one} | +{stored_two} | {sent_one} | {sent_two}");
        }
        let (wall, cpu) = (|cost: &Cost| cost.wall, |cost: &Cost| cost.cpu);
        let [one, two] = [firsts, deltas].map(|pairs| format!("{} | {}", told(&pairs, wall), told(&pairs, cpu)));
        Ok((format!("{one} | {two} | {sizes}"), passed))
    }
}

/// Measures everything.
#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
pub(crate) async fn run(size_mib: u64, rounds: u64, scratch: &Path, chunks: &[u64]) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir_in(scratch)?;
    let path = |name: &str| scratch.path().join(name);
    let server = Server::start(&path("server"))?;
    let (relay, sent) = relay(&server.url).await?;
    let bundled = vmferry_bundle::get("target-s3").context("the bundle has no target-s3")?;
    let package = Package::from_parts(bundled.id, bundled.manifest, bundled.component)?;
    let plugin = Sandbox::new(&Settings::default())?.load(&package).await?;
    let bench = Bench { server, relay, sent, plugin };

    image::noise(&path("noise"), size_mib)?;
    image::make(&path("disk"), size_mib)?;
    println!(
        "{size_mib} MiB; noise: nothing compresses or is there twice; disk: two fifths zero; changed: one grain of 64 KiB in 50, half \
         of them text; component / curl, medians of {rounds} pairs\n"
    );
    println!(
        "| image, chunks | first: wall | CPU | changed: wall | CPU | MiB stored: first | changed | MiB sent: first | changed |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    let (mut stored, mut copied) = (0, 0);
    for kind in ["noise", "disk"] {
        let (image, changed) = (path(kind), path("changed"));
        image::change(&image, &changed, 50)?;
        for chunk_kib in chunks {
            let (first, delta) = (Data::of(&image, None, *chunk_kib)?, Data::of(&changed, Some(&image), *chunk_kib)?);
            let (first_files, delta_files) = (first.files(&path("first files"))?, delta.files(&path("delta files"))?);
            for compress in [false, true] {
                let (one, two) = ((&first, first_files.as_slice()), (&delta, delta_files.as_slice()));
                let (line, passed) = bench.compare(rounds, (*chunk_kib, compress), one, two).await?;
                let form = if compress { "compressed" } else { "as they are" };
                println!("| {kind}, {chunk_kib} KiB {form} | {line} |");
                (stored, copied) = (stored + passed.stored, copied + passed.copied);
            }
            std::fs::remove_dir_all(path("first files"))?;
            std::fs::remove_dir_all(path("delta files"))?;
        }
    }
    println!("\npayload: {} MiB stored, {copied} bytes of it copied into the plugin's memory", mib(stored));
    ensure!(copied == 0, "payload entered the plugin's memory");
    Ok(())
}
