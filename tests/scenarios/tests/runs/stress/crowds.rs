//! Pools of very many VMs.

use vmferry_scenarios::{MIB, World, point_of};

/// The calls that a first run and a delta run make to either pool, in order of their names.
async fn calls(vms: usize) -> [Vec<String>; 2] {
    let world = World::new().await;
    let pools = [&world.source, &world.target];
    pools.iter().for_each(|pool| pool.add_crowd(vms));
    for _ in 0..2 {
        let report = world.run().await;
        assert_eq!(world.target_content(&point_of(&report)), world.source_content());
        world.source.write(&world.source.vm_disks(&world.vm)[0], 10 * MIB, &[9; 1 << 20]);
    }
    pools.map(|pool| {
        // How often somebody who waits asks depends on how fast the pool is.
        let waits = ["event.from", "task.get_record", "VDI.get_VBDs", "VBD.get_currently_attached"];
        let mut calls: Vec<String> = pool.calls().into_iter().filter(|call| !waits.contains(&call.as_str())).collect();
        calls.sort();
        calls
    })
}

#[tokio::test]
async fn a_run_of_one_vm_makes_the_same_calls_however_many_there_are() {
    assert_eq!(calls(0).await, calls(300).await);
}

#[tokio::test]
async fn a_run_asks_for_all_records_of_a_class_a_few_times() {
    let [source, target] = calls(0).await;
    let count = |calls: &[String], method: &str| calls.iter().filter(|call| *call == method).count();
    for class in ["VM", "VDI", "VBD"] {
        let method = format!("{class}.get_all_records");
        // On the source to select, under the lease, and with the snapshot. On the target to find the replica, under its
        // lease, and to see the new point; the first run has no replica to lease.
        assert_eq!((count(&source, &method), count(&target, &method)), (2 * 3, 2 + 3), "{method}");
    }
}
