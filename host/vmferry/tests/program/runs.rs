//! `run`, `plan`, `points` and `failover` over two pools in processes of their own.

use crate::stage::{MIB, Pool, Stage, text};
use serde_json::{Value, json};
use std::process::Stdio;

/// What a stream must have taken: head, BAT, used blocks with their bitmaps, footer.
fn stream_bytes(disk_size: u64, used_blocks: u64) -> u64 {
    let entries = disk_size.div_ceil(2 * MIB);
    2048 + (4 * entries).next_multiple_of(512) + used_blocks * (512 + 2 * MIB) + 512
}

fn disks(report: &Value) -> &Vec<Value> {
    report["vms"][0]["targets"][0]["disks"].as_array().unwrap_or_else(|| panic!("no disks: {report:#}"))
}

#[test]
fn a_full_and_deltas_send_what_the_formula_says_and_the_plan_said_so() {
    let stage = Stage::new();
    let source_disks = stage.source.disks(&stage.vm);
    for (round, used) in [[1, 1], [3, 0], [0, 0], [1, 2]].into_iter().enumerate() {
        if round == 1 {
            stage.source.write(&source_disks[0], 11 * MIB, &[7; 4 << 20]);
        }
        if round == 3 {
            stage.source.write(&source_disks[0], 50 * MIB, b"x");
            stage.source.write(&source_disks[1], 10 * MIB - 1, b"xy");
        }
        let plan = stage.json(&["plan", "erp"], 0);
        let report = stage.json(&["run", "erp"], 0);
        assert_eq!((&report["job"], &report["outcome"]), (&json!("erp"), &json!("succeeded")));
        for (index, (planned, done)) in disks(&plan).iter().zip(disks(&report)).enumerate() {
            for key in ["disk", "kind", "base", "reason"] {
                assert_eq!(planned[key], done[key], "{key}");
            }
            assert_eq!(done["kind"], if round == 0 { "full" } else { "delta" });
            assert_eq!(done["bytes_sent"], stream_bytes([64 * MIB, 32 * MIB][index], used[index]), "round {round}");
            assert_eq!(done["changed_bytes"], used[index] * 2 * MIB);
        }
        let point = report["vms"][0]["targets"][0]["recovery_point"].as_str().unwrap();
        assert_eq!(stage.target.content(point), stage.source.content(&stage.vm));
    }

    let points = stage.json(&["points", "list", "erp"], 0);
    assert!(points.to_string().matches("taken_at").count() == 4, "{points:#}");
    let clone = stage.json(&["failover", "clone", "erp", "--vm", &stage.vm, "--network", "none"], 0);
    let clone = clone["vm"].as_str().unwrap();
    assert_eq!(stage.target.content(clone), stage.source.content(&stage.vm));
    let record = stage.target.records("VM").into_iter().find(|vm| vm["uuid"] == clone).unwrap();
    assert_eq!(record["power_state"], "Running");
}

