//! Changed block tracking: what is told, what is merged, what is refused, and how it gets lost.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on has failed its test")]

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine as _;
use common::{Client, MIB, golden, vm_with_disks};
use serde_json::{Value as Json, json};
use xapi_sim::{DiskSpec, Sim, SimConfig, SrKind, SrSpec, VmSpec};

const GRANULE: u64 = 64 << 10;

async fn start(config: SimConfig) -> (Sim, Client) {
    let sim = Sim::start(config).await.unwrap();
    let client = Client::login(&sim).await;
    (sim, client)
}

/// A tracked disk: (uuid, reference).
async fn tracked(sim: &Sim, client: &Client, size: u64) -> (String, String) {
    let (_, mut disks) = vm_with_disks(sim, &[size]);
    let vdi = client.by_uuid("VDI", &disks[0]).await;
    client.call("VDI.enable_cbt", json!([vdi])).await.unwrap();
    (disks.remove(0), vdi)
}

async fn changed(client: &Client, from: &str, to: &str) -> Result<Vec<u8>, Vec<String>> {
    let text = client.call("VDI.list_changed_blocks", json!([from, to])).await?;
    Ok(base64::engine::general_purpose::STANDARD.decode(text.as_str().unwrap()).unwrap())
}

async fn cbt_enabled(client: &Client, vdi: &str) -> Json {
    client.call("VDI.get_cbt_enabled", json!([vdi])).await.unwrap()
}

fn unrelated() -> Vec<String> {
    ["SR_BACKEND_FAILURE_460", "", "Source and target VDI are unrelated", ""].map(str::to_owned).to_vec()
}

#[tokio::test]
async fn a_bit_is_64_kib_and_the_highest_bit_comes_first() {
    let (sim, client) = start(SimConfig::default()).await;
    let (disk, live) = tracked(&sim, &client, 4 * MIB).await;
    sim.write(&disk, 63 * GRANULE, &[1]);
    let older = client.text("VDI.snapshot", json!([live])).await;
    sim.write(&disk, GRANULE - 1, &[1, 1]);
    sim.write(&disk, 9 * GRANULE, &[0]);
    let newer = client.text("VDI.snapshot", json!([live])).await;
    sim.write(&disk, 40 * GRANULE, &[1]);

    let expected = [0b1100_0000, 0b0100_0000, 0, 0, 0, 0, 0, 0];
    assert_eq!(changed(&client, &older, &newer).await.unwrap(), expected, "also where zeroes were written over zeroes");
    assert_eq!(changed(&client, &newer, &live).await.unwrap(), [0, 0, 0, 0, 0, 0x80, 0, 0], "the live disk, detached");
    for (from, to) in [(&newer, &older), (&older, &older)] {
        assert_eq!(changed(&client, from, to).await.unwrap_err(), unrelated());
    }
    assert_eq!((cbt_enabled(&client, &older).await, cbt_enabled(&client, &live).await), (json!(true), json!(true)));
    sim.stop().await;
}

#[tokio::test]
async fn an_import_is_tracked_by_the_sectors_that_it_writes() {
    let (sim, client) = start(SimConfig::default()).await;
    let (disk, live) = tracked(&sim, &client, 16 * MIB).await;
    let before = client.text("VDI.snapshot", json!([live])).await;
    // One sector each in the blocks 0 and 4: 5 and 20000.
    let (_, status, _) = client.import(&format!("format=vhd&vdi={disk}"), &golden("child.vhd")).await;
    assert_eq!(status, "success");
    let bits = changed(&client, &before, &live).await.unwrap();
    let set: Vec<usize> = (0..bits.len() * 8).filter(|bit| bits[bit / 8] & (0x80 >> (bit % 8)) != 0).collect();
    assert_eq!(set, [5 * 512 / GRANULE as usize, 20000 * 512 / GRANULE as usize]);
    sim.stop().await;
}

/// A small generator of numbers that are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

