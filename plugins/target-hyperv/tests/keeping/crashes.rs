//! A crash at every write of every call.

use crate::folder::{Recorded, Unsynced, World};
use crate::model::*;
use crate::qemu;
use target_hyperv::{Format, Keeper};
use vmferry_plugin_api::target::*;
use vmferry_vhdx::Storage;

/// Small disks: each case reads all of them several times. The last block of the first has one sector.
const A: u64 = 2 * MIB + 512;
const B: u64 = MIB;

fn commits() -> Vec<(Draft, Changes)> {
    vec![
        (draft(1, None), vec![("a", A, change([(0, Some(1)), (2, Some(3))])), ("b", B, change([(0, Some(4))]))]),
        (draft(2, Some("point-1")), vec![("a", A, change([(0, Some(5)), (1, Some(6))])), ("b", B, change([]))]),
    ]
}

fn third() -> (Draft, Changes) {
    let changes = vec![("a", A, change([(0, Some(9)), (1, None), (2, Some(11))])), ("b", B, change([(0, Some(12))]))];
    (draft(3, Some("point-2")), changes)
}

fn ways(count: usize) -> [Unsynced; 4] {
    let seed = 2 * count as u64;
    [Unsynced::Kept, Unsynced::Lost, Unsynced::Torn(seed), Unsynced::Torn(seed + 1)]
}

/// Strikes after each act that `call` does, and looks at what is left by `check`.
fn strike(
    world: &World,
    setting: Setting,
    call: impl Fn(&Keeper<Recorded>),
    check: impl Fn(&Keeper<Recorded>, usize, &str),
) -> usize {
    let whole = keeper(Recorded::of(world), setting);
    call(&whole);
    let acts = whole.place.acts();
    for count in 0..=acts {
        for unsynced in ways(count) {
            let left = keeper(Recorded::of(&whole.place.crashed(count, unsynced)), setting);
            check(&left, count, &format!("{setting:?} after {count} of {acts} acts, {unsynced:?}"));
        }
    }
    acts
}

/// After it, the folder holds what its points need, and the next point can be made.
fn assert_goes_on(keeper: &Keeper<Recorded>, mut model: Model, what: &str) {
    keeper.collect(&[], true).expect("collected");
    keeper.collect(&[], true).expect("collected");
    assert!(keeper.collect(&[], false).expect("collected").is_empty(), "{what}");
    assert_reads(keeper, &model);
    let newest = ids(keeper).pop().expect("a point");
    let changes = [("a", A, change([(1, Some(20)), (2, None)])), ("b", B, change([(0, Some(21))]))];
    model.commit(keeper, &draft(4, Some(&newest)), &changes);
    assert_reads(keeper, &model);
    assert_sound(keeper);
}

#[test]
fn a_crash_while_a_point_is_made_leaves_the_last_one_or_the_new_one() {
    for setting in ALL {
        let (world, before) = world(setting, &commits());
        let (draft, changes) = third();
        let mut after = before.clone();
        after.committed(&draft, &changes);
        let made = |keeper: &Keeper<Recorded>| {
            let receipts = write(keeper, &draft, &changes).expect("written");
            keeper.commit(&draft, &receipts).expect("committed");
        };
        let acts = strike(&world, setting, made, |keeper, count, what| {
            let there = ids(keeper);
            let committed = there.contains(&draft.id);
            assert!(committed || there.last().is_some_and(|newest| newest == "point-2"), "{what}: {there:?}");
            assert_reads(keeper, &after);
            let mut model = after.clone();
            if count % 2 == 0 {
                // The host comes back and gives the draft up, or finds it a point.
                keeper.abort(&draft).expect("aborted");
                assert_eq!(ids(keeper).contains(&draft.id), committed, "{what}");
            } else {
                // The host comes back and makes it again from the start, or finds that there is nothing to add.
                match write(keeper, &draft, &changes) {
                    Ok(receipts) => drop(keeper.commit(&draft, &receipts).expect("committed")),
                    Err(refused) => assert!(committed, "{what}: {refused}"),
                }
                assert!(ids(keeper).contains(&draft.id), "{what}");
            }
            model.points.retain(|id, _| ids(keeper).contains(id));
            assert_goes_on(keeper, model, what);
        });
        assert!(acts > 30, "{acts}");
    }
}

