//! `gc` after `kill -9`, over two pools in processes of their own.

use crate::stage::{MIB, Stage, text};
use serde_json::{Value, json};
use std::process::Stdio;

/// Starts a run and waits until it stands still in the middle of an export.
fn run_that_stalls(stage: &Stage) -> std::process::Child {
    for disk in stage.source.disks(&stage.vm) {
        stage.source.write(&disk, 8 * MIB, &[9; 12 << 20]);
    }
    stage.source.admin("POST", "/fault", &json!({ "at": "export", "kind": { "stall_after": 5 * MIB } }));
    let run = stage.command(&["run", "erp"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    stage.source.admin("POST", "/wait-stalled", &Value::Null);
    run
}

#[test]
fn what_a_killed_run_left_is_told_and_then_put_right() {
    let stage = Stage::new();
    stage.json(&["run", "erp"], 0);
    let clean = stage.json(&["gc", "erp"], 0);
    assert_eq!(clean["findings"], json!([]), "{clean:#}");
    let mut run = run_that_stalls(&stage);
    run.kill().unwrap();
    run.wait().unwrap();
    stage.source.admin("DELETE", "/faults", &Value::Null);

    let (source, target) = (stage.source.everything(), stage.target.everything());
    let output = stage.vmferry(&["gc", "erp", "--dry-run"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    for words in ["unconfirmed source snapshot", "half-written replica", "dead lease", "to put right with --apply"] {
        assert!(text(&output).contains(words), "{words:?} is missing: {}", text(&output));
    }
    assert_eq!((stage.source.everything(), stage.target.everything()), (source, target), "looking changes nothing");

    let applied = stage.json(&["gc", "erp", "--apply"], 0);
    let findings = applied["findings"].as_array().unwrap().iter().filter(|finding| finding["act"] != "keep");
    assert!(findings.clone().count() > 4 && findings.clone().all(|f| f["fate"] == "done"), "{applied:#}");
    let report = stage.json(&["run", "erp"], 0);
    let target = &report["vms"][0]["targets"][0];
    assert!(target["disks"].as_array().unwrap().iter().all(|disk| disk["kind"] == "delta"), "{report:#}");
    assert_eq!(target["warnings"], json!([]), "{report:#}");
    let point = target["recovery_point"].as_str().unwrap();
    assert_eq!(stage.target.content(point), stage.source.content(&stage.vm));
}

#[test]
fn nothing_is_touched_while_a_run_works_on_the_vm() {
    let stage = Stage::new();
    stage.json(&["run", "erp"], 0);
    let mut run = run_that_stalls(&stage);
    let found = stage.json(&["gc", "erp", "--apply"], 5);
    assert_eq!(found["findings"][0]["kind"], "held-lease", "{found:#}");
    assert!(found["findings"].as_array().unwrap().iter().all(|finding| finding["act"] == "keep"), "{found:#}");
    stage.source.admin("DELETE", "/faults", &Value::Null);
    assert!(run.wait().unwrap().success(), "the run goes on as if nothing had been");
}

#[test]
fn a_vm_that_the_job_has_nothing_of_is_a_wrong_question() {
    let stage = Stage::new();
    let output = stage.vmferry(&["gc", "erp", "--vm", "11111111-0000-4000-8000-000000000001"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("has nothing of VM 11111111"), "{}", text(&output));
}
