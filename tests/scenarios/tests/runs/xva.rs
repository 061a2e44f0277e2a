//! A recovery point as one XVA, which the pool's own import takes; and a new VM of an XVA that the pool's own export made.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use vmferry_engine::{EngineError, RestoreReport, RestoreRequest, RestoreTo, Silent, XvaRequest};
use vmferry_model::report::Outcome;
use vmferry_scenarios::shelf::Shelf;
use vmferry_scenarios::{MIB, World};
use xapi_sim::Sim;

/// A world with a point on a pool and on a shelf.
async fn one_point(shelf: &Shelf) -> World {
    let mut world = World::new().await;
    world.job.stores.push(shelf.target("shelf"));
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    world
}

async fn to_xva(world: &World, target: &str, file: &Path) -> Result<RestoreReport, EngineError> {
    let engine = world.engine();
    let to = RestoreTo::Xva { file: file.to_owned() };
    let request = RestoreRequest { vm: world.vm.clone(), point: None, target: Some(target.to_owned()), to };
    let done = engine.restore(&world.job, &request, Arc::new(Silent)).await;
    engine.close().await;
    done
}

async fn from_xva(world: &World, file: &Path) -> Result<RestoreReport, EngineError> {
    let engine = world.engine();
    let request = XvaRequest {
        file: file.to_owned(),
        tenant: "default".to_owned(),
        pool: "dr".to_owned(),
        sr: None,
        networks: BTreeMap::new(),
        name: Some("brought".to_owned()),
    };
    let done = engine.restore_xva(&request, Arc::new(Silent)).await;
    engine.close().await;
    done
}

/// A request as `xe` makes one, of which the body is the answer's.
async fn http(sim: &Sim, request: &str, body: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(sim.url().trim_start_matches("http://")).await.unwrap();
    let root = "Authorization: Basic cm9vdDpwYXNzd29yZA==";
    stream.write_all(format!("{request} HTTP/1.1\r\nHost: x\r\n{root}\r\n\r\n").as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let head = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    assert!(answer[9..].starts_with(b"200"), "{}", String::from_utf8_lossy(&answer));
    answer.split_off(head)
}

/// What `xe vm-import` makes of a file: the uuid of the new VM.
async fn pools_import(sim: &Sim, file: &Path) -> String {
    let before = sim.records("VM");
    let answer = http(sim, "PUT /import?restore=true", &std::fs::read(file).unwrap()).await;
    assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    let is_new = |vm: &&serde_json::Value| !before.iter().any(|known| known["$ref"] == vm["$ref"]);
    let vms = sim.records("VM");
    vms.iter().find(is_new).expect("a new VM")["uuid"].as_str().unwrap().to_owned()
}

/// The XVA that `xe vm-export` makes of the source.
async fn pools_export(world: &World, file: &Path) {
    let session = world.at_source().await;
    let vm: vmferry_xapi::Ref<vmferry_xapi::records::Vm> = session.by_uuid(&world.vm).await.unwrap();
    let () = session.call_async("VM.clean_shutdown", vmferry_xapi::params![&vm]).await.unwrap();
    session.logout().await.unwrap();
    let xva = http(&world.source, &format!("GET /export?uuid={}", world.vm), &[]).await;
    std::fs::write(file, xva).unwrap();
}

#[tokio::test]
async fn the_pools_own_import_takes_a_point_of_any_target() {
    let shelf = Shelf::new(1 << 20);
    let world = one_point(&shelf).await;
    let then = world.source_content();
    world.source.write(&world.source.vm_disks(&world.vm)[0], 30 * MIB, &[9; 4096]);
    let folder = tempfile::tempdir().unwrap();
    for target in ["shelf", "dr"] {
        let file = folder.path().join(target);
        let report = to_xva(&world, target, &file).await.unwrap();
        assert!(report.disks.iter().all(|disk| disk.proven), "{report:#?}");
        let vm = pools_import(&world.target, &file).await;
        assert_eq!(world.target_content(&vm), then, "{target}");
        assert_eq!(vm, world.vm, "an import that restores gives the uuid back");
        let (made, source) = (world.target.record("VM", &vm).unwrap(), world.source.record("VM", &vm).unwrap());
        for field in ["name_label", "memory_static_max", "VCPUs_max", "platform", "HVM_boot_params", "tags"] {
            assert_eq!(made[field], source[field], "{target}: {field}");
        }
        assert_eq!(made["is_a_template"], false);
        let mac = |sim: &Sim, vifs: &serde_json::Value| {
            let vif = sim.records("VIF").into_iter().find(|vif| vif["$ref"] == vifs[0]);
            vif.expect("an interface")["MAC"].clone()
        };
        assert_eq!(mac(&world.target, &made["VIFs"]), mac(&world.source, &source["VIFs"]), "{target}");
        let keys = made["other_config"].as_object().unwrap();
        assert!(!keys.keys().any(|key| key.starts_with("vmferry:") || key.starts_with("xo:")), "{target}: {keys:#?}");
        let session = world.at_target().await;
        let vm: vmferry_xapi::Ref<vmferry_xapi::records::Vm> = session.by_uuid(&vm).await.unwrap();
        let () = session.call_async("VM.start", vmferry_xapi::params![&vm, false, false]).await.unwrap();
        let () = session.call_async("VM.hard_shutdown", vmferry_xapi::params![&vm]).await.unwrap();
        let () = session.call_async("VM.destroy", vmferry_xapi::params![&vm]).await.unwrap();
        session.logout().await.unwrap();
    }
}

#[tokio::test]
async fn a_file_that_is_there_stays_and_one_that_was_not_finished_does_not() {
    let shelf = Shelf::new(1 << 20);
    let world = one_point(&shelf).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vm.xva");
    shelf.fail("read");
    to_xva(&world, "shelf", &file).await.unwrap_err();
    assert!(!file.exists());
    std::fs::write(&file, "somebody's").unwrap();
    let error = to_xva(&world, "shelf", &file).await.unwrap_err().to_string();
    assert!(error.contains("vm.xva") && error.contains("exists"), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), b"somebody's");
}

