//! What stands in `other_config` after a run, key by key: Xen Orchestra's generation-2 keys and ours.

use serde_json::Value;
use std::collections::BTreeSet;
use vmferry_scenarios::{World, only_target, point_of};
use xapi_sim::Sim;

/// `other_config` of an object.
fn keys(pool: &Sim, class: &str, uuid: &str) -> Value {
    pool.record(class, uuid).unwrap_or_else(|| panic!("no {class} {uuid}"))["other_config"].clone()
}

/// Exactly these keys with these values; `mac_seed` and the like come from XAPI and the source.
#[track_caller]
fn assert_keys(found: &Value, expected: &[(&str, &str)]) {
    let replication: BTreeSet<&str> = found
        .as_object()
        .expect("a map")
        .keys()
        .map(String::as_str)
        .filter(|key| key.starts_with("xo:") || key.starts_with("vmferry:"))
        .collect();
    assert_eq!(replication, expected.iter().map(|(key, _)| *key).collect::<BTreeSet<_>>());
    for (key, value) in expected {
        assert_eq!(found[*key], *value, "{key}");
    }
}

#[tokio::test]
async fn both_sides_carry_the_keys_by_which_xen_orchestra_and_we_go_on() {
    let world = World::new().await;
    world.run().await;
    let report = world.run().await;
    let target = only_target(&report);
    let replica = target.replica.clone().unwrap();
    let point = point_of(&report);

    let source_snapshot = world
        .source
        .records("VM")
        .into_iter()
        .find(|vm| vm["is_a_snapshot"] == true)
        .expect("one source snapshot is kept");
    let source_snapshot_uuid = source_snapshot["uuid"].as_str().unwrap().to_owned();
    let taken_at = source_snapshot["other_config"]["xo:backup:datetime"].as_str().unwrap();
    let job = world.job.ids.job.to_string();
    let schedule = world.job.ids.schedule.to_string();
    let sr = world.target.default_sr();
    let of_a_source_snapshot = [
        ("xo:backup:datetime", taken_at),
        ("xo:backup:deltaChainLength", "1"),
        ("xo:backup:exported", "true"),
        ("xo:backup:includeNonNbdQcow2Fix", "true"),
        ("xo:backup:job", &job),
        ("xo:backup:schedule", &schedule),
        ("xo:backup:vm", &world.vm),
        ("vmferry:job", &job),
        ("vmferry:tenant", "default"),
        ("vmferry:vm", &world.vm),
    ];

    // Two runs within one second: the second one's date is a second later than its snapshot's.
    let date = |text: &str| text.replace([':', '-'], "");
    assert!(date(source_snapshot["snapshot_time"].as_str().unwrap()) <= date(taken_at));
    assert_eq!(taken_at.len(), "20261121T19:48:01Z".len());

    let mut expected = of_a_source_snapshot.to_vec();
    expected.push(("vmferry:exported-to", &sr));
    expected.push(("vmferry:offered-to", &sr));
    expected.push(("vmferry:self", &source_snapshot_uuid));
    assert_keys(&source_snapshot["other_config"], &expected);
    let source_disks = world.source.vm_disks(&source_snapshot_uuid);
    for disk in &source_disks {
        let mut expected = of_a_source_snapshot.to_vec();
        expected.push(("xo:backup:contentKey", disk));
        expected.push(("vmferry:self", disk));
        assert_keys(&keys(&world.source, "VDI", disk), &expected);
    }

    let of_a_point = [
        ("xo:backup:datetime", taken_at),
        ("xo:backup:includeNonNbdQcow2Fix", "true"),
        ("xo:backup:job", &job),
        ("xo:backup:schedule", &schedule),
        ("xo:backup:sr", &sr),
        ("xo:backup:vm", &world.vm),
        ("vmferry:job", &job),
        ("vmferry:tenant", "default"),
        ("vmferry:vm", &world.vm),
    ];
    let state = format!("committed:{replica}:{source_snapshot_uuid}");
    let interfaces = format!("0={}", world.source.records("VIF")[0]["MAC"].as_str().unwrap());
    let mut expected = of_a_point.to_vec();
    expected.extend([
        ("xo:copy_of", source_snapshot_uuid.as_str()),
        ("vmferry:disks", "2"),
        ("vmferry:interfaces", interfaces.as_str()),
        ("vmferry:state", state.as_str()),
        ("vmferry:source-auto-poweron", "true"),
    ]);
    assert_keys(&keys(&world.target, "VM", &point), &expected);

    let live_disks = world.target.vm_disks(&replica);
    for (index, disk) in world.target.vm_disks(&point).iter().enumerate() {
        let content = &source_disks[index];
        let source_disk = &world.source.vm_disks(&world.vm)[index];
        let digest = format!("{content}:{}", target.disks[index].digest.as_ref().unwrap());
        let mut expected = of_a_point.to_vec();
        expected.extend([
            ("xo:backup:contentKey", content.as_str()),
            ("xo:copy_of", content),
            ("vmferry:content", content),
            ("vmferry:digest", &digest),
            ("vmferry:disk", source_disk),
            ("vmferry:self", &live_disks[index]),
        ]);
        assert_keys(&keys(&world.target, "VDI", disk), &expected);

        assert_keys(
            &keys(&world.target, "VDI", &live_disks[index]),
            &[
                ("xo:backup:sr", &sr),
                ("vmferry:content", content),
                ("vmferry:disk", source_disk),
                ("vmferry:job", &job),
                ("vmferry:self", &live_disks[index]),
                ("vmferry:tenant", "default"),
                ("vmferry:vm", &world.vm),
            ],
        );
    }
    assert_keys(
        &keys(&world.target, "VM", &replica),
        &[
            ("xo:backup:sr", &sr),
            ("vmferry:job", &job),
            ("vmferry:self", &replica),
            ("vmferry:source-auto-poweron", "true"),
            ("vmferry:tenant", "default"),
            ("vmferry:vm", &world.vm),
        ],
    );
    assert_keys(&keys(&world.source, "VM", &world.vm), &[]);
}

#[tokio::test]
async fn a_replica_cannot_be_started_by_accident() {
    let world = World::new().await;
    let report = world.run().await;
    let replica = world.target.record("VM", only_target(&report).replica.as_ref().unwrap()).unwrap();

    for operation in ["start", "start_on"] {
        let text = replica["blocked_operations"][operation].as_str().expect(operation);
        assert!(
            text.starts_with("standby of vmferry job erp") && text.contains("failover start erp --force"),
            "{text}"
        );
    }
    assert_eq!(replica["other_config"].get("auto_poweron"), None, "nor by its host's boot");
    assert_eq!(replica["ha_restart_priority"], "", "nor by high availability");
    assert!(replica["tags"].as_array().unwrap().contains(&"Continuous Replication".into()));
    assert_eq!(replica["power_state"], "Halted");
}
