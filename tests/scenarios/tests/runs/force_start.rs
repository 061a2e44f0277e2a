//! A replica itself is started: only proven content boots, and no run overwrites it afterwards.

use crate::kills::check_each;
use vmferry_engine::{CloneRequest, EngineError, NetworkChoice, ReplicaState, StartReport, StartRequest};
use vmferry_model::plan::Kind;
use vmferry_model::report::Outcome;
use vmferry_scenarios::{MIB, World, disks, only_target, point_of};
use vmferry_xapi::params;
use vmferry_xapi::records::Vm;
use xapi_sim::{Fault, FaultKind, FaultPoint};

fn newest(world: &World) -> StartRequest {
    StartRequest {
        vm: world.vm.clone(),
        point: None,
        target: None,
        network: NetworkChoice::AsReplica,
        force: true,
        auto_start: false,
    }
}

/// Fails over as a process of its own would.
async fn start(world: &World, request: &StartRequest) -> Result<StartReport, EngineError> {
    let engine = world.engine();
    let started = engine.start_replica(&world.job, request).await;
    engine.close().await;
    started
}

async fn refusal(world: &World, request: &StartRequest) -> String {
    start(world, request).await.unwrap_err().to_string()
}

/// Everything the target holds, sessions and tasks aside.
fn everything(world: &World) -> String {
    ["VM", "VDI", "VBD", "VIF"].iter().map(|class| format!("{:#?}", world.target.records(class))).collect()
}

fn power_state(world: &World, vm: &str) -> String {
    world.target.record("VM", vm).unwrap()["power_state"].as_str().unwrap().to_owned()
}

/// Disks of the target that hang on no VM.
fn loose_disks(world: &World) -> usize {
    let disks = world.target.records("VDI");
    disks.iter().filter(|disk| disk["managed"] == true && disk["VBDs"].as_array().unwrap().is_empty()).count()
}

/// Kills a second run in the middle of its stream to the replica.
async fn die_half_written(world: &World) {
    for disk in world.source.vm_disks(&world.vm) {
        world.source.write(&disk, 10 * MIB, &[9; 6 << 20]);
    }
    world.target.inject(Fault { at: FaultPoint::Import, nth: 1, kind: FaultKind::StallAfter(3 * MIB) });
    tokio::select! {
        report = world.run() => panic!("the run did not stall: {report:#?}"),
        () = world.target.wait_until_stalled() => {}
    }
    world.target.clear_faults();
}

#[tokio::test]
async fn a_standby_starts_as_it_is_and_no_run_overwrites_it() {
    let world = World::new().await;
    let first = world.run().await;
    let (replica, content) = (only_target(&first).replica.clone().unwrap(), world.source_content());
    world.target.clear_calls();
    let started = start(&world, &newest(&world)).await.unwrap();

    assert_eq!((&started.vm, &started.point), (&replica, &point_of(&first)));
    assert!(!started.disks_replaced && started.warnings.is_empty(), "{started:?}");
    assert_eq!((power_state(&world, &replica), world.target_content(&replica)), ("Running".into(), content.clone()));
    let record = world.target.record("VM", &replica).unwrap();
    assert_eq!(record["other_config"].get("auto_poweron"), None, "only on request");
    assert_eq!(record["other_config"].get("vmferry:lease"), None);
    assert_eq!(world.points().await[0].state, ReplicaState::FailedOver);
    assert!(!world.target.calls().iter().any(|call| call.ends_with("VDI.clone")), "{:?}", world.target.calls());

    // The guest works on; a run goes on beside it.
    world.target.write(&world.target.vm_disks(&replica)[0], 3 * MIB, b"the work after the disaster");
    let work = world.target_content(&replica);
    let second = world.run().await;
    assert_eq!(second.outcome, Outcome::Succeeded, "{second:#?}");
    assert!(only_target(&second).warnings.iter().any(|text| text.contains("it was failed over to")), "{second:#?}");
    assert_ne!(only_target(&second).replica.as_ref(), Some(&replica));
    assert!(disks(&second).iter().all(|disk| disk.kind == Kind::Delta), "{second:#?}");
    assert_eq!(world.target_content(&replica), work);

    // Asked again it is there already; another point is not put over its work.
    let point = Some(point_of(&first));
    let again = start(&world, &StartRequest { point: point.clone(), force: false, ..newest(&world) }).await.unwrap();
    assert!(again.already_running && again.vm == replica, "{again:?}");
    let states: Vec<ReplicaState> = world.points().await.into_iter().map(|replica| replica.state).collect();
    assert_eq!(states, [ReplicaState::Standby, ReplicaState::FailedOver]);
    assert_eq!(world.target_content(&replica), work);
}

