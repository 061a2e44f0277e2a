//! Plugins as a configuration uses them: what `config check` says to settings and components that cannot work.

use expect_test::{Expect, expect};
use std::path::Path;
use tempfile::TempDir;
use vmferry::config::{self, Surroundings};
use vmferry::plugins::Plugins;
use vmferry_store::Store;

/// What the plugins of a job say, with the folder's name taken out.
async fn complaints(folder: &Path, job: &str) -> String {
    let pools = "[pool.a]\nurl = \"https://a\"\nusername = \"root\"\npassword = \"x\"\n";
    let select = "select = { pool = \"a\", tags = [\"t\"] }\n\
                  targets = [{ name = \"b\", pool = \"a\", sr = \"5aaf86ca-0000-4000-8000-000000000001\" }]\n";
    let file = folder.join("vmferry.toml");
    std::fs::write(&file, format!("{pools}[job.erp]\n{select}{job}\n")).expect("a file is written");
    let bundled: Vec<_> = vmferry_bundle::all().iter().map(|plugin| plugin.id).collect();
    let config =
        config::load(&file, &Surroundings { environment: &|_| None, bundled: &bundled }).expect("it is well-formed");
    let store = Store::in_memory().await.expect("a store in memory");
    let plugins = Plugins::new(&config, &store, None).expect("a sandbox");
    match plugins.policies(&config.jobs["erp"]).await {
        Ok(_) => String::new(),
        Err(failure) => format!("{failure}\n").replace(&format!("{}/", folder.display()), ""),
    }
}

async fn check(job: &str, expected: Expect) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    expected.assert_eq(&complaints(folder.path(), job).await);
}

#[tokio::test]
async fn good_settings_bring_no_complaint() {
    check(
        "schedule = { plugin = \"schedule-interval\", with = { every = \"15m\" } }\n\
         retention = { plugin = \"retain-count\", with = { keep = 3 } }\n\
         notify = [{ plugin = \"notify-webhook\", with = { url = \"https://ops.example.org/hook\" } }]",
        expect![[""]],
    )
    .await;
}

#[tokio::test]
async fn settings_are_checked_by_the_plugin_and_all_complaints_come_at_once() {
    check(
        "schedule = { plugin = \"schedule-interval\", with = { every = \"soon\" } }\n\
         retention = { plugin = \"retain-count\", with = { kept = 3 } }",
        expect![[r#"
            error: plugin schedule-interval 0.1.0: validate-config: `every`: invalid value: string "soon", expected a length of time like "30s", "15m", "1h30m" or "7d" (config)
              where: vmferry.toml:8:23 (job.erp.schedule.plugin)
            error: plugin retain-count 0.1.0: validate-config: unknown field `kept`, expected `keep` (config)
              where: vmferry.toml:9:24 (job.erp.retention.plugin)
        "#]],
    )
    .await;
}

#[tokio::test]
async fn a_plugin_of_another_kind_is_refused() {
    check(
        "schedule = { plugin = \"retain-count\", with = { keep = 3 } }",
        expect![[r#"
        error: plugin retain-count 0.1.0: setup: it is a retention, and cannot be used as a scheduler
          where: vmferry.toml:8:23 (job.erp.schedule.plugin)
    "#]],
    )
    .await;
}

#[tokio::test]
async fn what_is_no_component_is_refused() {
    let folder: TempDir = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("schedule-x.wasm"), "not WebAssembly").expect("a file is written");
    let job = |path: &str| format!("schedule = {{ plugin = \"schedule-x\" }}\n[plugin.schedule-x]\npath = \"{path}\"");
    expect![[r#"
        error: plugin schedule-x (schedule-x.wasm): is not a WebAssembly component; build it with `cargo build --target wasm32-wasip2 --release`
          where: vmferry.toml:8:23 (job.erp.schedule.plugin)
    "#]].assert_eq(&complaints(folder.path(), &job("schedule-x.wasm")).await);
    expect![[r#"
        error: plugin schedule-x: absent.wasm: cannot be read: No such file or directory (os error 2)
          where: vmferry.toml:8:23 (job.erp.schedule.plugin)
    "#]]
    .assert_eq(&complaints(folder.path(), &job("absent.wasm")).await);
}

#[tokio::test]
async fn a_plugin_is_called_what_it_calls_itself() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let bundled = vmferry_bundle::get("schedule-interval").expect("it is bundled");
    std::fs::write(folder.path().join("plugin.toml"), bundled.manifest).expect("a file is written");
    std::fs::write(folder.path().join("schedule.wasm"), bundled.component).expect("a file is written");
    let job = "schedule = { plugin = \"mine\", with = { every = \"15m\" } }\n[plugin.mine]\npath = \".\"";
    expect![[r#"
        error: plugin mine: what lies there calls itself `schedule-interval`
          where: vmferry.toml:8:23 (job.erp.schedule.plugin)
          remedy: call it `schedule-interval` in the configuration, too
    "#]]
    .assert_eq(&complaints(folder.path(), job).await);
}
