//! `vmferry daemon`: runs when the schedule component says so, and ends cleanly.

use crate::stage::{MIB, Stage, text};
use serde_json::{Value, json};
use std::process::{Child, Command, Stdio};

/// A daemon that does not outlive a test that fails.
struct Daemon(Option<Child>);

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.0.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

#[test]
fn the_daemon_runs_the_job_again_and_again_and_ends_on_sigterm() {
    let stage = Stage::new();
    stage.configure("schedule = { plugin = 'schedule-interval', with = { every = '1s' } }");
    // A run takes one snapshot of its source, so the second one stalled there is a second run.
    let at_snapshot = json!({ "at": { "call": "VM.snapshot" }, "kind": { "stall_after": 0 } });
    let stall = || stage.source.admin("POST", "/fault", &at_snapshot);
    let stalled = || stage.source.admin("POST", "/wait-stalled", &Value::Null);
    let go_on = || stage.source.admin("DELETE", "/faults", &Value::Null);

    stall();
    let daemon = stage.command(&["daemon"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut daemon = Daemon(Some(daemon));
    stalled();
    go_on();
    for disk in stage.source.disks(&stage.vm) {
        stage.source.write(&disk, 20 * MIB, b"a change for the second run");
    }
    stall();
    stalled();
    go_on();
    let ended =
        Command::new("sh").args(["-c", &format!("kill -TERM {}", daemon.0.as_ref().unwrap().id())]).status().unwrap();
    assert!(ended.success());
    let output = daemon.0.take().unwrap().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));

    // Whatever it was doing, the next run finds everything in order.
    let report = stage.json(&["run", "erp"], 0);
    let point = report["vms"][0]["targets"][0]["recovery_point"].as_str().unwrap();
    assert_eq!(stage.target.content(point), stage.source.content(&stage.vm));
}
