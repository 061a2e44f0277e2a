//! The component that comes with the program, in its sandbox, against a store that computes each signature again.

use crate::server::{Kind, Server, with_each_server};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use vmferry_model::plugin::PluginFailure;
use vmferry_model::target::{
    BrokenOff, Chunk, Chunks, DeltaInfo, DiskReceipt, Draft, Firmware, MachineMetadata, PointStore, Restored,
    VmMetadata,
};
use vmferry_sandbox::{AwsKey, Credential, Grants, HostServices, Instance, Package, Passed, Sandbox, Settings, Target};

const CHUNK: usize = 1 << 20;
const SIZE: u64 = 64 << 20;

/// The plugin, set up for a bucket at this address, where packs are sent in parts.
pub(crate) async fn target(url: &str, access_key: &str, secret_key: &str) -> Arc<Target> {
    target_of(url, access_key, secret_key, "5 MiB").await
}

/// The same with parts of another size.
async fn target_of(url: &str, access_key: &str, secret_key: &str, part_size: &str) -> Arc<Target> {
    let compile_cache = Some(concat!(env!("CARGO_TARGET_TMPDIR"), "/compiled-plugins").into());
    let sandbox = Sandbox::new(&Settings { compile_cache }).unwrap();
    let bundled = vmferry_bundle::get("target-s3").unwrap();
    let package = Package::from_parts("bundled", bundled.manifest, bundled.component).unwrap();
    let plugin = sandbox.load(&package).await.unwrap();
    let key = AwsKey {
        access_key: access_key.to_owned(),
        secret_key: secret_key.to_owned(),
        session_token: None,
        region: "us-east-1".to_owned(),
        service: "s3".to_owned(),
    };
    let server = url.parse().unwrap();
    let grants = Grants { http: vec![url.parse().unwrap()], ..Grants::default() };
    let credentials = vec![Credential::aws(server, key).unwrap()];
    let with = serde_json::json!({
        "endpoint": url, "bucket": "backup", "prefix": "site-a", "chunk_size": "1 MiB", "pack_size": "8 MiB",
        "part_size": part_size, "grace": "1s", "create": true,
    });
    let host = HostServices { credentials, ..HostServices::default() };
    let instance = Instance { with, grants, host, ..Instance::default() };
    plugin.target(instance).await.unwrap()
}

fn draft(id: &str, base: Option<&str>) -> Draft {
    let vm = MachineMetadata {
        name: "erp".to_owned(),
        description: String::new(),
        vcpus: 2,
        memory: 1 << 30,
        firmware: Firmware::Uefi,
        secure_boot: false,
    };
    Draft {
        id: id.to_owned(),
        job: "nightly".to_owned(),
        vm: "vm".to_owned(),
        name: "erp".to_owned(),
        taken_at: if base.is_none() { "2026-11-26T01:00:00Z" } else { "2026-11-26T02:00:00Z" }.parse().unwrap(),
        base: base.map(str::to_owned),
        metadata: VmMetadata {
            format: 1,
            vm,
            disks: Vec::new(),
            interfaces: Vec::new(),
            xapi: serde_json::Value::Null,
        },
    }
}

struct Source(VecDeque<Chunk>);

#[async_trait]
impl Chunks for Source {
    async fn next(&mut self) -> Result<Option<Chunk>, BrokenOff> {
        Ok(self.0.pop_front())
    }
}

/// A disk as it is restored.
#[derive(Clone)]
struct Disk(Arc<Mutex<Vec<u8>>>);

#[async_trait]
impl Restored for Disk {
    async fn put(&mut self, offset: u64, bytes: Bytes) -> Result<(), BrokenOff> {
        self.0.lock().unwrap()[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
        Ok(())
    }
}

/// Bytes that do not compress, another megabyte for each number.
fn noise(number: usize) -> Vec<u8> {
    let mut state = number as u64 + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..CHUNK / 8).flat_map(|_| next()).collect()
}