#[tokio::test]
async fn without_force_nothing_happens_and_the_way_out_is_named() {
    let world = World::new().await;
    let first = world.run().await;
    let request = StartRequest { force: false, ..newest(&world) };
    let before = everything(&world);
    let error = refusal(&world, &request).await;
    for words in ["is a standby", "failover clone erp", "--force"] {
        assert!(error.contains(words), "{error}");
    }
    assert!(before == everything(&world));

    die_half_written(&world).await;
    // The stream's end is told to the pool when it likes, so only the replica has to be as it was.
    let replica = only_target(&first).replica.clone().unwrap();
    let before = world.target.record("VM", &replica);
    let error = refusal(&world, &request).await;
    assert!(error.contains("half-written") && error.contains("--force"), "{error}");
    assert_eq!(before, world.target.record("VM", &replica));
    assert_eq!(world.points().await[0].state, ReplicaState::HalfWritten);
    let unknown = refusal(&world, &StartRequest { point: Some(world.vm.clone()), ..newest(&world) }).await;
    assert!(unknown.contains("points list erp"), "{unknown}");
}

#[tokio::test]
async fn a_half_written_replica_boots_the_last_point_with_its_source_gone() {
    let mut world = World::new().await;
    let first = world.run().await;
    let (replica, content) = (only_target(&first).replica.clone().unwrap(), world.source_content());
    die_half_written(&world).await;
    assert_ne!(world.target_content(&replica), content, "it is half written");
    let gone = std::mem::replace(&mut world.source, vmferry_scenarios::pool("empty").await);
    gone.stop().await;

    let started = start(&world, &newest(&world)).await.unwrap();
    assert_eq!((&started.vm, started.point, started.disks_replaced), (&replica, point_of(&first), true));
    assert_eq!((power_state(&world, &replica), world.target_content(&replica)), ("Running".into(), content));
    assert_eq!(loose_disks(&world), 0, "the half-written disks are gone");
    assert_eq!(world.points().await[0].state, ReplicaState::FailedOver);
}

#[tokio::test]
async fn an_older_point_may_be_the_one_to_boot() {
    let world = World::new().await;
    let first = world.run().await;
    let content = world.source_content();
    world.source.write(&world.source.vm_disks(&world.vm)[0], 12 * MIB, b"the ransom note");
    let second = world.run().await;
    let request = StartRequest { point: Some(point_of(&first)), network: NetworkChoice::None, ..newest(&world) };
    let started = start(&world, &request).await.unwrap();
    assert_eq!((&started.point, world.target_content(&started.vm)), (&point_of(&first), content));
    assert_eq!(world.target_content(&point_of(&second)), world.source_content(), "the newer one is kept");
    assert!(world.target.record("VM", &started.vm).unwrap()["VIFs"].as_array().unwrap().is_empty());
    assert_eq!(loose_disks(&world), 0);
}

