//! VMs as XVA files, out of the pool and into it.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on has failed its test")]

mod common;

use common::{Client, MIB, vm_with_disks};
use serde_json::json;
use xapi_sim::{Fault, FaultKind, FaultPoint, Sim, SimConfig};

/// A pool, and the XVA of a VM with two disks that hold a few bytes.
async fn exported() -> (Sim, Client, String, Vec<u8>) {
    let sim = Sim::start(SimConfig::default()).await.unwrap();
    let client = Client::login(&sim).await;
    let (vm, disks) = vm_with_disks(&sim, &[8 * MIB, 4 * MIB]);
    sim.write(&disks[0], 3 * MIB + 5, b"fourth MiB");
    sim.write(&disks[1], 4 * MIB - 3, b"end");
    let answer = client.get(&format!("/export?uuid={vm}&session_id={}", client.session)).await;
    assert_eq!(answer.status(), "200", "{}", answer.head);
    assert_eq!(answer.header("content-length"), None);
    assert_eq!(client.wait(answer.header("task-id").unwrap()).await.0, "success");
    (sim, client, vm, answer.body)
}

/// Imports it: the uuid of the new VM, or the error.
async fn import(sim: &Sim, client: &Client, parameters: &str, xva: &[u8]) -> Result<String, Vec<String>> {
    let task = client.task().await;
    let (_, status, error) = client.put(&format!("/import?{parameters}"), &task, "", xva).await;
    if status != "success" {
        return Err(error);
    }
    let result = client.text("task.get_result", json!([task])).await;
    let vm = result.split("<value>").find(|part| part.starts_with("OpaqueRef:")).unwrap();
    let vm = client.text("VM.get_uuid", json!([vm.split('<').next().unwrap()])).await;
    assert!(sim.record("VM", &vm).unwrap()["current_operations"].as_object().unwrap().is_empty());
    Ok(vm)
}

fn names(xva: &[u8]) -> Vec<String> {
    let (mut names, mut at) = (Vec::new(), 0);
    while xva[at] != 0 {
        let text =
            |from: usize, to: usize| String::from_utf8_lossy(&xva[at + from..at + to]).trim_matches('\0').to_owned();
        let length = usize::from_str_radix(&text(124, 135), 8).unwrap();
        names.push(text(0, 100));
        at += 512 + length.next_multiple_of(512);
    }
    names
}

fn content(sim: &Sim, vm: &str) -> Vec<String> {
    sim.vm_disks(vm).iter().map(|disk| sim.sha256(disk)).collect()
}

