//! What would go wrong later is found before anything is changed.

use std::collections::BTreeMap;
use std::sync::Arc;
use vmferry_engine::ChainLimits;
use vmferry_model::plan::Kind;
use vmferry_model::report::{Outcome, RunReport};
use vmferry_scenarios::{Keep, MIB, World, bystander, disks, only_target};
use vmferry_xapi::records::{Network, Vm};
use vmferry_xapi::{IntoValue, Ref, Value, params};
use xapi_sim::{Sim, SimConfig};

/// A pool whose storage coalesces nothing by itself.
fn slow() -> SimConfig {
    SimConfig { hold_gc: true, ..SimConfig::default() }
}

/// Runs the job until a run does not succeed, with something to send each time.
async fn run_until_stopped(world: &World) -> RunReport {
    let disk = world.source.vm_disks(&world.vm)[0].clone();
    for round in 0..20 {
        world.source.write(&disk, round * 2 * MIB, b"a change");
        let report = world.run().await;
        if report.outcome != Outcome::Succeeded {
            return report;
        }
    }
    panic!("no run was stopped");
}

fn snapshots(pool: &Sim) -> usize {
    pool.records("VM").iter().filter(|vm| vm["is_a_snapshot"] == true).count()
}

#[tokio::test]
async fn a_run_waits_until_the_chains_of_the_source_are_coalesced() {
    let mut world = World::between(slow(), SimConfig::default()).await;
    world.job.tuning.chains = ChainLimits { wait_above: 4, max: 27 };
    let stopped = run_until_stopped(&world).await;

    assert_eq!(stopped.outcome, Outcome::Refused, "{stopped:#?}");
    let error = stopped.vms[0].error.as_ref().unwrap();
    assert!(error.contains("disk system") && error.contains("wait to be coalesced"), "{error}");
    assert_eq!(snapshots(&world.source), 1, "no snapshot was taken");
    let plan = world.plan().await;
    assert!(plan.vms[0].error.as_ref().unwrap().contains("wait to be coalesced"), "{plan:#?}");

    world.source.collect_garbage();
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    assert!(disks(&report).iter().all(|disk| disk.kind == Kind::Delta), "{report:#?}");
}

#[tokio::test]
async fn a_run_waits_until_the_chains_of_the_replica_are_coalesced() {
    let mut world = World::between(SimConfig::default(), slow()).await;
    world.job.tuning.chains = ChainLimits { wait_above: 4, max: 27 };
    world.policies.retention = Some(Arc::new(Keep(1)));
    let stopped = run_until_stopped(&world).await;

    assert_eq!(stopped.outcome, Outcome::Refused, "{stopped:#?}");
    let error = only_target(&stopped).error.as_ref().unwrap();
    assert!(error.contains("replica of disk system") && error.contains("wait to be coalesced"), "{error}");
    world.target.collect_garbage();
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
}

#[tokio::test]
async fn recovery_points_that_are_kept_do_not_hold_runs_up() {
    let mut world = World::new().await;
    world.job.tuning.chains = ChainLimits { wait_above: 2, max: 27 };
    for _ in 0..5 {
        let report = world.run().await;
        assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    }
}

#[tokio::test]
async fn a_chain_near_the_limit_of_the_storage_is_refused_before_the_snapshot() {
    let world = World::new().await;
    let session = world.at_source().await;
    let vm: Ref<Vm> = session.by_uuid(&world.vm).await.unwrap();
    for number in 0..27 {
        let _: Ref<Vm> = session.call_async("VM.snapshot", params![&vm, format!("by hand {number}")]).await.unwrap();
    }
    session.logout().await.unwrap();
    world.source.clear_calls();

    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Failed, "{report:#?}");
    let error = report.vms[0].error.as_ref().unwrap();
    assert!(error.contains("chain of 28 links") && error.contains("remove snapshots"), "{error}");
    assert!(!world.source.calls().iter().any(|call| call.contains("VM.snapshot")), "{:?}", world.source.calls());
}

#[tokio::test]
async fn an_address_that_another_vm_of_the_target_has_is_told_with_both() {
    let world = World::new().await;
    let mac = world.source.records("VIF")[0]["MAC"].as_str().unwrap().to_owned();
    let other = bystander(&world.target);
    let session = world.at_target().await;
    let vm: Ref<Vm> = session.by_uuid(&other).await.unwrap();
    let network: Ref<Network> = session.by_uuid(&world.target.network()).await.unwrap();
    let vif: BTreeMap<String, Value> = [
        ("VM", vm.into_value()),
        ("network", network.into_value()),
        ("device", "1".into_value()),
        ("MAC", mac.to_uppercase().into_value()),
        ("MTU", 1500_i64.into_value()),
        ("other_config", Value::Struct(BTreeMap::new())),
        ("qos_algorithm_type", "".into_value()),
        ("qos_algorithm_params", Value::Struct(BTreeMap::new())),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    let _: String = session.call("VIF.create", params![Value::Struct(vif)]).await.unwrap();
    session.logout().await.unwrap();

    let plan = world.plan().await;
    let target = &plan.vms[0].targets[0];
    assert_eq!((&target.obstacles, target.warnings.len()), (&Vec::new(), 1), "{plan:#?}");
    // The replica and its recovery points have the address as well, and are no clash.
    for _ in 0..2 {
        let report = world.run().await;
        assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
        let warnings = &only_target(&report).warnings;
        assert_eq!(warnings, &target.warnings);
        assert!(warnings[0].contains(&mac) && warnings[0].contains(&other), "{warnings:?}");
    }
}