#[tokio::test]
async fn a_damaged_point_is_never_booted_and_the_next_older_one_is_named() {
    let world = World::new().await;
    let first = world.run().await;
    let session = world.at_target().await;
    world.source.write(&world.source.vm_disks(&world.vm)[0], 12 * MIB, b"a change");
    let second = world.run().await;
    let disk = world.target.vm_disks(&point_of(&second))[0].clone();
    let content = world.target.record("VDI", &disk).unwrap()["other_config"]["xo:backup:contentKey"].clone();
    let vdi = session.by_uuid::<vmferry_xapi::records::Vdi>(&disk).await.unwrap();
    let damaged = format!("{}:root", content.as_str().unwrap());
    session.add_to_other_config(&vdi, "vmferry:damaged", &damaged).await.unwrap();
    session.logout().await.unwrap();

    let before = everything(&world);
    let error = refusal(&world, &newest(&world)).await;
    assert!(error.contains("is damaged") && error.contains(&format!("--point {}", point_of(&first))), "{error}");
    assert!(before == everything(&world));
    let clone = CloneRequest { point: Some(point_of(&second)), ..CloneRequest::newest(&world.vm) };
    let engine = world.engine();
    let refused = engine.clone_point(&world.job, &clone).await.unwrap_err().to_string();
    assert!(refused.contains("is damaged"), "{refused}");
    engine.close().await;
    let older = StartRequest { point: Some(point_of(&first)), ..newest(&world) };
    let started = start(&world, &older).await.unwrap();
    assert_eq!(world.target_content(&started.vm), world.target_content(&point_of(&first)));
}

#[tokio::test]
async fn a_replica_that_somebody_used_is_not_overwritten_by_force() {
    let world = World::new().await;
    let first = world.run().await;
    let replica = only_target(&first).replica.clone().unwrap();
    world.target.write(&world.target.vm_disks(&replica)[0], 3 * MIB, b"somebody's work");
    let before = everything(&world);
    let error = refusal(&world, &newest(&world)).await;
    assert!(error.contains("is not overwritten") && error.contains("failover clone erp"), "{error}");
    assert!(before == everything(&world));
    assert_eq!(power_state(&world, &replica), "Halted");
}

#[tokio::test]
async fn a_run_at_work_is_respected_or_by_force_stopped_before_its_commit() {
    let world = World::new().await;
    let first = world.run().await;
    let (replica, content) = (only_target(&first).replica.clone().unwrap(), world.source_content());
    for disk in world.source.vm_disks(&world.vm) {
        world.source.write(&disk, 10 * MIB, &[9; 6 << 20]);
    }
    world.target.inject(Fault { at: FaultPoint::Import, nth: 1, kind: FaultKind::StallAfter(3 * MIB) });
    let failover = async {
        world.target.wait_until_stalled().await;
        let polite = start(&world, &StartRequest { force: false, ..newest(&world) }).await.unwrap_err();
        assert!(polite.is_locked(), "{polite}");
        let started = start(&world, &newest(&world)).await.unwrap();
        assert_eq!(
            (power_state(&world, &replica), world.target_content(&replica)),
            ("Running".into(), content.clone())
        );
        world.target.clear_faults();
        started
    };
    let (late, started) = tokio::join!(world.run(), failover);

    assert!(started.disks_replaced && started.warnings.iter().any(|text| text.contains("was stopped")), "{started:?}");
    assert_eq!(late.outcome, Outcome::Failed, "{late:#?}");
    assert!(only_target(&late).error.as_ref().unwrap().contains("was taken over"), "{late:#?}");
    assert_eq!(only_target(&late).recovery_point, None);
    assert_eq!(world.target_content(&replica), content, "the late writer wrote into disks that nobody uses");
    assert_eq!(power_state(&world, &replica), "Running");

    let next = world.run().await;
    assert_eq!(next.outcome, Outcome::Succeeded, "{next:#?}");
    assert_eq!(world.target_content(&replica), content);
    assert_eq!(world.target_content(&point_of(&next)), world.source_content());
    assert_eq!(loose_disks(&world), 0, "its disks are gone");
}

