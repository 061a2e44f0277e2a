//! More than one host, and disks that are larger than a VHD.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on has failed its test")]

mod common;

use common::{Client, MIB, golden, vm_with_disks};
use serde_json::{Value as Json, json};
use xapi_sim::{DiskSpec, Fault, FaultKind, FaultPoint, NbdPurpose, Sim, SimConfig, SrKind, SrSpec, VmSpec};

const TIB: u64 = 1 << 40;

async fn two_hosts() -> (Sim, Client, Client) {
    let config = SimConfig { hosts: 2, nbd_purpose: Some(NbdPurpose::InsecureNbd), ..SimConfig::default() };
    let sim = Sim::start(config).await.unwrap();
    let master = Client::login(&sim).await;
    let member = Client::at(&sim.host_urls()[1], &master.session);
    (sim, master, member)
}

/// A disk on an SR that only the member sees.
fn local_disk(sim: &Sim) -> (String, String) {
    let sr = sim.add_sr_with(SrSpec { name: "local".into(), size: TIB, host: Some(1), ..SrSpec::default() });
    let disks = vec![DiskSpec { size: 16 * MIB, sr: Some(sr.clone()), ..DiskSpec::default() }];
    let vm = sim.add_vm(VmSpec { disks, ..VmSpec::default() });
    (sr, sim.vm_disks(&vm).remove(0))
}

#[tokio::test]
async fn a_member_takes_every_call_but_the_login() {
    let (sim, master, member) = two_hosts().await;
    let refused = member.bare("session.login_with_password", json!(["root", "password"])).await.unwrap_err();
    assert_eq!(refused[0], "HOST_IS_SLAVE");
    assert_eq!(format!("http://{}", refused[1]), sim.url(), "the address of the master");
    let everywhere = [&master, &member];
    for client in everywhere {
        assert_eq!(client.call("host.get_all", json!([])).await.unwrap().as_array().unwrap().len(), 2);
    }
    sim.stop().await;
}

