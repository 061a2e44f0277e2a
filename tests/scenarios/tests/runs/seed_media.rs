//! The first copy travels on media, and the first run is a delta.

use crate::kills::struck_after_call;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use vmferry_engine::{
    EngineError, FindingKind, GcAct, Progress, SeedExport, SeedExportRequest, SeedImport, SeedImportRequest, Silent,
};
use vmferry_model::plan::Kind;
use vmferry_model::report::{Outcome, RunReport};
use vmferry_scenarios::{MIB, World, disks, only_target, point_of};
use vmferry_xapi::records::Vm;
use vmferry_xapi::{Ref, params};
use xapi_sim::{Fault, FaultKind, FaultPoint, Sim};

fn silent() -> Arc<dyn Progress> {
    Arc::new(Silent)
}

async fn export_snapshot(world: &World, to: &Path, snapshot: Option<String>) -> Result<SeedExport, EngineError> {
    let engine = world.engine();
    let request = SeedExportRequest { vm: world.vm.clone(), snapshot, to: to.to_owned() };
    let report = engine.export_seed(&world.job, &request, &silent()).await;
    engine.close().await;
    report
}

async fn export(world: &World, to: &Path) -> Result<SeedExport, EngineError> {
    export_snapshot(world, to, None).await
}

async fn import_to(world: &World, from: &Path, target: Option<&str>) -> Result<SeedImport, EngineError> {
    let engine = world.engine();
    let request = SeedImportRequest { from: from.to_owned(), target: target.map(str::to_owned) };
    let report = engine.import_seed(&world.job, &request, &silent()).await;
    engine.close().await;
    report
}

async fn import(world: &World, from: &Path) -> Result<SeedImport, EngineError> {
    import_to(world, from, None).await
}

async fn forget(world: &World) -> Vec<String> {
    let engine = world.engine();
    let forgotten = engine.forget_seed(&world.job, &world.vm).await.unwrap();
    engine.close().await;
    forgotten
}

/// A world whose VM is on media that have not left yet.
async fn exported() -> (World, TempDir, SeedExport) {
    let (world, media) = (World::new().await, tempfile::tempdir().unwrap());
    let report = export(&world, media.path()).await.unwrap();
    (world, media, report)
}

fn change(world: &World) {
    world.source.write(&world.source.vm_disks(&world.vm)[0], 20 * MIB, &[3; 4096]);
}

#[track_caller]
fn assert_delta(world: &World, run: &RunReport, what: &str) {
    assert_eq!(run.outcome, Outcome::Succeeded, "{what}: {run:#?}");
    assert!(disks(run).iter().all(|disk| disk.kind == Kind::Delta), "{what}: {run:#?}");
    assert_eq!(world.target_content(&point_of(run)), world.source_content(), "{what}");
}

/// Whether it died; what gets to its end has succeeded.
async fn die_after_call<T>(pool: &Sim, nth: u32, action: impl Future<Output = Result<T, EngineError>>) -> bool {
    let (done, died) = struck_after_call(pool, nth, action).await;
    if let Some(done) = done {
        done.unwrap();
    }
    died
}

