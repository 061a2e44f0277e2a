//! Disks on an SR: chains, base copies, space, deltas.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on has failed its test")]

mod common;

use common::{Client, MIB, golden, vm_with_disks};
use serde_json::{Value as Json, json};
use xapi_sim::{DiskSpec, Sim, SimConfig, SrKind, VmSpec};

async fn start(config: SimConfig) -> (Sim, Client) {
    let sim = Sim::start(config).await.unwrap();
    let client = Client::login(&sim).await;
    (sim, client)
}

fn vdi_record(sr: &str, size: u64) -> Json {
    json!([{ "SR": sr, "virtual_size": size, "type": "user", "sharable": false, "read_only": false, "other_config": {} }])
}

#[tokio::test]
async fn sizes_are_rounded_up_and_bounded() {
    let (sim, client) = start(SimConfig::default()).await;
    let sr = client.by_uuid("SR", &sim.default_sr()).await;
    for (asked, given) in [(1, 2 * MIB), (2 * MIB, 2 * MIB), (2 * MIB + 1, 4 * MIB), (2040 << 30, 2040 << 30)] {
        let vdi = client.text("VDI.create", vdi_record(&sr, asked)).await;
        assert_eq!(client.call("VDI.get_virtual_size", json!([vdi])).await.unwrap(), given, "{asked}");
    }
    let error = client.call("VDI.create", vdi_record(&sr, (2040 << 30) + 1)).await.unwrap_err();
    assert_eq!(error[..2], ["SR_BACKEND_FAILURE_79", ""]);
    let vdi = client.text("VDI.create", vdi_record(&sr, 4 * MIB)).await;
    client.call("VDI.resize", json!([vdi, 6 * MIB - 1])).await.unwrap();
    assert_eq!(client.call("VDI.get_virtual_size", json!([vdi])).await.unwrap(), 6 * MIB);
    assert_eq!(client.call("VDI.resize", json!([vdi, MIB])).await.unwrap_err()[0], "SR_BACKEND_FAILURE_79");
    sim.stop().await;
}

#[tokio::test]
async fn a_volume_has_any_number_of_sectors_is_exported_rounded_up_and_is_no_base() {
    let (sim, client) = start(SimConfig { sr_kind: SrKind::Volumes, ..SimConfig::default() }).await;
    let sr = client.by_uuid("SR", &sim.default_sr()).await;
    for (asked, given) in [(1, 512), (5 * MIB + 512, 5 * MIB + 512), (5 * MIB + 513, 5 * MIB + 1024)] {
        let vdi = client.text("VDI.create", vdi_record(&sr, asked)).await;
        assert_eq!(client.call("VDI.get_virtual_size", json!([vdi])).await.unwrap(), given, "{asked}");
    }
    let (_, disks) = vm_with_disks(&sim, &[5 * MIB + 512]);
    sim.write(&disks[0], 5 * MIB, &[7; 512]);
    let live = client.by_uuid("VDI", &disks[0]).await;
    assert_eq!(client.call("VDI.enable_cbt", json!([live])).await.unwrap_err()[0], "SR_OPERATION_NOT_SUPPORTED");

    let snapshot = client.text("VDI.snapshot", json!([live])).await;
    let (body, status, _) = client.export(&format!("format=vhd&vdi={snapshot}")).await;
    let footer_size = u64::from_be_bytes(body[48..56].try_into().unwrap());
    assert_eq!((status.as_str(), footer_size), ("success", 6 * MIB));
    assert_eq!(body.len() as u64, 2048 + 512 + 512 + 2 * MIB + 512, "the last block alone holds something");
    let tail = &body[2048 + 512 + 512 + MIB as usize..][..1024];
    assert!(tail[..512] == [7; 512] && tail[512..] == [0; 512], "behind the end of the disk are zeroes");
    let (body, _, _) = client.export(&format!("vdi={snapshot}")).await;
    assert_eq!(body.len() as u64, 5 * MIB + 512, "format=raw sends what the disk has");
    let (_, status, error) = client.export(&format!("format=vhd&vdi={live}&base={snapshot}")).await;
    assert_eq!((status.as_str(), error[1].as_str()), ("failure", "base VDI is not a vhd"));

    // A stream's last block does not fit where nothing is rounded up.
    let (body, _, _) = client.export(&format!("format=vhd&vdi={snapshot}")).await;
    let (_, status, _) = client.import(&format!("vdi={}&format=vhd", disks[0]), &body).await;
    assert_eq!(status, "failure");
    sim.stop().await;
}