#[test]
fn a_commit_that_was_interrupted_is_done_by_the_same_receipts() {
    for setting in ALL {
        let (world, before) = world(setting, &commits());
        let (draft, changes) = third();
        let mut after = before.clone();
        after.committed(&draft, &changes);
        let written = keeper(Recorded::of(&world), setting);
        let receipts = write(&written, &draft, &changes).expect("written");
        let world = written.place.world();
        let commit = |keeper: &Keeper<Recorded>| drop(keeper.commit(&draft, &receipts).expect("committed"));
        let acts = strike(&world, setting, commit, |keeper, _, what| {
            assert_reads(keeper, &after);
            let point = keeper.commit(&draft, &receipts).expect("committed again");
            assert_eq!((point.id.as_str(), point.disks.len(), point.damaged), ("point-3", 2, None), "{what}");
            assert_eq!(keeper.commit(&draft, &receipts).expect("and again").id, "point-3");
            let mut model = after.clone();
            model.points.retain(|id, _| ids(keeper).contains(id));
            assert_goes_on(keeper, model, what);
        });
        assert!(acts >= 10, "{acts}");
    }
}

#[test]
fn a_vm_that_was_started_in_the_middle_of_a_commit_is_not_written_over() {
    for setting in NEWEST {
        let (world, _) = world(setting, &commits());
        let (draft, changes) = third();
        let whole = keeper(Recorded::of(&world), setting);
        let receipts = write(&whole, &draft, &changes).expect("written");
        let written = whole.place.acts();
        whole.commit(&draft, &receipts).expect("committed");
        let mut interrupted = 0;
        for count in written..whole.place.acts() {
            let keeper = keeper(Recorded::of(&whole.place.crashed(count, Unsynced::Kept)), setting);
            if !ids(&keeper).contains(&draft.id) {
                continue;
            }
            keeper.place.pass_an_hour();
            start_a_vm_on(&keeper, &image_of(setting, "point-1"));
            let before = keeper.place.world();
            let point = keeper.points(None).expect("points").pop().expect("the new one");
            let point = point.damaged.map_or_else(|| settled(&keeper, &draft), Some);
            assert!(point.is_some_and(|told| told.contains("was written by something else")), "after {count} acts");
            assert!(is_same_file(&before, &keeper.place.world(), &image_of(setting, "point-1")), "after {count} acts");
            interrupted += 1;
        }
        assert!(interrupted > 5, "{interrupted}");
    }
}

/// What is said of a point once what was begun has ended.
fn settled(keeper: &Keeper<Recorded>, draft: &Draft) -> Option<String> {
    keeper.commit(draft, &[]).expect("committed before").damaged
}

fn is_same_file(one: &World, other: &World, name: &str) -> bool {
    let [one, other] = [one, other].map(|world| {
        let (_, file) = world.files().find(|(path, _)| *path == name).expect("a file");
        let mut bytes = vec![0; file.length().expect("a length") as usize];
        file.read_at(0, &mut bytes).expect("read");
        bytes
    });
    one == other
}

#[test]
fn a_crash_while_a_draft_is_given_up_costs_no_point() {
    for setting in NEWEST {
        let (world, before) = world(setting, &commits());
        let (draft, changes) = third();
        let written = keeper(Recorded::of(&world), setting);
        write(&written, &draft, &changes).expect("written");
        // One that broke off before it was whole, and one that did not.
        for world in [written.place.crashed(written.place.acts() - 4, Unsynced::Kept), written.place.world()] {
            let abort = |keeper: &Keeper<Recorded>| {
                keeper.place.pass_an_hour();
                keeper.abort(&draft).expect("aborted");
            };
            let collect = |keeper: &Keeper<Recorded>| {
                keeper.place.pass_an_hour();
                keeper.collect(&[], true).expect("collected");
            };
            strike(&world, setting, abort, |keeper, _, what| assert_goes_on(keeper, before.clone(), what));
            strike(&world, setting, collect, |keeper, _, what| assert_goes_on(keeper, before.clone(), what));
        }
    }
}

