//! `failover start` and the boot test of a recovery point.

use crate::stage::{MIB, Pool, Stage, text};
use serde_json::{Value, json};
use std::process::Stdio;

fn point_of(report: &Value) -> &str {
    report["vms"][0]["targets"][0]["recovery_point"].as_str().unwrap_or_else(|| panic!("no point: {report:#}"))
}

fn power_state(stage: &Stage, vm: &str) -> Value {
    let vms = stage.target.records("VM");
    vms.iter().find(|record| record["uuid"] == vm).unwrap_or_else(|| panic!("no VM {vm}"))["power_state"].clone()
}

#[test]
fn after_kill_9_in_the_middle_of_a_transfer_the_replica_boots_the_last_point() {
    let stage = Stage::new();
    let first = stage.json(&["run", "erp"], 0);
    for disk in stage.source.disks(&stage.vm) {
        stage.source.write(&disk, 8 * MIB, &[9; 12 << 20]);
    }
    stage.target.admin("POST", "/fault", &json!({ "at": "import", "kind": { "stall_after": 5 * MIB } }));
    let mut run = stage.command(&["run", "erp"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    stage.target.admin("POST", "/wait-stalled", &Value::Null);
    run.kill().unwrap();
    run.wait().unwrap();
    stage.target.admin("DELETE", "/faults", &Value::Null);

    let start = ["failover", "start", "erp", "--vm", &stage.vm];
    let refused = stage.vmferry(&start);
    assert_eq!(refused.status.code(), Some(4), "{}", text(&refused));
    assert!(text(&refused).contains("half-written") && text(&refused).contains("--force"), "{}", text(&refused));

    let started = stage.json(&[&start[..], &["--force"]].concat(), 0);
    let replica = started["vm"].as_str().unwrap();
    assert_eq!(
        (&started["point"], &started["disks_replaced"]),
        (&json!(point_of(&first)), &json!(true)),
        "{started:#}"
    );
    assert_eq!(power_state(&stage, replica), "Running");
    assert_eq!(stage.target.content(replica), stage.target.content(point_of(&first)));
    assert_eq!(stage.json(&start, 0)["already_running"], true);
    let points = stage.json(&["points", "list", "erp"], 0);
    assert_eq!(points["jobs"][0]["replicas"][0]["state"], "failed-over", "{points:#}");

    let next = stage.json(&["run", "erp"], 0);
    assert_ne!(next["vms"][0]["targets"][0]["replica"], replica);
    assert_eq!(stage.target.content(replica), stage.target.content(point_of(&first)), "no run overwrites it");
}

#[test]
fn a_run_at_work_ends_a_failover_with_code_5_and_force_ends_the_run() {
    let stage = Stage::new();
    let first = stage.json(&["run", "erp"], 0);
    let content = stage.target.content(point_of(&first));
    // Whichever disk is first.
    for disk in stage.source.disks(&stage.vm) {
        stage.source.write(&disk, 8 * MIB, &[9; 12 << 20]);
    }
    stage.target.admin("POST", "/fault", &json!({ "at": "import", "kind": { "stall_after": 5 * MIB } }));
    let run = stage.command(&["run", "erp"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    stage.target.admin("POST", "/wait-stalled", &Value::Null);

    let start = ["failover", "start", "erp", "--vm", &stage.vm];
    let locked = stage.vmferry(&start);
    assert_eq!(locked.status.code(), Some(5), "{}", text(&locked));
    assert!(text(&locked).contains("remedy: --force"), "{}", text(&locked));
    let output = stage.vmferry(&[&start[..], &["--force"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).contains("runs leave it alone from now on"), "{}", text(&output));

    stage.target.admin("DELETE", "/faults", &Value::Null);
    let run = run.wait_with_output().unwrap();
    assert_eq!(run.status.code(), Some(1), "{}", text(&run));
    assert!(text(&run).contains("was taken over"), "{}", text(&run));
    let replica = first["vms"][0]["targets"][0]["replica"].as_str().unwrap();
    assert_eq!((power_state(&stage, replica), stage.target.content(replica)), (json!("Running"), content));
}

#[test]
fn a_boot_test_tells_by_its_code_whether_the_guest_came_up_and_leaves_nothing() {
    for (guests, code) in [(&[][..], 0), (&["--hold-guests"][..], 1)] {
        let (source, target) = (Pool::start(&[]), Pool::start(guests));
        let vm = source.admin("POST", "/add-vm", &json!({ "name": "vm", "disks": [{ "name": "d", "size": 8 * MIB }] }));
        let stage = Stage::of(source, target, vm["vm"].as_str().unwrap());
        stage.configure("");
        stage.json(&["run", "erp"], 0);
        let objects = || ["VM", "VDI", "VBD", "VIF"].map(|class| stage.target.records(class).len());
        let before = objects();
        let test =
            ["failover", "clone", "erp", "--vm", &stage.vm, "--network", "none", "--new-macs", "--wait-guest", "1"];
        let clone = stage.json(&[&test[..], &["--check", "metrics", "--remove-after"]].concat(), code);
        assert_eq!((&clone["guest"]["up"], &clone["removed"]), (&json!(code == 0), &json!(true)), "{clone:#}");
        let error = clone["guest"]["error"].as_str().unwrap_or_default();
        assert_eq!(error.contains("its VM is Running, its agent has told nothing"), code == 1, "{clone:#}");
        assert_eq!(objects(), before);
    }
}
