//! A target that is written in JavaScript: a VM goes there and comes back.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on has failed its test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use vmferry_engine::{RestoreRequest, RestoreTo, Silent, StoreTarget};
use vmferry_model::plan::Kind;
use vmferry_model::report::{Outcome, RunReport};
use vmferry_model::target::PointStore as _;
use vmferry_peers::{Peer, example_target_js};
use vmferry_sandbox::{Grants, Instance, Package, Sandbox, Settings, Target};
use vmferry_scenarios::{Keep, MIB, World};

/// The plugin, built. `None` where there is nothing to build it with.
async fn package() -> anyhow::Result<Option<Package>> {
    let Some(node) = Peer::componentize()? else { return Ok(None) };
    let folder = tempfile::tempdir()?;
    let component = folder.path().join("example-target-js.wasm");
    node.run([example_target_js("build.mjs"), component]).await?;
    std::fs::copy(example_target_js("plugin.toml"), folder.path().join("plugin.toml"))?;
    Ok(Some(Package::from_folder(folder.path())?))
}

/// The plugin, keeping its points in this folder.
async fn target(folder: &Path) -> anyhow::Result<Option<Arc<Target>>> {
    let Some(package) = package().await? else { return Ok(None) };
    let compile_cache = Some(concat!(env!("CARGO_TARGET_TMPDIR"), "/compiled-plugins").into());
    let plugin = Sandbox::new(&Settings { compile_cache })?.load(&package).await?;
    let grants = Grants { folders: vec![folder.to_str().unwrap().to_owned()], ..Grants::default() };
    let instance = Instance { grants, with: json!({ "folder": folder }), ..Instance::default() };
    Ok(Some(plugin.target(instance).await?))
}

/// A world whose job keeps its points there, and nowhere else.
async fn world(target: &Arc<Target>) -> World {
    let mut world = World::new().await;
    world.job.targets.clear();
    world.job.stores.push(StoreTarget {
        name: "folder".to_owned(),
        store: target.clone(),
        place: StoreTarget::place("default", "erp", "folder"),
        required: true,
        throttles: Vec::new(),
    });
    world
}

/// Changes the VM and runs the job; the new point.
async fn run(world: &World, byte: u8, kind: Kind) -> String {
    world.source.write(&world.source.vm_disks(&world.vm)[0], 10 * MIB, &[byte; 100_000]);
    let report: RunReport = world.run().await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    let target = &report.vms[0].targets[0];
    assert!(target.disks.iter().all(|disk| disk.kind == kind), "{target:#?}");
    target.recovery_point.clone().unwrap()
}

/// Restores a point as a new VM on the pool `dr`; what its disks hold.
async fn restored(world: &World, point: &str) -> Vec<String> {
    let engine = world.engine();
    let to = RestoreTo::NewVm { pool: "dr".to_owned(), sr: None, networks: BTreeMap::new(), name: None };
    let (vm, target) = (world.vm.clone(), Some("folder".to_owned()));
    let request = RestoreRequest { vm, point: Some(point.to_owned()), target, to };
    let report = engine.restore(&world.job, &request, Arc::new(Silent)).await.unwrap();
    engine.close().await;
    assert!(report.disks.iter().all(|disk| disk.proven), "{report:#?}");
    world.target_content(&report.restored.unwrap())
}

/// All files of chunks below a folder, by path.
fn chunks(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> =
        entries.flat_map(|path| if path.is_dir() { chunks(&path) } else { vec![path] }).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "zst"));
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_goes_to_a_target_in_javascript_and_comes_back() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let Some(target) = target(folder.path()).await? else { return Ok(()) };
    let mut world = world(&target).await;
    let mut points = Vec::new();
    for (byte, kind) in [(1, Kind::Full), (2, Kind::Delta), (3, Kind::Delta)] {
        points.push((run(&world, byte, kind).await, world.source_content()));
    }
    for (point, content) in &points {
        assert_eq!(&restored(&world, point).await, content);
        assert_eq!(target.verify(point).await?, []);
    }
    let passed = target.passed();
    assert!(passed.stored > 0 && passed.restored > 0, "{passed:?}");
    assert_eq!(passed.copied, 0, "disk data in the plugin's memory");
    // A VM's disks have data in four places, of which one changed.
    assert_eq!(points.iter().map(|(point, _)| chunks(&folder.path().join(point)).len()).collect::<Vec<_>>(), [4, 4, 4]);

    world.policies.retention = Some(Arc::new(Keep(1)));
    points.push((run(&world, 4, Kind::Delta).await, world.source_content()));
    let (newest, content) = points.last().unwrap();
    let kept = target.points(None).await?;
    assert_eq!(kept.iter().map(|point| &point.id).collect::<Vec<_>>(), [newest]);
    assert_eq!(&restored(&world, newest).await, content, "its base is gone, and it is whole");

    let draft = folder.path().join("begun.draft");
    std::fs::create_dir_all(draft.join("disk/0"))?;
    std::fs::write(draft.join("disk/0/chunk"), [0; 4096])?;
    for apply in [false, true] {
        let report = world.gc(apply).await;
        let found: Vec<_> = report.findings.iter().filter(|finding| finding.class == "stored").collect();
        assert_eq!(found.len(), 1, "{report:#?}");
        assert_eq!(draft.exists(), !apply);
    }
    assert!(world.gc(false).await.findings.is_empty());
    Ok(())
}
