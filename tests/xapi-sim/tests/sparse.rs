//! Size costs nothing, content does. In a process of its own, because it looks at the memory of the whole process.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on has failed its test")]

mod common;

use std::time::{Duration, Instant};

use common::{Client, MIB, vm_with_disks};
use serde_json::json;
use xapi_sim::{Sim, SimConfig};

#[tokio::test]
async fn a_snapshot_of_a_huge_sparse_disk_costs_nothing() {
    let sim = Sim::start(SimConfig::default()).await.unwrap();
    let client = Client::login(&sim).await;
    let (vm, disks) = vm_with_disks(&sim, &[1 << 40]);
    for gibibyte in 0..64u64 {
        sim.write(&disks[0], gibibyte << 34, &[1]);
    }
    let reference = client.by_uuid("VM", &vm).await;
    let memory = resident_bytes();
    let started = Instant::now();
    for _ in 0..20 {
        client.call("VM.snapshot", json!([reference, "s"])).await.unwrap();
    }
    // Generous, for a busy machine; copying a tebibyte or a table of its blocks would miss both by far.
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let grown = resident_bytes().saturating_sub(memory);
    assert!(grown < 32 * MIB, "{grown} bytes");
    let (body, status, _) = client.export(&format!("format=vhd&vdi={}", disks[0])).await;
    let (table, blocks) = ((1 << 40) / (2 * MIB) * 4, 64 * (512 + 2 * MIB));
    assert_eq!((body.len() as u64, status.as_str()), (2048 + table + blocks + 512, "success"));
    sim.stop().await;
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}