/// The address of the VM's only interface.
fn mac(sim: &Sim, vm: &str) -> String {
    let vifs = sim.record("VM", vm).unwrap()["VIFs"].clone();
    let vif = sim.records("VIF").into_iter().find(|vif| vif["$ref"] == vifs[0]).unwrap();
    vif["MAC"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_export_has_the_first_the_last_and_what_holds_something() {
    let (sim, _, _, xva) = exported().await;
    let names = names(&xva);
    assert_eq!(names[0], "ova.xml");
    let chunks: Vec<&str> =
        names.iter().map(String::as_str).filter(|name| !name.ends_with(".xxhash")).skip(1).collect();
    let ids: Vec<&str> = chunks.iter().map(|chunk| chunk.split('/').next().unwrap()).collect();
    assert!(ids.is_sorted(), "in the order of their names as text");
    let mut numbers: Vec<Vec<&str>> = ids.chunk_by(|one, other| one == other).map(|_| Vec::new()).collect();
    for (chunk, id) in chunks.iter().zip(&ids) {
        let disk = usize::from(*id != ids[0]);
        numbers[disk].push(chunk.rsplit('/').next().unwrap());
    }
    numbers.sort();
    assert_eq!(numbers, [vec!["00000000", "00000003"], vec!["00000000", "00000003", "00000007"]]);
    sim.stop().await;
}

#[tokio::test]
async fn an_import_makes_the_same_vm_with_a_uuid_of_its_own() {
    let (sim, client, vm, xva) = exported().await;
    let copy = import(&sim, &client, "", &xva).await.unwrap();
    assert_ne!(copy, vm);
    assert_eq!(content(&sim, &copy), content(&sim, &vm));
    let (source, made) = (sim.record("VM", &vm).unwrap(), sim.record("VM", &copy).unwrap());
    for field in ["name_label", "memory_static_max", "VCPUs_max", "platform", "HVM_boot_policy"] {
        assert_eq!(made[field], source[field], "{field}");
    }
    assert_eq!(made["VIFs"].as_array().unwrap().len(), 1);
    sim.stop().await;
}

#[tokio::test]
async fn what_fails_is_undone_whole() {
    let (sim, client, _, xva) = exported().await;
    let before = sim.object_counts();
    let mut damaged = xva.clone();
    let at = xva.windows(10).position(|window| window == b"fourth MiB").unwrap();
    damaged[at] ^= 1;
    let failed = import(&sim, &client, "", &damaged).await.unwrap_err();
    assert_eq!(failed[0], "IMPORT_ERROR");
    assert!(failed[1].contains("checksum failed"), "{failed:?}");
    let failed = import(&sim, &client, "", &xva[..xva.len() / 2]).await.unwrap_err();
    assert_eq!(failed, ["IMPORT_ERROR_PREMATURE_EOF"]);
    let failed = import(&sim, &client, "", &[&[b'x'; 512][..], &xva].concat()).await.unwrap_err();
    assert_eq!(failed[0], "IMPORT_ERROR");
    sim.inject(Fault { at: FaultPoint::Import, nth: 1, kind: FaultKind::SrFull });
    import(&sim, &client, "", &xva).await.unwrap_err();
    let renamed: Vec<u8> = replace(&xva, b"<name>memory_static_max</name>", b"<name>memory_static_mux</name>");
    let failed = import(&sim, &client, "", &renamed).await.unwrap_err();
    assert!(failed[1].contains("memory_static_max is not present in rpc"), "{failed:?}");
    for class in ["VM", "VDI", "VBD", "VIF", "network"] {
        assert_eq!(sim.object_counts()[class], before[class], "{class}");
    }
    let forced = import(&sim, &client, "force=true", &damaged).await;
    forced.expect("a wrong checksum does not matter then");
    sim.stop().await;
}

fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
    [&bytes[..at], to, &bytes[at + from.len()..]].concat()
}

#[tokio::test]
async fn chunked_encoding_is_refused_and_a_running_vm_as_well() {
    let (sim, client, vm, xva) = exported().await;
    let task = client.task().await;
    let (answer, _, error) = client.put("/import?x", &task, "Transfer-Encoding: chunked\r\n", &xva).await;
    assert_eq!((answer.status(), error), ("403", vec!["IMPORT_ERROR_CANNOT_HANDLE_CHUNKED".to_owned()]));
    let reference = client.by_uuid("VM", &vm).await;
    client.call("VM.start", json!([reference, false, false])).await.unwrap();
    let answer = client.get(&format!("/export?uuid={vm}&session_id={}", client.session)).await;
    assert_eq!(answer.status(), "500");
    sim.stop().await;
}

#[tokio::test]
async fn addresses_stay_only_where_the_import_restores() {
    let (sim, client, vm, xva) = exported().await;
    let copy = import(&sim, &client, "", &xva).await.unwrap();
    assert_ne!(mac(&sim, &copy), mac(&sim, &vm));
    let destroyed = client.by_uuid("VM", &vm).await;
    let kept = mac(&sim, &vm);
    client.call("VM.destroy", json!([destroyed])).await.unwrap();
    let restored = import(&sim, &client, "restore=true", &xva).await.unwrap();
    assert_eq!((restored.clone(), mac(&sim, &restored)), (vm, kept));
    sim.stop().await;
}
