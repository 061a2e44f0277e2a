//! Runs whose disk streams take a network of their own.

use vmferry_model::plan::Kind;
use vmferry_model::report::Outcome;
use vmferry_scenarios::{MIB, World, disks, only_target, point_of};
use vmferry_xapi::records::{Pif, Pool};
use vmferry_xapi::{Ref, Session, StreamNetwork, params};
use xapi_sim::{NbdPurpose, Sim, SimConfig};

async fn world() -> World {
    let config = || SimConfig { replication_network: true, ..SimConfig::default() };
    World::between(SimConfig { nbd_purpose: Some(NbdPurpose::Nbd), ..config() }, config()).await
}

/// How many streams arrived at the host's address on the network, and how many elsewhere; every call arrived elsewhere.
#[track_caller]
fn streams(pool: &Sim) -> (usize, usize) {
    let arrivals = pool.arrivals();
    let (there, elsewhere): (Vec<_>, Vec<_>) = arrivals.iter().partition(|(ip, _)| ip.to_string() == "127.0.0.2");
    assert!(there.iter().all(|(_, what)| what != "POST"), "{there:?}");
    (there.len(), elsewhere.iter().filter(|(_, what)| what != "POST").count())
}

#[tokio::test]
async fn every_stream_of_a_run_takes_the_network_and_no_call_does() {
    let mut world = world().await;
    world.stream_network = StreamNetwork::Named("replication".to_owned());
    world.run().await;
    world.source.write(&world.source.vm_disks(&world.vm)[0], 10 * MIB, &[9; 4096]);
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    assert!(disks(&report).iter().all(|disk| disk.kind == Kind::Delta), "{report:#?}");
    assert_eq!(world.target_content(&point_of(&report)), world.source_content());
    world.verify(true).await;
    for pool in [&world.source, &world.target] {
        let (there, elsewhere) = streams(pool);
        assert!(there >= 4 && elsewhere == 0, "{:?}", pool.arrivals());
    }
    assert_eq!((&report.warnings, &only_target(&report).warnings), (&Vec::new(), &Vec::new()));
}

#[tokio::test]
async fn a_network_that_is_none_is_found_before_anything_is_made() {
    let mut world = world().await;
    world.stream_network = StreamNetwork::Named("replicatoin".to_owned());
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Failed, "{report:#?}");
    assert!(report.error.as_ref().unwrap().contains("network replicatoin"), "{report:#?}");
    assert!(!world.source.calls().iter().any(|call| call.contains("VM.snapshot")));
}

/// Lets the pool name the network in the way of Xen Orchestra, and takes the host's address there.
async fn choose_and_lose(pool: &Sim, session: &Session) {
    let uuid = pool.replication_network().unwrap();
    let reference: Ref<Pool> = session.by_uuid(&pool.pool()).await.unwrap();
    session.add_to_other_config(&reference, "xo:backupNetwork", &uuid).await.unwrap();
    let interfaces = session.get_all_records::<Pif>().await.unwrap();
    let (pif, _) = interfaces.into_iter().find(|(_, pif)| pif.ip == "127.0.0.2").unwrap();
    let () = session.call("PIF.unplug", params![pif]).await.unwrap();
    session.logout().await.unwrap();
}

#[tokio::test]
async fn a_host_off_the_network_that_the_pool_names_is_told_and_reached_as_before() {
    let mut world = world().await;
    world.stream_network = StreamNetwork::OfPool;
    choose_and_lose(&world.source, &world.at_source().await).await;
    choose_and_lose(&world.target, &world.at_target().await).await;
    let report = world.run().await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:#?}");
    for warnings in [&report.warnings, &only_target(&report).warnings] {
        assert!(warnings[0].contains("host1") && warnings[0].contains("xo:backupNetwork"), "{report:#?}");
    }
    for pool in [&world.source, &world.target] {
        assert_eq!(streams(pool).0, 0);
    }
}
