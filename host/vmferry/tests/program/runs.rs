//! `run`, `plan`, `points` and `failover` over two pools in processes of their own.

use crate::stage::{MIB, Stage, text};
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