#[test]
fn a_crash_while_a_point_is_deleted_leaves_the_others() {
    for setting in SEVERAL {
        let mut commits = commits();
        commits.push(third());
        let (world, model) = world(setting, &commits);
        for deleted in ["point-1", "point-2", "point-3"] {
            let delete = |keeper: &Keeper<Recorded>| keeper.delete(deleted).expect("deleted");
            strike(&world, setting, delete, |keeper, count, what| {
                let what = format!("{deleted}: {what}");
                let there = ids(keeper);
                assert_eq!(there.iter().filter(|id| *id != deleted).count(), 2, "{what}");
                assert_reads(keeper, &model);
                assert_sound(keeper);
                if count % 2 == 0 {
                    keeper.delete(deleted).expect("deleted");
                }
                let mut model = model.clone();
                model.points.retain(|id, _| ids(keeper).contains(id));
                assert_goes_on(keeper, model, &what);
            });
        }
    }
}

#[test]
fn a_storage_that_fails_at_any_write_costs_no_point() {
    for setting in ALL {
        let (world, before) = world(setting, &commits());
        let (draft, changes) = third();
        let mut after = before.clone();
        after.committed(&draft, &changes);
        for count in 0.. {
            let failing = keeper(Recorded::of(&world), setting);
            failing.place.fail_after(count);
            let made = write(&failing, &draft, &changes).and_then(|receipts| failing.commit(&draft, &receipts));
            let keeper = keeper(Recorded::of(&failing.place.world()), setting);
            assert_reads(&keeper, &after);
            if made.is_ok() {
                assert!(count > 30, "{count} acts");
                break;
            }
            let mut model = after.clone();
            model.points.retain(|id, _| ids(&keeper).contains(id));
            keeper.abort(&draft).expect("aborted");
            assert_goes_on(&keeper, model, &format!("{setting:?} failing after {count} acts"));
        }
    }
}

#[test]
fn qemu_reads_the_last_point_after_a_crash_without_anybody_s_help() {
    if qemu::is_missing() {
        return;
    }
    for setting in NEWEST {
        let (world, before) = world(setting, &commits());
        let (draft, changes) = third();
        let mut after = before.clone();
        after.committed(&draft, &changes);
        let whole = keeper(Recorded::of(&world), setting);
        let receipts = write(&whole, &draft, &changes).expect("written");
        let written = whole.place.acts();
        whole.commit(&draft, &receipts).expect("committed");
        let acts = whole.place.acts();
        // In the middle of a commit a VHD may be a mixture, until somebody ends it.
        let is_told = |count: &usize| setting.0 == Format::Vhdx || *count <= written || *count == acts;
        for count in (0..acts).step_by(2).chain([acts]).filter(is_told) {
            let crashed = whole.place.crashed(count, Unsynced::Torn(count as u64));
            let which = |disk: &str| {
                let image = image_of(setting, "point-1").replace("/a~", &format!("/{disk}~"));
                let file = crashed.files().find(|(path, _)| *path == image).expect("the disk").1;
                let states = [(&before, "point-2"), (&after, "point-3")].map(|(model, point)| {
                    let (size, content) = &model.points[point].disks[disk];
                    raw(setting.0, *size, content)
                });
                let found = qemu::which(setting.0, file, &states);
                found.unwrap_or_else(|| panic!("{disk} after {count} acts is a mixture"))
            };
            let found = ["a", "b"].map(which);
            // Until the commit the old state; once it is done the new one; between them each disk is one of the two.
            assert!(count > written || found == [0, 0], "{setting:?} after {count} acts: {found:?}");
            assert!(count < acts || found == [1, 1], "{setting:?} at the end: {found:?}");
        }
    }
}