#[test]
fn changed_blocks_travel_by_nbd_and_a_damaged_replica_is_found_and_mended() {
    let (source, target) = (Pool::start(&["--tls", "--nbd-purpose", "nbd"]), Pool::start(&["--tls"]));
    let vm = source.admin(
        "POST",
        "/add-vm",
        &json!({ "name": "erp-db", "running": true, "vifs": 1, "disks": [{ "name": "system", "size": 64 * MIB }] }),
    );
    let disk = vm["disks"][0].as_str().unwrap().to_owned();
    source.write(&disk, 0, &[1; 3 << 20]);
    let stage = Stage::of(source, target, vm["vm"].as_str().unwrap());
    stage.configure("read = { cbt = 'enable' }");
    stage.json(&["run", "erp"], 0);
    stage.source.write(&disk, 40 * MIB, b"a few bytes");
    let delta = stage.json(&["run", "erp"], 0);
    let sent = &disks(&delta)[0];
    assert_eq!((&sent["source"], &sent["encoding"]), (&json!("nbd"), &json!("chunked")), "{delta:#}");
    assert_eq!((&sent["changed_bytes"], &sent["bytes_sent"]), (&json!(64 << 10), &json!((64 << 10) + 24)));
    assert_eq!(stage.json(&["verify", "erp", "--deep"], 0)["replicas"][0]["verdict"], "intact");

    let point = delta["vms"][0]["targets"][0]["recovery_point"].as_str().unwrap();
    let copy = stage.target.disks(point)[0].clone();
    let record = stage.target.records("VDI").into_iter().find(|disk| disk["uuid"] == copy).unwrap();
    // In the file that the point and the live disk share, as storage rots.
    stage.target.write(record["sm_config"]["vhd-parent"].as_str().unwrap(), MIB + 5, &[2]);
    let output = stage.vmferry(&["verify", "erp", "--deep"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("damaged") && text(&output).contains("1048576"), "{}", text(&output));
    assert_eq!(stage.json(&["verify", "erp", "--deep"], 1)["replicas"][0]["disks"][0]["different_bytes"], 64 << 10);

    let mended = stage.json(&["run", "erp"], 0);
    let sent = &disks(&mended)[0];
    assert_eq!((&sent["kind"], &sent["changed_bytes"]), (&json!("resync"), &json!(64 << 10)), "{mended:#}");
    assert!(sent["reason"].as_str().unwrap().contains("damaged"), "{mended:#}");
    let point = mended["vms"][0]["targets"][0]["recovery_point"].as_str().unwrap();
    assert_eq!(stage.target.content(point), stage.source.content(&stage.vm));
    assert_eq!(stage.json(&["verify", "erp", "--deep"], 0)["replicas"][0]["verdict"], "intact");
}

#[test]
fn a_second_run_at_the_same_time_ends_with_code_5() {
    let stage = Stage::new();
    stage.source.admin("POST", "/fault", &json!({ "at": "export", "kind": { "stall_after": MIB } }));
    let first = stage.command(&["run", "erp"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    stage.source.admin("POST", "/wait-stalled", &Value::Null);

    let second = stage.json(&["run", "erp"], 5);
    assert_eq!(second["outcome"], "skipped", "{second:#}");
    stage.source.admin("DELETE", "/faults", &Value::Null);
    let first = first.wait_with_output().unwrap();
    assert_eq!(first.status.code(), Some(0), "{}", text(&first));
}

#[test]
fn after_kill_9_in_the_middle_of_a_transfer_the_next_run_is_a_delta_and_nothing_is_left() {
    let stage = Stage::new();
    stage.json(&["run", "erp"], 0);
    for disk in stage.source.disks(&stage.vm) {
        stage.source.write(&disk, 8 * MIB, &[9; 12 << 20]);
    }
    stage.source.admin("POST", "/fault", &json!({ "at": "export", "kind": { "stall_after": 5 * MIB } }));
    let mut run = stage.command(&["run", "erp"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    stage.source.admin("POST", "/wait-stalled", &Value::Null);
    run.kill().unwrap();
    run.wait().unwrap();
    stage.source.admin("DELETE", "/faults", &Value::Null);

    let report = stage.json(&["run", "erp"], 0);
    assert!(disks(&report).iter().all(|disk| disk["kind"] == "delta"), "{report:#}");
    let point = report["vms"][0]["targets"][0]["recovery_point"].as_str().unwrap();
    assert_eq!(stage.target.content(point), stage.source.content(&stage.vm));
    for (pool, vms) in [(&stage.source, 2), (&stage.target, 3)] {
        let user_vms = pool.records("VM").iter().filter(|vm| vm["is_control_domain"] == false).count();
        assert_eq!(user_vms, vms);
        assert_eq!(pool.records("VDI").iter().filter(|vdi| vdi["managed"] == true).count(), 2 * vms);
        assert_eq!(pool.records("VBD").len(), 2 * vms);
    }
}

#[test]
fn https_with_a_pinned_certificate_is_the_same_job() {
    use crate::stage::Pool;
    let (source, target) = (Pool::start(&["--tls"]), Pool::start(&["--tls"]));
    let vm = source.admin("POST", "/add-vm", &json!({ "name": "vm", "disks": [{ "name": "d", "size": 8 * MIB }] }));
    let stage = Stage::of(source, target, vm["vm"].as_str().unwrap());
    stage.configure("");
    stage.source.write(vm["disks"][0].as_str().unwrap(), 3 * MIB, b"over TLS");
    let report = stage.json(&["run", "erp"], 0);
    let point = report["vms"][0]["targets"][0]["recovery_point"].as_str().unwrap();
    assert_eq!(stage.target.content(point), stage.source.content(&stage.vm));
}
