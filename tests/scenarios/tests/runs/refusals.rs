//! Bad input is refused with what, where and the remedy, and changes nothing.

use vmferry_model::report::{Outcome, RunReport};
use vmferry_scenarios::{MIB, World, endpoint};
use vmferry_xapi::Endpoint;
use xapi_sim::{Fault, FaultKind, FaultPoint, Sim};

/// Everything a pool holds, sessions and tasks aside, as text.
fn everything(pool: &Sim) -> String {
    ["VM", "VDI", "VBD", "VIF", "SR"].iter().map(|class| format!("{:#?}", pool.records(class))).collect()
}

/// Runs the job, expects a failure whose text holds all `words`, and both pools as they were.
async fn refused(world: &World, words: &[&str]) -> RunReport {
    let before = (everything(&world.source), everything(&world.target));
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Failed, "{report:#?}");
    let text = serde_json::to_string(&report).unwrap();
    for word in words {
        assert!(text.contains(word), "{word:?} is missing: {report:#?}");
    }
    assert!(before == (everything(&world.source), everything(&world.target)), "something changed: {report:#?}");
    report
}

#[tokio::test]
async fn an_unknown_vm_is_named_with_its_pool() {
    let mut world = World::new().await;
    world.job.select.vms = vec!["no-such-uuid".to_owned()];
    refused(&world, &["no-such-uuid", "prod", "check the uuid"]).await;
}

#[tokio::test]
async fn an_unknown_sr_is_named_with_its_pool() {
    let mut world = World::new().await;
    world.job.targets[0].srs = vec!["no-such-sr".to_owned()];
    refused(&world, &["no-such-sr", "pool dr", "`sr`"]).await;
}

#[tokio::test]
async fn a_replica_of_the_same_job_is_no_source() {
    let mut world = World::new().await;
    let report = world.run().await;
    let replica = report.vms[0].targets[0].replica.clone().unwrap();
    world.job.select.pool = "dr".to_owned();
    world.job.select.vms = vec![replica.clone()];
    refused(&world, &[&replica, "replica made by this very job", "remove it from the job"]).await;
}

#[tokio::test]
async fn a_wrong_password_is_told_as_one() {
    let world = World::new().await;
    let wrong = endpoint(&world.target).with_credentials("root", "wrong-secret");
    let text = login_error(&wrong).await;
    assert!(text.contains("root") && !text.contains("wrong-secret"), "{text}");
}

#[tokio::test]
async fn an_unreachable_host_is_named() {
    let world = World::new().await;
    let gone = endpoint(&world.target);
    let url = world.target.url();
    world.target.stop().await;
    let text = login_error(&gone).await;
    assert!(text.contains(url.trim_start_matches("http://").trim_end_matches('/')), "{text}");
}

async fn login_error(endpoint: &Endpoint) -> String {
    let error = vmferry_xapi::Session::login(endpoint, "scenario").await.expect_err("no login");
    format!("{:#}", anyhow::Error::from(error))
}

#[tokio::test]
async fn too_little_space_on_the_target_is_found_before_anything_is_made() {
    let mut world = World::new().await;
    world.job.targets[0].srs = vec![world.target.add_sr("tiny", 4 * MIB)];
    refused(&world, &["tiny", "4.0 MiB free", "free space there"]).await;
}

#[tokio::test]
async fn an_unmapped_network_is_an_error_and_not_a_guess() {
    let mut world = World::new().await;
    let session = world.at_source().await;
    let networks: Vec<(vmferry_xapi::Ref<vmferry_xapi::records::Network>, vmferry_xapi::records::Network)> =
        session.get_all_records().await.unwrap();
    for (network, _) in &networks {
        let () =
            session.call("network.set_name_label", vmferry_xapi::params![network, "Storage VLAN 7"]).await.unwrap();
    }
    session.logout().await.unwrap();
    refused(&world, &["Storage VLAN 7", "networks = {"]).await;

    world.job.targets[0].networks.insert("Storage VLAN 7".to_owned(), "none".to_owned());
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
}

#[tokio::test]
async fn a_target_that_was_not_reached_before_the_run_ended_has_not_succeeded() {
    let world = World::new().await;
    let in_use = FaultKind::ApiError("VDI_IN_USE".to_owned(), Vec::new());
    world.source.inject(Fault { at: FaultPoint::Call("VM.snapshot".to_owned()), nth: 1, kind: in_use });
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Failed, "{report:#?}");
    assert_eq!(report.vms[0].targets[0].outcome, Outcome::Failed, "{report:#?}");
}
