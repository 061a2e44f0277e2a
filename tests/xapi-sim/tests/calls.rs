//! Calls as clients see them: the protocol around them, records, sessions, tasks, VMs.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on has failed its test")]

mod common;

use common::{Client, MIB, vm_with_disks};
use serde_json::{Value as Json, json};
use std::time::Duration;
use xapi_sim::{DiskSpec, Fault, FaultKind, FaultPoint, Sim, SimConfig, VmSpec};

async fn setup() -> (Sim, Client) {
    let sim = Sim::start(SimConfig::default()).await.unwrap();
    let client = Client::login(&sim).await;
    (sim, client)
}

fn strings(json: &Json) -> Vec<String> {
    json.as_array().unwrap().iter().map(|item| item.as_str().unwrap().to_owned()).collect()
}

/// The record that `VM.create` wants, as small as it may be.
fn vm_record() -> Json {
    json!({
        "user_version": "1", "is_a_template": false, "affinity": "OpaqueRef:NULL", "memory_static_max": 1, "memory_dynamic_max": 1,
        "memory_dynamic_min": 1, "memory_static_min": 1, "VCPUs_params": {}, "VCPUs_max": 1, "VCPUs_at_startup": 1,
        "actions_after_shutdown": "destroy", "actions_after_reboot": "restart", "actions_after_crash": "restart",
        "PV_bootloader": "", "PV_kernel": "", "PV_ramdisk": "", "PV_args": "", "PV_bootloader_args": "", "PV_legacy_args": "",
        "HVM_boot_policy": "BIOS order", "HVM_boot_params": {}, "platform": {}, "PCI_bus": "", "other_config": {}, "recommendations": "",
    })
}

#[tokio::test]
async fn xml_carries_integers_as_text_and_failures_as_200() {
    let (sim, client) = setup().await;
    let (_, disks) = vm_with_disks(&sim, &[16 * MIB]);
    let vdi = client.by_uuid("VDI", &disks[0]).await;
    let body = |method: &str, param: &str| {
        format!(
            "<?xml version='1.0'?><methodCall><methodName>{method}</methodName><params><param><value><string>{}</string>\
             </value></param><param><value>{param}</value></param></params></methodCall>",
            client.session
        )
    };
    let answer = client.post("/RPC2", &body("VDI.get_virtual_size", &vdi)).await;
    let text = String::from_utf8(answer.body).unwrap();
    assert!(text.contains("<name>Value</name><value>16777216</value>"), "{text}");

    let answer = client.post("/", &body("VDI.get_record", "OpaqueRef:x")).await;
    assert_eq!((answer.status(), answer.header("content-type")), ("200", Some("text/xml")));
    let text = String::from_utf8(answer.body).unwrap();
    assert!(text.contains("<value>HANDLE_INVALID</value><value>VDI</value><value>OpaqueRef:x</value>"), "{text}");

    let answer = client.post("/", &body("Async.VDI.get_record", &vdi)).await;
    assert!(String::from_utf8(answer.body).unwrap().contains("<fault>"));
    sim.stop().await;
}

#[tokio::test]
async fn what_is_no_request_is_answered_as_xapi_does() {
    let (sim, client) = setup().await;
    let status = async |request: &str| client.exchange(request.as_bytes()).await.status().to_owned();
    assert_eq!(client.post("/", "no xml").await.status(), "500");
    assert_eq!(client.post("/jsonrpc", "{}").await.status(), "500");
    assert_eq!(status("POST / HTTP/1.1\r\nHost: x\r\n\r\n").await, "500", "Content-Length is required");
    assert_eq!(status("POST / HTTP/1.1\r\nContent-Length: 307201\r\n\r\n").await, "413");
    assert_eq!(status("GET /nothing HTTP/1.1\r\n\r\n").await, "403");
    assert_eq!(status("DELETE / HTTP/1.1\r\n\r\n").await, "501");
    assert_eq!(status(&format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1024))).await, "431");
    sim.stop().await;
}