#[tokio::test]
async fn a_transfer_is_sent_to_the_host_that_sees_the_sr() {
    let (sim, master, member) = two_hosts().await;
    let (sr, disk) = local_disk(&sim);
    // It waits for the host that does the work.
    sim.inject(Fault { at: FaultPoint::Export, nth: 1, kind: FaultKind::Http500 });
    let task = master.task().await;
    let target = format!("/export_raw_vdi?format=vhd&vdi={disk}&session_id={}&task_id={task}", master.session);
    let answer = master.get(&target).await;
    assert_eq!(answer.status(), "302");
    assert_eq!(answer.header("location"), Some(format!("{}{target}", sim.host_urls()[1]).as_str()));
    assert_eq!(master.outcome(&task).await.0, "pending");
    assert_eq!(member.get(&target).await.status(), "500");
    assert_eq!((member.get(&target).await.status(), master.wait(&task).await.0), ("200", "success".to_owned()));

    let into_sr = format!("/import_raw_vdi?sr_uuid={sr}&session_id={}", master.session);
    let put = |target: &str| format!("PUT {target} HTTP/1.1\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(master.exchange(put(&into_sr).as_bytes()).await.status(), "302");
    assert_eq!(member.exchange(put(&into_sr).as_bytes()).await.status(), "200");
    let (_, status, _) = member.import(&format!("format=vhd&vdi={disk}"), &golden("full.out")).await;
    assert_eq!((status.as_str(), sim.read(&disk, 0, 16 * MIB as usize) == golden("child.raw")), ("success", true));

    let (_, shared) = vm_with_disks(&sim, &[2 * MIB]);
    for client in [&master, &member] {
        assert_eq!(client.export(&format!("format=vhd&vdi={}", shared[0])).await.1, "success", "seen by both");
    }
    sim.stop().await;
}

#[tokio::test]
async fn nbd_is_told_for_each_host_that_sees_the_disk() {
    let (sim, master, _) = two_hosts().await;
    let (_, local) = local_disk(&sim);
    let (_, shared) = vm_with_disks(&sim, &[2 * MIB]);
    let ports = async |disk: &str| {
        let vdi = master.by_uuid("VDI", disk).await;
        let info = master.call("VDI.get_nbd_info", json!([vdi])).await.unwrap();
        let mut ports: Vec<u64> = info.as_array().unwrap().iter().map(|one| one["port"].as_u64().unwrap()).collect();
        ports.sort_unstable();
        ports
    };
    let mut all: Vec<u64> = sim.nbd_addresses().iter().map(|address| address.port().into()).collect();
    assert_eq!(ports(&local).await, [all[1]]);
    all.sort_unstable();
    assert_eq!(ports(&shared[0]).await, all);
    sim.stop().await;
}

fn vdi_record(sr: &str, size: u64, sm_config: Json) -> Json {
    json!([{
        "SR": sr, "virtual_size": size, "type": "user", "sharable": false, "read_only": false, "other_config": {},
        "sm_config": sm_config,
    }])
}

#[tokio::test]
async fn a_disk_larger_than_a_vhd_is_qcow2_and_travels_in_the_chunked_framing() {
    let sim = Sim::start(SimConfig::default()).await.unwrap();
    let client = Client::login(&sim).await;
    let spec = SrSpec { name: "large".into(), size: 8 * TIB, kind: SrKind::Nfs, ..SrSpec::default() };
    let (ext, nfs) = (sim.default_sr(), sim.add_sr_with(spec));
    let (ext, nfs) = (client.by_uuid("SR", &ext).await, client.by_uuid("SR", &nfs).await);
    let formats = async |kind: &str| {
        let drivers = client.call("SM.get_all_records", json!([])).await.unwrap();
        let driver = drivers.as_object().unwrap().values().find(|driver| driver["type"] == kind).unwrap().clone();
        driver["supported_image_formats"].clone()
    };
    assert_eq!((formats("ext").await, formats("nfs").await), (json!(["vhd", "raw"]), json!(["vhd", "raw", "qcow2"])));

    let qcow2 = json!({ "image-format": "qcow2" });
    for (sr, size, sm_config, expected) in [
        (&ext, 3 * TIB, json!({}), "SR_BACKEND_FAILURE_79"),
        (&nfs, 3 * TIB, json!({}), "SR_BACKEND_FAILURE_79"),
        (&nfs, 3 * TIB, json!({ "image-format": "vhd" }), "SR_BACKEND_FAILURE_79"),
        (&ext, TIB, qcow2.clone(), "SR_BACKEND_FAILURE_78"),
        (&nfs, TIB, json!({ "image-format": "vmdk" }), "SR_BACKEND_FAILURE_78"),
        (&nfs, 16 * TIB + 1, qcow2.clone(), "SR_BACKEND_FAILURE_79"),
    ] {
        let error = client.call("VDI.create", vdi_record(sr, size, sm_config.clone())).await.unwrap_err();
        assert_eq!(error[0], expected, "{size} {sm_config}");
    }
    let vdi = client.text("VDI.create", vdi_record(&nfs, 3 * TIB, qcow2)).await;
    let uuid = client.text("VDI.get_uuid", json!([vdi])).await;
    let (_, status, error) = client.export(&format!("format=vhd&vdi={uuid}")).await;
    assert_eq!((status.as_str(), error[0].as_str()), ("failure", "VDI_TOO_LARGE"));

    let place = 3 * TIB - 512;
    let body = [place.to_le_bytes().as_slice(), &512u32.to_le_bytes(), &[9; 512], &[0; 12]].concat();
    let (_, status, _) = client.import_with(&format!("format=raw&chunked=true&vdi={uuid}"), "", &body).await;
    assert_eq!((status.as_str(), sim.read(&uuid, place - 1, 3)), ("success", vec![0, 9, 9]));

    client.call("VDI.enable_cbt", json!([vdi])).await.unwrap();
    let first = client.text("VDI.snapshot", json!([vdi])).await;
    sim.write(&uuid, place, &[8]);
    let second = client.text("VDI.snapshot", json!([vdi])).await;
    let bitmap = client.text("VDI.list_changed_blocks", json!([first, second])).await;
    assert!(bitmap.ends_with("AAAB") && bitmap.len() as u64 == (3 * TIB / (64 << 10) / 8).div_ceil(3) * 4);
    sim.stop().await;
}

#[tokio::test]
async fn what_is_no_vhd_has_no_differences_to_export() {
    let sim = Sim::start(SimConfig::default()).await.unwrap();
    let client = Client::login(&sim).await;
    let nfs = sim.add_sr_with(SrSpec { name: "n".into(), size: TIB, kind: SrKind::Nfs, ..SrSpec::default() });
    let image_format = Some("qcow2".to_owned());
    let disks = vec![DiskSpec { size: 16 * MIB, sr: Some(nfs), image_format, ..DiskSpec::default() }];
    let vm = sim.add_vm(VmSpec { disks, ..VmSpec::default() });
    let disk = sim.vm_disks(&vm).remove(0);
    sim.write(&disk, 5 * MIB, &[0; 512]);
    sim.write(&disk, 9 * MIB, &[1]);
    let live = client.by_uuid("VDI", &disk).await;
    let snapshot = client.text("VDI.snapshot", json!([live])).await;
    let (body, status, _) = client.export(&format!("format=vhd&vdi={snapshot}")).await;
    assert_eq!((body.len() as u64, status.as_str()), (2048 + 512 + 512 + 2 * MIB + 512, "success"), "content alone");
    let (_, status, error) = client.export(&format!("format=vhd&vdi={live}&base={snapshot}")).await;
    assert_eq!((status.as_str(), error), ("failure", vec!["INTERNAL_ERROR".into(), "base VDI is not a vhd".into()]));
    sim.stop().await;
}