#[tokio::test]
async fn any_two_snapshots_compare_right_whatever_became_of_those_between() {
    const SIZE: u64 = 32 * MIB;
    let (sim, client) = start(SimConfig::default()).await;
    let (disk, live) = tracked(&sim, &client, SIZE).await;
    let mut numbers = Numbers(7);
    // What the tracked disk did: the granules written before each snapshot, and the snapshots that are left.
    let mut written: Vec<BTreeSet<u64>> = Vec::new();
    let mut kept: Vec<(usize, String)> = Vec::new();
    for _ in 0..12 {
        let mut touched = BTreeSet::new();
        for _ in 0..numbers.below(6) {
            let offset = numbers.below(SIZE - 200_000);
            let length = numbers.below(200_000);
            sim.write(&disk, offset, &vec![7; length as usize]);
            touched.extend(
                (offset..offset + length).step_by(512).chain([offset + length.max(1) - 1]).map(|at| at / GRANULE),
            );
            if length == 0 {
                touched.remove(&(offset / GRANULE));
            }
        }
        written.push(touched);
        kept.push((written.len() - 1, client.text("VDI.snapshot", json!([live])).await));
        match numbers.below(3) {
            0 if kept.len() > 2 => {
                let (_, gone) = kept.remove(numbers.below(kept.len() as u64) as usize);
                client.call("VDI.destroy", json!([gone])).await.unwrap();
            }
            1 => {
                let (_, emptied) = &kept[numbers.below(kept.len() as u64) as usize];
                client.call("VDI.data_destroy", json!([emptied])).await.unwrap();
            }
            _ => {}
        }
    }
    let mut pairs = 0;
    for (at, (older, from)) in kept.iter().enumerate() {
        for (newer, to) in &kept[at + 1..] {
            let bits = changed(&client, from, to).await.unwrap();
            assert_eq!(bits.len() as u64, SIZE / GRANULE / 8);
            let told: BTreeSet<u64> =
                (0..SIZE / GRANULE).filter(|bit| bits[(bit / 8) as usize] & (0x80 >> (bit % 8)) != 0).collect();
            let expected: BTreeSet<u64> = written[older + 1..=*newer].iter().flatten().copied().collect();
            assert_eq!(told, expected, "{older} to {newer}");
            pairs += 1;
        }
    }
    assert!(pairs > 10, "{pairs} pairs say little");
    sim.stop().await;
}

#[tokio::test]
async fn a_disk_that_grew_shows_only_what_was_written() {
    let (sim, client) = start(SimConfig::default()).await;
    let (disk, live) = tracked(&sim, &client, 2 * MIB).await;
    let first = client.text("VDI.snapshot", json!([live])).await;
    sim.write(&disk, 0, &[1]);
    let second = client.text("VDI.snapshot", json!([live])).await;
    client.call("VDI.resize", json!([live, 4 * MIB])).await.unwrap();
    sim.write(&disk, 4 * MIB - 1, &[1]);
    let third = client.text("VDI.snapshot", json!([live])).await;
    assert_eq!(changed(&client, &first, &second).await.unwrap(), [0x80, 0, 0, 0]);
    assert_eq!(changed(&client, &first, &third).await.unwrap(), [0x80, 0, 0, 0, 0, 0, 0, 1]);
    sim.stop().await;
}

#[tokio::test]
async fn what_a_host_does_not_track_it_says_so() {
    let (sim, client) = start(SimConfig::default()).await;
    let untracked =
        sim.add_sr_with(SrSpec { name: "u".into(), size: 1 << 30, kind: SrKind::Untracked, ..SrSpec::default() });
    let disks = [(Some(untracked.clone()), None), (None, Some("raw".to_owned()))].map(|(sr, image_format)| DiskSpec {
        size: 2 * MIB,
        sr,
        image_format,
        ..DiskSpec::default()
    });
    let vm = sim.add_vm(VmSpec { disks: disks.to_vec(), ..VmSpec::default() });
    let disks = sim.vm_disks(&vm);
    let error = async |method: &str, params: Json| client.call(method, params).await.unwrap_err();

    let vdi = client.by_uuid("VDI", &disks[0]).await;
    let sr = client.by_uuid("SR", &untracked).await;
    for method in ["VDI.enable_cbt", "VDI.disable_cbt"] {
        assert_eq!(error(method, json!([vdi])).await, ["SR_OPERATION_NOT_SUPPORTED", &sr]);
    }
    let raw = client.by_uuid("VDI", &disks[1]).await;
    assert_eq!(error("VDI.enable_cbt", json!([raw])).await[0], "SR_BACKEND_FAILURE_66");

    let (_, live) = tracked(&sim, &client, 2 * MIB).await;
    client.call("VDI.enable_cbt", json!([live])).await.unwrap();
    let snapshot = client.text("VDI.snapshot", json!([live])).await;
    assert_eq!(error("VDI.enable_cbt", json!([snapshot])).await[0], "OPERATION_NOT_ALLOWED");
    assert_eq!(error("VDI.disable_cbt", json!([snapshot])).await[0], "OPERATION_NOT_ALLOWED");
    assert_eq!(error("VDI.set_on_boot", json!([live, "reset"])).await, ["VDI_CBT_ENABLED", &live]);
    assert_eq!(error("VDI.data_destroy", json!([live])).await[0], "OPERATION_NOT_ALLOWED");
    let clone = client.text("VDI.clone", json!([snapshot])).await;
    assert_eq!(cbt_enabled(&client, &clone).await, false);
    let untracked = client.text("VDI.snapshot", json!([clone])).await;
    assert_eq!(error("VDI.data_destroy", json!([untracked])).await, ["VDI_NO_CBT_METADATA", &untracked]);
    assert_eq!(changed(&client, &untracked, &clone).await.unwrap_err(), unrelated());

    client.call("VDI.set_on_boot", json!([clone, "reset"])).await.unwrap();
    assert_eq!(error("VDI.enable_cbt", json!([clone])).await[0], "VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION");
    sim.stop().await;

    let (sim, client) = start(SimConfig { restrict_cbt: true, ..SimConfig::default() }).await;
    let (_, disks) = vm_with_disks(&sim, &[2 * MIB]);
    let vdi = client.by_uuid("VDI", &disks[0]).await;
    let refused = client.call("VDI.enable_cbt", json!([vdi])).await.unwrap_err();
    assert_eq!(refused, ["LICENCE_RESTRICTION", "CBT"]);
    sim.stop().await;
}

