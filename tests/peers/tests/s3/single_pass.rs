//! One job with a pool, a repository and a bucket: the source is read once, and all three hold the same moment.

use crate::component;
use crate::server::{Kind as Store, Server, with_each_server};
use std::collections::BTreeMap;
use std::sync::Arc;
use vmferry_engine::{RestoreRequest, RestoreTo, Silent, StoreTarget};
use vmferry_model::plan::Kind;
use vmferry_model::report::Outcome;
use vmferry_model::target::PointStore;
use vmferry_sandbox::{Grants, Instance, Package, Sandbox, Settings, Target};
use vmferry_scenarios::{MIB, World};

/// The repository in a folder, with chunks as large as the bucket's.
async fn repository(folder: &std::path::Path) -> Arc<Target> {
    let compile_cache = Some(concat!(env!("CARGO_TARGET_TMPDIR"), "/compiled-plugins").into());
    let bundled = vmferry_bundle::get("target-repository").unwrap();
    let package = Package::from_parts("bundled", bundled.manifest, bundled.component).unwrap();
    let plugin = Sandbox::new(&Settings { compile_cache }).unwrap().load(&package).await.unwrap();
    let grants = Grants { folders: vec![folder.to_str().unwrap().to_owned()], ..Grants::default() };
    let with = serde_json::json!({ "folder": folder, "chunk_size": "1 MiB", "create": true });
    plugin.target(Instance { with, grants, ..Instance::default() }).await.unwrap()
}

fn store(name: &str, store: &Arc<Target>) -> StoreTarget {
    StoreTarget {
        name: name.to_owned(),
        store: store.clone(),
        place: StoreTarget::place("default", "erp", name),
        required: true,
        throttles: Vec::new(),
    }
}

async fn a_pool_a_repository_and_a_bucket_hold_the_same_moment_of_one_read(kind: Store) -> anyhow::Result<()> {
    let Some(server) = Server::strict(kind)? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let bucket = component::target(&server.url, &server.access_key, &server.secret_key).await;
    let repository = repository(folder.path()).await;
    let mut world = World::new().await;
    world.job.stores = vec![store("repository", &repository), store("bucket", &bucket)];

    for (byte, kind) in [(1, Kind::Full), (2, Kind::Delta), (3, Kind::Delta)] {
        world.source.write(&world.source.vm_disks(&world.vm)[0], 10 * MIB, &[byte; 100_000]);
        world.source.clear_calls();
        let report = world.run().await;
        assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
        let reads = world.source.calls().iter().filter(|call| call.contains("/export_raw_vdi")).count();
        assert_eq!(reads, 2, "each of two disks is read once");
        let targets = &report.vms[0].targets;
        assert_eq!(targets.len(), 3);
        let digests = |number: usize| targets[number].disks.iter().map(|disk| &disk.digest).collect::<Vec<_>>();
        assert!(targets.iter().all(|target| target.disks.iter().all(|disk| disk.kind == kind)), "{report:#?}");
        assert!(digests(0) == digests(1) && digests(0) == digests(2), "{report:#?}");
        assert_eq!(targets[1].recovery_point, targets[2].recovery_point);
    }

    let content = world.source_content();
    for target in ["repository", "bucket"] {
        let engine = world.engine();
        let to = RestoreTo::NewVm { pool: "dr".to_owned(), sr: None, networks: BTreeMap::new(), name: None };
        let request = RestoreRequest { vm: world.vm.clone(), point: None, target: Some(target.to_owned()), to };
        let report = engine.restore(&world.job, &request, Arc::new(Silent)).await?;
        engine.close().await;
        assert!(report.disks.iter().all(|disk| disk.proven), "{report:#?}");
        assert_eq!(world.target_content(&report.restored.unwrap()), content, "{target}");
    }
    for store in [&repository, &bucket] {
        assert_eq!(store.points(Some(&world.vm)).await?.len(), 3);
        assert_eq!(store.passed().copied, 0, "disk data in the plugin's memory");
    }
    Ok(())
}

with_each_server!(async a_pool_a_repository_and_a_bucket_hold_the_same_moment_of_one_read);