#[tokio::test]
async fn methods_and_parameters_are_checked_before_anything_is_done() {
    let (sim, client) = setup().await;
    let error = async |method: &str, params: Json| client.call(method, params).await.unwrap_err();
    assert_eq!(error("VM.fly", json!([])).await, ["MESSAGE_METHOD_UNKNOWN", "VM.fly"]);
    assert_eq!(error("VM.get_uuid", json!([])).await, ["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.get_uuid", "1", "0"]);
    assert_eq!(error("VM.snapshot_with_quiesce", json!(["x", "y"])).await, ["MESSAGE_REMOVED"]);
    assert_eq!(error("VM.get_by_uuid", json!(["nobody"])).await, ["UUID_INVALID", "VM", "nobody"]);
    assert_eq!(error("VM.set_is_a_template", json!(["x", "true"])).await, ["FIELD_TYPE_ERROR", "value"]);
    assert_eq!(error("VM.start", json!(["OpaqueRef:x", false, false])).await, ["HANDLE_INVALID", "VM", "OpaqueRef:x"]);
    assert_eq!(error("VM.sysprep", json!(["x", "", 1.5])).await, ["NOT_IMPLEMENTED", "VM.sysprep"]);
    let methods = strings(&client.bare("system.listMethods", json!([])).await.unwrap());
    assert!(
        methods.contains(&"VDI.get_all_records".to_owned()) && !methods.contains(&"session.get_all_records".to_owned())
    );
    sim.stop().await;
}

#[tokio::test]
async fn a_session_ends_by_logout_and_by_disuse() {
    let (sim, client) = setup().await;
    let error = client.bare("session.login_with_password", json!(["root", "wrong"])).await.unwrap_err();
    assert_eq!(error[..2], ["SESSION_AUTHENTICATION_FAILED", "root"]);
    client.call("session.logout", json!([])).await.unwrap();
    let error = client.call("VM.get_all", json!([])).await.unwrap_err();
    assert_eq!(error, ["SESSION_INVALID", client.session.as_str()]);

    let client = Client::login(&sim).await;
    sim.advance_clock(Duration::from_secs(23 * 3600));
    client.call("VM.get_all", json!([])).await.unwrap();
    sim.advance_clock(Duration::from_secs(25 * 3600));
    assert_eq!(client.call("VM.get_all", json!([])).await.unwrap_err()[0], "SESSION_INVALID");
    assert!(!sim.object_counts().contains_key("session"));
    sim.stop().await;
}