#[tokio::test]
async fn a_snapshot_makes_a_hidden_base_copy_and_the_disk_keeps_its_uuid() {
    let (sim, client) = start(SimConfig { hold_gc: true, ..SimConfig::default() }).await;
    let (_, disks) = vm_with_disks(&sim, &[4 * MIB]);
    sim.write(&disks[0], 0, b"old");
    let live = client.by_uuid("VDI", &disks[0]).await;
    let snapshot = client.text("VDI.snapshot", json!([live])).await;
    sim.write(&disks[0], 0, b"new");

    let record = client.call("VDI.get_record", json!([snapshot])).await.unwrap();
    assert_eq!((record["is_a_snapshot"].clone(), record["snapshot_of"].as_str()), (json!(true), Some(live.as_str())));
    let snapshot_uuid = record["uuid"].as_str().unwrap();
    assert_eq!((sim.read(snapshot_uuid, 0, 3), sim.read(&disks[0], 0, 3)), (b"old".to_vec(), b"new".to_vec()));

    let hidden: Vec<Json> = sim.records("VDI").into_iter().filter(|vdi| vdi["managed"] == false).collect();
    assert_eq!((hidden.len(), hidden[0]["name_label"].as_str()), (1, Some("base copy")));
    for uuid in [snapshot_uuid, &disks[0]] {
        assert_eq!(sim.record("VDI", uuid).unwrap()["sm_config"]["vhd-parent"], hidden[0]["uuid"]);
    }
    assert_eq!(client.call("VDI.destroy", json!([hidden[0]["$ref"]])).await.unwrap_err()[0], "VDI_NOT_MANAGED");
    assert_eq!((sim.object_counts()["VDI"], sim.object_counts()["VDI base copies"]), (2, 1));

    // Deleting only leaves work for the collector; collecting keeps what the disk holds.
    client.call("VDI.destroy", json!([snapshot])).await.unwrap();
    assert_eq!(sim.object_counts()["VDI base copies"], 1);
    let before = sim.sha256(&disks[0]);
    sim.collect_garbage();
    assert_eq!((sim.object_counts()["VDI base copies"], sim.sha256(&disks[0])), (0, before));
    assert!(sim.record("VDI", &disks[0]).unwrap()["sm_config"].get("vhd-parent").is_none());
    sim.stop().await;
}

#[tokio::test]
async fn a_chain_has_thirty_links_at_most() {
    let (sim, client) = start(SimConfig { hold_gc: true, ..SimConfig::default() }).await;
    let (_, disks) = vm_with_disks(&sim, &[2 * MIB]);
    let live = client.by_uuid("VDI", &disks[0]).await;
    for _ in 0..29 {
        client.call("VDI.snapshot", json!([live])).await.unwrap();
    }
    let error = client.call("VDI.snapshot", json!([live])).await.unwrap_err();
    assert_eq!(error[0], "SR_BACKEND_FAILURE_109");
    assert_eq!(client.call("VDI.clone", json!([live])).await.unwrap_err()[0], "SR_BACKEND_FAILURE_109");
    let snapshots = client.call("VDI.get_snapshots", json!([live])).await.unwrap();
    for snapshot in snapshots.as_array().unwrap() {
        client.call("VDI.destroy", json!([snapshot])).await.unwrap();
    }
    sim.collect_garbage();
    client.call("VDI.snapshot", json!([live])).await.unwrap();
    sim.stop().await;
}

#[tokio::test]
async fn a_full_sr_refuses_with_code_44_and_keeps_what_was_written() {
    let (sim, client) = start(SimConfig { sr_size: 4 * MIB, ..SimConfig::default() }).await;
    let (_, disks) = vm_with_disks(&sim, &[16 * MIB]);
    let (_, status, error) = client.import(&format!("format=vhd&vdi={}", disks[0]), &golden("full.out")).await;
    assert_eq!((status.as_str(), error[0].as_str()), ("failure", "SR_BACKEND_FAILURE_44"), "three blocks into two");
    assert!(sim.read(&disks[0], 0, 6 * MIB as usize) == golden("child.raw")[..6 * MIB as usize]);
    let sr = client.by_uuid("SR", &sim.default_sr()).await;
    assert_eq!(client.call("VDI.create", vdi_record(&sr, MIB)).await.unwrap_err()[0], "SR_BACKEND_FAILURE_44");
    let live = client.by_uuid("VDI", &disks[0]).await;
    assert_eq!(client.call("VDI.clone", json!([live])).await.unwrap_err()[0], "SR_BACKEND_FAILURE_44");
    let record = sim.record("SR", &sim.default_sr()).unwrap();
    assert_eq!(record["physical_utilisation"], record["physical_size"]);
    client.call("VDI.destroy", json!([live])).await.unwrap();
    client.call("VDI.create", vdi_record(&sr, MIB)).await.unwrap();
    sim.stop().await;
}

