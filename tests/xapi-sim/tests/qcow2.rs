//! qcow2 exports over the wire; `tests/peers` has them read by qemu.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on has failed its test")]

mod common;

use common::{Client, MIB};
use serde_json::json;
use xapi_sim::{DiskSpec, Sim, SimConfig, SrKind, SrSpec, VmSpec};

const CLUSTER: u64 = 64 << 10;
const TIB: u64 = 1 << 40;

/// A halted VM with a disk of this size and format, and a client.
async fn setup(config: SimConfig, size: u64, format: &str) -> (Sim, Client, String, String) {
    let sim = Sim::start(config).await.unwrap();
    let sr = sim.add_sr_with(SrSpec { name: "large".into(), size: TIB, kind: SrKind::Nfs, ..SrSpec::default() });
    let disk = DiskSpec { size, sr: Some(sr), image_format: Some(format.into()), ..DiskSpec::default() };
    let vm = sim.add_vm(VmSpec { name: "vm".into(), disks: vec![disk], ..VmSpec::default() });
    let disk = sim.vm_disks(&vm).remove(0);
    let client = Client::login(&sim).await;
    (sim, client, vm, disk)
}

/// Clusters of data in a stream whose tables are short: it has one refcount block, and an L1 table of one cluster.
fn data_clusters(stream: &[u8], l2_tables: u64) -> u64 {
    assert_eq!(&stream[..8], b"QFI\xfb\0\0\0\x03");
    stream.len() as u64 / CLUSTER - (1 + 2 + 1 + l2_tables)
}

#[tokio::test]
async fn a_disk_of_3_tib_takes_its_tables_and_its_data() {
    let (sim, client, _, disk) = setup(SimConfig::default(), 3 * TIB, "qcow2").await;
    for place in [0, CLUSTER, TIB, 3 * TIB - 1] {
        sim.write(&disk, place, &[1]);
    }
    let task = client.task().await;
    let target = format!("/export_raw_vdi?format=QCOW2&vdi={disk}&session_id={}&task_id={task}", client.session);
    let answer = client.get(&target).await;
    assert_eq!((answer.status(), answer.header("content-type")), ("200", Some("application/x-qemu-disk")));
    assert!(answer.header("content-disposition").unwrap().contains(&format!("{disk}.qcow2")));
    assert_eq!(client.wait(&task).await.0, "success");
    assert_eq!(data_clusters(&answer.body, 3), 4);
    assert_eq!(answer.body[24..32], (3 * TIB).to_be_bytes());
    let (_, status, error) = client.export(&format!("format=vhd&vdi={disk}")).await;
    assert_eq!((status.as_str(), error[0].as_str()), ("failure", "VDI_TOO_LARGE"));
    sim.stop().await;
}

#[tokio::test]
async fn against_a_base_there_is_what_differs_in_content_or_allocation() {
    for (format, expected) in [("qcow2", 3), ("vhd", 2)] {
        let (sim, client, vm, disk) = setup(SimConfig::default(), 600 * MIB, format).await;
        for place in [0, MIB, 2 * MIB] {
            sim.write(&disk, place, &[1]);
        }
        let vm = client.by_uuid("VM", &vm).await;
        let snapshot = client.text("VM.snapshot", json!([vm, "s"])).await;
        let snapshot = sim.vm_disks(&client.text("VM.get_uuid", json!([snapshot])).await).remove(0);
        // Written again as it was, changed, changed to zeroes, and zeroes where nothing was: allocated, if that can be told.
        sim.write(&disk, 0, &[1]);
        sim.write(&disk, MIB, &[2]);
        sim.write(&disk, 2 * MIB, &[0]);
        sim.write(&disk, 3 * MIB, &[0]);
        for (vdi, base) in [(&disk, &snapshot), (&snapshot, &disk)] {
            let (body, status, _) = client.export(&format!("format=qcow2&vdi={vdi}&base={base}")).await;
            assert_eq!((status.as_str(), data_clusters(&body, 1)), ("success", expected), "{format}");
        }
        let (body, _, _) = client.export(&format!("format=qcow2&vdi={disk}&base={disk}")).await;
        assert_eq!(data_clusters(&body, 0), 0, "{format}");
        let (body, _, _) = client.export(&format!("format=qcow2&vdi={disk}")).await;
        assert_eq!(data_clusters(&body, 1), if format == "qcow2" { 4 } else { 2 }, "{format}: zeroes are not data");
        sim.stop().await;
    }
}

#[tokio::test]
async fn an_older_host_does_not_know_the_format() {
    let config = SimConfig { qcow2_streams: false, ..SimConfig::default() };
    let (sim, client, _, disk) = setup(config, 3 * TIB, "qcow2").await;
    let task = client.task().await;
    let target = format!("/export_raw_vdi?format=qcow2&vdi={disk}&session_id={}&task_id={task}", client.session);
    assert_eq!(client.get(&target).await.status(), "404");
    assert_eq!(client.wait(&task).await.1[0], "INTERNAL_ERROR");
    sim.stop().await;
}