#[tokio::test]
async fn a_replica_that_cannot_be_started_is_a_standby_again() {
    let world = World::new().await;
    let first = world.run().await;
    let replica = only_target(&first).replica.clone().unwrap();
    let full = FaultKind::ApiError("NO_HOSTS_AVAILABLE".to_owned(), Vec::new());
    world.target.inject(Fault { at: FaultPoint::Call("VM.start".to_owned()), nth: 1, kind: full });
    let error = refusal(&world, &newest(&world)).await;
    assert!(error.contains("could not be started") && error.contains("NO_HOSTS_AVAILABLE"), "{error}");
    assert_eq!(world.points().await[0].state, ReplicaState::Standby);
    assert!(world.target.record("VM", &replica).unwrap()["blocked_operations"].get("start").is_some());

    let second = world.run().await;
    assert_eq!((second.outcome, &only_target(&second).replica), (Outcome::Succeeded, &Some(replica)), "{second:#?}");
    assert!(only_target(&second).warnings.is_empty(), "{second:#?}");
}

#[tokio::test]
async fn a_failover_starts_by_itself_only_on_request() {
    let world = World::new().await;
    let session = world.at_source().await;
    let vm = session.by_uuid::<Vm>(&world.vm).await.unwrap();
    let () = session.call("VM.set_ha_restart_priority", params![&vm, "restart"]).await.unwrap();
    session.logout().await.unwrap();
    let first = world.run().await;
    let replica = world.target.record("VM", only_target(&first).replica.as_ref().unwrap()).unwrap();
    assert_eq!((&replica["ha_restart_priority"], replica["other_config"].get("auto_poweron")), (&"".into(), None));

    let started = start(&world, &StartRequest { auto_start: true, ..newest(&world) }).await.unwrap();
    assert!(started.warnings.is_empty(), "{started:?}");
    let replica = world.target.record("VM", &started.vm).unwrap();
    assert_eq!(
        (&replica["ha_restart_priority"], &replica["other_config"]["auto_poweron"]),
        (&"restart".into(), &"true".into())
    );
}

#[tokio::test]
async fn nothing_that_points_into_the_source_pool_reaches_the_target() {
    let world = World::new().await;
    let session = world.at_source().await;
    let vm = session.by_uuid::<Vm>(&world.vm).await.unwrap();
    let sr: String = session.call("SR.get_by_uuid", params![world.source.default_sr()]).await.unwrap();
    let () = session.call("VM.set_suspend_SR", params![&vm, sr.as_str()]).await.unwrap();
    session.logout().await.unwrap();
    let source = world.source.record("VM", &world.vm).unwrap();
    assert!(source["affinity"] != "OpaqueRef:NULL" && source["suspend_SR"] == sr.as_str());
    let report = world.run().await;
    let replica = world.target.record("VM", only_target(&report).replica.as_ref().unwrap()).unwrap();
    for field in ["affinity", "suspend_SR", "suspend_VDI", "appliance", "snapshot_schedule", "resident_on"] {
        assert_eq!(replica[field], "OpaqueRef:NULL", "{field}");
    }
    assert_eq!(replica["ha_always_run"], false);
}

#[tokio::test]
async fn a_replica_that_has_just_been_made_cannot_be_started_before_its_block_is_on() {
    let world = World::new().await;
    world.target.inject(Fault { at: FaultPoint::Call("VM.create".to_owned()), nth: 1, kind: FaultKind::StallAfter(0) });
    tokio::select! {
        report = world.run() => panic!("the run did not stall: {report:#?}"),
        () = world.target.wait_until_stalled() => {}
    }
    world.target.clear_faults();
    let vms = world.target.records("VM");
    let made = vms.iter().find(|vm| vm["is_control_domain"] == false).expect("the run died right after VM.create");
    assert_eq!(made["blocked_operations"], serde_json::json!({}), "VM.create ignores them");
    let session = world.at_target().await;
    let vm = session.by_uuid::<Vm>(made["uuid"].as_str().unwrap()).await.unwrap();
    let host = world.target.records("host")[0]["$ref"].as_str().unwrap().to_owned();
    let start = session.call_async::<()>("VM.start", params![&vm, false, true]).await;
    let start_on = session.call_async::<()>("VM.start_on", params![&vm, host, false, true]).await;
    for error in [start.unwrap_err(), start_on.unwrap_err()] {
        assert!(error.to_string().contains("VM_IS_TEMPLATE"), "{error}");
    }
    session.logout().await.unwrap();

    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    let replica = world.target.record("VM", only_target(&report).replica.as_ref().unwrap()).unwrap();
    assert!(replica["is_a_template"] == false && replica["blocked_operations"].get("start").is_some());
    let vms = world.target.records("VM").iter().filter(|vm| vm["is_control_domain"] == false).count();
    assert_eq!((vms, loose_disks(&world)), (2, 0), "the replica and its point");
}