#[tokio::test]
async fn a_snapshot_of_several_disks_is_taken_whole_or_not_at_all() {
    let (sim, client) = start(SimConfig::default()).await;
    let small = sim.add_sr("small", 2 * MIB);
    let disks = vec![
        DiskSpec { size: 4 * MIB, ..DiskSpec::default() },
        DiskSpec { size: 4 * MIB, sr: Some(small), ..DiskSpec::default() },
    ];
    let vm = sim.add_vm(VmSpec { disks, ..VmSpec::default() });
    sim.write(&sim.vm_disks(&vm)[1], 0, &[1]);
    let before = sim.object_counts();
    let reference = client.by_uuid("VM", &vm).await;
    assert_eq!(client.call("VM.snapshot", json!([reference, "s"])).await.unwrap_err()[0], "SR_BACKEND_FAILURE_44");
    assert_eq!(sim.object_counts(), before);
    sim.stop().await;
}

/// The numbers of the 2 MiB blocks in a VHD stream.
fn blocks(stream: &[u8]) -> Vec<usize> {
    let entries = u32::from_be_bytes(stream[540..544].try_into().unwrap()) as usize;
    let entry = |block: usize| &stream[2048 + 4 * block..2052 + 4 * block];
    (0..entries).filter(|block| entry(*block) != [0xff; 4]).collect()
}

#[tokio::test]
async fn deltas_survive_coalescing_between_two_exports() {
    let (sim, client) = start(SimConfig::default()).await;
    let (_, disks) = vm_with_disks(&sim, &[16 * MIB]);
    let live = client.by_uuid("VDI", &disks[0]).await;
    sim.write(&disks[0], 0, &[1]);
    let mut snapshots = vec![client.text("VDI.snapshot", json!([live])).await];
    for block in 1..=3u64 {
        sim.write(&disks[0], block * 2 * MIB, &[block as u8]);
        snapshots.push(client.text("VDI.snapshot", json!([live])).await);
    }
    // The first goes: what it alone held on to is folded away.
    client.call("VDI.destroy", json!([snapshots[0]])).await.unwrap();
    let export = async |vdi: &str, base: &str| {
        let (body, status, _) = client.export(&format!("format=vhd&vdi={vdi}&base={base}")).await;
        assert_eq!(status, "success");
        blocks(&body)
    };
    assert_eq!(export(&snapshots[3], &snapshots[1]).await, [2, 3]);
    assert_eq!(export(&snapshots[3], &snapshots[2]).await, [3]);
    assert_eq!(export(&snapshots[2], &snapshots[3]).await, [3], "backwards as well");
    assert_eq!(export(&live, &snapshots[3]).await, [0usize; 0], "nothing written since");
    sim.write(&disks[0], 7 * 2 * MIB, &[0]);
    assert_eq!(export(&live, &snapshots[3]).await, [7], "zeroes that are written count");
    let (full, _, _) = client.export(&format!("format=vhd&vdi={}", disks[0])).await;
    assert_eq!(blocks(&full), [0, 1, 2, 3, 7]);
    sim.stop().await;
}

#[tokio::test]
async fn sizes_in_records_are_as_of_the_last_scan() {
    let (sim, client) = start(SimConfig::default()).await;
    let (_, disks) = vm_with_disks(&sim, &[16 * MIB]);
    sim.write(&disks[0], 0, &[1]);
    let used = || sim.record("VDI", &disks[0]).unwrap()["physical_utilisation"].clone();
    assert_eq!(used(), 0, "stale");
    let sr = client.by_uuid("SR", &sim.default_sr()).await;
    client.call("SR.scan", json!([sr])).await.unwrap();
    assert_eq!(used(), 2 * MIB);
    assert_eq!(sim.record("SR", &sim.default_sr()).unwrap()["virtual_allocation"], 16 * MIB);
    sim.stop().await;
}

#[tokio::test]
async fn a_copy_has_no_chain() {
    let (sim, client) = start(SimConfig::default()).await;
    let (_, disks) = vm_with_disks(&sim, &[4 * MIB]);
    sim.write(&disks[0], 5, b"content");
    let live = client.by_uuid("VDI", &disks[0]).await;
    let snapshot = client.text("VDI.snapshot", json!([live])).await;
    let other = sim.add_sr("other", 1 << 30);
    let sr = client.by_uuid("SR", &other).await;
    let copy = client.text("VDI.copy", json!([snapshot, sr])).await;
    let record = client.call("VDI.get_record", json!([copy])).await.unwrap();
    assert_eq!(sim.sha256(record["uuid"].as_str().unwrap()), sim.sha256(&disks[0]));
    assert_eq!((record["SR"].as_str(), record["sm_config"].clone()), (Some(sr.as_str()), json!({})));
    sim.stop().await;
}