#[tokio::test]
async fn a_member_refuses_the_login_and_names_the_master() {
    let config = SimConfig { master_address: Some("10.0.0.1".into()), ..SimConfig::default() };
    let sim = Sim::start(config).await.unwrap();
    let body = json!({ "method": "session.login_with_password", "params": ["root", "password"], "id": 1 }).to_string();
    let address = sim.url().trim_start_matches("http://").to_owned();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!("POST /jsonrpc HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len());
    tokio::io::AsyncWriteExt::write_all(&mut stream, format!("{head}{body}").as_bytes()).await.unwrap();
    let answer = common::read_answer(&mut stream).await;
    let reply: Json = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(reply, json!({ "result": null, "error": ["HOST_IS_SLAVE", "10.0.0.1"], "id": 1 }));
    sim.stop().await;
}

#[tokio::test]
async fn maps_refuse_a_key_that_is_there_and_forgive_one_that_is_not() {
    let (sim, client) = setup().await;
    let (vm, _) = vm_with_disks(&sim, &[]);
    let reference = client.by_uuid("VM", &vm).await;
    let add = json!([reference, "key", "1"]);
    client.call("VM.add_to_other_config", add.clone()).await.unwrap();
    let error = client.call("VM.add_to_other_config", add.clone()).await.unwrap_err();
    assert_eq!(error, ["MAP_DUPLICATE_KEY", "VM", "other_config", &vm, "key"]);
    for _ in 0..2 {
        client.call("VM.remove_from_other_config", json!([reference, "key"])).await.unwrap();
    }
    client.call("VM.add_to_other_config", add).await.unwrap();
    client.call("VM.add_tags", json!([reference, "a"])).await.unwrap();
    client.call("VM.add_tags", json!([reference, "a"])).await.unwrap();
    assert_eq!(sim.record("VM", &vm).unwrap()["tags"], json!(["a"]));
    sim.stop().await;
}

#[tokio::test]
async fn vm_create_wants_its_members_and_ignores_blocked_operations() {
    let (sim, client) = setup().await;
    let mut record = vm_record();
    record["blocked_operations"] = json!({ "start": "no" });
    record["unknown"] = json!("ignored");
    record["uuid"] = json!("ignored too");
    let vm = client.text("VM.create", json!([record])).await;
    let made = client.call("VM.get_record", json!([vm])).await.unwrap();
    assert_eq!(made["blocked_operations"], json!({}));
    assert_eq!((made["power_state"].as_str(), made["domain_type"].as_str()), (Some("Halted"), Some("hvm")));
    assert_ne!(made["uuid"], "ignored too");
    assert!(made["other_config"]["mac_seed"].is_string());
    assert_eq!(made["user_version"], 1, "an integer may come as text");

    record.as_object_mut().unwrap().remove("PV_args");
    let error = client.call("VM.create", json!([record])).await.unwrap_err();
    assert!(error[0] == "INTERNAL_ERROR" && error[1].contains("PV_args"), "{error:?}");
    sim.stop().await;
}

#[tokio::test]
async fn blocked_operations_win_over_everything() {
    let (sim, client) = setup().await;
    let (vm, _) = vm_with_disks(&sim, &[2 * MIB]);
    let reference = client.by_uuid("VM", &vm).await;
    client.call("VM.start", json!([reference, false, false])).await.unwrap();
    let error = client.call("VM.start", json!([reference, false, false])).await.unwrap_err();
    assert_eq!(error, ["VM_BAD_POWER_STATE", &reference, "halted", "running"]);
    client.call("VM.add_to_blocked_operations", json!([reference, "start", "clone it"])).await.unwrap();
    let error = client.call("VM.start", json!([reference, false, false])).await.unwrap_err();
    assert_eq!(error, ["OPERATION_BLOCKED", &reference, "clone it"]);
    let record = sim.record("VM", &vm).unwrap();
    assert!(!strings(&record["allowed_operations"]).contains(&"start".to_owned()));
    client.call("VM.remove_from_blocked_operations", json!([reference, "start"])).await.unwrap();
    client.call("VM.hard_shutdown", json!([reference])).await.unwrap();
    client.call("VM.start_on", json!([reference, record["resident_on"], false, false])).await.unwrap();
    sim.stop().await;
}

#[tokio::test]
async fn a_started_guest_reports_its_drivers() {
    let (sim, client) = setup().await;
    let (vm, disks) = vm_with_disks(&sim, &[2 * MIB]);
    let reference = client.by_uuid("VM", &vm).await;
    client.call("VM.start", json!([reference, false, false])).await.unwrap();
    let guest = &sim.records("VM_guest_metrics")[0];
    assert_eq!(
        (guest["PV_drivers_detected"].clone(), guest["$ref"].clone()),
        (json!(true), sim.record("VM", &vm).unwrap()["guest_metrics"].clone())
    );
    let vbd = &sim.records("VBD")[0];
    assert_eq!((vbd["device"].as_str(), vbd["currently_attached"].clone()), (Some("xvda"), json!(true)));
    let vdi = client.by_uuid("VDI", &disks[0]).await;
    assert_eq!(client.call("VDI.destroy", json!([vdi])).await.unwrap_err(), ["VDI_IN_USE", &vdi, "destroy"]);
    client.call("VM.clean_shutdown", json!([reference])).await.unwrap();
    assert!(!sim.object_counts().contains_key("VM_guest_metrics"));
    sim.stop().await;
}

#[tokio::test]
async fn a_guest_that_takes_its_time_says_nothing_until_it_is_up() {
    let sim = Sim::start(SimConfig { hold_guests: true, ..SimConfig::default() }).await.unwrap();
    let client = Client::login(&sim).await;
    let (vm, _) = vm_with_disks(&sim, &[2 * MIB]);
    let reference = client.by_uuid("VM", &vm).await;
    client.call("VM.start", json!([reference, false, false])).await.unwrap();
    assert_eq!(sim.record("VM", &vm).unwrap()["guest_metrics"], "OpaqueRef:NULL");
    sim.bring_up_guest(&vm);
    assert_eq!(sim.record("VM", &vm).unwrap()["guest_metrics"], sim.records("VM_guest_metrics")[0]["$ref"]);
    sim.stop().await;
}

#[tokio::test]
async fn a_snapshot_inherits_what_xapi_copies_and_nothing_else() {
    let (sim, client) = setup().await;
    let vm = sim.add_vm(VmSpec {
        name: "web".into(),
        disks: vec![
            DiskSpec { size: 4 * MIB, ..DiskSpec::default() },
            DiskSpec { size: 2 * MIB, ..DiskSpec::default() },
        ],
        running: true,
        tags: vec!["erp".into()],
        other_config: vec![("key".into(), "value".into())],
        vifs: 2,
    });
    let live = client.by_uuid("VM", &vm).await;
    let disks = sim.vm_disks(&vm);
    let ignored = client.by_uuid("VDI", &disks[1]).await;
    client.call("VM.add_to_blocked_operations", json!([live, "migrate_send", "busy"])).await.unwrap();
    let task = client.text("Async.VM.snapshot", json!([live, "before", [ignored]])).await;
    assert_eq!(client.wait(&task).await, ("success".to_owned(), vec![]));
    let task = client.call("task.get_record", json!([task])).await.unwrap();
    let reference = task["result"].as_str().unwrap().strip_prefix("<value>").unwrap().strip_suffix("</value>").unwrap();
    let snapshot = client.call("VM.get_record", json!([reference])).await.unwrap();

    assert_eq!((snapshot["is_a_snapshot"].clone(), snapshot["is_a_template"].clone()), (json!(true), json!(true)));
    assert_eq!(
        (snapshot["power_state"].as_str(), snapshot["snapshot_of"].as_str()),
        (Some("Halted"), Some(live.as_str()))
    );
    assert_eq!(
        snapshot["snapshot_info"],
        json!({ "power-state-at-snapshot": "Running", "disk-snapshot-type": "crash_consistent" })
    );
    assert_eq!((snapshot["tags"].clone(), snapshot["other_config"]["key"].clone()), (json!(["erp"]), json!("value")));
    assert_eq!(snapshot["blocked_operations"], json!({}));
    let record = sim.record("VM", &vm).unwrap();
    assert_eq!((record["parent"].as_str(), record["snapshots"].clone()), (Some(reference), json!([reference])));
    assert_eq!(snapshot["children"], json!([live]));

    let taken = sim.vm_disks(snapshot["uuid"].as_str().unwrap());
    assert_eq!(taken.len(), 1, "the ignored disk was left out");
    let disk = sim.record("VDI", &taken[0]).unwrap();
    assert_eq!(disk["snapshot_of"], client.by_uuid("VDI", &disks[0]).await);
    let macs = |vm: &str| {
        let mut macs: Vec<String> =
            sim.records("VIF").iter().filter(|vif| vif["VM"] == vm).map(|vif| vif["MAC"].to_string()).collect();
        macs.sort();
        macs
    };
    assert_eq!((macs(reference), macs(&live).len()), (macs(&live), 2), "the same addresses");

    // Destroying the VM leaves disks and snapshots.
    client.call("VM.hard_shutdown", json!([live])).await.unwrap();
    client.call("VM.destroy", json!([live])).await.unwrap();
    assert_eq!(
        sim.record("VM", snapshot["uuid"].as_str().unwrap()).unwrap()["snapshot_of"],
        live,
        "a dead reference stays"
    );
    assert_eq!(sim.object_counts()["VDI"], 3);
    assert_eq!(sim.object_counts()["VBD"], 1);
    sim.stop().await;
}

#[tokio::test]
async fn a_clone_of_a_snapshot_is_a_template_until_it_is_provisioned() {
    let (sim, client) = setup().await;
    let (vm, disks) = vm_with_disks(&sim, &[4 * MIB]);
    sim.write(&disks[0], 0, b"content");
    let live = client.by_uuid("VM", &vm).await;
    let snapshot = client.text("VM.snapshot", json!([live, "s"])).await;
    let error = client.call("VM.start", json!([snapshot, false, false])).await.unwrap_err();
    assert_eq!(error, ["VM_IS_TEMPLATE", &snapshot]);
    let clone = client.text("VM.clone", json!([snapshot, "c"])).await;
    let record = client.call("VM.get_record", json!([clone])).await.unwrap();
    assert_eq!((record["is_a_template"].clone(), record["is_a_snapshot"].clone()), (json!(true), json!(false)));
    assert_eq!(record["snapshot_of"], "OpaqueRef:NULL");
    client.call("VM.provision", json!([clone])).await.unwrap();
    client.call("VM.start", json!([clone, false, false])).await.unwrap();
    let uuid = record["uuid"].as_str().unwrap();
    assert_eq!(sim.read(&sim.vm_disks(uuid)[0], 0, 7), b"content");
    let macs: std::collections::BTreeSet<String> =
        sim.records("VIF").iter().map(|vif| vif["MAC"].to_string()).collect();
    assert_eq!(macs.len(), 2, "VM and snapshot share an address, the clone has its own");
    sim.stop().await;
}

#[tokio::test]
async fn an_operation_in_progress_shows_and_excludes_others() {
    let (sim, client) = setup().await;
    let (vm, _) = vm_with_disks(&sim, &[2 * MIB]);
    let reference = client.by_uuid("VM", &vm).await;
    sim.inject(Fault { at: FaultPoint::Call("VM.snapshot".into()), nth: 1, kind: FaultKind::StallAfter(0) });
    let task = client.text("Async.VM.snapshot", json!([reference, "s"])).await;
    sim.wait_until_stalled().await;
    assert_eq!(sim.record("VM", &vm).unwrap()["current_operations"], json!({ (task.as_str()): "snapshot" }));
    let error = client.call("VM.start", json!([reference, false, false])).await.unwrap_err();
    assert_eq!(error, ["OTHER_OPERATION_IN_PROGRESS", "VM", &reference, "snapshot", &task]);
    client.call("VM.snapshot", json!([reference, "a second one"])).await.unwrap();
    sim.clear_faults();
    assert_eq!(client.wait(&task).await.0, "success");
    assert_eq!(sim.record("VM", &vm).unwrap()["current_operations"], json!({}));
    sim.stop().await;
}

#[tokio::test]
async fn tasks_tell_failures_and_are_collected() {
    let (sim, client) = setup().await;
    let task = client.text("Async.VM.start", json!(["OpaqueRef:gone", false, false])).await;
    let expected = ["HANDLE_INVALID", "VM", "OpaqueRef:gone"].map(str::to_owned).to_vec();
    assert_eq!(client.wait(&task).await, ("failure".to_owned(), expected));

    let own = client.task().await;
    client.call("task.set_progress", json!([own, 0.5])).await.unwrap();
    client.call("task.cancel", json!([own])).await.unwrap();
    assert_eq!(client.outcome(&own).await.0, "pending", "cancelling is only a wish");
    client.call("task.add_to_other_config", json!([own, "k", "v"])).await.unwrap();
    client.call("task.set_status", json!([own, "success"])).await.unwrap();

    sim.advance_clock(Duration::from_secs(3901));
    let last = client.task().await;
    let tasks: Vec<Json> = sim.records("task").iter().map(|task| task["$ref"].clone()).collect();
    assert_eq!(tasks, [json!(last)], "completed tasks are forgotten after 65 minutes");
    client.call("task.destroy", json!([last])).await.unwrap();
    assert_eq!(client.call("task.get_status", json!([last])).await.unwrap_err()[0], "HANDLE_INVALID");
    sim.stop().await;
}

#[tokio::test]
async fn devices_follow_the_rules_of_xapi() {
    let (sim, client) = setup().await;
    let (vm, disks) = vm_with_disks(&sim, &[2 * MIB]);
    let (vm, vdi) = (client.by_uuid("VM", &vm).await, client.by_uuid("VDI", &disks[0]).await);
    let vbd = |device: &str, mode: &str| {
        json!([{ "VM": vm, "VDI": vdi, "userdevice": device, "mode": mode, "type": "Disk", "bootable": false, "empty": false,
            "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {} }])
    };
    assert_eq!(client.call("VBD.create", vbd("0", "RW")).await.unwrap_err(), ["DEVICE_ALREADY_EXISTS", "0"]);
    let made = client.text("VBD.create", vbd("autodetect", "RO")).await;
    assert_eq!(client.call("VBD.get_userdevice", json!([made])).await.unwrap(), "1");
    assert_eq!(client.call("VM.get_allowed_VBD_devices", json!([vm])).await.unwrap()[0], "2");
    client.call("VBD.destroy", json!([made])).await.unwrap();

    let network = client.by_uuid("network", &sim.network()).await;
    let vif = |device: &str, mac: &str| {
        json!([{ "VM": vm, "network": network, "device": device, "MAC": mac, "MTU": 1500, "other_config": {},
            "qos_algorithm_type": "", "qos_algorithm_params": {} }])
    };
    assert_eq!(client.call("VIF.create", vif("1", "01:00:00:00:00:00")).await.unwrap_err()[0], "MAC_INVALID");
    let made = client.text("VIF.create", vif("1", "")).await;
    assert_eq!(client.call("VIF.get_MAC_autogenerated", json!([made])).await.unwrap(), true);
    client.call("VIF.destroy", json!([made])).await.unwrap();
    sim.stop().await;
}

#[tokio::test]
async fn faults_at_calls_do_what_they_say() {
    let (sim, client) = setup().await;
    let (vm, _) = vm_with_disks(&sim, &[]);
    let reference = client.by_uuid("VM", &vm).await;
    let at = |kind: FaultKind| Fault { at: FaultPoint::Call("VM.set_name_label".into()), nth: 1, kind };
    let name = || sim.record("VM", &vm).unwrap()["name_label"].as_str().unwrap().to_owned();
    let body = |name: &str| {
        json!({ "method": "VM.set_name_label", "params": [client.session, reference, name], "id": 1 }).to_string()
    };
    sim.inject(at(FaultKind::Http500));
    assert_eq!(client.post("/jsonrpc", &body("a")).await.status(), "500");
    sim.inject(at(FaultKind::CloseWithoutAnswer));
    assert_eq!(client.post("/jsonrpc", &body("b")).await.head, "");
    sim.inject(at(FaultKind::ApiError("TOO_BUSY".into(), vec![])));
    assert_eq!(client.call("VM.set_name_label", json!([reference, "c"])).await.unwrap_err(), ["TOO_BUSY"]);
    assert_eq!(name(), "vm", "nothing was done");
    sim.inject(at(FaultKind::ReplyLost));
    assert_eq!(client.post("/jsonrpc", &body("d")).await.head, "");
    assert_eq!(name(), "d", "done, though nobody heard");
    sim.inject(at(FaultKind::SessionLost));
    assert_eq!(client.call("VM.set_name_label", json!([reference, "e"])).await.unwrap_err()[0], "SESSION_INVALID");
    assert_eq!(client.call("VM.get_all", json!([])).await.unwrap_err()[0], "SESSION_INVALID");
    assert_eq!(sim.calls().iter().filter(|call| *call == "VM.set_name_label").count(), 5);
    sim.stop().await;
}

#[tokio::test]
async fn a_revert_makes_new_disks_and_brings_the_old_keys_back() {
    let (sim, client) = setup().await;
    let disks = vec![DiskSpec { size: 4 * MIB, ..DiskSpec::default() }];
    let vm = sim.add_vm(VmSpec { name: "web".into(), disks, vifs: 1, running: true, ..VmSpec::default() });
    let disk = sim.vm_disks(&vm).remove(0);
    sim.write(&disk, 0, b"then");
    let reference = client.by_uuid("VM", &vm).await;
    client.call("VM.add_to_other_config", json!([reference, "key", "then"])).await.unwrap();
    let mac = sim.records("VIF")[0]["MAC"].clone();
    let snapshots = [
        client.text("VM.snapshot", json!([reference, "first"])).await,
        client.text("VM.snapshot", json!([reference, "second"])).await,
    ];
    client.call("VM.remove_from_other_config", json!([reference, "key"])).await.unwrap();
    sim.write(&disk, 0, b"now!");

    assert_eq!(client.call("VM.revert", json!([reference])).await.unwrap_err(), ["REVERT_ONLY_ALLOWED_ON_SNAPSHOT"]);
    client.call("VM.revert", json!([snapshots[0]])).await.unwrap();
    let record = sim.record("VM", &vm).unwrap();
    assert_eq!(
        (&record["name_label"], &record["power_state"], &record["is_a_template"], &record["is_a_snapshot"]),
        (&json!("web"), &json!("Halted"), &json!(false), &json!(false))
    );
    assert_eq!((&record["other_config"]["key"], &record["parent"]), (&json!("then"), &json!(snapshots[0])));
    let new = sim.vm_disks(&vm).remove(0);
    assert_eq!((sim.read(&new, 0, 4), sim.record("VDI", &disk).is_none()), (b"then".to_vec(), true), "destroyed first");
    let live = client.by_uuid("VDI", &new).await;
    let frozen = sim.records("VDI").into_iter().filter(|vdi| vdi["is_a_snapshot"] == true);
    assert_eq!(frozen.filter(|vdi| vdi["snapshot_of"] == live.as_str()).count(), 2, "they follow the new disk");
    let vif = sim.records("VIF").into_iter().find(|vif| vif["VM"] == reference.as_str()).unwrap();
    assert_eq!((&vif["MAC"], &record["snapshots"].as_array().unwrap().len()), (&mac, &2));
    client.call("VM.start", json!([reference, false, false])).await.unwrap();

    client.call("VM.add_to_blocked_operations", json!([snapshots[1], "revert", "no"])).await.unwrap();
    let error = client.call("VM.revert", json!([snapshots[1]])).await.unwrap_err();
    assert_eq!(error, ["OPERATION_BLOCKED", &snapshots[1], "no"]);
    sim.stop().await;
}

#[tokio::test]
async fn a_copied_vm_has_disks_without_a_chain_on_the_sr_that_was_named() {
    let (sim, client) = setup().await;
    let (vm, disks) = vm_with_disks(&sim, &[4 * MIB]);
    sim.write(&disks[0], 9, b"content");
    let reference = client.by_uuid("VM", &vm).await;
    let other = sim.add_sr("other", 1 << 30);
    let sr = client.by_uuid("SR", &other).await;
    let copy = client.text("VM.copy", json!([reference, "copy", sr])).await;
    let record = client.call("VM.get_record", json!([copy])).await.unwrap();
    let copied = sim.vm_disks(record["uuid"].as_str().unwrap());
    assert_eq!((&record["name_label"], sim.sha256(&copied[0])), (&json!("copy"), sim.sha256(&disks[0])));
    let disk = sim.record("VDI", &copied[0]).unwrap();
    assert_eq!((&disk["SR"], &disk["sm_config"]), (&json!(sr), &json!({})));

    let full = sim.add_sr("full", 2 * MIB);
    sim.write(&disks[0], 3 * MIB, &[1]);
    let before = sim.object_counts();
    let sr = client.by_uuid("SR", &full).await;
    let error = client.call("VM.copy", json!([reference, "copy", sr])).await.unwrap_err();
    assert_eq!((error[0].as_str(), sim.object_counts()), ("SR_BACKEND_FAILURE_44", before), "nothing is left of it");
    sim.stop().await;
}
