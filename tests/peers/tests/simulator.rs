//! The simulator in the eyes of real clients.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on has failed its test")]

use std::path::Path;

use serde_json::{Value as Json, json};
use vmferry_peers::{Peer, node_modules, script};
use xapi_sim::{DiskSpec, Sim, SimConfig, VmSpec};

const SIZE: u64 = 64 << 20;

/// A running VM whose disk holds data that no two places share: (pool, VM, disk).
async fn pool(tls: bool) -> (Sim, String, String) {
    let sim = Sim::start(SimConfig { tls, name: "peers".into(), ..SimConfig::default() }).await.unwrap();
    let disks = vec![DiskSpec { size: SIZE, name: "root".into(), ..DiskSpec::default() }];
    let vm = sim.add_vm(VmSpec { name: "web".into(), disks, running: true, vifs: 1, ..VmSpec::default() });
    let disk = sim.vm_disks(&vm).remove(0);
    for place in 0..12u64 {
        let data: Vec<u8> = (0..100_000u64).map(|at| (at * (place + 7) / 13) as u8).collect();
        sim.write(&disk, place * 5_000_011, &data);
    }
    (sim, vm, disk)
}

fn seen(output: &str) -> Json {
    serde_json::from_str(output.lines().last().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_client_works_with_a_pool() -> anyhow::Result<()> {
    let Some(python) = Peer::python()? else { return Ok(()) };
    for tls in [false, true] {
        let (sim, vm, _) = pool(tls).await;
        let path = script("py/session.py");
        let seen = seen(&python.run([path.to_str().unwrap(), &sim.url(), "root", "password", &vm]).await?);
        let snapshot = sim.record("VM", seen["snapshot"].as_str().unwrap()).unwrap();
        assert_eq!((&snapshot["name_label"], &snapshot["is_a_snapshot"]), (&json!("by python"), &json!(true)));
        assert_eq!(sim.record("VM", &vm).unwrap()["other_config"]["peer"], "python & <xml>");
        assert_eq!(seen["wrong_password"][0], "SESSION_AUTHENTICATION_FAILED");
        assert_eq!(seen["pool"], "peers");
        assert_eq!(seen["vms"], json!(["Control domain on host: host1", "web"]));
        assert_eq!((&seen["memory"], &seen["is_a_template"]), (&json!("1073741824"), &json!(false)));
        assert_eq!((&seen["first_events"], &seen["valid_vms"]), (&json!(["add vm"]), &json!(2)));
        assert_eq!((&seen["task"], &seen["failed_task"]), (&json!("success"), &json!(["failure", "VM_IS_TEMPLATE"])));
        assert_eq!(seen["later_events"], json!(["add", "mod"]), "the snapshot is new, the VM has a new parent");
        assert_eq!(seen["duplicate"], json!(["MAP_DUPLICATE_KEY"]));
        assert_eq!(seen["after_session_lost"], 3);
        assert!(!sim.object_counts().contains_key("session"), "nothing stays open");
        sim.stop().await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_client_works_with_a_pool() -> anyhow::Result<()> {
    let Some(node) = Peer::node()? else { return Ok(()) };
    for tls in [false, true] {
        let (sim, vm, _) = pool(tls).await;
        let (path, modules) = (script("js/session.mjs"), node_modules());
        let arguments = [path.to_str().unwrap(), modules.to_str().unwrap(), &sim.url(), "root", "password", &vm];
        let seen = seen(&node.run(arguments).await?);
        assert_eq!((&seen["pool"], &seen["vm"]), (&json!("peers"), &json!("web")));
        assert_eq!(seen["memory"], 1 << 30);
        assert_eq!(seen["sameSnapshot"], true);
        assert_eq!((&seen["failedTask"], &seen["failedCall"]), (&json!("VM_IS_TEMPLATE"), &json!("UUID_INVALID")));
        assert_eq!(seen["entry"], "node again");
        assert!(sim.record("VM", seen["snapshot"].as_str().unwrap()).is_none(), "made and destroyed");
        let calls = sim.calls();
        assert!(calls.contains(&"Async.VM.snapshot".to_owned()) && calls.contains(&"task.destroy".to_owned()));
        sim.stop().await;
    }
    Ok(())
}

async fn snapshot(sim: &Sim, curl: &Peer, vm: &str) -> anyhow::Result<(String, String)> {
    let rpc = async |method: &str, params: Json| -> anyhow::Result<Json> {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
        let url = format!("{}/jsonrpc", sim.url());
        let answer = curl.run(["-sSfk", "-d", &body, &url]).await?;
        Ok(serde_json::from_str::<Json>(&answer)?["result"].clone())
    };
    let session = rpc("session.login_with_password", json!(["root", "password"])).await?;
    let vm = rpc("VM.get_by_uuid", json!([session, vm])).await?;
    let snapshot = rpc("VM.snapshot", json!([session, vm, "by curl"])).await?;
    let uuid = rpc("VM.get_uuid", json!([session, snapshot])).await?;
    let disk = sim.vm_disks(uuid.as_str().unwrap()).remove(0);
    Ok((session.as_str().unwrap().to_owned(), disk))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_curl_exports_qemu_decodes_and_the_other_way_round() -> anyhow::Result<()> {
    let (Some(curl), Some(qemu)) = (Peer::system("curl")?, Peer::system("qemu-img")?) else { return Ok(()) };
    for tls in [false, true] {
        let (sim, vm, disk) = pool(tls).await;
        let folder = tempfile::tempdir()?;
        let (vhd, raw, back) =
            (folder.path().join("disk.vhd"), folder.path().join("disk.raw"), folder.path().join("back.vhd"));
        let (session, frozen) = snapshot(&sim, &curl, &vm).await?;
        let url = |path: &str, vdi: &str| format!("{}/{path}?format=vhd&vdi={vdi}&session_id={session}", sim.url());
        curl.run(["-sSfk", "-o", text(&vhd), &url("export_raw_vdi", &frozen)]).await?;
        qemu.run(["convert", "-f", "vpc", "-O", "raw", text(&vhd), text(&raw)]).await?;
        let mut decoded = std::fs::read(&raw)?;
        // The geometry that old readers go by may end before the size does; nothing lies behind it.
        decoded.resize(SIZE as usize, 0);
        assert!(decoded == sim.read(&disk, 0, SIZE as usize), "tls: {tls}");

        qemu.run([
            "convert",
            "-f",
            "raw",
            "-O",
            "vpc",
            "-o",
            "subformat=dynamic,force_size=on",
            text(&raw),
            text(&back),
        ])
        .await?;
        let empty = DiskSpec { size: SIZE, ..DiskSpec::default() };
        let replica = sim.add_vm(VmSpec { name: "replica".into(), disks: vec![empty], ..VmSpec::default() });
        let target = sim.vm_disks(&replica).remove(0);
        curl.run(["-sSfk", "-H", "Expect:", "-T", text(&back), &url("import_raw_vdi", &target)]).await?;
        assert_eq!(sim.sha256(&target), sim.sha256(&disk), "tls: {tls}");
        sim.stop().await;
    }
    Ok(())
}