/// Keeps a point of these chunks, which are also written to `disk`.
async fn keep(target: &Target, id: &str, base: Option<&str>, chunks: &[(usize, usize)], disk: &mut [u8]) {
    let info = DeltaInfo {
        disk: "disk".to_owned(),
        content: format!("content {id}"),
        size: SIZE,
        base: base.map(str::to_owned),
        expected_bytes: (chunks.len() * CHUNK) as u64,
    };
    let mut source = VecDeque::new();
    for &(at, number) in chunks {
        let bytes = noise(number);
        disk[at * CHUNK..][..CHUNK].copy_from_slice(&bytes);
        source.push_back(Chunk { offset: (at * CHUNK) as u64, bytes: bytes.into() });
    }
    let receipt = target.write(&draft(id, base), info, Box::new(Source(source))).await.unwrap();
    let receipt = DiskReceipt { disk: "disk".to_owned(), receipt, digest: None };
    let point = target.commit(&draft(id, base), &[receipt]).await.unwrap();
    assert_eq!(point.id, id);
}

async fn restored(target: &Target, id: &str) -> Vec<u8> {
    let disk = Disk(Arc::new(Mutex::new(vec![0; SIZE as usize])));
    let extents = target.layout(id, "disk", None).await.unwrap();
    target.read(id, "disk", &extents, Box::new(disk.clone())).await.unwrap();
    std::mem::take(&mut disk.0.lock().unwrap())
}

async fn points_go_to_a_bucket_and_come_back_with_every_request_signed(kind: Kind) -> anyhow::Result<()> {
    let Some(server) = Server::strict(kind)? else { return Ok(()) };
    let target = target(&server.url, &server.access_key, &server.secret_key).await;
    assert_eq!(target.shape().chunk_size as usize, CHUNK);

    let mut disk = vec![0; SIZE as usize];
    let full: Vec<_> = (0..20).map(|number| (number * 3, number)).collect();
    keep(&target, "one", None, &full, &mut disk).await;
    let first = disk.clone();
    keep(&target, "two", Some("one"), &[(0, 100), (1, 101), (2, 3)], &mut disk).await;
    assert_eq!(target.points(Some("vm")).await?.len(), 2);
    assert_eq!(target.metadata("two").await?, draft("two", None).metadata);
    assert!(restored(&target, "one").await == first);
    assert!(restored(&target, "two").await == disk);
    assert_eq!(target.verify("two").await?, []);

    target.hold("two", true).await?;
    target.delete("one").await?;
    target.collect(&[], true).await?;
    let points = target.points(None).await?;
    assert_eq!(points.iter().map(|point| (point.id.as_str(), point.held)).collect::<Vec<_>>(), [("two", true)]);
    assert!(restored(&target, "two").await == disk, "without the point that it was made from");
    let Passed { stored, copied, .. } = target.passed();
    // One of the delta's chunks was there already.
    assert!((22 * CHUNK as u64..23 * CHUNK as u64).contains(&stored), "{stored}");
    assert_eq!(copied, 0, "no payload entered the plugin");
    Ok(())
}

async fn a_wrong_key_is_told_with_what_to_correct(kind: Kind) -> anyhow::Result<()> {
    let Some(server) = Server::strict(kind)? else { return Ok(()) };
    let (url, access_key) = (server.url.clone(), server.access_key.clone());
    let wrong = tokio::spawn(async move { target(&url, &access_key, "wrong").await }).await;
    // The first thing that is asked of the bucket fails, which is how it wants its data.
    let panic = wrong.expect_err("the set-up fails").into_panic();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.contains("SignatureDoesNotMatch") && text.contains("[[plugin.target-s3.credentials]]"), "{text}");
    assert!(!text.contains("wrong") && text.contains(&server.url), "{text}");
    Ok(())
}

/// Passes a connection on to a server. Each piece of its requests is shown to `meddle`, which may change it, or end the
/// connection by `false`.
async fn pass(mut client: TcpStream, server: String, mut meddle: impl FnMut(&mut [u8]) -> bool) -> std::io::Result<()> {
    let mut server = TcpStream::connect(server).await?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let requests = async {
        let mut piece = vec![0; 1 << 16];
        loop {
            let read = from_client.read(&mut piece).await?;
            if read == 0 || !meddle(&mut piece[..read]) {
                return Ok(());
            }
            to_server.write_all(&piece[..read]).await?;
        }
    };
    tokio::select! {
        ended = requests => ended,
        ended = tokio::io::copy(&mut from_server, &mut to_client) => ended.map(drop),
    }
}

