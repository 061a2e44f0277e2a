//! Components that misbehave in a run of the program: it ends safely, prunes nothing, and names the plugin.

use crate::stage::Stage;
use serde_json::Value;

/// Installs a guest as a plugin of `kind` and lets the job use it.
fn install(stage: &Stage, kind: &str, component: &[u8], use_it: &str, limits: &str) {
    let folder = stage.path("bad");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("plugin.toml"), vmferry_test_guests::manifest(kind, "")).unwrap();
    std::fs::write(folder.join("plugin.wasm"), component).unwrap();
    stage.configure(&format!("{use_it}\n\n[plugin.misbehaving-guests]\npath = '{}'\n{limits}", folder.display()));
}

fn target(report: &Value) -> &Value {
    &report["vms"][0]["targets"][0]
}

#[test]
fn a_retention_component_that_misbehaves_prunes_nothing() {
    let stage = Stage::new();
    stage.json(&["run", "erp"], 0);
    let limits = "limits = { timeout = '500ms', cpu = '200ms', memory = '16 MiB' }";
    for (guest, word) in [
        ("traps_as_retention", "trapped"),
        ("spins_as_retention", "limits.cpu"),
        ("eats_memory", "memory"),
        ("answers_nonsense", "nonsense"),
    ] {
        install(
            &stage,
            "retention",
            vmferry_test_guests::get(guest),
            "retention = { plugin = 'misbehaving-guests' }",
            limits,
        );
        let report = stage.json(&["run", "erp"], 0);
        assert_eq!(target(&report)["pruned"].as_array().map(Vec::len), Some(0), "{guest}: {report:#}");
        let warnings = target(&report)["warnings"].to_string();
        for expected in ["nothing was pruned", "misbehaving-guests", "select", word] {
            assert!(warnings.contains(expected), "{guest}: {expected:?} is missing: {warnings}");
        }
    }
}

#[test]
fn a_scheduler_component_that_refuses_the_plan_moves_no_byte() {
    let stage = Stage::new();
    let use_it = "schedule = { plugin = 'misbehaving-guests' }";
    install(&stage, "scheduler", vmferry_test_guests::get("refuses_full_copies"), use_it, "");
    let before = stage.source.everything();
    let report = stage.json(&["run", "erp"], 4);
    assert_eq!(report["outcome"], "refused", "{report:#}");
    assert_eq!(stage.source.everything(), before);
}
