//! Streams written by the real VHD library go in and come out.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on has failed its test")]

mod common;

use common::{Client, MIB, golden, vm_with_disks};
use serde_json::json;
use xapi_sim::{Sim, SimConfig};

const SIZE: u64 = 16 * MIB;

async fn setup() -> (Sim, Client) {
    let sim = Sim::start(SimConfig::default()).await.unwrap();
    let client = Client::login(&sim).await;
    (sim, client)
}

async fn import(sim: &Sim, client: &Client, disk: &str, stream: &str) {
    let (answer, status, error) = client.import(&format!("vdi={disk}&format=vhd"), &golden(stream)).await;
    assert_eq!((answer.status(), status.as_str(), error), ("200", "success", vec![]), "{stream}");
    assert_eq!(sim.object_counts()["VBD"], 1, "{stream}: the control domain let go of the disk");
}

/// The stream applied onto the content of one raw disk gives the other.
async fn check_import(stream: &str, onto: Option<&str>, gives: &str) {
    let (sim, client) = setup().await;
    let (_, disks) = vm_with_disks(&sim, &[SIZE]);
    if let Some(onto) = onto {
        sim.write(&disks[0], 0, &golden(onto));
    }
    import(&sim, &client, &disks[0], stream).await;
    assert!(sim.read(&disks[0], 0, SIZE as usize) == golden(gives), "{stream} onto {onto:?} gives {gives}");
    sim.stop().await;
}

#[tokio::test]
async fn every_stream_imports_to_the_right_disk() {
    check_import("base.vhd", None, "base.raw").await;
    check_import("child.vhd", Some("base.raw"), "child.raw").await;
    check_import("full.out", None, "child.raw").await;
    check_import("delta.out", Some("base.raw"), "child.raw").await;
    check_import("hyb.out", Some("base.raw"), "child.raw").await;
    check_import("sd.out", Some("sib.raw"), "child.raw").await;
    check_import("back.out", Some("child.raw"), "base.raw").await;
    check_import("same.out", Some("child.raw"), "child.raw").await;
    check_import("q.vhd", None, "child.raw").await;
    check_import("rv.out", None, "child.raw").await;
}

#[tokio::test]
async fn bitmaps_are_honoured_sector_by_sector() {
    // child.vhd has one bit set per block: all else must stay what it was.
    let (sim, client) = setup().await;
    let (_, disks) = vm_with_disks(&sim, &[SIZE]);
    sim.write(&disks[0], 0, &vec![0xaa; SIZE as usize]);
    import(&sim, &client, &disks[0], "child.vhd").await;
    let mut expected = vec![0xaa; SIZE as usize];
    expected[5 * 512..6 * 512].fill(0x33);
    expected[20000 * 512..20001 * 512].fill(0x44);
    assert!(sim.read(&disks[0], 0, SIZE as usize) == expected);
    sim.stop().await;
}

/// Writes where the raw disks differ, as a guest would.
fn write_sectors(sim: &Sim, disk: &str, to: &str) {
    let wanted = golden(to);
    let present = sim.read(disk, 0, SIZE as usize);
    for (sector, (wanted, present)) in wanted.chunks(512).zip(present.chunks(512)).enumerate() {
        if wanted != present {
            sim.write(disk, sector as u64 * 512, wanted);
        }
    }
}

/// Footer uuid and checksums are different in every export; of a parent, the identity of its file is too.
fn without_identity(mut stream: Vec<u8>) -> Vec<u8> {
    let end = stream.len() - 512;
    for footer in [0, end] {
        stream[footer + 64..footer + 84].fill(0);
    }
    let header = 512;
    stream[header + 36..header + 576].fill(0); // checksum, parent uuid, time and name
    stream[header + 584..header + 588].fill(0); // length of the locator
    stream
}

async fn check_export(client: &Client, vdi: &str, base: Option<&str>, stream: &str) {
    let base = base.map(|base| format!("&base={base}")).unwrap_or_default();
    let (body, status, error) = client.export(&format!("format=vhd&vdi={vdi}{base}")).await;
    assert_eq!((status.as_str(), error), ("success", vec![]), "{stream}");
    assert!(without_identity(body) == without_identity(golden(stream)), "{stream}");
}

#[tokio::test]
async fn every_export_equals_that_of_the_real_library() {
    let (sim, client) = setup().await;
    let (_, disks) = vm_with_disks(&sim, &[SIZE]);
    let child = &disks[0];
    import(&sim, &client, child, "base.vhd").await;
    let reference = client.by_uuid("VDI", child).await;
    // Two children of one file, and the file itself through a third.
    let base = client.text("VDI.snapshot", json!([reference])).await;
    let sibling = client.text("VDI.clone", json!([base])).await;
    let sibling_uuid = client.text("VDI.get_uuid", json!([sibling])).await;
    write_sectors(&sim, child, "child.raw");
    write_sectors(&sim, &sibling_uuid, "sib.raw");

    check_export(&client, child, None, "full.out").await;
    check_export(&client, child, Some(&base), "delta.out").await;
    check_export(&client, child, Some(&base), "hyb.out").await;
    check_export(&client, child, Some(&sibling), "sd.out").await;
    check_export(&client, &base, Some(child), "back.out").await;
    check_export(&client, child, Some(child), "same.out").await;
    sim.stop().await;
}

#[tokio::test]
async fn a_raw_vdi_exports_what_is_not_zero_and_is_no_base() {
    let (sim, client) = setup().await;
    let sr = client.by_uuid("SR", &sim.default_sr()).await;
    let record = json!({
        "SR": sr, "virtual_size": SIZE, "type": "user", "sharable": false, "read_only": false, "other_config": {},
        "sm_config": { "type": "raw" },
    });
    let raw = client.text("VDI.create", json!([record])).await;
    let uuid = client.text("VDI.get_uuid", json!([raw])).await;
    sim.write(&uuid, 0, &golden("child.raw"));
    check_export(&client, &raw, None, "rv.out").await;

    let (_, disks) = vm_with_disks(&sim, &[SIZE]);
    let (_, status, error) = client.export(&format!("format=vhd&vdi={}&base={raw}", disks[0])).await;
    assert_eq!((status.as_str(), error[0].as_str()), ("failure", "INTERNAL_ERROR"));
    sim.stop().await;
}

#[tokio::test]
async fn raw_and_chunked_bodies_write_what_they_say() {
    let (sim, client) = setup().await;
    let (_, disks) = vm_with_disks(&sim, &[SIZE]);
    let disk = &disks[0];
    let (_, status, _) = client.import(&format!("vdi={disk}&format=raw"), &golden("base.raw")).await;
    assert_eq!(status, "success");
    assert!(sim.read(disk, 0, SIZE as usize) == golden("base.raw"));

    let mut body = Vec::new();
    for (offset, data) in [(7 * MIB, b"seven".as_slice()), (1, b"one")] {
        body.extend(offset.to_le_bytes());
        body.extend((data.len() as u32).to_le_bytes());
        body.extend(data);
    }
    body.extend([0; 12]);
    let (_, status, _) = client.import_with(&format!("vdi={disk}&chunked=true"), "", &body).await;
    assert_eq!(status, "success");
    let mut expected = golden("base.raw");
    expected[7 * MIB as usize..][..5].copy_from_slice(b"seven");
    expected[1..4].copy_from_slice(b"one");
    assert!(sim.read(disk, 0, SIZE as usize) == expected);

    let (body, _, _) = client.export(&format!("vdi={disk}")).await;
    assert!(body == expected, "format=raw sends the disk");
    sim.stop().await;
}