#[tokio::test]
async fn an_xva_of_the_pools_own_export_becomes_a_vm_like_its_source() {
    let world = World::new().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vm.xva");
    pools_export(&world, &file).await;
    let report = from_xva(&world, &file).await.unwrap();
    let vm = report.restored.clone().unwrap();
    assert_eq!(world.target_content(&vm), world.source_content());
    let (made, source) = (world.target.record("VM", &vm).unwrap(), world.source.record("VM", &world.vm).unwrap());
    for field in ["memory_static_max", "VCPUs_max", "platform", "HVM_boot_params", "tags"] {
        assert_eq!(made[field], source[field], "{field}");
    }
    assert_eq!((&made["name_label"], &made["is_a_template"]), (&"brought".into(), &false.into()));
    assert_eq!(made["VIFs"].as_array().unwrap().len(), 1);
    assert_eq!(report.vm, world.vm);
}

#[tokio::test]
async fn what_we_write_we_read() {
    let shelf = Shelf::new(64 << 10);
    let world = one_point(&shelf).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vm.xva");
    to_xva(&world, "shelf", &file).await.unwrap();
    let report = from_xva(&world, &file).await.unwrap();
    assert_eq!(world.target_content(&report.restored.unwrap()), world.source_content());
}

#[tokio::test]
async fn a_damaged_xva_is_refused_with_a_reason_and_leaves_nothing() {
    let world = World::new().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vm.xva");
    pools_export(&world, &file).await;
    let whole = std::fs::read(&file).unwrap();
    let before = world.target.object_counts();
    let mut damaged = whole.clone();
    let at = whole.windows(16).position(|window| window == b"a row in a table").unwrap();
    damaged[at] ^= 1;
    for (bytes, why) in [
        (&damaged[..], "the checksum of chunk at disk byte 7340032 of Ref:"),
        (&whole[..whole.len() - 2 * MIB as usize], "it was cut off; copy or export it again"),
        (b"\x1f\x8b and so on", "it was cut off"),
        (&[b"\x28\xb5\x2f\xfd", &[1; 512][..]].concat(), "`unzstd < FILE > FILE.xva`"),
        (&[7; 2048], "it is no XVA"),
    ] {
        std::fs::write(&file, bytes).unwrap();
        let error = from_xva(&world, &file).await.unwrap_err().to_string();
        assert!(error.contains(why) && error.contains("vm.xva"), "{error}");
        for class in ["VM", "VDI", "VBD", "VIF"] {
            assert_eq!(world.target.object_counts().get(class), before.get(class), "{class}: {why}");
        }
    }
    std::fs::remove_file(&file).unwrap();
    let error = from_xva(&world, &file).await.unwrap_err().to_string();
    assert!(error.contains("No such file"), "{error}");
}
