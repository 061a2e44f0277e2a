//! An orchestrator that replicates one VM: `cargo run -p vmferry-engine --example embed -- SOURCE_URL VM_UUID TARGET_URL SR_UUID`.
//!
//! URLs carry percent-encoded credentials: `https://root:secret%23@xen1.company.tld`.

#![allow(clippy::print_stdout, reason = "an example prints")]

use std::collections::BTreeMap;
use std::sync::Arc;
use vmferry_engine::{
    Engine, Integrity, Job, JobIds, Policies, Reading, RunOptions, Selection, Silent, SnapshotMode, Target, Tuning,
};
use vmferry_store::Store;
use vmferry_xapi::Endpoint;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [source, vm, target, sr] = arguments.as_slice() else {
        anyhow::bail!("usage: embed SOURCE_URL VM_UUID TARGET_URL SR_UUID");
    };
    let endpoints = BTreeMap::from([
        ("source".to_owned(), Endpoint::parse(source)?),
        ("target".to_owned(), Endpoint::parse(target)?),
    ]);
    let job = Job {
        name: "embedded".to_owned(),
        tenant: "default".to_owned(),
        select: Selection { pool: "source".to_owned(), vms: vec![vm.clone()], ..Selection::default() },
        stores: Vec::new(),
        targets: vec![Target {
            name: "target".to_owned(),
            pool: "target".to_owned(),
            srs: vec![sr.clone()],
            networks: BTreeMap::new(),
            required: true,
            throttles: Vec::new(),
        }],
        ids: JobIds::derived("default", "embedded"),
        integrity: Integrity::Digest,
        reading: Reading::default(),
        snapshot: SnapshotMode::default(),
        throttles: Vec::new(),
        tuning: Tuning::default(),
    };
    let store = Arc::new(Store::open(&std::env::temp_dir().join("vmferry-embedded")).await?);
    let engine = Engine::new(endpoints, store.clone(), store.digest_dir());
    let report = engine.run(&job, &Policies::default(), &RunOptions::default(), Arc::new(Silent)).await;
    engine.close().await;
    anyhow::ensure!(report.error.is_none(), "{:?}", report.error);
    for vm in report.vms {
        println!("{} {}", vm.name, vm.outcome);
    }
    Ok(())
}
