//! `seed` between two URLs, with no configuration, and on media.

use crate::stage::{Pool, Stage, pool_section, text};
use std::process::Command;
use vmferry_xapi::records::Vm;
use vmferry_xapi::{Endpoint, Ref, Session, Trust, params};

const PASSWORD: &str = "p@ss#w:o/r%d";
const ENCODED: &str = "p%40ss%23w%3Ao%2Fr%25d";
const JOB: &str = "6e1c4b9e-0000-4000-8000-000000000001";
const SCHEDULE: &str = "6e1c4b9e-0000-4000-8000-000000000002";

/// uuid of a snapshot that somebody takes of the stage's VM.
fn snapshot(stage: &Stage) -> String {
    let take = async {
        let pin = Trust::parse_pin(stage.source.text("certificate_sha256")).unwrap();
        let endpoint = Endpoint::parse(stage.source.text("url")).unwrap().with_trust(pin);
        let session = Session::login(&endpoint.with_credentials("root", PASSWORD), "test").await.unwrap();
        let vm: Ref<Vm> = session.by_uuid(&stage.vm).await.unwrap();
        let snapshot: Ref<Vm> = session.call_async("VM.snapshot", params![&vm, "by hand"]).await.unwrap();
        let uuid: String = session.call("VM.get_uuid", params![&snapshot]).await.unwrap();
        session.logout().await.unwrap();
        uuid
    };
    tokio::runtime::Runtime::new().unwrap().block_on(take)
}

#[test]
fn two_urls_with_any_password_seed_a_job_that_goes_on_with_a_delta() {
    let pool = || Pool::start(&["--tls", "--password", PASSWORD]);
    let stage = Stage::with(pool(), pool());
    let section = |name, pool| pool_section(name, pool).replace("'password'", &format!("'{PASSWORD}'"));
    let configure = |more: &str| {
        stage.configure_pools(&section("prod", &stage.source), &section("dr", &stage.target), more);
    };
    configure("");
    stage.json(&["run", "erp"], 0);
    let clone = stage.json(&["failover", "clone", "erp", "--vm", &stage.vm, "--no-start"], 0);
    let (snapshot, copy) = (snapshot(&stage), clone["vm"].as_str().unwrap());

    let url = |pool: &Pool| pool.text("url").replace("https://", &format!("https://root:{ENCODED}@"));
    let (source, target) = (url(&stage.source), url(&stage.target));
    let seed = |snapshot: &str, pins: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmferry"));
        command.current_dir(stage.folder.path().join("state"));
        command.args(["--json", "seed", &source, snapshot, &target, copy, JOB, SCHEDULE]).args(pins).output().unwrap()
    };
    let distrusted = seed(&snapshot, &[]);
    assert_eq!(distrusted.status.code(), Some(1), "{}", text(&distrusted));
    assert!(
        text(&distrusted).contains("certificate") && !text(&distrusted).contains(PASSWORD),
        "{}",
        text(&distrusted)
    );

    let (source_pin, target_pin) = (stage.source.text("certificate_sha256"), stage.target.text("certificate_sha256"));
    let pins = ["--source-certificate", source_pin, "--target-certificate", target_pin];
    let refused = seed(&stage.vm, &pins);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
    assert!(text(&refused).contains("is no snapshot"), "{}", text(&refused));
    let seeded = seed(&snapshot, &pins);
    assert_eq!(seeded.status.code(), Some(0), "{}", text(&seeded));

    configure(&format!("xo = {{ job = '{JOB}', schedule = '{SCHEDULE}' }}"));
    let first = stage.json(&["run", "erp"], 0);
    let run = &first["vms"][0]["targets"][0];
    assert_eq!((&run["replica"], &run["disks"][0]["kind"]), (&clone["vm"], &"delta".into()), "{first:#}");
}

#[test]
fn a_first_copy_goes_out_and_comes_in_by_a_folder() {
    let stage = Stage::new();
    let media = stage.path("usb");
    let folder = media.to_str().unwrap();
    let export = ["seed", "export", "erp", "--vm", &stage.vm, "--to", folder];
    let exported = stage.vmferry(&export);
    assert_eq!(exported.status.code(), Some(0), "{}", text(&exported));
    assert!(text(&exported).contains("then: vmferry seed import erp --from"), "{}", text(&exported));
    assert_eq!(stage.vmferry(&export).status.code(), Some(2), "it holds an export already");
    let elsewhere = stage.vmferry(&["seed", "import", "erp", "--from", stage.folder.path().to_str().unwrap()]);
    assert_eq!(elsewhere.status.code(), Some(1));
    assert!(text(&elsewhere).contains("no finished export"), "{}", text(&elsewhere));

    let imported = stage.json(&["seed", "import", "erp", "--from", folder], 0);
    assert_eq!(stage.target.content(imported["point"].as_str().unwrap()), stage.source.content(&stage.vm));
    let first = stage.json(&["run", "erp"], 0);
    assert_eq!(first["vms"][0]["targets"][0]["disks"][0]["kind"], "delta", "{first:#}");
    assert_eq!(stage.json(&["seed", "forget", "erp", "--vm", &stage.vm], 0)["snapshots"].as_array().unwrap().len(), 0);
}