#[tokio::test]
async fn the_first_run_after_an_import_is_a_delta() {
    let (world, media, exported) = exported().await;
    let content = world.source_content();
    change(&world);
    let files: Vec<_> = std::fs::read_dir(media.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(files.len(), 3, "two disks and the manifest: {files:?}");

    world.source.go_down();
    world.lose_digests();
    let imported = import(&world, media.path()).await.unwrap();
    assert!(imported.warnings[0].contains("the source could not be asked"), "{imported:#?}");
    assert_eq!((imported.media, imported.taken_at), (exported.media, exported.taken_at));
    assert_eq!(world.target_content(&imported.point), content);
    let replica = world.target.record("VM", &imported.replica).unwrap();
    assert!(replica["blocked_operations"]["start"].as_str().unwrap().contains("vmferry failover clone"), "{replica:#}");
    assert_eq!(world.points().await[0].points[0].source_snapshot, exported.snapshot);
    world.source.come_back();

    let first = world.run().await;
    assert_delta(&world, &first, "after the import");
    assert_eq!(disks(&first)[0].changed_bytes, 2 * MIB);
    assert!(disks(&first).iter().all(|disk| disk.digest.is_some()), "{first:#?}");
    assert_eq!(only_target(&first).replica.as_ref(), Some(&imported.replica), "in place");
    assert!(world.source.record("VM", &exported.snapshot).is_none(), "there is a newer base");
    world.assert_tidy(2);
}

#[tokio::test]
async fn a_snapshot_that_somebody_took_is_exported_and_the_jobs_from_then_on() {
    let (world, media) = (World::new().await, tempfile::tempdir().unwrap());
    let session = world.at_source().await;
    let vm: Ref<Vm> = session.by_uuid(&world.vm).await.unwrap();
    let snapshot: Ref<Vm> = session.call_async("VM.snapshot", params![&vm, "by hand"]).await.unwrap();
    let snapshot: String = session.call("VM.get_uuid", params![&snapshot]).await.unwrap();
    session.logout().await.unwrap();
    let content = world.source_content();
    change(&world);
    let exported = export_snapshot(&world, media.path(), Some(snapshot.clone())).await.unwrap();
    assert_eq!(exported.snapshot, snapshot);
    let imported = import(&world, media.path()).await.unwrap();
    assert_eq!(world.target_content(&imported.point), content);
    assert_delta(&world, &world.run().await, "from a snapshot by hand");
}

#[tokio::test]
async fn the_snapshot_of_media_on_their_way_is_explained_kept_and_forgotten_on_request() {
    let (world, media, exported) = exported().await;
    let finding = async |world: &World| {
        let found = world.gc(true).await.findings;
        found.into_iter().find(|finding| finding.uuid == exported.snapshot && finding.kind == FindingKind::Seed)
    };
    let seed = finding(&world).await.unwrap();
    assert_eq!(seed.act, GcAct::Keep);
    assert!(
        seed.why.contains(&exported.media.to_string()) && seed.why.contains("vmferry seed forget erp"),
        "{seed:#?}"
    );
    let again = export(&world, media.path()).await.unwrap_err();
    assert!(again.is_usage() && again.to_string().contains("it holds an export already"), "{again}");

    assert_eq!(forget(&world).await, std::slice::from_ref(&exported.snapshot));
    assert!(world.source.record("VM", &exported.snapshot).is_none());
    assert_eq!(forget(&world).await, Vec::<String>::new());
    assert!(finding(&world).await.is_none());
}

#[tokio::test]
async fn media_that_arrived_may_be_forgotten_and_their_snapshot_stays_a_base() {
    let (world, media, exported) = exported().await;
    import(&world, media.path()).await.unwrap();
    assert_eq!(forget(&world).await, std::slice::from_ref(&exported.snapshot));
    let kept = world.source.record("VM", &exported.snapshot).unwrap();
    assert_eq!(kept["other_config"]["vmferry:exported-to"], world.target.default_sr().as_str(), "{kept:#}");
    assert!(kept["other_config"].get("vmferry:seed").is_none(), "{kept:#}");
    assert_delta(&world, &world.run().await, "after it was forgotten");
}

#[tokio::test]
async fn a_run_that_comes_before_the_media_makes_them_useless() {
    let (world, media, exported) = exported().await;
    let run = world.run().await;
    assert!(disks(&run).iter().all(|disk| disk.kind == Kind::Full), "{run:#?}");
    assert!(world.source.record("VM", &exported.snapshot).is_none(), "no target will need it");
    let late = import(&world, media.path()).await.unwrap_err();
    assert!(late.is_usage() && late.to_string().contains("media are imported where there are none"), "{late}");
    change(&world);
    assert_delta(&world, &world.run().await, "after the full copy");
    world.assert_tidy(2);
}

#[tokio::test]
async fn a_run_to_one_target_leaves_the_snapshot_to_media_on_their_way_to_another() {
    let (mut world, media, exported) = exported().await;
    let second = world.target.add_sr("second", 1 << 40);
    let mut other = world.job.targets[0].clone();
    (other.name, other.srs) = ("dr2".to_owned(), vec!["00000000-0000-4000-8000-000000000000".to_owned()]);
    world.job.targets.push(other);
    import_to(&world, media.path(), Some("dr")).await.unwrap();
    change(&world);
    let run = world.run().await;
    assert_eq!(run.outcome, Outcome::Partial, "{run:#?}");
    assert!(world.source.record("VM", &exported.snapshot).is_some(), "the other target may still need it");

    world.job.targets[1].srs = vec![second];
    import_to(&world, media.path(), Some("dr2")).await.unwrap();
    change(&world);
    let run = world.run().await;
    assert_eq!(run.outcome, Outcome::Succeeded, "{run:#?}");
    let targets = &run.vms[0].targets;
    assert!(targets.iter().flat_map(|target| &target.disks).all(|disk| disk.kind == Kind::Delta), "{run:#?}");
    for target in targets {
        assert_eq!(world.target_content(target.recovery_point.as_ref().unwrap()), world.source_content());
    }
    assert!(world.source.record("VM", &exported.snapshot).is_none());
}

#[tokio::test]
async fn an_export_may_die_after_any_call_and_be_asked_for_again() {
    let mut nth = 1;
    loop {
        let (world, media) = (World::new().await, tempfile::tempdir().unwrap());
        let what = format!("killed after call {nth}");
        let died = die_after_call(&world.source, nth, export(&world, media.path())).await;
        if !media.path().join("manifest.json").exists() {
            export(&world, media.path()).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        assert_eq!(std::fs::read_dir(media.path()).unwrap().count(), 3, "{what}: two disks and the manifest");
        change(&world);
        import(&world, media.path()).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_delta(&world, &world.run().await, &what);
        let snapshots = world.source.records("VM").into_iter().filter(|vm| vm["is_a_snapshot"] == true).count();
        assert_eq!(snapshots, 1, "{what}: nothing but the base is left");
        if !died {
            break;
        }
        nth += 1;
    }
    assert!(nth > 30, "an export has more calls than {nth}");
}

#[tokio::test]
async fn an_import_may_die_after_any_call_and_be_asked_for_again() {
    let mut nth = 1;
    loop {
        let (world, media, _) = exported().await;
        let content = world.source_content();
        let what = format!("killed after call {nth}");
        let died = die_after_call(&world.target, nth, import(&world, media.path())).await;
        // It may have come to its commit already; then there is nothing left to import.
        if world.points().await.is_empty() {
            import(&world, media.path()).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        let points = &world.points().await[0].points;
        assert_eq!(points.len(), 1, "{what}");
        assert_eq!(world.target_content(&points[0].id), content, "{what}");
        change(&world);
        assert_delta(&world, &world.run().await, &what);
        let garbage: Vec<_> = world.gc(false).await.findings.into_iter().filter(|it| it.act != GcAct::Keep).collect();
        assert!(garbage.is_empty(), "{what}: {garbage:#?}");
        if !died {
            break;
        }
        nth += 1;
    }
    assert!(nth > 40, "an import has more calls than {nth}");
}

#[tokio::test]
async fn an_export_that_breaks_leaves_neither_snapshot_nor_files() {
    let (world, media) = (World::new().await, tempfile::tempdir().unwrap());
    world.source.inject(Fault { at: FaultPoint::Export, nth: 2, kind: FaultKind::CutAfter(MIB) });
    let error = export(&world, media.path()).await.unwrap_err();
    assert!(error.to_string().contains("transfer of disk"), "{error}");
    assert_eq!(std::fs::read_dir(media.path()).unwrap().count(), 0);
    assert!(world.source.records("VM").iter().all(|vm| vm["is_a_snapshot"] == false));
    assert_eq!(world.digest_tables(), 0);
}

/// The files of the disks, the larger disk's first.
fn vhds(media: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(media).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|ext| ext == "vhd")).collect();
    found.sort_by_key(|path| std::cmp::Reverse(path.metadata().unwrap().len()));
    found
}

#[tokio::test]
async fn what_is_not_what_was_exported_is_refused_and_nothing_is_left() {
    let (world, media, _) = exported().await;
    let before = world.target.object_counts();
    let manifest = media.path().join("manifest.json");
    let written = std::fs::read_to_string(&manifest).unwrap();
    let disks: Vec<(PathBuf, Vec<u8>)> =
        vhds(media.path()).into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
    let refused = async |wanted: &str| {
        let error = import(&world, media.path()).await.unwrap_err().to_string();
        assert!(error.contains(wanted), "{wanted}: {error}");
        world.target.collect_garbage();
        assert_eq!(world.target.object_counts(), before, "{wanted}");
        assert!(world.points().await.is_empty());
    };
    let restore = || {
        std::fs::write(&manifest, &written).unwrap();
        disks.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
    };

    let mut rotten = disks[0].1.clone();
    let middle = rotten.len() - (1 << 20);
    rotten[middle] ^= 1;
    std::fs::write(&disks[0].0, &rotten).unwrap();
    refused("what was read has the digest").await;
    restore();
    std::fs::write(&disks[0].0, &disks[0].1[..disks[0].1.len() - 512]).unwrap();
    refused("were written; copy it to the media again").await;
    restore();
    std::fs::remove_file(&disks[1].0).unwrap();
    refused("No such file").await;
    restore();
    // Whoever swaps the disks has to lie about their lengths as well, and is found out by what they hold.
    let (a, b) = (disks[0].1.len().to_string(), disks[1].1.len().to_string());
    let swapped = written.replace(&format!("\"length\": {a},"), "\"length\": X,");
    let swapped = swapped.replace(&format!("\"length\": {b},"), &format!("\"length\": {a},"));
    std::fs::write(&manifest, swapped.replace("\"length\": X,", &format!("\"length\": {b},"))).unwrap();
    std::fs::write(&disks[0].0, &disks[1].1).unwrap();
    std::fs::write(&disks[1].0, &disks[0].1).unwrap();
    refused("it is no whole disk of").await;
    restore();

    for (from, to, wanted) in [
        ("\"version\": 1", "\"version\": 2", "this program reads 1"),
        ("\"vmferry-seed\"", "\"a-recipe\"", "not the manifest of a seed"),
        (".vhd\"", "/../../etc/passwd\"", "its file is called"),
        ("\"size\": 67108864", "\"size\": 9223372036854775807", "no VHD of"),
        ("\"tenant\": \"default\"", "\"tenant\": \"other\"", "it was exported for job"),
        ("\"disks\"", "\"dishes\"", "damaged"),
        ("{", "[", "damaged"),
    ] {
        assert!(written.contains(from), "{from}: {written}");
        std::fs::write(&manifest, written.replacen(from, to, 1)).unwrap();
        refused(wanted).await;
    }
    std::fs::remove_file(&manifest).unwrap();
    refused("it is no finished export").await;
    restore();
    import(&world, media.path()).await.unwrap();
}

#[tokio::test]
async fn a_target_that_breaks_has_nothing_left_of_the_import() {
    let (mut world, media, _) = exported().await;
    world.patience = Some(Duration::from_secs(20));
    let before = world.target.object_counts();
    world.target.inject(Fault { at: FaultPoint::Import, nth: 2, kind: FaultKind::CutAfter(MIB) });
    import(&world, media.path()).await.unwrap_err();
    world.target.clear_faults();
    world.target.collect_garbage();
    assert_eq!(world.target.object_counts(), before);
    import(&world, media.path()).await.unwrap();
}

#[tokio::test]
async fn a_disk_that_no_vhd_holds_is_refused_before_a_snapshot_is_taken() {
    let (world, media) = (crate::large_disks::world(true).await, tempfile::tempdir().unwrap());
    let error = export(&world, media.path()).await.unwrap_err().to_string();
    assert!(error.contains("a VHD on media holds") && error.contains("vmferry seed adopt"), "{error}");
    assert!(world.source.records("VM").iter().all(|vm| vm["is_a_snapshot"] == false));
}