/// Stands before a server. Of every eight connections, one breaks in the middle of a large request and one is told to come
/// back later. The others break after a pack and a half, if the server keeps them that long.
async fn stumbling(server: &str) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (server, stumbles) = (server.trim_start_matches("http://").to_owned(), Arc::new(AtomicUsize::new(0)));
    let counted = stumbles.clone();
    tokio::spawn(async move {
        for number in 0.. {
            let (mut client, _) = listener.accept().await.unwrap();
            let (server, stumbles) = (server.clone(), counted.clone());
            tokio::spawn(async move {
                match number % 8 {
                    3 => {
                        let mut piece = vec![0; 1 << 16];
                        let _ = client.read(&mut piece).await;
                        stumbles.fetch_add(1, SeqCst);
                        let busy = b"HTTP/1.1 503 Slow Down\r\nRetry-After: 0\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
                        let _ = client.write_all(busy).await;
                        // To the end of the request, or what it was told might be lost with the connection.
                        while client.read(&mut piece).await.is_ok_and(|read| read > 0) {}
                    }
                    number => {
                        let mut left = if number == 5 { 300 << 10 } else { 12 << 20 };
                        let _ = pass(client, server, |piece| {
                            let goes_on = piece.len() <= left;
                            left = left.saturating_sub(piece.len());
                            stumbles.fetch_add(usize::from(!goes_on), SeqCst);
                            goes_on
                        })
                        .await;
                    }
                }
            });
        }
    });
    (url, stumbles)
}

/// Stands before a server, and changes a bit of the first pack that goes there.
async fn flipping(server: &str) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (server, flips) = (server.trim_start_matches("http://").to_owned(), Arc::new(AtomicUsize::new(0)));
    let counted = flips.clone();
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let (server, flips, mut passed) = (server.clone(), counted.clone(), 0);
            tokio::spawn(pass(client, server, move |piece| {
                passed += piece.len();
                if passed > 1 << 20 && flips.load(SeqCst) == 0 {
                    flips.fetch_add(1, SeqCst);
                    piece[piece.len() / 2] ^= 1;
                }
                true
            }));
        }
    });
    (url, flips)
}

/// With s3s-fs alone, and of whole objects alone: moto believes every check sum, and both believe those of parts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bit_that_changes_on_its_way_costs_no_point() -> anyhow::Result<()> {
    let Some(server) = Server::strict(Kind::S3sFs)? else { return Ok(()) };
    let (url, flips) = flipping(&server.url).await;
    let target = target_of(&url, &server.access_key, &server.secret_key, "64 MiB").await;
    let mut disk = vec![0; SIZE as usize];
    let full: Vec<_> = (0..20).map(|number| (number, number)).collect();
    keep(&target, "one", None, &full, &mut disk).await;
    assert!(restored(&target, "one").await == disk);
    assert_eq!(flips.load(SeqCst), 1);
    Ok(())
}

async fn a_connection_that_breaks_and_a_store_that_is_busy_cost_no_point(kind: Kind) -> anyhow::Result<()> {
    let Some(server) = Server::strict(kind)? else { return Ok(()) };
    let (url, stumbles) = stumbling(&server.url).await;
    let target = target(&url, &server.access_key, &server.secret_key).await;
    let mut disk = vec![0; SIZE as usize];
    let full: Vec<_> = (0..40).map(|number| (number, number)).collect();
    keep(&target, "one", None, &full, &mut disk).await;
    assert!(restored(&target, "one").await == disk);
    assert!(stumbles.load(SeqCst) > 2);
    assert_eq!(target.passed().copied, 0, "no payload entered the plugin");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_not_granted_is_not_asked() -> anyhow::Result<()> {
    let bundled = vmferry_bundle::get("target-s3").unwrap();
    let package = Package::from_parts("bundled", bundled.manifest, bundled.component)?;
    let plugin = Sandbox::new(&Settings::default())?.load(&package).await?;
    let with = serde_json::json!({ "endpoint": "http://127.0.0.1:9", "bucket": "backup" });
    let refused = plugin.target(Instance { with, ..Instance::default() }).await.unwrap_err();
    assert!(
        matches!(&refused.failure, PluginFailure::Denied(text) if text.contains("grants.http = [\"http://127.0.0.1:9\"]")),
        "{refused}"
    );
    Ok(())
}

with_each_server!(async
    points_go_to_a_bucket_and_come_back_with_every_request_signed,
    a_wrong_key_is_told_with_what_to_correct,
    a_connection_that_breaks_and_a_store_that_is_busy_cost_no_point,
);