/// What a failover starts from, and what comes after one that died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    Standby,
    HalfWritten,
    OlderPoint,
    /// A half-written replica, and a run comes next instead of another failover.
    ThenARun,
}

/// Kills a failover after its `nth` call on the target and checks what is left and what is made of it.
async fn check(nth: u32, case: Case) -> bool {
    let name = format!("{case:?}, killed after call {nth}");
    let mut world = World::new().await;
    let first = world.run().await;
    let replica = only_target(&first).replica.clone().unwrap();
    let (mut point, mut content) = (point_of(&first), world.source_content());
    if case == Case::OlderPoint {
        world.source.write(&world.source.vm_disks(&world.vm)[0], 12 * MIB, b"a change");
        world.run().await;
    }
    if case == Case::HalfWritten {
        world.source.write(&world.source.vm_disks(&world.vm)[0], 12 * MIB, b"a change");
        (point, content) = (point_of(&world.run().await), world.source_content());
    }
    if matches!(case, Case::HalfWritten | Case::ThenARun) {
        die_half_written(&world).await;
    }
    let request = StartRequest { point: (case == Case::OlderPoint).then(|| point.clone()), ..newest(&world) };
    world.target.inject(Fault { at: FaultPoint::Call("*".to_owned()), nth, kind: FaultKind::StallAfter(0) });
    let died = tokio::select! {
        started = start(&world, &request) => { started.unwrap_or_else(|error| panic!("{name}: {error}")); false }
        () = world.target.wait_until_stalled() => true,
    };
    world.target.clear_faults();
    let record = world.target.record("VM", &replica).unwrap();
    let startable = record["blocked_operations"].get("start").is_none();
    assert!(!startable || world.target_content(&replica) == content, "{name}: what could be started is the point");
    assert_eq!(world.target_content(&point), content, "{name}: the point is intact");

    if case == Case::ThenARun {
        let run = world.run().await;
        assert_eq!(run.outcome, Outcome::Succeeded, "{name}: {run:#?}");
        assert_eq!(world.target_content(&point_of(&run)), world.source_content(), "{name}");
        let kept = only_target(&run).replica.as_ref() != Some(&replica);
        assert!(kept || !startable, "{name}: what could be started is not overwritten");
        assert!(!kept || world.target_content(&replica) == content, "{name}");
    } else {
        let gone = std::mem::replace(&mut world.source, vmferry_scenarios::pool("empty").await);
        gone.stop().await;
        let started = start(&world, &request).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((&started.vm, &started.point), (&replica, &point), "{name}");
        assert_eq!(
            (power_state(&world, &replica).as_str(), world.target_content(&replica)),
            ("Running", content),
            "{name}"
        );
    }
    assert_eq!(world.target.record("VM", &replica).unwrap()["other_config"].get("vmferry:lease"), None, "{name}");
    assert_eq!(loose_disks(&world), 0, "{name}");
    died
}

async fn at_every_call(case: Case) {
    check_each(20, async |nth| check(nth, case).await).await;
}

#[tokio::test]
async fn a_failover_of_a_standby_may_die_after_any_call() {
    at_every_call(Case::Standby).await;
}

#[tokio::test]
async fn a_failover_from_a_half_written_replica_may_die_after_any_call() {
    at_every_call(Case::HalfWritten).await;
}

#[tokio::test]
async fn a_failover_to_an_older_point_may_die_after_any_call() {
    at_every_call(Case::OlderPoint).await;
}

#[tokio::test]
async fn a_failover_that_died_after_any_call_may_be_followed_by_a_run() {
    at_every_call(Case::ThenARun).await;
}