#[tokio::test]
async fn a_disk_in_use_is_not_compared() {
    let (sim, client) = start(SimConfig::default()).await;
    let disks = vec![DiskSpec { size: 2 * MIB, ..DiskSpec::default() }];
    let vm = sim.add_vm(VmSpec { disks, running: true, ..VmSpec::default() });
    let live = client.by_uuid("VDI", &sim.vm_disks(&vm)[0]).await;
    client.call("VDI.enable_cbt", json!([live])).await.unwrap();
    let vm = client.by_uuid("VM", &vm).await;
    let mut snapshots = Vec::new();
    for name in ["a", "b"] {
        client.call("VM.snapshot", json!([vm, name])).await.unwrap();
        let all = client.call("VDI.get_snapshots", json!([live])).await.unwrap();
        let new = all.as_array().unwrap().iter().map(|vdi| vdi.as_str().unwrap().to_owned());
        snapshots.extend(new.filter(|vdi| !snapshots.contains(vdi)).collect::<Vec<_>>());
    }
    assert_eq!(changed(&client, &snapshots[0], &live).await.unwrap_err(), ["VDI_IN_USE", &live, "list_changed_blocks"]);
    assert_eq!(
        changed(&client, &snapshots[0], &snapshots[1]).await.unwrap(),
        [0; 4],
        "the VBDs of snapshots do not count"
    );
    sim.stop().await;
}

#[tokio::test]
async fn data_destroy_waits_for_the_vbds_and_leaves_the_log() {
    let patience = Duration::from_millis(100);
    let (sim, client) = start(SimConfig { data_destroy_patience: patience, ..SimConfig::default() }).await;
    let (vm, disks) = vm_with_disks(&sim, &[4 * MIB]);
    let live = client.by_uuid("VDI", &disks[0]).await;
    client.call("VDI.enable_cbt", json!([live])).await.unwrap();
    sim.write(&disks[0], 0, &[1]);
    let vm = client.by_uuid("VM", &vm).await;
    let snapshot = client.text("VM.snapshot", json!([vm, "s"])).await;
    let frozen = client.call("VDI.get_snapshots", json!([live])).await.unwrap()[0].as_str().unwrap().to_owned();

    let started = tokio::time::Instant::now();
    let error = client.call("VDI.data_destroy", json!([frozen])).await.unwrap_err();
    assert_eq!(error, ["VDI_IN_USE", &frozen, "data_destroy"]);
    assert!(started.elapsed() >= patience);
    client.call("VM.destroy", json!([snapshot])).await.unwrap();
    for _ in 0..2 {
        client.call("VDI.data_destroy", json!([frozen])).await.unwrap();
    }
    let record = client.call("VDI.get_record", json!([frozen])).await.unwrap();
    assert_eq!(
        (&record["type"], &record["cbt_enabled"], &record["managed"]),
        (&json!("cbt_metadata"), &json!(true), &json!(true))
    );
    assert_eq!(record["physical_utilisation"], 8, "one bit for each 64 KiB");
    assert!(!sim.object_counts().contains_key("VDI base copies") || sim.object_counts()["VDI base copies"] == 0);

    let incompatible = vec!["VDI_INCOMPATIBLE_TYPE".to_owned(), frozen.clone(), "cbt_metadata".to_owned()];
    for (method, more) in
        [("snapshot", json!({})), ("clone", json!({})), ("copy", json!(sim.default_sr())), ("resize", json!(8 * MIB))]
    {
        let error = client.call(&format!("VDI.{method}"), json!([frozen, more])).await.unwrap_err();
        assert_eq!(error, incompatible, "{method}");
    }
    for method in ["enable_cbt", "disable_cbt", "get_nbd_info"] {
        assert_eq!(client.call(&format!("VDI.{method}"), json!([frozen])).await.unwrap_err(), incompatible, "{method}");
    }
    let (_, status, error) = client.export(&format!("format=vhd&vdi={frozen}")).await;
    assert_eq!((status.as_str(), error), ("failure", incompatible));

    sim.write(&disks[0], 3 * MIB, &[1]);
    assert_eq!(changed(&client, &frozen, &live).await.unwrap(), [0, 0, 0, 0, 0, 0, 0x80, 0]);
    client.call("VDI.destroy", json!([frozen])).await.unwrap();
    sim.stop().await;
}

