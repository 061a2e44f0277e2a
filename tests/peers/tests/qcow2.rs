//! qcow2 exports of the simulator in the eyes of qemu.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on has failed its test")]

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use serde_json::{Value as Json, json};
use vmferry_peers::Peer;
use xapi_sim::{DiskSpec, Sim, SimConfig, SrKind, SrSpec, VmSpec};

const TIB: u64 = 1 << 40;
const MIB: u64 = 1 << 20;

/// Writes to a disk and to the image of what it should be.
fn write(sim: &Sim, disk: &str, image: &Path, place: u64, bytes: &[u8]) {
    sim.write(disk, place, bytes);
    let file = std::fs::File::options().write(true).create(true).truncate(false).open(image).unwrap();
    file.set_len(3 * TIB).unwrap();
    file.write_all_at(bytes, place).unwrap();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_finds_the_disk_and_what_changed_in_it() -> anyhow::Result<()> {
    let (Some(curl), Some(qemu)) = (Peer::system("curl")?, Peer::system("qemu-img")?) else { return Ok(()) };
    let sim = Sim::start(SimConfig::default()).await?;
    let sr = sim.add_sr_with(SrSpec { name: "large".into(), size: TIB, kind: SrKind::Nfs, ..SrSpec::default() });
    let qcow2 = Some("qcow2".to_owned());
    let disk = DiskSpec { size: 3 * TIB, sr: Some(sr), image_format: qcow2, ..DiskSpec::default() };
    let vm = sim.add_vm(VmSpec { name: "files".into(), disks: vec![disk], ..VmSpec::default() });
    let disk = sim.vm_disks(&vm).remove(0);
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    let (before, after, full, delta) = (path("before.raw"), path("after.raw"), path("full.qcow2"), path("delta.qcow2"));
    for (place, byte) in [(0, 1), (700 * MIB, 2), (2 * TIB + 5 * MIB, 3), (3 * TIB - 3 * MIB, 4)] {
        for image in [&before, &after] {
            write(&sim, &disk, image, place, &vec![byte; 2_500_000]);
        }
    }

    let rpc = async |method: &str, params: Json| -> anyhow::Result<String> {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
        let answer = curl.run(["-sSf", "-d", &body, &format!("{}/jsonrpc", sim.url())]).await?;
        Ok(serde_json::from_str::<Json>(&answer)?["result"].as_str().unwrap_or_default().to_owned())
    };
    let session = rpc("session.login_with_password", json!(["root", "password"])).await?;
    let reference = rpc("VM.get_by_uuid", json!([session, vm])).await?;
    let snapshot = rpc("VM.snapshot", json!([session, reference, "by curl"])).await?;
    let snapshot = sim.vm_disks(&rpc("VM.get_uuid", json!([session, snapshot])).await?).remove(0);
    write(&sim, &disk, &after, TIB, b"new");
    write(&sim, &disk, &after, 700 * MIB, &[0; 65536]);
    write(&sim, &disk, &after, 3 * TIB - 1, b"!");

    let export = async |query: &str, to: &Path| -> anyhow::Result<Json> {
        let url = format!("{}/export_raw_vdi?format=qcow2&{query}&session_id={session}", sim.url());
        curl.run(["-sSf", "-o", text(to), &url]).await?;
        qemu.run(["check", "-f", "qcow2", text(to)]).await?;
        Ok(serde_json::from_str(&qemu.run(["info", "--output=json", "-f", "qcow2", text(to)]).await?)?)
    };
    let compare = async |image: &Path, raw: &Path| {
        qemu.run(["compare", "-f", "qcow2", "-F", "raw", text(image), text(raw)]).await
    };
    for (query, image) in [(format!("vdi={disk}"), &full), (format!("vdi={disk}&base={snapshot}"), &delta)] {
        let info = export(&query, image).await?;
        assert_eq!((&info["virtual-size"], &info["cluster-size"]), (&json!(3 * TIB), &json!(65536)), "{info}");
        assert!(info.get("backing-filename").is_none(), "{info}");
    }
    compare(&full, &after).await?;
    assert!(compare(&full, &before).await.is_err(), "the comparison sees what changed");
    // The difference says nothing of its base; put on it, it makes the disk.
    qemu.run(["rebase", "-u", "-F", "raw", "-b", text(&before), text(&delta)]).await?;
    compare(&delta, &after).await?;
    assert!(std::fs::metadata(&delta)?.len() < MIB, "three clusters and their tables");
    sim.stop().await;
    Ok(())
}