#[tokio::test]
async fn data_destroy_goes_on_as_soon_as_the_last_vbd_is_gone() {
    // A test that waited for the patience to end would not end in time.
    let (sim, client) =
        start(SimConfig { data_destroy_patience: Duration::from_secs(600), ..SimConfig::default() }).await;
    let (vm, disks) = vm_with_disks(&sim, &[2 * MIB]);
    let live = client.by_uuid("VDI", &disks[0]).await;
    client.call("VDI.enable_cbt", json!([live])).await.unwrap();
    let vm = client.by_uuid("VM", &vm).await;
    let snapshot = client.text("VM.snapshot", json!([vm, "s"])).await;
    let frozen = client.call("VDI.get_snapshots", json!([live])).await.unwrap()[0].as_str().unwrap().to_owned();
    for method in ["Async.VDI.data_destroy", "VDI.data_destroy"] {
        if method.starts_with("Async") {
            let task = client.text(method, json!([frozen])).await;
            assert_eq!(client.outcome(&task).await.0, "pending");
            client.call("VM.destroy", json!([snapshot])).await.unwrap();
            assert_eq!(client.wait(&task).await.0, "success");
        } else {
            client.call(method, json!([frozen])).await.unwrap();
        }
    }
    assert_eq!(client.text("VDI.get_type", json!([frozen])).await, "cbt_metadata");
    sim.stop().await;
}

#[tokio::test]
async fn a_broken_log_turns_tracking_off_and_an_alert_says_so() {
    let (sim, client) = start(SimConfig::default()).await;
    let (disk, live) = tracked(&sim, &client, 2 * MIB).await;
    let mut snapshots = Vec::new();
    for offset in 0..2 {
        sim.write(&disk, offset * GRANULE, &[1]);
        snapshots.push(client.text("VDI.snapshot", json!([live])).await);
    }
    sim.break_cbt(&disk);
    assert_eq!(cbt_enabled(&client, &live).await, false);
    let alert = &sim.records("message")[0];
    assert_eq!((&alert["name"], &alert["obj_uuid"]), (&json!("VDI_CBT_METADATA_INCONSISTENT"), &json!(disk)));
    assert_eq!(changed(&client, &snapshots[0], &snapshots[1]).await.unwrap(), [0x40, 0, 0, 0], "the old ones stay");
    assert_eq!(changed(&client, &snapshots[1], &live).await.unwrap_err(), unrelated());

    let blind = client.text("VDI.snapshot", json!([live])).await;
    assert_eq!(cbt_enabled(&client, &blind).await, false);
    client.call("VDI.enable_cbt", json!([live])).await.unwrap();
    let base = client.text("VDI.snapshot", json!([live])).await;
    for older in [&snapshots[1], &blind] {
        assert_eq!(
            changed(&client, older, &base).await.unwrap_err(),
            unrelated(),
            "the first has nothing to compare to"
        );
    }
    client.call("VDI.disable_cbt", json!([live])).await.unwrap();
    client.call("VDI.disable_cbt", json!([live])).await.unwrap();
    sim.stop().await;
}
